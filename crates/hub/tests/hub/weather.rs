//! Servers and networks that fail, now and then or always.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tempfile::tempdir;

use crate::server::{Pull, Reply, Repo, Request, Server, assert_complete, options, part, pull};

const BIG: &str = "model-00001-of-00002.safetensors";

/// A pull from a server that answers file requests as `fault` says, given the right answer and how often the same was
/// asked before.
fn through(
    fault: impl Fn(&Request, Reply, usize) -> Reply + Send + Sync + 'static,
) -> (Pull, tempfile::TempDir, Server) {
    let (dir, repo) = (tempdir().unwrap(), Repo::usual());
    let asked = Mutex::new(BTreeMap::new());
    let server = Server::start(move |request| {
        let reply = repo.reply(request);
        let before = {
            let mut asked = asked.lock().unwrap();
            let n: &mut usize = asked.entry((request.path.clone(), request.range)).or_default();
            *n += 1;
            *n - 1
        };
        fault(request, reply, before)
    });
    (pull(options(&server.url()), dir.path()), dir, server)
}

#[track_caller]
fn survives(fault: impl Fn(&Request, Reply, usize) -> Reply + Send + Sync + 'static) -> Server {
    let (pull, dir, server) = through(fault);
    pull.ok();
    assert_complete(dir.path(), &Repo::usual());
    server
}

#[test]
fn a_cut_in_the_middle_costs_no_byte_twice() {
    let sent = AtomicUsize::new(0);
    let server = survives(move |request, reply, before| {
        let cut = (before == 0 && reply.body.len() > 700).then_some(700);
        sent.fetch_add(if request.path.contains(BIG) { cut.unwrap_or(reply.body.len()) } else { 0 }, Ordering::SeqCst);
        Reply { cut, ..reply }
    });
    let ends: Vec<_> = server.seen().iter().filter(|r| r.path.contains(BIG)).filter_map(|r| r.range).collect();
    // Every byte after a cut is asked for at the very next one.
    assert!(ends.contains(&(700, 4095)) && ends.contains(&(1400, 4095)), "{ends:?}");
}

#[test]
fn every_request_cut_after_a_few_bytes_is_progress_still() {
    survives(|r, reply, _| if r.path.contains("resolve") { Reply { cut: Some(100), ..reply } } else { reply });
}

#[test]
fn a_server_that_never_sends_a_byte_is_given_up() {
    let (pull, ..) = through(|r, reply, _| if r.path.contains(BIG) { Reply { cut: Some(0), ..reply } } else { reply });
    assert!(pull.err().contains("broke off") || pull.err().contains("ended after 0 bytes"), "{}", pull.err());
}

#[test]
fn a_stalled_answer_is_asked_for_again_where_it_stopped() {
    let server = survives(|r, reply, before| match r.range {
        Some((4096, _)) if before == 0 => Reply { stall: Some((2000, Duration::from_secs(60))), ..reply },
        _ => reply,
    });
    assert!(server.seen().iter().any(|r| r.range == Some((4096 + 2000, 8191))), "{:#?}", server.seen());
}

#[test]
fn a_busy_server_is_waited_for_as_long_as_it_says() {
    let start = Instant::now();
    let server = survives(|r, reply, before| match r.range {
        Some((4096, _)) if before == 0 => Reply::status(429).with("Retry-After", "1"),
        _ => reply,
    });
    assert!(start.elapsed() >= Duration::from_secs(1));
    assert_eq!(server.seen().iter().filter(|r| r.range == Some((4096, 8191))).count(), 2);
}

#[test]
fn a_server_that_is_busy_for_hours_is_not_waited_for() {
    let start = Instant::now();
    let (pull, ..) = through(|_, reply, _| match reply.status {
        206 => Reply::status(429).with("Retry-After", "7200"),
        _ => reply,
    });
    assert!(pull.err().contains("asks to wait 7200 s"), "{}", pull.err());
    assert!(start.elapsed() < Duration::from_secs(60));
}

#[test]
fn errors_of_the_server_pass_or_are_told() {
    survives(|r, reply, before| if before < 2 && r.path.contains("resolve") { Reply::status(503) } else { reply });
    survives(|_, reply, before| if before == 0 { Reply::status(500) } else { reply }); // the list of files too
    let (pull, ..) = through(|r, reply, _| if r.path.contains("config.json") { Reply::status(502) } else { reply });
    assert!(pull.err().contains("config.json was answered with status 502"), "{}", pull.err());
}

#[test]
fn a_server_that_ignores_ranges_sends_the_file_once() {
    let server = survives(|request, reply, _| match reply.status {
        206 => part(
            Repo::usual().get(request.path.rsplit('/').next().unwrap()),
            &Request { range: None, ..request.clone() },
        ),
        _ => reply,
    });
    // At most one useless request of each thread, then one for all.
    assert!(server.seen().iter().filter(|r| r.path.contains(BIG)).count() <= 4, "{:#?}", server.seen());
}

#[test]
fn a_server_that_ignores_ranges_and_breaks_off_is_read_to_the_end() {
    survives(|request, reply, before| match reply.status {
        206 => {
            let whole = part(
                Repo::usual().get(request.path.rsplit('/').next().unwrap()),
                &Request { range: None, ..request.clone() },
            );
            Reply { cut: (before == 0).then_some(9000), ..whole }
        }
        _ => reply,
    });
}

#[test]
fn a_shorter_part_than_asked_for_is_taken_and_the_rest_asked_for() {
    survives(|_, reply, _| match reply.status {
        206 if reply.body.len() > 1000 => {
            let range = &reply.headers[0].1;
            let first: usize = range["bytes ".len()..].split('-').next().unwrap().parse().unwrap();
            let total = range.rsplit('/').next().unwrap();
            let headers = vec![("Content-Range".into(), format!("bytes {first}-{}/{total}", first + 999))];
            Reply { body: reply.body[..1000].into(), headers, ..reply }
        }
        _ => reply,
    });
}

#[test]
fn a_wrong_part_is_not_taken() {
    let wrong = |range: &'static str| {
        move |_: &Request, reply: Reply| match reply.status {
            206 => Reply { headers: vec![("Content-Range".into(), range.into())], ..reply },
            _ => reply,
        }
    };
    for range in ["bytes 1-4096/20992", "bytes 0-4095/20991", "bytes 0-99999/20992", "nonsense", ""] {
        let once = wrong(range);
        survives(move |r, reply, before| if before == 0 { once(r, reply) } else { reply });
    }
    let always = wrong("bytes 1-4096/20992");
    let (pull, ..) = through(move |r, reply, _| always(r, reply));
    assert!(pull.err().contains("were asked for, and `bytes 1-4096/20992` came"), "{}", pull.err());
}

#[test]
fn a_wrong_length_is_not_believed() {
    for difference in [-1, 1] {
        let wrong =
            move |reply: Reply| Reply { length: Some((reply.body.len() as isize + difference) as usize), ..reply };
        survives(move |r, reply, before| if before == 0 && r.path.contains("resolve") { wrong(reply) } else { reply });
        let (pull, ..) = through(move |r, reply, _| if r.path.contains("config") { wrong(reply) } else { reply });
        assert!(pull.err().contains("bytes long instead of 19"), "{}", pull.err());
    }
}
