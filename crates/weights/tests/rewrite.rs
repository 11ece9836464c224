//! Files made of others: types by rule and choice, both formats, whole or not at all.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use aquatint_weights::gguf::{Metadata, Value};
use aquatint_weights::rewrite::{Container, Plan, Rules, Why};
use aquatint_weights::{
    BlockFormat, DType, Error, Remap, TensorView, WeightFile, WeightSet, convert, safetensors,
    to_f32_vec,
};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

const Q8: DType = DType::Blocks(BlockFormat::Q8_0);
const Q4K: DType = DType::Blocks(BlockFormat::Q4K);

fn wave(name: &str, shape: &[usize], dtype: DType) -> TensorView {
    let len: usize = shape.iter().product();
    let values: Vec<u8> = (0..len)
        .flat_map(|i| ((i as f32 * 0.37).sin() * 2.0).to_le_bytes())
        .collect();
    let view = TensorView::new(name, DType::F32, shape.to_vec(), Bytes::from(values)).unwrap();
    convert(&view, dtype).unwrap()
}

/// Weights of many shapes, and what is no weight.
fn source(dir: &Path) -> WeightSet {
    let ids = TensorView::new("ids", DType::I64, vec![2], Bytes::from(vec![1; 16])).unwrap();
    let flag = TensorView::new("flag", DType::Bool, vec![2], Bytes::from(vec![1; 2])).unwrap();
    let tensors = [
        wave("block.weight", &[8, 512], DType::Bf16),
        wave("block.bias", &[512], DType::Bf16),
        wave("narrow.weight", &[40, 96], DType::F16),
        wave("odd.weight", &[40, 50], DType::F32),
        wave("conv.weight", &[64, 32, 3, 3], DType::F16),
        wave("first.weight", &[16, 256], DType::Bf16),
        wave("few.weight", &[2, 256], DType::F16),
        wave("five.weight", &[2, 3, 4, 2, 64], DType::F32),
        ids,
        flag,
    ];
    let path = dir.join("source.safetensors");
    safetensors::write(&path, &tensors, &BTreeMap::from([("a".into(), "b".into())])).unwrap();
    WeightSet::open(path).unwrap()
}

fn rules<'a>(
    container: Container,
    default: DType,
    chosen: &'a dyn Fn(&str) -> Option<DType>,
) -> Rules<'a> {
    Rules {
        container,
        default,
        chosen,
        delicate: &|name| name.starts_with("first"),
    }
}

fn write(set: &WeightSet, rules: &Rules<'_>, path: &Path) -> Plan {
    let plan = Plan::new(set, rules).unwrap();
    let metadata = Metadata::from_iter([(
        "general.architecture".to_string(),
        Value::String("flux".into()),
    )]);
    let mut last = 0;
    let whole = plan
        .write(set, path, &metadata, &mut |p| {
            assert!(p.done >= last && p.done <= p.total);
            last = p.done;
            ControlFlow::Continue(())
        })
        .unwrap();
    assert!(whole && last == plan.bytes());
    plan
}

fn types(file: &WeightFile) -> BTreeMap<&str, DType> {
    file.tensors().iter().map(|t| (&*t.name, t.dtype)).collect()
}

