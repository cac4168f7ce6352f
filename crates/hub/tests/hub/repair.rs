//! Wrong bytes, on the disk and on the way: only the bad part comes again.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use jevons_hub::State;
use tempfile::tempdir;

use crate::server::{Reply, Repo, Request, Server, assert_complete, options, published, pull, pull_with};

const BIG: &str = "model-00001-of-00002.safetensors";

fn good() -> (Server, Repo) {
    let repo = Repo::usual();
    let served = repo.clone();
    (Server::start(move |r| served.reply(r)), repo)
}

fn blob(cache: &Path, repo: &Repo) -> PathBuf {
    cache.join("models--org--name/blobs").join(published(repo.get(BIG)))
}

/// Changes a finished file without changing its time, as a disk does.
fn damage(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let time = fs::metadata(path).unwrap().modified().unwrap();
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
    fs::File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
}

#[test]
fn a_damaged_file_is_found_by_verify_and_only_its_bad_chunks_come_again() {
    let ((server, repo), dir) = (good(), tempdir().unwrap());
    pull(options(&server.url()), dir.path()).ok();
    damage(&blob(dir.path(), &repo), |bytes| {
        bytes[5000] ^= 1; // chunk 4
        bytes[20_991] ^= 1; // the last half chunk
    });
    // Without --verify it is trusted: reading everything each time would take minutes for a large model.
    assert_eq!(pull(options(&server.url()), dir.path()).ok().0.fetched_bytes, 0);
    let open = fs::File::open(blob(dir.path(), &repo)).unwrap();
    let verified = pull_with(options(&server.url()), dir.path(), &AtomicBool::new(false), true, &|_| ());
    assert!(verified.notices.iter().any(|n| n.contains("damaged; 1536 bytes come again")), "{:?}", verified.notices);
    let (summary, plan) = verified.ok();
    assert!(plan.files.iter().any(|f| f.state == State::Damaged { missing: 1536 }));
    assert_eq!(summary.fetched_bytes, 1536);
    assert_complete(dir.path(), &repo);
    // Whoever had the old file open, or mapped, still sees the old one.
    let mut old = Vec::new();
    std::io::Read::read_to_end(&mut { open }, &mut old).unwrap();
    assert_ne!(old, repo.get(BIG));
}

#[test]
fn a_file_cut_short_or_grown_is_found_without_verify() {
    for (change, again) in [
        ((|b: &mut Vec<u8>| b.truncate(19_000)) as fn(&mut Vec<u8>), 2048 + 512),
        (|b| b.push(0), 0),
        (|b| b.clear(), 20_992),
    ] {
        let ((server, repo), dir) = (good(), tempdir().unwrap());
        pull(options(&server.url()), dir.path()).ok();
        damage(&blob(dir.path(), &repo), change);
        assert_eq!(pull(options(&server.url()), dir.path()).ok().0.fetched_bytes, again);
        assert_complete(dir.path(), &repo);
    }
}

#[test]
fn an_interrupted_repair_goes_on() {
    let ((server, repo), dir) = (good(), tempdir().unwrap());
    pull(options(&server.url()), dir.path()).ok();
    damage(&blob(dir.path(), &repo), |bytes| bytes[2048..10_240].fill(0));
    let (stop, n) = (AtomicBool::new(false), AtomicUsize::new(0));
    let stopped = pull_with(options(&server.url()), dir.path(), &stop, true, &|event| {
        if let jevons_hub::Event::Fetched { .. } = event
            && n.fetch_add(1, Ordering::SeqCst) == 0
        {
            stop.store(true, Ordering::SeqCst);
        }
    });
    assert!(stopped.result.is_err());
    let (summary, _) = pull(options(&server.url()), dir.path()).ok();
    assert!(summary.fetched_bytes <= 8192);
    assert_complete(dir.path(), &repo);
}

#[test]
fn a_damaged_file_of_another_tool_comes_again() {
    let ((server, repo), dir) = (good(), tempdir().unwrap());
    pull(options(&server.url()), dir.path()).ok();
    fs::remove_dir_all(dir.path().join("models--org--name/.jevons")).unwrap();
    damage(&blob(dir.path(), &repo), |bytes| bytes[0] ^= 1);
    assert_eq!(pull(options(&server.url()), dir.path()).ok().0.fetched_bytes, 20_992);
    assert_complete(dir.path(), &repo);
}

