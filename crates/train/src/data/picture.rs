//! From a file to the numbers that a network sees.

use std::io::BufReader;
use std::path::Path;

use fast_image_resize as resize;
use image::{DynamicImage, ImageDecoder, ImageReader, Limits};
use serde::{Deserialize, Serialize};

use super::Size;

/// Which part of a picture is kept where its shape is not the bucket's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Crop {
    /// The middle.
    #[default]
    Center,
    /// Another part each time.
    Random,
}

/// How a picture becomes an example.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PictureOptions {
    /// Which part is kept.
    pub crop: Crop,
    /// Share of the examples that are mirrored left to right.
    pub flip: f64,
}

/// What is done to one picture in one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Placement {
    /// Size of the result.
    pub size: Size,
    /// Which part is kept, from 0 (left) to 1 (right).
    pub across: f64,
    /// Which part is kept, from 0 (top) to 1 (bottom).
    pub down: f64,
    /// Mirror left to right.
    pub mirror: bool,
}

/// Decoders may use this much for one picture; larger ones are corrupt or absurd.
const MOST_BYTES: u64 = 1 << 30;

fn open(path: &Path) -> Result<impl ImageDecoder + use<>, String> {
    let mut reader = ImageReader::open(path)
        .map_err(|e| e.to_string())?
        .with_guessed_format()
        .map_err(|e| e.to_string())?;
    let mut limits = Limits::default();
    limits.max_alloc = Some(MOST_BYTES);
    reader.limits(limits);
    fn decoder(
        reader: ImageReader<BufReader<std::fs::File>>,
    ) -> image::ImageResult<impl ImageDecoder> {
        reader.into_decoder()
    }
    decoder(reader).map_err(|e| e.to_string())
}

/// Width and height, turned as the camera says, without decoding the pixels.
///
/// # Errors
/// A message when the file is no picture that can be read.
pub fn dimensions(path: &Path) -> Result<Size, String> {
    let mut decoder = open(path)?;
    let turned = decoder.orientation().is_ok_and(|o| {
        use image::metadata::Orientation as O;
        matches!(
            o,
            O::Rotate90 | O::Rotate270 | O::Rotate90FlipH | O::Rotate270FlipH
        )
    });
    let (width, height) = decoder.dimensions();
    let (width, height) = if turned {
        (height, width)
    } else {
        (width, height)
    };
    if width == 0 || height == 0 {
        return Err("the picture has no pixels".into());
    }
    Ok(Size {
        width: width as usize,
        height: height as usize,
    })
}

/// Decodes a picture: turned as the camera says, transparency on white, scaled by a Lanczos filter until it covers the
/// size, cropped, mirrored.
///
/// # Shapes
/// Output: `[height, width, 3]`, red, green, blue, from -1 to 1.
///
/// # Errors
/// A message when the file is no picture that can be read.
pub fn load(path: &Path, place: Placement) -> Result<Vec<f32>, String> {
    let mut decoder = open(path)?;
    let orientation = decoder.orientation().map_err(|e| e.to_string())?;
    let mut picture = DynamicImage::from_decoder(decoder).map_err(|e| e.to_string())?;
    picture.apply_orientation(orientation);
    let rgb = on_white(picture);
    let (width, height) = (rgb.width() as usize, rgb.height() as usize);
    let Size {
        width: w,
        height: h,
    } = place.size;
    // The part of the picture that has the bucket's shape; scaling and cropping are one pass.
    let scale = (w as f64 / width as f64).max(h as f64 / height as f64);
    let (part_w, part_h) = (w as f64 / scale, h as f64 / scale);
    let (left, top) = (
        (width as f64 - part_w).max(0.0) * place.across,
        (height as f64 - part_h).max(0.0) * place.down,
    );
    let source = resize::images::Image::from_vec_u8(
        width as u32,
        height as u32,
        rgb.into_raw(),
        resize::PixelType::U8x3,
    )
    .map_err(|e| e.to_string())?;
    let mut scaled = resize::images::Image::new(w as u32, h as u32, resize::PixelType::U8x3);
    let options = resize::ResizeOptions::new()
        .resize_alg(resize::ResizeAlg::Convolution(resize::FilterType::Lanczos3))
        .crop(
            left,
            top,
            part_w.min(width as f64),
            part_h.min(height as f64),
        )
        .use_alpha(false);
    resize::Resizer::new()
        .resize(&source, &mut scaled, &options)
        .map_err(|e| e.to_string())?;
    let mut values: Vec<f32> = scaled
        .buffer()
        .iter()
        .map(|&byte| f32::from(byte) / 127.5 - 1.0)
        .collect();
    if place.mirror {
        for row in values.chunks_exact_mut(w * 3) {
            for x in 0..w / 2 {
                for c in 0..3 {
                    row.swap(x * 3 + c, (w - 1 - x) * 3 + c);
                }
            }
        }
    }
    Ok(values)
}

/// Composed over white where it is transparent.
fn on_white(picture: DynamicImage) -> image::RgbImage {
    if !picture.color().has_alpha() {
        return picture.into_rgb8();
    }
    let rgba = picture.into_rgba8();
    image::RgbImage::from_fn(rgba.width(), rgba.height(), |x, y| {
        let [r, g, b, a] = rgba.get_pixel(x, y).0;
        let over = |c: u8| {
            let (c, a) = (u32::from(c), u32::from(a));
            ((c * a + 255 * (255 - a) + 127) / 255) as u8
        };
        image::Rgb([over(r), over(g), over(b)])
    })
}
