use std::{
    collections::VecDeque,
    ffi::OsString,
    fmt::Write as _,
    io::{self, IsTerminal, Write},
    path::PathBuf,
    process,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use clap::{Subcommand, ValueEnum, ValueHint};
use crossterm::{
    QueueableCommand,
    cursor::MoveUp,
    terminal::{Clear, ClearType},
};
use jevons_energy::{
    convert::{Band, Facility, IntensityHours, Interval, Month},
    export::{self, Format, FunctionalUnit, SciInputs, export},
    grade::joules,
    ledger::{Group, Ledger, Numbered, Phase, Recorder, RunTotal, Summary, Work, day, time},
    meter::{IdleFloor, Meter, Options, Sampler, State, Wall, Window},
    report::{self, LedgerReport, Place},
};
use serde_json::json;

use crate::{
    account::{self, LedgerArgs, Spent},
    chart,
    failure::ExitWith,
    human, input, interrupt,
    place::SiteArgs,
    report::Report,
};

/// Meter what the machine spends, live or while a command runs; read the energy ledger
///
/// Without a command: the power of the machine, live, until Ctrl-C. With one (`jevons meter -- COMMAND`): what the machine spent while
/// it ran, written to the ledger. Every number has a grade: A wall meter, B hardware counter, C integrated power samples, D calibrated
/// model, E declared power × time, which measures nothing.
///
/// JEVONS_WALL_FILE, JEVONS_WALL_COMMAND and JEVONS_WATTS do what --wall-file, --wall-command and --watts do, for every command of
/// jevons. JEVONS_LEDGER names the ledger; JEVONS_LEDGER=off turns it off.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    action: Option<Action>,
    /// Program to run and meter
    #[arg(last = true, value_name = "COMMAND", value_hint = ValueHint::CommandWithArguments)]
    command: Vec<OsString>,
    /// Seconds between readings of the live view
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0, conflicts_with = "command")]
    every: f64,
    /// End the live view after so many seconds
    #[arg(long = "for", value_name = "SECONDS", conflicts_with = "command")]
    seconds: Option<f64>,
    /// Measure the idle machine for so many seconds first, to tell the command's own energy; 30 or more make a floor
    #[arg(long, value_name = "SECONDS", requires = "command")]
    idle: Option<f64>,
    /// Print JSON: a line for each reading, or the report of the command
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    meter: MeterArgs,
    #[command(flatten)]
    ledger: LedgerArgs,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Sensors")]
struct MeterArgs {
    /// File whose last line is the reading of a wall meter, with its unit: 41.5 W, 1.2 kWh
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with = "wall_command")]
    wall_file: Option<PathBuf>,
    /// Shell command that prints such a reading
    #[arg(long, value_name = "COMMAND")]
    wall_command: Option<String>,
    /// Power of the machine idle and at full load, as you have measured it, in watts
    #[arg(long, value_name = "IDLE:FULL", value_parser = account::parse_watts)]
    watts: Option<(f64, f64)>,
}

impl MeterArgs {
    fn options(&self) -> anyhow::Result<Options> {
        let mut options = account::meter_options()?;
        if let Some(file) = &self.wall_file {
            options.wall = Some(Wall::File(file.clone()));
        }
        if let Some(command) = &self.wall_command {
            options.wall = Some(Wall::Command(command.clone()));
        }
        options.calibrated_w = self.watts.or(options.calibrated_w);
        Ok(options)
    }
}

