//! Files as streams of bytes: plain, gzip or xz, by their first bytes.
//!
//! A file from strangers may claim anything: the memory of the xz decoder is bounded, and so is the unpacked size relative to the
//! packed one.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use flate2::bufread::MultiGzDecoder;
use lzma_rust2::{Action, Status, XzStream};

use super::DataError;

/// Memory of the xz decoder, in KiB: `xz -9` needs 65 MiB.
const XZ_MEMORY_KIB: u32 = 256 << 10;
/// Unpacked bytes allowed per packed byte, beyond the first [`FREE_BYTES`]. Text packs 3 to 10 times.
const MAX_RATIO: u64 = 1000;
/// Unpacked bytes allowed in any case.
const FREE_BYTES: u64 = 64 << 20;

/// Opens a file for reading, unpacking it on the way. `progress` counts the bytes read from disk.
pub(super) fn open(path: &Path, progress: Arc<AtomicU64>) -> Result<Box<dyn BufRead>, DataError> {
    let read = |source| DataError::Read { path: path.into(), source };
    let file = File::open(path).map_err(read)?;
    let packed = file.metadata().map_err(read)?;
    if !packed.is_file() {
        return Err(read(io::Error::other("not a regular file")));
    }
    let mut raw = BufReader::with_capacity(1 << 16, Counted { inner: file, progress });
    let head = raw.fill_buf().map_err(read)?;
    let (gz, xz) = (head.starts_with(&[0x1f, 0x8b]), head.starts_with(b"\xfd7zXZ\0"));
    let name = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    match name {
        "gz" if !gz => return Err(unpack(path, "named .gz, but not in gzip format")),
        "xz" if !xz => return Err(unpack(path, "named .xz, but not in xz format")),
        _ => {}
    }
    let limit = packed.len().saturating_mul(MAX_RATIO).saturating_add(FREE_BYTES);
    let limited = |inner: Box<dyn Read>| Box::new(BufReader::with_capacity(1 << 16, Limited { inner, left: limit }));
    Ok(if gz {
        limited(Box::new(MultiGzDecoder::new(raw)))
    } else if xz {
        limited(Box::new(Xz { raw, stream: XzStream::new_mem_limit(true, XZ_MEMORY_KIB), done: false }))
    } else {
        Box::new(raw)
    })
}

fn unpack(path: &Path, message: &str) -> DataError {
    DataError::Unpack { path: path.into(), message: message.into() }
}

/// An error while reading a stream of [`open`].
pub(super) fn failed(path: &Path, error: io::Error) -> DataError {
    match error.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput | io::ErrorKind::UnexpectedEof => {
            unpack(path, &format!("damaged or cut short: {error}"))
        }
        _ => DataError::Read { path: path.into(), source: error },
    }
}

/// Counts the bytes that pass.
struct Counted<R> {
    inner: R,
    progress: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(out)?;
        self.progress.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

/// Fails once more bytes come than any text would give.
struct Limited {
    inner: Box<dyn Read>,
    left: u64,
}

impl Read for Limited {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(out)?;
        let message = "it unpacks to more than a thousand times its size; text does not";
        self.left = self.left.checked_sub(n as u64).ok_or(io::Error::new(io::ErrorKind::InvalidData, message))?;
        Ok(n)
    }
}

struct Xz<R> {
    raw: R,
    stream: XzStream,
    done: bool,
}

impl<R: BufRead> Read for Xz<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        while !self.done {
            let input = self.raw.fill_buf()?;
            let end = input.is_empty();
            let action = if end { Action::Finish } else { Action::Run };
            let damaged = |e| io::Error::new(io::ErrorKind::InvalidData, e);
            let step = self.stream.process(input, out, action).map_err(damaged)?;
            self.raw.consume(step.bytes_consumed);
            self.done = step.status == Status::StreamEnd;
            if step.bytes_produced > 0 {
                return Ok(step.bytes_produced);
            }
            if end && !self.done {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(0)
    }
}
