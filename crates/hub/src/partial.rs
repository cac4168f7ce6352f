//! A file on its way: bytes where they belong, the hash of every chunk, and the hash of the whole so far.

use std::{
    fs::{self, File},
    io::{self, Read},
    ops::Range,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use jevons_sys::atomic;
use sha2::{Digest, Sha256};

use crate::{
    HubError, Published,
    chunks::{ChunkHash, Chunks, Journal, chunk_hash},
    digest::Hasher,
    error::At,
};

/// Names of what belongs to one blob.
#[derive(Clone, Debug)]
pub struct Paths {
    pub blob: PathBuf,
    pub table: PathBuf,
    pub incomplete: PathBuf,
    pub journal: PathBuf,
}

impl Paths {
    pub fn new(blob: PathBuf, ours: &Path, hash: &Published) -> Self {
        let path = |end: &str| ours.join(format!("{hash}.{end}"));
        Self { blob, table: path("chunks"), incomplete: path("incomplete"), journal: path("journal") }
    }

    /// The table of a file on its way; `None` if there is no such file.
    pub fn begun(&self, bytes: u64, chunk_bytes: u64) -> Option<Chunks> {
        let exists = self.incomplete.is_file();
        exists.then(|| Chunks::read(&self.journal, bytes).unwrap_or_else(|| Chunks::new(bytes, chunk_bytes)))
    }

    /// Deletes an unfinished file that is not needed any more.
    pub fn forget_begun(&self) -> Result<(), HubError> {
        for path in [&self.incomplete, &self.journal] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).at(path, "delete it"),
                _ => {}
            }
        }
        Ok(())
    }
}

#[derive(Debug)]
pub struct Partial {
    paths: Paths,
    published: Published,
    data: File,
    noted: Mutex<(Journal, Chunks)>,
    prefix: Mutex<Prefix>,
}

/// The hash of the first so many chunks. It follows the chunks as they come, so that little is left to do at the end.
#[derive(Debug)]
struct Prefix {
    hasher: Hasher,
    chunks: usize,
}

impl Partial {
    /// Goes on with a file or starts one. `repair`: which chunks of the present blob are good; they are copied.
    pub fn open(
        paths: Paths,
        published: &Published,
        bytes: u64,
        chunk_bytes: u64,
        repair: Option<&Chunks>,
    ) -> Result<Self, HubError> {
        if !paths.incomplete.is_file() {
            let _ = fs::remove_file(&paths.journal); // of a file that has since been finished
            if let Some(good) = repair {
                // The journal first: without its file it is nothing, whatever happens in between.
                let copy = paths.incomplete.with_extension("copy");
                copy_file(&paths.blob, &copy).at(&copy, "copy the damaged file")?;
                atomic::write(&paths.journal, good.text().as_bytes()).at(&paths.journal, "write the journal")?;
                fs::rename(&copy, &paths.incomplete).at(&paths.incomplete, "rename the copy")?;
            }
        }
        let mut options = File::options();
        let data = options.read(true).write(true).create(true).truncate(false).open(&paths.incomplete);
        let data = data.at(&paths.incomplete, "open the unfinished file")?;
        let noted = Journal::open(&paths.journal, bytes, chunk_bytes).at(&paths.journal, "open the journal")?;
        data.set_len(bytes).at(&paths.incomplete, "set the file's length")?;
        let prefix = Mutex::new(Prefix { hasher: published.hasher(bytes), chunks: 0 });
        Ok(Self { paths, published: published.clone(), data, noted: Mutex::new(noted), prefix })
    }

    pub fn chunks(&self) -> Chunks {
        self.noted().1.clone()
    }

    pub fn range(&self, chunk: usize) -> Range<u64> {
        self.noted().1.range(chunk)
    }

    /// Where a chunk lies, if it has come.
    fn there(&self, chunk: usize) -> Option<Range<u64>> {
        let noted = self.noted();
        noted.1.hashes.get(chunk)?.as_ref().map(|_| noted.1.range(chunk))
    }

    pub fn is_complete(&self) -> bool {
        self.noted().1.hashes.iter().all(Option::is_some)
    }

    /// From the first chunk that is not there to the end of the file.
    pub fn rest(&self) -> Range<usize> {
        let noted = self.noted();
        let n = noted.1.len();
        noted.1.hashes.iter().position(Option::is_none).unwrap_or(n)..n
    }

    pub fn write(&self, bytes: &[u8], at: u64) -> Result<(), HubError> {
        write_at(&self.data, bytes, at).at(&self.paths.incomplete, "write")
    }

    /// The chunk has been written and hashes to this.
    pub fn note(&self, chunk: usize, hash: ChunkHash) -> Result<(), HubError> {
        let mut noted = self.noted();
        noted.0.note(chunk, &hash).at(&self.paths.journal, "write the journal")?;
        noted.1.hashes[chunk] = Some(hash);
        Ok(())
    }

    /// Hashes what has come since, unless another thread is at it.
    pub fn follow(&self) -> Result<(), HubError> {
        match self.prefix.try_lock() {
            Ok(prefix) => self.advance(prefix).map(|_| ()),
            Err(_) => Ok(()),
        }
    }

    /// The hash of the whole file, which must be complete.
    pub fn hash(&self) -> Result<Published, HubError> {
        let prefix = self.advance(self.prefix.lock().unwrap_or_else(PoisonError::into_inner))?;
        assert!(self.is_complete(), "a hash of a part");
        Ok(prefix.hasher.clone().finish())
    }

    /// The same from the start, after a chunk has been replaced.
    pub fn hash_again(&self) -> Result<Published, HubError> {
        let hasher = self.published.hasher(self.noted().1.bytes);
        *self.prefix.lock().unwrap_or_else(PoisonError::into_inner) = Prefix { hasher, chunks: 0 };
        self.hash()
    }

