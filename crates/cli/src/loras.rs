//! Low-rank additions on the command line and in prompts: `--lora PATH:0.8`, `<lora:NAME:0.8>`.

use std::path::{Path, PathBuf};

use aquatint_engine::metadata::Parameters;
use aquatint_engine::models::lora::Lora;

use crate::failure::Failure;
use crate::locate;

/// The folder that names are looked up in: `$AQUATINT_LORAS`, else `loras` beside the models.
pub fn directory() -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os("AQUATINT_LORAS").filter(|v| !v.is_empty()) {
        return Some(PathBuf::from(folder));
    }
    let models = locate::model_directory()?;
    Some(models.with_file_name("loras"))
}

/// Reads `--lora`: a path or name, and a weight after a colon.
pub fn parse(text: &str) -> Result<Lora, Failure> {
    // A path may have a colon in it.
    if Path::new(text).exists() {
        return Ok(whole(text));
    }
    match text.rsplit_once(':') {
        Some((path, weight)) if !path.is_empty() => match weight.trim().parse::<f64>() {
            Ok(weight) if weight.is_finite() => Ok(Lora {
                path: find(path)?,
                weight,
            }),
            Ok(weight) => Err(weight_error(&weight.to_string())),
            // No number: the colon belongs to the name.
            Err(_) => Ok(Lora {
                path: find(text)?,
                weight: 1.0,
            }),
        },
        _ => Ok(Lora {
            path: find(text)?,
            weight: 1.0,
        }),
    }
}

fn whole(path: &str) -> Lora {
    Lora {
        path: path.into(),
        weight: 1.0,
    }
}

fn weight_error(found: &str) -> Failure {
    Failure::usage(
        format!("found the LoRA weight {found:?}, expected a number"),
        "1 is as trained: --lora PATH:0.8, or <lora:NAME:0.8> in the prompt",
    )
}

/// The file of a path or a name.
fn find(name: &str) -> Result<PathBuf, Failure> {
    if name.is_empty() {
        return Err(Failure::usage(
            "--lora is empty",
            "give a file: --lora PATH, or --lora PATH:0.8",
        ));
    }
    let path = PathBuf::from(name);
    if path.exists() {
        return Ok(path);
    }
    let folder = directory().filter(|_| path.is_relative());
    if let Some(folder) = &folder {
        let candidates = [
            folder.join(&path),
            folder.join(format!("{name}.safetensors")),
        ];
        if let Some(found) = candidates.into_iter().find(|p| p.exists()) {
            return Ok(found);
        }
    }
    let place = match &folder {
        Some(folder) => format!(", here or in {}", folder.display()),
        None => String::new(),
    };
    Err(Failure::new(
        format!("{name}: found no LoRA of that name{place}"),
        match folder.as_deref().and_then(|f| nearest(name, f)) {
            Some(near) => format!("did you mean {near}?"),
            None => "give the path of a .safetensors file: --lora PATH".into(),
        },
    ))
}

/// A name in the folder that looks much like `name`.
fn nearest(name: &str, folder: &Path) -> Option<String> {
    const ALIKE: f64 = 0.85;
    let alike = |n: &str| strsim::jaro_winkler(&name.to_lowercase(), &n.to_lowercase());
    std::fs::read_dir(folder)
        .ok()?
        .flatten()
        .filter_map(|entry| {
            let file = entry.file_name().to_string_lossy().into_owned();
            Some(file.strip_suffix(".safetensors")?.to_owned())
        })
        .map(|n| (alike(&n), n))
        .filter(|(score, _)| *score >= ALIKE)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, n)| n)
}

/// The prompt without its `<lora:NAME:WEIGHT>`, and what those ask for.
pub fn take_tags(prompt: &str) -> Result<(String, Vec<Lora>), Failure> {
    let (mut text, mut loras, mut rest) = (String::new(), Vec::new(), prompt);
    while let Some(start) = rest.find('<') {
        let tag = rest[start..]
            .find('>')
            .map(|end| &rest[start..=start + end]);
        let inner = tag.map(|t| &t[1..t.len() - 1]).unwrap_or_default();
        let kind = inner.split_once(':').map(|(kind, _)| kind);
        match (kind, tag) {
            (Some("lora" | "lyco"), Some(tag)) => {
                loras.push(tagged(tag, &inner[5..])?);
                text.push_str(&rest[..start]);
                rest = &rest[start + tag.len()..];
            }
            (Some("hypernet"), Some(tag)) => {
                return Err(Failure::usage(
                    format!("found {tag:?} in the prompt, but hypernetworks are not supported"),
                    "take it out, or draw with --prompt-syntax plain",
                ));
            }
            _ => {
                text.push_str(&rest[..=start]);
                rest = &rest[start + 1..];
            }
        }
    }
    text.push_str(rest);
    match loras.is_empty() {
        true => Ok((prompt.to_owned(), loras)),
        false => Ok((text.trim().to_owned(), loras)),
    }
}

