//! PNG files that carry their parameters.

use std::io::{BufWriter, Write};
use std::path::Path;

use crate::EngineError;

/// An 8-bit RGB picture, row by row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// `height * width * 3` bytes.
    pub rgb: Vec<u8>,
    /// Whether it was made grey: the three bytes of a pixel are one, and it is saved with one channel.
    pub grey: bool,
}

/// Name of the text chunk that AUTOMATIC1111 and its readers use.
pub const PARAMETERS: &str = "parameters";

/// Writes a PNG with `parameters` as its text chunk: to a temporary file beside it, then renamed, so
/// that nothing half-written is left.
///
/// # Errors
/// [`EngineError::Picture`] when the folder is not there, the disk is full, or `path` exists and
/// `overwrite` is not set.
pub fn save(
    path: &Path,
    picture: &Picture,
    parameters: Option<&str>,
    overwrite: bool,
) -> Result<(), EngineError> {
    let folder = folder_of(path);
    let failed = |error: std::io::Error| write_error(path, folder, &error);
    let temporary = tempfile::Builder::new()
        .prefix(".aquatint-")
        .suffix(".part")
        .permissions_like_any_file()
        .tempfile_in(folder)
        .map_err(failed)?;
    let mut writer = BufWriter::new(temporary.as_file());
    encode(&mut writer, picture, parameters).map_err(|e| match e {
        png::EncodingError::IoError(error) => failed(error),
        other => write_error(path, folder, &std::io::Error::other(other)),
    })?;
    writer.flush().map_err(failed)?;
    drop(writer);
    temporary.as_file().sync_all().map_err(failed)?;
    if overwrite {
        temporary.persist(path).map_err(|e| failed(e.error))?;
    } else {
        temporary
            .persist_noclobber(path)
            .map_err(|e| failed(e.error))?;
    }
    Ok(())
}

/// Finds out before a long run whether [`save`] could write `path`, by making a temporary file.
///
/// # Errors
/// As [`save`], and when `path` is something else than a file.
pub fn check_writable(path: &Path, overwrite: bool) -> Result<(), EngineError> {
    let folder = folder_of(path);
    let refused = |message: String, hint: &str| EngineError::Picture {
        path: path.to_owned(),
        message,
        hint: hint.into(),
    };
    if !folder.exists() {
        return Err(write_error(
            path,
            folder,
            &std::io::ErrorKind::NotFound.into(),
        ));
    }
    if !folder.is_dir() {
        return Err(write_error(
            path,
            folder,
            &std::io::ErrorKind::NotADirectory.into(),
        ));
    }
    // Not `exists`: a link that leads nowhere takes the name too.
    if let Ok(found) = path.symlink_metadata() {
        if path.is_dir() {
            return Err(refused("is a folder".into(), "add a file name"));
        }
        // A device would be replaced by a file.
        if !found.is_file() && !found.is_symlink() || path.exists() && !path.is_file() {
            return Err(refused("is not a file".into(), "name a file on a disk"));
        }
        if !overwrite {
            return Err(write_error(
                path,
                folder,
                &std::io::ErrorKind::AlreadyExists.into(),
            ));
        }
    }
    let probe = tempfile::Builder::new()
        .prefix(".aquatint-")
        .tempfile_in(folder);
    probe.map(drop).map_err(|e| write_error(path, folder, &e))
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    }
}

/// Temporary files are private by default; a picture has the permissions of any new file.
trait OrdinaryPermissions {
    fn permissions_like_any_file(&mut self) -> &mut Self;
}

impl OrdinaryPermissions for tempfile::Builder<'_, '_> {
    #[cfg(unix)]
    fn permissions_like_any_file(&mut self) -> &mut Self {
        use std::os::unix::fs::PermissionsExt;
        // The process's umask still applies.
        self.permissions(std::fs::Permissions::from_mode(0o666))
    }

    #[cfg(not(unix))]
    fn permissions_like_any_file(&mut self) -> &mut Self {
        self
    }
}

