//! Reading safetensors files: what is accepted, and the message for each way to be damaged.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use aquatint_weights::safetensors::{self, HeaderProblem};
use aquatint_weights::{DType, Error, WeightFile};
use bytes::Bytes;
use std::path::Path;

/// A whole file of that header and payload.
fn file(header: impl AsRef<[u8]>, payload: &[u8]) -> Vec<u8> {
    let header = header.as_ref();
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(header);
    out.extend_from_slice(payload);
    out
}

fn read(bytes: Vec<u8>) -> Result<WeightFile, Error> {
    safetensors::read(Path::new("dir/x.safetensors"), Bytes::from(bytes))
}

/// The problem of a damaged file, after checking what every message must have.
fn problem(bytes: Vec<u8>) -> HeaderProblem {
    let error = read(bytes).expect_err("a damaged file was read");
    let text = error.to_string();
    assert!(
        text.starts_with("dir/x.safetensors: damaged safetensors file: "),
        "{text}"
    );
    assert!(!text.contains(char::is_control), "{text:?}");
    assert!(error.hint().is_some_and(|h| !h.contains('\n')), "{text}");
    match error {
        Error::Header { problem, .. } => problem,
        other => panic!("{other}"),
    }
}

/// A row of the header.
fn row(name: &str, dtype: &str, shape: &str, offsets: &str) -> String {
    format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}"#)
}

#[test]
fn reads_tensors_and_metadata_from_a_mapped_file() {
    let header = format!(
        r#"{{"__metadata__":{{"format":"pt"}},{},{}}}     "#,
        row("b.c", "U8", "[]", "[8,9]"),
        row("a", "F32", "[2,1]", "[0,8]")
    );
    // The payload then starts at a multiple of 8.
    let header = format!("{header:width$}", width = header.len().next_multiple_of(8));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    std::fs::write(&path, file(header, &[0, 0, 128, 63, 0, 0, 0, 64, 7])).unwrap();
    let f = WeightFile::open(&path).unwrap();
    let names: Vec<_> = f.tensors().iter().map(|t| t.name.as_str()).collect();
    assert_eq!(
        (names.as_slice(), f.format()),
        (&["a", "b.c"][..], "safetensors")
    );
    assert_eq!(f.metadata()["format"], "pt");
    let a = f.get("a").unwrap();
    assert_eq!(
        (a.dtype, a.shape.as_slice(), a.len()),
        (DType::F32, &[2, 1][..], 2)
    );
    assert_eq!(
        a.as_f32().unwrap(),
        [1.0, 2.0],
        "no copy where the payload is aligned"
    );
    assert_eq!(a.aligned().data.as_ptr(), a.data.as_ptr());
    let b = f.get("b.c").unwrap();
    assert_eq!((b.shape.len(), b.len(), &b.data[..]), (0, 1, &[7][..]));
}

#[test]
fn views_outlive_the_file_object_and_share_its_bytes() {
    let bytes = Bytes::from(file(
        format!("{{{}}}", row("a", "U8", "[3]", "[0,3]")),
        b"xyz",
    ));
    let f = safetensors::read(Path::new("x"), bytes.clone()).unwrap();
    let a = f.get("a").unwrap().clone();
    drop(f);
    assert_eq!(&a.data[..], b"xyz");
    assert_eq!(a.data.as_ptr(), bytes[bytes.len() - 3..].as_ptr());
}

#[test]
fn an_unaligned_payload_is_copied_once_where_it_is_asked_for() {
    // One byte before the floats, and a header of odd length.
    for padding in 0..8 {
        let header = format!(
            "{{{},{}}}{}",
            row("i", "U8", "[1]", "[0,1]"),
            row("f", "F32", "[2]", "[1,9]"),
            " ".repeat(padding)
        );
        let mut payload = vec![9];
        payload.extend([1.5f32, -2.0].iter().flat_map(|x| x.to_le_bytes()));
        let f = read(file(header, &payload)).unwrap();
        let view = f.get("f").unwrap();
        let aligned = view.aligned();
        assert!(aligned.is_aligned());
        assert_eq!(aligned.as_f32().unwrap(), [1.5, -2.0]);
        assert_eq!(view.as_f32().is_some(), view.is_aligned());
        assert_eq!(
            aligned.data.as_ptr() == view.data.as_ptr(),
            view.is_aligned()
        );
    }
}

