use std::{io::Write, ops::ControlFlow, path::PathBuf};

use anyhow::{Context, bail};
use jevons_energy::{allocate::SequenceStep, ledger::Phase};
use jevons_infer::Score;
use serde_json::json;

use crate::{
    account::{Account, LedgerArgs},
    args::ComputeArgs,
    input, progress, source,
};

/// Measure how well a model predicts given tokens or text
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Checkpoint folder (config.json and *.safetensors), run folder of `jevons train`, or org/name
    model: PathBuf,
    #[command(flatten)]
    input: Input,
    /// Print the log-probability (natural logarithm) of each next token as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    compute: ComputeArgs,
    #[command(flatten)]
    ledger: LedgerArgs,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Input {
    /// JSON file with a list of token ids, or a list of such lists; - is stdin
    #[arg(long, value_name = "FILE.json")]
    token_ids: Option<PathBuf>,
    /// Text file, or the text itself if there is no such file; - is stdin
    #[arg(long, value_name = "FILE|TEXT", allow_hyphen_values = true)]
    text: Option<String>,
}

pub fn run(args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    args.compute.start_threads()?;
    let files = source::Files::open(Some(&args.model))?;
    let (sequences, bytes) = match &args.input.token_ids {
        Some(path) => (input::token_ids(path)?, None),
        None => {
            let (sequences, bytes) = encode(&files, args.input.text.as_deref().unwrap_or_default())?;
            (sequences, Some(bytes))
        }
    };
    let mut account = Account::open(&args.ledger, "score")?;
    let model = files.model(&args.compute)?;
    account.loaded(&files);
    account.admit_or_stop()?;
    let bar = progress::bar(sequences.len() as u64, "scoring", "sequences");
    let score = jevons_infer::score(&model, &sequences, &mut |done| {
        bar.set_position(done as u64);
        if done < sequences.len() { account.admit() } else { ControlFlow::Continue(()) }
    });
    bar.finish_and_clear();
    if let Some(why) = account.stopped() {
        bail!("stopped by the budget: {why}");
    }
    let score = score?;
    let passes: Vec<_> = sequences.iter().map(|ids| SequenceStep { tokens: ids.len(), context: ids.len() }).collect();
    account.phase_of_request(Phase::Eval, account.steps(&passes));
    let energy = account.end_request();
    let bits_per_byte = bytes.map(|bytes| score.nats() / std::f64::consts::LN_2 / bytes as f64);
    if args.json {
        return print_json(&score, bits_per_byte, out);
    }
    writeln!(out, "{:.6} nats per token over {} tokens", score.loss, score.predicted())?;
    if let (Some(bits), Some(bytes)) = (bits_per_byte, bytes) {
        writeln!(out, "{bits:.6} bits per byte over {bytes} bytes")?;
    }
    if let Some(energy) = energy {
        eprintln!("{}", energy);
    }
    Ok(())
}

/// The text as sequences that fit the context, and how many of its bytes they predict. Nothing predicts the first token,
/// unless the model has one that begins a text.
fn encode(files: &source::Files, text: &str) -> anyhow::Result<(Vec<Vec<u32>>, usize)> {
    let text = input::file_or_text(text)?;
    let tokenizer = files.tokenizer()?.context("--text needs a tokenizer.json beside the model; use --token-ids")?;
    let mut ids = files.begin()?;
    let given = ids.len();
    ids.extend(tokenizer.encode_ordinary(&text)?);
    let unpredicted = if given == 0 { ids.first().map_or(0, |id| tokenizer.byte_len(*id)) } else { 0 };
    let context = files.config()?.max_position_embeddings.max(2);
    Ok((jevons_infer::windows(&ids, context), text.len() - unpredicted))
}

fn print_json(score: &Score, bits_per_byte: Option<f64>, out: &mut impl Write) -> anyhow::Result<()> {
    let sequences: Vec<_> = score.logprobs.iter().map(|l| json!({ "logprobs": l })).collect();
    let mut report = json!({ "loss": score.loss, "sequences": sequences });
    if let Some(bits) = bits_per_byte {
        report["bits_per_byte"] = bits.into();
    }
    serde_json::to_writer(&mut *out, &report)?;
    Ok(writeln!(out)?)
}
