mod accumulate;

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use clap::ValueEnum;
use indicatif::ProgressBar;
use jevons_bench::{
    Event, Limits, Phase, Report as Measured, Row, Settings,
    linears::{self, Linears},
    model, plot,
    roofline::Bound,
    roofline::Pair,
};
use jevons_model::{Config, LinearKind, Model};
use jevons_sys::machine::{Cpu, Load};
use serde_json::{Value, json};

use crate::{
    args::ComputeArgs,
    human::{bytes, count, flop, grouped},
    progress,
    report::Report,
    source::Files,
};

/// Measure how fast a model runs here, beside what this machine allows
///
/// The machine's limits first: how fast memory is read and how fast its arithmetic units multiply. Then prompts of 1 to 2048 tokens,
/// decoding at contexts up to 4096 alone and 8 sequences together, and a training step, each with its share of the limit. A few minutes
/// for a model of 1.5 B parameters.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    what: Option<What>,
    /// Checkpoint folder, run folder, or org/name; with --random a config.json too [default: the built-in model]
    model: Option<PathBuf>,
    /// Random weights of the model's shape, made in memory (seed 1; bf16 unless --precision says f32): no weights are needed
    #[arg(long, conflicts_with = "adapter")]
    random: bool,
    /// Only these phases
    #[arg(long, value_enum, value_name = "PHASE", value_delimiter = ',', default_values_t = [Only::Prefill, Only::Decode, Only::Train])]
    only: Vec<Only>,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    compute: ComputeArgs,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Measure matrix products by themselves
    ///
    /// bf16, bf16 times FP8 weights, and f32 at the shapes of square products and of two models, M tokens times N outputs of K inputs.
    /// With up to 8 tokens the weights are read from memory, not from a cache.
    Gemm(GemmArgs),
    /// Emulate what a GPU's accumulator of few bits loses in FP8 products
    ///
    /// Two random matrices in E4M3 are multiplied as DeepSeek-V3 describes Hopper's tensor cores, which keep about 14 bits of a sum, with and
    /// without its remedy, promotion to f32 every 128 elements; beside it f32 and the bf16 product of jevons. Errors by length of the
    /// sums, by promotion and by bits. The emulation is a model: docs/fp8.md says of what. Some seconds.
    Accumulate(accumulate::Args),
    /// Measure what FP8 does to the products of training, linear by linear
    ///
    /// Of each linear of a model, the three products of a training pass in bf16 and in FP8, the quantising of activations and gradients
    /// included; both formats take turns in one run. Names the linears that FP8 does not help, and those that a recipe with
    /// fp8.linears = "auto" leaves in bf16. Only the shapes count, so a config.json will do.
    Linears(LinearsArgs),
}

#[derive(Debug, clap::Args)]
struct LinearsArgs {
    /// config.json, checkpoint folder, run folder, or org/name [default: the built-in model]
    model: Option<PathBuf>,
    /// Tokens of a step: sequences times sequence_length of a recipe [default: 8 times 512, or the context if it is shorter]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    tokens: Option<u32>,
    #[command(flatten)]
    time: Timing,
    /// Print everything as JSON
    #[arg(long)]
    json: bool,
    /// CPU threads [default: all cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
}

#[derive(Debug, clap::Args)]
struct GemmArgs {
    /// One more shape; may be given several times
    #[arg(long, value_name = "M,N,K", value_parser = shape)]
    shape: Vec<[usize; 3]>,
    /// Only the shapes given by --shape
    #[arg(long, requires = "shape")]
    only_shapes: bool,
    #[command(flatten)]
    output: Output,
    /// CPU threads [default: all cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
}

#[derive(Clone, Copy, Debug, clap::Args)]
struct Timing {
    /// Short runs: seconds instead of minutes, and rough figures
    #[arg(long)]
    quick: bool,
    /// Time for each row [default: 5, with --quick 0.2]
    #[arg(long, value_name = "SECONDS", value_parser = some_seconds)]
    seconds: Option<f64>,
}

