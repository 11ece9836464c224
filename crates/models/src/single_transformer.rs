//! Opening one weight file that holds a diffusion transformer, alone or with the rest of its model.

use std::path::Path;

use aquatint_diffusion::SchedulerConfig;
use aquatint_weights::WeightSet;

use crate::ModelError;
use crate::apart::{other_t5, other_text};
use crate::checkpoint::{Checkpoint, OpenOptions, Part, T5Part, TextPart, part, recognised};
use crate::families::Family;
use crate::flux::FluxConfig;
use crate::folder::{Folder, name_of};
use crate::infer::{self, Shapes};
use crate::keys::{self, Layout, TransformerKind};
use crate::mmdit::MmditConfig;
use crate::network::NetworkConfig;
use crate::open::{TokenizerPlace, published, read_config, scheduler};
use crate::open_transformer::{T5Place, beside, check_text, check_widths, facts};
use crate::single_file::single_vae;
use crate::t5::T5Config;
use crate::text::ClipTextConfig;

/// Opens the file, whose transformer lies as `layout` says.
pub(crate) fn open(
    path: &Path,
    set: WeightSet,
    layout: Layout,
    kind: TransformerKind,
    options: &OpenOptions,
) -> Result<Checkpoint, ModelError> {
    let given = options.config.as_ref().map(|p| Folder::Disk(p.clone()));
    let config = network(&set, &layout, kind, given.as_ref())?;
    let scheduler: Option<SchedulerConfig> = match &given {
        Some(folder) => scheduler(folder)?,
        None => None,
    };
    let facts = facts(&config, scheduler, path);
    let (family, spec) = recognised(facts, options.prediction)?;
    let text = clips(&set, family, given.as_ref(), options)?;
    let t5 = t5(path, &set, family, given.as_ref(), options)?;
    check_text(path, &spec, &text, t5.as_ref())?;
    check_widths(&config, &text, t5.as_ref())?;
    let vae = single_vae(path, &set, family, given.as_ref(), options)?;
    Ok(Checkpoint {
        name: name_of(path),
        path: path.to_owned(),
        family,
        spec,
        text,
        t5,
        network: part(config, set, layout, options),
        vae,
        loras: Vec::new(),
    })
}

fn network(
    set: &WeightSet,
    layout: &Layout,
    kind: TransformerKind,
    given: Option<&Folder>,
) -> Result<NetworkConfig, ModelError> {
    let configured = given.filter(|f| f.has("transformer/config.json"));
    let shapes = Shapes::new(set, layout);
    Ok(match (kind, configured) {
        (TransformerKind::Mmdit, Some(folder)) => {
            NetworkConfig::Mmdit(read_config(folder, "transformer", MmditConfig::from_json)?)
        }
        (TransformerKind::Mmdit, None) => NetworkConfig::Mmdit(infer::mmdit(&shapes)?),
        (TransformerKind::Flux, Some(folder)) => {
            NetworkConfig::Flux(read_config(folder, "transformer", FluxConfig::from_json)?)
        }
        (TransformerKind::Flux, None) => {
            NetworkConfig::Flux(infer::flux(&shapes, FluxConfig::dev())?)
        }
    })
}

fn clips(
    set: &WeightSet,
    family: &'static Family,
    given: Option<&Folder>,
    options: &OpenOptions,
) -> Result<Vec<TextPart>, ModelError> {
    let mut parts = Vec::new();
    for (slot, base) in (family.text)().into_iter().enumerate() {
        let suffix = if slot == 0 { "" } else { "_2" };
        let name = format!("text_encoder{suffix}");
        let layout = keys::find_text(&keys::names(set), slot);
        // A file of a bare transformer has no prefix, and nothing of a text encoder's.
        let encoder = match (options.text_encoders.get(slot), layout) {
            (Some(other), _) => other_text(other, slot, family, options)?,
            (None, Some(layout)) => {
                let configured = given.filter(|f| f.has(&format!("{name}/config.json")));
                let config = match configured {
                    Some(folder) => read_config(folder, &name, ClipTextConfig::from_json)?,
                    None => infer::text(&Shapes::new(set, &layout), base, false)?,
                };
                part(config, set.clone(), layout, options)
            }
            (None, None) => continue,
        };
        let folder = format!("tokenizer{suffix}");
        let tokenizer = match (options.tokenizers.get(slot), given) {
            (Some(p), _) => TokenizerPlace::Folder(Folder::Disk(p.clone()), String::new()),
            (None, Some(given)) if given.has_folder(&folder) => {
                TokenizerPlace::Folder(given.clone(), folder)
            }
            _ => published(&encoder.config, slot),
        };
        parts.push(TextPart {
            slot,
            encoder,
            tokenizer,
        });
    }
    Ok(parts)
}

fn t5(
    path: &Path,
    set: &WeightSet,
    family: &'static Family,
    given: Option<&Folder>,
    options: &OpenOptions,
) -> Result<Option<T5Part>, ModelError> {
    let slot = (family.text)().len();
    let encoder: Part<T5Config> = match &options.t5 {
        Some(other) => other_t5(other, family, options)?,
        None => {
            let Some(layout) = keys::find_t5(&keys::names(set)) else {
                return Ok(None);
            };
            let base = family.t5.map_or_else(T5Config::xxl, |t5| t5());
            let config = infer::t5(&Shapes::new(set, &layout), base)?;
            part(config, set.clone(), layout, options)
        }
    };
    let folder = format!("tokenizer_{}", slot + 1);
    let tokenizer = match (options.tokenizers.get(slot), given) {
        (Some(place), _) => T5Place::Path(place.clone()),
        (None, Some(given)) if given.has_folder(&folder) => T5Place::Folder(given.clone(), folder),
        _ => beside(options.t5.as_deref().unwrap_or(path)).or_of(encoder.source.weights()),
    };
    Ok(Some(T5Part { encoder, tokenizer }))
}
