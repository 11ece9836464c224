//! `aquatint grid`: pictures side by side.

use std::path::PathBuf;

use aquatint_engine::picture::{self, sheet};
use clap::{Args, ValueHint};
use serde_json::json;

use crate::failure::Failure;
use crate::output::check_png;

#[derive(Debug, Args)]
pub struct GridArgs {
    /// PNG files, row by row.
    #[arg(required = true, value_name = "PNG", value_hint = ValueHint::FilePath)]
    pictures: Vec<PathBuf>,

    /// The sheet.
    #[arg(short, long, value_name = "PATH", required = true, value_hint = ValueHint::FilePath)]
    output: PathBuf,

    /// Pictures in a row [default: the square root of their number].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    columns: Option<u32>,

    /// Make each picture so many times smaller first.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    shrink: u32,

    /// Write over a file that is there.
    #[arg(short, long)]
    force: bool,

    /// Print one JSON object and nothing else.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &GridArgs) -> Result<(), Failure> {
    check_png("--output", &args.output)?;
    picture::check_writable(&args.output, args.force)?;
    let pictures = args.pictures.iter().map(|path| {
        let picture = picture::read(path)?;
        Ok(picture.shrunk(args.shrink as usize))
    });
    let pictures = pictures.collect::<Result<Vec<_>, Failure>>()?;
    let sheet = sheet(&pictures, columns(args.columns, pictures.len()))?;
    picture::save(&args.output, &sheet, None, args.force)?;
    if args.json {
        return crate::print_json(&json!({
            "output": args.output, "width": sheet.width, "height": sheet.height,
        }));
    }
    crate::print(&format!("wrote {}\n", args.output.display()))
}

/// Pictures in a row: as asked for, else so many that the sheet is about square.
pub fn columns(asked: Option<u32>, pictures: usize) -> usize {
    asked.map_or_else(|| (pictures as f64).sqrt().ceil() as usize, |n| n as usize)
}
