use std::{
    fs,
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use clap::ValueEnum;
use jevons_text::{BpeOptions, DigitSplit, Style, Tokenizer, Vocabulary, house, train_bpe};

use crate::{input, source};

/// Train a tokenizer, or turn text into token ids and back
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Train(TrainArgs),
    Convert(ConvertArgs),
    Encode(EncodeArgs),
    Decode(DecodeArgs),
}

/// Train a byte-level BPE on texts
///
/// The same files in the same order give the same tokenizer, byte for byte. Writes tokenizer.json, and a
/// tokenizer_config.json with the chat template of the models that `jevons` trains.
#[derive(Debug, clap::Args)]
struct TrainArgs {
    /// Text files (UTF-8)
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Folder to write to; it must not have a tokenizer yet
    #[arg(long, short, value_name = "FOLDER")]
    output: PathBuf,
    /// Tokens, the 256 bytes and the special tokens included
    #[arg(long, value_name = "N")]
    vocab_size: usize,
    /// How runs of digits are split: single digits are easiest to calculate with
    #[arg(long, value_enum, default_value_t = Digits::Single)]
    digits: Digits,
    /// Do not merge pairs seen less often
    #[arg(long, value_name = "N", default_value_t = 2)]
    min_frequency: u64,
    /// Longest context of the model, for tokenizer_config.json
    #[arg(long, value_name = "N", default_value_t = 4096)]
    model_max_length: usize,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Digits {
    Single,
    UpToThree,
}

/// Make a tokenizer.json of a .tiktoken or .gguf vocabulary
///
/// A .tiktoken file has tokens and ranks only: --like says how words are cut and which tokens are added. A GGUF says both
/// itself; its weights are not read.
#[derive(Debug, clap::Args)]
struct ConvertArgs {
    /// X.tiktoken or X.gguf
    file: PathBuf,
    /// Model whose tokenizer it is (needed for .tiktoken)
    #[arg(long, value_enum)]
    like: Option<Like>,
    /// tokenizer_config.json to take special tokens from, besides or instead of those that the model usually has
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// File to write; it must not exist yet
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Like {
    #[value(name = "deepseek-v3")]
    DeepSeekV3,
    #[value(name = "deepseek-r1")]
    DeepSeekR1,
    #[value(name = "qwen2")]
    Qwen2,
    #[value(name = "kimi-k2")]
    KimiK2,
}

/// Print the token ids of a text as JSON
#[derive(Debug, clap::Args)]
struct EncodeArgs {
    /// tokenizer.json, a folder with one, or org/name
    tokenizer: PathBuf,
    /// The text [default: read from stdin]
    #[arg(allow_hyphen_values = true)]
    text: Option<String>,
    /// Take special tokens named in the text as such, instead of as text
    #[arg(long)]
    special: bool,
    /// Encode each line by itself, without its end: a list of lists
    #[arg(long)]
    lines: bool,
}

/// Print the text of token ids
#[derive(Debug, clap::Args)]
struct DecodeArgs {
    /// tokenizer.json, a folder with one, or org/name
    tokenizer: PathBuf,
    /// JSON list of token ids, or a list of such lists [default: read from stdin]
    ids: Option<String>,
    /// Leave special tokens out
    #[arg(long)]
    skip_special: bool,
}

pub fn run(args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    match &args.command {
        Command::Train(args) => train(args, out),
        Command::Convert(args) => convert(args, out),
        Command::Encode(args) => encode(args, out),
        Command::Decode(args) => decode(args, out),
    }
}

fn train(args: &TrainArgs, out: &mut impl Write) -> anyhow::Result<()> {
    let path = args.output.join("tokenizer.json");
    if path.exists() {
        bail!("{}: exists already; choose another folder or move it away", path.display());
    }
    let options = BpeOptions {
        vocab_size: args.vocab_size,
        special_tokens: house::SPECIAL_TOKENS.map(str::to_owned).to_vec(),
        split_digits: match args.digits {
            Digits::Single => DigitSplit::Single,
            Digits::UpToThree => DigitSplit::UpToThree,
        },
        min_frequency: args.min_frequency,
    };
    // Read one by one, so that memory holds one file at a time; the first error ends the reading.
    let mut unreadable = None;
    let texts = args.files.iter().map_while(|file| input::text(file).map_err(|error| unreadable = Some(error)).ok());
    let trained = train_bpe(texts.flat_map(pieces), &options);
    if let Some(error) = unreadable {
        return Err(error);
    }
    let tokenizer = trained?;
    fs::create_dir_all(&args.output).with_context(|| format!("{}: cannot make the folder", args.output.display()))?;
    tokenizer.save(&path)?;
    let config = args.output.join("tokenizer_config.json");
    jevons_sys::atomic::write(&config, house::tokenizer_config_json(args.model_max_length).as_bytes())
        .with_context(|| format!("{}: cannot write the file", config.display()))?;
    Ok(writeln!(out, "{}: {} tokens", path.display(), tokenizer.vocab_size())?)
}

fn convert(args: &ConvertArgs, out: &mut impl Write) -> anyhow::Result<()> {
    if args.output.exists() {
        bail!("{}: exists already; choose another name or move it away", args.output.display());
    }
    let gguf = args.file.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
    let mut vocabulary = match (gguf, args.like) {
        (true, None) => Vocabulary::from_gguf_file(&args.file)?,
        (true, Some(_)) => bail!("--like: a GGUF says itself how its tokenizer works; leave it out"),
        (false, Some(like)) => {
            let style = match like {
                Like::DeepSeekV3 => Style::DeepSeekV3,
                Like::DeepSeekR1 => Style::DeepSeekR1,
                Like::Qwen2 => Style::Qwen2,
                Like::KimiK2 => Style::KimiK2,
            };
            Vocabulary::from_tiktoken_file(&args.file, style)?
        }
        (false, None) => bail!(
            "{}: a .tiktoken file does not say how words are cut; add --like deepseek-v3, deepseek-r1, qwen2 or kimi-k2",
            args.file.display()
        ),
    };
    if let Some(path) = &args.config {
        vocabulary.apply_config(&input::text(path)?, &path.display().to_string())?;
    }
    // Read back before it is written: what does not open is no result.
    let tokenizer = vocabulary.to_tokenizer()?;
    jevons_sys::atomic::write(&args.output, &vocabulary.to_tokenizer_json())
        .with_context(|| format!("{}: cannot write the file", args.output.display()))?;
    let (merges, added) = (vocabulary.n_merges(), vocabulary.added_tokens().len());
    let ids = tokenizer.vocab_size();
    Ok(writeln!(out, "{}: {ids} ids, {merges} merges, {added} added tokens", args.output.display())?)
}

/// Cuts a long text at ends of lines, because the whole of a large file at once takes many times its size in memory.
fn pieces(text: String) -> Vec<String> {
    const ABOUT: usize = 1 << 20;
    let mut pieces = vec![String::new()];
    for line in text.split_inclusive('\n') {
        if pieces.last().is_some_and(|piece| piece.len() >= ABOUT) {
            pieces.push(String::new());
        }
        pieces.last_mut().expect("there is one").push_str(line);
    }
    pieces
}

fn encode(args: &EncodeArgs, out: &mut impl Write) -> anyhow::Result<()> {
    let tokenizer = open(&args.tokenizer)?;
    let text = args.text.clone().map_or_else(input::stdin, Ok)?;
    let ids = |text: &str| if args.special { tokenizer.encode(text) } else { tokenizer.encode_ordinary(text) };
    let json = if args.lines {
        serde_json::to_string(&text.lines().map(ids).collect::<Result<Vec<_>, _>>()?)?
    } else {
        serde_json::to_string(&ids(&text)?)?
    };
    Ok(writeln!(out, "{json}")?)
}

fn decode(args: &DecodeArgs, out: &mut impl Write) -> anyhow::Result<()> {
    let tokenizer = open(&args.tokenizer)?;
    let json = args.ids.clone().map_or_else(input::stdin, Ok)?;
    let sequences =
        input::parse_token_ids(&json).context("expected JSON, a list of token ids or a list of such lists")?;
    if let Some(id) = sequences.iter().flatten().find(|id| tokenizer.id_to_token(**id).is_none()) {
        bail!("token {id} is not one of the tokenizer's {}; was it made with another one?", tokenizer.vocab_size());
    }
    let text = |ids: &Vec<u32>| {
        if args.skip_special { tokenizer.decode_skip_special(ids) } else { tokenizer.decode(ids) }
    };
    let texts: Vec<_> = sequences.iter().map(text).collect();
    // A file gets exactly the text.
    let end = if io::stdout().is_terminal() { "\n" } else { "" };
    write!(out, "{}{end}", texts.join("\n"))?;
    Ok(out.flush()?)
}

fn open(path: &Path) -> anyhow::Result<Tokenizer> {
    let path = &*source::locate_named(path)?;
    if path.is_dir() {
        return source::tokenizer_of_folder(path)?
            .with_context(|| format!("{}: there is no tokenizer.json in it", path.display()));
    }
    Ok(Tokenizer::from_file(path)?)
}
