//! `aquatint train`: runs that are killed and go on, full disks, and what is said about bad input.

#[path = "../common/mod.rs"]
mod common;
#[cfg(unix)]
mod killed;
mod refused;

use std::path::Path;

use common::Place;

/// A toy of points that makes a step in a millisecond or two.
pub fn points(place: &Place, steps: u64) {
    let text = format!(
        "seed = 7\nsteps = {steps}\nbatch_size = 32\n\
         [model]\nkind = \"points\"\npoints = {{ width = 32, depth = 2 }}\n\
         [data]\npoints = \"swiss-roll\"\n\
         [learning_rate]\npeak = 1e-3\nwarmup = 10\ndecay = \"cosine\"\n\
         [samples]\ncount = 1\nsteps = 2\n"
    );
    place.write("points.toml", text);
}

/// The files that hold what was learned after `step` updates.
pub fn learned(out: &Path, step: u64) -> Vec<Vec<u8>> {
    let checkpoint = format!("checkpoints/step-{step:08}");
    let files = [
        format!("{checkpoint}/weights.safetensors"),
        format!("{checkpoint}/ema.safetensors"),
        format!("{checkpoint}/optimizer.safetensors"),
        "model/model.safetensors".into(),
        "model/samples.csv".into(),
    ];
    files
        .iter()
        .map(|file| std::fs::read(out.join(file)).unwrap_or_else(|e| panic!("{file}: {e}")))
        .collect()
}

/// The steps that `metrics.csv` has a whole row of.
pub fn logged(out: &Path) -> Vec<u64> {
    let text = std::fs::read_to_string(out.join("metrics.csv")).expect("metrics");
    let rows = text.lines().skip(1);
    rows.map(|row| {
        let cells: Vec<&str> = row.split(',').collect();
        assert_eq!(cells.len(), 7, "{row}");
        cells[0].parse().expect("a step")
    })
    .collect()
}
