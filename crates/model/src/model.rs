//! The model: parameters by published name, the layers strung together, and the passes over them.
//!
//! Inference ([`Model::extend`]), scoring ([`Model::score`]) and training ([`Model::forward_backward`]) run the same blocks on the
//! same weights, so a token's log-probability has the same bits in all three.

use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
    ops::Range,
    path::Path,
};

use jevons_kernels::{
    AdamW, Dtype, GateShape, HeadShape, KvBlocks, LatentHeads, Matrix, Moments, Ops, Scoring, Tensor,
    formats::ScaleFormat,
};
use jevons_layers::{
    self as layers, Attention, Balance, Batch, Block, BlockSaved, Ffn, Fp8, Gate, Gqa, Grads, IGNORE, Keep, LatentUp,
    Linear, Linears, Mla, Moe, Mtp, MtpRows, Param, ParamId, Query, RmsNorm, SwiGlu, Weights,
};
use rayon::prelude::*;

use crate::{
    account::{Component, WeightFormat},
    adapter::{Adapter, AdapterError, Direction},
    checkpoint::{Checkpoint, CheckpointError},
    config::{self, Config, ConfigError, MlaForm, TensorSpec, TopkMethod},
    linears::LinearKind,
};

/// Number format of the matrix products.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Precision {
    /// f32 operands and activations: to check against references.
    F32,
    /// bf16 operands; residual stream, norms, softmax, gate and losses in f32.
    Bf16,
    /// As [`Precision::Bf16`], but both operands of the linears of attention, feed-forward and experts are E4M3 numbers.
    Fp8(Fp8),
}

impl Precision {
    /// Format of matrices and of activations between layers.
    pub fn dtype(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::Bf16 | Self::Fp8(_) => Dtype::Bf16,
        }
    }

    fn fp8(self) -> Option<Fp8> {
        match self {
            Self::Fp8(fp8) => Some(fp8),
            Self::F32 | Self::Bf16 => None,
        }
    }

    /// The linears that are left in bf16 by [`Fp8::linears`], by kind; none in other precisions.
    pub fn left_in_bf16(self, config: &Config) -> Vec<LinearKind> {
        match self.fp8().map(|fp8| fp8.linears) {
            Some(Linears::Auto { tokens }) => config.linears(tokens).into_iter().filter(|l| !l.worth_fp8()).collect(),
            _ => vec![],
        }
    }

    /// Whether this parameter is of those.
    fn leaves_in_bf16(self, config: &Config, spec: &TensorSpec) -> bool {
        match self.fp8().map(|fp8| fp8.linears) {
            Some(Linears::Auto { tokens }) => {
                LinearKind::of(config, &spec.name, &spec.shape, tokens).is_some_and(|l| !l.worth_fp8())
            }
            _ => false,
        }
    }

    /// What is quantised where `asked` is what the caller asked for.
    ///
    /// # Errors
    /// [`ModelError::QuantizeInF32`]
    pub(crate) fn quantize(self, asked: Option<Quantize>) -> Result<Option<Quantize>, ModelError> {
        match (self, asked) {
            (Self::F32, Some(_)) => Err(ModelError::QuantizeInF32),
            (Self::Fp8(fp8), None) => Ok(Some(Quantize { scale: fp8.scale, head: false })),
            _ => Ok(asked),
        }
    }
}

/// How a model is loaded; the default is what suits inference.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoadOptions<'a> {
    /// `None`: the format of the stored weights.
    pub precision: Option<Precision>,
    /// Form of latent attention; `None`: [`Config::default_mla_form`].
    pub mla: Option<MlaForm>,
    /// Whether the layer of multi-token prediction is loaded too, if there is one.
    pub mtp: bool,
    /// Merged into the weights before they are rounded.
    pub adapter: Option<&'a Adapter>,
    /// Makes FP8 of weights that are stored otherwise; products are then those of bf16. `None`: the format of the stored weights.
    pub quantize: Option<Quantize>,
}

/// Which matrices become E4M3 codes with a scale per 128 × 128 block, as they are loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantize {
    /// Of the scales.
    pub scale: ScaleFormat,
    /// The output head too, and the embedding where it is the same matrix. Without: what DeepSeek publishes in FP8, the linears of
    /// attention, feed-forward and experts.
    pub head: bool,
}

impl Quantize {
    /// `precision`: of the products.
    pub(crate) fn takes(self, config: &Config, precision: Precision, spec: &TensorSpec) -> bool {
        let left = precision.leaves_in_bf16(config, spec);
        spec.shape.len() == 2
            && !left
            && (Component::in_fp8(&spec.name) || self.head && spec.name == config.head_name())
    }
}

