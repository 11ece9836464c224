//! Parameters of a picture as text, in AUTOMATIC1111's form:
//!
//! ```text
//! a red apple
//! Negative prompt: blurry
//! Steps: 20, Sampler: Euler a, CFG scale: 7.5, Seed: 7, Size: 512x512, Model: sd15
//! ```
//!
//! The last line holds `key: value` pairs; values with a comma or a colon are JSON strings. What
//! AUTOMATIC1111 has no key for gets a key of ours, so that a run can be repeated to the bit.

use crate::request::{PromptSyntax, Request, SkipLayers, Tiling};

const NEGATIVE: &str = "Negative prompt: ";

/// Our sampler names and AUTOMATIC1111's labels for them. Names that are not here stand for themselves.
const LABELS: &[(&str, &str)] = &[
    ("ddim", "DDIM"),
    ("ddpm", "DDPM"),
    ("pndm", "PLMS"),
    ("euler", "Euler"),
    ("euler_a", "Euler a"),
    ("heun", "Heun"),
    ("dpm2", "DPM2"),
    ("dpm2_a", "DPM2 a"),
    ("lms", "LMS"),
    ("dpmpp_2s_a", "DPM++ 2S a"),
    ("dpmpp_sde", "DPM++ SDE"),
    ("dpmpp_2m", "DPM++ 2M"),
    ("dpmpp_2m_sde", "DPM++ 2M SDE"),
    ("dpmpp_3m_sde", "DPM++ 3M SDE"),
    ("dpm_adaptive", "DPM adaptive"),
    ("unipc", "UniPC"),
    ("lcm", "LCM"),
];

const SCHEDULE_LABELS: &[(&str, &str)] = &[
    ("normal", "Normal"),
    ("karras", "Karras"),
    ("exponential", "Exponential"),
    ("polyexponential", "Polyexponential"),
    ("sgm_uniform", "SGM Uniform"),
    ("simple", "Simple"),
    ("ddim_uniform", "DDIM"),
    ("beta", "Beta"),
    ("kl_optimal", "KL Optimal"),
    ("align_your_steps", "Align Your Steps"),
];

/// Keys of [`Parameters::parts`]. AUTOMATIC1111 has only the last of these.
pub const PARTS: &[&str] = &[
    "VAE path",
    "Text encoder path",
    "Tokenizer path",
    "Config path",
    "Variant",
    "Prediction",
    "Quick decode path",
    "T5 path",
    "LoRA path",
    "Lora hashes",
];

/// Key of a low-rank addition among [`PARTS`]; its value is `path:weight`.
const LORA: &str = PARTS[8];

/// Keys for prompts that would read as something else where AUTOMATIC1111 puts them, such as one with
/// a line that begins with `Negative prompt:`.
const EXACT: [&str; 2] = ["Exact prompt", "Exact negative prompt"];

/// A request together with what it was run with, as a picture carries it.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameters {
    /// The request; its seed is that of this picture's batch.
    pub request: Request,
    /// Place of the picture in its batch.
    pub batch_index: u32,
    /// The model's name or path, as it was given.
    pub model: Option<String>,
    /// Storage of the weights, when it was not as stored.
    pub dtype: Option<String>,
    /// What was given beside the model, such as an autoencoder's path: keys of [`PARTS`] and values.
    pub parts: Vec<(String, String)>,
    /// The version that made the picture.
    pub version: String,
}

fn label<'a>(table: &'a [(&'a str, &'a str)], name: &'a str) -> &'a str {
    table
        .iter()
        .find(|(n, _)| *n == name)
        .map_or(name, |(_, l)| l)
}

fn unlabel(table: &[(&str, &str)], text: &str) -> String {
    table
        .iter()
        .find(|(_, l)| *l == text)
        .map_or(text, |(n, _)| n)
        .to_owned()
}

/// A value as it stands in the last line.
fn quoted(value: &str) -> String {
    let plain =
        !value.is_empty() && value.trim() == value && !value.contains([',', ':', '"', '\n', '\\']);
    if plain {
        value.to_owned()
    } else {
        serde_json::Value::from(value).to_string()
    }
}

