//! The folder that models live in, laid out as the tools around the hub lay it out.
//!
//! ```text
//! models--ORG--NAME/
//!   refs/main                     text: the commit that `main` was when it was fetched
//!   snapshots/COMMIT/config.json  link to ../../blobs/HASH
//!   blobs/HASH                    the bytes; HASH is SHA-256 of a large file, git's id of a small one
//!   .jevons/HASH.chunks           ours: hashes of the parts of a verified blob
//!   .jevons/HASH.incomplete       ours: a file on its way, with holes, and HASH.journal: which parts of it are there
//! .locks/models--ORG--NAME/       jevons.lock is held by a jevons that changes the model
//! ```
//!
//! Unfinished files are kept apart from `blobs/`, where another tool could take one for its own and go on from its
//! length. A blob is never changed in place, since another process may have it mapped: a repaired one replaces it.

use std::{
    collections::BTreeSet,
    env,
    ffi::OsString,
    fs::{self, File, TryLockError},
    io::{self, Read},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use crate::{
    HubError, RepoId, Revision, Spec,
    error::At,
    name::{is_commit, is_hex},
};

/// Folders inside folders; published models have two.
const MAX_DEPTH: usize = 16;

/// A folder of models. The folder need not exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    root: PathBuf,
}

/// A model in the cache.
#[derive(Clone, Debug)]
pub struct CachedModel {
    /// Which.
    pub repo: RepoId,
    /// Its folder in the cache.
    pub folder: PathBuf,
    /// Its states, sorted by commit.
    pub revisions: Vec<CachedRevision>,
    /// Bytes of all its finished files, each counted once.
    pub bytes: u64,
    /// Unfinished files, by the space they may take when they are complete.
    pub incomplete: usize,
}

/// One state of a model.
#[derive(Clone, Debug)]
pub struct CachedRevision {
    /// 40 hexadecimal digits.
    pub commit: String,
    /// Branches and tags that meant it when they were fetched.
    pub refs: Vec<String>,
    /// The checkpoint folder.
    pub folder: PathBuf,
    /// Sorted by path.
    pub files: Vec<CachedFile>,
}

/// A file of a state.
#[derive(Clone, Debug)]
pub struct CachedFile {
    /// Path in the repository.
    pub path: String,
    /// Name of the blob it links to: its published hash. `None` if it is no link into `blobs/`.
    pub blob: Option<String>,
    /// Size; `None` if the link leads nowhere.
    pub bytes: Option<u64>,
    /// We have checked it against its published hash and can repair it in parts.
    pub verified: bool,
}

/// What [`Cache::remove`] would delete.
#[derive(Clone, Debug)]
pub struct Removal {
    /// Which model.
    pub repo: RepoId,
    /// The states that go.
    pub commits: Vec<String>,
    /// Nothing of the model stays.
    pub whole: bool,
    /// Bytes that become free.
    pub bytes: u64,
    refs: Vec<PathBuf>,
    /// Links and folders of links.
    snapshots: Vec<PathBuf>,
    /// What the links led to, and what we keep about it.
    data: Vec<PathBuf>,
}

/// Proof that no other jevons changes the model, as long as it is held.
#[derive(Debug)]
pub struct Lock {
    repo: RepoId,
    _file: File,
}

impl Cache {
    /// The cache in this folder.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Where the environment says: `HF_HUB_CACHE`, or `hub` in `HF_HOME`, or else `~/.cache/huggingface/hub`.
    ///
    /// # Errors
    /// [`HubError::NoCache`] if nothing says it.
    pub fn from_env() -> Result<Self, HubError> {
        Self::by(|name| env::var_os(name), dirs::home_dir()).ok_or(HubError::NoCache)
    }

    fn by(get: impl Fn(&str) -> Option<OsString>, home: Option<PathBuf>) -> Option<Self> {
        let folder = |name| {
            let path = PathBuf::from(get(name).filter(|v| !v.is_empty())?);
            Some(match (path.strip_prefix("~"), &home) {
                (Ok(rest), Some(home)) => home.join(rest),
                _ => path,
            })
        };
        let root = folder("HF_HUB_CACHE")
            .or_else(|| folder("HUGGINGFACE_HUB_CACHE"))
            .or_else(|| Some(folder("HF_HOME")?.join("hub")))
            .or_else(|| Some(folder("XDG_CACHE_HOME")?.join("huggingface/hub")))
            .or_else(|| Some(home.as_ref()?.join(".cache/huggingface/hub")))?;
        Some(Self { root })
    }

