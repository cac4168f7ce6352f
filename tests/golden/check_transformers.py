#!/usr/bin/env python3
"""Open a checkpoint that jevons wrote with transformers, in float32, and score token sequences with it.

  check_transformers.py MODEL_DIR TOKEN_IDS.json OUT.json [--against SCORE.json]

TOKEN_IDS.json is a list of lists of ids, as for `jevons score MODEL_DIR --token-ids TOKEN_IDS.json --json`; OUT.json gets
the same fields as that command prints, `loss` and `sequences[].logprobs`, so that the two can be compared, plus the keys that
transformers missed, did not expect or read at another shape. Ends with an error if there is any such key or if the tokenizer, where there is
one, does not fit the vocabulary. With `--against` (the output of `jevons score`) also if a log-probability differs by more
than `--tolerance`.
"""
import argparse
import json
import sys
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer


def logprobs(model, ids):
    """Natural log of the probability of each next token of one sequence."""
    ids = torch.tensor([ids])
    with torch.inference_mode():
        logits = model(ids, use_cache=False).logits
    return logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None]).squeeze(1).tolist()


def tokenizer_errors(folder, config):
    """None if the folder has no tokenizer, else what is wrong with it (hopefully the empty list)."""
    if not (folder / "tokenizer.json").exists():
        return None
    tokenizer = AutoTokenizer.from_pretrained(folder)
    errors = []
    if len(tokenizer) > config.vocab_size:
        errors.append(f"tokenizer has {len(tokenizer)} tokens, the model {config.vocab_size}")
    text = "Grüße, 12 + 34 = 46.\n\tfin"
    back = tokenizer.decode(tokenizer.encode(text, add_special_tokens=False), clean_up_tokenization_spaces=False)
    if back != text:
        errors.append(f"{text!r} comes back as {back!r}")
    return errors


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("token_ids", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--against", type=Path, help="output of `jevons score --json` on the same tokens")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="largest difference of a log-probability (default 1e-4)")
    args = parser.parse_args()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)

    config = AutoConfig.from_pretrained(args.model)
    model, loading = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32, output_loading_info=True)
    if hasattr(config, "n_routed_experts"):
        model.set_experts_implementation("eager")  # the grouped product refuses sizes whose rows are not multiples of 16 bytes
    sequences = [{"logprobs": logprobs(model.eval(), ids)} for ids in json.loads(args.token_ids.read_text())]
    flat = [x for s in sequences for x in s["logprobs"]]
    report = {
        "loss": -sum(flat) / len(flat), "sequences": sequences, "architecture": type(model).__name__,
        "keys": {kind: sorted(map(str, keys)) for kind, keys in loading.items()},
        "tokenizer": tokenizer_errors(args.model, config),
        "torch": torch.__version__, "transformers": transformers.__version__}
    # transformers has no multi-token prediction: it does not use the layer after the last, and of DeepSeek-V3's it does not speak.
    mtp = f"model.layers.{config.num_hidden_layers}." if getattr(config, "num_nextn_predict_layers", 0) else None
    problems = [f"{kind}: {keys}" for kind, all_keys in report["keys"].items()
                if (keys := [k for k in all_keys if kind != "unexpected_keys" or not mtp or not k.startswith(mtp)])]
    problems += [f"tokenizer: {e}" for e in report["tokenizer"] or []]

    if args.against:
        other = [s["logprobs"] for s in json.loads(args.against.read_text())["sequences"]]
        if [len(row) for row in other] != [len(s["logprobs"]) for s in sequences]:
            problems.append("--against: other sequences or other lengths")
        else:
            worst = max(abs(a - b) for a, b in zip(flat, (x for row in other for x in row)))
            report["worst_difference"] = worst
            if not worst <= args.tolerance:  # catches NaN too
                problems.append(f"--against: log-probabilities differ by {worst:.3g}, allowed {args.tolerance:g}")

    args.out.write_text(json.dumps(report))
    summary = {k: v for k, v in report.items() if k not in ("sequences", "keys")}
    print(json.dumps(summary))
    if problems:
        sys.exit("\n".join(f"{args.model}: {p}" for p in problems))


if __name__ == "__main__":
    main()
