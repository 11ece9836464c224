//! Times convolutions of given shapes.
//!
//! `cargo run --release -p aquatint-kernels --example bench_conv -- [threads] [repeats] SPEC..`, where a SPEC is
//! `BATCHxHEIGHTxWIDTHxIN-OUT-KERNEL-STRIDE[-u][-ALGORITHM]`: `u` doubles the input; an algorithm is one of a (auto), d
//! (direct), 2 and 4 (Winograd) and f (folded), or w and g, which time the gradients of the weight and of the input.
//! Prints median and best milliseconds.
#![allow(clippy::print_stdout, reason = "a program for people to read")]

use std::time::Instant;

use aquatint_kernels::{
    Activation, Buffer, Conv2d, Conv2dBackwardData, Conv2dBackwardWeight, ConvAlgorithm,
    KernelError, Padding, RhsData, conv2d, conv2d_backward_data, conv2d_backward_weight,
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

/// What a SPEC says, and its tensors.
struct Case {
    batch: usize,
    size: (usize, usize),
    channels: (usize, usize),
    kernel: usize,
    stride: usize,
    upsample: bool,
    algorithm: ConvAlgorithm,
    x: Buffer,
    half: Vec<f16>,
    weight: Vec<f32>,
    out: Buffer,
}

impl Case {
    fn new(spec: &str) -> Option<Self> {
        let numbers: Vec<usize> = spec
            .split(['x', '-'])
            .filter_map(|n| n.parse().ok())
            .collect();
        let &[batch, height, width, cin, cout, kernel, stride, ..] = numbers.as_slice() else {
            return None;
        };
        let algorithm = match spec.as_bytes().last() {
            Some(b'd') => ConvAlgorithm::Direct,
            Some(b'f') => ConvAlgorithm::Folded,
            Some(b'2') if numbers.len() > 7 => ConvAlgorithm::Winograd2,
            Some(b'4') if numbers.len() > 7 => ConvAlgorithm::Winograd4,
            _ => ConvAlgorithm::Auto,
        };
        let upsample = spec.contains('u');
        let scale = if upsample { 2 } else { 1 };
        let side = |n: usize| (n * scale + 2 * (kernel / 2) - kernel) / stride + 1;
        let mut x = Buffer::new(batch * height * width * cin);
        let values = noise(x.len(), 1);
        x.copy_from_slice(&values);
        let weight = noise(cin * cout * kernel * kernel, 2);
        let mut out = Buffer::new(batch * side(height) * side(width) * cout);
        out.fill(0.5);
        Some(Self {
            batch,
            size: (height, width),
            channels: (cin, cout),
            kernel,
            stride,
            upsample,
            algorithm,
            x,
            half: weight.iter().map(|&v| f16::from_f32(v)).collect(),
            weight,
            out,
        })
    }

    fn forward(&mut self) -> Result<(), KernelError> {
        conv2d(Conv2d {
            x: &self.x,
            batch: self.batch,
            height: self.size.0,
            width: self.size.1,
            in_channels: self.channels.0,
            out_channels: self.channels.1,
            kernel: (self.kernel, self.kernel),
            weight: RhsData::F16(&self.half),
            bias: None,
            stride: self.stride,
            padding: Padding::all(self.kernel / 2),
            upsample: self.upsample,
            activation: Activation::None,
            residual: None,
            out: &mut self.out,
            algorithm: self.algorithm,
        })
    }

    fn data(&mut self) -> Result<(), KernelError> {
        conv2d_backward_data(Conv2dBackwardData {
            dy: &self.out,
            batch: self.batch,
            height: self.size.0,
            width: self.size.1,
            in_channels: self.channels.0,
            out_channels: self.channels.1,
            kernel: (self.kernel, self.kernel),
            weight: RhsData::F32(&self.weight),
            stride: self.stride,
            padding: Padding::all(self.kernel / 2),
            upsample: self.upsample,
            dx: &mut self.x,
            algorithm: self.algorithm,
        })
    }

    fn weight(&mut self) -> Result<(), KernelError> {
        conv2d_backward_weight(Conv2dBackwardWeight {
            x: &self.x,
            dy: &self.out,
            batch: self.batch,
            height: self.size.0,
            width: self.size.1,
            in_channels: self.channels.0,
            out_channels: self.channels.1,
            kernel: (self.kernel, self.kernel),
            stride: self.stride,
            padding: Padding::all(self.kernel / 2),
            upsample: self.upsample,
            dw: &mut self.weight,
            dbias: None,
        })
    }
}

fn time(spec: &str, repeats: usize) {
    let Some(mut case) = Case::new(spec) else {
        println!("{spec}: not a shape");
        return;
    };
    let (mut times, mut cpus) = (Vec::new(), Vec::new());
    for _ in 0..=repeats {
        let (start, cpu) = (Instant::now(), cpu_seconds());
        let result = match spec.as_bytes().last() {
            Some(b'w') => case.weight(),
            Some(b'g') => case.data(),
            _ => case.forward(),
        };
        result.unwrap_or_else(|e| panic!("{e}"));
        times.push(start.elapsed().as_secs_f64() * 1e3);
        cpus.push((cpu_seconds() - cpu) * 1e3);
    }
    times.remove(0);
    times.sort_by(f64::total_cmp);
    cpus.sort_by(f64::total_cmp);
    let products = case.channels.0 * case.kernel * case.kernel;
    let flops = 2.0 * (case.out.len() * products) as f64;
    println!(
        "{spec:<36} median {:8.3} best {:8.3} ms {:7.1} GFLOP/s, cpu {:8.3} ms",
        times[times.len() / 2],
        times[0],
        flops / times[0] / 1e6,
        cpus[cpus.len() / 2]
    );
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize, default| args.get(i).and_then(|a| a.parse().ok()).unwrap_or(default);
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(number(0, 2))
        .build()
        .unwrap_or_else(|e| panic!("{e}"));
    pool.install(|| {
        for spec in args.iter().skip(2) {
            time(spec, number(1, 10));
        }
    });
}
