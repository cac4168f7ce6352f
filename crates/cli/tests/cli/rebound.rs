//! `jevons rebound` from outside, and the budgets that other commands keep.

use std::{fs, path::Path};

use jevons_energy::{
    grade::{Energy, Grade},
    ledger::{Entry, Kind, Ledger, Phase, Work},
};
use serde_json::Value;
use tempfile::{TempDir, tempdir};

use crate::{
    common::{Run, add_tokenizer, command, finish, jevons, write_model},
    meter::RECIPE,
};

/// With a ledger in the folder, on a machine that draws a kilowatt.
fn metered(dir: &Path, args: &[&str], stdin: &str) -> Run {
    let mut command = command(dir, args);
    command.env("JEVONS_LEDGER", "ledger.sqlite").env("JEVONS_WATTS", "1000:1000");
    finish(command, stdin)
}

fn model() -> TempDir {
    let dir = tempdir().unwrap();
    write_model(&dir.path().join("m"));
    add_tokenizer(&dir.path().join("m"));
    dir
}

fn used_j(dir: &Path) -> f64 {
    let budget = metered(dir, &["rebound", "budget", "--json"], "").json();
    budget["used_today"].as_array().unwrap().iter().map(|u| u["used"]["joules"].as_f64().unwrap()).sum()
}

fn set(dir: &Path, args: &[&str]) {
    metered(dir, &[&["rebound", "budget", "set"], args].concat(), "").ok();
}

#[test]
fn the_table_of_the_model_is_that_of_the_formula() {
    let dir = tempdir().unwrap();
    let text = jevons(dir.path(), &["rebound", "model", "--plot", "r.svg"]).ok();
    for row in [
        "23 %     52 %    100 %    116 %    183 %",
        "16 %     41 %    100 %    124 %    255 %",
        "6 %     22 %    100 %    148 %    589 %",
    ] {
        assert!(text.contains(row), "{row}: {text}");
    }
    assert!(text.contains("NBER"), "the prior names its source: {text}");
    assert!(fs::read_to_string(dir.path().join("r.svg")).unwrap().contains("elasticity of demand"));
    let json = jevons(
        dir.path(),
        &["rebound", "model", "--gain", "33", "--pass-through", "0.5", "--elasticity", "1.5:2:2.5", "--json"],
    )
    .json();
    assert_eq!(json["gains"][0]["projection"]["critical_elasticity"], 2.0);
    assert_eq!(json["gains"][0]["projection"]["central"]["regime"], "full");
    for bad in [&["--gain", "1"][..], &["--gain", "0.5"], &["--pass-through", "2"], &["--elasticity", "50"]] {
        jevons(dir.path(), &[&["rebound", "model"], bad].concat()).fails(1);
    }
}

/// So many days on each side; in the second half a token takes half the energy, and use grows 1.5 times (R = 0.5).
fn ledger(path: &Path, side: i64, grade: Grade) {
    let mut rows = vec![];
    for d in 0..2 * side {
        let at_ms = 1_767_225_600_000 + d * 86_400_000 + 3_600_000; // from 2026-01-01
        let (growth, per_token) = if d < side { (1.0, 4.0) } else { (1.5, 2.0) };
        let tokens = (10_000.0 * growth) as u64 + (d % 7) as u64 * 100;
        let entry = |kind, tokens: u64, joules: f64| Entry {
            at_ms,
            run: format!("run {d}"),
            request: Some(0),
            kind,
            command: "chat".into(),
            tenant: None,
            model: None,
            work: Work { tokens, ..Work::default() },
            seconds: 1.0,
            energy: Some(Energy::new(joules, grade)),
            unknown_s: 0.0,
            own_cpu_s: None,
            busy_cpu_s: None,
            boundary: String::new(),
        };
        let joules = tokens as f64 * per_token * (1.0 + 0.01 * ((d * 5 % 7) as f64 - 3.0));
        rows.push(entry(Kind::Phase(Phase::Answer), tokens, joules));
        rows.push(entry(Kind::Request, tokens, joules));
        // Training on the same day is no task.
        rows.push(Entry {
            run: format!("training {d}"),
            command: "train".into(),
            ..entry(Kind::Phase(Phase::Train), 9, 1e9)
        });
    }
    Ledger::open(path).unwrap().append(&rows).unwrap();
}

