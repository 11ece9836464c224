use aquatint_kernels::{
    Conv2dBackwardData, Conv2dBackwardWeight, ConvAlgorithm, Isa, KernelError, Padding,
    conv2d_backward_data, conv2d_backward_weight, reference,
};
use proptest::prelude::*;

use crate::{ROUNDOFF, Stored, assert_close, noise};

#[derive(Debug, Clone)]
struct Case {
    batch: usize,
    size: (usize, usize),
    channels: (usize, usize),
    kernel: (usize, usize),
    stride: usize,
    padding: Padding,
    upsample: bool,
    stored: usize,
    /// 0: none, 1: one, 2: one an image.
    bias: usize,
}

fn absolute(v: &[f32]) -> Vec<f32> {
    v.iter().map(|v| v.abs()).collect()
}

impl Case {
    fn taps(&self) -> usize {
        self.kernel.0 * self.kernel.1
    }

    fn out_pixels(&self) -> usize {
        let scale = if self.upsample { 2 } else { 1 };
        let p = self.padding;
        let side = |n: usize, pad: usize, k: usize| {
            (n * scale + pad)
                .checked_sub(k)
                .map_or(0, |n| n / self.stride + 1)
        };
        side(self.size.0, p.top + p.bottom, self.kernel.0)
            * side(self.size.1, p.left + p.right, self.kernel.1)
    }

    fn x_len(&self) -> usize {
        self.batch * self.size.0 * self.size.1 * self.channels.0
    }

