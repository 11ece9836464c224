//! Which training steps, and which sigmas, a run visits: each diffusers scheduler's `set_timesteps`.
//!
//! The schedulers differ in small things (what is rounded, and when; which end is dropped), and a
//! picture's parity hangs on each of them, so the differences are named here and nowhere else.

use crate::beta::NoiseSchedule;
use crate::config::{FinalSigma, SchedulerConfig, TimestepSpacing};
use crate::math::{interpolate, linspace};
use crate::special::beta_quantile;

/// The sigmas of `n` steps (`n + 1` values, noise over signal) and the times the network is told.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Grid {
    pub sigmas: Vec<f64>,
    pub timesteps: Vec<f64>,
}

/// The curve that replaces the training steps' own sigmas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Curve {
    /// None: the sigmas of the training steps.
    Training,
    /// Karras et al. (2022), rho 7.
    Karras,
    /// Evenly in the logarithm.
    Exponential,
    /// Quantiles of the Beta(0.6, 0.6) distribution (Lee et al. 2024).
    Beta,
}

impl Curve {
    /// What the `use_*_sigmas` flags of a configuration say.
    pub fn of(config: &SchedulerConfig) -> Self {
        if config.use_karras_sigmas == Some(true) {
            Self::Karras
        } else if config.use_exponential_sigmas == Some(true) {
            Self::Exponential
        } else if config.use_beta_sigmas == Some(true) {
            Self::Beta
        } else {
            Self::Training
        }
    }

    /// `n` sigmas from `max` down to `min`.
    pub fn sigmas(self, min: f64, max: f64, n: usize) -> Vec<f64> {
        const RHO: f64 = 7.0;
        match self {
            Self::Training | Self::Karras => {
                let (low, high) = (min.powf(1.0 / RHO), max.powf(1.0 / RHO));
                linspace(0.0, 1.0, n)
                    .iter()
                    .map(|ramp| (high + ramp * (low - high)).powf(RHO))
                    .collect()
            }
            Self::Exponential => linspace(max.ln(), min.ln(), n)
                .iter()
                .map(|s| s.exp())
                .collect(),
            Self::Beta => linspace(0.0, 1.0, n)
                .iter()
                .map(|ramp| min + beta_quantile(1.0 - ramp, 0.6, 0.6) * (max - min))
                .collect(),
        }
    }
}

/// `n` training steps from late to early, as the schedulers whose grid starts at the first visited
/// step space them: DDIM and DDPM (which round the result), Euler, Heun, LMS, KDPM2, PNDM.
pub(crate) fn timesteps(
    spacing: TimestepSpacing,
    train: usize,
    offset: usize,
    n: usize,
) -> Vec<f64> {
    match spacing {
        TimestepSpacing::Linspace => reversed(linspace(0.0, (train - 1) as f64, n)),
        TimestepSpacing::Leading => {
            let stride = train / n;
            (0..n)
                .rev()
                .map(|i| (i * stride).saturating_add(offset) as f64)
                .collect()
        }
        TimestepSpacing::Trailing => trailing(train as f64, train, n),
    }
}

/// As [`timesteps`], rounded to whole training steps.
pub(crate) fn whole_timesteps(
    spacing: TimestepSpacing,
    train: usize,
    offset: usize,
    n: usize,
) -> Vec<usize> {
    timesteps(spacing, train, offset, n)
        .iter()
        .map(|t| (t.round_ties_even() as usize).min(train - 1))
        .collect()
}

/// `round(from - i · train / n) - 1`. In diffusers, rounding makes some counts (61, 103, ...) one step
/// longer and end at step -1; here every count gives `n` steps.
fn trailing(from: f64, train: usize, n: usize) -> Vec<f64> {
    let step = train as f64 / n as f64;
    (0..n)
        .map(|i| ((from - i as f64 * step).round_ties_even() - 1.0).max(0.0))
        .collect()
}

fn reversed(mut values: Vec<f64>) -> Vec<f64> {
    values.reverse();
    values
}

/// What distinguishes the schedulers in variance-exploding form from each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exploding {
    /// EulerDiscrete: may end at the smallest sigma.
    Euler,
    /// EulerAncestralDiscrete: knows no curves.
    EulerAncestral,
    /// HeunDiscrete, LMSDiscrete.
    Heun,
    /// KDPM2Discrete, KDPM2AncestralDiscrete: rounds the times of the Karras curve.
    Kdpm2,
    /// DPMSolverSDE: keeps times in f64.
    DpmSde,
}

/// The grid of the schedulers in variance-exploding form: sigmas interpolated at the spaced times;
/// a curve runs between the first and the last of *these* sigmas.
pub(crate) fn exploding_grid(
    kind: Exploding,
    schedule: &NoiseSchedule,
    config: &SchedulerConfig,
    curve: Curve,
    n: usize,
) -> Grid {
    let spacing = config.timestep_spacing.unwrap_or(TimestepSpacing::Linspace);
    let mut times = timesteps(spacing, schedule.len(), config.steps_offset.unwrap_or(0), n);
    if kind != Exploding::DpmSde {
        times.iter_mut().for_each(|t| *t = single(*t));
    }
    let mut sigmas: Vec<f64> = times
        .iter()
        .map(|&t| interpolate(schedule.sigmas(), t))
        .collect();
    if curve != Curve::Training && kind != Exploding::EulerAncestral {
        let (max, min) = curve_ends(config, sigmas[0], sigmas[n - 1]);
        sigmas = curve.sigmas(min, max, n);
        times = sigmas
            .iter()
            .map(|&s| schedule.sigma_to_timestep(s))
            .collect();
        if kind == Exploding::Kdpm2 && curve == Curve::Karras {
            times.iter_mut().for_each(|t| *t = t.round_ties_even());
        }
    }
    let last = match config.final_sigmas_type {
        Some(FinalSigma::SigmaMin) if kind == Exploding::Euler => schedule.sigma_min(),
        _ => 0.0,
    };
    sigmas.push(last);
    Grid {
        sigmas: sigmas.into_iter().map(single).collect(),
        timesteps: times,
    }
}

