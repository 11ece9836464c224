//! A run, laid out before it starts: the noise levels that it visits and what it will cost.

use crate::beta::NoiseSchedule;
use crate::config::SchedulerConfig;
use crate::error::Error;
use crate::flow::FlowSchedule;
use crate::level::Level;
use crate::prediction::Prediction;
use crate::sampler::{Frame, Grid, OnFlows, SAMPLERS, SamplerInfo};
use crate::schedule::{self, ModelSigmas, ScheduleInfo, ScheduleOptions, SearchedLevels};
use crate::spacing::{Curve, Multistep};

/// The noise levels of one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Where it starts; the network is called here.
    pub from: Level,
    /// Where it ends.
    pub to: Level,
}

impl Step {
    /// Whether the noise stays as it is, as where two visited times round to the same training step.
    pub fn is_still(&self) -> bool {
        self.from.sigma == self.to.sigma && self.from.alpha == self.to.alpha
    }
}

/// Which sigmas a run visits.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub enum Sigmas<'a> {
    /// What the scheduler configuration says, its `use_*_sigmas` flags included.
    #[default]
    Config,
    /// The sigmas of the training steps, whatever the configuration's flags say.
    Normal,
    /// The curve of Karras et al. (2022), as the sampler's diffusers class lays it if it has one.
    Karras,
    /// Evenly in the logarithm, as the sampler's diffusers class lays it if it has one.
    Exponential,
    /// Quantiles of a Beta distribution, as the sampler's diffusers class lays it if it has one.
    Beta,
    /// These, falling; one more than there are steps. Noise over signal, or for a flow its share of noise.
    Given(&'a [f64]),
}

/// A run of a sampler, ready to start.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The sampler.
    pub info: &'static SamplerInfo,
    /// What the network predicts.
    pub prediction: Prediction,
    /// The configuration that the plan was made from.
    pub config: SchedulerConfig,
    /// The network's noise schedule.
    pub schedule: NoiseSchedule,
    /// The flow, if the network was trained on one.
    pub flow: Option<FlowSchedule>,
    /// How the latents of the run are scaled.
    pub frame: Frame,
    /// The initial latent is standard normal noise times this.
    pub init_noise_sigma: f64,
    /// The steps, from noise to picture.
    pub steps: Vec<Step>,
    /// Number of steps before [`with_strength`](Self::with_strength) left some out; rules for short
    /// runs look at this.
    pub full_len: usize,
    /// Training steps between two visited ones where the levels are training steps, else 0.
    pub stride: usize,
}

impl Plan {
    /// Lays out `steps` steps of a sampler on a scheduler configuration.
    ///
    /// With [`Sigmas::Config`] this is what `TheScheduler.from_config(config).set_timesteps(steps)`
    /// gives, where `TheScheduler` is the diffusers class that the sampler stands for.
    ///
    /// # Errors
    /// Too few or too many steps; a configuration that the sampler cannot follow; sigmas that do not
    /// fall.
    pub fn new(
        info: &'static SamplerInfo,
        config: &SchedulerConfig,
        steps: usize,
        sigmas: Sigmas<'_>,
    ) -> Result<Self, Error> {
        let flow = flow_of(info, config)?;
        let schedule = info.noise_schedule(config)?;
        let most = info.most_steps(config, schedule.len());
        if steps == 0 || steps > most {
            let hint = if steps == 0 {
                "ask for at least one"
            } else {
                "ask for fewer, or take another sampler"
            };
            return Err(Error::Steps {
                steps,
                sampler: info.name,
                most,
                hint,
            });
        }
        let layout = Layout {
            info,
            config,
            schedule: &schedule,
            flow,
            frame: frame_on(info, flow),
            n: steps,
        };
        let frame = layout.frame;
        let (steps, stride) = match sigmas {
            Sigmas::Config => layout.own(Curve::of(config))?,
            Sigmas::Normal => layout.own(Curve::Training)?,
            Sigmas::Karras => layout.curve(Curve::Karras, "karras")?,
            Sigmas::Exponential => layout.curve(Curve::Exponential, "exponential")?,
            Sigmas::Beta => layout.curve(Curve::Beta, "beta")?,
            Sigmas::Given(sigmas) => (layout.given(sigmas)?, 0),
        };
        let prediction = config.prediction();
        if prediction == Prediction::Epsilon && steps.iter().any(|s| s.from.alpha == 0.0) {
            return Err(Error::Unsupported {
                found:
                    "epsilon prediction with zero terminal SNR and a step where no signal is left"
                        .into(),
                sampler: info.name,
                hint: "such models predict v; set prediction_type to v_prediction",
            });
        }
        let init_noise_sigma = match flow {
            // Pure noise in the flow's own form, whatever form the run has.
            Some(_) => steps.first().map_or(1.0, |s| s.from.alpha + s.from.sigma),
            None => init_noise_sigma(info, config, &steps),
        };
        Ok(Self {
            info,
            prediction,
            config: config.clone(),
            schedule,
            flow,
            frame,
            init_noise_sigma,
            full_len: steps.len(),
            steps,
            stride,
        })
    }

