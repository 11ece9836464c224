//! Components for other programs: the names that they read, and what GGUF files tell beside tensors.

use std::path::{Path, PathBuf};

use aquatint_ops::{Device, Params};
use aquatint_weights::WeightSet;
use aquatint_weights::gguf::Value;

use crate::ModelError;
use crate::checkpoint::recognise;
use crate::flux::{Flux, FluxConfig};
use crate::infer::{self, Shapes};
pub use crate::keys::Renaming;
use crate::keys::{self, Layout, Naming, TransformerKind};
use crate::mmdit::Mmdit;
use crate::source::CheckpointSource;
use crate::t5::{self, T5Config, T5Encoder};
use crate::unet::UNet2DCondition;
use crate::vae::{AutoencoderKl, VaeConfig};

/// The names that a component in diffusers' naming has in the files of its makers, which stable-diffusion.cpp and
/// ComfyUI read: of a transformer, a UNet or an autoencoder; with `ggml` also llama.cpp's of T5's encoder. Nothing to
/// rename in tensors of another naming, which is theirs already, and of components that are called the same everywhere.
///
/// # Errors
/// When a part is missing of a tensor that the original has in one piece.
pub fn original_names(set: &WeightSet, ggml: bool) -> Result<Renaming, ModelError> {
    keys::to_original(set, ggml)
}

/// The names that a component of any naming has in diffusers (transformers).
///
/// # Errors
/// When the file holds no component that is known, or more than one.
pub fn diffusers_names(set: &WeightSet) -> Result<Renaming, ModelError> {
    let (layout, source) = one_component(set)?;
    let mut apart = set.names().filter(|n| !n.starts_with(&layout.prefix));
    if let Some(other) = apart.next() {
        return Err(ModelError::Unsupported {
            found: format!(
                "{}: a file of more than one component ({other} is of another than {}..)",
                set.path().display(),
                layout.prefix
            ),
            hint: "names of diffusers are for the files of single components; keep the names"
                .into(),
        });
    }
    if layout == Layout::diffusers() {
        return Ok(Renaming::default());
    }
    let report = source.report();
    let wanted = report.applied.keys().map(String::as_str);
    Ok(Renaming {
        rows: keys::to_diffusers(set, &layout, wanted),
        left_out: [report.unused, report.ignored].concat(),
    })
}

/// The component that a file holds, built once, so that its source knows what belongs to it. Weights are mapped, so this
/// reads vectors alone.
fn one_component(set: &WeightSet) -> Result<(Layout, CheckpointSource), ModelError> {
    let names = keys::names(set);
    let device = Device::flex();
    let source = |layout: &Layout| CheckpointSource::new(set.clone(), layout.clone(), None);
    if let Some((layout, kind)) = keys::find_transformer(&names) {
        let (shapes, source) = (Shapes::new(set, &layout), source(&layout));
        let params = Params::new(&source, &device);
        match kind {
            TransformerKind::Mmdit => {
                Mmdit::load(&params, &infer::mmdit(&shapes)?)?;
            }
            TransformerKind::Flux => {
                Flux::load(&params, &infer::flux(&shapes, FluxConfig::dev())?)?;
            }
        }
        return Ok((layout, source));
    }
    if let Some(layout) = keys::find_unet(&names) {
        let (shapes, source) = (Shapes::new(set, &layout), source(&layout));
        let family = crate::single_file::guess(&shapes, false)?;
        // How wide picture sizes are embedded shows in no tensor, and tells nothing of names.
        let added = shapes.shape("add_embedding.linear_1.weight");
        let pooled = added.and_then(|shape| shape.get(1)?.checked_sub(6 * 4));
        let config = infer::unet(&shapes, (family.network)().unet()?.clone(), pooled)?;
        UNet2DCondition::load(&Params::new(&source, &device), &config)?;
        return Ok((layout, source));
    }
    if let Some(layout) = keys::find_t5(&names) {
        let source = source(&layout);
        let config = infer::t5(&Shapes::new(set, &layout), T5Config::xxl())?;
        T5Encoder::load(&Params::new(&source, &device), &config)?;
        return Ok((layout, source));
    }
    if let Some(layout) = keys::find_vae(&names) {
        let source = source(&layout);
        let config = infer::vae(&Shapes::new(set, &layout), VaeConfig::sd1())?;
        AutoencoderKl::load(&Params::new(&source, &device), &config)?;
        return Ok((layout, source));
    }
    Err(ModelError::Unsupported {
        found: format!(
            "{}: {}, of which diffusers' names are not known",
            set.path().display(),
            recognise(set).unwrap_or("tensors of no known model")
        ),
        hint: "keep the names".into(),
    })
}

/// What a GGUF file of T5 tells beside its tensors, so that it is whole.
#[derive(Debug, Clone, PartialEq)]
pub struct T5Metadata {
    /// The encoder's shape and the tokenizer, under llama.cpp's keys.
    pub values: Vec<(String, Value)>,
    /// Where the tokenizer was found; nowhere beside the weights if `None`.
    pub tokenizer: Option<PathBuf>,
}

/// The metadata of a T5 encoder's GGUF file, whose weights are read from the file or folder `input`; `None` when they
/// are none of T5. `tokenizer` is a `tokenizer.json`, a `spiece.model` or their folder; without it they are looked for
/// beside the weights.
///
/// # Errors
/// A configuration or tokenizer that is damaged or no T5's.
pub fn t5_metadata(
    set: &WeightSet,
    input: &Path,
    tokenizer: Option<&Path>,
) -> Result<Option<T5Metadata>, ModelError> {
    let names = keys::names(set);
    let known = keys::find_transformer(&names).is_some() || keys::find_unet(&names).is_some();
    let Some(layout) = keys::find_t5(&names).filter(|l| !known && l.prefix.is_empty()) else {
        return Ok(None);
    };
    let config = match std::fs::read_to_string(input.join("config.json")) {
        Ok(json) if input.is_dir() => T5Config::from_json(&json)?,
        _ => infer::t5(&Shapes::new(set, &layout), T5Config::xxl())?,
    };
    let mut values = t5::shape_metadata(&config);
    let mut read = |file: PathBuf| -> Result<PathBuf, ModelError> {
        values.extend(t5::tokenizer_metadata(&file, config.vocab_size)?);
        Ok(file)
    };
    let tokenizer = match tokenizer {
        Some(path) if path.is_dir() => {
            let file = t5::tokenizer_file(path).ok_or_else(|| {
                ModelError::Tokenizer(format!(
                    "{}: found neither tokenizer.json nor spiece.model",
                    path.display()
                ))
            })?;
            Some(read(file)?)
        }
        Some(path) => Some(read(path.to_owned())?),
        // A GGUF file brings its own along.
        None if layout.naming == Naming::T5Ggml => None,
        // What lies there by chance may be another model's.
        None => t5::tokenizer_beside(input).and_then(|file| read(file).ok()),
    };
    Ok(Some(T5Metadata { values, tokenizer }))
}
