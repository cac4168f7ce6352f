//! A thread that looks at the meter at even intervals, so that counters do not wrap unseen and power is integrated.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use super::{Meter, Snapshot};

/// A meter that is being looked at. Dropping it ends the thread.
pub struct Sampler {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    meter: Mutex<Meter>,
    stop: Mutex<bool>,
    stopped: Condvar,
}

/// A sensor that panicked has left a meter that can still be read.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sampler {
    /// Looks at `meter` every so often; a fraction of a second where power is sampled. Without a thread (the system has no more) it is
    /// looked at by [`Sampler::snapshot`] only.
    pub fn start(meter: Meter, every: Duration) -> Self {
        let shared = Arc::new(Shared { meter: Mutex::new(meter), stop: Mutex::new(false), stopped: Condvar::new() });
        let theirs = shared.clone();
        let thread = std::thread::Builder::new().name("meter".into()).spawn(move || {
            let mut stop = lock(&theirs.stop);
            while !*stop {
                stop = theirs.stopped.wait_timeout(stop, every).unwrap_or_else(PoisonError::into_inner).0;
                if !*stop {
                    lock(&theirs.meter).poll();
                }
            }
        });
        Self { shared, thread: thread.ok() }
    }

    /// The meter as of now.
    pub fn snapshot(&self) -> Snapshot {
        let mut meter = lock(&self.shared.meter);
        meter.poll();
        meter.snapshot()
    }

    /// Something else about the meter.
    pub fn with<T>(&self, look: impl FnOnce(&Meter) -> T) -> T {
        look(&lock(&self.shared.meter))
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        *lock(&self.shared.stop) = true;
        self.shared.stopped.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // if it panicked there is nothing left to end
        }
    }
}
