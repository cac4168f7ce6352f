//! How busy the machine's processors are. Linux only so far; elsewhere every answer is unknown.
//!
//! Source: proc(5): `/proc/stat` counts time in hundredths of a second (`USER_HZ`) by state, `/proc/self/stat` that of a process.

use std::path::Path;

use super::files;

/// `USER_HZ`, the unit of `/proc/stat`: 100 on every Linux.
const TICKS_PER_S: f64 = 100.0;

/// Processor time since the machine started.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    /// Logical processors.
    pub cpus: f64,
    /// Seconds in which a processor was busy, added over all processors.
    pub busy_s: Option<f64>,
    /// Seconds of this process and of the children it has waited for.
    pub own_s: Option<f64>,
}

impl Load {
    /// As of now, below `root` (`/`).
    pub fn read(root: &Path) -> Self {
        let stat = files::text(&root.join("proc/stat"), 1 << 22).unwrap_or_default();
        let cpus = stat.lines().filter(|l| l.starts_with("cpu") && !l.starts_with("cpu ")).count();
        Self {
            cpus: if cpus > 0 {
                cpus as f64
            } else {
                std::thread::available_parallelism().map_or(1, usize::from) as f64
            },
            busy_s: stat.lines().find_map(|l| l.strip_prefix("cpu ")).and_then(busy),
            own_s: files::text(&root.join("proc/self/stat"), 1 << 16).ok().and_then(|t| own(&t)),
        }
    }

    /// Busy seconds since an earlier state; none if either is not known.
    pub(super) fn busy_since(&self, earlier: Option<f64>) -> Option<f64> {
        Some((self.busy_s? - earlier?).max(0.0))
    }
}

/// user nice system idle iowait irq softirq steal …: all but idle, waiting and what the host took for others.
fn busy(line: &str) -> Option<f64> {
    let ticks: Vec<u64> = line.split_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
    let at = |i: usize| ticks.get(i).copied().unwrap_or(0) as f64;
    (ticks.len() >= 4).then(|| (at(0) + at(1) + at(2) + at(5) + at(6)) / TICKS_PER_S)
}

/// utime, stime, cutime and cstime: fields 14 to 17; the second may hold blanks, but ends with the last parenthesis.
fn own(stat: &str) -> Option<f64> {
    let fields: Vec<_> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks: Option<f64> = (11..15).map(|i| fields.get(i)?.parse::<i64>().ok().map(|t| t as f64)).sum();
    Some(ticks? / TICKS_PER_S)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_is_not_work() {
        assert_eq!(busy(" 100 0 50 9999 9999 25 25 7 0 0"), Some(2.0));
        assert_eq!([busy(""), busy("1 2 x 4"), busy("1 2 3")], [None; 3]);
    }

    #[test]
    fn a_process_may_have_any_name() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194304 1 2 3 4 10 20 30 40 20 0 1";
        assert_eq!(own(stat), Some(1.0));
        assert_eq!([own(""), own("7 (x) S 1")], [None; 2]);
    }
}
