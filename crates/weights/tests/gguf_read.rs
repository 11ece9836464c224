//! GGUF files: all types and metadata as the PyPI package `gguf` wrote and reads them, and every lie refused.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use aquatint_testkit::{Tensors, golden};
use aquatint_weights::gguf::{self, Problem, TypeId, Value};
use aquatint_weights::{
    BlockFormat, DType, Error, WeightFile, WeightSet, convert, first_non_finite, to_f32_vec,
};
use bytes::Bytes;
use std::path::Path;

fn read(bytes: Vec<u8>) -> Result<WeightFile, Error> {
    gguf::read(Path::new("model.gguf"), Bytes::from(bytes))
}

fn problem(bytes: Vec<u8>) -> Problem {
    let error = read(bytes).expect_err("a refusal");
    let text = error.to_string();
    assert!(
        text.starts_with("model.gguf: damaged GGUF file: ") && text.len() < 2000,
        "{text}"
    );
    assert!(
        !text.contains(char::is_control) && error.hint().is_some(),
        "{text}"
    );
    match error {
        Error::Gguf { problem, .. } => *problem,
        other => panic!("{other}"),
    }
}

fn text(s: &str) -> Vec<u8> {
    [&(s.len() as u64).to_le_bytes()[..], s.as_bytes()].concat()
}

/// One metadata pair.
fn pair(key: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [&text(key)[..], &kind.to_le_bytes(), value].concat()
}

/// One row of the table; the shape is innermost first.
fn row(name: &str, shape: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let mut out = text(name);
    out.extend((shape.len() as u32).to_le_bytes());
    out.extend(shape.iter().flat_map(|n| n.to_le_bytes()));
    out.extend(kind.to_le_bytes());
    out.extend(offset.to_le_bytes());
    out
}

fn head(version: u32, tensors: u64, pairs: u64) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    out.extend(version.to_le_bytes());
    out.extend(tensors.to_le_bytes());
    out.extend(pairs.to_le_bytes());
    out
}

/// A whole file of these pairs and rows, padded, with `payload` bytes of tensors.
fn file(pairs: &[Vec<u8>], rows: &[Vec<u8>], payload: usize) -> Vec<u8> {
    let mut out = head(3, rows.len() as u64, pairs.len() as u64);
    out.extend(pairs.concat());
    out.extend(rows.concat());
    out.resize(out.len().next_multiple_of(32), 0);
    out.resize(out.len() + payload, 1);
    out
}

/// Bit for bit what the package reads.
#[test]
fn every_type_as_the_package_reads_it() {
    let want = Tensors::read(golden("gguf_files/all.safetensors")).unwrap();
    let file = WeightFile::open(golden("gguf_files/all.gguf")).unwrap();
    assert_eq!(file.format(), "gguf");
    let mut blocks = 0;
    for t in file.tensors() {
        let expected = want.get(&t.name);
        assert_eq!(t.shape, expected.shape(), "{}", t.name);
        blocks += usize::from(t.dtype.blocks().is_some());
        let Ok(got) = to_f32_vec(t) else {
            assert!(matches!(t.dtype, DType::I8 | DType::I32), "{t:?}");
            continue;
        };
        let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&got), bits(expected.f32()), "{}", t.name);
        assert_eq!(first_non_finite(t), None);
    }
    assert_eq!(file.tensors().len(), 17);
    assert_eq!(blocks, BlockFormat::ALL.len() + 1);
    let conv = file.get("conv.weight").unwrap();
    assert_eq!(conv.shape, [8, 32, 3, 3], "the shape that is noted");
    assert_eq!(conv.data.len(), 9 * 144);
    let half = convert(conv, DType::F16).unwrap();
    assert_eq!((half.dtype, half.len()), (DType::F16, 8 * 32 * 9));
}

