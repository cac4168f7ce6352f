use std::path::PathBuf;

use proptest::prelude::*;

use super::*;

const SMALL: &str = r#"
name = "small"
seed = 3

[model]
init = "start"

[data]
sequence_length = 64
sources = [{ path = "a.txt" }]

[batch]
sequences = 8
micro_batch_sequences = 4

[optimizer]
lr = 1e-3

[schedule]
steps = 10

[run]
folder = "out"
"#;

fn small() -> Recipe {
    Recipe::parse(SMALL, "folder/small.toml").unwrap()
}

fn error(text: &str) -> String {
    Recipe::parse(text, "r.toml").unwrap_err().to_string()
}

#[test]
fn the_documented_example_parses() {
    let r = Recipe::parse(Recipe::documented_example(), "example.toml").unwrap();
    assert_eq!(r.data.sources.len(), 3);
    assert_eq!(r.data.sources[1].remove, [["<<".to_string(), ">>".to_string()]]);
    assert_eq!(r.model.config.as_ref().unwrap()["n_routed_experts"], 8);
}

/// Every key that may stand beside `line` of the example, by asking serde: an unknown key is answered with all valid ones.
fn keys_beside(line: &str) -> Vec<String> {
    let text = Recipe::documented_example().replacen(line, &format!("{line}\nnone_such = 1"), 1);
    match Recipe::parse(&text, "e.toml").unwrap_err() {
        RecipeError::UnknownKey { key, expected, .. } if key == "none_such" => expected,
        other => panic!("{other}"),
    }
}

#[test]
fn the_documented_example_has_every_key() {
    let example = Recipe::documented_example();
    let tables = ["model", "data", "batch", "optimizer", "schedule", "moe", "evaluation", "checkpoint", "run"];
    let mut places: Vec<String> = tables.iter().map(|t| format!("\n[{t}]")).collect();
    places.extend(["\n[[data.sources]]".into(), "\nseed = 1".into()]);
    let mut seen = 0;
    for place in places {
        for key in keys_beside(&place) {
            let written = example.lines().any(|l| {
                let l = l.trim_start_matches("# ");
                let heads =
                    [format!("{key} ="), format!("[{key}]"), format!("[model.{key}]"), format!("[[data.{key}]]")];
                heads.iter().any(|head| l.starts_with(head))
            });
            assert!(written, "{place} {key}");
            seen += 1;
        }
    }
    assert!(seen > 50, "{seen}");
}

#[test]
fn the_keys_of_fp8_are_in_the_example_with_their_defaults() {
    // As it stands there, without the signs of a comment.
    let example = Recipe::documented_example().replacen("precision = \"bf16\"", "precision = \"fp8\"", 1);
    let mut example: Vec<&str> = example.lines().collect();
    let first = example.iter().position(|l| l.starts_with("# [fp8]")).unwrap();
    example[first..first + 5].iter_mut().for_each(|l| *l = l.strip_prefix("# ").unwrap());
    let text = example.join("\n");
    assert_eq!(Recipe::parse(&text, "e.toml").unwrap().fp8, Some(Fp8Section::default()));
    let message = error(&text.replacen("[fp8]", "[fp8]\nlinear = \"auto\"", 1));
    assert!(message.contains("did you mean `linears`?"), "{message}");
    assert!(message.ends_with("here a recipe may have scale, wgrad, gradients, linears"), "{message}");
}

