//! Layers whose matrix is stored in 8-bit floats or in blocks: as the same layer with the matrix widened.

use std::error::Error;

use aquatint_ops::kernels::blocks::{decode, decode_f8_e4m3, encode_q8_0};
use aquatint_ops::nn::{Embedding, Linear};
use aquatint_ops::{
    Activation, BlockFormat, Device, OpsError, ParamSource, Params, RawTensor, Storage, Tensor,
    Trainable, Weight,
};

const IN: usize = 256;
const OUT: usize = 24;

/// Bytes as good as random, whose f16 scales are of moderate size.
fn packed(storage: Storage, len: usize) -> Vec<u8> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 24
    };
    match storage {
        Storage::Blocks(BlockFormat::Q8_0) => {
            let values: Vec<f32> = (0..len).map(|_| next() as f32 / 128.0 - 1.0).collect();
            encode_q8_0(&values).expect("whole blocks")
        }
        Storage::Blocks(format) => {
            let mut bytes: Vec<u8> = (0..storage.bytes(len)).map(|_| next() as u8).collect();
            for block in bytes.chunks_exact_mut(format.block_bytes()) {
                // An f16 of 2^-10: what stands at the start of the formats tested here.
                block[..2].copy_from_slice(&[0, 0x14]);
                if format == BlockFormat::Q4K {
                    block[2..4].copy_from_slice(&[0, 0x14]);
                }
            }
            bytes
        }
        // No NaN.
        _ => (0..len).map(|_| (next() % 0x70) as u8).collect(),
    }
}

fn widened(storage: Storage, bytes: &[u8], len: usize) -> Vec<f32> {
    let mut values = vec![0.0; len];
    match storage {
        Storage::Blocks(format) => decode(format, bytes, &mut values).expect("whole blocks"),
        _ => values
            .iter_mut()
            .zip(bytes)
            .for_each(|(v, b)| *v = decode_f8_e4m3(*b)),
    }
    values
}

/// Gives matrices packed, or widened to f32.
struct Source(Storage, bool);

impl ParamSource for Source {
    fn tensor(&self, _: &str, shape: &[usize]) -> Result<RawTensor, Box<dyn Error + Send + Sync>> {
        let len = shape.iter().product();
        let Source(storage, pack) = *self;
        if shape.len() < 2 {
            return Ok(RawTensor::from_f32(&vec![0.25; len], shape));
        }
        let bytes = packed(storage, len);
        Ok(match pack {
            true => RawTensor {
                bytes: bytes.into(),
                storage,
                shape: shape.to_vec(),
            },
            false => RawTensor::from_f32(&widened(storage, &bytes, len), shape),
        })
    }

    fn has(&self, _: &str) -> bool {
        true
    }
}

const STORAGES: [Storage; 4] = [
    Storage::F8E4M3,
    Storage::Blocks(BlockFormat::Q8_0),
    Storage::Blocks(BlockFormat::Q4_0),
    Storage::Blocks(BlockFormat::Q4K),
];

fn input(rows: usize, device: &Device) -> Tensor<2> {
    let values = (0..rows * IN).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0);
    Tensor::<1>::from_data(values.collect::<Vec<f32>>().as_slice(), device).reshape([rows, IN])
}

fn host<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.into_data().try_into_vec().expect("f32")
}

/// The same numbers in products of the same order: what differs is where they are rounded, some 1e-6 of the largest.
#[track_caller]
fn close(got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len());
    let largest = want.iter().fold(1e-3f32, |m, v| m.max(v.abs()));
    for (g, w) in got.iter().zip(want) {
        assert!((g - w).abs() <= 2e-6 * largest, "{g} against {w}");
    }
}

#[test]
fn linear_layers_run_from_what_is_stored() {
    let device = Device::flex();
    for storage in STORAGES {
        let [packed, wide] = [true, false].map(|pack| {
            let source = Source(storage, pack);
            Linear::load(&Params::new(&source, &device), IN, OUT, true).expect("all is there")
        });
        assert!(matches!(&packed.weight, Weight::Packed(w) if w.storage() == storage));
        for rows in [1, 3, 40] {
            let x = input(rows, &device);
            let run = |layer: &Linear| {
                let residual = Some(Tensor::ones([rows, OUT], &device));
                host(layer.forward_with(x.clone(), Activation::Silu, residual))
            };
            close(&run(&packed), &run(&wide));
        }
    }
}

#[test]
fn gradients_pass_through_packed_weights() {
    let device = Device::flex().autodiff();
    for storage in STORAGES {
        let gradient = |pack| {
            let trainable = Trainable::new(|name| name.ends_with("bias"));
            let source = Source(storage, pack);
            let params = Params::new(&source, &device).training(&trainable);
            let layer = Linear::load(&params.at("layer"), IN, OUT, true).expect("all is there");
            let x = input(5, &device).detach().require_grad();
            let y = layer.forward_with(x.clone(), Activation::Silu, None);
            let mut grads = (y.clone() * y).sum().backward();
            let dx = host(x.grad_remove(&mut grads).expect("wanted"));
            (dx, trainable.gradients(&layer, grads)["layer.bias"].clone())
        };
        let (got, want) = (gradient(true), gradient(false));
        close(&got.0, &want.0);
        close(&got.1, &want.1);
    }
}

#[test]
fn what_is_trained_is_widened() {
    let device = Device::flex().autodiff();
    let trainable = Trainable::all();
    let source = Source(Storage::Blocks(BlockFormat::Q8_0), true);
    let params = Params::new(&source, &device).training(&trainable);
    let layer = Linear::load(&params.at("layer"), IN, OUT, true).expect("all is there");
    assert!(matches!(layer.weight, Weight::Float(_)));
    assert_eq!(trainable.names(), ["layer.bias", "layer.weight"]);
}

#[test]
fn embeddings_widen_their_rows() {
    let device = Device::flex();
    let ids = vec![vec![3, 0, 23], vec![1, 1, 2]];
    for storage in STORAGES {
        let [packed, wide] = [true, false].map(|pack| {
            let source = Source(storage, pack);
            let table = Embedding::load(&Params::new(&source, &device), OUT, IN);
            host(table.expect("all is there").forward(&ids))
        });
        assert_eq!(packed, wide);
    }
}

#[test]
fn rows_of_parts_of_blocks_are_refused() {
    let source = Source(Storage::Blocks(BlockFormat::Q8_0), true);
    let params = Params::new(&source, &Device::flex());
    let found = Linear::load(&params, 48, 2, false);
    assert!(matches!(found, Err(OpsError::NotDivisible { by: 32, .. })));
}
