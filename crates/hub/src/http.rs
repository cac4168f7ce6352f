//! One request at a time, by someone who trusts no server.
//!
//! Redirects are followed here and not by the HTTP library, because each one is a decision: a new host is told before
//! it is connected to, the token goes to the endpoint's origin only, and an encrypted connection never leads to an
//! unencrypted one.

use std::{
    collections::BTreeSet,
    io::{self, Read},
    ops::Range,
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use ureq::{
    Agent, Body, Proxy,
    http::{HeaderMap, Response, StatusCode, Uri},
    tls::{PemItem, RootCerts, TlsConfig, parse_pem},
};

use crate::{Event, HubError, Options, Token, Watch, error::At};

/// A published hub needs one or two.
const MAX_REDIRECTS: usize = 5;

#[derive(Debug)]
pub struct Client<'a> {
    agent: Agent,
    /// Without a `/` at its end.
    endpoint: String,
    origin: Origin,
    token: Option<Token>,
    proxy: Option<Proxy>,
    told: Mutex<BTreeSet<Origin>>,
    /// Some server has answered, so that the network is there and a failure may pass.
    answered: AtomicBool,
    options: Options,
    pub watch: Watch<'a>,
    /// One of several threads has failed, so that the others should stop too.
    pub halt: AtomicBool,
}

/// A server's answer, and which one it was that answered.
pub struct Answer {
    pub response: Response<Body>,
    pub from: Uri,
}

/// A failure, and whether trying again makes sense.
#[derive(Debug)]
pub enum Trouble {
    Fatal(HubError),
    /// It may pass; `after`: not before the server says.
    Passing {
        error: HubError,
        after: Option<Duration>,
    },
}

impl From<HubError> for Trouble {
    fn from(error: HubError) -> Self {
        Self::Fatal(error)
    }
}

impl Trouble {
    pub fn passing(error: HubError) -> Self {
        Self::Passing { error, after: None }
    }
}

impl<'a> Client<'a> {
    pub fn new(options: &Options, watch: Watch<'a>) -> Result<Self, HubError> {
        if options.offline {
            return Err(HubError::Offline);
        }
        let endpoint = options.endpoint.trim_end_matches('/').to_owned();
        let bad = |why| HubError::Endpoint { url: without_secrets(&endpoint), why };
        let uri: Uri = endpoint.parse().map_err(|_| bad("it is not a URL"))?;
        let origin = Origin::of(&uri).map_err(bad)?;
        if uri.query().is_some() || endpoint.contains('#') {
            return Err(bad("it has a query"));
        }
        if options.token.is_some() && !origin.https && !origin.is_this_machine() {
            return Err(HubError::TokenInClear { host: origin.shown() });
        }
        let proxy = if options.proxy_from_env { Proxy::try_from_env() } else { None };
        let mut tls = TlsConfig::builder();
        if let Some(path) = &options.certificates {
            tls = tls.root_certs(certificates(path)?);
        }
        let config = Agent::config_builder()
            .tls_config(tls.build())
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("jevons/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity") // ranges count the bytes of the file itself
            .proxy(proxy.clone())
            .timeout_connect(Some(options.timeout))
            .timeout_per_read(Some(options.timeout))
            .timeout_per_write(Some(options.timeout))
            .timeout_recv_response(Some(options.timeout))
            .max_idle_connections(2 * options.jobs)
            .max_idle_connections_per_host(options.jobs)
            .build();
        Ok(Self {
            agent: config.into(),
            endpoint,
            origin,
            token: options.token.clone(),
            proxy,
            told: Mutex::default(),
            answered: AtomicBool::new(false),
            options: options.clone(),
            watch,
            halt: AtomicBool::new(false),
        })
    }

    pub fn host(&self) -> &str {
        &self.origin.authority
    }

