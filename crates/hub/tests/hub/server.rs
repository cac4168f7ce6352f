//! A small HTTP server that says whatever a test wants, and a repository for it to serve.

use std::{
    fmt::Write as _,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use jevons_hub::{Cache, Choice, Event, Hub, HubError, Options, Plan, Summary, Watch};
use sha1::Sha1;
use sha2::{Digest, Sha256};

pub const COMMIT: &str = "cccccccccccccccccccccccccccccccccccccccc";
pub const CHUNK: u64 = 1024;

/// What was asked.
#[derive(Clone, Debug)]
pub struct Request {
    pub path: String,
    /// First and last byte.
    pub range: Option<(usize, usize)>,
    pub token: Option<String>,
}

/// What is answered.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Said instead of the body's length.
    pub length: Option<usize>,
    /// Close after so many bytes of the body.
    pub cut: Option<usize>,
    /// Wait after so many bytes of the body.
    pub stall: Option<(usize, Duration)>,
}

impl Reply {
    pub fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    pub fn json(text: impl Into<String>) -> Self {
        Self { status: 200, body: text.into().into_bytes(), ..Self::default() }
    }

    pub fn redirect(to: impl Into<String>) -> Self {
        Self::status(302).with("Location", to)
    }

    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }
}

pub struct Server {
    pub address: String,
    seen: Arc<Mutex<Vec<Request>>>,
    closing: Arc<AtomicBool>,
}

impl Server {
    /// `answer` is called by one thread per connection.
    pub fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (seen, closing) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (answer, log, closed) = (Arc::new(answer), seen.clone(), closing.clone());
        thread::spawn(move || {
            for stream in listener.incoming() {
                if closed.load(Ordering::SeqCst) {
                    return;
                }
                let (answer, log) = (answer.clone(), log.clone());
                thread::spawn(move || {
                    let _ = converse(stream.unwrap(), &*answer, &log);
                });
            }
        });
        Self { address, seen, closing }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn seen(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }

    /// Requests for files, not for their list.
    pub fn file_requests(&self) -> usize {
        self.seen().iter().filter(|r| !r.path.starts_with("/api/")).count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.closing.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(&self.address);
    }
}

fn converse(
    stream: TcpStream,
    answer: &(dyn Fn(&Request) -> Reply + Send + Sync),
    log: &Mutex<Vec<Request>>,
) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut stream = stream;
    loop {
        let mut request = Request { path: String::new(), range: None, token: None };
        let mut line = String::new();
        if reader.by_ref().take(1 << 16).read_line(&mut line)? == 0 {
            return Ok(());
        }
        request.path = line.split(' ').nth(1).unwrap().to_owned();
        loop {
            line.clear();
            reader.by_ref().take(1 << 16).read_line(&mut line)?;
            let Some((name, value)) = line.trim().split_once(": ") else { break };
            match &*name.to_lowercase() {
                "authorization" => request.token = Some(value.into()),
                "range" => {
                    let (first, last) = value.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
                    request.range = Some((first.parse().unwrap(), last.parse().unwrap()));
                }
                _ => {}
            }
        }
        log.lock().unwrap().push(request.clone());
        let reply = answer(&request);
        let length = reply.length.unwrap_or(reply.body.len());
        let mut head = format!("HTTP/1.1 {} X\r\nContent-Length: {length}\r\n", reply.status);
        for (name, value) in &reply.headers {
            write!(head, "{name}: {value}\r\n").unwrap();
        }
        stream.write_all((head + "\r\n").as_bytes())?;
        let mut body = &reply.body[..reply.cut.unwrap_or(reply.body.len()).min(reply.body.len())];
        if let Some((after, time)) = reply.stall {
            let (now, later) = body.split_at(after.min(body.len()));
            stream.write_all(now)?;
            stream.flush()?;
            thread::sleep(time);
            body = later;
        }
        stream.write_all(body)?;
        if reply.cut.is_some() || reply.length.is_some() {
            return Ok(());
        }
    }
}

