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
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
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
    writer.write_image_data(&picture.rgb)?;
    writer.finish()
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

    fn grey() -> Picture {
        Picture {
            width: 8,
            height: 4,
            rgb: vec![127; 96],
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
            save(&path, &grey(), Some(text), false).unwrap();
            assert_eq!(read_parameters(&path).unwrap().as_deref(), Some(*text));
        }
    }

    #[test]
    fn a_file_is_not_overwritten_unless_asked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        save(&path, &grey(), None, false).unwrap();
        let error = save(&path, &grey(), None, false).unwrap_err();
        assert!(error.to_string().contains("already there"));
        assert!(error.hint().unwrap().contains("--force"));
        save(&path, &grey(), None, true).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
