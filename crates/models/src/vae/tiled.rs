//! Decoding a large latent tile by tile, in little more than the memory of one tile.
//!
//! A decoder looks at the whole picture in two ways: the attention in its middle sees all of it,
//! and its group normalisations take statistics over it. When each tile does this for itself,
//! tiles come out in different tones, and blending only smears the steps between them. So:
//!
//! 1. The lower part, with the attention, works at the latent's size and is small: it is done
//!    whole.
//! 2. The upper part takes nearly all memory. A survey runs it once over patches spread over the
//!    picture, together as large as a tile, which are normalised with common statistics.
//! 3. The statistics of the survey serve every tile. The upper part is then a plain convolution
//!    network that sees five latent positions far: tiles agree where they overlap, but for the
//!    rim that the zeros beyond their edges reach. The rim is cut off and the rest blended.
//!
//! There are no seams then; what is left is a small difference in tone from the whole decode, the
//! same all over the picture, as far as the survey's statistics are not the whole's.

use std::ops::Range;

use aquatint_ops::{Device, Tensor};
use burn::tensor::{DType, TensorData};

use super::attention::Whole;
use super::kl::AutoencoderKl;
use super::survey::{Survey, Surveyed, Surveyor, Thinned, patches};
use crate::ModelError;

/// Sizes of tiles, in latent positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tiling {
    /// Largest height and width of a tile.
    pub tile: usize,
    /// By how much neighbours overlap, at least; at most half of a tile. From 14 on, no tile's
    /// edge reaches the picture.
    pub overlap: usize,
}

impl Default for Tiling {
    /// Tiles of 512x512 pixels that overlap by a quarter.
    fn default() -> Self {
        Tiling {
            tile: 64,
            overlap: 16,
        }
    }
}

impl Tiling {
    fn validate(self) -> Result<(), ModelError> {
        let Tiling { tile, overlap } = self;
        match (16..=4096).contains(&tile) && (2..=tile / 2).contains(&overlap) {
            true => Ok(()),
            false => Err(ModelError::Input {
                component: "vae",
                what: "the tiling",
                found: format!("tiles of {tile} that overlap by {overlap}"),
                expected: "tiles of 16 to 4096 that overlap by 2 to half a tile".to_owned(),
            }),
        }
    }
}

/// The tiles along one axis.
#[derive(Debug, Clone)]
struct Axis {
    tile: usize,
    starts: Vec<usize>,
    factor: usize,
    /// Half of the width of a blend, in pixels.
    ramp: usize,
}

impl Axis {
    /// The fewest tiles that do, all of one size and evenly spread.
    fn new(size: usize, tiling: Tiling, factor: usize) -> Self {
        let Tiling { tile, overlap } = tiling;
        let (count, tile) = count(size, tile, overlap);
        let starts = (0..count)
            .map(|i| (i * (size - tile)) / (count - 1).max(1))
            .collect();
        Axis {
            tile,
            starts,
            factor,
            ramp: (overlap * factor / 8).max(1),
        }
    }

    fn latent(&self, i: usize) -> Range<usize> {
        self.starts[i]..self.starts[i] + self.tile
    }

    /// The pixel in the middle of the overlap of tiles `i` and `i + 1`.
    fn cut(&self, i: usize) -> usize {
        (self.starts[i] + self.tile + self.starts[i + 1]) * self.factor / 2
    }

    /// The pixels that tile `i` gives to the picture.
    fn pixels(&self, i: usize) -> Range<usize> {
        let tile = self.latent(i);
        let start = match i {
            0 => 0,
            _ => self.cut(i - 1) - self.ramp,
        };
        let end = match i + 1 == self.starts.len() {
            true => tile.end * self.factor,
            false => self.cut(i) + self.ramp,
        };
        start..end
    }

    /// The part of tile `i` in `pixel`; those of all tiles add up to 1.
    fn weight(&self, i: usize, pixel: usize) -> f32 {
        // How far a pixel's middle has come across a cut's ramp.
        let across = |cut: usize| {
            let from = cut as f32 - self.ramp as f32;
            ((pixel as f32 + 0.5 - from) / (2 * self.ramp) as f32).clamp(0.0, 1.0)
        };
        let up = if i == 0 { 1.0 } else { across(self.cut(i - 1)) };
        let down = match i + 1 == self.starts.len() {
            true => 0.0,
            false => across(self.cut(i)),
        };
        up - down
    }
}

