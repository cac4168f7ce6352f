//! Rows survive kill -9, tampering is found wherever it is done, and phases add up.

use std::{
    env,
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
    time::Duration,
};

use super::*;
use crate::{
    grade::{Energy, Grade},
    meter::{Meter, Options},
};

fn entry(n: u64) -> Entry {
    Entry {
        at_ms: 1_795_426_219_000 + n as i64,
        run: format!("{:016x}", n / 7),
        request: n.is_multiple_of(3).then_some(n),
        kind: Kind::Phase(Phase::ALL[(n % 10) as usize]),
        command: "test".into(),
        tenant: n.is_multiple_of(5).then(|| "somebody".into()),
        model: n.is_multiple_of(2).then(|| "m".repeat(64)),
        work: Work { tokens: n, cached_tokens: n / 2, flop: Some(n as f64 * 1e9), bytes: None },
        seconds: n as f64 * 0.1,
        energy: (!n.is_multiple_of(4)).then(|| Energy::new(n as f64 * 0.3, Grade::E)),
        unknown_s: 0.0,
        own_cpu_s: Some(0.0),
        busy_cpu_s: None,
        boundary: "nothing: test".into(),
    }
}

fn ledger(rows: u64) -> (tempfile::TempDir, Ledger) {
    let dir = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(dir.path().join("deep/er/ledger.sqlite")).unwrap();
    let entries: Vec<_> = (1..=rows).map(entry).collect();
    ledger.append(&entries).unwrap();
    (dir, ledger)
}

#[test]
fn rows_come_back_as_they_were_written() {
    let (_dir, ledger) = ledger(50);
    let rows = ledger.rows().unwrap();
    assert_eq!(rows.iter().map(|r| r.entry.clone()).collect::<Vec<_>>(), (1..=50).map(entry).collect::<Vec<_>>());
    assert_eq!((rows[0].seq, rows[49].seq), (1, 50));
    let verdict = ledger.verify().unwrap();
    assert!(verdict.intact() && verdict.rows == 50, "{verdict:?}");
    drop(ledger.path().to_owned());
}

#[cfg(unix)]
#[test]
fn only_the_owner_can_read_the_ledger() {
    use std::os::unix::fs::PermissionsExt;
    let (_dir, ledger) = ledger(1);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(ledger.path()), mode(ledger.path().parent().unwrap())), (0o600, 0o700));
}

#[test]
fn a_row_cannot_be_changed_or_removed_by_plain_sql() {
    let (_dir, ledger) = ledger(3);
    for sql in ["UPDATE entry SET joules = 0", "DELETE FROM entry WHERE seq = 3"] {
        assert!(ledger.db.execute(sql, []).unwrap_err().to_string().contains("only ever added"), "{sql}");
    }
    assert!(ledger.verify().unwrap().intact());
}

/// Someone with the SQLite shell, who removes the triggers first.
fn tamper(ledger: &Ledger, sql: &str) -> Verdict {
    ledger
        .db
        .execute_batch("DROP TRIGGER IF EXISTS entry_is_never_changed; DROP TRIGGER IF EXISTS entry_is_never_removed;")
        .unwrap();
    ledger.db.execute_batch(sql).unwrap();
    ledger.verify().unwrap()
}

#[test]
fn tampering_with_any_field_of_any_row_is_found_at_its_row() {
    let (_dir, ledger) = ledger(12);
    let columns = [
        "at_ms = at_ms + 1",
        "run = 'x' || run",
        "request = coalesce(request, 0) + 1",
        "kind = CASE kind WHEN 'eval' THEN 'train' ELSE 'eval' END",
        "command = 'other'",
        "tenant = coalesce(tenant, '') || 'x'",
        "model = coalesce(model, '') || 'x'",
        "tokens = tokens + 1",
        "cached_tokens = cached_tokens + 1",
        "flop = coalesce(flop, 0) + 1",
        "bytes = coalesce(bytes, 0) + 1",
        "seconds = seconds + 1e-9",
        "joules = coalesce(joules, 0) + 1e-9, uncertainty_j = coalesce(uncertainty_j, 0), grade = coalesce(grade, 'A')",
        "uncertainty_j = coalesce(uncertainty_j, 0) + 1, joules = coalesce(joules, 0), grade = coalesce(grade, 'A')",
        "grade = CASE grade WHEN 'A' THEN 'B' ELSE 'A' END, joules = coalesce(joules, 0), uncertainty_j = coalesce(uncertainty_j, 0)",
        "unknown_s = unknown_s + 1",
        "own_cpu_s = NULL",
        "busy_cpu_s = 1",
        "boundary = boundary || ' '",
        "hash = zeroblob(32)",
        "hash = x'00'",
        "joules = NULL, grade = 'B'",
        "kind = 'nonsense'",
        "tokens = -1",
        "joules = 9e999, uncertainty_j = 0, grade = 'A'",
    ];
    for change in columns {
        for row in 1..=12 {
            ledger.db.execute_batch("BEGIN").unwrap();
            let verdict = tamper(&ledger, &format!("UPDATE entry SET {change} WHERE seq = {row}"));
            ledger.db.execute_batch("ROLLBACK").unwrap();
            let first = verdict.problems.first().unwrap_or_else(|| panic!("{change} of row {row} was not found"));
            assert!(first.starts_with(&format!("row {row}")), "{change}: {first}");
        }
    }
    assert!(ledger.verify().unwrap().intact());
}