    /// Its folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The checkpoint folder of a model, if it is here: of the commit that its revision (`main` if none is given) was
    /// when it was fetched.
    pub fn find(&self, spec: &Spec) -> Option<PathBuf> {
        let commit = self.commit(spec)?;
        Some(self.snapshot(&spec.repo, &commit)).filter(|folder| folder.is_dir())
    }

    fn commit(&self, spec: &Spec) -> Option<String> {
        let revision = spec.revision.clone().unwrap_or_else(Revision::main);
        let by_name = read_ref(&self.ref_file(&spec.repo, &revision));
        by_name.or_else(|| Some(revision.as_str().to_owned()).filter(|r| is_commit(r)))
    }

    /// Every model, sorted by name. What is not laid out like a model is left out.
    ///
    /// # Errors
    /// [`HubError::Io`] if the folder cannot be read; one that does not exist is empty.
    pub fn models(&self) -> Result<Vec<CachedModel>, HubError> {
        let mut models = Vec::new();
        for name in names(&self.root).at(&self.root, "read the folder of models")? {
            if let Some(repo) = RepoId::of_folder(&name) {
                models.extend(self.model(&repo)?);
            }
        }
        models.sort_by(|a, b| a.repo.cmp(&b.repo));
        Ok(models)
    }

    /// One model; `None` if nothing of it is here.
    ///
    /// # Errors
    /// [`HubError::Io`] if its folder cannot be read.
    pub fn model(&self, repo: &RepoId) -> Result<Option<CachedModel>, HubError> {
        let folder = self.folder(repo);
        if !folder.is_dir() {
            return Ok(None);
        }
        let read = |folder: &Path| names(folder).at(folder, "read the folder");
        let mut all_refs = Vec::new();
        collect(&folder.join("refs"), "", MAX_DEPTH, &mut all_refs).at(folder.join("refs"), "read the folder")?;
        let mut revisions = Vec::new();
        for commit in read(&folder.join("snapshots"))?.into_iter().filter(|c| is_commit(c)) {
            let folder = self.snapshot(repo, &commit);
            let mut paths = Vec::new();
            collect(&folder, "", MAX_DEPTH, &mut paths).at(&folder, "read the folder")?;
            paths.sort();
            let files = paths.into_iter().map(|path| self.file(repo, &folder, path)).collect();
            let of_commit =
                |name: &&String| read_ref(&self.folder(repo).join("refs").join(name)).as_ref() == Some(&commit);
            let refs = all_refs.iter().filter(of_commit).cloned().collect();
            revisions.push(CachedRevision { commit, refs, folder, files });
        }
        revisions.sort_by(|a, b| a.commit.cmp(&b.commit));
        let mut seen = BTreeSet::new();
        let once = |f: &&CachedFile| f.blob.as_ref().is_none_or(|blob| seen.insert(blob.clone()));
        let bytes = revisions.iter().flat_map(|r| &r.files).filter(once).filter_map(|f| f.bytes).sum();
        let incomplete = read(&self.ours(repo))?.iter().filter(|name| name.ends_with(".incomplete")).count();
        Ok(Some(CachedModel { repo: repo.clone(), folder, revisions, bytes, incomplete }))
    }

    fn file(&self, repo: &RepoId, snapshot: &Path, path: String) -> CachedFile {
        let full = snapshot.join(&path);
        let target = fs::read_link(&full).ok();
        let blob = target.as_deref().filter(|t| t.parent().is_some_and(|p| p.ends_with("blobs")));
        let blob = blob.and_then(|t| t.file_name()?.to_str().map(str::to_owned));
        let bytes = fs::metadata(&full).ok().filter(fs::Metadata::is_file).map(|m| m.len());
        let verified =
            bytes.is_some() && blob.as_ref().is_some_and(|b| self.ours(repo).join(format!("{b}.chunks")).is_file());
        CachedFile { path, blob, bytes, verified }
    }

