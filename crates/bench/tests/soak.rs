//! Training and generation by turns for as long as `JEVONS_SOAK_SECONDS` says (else two rounds): every round must have the bits of the
//! first, whatever the number of threads and the neighbours in a batch, and memory must not grow.

use std::time::{Duration, Instant};

use jevons_kernels::Dtype;
use jevons_layers::ParamId;
use jevons_model::{Config, Extend, MlaForm, Model, Precision};
use jevons_train::{
    data::Row,
    optimizer::Optimizer,
    state,
    trainer::{StepSettings, Trainer},
};

/// Latent attention, groups of experts, a shared one: everything that a DeepSeek-V3 has, small.
const CONFIG: &str = r#"{"model_type": "deepseek_v3", "vocab_size": 512, "hidden_size": 128, "intermediate_size": 256,
  "moe_intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4,
  "n_shared_experts": 1, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1,
  "first_k_dense_replace": 1, "q_lora_rank": 64, "kv_lora_rank": 64, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16,
  "v_head_dim": 32, "routed_scaling_factor": 2.5, "norm_topk_prob": true, "max_position_embeddings": 1024,
  "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "silu", "scoring_func": "sigmoid", "topk_method": "noaux_tc"}"#;
const STEPS: usize = 8;
const ROWS: usize = 4;
const LENGTH: usize = 256;
const NEW: usize = 96;

/// A text that can be learnt: each token follows from the one before, in one of 16 ways.
fn tokens(seed: usize, n: usize) -> Vec<u32> {
    (0..n)
        .scan(seed as u32 % 512, |x, _| Some(std::mem::replace(x, (*x * 5 + 7 + 31 * (seed as u32 % 16)) % 512)))
        .collect()
}

/// What a round computes, to the bit: losses and gradient norms of its steps, then what the trained model writes.
#[derive(Debug, PartialEq)]
struct Seen {
    steps: Vec<(u64, u64)>,
    text: Vec<u32>,
    logits: Vec<u32>,
}

fn round(neighbours: usize) -> Seen {
    let config = Config::from_json(CONFIG).unwrap();
    let model = Model::random(config, Precision::Bf16, Some(MlaForm::Expanded), 7).unwrap();
    let masters = model.specs().iter().enumerate();
    let masters = masters.map(|(i, s)| (!s.is_always_f32()).then(|| state::values(&model, ParamId(i)))).collect();
    let mut trainer = Trainer::new(model, Optimizer::new(masters, Dtype::F32), StepSettings::new(2));
    let steps = (0..STEPS).map(|step| {
        let rows: Vec<_> = (0..ROWS)
            .map(|row| {
                let ids = tokens(step * ROWS + row, LENGTH + 1);
                Row { tokens: ids[..LENGTH].to_vec(), targets: ids[1..].to_vec(), lengths: vec![LENGTH / 2; 2] }
            })
            .collect();
        let report = trainer.step(&rows, 3e-3).unwrap();
        (report.loss.to_bits(), report.grad_norm.to_bits())
    });
    let steps = steps.collect();
    let model = &trainer.model;
    // The first sequence is looked at; the others, of other lengths, are beside it.
    let mut caches: Vec<_> = (0..=neighbours).map(|_| model.new_cache()).collect();
    let mut next: Vec<Vec<u32>> = (0..=neighbours).map(|i| tokens(i, 70 + 13 * i)).collect();
    let (mut text, mut last) = (Vec::new(), Vec::new());
    for _ in 0..NEW {
        let mut batch: Vec<_> = caches.iter_mut().zip(&next).map(|(cache, tokens)| Extend { tokens, cache }).collect();
        let logits = model.extend(&mut batch);
        next =
            logits.iter().map(|l| vec![(0..l.len()).max_by(|a, b| l[*a].total_cmp(&l[*b])).unwrap() as u32]).collect();
        text.push(next[0][0]);
        last.clone_from(&logits[0]);
    }
    Seen { steps, text, logits: last.iter().map(|x| x.to_bits()).collect() }
}

#[test]
fn rounds_of_training_and_generation_repeat_to_the_bit_and_leave_no_memory_behind() {
    let seconds = std::env::var("JEVONS_SOAK_SECONDS").ok().map(|s| s.parse().expect("seconds"));
    let (start, first) = (Instant::now(), round(0));
    let losses: Vec<f64> = first.steps.iter().map(|(loss, _)| f64::from_bits(*loss)).collect();
    assert!(losses.iter().all(|l| l.is_finite()) && losses[STEPS - 1] < losses[0], "it learns nothing: {losses:?}");
    let pools = [1, 2, 3].map(|n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap());
    let (mut rounds, mut early) = (0_usize, None);
    while rounds < 2 || seconds.is_some_and(|s| start.elapsed() < Duration::from_secs(s)) {
        jevons_sys::reset_peak_rss();
        let seen = pools[rounds % 3].install(|| round(rounds % 4));
        assert_eq!(seen, first, "round {rounds} differs from the first");
        rounds += 1;
        let peak = jevons_sys::peak_rss_bytes();
        // All numbers of threads and neighbours have been there once by now.
        if rounds == 24 {
            early = peak;
        }
        if let (Some(early), Some(peak)) = (early, peak) {
            assert!(peak < early + early / 10, "round {rounds}: {peak} bytes at most, {early} in round 24");
        }
        if rounds % 100 == 0 {
            println!("{rounds} rounds, {:.0} s, at most {peak:?} bytes", start.elapsed().as_secs_f64());
        }
    }
    println!(
        "{rounds} rounds with equal bits in {:.0} s; memory {early:?} -> {:?}",
        start.elapsed().as_secs_f64(),
        jevons_sys::peak_rss_bytes()
    );
}
