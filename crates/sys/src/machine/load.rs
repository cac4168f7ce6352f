//! Who else is busy on this machine.

use std::{path::Path, thread, time::Duration};

use serde::Serialize;

use super::text;

/// How busy the processors were while this process slept.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Load {
    /// Processors' worth of work of others on this machine.
    pub busy_processors: f64,
    /// Processors' worth of time that a virtual machine wanted and its host gave to others.
    pub stolen_processors: f64,
}

/// Sleeps for `interval` and tells what the others did in it; `None` where the system does not count.
pub fn measure_load(interval: Duration) -> Option<Load> {
    let before = Times::read(Path::new("/"))?;
    thread::sleep(interval);
    Times::read(Path::new("/"))?.since(&before)
}

/// The first line of `/proc/stat`, in ticks of all processors together.
#[derive(Debug, PartialEq)]
struct Times {
    total: u64,
    idle: u64,
    stolen: u64,
    processors: usize,
}

impl Times {
    fn read(root: &Path) -> Option<Self> {
        let stat = text(root, "proc/stat")?;
        let is_processor =
            |line: &&str| line.strip_prefix("cpu").is_some_and(|r| r.starts_with(|c: char| c.is_ascii_digit()));
        let processors = stat.lines().filter(is_processor).count();
        let line = stat.lines().next()?.strip_prefix("cpu ")?;
        // user nice system idle iowait irq softirq steal; what follows is counted in user already.
        let ticks: Vec<u64> = line.split_whitespace().take(8).map(|n| n.parse().ok()).collect::<Option<_>>()?;
        let idle = ticks.get(3)?.checked_add(*ticks.get(4)?)?;
        Some(Self { total: ticks.iter().sum(), idle, stolen: ticks.get(7).copied().unwrap_or(0), processors })
    }

    fn since(&self, before: &Self) -> Option<Load> {
        let total = self.total.checked_sub(before.total).filter(|n| *n > 0)? as f64;
        // The counters of idling may go back a little.
        let (idle, stolen) =
            (self.idle.saturating_sub(before.idle) as f64, self.stolen.saturating_sub(before.stolen) as f64);
        let share = |ticks: f64| (ticks / total).clamp(0.0, 1.0) * self.processors as f64;
        Some(Load { busy_processors: share(total - idle - stolen), stolen_processors: share(stolen) })
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::root, *};

    #[test]
    fn busy_is_what_is_neither_idle_nor_stolen() {
        let at = |line: &str| {
            Times::read(root(&[("proc/stat", &format!("cpu  {line}\ncpu0 1 1 1\ncpu1 1 1 1\nintr 5\n"))]).path())
                .unwrap()
        };
        let (before, after) = (at("100 0 50 800 50 0 0 0 0 0"), at("150 0 50 890 50 0 0 20 7 7"));
        let load = after.since(&before).unwrap();
        assert_eq!((load.busy_processors, load.stolen_processors), (2.0 * 50.0 / 160.0, 2.0 * 20.0 / 160.0));
        assert_eq!(before.since(&before), None);
    }

    #[test]
    fn a_file_that_is_not_understood_is_unknown() {
        for text in ["", "cpu x", "cpu0 1 2 3 4 5\n", "cpu  1 2\n"] {
            assert_eq!(Times::read(root(&[("proc/stat", text)]).path()), None, "{text}");
        }
    }
}
