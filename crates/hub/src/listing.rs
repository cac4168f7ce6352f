//! What a hub says a model consists of.

use serde::Deserialize;
use ureq::http::{HeaderMap, StatusCode};

use crate::{
    Hub, HubError, Published, RepoId, Revision, Spec,
    http::{Client, header, said},
    name::{is_commit, is_safe_path, percent},
};

/// Longest description of a model that is read; the largest published ones take about one megabyte.
const MAX_LISTING_BYTES: u64 = 32 << 20;
/// Largest believable file.
const MAX_FILE_BYTES: u64 = 16 << 40;

/// The files of one commit.
#[derive(Clone, Debug)]
pub struct Listing {
    /// Which model.
    pub repo: RepoId,
    /// As asked for.
    pub revision: Revision,
    /// Its commit, 40 hexadecimal digits.
    pub commit: String,
    /// Sorted by path; each path is relative and stays in its folder.
    pub files: Vec<RemoteFile>,
}

/// A file of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteFile {
    /// Path in the repository, parts separated by `/`.
    pub path: String,
    /// Size.
    pub bytes: u64,
    /// What it must hash to.
    pub hash: Published,
}

/// The fields of the hub's answer that matter.
#[derive(Deserialize)]
struct Answer {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
    size: u64,
}

impl Hub<'_> {
    /// Asks the hub which files a model has.
    ///
    /// # Errors
    /// [`HubError::Denied`] with what to do about it, [`HubError::NoRepo`] with names that are like it,
    /// [`HubError::NoRevision`], [`HubError::Listing`] for a list that cannot be right, and those of the connection.
    pub fn listing(&self, spec: &Spec) -> Result<Listing, HubError> {
        let client = &self.client;
        let revision = spec.revision.clone().unwrap_or_else(Revision::main);
        let path = format!("/api/models/{}/revision/{}?blobs=true", spec.repo, percent(revision.as_str(), ""));
        let address = client.address(&path)?;
        let what = format!("the list of files of {}", spec.repo);
        let json = client
            .text(&address, &what, MAX_LISTING_BYTES, |status, headers| {
                refusal(client, &spec.repo, &revision, status, headers)
            })
            .map_err(|error| match error {
                HubError::NoRepo { repo, host, advice } => {
                    HubError::NoRepo { repo, host, advice: self.similar(&spec.repo).unwrap_or(advice) }
                }
                error => error,
            })?;
        let wrong = |why: String| HubError::Listing { repo: spec.repo.to_string(), why };
        let answer: Answer =
            serde_json::from_slice(&json).map_err(|e| wrong(format!("it is not what a hub sends: {e}")))?;
        if !is_commit(&answer.sha) {
            return Err(wrong("its commit is not 40 hexadecimal digits".into()));
        }
        let mut files = answer.siblings.into_iter().map(file).collect::<Result<Vec<_>, _>>().map_err(wrong)?;
        files.sort_by(|a, b| a.path.cmp(&b.path));
        if let Some(pair) = files.windows(2).find(|pair| pair[0].path == pair[1].path) {
            return Err(wrong(format!("{} is in it twice", pair[0].path)));
        }
        if files.iter().try_fold(0u64, |sum, f| sum.checked_add(f.bytes)).is_none() {
            return Err(wrong("its files are larger than any disk".into()));
        }
        Ok(Listing { repo: spec.repo.clone(), revision, commit: answer.sha, files })
    }

    /// `; did you mean …`, if the hub knows models of a similar name. Nobody asked for this, so failures are silent.
    fn similar(&self, repo: &RepoId) -> Option<String> {
        #[derive(Deserialize)]
        struct Found {
            id: String,
        }
        let path = format!("/api/models?search={}&limit=3", percent(repo.name(), ""));
        let address = self.client.address(&path).ok()?;
        let none = |_: StatusCode, _: &HeaderMap| Some(HubError::Interrupted); // any error: it is not shown
        let json = self.client.text(&address, "a search", 1 << 20, none).ok()?;
        let found: Vec<Found> = serde_json::from_slice(&json).ok()?;
        let names: Vec<String> =
            found.iter().filter_map(|f| f.id.parse::<RepoId>().ok()).take(3).map(|id| id.to_string()).collect();
        (!names.is_empty()).then(|| format!("; did you mean {}?", names.join(" or ")))
    }
}

/// Checks what the hub says about one file.
fn file(sibling: Sibling) -> Result<RemoteFile, String> {
    let path = sibling.rfilename;
    if !is_safe_path(&path) {
        return Err(format!("it has a file {path:?}, which is no path inside a folder; this may be an attack"));
    }
    let (bytes, digits) = match sibling.lfs {
        Some(lfs) => (Some(lfs.size), Some(lfs.sha256).filter(|d| d.len() == 64)),
        None => (sibling.size, sibling.blob_id.filter(|d| d.len() == 40)),
    };
    let hash = digits.and_then(|digits| Published::parse(&digits.to_lowercase()));
    match (bytes, hash) {
        (Some(bytes), _) if bytes > MAX_FILE_BYTES => Err(format!("{path} would have {bytes} bytes")),
        (Some(bytes), Some(hash)) => Ok(RemoteFile { path, bytes, hash }),
        _ => Err(format!("{path} has no size or no hash, so it could not be checked")),
    }
}

/// What the endpoint means when it refuses something of a model.
pub(crate) fn refusal(
    client: &Client<'_>,
    repo: &RepoId,
    revision: &Revision,
    status: StatusCode,
    headers: &HeaderMap,
) -> Option<HubError> {
    let (repo, host) = (repo.to_string(), client.host().to_owned());
    let code = header(headers, "x-error-code").unwrap_or_default();
    match status.as_u16() {
        404 if code == "RevisionNotFound" => {
            let page = client.page(&format!("{repo}/tree/main"));
            Some(HubError::NoRevision { repo, revision: revision.to_string(), page })
        }
        404 => Some(HubError::NoRepo { repo, host, advice: "; check the spelling, capitals included".into() }),
        401 | 403 => {
            let page = client.page(&repo);
            let advice = match (client.has_token(), code) {
                (true, "GatedRepo") => format!("accept its terms at {page} with the account that HF_TOKEN belongs to"),
                (true, _) => format!("HF_TOKEN is wrong or its account may not read this model; look at {page}"),
                (false, "GatedRepo") => {
                    format!("accept its terms at {page}, then set HF_TOKEN to a token of that account")
                }
                (false, _) => format!(
                    "it does not exist under this name, or is private: check the spelling at {page}, or set HF_TOKEN"
                ),
            };
            Some(HubError::Denied { repo, host, status: status.as_u16(), said: said(headers), advice })
        }
        _ => None,
    }
}
