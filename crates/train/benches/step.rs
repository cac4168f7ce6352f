//! `cargo bench -p jevons-train`: a training step of the DeepSeek-V3 miniature (25.7 M parameters, 12.5 M active), batch
//! 8 × 512; prefill of 512 tokens and decode. Medians, on all threads of the pool (`RAYON_NUM_THREADS`).

use std::time::Instant;

use jevons_kernels::Dtype;
use jevons_model::{Config, Extend, Model, ModelError, Precision};
use jevons_train::{
    data::Row,
    optimizer::Optimizer,
    trainer::{StepSettings, Trainer},
};

const CONFIG: &str = r#"{"model_type": "deepseek_v3", "vocab_size": 4096, "hidden_size": 384, "intermediate_size": 1024,
  "moe_intermediate_size": 192, "num_hidden_layers": 6, "num_attention_heads": 6, "num_key_value_heads": 6,
  "n_shared_experts": 1, "n_routed_experts": 16, "num_experts_per_tok": 4, "n_group": 1, "topk_group": 1,
  "first_k_dense_replace": 1, "q_lora_rank": 192, "kv_lora_rank": 128, "qk_rope_head_dim": 32, "qk_nope_head_dim": 32,
  "v_head_dim": 64, "routed_scaling_factor": 2.5, "norm_topk_prob": true, "max_position_embeddings": 2048,
  "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "silu", "scoring_func": "sigmoid", "topk_method": "noaux_tc"}"#;

fn noise(seed: usize, n: usize, size: f32) -> Vec<f32> {
    let mut x = seed as u64 * 0x9E37_79B9_7F4A_7C15 + 1;
    (0..n)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            size * ((x >> 40) as f32 / (1u64 << 23) as f32 - 1.0)
        })
        .collect()
}

fn median(mut x: Vec<f64>) -> f64 {
    x.sort_by(f64::total_cmp);
    x[x.len() / 2]
}

fn main() {
    jevons_sys::keep_freed_memory();
    let config = Config::from_json(CONFIG).expect("the miniature's config");
    let values = |name: &str, n: usize| match name {
        _ if name.contains("norm") => vec![1.0; n],
        _ if name.ends_with("bias") => vec![0.0; n],
        _ => noise(name.bytes().map(usize::from).sum(), n, 0.035),
    };
    let (b, s) = (8, 512);
    let ids = |seed| noise(seed, s + 1, 2048.0).iter().map(|x| (x + 2048.0) as u32 % 4096).collect::<Vec<_>>();
    for precision in [Precision::Bf16, Precision::F32] {
        let model =
            Model::new(config.clone(), precision, |t| Ok::<_, ModelError>(values(&t.name, t.shape.iter().product())))
                .expect("the miniature");
        let prompt = ids(99);
        let prefill = median(
            (0..5)
                .map(|_| {
                    let t = Instant::now();
                    model.extend(&mut [Extend { tokens: &prompt[..s], cache: &mut model.new_cache() }]);
                    t.elapsed().as_secs_f64()
                })
                .collect(),
        );
        let mut cache = model.new_cache();
        model.extend(&mut [Extend { tokens: &prompt[..s], cache: &mut cache }]);
        let decode = median(
            (0..64)
                .map(|i| {
                    let t = Instant::now();
                    model.extend(&mut [Extend { tokens: &prompt[i..=i], cache: &mut cache }]);
                    t.elapsed().as_secs_f64()
                })
                .collect(),
        );
        println!("{precision:?}: prefill 512 {:.0} tokens/s, decode after 512 {:.0}", s as f64 / prefill, 1.0 / decode);
        let masters = model
            .specs()
            .iter()
            .map(|t| (!t.name.ends_with("e_score_correction_bias")).then(|| values(&t.name, t.shape.iter().product())));
        let optimizer = Optimizer::new(masters.collect(), Dtype::F32);
        let settings = StepSettings::new(b);
        let mut trainer = Trainer::new(model, optimizer, settings);
        let step = |trainer: &mut Trainer, i: usize| {
            let rows: Vec<_> = (0..b)
                .map(|r| {
                    let ids = ids(i * b + r + 1);
                    Row { tokens: ids[..s].to_vec(), targets: ids[1..].to_vec(), lengths: vec![s] }
                })
                .collect();
            let t = Instant::now();
            let report = trainer.step(&rows, 3e-4).expect("finite");
            (t.elapsed().as_secs_f64(), report)
        };
        step(&mut trainer, 0);
        let mut saved = 0;
        let times = (1..6)
            .map(|i| {
                let (t, report) = step(&mut trainer, i);
                saved = report.saved_bytes;
                t
            })
            .collect();
        let t = median(times);
        println!(
            "{precision:?}: training step {b} x {s} {t:.3} s, {:.0} tokens/s, {:.0} MiB kept for backward",
            (b * s) as f64 / t,
            saved as f64 / f64::from(1 << 20)
        );
    }
}
