//! Runs that end early: killed outright, asked to stop, out of disk.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::common::{self, Place, text};
use super::{learned, logged, points};

const STEPS: u64 = 1200;

fn start(place: &Place, more: &[&str]) -> Child {
    Command::new(common::binary())
        .current_dir(place.path())
        .env("HOME", place.path())
        .args(["train", "diffusion", "points.toml", "--threads", "1"])
        .args(["--checkpoint-every", "50", "--checkpoint-minutes", "0"])
        .args(more)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts")
}

/// Steps of the newest checkpoint of a run.
fn newest(place: &Place, out: &str) -> u64 {
    let Ok(entries) = std::fs::read_dir(place.join(out).join("checkpoints")) else {
        return 0;
    };
    let names = entries.flatten().map(|e| e.file_name());
    let steps = names.filter_map(|n| n.to_str()?.strip_prefix("step-")?.parse().ok());
    steps.max().unwrap_or(0)
}

/// Waits until a checkpoint of a step after `step` is there.
#[track_caller]
fn wait_beyond(place: &Place, out: &str, step: u64) -> u64 {
    let start = Instant::now();
    loop {
        let found = newest(place, out);
        if found > step {
            return found;
        }
        assert!(
            start.elapsed() < Duration::from_secs(120),
            "no checkpoint after step {step}"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_run_that_is_killed_again_and_again_ends_with_the_same_bits() {
    let place = Place::new();
    points(&place, STEPS);
    let whole = start(&place, &["--out", "whole"]).wait_with_output();
    let whole = whole.expect("it ends");
    assert!(whole.status.success(), "{}", text(&whole.stderr));

    let mut reached = 0;
    for round in 0..3_u64 {
        let mut child = start(&place, &["--out", "parts", "--resume"]);
        reached = wait_beyond(&place, "parts", reached);
        // Somewhere between this checkpoint and the next, or in the writing of it.
        std::thread::sleep(Duration::from_millis(17 * round));
        child.kill().expect("it runs");
        let status = child.wait().expect("it ends");
        assert_eq!(status.code(), None, "killed, not ended by itself");
        assert!(reached < STEPS, "the run was over before it was killed");
    }
    let last = start(&place, &["--out", "parts", "--resume"]).wait_with_output();
    let last = last.expect("it ends");
    let said = text(&last.stderr);
    assert!(last.status.success(), "{said}");
    assert!(said.contains("going on after step "), "{said}");
    assert!(
        learned(&place.join("whole"), STEPS) == learned(&place.join("parts"), STEPS),
        "other weights after it was killed"
    );
    let every: Vec<u64> = (1..=STEPS).collect();
    assert_eq!(logged(&place.join("parts")), every);
}

#[test]
fn a_run_that_is_asked_to_stop_saves_its_state() {
    let place = Place::new();
    points(&place, STEPS);
    for signal in ["-INT", "-TERM"] {
        let child = start(&place, &["--out", "run", "--resume"]);
        wait_beyond(&place, "run", newest(&place, "run"));
        let status = Command::new("kill")
            .args([signal, &child.id().to_string()])
            .status();
        assert!(status.expect("kill is there").success());
        let output = child.wait_with_output().expect("it ends");
        let said = common::failure(130, &output);
        assert!(
            said.contains("stopped; the state is saved") && said.contains("--resume"),
            "{said}"
        );
        // The step it was at, whatever --checkpoint-every says.
        let logged = logged(&place.join("run"));
        assert_eq!(logged.last(), Some(&newest(&place, "run")), "{signal}");
    }
}

/// A small file system of its own, mounted where nobody else sees it, which a filler takes most of until the run has
/// said that it waits.
#[test]
fn a_full_disk_pauses_the_run_and_says_so() {
    let place = Place::new();
    points(&place, 300);
    let disk = place.join("disk");
    std::fs::create_dir(&disk).expect("a folder");
    let script = format!(
        "mount -t tmpfs -o size=900k tmpfs '{disk}' || exit 99; \
         head -c 614400 /dev/zero > '{disk}/filler'; \
         '{binary}' train diffusion points.toml --out '{disk}/run' --threads 1 --checkpoint-every 100 \
             --checkpoint-minutes 0 2> said & run=$!; \
         for i in $(seq 600); do \
             grep -q 'the disk is full' said && break; kill -0 $run || break; sleep 0.1; done; \
         rm '{disk}/filler'; wait $run; code=$?; cp -r '{disk}/run' run; exit $code",
        disk = disk.display(),
        binary = common::binary()
    );
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", &script])
        .current_dir(place.path())
        .env("HOME", place.path())
        .output();
    let output = match output {
        Ok(o) if !matches!(o.status.code(), Some(99 | 127) | None) => o,
        _ => {
            eprintln!("skipped: a file system cannot be mounted here");
            return;
        }
    };
    if text(&output.stderr).starts_with("unshare:") {
        eprintln!("skipped: a file system cannot be mounted here");
        return;
    }
    let said = std::fs::read_to_string(place.join("said")).expect("what it said");
    assert!(output.status.success(), "{said}\n{}", text(&output.stderr));
    assert!(
        said.contains("the disk is full, waiting for room (Ctrl-C ends the run): "),
        "{said}"
    );
    assert!(!said.contains("error: "), "{said}");
    // Nothing is lost, nothing is torn, and the weights are those of a run that had room.
    let every: Vec<u64> = (1..=300).collect();
    assert_eq!(logged(&place.join("run")), every);
    place.ok([
        "train",
        "diffusion",
        "points.toml",
        "--out",
        "room",
        "--threads",
        "1",
        "--quiet",
    ]);
    assert!(learned(&place.join("run"), 300) == learned(&place.join("room"), 300));
}