/// How many tiles an axis takes, and their size.
fn count(size: usize, tile: usize, overlap: usize) -> (usize, usize) {
    let count = match size <= tile {
        true => 1,
        false => size
            .saturating_sub(overlap)
            .div_ceil(tile.saturating_sub(overlap).max(1))
            .max(1),
    };
    let covered = size.saturating_add((count - 1).saturating_mul(overlap));
    (count, covered.div_ceil(count))
}

/// How many rows and columns of tiles there are, and how large they are.
pub(crate) fn tiles(height: usize, width: usize, tiling: Tiling) -> ([usize; 2], [usize; 2]) {
    let (rows, tall) = count(height, tiling.tile, tiling.overlap);
    let (columns, wide) = count(width, tiling.tile, tiling.overlap);
    ([rows, columns], [tall, wide])
}

/// A decode by tiles, step by step, so that the caller can show progress and stop between them.
///
/// ```no_run
/// # use aquatint_models::{ModelError, vae::{AutoencoderKl, TiledDecode, Tiling}};
/// # fn decode(vae: &AutoencoderKl, z: aquatint_ops::Tensor<4>) -> Result<(), ModelError> {
/// let mut decode = TiledDecode::new(vae, z, Tiling::default())?;
/// while decode.step() {}
/// let picture = decode.finish();
/// # Ok(())
/// # }
/// ```
pub struct TiledDecode<'a> {
    vae: &'a AutoencoderKl,
    z: Tensor<4>,
    tiling: Tiling,
    rows: Axis,
    columns: Axis,
    /// What the lower part gives for the entry at hand, and the upper part's statistics on it.
    lower: Option<Tensor<4>>,
    survey: Survey,
    picture: Vec<f32>,
    done: usize,
}

impl<'a> TiledDecode<'a> {
    /// Plans the decode of `z` as in [`AutoencoderKl::decode`]. What it takes is foretold by
    /// [`super::VaeConfig::tiled_decode_cost`].
    ///
    /// # Errors
    /// [`ModelError::Input`] for a latent of other channels or a tiling that cannot be.
    pub fn new(vae: &'a AutoencoderKl, z: Tensor<4>, tiling: Tiling) -> Result<Self, ModelError> {
        vae.check_latent(&z)?;
        tiling.validate()?;
        let [batch, height, width, _] = z.dims();
        let factor = vae.config().factor();
        let channels = vae.config().out_channels;
        Ok(TiledDecode {
            vae,
            tiling,
            rows: Axis::new(height, tiling, factor),
            columns: Axis::new(width, tiling, factor),
            lower: None,
            survey: Survey::default(),
            picture: vec![0.0; batch * height * width * factor * factor * channels],
            z,
            done: 0,
        })
    }

    /// How many steps there are: for each batch entry the lower part, the survey and the tiles.
    pub fn total(&self) -> usize {
        self.z.dims()[0] * self.steps_an_entry()
    }

    /// How many steps are done.
    pub fn done(&self) -> usize {
        self.done
    }

    /// Does the next step. False when there was none left.
    pub fn step(&mut self) -> bool {
        if self.done == self.total() {
            return false;
        }
        let steps = self.steps_an_entry();
        let (entry, step) = (self.done / steps, self.done % steps);
        match (step, self.lower.take()) {
            (1, Some(lower)) if self.tiles() > 1 => {
                self.survey = self.look_around(&lower);
                self.lower = Some(lower);
            }
            (1.., Some(lower)) => {
                let tile = step + self.tiles() - steps;
                self.tile(&lower, entry, tile);
                self.lower = Some(lower);
            }
            _ => self.lower = Some(self.work_below(entry)),
        }
        self.done += 1;
        true
    }

    /// The picture, `[batch, 8 height, 8 width, 3]`; does the steps that are left.
    pub fn finish(mut self) -> Tensor<4> {
        while self.step() {}
        let [batch, height, width, _] = self.z.dims();
        let factor = self.vae.config().factor();
        let channels = self.vae.config().out_channels;
        let shape = [batch, height * factor, width * factor, channels];
        from_values(self.picture, shape, &self.z.device())
    }

