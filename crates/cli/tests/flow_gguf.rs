//! Transformers and T5 in GGUF files: from `convert` to the picture.

use std::path::{Path, PathBuf};

use aquatint_testkit::{flow_folder, flow_single_file, golden, psnr};
use serde_json::Value;

mod common;

use common::{Place, arg};

/// Random models whose rows are whole blocks of 256, in diffusers' names.
mod wide {
    use std::collections::BTreeMap;
    use std::path::Path;

    use aquatint_engine::weights::{DType, TensorSpec, Writer};

    /// Channels of everything.
    const WIDTH: usize = 256;
    /// Channels of a head.
    const HEAD: usize = 64;

    #[derive(Default)]
    struct Tensors(Vec<(String, Vec<usize>)>);

    impl Tensors {
        fn add(&mut self, name: impl Into<String>, shape: &[usize]) {
            self.0.push((name.into(), shape.to_vec()));
        }

        fn linear(&mut self, name: impl Into<String>, from: usize, to: usize) {
            let name = name.into();
            self.add(format!("{name}.weight"), &[to, from]);
            self.add(format!("{name}.bias"), &[to]);
        }

        /// Projections that keep the width.
        fn square(&mut self, at: &str, names: &[&str]) {
            for name in names {
                self.linear(format!("{at}.{name}"), WIDTH, WIDTH);
            }
        }

        fn norms(&mut self, at: &str, names: &[&str]) {
            for name in names {
                self.add(format!("{at}.{name}.weight"), &[HEAD]);
            }
        }

        fn feed_forward(&mut self, at: &str) {
            self.linear(format!("{at}.net.0.proj"), WIDTH, 4 * WIDTH);
            self.linear(format!("{at}.net.2"), 4 * WIDTH, WIDTH);
        }

        fn times(&mut self, pooled: usize, guidance: bool) {
            let at = "time_text_embed";
            let embedders: &[_] = match guidance {
                true => &["timestep_embedder", "guidance_embedder"],
                false => &["timestep_embedder"],
            };
            for embedder in embedders {
                self.square(&format!("{at}.{embedder}"), &["linear_1", "linear_2"]);
            }
            self.linear(format!("{at}.text_embedder.linear_1"), pooled, WIDTH);
            self.linear(format!("{at}.text_embedder.linear_2"), WIDTH, WIDTH);
        }

        /// Attention of two streams.
        fn joint(&mut self, at: &str, last: bool) {
            let attn = format!("{at}.attn");
            let names = [
                "to_q",
                "to_k",
                "to_v",
                "add_q_proj",
                "add_k_proj",
                "add_v_proj",
                "to_out.0",
            ];
            self.square(&attn, &names);
            self.norms(&attn, &["norm_q", "norm_k", "norm_added_q", "norm_added_k"]);
            self.feed_forward(&format!("{at}.ff"));
            if !last {
                self.square(&attn, &["to_add_out"]);
                self.feed_forward(&format!("{at}.ff_context"));
            }
        }

        /// Writes them, each number drawn by the place of its tensor.
        fn write(self, path: &Path) {
            let specs: Vec<TensorSpec> = self
                .0
                .iter()
                .map(|(name, shape)| TensorSpec {
                    name: name.clone(),
                    dtype: DType::F16,
                    shape: shape.clone(),
                })
                .collect();
            let mut writer = Writer::create(path, &specs, &BTreeMap::new()).expect("a file");
            for (i, (name, shape)) in self.0.iter().enumerate() {
                let mut state = i as u64 + 1;
                let one = name.ends_with("norm.weight") || name.contains(".norm_");
                let row: usize = shape[1..].iter().product();
                let spread = match shape.len() {
                    1 => 0.1,
                    _ => strength(name) / (row as f64).sqrt(),
                };
                let numbers = shape.iter().product();
                let bytes: Vec<u8> = (0..numbers)
                    .flat_map(|_| {
                        let x = f64::from(u8::from(one && shape.len() == 1))
                            + spread * normal(&mut state);
                        half::f16::from_f64(x).to_le_bytes()
                    })
                    .collect();
                writer.write(name, &bytes).expect("a tensor");
            }
            writer.finish().expect("a file");
        }
    }