    fn data<'a>(
        &self,
        dy: &'a [f32],
        weight: &'a Stored,
        dx: &'a mut [f32],
        algorithm: ConvAlgorithm,
    ) -> Conv2dBackwardData<'a> {
        Conv2dBackwardData {
            dy,
            batch: self.batch,
            height: self.size.0,
            width: self.size.1,
            in_channels: self.channels.0,
            out_channels: self.channels.1,
            kernel: self.kernel,
            weight: weight.data(),
            stride: self.stride,
            padding: self.padding,
            upsample: self.upsample,
            dx,
            algorithm,
        }
    }

    fn weight<'a>(
        &self,
        x: &'a [f32],
        dy: &'a [f32],
        dw: &'a mut [f32],
        dbias: Option<&'a mut [f32]>,
    ) -> Conv2dBackwardWeight<'a> {
        Conv2dBackwardWeight {
            x,
            dy,
            batch: self.batch,
            height: self.size.0,
            width: self.size.1,
            in_channels: self.channels.0,
            out_channels: self.channels.1,
            kernel: self.kernel,
            stride: self.stride,
            padding: self.padding,
            upsample: self.upsample,
            dw,
            dbias,
        }
    }

    fn check_data(&self, algorithm: ConvAlgorithm, slack: f64) {
        let dy = noise(self.batch * self.out_pixels() * self.channels.1, 1);
        let values = noise(self.channels.0 * self.channels.1 * self.taps(), 2);
        let sizes = Stored::new(absolute(&values), self.stored);
        let weight = Stored::new(values, self.stored);
        let mut want = vec![0.0; self.x_len()];
        reference::conv2d_backward_data(self.data(&dy, &weight, &mut want, algorithm)).unwrap();
        let mut magnitude = want.clone();
        reference::conv2d_backward_data(self.data(
            &absolute(&dy),
            &sizes,
            &mut magnitude,
            algorithm,
        ))
        .unwrap();
        if algorithm != ConvAlgorithm::Direct {
            // Every gradient is at most 1, and errors follow the whole tile.
            let (cin, taps) = (self.channels.0, self.taps());
            for (i, m) in magnitude.iter_mut().enumerate() {
                let of = |o| (0..taps).map(move |t| (o * cin + i % cin) * taps + t);
                let weights = (0..self.channels.1).flat_map(of);
                *m = weights.map(|w| sizes.data().get(w)).sum();
            }
        }
        let places = (self.kernel.0 + 1) * (self.kernel.1 + 1);
        let bound = (8.0 + ((self.channels.1 * places) as f64).sqrt()) * ROUNDOFF * 1.2 * slack;
        for isa in Isa::available() {
            let mut got = vec![777.0; self.x_len()];
            let call = self.data(&dy, &weight, &mut got, algorithm);
            call.run(isa).unwrap();
            let what = format!("{} {algorithm:?} {self:?}", isa.name());
            assert_close(&what, &got, &want, &magnitude, bound);
        }
    }

    fn check_weight(&self, algorithm: ConvAlgorithm, slack: f64) {
        let dy = noise(self.batch * self.out_pixels() * self.channels.1, 1);
        let x = noise(self.x_len(), 2);
        let dw_len = self.channels.0 * self.channels.1 * self.taps();
        let bias_len = match self.bias {
            2 => self.batch * self.channels.1,
            _ => self.channels.1,
        };
        let filled = || (vec![777.0; dw_len], vec![777.0; bias_len]);
        let (mut want, mut want_bias) = filled();
        let (mut magnitude, mut magnitude_bias) = filled();
        let call = self.weight(&x, &dy, &mut want, Some(&mut want_bias));
        reference::conv2d_backward_weight(call).unwrap();
        let (ax, ady) = (absolute(&x), absolute(&dy));
        let call = self.weight(&ax, &ady, &mut magnitude, Some(&mut magnitude_bias));
        reference::conv2d_backward_weight(call).unwrap();
        let pixels = (self.batch * self.out_pixels()) as f64;
        if algorithm != ConvAlgorithm::Direct {
            // Errors follow whole tiles; every input and gradient is at most 1.
            magnitude.fill(self.batch as f32 * self.out_pixels() as f32);
        }
        let bound = (8.0 + pixels.sqrt()) * ROUNDOFF * 1.2 * slack;
        for isa in Isa::available() {
            let (mut got, mut got_bias) = filled();
            let bias = (self.bias > 0).then_some(&mut got_bias[..]);
            let call = self.weight(&x, &dy, &mut got, bias);
            call.run_as(isa, algorithm).unwrap();
            let what = format!("{} {algorithm:?} {self:?}", isa.name());
            assert_close(&what, &got, &want, &magnitude, bound);
            if self.bias > 0 {
                assert_close(&what, &got_bias, &want_bias, &magnitude_bias, bound);
            }
        }
    }
}

fn case() -> impl Strategy<Value = Case> {
    let pad = || (0usize..4, 0usize..4, 0usize..4, 0usize..4);
    let kernel = prop_oneof![4 => Just((3, 3)), 1 => Just((1, 1)), 1 => (1usize..7, 1usize..8)];
    let channels = (
        prop_oneof![1 => Just(0usize), 9 => 1usize..38],
        prop_oneof![1 => Just(0usize), 9 => 1usize..50],
    );
    let sizes = (0usize..3, (0usize..11, 1usize..11), channels);
    let window = (kernel, 1usize..4, pad(), any::<bool>());
    (sizes, window, 0usize..3, 0usize..3).prop_map(
        |(
            (batch, size, channels),
            (kernel, stride, (top, bottom, left, right), upsample),
            stored,
            bias,
        )| Case {
            batch,
            size,
            channels,
            kernel,
            stride,
            padding: Padding {
                top,
                bottom,
                left,
                right,
            },
            upsample,
            stored,
            bias,
        },
    )
}

