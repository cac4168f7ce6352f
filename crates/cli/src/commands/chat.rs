use std::{
    fmt,
    fs::OpenOptions,
    io::{self, BufRead, IsTerminal, Write},
    ops::ControlFlow,
    path::{Path, PathBuf},
    process,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow};
use clap::ValueEnum;
use jevons_energy::{
    allocate::SequenceStep,
    ledger::{Phase, Work},
};
use jevons_infer::{Chat, ChatError, ChatEvent, FinishReason, GenerateOptions, Generation, Sampler};
use owo_colors::OwoColorize;
use reedline::Signal;
use serde_json::json;

use crate::{
    account::{Account, LedgerArgs, Spent},
    args::{ComputeArgs, SamplingArgs},
    chat::{
        history,
        show::Show,
        slash::{self, Line},
        terminal::{self, ChatPrompt},
    },
    commands::pull,
    human, input, interrupt, progress, source,
    style::Theme,
};

/// Talk with a model
///
/// In a terminal: with line editing, history and /commands (/help lists them). Ctrl-C stops a reply, Ctrl-D leaves.
/// Otherwise every line of stdin is a message, and only answers go to stdout.
///
/// Tokens are drawn as the model's generation_config.json says; without one at temperature 0.6 and top-p 0.95.
#[derive(Debug, Default, clap::Args)]
pub struct Args {
    /// Checkpoint folder, run folder of `jevons train`, or org/name [default: the built-in model]
    model: Option<PathBuf>,
    /// Send this message, print the reply and leave; - takes all of stdin
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// System prompt
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    system: Option<String>,
    /// Show or hide the model's thinking [default: on in a terminal, off otherwise]
    #[arg(long, value_enum, value_name = "on|off")]
    think: Option<OnOff>,
    /// Print the reply to --prompt as JSON
    #[arg(long, requires = "prompt")]
    json: bool,
    /// Longest reply, in tokens [default: what the context holds]
    #[arg(long, value_name = "N")]
    max_new_tokens: Option<usize>,
    /// Neither read nor write the history of typed lines
    #[arg(long)]
    no_history: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    compute: ComputeArgs,
    #[command(flatten)]
    ledger: LedgerArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OnOff {
    On,
    Off,
}

pub fn run(args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    args.compute.start_threads()?;
    if let Some(model) = &args.model {
        pull::offer(model)?;
    }
    let files = source::Files::open(args.model.as_deref())?;
    let tokenizer =
        files.tokenizer()?.ok_or_else(|| anyhow!("{}: no tokenizer.json, and a chat needs one", files.name()))?;
    let template = files.template()?;
    let sampling = args.sampling.over(files.sampling()?);
    Sampler::new(sampling.clone())?;
    let mut account = Account::open(&args.ledger, "chat")?;
    let model = files.model(&args.compute)?;
    account.loaded(&files);
    let options = GenerateOptions {
        max_new_tokens: args.max_new_tokens.unwrap_or(model.config().max_position_embeddings),
        sampling,
        eos_token_ids: files.eos_token_ids()?,
        ..Default::default()
    };
    let mut chat = Chat::new(&model, &tokenizer, template.as_ref(), options);
    chat.set_system(args.system.clone());
    let theme = Theme::of(&io::stdout());
    let think = args.think.map_or(theme.terminal, |think| think == OnOff::On);
    let stop = Arc::new(AtomicBool::new(false));
    let mut talk = Talk { chat, out, theme, think, stop, totals: Totals::default(), account };
    if template.is_none() {
        notice("this model has no chat template: it continues each text instead of answering");
    }
    match &args.prompt {
        Some(prompt) => {
            let message = if prompt == "-" { input::stdin()? } else { prompt.clone() };
            if args.json { talk.reply_as_json(&message) } else { talk.reply(Ask::Message(&message)) }
        }
        None if io::stdin().is_terminal() && theme.terminal => {
            notice(&format!("{}; /help lists the commands, Ctrl-D leaves", files.name()));
            talk.in_terminal(if args.no_history { None } else { history::default_path() }.as_deref())
        }
        None => talk.with_lines(io::stdin().lock()),
    }
}

/// A running chat: what is said goes to `out`, everything about it to stderr.
struct Talk<'a, W: Write> {
    chat: Chat<'a>,
    out: &'a mut W,
    theme: Theme,
    think: bool,
    /// Set by Ctrl-C.
    stop: Arc<AtomicBool>,
    totals: Totals,
    account: Account,
}

