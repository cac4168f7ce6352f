//! Fetching a model through the binary, from a hub on this machine.

#[path = "cli/common.rs"]
#[allow(dead_code)]
mod common;
#[path = "../../hub/tests/hub/server.rs"]
#[allow(dead_code)]
mod server;

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use common::{Run, add_tokenizer, command, finish, jevons, write_model};
use server::{COMMIT, Reply, Repo, Server, noise, published};
use tempfile::tempdir;

/// `jevons` that knows the hub.
fn online(dir: &Path, hub: &Server, args: &[&str]) -> Run {
    let mut command = command(dir, args);
    command.env("HF_ENDPOINT", hub.url());
    finish(command, "")
}

/// A hub with a model that runs, and a folder for the user's home.
fn a_model() -> (tempfile::TempDir, Server, Repo) {
    let dir = tempdir().unwrap();
    let folder = dir.path().join("source");
    write_model(&folder);
    add_tokenizer(&folder);
    let names = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];
    let repo = Repo(names.map(|name| (name.into(), fs::read(folder.join(name)).unwrap())).into());
    fs::remove_dir_all(folder).unwrap();
    let served = repo.clone();
    (dir, Server::start(move |r| served.reply(r)), repo)
}

#[test]
fn a_model_is_fetched_used_listed_shown_and_deleted() {
    let (dir, hub, repo) = a_model();
    let dir = dir.path();
    let cache = dir.join(".cache/huggingface/hub");

    let planned = online(dir, &hub, &["pull", "org/name", "--dry-run"]);
    assert!(planned.err.contains(&format!("connecting to {}", hub.address)), "{}", planned.err);
    let planned = planned.ok();
    assert!(planned.contains("absent   model.safetensors") && planned.contains("it fits"), "{planned}");
    let plan = online(dir, &hub, &["pull", "org/name", "--dry-run", "--json"]).json();
    let bytes: usize = repo.0.iter().map(|(_, bytes)| bytes.len()).sum();
    assert_eq!((&plan["fetch_bytes"], &plan["memory"]["verdict"]), (&bytes.into(), &"fits".into()));
    assert!(!cache.exists(), "a dry run writes nothing");

    let pulled = online(dir, &hub, &["pull", "org/name"]);
    assert!(
        pulled.err.contains("commit cccccccccccc: 4 files") && pulled.err.contains("speed: at most"),
        "{}",
        pulled.err
    );
    let pulled = pulled.ok();
    assert!(pulled.contains("4 files in place and verified") && pulled.contains("jevons chat org/name"), "{pulled}");
    server::assert_complete(&cache, &repo);

    // Now nobody needs the hub any more.
    drop(hub);
    jevons(dir, &["chat", "org/name", "--prompt", "the cat", "--max-new-tokens", "3"]).ok();
    jevons(dir, &["generate", "org/name@main", "the cat", "--max-new-tokens", "3"]).ok();
    jevons(dir, &["score", &format!("org/name@{COMMIT}"), "--text", "the cat and the hat"]).ok();
    assert!(jevons(dir, &["info", "org/name"]).ok().contains("deepseek_v3"));
    assert!(jevons(dir, &["tokenizer", "encode", "org/name", "the cat"]).ok().starts_with('['));

    let list = jevons(dir, &["list"]).ok();
    assert!(list.contains("org/name  main"), "{list}");
    let list = jevons(dir, &["list", "--json"]).json();
    assert_eq!((&list["models"][0]["model"], &list["models"][0]["bytes"]), (&"org/name".into(), &bytes.into()));
    let show = jevons(dir, &["show", "org/name"]).ok();
    assert!(show.contains(&format!("{COMMIT} main")) && show.contains("tokenizer_config.json"), "{show}");
    let show = jevons(dir, &["show", "org/name@main", "--json"]).json();
    assert_eq!(show["revisions"][0]["files"][1]["hash"], published(repo.get("model.safetensors")));

    let asked = jevons(dir, &["rm", "org/name"]).fails(1);
    assert!(asked.contains("jevons rm --yes org/name"), "{asked}");
    assert!(jevons(dir, &["rm", "--yes", "org/name"]).ok().contains("org/name deleted"));
    assert!(!cache.join("models--org--name").exists());
    assert!(jevons(dir, &["rm", "--yes", "org/name"]).fails(1).contains("not in the cache"));
    assert!(jevons(dir, &["show", "org/name"]).fails(1).contains("not in the cache"));
    assert!(jevons(dir, &["list"]).err.contains("no models in"));
}

#[test]
fn a_model_that_is_not_here_is_told_with_the_command_that_fetches_it() {
    let dir = tempdir().unwrap();
    let commands: [&[&str]; 6] = [
        &["chat", "org/name"],
        &["chat", "org/name", "--prompt", "hi"],
        &["generate", "org/name", "hi"],
        &["score", "org/name", "--text", "hi"],
        &["info", "org/name"],
        &["tokenizer", "encode", "org/name", "hi"],
    ];
    for args in commands {
        let error = jevons(dir.path(), args).fails(1);
        assert!(error.contains("this fetches it: jevons pull org/name"), "{args:?}: {error}");
    }
    // A folder of that name comes first.
    write_model(&dir.path().join("org/name"));
    jevons(dir.path(), &["info", "org/name"]).ok();
}