    /// Lays out `steps` steps of a sampler on a schedule of [`SCHEDULES`](crate::schedule::SCHEDULES).
    ///
    /// A schedule that the sampler's diffusers class has is laid as that class lays it, as long as its
    /// options are the defaults; `searched` says whose published levels `align_your_steps` takes.
    ///
    /// # Errors
    /// As [`new`](Self::new), and those of the schedule.
    pub fn on_schedule(
        info: &'static SamplerInfo,
        config: &SchedulerConfig,
        steps: usize,
        schedule: &ScheduleInfo,
        searched: SearchedLevels,
        options: &ScheduleOptions,
    ) -> Result<Self, Error> {
        match schedule.in_diffusers {
            // A class without the option would drop it; the schedule's own levels serve it then.
            Some(sigmas)
                if *options == ScheduleOptions::default()
                    && (info.has_curves() || matches!(sigmas, Sigmas::Normal)) =>
            {
                Self::new(info, config, steps, sigmas)
            }
            _ => {
                let (noise_schedule, table);
                let model = match flow_of(info, config)? {
                    Some(flow) => {
                        table = flow.table();
                        ModelSigmas::of_flow(&table, flow)
                    }
                    None => {
                        noise_schedule = info.noise_schedule(config)?;
                        ModelSigmas::from(&noise_schedule)
                    }
                };
                let model = ModelSigmas { searched, ..model };
                let sigmas = schedule.sigmas(&model, steps, options)?;
                Self::new(info, config, steps, Sigmas::Given(&sigmas))
            }
        }
    }

    /// Leaves out the first steps so that a run starts from a noised picture: `strength` 1 keeps all,
    /// 0.5 the last half, as diffusers' image-to-image pipelines count. [`noised`](Self::noised)
    /// gives the start.
    ///
    /// # Errors
    /// A strength outside of 0 to 1, or so small that no step is left.
    pub fn with_strength(mut self, strength: f64) -> Result<Self, Error> {
        let keep = (self.full_len as f64 * strength) as usize;
        if !(0.0..=1.0).contains(&strength) || keep == 0 {
            return Err(Error::Option {
                option: "denoising strength",
                found: strength,
                expected: "0 to 1, and at least 1 / steps",
            });
        }
        self.steps.drain(..self.full_len - keep);
        Ok(self)
    }

    /// The initial latent of a run from pure noise, `noise · init_noise_sigma`.
    pub fn initial(&self, noise: &[f32]) -> Vec<f32> {
        let scale = self.init_noise_sigma as f32;
        noise.iter().map(|n| n * scale).collect()
    }

    /// The initial latent of a run from a picture: `clean` noised to the first level.
    pub fn noised(&self, clean: &[f32], noise: &[f32]) -> Vec<f32> {
        self.steps
            .first()
            .map_or_else(|| clean.to_vec(), |step| step.from.add_noise(clean, noise))
    }

    /// Number of steps.
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Whether there is nothing to do. Never so for a plan made by [`new`](Self::new).
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Noise over signal at the start of each step and at the end of the last.
    pub fn sigmas(&self) -> Vec<f64> {
        let end = self.steps.last().map(|step| step.to.ratio());
        self.steps
            .iter()
            .map(|step| step.from.ratio())
            .chain(end)
            .collect()
    }

    /// Number of network calls of the whole run (a batch of prompts counts once): exact, except for
    /// the adaptive sampler, where it is a usual number.
    pub fn network_calls(&self) -> usize {
        (self.info.calls)(self)
    }

    /// Whether the run ends with no noise left.
    pub fn ends_clean(&self) -> bool {
        self.steps.last().is_some_and(|step| step.to.is_clean())
    }

