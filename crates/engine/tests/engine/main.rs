//! The engine against diffusers: whole runs, in every layout a checkpoint comes in.
//!
//! One binary, so that the tensors' code is linked once.

#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs)]

mod bad_models;
mod default_model;
mod determinism;
mod flow;
mod flow_layouts;
mod layouts;
mod lora;
mod pipelines;
mod pixels;
mod support;
