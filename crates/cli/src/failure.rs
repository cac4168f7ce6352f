//! How a failure is told: on stderr, cause by cause, and as an exit code.

use std::{fmt, io, process::ExitCode};

/// Exit code of a failure; wrong arguments exit with 2.
const FAILED: u8 = 1;
/// As shells report a program stopped by Ctrl-C.
const INTERRUPTED: u8 = 130;

/// The work was stopped by Ctrl-C; everything there is to say has been said.
#[derive(Debug)]
pub struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// A program that was run ended with this exit code, and has said why itself.
#[derive(Debug)]
pub struct ExitWith(pub u8);

impl fmt::Display for ExitWith {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the program ended with exit code {}", self.0)
    }
}

impl std::error::Error for ExitWith {}

/// Prints `error` and the errors below it, leaving out a cause that the message above it tells already.
pub fn report(error: &anyhow::Error) -> ExitCode {
    // The reader of a pipe (`jevons score … | head`) has gone: that is not an error of ours.
    if error.chain().filter_map(|e| e.downcast_ref::<io::Error>()).any(|e| e.kind() == io::ErrorKind::BrokenPipe) {
        return ExitCode::SUCCESS;
    }
    if let Some(ExitWith(code)) = error.downcast_ref() {
        return ExitCode::from(*code);
    }
    let mut said = String::new();
    for (level, cause) in error.chain().enumerate() {
        let text = cause.to_string();
        if level == 0 {
            eprintln!("error: {text}");
        } else if !said.contains(&text) {
            eprintln!("  caused by: {text}");
        }
        said.push_str(&text);
    }
    ExitCode::from(if error.is::<Interrupted>() { INTERRUPTED } else { FAILED })
}
