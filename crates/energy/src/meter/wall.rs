//! A meter between the machine and the wall, by whatever makes its reading available: a file that something keeps up to date, or a
//! command that prints it.
//!
//! The reading is a number with its unit: `41.5 W`, `0.3 kW`, `1234 J`, `5.2 kWh`. A number of watts is a sample of power, to be
//! integrated; joules or watt-hours are a counter. Of several lines the last one counts. A number without a unit is refused: a
//! factor of a thousand is too easily lost.

use std::{
    io::Read,
    path::PathBuf,
    process::{Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant, SystemTime},
};

use super::{
    counter::{Counter, Integrator, Step},
    files,
};

/// A file not written for longer than this has no reading, in seconds.
const STALE_S: u64 = 30;
/// Samples of power further apart are no curve, in seconds.
const MAX_GAP_S: f64 = 30.0;
/// A command must answer within this time.
const PATIENCE: Duration = Duration::from_secs(5);
/// From one answer of a command to its next run.
const EVERY: Duration = Duration::from_secs(1);
/// More power than any wall socket gives, in watts.
const MAX_W: f64 = 1e6;
/// Longest reading, in bytes.
const LIMIT: u64 = 64 << 10;

/// Where readings come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wall {
    /// The last line of a file.
    File(PathBuf),
    /// The last line that a shell command prints.
    Command(String),
}

/// A number with a unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reading {
    /// Power, in watts.
    Watts(f64),
    /// A counter of energy, in joules.
    Joules(f64),
}

impl Wall {
    /// For people.
    pub fn name(&self) -> String {
        match self {
            Self::File(path) => format!("wall meter, {}", path.display()),
            Self::Command(command) => format!("wall meter, `{command}`"),
        }
    }

    /// The reading now.
    ///
    /// # Errors
    /// If there is none, or it is not a number with a unit.
    pub fn read(&self) -> Result<Reading, String> {
        match self {
            Self::File(path) => {
                let text = files::text(path, LIMIT).map_err(|e| format!("{}: {e}", path.display()))?;
                let age = std::fs::metadata(path).and_then(|m| m.modified()).ok();
                let age = age.and_then(|written| SystemTime::now().duration_since(written).ok());
                match age {
                    Some(age) if age.as_secs() > STALE_S => Err(format!(
                        "{}: last written {} s ago; is what writes it still running?",
                        path.display(),
                        age.as_secs()
                    )),
                    _ => parse(&text).map_err(|e| format!("{}: {e}", path.display())),
                }
            }
            Self::Command(command) => {
                let text = output(command).map_err(|e| format!("`{command}`: {e}"))?;
                parse(&text).map_err(|e| format!("`{command}`: {e}"))
            }
        }
    }

    /// A sensor of the whole machine. A command is run about once a second in a thread of its own, so that a slow meter
    /// delays nobody; between its answers there is no reading.
    pub fn sensor(self) -> impl FnMut(f64) -> Step + Send + 'static {
        // A counter of energy in millijoules: a `u64` holds five terawatt-hours of them.
        let (mut power, mut energy) = (Integrator::new(MAX_GAP_S), Counter::new(1e-3, None, MAX_W, 1.0));
        let mut counts = false;
        let mut read = self.reader();
        move |now_s| match read() {
            Ok(Reading::Joules(joules)) => {
                counts = true;
                energy.read(now_s, Ok((joules * 1e3) as u64))
            }
            Ok(Reading::Watts(watts)) => power.read(now_s, Ok(watts)),
            Err(why) if counts => energy.read(now_s, Err(why)),
            Err(why) => power.read(now_s, Err(why)),
        }
    }

    fn reader(self) -> Box<dyn FnMut() -> Result<Reading, String> + Send> {
        if let Self::File(_) = self {
            return Box::new(move || self.read());
        }
        let (sender, answers) = mpsc::sync_channel(1);
        std::thread::spawn(move || {
            while sender.send(self.read()).is_ok() {
                std::thread::sleep(EVERY);
            }
        });
        Box::new(move || answers.try_recv().unwrap_or_else(|_| Err("the command has not answered yet".into())))
    }
}

