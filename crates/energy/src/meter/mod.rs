//! From sensors to joules.
//!
//! [`Meter`] arranges what the machine has: a wall meter or a discharging battery covers everything; else the
//! processors (RAPL), memory and graphics boards are added up; where one of them has no reading a model of declared power stands in,
//! and where there is no model the time is counted as unknown. Two looks at the meter ([`Snapshot`]) make a [`Window`].
//!
//! Windows that follow each other add up to the window around them, whatever sensors do in between.

mod counter;
mod declared;
mod files;
mod load;
mod nvml;
mod rapl;
mod sampler;
mod supply;
#[cfg(test)]
mod tests;
mod tree;
mod wall;

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use serde::Serialize;

pub use counter::{Counter, Integrator, Step};
pub use declared::{Declared, Machine};
pub use load::Load;
pub use nvml::Board;
pub use rapl::{Zone, Zones};
pub use sampler::Sampler;
pub use supply::Hwmon;
pub use tree::{Sensor, Source, State};
pub use wall::{Reading, Wall, parse as parse_reading};

use crate::grade::{Energy, Grade};
use tree::{Amounts, Node, Sources};

/// What to meter, and by what.
pub struct Options {
    /// Where `/sys` and `/proc` are; `/` but in tests.
    pub root: PathBuf,
    /// A meter at the wall.
    pub wall: Option<Wall>,
    /// Power of the whole machine without load and at full load in watts, as its user has measured it.
    pub calibrated_w: Option<(f64, f64)>,
    /// NVML's library, if not the driver's.
    pub nvml_library: Option<OsString>,
    /// Graphics boards to take instead of NVML's.
    pub boards: Option<Vec<Arc<dyn Board>>>,
}

impl Default for Options {
    fn default() -> Self {
        Self { root: PathBuf::from("/"), wall: None, calibrated_w: None, nvml_library: None, boards: None }
    }
}

/// Sees what the machine spends.
pub struct Meter {
    root: PathBuf,
    started: Instant,
    tree: Node,
    sources: Sources,
    notes: Vec<String>,
    now_s: f64,
    load: Load,
    /// Of the last snapshot. Never falls: where a stand-in had said more than its sensor then admits, the total waits for the truth
    /// to catch up.
    total_j: f64,
}

impl Meter {
    /// Looks for everything that can be read.
    pub fn discover(options: Options) -> Self {
        let Options { root, wall, calibrated_w, nvml_library, boards } = options;
        let (mut sources, mut notes) = (Sources::default(), vec![]);
        let boards = boards.unwrap_or_else(|| {
            nvml::boards(nvml_library.as_deref()).unwrap_or_else(|why| {
                notes.push(why);
                vec![]
            })
        });
        let hwmon = Hwmon::discover(&root);
        let mut gpus: Vec<Node> = boards.into_iter().enumerate().map(|(i, b)| gpu(i, b, &mut sources)).collect();
        for board in hwmon.iter().filter(|h| !h.whole_machine) {
            gpus.push(hwmon_gpu(gpus.len(), board, &mut sources));
        }
        let processors = processors(&root, &mut sources, &mut notes);
        let parts = match (processors, gpus.is_empty()) {
            (processors, true) => processors,
            (processors, false) => {
                gpus.insert(0, processors);
                Node::Sum(gpus)
            }
        };
        let mut tree = match calibrated_w {
            // The model is of the whole machine, so it stands for the parts unless a counter is there.
            Some((idle, full)) if sources.list.iter().all(|(s, _)| s.grade == Grade::E) => {
                sources = Sources::default();
                sources.declared("machine", &Declared::calibrated(idle, full), 1.0)
            }
            Some(_) => {
                notes.push("the machine has counters, so its calibrated model is not used".into());
                parts
            }
            None => parts,
        };
        for whole in hwmon.into_iter().filter(|h| h.whole_machine) {
            let source = Source::new("machine", "power meter of the firmware (ACPI), sampled", Grade::C, 1.0);
            tree = sources.container(source, whole.sensor(), tree);
        }
        if let Some(batteries) = supply::Batteries::discover(&root) {
            let mut source = Source::new("machine", "battery while it is discharged, power sampled", Grade::C, 5.0);
            source.relative = 0.1;
            tree = sources.container(source, batteries.sensor(), tree);
        }
        if let Some(wall) = wall {
            let source = Source::new("machine", wall.name(), Grade::A, 1.0);
            tree = sources.container(source, wall.sensor(), tree);
        }
        let load = Load::read(&root);
        let mut meter = Self { root, started: Instant::now(), tree, sources, notes, now_s: 0.0, load, total_j: 0.0 };
        meter.poll_at(0.0);
        meter
    }

