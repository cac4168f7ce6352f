//! Tells the crate whether `builtin/` holds a model to embed.

use std::path::Path;

/// Without any one of them there is no built-in model.
const FILES: [&str; 5] =
    ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json"];

fn main() {
    println!("cargo::rerun-if-changed=builtin");
    println!("cargo::rustc-check-cfg=cfg(builtin_model)");
    let folder = Path::new(&std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("builtin");
    if FILES.iter().all(|name| folder.join(name).is_file()) {
        println!("cargo::rustc-cfg=builtin_model");
    }
}