    /// `path` begins with a `/` and is encoded already.
    pub fn address(&self, path: &str) -> Result<Uri, HubError> {
        let url = format!("{}{path}", self.endpoint);
        url.parse().map_err(|_| HubError::Endpoint { url, why: "it is not a URL" })
    }

    /// The page of a model, for people.
    pub fn page(&self, path: &str) -> String {
        format!("{}/{path}", self.endpoint)
    }

    pub fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// Whether `uri` belongs to the endpoint.
    pub fn is_endpoint(&self, uri: &Uri) -> bool {
        Origin::of(uri).is_ok_and(|origin| origin == self.origin)
    }

    /// Asks once, following redirects. Any status but a redirect is an answer.
    pub fn get(&self, start: &Uri, range: Option<Range<u64>>) -> Result<Answer, Trouble> {
        let mut at = start.clone();
        for _ in 0..=MAX_REDIRECTS {
            self.check_stop()?;
            let origin = Origin::of(&at).map_err(|why| HubError::Endpoint { url: shown(&at), why })?;
            self.tell(&origin, &at);
            let mut request = self.agent.get(at.clone());
            if let Some(token) = self.token.as_ref().filter(|_| origin == self.origin) {
                request = request.header("Authorization", format!("Bearer {}", token.secret()));
            }
            if let Some(Range { start, end }) = &range {
                request = request.header("Range", format!("bytes={start}-{}", end - 1));
            }
            let response = request.call().map_err(|error| self.failure(&origin, error))?;
            self.answered.store(true, Ordering::Relaxed);
            let location = match response.status().as_u16() {
                301 | 302 | 303 | 307 | 308 => header(response.headers(), "location"),
                _ => return Ok(Answer { response, from: at }),
            };
            at = next_hop(&at, location.unwrap_or_default())?;
        }
        let host = self.host().to_owned();
        Err(HubError::Redirects { host, limit: MAX_REDIRECTS, last: shown(&at) }.into())
    }

    /// The whole body of a good answer, at most `limit` bytes; tries again what may pass. The endpoint's other answers
    /// are given to `refused`.
    pub fn text(
        &self,
        address: &Uri,
        what: &str,
        limit: u64,
        refused: impl Fn(StatusCode, &HeaderMap) -> Option<HubError>,
    ) -> Result<Vec<u8>, HubError> {
        let mut patience = Patience::new(self);
        loop {
            match self.text_once(address, what, limit, &refused) {
                Ok(bytes) => return Ok(bytes),
                Err(trouble) => patience.wait(trouble)?,
            }
        }
    }