/// Why a model cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// config.json
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Weights.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Adapter.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// `JEVONS_ISA`
    #[error("{0}")]
    Isa(String),
    /// FP8 weights and f32 products.
    #[error(
        "weights cannot be FP8 codes where products take f32 operands; leave out one of the two, or choose precision bf16"
    )]
    QuantizeInF32,
}

impl From<Infallible> for ModelError {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

/// Numbers of a matrix that are read at a time, unless 16 rows have more.
const PIECE: usize = 1 << 15;
/// Numbers of a matrix after which pages are given back.
const RELEASE: usize = 1 << 19;

/// A model that runs. Cheap to share behind an `Arc`.
pub struct Model {
    config: Config,
    precision: Precision,
    ops: Ops,
    specs: Vec<TensorSpec>,
    weights: Weights,
    blocks: Vec<Block>,
    mtp: Option<Mtp>,
    mla: MlaForm,
    embedding: ParamId,
    norm: RmsNorm,
    head: ParamId,
    inv_freq: Vec<f64>,
    rope_factor: f64,
}

/// Keys and values of one sequence, layer by layer.
#[derive(Clone)]
pub struct KvCache {
    layers: Vec<KvBlocks>,
}

impl KvCache {
    /// Tokens held.
    pub fn len(&self) -> usize {
        self.layers.first().map_or(0, KvBlocks::len)
    }

    /// Whether no token is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Keeps the first `len` tokens.
    ///
    /// # Panics
    /// If fewer are held.
    pub fn truncate(&mut self, len: usize) {
        self.layers.iter_mut().for_each(|l| l.truncate(len));
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.layers.iter().map(KvBlocks::bytes).sum()
    }
}

/// New tokens of one sequence, to be appended to its cache.
pub struct Extend<'a> {
    /// At least one, each below the vocabulary's size.
    pub tokens: &'a [u32],
    /// The sequence so far.
    pub cache: &'a mut KvCache,
}

/// Sequences to train on, laid end to end.
#[derive(Clone, Copy, Debug)]
pub struct MicroBatch<'a> {
    /// `[T]`
    pub tokens: &'a [u32],
    /// What follows each token, or [`layers::IGNORE`], `[T]`.
    pub targets: &'a [u32],
    /// Length of each sequence; they sum to `T`.
    pub lengths: &'a [usize],
}

impl MicroBatch<'_> {
    /// How many targets multi-token prediction has: those of all tokens but the first of each sequence.
    pub fn mtp_targets(&self) -> usize {
        let mut rest = self.targets;
        let mut count = 0;
        for len in self.lengths {
            let (sequence, after) = rest.split_at(*len);
            count += sequence.iter().skip(1).filter(|t| **t != IGNORE).count();
            rest = after;
        }
        count
    }
}

/// How a micro-batch is computed.
#[derive(Clone, Copy, Debug)]
pub struct PassOptions {
    /// What forward keeps for backward.
    pub keep: Keep,
    /// Multiplies `−Σ log p`: one over the step's number of targets.
    pub scale: f32,
    /// Multiplies `−Σ log p` of multi-token prediction: its weight over the step's number of [`MicroBatch::mtp_targets`]. 0 leaves
    /// the layer out.
    pub mtp_scale: f32,
    /// Weight of the sequence-wise balance loss.
    pub balance_alpha: f32,
    /// This micro-batch's part of the step's sequences.
    pub share: f32,
}

/// What a micro-batch gave.
#[derive(Clone, Debug)]
pub struct PassOutput {
    /// Natural log-probability of each target, 0 where ignored, `[T]`.
    pub logprobs: Vec<f32>,
    /// Sum of the natural log-probabilities that multi-token prediction gave its targets.
    pub mtp_logprob: f64,
    /// Balance loss, all layers.
    pub balance_loss: f32,
    /// Tokens of each expert, `(layer, [E])` for each mixture-of-experts layer.
    pub loads: Vec<(usize, Vec<usize>)>,
    /// Bytes kept between forward and backward.
    pub saved_bytes: usize,
}

/// A number that is not finite appeared in the forward pass.
#[derive(Debug, thiserror::Error)]
#[error("the output of {layer} is not a finite number")]
pub struct NonFinite {
    /// Published name of the layer.
    pub layer: String,
}

impl Model {
    /// Loads a checkpoint folder: config.json and safetensors.
    ///
    /// # Errors
    /// [`ModelError`] names file, tensor or key, what was expected and what was found.
    pub fn load(dir: &Path, options: LoadOptions<'_>) -> Result<Self, ModelError> {
        let config = Config::from_file(dir.join("config.json"))?;
        Self::from_checkpoint(config, &Checkpoint::open(dir)?, options)
    }

