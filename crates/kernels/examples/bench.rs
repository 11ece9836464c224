//! Times the kernels on the shapes of a Stable Diffusion step, beside the machine's peak.
//!
//! `cargo run --release -p aquatint-kernels --example bench -- [threads] [filter] [repeats]`
//! prints one line a shape: name, best milliseconds, GFLOP/s, percent of peak.
#![allow(clippy::print_stdout, reason = "a program for people to read")]

use std::hint::black_box;
use std::time::Instant;

use aquatint_kernels::{
    Activation, Attention, Conv2d, ConvAlgorithm, Epilogue, Gemm, GroupNorm, HeadsRef, Isa, MatMut,
    MatRef, Padding, Rhs, RhsData, attention, conv2d, gemm, group_norm,
};
use half::f16;

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

/// CPU time of the process: what a disturbed machine does not stretch.
#[cfg(target_os = "linux")]
fn cpu_seconds() -> f64 {
    unsafe extern "C" {
        fn clock_gettime(clock: i32, time: *mut [i64; 2]) -> i32;
    }
    const CLOCK_PROCESS_CPUTIME_ID: i32 = 2;
    let mut time = [0i64; 2];
    // SAFETY: on 64-bit Linux a timespec is two 64-bit integers.
    unsafe { clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    time[0] as f64 + time[1] as f64 * 1e-9
}

#[cfg(not(target_os = "linux"))]
fn cpu_seconds() -> f64 {
    f64::NAN
}

struct Bench {
    filter: String,
    repeats: usize,
    peak: f64,
    threads: f64,
}

impl Bench {
    /// Best time of several calls; the machine is shared, so the least disturbed one counts.
    fn time(&self, name: &str, flops: f64, mut f: impl FnMut()) {
        if !name.contains(&self.filter) {
            return;
        }
        f();
        let (mut best, mut best_cpu) = (f64::INFINITY, f64::INFINITY);
        let begin = Instant::now();
        for _ in 0..self.repeats {
            let (start, cpu) = (Instant::now(), cpu_seconds());
            f();
            best = best.min(start.elapsed().as_secs_f64());
            best_cpu = best_cpu.min((cpu_seconds() - cpu) / self.threads);
            if begin.elapsed().as_secs_f64() > 4.0 {
                break;
            }
        }
        let rate = flops / best / 1e9;
        let cpu_rate = flops / best_cpu / 1e9;
        println!(
            "{name:<42} {:9.3} ms {rate:7.1} GFLOP/s {:5.1} % | cpu {:9.3} ms {:5.1} %",
            best * 1e3,
            100.0 * rate / self.peak,
            best_cpu * 1e3,
            100.0 * cpu_rate / self.peak
        );
    }

    fn skips(&self, name: &str) -> bool {
        !name.contains(&self.filter) && !self.filter.starts_with(name)
    }

    fn gemm(&self, m: usize, k: usize, n: usize) {
        if self.skips(&format!("gemm {m}x{k}x{n}")) {
            return;
        }
        let (a, b) = (noise(m * k, 1), noise(n * k, 2));
        let half: Vec<f16> = b.iter().map(|&v| f16::from_f32(v)).collect();
        let mut c = vec![0.0f32; m * n];
        for (kind, data) in [("f32", RhsData::F32(&b)), ("f16", RhsData::F16(&half))] {
            self.time(
                &format!("gemm {m}x{k}x{n} {kind}"),
                2.0 * (m * n * k) as f64,
                || {
                    gemm(Gemm {
                        batch: 1,
                        m,
                        n,
                        k,
                        a: MatRef::new(&a, k),
                        b: Rhs::weight(data, k),
                        c: MatMut::new(&mut c, m, n),
                        epilogue: Epilogue::default(),
                    })
                    .unwrap_or_else(|e| panic!("{e}"));
                },
            );
        }
    }

    fn conv(
        &self,
        batch: usize,
        side: usize,
        channels: (usize, usize),
        kernel: usize,
        stride: usize,
    ) {
        let (cin, cout) = channels;
        let shape = format!("conv {batch}x{side}x{side}x{cin}->{cout} k{kernel} s{stride}");
        if self.skips(&shape) {
            return;
        }
        let x = noise(batch * side * side * cin, 1);
        let weight: Vec<f16> = noise(cin * cout * kernel * kernel, 2)
            .into_iter()
            .map(f16::from_f32)
            .collect();
        let out_side = (side + 2 * (kernel / 2) - kernel) / stride + 1;
        let mut out = vec![0.0f32; batch * out_side * out_side * cout];
        let flops = 2.0 * (out.len() * cin * kernel * kernel) as f64;
        let winograd = kernel == 3 && stride == 1;
        let all = [
            ConvAlgorithm::Auto,
            ConvAlgorithm::Direct,
            ConvAlgorithm::Winograd2,
        ];
        for algorithm in all.into_iter().take(if winograd { 3 } else { 1 }) {
            let name = format!(
                "conv {batch}x{side}x{side}x{cin}->{cout} k{kernel} s{stride} {algorithm:?}"
            );
            self.time(&name, flops, || {
                conv2d(Conv2d {
                    x: &x,
                    batch,
                    height: side,
                    width: side,
                    in_channels: cin,
                    out_channels: cout,
                    kernel: (kernel, kernel),
                    weight: RhsData::F16(&weight),
                    bias: None,
                    stride,
                    padding: Padding::all(kernel / 2),
                    upsample: false,
                    activation: Activation::None,
                    residual: None,
                    out: &mut out,
                    algorithm,
                })
                .unwrap_or_else(|e| panic!("{e}"));
            });
        }
    }

    fn attention(&self, batch: usize, heads: usize, tokens: usize, head_dim: usize, keys: usize) {
        if self.skips(&format!(
            "attention {batch}x{heads}x{tokens}x{head_dim} kv{keys}"
        )) {
            return;
        }
        let width = heads * head_dim;
        let (q, k, v) = (
            noise(batch * tokens * width, 1),
            noise(batch * keys * width, 2),
            noise(batch * keys * width, 3),
        );
        let mut out = vec![0.0f32; q.len()];
        let flops = 4.0 * (batch * heads * tokens * keys * head_dim) as f64;
        self.time(
            &format!("attention {batch}x{heads}x{tokens}x{head_dim} kv{keys}"),
            flops,
            || {
                attention(Attention {
                    batch,
                    heads,
                    queries: tokens,
                    keys,
                    head_dim,
                    q: HeadsRef::new(&q, tokens, heads, head_dim),
                    k: HeadsRef::new(&k, keys, heads, head_dim),
                    v: HeadsRef::new(&v, keys, heads, head_dim),
                    scale: 1.0 / (head_dim as f32).sqrt(),
                    causal: false,
                    mask: None,
                    out: &mut out,
                })
                .unwrap_or_else(|e| panic!("{e}"));
            },
        );
    }

    fn group_norm(&self, batch: usize, pixels: usize, channels: usize) {
        if self.skips(&format!("groupnorm+silu {batch}x{pixels}x{channels}")) {
            return;
        }
        let x = noise(batch * pixels * channels, 1);
        let mut out = vec![0.0f32; x.len()];
        // Counted as 10 operations an element; what counts is the time.
        self.time(
            &format!("groupnorm+silu {batch}x{pixels}x{channels}"),
            10.0 * x.len() as f64,
            || {
                group_norm(GroupNorm {
                    x: &x,
                    batch,
                    pixels,
                    channels,
                    groups: 32,
                    eps: 1e-5,
                    gamma: None,
                    beta: None,
                    activation: Activation::Silu,
                    out: &mut out,
                })
                .unwrap_or_else(|e| panic!("{e}"));
            },
        );
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let threads = args.first().and_then(|a| a.parse().ok()).unwrap_or(2);
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .unwrap_or_else(|e| panic!("{e}"));
    let filter = args.get(1).cloned().unwrap_or_default();
    let repeats = args.get(2).and_then(|a| a.parse().ok()).unwrap_or(20);
    let isa = Isa::best();
    let peak = (0..20)
        .map(|_| aquatint_kernels::peak_gflops(isa))
        .fold(0.0, f64::max)
        * threads as f64;
    println!(
        "{} {threads} threads, peak {peak:.1} GFLOP/s (FMA loop)",
        black_box(isa.name())
    );
    let bench = Bench {
        filter,
        repeats,
        peak,
        threads: threads as f64,
    };
    pool.install(|| {
        for (m, k, n) in [
            (8192, 320, 2560),
            (8192, 320, 320),
            (2048, 1536, 6144),
            (1024, 1024, 1024),
            (154, 768, 320),
            (1, 320, 1280),
            (4096, 3072, 3072),
        ] {
            bench.gemm(m, k, n);
        }
        for (side, cin, cout) in [
            (64, 320, 320),
            (32, 640, 640),
            (16, 1280, 1280),
            (8, 1280, 1280),
            (16, 2560, 1280),
        ] {
            bench.conv(2, side, (cin, cout), 3, 1);
        }
        for (side, c) in [(128, 512), (256, 256), (512, 128)] {
            bench.conv(1, side, (c, c), 3, 1);
        }
        bench.conv(2, 64, (320, 320), 1, 1);
        bench.conv(2, 64, (320, 320), 3, 2);
        for (batch, heads, tokens, dim, keys) in [
            (2, 8, 4096, 40, 4096),
            (2, 8, 1024, 80, 1024),
            (2, 8, 4096, 40, 77),
            (1, 24, 1178, 64, 1178),
            (1, 24, 4608, 128, 4608),
        ] {
            bench.attention(batch, heads, tokens, dim, keys);
        }
        bench.group_norm(2, 4096, 320);
        bench.group_norm(1, 512 * 512, 128);
    });
}
