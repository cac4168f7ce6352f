"""Writes rope.json: what `transformers` makes of the rope keys. Run in this folder: python rope.py > rope.json"""
import json
import torch
from transformers.models.deepseek_v3.configuration_deepseek_v3 import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention, DeepseekV3RotaryEmbedding
from transformers.models.qwen2.configuration_qwen2 import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention, Qwen2RotaryEmbedding

yarn = dict(type="yarn", factor=40, original_max_position_embeddings=4096, beta_fast=32, beta_slow=1, mscale=1.0, mscale_all_dim=1.0)
new = lambda **k: {key: v for key, v in {**yarn, "rope_type": "yarn", **k}.items() if key != "type" and v is not None}
v3 = dict(model_type="deepseek_v3", qk_nope_head_dim=128, qk_rope_head_dim=64, max_position_embeddings=163840)
qwen = dict(model_type="qwen2", hidden_size=1536, num_attention_heads=12, max_position_embeddings=131072)
cases = {
    "plain": {**v3, "rope_theta": 10000, "rope_scaling": None},
    "plain, new style": {**v3, "rope_parameters": {"rope_type": "default", "rope_theta": 50000.0}},
    "no rope keys": v3,
    "DeepSeek-V3": {**v3, "rope_theta": 10000, "rope_scaling": yarn},
    "DeepSeek-V3, new style": {**v3, "rope_parameters": new(rope_theta=10000.0)},
    "new style, theta beside": {**v3, "rope_theta": 50000.0, "rope_parameters": new()},
    "Kimi-K2": {**v3, "max_position_embeddings": 131072, "rope_theta": 50000.0, "rope_scaling": {**yarn, "factor": 32.0, "beta_fast": 1.0}},
    "unequal mscale": {**v3, "rope_theta": 10000, "rope_scaling": {**yarn, "mscale": 0.707, "mscale_all_dim": 1.5}},
    "mscale alone": {**v3, "rope_parameters": new(rope_theta=10000.0, mscale_all_dim=None, mscale=0.707)},
    "mscale_all_dim alone": {**v3, "rope_parameters": new(rope_theta=10000.0, mscale=None, mscale_all_dim=0.707)},
    "attention_factor": {**v3, "rope_parameters": new(rope_theta=10000.0, attention_factor=0.5)},
    "not truncated": {**v3, "rope_parameters": new(rope_theta=10000.0, truncate=False)},
    "no betas": {**v3, "rope_parameters": new(rope_theta=10000.0, beta_fast=None, beta_slow=None)},
    "no original length": {**v3, "rope_parameters": new(rope_theta=10000.0, original_max_position_embeddings=None)},
    "short": {**v3, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "max_position_embeddings": 2560,
              "rope_theta": 10000.0, "rope_scaling": {**yarn, "original_max_position_embeddings": 64}},
    "ramp beyond the dimensions": {**v3, "rope_theta": 10.0, "rope_scaling": {**yarn, "factor": 4.0}},
    "ramp of no width": {**v3, "rope_theta": 1e9, "rope_scaling": {**yarn, "original_max_position_embeddings": 4, "factor": 4.0}},
    "R1-Distill-Qwen-1.5B": {**qwen, "rope_theta": 10000},
    "Qwen2 with YaRN": {**qwen, "rope_theta": 1000000.0, "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}},
}
out = {}
for name, keys in cases.items():
    config_class, rotary, attention = (
        (DeepseekV3Config, DeepseekV3RotaryEmbedding, DeepseekV3Attention) if keys["model_type"] == "deepseek_v3"
        else (Qwen2Config, Qwen2RotaryEmbedding, Qwen2Attention))
    config = config_class.from_dict(json.loads(json.dumps(keys)))
    rope = rotary(config)
    with torch.device("meta"):
        scale = attention(config, 0).scaling
    out[name] = {"keys": keys, "inv_freq": rope.inv_freq.tolist(), "attention_factor": rope.attention_scaling, "softmax_scale": scale}
print(json.dumps(out, indent=1))
