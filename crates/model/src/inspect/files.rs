//! The files of a model's folder: sizes, kinds, hashes, licence. Contents are read only where that is cheap.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Read},
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{Licence, Remark, licence};

/// Of a licence or a model card that much is read.
const MAX_TEXT_BYTES: u64 = 256 << 10;
/// A stub of Git LFS has three lines.
const MAX_STUB_BYTES: u64 = 1024;
/// Names in one remark; the rest is counted.
const NAMES: usize = 3;

/// What a file is for, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// `*.safetensors`
    Weights,
    /// config.json, tokenizer files and other data beside the weights.
    Data,
    /// Model card, licence, other texts.
    Text,
    /// A format that runs code when other tools open it: pickle in `*.bin`, `*.pt` and the like.
    Pickle,
    /// `*.py`, `*.sh`, compiled libraries.
    Code,
    /// Weights in a format that is not read here.
    OtherWeights,
    /// A download that did not end.
    Unfinished,
    /// None of these.
    Other,
}

impl FileKind {
    fn of(name: &str) -> Self {
        let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension).to_ascii_lowercase();
        match extension.as_str() {
            "safetensors" => Self::Weights,
            "json" | "jsonl" | "jinja" | "model" | "tiktoken" | "toml" => Self::Data,
            "md" | "txt" | "pdf" | "png" | "svg" | "jpg" => Self::Text,
            "bin" | "pt" | "pth" | "ckpt" | "pkl" | "pickle" | "joblib" | "npy" | "dill" => Self::Pickle,
            "py" | "sh" | "so" | "dll" | "dylib" | "exe" | "pyc" | "ipynb" => Self::Code,
            "gguf" | "onnx" | "h5" | "msgpack" | "tflite" | "mlmodel" => Self::OtherWeights,
            "incomplete" | "part" | "partial" | "tmp" | "crdownload" => Self::Unfinished,
            _ if is_licence(name) => Self::Text,
            _ => Self::Other,
        }
    }
}

fn is_licence(name: &str) -> bool {
    let upper = name.to_ascii_uppercase();
    ["LICENSE", "LICENCE", "COPYING"].iter().any(|start| upper.starts_with(start))
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ModelFile {
    /// In the folder.
    pub name: String,
    /// What it is for.
    pub kind: FileKind,
    /// Size, that of the target for a link; `None` if it cannot be read, such as a link to nothing.
    pub bytes: Option<u64>,
    /// SHA-256 under which the file was published, as a download cache names it.
    pub published_sha256: Option<String>,
    /// SHA-1 of the git object under which a small file was published, as a download cache names it.
    pub published_git_sha1: Option<String>,
    /// SHA-256 of what is there; only after [`Folder::hash`].
    pub sha256: Option<String>,
}

/// A model's folder as it lies on the disk; no subfolder is entered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Folder {
    #[serde(skip)]
    path: PathBuf,
    /// Sorted by name.
    pub files: Vec<ModelFile>,
    /// Sorted; they are not entered.
    pub subfolders: Vec<String>,
    /// What card, licence files and config say.
    pub licence: Licence,
}

