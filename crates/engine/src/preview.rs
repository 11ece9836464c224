//! Pictures of a run that is under way.

use aquatint_models::Checkpoint;
use aquatint_models::vae::{AutoencoderTiny, LatentRgb};
use aquatint_ops::Device;

use crate::decode::to_picture;
use crate::events::Latents;
use crate::network::to_channels_last;
use crate::picture::Picture;
use crate::pipeline::RunOptions;
use crate::{EngineError, decode};

/// Makes small pictures of latents: by a tiny autoencoder where one is given, else by a linear
/// approximation at the latents' own size, enlarged.
#[derive(Debug)]
pub struct PreviewMaker {
    tiny: Option<AutoencoderTiny>,
    linear: LatentRgb,
    enlarge: usize,
    device: Device,
}

impl PreviewMaker {
    /// A maker for a model.
    ///
    /// # Errors
    /// When the tiny autoencoder cannot be loaded.
    pub fn new(
        model: &Checkpoint,
        options: &RunOptions,
        device: &Device,
    ) -> Result<Self, EngineError> {
        Ok(PreviewMaker {
            tiny: decode::load_tiny(options, device)?,
            linear: (model.family.preview)(),
            enlarge: model.vae.config.factor(),
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
        if let Some(tiny) = &self.tiny {
            return to_picture(tiny.decode(x)?);
        }
        match self.linear.decode(x) {
            Some(image) => Ok(enlarged(&to_picture(image)?, self.enlarge)),
            None => Err(EngineError::Usage {
                message: format!(
                    "found latents of {channels} channels, for which there is no preview"
                ),
                hint: "leave --preview out, or give a tiny autoencoder with --taesd".into(),
            }),
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
    }
}