impl Parameters {
    /// The text of the `parameters` chunk.
    pub fn to_text(&self) -> String {
        let r = &self.request;
        let mut pairs: Vec<(&str, String)> = vec![
            ("Steps", r.steps.to_string()),
            ("Sampler", label(LABELS, &r.sampler).to_owned()),
        ];
        if let Some(schedule) = &r.schedule {
            pairs.push(("Schedule type", label(SCHEDULE_LABELS, schedule).to_owned()));
        }
        pairs.push(("CFG scale", r.guidance.to_string()));
        // AUTOMATIC1111's seed is that of the picture itself.
        pairs.push((
            "Seed",
            r.seed.wrapping_add(self.batch_index.into()).to_string(),
        ));
        pairs.push(("Size", format!("{}x{}", r.width, r.height)));
        if let Some(model) = &self.model {
            pairs.push(("Model", model.clone()));
        }
        if let Some(skip) = r.clip_skip {
            pairs.push(("Clip skip", skip.to_string()));
        }
        if let Some(class) = r.class {
            pairs.push(("Class", class.to_string()));
        }
        if let Some(eta) = r.eta {
            pairs.push(("Eta", eta.to_string()));
        }
        if r.guidance_rescale != 0.0 {
            pairs.push(("CFG rescale phi", r.guidance_rescale.to_string()));
        }
        if let Some((low, high)) = r.guidance_interval {
            pairs.push(("CFG interval", format!("{low} to {high}")));
        }
        if let Some(scale) = r.true_guidance {
            pairs.push(("True CFG scale", scale.to_string()));
        }
        if let Some(tokens) = r.t5_tokens {
            pairs.push(("T5 tokens", tokens.to_string()));
        }
        if let Some(skip) = &r.skip_layers {
            let layers: Vec<String> = skip.layers.iter().map(ToString::to_string).collect();
            let (scale, start, stop) = (skip.scale, skip.start, skip.stop);
            let text = format!("{} x {scale} from {start} to {stop}", layers.join(" "));
            pairs.push(("Skip layers", text));
        }
        pairs.push(("RNG", rng_label(&r.rng).to_owned()));
        if r.batch > 1 {
            pairs.push(("Batch size", r.batch.to_string()));
            pairs.push(("Batch pos", self.batch_index.to_string()));
        }
        if r.prompt_syntax == PromptSyntax::Plain {
            pairs.push(("Prompt syntax", "plain".into()));
        }
        if r.vae_tiling != Tiling::Auto {
            let on = r.vae_tiling == Tiling::On;
            pairs.push(("VAE tiling", if on { "on" } else { "off" }.into()));
        }
        if let Some(dtype) = &self.dtype {
            pairs.push(("Weights", dtype.clone()));
        }
        for (key, value) in &self.parts {
            pairs.push((key, value.clone()));
        }
        // An empty negative prompt is written, so that it differs from none at all.
        let negative = match &r.negative {
            Some(text) => format!("\n{NEGATIVE}{text}"),
            None => String::new(),
        };
        let prompt = format!("{}{}", r.prompt, self.tags());
        let head = format!("{prompt}{negative}");
        if split_negative(&head) != (prompt, r.negative.clone()) {
            pairs.push((EXACT[0], r.prompt.clone()));
            if let Some(negative) = &r.negative {
                pairs.push((EXACT[1], negative.clone()));
            }
        }
        pairs.push(("Version", self.version.clone()));
        let pairs: Vec<String> = pairs
            .into_iter()
            .map(|(key, value)| format!("{key}: {}", quoted(&value)))
            .collect();
        format!("{head}\n{}", pairs.join(", "))
    }

