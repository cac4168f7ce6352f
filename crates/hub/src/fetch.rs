//! Fetching what a plan lacks: ranges in parallel, every byte hashed, bad parts fetched again.
//!
//! **When a whole file is wrong** although all its chunks came, there are two cases, and each is told from the other by
//! the hash that every chunk had when it came. If a chunk on the disk no longer has that hash, the disk lost it (a power
//! cut, bad memory): it alone is fetched again. If all still have theirs, they were wrong when they came: each chunk is
//! fetched once more and compared; where the two differ a third one decides. After each replaced chunk the whole is
//! hashed again, so that the search ends where the bad chunk is. If nothing differs, the server really sends a file that
//! is not the published one, and no further attempt can help. Either way only a file with the published hash is put in
//! place; the rest is a matter of how many bytes must come twice.

use std::{
    collections::{HashMap, VecDeque},
    ops::Range,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use jevons_sys::atomic;
use sha2::{Digest, Sha256};

use crate::{
    Event, Hub, HubError, Listing, Lock, Plan, PlannedFile, RepoId, State,
    chunks::{ChunkHash, chunk_hash},
    error::At,
    partial::{Partial, Writer},
    plan::make_folder,
    range::{Reading, Remote},
};

/// Searches for bad chunks before giving up.
const REPAIRS: usize = 3;
/// Replaced chunks after which the whole is hashed at once, per search; then only at its end.
const EAGER: usize = 8;

/// What fetching did.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Every chosen file.
    pub files: Vec<FetchedFile>,
    /// Bytes that came.
    pub fetched_bytes: u64,
    /// Time it took.
    pub time: Duration,
    /// The checkpoint folder.
    pub folder: PathBuf,
}

/// A file that is in its place and verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchedFile {
    /// Path in the repository.
    pub path: String,
    /// Size.
    pub bytes: u64,
    /// What was here of it before.
    pub before: State,
}