/// What distinguishes the multistep solvers' schedulers from each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Multistep {
    /// DPMSolverMultistep.
    Dpm,
    /// DPMSolverSinglestep: always spaced evenly.
    DpmSingle,
    /// UniPCMultistep: a curve that ends at the smallest sigma repeats its last.
    UniPc,
    /// DEISMultistep: never ends at zero.
    Deis,
}

/// The grid of the multistep solvers' schedulers: one more time than steps is spaced, and the last is
/// dropped; a curve runs over all of the training sigmas; times are whole.
pub(crate) fn multistep_grid(
    kind: Multistep,
    schedule: &NoiseSchedule,
    config: &SchedulerConfig,
    curve: Curve,
    n: usize,
) -> Grid {
    let mut times = multistep_times(kind, schedule, config, n);
    let mut sigmas: Vec<f64> = times
        .iter()
        .map(|&t| interpolate(schedule.sigmas(), t))
        .collect();
    if curve != Curve::Training {
        let (max, min) = curve_ends(config, schedule.sigma_max(), schedule.sigma_min());
        sigmas = curve.sigmas(min, max, n);
        let rounded = curve == Curve::Karras
            && !(kind == Multistep::Dpm
                && config.beta_schedule == Some(crate::BetaSchedule::SquaredCosCapV2));
        times = sigmas
            .iter()
            .map(|&s| schedule.sigma_to_timestep(s))
            // Where it is not rounded, the cast to whole numbers cuts the fraction off. A sigma of the
            // training steps themselves must not fall short of its time by the logarithm's last bit.
            .map(|t| {
                if rounded {
                    t.round_ties_even()
                } else {
                    (t + 1e-4).trunc()
                }
            })
            .collect();
    }
    let repeats_last =
        curve != Curve::Training && matches!(kind, Multistep::UniPc | Multistep::Deis);
    let ends_at_min =
        kind == Multistep::Deis || config.final_sigmas_type == Some(FinalSigma::SigmaMin);
    sigmas.push(match (ends_at_min, repeats_last) {
        (false, _) => 0.0,
        (true, true) => sigmas[n - 1],
        (true, false) => schedule.sigma_min(),
    });
    Grid {
        sigmas: sigmas.into_iter().map(single).collect(),
        timesteps: times,
    }
}

fn multistep_times(
    kind: Multistep,
    schedule: &NoiseSchedule,
    config: &SchedulerConfig,
    n: usize,
) -> Vec<f64> {
    let train = schedule.len();
    let clip = match (kind, config.lambda_min_clipped) {
        (Multistep::Dpm | Multistep::DpmSingle, Some(clip)) => clip,
        _ => f64::NEG_INFINITY,
    };
    // Times whose half log-SNR is below the clip are left out (sigma above e^-clip).
    let last = schedule
        .sigmas()
        .iter()
        .filter(|s| -s.ln() >= clip)
        .count()
        .max(1);
    let mut spacing = config.timestep_spacing.unwrap_or(TimestepSpacing::Linspace);
    if kind == Multistep::DpmSingle {
        spacing = TimestepSpacing::Linspace;
    }
    let mut times = match spacing {
        TimestepSpacing::Linspace => {
            let all = linspace(0.0, (last - 1) as f64, n + 1);
            all[1..].iter().rev().map(|t| t.round_ties_even()).collect()
        }
        TimestepSpacing::Leading => {
            let stride = last / (n + 1);
            (1..=n)
                .rev()
                .map(|i| (i * stride).saturating_add(config.steps_offset.unwrap_or(0)) as f64)
                .collect()
        }
        TimestepSpacing::Trailing => trailing(last as f64, train, n),
    };
    times
        .iter_mut()
        .for_each(|t: &mut f64| *t = t.min((train - 1) as f64));
    times
}

/// The times of LCM and TCD: `n` of the `original_inference_steps` that the student was distilled on.
pub(crate) fn distilled_timesteps(train: usize, original: usize, n: usize) -> Vec<usize> {
    let stride = train / original;
    let step = original as f64 / n as f64;
    (0..n)
        .map(|i| (original - (i as f64 * step).floor() as usize) * stride - 1)
        .collect()
}

fn curve_ends(config: &SchedulerConfig, max: f64, min: f64) -> (f64, f64) {
    (
        config.sigma_max.unwrap_or(max),
        config.sigma_min.unwrap_or(min),
    )
}

/// Rounds to f32, the type of the reference's sigmas and times.
pub(crate) fn single(value: f64) -> f64 {
    f64::from(value as f32)
}