    /// Reads the text of a `parameters` chunk, ours or AUTOMATIC1111's.
    ///
    /// # Errors
    /// A sentence that says what was found and what was expected.
    pub fn from_text(text: &str) -> Result<Self, String> {
        let (head, last) = match text.trim_end().rsplit_once('\n') {
            Some((head, last)) if last.trim_start().starts_with("Steps: ") => (head, last),
            _ if text.starts_with("Steps: ") => ("", text.trim_end()),
            _ => return Err("found no line that begins with \"Steps:\"".into()),
        };
        let pairs = parse_pairs(last)?;
        let get = |key: &str| {
            pairs
                .iter()
                .find(|(k, _)| k.eq_ignore_ascii_case(key))
                .map(|(_, v)| v.as_str())
        };
        let (prompt, negative) = match get(EXACT[0]) {
            Some(prompt) => (prompt.to_owned(), get(EXACT[1]).map(str::to_owned)),
            None => split_negative(head),
        };
        let (width, height) = get("Size")
            .and_then(|s| s.split_once('x'))
            .ok_or("found no size such as 512x512")?;
        let batch: u32 = number(get("Batch size").unwrap_or("1"), "batch size")?;
        let batch_index: u32 = match batch {
            1 => 0,
            _ => number(get("Batch pos").unwrap_or("0"), "batch position")?,
        };
        if batch_index >= batch.max(1) {
            return Err(format!(
                "found batch position {batch_index} in a batch of {batch}, expected one below it"
            ));
        }
        let seed: u64 = number(get("Seed").ok_or("found no seed")?, "seed")?;
        // Older AUTOMATIC1111 writes "DPM++ 2M Karras" as one name.
        let sampler = get("Sampler").ok_or("found no sampler")?;
        let (sampler, schedule) = match (get("Schedule type"), sampler.strip_suffix(" Karras")) {
            (Some("Automatic"), _) => (sampler, None),
            (Some(schedule), _) => (sampler, Some(schedule)),
            (None, Some(sampler)) => (sampler, Some("Karras")),
            (None, None) => (sampler, None),
        };
        let request = Request {
            prompt,
            negative,
            width: number(width, "width")?,
            height: number(height, "height")?,
            steps: number(get("Steps").ok_or("found no steps")?, "steps")?,
            guidance: number(get("CFG scale").ok_or("found no CFG scale")?, "CFG scale")?,
            guidance_rescale: number(get("CFG rescale phi").unwrap_or("0"), "rescale")?,
            guidance_interval: interval(get("CFG interval"))?,
            true_guidance: optional(get("True CFG scale"), "true CFG scale")?,
            skip_layers: skip_layers(get("Skip layers"))?,
            sampler: unlabel(LABELS, sampler),
            schedule: schedule.map(|s| unlabel(SCHEDULE_LABELS, s)),
            seed: seed.wrapping_sub(batch_index.into()),
            rng: rng_name(get("RNG").unwrap_or("CPU")),
            batch,
            clip_skip: optional(get("Clip skip"), "clip skip")?,
            t5_tokens: optional(get("T5 tokens"), "T5 tokens")?,
            eta: optional(get("Eta"), "eta")?,
            class: optional(get("Class"), "class")?,
            vae_tiling: match get("VAE tiling") {
                Some("on") => Tiling::On,
                Some("off") => Tiling::Off,
                _ => Tiling::Auto,
            },
            prompt_syntax: match get("Prompt syntax") {
                Some("plain") => PromptSyntax::Plain,
                _ => PromptSyntax::Weighted,
            },
        };
        let mut parameters = Parameters {
            request,
            batch_index,
            model: get("Model").map(str::to_owned),
            dtype: get("Weights").map(str::to_owned),
            parts: pairs
                .iter()
                .filter(|(key, _)| PARTS.contains(&key.as_str()))
                .cloned()
                .collect(),
            version: get("Version").unwrap_or_default().to_owned(),
        };
        if get(EXACT[0]).is_none() {
            parameters.take_tags();
        }
        Ok(parameters)
    }

    /// The low-rank additions that it was made with: paths and weights.
    pub fn loras(&self) -> Vec<(&str, f64)> {
        let own = self.parts.iter().filter(|(key, _)| key == LORA);
        own.filter_map(|(_, value)| {
            let (path, weight) = value.rsplit_once(':')?;
            Some((path, weight.parse().ok()?))
        })
        .collect()
    }