#[test]
fn bytes_that_a_power_cut_took_from_an_unfinished_file_come_again_alone() {
    let ((server, repo), dir) = (good(), tempdir().unwrap());
    pull(options(&server.url()), dir.path()).ok();
    let (folder, hash) = (dir.path().join("models--org--name"), published(repo.get(BIG)));
    let incomplete = folder.join(format!(".jevons/{hash}.incomplete"));
    fs::rename(folder.join("blobs").join(&hash), &incomplete).unwrap();
    fs::rename(folder.join(format!(".jevons/{hash}.chunks")), folder.join(format!(".jevons/{hash}.journal"))).unwrap();
    damage(&incomplete, |bytes| bytes[3072..4096].fill(0));
    let resumed = pull(options(&server.url()), dir.path());
    assert!(resumed.notices.iter().any(|n| n.contains("1 parts come again")), "{:?}", resumed.notices);
    assert_eq!(resumed.ok().0.fetched_bytes, 1024);
    assert_complete(dir.path(), &repo);
}

/// A pull from a server that changes a byte of what it sends for a file: `bad` is told which chunk, and how often that
/// was asked for before.
fn bytes_wrong(
    path: &'static str,
    bad: impl Fn(usize, usize) -> bool + Send + Sync + 'static,
) -> (crate::server::Pull, tempfile::TempDir, Server) {
    let (dir, repo) = (tempdir().unwrap(), Repo::usual());
    let asked = Mutex::new(vec![0; 32]);
    let server = Server::start(move |request: &Request| {
        let mut reply: Reply = repo.reply(request);
        if request.path.ends_with(path) && reply.status < 300 {
            let first = request.range.map_or(0, |(first, _)| first);
            let mut asked = asked.lock().unwrap();
            for chunk in first / 1024..(first + reply.body.len()).div_ceil(1024) {
                if bad(chunk, asked[chunk]) {
                    reply.body[(chunk * 1024).saturating_sub(first)] ^= 1;
                }
                asked[chunk] += 1;
            }
        }
        reply
    });
    (pull(options(&server.url()), dir.path()), dir, server)
}

#[test]
fn a_chunk_that_came_wrong_is_found_and_replaced_and_the_search_ends_there() {
    let (pull, dir, server) = bytes_wrong(BIG, |chunk, before| chunk == 6 && before == 0);
    assert!(pull.notices.iter().any(|n| n.contains("looking for the part that came wrong")), "{:?}", pull.notices);
    // Chunks 0 to 6 came again, the bad one twice.
    assert_eq!(
        pull.ok().0.fetched_bytes,
        Repo::usual().0.iter().take(5).map(|f| f.1.len() as u64).sum::<u64>() + 8 * 1024
    );
    assert_complete(dir.path(), &Repo::usual());
    assert!(server.file_requests() < 20);
}

#[test]
fn many_chunks_that_came_wrong_are_all_found() {
    let (pull, dir, _) = bytes_wrong(BIG, |chunk, before| chunk.is_multiple_of(2) && before == 0);
    pull.ok();
    assert_complete(dir.path(), &Repo::usual());
}

#[test]
fn a_chunk_that_comes_wrong_now_and_then_is_decided_by_two_to_one() {
    let (pull, dir, _) = bytes_wrong(BIG, |chunk, before| (chunk == 3 && before == 1) || (chunk == 9 && before == 0));
    pull.ok();
    assert_complete(dir.path(), &Repo::usual());
}

#[test]
fn a_server_that_always_sends_another_file_is_given_up_and_nothing_is_put_in_place() {
    for path in [BIG, "config.json"] {
        let (pull, dir, server) = bytes_wrong(path, |chunk, _| chunk == 0);
        let error = pull.err();
        assert!(error.contains(path) && error.contains("the hub publishes") && error.contains("makers"), "{error}");
        let folder = dir.path().join("models--org--name");
        assert!(!folder.join("blobs").join(published(Repo::usual().get(path))).exists());
        assert!(!folder.join("refs/main").exists());
        assert!(server.file_requests() < 100, "bounded");
    }
}
