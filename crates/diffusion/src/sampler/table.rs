//! The table of samplers. Command line help, API schemas, lists and the conformance suite derive from it.

use super::{Sampler, SamplerOptions, ddim, euler};
use crate::beta::{BetaSchedule, NoiseSchedule};
use crate::config::{SchedulerConfig, TimestepSpacing};
use crate::error::Error;
use crate::level::Level;
use crate::plan::{Layout, Plan, Step};
use crate::spacing::{self, Curve, Exploding, Multistep};

/// How a sampler scales its latent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame {
    /// `x = x0 + sigma · noise`.
    Exploding,
    /// `x = alpha · x0 + sigma · noise` with `alpha² + sigma² = 1`.
    Preserving,
}

impl Frame {
    /// The level with noise over signal `sigma` in this form.
    pub fn level(self, sigma: f64, timestep: f64) -> Level {
        match self {
            Self::Exploding => Level::exploding(sigma, timestep),
            Self::Preserving => Level::preserving_from_sigma(sigma, timestep),
        }
    }
}

/// Which diffusers scheduler's `set_timesteps` lays a sampler's steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Grid {
    Ddpm,
    Ddim,
    Exploding(Exploding),
    Multistep(Multistep),
}

/// The defaults of a diffusers scheduler class for fields that a configuration has not.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Defaults {
    pub beta: (BetaSchedule, f64, f64),
    /// Whether the class knows `rescale_betas_zero_snr`.
    pub zero_snr: bool,
    /// Whether a step past the first training step ends at no noise at all.
    pub alpha_to_one: bool,
}

/// A row of the table.
pub struct SamplerInfo {
    /// Its name, in lower case.
    pub name: &'static str,
    /// Other names that it answers to.
    pub aliases: &'static [&'static str],
    /// One line for lists.
    pub summary: &'static str,
    /// Order of convergence of its deterministic part.
    pub order: u8,
    /// Whether it draws noise with its default options.
    pub stochastic: bool,
    /// Whether its steps want the unguided latent beside the guided one.
    pub needs_uncond: bool,
    /// Its `eta` when a request gives none; `None` if it has no such option.
    pub default_eta: Option<f64>,
    /// How it scales its latent.
    pub frame: Frame,
    /// Whose trajectory it follows.
    pub reference: &'static str,
    pub(crate) grid: Grid,
    pub(crate) defaults: Defaults,
    pub(crate) calls: fn(&Plan) -> usize,
    pub(crate) check: fn(&'static SamplerInfo, &SchedulerConfig) -> Result<(), Error>,
    pub(crate) new: fn(&Plan, f64, &SamplerOptions) -> Box<dyn Sampler>,
}

impl std::fmt::Debug for SamplerInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SamplerInfo")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl SamplerInfo {
    /// Whether its diffusers class lays the curves karras, exponential and beta itself.
    pub fn has_curves(&self) -> bool {
        match self.grid {
            Grid::Exploding(kind) => kind != Exploding::EulerAncestral,
            Grid::Multistep(_) => true,
            Grid::Ddpm | Grid::Ddim => false,
        }
    }

    /// The most steps that it takes with a configuration.
    pub(crate) fn most_steps(&self, _config: &SchedulerConfig, train: usize) -> usize {
        train
    }

    pub(crate) fn noise_schedule(&self, config: &SchedulerConfig) -> Result<NoiseSchedule, Error> {
        let (kind, start, end) = self.defaults.beta;
        if self.defaults.zero_snr || config.rescale_betas_zero_snr.is_none() {
            return NoiseSchedule::with_defaults(config, kind, start, end);
        }
        let config = SchedulerConfig {
            rescale_betas_zero_snr: None,
            ..config.clone()
        };
        NoiseSchedule::with_defaults(&config, kind, start, end)
    }

    /// Lays the steps as its diffusers class does; gives them and their stride.
    pub(crate) fn lay(&self, layout: &Layout<'_>, curve: Curve) -> (Vec<Step>, usize) {
        let Layout {
            config,
            schedule,
            n,
            ..
        } = *layout;
        match self.grid {
            Grid::Exploding(kind) => {
                let grid = spacing::exploding_grid(kind, schedule, config, curve, n);
                (layout.steps(&grid.sigmas, &grid.timesteps), 0)
            }
            Grid::Multistep(kind) => {
                let grid = spacing::multistep_grid(kind, schedule, config, curve, n);
                (layout.steps(&grid.sigmas, &grid.timesteps), 0)
            }
            Grid::Ddpm => {
                let times = self.whole_timesteps(layout);
                let to = |i: usize| {
                    times
                        .get(i + 1)
                        .map_or(Level::preserving(1.0, 0.0), |&t| schedule.level(t))
                };
                let steps = (0..n)
                    .map(|i| Step {
                        from: schedule.level(times[i]),
                        to: to(i),
                    })
                    .collect();
                (steps, schedule.len() / n)
            }
            Grid::Ddim => {
                // The step's end is a fixed stride away, not the next visited time.
                let stride = schedule.len() / n;
                let last = self.final_level(layout);
                let step = |&t: &usize| Step {
                    from: schedule.level(t),
                    to: t.checked_sub(stride).map_or(last, |t| schedule.level(t)),
                };
                (
                    self.whole_timesteps(layout).iter().map(step).collect(),
                    stride,
                )
            }
        }
    }

    fn whole_timesteps(&self, layout: &Layout<'_>) -> Vec<usize> {
        let spacing = layout
            .config
            .timestep_spacing
            .unwrap_or(TimestepSpacing::Leading);
        spacing::whole_timesteps(
            spacing,
            layout.schedule.len(),
            layout.config.steps_offset.unwrap_or(0),
            layout.n,
        )
    }

    /// Where a step ends that goes past the first training step.
    fn final_level(&self, layout: &Layout<'_>) -> Level {
        if layout
            .config
            .set_alpha_to_one
            .unwrap_or(self.defaults.alpha_to_one)
        {
            Level::preserving(1.0, 0.0)
        } else {
            layout.schedule.level(0)
        }
    }

    /// The sampler, ready for the first step of a plan.
    pub(crate) fn start(
        &self,
        plan: &Plan,
        options: &SamplerOptions,
    ) -> Result<Box<dyn Sampler>, Error> {
        let eta = options.eta.or(self.default_eta).unwrap_or(0.0);
        if !(0.0..=1.0).contains(&eta) {
            return Err(Error::Option {
                option: "eta",
                found: eta,
                expected: "0 to 1",
            });
        }
        if !(0.0..=10.0).contains(&options.s_noise) {
            return Err(Error::Option {
                option: "s_noise",
                found: options.s_noise,
                expected: "0 to 10",
            });
        }
        Ok((self.new)(plan, eta, options))
    }
}

