//! A batch is a list of sequences laid end to end: `T` is the sum of their lengths, and every layer but attention sees `[T, D]`.

use jevons_kernels::Angles;

/// What the layers need to know of a batch besides the activations.
#[derive(Clone, Debug)]
pub struct Batch {
    /// First row of each sequence, and the number of rows at the end.
    pub cu_seqlens: Vec<usize>,
    /// Rotations of each row's position.
    pub angles: Angles,
}

impl Batch {
    /// `lengths`: new tokens of each sequence; `starts`: tokens that each already has.
    pub fn new(lengths: &[usize], starts: &[usize], inv_freq: &[f64], factor: f64) -> Self {
        let mut cu_seqlens = vec![0];
        let mut positions = Vec::new();
        for (len, start) in lengths.iter().zip(starts) {
            positions.extend(*start..start + len);
            cu_seqlens.push(positions.len());
        }
        Self { cu_seqlens, angles: Angles::new(&positions, inv_freq, factor) }
    }

    /// Rows `T`.
    pub fn rows(&self) -> usize {
        self.cu_seqlens[self.cu_seqlens.len() - 1]
    }
}
