//! `aquatint inspect`.

use std::fmt::Write;
use std::path::Path;

use aquatint_engine::models::lora::{self, LoraFile};
use aquatint_engine::models::{Location, ModelError, OpenOptions, recognise};
use aquatint_engine::weights::{Inspection, WeightSet};
use aquatint_engine::{EngineError, Model, metadata::Parameters, picture};
use serde_json::{Value, json};

use crate::args::InspectArgs;
use crate::failure::Failure;
use crate::progress::bytes;

/// What diffusers calls the weights of a component.
const STEMS: &[&str] = &["diffusion_pytorch_model", "model"];

/// Runs the command.
pub fn run(args: &InspectArgs) -> Result<(), Failure> {
    if is_png(&args.file) {
        return inspect_picture(args);
    }
    let set = if !args.file.is_dir() {
        WeightSet::open(&args.file)
    } else if args.file.join("model_index.json").is_file()
        || ["unet", "transformer"]
            .iter()
            .any(|part| args.file.join(part).is_dir())
    {
        return inspect_folder(args);
    } else {
        // One component of a model.
        WeightSet::open_component(&args.file, STEMS, None)
    };
    let set = set.map_err(|e| Failure::from(EngineError::from(ModelError::from(e))))?;
    let inspection = set.inspect();
    let location = Location::Path(args.file.clone());
    let model = Model::open(&location, &OpenOptions::default());
    let verdict = match &model {
        Ok(model) => Verdict::Model(describe(model)),
        Err(_) if is_lora(&set) => match LoraFile::open(&args.file) {
            Ok(file) => Verdict::Lora(file),
            Err(error) => Verdict::Other {
                kind: recognise(&set).map(str::to_owned),
                error: error.to_string(),
            },
        },
        Err(error) => Verdict::Other {
            kind: recognise(&set).map(str::to_owned),
            error: error.to_string(),
        },
    };
    let parts = components(&inspection);
    if args.json {
        return crate::print_json(&json!({
            "path": args.file,
            "model": verdict.to_json(),
            "components": parts.iter().map(Component::to_json).collect::<Vec<_>>(),
            "weights": inspection,
        }));
    }
    let mut text = String::new();
    verdict.write(&mut text);
    write_inspection(&mut text, &inspection, &parts, args.tensors);
    crate::print(&text)
}

fn is_lora(set: &WeightSet) -> bool {
    set.names().any(|n| n.contains("lora_"))
}

fn is_png(path: &Path) -> bool {
    use std::io::Read;
    let mut magic = [0u8; 8];
    let read = std::fs::File::open(path).and_then(|mut f| f.read_exact(&mut magic));
    read.is_ok() && magic == *b"\x89PNG\r\n\x1a\n"
}

fn inspect_picture(args: &InspectArgs) -> Result<(), Failure> {
    let text = picture::read_parameters(&args.file)?;
    if args.json {
        let parsed = text.as_deref().map(Parameters::from_text);
        let request = match &parsed {
            Some(Ok(p)) => serde_json::to_value(&p.request).unwrap_or(Value::Null),
            _ => Value::Null,
        };
        let model = match &parsed {
            Some(Ok(p)) => p.model.clone(),
            _ => None,
        };
        return crate::print_json(&json!({
            "path": args.file, "parameters": text, "request": request, "model": model,
        }));
    }
    match text {
        Some(text) => crate::print(&format!("{text}\n")),
        None => crate::print("a picture that carries no parameters\n"),
    }
}

fn inspect_folder(args: &InspectArgs) -> Result<(), Failure> {
    let location = Location::Path(args.file.clone());
    let model = Model::open(&location, &OpenOptions::default())
        .map_err(|e| Failure::from(EngineError::from(e)))?;
    let parts: Vec<(String, Inspection)> = model
        .sources()
        .into_iter()
        .map(|(name, source)| (name, source.weights().inspect()))
        .collect();
    if args.json {
        let components: Vec<Value> = parts
            .iter()
            .map(|(name, i)| json!({ "component": name, "weights": i }))
            .collect();
        return crate::print_json(&json!({
            "path": args.file, "model": describe(&model), "components": components,
        }));
    }
    let mut text = String::new();
    Verdict::Model(describe(&model)).write(&mut text);
    for (name, inspection) in &parts {
        let _ = writeln!(text, "{name}:");
        write_inspection(&mut text, inspection, &[], args.tensors);
    }
    crate::print(&text)
}

fn describe(model: &Model) -> Value {
    let defaults = model.defaults();
    let mut told = json!({
        "family": model.family(),
        "title": model.title(),
        "why": model.why(),
        "prediction": model.prediction(),
        "size": defaults.width,
        "steps": defaults.steps,
        "guidance": defaults.guidance,
        "sampler": defaults.sampler,
    });
    if let Model::Pixel(pixel) = model {
        told["classes"] = match pixel.classes.is_empty() {
            true => json!(pixel.class_count),
            false => json!(pixel.classes),
        };
    }
    told
}

enum Verdict {
    Model(Value),
    Lora(LoraFile),
    Other { kind: Option<String>, error: String },
}