fn tagged(tag: &str, inner: &str) -> Result<Lora, Failure> {
    let (name, weight) = inner.split_once(':').unwrap_or((inner, "1"));
    let number = weight.trim().parse::<f64>().ok().filter(|w| w.is_finite());
    match number {
        Some(weight) if !name.trim().is_empty() => Ok(Lora {
            path: find(name.trim())?,
            weight,
        }),
        _ => Err(Failure::usage(
            format!("found {tag:?} in the prompt, expected <lora:NAME:WEIGHT>"),
            "such as <lora:watercolour:0.8>",
        )),
    }
}

/// What a picture was made with.
pub fn of_picture(from: &Parameters) -> Result<Vec<Lora>, Failure> {
    from.loras()
        .into_iter()
        .map(|(path, weight)| {
            if Path::new(path).exists() {
                let path = path.into();
                return Ok(Lora { path, weight });
            }
            Err(Failure::new(
                format!("the picture was made with the LoRA {path}, which is not there"),
                "say where it is now: --lora PATH:WEIGHT",
            ))
        })
        .collect()
}

/// The hashes of files in AUTOMATIC1111's form, `name: hash, ...`: of what follows the header of a safetensors file.
pub fn hashes(files: &[(String, PathBuf)]) -> Result<String, Failure> {
    let each = files.iter().map(|(name, path)| {
        let failed = |e: std::io::Error| Failure::new(format!("{}: {e}", path.display()), "");
        Ok(format!("{name}: {}", hash(path).map_err(failed)?))
    });
    Ok(each.collect::<Result<Vec<_>, Failure>>()?.join(", "))
}

fn hash(path: &Path) -> std::io::Result<String> {
    use sha2::{Digest, Sha256};
    use std::io::{Read, Seek, SeekFrom};
    let mut file = std::fs::File::open(path)?;
    let mut len = [0; 8];
    file.read_exact(&mut len)?;
    file.seek(SeekFrom::Start(u64::from_le_bytes(len).saturating_add(8)))?;
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            n => digest.update(&buffer[..n]),
        }
    }
    let bytes = digest.finalize();
    Ok(bytes.iter().take(6).map(|b| format!("{b:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_taken_out() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x.safetensors");
        std::fs::write(&file, "").unwrap();
        let path = file.to_str().unwrap();
        let prompt = format!("a cat <lora:{path}:0.8>, <b> <lora:{path}> 1 < 2");
        let (text, loras) = take_tags(&prompt).unwrap();
        assert_eq!(text, "a cat , <b>  1 < 2");
        let weights: Vec<f64> = loras.iter().map(|l| l.weight).collect();
        assert_eq!(weights, [0.8, 1.0]);
        for bad in [
            "<lora:>",
            "<lora:x:y>",
            "<lora:x:nan>",
            "<hypernet:x:1>",
            "<lora:none:1>",
        ] {
            assert!(take_tags(bad).is_err(), "{bad}");
        }
        for plain in ["", "a < b > c", "<lora", "<loran:x>", "(a:1.2) <"] {
            assert_eq!(take_tags(plain).unwrap(), (plain.to_owned(), Vec::new()));
        }
    }

    #[test]
    fn a_weight_follows_the_last_colon() {
        let folder = tempfile::tempdir().unwrap();
        let odd = folder.path().join("a:2");
        std::fs::write(&odd, "").unwrap();
        let odd = odd.to_str().unwrap();
        assert_eq!(parse(odd).unwrap().weight, 1.0);
        assert_eq!(parse(&format!("{odd}:-0.5")).unwrap().weight, -0.5);
        assert!(parse(&format!("{odd}:inf")).is_err());
        assert!(parse("").is_err() && parse(":1").is_err());
    }
}
