//! The command line: parsing only. Effects come later.

use std::path::PathBuf;

use aquatint_engine::{MAX_BATCH, MAX_STEPS, SIDES, T5_TOKENS};
use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};

/// Turns noise into images with diffusion models, on your own machine.
#[derive(Debug, Parser)]
#[command(
    name = "aquatint",
    version,
    about,
    arg_required_else_help = true,
    // Wide enough for every terminal, and what a pipe gets.
    max_term_width = 80,
    after_help = "Examples:\n  \
        aquatint generate \"a red apple\"           the small model that ships inside\n  \
        aquatint generate \"a red apple\" -m sd15.safetensors --sampler dpmpp_2m\n  \
        aquatint generate --from picture.png      the same picture again\n  \
        aquatint inspect sd15.safetensors         what a file holds\n\n\
        Models are looked up by path, then by name under $AQUATINT_MODELS or\n\
        ~/.local/share/aquatint/models; LoRAs under $AQUATINT_LORAS or loras beside it.\n"
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Draw pictures from a prompt.
    Generate(Box<GenerateArgs>),
    /// Train a model from a folder of pictures.
    Train(crate::train::TrainArgs),
    /// Write a model with LoRAs merged into its weights.
    Merge(crate::merge::MergeArgs),
    /// Put pictures side by side on one sheet.
    Grid(crate::grid::GridArgs),
    /// List the models in a folder.
    Models(ModelsArgs),
    /// Show what a weight file, a model folder or a picture holds.
    Inspect(InspectArgs),
    /// Write a weight file in another format or with smaller numbers.
    Convert(crate::convert::ConvertArgs),
    /// List the samplers and schedules.
    Samplers(SamplersArgs),
    /// Measure this machine: single operations, or the stages of a model.
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TilingArg {
    /// In tiles when the picture is large.
    Auto,
    On,
    Off,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SyntaxArg {
    /// (word:1.2), ((word)), [word], BREAK, prompts of any length.
    Weighted,
    /// The text as it is, cut at 77 tokens, as diffusers does.
    Plain,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DtypeArg {
    /// As stored in the file.
    Auto,
    F32,
    F16,
    Bf16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PredictionArg {
    Epsilon,
    V,
    Sample,
    Flow,
}

#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// What to draw; models without text take none.
    pub prompt: Option<String>,

    /// What to stay away from.
    #[arg(short, long, value_name = "TEXT")]
    pub negative: Option<String>,

    #[command(flatten)]
    pub model: ModelArgs,

    #[command(flatten)]
    pub picture: PictureArgs,

    #[command(flatten)]
    pub sampling: SamplingArgs,

    #[command(flatten)]
    pub output: OutputArgs,

    /// Threads to compute with [default: one a core].
    #[arg(long, value_name = "N", help_heading = "Running", allow_hyphen_values = true, value_parser = whole(1, 1024))]
    pub threads: Option<u32>,

    /// Tell more: the plan, the load report, each step.
    #[arg(short, long, action = clap::ArgAction::Count, help_heading = "Running")]
    pub verbose: u8,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// A diffusers folder, a .safetensors or .gguf file, or a name in the model directory
    /// [default: the model inside the program].
    #[arg(short = 'm', long = "model", value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub path: Option<PathBuf>,

    /// A LoRA file or a name in the LoRA directory, and how much of it; repeatable.
    /// In a prompt: <lora:NAME:WEIGHT>.
    #[arg(long, value_name = "PATH[:WEIGHT]")]
    pub lora: Vec<String>,

    /// Autoencoder to use instead of the model's own.
    #[arg(long, value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub vae: Option<PathBuf>,

    /// Text encoder to use instead of the model's own; once for each encoder.
    #[arg(long, value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub text_encoder: Vec<PathBuf>,

    /// T5 text encoder to use instead of the model's own.
    #[arg(long, value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub t5: Option<PathBuf>,

    /// Folder with the tokenizer to use instead of the model's own; once for each encoder.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub tokenizer: Vec<PathBuf>,

    /// Folder with the config.json files that describe a single file of unusual size.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub config: Option<PathBuf>,

    /// Variant of a folder's files, such as fp16.
    #[arg(long, value_name = "NAME")]
    pub variant: Option<String>,

    /// What the network predicts, when the file does not say.
    #[arg(long, value_name = "KIND")]
    pub prediction: Option<PredictionArg>,

    /// Storage of the weights in memory.
    #[arg(long, value_name = "TYPE", default_value = "auto")]
    pub dtype: DtypeArg,

    /// Tiny autoencoder for previews and quick decodes.
    #[arg(long, value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub taesd: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Picture")]
pub struct PictureArgs {
    /// Pixels, a multiple of 8 from 64 to 4096 [default: the model's].
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = side)]
    pub width: Option<u32>,

    /// Pixels, a multiple of 8 from 64 to 4096 [default: the model's].
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = side)]
    pub height: Option<u32>,

    /// Seed of the noise [default: random, and printed].
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = seed)]
    pub seed: Option<u64>,

    /// Class to draw, by name or number, of a model that is told classes.
    #[arg(long, value_name = "NAME")]
    pub class: Option<String>,

    /// Generator of the noise: torch-cpu gives diffusers' pictures, philox those of CUDA.
    #[arg(long, value_name = "NAME")]
    pub rng: Option<String>,

    /// Pictures to make, one after another, with seeds counted up.
    #[arg(long, value_name = "N", default_value_t = 1, allow_hyphen_values = true, value_parser = whole(1, 100_000))]
    pub count: u32,

    /// Pictures to make in one run: they share the prompt and the loaded model.
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = count(MAX_BATCH))]
    pub batch: Option<u32>,

    /// Repeat the picture of this PNG; other options change it.
    #[arg(long, value_name = "PNG", value_hint = ValueHint::FilePath)]
    pub from: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// Steps of the sampler [default: the model's].
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = count(MAX_STEPS))]
    pub steps: Option<u32>,

    /// Guidance scale: how closely to follow the prompt; 1 or less is off [default: the model's].
    #[arg(short, long, value_name = "F", allow_hyphen_values = true, value_parser = number(100))]
    pub guidance: Option<f64>,

    /// Sampler; see `aquatint samplers` [default: the model's].
    #[arg(long, value_name = "NAME")]
    pub sampler: Option<String>,

    /// Schedule of the noise levels; see `aquatint samplers` [default: the sampler's].
    #[arg(long, value_name = "NAME")]
    pub schedule: Option<String>,

    /// Noise that ddim, tcd and others add back, 0 to 1 [default: the sampler's].
    #[arg(long, value_name = "F", allow_hyphen_values = true, value_parser = number(1))]
    pub eta: Option<f64>,

    /// Rescale of guided predictions, 0 to 1.
    #[arg(long, value_name = "F", allow_hyphen_values = true, value_parser = number(1))]
    pub guidance_rescale: Option<f64>,

    /// Noise levels between which guidance acts, lowest and highest [default: everywhere].
    #[arg(long, value_name = "LOW,HIGH", value_parser = interval, allow_hyphen_values = true)]
    pub guidance_interval: Option<(f64, f64)>,

    /// Guidance by the negative prompt of models that are told their guidance scale, or none (FLUX);
    /// above 1 each step takes twice as long [default: off].
    #[arg(long, value_name = "F", allow_hyphen_values = true, value_parser = number(100))]
    pub true_guidance: Option<f64>,

    /// Layers of the transformer to leave out for skip-layer guidance, such as 7,8,9 [default: none].
    #[arg(long, value_name = "N,N", value_delimiter = ',')]
    pub skip_layers: Vec<usize>,

    /// Strength of skip-layer guidance [default: 2.8].
    #[arg(
        long,
        value_name = "SCALE",
        requires = "skip_layers",
        allow_hyphen_values = true
    )]
    pub skip_layer_guidance: Option<f64>,

    /// Part of the run in which skip-layer guidance acts [default: 0.01,0.2].
    #[arg(long, value_name = "FROM,TO", requires = "skip_layers", value_parser = interval, allow_hyphen_values = true)]
    pub skip_layer_range: Option<(f64, f64)>,

    /// Layer of the text encoder counted from the end: 1 is the last, 2 the one before it.
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = count(12))]
    pub clip_skip: Option<u32>,

    /// Tokens of the prompt that T5 reads, at most 512 [default: the model's, 256 or 512].
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = count(*T5_TOKENS.end()))]
    pub t5_tokens: Option<u32>,

    /// How the prompt is read.
    #[arg(long, value_name = "KIND")]
    pub prompt_syntax: Option<SyntaxArg>,

    /// Decode in tiles, which takes less memory.
    #[arg(long, value_name = "WHEN")]
    pub vae_tiling: Option<TilingArg>,

    /// Decode with the tiny autoencoder of --taesd: quicker and rougher.
    #[arg(long, requires = "taesd")]
    pub quick_decode: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Output")]
