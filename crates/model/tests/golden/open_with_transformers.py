"""Opens a model folder that jevons wrote: python open_with_transformers.py FOLDER

Fails unless `transformers` finds every weight and no other, keeps their bits, and computes finite logits.
"""
import pathlib
import sys
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM

folder = pathlib.Path(sys.argv[1])
model, info = AutoModelForCausalLM.from_pretrained(
    folder, dtype="auto", output_loading_info=True, experts_implementation="eager")  # The fast one wants sizes of 16 bytes.
for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
    assert not info.get(kind), (kind, info[kind])
dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
stored = safe_open(folder / "model.safetensors", "pt")
assert stored.metadata() == {"format": "pt"}
total = sum(stored.get_tensor(name).numel() for name in stored.keys())
state = model.state_dict()
compared = 0
for name in stored.keys():
    if name in state:  # `transformers` keeps the routed experts of a layer in one tensor.
        assert torch.equal(state[name], stored.get_tensor(name)), name
        assert state[name].dtype == stored.get_tensor(name).dtype, name
        compared += 1
    elif ".mlp.experts." in name:
        layer, expert, part = name.split(".")[2], int(name.split(".")[5]), name.split(".")[6]
        fused = state[f"model.layers.{layer}.mlp.experts." + ("down_proj" if part == "down_proj" else "gate_up_proj")][expert]
        rows = {"down_proj": slice(None), "gate_proj": slice(0, len(fused) // 2), "up_proj": slice(len(fused) // 2, None)}[part]
        assert torch.equal(fused[rows], stored.get_tensor(name)), name
        compared += 1
    else:
        raise SystemExit(f"{name} is not in the model")
assert compared == len(stored.keys())
logits = model(torch.tensor([[1, 2, 3, 4]])).logits
assert logits.isfinite().all()
AutoConfig.from_pretrained(folder)
print(f"opened {total} parameters as {dtype}, transformers computes {tuple(logits.shape)} logits")
