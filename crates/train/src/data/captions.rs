//! What a picture is called in one step.

use serde::{Deserialize, Serialize};

use crate::TrainError;

/// How captions vary from step to step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CaptionOptions {
    /// Share of the examples that are trained without their caption or class, for classifier-free guidance
    /// (Ho and Salimans 2022); 0.1 is usual.
    pub dropout: f64,
    /// Captions are lists with commas whose parts may change places.
    pub shuffle_tags: bool,
    /// Share of the parts that are left out, when tags are shuffled.
    pub tag_dropout: f64,
    /// Parts at the beginning that are neither moved nor left out.
    pub keep_tags: usize,
}

impl Default for CaptionOptions {
    fn default() -> Self {
        Self {
            dropout: 0.1,
            shuffle_tags: false,
            tag_dropout: 0.0,
            keep_tags: 1,
        }
    }
}

impl CaptionOptions {
    pub(super) fn check(&self) -> Result<(), TrainError> {
        for (key, value) in [
            ("data.captions.dropout", self.dropout),
            ("data.captions.tag_dropout", self.tag_dropout),
        ] {
            if !(0.0..=1.0).contains(&value) {
                return Err(TrainError::setting(key, value, "0 to 1"));
            }
        }
        Ok(())
    }

    /// A caption out of several, varied; `uniform` gives independent numbers in [0, 1).
    pub(super) fn choose(&self, captions: &[String], mut uniform: impl FnMut() -> f64) -> String {
        let index = (uniform() * captions.len() as f64) as usize;
        let Some(caption) = captions.get(index) else {
            return String::new();
        };
        if !self.shuffle_tags {
            return caption.clone();
        }
        let tags: Vec<&str> = caption
            .split(',')
            .map(str::trim)
            .filter(|tag| !tag.is_empty())
            .collect();
        let (kept, movable) = tags.split_at(self.keep_tags.min(tags.len()));
        let mut rest: Vec<&str> = movable
            .iter()
            .copied()
            .filter(|_| uniform() >= self.tag_dropout)
            .collect();
        for i in (1..rest.len()).rev() {
            rest.swap(i, (uniform() * (i + 1) as f64) as usize);
        }
        [kept, &rest].concat().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(values: &[f64]) -> impl FnMut() -> f64 {
        let mut values = values.iter().copied().cycle();
        move || values.next().unwrap_or(0.0)
    }

    #[test]
    fn captions_are_chosen_and_shuffled() {
        let captions = ["a red apple, fruit, red".to_owned(), "apple".to_owned()];
        let plain = CaptionOptions::default();
        assert_eq!(plain.choose(&captions, numbers(&[0.9])), "apple");
        assert_eq!(plain.choose(&captions, numbers(&[0.0])), captions[0]);
        assert_eq!(plain.choose(&[], numbers(&[0.5])), "");
        let shuffled = CaptionOptions {
            shuffle_tags: true,
            tag_dropout: 0.2,
            ..plain
        };
        let choose = |values: &[f64]| shuffled.choose(&captions, numbers(values));
        assert_eq!(choose(&[0.0, 0.9, 0.9, 0.0]), "a red apple, red, fruit");
        assert_eq!(choose(&[0.0, 0.1, 0.9]), "a red apple, red");
        assert_eq!(choose(&[0.0, 0.1, 0.1]), "a red apple");
    }
}
