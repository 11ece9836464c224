//! Configurations, as people write them.

use std::path::Path;

use aquatint_train::config::{AutoencoderConfig, DiffusionConfig};

fn said(text: &str) -> String {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("config.toml");
    std::fs::write(&path, text).expect("file");
    let error = DiffusionConfig::read(&path)
        .expect_err("refused")
        .to_string();
    error.replace(&path.display().to_string(), "config.toml")
}

const GOOD: &str =
    "steps = 10\nbatch_size = 2\n[model]\nkind = \"points\"\n[data]\npoints = \"swiss-roll\"\n";

#[test]
fn slips_are_told_with_their_line_and_the_nearest_name() {
    let message = said(&GOOD.replace("batch_size", "batchsize"));
    assert!(
        message.starts_with(
            "config.toml, line 2: `batchsize` is not a known key; did you mean `batch_size`?"
        ),
        "{message}"
    );
    let message = said(&format!("{GOOD}[learning_rate]\npeek = 1e-3\n"));
    assert!(
        message.contains("line 8: `peek` is not a known key; did you mean `peak`?"),
        "{message}"
    );
    let message = said(&format!("{GOOD}[learning_rate]\ndecay = \"cosinus\"\n"));
    assert!(message.contains("did you mean `cosine`?"), "{message}");
    let message = said("steps = 10\nbatch_size = [");
    assert!(message.starts_with("config.toml, line 2"), "{message}");
}

#[test]
fn values_out_of_range_are_told() {
    for (change, expected) in [
        ("steps = 0", "steps is 0; expected 1 to"),
        ("steps = 10\naccumulate = 0", "accumulate is 0"),
        ("steps = 10\nclip_norm = -1.0", "clip_norm is -1"),
    ] {
        let message = said(&GOOD.replace("steps = 10", change));
        assert!(message.contains(expected), "{message}");
    }
    for (table, expected) in [
        ("[optimizer]\nbeta1 = 1.0", "optimizer.beta1 is 1"),
        ("[ema]\ndecay = 2.0", "ema.decay is 2"),
        ("[objective]\nbeta_start = 2.0", "beta"),
        ("[objective]\nzero_terminal_snr = true", "zero terminal SNR"),
        (
            "[objective]\nloss_weight = { kind = \"min-snr\", gamma = 0.0 }",
            "loss_weight.gamma is 0",
        ),
        ("[lora]\nrank = 4", "lora is set; expected absent"),
        ("[warm_up]\nsteps = 0", "warm_up.steps is 0"),
        (
            "[objective]\nprediction = \"flow_matching\"\nbeta_end = 0.02",
            "objective.beta_end is set",
        ),
        ("[checkpoint]\nkeep = 0", "checkpoint.keep is 0"),
    ] {
        let message = said(&format!("{GOOD}{table}\n"));
        assert!(message.contains(expected), "{message}");
    }
    let message = said(&GOOD.replace("points = \"swiss-roll\"", "dir = \"x\""));
    assert!(message.contains("swiss-roll"), "{message}");
    let message = said("steps = 1\nbatch_size = 1\n[model]\n[data]\ndir = \"x\"\n");
    assert!(message.contains("model.unet is absent"), "{message}");
}

#[test]
fn the_configurations_of_this_repository_are_valid() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    DiffusionConfig::read(&root.join("examples/swiss_roll.toml")).expect("valid");
    DiffusionConfig::read(&root.join("examples/digits.toml")).expect("valid");
    DiffusionConfig::read(&root.join("models/emoji.toml")).expect("valid");
    AutoencoderConfig::read(&root.join("models/emoji_autoencoder.toml")).expect("valid");
}