#[test]
fn empty_tables_scalars_and_tensors_of_no_elements() {
    assert!(read(file("{}", b"")).unwrap().tensors().is_empty());
    assert!(
        read(file(r#"{"__metadata__":null}"#, b""))
            .unwrap()
            .metadata()
            .is_empty()
    );
    let header = format!(
        "{{{},{},{},{}}}",
        row("none", "F32", "[0,3]", "[0,0]"),
        row("scalar", "F16", "[]", "[0,2]"),
        row("none too", "F64", "[7,0]", "[2,2]"),
        row("one", "BF16", "[1,1,1]", "[2,4]"),
    );
    let f = read(file(header, &[1, 2, 3, 4])).unwrap();
    let len = |n: &str| (f.get(n).unwrap().len(), f.get(n).unwrap().is_empty());
    assert_eq!([len("none"), len("scalar")], [(0, true), (1, false)]);
    assert_eq!([len("none too"), len("one")], [(0, true), (1, false)]);
    assert_eq!(f.get("one").unwrap().data[..], [3, 4]);
}

#[test]
fn unknown_keys_of_a_tensor_and_escaped_names_are_read() {
    let header =
        r#"{"a\u0062\n":{"note":{"deep":[1,2,{}]},"shape":[1],"data_offsets":[0,1],"dtype":"I8"}}"#;
    let f = read(file(header, &[255])).unwrap();
    assert_eq!(f.tensors()[0].name, "ab\n");
}

#[test]
fn a_header_that_lies_about_its_length() {
    for len in 0..8 {
        assert_eq!(problem(vec![b'{'; len]), HeaderProblem::TooShort { len });
    }
    let cut = |announced: u64, rest: &[u8]| problem([&announced.to_le_bytes()[..], rest].concat());
    assert_eq!(
        cut(3, b"{}"),
        HeaderProblem::HeaderCut {
            announced: 3,
            available: 2
        }
    );
    let announced = 100_000_000;
    assert_eq!(
        cut(announced, b"{}"),
        HeaderProblem::HeaderCut {
            announced,
            available: 2
        }
    );
    for len in [
        100_000_001,
        u64::from(u32::MAX),
        i64::MAX as u64,
        u64::MAX - 7,
        u64::MAX,
    ] {
        assert_eq!(cut(len, b"{}"), HeaderProblem::HeaderTooLong { len });
    }
    assert_eq!(cut(0, b"{}"), HeaderProblem::NoBrace { found: None });
    // Too short a length leaves part of the header to the payload.
    assert!(matches!(cut(1, b"{}"), HeaderProblem::Json { .. }));
    assert!(matches!(
        cut(2, b"{} "),
        HeaderProblem::Trailing { bytes: 1 }
    ));
}

#[test]
fn a_header_that_is_no_text() {
    assert_eq!(
        problem(file(b"{\"\xff\":1}", b"")),
        HeaderProblem::NotUtf8 { at: 2 }
    );
    assert_eq!(
        problem(file(b"{\"\xc3", b"\xa9\":1}")),
        HeaderProblem::NotUtf8 { at: 2 }
    );
    assert_eq!(
        problem(file(" {}", b"")),
        HeaderProblem::NoBrace { found: Some(' ') }
    );
    assert_eq!(
        problem(file("[]", b"")),
        HeaderProblem::NoBrace { found: Some('[') }
    );
}

/// Every JSON that is no table of tensors, with a word that its message must have.
#[test]
fn a_header_that_is_another_json() {
    let with = |value: &str| format!(r#"{{"a":{value}}}"#);
    let shaped = |shape: &str| format!("{{{}}}", row("a", "F32", shape, "[0,4]"));
    let placed = |offsets: &str| format!("{{{}}}", row("a", "F32", "[1]", offsets));
    let cases = [
        ("{".into(), "EOF"),
        ("{}}".into(), "trailing"),
        ("{}\0".into(), "trailing"),
        (r#"{"a":}"#.into(), "expected value"),
        (r#"{a:1}"#.into(), "key must be a string"),
        (with("1"), "tensor \"a\""),
        (with("null"), "tensor \"a\""),
        (with("[]"), "tensor \"a\""),
        (with(r#"["F32",[1],[0,4]]"#), "expected an object"),
        (with("{}"), "missing field"),
        (with(r#"{"dtype":"F32","shape":[1]}"#), "data_offsets"),
        (
            with(r#"{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}"#),
            "duplicate field",
        ),
        (
            with(r#"{"dtype":32,"shape":[1],"data_offsets":[0,4]}"#),
            "expected a string",
        ),
        (shaped("1"), "a shape of at most 32 whole numbers"),
        (shaped("[-1]"), "-1"),
        (shaped("[1.0]"), "1.0"),
        (shaped("[1e400]"), "number out of range"),
        (shaped("[18446744073709551616]"), "floating point"),
        (shaped(r#"["1"]"#), "string"),
        (
            shaped(&format!("[{}1]", "1,".repeat(32))),
            "more than 32 axes",
        ),
        (placed("[0]"), "length 1"),
        (placed("[0,4,8]"), "trailing"),
        (placed("[0,-4]"), "-4"),
        (placed("[0,4.0]"), "4.0"),
        (placed("[0,99999999999999999999999]"), "floating point"),
        (placed("null"), "null"),
        (r#"{"__metadata__":{"a":1}}"#.into(), "__metadata__"),
        (r#"{"__metadata__":{"a":{"b":"c"}}}"#.into(), "__metadata__"),
        (r#"{"__metadata__":[]}"#.into(), "__metadata__"),
        (r#"{"__metadata__":"x"}"#.into(), "__metadata__"),
        (
            r#"{"__metadata__":{"a":"1","a":"2"}}"#.into(),
            "key \"a\" is there twice",
        ),
        (
            r#"{"__metadata__":{},"__metadata__":{}}"#.into(),
            "__metadata__ is there twice",
        ),
        (format!("{{\"a\":{}", "[".repeat(100_000)), "tensor \"a\""),
        (format!("{{\"a\":{}", "{\"a\":".repeat(100_000)), "a"),
        (
            format!(r#"{{"__metadata__":{}"#, "{\"a\":".repeat(100_000)),
            "__metadata__",
        ),
        (format!(r#"{{"a":{{"x":{}"#, "[".repeat(100_000)), "EOF"),
    ];
    for (header, word) in cases {
        let start: String = header.chars().take(80).collect();
        match problem(file(&header, &[0; 4])) {
            HeaderProblem::Json { message } => {
                assert!(message.contains(word), "{start}: {message}")
            }
            other => panic!("{start}: {other}"),
        }
        let stricter = ["expected an object", "axes", "twice"];
        let oracle = ::safetensors::SafeTensors::deserialize(&file(&header, &[0; 4])).is_err();
        assert!(
            oracle || stricter.iter().any(|w| word.contains(w)),
            "{start}: the reference reads it"
        );
    }
}

#[test]
fn storage_types_that_are_not_known() {
    for dtype in [
        "F17", "f32", "", "float16", "F8_E8M0", "F4", "C64", "Q4_K", "\\u0000",
    ] {
        let found = problem(file(
            format!("{{{}}}", row("a", dtype, "[1]", "[0,4]")),
            &[0; 4],
        ));
        assert!(matches!(found, HeaderProblem::DType { .. }), "{found}");
        assert!(
            found
                .to_string()
                .contains("expected one of F64, F32, F16, BF16, F8_E4M3"),
            "{found}"
        );
    }
}

#[test]
fn sizes_that_lie_or_overflow() {
    let table = |shape: &str, offsets: &str| {
        file(format!("{{{}}}", row("a", "F32", shape, offsets)), &[0; 8])
    };
    let mismatch = |shape, offsets| match problem(table(shape, offsets)) {
        HeaderProblem::SizeMismatch {
            expected, found, ..
        } => (expected, found),
        other => panic!("{other}"),
    };
    assert_eq!(mismatch("[3]", "[0,8]"), (12, 8));
    assert_eq!(mismatch("[]", "[0,8]"), (4, 8));
    assert_eq!(mismatch("[0]", "[0,8]"), (0, 8));
    assert_eq!(mismatch("[2]", "[0,7]"), (8, 7));
    assert_eq!(mismatch("[2]", "[0,18446744073709551615]"), (8, u64::MAX));
    for shape in [
        "[18446744073709551615]",
        "[4611686018427387904]",
        "[4294967296,4294967296]",
        "[18446744073709551615,18446744073709551615,0]",
        "[65536,65536,65536,65536,2]",
    ] {
        let found = problem(table(shape, "[0,8]"));
        assert!(
            matches!(found, HeaderProblem::ShapeOverflow { .. }),
            "{found}"
        );
    }
    assert!(matches!(
        problem(table("[2]", "[8,0]")),
        HeaderProblem::Backwards {
            begin: 8,
            end: 0,
            ..
        }
    ));
}

#[test]
fn places_that_overlap_leave_holes_or_leave_the_file() {
    let table = |rows: &[(&str, &str, &str)]| {
        let rows: Vec<_> = rows
            .iter()
            .map(|(n, shape, offsets)| row(n, "U8", shape, offsets))
            .collect();
        problem(file(format!("{{{}}}", rows.join(",")), &[0; 8]))
    };
    let name = String::from;
    assert_eq!(
        table(&[("a", "[8]", "[0,8]"), ("b", "[8]", "[0,8]")]),
        HeaderProblem::Overlap {
            first: name("a"),
            second: name("b")
        }
    );
    assert_eq!(
        table(&[("b", "[4]", "[4,8]"), ("a", "[5]", "[0,5]")]),
        HeaderProblem::Overlap {
            first: name("a"),
            second: name("b")
        }
    );
    assert_eq!(
        table(&[("a", "[8]", "[0,8]"), ("inside", "[0]", "[4,4]")]),
        HeaderProblem::Overlap {
            first: name("a"),
            second: name("inside")
        }
    );
    assert_eq!(
        table(&[("a", "[3]", "[0,3]"), ("b", "[4]", "[4,8]")]),
        HeaderProblem::Hole {
            name: name("b"),
            bytes: 1
        }
    );
    assert_eq!(
        table(&[("a", "[7]", "[1,8]")]),
        HeaderProblem::Hole {
            name: name("a"),
            bytes: 1
        }
    );
    assert_eq!(
        table(&[("a", "[6]", "[0,6]")]),
        HeaderProblem::Trailing { bytes: 2 }
    );
    assert_eq!(table(&[]), HeaderProblem::Trailing { bytes: 8 });
    assert_eq!(
        table(&[("a", "[9]", "[0,9]")]),
        HeaderProblem::PastEnd {
            name: name("a"),
            end: 9,
            available: 8
        }
    );
    let far = u64::MAX;
    assert_eq!(
        table(&[
            ("a", "[8]", "[0,8]"),
            ("b", "[1]", &format!("[{},{far}]", far - 1))
        ]),
        HeaderProblem::PastEnd {
            name: name("b"),
            end: far,
            available: 8
        }
    );
    assert_eq!(
        table(&[("a", "[0]", &format!("[{far},{far}]"))]),
        HeaderProblem::PastEnd {
            name: name("a"),
            end: far,
            available: 8
        }
    );
}

#[test]
fn a_name_that_is_there_twice() {
    let twice = |b: &str| {
        let header = format!(
            "{{{},{}}}",
            row("a", "U8", "[4]", "[0,4]"),
            row("a", "U8", "[4]", b)
        );
        problem(file(header, &[0; 8]))
    };
    assert_eq!(twice("[4,8]"), HeaderProblem::Repeated { name: "a".into() });
    assert_eq!(twice("[0,4]"), HeaderProblem::Repeated { name: "a".into() });
    let header = format!(
        "{{{},{}}}",
        row("a", "U8", "[0]", "[0,0]"),
        row("a", "U8", "[0]", "[0,0]")
    );
    assert_eq!(
        problem(file(header, b"")),
        HeaderProblem::Repeated { name: "a".into() }
    );
}

#[test]
fn hostile_names_cannot_break_the_message() {
    let long = format!("\\n\\u001b[31m{}", "x".repeat(100_000));
    let found = problem(file(
        format!("{{{}}}", row(&long, "F99", "[1]", "[0,4]")),
        &[0; 4],
    ));
    let text = found.to_string();
    assert!(
        text.len() < 600 && text.contains("\\n") && text.contains("bytes)"),
        "{text}"
    );
    // The JSON reader quotes what it found in the place of something else.
    let text = format!("\"{}\\n\"", "y".repeat(100_000));
    for value in [&text, &format!("{{\"dtype\":\"F32\",\"shape\":{text}}}")] {
        let text = problem(file(format!("{{\"a\":{value}}}"), &[])).to_string();
        assert!(
            text.len() < 400 && text.contains("yyy...") && text.contains("column"),
            "{text}"
        );
    }
}

/// A file of several tensors, whose every shorter self must be refused.
fn whole() -> Vec<u8> {
    let header = format!(
        r#"{{"__metadata__":{{"a":"b"}},{},{},{}}}"#,
        row("conv.weight", "F32", "[4,4]", "[0,64]"),
        row("conv.bias", "F16", "[4]", "[64,72]"),
        row("ids", "I64", "[3]", "[72,96]"),
    );
    file(header, &[1; 96])
}

#[test]
fn every_truncation_is_refused() {
    let bytes = whole();
    assert!(read(bytes.clone()).is_ok());
    for len in 0..bytes.len() {
        let found = problem(bytes[..len].to_vec());
        let cut = matches!(
            found,
            HeaderProblem::TooShort { .. }
                | HeaderProblem::HeaderCut { .. }
                | HeaderProblem::PastEnd { .. }
        );
        assert!(cut, "{len}: {found}");
    }
    let mut longer = bytes;
    longer.push(0);
    assert_eq!(problem(longer), HeaderProblem::Trailing { bytes: 1 });
}

#[test]
fn every_sixteenth_of_a_file_on_disk_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cut.safetensors");
    let bytes = whole();
    for sixteenth in 0..16 {
        std::fs::write(&path, &bytes[..bytes.len() * sixteenth / 16]).unwrap();
        let error = WeightFile::open(&path).unwrap_err();
        let as_expected = match sixteenth {
            0 => matches!(error, Error::Empty { .. }),
            _ => matches!(error, Error::Header { .. }),
        };
        assert!(as_expected, "{sixteenth}: {error}");
        assert!(
            error.to_string().contains("cut.safetensors") && error.hint().is_some(),
            "{error}"
        );
    }
}

/// Any one byte of the header changed: read or refused, never a panic, and never other tensors than the
/// reference reads.
#[test]
fn every_changed_byte_agrees_with_the_reference() {
    let bytes = whole();
    let header_end = bytes.len() - 96;
    for at in 0..header_end {
        for value in [
            0,
            b'0',
            b'9',
            b'"',
            b'{',
            b'}',
            b'[',
            b',',
            b' ',
            b'-',
            0x80,
            0xff,
            bytes[at] ^ 1,
        ] {
            let mut changed = bytes.clone();
            changed[at] = value;
            let oracle = ::safetensors::SafeTensors::deserialize(&changed).map(|f| {
                let mut t: Vec<_> = f
                    .iter()
                    .map(|(n, v)| (n.to_string(), v.data().to_vec()))
                    .collect();
                t.sort();
                t
            });
            let ours = read(changed.clone()).map(|f| {
                let mut t: Vec<_> = f
                    .tensors()
                    .iter()
                    .map(|t| (t.name.clone(), t.data.to_vec()))
                    .collect();
                t.sort();
                t
            });
            match (ours, oracle) {
                (Ok(ours), Ok(oracle)) => assert_eq!(ours, oracle),
                (Err(_), Err(_)) => {}
                (Ok(_), Err(e)) => panic!("byte {at} as {value}: only ours reads it: {e}"),
                // The format wants '{' first; the reference lets spaces pass.
                (Err(e), Ok(_)) => panic!("byte {at} as {value}: only the reference reads it: {e}"),
            }
        }
    }
}