    /// What AUTOMATIC1111 has in a prompt for the low-rank additions.
    fn tags(&self) -> String {
        let tag = |(path, weight): (&str, f64)| {
            let name = std::path::Path::new(path).file_stem().unwrap_or_default();
            format!(" <lora:{}:{weight}>", name.to_string_lossy())
        };
        self.loras().into_iter().map(tag).collect()
    }

    /// Takes them from the end of the prompt again.
    fn take_tags(&mut self) {
        let tags = self.tags();
        if let Some(prompt) = self.request.prompt.strip_suffix(&tags) {
            self.request.prompt = prompt.to_owned();
        }
    }
}

fn rng_label(name: &str) -> &str {
    match name {
        "torch-cpu" => "CPU",
        "philox" => "NV",
        other => other,
    }
}

fn rng_name(label: &str) -> String {
    match label {
        "CPU" => "torch-cpu",
        "NV" | "GPU" => "philox",
        other => other,
    }
    .to_owned()
}

fn number<T: std::str::FromStr>(text: &str, what: &str) -> Result<T, String> {
    text.trim()
        .parse()
        .map_err(|_| format!("found {what} {text:?}, expected a number"))
}

fn optional<T: std::str::FromStr>(text: Option<&str>, what: &str) -> Result<Option<T>, String> {
    text.map(|t| number(t, what)).transpose()
}

fn interval(text: Option<&str>) -> Result<Option<(f64, f64)>, String> {
    let Some(text) = text else {
        return Ok(None);
    };
    let (low, high) = text
        .split_once(" to ")
        .ok_or_else(|| format!("found CFG interval {text:?}, expected \"0.5 to 10\""))?;
    Ok(Some((
        number(low, "CFG interval")?,
        number(high, "CFG interval")?,
    )))
}

fn skip_layers(text: Option<&str>) -> Result<Option<SkipLayers>, String> {
    let Some(text) = text else {
        return Ok(None);
    };
    let wrong = || format!("found skip layers {text:?}, expected \"7 8 9 x 2.8 from 0.01 to 0.2\"");
    let (layers, rest) = text.split_once(" x ").ok_or_else(wrong)?;
    let (scale, rest) = rest.split_once(" from ").ok_or_else(wrong)?;
    let (start, stop) = rest.split_once(" to ").ok_or_else(wrong)?;
    let layers = layers.split_whitespace().map(|n| number(n, "skip layer"));
    Ok(Some(SkipLayers {
        layers: layers.collect::<Result<_, _>>()?,
        scale: number(scale, "skip layers")?,
        start: number(start, "skip layers")?,
        stop: number(stop, "skip layers")?,
    }))
}

fn split_negative(head: &str) -> (String, Option<String>) {
    if let Some(negative) = head.strip_prefix(NEGATIVE) {
        return (String::new(), Some(negative.to_owned()));
    }
    match head.split_once(&format!("\n{NEGATIVE}")) {
        Some((prompt, negative)) => (prompt.to_owned(), Some(negative.to_owned())),
        None => (head.to_owned(), None),
    }
}

