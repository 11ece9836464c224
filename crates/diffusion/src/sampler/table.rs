//! What the table says of a sampler, and how its steps are laid.

use super::{SAMPLERS, Sampler, SamplerOptions};
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
    /// `x = (1 - sigma) · x0 + sigma · noise`, in which flow models run.
    Straight,
}

/// How a sampler runs on flow models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFlows {
    /// In the flow's own form. `dx/dsigma = (x - denoised) / sigma` holds there as in variance-exploding form, so that
    /// formulas in sigma alone stay as they are; as in ComfyUI.
    Straight,
    /// In the flow's own form, by formulas in the log-SNR: a start from pure noise is moved by 1e-4 of time, for it has
    /// none. As diffusers' classes with `use_flow_sigmas`.
    LogSnr,
    /// In variance-exploding form, `x / (1 - sigma)`, where its noise is of the right size; the start is moved likewise.
    Exploding,
    /// Not at all, and why.
    Unfit(&'static str),
}

impl OnFlows {
    /// One line for lists.
    pub fn summary(self) -> &'static str {
        match self {
            Self::Straight => "as it is",
            Self::LogSnr => "as it is, in the log-SNR",
            Self::Exploding => "in variance-exploding form",
            Self::Unfit(why) => why,
        }
    }
}

impl Frame {
    /// The level with noise over signal `sigma` in this form.
    pub fn level(self, sigma: f64, timestep: f64) -> Level {
        match self {
            Self::Exploding => Level::exploding(sigma, timestep),
            Self::Preserving => Level::preserving_from_sigma(sigma, timestep),
            Self::Straight => Level::straight(sigma / (1.0 + sigma), timestep),
        }
    }
}

/// Which diffusers scheduler's `set_timesteps` lays a sampler's steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Grid {
    Ddpm,
    Ddim,
    Pndm,
    Lcm,
    Tcd,
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
    /// How it runs on flow models.
    pub flows: OnFlows,
    /// Whose trajectory it follows.
    pub reference: &'static str,
    /// The diffusers scheduler class that it stands for, if there is one.
    pub class: Option<&'static str>,
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

/// How many of the steps that a distilled model was taught on are used if a configuration is silent.
const ORIGINAL_INFERENCE_STEPS: usize = 50;

impl SamplerInfo {
    /// Whether its diffusers class lays the curves karras, exponential and beta itself.
    pub fn has_curves(&self) -> bool {
        match self.grid {
            Grid::Exploding(kind) => kind != Exploding::EulerAncestral,
            Grid::Multistep(_) => true,
            Grid::Ddpm | Grid::Ddim | Grid::Pndm | Grid::Lcm | Grid::Tcd => false,
        }
    }

    /// The most steps that it takes with a configuration of `train` training steps.
    pub(crate) fn most_steps(&self, config: &SchedulerConfig, train: usize) -> usize {
        match self.grid {
            _ if config.is_flow() => train,
            Grid::Lcm | Grid::Tcd => original_steps(config),
            // One more than asked is spaced, so the stride is of no length at `train` steps.
            Grid::Multistep(kind)
                if kind != Multistep::DpmSingle
                    && config.timestep_spacing == Some(TimestepSpacing::Leading) =>
            {
                train - 1
            }
            _ => train,
        }
    }

    /// The noise schedule of a configuration as the sampler's class reads it.
    pub(crate) fn noise_schedule(&self, config: &SchedulerConfig) -> Result<NoiseSchedule, Error> {
        if config.is_flow() {
            let flow = crate::FlowSchedule::from_config(config)?;
            return Ok(NoiseSchedule::straight(&flow.table()));
        }
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
        let clean = Level::preserving(1.0, 0.0);
        match self.grid {
            Grid::Exploding(kind) => {
                let grid = spacing::exploding_grid(kind, schedule, config, curve, n);
                (layout.steps(&grid.sigmas, &grid.timesteps), 0)
            }
            Grid::Multistep(kind) => {
                let grid = spacing::multistep_grid(kind, schedule, config, curve, n);
                (layout.steps(&grid.sigmas, &grid.timesteps), 0)
            }
            Grid::Ddpm => (
                layout.chain(&self.whole_timesteps(layout), clean),
                schedule.len() / n,
            ),
            Grid::Ddim => self.strides(layout),
            Grid::Pndm => {
                let (mut steps, stride) = self.strides(layout);
                // The steps of the warm-up end at the next visited time.
                let warm_up = if config.skip_prk_steps.unwrap_or(false) {
                    1
                } else {
                    3
                };
                for i in 0..warm_up.min(n - 1) {
                    steps[i].to = steps[i + 1].from;
                }
                (steps, stride)
            }
            Grid::Lcm | Grid::Tcd => {
                let times = spacing::distilled_timesteps(schedule.len(), original_steps(config), n);
                let last = if self.grid == Grid::Lcm {
                    clean
                } else {
                    schedule.level(0)
                };
                (layout.chain(&times, last), 0)
            }
        }
    }

