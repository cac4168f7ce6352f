//! A document before it becomes tokens: text, control tokens, and which of it is learnt.

use sha2::{Digest, Sha256};

/// A piece of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Text, or the name of one control token.
    pub text: String,
    /// Whether `text` is the name of one control token, such as `<｜User｜>`. Other text is never read as one, whatever it spells.
    pub special: bool,
    /// Whether its tokens are targets of the loss.
    pub train: bool,
}

/// What is learnt as a whole: a story, a conversation, an example.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// In order.
    pub segments: Vec<Segment>,
    /// Whether it ends here; the pieces of a long text but the last do not.
    pub ends: bool,
}

impl Document {
    /// Running text, all of it learnt.
    pub fn text(text: impl Into<String>) -> Self {
        Self { segments: vec![Segment { text: text.into(), special: false, train: true }], ends: true }
    }

    /// A number that only the content decides: it says on which side of the held-out split a document falls, so that the same
    /// text twice is never on both sides.
    pub fn content_hash(&self) -> u64 {
        let mut sha = Sha256::new();
        for segment in &self.segments {
            sha.update([u8::from(segment.special)]);
            sha.update((segment.text.len() as u64).to_le_bytes());
            sha.update(&segment.text);
        }
        let digest: [u8; 32] = sha.finalize().into();
        u64::from_le_bytes(digest[..8].try_into().expect("8 of 32 bytes"))
    }

    /// UTF-8 bytes of its learnt text, control tokens not counted: what bits per byte divide by.
    pub fn learnt_bytes(&self) -> u64 {
        self.segments.iter().filter(|s| s.train && !s.special).map(|s| s.text.len() as u64).sum()
    }

    /// UTF-8 bytes of all its text.
    pub fn bytes(&self) -> usize {
        self.segments.iter().map(|s| s.text.len()).sum()
    }
}

/// Whose turn it is in a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Instructions before the first turn.
    System,
    /// The human.
    User,
    /// The model.
    Assistant,
}

/// The control tokens of a conversation: `System<｜User｜>question<｜Assistant｜>reply`, then the end token before the next turn.
///
/// The last reply ends with the document, whose end token the caller of the tokenizer gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatFormat {
    /// Before what the user says.
    pub user: String,
    /// Before what the assistant says.
    pub assistant: String,
    /// After a reply that is not the last.
    pub end: String,
    /// Where thinking starts and ends; control tokens only in what the assistant says.
    pub think: [String; 2],
}

impl Default for ChatFormat {
    /// DeepSeek-R1's.
    fn default() -> Self {
        Self {
            user: "<｜User｜>".into(),
            assistant: "<｜Assistant｜>".into(),
            end: "<｜end▁of▁sentence｜>".into(),
            think: ["<think>".into(), "</think>".into()],
        }
    }
}

impl ChatFormat {
    /// A conversation as a document. `only_replies`: nothing but what the assistant says is learnt. The error says what is wrong with it.
    pub fn document(&self, turns: &[(Role, String)], only_replies: bool) -> Result<Document, String> {
        let mut segments = Vec::new();
        let mut push = |text: &str, special, train| {
            if !text.is_empty() {
                segments.push(Segment { text: text.into(), special, train });
            }
        };
        for (i, (role, text)) in turns.iter().enumerate() {
            match role {
                Role::System if i == 0 => push(text, false, !only_replies),
                Role::System => return Err("a system message after the first; expected it before all others".into()),
                Role::User => {
                    push(&self.user, true, !only_replies);
                    push(text, false, !only_replies);
                }
                Role::Assistant => {
                    push(&self.assistant, true, !only_replies);
                    let mut rest = &text[..];
                    let [open, close] = &self.think;
                    while let Some((at, mark)) =
                        [open, close].into_iter().filter_map(|m| Some((rest.find(m.as_str())?, m))).min()
                    {
                        push(&rest[..at], false, true);
                        push(mark, true, true);
                        rest = &rest[at + mark.len()..];
                    }
                    push(rest, false, true);
                    if i + 1 < turns.len() {
                        push(&self.end, true, true);
                    }
                }
            }
        }
        match turns.last() {
            Some((Role::Assistant, _)) => Ok(Document { segments, ends: true }),
            _ => Err("the conversation does not end with the assistant".into()),
        }
    }
}

/// A question and a reply with its thinking, as generators make them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// What the user says.
    pub question: String,
    /// What the model thinks: lines without a line break at the end.
    pub thinking: String,
    /// What the model answers.
    pub answer: String,
}

impl Exchange {
    /// In DeepSeek-R1's form: `<think>\n…\n</think>\n\n…`.
    pub fn turns(&self) -> [(Role, String); 2] {
        let reply = format!("<think>\n{}\n</think>\n\n{}", self.thinking, self.answer);
        [(Role::User, self.question.clone()), (Role::Assistant, reply)]
    }
}