#[derive(Debug, Subcommand)]
enum Action {
    /// What the ledger says, in joules, carbon, water and money: totals, by phase, model, command, day and run
    Report {
        #[command(flatten)]
        rows: RowArgs,
        /// Write the report with plots as one HTML file
        #[arg(long, value_name = "FILE.html", value_hint = ValueHint::FilePath)]
        html: Option<PathBuf>,
        /// CSV of hourly grid intensity, time,g_per_kwh: carbon is then summed hour by hour
        #[arg(long, value_name = "HOURS.csv", value_hint = ValueHint::FilePath, conflicts_with = "grid")]
        intensity: Option<PathBuf>,
        /// USD per hour of a rented machine, electricity inside [default: one's own, whose electricity is paid]
        #[arg(long, value_name = "USD", conflicts_with = "electricity_price")]
        rent: Option<Band>,
        #[command(flatten)]
        site: Box<SiteArgs>,
        /// Print the report as JSON
        #[arg(long)]
        json: bool,
    },
    /// Check that no row of the ledger was changed, and that every run adds up
    Verify {
        /// Ledger file [default: JEVONS_LEDGER, or that of the user]
        #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
        file: Option<PathBuf>,
        /// Head that an earlier verification printed: it must be among the rows
        #[arg(long, value_name = "HASH")]
        expect: Option<String>,
        /// Print the verdict as JSON
        #[arg(long)]
        json: bool,
    },
    /// Write the ledger in a form for others
    Export {
        /// Form
        #[arg(long, value_enum)]
        format: FormatArg,
        #[command(flatten)]
        rows: RowArgs,
        /// Write to this file instead of stdout
        #[arg(long, short, value_name = "FILE", value_hint = ValueHint::FilePath)]
        output: Option<PathBuf>,
        /// For sci: carbon intensity of the electricity, location-based, in gCO2e/kWh
        #[arg(long, value_name = "G", required_if_eq("format", "sci"))]
        intensity: Option<f64>,
        /// For sci: share of the hardware's embodied carbon, in gCO2e
        #[arg(long, value_name = "G", required_if_eq("format", "sci"))]
        embodied: Option<f64>,
        /// For sci: what the rate is per
        #[arg(long, value_enum, default_value = "token")]
        per: UnitArg,
    },
}

