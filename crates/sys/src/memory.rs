//! How much memory there is, all in bytes. Linux only so far; elsewhere every answer is `None`.
//!
//! Source: proc(5); the kernel's admin-guide/cgroup-v2 and cgroup-v1/memory.

use std::path::Path;

/// Memory that can still be used without swapping: the system's own estimate, or what the process's control group
/// (container) leaves, whichever is less. Cache that the system would drop counts as free.
pub fn available_memory_bytes() -> Option<u64> {
    available_in(Path::new("/"))
}

/// Memory of the machine or of the process's control group (container), whichever is less.
pub fn total_memory_bytes() -> Option<u64> {
    total_in(Path::new("/"))
}

/// The most memory that this process has held so far, mapped files included as far as they were resident.
pub fn peak_rss_bytes() -> Option<u64> {
    kib_line(&Path::new("/").join("proc/self/status"), "VmHWM:")
}

/// From here on freed memory stays with the process, in one heap. A training step frees and takes the same gigabytes again and again; handing
/// them back in between costs page faults and interrupts of the other threads, a twentieth of the step. A no-op without glibc.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    for (option, value) in [
        (libc::M_MMAP_THRESHOLD, i32::MAX),
        (libc::M_TRIM_THRESHOLD, i32::MAX),
        (libc::M_TOP_PAD, 64 << 20),
        (libc::M_ARENA_MAX, 1),
    ] {
        // SAFETY: changes the allocator's settings under its own lock; a setting that it does not take stays as it was.
        unsafe { libc::mallopt(option, value) };
    }
}

/// From now on [`peak_rss_bytes`] tells the most since this call. `false` if the system cannot forget the earlier peak, which then
/// still counts.
pub fn reset_peak_rss() -> bool {
    // proc(5): 5 resets the high-water mark.
    std::fs::write("/proc/self/clear_refs", "5").is_ok()
}

pub(crate) fn available_in(root: &Path) -> Option<u64> {
    let machine = kib_line(&root.join("proc/meminfo"), "MemAvailable:")?;
    Some(groups(root).iter().map(Group::left).fold(machine, u64::min))
}

pub(crate) fn total_in(root: &Path) -> Option<u64> {
    let machine = kib_line(&root.join("proc/meminfo"), "MemTotal:")?;
    Some(groups(root).iter().map(|g| g.limit).fold(machine, u64::min))
}

/// A control group with a limit on memory.
#[derive(Debug, PartialEq)]
struct Group {
    limit: u64,
    /// Without file cache that the system would drop.
    used: u64,
}

impl Group {
    fn left(&self) -> u64 {
        self.limit.saturating_sub(self.used)
    }
}

/// The process's control groups that limit memory, from the innermost outwards, of either version.
fn groups(root: &Path) -> Vec<Group> {
    let Ok(text) = std::fs::read_to_string(root.join("proc/self/cgroup")) else { return Vec::new() };
    let mut found = Vec::new();
    for line in text.lines() {
        // hierarchy:controllers:path, version 2 being hierarchy 0 without controllers.
        let mut fields = line.splitn(3, ':');
        let (Some(hierarchy), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let (mount, names) = if hierarchy == "0" && controllers.is_empty() {
            ("sys/fs/cgroup", ["memory.max", "memory.current", "inactive_file"])
        } else if controllers.split(',').any(|c| c == "memory") {
            ("sys/fs/cgroup/memory", ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"])
        } else {
            continue;
        };
        // Inside a container the path may be the host's, which is not mounted: its ancestors end at the mount itself.
        for path in Path::new(path.trim_start_matches('/')).ancestors() {
            let folder = root.join(mount).join(path);
            let number = |name| -> Option<u64> { std::fs::read_to_string(folder.join(name)).ok()?.trim().parse().ok() };
            // "max" is no number: no limit. Version 1 says so with a number near 2⁶³.
            let Some(limit) = number(names[0]).filter(|&n| n < 1 << 60) else { continue };
            let cache = stat(&folder.join("memory.stat"), names[2]).unwrap_or(0);
            found.push(Group { limit, used: number(names[1]).unwrap_or(0).saturating_sub(cache) });
        }
    }
    found
}

/// The bytes of a line such as `VmHWM:   1234 kB`.
pub(crate) fn kib_line(file: &Path, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The number of a line such as `inactive_file 4096`.
fn stat(file: &Path, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::tests::root;

    const MEMINFO: (&str, &str) = ("proc/meminfo", "MemTotal:  1000 kB\nMemFree:  5 kB\nMemAvailable:   600 kB\n");

    #[test]
    fn without_a_control_group_the_machine_counts() {
        let root = root(&[MEMINFO]);
        assert_eq!(available_in(root.path()), Some(600 << 10));
        assert_eq!(total_in(root.path()), Some(1000 << 10));
    }

    #[test]
    fn the_tightest_version_2_group_on_the_way_up_counts() {
        let root = root(&[
            MEMINFO,
            ("proc/self/cgroup", "0::/outer/inner\n"),
            ("sys/fs/cgroup/outer/memory.max", "409600\n"),
            ("sys/fs/cgroup/outer/memory.current", "300000\n"),
            ("sys/fs/cgroup/outer/memory.stat", "anon 200000\ninactive_file 100000\n"),
            ("sys/fs/cgroup/outer/inner/memory.max", "max\n"),
            ("sys/fs/cgroup/outer/inner/memory.current", "300000\n"),
        ]);
        assert_eq!(total_in(root.path()), Some(409_600));
        assert_eq!(available_in(root.path()), Some(409_600 - 200_000));
    }

    #[test]
    fn a_version_1_group_is_found_at_the_mount_when_its_path_is_the_hosts() {
        let root = root(&[
            MEMINFO,
            ("proc/self/cgroup", "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "102400\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "110000\n"),
            ("sys/fs/cgroup/memory/memory.stat", "inactive_file 1\ntotal_inactive_file 50000\n"),
        ]);
        assert_eq!(total_in(root.path()), Some(102_400));
        assert_eq!(available_in(root.path()), Some(102_400 - 60_000));
    }

    #[test]
    fn an_unlimited_version_1_group_does_not_count() {
        let root = root(&[
            MEMINFO,
            ("proc/self/cgroup", "4:memory:/\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "1\n"),
        ]);
        assert_eq!(available_in(root.path()), Some(600 << 10));
    }

    #[test]
    fn a_group_over_its_limit_leaves_nothing() {
        assert_eq!(Group { limit: 5, used: 7 }.left(), 0);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_machine_has_memory_and_this_process_uses_some() {
        let (total, available) = (total_memory_bytes().unwrap(), available_memory_bytes().unwrap());
        assert!(available <= total, "{available} of {total}");
        let before = peak_rss_bytes().unwrap();
        let block = std::hint::black_box(vec![1_u8; 64 << 20]);
        let after = peak_rss_bytes().unwrap();
        assert!(after >= before.max(64 << 20) && after <= total, "{before} → {after}, {} held", block.len());
        drop(block);
        if reset_peak_rss() {
            let since = peak_rss_bytes().unwrap();
            assert!(since < after, "{since} after the peak of {after} was forgotten");
        }
    }
}
