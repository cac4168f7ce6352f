use std::{
    fmt::Write as _,
    io::Write,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::{Context, bail};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use jevons_energy::{
    convert::Interval,
    ledger::{Phase, Work},
    meter::Window,
};
use jevons_train::{
    memory::Class,
    metrics::StepMetrics,
    recipe::Recipe,
    run::{self, Event, Summary},
};

use crate::{
    account::{Account, LedgerArgs, Spent},
    human,
};

/// Train a model by a recipe
///
/// Ctrl-C saves and leaves; --resume goes on from there, to the same bits as if it had never stopped.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Recipe: model, data, optimizer, schedule, precision, evaluation (TOML); --example prints one with every key
    #[arg(required_unless_present = "example")]
    recipe: Option<PathBuf>,
    /// Print a recipe with every key explained, and leave
    #[arg(long)]
    example: bool,
    /// Go on from the last checkpoint of the recipe's run folder
    #[arg(long)]
    resume: bool,
    /// Change a key of the recipe, e.g. --set schedule.steps=100; may be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Number format of matrix products: f32, bf16 or fp8 [default: the recipe's]
    #[arg(long, value_parser = ["f32", "bf16", "fp8"])]
    precision: Option<String>,
    /// CPU threads; changes the time taken, never the result [default: all cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    ledger: LedgerArgs,
}

pub fn run(args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    let Some(path) = args.recipe.as_ref().filter(|_| !args.example) else {
        return Ok(write!(out, "{}", Recipe::documented_example())?);
    };
    jevons_sys::keep_freed_memory();
    if let Some(threads) = args.threads {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.into());
        pool.build_global().context("cannot start the threads")?;
    }
    let mut recipe = Recipe::load(path)?;
    let mut changes = Vec::new();
    for change in &args.set {
        let Some(pair) = change.split_once('=') else {
            bail!("--set {change}: expected KEY=VALUE, for example --set schedule.steps=100");
        };
        changes.push(pair);
    }
    changes.extend(args.precision.as_deref().map(|p| ("precision", p)));
    recipe.apply_overrides(&changes)?;

    let stop = Arc::new(AtomicBool::new(false));
    let asked = stop.clone();
    ctrlc::set_handler(move || {
        if asked.swap(true, Ordering::Relaxed) {
            std::process::exit(130); // asked twice: leave at once, what was saved stays whole
        }
    })
    .context("cannot watch for Ctrl-C")?;
    let mut view = View::default();
    let mut account = Account::open(&args.ledger, "train")?;
    let mut tokens = None;
    let summary = run::run(&recipe, args.resume, &stop, &mut |event| {
        book(&event, &mut account, &mut tokens);
        if matches!(event, Event::Start { .. } | Event::Step(_) | Event::Heldout { .. }) && account.admit().is_break() {
            stop.store(true, Ordering::Relaxed); // as Ctrl-C: it saves and leaves
        }
        view.show(event);
    });
    view.finish();
    let summary = summary?;
    account.made(&summary.folder.join("model"));
    report(&summary, &account.close(), args, path, out)?;
    match account.stopped() {
        Some(why) if summary.interrupted => bail!("stopped by the budget: {why}"),
        _ => Ok(()),
    }
}

/// What the run has told so far goes to its account.
fn book(event: &Event<'_>, account: &mut Account, tokens: &mut Option<u64>) {
    match event {
        Event::Start { active, step_bytes, .. } => {
            account.trains(*active, *step_bytes);
            account.phase(Phase::Load, Work::default());
        }
        Event::Step(step) => {
            // Tokens are counted from the beginning of the run, of which this process may have seen the end only.
            let before = tokens.replace(step.tokens).unwrap_or(step.tokens - step.tokens / (step.step + 1));
            account.step(step.tokens.saturating_sub(before));
        }
        Event::Heldout { .. } => account.phase(Phase::Eval, Work::default()),
        Event::Saved { .. } => account.saved(),
        Event::Notice(_) | Event::Tokens(_) | Event::Memory { .. } => {}
    }
}