/// Which rows.
#[derive(Debug, clap::Args)]
struct RowArgs {
    /// Ledger file [default: JEVONS_LEDGER, or that of the user]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    file: Option<PathBuf>,
    /// Only this run; the beginning of its name is enough
    #[arg(long, value_name = "RUN")]
    run: Option<String>,
    /// Only this model; the beginning of its fingerprint is enough
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// Only this day, UTC
    #[arg(long, value_name = "YYYY-MM-DD")]
    day: Option<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum FormatArg {
    Csv,
    Json,
    Prometheus,
    Cyclonedx,
    Spdx,
    Boamps,
    Sci,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum UnitArg {
    Token,
    Request,
}

pub fn run(args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    match &args.action {
        Some(Action::Report { rows, html, intensity, rent, site, json }) => {
            let report = convert(rows, intensity.as_ref(), *rent, site)?;
            if let Some(file) = html {
                jevons_sys::atomic::write(file, report::html(&report).as_bytes())
                    .with_context(|| format!("{}: cannot write the report", file.display()))?;
            }
            if *json {
                serde_json::to_writer_pretty(&mut *out, &report)?;
                return Ok(writeln!(out)?);
            }
            print_report(&report, out)
        }
        Some(Action::Verify { file, expect, json }) => verify(file.as_ref(), expect.as_deref(), *json, out),
        Some(Action::Export { format, rows, output, intensity, embodied, per }) => {
            let rows = rows.read()?;
            let format = match format {
                FormatArg::Csv => Format::Csv,
                FormatArg::Json => Format::Json,
                FormatArg::Prometheus => Format::Prometheus,
                FormatArg::Cyclonedx => Format::CycloneDx,
                FormatArg::Spdx => Format::Spdx,
                FormatArg::Boamps => Format::BoAmps,
                FormatArg::Sci => {
                    let per = match per {
                        UnitArg::Token => FunctionalUnit::Token,
                        UnitArg::Request => FunctionalUnit::Request,
                    };
                    let intensity_g_per_kwh = intensity.context("sci needs --intensity")?;
                    let embodied_g = embodied.context("sci needs --embodied")?;
                    let sci = export::sci(&rows, SciInputs { intensity_g_per_kwh, embodied_g, per })?;
                    return put(output.as_ref(), &format!("{sci:#}\n"), out);
                }
            };
            put(output.as_ref(), &export(&rows, format), out)
        }
        None if args.command.is_empty() => live(args, out),
        None => command(args, out),
    }
}

fn put(file: Option<&PathBuf>, text: &str, out: &mut impl Write) -> anyhow::Result<()> {
    match file {
        Some(file) => jevons_sys::atomic::write(file, text.as_bytes())
            .with_context(|| format!("{}: cannot write the export", file.display())),
        None => Ok(out.write_all(text.as_bytes())?),
    }
}

/// What must be said of a machine where nothing is measured.
const NOTHING_MEASURED: &str =
    "nothing on this machine can be read: every number is declared power × time and load, and no measurement";

fn duration(seconds: f64, what: &str) -> anyhow::Result<Duration> {
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if (0.01..=1e8).contains(&seconds) => Ok(duration),
        _ => bail!("{what} {seconds}: expected seconds, from 0.01 to 100000000"),
    }
}

/// Readings until Ctrl-C or the end of the time.
fn live(args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    let every = duration(args.every, "--every")?;
    let end = args.seconds.map(|s| duration(s, "--for")).transpose()?.map(|d| Instant::now() + d);
    let stop = Arc::new(AtomicBool::new(false));
    let asked = stop.clone();
    interrupt::on_signal(move || asked.store(true, Ordering::Relaxed))?;
    let sampler = Sampler::start(Meter::discover(args.meter.options()?), every.min(Duration::from_millis(200)));
    let mut view = View { drawn: 0, watts: VecDeque::new(), chart: io::stdout().is_terminal() && !args.json };
    if !args.json && !sampler.with(Meter::measures) {
        eprintln!("warning: {NOTHING_MEASURED} (grade D or E)");
    }
    for note in sampler.with(|m| m.notes().to_vec()) {
        eprintln!("{note}");
    }
    let start = sampler.snapshot();
    let mut last = start.clone();
    let mut next = Instant::now() + every;
    loop {
        while Instant::now() < next && !stop.load(Ordering::Relaxed) {
            thread::sleep((next - Instant::now()).min(Duration::from_millis(50)));
        }
        next += every;
        let now = sampler.snapshot();
        let (window, whole) = (now.since(&last), now.since(&start));
        last = now;
        if args.json {
            writeln!(
                out,
                "{}",
                json!({ "at_s": last.at_s(), "watts": window.watts(), "window": window, "total": whole.energy, "caveat": whole.energy.grade.caveat() })
            )?;
            out.flush()?;
        } else {
            view.show(&window, &whole, &sampler.with(|m| m.sources().to_vec()), out)?;
        }
        if stop.load(Ordering::Relaxed) || end.is_some_and(|end| Instant::now() >= end) {
            return Ok(());
        }
    }
}

/// The live view: a chart in a terminal, lines elsewhere.
struct View {
    /// Lines of the last picture.
    drawn: u16,
    watts: VecDeque<f64>,
    chart: bool,
}

impl View {
    const ROWS: usize = 8;
    const COLUMNS: usize = 64;

