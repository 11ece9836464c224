//! The Mersenne Twister MT19937 of Matsumoto and Nishimura (1998), as PyTorch's CPU generator
//! uses it: one 32-bit word seeds it, and words come out tempered.

/// Words of state.
pub(super) const N: usize = 624;
const M: usize = 397;
const MATRIX_A: u32 = 0x9908_b0df;
const UPPER: u32 = 0x8000_0000;
const LOWER: u32 = 0x7fff_ffff;

/// The engine: 624 words, and how many of them have been handed out.
#[derive(Clone, Debug)]
pub(super) struct Mt19937 {
    words: Box<[u32; N]>,
    used: usize,
}

impl Mt19937 {
    /// Seeds with the recurrence of the 2002 reference code (`init_genrand`).
    pub(super) fn new(seed: u32) -> Self {
        let mut words = Box::new([seed; N]);
        for i in 1..N {
            let before = words[i - 1];
            words[i] = (before ^ (before >> 30))
                .wrapping_mul(1_812_433_253)
                .wrapping_add(i as u32);
        }
        Self { words, used: N }
    }

    /// Rebuilds an engine from its words and the count of used ones; `None` when they are not a
    /// state that an engine can be in.
    pub(super) fn from_parts(words: &[u32], used: usize) -> Option<Self> {
        let words: Box<[u32; N]> = Box::new(words.try_into().ok()?);
        (used <= N).then_some(Self { words, used })
    }

    /// The words and the count of used ones.
    pub(super) fn parts(&self) -> (&[u32], usize) {
        (&self.words[..], self.used)
    }

    /// The next tempered word.
    pub(super) fn next_u32(&mut self) -> u32 {
        if self.used >= N {
            self.twist();
        }
        let mut y = self.words[self.used];
        self.used += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// Two words, the first one on top.
    pub(super) fn next_u64(&mut self) -> u64 {
        let high = u64::from(self.next_u32());
        (high << 32) | u64::from(self.next_u32())
    }

    fn twist(&mut self) {
        for i in 0..N {
            let next = self.words[(i + 1) % N];
            let mixed = (self.words[i] & UPPER) | (next & LOWER);
            let odd = if next & 1 == 1 { MATRIX_A } else { 0 };
            self.words[i] = self.words[(i + M) % N] ^ (mixed >> 1) ^ odd;
        }
        self.used = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_standards_check_value() {
        // [rand.predef] of the C++ standard: the 10000th word of a generator seeded with 5489.
        let mut engine = Mt19937::new(5489);
        let last = (0..10_000).map(|_| engine.next_u32()).last();
        assert_eq!(last, Some(4_123_659_995));
    }
}
