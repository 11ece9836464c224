//! Writing: what is written is read back by ours and by the reference, and a failure leaves nothing.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use aquatint_weights::safetensors::{self, TensorSpec, Writer};
use aquatint_weights::{DType, Error, TensorView, WeightFile};
use bytes::Bytes;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;

fn view(name: &str, dtype: DType, shape: &[usize], data: Vec<u8>) -> TensorView {
    TensorView::new(name, dtype, shape.to_vec(), Bytes::from(data)).unwrap()
}

fn spec(name: &str, dtype: DType, shape: &[usize]) -> TensorSpec {
    TensorSpec {
        name: name.into(),
        dtype,
        shape: shape.to_vec(),
    }
}

fn notes(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(k, v)| (k.to_string(), v.to_string()))
        .collect()
}

/// The names in a folder, to see that nothing is left behind.
fn listing(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn what_is_written_is_read_back(
        rows in prop::collection::btree_map(
            "\\PC{0,12}",
            (0..DType::PLAIN.len(), prop::collection::vec(0usize..5, 0..5), any::<u8>()),
            0..8,
        ),
        metadata in prop::collection::btree_map("\\PC{0,6}", "\\PC{0,6}", 0..3),
    ) {
        let tensors: Vec<TensorView> = rows
            .iter()
            .filter(|(name, _)| *name != "__metadata__")
            .map(|(name, (dtype, shape, seed))| {
                let dtype = DType::PLAIN[*dtype];
                let len = dtype.byte_size(shape.iter().product()).unwrap();
                let data = (0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add(*seed)).collect();
                view(name, dtype, shape, data)
            })
            .collect();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.safetensors");
        safetensors::write(&path, &tensors, &metadata).unwrap();

        let file = WeightFile::open(&path).unwrap();
        prop_assert_eq!(file.metadata(), &metadata);
        prop_assert_eq!(file.tensors().len(), tensors.len());
        let bytes = std::fs::read(&path).unwrap();
        let reference = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
        for t in &tensors {
            let back = file.get(&t.name).unwrap();
            prop_assert_eq!(back, t);
            prop_assert!(back.is_aligned() || back.is_empty());
            let theirs = reference.tensor(&t.name).unwrap();
            prop_assert_eq!((theirs.shape(), theirs.data()), (&t.shape[..], &t.data[..]));
            prop_assert_eq!(theirs.dtype().to_string(), t.dtype.name());
        }
        prop_assert_eq!(listing(dir.path()), ["t.safetensors"]);
    }
}

#[test]
fn files_of_the_reference_are_read() {
    use ::safetensors::tensor::{Dtype, TensorView as Theirs};
    let data: Vec<u8> = (0..24).collect();
    let f32s = Theirs::new(Dtype::F32, vec![2, 3], &data).unwrap();
    let bools = Theirs::new(Dtype::BOOL, vec![2], &data[..2]).unwrap();
    let bytes = ::safetensors::serialize([("a", f32s), ("b", bools)], None).unwrap();
    let file = safetensors::read(Path::new("x"), Bytes::from(bytes)).unwrap();
    assert_eq!(
        file.get("a").unwrap(),
        &view("a", DType::F32, &[2, 3], data.clone())
    );
    assert_eq!(
        file.get("b").unwrap(),
        &view("b", DType::Bool, &[2], vec![0, 1])
    );
}

#[test]
fn tensors_may_come_in_any_order() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.safetensors");
    let specs = [
        spec("a", DType::U8, &[3]),
        spec("b", DType::F32, &[2]),
        spec("c", DType::F16, &[1]),
    ];
    let mut w = Writer::create(&path, &specs, &notes(&[("by", "test")])).unwrap();
    w.write("a", &[1, 2, 3]).unwrap();
    w.write("c", &[4, 5]).unwrap();
    assert!(!path.exists(), "the target appears only when it is whole");
    w.write("b", &[0; 8]).unwrap();
    w.finish().unwrap();
    let file = WeightFile::open(&path).unwrap();
    let order: Vec<&str> = file.tensors().iter().map(|t| t.name.as_str()).collect();
    assert_eq!(
        order,
        ["b", "c", "a"],
        "widest first, so that each is aligned"
    );
    assert_eq!(file.get("a").unwrap().data[..], [1, 2, 3]);
    assert_eq!(file.get("c").unwrap().data[..], [4, 5]);
    assert_eq!(file.metadata()["by"], "test");
}

#[test]
fn misuse_is_an_error_and_leaves_the_old_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.safetensors");
    safetensors::write(&path, &[view("old", DType::U8, &[1], vec![7])], &notes(&[])).unwrap();
    let mut w = Writer::create(&path, &[spec("a", DType::F32, &[2])], &notes(&[])).unwrap();
    let message = |r: Result<(), Error>| r.unwrap_err().to_string();
    assert!(message(w.write("b", &[])).contains("tensor \"b\": it was not announced"));
    assert!(message(w.write("a", &[0; 7])).contains("it has 7 bytes, expected 8"));
    w.write("a", &[0; 8]).unwrap();
    assert!(message(w.write("a", &[0; 8])).contains("it is written already"));
    drop(w);
    let w = Writer::create(&path, &[spec("a", DType::F32, &[2])], &notes(&[])).unwrap();
    assert!(message(w.finish()).contains("tensor \"a\": it was announced and never written"));
    assert_eq!(
        WeightFile::open(&path).unwrap().get("old").unwrap().data[..],
        [7]
    );
    assert_eq!(listing(dir.path()), ["t.safetensors"]);
}

