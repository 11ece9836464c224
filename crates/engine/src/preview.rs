//! Pictures of a run that is under way.

use aquatint_models::Checkpoint;
use aquatint_models::vae::{AutoencoderKl, AutoencoderTiny, LatentRgb};
use aquatint_ops::Device;

use crate::decode::to_picture;
use crate::events::Latents;
use crate::network::to_channels_last;
use crate::picture::Picture;
use crate::pipeline::RunOptions;
use crate::{EngineError, Model, decode};

/// Makes pictures of latents: by a tiny autoencoder where one is given; else by the family's linear
/// approximation, enlarged; else, for latents of other channels than the family's, by the model's own
/// decoder.
#[derive(Debug)]
pub struct PreviewMaker {
    kind: Kind,
    device: Device,
}

#[derive(Debug)]
// There is one a run.
#[allow(clippy::large_enum_variant)]
enum Kind {
    Tiny(AutoencoderTiny),
    Linear { rgb: LatentRgb, enlarge: usize },
    Whole(AutoencoderKl),
    Pixels,
}

impl PreviewMaker {
    /// A maker for a model.
    ///
    /// # Errors
    /// When the autoencoder cannot be loaded.
    pub fn new(
        model: &Checkpoint,
        options: &RunOptions,
        device: &Device,
    ) -> Result<Self, EngineError> {
        let rgb = (model.family.preview)();
        let kind = match decode::load_tiny(options, device)? {
            Some(tiny) => Kind::Tiny(tiny),
            None if rgb.factors.len() == model.vae.config.latent_channels => Kind::Linear {
                rgb,
                enlarge: model.vae.config.factor(),
            },
            None => Kind::Whole(model.load_vae(device)?),
        };
        Ok(PreviewMaker {
            kind,
            device: device.clone(),
        })
    }

    /// A maker for a model of either kind.
    ///
    /// # Errors
    /// When the autoencoder cannot be loaded.
    pub fn of(model: &Model, options: &RunOptions, device: &Device) -> Result<Self, EngineError> {
        let model = match model {
            Model::Text(model) => return PreviewMaker::new(model, options, device),
            Model::Pixel(model) => model,
        };
        Ok(PreviewMaker {
            kind: model.load_vae(device)?.map_or(Kind::Pixels, Kind::Whole),
            device: device.clone(),
        })
    }

    /// The picture of the first latent of a batch.
    ///
    /// # Errors
    /// When the latents do not fit the model.
    pub fn picture(&self, latents: Latents<'_>) -> Result<Picture, EngineError> {
        let [_, channels, height, width] = latents.shape;
        let one = &latents.values[..channels * height * width];
        let x = to_channels_last(one, [1, channels, height, width], &self.device);
        match &self.kind {
            Kind::Pixels => to_picture(x),
            Kind::Tiny(tiny) => to_picture(tiny.decode(x)?),
            Kind::Whole(vae) => to_picture(vae.decode(vae.config().unscale(x))?),
            Kind::Linear { rgb, enlarge } => match rgb.decode(x) {
                Some(image) => Ok(enlarged(&to_picture(image)?, *enlarge)),
                None => Err(EngineError::Usage {
                    message: format!(
                        "found latents of {channels} channels, for which there is no preview"
                    ),
                    hint: "leave --preview out, or give a tiny autoencoder with --taesd".into(),
                }),
            },
        }
    }
}

/// Each pixel as a square of `factor` pixels.
fn enlarged(picture: &Picture, factor: usize) -> Picture {
    let (width, height) = (
        picture.width as usize * factor,
        picture.height as usize * factor,
    );
    let mut rgb = Vec::with_capacity(width * height * 3);
    for y in 0..height {
        for x in 0..width {
            let at = ((y / factor) * picture.width as usize + x / factor) * 3;
            rgb.extend_from_slice(&picture.rgb[at..at + 3]);
        }
    }
    Picture {
        width: width as u32,
        height: height as u32,
        rgb,
        grey: picture.grey,
    }
}