#[test]
fn rows_that_are_removed_inserted_or_swapped_are_found() {
    for sql in [
        "DELETE FROM entry WHERE seq = 1",
        "DELETE FROM entry WHERE seq = 5",
        "DELETE FROM entry WHERE seq = 12",
        "DELETE FROM entry",
        "DELETE FROM entry WHERE seq = 12; UPDATE tip SET seq = 11",
        "DELETE FROM tip",
        "UPDATE entry SET seq = 99 WHERE seq = 12",
        "UPDATE entry SET seq = -seq WHERE seq IN (3, 4); UPDATE entry SET seq = 7 + seq WHERE seq < 0",
        "INSERT INTO entry SELECT 13, at_ms, run, request, kind, command, tenant, model, tokens, cached_tokens, flop, bytes, seconds, joules, \
         uncertainty_j, grade, unknown_s, own_cpu_s, busy_cpu_s, boundary, hash FROM entry WHERE seq = 12",
    ] {
        let (_dir, ledger) = ledger(12);
        assert!(!tamper(&ledger, sql).intact(), "{sql}");
    }
}

#[test]
fn a_forged_chain_has_another_head() {
    let (_dir, ledger) = ledger(5);
    let (_other, forged) = self::ledger(4);
    assert_ne!(ledger.verify().unwrap().head, forged.verify().unwrap().head);
}

#[test]
fn phases_that_do_not_add_up_to_their_run_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(dir.path().join("l")).unwrap();
    let phase = Entry { run: "r".into(), request: None, energy: Some(Energy::new(2.0, Grade::B)), ..entry(1) };
    let run = Entry { kind: Kind::Run, energy: Some(Energy::new(6.0, Grade::B)), ..phase.clone() };
    ledger.append(&[phase.clone(), phase.clone(), phase.clone(), run]).unwrap();
    assert!(ledger.verify().unwrap().intact());
    let wrong =
        Entry { kind: Kind::Run, energy: Some(Energy::new(2.0 + 1e-8, Grade::B)), run: "s".into(), ..phase.clone() };
    ledger.append(&[Entry { run: "s".into(), ..phase }, wrong]).unwrap();
    let verdict = ledger.verify().unwrap();
    assert!(verdict.problems.len() == 1 && verdict.problems[0].contains("add up"), "{verdict:?}");
}

#[test]
fn numbers_that_are_none_are_refused_and_nothing_is_added() {
    let (_dir, mut ledger) = ledger(2);
    for bad in [f64::NAN, f64::INFINITY, -1.0] {
        let rows = [entry(3), Entry { seconds: bad, ..entry(4) }];
        assert!(matches!(ledger.append(&rows), Err(LedgerError::Number { field: "seconds", .. })));
    }
    assert_eq!(ledger.verify().unwrap().rows, 2);
}

#[test]
fn counts_that_the_file_cannot_hold_are_refused() {
    let (_dir, mut ledger) = ledger(1);
    let tokens = Entry { work: Work { tokens: u64::MAX, ..Work::default() }, ..entry(2) };
    assert!(matches!(ledger.append(&[tokens]), Err(LedgerError::Number { field: "tokens", .. })));
    let request = Entry { request: Some(1 << 63), ..entry(2) };
    assert!(matches!(ledger.append(&[request]), Err(LedgerError::Number { field: "request", .. })));
}

