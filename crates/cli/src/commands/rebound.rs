use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, bail};
use chrono::{DateTime, NaiveDate, NaiveDateTime, Utc};
use clap::{Subcommand, ValueHint};
use jevons_energy::{
    convert::{Band, Facility, IntensityHours, SEED, constant},
    ledger::{Ledger, Summary, day},
    rebound::{
        self, Amounts, Budget, Cap, Deferral, Dividend, Effect, Estimate, Market, Measurement, Policy, Projection,
        Rates, Records, Resource, Slot, j_per_token, read_policy, used_today,
    },
};
use serde_json::json;

use crate::{
    account::{self, budget_path, now_ms},
    failure::{ExitWith, Interrupted},
    human, input, interrupt,
    place::SiteArgs,
};

/// Does efficiency save anything? The Jevons question as a model, as a measurement, and as a budget
///
/// The rebound R is the share of an efficiency gain's saving that growing use takes back: 0 % if all of it is kept, 100 % if none is, above
/// it (backfire) if more energy is used than before.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// What a gain in efficiency does to use and energy at a given elasticity; without arguments: a table
    ///
    /// Energy per token falls k times, a share φ of it reaches the price, use grows by k^(φε): E1/E0 = k^(φε − 1). It backfires exactly if
    /// φ·ε is above 1.
    Model(ModelArgs),
    /// What growing use made of a change, from the ledger or from records of use
    ///
    /// Use, tasks, tokens per task and J per token before and after, decomposed without a residual, with intervals of 95 %.
    /// Records too thin for a value get an interval or a refusal.
    Measure(MeasureArgs),
    /// Show, set or end the budget that chat, generate, score and train keep
    ///
    /// Its file is beside the ledger, and JEVONS_BUDGET names another. Without a ledger to count by, nothing starts under a budget.
    Budget {
        #[command(subcommand)]
        action: Option<BudgetAction>,
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
    /// Find the hours of least carbon for a job in a file of hourly intensity; with a command, wait for them and run it
    Defer(DeferArgs),
}

#[derive(Debug, clap::Args)]
struct ModelArgs {
    /// Energy per token, before over after (2, 5:10:33); up to three
    #[arg(long, value_name = "K")]
    gain: Vec<Band>,
    /// Share of the gain that reaches the price: about 1 where device time falls, 0.02 to 0.06 where only electricity does [default: 1]
    #[arg(long, value_name = "PHI")]
    pass_through: Option<Band>,
    /// Relative growth of use per relative fall of its price [default: the prior 0.3:0.9:1.8]
    #[arg(long, value_name = "EPSILON")]
    elasticity: Option<Band>,
    /// Draw energy over elasticity to this SVG file
    #[arg(long, value_name = "FILE.svg", value_hint = ValueHint::FilePath)]
    plot: Option<PathBuf>,
    /// Print as JSON
    #[arg(long)]
    json: bool,
    /// Of the Monte Carlo
    #[arg(long, value_name = "N", default_value_t = SEED)]
    seed: u64,
}

#[derive(Debug, clap::Args)]
struct MeasureArgs {
    /// First day of the new efficiency
    #[arg(long, value_name = "YYYY-MM-DD")]
    change: NaiveDate,
    /// Records instead of the ledger: CSV or JSON with day, tokens, joules, tasks and, if known, users, group
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with = "file")]
    usage: Option<PathBuf>,
    /// Ledger file [default: JEVONS_LEDGER, or that of the user]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    file: Option<PathBuf>,
    /// Group (in the ledger: key) that did not get the change; may be given several times
    #[arg(long, value_name = "GROUP")]
    control: Vec<String>,
    /// Share of the gain that reached the price, to tell the elasticity
    #[arg(long, value_name = "PHI")]
    pass_through: Option<f64>,
    /// Print as JSON
    #[arg(long)]
    json: bool,
    /// Of the Monte Carlo
    #[arg(long, value_name = "N", default_value_t = SEED)]
    seed: u64,
}

#[derive(Debug, Subcommand)]
enum BudgetAction {
    /// Set it, in place of the one there was
    Set(Box<SetArgs>),
    /// End it
    Off,
}

