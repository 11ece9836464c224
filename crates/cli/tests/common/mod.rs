//! The binary in an empty folder, and what every failure must look like.
#![allow(dead_code, reason = "each test file uses a part")]

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use assert_cmd::Command;
use serde_json::Value;
use tempfile::TempDir;

/// A folder to run in, with no models in reach but those that a test names.
pub struct Place {
    dir: TempDir,
}

impl Place {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        Place { dir }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path().join(name)
    }

    /// Writes a file and returns its path.
    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.join(name);
        std::fs::write(&path, bytes).expect("a file in the temporary folder");
        path
    }

    /// The binary, in this folder.
    pub fn command(&self) -> Command {
        let mut command = Command::new(binary());
        command
            .current_dir(self.path())
            .env("HOME", self.path())
            .env_remove("AQUATINT_MODELS")
            .timeout(Duration::from_secs(300));
        command
    }

    pub fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Output {
        self.command()
            .args(args)
            .output()
            .expect("the binary starts")
    }

    /// Runs, expects success, and returns standard output.
    #[track_caller]
    pub fn ok<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> String {
        let output = self.run(args);
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{}\n{out}\n{err}", output.status);
        out
    }

    /// Runs with `--json`, expects one object on standard output and nothing on standard error.
    #[track_caller]
    pub fn json<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Value {
        let output = self.command().args(args).arg("--json").output();
        let output = output.expect("the binary starts");
        assert_eq!(text(&output.stderr), "");
        assert!(output.status.success());
        serde_json::from_slice(&output.stdout).expect("one JSON value")
    }

    /// Names of all that is in the folder, hidden files too.
    pub fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.path()).expect("the temporary folder");
        let mut names: Vec<String> = entries
            .map(|e| e.expect("an entry").file_name().to_string_lossy().into())
            .collect();
        names.sort();
        names
    }

    /// Runs a command that must fail as a failure does, with and without `--json`, and leave the
    /// folder as it is. Returns what it said.
    #[track_caller]
    pub fn refused<S: AsRef<OsStr>>(&self, code: i32, args: impl IntoIterator<Item = S>) -> String {
        let args: Vec<_> = args.into_iter().map(|a| a.as_ref().to_owned()).collect();
        let before = self.names();
        let json = self.command().args(&args).arg("--json").output();
        let said = failure(code, &json.expect("the binary starts"));
        let plain = self.command().args(&args).output();
        let again = failure(code, &plain.expect("the binary starts"));
        assert_eq!(said, again, "{args:?}");
        assert_eq!(self.names(), before, "{args:?} left something behind");
        said
    }
}

pub fn binary() -> &'static str {
    env!("CARGO_BIN_EXE_aquatint")
}

/// Checks what any failure must look like and returns the two lines that tell of it. Lines of
/// progress may stand before them.
#[track_caller]
pub fn failure(code: i32, output: &Output) -> String {
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{out}\n{err}");
    assert_eq!(out, "", "something on standard output");
    assert!(!err.contains("panicked"), "{err}");
    let lines: Vec<&str> = err.lines().collect();
    let at = lines.iter().position(|l| l.starts_with("error: "));
    let told = &lines[at.unwrap_or_else(|| panic!("no error line in {err}"))..];
    assert!(matches!(told.len(), 1 | 2), "more than two lines:\n{err}");
    assert!(
        told.iter().skip(1).all(|l| l.starts_with("hint: ")),
        "{err}"
    );
    assert!(told[0].len() < 1000, "a line of {} bytes", told[0].len());
    told.join("\n")
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// The smallest run of the model inside.
pub const QUICK: [&str; 8] = [
    "generate", "x", "--steps", "2", "--width", "64", "--height", "64",
];

/// `QUICK` and more.
pub fn quick<'a>(more: &[&'a str]) -> Vec<&'a str> {
    QUICK.iter().chain(more).copied().collect()
}

/// A path as an argument.
pub fn arg(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}
