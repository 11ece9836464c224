//! Which instruction set to use, found once.

use std::sync::OnceLock;

use super::{Job, Simd, portable::Portable};

/// An instruction set that this CPU has. Only this module makes values of it, so having one proves that its
/// instructions can be executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Isa(Kind);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2(super::avx2::Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(super::avx512::Avx512),
    #[cfg(target_arch = "aarch64")]
    Neon(super::neon::Neon),
}

impl Isa {
    /// The fastest that the CPU has; looked up once.
    pub fn best() -> Self {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| Self::available()[0])
    }

    /// All that the CPU has, fastest first; the portable one is last.
    pub fn available() -> Vec<Self> {
        let mut all = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            all.extend(super::avx512::Avx512::detect().map(|s| Self(Kind::Avx512(s))));
            all.extend(super::avx2::Avx2::detect().map(|s| Self(Kind::Avx2(s))));
        }
        #[cfg(target_arch = "aarch64")]
        all.extend(super::neon::Neon::detect().map(|s| Self(Kind::Neon(s))));
        all.push(Self(Kind::Portable));
        all
    }

    /// A short name, for reports.
    pub fn name(self) -> &'static str {
        match self.0 {
            Kind::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512(_) => "avx512",
            #[cfg(target_arch = "aarch64")]
            Kind::Neon(_) => "neon",
        }
    }

    /// Rows and columns of the matrix tile: what shapes divide well.
    pub fn tile_size(self) -> (usize, usize) {
        struct Size;
        impl Job for Size {
            type Output = (usize, usize);
            fn run<S: Simd>(self, _: S) -> (usize, usize) {
                (S::MR, S::NR)
            }
        }
        self.run(Size)
    }

    /// Runs a job with these instructions.
    pub(crate) fn run<J: Job>(self, job: J) -> J::Output {
        match self.0 {
            Kind::Portable => job.run(Portable),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2(s) => s.enter(job),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512(s) => s.enter(job),
            #[cfg(target_arch = "aarch64")]
            Kind::Neon(s) => s.enter(job),
        }
    }
}
