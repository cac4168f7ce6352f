//! `metrics.jsonl`: a line of JSON for each step and for each held-out loss, whole on disk as soon as it is written.
//!
//! A killed run may leave half a line at the end: reading passes over it, and resuming removes it, together with the steps that
//! the run will take again.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// What a step gave.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// From 0.
    pub step: u64,
    /// Mean of `−ln p` of the step's targets, nats per token.
    #[serde(deserialize_with = "null_is_nan")]
    pub loss: f64,
    /// Mean of `−ln p` of multi-token prediction, nats per token, where the model has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtp_loss: Option<f64>,
    /// Sequence-wise balance loss, all layers, weighted.
    #[serde(deserialize_with = "null_is_nan")]
    pub balance_loss: f64,
    /// Norm of the gradient before clipping.
    #[serde(deserialize_with = "null_is_nan")]
    pub grad_norm: f64,
    /// Learning rate.
    #[serde(deserialize_with = "null_is_nan")]
    pub lr: f64,
    /// Tokens seen since the beginning of the run.
    pub tokens: u64,
    /// Speed of this step.
    #[serde(deserialize_with = "null_is_nan")]
    pub tokens_per_s: f64,
    /// Tokens of each expert in this step, `(layer, [E])`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub loads: Vec<(usize, Vec<usize>)>,
}

/// Loss on the held-out data.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeldoutMetrics {
    /// Steps taken before it: 0 is the model that the run began with.
    pub step: u64,
    /// Mean of `−ln p` of the targets, nats per token.
    #[serde(deserialize_with = "null_is_nan")]
    pub heldout_loss: f64,
    /// The same in bits per byte of text, if bytes are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heldout_bits_per_byte: Option<f64>,
}

/// A line of `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Line {
    /// Of a held-out loss.
    Heldout(HeldoutMetrics),
    /// Of a step.
    Step(StepMetrics),
}

impl Line {
    /// Whether a run that goes on after `steps` steps, at least one, keeps the line.
    fn is_before(&self, steps: u64) -> bool {
        match self {
            Self::Step(s) => s.step < steps,
            Self::Heldout(h) => h.step <= steps,
        }
    }
}

/// What is wrong with a metrics file.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// Cannot be read.
    #[error("{path}: cannot read the metrics")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Cannot be written.
    #[error("{path}: cannot write the metrics; is the disk full?")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A line before the last is none of ours.
    #[error("{path}:{line}: not a line of metrics: {message}; repair or remove the line")]
    Line {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What was found and expected.
        message: String,
    },
}

/// Reads all lines. An incomplete last one is passed over; a missing file has none.
///
/// # Errors
/// [`MetricsError::Read`], or [`MetricsError::Line`] for a line before the last.
pub fn read(path: impl AsRef<Path>) -> Result<Vec<Line>, MetricsError> {
    let path = path.as_ref();
    parse(path, &bytes(path)?)?.into_iter().map(|(line, _)| Ok(line)).collect()
}

fn bytes(path: &Path) -> Result<Vec<u8>, MetricsError> {
    match std::fs::read(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        result => result.map_err(|source| MetricsError::Read { path: path.into(), source }),
    }
}

/// Each whole line and its text.
fn parse<'a>(path: &Path, bytes: &'a [u8]) -> Result<Vec<(Line, &'a [u8])>, MetricsError> {
    let mut lines = Vec::new();
    for (i, text) in bytes.split_inclusive(|b| *b == b'\n').enumerate() {
        // What does not end with a line break was cut off while it was written, even if it parses.
        let Some(json) = text.strip_suffix(b"\n") else { break };
        let line = serde_json::from_slice(json).map_err(|e| MetricsError::Line {
            path: path.into(),
            line: i + 1,
            message: e.to_string(),
        })?;
        lines.push((line, text));
    }
    Ok(lines)
}

/// JSON has no NaN: it is written as null.
fn null_is_nan<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// `metrics.jsonl`, open at its end.
#[derive(Debug)]
pub struct MetricsFile {
    path: PathBuf,
    file: File,
}

