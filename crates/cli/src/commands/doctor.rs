use std::{env, io::Write, path::Path, time::Duration};

use anyhow::bail;
use jevons_hub::Cache;
use jevons_kernels::{
    Isa, Ops,
    measure::{self, Rates},
};
use jevons_model::{
    doctor::{self, CONTEXT, Findings, Fit},
    inspect::Remark,
};
use jevons_sys::machine::{self, Cpu, Disk, DiskKind, Load, Machine};
use serde_json::{Value, json};

use crate::{
    human::{bytes, flop, grouped},
    report::Report,
};

/// How long others are watched.
const WATCHED: Duration = Duration::from_millis(250);
/// How long rates are measured in all.
const MEASURED: Duration = Duration::from_millis(1000);

/// Look at this machine: what there is, what is used, what would be faster
///
/// CPU, memory, disks, graphics cards, power meters; how fast memory is read and bf16 matrices are multiplied (about a second and a
/// half); which published models fit. Nothing is changed and nothing leaves the machine.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Measure nothing
    #[arg(long)]
    quick: bool,
    /// Print everything as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    let ops = match Ops::new() {
        Ok(ops) => ops,
        Err(error) => bail!(error),
    };
    let machine = Machine::read();
    let disks = disks();
    let load = if args.quick { None } else { machine::measure_load(WATCHED) };
    let rates = if args.quick { None } else { measure::rates(&ops, measure::BLOCK_BYTES, MEASURED) };
    let findings = Findings {
        machine: &machine,
        isa: ops.isa(),
        disks: &disks.iter().map(|(_, disk)| disk.clone()).collect::<Vec<_>>(),
        rates: rates.as_ref(),
        load,
    };
    let seen = Seen {
        isa: ops.isa(),
        advice: doctor::advice(findings),
        fits: doctor::fits(&machine, rates.as_ref(), CONTEXT),
        machine,
        disks,
        load,
        rates,
    };
    if args.json {
        serde_json::to_writer_pretty(&mut *out, &seen.json())?;
        return Ok(writeln!(out)?);
    }
    seen.print(out)
}

/// What was found.
struct Seen {
    machine: Machine,
    isa: Isa,
    /// What each folder is for, and its disk.
    disks: Vec<(&'static str, Disk)>,
    load: Option<Load>,
    rates: Option<Rates>,
    fits: Vec<Fit>,
    advice: Vec<Remark>,
}

impl Seen {
    fn json(&self) -> Value {
        let names: Vec<&str> = Isa::available().into_iter().map(Isa::name).collect();
        json!({
            "machine": self.machine,
            "instruction_set": { "used": self.isa.name(), "available": names, "forced": forced() },
            "threads": rayon::current_num_threads(),
            "disks": self.disks.iter().map(|(what, disk)| json!({ "for": what, "disk": disk })).collect::<Vec<_>>(),
            "load": self.load,
            "measured": self.rates.map(|r| json!({
                "threads": r.threads,
                "read_bytes_per_s": { "one_thread": r.read_one_thread, "all_threads": r.read_all_threads },
                "read_best": { "one_thread": r.read_one_thread_way.to_string(), "all_threads": r.read_all_threads_way.to_string() },
                "fma_flop_per_s": { "one_thread": r.fma_one_thread, "all_threads": r.fma_all_threads },
                "bf16_flop_per_s": { "one_thread": r.bf16_one_thread, "all_threads": r.bf16_all_threads },
                "bf16_instruction": r.bf16_instruction,
                "bf16_product_flop_per_s": { "one_thread": r.product_one_thread, "all_threads": r.product_all_threads },
            })),
            "context": CONTEXT,
            "models": self.fits,
            "advice": self.advice,
        })
    }

