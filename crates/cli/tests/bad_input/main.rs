//! Bad input, each kind tried on the binary: one line, a hint, the right exit code, nothing left behind.

mod command_line;
#[path = "../common/mod.rs"]
mod common;
mod files;
mod outputs;
mod pictures;
mod tensors;

use std::path::{Path, PathBuf};

use common::{Place, arg, quick, text};

/// Exit code of a wrong command line.
const USAGE: i32 = 2;
/// Exit code of anything else that goes wrong.
const FAILURE: i32 = 1;

fn png_with(place: &Place, name: &str, parameters: Option<&str>) -> PathBuf {
    // Stored as text by the encoder that the engine uses too; its reader is tested elsewhere.
    let picture = aquatint_engine::picture::Picture {
        width: 8,
        height: 8,
        rgb: vec![9; 192],
        grey: false,
    };
    let path = place.join(name);
    aquatint_engine::picture::save(&path, &picture, parameters, true).expect("a PNG");
    path
}

/// Every way of giving a file as a model fails, and `inspect` never panics.
#[track_caller]
fn no_model(place: &Place, path: &Path, expected: &str) -> String {
    let said = place.refused(FAILURE, quick(&["-m", arg(path)]));
    assert!(said.contains(expected), "{}: {said}", path.display());
    let inspected = place.run(["inspect", arg(path)]);
    assert!(
        matches!(inspected.status.code(), Some(0 | 1)),
        "{inspected:?}"
    );
    assert!(!text(&inspected.stderr).contains("panicked"));
    said
}

/// A safetensors file of our own making: what the header says, and bytes.
fn safetensors(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}
