//! The same pictures from every layout a checkpoint comes in.

use std::path::{Path, PathBuf};

use aquatint_engine::models::{Checkpoint, OpenOptions, Storage};
use aquatint_testkit::{
    Case, compare, golden, sharded_folder, single_file, turbo_folder, unet_only, variant_folder,
};

use crate::support::{
    LATENTS, References, Traced, check_all, open, override_scheduler, request, run,
};

const FAMILIES: [&str; 3] = ["sd1", "sd2", "sdxl"];

/// One deterministic and one stochastic sampler, one of many calls, guidance on and off.
const FEW: [&str; 5] = [
    "pipe/ddim/g7.5",
    "pipe/euler_a/g7.5",
    "pipe/dpmpp_2m_sde_karras/g1.0",
    "pipe/ddpm/g1.0",
    "pipe/heun/g7.5",
];

/// The folders of a family's tokenizers. The tiny ones cut CLIP's vocabulary, single files have the
/// whole one, under other ids: so only folders and parts of folders go with these.
fn tokenizers(family: &str) -> Vec<PathBuf> {
    let folders = ["tokenizer", "tokenizer_2"].map(|t| golden(family).join(t));
    folders.into_iter().filter(|f| f.is_dir()).collect()
}

fn few(what: &str, family: &str, path: &Path, options: &OpenOptions) {
    let references = References::read(family);
    let model = || open(path, options);
    let cases = references.pick(&FEW);
    check_all(
        &format!("{family} {what}"),
        cases,
        &references.tensors,
        |_| model(),
    );
}

/// Every case again, from a single file that comes with nothing: shapes, family, scheduler and
/// vocabulary are Aquatint's own knowledge.
fn alone(family: &str) {
    let dir = tempfile::tempdir().unwrap();
    let path = single_file(family, dir.path()).unwrap();
    // A distilled model's file says so in its name alone.
    let turbo = dir.path().join("tiny_sdxl_turbo_fp16.safetensors");
    std::os::unix::fs::symlink(&path, &turbo).unwrap();
    let references = References::read(family);
    check_all(
        &format!("{family} alone"),
        &references.cases,
        &references.tensors,
        |case| {
            let path = match case.scheduler.as_str() {
                "scheduler_turbo" => &turbo,
                _ => &path,
            };
            let mut model = open(path, &OpenOptions::default());
            assert_eq!(model.family.id, family);
            override_scheduler(&mut model, case);
            model
        },
    );
}

#[test]
fn single_file_of_stable_diffusion_1() {
    alone("sd1");
}

#[test]
fn single_file_of_stable_diffusion_2() {
    alone("sd2");
}

#[test]
fn single_file_of_stable_diffusion_xl() {
    alone("sdxl");
}

/// A folder without tokenizers, whose configurations describe a single file.
fn configurations(family: &str, into: &Path) -> PathBuf {
    let target = into.join(format!("{family}_config"));
    let parts = ["unet", "vae", "text_encoder", "text_encoder_2"];
    let files = parts.map(|p| format!("{p}/config.json"));
    let scheduler = "scheduler/scheduler_config.json".to_owned();
    for file in files.into_iter().chain([scheduler]) {
        let from = golden(family).join(&file);
        let Ok(text) = std::fs::read_to_string(from) else {
            continue;
        };
        let to = target.join(&file);
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        // The single file holds the whole vocabulary.
        let whole = text.replace("\"vocab_size\": 760", "\"vocab_size\": 49408");
        assert!(!file.starts_with("text") || whole != text, "{file}: {text}");
        std::fs::write(to, whole).unwrap();
    }
    target
}

#[test]
fn single_files_with_configurations() {
    let dir = tempfile::tempdir().unwrap();
    for family in FAMILIES {
        let path = single_file(family, dir.path()).unwrap();
        let options = OpenOptions {
            config: Some(configurations(family, dir.path())),
            ..OpenOptions::default()
        };
        few("with configurations", family, &path, &options);
    }
}

#[test]
fn a_unet_alone_with_parts_of_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    for family in FAMILIES {
        let path = unet_only(family, dir.path()).unwrap();
        let encoders = ["text_encoder", "text_encoder_2"].map(|t| golden(family).join(t));
        let options = OpenOptions {
            vae: Some(golden(family).join("vae")),
            text_encoders: encoders.into_iter().filter(|f| f.is_dir()).collect(),
            tokenizers: tokenizers(family),
            ..OpenOptions::default()
        };
        few("UNet alone", family, &path, &options);
        // The model's folder does for each part as well.
        let options = OpenOptions {
            vae: Some(golden(family)),
            text_encoders: vec![golden(family); tokenizers(family).len()],
            ..options
        };
        few("UNet and a folder", family, &path, &options);
        // And so do files, whose shapes are read off.
        let stem = golden(family);
        let file = |f: &str| stem.join(f);
        let files = [
            file("text_encoder/model.safetensors"),
            file("text_encoder_2/model.safetensors"),
        ];
        let options = OpenOptions {
            vae: Some(file("vae/diffusion_pytorch_model.safetensors")),
            text_encoders: files.into_iter().filter(|f| f.is_file()).collect(),
            ..options
        };
        few("UNet and files", family, &path, &options);
    }
}