#[derive(Default)]
struct Totals {
    prompt_tokens: usize,
    new_tokens: usize,
    last: Option<Generation>,
    energy: Vec<Spent>,
}

/// Books a reply: reading the prompt, thinking and answering, each by itself.
struct Booked<'a> {
    account: &'a mut Account,
    phase: Phase,
    /// Tokens in the cache after each piece of the prompt.
    prompt: Vec<usize>,
    /// Since the phase began, one for each token that was drawn.
    drawn: Vec<SequenceStep>,
    context: usize,
}

impl<'a> Booked<'a> {
    /// The time since the last reply was idle.
    fn start(account: &'a mut Account) -> Self {
        account.phase(Phase::Idle, Work::default());
        Self { account, phase: Phase::Prefill, prompt: vec![], drawn: vec![], context: 0 }
    }

    fn see(&mut self, event: &ChatEvent<'_>) {
        match event {
            ChatEvent::Token => {
                if self.phase == Phase::Prefill {
                    self.turn_to(Phase::Answer);
                }
                self.context += 1;
                self.drawn.push(SequenceStep { tokens: 1, context: self.context });
            }
            ChatEvent::Prefill { done, .. } => {
                self.context = *done;
                self.prompt.push(*done);
            }
            // What was drawn before the first text is its beginning.
            ChatEvent::Thinking(_) => self.phase = Phase::Thinking,
            ChatEvent::Answer(_) if self.phase == Phase::Thinking => self.turn_to(Phase::Answer),
            ChatEvent::Answer(_) | ChatEvent::Forgot(_) => {}
        }
    }

    fn turn_to(&mut self, phase: Phase) {
        self.account.phase_of_request(self.phase, self.account.steps(&self.drawn));
        self.phase = phase;
        self.drawn.clear();
    }

    fn end(self, generation: Option<&Generation>) -> Option<Spent> {
        self.account.phase_of_request(self.phase, self.account.steps(&self.drawn));
        if let Some(g) = generation {
            let mut before = g.cached_tokens;
            let pieces = self.prompt.iter().map(|done| {
                let tokens = done.saturating_sub(before);
                before = *done;
                SequenceStep { tokens, context: *done }
            });
            let pieces: Vec<_> = pieces.filter(|step| step.tokens > 0).collect();
            self.account.prefilled(&pieces, g.cached_tokens);
        }
        self.account.end_request()
    }
}

enum Ask<'a> {
    Message(&'a str),
    Again,
}