#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("caps").required(true).multiple(true).args(["joules", "grams", "litres", "usd"]))]
struct SetArgs {
    /// J per day (5K, 3.6M)
    #[arg(long, value_name = "J")]
    joules: Option<Band>,
    /// Grams of CO2e of the electricity per day
    #[arg(long, value_name = "G")]
    grams: Option<Band>,
    /// Litres of water per day
    #[arg(long, value_name = "L")]
    litres: Option<Band>,
    /// USD per day
    #[arg(long, value_name = "USD")]
    usd: Option<Band>,
    /// Whose: this key's only, or * for all keys together [default: each key by itself]
    #[arg(long, value_name = "KEY")]
    of: Option<String>,
    /// Keep what there is, and add or change what is named
    #[arg(long)]
    add: bool,
    /// Share of a cap from which on steps are slowed [default: 1, never]
    #[arg(long, value_name = "SHARE")]
    slow_from: Option<f64>,
    /// Efficiency dividend: share of each later saving per token that tightens the caps
    #[arg(long, value_name = "SHARE")]
    dividend: Option<f64>,
    /// J per token that savings are counted from [default: the ledger's last seven days]
    #[arg(long, value_name = "J", requires = "dividend")]
    baseline: Option<f64>,
    /// USD per hour of a rented machine, electricity inside
    #[arg(long, value_name = "USD", conflicts_with = "electricity_price")]
    rent: Option<f64>,
    #[command(flatten)]
    site: SiteArgs,
}

#[derive(Debug, clap::Args)]
struct DeferArgs {
    /// CSV: time,g_per_kwh with a line for each hour (2026-01-31T13:00Z,412.5)
    #[arg(value_name = "HOURS.csv", value_hint = ValueHint::FilePath)]
    intensity: PathBuf,
    /// Whole hours that the job takes
    #[arg(long, value_name = "N")]
    hours: usize,
    /// kWh of the facility that it takes in all
    #[arg(long, value_name = "KWH", default_value_t = 1.0)]
    kwh: f64,
    /// Not before (2026-01-31T13:00Z) [default: now with a command, else the beginning of the file]
    #[arg(long, value_name = "TIME", value_parser = time)]
    earliest: Option<DateTime<Utc>>,
    /// Done by
    #[arg(long, value_name = "TIME", value_parser = time)]
    deadline: Option<DateTime<Utc>>,
    /// Print as JSON
    #[arg(long, conflicts_with = "command")]
    json: bool,
    /// Program to run when the best hours in a row begin
    #[arg(last = true, value_name = "COMMAND", value_hint = ValueHint::CommandWithArguments)]
    command: Vec<OsString>,
}

fn time(text: &str) -> Result<DateTime<Utc>, String> {
    let minutes = || NaiveDateTime::parse_from_str(text, "%Y-%m-%dT%H:%MZ").map(|t| t.and_utc());
    let time = DateTime::parse_from_rfc3339(text).map(|t| t.to_utc()).or_else(|_| minutes());
    time.map_err(|_| format!("expected a time such as 2026-01-31T13:00Z, found {text:?}"))
}

pub fn run(args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    match &args.action {
        Action::Model(args) => model(args, out),
        Action::Measure(args) => measure(args, out),
        Action::Budget { action: None, json } => show_budget(*json, out),
        Action::Budget { action: Some(BudgetAction::Set(set)), json } => {
            set_budget(set)?;
            show_budget(*json, out)
        }
        Action::Budget { action: Some(BudgetAction::Off), .. } => end_budget(out),
        Action::Defer(args) => defer(args, out),
    }
}

fn put_json(value: &impl serde::Serialize, out: &mut impl Write) -> anyhow::Result<()> {
    serde_json::to_writer_pretty(&mut *out, value)?;
    Ok(writeln!(out)?)
}

fn percent(x: f64) -> String {
    if x.is_finite() { format!("{:.0} %", 100.0 * x) } else { "unbounded".into() }
}

/// Elasticities of the table.
const ELASTICITIES: [f64; 5] = [0.3, 0.6, 1.0, 1.11, 1.5];
/// Gains of the table, unless others are given.
const GAINS: [f64; 3] = [2.0, 5.0, 33.0];

