use std::{
    io::{self, IsTerminal, Write},
    ops::ControlFlow,
    path::PathBuf,
};

use anyhow::{Context, bail};
use jevons_infer::{Event, GenerateOptions, Generation, Request, Session, check_sequence, generate_batch};
use jevons_model::Model;
use jevons_text::Tokenizer;
use serde_json::json;

use crate::{
    account::{Account, LedgerArgs, Spent},
    args::{ComputeArgs, SamplingArgs},
    human, input, source,
    steps::Steps,
};

/// Continue a prompt, or lists of token ids
///
/// The prompt is continued as it stands, without a chat template; `jevons chat --prompt` uses the template. Without
/// sampling flags the most likely token is taken (temperature 0).
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Checkpoint folder (config.json and *.safetensors), run folder of `jevons train`, or org/name
    model: PathBuf,
    /// Text to continue [default: read from stdin]
    #[arg(conflicts_with = "token_ids")]
    prompt: Option<String>,
    /// JSON file with a list of token ids, or a list of such lists, instead of a prompt; - is stdin
    #[arg(long, value_name = "FILE.json")]
    token_ids: Option<PathBuf>,
    /// Stop after this many new tokens; the model's context may end it earlier
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_new_tokens: usize,
    /// Stop before this text; may be given several times
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    stop: Vec<String>,
    /// Go on after the model's end-of-text token
    #[arg(long)]
    ignore_eos: bool,
    /// Print the new tokens as JSON when all are there
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    compute: ComputeArgs,
    #[command(flatten)]
    ledger: LedgerArgs,
}

/// Sequences decoded together. Bounds memory; changes no token.
const BATCH: usize = 16;

pub fn run(args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    args.compute.start_threads()?;
    let files = source::Files::open(Some(&args.model))?;
    let tokenizer = files.tokenizer()?;
    let prompts = match &args.token_ids {
        Some(path) => input::token_ids(path)?,
        None => vec![encode_prompt(args, &files, tokenizer.as_ref())?],
    };
    let config = files.config()?;
    for (index, prompt) in prompts.iter().enumerate() {
        check_sequence(&config, prompt).with_context(|| match &args.token_ids {
            Some(path) => format!("{}: sequence {index} cannot be continued", path.display()),
            None => "the prompt cannot be continued".into(),
        })?;
    }
    let options = GenerateOptions {
        max_new_tokens: args.max_new_tokens,
        sampling: args.sampling.over(Default::default()),
        stop_strings: args.stop.clone(),
        eos_token_ids: if args.ignore_eos { vec![] } else { files.eos_token_ids()? },
        ..Default::default()
    };
    let mut account = Account::open(&args.ledger, "generate")?;
    let model = files.model(&args.compute)?;
    account.loaded(&files);
    account.admit_or_stop()?;
    let stream = !args.json && prompts.len() == 1 && tokenizer.is_some();
    let generations = generate(&model, &prompts, &options, tokenizer.as_ref(), stream, &mut account, out)?;
    let spent = Spent::of_window(&account.close());
    print(args, &generations, tokenizer.is_some(), stream, &spent, out)?;
    match account.stopped() {
        Some(why) => bail!("stopped by the budget after {} of {} sequences: {why}", generations.len(), prompts.len()),
        None => Ok(()),
    }
}

fn print(
    args: &Args,
    generations: &[Generation],
    tokenizer: bool,
    stream: bool,
    spent: &Spent,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    if args.json {
        return print_json(generations, spent, out);
    }
    match tokenizer {
        true if stream => {
            writeln!(out)?;
            eprintln!("{}", human::speeds(&generations[0]));
        }
        true => {
            for (index, generation) in generations.iter().enumerate() {
                writeln!(out, "--- {index}\n{}", generation.text)?;
            }
        }
        false => {
            for generation in generations {
                writeln!(out, "{}", serde_json::to_string(&generation.token_ids)?)?;
            }
        }
    }
    eprintln!("{spent}, loading included");
    Ok(())
}

fn encode_prompt(args: &Args, files: &source::Files, tokenizer: Option<&Tokenizer>) -> anyhow::Result<Vec<u32>> {
    let Some(tokenizer) = tokenizer else {
        bail!("{}: a prompt needs a tokenizer.json beside the model; use --token-ids", args.model.display());
    };
    let prompt = match &args.prompt {
        Some(prompt) => prompt.clone(),
        None if io::stdin().is_terminal() => bail!("no prompt; give it as an argument or through a pipe"),
        None => input::stdin()?,
    };
    files.encode(tokenizer, &prompt)
}

fn generate(
    model: &Model,
    prompts: &[Vec<u32>],
    options: &GenerateOptions,
    tokenizer: Option<&Tokenizer>,
    stream: bool,
    account: &mut Account,
    out: &mut impl Write,
) -> anyhow::Result<Vec<Generation>> {
    let mut generations = Vec::with_capacity(prompts.len());
    let mut written = Ok(());
    for (batch, prompts) in prompts.chunks(BATCH).enumerate() {
        let mut sessions: Vec<_> = prompts.iter().map(|_| Session::new(model)).collect();
        let request = |(i, (prompt, session))| Request { prompt, options, choice: (batch * BATCH + i) as u64, session };
        let requests = prompts.iter().map(Vec::as_slice).zip(&mut sessions).enumerate().map(request).collect();
        let mut steps = Steps::new(prompts.len());
        let results = generate_batch(model, requests, tokenizer, &mut |index, event| {
            steps.see(index, &event, account);
            if let (true, Event::Text(text)) = (stream, event) {
                written = write!(out, "{text}").and_then(|()| out.flush());
            }
            if written.is_ok() { account.admit() } else { ControlFlow::Break(()) }
        });
        for (i, result) in results.into_iter().enumerate() {
            generations.push(result.with_context(|| format!("sequence {}", batch * BATCH + i))?);
        }
        std::mem::replace(&mut written, Ok(()))?;
        steps.end(account);
        if account.stopped().is_some() {
            break;
        }
    }
    Ok(generations)
}

fn print_json(generations: &[Generation], spent: &Spent, out: &mut impl Write) -> anyhow::Result<()> {
    let sequence = |g: &Generation| {
        json!({
            "token_ids": g.token_ids,
            "text": g.text,
            "logprobs": g.logprobs,
            "finish_reason": g.finish_reason.as_str(),
            "prompt_tokens": g.prompt_tokens,
            "prefill_tokens_per_s": g.prefill_tokens_per_s(),
            "decode_tokens_per_s": g.decode_tokens_per_s(),
        })
    };
    let sequences: Vec<_> = generations.iter().map(sequence).collect();
    serde_json::to_writer(&mut *out, &json!({ "sequences": sequences, "energy": spent.json() }))?;
    Ok(writeln!(out)?)
}
