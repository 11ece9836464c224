//! The UNet of Stable Diffusion.
