//! `jevons`: train, chat with, measure and inspect models of the DeepSeek-R1 kind. One file per command under
//! [`commands`]: it parses, calls one library function, prints.
#![forbid(unsafe_code)]

mod account;
mod args;
mod chart;
mod chat;
mod commands;
mod failure;
mod human;
mod input;
mod interrupt;
mod place;
mod progress;
mod report;
mod source;
mod steps;
mod style;

use std::process::ExitCode;

use clap::Parser;

/// Own a reasoning model: train, chat, measure, inspect. Only `pull` opens a connection.
///
/// Without a command: chat with the built-in model.
#[derive(Debug, Parser)]
#[command(name = "jevons", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Option<commands::Command>,
}

fn main() -> ExitCode {
    let command = Cli::parse().command.unwrap_or_else(commands::Command::chat_with_builtin);
    match command.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failure::report(&error),
    }
}
