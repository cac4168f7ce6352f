//! The checks of a recipe that need no other file.

use std::{fmt::Display, ops::RangeBounds};

use super::{Fp8Linears, Fp8Scale, Precision, Recipe, RecipeError, SaveFormat, Source, TokenizerChoice};

/// Checks with the place of the error at hand.
struct Check<'a>(&'a Recipe);

impl Check<'_> {
    fn fail(&self, key: &str, found: impl Display, expected: impl Display) -> RecipeError {
        RecipeError::Invalid {
            path: self.0.origin().into(),
            line: None,
            key: key.into(),
            found: found.to_string(),
            expected: expected.to_string(),
        }
    }

    /// NaN is in no range.
    fn number<T: PartialOrd + Display>(
        &self,
        key: &str,
        value: T,
        range: impl RangeBounds<T>,
        expected: &str,
    ) -> Result<(), RecipeError> {
        if range.contains(&value) { Ok(()) } else { Err(self.fail(key, value, expected)) }
    }

    fn text(&self, key: &str, value: Option<&str>) -> Result<(), RecipeError> {
        match value {
            Some("") => Err(self.fail(key, "empty", "text, or no such key")),
            _ => Ok(()),
        }
    }
}

/// The smallest number above zero, to write "above 0" as a range.
const ABOVE_0: f64 = f64::MIN_POSITIVE;
/// The largest number below one.
const BELOW_1: f64 = 1.0 - f64::EPSILON / 2.0;

impl Recipe {
    /// Checks every value, alone and with the others; reads no file. [`Recipe::load`] has done it already.
    ///
    /// # Errors
    /// [`RecipeError::Invalid`] with the first key that makes no sense.
    pub fn validate(&self) -> Result<(), RecipeError> {
        let check = Check(self);
        if self.name.is_empty()
            || self.name.len() > 100
            || self.name.chars().any(|c| c.is_control() || "/\\".contains(c))
        {
            return Err(check.fail("name", format!("{:?}", self.name), "1 to 100 characters, none of them a slash"));
        }
        if self.run.folder.as_os_str().is_empty() {
            return Err(check.fail("run.folder", "empty", "a folder for the run"));
        }
        if self.fp8.is_some() && self.precision != Precision::Fp8 {
            return Err(check.fail("fp8", "given beside another precision", "precision = \"fp8\""));
        }
        if self.checkpoint.dtype == SaveFormat::Fp8 && self.fp8.is_some_and(|fp8| fp8.linears == Fp8Linears::Auto) {
            return Err(check.fail(
                "checkpoint.dtype",
                "\"fp8\" beside fp8.linears = \"auto\"",
                "checkpoint.dtype = \"bf16\": the linears that the run leaves in bf16 would lose what it never rounded away",
            ));
        }
        self.validate_model(&check)?;
        self.validate_data(&check)?;
        self.validate_step(&check)
    }

