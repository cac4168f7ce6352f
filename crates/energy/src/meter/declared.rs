//! Power from tables, where nothing can be read: idle watts, and more in proportion to load. Grade E, or D where the user has measured
//! both ends.
//!
//! Sources: `data/README.md`. A CPU of the table draws its nameplate power at full load; a processor of a virtual machine, or one
//! not in the table, draws what servers of its generation drew per hardware thread in the SPECpower benchmark.

use std::path::Path;

use super::files;
use crate::grade::Grade;

const CPU_TDP: &str = include_str!("../../data/cpu_tdp.csv");
const THREAD_POWER: [&str; 2] =
    [include_str!("../../data/thread_power_aws.csv"), include_str!("../../data/thread_power_azure.csv")];

/// Watts per GB of memory: Lannelongue et al. 2021 (Green Algorithms), after Karyakin and Salem 2017.
const MEMORY_W_PER_GB: f64 = 0.3725;

/// A model of power.
#[derive(Clone, Debug, PartialEq)]
pub struct Declared {
    /// In words, with the numbers and where they are from.
    pub how: String,
    /// Watts without load.
    pub idle_w: f64,
    /// Watts with every processor busy.
    pub full_w: f64,
    /// E, or D if calibrated.
    pub grade: Grade,
    /// Standard uncertainty of ln(joules).
    pub relative: f64,
    /// Load is counted in steps of this many seconds.
    pub granularity_s: f64,
}

impl Declared {
    /// A model of grade E.
    pub fn new(how: String, idle_w: f64, full_w: f64) -> Self {
        let grade = Grade::E;
        Self { how, idle_w, full_w, grade, relative: grade.default_relative(), granularity_s: 0.01 }
    }

    /// The machine as its user has measured it: `idle_w` without load, `full_w` with all processors busy.
    pub fn calibrated(idle_w: f64, full_w: f64) -> Self {
        let grade = Grade::D;
        let how = format!("{idle_w} W idle to {full_w} W at full load, as measured by the user, × load");
        Self { grade, relative: grade.default_relative(), ..Self::new(how, idle_w, full_w) }
    }

    /// Joules in `seconds` of which processors were busy for `busy_s`, added over `cpus` of them. Where load is unknown
    /// they are taken to be half busy.
    pub fn joules(&self, seconds: f64, busy_s: Option<f64>, cpus: f64) -> f64 {
        let busy = busy_s.map_or(seconds / 2.0, |b| (b / cpus).min(seconds));
        self.idle_w * seconds + (self.full_w - self.idle_w) * busy
    }
}

/// The models of a machine without counters.
#[derive(Clone, Debug, PartialEq)]
pub struct Machine {
    /// Of all processors.
    pub cpu: Declared,
    /// Of memory; none where `cpu` covers it, or its size is not known.
    pub memory: Option<Declared>,
}

impl Machine {
    /// From `/proc/cpuinfo` and `/proc/meminfo` below `root` (`/`).
    pub fn of(root: &Path) -> Self {
        let info = CpuInfo::parse(&files::text(&root.join("proc/cpuinfo"), 1 << 24).unwrap_or_default());
        let memory = || {
            let text = files::text(&root.join("proc/meminfo"), 1 << 16).ok()?;
            let kib = text.lines().find_map(|l| l.strip_prefix("MemTotal:"))?.trim().strip_suffix("kB")?;
            let gb = kib.trim().parse::<u64>().ok()? as f64 * 1024.0 / 1e9;
            let watts = MEMORY_W_PER_GB * gb;
            Some(Declared::new(format!("{gb:.0} GB × {MEMORY_W_PER_GB} W/GB (Green Algorithms)"), watts, watts))
        };
        match info.tdp_w() {
            Some(tdp) if !info.virtual_machine => {
                let full = tdp * info.sockets as f64;
                let idle_share = mean_idle_share();
                let how = format!(
                    "{}: nameplate {tdp} W × {} (CodeCarbon's table), {:.0} % of it idle, × load",
                    info.name,
                    info.sockets,
                    100.0 * idle_share
                );
                Self { cpu: Declared::new(how, full * idle_share, full), memory: memory() }
            }
            _ => {
                let (generation, idle, full) = info.thread_power();
                let cpus = info.cpus as f64;
                let shown = if info.name.is_empty() { "processor of unknown name" } else { &info.name };
                let place = if info.virtual_machine { " in a virtual machine" } else { "" };
                let how = format!(
                    "{shown}{place}: {} hardware threads as {generation}, {idle:.2} to {full:.2} W each with their share of a server \
                     (Cloud Carbon Footprint), × load",
                    info.cpus
                );
                Self { cpu: Declared::new(how, idle * cpus, full * cpus), memory: None }
            }
        }
    }
}

