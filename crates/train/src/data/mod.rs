//! Training data: the Hugging Face `imagefolder` convention.
//!
//! [`Folder::scan`] lists pictures and captions, [`Buckets`] gives each picture a size, [`Selection`] says which
//! pictures a batch shows and how (in the [`Order`] of its epoch), [`picture::load`] decodes one, and [`Loader`] does that ahead of the step in worker
//! threads. Everything but the decoding is a function of the seed and the step, so a run goes on after an
//! interruption exactly where it was.

mod buckets;
mod captions;
mod folder;
mod loader;
mod order;
pub mod picture;
mod selection;

pub use buckets::{Buckets, Size};
pub use captions::CaptionOptions;
pub use folder::{Example, Folder, PICTURE_ENDINGS};
pub use loader::{Batch, Loader, LoaderOptions, Readable, Sample, Skipped};
pub use order::{Order, Place};
pub use picture::{Crop, PictureOptions};
pub use selection::{Pick, Picks, Selection, SelectionOptions};