pub struct OutputArgs {
    /// File or folder to write; %seed, %index and %model expand [default: %model-%seed.png].
    #[arg(short, long, value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub output: Option<PathBuf>,

    /// Write over files that are there.
    #[arg(short, long)]
    pub force: bool,

    /// Write all pictures as one sheet here too.
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub grid: Option<PathBuf>,

    /// Pictures in a row of the sheet [default: the square root of their number].
    #[arg(long, value_name = "N", requires = "grid", allow_hyphen_values = true, value_parser = whole(1, 1000))]
    pub grid_columns: Option<u32>,

    /// Write a preview here every few steps, each over the one before.
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub preview: Option<PathBuf>,

    /// Steps between previews.
    #[arg(long, value_name = "N", default_value_t = 5, allow_hyphen_values = true, value_parser = whole(1, MAX_STEPS))]
    pub preview_every: u32,

    /// Print one JSON object and nothing else.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Time operations beside the machine's peak, an FMA loop on the same threads.
    Ops(BenchOpsArgs),
    /// Time the stages of a model, and find its peak memory.
    Model(BenchModelArgs),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OpArg {
    Conv2d,
    Gemm,
    Attention,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PartArg {
    /// Prompts to embeddings.
    Text,
    /// Steps of the denoising loop.
    Step,
    /// Latents to pixels.
    Decode,
}

#[derive(Debug, Args)]
pub struct BenchOpsArgs {
    /// Only this operation.
    #[arg(long, value_name = "OP")]
    pub only: Option<OpArg>,

    /// One shape instead of the list: "2x64x64x320->320 k3 s1" (images, height,
    /// width, channels), "8192x320x2560" (m, k, n) or "2x8x4096x40 kv4096" (batch,
    /// heads, queries, channels of a head).
    #[arg(long, value_name = "SPEC", allow_hyphen_values = true)]
    pub shape: Option<String>,

    /// Threads to compute with [default: one a core].
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = whole(1, 1024))]
    pub threads: Option<u32>,

    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct BenchModelArgs {
    /// A diffusers folder, a .safetensors or .gguf file, or a name in the model directory
    /// [default: the model inside the program].
    #[arg(short = 'm', long = "model", value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub path: Option<PathBuf>,

    /// Pixels, a multiple of 8 from 64 to 4096 [default: the model's].
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = side)]
    pub width: Option<u32>,

    /// Pixels, a multiple of 8 from 64 to 4096 [default: the model's].
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = side)]
    pub height: Option<u32>,

    /// Steps of the denoising loop to time.
    #[arg(long, value_name = "N", default_value_t = 3, allow_hyphen_values = true, value_parser = whole(1, MAX_STEPS))]
    pub steps: u32,

    /// Only this stage, so that the peak is its own.
    #[arg(long, value_name = "STAGE")]
    pub only: Option<PartArg>,

    /// Storage of the weights in memory.
    #[arg(long, value_name = "TYPE", default_value = "auto")]
    pub dtype: DtypeArg,

    /// Threads to compute with [default: one a core].
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = whole(1, 1024))]
    pub threads: Option<u32>,

    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct ModelsArgs {
    /// Folder to look in [default: $AQUATINT_MODELS or ~/.local/share/aquatint/models].
    #[arg(value_hint = ValueHint::DirPath)]
    pub path: Option<PathBuf>,

    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct InspectArgs {
    /// A weight file, a model folder, or a PNG that Aquatint wrote.
    #[arg(value_hint = ValueHint::AnyPath)]
    pub file: PathBuf,

    /// List every tensor.
    #[arg(long)]
    pub tensors: bool,

    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct SamplersArgs {
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// A whole number between two others.
fn whole(least: u32, most: u32) -> impl Fn(&str) -> Result<u32, String> + Clone + Send + Sync {
    move |text| {
        let n = text.parse().ok().filter(|n| (least..=most).contains(n));
        n.ok_or_else(|| format!("expected a whole number from {least} to {most}"))
    }
}

/// A number of steps, pictures or layers; the engine says what is usual when it is out of range.
fn count(most: u32) -> impl Fn(&str) -> Result<u32, String> + Clone + Send + Sync {
    move |text| {
        let n = text.parse();
        n.map_err(|_| format!("expected a whole number from 1 to {most}"))
    }
}

/// A number; the engine says what is usual when it is out of range.
fn number(most: u32) -> impl Fn(&str) -> Result<f64, String> + Clone + Send + Sync {
    move |text| {
        let n = text.parse();
        n.map_err(|_| format!("expected a number from 0 to {most}"))
    }
}

/// A side of the picture. The engine says which number is near.
fn side(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| {
        let (least, most) = (SIDES.start(), SIDES.end());
        format!("expected a multiple of 8 from {least} to {most}")
    })
}

fn seed(text: &str) -> Result<u64, String> {
    let most = u64::MAX;
    text.parse()
        .map_err(|_| format!("expected 0 to {most}; leave it out for a random one"))
}

fn interval(text: &str) -> Result<(f64, f64), String> {
    let expected = "expected two numbers with a comma between, such as 0.5,10";
    let (low, high) = text.split_once(',').ok_or(expected)?;
    let number = |t: &str| t.trim().parse::<f64>().map_err(|_| expected.to_owned());
    Ok((number(low)?, number(high)?))
}