#[test]
fn files_of_others_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    fs::write(&path, "this is a text of more than a hundred bytes, which SQLite must not take for a file of its own, whatever it says").unwrap();
    assert!(matches!(Ledger::open(&path), Err(LedgerError::NotALedger { .. })));
    fs::remove_file(&path).unwrap();
    Connection::open(&path).unwrap().execute_batch("CREATE TABLE mine (x)").unwrap();
    assert!(matches!(Ledger::open(&path), Err(LedgerError::NotALedger { .. })));
    assert!(matches!(Ledger::open_existing(dir.path().join("none")), Err(LedgerError::Missing { .. })));
    assert!(Ledger::open(dir.path()).is_err());
    let newer = dir.path().join("newer");
    drop(Ledger::open(&newer).unwrap());
    Connection::open(&newer).unwrap().pragma_update(None, "user_version", 2).unwrap();
    assert!(Ledger::open(&newer).unwrap_err().to_string().contains("version 2"));
}

#[test]
fn a_file_cut_anywhere_is_an_error_or_a_finding_and_never_a_panic() {
    let (_dir, ledger) = ledger(40);
    let path = ledger.path().to_owned();
    drop(ledger);
    let bytes = fs::read(&path).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let cut = dir.path().join("cut");
    for length in (0..bytes.len()).step_by(997) {
        fs::write(&cut, &bytes[..length]).unwrap();
        if let Ok(ledger) = Ledger::open_existing(&cut) {
            assert!(length == 0 || ledger.verify().is_ok_and(|v| !v.intact()) || ledger.verify().is_err(), "{length}");
        }
    }
    let mut random = 1_u64;
    for _ in 0..200 {
        let mut damaged = bytes.clone();
        for _ in 0..4 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let at = (random >> 20) as usize % damaged.len();
            damaged[at] ^= (random >> 60) as u8 | 1;
        }
        fs::write(&cut, &damaged).unwrap();
        let _ = Ledger::open_existing(&cut).and_then(|ledger| ledger.verify());
    }
}

#[test]
fn several_programs_append_to_one_chain() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("l");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut ledger = Ledger::open(&path).unwrap();
                for n in 1..=25 {
                    ledger.append(&[entry(n)]).unwrap();
                }
            });
        }
    });
    let verdict = Ledger::open(&path).unwrap().verify().unwrap();
    assert!(verdict.intact() && verdict.rows == 100, "{verdict:?}");
}

#[test]
fn several_programs_may_make_the_ledger_at_the_same_moment() {
    for _ in 0..20 {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/l");
        std::thread::scope(|scope| {
            for n in 1..=4 {
                let path = &path;
                scope.spawn(move || Ledger::open(path).unwrap().append(&[entry(n)]).unwrap());
            }
        });
        let verdict = Ledger::open(&path).unwrap().verify().unwrap();
        assert!(verdict.intact() && verdict.rows == 4, "{verdict:?}");
    }
}

/// The child of the tests below: appends rows one by one and tells each number once its row is acknowledged.
#[test]
fn child() {
    let Some(path) = env::var_os("JEVONS_TEST_KILL_LEDGER") else { return };
    let mut ledger = Ledger::open(path).unwrap();
    let mut seq = ledger.verify().unwrap().rows;
    let mut out = std::io::stdout();
    loop {
        seq += 1;
        ledger.append(&[entry(seq)]).unwrap();
        writeln!(out, "ack {seq}").unwrap();
        out.flush().unwrap();
    }
}

/// Kills children at random moments until `rows` are acknowledged; returns how many were killed.
fn survive_kills(rows: u64, longest_ms: u64) -> u32 {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.sqlite");
    let (mut acknowledged, mut kills, mut random) = (0, 0, 42_u64);
    while acknowledged < rows {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "ledger::tests::child", "--nocapture"])
            .env("JEVONS_TEST_KILL_LEDGER", &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut count = |line: std::io::Result<String>| {
            if let Some(seq) = line.unwrap_or_default().strip_prefix("ack ") {
                acknowledged = seq.parse::<u64>().unwrap();
            }
        };
        // The first row is awaited, so that every child gets somewhere.
        for line in lines.by_ref() {
            let first = line.as_ref().is_ok_and(|l| l.starts_with("ack "));
            count(line);
            if first {
                break;
            }
        }
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let killer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_micros((random >> 33) % (longest_ms * 1000)));
            child.kill().unwrap(); // SIGKILL
            child.wait().unwrap();
        });
        lines.for_each(&mut count);
        killer.join().unwrap();
        kills += 1;
        let verdict = Ledger::open(&path).unwrap().verify().unwrap();
        assert!(verdict.intact(), "after kill {kills}: {verdict:?}");
        // The child may have been killed between the commit and its word: one row more is no loss.
        assert!(
            verdict.rows >= acknowledged && verdict.rows <= acknowledged + 1,
            "{acknowledged} acknowledged, {verdict:?}"
        );
    }
    kills
}

