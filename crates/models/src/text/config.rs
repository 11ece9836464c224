//! What `text_encoder/config.json` says.

use aquatint_ops::Activation;
use serde_json::Value;

use crate::ModelError;
use crate::config::{Config, config_error};

const COMPONENT: &str = "text_encoder";

/// The shape of a CLIP text encoder. The default is transformers' `CLIPTextConfig()`.
#[derive(Debug, Clone, PartialEq)]
pub struct ClipTextConfig {
    /// Entries of the token embedding.
    pub vocab_size: usize,
    /// Channels.
    pub hidden_size: usize,
    /// Channels within the feed-forward layers.
    pub intermediate_size: usize,
    /// Transformer layers.
    pub num_hidden_layers: usize,
    /// Attention heads; divides `hidden_size`.
    pub num_attention_heads: usize,
    /// Longest sequence.
    pub max_position_embeddings: usize,
    /// Activation of the feed-forward layers.
    pub hidden_act: Activation,
    /// Epsilon of the layer normalisations.
    pub layer_norm_eps: f64,
    /// Which token the pooled output is taken at. 2 is what old files say by mistake; the token
    /// with the largest id is taken then, as transformers does.
    pub eos_token_id: u32,
    /// Channels of the projected pooled output, where the encoder has the projection.
    pub projection: Option<usize>,
}

impl Default for ClipTextConfig {
    fn default() -> Self {
        ClipTextConfig {
            vocab_size: 49408,
            hidden_size: 512,
            intermediate_size: 2048,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
            eos_token_id: 49407,
            projection: None,
        }
    }
}

impl ClipTextConfig {
    /// CLIP ViT-L/14: Stable Diffusion 1.x, and the first encoder of SDXL.
    pub fn vit_l_14() -> Self {
        ClipTextConfig {
            hidden_size: 768,
            intermediate_size: 3072,
            num_attention_heads: 12,
            ..Self::default()
        }
    }

    /// OpenCLIP ViT-H/14 without its last layer, as diffusers ships it with Stable Diffusion 2.x:
    /// the last of the 23 layers is the penultimate of OpenCLIP's 24.
    pub fn vit_h_14() -> Self {
        ClipTextConfig {
            hidden_size: 1024,
            intermediate_size: 4096,
            num_hidden_layers: 23,
            num_attention_heads: 16,
            hidden_act: Activation::Gelu,
            ..Self::default()
        }
    }

    /// OpenCLIP ViT-bigG/14, the second encoder of SDXL.
    pub fn vit_big_g_14() -> Self {
        ClipTextConfig {
            hidden_size: 1280,
            intermediate_size: 5120,
            num_hidden_layers: 32,
            num_attention_heads: 20,
            hidden_act: Activation::Gelu,
            projection: Some(1280),
            ..Self::default()
        }
    }

    /// Reads the text of a `config.json` of transformers: of a text model, or of a whole CLIP model
    /// with its `text_config`. Absent keys are transformers' defaults. The projection is there when
    /// `architectures` names `CLIPTextModelWithProjection`.
    ///
    /// # Errors
    /// When a value is not of its type, or is none that this version runs.
    pub fn from_json(json: &str) -> Result<Self, ModelError> {
        let outer = Config::parse(COMPONENT, json)?;
        let inner = match outer.get("text_config") {
            Some(value @ Value::Object(_)) => Some(Config::parse(COMPONENT, &value.to_string())?),
            _ => None,
        };
        let config = inner.as_ref().unwrap_or(&outer);
        let default = Self::default();
        let projects = outer
            .names("architectures", &[])?
            .iter()
            .any(|name| name == "CLIPTextModelWithProjection");
        let projection = match projects {
            true => Some(config.count("projection_dim", 512)?),
            false => None,
        };
        let count = |key, default| config.count(key, default);
        let read = ClipTextConfig {
            vocab_size: count("vocab_size", default.vocab_size)?,
            hidden_size: count("hidden_size", default.hidden_size)?,
            intermediate_size: count("intermediate_size", default.intermediate_size)?,
            num_hidden_layers: count("num_hidden_layers", default.num_hidden_layers)?,
            num_attention_heads: count("num_attention_heads", default.num_attention_heads)?,
            max_position_embeddings: count(
                "max_position_embeddings",
                default.max_position_embeddings,
            )?,
            hidden_act: activation(config)?,
            layer_norm_eps: config.number("layer_norm_eps", default.layer_norm_eps)?,
            eos_token_id: token_id(config, default.eos_token_id)?,
            projection,
        };
        read.check()?;
        Ok(read)
    }

