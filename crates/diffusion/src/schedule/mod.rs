//! Schedules: which noise levels a run visits.
//!
//! A schedule looks at the noise levels of a network ([`ModelSigmas`]) and a number of steps, and
//! gives the sigmas (noise over signal) from the start of each step, with 0 at the end. It knows
//! nothing of samplers. The formulas are those of k-diffusion and ComfyUI, in `f64`. Where diffusers'
//! schedulers have a form of their own, which depends on the scheduler, the row names it.
//!
//! To add one: a function here or in a file of its own, and a row of [`SCHEDULES`].

mod align_your_steps;
mod beta;
mod curves;
mod discrete;
mod gits;
mod gits_table;
mod linear_quadratic;

pub use align_your_steps::SearchedLevels;

use crate::beta::NoiseSchedule;
use crate::flow::FlowSchedule;
use crate::plan::Sigmas;

/// More steps than anybody has asked for in earnest.
const MOST_STEPS: usize = 10_000;

/// What a schedule must know of a network.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ModelSigmas<'a> {
    /// Noise over signal at each training step, rising.
    pub sigmas: &'a [f64],
    /// Where a run ends (before 0); mostly the first of `sigmas`.
    pub sigma_min: f64,
    /// Where a run starts; mostly the last of `sigmas`.
    pub sigma_max: f64,
    /// Whose published levels `align_your_steps` takes.
    pub searched: SearchedLevels,
    /// The flow, if the network was trained on one. All sigmas then are shares of noise, up to 1.
    pub flow: Option<FlowSchedule>,
}

impl<'a> ModelSigmas<'a> {
    /// The sigmas of a flow from its table.
    pub fn of_flow(table: &'a [f64], flow: FlowSchedule) -> Self {
        Self {
            flow: Some(flow),
            ..Self::new(table)
        }
    }

    /// The sigmas of a network from its table, with the ends of the table as the ends of the run.
    /// An empty table gives NaN for them, which every schedule refuses.
    pub fn new(sigmas: &'a [f64]) -> Self {
        Self {
            sigmas,
            sigma_min: sigmas.first().copied().unwrap_or(f64::NAN),
            sigma_max: sigmas.last().copied().unwrap_or(f64::NAN),
            searched: SearchedLevels::default(),
            flow: None,
        }
    }

    fn check(&self) -> Result<(), ScheduleError> {
        let bad = |found: String| Err(ScheduleError::ModelSigmas { found });
        if self.sigmas.len() < 2 {
            return bad(format!("{} training steps", self.sigmas.len()));
        }
        for (i, &sigma) in self.sigmas.iter().enumerate() {
            let below = if i == 0 { 0.0 } else { self.sigmas[i - 1] };
            if !(sigma.is_finite() && sigma > below) {
                return bad(format!("sigma {sigma} at training step {i} after {below}"));
            }
        }
        let (min, max) = (self.sigma_min, self.sigma_max);
        if !(min > 0.0 && min < max && max.is_finite()) {
            return bad(format!("sigma_min {min} and sigma_max {max}"));
        }
        Ok(())
    }
}

impl<'a> From<&'a NoiseSchedule> for ModelSigmas<'a> {
    fn from(schedule: &'a NoiseSchedule) -> Self {
        Self::new(schedule.sigmas())
    }
}

/// The free numbers of the schedules; the defaults are those of the references.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ScheduleOptions {
    /// `karras`: how strongly the small sigmas are favoured.
    pub karras_rho: f64,
    /// `polyexponential`: the power of the ramp in log sigma; 1 is `exponential`.
    pub polyexponential_rho: f64,
    /// `beta`: the two shapes of the Beta distribution.
    pub beta_shapes: (f64, f64),
    /// `linear_quadratic`: the share of `sigma_max` that the linear half removes.
    pub linear_share: f64,
    /// `gits`: 0.80 to 1.50 in steps of 0.05; more of it favours the small sigmas.
    pub gits_coefficient: f64,
}

impl Default for ScheduleOptions {
    fn default() -> Self {
        Self {
            karras_rho: 7.0,
            polyexponential_rho: 1.0,
            beta_shapes: (0.6, 0.6),
            linear_share: 0.025,
            gits_coefficient: 1.2,
        }
    }
}

