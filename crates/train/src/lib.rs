//! Training: from a recipe and text to a run folder with a model that others open.
//!
//! Reading order: [`recipe`] (what a run is), [`data`] (files → documents → tokens → batches), [`trainer`] (one step),
//! [`optimizer`], [`state`] (what a resumed run needs), then [`run`], which strings them together. Nothing here knows HTTP.
#![forbid(unsafe_code)]

pub mod data;
pub mod memory;
pub mod metrics;
pub mod optimizer;
pub mod plot;
pub mod recipe;
pub mod rng;
pub mod run;
pub mod schedule;
pub mod state;
pub mod trainer;