#[derive(Clone, Debug, clap::Args)]
struct Output {
    #[command(flatten)]
    time: Timing,
    /// Print everything as JSON
    #[arg(long)]
    json: bool,
    /// Write the roofline as a picture: what the machine allows, and where each row stands
    #[arg(long, value_name = "FILE.svg", value_hint = clap::ValueHint::FilePath)]
    plot: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Only {
    /// Reading prompts
    Prefill,
    /// One more token for each sequence
    Decode,
    /// An optimizer step
    Train,
    /// Products by themselves, as `jevons bench gemm`
    Gemm,
}

impl Only {
    fn phase(self) -> Phase {
        match self {
            Self::Prefill => Phase::Prefill,
            Self::Decode => Phase::Decode,
            Self::Train => Phase::Train,
            Self::Gemm => Phase::Gemm,
        }
    }
}

/// `M,N,K`, all above 0.
fn shape(text: &str) -> Result<[usize; 3], String> {
    let numbers: Vec<usize> = text.split(',').filter_map(|n| n.trim().parse().ok()).filter(|n| *n > 0).collect();
    // Above 2²⁰ a dimension is a typing error, and their product would not fit a number.
    match numbers[..] {
        [m, n, k] if text.split(',').count() == 3 && [m, n, k].iter().all(|d| *d <= 1 << 20) => Ok([m, n, k]),
        _ => Err("expected three numbers from 1 to 1048576, for example 512,8960,1536".into()),
    }
}

fn some_seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(s) if (0.0..=3600.0).contains(&s) => Ok(s),
        _ => Err("expected seconds, from 0 to 3600".into()),
    }
}

pub fn run(args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    match &args.what {
        Some(What::Gemm(gemm)) => return run_gemm(gemm, out),
        Some(What::Accumulate(accumulate)) => return accumulate::run(accumulate, out),
        Some(What::Linears(linears)) => return run_linears(linears, out),
        None => {}
    }
    args.compute.start_threads()?;
    let phases: Vec<Phase> = args.only.iter().map(|p| p.phase()).collect();
    let needs_model = Phase::OF_A_MODEL.iter().any(|p| phases.contains(p));
    let source = if needs_model { Some(Source::open(args)?) } else { None };
    let settings = args.output.settings(phases)?;
    let name = source.as_ref().map(|s| s.name.clone());
    let load = source.map(|source| move || source.model(&args.compute));
    let measured = measure(&settings, load)?;
    args.output.print(&measured, name, args.random, out)
}

fn start_threads(threads: Option<u16>) -> anyhow::Result<()> {
    let Some(threads) = threads else { return Ok(()) };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.into());
    pool.build_global().context("cannot start the threads")
}

fn run_gemm(args: &GemmArgs, out: &mut impl Write) -> anyhow::Result<()> {
    start_threads(args.threads)?;
    let mut settings = args.output.settings(vec![Phase::Gemm])?;
    if args.only_shapes {
        settings.shapes.clear();
    }
    settings.shapes.extend(&args.shape);
    let measured = measure(&settings, None::<fn() -> anyhow::Result<Model>>)?;
    args.output.print(&measured, None, false, out)
}

fn run_linears(args: &LinearsArgs, out: &mut impl Write) -> anyhow::Result<()> {
    start_threads(args.threads)?;
    let (name, config) = match args.model.as_deref() {
        Some(path) if path.is_file() => (path.display().to_string(), Config::from_file(path)?),
        path => {
            let files = Files::open(path)?;
            (files.name(), files.config()?)
        }
    };
    let usual = Settings::new(vec![], args.time.quick);
    let a_batch = usual.train_sequences * usual.train_length.min(config.max_position_embeddings);
    let settings = linears::Settings {
        tokens: args.tokens.map_or(a_batch, |n| n as usize),
        quick: args.time.quick,
        seconds_per_row: args.time.seconds.unwrap_or(usual.seconds_per_row),
    };
    let bar = progress::named_bar(config.linears(settings.tokens).len() as u64);
    let measured = linears::run(&config, settings, &mut |event| show(&bar, event));
    bar.finish_and_clear();
    let measured = measured?;
    if args.json {
        let mut report = serde_json::to_value(&measured)?;
        report["model"] = json!({ "name": name });
        serde_json::to_writer_pretty(&mut *out, &report)?;
        return Ok(writeln!(out)?);
    }
    print_linears(&measured, &name, out)
}

fn show(bar: &ProgressBar, event: Event) {
    match event {
        Event::Now(what) => bar.set_message(what),
        Event::Done => bar.inc(1),
    }
}