    fn tiles(&self) -> usize {
        self.rows.starts.len() * self.columns.starts.len()
    }

    fn steps_an_entry(&self) -> usize {
        match self.tiles() {
            1 => 2, // no survey
            tiles => 2 + tiles,
        }
    }

    fn work_below(&self, entry: usize) -> Tensor<4> {
        let [_, height, width, _] = self.z.dims();
        let z = self.z.clone().narrow(0, entry, 1);
        let mut thinned = Thinned { height, width };
        self.vae.lower(z, &mut thinned, &mut |_, _| {})
    }

    /// Runs the upper part over the survey's patches and keeps their statistics.
    fn look_around(&self, lower: &Tensor<4>) -> Survey {
        let [_, height, width, _] = lower.dims();
        let patches = patches(height, width, self.tiling.tile);
        let size = [patches[0].0.len(), patches[0].1.len()];
        let parts: Vec<_> = patches
            .into_iter()
            .map(|(rows, columns)| part(lower, rows, columns))
            .collect();
        let groups = self.vae.config().groups;
        let mut surveyor = Surveyor::new(groups, size, [height, width]);
        self.vae.upper(Tensor::cat(parts, 0), &mut surveyor);
        surveyor.found
    }

    /// Runs the upper part over a tile and blends it into the picture.
    fn tile(&mut self, lower: &Tensor<4>, entry: usize, tile: usize) {
        let columns = self.columns.starts.len();
        let (row, column) = (tile / columns, tile % columns);
        let x = part(lower, self.rows.latent(row), self.columns.latent(column));
        let decoded = match self.tiles() {
            1 => self.vae.upper(x, &mut Whole),
            _ => self.vae.upper(x, &mut Surveyed::new(&self.survey)),
        };
        let (ys, xs) = (self.rows.pixels(row), self.columns.pixels(column));
        let factor = self.rows.factor;
        let top = self.rows.starts[row] * factor;
        let left = self.columns.starts[column] * factor;
        let inside = (ys.start - top..ys.end - top, xs.start - left..xs.end - left);
        self.blend(
            part(&decoded, inside.0, inside.1),
            entry,
            (row, ys),
            (column, xs),
        );
    }

    /// Adds a tile's pixels, by their weights, to the picture.
    fn blend(
        &mut self,
        pixels: Tensor<4>,
        entry: usize,
        (row, ys): (usize, Range<usize>),
        (column, xs): (usize, Range<usize>),
    ) {
        let [_, height, width, _] = self.z.dims();
        let (factor, channels) = (self.rows.factor, pixels.dims()[3]);
        let values = to_values(pixels);
        let across: Vec<f32> = xs
            .clone()
            .flat_map(|x| vec![self.columns.weight(column, x); channels])
            .collect();
        for (y, line) in ys.zip(values.chunks_exact(across.len())) {
            let down = self.rows.weight(row, y);
            let at = ((entry * height * factor + y) * width * factor + xs.start) * channels;
            let target = &mut self.picture[at..at + line.len()];
            for ((target, value), across) in target.iter_mut().zip(line).zip(&across) {
                *target += value * across * down;
            }
        }
    }
}

impl AutoencoderKl {
    /// As [`AutoencoderKl::decode`], tile by tile. See [`TiledDecode`] for the steps.
    ///
    /// # Errors
    /// [`ModelError::Input`] for a latent of other channels or a tiling that cannot be.
    pub fn decode_tiled(&self, z: Tensor<4>, tiling: Tiling) -> Result<Tensor<4>, ModelError> {
        Ok(TiledDecode::new(self, z, tiling)?.finish())
    }
}

fn part(x: &Tensor<4>, rows: Range<usize>, columns: Range<usize>) -> Tensor<4> {
    let [batch, _, _, channels] = x.dims();
    x.clone().slice([0..batch, rows, columns, 0..channels])
}

fn to_values(tensor: Tensor<4>) -> Vec<f32> {
    let data = tensor.into_data().convert_dtype(DType::F32);
    let (words, _) = data.bytes().as_chunks::<4>();
    words.iter().map(|&b| f32::from_le_bytes(b)).collect()
}