    /// Looks at every sensor now.
    pub fn poll(&mut self) {
        self.poll_at(self.started.elapsed().as_secs_f64());
    }

    /// Looks at every sensor; `now_s` is the time since the meter was made. For simulated clocks.
    pub fn poll_at(&mut self, now_s: f64) {
        self.now_s = now_s.max(self.now_s);
        self.load = Load::read(&self.root);
        self.tree.poll(self.now_s, &self.load, &mut self.sources);
    }

    /// What the last look has seen.
    pub fn snapshot(&mut self) -> Snapshot {
        let amounts = self.tree.cumulative();
        self.total_j = self.total_j.max(amounts.joules());
        let sources = self.sources.list.iter().map(|(source, _)| source.clone()).collect();
        Snapshot {
            at_s: self.now_s,
            total_j: self.total_j,
            amounts,
            parts: self.tree.parts(),
            load: self.load,
            sources,
        }
    }

    /// Every source, and how it fares. The first ones of a machine are those of its parts.
    pub fn sources(&self) -> &[(Source, State)] {
        &self.sources.list
    }

    /// What was noticed while looking for sensors.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Whether anything that measures is being read now. If not, every number is a model's.
    pub fn measures(&self) -> bool {
        self.sources.list.iter().any(|(s, state)| s.grade <= Grade::C && *state == State::Reading)
    }
}

/// Processors and memory.
fn processors(root: &Path, sources: &mut Sources, notes: &mut Vec<String>) -> Node {
    let zones = Zones::discover(root);
    let model = Machine::of(root);
    if zones.psys.is_none() && zones.packages.is_empty() {
        return declared(&model, sources);
    }
    for (zone, why) in &zones.left_out {
        notes.push(format!("{} ({}) is not counted: {why}", zone.id, zone.name));
    }
    if zones.packages.iter().chain(&zones.psys).all(|z| z.read().is_err_and(|e| e.contains("permission denied"))) {
        notes.push(
            "the energy counters (RAPL) are there and only root may read them: run as root, or let a group of your choice read \
             /sys/class/powercap/intel-rapl:*/energy_uj (whoever can read them can spy on other programs: CVE-2020-8694)"
                .into(),
        );
    }
    let rapl = |component: String, zone: &Zone| {
        Source::new(component, format!("RAPL {} ({})", zone.id, zone.name), Grade::B, rapl::GRANULARITY_S)
    };
    let mut nodes = vec![];
    for (i, zone) in zones.packages.iter().enumerate() {
        let component = format!("cpu {i}");
        let otherwise = sources.declared(&component, &model.cpu, 1.0 / zones.packages.len() as f64);
        nodes.push(sources.sensor(rapl(component, zone), zone.sensor(), otherwise));
    }
    if zones.packages.is_empty() {
        nodes.push(sources.declared("cpu", &model.cpu, 1.0));
    }
    for (i, zone) in zones.dram.iter().enumerate() {
        let component = format!("memory {i}");
        let otherwise = match &model.memory {
            Some(memory) => sources.declared(&component, memory, 1.0 / zones.dram.len() as f64),
            None => sources.unknown(&component),
        };
        nodes.push(sources.sensor(rapl(component, zone), zone.sensor(), otherwise));
    }
    if let (true, Some(memory)) = (zones.dram.is_empty(), &model.memory) {
        nodes.push(sources.declared("memory", memory, 1.0));
    }
    match &zones.psys {
        Some(zone) => sources.container(rapl("platform".into(), zone), zone.sensor(), Node::Sum(nodes)),
        None => Node::Sum(nodes),
    }
}