#[test]
fn kill_9_loses_nothing_acknowledged() {
    assert!(survive_kills(60, 60) >= 1);
}

/// `cargo test --release -p jevons-energy -- --ignored hundred_thousand --nocapture`
#[test]
#[ignore = "minutes"]
fn a_hundred_thousand_appends_with_kill_9_at_random_moments_lose_nothing_acknowledged() {
    let kills = survive_kills(100_000, 4_000);
    println!("100,000 rows acknowledged and found, {kills} processes killed");
}

fn recorder(path: &Path) -> Recorder {
    let root = path.parent().unwrap().join("no such root");
    let meter = Meter::discover(Options { root, boards: Some(vec![]), ..Options::default() });
    Recorder::start(meter, Ledger::open(path).map(Some), "test")
}

#[test]
fn the_phases_of_a_recorded_run_add_up_to_its_counter() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("l");
    let mut run = recorder(&path);
    let nap = || std::thread::sleep(Duration::from_millis(3));
    nap();
    run.set_model("f".repeat(64));
    run.phase(Phase::Load, Work::default());
    for _ in 0..3 {
        run.phase(Phase::Idle, Work::default());
        nap();
        run.phase_of_request(Phase::Prefill, Work::tokens(10));
        nap();
        run.phase_of_request(Phase::Answer, Work::tokens(5));
        assert!(run.end_request().unwrap().energy.unwrap().joules > 0.0);
    }
    // Two requests together: the first reads a prompt while the second answers, then the second answers alone.
    let user = |request, phase, weight, tokens| StepUser { request, phase, weight, work: Work::tokens(tokens) };
    nap();
    run.step_of_batch();
    run.share_step(&[user(0, Phase::Prefill, 3.0, 3), user(1, Phase::Answer, 1.0, 1)]);
    nap();
    run.step_of_batch();
    run.share_step(&[user(1, Phase::Answer, 0.0, 1)]);
    nap();
    run.step_of_batch(); // and nobody says whose
    run.end_batch();
    let window = run.finish();
    assert!(run.trouble().is_none() && !run.measures());
    drop(run);
    let ledger = Ledger::open(&path).unwrap();
    let verdict = ledger.verify().unwrap();
    assert!(verdict.intact() && verdict.open_runs.is_empty(), "{verdict:?}");
    let summary = Summary::of(&ledger.rows().unwrap());
    assert_eq!((summary.n_runs, summary.n_requests, summary.total.tokens), (1, 5, 50));
    let rows = ledger.rows().unwrap();
    let of = |request, kind| rows.iter().filter(move |r| (r.entry.request, r.entry.kind) == (Some(request), kind));
    let joules = |request, kind| of(request, kind).map(|r| r.entry.energy.unwrap().joules).sum::<f64>();
    let (prompt, answer) = (joules(3, Kind::Phase(Phase::Prefill)), joules(4, Kind::Phase(Phase::Answer)));
    assert!(prompt > 0.0 && answer > prompt / 3.0, "{prompt} J, {answer} J");
    assert_eq!((joules(3, Kind::Request), joules(4, Kind::Request)), (prompt, answer));
    let total = &summary.total;
    assert!((total.energy.joules - window.energy.joules).abs() < 1e-9 * window.energy.joules);
    assert!((total.active_j + total.idle_j + total.load_j - window.energy.joules).abs() < 1e-9 * window.energy.joules);
    assert_eq!(total.energy.grade, Grade::E);
    assert!(total.full_j_per_token() > total.marginal_j_per_token());
}

#[test]
fn a_ledger_that_another_program_has_locked_delays_no_phase() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("l");
    let mut run = recorder(&path);
    // The first row has been written once another connection sees it.
    let other = Connection::open(&path).unwrap();
    while other.query_row("SELECT count(*) FROM entry", [], |row| row.get::<_, i64>(0)).unwrap() == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let begun = std::time::Instant::now();
    for _ in 0..20 {
        run.phase_of_request(Phase::Answer, Work::tokens(1));
        run.end_request();
    }
    assert!(begun.elapsed() < PATIENCE / 5, "{:?}", begun.elapsed());
    other.execute_batch("ROLLBACK").unwrap();
    run.finish();
    assert!(run.trouble().is_none());
    let verdict = Ledger::open(&path).unwrap().verify().unwrap();
    assert!(verdict.intact() && verdict.rows == 1 + 40 + 2, "{verdict:?}");
}

