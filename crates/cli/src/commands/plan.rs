use std::{
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use clap::ValueEnum;
use jevons_energy::{
    claims::{self, Claim},
    convert::{Band, Evidence, Facility, Money, Month, SEED, Site},
    plan::{self, BackTest, Device, Distillation, ModelShape, Plan, R1, Request, Rl, Serving, Work},
};

use crate::{human, input, place::SiteArgs, report::Report};

/// Say what a training run or a service will take, before it starts
///
/// From a config.json (or sizes), tokens and hardware to FLOP, device-hours, days, memory, joules, megawatts, carbon, water and
/// money, each as p5, p50 and p95. The band of utilisation comes from published runs. Quantities take suffixes (14.8T tokens) and
/// bands (1T:2T:5T).
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  jevons plan config.json --tokens 14.8T --hardware H800 --devices 2048 --region CHN
  jevons plan --size 70B --tokens 2T --hardware A100
  jevons plan config.json --stage serve --users 10K --requests 20 --hardware H200
  jevons plan config.json --stage r1 --hardware H800 --devices 512
  jevons plan --claims
  jevons plan --size 30M --tokens 1B --hardware cpu --bench bench.json --cpu-watts 65")]
pub struct Args {
    /// A config.json, or the folder of a model
    #[arg(conflicts_with = "size")]
    config: Option<PathBuf>,
    /// All parameters, where there is no config.json (70B)
    #[arg(long, value_name = "N")]
    size: Option<Band>,
    /// Parameters that run per token, of a mixture of experts (37B) [default: all]
    #[arg(long, value_name = "N", requires = "size")]
    active: Option<Band>,
    /// What is done with the model
    #[arg(long, value_enum, default_value_t = Stage::Train)]
    stage: Stage,
    /// Check what the planner says of published runs, each left out of the table that it is predicted from
    #[arg(long, conflicts_with_all = ["config", "size"])]
    back_tests: bool,
    /// Compute what the press says again: each number with inputs, source and verdict
    #[arg(long, conflicts_with_all = ["config", "size", "back_tests"])]
    claims: bool,
    /// Print everything as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    work: WorkArgs,
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    site: SiteArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Stage {
    /// Pre-training or fine-tuning on --tokens
    Train,
    /// Reinforcement learning with sampled groups (GRPO)
    Rl,
    /// A teacher writes texts, the model learns them
    Distill,
    /// The whole R1 recipe on top of a base model, from the published counts
    R1,
    /// A service: --users and their --requests
    Serve,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Work")]
struct WorkArgs {
    /// Tokens to train on, epochs multiplied in; with distill: tokens of the kept texts
    #[arg(long, value_name = "N")]
    tokens: Option<Band>,
    /// Length of a training sequence
    #[arg(long, value_name = "N", default_value = "4096")]
    sequence: Band,
    /// Steps of reinforcement learning
    #[arg(long, value_name = "N")]
    steps: Option<Band>,
    /// Outputs that one step learns from
    #[arg(long, value_name = "N", default_value = "512")]
    outputs: Band,
    /// Outputs sampled at once [default: 16 steps' worth]
    #[arg(long, value_name = "N")]
    outputs_at_once: Option<Band>,
    /// Mean tokens of an output
    #[arg(long, value_name = "N", default_value = "4K:8K:12K")]
    mean_tokens: Band,
    /// Limit of an output's tokens
    #[arg(long, value_name = "N", default_value = "32768")]
    max_tokens: Band,
    /// Epochs of the student
    #[arg(long, value_name = "N", default_value = "2")]
    epochs: Band,
    /// Share of the teacher's texts that is kept
    #[arg(long, value_name = "SHARE", default_value = "0.2:0.5:1")]
    kept: Band,
    /// config.json of the teacher [default: the texts are there already]
    #[arg(long, value_name = "CONFIG", value_hint = clap::ValueHint::AnyPath)]
    teacher: Option<PathBuf>,
    /// Users of the service
    #[arg(long, value_name = "N")]
    users: Option<Band>,
    /// Requests of a user per day
    #[arg(long, value_name = "N", default_value = "5:10:20")]
    requests: Band,
    /// Input tokens of a request
    #[arg(long, value_name = "N", default_value = "500:1000:3000")]
    input: Band,
    /// Output tokens of a request, thinking included
    #[arg(long, value_name = "N", default_value = "400:1000:4000")]
    output: Band,
    /// Share of input tokens found in a cache
    #[arg(long, value_name = "SHARE", default_value = "0.5")]
    cached: Band,
    /// Replies that one copy of the model writes at once; with distill: the teacher's
    #[arg(long, value_name = "N", default_value = "64")]
    batch: Band,
    /// Busiest hour over the mean
    #[arg(long, value_name = "RATIO", default_value = "1.5:2:4")]
    peak: Band,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Hardware and money")]
struct PlaceArgs {
    /// H800, H100, H200, A100, MI300X, B200, V100, TPUv4, or cpu
    #[arg(long, value_name = "NAME", default_value = "H100")]
    hardware: String,
    /// How many devices
    #[arg(long, value_name = "N")]
    devices: Option<Band>,
    /// With --hardware cpu: what `jevons bench --json` (or `bench gemm --json`) wrote on that machine: its speed of products and memory
    #[arg(long, value_name = "FILE.json", value_hint = clap::ValueHint::FilePath, conflicts_with_all = ["cpu_gflops", "cpu_bandwidth"])]
    bench: Option<PathBuf>,
    /// With --hardware cpu: speed of large products in GFLOP/s, instead of --bench
    #[arg(long, value_name = "GFLOPS")]
    cpu_gflops: Option<Band>,
    /// With --hardware cpu: power of the whole machine under load
    #[arg(long, value_name = "W", required_if_eq("hardware", "cpu"))]
    cpu_watts: Option<Band>,
    /// With --hardware cpu: memory in GB
    #[arg(long, value_name = "GB", default_value = "16")]
    cpu_memory: Band,
    /// With --hardware cpu: memory bandwidth in GB/s
    #[arg(long, value_name = "GB/S", default_value = "40")]
    cpu_bandwidth: Band,
    /// Model FLOP over the peak's, if you know yours [default: from published runs]
    #[arg(long, value_name = "SHARE")]
    utilisation: Option<Band>,
    /// Device-hours, if the run has been: replaces the estimate
    #[arg(long, value_name = "H")]
    device_hours: Option<Band>,
    /// Bytes per stored parameter [default: of the config; 2 for sizes]
    #[arg(long, value_name = "N")]
    weight_bytes: Option<Band>,
    /// How it is paid for: one of three, never two
    #[arg(long, value_enum)]
    money: Option<MoneyArg>,
    /// USD per device-hour, electricity included
    #[arg(long, value_name = "USD")]
    rent: Option<Band>,
    /// With --money api: USD per 10⁶ input tokens, cached input tokens, output tokens
    #[arg(long, value_name = "USD", num_args = 3, value_names = ["IN", "CACHED", "OUT"])]
    api_prices: Option<Vec<Band>>,
    /// Of the Monte Carlo
    #[arg(long, value_name = "N", default_value_t = SEED)]
    seed: u64,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum MoneyArg {
    /// Rented hours, electricity inside
    Rent,
    /// Bought devices, electricity on top
    Own,
    /// A price per token, everything inside (serve only)
    Api,
}

pub fn run(args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    if args.back_tests {
        let tests = plan::back_tests()?;
        return if args.json { json(&tests, out) } else { print_back_tests(&tests, out) };
    }
    if args.claims {
        let claims = claims::claims();
        let warnings = claims::warnings(Month::now());
        return if args.json {
            json(&serde_json::json!({ "claims": claims, "warnings": warnings }), out)
        } else {
            print_claims(&claims, &warnings, out)
        };
    }
    let plan = plan::plan(&args.request()?)?;
    if args.json { json(&plan, out) } else { print(&plan, out) }
}

fn json(value: &impl serde::Serialize, out: &mut impl Write) -> anyhow::Result<()> {
    serde_json::to_writer_pretty(&mut *out, value)?;
    Ok(writeln!(out)?)
}

impl Args {
    fn request(&self) -> anyhow::Result<Request> {
        let mut model = match (&self.config, self.size) {
            (Some(path), _) => shape(path)?,
            (None, Some(size)) => ModelShape::from_size(size.mid(), self.active.unwrap_or(size).mid())?,
            (None, None) => bail!("name a config.json, or give --size (and --active for a mixture of experts)"),
        };
        let place = &self.place;
        if let Some(bytes) = place.weight_bytes {
            model.stored_bytes = bytes.mid();
        }
        let device = place.device()?;
        let (site, facility) = self.site.site(if device.is_cpu() { Facility::Home } else { Facility::Datacentre })?;
        Ok(Request {
            work: self.work(&model)?,
            money: place.money(&device, &site)?,
            model,
            devices: place.devices.map(Band::mid),
            device_hours: place.device_hours,
            utilisation: place.utilisation,
            without_run: None,
            site,
            facility,
            seed: place.seed,
            device,
        })
    }

    fn work(&self, model: &ModelShape) -> anyhow::Result<Work> {
        let w = &self.work;
        let need = |name: &str, value: Option<Band>| {
            let stage = self.stage.to_possible_value();
            value.with_context(|| format!("--stage {} needs --{name}", stage.as_ref().map_or("", |s| s.get_name())))
        };
        Ok(match self.stage {
            Stage::Train => Work::Train { tokens: need("tokens", w.tokens)?, sequence: w.sequence.mid() },
            Stage::Rl => Work::Rl(Rl {
                steps: need("steps", w.steps)?,
                outputs_per_step: w.outputs.mid(),
                outputs_at_once: w.outputs_at_once.map_or(16.0 * w.outputs.mid(), Band::mid),
                mean_tokens: w.mean_tokens,
                longest_tokens: w.max_tokens,
                prompt_tokens: 300.0,
            }),
            Stage::Distill => Work::Distill(Distillation {
                tokens: need("tokens", w.tokens)?,
                epochs: w.epochs.mid(),
                kept: w.kept,
                teacher: w.teacher.as_deref().map(shape).transpose()?,
                teacher_batch: w.batch.mid(),
                length: w.sequence.mid(),
            }),
            Stage::R1 => Work::R1(R1::published(model)),
            Stage::Serve => Work::Serve(Serving {
                users: need("users", w.users)?,
                requests_per_day: w.requests,
                input_tokens: w.input,
                cached_share: w.cached.mid(),
                output_tokens: w.output,
                batch: w.batch.mid(),
                peak: w.peak,
            }),
        })
    }
}

fn shape(path: &Path) -> anyhow::Result<ModelShape> {
    let file = [path.join("config.json"), path.join("model/config.json")].into_iter().find(|file| file.is_file());
    let file = file.unwrap_or_else(|| path.to_path_buf());
    ModelShape::from_config_json(&input::text(&file)?).with_context(|| file.display().to_string())
}

/// GFLOP/s of large products and GB/s of memory, all threads, from the report of a bench.
fn measured(file: &Path) -> anyhow::Result<(Band, f64)> {
    let report: serde_json::Value =
        serde_json::from_str(&input::text(file)?).with_context(|| file.display().to_string())?;
    let limit = |name: &str| {
        let value = report["limits"][name]["all_threads"].as_f64().filter(|v| v.is_finite() && *v > 0.0);
        value.with_context(|| {
            format!("{}: no `limits.{name}.all_threads`; expected what `jevons bench --json` writes", file.display())
        })
    };
    let gflops = limit("product_flop_per_s")? / 1e9;
    Ok((Band::new(gflops, gflops, gflops)?, limit("read_bytes_per_s")? / 1e9))
}

impl PlaceArgs {
    fn device(&self) -> anyhow::Result<Device> {
        let mut device = if self.hardware.eq_ignore_ascii_case("cpu") {
            let (gflops, bandwidth) = match (&self.bench, self.cpu_gflops) {
                (Some(file), _) => measured(file)?,
                (None, Some(gflops)) => (gflops, self.cpu_bandwidth.mid()),
                (None, None) => {
                    bail!(
                        "--hardware cpu needs --bench FILE.json, written by `jevons bench gemm --json`, or --cpu-gflops"
                    )
                }
            };
            let watts = self.cpu_watts.context("--hardware cpu needs --cpu-watts")?;
            Device::cpu(gflops, watts, self.cpu_memory.mid(), bandwidth)?
        } else {
            Device::named(&self.hardware)?
        };
        if let (true, Some(file)) = (device.is_cpu(), &self.bench) {
            device.source = format!("measured by jevons bench ({}); power as declared", file.display());
        }
        if self.rent.is_some() {
            device.rent_usd_per_h = self.rent;
        }
        Ok(device)
    }

    fn money(&self, device: &Device, site: &Site) -> anyhow::Result<Money> {
        Ok(match (self.money, self.api_prices.as_deref()) {
            (Some(MoneyArg::Api) | None, Some(&[usd_per_m_input, usd_per_m_cached, usd_per_m_output])) => {
                Money::Api { usd_per_m_input, usd_per_m_cached, usd_per_m_output }
            }
            (Some(MoneyArg::Api), _) => bail!("--money api needs --api-prices IN CACHED OUT, in USD per 10⁶ tokens"),
            (_, Some(_)) => bail!("--api-prices goes with --money api: the ways to pay exclude each other"),
            (Some(MoneyArg::Own), _) if self.rent.is_some() => {
                bail!("--rent goes with --money rent: the ways to pay exclude each other")
            }
            (Some(MoneyArg::Own), _) => device.owned(site.electricity_usd_per_kwh),
            (Some(MoneyArg::Rent), _) if device.rent_usd_per_h.is_none() => bail!("give the --rent of this machine"),
            _ => device.default_money(site.electricity_usd_per_kwh),
        })
    }
}

fn print(plan: &Plan, out: &mut impl Write) -> anyhow::Result<()> {
    let mut report = Report::new(out);
    report.line(&plan.title)?;
    let row = |row: &plan::Row| {
        let (factor, unit) = fitting(row.unit, row.value.p95);
        let [p5, p50, p95] = [row.value.p5, row.value.p50, row.value.p95].map(|x| human::number(x * factor));
        vec![row.label.to_owned(), p5, p50, p95, unit.to_owned()]
    };
    let rows: Vec<_> = plan.rows.iter().map(row).collect();
    report.table("Plan", &["", "p5", "p50", "p95", "unit"], &rows)?;
    let assumption = |a: &plan::Assumption| {
        let numbers = if a.band.is_exact() {
            human::number(a.band.mid())
        } else {
            [a.band.low(), a.band.mid(), a.band.high()].map(human::number).join(", ")
        };
        let unit = if a.unit == "1" { String::new() } else { format!(" {}", a.unit) };
        (a.name.clone(), format!("{numbers}{unit}; {}", a.source))
    };
    report.section("It stands on (p5, p50, p95)", &plan.assumptions.iter().map(assumption).collect::<Vec<_>>())?;
    let notes = plan.boundary.iter().map(|line| ("boundary".to_owned(), line.clone()));
    let warnings = plan.warnings.iter().map(|line| ("warning".to_owned(), line.clone()));
    report.section("To know", &notes.chain(warnings).collect::<Vec<_>>())?;
    Ok(())
}

/// A smaller unit for small numbers, and what to multiply by.
fn fitting(unit: &'static str, largest: f64) -> (f64, &'static str) {
    match unit {
        _ if largest >= 1.0 => (1.0, unit),
        "MWh" => (1e3, "kWh"),
        "MW" if largest >= 1e-3 => (1e3, "kW"),
        "MW" => (1e6, "W"),
        "t CO2e" => (1e3, "kg CO2e"),
        "m3" => (1e3, "L"),
        _ => (1.0, unit),
    }
}

fn print_back_tests(tests: &[BackTest], out: &mut impl Write) -> anyhow::Result<()> {
    writeln!(out, "{:<18} {:<6} {:>6} {:>9}   {:>9} {:>9} {:>9}", "run", "on", "use", "hours", "p5", "p50", "p95")?;
    for t in tests {
        let [a, b, c] = [t.device_hours.p5, t.device_hours.p50, t.device_hours.p95].map(human::number);
        let hours = human::number(t.run.device_kh * 1e3);
        let verdict = if t.inside { "inside" } else { "OUTSIDE" };
        writeln!(
            out,
            "{:<18} {:<6} {:>6.3} {hours:>9}   {a:>9} {b:>9} {c:>9}  {verdict}",
            t.run.name, t.run.chip, t.utilisation
        )?;
    }
    let inside = tests.iter().filter(|t| t.inside).count();
    Ok(writeln!(
        out,
        "\n{inside} of {} inside; each was left out of the table that it was predicted from",
        tests.len()
    )?)
}

fn print_claims(claims: &[Claim], warnings: &[String], out: &mut impl Write) -> anyhow::Result<()> {
    let band = |low: f64, mid: f64, high: f64| match low == high {
        true => human::number(mid),
        false => format!("{} ({} to {})", human::number(mid), human::number(low), human::number(high)),
    };
    let mut report = Report::new(out);
    for claim in claims {
        let mut rows: Vec<(String, String)> = vec![];
        for line in &claim.lines {
            let value = band(line.value.p5, line.value.p50, line.value.p95);
            rows.push((line.label.to_owned(), format!("{value} {} = {}", line.unit, line.formula)));
        }
        match claim.source_is_about {
            Some(about) if about != claim.subject => {
                rows.push(("said of".into(), format!("{}; its source is about {about}", claim.subject)));
            }
            Some(_) => {}
            None => rows.push(("said of".into(), format!("{}; no source was found", claim.subject))),
        }
        rows.push(("why".into(), claim.why.to_owned()));
        for c in &claim.inputs {
            let value = band(c.band.low(), c.band.mid(), c.band.high());
            let evidence = match c.evidence {
                Evidence::Read => "read",
                Evidence::Quoted => "quoted",
                Evidence::Computed => "computed",
                Evidence::Recalled => "recalled, not checked again",
            };
            rows.push((format!("- {}", c.name), format!("{value} {}; {} ({}, {evidence})", c.unit, c.source, c.date)));
        }
        report.section(&format!("\"{}\": {}", claim.says, claim.verdict.to_string().to_uppercase()), &rows)?;
    }
    let old: Vec<_> = warnings.iter().map(|line| ("warning".to_owned(), line.clone())).collect();
    Ok(report.section("Old inputs", &old)?)
}
