#!/usr/bin/env python3
"""Make the LoRA cases under adapters/ with peft on top of two cases of parity/.

  make_adapters.py [--out FOLDER]

Each case is a folder as peft saves it (`adapter_config.json`, `adapter_model.safetensors`) and a `reference.safetensors`: `input_ids` [2, S] of
the base case, `logits` f32 with the adapter beside the weights, `merged` f32 with the adapter merged into them.
"""
import argparse
import json
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

HERE = Path(__file__).resolve().parent
CASES = {
    # Several kinds of linear, ranks and scales of their own for some.
    "qwen2-patterns": ("qwen2-tied-odd", dict(
        r=3, lora_alpha=8, target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"],
        rank_pattern={"down_proj": 5, r"layers\.1\.self_attn\.q_proj": 2}, alpha_pattern={"down_proj": 3})),
    # Rank-stabilised scale; latent attention. (peft turns targets inside experts into parameters of the fused in-memory experts.)
    "v3-rslora": ("v3-no-q-lora-tied", dict(
        r=4, lora_alpha=6, use_rslora=True, target_modules=["q_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"])),
}


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--out", type=Path, default=HERE / "adapters")
    out = args.parse_args().out
    for name, (base, settings) in CASES.items():
        folder = HERE / "parity" / base
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        torch.manual_seed(7)
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, bias="none", **settings)).eval()
        with torch.no_grad():
            for parameter, value in model.named_parameters():
                if "lora_" in parameter:
                    value.copy_((0.2 * torch.randn(value.shape)).bfloat16())
            ids = load_file(folder / "reference.safetensors")["input_ids"]
            logits = model(ids).logits
            model.save_pretrained(out / name, safe_serialization=True)
            merged = model.merge_and_unload()(ids).logits
        (out / name / "README.md").unlink(missing_ok=True)
        path = out / name / "adapter_config.json"
        config = json.loads(path.read_text())
        config["base_model_name_or_path"] = base  # a path of this machine otherwise
        path.write_text(json.dumps(config, indent=2) + "\n")
        save_file({"input_ids": ids, "logits": logits.contiguous(), "merged": merged.contiguous()}, out / name / "reference.safetensors")
        print(name, "merged against beside", ((merged - logits).norm() / logits.norm()).item())


if __name__ == "__main__":
    main()
