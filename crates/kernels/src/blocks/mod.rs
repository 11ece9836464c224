//! Block formats of quantised weights, as GGML lays them out: short runs of numbers that share a scale.
//!
//! Decoding gives bit for bit what `gguf.quants.dequantize` of the PyPI package `gguf` gives (`golden/blocks.py`).

mod formats;

use std::marker::PhantomData;

use crate::error::{KernelError, exactly};
use crate::simd::{Job, Simd, Source};
use crate::{Isa, RhsData};

pub use formats::encode_q8_0;
pub(crate) use formats::{Q4_0, Q4K, Q8_0};

/// Numbers that are decoded at once; every block is a whole number of such groups.
pub(crate) const GROUP: usize = 32;

/// A block format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BlockFormat {
    /// 32 numbers in 34 bytes: an f16 scale and signed bytes.
    Q8_0,
    /// 32 numbers in 18 bytes: an f16 scale and nibbles less 8; low nibbles are the first 16 numbers.
    Q4_0,
    /// 256 numbers in 144 bytes: f16 scales of the scales and of the minima, eight pairs of 6 bits each, nibbles.
    Q4K,
}

impl BlockFormat {
    /// All formats.
    pub const ALL: [Self; 3] = [Self::Q8_0, Self::Q4_0, Self::Q4K];

    /// GGML's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
            Self::Q4K => "Q4_K",
        }
    }

    /// Numbers of a block.
    pub fn block_len(self) -> usize {
        match self {
            Self::Q8_0 => Q8_0::LEN,
            Self::Q4_0 => Q4_0::LEN,
            Self::Q4K => Q4K::LEN,
        }
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::Q8_0 => Q8_0::BYTES,
            Self::Q4_0 => Q4_0::BYTES,
            Self::Q4K => Q4K::BYTES,
        }
    }

    /// Whether `bytes` bytes are whole blocks.
    ///
    /// # Errors
    /// [`KernelError::Size`] when they are not.
    pub fn check(self, bytes: usize) -> Result<(), KernelError> {
        let (what, expected) = match self {
            Self::Q8_0 => ("the length of Q8_0 blocks", "be a multiple of 34 bytes"),
            Self::Q4_0 => ("the length of Q4_0 blocks", "be a multiple of 18 bytes"),
            Self::Q4K => ("the length of Q4_K blocks", "be a multiple of 144 bytes"),
        };
        if bytes.is_multiple_of(self.block_bytes()) {
            return Ok(());
        }
        Err(KernelError::Size {
            what,
            expected,
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
