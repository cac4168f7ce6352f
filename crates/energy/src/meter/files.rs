//! Small text files of `/sys` and `/proc`, read with a limit: a wall meter's file may be anything.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

/// The text of a file of at most `limit` bytes; more is an error.
pub fn text(path: &Path, limit: u64) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(limit + 1).read_to_string(&mut text)?;
    if text.len() as u64 > limit {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("longer than {limit} bytes")));
    }
    Ok(text)
}

/// One line of text without blanks around it.
pub fn line(path: &Path) -> Result<String, String> {
    text(path, 4096).map(|t| t.trim().to_owned()).map_err(|e| why(path, &e))
}

/// One whole number.
pub fn number(path: &Path) -> Result<u64, String> {
    let line = line(path)?;
    line.parse().map_err(|_| format!("{}: expected a whole number, found {line:?}", path.display()))
}

/// What went wrong, with what to try about it.
fn why(path: &Path, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            format!("{}: permission denied; only root may read it unless its owner allows more", path.display())
        }
        _ => format!("{}: {error}", path.display()),
    }
}
