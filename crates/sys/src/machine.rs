//! What this machine is: CPU, memory, disks, graphics, power meters, and who else is busy on it. Linux tells all of it, other
//! systems part; what cannot be found out is `None`, never a zero. Nothing here needs rights or changes anything.
//!
//! Source: proc(5), and the kernel's documentation of sysfs (`Documentation/ABI/stable/sysfs-devices-system-cpu`,
//! `testing/sysfs-devices-system-cpu`, `stable/sysfs-block`), of powercap and of control groups.

mod cpu;
mod disk;
mod load;
mod power;

pub use cpu::{Cache, Cpu, Feature};
pub use disk::{Disk, DiskKind};
pub use load::{Load, measure_load};
pub use power::{Gpu, PowerMeter};

use std::path::Path;

use serde::Serialize;

use crate::memory;

/// Everything but disks and load, which are asked for one by one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Machine {
    /// Processors.
    pub cpu: Cpu,
    /// Main memory.
    pub memory: Memory,
    /// What may compute besides.
    pub gpus: Vec<Gpu>,
    /// Whether a CUDA driver library is where such libraries are.
    pub cuda_library: bool,
    /// What measures energy.
    pub power: Vec<PowerMeter>,
    /// Whether this is a virtual machine; a hint, as the machine may hide it.
    pub virtual_machine: Option<bool>,
    /// The container this process runs in, as far as it shows.
    pub container: Option<&'static str>,
}

/// Main memory, all in bytes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Memory {
    /// Of the machine.
    pub machine_bytes: Option<u64>,
    /// The limit of the process's control group, if it is below that.
    pub limit_bytes: Option<u64>,
    /// What can still be used without swapping.
    pub available_bytes: Option<u64>,
    /// Swap space.
    pub swap_bytes: Option<u64>,
    /// Groups of processors with memory of their own.
    pub numa_nodes: Option<usize>,
    /// `always`, `madvise` or `never`: when the system makes large pages by itself.
    pub transparent_huge_pages: Option<String>,
}

impl Machine {
    /// Looks at this machine.
    pub fn read() -> Self {
        Self::read_in(Path::new("/"))
    }

    fn read_in(root: &Path) -> Self {
        let cpu = Cpu::read_in(root);
        let hypervisor = cpu.features.iter().find(|f| f.name == "hypervisor").and_then(|f| f.present);
        Self {
            memory: Memory::read_in(root),
            gpus: power::gpus(root),
            cuda_library: power::has_cuda_library(root),
            power: power::meters(root),
            virtual_machine: hypervisor,
            container: container(root),
            cpu,
        }
    }
}

impl Memory {
    fn read_in(root: &Path) -> Self {
        let machine_bytes = memory::kib_line(&root.join("proc/meminfo"), "MemTotal:");
        let limit = memory::total_in(root).filter(|limit| machine_bytes.is_some_and(|machine| *limit < machine));
        Self {
            machine_bytes,
            limit_bytes: limit,
            available_bytes: memory::available_in(root),
            swap_bytes: memory::kib_line(&root.join("proc/meminfo"), "SwapTotal:"),
            numa_nodes: text(root, "sys/devices/system/node/online").and_then(|list| count_list(&list)),
            transparent_huge_pages: text(root, "sys/kernel/mm/transparent_hugepage/enabled").and_then(|modes| {
                let (_, rest) = modes.split_once('[')?;
                Some(rest.split_once(']')?.0.to_owned())
            }),
        }
    }
}

fn container(root: &Path) -> Option<&'static str> {
    if root.join(".dockerenv").exists() {
        return Some("docker");
    }
    if root.join("run/.containerenv").exists() {
        return Some("podman");
    }
    let groups = text(root, "proc/1/cgroup").unwrap_or_default();
    let known = [("kubepods", "kubernetes"), ("docker", "docker"), ("lxc", "lxc"), ("libpod", "podman")];
    known.iter().find(|(word, _)| groups.contains(word)).map(|(_, name)| *name)
}

/// A small file without the white space around it; `None` if it is not there or empty.
fn text(root: &Path, path: &str) -> Option<String> {
    let text = std::fs::read_to_string(root.join(path)).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

fn number<T: std::str::FromStr>(root: &Path, path: &str) -> Option<T> {
    text(root, path)?.parse().ok()
}

/// Names in a folder, sorted; none if there is no such folder.
fn names(root: &Path, path: &str) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(root.join(path)) else { return Vec::new() };
    let mut names: Vec<String> = entries.filter_map(|e| e.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// How many numbers a list such as `0-3,8` has.
fn count_list(list: &str) -> Option<usize> {
    let mut count = 0_usize;
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        count = count.checked_add(last.checked_sub(first)?.checked_add(1)?)?;
    }
    (count > 0).then_some(count)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A root folder with these files.
    pub(crate) fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        dir
    }

    #[test]
    fn lists_of_numbers_are_counted() {
        assert_eq!(["0", "0-3", "0-3,8,10-11", "7\n"].map(count_list), [Some(1), Some(4), Some(7), Some(1)]);
        assert_eq!(["", "x", "3-1", "0-99999999999999999999"].map(count_list), [None; 4]);
    }

    #[test]
    fn on_an_empty_system_everything_is_unknown_and_nothing_is_zero() {
        let root = root(&[]);
        let machine = Machine::read_in(root.path());
        assert_eq!(
            machine.memory,
            Memory {
                machine_bytes: None,
                limit_bytes: None,
                available_bytes: None,
                swap_bytes: None,
                numa_nodes: None,
                transparent_huge_pages: None
            }
        );
        assert_eq!(
            (machine.cpu.model, machine.cpu.logical, machine.cpu.cores, machine.cpu.smt),
            (None, None, None, None)
        );
        assert!(machine.cpu.caches.is_empty() && machine.gpus.is_empty() && machine.power.is_empty());
        assert_eq!((machine.virtual_machine, machine.container), (None, None));
    }

    #[test]
    fn memory_is_that_of_machine_and_control_group() {
        let root = root(&[
            ("proc/meminfo", "MemTotal: 1000 kB\nMemAvailable: 600 kB\nSwapTotal: 0 kB\n"),
            ("proc/self/cgroup", "0::/\n"),
            ("sys/fs/cgroup/memory.max", "409600\n"),
            ("sys/fs/cgroup/memory.current", "100000\n"),
            ("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n"),
            ("sys/devices/system/node/online", "0-1\n"),
            ("proc/1/cgroup", "0::/kubepods/pod1\n"),
        ]);
        let machine = Machine::read_in(root.path());
        assert_eq!(machine.memory.machine_bytes, Some(1000 << 10));
        assert_eq!(machine.memory.limit_bytes, Some(409_600));
        assert_eq!(machine.memory.available_bytes, Some(309_600));
        assert_eq!(machine.memory.swap_bytes, Some(0));
        assert_eq!(machine.memory.numa_nodes, Some(2));
        assert_eq!(machine.memory.transparent_huge_pages.as_deref(), Some("madvise"));
        assert_eq!(machine.container, Some("kubernetes"));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_machine_can_be_read() {
        let machine = Machine::read();
        assert!(machine.cpu.usable_threads >= Some(1));
        assert!(machine.memory.machine_bytes > Some(1 << 20));
    }
}
