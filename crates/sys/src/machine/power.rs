//! Graphics cards and what measures energy.

use std::{fs::File, path::Path};

use serde::Serialize;

use super::{names, text};

/// A card that may compute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Gpu {
    /// `NVIDIA`, `AMD`, `Intel`, or the number of the vendor.
    pub vendor: String,
    /// Its maker's name for it.
    pub model: Option<String>,
}

/// A counter of energy or power.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PowerMeter {
    /// For example `package-0`, `dram`, `battery BAT0`.
    pub name: String,
    /// The file that counts.
    pub path: String,
    /// Whether this user may read it; many systems keep it for the administrator.
    pub readable: bool,
}

pub(super) fn gpus(root: &Path) -> Vec<Gpu> {
    const NVIDIA: &str = "proc/driver/nvidia/gpus";
    let mut gpus: Vec<Gpu> = names(root, NVIDIA)
        .into_iter()
        .map(|slot| {
            let info = text(root, &format!("{NVIDIA}/{slot}/information")).unwrap_or_default();
            let model = info.lines().find_map(|line| line.strip_prefix("Model:")).map(|m| m.trim().to_owned());
            Gpu { vendor: "NVIDIA".into(), model }
        })
        .collect();
    if gpus.is_empty() {
        let is_card = |name: &String| {
            name.strip_prefix("nvidia").is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
        };
        let cards = names(root, "dev").into_iter().filter(is_card);
        gpus.extend(cards.map(|_| Gpu { vendor: "NVIDIA".into(), model: None }));
    }
    const DRM: &str = "sys/class/drm";
    for card in names(root, DRM).into_iter().filter(|n| n.starts_with("card") && !n.contains('-')) {
        let Some(vendor) = text(root, &format!("{DRM}/{card}/device/vendor")) else { continue };
        let vendor = match vendor.as_str() {
            "0x10de" if !gpus.is_empty() => continue, // Counted above.
            "0x10de" => "NVIDIA",
            "0x1002" => "AMD",
            "0x8086" => "Intel",
            // What virtual machines show on the screen.
            "0x1234" | "0x1af4" | "0x15ad" | "0x1013" | "0x1b36" => continue,
            other => other,
        };
        gpus.push(Gpu { vendor: vendor.to_owned(), model: text(root, &format!("{DRM}/{card}/device/product_name")) });
    }
    gpus
}

pub(super) fn has_cuda_library(root: &Path) -> bool {
    const FOLDERS: [&str; 7] = [
        "usr/lib/x86_64-linux-gnu",
        "usr/lib/aarch64-linux-gnu",
        "usr/lib64",
        "usr/lib",
        "usr/lib/wsl/lib",
        "usr/local/cuda/lib64",
        "usr/local/nvidia/lib64",
    ];
    FOLDERS.iter().any(|folder| root.join(folder).join("libcuda.so.1").exists())
}

pub(super) fn meters(root: &Path) -> Vec<PowerMeter> {
    let mut meters = Vec::new();
    let mut add = |name: String, path: String| {
        if root.join(&path).exists() {
            // Whether it can be opened is not enough: some systems refuse at the reading.
            let readable = File::open(root.join(&path)).is_ok() && text(root, &path).is_some();
            meters.push(PowerMeter { name, path: format!("/{path}"), readable });
        }
    };
    for zone in names(root, "sys/class/powercap") {
        let name = text(root, &format!("sys/class/powercap/{zone}/name")).unwrap_or_else(|| zone.clone());
        add(name, format!("sys/class/powercap/{zone}/energy_uj"));
    }
    for monitor in names(root, "sys/class/hwmon") {
        let folder = format!("sys/class/hwmon/{monitor}");
        let name = text(root, &format!("{folder}/name")).unwrap_or_else(|| monitor.clone());
        for file in ["energy1_input", "power1_average", "power1_input"] {
            add(name.clone(), format!("{folder}/{file}"));
        }
    }
    for supply in names(root, "sys/class/power_supply") {
        add(format!("battery {supply}"), format!("sys/class/power_supply/{supply}/power_now"));
    }
    meters
}

#[cfg(test)]
mod tests {
    use super::{super::tests::root, *};

    #[test]
    fn cards_are_found_by_their_driver_or_their_device() {
        let by_driver = root(&[
            ("proc/driver/nvidia/gpus/0000:01:00.0/information", "Model: \t\t NVIDIA H100\nIRQ: 1\n"),
            ("dev/nvidia0", ""),
            ("sys/class/drm/card0/device/vendor", "0x10de\n"),
            ("sys/class/drm/card1/device/vendor", "0x1002\n"),
            ("sys/class/drm/card1-DP-1/status", "connected\n"),
            ("sys/class/drm/card2/device/vendor", "0x1234\n"),
            ("usr/lib64/libcuda.so.1", ""),
        ]);
        let expected = [
            Gpu { vendor: "NVIDIA".into(), model: Some("NVIDIA H100".into()) },
            Gpu { vendor: "AMD".into(), model: None },
        ];
        assert_eq!(gpus(by_driver.path()), expected);
        assert!(has_cuda_library(by_driver.path()));
        let by_device =
            root(&[("dev/nvidia0", ""), ("dev/nvidia1", ""), ("dev/nvidiactl", ""), ("dev/nvidia-uvm", "")]);
        assert_eq!(gpus(by_device.path()).len(), 2);
        assert!(!has_cuda_library(by_device.path()));
    }

    #[test]
    fn meters_say_whether_they_can_be_read() {
        let root = root(&[
            ("sys/class/powercap/intel-rapl:0/name", "package-0\n"),
            ("sys/class/powercap/intel-rapl:0/energy_uj", "123\n"),
            ("sys/class/powercap/intel-rapl/enabled", "1\n"),
            ("sys/class/hwmon/hwmon0/name", "amd_energy\n"),
            ("sys/class/hwmon/hwmon0/energy1_input", ""),
        ]);
        let meters = meters(root.path());
        assert_eq!(meters.len(), 2);
        assert_eq!((meters[0].name.as_str(), meters[0].readable), ("package-0", true));
        assert_eq!((meters[1].name.as_str(), meters[1].readable), ("amd_energy", false));
    }
}
