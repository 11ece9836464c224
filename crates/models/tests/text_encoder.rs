//! The text side against diffusers and transformers, on the tiny checkpoints of `golden/`.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;

use aquatint_models::text::{
    ClipSkip, ClipTextConfig, ClipTextEncoder, ClipTokenizer, Conditioner, Conditioning,
    EncodeOptions, Negative, Syntax, TextEncoder,
};
use aquatint_ops::{Device, ParamSource, Params, RawTensor, Tensor};
use aquatint_testkit::{Tensors, compare, golden};

/// What is asked is 1e-4; sums of at most 128 f32 products in another order than PyTorch's give
/// under 2e-6.
const TOLERANCE: f64 = 1e-5;

/// A golden file as a source of parameters, its names changed by `rename`.
struct Source {
    tensors: Tensors,
    rename: fn(&str) -> String,
}

impl ParamSource for Source {
    fn tensor(
        &self,
        name: &str,
        _shape: &[usize],
    ) -> Result<RawTensor, Box<dyn Error + Send + Sync>> {
        let stored = (self.rename)(name);
        if !self.tensors.contains(&stored) {
            return Err(format!("{stored} is not there").into());
        }
        let tensor = self.tensors.get(&stored);
        Ok(RawTensor::from_f32(tensor.f32(), tensor.shape()))
    }

    fn has(&self, name: &str) -> bool {
        self.tensors.contains(&(self.rename)(name))
    }
}

