//! The loop around a real (small, random) model.

use std::ops::ControlFlow;

use crate::common::{damaged, deepseek_v3, prompt, qwen2};
use jevons_infer::{
    Event, FinishReason, GenerateError, GenerateOptions, Generation, Request, Sampling, Score, SequenceError, Session,
    generate, generate_batch, score,
};
use jevons_model::{Model, Precision};

const VOCAB: u32 = 64;

fn models() -> [Model; 3] {
    let v = VOCAB as usize;
    [deepseek_v3(v, Precision::F32), deepseek_v3(v, Precision::Bf16), qwen2(v, Precision::Bf16)]
}

fn warm(seed: u64) -> GenerateOptions {
    let sampling = Sampling { temperature: 1.0, seed, ..Sampling::default() };
    GenerateOptions { max_new_tokens: 12, sampling, ..GenerateOptions::default() }
}

fn greedy() -> GenerateOptions {
    GenerateOptions { max_new_tokens: 12, ..GenerateOptions::default() }
}

fn alone(model: &Model, prompt: &[u32], options: &GenerateOptions) -> Generation {
    generate(model, &mut Session::new(model), prompt, options, None, &mut |_| ControlFlow::Continue(())).unwrap()
}

fn refused(model: &Model, prompt: &[u32], options: &GenerateOptions) -> GenerateError {
    generate(model, &mut Session::new(model), prompt, options, None, &mut |_| panic!("computed")).unwrap_err()
}

/// All that does not depend on the clock.
fn bits(g: &Generation) -> (Vec<u32>, Vec<u32>, FinishReason) {
    (g.token_ids.clone(), g.logprobs.iter().map(|x| x.to_bits()).collect(), g.finish_reason)
}

#[test]
fn a_batch_gives_each_sequence_the_tokens_it_gives_alone() {
    for model in models() {
        let prompts: Vec<_> = [1, 40, 7, 96, 90].iter().map(|n| prompt(*n, 3, VOCAB)).collect();
        let options = [warm(1), greedy(), GenerateOptions { prefill_chunk: 3, ..warm(2) }, warm(3), greedy()];
        let mut sessions: Vec<_> = prompts.iter().map(|_| Session::new(&model)).collect();
        let requests = prompts.iter().zip(&options).zip(&mut sessions);
        let requests = requests.map(|((prompt, options), session)| Request { prompt, options, choice: 0, session });
        let together = generate_batch(&model, requests.collect(), None, &mut |_, _| ControlFlow::Continue(()));
        for ((prompt, options), together) in prompts.iter().zip(&options).zip(together) {
            assert_eq!(bits(&together.unwrap()), bits(&alone(&model, prompt, options)));
        }
    }
}

#[test]
fn the_cut_of_the_prompt_changes_no_bit() {
    for model in models() {
        let prompt = prompt(70, 4, VOCAB);
        let whole = alone(&model, &prompt, &warm(1));
        for prefill_chunk in [1, 2, 7, 64, 69, 70] {
            let pieces = alone(&model, &prompt, &GenerateOptions { prefill_chunk, ..warm(1) });
            assert_eq!(bits(&pieces), bits(&whole), "pieces of {prefill_chunk}");
        }
    }
}

#[test]
fn a_reused_cache_changes_no_bit_and_computes_only_what_is_new() {
    for model in models() {
        let mut session = Session::new(&model);
        let first = prompt(20, 5, VOCAB);
        let reply = generate(&model, &mut session, &first, &warm(1), None, &mut |_| ControlFlow::Continue(())).unwrap();
        // The last new token was drawn and not fed.
        assert_eq!(session.tokens(), [&first[..], &reply.token_ids[..11]].concat());
        // Another turn after the reply; the same prompt; a prompt that parts from it early; a shorter one; another one.
        let next_turn = [&first[..], &reply.token_ids, &prompt(9, 6, VOCAB)].concat();
        let parted = [&first[..13], &[(first[13] + 1) % VOCAB], &prompt(3, 7, VOCAB)[..]].concat();
        let other = [&[(first[0] + 1) % VOCAB], &first[1..]].concat();
        for (prompt, cached) in
            [(&next_turn[..], 31), (&next_turn, 40), (&parted, 13), (&parted[..9], 8), (&other, 0), (&first, 0)]
        {
            let again = generate(&model, &mut session, prompt, &warm(2), None, &mut |_| ControlFlow::Continue(()));
            let again = again.unwrap();
            assert_eq!((again.prompt_tokens, again.cached_tokens), (prompt.len(), cached));
            assert_eq!(bits(&again), bits(&alone(&model, prompt, &warm(2))));
        }
    }
}

#[test]
fn logprobs_are_bit_for_bit_those_of_scoring() {
    for model in models() {
        let prompt = prompt(30, 8, VOCAB);
        for options in [warm(9), greedy()] {
            let generation = alone(&model, &prompt, &options);
            let whole = [&prompt[..], &generation.token_ids].concat();
            let Score { logprobs, loss } = score(&model, &[whole], &mut |_| ControlFlow::Continue(())).unwrap();
            assert_eq!(logprobs[0][29..], generation.logprobs);
            let mean = logprobs[0].iter().map(|x| f64::from(*x)).sum::<f64>() / 41.0;
            assert!((loss + mean).abs() < 1e-12);
        }
    }
}