    /// What would have to go so that a model, or with a revision one state of it, is no longer here.
    ///
    /// # Errors
    /// [`HubError::NotCached`], and [`HubError::Io`] if its folder cannot be read.
    pub fn removal(&self, spec: &Spec) -> Result<Removal, HubError> {
        let absent = || HubError::NotCached { spec: spec.to_string(), cache: self.root.clone() };
        let model = self.model(&spec.repo)?.ok_or_else(absent)?;
        let commit = match &spec.revision {
            None => None,
            Some(_) => Some(self.commit(spec).ok_or_else(absent)?),
        };
        let (go, stay): (Vec<_>, Vec<_>) =
            model.revisions.iter().partition(|r| commit.as_ref().is_none_or(|commit| *commit == r.commit));
        if commit.is_some() && go.is_empty() {
            return Err(absent());
        }
        let mut removal = Removal {
            repo: spec.repo.clone(),
            commits: go.iter().map(|r| r.commit.clone()).collect(),
            whole: stay.is_empty(),
            bytes: 0,
            refs: vec![],
            snapshots: go.iter().map(|r| r.folder.clone()).collect(),
            data: vec![],
        };
        if removal.whole {
            let parts = names(&model.folder).at(&model.folder, "read the folder")?;
            removal.bytes = model.bytes;
            removal.refs = vec![model.folder.join("refs")];
            let rest = parts.iter().filter(|name| *name != "refs" && *name != "snapshots");
            removal.snapshots = vec![model.folder.join("snapshots")];
            removal.data = rest.map(|name| model.folder.join(name)).collect();
            return Ok(removal);
        }
        let files = |revisions: &[&CachedRevision]| -> Vec<CachedFile> {
            revisions.iter().flat_map(|r| r.files.iter().cloned()).collect()
        };
        let kept: BTreeSet<_> = files(&stay).into_iter().filter_map(|f| f.blob).collect();
        let mut freed = BTreeSet::new();
        for file in files(&go) {
            match file.blob {
                Some(blob) if kept.contains(&blob) || !freed.insert(blob.clone()) => {}
                Some(blob) => {
                    removal.bytes += file.bytes.unwrap_or(0);
                    removal.data.push(self.blob(&spec.repo, &blob));
                    removal.data.push(self.ours(&spec.repo).join(format!("{blob}.chunks")));
                }
                None => removal.bytes += file.bytes.unwrap_or(0),
            }
        }
        removal.refs = go.iter().flat_map(|r| &r.refs).map(|name| model.folder.join("refs").join(name)).collect();
        Ok(removal)
    }

    /// Deletes it: names first and bytes last, so that whatever interrupts it leaves no name without bytes.
    ///
    /// # Errors
    /// [`HubError::Io`] for what cannot be deleted.
    pub fn remove(&self, removal: &Removal, lock: &Lock) -> Result<(), HubError> {
        assert_eq!(lock.repo, removal.repo, "the lock of another model");
        for path in removal.refs.iter().chain(&removal.snapshots).chain(&removal.data) {
            let result = match fs::symlink_metadata(path) {
                Ok(kind) if kind.is_dir() => fs::remove_dir_all(path),
                Ok(_) => fs::remove_file(path),
                Err(error) => Err(error),
            };
            match result {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                result => result.at(path, "delete it")?,
            }
        }
        if removal.whole {
            let folder = self.folder(&removal.repo);
            fs::remove_dir(&folder).at(folder, "delete the empty folder")?;
        }
        Ok(())
    }