fn model(args: &ModelArgs, out: &mut impl Write) -> anyhow::Result<()> {
    let phi = args.pass_through.unwrap_or(Band::exact(1.0));
    let gains = if args.gain.is_empty() { GAINS.map(Band::exact).to_vec() } else { args.gain.clone() };
    let prior = constant("elasticity_prior");
    let epsilon = args.elasticity.unwrap_or(prior.band);
    let effect = |gain: Band, elasticity| {
        rebound::effect(&Market { efficiency_gain: gain.mid(), pass_through: phi.mid(), elasticity })
    };
    let mut rows: Vec<(f64, Vec<Effect>, Projection)> = vec![];
    for gain in &gains {
        let table = ELASTICITIES.iter().map(|e| effect(*gain, *e)).collect::<Result<_, _>>()?;
        rows.push((gain.mid(), table, rebound::project(*gain, phi, epsilon, args.seed)?));
    }
    if let Some(path) = &args.plot {
        let mids: Vec<f64> = gains.iter().map(|g| g.mid()).collect();
        let svg = rebound::plot(&mids, phi.mid())?;
        jevons_sys::atomic::write(path, svg.as_bytes())
            .with_context(|| format!("{}: cannot write the plot", path.display()))?;
    }
    if args.json {
        let rows: Vec<_> = rows
            .iter()
            .map(|(gain, table, p)| {
                let table: Vec<_> =
                    ELASTICITIES.iter().zip(table).map(|(e, x)| json!({ "elasticity": e, "effect": x })).collect();
                json!({ "gain": gain, "table": table, "projection": p })
            })
            .collect();
        let elasticity = json!({ "band": epsilon, "source": args.elasticity.is_none().then_some(&prior.source) });
        return put_json(&json!({ "pass_through": phi, "elasticity": elasticity, "gains": rows }), out);
    }
    writeln!(out, "Rebound R, where {} of the gain reach the price", percent(phi.mid()))?;
    write!(out, "{:>10}", "gain")?;
    for e in ELASTICITIES {
        write!(out, "{:>9}", format!("ε={e}"))?;
    }
    writeln!(out)?;
    for (gain, table, _) in &rows {
        write!(out, "{:>10}", human::number(*gain))?;
        for effect in table {
            write!(out, "{:>9}", percent(effect.rebound))?;
        }
        writeln!(out)?;
    }
    writeln!(out)?;
    for (gain, _, p) in &rows {
        let i = |x: &jevons_energy::convert::Interval, f: fn(f64) -> String| {
            format!("{} ({} to {})", f(x.p50), f(x.p5), f(x.p95))
        };
        writeln!(
            out,
            "gain {}: use grows {} times, energy becomes {} of before, R {}; more energy than before with probability {}",
            human::number(*gain),
            i(&p.demand_ratio, human::number),
            i(&p.energy_ratio, human::number),
            i(&p.rebound, percent),
            percent(p.backfire),
        )?;
        writeln!(
            out,
            "  at the central values: {}; it backfires above ε = {}",
            p.central.regime,
            human::number(p.critical_elasticity)
        )?;
    }
    if args.elasticity.is_none() {
        let [low, mid, high] = [prior.band.low(), prior.band.mid(), prior.band.high()].map(human::number);
        writeln!(out, "\nelasticity {mid} ({low} to {high}): {}", prior.source)?;
    }
    Ok(())
}

fn measure(args: &MeasureArgs, out: &mut impl Write) -> anyhow::Result<()> {
    let mut notes = vec![];
    let (records, of) = match &args.usage {
        Some(path) => {
            let text = input::text(path)?;
            (Records::from_text(&text).with_context(|| path.display().to_string())?, path.display().to_string())
        }
        None => {
            let path = args.file.clone().or_else(account::ledger_path);
            let path =
                path.context("the ledger is off (JEVONS_LEDGER=off); name one with --file, or records with --usage")?;
            let rows = Ledger::open_existing(&path)?.rows()?;
            let (records, left_out) = Records::from_ledger(&rows)
                .with_context(|| format!("{}: no day of it has a request with known energy", path.display()))?;
            if left_out > 0 {
                notes.push(format!("{left_out} days are left out: part of their energy is unknown"));
            }
            let grade = Summary::of(&rows).total.energy.grade;
            if let Some(caveat) = grade.caveat() {
                notes
                    .push(format!("{caveat}; its gain in J per token is a gain in seconds per token and nothing more"));
            }
            (records, format!("{}, joules of grade {grade}", path.display()))
        }
    };
    let known: BTreeSet<&str> = records.all().iter().filter_map(|r| r.group.as_deref()).collect();
    if let Some(missing) = args.control.iter().find(|c| !known.contains(c.as_str())) {
        let known = if known.is_empty() { "none".into() } else { known.into_iter().collect::<Vec<_>>().join(", ") };
        bail!("--control {missing}: there is no such group in {of}; there are: {known}");
    }
    let options = rebound::Options {
        change: args.change,
        control: args.control.iter().cloned().collect(),
        pass_through: args.pass_through,
        seed: args.seed,
    };
    let mut m = rebound::measure(&records, &options).with_context(|| of.clone())?;
    m.notes.splice(0..0, notes);
    if args.json { put_json(&m, out) } else { print_measurement(&m, &of, args, out) }
}

