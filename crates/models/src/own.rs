//! What a model's folder recommends in `aquatint.json`.

use aquatint_diffusion::sampler;
use serde_json::Value;

use crate::ModelError;
use crate::folder::Folder;

const FILE: &str = "aquatint.json";

/// Settings that a folder brings along; every one may be absent.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Own {
    /// Width and height in pixels.
    pub size: Option<[u32; 2]>,
    pub steps: Option<u32>,
    pub guidance: Option<f64>,
    pub sampler: Option<&'static str>,
}

impl Own {
    /// Reads a folder's.
    ///
    /// # Errors
    /// [`ModelError::Json`] that names the value that cannot be.
    pub fn read(folder: &Folder) -> Result<Self, ModelError> {
        let Some(text) = folder.text(FILE)? else {
            return Ok(Own::default());
        };
        Self::parse(&text).map_err(|message| ModelError::Json {
            path: folder.path().join(FILE),
            message,
        })
    }

    fn parse(text: &str) -> Result<Self, String> {
        let own: Value =
            serde_json::from_str(text).map_err(|e| format!("not readable as JSON ({e})"))?;
        let whole = |key: &str, most: u64| match &own[key] {
            Value::Null => Ok(None),
            value => match value.as_u64().filter(|n| (1..=most).contains(n)) {
                Some(n) => Ok(Some(n as u32)),
                None => Err(format!(
                    "{key} is {value}, expected a whole number from 1 to {most}"
                )),
            },
        };
        let (width, height) = (whole("width", 4096)?, whole("height", 4096)?);
        let guidance = match &own["guidance"] {
            Value::Null => None,
            value => match value.as_f64().filter(|g| (0.0..=100.0).contains(g)) {
                Some(guidance) => Some(guidance),
                None => return Err(format!("guidance is {value}, expected 0 to 100")),
            },
        };
        let sampler = match &own["sampler"] {
            Value::Null => None,
            value => match value.as_str().and_then(|s| sampler::find(s).ok()) {
                Some(sampler) => Some(sampler.name),
                None => return Err(format!("sampler is {value}, expected a sampler's name")),
            },
        };
        Ok(Own {
            size: width
                .or(height)
                .map(|one| [width.unwrap_or(one), height.unwrap_or(one)]),
            steps: whole("steps", 1000)?,
            guidance,
            sampler,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_taken_and_what_cannot_be_is_told() {
        let text = r#"{"width": 128, "height": 96, "steps": 20, "guidance": 4, "sampler": "ddim"}"#;
        let own = Own::parse(text).unwrap();
        assert_eq!(own.size, Some([128, 96]));
        assert_eq!(
            (own.steps, own.guidance, own.sampler),
            (Some(20), Some(4.0), Some("ddim"))
        );
        assert_eq!(Own::parse("{\"width\": 8}").unwrap().size, Some([8, 8]));
        assert_eq!(Own::parse("{}").unwrap(), Own::default());
        for (bad, word) in [
            ("{\"steps\": 0}", "steps is 0"),
            ("{\"steps\": \"many\"}", "steps"),
            ("{\"guidance\": -1}", "guidance is -1"),
            ("{\"sampler\": \"none such\"}", "sampler"),
            ("{\"width\": 5000}", "width is 5000"),
            ("[", "JSON"),
        ] {
            let message = Own::parse(bad).unwrap_err();
            assert!(message.contains(word), "{message}");
        }
    }
}