/// A model with files of these names; every file of 1,000 bytes or more is in large-file storage.
#[derive(Clone)]
pub struct Repo(pub Vec<(String, Vec<u8>)>);

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// What the hub publishes for these bytes.
pub fn published(bytes: &[u8]) -> String {
    if bytes.len() >= 1000 {
        return hex(&Sha256::digest(bytes));
    }
    let mut sha1 = Sha1::new_with_prefix(format!("blob {}\0", bytes.len()));
    sha1.update(bytes);
    hex(&sha1.finalize())
}

/// Bytes without a pattern.
pub fn noise(n: usize, seed: u32) -> Vec<u8> {
    let mut x = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let next = |_| {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        (x >> 8) as u8
    };
    (0..n).map(next).collect()
}

impl Repo {
    /// Config, readme, an empty file, a large file of 20.5 chunks, one of 3 chunks, and things that nobody should fetch.
    pub fn usual() -> Self {
        let files = [
            ("README.md", b"# a model\n".to_vec()),
            ("config.json", br#"{"model_type": "x"}"#.to_vec()),
            ("merges.txt", vec![]),
            ("model-00001-of-00002.safetensors", noise(20 * 1024 + 512, 1)),
            ("model-00002-of-00002.safetensors", noise(3 * 1024, 2)),
            ("modeling.py", b"import os".to_vec()),
            ("pytorch_model.bin", noise(2000, 3)),
        ];
        Self(files.map(|(path, bytes)| (path.into(), bytes)).into())
    }

    pub fn get(&self, path: &str) -> &[u8] {
        &self.0.iter().find(|(p, _)| p == path).unwrap().1
    }

    pub fn listing(&self) -> String {
        let file = |(path, bytes): &(String, Vec<u8>)| {
            let (size, hash) = (bytes.len(), published(bytes));
            let path = serde_json::to_string(path).unwrap();
            match hash.len() {
                64 => format!(
                    r#"{{"rfilename":{path},"size":{size},"blobId":"{}","lfs":{{"sha256":"{hash}","size":{size},"pointerSize":134}}}}"#,
                    "0".repeat(40)
                ),
                _ => format!(r#"{{"rfilename":{path},"size":{size},"blobId":"{hash}"}}"#),
            }
        };
        let files: Vec<String> = self.0.iter().map(file).collect();
        format!(r#"{{"id":"org/name","sha":"{COMMIT}","private":false,"siblings":[{}]}}"#, files.join(","))
    }

    /// What a server that behaves answers.
    pub fn reply(&self, request: &Request) -> Reply {
        if request.path == "/api/models/org/name/revision/main?blobs=true" {
            return Reply::json(self.listing());
        }
        let Some(path) = request.path.strip_prefix(&format!("/org/name/resolve/{COMMIT}/")) else {
            return Reply::status(404);
        };
        match self.0.iter().find(|(p, _)| p == path) {
            Some((_, bytes)) => part(bytes, request),
            None => Reply::status(404),
        }
    }
}

/// The part of `bytes` that was asked for.
pub fn part(bytes: &[u8], request: &Request) -> Reply {
    match request.range {
        None => Reply { status: 200, body: bytes.into(), ..Reply::default() },
        Some((first, _)) if first >= bytes.len() => Reply::status(416),
        Some((first, last)) => {
            let last = last.min(bytes.len() - 1);
            let reply = Reply { status: 206, body: bytes[first..=last].into(), ..Reply::default() };
            reply.with("Content-Range", format!("bytes {first}-{last}/{}", bytes.len()))
        }
    }
}

/// Small chunks and no patience.
pub fn options(endpoint: &str) -> Options {
    Options {
        endpoint: endpoint.into(),
        proxy_from_env: false,
        jobs: 3,
        chunk_bytes: CHUNK,
        chunks_per_request: 4,
        timeout: Duration::from_millis(400),
        tries: 4,
        pause: Duration::from_millis(1),
        longest_pause: Duration::from_secs(3),
        ..Options::default()
    }
}

/// Everything that a pull tells and leaves.
pub struct Pull {
    pub result: Result<Summary, HubError>,
    pub plan: Option<Plan>,
    pub hosts: Vec<String>,
    pub notices: Vec<String>,
    pub done: Vec<String>,
}

impl Pull {
    #[track_caller]
    pub fn ok(self) -> (Summary, Plan) {
        (self.result.unwrap_or_else(|e| panic!("{e:?}, {:?}", self.notices)), self.plan.unwrap())
    }

    /// The error's text, causes included.
    #[track_caller]
    pub fn err(&self) -> String {
        let mut error: &dyn std::error::Error = self.result.as_ref().unwrap_err();
        let mut text = error.to_string();
        while let Some(source) = error.source() {
            write!(text, ": {source}").unwrap();
            error = source;
        }
        text
    }
}

/// Pulls `org/name` as the command does.
pub fn pull(options: Options, cache: &Path) -> Pull {
    pull_with(options, cache, &AtomicBool::new(false), false, &|_| ())
}

pub fn pull_with(
    options: Options,
    cache: &Path,
    stop: &AtomicBool,
    verify: bool,
    also: &(dyn Fn(Event<'_>) + Sync),
) -> Pull {
    let (hosts, notices, done) = (Mutex::default(), Mutex::default(), Mutex::default());
    let add = |list: &Mutex<Vec<String>>, text: &str| list.lock().unwrap().push(text.into());
    let on_event = |event: Event<'_>| {
        match event {
            Event::Host { host, .. } => add(&hosts, host),
            Event::Notice(text) => add(&notices, text),
            Event::Done { path } => add(&done, path),
            Event::Hashed { done, total } => assert!(done <= total),
            Event::Fetched { .. } => {}
        }
        also(event);
    };
    let mut made = None;
    let mut run = || {
        let hub = Hub::new(options.clone(), Cache::new(cache), Watch { on_event: &on_event, stop })?;
        let spec = "org/name".parse()?;
        let listing = hub.listing(&spec)?;
        let lock = hub.lock(&spec.repo)?;
        let plan = hub.plan(&listing, &Choice::default(), verify)?;
        made = Some(plan.clone());
        hub.fetch(&plan, &lock)
    };
    let result = run();
    let own = |list: Mutex<Vec<String>>| list.into_inner().unwrap();
    Pull { result, plan: made, hosts: own(hosts), notices: own(notices), done: own(done) }
}

/// Every needed file is in the cache, byte for byte, under the name that other tools expect, and nothing else is.
#[track_caller]
pub fn assert_complete(cache: &Path, repo: &Repo) {
    let folder = cache.join("models--org--name");
    assert_eq!(std::fs::read_to_string(folder.join("refs/main")).unwrap(), COMMIT);
    let needed: Vec<_> = repo.0.iter().filter(|(p, _)| !p.ends_with(".py") && !p.ends_with(".bin")).collect();
    let mut hashes = Vec::new();
    for (path, bytes) in &needed {
        let link = folder.join("snapshots").join(COMMIT).join(path);
        assert!(std::fs::read(&link).unwrap() == *bytes, "{path}: other bytes");
        let target = std::fs::read_link(&link).unwrap();
        assert_eq!(target.to_str().unwrap(), format!("../../blobs/{}", published(bytes)));
        hashes.push(published(bytes));
    }
    let names = |folder: &Path| {
        let mut names: Vec<String> =
            std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    hashes.sort();
    hashes.dedup();
    assert_eq!(names(&folder.join("blobs")), hashes);
    assert_eq!(names(&folder.join(".jevons")), hashes.iter().map(|h| format!("{h}.chunks")).collect::<Vec<_>>());
    let mut paths: Vec<_> = needed.iter().map(|(p, _)| p.clone()).collect();
    paths.sort();
    assert_eq!(names(&folder.join("snapshots").join(COMMIT)), paths);
}
