//! Pictures that a run writes: grids of samples, points, and losses by noise level.

use std::io::Cursor;
use std::path::Path;

use image::{ImageFormat, Rgb, RgbImage};

use crate::TrainError;
use crate::metrics::{EventLog, Picture};

const WHITE: Rgb<u8> = Rgb([255; 3]);
const INK: Rgb<u8> = Rgb([40, 70, 120]);

/// One picture as a network draws it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Drawn {
    pub width: usize,
    pub height: usize,
    pub channels: usize,
    /// `[height, width, channels]` from -1 to 1.
    pub pixels: Vec<f32>,
}

impl Drawn {
    fn color(&self, x: usize, y: usize) -> Rgb<u8> {
        let at = (y * self.width + x) * self.channels;
        let byte = |c: usize| {
            let value = self.pixels[at + c.min(self.channels - 1)];
            ((value * 0.5 + 0.5).clamp(0.0, 1.0) * 255.0).round() as u8
        };
        Rgb([byte(0), byte(1), byte(2)])
    }
}

/// Writes pictures of one size as a grid; small ones are enlarged to whole multiples.
pub(crate) fn grid(path: &Path, pictures: &[Drawn], columns: usize) -> Result<(), TrainError> {
    let Some(first) = pictures.first() else {
        return Ok(());
    };
    let zoom = (64 / first.width.max(first.height)).max(1);
    let (w, h) = (first.width * zoom + 2, first.height * zoom + 2);
    let columns = columns.clamp(1, pictures.len());
    let rows = pictures.len().div_ceil(columns);
    let mut sheet = RgbImage::from_pixel((columns * w) as u32, (rows * h) as u32, WHITE);
    for (i, picture) in pictures.iter().enumerate() {
        let (left, top) = (i % columns * w + 1, i / columns * h + 1);
        for y in 0..picture.height * zoom {
            for x in 0..picture.width * zoom {
                let color = picture.color(x / zoom, y / zoom);
                sheet.put_pixel((left + x) as u32, (top + y) as u32, color);
            }
        }
    }
    save(path, &sheet)
}

/// Writes points of the square from -2.5 to 2.5 as a picture.
pub(crate) fn scatter(path: &Path, points: &[[f32; 2]]) -> Result<(), TrainError> {
    const SIDE: u32 = 512;
    let mut sheet = RgbImage::from_pixel(SIDE, SIDE, WHITE);
    let place = |v: f32| (v / 5.0 + 0.5) * SIDE as f32;
    for &[x, y] in points {
        let (x, y) = (place(x), SIDE as f32 - place(y));
        if x < 1.0 || y < 1.0 || x >= (SIDE - 1) as f32 || y >= (SIDE - 1) as f32 || x.is_nan() {
            continue;
        }
        for (dx, dy) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
            sheet.put_pixel(x as u32 + dx, y as u32 + dy, INK);
        }
    }
    save(path, &sheet)
}

/// Writes mean losses by noise level (sum and count a bin, least noise first) as `PATH.csv` and, as bars,
/// `PATH.png`.
pub(crate) fn losses(path: &Path, bins: &[(f64, u64)]) -> Result<(), TrainError> {
    let means: Vec<Option<f64>> = bins
        .iter()
        .map(|&(sum, count)| (count > 0).then(|| sum / count as f64))
        .collect();
    let mut text = String::from("noise_from,noise_to,mean_loss,examples\n");
    for (i, (mean, (_, count))) in means.iter().zip(bins).enumerate() {
        let edge = |i: usize| i as f64 / bins.len() as f64;
        let mean = mean.map_or_else(String::new, |m| m.to_string());
        text += &format!("{},{},{mean},{count}\n", edge(i), edge(i + 1));
    }
    let csv = path.with_extension("csv");
    std::fs::write(&csv, text).map_err(TrainError::io(&csv))?;
    let most = means.iter().flatten().fold(0.0_f64, |a, &b| a.max(b));
    let (bar, height) = (24, 256);
    let width = bins.len() as u32 * bar;
    let mut sheet = RgbImage::from_pixel(width, height, WHITE);
    for (i, mean) in means.iter().enumerate() {
        let share = mean.map_or(0.0, |m| m / most.max(1e-30));
        let top = height - (share * f64::from(height - 1)) as u32;
        for x in i as u32 * bar + 1..(i as u32 + 1) * bar - 1 {
            for y in top..height {
                sheet.put_pixel(x, y, INK);
            }
        }
    }
    save(&path.with_extension("png"), &sheet)
}

/// Encodes and writes a picture: beside its target first, then renamed.
fn save(path: &Path, picture: &RgbImage) -> Result<(), TrainError> {
    let mut png = Cursor::new(Vec::new());
    picture
        .write_to(&mut png, ImageFormat::Png)
        .map_err(|e| TrainError::io(path)(std::io::Error::other(e)))?;
    let part = path.with_extension("png.part");
    std::fs::write(&part, png.into_inner()).map_err(TrainError::io(&part))?;
    std::fs::rename(&part, path).map_err(TrainError::io(path))
}

/// Shows a PNG in TensorBoard.
pub(crate) fn log_png(
    log: &mut EventLog,
    step: u64,
    tag: &str,
    png: &[u8],
) -> Result<(), TrainError> {
    // The size stands in the header chunk, which comes first.
    let side = |at: usize| {
        let bytes = png.get(at..at + 4).and_then(|b| b.try_into().ok());
        u32::from_be_bytes(bytes.unwrap_or_default()) as usize
    };
    let picture = Picture {
        width: side(16),
        height: side(20),
        png,
    };
    log.picture(step, tag, picture)
}