impl Verdict {
    fn to_json(&self) -> Value {
        match self {
            Verdict::Model(model) => model.clone(),
            Verdict::Lora(file) => json!({
                "family": null,
                "kind": "a LoRA",
                "lora": {
                    "made_for": file.made_for(),
                    "ranks": file.ranks(),
                    "layers": {
                        "unet": file.layers(lora::Component::UNet),
                        "text_encoder": file.layers(lora::Component::Text(0)),
                        "text_encoder_2": file.layers(lora::Component::Text(1)),
                    },
                },
            }),
            Verdict::Other { kind, error } => json!({ "family": null, "kind": kind, "why": error }),
        }
    }

    // Writing to a string cannot fail.
    fn write(&self, text: &mut String) {
        let _ = match self {
            Verdict::Model(m) => writeln!(
                text,
                "{}, recognised by {}; predicts {}; {} pixels, {} steps of {} by default",
                m["title"].as_str().unwrap_or_default(),
                m["why"].as_str().unwrap_or_default(),
                m["prediction"].as_str().unwrap_or_default(),
                m["size"],
                m["steps"],
                m["sampler"].as_str().unwrap_or_default(),
            ),
            Verdict::Lora(file) => write_lora(text, file),
            Verdict::Other { kind, error } => {
                let kind = kind.as_deref().unwrap_or("tensors of no known model");
                writeln!(text, "{kind}; cannot draw by itself: {error}")
            }
        };
    }
}

fn write_lora(text: &mut String, file: &LoraFile) -> std::fmt::Result {
    let made_for = file
        .made_for()
        .map_or(String::new(), |f| format!(" for {f}"));
    let parts = [
        (lora::Component::UNet, "the UNet"),
        (lora::Component::Text(0), "the text encoder"),
        (lora::Component::Text(1), "the second text encoder"),
    ];
    let layers = parts.into_iter().filter_map(|(component, name)| {
        let count = file.layers(component);
        (count > 0).then(|| format!("{count} layers of {name}"))
    });
    let layers = layers.collect::<Vec<_>>().join(", ");
    let rank = match file.ranks() {
        (least, most) if least == most => format!("rank {most}"),
        (least, most) => format!("rank {least} to {most}"),
    };
    writeln!(text, "a LoRA{made_for}: {layers}; {rank}")
}

/// Tensors that share the first parts of their names.
struct Component {
    name: String,
    tensors: usize,
    parameters: u64,
    bytes: u64,
}

impl Component {
    fn to_json(&self) -> Value {
        json!({
            "name": self.name, "tensors": self.tensors,
            "parameters": self.parameters, "bytes": self.bytes,
        })
    }
}

fn components(inspection: &Inspection) -> Vec<Component> {
    let mut parts: Vec<Component> = Vec::new();
    for tensor in &inspection.tensors {
        let name = component_of(&tensor.name);
        let elements = tensor.shape.iter().product::<usize>() as u64;
        let at = match parts.iter().position(|p| p.name == name) {
            Some(at) => at,
            None => {
                parts.push(Component {
                    name: name.to_owned(),
                    tensors: 0,
                    parameters: 0,
                    bytes: 0,
                });
                parts.len() - 1
            }
        };
        parts[at].tensors += 1;
        parts[at].parameters += elements;
        parts[at].bytes += tensor.bytes;
    }
    parts
}

fn component_of(tensor: &str) -> &str {
    const PREFIXES: &[&str] = &[
        "model.diffusion_model",
        "first_stage_model",
        "cond_stage_model",
        "conditioner.embedders.0",
        "conditioner.embedders.1",
        "text_encoders.clip_l",
        "text_encoders.clip_g",
        "text_encoders.t5xxl",
        "model_ema",
    ];
    PREFIXES
        .iter()
        .find(|p| {
            tensor
                .strip_prefix(**p)
                .is_some_and(|rest| rest.starts_with('.'))
        })
        .copied()
        .unwrap_or_else(|| tensor.split_once('.').map_or(tensor, |(head, _)| head))
}

fn write_inspection(text: &mut String, i: &Inspection, parts: &[Component], tensors: bool) {
    // Writing to a string cannot fail.
    let types: Vec<String> = i
        .dtypes
        .iter()
        .map(|d| format!("{} in {} tensors", d.dtype, d.tensors))
        .collect();
    let _ = writeln!(
        text,
        "  {:.1} M parameters, {}, {}",
        i.parameters as f64 / 1e6,
        bytes(i.bytes),
        types.join(", ")
    );
    for file in &i.files {
        let _ = writeln!(
            text,
            "  file {} ({}, {})",
            file.path.display(),
            file.format,
            bytes(file.bytes)
        );
        for (key, value) in &file.metadata {
            let short: String = value.chars().take(100).collect();
            let _ = writeln!(text, "    {key}: {short}");
        }
    }
    for part in parts {
        let _ = writeln!(
            text,
            "  {:<28} {:>5} tensors, {:>8.1} M parameters, {}",
            part.name,
            part.tensors,
            part.parameters as f64 / 1e6,
            bytes(part.bytes)
        );
    }
    if tensors {
        for t in &i.tensors {
            let _ = writeln!(text, "    {} {} {:?}", t.name, t.dtype, t.shape);
        }
    }
}
