//! What commands read besides models.

use std::{
    fs,
    io::{self, IsTerminal, Read},
    path::Path,
};

use anyhow::{Context, bail};

/// A file's text, or with `-` that of stdin.
pub fn text(path: &Path) -> anyhow::Result<String> {
    if path == Path::new("-") {
        return stdin();
    }
    fs::read_to_string(path).with_context(|| format!("{}: cannot read the file", path.display()))
}

/// The text of the file of that name (`-`: stdin), or `argument` itself if there is none.
pub fn file_or_text(argument: &str) -> anyhow::Result<String> {
    let path = Path::new(argument);
    if argument == "-" || path.is_file() { text(path) } else { Ok(argument.to_owned()) }
}

/// All of stdin.
pub fn stdin() -> anyhow::Result<String> {
    let mut text = String::new();
    io::stdin().read_to_string(&mut text).context("cannot read stdin as UTF-8 text")?;
    Ok(text)
}

/// Asks a person; anything but `y` or `yes` is no.
pub fn confirm(question: &str) -> anyhow::Result<bool> {
    eprint!("{question} [y/N] ");
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).context("cannot read the answer")?;
    Ok(matches!(&*answer.trim().to_lowercase(), "y" | "yes"))
}

/// Whether there is somebody to ask: both stdin and stderr are a terminal.
pub fn can_ask() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Token ids from a JSON file: a list of sequences, or one sequence. `-` is stdin.
pub fn token_ids(path: &Path) -> anyhow::Result<Vec<Vec<u32>>> {
    let sequences = parse_token_ids(&text(path)?)
        .with_context(|| format!("{}: expected JSON, a list of token ids or a list of such lists", path.display()))?;
    if sequences.is_empty() {
        bail!("{}: the list is empty", path.display());
    }
    Ok(sequences)
}

/// A list of sequences, or one sequence.
pub fn parse_token_ids(json: &str) -> Result<Vec<Vec<u32>>, serde_json::Error> {
    let inside = json.trim_start().strip_prefix('[').unwrap_or_default().trim_start();
    if inside.starts_with('[') || inside.starts_with(']') {
        serde_json::from_str(json)
    } else {
        Ok(vec![serde_json::from_str(json)?])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_sequence_and_a_list_of_them_are_told_apart() {
        assert_eq!(parse_token_ids(" [1, 2]").unwrap(), [vec![1, 2]]);
        assert_eq!(parse_token_ids("[ [1, 2], [], [3] ]").unwrap(), [vec![1, 2], vec![], vec![3]]);
        assert_eq!(parse_token_ids("[]").unwrap(), Vec::<Vec<u32>>::new());
        for bad in ["", "{}", "[1, [2]]", "[[1], 2]", "[-1]", "[1.5]", "[4294967296]", "[1] 2", "\"1\""] {
            assert!(parse_token_ids(bad).is_err(), "{bad}");
        }
    }
}