    fn show(
        &mut self,
        window: &Window,
        whole: &Window,
        sources: &[(jevons_energy::meter::Source, State)],
        out: &mut impl Write,
    ) -> io::Result<()> {
        let at_least = if whole.complete() { "" } else { "at least " };
        let now = format!("{:7.1} s  {:8.2} W  {at_least}{}", whole.seconds, window.watts(), whole.energy);
        if !self.chart {
            writeln!(out, "{now}")?;
            return out.flush();
        }
        self.watts.push_back(window.watts());
        if self.watts.len() > Self::COLUMNS {
            self.watts.pop_front();
        }
        let (bars, scale) = chart::bars(self.watts.make_contiguous(), Self::COLUMNS, Self::ROWS);
        let mut lines = vec![now];
        for (i, bar) in bars.iter().enumerate() {
            let axis = if i == 0 { format!("{scale:>6} W") } else { String::new() };
            lines.push(format!("{axis:>8} {bar}"));
        }
        for (source, state) in sources {
            let here = window.shares.iter().filter(|s| s.component == source.component && s.how == source.how);
            let watts = here.map(|s| s.energy.joules).sum::<f64>() / window.seconds.max(f64::MIN_POSITIVE);
            let state = match state {
                State::Reading => format!("{watts:.2} W"),
                State::Silent(why) => why.clone(),
            };
            lines.push(format!("  [{}] {}: {}: {state}", source.grade, source.component, source.how));
        }
        let columns = crossterm::terminal::size().map_or(80, |(columns, _)| usize::from(columns)).max(20);
        if self.drawn > 0 {
            out.queue(MoveUp(self.drawn))?.queue(Clear(ClearType::FromCursorDown))?;
        }
        for line in &lines {
            // A line that wraps would not be found again by moving up.
            let line: String = line.chars().filter(|c| !c.is_control()).take(columns - 1).collect();
            writeln!(out, "{line}")?;
        }
        self.drawn = lines.len() as u16;
        out.flush()
    }
}

/// Runs a program and tells what the machine spent meanwhile.
fn command(args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    let ledger = account::ledger_path().filter(|_| !args.ledger.off());
    let meter = Meter::discover(args.meter.options()?);
    let key = args.ledger.key()?;
    let mut recorder = Recorder::start(meter, ledger.map(Ledger::open).transpose(), "meter");
    if !key.is_empty() {
        recorder.set_tenant(key);
    }
    if let Some(trouble) = recorder.trouble() {
        eprintln!("warning: {trouble}; going on without it");
    }
    let mut floor = None;
    if let Some(seconds) = args.idle {
        let part = duration(seconds, "--idle")? / 6;
        let mut windows = vec![];
        for _ in 0..6 {
            thread::sleep(part);
            windows.push(recorder.phase(Phase::Idle, Work::default()));
        }
        floor = IdleFloor::of(&windows);
    }
    // Ctrl-C is for the program; what it has spent until then is still told.
    interrupt::on_signal(|| {})?;
    let name = args.command[0].to_string_lossy().into_owned();
    let status = process::Command::new(&args.command[0])
        .args(&args.command[1..])
        .status()
        .with_context(|| format!("{name}: cannot be run; is it installed and in the PATH?"))?;
    let window = recorder.phase(Phase::Command, Work::default());
    recorder.finish();
    if let Some(trouble) = recorder.trouble() {
        eprintln!("warning: {trouble}; going on without it");
    }
    let idle_j = floor.map(|floor| window.idle_at(floor.watts));
    if args.json {
        let report = json!({
            "command": args.command.iter().map(|a| a.to_string_lossy()).collect::<Vec<_>>(),
            "exit_code": status.code(),
            "watts": window.watts(),
            "window": window,
            "energy_p5_p50_p95_j": window.energy.band(),
            "idle_floor": floor,
            "idle_j": idle_j,
            "above_idle_j": idle_j.map(|idle| window.energy.joules - idle),
            "others_share_of_cpu": window.others_share(),
            "caveat": window.energy.grade.caveat(),
            "boundary": window.boundary(),
        });
        writeln!(out, "{report}")?;
    } else {
        eprint!("{}", spent(&window, floor.as_ref()));
    }
    match exit_code(status) {
        0 => Ok(()),
        code => Err(ExitWith(code).into()),
    }
}

/// As shells have it: 128 and the signal, for a program ended by one.
pub fn exit_code(status: process::ExitStatus) -> u8 {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        return 128_u8.saturating_add(u8::try_from(signal).unwrap_or(u8::MAX));
    }
    status.code().map_or(1, |code| u8::try_from(code).unwrap_or(1))
}

fn spent(window: &Window, floor: Option<&IdleFloor>) -> String {
    let mut text =
        format!("\nenergy    {} in {:.2} s, {:.2} W\n", Spent::of_window(window), window.seconds, window.watts());
    if let Some(floor) = floor {
        let idle = window.idle_at(floor.watts);
        let sketch = if floor.steady { "" } else { " (a sketch: shorter than 30 s, or not steady)" };
        let above = joules(window.energy.joules - idle);
        let _ = writeln!(text, "idle      {} at {:.2} W{sketch}; above idle {above}", joules(idle), floor.watts);
    } else {
        let modelled: f64 = window.shares.iter().filter_map(|s| s.idle_j).sum();
        if modelled > 0.0 {
            let _ = writeln!(text, "idle      {} by the model; --idle 30 measures it", joules(modelled));
        }
    }
    if let Some(others) = window.others_share() {
        let _ = writeln!(
            text,
            "others    {:.0} % of the busy processor time was other programs'; joules are the machine's",
            100.0 * others
        );
    }
    for share in &window.shares {
        let _ = writeln!(
            text,
            "  {}: {} [{}] {}",
            share.component,
            joules(share.energy.joules),
            share.energy.grade,
            share.how
        );
    }
    for share in &window.inside {
        let _ = writeln!(
            text,
            "  of it {}: {} [{}] {}",
            share.component,
            joules(share.energy.joules),
            share.energy.grade,
            share.how
        );
    }
    for unknown in &window.unknown {
        let _ = writeln!(text, "  {}: unknown for {:.1} s", unknown.component, unknown.seconds);
    }
    if let Some(caveat) = window.energy.grade.caveat() {
        let _ = writeln!(text, "note      {caveat}");
    }
    text
}

