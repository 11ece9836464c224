//! Single files of the published sizes, made of zeros that take no disk: their shapes alone tell the
//! family and every configuration.
#![allow(clippy::unwrap_used, clippy::print_stdout)] // helpers of tests are tests

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use aquatint_diffusion::Prediction;
use aquatint_models::keys::{Layout, Naming};
use aquatint_models::text::{ClipTextConfig, ClipTextEncoder};
use aquatint_models::unet::{UNet2DCondition, UNetConfig};
use aquatint_models::vae::{AutoencoderKl, VaeConfig};
use aquatint_models::{Checkpoint, Location, NetworkConfig, OpenOptions};
use aquatint_ops::{Device, ParamSource, Params, RawTensor, Storage};

/// Gives zeros for whatever a model asks for, and keeps what that was.
struct Recorder {
    zeros: bytes::Bytes,
    asked: RefCell<BTreeMap<String, Vec<usize>>>,
}

impl Recorder {
    fn new() -> Self {
        // The largest tensor: SDXL's second vocabulary, in f16.
        let zeros = vec![0; 2 * 49408 * 1280].into();
        Recorder {
            zeros,
            asked: RefCell::default(),
        }
    }

    fn take(&self) -> BTreeMap<String, Vec<usize>> {
        std::mem::take(&mut self.asked.borrow_mut())
    }
}

impl ParamSource for Recorder {
    fn tensor(
        &self,
        name: &str,
        shape: &[usize],
    ) -> Result<RawTensor, Box<dyn std::error::Error + Send + Sync>> {
        self.asked
            .borrow_mut()
            .insert(name.to_owned(), shape.to_vec());
        Ok(RawTensor {
            bytes: self.zeros.slice(..2 * shape.iter().product::<usize>()),
            storage: Storage::F16,
            shape: shape.to_vec(),
        })
    }

    /// Of the optional parts only the autoencoder's encoder is there.
    fn has(&self, name: &str) -> bool {
        name == "encoder.conv_in.weight"
    }
}

/// A generation as it is published.
struct Published {
    family: &'static str,
    unet: UNetConfig,
    vae: VaeConfig,
    text: Vec<(ClipTextConfig, &'static str, Naming)>,
}

fn published() -> [Published; 3] {
    let clip_l = ClipTextConfig::vit_l_14;
    let whole = ClipTextConfig {
        // The file holds OpenCLIP's last layer, which is not used.
        num_hidden_layers: 24,
        ..ClipTextConfig::vit_h_14()
    };
    let big = ClipTextConfig::vit_big_g_14();
    let (clip, open) = (Naming::Diffusers, Naming::OpenClip);
    let first = "conditioner.embedders.0.transformer.";
    let second = "conditioner.embedders.1.model.";
    [
        Published {
            family: "sd1",
            unet: UNetConfig::sd1(),
            vae: VaeConfig::sd1(),
            text: vec![(clip_l(), "cond_stage_model.transformer.", clip)],
        },
        Published {
            family: "sd2",
            unet: UNetConfig::sd2(),
            vae: VaeConfig::sd1(),
            text: vec![(whole, "cond_stage_model.model.", open)],
        },
        Published {
            family: "sdxl",
            unet: UNetConfig::sdxl(),
            vae: VaeConfig::sdxl(),
            text: vec![(clip_l(), first, clip), (big, second, open)],
        },
    ]
}

impl Published {
    /// Names and shapes of the single file.
    fn tensors(&self) -> BTreeMap<String, Vec<usize>> {
        let (recorder, device) = (Recorder::new(), Device::flex());
        let params = Params::new(&recorder, &device);
        // Without attention an upsampler follows its resnet at once.
        let plain_top = self.unet.levels.last().is_some_and(|l| !l.up_attention);
        let has = |name: &str| !(plain_top && name.contains("output_blocks.2.2."));
        let mut file = BTreeMap::new();
        UNet2DCondition::load(&params, &self.unet).unwrap();
        let layers = Naming::LdmUNet { layers: 2 };
        add(&mut file, "model.diffusion_model.", layers, &recorder, &has);
        AutoencoderKl::load(&params, &self.vae).unwrap();
        let levels = Naming::LdmVae { levels: 4 };
        add(&mut file, "first_stage_model.", levels, &recorder, &has);
        for (config, prefix, naming) in &self.text {
            ClipTextEncoder::load(&params, config).unwrap();
            add(&mut file, prefix, *naming, &recorder, &has);
        }
        file
    }
}

/// Adds a component under the names of its layout.
fn add(
    file: &mut BTreeMap<String, Vec<usize>>,
    prefix: &str,
    naming: Naming,
    recorder: &Recorder,
    has: &dyn Fn(&str) -> bool,
) {
    let layout = Layout {
        prefix: prefix.to_owned(),
        naming,
    };
    for (name, mut shape) in recorder.take() {
        let place = layout.place(&name, has);
        if let Some((_, of)) = place.part {
            shape[0] *= of;
        }
        if place.transposed {
            shape.reverse();
        }
        file.insert(place.name, shape);
    }
}

/// A safetensors file of that content whose payload is a hole.
fn write(path: &Path, tensors: &BTreeMap<String, Vec<usize>>) {
    let mut header = Vec::new();
    let mut at = 0;
    for (name, shape) in tensors {
        let end = at + 2 * shape.iter().product::<usize>();
        header.push(format!(
            r#""{name}":{{"dtype":"F16","shape":{shape:?},"data_offsets":[{at},{end}]}}"#
        ));
        at = end;
    }
    let mut header = format!("{{{}}}", header.join(",")).into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = std::fs::File::create(path).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes())
        .unwrap();
    file.write_all(&header).unwrap();
    file.set_len((8 + header.len() + at) as u64).unwrap();
}

