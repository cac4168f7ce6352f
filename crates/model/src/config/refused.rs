//! Families that people will try and that are not supported: what they have that the supported ones have not.

/// `model_type`, and what is missing here. Source: the published config.json and modelling code of each.
const FAMILIES: [(&str, &str); 7] = [
    (
        "deepseek_v32",
        "DeepSeek-V3.2 is DeepSeek-V3 with sparse attention; the indexer that picks the keys a query may see (`index_topk`, \
         `index_n_heads`, `index_head_dim`, tensors `self_attn.indexer.*`) is missing here",
    ),
    (
        "deepseek_v4",
        "DeepSeek-V4 has another block; attention over compressed keys (`compress_ratios`, `index_topk`, `sliding_window`), \
         hyper-connections (`hc_mult`), grouped output projections (`o_groups`), layers routed by hash (`num_hash_layers`), the \
         square-root-softplus gate and FP4 experts (`expert_dtype`) are missing here",
    ),
    ("qwen3", "Qwen3 normalises each head's query and key (tensors `q_norm`, `k_norm`); that is missing here"),
    (
        "qwen3_moe",
        "Qwen3-MoE normalises each head's query and key (tensors `q_norm`, `k_norm`), and chooses experts by softmax in layers \
         with grouped-query attention (`num_experts`, `decoder_sparse_step`); both are missing here",
    ),
    (
        "mimo",
        "MiMo is Qwen2's block with layers of multi-token prediction of its own (`num_nextn_predict_layers`); those are missing \
         here for grouped-query attention",
    ),
    (
        "kimi_k25",
        "Kimi-K2.5 reads images (`vision_config`) and stores its language model, a kimi_k2 (`text_config`), in packed 4-bit \
         integers (compressed-tensors); the vision tower and the 4-bit format are missing here",
    ),
    (
        "qwen2_moe",
        "Qwen2-MoE chooses experts by softmax in layers with grouped-query attention and gates its shared expert; both are \
         missing here",
    ),
];

/// What a family that we know of has and we have not.
pub(super) fn what_is_missing(model_type: &str) -> Option<&'static str> {
    FAMILIES.iter().find(|(name, _)| *name == model_type).map(|(_, missing)| *missing)
}