fn print_linears(measured: &Linears, name: &str, out: &mut impl Write) -> anyhow::Result<()> {
    let mut report = Report::new(out);
    let tokens = grouped(measured.settings.tokens as u64);
    report
        .section("Machine", &machine_rows(&measured.cpu, measured.threads, measured.instruction_set, measured.load))?;
    report.section("Model", &[row("name", name), row("a step", format!("{tokens} tokens"))])?;
    let header = ["", "in x out", "tokens", "bf16", "FP8", "y", "dx", "dW", "all", "step"];
    let cells: Vec<_> = measured.rows.iter().map(linear_cells).collect();
    report.table("Linears, three products", &header, &cells)?;
    report.line("")?;
    report.line(&format!(
        "y, dx, dW and all: time in bf16 over that in FP8, medians; below 1 FP8 is slower. step: the same of AdamW and \
         the weights that follow{}.",
        if measured.rows.iter().any(|r| r.linear.experts > 1) {
            ". Of experts: tokens of each, times of one"
        } else {
            ""
        }
    ))?;
    let names = |rows: Vec<&LinearKind>| match rows.is_empty() {
        true => "none".to_owned(),
        false => rows.iter().flat_map(|l| &l.names).map(String::as_str).collect::<Vec<_>>().join(", "),
    };
    let not_helped = measured.rows.iter().filter(|r| !r.helped).map(|r| &r.linear).collect();
    let kinds = measured.rows.iter().map(|r| &r.linear).chain(measured.left_out.iter().map(|l| &l.linear));
    let left = kinds.filter(|l| !l.worth_fp8()).collect();
    report.section("FP8", &[row("does not help", names(not_helped)), row("\"auto\" leaves in bf16", names(left))])?;
    let left_out: Vec<_> = measured.left_out.iter().map(|l| (l.linear.names.join(", "), l.reason.clone())).collect();
    Ok(report.section("Left out", &left_out)?)
}

fn linear_cells(r: &linears::Row) -> Vec<String> {
    let l = &r.linear;
    let products = [&r.fprop, &r.dgrad, &r.wgrad];
    let all =
        |of: &dyn Fn(&linears::Product) -> f64| products.iter().map(|p| of(p)).sum::<f64>() / r.experts_run as f64;
    let mut cells = vec![
        l.names.join(", "),
        format!("{} x {}", l.inputs, l.outputs),
        l.tokens.to_string(),
        time(all(&|p| p.bf16.median_s)),
        time(all(&|p| p.fp8.median_s)),
    ];
    cells.extend(products.map(|p| p.ratio).into_iter().chain([r.ratio, r.weights.ratio]).map(|n| format!("{n:.3}")));
    cells
}

/// Where the model comes from.
struct Source {
    name: String,
    files: Option<Files>,
    /// Of random weights.
    config: Option<Config>,
}

impl Source {
    fn open(args: &Args) -> anyhow::Result<Self> {
        let source = Self::find(args)?;
        if let Some(config) = &source.config {
            model::check_weights(config, &args.compute.load_options(None)).with_context(|| source.name.clone())?;
        }
        Ok(source)
    }

    fn find(args: &Args) -> anyhow::Result<Self> {
        match args.model.as_deref() {
            Some(path) if path.is_file() && args.random => {
                let config = Config::from_file(path)?;
                Ok(Self { name: path.display().to_string(), files: None, config: Some(config) })
            }
            Some(path) if path.is_file() => {
                bail!(
                    "{}: this is a file, not a folder with weights; --random measures a config.json without them",
                    path.display()
                )
            }
            path => {
                let files = Files::open(path)?;
                let config = if args.random { Some(files.config()?) } else { None };
                Ok(Self { name: files.name(), files: Some(files), config })
            }
        }
    }

    fn model(self, compute: &ComputeArgs) -> anyhow::Result<Model> {
        let options = compute.load_options(None);
        match (self.config, self.files) {
            (Some(config), _) => model::random(config, &options).with_context(|| self.name.clone()),
            (None, Some(files)) => files.model(compute),
            (None, None) => bail!("{}: there is no model", self.name),
        }
    }
}

fn measure(settings: &Settings, load: Option<impl FnOnce() -> anyhow::Result<Model>>) -> anyhow::Result<Measured> {
    let bar = progress::named_bar(settings.steps() as u64);
    let result = jevons_bench::run(settings, load, &mut |event| show(&bar, event));
    bar.finish_and_clear();
    result
}

