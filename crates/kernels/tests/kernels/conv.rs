use aquatint_kernels::{
    Activation, Conv2d, ConvAlgorithm, Isa, KernelError, Padding, conv2d, reference,
};
use proptest::prelude::*;

use crate::{ACTIVATIONS, ROUNDOFF, Stored, assert_close, noise};

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
    activation: Activation,
    residual: bool,
    /// 0: none, 1: one, 2: one an image.
    bias: usize,
}

struct Inputs {
    x: Vec<f32>,
    weight: Stored,
    bias: Vec<f32>,
    residual: Vec<f32>,
}

impl Case {
    fn call<'a>(&self, i: &'a Inputs, out: &'a mut [f32], algorithm: ConvAlgorithm) -> Conv2d<'a> {
        Conv2d {
            x: &i.x,
            batch: self.batch,
            height: self.size.0,
            width: self.size.1,
            in_channels: self.channels.0,
            out_channels: self.channels.1,
            kernel: self.kernel,
            weight: i.weight.data(),
            bias: (self.bias > 0).then_some(&i.bias),
            stride: self.stride,
            padding: self.padding,
            upsample: self.upsample,
            activation: self.activation,
            residual: self.residual.then_some(&i.residual),
            out,
            algorithm,
        }
    }

    fn out_len(&self) -> usize {
        let scale = if self.upsample { 2 } else { 1 };
        let p = self.padding;
        let side = |n: usize, pad: usize, k: usize| {
            (n * scale + pad)
                .checked_sub(k)
                .map_or(0, |n| n / self.stride + 1)
        };
        self.batch
            * side(self.size.0, p.top + p.bottom, self.kernel.0)
            * side(self.size.1, p.left + p.right, self.kernel.1)
            * self.channels.1
    }

    fn inputs(&self, absolute: bool) -> Inputs {
        let of = |len, seed| {
            let v = noise(len, seed);
            if absolute {
                v.into_iter().map(f32::abs).collect()
            } else {
                v
            }
        };
        let (cin, cout) = self.channels;
        Inputs {
            x: of(self.batch * self.size.0 * self.size.1 * cin, 1),
            weight: Stored::new(
                of(cout * cin * self.kernel.0 * self.kernel.1, 2),
                self.stored,
            ),
            bias: of(
                if self.bias == 2 {
                    self.batch * cout
                } else {
                    cout
                },
                3,
            ),
            residual: of(self.out_len(), 4),
        }
    }

    fn check(&self, algorithm: ConvAlgorithm, slack: f64) {
        let inputs = self.inputs(false);
        let mut want = vec![0.0; self.out_len()];
        let mut magnitude = want.clone();
        reference::conv2d(self.call(&inputs, &mut want, ConvAlgorithm::Auto)).unwrap();
        let plain = Case {
            activation: Activation::None,
            ..self.clone()
        };
        let absolute = self.inputs(true);
        reference::conv2d(plain.call(&absolute, &mut magnitude, ConvAlgorithm::Auto)).unwrap();
        if algorithm != ConvAlgorithm::Direct {
            let (bias, residual) = (1.0, 1.0);
            let per_output = self.channels.0 * self.kernel.0 * self.kernel.1;
            for (i, m) in magnitude.iter_mut().enumerate() {
                let first = i % self.channels.1 * per_output;
                let weights = (first..first + per_output).map(|w| absolute.weight.data().get(w));
                *m = weights.sum::<f32>() + bias + residual;
            }
        }
        let k = (self.channels.0 * self.kernel.0 * self.kernel.1) as f64;
        let bound = (8.0 + k.sqrt()) * ROUNDOFF * 1.2 * slack
            + if self.activation == Activation::None {
                0.0
            } else {
                4e-7
            };
        for isa in Isa::available() {
            let mut got = vec![777.0; self.out_len()];
            self.call(&inputs, &mut got, algorithm).run(isa).unwrap();
            let what = format!("{} {algorithm:?} {self:?}", isa.name());
            assert_close(&what, &got, &want, &magnitude, bound);
        }
    }
}

fn case() -> impl Strategy<Value = Case> {
    let pad = || (0usize..3, 0usize..3, 0usize..3, 0usize..3);
    let kernel = prop_oneof![4 => Just((3, 3)), 1 => Just((1, 1)), 1 => (1usize..6, 1usize..8)];
    let channels = (
        prop_oneof![1 => Just(0usize), 9 => 1usize..38],
        prop_oneof![1 => Just(0usize), 9 => 1usize..70],
    );
    let sizes = (0usize..3, (0usize..12, 1usize..12), channels);
    let window = (kernel, 1usize..4, pad(), any::<bool>());
    (
        sizes,
        window,
        0usize..3,
        prop::sample::select(&ACTIVATIONS[..]),
        any::<bool>(),
        0usize..3,
    )
        .prop_map(
            |(
                (batch, size, channels),
                (kernel, stride, (top, bottom, left, right), upsample),
                stored,
                activation,
                residual,
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
                activation,
                residual,
                bias,
            },
        )
}

