//! Any bytes as a safetensors file: never a panic, never a view outside the file, and the same tensors
//! as the reference crate wherever both read it.
//!
//! The first byte chooses: even, the rest is the whole file; odd, the rest is a header, to which the
//! right length and (second byte) a payload are added, so that the fuzzer gets past the length quickly.
#![no_main]

use aquatint_weights::safetensors::{self, HeaderProblem};
use aquatint_weights::{Error, WeightSet, first_non_finite, to_f32_vec};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use std::collections::BTreeMap;
use std::path::Path;

fuzz_target!(|input: &[u8]| {
    let file = match input {
        [mode, rest @ ..] if mode % 2 == 0 => rest.to_vec(),
        [_, payload, header @ ..] => {
            let mut file = (header.len() as u64).to_le_bytes().to_vec();
            file.extend_from_slice(header);
            file.resize(file.len() + usize::from(*payload), 0x3c);
            file
        }
        _ => return,
    };
    check(file);
});

fn check(file: Vec<u8>) {
    let bytes = Bytes::from(file);
    let ours = safetensors::read(Path::new("fuzz"), bytes.clone());
    let reference = ::safetensors::SafeTensors::deserialize(&bytes);
    match (ours, reference) {
        (Ok(ours), Ok(reference)) => {
            let start = bytes.as_ptr().addr();
            let places = start..=start + bytes.len();
            let mut total = 0;
            for t in ours.tensors() {
                assert!(places.contains(&t.data.as_ptr().addr()));
                assert!(places.contains(&(t.data.as_ptr().addr() + t.data.len())));
                let theirs = reference
                    .tensor(&t.name)
                    .expect("a tensor that the reference lacks");
                assert_eq!((theirs.shape(), theirs.data()), (&t.shape[..], &t.data[..]));
                total += t.data.len();
                if t.dtype.is_float() {
                    let values = to_f32_vec(t).expect("floats convert");
                    let bad = values.iter().position(|x| !x.is_finite());
                    // F64 can overflow on the way to f32.
                    assert!(first_non_finite(t) == bad || t.dtype == aquatint_weights::DType::F64);
                }
            }
            assert_eq!(ours.tensors().len(), reference.len());
            assert_eq!(WeightSet::from(ours).inspect().bytes, total as u64);
        }
        (Err(error), reference) => {
            let text = error.to_string();
            assert!(
                !text.contains(char::is_control) && text.len() < 4000,
                "{text:?}"
            );
            assert!(error.hint().is_some());
            assert!(
                reference.is_err() || stricter(&error),
                "only the reference reads it: {text}"
            );
        }
        (Ok(ours), Err(error)) => {
            let names: BTreeMap<_, _> =
                ours.tensors().iter().map(|t| (&t.name, &t.shape)).collect();
            panic!("only ours reads it: {error}; {names:?}");
        }
    }
}

/// The rules that we hold and the reference does not: no repeated names, a brace first, known storage
/// types only, few axes, and objects that are written as objects.
fn stricter(error: &Error) -> bool {
    match error {
        Error::Header { problem, .. } => match problem {
            HeaderProblem::Repeated { .. }
            | HeaderProblem::NoBrace { .. }
            | HeaderProblem::DType { .. } => true,
            HeaderProblem::Json { message } => ["twice", "axes", "expected an object"]
                .iter()
                .any(|w| message.contains(w)),
            _ => false,
        },
        _ => false,
    }
}