/// The row of a name or alias; case, `-`, ` ` and `_` do not matter, and `+` reads as `p`.
///
/// # Errors
/// A name that no row has.
pub fn find(name: &str) -> Result<&'static SamplerInfo, Error> {
    let wanted = normal(name);
    let row = SAMPLERS.iter().find(|row| {
        normal(row.name) == wanted || row.aliases.iter().any(|alias| normal(alias) == wanted)
    });
    row.ok_or_else(|| Error::UnknownSampler {
        name: name.to_owned(),
        known: SAMPLERS
            .iter()
            .map(|row| row.name)
            .collect::<Vec<_>>()
            .join(", "),
    })
}

fn normal(name: &str) -> String {
    name.chars()
        .filter(|c| !matches!(c, '-' | '_' | ' '))
        .map(|c| {
            if c == '+' {
                'p'
            } else {
                c.to_ascii_lowercase()
            }
        })
        .collect()
}

const fn linear(start: f64, end: f64, zero_snr: bool, alpha_to_one: bool) -> Defaults {
    Defaults {
        beta: (BetaSchedule::Linear, start, end),
        zero_snr,
        alpha_to_one,
    }
}

const DDIM: Defaults = linear(1e-4, 0.02, true, true);

fn one_a_step(plan: &Plan) -> usize {
    plan.len()
}

fn anything(_: &'static SamplerInfo, _: &SchedulerConfig) -> Result<(), Error> {
    Ok(())
}

/// Every sampler.
pub static SAMPLERS: &[SamplerInfo] = &[
    SamplerInfo {
        name: "euler",
        aliases: &["k_euler"],
        summary: "Euler's method on the probability-flow ODE; simple and even",
        order: 1,
        stochastic: false,
        needs_uncond: false,
        default_eta: None,
        frame: Frame::Exploding,
        reference: "diffusers EulerDiscreteScheduler; Karras et al. 2022, algorithm 2 without churn",
        grid: Grid::Exploding(Exploding::Euler),
        defaults: DDIM,
        calls: one_a_step,
        check: anything,
        new: |_, _, _| Box::new(euler::Euler),
    },
    SamplerInfo {
        name: "ddim",
        aliases: &[],
        summary: "Denoising diffusion implicit models; eta 1 makes it stochastic",
        order: 1,
        stochastic: false,
        needs_uncond: false,
        default_eta: Some(0.0),
        frame: Frame::Preserving,
        reference: "diffusers DDIMScheduler; Song et al. 2021",
        grid: Grid::Ddim,
        defaults: DDIM,
        calls: one_a_step,
        check: anything,
        new: |plan, eta, _| {
            Box::new(ddim::Ddim {
                eta,
                clip: super::clip_range(plan, true),
            })
        },
    },
];
