//! The built-in model on what it promises: sums it has never seen, and saying what it is.

use std::{ops::ControlFlow, path::Path};

use jevons_infer::{Chat, GenerateOptions, Sampling};
use jevons_model::{LoadOptions, Model};
use jevons_text::{ChatTemplate, Tokenizer};
use jevons_train::data::arithmetic::{Op, evaluate_answer, heldout_pairs};

struct BuiltIn {
    model: Model,
    tokenizer: Tokenizer,
    template: ChatTemplate,
}

fn open() -> BuiltIn {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("builtin");
    let size: u64 = std::fs::read_dir(&dir).unwrap().map(|f| f.unwrap().metadata().unwrap().len()).sum();
    assert!(size <= 8 << 20, "{size} bytes");
    BuiltIn {
        model: Model::load(&dir, LoadOptions::default()).unwrap(),
        tokenizer: Tokenizer::from_file(dir.join("tokenizer.json")).unwrap(),
        template: ChatTemplate::from_folder(&dir).unwrap().unwrap(),
    }
}

impl BuiltIn {
    /// Thinking and answer, greedy.
    fn ask(&self, question: &str) -> (String, String) {
        let options = GenerateOptions {
            max_new_tokens: 250,
            sampling: Sampling { temperature: 0.0, ..Sampling::default() },
            eos_token_ids: self.model.config().eos_token_ids.clone(),
            ..GenerateOptions::default()
        };
        let mut chat = Chat::new(&self.model, &self.tokenizer, Some(&self.template), options);
        chat.ask(question, &mut |_| ControlFlow::Continue(())).unwrap();
        let turn = chat.turns().last().unwrap();
        (turn.thinking.clone(), turn.answer.clone())
    }
}

#[test]
fn nine_of_ten_sums_and_differences_of_two_digit_numbers_that_it_has_never_seen_are_right() {
    let model = open();
    let all = heldout_pairs(usize::MAX);
    for op in [Op::Add, Op::Sub] {
        let pairs: Vec<_> = all.iter().filter(|p| p.op == op).collect();
        let asked: Vec<_> = pairs.iter().step_by(pairs.len() / 80).collect();
        let mut right = 0;
        for p in &asked {
            let (thinking, answer) = model.ask(&format!("What is {p}?"));
            // An answer without its steps does not count, even if it is right.
            if evaluate_answer(&answer) == Some(p.answer()) && !thinking.is_empty() {
                right += 1;
            } else {
                println!("{p} is {}, not {answer:?}; steps:\n{thinking}", p.answer());
            }
        }
        println!("{op}: {right} of {} unseen pairs right", asked.len());
        assert!(right * 10 >= asked.len() * 9, "{op}: {right} of {}", asked.len());
    }
}

#[test]
fn asked_for_more_it_says_what_it_is() {
    let model = open();
    for question in [
        "Who are you?",
        "What is the capital of Portugal?",
        "Write a poem about rain.",
        "Translate this to French: hello",
    ] {
        let (_, answer) = model.ask(question);
        assert!(answer.contains("tiny model built into jevons"), "{question} {answer}");
        assert!(answer.contains("jevons pull "), "{question} {answer}");
    }
}

#[test]
fn it_continues_text_of_the_kind_it_was_trained_on() {
    let model = open();
    let prompt = model.tokenizer.encode("<｜begin▁of▁sentence｜>Tom has five apples. He").unwrap();
    let mut cache = model.model.new_cache();
    let mut tokens = prompt;
    let mut out = Vec::new();
    for _ in 0..20 {
        let logits = model.model.extend(&mut [jevons_model::Extend { tokens: &tokens, cache: &mut cache }]).remove(0);
        let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap() as u32;
        out.push(best);
        tokens = vec![best];
    }
    let text = model.tokenizer.decode_skip_special(&out);
    println!("Tom has five apples. He{text}");
    assert!(
        text.split_whitespace().filter(|w| w.chars().all(|c| c.is_alphabetic() || c.is_ascii_punctuation())).count()
            >= 6,
        "{text:?}"
    );
}
