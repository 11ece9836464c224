//! TensorBoard's event files: length-prefixed, checksummed protocol buffers (TensorFlow's `event.proto`,
//! `summary.proto` and record format; the few messages that are needed).

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message;

use crate::TrainError;

#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
    #[prost(message, optional, tag = "4")]
    image: Option<Image>,
}

#[derive(Clone, PartialEq, Message)]
struct Image {
    #[prost(int32, tag = "1")]
    height: i32,
    #[prost(int32, tag = "2")]
    width: i32,
    /// 3 for RGB.
    #[prost(int32, tag = "3")]
    colorspace: i32,
    #[prost(bytes = "vec", tag = "4")]
    encoded_image_string: Vec<u8>,
}

/// A PNG for TensorBoard.
#[derive(Debug, Clone, Copy)]
pub struct Picture<'a> {
    /// Pixels.
    pub width: usize,
    /// Pixels.
    pub height: usize,
    /// The file's bytes.
    pub png: &'a [u8],
}

/// One event file. A run that goes on opens another beside it; TensorBoard joins them by step.
#[derive(Debug)]
pub struct EventLog {
    path: PathBuf,
    out: BufWriter<File>,
}

impl EventLog {
    /// Creates `events.out.tfevents.SECONDS.STEP.aquatint` in a folder.
    ///
    /// # Errors
    /// What the disk refuses.
    pub fn create(folder: &Path, done: u64) -> Result<Self, TrainError> {
        let name = format!("events.out.tfevents.{:010.0}.{done}.aquatint", now());
        let path = folder.join(name);
        let file = File::create(&path).map_err(TrainError::io(&path))?;
        let mut log = Self {
            path,
            out: BufWriter::new(file),
        };
        log.record(&Event {
            wall_time: now(),
            step: done as i64,
            file_version: Some("brain.Event:2".into()),
            summary: None,
        })?;
        Ok(log)
    }

    /// Writes numbers of a step, each under its tag (`loss`, `learning_rate`).
    ///
    /// # Errors
    /// What the disk refuses.
    pub fn scalars(&mut self, step: u64, values: &[(&str, f64)]) -> Result<(), TrainError> {
        let value = values.iter().map(|&(tag, value)| Value {
            tag: tag.into(),
            simple_value: Some(value as f32),
            image: None,
        });
        self.summary(step, value.collect())
    }

    /// Writes a picture of a step.
    ///
    /// # Errors
    /// What the disk refuses.
    pub fn picture(
        &mut self,
        step: u64,
        tag: &str,
        picture: Picture<'_>,
    ) -> Result<(), TrainError> {
        let image = Image {
            height: picture.height as i32,
            width: picture.width as i32,
            colorspace: 3,
            encoded_image_string: picture.png.into(),
        };
        self.summary(
            step,
            vec![Value {
                tag: tag.into(),
                simple_value: None,
                image: Some(image),
            }],
        )
    }

    fn summary(&mut self, step: u64, value: Vec<Value>) -> Result<(), TrainError> {
        self.record(&Event {
            wall_time: now(),
            step: step as i64,
            file_version: None,
            summary: Some(Summary { value }),
        })
    }

    /// Each record reaches the file at once, so that a killed run has told what it did.
    fn record(&mut self, event: &Event) -> Result<(), TrainError> {
        let data = event.encode_to_vec();
        let length = (data.len() as u64).to_le_bytes();
        let parts: [&[u8]; 4] = [
            &length,
            &masked_checksum(&length).to_le_bytes(),
            &data,
            &masked_checksum(&data).to_le_bytes(),
        ];
        parts
            .iter()
            .try_for_each(|part| self.out.write_all(part))
            .and_then(|()| self.out.flush())
            .map_err(TrainError::io(&self.path))
    }
}

fn now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |d| d.as_secs_f64())
}

/// The record format's checksum: CRC-32C, rotated and shifted so that a checksum of checksums stays sound.
fn masked_checksum(data: &[u8]) -> u32 {
    crc32c::crc32c(data)
        .rotate_right(15)
        .wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(folder: &Path) -> Vec<Event> {
        let file = std::fs::read_dir(folder)
            .expect("folder")
            .next()
            .expect("one file")
            .expect("entry");
        let bytes = std::fs::read(file.path()).expect("file");
        let (mut at, mut events) = (0, Vec::new());
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        while at < bytes.len() {
            let len = u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes")) as usize;
            assert_eq!(word(at + 8), masked_checksum(&bytes[at..at + 8]));
            let data = &bytes[at + 12..at + 12 + len];
            assert_eq!(word(at + 12 + len), masked_checksum(data));
            events.push(Event::decode(data).expect("an event"));
            at += 16 + len;
        }
        events
    }

    #[test]
    fn records_come_back_as_they_were_written() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut log = EventLog::create(dir.path(), 7).expect("log");
        log.scalars(8, &[("loss", 0.25), ("learning_rate", 1e-4)])
            .expect("scalars");
        let picture = Picture {
            width: 2,
            height: 1,
            png: b"png",
        };
        log.picture(8, "samples", picture).expect("picture");
        let events = read(dir.path());
        assert_eq!(events.len(), 3);
        assert_eq!(events[0].file_version.as_deref(), Some("brain.Event:2"));
        let scalars = events[1].summary.as_ref().expect("summary");
        assert_eq!(
            (events[1].step, scalars.value[0].simple_value),
            (8, Some(0.25))
        );
        assert_eq!(scalars.value[1].tag, "learning_rate");
        let image = events[2].summary.as_ref().expect("summary").value[0]
            .image
            .as_ref();
        assert_eq!(image.map(|i| (i.width, i.height)), Some((2, 1)));
    }

    #[test]
    fn checksums_are_those_of_tensorflow() {
        // masked_crc32c of the Python package tensorboard, for the length 24.
        assert_eq!(masked_checksum(&24_u64.to_le_bytes()), 0x224b_7fa3);
    }
}