    /// The level with this noise over signal, in the run's own form, the time interpolated. For a run in a flow's own
    /// form, that with this share of noise.
    pub fn level_at(&self, sigma: f64) -> Level {
        level_at(self.frame, self.flow, &self.schedule, sigma)
    }

    /// The smallest sigma of training, as [`level_at`](Self::level_at) takes it.
    pub fn sigma_min(&self) -> f64 {
        match self.flow {
            Some(flow) if self.frame == Frame::Straight => flow.sigma(1.0 / flow.train() as f64),
            _ => self.schedule.sigma_min(),
        }
    }
}

/// See [`Plan::level_at`].
fn level_at(
    frame: Frame,
    flow: Option<FlowSchedule>,
    schedule: &NoiseSchedule,
    sigma: f64,
) -> Level {
    match flow {
        Some(flow) if frame == Frame::Straight => Level::straight(sigma, flow.timestep(sigma)),
        Some(flow) => frame.level(sigma, flow.timestep(sigma / (1.0 + sigma))),
        None => frame.level(sigma, schedule.sigma_to_timestep(sigma)),
    }
}

/// The flow of a configuration, once it is sure that the sampler can follow it.
fn flow_of(
    info: &'static SamplerInfo,
    config: &SchedulerConfig,
) -> Result<Option<FlowSchedule>, Error> {
    if !config.is_flow() {
        (info.check)(info, config)?;
        return Ok(None);
    }
    if let OnFlows::Unfit(why) = info.flows {
        let fitting = SAMPLERS
            .iter()
            .filter(|row| !matches!(row.flows, OnFlows::Unfit(_)));
        return Err(Error::NotForFlows {
            sampler: info.name,
            why,
            fitting: fitting.map(|row| row.name).collect::<Vec<_>>().join(", "),
        });
    }
    // What a class refuses otherwise it refuses here too.
    let plain = SchedulerConfig {
        use_flow_sigmas: None,
        ..config.clone()
    };
    if info.grid != Grid::Lcm {
        (info.check)(info, &plain)?;
    }
    FlowSchedule::from_config(config).map(Some)
}

/// The form of a sampler's latents.
fn frame_on(info: &SamplerInfo, flow: Option<FlowSchedule>) -> Frame {
    match (flow, info.flows) {
        (None, _) => info.frame,
        (Some(_), OnFlows::Exploding) => Frame::Exploding,
        (Some(_), _) => Frame::Straight,
    }
}

/// What a layout is made from.
pub(crate) struct Layout<'a> {
    pub info: &'static SamplerInfo,
    pub config: &'a SchedulerConfig,
    pub schedule: &'a NoiseSchedule,
    pub flow: Option<FlowSchedule>,
    pub frame: Frame,
    pub n: usize,
}

