//! Straight flows (rectified flow; Liu et al. 2022, Esser et al. 2024): `x = (1 - sigma) · x0 + sigma · noise`.
//!
//! Here a sigma is the share of noise, 0 to 1, and time is sigma itself, told to a network in training steps. What
//! families differ in is how steps are moved towards noise, the shift.

use crate::config::{FlowSpacing, SchedulerConfig, TimeShift};
use crate::error::Error;
use crate::math::linspace;
use crate::spacing::{Curve, Grid, single};

/// How the steps of a flow model lie.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FlowSchedule {
    /// Training steps, the unit of the time that a network is told.
    train: usize,
    /// A time `t` becomes `shift · t / (1 + (shift - 1) · t)`.
    shift: f64,
    /// Whether the shift follows the picture's size; the ends of training then are not shifted.
    dynamic: bool,
    /// Where the last step starts, if the schedule is stretched to that.
    terminal: Option<f64>,
    spacing: FlowSpacing,
}

impl FlowSchedule {
    /// The flow of a scheduler configuration.
    ///
    /// # Errors
    /// Numbers that make no schedule, or an option that only other families have.
    pub fn from_config(config: &SchedulerConfig) -> Result<Self, Error> {
        let bad = |found: String, expected| Err(Error::Config { found, expected });
        let train = config.num_train_timesteps();
        if !(2..=100_000).contains(&train) {
            return bad(format!("num_train_timesteps {train}"), "2 to 100000");
        }
        if config.invert_sigmas == Some(true) {
            return Err(Error::Unsupported {
                found: "invert_sigmas: true".into(),
                sampler: "the flow schedule",
                hint: "it is meant for models whose time runs from picture to noise",
            });
        }
        let dynamic = config.use_dynamic_shifting == Some(true);
        let shift = match dynamic {
            true => dynamic_shift(config),
            false => config.shift.or(config.flow_shift).unwrap_or(1.0),
        };
        if !(shift.is_finite() && shift > 0.0) {
            return bad(format!("a shift of {shift}"), "a number above 0");
        }
        let terminal = config.shift_terminal.filter(|t| *t != 0.0);
        if let Some(terminal) = terminal.filter(|t| !(0.0..1.0).contains(t)) {
            return bad(
                format!("shift_terminal {terminal}"),
                "0 to 1, the latter excluded",
            );
        }
        Ok(Self {
            train,
            shift,
            dynamic,
            terminal,
            spacing: config.flow_spacing,
        })
    }

    /// Training steps.
    pub fn train(&self) -> usize {
        self.train
    }

    /// The sigma of a time from 0 to 1.
    pub fn sigma(&self, time: f64) -> f64 {
        self.shift * time / (1.0 + (self.shift - 1.0) * time)
    }

    /// The time in training steps that a network is told at a sigma.
    pub fn timestep(&self, sigma: f64) -> f64 {
        sigma * self.train as f64
    }

    /// The sigmas of the training steps, rising to 1.
    pub fn table(&self) -> Vec<f64> {
        let train = self.train as f64;
        (1..=self.train)
            .map(|t| self.sigma(t as f64 / train))
            .collect()
    }

    /// A first sigma of 1 for samplers that need some signal: that of time 1 - 1e-4, as in ComfyUI.
    pub(crate) fn with_some_signal(&self, sigma: f64) -> f64 {
        // A schedule's curve may miss 1 by rounding.
        match sigma > 1.0 - 1e-9 {
            true => self.sigma(1.0 - 1e-4),
            false => sigma,
        }
    }

    /// The steps of diffusers' FlowMatchEulerDiscrete and FlowMatchHeunDiscrete.
    pub(crate) fn grid(&self, config: &SchedulerConfig, curve: Curve, n: usize) -> Grid {
        let mut sigmas = match self.spacing {
            FlowSpacing::Training => {
                // The ends are those of the shifted table, which then is shifted once more.
                let end = |time: f64| match self.dynamic {
                    true => single(time),
                    false => single(self.sigma(time)),
                };
                linspace(end(1.0), end(1.0 / self.train as f64), n)
            }
            FlowSpacing::Even => linspace(1.0, 1.0 / n as f64, n),
        };
        sigmas.iter_mut().for_each(|s| *s = self.sigma(*s));
        if let Some(terminal) = self.terminal {
            stretch(&mut sigmas, terminal);
        }
        if curve != Curve::Training {
            let max = config.sigma_max.unwrap_or(sigmas[0]);
            let min = config.sigma_min.unwrap_or(sigmas[n - 1]);
            sigmas = curve.sigmas(min, max, n);
        }
        sigmas.iter_mut().for_each(|s| *s = single(*s));
        let timesteps = sigmas.iter().map(|s| single(self.timestep(*s))).collect();
        sigmas.push(0.0);
        Grid { sigmas, timesteps }
    }

