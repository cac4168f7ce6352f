use std::{
    fs,
    io::Write,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::{Context, bail};
use clap::ValueEnum;
use jevons_model::{
    config::ScaleFormat,
    convert::{self, ConvertError, Options, Progress, Summary, Target},
};
use jevons_text::{Tokenizer, llama2c_tokenizer};
use serde_json::json;

use crate::{failure::Interrupted, human, progress, source};

/// A tokenizer file has at most a few MB.
const MAX_TOKENIZER_BYTES: u64 = 64 << 20;

/// Convert a checkpoint: formats of the weights, shards, layers of multi-token prediction
///
/// Memory stays small whatever the checkpoint's size. Tensors whose format stays are copied byte by byte. The new folder appears
/// whole or not at all; Ctrl-C keeps what is done, and the same command goes on from there.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Checkpoint folder, run folder, or with --from another program's model file
    source: PathBuf,
    /// Folder to be made
    target: PathBuf,
    /// Format of the weights; fp8 is E4M3 in blocks of 128 × 128, as DeepSeek publishes [default: as they are]
    #[arg(long, value_enum, value_name = "FORMAT")]
    to: Option<To>,
    /// Scales of --to fp8: any number, or powers of two [default: the source's if it is FP8, else f32]
    #[arg(long, value_enum, value_name = "KIND")]
    scale: Option<Scale>,
    /// Largest weight file, e.g. 500MB or 2GiB
    #[arg(long, value_name = "SIZE", default_value = "5GB", value_parser = size)]
    shard_size: u64,
    /// Layers of multi-token prediction
    #[arg(long, value_enum, default_value_t = Mtp::Keep)]
    mtp: Mtp,
    /// The source is a model file of another program: llama2c (llama2.c, version 0)
    #[arg(long, value_enum, value_name = "PROGRAM", conflicts_with = "mtp")]
    from: Option<From>,
    /// Its tokenizer file (tokenizer.bin)
    #[arg(long, value_name = "FILE", requires = "from")]
    tokenizer: Option<PathBuf>,
    /// Replace the target if it is a model folder
    #[arg(long)]
    force: bool,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum To {
    F32,
    Bf16,
    Fp8,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Scale {
    F32,
    Ue8m0,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mtp {
    Keep,
    Drop,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum From {
    Llama2c,
}

pub fn run(args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    if args.scale.is_some() && args.to != Some(To::Fp8) {
        bail!("--scale is of FP8 weights: give --to fp8 too");
    }
    let options = Options {
        to: args.to.map(|to| match to {
            To::F32 => Target::F32,
            To::Bf16 => Target::Bf16,
            To::Fp8 => Target::Fp8,
        }),
        scale: args.scale.map(|scale| match scale {
            Scale::F32 => ScaleFormat::F32,
            Scale::Ue8m0 => ScaleFormat::Ue8m0,
        }),
        shard_bytes: args.shard_size,
        drop_mtp: args.mtp == Mtp::Drop,
        replace: args.force,
    };
    let stop = Arc::new(AtomicBool::new(false));
    let asked = stop.clone();
    ctrlc::set_handler(move || {
        if asked.swap(true, Ordering::Relaxed) {
            std::process::exit(130); // asked twice: leave at once, whole files stay whole
        }
    })
    .context("cannot watch for Ctrl-C")?;
    let mut bar = None;
    let mut watch = |progress: Progress| {
        bar.get_or_insert_with(|| progress::bytes_bar(progress.total_bytes, "converting"))
            .set_position(progress.done_bytes);
        if stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let result = match args.from {
        None => match source::Files::open(Some(&args.source))? {
            source::Files::Folder(folder) => convert::convert(&folder, &args.target, &options, &mut watch),
            source::Files::BuiltIn(_) => bail!("the built-in model is no folder"),
        },
        Some(From::Llama2c) => {
            let side_files = args.tokenizer.as_deref().map(tokenizer).transpose()?.unwrap_or_default();
            convert::import_llama2c(&args.source, side_files, &args.target, &options, &mut watch)
        }
    };
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    match result {
        Ok(summary) => report(&summary, args, out),
        Err(error @ ConvertError::Interrupted { .. }) => {
            Err(anyhow::Error::new(Interrupted).context(error.to_string()))
        }
        Err(error) => Err(error.into()),
    }
}

/// The files that make a tokenizer of llama2.c's.
fn tokenizer(path: &Path) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let unreadable = || format!("{}: cannot read the tokenizer", path.display());
    if fs::metadata(path).with_context(unreadable)?.len() > MAX_TOKENIZER_BYTES {
        bail!(
            "{}: larger than any tokenizer of llama2.c, expected at most {MAX_TOKENIZER_BYTES} bytes",
            path.display()
        );
    }
    let bytes = fs::read(path).with_context(unreadable)?;
    let (tokenizer, config) = llama2c_tokenizer(&bytes, &path.display().to_string())?;
    Tokenizer::from_bytes(tokenizer.as_bytes())?;
    Ok(vec![("tokenizer.json".into(), tokenizer.into_bytes()), ("tokenizer_config.json".into(), config.into_bytes())])
}

fn report(s: &Summary, args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    if args.json {
        let mut report = serde_json::to_value(s)?;
        report["source"] = json!(args.source);
        report["target"] = json!(args.target);
        serde_json::to_writer_pretty(&mut *out, &report)?;
        return Ok(writeln!(out)?);
    }
    let formats: Vec<String> = s.formats.iter().map(|(format, n)| format!("{n} {format}")).collect();
    let files = if s.files.len() == 1 { "1 file".into() } else { format!("{} files", s.files.len()) };
    writeln!(
        out,
        "{}: {} in {files}, from {}; {} tensors ({})",
        args.target.display(),
        human::bytes(s.bytes),
        human::bytes(s.source_bytes),
        s.tensors,
        formats.join(", ")
    )?;
    let mut list = |what: &str, names: &[String]| match names {
        [] => Ok(()),
        names => writeln!(out, "{what}: {}", names.join(", ")),
    };
    list("changed in config.json", &s.config_keys.iter().map(|key| key.to_string()).collect::<Vec<_>>())?;
    list("beside the weights", &s.side_files)?;
    list("left out (code, other weights, folders)", &s.left_out)?;
    if s.dropped_tensors > 0 {
        writeln!(out, "dropped: {} tensors of multi-token prediction", s.dropped_tensors)?;
    }
    if s.resumed_files > 0 {
        writeln!(out, "{} of the files were there from an interrupted run", s.resumed_files)?;
    }
    Ok(())
}

/// Bytes, in powers of ten or of 1024.
fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match text[digits.len()..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        _ => 0,
    };
    let bytes = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(unit)).filter(|n| *n > 0);
    bytes.ok_or_else(|| "expected a whole number of bytes, such as 500MB, 2GiB or 1000000".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_units() {
        assert_eq!(
            ["1", "5GB", "2 GiB", "500mb", "3KiB"].map(|t| size(t).unwrap()),
            [1, 5_000_000_000, 2 << 30, 500_000_000, 3072]
        );
        for bad in ["", "0", "GB", "-1", "1.5GB", "5XB", "99999999999TB", "é", "1é"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }
}
