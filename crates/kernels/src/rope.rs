//! Rotary position embedding: turns pairs of a head's columns by an angle that grows with the position.
//!
//! Source: Su et al. 2021, arXiv:2104.09864. DeepSeek pairs neighbours `(2i, 2i+1)`, Qwen2 and Llama halves `(i, i + d/2)`.

use crate::{
    isa::{Isa, multi_isa},
    rows,
    tensor::{Dtype, Element, Tensor, with_element},
};

/// Which columns of `[T, heads · head_dim]` turn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RopeLayout {
    /// Heads side by side in a row.
    pub heads: usize,
    /// Columns of a head.
    pub head_dim: usize,
    /// First turned column of a head.
    pub offset: usize,
    /// Turned columns of a head, even.
    pub dim: usize,
    /// Pairs are neighbours if true, halves if false.
    pub interleave: bool,
}

/// Cosines and sines of a batch's positions, `[T, dim / 2]` each.
#[derive(Clone, Debug, PartialEq)]
pub struct Angles {
    /// Cosines.
    pub cos: Vec<f32>,
    /// Sines.
    pub sin: Vec<f32>,
    /// `dim / 2`
    pub width: usize,
}

impl Angles {
    /// The angle of pair `i` at position `p` is `p · inv_freq[i]`; cosine and sine are multiplied by `factor`.
    pub fn new(positions: &[usize], inv_freq: &[f64], factor: f64) -> Self {
        let width = inv_freq.len();
        let (mut cos, mut sin) = (vec![0.0; positions.len() * width], vec![0.0; positions.len() * width]);
        for (t, p) in positions.iter().enumerate() {
            if t > 0
                && let Some(same) = repeated(positions, t)
            {
                cos.copy_within(same * width..(same + 1) * width, t * width);
                sin.copy_within(same * width..(same + 1) * width, t * width);
                continue;
            }
            for (i, f) in inv_freq.iter().enumerate() {
                let angle = *p as f64 * f;
                cos[t * width + i] = (libm::cos(angle) * factor) as f32;
                sin[t * width + i] = (libm::sin(angle) * factor) as f32;
            }
        }
        Self { cos, sin, width }
    }
}

/// An earlier token at the same position, if the first sequence of the batch shows it cheaply.
fn repeated(positions: &[usize], t: usize) -> Option<usize> {
    let same = positions[t].checked_sub(positions[0])?;
    (same < t && positions[same] == positions[t]).then_some(same)
}

/// Turns `x` in place; `backward` turns the other way, which is the gradient.
pub fn apply(isa: Isa, x: &mut Tensor, layout: RopeLayout, angles: &Angles, backward: bool) {
    assert_eq!(x.cols, layout.heads * layout.head_dim);
    assert_eq!(angles.width * 2, layout.dim);
    assert_eq!(angles.cos.len(), x.rows * angles.width);
    let cols = x.cols;
    with_element!(x.dtype(), E => {
        rows::each(E::slice_mut(x), cols, |first, x| {
            let (cos, sin) = (&angles.cos[first * angles.width..], &angles.sin[first * angles.width..]);
            turn(isa, bytemuck::cast_slice_mut(x), E::DTYPE, layout, cos, sin, if backward { -1.0 } else { 1.0 });
        });
    });
}

multi_isa! {
    #[allow(clippy::too_many_arguments)]
    fn turn(x: &mut [u8], dtype: Dtype, layout: RopeLayout, cos: &[f32], sin: &[f32], sign: f32) {
        let RopeLayout { heads, head_dim, offset, dim, interleave } = layout;
        let half = dim / 2;
        with_element!(dtype, E => {
            let x: &mut [E] = bytemuck::cast_slice_mut(x);
            for ((x, cos), sin) in
                x.chunks_exact_mut(heads * head_dim).zip(cos.chunks_exact(half)).zip(sin.chunks_exact(half))
            {
                for head in x.chunks_exact_mut(head_dim) {
                    let x = &mut head[offset..offset + dim];
                    for i in 0..half {
                        let (a, b) = if interleave { (2 * i, 2 * i + 1) } else { (i, i + half) };
                        let (xa, xb, s) = (x[a].widen(), x[b].widen(), sin[i] * sign);
                        x[a] = E::narrow(xa.mul_add(cos[i], -(xb * s)));
                        x[b] = E::narrow(xb.mul_add(cos[i], xa * s));
                    }
                }
            }
        });
    }
}