impl Output {
    /// # Errors
    /// If the picture could not be written in the end.
    fn settings(&self, phases: Vec<Phase>) -> anyhow::Result<Settings> {
        check_folder(self.plot.as_deref())?;
        let mut settings = Settings::new(phases, self.time.quick);
        if let Some(seconds) = self.time.seconds {
            settings.seconds_per_row = seconds;
        }
        Ok(settings)
    }

    fn print(
        &self,
        measured: &Measured,
        model: Option<String>,
        random: bool,
        out: &mut impl Write,
    ) -> anyhow::Result<()> {
        if let Some(path) = &self.plot {
            write_plot(path, &plot::roofline(measured))?;
        }
        if self.json {
            serde_json::to_writer_pretty(&mut *out, &as_json(measured, model, random)?)?;
            return Ok(writeln!(out)?);
        }
        let mut report = Report::new(out);
        let machine = machine_rows(&measured.cpu, measured.threads, measured.instruction_set, measured.load);
        report.section("Machine", &machine)?;
        report.section("Limits, the best of before and after", &limit_rows(&measured.limits))?;
        report.section("Model", &model_rows(measured, model, random))?;
        let header = ["", "median", "min", "max", "runs", "TFLOP/s", "GB/s", "limit", "% of limit", "tokens/s"];
        for phase in [Phase::Prefill, Phase::Decode, Phase::Train, Phase::Gemm] {
            let cells: Vec<_> = measured.rows.iter().filter(|r| r.phase == phase).map(cells).collect();
            if !cells.is_empty() {
                // Products alone have no tokens.
                let columns = cells[0].len();
                report.table(title(phase), &header[..columns], &cells)?;
            }
        }
        let left_out: Vec<_> =
            measured.left_out.iter().map(|l| (format!("{} {}", l.phase.name(), l.name), l.reason.clone())).collect();
        report.section("Left out", &left_out)?;
        report.section("Highest resident memory", &memory_rows(measured))?;
        if measured.rows.iter().any(|r| r.share_of_limit > 1.0) {
            report.line(
                "\nAbove 100 %: weights that stay in a cache are read faster than memory, which the limit counts.",
            )?;
        }
        if let Some(path) = &self.plot {
            report.line("")?;
            report.line(&format!("picture: {}", path.display()))?;
        }
        Ok(())
    }
}

/// # Errors
/// If the picture could not be written in the end.
fn check_folder(plot: Option<&Path>) -> anyhow::Result<()> {
    match plot.and_then(Path::parent) {
        Some(folder) if !folder.as_os_str().is_empty() && !folder.is_dir() => {
            bail!("{}: there is no such folder for the picture; make it first", folder.display())
        }
        _ => Ok(()),
    }
}

fn write_plot(path: &Path, svg: &str) -> anyhow::Result<()> {
    jevons_sys::atomic::write(path, svg.as_bytes())
        .with_context(|| format!("{}: cannot write the picture", path.display()))
}

fn as_json(measured: &Measured, model: Option<String>, random: bool) -> anyhow::Result<Value> {
    let mut report = serde_json::to_value(measured)?;
    if let Some(name) = model {
        report["model"]["name"] = json!(name);
        report["model"]["random"] = json!(random);
    }
    Ok(report)
}

fn row(name: &str, text: impl Into<String>) -> (String, String) {
    (name.into(), text.into())
}

fn machine_rows(cpu: &Cpu, threads: usize, path: &str, load: Option<Load>) -> Vec<(String, String)> {
    vec![
        row("processor", cpu.model.clone().unwrap_or_else(|| "unknown".into())),
        row("threads", threads.to_string()),
        row("path", path),
        row(
            "other programs",
            load.map_or("unknown".into(), |l| format!("{:.1} processors busy before", l.busy_processors)),
        ),
    ]
}