impl Folder {
    /// Lists a folder and reads card and licences.
    ///
    /// # Errors
    /// If the folder cannot be listed.
    pub fn read(path: &Path) -> io::Result<Self> {
        let (mut files, mut subfolders) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let metadata = fs::metadata(entry.path()); // Follows links.
            if metadata.as_ref().is_ok_and(fs::Metadata::is_dir) {
                subfolders.push(name);
                continue;
            }
            let blob = fs::read_link(entry.path()).ok().and_then(|t| Some(t.file_name()?.to_str()?.to_owned()));
            let blob = blob.filter(|b| b.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c)));
            files.push(ModelFile {
                kind: FileKind::of(&name),
                bytes: metadata.ok().filter(fs::Metadata::is_file).map(|m| m.len()),
                published_sha256: blob.clone().filter(|b| b.len() == 64),
                published_git_sha1: blob.filter(|b| b.len() == 40),
                sha256: None,
                name,
            });
        }
        files.sort_by(|a, b| a.name.cmp(&b.name));
        subfolders.sort();
        let mut licence = Licence::default();
        if let Some(card) = read_text(&path.join("README.md")) {
            licence.read_card(&card);
        }
        for file in files.iter().filter(|f| is_licence(&f.name)) {
            let text = read_text(&path.join(&file.name));
            licence.files.push((file.name.clone(), text.as_deref().and_then(licence::recognise)));
        }
        if licence.stated.is_none()
            && let Some(stated) = stated_in_config(&path.join("config.json"))
        {
            (licence.stated, licence.stated_in) = (Some(stated), Some("config.json".into()));
        }
        Ok(Self { path: path.into(), files, subfolders, licence })
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().filter_map(|f| f.bytes).sum()
    }

    /// Reads every file and writes down its SHA-256. `progress` takes the bytes of each piece read and may stop the work, which
    /// leaves the remaining hashes unknown.
    ///
    /// # Errors
    /// Path and error of the first file that cannot be read.
    pub fn hash(&mut self, progress: &mut dyn FnMut(u64) -> ControlFlow<()>) -> Result<(), (PathBuf, io::Error)> {
        for file in self.files.iter_mut().filter(|f| f.bytes.is_some()) {
            let path = self.path.join(&file.name);
            match sha256(&path, progress) {
                Ok(Some(hash)) => file.sha256 = Some(hash),
                Ok(None) => return Ok(()),
                Err(error) => return Err((path, error)),
            }
        }
        Ok(())
    }

    /// What is strange about the files.
    pub fn remarks(&self) -> Vec<Remark> {
        let mut remarks = Vec::new();
        let of_kind =
            |kind| self.files.iter().filter(move |f| f.kind == kind).map(|f| f.name.as_str()).collect::<Vec<_>>();
        let mut say = |names: Vec<&str>, make: &dyn Fn(String) -> Remark| {
            if !names.is_empty() {
                remarks.push(make(list(&names)));
            }
        };
        say(of_kind(FileKind::Pickle), &|names| {
            Remark::warning(
                "pickle",
                format!("weights or data in a pickle format: {names}"),
                "tools that open such a file run whatever code it holds; it is never opened here",
            )
        });
        say(of_kind(FileKind::Code), &|names| {
            Remark::warning(
                "code_files",
                format!("program files: {names}"),
                "never run here; other tools run them when told to trust the model's code",
            )
        });
        say(of_kind(FileKind::OtherWeights), &|names| {
            Remark::note(
                "other_formats",
                format!("weights in formats that are not read here: {names}"),
                "safetensors files are",
            )
        });
        say(of_kind(FileKind::Unfinished), &|names| {
            Remark::problem("unfinished_download", format!("unfinished downloads: {names}"), "fetch them again")
        });
        let broken = self.files.iter().filter(|f| f.bytes.is_none()).map(|f| f.name.as_str()).collect();
        say(broken, &|names| {
            Remark::problem(
                "unreadable",
                format!("not readable: {names}"),
                "links to nothing, or no plain files; fetch them again",
            )
        });
        let stubs = self.files.iter().filter(|f| self.is_lfs_stub(f)).map(|f| f.name.as_str()).collect();
        say(stubs, &|names| {
            Remark::problem(
                "lfs_stub",
                format!("stubs of Git LFS instead of files: {names}"),
                "the repository was cloned without its large files; run `git lfs pull` in it",
            )
        });
        let changed =
            |f: &&ModelFile| f.sha256.is_some() && f.published_sha256.is_some() && f.sha256 != f.published_sha256;
        say(self.files.iter().filter(changed).map(|f| f.name.as_str()).collect(), &|names| {
            Remark::problem(
                "hash_mismatch",
                format!("not the bytes that were published: {names}"),
                "damaged or changed after the download; fetch them again",
            )
        });
        remarks.extend(self.shard_remarks());
        if self.licence.is_unknown() {
            remarks.push(Remark::warning(
                "no_licence",
                "no licence is stated",
                "without one you may have no right to use the model; ask its makers",
            ));
        }
        if let (Some((file, found)), Some(stated)) = (self.licence.disagreement(), &self.licence.stated) {
            remarks.push(Remark::warning(
                "licences_differ",
                format!("the model card says {stated}, {file} looks like {found}"),
                "find out which one covers the weights",
            ));
        }
        remarks
    }

    /// Weight files against their index.
    fn shard_remarks(&self) -> Vec<Remark> {
        const SINGLE: &str = "model.safetensors";
        const INDEX: &str = "model.safetensors.index.json";
        let there: BTreeSet<&str> =
            self.files.iter().filter(|f| f.kind == FileKind::Weights).map(|f| f.name.as_str()).collect();
        if there.contains(SINGLE) {
            return match there.iter().copied().filter(|name| *name != SINGLE).collect::<Vec<_>>() {
                others if others.is_empty() => vec![],
                others => vec![Remark::note(
                    "more_weights",
                    format!("other weights beside {SINGLE}: {}", list(&others)),
                    format!("only {SINGLE} is loaded"),
                )],
            };
        }
        let Some(listed) = indexed(&self.path.join(INDEX)) else {
            return match there.into_iter().collect::<Vec<_>>() {
                there if there.is_empty() => vec![Remark::problem(
                    "no_weights",
                    format!("there is neither {SINGLE} nor {INDEX}"),
                    "there is nothing to load",
                )],
                there => vec![Remark::problem(
                    "no_index",
                    format!("weights without a readable {INDEX}: {}", list(&there)),
                    "without it nobody can tell whether the shards are all there",
                )],
            };
        };
        let mut remarks = Vec::new();
        let missing: Vec<&str> = listed.iter().map(String::as_str).filter(|name| !there.contains(name)).collect();
        if !missing.is_empty() {
            remarks.push(Remark::problem(
                "missing_shards",
                format!("{} of {} shards are missing: {}", missing.len(), listed.len(), list(&missing)),
                "the download is not complete",
            ));
        }
        let others: Vec<&str> = there.iter().copied().filter(|name| !listed.contains(*name)).collect();
        if !others.is_empty() {
            remarks.push(Remark::note(
                "unlisted_shards",
                format!("weights that {INDEX} does not list: {}", list(&others)),
                "they are not loaded",
            ));
        }
        remarks
    }

    fn is_lfs_stub(&self, file: &ModelFile) -> bool {
        file.bytes.is_some_and(|n| n <= MAX_STUB_BYTES)
            && read_text(&self.path.join(&file.name))
                .is_some_and(|t| t.starts_with("version https://git-lfs.github.com/spec/"))
    }
}

