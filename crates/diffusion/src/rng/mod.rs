//! Randomness: generators that give the same normal values as the reference implementations for
//! the same seed.
//!
//! A seed means a picture only together with a generator, so the generator is part of a request
//! and has a name: a row of [`RNGS`].

mod mathfun;
mod mt19937;
pub(crate) mod philox;
mod torch_cpu;

#[cfg(test)]
mod check;

pub use philox::Philox;
pub use torch_cpu::TorchCpu;

use crate::noise::NoiseSource;
use serde::{Deserialize, Serialize};

/// What can be wrong with a generator's name or saved state.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RngError {
    /// No row of [`RNGS`] has this name.
    #[error("there is no generator '{name}'; choose one of: torch-cpu, philox")]
    UnknownName {
        /// The name asked for.
        name: String,
    },
    /// A saved MT19937 state of the wrong size.
    #[error(
        "the saved torch-cpu state has {words} words, {used} of them used, where {expected} words \
         and at most as many used are expected; save it again or start from a seed"
    )]
    BadTorchState {
        /// Words found.
        words: usize,
        /// How many of them the state calls used.
        used: usize,
        /// Words that a state has.
        expected: usize,
    },
    /// A saved spare value that no generator makes.
    #[error(
        "the saved torch-cpu state keeps the spare value {value}, where a finite number or none is \
         expected; save it again or start from a seed"
    )]
    BadSpare {
        /// The value found.
        value: f64,
    },
}

/// A generator in the middle of its work, as plain data for a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "rng", rename_all = "kebab-case")]
pub enum RngState {
    /// Of [`TorchCpu`].
    TorchCpu {
        /// The 624 words of MT19937.
        words: Vec<u32>,
        /// How many of them have been handed out.
        used: usize,
        /// The second half of the last pair drawn one by one, if it waits.
        spare: Option<f64>,
    },
    /// Of [`Philox`].
    Philox {
        /// The seed.
        seed: u64,
        /// Calls made.
        offset: u64,
    },
}

/// One generator that can be asked for by name.
#[derive(Debug, Clone, Copy)]
pub struct RngInfo {
    /// The name in requests and metadata.
    pub name: &'static str,
    /// Other names that people know it by.
    pub aliases: &'static [&'static str],
    /// One line for help texts.
    pub summary: &'static str,
    /// Makes it.
    pub from_seed: fn(u64) -> Generator,
}

/// All generators; the first is the default.
pub const RNGS: &[RngInfo] = &[
    RngInfo {
        name: "torch-cpu",
        aliases: &["cpu", "torch", "mt19937"],
        summary: "As torch.Generator(\"cpu\"): the noise of diffusers and ComfyUI, bit for bit",
        from_seed: |seed| Generator::TorchCpu(TorchCpu::from_seed(seed)),
    },
    RngInfo {
        name: "philox",
        aliases: &["cuda", "gpu", "nv"],
        summary: "As torch on CUDA: the noise of AUTOMATIC1111's default setting",
        from_seed: |seed| Generator::Philox(Philox::from_seed(seed)),
    },
];

/// A generator of any kind.
#[derive(Clone, Debug)]
pub enum Generator {
    /// See [`TorchCpu`].
    TorchCpu(TorchCpu),
    /// See [`Philox`].
    Philox(Philox),
}

impl Generator {
    /// The generator called `name` (or an alias of it; case does not matter), at the start of
    /// `seed`.
    ///
    /// # Errors
    /// [`RngError::UnknownName`] when no row of [`RNGS`] has the name.
    pub fn from_name(name: &str, seed: u64) -> Result<Self, RngError> {
        find(name)
            .map(|info| (info.from_seed)(seed))
            .ok_or_else(|| RngError::UnknownName { name: name.into() })
    }

    /// Goes on where [`state`](Self::state) was taken.
    ///
    /// # Errors
    /// When the state is none that a generator can be in.
    pub fn from_state(state: &RngState) -> Result<Self, RngError> {
        match state {
            RngState::TorchCpu { words, used, spare } => {
                TorchCpu::from_parts(words, *used, *spare).map(Self::TorchCpu)
            }
            RngState::Philox { seed, offset } => {
                Ok(Self::Philox(Philox::from_parts(*seed, *offset)))
            }
        }
    }

    /// The state as plain data.
    pub fn state(&self) -> RngState {
        match self {
            Self::TorchCpu(rng) => rng.state(),
            Self::Philox(rng) => rng.state(),
        }
    }
}

impl NoiseSource for Generator {
    /// Fills `out` with standard normal values. The size of a call matters: two calls of 8 do not
    /// give what one call of 16 gives.
    fn normal(&mut self, out: &mut [f32]) {
        match self {
            Self::TorchCpu(rng) => rng.normal(out),
            Self::Philox(rng) => rng.normal(out),
        }
    }
}

/// The row of [`RNGS`] with this name or alias; case does not matter.
pub fn find(name: &str) -> Option<&'static RngInfo> {
    RNGS.iter().find(|info| {
        std::iter::once(&info.name)
            .chain(info.aliases)
            .any(|known| known.eq_ignore_ascii_case(name))
    })
}
