//! Decoding a large latent tile by tile, in the memory of one tile.
//!
//! A decoder looks at the whole picture in two ways: its group normalisations take statistics over
//! it, and the attention in its middle sees all of it. When each tile does this for itself, tiles
//! come out in different tones, and blending only smears the steps between them. So a first pass
//! decodes a survey: patches spread over the latent, together as large as a tile, normalised with
//! common statistics and attending to each other. Its statistics, keys and values then serve every
//! tile, and the decoder becomes a plain convolution network: tiles that overlap agree in the
//! overlap but for the zeros beyond their edges, which fade over a few positions. There they are
//! cut off, and what remains is blended linearly.

use std::ops::Range;

use aquatint_ops::fused::{AttentionMask, attention, silu};
use aquatint_ops::nn::GroupNorm;
use aquatint_ops::{Device, Tensor};
use burn::tensor::{DType, TensorData};

use super::attention::{EPS, Global, Whole};
use super::kl::AutoencoderKl;
use crate::ModelError;

/// Sizes of tiles, in latent positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tiling {
    /// Largest height and width of a tile.
    pub tile: usize,
    /// By how much neighbours overlap, at least; at most half of a tile.
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
        let count = match size <= tile {
            true => 1,
            false => size
                .saturating_sub(overlap)
                .div_ceil(tile.saturating_sub(overlap).max(1))
                .max(1),
        };
        let tile = (size + (count - 1) * overlap).div_ceil(count);
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

/// How many rows and columns of tiles there are, and how large they are.
pub(crate) fn tiles(height: usize, width: usize, tiling: Tiling) -> ([usize; 2], [usize; 2]) {
    let (rows, columns) = (Axis::new(height, tiling, 1), Axis::new(width, tiling, 1));
    let counts = [rows.starts.len(), columns.starts.len()];
    (counts, [rows.tile, columns.tile])
}

/// What the survey found, in the order in which a decode asks for it.
#[derive(Debug, Clone, Default)]
struct Survey {
    /// Scale and shift of each normalisation, `[1, 1, 1, channels]`.
    affines: Vec<(Tensor<4>, Tensor<4>)>,
    /// Keys and values of each attention, `[1, positions, channels]`.
    keys_values: Vec<(Tensor<3>, Tensor<3>)>,
}

/// Takes the statistics of a batch of patches as one picture's.
struct Surveyor {
    groups: usize,
    /// Height and width of the patches in the latent.
    patch: [usize; 2],
    /// The rim of each patch that is left out of the statistics, where zeros come in.
    rim: [usize; 2],
    found: Survey,
}

impl Surveyor {
    /// Mean and variance of each channel, over the patches without their rims.
    fn statistics(&self, x: &Tensor<4>) -> (Tensor<2>, Tensor<2>) {
        let [n, height, width, channels] = x.dims();
        let rim_y = self.rim[0] * height / self.patch[0];
        let rim_x = self.rim[1] * width / self.patch[1];
        let (ys, xs) = (rim_y..height - rim_y, rim_x..width - rim_x);
        let inner = x.clone().slice([0..n, ys, xs, 0..channels]);
        let [n, height, width, _] = inner.dims();
        inner
            .reshape([n * height * width, channels])
            .var_mean_bias(0)
    }
}

impl Global for Surveyor {
    fn norm(&mut self, norm: &GroupNorm, x: Tensor<4>) -> Tensor<4> {
        let channels = x.dims()[3];
        let grouped = [self.groups, channels / self.groups];
        let (variance, mean) = self.statistics(&x);
        let (variance, means) = (variance.reshape(grouped), mean.reshape(grouped));
        let mean = means.clone().mean_dim(1);
        let between = (means - mean.clone()).square().mean_dim(1);
        let deviation = (variance.mean_dim(1) + between + EPS).sqrt();
        let scale = norm.weight.val().reshape(grouped) / deviation;
        let shift = norm.bias.val().reshape(grouped) - mean * scale.clone();
        let row = [1, 1, 1, channels];
        let affine = (scale.reshape(row), shift.reshape(row));
        self.found.affines.push(affine.clone());
        x * affine.0 + affine.1
    }

