//! A server that behaves.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use jevons_hub::{Cache, Choice, Event, Hub, HubError, State, Watch};
use tempfile::tempdir;

use crate::server::{COMMIT, Reply, Repo, Request, Server, assert_complete, options, pull, pull_with};

#[test]
fn a_pull_brings_what_is_needed_once_and_a_second_one_brings_nothing() {
    let (dir, repo) = (tempdir().unwrap(), Repo::usual());
    let served = repo.clone();
    let server = Server::start(move |r| served.reply(r));
    let first = pull(options(&server.url()), dir.path());
    assert_eq!(first.hosts.join(" "), server.address);
    assert_eq!(first.notices, [""; 0]);
    assert_eq!(first.done.len(), 5);
    let (summary, plan) = first.ok();
    assert_complete(dir.path(), &repo);
    assert_eq!((summary.fetched_bytes, plan.fetch_bytes), (plan.bytes, plan.bytes));
    assert_eq!(plan.weight_bytes(), 23 * 1024 + 512);
    assert_eq!(Cache::new(dir.path()).find(&"org/name".parse().unwrap()), Some(summary.folder));
    assert!(server.seen().iter().all(|r| !r.path.ends_with(".py") && !r.path.ends_with(".bin")));
    // 21 chunks by 4, 3 chunks by 4, two small files; the empty one needs no request.
    assert_eq!(server.file_requests(), 6 + 1 + 2);

    let (summary, plan) = pull(options(&server.url()), dir.path()).ok();
    assert_eq!((summary.fetched_bytes, plan.fetch_bytes, server.file_requests()), (0, 0, 9));
    assert!(plan.files.iter().all(|f| f.state == State::Present));
}

#[test]
fn a_pull_can_be_stopped_anywhere_and_the_next_one_fetches_only_the_rest() {
    for after in [1, 5, 9, 14, 20] {
        let (dir, repo) = (tempdir().unwrap(), Repo::usual());
        let served = repo.clone();
        let server = Server::start(move |r| served.reply(r));
        let (stop, came) = (AtomicBool::new(false), AtomicUsize::new(0));
        let watch = |event: Event<'_>| {
            if let Event::Fetched { .. } = event
                && came.fetch_add(1, Ordering::SeqCst) + 1 == after
            {
                stop.store(true, Ordering::SeqCst);
            }
        };
        let mut options = options(&server.url());
        (options.jobs, options.chunks_per_request) = (2, 1);
        let stopped = pull_with(options.clone(), dir.path(), &stop, false, &watch);
        assert!(matches!(stopped.result, Err(HubError::Interrupted)), "{after}: {:?}", stopped.result);
        assert!(!dir.path().join("models--org--name/refs/main").exists());
        let (summary, plan) = pull(options, dir.path()).ok();
        assert_complete(dir.path(), &repo);
        assert!(plan.fetch_bytes < plan.bytes, "{after}: all came again");
        assert_eq!(summary.fetched_bytes, plan.fetch_bytes);
    }
}

#[test]
fn a_killed_pull_leaves_torn_notes_that_cost_one_chunk() {
    let (dir, repo) = (tempdir().unwrap(), Repo::usual());
    let served = repo.clone();
    let server = Server::start(move |r| served.reply(r));
    pull(options(&server.url()), dir.path()).ok();
    // As if it had been killed while the last line was on its way to the disk.
    let folder = dir.path().join("models--org--name");
    let hash = crate::server::published(repo.get("model-00001-of-00002.safetensors"));
    fs::rename(folder.join("blobs").join(&hash), folder.join(format!(".jevons/{hash}.incomplete"))).unwrap();
    let table = fs::read(folder.join(format!(".jevons/{hash}.chunks"))).unwrap();
    fs::write(folder.join(format!(".jevons/{hash}.journal")), &table[..table.len() - 30]).unwrap();
    let (summary, plan) = pull(options(&server.url()), dir.path()).ok();
    assert_complete(dir.path(), &repo);
    assert_eq!((summary.fetched_bytes, plan.fetch_bytes), (512, 512));
    assert!(plan.files.iter().any(|f| f.state == State::Begun { missing: 512 }));
}

#[test]
fn what_another_tool_has_fetched_is_verified_once_and_used() {
    let (dir, repo) = (tempdir().unwrap(), Repo::usual());
    let served = repo.clone();
    let server = Server::start(move |r| served.reply(r));
    pull(options(&server.url()), dir.path()).ok();
    fs::remove_dir_all(dir.path().join("models--org--name/.jevons")).unwrap();
    let before = server.file_requests();
    let hashed = AtomicUsize::new(0);
    let count = |event: Event<'_>| {
        if let Event::Hashed { .. } = event {
            hashed.fetch_add(1, Ordering::SeqCst);
        }
    };
    let again = || pull_with(options(&server.url()), dir.path(), &AtomicBool::new(false), false, &count).ok();
    again();
    assert_complete(dir.path(), &repo);
    let n = hashed.load(Ordering::SeqCst);
    again();
    assert_eq!((n > 0, hashed.load(Ordering::SeqCst) - n, server.file_requests()), (true, 0, before));
}