impl RowArgs {
    /// For people.
    fn describe(&self) -> String {
        let parts = [("run", &self.run), ("model", &self.model), ("day", &self.day)];
        let parts: Vec<_> = parts.iter().filter_map(|(name, v)| Some(format!("{name} {}", v.as_ref()?))).collect();
        if parts.is_empty() { "the whole ledger".into() } else { parts.join(", ") }
    }

    fn read(&self) -> anyhow::Result<Vec<Numbered>> {
        let mut rows = open(self.file.as_ref())?.rows()?;
        if let Some(run) = &self.run {
            rows.retain(|r| r.entry.run.starts_with(run.as_str()));
        }
        if let Some(model) = &self.model {
            let made = jevons_energy::ledger::models_of_runs(&rows);
            let made: Vec<String> = made
                .into_iter()
                .filter(|(_, m)| m.starts_with(model.as_str()))
                .map(|(run, _)| run.to_owned())
                .collect();
            rows.retain(|r| match &r.entry.model {
                Some(m) => m.starts_with(model.as_str()),
                None => made.contains(&r.entry.run),
            });
        }
        if let Some(wanted) = &self.day {
            rows.retain(|r| day(r.entry.at_ms) == *wanted);
        }
        Ok(rows)
    }
}

fn open(file: Option<&PathBuf>) -> anyhow::Result<Ledger> {
    let path = file.cloned().or_else(account::ledger_path);
    let path = path.context("the ledger is off (JEVONS_LEDGER=off); name one with --file")?;
    Ok(Ledger::open_existing(path)?)
}

/// Runs that the report for people lists; `--json` has all.
const LAST_RUNS: usize = 20;

/// Sums over rows, and what they come to.
fn convert(
    args: &RowArgs,
    intensity: Option<&PathBuf>,
    rent: Option<Band>,
    site: &SiteArgs,
) -> anyhow::Result<LedgerReport> {
    let (mut site, facility) = site.site(Facility::Home)?;
    let rows = args.read()?;
    if let Some(file) = intensity {
        let hours = IntensityHours::from_csv(&input::text(file)?).with_context(|| file.display().to_string())?;
        site.grid_g_per_kwh = report::intensity_of_use(&rows, &hours).with_context(|| file.display().to_string())?;
    }
    let intensity_file = intensity.map(|file| file.display().to_string());
    let place = Place { site, facility, intensity_file, rent_usd_per_h: rent };
    Ok(LedgerReport::of(args.describe(), Summary::of(&rows), place, Month::now())?)
}