#[test]
fn the_rebound_of_a_ledger_is_measured_and_thin_data_is_refused() {
    let dir = tempdir().unwrap();
    ledger(&dir.path().join("l.sqlite"), 30, Grade::B);
    ledger(&dir.path().join("thin.sqlite"), 10, Grade::E);
    let at = |change: &str, more: &[&str]| {
        jevons(dir.path(), &[&["rebound", "measure", "--file", "l.sqlite", "--change", change], more].concat())
    };
    let m = at("2026-01-31", &["--json"]).json();
    assert_eq!((m["days_before"].as_u64(), m["days_after"].as_u64()), (Some(30), Some(30)));
    let within = |key: &str, truth: f64| {
        let e = &m[key];
        assert!(
            e["low"].as_f64().unwrap() <= truth && truth <= e["high"].as_f64().unwrap() && e["point"].is_f64(),
            "{key}: {e}"
        );
    };
    within("efficiency_gain", 2.0);
    // 10,300 tokens a day became 15,300: (15.3/10.3 − 1) / (2 − 1).
    within("rebound", 15.3 / 10.3 - 1.0);
    let residual = m["decomposition"]["residual_j"].as_f64().unwrap();
    assert!(
        residual.abs() < 1e-12 * m["before"]["joules"].as_f64().unwrap().max(m["after"]["joules"].as_f64().unwrap())
    );
    let text = at("2026-01-31", &[]).ok();
    for part in [
        "tokens per task",
        "J per token",
        "all growth counted",
        "no evidence of its own",
        "joules of grade B",
        "beyond the trend",
    ] {
        assert_eq!(text.contains(part), part != "no evidence of its own", "{part}: {text}");
    }
    let thin = ["rebound", "measure", "--file", "thin.sqlite", "--change", "2026-01-11", "--json"];
    let thin = jevons(dir.path(), &thin).json();
    assert!(
        thin["rebound"]["point"].is_null() && thin["rebound"]["refused"].as_str().unwrap().contains("needs 14"),
        "{thin:#}"
    );
    assert!(thin["notes"][0].as_str().unwrap().contains("no evidence of its own"), "{thin:#}");
    assert!(at("2026-01-02", &[]).fails(1).contains("1 days before the change"));
    assert!(at("2026-01-31", &["--control", "nobody"]).fails(1).contains("no such group"));
    at("January", &[]).fails(2);
    fs::write(dir.path().join("u.csv"), "day,tokens,joules,tasks\n2026-01-01,1,-2,3\n").unwrap();
    let bad = jevons(dir.path(), &["rebound", "measure", "--usage", "u.csv", "--change", "2026-01-02"]).fails(1);
    assert!(bad.contains("u.csv") && bad.contains("joules"), "{bad}");
}