fn print_measurement(m: &Measurement, of: &str, args: &MeasureArgs, out: &mut impl Write) -> anyhow::Result<()> {
    let estimate = |e: &Estimate, f: &dyn Fn(f64) -> String| match (e.point, &e.refused) {
        (Some(point), _) => format!("{} ({} to {})", f(point), f(e.low), f(e.high)),
        (None, Some(why)) if e.low.is_finite() && e.high.is_finite() => {
            format!("between {} and {}; no value, since {why}", f(e.low), f(e.high))
        }
        (None, why) => format!("no answer: {}", why.as_deref().unwrap_or("too few days")),
    };
    let times = |x: f64| human::number(x);
    let share = |x: f64| percent(x);
    writeln!(out, "{of}: {} days before {}, {} from it on", m.days_before, args.change, m.days_after)?;
    writeln!(out, "\nPer day          before      after")?;
    let mut row =
        |name: &str, a: f64, b: f64| writeln!(out, "  {name:<10} {:>10} {:>10}", human::number(a), human::number(b));
    row("tasks", m.before.tasks, m.after.tasks)?;
    row("tokens", m.before.tokens, m.after.tokens)?;
    row("joules", m.before.joules, m.after.joules)?;
    writeln!(
        out,
        "\nEnergy, factor by factor (after over before; part of the change, as a share of the energy before)"
    )?;
    for f in &m.factors {
        writeln!(out, "  {}: {}; {}", f.name, estimate(&f.ratio, &times), estimate(&f.share_of_before, &share))?;
    }
    writeln!(
        out,
        "  together {} of the energy before; change {} J per day, left over by the decomposition {:.1e} J",
        estimate(&m.energy_ratio, &share),
        human::number(m.decomposition.change_j),
        m.decomposition.residual_j
    )?;
    writeln!(out, "\nEfficiency gain: {} times", estimate(&m.efficiency_gain, &times))?;
    writeln!(out, "Rebound, all growth counted: {}", estimate(&m.rebound, &share))?;
    writeln!(out, "Rebound, growth beyond the trend: {}", estimate(&m.rebound_beyond_trend, &share))?;
    match &m.rebound_beyond_control {
        Some(e) => writeln!(out, "Rebound, beyond the control groups: {}", estimate(e, &share))?,
        None => writeln!(out, "Rebound, beyond control groups: none named (--control GROUP)")?,
    }
    writeln!(out, "Response φε, all growth counted: {}", estimate(&m.response, &times))?;
    if let Some(e) = &m.elasticity {
        writeln!(out, "Elasticity ε, growth beyond the trend: {}", estimate(e, &times))?;
    }
    for note in &m.notes {
        writeln!(out, "note: {note}")?;
    }
    Ok(())
}

fn budget_file() -> anyhow::Result<PathBuf> {
    budget_path().context("there is no folder for the budget; name a file with JEVONS_BUDGET=FILE")
}

