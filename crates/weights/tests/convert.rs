//! Conversions between storage types, against numbers from PyTorch 2.15, and the search for NaN.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use aquatint_weights::{
    DType, Error, TensorView, check_finite, convert, first_non_finite, to_f32_vec,
};
use bytes::Bytes;
use half::{bf16, f16};
use std::path::Path;

fn view(dtype: DType, data: Vec<u8>) -> TensorView {
    let len = data.len() / dtype.block_bytes();
    TensorView::new("t", dtype, vec![len], Bytes::from(data)).unwrap()
}

fn f64s(values: &[f64]) -> TensorView {
    view(
        DType::F64,
        values.iter().flat_map(|x| x.to_le_bytes()).collect(),
    )
}

fn f32s(values: &[f32]) -> TensorView {
    view(
        DType::F32,
        values.iter().flat_map(|x| x.to_le_bytes()).collect(),
    )
}

fn bits16(view: &TensorView) -> Vec<u16> {
    view.data
        .chunks(2)
        .map(|b| u16::from_le_bytes([b[0], b[1]]))
        .collect()
}

const EDGES: [f64; 20] = [
    0.0,
    -0.0,
    1.0,
    -2.5,
    65504.0,
    65519.99,
    65520.0,
    -1e6,
    1e-8,
    2.980_232_238_769_531_3e-8,
    5.96e-8,
    6.1e-5,
    1.0 / 3.0,
    3.4e38,
    1e39,
    f64::INFINITY,
    1.000_488_281_25,        // 1 + 2^-11, a tie in F16
    1.000_488_281_250_909_5, // 1 + 2^-11 + 2^-40, which F32 makes a tie
    1.003_906_25,            // 1 + 2^-8, a tie in BF16
    1.003_906_250_000_909_5, // 1 + 2^-8 + 2^-40
];
const EDGES_F16: [u16; 20] = [
    0x0, 0x8000, 0x3c00, 0xc100, 0x7bff, 0x7bff, 0x7c00, 0xfc00, 0x0, 0x0, 0x1, 0x3ff, 0x3555,
    0x7c00, 0x7c00, 0x7c00, 0x3c00, 0x3c00, 0x3c04, 0x3c04,
];
const EDGES_BF16: [u16; 20] = [
    0x0, 0x8000, 0x3f80, 0xc020, 0x4780, 0x4780, 0x4780, 0xc974, 0x322c, 0x3300, 0x3380, 0x3880,
    0x3eab, 0x7f80, 0x7f80, 0x7f80, 0x3f80, 0x3f80, 0x3f80, 0x3f80,
];

#[test]
fn narrowing_rounds_as_pytorch() {
    let f64s = f64s(&EDGES);
    let f32s = convert(&f64s, DType::F32).unwrap();
    assert_eq!(f32s.as_f32().unwrap(), EDGES.map(|x| x as f32));
    for source in [f64s, f32s] {
        assert_eq!(
            bits16(&convert(&source, DType::F16).unwrap()),
            EDGES_F16,
            "{}",
            source.dtype
        );
        assert_eq!(
            bits16(&convert(&source, DType::Bf16).unwrap()),
            EDGES_BF16,
            "{}",
            source.dtype
        );
    }
}

/// Every value there is, and more than one block of them.
#[test]
fn widening_is_exact_and_comes_back() {
    let all: Vec<u8> = (0..=u16::MAX).flat_map(|b| b.to_le_bytes()).collect();
    for (dtype, wide) in [
        (
            DType::F16,
            (0..=u16::MAX)
                .map(|b| f64::from(f16::from_bits(b)))
                .collect::<Vec<f64>>(),
        ),
        (
            DType::Bf16,
            (0..=u16::MAX)
                .map(|b| f64::from(bf16::from_bits(b)))
                .collect(),
        ),
    ] {
        let halves = view(dtype, all.clone());
        for to in [DType::F32, DType::F64] {
            let widened = convert(&halves, to).unwrap();
            let back = convert(&widened, dtype).unwrap();
            for (i, (a, b)) in bits16(&halves).into_iter().zip(bits16(&back)).enumerate() {
                assert!(
                    a == b || wide[i].is_nan(),
                    "{dtype} {a:#x} came back as {b:#x}"
                );
            }
            let values: Vec<f64> = match to {
                DType::F32 => to_f32_vec(&widened)
                    .unwrap()
                    .into_iter()
                    .map(f64::from)
                    .collect(),
                _ => bytemuck::cast_slice::<u8, f64>(&widened.data).to_vec(),
            };
            assert!(
                values
                    .iter()
                    .zip(&wide)
                    .all(|(a, b)| a.to_bits() == b.to_bits() || b.is_nan() && a.is_nan())
            );
        }
    }
}

