//! Part of a file, byte after byte, through whatever a server does in between.

use std::{
    io::Read,
    ops::Range,
    sync::{Mutex, PoisonError},
};

use ureq::http::{HeaderMap, StatusCode, Uri};

use crate::{
    HubError, Listing, RemoteFile,
    http::{Client, Patience, Trouble, cut, header, host},
    listing::refusal,
    name::percent,
};

/// A server that sends less than this part of a chunk and then fails has made no progress.
const PROGRESS: u64 = 64;

/// A file of a commit, where it can be fetched.
#[derive(Debug)]
pub struct Remote<'l> {
    pub listing: &'l Listing,
    pub file: &'l RemoteFile,
    /// At the endpoint, which may redirect.
    address: Uri,
    /// Where it redirected to last, so that the next part need not ask again.
    resolved: Mutex<Option<Uri>>,
}

/// How [`Client::read`] ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Reading {
    Done,
    /// The server sends whole files only, and this part does not begin where a file does.
    NoRanges,
}

/// Where the bytes go.
pub type Sink<'s> = dyn FnMut(&[u8]) -> Result<(), HubError> + 's;

impl<'l> Remote<'l> {
    pub fn new(client: &Client<'_>, listing: &'l Listing, file: &'l RemoteFile) -> Result<Self, HubError> {
        let path = format!("/{}/resolve/{}/{}", listing.repo, listing.commit, percent(&file.path, "/"));
        Ok(Self { listing, file, address: client.address(&path)?, resolved: Mutex::default() })
    }

    fn resolved(&self) -> std::sync::MutexGuard<'_, Option<Uri>> {
        self.resolved.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Client<'_> {
    /// Gives every byte of `range` to `sink`, once and in order. Goes on at the next byte after a cut, as long as there
    /// is progress. With `skip`, a server that sends whole files only is read from the start, up to what is wanted.
    pub fn read(
        &self,
        remote: &Remote<'_>,
        range: Range<u64>,
        skip: bool,
        chunk_bytes: u64,
        sink: &mut Sink<'_>,
    ) -> Result<Reading, HubError> {
        let mut patience = Patience::new(self);
        let mut at = range.start;
        while at < range.end {
            let before = at;
            let mut count = |bytes: &[u8]| {
                sink(bytes)?;
                at += bytes.len() as u64;
                Ok(())
            };
            match self.read_once(remote, before..range.end, skip, &mut count) {
                Ok(Reading::Done) => {}
                Ok(Reading::NoRanges) => return Ok(Reading::NoRanges),
                Err(trouble) => {
                    *remote.resolved() = None;
                    if at - before >= (chunk_bytes / PROGRESS).max(1) {
                        patience.renew();
                    }
                    patience.wait(trouble)?;
                }
            }
        }
        Ok(Reading::Done)
    }

    /// One request. `Done` if all that it announced came, which may be less than was asked for, but not nothing.
    fn read_once(
        &self,
        remote: &Remote<'_>,
        want: Range<u64>,
        skip: bool,
        sink: &mut Sink<'_>,
    ) -> Result<Reading, Trouble> {
        let size = remote.file.bytes;
        let part = (want != (0..size)).then(|| want.clone());
        let address = remote.resolved().clone().unwrap_or_else(|| remote.address.clone());
        let answer = self.get(&address, part.clone())?;
        let (parts, body) = answer.response.into_parts();
        let host = host(&answer.from);
        let wrong = |why: String| {
            let (host, path) = (host.clone(), remote.file.path.clone());
            Trouble::passing(HubError::Answer { host, path, why })
        };
        let sent = match parts.status {
            StatusCode::PARTIAL_CONTENT => content_range(&parts.headers, &want, size).map_err(&wrong)?,
            StatusCode::OK if part.is_some() && !skip => return Ok(Reading::NoRanges),
            StatusCode::OK => 0..size,
            status => return Err(self.refused(remote, &answer.from, status, &parts.headers)),
        };
        if let Some(length) = header(&parts.headers, "content-length")
            && length.trim().parse() != Ok(sent.end - sent.start)
        {
            return Err(wrong(format!("it would be {length} bytes long instead of {}", sent.end - sent.start)));
        }
        if !self.is_endpoint(&answer.from) {
            *remote.resolved() = Some(answer.from);
        }
        let mut body = body.into_with_config().limit(u64::MAX).reader();
        let mut buffer = vec![0; 1 << 17];
        let (mut at, end) = (sent.start, sent.end.min(want.end));
        while at < end {
            self.check_stop()?;
            let room = (buffer.len() as u64).min(end - at) as usize;
            let n = match body.read(&mut buffer[..room]) {
                Ok(0) => {
                    return Err(wrong(format!(
                        "the answer ended after {} bytes of {}",
                        at - sent.start,
                        end - sent.start
                    )));
                }
                Ok(n) => n,
                Err(error) => return Err(cut(&host, &error)),
            };
            let unwanted = want.start.saturating_sub(at).min(n as u64) as usize;
            at += n as u64;
            if unwanted < n {
                sink(&buffer[unwanted..n])?;
            }
        }
        Ok(Reading::Done)
    }

    fn refused(&self, remote: &Remote<'_>, from: &Uri, status: StatusCode, headers: &HeaderMap) -> Trouble {
        let Listing { repo, revision, .. } = remote.listing;
        let denied = matches!(status.as_u16(), 401 | 403) && self.is_endpoint(from);
        match refusal(self, repo, revision, status, headers).filter(|_| denied) {
            Some(error) => error.into(),
            None => self.status(from, &remote.file.path, status, headers),
        }
    }
}

/// The part that is really sent: it must begin where asked, and be of a file of the right size.
fn content_range(headers: &HeaderMap, want: &Range<u64>, size: u64) -> Result<Range<u64>, String> {
    let text = header(headers, "content-range").unwrap_or_default();
    let parse = || {
        let (part, total) = text.trim().strip_prefix("bytes ")?.trim().split_once('/')?;
        let (first, last) = part.split_once('-')?;
        let total = if total == "*" { size } else { total.parse().ok()? };
        Some((first.parse::<u64>().ok()?, last.parse::<u64>().ok()?.checked_add(1)?, total))
    };
    let shown: String = text.chars().filter(|c| !c.is_control()).take(80).collect();
    match parse() {
        Some((start, end, total)) if start == want.start && start < end && end <= want.end && total == size => {
            Ok(start..end)
        }
        Some((_, _, total)) if total != size => {
            Err(format!("it has {total} bytes there, and {size} in the list of files"))
        }
        _ => Err(format!("bytes {}-{} were asked for, and `{shown}` came", want.start, want.end - 1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_must_be_the_one_that_was_asked_for() {
        let range = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("content-range", text.parse().unwrap());
            content_range(&headers, &(10..20), 50)
        };
        assert_eq!(range("bytes 10-19/50"), Ok(10..20));
        assert_eq!(range("bytes 10-14/*"), Ok(10..15));
        for bad in [
            "",
            "bytes 10-19",
            "bytes */50",
            "bytes 9-19/50",
            "bytes 11-19/50",
            "bytes 10-20/50",
            "bytes 10-9/50",
            "bytes 10-18446744073709551615/50",
            "bytes 10-19/51",
            "10-19/50",
            "bytes -10-19/50",
            "bytes a-b/c",
        ] {
            assert!(range(bad).is_err(), "{bad}");
        }
    }
}
