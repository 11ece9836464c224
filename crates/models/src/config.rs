//! Reading a component's `config.json`: each value by its key, with the key in the error.

use std::fmt::Display;

use serde_json::{Map, Value};

use crate::ModelError;

/// Largest count that a configuration may hold. Far above any model; it keeps products of counts
/// from overflowing.
pub(crate) const MAX_COUNT: usize = 1 << 16;

/// A component's configuration. Absent and `null` mean the same: the default.
pub(crate) struct Config {
    component: &'static str,
    map: Map<String, Value>,
}

impl Config {
    /// Parses the text of a `config.json`.
    pub fn parse(component: &'static str, json: &str) -> Result<Self, ModelError> {
        match serde_json::from_str::<Value>(json) {
            Ok(Value::Object(map)) => Ok(Config { component, map }),
            Ok(other) => Err(ModelError::Config {
                component,
                key: "config.json".to_owned(),
                found: brief(&other),
                expected: "a JSON object".to_owned(),
            }),
            Err(e) => Err(ModelError::Config {
                component,
                key: "config.json".to_owned(),
                found: format!("not readable ({e})"),
                expected: "a JSON object".to_owned(),
            }),
        }
    }

    /// The error for `key`.
    pub fn error(&self, key: &str, found: impl Display, expected: impl Display) -> ModelError {
        config_error(self.component, key, found, expected)
    }

    /// The value, when it is there and not `null`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// Whether the key is written as `null`, which for a few keys is not the default.
    pub fn is_null(&self, key: &str) -> bool {
        self.map.get(key).is_some_and(Value::is_null)
    }

    /// A positive integer.
    pub fn count(&self, key: &str, default: usize) -> Result<usize, ModelError> {
        Ok(self.maybe_count(key)?.unwrap_or(default))
    }

    /// A positive integer that may be absent.
    pub fn maybe_count(&self, key: &str) -> Result<Option<usize>, ModelError> {
        self.get(key).map(|v| self.as_count(key, v)).transpose()
    }

    /// A finite number.
    pub fn number(&self, key: &str, default: f64) -> Result<f64, ModelError> {
        match self.get(key) {
            None => Ok(default),
            Some(v) => v
                .as_f64()
                .filter(|x| x.is_finite())
                .ok_or_else(|| self.error(key, brief(v), "a number")),
        }
    }

    /// A list of finite numbers that may be absent.
    pub fn maybe_numbers(&self, key: &str) -> Result<Option<Vec<f64>>, ModelError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let wrong = || self.error(key, brief(value), "a list of numbers");
        let list = value.as_array().ok_or_else(wrong)?;
        let numbers = list.iter().map(Value::as_f64).collect::<Option<Vec<_>>>();
        numbers.map(Some).ok_or_else(wrong)
    }

    /// True or false.
    pub fn flag(&self, key: &str, default: bool) -> Result<bool, ModelError> {
        match self.get(key) {
            None => Ok(default),
            Some(v) => v
                .as_bool()
                .ok_or_else(|| self.error(key, brief(v), "true or false")),
        }
    }

    /// A list of `len` flags, or one for all.
    pub fn flags(&self, key: &str, len: usize, default: bool) -> Result<Vec<bool>, ModelError> {
        let Some(Value::Array(list)) = self.get(key) else {
            return Ok(vec![self.flag(key, default)?; len]);
        };
        let flags = list.iter().map(Value::as_bool).collect::<Option<Vec<_>>>();
        flags.filter(|f| f.len() == len).ok_or_else(|| {
            let expected = format!("true, false, or a list of {len} of them");
            self.error(key, list_of(list), expected)
        })
    }

    /// A list of positive integers, of any length from 1 to 16.
    pub fn counts(&self, key: &str, default: &[usize]) -> Result<Vec<usize>, ModelError> {
        match self.get(key) {
            None => Ok(default.to_vec()),
            Some(Value::Array(list)) if (1..=16).contains(&list.len()) => {
                list.iter().map(|v| self.as_count(key, v)).collect()
            }
            Some(v) => Err(self.error(key, brief(v), "a list of 1 to 16 positive integers")),
        }
    }

    /// A list of `len` positive integers, or one for all.
    pub fn counts_for(
        &self,
        key: &str,
        len: usize,
        default: usize,
    ) -> Result<Vec<usize>, ModelError> {
        match self.get(key) {
            None => Ok(vec![default; len]),
            Some(Value::Array(list)) if list.len() == len => {
                list.iter().map(|v| self.as_count(key, v)).collect()
            }
            Some(v @ Value::Number(_)) => Ok(vec![self.as_count(key, v)?; len]),
            Some(v) => {
                let expected = format!("a positive integer or a list of {len} of them");
                Err(self.error(key, brief(v), expected))
            }
        }
    }

    /// A list of names.
    pub fn names(&self, key: &str, default: &[&str]) -> Result<Vec<String>, ModelError> {
        let Some(value) = self.get(key) else {
            return Ok(default.iter().map(|&s| s.to_owned()).collect());
        };
        let list = value.as_array().filter(|l| (1..=16).contains(&l.len()));
        let names = list.and_then(|l| {
            l.iter()
                .map(|v| v.as_str().map(str::to_owned))
                .collect::<Option<Vec<_>>>()
        });
        names.ok_or_else(|| self.error(key, brief(value), "a list of 1 to 16 names"))
    }

    /// Holds that `key` is absent, or one of the names that this version runs.
    pub fn only(&self, key: &str, names: &[&str]) -> Result<(), ModelError> {
        match self.get(key) {
            None => Ok(()),
            Some(Value::String(s)) if names.contains(&s.as_str()) => Ok(()),
            Some(v) if names.is_empty() => Err(self.error(key, brief(v), "no value")),
            Some(v) => Err(self.error(key, brief(v), names.join(" or "))),
        }
    }

    /// Holds that the flag `key` is absent or has the value that this version runs.
    pub fn only_flag(&self, key: &str, value: bool) -> Result<(), ModelError> {
        match self.flag(key, value)? == value {
            true => Ok(()),
            false => Err(self.error(key, !value, value)),
        }
    }

    /// Whether `key` is the name `name`.
    pub fn is(&self, key: &str, name: &str) -> bool {
        self.get(key).and_then(Value::as_str) == Some(name)
    }

    /// A height and width, or one number for both, that may be absent.
    pub fn maybe_size(&self, key: &str) -> Result<Option<[usize; 2]>, ModelError> {
        if self.get(key).is_none() {
            return Ok(None);
        }
        let size = self.counts_for(key, 2, 1)?;
        Ok(Some([size[0], size[1]]))
    }

    /// The padding of convolutions that halve the size: 1 on all sides (the default), or 0 for one
    /// row and column at the bottom and right.
    pub fn padding(&self, key: &str) -> Result<usize, ModelError> {
        match self.get(key) {
            None => Ok(1),
            Some(v) => match v.as_u64() {
                Some(0) => Ok(0),
                Some(1) => Ok(1),
                _ => Err(self.error(key, brief(v), "0 or 1")),
            },
        }
    }

    fn as_count(&self, key: &str, value: &Value) -> Result<usize, ModelError> {
        value
            .as_u64()
            .and_then(|n| usize::try_from(n).ok())
            .filter(|n| (1..=MAX_COUNT).contains(n))
            .ok_or_else(|| {
                let expected = format!("an integer from 1 to {MAX_COUNT}");
                self.error(key, brief(value), expected)
            })
    }
}

