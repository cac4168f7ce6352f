//! Generation with real (small, random) models.

mod chat;
mod common;
mod generate;