#[test]
fn linears_in_fp8_are_all_or_auto_and_only_auto_changes_the_hash() {
    let with = |key: &str| {
        let text = SMALL.replace("seed = 3", &format!("seed = 3\nprecision = \"fp8\"\nfp8 = {{ {key} }}"));
        Recipe::parse(&text, "r.toml")
    };
    let (none, all, auto) =
        (with("").unwrap(), with("linears = \"all\"").unwrap(), with("linears = \"auto\"").unwrap());
    assert_eq!(auto.fp8.unwrap().linears, Fp8Linears::Auto);
    assert_eq!(all.canonical_json(), none.canonical_json());
    assert_eq!(Recipe::changed_keys(&all.canonical_json(), &auto.canonical_json()), ["fp8.linears"]);
    let mut changed = all.clone();
    changed.apply_overrides(&[("fp8.linears", "auto")]).unwrap();
    assert_eq!(changed.hash(), auto.hash());
    let message = with("linears = \"some\"").unwrap_err().to_string();
    assert_eq!(message, "r.toml:5: unknown variant `some`, expected `all` or `auto`");
    let message = changed.apply_overrides(&[("fp8.linears", "none")]).unwrap_err().to_string();
    assert_eq!(message, "--set fp8.linears: unknown variant `none`, expected `all` or `auto`");
    let message = error(&SMALL.replace("seed = 3", "seed = 3\nfp8 = { linears = \"auto\" }"));
    assert!(message.contains("`fp8` is given beside another precision"), "{message}");
    let message =
        changed.apply_overrides(&[("fp8.linears", "auto"), ("checkpoint.dtype", "fp8")]).unwrap_err().to_string();
    assert!(message.contains("`checkpoint.dtype` is \"fp8\" beside fp8.linears"), "{message}");
}

#[test]
fn the_values_that_the_example_calls_defaults_are_the_defaults() {
    let r = small();
    let e = Recipe::parse(Recipe::documented_example(), "e.toml").unwrap();
    assert_eq!((r.precision, r.recompute), (e.precision, e.recompute));
    assert_eq!((r.moe, r.evaluation, r.checkpoint), (e.moe, e.evaluation, e.checkpoint));
    assert_eq!(OptimizerSection { lr: r.optimizer.lr, moments: None, ..e.optimizer }, r.optimizer);
    assert_eq!(r.moments(), e.moments());
    assert_eq!((r.data.packing, r.data.attention, r.data.tensor), (e.data.packing, e.data.attention, e.data.tensor));
    assert_eq!(r.schedule.final_lr_fraction, e.schedule.final_lr_fraction);
    assert_eq!(r.data.sources[0].document_bytes, e.data.sources[0].document_bytes);
    assert_eq!(r.data.sources[0], Source::files("a.txt"));
    let text = SMALL.replace("init = \"start\"", "config = {}\ntokenizer = { train = { vocab_size = 4096 } }");
    assert_eq!(Recipe::parse(&text, "r.toml").unwrap().model.tokenizer, e.model.tokenizer);
}

#[test]
fn an_unknown_key_is_named_with_file_line_and_the_nearest_key() {
    let message = error(&SMALL.replace("lr = 1e-3", "lr = 1e-3\nweigth_decay = 0.1"));
    assert!(message.starts_with("r.toml:18: unknown key `weigth_decay`, did you mean `weight_decay`?;"), "{message}");
    let message = error(&SMALL.replace("path = \"a.txt\"", "path = \"a.txt\", repeats = 2"));
    assert!(message.contains("r.toml:10: unknown key `repeats`, did you mean `repeat`?"), "{message}");
    let message = error(&SMALL.replace("[run]", "[rum]"));
    assert!(message.contains("unknown key `rum`, did you mean `run`?"), "{message}");
    let tokenizer = "config = {}\n[model.tokenizer]\ntrain = { vocab_size = 512, split_digit = \"single\" }";
    let message = error(&SMALL.replace("init = \"start\"", tokenizer));
    assert!(message.contains("r.toml:8: unknown key `split_digit`, did you mean `split_digits`?"), "{message}");
    let message = error(&SMALL.replace("seed = 3", "seed = 3\nxyzzy = 1"));
    assert!(message.starts_with("r.toml:4: unknown key `xyzzy`; here a recipe may have name, seed,"), "{message}");
}

#[test]
fn wrong_types_missing_keys_and_bad_toml_name_the_line() {
    assert!(error(&SMALL.replace("lr = 1e-3", "lr = \"fast\"")).starts_with("r.toml:17: invalid type: string"));
    assert!(error(&SMALL.replace("lr = 1e-3", "lr = = 2")).starts_with("r.toml:17: "));
    let message = error(&SMALL.replace("steps = 10", ""));
    assert!(message.starts_with("r.toml:19: the key `steps` is missing"), "{message}");
    let message = error(&SMALL.replace("seed = 3", "seed = 3\nprecision = \"fp4\""));
    assert!(message.starts_with("r.toml:4: unknown variant `fp4`, expected one of `f32`, `bf16`, `fp8`"), "{message}");
}

