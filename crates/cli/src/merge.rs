//! `aquatint merge`: a model with low-rank additions in its weights.

use std::path::PathBuf;

use aquatint_engine::EngineError;
use aquatint_engine::models::OpenOptions;
use aquatint_engine::models::lora::{MergeOptions, merge};
use aquatint_engine::weights::DType;
use clap::{Args, ValueHint};
use serde_json::json;

use crate::args::DtypeArg;
use crate::failure::Failure;
use crate::{locate, loras};

#[derive(Debug, Args)]
pub struct MergeArgs {
    /// A diffusers folder, a .safetensors file, or a name under the model directory
    /// [default: the model inside the program].
    #[arg(short = 'm', long = "model", value_name = "PATH", value_hint = ValueHint::AnyPath)]
    model: Option<PathBuf>,

    /// A LoRA file or a name in the LoRA directory, and how much of it; repeatable.
    #[arg(long, value_name = "PATH[:WEIGHT]", required = true)]
    lora: Vec<String>,

    /// Where to write: a folder for a folder, a .safetensors file for a file.
    #[arg(short, long, value_name = "PATH", required = true, value_hint = ValueHint::AnyPath)]
    output: PathBuf,

    /// Storage of the written weights [default: as in the model].
    #[arg(
        long,
        value_name = "TYPE",
        default_value = "auto",
        hide_default_value = true
    )]
    dtype: DtypeArg,

    /// Variant of a folder's files, such as fp16.
    #[arg(long, value_name = "NAME")]
    variant: Option<String>,

    /// Write over what is there.
    #[arg(short, long)]
    force: bool,

    /// Print one JSON object and nothing else.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &MergeArgs) -> Result<(), Failure> {
    let found = args.lora.iter().map(|text| loras::parse(text));
    let options = OpenOptions {
        loras: found.collect::<Result<_, Failure>>()?,
        variant: args.variant.clone(),
        ..OpenOptions::default()
    };
    let location = locate::locate(args.model.as_deref())?;
    let how = MergeOptions {
        dtype: match args.dtype {
            DtypeArg::Auto => None,
            DtypeArg::F32 => Some(DType::F32),
            DtypeArg::F16 => Some(DType::F16),
            DtypeArg::Bf16 => Some(DType::Bf16),
        },
        overwrite: args.force,
    };
    let merged = merge(&location, &options, &args.output, &how).map_err(EngineError::from)?;
    if args.json {
        return crate::print_json(&json!({
            "output": args.output, "loras": merged.loras,
            "changed": merged.changed, "files": merged.files,
        }));
    }
    let mut text = String::new();
    for lora in &merged.loras {
        text += &format!(
            "{} with weight {}: {} layers, rank {}\n",
            lora.name, lora.weight, lora.layers, lora.rank
        );
    }
    text += &format!(
        "wrote {}, {} tensors changed\n",
        args.output.display(),
        merged.changed
    );
    crate::print(&text)
}