fn set_budget(args: &SetArgs) -> anyhow::Result<()> {
    let path = budget_file()?;
    let (site, _) = args.site.site(Facility::Home)?;
    let before = if args.add { read_policy(&path)? } else { None };
    if args.of.as_deref().is_some_and(|key| key.is_empty() || key.chars().any(char::is_control)) {
        bail!("--of: expected the name of a key, or {}", Cap::ALL);
    }
    let mut caps = before.as_ref().map_or_else(Vec::new, |policy| policy.caps.clone());
    for (resource, amount) in [
        (Resource::Joules, args.joules),
        (Resource::Grams, args.grams),
        (Resource::Litres, args.litres),
        (Resource::Usd, args.usd),
    ] {
        if let Some(amount) = amount {
            caps.retain(|cap| cap.resource != resource || cap.key != args.of);
            caps.push(Cap { resource, amount: amount.mid(), key: args.of.clone() });
        }
    }
    let dividend = match (args.dividend, args.baseline) {
        (None, _) => before.as_ref().and_then(|policy| policy.dividend),
        (Some(share), Some(baseline_j_per_token)) => Some(Dividend { share, baseline_j_per_token }),
        (Some(share), None) => {
            let measured = account::ledger_path().map(|ledger| j_per_token(&ledger, now_ms())).transpose()?.flatten();
            let baseline_j_per_token = measured.context(
                "--dividend counts savings from a J per token, and the ledger has no request of the last seven days: give --baseline J",
            )?;
            Some(Dividend { share, baseline_j_per_token })
        }
    };
    let slow_from = args.slow_from.or(before.as_ref().map(|policy| policy.slow_from)).unwrap_or(1.0);
    let rates = match before {
        Some(policy) if args.rent.is_none() && !args.site.is_given() => policy.rates,
        _ => Rates::of(&site, args.rent),
    };
    let policy = Policy { slow_from, rates, dividend, caps };
    policy.check()?;
    if let Some(folder) = path.parent().filter(|f| !f.as_os_str().is_empty()) {
        fs::create_dir_all(folder).with_context(|| format!("{}: cannot make the folder", folder.display()))?;
    }
    jevons_sys::atomic::write(&path, policy.to_toml().as_bytes())
        .with_context(|| format!("{}: cannot write the budget", path.display()))
}

