//! `generation_config.json`: how a model's makers want it to be sampled.

use serde::Deserialize;

use crate::sampler::Sampling;

/// What we read of a `generation_config.json`; other keys are ignored.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct GenerationConfig {
    #[serde(default)]
    eos_token_id: Option<OneOrMany>,
    do_sample: Option<bool>,
    temperature: Option<f32>,
    top_k: Option<usize>,
    top_p: Option<f32>,
    min_p: Option<f32>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

impl GenerationConfig {
    /// # Errors
    /// If `json` is not an object, or one of the keys has another type.
    pub fn from_json(json: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(json)
    }

    /// Tokens that end a text.
    pub fn eos_token_ids(&self) -> Vec<u32> {
        match &self.eos_token_id {
            None => vec![],
            Some(OneOrMany::One(id)) => vec![*id],
            Some(OneOrMany::Many(ids)) => ids.clone(),
        }
    }

    /// Its settings, those of `fallback` where it says nothing. `do_sample: false` is greedy.
    pub fn sampling(&self, fallback: Sampling) -> Sampling {
        if self.do_sample == Some(false) {
            return Sampling { seed: fallback.seed, ..Sampling::default() };
        }
        Sampling {
            temperature: self.temperature.unwrap_or(fallback.temperature),
            top_k: self.top_k.unwrap_or(fallback.top_k),
            top_p: self.top_p.unwrap_or(fallback.top_p),
            min_p: self.min_p.unwrap_or(fallback.min_p),
            seed: fallback.seed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_file_says_goes_before_the_fallback() {
        let fallback = Sampling { temperature: 0.6, top_p: 0.95, seed: 3, ..Sampling::default() };
        let sampling = |json| GenerationConfig::from_json(json).unwrap().sampling(fallback.clone());
        assert_eq!(sampling("{}"), fallback);
        assert_eq!(
            sampling(r#"{"do_sample": false, "temperature": 0.7}"#),
            Sampling { seed: 3, ..Sampling::default() }
        );
        let published = r#"{"bos_token_id": 0, "do_sample": true, "temperature": 0.7, "top_k": 20, "unknown": {}}"#;
        assert_eq!(sampling(published), Sampling { temperature: 0.7, top_k: 20, ..fallback });
    }

    #[test]
    fn end_tokens_are_one_number_a_list_or_missing() {
        let ids = |json| GenerationConfig::from_json(json).map(|c| c.eos_token_ids());
        assert!(ids("{}").unwrap().is_empty());
        assert!(ids(r#"{"eos_token_id": null}"#).unwrap().is_empty());
        assert_eq!(ids(r#"{"eos_token_id": 7}"#).unwrap(), [7]);
        assert_eq!(ids(r#"{"eos_token_id": [7, 8]}"#).unwrap(), [7, 8]);
        assert!(ids(r#"{"eos_token_id": "end"}"#).is_err());
        assert!(ids("[]").is_err());
    }
}
