//! Files that are replaced whole or not at all.
//!
//! New bytes go to a hidden file beside the target and to the disk; then one rename puts them in place. A reader, a
//! crash, a full disk or a power cut finds the old file or the new one, never a part. Only a process that is killed
//! leaves its hidden file (`.NAME.PID-N.tmp`) behind; it can be deleted.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

/// Replaces `path` by a file of these bytes.
///
/// # Errors
/// Whatever the system says; `path` is then as it was.
pub fn write(path: impl AsRef<Path>, bytes: &[u8]) -> io::Result<()> {
    let mut writer = Writer::create(path)?;
    writer.write_all(bytes)?;
    writer.commit()
}

/// A file in the making. [`Writer::commit`] puts it in place; dropped before that, it leaves no trace.
#[derive(Debug)]
pub struct Writer {
    target: PathBuf,
    /// Removed on drop.
    temporary: Temporary,
    file: BufWriter<File>,
}

/// The hidden file's name as long as there is a file of that name.
#[derive(Debug)]
struct Temporary(Option<PathBuf>);

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = std::fs::remove_file(path); // Nothing sensible is left to do if this fails too.
        }
    }
}

impl Writer {
    /// Starts a new content for `path`, whose folder must exist. `path` itself is not touched before
    /// [`Writer::commit`].
    ///
    /// # Errors
    /// If the hidden file cannot be created, or `path` names no file.
    pub fn create(path: impl AsRef<Path>) -> io::Result<Self> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let target = path.as_ref().to_path_buf();
        let name = target.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not a file name"))?;
        loop {
            let mut hidden = std::ffi::OsString::from(".");
            hidden.push(name);
            hidden.push(format!(".{}-{}.tmp", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed)));
            let hidden = target.with_file_name(hidden);
            match OpenOptions::new().write(true).create_new(true).open(&hidden) {
                Ok(file) => {
                    let (temporary, file) = (Temporary(Some(hidden)), BufWriter::with_capacity(1 << 20, file));
                    return Ok(Self { target, temporary, file });
                }
                // Left behind by a killed process that had our number.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends everything to the disk, so that [`Writer::commit`] can hardly fail any more. For a set of files that
    /// belong together: finish all, then commit all.
    ///
    /// # Errors
    /// Whatever the system says, for instance that the disk is full.
    pub fn finish(&mut self) -> io::Result<()> {
        self.file.flush()?;
        self.file.get_ref().sync_all()
    }

    /// Puts the file in place of the target, and waits until the disk knows.
    ///
    /// # Errors
    /// Whatever the system says. Unless the error comes from the very last step, the folder's own way to the disk, the
    /// target is as it was.
    pub fn commit(mut self) -> io::Result<()> {
        self.finish()?;
        if let Some(hidden) = &self.temporary.0 {
            std::fs::rename(hidden, &self.target)?;
        }
        self.temporary.0 = None;
        sync_folder(&self.target)
    }
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Waits until the disk knows the folder of `file`: a rename is safe from a power cut only then.
///
/// # Errors
/// Whatever the system says.
#[cfg(unix)]
pub fn sync_folder(file: &Path) -> io::Result<()> {
    let folder = match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    match File::open(folder)?.sync_all() {
        // Some network file systems cannot; they have done what they can.
        Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => Ok(()),
        result => result,
    }
}

/// Other systems than Unix have no such thing.
///
/// # Errors
/// None.
#[cfg(not(unix))]
pub fn sync_folder(_file: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_committed_writer_replaces_the_file_and_leaves_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, b"old").unwrap();
        let mut writer = Writer::create(&path).unwrap();
        writer.write_all(b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"old", "touched before the commit");
        writer.commit().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(names(dir.path()), ["f"]);
    }

    #[test]
    fn a_dropped_writer_leaves_the_old_file_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, b"old").unwrap();
        let mut writer = Writer::create(&path).unwrap();
        writer.write_all(&vec![1; 3 << 20]).unwrap();
        drop(writer);
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(names(dir.path()), ["f"]);
    }

    #[test]
    fn two_writers_of_one_file_do_not_mix() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let (mut a, mut b) = (Writer::create(&path).unwrap(), Writer::create(&path).unwrap());
        a.write_all(b"aaaa").unwrap();
        b.write_all(b"bb").unwrap();
        a.commit().unwrap();
        b.commit().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"bb");
        assert_eq!(names(dir.path()), ["f"]);
    }

    #[test]
    fn a_missing_folder_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(write(dir.path().join("none/f"), b"").unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_folder_in_the_way_is_an_error_that_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("f")).unwrap();
        write(dir.path().join("f"), b"x").unwrap_err();
        assert_eq!(names(dir.path()), ["f"]);
    }

    #[cfg(unix)]
    #[test]
    fn a_link_is_replaced_and_its_target_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (blob, link) = (dir.path().join("blob"), dir.path().join("link"));
        std::fs::write(&blob, b"shared").unwrap();
        std::os::unix::fs::symlink("blob", &link).unwrap();
        write(&link, b"mine").unwrap();
        assert_eq!(std::fs::read(&link).unwrap(), b"mine");
        assert_eq!(std::fs::read(&blob).unwrap(), b"shared");
    }
}
