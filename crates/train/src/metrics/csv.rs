//! Metrics as a table that any program reads.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use crate::TrainError;

/// A CSV file with one row a logged step; the first column is the step.
#[derive(Debug)]
pub struct CsvLog {
    path: PathBuf,
    file: File,
    columns: usize,
}

impl CsvLog {
    /// Opens or creates the file for a run that goes on after `done` steps: rows of later steps, written by a
    /// run that was interrupted after its last checkpoint, are taken out.
    ///
    /// # Errors
    /// What the disk refuses.
    pub fn open(path: &Path, columns: &[&str], done: u64) -> Result<Self, TrainError> {
        let header = std::iter::once("step")
            .chain(columns.iter().copied())
            .collect::<Vec<_>>()
            .join(",");
        let mut text = header.clone() + "\n";
        if let Ok(file) = File::open(path) {
            for line in BufReader::new(file).lines() {
                let line = line.map_err(TrainError::io(path))?;
                let step = line.split(',').next().and_then(|s| s.parse::<u64>().ok());
                // A torn last row has too few columns.
                let whole = line.split(',').count() == columns.len() + 1;
                if whole && step.is_some_and(|step| step <= done) {
                    text += &line;
                    text.push('\n');
                }
            }
        }
        let part = path.with_extension("csv.part");
        std::fs::write(&part, text).map_err(TrainError::io(&part))?;
        std::fs::rename(&part, path).map_err(TrainError::io(path))?;
        let file = OpenOptions::new()
            .append(true)
            .open(path)
            .map_err(TrainError::io(path))?;
        Ok(Self {
            path: path.into(),
            file,
            columns: columns.len(),
        })
    }

    /// Writes a row; an absent value is an empty cell.
    ///
    /// # Errors
    /// What the disk refuses.
    ///
    /// # Panics
    /// When there are not as many values as columns.
    pub fn row(&mut self, step: u64, values: &[Option<f64>]) -> Result<(), TrainError> {
        assert_eq!(values.len(), self.columns, "a value for each column");
        let mut row = step.to_string();
        for value in values {
            row.push(',');
            if let Some(value) = value {
                row += &value.to_string();
            }
        }
        row.push('\n');
        let before = self.file.metadata().map_err(TrainError::io(&self.path))?;
        self.file.write_all(row.as_bytes()).map_err(|error| {
            // A full disk takes a part of a row; the next attempt writes all of it.
            let _ = self.file.set_len(before.len());
            TrainError::io(&self.path)(error)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_goes_on_leaves_no_rows_of_lost_steps() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("metrics.csv");
        let mut log = CsvLog::open(&path, &["loss", "rate"], 0).expect("log");
        for step in 1..=5 {
            log.row(step, &[Some(1.0 / step as f64), None])
                .expect("row");
        }
        drop(log);
        let mut torn = std::fs::read_to_string(&path).expect("file");
        torn += "6,0.1";
        std::fs::write(&path, torn).expect("file");
        let mut log = CsvLog::open(&path, &["loss", "rate"], 3).expect("log");
        log.row(4, &[Some(0.125), Some(2.0)]).expect("row");
        let text = std::fs::read_to_string(&path).expect("file");
        assert_eq!(
            text,
            "step,loss,rate\n1,1,\n2,0.5,\n3,0.3333333333333333,\n4,0.125,2\n"
        );
    }
}
