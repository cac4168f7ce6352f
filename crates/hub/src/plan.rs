//! What is here already, what must come, and whether there is room for it.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
};

use jevons_sys::machine::Disk;

use crate::{
    Choice, Event, Hub, HubError, Listing, RemoteFile,
    chunks::Chunks,
    error::At,
    partial::{Paths, examine},
};

/// Room for tables and links.
const MARGIN: u64 = 16 << 20;

/// What fetching a model would do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What it was made from.
    pub listing: Listing,
    /// The chosen files, in the order of the listing.
    pub files: Vec<PlannedFile>,
    /// Files that were asked for but run code when opened, and so are never fetched.
    pub barred: usize,
    /// Bytes of all chosen files.
    pub bytes: u64,
    /// Bytes that must come over the network.
    pub fetch_bytes: u64,
    /// Bytes that must be free on the disk.
    pub space_bytes: u64,
    /// Bytes that are, if the system tells.
    pub free_bytes: Option<u64>,
    /// The checkpoint folder that there will be.
    pub folder: PathBuf,
}

/// A file and what is here of it.
#[derive(Clone, Debug)]
pub struct PlannedFile {
    /// The file.
    pub file: RemoteFile,
    /// What is here.
    pub state: State,
    /// Of each chunk that is here and good, its hash; for a present file only if it has just been made.
    pub(crate) chunks: Option<Chunks>,
}

/// What is here of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// All of it, verified now or earlier.
    Present,
    /// Nothing.
    Absent,
    /// A part, from a pull that was interrupted.
    Begun {
        /// Bytes to come.
        missing: u64,
    },
    /// A finished file that has changed since it was verified, or never was right.
    Damaged {
        /// Bytes to come again.
        missing: u64,
    },
}

impl State {
    /// In one word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Present => "present",
            Self::Absent => "absent",
            Self::Begun { .. } => "begun",
            Self::Damaged { .. } => "damaged",
        }
    }
}

impl PlannedFile {
    /// Bytes that must come.
    pub fn missing(&self) -> u64 {
        match self.state {
            State::Present => 0,
            State::Absent => self.file.bytes,
            State::Begun { missing } | State::Damaged { missing } => missing,
        }
    }
}

impl Plan {
    /// Bytes of the chosen files that hold weights.
    pub fn weight_bytes(&self) -> u64 {
        self.files.iter().filter(|f| crate::is_weights(&f.file.path)).map(|f| f.file.bytes).sum()
    }

    /// Whether the disk has room, as far as the system tells.
    pub fn has_room(&self) -> bool {
        self.free_bytes.is_none_or(|free| free >= self.space_bytes)
    }
}

