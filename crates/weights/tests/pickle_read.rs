//! PyTorch's checkpoints as PyTorch wrote them, and everything refused that is no list of tensors.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use aquatint_weights::pickle::{self, Problem};
use aquatint_weights::{DType, Error, WeightFile, to_f32_vec};
use bytes::Bytes;
use std::path::{Path, PathBuf};

fn golden(name: &str) -> PathBuf {
    aquatint_testkit::golden("pickle_files").join(name)
}

fn problem(result: Result<WeightFile, Error>) -> Problem {
    let error = result.expect_err("a refusal");
    let text = error.to_string();
    assert!(
        text.len() < 2000 && !text.contains(char::is_control),
        "{text}"
    );
    assert!(error.hint().is_some(), "{text}");
    match error {
        Error::Pickle { problem, .. } => *problem,
        other => panic!("{other}"),
    }
}

/// One pickle as a checkpoint of the zip format, whose storage `0` has 16 bytes.
fn zip(program: &[u8]) -> Vec<u8> {
    archive(&[("a/data.pkl", program), ("a/data/0", &[1; 16])])
}

/// A zip archive of stored entries.
fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in entries {
        let (name_len, len) = (
            (name.len() as u16).to_le_bytes(),
            (data.len() as u32).to_le_bytes(),
        );
        let header = (out.len() as u32).to_le_bytes();
        let common = [
            &[20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..],
            &len,
            &len,
            &name_len,
        ]
        .concat();
        out.extend([b"PK\x03\x04", &common[..], &[0, 0], name.as_bytes(), data].concat());
        directory.extend(
            [
                b"PK\x01\x02\x14\0",
                &common[..],
                &[0; 12],
                &header,
                name.as_bytes(),
            ]
            .concat(),
        );
    }
    let (count, start) = (
        (entries.len() as u16).to_le_bytes(),
        (out.len() as u32).to_le_bytes(),
    );
    let size = (directory.len() as u32).to_le_bytes();
    out.extend(directory);
    out.extend(
        [
            b"PK\x05\x06\0\0\0\0",
            &count[..],
            &count,
            &size,
            &start,
            &[0, 0],
        ]
        .concat(),
    );
    out
}

fn read(program: &[u8]) -> Result<WeightFile, Error> {
    pickle::read_zip(Path::new("model.ckpt"), Bytes::from(zip(program)))
}

fn same_as_torch(name: &str) -> WeightFile {
    let file = WeightFile::open(golden(name)).unwrap();
    let want = WeightFile::open(golden("tensors.safetensors")).unwrap();
    assert_eq!(file.tensors().len(), want.tensors().len(), "{name}");
    for expected in want.tensors() {
        let got = file
            .get(&expected.name)
            .unwrap_or_else(|| panic!("{}", expected.name));
        assert_eq!(
            (got.dtype, &got.shape),
            (expected.dtype, &expected.shape),
            "{}",
            got.name
        );
        assert_eq!(got.data, expected.data, "{name}: {}", got.name);
    }
    file
}

#[test]
fn checkpoints_of_every_kind() {
    let zip = same_as_torch("zip.ckpt");
    assert_eq!(zip.format(), "pickle");
    assert_eq!(same_as_torch("legacy.pt").format(), "pickle-legacy");
    same_as_torch("packed.ckpt");
    same_as_torch("lightning.ckpt");
    // The order of the file, and views of one storage without a copy.
    assert_eq!(zip.tensors()[0].name, "f32");
    let (base, part) = (zip.get("f32").unwrap(), zip.get("part").unwrap());
    assert_eq!(
        part.data.as_ptr().addr(),
        base.data.as_ptr().addr() + 2 * 8 * 4
    );
    let f8 = WeightFile::open(golden("f8.ckpt")).unwrap();
    assert_eq!(f8.get("w").unwrap().dtype, DType::F8E4M3);
    let values: Vec<f32> = (0..16).map(|x| x as f32).collect();
    assert_eq!(to_f32_vec(f8.get("w").unwrap()).unwrap(), values);
}

#[test]
fn what_would_run_code_is_refused_by_name() {
    let here = tempfile::tempdir().unwrap();
    for (name, asked) in [
        ("evil_eval.ckpt", "__builtin__.eval"),
        ("evil_stack_global.ckpt", "builtins.exec"),
        ("evil_inst.ckpt", "STRING"),
        ("evil_inst_alone.ckpt", "INST"),
        ("evil_build.ckpt", "builtins.getattr"),
        ("evil_nested.ckpt", "torch.storage._load_from_bytes"),
        ("evil_ext.ckpt", "EXT1"),
        ("evil_legacy.pt", "__builtin__.eval"),
        ("evil_legacy_late.pt", "__builtin__.exec"),
    ] {
        let path = here.path().join(name);
        std::fs::copy(golden(name), &path).unwrap();
        let error = WeightFile::open(&path).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains(asked) && text.contains("nothing was run"),
            "{name}: {text}"
        );
        let found = problem(Err(error));
        assert!(
            matches!(found, Problem::Global { .. } | Problem::Opcode { .. }),
            "{name}: {found}"
        );
    }
    assert!(!here.path().join("owned").exists());
    assert!(!Path::new("owned").exists());
}

