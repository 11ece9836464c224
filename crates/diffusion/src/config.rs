//! A diffusers `scheduler_config.json`.

use serde::{Deserialize, Serialize};

use crate::beta::BetaSchedule;
use crate::error::Error;
use crate::prediction::Prediction;

/// How the steps of a run are spread over the training steps (Lin et al. 2023, table 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimestepSpacing {
    /// Multiples of `training steps / steps`, from the start, shifted by `steps_offset`.
    Leading,
    /// Evenly, both ends included.
    Linspace,
    /// Multiples of `training steps / steps`, from the end: the last training step is always one.
    Trailing,
}

/// Where the sigmas of a run end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinalSigma {
    /// At no noise.
    #[default]
    Zero,
    /// At the smallest sigma of training.
    SigmaMin,
}

/// How a flow's shift for the size of a picture is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeShift {
    /// As a logarithm.
    #[default]
    Exponential,
    /// As the factor itself.
    Linear,
}

/// How the steps of a flow lie before they are shifted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FlowSpacing {
    /// Evenly between the ends of training, both included: diffusers' `set_timesteps`.
    #[default]
    Training,
    /// Evenly from 1 to `1 / steps`: what diffusers' FLUX pipelines give `set_timesteps`.
    Even,
}

/// The variance of a DDPM step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)] // The names are those of the DDPM paper's variants in diffusers.
pub enum VarianceType {
    FixedSmall,
    FixedSmallLog,
    FixedLarge,
    FixedLargeLog,
    Learned,
    LearnedRange,
}

/// A scheduler's configuration, with the fields of every diffusers scheduler class.
///
/// Every field is optional: an absent one takes the default of the scheduler class that the *sampler*
/// stands for, as `TheScheduler.from_config(pipe.scheduler.config)` does. Unknown fields are ignored.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs)] // The names and meanings are those of diffusers.
pub struct SchedulerConfig {
    #[serde(rename = "_class_name")]
    pub class_name: Option<String>,
    pub num_train_timesteps: Option<usize>,
    pub beta_start: Option<f64>,
    pub beta_end: Option<f64>,
    pub beta_schedule: Option<BetaSchedule>,
    pub trained_betas: Option<Vec<f32>>,
    pub rescale_betas_zero_snr: Option<bool>,
    pub prediction_type: Option<Prediction>,

    pub timestep_spacing: Option<TimestepSpacing>,
    pub steps_offset: Option<usize>,
    pub timestep_type: Option<String>,
    pub interpolation_type: Option<String>,
    pub original_inference_steps: Option<usize>,
    pub timestep_scaling: Option<f64>,

    pub use_karras_sigmas: Option<bool>,
    pub use_exponential_sigmas: Option<bool>,
    pub use_beta_sigmas: Option<bool>,
    pub use_lu_lambdas: Option<bool>,
    pub use_flow_sigmas: Option<bool>,
    pub sigma_min: Option<f64>,
    pub sigma_max: Option<f64>,
    pub final_sigmas_type: Option<FinalSigma>,
    pub lambda_min_clipped: Option<f64>,

    pub set_alpha_to_one: Option<bool>,
    pub skip_prk_steps: Option<bool>,
    pub clip_sample: Option<bool>,
    pub clip_sample_range: Option<f64>,
    pub thresholding: Option<bool>,
    pub variance_type: Option<VarianceType>,

    pub algorithm_type: Option<String>,
    pub solver_order: Option<usize>,
    pub solver_type: Option<String>,
    pub lower_order_final: Option<bool>,
    pub euler_at_final: Option<bool>,
    pub predict_x0: Option<bool>,
    pub disable_corrector: Option<Vec<usize>>,

    pub shift: Option<f64>,
    pub flow_shift: Option<f64>,
    pub use_dynamic_shifting: Option<bool>,
    pub base_shift: Option<f64>,
    pub max_shift: Option<f64>,
    pub base_image_seq_len: Option<usize>,
    pub max_image_seq_len: Option<usize>,
    pub time_shift_type: Option<TimeShift>,
    pub shift_terminal: Option<f64>,
    pub invert_sigmas: Option<bool>,
    pub stochastic_sampling: Option<bool>,
    /// Not of the file: how the family's pipeline spaces the steps of a flow.
    #[serde(skip)]
    pub flow_spacing: FlowSpacing,
    /// Not of the file: how many tokens a run's picture has, for [`Self::use_dynamic_shifting`].
    #[serde(skip)]
    pub image_tokens: Option<usize>,
}

impl SchedulerConfig {
    /// Reads the text of a `scheduler_config.json`.
    ///
    /// Python writes `-Infinity` and `NaN` as bare words, which JSON has not (diffusers does so for
    /// `lambda_min_clipped`); they count as absent.
    ///
    /// # Errors
    /// Text that is no JSON object, or a known field of the wrong type.
    pub fn from_json(text: &str) -> Result<Self, Error> {
        Ok(serde_json::from_str(&null_bare_words(text))?)
    }

