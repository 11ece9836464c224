use aquatint_kernels::blocks::{
    decode, decode_f8_e4m3, decode_with, encode, encode_into, encode_q8_0,
};
use aquatint_kernels::{BlockFormat, Isa, KernelError, RhsData};
use aquatint_testkit::{Tensors, golden};

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Bit for bit what the PyPI package `gguf` gives, whole and number by number.
#[test]
fn blocks_decode_as_gguf_does() {
    let golden = Tensors::read(golden("blocks.safetensors")).unwrap();
    for format in BlockFormat::ALL {
        let name = format.name().to_lowercase();
        let bytes = golden.get(&format!("{name}.bytes")).u8();
        let want = golden.get(&format!("{name}.values")).f32();
        assert!(want.len() >= 500, "{name}: {} values", want.len());
        for isa in Isa::available() {
            let mut got = vec![f32::NAN; want.len()];
            decode_with(isa, format, bytes, &mut got).unwrap();
            assert_eq!(bits(&got), bits(want), "{name} with {}", isa.name());
        }
        let data = RhsData::Blocks(format, bytes);
        assert_eq!(data.len(), want.len());
        let step = if cfg!(miri) { 97 } else { 1 };
        for i in (0..data.len()).step_by(step) {
            assert_eq!(data.get(i).to_bits(), want[i].to_bits(), "{name} at {i}");
        }
    }
}

#[test]
fn q8_0_encodes_as_gguf_does() {
    let golden = Tensors::read(golden("blocks.safetensors")).unwrap();
    let source = golden.get("q8_0.source").f32();
    let want = golden.get("q8_0.bytes").u8();
    let got = encode_q8_0(source).unwrap();
    assert!(got.len() == source.len() / 32 * 34 && !got.is_empty());
    assert_eq!(got, want[..got.len()]);
}

/// Byte for byte what GGML's reference makes of the same numbers.
#[test]
#[cfg_attr(miri, ignore = "too large for an interpreter")]
fn blocks_encode_as_ggml_does() {
    let golden = Tensors::read(golden("gguf_files/encoded.safetensors")).unwrap();
    let source = golden.get("source").f32();
    for format in BlockFormat::ALL {
        let name = format.name().to_lowercase();
        let want = golden.get(&format!("{name}.bytes")).u8();
        let got = encode(format, source).unwrap();
        let (want, _) = want.as_chunks::<2>();
        let (got, _) = got.as_chunks::<2>();
        let wrong: Vec<_> = (0..want.len())
            .filter(|i| got[*i] != want[*i])
            .map(|i| 2 * i / format.block_bytes())
            .collect();
        assert!(wrong.is_empty(), "{name}: other bytes in blocks {wrong:?}");
    }
}

/// Coming back, numbers are off by what the format's bits allow.
#[test]
#[cfg_attr(miri, ignore = "too large for an interpreter")]
fn encoded_numbers_come_back() {
    let source: Vec<f32> = (0..1 << 16u32)
        .map(|i| (f64::from(i) * 0.7234).sin() as f32)
        .collect();
    for format in BlockFormat::ALL {
        let bytes = encode(format, &source).unwrap();
        let mut back = vec![0.0; source.len()];
        decode(format, &bytes, &mut back).unwrap();
        let squares = |v: &mut dyn Iterator<Item = f32>| v.map(|x| f64::from(x * x)).sum::<f64>();
        let off = squares(&mut source.iter().zip(&back).map(|(a, b)| a - b));
        let noise = (off / squares(&mut source.iter().copied())).sqrt();
        // A sine in 2^bits steps over its width of 2: an error of 1 / (2^bits sqrt 3) / sqrt 2 and a little.
        let bits = format.name().as_bytes()[1] - b'0';
        let allowed = 1.2 / f64::from(1u32 << bits);
        assert!(noise < allowed, "{}: {noise}, not {allowed}", format.name());
        let mut zeros = vec![1u8; bytes.len()];
        encode_into(format, &vec![0.0; source.len()], &mut zeros).unwrap();
        decode(format, &zeros, &mut back).unwrap();
        assert!(back.iter().all(|x| *x == 0.0), "{}", format.name());
        // No number is asked to be finite.
        encode(format, &[f32::NAN; 256]).unwrap();
        encode(format, &[f32::INFINITY; 256]).unwrap();
        assert!(encode(format, &source[1..]).is_err());
        assert!(encode_into(format, &source, &mut zeros[1..]).is_err());
    }
}

/// All 256 numbers, alone and in the vectors of a product: a column of ones picks them out.
#[test]
fn f8_decodes_as_torch_does() {
    let golden = Tensors::read(golden("blocks.safetensors")).unwrap();
    let want = golden.get("f8_e4m3.values").f32();
    let bytes: Vec<u8> = (0..=255).collect();
    let same = |got: f32, want: f32| {
        got.to_bits() == want.to_bits()
            || (got.is_nan() && want.is_nan() && got.is_sign_negative() == want.is_sign_negative())
    };
    for (&byte, &want) in bytes.iter().zip(want) {
        let got = decode_f8_e4m3(byte);
        assert!(same(got, want), "{byte:#x} is {got}, not {want}");
    }
    for isa in Isa::available() {
        let mut got = vec![0.0; 256];
        aquatint_kernels::Gemm {
            batch: 1,
            m: 1,
            n: 256,
            k: 1,
            a: aquatint_kernels::MatRef::new(&[1.0], 1),
            b: aquatint_kernels::Rhs::inner(RhsData::F8E4M3(&bytes), 256),
            c: aquatint_kernels::MatMut::new(&mut got, 1, 256),
            epilogue: aquatint_kernels::Epilogue::default(),
        }
        .run(isa)
        .unwrap();
        for ((&got, &want), byte) in got.iter().zip(want).zip(0..=255u8) {
            // A product adds to +0, so that -0 becomes +0.
            assert!(
                got == want || same(got, want),
                "{byte:#x} is {got}, not {want}"
            );
        }
    }
}

#[test]
fn parts_of_blocks_are_errors() {
    for format in BlockFormat::ALL {
        let bytes = vec![0; 3 * format.block_bytes()];
        let mut out = vec![0.0; 3 * format.block_len()];
        assert_eq!(decode(format, &bytes, &mut out), Ok(()));
        let short = decode(format, &bytes[1..], &mut out);
        assert!(matches!(short, Err(KernelError::Size { .. })), "{short:?}");
        let room = decode(format, &bytes, &mut out[1..]);
        assert!(matches!(room, Err(KernelError::Length { .. })), "{room:?}");
    }
    assert!(encode_q8_0(&[1.0; 31]).is_err());
    assert_eq!(encode_q8_0(&[]), Ok(vec![]));
}
