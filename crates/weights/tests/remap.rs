//! Key maps, and the account of a load.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use aquatint_weights::{
    Applied, DType, Error, LoadReport, Remap, Reshape, TensorView, WeightSet, WrongShape,
    check_finite, safetensors,
};
use bytes::Bytes;
use std::collections::BTreeMap;
use tempfile::TempDir;

fn f32s(name: &str, shape: &[usize]) -> TensorView {
    let n: usize = shape.iter().product();
    let data: Vec<u8> = (0..n).flat_map(|i| (i as f32).to_le_bytes()).collect();
    TensorView::new(name, DType::F32, shape.to_vec(), Bytes::from(data)).unwrap()
}

fn of_type(name: &str, dtype: DType, shape: &[usize]) -> TensorView {
    let len = dtype.byte_size(shape.iter().product()).unwrap();
    let data = (0..len).map(|i| i as u8).collect::<Vec<u8>>();
    TensorView::new(name, dtype, shape.to_vec(), Bytes::from(data)).unwrap()
}

/// The set of these tensors, in a file that lives as long as the folder.
fn set(tensors: &[TensorView]) -> (TempDir, WeightSet) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    safetensors::write(&path, tensors, &BTreeMap::new()).unwrap();
    let set = WeightSet::open(&path).unwrap();
    (dir, set)
}

fn values(view: &TensorView) -> Vec<f32> {
    view.aligned().as_f32().unwrap().to_vec()
}

#[test]
fn scopes_cut_prefixes_and_hide_the_rest() {
    let (_dir, all) = set(&[
        f32s("model.diffusion_model.conv.weight", &[1]),
        f32s("model.diffusion_model_ema.decay", &[1]),
        f32s("first_stage_model.conv.weight", &[1]),
    ]);
    let unet = all.scoped("model.diffusion_model.");
    assert_eq!(unet.names().collect::<Vec<_>>(), ["conv.weight"]);
    assert_eq!(unet.get("conv.weight").unwrap().name, "conv.weight");
    assert_eq!(
        unet.origin("conv.weight").unwrap().1,
        "model.diffusion_model.conv.weight"
    );
    assert!(all.has_prefix("first_stage_model.") && !all.has_prefix("cond_stage_model."));
    assert!(all.scoped("nothing").is_empty());
    assert_eq!(all.filtered(|n| n.contains("conv")).len(), 2);
}

#[test]
fn renaming_keeps_what_no_map_knows_and_refuses_one_name_for_two() {
    let (_dir, all) = set(&[f32s("a", &[1]), f32s("b", &[1]), f32s("c", &[1])]);
    let renamed = all.renamed(|n| (n == "a").then(|| "x".into())).unwrap();
    assert_eq!(renamed.names().collect::<Vec<_>>(), ["b", "c", "x"]);
    let error = all.renamed(|_| Some("x".into())).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("tensor \"x\" is there twice (a in "),
        "{error}"
    );
    let error = all.remapped(&[Remap::new("a", "b")]).unwrap_err();
    assert!(matches!(error, Error::Duplicate { .. }), "{error}");
    // A swap is no clash.
    let swapped = all
        .remapped(&[Remap::new("a", "b"), Remap::new("b", "a")])
        .unwrap();
    assert_eq!(swapped.origin("a").unwrap().1, "b");
}