impl<W: Write> Talk<'_, W> {
    /// Lines from an editor, until Ctrl-D.
    fn in_terminal(&mut self, history_file: Option<&Path>) -> anyhow::Result<()> {
        let at_prompt = Arc::new(AtomicBool::new(false));
        listen_for_signals(self.stop.clone(), at_prompt.clone())?;
        let history = history_file.and_then(|path| match history::open(path) {
            Ok(history) => Some(history),
            Err(error) => {
                notice(&format!("{}: no history: {error}", path.display()));
                None
            }
        });
        let mut editor = terminal::editor(history, self.theme.colored, self.stop.clone());
        loop {
            if !io::stdin().is_terminal() {
                return Ok(()); // it was closed while the model spoke
            }
            self.stop.store(false, Ordering::Relaxed);
            at_prompt.store(true, Ordering::Relaxed);
            let asked = Instant::now();
            let line = editor.read_line(&ChatPrompt).context("cannot read from the terminal")?;
            at_prompt.store(false, Ordering::Relaxed);
            match line {
                Signal::Success(line) => {
                    let _ = editor.sync_history(); // losing a line of history is no reason to stop
                    if self.line(&line)?.is_break() {
                        return Ok(());
                    }
                    tell("\n");
                }
                Signal::CtrlC => notice("Ctrl-D or /quit leaves"),
                Signal::CtrlD => return Ok(()),
                // While a line is typed Ctrl-C is a key, so this signal is meant to end the program; unless it comes
                // so early that it is a Ctrl-C meant for the reply that has just ended.
                Signal::ExternalBreak(_) if asked.elapsed() > Duration::from_millis(300) => return Ok(()),
                _ => {}
            }
        }
    }

    /// Every line a message or command, until the end or the first error.
    fn with_lines(&mut self, lines: impl BufRead) -> anyhow::Result<()> {
        for line in lines.lines() {
            let line = line.context("cannot read stdin as UTF-8 text")?;
            let line = slash::parse(&line).map_err(anyhow::Error::msg)?;
            if self.act(line)?.is_break() {
                break;
            }
        }
        Ok(())
    }

    /// Does what a typed line says. Errors that leave the chat usable are told and survived.
    fn line(&mut self, line: &str) -> anyhow::Result<ControlFlow<()>> {
        let result = slash::parse(line).map_err(anyhow::Error::msg).and_then(|line| self.act(line));
        match result {
            Err(error) if error.downcast_ref::<io::Error>().is_none() => {
                tell(format_args!("{} {error:#}\n", "error:".style(Theme::of(&io::stderr()).error)));
                Ok(ControlFlow::Continue(()))
            }
            result => result,
        }
    }

    fn act(&mut self, line: Line) -> anyhow::Result<ControlFlow<()>> {
        match line {
            Line::Message(message) if message.is_empty() => {}
            Line::Message(message) => self.reply(Ask::Message(&message))?,
            Line::Retry => self.reply(Ask::Again)?,
            Line::Help => tell(slash::help()),
            Line::Reset => {
                self.chat.reset();
                notice("the conversation is forgotten");
            }
            Line::System(system) => {
                let set = if system.is_some() { "set" } else { "removed" };
                self.chat.set_system(system);
                notice(&format!("the system prompt is {set}, and the conversation starts over"));
            }
            Line::ShowSettings => tell(slash::settings(&self.chat.options)),
            Line::Set(key, value) => slash::set(&mut self.chat.options, &key, &value).map_err(anyhow::Error::msg)?,
            Line::Think(think) => self.think = think,
            Line::Save(path) => {
                self.save(Path::new(&path))?;
                notice(&format!("saved as {path}"));
            }
            Line::Stats => self.stats(),
            Line::Quit => return Ok(ControlFlow::Break(())),
        }
        Ok(ControlFlow::Continue(()))
    }

    fn reply(&mut self, ask: Ask<'_>) -> anyhow::Result<()> {
        self.account.admit_or_stop()?;
        let (think, stop) = (self.think, self.stop.clone());
        let mut show = Show::new(self.out, self.theme, think);
        let (mut written, mut tokens) = (Ok(()), 0);
        let waiting = progress::spinner();
        let mut booked = Booked::start(&mut self.account);
        let on_event = &mut |event: ChatEvent<'_>| {
            booked.see(&event);
            match event {
                ChatEvent::Forgot(turns) => notice(&format!("the context is full, oldest turns forgotten: {turns}")),
                ChatEvent::Prefill { done, total } if done < total => {
                    waiting.set_message(format!("reading, {done} of {total} tokens"));
                }
                ChatEvent::Prefill { .. } => waiting.set_message("reading"),
                ChatEvent::Token => tokens += 1,
                ChatEvent::Thinking(_) if !think => waiting.set_message(format!("thinking, {tokens} tokens")),
                ChatEvent::Thinking(text) => {
                    waiting.finish_and_clear();
                    written = show.thinking(text);
                }
                ChatEvent::Answer(text) => {
                    waiting.finish_and_clear();
                    written = show.answer(text);
                }
            }
            let go_on = written.is_ok() && !stop.load(Ordering::Relaxed);
            if go_on { booked.account.admit() } else { ControlFlow::Break(()) }
        };
        let result = match ask {
            Ask::Message(message) => self.chat.ask(message, on_event),
            Ask::Again => match self.chat.retry(on_event) {
                Some(result) => result,
                None => return Err(anyhow!("there is no answer to take back yet")),
            },
        };
        waiting.finish_and_clear();
        let energy = booked.end(result.as_ref().ok());
        written?;
        let generation = result?;
        show.end()?;
        match generation.finish_reason {
            FinishReason::Cancelled if self.account.stopped().is_some() => {}
            FinishReason::Cancelled => notice("stopped"),
            FinishReason::Length if generation.token_ids.len() == self.chat.options.max_new_tokens => {
                notice("cut at max_new_tokens; /set max_new_tokens N allows more");
            }
            FinishReason::Length => notice("cut where the context ends"),
            FinishReason::Eos | FinishReason::StopString => {}
        }
        if generation.token_ids.is_empty() {
            return self.within_budget(); // stopped before it began, and what was read is not known
        }
        notice(&human::speeds(&generation));
        if let Some(energy) = energy {
            let carbon = energy.carbon_g().map_or(String::new(), |(g, region)| {
                format!("; about {} of CO2e by the grid of {region}", human::grams(g))
            });
            notice(&format!("{energy}{carbon}"));
            self.totals.energy.push(energy);
        }
        self.totals.prompt_tokens += generation.prompt_tokens - generation.cached_tokens;
        self.totals.new_tokens += generation.token_ids.len();
        self.totals.last = Some(generation);
        self.within_budget()
    }

    /// # Errors
    /// If the budget has stopped the reply.
    fn within_budget(&self) -> anyhow::Result<()> {
        match self.account.stopped() {
            Some(why) => Err(anyhow!("stopped by the budget: {why}")),
            None => Ok(()),
        }
    }

    fn reply_as_json(&mut self, message: &str) -> anyhow::Result<()> {
        self.account.admit_or_stop()?;
        let mut booked = Booked::start(&mut self.account);
        let result: Result<_, ChatError> = self.chat.ask(message, &mut |event| {
            booked.see(&event);
            booked.account.admit()
        });
        let energy = booked.end(result.as_ref().ok());
        let generation = result?;
        let turn = self.chat.turns().last().expect("the reply is the last turn");
        let reply = json!({
            "thinking": turn.thinking.trim(),
            "answer": turn.answer.trim(),
            "token_ids": generation.token_ids,
            "finish_reason": generation.finish_reason.as_str(),
            "prompt_tokens": generation.prompt_tokens,
            "prefill_tokens_per_s": generation.prefill_tokens_per_s(),
            "decode_tokens_per_s": generation.decode_tokens_per_s(),
            "energy": energy.map(|spent| spent.json()),
        });
        writeln!(self.out, "{reply}")?;
        self.within_budget()
    }

    /// Writes the conversation to a file that does not exist yet.
    fn save(&self, path: &Path) -> anyhow::Result<()> {
        let mut text = String::new();
        if path.extension().is_some_and(|e| e == "json") {
            let turn = |t: &jevons_infer::Turn| json!({ "user": t.user, "thinking": t.thinking.trim(), "answer": t.answer.trim() });
            let turns: Vec<_> = self.chat.turns().iter().map(turn).collect();
            text = serde_json::to_string_pretty(&json!({ "system": self.chat.system(), "turns": turns }))? + "\n";
        } else {
            if let Some(system) = self.chat.system() {
                text += &format!("**System:** {system}\n\n");
            }
            for turn in self.chat.turns() {
                text += &format!("**You:** {}\n\n", turn.user);
                if !turn.thinking.trim().is_empty() {
                    text += &format!("> {}\n\n", turn.thinking.trim().replace('\n', "\n> "));
                }
                text += &format!("{}\n\n", turn.answer.trim());
            }
        }
        let mut file =
            OpenOptions::new().write(true).create_new(true).open(path).map_err(|error| match error.kind() {
                io::ErrorKind::AlreadyExists => anyhow!("{} exists already; choose another name", path.display()),
                _ => anyhow!("{}: cannot write the conversation: {error}", path.display()),
            })?;
        file.write_all(text.as_bytes())
            .map_err(|error| anyhow!("{}: cannot write the conversation: {error}", path.display()))
    }

    fn stats(&self) {
        let (used, context) = self.chat.context_used();
        let Totals { prompt_tokens, new_tokens, last, energy } = &self.totals;
        let turns = self.chat.turns().len();
        tell(format_args!("turns: {turns}; context: {used} of {context} tokens\n"));
        tell(format_args!("since the start: {prompt_tokens} prompt tokens computed, {new_tokens} tokens drawn\n"));
        if let Some(last) = last {
            tell(format_args!("last reply: {}\n", human::speeds(last)));
        }
        if !energy.is_empty() {
            tell(format_args!("replies together: {}\n", Spent::sum(energy)));
        }
    }
}

/// Sets `stop` on Ctrl-C, and on the signals that end a program. If nobody takes notice, although a line is being read, the
/// terminal has gone and reading from it never ends: then ends the program.
fn listen_for_signals(stop: Arc<AtomicBool>, at_prompt: Arc<AtomicBool>) -> anyhow::Result<()> {
    let on_signal = move || {
        stop.store(true, Ordering::Relaxed);
        let (stop, at_prompt) = (stop.clone(), at_prompt.clone());
        // Aside, so that the next signal need not wait.
        thread::spawn(move || {
            thread::sleep(Duration::from_millis(500));
            if at_prompt.load(Ordering::Relaxed) && stop.load(Ordering::Relaxed) {
                process::exit(1);
            }
        });
    };
    interrupt::on_signal(on_signal)
}

/// Something about the chat, not of it.
fn notice(text: &str) {
    tell(format_args!("{}\n", text.style(Theme::of(&io::stderr()).dim)));
}

/// Nobody reading stderr is no reason to stop.
fn tell(text: impl fmt::Display) {
    let _ = write!(io::stderr(), "{text}");
}
