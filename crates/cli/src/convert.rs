//! `aquatint convert`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use aquatint_engine::EngineError;
use aquatint_engine::models::ModelError;
use aquatint_engine::models::exchange::{self, Renaming, T5Metadata};
use aquatint_engine::models::families::{gguf_architecture, is_delicate};
use aquatint_engine::weights::gguf::{Metadata, Value};
use aquatint_engine::weights::rewrite::{Container, Fate, Plan, Progress, Rules, Why};
use aquatint_engine::weights::{BlockFormat, DType, Error, WeightSet};
use clap::{Args, ValueEnum, ValueHint};
use indicatif::{ProgressBar, ProgressStyle};
use regex::Regex;
use serde_json::json;

use crate::failure::Failure;
use crate::progress::bytes;

/// What diffusers and transformers call the weights of a component.
const STEMS: &[&str] = &["diffusion_pytorch_model", "model"];

/// The types that can be asked for, by their names on the command line.
const TYPES: &[(&str, DType)] = &[
    ("f32", DType::F32),
    ("f16", DType::F16),
    ("bf16", DType::Bf16),
    ("f8", DType::F8E4M3),
    ("q8_0", DType::Blocks(BlockFormat::Q8_0)),
    ("q6_k", DType::Blocks(BlockFormat::Q6K)),
    ("q5_k", DType::Blocks(BlockFormat::Q5K)),
    ("q5_1", DType::Blocks(BlockFormat::Q5_1)),
    ("q5_0", DType::Blocks(BlockFormat::Q5_0)),
    ("q4_k", DType::Blocks(BlockFormat::Q4K)),
    ("q4_1", DType::Blocks(BlockFormat::Q4_1)),
    ("q4_0", DType::Blocks(BlockFormat::Q4_0)),
    ("q3_k", DType::Blocks(BlockFormat::Q3K)),
    ("q2_k", DType::Blocks(BlockFormat::Q2K)),
];

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    aquatint convert flux1-dev.safetensors flux1-dev-q4_k.gguf --to q4_k\n  \
    aquatint convert model.ckpt model.safetensors --to f16\n  \
    aquatint convert sd3.5/transformer sd3.5-q8_0.gguf --to q8_0\n  \
    aquatint convert sd3.5/text_encoder_3 t5-q8_0.gguf --to q8_0 --tensors ffn_down=f16\n\n\
    GGUF files are read by stable-diffusion.cpp and ComfyUI-GGUF too. In them vectors,\n\
    convolutions and the first and last layers are kept in 16 or 32 bits, and tensors have\n\
    the names of the original layout.\n")]
pub struct ConvertArgs {
    /// A weight file (safetensors, GGUF, .ckpt), or the folder of one component of a model.
    #[arg(value_name = "IN", value_hint = ValueHint::AnyPath)]
    pub input: PathBuf,

    /// The file to write: .safetensors or .gguf.
    #[arg(value_name = "OUT", value_hint = ValueHint::FilePath)]
    pub output: PathBuf,

    /// How to store the weights.
    #[arg(long, value_name = "TYPE", value_parser = types())]
    pub to: String,

    /// Names of the tensors in OUT [default: original for GGUF, else keep].
    #[arg(long, value_name = "KIND")]
    pub layout: Option<LayoutArg>,

    /// T5's tokenizer.json or spiece.model, or their folder, to put into a GGUF file of T5
    /// [default: the one beside IN].
    #[arg(long, value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub tokenizer: Option<PathBuf>,

