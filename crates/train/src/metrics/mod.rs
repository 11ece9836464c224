//! What a run tells: a CSV file, and event files for TensorBoard.

mod csv;
mod events;

pub use csv::CsvLog;
pub use events::{EventLog, Picture};
