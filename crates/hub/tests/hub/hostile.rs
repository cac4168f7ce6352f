//! Servers that mean harm, and those that refuse.

use std::{
    fs,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use jevons_hub::{Event, Token};
use tempfile::tempdir;

use crate::server::{Pull, Reply, Repo, Request, Server, assert_complete, options, part, pull, pull_with};

/// A pull from a server that answers everything so.
fn from(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static, token: Option<&str>) -> (Pull, Server) {
    let (dir, server) = (tempdir().unwrap(), Server::start(answer));
    let mut options = options(&server.url());
    options.token = token.map(|t| Token::new(t).unwrap());
    (pull(options, dir.path()), server)
}

#[test]
fn the_token_goes_to_the_endpoint_only_and_each_host_is_told_before_it_is_asked() {
    let (dir, repo) = (tempdir().unwrap(), Repo::usual());
    let served = repo.clone();
    let cdn = Arc::new(Server::start(move |r| part(served.get(r.path.split(['/', '?']).next_back().unwrap()), r)));
    // Weights are elsewhere, with a signature; small files are on the same host under another address.
    let (served, elsewhere) = (repo.clone(), cdn.url());
    let hub = Server::start(move |r| match r.path.rsplit('/').next() {
        _ if r.path.starts_with("/api/resolve-cache/") => part(served.get(r.path.rsplit('/').next().unwrap()), r),
        Some(name) if name.ends_with(".safetensors") => {
            Reply::redirect(format!("{elsewhere}/f?signature=secret/{name}"))
        }
        Some(name) if r.path.contains("/resolve/") => Reply::redirect(format!("/api/resolve-cache/{name}")),
        _ => served.reply(r),
    });
    let mut options = options(&hub.url());
    options.token = Some(Token::new("hf_mine").unwrap());
    let asked_before_told = Arc::new(AtomicUsize::new(0));
    let (check, other) = (asked_before_told.clone(), cdn.clone());
    let told = |event: Event<'_>| {
        if let Event::Host { redirected: true, host, .. } = event {
            assert_eq!(host, other.address);
            check.fetch_add(other.seen().len(), Ordering::SeqCst);
        }
    };
    let pull = pull_with(options, dir.path(), &AtomicBool::new(false), false, &told);
    assert_eq!(pull.hosts, [hub.address.clone(), cdn.address.clone()]);
    pull.ok();
    assert_complete(dir.path(), &repo);
    assert_eq!(asked_before_told.load(Ordering::SeqCst), 0);
    assert!(hub.seen().iter().all(|r| r.token.as_deref() == Some("Bearer hf_mine")));
    assert!(cdn.seen().iter().all(|r| r.token.is_none()) && cdn.seen().len() == 7);
    // Where a file is is asked once per file and thread at most, not once per part.
    assert!(hub.seen().iter().filter(|r| r.path.contains("00001")).count() <= 3);
}

#[test]
fn an_expired_signature_is_renewed() {
    let (dir, repo) = (tempdir().unwrap(), Repo::usual());
    let (served, tickets, used) = (repo.clone(), AtomicUsize::new(0), Mutex::new(std::collections::BTreeMap::new()));
    let cdn = Server::start(move |r| {
        let mut used = used.lock().unwrap();
        let n: &mut usize = used.entry(r.path.clone()).or_default();
        *n += 1;
        // Each ticket is good for two requests.
        if *n > 2 { Reply::status(403) } else { part(served.get(r.path.rsplit('/').next().unwrap()), r) }
    });
    let (served, elsewhere) = (repo.clone(), cdn.url());
    let hub = Server::start(move |r| match r.path.rsplit('/').next() {
        Some(name) if name.ends_with(".safetensors") => {
            Reply::redirect(format!("{elsewhere}/{}/{name}", tickets.fetch_add(1, Ordering::SeqCst)))
        }
        _ => served.reply(r),
    });
    pull(options(&hub.url()), dir.path()).ok();
    assert_complete(dir.path(), &repo);
}

#[test]
fn redirects_without_end_are_noticed() {
    let (pull, server) = from(|r| Reply::redirect(r.path.clone()), None);
    assert!(pull.err().contains("more than 5 redirects"), "{}", pull.err());
    assert_eq!(server.seen().len(), 6);
    let (pull, server) = from(|r| Reply::redirect(format!("/again{}", r.path)), None);
    assert!(pull.err().contains("more than 5 redirects"), "{}", pull.err());
    assert_eq!(server.seen().len(), 6);
    for (to, why) in [("", "names no place"), ("ftp://x/y", "neither https nor http"), ("http://a:b@c/", "user name")] {
        let (pull, _) = from(move |_| Reply::redirect(to), None);
        assert!(pull.err().contains(why), "{to}: {}", pull.err());
    }
}