#[test]
fn announcements_that_no_file_can_hold() {
    let dir = tempfile::tempdir().unwrap();
    let create = |specs: &[TensorSpec]| {
        Writer::create(dir.path().join("t"), specs, &notes(&[]))
            .map(|_| ())
            .unwrap_err()
            .to_string()
    };
    assert!(create(&[spec("__metadata__", DType::U8, &[1])]).contains("reserves that name"));
    let a = spec("a", DType::U8, &[1]);
    assert!(create(&[a.clone(), a.clone()]).contains("announced twice"));
    assert!(create(&[spec("a", DType::F32, &[usize::MAX])]).contains("overflows"));
    assert!(create(&[spec("a", DType::U8, &[usize::MAX])]).contains("no file can be that long"));
    assert!(
        create(&[a, spec("b", DType::U8, &[i64::MAX as usize])])
            .contains("no file can be that long")
    );
    assert!(create(&[spec("a", DType::U8, &[1; 33])]).contains("too many axes"));
    assert!(
        create(&[spec(&"x".repeat(100_000_000), DType::U8, &[1])])
            .contains("header would be longer")
    );
    assert!(listing(dir.path()).is_empty());
}

#[test]
fn a_mapped_file_survives_being_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.safetensors");
    safetensors::write(
        &path,
        &[view("a", DType::U8, &[9000], vec![7; 9000])],
        &notes(&[]),
    )
    .unwrap();
    let old = WeightFile::open(&path).unwrap();
    safetensors::write(&path, &[view("a", DType::U8, &[1], vec![8])], &notes(&[])).unwrap();
    old.check_unchanged().unwrap();
    assert!(old.get("a").unwrap().data.iter().all(|b| *b == 7));
    std::fs::remove_file(&path).unwrap();
    old.check_unchanged().unwrap();
}

#[test]
fn a_file_shortened_in_place_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.safetensors");
    safetensors::write(
        &path,
        &[view("a", DType::U8, &[9000], vec![7; 9000])],
        &notes(&[]),
    )
    .unwrap();
    let open = WeightFile::open(&path).unwrap();
    std::fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(100)
        .unwrap();
    let error = open.check_unchanged().unwrap_err();
    assert!(matches!(error, Error::Changed { now: 100, .. }), "{error}");
}

#[test]
fn places_where_nothing_can_be_written() {
    let dir = tempfile::tempdir().unwrap();
    let a = [view("a", DType::U8, &[1], vec![1])];
    let write = |path: &Path| safetensors::write(path, &a, &notes(&[])).unwrap_err();
    let missing = dir.path().join("not here/t.safetensors");
    assert!(matches!(write(&missing), Error::NotFound { path } if path.ends_with("not here")));
    assert!(matches!(write(dir.path()), Error::Directory { .. }));
    #[cfg(unix)]
    assert!(matches!(
        write(Path::new("/dev/null")),
        Error::NotRegular { .. }
    ));
    let file = dir.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let error = write(&file.join("t.safetensors"));
    assert!(error.to_string().contains("file"), "{error}");
    assert_eq!(listing(dir.path()), ["file"]);
}

#[cfg(unix)]
#[test]
fn new_files_have_the_users_permissions() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.safetensors");
    let plain = dir.path().join("plain");
    std::fs::write(&plain, "").unwrap();
    safetensors::write(&path, &[], &notes(&[])).unwrap();
    let mode = |p: &Path| std::fs::metadata(p).unwrap().permissions().mode();
    assert_eq!(mode(&path), mode(&plain));
}

/// On a file system of 64 KiB, mounted for the test; only root may do that.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Mounted::new(dir.path());
    let Some(disk) = disk else {
        eprintln!("SKIPPED a_full_disk_is_an_error_and_leaves_nothing: no right to mount a tmpfs");
        return;
    };
    let path = disk.0.join("t.safetensors");
    let small = view("a", DType::U8, &[1000], vec![1; 1000]);
    safetensors::write(&path, std::slice::from_ref(&small), &notes(&[])).unwrap();
    // One that fails while it is written, and one so small that only the last flush meets the full disk.
    for len in [8 << 20, 100 << 10] {
        let large = view("a", DType::U8, &[len], vec![2; len]);
        let error = safetensors::write(&path, &[large], &notes(&[])).unwrap_err();
        let Error::Io { source, .. } = &error else {
            panic!("{error}")
        };
        assert_eq!(source.kind(), std::io::ErrorKind::StorageFull);
        assert!(
            error
                .to_string()
                .contains("t.safetensors: cannot write: No space left"),
            "{error}"
        );
        assert!(error.hint().is_some_and(|h| h.contains("free some space")));
        assert_eq!(listing(&disk.0), ["t.safetensors"]);
        assert_eq!(WeightFile::open(&path).unwrap().get("a").unwrap(), &small);
    }
}

/// A small tmpfs, unmounted when dropped.
#[cfg(target_os = "linux")]
struct Mounted(std::path::PathBuf);

#[cfg(target_os = "linux")]
impl Mounted {
    fn new(at: &Path) -> Option<Mounted> {
        let mount = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=64k", "aquatint-test"])
            .arg(at)
            .output();
        mount
            .is_ok_and(|o| o.status.success())
            .then(|| Mounted(at.into()))
    }
}

#[cfg(target_os = "linux")]
impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount")
            .arg("-l")
            .arg(&self.0)
            .output();
    }
}