#[derive(Debug, Default)]
struct CpuInfo {
    name: String,
    vendor: String,
    family: u32,
    model: u32,
    stepping: u32,
    cpus: usize,
    sockets: usize,
    virtual_machine: bool,
}

impl CpuInfo {
    fn parse(text: &str) -> Self {
        let mut info = Self::default();
        let mut packages = std::collections::BTreeSet::new();
        for (key, value) in text.lines().filter_map(|l| l.split_once(':')).map(|(k, v)| (k.trim(), v.trim())) {
            let number = || value.parse().unwrap_or(0);
            match key {
                "processor" => info.cpus += 1,
                "physical id" => {
                    packages.insert(value);
                }
                "model name" if info.name.is_empty() => info.name = value.chars().take(100).collect(),
                "vendor_id" if info.vendor.is_empty() => info.vendor = value.chars().take(100).collect(),
                "cpu family" => info.family = number(),
                "model" => info.model = number(),
                "stepping" => info.stepping = number(),
                "flags" => info.virtual_machine |= value.split(' ').any(|f| f == "hypervisor"),
                _ => {}
            }
        }
        if info.cpus == 0 {
            info.cpus = std::thread::available_parallelism().map_or(1, usize::from);
        }
        info.sockets = packages.len().max(1);
        info
    }

    fn tdp_w(&self) -> Option<f64> {
        let wanted = plain_name(&self.name);
        let rows = CPU_TDP.lines().skip(1).filter_map(|l| l.rsplit_once(','));
        let mut found = rows.filter(|(name, _)| !wanted.is_empty() && plain_name(name) == wanted);
        found.find_map(|(_, watts)| watts.trim().parse().ok())
    }

    /// Name of the generation, and watts per hardware thread, idle and full.
    fn thread_power(&self) -> (String, f64, f64) {
        let generation = match (&*self.vendor, self.family, self.model) {
            ("GenuineIntel", 6, 42 | 45) => "Sandy Bridge",
            ("GenuineIntel", 6, 58 | 62) => "Ivy Bridge",
            ("GenuineIntel", 6, 60 | 63 | 69 | 70) => "Haswell",
            ("GenuineIntel", 6, 61 | 71 | 79 | 86) => "Broadwell",
            ("GenuineIntel", 6, 85) if self.stepping >= 5 => "Cascade Lake",
            ("GenuineIntel", 6, 78 | 85 | 94) => "Sky Lake",
            ("GenuineIntel", 6, 142 | 158 | 165) => "Coffee Lake",
            ("GenuineIntel", 6, m) if m > 85 => "Cascade Lake",
            ("AuthenticAMD", 23, 0..=31) => "EPYC 1st Gen",
            ("AuthenticAMD", 23, _) => "EPYC 2nd Gen",
            ("AuthenticAMD", 25.., _) => "EPYC 3rd Gen",
            _ if cfg!(target_arch = "aarch64") => "Graviton",
            _ => "",
        };
        match thread_rows().find(|(name, ..)| *name == generation) {
            Some((name, idle, full)) => (name.to_owned(), idle, full),
            None => {
                let (mut n, mut idle, mut full) = (0.0, 0.0, 0.0);
                for (_, i, f) in thread_rows() {
                    (n, idle, full) = (n + 1.0, idle + i, full + f);
                }
                ("the mean of all generations".into(), idle / n, full / n)
            }
        }
    }
}

/// Generation, idle and full watts per hardware thread.
fn thread_rows() -> impl Iterator<Item = (&'static str, f64, f64)> {
    THREAD_POWER.iter().flat_map(|table| table.lines().skip(1)).filter_map(|line| {
        let fields: Vec<_> = line.split(',').collect();
        Some((*fields.get(1)?, fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?))
    })
}