#[test]
fn a_fused_matrix_becomes_three_without_a_copy() {
    let (_dir, all) = set(&[
        f32s("attn.in_proj_weight", &[6, 2]),
        f32s("attn.in_proj_bias", &[6]),
    ]);
    let mut rows = Vec::new();
    for (i, part) in ["q", "k", "v"].into_iter().enumerate() {
        rows.push(Remap::new("attn.in_proj_weight", format!("{part}.weight")).part(i, 3));
        rows.push(Remap::new("attn.in_proj_bias", format!("{part}.bias")).part(i, 3));
    }
    let split = all.remapped(&rows).unwrap();
    assert_eq!(split.len(), 6);
    let whole = all.get("attn.in_proj_weight").unwrap();
    let k = split.get("k.weight").unwrap();
    assert_eq!(
        (k.shape.as_slice(), values(&k)),
        (&[2, 2][..], vec![4.0, 5.0, 6.0, 7.0])
    );
    assert_eq!(
        k.data.as_ptr(),
        whole.data[16..].as_ptr(),
        "a slice of the same mapping"
    );
    assert_eq!(values(&split.get("v.bias").unwrap()), [4.0, 5.0]);
    assert_eq!(split.info("k.weight").unwrap().shape, [2, 2]);
    // The same without a new set.
    let one = Remap::new("attn.in_proj_weight", "k.weight").part(1, 3);
    assert_eq!(all.get_remapped(&one).unwrap(), k);
    assert!(matches!(
        all.get_remapped(&Remap::new("x", "y")),
        Err(Error::MissingTensor { .. })
    ));
    let four = Remap::new("attn.in_proj_weight", "x").part(1, 4);
    assert!(matches!(all.get_remapped(&four), Err(Error::Remap { .. })));
    // Of a part, another part.
    let again = split
        .remapped(&[Remap::new("k.weight", "row").rows(1..2)])
        .unwrap();
    assert_eq!(values(&again.get("row").unwrap()), [6.0, 7.0]);
    assert_eq!(again.get("row").unwrap().shape, [1, 2]);
}

