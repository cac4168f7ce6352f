//! Processors: model, instruction sets, cores, caches, clock.

use std::{collections::BTreeSet, path::Path};

use serde::Serialize;

use super::{count_list, names, number, text};

/// The processors of the machine, as the system shows them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cpu {
    /// Its maker's name for it.
    pub model: Option<String>,
    /// For which processors this program was built.
    pub architecture: &'static str,
    /// Instruction sets that matter to matrix products, and `hypervisor`.
    pub features: Vec<Feature>,
    /// Sockets.
    pub sockets: Option<usize>,
    /// Cores, each of one or more hardware threads.
    pub cores: Option<usize>,
    /// Hardware threads that are switched on.
    pub logical: Option<usize>,
    /// Whether a core runs several threads at once.
    pub smt: Option<bool>,
    /// Threads that this process may use, after affinity and quota.
    pub usable_threads: Option<usize>,
    /// Processors' worth of time that the control group grants.
    pub quota: Option<f64>,
    /// Highest clock in MHz.
    pub max_mhz: Option<f64>,
    /// How the clock is chosen, for example `performance` or `powersave`.
    pub governor: Option<String>,
    /// Of the first processor.
    pub caches: Vec<Cache>,
}

/// An instruction set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Feature {
    /// As in `/proc/cpuinfo`.
    pub name: &'static str,
    /// Whether the system shows it.
    pub present: Option<bool>,
}

/// A cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cache {
    /// 1 is the nearest.
    pub level: u32,
    /// `Data`, `Instruction` or `Unified`.
    pub kind: String,
    /// Its size.
    pub bytes: u64,
    /// Hardware threads that share it.
    pub shared_by: Option<usize>,
}

const X86: &[&str] = &[
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512dq",
    "avx512vl",
    "avx512_bf16",
    "avx512_vnni",
    "avx512_fp16",
    "avx_vnni",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
    "hypervisor",
];
const ARM: &[&str] = &["asimd", "asimddp", "bf16", "i8mm", "sve", "sve2", "sme"];

impl Cpu {
    pub(super) fn read_in(root: &Path) -> Self {
        let info = text(root, "proc/cpuinfo").unwrap_or_default();
        let field = |name: &str| {
            info.lines().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                (key.trim() == name && !value.trim().is_empty()).then(|| value.trim().to_owned())
            })
        };
        let all = |name: &str| -> Vec<&str> {
            let of_line = |line: &'_ str| -> Option<(usize, usize)> {
                let (key, value) = line.split_once(':')?;
                (key.trim() == name).then(|| (key.len() + 1, value.len()))
            };
            info.lines().filter_map(|line| of_line(line).map(|(at, _)| line[at..].trim())).collect()
        };
        let flags: Option<BTreeSet<String>> =
            field("flags").or_else(|| field("Features")).map(|f| f.split_whitespace().map(str::to_owned).collect());
        let known = if cfg!(target_arch = "aarch64") { ARM } else { X86 };
        let features = known.iter().map(|name| Feature {
            name,
            present: flags.as_ref().map(|f| f.contains(*name)).or_else(|| detected(name)),
        });

        let sockets: BTreeSet<&str> = all("physical id").into_iter().collect();
        let cores: BTreeSet<(&str, &str)> = all("physical id").into_iter().zip(all("core id")).collect();
        let online = text(root, "sys/devices/system/cpu/online").and_then(|list| count_list(&list));
        let processors = all("processor").len();
        let mhz = |khz: f64| khz / 1000.0;
        Self {
            model: field("model name").or_else(|| field("Model")).or_else(|| field("cpu model")),
            architecture: std::env::consts::ARCH,
            features: features.collect(),
            sockets: (!sockets.is_empty()).then_some(sockets.len()),
            cores: (!cores.is_empty()).then_some(cores.len()),
            logical: online.or((processors > 0).then_some(processors)),
            smt: number::<u8>(root, "sys/devices/system/cpu/smt/active").map(|n| n == 1),
            usable_threads: std::thread::available_parallelism().ok().map(usize::from),
            quota: quota(root),
            max_mhz: number::<f64>(root, "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")
                .map(mhz)
                .or_else(|| field("cpu MHz")?.parse().ok())
                .filter(|mhz: &f64| mhz.is_finite() && *mhz > 0.0),
            governor: text(root, "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            caches: caches(root),
        }
    }

    /// Whether the system shows an instruction set; `None` if that is unknown.
    pub fn has(&self, name: &str) -> Option<bool> {
        self.features.iter().find(|f| f.name == name)?.present
    }
}

