//! Read-only memory map of a file.

use std::{
    fs::File,
    io,
    ops::{Deref, Range},
    path::Path,
};

/// The largest block that Linux caches files in.
const BLOCK: usize = 2 << 20;

/// The bytes of a file, read by the system as they are touched.
///
/// The file must not change while it is mapped. Nobody can promise that of a file system: whoever shortens the file in
/// place makes the system end this process with SIGBUS at the next touch of a lost page, and whoever overwrites it in
/// place changes the bytes under the reader. So nothing may rest on two reads of a byte being equal where memory safety
/// hangs on it, and our own writers replace files by renaming ([`crate::atomic`]), which leaves a map of the old file
/// whole.
#[derive(Debug)]
pub struct MappedFile {
    /// `None` for an empty file, which cannot be mapped.
    map: Option<memmap2::Mmap>,
}

impl MappedFile {
    /// Maps the whole file.
    ///
    /// # Errors
    /// If the file cannot be opened or mapped, or is not a regular file (opening a pipe would wait forever).
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref();
        regular(&std::fs::metadata(path)?)?;
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        regular(&metadata)?; // Again: the path may have come to mean another file.
        if metadata.len() == 0 {
            return Ok(Self { map: None });
        }
        // SAFETY: the map is read-only and private to this value, which unmaps it when dropped, after every slice
        // borrowed from it. What remains is that no other process changes or shortens the file, which no program can
        // guarantee; the documentation of the type says what happens then, and that our own writers never do it.
        let map = unsafe { memmap2::Mmap::map(&file)? };
        Ok(Self { map: Some(map) })
    }

    /// Tells the system that these bytes will not be read again soon: they no longer count as memory of this process. They can
    /// still be read, from the system's cache or the disk. Elsewhere than on Unix this does nothing.
    ///
    /// Up to 2 MiB more go on either side: a touch of one page maps all of the block that the system cached it in, what was
    /// released before included.
    ///
    /// # Panics
    /// If the range does not lie in the file.
    pub fn release(&self, bytes: Range<usize>) {
        assert!(bytes.start <= bytes.end && bytes.end <= self.len());
        #[cfg_attr(not(unix), allow(unused_variables))]
        let (begin, end) = (bytes.start / BLOCK * BLOCK, bytes.end.next_multiple_of(BLOCK).min(self.len()));
        #[cfg(unix)]
        if let Some(map) = &self.map {
            // SAFETY: the advice drops the pages from this process's tables. The map is shared, read-only and of a file, so the
            // next read of a dropped page finds the file's bytes again: no slice borrowed from the map sees a change.
            let advice = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, begin, end - begin) };
            drop(advice); // Where it fails nothing is lost but memory.
        }
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.map.as_deref().unwrap_or_default()
    }
}

fn regular(metadata: &std::fs::Metadata) -> io::Result<()> {
    if metadata.is_file() { Ok(()) } else { Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_holds_the_bytes_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let bytes: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(&*MappedFile::open(&path).unwrap(), &bytes[..]);
    }

    #[test]
    fn an_empty_file_maps_to_no_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, b"").unwrap();
        assert_eq!(&*MappedFile::open(&path).unwrap(), b"");
    }

    #[test]
    fn released_bytes_are_still_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let bytes: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        std::fs::write(&path, &bytes).unwrap();
        let map = MappedFile::open(&path).unwrap();
        for range in [0..400_000, 5000..5001, 4095..300_000, 400_000..400_000] {
            map.release(range);
            assert_eq!(&*map, &bytes[..]);
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn released_bytes_are_no_memory_of_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, vec![1; 64 << 20]).unwrap();
        let map = MappedFile::open(&path).unwrap();
        let resident = || {
            let text = std::fs::read_to_string("/proc/self/smaps").unwrap();
            let ours = text.split_once(path.to_str().unwrap()).unwrap().1;
            let line = ours.lines().find_map(|line| line.strip_prefix("Rss:")).unwrap();
            line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
        };
        let sum: u64 = map.iter().map(|b| u64::from(*b)).sum();
        assert_eq!((sum, resident()), (64 << 20, 64 << 20));
        map.release(1 << 20..61 << 20);
        assert_eq!(resident(), 2 << 20);
        // Piece by piece, though each touch may map what was released before.
        for begin in (0..64 << 20).step_by(100_000) {
            let end = (64 << 20).min(begin + 100_000);
            assert!(map[begin..end].iter().all(|b| *b == 1));
            map.release(begin..end);
        }
        assert_eq!(resident(), 0);
    }

    #[test]
    fn a_map_outlives_the_replacement_of_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, b"old bytes").unwrap();
        let map = MappedFile::open(&path).unwrap();
        crate::atomic::write(&path, b"new").unwrap();
        assert_eq!(&*map, b"old bytes");
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn folders_and_missing_files_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(MappedFile::open(dir.path()).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(MappedFile::open(dir.path().join("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_device_is_refused_instead_of_read_forever() {
        assert_eq!(MappedFile::open("/dev/zero").unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