/// SHA-256 of a file in hexadecimal; `None` if `progress`, which takes the bytes of each piece, stops it.
///
/// # Errors
/// If the file cannot be read.
pub fn sha256(path: &Path, progress: &mut dyn FnMut(u64) -> ControlFlow<()>) -> io::Result<Option<String>> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut piece = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut piece)?;
        if n == 0 {
            break;
        }
        hasher.update(&piece[..n]);
        if progress(n as u64).is_break() {
            return Ok(None);
        }
    }
    Ok(Some(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()))
}

/// The first names and how many more there are.
pub(super) fn list(names: &[&str]) -> String {
    let first: Vec<String> = names.iter().take(NAMES).map(|n| n.escape_debug().take(100).collect()).collect();
    match names.len() {
        n if n <= NAMES => first.join(", "),
        n => format!("{} and {} more", first.join(", "), n - NAMES),
    }
}

/// The shards that an index lists.
fn indexed(index: &Path) -> Option<BTreeSet<String>> {
    const MAX_INDEX_BYTES: u64 = 100_000_000;
    let mut bytes = Vec::new();
    plain(index)?.take(MAX_INDEX_BYTES).read_to_end(&mut bytes).ok()?;
    let json: serde_json::Value = serde_json::from_slice(&bytes).ok()?;
    Some(json.get("weight_map")?.as_object()?.values().filter_map(|v| v.as_str().map(str::to_owned)).collect())
}