#[test]
fn quantised() {
    let dir = tempfile::tempdir().unwrap();
    let (set, path) = (source(dir.path()), dir.path().join("out.gguf"));
    let chosen = |name: &str| (name == "narrow.weight").then_some(DType::F32);
    let plan = write(&set, &rules(Container::Gguf, Q4K, &chosen), &path);
    assert_eq!(plan.left_out(), ["flag"]);
    let file = WeightFile::open(&path).unwrap();
    let want = [
        ("block.weight", Q4K, None),
        ("block.bias", DType::F32, Some(Why::Small)),
        ("narrow.weight", DType::F32, None),
        ("odd.weight", DType::F16, Some(Why::Rows)),
        ("conv.weight", DType::F16, Some(Why::Rows)),
        ("first.weight", DType::F32, Some(Why::Delicate)),
        ("few.weight", DType::F16, Some(Why::Small)),
        ("five.weight", Q8, Some(Why::Rows)),
        ("ids", DType::I64, Some(Why::Integers)),
    ];
    assert_eq!(types(&file), want.map(|row| (row.0, row.1)).into());
    for (name, _, why) in want {
        let fate = plan.tensors().iter().find(|f| f.name == name).unwrap();
        assert_eq!(fate.why, why, "{name}");
        let (old, new) = (set.get(name).unwrap(), file.get(name).unwrap());
        assert_eq!(old.shape, new.shape, "{name}");
        let (Ok(old), Ok(new)) = (to_f32_vec(&old), to_f32_vec(new)) else {
            assert_eq!(old.data, new.data);
            continue;
        };
        let off = old
            .iter()
            .zip(&new)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        // Half a step of 4 over 15, and as much again at the ends, as the search may trade them for the middle and
        // scales have 6 bits; half a step of 4 over 254; of f16.
        let allowed = match name {
            "block.weight" => 0.267,
            "five.weight" => 0.009,
            _ => 0.001,
        };
        assert!(off <= allowed, "{name}: {off}");
    }
    assert_eq!(
        file.gguf().get("general.architecture"),
        Some(&Value::String("flux".into()))
    );
    // GGML has four axes; what it has more of is noted.
    let noted = file
        .gguf()
        .get("comfy.gguf.orig_shape.five.weight")
        .unwrap();
    assert_eq!(noted.as_i64s(), Some(vec![2, 3, 4, 2, 64]));

    // And back: the metadata go along, quantised tensors stay, or become plain.
    let again = dir.path().join("again.gguf");
    let set = WeightSet::open(&path).unwrap();
    let plan = write(
        &set,
        &rules(Container::Gguf, DType::Blocks(BlockFormat::Q5_0), &|_| None),
        &again,
    );
    let block = plan
        .tensors()
        .iter()
        .find(|f| f.name == "block.weight")
        .unwrap();
    assert_eq!((block.to, block.why), (Q4K, Some(Why::Quantised)));
    let plain = dir.path().join("plain.safetensors");
    write(
        &set,
        &rules(Container::Safetensors, DType::Bf16, &|_| None),
        &plain,
    );
    let (plain, file) = (
        WeightFile::open(&plain).unwrap(),
        WeightFile::open(&path).unwrap(),
    );
    let block = file.get("block.weight").unwrap();
    assert_eq!(
        plain.get("block.weight"),
        Some(&convert(block, DType::Bf16).unwrap())
    );
}

#[test]
fn plain() {
    let dir = tempfile::tempdir().unwrap();
    let (set, path) = (source(dir.path()), dir.path().join("out.safetensors"));
    for to in [DType::F32, DType::F16, DType::Bf16, DType::F8E4M3] {
        write(&set, &rules(Container::Safetensors, to, &|_| None), &path);
        let file = WeightFile::open(&path).unwrap();
        for (name, info) in set.iter() {
            let new = file.get(name).unwrap();
            let f8_spares = ["block.bias", "first.weight", "few.weight"].contains(&name);
            let want = match info.dtype.is_float() && !(to == DType::F8E4M3 && f8_spares) {
                true => to,
                false => info.dtype,
            };
            assert_eq!(new.dtype, want, "{name}");
            assert_eq!(
                *new,
                if want == info.dtype {
                    set.get(name).unwrap()
                } else {
                    convert(&set.get(name).unwrap(), to).unwrap()
                }
            );
        }
        assert_eq!(file.metadata()["a"], "b");
        assert_eq!(file.metadata()["format"], "pt");
    }
    let all = Plan::new(&set, &rules(Container::Gguf, DType::F16, &|_| None)).unwrap();
    let bias = all
        .tensors()
        .iter()
        .find(|f| f.name == "block.bias")
        .unwrap();
    assert_eq!(
        bias.to,
        DType::F32,
        "GGML's programs take no vectors of BF16"
    );
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vector.safetensors");
    let vector = wave("norm.weight", &[512], DType::F16);
    safetensors::write(&path, &[vector], &BTreeMap::new()).unwrap();
    let set = WeightSet::open(path).unwrap();
    let all = Plan::new(&set, &rules(Container::Gguf, DType::F16, &|_| None)).unwrap();
    assert_eq!(all.tensors()[0].to, DType::F32, "nor of F16");
}