fn config(family: &str, encoder: &str) -> ClipTextConfig {
    let path = golden(&format!("{family}/{encoder}/config.json"));
    ClipTextConfig::from_json(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn load_as(
    family: &str,
    encoder: &str,
    config: &ClipTextConfig,
    rename: fn(&str) -> String,
) -> ClipTextEncoder {
    let path = golden(&format!("{family}/{encoder}/model.safetensors"));
    let source = Source {
        tensors: Tensors::read(path).unwrap(),
        rename,
    };
    ClipTextEncoder::load(&Params::new(&source, &Device::default()), config).unwrap()
}

fn load(family: &str, encoder: &str) -> ClipTextEncoder {
    load_as(family, encoder, &config(family, encoder), str::to_owned)
}

fn tokenizer(family: &str, name: &str) -> ClipTokenizer {
    ClipTokenizer::from_folder(golden(&format!("{family}/{name}"))).unwrap()
}

fn stages(family: &str) -> Tensors {
    Tensors::read(golden(&format!("{family}/stages.safetensors"))).unwrap()
}

fn ids(stages: &Tensors, name: &str) -> Vec<u32> {
    let ids = stages.get(name).i64();
    ids.iter().map(|&id| u32::try_from(id).unwrap()).collect()
}

fn values<const D: usize>(tensor: &Tensor<D>) -> Vec<f32> {
    tensor.clone().into_data().iter::<f32>().collect()
}

#[track_caller]
fn close<const D: usize>(stages: &Tensors, name: &str, got: &Tensor<D>) {
    let got = values(got);
    let want = stages.get(name);
    assert_eq!(got.len(), want.f32().len(), "{name}");
    let found = compare(&got, want.f32());
    println!("{name}: {:.1e}", found.relative);
    aquatint_testkit::assert_close(name, &got, want, TOLERANCE);
}

const ENCODERS: [(&str, &str, &str); 4] = [
    ("sd1", "text_encoder", "tokenizer"),
    ("sd2", "text_encoder", "tokenizer"),
    ("sdxl", "text_encoder", "tokenizer"),
    ("sdxl", "text_encoder_2", "tokenizer_2"),
];

#[test]
fn every_hidden_state_equals_transformers() {
    for (family, name, _) in ENCODERS {
        let stages = stages(family);
        let encoder = load(family, name);
        let layers = encoder.config().num_hidden_layers;
        for p in 0..2 {
            let tokens = vec![ids(&stages, &format!("{name}/tokens/p{p}"))];
            let at = |what: &str| format!("{name}/p{p}/{what}");
            for n in 1..=layers {
                let out = encoder.forward(&tokens, ClipSkip::new(n).unwrap()).unwrap();
                if p == 0 {
                    close(
                        &stages,
                        &at(&format!("hidden{}", layers + 1 - n)),
                        &out.hidden,
                    );
                }
                match n {
                    1 => close(&stages, &at("last_hidden_state"), &out.last_hidden),
                    2 | 3 => {
                        let normed = encoder.final_norm(out.hidden.clone());
                        close(&stages, &at(&format!("clip_skip{n}_normed")), &normed);
                    }
                    _ => {}
                }
                if n == 2 {
                    close(&stages, &at("penultimate"), &out.hidden);
                }
                let pooled = out.text_embeds.as_ref().unwrap_or(&out.pooled);
                close(&stages, &at("pooled"), pooled);
            }
        }
        let mut many = config(family, name);
        many.num_attention_heads = 4;
        let encoder = load_as(family, name, &many, str::to_owned);
        let tokens = [ids(&stages, &format!("{name}/tokens/p0"))];
        let out = encoder.forward(&tokens, ClipSkip::LAST).unwrap();
        let wanted = format!("{name}/heads4/p0/last_hidden_state");
        close(&stages, &wanted, &out.last_hidden);
    }
}

#[test]
fn both_key_layouts_load() {
    // The golden of SD 1.x has no prefix (transformers 5), that of SD 2.x has it.
    fn without(name: &str) -> String {
        name.strip_prefix("text_model.")
            .unwrap_or("absent")
            .to_owned()
    }
    fn with(name: &str) -> String {
        format!("text_model.{name}")
    }
    for (family, rename) in [("sd1", without as fn(&str) -> String), ("sd2", with)] {
        let stages = stages(family);
        let encoder = load_as(
            family,
            "text_encoder",
            &config(family, "text_encoder"),
            rename,
        );
        let tokens = [ids(&stages, "text_encoder/tokens/p0")];
        let out = encoder.forward(&tokens, ClipSkip::LAST).unwrap();
        close(
            &stages,
            "text_encoder/p0/last_hidden_state",
            &out.last_hidden,
        );
    }
}

#[test]
fn the_pooled_output_is_at_the_first_end_token() {
    let stages = stages("sd1");
    let tokens = vec![ids(&stages, "text_encoder/tokens/p0")];
    let legacy = load("sd1", "text_encoder");
    assert_eq!(legacy.config().eos_token_id, 2);
    let mut of_now = config("sd1", "text_encoder");
    of_now.eos_token_id = tokenizer("sd1", "tokenizer").eos();
    let now = load_as("sd1", "text_encoder", &of_now, str::to_owned);
    let pooled = |e: &ClipTextEncoder| values(&e.forward(&tokens, ClipSkip::LAST).unwrap().pooled);
    assert_eq!(pooled(&legacy), pooled(&now));
}

#[test]
fn a_batch_is_its_rows() {
    let stages = stages("sdxl");
    let encoder = load("sdxl", "text_encoder_2");
    let rows: Vec<_> = (0..2)
        .map(|p| ids(&stages, &format!("text_encoder_2/tokens/p{p}")))
        .collect();
    let out = encoder.forward(&rows, ClipSkip::PENULTIMATE).unwrap();
    for p in 0..2 {
        let hidden = out.hidden.clone().narrow(0, p, 1);
        close(
            &stages,
            &format!("text_encoder_2/p{p}/penultimate"),
            &hidden,
        );
        let pooled = out.text_embeds.clone().unwrap().narrow(0, p, 1);
        close(&stages, &format!("text_encoder_2/p{p}/pooled"), &pooled);
    }
}

#[test]
fn wrong_inputs_are_errors() {
    let encoder = load("sd1", "text_encoder");
    let run = |tokens: &[Vec<u32>], skip| encoder.forward(tokens, ClipSkip::new(skip).unwrap());
    for (tokens, skip) in [
        (vec![], 1),
        (vec![vec![]], 1),
        (vec![vec![0; 78]], 1),
        (vec![vec![0; 4], vec![0; 5]], 1),
        (vec![vec![760]], 1),
        (vec![vec![0]], 5),
        (vec![vec![0]], usize::MAX),
    ] {
        let error = run(&tokens, skip).unwrap_err().to_string();
        assert!(error.starts_with("text_encoder: "), "{error}");
    }
    let mut config = config("sd1", "text_encoder");
    config.vocab_size = 761;
    let path: PathBuf = golden("sd1/text_encoder/model.safetensors");
    let source = Source {
        tensors: Tensors::read(path).unwrap(),
        rename: str::to_owned,
    };
    let params = Params::new(&source, &Device::default());
    let error = ClipTextEncoder::load(&params, &config).unwrap_err();
    assert!(error.to_string().contains("expected [761, 32]"), "{error}");
    let embedded = ClipTokenizer::embedded(aquatint_models::text::Padding::EndOfText).unwrap();
    assert!(TextEncoder::new(embedded, encoder).is_err());
}

fn encoder(family: &str, encoder: &str, name: &str) -> TextEncoder {
    TextEncoder::new(Arc::new(tokenizer(family, name)), load(family, encoder)).unwrap()
}

fn conditioner(family: &str) -> Conditioner {
    let first = encoder(family, "text_encoder", "tokenizer");
    match family {
        "sdxl" => {
            let second = encoder(family, "text_encoder_2", "tokenizer_2");
            Conditioner::sdxl(vec![first, second], true).unwrap()
        }
        _ => Conditioner::stable_diffusion(first),
    }
}

// As in golden/common.py.
const PROMPTS: [&str; 2] = [
    "a photograph of an astronaut riding a horse on the moon",
    "a red apple on a wooden table, soft light",
];
const NEGATIVE: &str = "blurry, low quality, deformed";

fn plain() -> EncodeOptions {
    EncodeOptions {
        syntax: Syntax::Plain,
        clip_skip: None,
    }
}

#[test]
fn prompts_equal_the_pipelines_of_diffusers() {
    for family in ["sd1", "sd2", "sdxl"] {
        let stages = stages(family);
        let conditioner = conditioner(family);
        for (p, prompt) in PROMPTS.iter().enumerate() {
            // No brackets here: the web UI's syntax gives the same.
            for options in [plain(), EncodeOptions::default()] {
                let encoded = conditioner
                    .encode(prompt, Negative::Text(NEGATIVE), options)
                    .unwrap();
                assert!(encoded.dropped.is_empty());
                let negative = encoded.negative.unwrap();
                let check = |name: &str, c: &Conditioning| {
                    close(&stages, &format!("{name}prompt_embeds/p{p}"), &c.embeddings);
                    assert_eq!(c.pooled.is_some(), family == "sdxl");
                    if let Some(pooled) = &c.pooled {
                        close(&stages, &format!("{name}pooled_prompt_embeds/p{p}"), pooled);
                    }
                };
                // diffusers writes negative_pooled_prompt_embeds.
                check("", &encoded.positive);
                check("negative_", &negative);
            }
        }
    }
}

#[test]
fn clip_skip_takes_the_layer_of_diffusers() {
    // ours 2 = diffusers 1 for SD 1.x: normalised; the negative prompt keeps the last layer there.
    let stages1 = stages("sd1");
    let skip = EncodeOptions {
        syntax: Syntax::Plain,
        clip_skip: Some(ClipSkip::PENULTIMATE),
    };
    let sd1 = conditioner("sd1");
    let encoded = sd1
        .encode(PROMPTS[0], Negative::Text(NEGATIVE), skip)
        .unwrap();
    let negative = encoded.negative.unwrap();
    close(
        &stages1,
        "text_encoder/p0/clip_skip2_normed",
        &encoded.positive.embeddings,
    );
    close(&stages1, "negative_prompt_embeds/p0", &negative.embeddings);
    // The web UI skips for both.
    let both = EncodeOptions {
        syntax: Syntax::Automatic1111,
        ..skip
    };
    let encoded = sd1
        .encode(NEGATIVE, Negative::Text(PROMPTS[0]), both)
        .unwrap();
    let negative = encoded.negative.unwrap();
    close(
        &stages1,
        "text_encoder/p0/clip_skip2_normed",
        &negative.embeddings,
    );
    // SDXL counts the same, and its default is 2. Encoder 1 has 4 layers, encoder 2 has 5.
    let sdxl_stages = stages("sdxl");
    let skip = EncodeOptions {
        syntax: Syntax::Plain,
        clip_skip: Some(ClipSkip::new(3).unwrap()),
    };
    let sdxl = conditioner("sdxl");
    let encoded = sdxl.encode(PROMPTS[0], Negative::Unused, skip).unwrap();
    let embeddings = encoded.positive.embeddings;
    close(
        &sdxl_stages,
        "text_encoder/p0/hidden2",
        &embeddings.clone().narrow(2, 0, 16),
    );
    close(
        &sdxl_stages,
        "text_encoder_2/p0/hidden3",
        &embeddings.narrow(2, 16, 32),
    );
    let too_deep = EncodeOptions {
        clip_skip: Some(ClipSkip::new(5).unwrap()),
        ..skip
    };
    assert!(sdxl.encode("a", Negative::Unused, too_deep).is_err());
}

#[test]
fn an_absent_negative_prompt_is_zeros_in_sdxl_and_empty_elsewhere() {
    let encoded = conditioner("sdxl")
        .encode("a cat", Negative::Absent, plain())
        .unwrap();
    let negative = encoded.negative.unwrap();
    assert!(values(&negative.embeddings).iter().all(|&v| v == 0.0));
    assert!(values(&negative.pooled.unwrap()).iter().all(|&v| v == 0.0));
    assert_eq!(negative.embeddings.dims(), [1, 77, 48]);
    let sd1 = conditioner("sd1");
    let absent = sd1.encode("a cat", Negative::Absent, plain()).unwrap();
    let empty = sd1.encode("a cat", Negative::Text(""), plain()).unwrap();
    let negative = |e: aquatint_models::text::Encoded| values(&e.negative.unwrap().embeddings);
    assert_eq!(negative(absent), negative(empty));
    let off = sd1.encode("a cat", Negative::Unused, plain()).unwrap();
    assert!(off.negative.is_none());
}

#[test]
fn long_prompts_take_chunks_and_the_negative_as_many() {
    let conditioner = conditioner("sdxl");
    let options = EncodeOptions::default();
    let encode = |p: &str, n: &str| conditioner.encode(p, Negative::Text(n), options).unwrap();
    let encoded = encode("a red cat BREAK a blue dog", "bad");
    let negative = encoded.negative.unwrap();
    assert_eq!(encoded.positive.embeddings.dims(), [1, 154, 48]);
    assert_eq!(negative.embeddings.dims(), [1, 154, 48]);
    let part = |c: &Conditioning, i: usize| values(&c.embeddings.clone().narrow(1, 77 * i, 77));
    let alone = |text| encode(text, "");
    assert_eq!(
        part(&encoded.positive, 0),
        part(&alone("a red cat").positive, 0)
    );
    assert_eq!(
        part(&encoded.positive, 1),
        part(&alone("a blue dog").positive, 0)
    );
    assert_eq!(part(&negative, 1), part(&alone("").positive, 0));
    let pooled = |c: &Conditioning| values(c.pooled.as_ref().unwrap());
    assert_eq!(
        pooled(&encoded.positive),
        pooled(&alone("a red cat").positive)
    );
    // More chunks than are encoded at once.
    let many = encode(&["cat"; 11].join(" BREAK "), "");
    assert_eq!(many.positive.embeddings.dims(), [1, 847, 48]);
    assert_eq!(part(&many.positive, 10), part(&alone("cat").positive, 0));
    let too_many = "BREAK ".repeat(64) + "a";
    let error = conditioner
        .encode(&too_many, Negative::Unused, options)
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "prompt: found 65 chunks of 75 tokens, expected at most 64; shorten the prompt"
    );
}

#[test]
fn plain_syntax_drops_what_does_not_fit_and_says_so() {
    let conditioner = conditioner("sdxl");
    let long = "the red cat ".repeat(25) + "and a dog";
    let encoded = conditioner
        .encode(&long, Negative::Text(&long), plain())
        .unwrap();
    assert_eq!(encoded.dropped, ["and a dog"]);
    assert_eq!(encoded.positive.embeddings.dims(), [1, 77, 48]);
}

#[test]
fn weights_multiply_embeddings_and_keep_their_mean() {
    let conditioner = conditioner("sd1");
    let encode = |text| {
        let encoded = conditioner.encode(text, Negative::Unused, EncodeOptions::default());
        values(&encoded.unwrap().positive.embeddings)
    };
    let (plain, weighed) = (encode("a red cat"), encode("a (red:1.5) cat"));
    let mean = |v: &[f32]| v.iter().map(|&x| f64::from(x)).sum::<f64>() / v.len() as f64;
    let ratio = |i: usize| f64::from(weighed[i]) / f64::from(plain[i]);
    let scale = ratio(0);
    for i in 0..plain.len() {
        let factor = if i / 32 == 2 { 1.5 } else { 1.0 };
        assert!((ratio(i) / (scale * factor) - 1.0).abs() < 1e-4, "{i}");
    }
    let (before, after) = (mean(&plain), mean(&weighed));
    println!("means {before} {after}, scale {scale}");
    assert!((before - after).abs() < 1e-6 || scale == 1.0);
}
