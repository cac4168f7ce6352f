use std::{io::Write, path::PathBuf};

use clap::{Subcommand, ValueHint};
use jevons_model::{
    Adapter,
    adapter::{Direction, save_applied},
};
use serde_json::json;

use crate::{human, progress, source};

/// LoRA adapters in the PEFT layout: what one changes, merge it into a model, take it out again
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show which weights an adapter changes, with its ranks and scales
    Info {
        /// Adapter folder (adapter_config.json and adapter_model.safetensors)
        #[arg(value_hint = ValueHint::DirPath)]
        adapter: PathBuf,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Write a model with the adapter merged into its weights; other tools open it without the adapter
    Merge(Apply),
    /// Take a merged adapter out again: exact within one rounding of the format that the weights are stored in
    Unmerge(Apply),
}

#[derive(Debug, clap::Args)]
struct Apply {
    /// Model folder
    #[arg(value_hint = ValueHint::DirPath)]
    model: PathBuf,
    /// Adapter folder
    #[arg(value_hint = ValueHint::DirPath)]
    adapter: PathBuf,
    /// Folder to write; it must not exist
    #[arg(value_hint = ValueHint::DirPath)]
    out: PathBuf,
}

pub fn run(args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    match &args.command {
        Command::Info { adapter, json } => info(&Adapter::open(adapter)?, *json, out),
        Command::Merge(args) => apply(args, Direction::Merge, out),
        Command::Unmerge(args) => apply(args, Direction::Unmerge, out),
    }
}

fn info(adapter: &Adapter, json: bool, out: &mut impl Write) -> anyhow::Result<()> {
    if json {
        let targets: Vec<_> = adapter
            .targets()
            .map(|(name, rank, scale)| json!({ "name": name, "rank": rank, "scale": scale }))
            .collect();
        let report = json!({ "path": adapter.path(), "parameters": adapter.parameters(), "targets": targets });
        return Ok(writeln!(out, "{report:#}")?);
    }
    let n = adapter.targets().len();
    writeln!(
        out,
        "{}: LoRA of {n} weights, {} parameters",
        adapter.path().display(),
        human::count(adapter.parameters())
    )?;
    for (name, rank, scale) in adapter.targets() {
        writeln!(out, "  {name}  rank {rank}, scale {scale}")?;
    }
    Ok(())
}

fn apply(args: &Apply, direction: Direction, out: &mut impl Write) -> anyhow::Result<()> {
    let model = source::Files::open(Some(&args.model))?;
    let adapter = Adapter::open(&args.adapter)?;
    let bar = progress::bar(0, "writing", "tensors");
    save_applied(model.folder()?, &adapter, direction, &args.out, &mut |done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    })?;
    bar.finish_and_clear();
    let what = if direction == Direction::Merge { "merged into" } else { "taken out of" };
    writeln!(out, "{} weights {what} {}: {}", adapter.targets().len(), model.name(), args.out.display())?;
    Ok(())
}