    fn norm_silu(&mut self, norm: &GroupNorm, x: Tensor<4>) -> Tensor<4> {
        silu(self.norm(norm, x))
    }

    fn attend(&mut self, q: Tensor<3>, k: Tensor<3>, v: Tensor<3>) -> Tensor<3> {
        let dims = q.dims();
        let joined = [1, dims[0] * dims[1], dims[2]];
        let (k, v) = (k.reshape(joined), v.reshape(joined));
        self.found.keys_values.push((k.clone(), v.clone()));
        attention(q.reshape(joined), k, v, 1, AttentionMask::None).reshape(dims)
    }
}

/// Decodes a tile with what the survey found.
struct Surveyed<'a> {
    survey: &'a Survey,
    norms: usize,
    attentions: usize,
}

impl Global for Surveyed<'_> {
    fn norm(&mut self, _norm: &GroupNorm, x: Tensor<4>) -> Tensor<4> {
        let (scale, shift) = self.survey.affines[self.norms].clone();
        self.norms += 1;
        x * scale + shift
    }

    fn norm_silu(&mut self, norm: &GroupNorm, x: Tensor<4>) -> Tensor<4> {
        silu(self.norm(norm, x))
    }

    fn attend(&mut self, q: Tensor<3>, _k: Tensor<3>, _v: Tensor<3>) -> Tensor<3> {
        let (k, v) = self.survey.keys_values[self.attentions].clone();
        self.attentions += 1;
        attention(q, k, v, 1, AttentionMask::None)
    }
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
    survey: Survey,
    picture: Vec<f32>,
    done: usize,
}