    /// As golden/make_flow.py draws: branches add half of what they could, and T5 does not scale its logits.
    fn strength(name: &str) -> f64 {
        let halves = [
            ".linear.weight",
            ".wo.weight",
            "SelfAttention.o.weight",
            "to_add_out.weight",
        ];
        if halves.iter().any(|end| name.ends_with(end)) {
            return 0.5;
        }
        match name.ends_with("SelfAttention.q.weight") {
            true => 1.4 / (HEAD as f64).sqrt(),
            false => 1.0,
        }
    }

    /// Nearly normal: twelve even draws (of splitmix64).
    fn normal(state: &mut u64) -> f64 {
        let mut even = || {
            *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = *state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
        };
        (0..12).map(|_| even()).sum::<f64>() - 6.0
    }

    /// As Stable Diffusion 3.5 Medium, of two blocks; the first attends twice.
    pub fn stable_diffusion(path: &Path) {
        let mut t = Tensors::default();
        t.add("pos_embed.proj.weight", &[WIDTH, 16, 2, 2]);
        t.add("pos_embed.proj.bias", &[WIDTH]);
        t.add("pos_embed.pos_embed", &[1, 144, WIDTH]);
        t.times(48, false);
        t.linear("context_embedder", WIDTH, WIDTH);
        for (i, last) in [(0, false), (1, true)] {
            let at = format!("transformer_blocks.{i}");
            t.linear(
                format!("{at}.norm1.linear"),
                WIDTH,
                if last { 6 } else { 9 } * WIDTH,
            );
            t.linear(
                format!("{at}.norm1_context.linear"),
                WIDTH,
                if last { 2 } else { 6 } * WIDTH,
            );
            t.joint(&at, last);
            if !last {
                let attn = format!("{at}.attn2");
                t.square(&attn, &["to_q", "to_k", "to_v", "to_out.0"]);
                t.norms(&attn, &["norm_q", "norm_k"]);
            }
        }
        t.linear("norm_out.linear", WIDTH, 2 * WIDTH);
        t.linear("proj_out", WIDTH, 64);
        t.write(path);
    }

    /// As FLUX.1 dev, of two blocks of each kind.
    pub fn flux(path: &Path) {
        let mut t = Tensors::default();
        t.linear("x_embedder", 64, WIDTH);
        t.linear("context_embedder", WIDTH, WIDTH);
        t.times(16, true);
        for i in 0..2 {
            let at = format!("transformer_blocks.{i}");
            t.linear(format!("{at}.norm1.linear"), WIDTH, 6 * WIDTH);
            t.linear(format!("{at}.norm1_context.linear"), WIDTH, 6 * WIDTH);
            t.joint(&at, false);
            let at = format!("single_transformer_blocks.{i}");
            t.linear(format!("{at}.norm.linear"), WIDTH, 3 * WIDTH);
            t.square(&format!("{at}.attn"), &["to_q", "to_k", "to_v"]);
            t.norms(&format!("{at}.attn"), &["norm_q", "norm_k"]);
            t.linear(format!("{at}.proj_mlp"), WIDTH, 4 * WIDTH);
            t.linear(format!("{at}.proj_out"), 5 * WIDTH, WIDTH);
        }
        t.linear("norm_out.linear", WIDTH, 2 * WIDTH);
        t.linear("proj_out", WIDTH, 64);
        t.write(path);
    }

    /// T5 of two blocks, for the vocabulary of the tiny models.
    pub fn t5(path: &Path) {
        let mut t = Tensors::default();
        t.add("shared.weight", &[696, WIDTH]);
        // transformers writes it twice.
        t.add("encoder.embed_tokens.weight", &[696, WIDTH]);
        for i in 0..2 {
            let at = format!("encoder.block.{i}.layer");
            for name in ["q", "k", "v", "o"] {
                t.add(
                    format!("{at}.0.SelfAttention.{name}.weight"),
                    &[WIDTH, WIDTH],
                );
            }
            if i == 0 {
                t.add(
                    format!("{at}.0.SelfAttention.relative_attention_bias.weight"),
                    &[32, 4],
                );
            }
            for name in ["wi_0", "wi_1"] {
                t.add(
                    format!("{at}.1.DenseReluDense.{name}.weight"),
                    &[2 * WIDTH, WIDTH],
                );
            }
            t.add(
                format!("{at}.1.DenseReluDense.wo.weight"),
                &[WIDTH, 2 * WIDTH],
            );
            for layer in [0, 1] {
                t.add(format!("{at}.{layer}.layer_norm.weight"), &[WIDTH]);
            }
        }
        t.add("encoder.final_layer_norm.weight", &[WIDTH]);
        t.write(path);
    }
}

