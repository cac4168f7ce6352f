//! The model files of llama2.c, version 0.
//!
//! Source: github.com/karpathy/llama2.c, `export.py` (`legacy_export`) and `run.c`. Seven little-endian i32 (`dim`, `hidden_dim`,
//! `n_layers`, `n_heads`, `n_kv_heads`, `vocab_size`, `seq_len`), then f32 without gaps: embedding; then, each for all layers,
//! attention norm, wq, wk, wv, wo, feed-forward norm, w1, w2, w3; the final norm; two tables of rope that nobody needs; the head
//! if `vocab_size` is negative, else the embedding is the head. Heads turn in pairs (2j, 2j + 1), the published Llama layout in
//! pairs (j, j + half a head): the rows of wq and wk change their order.

use std::{ops::Range, path::Path};

use jevons_sys::MappedFile;
use serde_json::{Value, json};

use super::{ConvertError, Source};
use crate::checkpoint::{Bytes, CheckpointError, RowOrder, Rows, Stored, StoredDtype, TensorView};

const HEADER_BYTES: usize = 28;
/// Larger than any such model, and small enough that the bytes of all tensors fit a `u64`.
const MAX_SIZE: i32 = 1 << 20;
/// Bounds the list of tensors that a header can ask for.
const MAX_LAYERS: i32 = 1000;

/// An open model file.
pub(super) struct Llama2c<'a> {
    path: &'a Path,
    file: Bytes<'static>,
    tensors: Vec<Tensor>,
    config: Value,
}

struct Tensor {
    name: String,
    shape: Vec<usize>,
    /// In the whole file.
    bytes: Range<usize>,
    order: RowOrder,
}

impl<'a> Llama2c<'a> {
    pub fn open(path: &'a Path) -> Result<Self, ConvertError> {
        let map = MappedFile::open(path).map_err(|error| ConvertError::Read { path: path.into(), error })?;
        let wrong = |what: String| ConvertError::Llama2c { path: path.into(), what };
        let Some((header, _)) = map.split_first_chunk::<HEADER_BYTES>() else {
            return Err(wrong(format!("it has {} bytes, the header alone takes {HEADER_BYTES}", map.len())));
        };
        if header.starts_with(b"24ka") {
            return Err(wrong("it is of a later version of the format; export it again as version 0".into()));
        }
        let (fields, _) = header.as_chunks::<4>();
        let field = |i: usize| i32::from_le_bytes(fields[i]);
        let names = ["dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads"];
        for (i, name) in names.into_iter().chain(["vocab_size", "seq_len"]).enumerate() {
            // The sign of the vocabulary's size says something else.
            let size = if i == 5 { field(i).checked_abs().unwrap_or(0) } else { field(i) };
            let limit = if i == 2 { MAX_LAYERS } else { MAX_SIZE };
            if !(1..=limit).contains(&size) {
                return Err(wrong(format!("its {name} is {}, expected 1 to {limit}", field(i))));
            }
        }
        let [dim, hidden, layers, heads, kv_heads] = [0, 1, 2, 3, 4].map(|i| field(i) as usize);
        let (vocab, positions, tied) = (field(5).unsigned_abs() as usize, field(6) as usize, field(5) > 0);
        if !dim.is_multiple_of(2 * heads) || !heads.is_multiple_of(kv_heads) {
            return Err(wrong(format!(
                "{heads} heads over a width of {dim} and {kv_heads} key-value heads do not go together: heads have an even \
                 width, and as many share each key"
            )));
        }
        let head = dim / heads;
        let kv = kv_heads * head;

        let mut reader = Reader { at: HEADER_BYTES as u64, tensors: Vec::new() };
        let plain = RowOrder::Stored;
        reader.one("model.embed_tokens.weight", &[vocab, dim], plain);
        reader.layers(layers, "input_layernorm", &[dim], plain);
        reader.layers(layers, "self_attn.q_proj", &[dim, dim], RowOrder::Halves(head));
        reader.layers(layers, "self_attn.k_proj", &[kv, dim], RowOrder::Halves(head));
        reader.layers(layers, "self_attn.v_proj", &[kv, dim], plain);
        reader.layers(layers, "self_attn.o_proj", &[dim, dim], plain);
        reader.layers(layers, "post_attention_layernorm", &[dim], plain);
        reader.layers(layers, "mlp.gate_proj", &[hidden, dim], plain);
        reader.layers(layers, "mlp.down_proj", &[dim, hidden], plain);
        reader.layers(layers, "mlp.up_proj", &[hidden, dim], plain);
        reader.one("model.norm.weight", &[dim], plain);
        reader.at += 4 * (positions * head) as u64; // The tables of rope.
        if !tied {
            reader.one("lm_head.weight", &[vocab, dim], plain);
        }
        if reader.at != map.len() as u64 {
            return Err(wrong(format!(
                "it has {} bytes, its header describes {}; is it whole, and of version 0?",
                map.len(),
                reader.at
            )));
        }
        let config = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocab, "hidden_size": dim,
            "intermediate_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
            "num_key_value_heads": kv_heads, "head_dim": head, "max_position_embeddings": positions, "hidden_act": "silu",
            "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "rope_scaling": null, "tie_word_embeddings": tied,
            "attention_bias": false, "mlp_bias": false, "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32",
        });
        let tensors = reader.tensors.into_iter().map(|t| t.checked()).collect();
        Ok(Self { path, file: Bytes::Mapped(map), tensors, config })
    }

    /// Text of a config.json.
    pub fn config(&self) -> String {
        serde_json::to_string_pretty(&self.config).expect("JSON prints") + "\n"
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.iter().map(|t| t.name.as_str())
    }

    fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.iter().find(|t| t.name == name)
    }
}