proptest! {
    #![proptest_config(crate::cases(200))]
    #[test]
    #[cfg_attr(miri, ignore = "too large for an interpreter")]
    fn any_shape_agrees_with_the_reference(case in case()) {
        case.check(ConvAlgorithm::Direct, 1.0);
    }

    /// Errors of Winograd's filters follow the whole tile that an output is computed in, not the output's own
    /// window, hence the bound by the largest input and the sum of the channel's weights.
    #[test]
    #[cfg_attr(miri, ignore = "too large for an interpreter")]
    fn winograd_agrees_with_the_reference(case in case()) {
        let case = Case { kernel: (3, 3), stride: 1, ..case };
        case.check(ConvAlgorithm::Winograd2, 2.0);
        case.check(ConvAlgorithm::Winograd4, 4.0);
        case.check(ConvAlgorithm::Auto, 4.0);
        let doubled = Case { upsample: true, ..case };
        doubled.check(ConvAlgorithm::Folded, 4.0);
        let halved = Case { upsample: false, stride: 2, ..doubled };
        halved.check(ConvAlgorithm::Folded, 4.0);
    }
}

fn plain(size: (usize, usize), channels: (usize, usize), kernel: usize) -> Case {
    Case {
        batch: 2,
        size,
        channels,
        kernel: (kernel, kernel),
        stride: 1,
        padding: Padding::all(kernel / 2),
        upsample: false,
        stored: 1,
        activation: Activation::Silu,
        residual: true,
        bias: 2,
    }
}

/// Every algorithm at its smallest, which Miri can follow.
#[test]
fn small_images_agree_with_the_reference() {
    plain((3, 4), (3, 5), 1).check(ConvAlgorithm::Direct, 1.0);
    let case = plain((5, 6), (3, 5), 3);
    case.check(ConvAlgorithm::Direct, 1.0);
    case.check(ConvAlgorithm::Winograd2, 2.0);
    case.check(ConvAlgorithm::Winograd4, 4.0);
    let doubled = Case {
        upsample: true,
        ..plain((3, 4), (3, 5), 3)
    };
    doubled.check(ConvAlgorithm::Direct, 1.0);
    doubled.check(ConvAlgorithm::Folded, 4.0);
    let halved = Case { stride: 2, ..case };
    halved.check(ConvAlgorithm::Folded, 4.0);
}

#[test]
#[cfg_attr(miri, ignore = "too large for an interpreter")]
fn blocked_channels_agree_with_the_reference() {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(3)
        .build()
        .unwrap();
    pool.install(|| {
        plain((7, 9), (150, 67), 3).check(ConvAlgorithm::Direct, 1.0);
        plain((5, 5), (600, 33), 1).check(ConvAlgorithm::Direct, 1.0);
        // More places in the window than one block of the inner dimension holds.
        plain((25, 26), (2, 5), 25).check(ConvAlgorithm::Direct, 1.0);
    });
}

#[test]
#[cfg_attr(miri, ignore = "too large for an interpreter")]
fn blocked_winograd_agrees_with_the_reference() {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(3)
        .build()
        .unwrap();
    pool.install(|| {
        for algorithm in [ConvAlgorithm::Winograd2, ConvAlgorithm::Winograd4] {
            plain((27, 50), (130, 37), 3).check(algorithm, 4.0);
        }
        let doubled = Case {
            upsample: true,
            ..plain((17, 28), (130, 37), 3)
        };
        doubled.check(ConvAlgorithm::Folded, 4.0);
        let halved = Case {
            stride: 2,
            ..plain((47, 70), (130, 37), 3)
        };
        halved.check(ConvAlgorithm::Folded, 4.0);
    });
}

/// The bounds that the documentation states, on the noise they speak of.
#[test]
#[cfg_attr(miri, ignore = "too large for an interpreter")]
fn errors_are_as_documented() {
    for (channels, side, upsample, stride) in [
        (16, 40, false, 1),
        (320, 24, false, 1),
        (1280, 12, false, 1),
        (320, 25, true, 1),
        (320, 30, false, 2),
    ] {
        let case = Case {
            batch: 1,
            upsample,
            stride,
            padding: Padding::all(1),
            stored: 0,
            activation: Activation::None,
            residual: false,
            bias: 0,
            ..plain((side, side), (channels, 20), 3)
        };
        let inputs = case.inputs(false);
        let mut want = vec![0.0; case.out_len()];
        reference::conv2d(case.call(&inputs, &mut want, ConvAlgorithm::Auto)).unwrap();
        let square = |v: &mut dyn Iterator<Item = f64>| v.map(|v| v * v).sum::<f64>();
        let size = square(&mut want.iter().map(|&v| f64::from(v))) / want.len() as f64;
        for algorithm in [
            ConvAlgorithm::Direct,
            ConvAlgorithm::Winograd2,
            ConvAlgorithm::Winograd4,
            ConvAlgorithm::Folded,
            ConvAlgorithm::Auto,
        ] {
            let bound = algorithm.error_bound();
            for isa in Isa::available() {
                let mut got = want.clone();
                case.call(&inputs, &mut got, algorithm).run(isa).unwrap();
                let pairs = got.iter().zip(&want);
                let errors: Vec<f64> = pairs
                    .map(|(&g, &w)| (f64::from(g) - f64::from(w)) / size.sqrt())
                    .collect();
                let mean = square(&mut errors.iter().copied()) / errors.len() as f64;
                let largest = errors.iter().fold(0.0f64, |m, e| m.max(e.abs()));
                let error = mean.sqrt();
                let what = format!(
                    "{} {algorithm:?} {channels} {upsample} {stride}",
                    isa.name()
                );
                println!("{what}: {error:.2e}, largest {largest:.2e}");
                assert!(error <= bound, "{what}: {error:e} > {bound:e}");
                assert!(largest <= 10.0 * bound, "{what}: largest {largest:e}");
            }
        }
    }
}