/// The beginning of a text.
fn read_text(path: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    plain(path)?.take(MAX_TEXT_BYTES).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// A plain file; opening a pipe would wait forever.
fn plain(path: &Path) -> Option<File> {
    fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
    File::open(path).ok()
}

fn stated_in_config(path: &Path) -> Option<String> {
    let json: serde_json::Value = serde_json::from_str(&read_text(path)?).ok()?;
    Some(json.get("license")?.as_str()?.chars().filter(|c| !c.is_control()).take(200).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> (tempfile::TempDir, Folder) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let folder = Folder::read(dir.path()).unwrap();
        (dir, folder)
    }

    fn ids(folder: &Folder) -> Vec<&'static str> {
        folder.remarks().iter().map(|r| r.id).collect()
    }

    const MIT: (&str, &str) = ("LICENSE", "Permission is hereby granted, free of charge, to any person");

    #[test]
    fn a_plain_folder_gives_no_remark() {
        let (_dir, folder) = folder(&[
            ("model.safetensors", "x"),
            ("config.json", "{}"),
            ("README.md", "---\nlicense: mit\n---\n"),
            MIT,
        ]);
        assert_eq!(ids(&folder), Vec::<&str>::new());
        assert_eq!(folder.licence.summary(), "mit (README.md), MIT (LICENSE)");
    }

    #[test]
    fn dangerous_and_unfinished_files_are_named() {
        let (_dir, folder) = folder(&[
            ("model.safetensors", ""),
            ("pytorch_model.bin", ""),
            ("modeling_x.py", ""),
            ("model.gguf", ""),
            ("a.incomplete", ""),
            ("stub.json", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"),
        ]);
        let expected = ["pickle", "code_files", "other_formats", "unfinished_download", "lfs_stub", "no_licence"];
        assert_eq!(ids(&folder), expected);
        assert!(folder.remarks()[0].what.contains("pytorch_model.bin"));
    }

    #[test]
    fn shards_are_compared_with_their_index() {
        let index = r#"{"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}"#;
        let (_dir, folder) =
            folder(&[MIT, ("m-1.safetensors", ""), ("old.safetensors", ""), ("model.safetensors.index.json", index)]);
        assert_eq!(ids(&folder), ["missing_shards", "unlisted_shards"]);
        assert!(folder.remarks()[0].what.contains("1 of 2 shards are missing: m-2.safetensors"));
        assert_eq!(ids(&self::folder(&[MIT, ("m-1.safetensors", "")]).1), ["no_index"]);
        assert_eq!(ids(&self::folder(&[MIT]).1), ["no_weights"]);
    }

    #[cfg(unix)]
    #[test]
    fn a_cache_snapshot_gives_the_published_hash_and_a_changed_file_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let (blobs, snapshot) = (dir.path().join("blobs"), dir.path().join("snapshots/main"));
        fs::create_dir_all(&snapshot).unwrap();
        fs::create_dir(&blobs).unwrap();
        let sha = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"; // FIPS 180-2: of "abc"
        fs::write(blobs.join(sha), "abc").unwrap();
        std::os::unix::fs::symlink(format!("../../blobs/{sha}"), snapshot.join("model.safetensors")).unwrap();
        let git = "0".repeat(40);
        fs::write(blobs.join(&git), "{}").unwrap();
        std::os::unix::fs::symlink(format!("../../blobs/{git}"), snapshot.join("config.json")).unwrap();
        std::os::unix::fs::symlink("../../blobs/nothing", snapshot.join("tokenizer.json")).unwrap();

        let mut folder = Folder::read(&snapshot).unwrap();
        assert_eq!(folder.files[0].published_git_sha1.as_deref(), Some(&*git));
        assert_eq!(folder.files[1].published_sha256.as_deref(), Some(sha));
        assert_eq!(folder.files[1].bytes, Some(3));
        let mut seen = 0;
        let mut count = |n| {
            seen += n;
            ControlFlow::Continue(())
        };
        folder.hash(&mut count).unwrap();
        assert_eq!((seen, folder.bytes()), (5, 5));
        assert_eq!(folder.files[1].sha256.as_deref(), Some(sha));
        assert_eq!(ids(&folder), ["unreadable", "no_licence"]);

        fs::write(blobs.join(sha), "abd").unwrap();
        folder.hash(&mut |_| ControlFlow::Continue(())).unwrap();
        assert_eq!(ids(&folder), ["unreadable", "hash_mismatch", "no_licence"]);
    }
}
