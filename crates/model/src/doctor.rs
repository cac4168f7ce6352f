//! What a machine can do for models: which published ones fit, how fast they can speak at most, and what would be faster.

use jevons_kernels::{Isa, measure::Rates};
use jevons_sys::machine::{Disk, DiskKind, Load, Machine};
use serde::Serialize;

use crate::inspect::Remark;

/// A model that people will want to run, as published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Published {
    /// Its name.
    pub name: &'static str,
    /// Of the weights.
    pub format: &'static str,
    /// Bytes of the weights, multi-token prediction left out.
    pub weight_bytes: u64,
    /// Of those the bytes that one token is multiplied by.
    pub read_bytes_per_token: u64,
    /// Bytes of the cache per token of context, in the form that is chosen by default.
    pub cache_bytes_per_token: u64,
}

const fn published(name: &'static str, format: &'static str, [weights, read, cache]: [u64; 3]) -> Published {
    Published { name, format, weight_bytes: weights, read_bytes_per_token: read, cache_bytes_per_token: cache }
}

/// From small to large; a test derives the numbers from the published configs.
pub const PUBLISHED: [Published; 7] = [
    published("R1-Distill-Qwen-1.5B", "bf16", [3_554_176_000, 3_087_428_608, 28_672]),
    published("R1-Distill-Qwen-7B", "bf16", [15_231_233_024, 14_141_238_272, 57_344]),
    published("R1-Distill-Llama-8B", "bf16", [16_060_522_496, 15_009_849_344, 131_072]),
    published("DeepSeek-V2-Lite", "bf16", [31_412_968_448, 4_902_870_016, 31_104]),
    published("R1-Distill-Qwen-32B", "bf16", [65_527_752_704, 63_970_617_344, 262_144]),
    published("R1-Distill-Llama-70B", "bf16", [141_107_412_992, 139_006_066_688, 327_680]),
    published("DeepSeek-R1", "FP8", [673_150_611_808, 37_668_475_232, 70_272]),
];

/// Whether a published model can run here.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Fit {
    /// Which.
    #[serde(flatten)]
    pub model: Published,
    /// Bytes of weights and of the cache of the context that was asked for.
    pub needed_bytes: u64,
    /// Whether they fit into what the machine has; `None` if that is unknown.
    pub fits: Option<bool>,
    /// A bound on tokens per second of one reply: every weight it uses is read once per token.
    pub tokens_per_s_at_most: Option<f64>,
}

/// Every model of [`PUBLISHED`] against this machine's memory, in a context of `context` tokens.
pub fn fits(machine: &Machine, rates: Option<&Rates>, context: u64) -> Vec<Fit> {
    let memory = machine.memory.limit_bytes.or(machine.memory.machine_bytes);
    let fit = |model: Published| {
        let needed = model.weight_bytes + model.cache_bytes_per_token * context;
        // The mean over a reply of that length is read with half of the context behind it.
        let read = model.read_bytes_per_token + model.cache_bytes_per_token * context / 2;
        let fits = memory.map(|memory| needed <= memory);
        Fit {
            model,
            needed_bytes: needed,
            fits,
            tokens_per_s_at_most: rates.filter(|_| fits == Some(true)).map(|r| r.read_all_threads / read as f64),
        }
    };
    PUBLISHED.map(fit).into()
}

/// What [`advice`] looks at.
#[derive(Clone, Copy, Debug)]
pub struct Findings<'a> {
    /// The machine.
    pub machine: &'a Machine,
    /// The path that computes.
    pub isa: Isa,
    /// Disks of the folders that are used.
    pub disks: &'a [Disk],
    /// What was measured, if anything was.
    pub rates: Option<&'a Rates>,
    /// What others do on the machine, if that was measured.
    pub load: Option<Load>,
}

/// Less room than the smallest useful models take.
const LITTLE_DISK: u64 = 20_000_000_000;
/// Readings that are busy or stolen below this many processors are noise.
const BUSY: f64 = 0.2;

/// What would be faster or safer on this machine, the most useful first.
pub fn advice(found: Findings<'_>) -> Vec<Remark> {
    let mut advice = Vec::new();
    busy(&found, &mut advice);
    processors(&found, &mut advice);
    instruction_set(&found, &mut advice);
    memory(&found, &mut advice);
    disks(&found, &mut advice);
    others(&found, &mut advice);
    advice
}

