//! Hashes that a hub publishes: SHA-256 of a large file, git's id of a small one.

use std::fmt;

use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::name::is_hex;

/// What a file must hash to. Printed as the name of its blob in the cache.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Published {
    /// SHA-256 of the bytes, 64 digits: files in large-file storage.
    Sha256(String),
    /// git's id of a blob, 40 digits: SHA-1 of `blob SIZE`, a zero byte, and the bytes.
    GitBlob(String),
}

impl Published {
    /// By its digits, in lower case.
    pub fn parse(digits: &str) -> Option<Self> {
        match digits.len() {
            64 if is_hex(digits, 64) => Some(Self::Sha256(digits.into())),
            40 if is_hex(digits, 40) => Some(Self::GitBlob(digits.into())),
            _ => None,
        }
    }

    /// The digits.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Sha256(digits) | Self::GitBlob(digits) => digits,
        }
    }

    /// Name of the algorithm.
    pub fn algorithm(&self) -> &'static str {
        match self {
            Self::Sha256(_) => "SHA-256",
            Self::GitBlob(_) => "git SHA-1",
        }
    }

    /// Starts the hash of a file of `size` bytes.
    pub(crate) fn hasher(&self, size: u64) -> Hasher {
        match self {
            Self::Sha256(_) => Hasher::Sha256(Sha256::new()),
            Self::GitBlob(_) => Hasher::GitBlob(Sha1::new_with_prefix(format!("blob {size}\0"))),
        }
    }
}

impl fmt::Display for Published {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The hash of a file in the making.
#[derive(Clone, Debug)]
pub(crate) enum Hasher {
    Sha256(Sha256),
    GitBlob(Sha1),
}

impl Hasher {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::GitBlob(hasher) => hasher.update(bytes),
        }
    }

    pub(crate) fn finish(self) -> Published {
        match self {
            Self::Sha256(hasher) => Published::Sha256(hex(&hasher.finalize())),
            Self::GitBlob(hasher) => Published::GitBlob(hex(&hasher.finalize())),
        }
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_hashes_agree_with_the_tools_that_define_them() {
        let hash = |published: &Published| {
            let mut hasher = published.hasher(6);
            hasher.update(b"hel");
            hasher.update(b"lo\n");
            hasher.finish()
        };
        // printf 'hello\n' | git hash-object --stdin; printf 'hello\n' | sha256sum
        let git = Published::parse("ce013625030ba8dba906f756967f9e9ca394464a").unwrap();
        let sha = Published::parse("5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03").unwrap();
        assert_eq!((hash(&git), hash(&sha)), (git, sha));
    }

    #[test]
    fn other_digits_are_no_hash() {
        for bad in ["", "ce01", &"A".repeat(40), &"g".repeat(64), "../../../../../../../../../../../../etc/p"] {
            assert_eq!(Published::parse(bad), None, "{bad}");
        }
    }
}