#[test]
fn wrong_arguments_of_pull_are_refused_before_anything_is_asked() {
    let dir = tempdir().unwrap();
    let refused = |args: &[&str], code, words: &str| {
        let error = jevons(dir.path(), args).fails(code);
        assert!(error.contains(words), "{args:?}: {error}");
    };
    refused(&["pull", "name"], 2, "expected org/name");
    refused(&["pull", "../x/y"], 2, "expected org/name");
    refused(&["pull", "org/name@../x"], 2, "no name of a revision");
    refused(&["pull", "org/name@a", "--revision", "b"], 1, "two revisions");
    refused(&["pull", "org/name", "--jobs", "0"], 2, "--jobs");
    refused(&["pull", "org/name", "--include", "[a]"], 1, "only * and ?");
    let set = |name: &str, value: &str| {
        let mut command = command(dir.path(), &["pull", "org/name"]);
        command.env(name, value);
        finish(command, "").fails(1)
    };
    assert!(set("HF_HUB_OFFLINE", "1").contains("HF_HUB_OFFLINE is set"));
    assert!(set("HF_ENDPOINT", "nonsense").contains("cannot be a hub's address"));
    let error = set("HF_TOKEN", "se cret");
    assert!(error.contains("HF_TOKEN holds characters") && !error.contains("cret"), "{error}");
}

/// A hub whose one file, of three chunks, breaks off silently in the second one as long as the switch is on.
fn a_slow_hub() -> (Server, Repo, Arc<AtomicBool>) {
    let repo = Repo(vec![("model.safetensors".into(), noise(9 << 20, 7))]);
    let (served, slow) = (repo.clone(), Arc::new(AtomicBool::new(true)));
    let switch = slow.clone();
    let hub = Server::start(move |request| {
        let reply = served.reply(request);
        let stalls = slow.load(Ordering::SeqCst) && request.path.contains("resolve");
        Reply { stall: stalls.then_some((5 << 20, Duration::from_secs(20))), ..reply }
    });
    (hub, repo, switch)
}

/// Starts a pull and waits until the first chunk is noted.
fn begin(dir: &Path, hub: &Server, repo: &Repo) -> std::process::Child {
    let mut command = command(dir, &["pull", "org/name"]);
    let mut child = command.env("HF_ENDPOINT", hub.url()).spawn().unwrap();
    let hash = published(repo.get("model.safetensors"));
    let journal = dir.join(format!(".cache/huggingface/hub/models--org--name/.jevons/{hash}.journal"));
    for _ in 0..1000 {
        if fs::read_to_string(&journal).is_ok_and(|text| text.lines().count() == 2) {
            return child;
        }
        thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    panic!("no chunk came: {:?}", child.wait_with_output());
}

fn goes_on(dir: &Path, hub: &Server, repo: &Repo, switch: &AtomicBool) {
    switch.store(false, Ordering::SeqCst);
    assert!(jevons(dir, &["list"]).ok().contains("incomplete, this goes on: jevons pull org/name"));
    let summary = online(dir, hub, &["pull", "org/name", "--json"]).json();
    assert_eq!((&summary["fetched_bytes"], &summary["files"][0]["was"]), (&(5 << 20).into(), &"begun".into()));
    assert_eq!(hub.seen().last().unwrap().range, Some((4 << 20, (9 << 20) - 1)));
    server::assert_complete(&dir.join(".cache/huggingface/hub"), repo);
}

#[test]
fn a_pull_that_was_killed_goes_on_where_it_was() {
    let (dir, (hub, repo, switch)) = (tempdir().unwrap(), a_slow_hub());
    let mut child = begin(dir.path(), &hub, &repo);
    child.kill().unwrap(); // SIGKILL
    child.wait().unwrap();
    goes_on(dir.path(), &hub, &repo, &switch);
}

#[cfg(unix)]
#[test]
fn ctrl_c_stops_a_pull_even_if_the_hub_is_silent_and_says_how_to_go_on() {
    let (dir, (hub, repo, switch)) = (tempdir().unwrap(), a_slow_hub());
    let child = begin(dir.path(), &hub, &repo);
    let kill = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.contains("what has come is kept, and this goes on from there: jevons pull org/name"), "{said}");
    goes_on(dir.path(), &hub, &repo, &switch);
}

#[test]
fn verify_repairs_a_damaged_model_with_the_bad_part_only() {
    let (dir, (hub, repo, switch)) = (tempdir().unwrap(), a_slow_hub());
    switch.store(false, Ordering::SeqCst);
    online(dir.path(), &hub, &["pull", "org/name"]).ok();
    let cache = dir.path().join(".cache/huggingface/hub");
    let blob = cache.join("models--org--name/blobs").join(published(repo.get("model.safetensors")));
    let mut bytes = fs::read(&blob).unwrap();
    bytes[(9 << 20) - 1] ^= 0x10;
    fs::write(&blob, bytes).unwrap();
    let run = online(dir.path(), &hub, &["pull", "org/name", "--verify", "--json"]);
    assert!(run.err.contains("damaged; 1048576 bytes come again"), "{}", run.err);
    let summary = run.json();
    assert_eq!((&summary["fetched_bytes"], &summary["files"][0]["was"]), (&(1 << 20).into(), &"damaged".into()));
    server::assert_complete(&cache, &repo);
}