fn declared(model: &Machine, sources: &mut Sources) -> Node {
    let mut nodes = vec![sources.declared("cpu", &model.cpu, 1.0)];
    if let Some(memory) = &model.memory {
        nodes.push(sources.declared("memory", memory, 1.0));
    }
    Node::Sum(nodes)
}

/// A board with an energy counter is read by it; another one's power is sampled; one that tells neither is unknown, which is
/// not the same as nothing.
fn gpu(index: usize, board: Arc<dyn Board>, sources: &mut Sources) -> Node {
    let component = format!("gpu {index}");
    let otherwise = sources.unknown(&component);
    if board.energy_mj().is_ok() {
        let source =
            Source::new(component, format!("{}, NVML energy counter", board.name()), Grade::B, nvml::GRANULARITY_S);
        return sources.sensor(source, nvml::counter(board), otherwise);
    }
    let source =
        Source::new(component, format!("{}, NVML power, sampled", board.name()), Grade::C, nvml::GRANULARITY_S);
    sources.sensor(source, nvml::power(board), otherwise)
}

fn hwmon_gpu(index: usize, board: &Hwmon, sources: &mut Sources) -> Node {
    let component = format!("gpu {index}");
    let otherwise = sources.unknown(&component);
    let grade = if board.counts_energy { Grade::B } else { Grade::C };
    let source = Source::new(component, format!("graphics board, hwmon driver {}", board.driver), grade, 0.1);
    sources.sensor(source, board.clone().sensor(), otherwise)
}

/// The meter at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    at_s: f64,
    total_j: f64,
    amounts: Amounts,
    parts: Option<Amounts>,
    load: Load,
    sources: Vec<Source>,
}

/// What was spent between two moments.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Window {
    /// Its length.
    pub seconds: f64,
    /// All that is known; if [`Window::unknown`] has anything, a lower bound.
    pub energy: Energy,
    /// Where the joules come from. They add up to `energy`, but for a model's excess that is still to be made good.
    pub shares: Vec<Share>,
    /// Parts of the machine of which nothing was known for some seconds.
    pub unknown: Vec<Unknown>,
    /// Where one meter covers the whole machine: what its parts read, and so does not add to `energy`.
    pub inside: Vec<Share>,
    /// Processor seconds that this program used (with children that have ended), if known.
    pub own_cpu_s: Option<f64>,
    /// Processor seconds that all programs used, if known.
    pub busy_cpu_s: Option<f64>,
}

/// Joules of one source.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Share {
    /// Of the machine.
    pub component: String,
    /// How it is read.
    pub how: String,
    /// What it read.
    #[serde(flatten)]
    pub energy: Energy,
    /// Of it, what the source's model says would have been drawn without any load, in joules.
    pub idle_j: Option<f64>,
}

/// A part of the machine without any reading.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Unknown {
    /// Of the machine.
    pub component: String,
    /// For how long.
    pub seconds: f64,
}

impl Snapshot {
    /// Seconds since the meter was made.
    pub fn at_s(&self) -> f64 {
        self.at_s
    }

    /// What was spent since `earlier`, a snapshot of the same meter.
    pub fn since(&self, earlier: &Self) -> Window {
        let seconds = self.at_s - earlier.at_s;
        let difference = |now: &Amounts, then: &Amounts| {
            let mut difference = now.clone();
            difference.add(then, -1.0);
            difference
        };
        let amounts = difference(&self.amounts, &earlier.amounts);
        let shares = self.shares(&amounts, seconds);
        let joules = self.total_j - earlier.total_j;
        // What a model had said too much, and is now made good; or too much still.
        let excess = joules - shares.iter().map(|s| s.energy.joules).sum::<f64>();
        let excess = Energy { joules: excess, uncertainty_j: excess.abs(), grade: Grade::E };
        let energy = Energy { joules, ..Energy::sum(shares.iter().map(|s| s.energy).chain([excess])) };
        let unknown = amounts.0.iter().filter(|(_, a)| a.unknown_s > 1e-9);
        let unknown = unknown
            .map(|(id, a)| Unknown { component: self.sources[*id].component.clone(), seconds: a.unknown_s })
            .collect();
        let inside = match (&self.parts, &earlier.parts) {
            (Some(now), Some(then)) => self.shares(&difference(now, then), seconds),
            _ => vec![],
        };
        let own_cpu_s = self.load.own_s.zip(earlier.load.own_s).map(|(now, then)| (now - then).max(0.0));
        let busy_cpu_s = self.load.busy_since(earlier.load.busy_s);
        Window { seconds, energy, shares, unknown, inside, own_cpu_s, busy_cpu_s }
    }