fn end_budget(out: &mut impl Write) -> anyhow::Result<()> {
    let path = budget_file()?;
    match fs::remove_file(&path) {
        Ok(()) => Ok(writeln!(out, "the budget has ended: {} is removed", path.display())?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(writeln!(out, "there is no budget")?),
        Err(error) => Err(error).with_context(|| format!("{}: cannot remove the budget", path.display())),
    }
}

fn show_budget(json: bool, out: &mut impl Write) -> anyhow::Result<()> {
    let path = budget_file()?;
    let Some(policy) = read_policy(&path)? else {
        if json {
            return put_json(&json!({ "budget": null }), out);
        }
        return Ok(writeln!(out, "there is no budget; set one: jevons rebound budget set --joules 50K")?);
    };
    let ledger = account::ledger_path().filter(|ledger| ledger.exists());
    let now = now_ms();
    let (j_per_token, used) = match &ledger {
        Some(ledger) => (j_per_token(ledger, now)?, used_today(ledger, &policy.rates, now)?),
        None => (None, vec![]),
    };
    let budget = Budget::new(policy, j_per_token)?;
    let (policy, today) = (budget.policy(), day(now));
    let all = used.iter().fold(Amounts::default(), |sum, (_, amounts)| sum.plus(*amounts));
    if json {
        let caps: Vec<_> = policy
            .caps
            .iter()
            .map(|cap| json!({ "resource": cap.resource, "of": cap.key, "amount": cap.amount, "in_force": budget.limit(cap) }))
            .collect();
        let used: Vec<_> = used.iter().map(|(key, amounts)| json!({ "key": key, "used": amounts })).collect();
        let report = json!({
            "budget": path, "day": today, "caps": caps, "slow_from": policy.slow_from, "dividend": policy.dividend,
            "j_per_token": j_per_token, "rates": policy.rates, "used_today": used,
        });
        return put_json(&report, out);
    }
    writeln!(out, "{}", path.display())?;
    for cap in &policy.caps {
        let of = match cap.key.as_deref() {
            None => "each key".to_owned(),
            Some(Cap::ALL) => "all keys together".into(),
            Some(key) => key.to_owned(),
        };
        let (limit, unit) = (budget.limit(cap), cap.resource.unit());
        let tightened = if limit < cap.amount {
            format!(", {} before the dividend", human::number(cap.amount))
        } else {
            String::new()
        };
        writeln!(out, "  {of}: {} {unit} per day, UTC{tightened}", human::number(limit))?;
    }
    if policy.slow_from < 1.0 {
        writeln!(out, "  slower from {} of a cap on", percent(policy.slow_from))?;
    }
    if let Some(d) = policy.dividend {
        let now = j_per_token
            .map_or("no tokens in the last seven days".into(), |j| format!("{} J per token now", human::number(j)));
        writeln!(
            out,
            "  dividend: {} of each saving below {} J per token tightens the caps; {now}",
            percent(d.share),
            human::number(d.baseline_j_per_token)
        )?;
    }
    let r = &policy.rates;
    writeln!(
        out,
        "  {}: {} g CO2e, {} L and {} USD per kWh of the machine, {} USD per hour",
        r.place,
        human::number(r.g_per_kwh),
        human::number(r.l_per_kwh),
        human::number(r.usd_per_kwh),
        human::number(r.usd_per_hour)
    )?;
    let amounts = |a: &Amounts| {
        format!(
            "{} J, {} g CO2e, {} L, {} USD",
            human::number(a.joules),
            human::number(a.grams),
            human::number(a.litres),
            human::number(a.usd)
        )
    };
    writeln!(out, "used on {today}, UTC")?;
    for (key, used) in &used {
        writeln!(out, "  {}: {}", if key.is_empty() { "(no key)" } else { key }, amounts(used))?;
    }
    Ok(writeln!(out, "  all: {}", amounts(&all))?)
}

fn defer(args: &DeferArgs, out: &mut impl Write) -> anyhow::Result<()> {
    let text = input::text(&args.intensity)?;
    let hours = IntensityHours::from_csv(&text).with_context(|| args.intensity.display().to_string())?;
    // With a command, the hour that has begun counts: it would run in it.
    let now = DateTime::from_timestamp_millis(now_ms()).unwrap_or_default();
    let this_hour = now - chrono::TimeDelta::milliseconds(now.timestamp_millis().rem_euclid(3_600_000));
    let earliest = match (args.earliest, args.command.is_empty()) {
        (earliest, true) => earliest,
        (earliest, false) => Some(earliest.map_or(this_hour, |e| e.max(this_hour))),
    };
    let d = rebound::defer(&hours, args.hours, args.kwh, earliest, args.deadline)
        .with_context(|| args.intensity.display().to_string())?;
    if args.json {
        return put_json(&d, out);
    }
    if args.command.is_empty() {
        return print_deferral(&d, out);
    }
    let start = d.in_a_row.hours[0];
    eprintln!(
        "begins at {}: {} g CO2e less than at once ({}); Ctrl-C gives up",
        start.format("%Y-%m-%dT%H:%MZ"),
        human::number(d.saved_g),
        percent(d.saved_share)
    );
    wait_until(start)?;
    run_command(&args.command)
}

fn print_deferral(d: &Deferral, out: &mut impl Write) -> anyhow::Result<()> {
    let mut slot = |name: &str, slot: &Slot| {
        let hours: Vec<String> = slot.hours.iter().map(|h| h.format("%Y-%m-%dT%H:%MZ").to_string()).collect();
        let when = match hours.len() {
            0..=6 => hours.join(", "),
            n => format!("{} to {} ({n} hours)", hours[0], hours[n - 1]),
        };
        writeln!(out, "{name}: {} g CO2e; {when}", human::number(slot.carbon_g))
    };
    slot("at once", &d.now)?;
    slot("best hours in a row", &d.in_a_row)?;
    slot("best hours, interrupted", &d.interrupted)?;
    writeln!(
        out,
        "saved by the best in a row: {} g CO2e ({}); the worst start would cost {} g more than the best",
        human::number(d.saved_g),
        percent(d.saved_share),
        human::number(d.at_stake_g)
    )?;
    for note in &d.notes {
        writeln!(out, "note: {note}")?;
    }
    Ok(())
}

/// Sleeps by the clock, so that a machine that was suspended is not late.
fn wait_until(start: DateTime<Utc>) -> anyhow::Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    let asked = stop.clone();
    interrupt::on_signal(move || asked.store(true, Ordering::Relaxed))?;
    while now_ms() < start.timestamp_millis() {
        if stop.load(Ordering::Relaxed) {
            return Err(Interrupted.into());
        }
        thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

fn run_command(command: &[OsString]) -> anyhow::Result<()> {
    interrupt::on_signal(|| {})?; // it is for the program
    let program = Path::new(&command[0]);
    let status = process::Command::new(program).args(&command[1..]).status();
    let status =
        status.with_context(|| format!("{}: cannot be run; is it installed and in the PATH?", program.display()))?;
    match super::meter::exit_code(status) {
        0 => Ok(()),
        code => Err(ExitWith(code).into()),
    }
}
