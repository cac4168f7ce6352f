//! The binary from outside: arguments, output, exit codes.

mod arguments;
mod bench;
mod chat;
mod common;
mod compute;
mod convert;
mod meter;
mod plan;
mod rebound;
mod text;