    /// From a config.json text and the bytes of one safetensors file (the embedded model).
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn from_bytes(config: &str, weights: &[u8], options: LoadOptions<'_>) -> Result<Self, ModelError> {
        Self::from_checkpoint(Config::from_json(config)?, &Checkpoint::from_bytes(weights)?, options)
    }

    fn from_checkpoint(config: Config, file: &Checkpoint<'_>, options: LoadOptions<'_>) -> Result<Self, ModelError> {
        if let Some(adapter) = options.adapter {
            adapter.check(&config)?;
        }
        let config = if options.mtp { config } else { config.without_mtp() };
        let form = options.mla.unwrap_or_else(|| config.default_mla_form());
        let stored = if file.is_mostly_f32() { Precision::F32 } else { Precision::Bf16 };
        let precision = options.precision.unwrap_or(if options.quantize.is_some() { Precision::Bf16 } else { stored });
        let quantize = precision.quantize(options.quantize)?;
        let changed: HashSet<&str> =
            options.adapter.iter().flat_map(|adapter| adapter.targets().map(|(name, ..)| name)).collect();
        Self::build(config, precision, form, |config, _, spec| match options.adapter {
            Some(adapter) if changed.contains(spec.name.as_str()) => {
                let mut values = file.read_f32(&spec.name, &spec.shape)?;
                adapter.apply(spec, &mut values, Direction::Merge)?;
                Ok::<_, ModelError>(match (&spec.shape[..], quantize.filter(|q| q.takes(config, precision, spec))) {
                    (&[n, k], Some(q)) if !is_absorbed(form, spec) => {
                        Param::Matrix(Matrix::quantized(q.scale, &values, n, k))
                    }
                    _ => param(config, precision, form, spec, &values),
                })
            }
            _ => Ok(stored_param(config, precision, form, spec, file, quantize)?),
        })
    }

    /// From any source of f32 values, asked once for each of [`Config::tensors`], in any order and from several threads. Latent
    /// attention is expanded, as training needs it.
    ///
    /// # Errors
    /// What `read` returned for the first tensor that it refused, or an unknown `JEVONS_ISA`.
    pub fn new<E: Send>(
        config: Config,
        precision: Precision,
        read: impl Fn(&TensorSpec) -> Result<Vec<f32>, E> + Sync,
    ) -> Result<Self, ModelError>
    where
        ModelError: From<E>,
    {
        Self::build(config, precision, MlaForm::Expanded, |config, _, spec| {
            Ok(param(config, precision, MlaForm::Expanded, spec, &read(spec)?))
        })
    }

    pub(crate) fn build<E: Send>(
        config: Config,
        precision: Precision,
        mla: MlaForm,
        read: impl Fn(&Config, ParamId, &TensorSpec) -> Result<Param, E> + Sync,
    ) -> Result<Self, ModelError>
    where
        ModelError: From<E>,
    {
        let ops = Ops::new().map_err(ModelError::Isa)?;
        let specs = config.tensors();
        let params: Vec<Result<Param, E>> =
            specs.par_iter().enumerate().map(|(i, spec)| read(&config, ParamId(i), spec)).collect();
        let weights = Weights::new(precision.dtype(), params.into_iter().collect::<Result<_, E>>()?);
        let weights = weights.with_fp8(precision.fp8());
        let ids: HashMap<&str, ParamId> =
            specs.iter().enumerate().map(|(i, s)| (s.name.as_str(), ParamId(i))).collect();
        let names = Names { ids: &ids, config: &config, absorbed: mla == MlaForm::Absorbed };
        let blocks = (0..config.num_hidden_layers).map(|i| names.block(i)).collect();
        let embedding = ids["model.embed_tokens.weight"];
        let head = if config.tie_word_embeddings { embedding } else { ids["lm_head.weight"] };
        let norm = names.norm("model.norm");
        let mtp = (config.num_nextn_predict_layers > 0).then(|| names.mtp(config.num_hidden_layers, embedding));
        let mut inv_freq = config.rope_inv_freq();
        if config.raw.get("rope_inv_freq_dtype").is_some_and(|v| v == "bfloat16") {
            // Code that casts a whole module to bf16 rounds its frequencies too; this key says that a checkpoint was made so.
            inv_freq.iter_mut().for_each(|f| *f = f64::from(jevons_kernels::math::round_bf16(*f as f32)));
        }
        let rope_factor = config.rope_attention_factor();
        Ok(Self {
            ops,
            weights,
            blocks,
            mtp,
            mla,
            embedding,
            norm,
            head,
            inv_freq,
            rope_factor,
            specs,
            config,
            precision,
        })
    }