fn busy(found: &Findings<'_>, advice: &mut Vec<Remark>) {
    let Some(load) = found.load else { return };
    if load.busy_processors > BUSY {
        let of = found.machine.cpu.logical.map_or_else(String::new, |n| format!(" of {n}"));
        advice.push(Remark::warning(
            "busy",
            format!("other programs use {:.1}{of} processors now", load.busy_processors),
            "they slow this one down and make its timings worthless; wait, or stop them",
        ));
    }
    if load.stolen_processors > BUSY {
        advice.push(Remark::warning(
            "stolen",
            format!("the host of this virtual machine keeps {:.1} processors' worth of time", load.stolen_processors),
            "it is shared with other machines; nothing in here can change that",
        ));
    }
}

fn processors(found: &Findings<'_>, advice: &mut Vec<Remark>) {
    let cpu = &found.machine.cpu;
    if let (Some(quota), Some(logical)) = (cpu.quota, cpu.logical)
        && quota < logical as f64
    {
        advice.push(Remark::warning(
            "quota",
            format!("the control group grants {quota:.1} of {logical} processors"),
            "more threads than that take turns; raise the container's limit, or say --threads",
        ));
    } else if let (Some(usable), Some(logical)) = (cpu.usable_threads, cpu.logical)
        && usable < logical
    {
        advice.push(Remark::warning(
            "affinity",
            format!("this process may use {usable} of {logical} hardware threads"),
            "whoever started it bound it (taskset, a batch system, a container); unbind it",
        ));
    }
    if let Some(threads @ 1..=2) = cpu.usable_threads {
        advice.push(Remark::note(
            "few_threads",
            format!("only {threads} hardware thread{}", if threads == 1 { "" } else { "s" }),
            "reading prompts and training speed up with every core, replies until memory is the limit",
        ));
    }
    if cpu.governor.as_deref() == Some("powersave") && cpu.model.as_deref().is_some_and(|m| !m.contains("Intel")) {
        advice.push(Remark::note(
            "governor",
            "the clock is set to save power (governor powersave)",
            "for long runs: sudo cpupower frequency-set -g performance",
        ));
    }
    // Beside busy neighbours the measurement says nothing of the machine.
    let quiet = found.load.is_none_or(|load| load.busy_processors.max(load.stolen_processors) <= BUSY);
    if let Some(rates) = found.rates.filter(|r| quiet && r.threads > 1) {
        let gain = rates.product_all_threads / rates.product_one_thread;
        if gain < 0.6 * rates.threads as f64 {
            advice.push(Remark::note(
                "poor_scaling",
                format!("{} threads multiply only {gain:.1} times as fast as one", rates.threads),
                "two threads per core, heat, or a neighbour that came later; measure again",
            ));
        }
        let gain = rates.read_all_threads / rates.read_one_thread;
        if rates.threads > 2 && gain < 1.5 {
            advice.push(Remark::note(
                "memory_bound",
                format!("{} threads read memory only {gain:.1} times as fast as one", rates.threads),
                "replies wait for memory: more threads do not help them, fewer bytes per weight do",
            ));
        }
    }
}

fn instruction_set(found: &Findings<'_>, advice: &mut Vec<Remark>) {
    let (isa, fastest) = (found.isa.name(), Isa::fastest().name());
    let cpu = &found.machine.cpu;
    if isa != fastest {
        advice.push(Remark::warning(
            "isa_forced",
            format!("JEVONS_ISA={isa} is set, and this CPU has {fastest}"),
            "the bits are the same, the time is not; unset the variable",
        ));
    }
    match fastest {
        "portable" => advice.push(Remark::warning(
            "portable",
            format!("plain Rust computes: there is no faster path for this CPU ({})", cpu.architecture),
            "results are the same and come slowly; x86-64 with AVX2, AVX-512 or AMX is fast",
        )),
        "avx2" => advice.push(Remark::note(
            "no_avx512",
            "this CPU has no AVX-512",
            "vectors are half as long: a CPU with AVX-512 multiplies about twice as fast per clock, one with AMX many times",
        )),
        "avx512" | "avx512bf16" if cpu.has("amx_bf16") == Some(true) => advice.push(Remark::note(
            "amx_refused",
            "this CPU has AMX and the system does not let it be used",
            "Linux 5.16 or later does; a container or virtual machine may hide it",
        )),
        "avx512" | "avx512bf16" => advice.push(Remark::note(
            "no_amx",
            "this CPU has no AMX",
            "CPUs with it (Intel since Sapphire Rapids) multiply bf16 several times as fast",
        )),
        _ => {}
    }
}

