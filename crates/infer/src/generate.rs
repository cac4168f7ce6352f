//! Prompt in, tokens and text out: prefill in pieces, then one token of every sequence at a time.

use std::{ops::ControlFlow, time::Instant};

use jevons_model::{Config, Extend, KvCache, Model};
use jevons_text::{DecodeStream, Tokenizer};

use crate::{
    sampler::{LogitsError, Sampler, Sampling, SamplingError},
    sequence::{SequenceError, check_sequence},
    stop::{EmptyStopString, StopStrings},
};

/// What to generate.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// Stop after this many; the model's context may end it earlier.
    pub max_new_tokens: usize,
    /// How to choose a token.
    pub sampling: Sampling,
    /// Stop before any of these texts. They need a tokenizer.
    pub stop_strings: Vec<String>,
    /// Stop after any of these tokens. None: never.
    pub eos_token_ids: Vec<u32>,
    /// Leave special tokens in the text.
    pub keep_special: bool,
    /// Most prompt tokens of a sequence computed at once; changes memory and speed, never the result.
    pub prefill_chunk: usize,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self {
            max_new_tokens: 256,
            sampling: Sampling::default(),
            stop_strings: vec![],
            eos_token_ids: vec![],
            keep_special: false,
            prefill_chunk: 512,
        }
    }
}

/// What happens while generating. Return [`ControlFlow::Break`] to stop the sequence; what it has so far is kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Event<'a> {
    /// `done` of `total` prompt tokens are in the cache, those found there included.
    Prefill {
        /// Prompt tokens in the cache.
        done: usize,
        /// Prompt tokens.
        total: usize,
    },
    /// A token was chosen.
    Token {
        /// Its id.
        id: u32,
        /// As in [`Choice`](crate::Choice).
        logprob: f32,
    },
    /// More text, whole characters only. Held back while it may become a stop string, so it follows its tokens.
    Text(&'a str),
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// A token of `eos_token_ids`; it is the last of `token_ids` and not in the text.
    Eos,
    /// A stop string; it is in `token_ids` and not in the text.
    StopString,
    /// `max_new_tokens`, or the end of the context.
    Length,
    /// By the callback.
    Cancelled,
}

impl FinishReason {
    /// As reports print it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Eos => "eos",
            Self::StopString => "stop_string",
            Self::Length => "length",
            Self::Cancelled => "cancelled",
        }
    }
}

/// A finished generation.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// New tokens only.
    pub token_ids: Vec<u32>,
    /// Of each new token, as in [`Choice`](crate::Choice).
    pub logprobs: Vec<f32>,
    /// Text of the new tokens; empty without a tokenizer.
    pub text: String,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Length of the prompt.
    pub prompt_tokens: usize,
    /// Prompt tokens that were in the cache already.
    pub cached_tokens: usize,
    /// From the start to the first new token.
    pub prefill_s: f64,
    /// From the first new token to the last.
    pub decode_s: f64,
}

impl Generation {
    /// Prompt tokens computed per second. Of a sequence in a batch: beside the work for the others.
    pub fn prefill_tokens_per_s(&self) -> Option<f64> {
        rate(self.prompt_tokens - self.cached_tokens, self.prefill_s)
    }

    /// New tokens per second, the first (which prefill computes) not counted.
    pub fn decode_tokens_per_s(&self) -> Option<f64> {
        rate(self.token_ids.len().saturating_sub(1), self.decode_s)
    }
}

fn rate(tokens: usize, seconds: f64) -> Option<f64> {
    (tokens > 0 && seconds > 0.0).then(|| tokens as f64 / seconds)
}

