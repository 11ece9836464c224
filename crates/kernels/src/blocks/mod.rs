//! Block formats of quantised weights, as GGML lays them out: short runs of numbers that share a scale.
//!
//! Decoding gives bit for bit what `gguf.quants.dequantize` of the PyPI package `gguf` gives (`golden/blocks.py`).

mod encode;
mod encode_super;
mod formats;
mod search;
mod super_blocks;

use std::marker::PhantomData;

use crate::error::{KernelError, exactly};
use crate::simd::{Job, Simd, Source};
use crate::{Isa, RhsData};

pub use encode::{encode, encode_into, encode_q8_0};
pub(crate) use formats::{Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};
pub(crate) use super_blocks::{Q2K, Q3K, Q4K, Q5K, Q6K};

/// Numbers that are decoded at once; every block is a whole number of such groups.
pub(crate) const GROUP: usize = 32;

/// A block format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum BlockFormat {
    /// 32 numbers in 34 bytes: an f16 scale and signed bytes.
    Q8_0,
    /// 256 numbers in 210 bytes: 6 bits each, sixteen scales of 8 bits, and their f16 scale.
    Q6K,
    /// 256 numbers in 176 bytes: as Q4_K, with a fifth bit.
    Q5K,
    /// 32 numbers in 24 bytes: f16 scale and minimum, 5 bits each.
    Q5_1,
    /// 32 numbers in 22 bytes: an f16 scale, 5 bits each less 16.
    Q5_0,
    /// 256 numbers in 144 bytes: f16 scales of the scales and of the minima, eight pairs of 6 bits each, nibbles.
    Q4K,
    /// 32 numbers in 20 bytes: f16 scale and minimum, nibbles.
    Q4_1,
    /// 32 numbers in 18 bytes: an f16 scale and nibbles less 8; low nibbles are the first 16 numbers.
    Q4_0,
    /// 256 numbers in 110 bytes: 3 bits each, sixteen scales of 6 bits, and their f16 scale.
    Q3K,
    /// 256 numbers in 84 bytes: 2 bits each, sixteen scales and minima of 4 bits, and their f16 scales.
    Q2K,
}

/// What is known of a format.
struct Facts {
    name: &'static str,
    len: usize,
    bytes: usize,
    /// For messages.
    whole: &'static str,
}

const fn facts<F: Format>(name: &'static str, whole: &'static str) -> Facts {
    Facts {
        name,
        len: F::LEN,
        bytes: F::BYTES,
        whole,
    }
}

impl BlockFormat {
    /// All formats, the most exact first.
    pub const ALL: [Self; 10] = [
        Self::Q8_0,
        Self::Q6K,
        Self::Q5K,
        Self::Q5_1,
        Self::Q5_0,
        Self::Q4K,
        Self::Q4_1,
        Self::Q4_0,
        Self::Q3K,
        Self::Q2K,
    ];

    const fn facts(self) -> Facts {
        match self {
            Self::Q8_0 => facts::<Q8_0>("Q8_0", "be whole blocks of Q8_0, 34 bytes each"),
            Self::Q6K => facts::<Q6K>("Q6_K", "be whole blocks of Q6_K, 210 bytes each"),
            Self::Q5K => facts::<Q5K>("Q5_K", "be whole blocks of Q5_K, 176 bytes each"),
            Self::Q5_1 => facts::<Q5_1>("Q5_1", "be whole blocks of Q5_1, 24 bytes each"),
            Self::Q5_0 => facts::<Q5_0>("Q5_0", "be whole blocks of Q5_0, 22 bytes each"),
            Self::Q4K => facts::<Q4K>("Q4_K", "be whole blocks of Q4_K, 144 bytes each"),
            Self::Q4_1 => facts::<Q4_1>("Q4_1", "be whole blocks of Q4_1, 20 bytes each"),
            Self::Q4_0 => facts::<Q4_0>("Q4_0", "be whole blocks of Q4_0, 18 bytes each"),
            Self::Q3K => facts::<Q3K>("Q3_K", "be whole blocks of Q3_K, 110 bytes each"),
            Self::Q2K => facts::<Q2K>("Q2_K", "be whole blocks of Q2_K, 84 bytes each"),
        }
    }