#[test]
fn each_absurd_value_is_refused_with_its_key_and_line() {
    let cases = [
        ("steps = 10", "steps = 0", "r.toml:20: `schedule.steps` is 0; expected 1 or more"),
        ("lr = 1e-3", "lr = nan", "r.toml:17: `optimizer.lr` is NaN;"),
        ("lr = 1e-3", "lr = inf", "r.toml:17: `optimizer.lr` is inf;"),
        ("lr = 1e-3", "lr = 0.0", "`optimizer.lr` is 0;"),
        (
            "lr = 1e-3",
            "lr = 1e-3\nbetas = [0.9, 1.0]",
            "r.toml:18: `optimizer.betas.1` is 1; expected 0 or more, below 1",
        ),
        (
            "lr = 1e-3",
            "lr = 1e-3\nbetas = [0.9, 0.999]\nmoments = \"bf16\"",
            "r.toml:18: `optimizer.betas.1` is 0.999; expected at most 0.9921875",
        ),
        ("lr = 1e-3", "lr = 1e-3\ngrad_clip = -1.0", "`optimizer.grad_clip` is -1;"),
        ("lr = 1e-3", "lr = 1e-3\neps = 0.0", "`optimizer.eps` is 0;"),
        (
            "micro_batch_sequences = 4",
            "micro_batch_sequences = 3",
            "r.toml:14: `batch.micro_batch_sequences` is 3; expected a divisor of batch.sequences, which is 8",
        ),
        ("micro_batch_sequences = 4", "micro_batch_sequences = 0", "`batch.micro_batch_sequences` is 0;"),
        ("steps = 10", "steps = 10\nwarmup_steps = 11", "r.toml:21: `schedule.warmup_steps` is 11;"),
        ("steps = 10", "steps = 10\nwarmup_steps = 4\nconstant_steps = 7", "`schedule.constant_steps` is 7;"),
        (
            "steps = 10",
            "steps = 10\nconstant_steps = 7\nconstant_fraction = 0.5",
            "`schedule.constant_fraction` is given beside",
        ),
        ("steps = 10", "steps = 10\nconstant_fraction = 1.5", "`schedule.constant_fraction` is 1.5;"),
        ("steps = 10", "steps = 10\nfinal_lr_fraction = 2.0", "`schedule.final_lr_fraction` is 2;"),
        ("sequence_length = 64", "sequence_length = 0", "r.toml:9: `data.sequence_length` is 0;"),
        ("sequence_length = 64", "sequence_length = 64\nheldout_fraction = 0.9", "`data.heldout_fraction` is 0.9;"),
        ("sequence_length = 64", "sequence_length = 64\ntokens = \"t\"", "`data.tokens` is given beside data.sources"),
        ("sources = [{ path = \"a.txt\" }]", "", "`data` is without sources and tokens"),
        ("{ path = \"a.txt\" }", "{ path = \"a.txt\", repeat = 0.0 }", "r.toml:10: `data.sources.0.repeat` is 0;"),
        ("{ path = \"a.txt\" }", "{ path = \"a.txt\", count = 3 }", "`data.sources.0.count` is given beside path"),
        (
            "{ path = \"a.txt\" }",
            "{ path = \"a.txt\", prompt = \"{q}\" }",
            "`data.sources.0` is without one clear shape",
        ),
        ("{ path = \"a.txt\" }", "{ generator = \"arithmetic\" }", "`data.sources.0` is a generator without count"),
        ("{ path = \"a.txt\" }", "{ repeat = 2.0 }", "`data.sources.0` is without path and generator"),
        (
            "{ path = \"a.txt\" }",
            "{ path = \"a.txt\", remove = [[\"\", \"b\"]] }",
            "`data.sources.0.remove.0` is an empty mark",
        ),
        ("init = \"start\"", "", "`model` is without init and config"),
        ("init = \"start\"", "config = {}", "`model` is without tokenizer"),
        ("init = \"start\"", "init = \"start\"\nconfig = {}", "`model.init` is given beside model.config"),
        (
            "init = \"start\"",
            "init = \"start\"\ntokenizer = { train = { vocab_size = 512 } }",
            "`model.tokenizer` is to be learnt anew",
        ),
        (
            "init = \"start\"",
            "config = {}\ntokenizer = { train = { vocab_size = 100 } }",
            "`model.tokenizer.train.vocab_size` is 100;",
        ),
        ("init = \"start\"", "init = \"start\"\nfreeze = [\"a\", \"\"]", "r.toml:7: `model.freeze.1` is empty"),
        ("name = \"small\"", "name = \"../x\"", "r.toml:2: `name` is \"../x\""),
        ("folder = \"out\"", "folder = \"\"", "`run.folder` is empty"),
        ("[run]", "[moe]\nbias_update_speed = -0.1\n[run]", "r.toml:23: `moe.bias_update_speed` is -0.1;"),
        ("[run]", "[evaluation]\nheldout_sequences = 0\n[run]", "`evaluation.heldout_sequences` is 0;"),
    ];
    for (old, new, want) in cases {
        assert!(SMALL.contains(old), "{old}");
        let message = error(&SMALL.replacen(old, new, 1));
        assert!(message.contains(want), "{new}\n{message}");
    }
}