/// Why there is no generation.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum GenerateError {
    /// Before anything is computed.
    #[error("the prompt cannot be used: {0}")]
    Prompt(#[source] SequenceError),
    /// Before anything is computed.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// Before anything is computed.
    #[error(transparent)]
    StopString(#[from] EmptyStopString),
    /// Before anything is computed.
    #[error("stop strings need a tokenizer, and there is none")]
    StopWithoutTokenizer,
    /// The model gives no distribution for the token at `position`.
    #[error("cannot choose token {position} of the sequence: {source}")]
    Logits {
        /// In prompt and new tokens together, from 0.
        position: usize,
        /// Why.
        source: LogitsError,
    },
}

/// A sequence's cache and the tokens it holds, for one model. Kept from one turn of a chat to the next, it spares
/// computing what both prompts begin with.
pub struct Session {
    tokens: Vec<u32>,
    cache: KvCache,
}

impl Session {
    /// Nothing computed yet.
    pub fn new(model: &Model) -> Self {
        Self { tokens: vec![], cache: model.new_cache() }
    }

    /// The tokens in the cache.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Keeps what `prompt` begins with, but never its last token, whose logits are wanted. Returns how many stay.
    fn keep_prefix_of(&mut self, prompt: &[u32]) -> usize {
        let common = self.tokens.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let keep = common.min(prompt.len() - 1);
        self.tokens.truncate(keep);
        self.cache.truncate(keep);
        keep
    }
}

/// One sequence of a batch.
pub struct Request<'a> {
    /// At least one token.
    pub prompt: &'a [u32],
    /// What to generate.
    pub options: &'a GenerateOptions,
    /// Names the random numbers together with the seed: which of several answers to one prompt this is.
    pub choice: u64,
    /// The cache to use; it may hold the beginning of the prompt.
    pub session: &'a mut Session,
}

/// Continues `prompt`; the tokens are those of [`generate_batch`] with choice 0.
///
/// # Errors
/// A prompt or option that cannot be used, before anything is computed; a damaged model.
pub fn generate(
    model: &Model,
    session: &mut Session,
    prompt: &[u32],
    options: &GenerateOptions,
    tokenizer: Option<&Tokenizer>,
    on_event: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
) -> Result<Generation, GenerateError> {
    let request = Request { prompt, options, choice: 0, session };
    generate_batch(model, vec![request], tokenizer, &mut |_, event| on_event(event)).pop().expect("one request")
}