    /// Another type for the tensors whose names in OUT the pattern is found in; the first that is found counts.
    #[arg(long, value_name = "REGEX=TYPE", value_parser = pattern)]
    pub tensors: Vec<(Regex, DType)>,

    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Whose names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LayoutArg {
    /// Those of IN.
    Keep,
    /// The model's makers', as single files have them; in GGUF llama.cpp's of T5.
    Original,
    /// diffusers' and transformers', of one component.
    Diffusers,
}

fn types() -> clap::builder::PossibleValuesParser {
    TYPES.iter().map(|row| row.0).collect::<Vec<_>>().into()
}

fn type_of(name: &str) -> Option<DType> {
    TYPES.iter().find(|row| row.0 == name).map(|row| row.1)
}

fn pattern(text: &str) -> Result<(Regex, DType), String> {
    let (regex, name) = text
        .rsplit_once('=')
        .ok_or("expected a pattern, an equals sign and a type")?;
    let dtype = type_of(name).ok_or_else(|| {
        let names: Vec<&str> = TYPES.iter().map(|row| row.0).collect();
        format!("{name:?} is no type; expected one of {}", names.join(", "))
    })?;
    let regex = Regex::new(regex).map_err(|e| {
        let last = e.to_string();
        last.lines().last().unwrap_or_default().to_owned()
    })?;
    Ok((regex, dtype))
}

/// Runs the command.
pub fn run(args: &ConvertArgs) -> Result<(), Failure> {
    let container = container(&args.output)?;
    // The parser lets only names of the table pass.
    let default = type_of(&args.to).unwrap_or(DType::F16);
    let types = args.tensors.iter().map(|row| row.1).chain([default]);
    for dtype in types {
        suits(container, dtype)?;
    }
    let set = open(&args.input)?;
    if same_file(&args.input, &args.output, &set) {
        return Err(Failure::usage(
            format!("{}: is what is read", args.output.display()),
            "give another file to write",
        ));
    }
    let names = Names::new(args, container, &set)?;
    let set = set.filtered(|name| !names.renaming.left_out.iter().any(|left| left == name));
    let chosen = |name: &str| {
        let row = args.tensors.iter().find(|(regex, _)| regex.is_match(name));
        row.map(|row| row.1)
    };
    let rules = Rules {
        container,
        default,
        chosen: &chosen,
        delicate: &is_delicate,
    };
    let plan = Plan::remapped(&set, &names.renaming.rows, &rules).map_err(failed)?;
    let written = plan.tensors().iter().map(|fate| fate.name.as_str());
    let written: BTreeSet<&str> = written.collect();
    let architecture = match container {
        Container::Gguf => gguf_architecture(&|name| written.contains(name)),
        Container::Safetensors => None,
    };
    let metadata = metadata(architecture, default, names.t5.as_ref());
    let mut bar = Bar::new(args.json);
    let stop = stop_flag()?;
    let observe = &mut |progress: Progress| {
        bar.show(progress);
        match stop.load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    };
    let whole = plan.write(&set, &args.output, &metadata, observe);
    bar.clear();
    if !whole.map_err(failed)? {
        return Err(Failure::interrupted("interrupted", "nothing was written"));
    }
    report(args, &plan, architecture, &names)
}

/// What tensors are called in the new file, and what it tells of T5.
struct Names {
    renaming: Renaming,
    t5: Option<T5Metadata>,
    /// Whether the source's own metadata hold a tokenizer.
    has_tokenizer: bool,
}

impl Names {
    fn new(args: &ConvertArgs, container: Container, set: &WeightSet) -> Result<Self, Failure> {
        let gguf = container == Container::Gguf;
        let layout = args.layout.unwrap_or(match gguf {
            true => LayoutArg::Original,
            false => LayoutArg::Keep,
        });
        let renaming = match layout {
            LayoutArg::Keep => Ok(Renaming::default()),
            LayoutArg::Original => exchange::original_names(set, gguf),
            LayoutArg::Diffusers => exchange::diffusers_names(set),
        };
        let wrong = |error| Failure::from(EngineError::from(error));
        let tokenizer = args.tokenizer.as_deref();
        let t5 = match gguf {
            true => exchange::t5_metadata(set, &args.input, tokenizer).map_err(wrong)?,
            false => None,
        };
        if tokenizer.is_some() && t5.is_none() {
            return Err(Failure::usage(
                "--tokenizer is for GGUF files of T5, and this would be none",
                "leave --tokenizer out",
            ));
        }
        Ok(Names {
            renaming: renaming.map_err(wrong)?,
            t5,
            has_tokenizer: set.gguf_value("tokenizer.ggml.tokens").is_some(),
        })
    }
}

fn failed(error: Error) -> Failure {
    Failure::from(EngineError::from(ModelError::from(error)))
}

fn container(path: &Path) -> Result<Container, Failure> {
    let extension = path
        .extension()
        .and_then(|e| e.to_str())
        .unwrap_or_default();
    match extension.to_ascii_lowercase().as_str() {
        "safetensors" => Ok(Container::Safetensors),
        "gguf" => Ok(Container::Gguf),
        _ => Err(Failure::usage(
            format!("{}: of no format that can be written", path.display()),
            "let the name end in .safetensors or .gguf",
        )),
    }
}

/// Refuses a type that the container lacks, before anything is opened.
fn suits(container: Container, dtype: DType) -> Result<(), Failure> {
    match (container, dtype) {
        (Container::Safetensors, DType::Blocks(format)) => Err(Failure::usage(
            format!("safetensors files cannot hold {}", format.name()),
            "let the output's name end in .gguf, or choose f32, f16, bf16 or f8",
        )),
        (Container::Gguf, DType::F8E4M3) => Err(Failure::usage(
            "GGUF files cannot hold 8-bit floats",
            "choose q8_0, which is as small and more exact, or let the output's name end in .safetensors",
        )),
        _ => Ok(()),
    }
}

fn open(path: &Path) -> Result<WeightSet, Failure> {
    if path.join("model_index.json").is_file() {
        return Err(Failure::new(
            format!("{}: is a folder of a whole model", path.display()),
            "give the folder of one of its components, such as its transformer or unet",
        ));
    }
    let set = match path.is_dir() {
        true => WeightSet::open_component(path, STEMS, None),
        false => WeightSet::open(path),
    };
    set.map_err(failed)
}

/// Whether the output would take the place of a file that is read. It could, since files are replaced whole, but
/// hardly anybody wants to lose the original.
fn same_file(input: &Path, output: &Path, set: &WeightSet) -> bool {
    let Ok(output) = output.canonicalize() else {
        return false;
    };
    let mut sources = set.files().iter().map(|f| f.path()).chain([input]);
    sources.any(|source| source.canonicalize().is_ok_and(|source| source == output))
}

/// What GGUF files say of themselves.
fn metadata(architecture: Option<&str>, default: DType, t5: Option<&T5Metadata>) -> Metadata {
    let mut metadata = Metadata::default();
    if let Some(architecture) = architecture {
        metadata.insert("general.architecture", Value::String(architecture.into()));
    }
    metadata.insert("general.quantization_version", Value::U32(2));
    if let Some(kind) = file_type(default) {
        metadata.insert("general.file_type", Value::U32(kind));
    }
    for (key, value) in t5.into_iter().flat_map(|t5| &t5.values) {
        metadata.insert(key.as_str(), value.clone());
    }
    metadata
}

/// llama.cpp's number for files of mostly that type.
fn file_type(dtype: DType) -> Option<u32> {
    Some(match dtype {
        DType::F32 => 0,
        DType::F16 => 1,
        DType::Bf16 => 32,
        DType::Blocks(format) => match format {
            BlockFormat::Q4_0 => 2,
            BlockFormat::Q4_1 => 3,
            BlockFormat::Q8_0 => 7,
            BlockFormat::Q5_0 => 8,
            BlockFormat::Q5_1 => 9,
            BlockFormat::Q2K => 10,
            BlockFormat::Q3K => 11,
            BlockFormat::Q4K => 14,
            BlockFormat::Q5K => 16,
            BlockFormat::Q6K => 18,
            _ => return None,
        },
        _ => return None,
    })
}

/// Set by Ctrl-C, so that no half file is left.
fn stop_flag() -> Result<Arc<AtomicBool>, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    let set = stop.clone();
    ctrlc::set_handler(move || set.store(true, Ordering::Relaxed))
        .map_err(|e| Failure::new(format!("cannot listen for Ctrl-C: {e}"), ""))?;
    Ok(stop)
}