fn part(name: &str) -> PathBuf {
    golden(&format!("flow/parts/{name}"))
}

/// Draws with a transformer and T5, the rest from the tiny models. T5's tokenizer is that of its own file, or beside it.
fn draw(place: &Place, flux: bool, model: &Path, t5: &Path, name: &str) -> Vec<u8> {
    let (vae, picture) = (part("vae"), place.join(name));
    let mut args = vec![
        "generate",
        "a red apple",
        "--seed",
        "7",
        "--steps",
        "4",
        "--width",
        "128",
    ];
    args.extend(["--height", "96", "--guidance", "3.5", "-f"]);
    args.extend([
        "-m",
        arg(model),
        "--t5",
        arg(t5),
        "--vae",
        arg(&vae),
        "-o",
        arg(&picture),
    ]);
    let clips = ["", "_2"].map(|n| {
        (
            part(&format!("text_encoder{n}")),
            part(&format!("tokenizer{n}")),
        )
    });
    for (encoder, tokenizer) in clips.iter().take(if flux { 1 } else { 2 }) {
        args.extend([
            "--text-encoder",
            arg(encoder),
            "--tokenizer",
            arg(tokenizer),
        ]);
    }
    place.ok(args);
    aquatint_testkit::read_png(picture).expect("a picture").2
}

/// Converts to GGUF and returns the file, and each tensor's name, shape and type in it.
fn convert(place: &Place, source: &Path, name: &str, to: &str) -> (PathBuf, Vec<Value>) {
    let out = place.join(format!("{name}-{to}.gguf"));
    place.ok(["convert", arg(source), arg(&out), "--to", to]);
    let mut seen = place.json(["inspect", "--tensors", arg(&out)]);
    let Value::Array(tensors) = seen["weights"]["tensors"].take() else {
        panic!("no list in {seen}");
    };
    (out, tensors)
}

fn names(tensors: &[Value]) -> Vec<&str> {
    tensors.iter().filter_map(|t| t["name"].as_str()).collect()
}

/// The tiny models in the original layout, whose rows are too short for blocks of 256.
#[test]
fn the_original_layout_as_gguf() {
    for family in ["sd35_medium", "flux_dev"] {
        let place = Place::new();
        let bare = |name: &str| name.starts_with("model.diffusion_model.");
        let source = flow_single_file(family, place.path(), bare).expect("a golden");
        let flux = family.starts_with("flux");
        let t5 = place.join("model/text_encoder_3");
        for part_name in ["text_encoder_3", "tokenizer_3"] {
            let to = place.join("model").join(part_name);
            std::fs::create_dir_all(&to).expect("a folder");
            for entry in std::fs::read_dir(part(part_name)).expect("a golden") {
                let from = entry.expect("a file").path();
                std::fs::copy(&from, to.join(from.file_name().expect("a name"))).expect("a copy");
            }
        }
        // The tokenizer in the place of a model's folder, for the picture to compare with.
        let beside = place.join("tokenized");
        std::fs::create_dir(&beside).expect("a folder");
        for file in [
            "text_encoder_3/model.safetensors",
            "text_encoder_3/config.json",
            "tokenizer_3/tokenizer.json",
        ] {
            let name = Path::new(file).file_name().expect("a name");
            std::fs::copy(place.join("model").join(file), beside.join(name)).expect("a copy");
        }
        let want = draw(&place, flux, &source, &beside, "want.png");
        let drawn = |to: &str| {
            let (model, _) = convert(&place, &source, family, to);
            let (t5, tensors) = convert(&place, &t5, "t5", to);
            assert!(
                names(&tensors).contains(&"enc.blk.1.ffn_gate.weight"),
                "{tensors:?}"
            );
            draw(&place, flux, &model, &t5, &format!("{to}.png"))
        };
        assert!(
            drawn("f16") == want,
            "{family}: f16 in f16 is the same model"
        );
        let found = psnr(&drawn("q8_0"), &want);
        println!("{family}: q8_0 {found:.1} dB");
        assert!(found >= 35.0, "{family}: {found:.1} dB");
    }
}

