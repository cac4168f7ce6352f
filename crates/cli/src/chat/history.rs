//! The lines typed in earlier chats, in a file that only its owner can read.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use reedline::{FileBackedHistory, ReedlineError};

/// Lines kept.
const LINES: usize = 1000;

/// Where the history is: in the user's data folder, e.g. `~/.local/share/jevons/chat-history`. None if there is no such
/// folder.
pub fn default_path() -> Option<PathBuf> {
    Some(dirs::data_dir()?.join("jevons").join("chat-history"))
}

/// Opens the history at `path`; file and folder are made if need be, readable by their owner only.
pub fn open(path: &Path) -> io::Result<FileBackedHistory> {
    make_private(path)?;
    FileBackedHistory::with_file(LINES, path.to_owned()).map_err(|e: ReedlineError| io::Error::other(e))
}

fn make_private(path: &Path) -> io::Result<()> {
    let mut folder = fs::DirBuilder::new();
    let mut file = fs::OpenOptions::new();
    file.create(true).append(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
        folder.mode(0o700);
        file.mode(0o600);
    }
    if let Some(parent) = path.parent() {
        folder.recursive(true).create(parent)?;
    }
    let file = file.open(path)?;
    // An older file may have been made with other rights.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
    }
    let _ = file;
    Ok(())
}
