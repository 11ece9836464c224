//! Where pictures cannot be written.

use crate::common::{self, Place, failure, quick, text};
use crate::{FAILURE, USAGE};

#[test]
fn outputs_that_cannot_be_written() {
    let place = Place::new();
    place.write("taken.png", b"mine");
    place.write("file", b"mine");
    std::fs::create_dir(place.join("dir.png")).expect("a folder");
    for (code, output, expected) in [
        (
            FAILURE,
            "nowhere/a.png",
            "the folder nowhere is not there\nhint: make it first: mkdir -p nowhere",
        ),
        (FAILURE, "nowhere/", "the folder nowhere is not there"),
        (FAILURE, "taken.png", "already there\nhint: use --force"),
        (FAILURE, "file/a.png", "file is not a folder"),
        (FAILURE, "/proc/a.png", "/proc"),
        (USAGE, "a.jpg", "ends in .jpg, expected .png"),
        (USAGE, "-", "expected a file or a folder"),
        (USAGE, "", "--output <PATH> is without a value"),
    ] {
        let said = place.refused(code, quick(&["--seed", "1", "-o", output]));
        assert!(said.contains(expected), "{output}: {said}");
    }
    let long = format!("{}.png", "n".repeat(300));
    place.refused(FAILURE, quick(&["-o", &long]));
    assert_eq!(
        std::fs::read(place.join("taken.png")).expect("it is there"),
        b"mine"
    );
}

#[test]
fn previews_that_cannot_be_written() {
    let place = Place::new();
    for (code, preview, expected) in [
        (FAILURE, "nowhere/p.png", "the folder nowhere is not there"),
        (USAGE, "p.jpg", "ends in .jpg, expected .png"),
        (USAGE, "/dev/null", "expected .png"),
        (USAGE, "a.png", "is both the picture and its preview"),
        (FAILURE, "/proc/p.png", "/proc"),
    ] {
        let said = place.refused(code, quick(&["-o", "a.png", "--preview", preview]));
        assert!(said.contains(expected), "{preview}: {said}");
    }
}

#[cfg(unix)]
#[test]
fn what_is_no_file_is_not_replaced_even_with_force() {
    let place = Place::new();
    let pipe = place.join("pipe.png");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    if !made.is_ok_and(|s| s.success()) {
        eprintln!("skipped: no mkfifo here");
        return;
    }
    let said = place.refused(FAILURE, quick(&["-o", "pipe.png", "--force"]));
    assert!(said.contains("is not a file"), "{said}");
    place.refused(FAILURE, quick(&["--preview", "pipe.png"]));
}

/// A full disk: a small file system of its own, mounted where nobody else sees it.
#[test]
fn a_full_disk_leaves_nothing() {
    let place = Place::new();
    let disk = place.join("disk");
    std::fs::create_dir(&disk).expect("a folder");
    let script = format!(
        "mount -t tmpfs -o size=8k tmpfs '{0}' || exit 99; \
         '{1}' generate x --steps 2 --seed 1 --json -o '{0}/a.png'; code=$?; \
         ls -A '{0}' >&2; exit $code",
        disk.display(),
        common::binary()
    );
    let output = std::process::Command::new("unshare")
        .args(["-m", "sh", "-c", &script])
        .output();
    let Ok(output) = output
        .as_ref()
        .map_err(drop)
        .and_then(|o| match o.status.code() {
            Some(99 | 127) | None => Err(()),
            Some(_) if text(&o.stderr).starts_with("unshare:") => Err(()),
            _ => Ok(o),
        })
    else {
        eprintln!("skipped: a file system cannot be mounted here");
        return;
    };
    // A file that is left behind would be a line after the hint.
    let said = failure(FAILURE, output);
    assert!(said.contains("no space is left on the disk"), "{said}");
    assert!(said.contains("nothing was left behind"), "{said}");
}