#[test]
fn overrides_change_the_key_and_nothing_else() {
    let mut r = small();
    let set = [
        ("schedule.steps", "100"),
        ("optimizer.lr", "2e-4"),
        ("name", "other"),
        ("data.sources.0.repeat", "2.5"),
        ("moe.collapsed_expert_steps", "7"),
        ("optimizer.betas", "[0.8, 0.9]"),
        ("model.init", "else/where"),
    ];
    r.apply_overrides(&set).unwrap();
    let mut want = small();
    want.schedule.steps = 100;
    want.optimizer.lr = 2e-4;
    want.name = "other".into();
    want.data.sources[0].repeat = 2.5;
    want.moe.collapsed_expert_steps = 7;
    want.optimizer.betas = [0.8, 0.9];
    want.model.init = Some("else/where".into());
    assert_eq!(r, want);
    assert_eq!(r.resolve("a.txt"), PathBuf::from("folder/a.txt"));
}

#[test]
fn a_wrong_override_names_the_key_and_changes_nothing() {
    let mut r = small();
    let cases = [
        ("schedule.step", "5", "--set schedule.step: unknown key `step`, did you mean `steps`?"),
        ("schedule.steps", "many", "--set schedule.steps: invalid type: string \"many\""),
        ("data.sources.3.repeat", "1", "`3` is no element of a list of 1"),
        ("schedule.steps.x", "1", "`x` is looked for in a integer"),
        ("schedule..steps", "1", "expected a dotted key"),
        ("schedule.steps", "0", "`schedule.steps` is 0"),
    ];
    for (key, value, want) in cases {
        let message = r.apply_overrides(&[("seed", "9"), (key, value)]).unwrap_err().to_string();
        assert!(message.contains(want), "{message}");
        assert_eq!(r, small());
    }
}

#[test]
fn the_hash_follows_the_numbers_and_not_where_they_are_written() {
    let base = small();
    let with = |set: &[(&str, &str)]| {
        let mut r = small();
        r.apply_overrides(set).unwrap();
        r.hash()
    };
    let same = [
        ("name", "x"),
        ("run.folder", "x"),
        ("checkpoint.every_steps", "3"),
        ("evaluation.every_steps", "3"),
        ("recompute", "layer"),
        ("data.cache", "x"),
        ("data.sources.0.repeat", "1.0"),
    ];
    for set in same {
        assert_eq!(with(&[set]), base.hash(), "{set:?}");
    }
    let other = [
        ("seed", "4"),
        ("precision", "f32"),
        ("precision", "fp8"),
        ("schedule.steps", "11"),
        ("batch.micro_batch_sequences", "2"),
        ("data.sources.0.repeat", "2.0"),
        ("model.freeze", "[\"a\"]"),
        ("data.attention", "sequence"),
    ];
    for set in other {
        assert_ne!(with(&[set]), base.hash(), "{set:?}");
    }
    assert_eq!(base.hash().len(), 64);
    // A golden value: a change of it would refuse to resume every run there is.
    assert_eq!(base.canonical_json(), include_str!("small.canonical.json").trim_end());
}