/// Idle power as a share of full power, the mean of the table of servers.
fn mean_idle_share() -> f64 {
    let shares: Vec<f64> = thread_rows().map(|(_, idle, full)| idle / full).collect();
    shares.iter().sum::<f64>() / shares.len() as f64
}

/// `Intel(R) Xeon(R) Gold 6248 CPU @ 2.50GHz` and `Intel Xeon Gold 6248` are one name.
fn plain_name(name: &str) -> String {
    let name = name.split('@').next().unwrap_or_default().to_lowercase();
    let name = name.replace("(r)", " ").replace("(tm)", " ");
    let words = name.split_whitespace().filter(|w| {
        let filler = ["cpu", "processor", "gen", "apu"].contains(w);
        let ordinal = w.ends_with("th") && w.starts_with(|c: char| c.is_ascii_digit());
        !filler && !ordinal && !w.ends_with("-core")
    });
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpu(name: &str, flags: &str) -> Machine {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("proc")).unwrap();
        let one = |n: u32, package: u32| {
            format!(
                "processor\t: {n}\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: {name}\nphysical id\t: \
                 {package}\nflags\t\t: fpu {flags}\n\n"
            )
        };
        std::fs::write(dir.path().join("proc/cpuinfo"), one(0, 0) + &one(1, 1)).unwrap();
        std::fs::write(dir.path().join("proc/meminfo"), "MemTotal:  100000000 kB\n").unwrap();
        Machine::of(dir.path())
    }

    #[test]
    fn a_cpu_of_the_table_has_its_nameplate_power_per_socket() {
        let machine = cpu("Intel(R) Xeon(R) Gold 6248 CPU @ 2.50GHz", "");
        assert_eq!(machine.cpu.full_w, 300.0);
        assert!(machine.cpu.idle_w > 30.0 && machine.cpu.idle_w < 120.0, "{machine:?}");
        assert!((machine.memory.unwrap().full_w - 102.4 * 0.3725).abs() < 1e-9);
        assert_eq!(cpu("AMD Ryzen 7 5800X 8-Core Processor", "").cpu.full_w, 210.0);
    }

    #[test]
    fn a_virtual_machine_has_its_threads_share_and_no_nameplate() {
        let machine = cpu("AMD EPYC 7742 64-Core Processor", "hypervisor");
        assert!((machine.cpu.full_w - 2.0 * 2.019_327_799_479_166_5).abs() < 1e-12, "{machine:?}");
        assert_eq!(machine.memory, None);
        assert!(machine.cpu.how.contains("virtual machine") && machine.cpu.how.contains("EPYC 3rd Gen"));
    }

    #[test]
    fn an_unknown_processor_has_the_mean_of_the_table_and_says_so() {
        let machine = Machine::of(Path::new("/nonexistent"));
        assert!(machine.cpu.full_w > machine.cpu.idle_w && machine.cpu.idle_w > 0.0);
        assert!(machine.cpu.how.contains("unknown name"), "{}", machine.cpu.how);
    }

    #[test]
    fn the_tables_are_names_and_powers() {
        let rows: Vec<_> = CPU_TDP.lines().skip(1).filter_map(|l| l.rsplit_once(',')).collect();
        let good =
            rows.iter().filter(|(name, watts)| !name.is_empty() && watts.trim().parse::<f64>().is_ok_and(|w| w > 0.0));
        assert_eq!((rows.len(), good.count()), (4903, 4898)); // five rows have no power
        assert_eq!(thread_rows().count(), 19);
        assert!(thread_rows().all(|(_, idle, full)| 0.0 < idle && idle < full));
    }

    #[test]
    fn load_moves_power_from_idle_to_full() {
        let model = Declared::calibrated(10.0, 30.0);
        assert_eq!(model.joules(2.0, Some(0.0), 4.0), 20.0);
        assert_eq!(model.joules(2.0, Some(4.0), 4.0), 40.0);
        assert_eq!(model.joules(2.0, Some(99.0), 4.0), 60.0);
        assert_eq!(model.joules(2.0, None, 4.0), 40.0);
    }
}