/// Models in diffusers' names whose rows are whole blocks: every kind of block is in the file, and in the picture.
#[test]
fn folders_of_diffusers_as_gguf() {
    type Write = fn(&Path);
    let families: [(&str, Write, &str); 2] = [
        (
            "sd3",
            wide::stable_diffusion,
            "joint_blocks.0.x_block.attn2.qkv.weight",
        ),
        ("flux", wide::flux, "single_blocks.1.linear1.weight"),
    ];
    for (family, write, fused) in families {
        let place = Place::new();
        let (transformer, t5) = (place.join("transformer"), place.join("text_encoder_2"));
        for folder in [&transformer, &t5] {
            std::fs::create_dir(folder).expect("a folder");
        }
        write(&transformer.join("diffusion_pytorch_model.safetensors"));
        wide::t5(&t5.join("model.safetensors"));
        std::fs::copy(part("tokenizer_3/spiece.model"), t5.join("spiece.model")).expect("a copy");
        let plain = transformer.join("diffusion_pytorch_model.safetensors");
        let flux = family == "flux";
        let want = draw(&place, flux, &plain, &t5, "want.png");
        let mut found = Vec::new();
        for (to, stored) in [
            ("f16", "F16"),
            ("q8_0", "Q8_0"),
            ("q4_k", "Q4_K"),
            ("q2_k", "Q2_K"),
        ] {
            let (model, tensors) = convert(&place, &transformer, family, to);
            let (t5, of_t5) = convert(&place, &t5, "t5", to);
            assert!(names(&tensors).contains(&fused), "{:?}", names(&tensors));
            let blocks = tensors.iter().chain(&of_t5).filter(|tensor| {
                let name = tensor["name"].as_str().expect("a name");
                let wide = tensor["shape"][1]
                    .as_u64()
                    .is_some_and(|n| n.is_multiple_of(256));
                wide && [
                    "joint_blocks.",
                    "double_blocks.",
                    "single_blocks.",
                    "enc.blk.",
                ]
                .iter()
                .any(|b| name.starts_with(b))
            });
            let mut count = 0;
            for tensor in blocks {
                assert_eq!(tensor["dtype"], stored, "{tensor}");
                count += 1;
            }
            assert!(count >= 14 + 13, "{count} weights");
            found.push(psnr(
                &draw(&place, flux, &model, &t5, &format!("{to}.png")),
                &want,
            ));
        }
        println!("{family}: f16, q8_0, q4_k, q2_k {found:.1?} dB");
        assert_eq!(found[0], f64::INFINITY, "f16 in f16 is the same model");
        assert!(
            found[1] >= 35.0 && found[2] >= 25.0,
            "{family}: {found:.1?} dB"
        );
        // The blocks are heard.
        assert!(
            found[1] > found[2] + 6.0 && found[2] > found[3] + 3.0,
            "{family}: {found:.1?} dB"
        );
    }
}

/// Each folder of a component gets the very names and values that its makers' file has, and back.
#[test]
fn layouts_there_and_back() {
    for family in [
        "sd3",
        "sd35_medium",
        "sd35_large",
        "flux_dev",
        "flux_schnell",
    ] {
        let place = Place::new();
        let bare = |name: &str| name.starts_with("model.diffusion_model.");
        let single = flow_single_file(family, place.path(), bare).expect("a golden");
        let folder = flow_folder(family, &place.join("models")).expect("a golden");
        there_and_back(
            &place,
            &single,
            &folder.join("transformer"),
            "model.diffusion_model.",
        );
    }
    for family in ["sd1", "sd2", "sdxl"] {
        let place = Place::new();
        let whole = aquatint_testkit::single_file(family, place.path()).expect("a golden");
        for (component, prefix) in [
            ("unet", "model.diffusion_model."),
            ("vae", "first_stage_model."),
        ] {
            let single = place.join(format!("{component}.safetensors"));
            cut(&whole, prefix, &single);
            there_and_back(&place, &single, &golden(family).join(component), prefix);
        }
    }
}

type Stored = std::collections::BTreeMap<String, (Vec<usize>, Vec<u8>)>;

fn stored(path: &Path) -> Stored {
    let bytes = std::fs::read(path).expect("a file");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let tensors = file.iter();
    tensors
        .map(|(name, t)| (name.to_owned(), (t.shape().to_vec(), t.data().to_vec())))
        .collect()
}

/// The tensors of a file that begin so.
fn cut(whole: &Path, prefix: &str, into: &Path) {
    let tensors = stored(whole);
    let views = tensors
        .iter()
        .filter(|(name, _)| name.starts_with(prefix))
        .map(|(name, (shape, data))| {
            let view =
                safetensors::tensor::TensorView::new(safetensors::Dtype::F16, shape.clone(), data);
            (name.as_str(), view.expect("a tensor"))
        });
    let bytes = safetensors::serialize(views, None).expect("safetensors");
    std::fs::write(into, bytes).expect("a file");
}