/// `key: value` pairs separated by commas, with JSON strings as values where they need quotes.
fn parse_pairs(line: &str) -> Result<Vec<(String, String)>, String> {
    let mut pairs = Vec::new();
    let mut rest = line.trim();
    while !rest.is_empty() {
        let Some((key, after)) = rest.split_once(':') else {
            return Err(format!("found {rest:?}, expected \"key: value\""));
        };
        let after = after.trim_start();
        let (value, tail) = if after.starts_with('"') {
            let mut stream = serde_json::Deserializer::from_str(after).into_iter::<String>();
            match stream.next() {
                Some(Ok(value)) => (value, &after[stream.byte_offset()..]),
                _ => return Err(format!("found an unfinished string after {key:?}")),
            }
        } else {
            let end = after.find(',').unwrap_or(after.len());
            (after[..end].trim().to_owned(), &after[end..])
        };
        pairs.push((key.trim().to_owned(), value));
        rest = tail.trim_start().trim_start_matches(',').trim_start();
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters() -> Parameters {
        Parameters {
            request: Request {
                prompt: "a (red:1.2) apple,\nsecond line".into(),
                negative: Some("blurry, \"noise\"".into()),
                width: 512,
                height: 768,
                steps: 25,
                guidance: 7.5,
                guidance_rescale: 0.7,
                guidance_interval: Some((0.5, 10.0)),
                true_guidance: Some(2.5),
                skip_layers: Some(SkipLayers::new(vec![7, 8, 9])),
                sampler: "dpmpp_2m".into(),
                schedule: Some("karras".into()),
                seed: u64::MAX - 1,
                rng: "philox".into(),
                batch: 4,
                clip_skip: Some(2),
                t5_tokens: Some(77),
                eta: Some(0.25),
                vae_tiling: Tiling::On,
                prompt_syntax: PromptSyntax::Plain,
                class: Some(5),
            },
            batch_index: 3,
            model: Some("/models/a, b: \"c\"".into()),
            dtype: Some("f16".into()),
            parts: vec![
                ("VAE path".into(), "/a, b.safetensors".into()),
                ("Text encoder path".into(), "/one".into()),
                ("Text encoder path".into(), "/two".into()),
                ("LoRA path".into(), "/a: b.safetensors:0.8".into()),
                ("LoRA path".into(), "/c.safetensors:-1".into()),
                ("Lora hashes".into(), "a: 12, c: 34".into()),
            ],
            version: "aquatint 0.1.0".into(),
        }
    }

    #[test]
    fn everything_comes_back() {
        let p = parameters();
        assert_eq!(Parameters::from_text(&p.to_text()).unwrap(), p);
        let mut bare = parameters();
        bare.request.prompt = String::new();
        bare.request.negative = None;
        bare.request.schedule = None;
        assert_eq!(Parameters::from_text(&bare.to_text()).unwrap(), bare);
    }

    #[test]
    fn prompts_that_look_like_parameters_come_back() {
        let prompts = [
            "a\nNegative prompt: b",
            "Negative prompt: b",
            "a\nSteps: 3, Sampler: x",
            "\n",
            " a \n\n",
            "a\r\nb",
        ];
        for prompt in prompts {
            for negative in [None, Some("c\nNegative prompt: d"), Some("")] {
                let mut p = parameters();
                p.request.prompt = prompt.into();
                p.request.negative = negative.map(str::to_owned);
                assert_eq!(Parameters::from_text(&p.to_text()).unwrap(), p);
            }
        }
    }

    #[test]
    fn the_text_reads_as_other_tools_expect() {
        let text = parameters().to_text();
        assert!(text.contains(" <lora:a: b:0.8> <lora:c:-1>\nNegative prompt: blurry, \"noise\"\nSteps: 25, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 1, Size: 512x768"), "{text}");
    }

    #[test]
    fn text_of_automatic1111_is_read() {
        let text = "photo of a cat\nNegative prompt: bad\nSteps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 5, Size: 512x512, Model hash: abc, Model: v1-5, Clip skip: 2, ENSD: 31337, Lora hashes: \"a: b, c: d\", Version: v1.6.0";
        let p = Parameters::from_text(text).unwrap();
        assert_eq!(p.request.sampler, "dpmpp_2m");
        assert_eq!(p.request.schedule.as_deref(), Some("karras"));
        assert_eq!(p.request.clip_skip, Some(2));
        assert_eq!(p.model.as_deref(), Some("v1-5"));
    }

    #[test]
    fn other_text_is_refused_with_a_reason() {
        for text in [
            "",
            "hello",
            "Steps: x",
            "a\nSteps: 3, Sampler",
            "Steps: 2, A: \"b",
            "a\nSteps: 2, Sampler: Euler, CFG scale: 7, Seed: 5, Size: 64x64, Batch size: 2, Batch pos: 2",
        ] {
            assert!(Parameters::from_text(text).is_err(), "{text:?}");
        }
    }
}
