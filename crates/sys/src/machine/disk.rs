//! The disk that a folder is on.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::text;

/// What a folder lies on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Disk {
    /// The folder that was asked for, or the nearest one above that exists.
    pub path: PathBuf,
    /// Name of the file system, for example `ext4`.
    pub filesystem: Option<String>,
    /// What it is made of, as far as that shows.
    pub kind: Option<DiskKind>,
    /// Size of the file system.
    pub total_bytes: Option<u64>,
    /// What this user may still write.
    pub available_bytes: Option<u64>,
}

/// What a file system is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskKind {
    /// Flash.
    Solid,
    /// Turning platters.
    Spinning,
    /// A disk of a virtual machine, of whatever is behind it.
    Virtual,
    /// On another machine.
    Network,
    /// In main memory.
    Memory,
}

impl Disk {
    /// The disk of a folder, which need not exist yet.
    pub fn of(folder: &Path) -> Self {
        let absolute = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
        let existing = absolute.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
        let path = existing.canonicalize().unwrap_or_else(|_| existing.to_owned());
        let mount = Mount::of(Path::new("/"), &path);
        Self {
            filesystem: mount.as_ref().map(|m| m.filesystem.clone()),
            kind: mount.as_ref().and_then(|m| m.kind(Path::new("/"))),
            total_bytes: fs4::total_space(&path).ok().filter(|n| *n > 0),
            available_bytes: fs4::available_space(&path).ok(),
            path,
        }
    }
}

/// A line of `/proc/self/mountinfo`.
#[derive(Debug, PartialEq)]
struct Mount {
    /// Major and minor number of the device.
    device: String,
    filesystem: String,
    source: String,
}

impl Mount {
    /// The mount that holds `path`: of those above it the deepest, and of those the last.
    fn of(root: &Path, path: &Path) -> Option<Self> {
        let lines = text(root, "proc/self/mountinfo")?;
        let mut best: Option<(usize, Self)> = None;
        for line in lines.lines() {
            // id parent major:minor root mount-point options [tags] - type source options
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let left: Vec<&str> = left.split(' ').collect();
            let right: Vec<&str> = right.split(' ').collect();
            let (Some(device), Some(point), Some(filesystem)) = (left.get(2), left.get(4), right.first()) else {
                continue;
            };
            let point = unescape(point);
            let depth = Path::new(&point).components().count();
            if path.starts_with(&point) && best.as_ref().is_none_or(|(deepest, _)| depth >= *deepest) {
                let source = right.get(1).copied().unwrap_or_default();
                let [device, filesystem, source] = [device, filesystem, source].map(|s: &str| s.to_owned());
                best = Some((depth, Self { device, filesystem, source }));
            }
        }
        best.map(|(_, mount)| mount)
    }

    fn kind(&self, root: &Path) -> Option<DiskKind> {
        let is = |names: &[&str]| names.contains(&self.filesystem.as_str());
        if is(&["tmpfs", "ramfs"]) {
            return Some(DiskKind::Memory);
        }
        let network =
            ["nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "ceph", "lustre", "afs", "fuse.sshfs", "beegfs", "gpfs"];
        if is(&network) {
            return Some(DiskKind::Network);
        }
        // A virtual disk says that it turns, whatever is behind it.
        let name = self.source.rsplit('/').next().unwrap_or_default();
        if name.starts_with("vd") || name.starts_with("xvd") {
            return Some(DiskKind::Virtual);
        }
        // A partition has no queue of its own; the disk above it has.
        let device = format!("sys/dev/block/{}", self.device);
        let turns =
            ["queue/rotational", "../queue/rotational"].iter().find_map(|file| text(root, &format!("{device}/{file}")));
        match turns.as_deref() {
            Some("0") => Some(DiskKind::Solid),
            Some("1") => Some(DiskKind::Spinning),
            _ => None,
        }
    }
}

/// Spaces and the like are written as `\040`.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let code = rest.get(1..4).and_then(|d| std::str::from_utf8(d).ok()).and_then(|d| u8::from_str_radix(d, 8).ok());
        match (first, code) {
            (b'\\', Some(byte)) => {
                bytes.push(byte);
                rest = &rest[4..];
            }
            _ => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::{super::tests::root, *};

    const MOUNTS: &str = "1 0 8:2 / / rw - ext4 /dev/sda2 rw\n2 1 259:1 / /home rw shared:1 - xfs /dev/nvme0n1p1 rw\n\
        3 1 0:25 / /home/with\\040space rw - nfs4 host:/x rw\n4 1 254:0 / /v rw - ext4 /dev/vda rw\nbroken line\n";

    #[test]
    fn the_deepest_mount_above_a_folder_holds_it() {
        let root = root(&[
            ("proc/self/mountinfo", MOUNTS),
            ("sys/dev/block/8:2/queue/rotational", "1\n"),
            ("sys/dev/block/259:1/queue/rotational", "0\n"),
        ]);
        let kind = |path: &str| {
            let mount = Mount::of(root.path(), Path::new(path)).unwrap();
            (mount.filesystem.clone(), mount.kind(root.path()))
        };
        assert_eq!(kind("/etc"), ("ext4".into(), Some(DiskKind::Spinning)));
        assert_eq!(kind("/home/user"), ("xfs".into(), Some(DiskKind::Solid)));
        assert_eq!(kind("/home/with space/models"), ("nfs4".into(), Some(DiskKind::Network)));
        assert_eq!(kind("/homes"), ("ext4".into(), Some(DiskKind::Spinning)));
        assert_eq!(kind("/v/x"), ("ext4".into(), Some(DiskKind::Virtual)));
    }

    #[test]
    fn a_folder_that_does_not_exist_is_on_the_disk_of_the_one_above() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::of(&dir.path().join("not/yet/here"));
        assert_eq!(disk.path, dir.path().canonicalize().unwrap());
        assert!(disk.available_bytes.is_some() && disk.total_bytes >= disk.available_bytes);
    }

    #[test]
    fn escapes_of_the_mount_table_are_undone() {
        assert_eq!(["a\\040b", "\\", "\\04", "a\\134b"].map(unescape), ["a b", "\\", "\\04", "a\\b"]);
    }
}