#[track_caller]
fn there_and_back(place: &Place, single: &Path, folder: &Path, prefix: &str) {
    let weights = folder.join("diffusion_pytorch_model.safetensors");
    let (there, back) = (
        place.join("there.safetensors"),
        place.join("back.safetensors"),
    );
    let convert = |from: &Path, to: &Path, layout: &str| {
        place.ok([
            "convert",
            arg(from),
            arg(to),
            "--to",
            "f16",
            "--layout",
            layout,
        ]);
    };
    convert(folder, &there, "original");
    let bare = |stored: Stored| -> Stored {
        let name = |name: String| name.strip_prefix(prefix).unwrap_or(&name).to_owned();
        stored.into_iter().map(|(n, t)| (name(n), t)).collect()
    };
    same(&stored(&there), &bare(stored(single)), "original");
    convert(single, &back, "diffusers");
    same(&stored(&back), &stored(&weights), "diffusers");
    // What has the names already keeps them.
    convert(single, &there, "original");
    same(&stored(&there), &stored(single), "original again");
    convert(folder, &there, "keep");
    same(&stored(&there), &stored(&weights), "kept");
}

#[track_caller]
fn same(found: &Stored, want: &Stored, what: &str) {
    let names = |s: &Stored| s.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(found), names(want), "{what}");
    for (name, tensor) in want {
        assert_eq!(found[name].0, tensor.0, "{what}: {name}");
        assert!(found[name].1 == tensor.1, "{what}: {name}");
    }
}

/// What a GGUF file of T5 tells, where its tokenizer is from, and what is not put into it.
#[test]
fn t5_in_llama_cpp_s_words() {
    let place = Place::new();
    let t5 = place.join("t5");
    std::fs::create_dir(&t5).expect("a folder");
    wide::t5(&t5.join("model.safetensors"));
    let out = place.join("t5.gguf");
    let args = ["convert", arg(&t5), arg(&out), "--to", "q8_0"];
    let told = place.ok(args);
    assert!(
        told.contains("without a tokenizer") && told.contains("architecture t5encoder"),
        "{told}"
    );
    assert!(
        told.contains("left out: encoder.embed_tokens.weight"),
        "{told}"
    );
    let tokenizer = part("tokenizer_3");
    let told = place.json([&args[..], &["--tokenizer", arg(&tokenizer)]].concat());
    let file = told["tokenizer"].as_str().expect("a path");
    assert!(file.ends_with("tokenizer_3/spiece.model"), "{file}");
    let seen = place.json(["inspect", arg(&out)]);
    let notes = &seen["weights"]["files"][0]["metadata"];
    for (key, want) in [
        ("general.architecture", "t5encoder"),
        ("t5encoder.block_count", "2"),
        ("t5encoder.embedding_length", "256"),
        ("t5encoder.feed_forward_length", "512"),
        ("t5encoder.attention.head_count", "4"),
        ("t5encoder.attention.key_length", "64"),
        ("t5encoder.attention.relative_buckets_count", "32"),
        ("tokenizer.ggml.model", "t5"),
        ("tokenizer.ggml.eos_token_id", "1"),
        ("tokenizer.ggml.tokens", "696 of string"),
    ] {
        assert_eq!(notes[key], want, "{key}");
    }
    // Made of a GGUF file again, it keeps its tokenizer.
    let again = place.join("again.gguf");
    let told = place.ok(["convert", arg(&out), arg(&again), "--to", "q4_k"]);
    assert!(!told.contains("without a tokenizer"), "{told}");
    let seen = place.json(["inspect", arg(&again)]);
    let notes = &seen["weights"]["files"][0]["metadata"];
    assert_eq!(notes["tokenizer.ggml.tokens"], "696 of string");
    // And as transformers names it.
    let back = place.join("back.safetensors");
    place.ok([
        "convert",
        arg(&out),
        arg(&back),
        "--to",
        "f16",
        "--layout",
        "diffusers",
    ]);
    let (found, want) = (stored(&back), stored(&t5.join("model.safetensors")));
    let want = want
        .keys()
        .filter(|name| *name != "encoder.embed_tokens.weight");
    assert!(found.keys().eq(want), "{:?}", found.keys());
}

