//! The energy ledger and the meter from outside.

use std::{fs, path::Path};

use serde_json::Value;
use tempfile::{TempDir, tempdir};

use crate::common::{Run, add_tokenizer, command, finish, jevons, write_model};

/// With a ledger in the folder.
fn metered(dir: &Path, args: &[&str], stdin: &str) -> Run {
    let mut command = command(dir, args);
    command.env("JEVONS_LEDGER", "ledger.sqlite");
    finish(command, stdin)
}

fn model() -> TempDir {
    let dir = tempdir().unwrap();
    write_model(&dir.path().join("m"));
    add_tokenizer(&dir.path().join("m"));
    dir
}

#[test]
fn what_commands_spend_is_in_the_ledger_by_phase_and_adds_up() {
    let dir = model();
    let path = dir.path();
    let chat = metered(path, &["chat", "m", "--max-new-tokens", "8"], "hello\nand?\n");
    assert_eq!((chat.err.matches("grade").count(), chat.err.matches(" of CO2e").count()), (2, 2), "{chat:?}");
    metered(path, &["generate", "m", "once", "--max-new-tokens", "5"], "").ok();
    fs::write(path.join("ids.json"), "[[5, 6, 7], [8, 9], [10]]").unwrap();
    metered(path, &["generate", "m", "--token-ids", "ids.json", "--max-new-tokens", "4", "--json"], "").json();
    metered(path, &["score", "m", "--text", "some text"], "").ok();

    let verdict = metered(path, &["meter", "verify", "--json"], "").json();
    assert_eq!((verdict["problems"].as_array().unwrap().len(), verdict["open_runs"].as_array().unwrap().len()), (0, 0));
    let report = metered(path, &["meter", "report", "--json"], "").json();
    assert_eq!((&report["n_runs"], &report["n_requests"]), (&4.into(), &(2 + 1 + 3 + 1).into()), "{report:#}");
    for phase in ["load", "prefill", "answer", "eval", "idle"] {
        assert!(report["phases"][phase]["energy"]["joules"].as_f64().unwrap() >= 0.0, "{phase}: {report:#}");
    }
    assert_eq!(report["models"].as_object().unwrap().len(), 1, "one model, one fingerprint: {report:#}");
    let total = &report["total"];
    let joules = |name: &str| total[name].as_f64().unwrap();
    let sum = joules("active_j") + joules("idle_j") + joules("load_j");
    assert!((sum - total["energy"]["joules"].as_f64().unwrap()).abs() <= 1e-9 * sum);
    assert!(total["tokens"].as_u64().unwrap() >= 8 + 8 + 4 + 6 && total["flop"].as_f64().unwrap() > 0.0);

    let runs = report["runs"].as_array().unwrap();
    let commands: Vec<_> = runs.iter().map(|r| r["command"].as_str().unwrap()).collect();
    assert_eq!(commands, ["chat", "generate", "generate", "score"]);
    let by_run: f64 = runs.iter().map(|r| r["energy"]["joules"].as_f64().unwrap()).sum();
    assert!((by_run - sum).abs() <= 1e-9 * sum);

    let all = metered(path, &["meter", "export", "--format", "json"], "").json();
    for row in all["rows"].as_array().unwrap() {
        let computes = ["prefill", "answer", "eval"].contains(&row["kind"].as_str().unwrap());
        let computes = computes && row["tokens"].as_u64().unwrap() > 0;
        assert!(!computes || row["bytes"].as_f64().is_some_and(|b| b > 0.0), "{row}");
    }

    // Of three sequences that were computed together each has its own prompt and answer.
    let run = runs[2]["run"].as_str().unwrap();
    let rows = metered(path, &["meter", "export", "--format", "json", "--run", run], "").json();
    let of = |kind: &str, request: u64| {
        let here = |row: &&Value| row["kind"] == kind && row["request"] == request;
        rows["rows"]
            .as_array()
            .unwrap()
            .iter()
            .filter(here)
            .map(|row| row["tokens"].as_u64().unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!([0, 1, 2].map(|request| of("prefill", request)), [[3], [2], [1]]);
    for request in 0..3 {
        assert!(of("answer", request)[0] <= 3 && of("request", request).len() == 1, "{rows:#}");
    }

    let text = metered(path, &["meter", "report"], "").ok();
    assert!(text.contains("By phase") && text.contains("By run") && text.contains("J marginal"), "{text}");
    if ["D", "E"].contains(&total["energy"]["grade"].as_str().unwrap()) {
        let words = text.split_whitespace().collect::<Vec<_>>().join(" "); // the report wraps lines
        assert!(words.contains("no evidence of its own"), "{text}");
    }
    let one_day = metered(path, &["meter", "report", "--day", "1999-12-31"], "").ok();
    assert_eq!(one_day, "the ledger has no such rows\n");
}

pub const RECIPE: &str = r#"
name = "tiny"
seed = 1
[model.tokenizer]
train = { vocab_size = 300 }
[model.config]
model_type = "qwen2"
hidden_size = 16
intermediate_size = 24
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 1
max_position_embeddings = 64
[data]
sequence_length = 32
heldout_fraction = 0.1
[[data.sources]]
generator = "arithmetic"
count = 200
[batch]
sequences = 2
micro_batch_sequences = 2
[optimizer]
lr = 1e-3
[schedule]
steps = 4
warmup_steps = 1
[evaluation]
every_steps = 2
heldout_sequences = 2
[run]
folder = "run"
"#;

#[test]
fn training_is_in_the_ledger_with_the_model_it_made() {
    let dir = tempdir().unwrap();
    let path = dir.path();
    fs::write(path.join("recipe.toml"), RECIPE).unwrap();
    let report = metered(path, &["train", "recipe.toml", "--json"], "").json();
    assert!(report["energy"]["joules"].as_f64().unwrap() > 0.0, "{report:#}");
    if ["D", "E"].contains(&report["energy"]["grade"].as_str().unwrap()) {
        assert!(report["energy"]["caveat"].as_str().unwrap().contains("no evidence of its own"), "{report:#}");
    }
    let text = metered(path, &["train", "recipe.toml", "--set", "run.folder=again"], "").ok();
    for part in
        ["energy ", "grade", "facility energy", "carbon ", "water ", "cost ", "(p5 ", "electricity of one's own"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(report["energy"]["footprint"]["carbon_g"]["p95"].as_f64().unwrap() > 0.0, "{report:#}");
    // A place that does not exist costs the conversion, not the report of a run that took a week.
    let mut nowhere = command(path, &["train", "recipe.toml", "--set", "run.folder=nowhere"]);
    nowhere.env("JEVONS_REGION", "XXX");
    let text = finish(nowhere, "").ok();
    assert!(text.contains("no carbon, water and cost: JEVONS_REGION") && text.contains("model: "), "{text}");
    assert!(metered(path, &["meter", "verify"], "").ok().ends_with("intact\n"));
    let summary = metered(path, &["meter", "report", "--json"], "").json();
    assert_eq!(summary["phases"]["train"]["tokens"].as_u64(), report["tokens"].as_u64().map(|t| 2 * t), "{summary:#}");
    for phase in ["load", "train", "eval"] {
        assert!(summary["phases"][phase]["seconds"].as_f64().unwrap() > 0.0, "{phase}: {summary:#}");
    }
    // The same recipe makes the same model, and its training is declared under its name.
    assert_eq!(summary["models"].as_object().unwrap().len(), 1, "{summary:#}");
    let bom = metered(path, &["meter", "export", "--format", "cyclonedx"], "").json();
    let declared =
        &bom["components"][0]["modelCard"]["considerations"]["environmentalConsiderations"]["energyConsumptions"];
    assert!(declared.as_array().unwrap().iter().any(|c| c["activity"] == "training"), "{bom:#}");
}

#[test]
fn a_changed_row_is_found_and_an_expected_head_is_missed() {
    let dir = model();
    let path = dir.path();
    metered(path, &["generate", "m", "once", "--max-new-tokens", "2"], "").ok();
    let head = metered(path, &["meter", "verify", "--json"], "").json()["head"].as_str().unwrap().to_owned();
    metered(path, &["generate", "m", "once", "--max-new-tokens", "2"], "").ok();
    assert!(metered(path, &["meter", "verify", "--expect", &head], "").ok().ends_with("intact\n"));
    let other = "0".repeat(64);
    let missed = metered(path, &["meter", "verify", "--expect", &other], "");
    assert!(missed.code == Some(1) && missed.out.contains("no row has the head"), "{missed:?}");

    // Changes the command's name in the file, behind SQLite's back.
    let file = path.join("ledger.sqlite");
    let mut bytes = fs::read(&file).unwrap();
    // A page may hold a copy that SQLite has moved elsewhere, so every one is changed.
    let places: Vec<usize> = (0..bytes.len()).filter(|i| bytes[*i..].starts_with(b"generate")).collect();
    assert!(!places.is_empty());
    places.into_iter().for_each(|at| bytes[at] = b'G');
    fs::write(&file, bytes).unwrap();
    let found = metered(path, &["meter", "verify"], "");
    assert!(found.code == Some(1) && found.out.contains("NOT intact"), "{found:?}");
}

#[test]
fn a_ledger_that_cannot_be_written_warns_once_and_stops_nothing() {
    let dir = model();
    let path = dir.path();
    fs::write(
        path.join("file"),
        "no ledger at all, but a text that somebody else has written and wants to keep, I say, as it is",
    )
    .unwrap();
    let mut chat = command(path, &["chat", "m", "--max-new-tokens", "4"]);
    chat.env("JEVONS_LEDGER", "file");
    let run = finish(chat, "hello\nand?\n");
    assert_eq!((run.code, run.err.matches("warning:").count()), (Some(0), 1), "{run:?}");
    assert!(fs::read_to_string(path.join("file")).unwrap().starts_with("no ledger"));
    let plain = jevons(path, &["chat", "m", "--max-new-tokens", "4", "--prompt", "hello", "--json"]).json();
    assert!(plain["energy"]["grade"].is_string(), "metered without a ledger: {plain}");
}

#[test]
fn the_ledger_can_be_turned_off_and_has_a_place_of_its_own() {
    let dir = model();
    let path = dir.path();
    metered(path, &["generate", "m", "once", "--max-new-tokens", "2", "--no-ledger"], "").ok();
    assert!(!path.join("ledger.sqlite").exists());
    assert!(metered(path, &["meter", "report"], "").fails(1).contains("there is no ledger yet"));
    assert!(jevons(path, &["meter", "report"]).fails(1).contains("the ledger is off"));
    let mut own = command(path, &["generate", "m", "once", "--max-new-tokens", "2"]);
    own.env_remove("JEVONS_LEDGER").env("XDG_DATA_HOME", path.join("data"));
    finish(own, "").ok();
    if cfg!(target_os = "linux") {
        assert!(path.join("data/jevons/energy.sqlite").is_file());
    }
}

#[test]
fn the_report_converts_and_is_a_page_with_plots() {
    let dir = model();
    let path = dir.path();
    metered(path, &["generate", "m", "once", "--max-new-tokens", "2"], "").ok();
    metered(path, &["score", "m", "--text", "some text"], "").ok();
    let report = |args: &[&str]| metered(path, &[&["meter", "report"], args].concat(), "");
    let json = report(&["--json", "--region", "FRA", "--facility", "datacentre", "--html", "r.html"]).json();
    let p50 = |key: &str| json["footprint"][key]["p50"].as_f64().unwrap();
    let kwh = json["total"]["energy"]["joules"].as_f64().unwrap() / 3.6e6;
    assert!((p50("it_kwh") / kwh - 1.0).abs() < 0.02, "{json:#}");
    // France: 44.2 g/kWh; PUE 1.25 once.
    assert!((p50("carbon_operational_g") / (kwh * 1.25 * 44.2) - 1.0).abs() < 0.1, "{json:#}");
    assert!(p50("water_l") > p50("water_onsite_l") && p50("usd") > 0.0 && json["inputs"].as_array().unwrap().len() > 5);
    let page = fs::read_to_string(path.join("r.html")).unwrap();
    assert!(page.contains("the whole ledger") && page.matches("<svg").count() == 2 && page.contains("44.2"), "{page}");
    let text = report(&[]).ok();
    for part in
        ["carbon, both", "water at power stations", "electricity of one's own machine", "p5", "p95", "grid of WOR"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    // Of a day, a run, a model; and of a rented machine.
    let run = json["runs"][0]["run"].as_str().unwrap();
    let one = report(&["--json", "--run", run]).json();
    assert!(one["n_runs"] == 1 && one["of"] == format!("run {run}"), "{one:#}");
    let model = json["models"].as_object().unwrap().keys().next().unwrap();
    assert!(report(&["--json", "--model", &model[..8]]).json()["footprint"]["carbon_g"]["p50"].as_f64().unwrap() > 0.0);
    assert_eq!(report(&["--json", "--day", "2020-01-01"]).json()["footprint"]["carbon_g"]["p95"], 0.0);
    let rented = report(&["--json", "--rent", "3600"]).json();
    let seconds = rented["total"]["seconds"].as_f64().unwrap();
    assert!((rented["footprint"]["usd"]["p50"].as_f64().unwrap() / seconds - 1.0).abs() < 1e-9, "{rented:#}");
    // Hour by hour: the day before, today and tomorrow at 100 g/kWh; then a file that has none of these hours.
    let start = json["from_to_ms"][0].as_i64().unwrap() / 3_600_000 * 3_600_000 - 24 * 3_600_000;
    let hour = |i: i64| chrono::DateTime::from_timestamp_millis(start + i * 3_600_000).unwrap().to_rfc3339();
    let lines: String = (0..72).map(|i| format!("{},100\n", hour(i))).collect();
    fs::write(path.join("h.csv"), format!("time,g_per_kwh\n{lines}")).unwrap();
    let hourly = report(&["--json", "--intensity", "h.csv"]).json();
    let grid = hourly["place"]["site"]["grid_g_per_kwh"]["mid"].as_f64().unwrap();
    assert!((grid / 100.0 - 1.0).abs() < 1e-12, "{hourly:#}");
    fs::write(path.join("old.csv"), "time,g_per_kwh\n2020-01-01T00:00Z,100\n").unwrap();
    let error = report(&["--intensity", "old.csv"]).fails(1);
    assert!(error.contains("old.csv") && error.contains("goes from 2020-01-01"), "{error}");
    assert!(report(&["--region", "XXX"]).fails(1).contains("XXX"));
    assert!(report(&["--html", "no/such/folder/r.html"]).fails(1).contains("no/such/folder/r.html"));
}

#[test]
fn every_export_is_written() {
    let dir = model();
    let path = dir.path();
    metered(path, &["generate", "m", "once", "--max-new-tokens", "2"], "").ok();
    for format in ["json", "cyclonedx", "spdx"] {
        let document: Value = metered(path, &["meter", "export", "--format", format], "").json();
        assert!(document.is_object());
    }
    assert!(metered(path, &["meter", "export", "--format", "csv"], "").ok().starts_with("seq,at,run"));
    assert!(
        metered(path, &["meter", "export", "--format", "prometheus"], "").ok().contains("jevons_energy_joules_total{")
    );
    let boamps = metered(path, &["meter", "export", "--format", "boamps"], "").ok();
    let first: Value = serde_json::from_str(boamps.lines().next().unwrap()).unwrap();
    assert_eq!(first["task"]["taskStage"], "inference");
    metered(path, &["meter", "export", "--format", "sci"], "").fails(2);
    let sci =
        metered(path, &["meter", "export", "--format", "sci", "--intensity", "400", "--embodied", "1"], "").json();
    assert!(sci["sci_g_per_unit"].as_f64().unwrap() > 0.0, "{sci}");
    metered(path, &["meter", "export", "--format", "csv", "-o", "out.csv"], "").ok();
    assert!(fs::read_to_string(path.join("out.csv")).unwrap().contains("generate"));
}

#[cfg(unix)]
#[test]
fn a_command_is_metered_and_its_exit_code_passed_on() {
    let dir = tempdir().unwrap();
    let path = dir.path();
    let run = metered(path, &["meter", "--json", "--key", "ada", "--", "sh", "-c", "echo said; sleep 0.2; exit 7"], "");
    assert_eq!(run.code, Some(7), "{run:?}");
    let (said, report) = run.out.split_once('\n').unwrap();
    let report: Value = serde_json::from_str(report).unwrap();
    assert_eq!((said, &report["exit_code"]), ("said", &7.into()));
    assert!(report["window"]["seconds"].as_f64().unwrap() >= 0.2 && report["window"]["energy"]["grade"].is_string());
    assert!(metered(path, &["meter", "export", "--format", "csv"], "").ok().contains(",ada,"));
    let text = metered(path, &["meter", "--idle", "0.3", "--", "true"], "");
    assert!(text.code == Some(0) && text.err.contains("above idle") && text.err.contains("a sketch"), "{text:?}");
    assert!(metered(path, &["meter", "--", "no-such-program"], "").fails(1).contains("is it installed"));
    assert_eq!(metered(path, &["meter", "--", "sh", "-c", "kill -9 $$"], "").code, Some(137));
    assert!(metered(path, &["meter", "verify"], "").ok().ends_with("intact\n"));
}

#[test]
fn the_live_view_is_lines_where_there_is_no_terminal() {
    let dir = tempdir().unwrap();
    let live = jevons(dir.path(), &["meter", "--every", "0.05", "--for", "0.3"]).ok();
    assert!(live.lines().count() >= 3 && live.lines().all(|l| l.contains(" W ") && l.contains("grade")), "{live}");
    let json = jevons(dir.path(), &["meter", "--every", "0.05", "--for", "0.2", "--json"]).ok();
    for line in json.lines() {
        let reading: Value = serde_json::from_str(line).unwrap();
        assert!(reading["watts"].as_f64().unwrap() >= 0.0);
    }
    jevons(dir.path(), &["meter", "--every", "0"]).fails(1);
    jevons(dir.path(), &["meter", "--watts", "90:20"]).fails(2);
}

#[test]
fn readings_of_a_wall_meter_are_grade_a() {
    let dir = tempdir().unwrap();
    fs::write(dir.path().join("watts"), "100 W\n").unwrap();
    let json = jevons(dir.path(), &["meter", "--wall-file", "watts", "--every", "0.1", "--for", "0.5", "--json"]).ok();
    let last: Value = serde_json::from_str(json.lines().last().unwrap()).unwrap();
    assert_eq!(last["total"]["grade"], "A", "{last}");
    assert!((last["watts"].as_f64().unwrap() - 100.0).abs() < 1e-6, "{last}");
    let measured = jevons(dir.path(), &["meter", "--watts", "20:20", "--every", "0.1", "--for", "0.3", "--json"]).ok();
    let last: Value = serde_json::from_str(measured.lines().last().unwrap()).unwrap();
    assert!(last["total"]["grade"] != "E", "{last}");
}
