//! The commands.

mod adapter;
mod bench;
mod chat;
mod completions;
mod convert;
mod doctor;
mod generate;
mod info;
mod list;
mod man;
mod meter;
mod plan;
mod pull;
mod rebound;
mod rm;
mod score;
mod show;
mod tokenizer;
mod train;

use std::io;

use clap::Subcommand;

/// One variant per file of this folder.
#[derive(Debug, Subcommand)]
pub enum Command {
    Chat(chat::Args),
    Pull(pull::Args),
    List(list::Args),
    Show(show::Args),
    Rm(rm::Args),
    Generate(generate::Args),
    Score(score::Args),
    Info(info::Args),
    Doctor(doctor::Args),
    Bench(bench::Args),
    Train(train::Args),
    Meter(meter::Args),
    Plan(Box<plan::Args>),
    Rebound(rebound::Args),
    Tokenizer(tokenizer::Args),
    Convert(convert::Args),
    Adapter(adapter::Args),
    Completions(completions::Args),
    Man(man::Args),
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
            Self::Pull(args) => pull::run(args, out),
            Self::List(args) => list::run(args, out),
            Self::Show(args) => show::run(args, out),
            Self::Rm(args) => rm::run(args, out),
            Self::Generate(args) => generate::run(args, out),
            Self::Score(args) => score::run(args, out),
            Self::Info(args) => info::run(args, out),
            Self::Doctor(args) => doctor::run(args, out),
            Self::Bench(args) => bench::run(args, out),
            Self::Train(args) => train::run(args, out),
            Self::Meter(args) => meter::run(args, out),
            Self::Plan(args) => plan::run(args, out),
            Self::Rebound(args) => rebound::run(args, out),
            Self::Tokenizer(args) => tokenizer::run(args, out),
            Self::Convert(args) => convert::run(args, out),
            Self::Adapter(args) => adapter::run(args, out),
            Self::Completions(args) => completions::run(args, out),
            Self::Man(args) => man::run(args, out),
        }
    }
}