    fn text_once(
        &self,
        address: &Uri,
        what: &str,
        limit: u64,
        refused: &impl Fn(StatusCode, &HeaderMap) -> Option<HubError>,
    ) -> Result<Vec<u8>, Trouble> {
        let answer = self.get(address, None)?;
        if answer.response.status() != StatusCode::OK {
            let (parts, _) = answer.response.into_parts();
            return Err(match refused(parts.status, &parts.headers) {
                Some(error) => error.into(),
                None => self.status(&answer.from, what, parts.status, &parts.headers),
            });
        }
        let host = host(&answer.from);
        let mut bytes = Vec::new();
        let mut body = answer.response.into_body().into_with_config().limit(u64::MAX).reader().take(limit + 1);
        let mut buffer = [0; 1 << 14];
        loop {
            self.check_stop()?;
            match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => bytes.extend_from_slice(&buffer[..n]),
                Err(error) => return Err(cut(&host, &error)),
            }
        }
        if bytes.len() as u64 > limit {
            return Err(HubError::TooLarge { host, what: what.into(), limit }.into());
        }
        Ok(bytes)
    }

    /// What a status that is not the wanted one means.
    pub fn status(&self, from: &Uri, what: &str, status: StatusCode, headers: &HeaderMap) -> Trouble {
        let host = host(from);
        let after = header(headers, "retry-after").and_then(|v| v.trim().parse::<u64>().ok());
        if let Some(seconds) = after.filter(|s| Duration::from_secs(*s) > self.options.longest_pause) {
            return HubError::Busy { host, seconds }.into();
        }
        let after = after.map(Duration::from_secs);
        let error = HubError::Status { host, what: what.into(), status: status.as_u16(), said: said(headers) };
        // The signed address that a redirect leads to expires: asking the endpoint again gives a fresh one.
        let expired = !self.is_endpoint(from) && matches!(status.as_u16(), 400 | 401 | 403 | 404 | 410);
        if matches!(status.as_u16(), 408 | 416 | 425 | 429) || status.is_server_error() || expired {
            Trouble::Passing { error, after }
        } else {
            error.into()
        }
    }

    pub fn check_stop(&self) -> Result<(), HubError> {
        let stop = self.watch.stop.load(Ordering::Relaxed) || self.halt.load(Ordering::Relaxed);
        if stop { Err(HubError::Interrupted) } else { Ok(()) }
    }

    pub fn notice(&self, text: &str) {
        (self.watch.on_event)(Event::Notice(text));
    }

    /// Names a host before the first connection to it.
    fn tell(&self, origin: &Origin, uri: &Uri) {
        // Told inside the lock: no other thread may connect before it is done.
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.insert(origin.clone()) {
            let proxy =
                self.proxy.as_ref().filter(|p| !p.is_no_proxy(uri)).map(|p| format!("{}:{}", p.host(), p.port()));
            let (host, redirected) = (&*origin.authority, *origin != self.origin);
            (self.watch.on_event)(Event::Host { host, redirected, proxy: proxy.as_deref() });
        }
    }

    fn failure(&self, origin: &Origin, source: ureq::Error) -> Trouble {
        use ureq::Error::{ConnectionFailed, HostNotFound, Io, Protocol, Timeout};
        let host = origin.shown();
        match source {
            Io(_) | Timeout(_) | Protocol(_) | ConnectionFailed | HostNotFound
                if self.answered.load(Ordering::Relaxed) =>
            {
                Trouble::passing(HubError::Connection { host, source })
            }
            source => HubError::Connect { host, source }.into(),
        }
    }
}

/// The authorities in a PEM file.
fn certificates(path: &Path) -> Result<RootCerts, HubError> {
    let pem = std::fs::read(path).at(path, "read the certificates (SSL_CERT_FILE)")?;
    let certificate = |item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        _ => None,
    };
    let found: Vec<_> = parse_pem(&pem).filter_map(certificate).collect();
    if found.is_empty() {
        Err(HubError::Certificates { path: path.into() })
    } else {
        Ok(RootCerts::new_with_certs(&found))
    }
}

/// How often and how long to wait.
pub struct Patience<'c, 'a> {
    client: &'c Client<'a>,
    left: u32,
    pause: Duration,
}

impl<'c, 'a> Patience<'c, 'a> {
    pub fn new(client: &'c Client<'a>) -> Self {
        Self { client, left: client.options.tries, pause: client.options.pause }
    }

    /// To be called after progress.
    pub fn renew(&mut self) {
        (self.left, self.pause) = (self.client.options.tries, self.client.options.pause);
    }

    /// Returns when it is time to try again; with the error when there is no point in it.
    pub fn wait(&mut self, trouble: Trouble) -> Result<(), HubError> {
        let (error, after) = match trouble {
            Trouble::Fatal(error) => return Err(error),
            Trouble::Passing { error, after } => (error, after),
        };
        self.left = self.left.saturating_sub(1);
        if self.left == 0 {
            return Err(error);
        }
        let pause = after.unwrap_or(self.pause).min(self.client.options.longest_pause);
        self.pause = self.pause.saturating_mul(2).min(self.client.options.longest_pause);
        if pause >= Duration::from_secs(1) {
            self.client.notice(&format!("{}; trying again in {:.0} s", chain(&error), pause.as_secs_f64()));
        }
        let until = Instant::now() + pause;
        loop {
            self.client.check_stop()?;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            thread::sleep(left.min(Duration::from_millis(50)));
        }
    }
}

