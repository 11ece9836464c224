//! Prompts against AUTOMATIC1111's web UI (golden/webui_prompts.py).

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::error::Error;
use std::sync::Arc;

use aquatint_models::text::prompt::{Piece, Weighted, parse};
use aquatint_models::text::{
    ClipTextConfig, ClipTextEncoder, ClipTokenizer, Conditioner, EncodeOptions, Negative, Syntax,
    TextEncoder,
};
use aquatint_ops::{Device, ParamSource, Params, RawTensor};
use aquatint_testkit::{Tensors, assert_close, golden};
use serde::Deserialize;

#[derive(Deserialize)]
struct Row {
    prompt: String,
    parsed: Vec<(String, f64)>,
}

fn as_there(piece: &Piece) -> (String, f64) {
    match piece {
        Piece::Text(Weighted { text, weight }) => (text.clone(), *weight),
        Piece::Break => ("BREAK".to_owned(), -1.0),
    }
}

/// Equal but for the last digit of a weight, which reading JSON may change.
fn same(found: &[(String, f64)], want: &[(String, f64)]) -> bool {
    let near = |a: f64, b: f64| (a - b).abs() <= 1e-15 * b.abs();
    found.len() == want.len() && (found.iter().zip(want)).all(|(f, w)| f.0 == w.0 && near(f.1, w.1))
}

#[test]
fn prompts_are_read_as_by_the_web_ui() {
    let text = std::fs::read_to_string(golden("webui_prompts.json")).unwrap();
    let rows: Vec<Row> = serde_json::from_str(&text).unwrap();
    let mut different = Vec::new();
    for row in &rows {
        let pieces = parse(&row.prompt, Syntax::Automatic1111);
        let found: Vec<_> = pieces.iter().map(as_there).collect();
        if !same(&found, &row.parsed) {
            different.push((row, found));
        }
    }
    // The one intended difference: in brackets, BREAK is the text "BREAK" there.
    for (row, found) in &different {
        let is_text = |(text, weight): &&(String, f64)| text.contains("BREAK") && *weight != -1.0;
        assert!(
            row.parsed.iter().any(|p| is_text(&p)),
            "{}: {found:?}",
            row.prompt
        );
        assert!(
            found.iter().any(|(text, _)| text == "BREAK"),
            "{}",
            row.prompt
        );
    }
    assert!(
        rows.len() > 130 && different.len() < 15,
        "{}",
        different.len()
    );
}

struct Source(Tensors);

impl ParamSource for Source {
    fn tensor(
        &self,
        name: &str,
        _shape: &[usize],
    ) -> Result<RawTensor, Box<dyn Error + Send + Sync>> {
        let tensor = self.0.get(name);
        Ok(RawTensor::from_f32(tensor.f32(), tensor.shape()))
    }

    fn has(&self, name: &str) -> bool {
        self.0.contains(name)
    }
}

#[test]
fn weighted_embeddings_equal_the_web_ui() {
    let config = std::fs::read_to_string(golden("sd2/text_encoder/config.json")).unwrap();
    let config = ClipTextConfig::from_json(&config).unwrap();
    let source = Source(Tensors::read(golden("sd2/text_encoder/model.safetensors")).unwrap());
    let model = ClipTextEncoder::load(&Params::new(&source, &Device::default()), &config).unwrap();
    let tokenizer = ClipTokenizer::from_folder(golden("sd2/tokenizer")).unwrap();
    let encoder = TextEncoder::new(Arc::new(tokenizer), model).unwrap();
    let conditioner = Conditioner::stable_diffusion(encoder);
    let want = Tensors::read(golden("webui_prompts.safetensors")).unwrap();
    // As EMBEDDED in golden/webui_prompts.py.
    let prompts = [
        "a (red:1.4) cat",
        "((a photograph)) of [an old house], (bright:0.7) sky BREAK a (dog:1.2)",
        "(a red apple on a wooden table:1.3)",
    ];
    for (i, prompt) in prompts.iter().enumerate() {
        let options = EncodeOptions::default();
        let encoded = conditioner
            .encode(prompt, Negative::Unused, options)
            .unwrap();
        let embeddings = encoded.positive.embeddings;
        let name = format!("embeddings/{i}");
        assert_eq!(embeddings.dims(), want.get(&name).shape());
        let found: Vec<f32> = embeddings.into_data().iter::<f32>().collect();
        println!(
            "{name}: {:.1e}",
            aquatint_testkit::relative_error(&found, want.get(&name).f32())
        );
        // The web UI takes the means in f32: a few units more than the encoder's own 1e-6.
        assert_close(&name, &found, want.get(&name), 1e-5);
    }
}