impl Hub<'_> {
    /// Waits until no other jevons changes the model.
    ///
    /// # Errors
    /// [`HubError::Io`], [`HubError::Interrupted`].
    pub fn lock(&self, repo: &RepoId) -> Result<Lock, HubError> {
        let mut told = false;
        loop {
            if let Some(lock) = self.cache.try_lock(repo)? {
                return Ok(lock);
            }
            if !told {
                self.client.notice(&format!("another jevons is at work on {repo}; waiting for it"));
                told = true;
            }
            self.client.check_stop()?;
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// A small file's text, verified, straight into memory; from the cache if it is there. `None` if there is no such
    /// file.
    ///
    /// # Errors
    /// [`HubError::TooLarge`] above `limit` bytes, [`HubError::Wrong`], and those of the connection.
    pub fn small_file(&self, listing: &Listing, path: &str, limit: u64) -> Result<Option<Vec<u8>>, HubError> {
        let Some(file) = listing.files.iter().find(|f| f.path == path) else { return Ok(None) };
        if file.bytes > limit {
            return Err(HubError::TooLarge { host: self.host().into(), what: path.into(), limit });
        }
        let hash = |bytes: &[u8]| {
            let mut hasher = file.hash.hasher(file.bytes);
            hasher.update(bytes);
            hasher.finish()
        };
        let blob = self.cache.blob(&listing.repo, file.hash.as_str());
        if let Some(bytes) = std::fs::read(blob).ok().filter(|bytes| hash(bytes) == file.hash) {
            return Ok(Some(bytes));
        }
        let remote = Remote::new(&self.client, listing, file)?;
        for attempt in 0.. {
            let bytes = self.bytes(&remote, 0..file.bytes)?;
            let found = hash(&bytes);
            if found == file.hash {
                return Ok(Some(bytes));
            }
            if attempt == REPAIRS {
                return Err(HubError::Wrong { path: path.into(), expected: file.hash.clone(), found });
            }
        }
        unreachable!("the last attempt returns")
    }

    /// A part of a file, into memory.
    fn bytes(&self, remote: &Remote<'_>, range: Range<u64>) -> Result<Vec<u8>, HubError> {
        let mut bytes = Vec::with_capacity((range.end - range.start) as usize);
        let sink = &mut |piece: &[u8]| {
            bytes.extend_from_slice(piece);
            Ok(())
        };
        self.client.read(remote, range, true, self.options.chunk_bytes, sink)?;
        Ok(bytes)
    }

    /// Fetches what the plan lacks, and puts each file in its place once it has its published hash. Whatever ends this,
    /// the next plan goes on from there.
    ///
    /// # Errors
    /// [`HubError::Space`] before anything comes; [`HubError::Wrong`] for a file that cannot be had as published;
    /// [`HubError::Interrupted`], [`HubError::Io`], and those of the connection.
    pub fn fetch(&self, plan: &Plan, lock: &Lock) -> Result<Summary, HubError> {
        let (start, listing) = (Instant::now(), &plan.listing);
        assert!(lock.is_of(&listing.repo), "the lock of another model");
        if let Some(free) = plan.free_bytes.filter(|_| !plan.has_room()) {
            return Err(HubError::Space { folder: self.cache.root().into(), need: plan.space_bytes, free });
        }
        let folder = self.cache.folder(&listing.repo);
        make_folder(&folder.join("blobs"))?;
        make_folder(&folder.join(".jevons"))?;
        let work = Work::new(self, plan)?;
        work.run()?;
        self.name_commit(listing)?;
        let file = |f: &PlannedFile| FetchedFile { path: f.file.path.clone(), bytes: f.file.bytes, before: f.state };
        Ok(Summary {
            files: plan.files.iter().map(file).collect(),
            fetched_bytes: work.arrived.load(Ordering::Relaxed),
            time: start.elapsed(),
            folder: plan.folder.clone(),
        })
    }

    /// Remembers which commit the revision means.
    fn name_commit(&self, listing: &Listing) -> Result<(), HubError> {
        if listing.revision.as_str() == listing.commit {
            return Ok(());
        }
        let path = self.cache.ref_file(&listing.repo, &listing.revision);
        make_folder(path.parent().expect("it is in a folder"))?;
        atomic::write(&path, listing.commit.as_bytes()).at(path, "write the revision's commit")
    }
}

/// The files of a plan in work.
struct Work<'w> {
    hub: &'w Hub<'w>,
    plan: &'w Plan,
    jobs: Vec<Job<'w>>,
    tasks: Mutex<VecDeque<Task>>,
    /// Bytes that came and were kept, and how many there will have been.
    arrived: AtomicU64,
    expected: AtomicU64,
    failure: Mutex<Option<HubError>>,
}

/// Some chunks of a job; none: only the end of it is to be done.
struct Task {
    job: usize,
    run: Range<usize>,
}

/// A file in work.
struct Job<'w> {
    planned: &'w PlannedFile,
    /// Every path that has these bytes.
    paths: Vec<&'w str>,
    remote: Remote<'w>,
    /// Opened by the first task, closed by the last, so that few are open at a time.
    state: Mutex<JobState>,
    /// The server sends this file as a whole only; one task then takes all of it.
    whole_only: AtomicBool,
    taken: AtomicBool,
}

#[derive(Default)]
struct JobState {
    partial: Option<Arc<Partial>>,
    active: usize,
    finished: bool,
}

