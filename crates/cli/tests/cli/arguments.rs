//! What the binary does with wrong arguments and missing files.

use std::fs;

use crate::common::{jevons, jevons_with, write_model};
use tempfile::tempdir;

#[test]
fn every_command_explains_itself() {
    let dir = tempdir().unwrap();
    let help = jevons(dir.path(), &["--help"]).ok();
    for command in ["chat", "generate", "score", "info", "tokenizer", "convert", "completions"] {
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
        assert!(jevons(dir.path(), &["completions", shell]).ok().contains("max-new-tokens"), "{shell}");
    }
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
