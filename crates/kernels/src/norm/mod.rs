//! Normalisations over groups of channels and over rows, and their backward passes.

use crate::error::{KernelError, exactly};

mod group;
mod group_backward;
mod modulated;
mod rows;
mod rows_backward;

pub use group::{GroupNorm, GroupNormInPlace, group_norm, group_norm_in_place};
pub use group_backward::{GroupNormBackward, group_norm_backward};
pub use modulated::{AddGated, ModulatedNorm, add_gated, modulated_norm};
pub use rows::{LayerNorm, RmsNorm, layer_norm, rms_norm};
pub use rows_backward::{
    LayerNormBackward, RmsNormBackward, layer_norm_backward, rms_norm_backward,
};

fn check_affine(gamma: Option<&[f32]>, beta: Option<&[f32]>, n: usize) -> Result<(), KernelError> {
    gamma.map_or(Ok(()), |g| exactly("gamma", g.len(), n))?;
    beta.map_or(Ok(()), |b| exactly("beta", b.len(), n))
}

/// Writes sums to a gradient that is wanted.
fn write_sums(to: Option<&mut [f32]>, sums: &[f64]) {
    if let Some(to) = to {
        to.iter_mut().zip(sums).for_each(|(t, s)| *t = *s as f32);
    }
}