    fn shares(&self, amounts: &Amounts, seconds: f64) -> Vec<Share> {
        let with_joules = amounts.0.iter().filter(|(_, a)| a.joules != 0.0);
        with_joules
            .map(|(id, amount)| {
                let source = &self.sources[*id];
                // The counter's lag at both ends: |δE| ≤ 2τ · P.
                let lag = if seconds > 0.0 { (2.0 * source.granularity_s / seconds).min(1.0) } else { 1.0 };
                let size = amount.joules.abs();
                let uncertainty_j = size * (source.relative + lag);
                let energy = Energy { joules: amount.joules, uncertainty_j, grade: source.grade };
                let full = source.model_w.map(|(idle, _)| idle * seconds);
                let idle_j = full.map(|j| j.min(amount.joules.max(0.0)));
                Share { component: source.component.clone(), how: source.how.clone(), energy, idle_j }
            })
            .collect()
    }
}

impl Window {
    /// Mean power in watts.
    pub fn watts(&self) -> f64 {
        if self.seconds > 0.0 { self.energy.joules / self.seconds } else { 0.0 }
    }

    /// Whether every part of the machine that is looked at had a reading or a model.
    pub fn complete(&self) -> bool {
        self.unknown.is_empty()
    }

    /// The share of busy processor time that was not this program's, if known. Joules are the whole machine's: they include what other
    /// programs made it spend.
    pub fn others_share(&self) -> Option<f64> {
        let (own, busy) = (self.own_cpu_s?, self.busy_cpu_s?);
        (busy > 0.0).then(|| (1.0 - own / busy).clamp(0.0, 1.0))
    }

    /// Joules that `idle_w` would have drawn in this time, at most those of the window; the rest is the load's.
    pub fn idle_at(&self, idle_w: f64) -> f64 {
        (idle_w * self.seconds).min(self.energy.joules)
    }

    /// For people: the sources that matter, with their grade.
    pub fn boundary(&self) -> String {
        let mut parts: Vec<String> =
            self.shares.iter().map(|s| format!("{}: {} [{}]", s.component, s.how, s.energy.grade)).collect();
        parts.extend(self.unknown.iter().map(|u| format!("{}: unknown for {:.1} s", u.component, u.seconds)));
        if parts.is_empty() { "nothing was read".into() } else { parts.join("; ") }
    }
}

/// Power without load, measured by itself.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct IdleFloor {
    /// Mean power in watts.
    pub watts: f64,
    /// Length of the measurement in seconds.
    pub seconds: f64,
    /// How it was read.
    pub grade: Grade,
    /// Spread between its parts: the largest deviation of a part from the mean, as a share of the mean.
    pub spread: f64,
    /// At least 30 s long and steady to 10 %. If not, the floor is a sketch.
    pub steady: bool,
}

impl IdleFloor {
    /// From windows that follow each other while nothing ran. None without any time. The floor is the mean of a steady time, never
    /// the least power ever seen.
    pub fn of(windows: &[Window]) -> Option<Self> {
        let seconds: f64 = windows.iter().map(|w| w.seconds).sum();
        let energy = Energy::sum(windows.iter().map(|w| w.energy));
        if seconds <= 0.0 {
            return None;
        }
        let watts = energy.joules / seconds;
        let spread =
            windows.iter().map(|w| (w.watts() - watts).abs()).fold(0.0, f64::max) / watts.max(f64::MIN_POSITIVE);
        Some(Self { watts, seconds, grade: energy.grade, spread, steady: seconds >= 30.0 && spread <= 0.1 })
    }
}