fn memory(found: &Findings<'_>, advice: &mut Vec<Remark>) {
    let memory = &found.machine.memory;
    if let Some(nodes @ 2..) = memory.numa_nodes {
        advice.push(Remark::note(
            "numa",
            format!("memory is in {nodes} nodes"),
            "a thread reads the other nodes' memory more slowly; try numactl --interleave=all",
        ));
    }
    if memory.transparent_huge_pages.as_deref() == Some("never") {
        advice.push(Remark::note(
            "no_huge_pages",
            "transparent huge pages are switched off",
            "large weights then need many page entries; `madvise` or `always` in /sys/kernel/mm/transparent_hugepage/enabled",
        ));
    }
    let total = memory.limit_bytes.or(memory.machine_bytes);
    if let (Some(total), Some(available)) = (total, memory.available_bytes)
        && available < total / 4
    {
        advice.push(Remark::warning(
            "memory_in_use",
            format!("only {} of {} of memory are free", gigabytes(available), gigabytes(total)),
            "what does not fit is read from the disk again and again; close other programs",
        ));
    }
    let table = fits(found.machine, None, CONTEXT);
    let first_too_large = table.iter().find(|fit| fit.fits == Some(false));
    if let (Some(total), Some(fit)) = (total, first_too_large) {
        advice.push(Remark::note(
            "memory_small",
            format!("{} of memory are too small for {}", gigabytes(total), fit.model.name),
            format!(
                "with a context of {CONTEXT} tokens it needs {} in {}",
                gigabytes(fit.needed_bytes),
                fit.model.format
            ),
        ));
    }
}

/// Tokens of context that models are held against.
pub const CONTEXT: u64 = 4096;

fn disks(found: &Findings<'_>, advice: &mut Vec<Remark>) {
    let mut seen = Vec::new();
    for disk in found.disks {
        let same = (disk.total_bytes, disk.available_bytes, &disk.filesystem);
        if seen.contains(&same) {
            continue;
        }
        seen.push(same);
        let path = disk.path.display();
        if let Some(available) = disk.available_bytes.filter(|n| *n < LITTLE_DISK) {
            advice.push(Remark::warning(
                "disk_full",
                format!("{} are free on the disk of {path}", gigabytes(available)),
                "a model of 7 billion parameters takes 15 GB, and a training run keeps its state beside",
            ));
        }
        match disk.kind {
            Some(DiskKind::Spinning) => advice.push(Remark::warning(
                "slow_disk",
                format!("{path} is on a disk with turning platters"),
                "weights load at about 0.15 GB/s from it; a solid-state disk is ten times as fast",
            )),
            Some(DiskKind::Network) => advice.push(Remark::warning(
                "network_disk",
                format!("{path} is on another machine ({})", disk.filesystem.as_deref().unwrap_or("network")),
                "weights are mapped and read as they are needed; copy models to a local disk first",
            )),
            _ => {}
        }
    }
}

fn others(found: &Findings<'_>, advice: &mut Vec<Remark>) {
    let machine = found.machine;
    if let Some(gpu) = machine.gpus.first() {
        let name = gpu.model.as_deref().unwrap_or(&gpu.vendor);
        advice.push(Remark::note("gpu_unused", format!("there is a graphics card ({name})"), "it is not used yet"));
    }
    if !machine.power.is_empty() && machine.power.iter().all(|m| !m.readable) {
        advice.push(Remark::note(
            "power_unreadable",
            "the power meters are kept for the administrator",
            format!("to measure energy: sudo chmod a+r {}", machine.power[0].path),
        ));
    } else if machine.power.is_empty() {
        advice.push(Remark::note(
            "no_power_meter",
            "no power meter shows",
            "energy cannot be measured here; virtual machines rarely show one",
        ));
    }
}

fn gigabytes(n: u64) -> String {
    format!("{:.1} GB", n as f64 / 1e9)
}

#[cfg(test)]
mod tests {
    use jevons_sys::machine::{Cpu, Feature, Gpu, Memory, PowerMeter};

    use super::*;

    /// A machine of which nothing is known.
    fn unknown() -> Machine {
        let cpu = Cpu {
            model: None,
            architecture: "x86_64",
            features: vec![],
            sockets: None,
            cores: None,
            logical: None,
            smt: None,
            usable_threads: None,
            quota: None,
            max_mhz: None,
            governor: None,
            caches: vec![],
        };
        let memory = Memory {
            machine_bytes: None,
            limit_bytes: None,
            available_bytes: None,
            swap_bytes: None,
            numa_nodes: None,
            transparent_huge_pages: None,
        };
        let (gpus, power) = (vec![], vec![PowerMeter { name: "package-0".into(), path: "/p".into(), readable: true }]);
        Machine { cpu, memory, gpus, cuda_library: false, power, virtual_machine: None, container: None }
    }

