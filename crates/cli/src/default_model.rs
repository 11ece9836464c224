//! The model inside the program.

use aquatint_engine::models::{EmbeddedFiles, Location};

/// What the model is called.
pub const NAME: &str = "emoji";

/// Bytes at an address that any element type may have, so that weights are used in place.
#[repr(C, align(64))]
struct Aligned<T: ?Sized>(T);

macro_rules! aligned {
    ($path:expr) => {{
        static BYTES: &Aligned<[u8]> = &Aligned(*include_bytes!($path));
        &BYTES.0
    }};
}

static FILES: EmbeddedFiles = include!(concat!(env!("OUT_DIR"), "/default_model.rs"));

/// Where the model is.
pub fn location() -> Location {
    Location::Embedded {
        name: NAME,
        files: FILES,
    }
}