#[test]
fn every_kind_of_metadata() {
    let set = WeightSet::open(golden("gguf_files/all.gguf")).unwrap();
    let value = |key: &str| set.gguf_value(key).unwrap_or_else(|| panic!("{key}"));
    for (key, number) in [
        ("uint8", 100),
        ("uint16", 102),
        ("uint32", 104),
        ("uint64", 106),
    ] {
        assert_eq!(value(&format!("test.{key}")).as_u64(), Some(number));
    }
    assert_eq!(value("test.int8"), &Value::I8(-101));
    assert_eq!(value("test.int16"), &Value::I16(-103));
    assert_eq!(value("test.int32"), &Value::I32(-105));
    assert_eq!(value("test.int64"), &Value::I64(-107));
    assert_eq!(value("test.int64").as_u64(), None);
    assert_eq!(value("test.float32"), &Value::F32(-0.1));
    assert_eq!(value("test.float64").as_f64(), Some(1e300));
    assert_eq!(value("test.bool").as_bool(), Some(true));
    assert_eq!(value("test.string").as_str(), Some("grün \u{1f3a8}"));
    assert_eq!(value("test.numbers").as_i64s(), Some(vec![1, -2, 3]));
    assert_eq!(value("test.bools").to_string(), "2 of bool");
    assert_eq!(value("test.doubles").to_string(), "2 of f64");
    let tokens = value("tokenizer.ggml.tokens").as_strings().unwrap();
    assert_eq!(tokens, ["<pad>", "</s>", "\u{2581}a", "ä", "\n"]);
    let scores = value("tokenizer.ggml.scores").as_f32s().unwrap();
    assert_eq!(scores, [0.0, 0.0, -2.5, -3.25, -4.125]);
    let types = value("tokenizer.ggml.token_type").as_i64s();
    assert_eq!(types, Some(vec![3, 3, 1, 1, 1]));
    assert!(set.gguf_value("no.such").is_none());
    let shown = set.inspect();
    assert_eq!(shown.files[0].metadata["general.architecture"], "t5encoder");
    assert_eq!(shown.files[0].metadata["test.numbers"], "[1, -2, 3]");
}

#[test]
fn versions() {
    let mut bytes = std::fs::read(golden("gguf_files/all.gguf")).unwrap();
    bytes[4] = 2;
    assert_eq!(read(bytes.clone()).unwrap().tensors().len(), 17);
    for found in [0, 1, 4, u32::MAX] {
        bytes[4..8].copy_from_slice(&found.to_le_bytes());
        assert_eq!(problem(bytes.clone()), Problem::Version { found });
    }
    bytes[4..8].copy_from_slice(&3u32.to_be_bytes());
    assert_eq!(problem(bytes), Problem::BigEndian);
}

#[test]
fn small_files() {
    assert!(read(head(3, 0, 0)).unwrap().tensors().is_empty());
    let scalar = read(file(&[], &[row("s", &[], 0, 0)], 4)).unwrap();
    assert_eq!(scalar.get("s").unwrap().shape, [0usize; 0]);
    let none = read(file(&[], &[row("none", &[0, 3], 0, 0)], 0)).unwrap();
    assert_eq!(none.get("none").unwrap().shape, [3, 0]);
    let aligned = pair("general.alignment", 4, &64u32.to_le_bytes());
    let mut bytes = file(&[aligned], &[row("a", &[1], 26, 64)], 0);
    bytes.resize(bytes.len().next_multiple_of(64), 0);
    bytes.resize(bytes.len() + 64, 0);
    bytes.extend(7i32.to_le_bytes());
    assert_eq!(
        read(bytes).unwrap().get("a").unwrap().data[..],
        [7, 0, 0, 0]
    );
}

#[test]
fn counts_that_lie() {
    for many in [1 << 20, 1 << 40, u64::MAX / 24, u64::MAX] {
        for (tensors, pairs) in [(many, 0), (0, many)] {
            let found = problem(head(3, tensors, pairs));
            assert!(
                matches!(found, Problem::Count { count, .. } if count == many),
                "{found}"
            );
        }
        // As many as the bytes could hold, but not these bytes.
        let array = [&4u32.to_le_bytes()[..], &many.to_le_bytes()].concat();
        let found = problem(file(&[pair("a", 9, &array)], &[], 0));
        assert!(matches!(found, Problem::Count { .. }), "{found}");
    }
    let three = [head(3, 3, 0), row("a", &[1], 24, 0), vec![0; 64]].concat();
    assert!(read(three).is_err());
}

