//! Any bytes as a GGUF file: never a panic, never a view outside the file or over another, and messages on one line
//! with a hint.
//!
//! The first byte chooses: even, the rest is the whole file; odd, the rest follows a good head whose counts are the
//! next two bytes, so that the fuzzer gets to metadata and table quickly.
#![no_main]

use aquatint_weights::{first_non_finite, gguf, to_f32_vec};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use std::path::Path;

/// Tensors of more numbers are not decoded, to keep runs short.
const MOST: usize = 1 << 16;

fuzz_target!(|input: &[u8]| {
    let file = match input {
        [mode, rest @ ..] if mode % 2 == 0 => rest.to_vec(),
        [_, tensors, pairs, rest @ ..] => {
            let mut file = b"GGUF\x03\0\0\0".to_vec();
            file.extend(u64::from(*tensors).to_le_bytes());
            file.extend(u64::from(*pairs).to_le_bytes());
            file.extend_from_slice(rest);
            file
        }
        _ => return,
    };
    let bytes = Bytes::from(file);
    match gguf::read(Path::new("fuzz"), bytes.clone()) {
        Ok(file) => {
            let start = bytes.as_ptr().addr();
            let mut places = Vec::new();
            for t in file.tensors() {
                let at = t.data.as_ptr().addr();
                if !t.data.is_empty() {
                    assert!(at >= start && at + t.data.len() <= start + bytes.len());
                    places.push((at, at + t.data.len()));
                }
                let elements: usize = t.shape.iter().product();
                assert_eq!(t.dtype.byte_size(elements), Some(t.data.len()));
                if t.dtype.is_float() && t.len() <= MOST {
                    let values = to_f32_vec(t).expect("floats convert");
                    let bad = values.iter().position(|x| !x.is_finite());
                    // F64 can overflow on the way to f32.
                    assert!(first_non_finite(t) == bad || t.dtype == aquatint_weights::DType::F64);
                }
            }
            places.sort_unstable();
            assert!(places.windows(2).all(|w| w[0].1 <= w[1].0), "an overlap");
            for (_, text) in file.metadata() {
                assert!(text.len() < 4000, "a note of {} bytes", text.len());
            }
        }
        Err(error) => {
            let text = error.to_string();
            assert!(
                !text.contains(char::is_control) && text.len() < 4000,
                "{text:?}"
            );
            assert!(error.hint().is_some());
        }
    }
});
