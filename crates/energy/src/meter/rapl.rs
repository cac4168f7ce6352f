//! Running average power limit (RAPL): energy counters of Intel and AMD processors, by Linux's powercap files.
//!
//! Source: the kernel's `Documentation/power/powercap/powercap.rst`. Zones overlap: the platform (`psys`) contains the packages, a
//! package contains `core` and `uncore`, and `dram` stands beside its package. So what counts is the packages and their memory, or
//! the platform instead of both. `intel-rapl-mmio` shows the same package by another way, and processors of several dies may show
//! one counter several times: each is counted once.

use std::path::{Path, PathBuf};

use super::{
    counter::{Counter, Step},
    files,
};

/// A counter is renewed about every millisecond.
pub const GRANULARITY_S: f64 = 0.001;

/// More power than any one zone can take, in watts; tells a reset from a wrap where the zone names no limit.
const MAX_W: f64 = 1000.0;

/// A zone of the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone {
    /// `intel-rapl:0:1`
    pub id: String,
    /// `package-0`, `dram`, ...
    pub name: String,
    folder: PathBuf,
}

/// What counts, and what does not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Zones {
    /// The whole platform, if there is such a counter.
    pub psys: Option<Zone>,
    /// Each processor package once.
    pub packages: Vec<Zone>,
    /// Memory of each package.
    pub dram: Vec<Zone>,
    /// Zones that are not counted, and why not.
    pub left_out: Vec<(Zone, String)>,
}

impl Zones {
    /// The zones below `root` (`/`). None of them is an error: most virtual machines have none.
    pub fn discover(root: &Path) -> Self {
        let mut all: Vec<Zone> = std::fs::read_dir(root.join("sys/class/powercap"))
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| Zone::open(entry.path()))
            .collect();
        all.sort_by_key(|zone| (zone.control_type().len(), zone.number_path()));
        let mut zones = Self::default();
        for zone in all.iter().filter(|z| z.is_top()) {
            let children = || all.iter().filter(|z| z.parent() == Some(&zone.id));
            if zone.name == "psys" {
                match &zones.psys {
                    None => zones.psys = Some(zone.clone()),
                    Some(first) => zones.left_out.push((zone.clone(), format!("the same as {}", first.id))),
                }
            } else if let Some(package) = zone.package() {
                let twin = zones.packages.iter().find(|other| {
                    let same_way = other.control_type() == zone.control_type();
                    other.package() == Some(package)
                        && (if same_way { mirrored(other, zone) } else { other.name == zone.name })
                });
                if let Some(twin) = twin.cloned() {
                    // Two ways to one counter: the first that can be read.
                    if twin.read().is_err() && zone.read().is_ok() {
                        zones.packages.retain(|z| z.id != twin.id);
                        zones.left_out.push((twin, format!("unreadable, and the same as {}", zone.id)));
                    } else {
                        zones.left_out.push((zone.clone(), format!("the same as {}", twin.id)));
                        zones.leave_out(children(), "part of a package that is counted already");
                        continue;
                    }
                }
                zones.packages.push(zone.clone());
                for child in children() {
                    if child.name == "dram" {
                        zones.dram.push(child.clone());
                    } else {
                        zones.left_out.push((child.clone(), "part of its package".into()));
                    }
                }
            } else {
                zones.left_out.push((zone.clone(), "not known what it covers".into()));
                zones.leave_out(children(), "not known what it covers");
            }
        }
        zones
    }

    fn leave_out<'a>(&mut self, zones: impl Iterator<Item = &'a Zone>, why: &str) {
        self.left_out.extend(zones.map(|zone| (zone.clone(), why.to_owned())));
    }
}

impl Zone {
    fn open(folder: PathBuf) -> Option<Self> {
        let id = folder.file_name()?.to_str()?.to_owned();
        let known = id.split(':').next().is_some_and(|t| t == "intel-rapl" || t == "intel-rapl-mmio");
        if !known || !id.contains(':') || !folder.join("energy_uj").exists() {
            return None;
        }
        let name = files::line(&folder.join("name")).ok()?;
        Some(Self { id, name, folder })
    }

    fn control_type(&self) -> &str {
        self.id.split(':').next().unwrap_or_default()
    }

    fn number_path(&self) -> Vec<u64> {
        self.id.split(':').skip(1).map(|n| n.parse().unwrap_or(u64::MAX)).collect()
    }

    fn is_top(&self) -> bool {
        self.id.matches(':').count() == 1
    }

    fn parent(&self) -> Option<&str> {
        self.id.rsplit_once(':').map(|(parent, _)| parent).filter(|p| p.contains(':'))
    }

    /// Number of the package, of `package-0` and `package-0-die-1` alike.
    fn package(&self) -> Option<&str> {
        self.name.strip_prefix("package-")?.split('-').next()
    }

    /// The counter, in microjoules.
    ///
    /// # Errors
    /// If it cannot be read now, and why.
    pub fn read(&self) -> Result<u64, String> {
        files::number(&self.folder.join("energy_uj"))
    }

    /// A sensor of this zone.
    pub fn sensor(&self) -> impl FnMut(f64) -> Step + Send + 'static {
        let number = |name: &str| files::number(&self.folder.join(name)).ok();
        let limits = (0..3).filter_map(|i| number(&format!("constraint_{i}_max_power_uw")));
        // Twice what the zone allows, for short peaks; some firmware says 0 for "unknown".
        let max_w = limits.max().filter(|w| *w > 0).map_or(MAX_W, |uw| (2e-6 * uw as f64).max(100.0));
        let mut counter = Counter::new(1e-6, number("max_energy_range_uj"), max_w, GRANULARITY_S);
        let zone = self.clone();
        move |now_s| counter.read(now_s, zone.read())
    }
}

/// Whether two zones show one counter: what `b` reads lies between two reads of `a`, twice. Two counters of their own agree to within
/// the few microjoules that pass meanwhile about once in a billion times.
fn mirrored(a: &Zone, b: &Zone) -> bool {
    (0..2).all(|_| {
        let (Ok(first), Ok(between), Ok(last)) = (a.read(), b.read(), a.read()) else { return false };
        first > 0 && (first..=last).contains(&between)
    })
}