impl Source for Llama2c<'_> {
    fn stored(&self, name: &str) -> Option<Stored<'_>> {
        let t = self.get(name)?;
        let bytes = &self.file.get()[t.bytes.clone()];
        let view = TensorView { name: &t.name, dtype: StoredDtype::F32, shape: &t.shape, bytes, path: self.path };
        Some(Stored { view, file: &self.file })
    }

    fn rows(&self, name: &str) -> Result<Rows<'_>, CheckpointError> {
        let missing = || CheckpointError::Missing { path: self.path.into(), name: name.into() };
        let (tensor, stored) = (self.get(name).ok_or_else(missing)?, self.stored(name).ok_or_else(missing)?);
        Ok(Rows::new(stored, None, tensor.order))
    }

    fn is_reordered(&self, name: &str) -> bool {
        self.get(name).is_some_and(|t| matches!(t.order, RowOrder::Halves(_)))
    }
}

/// Places of tensors, not yet known to lie in the file: `u64` holds them all, the sizes being bounded.
struct Reader {
    at: u64,
    tensors: Vec<Placed>,
}

struct Placed {
    name: String,
    shape: Vec<usize>,
    begin: u64,
    end: u64,
    order: RowOrder,
}

impl Placed {
    /// To be called when the end of the last tensor is known to be that of the file.
    fn checked(self) -> Tensor {
        Tensor { name: self.name, shape: self.shape, bytes: self.begin as usize..self.end as usize, order: self.order }
    }
}

impl Reader {
    fn one(&mut self, name: &str, shape: &[usize], order: RowOrder) {
        let begin = self.at;
        self.at += 4 * shape.iter().map(|n| *n as u64).product::<u64>();
        self.tensors.push(Placed { name: name.into(), shape: shape.into(), begin, end: self.at, order });
    }

    fn layers(&mut self, layers: usize, name: &str, shape: &[usize], order: RowOrder) {
        (0..layers).for_each(|i| self.one(&format!("model.layers.{i}.{name}.weight"), shape, order));
    }
}
