//! `org/name@revision`, and what it is called on disk and in addresses.

use std::{fmt, str::FromStr};

use crate::HubError;

/// A model of a hub, and which state of it: `org/name` or `org/name@revision`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Which model.
    pub repo: RepoId,
    /// Which state; the hub's `main` if `None`.
    pub revision: Option<Revision>,
}

/// `org/name` of a model.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RepoId {
    org: String,
    name: String,
}

/// A branch, a tag or a commit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(String);

impl FromStr for Spec {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self, HubError> {
        let (repo, revision) = match text.split_once('@') {
            Some((repo, revision)) => (repo, Some(revision.parse()?)),
            None => (text, None),
        };
        Ok(Self { repo: repo.parse()?, revision })
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.revision {
            Some(revision) => write!(f, "{}@{revision}", self.repo),
            None => self.repo.fmt(f),
        }
    }
}

impl FromStr for RepoId {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self, HubError> {
        match text.split_once('/') {
            Some((org, name)) if is_name(org) && is_name(name) => Ok(Self { org: org.into(), name: name.into() }),
            _ => Err(HubError::Name { given: text.into() }),
        }
    }
}

impl fmt::Display for RepoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.org, self.name)
    }
}

impl RepoId {
    /// The part after the organisation.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Name of its folder in the cache.
    pub(crate) fn folder(&self) -> String {
        format!("models--{}--{}", self.org, self.name)
    }

    /// The inverse of [`RepoId::folder`]; unambiguous, since no name has two hyphens in a row.
    pub(crate) fn of_folder(folder: &str) -> Option<Self> {
        let (org, name) = folder.strip_prefix("models--")?.split_once("--")?;
        format!("{org}/{name}").parse().ok()
    }
}

/// The hub's own rule, which also makes it a safe name of a folder.
fn is_name(name: &str) -> bool {
    let edge = |c: char| c == '-' || c == '.';
    (1..=96).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        && !name.starts_with(edge)
        && !name.ends_with(edge)
        && !name.contains("--")
        && !name.contains("..")
}

impl FromStr for Revision {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self, HubError> {
        let part = |p: &str| !p.is_empty() && !p.starts_with('.') && !p.ends_with('.') && !p.contains("..");
        let good = text.len() <= 200
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./+".contains(&b))
            && text.split('/').all(part);
        if good { Ok(Self(text.into())) } else { Err(HubError::Revision { given: text.into() }) }
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Revision {
    /// As typed.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What the hub calls the state that people see first.
    pub(crate) fn main() -> Self {
        Self("main".into())
    }
}

/// Whether `text` is a whole commit id: 40 hexadecimal digits in lower case.
pub(crate) fn is_commit(text: &str) -> bool {
    is_hex(text, 40)
}

/// Whether `text` is so many hexadecimal digits in lower case.
pub(crate) fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Checks the path of a file in a repository: relative, `/` between parts, no part that leaves its folder or that a
/// file system or a terminal would take for something else.
pub(crate) fn is_safe_path(path: &str) -> bool {
    let part = |p: &str| !p.is_empty() && p.len() <= 255 && p != "." && p != "..";
    path.len() <= 1024 && path.split('/').all(part) && !path.chars().any(|c| c.is_control() || "\\:".contains(c))
}

/// For addresses: every byte but letters, digits, `-`, `_`, `.`, `~` and those of `keep` becomes `%XX`.
pub(crate) fn percent(text: &str, keep: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b if b.is_ascii_alphanumeric() || b"-_.~".contains(&b) || keep.as_bytes().contains(&b) => {
                out.push(b.into());
            }
            b => out.push_str(&format!("%{b:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_is_read_and_printed_alike() {
        for text in ["deepseek-ai/DeepSeek-R1", "a/b@main", "a_1/b.2@refs/pr/1", "a/b@v1.0+x"] {
            assert_eq!(text.parse::<Spec>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn names_that_are_paths_or_options_are_refused() {
        for text in [
            "",
            "a",
            "a/",
            "/a",
            "a/b/c",
            "../b",
            "a/..",
            "a/b--c",
            "-a/b",
            "a/b.",
            "a/.b",
            "a b/c",
            "a/b\0",
            "ä/b",
            "a/b@",
            "a/b@../x",
            "a/b@/x",
            "a/b@x/",
            "a/b@x//y",
            "a/b@.x",
            "a/b@x y",
            "a/b@x@y",
            "http://a/b",
            "a\\b/c",
        ] {
            assert!(text.parse::<Spec>().is_err(), "{text}");
        }
        assert!(format!("a/{}", "b".repeat(97)).parse::<Spec>().is_err());
    }

    #[test]
    fn a_folder_name_leads_back_to_the_model() {
        let repo: RepoId = "org-1/name-2.5".parse().unwrap();
        assert_eq!(repo.folder(), "models--org-1--name-2.5");
        assert_eq!(RepoId::of_folder(&repo.folder()), Some(repo));
        for other in ["datasets--a--b", "models--a", "models--a--b--c", "models--..--b", "x"] {
            assert_eq!(RepoId::of_folder(other), None, "{other}");
        }
    }

    #[test]
    fn a_path_stays_in_its_folder() {
        for good in ["a", "a/b.c", "a b/ü", "..a", "a..b"] {
            assert!(is_safe_path(good), "{good}");
        }
        for bad in ["", "/a", "a/", "a//b", "..", "../a", "a/../b", "./a", "a\\b", "c:a", "a\nb", "a\0"] {
            assert!(!is_safe_path(bad), "{bad}");
        }
        assert!(!is_safe_path(&"a".repeat(256)));
    }

    #[test]
    fn addresses_hold_no_special_characters() {
        assert_eq!(percent("a b/ü?#%", "/"), "a%20b/%C3%BC%3F%23%25");
        assert_eq!(percent("refs/pr/1", ""), "refs%2Fpr%2F1");
    }
}