fn print_report(ledger: &LedgerReport, out: &mut impl Write) -> anyhow::Result<()> {
    let summary = &ledger.summary;
    let Some((from, to)) = summary.from_to_ms else {
        return Ok(writeln!(out, "the ledger has no such rows")?);
    };
    let mut report = Report::new(out);
    report.line(&format!(
        "{} runs, {} requests, {} to {}",
        summary.n_runs,
        summary.n_requests,
        time(from),
        time(to)
    ))?;
    let total = &summary.total;
    let mut rows = vec![
        ("energy".to_owned(), Spent::of_group(total).to_string()),
        (
            "tokens".into(),
            format!("{} computed, {} from caches", human::grouped(total.tokens), human::grouped(total.cached_tokens)),
        ),
        ("standby, load".into(), format!("{} waiting, {} loading", joules(total.idle_j), joules(total.load_j))),
    ];
    if let (Some(marginal), Some(full)) = (total.marginal_j_per_token(), total.full_j_per_token()) {
        rows.push((
            "per token".into(),
            format!("{} marginal, {} with standby and loading", joules(marginal), joules(full)),
        ));
    }
    if !total.complete() {
        let (phases, seconds) = (total.unknown_phases, total.unknown_s);
        rows.push((
            "unknown".into(),
            format!(
                "{phases} phases had no reading at all, and parts of the machine had none for {seconds:.1} s: the energy is a lower bound"
            ),
        ));
    }
    rows.extend(summary.caveat.map(|caveat| ("note".into(), caveat.into())));
    report.section("Total", &rows)?;
    let cells = |(label, value, unit, _): (&str, Interval, &str, &str)| {
        let [p5, p50, p95] = [value.p5, value.p50, value.p95].map(human::number);
        vec![label.to_owned(), p5, p50, p95, unit.to_owned()]
    };
    let come_to: Vec<_> = ledger.rows().into_iter().map(cells).collect();
    report.table("It comes to", &["", "p5", "p50", "p95", "unit"], &come_to)?;
    let site = &ledger.place.site;
    let grid = ledger.place.intensity_file.clone().unwrap_or_else(|| site.region.clone());
    report.line(&format!(
        "  grid of {grid}, PUE {}, {}; --region and --facility name yours, --html has every formula and source",
        human::number(site.pue.mid()),
        ledger.footprint.usd_is
    ))?;
    let line = |name: &str, g: &Group| {
        let per = g.marginal_j_per_token().map_or(String::new(), joules);
        let grade = g.energy.grade.to_string();
        vec![
            name.to_owned(),
            human::grouped(g.tokens),
            format!("{:.1}", g.seconds),
            joules(g.energy.joules),
            grade,
            per,
        ]
    };
    let header = ["", "tokens", "seconds", "energy", "grade", "per token"];
    report.table("By phase", &header, &summary.phases.iter().map(|(n, g)| line(n, g)).collect::<Vec<_>>())?;
    let short = |name: &str| if name.is_empty() { "(none)".to_owned() } else { name.chars().take(12).collect() };
    report.table("By model", &header, &summary.models.iter().map(|(n, g)| line(&short(n), g)).collect::<Vec<_>>())?;
    report.table("By command", &header, &summary.commands.iter().map(|(n, g)| line(n, g)).collect::<Vec<_>>())?;
    report.table("By day", &header, &summary.days.iter().map(|(n, g)| line(n, g)).collect::<Vec<_>>())?;
    let last = &summary.runs[summary.runs.len().saturating_sub(LAST_RUNS)..];
    let name = |r: &RunTotal| format!("{} {} {}", r.run, time(r.from_ms), r.command);
    let title = if last.len() < summary.runs.len() { format!("Last {LAST_RUNS} runs") } else { "By run".into() };
    report.table(&title, &header, &last.iter().map(|r| line(&name(r), &r.group)).collect::<Vec<_>>())?;
    Ok(())
}

fn verify(file: Option<&PathBuf>, expect: Option<&str>, json: bool, out: &mut impl Write) -> anyhow::Result<()> {
    let ledger = open(file)?;
    let mut verdict = ledger.verify()?;
    if let Some(head) = expect.filter(|head| !ledger.has_head(head).unwrap_or(false)) {
        verdict.problems.push(format!("no row has the head {head}: the chain was rewritten, or cut before it"));
    }
    if json {
        serde_json::to_writer_pretty(&mut *out, &verdict)?;
        writeln!(out)?;
    } else {
        writeln!(out, "{}: {} rows, head {}", ledger.path().display(), verdict.rows, verdict.head)?;
        for run in &verdict.open_runs {
            writeln!(out, "run {run} was not closed: killed, or still going on")?;
        }
        for problem in &verdict.problems {
            writeln!(out, "{problem}")?;
        }
        writeln!(out, "{}", if verdict.intact() { "intact" } else { "NOT intact" })?;
    }
    if verdict.intact() { Ok(()) } else { bail!("{}: the ledger is not as it was written", ledger.path().display()) }
}