impl Layout<'_> {
    /// The steps as the sampler's diffusers class lays them, and their stride.
    fn own(&self, curve: Curve) -> Result<(Vec<Step>, usize), Error> {
        // A class without curves drops the option in from_config.
        let curve = if self.info.has_curves() {
            curve
        } else {
            Curve::Training
        };
        let (steps, stride) = match self.flow {
            Some(flow) => (self.own_flow(flow, curve), 0),
            None => self.info.lay(self, curve),
        };
        let ratios = steps.iter().map(|step| step.from.ratio());
        let falls = ratios.clone().zip(ratios.skip(1)).all(|(a, b)| b <= a);
        let is_number = |level: Level| level.alpha.is_finite() && level.sigma.is_finite();
        let is_step = |s: &Step| is_number(s.from) && is_number(s.to) && s.from.sigma > 0.0;
        if falls && steps.iter().all(is_step) {
            return Ok((steps, stride));
        }
        Err(Error::Config {
            found: "numbers that lay sigmas which rise, vanish, or are not finite".into(),
            expected: "sigma_min and sigma_max above 0, the second larger",
        })
    }

    /// The steps of a flow as the sampler's diffusers class lays them.
    fn own_flow(&self, flow: FlowSchedule, curve: Curve) -> Vec<Step> {
        let grid = match self.info.grid {
            // The curves of the multistep solvers' classes are those of betas.
            Grid::Multistep(kind) if curve == Curve::Training => {
                flow.multistep_grid(kind == Multistep::UniPc, self.n)
            }
            _ => flow.grid(self.config, curve, self.n),
        };
        self.flow_steps(flow, &grid.sigmas, &grid.timesteps)
    }

    /// Steps between consecutive shares of noise.
    fn flow_steps(&self, flow: FlowSchedule, sigmas: &[f64], times: &[f64]) -> Vec<Step> {
        let level = |i: usize| {
            let share = match self.info.flows {
                OnFlows::Straight | OnFlows::Unfit(_) => sigmas[i],
                OnFlows::LogSnr | OnFlows::Exploding => flow.with_some_signal(sigmas[i]),
            };
            let time = match times.get(i) {
                Some(time) if share == sigmas[i] => *time,
                _ => flow.timestep(share),
            };
            match self.frame {
                Frame::Exploding => Level::exploding(share / (1.0 - share), time),
                _ => Level::straight(share, time),
            }
        };
        (0..self.n)
            .map(|i| Step {
                from: level(i),
                to: level(i + 1),
            })
            .collect()
    }

    /// Steps on a curve that was asked for by name: laid by the sampler's class if it can, else as
    /// k-diffusion does, over all of the training sigmas.
    fn curve(&self, curve: Curve, name: &str) -> Result<(Vec<Step>, usize), Error> {
        if self.info.has_curves() {
            return self.own(curve);
        }
        let table;
        let model = match self.flow {
            Some(flow) => {
                table = flow.table();
                ModelSigmas::of_flow(&table, flow)
            }
            None => ModelSigmas::from(self.schedule),
        };
        let sigmas = schedule::find(name)?.sigmas(&model, self.n, &ScheduleOptions::default())?;
        Ok((self.given(&sigmas)?, 0))
    }

    /// Steps over given sigmas.
    fn given(&self, sigmas: &[f64]) -> Result<Vec<Step>, Error> {
        let bad = |found: String| Err(Error::Sigmas { found });
        if sigmas.len() != self.n + 1 {
            return bad(format!("{} values for {} steps", sigmas.len(), self.n));
        }
        if let Some(i) = sigmas.iter().position(|s| !s.is_finite() || *s < 0.0) {
            return bad(format!("sigma {} at {i}", sigmas[i]));
        }
        if let Some(i) = sigmas.windows(2).position(|pair| pair[1] >= pair[0]) {
            return bad(format!(
                "sigma {} after {} at {}",
                sigmas[i + 1],
                sigmas[i],
                i + 1
            ));
        }
        if let Some(flow) = self.flow {
            if sigmas[0] > 1.0 {
                return bad(format!(
                    "sigma {} at 0 for a flow, which goes to 1",
                    sigmas[0]
                ));
            }
            let times: Vec<f64> = sigmas.iter().map(|&s| flow.timestep(s)).collect();
            return Ok(self.flow_steps(flow, sigmas, &times));
        }
        let times: Vec<f64> = sigmas[..self.n]
            .iter()
            .map(|&s| self.schedule.sigma_to_timestep(s))
            .collect();
        Ok(self.steps(sigmas, &times))
    }

    /// Steps between consecutive training steps, to a last level.
    pub fn chain(&self, times: &[usize], last: Level) -> Vec<Step> {
        let to = |i: usize| times.get(i + 1).map_or(last, |&t| self.schedule.level(t));
        times
            .iter()
            .enumerate()
            .map(|(i, &t)| Step {
                from: self.schedule.level(t),
                to: to(i),
            })
            .collect()
    }

    /// Steps between consecutive sigmas in the sampler's own form.
    pub fn steps(&self, sigmas: &[f64], times: &[f64]) -> Vec<Step> {
        let frame = self.info.frame;
        let level = |i: usize| {
            let time = times
                .get(i)
                .copied()
                .unwrap_or_else(|| self.schedule.sigma_to_timestep(sigmas[i]));
            frame.level(sigmas[i], time)
        };
        (0..self.n)
            .map(|i| Step {
                from: level(i),
                to: level(i + 1),
            })
            .collect()
    }
}

/// diffusers' `init_noise_sigma`.
fn init_noise_sigma(info: &SamplerInfo, config: &SchedulerConfig, steps: &[Step]) -> f64 {
    use crate::config::TimestepSpacing::{Leading, Linspace};
    if info.frame == Frame::Preserving {
        return 1.0;
    }
    let max = steps.iter().map(|step| step.from.sigma).fold(0.0, f64::max);
    match config.timestep_spacing.unwrap_or(Linspace) {
        // Where the first step is not the noisiest of training, the picture's own variance is added.
        Leading => (max * max + 1.0).sqrt(),
        _ => max,
    }
}
