#!/usr/bin/env bash
# Puts the model of a finished run into the binary's sources and checks it on sums it has never seen.
set -euo pipefail
cd "$(dirname "$0")/../.."
for file in config.json model.safetensors tokenizer.json tokenizer_config.json generation_config.json; do
  cp "examples/builtin/run/model/$file" "crates/cli/builtin/$file"
done
cargo test --release -p jevons-cli --test builtin -- --nocapture
