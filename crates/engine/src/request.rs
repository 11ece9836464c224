//! What a picture is asked for with.

use serde::Serialize;

use crate::EngineError;

/// Smallest and largest picture side, in pixels.
pub const SIDES: std::ops::RangeInclusive<u32> = 64..=4096;
/// Most steps of a run.
pub const MAX_STEPS: u32 = 1000;
/// Most pictures of one batch.
pub const MAX_BATCH: u32 = 64;

/// Fewest and most tokens that T5 reads: the end token needs one, and the families were trained on 512.
pub const T5_TOKENS: std::ops::RangeInclusive<u32> = 2..=512;

/// Whether the decoder works in tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Tiling {
    /// When a whole decode would take much memory.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// How prompts are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PromptSyntax {
    /// `(word:1.2)`, `((word))`, `[word]`, `BREAK`, chunks of 75 tokens, as AUTOMATIC1111.
    #[default]
    Weighted,
    /// The text as it is, cut at 77 tokens, as diffusers.
    Plain,
}

/// Skip-layer guidance (Stable Diffusion 3.5): layers to leave out, how strongly, and in which part of the run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SkipLayers {
    /// The transformer's layers, from 0.
    pub layers: Vec<usize>,
    /// How strongly.
    pub scale: f64,
    /// It acts at the steps after this share of them,
    pub start: f64,
    /// and before this.
    pub stop: f64,
}

impl SkipLayers {
    /// Layers with the strength and part of the run that diffusers takes.
    pub fn new(layers: Vec<usize>) -> Self {
        SkipLayers {
            layers,
            scale: 2.8,
            start: 0.01,
            stop: 0.2,
        }
    }
}

/// Everything that decides a picture, given a model. Two runs of one request give the same bits.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Request {
    /// What to draw.
    pub prompt: String,
    /// What to stay away from; `None` differs from an empty text for SDXL.
    pub negative: Option<String>,
    /// Pixels, a multiple of 8.
    pub width: u32,
    /// Pixels, a multiple of 8.
    pub height: u32,
    /// Sampler steps.
    pub steps: u32,
    /// Classifier-free guidance scale; at most 1 turns guidance off.
    pub guidance: f64,
    /// Rescale of guided predictions (Lin et al., 2023), 0 to 1.
    pub guidance_rescale: f64,
    /// Noise levels, lowest and highest, between which guidance acts; `None` is everywhere.
    pub guidance_interval: Option<(f64, f64)>,
    /// Scale of classifier-free guidance for models that are told their guidance scale, or none (FLUX): above 1 the
    /// network runs on the negative prompt too.
    pub true_guidance: Option<f64>,
    /// Skip-layer guidance, for models that have it.
    pub skip_layers: Option<SkipLayers>,
    /// Name of the sampler.
    pub sampler: String,
    /// Name of the schedule; `None` is the sampler's own spacing.
    pub schedule: Option<String>,
    /// Seed of the first picture.
    pub seed: u64,
    /// Name of the generator of noise.
    pub rng: String,
    /// Pictures of one run, with seeds `seed`, `seed + 1`, ...
    pub batch: u32,
    /// Layer of the text encoder, counted from the end (1 is the last).
    pub clip_skip: Option<u32>,
    /// Tokens that T5 reads, padding included; `None` is the family's own number.
    pub t5_tokens: Option<u32>,
    /// Noise added back by stochastic samplers that have the choice.
    pub eta: Option<f64>,
    /// How the decoder works.
    pub vae_tiling: Tiling,
    /// How prompts are read.
    pub prompt_syntax: PromptSyntax,
    /// Number of the class, for models that are told one.
    pub class: Option<u32>,
}

impl Default for Request {
    /// A request for nothing in particular; a model's own defaults are in its spec.
    fn default() -> Self {
        Request {
            prompt: String::new(),
            negative: None,
            width: 512,
            height: 512,
            steps: 20,
            guidance: 7.5,
            guidance_rescale: 0.0,
            guidance_interval: None,
            true_guidance: None,
            skip_layers: None,
            sampler: "euler".into(),
            schedule: None,
            seed: 0,
            rng: "torch-cpu".into(),
            batch: 1,
            clip_skip: None,
            t5_tokens: None,
            eta: None,
            vae_tiling: Tiling::Auto,
            prompt_syntax: PromptSyntax::Weighted,
            class: None,
        }
    }
}