    fn advance<'p>(&'p self, mut prefix: MutexGuard<'p, Prefix>) -> Result<MutexGuard<'p, Prefix>, HubError> {
        let mut buffer = vec![0; 1 << 17];
        loop {
            let i = prefix.chunks;
            let Some(range) = self.there(i) else { return Ok(prefix) };
            self.each(range, &mut buffer, |bytes| prefix.hasher.update(bytes))?;
            prefix.chunks += 1;
        }
    }

    /// Chunks that do not hash to what was noted when they came: the disk has lost or changed them.
    pub fn lost(&self) -> Result<Vec<usize>, HubError> {
        let (chunks, mut buffer) = (self.chunks(), vec![0; 1 << 17]);
        let mut lost = Vec::new();
        for (i, noted) in chunks.hashes.iter().enumerate() {
            let mut hasher = Sha256::new();
            self.each(chunks.range(i), &mut buffer, |bytes| hasher.update(bytes))?;
            if Some(chunk_hash(hasher)) != *noted {
                lost.push(i);
            }
        }
        Ok(lost)
    }

    fn each(&self, range: Range<u64>, buffer: &mut [u8], mut f: impl FnMut(&[u8])) -> Result<(), HubError> {
        let mut at = range.start;
        while at < range.end {
            let n = (buffer.len() as u64).min(range.end - at) as usize;
            read_at(&self.data, &mut buffer[..n], at).at(&self.paths.incomplete, "read it back")?;
            f(&buffer[..n]);
            at += n as u64;
        }
        Ok(())
    }

    /// Makes the verified file the blob: bytes to the disk, then the table, then the name.
    pub fn place(&self) -> Result<(), HubError> {
        let paths = &self.paths;
        self.data.sync_all().at(&paths.incomplete, "send the file to the disk")?;
        atomic::write(&paths.table, self.chunks().text().as_bytes()).at(&paths.table, "write the table")?;
        fs::rename(&paths.incomplete, &paths.blob).at(&paths.blob, "put the file in place")?;
        atomic::sync_folder(&paths.blob).at(&paths.blob, "send its name to the disk")?;
        fs::remove_file(&paths.journal).at(&paths.journal, "delete the journal")
    }

    fn noted(&self) -> MutexGuard<'_, (Journal, Chunks)> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes of chunks in order, on their way to the file.
pub struct Writer<'p> {
    partial: &'p Partial,
    chunk: usize,
    /// Bytes of the chunk so far.
    pub filled: u64,
    hasher: Sha256,
}

impl<'p> Writer<'p> {
    /// From the start of a chunk.
    pub fn new(partial: &'p Partial, chunk: usize) -> Self {
        Self { partial, chunk, filled: 0, hasher: Sha256::new() }
    }

    pub fn write(&mut self, mut bytes: &[u8]) -> Result<(), HubError> {
        while !bytes.is_empty() {
            let range = self.partial.range(self.chunk);
            let room = range.end - range.start - self.filled;
            let (now, later) = bytes.split_at(room.min(bytes.len() as u64) as usize);
            self.partial.write(now, range.start + self.filled)?;
            self.hasher.update(now);
            self.filled += now.len() as u64;
            bytes = later;
            if self.filled == range.end - range.start {
                let hash = chunk_hash(std::mem::take(&mut self.hasher));
                self.partial.note(self.chunk, hash)?;
                (self.chunk, self.filled) = (self.chunk + 1, 0);
                self.partial.follow()?;
            }
        }
        Ok(())
    }
}

/// What a finished file is like: its hash, and the hash of each chunk of it. A file of another size has no hash.
/// `progress` is told of each piece and may stop it.
pub fn examine(
    path: &Path,
    published: &Published,
    bytes: u64,
    chunk_bytes: u64,
    progress: &mut dyn FnMut(u64) -> Result<(), HubError>,
) -> Result<(Option<Published>, Chunks), HubError> {
    let mut file = File::open(path).at(path, "open the file")?;
    let size = file.metadata().at(path, "read the file's size")?.len();
    let (mut whole, mut chunks) = (published.hasher(bytes), Chunks::new(bytes, chunk_bytes));
    let mut buffer = vec![0; 1 << 17];
    for i in 0..chunks.len() {
        let range = chunks.range(i);
        let (mut at, mut hasher) = (range.start, Sha256::new());
        while at < range.end {
            let room = (buffer.len() as u64).min(range.end - at) as usize;
            let n = match file.read(&mut buffer[..room]) {
                Ok(0) => return Ok((None, chunks)),
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error).at(path, "read the file"),
            };
            whole.update(&buffer[..n]);
            hasher.update(&buffer[..n]);
            at += n as u64;
            progress(n as u64)?;
        }
        chunks.hashes[i] = Some(chunk_hash(hasher));
    }
    Ok(((size == bytes).then(|| whole.finish()), chunks))
}

/// Without the rights of the old file, which may forbid to write.
fn copy_file(from: &Path, to: &Path) -> io::Result<()> {
    io::copy(&mut File::open(from)?, &mut File::create(to)?).map(|_| ())
}

#[cfg(unix)]
fn write_at(file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, at)
}

#[cfg(unix)]
fn read_at(file: &File, bytes: &mut [u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, at)
}

#[cfg(windows)]
fn write_at(file: &File, mut bytes: &[u8], mut at: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let n = std::os::windows::fs::FileExt::seek_write(file, bytes, at)?;
        (bytes, at) = (&bytes[n..], at + n as u64);
    }
    Ok(())
}

#[cfg(windows)]
fn read_at(file: &File, mut bytes: &mut [u8], mut at: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, bytes, at)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => (bytes, at) = (&mut bytes[n..], at + n as u64),
        }
    }
    Ok(())
}