proptest! {
    #![proptest_config(crate::cases(150))]
    #[test]
    #[cfg_attr(miri, ignore = "too large for an interpreter")]
    fn data_gradients_agree_with_the_reference(case in case()) {
        case.check_data(ConvAlgorithm::Direct, 1.0);
        case.check_data(ConvAlgorithm::Auto, 4.0);
    }

    #[test]
    #[cfg_attr(miri, ignore = "too large for an interpreter")]
    fn data_gradients_by_winograd_agree_with_the_reference(case in case()) {
        let case = Case { kernel: (3, 3), stride: 1, upsample: false, ..case };
        case.check_data(ConvAlgorithm::Winograd2, 2.0);
        case.check_data(ConvAlgorithm::Winograd4, 4.0);
    }

    #[test]
    #[cfg_attr(miri, ignore = "too large for an interpreter")]
    fn weight_gradients_agree_with_the_reference(case in case()) {
        case.check_weight(ConvAlgorithm::Direct, 1.0);
        case.check_weight(ConvAlgorithm::Auto, 4.0);
    }

    #[test]
    #[cfg_attr(miri, ignore = "too large for an interpreter")]
    fn weight_gradients_by_winograd_agree_with_the_reference(case in case()) {
        let case = Case { kernel: (3, 3), stride: 1, ..case };
        case.check_weight(ConvAlgorithm::Winograd2, 2.0);
        case.check_weight(ConvAlgorithm::Winograd4, 4.0);
    }
}

fn large(upsample: bool, stride: usize) -> Case {
    // Elsewhere an emulator is likely, and the reference alone would take minutes there.
    let native = cfg!(target_arch = "x86_64");
    Case {
        batch: 2,
        size: if native { (33, 41) } else { (17, 21) },
        channels: if native { (70, 130) } else { (38, 66) },
        kernel: (3, 3),
        stride,
        padding: Padding {
            top: 0,
            bottom: 2,
            left: 1,
            right: 1,
        },
        upsample,
        stored: 0,
        bias: 2,
    }
}

/// Every algorithm at its smallest, which Miri can follow.
#[test]
fn small_gradients_agree_with_the_reference() {
    let small = |upsample, stride| Case {
        size: (5, 4),
        channels: (3, 5),
        ..large(upsample, stride)
    };
    for (algorithm, slack) in [
        (ConvAlgorithm::Direct, 1.0),
        (ConvAlgorithm::Winograd2, 2.0),
        (ConvAlgorithm::Winograd4, 4.0),
    ] {
        small(false, 1).check_data(algorithm, slack);
        small(false, 1).check_weight(algorithm, slack);
    }
    for (upsample, stride) in [(true, 1), (false, 2)] {
        small(upsample, stride).check_data(ConvAlgorithm::Auto, 4.0);
        small(upsample, stride).check_weight(ConvAlgorithm::Auto, 4.0);
    }
}

/// Root mean square error relative to the root mean square, as [`ConvAlgorithm::error_bound`] states it.
fn error(got: &[f32], want: &[f32]) -> f64 {
    let square = |v: f64| v * v;
    let errors = got.iter().zip(want);
    let errors = errors.map(|(&g, &w)| square(f64::from(g) - f64::from(w)));
    let sizes = want.iter().map(|&w| square(f64::from(w)));
    (errors.sum::<f64>() / sizes.sum::<f64>()).sqrt()
}

#[test]
#[cfg_attr(miri, ignore = "too large for an interpreter")]
fn errors_are_as_the_forward_pass_documents() {
    let case = Case {
        batch: 2,
        size: (24, 20),
        channels: (64, 48),
        ..large(false, 1)
    };
    let dy = noise(case.batch * case.out_pixels() * case.channels.1, 1);
    let x = noise(case.x_len(), 2);
    let weight = Stored::new(noise(64 * 48 * 9, 3), 0);
    let mut want_dw = vec![0.0; 64 * 48 * 9];
    reference::conv2d_backward_weight(case.weight(&x, &dy, &mut want_dw, None)).unwrap();
    let mut want_dx = vec![0.0; case.x_len()];
    let call = case.data(&dy, &weight, &mut want_dx, ConvAlgorithm::Direct);
    reference::conv2d_backward_data(call).unwrap();
    for algorithm in [
        ConvAlgorithm::Direct,
        ConvAlgorithm::Winograd2,
        ConvAlgorithm::Winograd4,
        ConvAlgorithm::Auto,
    ] {
        for isa in Isa::available() {
            let (mut dw, mut dx) = (want_dw.clone(), want_dx.clone());
            let call = case.weight(&x, &dy, &mut dw, None);
            call.run_as(isa, algorithm).unwrap();
            let call = case.data(&dy, &weight, &mut dx, algorithm);
            call.run(isa).unwrap();
            let errors = (error(&dw, &want_dw), error(&dx, &want_dx));
            let what = format!("{} {algorithm:?} {errors:?}", isa.name());
            println!("{what}");
            assert!(errors.0.max(errors.1) <= algorithm.error_bound(), "{what}");
        }
    }
}