fn report(
    s: &Summary,
    energy: &Window,
    args: &Args,
    recipe: &std::path::Path,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    if args.json {
        let mut report = serde_json::to_value(s)?;
        let spent = Spent::of_window(energy);
        report["energy"] = spent.json();
        match spent.converted(energy.seconds) {
            Ok((place, converted)) => {
                report["energy"]["footprint"] = serde_json::to_value(converted)?;
                report["energy"]["place"] = serde_json::to_value(place)?;
            }
            Err(error) => eprintln!("warning: no carbon, water and cost: {error:#}"),
        }
        report["energy"]["window"] = serde_json::to_value(energy)?;
        return Ok(writeln!(out, "{report:#}")?);
    }
    if s.interrupted {
        writeln!(
            out,
            "stopped and saved after step {}; go on with: jevons train {} --resume",
            s.step,
            recipe.display()
        )?;
    } else {
        writeln!(out, "{} steps done", s.step)?;
    }
    if let Some(loss) = s.loss {
        writeln!(out, "last training loss {loss:.4} nats per token")?;
    }
    if let Some(loss) = s.heldout_loss {
        let bits = s.heldout_bits_per_byte.map_or(String::new(), |b| format!(", {b:.4} bits per byte"));
        writeln!(out, "held-out loss {loss:.4} nats per token{bits}")?;
    }
    writeln!(out, "{} tokens seen, {:.0} tokens/s", s.tokens, s.tokens_per_s)?;
    if s.peak_rss_bytes.is_some() {
        write!(out, "{}", memory_table(&s.memory))?;
    }
    write!(out, "{}", energy_report(energy)?)?;
    let model = s.folder.join("model");
    Ok(writeln!(out, "model: {0}\nchat with it: jevons chat {0}", model.display())?)
}

/// Energy, carbon, water and cost, each with p5, p50 and p95.
fn energy_report(window: &Window) -> anyhow::Result<String> {
    let spent = Spent::of_window(window);
    let mut text = format!("energy {spent}: {}\n", window.boundary());
    let (place, c) = match spent.converted(window.seconds) {
        Ok(converted) => converted,
        Err(error) => {
            writeln!(text, "no carbon, water and cost: {error:#}")?;
            return Ok(text);
        }
    };
    let band = |i: Interval, scale: f64, unit: &str| {
        let [low, mid, high] = [i.p5, i.p50, i.p95].map(|x| human::number(x * scale));
        format!("{mid} {unit} (p5 {low}, p95 {high})")
    };
    let f = c.footprint;
    writeln!(text, "facility energy {}", band(f.facility_kwh, 1e3, "Wh"))?;
    writeln!(
        text,
        "carbon {}, of it {} of making the machine",
        band(f.carbon_g, 1.0, "g CO2e"),
        human::grams(f.carbon_embodied_g.p50)
    )?;
    writeln!(text, "water {}", band(f.water_l, 1e3, "mL"))?;
    writeln!(text, "cost {}, {}", band(c.usd, 1.0, "USD"), c.usd_is)?;
    writeln!(
        text,
        "on the grid of {}, PUE {}; JEVONS_REGION and JEVONS_FACILITY name yours",
        place.site.region,
        human::number(place.site.pue.mid())
    )?;
    Ok(text)
}

/// Bytes by class of tensor; of the last two kinds of buffers only the larger counts in the peak.
fn memory_table(classes: &[Class]) -> String {
    let used = classes.iter().any(|c| c.used_bytes.is_some());
    let mut text = if used { format!("{:>20} {:>12} {:>12}\n", "memory", "estimated", "used") } else { String::new() };
    for class in classes {
        let estimated = HumanBytes(class.estimated_bytes).to_string();
        let used = class.used_bytes.map_or(String::new(), |n| HumanBytes(n).to_string());
        let line = format!("{:>20} {estimated:>12} {used:>12}", class.name);
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Progress on stderr.
#[derive(Default)]
struct View {
    tokens: Option<ProgressBar>,
    bar: Option<Bar>,
    held_out: Option<f64>,
}

impl View {
    fn show(&mut self, event: Event<'_>) {
        match event {
            Event::Notice(text) => self.note(&text),
            Event::Tokens(p) => {
                let bar = self.tokens.get_or_insert_with(|| {
                    let style = ProgressStyle::with_template("making tokens {wide_bar} {percent} %, {eta} left");
                    ProgressBar::new(p.total).with_style(style.expect("the template is well-formed"))
                });
                bar.set_length(p.total);
                bar.set_position(p.done);
            }
            Event::Memory { estimate, available } => {
                let free = available.map_or(String::new(), |a| format!(", {} are free", HumanBytes(a)));
                eprintln!(
                    "memory that training will take{free} (of working buffers and head logits the larger counts):"
                );
                eprint!("{}", memory_table(&estimate.table(None, None)));
            }
            Event::Start { step, steps, parameters, active, trained, .. } => {
                if let Some(bar) = self.tokens.take() {
                    bar.finish_and_clear();
                }
                let millions = |n: u64| n as f64 / 1e6;
                eprintln!(
                    "{:.2} M parameters, {:.2} M active per token, {:.2} M trained; steps {step} to {steps}",
                    millions(parameters),
                    millions(active),
                    millions(trained)
                );
                self.bar = Some(Bar::new(steps, step));
            }
            Event::Step(step) => {
                if let Some(bar) = &self.bar {
                    bar.step(&Step::of(step, self.held_out));
                }
            }
            Event::Heldout { step, loss, bits_per_byte } => {
                self.held_out = Some(loss);
                let bits = bits_per_byte.map_or(String::new(), |b| format!(", {b:.4} bits per byte"));
                self.note(&format!("after step {step}: held-out loss {loss:.4} nats per token{bits}"));
            }
            Event::Saved { step } => self.note(&format!("after step {step}: saved")),
        }
    }

    fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.note(text),
            None => eprintln!("{text}"),
        }
    }

    fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish();
        }
    }
}

