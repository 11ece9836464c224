//! What is wrong with the command line itself.

use aquatint_testkit::golden;

use crate::common::{Place, arg, failure, quick, text};
use crate::{FAILURE, USAGE};

/// Each case: arguments after the prompt, what the message must say.
#[track_caller]
fn refused_all(code: i32, cases: &[(&[&str], &str)]) {
    let place = Place::new();
    for (args, expected) in cases {
        let args: Vec<&str> = ["generate", "x"]
            .into_iter()
            .chain(args.iter().copied())
            .collect();
        let said = place.refused(code, &args);
        assert!(said.contains(expected), "{args:?}: {said}");
        assert!(said.contains("\nhint: "), "{args:?}: {said}");
    }
}

#[test]
fn sides_that_cannot_be() {
    let expected = "expected a multiple of 8 from 64 to 4096";
    for side in ["--width", "--height"] {
        for value in [
            "100",
            "0",
            "-8",
            "1000000000",
            "99999999999999999999",
            "abc",
            "",
            "64.0",
            "4104",
            "56",
        ] {
            refused_all(USAGE, &[(&[side, value], expected)]);
        }
    }
    refused_all(
        USAGE,
        &[
            (&["--width", "100"], "width is 100"),
            (&["--width", "100"], "try 104"),
        ],
    );
}

#[test]
fn numbers_that_cannot_be() {
    refused_all(
        USAGE,
        &[
            (&["--steps", "0"], "steps is 0, expected 1 to 1000"),
            (&["--steps", "1001"], "steps is 1001, expected 1 to 1000"),
            (&["--steps", "many"], "found \"many\" for --steps <N>"),
            (
                &["--count", "0"],
                "expected a whole number from 1 to 100000",
            ),
            (
                &["--count", "-1"],
                "expected a whole number from 1 to 100000",
            ),
            (&["--batch", "0"], "batch is 0, expected 1 to 64"),
            (&["--batch", "65"], "batch is 65, expected 1 to 64"),
            (&["--eta", "2"], "eta is 2, expected 0 to 1"),
            (&["--eta", "nan"], "eta is NaN, expected 0 to 1"),
            (&["-g", "nan"], "guidance is NaN, expected 0 to 100"),
            (&["-g", "inf"], "guidance is inf, expected 0 to 100"),
            (&["-g", "-inf"], "guidance is -inf, expected 0 to 100"),
            (&["-g", "-1"], "guidance is -1, expected 0 to 100"),
            (&["--guidance=-1"], "guidance is -1, expected 0 to 100"),
            (&["-g", "7,5"], "found \"7,5\" for --guidance <F>"),
            (
                &["--guidance-rescale", "2"],
                "guidance rescale is 2, expected 0 to 1",
            ),
            (
                &["--guidance-interval", "3,1"],
                "expected two noise levels, the lower first",
            ),
            (
                &["--guidance-interval", "-3,1"],
                "expected two noise levels, the lower first",
            ),
            (
                &["--guidance-interval", "nan,1"],
                "expected two noise levels, the lower first",
            ),
            (
                &["--guidance-interval", "3"],
                "expected two numbers with a comma between",
            ),
            (&["--clip-skip", "0"], "clip skip is 0, expected 1 to 12"),
            (
                &["--clip-skip", "4"],
                "clip skip is 4, expected 1 to 3, the text encoder's layers",
            ),
            (&["--clip-skip", "99"], "clip skip is 99, expected 1 to 12"),
            (&["--seed", "-1"], "leave it out for a random one"),
            (
                &["--seed", "18446744073709551616"],
                "expected 0 to 18446744073709551615",
            ),
            (
                &["--threads", "0"],
                "expected a whole number from 1 to 1024",
            ),
            (
                &["--preview-every", "0"],
                "expected a whole number from 1 to 1000",
            ),
        ],
    );
}

#[test]
fn a_clip_skip_beyond_the_encoder() {
    let model = golden("sd1");
    let said = Place::new().refused(USAGE, quick(&["-m", arg(&model), "--clip-skip", "9"]));
    assert!(said.contains("clip skip is 9, expected 1 to "), "{said}");
    assert!(said.contains("the text encoder's layers\nhint: "), "{said}");
}

#[test]
fn names_that_are_not_known_are_answered_with_the_nearest() {
    refused_all(
        USAGE,
        &[
            (&["--sampler", "eulr"], "the nearest are euler,"),
            (&["--sampler", "dpm++ 2x"], "dpmpp_2m"),
            (&["--sampler", ""], "found no sampler \"\""),
            (&["--schedule", "karas"], "the nearest are karras,"),
            (&["--rng", "torhc"], "torch-cpu"),
            (&["--dtype", "f8"], "expected auto, f32, f16 or bf16"),
            (&["--vae-tiling", "maybe"], "expected auto, on or off"),
            (&["--prompt-syntax", "other"], "expected weighted or plain"),
            (
                &["--prediction", "x0"],
                "expected epsilon, v, sample or flow",
            ),
            (&["--sampelr", "euler"], "did you mean --sampler?"),
        ],
    );
}

#[test]
fn command_lines_that_are_no_request() {
    let place = Place::new();
    for (args, expected) in [
        (
            &["generate"][..],
            "<PROMPT> is missing\nhint: say what to draw",
        ),
        (
            &["generate", "a", "red", "apple"],
            "put the prompt in quotes",
        ),
        (
            &["generate", "x", "-m"],
            "--model <PATH> is without a value",
        ),
        (
            &["generate", "x", "-m", ""],
            "--model <PATH> is without a value",
        ),
        (
            &["generate", "x", "--seed", "1", "--seed", "2"],
            "--seed <N> is given twice",
        ),
        (
            &["generate", "x", "--quick-decode"],
            "--taesd <PATH> is missing",
        ),
        (
            &["generate", "-red"],
            "a prompt that begins with - goes after --",
        ),
        (&["inspect"], "<FILE> is missing"),
        (
            &["completions", "tcsh"],
            "expected bash, elvish, fish, powershell or zsh",
        ),
        (&["genrate", "x"], "did you mean generate?"),
        (&["draw"], "found \"draw\", which is no command"),
    ] {
        let output = place.run(args);
        let said = failure(USAGE, &output);
        assert!(said.contains(expected), "{args:?}: {said}");
        // A wrong command line is all that is said.
        assert!(text(&output.stderr).starts_with("error: "), "{args:?}");
    }
    assert!(place.names().is_empty());
}

#[test]
fn without_arguments_there_is_help() {
    let output = Place::new().run::<&str>([]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("Usage: aquatint <COMMAND>"));
}

#[cfg(unix)]
#[test]
fn a_prompt_that_is_not_utf8() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let place = Place::new();
    let said = place.refused(
        USAGE,
        [OsStr::new("generate"), OsStr::from_bytes(b"caf\xe9")],
    );
    assert!(said.contains("not UTF-8"), "{said}");
}

#[test]
fn a_prompt_that_is_too_long() {
    // One argument holds at most 128 kB on Linux.
    let place = Place::new();
    let long = "a red apple, ".repeat(9000);
    let said = place.refused(FAILURE, quick(&["-n", &long]));
    assert!(
        said.contains("expected at most 64; shorten the prompt"),
        "{said}"
    );
    let run = place.json(quick(&[
        "-n",
        &long,
        "--prompt-syntax",
        "plain",
        "-o",
        "a.png",
    ]));
    let warning = run["warnings"][0].as_str().expect("a warning");
    assert!(
        warning.contains("too long") && warning.len() < 400,
        "{warning}"
    );
}