/// What the processor says itself, where the system has no `/proc/cpuinfo`.
#[cfg(target_arch = "x86_64")]
fn detected(name: &str) -> Option<bool> {
    if cfg!(target_os = "linux") {
        return None; // Then the file's absence is what is to be told.
    }
    match name {
        "avx2" => Some(is_x86_feature_detected!("avx2")),
        "fma" => Some(is_x86_feature_detected!("fma")),
        "f16c" => Some(is_x86_feature_detected!("f16c")),
        "avx512f" => Some(is_x86_feature_detected!("avx512f")),
        "avx512bw" => Some(is_x86_feature_detected!("avx512bw")),
        "avx512dq" => Some(is_x86_feature_detected!("avx512dq")),
        "avx512vl" => Some(is_x86_feature_detected!("avx512vl")),
        _ => None,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detected(_name: &str) -> Option<bool> {
    None
}

/// Processors' worth of time that the tightest control group on the way up grants; `None` without a limit.
fn quota(root: &Path) -> Option<f64> {
    let groups = text(root, "proc/self/cgroup")?;
    let mut tightest: Option<f64> = None;
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (hierarchy, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let version2 = hierarchy == "0" && controllers.is_empty();
        if !version2 && !controllers.split(',').any(|c| c == "cpu") {
            continue;
        }
        let mounts: &[&str] =
            if version2 { &["sys/fs/cgroup"] } else { &["sys/fs/cgroup/cpu", "sys/fs/cgroup/cpu,cpuacct"] };
        for mount in mounts {
            for folder in Path::new(path.trim_start_matches('/')).ancestors() {
                let folder = root.join(mount).join(folder);
                let found = if version2 {
                    let Some(text) = text(&folder, "cpu.max") else { continue };
                    let mut words = text.split_whitespace();
                    words
                        .next()
                        .and_then(|q| q.parse::<f64>().ok())
                        .zip(words.next().and_then(|p| p.parse::<f64>().ok()))
                } else {
                    number::<f64>(&folder, "cpu.cfs_quota_us").zip(number::<f64>(&folder, "cpu.cfs_period_us"))
                };
                // "max", and -1 in version 1, mean no limit.
                if let Some((quota, period)) = found.filter(|(q, p)| *q > 0.0 && *p > 0.0) {
                    tightest = Some(tightest.map_or(quota / period, |t| t.min(quota / period)));
                }
            }
        }
    }
    tightest
}

fn caches(root: &Path) -> Vec<Cache> {
    const FOLDER: &str = "sys/devices/system/cpu/cpu0/cache";
    let indices = names(root, FOLDER).into_iter().filter(|name| name.starts_with("index"));
    let mut caches: Vec<Cache> = indices
        .filter_map(|index| {
            let file = |name: &str| text(root, &format!("{FOLDER}/{index}/{name}"));
            Some(Cache {
                level: file("level")?.parse().ok()?,
                kind: file("type")?,
                bytes: size(&file("size")?)?,
                shared_by: file("shared_cpu_list").and_then(|list| count_list(&list)),
            })
        })
        .collect();
    caches.sort_by(|a, b| (a.level, &a.kind).cmp(&(b.level, &b.kind)));
    caches
}

/// Bytes of `32K`, `8192K`, `4M`.
fn size(text: &str) -> Option<u64> {
    let (digits, factor) = match text.as_bytes().last()? {
        b'K' => (&text[..text.len() - 1], 1 << 10),
        b'M' => (&text[..text.len() - 1], 1 << 20),
        b'G' => (&text[..text.len() - 1], 1 << 30),
        _ => (text, 1),
    };
    digits.parse::<u64>().ok()?.checked_mul(factor).filter(|&n| n > 0)
}

#[cfg(test)]
mod tests {
    use super::{super::tests::root, *};

    const TWO_CORES: &str = "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\ncpu MHz\t\t: 2600.5\nphysical id\t: 0\ncore id\t\t: 0\n\
        flags\t\t: fpu avx2 fma avx512f\n\nprocessor\t: 1\nmodel name\t: Some CPU @ 2 GHz\nphysical id\t: 0\ncore id\t\t: 1\n\
        flags\t\t: fpu avx2 fma avx512f\n\nprocessor\t: 2\nphysical id\t: 0\ncore id\t\t: 0\n\nprocessor\t: 3\nphysical id\t: 0\ncore id\t\t: 1\n";

    #[test]
    fn processors_cores_and_instruction_sets_are_read() {
        let root = root(&[("proc/cpuinfo", TWO_CORES), ("sys/devices/system/cpu/smt/active", "1\n")]);
        let cpu = Cpu::read_in(root.path());
        assert_eq!(cpu.model.as_deref(), Some("Some CPU @ 2 GHz"));
        assert_eq!((cpu.sockets, cpu.cores, cpu.logical, cpu.smt), (Some(1), Some(2), Some(4), Some(true)));
        assert_eq!(cpu.max_mhz, Some(2600.5));
        #[cfg(not(target_arch = "aarch64"))]
        assert_eq!((cpu.has("avx2"), cpu.has("amx_bf16"), cpu.has("no such")), (Some(true), Some(false), None));
    }

    #[test]
    fn caches_are_sorted_by_level() {
        let at = |i: usize, file: &str| format!("sys/devices/system/cpu/cpu0/cache/index{i}/{file}");
        let files: Vec<(String, &str)> = [
            (3, "level", "3"),
            (3, "type", "Unified"),
            (3, "size", "32M"),
            (3, "shared_cpu_list", "0-7"),
            (0, "level", "1"),
            (0, "type", "Data"),
            (0, "size", "48K"),
            (1, "level", "1"),
        ]
        .map(|(i, file, text)| (at(i, file), text))
        .into();
        let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (path.as_str(), *text)).collect();
        let root = root(&files);
        let l1 = Cache { level: 1, kind: "Data".into(), bytes: 48 << 10, shared_by: None };
        let l3 = Cache { level: 3, kind: "Unified".into(), bytes: 32 << 20, shared_by: Some(8) };
        assert_eq!(Cpu::read_in(root.path()).caches, [l1, l3]);
    }

    #[test]
    fn the_tightest_quota_counts_in_either_version() {
        let v2 = [
            ("proc/self/cgroup", "0::/a/b\n"),
            ("sys/fs/cgroup/a/cpu.max", "150000 100000\n"),
            ("sys/fs/cgroup/a/b/cpu.max", "max 100000\n"),
        ];
        assert_eq!(quota(root(&v2).path()), Some(1.5));
        let v1 = [
            ("proc/self/cgroup", "3:cpu,cpuacct:/docker/x\n"),
            ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "50000\n"),
            ("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
        ];
        assert_eq!(quota(root(&v1).path()), Some(0.5));
        let none = [("proc/self/cgroup", "0::/\n"), ("sys/fs/cgroup/cpu.max", "max 100000\n")];
        assert_eq!(quota(root(&none).path()), None);
    }
}