#[test]
fn an_interrupted_generation_goes_on_as_if_nothing_had_happened() {
    let [model, ..] = models();
    let prompt = prompt(30, 10, VOCAB);
    let whole = alone(&model, &prompt, &warm(4));
    let mut seen = 0;
    let mut session = Session::new(&model);
    let half = generate(&model, &mut session, &prompt, &warm(4), None, &mut |event| {
        seen += usize::from(matches!(event, Event::Token { .. }));
        if seen == 5 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let half = half.unwrap();
    assert_eq!((half.finish_reason, half.token_ids.len()), (FinishReason::Cancelled, 5));
    let so_far = [&prompt[..], &half.token_ids].concat();
    let rest = GenerateOptions { max_new_tokens: 7, ..warm(4) };
    let rest = generate(&model, &mut session, &so_far, &rest, None, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!([half.token_ids, rest.token_ids].concat(), whole.token_ids);
}

#[test]
fn it_can_be_stopped_while_it_reads_the_prompt() {
    let [model, ..] = models();
    let options = GenerateOptions { prefill_chunk: 8, ..greedy() };
    let mut session = Session::new(&model);
    let mut heard = vec![];
    let stopped = generate(&model, &mut session, &prompt(30, 11, VOCAB), &options, None, &mut |event| match event {
        Event::Prefill { done, total } => {
            heard.push((done, total));
            if done == 16 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        }
        _ => panic!("{event:?}"),
    });
    let stopped = stopped.unwrap();
    assert_eq!((stopped.finish_reason, stopped.token_ids.len()), (FinishReason::Cancelled, 0));
    assert_eq!(heard, [(8, 30), (16, 30)]);
    assert_eq!(session.tokens().len(), 16);
}

#[test]
fn a_generation_ends_at_an_end_token_the_limit_or_the_context() {
    for model in models() {
        let prompt = prompt(20, 12, VOCAB);
        let free = alone(&model, &prompt, &warm(5));
        assert_eq!((free.finish_reason, free.token_ids.len()), (FinishReason::Length, 12));
        let first_of_its_kind = (0..12).rev().find(|i| !free.token_ids[..*i].contains(&free.token_ids[*i])).unwrap();
        let end = free.token_ids[first_of_its_kind];
        let ended = alone(&model, &prompt, &GenerateOptions { eos_token_ids: vec![end], ..warm(5) });
        assert_eq!(
            (ended.finish_reason, &ended.token_ids[..]),
            (FinishReason::Eos, &free.token_ids[..=first_of_its_kind])
        );
        let none = alone(&model, &prompt, &GenerateOptions { max_new_tokens: 0, ..warm(5) });
        assert_eq!((none.finish_reason, none.token_ids.len()), (FinishReason::Length, 0));
        let long = alone(&model, &prompt, &GenerateOptions { max_new_tokens: usize::MAX, ..warm(5) });
        assert_eq!((long.finish_reason, long.token_ids.len()), (FinishReason::Length, 76));
        assert_eq!(long.token_ids[..12], free.token_ids);
    }
}

#[test]
fn seed_and_choice_change_what_is_drawn() {
    let [model, ..] = models();
    let prompt = prompt(20, 13, VOCAB);
    let base = alone(&model, &prompt, &warm(1));
    assert_ne!(base.token_ids, alone(&model, &prompt, &warm(2)).token_ids);
    let (mut session, options) = (Session::new(&model), warm(1));
    let request = Request { prompt: &prompt, options: &options, choice: 1, session: &mut session };
    let other = generate_batch(&model, vec![request], None, &mut |_, _| ControlFlow::Continue(()));
    assert_ne!(base.token_ids, other[0].as_ref().unwrap().token_ids);
}

#[test]
fn what_cannot_be_continued_is_refused_before_anything_is_computed() {
    let [model, ..] = models();
    let error = |prompt: &[u32]| match refused(&model, prompt, &greedy()) {
        GenerateError::Prompt(error) => error,
        other => panic!("{other}"),
    };
    assert_eq!(error(&[]), SequenceError::Empty);
    assert_eq!(error(&[0; 97]), SequenceError::TooLong { tokens: 97, context: 96 });
    assert_eq!(error(&[3, 64, 65]), SequenceError::Token { id: 64, position: 1, vocab_size: 64 });
    let with = |change: fn(&mut GenerateOptions)| {
        let mut options = greedy();
        change(&mut options);
        refused(&model, &[1], &options).to_string()
    };
    assert!(with(|o| o.sampling.top_p = 1.5).starts_with("top_p is 1.5"));
    assert!(with(|o| o.stop_strings = vec!["x".into()]).contains("tokenizer"));
    assert!(with(|o| o.stop_strings = vec!["".into()]).contains("empty"));
}

#[test]
fn one_bad_request_does_not_disturb_the_others() {
    let [model, ..] = models();
    let (good, options) = (prompt(5, 14, VOCAB), greedy());
    let (mut a, mut b) = (Session::new(&model), Session::new(&model));
    let requests = vec![
        Request { prompt: &[99], options: &options, choice: 0, session: &mut a },
        Request { prompt: &good, options: &options, choice: 0, session: &mut b },
    ];
    let results = generate_batch(&model, requests, None, &mut |_, _| ControlFlow::Continue(()));
    assert!(results[0].is_err());
    assert_eq!(bits(results[1].as_ref().unwrap()), bits(&alone(&model, &good, &options)));
}

#[test]
fn damaged_weights_are_an_error_that_names_the_position() {
    let model = damaged();
    let error =
        generate(&model, &mut Session::new(&model), &[1, 2, 3], &greedy(), None, &mut |_| ControlFlow::Continue(()));
    let error = error.unwrap_err().to_string();
    assert!(error.starts_with("cannot choose token 3 of the sequence: the logit of token 0 is NaN"), "{error}");
}
