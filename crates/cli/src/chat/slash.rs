//! The /commands of a chat: how they are written, read and completed.

use jevons_infer::{GenerateOptions, Sampler, Sampling, SamplingError};

/// Name, argument, and what it does.
const COMMANDS: [(&str, &str, &str); 9] = [
    ("/help", "", "this list"),
    ("/reset", "", "forget the conversation"),
    ("/system", "[TEXT]", "set the system prompt and start over; without TEXT remove it"),
    ("/set", "[NAME VALUE]", "change a setting, e.g. /set temperature 0.7; without NAME show all"),
    ("/think", "on|off", "show or hide the model's thinking"),
    ("/retry", "", "take the last answer back and draw another one"),
    ("/save", "FILE", "write the conversation to a new file: JSON if it ends in .json, else Markdown"),
    ("/stats", "", "tokens, speed and room left in the context"),
    ("/quit", "", "leave (or Ctrl-D)"),
];

/// What `/set` knows.
const SETTINGS: [&str; 6] = ["temperature", "top_k", "top_p", "min_p", "seed", "max_new_tokens"];

/// A line of a chat.
#[derive(Clone, Debug, PartialEq)]
pub enum Line {
    /// For the model.
    Message(String),
    Help,
    Reset,
    System(Option<String>),
    ShowSettings,
    Set(String, String),
    Think(bool),
    Retry,
    Save(String),
    Stats,
    Quit,
}

/// Reads a line. A message that shall begin with a slash is written with two.
///
/// # Errors
/// What is wrong with the command, as text for the user.
pub fn parse(line: &str) -> Result<Line, String> {
    let line = line.trim();
    if !line.starts_with('/') {
        return Ok(Line::Message(line.to_owned()));
    }
    if let Some(message) = line.strip_prefix("//") {
        return Ok(Line::Message(format!("/{message}")));
    }
    let (name, argument) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let argument = argument.trim();
    let Some((_, form, _)) = COMMANDS.iter().find(|(known, ..)| *known == name) else {
        return Err(format!("{name} is not a command; /help lists them, and // begins a message with a slash"));
    };
    let usage = || format!("use it as {name} {form}").trim_end().to_owned();
    match (name, argument) {
        ("/help", "") => Ok(Line::Help),
        ("/reset", "") => Ok(Line::Reset),
        ("/system", "") => Ok(Line::System(None)),
        ("/system", text) => Ok(Line::System(Some(text.to_owned()))),
        ("/set", "") => Ok(Line::ShowSettings),
        ("/set", assignment) => {
            let (key, value) = assignment.split_once([' ', '=']).ok_or_else(usage)?;
            Ok(Line::Set(key.trim().to_owned(), value.trim().to_owned()))
        }
        ("/think", "on") => Ok(Line::Think(true)),
        ("/think", "off") => Ok(Line::Think(false)),
        ("/retry", "") => Ok(Line::Retry),
        ("/save", path) if !path.is_empty() => Ok(Line::Save(path.to_owned())),
        ("/stats", "") => Ok(Line::Stats),
        ("/quit", "") => Ok(Line::Quit),
        _ => Err(usage()),
    }
}

/// Text of `/help`.
pub fn help() -> String {
    let lines = COMMANDS.map(|(name, form, does)| format!("{:<20} {does}\n", format!("{name} {form}")));
    lines.concat()
}

/// Changes one setting.
///
/// # Errors
/// An unknown name or a value it cannot have, as text for the user; nothing is changed then.
pub fn set(options: &mut GenerateOptions, key: &str, value: &str) -> Result<(), String> {
    fn number<T: std::str::FromStr>(key: &str, value: &str) -> Result<T, String> {
        value.parse().map_err(|_| format!("{key} cannot be `{value}`, expected a number"))
    }
    let mut new = options.clone();
    let sampling = &mut new.sampling;
    match key {
        "temperature" => sampling.temperature = number(key, value)?,
        "top_k" => sampling.top_k = number(key, value)?,
        "top_p" => sampling.top_p = number(key, value)?,
        "min_p" => sampling.min_p = number(key, value)?,
        "seed" => sampling.seed = number(key, value)?,
        "max_new_tokens" => new.max_new_tokens = number(key, value)?,
        _ => return Err(format!("{key} is not a setting; there are {}", SETTINGS.join(", "))),
    }
    Sampler::new(new.sampling.clone()).map_err(|e: SamplingError| e.to_string())?;
    *options = new;
    Ok(())
}

