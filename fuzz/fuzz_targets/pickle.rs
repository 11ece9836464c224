//! Any bytes as a PyTorch checkpoint: never a panic, no memory without end, views inside the file, and messages on one
//! line with a hint.
//!
//! The first byte chooses: the rest is a whole file of the zip format, one of the older format, or a pickle that is
//! put into an archive beside a storage of 64 bytes, so that the fuzzer gets to the machine quickly.
#![no_main]

use aquatint_weights::{WeightFile, pickle};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use std::path::Path;

fuzz_target!(|input: &[u8]| {
    let Some((mode, rest)) = input.split_first() else {
        return;
    };
    let path = Path::new("fuzz");
    let result = match mode % 4 {
        0 => pickle::read_zip(path, Bytes::copy_from_slice(rest)),
        1 => pickle::read_legacy(path, Bytes::copy_from_slice(rest)),
        _ => pickle::read_zip(path, Bytes::from(archive(rest))),
    };
    check(result, input.len());
});

fn check(result: Result<WeightFile, aquatint_weights::Error>, len: usize) {
    match result {
        Ok(file) => {
            assert!(!file.tensors().is_empty());
            for t in file.tensors() {
                let elements: usize = t.shape.iter().product();
                assert_eq!(t.dtype.byte_size(elements), Some(t.data.len()));
                // Nothing is larger than what it could have been unpacked from.
                assert!(t.data.len() <= 64 * (len + 1024) + (64 << 20));
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
}

/// An archive of that pickle and storage `0`.
fn archive(program: &[u8]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in [("a/data.pkl", program), ("a/data/0", &[0x3c; 64])] {
        let header = out.len() as u32;
        // Version, flags, method, time, date and checksum, which are not looked at or zero.
        let mut common = vec![20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        common.extend((data.len() as u32).to_le_bytes());
        common.extend((data.len() as u32).to_le_bytes());
        common.extend((name.len() as u16).to_le_bytes());
        out.extend(b"PK\x03\x04");
        out.extend(&common);
        out.extend([0, 0]);
        out.extend(name.as_bytes());
        out.extend(data);
        directory.extend(b"PK\x01\x02\x14\0");
        directory.extend(&common);
        directory.extend([0; 12]);
        directory.extend(header.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let start = out.len() as u32;
    let size = directory.len() as u32;
    out.extend(directory);
    out.extend(b"PK\x05\x06\0\0\0\0\x02\0\x02\0");
    out.extend(size.to_le_bytes());
    out.extend(start.to_le_bytes());
    out.extend([0, 0]);
    out
}