    /// Makes sure that no other jevons changes the model; `None` if one does.
    ///
    /// # Errors
    /// [`HubError::Io`] if the lock's file cannot be made.
    pub fn try_lock(&self, repo: &RepoId) -> Result<Option<Lock>, HubError> {
        let folder = self.root.join(".locks").join(repo.folder());
        fs::create_dir_all(&folder).at(&folder, "make the folder")?;
        // It is never deleted: whoever waits for a deleted lock and whoever makes a new one would both get in.
        let path = folder.join("jevons.lock");
        let file = File::options().create(true).append(true).open(&path).at(&path, "make the lock")?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Lock { repo: repo.clone(), _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error).at(path, "lock the model"),
        }
    }

    pub(crate) fn folder(&self, repo: &RepoId) -> PathBuf {
        self.root.join(repo.folder())
    }

    pub(crate) fn blob(&self, repo: &RepoId, name: &str) -> PathBuf {
        self.folder(repo).join("blobs").join(name)
    }

    /// What only we know about a model.
    pub(crate) fn ours(&self, repo: &RepoId) -> PathBuf {
        self.folder(repo).join(".jevons")
    }

    pub(crate) fn snapshot(&self, repo: &RepoId, commit: &str) -> PathBuf {
        self.folder(repo).join("snapshots").join(commit)
    }

    pub(crate) fn ref_file(&self, repo: &RepoId, revision: &Revision) -> PathBuf {
        self.folder(repo).join("refs").join(revision.as_str())
    }

    /// Puts the name of a file of a commit in place: a link to its blob. `path` has been checked.
    pub(crate) fn link(&self, repo: &RepoId, commit: &str, path: &str, blob: &str) -> Result<(), HubError> {
        let link = self.snapshot(repo, commit).join(path);
        let target = PathBuf::from("../".repeat(2 + path.matches('/').count())).join("blobs").join(blob);
        if fs::read_link(&link).is_ok_and(|t| t == target) {
            return Ok(());
        }
        let folder = link.parent().expect("it is in a folder");
        fs::create_dir_all(folder).at(folder, "make the folder")?;
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let beside = format!(".{}-{}.link", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        let beside = folder.join(beside);
        let _ = fs::remove_file(&beside); // of a killed process that had our number
        symlink(&target, &beside, &self.blob(repo, blob)).at(&link, "make the link")?;
        fs::rename(&beside, &link).at(link, "put the link in place")
    }
}

impl Lock {
    pub(crate) fn is_of(&self, repo: &RepoId) -> bool {
        self.repo == *repo
    }
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path, _blob: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

/// Where links need special rights, a second name does as well.
#[cfg(not(unix))]
fn symlink(_target: &Path, link: &Path, blob: &Path) -> io::Result<()> {
    fs::hard_link(blob, link)
}

/// The commit in a ref's file.
fn read_ref(path: &Path) -> Option<String> {
    let mut text = String::new();
    File::open(path).ok()?.take(64).read_to_string(&mut text).ok()?;
    Some(text.trim().to_owned()).filter(|commit| is_hex(commit, 40))
}

/// Names in a folder that are text, sorted; none if there is no such folder.
fn names(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(vec![]);
        }
        entries => entries?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry?.file_name().into_string().ok());
    }
    names.sort();
    Ok(names)
}

