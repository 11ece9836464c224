//! TOML to a configuration, with errors that help.

use std::path::Path;

use serde::de::DeserializeOwned;

use crate::TrainError;

/// Reads a configuration file.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<T, TrainError> {
    let text = std::fs::read_to_string(path).map_err(TrainError::io(path))?;
    parse(&text, path)
}

pub(super) fn parse<T: DeserializeOwned>(text: &str, path: &Path) -> Result<T, TrainError> {
    toml::from_str(text).map_err(|error| {
        let line = error
            .span()
            .map(|span| 1 + text[..span.start.min(text.len())].matches('\n').count());
        TrainError::Config {
            path: path.into(),
            line: line
                .map(|line| format!(", line {line}"))
                .unwrap_or_default(),
            message: explain(error.message()),
        }
    })
}

/// serde's message, with the nearest known key where one is not known.
fn explain(message: &str) -> String {
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let unknown = message.starts_with("unknown field") || message.starts_with("unknown variant");
    let (true, Some((&found, known))) = (unknown, quoted.split_first()) else {
        return message.trim().replace('\n', "; ");
    };
    let what = if message.starts_with("unknown field") {
        "key"
    } else {
        "value"
    };
    if known.is_empty() {
        return format!("`{found}` is not a known {what}; none is expected here");
    }
    let near = known
        .iter()
        .map(|name| (strsim::damerau_levenshtein(found, name), name))
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, name)| *distance <= 1 + name.len().max(found.len()) / 3);
    let all = known.join(", ");
    match near {
        Some((_, name)) => {
            format!("`{found}` is not a known {what}; did you mean `{name}`? Known are: {all}")
        }
        None => format!("`{found}` is not a known {what}; known are: {all}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_answered_with_the_nearest_name() {
        assert_eq!(
            explain("unknown field `stesp`, expected one of `seed`, `steps`"),
            "`stesp` is not a known key; did you mean `steps`? Known are: seed, steps"
        );
        assert_eq!(
            explain("unknown variant `cosin`, expected one of `constant`, `cosine`"),
            "`cosin` is not a known value; did you mean `cosine`? Known are: constant, cosine"
        );
        assert_eq!(
            explain("unknown field `zzz`, expected `seed` or `steps`"),
            "`zzz` is not a known key; known are: seed, steps"
        );
        assert_eq!(explain("missing field `steps`"), "missing field `steps`");
    }
}
