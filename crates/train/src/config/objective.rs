//! `[objective]`: what a network learns.

use aquatint_diffusion::training::{LossWeight, Objective, TimestepSampling};
use aquatint_diffusion::{BetaSchedule, Prediction, SchedulerConfig, TimestepSpacing};
use serde::{Deserialize, Serialize};

use crate::TrainError;

/// What the network learns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ObjectiveConfig {
    /// What it predicts; epsilon, or what the model of `model.from` does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prediction: Option<Prediction>,
    /// How the noise levels are drawn.
    pub timesteps: TimestepSampling,
    /// What an error counts by noise level.
    pub loss_weight: LossWeight,
    /// Noise of whole channels, see [`Objective::new`].
    pub offset_noise: f64,
    /// Of a flow: how far its levels are moved towards noise, in training and in drawing; 1 for not, 3 is usual for
    /// large pictures (Esser et al. 2024).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shift: Option<f64>,
    /// Training steps T of the forward process; 1000, or those of `model.from`. So are the four below: Stable
    /// Diffusion's unless set, and for pixels those of Ho et al. 2020.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train_timesteps: Option<usize>,
    /// How its betas run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta_schedule: Option<BetaSchedule>,
    /// The first beta.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta_start: Option<f64>,
    /// The last beta.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta_end: Option<f64>,
    /// The last step keeps no signal (Lin et al. 2023).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zero_terminal_snr: Option<bool>,
}

impl Default for ObjectiveConfig {
    fn default() -> Self {
        Self {
            prediction: None,
            timesteps: TimestepSampling::Uniform,
            loss_weight: LossWeight::Uniform,
            offset_noise: 0.0,
            shift: None,
            train_timesteps: None,
            beta_schedule: None,
            beta_start: None,
            beta_end: None,
            zero_terminal_snr: None,
        }
    }
}

impl ObjectiveConfig {
    /// The forward process as a diffusers scheduler, which the trained model is sampled with; `base` is that of the
    /// model that the run starts from.
    pub fn scheduler(&self, base: Option<&SchedulerConfig>) -> SchedulerConfig {
        let continued = base.filter(|base| base.is_flow());
        if self
            .prediction
            .map_or(continued.is_some(), |p| p == Prediction::Flow)
        {
            let base = continued.cloned().unwrap_or_default();
            let steps = self.train_timesteps.or(base.num_train_timesteps);
            return SchedulerConfig {
                num_train_timesteps: Some(steps.unwrap_or(1000)),
                shift: self.shift.or(base.shift).or(base.flow_shift),
                flow_shift: None,
                prediction_type: Some(Prediction::Flow),
                ..base
            };
        }
        let base = base.cloned().unwrap_or_else(|| SchedulerConfig {
            timestep_spacing: Some(TimestepSpacing::Leading),
            set_alpha_to_one: Some(false),
            clip_sample: Some(false),
            steps_offset: Some(1),
            num_train_timesteps: Some(1000),
            beta_start: Some(0.00085),
            beta_end: Some(0.012),
            beta_schedule: Some(BetaSchedule::ScaledLinear),
            prediction_type: Some(Prediction::Epsilon),
            ..SchedulerConfig::default()
        });
        let zero = self.zero_terminal_snr.or(base.rescale_betas_zero_snr);
        SchedulerConfig {
            num_train_timesteps: self.train_timesteps.or(base.num_train_timesteps),
            beta_start: self.beta_start.or(base.beta_start),
            beta_end: self.beta_end.or(base.beta_end),
            beta_schedule: self.beta_schedule.or(base.beta_schedule),
            prediction_type: self.prediction.or(base.prediction_type),
            rescale_betas_zero_snr: zero,
            // Without signal at the last step a run must begin there (Lin et al. 2023).
            timestep_spacing: match zero {
                Some(true) => Some(TimestepSpacing::Trailing),
                _ => base.timestep_spacing,
            },
            ..base
        }
    }

    /// The objective.
    ///
    /// # Errors
    /// As [`Objective::new`].
    pub fn build(&self, base: Option<&SchedulerConfig>) -> Result<Objective, TrainError> {
        self.check_process(self.scheduler(base).is_flow())?;
        Ok(Objective::new(
            &self.scheduler(base),
            self.timesteps,
            self.loss_weight,
            self.offset_noise,
        )?)
    }

    /// Refuses what only the other process has.
    fn check_process(&self, flow: bool) -> Result<(), TrainError> {
        if !flow && self.shift.is_some() {
            let expected = "absent: only a flow is shifted (prediction = \"flow_prediction\")";
            return Err(TrainError::setting("objective.shift", "set", expected));
        }
        let of_chains = [
            ("objective.beta_schedule", self.beta_schedule.is_some()),
            ("objective.beta_start", self.beta_start.is_some()),
            ("objective.beta_end", self.beta_end.is_some()),
            (
                "objective.zero_terminal_snr",
                self.zero_terminal_snr.is_some(),
            ),
        ];
        match of_chains.into_iter().find(|(_, set)| flow && *set) {
            Some((key, _)) => {
                let expected = "absent: a flow has no betas";
                Err(TrainError::setting(key, "set", expected))
            }
            None => Ok(()),
        }
    }
}
