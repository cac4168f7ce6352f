//! What can go wrong between a hub and the disk.

use std::{io, path::PathBuf};

use crate::Published;

/// Why a model was not fetched, found or removed.
#[allow(missing_docs)] // the messages say it
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    #[error("`{given}`: this is no name of a model; expected org/name, for example deepseek-ai/DeepSeek-R1")]
    Name { given: String },
    #[error("`{given}`: this is no name of a revision; expected a branch, a tag or a commit, for example main")]
    Revision { given: String },
    #[error("`{given}`: this is no pattern: {why}; expected for example '*.json'")]
    Pattern { given: String, why: &'static str },
    /// An address that cannot be the hub's.
    #[error("`{url}`: this cannot be a hub's address: {why}; expected for example HF_ENDPOINT=https://huggingface.co")]
    Endpoint { url: String, why: &'static str },
    #[error("HF_TOKEN holds characters that no token has; set it anew, or unset it (its value is not shown here)")]
    Token,
    #[error("HF_TOKEN would travel unencrypted to {host}; use an https:// endpoint, or unset HF_TOKEN")]
    TokenInClear { host: String },
    #[error("{path}: there is no certificate in PEM in it; set SSL_CERT_FILE to a file with one, or unset it")]
    Certificates { path: PathBuf },
    #[error("HF_HUB_OFFLINE is set, so nothing is fetched; unset it to go online")]
    Offline,
    #[error("no folder for models: set HF_HUB_CACHE, HF_HOME or HOME")]
    NoCache,
    /// The host cannot be reached.
    #[error("{host}: cannot connect; is the network there, and HF_ENDPOINT, the proxy, or SSL_CERT_FILE right?")]
    Connect { host: String, source: ureq::Error },
    /// The conversation broke off.
    #[error("{host}: the connection failed")]
    Connection { host: String, source: ureq::Error },
    #[error("{host}: the answer broke off: {why}")]
    Cut { host: String, why: String },
    #[error("{host}: {what} was answered with status {status}{said}")]
    Status { host: String, what: String, status: u16, said: String },
    #[error("{host}: asks to wait {seconds} s before the next request; try again then")]
    Busy { host: String, seconds: u64 },
    /// 401 or 403.
    #[error("{repo}: {host} does not give it out (status {status}{said}); {advice}")]
    Denied { repo: String, host: String, status: u16, said: String, advice: String },
    /// 404.
    #[error("{repo}: {host} has no such model{advice}")]
    NoRepo { repo: String, host: String, advice: String },
    #[error("{repo}: there is no revision {revision}; its branches and tags are listed at {page}")]
    NoRevision { repo: String, revision: String, page: String },
    #[error("{host}: more than {limit} redirects in a row, the last one to {last}; that is a loop")]
    Redirects { host: String, limit: usize, last: String },
    #[error("{host}: redirects to {to}, which {why}; not followed")]
    Redirect { host: String, to: String, why: &'static str },
    #[error("{host}: {what} is larger than {limit} bytes; not read")]
    TooLarge { host: String, what: String, limit: u64 },
    /// The hub's description of a model makes no sense, or is an attack.
    #[error("{repo}: the hub's list of files cannot be used: {why}")]
    Listing { repo: String, why: String },
    #[error("{repo}: nothing to fetch: {why}")]
    Nothing { repo: String, why: String },
    /// An answer that is not the part of the file that was asked for.
    #[error("{host}: {path}: {why}")]
    Answer { host: String, path: String, why: String },
    #[error(
        "{path}: what came has {} {found}, the hub publishes {expected}, and fetching the bad part again did not help; \
         nothing was put in place. Try later, or ask the model's makers", expected.algorithm()
    )]
    Wrong { path: String, expected: Published, found: Published },
    #[error("{folder}: {need} bytes are needed and {free} are free; make room, or set HF_HUB_CACHE to a larger disk")]
    Space { folder: PathBuf, need: u64, free: u64 },
    #[error("{repo}: another jevons is at work on it; wait for it or stop it")]
    Locked { repo: String },
    #[error("{path}: cannot {what}")]
    Io { path: PathBuf, what: &'static str, source: io::Error },
    /// Stopped on request; what has come is kept.
    #[error("stopped")]
    Interrupted,
    #[error("{spec}: it is not in the cache, {cache}")]
    NotCached { spec: String, cache: PathBuf },
}

/// Adds path and intention to an error of the system.
pub(crate) trait At<T> {
    fn at(self, path: impl Into<PathBuf>, what: &'static str) -> Result<T, HubError>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, path: impl Into<PathBuf>, what: &'static str) -> Result<T, HubError> {
        self.map_err(|source| HubError::Io { path: path.into(), what, source })
    }
}