#[test]
fn a_budget_stops_generation_and_says_so() {
    let dir = model();
    let path = dir.path();
    let ids: Vec<Vec<u32>> = (0..600).map(|i| vec![5 + i % 200, 9]).collect();
    fs::write(path.join("ids.json"), serde_json::to_string(&ids).unwrap()).unwrap();
    let job = ["generate", "m", "--token-ids", "ids.json", "--max-new-tokens", "140", "--ignore-eos", "--json"];
    let full = metered(path, &job, "").json();
    assert_eq!(full["sequences"].as_array().unwrap().len(), 600);
    let (spent, full_j) = (used_j_without_budget(path), full["energy"]["joules"].as_f64().unwrap());
    // Far less than the job takes on any machine: 50 J are 50 ms of this one.
    let cap = spent + (full_j / 10.0).min(50.0);
    set(path, &["--joules", &format!("{cap}")]);
    let stopped = metered(path, &job, "");
    assert_eq!(stopped.code, Some(1), "{}", stopped.err);
    assert!(
        stopped.err.contains("stopped by the budget") && stopped.err.contains("the budget is new at 00:00 UTC"),
        "{}",
        stopped.err
    );
    // What was done until then is printed, if anything was.
    if let Ok(done) = serde_json::from_str::<Value>(&stopped.out) {
        let n = done["sequences"].as_array().unwrap().len();
        assert!(n < 600, "{n}");
    }
    assert!(metered(path, &["meter", "verify"], "").ok().ends_with("intact\n"));

    // Nothing is left: neither for the next run, nor for a chat; and the budget cannot be passed by leaving the ledger out.
    set(path, &["--joules", &format!("{}", used_j(path) / 2.0)]);
    assert!(metered(path, &job, "").fails(1).contains("stopped by the budget: you have used"));
    let chat = metered(path, &["chat", "m", "--max-new-tokens", "4", "--prompt", "hello"], "");
    assert!(chat.fails(1).contains("stopped by the budget"));
    assert!(metered(path, &["score", "m", "--text", "some text"], "").fails(1).contains("stopped by the budget"));
    assert!(metered(path, &["generate", "m", "a", "--no-ledger"], "").fails(1).contains("it counts by the ledger"));
    let mut off = command(path, &["generate", "m", "a"]);
    off.env("JEVONS_BUDGET", "ledger.budget.toml");
    assert!(finish(off, "").fails(1).contains("it counts by the ledger"));
    assert!(metered(path, &["rebound", "budget", "off"], "").ok().contains("has ended"));
    metered(path, &["generate", "m", "once", "--max-new-tokens", "2"], "").ok();
}

/// What the ledger says, where no budget is set.
fn used_j_without_budget(dir: &Path) -> f64 {
    metered(dir, &["meter", "report", "--json"], "").json()["total"]["energy"]["joules"].as_f64().unwrap()
}

#[test]
fn a_chat_goes_on_until_its_budget_is_used_up() {
    let dir = model();
    let path = dir.path();
    set(path, &["--joules", "1M", "--slow-from", "0"]);
    let chat = metered(path, &["chat", "m", "--max-new-tokens", "30"], "hello\nand?\n");
    assert_eq!(chat.code, Some(0), "{}", chat.err);
    assert_eq!(chat.err.matches("slowed down").count(), 1, "said once: {}", chat.err);
    // The cap holds for a key by itself: ada's is used up, bob's is not.
    set(path, &["--joules", "0.001", "--of", "ada"]);
    assert!(
        metered(path, &["chat", "m", "--max-new-tokens", "4", "--key", "ada"], "hello\n")
            .fails(1)
            .contains("stopped by the budget: ada has")
    );
    metered(path, &["chat", "m", "--max-new-tokens", "4", "--key", "bob"], "hello\n").ok();
    let report = metered(path, &["rebound", "budget", "--json"], "").json();
    let keys: Vec<&str> = report["used_today"].as_array().unwrap().iter().map(|u| u["key"].as_str().unwrap()).collect();
    assert_eq!(keys, ["", "ada", "bob"], "{report:#}");
    assert!(metered(path, &["chat", "m", "--key", "*"], "hello\n").fails(1).contains("--key"));
}

#[test]
fn a_budget_stops_training_and_nothing_is_lost() {
    let dir = tempdir().unwrap();
    let path = dir.path();
    fs::write(path.join("recipe.toml"), RECIPE).unwrap();
    let mut args =
        vec!["train", "recipe.toml", "--set", "schedule.steps=100000", "--set", "evaluation.every_steps=100000"];
    set(path, &["--joules", "3K"]); // three seconds of a kilowatt
    let run = metered(path, &args, "");
    assert!(run.code == Some(1) && run.err.contains("stopped by the budget"), "{run:?}");
    assert!(run.out.contains("stopped and saved after step"), "{run:?}");
    let used = used_j(path);
    set(path, &["--joules", &format!("{}", used + 4000.0)]);
    args.push("--resume");
    let again = metered(path, &args, "");
    assert!(again.code == Some(1) && again.out.contains("stopped and saved after step"), "{again:?}");
    let step = |run: &Run| -> u64 {
        run.out.split("saved after step ").nth(1).unwrap().split(';').next().unwrap().parse().unwrap()
    };
    assert!(step(&again) > step(&run), "it went on from where it was stopped");
}