impl<'w> Work<'w> {
    fn new(hub: &'w Hub<'w>, plan: &'w Plan) -> Result<Self, HubError> {
        let (mut jobs, mut tasks) = (Vec::<Job<'w>>::new(), Vec::new());
        let mut job_of = HashMap::new();
        for planned in &plan.files {
            let job = *job_of.entry(planned.file.hash.as_str()).or_insert(jobs.len());
            if let Some(job) = jobs.get_mut(job) {
                job.paths.push(&planned.file.path);
                continue;
            }
            let chunks = match (&planned.chunks, planned.state) {
                (_, State::Present) => None,
                (Some(chunks), _) => Some(chunks.clone()),
                (None, _) => Some(crate::chunks::Chunks::new(planned.file.bytes, hub.options.chunk_bytes)),
            };
            let runs = chunks.map_or(vec![], |c| c.missing(hub.options.chunks_per_request.max(1)));
            match runs.is_empty() {
                true => tasks.push(Task { job, run: 0..0 }),
                false => tasks.extend(runs.into_iter().map(|run| Task { job, run })),
            }
            let remote = Remote::new(&hub.client, &plan.listing, &planned.file)?;
            let (state, [whole_only, taken]) = (Mutex::default(), [const { AtomicBool::new(false) }; 2]);
            jobs.push(Job { planned, paths: vec![&planned.file.path], remote, state, whole_only, taken });
        }
        // Small files first: if something is wrong with the model, it shows in them.
        tasks.sort_by_key(|t| jobs[t.job].planned.missing() > hub.options.chunk_bytes);
        Ok(Self {
            hub,
            plan,
            jobs,
            tasks: Mutex::new(tasks.into()),
            arrived: AtomicU64::new(0),
            expected: AtomicU64::new(plan.fetch_bytes),
            failure: Mutex::default(),
        })
    }

    /// All tasks, on as many threads as the options say.
    fn run(&self) -> Result<(), HubError> {
        let halt = &self.hub.client.halt;
        halt.store(false, Ordering::Relaxed);
        thread::scope(|scope| {
            for _ in 0..self.hub.options.jobs.max(1) {
                scope.spawn(|| {
                    if let Err(error) = self.tasks() {
                        // Those that are halted by this fail too, later.
                        locked(&self.failure).get_or_insert(error);
                        halt.store(true, Ordering::Relaxed);
                    }
                });
            }
        });
        halt.store(false, Ordering::Relaxed);
        locked(&self.failure).take().map_or(Ok(()), Err)
    }

    fn tasks(&self) -> Result<(), HubError> {
        loop {
            self.hub.client.check_stop()?;
            let Some(task) = locked(&self.tasks).pop_front() else { return Ok(()) };
            let job = &self.jobs[task.job];
            if job.planned.state == State::Present {
                self.present(job)?;
            } else if let Some(partial) = self.begin(job)? {
                let result = if task.run.is_empty() { Ok(()) } else { self.receive(job, &partial, task.run) };
                let last = self.end(job, &partial);
                result?;
                if last {
                    self.finish(job, &partial)?;
                }
            }
        }
    }

    /// A file that is here and good only needs its table and its names.
    fn present(&self, job: &Job<'_>) -> Result<(), HubError> {
        let paths = self.hub.paths(&self.plan.listing, &job.planned.file);
        if let Some(chunks) = &job.planned.chunks {
            atomic::write(&paths.table, chunks.text().as_bytes()).at(&paths.table, "write the table")?;
        }
        paths.forget_begun()?;
        self.name(job)
    }

    /// `None` if the file has been finished by another task.
    fn begin(&self, job: &Job<'_>) -> Result<Option<Arc<Partial>>, HubError> {
        let mut state = locked(&job.state);
        if state.finished {
            return Ok(None);
        }
        if state.partial.is_none() {
            let PlannedFile { file, chunks, state: before } = job.planned;
            let repair = chunks.as_ref().filter(|_| matches!(before, State::Damaged { .. }));
            let paths = self.hub.paths(&self.plan.listing, file);
            let partial = Partial::open(paths, &file.hash, file.bytes, self.hub.options.chunk_bytes, repair)?;
            state.partial = Some(Arc::new(partial));
        }
        state.active += 1;
        Ok(state.partial.clone())
    }

    /// Whether all chunks are there and nobody else writes any more.
    fn end(&self, job: &Job<'_>, partial: &Partial) -> bool {
        let mut state = locked(&job.state);
        state.active -= 1;
        if state.active > 0 || !partial.is_complete() {
            return false;
        }
        state.partial = None;
        state.finished = true;
        true
    }

    fn receive(&self, job: &Job<'_>, partial: &Partial, run: Range<usize>) -> Result<(), HubError> {
        let (mut run, mut whole) = (run, false);
        loop {
            if job.whole_only.load(Ordering::Relaxed) && !whole {
                if job.taken.swap(true, Ordering::Relaxed) {
                    return Ok(()); // another task takes all of it
                }
                (run, whole) = (partial.rest(), true);
            }
            let span = partial.chunks().span(&run);
            let mut writer = Writer::new(partial, run.start);
            let sink = &mut |bytes: &[u8]| {
                writer.write(bytes)?;
                self.progress(bytes.len() as u64, 0);
                Ok(())
            };
            let chunk_bytes = self.hub.options.chunk_bytes;
            match self.hub.client.read(&job.remote, span, whole, chunk_bytes, sink)? {
                Reading::Done => return Ok(()),
                Reading::NoRanges => {
                    self.progress(0, writer.filled); // a chunk that was not completed comes again
                    job.whole_only.store(true, Ordering::Relaxed);
                }
            }
        }
    }

    /// Checks the whole and puts it in place.
    fn finish(&self, job: &Job<'_>, partial: &Partial) -> Result<(), HubError> {
        let file = &job.planned.file;
        let mut found = partial.hash()?;
        for _ in 0..REPAIRS {
            if found == file.hash {
                break;
            }
            let lost = partial.lost()?;
            found =
                if lost.is_empty() { self.search(job, partial, found)? } else { self.refetch(job, partial, &lost)? };
        }
        if found != file.hash {
            return Err(HubError::Wrong { path: file.path.clone(), expected: file.hash.clone(), found });
        }
        partial.place()?;
        self.name(job)
    }

    /// The disk lost these chunks.
    fn refetch(&self, job: &Job<'_>, partial: &Partial, lost: &[usize]) -> Result<crate::Published, HubError> {
        let (path, n) = (&job.planned.file.path, lost.len());
        self.hub.client.notice(&format!("{path}: the disk does not hold what was written; {n} parts come again"));
        for chunk in lost {
            let (bytes, hash) = self.chunk(job, partial, *chunk)?;
            self.replace(partial, *chunk, &bytes, hash)?;
        }
        partial.hash_again()
    }

    /// The chunks are as they came, and some came wrong. Returns the hash of the whole afterwards.
    fn search(&self, job: &Job<'_>, partial: &Partial, before: crate::Published) -> Result<crate::Published, HubError> {
        let path = &job.planned.file.path;
        self.hub.client.notice(&format!("{path}: it is not the published file; looking for the part that came wrong"));
        let (chunks, mut replaced) = (partial.chunks(), 0);
        for (i, noted) in chunks.hashes.iter().enumerate() {
            let second = self.chunk(job, partial, i)?;
            if Some(&second.1) == noted.as_ref() {
                continue;
            }
            let third = self.chunk(job, partial, i)?;
            if Some(&third.1) == noted.as_ref() {
                continue; // two to one for what we have
            }
            self.replace(partial, i, &third.0, third.1)?;
            replaced += 1;
            if replaced <= EAGER {
                let found = partial.hash_again()?;
                if found == job.planned.file.hash {
                    return Ok(found);
                }
            }
        }
        if replaced == 0 { Ok(before) } else { partial.hash_again() }
    }

    fn chunk(&self, job: &Job<'_>, partial: &Partial, i: usize) -> Result<(Vec<u8>, ChunkHash), HubError> {
        let range = partial.range(i);
        self.expected.fetch_add(range.end - range.start, Ordering::Relaxed);
        let bytes = self.hub.bytes(&job.remote, range)?;
        self.progress(bytes.len() as u64, 0);
        let hash = chunk_hash(Sha256::new_with_prefix(&bytes));
        Ok((bytes, hash))
    }

    fn replace(&self, partial: &Partial, i: usize, bytes: &[u8], hash: ChunkHash) -> Result<(), HubError> {
        partial.write(bytes, partial.range(i).start)?;
        partial.note(i, hash)
    }

    /// The file's names in the commit's folder.
    fn name(&self, job: &Job<'_>) -> Result<(), HubError> {
        let Listing { repo, commit, .. } = &self.plan.listing;
        for path in &job.paths {
            self.hub.cache.link(repo, commit, path, job.planned.file.hash.as_str())?;
            (self.hub.client.watch.on_event)(Event::Done { path });
        }
        Ok(())
    }

    fn progress(&self, came: u64, again: u64) {
        let done = self.arrived.fetch_add(came, Ordering::Relaxed) + came;
        let total = self.expected.fetch_add(again, Ordering::Relaxed) + again;
        (self.hub.client.watch.on_event)(Event::Fetched { done, total });
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