/// Continues every prompt, all together; the tokens are those that each gives alone. `on_event` gets the index of the
/// request, and stops that one only.
pub fn generate_batch(
    model: &Model,
    requests: Vec<Request<'_>>,
    tokenizer: Option<&Tokenizer>,
    on_event: &mut dyn FnMut(usize, Event<'_>) -> ControlFlow<()>,
) -> Vec<Result<Generation, GenerateError>> {
    let mut results: Vec<_> = requests.iter().map(|_| None).collect();
    let mut running = vec![];
    for (index, request) in requests.into_iter().enumerate() {
        match Running::start(index, model.config(), request, tokenizer) {
            Ok(sequence) if sequence.left == 0 => {
                results[index] = Some(Ok(sequence.finish(FinishReason::Length, &mut |_| ControlFlow::Continue(()))));
            }
            Ok(sequence) => running.push(sequence),
            Err(error) => results[index] = Some(Err(error)),
        }
    }
    while !running.is_empty() {
        let mut batch: Vec<_> = running.iter_mut().map(Running::extend).collect();
        let logits = model.extend(&mut batch);
        let mut still_running = vec![];
        for (mut sequence, logits) in running.into_iter().zip(logits) {
            let index = sequence.index;
            let mut on_event = |event: Event<'_>| on_event(index, event);
            match sequence.step(&logits, &mut on_event) {
                Ok(ControlFlow::Continue(())) => still_running.push(sequence),
                Ok(ControlFlow::Break(reason)) => results[index] = Some(Ok(sequence.finish(reason, &mut on_event))),
                Err(error) => results[index] = Some(Err(error)),
            }
        }
        running = still_running;
    }
    results.into_iter().map(|r| r.expect("every sequence ends")).collect()
}

/// A sequence that wants tokens.
struct Running<'a> {
    index: usize,
    choice: u64,
    sampler: Sampler,
    options: &'a GenerateOptions,
    session: &'a mut Session,
    /// Prompt tokens, or the token just chosen.
    source: Vec<u32>,
    /// Of them, already in the cache.
    fed: usize,
    /// New tokens still allowed.
    left: usize,
    text: Option<(DecodeStream<'a>, StopStrings)>,
    started: Instant,
    generation: Generation,
}

impl<'a> Running<'a> {
    fn start(
        index: usize,
        config: &Config,
        request: Request<'a>,
        tokenizer: Option<&'a Tokenizer>,
    ) -> Result<Self, GenerateError> {
        let Request { prompt, options, choice, session } = request;
        check_sequence(config, prompt).map_err(GenerateError::Prompt)?;
        let sampler = Sampler::new(options.sampling.clone())?;
        let stop = StopStrings::new(options.stop_strings.iter().cloned())?;
        if tokenizer.is_none() && !options.stop_strings.is_empty() {
            return Err(GenerateError::StopWithoutTokenizer);
        }
        let cached_tokens = session.keep_prefix_of(prompt);
        Ok(Self {
            index,
            choice,
            sampler,
            options,
            session,
            source: prompt.to_vec(),
            fed: cached_tokens,
            left: options.max_new_tokens.min(config.max_position_embeddings - prompt.len()),
            text: tokenizer.map(|t| (DecodeStream::after(t, !options.keep_special, prompt), stop)),
            started: Instant::now(),
            generation: Generation {
                token_ids: vec![],
                logprobs: vec![],
                text: String::new(),
                finish_reason: FinishReason::Length,
                prompt_tokens: prompt.len(),
                cached_tokens,
                prefill_s: 0.0,
                decode_s: 0.0,
            },
        })
    }

    /// The next tokens for the model.
    fn extend(&mut self) -> Extend<'_> {
        let piece = &self.source[self.fed..];
        let piece = &piece[..piece.len().min(self.options.prefill_chunk.max(1))];
        self.fed += piece.len();
        self.session.tokens.extend(piece);
        Extend { tokens: piece, cache: &mut self.session.cache }
    }

    /// Takes the logits after the last token of [`Running::extend`].
    fn step(
        &mut self,
        logits: &[f32],
        on_event: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<FinishReason>, GenerateError> {
        let prompt_tokens = self.generation.prompt_tokens;
        if self.generation.token_ids.is_empty() {
            if on_event(Event::Prefill { done: self.session.tokens.len(), total: prompt_tokens }).is_break() {
                return Ok(ControlFlow::Break(FinishReason::Cancelled));
            }
            if self.fed < self.source.len() {
                return Ok(ControlFlow::Continue(()));
            }
        }
        let position = prompt_tokens + self.generation.token_ids.len();
        let choice = self.sampler.choose(logits, self.choice, position as u64);
        let choice = choice.map_err(|source| GenerateError::Logits { position, source })?;
        self.generation.token_ids.push(choice.token);
        self.generation.logprobs.push(choice.logprob);
        self.left -= 1;
        let elapsed = self.started.elapsed().as_secs_f64();
        match self.generation.token_ids.len() {
            1 => self.generation.prefill_s = elapsed,
            _ => self.generation.decode_s = elapsed - self.generation.prefill_s,
        }
        let mut flow = on_event(Event::Token { id: choice.token, logprob: choice.logprob });
        if self.options.eos_token_ids.contains(&choice.token) {
            return Ok(ControlFlow::Break(FinishReason::Eos));
        }
        if let Some((decoder, stop)) = &mut self.text {
            let text = stop.push(&decoder.push(choice.token));
            let stopped = stop.is_stopped();
            if self.say(&text, on_event).is_break() {
                flow = ControlFlow::Break(());
            }
            if stopped {
                return Ok(ControlFlow::Break(FinishReason::StopString));
            }
        }
        if self.left == 0 {
            return Ok(ControlFlow::Break(FinishReason::Length));
        }
        if flow.is_break() {
            return Ok(ControlFlow::Break(FinishReason::Cancelled));
        }
        self.source = vec![choice.token];
        self.fed = 0;
        Ok(ControlFlow::Continue(()))
    }

    fn finish(mut self, reason: FinishReason, on_event: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>) -> Generation {
        if let Some((mut decoder, mut stop)) = self.text.take() {
            let mut text = stop.push(&decoder.finish());
            text += &stop.finish();
            let _ = self.say(&text, on_event); // it has ended already
        }
        self.generation.finish_reason = reason;
        self.generation
    }

    fn say(&mut self, text: &str, on_event: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>) -> ControlFlow<()> {
        if text.is_empty() {
            return ControlFlow::Continue(());
        }
        self.generation.text.push_str(text);
        on_event(Event::Text(text))
    }
}