#[test]
fn texts_that_are_huge_or_no_text() {
    let long = |len: u64| [&len.to_le_bytes()[..], b"abc"].concat();
    for len in [1u64 << 30, u64::MAX] {
        let mut name = head(3, 1, 0);
        name.extend(long(len));
        name.resize(200, 0);
        assert!(matches!(problem(name), Problem::LongText { .. }));
        let mut key = head(3, 0, 1);
        key.extend(long(len));
        key.resize(200, 0);
        assert!(matches!(problem(key), Problem::LongText { .. }));
        let value = problem(file(&[pair("key", 8, &long(len))], &[], 0));
        assert!(matches!(value, Problem::LongText { .. }), "{value}");
    }
    // Allowed, but not there.
    let value = problem(file(&[pair("key", 8, &long(1 << 20))], &[], 0));
    assert!(matches!(value, Problem::Cut { .. }), "{value}");
    let value = problem(file(
        &[pair("key", 8, &[2, 0, 0, 0, 0, 0, 0, 0, 0xc3, 0x28])],
        &[],
        0,
    ));
    assert!(matches!(value, Problem::NotUtf8 { .. }), "{value}");
}

#[test]
fn arrays_in_arrays_end() {
    // Arrays of one array each, as many as a file can hold.
    let one = [&9u32.to_le_bytes()[..], &1u64.to_le_bytes()].concat();
    for depth in [5, 1000, 200_000] {
        let found = problem(file(&[pair("deep", 9, &one.repeat(depth))], &[], 0));
        assert!(matches!(found, Problem::Nested { .. }), "{found}");
    }
    let flat = [&24u32.to_le_bytes()[..], &1u64.to_le_bytes(), &[1]].concat();
    let found = problem(file(&[pair("odd", 9, &flat)], &[], 0));
    assert!(
        matches!(found, Problem::ValueKind { kind: 24, .. }),
        "{found}"
    );
    let inner = [&0u32.to_le_bytes()[..], &2u64.to_le_bytes(), &[5, 6]].concat();
    let good = read(file(&[pair("a", 9, &[&one[..], &inner].concat())], &[], 0)).unwrap();
    let nested = gguf::Array::Array(vec![gguf::Array::U8(vec![5, 6])]);
    assert_eq!(good.gguf().get("a"), Some(&Value::Array(nested)));
}

#[test]
fn values_that_are_none() {
    let found = problem(file(&[pair("a", 13, &[0; 8])], &[], 0));
    assert!(
        matches!(found, Problem::ValueKind { kind: 13, .. }),
        "{found}"
    );
    let found = problem(file(&[pair("a", 7, &[2])], &[], 0));
    assert!(matches!(found, Problem::Bool { found: 2, .. }), "{found}");
    let twice = [pair("a", 0, &[1]), pair("a", 0, &[1])];
    assert!(matches!(
        problem(file(&twice, &[], 0)),
        Problem::RepeatedKey { .. }
    ));
    for alignment in [0u32, 3, 48, 1 << 21, u32::MAX] {
        let key = pair("general.alignment", 4, &alignment.to_le_bytes());
        let found = problem(file(&[key], &[], 0));
        assert!(matches!(found, Problem::Alignment { .. }), "{found}");
    }
    // A text, which may hold anything; the message must not.
    let text = [&2u64.to_le_bytes()[..], b"\x1b\n"].concat();
    let found = problem(file(&[pair("general.alignment", 8, &text)], &[], 0));
    assert!(matches!(found, Problem::Alignment { .. }), "{found}");
    let wide = pair("general.alignment", 10, &32u64.to_le_bytes());
    assert!(matches!(
        problem(file(&[wide], &[], 0)),
        Problem::Alignment { .. }
    ));
}

