//! Splitting a reply into thinking and answer while it streams.
//!
//! The rules, for a reply as a whole: it thinks from its beginning if the prompt ended with `<think>` or if the reply begins with
//! it (white space before is dropped); thinking ends at the first `</think>`; everything after is the answer, later tags
//! included. White space at the beginning and end of thinking and at the beginning of the answer that follows it is dropped. A
//! reply that does not begin with `<think>` is all answer. However the text is cut, the joined pieces are the same.

/// A part of a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Said to itself.
    Thinking(String),
    /// Said to the user.
    Answer(String),
}

const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing but white space so far: `<think>` may follow.
    Start,
    /// Thinking; true once something was shown.
    Thinking(bool),
    /// White space after `</think>` is dropped.
    AfterThinking,
    Answer,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct ThinkSplitter {
    state: State,
    /// Seen, not yet given out.
    held: String,
}

impl ThinkSplitter {
    /// `starts_in_thinking`: the prompt ended with `<think>`.
    pub fn new(starts_in_thinking: bool) -> Self {
        let state = if starts_in_thinking { State::Thinking(false) } else { State::Start };
        Self { state, held: String::new() }
    }

    /// Takes more of the reply; gives what can no longer change its meaning.
    pub fn push(&mut self, text: &str) -> Vec<Piece> {
        self.held.push_str(text);
        let mut out = Vec::new();
        while self.advance(&mut out) {}
        out
    }

    /// Whether something was decided; if so there may be more.
    fn advance(&mut self, out: &mut Vec<Piece>) -> bool {
        match self.state {
            State::Start => {
                let rest = self.held.trim_start();
                if let Some(after) = rest.strip_prefix(OPEN) {
                    self.held = after.to_owned();
                    self.state = State::Thinking(false);
                    return true;
                }
                if OPEN.starts_with(rest) {
                    return false; // may still become the tag
                }
                self.state = State::Answer;
                true
            }
            State::Thinking(shown) => {
                if !shown {
                    let start = self.held.len() - self.held.trim_start().len();
                    self.held.drain(..start);
                }
                if let Some(at) = self.held.find(CLOSE) {
                    let thought = self.held[..at].trim_end().to_owned();
                    self.held.drain(..at + CLOSE.len());
                    self.state = State::AfterThinking;
                    push(out, Piece::Thinking, thought);
                    return true;
                }
                // White space at the end, and what may begin the tag, wait.
                let tag = (1..CLOSE.len()).rev().find(|n| self.held.ends_with(&CLOSE[..*n])).unwrap_or(0);
                let end = self.held[..self.held.len() - tag].trim_end().len();
                let thought: String = self.held.drain(..end).collect();
                self.state = State::Thinking(shown || !thought.is_empty());
                push(out, Piece::Thinking, thought);
                false
            }
            State::AfterThinking => {
                let start = self.held.len() - self.held.trim_start().len();
                self.held.drain(..start);
                if self.held.is_empty() {
                    return false;
                }
                self.state = State::Answer;
                true
            }
            State::Answer => {
                push(out, Piece::Answer, std::mem::take(&mut self.held));
                false
            }
        }
    }

    /// The reply is over: gives what was held back.
    pub fn finish(&mut self) -> Vec<Piece> {
        let held = std::mem::take(&mut self.held);
        let mut out = Vec::new();
        match self.state {
            State::Thinking(_) => push(&mut out, Piece::Thinking, held.trim_end().to_owned()),
            State::Start => push(&mut out, Piece::Answer, held),
            State::AfterThinking | State::Answer => {}
        }
        out
    }
}

fn push(out: &mut Vec<Piece>, kind: fn(String) -> Piece, text: String) {
    if !text.is_empty() {
        out.push(kind(text));
    }
}

/// A whole reply as (thinking, answer).
pub fn split_reply(text: &str, starts_in_thinking: bool) -> (String, String) {
    let mut splitter = ThinkSplitter::new(starts_in_thinking);
    let mut parts = (String::new(), String::new());
    for piece in splitter.push(text).into_iter().chain(splitter.finish()) {
        match piece {
            Piece::Thinking(t) => parts.0 += &t,
            Piece::Answer(t) => parts.1 += &t,
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parts(pieces: Vec<Piece>) -> (String, String) {
        let mut parts = (String::new(), String::new());
        for piece in pieces {
            match piece {
                Piece::Thinking(t) => parts.0 += &t,
                Piece::Answer(t) => parts.1 += &t,
            }
        }
        parts
    }

    #[test]
    fn the_rules_hold() {
        for (starts, text, thinking, answer) in [
            (false, "plain", "", "plain"),
            (false, "<think>\na b\n</think>\n\nc", "a b", "c"),
            (false, " \n<think>a</think>c", "a", "c"),
            (true, "a b\n</think>\n\nc", "a b", "c"),
            (false, "x </think> y", "", "x </think> y"),
            (false, "<think></think>c", "", "c"),
            (false, "<think>\n\n</think>\n\nc\n", "", "c\n"),
            (false, "<think>a</think>b <think>c</think>", "a", "b <think>c</think>"),
            (false, "<think>a </thin", "a </thin", ""),
            (true, "unfinished ", "unfinished", ""),
            (false, "<thi", "", "<thi"),
            (false, "", "", ""),
            (true, "a < b </ c</think>é", "a < b </ c", "é"),
        ] {
            assert_eq!(split_reply(text, starts), (thinking.into(), answer.into()), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn the_cut_of_the_text_does_not_matter(
            words in prop::collection::vec(
                prop_oneof![
                    Just("<think>"), Just("</think>"), Just("</thi"), Just("<"), Just("\n"), Just(" "), Just("é"), Just("ab"), Just(">"),
                ],
                0..12,
            ),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
            starts: bool,
        ) {
            let text = words.concat();
            let mut edges: Vec<usize> = cuts.iter().map(|c| c.index(text.len() + 1)).filter(|i| text.is_char_boundary(*i)).collect();
            edges.extend([0, text.len()]);
            edges.sort_unstable();
            let mut splitter = ThinkSplitter::new(starts);
            let mut pieces = Vec::new();
            for w in edges.windows(2) {
                pieces.extend(splitter.push(&text[w[0]..w[1]]));
            }
            pieces.extend(splitter.finish());
            prop_assert_eq!(parts(pieces), split_reply(&text, starts));
        }
    }
}