    /// GGML's name.
    pub const fn name(self) -> &'static str {
        self.facts().name
    }

    /// Numbers of a block.
    pub const fn block_len(self) -> usize {
        self.facts().len
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> usize {
        self.facts().bytes
    }

    /// Whether `bytes` bytes are whole blocks.
    ///
    /// # Errors
    /// [`KernelError::Size`] when they are not.
    pub fn check(self, bytes: usize) -> Result<(), KernelError> {
        if bytes.is_multiple_of(self.block_bytes()) {
            return Ok(());
        }
        Err(KernelError::Size {
            what: "the length of quantised data",
            expected: self.facts().whole,
            found: bytes,
        })
    }
}

/// Decodes whole blocks to as many numbers as they hold.
///
/// # Errors
/// [`KernelError`] when `bytes` are not whole blocks or `out` has another length.
pub fn decode(format: BlockFormat, bytes: &[u8], out: &mut [f32]) -> Result<(), KernelError> {
    decode_with(Isa::best(), format, bytes, out)
}

/// [`decode`] with the instructions of `isa`.
///
/// # Errors
/// As [`decode`].
pub fn decode_with(
    isa: Isa,
    format: BlockFormat,
    bytes: &[u8],
    out: &mut [f32],
) -> Result<(), KernelError> {
    format.check(bytes.len())?;
    let numbers = bytes.len() / format.block_bytes() * format.block_len();
    exactly("decoded numbers", out.len(), numbers)?;
    isa.run(Decode {
        data: RhsData::Blocks(format, bytes),
        at: 0,
        out,
    });
    Ok(())
}

/// The number that a byte of `torch.float8_e4m3fn` stands for: 4 bits of exponent with bias 7, 3 of mantissa, no
/// infinities; 0x7f and 0xff are NaN.
pub fn decode_f8_e4m3(byte: u8) -> f32 {
    if byte & 0x7f == 0x7f {
        return f32::NAN.copysign(if byte & 0x80 == 0 { 1.0 } else { -1.0 });
    }
    // Magnitude at the top of the f32 mantissa, scaled by 2^(127 - 7): right for subnormals too.
    let magnitude =
        f32::from_bits(u32::from(byte & 0x7f) << 20) * f32::from_bits((127 + 120) << 23);
    f32::from_bits(magnitude.to_bits() | u32::from(byte & 0x80) << 24)
}

/// Widens numbers `at..at + out.len()` of anything stored.
pub(crate) struct Decode<'a> {
    pub data: RhsData<'a>,
    pub at: usize,
    pub out: &'a mut [f32],
}

impl Job for Decode<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        s.widen(self.data, self.at, self.out);
    }
}

/// How one format's block is decoded.
pub(crate) trait Format: Copy + Send + Sync + 'static {
    /// Numbers of a block.
    const LEN: usize;
    /// Bytes of a block.
    const BYTES: usize;
    /// Decodes group `group` of a block of `BYTES` to `GROUP` numbers.
    fn group<S: Simd>(s: S, block: &[u8], group: usize, out: &mut [f32]);
    /// The same numbers in registers: the first `GROUP / LANES` vectors.
    #[inline(always)]
    fn vectors<S: Simd>(s: S, block: &[u8], group: usize) -> [S::V; GROUP / 4] {
        let mut numbers = [0.0; GROUP];
        Self::group(s, block, group, &mut numbers);
        let mut vectors = [s.zero(); GROUP / 4];
        for (v, numbers) in vectors.iter_mut().zip(numbers.chunks_exact(S::LANES)) {
            *v = s.load_slice(numbers);
        }
        vectors
    }
}

/// Blocks of one format, addressed by number.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Blocks<'a, F> {
    bytes: &'a [u8],
    format: PhantomData<F>,
}

impl<'a, F: Format> Blocks<'a, F> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            format: PhantomData,
        }
    }
}

impl<F: Format> Source for Blocks<'_, F> {
    #[inline(always)]
    fn widen<S: Simd>(self, s: S, at: usize, out: &mut [f32]) {
        let (mut at, mut done) = (at, 0);
        while done < out.len() {
            let block = &self.bytes[at / F::LEN * F::BYTES..][..F::BYTES];
            let (group, skip) = (at % F::LEN / GROUP, at % GROUP);
            let len = (GROUP - skip).min(out.len() - done);
            let out = &mut out[done..][..len];
            if len == GROUP {
                F::group(s, block, group, out);
            } else {
                let mut whole = [0.0; GROUP];
                F::group(s, block, group, &mut whole);
                out.copy_from_slice(&whole[skip..][..len]);
            }
            at += len;
            done += len;
        }
    }

    #[inline(always)]
    fn address(self, at: usize) -> *const u8 {
        self.bytes.as_ptr().wrapping_add(at / F::LEN * F::BYTES)
    }
}