#[test]
fn the_changed_keys_are_listed_by_their_dotted_names() {
    let (a, mut b) = (small(), small());
    b.apply_overrides(&[("schedule.warmup_steps", "3"), ("data.sources.0.path", "b.txt"), ("model.freeze", "[\"x\"]")])
        .unwrap();
    let keys = Recipe::changed_keys(&a.canonical_json(), &b.canonical_json());
    assert_eq!(keys, ["data.sources.0.path", "model.freeze", "schedule.warmup_steps"]);
    assert!(Recipe::changed_keys(&a.canonical_json(), &a.canonical_json()).is_empty());
}

#[test]
fn a_missing_recipe_says_which() {
    let message = Recipe::load("/nowhere/r.toml").unwrap_err().to_string();
    assert_eq!(message, "/nowhere/r.toml: cannot read the recipe");
}

#[test]
fn freeze_patterns_match_published_names() {
    let mut m = small().model;
    m.freeze = vec!["model.embed_tokens.*".into(), "*.experts.*.up_proj.weight".into()];
    assert!(m.is_frozen("model.embed_tokens.weight"));
    assert!(m.is_frozen("model.layers.1.mlp.experts.12.up_proj.weight"));
    assert!(!m.is_frozen("model.layers.1.mlp.experts.12.down_proj.weight"));
    assert!(!m.is_frozen("lm_head.weight"));
}

#[test]
fn stars_stop_at_a_slash_and_two_stars_do_not() {
    assert!(glob_matches("a/*.txt", "a/b.txt") && !glob_matches("a/*.txt", "a/b/c.txt"));
    assert!(glob_matches("a/**.txt", "a/b/c.txt") && glob_matches("**", "") && !glob_matches("", "a"));
    assert!(glob_matches("?b*", "abc") && !glob_matches("?b", "b") && !glob_matches("?", "/"));
}

/// The meaning of a pattern, spelled out.
fn naive(p: &[char], t: &[char]) -> bool {
    match p {
        [] => t.is_empty(),
        ['*', '*', rest @ ..] => (0..=t.len()).any(|i| naive(rest, &t[i..])),
        ['*', rest @ ..] => (0..=t.len()).take_while(|i| !t[..*i].contains(&'/')).any(|i| naive(rest, &t[i..])),
        [c, rest @ ..] => !t.is_empty() && (*c == t[0] || (*c == '?' && t[0] != '/')) && naive(rest, &t[1..]),
    }
}

proptest! {
    #[test]
    fn a_pattern_matches_what_its_meaning_says(pattern in "[ab/*?]{0,7}", text in "[ab/]{0,7}") {
        let (p, t): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
        prop_assert_eq!(glob_matches(&pattern, &text), naive(&p, &t));
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in "[a-z\\[\\]{}=\"'\\.0-9\n #]{0,200}") {
        let _ = Recipe::parse(&text, "r.toml");
    }
}

#[test]
fn moments_are_bf16_where_a_run_in_fp8_lets_them_decay() {
    let moments = |precision: &str, changes: &[(&str, &str)]| {
        let mut recipe = small();
        let changes: Vec<_> = [("precision", precision)].iter().chain(changes).copied().collect();
        recipe.apply_overrides(&changes).unwrap();
        recipe.validate().unwrap();
        recipe.moments()
    };
    assert_eq!(moments("fp8", &[]), MomentsFormat::Bf16);
    assert_eq!(moments("bf16", &[]), MomentsFormat::F32);
    assert_eq!(moments("fp8", &[("optimizer.betas", "[0.9, 0.999]")]), MomentsFormat::F32);
    assert_eq!(moments("fp8", &[("optimizer.moments", "f32")]), MomentsFormat::F32);
    assert_eq!(moments("bf16", &[("optimizer.moments", "bf16")]), MomentsFormat::Bf16);

    // What a run is: the format, not whether it was said.
    let mut said = small();
    said.optimizer.moments = Some(MomentsFormat::F32);
    assert_eq!(said.canonical_json(), small().canonical_json());
}