fn with_threads(threads: usize, f: impl FnOnce() + Send) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    pool.unwrap().install(f);
}

#[test]
#[cfg_attr(miri, ignore = "too large for an interpreter")]
fn large_gradients_agree_with_the_reference() {
    with_threads(3, || {
        large(false, 1).check_data(ConvAlgorithm::Auto, 4.0);
        large(true, 1).check_data(ConvAlgorithm::Auto, 4.0);
        large(false, 2).check_data(ConvAlgorithm::Auto, 4.0);
        large(false, 1).check_weight(ConvAlgorithm::Auto, 4.0);
        large(true, 1).check_weight(ConvAlgorithm::Auto, 4.0);
        large(false, 2).check_weight(ConvAlgorithm::Auto, 4.0);
    });
}

/// A training run continues bit for bit, so gradients must not depend on the machine's number of threads.
#[test]
#[cfg_attr(miri, ignore = "too large for an interpreter")]
fn gradients_are_the_same_on_any_number_of_threads() {
    let case = Case {
        channels: (5, 20),
        ..large(false, 1)
    };
    let dy = noise(case.batch * case.out_pixels() * case.channels.1, 1);
    let x = noise(case.x_len(), 2);
    let weight = Stored::new(noise(100 * case.taps(), 3), 0);
    let mut all: Vec<Vec<f32>> = Vec::new();
    for threads in [1, 2, 3, 7] {
        let (mut dw, mut dbias) = (vec![0.0; 100 * case.taps()], vec![0.0; 40]);
        let mut dx = vec![0.0; case.x_len()];
        with_threads(threads, || {
            let call = case.weight(&x, &dy, &mut dw, Some(&mut dbias));
            conv2d_backward_weight(call).unwrap();
            let call = case.data(&dy, &weight, &mut dx, ConvAlgorithm::Auto);
            conv2d_backward_data(call).unwrap();
        });
        all.push([dw, dbias, dx].concat());
    }
    assert!(all.iter().all(|v| v == &all[0]));
}

#[test]
fn wrong_lengths_are_errors() {
    let case = Case {
        size: (4, 4),
        channels: (3, 5),
        padding: Padding::all(1),
        ..large(false, 1)
    };
    let dy = noise(160, 1);
    let x = noise(case.x_len(), 2);
    let weight = Stored::new(noise(135, 3), 0);
    let mut dx = vec![0.0; case.x_len()];
    let call = case.data(&dy[1..], &weight, &mut dx, ConvAlgorithm::Auto);
    let short = KernelError::Length {
        what: "dy",
        expected: 160,
        found: 159,
    };
    assert_eq!(conv2d_backward_data(call), Err(short));
    let mut dw = vec![0.0; 135];
    let mut dbias = vec![0.0; 7];
    let call = case.weight(&x, &dy, &mut dw, Some(&mut dbias));
    let wrong = KernelError::Length {
        what: "dbias",
        expected: 10,
        found: 7,
    };
    assert_eq!(conv2d_backward_weight(call), Err(wrong));
    let call = case.weight(&x, &dy, &mut dw[1..], None);
    assert!(conv2d_backward_weight(call).is_err());
}
