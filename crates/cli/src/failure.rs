//! How the program fails: one line, a hint, an exit code.

use aquatint_engine::EngineError;

/// Exit code of a wrong command line.
pub const USAGE: u8 = 2;
/// Exit code of a failure.
pub const FAILURE: u8 = 1;
/// Exit code after Ctrl-C, as shells expect it.
pub const INTERRUPTED: u8 = 130;

/// Why the program ends early.
#[derive(Debug)]
pub struct Failure {
    message: String,
    hint: Option<String>,
    code: u8,
}

impl Failure {
    /// A failure of the machine or of a file.
    pub fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        let hint = hint.into();
        Failure {
            message: message.into(),
            hint: (!hint.is_empty()).then_some(hint),
            code: FAILURE,
        }
    }

    /// A wrong command line.
    pub fn usage(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Failure {
            code: USAGE,
            ..Failure::new(message, hint)
        }
    }

    /// An end that the user asked for.
    pub fn interrupted(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Failure {
            code: INTERRUPTED,
            ..Failure::new(message, hint)
        }
    }

    /// The same failure, of a file that asks for it and not of the command line.
    pub fn of_file(self, path: &std::path::Path) -> Self {
        Failure {
            message: format!("{}: {}", path.display(), self.message),
            code: if self.code == USAGE {
                FAILURE
            } else {
                self.code
            },
            ..self
        }
    }

    /// The exit code.
    pub fn code(&self) -> u8 {
        self.code
    }

    /// Prints the failure to standard error: one line, and one for the hint.
    pub fn print(&self) {
        use std::io::Write;
        let mut err = std::io::stderr().lock();
        // Nobody is left to tell when standard error is closed.
        let _ = writeln!(err, "error: {}", one_line(&self.message));
        if let Some(hint) = &self.hint {
            let _ = writeln!(err, "hint: {}", one_line(hint));
        }
    }
}

/// A name in a file or on the command line may hold anything; a terminal sees none of it raw.
fn one_line(text: &str) -> String {
    let parts = text.split(['\n', '\r']).map(str::trim);
    let line = parts
        .filter(|p| !p.is_empty())
        .collect::<Vec<_>>()
        .join(" ");
    line.replace(char::is_control, "\u{fffd}")
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        let code = match &error {
            EngineError::Cancelled => INTERRUPTED,
            e if e.is_usage() => USAGE,
            _ => FAILURE,
        };
        Failure {
            message: error.to_string(),
            hint: error.hint(),
            code,
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Failure::new(error.to_string(), "")
    }
}
