#!/usr/bin/env python3
"""Make the small reference cases `v3-odd-groups`, `v3-no-q-lora-tied`, `qwen2-tied-odd` and `v3-fp8-odd` with transformers.

  make_parity.py [--out FOLDER] [CASE ...]      default: beside this file under parity/, every small case

Each case is a folder in the format of README.md. The weights are random bf16, in `v3-fp8-odd` block FP8; everything computed from
them is float32.
A case takes the first seed whose answers do not hang on a rounding: no near tie in the greedy continuation or between
chosen and dropped experts, tokens for the experts whose gradients are kept, and a bf16 run of transformers close to the
f32 run (`Margins`).
"""
import argparse
import itertools
import json
import math
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

SEQUENCES, LENGTH, NEW_TOKENS = 2, 48, 16
KEPT_EXPERTS = 2  # experts whose gradients are kept
HERE = Path(__file__).resolve().parent


def deepseek_v3(**sizes):
    """A config.json with the keys of the published DeepSeek-V3 checkpoints."""
    return {
        "architectures": ["DeepseekV3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 0,
        "eos_token_id": 1, "first_k_dense_replace": 1, "hidden_act": "silu", "initializer_range": 0.02,
        "max_position_embeddings": 128, "model_type": "deepseek_v3", "moe_layer_freq": 1, "n_group": 1, "topk_group": 1,
        "n_shared_experts": 1, "norm_topk_prob": True, "num_key_value_heads": sizes["num_attention_heads"],
        "num_nextn_predict_layers": 0, "pad_token_id": None, "rms_norm_eps": 1e-6, "rope_interleave": True,
        "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "tie_word_embeddings": False, "topk_method": "noaux_tc",
        "torch_dtype": "bfloat16", "use_cache": True,
    } | sizes


ODD_GROUPS = dict(
    num_hidden_layers=3, num_attention_heads=3, n_routed_experts=24, n_group=3, topk_group=2, num_experts_per_tok=4, n_shared_experts=2,
    rope_parameters={"rope_type": "default", "rope_theta": 10000.0})

CONFIGS = {
    # Three groups of eight experts, two shared experts, no size a multiple of 8 except the expert count; new style of rope keys.
    "v3-odd-groups": deepseek_v3(
        hidden_size=44, qk_nope_head_dim=12, qk_rope_head_dim=6, v_head_dim=20, q_lora_rank=20, kv_lora_rank=28,
        moe_intermediate_size=11, intermediate_size=52, vocab_size=91, **ODD_GROUPS),
    # No query latent, head tied to the embedding, biases in the attention.
    "v3-no-q-lora-tied": deepseek_v3(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=12,
        q_lora_rank=None, kv_lora_rank=24, n_routed_experts=8, num_experts_per_tok=3, moe_intermediate_size=20, intermediate_size=72,
        vocab_size=151, attention_bias=True, tie_word_embeddings=True, rope_theta=10000.0, rope_scaling=None),
    # Five query heads on one key head, tied, odd vocabulary, large rope base; old style of rope keys.
    "qwen2-tied-odd": {
        "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 0, "eos_token_id": 1, "hidden_act": "silu",
        "hidden_size": 80, "initializer_range": 0.02, "intermediate_size": 20, "max_position_embeddings": 128, "max_window_layers": 2,
        "model_type": "qwen2", "num_attention_heads": 5, "num_hidden_layers": 2, "num_key_value_heads": 1, "pad_token_id": None,
        "rms_norm_eps": 1e-6, "rope_scaling": None, "rope_theta": 1000000.0, "sliding_window": None, "tie_word_embeddings": True,
        "torch_dtype": "bfloat16", "use_cache": True, "use_sliding_window": False, "vocab_size": 259},
}
CONFIGS["v3-fp8-odd"] = deepseek_v3(
    hidden_size=136, num_hidden_layers=2, num_attention_heads=3, qk_nope_head_dim=12, qk_rope_head_dim=6, v_head_dim=20, q_lora_rank=20,
    kv_lora_rank=132, n_routed_experts=8, num_experts_per_tok=2, moe_intermediate_size=24, intermediate_size=150, vocab_size=61,
    rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    quantization_config={"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]})
# The same structure at sizes above the SIMD blocks: 2.2 MB, so it is made only when named and not kept in the repository. Its
# many gates leave no hope of a seed that stands bf16.
LARGE = {
    "v3-odd-groups-large": deepseek_v3(
        hidden_size=100, qk_nope_head_dim=20, qk_rope_head_dim=10, v_head_dim=28, q_lora_rank=36, kv_lora_rank=44,
        moe_intermediate_size=36, intermediate_size=88, vocab_size=333, **ODD_GROUPS),
}


class Margins:
    """How far each decision of a case is from flipping; `ok` says whether every margin is wide enough in float32."""
    GREEDY, GATE, BF16 = 4e-3, 1e-4, 1.5e-2  # logit gap, biased-score gap, relative error of bf16 logits

    def __init__(self, greedy_gap, gate_gap, min_load, min_biased_score, bf16_error, greedy):
        self.greedy_gap, self.gate_gap, self.min_load = greedy_gap, gate_gap, min_load
        self.min_biased_score, self.bf16_error = min_biased_score, bf16_error
        self.ok_in_bf16 = bf16_error < self.BF16
        self.ok = (greedy_gap > self.GREEDY and gate_gap > self.GATE and min_load > 0
                   and min_biased_score > 0  # then masking dropped groups with 0 or with −∞ chooses the same experts
                   and not (greedy == 1).any())  # end of text would cut the continuation short

    def __str__(self):
        return (f"greedy gap {self.greedy_gap:.3g}, gate gap {self.gate_gap:.3g}, least load of experts 0 and 1 {self.min_load}, "
                f"least biased score {self.min_biased_score:.3g}, bf16 error {self.bf16_error:.3g}")


def split_experts(tensors):
    """Checkpoint names for transformers' in-memory ones: its fused `[E, 2F, D]` and `[E, D, F]` become one tensor per expert."""
    out = {}
    for name, t in tensors.items():
        if name.endswith("mlp.experts.gate_up_proj"):
            for e, both in enumerate(t):
                gate, up = both.chunk(2)
                out[name.replace("gate_up_proj", f"{e}.gate_proj.weight")] = gate.contiguous()
                out[name.replace("gate_up_proj", f"{e}.up_proj.weight")] = up.contiguous()
        elif name.endswith("mlp.experts.down_proj"):
            for e, down in enumerate(t):
                out[name.replace("down_proj", f"{e}.down_proj.weight")] = down.contiguous()
        else:
            out[name] = t.contiguous()
    return out


# Wider weights where the softmax or the gate would otherwise be nearly uniform.
SHARP = ("mlp.gate.weight", "q_proj.weight", "q_b_proj.weight", "k_proj.weight", "kv_b_proj.weight")


def random_weights(config, generator):
    """bf16 tensors under checkpoint names: norm gains near 1, everything else large enough that an error shows in the logits."""
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config)
    shapes = {n: t.shape for n, t in split_experts(empty.state_dict()).items()}
    if config.tie_word_embeddings:
        del shapes["lm_head.weight"]  # a tied checkpoint holds the matrix once
    weights = {}
    for name, shape in sorted(shapes.items()):
        if "norm" in name:
            t = 0.8 + 0.4 * torch.rand(shape, generator=generator)
        elif name.endswith("e_score_correction_bias"):
            t = 0.05 + 0.2 * torch.rand(shape, generator=generator)
        elif name.endswith("bias"):
            t = 0.2 * torch.randn(shape, generator=generator)
        else:
            t = (0.18 if name.endswith(SHARP) else 0.1) * torch.randn(shape, generator=generator)
        weights[name] = t.bfloat16()
    return weights


BLOCK, E4M3_MAX = 128, 448.0


def scale_kind(name):
    """Every kind of scale that checkpoints have: FP32; BF16, as some tools store them; powers of two in their own format."""
    if ".self_attn." in name:
        return torch.bfloat16
    return torch.float8_e8m0fnu if ".experts." in name else torch.float32


def quantised(weights):
    """Block FP8 of every projection, partial blocks over their own numbers: the tensors to store, and their values in float32."""
    stored, values = {}, {}
    for name, w in weights.items():
        if "_proj" not in name or w.ndim != 2:
            stored[name] = values[name] = w
            continue
        kind = scale_kind(name)
        codes, value = torch.empty_like(w, dtype=torch.float8_e4m3fn), torch.empty_like(w, dtype=torch.float32)
        scales = torch.empty([math.ceil(n / BLOCK) for n in w.shape], dtype=torch.float32)
        for i, j in itertools.product(*map(range, scales.shape)):
            at = (slice(i * BLOCK, (i + 1) * BLOCK), slice(j * BLOCK, (j + 1) * BLOCK))
            block = w[at].float()
            scale = block.abs().max() / E4M3_MAX
            if kind == torch.float8_e8m0fnu:
                scale = torch.exp2(torch.ceil(torch.log2(scale)))
            scale = scale.to(kind).float()
            codes[at] = (block / scale).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
            value[at], scales[i, j] = codes[at].float() * scale, scale
        stored[name], values[name], stored[f"{name}_scale_inv"] = codes, value, scales.to(kind)
    return stored, values


class GateWatch:
    """Records, in every gate, how close the choice of experts is to another one, and how many tokens each expert got."""

    def __init__(self, model):
        self.gap, self.low, self.loads = math.inf, math.inf, {}
        for name, module in model.named_modules():
            if type(module).__name__ == "DeepseekV3TopkRouter":
                module.register_forward_hook(lambda m, _, out, name=name: self.see(name, m, out))

    def see(self, name, gate, out):
        logits, _, chosen = out
        biased = logits.sigmoid() + gate.e_score_correction_bias
        groups = biased.view(len(biased), gate.num_group, -1)
        group_scores = groups.topk(2).values.sum(-1).sort(descending=True)
        if gate.topk_group < gate.num_group:
            self.note_gap(group_scores.values, gate.topk_group)
        kept = torch.zeros(groups.shape[:2]).scatter(1, group_scores.indices[:, :gate.topk_group], 1).bool()
        self.note_gap(groups.masked_fill(~kept[..., None], -9).flatten(1).sort(descending=True).values, gate.top_k)
        self.low = min(self.low, biased.min().item())
        self.loads[name] = self.loads.get(name, 0) + chosen.flatten().bincount(minlength=gate.num_experts)

    def note_gap(self, sorted_scores, k):
        self.gap = min(self.gap, (sorted_scores[:, k - 1] - sorted_scores[:, k]).min().item())


def wanted_gradient(name, config):
    """The gradients kept: embedding, head, final norm and the last layer, there of few experts only."""
    if name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
        return True
    prefix = f"model.layers.{config.num_hidden_layers - 1}."
    if not name.startswith(prefix):
        return False
    expert = name.removeprefix(prefix + "mlp.experts.")
    return expert == name or int(expert.split(".")[0]) < KEPT_EXPERTS


def open_model(folder, dtype):
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True, attn_implementation="eager",
                                                       experts_implementation="eager")
    wrong = {k: v for k, v in info.items() if v}
    assert not wrong, f"{folder}: transformers does not read the checkpoint as written: {wrong}"
    return model.eval()


def reference(folder, config, generator):
    """The tensors of reference.safetensors and the margins, computed from the checkpoint in `folder`."""
    ids = torch.randint(2, config.vocab_size, (SEQUENCES, LENGTH), generator=generator)
    model = open_model(folder, torch.float32)
    watch = GateWatch(model)
    logits = model(ids, use_cache=False).logits
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    loss.backward()
    grads = split_experts({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    min_load = min((int(load[:KEPT_EXPERTS].min()) for load in watch.loads.values()), default=1)

    greedy_gap, text = math.inf, ids
    with torch.no_grad():  # whole text again for each token: no cache between the weights and the answer
        for _ in range(NEW_TOKENS):
            top = model(text, use_cache=False).logits[:, -1].topk(2)
            greedy_gap = min(greedy_gap, (top.values[:, 0] - top.values[:, 1]).min().item())
            text = torch.cat([text, top.indices[:, :1]], 1)
        low_precision = open_model(folder, torch.bfloat16)(ids, use_cache=False).logits.float()
    greedy = text[:, LENGTH:]
    bf16_error = ((low_precision - logits).norm() / logits.norm()).item()

    out = {"input_ids": ids, "logits": logits.detach(), "loss": loss.detach().view(1), "greedy": greedy}
    out |= {f"grad.{n}": g for n, g in grads.items() if wanted_gradient(n, config)}
    return ({n: t.contiguous() for n, t in out.items()},
            Margins(greedy_gap, watch.gap, min_load, watch.low, bf16_error, greedy))


def make(name, settings, folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
    with tempfile.TemporaryDirectory() as plain:  # what transformers reads: the numbers, not their codes
        plain = Path(plain)
        (plain / "config.json").write_text(json.dumps({k: v for k, v in settings.items() if k != "quantization_config"}))
        config = AutoConfig.from_pretrained(plain)
        for seed in itertools.count():
            generator = torch.Generator().manual_seed(seed)
            weights = random_weights(config, generator)
            stored, values = quantised(weights) if "quantization_config" in settings else (weights, weights)
            save_file(values, plain / "model.safetensors", {"format": "pt"})
            tensors, margins = reference(plain, config, generator)
            if margins.ok and (margins.ok_in_bf16 or name in LARGE):
                break
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    save_file(tensors, folder / "reference.safetensors")

    ids = tensors["input_ids"].tolist()
    logprobs = next_token_logprobs(tensors["logits"], tensors["input_ids"])
    (folder / "token_ids.json").write_text(json.dumps(ids))
    (folder / "expected.json").write_text(json.dumps({
        "token_ids": ids, "logprobs": [[round(x, 7) for x in row] for row in logprobs.tolist()], "loss": tensors["loss"].item(),
        "greedy": tensors["greedy"].tolist()}))
    size = sum(f.stat().st_size for f in folder.iterdir())
    print(f"{name}: seed {seed}, {size / 1e3:.0f} kB, loss {tensors['loss'].item():.4f}, {margins}", flush=True)


def next_token_logprobs(logits, ids):
    """`[B, S−1]` natural log of the probability of each next token."""
    return logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze(2)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "parity")
    parser.add_argument("cases", nargs="*", metavar="CASE", default=list(CONFIGS), choices=[*CONFIGS, *LARGE])
    args = parser.parse_args()
    torch.set_num_threads(1)  # one order of sums
    torch.use_deterministic_algorithms(True)
    transformers.logging.disable_progress_bar()
    for name in args.cases:
        make(name, (CONFIGS | LARGE)[name], args.out / name)


if __name__ == "__main__":
    main()
