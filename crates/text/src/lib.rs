//! Text on one side, token ids and messages on the other: tokenizer, chat template, splitting a reply into thinking and answer.
//! This crate never knows weights.
#![forbid(unsafe_code)]

mod bpe;
mod gguf;
pub mod house;
mod jinja;
mod llama2c;
mod template;
mod think;
mod tiktoken;
mod tokenizer;
mod vocabulary;

pub use bpe::{BpeOptions, DigitSplit, train_bpe};
pub use jinja::Origin;
pub use llama2c::llama2c_tokenizer;
pub use template::{ChatTemplate, Message, Prompt, RenderOptions, TemplateError};
pub use think::{Piece, ThinkSplitter, split_reply};
pub use tokenizer::{DecodeStream, Tokenizer, TokenizerError};
pub use vocabulary::{AddedToken, Style, Vocabulary};