/// Scheme, host and port: who gets the token, and what is told.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Origin {
    https: bool,
    /// In lower case, the port only if it is an unusual one.
    authority: String,
}

impl Origin {
    fn of(uri: &Uri) -> Result<Self, &'static str> {
        let https = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err("is neither https nor http"),
        };
        let authority = uri.authority().ok_or("has no host")?;
        if authority.as_str().contains('@') {
            return Err("has a user name in it");
        }
        let host = authority.host().trim_end_matches('.').to_lowercase();
        if host.is_empty() {
            return Err("has no host");
        }
        let usual = if https { 443 } else { 80 };
        let authority = match authority.port_u16() {
            Some(port) if port != usual => format!("{host}:{port}"),
            _ => host,
        };
        Ok(Self { https, authority })
    }

    fn shown(&self) -> String {
        self.authority.clone()
    }

    fn is_this_machine(&self) -> bool {
        let host = match self.authority.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
            _ => &self.authority,
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }
}

/// Where a redirect leads, if it may be followed.
fn next_hop(from: &Uri, location: &str) -> Result<Uri, HubError> {
    let refuse = |why| HubError::Redirect { host: host(from), to: without_secrets(location), why };
    let location = location.split('#').next().unwrap_or_default();
    if location.is_empty() {
        return Err(refuse("names no place"));
    }
    let scheme = from.scheme_str().unwrap_or_default();
    let authority = from.authority().map_or("", |a| a.as_str());
    let url = if has_scheme(location) {
        location.to_owned()
    } else if let Some(rest) = location.strip_prefix("//") {
        format!("{scheme}://{rest}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else if location.starts_with('?') {
        format!("{scheme}://{authority}{}{location}", from.path())
    } else {
        let folder = from.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{location}")
    };
    let to: Uri = url.parse().map_err(|_| refuse("is not a URL"))?;
    let origin = Origin::of(&to).map_err(refuse)?;
    if scheme == "https" && !origin.https {
        return Err(refuse("is not encrypted (http), though the way there was (https)"));
    }
    Ok(to)
}

fn has_scheme(location: &str) -> bool {
    location.split_once(':').is_some_and(|(scheme, _)| {
        scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
    })
}

/// A header as text, if it is text.
pub fn header<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

/// What the server says about its refusal, cleaned and shortened, ready to follow a status.
pub fn said(headers: &HeaderMap) -> String {
    let Some(text) = header(headers, "x-error-message") else { return String::new() };
    let text: String = text.chars().filter(|c| !c.is_control()).take(200).collect();
    format!(": {}", text.trim())
}

/// Host of an address, for messages.
pub fn host(uri: &Uri) -> String {
    Origin::of(uri).map_or_else(|_| "?".into(), |origin| origin.authority)
}

/// The body ended with an error.
pub fn cut(host: &str, error: &io::Error) -> Trouble {
    Trouble::passing(HubError::Cut { host: host.into(), why: error.to_string() })
}

/// An address without its query, which may hold a signature.
fn shown(uri: &Uri) -> String {
    without_secrets(&uri.to_string())
}

/// The same of a text that may be no address; control characters never reach a terminal.
fn without_secrets(url: &str) -> String {
    let url = url.split(['?', '#']).next().unwrap_or_default();
    let url: String = url.chars().filter(|c| !c.is_control()).take(200).collect();
    match (url.find("://"), url.find('@')) {
        (Some(scheme), Some(at)) if scheme < at => format!("{}://…{}", &url[..scheme], &url[at..]),
        _ => url,
    }
}

fn chain(error: &HubError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hop(from: &str, location: &str) -> Result<String, String> {
        let from: Uri = from.parse().unwrap();
        next_hop(&from, location).map(|uri| uri.to_string()).map_err(|e| e.to_string())
    }

    #[test]
    fn every_form_of_a_redirect_is_understood() {
        let from = "https://hub.example/a/b?x=1";
        for (location, want) in [
            ("https://cdn.example/f?sig=a%2Fb&c", "https://cdn.example/f?sig=a%2Fb&c"),
            ("//cdn.example/f", "https://cdn.example/f"),
            ("/api/f?y", "https://hub.example/api/f?y"),
            ("c", "https://hub.example/a/c"),
            ("?z", "https://hub.example/a/b?z"),
            ("/f#part", "https://hub.example/f"),
        ] {
            assert_eq!(hop(from, location).unwrap(), want);
        }
    }

    #[test]
    fn a_redirect_to_an_unencrypted_or_strange_place_is_refused() {
        for (location, why) in [
            ("http://hub.example/f", "not encrypted"),
            ("ftp://hub.example/f", "neither https nor http"),
            ("file:///etc/passwd", "is not a URL"),
            ("javascript:alert(1)", "neither https nor http"),
            ("https://user:secret@cdn.example/f", "user name"),
            ("https://", "is not a URL"),
            ("", "names no place"),
        ] {
            let error = hop("https://hub.example/a", location).unwrap_err();
            assert!(error.contains(why) && !error.contains("secret"), "{location}: {error}");
        }
        assert!(hop("http://hub.example/a", "http://cdn.example/f").is_ok());
        assert!(hop("http://hub.example/a", "https://cdn.example/f").is_ok());
    }

    #[test]
    fn the_token_is_for_one_scheme_host_and_port() {
        let origin = |url: &str| Origin::of(&url.parse().unwrap()).unwrap();
        assert_eq!(origin("https://Hub.Example/x"), origin("https://hub.example:443/y"));
        for other in
            ["http://hub.example", "https://hub.example:8443", "https://hub.example.org", "https://x.hub.example"]
        {
            assert_ne!(origin("https://hub.example"), origin(other), "{other}");
        }
    }

    #[test]
    fn a_token_leaves_this_machine_encrypted_or_not_at_all() {
        let stop = AtomicBool::new(false);
        let client = |endpoint: &str| {
            let token = Some(Token::new("hf_secret").unwrap());
            let options = Options { endpoint: endpoint.into(), token, proxy_from_env: false, ..Options::default() };
            Client::new(&options, Watch { on_event: &|_| (), stop: &stop }).map(|_| ()).map_err(|e| e.to_string())
        };
        for good in ["https://hub.example", "http://127.0.0.1:80", "http://localhost:9/x", "http://[::1]:9"] {
            assert_eq!(client(good), Ok(()), "{good}");
        }
        for bad in ["http://hub.example", "http://10.0.0.1", "http://localhost.example"] {
            assert!(client(bad).unwrap_err().contains("unencrypted"), "{bad}");
        }
        for bad in ["hub.example", "ftp://hub.example", "https://me:pass@hub.example", "https://h/?q", "", "http://"] {
            let error = client(bad).unwrap_err();
            assert!(error.contains("cannot be a hub's address") && !error.contains("pass"), "{bad}: {error}");
        }
    }

    #[test]
    fn a_file_without_certificates_is_refused_instead_of_trusting_everybody_or_nobody() {
        let dir = tempfile::tempdir().unwrap();
        for text in ["", "nonsense", "-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n"] {
            let path = dir.path().join("ca.pem");
            std::fs::write(&path, text).unwrap();
            assert!(matches!(certificates(&path), Err(HubError::Certificates { .. })), "{text}");
        }
        assert!(matches!(certificates(&dir.path().join("none")), Err(HubError::Io { .. })));
    }

    #[test]
    fn a_token_that_could_smuggle_headers_is_refused_and_none_is_ever_printed() {
        for bad in ["", "a b", "a\r\nHost: x", "ä"] {
            assert!(Token::new(bad).is_err());
        }
        assert!(!format!("{:?}", Token::new("hf_secret").unwrap()).contains("secret"));
    }
}