#[test]
fn what_cannot_be_renamed_is_refused() {
    let place = Place::new();
    let whole = flow_single_file("sd3", place.path(), |_| true).expect("a golden");
    let said = place.refused(
        1,
        [
            "convert",
            arg(&whole),
            "out.safetensors",
            "--to",
            "f16",
            "--layout",
            "diffusers",
        ],
    );
    assert!(said.contains("more than one component"), "{said}");
    let folder = golden("flow/sd3/transformer");
    let tokenizer = part("tokenizer_3");
    let said = place.refused(
        2,
        [
            "convert",
            arg(&folder),
            "out.gguf",
            "--to",
            "f16",
            "--tokenizer",
            arg(&tokenizer),
        ],
    );
    assert!(said.contains("GGUF files of T5"), "{said}");
    // A part of what the original has in one piece is not there.
    let broken = place.join("broken.safetensors");
    let mut tensors = stored(&folder.join("diffusion_pytorch_model.safetensors"));
    tensors.remove("transformer_blocks.1.attn.add_k_proj.weight");
    let views = tensors.iter().map(|(name, (shape, data))| {
        let view =
            safetensors::tensor::TensorView::new(safetensors::Dtype::F16, shape.clone(), data);
        (name.as_str(), view.expect("a tensor"))
    });
    std::fs::write(
        &broken,
        safetensors::serialize(views, None).expect("safetensors"),
    )
    .expect("a file");
    let said = place.refused(1, ["convert", arg(&broken), "out.gguf", "--to", "f16"]);
    assert!(
        said.contains("part 1 of 3 of joint_blocks.1.context_block.attn.qkv.weight"),
        "{said}"
    );
}

/// Options of the transformer families, and what they are refused for.
#[test]
fn tokens_and_negative_prompts() {
    let place = Place::new();
    let flux = flow_folder("flux_schnell", place.path()).expect("a golden");
    let small = [
        "generate",
        "a red apple",
        "--seed",
        "7",
        "--steps",
        "2",
        "--width",
        "64",
        "--height",
        "64",
    ];
    let run = |more: &[&str]| {
        place.json([&small[..], &["-m", arg(&flux), "-f", "-o", "a.png"], more].concat())
    };
    let picture = |more: &[&str]| {
        run(more);
        aquatint_testkit::read_png(place.join("a.png"))
            .expect("a picture")
            .2
    };
    let plain = picture(&[]);
    assert!(
        picture(&["--t5-tokens", "512"]) == plain,
        "512 are the family's own"
    );
    assert!(picture(&["--t5-tokens", "77"]) != plain);
    let told = run(&["-n", "blurry"]);
    let warning = told["warnings"][0].as_str().expect("a warning");
    assert!(
        warning.contains("negative prompt has no effect") && warning.contains("--true-guidance"),
        "{warning}"
    );
    assert_eq!(
        run(&["-n", " "])["warnings"].as_array().map(Vec::len),
        Some(0)
    );
    let told = run(&["-n", "blurry", "--true-guidance", "3", "--t5-tokens", "77"]);
    assert_eq!(told["warnings"].as_array().map(Vec::len), Some(0), "{told}");
    let guided = aquatint_testkit::read_png(place.join("a.png"))
        .expect("a picture")
        .2;
    assert!(guided != plain);
    // And again from what the picture tells.
    place.ok(["generate", "--from", "a.png", "-o", "b.png"]);
    assert!(
        aquatint_testkit::read_png(place.join("b.png"))
            .expect("a picture")
            .2
            == guided
    );

    let sd3 = flow_folder("sd3", place.path()).expect("a golden");
    let sd3 = arg(&sd3);
    let told = place.json(
        [
            &small[..],
            &["-m", sd3, "-g", "1", "-n", "blurry", "-o", "c.png"],
        ]
        .concat(),
    );
    let warning = told["warnings"][0].as_str().expect("a warning");
    assert!(warning.contains("guidance of 1"), "{warning}");
    for (more, expected) in [
        (&["--t5-tokens", "0"][..], "expected 2 to 512"),
        (&["--t5-tokens", "513"], "expected 2 to 512"),
        (&["--t5-tokens", "-1"], "from 1 to 512"),
        (&["--t5-tokens", "77"], "reads no T5"),
        (&["--true-guidance", "-2"], "expected 0 to 100"),
        (&["-m", sd3, "--true-guidance", "3"], "--guidance"),
    ] {
        let said = place.refused(2, [&small[..], more].concat());
        assert!(said.contains(expected), "{more:?}: {said}");
    }
}