impl MetricsFile {
    /// Opens the file of a run that goes on after `steps` steps: lines of later steps, of which the run knows nothing any more,
    /// are removed; the file is replaced whole. For a new run, `steps` is 0 and nothing is kept.
    ///
    /// # Errors
    /// [`MetricsError`]; the file is then as it was.
    pub fn open(path: impl Into<PathBuf>, steps: u64) -> Result<Self, MetricsError> {
        let path = path.into();
        let write = |source| MetricsError::Write { path: path.clone(), source };
        let old = bytes(&path)?;
        // The text itself is kept: numbers that are read and written again could change.
        let kept: Vec<&[u8]> = match steps {
            0 => Vec::new(),
            _ => parse(&path, &old)?
                .into_iter()
                .filter(|(line, _)| line.is_before(steps))
                .map(|(_, text)| text)
                .collect(),
        };
        jevons_sys::atomic::write(&path, &kept.concat()).map_err(write)?;
        let file = OpenOptions::new().append(true).open(&path).map_err(write)?;
        Ok(Self { path, file })
    }

    /// Adds the line of a step.
    ///
    /// # Errors
    /// [`MetricsError::Write`]
    pub fn step(&mut self, step: &StepMetrics) -> Result<(), MetricsError> {
        self.line(step)
    }

    /// Adds the line of a held-out loss, taken after `step` steps.
    ///
    /// # Errors
    /// [`MetricsError::Write`]
    pub fn heldout(&mut self, step: u64, loss: f64, bits_per_byte: Option<f64>) -> Result<(), MetricsError> {
        self.line(&HeldoutMetrics { step, heldout_loss: loss, heldout_bits_per_byte: bits_per_byte })
    }

    fn line(&mut self, line: &impl Serialize) -> Result<(), MetricsError> {
        // One write of the whole line, unbuffered: another process sees it at once, and whole.
        let text = to_json(line) + "\n";
        self.file.write_all(text.as_bytes()).map_err(|source| MetricsError::Write { path: self.path.clone(), source })
    }
}

fn to_json(line: &impl Serialize) -> String {
    serde_json::to_string(line).expect("numbers and lists can be written as JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(step: u64) -> StepMetrics {
        StepMetrics { step, loss: 0.1 + step as f64, lr: 1e-3, loads: vec![(1, vec![3, 4])], ..StepMetrics::default() }
    }

    fn heldout(step: u64) -> HeldoutMetrics {
        HeldoutMetrics { step, heldout_loss: 1.5, heldout_bits_per_byte: Some(0.75) }
    }

    fn write(path: &Path) -> Vec<Line> {
        let mut file = MetricsFile::open(path, 0).unwrap();
        let mut all = Vec::new();
        for i in 0..6 {
            if i % 2 == 0 {
                file.heldout(i, 1.5, Some(0.75)).unwrap();
                all.push(Line::Heldout(heldout(i)));
            }
            file.step(&step(i)).unwrap();
            all.push(Line::Step(step(i)));
        }
        all
    }

    #[test]
    fn what_is_written_is_read_back_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        assert_eq!(read(&path).unwrap(), []);
        let mut file = MetricsFile::open(&path, 0).unwrap();
        file.step(&step(0)).unwrap();
        assert_eq!(read(&path).unwrap(), [Line::Step(step(0))], "while the file is open");
        drop(file);
        let all = write(&path);
        assert_eq!(read(&path).unwrap(), all, "a new run keeps nothing of the old one");
    }

    #[test]
    fn a_resumed_run_keeps_what_came_before_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let all = write(&path);
        drop(MetricsFile::open(&path, 4).unwrap());
        // Held-out 0, steps 0 and 1, held-out 2, steps 2 and 3, held-out 4.
        assert_eq!(read(&path).unwrap(), all[..7]);
        assert!(all[6] == Line::Heldout(heldout(4)) && all[7] == Line::Step(step(4)));
    }

    #[test]
    fn half_a_line_at_the_end_is_passed_over_and_removed_on_resume() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let all = write(&path);
        let whole = std::fs::read(&path).unwrap();
        for cut in 1..to_json(&all[8]).len() {
            std::fs::write(&path, &whole[..whole.len() - cut]).unwrap();
            assert_eq!(read(&path).unwrap(), all[..8], "cut {cut}");
        }
        let mut file = MetricsFile::open(&path, 5).unwrap();
        file.step(&step(5)).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), whole);
    }

    #[test]
    fn a_spoilt_line_in_the_middle_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        std::fs::write(&path, "{\"step\":0,\"heldout_loss\":1.0}\nhello\n{}\n").unwrap();
        let message = read(&path).unwrap_err().to_string();
        assert!(message.contains("metrics.jsonl:2: not a line of metrics"), "{message}");
        let before = std::fs::read(&path).unwrap();
        assert!(MetricsFile::open(&path, 1).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), before);
    }
}