fn limit_rows(limits: &Limits) -> Vec<(String, String)> {
    let rates = |rates: Pair, text: &dyn Fn(f64) -> String| {
        format!("{}/s on one thread, {}/s on all", text(rates.one_thread), text(rates.all_threads))
    };
    let size = |rate: f64| bytes(rate as u64);
    let read = limits.read_bytes_per_s;
    let mut rows = vec![
        row(
            "reading memory",
            format!(
                "{}/s on one thread ({}), {}/s on all ({})",
                size(read.one_thread),
                limits.read_way_one_thread,
                size(read.all_threads),
                limits.read_way_all_threads
            ),
        ),
        row("f32 multiply-add", rates(limits.fma_flop_per_s, &flop)),
    ];
    let bf16 = limits.bf16_instruction.zip(limits.bf16_flop_per_s);
    rows.extend(bf16.map(|(name, rate)| row("bf16 multiply-add", format!("{} by {name}", rates(rate, &flop)))));
    rows.push(row("bf16 product of jevons", rates(limits.product_flop_per_s, &flop)));
    rows
}

fn model_rows(m: &Measured, name: Option<String>, random: bool) -> Vec<(String, String)> {
    let (Some(model), Some(name)) = (&m.model, name) else { return vec![] };
    let weights = if random { "random weights" } else { "its own weights" };
    let form = model.mla.map_or(String::new(), |form| format!(", latent attention {form}"));
    vec![
        row("name", format!("{name}, {weights}")),
        row(
            "size",
            format!(
                "{} parameters, {} active per token; {} in {}, products {}{form}",
                count(model.parameters),
                count(model.active_parameters),
                bytes(model.weight_bytes as u64),
                model.weights.name(),
                model.precision
            ),
        ),
        row("longest context", format!("{} tokens", grouped(model.context as u64))),
    ]
}

fn title(phase: Phase) -> &'static str {
    match phase {
        Phase::Prefill => "Prefill",
        Phase::Decode => "Decode",
        Phase::Train => "Training step",
        Phase::Gemm => "Products, M x N x K",
    }
}

fn cells(r: &Row) -> Vec<String> {
    let name = if r.phase == Phase::Gemm { format!("{} {}", r.format, r.name) } else { r.name.clone() };
    let limit = match r.bound {
        Bound::Memory => "memory",
        Bound::Products => "products",
    };
    let mut cells = vec![
        name,
        time(r.times.median_s),
        time(r.times.min_s),
        time(r.times.max_s),
        r.times.runs.to_string(),
        format!("{:.3}", r.flop_per_s / 1e12),
        format!("{:.1}", r.bytes_per_s / 1e9),
        limit.into(),
        format!("{:.0}", 100.0 * r.share_of_limit),
    ];
    cells.extend(r.tokens_per_s.map(digits));
    cells
}

/// Three digits or all before the point.
fn digits(n: f64) -> String {
    match n {
        n if n >= 100.0 => grouped(n.round() as u64),
        n if n >= 10.0 => format!("{n:.1}"),
        n => format!("{n:.2}"),
    }
}

fn time(s: f64) -> String {
    match s {
        s if s >= 1.0 => format!("{} s", digits(s)),
        s if s >= 1e-3 => format!("{} ms", digits(s * 1e3)),
        s => format!("{} µs", digits(s * 1e6)),
    }
}

fn memory_rows(m: &Measured) -> Vec<(String, String)> {
    let text = |peak: Option<u64>, of_phase: bool| match peak {
        Some(peak) if of_phase => bytes(peak),
        Some(peak) => format!("{} since the start", bytes(peak)),
        None => "unknown".into(),
    };
    m.memory.iter().map(|p| row(p.phase, text(p.peak_rss_bytes, p.of_phase))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_three_numbers() {
        assert_eq!(shape("512, 8960,1536"), Ok([512, 8960, 1536]));
        for wrong in ["", "1,2", "1,2,3,4", "1,2,0", "1,2,x", "1,2,-3", "1,2,99999999"] {
            assert!(shape(wrong).unwrap_err().contains("three numbers"), "{wrong}");
        }
    }

    #[test]
    fn times_have_a_unit_and_three_digits() {
        assert_eq!([2.5, 0.0345, 0.1234, 1.5e-5].map(time), ["2.50 s", "34.5 ms", "123 ms", "15.0 µs"]);
        assert_eq!([12345.6, 99.94, 1.234].map(digits), ["12,346", "99.9", "1.23"]);
    }

    #[test]
    fn seconds_are_a_number_in_range() {
        assert_eq!(some_seconds("2.5"), Ok(2.5));
        assert!(["-1", "nan", "1e9", "x"].into_iter().all(|s| some_seconds(s).is_err()));
    }
}
