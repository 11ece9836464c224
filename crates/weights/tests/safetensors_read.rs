//! Reading safetensors files: what is accepted, and the message for each way to be damaged.

use aquatint_weights::safetensors::{self, HeaderProblem};
use aquatint_weights::{DType, Error, WeightFile};
use bytes::Bytes;
use std::path::Path;

/// A whole file of that header and payload.
fn file(header: &str, payload: &[u8]) -> Vec<u8> {
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(payload);
    out
}

fn read(bytes: Vec<u8>) -> Result<WeightFile, Error> {
    safetensors::read(Path::new("x.safetensors"), Bytes::from(bytes))
}

#[test]
fn reads_tensors_and_metadata() {
    let header = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},"b.c":{"dtype":"U8","shape":[],"data_offsets":[8,9]}}   "#;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    std::fs::write(&path, file(header, &[0, 0, 128, 63, 0, 0, 0, 64, 7])).unwrap();
    let f = WeightFile::open(&path).unwrap();
    assert_eq!(f.tensors().len(), 2);
    assert_eq!(f.metadata()["format"], "pt");
    let a = f.get("a").unwrap();
    assert_eq!(
        (a.dtype, a.shape.as_slice(), a.len()),
        (DType::F32, &[2, 1][..], 2)
    );
    assert_eq!(a.aligned().as_f32().unwrap(), [1.0, 2.0]);
    let b = f.get("b.c").unwrap();
    assert_eq!((b.shape.len(), b.len(), &b.data[..]), (0, 1, &[7][..]));
    f.check_unchanged().unwrap();
}

#[test]
fn header_longer_than_the_file() {
    let mut bytes = file("{}", &[]);
    bytes[0] = 3;
    let Err(Error::Header { problem, .. }) = read(bytes) else {
        panic!("read")
    };
    assert_eq!(
        problem,
        HeaderProblem::HeaderCut {
            announced: 3,
            available: 2
        }
    );
}