#[test]
fn a_list_of_files_that_leaves_its_folder_is_refused_whole() {
    for path in
        ["../config.json", "/etc/passwd", "a/../../b", "a//b", "..", "C:\\x", "a\\..\\b", "x\u{0}y", "x\u{1b}[2J", ""]
    {
        let mut repo = Repo::usual();
        repo.0.push((path.into(), b"{}".to_vec()));
        let (dir, server) = (tempdir().unwrap(), Server::start(move |r| repo.reply(r)));
        let pull = pull(options(&server.url()), dir.path());
        assert!(pull.err().contains("no path inside a folder"), "{path:?}: {}", pull.err());
        assert!(!pull.err().contains(['\u{1b}', '\0']), "{path:?}");
        assert_eq!((server.file_requests(), fs::read_dir(dir.path()).unwrap().count()), (0, 0));
    }
}

#[test]
fn a_list_of_files_that_makes_no_sense_is_refused() {
    let good = Repo::usual().listing();
    let twice = good.replacen(r#""rfilename":"merges.txt""#, r#""rfilename":"config.json""#, 1);
    for (json, why) in [
        ("", "not what a hub sends"),
        ("[]", "not what a hub sends"),
        ("<html>", "not what a hub sends"),
        (&good.replace("cccc", "../x"), "commit is not 40"),
        (&good.replace("cccc", "CCCC"), "commit is not 40"),
        (&good.replace(r#""size":19"#, r#""size":-1"#), "not what a hub sends"),
        (&good.replace(r#""size":19"#, r#""size":1e3"#), "not what a hub sends"),
        (&good.replace(r#""size":19,"#, ""), "no size or no hash"),
        (&good.replace(r#""size":20992"#, r#""size":99999999999999999"#), "would have 99999999999999999 bytes"),
        (&good.replace(r#""sha256":""#, r#""sha256":"../../"#), "no size or no hash"),
        (&twice, "is in it twice"),
        (&"[".repeat(1 << 16), "not what a hub sends"),
    ] {
        let json = json.to_owned();
        let (pull, _) = from(move |_| Reply::json(json.clone()), None);
        assert!(pull.err().contains(why), "{why}: {}", pull.err());
    }
}

#[test]
fn an_endless_list_of_files_is_not_read_to_the_end() {
    let huge = format!("{{\"sha\": \"{}", " ".repeat(33 << 20));
    let (pull, _) = from(move |_| Reply::json(huge.clone()), None);
    assert!(pull.err().contains("is larger than 33554432 bytes"), "{}", pull.err());
}

#[test]
fn a_gated_model_says_what_to_do() {
    let gated = |status: u16| {
        move |_: &Request| {
            let said = "Access to model org/name is restricted";
            Reply::status(status).with("X-Error-Code", "GatedRepo").with("X-Error-Message", said)
        }
    };
    let (pull, server) = from(gated(401), None);
    let (error, page) = (pull.err(), format!("http://{}/org/name", server.address));
    assert!(error.contains(&format!("accept its terms at {page}, then set HF_TOKEN")), "{error}");
    assert!(error.contains("status 401: Access to model org/name is restricted"), "{error}");
    let (pull, _) = from(gated(403), Some("hf_x"));
    assert!(pull.err().contains("with the account that HF_TOKEN belongs to"), "{}", pull.err());
    let (pull, _) = from(|_| Reply::status(401), None);
    assert!(pull.err().contains("check the spelling at http"), "{}", pull.err());
    let (pull, _) = from(|_| Reply::status(401), Some("hf_x"));
    assert!(pull.err().contains("HF_TOKEN is wrong"), "{}", pull.err());
    assert!(!format!("{}{:?}", pull.err(), pull.result).contains("hf_x"));
    // The list may be public where the files are not.
    let (pull, _) =
        from(move |r| if r.path.contains("resolve") { gated(403)(r) } else { Repo::usual().reply(r) }, None);
    assert!(pull.err().contains("accept its terms"), "{}", pull.err());
}

#[test]
fn a_model_that_does_not_exist_leads_to_those_that_do() {
    let (pull, _) = from(
        |r| match &*r.path {
            "/api/models?search=name&limit=3" => {
                Reply::json(r#"[{"id":"org/Name-2"},{"id":"../x"},{"id":"other/name"}]"#)
            }
            _ => Reply::status(404).with("X-Error-Code", "RepoNotFound"),
        },
        None,
    );
    assert!(pull.err().contains("has no such model; did you mean org/Name-2 or other/name?"), "{}", pull.err());
    let (pull, _) = from(|_| Reply::status(404), None);
    assert!(pull.err().contains("no such model; check the spelling"), "{}", pull.err());
    let (pull, _) = from(|_| Reply::status(404).with("X-Error-Code", "RevisionNotFound"), None);
    assert!(
        pull.err().contains("there is no revision main; its branches and tags are listed at http"),
        "{}",
        pull.err()
    );
}

#[test]
fn nobody_at_home_is_told_at_once() {
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let dir = tempdir().unwrap();
    let pull = pull(options(&format!("http://{address}")), dir.path());
    assert!(pull.err().contains("cannot connect"), "{}", pull.err());
    assert_eq!(pull.notices, [""; 0]);
}