fn write_error(path: &Path, folder: &Path, error: &std::io::Error) -> EngineError {
    use std::io::ErrorKind;
    let (message, hint) = match error.kind() {
        ErrorKind::NotFound => (
            format!("the folder {} is not there", folder.display()),
            format!("make it first: mkdir -p {}", folder.display()),
        ),
        ErrorKind::NotADirectory => (
            format!("{} is not a folder", folder.display()),
            "name a file in a folder".into(),
        ),
        ErrorKind::AlreadyExists => (
            "the file is already there".into(),
            "use --force to write over it, or another name".into(),
        ),
        ErrorKind::StorageFull => (
            "no space is left on the disk".into(),
            "free some space, or write elsewhere with --output; nothing was left behind".into(),
        ),
        ErrorKind::ReadOnlyFilesystem => (
            format!("{} is on a read-only file system", folder.display()),
            "write elsewhere".into(),
        ),
        ErrorKind::InvalidFilename => (
            "the name is too long or not possible here".into(),
            "take a shorter name".into(),
        ),
        ErrorKind::PermissionDenied => (
            format!("not allowed to write in {}", folder.display()),
            "write elsewhere with --output".into(),
        ),
        _ => (format!("cannot be written: {error}"), String::new()),
    };
    EngineError::Picture {
        path: path.to_owned(),
        message,
        hint,
    }
}

fn encode(
    out: &mut impl Write,
    picture: &Picture,
    parameters: Option<&str>,
) -> Result<(), png::EncodingError> {
    let mut encoder = png::Encoder::new(out, picture.width, picture.height);
    encoder.set_color(match picture.grey {
        true => png::ColorType::Grayscale,
        false => png::ColorType::Rgb,
    });
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::High);
    if let Some(text) = parameters {
        // Latin-1 text goes into tEXt, which every reader knows; other scripts need iTXt.
        let latin = text
            .chars()
            .all(|c| matches!(c, '\n' | ' '..='~' | '\u{a1}'..='\u{ff}'));
        if latin {
            encoder.add_text_chunk(PARAMETERS.into(), text.into())?;
        } else {
            encoder.add_itxt_chunk(PARAMETERS.into(), text.into())?;
        }
    }
    let mut writer = encoder.write_header()?;
    match picture.grey {
        true => {
            let values: Vec<u8> = picture.rgb.iter().step_by(3).copied().collect();
            writer.write_image_data(&values)?;
        }
        false => writer.write_image_data(&picture.rgb)?,
    }
    writer.finish()
}

/// Reads a PNG of 8 bits a channel; transparency is left out.
///
/// # Errors
/// [`EngineError::Picture`] when the file is missing, is no PNG, or is larger than 256 MB.
pub fn read(path: &Path) -> Result<Picture, EngineError> {
    let failed = |message: String| EngineError::Picture {
        path: path.to_owned(),
        message,
        hint: "give a PNG".into(),
    };
    let file = std::fs::File::open(path).map_err(|e| failed(format!("cannot be opened: {e}")))?;
    let limits = png::Limits { bytes: 256 << 20 };
    let mut decoder = png::Decoder::new_with_limits(std::io::BufReader::new(file), limits);
    decoder.set_transformations(png::Transformations::normalize_to_color8());
    let unreadable = |e: png::DecodingError| failed(format!("not a readable PNG: {e}"));
    let mut reader = decoder.read_info().map_err(unreadable)?;
    let size = reader.output_buffer_size().filter(|n| *n <= 256 << 20);
    let size = size.ok_or_else(|| failed("larger than 256 MB of pixels".into()))?;
    let mut bytes = vec![0; size];
    let info = reader.next_frame(&mut bytes).map_err(unreadable)?;
    bytes.truncate(info.buffer_size());
    let channels = info.color_type.samples();
    let grey = channels < 3;
    let pixel = |p: &[u8]| match grey {
        true => [p[0]; 3],
        false => [p[0], p[1], p[2]],
    };
    Ok(Picture {
        width: info.width,
        height: info.height,
        rgb: bytes.chunks_exact(channels).flat_map(pixel).collect(),
        grey,
    })
}

