//! Ctrl-C. A process can have one handler only; whoever works at the moment says what it does.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;

type Action = Arc<dyn Fn() + Send + Sync>;

static ACTION: Mutex<Option<Action>> = Mutex::new(None);

/// From now on, Ctrl-C and the signals that end a program do this.
pub fn on_signal(action: impl Fn() + Send + Sync + 'static) -> anyhow::Result<()> {
    let before = ACTION.lock().unwrap_or_else(PoisonError::into_inner).replace(Arc::new(action));
    if before.is_some() {
        return Ok(());
    }
    let handler = || {
        let action = ACTION.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(action) = action {
            action();
        }
    };
    ctrlc::set_handler(handler).context("cannot listen for Ctrl-C")
}