    /// Its configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Number format of its products.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Format in which its linears are held.
    pub fn weight_format(&self) -> WeightFormat {
        let is_fp8 = |param: &Param| matches!(param, Param::Matrix(m) if m.is_fp8());
        let params = self.weights.params();
        match self.precision {
            Precision::F32 => WeightFormat::F32,
            _ if is_fp8(&params[self.head.0]) => WeightFormat::Fp8Head,
            _ if params.iter().any(is_fp8) => WeightFormat::Fp8,
            _ => WeightFormat::Bf16,
        }
    }

    /// Form of its latent attention; `Expanded` for models without.
    pub fn mla_form(&self) -> MlaForm {
        self.mla
    }

    /// The operations it runs on.
    pub fn ops(&self) -> &Ops {
        &self.ops
    }

    /// Runs on other operations, for example another instruction set; the bits stay the same.
    pub fn set_ops(&mut self, ops: Ops) {
        self.ops = ops;
    }

    /// Name and shape of each parameter, in the order of [`ParamId`].
    pub fn specs(&self) -> &[TensorSpec] {
        &self.specs
    }

    /// The compute weights.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// Replaces one parameter by f32 values, rounded and packed as at load.
    pub fn set(&mut self, id: ParamId, values: &[f32]) {
        self.weights.set(id, param(&self.config, self.precision, self.mla, &self.specs[id.0], values));
    }

    /// One AdamW step of a parameter's f32 values `p`, given their gradient and moments; its compute weights follow.
    pub fn adamw(&mut self, id: ParamId, s: AdamW, p: &mut [f32], g: &[f32], m: &mut Moments, v: &mut Moments) {
        match self.weights.matrix_mut(id) {
            Some(w) if w.is_fp8() && self.precision.fp8().is_some() => {
                self.ops.adamw(s, p, g, m, v);
                self.set(id, p);
            }
            Some(w) => self.ops.adamw_matrix(s, p, g, m, v, w),
            None => {
                self.ops.adamw(s, p, g, m, v);
                self.set(id, p);
            }
        }
    }

    /// The id of layer `i`'s selection bias, if it has one; the layer of multi-token prediction comes after the last.
    pub fn gate_bias(&self, layer: usize) -> Option<ParamId> {
        let block = self.blocks.get(layer).or(self.mtp.as_ref().map(|m| &m.block))?;
        match &block.ffn {
            Ffn::Moe(moe) => moe.gate.bias,
            Ffn::Dense(_) => None,
        }
    }

    /// An empty cache.
    pub fn new_cache(&self) -> KvCache {
        let layers = self.blocks.iter().map(|b| b.new_cache(self.weights.dtype())).collect();
        KvCache { layers }
    }

