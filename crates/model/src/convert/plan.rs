//! What becomes of each tensor, and which file it goes into.

use super::{ConvertError, Source, Target};
use crate::{
    checkpoint::{CheckpointError, MAX_SHARDS, StoredDtype, TensorOut, TensorView, scale_name},
    config::{Quantization, ScaleFormat},
};

/// A tensor to write.
pub(super) struct Item {
    /// The tensor that it is made of.
    pub source: String,
    pub how: How,
    pub out: TensorOut,
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum How {
    Copy,
    Floats,
    /// Of an FP8 weight.
    Codes(ScaleFormat),
    Scales(ScaleFormat),
}

/// Tensors to write, those that belong into one file together.
pub(super) struct Plan {
    pub to: Option<Target>,
    pub scale: ScaleFormat,
    pub groups: Vec<Vec<Item>>,
}

impl Plan {
    /// Adds what becomes of a tensor, having checked all but its numbers.
    pub fn add(&mut self, source: &dyn Source, view: &TensorView<'_>) -> Result<(), CheckpointError> {
        let is_fp8 = |view: &TensorView<'_>| view.dtype == StoredDtype::F8_E4M3;
        if let Some(weight) = view.name.strip_suffix("_scale_inv")
            && source.stored(weight).is_some_and(|stored| is_fp8(&stored.view))
        {
            return Ok(()); // Goes with its weight.
        }
        let item = |name: String, dtype: StoredDtype, shape: &[usize], how: How| {
            let out = TensorOut { name, dtype, shape: shape.into() };
            Item { source: view.name.into(), how, out }
        };
        let same = |dtype: StoredDtype, how| vec![item(view.name.into(), dtype, view.shape, how)];
        let is_float = matches!(view.dtype, StoredDtype::F32 | StoredDtype::BF16 | StoredDtype::F16);
        let float = |dtype: StoredDtype| {
            if dtype == view.dtype && !source.is_reordered(view.name) {
                same(dtype, How::Copy)
            } else {
                same(dtype, How::Floats)
            }
        };
        if is_fp8(view) {
            source.rows(view.name)?; // Its scales are there and make sense.
        }
        let group = match self.to {
            None if is_float => float(view.dtype),
            Some(Target::F32) if is_float || is_fp8(view) => float(StoredDtype::F32),
            Some(Target::Bf16) if is_fp8(view) => float(StoredDtype::BF16),
            Some(Target::Bf16 | Target::Fp8) if is_float && is_selection_bias(view.name) => float(view.dtype),
            Some(Target::Bf16) if is_float => float(StoredDtype::BF16),
            Some(Target::Fp8) if is_float && is_quantised(view.name, view.shape) => {
                let blocks: Vec<usize> = view.shape.iter().map(|n| n.div_ceil(Quantization::BLOCK)).collect();
                let scales = item(scale_name(view.name), StoredDtype::F32, &blocks, How::Scales(self.scale));
                let mut group = same(StoredDtype::F8_E4M3, How::Codes(self.scale));
                group.push(scales);
                group
            }
            Some(Target::Fp8) if is_float => float(StoredDtype::BF16),
            None | Some(Target::Fp8) if is_fp8(view) => {
                let mut group = same(view.dtype, How::Copy);
                let scales = source.stored(&scale_name(view.name)).expect("it was just read").view;
                let out = TensorOut { name: scales.name.into(), dtype: scales.dtype, shape: scales.shape.into() };
                group.push(Item { source: scales.name.into(), how: How::Copy, out });
                group
            }
            // Whole numbers and the like.
            _ => same(view.dtype, How::Copy),
        };
        self.groups.push(group);
        Ok(())
    }
}

/// Whether published FP8 checkpoints quantise this tensor: the linears of attention, feed-forward and experts, no gate, nor what
/// joins the two halves of multi-token prediction.
fn is_quantised(name: &str, shape: &[usize]) -> bool {
    shape.len() == 2 && name.ends_with(".weight") && name.contains("_proj") && !name.ends_with(".eh_proj.weight")
}

fn is_selection_bias(name: &str) -> bool {
    name.ends_with(".e_score_correction_bias")
}

/// The layer that a tensor belongs to.
pub(super) fn layer(name: &str) -> Option<u64> {
    name.strip_prefix("model.layers.")?.split('.').next()?.parse().ok()
}

/// Tensors in order, in files of at most `limit` bytes.
pub(super) fn shards(groups: Vec<Vec<Item>>, limit: u64) -> Result<Vec<Vec<Item>>, ConvertError> {
    let mut shards: Vec<Vec<Item>> = vec![Vec::new()];
    let mut bytes = 0;
    for group in groups {
        let more = self::bytes(&group);
        let last = shards.last_mut().expect("there is one");
        if last.is_empty() || bytes + more <= limit {
            last.extend(group);
            bytes += more;
        } else {
            shards.push(group);
            bytes = more;
        }
    }
    match shards.len() {
        n if n > MAX_SHARDS => Err(ConvertError::TooManyShards { shards: n, limit: MAX_SHARDS }),
        _ => Ok(shards),
    }
}

/// Of the tensors.
pub(super) fn bytes(items: &[Item]) -> u64 {
    items.iter().map(|item| item.out.bytes()).sum()
}