impl Hub<'_> {
    /// Compares a listing with the cache. Files that were never verified here, or have been changed since, are hashed;
    /// with `verify` all are.
    ///
    /// # Errors
    /// [`HubError::Nothing`] if the choice leaves no file, [`HubError::Io`], [`HubError::Interrupted`].
    pub fn plan(&self, listing: &Listing, choice: &Choice, verify: bool) -> Result<Plan, HubError> {
        let (chosen, barred) = choice.of(listing)?;
        let mut files = Vec::new();
        let mut doubtful = Vec::new();
        for file in chosen {
            let paths = self.paths(listing, file);
            let (state, chunks) = match paths.begun(file.bytes, self.options.chunk_bytes) {
                Some(chunks) => {
                    // Another tool may have fetched it since; or this is a repair, and the blob is what it repairs.
                    if paths.blob.is_file() {
                        doubtful.push(files.len());
                    }
                    (State::Begun { missing: chunks.missing_bytes() }, Some(chunks))
                }
                None if !paths.blob.is_file() => (State::Absent, None),
                None => {
                    if verify || is_doubtful(&paths, file.bytes) {
                        doubtful.push(files.len());
                    }
                    (State::Present, None)
                }
            };
            files.push(PlannedFile { file: file.clone(), state, chunks });
        }
        self.examine_all(listing, &mut files, &doubtful)?;
        // Files with the same bytes come once.
        let mut seen = BTreeSet::new();
        let once: Vec<_> = files.iter().filter(|f| seen.insert(f.file.hash.as_str())).collect();
        let sum = |f: &dyn Fn(&PlannedFile) -> u64| once.iter().map(|file| f(file)).sum::<u64>();
        let space = |f: &PlannedFile| match f.state {
            State::Damaged { .. } => f.file.bytes, // the repaired copy is made beside
            _ => f.missing(),
        };
        let fetch_bytes = sum(&PlannedFile::missing);
        Ok(Plan {
            barred,
            bytes: files.iter().map(|f| f.file.bytes).sum(),
            fetch_bytes,
            space_bytes: if fetch_bytes == 0 { 0 } else { sum(&space) + MARGIN },
            free_bytes: Disk::of(self.cache.root()).available_bytes,
            folder: self.cache.snapshot(&listing.repo, &listing.commit),
            listing: listing.clone(),
            files,
        })
    }

    pub(crate) fn paths(&self, listing: &Listing, file: &RemoteFile) -> Paths {
        let blob = self.cache.blob(&listing.repo, file.hash.as_str());
        Paths::new(blob, &self.cache.ours(&listing.repo), &file.hash)
    }

    /// Hashes the doubtful ones on as many threads as there are cores.
    fn examine_all(&self, listing: &Listing, files: &mut [PlannedFile], doubtful: &[usize]) -> Result<(), HubError> {
        let total = doubtful.iter().map(|i| files[*i].file.bytes).sum();
        let (next, done) = (AtomicUsize::new(0), AtomicU64::new(0));
        let found = Mutex::new(Vec::new());
        let work = || {
            while let Some(i) = doubtful.get(next.fetch_add(1, Ordering::Relaxed)) {
                let result = self.examine_one(listing, &files[*i].file, &mut |bytes| {
                    let done = done.fetch_add(bytes, Ordering::Relaxed) + bytes;
                    (self.client.watch.on_event)(Event::Hashed { done, total });
                    self.client.check_stop()
                });
                found.lock().unwrap_or_else(PoisonError::into_inner).push((*i, result));
            }
        };
        let threads = thread::available_parallelism().map_or(1, |n| n.get()).min(doubtful.len());
        thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(work);
            }
        });
        for (i, result) in found.into_inner().unwrap_or_else(PoisonError::into_inner) {
            let (state, chunks) = result?;
            if matches!(files[i].state, State::Begun { .. }) && state != State::Present {
                continue;
            }
            if state != State::Present {
                let path = &files[i].file.path;
                self.client.notice(&format!(
                    "{path}: the file in the cache is damaged; {} bytes come again",
                    match state {
                        State::Damaged { missing } => missing,
                        _ => files[i].file.bytes,
                    }
                ));
            }
            (files[i].state, files[i].chunks) = (state, chunks);
        }
        Ok(())
    }

    /// If the whole is wrong, the table of the time when it was right tells which chunks are; without one all are.
    fn examine_one(
        &self,
        listing: &Listing,
        file: &RemoteFile,
        progress: &mut dyn FnMut(u64) -> Result<(), HubError>,
    ) -> Result<(State, Option<Chunks>), HubError> {
        let paths = self.paths(listing, file);
        let table = Chunks::read(&paths.table, file.bytes);
        let chunk_bytes = table.as_ref().map_or(self.options.chunk_bytes, |t| t.chunk_bytes);
        let (hash, mut now) = examine(&paths.blob, &file.hash, file.bytes, chunk_bytes, progress)?;
        if hash.as_ref() == Some(&file.hash) {
            return Ok((State::Present, Some(now)));
        }
        let Some(table) = table else { return Ok((State::Absent, None)) };
        for (now, then) in now.hashes.iter_mut().zip(&table.hashes) {
            if now != then {
                *now = None;
            }
        }
        // A file that is only too long has no bad chunk, and nothing needs to come.
        Ok((State::Damaged { missing: now.missing_bytes() }, Some(now)))
    }
}

/// Of the wrong size, never verified by us, or written since.
fn is_doubtful(paths: &Paths, bytes: u64) -> bool {
    let modified = |path: &Path| fs::metadata(path).and_then(|m| Ok((m.len(), m.modified()?))).ok();
    match (modified(&paths.blob), modified(&paths.table)) {
        (Some((size, written)), Some((_, verified))) => size != bytes || written > verified,
        _ => true,
    }
}

pub(crate) fn make_folder(folder: &Path) -> Result<(), HubError> {
    fs::create_dir_all(folder).at(folder, "make the folder")
}
