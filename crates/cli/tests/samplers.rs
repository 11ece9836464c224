//! `aquatint samplers`, help, and completions.

mod common;

use std::process::{Command, Stdio};

use common::{Place, binary, text};

#[test]
fn every_sampler_and_schedule_is_listed_and_can_be_asked_for() {
    let place = Place::new();
    let table = place.json(["samplers"]);
    let plain = place.ok(["samplers"]);
    let names = |key: &str| -> Vec<String> {
        let rows = table[key].as_array().expect("a list");
        rows.iter()
            .map(|r| r["name"].as_str().expect("a name").to_owned())
            .collect()
    };
    let (samplers, schedules) = (names("samplers"), names("schedules"));
    assert!(samplers.len() >= 24, "{samplers:?}");
    assert!(schedules.len() >= 12, "{schedules:?}");
    for name in samplers.iter().chain(&schedules) {
        assert!(plain.contains(&format!("  {name} ")), "{name}");
    }
}

#[test]
fn help_fits_into_80_columns() {
    let place = Place::new();
    for args in [
        &["--help"][..],
        &["generate", "--help"],
        &["generate", "-h"],
        &["models", "--help"],
        &["inspect", "--help"],
        &["samplers", "--help"],
        &["completions", "--help"],
        &["bench", "--help"],
        &["bench", "ops", "--help"],
        &["bench", "model", "--help"],
    ] {
        for columns in ["80", "200"] {
            let output = place.command().env("COLUMNS", columns).args(args).output();
            let help = text(&output.expect("the binary starts").stdout);
            for line in help.lines() {
                assert!(line.chars().count() <= 80, "{args:?}: {line}");
            }
            assert!(help.contains("Usage: aquatint"), "{args:?}");
            assert!(help.ends_with('\n'), "{args:?}");
        }
    }
}

#[test]
fn samplers_fit_a_wide_terminal() {
    let listing = Place::new().ok(["samplers"]);
    for line in listing.lines() {
        assert!(line.chars().count() <= 160, "{line}");
    }
}

#[test]
fn every_option_of_generate_is_explained() {
    let help = Place::new().ok(["generate", "--help"]);
    for option in [
        "--model",
        "--negative",
        "--width",
        "--height",
        "--steps",
        "--guidance",
        "--sampler",
        "--schedule",
        "--seed",
        "--rng",
        "--count",
        "--batch",
        "--clip-skip",
        "--eta",
        "--guidance-rescale",
        "--vae-tiling",
        "--dtype",
        "--threads",
        "--output",
        "--force",
        "--json",
        "--verbose",
        "--from",
        "--preview",
        "--taesd",
        "--vae",
        "--text-encoder",
        "--prompt-syntax",
    ] {
        assert!(help.contains(option), "{option}");
    }
}

#[test]
fn completions_name_commands_and_options() {
    let place = Place::new();
    for (shell, sign) in [
        ("bash", "complete -F _aquatint"),
        ("zsh", "#compdef aquatint"),
        ("fish", "complete -c aquatint"),
    ] {
        let script = place.ok(["completions", shell]);
        for word in [sign, "generate", "clip-skip", "samplers"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
}

#[test]
fn the_bash_completion_completes() {
    let place = Place::new();
    let script = place.write("a.bash", place.ok(["completions", "bash"]));
    let program = format!(
        "source {}; COMP_WORDS=(aquatint generate --clip); COMP_CWORD=2; \
         _aquatint aquatint --clip generate; echo \"${{COMPREPLY[@]}}\"",
        script.display()
    );
    let Ok(output) = Command::new("bash").args(["-c", &program]).output() else {
        eprintln!("skipped: no bash here");
        return;
    };
    assert_eq!(text(&output.stdout).trim(), "--clip-skip");
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    for args in [
        &["samplers"][..],
        &["completions", "zsh"],
        &["generate", "--help"],
    ] {
        let mut child = Command::new(binary())
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        drop(child.stdout.take());
        let output = child.wait_with_output().expect("it ends");
        assert_eq!(text(&output.stderr), "", "{args:?}");
        assert_eq!(output.status.code(), Some(0), "{args:?}");
    }
}

#[test]
fn a_full_device_as_standard_output_is_a_failure() {
    let Ok(full) = std::fs::File::options().write(true).open("/dev/full") else {
        eprintln!("skipped: no /dev/full here");
        return;
    };
    let output = Command::new(binary()).arg("samplers").stdout(full).output();
    let said = common::failure(1, &output.expect("the binary starts"));
    assert!(said.contains("standard output"), "{said}");
}