/// Pixels between the pictures of a sheet.
const GAP: usize = 2;

/// Pictures side by side on white, `columns` in a row, each in a place of the largest one's size.
///
/// # Errors
/// [`EngineError::Usage`] when there are none, or the sheet would be larger than a PNG can be.
pub fn sheet(pictures: &[Picture], columns: usize) -> Result<Picture, EngineError> {
    let columns = columns.clamp(1, pictures.len().max(1));
    let largest = |side: fn(&Picture) -> u32| pictures.iter().map(side).max().unwrap_or(0) as usize;
    let (cell_width, cell_height) = (largest(|p| p.width), largest(|p| p.height));
    let rows = pictures.len().div_ceil(columns);
    let width = (columns * (cell_width + GAP)).saturating_sub(GAP);
    let height = (rows * (cell_height + GAP)).saturating_sub(GAP);
    if pictures.is_empty() || width.saturating_mul(height) > 1 << 28 {
        return Err(EngineError::Usage {
            message: format!(
                "a sheet of {} pictures of {cell_width}x{cell_height}, expected 1 to so many that it has at most 268 million pixels",
                pictures.len()
            ),
            hint: "put fewer pictures on a sheet".into(),
        });
    }
    let mut rgb = vec![255; width * height * 3];
    for (i, picture) in pictures.iter().enumerate() {
        let (left, top) = (
            i % columns * (cell_width + GAP),
            i / columns * (cell_height + GAP),
        );
        let row = picture.width as usize * 3;
        for (y, line) in picture.rgb.chunks_exact(row.max(1)).enumerate() {
            let at = ((top + y) * width + left) * 3;
            rgb[at..at + row].copy_from_slice(line);
        }
    }
    Ok(Picture {
        width: width as u32,
        height: height as u32,
        rgb,
        grey: pictures.iter().all(|p| p.grey),
    })
}

impl Picture {
    /// The picture with each square of `factor` by `factor` pixels as their mean; what is left at the right and the
    /// bottom is cut off.
    pub fn shrunk(&self, factor: usize) -> Picture {
        let factor = factor.max(1);
        let (width, height) = (self.width as usize / factor, self.height as usize / factor);
        let row = self.width as usize * 3;
        let mut rgb = Vec::with_capacity(width * height * 3);
        for y in 0..height {
            for at in 0..width * 3 {
                let (x, channel) = (at / 3 * factor, at % 3);
                let lines = (y * factor..(y + 1) * factor).map(|line| line * row + channel);
                let each = lines.flat_map(|line| (x..x + factor).map(move |x| line + x * 3));
                let sum: usize = each.map(|i| usize::from(self.rgb[i])).sum();
                rgb.push(((sum + factor * factor / 2) / (factor * factor)) as u8);
            }
        }
        Picture {
            width: width as u32,
            height: height as u32,
            rgb,
            grey: self.grey,
        }
    }
}

/// Reads the `parameters` text of a PNG; `None` when it carries none.
///
/// # Errors
/// [`EngineError::Picture`] when the file is missing or is no PNG.
pub fn read_parameters(path: &Path) -> Result<Option<String>, EngineError> {
    let failed = |message: String, hint: &str| EngineError::Picture {
        path: path.to_owned(),
        message,
        hint: hint.into(),
    };
    let file = std::fs::File::open(path)
        .map_err(|e| failed(format!("cannot be opened: {e}"), "check the path"))?;
    let mut decoder = png::Decoder::new_with_limits(
        std::io::BufReader::new(file),
        png::Limits { bytes: 64 << 20 },
    );
    decoder.set_ignore_text_chunk(false);
    let mut reader = decoder.read_info().map_err(|e| {
        failed(
            format!("not a readable PNG: {e}"),
            "give a PNG that Aquatint wrote",
        )
    })?;
    if let Some(text) = find_text(reader.info()) {
        return Ok(Some(text));
    }
    // The chunk may stand after the pixels.
    reader.finish().map_err(|e| {
        failed(
            format!("not a readable PNG: {e}"),
            "give a PNG that Aquatint wrote",
        )
    })?;
    Ok(find_text(reader.info()))
}

