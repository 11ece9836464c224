//! Weights of 8-bit floats that have a scale of their own, as ComfyUI writes them: beside `NAME.weight` a number
//! `NAME.scale_weight` (or `NAME.weight_scale`), and for the whole file the marker `scaled_fp8`.

use crate::view::aligned_bytes;
use crate::{DType, TensorView, WeightFile, convert};
use half::{bf16, f16};
use std::collections::HashMap;

/// What the scale of `NAME.weight` is called, after `NAME.`.
const SCALES: [&str; 2] = ["scale_weight", "weight_scale"];
/// What belongs to the scales and is no weight; activations are not scaled here.
const OTHERS: [&str; 3] = ["scale_input", "input_scale", "comfy_quant"];
const MARKER: &str = "scaled_fp8";

/// The largest number of F8_E4M3.
const LARGEST: f32 = 448.0;

/// The scales of a file, by the names of the tensors that they scale, and the names that are no weights.
#[derive(Debug, Default)]
pub(crate) struct Scales {
    pub of: HashMap<String, f32>,
    pub hidden: Vec<String>,
}

impl Scales {
    pub(crate) fn find(file: &WeightFile) -> Scales {
        let mut scales = Scales::default();
        let mut bases = Vec::new();
        for tensor in file.tensors() {
            let Some((base, end)) = tensor.name.rsplit_once('.') else {
                continue;
            };
            let weight = format!("{base}.weight");
            let is_f8 = file.get(&weight).is_some_and(|w| w.dtype == DType::F8E4M3);
            if !is_f8 || !SCALES.contains(&end) || tensor.len() != 1 {
                continue;
            }
            let Ok(value) = convert::to_f32_vec(tensor) else {
                continue;
            };
            scales.of.extend(value.first().map(|v| (weight, *v)));
            scales.hidden.push(tensor.name.clone());
            bases.push(base.to_owned());
        }
        if bases.is_empty() {
            return scales;
        }
        for base in &bases {
            let others = OTHERS.iter().map(|end| format!("{base}.{end}"));
            scales
                .hidden
                .extend(others.filter(|n| file.get(n).is_some()));
        }
        let marker = |t: &&TensorView| t.name == MARKER || t.name.ends_with(".scaled_fp8");
        let markers = file.tensors().iter().filter(marker);
        scales.hidden.extend(markers.map(|t| t.name.clone()));
        scales
    }
}

/// How a tensor of that scale is handed out: F16 keeps three bits more than BF16, where the numbers fit.
pub(crate) fn scaled_dtype(scale: f32) -> DType {
    if scale.abs() * LARGEST <= 65504.0 {
        DType::F16
    } else {
        DType::Bf16
    }
}

/// The tensor with its scale applied: one copy, rounded once.
pub(crate) fn apply(view: &TensorView, scale: f32) -> TensorView {
    let dtype = scaled_dtype(scale);
    let by_code: Vec<[u8; 2]> = (0..=255)
        .map(|code| {
            let x = aquatint_kernels::blocks::decode_f8_e4m3(code) * scale;
            match dtype {
                DType::F16 => f16::from_f32(x).to_le_bytes(),
                _ => bf16::from_f32(x).to_le_bytes(),
            }
        })
        .collect();
    let data = aligned_bytes(view.data.len() * 2, |out| {
        for (out, code) in out.as_chunks_mut::<2>().0.iter_mut().zip(&view.data) {
            *out = by_code[usize::from(*code)];
        }
    });
    TensorView {
        name: view.name.clone(),
        dtype,
        shape: view.shape.clone(),
        data,
    }
}
