//! The commands.

mod adapter;
mod chat;
mod completions;
mod generate;
mod info;
mod plan;
mod score;
mod tokenizer;
mod train;

use std::io;

use clap::Subcommand;

/// One variant per file of this folder.
#[derive(Debug, Subcommand)]
pub enum Command {
    Chat(chat::Args),
    Generate(generate::Args),
    Score(score::Args),
    Info(info::Args),
    Plan(plan::Args),
    Train(train::Args),
    Tokenizer(tokenizer::Args),
    Adapter(adapter::Args),
    Completions(completions::Args),
}

impl Command {
    /// What `jevons` alone means.
    pub fn chat_with_builtin() -> Self {
        Self::Chat(chat::Args::default())
    }

    /// Results go to stdout, progress and notices to stderr.
    pub fn run(&self) -> anyhow::Result<()> {
        let out = &mut io::stdout();
        match self {
            Self::Chat(args) => chat::run(args, out),
            Self::Generate(args) => generate::run(args, out),
            Self::Score(args) => score::run(args, out),
            Self::Info(args) => info::run(args, out),
            Self::Plan(args) => plan::run(args, out),
            Self::Train(args) => train::run(args, out),
            Self::Tokenizer(args) => tokenizer::run(args, out),
            Self::Adapter(args) => adapter::run(args, out),
            Self::Completions(args) => completions::run(args, out),
        }
    }
}