impl<'a> TiledDecode<'a> {
    /// Plans the decode of `z` as in [`AutoencoderKl::decode`]. Memory is that of decoding
    /// `tiling.tile` squared, and the picture.
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
            survey: Survey::default(),
            picture: vec![0.0; batch * height * width * factor * factor * channels],
            z,
            done: 0,
        })
    }

    /// How many steps there are: the survey and the tiles of each batch entry.
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
        let (entry, step) = (
            self.done / self.steps_an_entry(),
            self.done % self.steps_an_entry(),
        );
        match step {
            0 if self.one_tile() => {
                let part = self.part(entry, self.rows.latent(0), self.columns.latent(0));
                let whole = self.vae.decode_with(part, &mut Whole, &mut |_, _| {});
                let values = to_values(whole);
                let at = entry * values.len();
                self.picture[at..at + values.len()].copy_from_slice(&values);
            }
            0 => self.survey = self.look_around(entry),
            _ => {
                let columns = self.columns.starts.len();
                self.tile(entry, (step - 1) / columns, (step - 1) % columns);
            }
        }
        self.done += 1;
        true
    }

    /// The picture, `[batch, 8 height, 8 width, 3]`; does the steps that are left.
    pub fn finish(mut self) -> Tensor<4> {
        while self.step() {}
        let [batch, height, width, _] = self.z.dims();
        let factor = self.vae.config().factor();
        let shape = [
            batch,
            height * factor,
            width * factor,
            self.vae.config().out_channels,
        ];
        from_values(self.picture, shape, &self.z.device())
    }

    /// Whether a batch entry fits in a tile; it is then decoded as a whole.
    fn one_tile(&self) -> bool {
        self.rows.starts.len() * self.columns.starts.len() == 1
    }

    fn steps_an_entry(&self) -> usize {
        match self.one_tile() {
            true => 1,
            false => 1 + self.rows.starts.len() * self.columns.starts.len(),
        }
    }

    fn part(&self, entry: usize, rows: Range<usize>, columns: Range<usize>) -> Tensor<4> {
        let channels = self.z.dims()[3];
        self.z
            .clone()
            .slice([entry..entry + 1, rows, columns, 0..channels])
    }

    /// Decodes the survey of a batch entry and keeps what it finds.
    fn look_around(&self, entry: usize) -> Survey {
        let [_, height, width, _] = self.z.dims();
        let patches = patches(height, width, self.tiling.tile);
        let patch = [patches[0].0.len(), patches[0].1.len()];
        // A patch that spans the picture has its edges, zeros and all.
        let rim = |size: usize, patch: usize| match patch < size {
            true => (self.tiling.tile / 32).max(1),
            false => 0,
        };
        let parts: Vec<_> = patches
            .into_iter()
            .map(|(rows, columns)| self.part(entry, rows, columns))
            .collect();
        let mut surveyor = Surveyor {
            groups: self.vae.config().groups,
            patch,
            rim: [rim(height, patch[0]), rim(width, patch[1])],
            found: Survey::default(),
        };
        let z = Tensor::cat(parts, 0);
        self.vae.decode_with(z, &mut surveyor, &mut |_, _| {});
        surveyor.found
    }

    /// Decodes a tile and blends it into the picture.
    fn tile(&mut self, entry: usize, row: usize, column: usize) {
        let z = self.part(entry, self.rows.latent(row), self.columns.latent(column));
        let mut surveyed = Surveyed {
            survey: &self.survey,
            norms: 0,
            attentions: 0,
        };
        let decoded = self.vae.decode_with(z, &mut surveyed, &mut |_, _| {});
        let (ys, xs) = (self.rows.pixels(row), self.columns.pixels(column));
        let factor = self.rows.factor;
        let (top, left) = (
            self.rows.starts[row] * factor,
            self.columns.starts[column] * factor,
        );
        let channels = decoded.dims()[3];
        let inner = decoded.slice([
            0..1,
            ys.start - top..ys.end - top,
            xs.start - left..xs.end - left,
            0..channels,
        ]);
        let values = to_values(inner);
        let [_, height, width, _] = self.z.dims();
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

/// Rows and columns of the survey's patches: evenly spread, all of one size, together not larger
/// than a tile.
fn patches(height: usize, width: usize, tile: usize) -> Vec<(Range<usize>, Range<usize>)> {
    let side = |size: usize| size.min(tile / PATCHES);
    let spread = |size: usize, count: usize| -> Vec<Range<usize>> {
        let side = side(size);
        let middle = |i: usize| (2 * i + 1) * size / (2 * count);
        (0..count)
            .map(|i| middle(i).saturating_sub(side / 2).min(size - side))
            .map(|start| start..start + side)
            .collect()
    };
    // As many rows and columns of patches as make the gaps between them even.
    let total = PATCHES * PATCHES;
    let ideal = (total as f64 * height as f64 / width as f64).sqrt();
    let rows = (ideal.round() as usize).clamp(1, total);
    let columns = (total / rows).max(1);
    let columns = spread(width, columns);
    spread(height, rows)
        .into_iter()
        .flat_map(|row| columns.iter().map(move |c| (row.clone(), c.clone())))
        .collect()
}

/// Patches of the survey a side of a tile.
const PATCHES: usize = 4;

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

    #[test]
    fn the_survey_is_spread_and_no_larger_than_a_tile() {
        for (height, width) in [(128, 128), (512, 64), (65, 512), (8, 300), (1, 1), (70, 70)] {
            let patches = patches(height, width, 64);
            let area: usize = patches.iter().map(|(r, c)| r.len() * c.len()).sum();
            assert!(area <= 64 * 64);
            for (rows, columns) in &patches {
                assert!(rows.end <= height && columns.end <= width);
                assert_eq!(
                    (rows.len(), columns.len()),
                    (patches[0].0.len(), patches[0].1.len())
                );
            }
        }
    }
}