/// Parts under one name lie one below the other, in the types that they are told.
#[test]
fn parts_become_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("parts.safetensors");
    let tensors = [
        wave("q.weight", &[4, 256], DType::F16),
        wave("k.weight", &[8, 256], DType::Bf16),
        wave("shift.weight", &[6, 256], DType::F32),
        wave("narrow.weight", &[4, 128], DType::F16),
        wave("other.weight", &[2, 2], DType::F32),
    ];
    safetensors::write(&path, &tensors, &BTreeMap::new()).unwrap();
    let set = WeightSet::open(path).unwrap();
    let rows = [
        Remap::new("q.weight", "qk.weight"),
        Remap::new("k.weight", "qk.weight"),
        Remap::new("shift.weight", "turned.weight").part(1, 2),
        Remap::new("shift.weight", "turned.weight").part(0, 2),
        Remap::new("absent.weight", "nothing.weight"),
    ];
    for (container, to) in [(Container::Gguf, Q4K), (Container::Safetensors, DType::F32)] {
        let out = dir.path().join("out");
        let plan = Plan::remapped(&set, &rows, &rules(container, to, &|_| None)).unwrap();
        let whole = plan.write(&set, &out, &Metadata::default(), &mut |_| {
            ControlFlow::Continue(())
        });
        assert!(whole.unwrap());
        let file = WeightFile::open(&out).unwrap();
        let mut names: Vec<&str> = types(&file).into_keys().collect();
        names.sort_unstable();
        let kept = [
            "narrow.weight",
            "other.weight",
            "qk.weight",
            "turned.weight",
        ];
        assert_eq!(names, kept);
        let qk = file.get("qk.weight").unwrap();
        assert_eq!((qk.dtype, &qk.shape[..]), (to, &[12, 256][..]));
        // Each part as it would be alone.
        let [q, k] = [&tensors[0], &tensors[1]].map(|part| {
            let alone = dir.path().join("alone");
            let kept = set.filtered(|name| name == part.name);
            write(&kept, &rules(container, to, &|_| Some(to)), &alone);
            WeightFile::open(&alone).unwrap().tensors()[0].data.to_vec()
        });
        assert!(qk.data[..] == [q, k].concat());
        let turned = to_f32_vec(file.get("turned.weight").unwrap()).unwrap();
        let shift = to_f32_vec(&tensors[2]).unwrap();
        let (first, second) = shift.split_at(3 * 256);
        let off = turned.iter().zip(second.iter().chain(first));
        let off = off.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(off <= if to == Q4K { 0.267 } else { 0.0 }, "{off}");
    }
    let refused = |rows: &[Remap]| {
        let rules = rules(Container::Gguf, Q4K, &|_| None);
        Plan::remapped(&set, rows, &rules).unwrap_err().to_string()
    };
    let misfits = [
        Remap::new("q.weight", "a.weight"),
        Remap::new("narrow.weight", "a.weight"),
    ];
    let text = refused(&misfits);
    assert!(text.contains("does not fit below [4, 256]"), "{text}");
    let text = refused(&[Remap::new("q.weight", "k.weight")]);
    assert!(text.contains("k.weight"), "{text}");
}

#[test]
fn what_cannot_be() {
    let dir = tempfile::tempdir().unwrap();
    let set = source(dir.path());
    for (container, to) in [
        (Container::Safetensors, Q8),
        (Container::Gguf, DType::F8E4M3),
        (Container::Gguf, DType::I64),
        (Container::Safetensors, DType::F8E5M2),
    ] {
        let error = Plan::new(&set, &rules(container, to, &|_| None)).unwrap_err();
        assert!(matches!(error, Error::Conversion { .. }), "{error}");
    }
}

