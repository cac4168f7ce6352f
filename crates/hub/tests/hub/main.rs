//! The client against servers that behave, and against servers that do not.

mod good;
mod hostile;
mod repair;
mod server;
mod weather;
