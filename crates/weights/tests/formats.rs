//! What is no safetensors file is named, with a hint.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use aquatint_weights::{Error, FORMATS, Opener, WeightFile, WeightSet};
use std::collections::BTreeSet;

/// Opens a file of these bytes and gives what the message calls it, and the hint.
fn refused(name: &str, bytes: &[u8]) -> (String, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    let error = WeightFile::open(&path).expect_err(name);
    let text = error.to_string();
    assert!(text.contains(name) && !text.contains('\n'), "{text}");
    match &error {
        Error::Format { found, hint, .. } => (found.to_string(), hint.to_string()),
        other => panic!("{name}: {other}"),
    }
}

#[test]
fn each_kind_is_named_whatever_the_extension() {
    let zip = |inside: &str| {
        [
            b"PK\x03\x04\0\0\x08\x08\0\0\0\0\0\0",
            inside.as_bytes(),
            b"\0\0",
        ]
        .concat()
    };
    let tar = [vec![b'a'; 257], b"ustar\0".to_vec(), vec![0; 300]].concat();
    let cases: Vec<(&str, Vec<u8>, &str, &str)> = vec![
        (
            "a GGML file of before GGUF",
            b"tjgg\x03\0\0\0".to_vec(),
            "convert",
            "ggml",
        ),
        ("a NumPy archive", zip("arr_0.npy"), "convert", "npz"),
        ("a zip archive", zip("hello.txt"), "unpack", "zip"),
        (
            "a NumPy array",
            b"\x93NUMPY\x01\0v\0".to_vec(),
            "convert",
            "npy",
        ),
        (
            "an HDF5 file",
            b"\x89HDF\r\n\x1a\n\0".to_vec(),
            "convert",
            "h5",
        ),
        (
            "a gzip archive",
            b"\x1f\x8b\x08\0\0".to_vec(),
            "unpack",
            "gz",
        ),
        ("a tar archive", tar, "unpack", "tar"),
        (
            "a PNG picture",
            b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec(),
            "weight file",
            "png",
        ),
        (
            "a JPEG picture",
            b"\xff\xd8\xff\xe0\0\x10JFIF".to_vec(),
            "weight file",
            "jpg",
        ),
        (
            "a WebP picture",
            b"RIFF\x10\0\0\0WEBPVP8 ".to_vec(),
            "weight file",
            "webp",
        ),
        (
            "a git-lfs pointer, not the file itself",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n".to_vec(),
            "git lfs pull",
            "safetensors",
        ),
        (
            "a web page",
            b"\n<!DOCTYPE HTML><html><body>Sign in</body></html>".to_vec(),
            "login",
            "html",
        ),
        ("a web page", b"\xef\xbb\xbf<html>".to_vec(), "login", "htm"),
        (
            "a JSON file",
            b"{\"error\": \"gone\"}".to_vec(),
            "folder",
            "json",
        ),
        ("a text file", b"Not Found".to_vec(), "model folder", "txt"),
        (
            "a text file",
            "\u{e9}".repeat(5000).into_bytes(),
            "model folder",
            "txt",
        ),
        (
            "of no known format",
            vec![0xde, 0xad, 0xbe, 0xef, 0, 1, 2, 3, 4, 5],
            "model folder",
            "xyz",
        ),
        (
            "of no known format",
            b"text with a \0 in it".to_vec(),
            "model folder",
            "txt",
        ),
    ];
    let mut met = BTreeSet::new();
    for (what, bytes, hint, extension) in cases {
        // A wrong extension does not hide what the bytes are; what nothing knows but is called
        // safetensors gets the message about its header instead.
        for extension in [extension, "safetensors", "ckpt", ""] {
            if what == "of no known format" && extension == "safetensors" {
                continue;
            }
            let (found, said) = refused(&format!("model.{extension}"), &bytes);
            assert_eq!(found, what, "{extension}");
            assert!(said.contains(hint), "{what}: {said}");
        }
        met.insert(what);
    }
    let refusing = FORMATS
        .iter()
        .filter(|f| matches!(f.opener, Opener::Refuse(_)));
    let untested: Vec<_> = refusing
        .map(|f| f.what)
        .filter(|w| !met.contains(w))
        .collect();
    assert!(
        untested.is_empty(),
        "formats that no case tries: {untested:?}"
    );
}

#[test]
fn the_table_has_no_repeated_names_and_reads_something() {
    let names: BTreeSet<_> = FORMATS.iter().map(|f| f.name).collect();
    assert_eq!(names.len(), FORMATS.len());
    assert!(FORMATS.iter().any(|f| matches!(f.opener, Opener::Read(_))));
    for f in FORMATS {
        assert!(f.extensions.iter().all(|e| !e.contains('.')));
        assert!(f.what.contains(' '), "{} with its article", f.what);
    }
}

/// Its length, 640, starts like a pickle.
#[test]
fn a_header_length_that_looks_like_a_magic_is_no_magic() {
    let dir = tempfile::tempdir().unwrap();
    for (len, magic) in [(0x280, &b"\x80\x02"[..]), (0x8b1f, b"\x1f\x8b")] {
        let mut bytes = (len as u64).to_le_bytes().to_vec();
        assert!(bytes.starts_with(magic));
        bytes.extend_from_slice(format!("{:len$}", "{}").as_bytes());
        let path = dir.path().join("model");
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(WeightFile::open(&path).unwrap().format(), "safetensors");
    }
}

#[test]
fn what_is_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let open = |name: &str| WeightSet::open(dir.path().join(name)).unwrap_err();
    let empty = dir.path().join("empty.safetensors");
    std::fs::write(&empty, "").unwrap();
    assert!(matches!(
        open("missing.safetensors"),
        Error::NotFound { .. }
    ));
    assert!(matches!(open(""), Error::Directory { .. }));
    assert!(matches!(open("empty.safetensors"), Error::Empty { .. }));
    // A pipe would wait for a writer for ever.
    #[cfg(unix)]
    {
        let pipe = dir.path().join("pipe.safetensors");
        assert!(
            std::process::Command::new("mkfifo")
                .arg(&pipe)
                .status()
                .unwrap()
                .success()
        );
        assert!(matches!(open("pipe.safetensors"), Error::NotRegular { .. }));
        let device = WeightFile::open("/dev/zero").unwrap_err();
        assert!(matches!(device, Error::NotRegular { .. }), "{device}");
    }
    for name in ["missing.safetensors", "", "empty.safetensors"] {
        assert!(open(name).hint().is_some());
    }
}

#[test]
fn a_config_is_no_index() {
    assert_eq!(refused("config.json", b"{\"a\": 1}").0, "a JSON file");
}

#[test]
fn bytes_in_memory_open_like_a_file() {
    let open =
        |b: &'static [u8]| WeightFile::from_bytes("<embedded>", bytes::Bytes::from_static(b));
    let file = open(b"\x02\0\0\0\0\0\0\0{}").unwrap();
    assert_eq!((file.tensors().len(), file.len_bytes()), (0, 10));
    file.check_unchanged().unwrap();
    assert!(matches!(open(b"GGUF"), Err(Error::Gguf { .. })));
    let text = open(b"").unwrap_err().to_string();
    assert_eq!(
        text,
        "<embedded>: the file is empty, expected a weight file"
    );
}
