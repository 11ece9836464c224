//! Latents to pictures.

use aquatint_models::Checkpoint;
use aquatint_models::vae::{AutoencoderKl, AutoencoderTiny, TiledDecode};
use aquatint_ops::{Device, Tensor};

use crate::EngineError;
use crate::network::to_channels_last;
use crate::picture::Picture;
use crate::pipeline::RunOptions;
use crate::request::{Request, Tiling};

/// Latent positions from which [`Tiling::Auto`] works in tiles: pictures larger than 1024 by 1024 at
/// 8 pixels a position.
const TILING_FROM: usize = 128 * 128 + 1;

/// Whether a latent of that size is decoded in tiles.
pub(crate) fn uses_tiles(tiling: Tiling, height: usize, width: usize) -> bool {
    match tiling {
        Tiling::On => true,
        Tiling::Off => false,
        Tiling::Auto => height * width >= TILING_FROM,
    }
}

/// What turns latents into pixels.
#[derive(Debug)]
pub(crate) struct Decoder {
    kind: Kind,
    device: Device,
}

#[derive(Debug)]
// There is one a run.
#[allow(clippy::large_enum_variant)]
enum Kind {
    Whole(AutoencoderKl),
    Tiny(AutoencoderTiny),
}

/// The tiny autoencoder of the options.
pub(crate) fn load_tiny(
    options: &RunOptions,
    device: &Device,
) -> Result<Option<AutoencoderTiny>, EngineError> {
    let path = options.tiny.as_deref();
    Ok(path
        .map(|path| aquatint_models::load_tiny(path, device))
        .transpose()?)
}

impl Decoder {
    pub(crate) fn load(
        model: &Checkpoint,
        options: &RunOptions,
        device: &Device,
    ) -> Result<Self, EngineError> {
        let kind = match options
            .quick_decode
            .then(|| load_tiny(options, device))
            .transpose()?
        {
            Some(Some(tiny)) => Kind::Tiny(tiny),
            _ => Kind::Whole(model.load_vae(device)?),
        };
        Ok(Decoder {
            kind,
            device: device.clone(),
        })
    }

    /// Whether it is the model's own, not the tiny one.
    pub(crate) fn is_whole(&self) -> bool {
        matches!(self.kind, Kind::Whole(_))
    }

    /// Whether the pictures of a request are decoded in tiles.
    pub(crate) fn uses_tiles(&self, request: &Request, height: usize, width: usize) -> bool {
        matches!(self.kind, Kind::Whole(_)) && uses_tiles(request.vae_tiling, height, width)
    }

    /// The picture of one latent `[channels, height, width]`. `stopped` is asked between tiles.
    pub(crate) fn decode(
        &self,
        latent: &[f32],
        [channels, height, width]: [usize; 3],
        tiling: Tiling,
        stopped: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<Picture, EngineError> {
        let x = to_channels_last(latent, [1, channels, height, width], &self.device);
        let vae = match &self.kind {
            Kind::Tiny(tiny) => return to_picture(tiny.decode(x)?),
            Kind::Whole(vae) => vae,
        };
        let z = vae.config().unscale(x);
        if !uses_tiles(tiling, height, width) {
            return to_picture(vae.decode(z)?);
        }
        let mut decode = TiledDecode::new(vae, z, Default::default())?;
        while decode.step() {
            if stopped(decode.done(), decode.total()) {
                return Err(EngineError::Cancelled);
            }
        }
        to_picture(decode.finish())
    }
}

/// `[1, height, width, 3]`, or one channel of grey, from -1 to 1 as 8-bit pixels, rounded as diffusers rounds:
/// half to even, after `x / 2 + 0.5` clamped to 0 to 1.
pub(crate) fn to_picture(image: Tensor<4>) -> Result<Picture, EngineError> {
    let [_, height, width, channels] = image.dims();
    let failed = |found: String| EngineError::NonFinite {
        stage: "decoder".into(),
        found,
    };
    let values = image
        .into_data()
        .try_into_vec::<f32>()
        .map_err(|e| failed(format!("{e:?}")))?;
    if values.iter().any(|v| !v.is_finite()) {
        return Err(failed("pixels with NaN or infinity".into()));
    }
    let grey = channels == 1;
    let rgb = values
        .iter()
        .map(|v| ((v / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8)
        .flat_map(|v| std::iter::repeat_n(v, if grey { 3 } else { 1 }))
        .collect();
    Ok(Picture {
        width: width as u32,
        height: height as u32,
        rgb,
        grey,
    })
}
