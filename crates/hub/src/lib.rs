//! Fetching models and keeping them: the only crate that opens an outbound connection.
//!
//! The way of a model, top to bottom: [`Spec`] (`org/name@revision`) → [`Hub::listing`] (commit, files, published
//! hashes) → [`Choice`] (which of them are needed) → [`Hub::plan`] (what is here already, what must come, is there
//! room) → [`Hub::fetch`] (ranges in parallel, verified, resumable) → a folder of the [`Cache`], laid out as the tools
//! around the hub lay it out, so that they find our models and we find theirs.
//!
//! What comes from the network is hostile until checked: sizes, names, hashes, redirects. A connection goes only to a
//! host that was told before ([`Event::Host`]). This crate does not know what is in the files.
#![forbid(unsafe_code)]

mod cache;
mod choice;
mod chunks;
mod digest;
mod error;
mod fetch;
mod fit;
mod http;
mod listing;
mod name;
mod options;
mod partial;
mod plan;
mod range;

pub use cache::{Cache, CachedFile, CachedModel, CachedRevision, Lock, Removal};
pub use choice::{Choice, is_weights};
pub use digest::Published;
pub use error::HubError;
pub use fetch::{FetchedFile, Summary};
pub use fit::{Fit, Machine, Need, Verdict};
pub use listing::{Listing, RemoteFile};
pub use name::{RepoId, Revision, Spec};
pub use options::{Event, Options, Token, Watch};
pub use plan::{Plan, PlannedFile, State};

use http::Client;

/// A hub, and the cache that its models go to.
#[derive(Debug)]
pub struct Hub<'a> {
    client: Client<'a>,
    cache: Cache,
    options: Options,
}

impl<'a> Hub<'a> {
    /// Opens no connection yet.
    ///
    /// # Errors
    /// [`HubError::Endpoint`] for an address that is not one, [`HubError::TokenInClear`] if the token would travel
    /// unencrypted, [`HubError::Offline`] if the user asked that nothing be fetched.
    pub fn new(options: Options, cache: Cache, watch: Watch<'a>) -> Result<Self, HubError> {
        Ok(Self { client: Client::new(&options, watch)?, cache, options })
    }

    /// Where models go.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// The host that is asked first, with its port if it is an unusual one.
    pub fn host(&self) -> &str {
        self.client.host()
    }
}
