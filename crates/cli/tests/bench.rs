//! `aquatint bench`.

mod common;

use common::Place;

const USAGE: i32 = 2;

#[test]
fn operations_are_timed() {
    let place = Place::new();
    let found = place.json(["bench", "ops", "--shape", "33x17x65", "--threads", "2"]);
    let keys: Vec<&String> = found.as_object().expect("an object").keys().collect();
    assert_eq!(keys, ["peak_gflops", "threads", "ops"]);
    assert!(found["peak_gflops"].as_f64() > Some(0.0));
    assert_eq!(found["threads"], 2);
    let ops = found["ops"].as_array().expect("a list");
    let storages: Vec<&str> = ops.iter().filter_map(|o| o["rhs"].as_str()).collect();
    assert_eq!(storages[..2], ["f32", "f16"]);
    for op in ops {
        let keys: Vec<&String> = op.as_object().expect("an object").keys().collect();
        assert_eq!(keys, ["op", "shape", "rhs", "ms", "gflops"]);
        assert_eq!(
            (&op["op"], &op["shape"]),
            (&"gemm".into(), &"33x17x65".into())
        );
        let (ms, gflops) = (
            op["ms"].as_f64().expect("ms"),
            op["gflops"].as_f64().expect("gflops"),
        );
        let flops = 2.0 * 33.0 * 17.0 * 65.0;
        assert!((ms * gflops * 1e6 / flops - 1.0).abs() < 1e-6);
    }
    for (shape, op) in [
        ("1x9x8x3->4 k3 s1", "conv2d"),
        ("1x2x30x8 kv7", "attention"),
    ] {
        let text = place.ok(["bench", "ops", "--shape", shape, "--only", op]);
        assert!(
            text.contains("GFLOP/s") && text.contains(shape) && text.contains(op),
            "{text}"
        );
    }
}

#[test]
fn a_model_is_timed() {
    let place = Place::new();
    let found = place.json([
        "bench", "model", "--width", "64", "--height", "72", "--steps", "2",
    ]);
    let keys: Vec<&String> = found.as_object().expect("an object").keys().collect();
    let all = [
        "load_s",
        "text_encode_s",
        "denoise_step_s",
        "vae_decode_s",
        "peak_bytes",
    ];
    assert_eq!(keys, all);
    for key in all {
        assert!(found[key].as_f64() > Some(0.0), "{key}: {found}");
    }
    let found = place.json([
        "bench", "model", "--only", "decode", "--width", "64", "--height", "64",
    ]);
    assert!(found["denoise_step_s"].is_null() && found["vae_decode_s"].as_f64() > Some(0.0));
    let text = place.ok([
        "bench", "model", "--width", "64", "--height", "64", "--steps", "1",
    ]);
    assert!(
        text.contains("one step") && text.contains("peak memory"),
        "{text}"
    );
}

#[test]
fn what_cannot_be_timed_is_refused() {
    let place = Place::new();
    for (args, expected) in [
        (
            &["ops", "--only", "fft"][..],
            "expected conv2d, gemm or attention",
        ),
        (&["ops", "--shape", ""], "expected 2x64x64x320->320 k3 s1"),
        (
            &["ops", "--shape", "1x2"],
            "expected 2x64x64x320->320 k3 s1",
        ),
        (&["ops", "--shape", "0x1x1"], "found a size of 0"),
        (
            &["ops", "--shape", "-1x1x1"],
            "expected 2x64x64x320->320 k3 s1",
        ),
        (
            &["ops", "--shape", "4000000x4000000x4000000"],
            "expected at most",
        ),
        (
            &["ops", "--shape", "99999999999999999999x1x1"],
            "found a size of",
        ),
        (
            &["ops", "--shape", "1x1x1", "--only", "conv2d"],
            "is a shape of gemm",
        ),
        (&["ops", "--threads", "0"], "expected a whole number"),
        (&["model", "--steps", "0"], "expected a whole number from 1"),
        (&["model", "--width", "100"], "width is 100"),
        (
            &["model", "--only", "sampler"],
            "expected text, step or decode",
        ),
        (&["run"], "which is no command"),
    ] {
        let args: Vec<&str> = ["bench"].iter().chain(args).copied().collect();
        let said = place.refused(USAGE, &args);
        assert!(said.contains(expected), "{args:?}: {said}");
    }
}
