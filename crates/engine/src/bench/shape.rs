//! Shapes of operations, as text: `2x64x64x320->320 k3 s1`, `8192x320x2560`, `2x8x4096x40 kv4096`.

use std::fmt;

use crate::EngineError;

/// A kind of operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// A 2-d convolution.
    Conv2d,
    /// A product of matrices.
    Gemm,
    /// Multi-head attention.
    Attention,
}

impl Op {
    /// Its name in text and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Op::Conv2d => "conv2d",
            Op::Gemm => "gemm",
            Op::Attention => "attention",
        }
    }
}

/// An operation and its sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// `BxHxWxI->O kK sS`: padding is half the kernel.
    Conv2d {
        /// Images.
        batch: usize,
        /// Height and width of the input.
        size: [usize; 2],
        /// Channels of the input and of the output.
        channels: [usize; 2],
        /// Side of the kernel.
        kernel: usize,
        /// Stride.
        stride: usize,
    },
    /// `MxKxN`: `[m, k]` times `[k, n]`.
    Gemm {
        /// Rows of the left-hand side.
        m: usize,
        /// What is summed over.
        k: usize,
        /// Columns of the right-hand side.
        n: usize,
    },
    /// `BxHxQxD kvK`.
    Attention {
        /// Batch entries.
        batch: usize,
        /// Heads.
        heads: usize,
        /// Queries.
        queries: usize,
        /// Channels of a head.
        head_dim: usize,
        /// Keys and values.
        keys: usize,
    },
}

/// The shapes of Stable Diffusion and of transformers that are measured.
pub const SHAPES: &[&str] = &[
    "2x64x64x320->320 k3 s1",
    "2x32x32x640->640 k3 s1",
    "2x16x16x1280->1280 k3 s1",
    "2x8x8x1280->1280 k3 s1",
    "2x16x16x2560->1280 k3 s1",
    "1x128x128x512->512 k3 s1",
    "1x512x512x128->128 k3 s1",
    "1x256x256x256->256 k3 s1",
    "2x64x64x320->320 k1 s1",
    "2x64x64x320->320 k3 s2",
    "8192x320x2560",
    "8192x320x320",
    "2048x1536x6144",
    "1024x1024x1024",
    "154x768x320",
    "1x320x1280",
    "4096x3072x3072",
    "2x8x4096x40 kv4096",
    "2x8x1024x80 kv1024",
    "2x8x4096x40 kv77",
    "1x24x1178x64 kv1178",
    "1x24x4608x128 kv4608",
];

/// Longest axis.
const LONGEST: usize = 1 << 22;
/// Most operations: some minutes of a slow machine.
const MOST_WORK: f64 = 2e13;
/// Most elements of all operands together.
const MOST_ELEMENTS: f64 = 4e9;

const FORMS: &str =
    "2x64x64x320->320 k3 s1 (conv2d), 8192x320x2560 (gemm) or 2x8x4096x40 kv4096 (attention)";

impl Shape {
    /// Reads a shape.
    ///
    /// # Errors
    /// [`EngineError::Usage`] for text of another form, and for sizes that no machine would time.
    pub fn parse(text: &str) -> Result<Self, EngineError> {
        let usage = |message: String| EngineError::Usage {
            message,
            hint: format!("shapes are written as {FORMS}"),
        };
        let short: String = text.chars().take(60).collect();
        let shape = parse(text)
            .ok_or_else(|| usage(format!("found {short:?} for a shape, expected {FORMS}")))?;
        let sizes = shape.sizes();
        if let Some(size) = sizes.iter().find(|n| !(1..=LONGEST).contains(*n)) {
            return Err(usage(format!(
                "found a size of {size} in {short:?}, expected 1 to {LONGEST}"
            )));
        }
        if let Shape::Conv2d { kernel, stride, .. } = shape
            && (kernel > 31 || stride > 31)
        {
            return Err(usage(format!(
                "found kernel {kernel} and stride {stride} in {short:?}, expected 1 to 31"
            )));
        }
        if shape.flops() > MOST_WORK || shape.elements() > MOST_ELEMENTS {
            return Err(usage(format!(
                "found {:.1e} operations on {:.1e} numbers in {short:?}, expected at most {MOST_WORK:.0e} on {MOST_ELEMENTS:.0e}",
                shape.flops(),
                shape.elements()
            )));
        }
        Ok(shape)
    }

    /// The operation.
    pub fn op(self) -> Op {
        match self {
            Shape::Conv2d { .. } => Op::Conv2d,
            Shape::Gemm { .. } => Op::Gemm,
            Shape::Attention { .. } => Op::Attention,
        }
    }

    /// Floating-point operations by the definition of the operation, a multiply-add being two.
    pub fn flops(self) -> f64 {
        let sizes = |factors: &[usize]| factors.iter().map(|&n| n as f64).product::<f64>();
        2.0 * match self {
            Shape::Conv2d {
                batch,
                channels,
                kernel,
                ..
            } => {
                let [height, width] = self.output().unwrap_or_default();
                let [input, output] = channels;
                sizes(&[batch, height, width, input, output, kernel, kernel])
            }
            Shape::Gemm { m, k, n } => sizes(&[m, k, n]),
            Shape::Attention {
                batch,
                heads,
                queries,
                head_dim,
                keys,
            } => 2.0 * sizes(&[batch, heads, queries, keys, head_dim]),
        }
    }

