//! Flags that several commands share.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, ValueEnum};
use jevons_infer::Sampling;
use jevons_model::{Adapter, Fp8, LoadOptions, MlaForm, Precision, Quantize, config::ScaleFormat};

/// Of every command that computes.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Computing")]
pub struct ComputeArgs {
    /// Number format of matrix products [default: what is stored]
    #[arg(long, value_enum)]
    precision: Option<PrecisionArg>,
    /// Hold weights in FP8 (E4M3, a scale per 128 x 128 block), one byte each, whatever is stored: the linears, or the output head too
    #[arg(long, value_enum, value_name = "WHAT")]
    quantize: Option<QuantizeArg>,
    /// Form of latent attention: keys and values per head, or one latent vector for all (a far smaller cache) [default: by the size
    /// of the longest context's cache]
    #[arg(long, value_enum)]
    mla: Option<MlaArg>,
    /// Folder of a LoRA adapter (PEFT layout), merged into the weights as they are loaded
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    adapter: Option<PathBuf>,
    /// CPU threads; changes the time taken, never the result [default: all cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum PrecisionArg {
    /// To check against references
    F32,
    /// The usual one
    Bf16,
    /// Both operands of the linears are E4M3 numbers with power-of-two scales, as in training in FP8
    Fp8,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum QuantizeArg {
    /// The linears of attention, feed-forward and experts, as DeepSeek publishes them
    Fp8,
    /// Those and the output head
    Fp8Head,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum MlaArg {
    Expanded,
    Absorbed,
}

impl ComputeArgs {
    /// Starts the threads; to be called once, before anything is computed.
    pub fn start_threads(&self) -> anyhow::Result<()> {
        let Some(threads) = self.threads else { return Ok(()) };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.into());
        pool.build_global().context("cannot start the threads")
    }

    /// The adapter that is asked for.
    pub fn adapter(&self) -> anyhow::Result<Option<Adapter>> {
        Ok(self.adapter.as_ref().map(Adapter::open).transpose()?)
    }

    /// As the model crate names them.
    pub fn load_options<'a>(&self, adapter: Option<&'a Adapter>) -> LoadOptions<'a> {
        LoadOptions {
            precision: self.precision.map(|p| match p {
                PrecisionArg::F32 => Precision::F32,
                PrecisionArg::Bf16 => Precision::Bf16,
                PrecisionArg::Fp8 => Precision::Fp8(Fp8::default()),
            }),
            mla: self.mla.map(|m| match m {
                MlaArg::Expanded => MlaForm::Expanded,
                MlaArg::Absorbed => MlaForm::Absorbed,
            }),
            mtp: false,
            adapter,
            quantize: self
                .quantize
                .map(|q| Quantize { scale: ScaleFormat::F32, head: matches!(q, QuantizeArg::Fp8Head) }),
        }
    }
}

/// How to choose tokens. What is not given comes from the command's defaults.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// 0 takes the most likely token; higher is more varied
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
    /// Draw from the N most likely tokens only; 0: from all
    #[arg(long, value_name = "N")]
    top_k: Option<usize>,
    /// Draw from the smallest set of tokens with this share of the probability
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// Draw from tokens at least this many times as likely as the most likely one
    #[arg(long, value_name = "P")]
    min_p: Option<f32>,
    /// The same seed gives the same text [default: 0]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

impl SamplingArgs {
    /// The settings, `defaults` where a flag is missing.
    pub fn over(&self, defaults: Sampling) -> Sampling {
        Sampling {
            temperature: self.temperature.unwrap_or(defaults.temperature),
            top_k: self.top_k.unwrap_or(defaults.top_k),
            top_p: self.top_p.unwrap_or(defaults.top_p),
            min_p: self.min_p.unwrap_or(defaults.min_p),
            seed: self.seed.unwrap_or(defaults.seed),
        }
    }
}
