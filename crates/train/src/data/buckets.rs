//! Sizes that pictures are brought to.

use crate::TrainError;

/// Width and height in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Size {
    /// Pixels across.
    pub width: usize,
    /// Pixels down.
    pub height: usize,
}

/// The sizes of a run. With one size every picture is cropped to it; with aspect-ratio buckets (NovelAI 2022) each
/// goes to the size of nearly its own shape and nearly the same number of pixels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Buckets(Vec<Size>);

impl Buckets {
    /// Every picture is brought to one size.
    ///
    /// # Errors
    /// A size that is not a positive multiple of `multiple` (what the model's levels halve it by).
    pub fn one(size: Size, multiple: usize) -> Result<Self, TrainError> {
        for (key, pixels) in [("width", size.width), ("height", size.height)] {
            check(&format!("data.resolution ({key})"), pixels, multiple)?;
        }
        Ok(Self(vec![size]))
    }

    /// Sizes with sides of `smallest` to `largest` pixels in steps of `step`, and no more pixels than a square
    /// of `resolution`.
    ///
    /// # Errors
    /// Sides that are not multiples of `multiple`, or a range without sizes.
    pub fn by_aspect(
        resolution: usize,
        smallest: usize,
        largest: usize,
        step: usize,
        multiple: usize,
    ) -> Result<Self, TrainError> {
        for (key, pixels) in [
            ("data.resolution", resolution),
            ("data.buckets.smallest", smallest),
            ("data.buckets.largest", largest),
            ("data.buckets.step", step),
        ] {
            check(key, pixels, multiple)?;
        }
        if smallest > resolution || largest < resolution {
            return Err(TrainError::setting(
                "data.buckets",
                format!("{smallest} to {largest}"),
                format!("a range that holds the resolution {resolution}"),
            ));
        }
        let area = resolution * resolution;
        let mut sizes = Vec::new();
        for side in (smallest..=largest).step_by(step) {
            let other = (area / side).min(largest) / step * step;
            if other >= smallest {
                sizes.push(Size {
                    width: side,
                    height: other,
                });
                sizes.push(Size {
                    width: other,
                    height: side,
                });
            }
        }
        sizes.push(Size {
            width: resolution,
            height: resolution,
        });
        sizes.sort();
        sizes.dedup();
        Ok(Self(sizes))
    }

    /// All sizes.
    pub fn sizes(&self) -> &[Size] {
        &self.0
    }

    /// Index of the size whose shape is nearest to a picture's, as ratios go.
    pub fn of(&self, width: usize, height: usize) -> usize {
        let ratio = |w: usize, h: usize| (w.max(1) as f64 / h.max(1) as f64).ln();
        let wanted = ratio(width, height);
        let distance = |size: &Size| (ratio(size.width, size.height) - wanted).abs();
        (0..self.0.len())
            .min_by(|&a, &b| distance(&self.0[a]).total_cmp(&distance(&self.0[b])))
            .unwrap_or(0)
    }
}

/// Sides above this are surely a slip, and sizes would overflow.
const LARGEST: usize = 8192;

fn check(key: &str, pixels: usize, multiple: usize) -> Result<(), TrainError> {
    if pixels == 0 || pixels > LARGEST || !pixels.is_multiple_of(multiple) {
        let below = (pixels / multiple * multiple).clamp(multiple, LARGEST / multiple * multiple);
        return Err(TrainError::setting(
            key,
            pixels,
            format!("a multiple of {multiple}, at most {LARGEST}, such as {below}"),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_goes_to_the_size_of_its_shape() {
        let buckets = Buckets::by_aspect(512, 256, 1024, 64, 8).unwrap_or_else(|e| panic!("{e}"));
        assert!(
            buckets
                .sizes()
                .iter()
                .all(|s| s.width * s.height <= 512 * 512)
        );
        let size = |w, h| {
            let s = buckets.sizes()[buckets.of(w, h)];
            (s.width, s.height)
        };
        assert_eq!(size(100, 100), (512, 512));
        assert_eq!(size(1600, 1200), (576, 448));
        assert_eq!(size(900, 1600), (384, 640));
        assert_eq!(size(10_000, 10), (1024, 256));
    }

    #[test]
    fn sizes_that_the_model_cannot_halve_are_refused() {
        let error = Buckets::one(
            Size {
                width: 100,
                height: 128,
            },
            8,
        )
        .unwrap_err();
        assert_eq!(
            error.to_string(),
            "data.resolution (width) is 100; expected a multiple of 8, at most 8192, such as 96"
        );
        for bad in [0, 9000, usize::MAX] {
            assert!(
                Buckets::one(
                    Size {
                        width: bad,
                        height: 8
                    },
                    8
                )
                .is_err()
            );
            assert!(Buckets::by_aspect(bad, 8, 8, 8, 8).is_err());
        }
        assert!(Buckets::by_aspect(512, 640, 1024, 64, 8).is_err());
    }
}
