//! What `/sys` tells of power besides RAPL: a battery that is being discharged, and sensors of `hwmon` whose meaning is known.
//!
//! Source: the kernel's `Documentation/ABI/testing/sysfs-class-power` and `Documentation/hwmon`. A battery tells the power of the whole
//! machine only while nothing else feeds it. Of hwmon's drivers three say plainly what they measure: `power_meter` (ACPI: the whole
//! machine), `amdgpu` (a board's power) and `xe` (a board's energy); others name rails of unknown extent and are left out. A graphics part
//! inside a processor (`amdgpu` with the voltage of a northbridge, `in1_input`, which the driver shows there only) is counted with its package.

use std::path::{Path, PathBuf};

use super::{
    counter::{Counter, Integrator, Step},
    files,
};

/// Samples of power further apart are no curve, in seconds. Batteries renew theirs every few seconds.
const MAX_GAP_S: f64 = 30.0;

/// More power than any one of these can take, in watts.
const MAX_W: f64 = 5000.0;

/// Folders below `folder`, in order of their names.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut entries: Vec<_> =
        std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    entries.sort();
    entries
}

/// The machine's batteries, if there are any.
pub struct Batteries {
    supplies: PathBuf,
    power: Integrator,
}

impl Batteries {
    /// Below `root` (`/`).
    pub fn discover(root: &Path) -> Option<Self> {
        let supplies = root.join("sys/class/power_supply");
        let found = entries(&supplies).iter().any(|s| is_battery(s));
        found.then(|| Self { supplies, power: Integrator::new(MAX_GAP_S) })
    }

    /// A sensor of the whole machine; it has a reading while the machine runs on battery alone.
    pub fn sensor(mut self) -> impl FnMut(f64) -> Step + Send + 'static {
        move |now_s| {
            let watts = discharge_w(&self.supplies);
            if watts.is_err() {
                self.power = Integrator::new(MAX_GAP_S); // what was drawn from the mains meanwhile is not known
            }
            self.power.read(now_s, watts)
        }
    }
}

/// Batteries of mice and telephones have the scope `Device`.
fn is_battery(supply: &Path) -> bool {
    let is = |name: &str, value: &str| files::line(&supply.join(name)).is_ok_and(|l| l == value);
    is("type", "Battery") && !is("scope", "Device")
}

fn discharge_w(supplies: &Path) -> Result<f64, String> {
    let mut total = None;
    for supply in entries(supplies) {
        if !is_battery(&supply) {
            if files::line(&supply.join("online")).is_ok_and(|l| l == "1") {
                return Err("the machine is plugged in, so its battery does not tell its power".into());
            }
            continue;
        }
        match files::line(&supply.join("status"))?.as_str() {
            "Discharging" => {
                let micro = |name: &str| -> Result<f64, String> {
                    // Some drivers count discharge as negative.
                    let line = files::line(&supply.join(name))?;
                    let number: f64 =
                        line.parse().map_err(|_| format!("{}: {line:?} is no number", supply.display()))?;
                    Ok(number.abs() * 1e-6)
                };
                let watts =
                    micro("power_now").or_else(|_| Ok::<_, String>(micro("current_now")? * micro("voltage_now")?))?;
                *total.get_or_insert(0.0) += watts;
            }
            "Full" | "Not charging" | "Unknown" => {}
            status => return Err(format!("{}: the battery is {}", supply.display(), status.to_lowercase())),
        }
    }
    // A running machine draws something: a battery that says 0 W does not know.
    total.filter(|w| *w > 0.0).ok_or_else(|| "no battery is being discharged".into())
}

/// A sensor of hwmon whose meaning is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hwmon {
    /// Name of the driver.
    pub driver: String,
    /// Whether it covers the whole machine; otherwise it is a graphics board.
    pub whole_machine: bool,
    /// Whether it counts energy; otherwise it samples power.
    pub counts_energy: bool,
    file: PathBuf,
}

impl Hwmon {
    /// Those below `root` (`/`).
    pub fn discover(root: &Path) -> Vec<Self> {
        let known = |folder: PathBuf| {
            let driver = files::line(&folder.join("name")).ok()?;
            let candidates: &[&str] = match &*driver {
                "amdgpu" if folder.join("in1_input").exists() => return None,
                "power_meter" | "amdgpu" => &["power1_average", "power1_input"],
                "xe" => &["energy1_input"],
                _ => return None,
            };
            let file = candidates.iter().map(|name| folder.join(name)).find(|file| file.exists())?;
            let counts_energy = file.ends_with("energy1_input");
            Some(Self { whole_machine: driver == "power_meter", counts_energy, driver, file })
        };
        entries(&root.join("sys/class/hwmon")).into_iter().filter_map(known).collect()
    }

    /// Reads micro-units: watts or joules.
    pub fn sensor(self) -> impl FnMut(f64) -> Step + Send + 'static {
        let (mut counter, mut power) = (Counter::new(1e-6, None, MAX_W, 0.1), Integrator::new(MAX_GAP_S));
        move |now_s| {
            let value = files::number(&self.file);
            if self.counts_energy {
                counter.read(now_s, value)
            } else {
                power.read(now_s, value.map(|uw| uw as f64 * 1e-6))
            }
        }
    }
}