#[test]
fn a_budget_is_set_shown_tightened_and_refused() {
    let dir = tempdir().unwrap();
    let path = dir.path();
    assert!(metered(path, &["rebound", "budget"], "").ok().contains("there is no budget"));
    let dividend = ["--slow-from", "0.8", "--dividend", "0.5", "--baseline", "4"];
    set(path, &[&["--grams", "50", "--usd", "0.1", "--region", "FRA"], &dividend[..]].concat());
    set(path, &["--litres", "3", "--of", "*", "--add"]);
    let shown = metered(path, &["rebound", "budget"], "").ok();
    for part in [
        "each key: 50.0 g CO2e",
        "0.100 USD",
        "all keys together: 3.00 L",
        "dividend: 50 %",
        "slower from 80 %",
        "FRA: 44.2 g",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let fails =
        |args: &[&str], code| drop(metered(path, &[&["rebound", "budget", "set"], args].concat(), "").fails(code));
    fails(&[], 2);
    fails(&["--joules", "0"], 1);
    fails(&["--joules", "5", "--slow-from", "2"], 1);
    fails(&["--joules", "5", "--dividend", "0.5"], 1);
    fails(&["--joules", "5", "--region", "XXX"], 1);
    fs::write(path.join("ledger.budget.toml"), "joules = 5").unwrap();
    let broken = metered(path, &["rebound", "budget"], "").fails(1);
    assert!(broken.contains("ledger.budget.toml") && broken.contains("rebound budget set"), "{broken}");
}

#[test]
fn a_job_is_put_off_to_the_hours_of_least_carbon() {
    let dir = tempdir().unwrap();
    let path = dir.path();
    let hours = ["400", "300", "100", "350", "90", "200", "500"].iter().enumerate();
    let lines: String = hours.map(|(i, g)| format!("2026-06-01T{i:02}:00Z,{g}\n")).collect();
    fs::write(path.join("h.csv"), format!("time,g_per_kwh\n{lines}")).unwrap();
    let d = jevons(path, &["rebound", "defer", "h.csv", "--hours", "2", "--kwh", "4", "--json"]).json();
    assert_eq!((d["now"]["carbon_g"].as_f64(), d["in_a_row"]["carbon_g"].as_f64()), (Some(1400.0), Some(580.0)));
    let text =
        jevons(path, &["rebound", "defer", "h.csv", "--hours", "2", "--kwh", "4", "--deadline", "2026-06-01T04:00Z"])
            .ok();
    assert!(text.contains("2026-06-01T01:00Z, 2026-06-01T02:00Z") && text.contains("saved"), "{text}");
    assert!(jevons(path, &["rebound", "defer", "h.csv", "--hours", "9"]).fails(1).contains("has 7"));
    // All of it is past: a command has no time to run in.
    assert!(
        jevons(path, &["rebound", "defer", "h.csv", "--hours", "1", "--", "true"])
            .fails(1)
            .contains("no time to run in")
    );
    fs::write(path.join("bad.csv"), "time,kg\n").unwrap();
    assert!(jevons(path, &["rebound", "defer", "bad.csv", "--hours", "1"]).fails(1).contains("bad.csv"));
}

#[cfg(unix)]
#[test]
fn a_command_runs_at_once_where_now_is_the_best_hour() {
    use std::time::{SystemTime, UNIX_EPOCH};
    let dir = tempdir().unwrap();
    let path = dir.path();
    // The hour before this one, this one and the next: all alike, so that the earliest that is open is the best.
    let hour = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() / 3600 * 3600;
    let lines: String = (0..4)
        .map(|i| chrono::DateTime::from_timestamp(hour as i64 - 3600 + i * 3600, 0).unwrap())
        .map(|t| format!("{},100\n", t.format("%Y-%m-%dT%H:%MZ")))
        .collect();
    fs::write(path.join("h.csv"), format!("time,g_per_kwh\n{lines}")).unwrap();
    let run = jevons(path, &["rebound", "defer", "h.csv", "--hours", "1", "--", "sh", "-c", "echo ran; exit 3"]);
    assert_eq!((run.code, run.out.as_str()), (Some(3), "ran\n"), "{run:?}");
}
