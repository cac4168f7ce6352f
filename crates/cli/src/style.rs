//! What is written to a person's terminal, and in which colours.

use std::{env, io::IsTerminal};

use owo_colors::Style;

/// How the parts of a chat look.
#[derive(Clone, Copy, Debug)]
pub struct Theme {
    /// Whether the output is a terminal.
    pub terminal: bool,
    /// Whether colours are wanted there; without them every style is empty.
    pub colored: bool,
    /// Thinking, statistics, notices.
    pub dim: Style,
    /// Headers.
    pub header: Style,
    /// The word before an error.
    pub error: Style,
    /// The word before a warning.
    pub warning: Style,
}

impl Theme {
    /// For stdout or stderr. `NO_COLOR` (<https://no-color.org>) and `TERM=dumb` turn colours off.
    pub fn of(stream: &impl IsTerminal) -> Self {
        let unwanted =
            env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty()) || env::var_os("TERM").is_some_and(|v| v == "dumb");
        match (stream.is_terminal(), unwanted) {
            (false, _) => Self::plain(),
            (true, true) => Self { terminal: true, ..Self::plain() },
            (true, false) => Self::colored(),
        }
    }

    /// For files and pipes.
    pub fn plain() -> Self {
        Self {
            terminal: false,
            colored: false,
            dim: Style::new(),
            header: Style::new(),
            error: Style::new(),
            warning: Style::new(),
        }
    }

    /// For a terminal with colours.
    pub fn colored() -> Self {
        Self {
            terminal: true,
            colored: true,
            dim: Style::new().dimmed(),
            header: Style::new().cyan(),
            error: Style::new().red(),
            warning: Style::new().yellow(),
        }
    }
}
