//! How fast memory is read: what bounds the speed of a reply, since each token reads every active weight once.

use std::{hint::black_box, thread, time::Instant};

/// Bytes of each thread's buffer: beyond the caches of a core.
const BUFFER: usize = 64 << 20;
/// More are not needed to keep the memory busy.
const MAX_THREADS: usize = 16;
/// Passes over the buffer; the fastest counts, since others use the memory too.
const PASSES: usize = 3;

/// Bytes per second that `threads` threads, at most 16, read from memory together, in order. Takes 64 MiB per thread and about a
/// tenth of a second; `None` if there is not that much memory, or it cannot be timed.
pub fn read_bandwidth_bytes_per_s(threads: usize) -> Option<f64> {
    let threads = threads.clamp(1, MAX_THREADS);
    if crate::available_memory_bytes().is_some_and(|free| free / 2 < (threads * BUFFER) as u64) {
        return None;
    }
    // Not zeros: the system maps all of those to one page.
    let buffers: Vec<Vec<u64>> = thread::scope(|scope| {
        let fills: Vec<_> = (0..threads).map(|i| scope.spawn(move || vec![i as u64 + 1; BUFFER / 8])).collect();
        fills.into_iter().map(|fill| fill.join().expect("it only fills memory")).collect()
    });
    let pass = || {
        let start = Instant::now();
        thread::scope(|scope| {
            for buffer in &buffers {
                scope.spawn(|| black_box(sum(black_box(buffer))));
            }
        });
        start.elapsed().as_secs_f64()
    };
    let fastest = (0..PASSES).map(|_| pass()).fold(f64::INFINITY, f64::min);
    (fastest > 0.0).then(|| (threads * BUFFER) as f64 / fastest)
}

/// Sixteen independent sums, so that the additions do not wait for each other.
fn sum(numbers: &[u64]) -> u64 {
    let mut lanes = [0u64; 16];
    for chunk in numbers.chunks_exact(16) {
        for (lane, number) in lanes.iter_mut().zip(chunk) {
            *lane = lane.wrapping_add(*number);
        }
    }
    lanes.iter().fold(0, |a, b| a.wrapping_add(*b))
}

#[cfg(test)]
mod tests {
    #[test]
    fn memory_is_read_at_a_speed_that_a_computer_can_have() {
        // An 8 MB/s bus is of 1981, 100 TB/s are of no machine yet.
        if let Some(speed) = super::read_bandwidth_bytes_per_s(1) {
            assert!((8e6..1e14).contains(&speed), "{speed}");
        }
    }
}
