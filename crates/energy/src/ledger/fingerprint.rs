//! Which model it was, in 64 hexadecimal digits.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use super::entry::hex;

/// Files up to this many bytes are hashed whole.
const WHOLE: u64 = 16 << 20;
/// Of larger ones this many pieces are, at even distances from the first byte to the last.
const PIECES: u64 = 64;
/// Each of this many bytes.
const PIECE: u64 = 64 << 10;

/// SHA-256 of files' names, lengths and content. Of files above 16 MiB the content is sampled (64 pieces of 64 KiB, the first and the last
/// among them), so that a checkpoint of any size is named in a moment: enough to tell models apart, not to prove that nothing
/// was changed.
#[derive(Clone, Debug, Default)]
pub struct Fingerprint(Sha256);

impl Fingerprint {
    /// Of nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds content under a name.
    ///
    /// # Errors
    /// Whatever reading says.
    pub fn add(&mut self, name: &str, content: &mut (impl Read + Seek)) -> io::Result<()> {
        let length = content.seek(SeekFrom::End(0))?;
        self.0.update((name.len() as u64).to_le_bytes());
        self.0.update(name.as_bytes());
        self.0.update(length.to_le_bytes());
        let (pieces, piece) = if length <= WHOLE { (1, length) } else { (PIECES, PIECE) };
        let mut buffer = Vec::new();
        for i in 0..pieces {
            let at = if pieces == 1 { 0 } else { (length - piece) / (pieces - 1) * i };
            let at = if i > 0 && i == pieces - 1 { length - piece } else { at };
            content.seek(SeekFrom::Start(at))?;
            buffer.clear();
            content.by_ref().take(piece).read_to_end(&mut buffer)?;
            self.0.update(&buffer);
        }
        Ok(())
    }

    /// Adds files of a folder, in order of their names: config.json and every `*.safetensors`.
    ///
    /// # Errors
    /// Whatever reading says.
    pub fn add_checkpoint(&mut self, folder: &Path) -> io::Result<()> {
        let mut files: Vec<PathBuf> =
            std::fs::read_dir(folder)?.map(|e| e.map(|e| e.path())).collect::<Result<_, _>>()?;
        files.retain(|f| {
            let weights = f.extension().is_some_and(|e| e == "safetensors");
            (weights || f.ends_with("config.json")) && f.is_file()
        });
        files.sort();
        for file in files {
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            self.add(&name, &mut File::open(&file)?)?;
        }
        Ok(())
    }

    /// In hexadecimal.
    pub fn finish(self) -> String {
        hex(&self.0.finalize())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    fn of(name: &str, bytes: &[u8]) -> String {
        let mut print = Fingerprint::new();
        print.add(name, &mut Cursor::new(bytes)).unwrap();
        print.finish()
    }

    #[test]
    fn every_byte_of_a_small_file_counts_and_so_does_its_name() {
        let bytes = vec![7; 1000];
        let mut changed = bytes.clone();
        changed[999] = 8;
        assert_eq!(of("a", &bytes), of("a", &bytes));
        assert_ne!(of("a", &bytes), of("a", &changed));
        assert_ne!(of("a", &bytes), of("b", &bytes));
    }

    #[test]
    fn the_ends_and_the_length_of_a_large_file_count() {
        let bytes = vec![7; (WHOLE + 12_345) as usize];
        for i in [0, bytes.len() - 1] {
            let mut changed = bytes.clone();
            changed[i] = 8;
            assert_ne!(of("a", &bytes), of("a", &changed), "{i}");
        }
        assert_ne!(of("a", &bytes), of("a", &bytes[1..]));
    }
}