/// Parts out of single files: the whole checkpoint of another person does for `--vae`.
#[test]
fn a_unet_alone_with_parts_of_a_single_file() {
    let dir = tempfile::tempdir().unwrap();
    for family in FAMILIES {
        let path = unet_only(family, dir.path()).unwrap();
        let whole = single_file(family, dir.path()).unwrap();
        let options = OpenOptions {
            vae: Some(whole.clone()),
            text_encoders: vec![whole; tokenizers(family).len()],
            ..OpenOptions::default()
        };
        few("UNet and a single file", family, &path, &options);
    }
}

#[test]
fn folders_of_variants_and_shards() {
    let dir = tempfile::tempdir().unwrap();
    for family in FAMILIES {
        let variant = variant_folder(family, "fp16", dir.path()).unwrap();
        let named = OpenOptions {
            variant: Some("fp16".into()),
            ..OpenOptions::default()
        };
        few("variant", family, &variant, &named);
        // The only variant there is need not be named.
        few("only variant", family, &variant, &OpenOptions::default());
        let shards = dir.path().join("shards");
        let sharded = sharded_folder(family, &shards).unwrap();
        few("sharded", family, &sharded, &OpenOptions::default());
    }
}

/// A folder's vocabulary in place of the model's own, which is taken away.
#[test]
fn tokenizers_given_apart() {
    let dir = tempfile::tempdir().unwrap();
    for family in FAMILIES {
        let folder = aquatint_testkit::folder(family, dir.path()).unwrap();
        for part in ["tokenizer", "tokenizer_2"] {
            std::fs::remove_dir_all(folder.join(part)).ok();
        }
        let options = OpenOptions {
            tokenizers: tokenizers(family),
            ..OpenOptions::default()
        };
        few("tokenizers apart", family, &folder, &options);
    }
}

/// transformers 5 writes text encoders without the `text_model.` prefix, older versions with it.
#[test]
fn text_encoders_with_and_without_the_prefix() {
    let dir = tempfile::tempdir().unwrap();
    for family in FAMILIES {
        let folder = aquatint_testkit::folder(family, dir.path()).unwrap();
        for part in ["text_encoder", "text_encoder_2"] {
            let file = folder.join(part).join("model.safetensors");
            if file.is_file() {
                crate::support::rewrite(&file, |tensors| {
                    let names: Vec<String> = tensors.keys().cloned().collect();
                    for name in names
                        .into_iter()
                        .filter(|n| !n.starts_with("text_projection"))
                    {
                        let other = match name.strip_prefix("text_model.") {
                            Some(rest) => rest.to_owned(),
                            None => format!("text_model.{name}"),
                        };
                        let tensor = tensors.remove(&name).unwrap();
                        tensors.insert(other, tensor);
                    }
                });
            }
        }
        few("other prefix", family, &folder, &OpenOptions::default());
    }
}

#[test]
fn turbo_has_its_own_defaults() {
    let dir = tempfile::tempdir().unwrap();
    let folder = turbo_folder(dir.path()).unwrap();
    let named = dir.path().join("xl_turbo_1.0.safetensors");
    let file = single_file("sdxl", dir.path()).unwrap();
    std::fs::rename(file, &named).unwrap();
    for path in [folder, named] {
        let model = open(&path, &OpenOptions::default());
        let defaults = model.spec.defaults;
        assert_eq!(defaults.size, 512, "{}", path.display());
        assert_eq!(defaults.steps, 1);
        assert_eq!(defaults.guidance, 0.0);
        assert_eq!(model.default_sampler(), "euler_a");
    }
    let plain = open(golden("sdxl"), &OpenOptions::default());
    let defaults = plain.spec.defaults;
    assert_eq!((defaults.size, defaults.steps), (1024, 20));
    assert_eq!(plain.default_sampler(), "euler");
}

/// Runs of one case with another storage type of the weights.
fn stored(family: &str, case: &Case, storage: Storage) -> (Checkpoint, Traced) {
    let options = OpenOptions {
        storage: Some(storage),
        ..OpenOptions::default()
    };
    let model = open(golden(family), &options);
    let traced = run(&model, &request(case)).unwrap();
    (model, traced)
}

/// The goldens are in f16: f32 and f16 hold the same values, bf16 rounds them.
#[test]
fn storage_types() {
    for family in FAMILIES {
        let references = References::read(family);
        let case = references.pick(&["pipe/ddim/g7.5"])[0];
        let last = format!("{}/step{:02}", case.name, case.recorded - 1);
        let want = references.tensors.get(&last).f32();
        for (storage, tolerance) in [
            (Storage::F32, LATENTS),
            (Storage::F16, LATENTS),
            // 8 bits of mantissa: 2^-9 a weight, grown by guidance and five steps.
            (Storage::Bf16, 0.05),
        ] {
            let (model, traced) = stored(family, case, storage);
            let found = compare(traced.latents.last().unwrap(), want);
            eprintln!("{family} {storage:?}: {:.2e}", found.relative);
            assert!(
                found.relative <= tolerance,
                "{family} {storage:?}: {found:?}"
            );
            if storage == Storage::Bf16 {
                assert!(found.relative > LATENTS, "{family}: bf16 rounds nothing?");
            }
            let bytes = model.weight_bytes();
            let half = open(golden(family), &OpenOptions::default()).weight_bytes();
            let factor = if storage == Storage::F32 { 2 } else { 1 };
            assert_eq!(bytes, factor * half, "{family} {storage:?}");
        }
    }
}