    fn print(&self, out: &mut impl Write) -> anyhow::Result<()> {
        let mut report = Report::new(out);
        let place = match (self.machine.virtual_machine, self.machine.container) {
            (Some(true), Some(container)) => format!("a virtual machine, in a container ({container})"),
            (Some(true), None) => "a virtual machine".into(),
            (_, Some(container)) => format!("a container ({container})"),
            (Some(false), None) => "no virtual machine, as far as it shows".into(),
            (None, None) => "unknown whether it is a virtual machine".into(),
        };
        report.line(&format!("jevons {} on {}, {place}", env!("CARGO_PKG_VERSION"), env::consts::OS))?;
        report.section("Processor", &cpu_rows(&self.machine.cpu))?;
        report.section("What jevons uses", &self.used_rows())?;
        report.section("Memory", &memory_rows(&self.machine))?;
        report
            .section("Disks", &self.disks.iter().map(|(what, disk)| row(what, disk_text(disk))).collect::<Vec<_>>())?;
        report.section("Other parts", &other_rows(&self.machine))?;
        report.section("Measured now", &self.measured_rows())?;
        let mut cells: Vec<Vec<String>> = self.fits.iter().map(fit_cells).collect();
        let mut header = vec!["", "needs", "fits", "tokens/s at most"];
        if self.rates.is_none() {
            header.pop();
            cells.iter_mut().for_each(|row| row.truncate(header.len()));
        }
        report.table(&format!("Models at {} tokens", grouped(CONTEXT)), &header, &cells)?;
        Ok(report.remarks("What would be faster, and what to know", &self.advice)?)
    }

    fn used_rows(&self) -> Vec<(String, String)> {
        let why = match forced() {
            Some(name) => format!("as JEVONS_ISA={name} asks"),
            None => "the fastest that this CPU has".into(),
        };
        let all: Vec<&str> = Isa::available().into_iter().map(Isa::name).collect();
        vec![
            row("path", format!("{}, {why}; of {}", self.isa.name(), all.join(", "))),
            row("threads", rayon::current_num_threads().to_string()),
            row("build", "one program holds every path; no build flags are needed"),
        ]
    }

    fn measured_rows(&self) -> Vec<(String, String)> {
        let Some(rates) = &self.rates else { return vec![] };
        let per_s = |one: String, all: String| match rates.threads {
            1 => format!("{one}/s on one thread"),
            n => format!("{one}/s on one thread, {all}/s on all {n}"),
        };
        let size = |rate: f64| bytes(rate as u64);
        let mut rows = vec![
            row("reading memory", per_s(size(rates.read_one_thread), size(rates.read_all_threads))),
            row("bf16 products", per_s(flop(rates.product_one_thread), flop(rates.product_all_threads))),
        ];
        let load = self.load.map_or("unknown".into(), |l| {
            let stolen = if l.stolen_processors > 0.05 {
                format!(", {:.1} kept by the host", l.stolen_processors)
            } else {
                String::new()
            };
            format!("{:.1} processors busy before the measurement{stolen}", l.busy_processors)
        });
        rows.push(row("other programs", load));
        rows
    }
}

fn row(name: &str, text: impl Into<String>) -> (String, String) {
    (name.into(), text.into())
}

fn known<T>(value: Option<T>, text: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| "unknown".into(), text)
}

/// `JEVONS_ISA`, if it is set.
fn forced() -> Option<String> {
    env::var("JEVONS_ISA").ok()
}

/// Where downloaded models lie, and where the user is.
fn disks() -> Vec<(&'static str, Disk)> {
    let mut disks = vec![];
    if let Ok(cache) = Cache::from_env() {
        disks.push(("downloaded models", Disk::of(cache.root())));
    }
    disks.push(("this folder", Disk::of(Path::new("."))));
    disks
}