/// More than one group of tiles, with weights held and with inputs held: too large for the reference, so `Direct`
/// stands in for it.
#[test]
#[cfg_attr(miri, ignore = "too large for an interpreter")]
fn large_images_agree_with_direct() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build();
    pool.unwrap().install(|| {
        for (size, channels) in [
            ((70, 66), (40, 70)),
            ((65, 70), (200, 330)),
            ((20, 38), (700, 300)),
        ] {
            let case = Case {
                activation: Activation::None,
                ..plain(size, channels, 3)
            };
            let inputs = case.inputs(false);
            let mut want = vec![0.0; case.out_len()];
            let direct = case.call(&inputs, &mut want, ConvAlgorithm::Direct);
            direct.run(Isa::best()).unwrap();
            let magnitude = vec![(channels.0 as f32 * 9.0).sqrt(); want.len()];
            for algorithm in [ConvAlgorithm::Winograd2, ConvAlgorithm::Winograd4] {
                for isa in Isa::available() {
                    let mut got = vec![777.0; want.len()];
                    case.call(&inputs, &mut got, algorithm).run(isa).unwrap();
                    let what = format!("{} {algorithm:?} {size:?}", isa.name());
                    assert_close(&what, &got, &want, &magnitude, 6e-6);
                }
            }
        }
    });
}

/// A picture must not change with its neighbours in a batch, nor with the number of threads.
#[test]
#[cfg_attr(miri, ignore = "too large for an interpreter")]
fn results_do_not_depend_on_the_batch_or_the_threads() {
    let shapes = [
        ((8, 8), (96, 64), 3, 1),
        ((5, 5), (70, 40), 3, 1),
        ((19, 30), (20, 35), 3, 1),
        ((60, 60), (48, 33), 3, 1),
        ((30, 31), (64, 70), 3, 2),
        ((30, 31), (64, 70), 1, 1),
        ((2, 1), (600, 70), 3, 1),
    ];
    for (size, channels, kernel, stride) in shapes {
        let case = Case {
            batch: 3,
            stride,
            ..plain(size, channels, kernel)
        };
        let inputs = case.inputs(false);
        let mut results = Vec::new();
        for threads in [1, 3] {
            let mut got = vec![0.0; case.out_len()];
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            pool.unwrap().install(|| {
                let call = case.call(&inputs, &mut got, ConvAlgorithm::Auto);
                conv2d(call).unwrap();
            });
            results.push(got);
        }
        let mut alone = vec![0.0; case.out_len()];
        let part = |len: usize, b: usize| b * (len / 3)..(b + 1) * (len / 3);
        for b in 0..3 {
            let mut own = vec![0.0; case.out_len() / 3];
            let inputs = Inputs {
                x: inputs.x[part(inputs.x.len(), b)].to_vec(),
                weight: inputs.weight.clone(),
                bias: inputs.bias[part(inputs.bias.len(), b)].to_vec(),
                residual: inputs.residual[part(inputs.residual.len(), b)].to_vec(),
            };
            let case = Case {
                batch: 1,
                ..case.clone()
            };
            conv2d(case.call(&inputs, &mut own, ConvAlgorithm::Auto)).unwrap();
            alone[part(case.out_len() * 3, b)].copy_from_slice(&own);
        }
        results.push(alone);
        assert!(results.iter().all(|r| r == &results[0]), "{case:?}");
    }
}

#[test]
fn wrong_lengths_are_errors() {
    let case = plain((4, 4), (3, 5), 3);
    let inputs = case.inputs(false);
    let mut out = vec![0.0; case.out_len()];
    let call = |x: &[f32], out: &mut [f32], stride| {
        conv2d(Conv2d {
            x,
            stride,
            ..case.call(&inputs, out, ConvAlgorithm::Auto)
        })
    };
    assert_eq!(call(&inputs.x, &mut out, 1), Ok(()));
    let short = KernelError::Length {
        what: "x",
        expected: 96,
        found: 95,
    };
    assert_eq!(call(&inputs.x[1..], &mut out, 1), Err(short));
    assert!(call(&inputs.x, &mut out[1..], 1).is_err());
    assert!(matches!(
        call(&inputs.x, &mut out, 0),
        Err(KernelError::Size { .. })
    ));
}