/// A line that tells how far it is, on a terminal.
struct Bar(Option<ProgressBar>);

impl Bar {
    fn new(quiet: bool) -> Bar {
        if quiet || !std::io::stderr().is_terminal() {
            return Bar(None);
        }
        let style = ProgressStyle::with_template(
            "{wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}",
        );
        let bar = ProgressBar::new(0);
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Bar(Some(bar))
    }

    fn show(&mut self, progress: Progress) {
        if let Some(bar) = &self.0 {
            bar.set_length(progress.total);
            bar.set_position(progress.done);
        }
    }

    fn clear(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

fn report(
    args: &ConvertArgs,
    plan: &Plan,
    architecture: Option<&str>,
    names: &Names,
) -> Result<(), Failure> {
    let left_out: Vec<&String> = names
        .renaming
        .left_out
        .iter()
        .chain(plan.left_out())
        .collect();
    let tokenizer = names.t5.as_ref().and_then(|t5| t5.tokenizer.as_ref());
    if args.json {
        let tensors = plan.tensors().iter().map(|fate| {
            json!({
                "name": fate.name, "sources": fate.sources().collect::<Vec<_>>(), "shape": fate.shape,
                "from": fate.from, "to": fate.to, "why": fate.why,
            })
        });
        return crate::print_json(&json!({
            "path": args.output, "bytes": plan.bytes(), "architecture": architecture,
            "tokenizer": tokenizer, "tensors": tensors.collect::<Vec<_>>(), "left_out": left_out,
        }));
    }
    // Writing to a string cannot fail.
    let mut text = format!(
        "{}: {} of tensors",
        args.output.display(),
        bytes(plan.bytes())
    );
    if let Some(architecture) = architecture {
        let _ = write!(text, ", architecture {architecture}");
    }
    text.push('\n');
    let renamed = |fate: &&Fate| !fate.sources().eq([fate.name.as_str()]);
    let renamed = plan.tensors().iter().filter(renamed).count();
    if renamed > 0 {
        let _ = writeln!(text, "tensors with new names: {renamed}");
    }
    list_types(plan, &mut text);
    if !left_out.is_empty() {
        let names: Vec<&str> = left_out.iter().map(|name| name.as_str()).collect();
        let _ = writeln!(text, "left out: {}", names.join(", "));
    }
    match (tokenizer, &names.t5) {
        (Some(file), _) => {
            let _ = writeln!(text, "with the tokenizer {}", file.display());
        }
        (None, Some(_)) if !names.has_tokenizer => text.push_str(
            "without a tokenizer, which was found nowhere beside the weights; --tokenizer PATH gives it\n",
        ),
        _ => {}
    }
    let gguf = args.output.extension();
    if gguf.is_some_and(|e| e.eq_ignore_ascii_case("gguf")) && architecture.is_none() {
        text.push_str("of no architecture that ComfyUI-GGUF knows\n");
    }
    crate::print(&text.replace(|c: char| c.is_control() && c != '\n', "\u{fffd}"))
}

/// Lists the types, and what got another than was asked for.
fn list_types(plan: &Plan, text: &mut String) {
    let mut kinds: BTreeMap<DType, (usize, u64)> = BTreeMap::new();
    let mut others: BTreeMap<(Why, DType), Vec<&Fate>> = BTreeMap::new();
    for fate in plan.tensors() {
        let row = kinds.entry(fate.to).or_default();
        *row = (row.0 + 1, row.1 + fate.bytes());
        if let Some(why) = fate.why {
            others.entry((why, fate.to)).or_default().push(fate);
        }
    }
    for (dtype, (count, size)) in &kinds {
        let _ = writeln!(text, "  {dtype:<8} {count:>5} tensors, {}", bytes(*size));
    }
    for ((why, dtype), fates) in &others {
        let _ = write!(text, "kept as {dtype} ({why}): {}", fates.len());
        // Vectors are many, and no news.
        if !matches!(why, Why::Small | Why::Quantised) {
            let names: Vec<&str> = fates.iter().take(6).map(|f| f.name.as_str()).collect();
            let more = if fates.len() > names.len() {
                ", .."
            } else {
                ""
            };
            let _ = write!(text, " ({}{more})", names.join(", "));
        }
        text.push('\n');
    }
}
