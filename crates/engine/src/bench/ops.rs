//! Timing single operations.

use std::hint::black_box;
use std::time::Instant;

use aquatint_ops::kernels::blocks::encode_q8_0;
use aquatint_ops::kernels::{
    self, Attention, BlockFormat, Buffer, Conv2d, ConvAlgorithm, Epilogue, Gemm, HeadsRef, Isa,
    KernelError, MatMut, MatRef, Padding, Rhs, RhsData,
};
use half::f16;
use serde::Serialize;

use super::median;
use super::shape::Shape;
use crate::EngineError;

/// Runs of an operation: at least so many, and more for so many seconds.
const LEAST_RUNS: usize = 5;
const MOST_RUNS: usize = 200;
const SECONDS: f64 = 0.6;

/// How long an operation took.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OpTime {
    /// Name of the operation.
    pub op: &'static str,
    /// Its shape, as [`Shape::parse`] reads it.
    pub shape: String,
    /// Storage of the right-hand side, or of the weight.
    pub rhs: &'static str,
    /// Median milliseconds.
    pub ms: f64,
    /// Operations a second, in billions: those of the definition, whatever algorithm was taken.
    pub gflops: f64,
}

/// GFLOP/s of a loop of multiply-adds on all threads of the pool at once, the best of several.
pub fn peak_gflops() -> f64 {
    let isa = Isa::best();
    (0..20)
        .map(|_| kernels::peak_gflops_of_all_threads(isa))
        .fold(0.0, f64::max)
}

/// Times an operation with each storage of its right-hand side; products have several.
///
/// # Errors
/// [`EngineError::Usage`] when a kernel refuses the shape.
pub fn time(shape: Shape) -> Result<Vec<OpTime>, EngineError> {
    let times = match shape {
        Shape::Conv2d { .. } => vec![("f32", conv2d(shape))],
        Shape::Gemm { m, k, n } => gemm(m, k, n),
        Shape::Attention { .. } => vec![("f32", attention(shape))],
    };
    let result = |(rhs, seconds): (&'static str, Result<f64, KernelError>)| {
        let seconds = seconds.map_err(|error| EngineError::Usage {
            message: format!("{shape}: {error}"),
            hint: "give the sizes of an operation that can be done".into(),
        })?;
        Ok(OpTime {
            op: shape.op().name(),
            shape: shape.to_string(),
            rhs,
            ms: seconds * 1e3,
            gflops: shape.flops() / seconds / 1e9,
        })
    };
    times.into_iter().map(result).collect()
}

/// Median seconds of `run`, after one run that is not counted.
fn measure(mut run: impl FnMut() -> Result<(), KernelError>) -> Result<f64, KernelError> {
    run()?;
    let begin = Instant::now();
    let mut times = Vec::new();
    while times.len() < LEAST_RUNS
        || (times.len() < MOST_RUNS && begin.elapsed().as_secs_f64() < SECONDS)
    {
        let start = Instant::now();
        run()?;
        times.push(start.elapsed().as_secs_f64());
    }
    Ok(median(times).max(1e-9))
}

/// Values between -1 and 1, always the same.
fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(len).collect()
}

fn gemm(m: usize, k: usize, n: usize) -> Vec<(&'static str, Result<f64, KernelError>)> {
    let (a, b) = (noise(m * k, 1), noise(n * k, 2));
    let half: Vec<f16> = b.iter().map(|&v| f16::from_f32(v)).collect();
    let mut c = Buffer::new(m * n);
    let mut run = |data: RhsData<'_>| {
        kernels::gemm(Gemm {
            batch: 1,
            m,
            n,
            k,
            a: MatRef::new(&a, k),
            b: Rhs::weight(data, k),
            c: MatMut::new(&mut c, m, n),
            epilogue: Epilogue::default(),
        })?;
        black_box(&c[..]);
        Ok(())
    };
    let mut times = vec![
        ("f32", measure(|| run(RhsData::F32(&b)))),
        ("f16", measure(|| run(RhsData::F16(&half)))),
    ];
    // Whole blocks only: other sizes cannot be stored so.
    if k.is_multiple_of(BlockFormat::Q8_0.block_len())
        && let Ok(blocks) = encode_q8_0(&b)
    {
        let data = RhsData::Blocks(BlockFormat::Q8_0, &blocks);
        times.push(("q8_0", measure(|| run(data))));
    }
    times
}

fn conv2d(shape: Shape) -> Result<f64, KernelError> {
    let (
        Shape::Conv2d {
            batch,
            size: [height, width],
            channels: [input, output],
            kernel,
            stride,
        },
        Some([out_height, out_width]),
    ) = (shape, shape.output())
    else {
        return Ok(f64::NAN);
    };
    let x = noise(batch * height * width * input, 1);
    let weight = noise(output * input * kernel * kernel, 2);
    let mut out = Buffer::new(batch * out_height * out_width * output);
    measure(|| {
        kernels::conv2d(Conv2d {
            x: &x,
            batch,
            height,
            width,
            in_channels: input,
            out_channels: output,
            kernel: (kernel, kernel),
            weight: RhsData::F32(&weight),
            bias: None,
            stride,
            padding: Padding::all(kernel / 2),
            upsample: false,
            activation: kernels::Activation::None,
            residual: None,
            out: &mut out,
            algorithm: ConvAlgorithm::Auto,
        })?;
        black_box(&out[..]);
        Ok(())
    })
}

fn attention(shape: Shape) -> Result<f64, KernelError> {
    let Shape::Attention {
        batch,
        heads,
        queries,
        head_dim,
        keys,
    } = shape
    else {
        return Ok(f64::NAN);
    };
    let width = heads * head_dim;
    let q = noise(batch * queries * width, 1);
    let [k, v] = [2, 3].map(|seed| noise(batch * keys * width, seed));
    let mut out = Buffer::new(q.len());
    measure(|| {
        kernels::attention(Attention {
            batch,
            heads,
            queries,
            keys,
            head_dim,
            q: HeadsRef::new(&q, queries, heads, head_dim),
            k: HeadsRef::new(&k, keys, heads, head_dim),
            v: HeadsRef::new(&v, keys, heads, head_dim),
            scale: 1.0 / (head_dim as f32).sqrt(),
            causal: false,
            mask: None,
            out: &mut out,
        })?;
        black_box(&out[..]);
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_timed() {
        for (text, storages) in [
            ("2x5x4x3->6 k3 s2", &["f32"][..]),
            ("3x4x5", &["f32", "f16"]),
            ("3x64x5", &["f32", "f16", "q8_0"]),
            ("1x2x3x4 kv5", &["f32"]),
        ] {
            let shape = Shape::parse(text).unwrap();
            let times = time(shape).unwrap();
            let found: Vec<_> = times.iter().map(|t| t.rhs).collect();
            assert_eq!(found, storages);
            for t in times {
                assert_eq!((t.shape.as_str(), t.op), (text, shape.op().name()));
                assert!(t.ms > 0.0 && t.gflops > 0.0);
                assert!((t.gflops * t.ms * 1e6 / shape.flops() - 1.0).abs() < 1e-9);
            }
        }
        assert!(peak_gflops() > 0.0);
    }
}
