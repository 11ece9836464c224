//! Times products of given shapes beside the machine's peak, which is measured before and after.
//!
//! `cargo run --release -p aquatint-kernels --example bench_gemm -- [threads] [milliseconds] SPEC..`, where a SPEC is
//! `MxKxN[:RHS]` and RHS is one of f32, f16, bf16, f8, q8, q4 (Q4_0) and q4k. Prints the median and the best
//! milliseconds, GFLOP/s and percent of peak.
#![allow(clippy::print_stdout, reason = "a program for people to read")]

use std::time::{Duration, Instant};

use aquatint_kernels::{
    BlockFormat, Buffer, Epilogue, Gemm, MatMut, MatRef, Rhs, RhsData, gemm,
    peak_gflops_of_all_threads,
};
use half::{bf16, f16};

fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..len)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

/// A right-hand side in some storage type.
enum Stored {
    F32(Vec<f32>),
    F16(Vec<f16>),
    BF16(Vec<bf16>),
    F8(Vec<u8>),
    Blocks(BlockFormat, Vec<u8>),
}

impl Stored {
    fn new(kind: &str, values: Vec<f32>) -> Self {
        let blocks = |format: BlockFormat| {
            let count = values.len() / format.block_len();
            let mut bytes = vec![0x5a; count * format.block_bytes()];
            for block in bytes.chunks_exact_mut(format.block_bytes()) {
                block[..4].copy_from_slice(&[0, 0x14, 0, 0x14]);
            }
            Self::Blocks(format, bytes)
        };
        match kind {
            "f16" => Self::F16(values.iter().map(|&v| f16::from_f32(v)).collect()),
            "bf16" => Self::BF16(values.iter().map(|&v| bf16::from_f32(v)).collect()),
            "f8" => Self::F8(values.iter().map(|v| v.to_bits() as u8 & 0x6f).collect()),
            "q8" => blocks(BlockFormat::Q8_0),
            "q4" => blocks(BlockFormat::Q4_0),
            "q4k" => blocks(BlockFormat::Q4K),
            _ => Self::F32(values),
        }
    }

    fn data(&self) -> RhsData<'_> {
        match self {
            Self::F32(d) => RhsData::F32(d),
            Self::F16(d) => RhsData::F16(d),
            Self::BF16(d) => RhsData::BF16(d),
            Self::F8(d) => RhsData::F8E4M3(d),
            Self::Blocks(format, d) => RhsData::Blocks(*format, d),
        }
    }
}

/// Sorted milliseconds.
fn times(spec: &str, budget: Duration) -> (f64, Vec<f64>) {
    let (shape, kind) = spec.split_once(':').unwrap_or((spec, "f32"));
    let sizes: Vec<usize> = shape.split('x').map(|s| s.parse().unwrap()).collect();
    let [m, k, n] = sizes[..] else {
        panic!("MxKxN, not {shape}")
    };
    let mut a = Buffer::new(m * k);
    a.copy_from_slice(&noise(m * k, 1));
    let b = Stored::new(kind, noise(k * n, 2));
    let mut c = Buffer::new(m * n);
    let mut run = || {
        let start = Instant::now();
        gemm(Gemm {
            batch: 1,
            m,
            n,
            k,
            a: MatRef::new(&a, k),
            b: Rhs::weight(b.data(), k),
            c: MatMut::new(&mut c, m, n),
            epilogue: Epilogue::default(),
        })
        .unwrap();
        start.elapsed().as_secs_f64() * 1e3
    };
    run();
    let start = Instant::now();
    let mut times: Vec<f64> = Vec::new();
    while times.len() < 5 || start.elapsed() < budget {
        times.push(run());
    }
    times.sort_by(f64::total_cmp);
    (2e-6 * (m * n * k) as f64, times)
}

fn main() {
    let mut args = std::env::args().skip(1).peekable();
    let mut number = |otherwise| {
        let given = args.peek().and_then(|a| a.parse::<usize>().ok());
        if given.is_some() {
            args.next();
        }
        given.unwrap_or(otherwise)
    };
    let (threads, budget) = (number(2), number(1000));
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    pool.unwrap().install(|| {
        let peak = || peak_gflops_of_all_threads(Duration::from_millis(200));
        println!("peak {:.1} GFLOP/s", peak());
        for spec in args {
            let (gflop, times) = times(&spec, Duration::from_millis(budget as u64));
            let (median, best, peak) = (times[times.len() / 2], times[0], peak());
            println!(
                "{spec:24} median {median:9.3} ms  best {best:9.3} ms  {:6.1} GFLOP/s  {:5.1} % of {peak:.1} (best {:5.1} %)",
                gflop / median,
                gflop / median / peak * 100.0,
                gflop / best / peak * 100.0,
            );
        }
    });
}