    /// The configuration of the Stable Diffusion 1.x and 2.x checkpoints, for files that carry none:
    /// 1000 scaled-linear steps from 0.00085 to 0.012, leading spacing, offset 1.
    pub fn stable_diffusion(prediction: Prediction) -> Self {
        Self {
            num_train_timesteps: Some(1000),
            beta_start: Some(0.00085),
            beta_end: Some(0.012),
            beta_schedule: Some(BetaSchedule::ScaledLinear),
            prediction_type: Some(prediction),
            timestep_spacing: Some(TimestepSpacing::Leading),
            steps_offset: Some(1),
            set_alpha_to_one: Some(false),
            skip_prk_steps: Some(true),
            clip_sample: Some(false),
            ..Self::default()
        }
    }

    /// What diffusers' `StableDiffusionPipeline` (1.x and 2.x, not SDXL) makes of a folder's
    /// scheduler configuration when it loads: `steps_offset` becomes 1 where the scheduler's class
    /// has that field, and a `clip_sample` that is on becomes off.
    #[must_use]
    pub fn in_stable_diffusion_pipeline(mut self) -> Self {
        let class = self.class_name.as_deref().unwrap_or("PNDMScheduler");
        // `getattr(config, "steps_offset", 1)`: of the classes here only these lack the field.
        if !matches!(class, "DPMSolverSinglestepScheduler" | "IPNDMScheduler") {
            self.steps_offset = Some(1);
        }
        let clips_by_default = matches!(class, "DDIMScheduler" | "DDPMScheduler");
        if self.clip_sample.unwrap_or(clips_by_default) {
            self.clip_sample = Some(false);
        }
        self
    }

    /// Number of training steps, 1000 if absent.
    pub fn num_train_timesteps(&self) -> usize {
        self.trained_betas
            .as_ref()
            .map_or(self.num_train_timesteps.unwrap_or(1000), Vec::len)
    }

    /// Whether the network was trained on a straight flow, by its scheduler's class, prediction or `use_flow_sigmas`.
    pub fn is_flow(&self) -> bool {
        let class = self.class_name.as_deref().unwrap_or_default();
        class.starts_with("FlowMatch")
            || self.prediction_type == Some(Prediction::Flow)
            || self.use_flow_sigmas == Some(true)
    }

    /// What the network predicts; if absent the velocity of a flow, else the noise.
    pub fn prediction(&self) -> Prediction {
        self.prediction_type.unwrap_or(match self.is_flow() {
            true => Prediction::Flow,
            false => Prediction::Epsilon,
        })
    }
}

/// Replaces `Infinity`, `-Infinity` and `NaN` outside of strings by `null`.
fn null_bare_words(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let mut in_string = false;
    while let Some(c) = rest.chars().next() {
        if !in_string
            && let Some(word) = ["-Infinity", "Infinity", "NaN"]
                .iter()
                .find(|w| rest.starts_with(**w))
        {
            out.push_str("null");
            rest = &rest[word.len()..];
            continue;
        }
        let mut taken = c.len_utf8();
        match c {
            '"' => in_string = !in_string,
            // An escaped character inside of a string, a quote perhaps, is taken with its backslash.
            '\\' if in_string => taken += rest[1..].chars().next().map_or(0, char::len_utf8),
            _ => {}
        }
        out.push_str(&rest[..taken]);
        rest = &rest[taken..];
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_diffusers_file_reads_with_its_bare_words_and_unknown_fields() {
        let text = r#"{
            "_class_name": "DPMSolverMultistepScheduler", "_diffusers_version": "0.42.1",
            "beta_end": 0.012, "beta_schedule": "scaled_linear", "lambda_min_clipped": -Infinity,
            "note": "NaN \" Infinity", "prediction_type": "v_prediction", "trained_betas": null,
            "timestep_spacing": "leading", "steps_offset": 1, "variance_type": null
        }"#;
        let config = SchedulerConfig::from_json(text).unwrap();
        assert_eq!(
            config.class_name.as_deref(),
            Some("DPMSolverMultistepScheduler")
        );
        assert_eq!(config.lambda_min_clipped, None);
        assert_eq!(config.prediction(), Prediction::V);
        assert_eq!(config.timestep_spacing, Some(TimestepSpacing::Leading));
        assert_eq!(config.num_train_timesteps(), 1000);
    }

    #[test]
    fn bare_words_inside_of_strings_stay() {
        assert_eq!(
            null_bare_words(r#"{"a\"": "NaN", "b": NaN}"#),
            r#"{"a\"": "NaN", "b": null}"#
        );
    }

    #[test]
    fn a_field_of_the_wrong_type_is_an_error_that_names_what_was_expected() {
        let error = SchedulerConfig::from_json(r#"{"beta_schedule": "cosine"}"#)
            .unwrap_err()
            .to_string();
        assert!(error.contains("scaled_linear"), "{error}");
    }

    #[test]
    fn the_pipeline_of_stable_diffusion_mends_old_files() {
        let old = SchedulerConfig {
            class_name: Some("DDIMScheduler".into()),
            ..Default::default()
        };
        let mended = old.in_stable_diffusion_pipeline();
        assert_eq!(
            (mended.steps_offset, mended.clip_sample),
            (Some(1), Some(false))
        );
    }
}