    /// Everything that is said, but of the path, which is this CPU's own matter.
    fn ids(found: Findings<'_>) -> Vec<&'static str> {
        let of_the_path = ["portable", "no_avx512", "no_amx", "amx_refused"];
        advice(found).into_iter().map(|a| a.id).filter(|id| !of_the_path.contains(id)).collect()
    }

    fn findings(machine: &Machine) -> Findings<'_> {
        Findings { machine, isa: Isa::fastest(), disks: &[], rates: None, load: None }
    }

    #[test]
    fn of_an_unknown_machine_nothing_is_claimed() {
        let machine = unknown();
        assert_eq!(ids(findings(&machine)), [""; 0]);
        assert!(fits(&machine, None, CONTEXT).iter().all(|f| f.fits.is_none() && f.tokens_per_s_at_most.is_none()));
    }

    #[test]
    fn neighbours_quotas_and_forced_paths_are_named() {
        let mut machine = unknown();
        (machine.cpu.logical, machine.cpu.usable_threads, machine.cpu.quota) = (Some(64), Some(2), Some(1.5));
        let load = Some(Load { busy_processors: 3.0, stolen_processors: 0.5 });
        assert_eq!(ids(Findings { load, ..findings(&machine) }), ["busy", "stolen", "quota", "few_threads"]);
        machine.cpu.quota = None;
        assert_eq!(ids(findings(&machine)), ["affinity", "few_threads"]);
        if Isa::fastest() != Isa::PORTABLE {
            assert_eq!(ids(Findings { isa: Isa::PORTABLE, ..findings(&unknown()) }), ["isa_forced"]);
        }
    }

    #[test]
    fn memory_disks_cards_and_meters_are_judged() {
        let mut machine = unknown();
        machine.memory.machine_bytes = Some(64_000_000_000);
        machine.memory.limit_bytes = Some(20_000_000_000);
        machine.memory.available_bytes = Some(1_000_000_000);
        machine.memory.numa_nodes = Some(2);
        machine.memory.transparent_huge_pages = Some("never".into());
        machine.gpus.push(Gpu { vendor: "NVIDIA".into(), model: None });
        machine.power[0].readable = false;
        let disk = Disk {
            path: "/models".into(),
            filesystem: Some("nfs4".into()),
            kind: Some(DiskKind::Network),
            total_bytes: Some(1 << 40),
            available_bytes: Some(1 << 30),
        };
        let found = Findings { disks: &[disk.clone(), disk], ..findings(&machine) };
        let expected = [
            "numa",
            "no_huge_pages",
            "memory_in_use",
            "memory_small",
            "disk_full",
            "network_disk",
            "gpu_unused",
            "power_unreadable",
        ];
        assert_eq!(ids(found), expected);
        let small = advice(found).into_iter().find(|a| a.id == "memory_small").unwrap();
        assert_eq!(small.what, "20.0 GB of memory are too small for DeepSeek-V2-Lite");
    }

    #[test]
    fn a_reply_is_no_faster_than_its_weights_can_be_read() {
        let mut machine = unknown();
        machine.memory.machine_bytes = Some(8_000_000_000);
        let rates = Rates {
            read_one_thread: 10e9,
            read_all_threads: 20e9,
            product_one_thread: 1e11,
            product_all_threads: 2e11,
            threads: 2,
            ..Rates::default()
        };
        let fits = fits(&machine, Some(&rates), 0);
        assert_eq!(fits[0].tokens_per_s_at_most, Some(20e9 / 3_087_428_608.0));
        assert_eq!((fits[0].fits, fits[1].fits, fits[1].tokens_per_s_at_most), (Some(true), Some(false), None));
        assert_eq!(ids(Findings { rates: Some(&rates), ..findings(&unknown()) }), [""; 0]);
        let poor = Rates { product_all_threads: 1e11, ..rates };
        assert_eq!(ids(Findings { rates: Some(&poor), ..findings(&unknown()) }), ["poor_scaling"]);
        // Busy neighbours explain it, and are named already.
        let load = Some(Load { busy_processors: 1.0, stolen_processors: 0.0 });
        assert_eq!(ids(Findings { rates: Some(&poor), load, ..findings(&unknown()) }), ["busy"]);
    }

    #[test]
    fn amx_that_the_system_hides_is_told_from_amx_that_is_not_there() {
        let mut machine = unknown();
        machine.cpu.features.push(Feature { name: "amx_bf16", present: Some(true) });
        let said: Vec<&str> = advice(findings(&machine)).into_iter().map(|a| a.id).collect();
        match Isa::fastest().name() {
            "avx512" | "avx512bf16" => assert_eq!(said, ["amx_refused"]),
            "amx" => assert_eq!(said, [""; 0]),
            _ => {}
        }
    }
}
