//! A conversation: turns rendered by the model's chat template, the cache kept from one to the next, and the oldest
//! turns dropped when the context is full.

use std::ops::ControlFlow;

use jevons_model::Model;
use jevons_text::{
    ChatTemplate, Message, Origin, Piece, Prompt, RenderOptions, TemplateError, ThinkSplitter, Tokenizer,
    TokenizerError,
};

use crate::generate::{Event, GenerateError, GenerateOptions, Generation, Request, Session, generate_batch};

/// One message and its reply.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// What was asked.
    pub user: String,
    /// What the model thought before it answered; empty if it does not think.
    pub thinking: String,
    /// What it answered.
    pub answer: String,
}

/// What happens during a reply. Return [`ControlFlow::Break`] to stop it; what there is of it is kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ChatEvent<'a> {
    /// The context was full, so this many of the oldest turns were forgotten.
    Forgot(usize),
    /// As in [`Event::Prefill`].
    Prefill {
        /// Prompt tokens in the cache.
        done: usize,
        /// Prompt tokens.
        total: usize,
    },
    /// A token was chosen.
    Token,
    /// More of the thinking.
    Thinking(&'a str),
    /// More of the answer.
    Answer(&'a str),
}

/// Why there is no reply; the conversation is as it was before.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// The chat template refuses these messages, or is broken.
    #[error("the model's chat template cannot be used")]
    Template(#[from] TemplateError),
    /// The text cannot be encoded.
    #[error("the text cannot be encoded")]
    Tokenizer(#[from] TokenizerError),
    /// Alone, without any earlier turn, the message fills the context.
    #[error("the message with its template has {tokens} tokens, and the model's context is {context}; shorten it")]
    TooLong {
        /// Of the prompt.
        tokens: usize,
        /// `max_position_embeddings`
        context: usize,
    },
    /// From [`generate`](crate::generate).
    #[error(transparent)]
    Generate(#[from] GenerateError),
}

/// A conversation with a model.
///
/// Without a chat template there is no conversation to render: each message is a text that the model continues.
pub struct Chat<'m> {
    model: &'m Model,
    tokenizer: &'m Tokenizer,
    template: Option<&'m ChatTemplate>,
    session: Session,
    system: Option<String>,
    turns: Vec<Turn>,
    retries: u64,
    /// For the next reply.
    pub options: GenerateOptions,
}

impl<'m> Chat<'m> {
    /// An empty conversation.
    pub fn new(
        model: &'m Model,
        tokenizer: &'m Tokenizer,
        template: Option<&'m ChatTemplate>,
        options: GenerateOptions,
    ) -> Self {
        Self {
            model,
            tokenizer,
            template,
            session: Session::new(model),
            system: None,
            turns: vec![],
            retries: 0,
            options,
        }
    }

    /// The turns not forgotten.
    pub fn turns(&self) -> &[Turn] {
        &self.turns
    }

    /// The system prompt.
    pub fn system(&self) -> Option<&str> {
        self.system.as_deref()
    }

    /// Tokens of the conversation in the cache, and how many fit.
    pub fn context_used(&self) -> (usize, usize) {
        (self.session.tokens().len(), self.model.config().max_position_embeddings)
    }

    /// Forgets every turn.
    pub fn reset(&mut self) {
        self.turns.clear();
    }

    /// Sets the system prompt and forgets every turn.
    pub fn set_system(&mut self, system: Option<String>) {
        self.system = system;
        self.reset();
    }

    /// Sends a message and streams the reply, which becomes the last turn.
    ///
    /// # Errors
    /// If there is no reply; the conversation is then as before, but for turns forgotten to make room.
    pub fn ask(
        &mut self,
        message: &str,
        on_event: &mut dyn FnMut(ChatEvent<'_>) -> ControlFlow<()>,
    ) -> Result<Generation, ChatError> {
        self.retries = 0;
        self.reply(Turn { user: message.to_owned(), ..Turn::default() }, on_event)
    }

    /// Takes the last reply back and draws another one, with the next random numbers of the same seed. None if there is
    /// no turn.
    ///
    /// # Errors
    /// If there is no reply; the old one is kept then.
    pub fn retry(
        &mut self,
        on_event: &mut dyn FnMut(ChatEvent<'_>) -> ControlFlow<()>,
    ) -> Option<Result<Generation, ChatError>> {
        let last = self.turns.pop()?;
        self.retries += 1;
        let again = Turn { user: last.user.clone(), ..Turn::default() };
        let result = self.reply(again, on_event);
        if result.is_err() {
            self.turns.push(last);
        }
        Some(result)
    }

    fn reply(
        &mut self,
        mut turn: Turn,
        on_event: &mut dyn FnMut(ChatEvent<'_>) -> ControlFlow<()>,
    ) -> Result<Generation, ChatError> {
        if self.template.is_none() {
            self.turns.clear();
        }
        let (prompt, starts_in_thinking) = self.prompt(&turn, on_event)?;
        let mut splitter = ThinkSplitter::new(starts_in_thinking);
        let mut take = |pieces: Vec<Piece>, on_event: &mut dyn FnMut(ChatEvent<'_>) -> ControlFlow<()>| {
            let mut flow = ControlFlow::Continue(());
            for piece in pieces {
                let (kept, event) = match &piece {
                    Piece::Thinking(text) => (&mut turn.thinking, ChatEvent::Thinking(text)),
                    Piece::Answer(text) => (&mut turn.answer, ChatEvent::Answer(text)),
                };
                if on_event(event).is_break() {
                    flow = ControlFlow::Break(());
                }
                kept.push_str(match event {
                    ChatEvent::Thinking(text) | ChatEvent::Answer(text) => text,
                    _ => "",
                });
            }
            flow
        };
        // The borders of thinking may be special tokens, and the splitter must see them.
        let options = GenerateOptions { keep_special: true, ..self.options.clone() };
        let request = Request { prompt: &prompt, options: &options, choice: self.retries, session: &mut self.session };
        let generation = generate_batch(self.model, vec![request], Some(self.tokenizer), &mut |_, event| match event {
            Event::Prefill { done, total } => on_event(ChatEvent::Prefill { done, total }),
            Event::Token { .. } => on_event(ChatEvent::Token),
            Event::Text(text) => take(splitter.push(text), on_event),
        });
        let generation = generation.into_iter().next().expect("one request")?;
        let _ = take(splitter.finish(), on_event); // it has ended already
        self.turns.push(turn);
        Ok(generation)
    }

    /// Tokens of the conversation with `turn` at its end, and whether the reply begins inside the thinking. Forgets
    /// turns from the oldest on until a reply has room.
    fn prompt(
        &mut self,
        turn: &Turn,
        on_event: &mut dyn FnMut(ChatEvent<'_>) -> ControlFlow<()>,
    ) -> Result<(Vec<u32>, bool), ChatError> {
        let context = self.model.config().max_position_embeddings;
        let reserve = self.options.max_new_tokens.clamp(1, (context / 4).max(1));
        let mut forget = 0;
        loop {
            let prompt = self.render(&self.turns[forget..], turn)?;
            // Messages cannot name control tokens; the template brings its own beginning of a text, so none is added.
            let tokens = self.tokenizer.encode_prompt(&prompt)?;
            let alone = forget == self.turns.len();
            if tokens.len() + reserve <= context || (alone && tokens.len() < context) {
                if forget > 0 {
                    self.turns.drain(..forget);
                    let _ = on_event(ChatEvent::Forgot(forget)); // the next event can still stop it
                }
                return Ok((tokens, prompt.opens_thinking()));
            }
            if alone {
                return Err(ChatError::TooLong { tokens: tokens.len(), context });
            }
            forget += 1;
        }
    }

    fn render(&self, turns: &[Turn], last: &Turn) -> Result<Prompt, TemplateError> {
        let Some(template) = self.template else { return Ok(Prompt::new(&last.user, Origin::Data)) };
        let mut messages: Vec<Message> = self.system.iter().map(|text| Message::new("system", text)).collect();
        for turn in turns {
            messages.push(Message::new("user", &turn.user));
            messages.push(Message::new("assistant", turn.answer.trim()));
        }
        messages.push(Message::new("user", &last.user));
        template.render(&messages, &RenderOptions { add_generation_prompt: true, ..Default::default() })
    }
}