/// Nothing is left when a number does not fit, or the observer has seen enough.
#[test]
fn failures_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut values = vec![1.0f32; 2048];
    let one = |values: &[f32], name: &str| {
        let data: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        let view = TensorView::new("w", DType::F32, vec![2, 1024], Bytes::from(data)).unwrap();
        let path = dir.path().join(name);
        safetensors::write(&path, &[view], &BTreeMap::new()).unwrap();
        WeightSet::open(path).unwrap()
    };
    values[1500] = 1e6;
    let large = one(&values, "large.safetensors");
    values[1500] = f32::NAN;
    let nan = one(&values, "nan.safetensors");
    let try_it = |set: &WeightSet, to: DType, end: ControlFlow<()>| {
        let container = if to.blocks().is_some() {
            Container::Gguf
        } else {
            Container::Safetensors
        };
        let path = dir.path().join("out");
        let plan = Plan::new(set, &rules(container, to, &|_| None)).unwrap();
        let result = plan.write(set, &path, &Metadata::default(), &mut |_| end);
        (result, path.exists())
    };
    let go = ControlFlow::Continue(());
    for to in [DType::F16, DType::F8E4M3] {
        let (result, there) = try_it(&large, to, go);
        let text = result.unwrap_err().to_string();
        assert!(text.contains("number 1500 is too large for F"), "{text}");
        assert!(!there);
    }
    let (result, there) = try_it(&nan, Q8, go);
    assert!(matches!(result, Err(Error::NonFinite { index: 1500, .. })) && !there);
    let (result, there) = try_it(&large, DType::Bf16, ControlFlow::Break(()));
    assert!(matches!(result, Ok(false)) && !there);
    // A NaN is no less one in another type.
    let (result, there) = try_it(&nan, DType::Bf16, go);
    assert!(matches!(result, Ok(true)) && there);
    let names: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(names.len(), 3, "{names:?}");
}

/// 8-bit floats with scales, as ComfyUI writes them.
#[test]
fn scaled_8_bit_floats() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("scaled.safetensors");
    let f8 = |name: &str| {
        let codes: Vec<u8> = (0..64).map(|i| (i * 3) as u8 & 0xbf).collect();
        TensorView::new(name, DType::F8E4M3, vec![8, 8], Bytes::from(codes)).unwrap()
    };
    let scale = |name: &str, x: f32, shape: &[usize]| {
        TensorView::new(
            name,
            DType::F32,
            shape.to_vec(),
            Bytes::from(x.to_le_bytes().to_vec()),
        )
        .unwrap()
    };
    let marker = TensorView::new("scaled_fp8", DType::F8E4M3, vec![0], Bytes::new()).unwrap();
    let tensors = [
        f8("a.weight"),
        scale("a.scale_weight", 0.37, &[]),
        scale("a.scale_input", 1.0, &[]),
        f8("b.weight"),
        scale("b.weight_scale", 1000.0, &[1]),
        f8("c.weight"),
        wave("scale_weight", &[4], DType::F32),
        marker,
    ];
    safetensors::write(&path, &tensors, &BTreeMap::new()).unwrap();
    let set = WeightSet::open(&path).unwrap();
    assert_eq!(
        set.names().collect::<Vec<_>>(),
        ["a.weight", "b.weight", "c.weight", "scale_weight"]
    );
    let plain = to_f32_vec(&tensors[0]).unwrap();
    for (name, dtype, scale, rounding) in [
        ("a.weight", DType::F16, 0.37, 1.0 / 2048.0),
        ("b.weight", DType::Bf16, 1000.0, 1.0 / 256.0),
        ("c.weight", DType::F8E4M3, 1.0, 0.0),
    ] {
        let view = set.get(name).unwrap();
        assert_eq!((view.dtype, set.info(name).unwrap().dtype), (dtype, dtype));
        for (got, x) in to_f32_vec(&view).unwrap().iter().zip(&plain) {
            let want = x * scale;
            assert!(
                (got - want).abs() <= want.abs() * rounding,
                "{name}: {got}, not {want}"
            );
        }
    }
}
