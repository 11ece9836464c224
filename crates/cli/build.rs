//! Lists the files of the default model, to be embedded.

use std::fmt::Write;
use std::path::{Path, PathBuf};

fn main() {
    // Asked at run time: a script compiled in another checkout of a shared target directory would
    // remember that one.
    let manifest = std::env::var("CARGO_MANIFEST_DIR").expect("set by cargo");
    let root = Path::new(&manifest).join("../../models/default");
    println!("cargo::rerun-if-changed={}", root.display());
    let mut files = Vec::new();
    collect(&root, &mut files);
    files.sort();
    assert!(
        files.iter().any(|f| f.ends_with("model_index.json")),
        "the default model is not at {}; check the repository out whole",
        root.display()
    );
    let mut table = String::from("&[\n");
    for file in &files {
        let name: Vec<_> = file
            .strip_prefix(&root)
            .expect("collected under the root")
            .components()
            .map(|c| c.as_os_str().to_string_lossy())
            .collect();
        // Writing to a string cannot fail.
        let _ = writeln!(table, "({:?}, aligned!({:?})),", name.join("/"), file);
    }
    table.push(']');
    let out = std::env::var("OUT_DIR").expect("set by cargo");
    std::fs::write(Path::new(&out).join("default_model.rs"), table).expect("OUT_DIR is writable");
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return;
    };
    for path in entries.flatten().map(|e| e.path()) {
        if path.is_dir() {
            collect(&path, files);
        } else if path
            .extension()
            .is_some_and(|e| e == "json" || e == "txt" || e == "safetensors")
        {
            println!("cargo::rerun-if-changed={}", path.display());
            files.push(path);
        }
    }
}