/// The error for a configuration value.
pub(crate) fn config_error(
    component: &'static str,
    key: &str,
    found: impl Display,
    expected: impl Display,
) -> ModelError {
    ModelError::Config {
        component,
        key: key.to_owned(),
        found: found.to_string(),
        expected: expected.to_string(),
    }
}

/// A value as JSON, cut to a length that fits in a line.
fn brief(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        None => text,
        Some((end, _)) => format!("{}...", &text[..end]),
    }
}

fn list_of(list: &[Value]) -> String {
    brief(&Value::Array(list.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: &str) -> Config {
        Config::parse("unet", json).unwrap()
    }

    #[test]
    fn absent_and_null_are_the_default() {
        let c = config(r#"{"a": null, "b": 7}"#);
        assert_eq!(c.count("a", 3).unwrap(), 3);
        assert_eq!(c.count("z", 3).unwrap(), 3);
        assert_eq!(c.count("b", 3).unwrap(), 7);
        assert!(c.is_null("a") && !c.is_null("z"));
    }

    #[test]
    fn one_value_stands_for_all() {
        let c = config(r#"{"a": 2, "b": [1, 2], "c": [true, false], "d": true}"#);
        assert_eq!(c.counts_for("a", 3, 9).unwrap(), [2, 2, 2]);
        assert_eq!(c.counts_for("b", 2, 9).unwrap(), [1, 2]);
        assert_eq!(c.flags("c", 2, false).unwrap(), [true, false]);
        assert_eq!(c.flags("d", 2, false).unwrap(), [true, true]);
        assert!(c.counts_for("b", 3, 9).is_err());
        assert!(c.flags("c", 3, false).is_err());
    }

    #[test]
    fn errors_name_the_key_and_what_was_found() {
        for json in [
            r#"{"a": -1}"#,
            r#"{"a": 0}"#,
            r#"{"a": 1.5}"#,
            r#"{"a": "x"}"#,
            r#"{"a": 1e30}"#,
        ] {
            let e = config(json).count("a", 1).unwrap_err().to_string();
            assert!(e.starts_with("unet: a is "), "{e}");
        }
        let long = format!(r#"{{"a": "{}"}}"#, "é".repeat(500));
        assert!(
            config(&long)
                .number("a", 0.0)
                .unwrap_err()
                .to_string()
                .len()
                < 300
        );
        assert!(Config::parse("unet", "[]").is_err());
        assert!(Config::parse("unet", "{").is_err());
    }
}