    /// Height and width of a convolution's output.
    pub(super) fn output(self) -> Option<[usize; 2]> {
        match self {
            Shape::Conv2d {
                size,
                kernel,
                stride,
                ..
            } => Some(size.map(|n| (n + kernel / 2 * 2).saturating_sub(kernel) / stride + 1)),
            _ => None,
        }
    }

    fn elements(self) -> f64 {
        let sizes = |factors: &[usize]| factors.iter().map(|&n| n as f64).product::<f64>();
        match self {
            Shape::Conv2d {
                batch,
                size: [height, width],
                channels: [input, output],
                kernel,
                ..
            } => {
                sizes(&[batch, height, width, input + output])
                    + sizes(&[input, output, kernel, kernel])
            }
            Shape::Gemm { m, k, n } => sizes(&[m, k]) + sizes(&[k, n]) + sizes(&[m, n]),
            Shape::Attention {
                batch,
                heads,
                queries,
                head_dim,
                keys,
            } => 2.0 * sizes(&[batch, heads, head_dim, queries + keys]),
        }
    }

    fn sizes(self) -> Vec<usize> {
        match self {
            Shape::Conv2d {
                batch,
                size: [h, w],
                channels: [i, o],
                kernel,
                stride,
            } => vec![batch, h, w, i, o, kernel, stride],
            Shape::Gemm { m, k, n } => vec![m, k, n],
            Shape::Attention {
                batch,
                heads,
                queries,
                head_dim,
                keys,
            } => vec![batch, heads, queries, head_dim, keys],
        }
    }
}

fn parse(text: &str) -> Option<Shape> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let numbers = |word: &str| {
        let parts = word.split('x').map(number);
        parts.collect::<Option<Vec<usize>>>()
    };
    match words.as_slice() {
        [sizes, kernel, stride] => {
            let (sizes, output) = sizes.split_once("->")?;
            let &[batch, height, width, input] = numbers(sizes)?.as_slice() else {
                return None;
            };
            Some(Shape::Conv2d {
                batch,
                size: [height, width],
                channels: [input, number(output)?],
                kernel: number(kernel.strip_prefix('k')?)?,
                stride: number(stride.strip_prefix('s')?)?,
            })
        }
        [sizes, keys] => {
            let &[batch, heads, queries, head_dim] = numbers(sizes)?.as_slice() else {
                return None;
            };
            let keys = number(keys.strip_prefix("kv")?)?;
            Some(Shape::Attention {
                batch,
                heads,
                queries,
                head_dim,
                keys,
            })
        }
        [sizes] => match numbers(sizes)?.as_slice() {
            &[m, k, n] => Some(Shape::Gemm { m, k, n }),
            _ => None,
        },
        _ => None,
    }
}

/// Digits only; what no `usize` holds is the largest one, and refused as too large.
fn number(text: &str) -> Option<usize> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(usize::MAX))
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Shape::Conv2d {
                batch,
                size: [h, w],
                channels: [i, o],
                kernel,
                stride,
            } => write!(f, "{batch}x{h}x{w}x{i}->{o} k{kernel} s{stride}"),
            Shape::Gemm { m, k, n } => write!(f, "{m}x{k}x{n}"),
            Shape::Attention {
                batch,
                heads,
                queries,
                head_dim,
                keys,
            } => write!(f, "{batch}x{heads}x{queries}x{head_dim} kv{keys}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_written_as_they_are_read() {
        for text in SHAPES {
            assert_eq!(Shape::parse(text).unwrap().to_string(), *text);
        }
        let flops = |text| Shape::parse(text).unwrap().flops();
        assert_eq!(
            flops("2x64x64x320->320 k3 s1"),
            2.0 * 8192.0 * 320.0 * 320.0 * 9.0
        );
        assert_eq!(
            flops("2x64x64x320->320 k3 s2"),
            2.0 * 2048.0 * 320.0 * 320.0 * 9.0
        );
        assert_eq!(flops("2x3x5"), 60.0);
        assert_eq!(flops("1x2x3x4 kv5"), 480.0);
    }

    #[test]
    fn other_text_is_refused() {
        for text in [
            "",
            "x",
            "1x2",
            "1x2x3x4",
            "1x2x3 k3 s1",
            "1x2x3x4->5",
            "1x2x3x4->5 k3",
            "1x2x3x4->5 3 1",
            "1x2x3x4 kv",
            "1x-2x3",
            "1x 2x3",
            "0x1x1",
            "1x1x0",
            "1x1x1x1->1 k0 s1",
            "1x1x1x1->1 k3 s0",
            "1x1x1x1->1 k99 s1",
            "999999999999999999999999x1x1",
            "4000000x4000000x4000000",
            "4000000x1x4000000",
            "1x8x4000000x64 kv4000000",
            "2x64x64x320->320 k3 s1 x",
            "1.5x2x3",
            "+1x2x3",
        ] {
            let error = Shape::parse(text).expect_err(text);
            assert!(error.is_usage(), "{error}");
            assert!(error.to_string().contains("expected"), "{error}");
        }
    }
}