#[test]
fn tensors_that_lie() {
    let one = |row: Vec<u8>| problem(file(&[], &[row], 64));
    let found = one(row("a", &[1], 9999, 0));
    assert!(
        matches!(
            found,
            Problem::Type {
                found: TypeId(9999),
                ..
            }
        ),
        "{found}"
    );
    let found = one(row("a", &[256], 23, 0));
    assert!(
        found.to_string().contains("IQ4_XS, expected one of F32"),
        "{found}"
    );
    assert!(matches!(
        one(row("a", &[1; 9], 0, 0)),
        Problem::Axes { axes: 9, .. }
    ));
    assert!(matches!(
        one(row("a", &[33], 2, 0)),
        Problem::PartOfBlock { row: 33, .. }
    ));
    assert!(matches!(
        one(row("a", &[128, 2], 12, 0)),
        Problem::PartOfBlock { row: 128, .. }
    ));
    for shape in [
        &[u64::MAX][..],
        &[1 << 32, 1 << 32],
        &[1 << 62, 2, 2],
        &[u64::MAX - 255, 256],
    ] {
        assert!(
            matches!(one(row("a", shape, 0, 0)), Problem::ShapeOverflow { .. }),
            "{shape:?}"
        );
    }
    for offset in [1, 8, 33, u64::MAX] {
        assert!(matches!(
            one(row("a", &[1], 24, offset)),
            Problem::Misaligned { .. }
        ));
    }
    for offset in [64, 96, 1 << 40, u64::MAX - 31] {
        assert!(
            matches!(one(row("a", &[1], 24, offset)), Problem::PastEnd { .. }),
            "{offset}"
        );
    }
    assert!(matches!(
        one(row("a", &[65], 24, 0)),
        Problem::PastEnd { size: 65, .. }
    ));
    let two = |a, b| problem(file(&[], &[a, b], 64));
    let same = two(row("a", &[1], 24, 0), row("a", &[1], 24, 32));
    assert_eq!(same, Problem::Repeated { name: "a".into() });
    let over = two(row("a", &[1], 24, 32), row("b", &[33], 24, 0));
    assert_eq!(
        over,
        Problem::Overlap {
            first: "b".into(),
            second: "a".into()
        }
    );
    let over = two(row("a", &[1], 24, 0), row("b", &[1], 24, 0));
    assert!(matches!(over, Problem::Overlap { .. }));
    let noted = |axes: &[i32]| {
        let array = [&5u32.to_le_bytes()[..], &(axes.len() as u64).to_le_bytes()].concat();
        let values: Vec<u8> = axes.iter().flat_map(|n| n.to_le_bytes()).collect();
        let key = pair("comfy.gguf.orig_shape.a", 9, &[array, values].concat());
        problem(file(&[key], &[row("a", &[6], 24, 0)], 32))
    };
    for axes in [
        &[5][..],
        &[-2, -3],
        &[],
        &[2, 3, 0],
        &[1 << 30, 1 << 30, 16],
    ] {
        assert!(
            matches!(noted(axes), Problem::NotedShape { .. }),
            "{axes:?}"
        );
    }
}

#[test]
fn every_truncation_is_refused() {
    let bytes = std::fs::read(golden("gguf_files/all.gguf")).unwrap();
    let file = read(bytes.clone()).unwrap();
    let last = file
        .tensors()
        .iter()
        .map(|t| t.data.as_ptr().addr() + t.data.len())
        .max()
        .unwrap();
    let first = file.tensors()[0].data.as_ptr().addr();
    let start = bytes.len() - (last - first).next_multiple_of(32);
    // After the last tensor there is padding only.
    let end = start + (last - first);
    for len in (4..end).step_by(7).chain([end - 1]) {
        let found = problem(bytes[..len].to_vec());
        assert!(
            matches!(
                found,
                Problem::Cut { .. } | Problem::PastEnd { .. } | Problem::Count { .. }
            ),
            "{len}: {found}"
        );
    }
    assert!(read(bytes[..end].to_vec()).is_ok());
}

/// Any byte of the head changed: read or refused, never a panic, never a view outside the file.
#[test]
fn every_changed_byte() {
    let bytes = std::fs::read(golden("gguf_files/all.gguf")).unwrap();
    for at in (0..2400).step_by(3) {
        for value in [0, 1, 0x7f, 0x80, 0xff, bytes[at] ^ 1] {
            let mut changed = bytes.clone();
            changed[at] = value;
            if let Ok(file) = read(changed) {
                for t in file.tensors() {
                    assert!(t.data.len() <= bytes.len());
                }
            }
        }
    }
}

/// A scale that is infinite makes a number infinite, and is found.
#[test]
fn blocks_that_are_not_finite() {
    let mut bytes = file(&[], &[row("a", &[32, 2], 8, 0)], 68);
    let scale = bytes.len() - 34;
    bytes[scale..scale + 2].copy_from_slice(&0x7c00u16.to_le_bytes());
    let file = read(bytes).unwrap();
    assert_eq!(first_non_finite(&file.tensors()[0]), Some(32));
}