    /// The steps of diffusers' multistep solvers with `use_flow_sigmas`, whose times are whole training steps.
    /// UniPC's begin at the very end of training; the others' leave the last training step out.
    ///
    /// (DEIS would end at its last step's own sigma, which leaves a noisy picture; here it ends at none as the others.)
    pub(crate) fn multistep_grid(&self, unipc: bool, n: usize) -> Grid {
        let least = 1.0 / self.train as f64;
        let mut sigmas: Vec<f64> = match unipc {
            true => linspace(1.0, least, n + 1)[..n].to_vec(),
            false => linspace(1.0, least, n + 1)[1..]
                .iter()
                .rev()
                .map(|alpha| 1.0 - alpha)
                .collect(),
        };
        sigmas.iter_mut().for_each(|s| *s = self.sigma(*s));
        if unipc {
            if let Some(terminal) = self.terminal {
                stretch(&mut sigmas, terminal);
            }
            if (sigmas[0] - 1.0).abs() < 1e-6 {
                sigmas[0] -= 1e-6;
            }
        }
        let timesteps = sigmas
            .iter()
            .map(|s| (self.timestep(*s) + 1e-9).trunc())
            .collect();
        sigmas.push(0.0);
        Grid {
            sigmas: sigmas.into_iter().map(single).collect(),
            timesteps,
        }
    }
}

/// Stretches falling sigmas so that the last becomes `terminal`.
fn stretch(sigmas: &mut [f64], terminal: f64) {
    let Some(last) = sigmas.last() else { return };
    let factor = (1.0 - last) / (1.0 - terminal);
    if factor > 0.0 {
        sigmas
            .iter_mut()
            .for_each(|s| *s = 1.0 - (1.0 - *s) / factor);
    }
}

/// The shift for a picture's number of tokens, a line between two sizes (Esser et al. 2024, section 5.3.2).
fn dynamic_shift(config: &SchedulerConfig) -> f64 {
    let (low, high) = (
        config.base_image_seq_len.unwrap_or(256) as f64,
        config.max_image_seq_len.unwrap_or(4096) as f64,
    );
    let (base, max) = (
        config.base_shift.unwrap_or(0.5),
        config.max_shift.unwrap_or(1.15),
    );
    // Of a model whose picture has no size yet, the largest that it was trained on.
    let tokens = config.image_tokens.map_or(high, |n| n as f64);
    let slope = (max - base) / (high - low);
    let mu = tokens * slope + (base - slope * low);
    match config.time_shift_type.unwrap_or_default() {
        TimeShift::Exponential => mu.exp(),
        TimeShift::Linear => mu,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: &str) -> SchedulerConfig {
        SchedulerConfig::from_json(json).unwrap()
    }

    #[test]
    fn a_shift_keeps_the_ends_and_favours_noise() {
        let flow = FlowSchedule::from_config(&config(r#"{"shift": 3.0}"#)).unwrap();
        assert_eq!((flow.sigma(0.0), flow.sigma(1.0)), (0.0, 1.0));
        assert_eq!(flow.sigma(0.5), 0.75);
        let table = flow.table();
        assert_eq!((table.len(), table[999]), (1000, 1.0));
    }

    #[test]
    fn the_shift_follows_the_size() {
        let text = r#"{"use_dynamic_shifting": true, "base_shift": 0.5, "max_shift": 1.15}"#;
        let at = |tokens| {
            let config = SchedulerConfig {
                image_tokens: Some(tokens),
                ..config(text)
            };
            FlowSchedule::from_config(&config).unwrap().shift.ln()
        };
        assert!((at(256) - 0.5).abs() < 1e-12);
        assert!((at(4096) - 1.15).abs() < 1e-12);
        assert!((at(1024) - 0.63).abs() < 1e-12);
    }

    #[test]
    fn numbers_that_make_no_flow_are_refused() {
        for text in [
            r#"{"shift": 0.0}"#,
            r#"{"shift": -1.0}"#,
            r#"{"num_train_timesteps": 1}"#,
            r#"{"shift_terminal": 1.5}"#,
            r#"{"invert_sigmas": true}"#,
            r#"{"use_dynamic_shifting": true, "base_image_seq_len": 4096}"#,
        ] {
            assert!(FlowSchedule::from_config(&config(text)).is_err(), "{text}");
        }
    }
}
