//! What the caller decides, and what it is told.

use std::{env, fmt, path::PathBuf, sync::atomic::AtomicBool, time::Duration};

use crate::HubError;

/// The hub that is asked unless `HF_ENDPOINT` names another.
const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// How to fetch.
#[derive(Clone, Debug)]
pub struct Options {
    /// Address of the hub, `https://…`; `http://` for one on this machine or in this network.
    pub endpoint: String,
    /// Sent to the endpoint and to no other host.
    pub token: Option<Token>,
    /// The user asked that nothing be fetched (`HF_HUB_OFFLINE`).
    pub offline: bool,
    /// Whether the usual proxy variables count.
    pub proxy_from_env: bool,
    /// Certificates to trust instead of the usual authorities, in PEM: for a network with an authority of its own.
    pub certificates: Option<PathBuf>,
    /// Connections at a time, at least 1.
    pub jobs: usize,
    /// Bytes that are hashed, kept, and if need be fetched again as one.
    pub chunk_bytes: u64,
    /// Chunks asked for in one request.
    pub chunks_per_request: usize,
    /// Longest silence of a server.
    pub timeout: Duration,
    /// Tries without progress before giving up.
    pub tries: u32,
    /// Pause before the second try; it doubles with each further one.
    pub pause: Duration,
    /// Longest pause that a server may ask for.
    pub longest_pause: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            endpoint: DEFAULT_ENDPOINT.into(),
            token: None,
            offline: false,
            proxy_from_env: true,
            certificates: None,
            jobs: 8,
            chunk_bytes: 4 << 20,
            chunks_per_request: 16,
            timeout: Duration::from_secs(30),
            tries: 6,
            pause: Duration::from_secs(1),
            longest_pause: Duration::from_secs(300),
        }
    }
}

impl Options {
    /// From the variables that the tools around the hub share: `HF_ENDPOINT`, `HF_TOKEN`, `HF_HUB_OFFLINE`,
    /// `SSL_CERT_FILE`.
    ///
    /// # Errors
    /// [`HubError::Token`] if `HF_TOKEN` cannot be a token.
    pub fn from_env() -> Result<Self, HubError> {
        let text = |name| env::var(name).ok().map(|v| v.trim().to_owned()).filter(|v| !v.is_empty());
        let offline =
            text("HF_HUB_OFFLINE").is_some_and(|v| !matches!(&*v.to_lowercase(), "0" | "no" | "off" | "false"));
        Ok(Self {
            endpoint: text("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.into()),
            token: text("HF_TOKEN").map(Token::new).transpose()?,
            offline,
            certificates: text("SSL_CERT_FILE").map(PathBuf::from),
            ..Self::default()
        })
    }
}

/// A secret that is never printed.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// # Errors
    /// [`HubError::Token`] if it holds anything but visible ASCII characters.
    pub fn new(secret: impl Into<String>) -> Result<Self, HubError> {
        let secret = secret.into();
        let good = !secret.is_empty() && secret.bytes().all(|b| b.is_ascii_graphic());
        if good { Ok(Self(secret)) } else { Err(HubError::Token) }
    }

    pub(crate) fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Who is told what happens, and who may stop it.
#[derive(Clone, Copy)]
pub struct Watch<'a> {
    /// Called from several threads.
    pub on_event: &'a (dyn Fn(Event<'_>) + Sync),
    /// Set it, and the work ends with [`HubError::Interrupted`] soon, leaving what it has for the next time.
    pub stop: &'a AtomicBool,
}

impl fmt::Debug for Watch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("stop", self.stop).finish_non_exhaustive()
    }
}

/// What a [`Watch`] is told.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// The first connection to this host is about to be opened; `redirected`: not the endpoint, but where it sends us.
    Host {
        /// Host, with its port if it is an unusual one.
        host: &'a str,
        /// Not the endpoint itself.
        redirected: bool,
        /// The proxy in between, if there is one.
        proxy: Option<&'a str>,
    },
    /// Something a person should know, in words.
    Notice(&'a str),
    /// So many more bytes of files on disk were rehashed, of a total.
    Hashed {
        /// So far.
        done: u64,
        /// In the end.
        total: u64,
    },
    /// So many bytes came and were kept, of a total.
    Fetched {
        /// So far.
        done: u64,
        /// In the end; grows when bytes must come again.
        total: u64,
    },
    /// A file is verified and in its place.
    Done {
        /// Its path in the repository.
        path: &'a str,
    },
}
