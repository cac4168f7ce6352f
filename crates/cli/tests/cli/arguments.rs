//! What the binary does with wrong arguments and missing files.

use std::fs;

use crate::common::{jevons, jevons_with, write_model};
use tempfile::tempdir;

#[test]
fn every_command_explains_itself() {
    let dir = tempdir().unwrap();
    let help = jevons(dir.path(), &["--help"]).ok();
    for command in [
        "chat",
        "generate",
        "score",
        "info",
        "doctor",
        "bench",
        "train",
        "meter",
        "tokenizer",
        "convert",
        "adapter",
        "completions",
        "pull",
        "list",
        "show",
        "rm",
        "man",
    ] {
        assert!(help.contains(command), "{help}");
        let own = jevons(dir.path(), &[command, "--help"]).ok();
        assert!(own.contains(&format!("Usage: jevons {command}")), "{own}");
    }
    assert!(jevons(dir.path(), &["--version"]).ok().starts_with("jevons "));
}

#[test]
fn completions_are_written_for_every_shell() {
    let dir = tempdir().unwrap();
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = jevons(dir.path(), &["completions", shell]).ok();
        for word in ["max-new-tokens", "doctor", "quick", "hash"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    // Arguments that are files are completed as such.
    assert!(
        jevons(dir.path(), &["completions", "zsh"])
            .ok()
            .contains("a config.json alone \\[default\\: the built-in model\\]:_files")
    );
    assert!(jevons(dir.path(), &["completions", "bash"]).ok().contains("-o bashdefault -o default jevons"));
}

#[test]
fn a_manual_page_is_written_for_every_command() {
    let dir = tempdir().unwrap();
    let main = jevons(dir.path(), &["man"]).ok();
    assert!(main.contains(".TH jevons 1") && main.contains("jevons\\-doctor(1)"), "{main}");
    let said = jevons(dir.path(), &["man", "--dir", "share/man1"]).ok();
    let mut names: Vec<String> = fs::read_dir(dir.path().join("share/man1"))
        .unwrap()
        .map(|f| f.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert!(said.starts_with(&format!("{} pages written", names.len())), "{said}");
    for name in ["jevons.1", "jevons-info.1", "jevons-doctor.1", "jevons-man.1", "jevons-tokenizer-train.1"] {
        assert!(names.iter().any(|n| n == name), "{names:?}");
    }
    assert!(names.iter().all(|n| n.starts_with("jevons") && n.ends_with(".1")), "{names:?}");
    let info = fs::read_to_string(dir.path().join("share/man1/jevons-info.1")).unwrap();
    assert!(info.contains("jevons info") && info.contains("\\-\\-context"), "{info}");
    fs::write(dir.path().join("file"), "").unwrap();
    assert!(jevons(dir.path(), &["man", "--dir", "file"]).fails(1).contains("file: cannot make the folder"));
}

#[test]
fn doctor_tells_what_there_is_and_never_a_zero_for_what_is_unknown() {
    let dir = tempdir().unwrap();
    let found = jevons(dir.path(), &["doctor", "--quick", "--json"]).json();
    assert!(found["measured"].is_null() && found["load"].is_null(), "{found}");
    let used = &found["instruction_set"]["used"];
    assert!(found["instruction_set"]["available"].as_array().unwrap().contains(used));
    assert!(found["threads"].as_u64().unwrap() > 0);
    for (table, key) in
        [("memory", "machine_bytes"), ("memory", "available_bytes"), ("cpu", "logical"), ("cpu", "cores")]
    {
        assert_ne!(found["machine"][table][key], 0, "{table}.{key}");
    }
    assert!(found["disks"].as_array().unwrap().iter().any(|d| d["for"] == "this folder"));
    assert_eq!(found["models"].as_array().unwrap().len(), 7);
    let text = jevons(dir.path(), &["doctor", "--quick"]).ok();
    for words in ["Processor", "What jevons uses", "Models at 4,096 tokens", "DeepSeek-R1 in FP8"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert!(!text.contains("Measured now") && !text.contains("tokens/s"), "{text}");
}

#[test]
fn doctor_measures_and_an_unknown_path_is_refused() {
    let dir = tempdir().unwrap();
    let found = jevons(dir.path(), &["doctor", "--json"]).json();
    for rate in ["read_bytes_per_s", "bf16_product_flop_per_s"] {
        for threads in ["one_thread", "all_threads"] {
            assert!(found["measured"][rate][threads].as_f64().unwrap() > 1e6, "{rate} {threads}: {found}");
        }
    }
    let run = std::process::Command::new(env!("CARGO_BIN_EXE_jevons"))
        .args(["doctor", "--quick"])
        .env("JEVONS_ISA", "neon9")
        .output()
        .unwrap();
    let err = String::from_utf8(run.stderr).unwrap();
    assert!(run.status.code() == Some(1) && run.stdout.is_empty(), "{err}");
    assert!(err.contains("JEVONS_ISA=neon9: this CPU has portable"), "{err}");
}

#[test]
fn wrong_arguments_exit_with_2_and_say_what_is_wrong() {
    let dir = tempdir().unwrap();
    for (args, word) in [
        (&["gnerate"][..], "generate"),
        (&["generate"], "<MODEL>"),
        (&["generate", "m", "hello", "--token-ids", "x.json"], "cannot be used with"),
        (&["generate", "m", "hello", "--threads", "0"], "--threads"),
        (&["generate", "m", "hello", "--max-new-tokens", "-3"], "-3"),
        (&["generate", "m", "hello", "--temperature", "warm"], "--temperature"),
        (&["score", "m"], "--token-ids"),
        (&["score", "m", "--text", "a", "--token-ids", "b"], "cannot be used with"),
        (&["score", "m", "--text", "a", "--precision", "fp4"], "possible values: f32, bf16"),
        (&["chat", "m", "--json"], "--prompt"),
        (&["completions", "cmd"], "possible values"),
    ] {
        let err = jevons(dir.path(), args).fails(2);
        assert!(err.contains(word), "{args:?}: {err}");
    }
}

#[test]
fn a_missing_or_wrong_model_is_an_error_that_names_it() {
    let dir = tempdir().unwrap();
    fs::create_dir(dir.path().join("empty")).unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    for (model, words) in
        [("nowhere", "there is no such folder"), ("empty", "no config.json"), ("file", "this is a file")]
    {
        for args in [
            &["chat", model][..],
            &["generate", model, "hello"],
            &["score", model, "--text", "hello"],
            &["info", model],
        ] {
            if args == ["info", "file"] {
                continue; // a file is a config.json there
            }
            let err = jevons(dir.path(), args).fails(1);
            assert!(err.starts_with(&format!("error: {model}: ")) && err.contains(words), "{args:?}: {err}");
        }
    }
    assert!(jevons(dir.path(), &["info", "file"]).fails(1).contains("not valid JSON"));
}

#[cfg(not(builtin_model))]
#[test]
fn a_build_without_a_model_says_so() {
    let dir = tempdir().unwrap();
    for args in [&[][..], &["chat"], &["info"]] {
        assert!(jevons(dir.path(), args).fails(1).contains("no built-in model"));
    }
}

#[test]
fn token_files_are_checked() {
    let dir = tempdir().unwrap();
    write_model(&dir.path().join("m"));
    for command in ["score", "generate"] {
        let missing = jevons(dir.path(), &[command, "m", "--token-ids", "nowhere.json"]).fails(1);
        assert!(missing.contains("nowhere.json: cannot read the file"), "{missing}");
        let (long, last) = (format!("[{}0]", "7,".repeat(160)), "[[1, 2], [3, 320]]");
        for (json, words) in [
            ("[1, 2", "expected JSON, a list of token ids"),
            ("{\"ids\": [1]}", "expected JSON, a list of token ids"),
            ("[[1, 2], [-1]]", "expected JSON, a list of token ids"),
            ("[]", "the list is empty"),
            ("[[1, 2], []]", "it has no tokens"),
            (&long, "it has 161 tokens and the model's context is 160"),
            (last, "token 320 at position 1 is outside the vocabulary of 320"),
        ] {
            let err = jevons_with(dir.path(), &[command, "m", "--token-ids", "-"], json).fails(1);
            assert!(err.contains(words), "{command} {json}: {err}");
            if json == last {
                assert!(err.contains("sequence 1"), "{err}");
            }
        }
    }
    let err = jevons_with(dir.path(), &["score", "m", "--token-ids", "-"], "[[1], [2]]").fails(1);
    assert!(err.contains("no next token to predict"), "{err}");
}

#[test]
fn text_without_a_tokenizer_is_refused_with_a_way_out() {
    let dir = tempdir().unwrap();
    write_model(&dir.path().join("m"));
    for args in [&["score", "m", "--text", "hello"][..], &["generate", "m", "hello"]] {
        let err = jevons(dir.path(), args).fails(1);
        assert!(err.contains("tokenizer.json") && err.contains("--token-ids"), "{err}");
    }
    assert!(jevons(dir.path(), &["chat", "m"]).fails(1).contains("tokenizer.json"));
    let stop = jevons_with(dir.path(), &["generate", "m", "--token-ids", "-", "--stop", "x"], "[1]").fails(1);
    assert!(stop.contains("stop strings need a tokenizer"), "{stop}");
}

#[test]
fn settings_out_of_range_are_refused() {
    let dir = tempdir().unwrap();
    write_model(&dir.path().join("m"));
    for (flag, value) in [("--temperature", "1e-9"), ("--top-p", "1.5"), ("--min-p", "2")] {
        let err = jevons_with(dir.path(), &["generate", "m", "--token-ids", "-", flag, value], "[1]").fails(1);
        assert!(err.contains(&flag[2..].replace('-', "_")), "{err}");
    }
}