/// What can go wrong with a schedule.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ScheduleError {
    /// No row of [`SCHEDULES`] has this name or alias.
    #[error("there is no schedule named `{name}`; the schedules are: {known}")]
    UnknownName {
        /// What was asked for.
        name: String,
        /// Every name there is, separated by commas.
        known: String,
    },
    /// No steps, or more than the schedule can place.
    #[error(
        "{steps} steps asked of the schedule {schedule}, which takes 1 to {most} with this model; \
         ask for a number in that range, or take the schedule karras"
    )]
    Steps {
        /// Steps asked for.
        steps: usize,
        /// The schedule's name.
        schedule: &'static str,
        /// The most that it can place.
        most: usize,
    },
    /// The network's sigmas are no noise schedule.
    #[error(
        "the model's noise schedule has {found}; expected two or more finite, positive, rising \
         sigmas, with sigma_min below sigma_max"
    )]
    ModelSigmas {
        /// What is wrong, and where.
        found: String,
    },
    /// The schedule's levels were searched for networks with more noise than this one has.
    #[error(
        "the schedule {schedule} starts at sigma {first}, but the model's largest is {sigma_max}; \
         take the schedule karras or normal"
    )]
    OtherModel {
        /// The schedule's name.
        schedule: &'static str,
        /// Where its levels start.
        first: f64,
        /// The model's largest sigma.
        sigma_max: f64,
    },
    /// An option is outside of its range.
    #[error("{option} is {found}; expected {expected}")]
    Option {
        /// The option's name.
        option: &'static str,
        /// The value given.
        found: f64,
        /// The valid range.
        expected: &'static str,
    },
    /// The sigmas came out equal, rising or not finite: an option at an extreme, or a model whose
    /// sigmas hardly differ.
    #[error(
        "the schedule {schedule} does not fall from step {step} ({from} to {to}); ask for fewer \
         steps, or take the default options"
    )]
    NotFalling {
        /// The schedule's name.
        schedule: &'static str,
        /// The step, from 0.
        step: usize,
        /// Where the step starts.
        from: f64,
        /// Where it ends.
        to: f64,
    },
}

/// One schedule.
#[derive(Debug, Clone, Copy)]
pub struct ScheduleInfo {
    /// The name in requests and metadata.
    pub name: &'static str,
    /// Other names that people know it by.
    pub aliases: &'static [&'static str],
    /// One line for help texts.
    pub summary: &'static str,
    /// Where it comes from.
    pub reference: &'static str,
    /// The form of it that diffusers' schedulers have themselves, for [`Plan::new`](crate::Plan::new)
    /// to lay as the sampler's diffusers class does; without one, give the plan
    /// [`sigmas`](Self::sigmas).
    pub in_diffusers: Option<Sigmas<'static>>,
    /// How many steps it can place, given the number of training steps.
    most_steps: fn(usize) -> usize,
    /// The sigmas of the steps' starts; the final 0 is added by [`sigmas`](Self::sigmas).
    starts: Starts,
}