#[test]
fn transposes_and_reshapes() {
    let (_dir, all) = set(&[
        f32s("p", &[2, 3]),
        f32s("conv", &[2, 3, 1, 1]),
        f32s("big", &[70, 45]),
    ]);
    let rows = [
        Remap::new("p", "t").transposed(),
        Remap::new("p", "c").reshaped(Reshape::Conv1x1),
        Remap::new("conv", "l").reshaped(Reshape::Linear),
        Remap::new("conv", "flat").reshaped(Reshape::To(vec![6])),
        Remap::new("p", "all")
            .rows(0..2)
            .transposed()
            .reshaped(Reshape::Conv1x1),
        Remap::new("big", "big.t").transposed(),
    ];
    let turned = all.remapped(&rows).unwrap();
    let shape = |n: &str| turned.get(n).unwrap().shape;
    assert_eq!(
        (shape("t"), shape("c"), shape("l")),
        (vec![3, 2], vec![2, 3, 1, 1], vec![2, 3])
    );
    assert_eq!((shape("flat"), shape("all")), (vec![6], vec![3, 2, 1, 1]));
    for (name, info) in turned.iter() {
        assert_eq!(turned.get(name).unwrap().shape, info.shape, "{name}");
    }
    let transposed = vec![0.0, 3.0, 1.0, 4.0, 2.0, 5.0];
    assert_eq!(values(&turned.get("t").unwrap()), transposed);
    assert_eq!(values(&turned.get("all").unwrap()), transposed);
    assert_eq!(
        values(&turned.get("l").unwrap()),
        [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    );
    let big = values(&turned.get("big.t").unwrap());
    assert!((0..45).all(|c| (0..70).all(|r| big[c * 70 + r] == (r * 45 + c) as f32)));
    for dtype in [DType::F64, DType::F16, DType::I8] {
        let (_dir, s) = set(&[of_type("m", dtype, &[3, 2])]);
        let back = s.remapped(&[Remap::new("m", "m").transposed()]).unwrap();
        let back = back.remapped(&[Remap::new("m", "m").transposed()]).unwrap();
        assert_eq!(
            back.get("m").unwrap(),
            s.get("m").unwrap(),
            "{dtype} twice transposed"
        );
    }
}

#[test]
fn turns_that_a_shape_does_not_allow() {
    let (_dir, all) = set(&[
        f32s("v", &[4]),
        f32s("s", &[]),
        f32s("m", &[4, 2]),
        f32s("none", &[0, 2]),
    ]);
    for (row, word) in [
        (Remap::new("v", "x").part(0, 3), "part 0 of 3 of its 4 rows"),
        (Remap::new("v", "x").part(2, 2), "part 2 of 2"),
        (Remap::new("v", "x").part(0, 0), "part 0 of 0"),
        (Remap::new("v", "x").rows(2..5), "rows 2 to 5 of 4"),
        (Remap::new("s", "x").part(0, 1), "a scalar has no rows"),
        (Remap::new("v", "x").transposed(), "only a matrix"),
        (
            Remap::new("v", "x").reshaped(Reshape::Linear),
            "a linear layer needs",
        ),
        (
            Remap::new("v", "x").reshaped(Reshape::Conv1x1),
            "a 1x1 convolution needs",
        ),
        (
            Remap::new("m", "x").reshaped(Reshape::To(vec![3, 3])),
            "another number of elements",
        ),
        (
            Remap::new("m", "x").reshaped(Reshape::To(vec![usize::MAX, 2])),
            "another number of elements",
        ),
    ] {
        let error = all.remapped(&[row]).unwrap_err();
        assert!(
            error.to_string().contains(word) && error.hint().is_some(),
            "{error}"
        );
    }
    let backwards = std::ops::Range { start: 3, end: 1 };
    assert!(
        all.remapped(&[Remap::new("v", "x").rows(backwards)])
            .is_err()
    );
    // No elements are still a shape.
    let rows = [
        Remap::new("none", "half").part(1, 2),
        Remap::new("none", "t").transposed(),
    ];
    let none = all.remapped(&rows).unwrap();
    assert_eq!(none.get("half").unwrap().shape, [0, 2]);
    assert_eq!(none.get("t").unwrap().shape, [2, 0]);
    // A row whose source is absent is no error: the loader will miss its target.
    assert_eq!(all.remapped(&[Remap::new("absent", "x")]).unwrap().len(), 4);
}

#[test]
fn a_tensor_that_holds_nan_is_named() {
    let nan: Vec<u8> = [1.0, f32::NAN, 2.0]
        .iter()
        .flat_map(|x| x.to_le_bytes())
        .collect();
    let bad = TensorView::new("unet.conv.bias", DType::F32, vec![3], Bytes::from(nan)).unwrap();
    let (_dir, all) = set(&[bad, f32s("good", &[3])]);
    check_finite(&all.get("good").unwrap(), all.path()).unwrap();
    let error = check_finite(&all.get("unet.conv.bias").unwrap(), all.path()).unwrap_err();
    let text = error.to_string();
    assert!(
        text.ends_with("tensor \"unet.conv.bias\" holds NaN at index 1, expected finite numbers"),
        "{text}"
    );
}

#[test]
fn a_report_tells_each_kind_of_fault() {
    let mut report = LoadReport::default();
    let applied = Applied {
        dtype: DType::F32,
        elements: 16,
        bytes: 64,
    };
    report.applied.insert("conv.weight".into(), applied);
    report.unused.push("extra".into());
    report.ignored.push("position_ids".into());
    assert!(report.is_complete());
    assert_eq!(
        report.to_string(),
        "applied tensors: 1, 16 parameters in 64 bytes\nunused tensors (1): \"extra\"\nunused and known to be harmless: 1"
    );
    report.missing.push("x".into());
    report.wrong_shape.push(WrongShape {
        name: "y".into(),
        found: vec![1],
        expected: vec![2],
    });
    let text = report.to_string();
    assert!(!report.is_complete());
    assert!(text.contains("missing tensors (1): \"x\""), "{text}");
    assert!(
        text.contains("tensors of another shape (1): \"y\" is [1], expected [2]"),
        "{text}"
    );
    assert!(
        serde_json::to_string(&report)
            .unwrap()
            .contains("conv.weight")
    );
}