/// The number and unit at the end of the last line that is not empty; what stands before them (a time, a name) is passed over.
///
/// # Errors
/// What was found, where a number with a unit was expected.
pub fn parse(text: &str) -> Result<Reading, String> {
    let line = text.lines().map(str::trim).rfind(|l| !l.is_empty()).unwrap_or_default();
    let shown: String = line.chars().take(80).collect();
    let error = || {
        format!("expected a number with its unit (W, kW, mW, J, kJ, MJ, Wh or kWh), such as 41.5 W, found {shown:?}")
    };
    let unit_at = line
        .rfind(|c: char| !c.is_ascii_alphabetic())
        .map_or(0, |i| i + line[i..].chars().next().map_or(1, char::len_utf8));
    let (before, unit) = line.split_at(unit_at);
    let number = before.trim_end().rsplit(|c: char| c.is_whitespace() || ",;=:".contains(c)).next().unwrap_or_default();
    let number: f64 = number.parse().map_err(|_| error())?;
    let reading = match unit {
        "W" => Reading::Watts(number),
        "mW" => Reading::Watts(number * 1e-3),
        "kW" => Reading::Watts(number * 1e3),
        "J" => Reading::Joules(number),
        "kJ" => Reading::Joules(number * 1e3),
        "MJ" => Reading::Joules(number * 1e6),
        "Wh" => Reading::Joules(number * 3600.0),
        "kWh" => Reading::Joules(number * 3.6e6),
        _ => return Err(error()),
    };
    let (Reading::Watts(value) | Reading::Joules(value)) = reading;
    if (0.0..1e15).contains(&value) { Ok(reading) } else { Err(error()) }
}

/// What a shell command prints, within limits of time and length.
fn output(command: &str) -> Result<String, String> {
    let shell = if cfg!(windows) { ["cmd", "/C"] } else { ["sh", "-c"] };
    let mut child = Command::new(shell[0])
        .args([shell[1], command])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| format!("cannot be run: {e}"))?;
    let Some(pipe) = child.stdout.take() else { return Err("has no output".into()) };
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = pipe.take(LIMIT).read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    });
    let started = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => break,
            Ok(Some(status)) => return Err(format!("ended with {status}")),
            Ok(None) if started.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(5)),
            Ok(None) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("no answer within {} s", PATIENCE.as_secs()));
            }
            Err(error) => return Err(error.to_string()),
        }
    }
    // A grandchild may hold the pipe open after the command has ended; then there is no reading, and no waiting.
    while !reader.is_finished() {
        if started.elapsed() > PATIENCE {
            return Err(format!("its output did not end within {} s", PATIENCE.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    reader.join().map_err(|_| "cannot be read".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reading_is_a_number_with_its_unit() {
        assert_eq!(parse("41.5 W\n"), Ok(Reading::Watts(41.5)));
        assert_eq!(parse("0.25kW"), Ok(Reading::Watts(250.0)));
        assert_eq!(parse("old 1 W\n2026-11-23T10:00:00, power=7 W\n\n"), Ok(Reading::Watts(7.0)));
        assert_eq!(parse("1.5 kWh"), Ok(Reading::Joules(5.4e6)));
        assert_eq!(parse("12:30:01 3 Wh"), Ok(Reading::Joules(10_800.0)));
    }

    // D8: a missing or wrong unit is a factor of a thousand.
    #[test]
    fn d8_a_number_without_a_unit_is_refused() {
        for bad in ["", "41.5", "W", "x W", "41.5 w", "41.5 kg", "-1 W", "inf W", "NaN J", "1e300 kWh", "41.5 °W", "é"]
        {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert!(parse("41.5").unwrap_err().contains("kWh"));
    }

    #[cfg(unix)]
    #[test]
    fn a_command_is_run_and_its_failure_told() {
        assert_eq!(Wall::Command("echo 3 W".into()).read(), Ok(Reading::Watts(3.0)));
        assert!(Wall::Command("exit 3".into()).read().unwrap_err().contains('3'));
        assert!(Wall::Command("yes".into()).read().is_err()); // endless output ends at the limit
    }

    #[test]
    fn a_file_that_nobody_writes_any_more_has_no_reading() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("watts");
        std::fs::write(&path, "5 W").unwrap();
        assert_eq!(Wall::File(path.clone()).read(), Ok(Reading::Watts(5.0)));
        let old = SystemTime::now() - Duration::from_secs(STALE_S + 5);
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(old).unwrap();
        assert!(Wall::File(path.clone()).read().unwrap_err().contains("last written"));
        assert!(Wall::File(dir.path().join("none")).read().is_err());
    }
}