    /// Appends tokens to each cache; returns each sequence's logits `[V]` after its last token.
    ///
    /// The bits do not depend on the other sequences nor on how a prompt is cut.
    ///
    /// # Panics
    /// If a sequence has no new token, or a token lies outside the vocabulary.
    pub fn extend(&self, batch: &mut [Extend<'_>]) -> Vec<Vec<f32>> {
        among_workers(|| self.extend_here(batch))
    }

    fn extend_here(&self, batch: &mut [Extend<'_>]) -> Vec<Vec<f32>> {
        let h = self.hidden(batch);
        let mut row = 0;
        let last: Vec<u32> = batch
            .iter()
            .map(|e| {
                assert!(!e.tokens.is_empty(), "a sequence must have a new token");
                row += e.tokens.len() as u32;
                row - 1
            })
            .collect();
        let x = self.norm.forward(&self.ops, &self.weights, &self.ops.gather(&h, &last)).0;
        let logits = self.ops.matmul(&x, &self.weights[self.head], None, Dtype::F32);
        logits.f32().chunks_exact(logits.cols).map(<[f32]>::to_vec).collect()
    }

    /// Logits after every token of one sequence, f32 `[S, V]`.
    pub fn logits(&self, tokens: &[u32]) -> Tensor {
        let h = self.hidden(&mut [Extend { tokens, cache: &mut self.new_cache() }]);
        let x = self.norm.forward(&self.ops, &self.weights, &h).0;
        self.ops.matmul(&x, &self.weights[self.head], None, Dtype::F32)
    }

    /// What multi-token prediction expects after the next token, f32 `[S − 1, V]`: row `i` predicts token `i + 2`. `None` without
    /// that layer, or for a sequence of one token.
    pub fn mtp_logits(&self, tokens: &[u32]) -> Option<Tensor> {
        let mtp = self.mtp.as_ref().filter(|_| tokens.len() > 1)?;
        let h = self.hidden(&mut [Extend { tokens, cache: &mut self.new_cache() }]);
        let x = self.norm.forward(&self.ops, &self.weights, &h).0;
        let rows = MtpRows::new(tokens, &[tokens.len()]);
        let batch = Batch::new(&rows.lengths, &[0], &self.inv_freq, self.rope_factor);
        let (h, ..) = mtp.forward(&self.ops, &self.weights, &x, &rows, &batch, Keep::Input);
        let x = mtp.norm.forward(&self.ops, &self.weights, &h).0;
        Some(self.ops.matmul(&x, &self.weights[self.head], None, Dtype::F32))
    }

    /// Natural log-probability of each next token: `S − 1` values for a sequence of `S`.
    pub fn score(&self, sequences: &[Vec<u32>]) -> Vec<Vec<f32>> {
        sequences
            .iter()
            .map(|tokens| {
                let Some(n) = tokens.len().checked_sub(1).filter(|n| *n > 0) else { return Vec::new() };
                let h = self.hidden(&mut [Extend { tokens: &tokens[..n], cache: &mut self.new_cache() }]);
                let x = self.norm.forward(&self.ops, &self.weights, &h).0;
                layers::head_logprobs(&self.ops, &self.weights, self.head, &x, &tokens[1..])
            })
            .collect()
    }

    /// Log-probability of each target, 0 where ignored, `[T]`; sequences laid end to end as in [`MicroBatch`].
    pub fn target_logprobs(&self, tokens: &[u32], targets: &[u32], lengths: &[usize]) -> Vec<f32> {
        let mut caches: Vec<_> = lengths.iter().map(|_| self.new_cache()).collect();
        let mut first = 0;
        let mut batch: Vec<_> = caches
            .iter_mut()
            .zip(lengths)
            .map(|(cache, len)| {
                first += len;
                Extend { tokens: &tokens[first - len..first], cache }
            })
            .collect();
        let h = self.hidden(&mut batch);
        let x = self.norm.forward(&self.ops, &self.weights, &h).0;
        layers::head_logprobs(&self.ops, &self.weights, self.head, &x, targets)
    }

    /// The residual stream after the last block, f32 `[T, D]`.
    fn hidden(&self, batch: &mut [Extend<'_>]) -> Tensor {
        let lengths: Vec<_> = batch.iter().map(|e| e.tokens.len()).collect();
        let starts: Vec<_> = batch.iter().map(|e| e.cache.len()).collect();
        let tokens: Vec<u32> = batch.iter().flat_map(|e| e.tokens.iter().copied()).collect();
        let rows = Batch::new(&lengths, &starts, &self.inv_freq, self.rope_factor);
        let mut h = self.ops.embed(&tokens, &self.weights[self.embedding]);
        for (i, block) in self.blocks.iter().enumerate() {
            let mut kv: Vec<_> = batch.iter_mut().map(|e| &mut e.cache.layers[i]).collect();
            h = block.infer(&self.ops, &self.weights, h, &rows, &mut kv);
        }
        h
    }

    /// Gradient buffers for the parameters that `trained` names.
    pub fn grads(&self, trained: impl Fn(ParamId) -> bool) -> Grads {
        let len = |(i, s): (usize, &TensorSpec)| trained(ParamId(i)).then(|| s.shape.iter().product());
        Grads::zeros(self.specs.iter().enumerate().map(len))
    }

    /// Forward and backward of `−scale · Σ log p(target)` plus the balance loss and, as the options say, the loss of multi-token
    /// prediction; adds to `grads`.
    ///
    /// # Errors
    /// [`NonFinite`] with the first layer whose output is not finite; `grads` must then not be used.
    ///
    /// # Panics
    /// If latent attention is absorbed: that form is for inference.
    pub fn forward_backward(
        &self,
        grads: &mut Grads,
        batch: &MicroBatch<'_>,
        options: &PassOptions,
    ) -> Result<PassOutput, NonFinite> {
        among_workers(|| self.forward_backward_here(grads, batch, options))
    }

    fn forward_backward_here(
        &self,
        grads: &mut Grads,
        batch: &MicroBatch<'_>,
        options: &PassOptions,
    ) -> Result<PassOutput, NonFinite> {
        let (ops, w) = (&self.ops, &self.weights);
        assert_eq!(batch.tokens.len(), batch.targets.len());
        let rows = Batch::new(batch.lengths, &vec![0; batch.lengths.len()], &self.inv_freq, self.rope_factor);
        assert_eq!(rows.rows(), batch.tokens.len());
        let mut h = ops.embed(batch.tokens, &w[self.embedding]);
        let mut saved: Vec<BlockSaved> = Vec::with_capacity(self.blocks.len());
        let mut loads = Vec::new();
        for (i, block) in self.blocks.iter().enumerate() {
            let mut caches: Vec<_> = batch.lengths.iter().map(|_| block.new_cache(w.dtype())).collect();
            let mut kv: Vec<_> = caches.iter_mut().collect();
            let (out, kept, load) = block.forward(ops, w, h, &rows, &mut kv, options.keep);
            h = out;
            saved.push(kept);
            loads.extend(load.map(|l| (i, l)));
            check_finite(&h, i)?;
        }
        let mut saved_bytes = saved.iter().map(BlockSaved::bytes).sum::<usize>() + h.bytes();
        let (x, rrms) = self.norm.forward(ops, w, &h);
        let mut loss = layers::head_loss(ops, w, grads, self.head, &x, batch.targets, options.scale);
        let (mut mtp_logprob, mut mtp_balance) = (0.0, 0.0);
        if let Some(mtp) = self.mtp.as_ref().filter(|_| options.mtp_scale != 0.0) {
            let tail = self.mtp_pass(mtp, grads, batch, options, &x, &mut loss.dx)?;
            (mtp_logprob, mtp_balance) = (tail.logprob, tail.balance_loss);
            loads.extend(tail.loads.map(|l| (self.blocks.len(), l)));
            saved_bytes += tail.saved_bytes;
        }
        let mut dh = Tensor::zeros(Dtype::F32, h.rows, h.cols);
        self.norm.backward(ops, w, grads, &h, &rrms, &loss.dx, &mut dh);
        let balance = Balance { alpha: options.balance_alpha, cu_seqlens: &rows.cu_seqlens, share: options.share };
        let mut balance_loss = mtp_balance;
        for (block, saved) in self.blocks.iter().zip(saved).rev() {
            balance_loss += block.backward(ops, w, grads, &rows, saved, &mut dh, &balance);
        }
        if let Some(d) = grads.get_mut(self.embedding) {
            ops.embed_grad(batch.tokens, &dh, d);
        }
        Ok(PassOutput { logprobs: loss.logprobs, mtp_logprob, balance_loss, loads, saved_bytes })
    }

    /// Forward and backward of multi-token prediction, from the output `x` of the final norm; adds to `grads` and to `dx`.
    fn mtp_pass(
        &self,
        mtp: &Mtp,
        grads: &mut Grads,
        batch: &MicroBatch<'_>,
        options: &PassOptions,
        x: &Tensor,
        dx: &mut Tensor,
    ) -> Result<MtpPass, NonFinite> {
        let (ops, w) = (&self.ops, &self.weights);
        let rows = MtpRows::new(batch.tokens, batch.lengths);
        if rows.rows.is_empty() {
            return Ok(MtpPass { logprob: 0.0, balance_loss: 0.0, loads: None, saved_bytes: 0 });
        }
        let own = Batch::new(&rows.lengths, &vec![0; rows.lengths.len()], &self.inv_freq, self.rope_factor);
        let (h, saved, loads) = mtp.forward(ops, w, x, &rows, &own, options.keep);
        check_finite(&h, self.blocks.len())?;
        let saved_bytes = saved.bytes();
        let (x, rrms) = mtp.norm.forward(ops, w, &h);
        let targets = rows.targets(batch.targets);
        let loss = layers::head_loss(ops, w, grads, self.head, &x, &targets, options.mtp_scale);
        let mut dh = Tensor::zeros(Dtype::F32, h.rows, h.cols);
        mtp.norm.backward(ops, w, grads, &h, &rrms, &loss.dx, &mut dh);
        let balance = Balance { alpha: options.balance_alpha, cu_seqlens: &own.cu_seqlens, share: options.share };
        let balance_loss = mtp.backward(ops, w, grads, &rows, &own, saved, dh, &balance, dx);
        let logprob = loss.logprobs.iter().map(|x| f64::from(*x)).sum();
        Ok(MtpPass { logprob, balance_loss, loads, saved_bytes })
    }
}

/// What [`Model::mtp_pass`] gave.
struct MtpPass {
    logprob: f64,
    balance_loss: f32,
    loads: Option<Vec<usize>>,
    saved_bytes: usize,
}

fn check_finite(h: &Tensor, layer: usize) -> Result<(), NonFinite> {
    let finite = h.f32().par_chunks(1 << 16).all(|x| x.iter().all(|x| x.is_finite()));
    if finite { Ok(()) } else { Err(NonFinite { layer: format!("model.layers.{layer}") }) }
}

/// Compute form of a parameter. Gains and biases hold bf16 numbers where products are bf16, so that a run's model and its
/// bf16 checkpoint are one; the selection bias stays f32.
pub(crate) fn param(config: &Config, precision: Precision, mla: MlaForm, spec: &TensorSpec, values: &[f32]) -> Param {
    if let config::Attention::Mla { kv_lora_rank, .. } = &config.attention
        && is_absorbed(mla, spec)
    {
        return Param::LatentUp(LatentUp::new(precision.dtype(), values, latent_heads(config), *kv_lora_rank));
    }
    match (&spec.shape[..], precision) {
        (&[n, k], Precision::Fp8(fp8)) if Component::in_fp8(&spec.name) && !precision.leaves_in_bf16(config, spec) => {
            Param::Matrix(Matrix::quantized(fp8.scale, values, n, k))
        }
        (&[n, k], _) => Param::Matrix(Matrix::from_f32(precision.dtype(), values, n, k)),
        _ if precision != Precision::F32 && !spec.name.ends_with("e_score_correction_bias") => {
            Param::Vector(values.iter().map(|x| jevons_kernels::math::round_bf16(*x)).collect())
        }
        _ => Param::Vector(values.to_vec()),
    }
}

pub(crate) fn is_absorbed(mla: MlaForm, spec: &TensorSpec) -> bool {
    mla == MlaForm::Absorbed && spec.name.ends_with(".kv_b_proj.weight")
}

/// The same from a checkpoint, piece by piece: no second copy of a matrix is made but of an absorbed one, and mapped pages are
/// given back.
fn stored_param(
    config: &Config,
    precision: Precision,
    mla: MlaForm,
    spec: &TensorSpec,
    file: &Checkpoint<'_>,
    quantize: Option<Quantize>,
) -> Result<Param, CheckpointError> {
    let stored = file.rows(&spec.name, &spec.shape)?;
    let (n, k) = match spec.shape[..] {
        [n, k] if !is_absorbed(mla, spec) => (n, k),
        _ => return Ok(param(config, precision, mla, spec, &stored.read_all()?)),
    };
    let mut released = 0;
    let mut release = |done: usize| {
        if done == n || (done - released) * k >= RELEASE {
            stored.release(released..done);
            released = done;
        }
    };
    if let (Precision::Bf16 | Precision::Fp8(_), Some(scales)) = (precision, stored.scales())
        && !precision.leaves_in_bf16(config, spec)
    {
        // The numbers are the same as expanded, in half the memory.
        let mut matrix = Matrix::zeros_fp8(scales.to_vec(), n, k);
        let rows = (PIECE / k.max(1)).next_multiple_of(16);
        for first in (0..n).step_by(rows) {
            let end = n.min(first + rows);
            matrix.set_codes(first, stored.codes(first..end)?);
            release(end);
        }
        return Ok(Param::Matrix(matrix));
    }
    let quantize = quantize.filter(|q| q.takes(config, precision, spec)).map(|q| q.scale);
    let matrix = matrix_in_pieces(precision, quantize, n, k, |rows, piece| {
        stored.read(rows.clone(), piece)?;
        release(rows.end);
        if quantize.is_some() && !piece.iter().all(|x| x.is_finite()) {
            return Err(stored.not_finite(&rows));
        }
        Ok::<_, CheckpointError>(())
    });
    Ok(Param::Matrix(matrix?))
}

/// A packed matrix `[n, k]`, of codes if `quantize` says so, whose rows `read` gives as f32, some at a time, row-major.
pub(crate) fn matrix_in_pieces<E>(
    precision: Precision,
    quantize: Option<ScaleFormat>,
    n: usize,
    k: usize,
    mut read: impl FnMut(Range<usize>, &mut [f32]) -> Result<(), E>,
) -> Result<Matrix, E> {
    let block = config::Quantization::BLOCK;
    let (mut matrix, whole) = match quantize {
        Some(_) => (Matrix::zeros_fp8(vec![0.0; n.div_ceil(block) * k.div_ceil(block)], n, k), block),
        None => (Matrix::zeros(precision.dtype(), n, k), 16),
    };
    let rows = (PIECE / k.max(1)).next_multiple_of(whole).max(whole);
    let mut piece = vec![0.0; rows.min(n) * k];
    for first in (0..n).step_by(rows) {
        let end = n.min(first + rows);
        let piece = &mut piece[..(end - first) * k];
        read(first..end, piece)?;
        match quantize {
            Some(scale) => matrix.quantize_rows(first, piece, scale),
            None => matrix.set_rows(first, piece),
        }
    }
    Ok(matrix)
}

/// # Panics
/// If the attention is not latent.
fn latent_heads(config: &Config) -> LatentHeads {
    let config::Attention::Mla { qk_nope_head_dim, qk_rope_head_dim, v_head_dim, .. } = config.attention else {
        panic!("{:?} is not latent", config.attention)
    };
    LatentHeads { heads: config.num_attention_heads, nope: qk_nope_head_dim, rope: qk_rope_head_dim, v: v_head_dim }
}

/// Finds parameters by published name.
struct Names<'a> {
    ids: &'a HashMap<&'a str, ParamId>,
    config: &'a Config,
    absorbed: bool,
}

impl Names<'_> {
    fn norm(&self, name: &str) -> RmsNorm {
        RmsNorm { weight: self.ids[format!("{name}.weight").as_str()], eps: self.config.rms_norm_eps }
    }

    fn linear(&self, name: &str) -> Linear {
        Linear {
            weight: self.ids[format!("{name}.weight").as_str()],
            bias: self.ids.get(format!("{name}.bias").as_str()).copied(),
        }
    }

    fn swiglu(&self, name: &str) -> SwiGlu {
        let part = |part: &str| self.linear(&format!("{name}.{part}"));
        SwiGlu { gate: part("gate_proj"), up: part("up_proj"), down: part("down_proj") }
    }

    fn block(&self, i: usize) -> Block {
        let name = format!("model.layers.{i}");
        let ffn = match &self.config.moe {
            Some(moe) if self.config.is_moe_layer(i) => Ffn::Moe(self.moe(&format!("{name}.mlp"), moe)),
            _ => Ffn::Dense(self.swiglu(&format!("{name}.mlp"))),
        };
        Block {
            attention_norm: self.norm(&format!("{name}.input_layernorm")),
            attention: self.attention(&format!("{name}.self_attn")),
            ffn_norm: self.norm(&format!("{name}.post_attention_layernorm")),
            ffn,
        }
    }

    fn mtp(&self, layer: usize, embedding: ParamId) -> Mtp {
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        Mtp {
            enorm: self.norm(&name("enorm")),
            hnorm: self.norm(&name("hnorm")),
            eh_proj: self.linear(&name("eh_proj")),
            block: self.block(layer),
            norm: self.norm(&name("shared_head.norm")),
            embedding,
        }
    }

    fn attention(&self, name: &str) -> Attention {
        let c = self.config;
        let part = |part: &str| self.linear(&format!("{name}.{part}"));
        let interleave = c.rope.interleave;
        let scale = c.softmax_scale() as f32;
        match c.attention {
            config::Attention::Mla { q_lora_rank, kv_lora_rank, .. } => Attention::Mla(Mla {
                query: match q_lora_rank {
                    None => Query::Direct(part("q_proj")),
                    Some(_) => {
                        let norm = self.norm(&format!("{name}.q_a_layernorm"));
                        Query::Latent(part("q_a_proj"), norm, part("q_b_proj"))
                    }
                },
                kv_a: part("kv_a_proj_with_mqa"),
                kv_norm: self.norm(&format!("{name}.kv_a_layernorm")),
                kv_b: part("kv_b_proj"),
                o: part("o_proj"),
                heads: latent_heads(c),
                latent: kv_lora_rank,
                scale,
                interleave,
                absorbed: self.absorbed,
            }),
            config::Attention::Gqa { num_key_value_heads, head_dim, .. } => Attention::Gqa(Gqa {
                q: part("q_proj"),
                k: part("k_proj"),
                v: part("v_proj"),
                o: part("o_proj"),
                shape: HeadShape {
                    heads: c.num_attention_heads,
                    kv_heads: num_key_value_heads,
                    dk: head_dim,
                    dv: head_dim,
                    scale,
                },
                interleave,
            }),
        }
    }

    fn moe(&self, name: &str, moe: &config::Moe) -> Moe {
        let experts = |part: &str| -> Vec<ParamId> {
            (0..moe.n_routed_experts).map(|e| self.ids[format!("{name}.experts.{e}.{part}.weight").as_str()]).collect()
        };
        Moe {
            gate: Gate {
                linear: self.linear(&format!("{name}.gate")),
                bias: self.ids.get(format!("{name}.gate.e_score_correction_bias").as_str()).copied(),
                shape: GateShape {
                    scoring: match moe.topk_method {
                        TopkMethod::BiasedSigmoid => Scoring::Sigmoid,
                        TopkMethod::Softmax => Scoring::Softmax,
                    },
                    experts: moe.n_routed_experts,
                    top_k: moe.num_experts_per_tok,
                    groups: moe.n_group,
                    top_groups: moe.topk_group,
                    normalise: moe.norm_topk_prob,
                    scale: moe.routed_scaling_factor,
                },
            },
            gates: experts("gate_proj"),
            ups: experts("up_proj"),
            downs: experts("down_proj"),
            shared: (moe.n_shared_experts > 0).then(|| self.swiglu(&format!("{name}.shared_experts"))),
        }
    }
}

/// Runs on a worker of the thread pool: what it then shares with the others costs a fraction of what sharing from outside does.
fn among_workers<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| f())
}