    fn validate_model(&self, check: &Check) -> Result<(), RecipeError> {
        let m = &self.model;
        match (&m.init, &m.config) {
            (Some(_), Some(_)) => {
                return Err(check.fail(
                    "model.init",
                    "given beside model.config",
                    "one of them: weights to start from bring their config",
                ));
            }
            (None, None) => return Err(check.fail("model", "without init and config", "one of them")),
            (None, Some(_)) if m.tokenizer.is_none() && self.data.tokens.is_none() => {
                return Err(check.fail(
                    "model",
                    "without tokenizer",
                    "tokenizer = \"tokenizer.json\", or tokenizer.train = { vocab_size = 4096 }",
                ));
            }
            _ => {}
        }
        match &m.tokenizer {
            Some(TokenizerChoice::File(path)) => check.text("model.tokenizer", path.to_str())?,
            Some(TokenizerChoice::Train { train }) => {
                let key = "model.tokenizer.train.vocab_size";
                check.number(
                    key,
                    train.vocab_size,
                    300..=1 << 20,
                    "300 (256 bytes and the special tokens) to 1048576",
                )?;
                check.number(
                    "model.tokenizer.train.sample_bytes",
                    train.sample_bytes,
                    1 << 10..=1 << 40,
                    "1024 or more",
                )?;
                if self.data.tokens.is_some() {
                    return Err(check.fail("model.tokenizer", "to be learnt from data.tokens", "text in data.sources"));
                }
                if m.init.is_some() {
                    return Err(check.fail(
                        "model.tokenizer",
                        "to be learnt anew",
                        "the one that the weights of model.init were trained with",
                    ));
                }
            }
            None => {}
        }
        if let Some(range) = m.initializer_range {
            check.number("model.initializer_range", range, ABOVE_0..=1.0, "a number above 0, at most 1")?;
            if m.init.is_some() {
                return Err(check.fail(
                    "model.initializer_range",
                    "given beside model.init",
                    "model.config: init has weights",
                ));
            }
        }
        if !m.freeze.is_empty() && self.fp8.is_some_and(|fp8| fp8.scale == Fp8Scale::Fp32) {
            return Err(check.fail(
                "model.freeze",
                "given beside fp8.scale = \"fp32\"",
                "fp8.scale = \"ue8m0\": quantised again under other scales, frozen weights would not come back as they were",
            ));
        }
        match m.freeze.iter().position(String::is_empty) {
            Some(i) => {
                Err(check.fail(&format!("model.freeze.{i}"), "empty", "a pattern such as \"model.embed_tokens.*\""))
            }
            None => Ok(()),
        }
    }

    fn validate_data(&self, check: &Check) -> Result<(), RecipeError> {
        let d = &self.data;
        check.number("data.sequence_length", d.sequence_length, 1..=1 << 24, "1 to 16777216 tokens")?;
        match (&d.tokens, d.sources.is_empty()) {
            (Some(_), false) => return Err(check.fail("data.tokens", "given beside data.sources", "one of them")),
            (None, true) => return Err(check.fail("data", "without sources and tokens", "one of them")),
            _ => {}
        }
        check.text("data.tensor", Some(&d.tensor))?;
        if let Some(fraction) = d.heldout_fraction {
            check.number("data.heldout_fraction", fraction, 0.0..=0.5, "0 to 0.5")?;
            if !d.heldout.is_empty() || d.tokens.is_some() {
                let other = if d.tokens.is_some() { "data.tokens" } else { "data.heldout" };
                return Err(check.fail("data.heldout_fraction", format!("given beside {other}"), "one of them"));
            }
        }
        let all = [("data.sources", &d.sources), ("data.heldout", &d.heldout)];
        for (list, sources) in all {
            for (i, source) in sources.iter().enumerate() {
                validate_source(check, &format!("{list}.{i}"), source)?;
            }
        }
        Ok(())
    }