#[test]
fn eight_bit_floats_decode_as_pytorch() {
    let at = [
        1, 7, 8, 0x38, 0x7b, 0x7c, 0x7d, 0x7e, 0x7f, 0x80, 0xb9, 0xfe,
    ];
    let nan = f32::NAN;
    let inf = f32::INFINITY;
    let cases = [
        (
            DType::F8E4M3,
            [
                0.001953125,
                0.013671875,
                0.015625,
                1.0,
                352.0,
                384.0,
                416.0,
                448.0,
                nan,
                -0.0,
                -1.125,
                -448.0,
            ],
            5407.875,
        ),
        (
            DType::F8E5M2,
            [
                1.525_878_9e-5,
                0.000_106_811_52,
                0.000_122_070_31,
                0.5,
                57344.0,
                inf,
                nan,
                nan,
                nan,
                -0.0,
                -0.625,
                nan,
            ],
            360_447.999_755_859_4,
        ),
    ];
    for (dtype, expected, sum) in cases {
        let values = to_f32_vec(&view(dtype, (0..=255).collect())).unwrap();
        for (i, e) in at.into_iter().zip(expected) {
            let v: f32 = values[i];
            assert!(
                v.to_bits() == e.to_bits() || v.is_nan() && e.is_nan(),
                "{dtype} {i:#x}: {v} is not {e}"
            );
        }
        let found: f64 = values[..128]
            .iter()
            .filter(|x| x.is_finite())
            .map(|x| f64::from(*x))
            .sum();
        assert!((found - sum).abs() < 1e-7, "{dtype}: {found}");
        // What F8 holds, the wider types hold exactly.
        let halves = convert(&view(dtype, (0..=255).collect()), DType::F16).unwrap();
        let halves = to_f32_vec(&halves).unwrap();
        assert!(
            halves
                .iter()
                .zip(&values)
                .all(|(a, b)| a == b || b.is_nan())
        );
    }
}

#[test]
fn unaligned_sources_and_the_same_type() {
    let bytes = Bytes::from([&[0u8][..], &1.5f64.to_le_bytes(), &(-2f64).to_le_bytes()].concat());
    for start in 0..2 {
        // One of the two starts is at an odd address.
        let data = bytes.slice(start..start + 16);
        let t = TensorView::new("t", DType::F32, vec![2, 2], data).unwrap();
        let same = convert(&t, DType::F32).unwrap();
        assert_eq!(
            same.data.as_ptr(),
            t.data.as_ptr(),
            "no copy to the same type"
        );
        assert_eq!(convert(&t, DType::F64).unwrap().shape, [2, 2]);
    }
    let t = TensorView::new("t", DType::F64, vec![2], bytes.slice(1..)).unwrap();
    assert_eq!(to_f32_vec(&t).unwrap(), [1.5, -2.0]);
    let none = f32s(&[]);
    assert!(convert(&none, DType::F16).unwrap().is_empty());
}

#[test]
fn integers_do_not_convert() {
    let ints = view(DType::I64, vec![0; 16]);
    for result in [
        convert(&ints, DType::F32).map(|_| ()),
        to_f32_vec(&ints).map(|_| ()),
    ] {
        let error = result.unwrap_err();
        assert_eq!(
            error.to_string(),
            "tensor \"t\" is stored as I64, which cannot be turned into F32"
        );
        assert!(error.hint().is_some());
    }
    assert!(matches!(
        convert(&f32s(&[1.0]), DType::F8E5M2),
        Err(Error::Conversion { .. })
    ));
    assert!(matches!(
        convert(&f32s(&[1.0]), DType::I32),
        Err(Error::Conversion { .. })
    ));
}

#[test]
fn the_first_bad_value_is_found_wherever_it_is() {
    for dtype in [DType::F64, DType::F32, DType::F16, DType::Bf16] {
        let size = dtype.block_bytes();
        for len in [1, 2, 1023, 1024, 1025, 5000] {
            let finite = convert(&f32s(&vec![-3.25; len]), dtype).unwrap();
            assert_eq!(first_non_finite(&finite), None);
            for at in [0, len / 2, len - 1] {
                for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    let mut data = finite.data.to_vec();
                    for i in at..len.min(at + 3) {
                        let bad = convert(&f32s(&[bad]), dtype).unwrap();
                        data[i * size..(i + 1) * size].copy_from_slice(&bad.data);
                    }
                    let t = view(dtype, data);
                    assert_eq!(first_non_finite(&t), Some(at), "{dtype} {len}");
                    let text = check_finite(&t, Path::new("m.safetensors"))
                        .unwrap_err()
                        .to_string();
                    let expected = format!("m.safetensors: tensor \"t\" holds {bad} at index {at}");
                    assert!(text.starts_with(&expected), "{text}");
                }
            }
        }
    }
}

#[test]
fn every_value_of_the_short_types_is_judged_rightly() {
    for dtype in [DType::F8E4M3, DType::F8E5M2] {
        for b in 0..=255 {
            let t = view(dtype, vec![b]);
            let value = to_f32_vec(&t).unwrap()[0];
            assert_eq!(
                first_non_finite(&t).is_none(),
                value.is_finite(),
                "{dtype} {b:#x}"
            );
            if let Err(Error::NonFinite { value: said, .. }) = check_finite(&t, Path::new("m")) {
                assert!(said == f64::from(value) || said.is_nan() && value.is_nan());
            }
        }
    }
    for b in 0..=u16::MAX {
        let bytes = b.to_le_bytes().to_vec();
        let f = first_non_finite(&view(DType::F16, bytes.clone())).is_none();
        assert_eq!(f, f16::from_bits(b).is_finite());
        let f = first_non_finite(&view(DType::Bf16, bytes)).is_none();
        assert_eq!(f, bf16::from_bits(b).is_finite());
    }
    assert_eq!(first_non_finite(&view(DType::I64, vec![255; 64])), None);
}
