//! Ctrl-C, and a request to terminate.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use aquatint_testkit::read_png;

use crate::common::{self, Place, quick};

/// Starts a run of a minute or more and waits until it is denoising.
fn long_run(place: &Place, more: &[&str]) -> Child {
    Command::new(common::binary())
        .current_dir(place.path())
        .env("HOME", place.path())
        .args([
            "generate",
            "x",
            "--steps",
            "1000",
            "--sampler",
            "ddpm",
            "--width",
            "256",
            "--height",
            "256",
        ])
        .args(["-o", "a.png", "--preview", "p.png", "--preview-every", "1"])
        .args(more)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts")
}

fn stop(place: &Place, child: Child, signal: &str) -> (Output, Duration) {
    let start = Instant::now();
    while !place.join("p.png").exists() {
        assert!(start.elapsed() < Duration::from_secs(120), "no first step");
        std::thread::sleep(Duration::from_millis(10));
    }
    let asked = Instant::now();
    let status = Command::new("kill")
        .args([signal, &child.id().to_string()])
        .status();
    assert!(status.expect("kill is there").success());
    (child.wait_with_output().expect("it ends"), asked.elapsed())
}

#[track_caller]
fn stops(signal: &str, more: &[&str]) {
    let place = Place::new();
    let child = long_run(&place, more);
    let (output, took) = stop(&place, child, signal);
    let said = common::failure(130, &output);
    assert_eq!(said, "error: stopped");
    // A step takes some tens of milliseconds; the rest is for busy machines.
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert_eq!(place.names(), ["p.png"]);
}

#[test]
fn ctrl_c_stops_within_a_step_and_leaves_no_file() {
    stops("-INT", &[]);
}

#[test]
fn ctrl_c_is_one_line_under_json() {
    stops("-INT", &["--json"]);
}

#[test]
fn a_request_to_terminate_does_the_same() {
    stops("-TERM", &[]);
}

#[test]
fn pictures_that_are_done_stay() {
    let place = Place::new();
    let child = Command::new(common::binary())
        .current_dir(place.path())
        .env("HOME", place.path())
        .args(quick(&["--count", "100000", "--seed", "1", "-o", "%seed"]))
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let start = Instant::now();
    while !place.join("3.png").exists() && start.elapsed() < Duration::from_secs(120) {
        std::thread::sleep(Duration::from_millis(10));
    }
    let status = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(status.expect("kill is there").success());
    assert_eq!(
        child.wait_with_output().expect("it ends").status.code(),
        Some(130)
    );
    let names = place.names();
    assert!(names.len() >= 3);
    for name in names {
        assert!(
            Path::new(&name).extension().is_some_and(|e| e == "png"),
            "{name}"
        );
        read_png(place.join(&name)).expect("a whole picture");
    }
}