/// Paths of everything below a folder that is no folder itself. Links are not followed.
fn collect(folder: &Path, prefix: &str, depth: usize, paths: &mut Vec<String>) -> io::Result<()> {
    for name in names(folder)? {
        let (path, full) = (format!("{prefix}{name}"), folder.join(&name));
        match fs::symlink_metadata(&full) {
            Ok(kind) if kind.is_dir() && depth > 0 => collect(&full, &format!("{path}/"), depth - 1, paths)?,
            Ok(kind) if kind.is_dir() => {}
            Ok(_) => paths.push(path),
            Err(_) => {} // it has just gone
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_where_the_tools_around_the_hub_look() {
        let root = |vars: &[(&str, &str)]| {
            let get = |name: &str| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).into());
            Cache::by(get, Some("/home/me".into())).unwrap().root.to_str().unwrap().to_owned()
        };
        assert_eq!(root(&[]), "/home/me/.cache/huggingface/hub");
        assert_eq!(root(&[("XDG_CACHE_HOME", "/c")]), "/c/huggingface/hub");
        assert_eq!(root(&[("XDG_CACHE_HOME", "/c"), ("HF_HOME", "~/h")]), "/home/me/h/hub");
        assert_eq!(root(&[("HF_HOME", "/h"), ("HF_HUB_CACHE", "/x")]), "/x");
        assert_eq!(root(&[("HF_HUB_CACHE", "")]), "/home/me/.cache/huggingface/hub");
        assert_eq!(Cache::by(|_| None, None), None);
    }

    const OLD: &str = "1111111111111111111111111111111111111111";
    const NEW: &str = "2222222222222222222222222222222222222222";

    /// Two states that share one blob of three.
    fn two_states() -> (tempfile::TempDir, Cache, RepoId) {
        let dir = tempfile::tempdir().unwrap();
        let (cache, repo) = (Cache::new(dir.path()), "a/b".parse().unwrap());
        let folder = cache.folder(&repo);
        for (path, text) in [
            ("blobs/shared", "1234"),
            ("blobs/old", "56"),
            ("blobs/new", "7"),
            ("refs/v1", OLD),
            ("refs/main", NEW),
            ("refs/refs/pr/1", OLD),
            (".jevons/old.chunks", ""),
        ] {
            let path = folder.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        for (commit, path, blob) in
            [(OLD, "config.json", "shared"), (OLD, "sub/w", "old"), (NEW, "config.json", "shared"), (NEW, "w", "new")]
        {
            cache.link(&repo, commit, path, blob).unwrap();
        }
        (dir, cache, repo)
    }

    #[test]
    fn models_are_listed_with_their_states_and_each_blob_counted_once() {
        let (dir, cache, repo) = two_states();
        fs::write(dir.path().join("version.txt"), "1").unwrap();
        fs::create_dir(dir.path().join("datasets--a--b")).unwrap();
        let models = cache.models().unwrap();
        let [model] = &models[..] else { panic!("{models:?}") };
        assert_eq!((&model.repo, model.bytes, model.incomplete), (&repo, 7, 0));
        let [old, new] = &model.revisions[..] else { panic!("{model:?}") };
        assert_eq!((&*old.refs, &*new.refs), (&["refs/pr/1".to_owned(), "v1".into()][..], &["main".to_owned()][..]));
        let files: Vec<_> = old.files.iter().map(|f| (&*f.path, f.bytes, f.verified)).collect();
        assert_eq!(files, [("config.json", Some(4), false), ("sub/w", Some(2), true)]);
        for (spec, commit) in [("a/b", NEW), ("a/b@v1", OLD), ("a/b@refs/pr/1", OLD), (&format!("a/b@{OLD}"), OLD)] {
            assert_eq!(cache.find(&spec.parse().unwrap()), Some(cache.snapshot(&repo, commit)), "{spec}");
        }
        for spec in ["a/c", "a/b@v2", &format!("a/b@{}", "3".repeat(40))] {
            assert_eq!(cache.find(&spec.parse().unwrap()), None, "{spec}");
        }
        assert_eq!(fs::read(cache.find(&"a/b@v1".parse().unwrap()).unwrap().join("sub/w")).unwrap(), b"56");
        assert!(Cache::new(dir.path().join("none")).models().unwrap().is_empty());
    }

    #[test]
    fn removing_one_state_frees_only_what_no_other_needs() {
        let (_dir, cache, repo) = two_states();
        let lock = cache.try_lock(&repo).unwrap().unwrap();
        let removal = cache.removal(&"a/b@v1".parse().unwrap()).unwrap();
        assert_eq!((removal.whole, removal.bytes, &removal.commits[..]), (false, 2, &[OLD.to_owned()][..]));
        cache.remove(&removal, &lock).unwrap();
        let model = cache.model(&repo).unwrap().unwrap();
        assert_eq!((model.bytes, model.revisions.len()), (5, 1));
        assert_eq!(names(&model.folder.join("blobs")).unwrap(), ["new", "shared"]);
        assert_eq!(names(&model.folder.join(".jevons")).unwrap(), [""; 0]);
        assert!(matches!(cache.removal(&"a/b@v1".parse().unwrap()), Err(HubError::NotCached { .. })));
        let last = cache.removal(&"a/b@main".parse().unwrap()).unwrap();
        assert!(last.whole);
        cache.remove(&last, &lock).unwrap();
        assert!(cache.model(&repo).unwrap().is_none() && !cache.folder(&repo).exists());
    }

    #[test]
    fn removing_a_model_does_not_follow_links_out_of_it() {
        let (dir, cache, repo) = two_states();
        let outside = dir.path().join("precious");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("file"), "x").unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink(&outside, cache.snapshot(&repo, OLD).join("way-out")).unwrap();
        let removal = cache.removal(&"a/b".parse().unwrap()).unwrap();
        assert_eq!((removal.whole, removal.bytes), (true, 7));
        cache.remove(&removal, &cache.try_lock(&repo).unwrap().unwrap()).unwrap();
        assert!(outside.join("file").exists() && !cache.folder(&repo).exists());
    }

    #[test]
    fn a_lock_is_held_by_one() {
        let (_dir, cache, repo) = two_states();
        let lock = cache.try_lock(&repo).unwrap();
        assert!(lock.is_some() && cache.try_lock(&repo).unwrap().is_none());
        assert!(cache.try_lock(&"a/other".parse().unwrap()).unwrap().is_some());
        drop(lock);
        assert!(cache.try_lock(&repo).unwrap().is_some());
    }
}