/// Every opcode byte outside the list is refused, whatever follows.
#[test]
fn opcodes_are_allowed_one_by_one() {
    let allowed = b".\x80\x95(012N\x88\x89hjqr\x94JKMG\x8a\x8bX\x8c\x8dUTBC\x8e\x96)t\x85\x86\x87]l}d\x8f\x91aesu\x90c\x93R\x81\x92bQ";
    for code in 0..=255u8 {
        let found = problem(read(&[&[0x80, 2, code][..], &[0; 20]].concat()));
        let refused = matches!(found, Problem::Opcode { code: c, at: 2, .. } if c == code);
        assert_eq!(refused, !allowed.contains(&code), "{code:#x}: {found}");
    }
}

#[test]
fn calls_of_what_is_no_function() {
    for program in [
        &b"\x80\x02X\x02\0\0\0os)R."[..],
        b"\x80\x02})R.",
        b"\x80\x02N)\x81.",
    ] {
        assert!(matches!(problem(read(program)), Problem::Call { .. }));
    }
    // Classes that are not looked at take what they want, and are nothing.
    let harmless = b"\x80\x02cnumpy\ndtype\nX\x02\0\0\0f8\x85R}b.";
    assert_eq!(problem(read(harmless)), Problem::NoTensors);
}

#[test]
fn damaged_pickles() {
    for program in [
        &b""[..],
        b"\x80",
        b"\x80\x02",
        b"\x80\x02}",
        b"\x80\x02X\xff\xff\xff\xff",
        b"\x80\x02cos",
    ] {
        let found = problem(read(program));
        assert!(matches!(found, Problem::Cut { .. }), "{program:?}: {found}");
    }
    let eight = |code: u8| [&[0x80, 2, code][..], &[0xff; 8], b"x"].concat();
    for code in [0x8d, 0x8e, 0x96] {
        assert!(matches!(problem(read(&eight(code))), Problem::Cut { .. }));
    }
    for program in [
        &b"\x80\x02."[..],
        b"\x80\x020",
        b"\x80\x02a",
        b"\x80\x02(.",
        b"\x80\x02t",
        b"\x80\x02}K\x01s",
        b"\x80\x02K\x01K\x02a.",
        b"\x80\x02}(K\x01u.",
        b"\x80\x02(K\x01d.",
        b"\x80\x02h\x07.",
        b"\x80\x02]K\x01K\x02s.",
        b"\x80\x02K\x01Q.",
        b"\x80\x02X\x02\0\0\0\xc3\x28.",
        b"\x80\x02\x85.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}R.",
        b"\x80\x02K\x01K\x01\x93.",
    ] {
        let found = problem(read(program));
        assert!(
            matches!(found, Problem::Damaged { .. }),
            "{program:?}: {found}"
        );
    }
    assert_eq!(problem(read(b"\x80\x02}.")), Problem::NoTensors);
    assert_eq!(problem(read(b"\x80\x02N.")), Problem::NoTensors);
}

/// Depth is no danger, neither in building nor in dropping; nor are dictionaries that hold themselves.
#[test]
fn depth_and_circles() {
    let deep = [&b"\x80\x02)"[..], &b"\x85".repeat(3_000_000), b"."].concat();
    assert_eq!(problem(read(&deep)), Problem::NoTensors);
    let marks = [&b"\x80\x02"[..], &b"(".repeat(1_000_000), b"."].concat();
    assert!(matches!(problem(read(&marks)), Problem::Damaged { .. }));
    assert_eq!(
        problem(read(b"\x80\x02}q\0X\x01\0\0\0ah\0s.")),
        Problem::NoTensors
    );
    assert_eq!(
        problem(read(b"\x80\x02}q\0X\x0a\0\0\0state_dicth\0s.")),
        Problem::NoTensors
    );
    // Each dictionary holds the one before a hundred times: as many ways as 100^20.
    let mut wide = b"\x80\x02}q\0".to_vec();
    for level in 1..20u8 {
        wide.extend(b"}(");
        for key in 0..100u8 {
            wide.extend([b'K', key, b'h', level - 1]);
        }
        wide.extend([b'u', b'q', level]);
    }
    wide.push(b'.');
    let found = problem(read(&wide));
    assert!(matches!(found, Problem::TooMany { .. }), "{found}");
}