    /// Steps that end a fixed stride away, which need not be the next visited time.
    fn strides(&self, layout: &Layout<'_>) -> (Vec<Step>, usize) {
        let schedule = layout.schedule;
        let stride = schedule.len() / layout.n;
        let last = if layout
            .config
            .set_alpha_to_one
            .unwrap_or(self.defaults.alpha_to_one)
        {
            Level::preserving(1.0, 0.0)
        } else {
            schedule.level(0)
        };
        let step = |&t: &usize| Step {
            from: schedule.level(t),
            to: t.checked_sub(stride).map_or(last, |t| schedule.level(t)),
        };
        (
            self.whole_timesteps(layout).iter().map(step).collect(),
            stride,
        )
    }

    fn whole_timesteps(&self, layout: &Layout<'_>) -> Vec<usize> {
        let spacing = layout
            .config
            .timestep_spacing
            .unwrap_or(TimestepSpacing::Leading);
        let offset = layout.config.steps_offset.unwrap_or(0);
        spacing::whole_timesteps(spacing, layout.schedule.len(), offset, layout.n)
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

pub(super) fn original_steps(config: &SchedulerConfig) -> usize {
    config
        .original_inference_steps
        .unwrap_or(ORIGINAL_INFERENCE_STEPS)
}

/// The row of a name or alias. Case, `-`, `_` and spaces do not matter, and `+` reads as `p`.
///
/// # Errors
/// A name that no row has.
pub fn find(name: &str) -> Result<&'static SamplerInfo, Error> {
    let wanted = normal(name);
    let answers = |row: &&SamplerInfo| {
        normal(row.name) == wanted || row.aliases.iter().any(|alias| normal(alias) == wanted)
    };
    SAMPLERS
        .iter()
        .find(answers)
        .ok_or_else(|| Error::UnknownSampler {
            name: name.to_owned(),
            known: SAMPLERS
                .iter()
                .map(|row| row.name)
                .collect::<Vec<_>>()
                .join(", "),
        })
}

fn normal(name: &str) -> String {
    let kept = name.chars().filter(|c| !matches!(c, '-' | '_' | ' '));
    kept.map(|c| {
        if c == '+' {
            'p'
        } else {
            c.to_ascii_lowercase()
        }
    })
    .collect()
}

/// The sampler that a scheduler configuration names by its `_class_name`: what diffusers runs on a
/// folder when nothing else is asked for. `None` for a class that no row stands for.
pub fn of_config(config: &SchedulerConfig) -> Option<&'static SamplerInfo> {
    let class = match config.class_name.as_deref()? {
        "FlowMatchEulerDiscreteScheduler" if config.stochastic_sampling == Some(true) => {
            "LCMScheduler"
        }
        "FlowMatchEulerDiscreteScheduler" => "EulerDiscreteScheduler",
        "FlowMatchHeunDiscreteScheduler" => "HeunDiscreteScheduler",
        "FlowMatchLCMScheduler" => "LCMScheduler",
        class => class,
    };
    let sde = class == "DPMSolverMultistepScheduler"
        && config
            .algorithm_type
            .as_deref()
            .is_some_and(|kind| kind.starts_with("sde"));
    // Several rows may share a class; the first is its plain form.
    SAMPLERS
        .iter()
        .filter(|row| row.class == Some(class))
        .find(|row| !sde || row.stochastic)
}