fn cpu_rows(cpu: &Cpu) -> Vec<(String, String)> {
    let count = |n: Option<usize>, what: &str| known(n, |n| format!("{n} {what}{}", if n == 1 { "" } else { "s" }));
    let smt = match cpu.smt {
        Some(true) => ", several per core",
        Some(false) => ", one per core",
        None => "",
    };
    let mut threads = format!("{}{smt}", count(cpu.logical, "hardware thread"));
    if let Some(usable) = cpu.usable_threads {
        threads.push_str(&format!("; {usable} for this process"));
    }
    if let Some(quota) = cpu.quota {
        threads.push_str(&format!(", a quota of {quota:.1}"));
    }
    let clock = known(cpu.max_mhz, |mhz| format!("{:.1} GHz", mhz / 1000.0));
    let governor = cpu.governor.as_ref().map_or_else(String::new, |g| format!(", governor {g}"));
    let has = |wanted: Option<bool>| -> Vec<&str> {
        cpu.features.iter().filter(|f| f.present == wanted && f.name != "hypervisor").map(|f| f.name).collect()
    };
    let mut rows = vec![
        row("model", format!("{} ({})", known(cpu.model.clone(), |m| m), cpu.architecture)),
        row("cores", format!("{} in {}", count(cpu.cores, "core"), count(cpu.sockets, "socket"))),
        row("threads", threads),
        row("clock", format!("{clock}{governor}")),
    ];
    for (name, wanted) in [("has", Some(true)), ("has not", Some(false)), ("not known", None)] {
        let features = has(wanted);
        if !features.is_empty() {
            rows.push(row(name, features.join(" ")));
        }
    }
    let caches: Vec<String> = cpu
        .caches
        .iter()
        .map(|c| {
            let kind = match c.kind.as_str() {
                "Data" => "d",
                "Instruction" => "i",
                _ => "",
            };
            let shared = c.shared_by.filter(|n| *n > 1).map_or_else(String::new, |n| format!(" for {n} threads"));
            format!("L{}{kind} {}{shared}", c.level, binary(c.bytes))
        })
        .collect();
    rows.push(row("caches", if caches.is_empty() { "unknown".into() } else { caches.join(", ") }));
    rows
}

/// Caches are sized in powers of two.
fn binary(n: u64) -> String {
    if n >= 1 << 20 { format!("{} MiB", n >> 20) } else { format!("{} KiB", n >> 10) }
}

fn memory_rows(machine: &Machine) -> Vec<(String, String)> {
    let m = &machine.memory;
    let limit = m.limit_bytes.map_or_else(String::new, |n| format!(", of which the control group allows {}", bytes(n)));
    let swap = known(m.swap_bytes, |n| if n == 0 { "no swap".into() } else { format!("{} of swap", bytes(n)) });
    vec![
        row("total", format!("{}{limit}", known(m.machine_bytes, bytes))),
        row("free", known(m.available_bytes, bytes)),
        row("swap", swap),
        row("nodes", known(m.numa_nodes, |n| n.to_string())),
        row("huge pages", known(m.transparent_huge_pages.clone(), |mode| mode)),
    ]
}

fn disk_text(disk: &Disk) -> String {
    let kind = known(disk.kind, |kind| {
        match kind {
            DiskKind::Solid => "solid state",
            DiskKind::Spinning => "turning platters",
            DiskKind::Virtual => "virtual disk",
            DiskKind::Network => "on another machine",
            DiskKind::Memory => "in memory",
        }
        .into()
    });
    format!(
        "{} free of {} ({}, {kind}): {}",
        known(disk.available_bytes, bytes),
        known(disk.total_bytes, bytes),
        known(disk.filesystem.clone(), |name| name),
        disk.path.display()
    )
}

fn other_rows(machine: &Machine) -> Vec<(String, String)> {
    let cards: Vec<&str> = machine.gpus.iter().map(|g| g.model.as_deref().unwrap_or(&g.vendor)).collect();
    let library = if machine.cuda_library { "; the CUDA driver library is there" } else { "" };
    let graphics = match cards.as_slice() {
        [] => format!("none found{library}"),
        cards => format!("{}{library}; not used yet", cards.join(", ")),
    };
    let meters: Vec<String> = machine
        .power
        .iter()
        .map(|m| format!("{}{}", m.name, if m.readable { "" } else { " (not readable)" }))
        .collect();
    vec![
        row("graphics cards", graphics),
        row("power meters", if meters.is_empty() { "none found".into() } else { meters.join(", ") }),
    ]
}

fn fit_cells(fit: &Fit) -> Vec<String> {
    vec![
        format!("{} in {}", fit.model.name, fit.model.format),
        bytes(fit.needed_bytes),
        known(fit.fits, |fits| if fits { "yes" } else { "no" }.into()),
        fit.tokens_per_s_at_most.map_or_else(|| "-".into(), |n| format!("{n:.1}")),
    ]
}
