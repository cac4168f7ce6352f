//! Books a batch of sequences that are computed together: every step's joules go to the sequences in it, by what they cost.
//!
//! The meter is not read at every step, which a small model takes less time for than the reading: steps that follow each other within
//! [`EVERY`] are booked together. It is read where a prompt ends, so that reading and answering are measured apart.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use jevons_energy::{allocate::SequenceStep, ledger::Phase};
use jevons_infer::Event;

use crate::account::{Account, Share};

/// From one reading of the meter to the next, at least.
const EVERY: Duration = Duration::from_millis(20);

/// Sees the events of a batch. A step is over when the first sequence tells of it; all that tell until the next one took part.
pub struct Steps {
    /// Tokens in the cache of each sequence.
    contexts: Vec<usize>,
    /// Sequences that have drawn a token.
    drawing: Vec<bool>,
    /// Who has told of the present step.
    users: Vec<(usize, Phase, SequenceStep)>,
    /// The last to tell, and whether it was of a chosen token.
    last: Option<(usize, bool)>,
    /// By sequence and phase, what steps that are not booked yet have done.
    open: BTreeMap<(usize, Phase), Share>,
    /// Whether the meter was read at the end of the present step, the last of those in `open`.
    read: bool,
    read_at: Instant,
}

impl Steps {
    pub fn new(sequences: usize) -> Self {
        Self {
            contexts: vec![0; sequences],
            drawing: vec![false; sequences],
            users: vec![],
            last: None,
            open: BTreeMap::new(),
            read: false,
            read_at: Instant::now(),
        }
    }

    pub fn see(&mut self, index: usize, event: &Event<'_>, account: &mut Account) {
        let (token, prompt_ends) = match event {
            Event::Prefill { done, total } => (false, done == total),
            Event::Token { .. } => (true, false),
            Event::Text(_) => return,
        };
        // Within a step sequences tell in their order, and each of what it has read before what it has drawn.
        if self.last.is_none_or(|last| (index, token) <= last) {
            self.close_step(account);
        }
        self.last = Some((index, token));
        if !self.read && (prompt_ends || self.read_at.elapsed() >= EVERY) {
            account.step_of_batch();
            (self.read, self.read_at) = (true, Instant::now());
        }
        let (phase, context) = match event {
            Event::Prefill { done, .. } => (Phase::Prefill, *done),
            // The first token is drawn from the logits of the prompt.
            _ if !std::mem::replace(&mut self.drawing[index], true) => return,
            _ => (Phase::Answer, self.contexts[index] + 1),
        };
        let tokens = context.saturating_sub(self.contexts[index]);
        self.contexts[index] = context;
        self.users.push((index, phase, SequenceStep { tokens, context }));
    }

    /// Everyone has told of the present step.
    fn close_step(&mut self, account: &mut Account) {
        let steps: Vec<_> = self.users.iter().map(|(.., step)| *step).collect();
        for ((index, phase, _), share) in self.users.drain(..).zip(account.shares(&steps)) {
            self.open.entry((index, phase)).or_default().add(share);
        }
        if std::mem::take(&mut self.read) {
            account.share_step(std::mem::take(&mut self.open));
        }
    }

    /// Every sequence has ended.
    pub fn end(mut self, account: &mut Account) {
        if !self.read {
            account.step_of_batch();
            self.read = true;
        }
        self.close_step(account);
        account.end_batch();
    }
}
