//! The training curve of `tests/golden/parity/training-curve`: 80 AdamW steps of PyTorch in f32 from the same start on the
//! same batches. Router ties part two exact implementations after about 32 steps.

use std::{fs, path::PathBuf};

use jevons_kernels::Dtype;
use jevons_layers::Keep;
use jevons_model::{LoadOptions, Model, Precision};
use jevons_train::{
    data::Row,
    optimizer::Optimizer,
    trainer::{StepSettings, Trainer},
};
use serde_json::Value;

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/parity").join(name)
}

fn batches() -> Vec<Vec<Row>> {
    let bytes = fs::read(golden("training-curve/batches.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let t = file.tensor("tokens").unwrap();
    let (rows, width) = (t.shape()[1], t.shape()[2]);
    let ids: Vec<u32> = t.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32).collect();
    ids.chunks_exact(rows * width)
        .map(|step| {
            step.chunks_exact(width)
                .map(|r| Row { tokens: r[..width - 1].to_vec(), targets: r[1..].to_vec(), lengths: vec![width - 1] })
                .collect()
        })
        .collect()
}

fn trainer(precision: Precision, micro_batch_rows: usize, keep: Keep) -> Trainer {
    let model =
        Model::load(&golden("deepseek-v3"), LoadOptions { precision: Some(precision), ..LoadOptions::default() })
            .unwrap();
    let masters =
        Model::load(&golden("deepseek-v3"), LoadOptions { precision: Some(Precision::F32), ..LoadOptions::default() })
            .unwrap();
    let values = masters.weights().params().iter().zip(masters.specs()).map(|(p, s)| {
        let trained = !s.name.ends_with("e_score_correction_bias");
        trained.then(|| match p {
            jevons_layers::Param::Matrix(m) => m.to_vec_f32(),
            jevons_layers::Param::Vector(v) => v.clone(),
            jevons_layers::Param::LatentUp(_) => unreachable!("this model is expanded"),
        })
    });
    let settings = StepSettings {
        keep,
        mtp_loss_weight: 0.3,
        balance_alpha: 0.0,
        bias_update_speed: 0.01,
        ..StepSettings::new(micro_batch_rows)
    };
    Trainer::new(model, Optimizer::new(values.collect(), Dtype::F32), settings)
}

#[test]
fn the_loss_follows_pytorch_step_by_step() {
    let curve: Value = serde_json::from_slice(&fs::read(golden("training-curve/curve.json")).unwrap()).unwrap();
    let mut trainer = trainer(Precision::F32, 4, Keep::All);
    let mut worst = [0.0f64; 2];
    let mut last = Vec::new();
    for (step, rows) in batches().iter().enumerate() {
        let report = trainer.step(rows, 1e-3).unwrap();
        let want = curve["curve"][step]["loss"].as_f64().unwrap();
        let norm = curve["curve"][step]["grad_norm"].as_f64().unwrap();
        let error = (report.loss - want).abs();
        let bound = if step < 32 { 1e-4 } else { 0.05 };
        assert!(error < bound, "step {step}: {} against {want}", report.loss);
        if step < 8 {
            assert!(
                (report.grad_norm / norm - 1.0).abs() < 1e-3,
                "step {step}: norm {} against {norm}",
                report.grad_norm
            );
        }
        worst[usize::from(step >= 32)] = worst[usize::from(step >= 32)].max(error);
        last = report.loads;
    }
    for (layer, load) in &last {
        let want = &curve["last_load"][format!("model.layers.{layer}.mlp")];
        let moved: f64 =
            load.iter().zip(want.as_array().unwrap()).map(|(a, b)| (*a as f64 - b.as_f64().unwrap()).abs()).sum();
        // 512 choices; measured 12 and 40 of them elsewhere after 80 steps.
        assert!(moved < 100.0, "layer {layer}: {load:?} against {want}");
        println!("layer {layer}: {load:?} against {want}, {moved} moved");
    }
    println!("worst error {:.1e} in steps 0 to 31, {:.1e} after", worst[0], worst[1]);
}

#[test]
fn a_bf16_run_learns_as_the_f32_one_does() {
    let mut trainer = trainer(Precision::Bf16, 2, Keep::ButUp);
    let losses: Vec<f64> = batches().iter().map(|rows| trainer.step(rows, 1e-3).unwrap().loss).collect();
    let mean = losses[70..].iter().sum::<f64>() / 10.0;
    assert!((mean - 2.64).abs() < 0.1, "{mean}"); // PyTorch in f32: 2.65
}
