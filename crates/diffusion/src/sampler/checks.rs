//! What a sampler refuses of a scheduler configuration, and why.
//!
//! Each check asks only for the fields that the sampler's diffusers class has: from_config drops others.

use super::table::{Grid, SamplerInfo, original_steps};
use crate::config::{SchedulerConfig, VarianceType};
use crate::error::Error;
use crate::prediction::Prediction;

fn refuse(
    info: &'static SamplerInfo,
    found: impl Into<String>,
    hint: &'static str,
) -> Result<(), Error> {
    Err(Error::Unsupported {
        found: found.into(),
        sampler: info.name,
        hint,
    })
}

pub(super) fn anything(_: &'static SamplerInfo, _: &SchedulerConfig) -> Result<(), Error> {
    Ok(())
}

pub(super) fn check_thresholding(
    info: &'static SamplerInfo,
    config: &SchedulerConfig,
) -> Result<(), Error> {
    if config.thresholding == Some(true) {
        return refuse(
            info,
            "thresholding: true",
            "it is meant for pixel-space models; take a sampler that does not threshold, such as euler",
        );
    }
    if config
        .clip_sample_range
        .is_some_and(|range| range.is_nan() || range <= 0.0)
    {
        return Err(Error::Config {
            found: format!("clip_sample_range {:?}", config.clip_sample_range),
            expected: "a number above 0",
        });
    }
    Ok(())
}

pub(super) fn check_exploding(
    info: &'static SamplerInfo,
    config: &SchedulerConfig,
) -> Result<(), Error> {
    let continuous = config.timestep_type.as_deref() == Some("continuous");
    if continuous && config.prediction() == Prediction::V {
        return refuse(
            info,
            "timestep_type: continuous",
            "networks on a continuous time are not supported",
        );
    }
    if config.interpolation_type.as_deref() == Some("log_linear") {
        return refuse(
            info,
            "interpolation_type: log_linear",
            "take the schedule `exponential` instead",
        );
    }
    check_thresholding(
        info,
        &SchedulerConfig {
            thresholding: None,
            ..config.clone()
        },
    )
}

pub(super) fn check_ddpm(
    info: &'static SamplerInfo,
    config: &SchedulerConfig,
) -> Result<(), Error> {
    use VarianceType::{FixedLarge, FixedSmall, FixedSmallLog};
    match config.variance_type {
        // The logarithm of the small variance is only a detour to the same number.
        None | Some(FixedSmall | FixedSmallLog | FixedLarge) => check_thresholding(info, config),
        Some(other) => refuse(
            info,
            format!("variance_type: {other:?}"),
            "take another sampler, such as ddim",
        ),
    }
}

pub(super) fn check_dpm(info: &'static SamplerInfo, config: &SchedulerConfig) -> Result<(), Error> {
    let order = config.solver_order.unwrap_or(2);
    if !(1..=3).contains(&order) {
        return refuse(
            info,
            format!("solver_order: {order}"),
            "set it to 1, 2 or 3",
        );
    }
    if config.use_flow_sigmas == Some(true) {
        return refuse(info, "use_flow_sigmas: true", "it is meant for flow models");
    }
    if config.use_lu_lambdas == Some(true) && info.class == Some("DPMSolverMultistepScheduler") {
        return refuse(
            info,
            "use_lu_lambdas: true",
            "take the schedule `karras` or `exponential` instead",
        );
    }
    if matches!(
        config.variance_type,
        Some(VarianceType::Learned | VarianceType::LearnedRange)
    ) {
        return refuse(
            info,
            "a learned variance_type",
            "take another sampler, such as ddim",
        );
    }
    check_thresholding(info, config)
}

pub(super) fn check_distilled(
    info: &'static SamplerInfo,
    config: &SchedulerConfig,
) -> Result<(), Error> {
    let original = original_steps(config);
    if original == 0 || original > config.num_train_timesteps() {
        return Err(Error::Config {
            found: format!("original_inference_steps {original}"),
            expected: "1 to the number of training steps",
        });
    }
    // TCD knows the field and does nothing with it.
    let thresholding = config.thresholding.filter(|_| info.grid == Grid::Lcm);
    check_thresholding(
        info,
        &SchedulerConfig {
            thresholding,
            ..config.clone()
        },
    )
}