#[test]
fn patterns_choose_files_and_a_revision_is_remembered_under_its_name() {
    let (dir, repo) = (tempdir().unwrap(), Repo::usual());
    let server = Server::start(move |r| match &*r.path {
        "/api/models/org/name/revision/refs%2Fpr%2F1?blobs=true" => Reply::json(repo.listing()),
        _ => repo.reply(r),
    });
    let stop = AtomicBool::new(false);
    let watch = Watch { on_event: &|_| (), stop: &stop };
    let hub = Hub::new(options(&server.url()), Cache::new(dir.path()), watch).unwrap();
    let spec = "org/name@refs/pr/1".parse().unwrap();
    let listing = hub.listing(&spec).unwrap();
    let choice = Choice::new(&["*.json".into(), "*.md".into(), "*.py".into()], &["READ*".into()]).unwrap();
    let plan = hub.plan(&listing, &choice, false).unwrap();
    assert!(!dir.path().join("models--org--name").exists(), "a plan writes nothing");
    assert_eq!((plan.files.len(), plan.barred), (1, 1));
    hub.fetch(&plan, &hub.lock(&spec.repo).unwrap()).unwrap();
    let ref_file = dir.path().join("models--org--name/refs/refs/pr/1");
    assert_eq!(fs::read_to_string(ref_file).unwrap(), COMMIT);
    assert_eq!(hub.cache().find(&spec), Some(plan.folder));
    assert_eq!(hub.small_file(&listing, "config.json", 1000).unwrap().unwrap(), br#"{"model_type": "x"}"#);
    assert_eq!(hub.small_file(&listing, "none.json", 1000).unwrap(), None);
    assert!(matches!(hub.small_file(&listing, "config.json", 5), Err(HubError::TooLarge { .. })));
}

#[test]
fn files_with_the_same_bytes_come_once() {
    let (dir, mut repo) = (tempdir().unwrap(), Repo::usual());
    let weights = repo.get("model-00002-of-00002.safetensors").to_vec();
    repo.0.push(("LICENSE".into(), weights));
    repo.0.push(("vocab.json".into(), vec![]));
    let served = repo.clone();
    let server = Server::start(move |r| served.reply(r));
    let (summary, plan) = pull(options(&server.url()), dir.path()).ok();
    assert_complete(dir.path(), &repo);
    assert_eq!((plan.bytes - plan.fetch_bytes, summary.fetched_bytes), (3 * 1024, plan.fetch_bytes));
    assert_eq!(pull(options(&server.url()), dir.path()).ok().0.files.len(), 7);
}

#[test]
fn what_another_tool_has_finished_meanwhile_is_not_fetched_again() {
    let (dir, repo) = (tempdir().unwrap(), Repo::usual());
    let served = repo.clone();
    let server = Server::start(move |r| served.reply(r));
    pull(options(&server.url()), dir.path()).ok();
    let folder = dir.path().join("models--org--name/.jevons");
    let hash = crate::server::published(repo.get("model-00002-of-00002.safetensors"));
    fs::rename(folder.join(format!("{hash}.chunks")), folder.join(format!("{hash}.journal"))).unwrap();
    fs::write(folder.join(format!("{hash}.incomplete")), "part").unwrap();
    let (summary, _) = pull(options(&server.url()), dir.path()).ok();
    assert_eq!(summary.fetched_bytes, 0);
    assert_complete(dir.path(), &repo);
}

#[test]
fn a_hub_may_live_under_a_path_of_its_host() {
    let (dir, repo) = (tempdir().unwrap(), Repo::usual());
    let served = repo.clone();
    let server = Server::start(move |r| match r.path.strip_prefix("/mirror/hub") {
        Some(path) => served.reply(&Request { path: path.into(), ..r.clone() }),
        None => Reply::status(500),
    });
    pull(options(&format!("{}/mirror/hub/", server.url())), dir.path()).ok();
    assert_complete(dir.path(), &repo);
}

#[test]
fn two_pulls_of_one_model_take_turns() {
    let (dir, repo) = (tempdir().unwrap(), Repo::usual());
    let (served, slow) = (repo.clone(), Arc::new(AtomicBool::new(true)));
    let server = Server::start(move |r| {
        if slow.swap(false, Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(50));
        }
        served.reply(r)
    });
    let pulls = thread::scope(|scope| {
        let pulls: Vec<_> = (0..3).map(|_| scope.spawn(|| pull(options(&server.url()), dir.path()))).collect();
        pulls.into_iter().map(|p| p.join().unwrap().ok().0.fetched_bytes).collect::<Vec<_>>()
    });
    assert_complete(dir.path(), &repo);
    assert_eq!(pulls.iter().filter(|n| **n > 0).count(), 1, "{pulls:?}");
}

#[test]
fn a_full_disk_is_seen_before_the_first_byte() {
    let (dir, mut repo) = (tempdir().unwrap(), Repo::usual());
    repo.0.push(("model.safetensors".into(), vec![1; 2000]));
    let listing = repo.listing().replace(r#""size":2000,"pointerSize""#, r#""size":9000000000000,"pointerSize""#);
    let server =
        Server::start(move |r| if r.path.starts_with("/api/") { Reply::json(&*listing) } else { repo.reply(r) });
    let pull = pull(options(&server.url()), dir.path());
    // Nine terabytes
    assert!(pull.err().contains("would have") || pull.err().contains("make room"), "{}", pull.err());
    assert_eq!(server.file_requests(), 0);
}