/// What the bar tells about one optimizer step.
#[derive(Clone, Copy, Debug, Default)]
struct Step {
    /// Steps done, this one included.
    step: u64,
    /// Mean loss of the step, in nats per token.
    loss: f64,
    /// Learning rate of the step.
    lr: f64,
    /// Training tokens per second.
    tokens_per_s: f64,
    /// Last held-out loss, in nats per token, if one was taken.
    held_out: Option<f64>,
}

impl Step {
    fn of(m: &StepMetrics, held_out: Option<f64>) -> Self {
        Self { step: m.step + 1, loss: m.loss, lr: m.lr, tokens_per_s: m.tokens_per_s, held_out }
    }

    fn text(&self) -> String {
        let mut text = format!("loss {:.4}, lr {:.2e}, {:.0} tokens/s", self.loss, self.lr, self.tokens_per_s);
        if let Some(loss) = self.held_out {
            write!(text, ", held-out {loss:.4}").expect("a String takes all");
        }
        text
    }
}

/// The bar of a run: time left, step, loss, learning rate, speed. Where stderr is not a terminal, a line every
/// [`Bar::LINE_EVERY`] steps instead.
struct Bar {
    bar: ProgressBar,
    steps: u64,
}

impl Bar {
    const LINE_EVERY: u64 = 10;

    /// Of a run of `steps` that starts after `done` of them.
    fn new(steps: u64, done: u64) -> Self {
        let style = ProgressStyle::with_template("{pos}/{len} {wide_bar} {eta} left, {msg}");
        let bar = ProgressBar::new(steps).with_style(style.expect("the template is well-formed")).with_position(done);
        bar.reset_eta(); // steps of an earlier session took no time of this one
        Self { bar, steps }
    }

    /// After each step.
    fn step(&self, step: &Step) {
        self.bar.set_message(step.text());
        self.bar.set_position(step.step);
        if self.bar.is_hidden() && (step.step.is_multiple_of(Self::LINE_EVERY) || step.step == self.steps) {
            eprintln!("step {}/{}: {}", step.step, self.steps, step.text());
        }
    }

    /// A line above the bar, such as a warning or a saved checkpoint.
    fn note(&self, text: &str) {
        if self.bar.is_hidden() {
            eprintln!("{text}");
        } else {
            self.bar.println(text);
        }
    }

    /// Leaves the last state on the screen.
    fn finish(self) {
        self.bar.abandon();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_tells_the_held_out_loss_once_there_is_one() {
        let step = Step { step: 3, loss: 2.5, lr: 3e-4, tokens_per_s: 1234.5, held_out: None };
        assert_eq!(step.text(), "loss 2.5000, lr 3.00e-4, 1234 tokens/s");
        assert_eq!(
            Step { held_out: Some(2.25), ..step }.text(),
            "loss 2.5000, lr 3.00e-4, 1234 tokens/s, held-out 2.2500"
        );
    }

    #[test]
    fn the_table_of_memory_has_a_second_column_once_something_was_used() {
        let class = |name, used_bytes| Class { name, estimated_bytes: 2048, used_bytes };
        assert_eq!(memory_table(&[class("weights", None)]), "             weights     2.00 KiB\n");
        let both = memory_table(&[class("weights", Some(1024)), class("head logits", None)]);
        let lines: Vec<&str> = both.lines().collect();
        assert_eq!(lines[0], "              memory    estimated         used");
        assert_eq!(lines[1], "             weights     2.00 KiB     1.00 KiB");
        assert_eq!(lines[2], "         head logits     2.00 KiB");
    }

    #[test]
    fn a_resumed_run_starts_where_it_stopped() {
        let bar = Bar::new(100, 40);
        assert_eq!((bar.bar.position(), bar.bar.length()), (40, Some(100)));
        bar.step(&Step { step: 41, ..Step::default() });
        assert_eq!(bar.bar.position(), 41);
    }
}