#[test]
fn a_part_without_a_reading_makes_sums_a_lower_bound_and_shares_keep_its_seconds() {
    use crate::meter::Board;
    struct Silent;
    impl Board for Silent {
        fn name(&self) -> String {
            "silent".into()
        }
        fn energy_mj(&self) -> Result<u64, String> {
            Err("no".into())
        }
        fn power_mw(&self) -> Result<u32, String> {
            Err("no".into())
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("l");
    let boards = Some(vec![std::sync::Arc::new(Silent) as std::sync::Arc<dyn Board>]);
    let meter = Meter::discover(Options { root: dir.path().join("none"), boards, ..Options::default() });
    let mut run = Recorder::start(meter, Ledger::open(&path).map(Some), "test");
    std::thread::sleep(Duration::from_millis(5));
    run.step_of_batch();
    let users = [1.0, 2.0].map(|weight| StepUser {
        request: weight as u64,
        phase: Phase::Answer,
        weight,
        work: Work::tokens(1),
    });
    run.share_step(&users);
    run.end_batch();
    let window = run.so_far();
    run.finish();
    let summary = Summary::of(&Ledger::open(&path).unwrap().rows().unwrap());
    let answer = &summary.phases["answer"];
    assert!(!answer.complete() && (answer.unknown_s - window.unknown[0].seconds).abs() < 1e-9, "{answer:?}");
    assert!(summary.caveat.is_some_and(|c| c.contains("no evidence of its own")));
}

#[test]
fn steps_of_training_become_one_row_and_belong_to_the_model_they_made() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("l");
    let mut run = recorder(&path);
    for _ in 0..5 {
        std::thread::sleep(Duration::from_millis(1));
        run.piece(Phase::Train, Work::tokens(10));
    }
    run.piece(Phase::Eval, Work::tokens(3));
    run.piece(Phase::Train, Work::tokens(1));
    run.set_model("made".into());
    run.finish();
    drop(run);
    let ledger = Ledger::open(&path).unwrap();
    let rows = ledger.rows().unwrap();
    let kinds: Vec<_> = rows.iter().map(|r| (r.entry.kind.as_str(), r.entry.work.tokens)).collect();
    assert_eq!(kinds, [("start", 0), ("train", 50), ("eval", 3), ("train", 1), ("idle", 0), ("run", 54)]);
    assert!(ledger.verify().unwrap().intact());
    assert_eq!(Summary::of(&rows).models.keys().collect::<Vec<_>>(), ["made"]);
}

// D9: others book all energy to the answer.
#[test]
fn d9_prefill_thinking_and_answer_are_measured_apart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("l");
    let root = dir.path().join("root");
    fs::create_dir_all(root.join("sys/class/powercap/intel-rapl:0")).unwrap();
    fs::create_dir_all(root.join("proc")).unwrap();
    let zone =
        |file: &str, text: &str| fs::write(root.join("sys/class/powercap/intel-rapl:0").join(file), text).unwrap();
    zone("name", "package-0");
    zone("max_energy_range_uj", "262143328850");
    zone("energy_uj", "0");
    let meter = Meter::discover(Options { root: root.clone(), boards: Some(vec![]), ..Options::default() });
    let mut run = Recorder::start(meter, Ledger::open(&path).map(Some), "test");
    let mut total = 0_u64;
    let mut spend = |joules: u64| {
        std::thread::sleep(Duration::from_millis(20));
        total += joules * 1_000_000;
        zone("energy_uj", &total.to_string());
    };
    for (phase, joules) in [(Phase::Prefill, 3), (Phase::Thinking, 10), (Phase::Answer, 2), (Phase::RejectedDraft, 1)] {
        spend(joules);
        let got = run.phase_of_request(phase, Work::tokens(1)).energy;
        assert!((got.joules - joules as f64).abs() < 1e-9, "{phase:?}: {got:?}");
    }
    assert!((run.end_request().unwrap().energy.unwrap().joules - 16.0).abs() < 1e-9);
}

#[test]
fn a_run_that_is_dropped_is_closed_and_one_without_a_ledger_is_metered() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("l");
    let mut run = recorder(&path);
    run.phase_of_request(Phase::Prefill, Work::tokens(1));
    drop(run);
    let verdict = Ledger::open(&path).unwrap().verify().unwrap();
    assert!(verdict.intact() && verdict.open_runs.is_empty(), "{verdict:?}");

    let meter = Meter::discover(Options { root: dir.path().join("none"), boards: Some(vec![]), ..Options::default() });
    let mut run = Recorder::start(meter, Ledger::open(dir.path()).map(Some), "test");
    assert!(run.trouble().is_some() && run.trouble().is_none());
    std::thread::sleep(Duration::from_millis(2));
    assert!(run.phase(Phase::Load, Work::default()).energy.joules > 0.0);
}
