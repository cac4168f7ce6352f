//! The chat in a terminal: line editing, /commands, and how a reply is shown.

pub mod history;
pub mod show;
pub mod slash;
pub mod terminal;