fn file_of(of: &Published, dir: &Path) -> PathBuf {
    let path = dir.join(format!("{}.safetensors", of.family));
    write(&path, &of.tensors());
    path
}

fn open(path: &Path) -> Checkpoint {
    let location = Location::Path(path.to_owned());
    Checkpoint::open(&location, &OpenOptions::default()).unwrap()
}

#[test]
fn the_shapes_of_published_files_tell_their_configurations() {
    let dir = tempfile::tempdir().unwrap();
    for of in published() {
        let model = open(&file_of(&of, dir.path()));
        assert_eq!(model.family.id, of.family, "{}", model.spec.why);
        let mut unet = of.unet.clone();
        if of.family == "sd2" {
            // Zeros have no spread: the 512-pixel model, which predicts noise.
            assert_eq!(model.spec.prediction, Prediction::Epsilon);
            unet.sample_size = Some([64, 64]);
        }
        assert_eq!(
            model.network.config,
            NetworkConfig::UNet(unet),
            "{}",
            of.family
        );
        assert_eq!(model.vae.config, of.vae, "{}", of.family);
        assert_eq!(model.text.len(), of.text.len());
        for (found, (config, _, _)) in model.text.iter().zip(&of.text) {
            let mut config = config.clone();
            if of.family == "sd2" {
                config.num_hidden_layers -= 1;
            }
            assert_eq!(found.encoder.config, config, "{}", of.family);
        }
        let size = [512, 512, 1024][["sd1", "sd2", "sdxl"]
            .iter()
            .position(|f| *f == of.family)
            .unwrap()];
        assert_eq!(model.default_size(), size);
    }
}

/// Every tensor of a file is taken, each once, but for OpenCLIP's last layer in Stable Diffusion 2.x.
#[test]
fn every_tensor_of_published_files_has_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let device = Device::flex();
    for of in published() {
        let path = file_of(&of, dir.path());
        let count = of.tensors().len();
        let model = open(&path);
        model.load_unet(&device).unwrap();
        model.load_vae(&device).unwrap();
        model.load_text(&device).unwrap();
        let reports = model.reports();
        let mut unused = 0;
        for (part, report) in &reports {
            assert!(report.is_complete(), "{} {part}: {report}", of.family);
            let last = |n: &&String| of.family == "sd2" && n.contains("resblocks.23.");
            unused += report.unused.iter().filter(last).count();
            let other: Vec<_> = report.unused.iter().filter(|n| !last(n)).collect();
            assert!(other.is_empty(), "{} {part}: {other:?}", of.family);
        }
        let parameters: u64 = reports.iter().map(|(_, r)| r.parameters()).sum();
        println!("{}: {count} tensors, {parameters} parameters", of.family);
        // As published: 859.5 M + 83.7 M + 123.1 M; 865.9 M + 83.7 M + 340.4 M; 2,567 M + 83.7 M + 123.1 M + 694.7 M.
        let expected = match of.family {
            "sd1" => 859_520_964 + 83_653_863 + 123_060_480,
            "sd2" => 865_910_724 + 83_653_863 + 340_387_840,
            _ => 2_567_463_684 + 83_653_863 + 123_060_480 + 694_659_840,
        };
        assert_eq!(parameters, expected, "{}", of.family);
        assert_eq!(unused, if of.family == "sd2" { 12 } else { 0 });
    }
}

/// Newer files carry a tensor that says so; the user's own word is above it.
#[test]
fn a_marker_tells_the_prediction() {
    let dir = tempfile::tempdir().unwrap();
    let [sd1, ..] = published();
    let mut tensors = sd1.tensors();
    tensors.insert("v_pred".into(), vec![1]);
    let path = dir.path().join("marked.safetensors");
    write(&path, &tensors);
    assert_eq!(open(&path).spec.prediction, Prediction::V);
    let options = OpenOptions {
        prediction: Some(Prediction::Sample),
        ..OpenOptions::default()
    };
    let model = Checkpoint::open(&Location::Path(path), &options).unwrap();
    assert_eq!(model.spec.prediction, Prediction::Sample);
    assert_eq!(
        model.spec.scheduler.prediction_type,
        Some(Prediction::Sample)
    );
}

/// What other UNets of these shapes are is said, before anything else that might be wrong.
#[test]
fn models_for_other_tasks_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let [sd1, ..] = published();
    for (channels, word) in [(9, "inpainting"), (8, "image-editing"), (5, "5 input")] {
        let mut tensors = sd1.tensors();
        let name = "model.diffusion_model.input_blocks.0.0.weight";
        tensors.insert(name.into(), vec![320, channels, 3, 3]);
        let path = dir.path().join(format!("{channels}.safetensors"));
        write(&path, &tensors);
        let error = Checkpoint::open(&Location::Path(path), &OpenOptions::default()).unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
        assert!(error.hint().is_some());
    }
}