fn from_values(values: Vec<f32>, shape: [usize; 4], device: &Device) -> Tensor<4> {
    let data = TensorData::new(values, shape);
    Tensor::from_data(data, (device, DType::F32))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vae::VaeConfig;
    use aquatint_ops::{ParamSource, Params, RawTensor};

    #[test]
    fn tiles_cover_an_axis_and_their_weights_add_up_to_one() {
        for (tile, overlap) in [(64, 16), (16, 2), (16, 8), (33, 5)] {
            for factor in [1, 2, 8] {
                for size in 1..300 {
                    let tiling = Tiling { tile, overlap };
                    let axis = Axis::new(size, tiling, factor);
                    assert!(axis.tile <= tile, "{size} in tiles of {tile}");
                    let mut sums = vec![0f32; size * factor];
                    for i in 0..axis.starts.len() {
                        let (latent, pixels) = (axis.latent(i), axis.pixels(i));
                        assert!(latent.end <= size);
                        assert!(pixels.start >= latent.start * factor);
                        assert!(pixels.end <= latent.end * factor);
                        for x in pixels {
                            sums[x] += axis.weight(i, x);
                        }
                    }
                    let worst = sums.iter().map(|s| (s - 1.0).abs()).fold(0.0, f32::max);
                    assert!(
                        worst < 1e-5,
                        "{size} in {tile}/{overlap} x{factor}: {worst}"
                    );
                }
            }
        }
    }

    /// Weights of a reproducible noise, scaled by what they sum over.
    struct Noise;

    impl ParamSource for Noise {
        fn tensor(
            &self,
            name: &str,
            shape: &[usize],
        ) -> Result<RawTensor, Box<dyn std::error::Error + Send + Sync>> {
            let norm = shape.len() == 1 && name.contains("norm") && name.ends_with("weight");
            let (centre, spread) = match shape.len() {
                1 => (if norm { 1.0 } else { 0.0 }, 0.1),
                _ => {
                    let inputs: usize = shape[1..].iter().product();
                    (0.0, (3.0 / inputs as f32).sqrt())
                }
            };
            let mut state = name
                .bytes()
                .fold(7u32, |h, b| h.wrapping_mul(31) ^ u32::from(b));
            let values: Vec<f32> = (0..shape.iter().product())
                .map(|_| {
                    state = state.wrapping_mul(1664525).wrapping_add(1013904223);
                    centre + spread * ((state >> 8) as f32 / (1 << 23) as f32 - 1.0)
                })
                .collect();
            Ok(RawTensor::from_f32(&values, shape))
        }

        fn has(&self, name: &str) -> bool {
            name.starts_with("decoder")
        }
    }

    /// With the whole's statistics, tiles are the whole: what is left of the edges and of the
    /// blend is nothing. So a seam cannot come from anything but the survey, which is common to
    /// all tiles.
    #[test]
    fn with_exact_statistics_tiles_are_the_whole() {
        let config = VaeConfig {
            channels: vec![8, 8, 16, 16],
            groups: 4,
            ..VaeConfig::sd1()
        };
        let device = Device::flex();
        let vae = AutoencoderKl::load(&Params::new(&Noise, &device), &config).unwrap();
        let z = Noise.tensor("z", &[2, 40, 24, 4]).unwrap();
        let z: Vec<f32> = z
            .bytes
            .as_chunks::<4>()
            .0
            .iter()
            .map(|&b| f32::from_le_bytes(b) * 6.0)
            .collect();
        let z = from_values(z, [2, 40, 24, 4], &device);
        let whole = to_values(vae.decode(z.clone()).unwrap());
        let tiling = Tiling {
            tile: 32,
            overlap: 16,
        };
        let mut decode = TiledDecode::new(&vae, z, tiling).unwrap();
        assert_eq!(decode.total(), 2 * (2 + 2));
        while decode.step() {
            if decode.done() % 4 == 2 {
                // In place of the survey's: a survey whose one patch is the picture.
                let lower = decode.lower.clone().unwrap();
                let mut surveyor = Surveyor::new(4, [40, 24], [40, 24]);
                vae.upper(lower, &mut surveyor);
                decode.survey = surveyor.found;
            }
        }
        let tiled = to_values(decode.finish());
        let worst = whole
            .iter()
            .zip(&tiled)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        let largest = whole.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        assert!(worst < 2e-5 * largest, "{worst} of {largest}");
    }
}
