//! A folder that appears whole or not at all.
//!
//! Files are written into a hidden folder beside the target, `.NAME.converting`, and one rename puts it in place. A run that was
//! interrupted leaves the hidden folder; the next one with the same plan goes on with the files that are whole there.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
};

use jevons_sys::atomic;

use super::ConvertError;

/// Holds the plan and the lock, in the hidden folder.
const PLAN: &str = ".plan";

pub(super) struct Staging {
    target: PathBuf,
    folder: PathBuf,
    replace: bool,
    plan: File,
}

impl Staging {
    /// `plan` says in full what the files will be: what is there of another plan is deleted.
    pub fn open(target: &Path, replace: bool, plan: &str) -> Result<Self, ConvertError> {
        let target = absolute(target)?;
        check(&target, replace)?;
        let folder = beside(&target, "converting");
        let failed = |error| ConvertError::Write { path: folder.clone(), error };
        match fs::create_dir(&folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
            _ => {}
        }
        let path = folder.join(PLAN);
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut staging = Self { target, folder: folder.clone(), replace, plan: open.map_err(failed)? };
        // A file system without locks goes without.
        if let Err(fs::TryLockError::WouldBlock) = staging.plan.try_lock() {
            return Err(ConvertError::Busy { path: folder });
        }
        staging.keep_if_same(plan).map_err(failed)?;
        Ok(staging)
    }

    fn keep_if_same(&mut self, plan: &str) -> io::Result<()> {
        let mut before = Vec::new();
        (&mut self.plan).take(plan.len() as u64 + 1).read_to_end(&mut before)?;
        if before == plan.as_bytes() {
            return Ok(());
        }
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            if entry.file_name() != PLAN {
                fs::remove_file(entry.path())?; // We make no folders here: one would not be ours, and is an error.
            }
        }
        self.plan.set_len(0)?;
        self.plan.rewind()?;
        self.plan.write_all(plan.as_bytes())?;
        self.plan.sync_all()
    }

    /// Where to write; a file in it by its own name is whole.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Deletes files that are not in `names`: what a killed writer left.
    pub fn keep_only(&self, names: &[&str]) -> io::Result<()> {
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name();
            if name != PLAN && !names.iter().any(|n| name == **n) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// Puts the folder in place. With `replace`, a folder that was there is renamed, then deleted; only a crash between two
    /// renames leaves none of that name, but both beside it.
    pub fn commit(self) -> Result<(), ConvertError> {
        check(&self.target, self.replace)?;
        let failed = |error| ConvertError::Write { path: self.target.clone(), error };
        fs::remove_file(self.folder.join(PLAN)).map_err(failed)?;
        atomic::sync_folder(&self.folder.join(PLAN)).map_err(failed)?;
        let old = beside(&self.target, "replaced");
        let replaces = self.target.exists();
        if replaces {
            if old.exists() {
                fs::remove_dir_all(&old).map_err(failed)?;
            }
            fs::rename(&self.target, &old).map_err(failed)?;
        }
        if let Err(error) = fs::rename(&self.folder, &self.target) {
            if replaces {
                let _ = fs::rename(&old, &self.target); // The first error is the one to tell.
            }
            return Err(failed(error));
        }
        atomic::sync_folder(&self.target).map_err(failed)?;
        if replaces {
            fs::remove_dir_all(&old).map_err(failed)?;
        }
        Ok(())
    }

    /// Deletes what was written.
    pub fn discard(self) {
        let _ = fs::remove_dir_all(&self.folder); // There is an error to tell already.
    }
}

/// Nothing in the way, or with `replace` a folder that is a model's and nothing more.
fn check(target: &Path, replace: bool) -> Result<(), ConvertError> {
    if fs::symlink_metadata(target).is_err() {
        return Ok(());
    }
    if !replace {
        return Err(ConvertError::Exists { path: target.into() });
    }
    let is_plain = |entries: fs::ReadDir| entries.flatten().all(|e| e.file_type().is_ok_and(|t| !t.is_dir()));
    let is_model = fs::symlink_metadata(target).is_ok_and(|m| m.is_dir())
        && target.join("config.json").is_file()
        && fs::read_dir(target).is_ok_and(is_plain);
    if is_model { Ok(()) } else { Err(ConvertError::NotAModel { path: target.into() }) }
}

/// With the folder's own links followed, so that renames stay in it.
fn absolute(target: &Path) -> Result<PathBuf, ConvertError> {
    let Some(name) = target.file_name() else {
        let error = io::Error::new(io::ErrorKind::InvalidInput, "expected the name of a new folder");
        return Err(ConvertError::Write { path: target.into(), error });
    };
    let parent = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let parent = parent.canonicalize().map_err(|error| ConvertError::Write { path: parent.into(), error })?;
    Ok(parent.join(name))
}

/// `.NAME.suffix`
fn beside(target: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(target.file_name().unwrap_or_default());
    name.push(format!(".{suffix}"));
    target.with_file_name(name)
}