    /// Holds what the layers take for granted.
    pub(super) fn check(&self) -> Result<(), ModelError> {
        let heads = self.num_attention_heads;
        if heads == 0 || !self.hidden_size.is_multiple_of(heads) {
            return Err(config_error(
                COMPONENT,
                "num_attention_heads",
                heads,
                format!("a divisor of hidden_size, {}", self.hidden_size),
            ));
        }
        if self.num_hidden_layers == 0 || self.num_hidden_layers > 1000 {
            let found = self.num_hidden_layers;
            return Err(config_error(
                COMPONENT,
                "num_hidden_layers",
                found,
                "1 to 1000",
            ));
        }
        if self.max_position_embeddings < 3 {
            let found = self.max_position_embeddings;
            let expected = "at least 3: begin, a token, end";
            return Err(config_error(
                COMPONENT,
                "max_position_embeddings",
                found,
                expected,
            ));
        }
        Ok(())
    }
}

fn activation(config: &Config) -> Result<Activation, ModelError> {
    let names = ["quick_gelu", "gelu", "gelu_new", "gelu_pytorch_tanh"];
    config.only("hidden_act", &names)?;
    Ok(match config.get("hidden_act").and_then(Value::as_str) {
        None | Some("quick_gelu") => Activation::QuickGelu,
        Some("gelu") => Activation::Gelu,
        Some(_) => Activation::GeluTanh,
    })
}

/// One id, or the first of a list.
fn token_id(config: &Config, default: u32) -> Result<u32, ModelError> {
    const KEY: &str = "eos_token_id";
    let first = match config.get(KEY) {
        None => return Ok(default),
        Some(Value::Array(list)) => list.first(),
        Some(value) => Some(value),
    };
    first
        .and_then(Value::as_u64)
        .and_then(|id| u32::try_from(id).ok())
        .ok_or_else(|| config.error(KEY, config.get(KEY).unwrap_or(&Value::Null), "a token id"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_keys_are_the_defaults_of_transformers() {
        let read = ClipTextConfig::from_json("{}").unwrap();
        assert_eq!(read, ClipTextConfig::default());
        let read = ClipTextConfig::from_json(
            r#"{"text_config": {"hidden_size": 64, "eos_token_id": [7, 8]}, "hidden_size": 3}"#,
        );
        let read = read.unwrap();
        assert_eq!((read.hidden_size, read.eos_token_id), (64, 7));
    }

    #[test]
    fn the_encoders_of_stable_diffusion() {
        let read = ClipTextConfig::from_json(
            r#"{"architectures": ["CLIPTextModel"], "hidden_act": "quick_gelu", "hidden_size": 768,
                "intermediate_size": 3072, "num_attention_heads": 12, "projection_dim": 768,
                "eos_token_id": 2, "model_type": "clip_text_model", "torch_dtype": "float32"}"#,
        );
        let want = ClipTextConfig {
            eos_token_id: 2,
            ..ClipTextConfig::vit_l_14()
        };
        assert_eq!(read.unwrap(), want);
        let read = ClipTextConfig::from_json(
            r#"{"architectures": ["CLIPTextModelWithProjection"], "hidden_act": "gelu",
                "hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 20,
                "num_hidden_layers": 32, "projection_dim": 1280, "eos_token_id": 49407}"#,
        );
        assert_eq!(read.unwrap(), ClipTextConfig::vit_big_g_14());
    }

    #[test]
    fn what_cannot_run_is_an_error() {
        for json in [
            r#"{"hidden_size": 10, "num_attention_heads": 3}"#,
            r#"{"hidden_act": "relu"}"#,
            r#"{"num_hidden_layers": 0}"#,
            r#"{"num_hidden_layers": 60000}"#,
            r#"{"eos_token_id": "x"}"#,
            r#"{"max_position_embeddings": 2}"#,
            "[]",
        ] {
            let error = ClipTextConfig::from_json(json).unwrap_err().to_string();
            assert!(error.starts_with("text_encoder: "), "{error}");
        }
    }
}