/// A dictionary of one tensor over storage `0` of four f32.
fn one(offset: i32, sizes: &[i32], strides: &[i32], len: i32) -> Vec<u8> {
    let int = |n: i32| [&b"J"[..], &n.to_le_bytes()].concat();
    let tuple = |items: &[i32]| {
        let items: Vec<u8> = items.iter().flat_map(|n| int(*n)).collect();
        [b"(", &items[..], b"t"].concat()
    };
    let text = |s: &str| [&b"X"[..], &(s.len() as u32).to_le_bytes(), s.as_bytes()].concat();
    [
        &b"\x80\x02}"[..],
        &text("w"),
        b"ctorch._utils\n_rebuild_tensor_v2\n((",
        &text("storage"),
        b"ctorch\nFloatStorage\n",
        &text("0"),
        &text("cpu"),
        &int(len),
        b"tQ",
        &int(offset),
        &tuple(sizes),
        &tuple(strides),
        b"\x89NtRs.",
    ]
    .concat()
}

#[test]
fn tensors_that_lie() {
    assert_eq!(
        read(&one(0, &[2, 2], &[2, 1], 4)).unwrap().tensors()[0].shape,
        [2, 2]
    );
    assert_eq!(
        read(&one(4, &[0, 9], &[9, 1], 4)).unwrap().tensors()[0].shape,
        [0, 9]
    );
    let big = i32::MAX;
    for (offset, sizes, strides) in [
        (1, &[2, 2][..], &[2, 1][..]),
        (-1, &[2], &[1]),
        (0, &[5], &[1]),
        (0, &[2], &[-1]),
        (0, &[-2], &[1]),
        (0, &[2, 2], &[1]),
        (0, &[2], &[4]),
        (0, &[2], &[big]),
        (0, &[big, big, big], &[0, 0, 0]),
        (0, &[5], &[0]),
        (big, &[1], &[1]),
        (5, &[0], &[1]),
    ] {
        let found = problem(read(&one(offset, sizes, strides, 4)));
        let fits = matches!(
            found,
            Problem::OutOfStorage { .. } | Problem::Damaged { .. }
        );
        assert!(fits, "{offset} {sizes:?} {strides:?}: {found}");
    }
    for len in [3, 5, 0, big] {
        let found = problem(read(&one(0, &[1], &[1], len)));
        assert!(matches!(found, Problem::StorageSize { .. }), "{found}");
    }
    let mut elsewhere = one(0, &[1], &[1], 4);
    let key = elsewhere
        .windows(6)
        .position(|w| w == b"X\x01\0\0\x000")
        .unwrap();
    elsewhere[key + 5] = b'7';
    assert!(matches!(
        problem(read(&elsewhere)),
        Problem::NoStorage { .. }
    ));
}

#[test]
fn archives_that_lie() {
    let open = |bytes: Vec<u8>| pickle::read_zip(Path::new("model.ckpt"), Bytes::from(bytes));
    let good = zip(&one(0, &[4], &[1], 4));
    assert!(open(good.clone()).is_ok());
    for len in 0..good.len() {
        let found = problem(open(good[..len].to_vec()));
        assert!(matches!(found, Problem::Zip { .. }), "{len}: {found}");
    }
    // Any byte changed: read or refused, never a panic.
    for at in 0..good.len() {
        for value in [0, 1, 0x7f, 0xff] {
            let mut changed = good.clone();
            changed[at] = value;
            let _ = open(changed);
        }
    }
    let twice = archive(&[("a/data.pkl", b"."), ("a/data.pkl", b".")]);
    assert!(problem(open(twice)).to_string().contains("twice"));
    let none = archive(&[("a/other", b".")]);
    assert!(problem(open(none)).to_string().contains("no data.pkl"));
    let big = archive(&[("a/data.pkl", b"\x80\x02}."), ("a/byteorder", b"big")]);
    assert_eq!(problem(open(big)), Problem::BigEndian);
}

#[test]
fn every_truncation_of_the_older_format_is_refused() {
    let bytes = std::fs::read(golden("legacy.pt")).unwrap();
    for len in 0..bytes.len() {
        let cut = pickle::read_legacy(Path::new("old.pt"), Bytes::from(bytes[..len].to_vec()));
        problem(cut);
    }
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 0x41;
        let _ = pickle::read_legacy(Path::new("old.pt"), Bytes::from(changed));
    }
    let plain = pickle::read_legacy(Path::new("x.pkl"), Bytes::from_static(b"\x80\x02}."));
    assert_eq!(problem(plain), Problem::NotTorch);
}
