//! How a decode by tiles does what looks at the whole picture. See [`super::tiled`].

use std::ops::Range;

use aquatint_ops::Tensor;
use aquatint_ops::fused::{AttentionMask, attention, silu};
use aquatint_ops::nn::GroupNorm;

use super::attention::{EPS, Global, Whole};

/// Keys and values that an attention keeps at most, but for less than four times as many.
pub(crate) const KEYS: usize = 1 << 16;

/// Side of a patch, as a part of a tile's. Many small patches tell more than few large ones: on
/// pictures of things on a ground, 64 patches were three times as near as 16 of the same area.
const PATCHES: usize = 8;

/// Positions at a patch's edge that are left out of the statistics, since zeros come in there.
const RIM: usize = 1;

/// A pass over a whole latent whose attention sees at most some [`KEYS`] positions, evenly spread:
/// all of them up to pictures of 2048x2048.
pub(crate) struct Thinned {
    pub height: usize,
    pub width: usize,
}

impl Thinned {
    /// Of every how many rows and columns one is kept.
    fn stride(&self) -> usize {
        let mut stride = 1;
        while self.height.div_ceil(stride) * self.width.div_ceil(stride) > KEYS {
            stride += 1;
        }
        stride
    }

    fn thin(&self, x: Tensor<3>) -> Tensor<3> {
        let stride = self.stride();
        if stride == 1 {
            return x;
        }
        let [batch, _, channels] = x.dims();
        let (rows, columns) = (self.height / stride, self.width / stride);
        x.reshape([batch, self.height, self.width * channels])
            .narrow(1, 0, rows * stride)
            .reshape([batch * rows, stride, self.width * channels])
            .narrow(1, stride / 2, 1)
            .reshape([batch * rows, self.width, channels])
            .narrow(1, 0, columns * stride)
            .reshape([batch * rows * columns, stride, channels])
            .narrow(1, stride / 2, 1)
            .reshape([batch, rows * columns, channels])
    }
}

impl Global for Thinned {
    fn norm(&mut self, norm: &GroupNorm, x: Tensor<4>) -> Tensor<4> {
        Whole.norm(norm, x)
    }

    fn norm_silu(&mut self, norm: &GroupNorm, x: Tensor<4>) -> Tensor<4> {
        Whole.norm_silu(norm, x)
    }

    fn attend(&mut self, q: Tensor<3>, k: Tensor<3>, v: Tensor<3>) -> Tensor<3> {
        Whole.attend(q, self.thin(k), self.thin(v))
    }
}

/// What the survey found: scale and shift of each normalisation, `[1, 1, 1, channels]`, in the
/// order in which the upper part asks for them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Survey {
    affines: Vec<(Tensor<4>, Tensor<4>)>,
}

/// Takes the statistics of a batch of patches as one picture's.
pub(crate) struct Surveyor {
    groups: usize,
    patch: [usize; 2],
    rim: [usize; 2],
    pub found: Survey,
}

impl Surveyor {
    /// For patches of `patch` from a latent of `size`, height and width.
    pub fn new(groups: usize, patch: [usize; 2], size: [usize; 2]) -> Self {
        // A patch that spans the latent has its edges, zeros and all.
        let rim = |i: usize| if patch[i] < size[i] { RIM } else { 0 };
        Surveyor {
            groups,
            patch,
            rim: [rim(0), rim(1)],
            found: Survey::default(),
        }
    }

    /// Variance and mean of each channel, over the patches without their rims.
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
        // Only the lower part has one, which is not surveyed.
        attention(q, k, v, 1, AttentionMask::None)
    }
}

/// A tile, normalised with what the survey found.
pub(crate) struct Surveyed<'a> {
    survey: &'a Survey,
    next: usize,
}

impl<'a> Surveyed<'a> {
    pub fn new(survey: &'a Survey) -> Self {
        Surveyed { survey, next: 0 }
    }
}

impl Global for Surveyed<'_> {
    fn norm(&mut self, _norm: &GroupNorm, x: Tensor<4>) -> Tensor<4> {
        let (scale, shift) = self.survey.affines[self.next].clone();
        self.next += 1;
        x * scale + shift
    }

    fn norm_silu(&mut self, norm: &GroupNorm, x: Tensor<4>) -> Tensor<4> {
        silu(self.norm(norm, x))
    }

    fn attend(&mut self, q: Tensor<3>, k: Tensor<3>, v: Tensor<3>) -> Tensor<3> {
        attention(q, k, v, 1, AttentionMask::None)
    }
}

/// Rows and columns of the survey's patches: evenly spread, all of one size, together not larger
/// than a tile.
pub(crate) fn patches(
    height: usize,
    width: usize,
    tile: usize,
) -> Vec<(Range<usize>, Range<usize>)> {
    let side = (tile / PATCHES).max(4);
    let spread = |size: usize, count: usize| -> Vec<Range<usize>> {
        let side = size.min(side);
        let middle = |i: usize| (2 * i + 1) * size / (2 * count);
        (0..count)
            .map(|i| middle(i).saturating_sub(side / 2).min(size - side))
            .map(|start| start..start + side)
            .collect()
    };
    // As many rows and columns of patches as make the gaps between them even.
    let total = (tile / side).max(1).pow(2);
    let ideal = (total as f64 * height as f64 / width as f64).sqrt();
    let rows = (ideal.round() as usize).clamp(1, total);
    let columns = spread(width, (total / rows).max(1));
    spread(height, rows)
        .into_iter()
        .flat_map(|row| columns.iter().map(move |c| (row.clone(), c.clone())))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use aquatint_ops::Device;

    #[test]
    fn the_survey_is_spread_and_no_larger_than_a_tile() {
        for tile in [16, 24, 64, 100] {
            for (height, width) in [
                (128, 128),
                (512, 64),
                (65, 512),
                (8, 300),
                (1, 1),
                (2, 900),
                (70, 70),
            ] {
                let patches = patches(height, width, tile);
                let size = [patches[0].0.len(), patches[0].1.len()];
                let area: usize = patches.iter().map(|(r, c)| r.len() * c.len()).sum();
                assert!(area <= tile * tile);
                for (rows, columns) in &patches {
                    assert!(rows.end <= height && columns.end <= width);
                    assert_eq!([rows.len(), columns.len()], size);
                }
                let surveyor = Surveyor::new(1, size, [height, width]);
                assert!((0..2).all(|i| size[i] > 2 * surveyor.rim[i]));
            }
        }
    }

    #[test]
    fn large_latents_are_thinned_evenly() {
        let thinned = |height, width| Thinned { height, width };
        assert_eq!(thinned(256, 256).stride(), 1);
        assert_eq!(thinned(512, 512).stride(), 2);
        assert_eq!(thinned(300, 300).stride(), 2);
        let (height, width) = (301, 303);
        let places: Vec<f32> = (0..height * width).map(|i| i as f32).collect();
        let device = Device::flex();
        let x = Tensor::<1>::from_floats(places.as_slice(), &device);
        let x = thinned(height, width).thin(x.reshape([1, height * width, 1]));
        assert_eq!(x.dims(), [1, 150 * 151, 1]);
        let kept = x.into_data().try_into_vec::<f32>().unwrap();
        assert_eq!(kept[0], (width + 1) as f32);
        assert_eq!(kept[1], (width + 3) as f32);
        assert_eq!(kept[151], (3 * width + 1) as f32);
    }
}