/// Sigmas from the start of each of `steps` steps. Model and steps have been checked.
type Starts = fn(&ModelSigmas<'_>, usize, &ScheduleOptions) -> Result<Vec<f64>, ScheduleError>;

impl ScheduleInfo {
    /// The sigmas of a run: `steps + 1` values, finite and strictly falling, the last 0.
    ///
    /// # Errors
    /// No steps or too many; sigmas of a network that are no noise schedule; options out of range.
    pub fn sigmas(
        &self,
        model: &ModelSigmas<'_>,
        steps: usize,
        options: &ScheduleOptions,
    ) -> Result<Vec<f64>, ScheduleError> {
        model.check()?;
        let most = self.most_steps(model.sigmas.len());
        if steps == 0 || steps > most {
            return Err(ScheduleError::Steps {
                steps,
                schedule: self.name,
                most,
            });
        }
        let mut sigmas = (self.starts)(model, steps, options)?;
        sigmas.push(0.0);
        for (step, pair) in sigmas.windows(2).enumerate() {
            let (from, to) = (pair[0], pair[1]);
            if !(from.is_finite() && to.is_finite() && to < from) {
                return Err(ScheduleError::NotFalling {
                    schedule: self.name,
                    step,
                    from,
                    to,
                });
            }
        }
        Ok(sigmas)
    }

    /// The most steps that it can place on a network of so many training steps.
    pub fn most_steps(&self, training_steps: usize) -> usize {
        (self.most_steps)(training_steps).min(MOST_STEPS)
    }
}

/// For curves, which have a value everywhere.
const ANY: fn(usize) -> usize = |_| MOST_STEPS;
/// For choices from the training steps.
const EACH: fn(usize) -> usize = |training_steps| training_steps;

/// All schedules.
pub const SCHEDULES: &[ScheduleInfo] = &[
    ScheduleInfo {
        name: "normal",
        aliases: &["uniform", "discrete"],
        summary: "Evenly in training steps, both ends included",
        reference: "k-diffusion DiscreteSchedule.get_sigmas; ComfyUI normal_scheduler",
        in_diffusers: Some(Sigmas::Normal),
        most_steps: ANY,
        starts: discrete::normal,
    },
    ScheduleInfo {
        name: "karras",
        aliases: &[],
        summary: "Evenly in the 7th root of sigma: more steps where noise is low",
        reference: "Karras et al. 2022, Elucidating the Design Space, equation 5",
        in_diffusers: Some(Sigmas::Karras),
        most_steps: ANY,
        starts: curves::karras,
    },
    ScheduleInfo {
        name: "exponential",
        aliases: &["exp"],
        summary: "Evenly in the logarithm of sigma",
        reference: "k-diffusion get_sigmas_exponential",
        in_diffusers: Some(Sigmas::Exponential),
        most_steps: ANY,
        starts: curves::exponential,
    },
    ScheduleInfo {
        name: "polyexponential",
        aliases: &["poly_exponential"],
        summary: "A power of the ramp in the logarithm of sigma; exponential at power 1",
        reference: "k-diffusion get_sigmas_polyexponential",
        in_diffusers: None,
        most_steps: ANY,
        starts: curves::polyexponential,
    },
    ScheduleInfo {
        name: "sgm_uniform",
        aliases: &["sgm"],
        summary: "Evenly in training steps without the last one: for few-step models",
        reference: "Stability AI generative-models; ComfyUI normal_scheduler with sgm",
        in_diffusers: None,
        most_steps: ANY,
        starts: discrete::sgm_uniform,
    },
    ScheduleInfo {
        name: "simple",
        aliases: &[],
        summary: "Every n-th training step from the top",
        reference: "ComfyUI simple_scheduler",
        in_diffusers: None,
        most_steps: EACH,
        starts: discrete::simple,
    },
    ScheduleInfo {
        name: "ddim_uniform",
        aliases: &["ddim"],
        summary: "Every n-th training step from the bottom, as DDIM spaced them",
        reference: "Song et al. 2021, Denoising Diffusion Implicit Models; diffusers `leading`",
        in_diffusers: None,
        most_steps: |training_steps| training_steps.saturating_sub(1),
        starts: discrete::ddim_uniform,
    },
    ScheduleInfo {
        name: "beta",
        aliases: &[],
        summary: "Quantiles of a Beta distribution: more steps at both ends",
        reference: "Lee et al. 2024, Beta Sampling is All You Need; ComfyUI beta_scheduler",
        in_diffusers: Some(Sigmas::Beta),
        most_steps: EACH,
        starts: beta::beta,
    },
    ScheduleInfo {
        name: "kl_optimal",
        aliases: &["kl"],
        summary: "Evenly in the arctangent of sigma",
        reference: "Sabour et al. 2024, Align Your Steps, theorem 3.1; ComfyUI kl_optimal_scheduler",
        in_diffusers: None,
        most_steps: ANY,
        starts: curves::kl_optimal,
    },
    ScheduleInfo {
        name: "linear_quadratic",
        aliases: &[],
        summary: "Half of the steps on the first 2.5 % of sigma, then a parabola: for flow models",
        reference: "Genmo Mochi 1; ComfyUI linear_quadratic_schedule",
        in_diffusers: None,
        most_steps: ANY,
        starts: linear_quadratic::linear_quadratic,
    },
    ScheduleInfo {
        name: "align_your_steps",
        aliases: &["ays"],
        summary: "Levels searched for Stable Diffusion 1.5, SDXL and SVD: for about 10 steps",
        reference: "Sabour et al. 2024, Align Your Steps; ComfyUI AlignYourStepsScheduler",
        in_diffusers: None,
        most_steps: ANY,
        starts: align_your_steps::align_your_steps,
    },
    ScheduleInfo {
        name: "gits",
        aliases: &[],
        summary: "Levels searched along the curve of the sampling path: for few steps",
        reference: "Chen et al. 2024, On the Trajectory Regularity of ODE-based Diffusion Sampling",
        in_diffusers: None,
        most_steps: ANY,
        starts: gits::gits,
    },
];

/// The row of [`SCHEDULES`] with this name or alias. Case does not matter, and `-` and blanks count
/// as `_`.
///
/// # Errors
/// [`ScheduleError::UnknownName`] with the names there are.
pub fn find(name: &str) -> Result<&'static ScheduleInfo, ScheduleError> {
    let wanted = name.trim().to_lowercase().replace(['-', ' '], "_");
    SCHEDULES
        .iter()
        .find(|info| info.name == wanted || info.aliases.contains(&wanted.as_str()))
        .ok_or_else(|| ScheduleError::UnknownName {
            name: name.into(),
            known: SCHEDULES
                .iter()
                .map(|info| info.name)
                .collect::<Vec<_>>()
                .join(", "),
        })
}

/// `value`, if it is finite and above zero.
fn positive(option: &'static str, value: f64) -> Result<f64, ScheduleError> {
    if value.is_finite() && value > 0.0 {
        return Ok(value);
    }
    Err(ScheduleError::Option {
        option,
        found: value,
        expected: "a number above 0",
    })
}

/// `count` values on the piecewise exponential through falling `levels`, both ends included: how a
/// table made for one number of steps serves another.
fn resample(levels: &[f64], count: usize) -> Vec<f64> {
    let logs: Vec<f64> = levels.iter().map(|level| level.ln()).collect();
    crate::math::linspace(0.0, (levels.len() - 1) as f64, count)
        .iter()
        .map(|&at| crate::math::interpolate(&logs, at).exp())
        .collect()
}