impl Request {
    /// Checks what does not depend on the model.
    ///
    /// # Errors
    /// [`EngineError::Usage`] that names the value, what is possible, and what to do.
    pub fn check(&self) -> Result<(), EngineError> {
        check_side("width", self.width)?;
        check_side("height", self.height)?;
        self.check_sampling()
    }

    /// As [`Request::check`], but for the sides: those depend on the model's kind.
    ///
    /// # Errors
    /// As [`Request::check`].
    pub fn check_sampling(&self) -> Result<(), EngineError> {
        if self.steps == 0 || self.steps > MAX_STEPS {
            return usage(
                format!("steps is {}, expected 1 to {MAX_STEPS}", self.steps),
                "20 to 30 steps suit most samplers".into(),
            );
        }
        if !(0.0..=100.0).contains(&self.guidance) {
            return usage(
                format!("guidance is {}, expected 0 to 100", self.guidance),
                "7.5 is usual for Stable Diffusion 1.x".into(),
            );
        }
        if let Some(scale) = self.true_guidance
            && !(0.0..=100.0).contains(&scale)
        {
            return usage(
                format!("true guidance is {scale}, expected 0 to 100"),
                "2 to 4 is usual for FLUX.1 dev".into(),
            );
        }
        if let Some(tokens) = self.t5_tokens
            && !T5_TOKENS.contains(&tokens)
        {
            let (least, most) = (T5_TOKENS.start(), T5_TOKENS.end());
            return usage(
                format!("T5 tokens are {tokens}, expected {least} to {most}"),
                "77, 256 and 512 are usual".into(),
            );
        }
        if !(0.0..=1.0).contains(&self.guidance_rescale) {
            return usage(
                format!(
                    "guidance rescale is {}, expected 0 to 1",
                    self.guidance_rescale
                ),
                "0.7 is usual for models without a shifted schedule".into(),
            );
        }
        if let Some((low, high)) = self.guidance_interval
            && !(low >= 0.0 && low <= high)
        {
            return usage(
                format!(
                    "the guidance interval is {low} to {high}, expected two noise levels, the lower first"
                ),
                "noise levels of Stable Diffusion go from 0 to about 15".into(),
            );
        }
        if let Some(skip) = &self.skip_layers
            && !((0.0..=100.0).contains(&skip.scale)
                && (0.0..=1.0).contains(&skip.start)
                && (skip.start..=1.0).contains(&skip.stop)
                && !skip.layers.is_empty())
        {
            return usage(
                format!(
                    "skip-layer guidance is {} of layers {:?} from {} to {}, expected 0 to 100 of one layer or more, from and to between 0 and 1, the lower first",
                    skip.scale, skip.layers, skip.start, skip.stop
                ),
                "2.8 of layers 7, 8 and 9 from 0.01 to 0.2 is usual for Stable Diffusion 3.5 Medium".into(),
            );
        }
        if let Some(eta) = self.eta
            && !(0.0..=1.0).contains(&eta)
        {
            return usage(
                format!("eta is {eta}, expected 0 to 1"),
                "0 is deterministic, 1 adds all noise back".into(),
            );
        }
        if self.batch == 0 || self.batch > MAX_BATCH {
            return usage(
                format!("batch is {}, expected 1 to {MAX_BATCH}", self.batch),
                "use --count for more pictures, one after another".into(),
            );
        }
        if let Some(skip) = self.clip_skip
            && !(1..=12).contains(&skip)
        {
            return usage(
                format!("clip skip is {skip}, expected 1 to 12"),
                "1 is the last layer, 2 the one before it".into(),
            );
        }
        Ok(())
    }
}

impl Request {
    /// The seed of each picture of the batch.
    pub fn seeds(&self) -> Vec<u64> {
        (0..u64::from(self.batch))
            .map(|i| self.seed.wrapping_add(i))
            .collect()
    }
}

fn check_side(name: &str, side: u32) -> Result<(), EngineError> {
    if SIDES.contains(&side) && side.is_multiple_of(8) {
        return Ok(());
    }
    let near = (side.clamp(*SIDES.start(), *SIDES.end()) + 4) / 8 * 8;
    usage(
        format!(
            "{name} is {side}, expected a multiple of 8 from {} to {}",
            SIDES.start(),
            SIDES.end()
        ),
        format!("try {near}"),
    )
}

fn usage<T>(message: String, hint: String) -> Result<T, EngineError> {
    Err(EngineError::Usage { message, hint })
}