    fn validate_step(&self, check: &Check) -> Result<(), RecipeError> {
        let (b, o, s, e) = (&self.batch, &self.optimizer, &self.schedule, &self.moe);
        check.number("batch.sequences", b.sequences, 1..=1 << 20, "1 to 1048576")?;
        let micro = b.micro_batch_sequences;
        if micro == 0 || b.sequences % micro != 0 {
            let expected = format!("a divisor of batch.sequences, which is {}", b.sequences);
            return Err(check.fail("batch.micro_batch_sequences", micro, expected));
        }
        check.number("optimizer.lr", o.lr, ABOVE_0..=10.0, "a number above 0, at most 10")?;
        for (i, beta) in o.betas.into_iter().enumerate() {
            check.number(&format!("optimizer.betas.{i}"), beta, 0.0..=BELOW_1, "0 or more, below 1")?;
        }
        check.number("optimizer.eps", o.eps, 1e-30..=1e-2, "1e-30 to 1e-2")?;
        check.number("optimizer.weight_decay", o.weight_decay, 0.0..=10.0, "0 to 10")?;
        check.number("optimizer.grad_clip", o.grad_clip, 0.0..=1e9, "0 (no clipping) to 1e9")?;
        if o.moments.is_some_and(|format| !format.decays(o.betas[1])) {
            return Err(check.fail(
                "optimizer.betas.1",
                o.betas[1],
                "at most 0.9921875 with moments = \"bf16\", which could not decay otherwise; or moments = \"f32\"",
            ));
        }
        check.number("schedule.steps", s.steps, 1..=1 << 40, "1 or more")?;
        check.number("schedule.warmup_steps", s.warmup_steps, 0..=s.steps, "at most schedule.steps")?;
        if let Some(fraction) = s.constant_fraction {
            check.number("schedule.constant_fraction", fraction, 0.0..=1.0, "0 to 1")?;
            if s.constant_steps.is_some() {
                return Err(check.fail("schedule.constant_fraction", "given beside constant_steps", "one of them"));
            }
        }
        if let Some(steps) = s.constant_steps {
            let expected = "at most schedule.steps less schedule.warmup_steps";
            check.number("schedule.constant_steps", steps, 0..=s.steps - s.warmup_steps, expected)?;
        }
        check.number("schedule.final_lr_fraction", s.final_lr_fraction, 0.0..=1.0, "0 to 1")?;
        check.number("moe.bias_update_speed", e.bias_update_speed, 0.0..=1.0, "0 to 1")?;
        check.number("moe.sequence_balance_alpha", e.sequence_balance_alpha, 0.0..=1.0, "0 to 1")?;
        check.number("mtp.loss_weight", self.mtp.loss_weight, 0.0..=10.0, "0 to 10")?;
        check.number("evaluation.heldout_sequences", self.evaluation.heldout_sequences, 1..=1 << 30, "1 or more")
    }
}

fn validate_source(check: &Check, at: &str, s: &Source) -> Result<(), RecipeError> {
    let key = |name: &str| format!("{at}.{name}");
    let texts = [
        ("path", &s.path),
        ("separator", &s.separator),
        ("template", &s.template),
        ("prompt", &s.prompt),
        ("completion", &s.completion),
        ("messages", &s.messages),
    ];
    for (name, value) in texts {
        check.text(&key(name), value.as_deref())?;
    }
    check.number(&key("repeat"), s.repeat, 1e-6..=1e4, "0.000001 to 10000")?;
    check.number(&key("document_bytes"), s.document_bytes, 256..=1 << 30, "256 to 1073741824")?;
    match (&s.path, s.generator) {
        (Some(_), Some(_)) => return Err(check.fail(&key("path"), "given beside generator", "one of them")),
        (None, None) => return Err(check.fail(at, "without path and generator", "one of them")),
        (None, Some(_)) => match s.count {
            None => return Err(check.fail(at, "a generator without count", "count = the number of documents")),
            Some(count) => check.number(&key("count"), count, 1..=1 << 32, "1 to 4294967296 documents")?,
        },
        (Some(_), None) => {
            let made = [("count", s.count.is_some()), ("seed", s.seed.is_some())];
            if let Some((name, _)) = made.into_iter().find(|(_, given)| *given) {
                return Err(check.fail(&key(name), "given beside path", "a generator with it, or no such key"));
            }
        }
    }
    let shapes = [&s.template, &s.prompt, &s.messages].into_iter().flatten().count();
    if shapes > 1 || s.prompt.is_some() != s.completion.is_some() {
        let expected = "template, or prompt and completion, or messages, or none of them";
        return Err(check.fail(at, "without one clear shape of a document", expected));
    }
    if let Some(i) = s.remove.iter().position(|marks| marks.iter().any(String::is_empty)) {
        return Err(check.fail(&format!("{at}.remove.{i}"), "an empty mark", "two marks, such as [\"<<\", \">>\"]"));
    }
    Ok(())
}
