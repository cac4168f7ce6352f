//! Rows are written by a thread of their own, so that neither a slow disk nor another program's lock delays what is metered.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread::{Builder, JoinHandle},
};

use super::{Entry, Ledger, LedgerError};

/// Why the ledger was given up; taken by whoever tells it.
pub(super) type Trouble = Arc<Mutex<Option<LedgerError>>>;

/// Sends rows to the thread that has the ledger. Dropping it waits until what was sent is on the disk.
pub(super) struct Writer {
    rows: Option<mpsc::Sender<Vec<Entry>>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// The first failure goes to `trouble` and ends the writing.
    pub fn start(mut ledger: Ledger, trouble: Trouble) -> Result<Self, LedgerError> {
        let path = ledger.path().to_owned();
        let (rows, sent) = mpsc::channel::<Vec<Entry>>();
        let write = move || {
            while let Ok(mut rows) = sent.recv() {
                rows.extend(sent.try_iter().flatten()); // what has come meanwhile costs no sync of its own
                if let Err(error) = ledger.append(&rows) {
                    *trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                    return;
                }
            }
        };
        let thread = Builder::new().name("ledger".into()).spawn(write);
        let thread = thread.map_err(|source: io::Error| LedgerError::Create { path, source })?;
        Ok(Self { rows: Some(rows), thread: Some(thread) })
    }

    /// Returns at once. Rows sent after a failure are lost, as `trouble` says.
    pub fn send(&self, rows: &[Entry]) {
        if let Some(sender) = &self.rows {
            let _ = sender.send(rows.to_vec());
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.rows = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // if it panicked there is nothing left to write
        }
    }
}