fn find_text(info: &png::Info<'_>) -> Option<String> {
    let plain = info
        .uncompressed_latin1_text
        .iter()
        .find(|c| c.keyword == PARAMETERS)
        .map(|c| c.text.clone());
    let compressed = || {
        let chunk = info
            .compressed_latin1_text
            .iter()
            .find(|c| c.keyword == PARAMETERS)?;
        chunk.get_text().ok()
    };
    let utf8 = || {
        let chunk = info.utf8_text.iter().find(|c| c.keyword == PARAMETERS)?;
        chunk.get_text().ok()
    };
    plain.or_else(compressed).or_else(utf8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grey_picture() -> Picture {
        Picture {
            width: 8,
            height: 4,
            rgb: vec![127; 96],
            grey: false,
        }
    }

    #[test]
    fn parameters_come_back_in_any_script() {
        let folder = tempfile::tempdir().unwrap();
        for (i, text) in [
            "a red apple\nSteps: 20",
            "りんご \u{1f34e}\nSteps: 1",
            "café",
        ]
        .iter()
        .enumerate()
        {
            let path = folder.path().join(format!("{i}.png"));
            save(&path, &grey_picture(), Some(text), false).unwrap();
            assert_eq!(read_parameters(&path).unwrap().as_deref(), Some(*text));
        }
    }

    #[test]
    fn grey_pictures_are_saved_with_one_channel_and_read_back() {
        let folder = tempfile::tempdir().unwrap();
        for grey in [true, false] {
            let picture = Picture {
                grey,
                ..grey_picture()
            };
            let path = folder.path().join(format!("{grey}.png"));
            save(&path, &picture, None, false).unwrap();
            assert_eq!(read(&path).unwrap(), picture);
        }
        assert!(read(&folder.path().join("none.png")).is_err());
    }

    #[test]
    fn a_shrunk_picture_holds_means() {
        let picture = Picture {
            width: 3,
            height: 2,
            rgb: vec![0, 10, 20, 4, 10, 20, 9, 9, 9, 8, 10, 20, 8, 10, 21, 9, 9, 9],
            grey: false,
        };
        let small = picture.shrunk(2);
        assert_eq!((small.width, small.height), (1, 1));
        assert_eq!(small.rgb, [5, 10, 20]);
        assert_eq!(picture.shrunk(1), picture);
    }

    #[test]
    fn a_sheet_holds_pictures_row_by_row() {
        let one = |value, width| Picture {
            width,
            height: 2,
            rgb: vec![value; width as usize * 6],
            grey: false,
        };
        let sheet = sheet(&[one(1, 3), one(2, 2), one(3, 3)], 2).unwrap();
        assert_eq!((sheet.width, sheet.height), (3 + 2 + 3, 2 + 2 + 2));
        let at = |x: usize, y: usize| sheet.rgb[(y * 8 + x) * 3];
        assert_eq!([at(0, 0), at(5, 1), at(2, 5)], [1, 2, 3]);
        assert_eq!([at(3, 0), at(7, 0), at(0, 2), at(5, 4)], [255; 4]);
        assert!(super::sheet(&[], 3).is_err());
    }

    #[test]
    fn a_file_is_not_overwritten_unless_asked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        save(&path, &grey_picture(), None, false).unwrap();
        let error = save(&path, &grey_picture(), None, false).unwrap_err();
        assert!(error.to_string().contains("already there"));
        assert!(error.hint().unwrap().contains("--force"));
        save(&path, &grey_picture(), None, true).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