/// Text of `/set` alone.
pub fn settings(options: &GenerateOptions) -> String {
    let Sampling { temperature, top_k, top_p, min_p, seed } = options.sampling;
    let max_new_tokens = options.max_new_tokens;
    format!(
        "temperature {temperature}\ntop_k {top_k}\ntop_p {top_p}\nmin_p {min_p}\nseed {seed}\nmax_new_tokens {max_new_tokens}\n"
    )
}

/// Where the word under the cursor starts, and what it may become.
pub fn complete(line: &str) -> (usize, Vec<(&'static str, &'static str)>) {
    let start = line.rfind(' ').map_or(0, |space| space + 1);
    let word = &line[start..];
    let fits = |name: &&'static str| name.starts_with(word);
    let plain = |names: &[&'static str]| names.iter().copied().filter(fits).map(|name| (name, "")).collect();
    match line[..start].trim_end() {
        "" if word.starts_with('/') => {
            (start, COMMANDS.iter().filter(|(name, ..)| fits(name)).map(|(name, _, does)| (*name, *does)).collect())
        }
        "/set" => (start, plain(&SETTINGS)),
        "/think" => (start, plain(&["on", "off"])),
        _ => (start, vec![]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_of_the_help_is_read_and_completed() {
        for (name, form, _) in COMMANDS {
            let argument = form.trim_matches(['[', ']']).replace("on|off", "on");
            let line = parse(&format!("{name} {argument}")).unwrap();
            assert!(!matches!(line, Line::Message(_)), "{name}");
            assert!(complete(&name[..2]).1.iter().any(|(n, _)| *n == name), "{name}");
            assert!(help().contains(name));
        }
    }

    #[test]
    fn lines_are_read_as_written() {
        let message = |text: &str| Ok(Line::Message(text.into()));
        assert_eq!(parse(" 1/2 + 3 \n"), message("1/2 + 3"));
        assert_eq!(parse("two\nlines"), message("two\nlines"));
        assert_eq!(parse("//etc is a folder"), message("/etc is a folder"));
        assert_eq!(parse("/system be brief\nplease"), Ok(Line::System(Some("be brief\nplease".into()))));
        assert_eq!(parse("/system"), Ok(Line::System(None)));
        assert_eq!(parse("/set top_p=0.5"), Ok(Line::Set("top_p".into(), "0.5".into())));
        assert_eq!(parse("/set top_p 0.5"), Ok(Line::Set("top_p".into(), "0.5".into())));
        assert_eq!(parse("/save a b.md"), Ok(Line::Save("a b.md".into())));
    }

    #[test]
    fn a_wrong_command_is_told_how_it_is_used() {
        assert!(parse("/qiut").unwrap_err().contains("/help"));
        assert_eq!(parse("/think maybe"), Err("use it as /think on|off".into()));
        assert_eq!(parse("/save"), Err("use it as /save FILE".into()));
        assert_eq!(parse("/quit now"), Err("use it as /quit".into()));
        assert_eq!(parse("/set seed"), Err("use it as /set [NAME VALUE]".into()));
    }

    #[test]
    fn every_setting_can_be_set_and_a_wrong_value_changes_nothing() {
        let mut options = GenerateOptions::default();
        for key in SETTINGS {
            set(&mut options, key, "1").unwrap();
            assert!(settings(&options).lines().any(|line| line == format!("{key} 1")), "{key}");
        }
        let before = settings(&options);
        for (key, value) in
            [("temperature", "hot"), ("temperature", "-1"), ("top_p", "2"), ("top_k", "1.5"), ("heat", "1")]
        {
            assert!(set(&mut options, key, value).unwrap_err().contains(key));
            assert_eq!(settings(&options), before);
        }
    }

    #[test]
    fn only_the_word_at_the_cursor_is_completed() {
        assert_eq!(complete("/set te"), (5, vec![("temperature", "")]));
        assert_eq!(complete("/think o").1.len(), 2);
        assert_eq!(complete("hello /s").1, []);
        assert_eq!(complete("/save /he").1, []);
    }
}
