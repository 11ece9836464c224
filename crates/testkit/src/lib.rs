//! Golden tensors, tolerances and image comparisons for the tests of Aquatint.
//!
//! A dev-dependency only. Its reader of `.safetensors` is the `safetensors` crate, not
//! `aquatint-weights`, so that a fault in our own reader cannot hide itself.
//!
//! ```
//! use aquatint_testkit::{Tensor, relative_error};
//! let want = Tensor::from_f32(&[2], vec![1.0, -4.0]);
//! assert_eq!(relative_error(&[1.0, -3.0], want.f32()), 0.25);
//! ```

mod cases;
mod compare;
mod flow;
mod layouts;
mod tensors;

pub use cases::{Case, Cases};
pub use compare::{
    Comparison, assert_close, assert_exact, assert_pixels, compare, cosine, pixels_within, psnr,
    relative_error,
};
pub use flow::flow_folder;
pub use layouts::{
    flow_single_file, folder, sharded_folder, single_file, turbo_folder, unet_only, variant_folder,
};
pub use tensors::{Error, Tensor, Tensors, read_png};

use std::path::{Path, PathBuf};

/// The path of `golden/<name>` in this checkout. It need not exist.
pub fn golden(name: &str) -> PathBuf {
    root().join("golden").join(name)
}

/// The path of `models/<name>` in this checkout: `model("default")` is the model that ships.
pub fn model(name: &str) -> PathBuf {
    root().join("models").join(name)
}

/// The root of this checkout.
pub fn root() -> PathBuf {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    crate_dir
        .ancestors()
        .nth(2)
        .unwrap_or(crate_dir)
        .to_path_buf()
}
