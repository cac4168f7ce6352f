//! Reports for people: sections of aligned rows, wrapped to the terminal, and remarks with their reasons.

use std::io::{self, Write};

use jevons_model::inspect::{Remark, Severity};
use owo_colors::OwoColorize;

use crate::style::Theme;

/// Columns where the output is not a terminal, and at most.
const WIDTH: usize = 100;
/// Columns below which wrapping would make it worse.
const MIN_WIDTH: usize = 50;
/// Spaces before a row.
const INDENT: usize = 2;

/// Prints a report piece by piece.
pub struct Report<'a, W> {
    out: &'a mut W,
    theme: Theme,
    width: usize,
    /// Of the longest name in the present section.
    names: usize,
}

impl<'a, W: Write> Report<'a, W> {
    /// Colours and width of stdout.
    pub fn new(out: &'a mut W) -> Self {
        let theme = Theme::of(&io::stdout());
        let terminal = if theme.terminal { crossterm::terminal::size().ok() } else { None };
        // Some terminals say that they have no columns at all.
        let columns = terminal.map(|(columns, _)| usize::from(columns)).filter(|n| *n > 0);
        let width = columns.map_or(WIDTH, |n| n.clamp(MIN_WIDTH, WIDTH));
        Self { out, theme, width, names: 0 }
    }

    /// A line as it is.
    pub fn line(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.out, "{}", safe(text))
    }

    /// A heading, then rows of name and text.
    pub fn section(&mut self, title: &str, rows: &[(String, String)]) -> io::Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        writeln!(self.out, "\n{}", title.style(self.theme.header))?;
        let rows: Vec<(String, &String)> = rows.iter().map(|(name, text)| (safe(name), text)).collect();
        self.names = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        for (name, text) in &rows {
            let gap = " ".repeat(self.names - name.chars().count() + 2);
            self.wrapped(&format!("{}{name}{gap}", " ".repeat(INDENT)), text, false)?;
        }
        Ok(())
    }

    /// A heading, then a table: the first column to the left, the others to the right.
    pub fn table(&mut self, title: &str, header: &[&str], rows: &[Vec<String>]) -> io::Result<()> {
        let columns = header.len();
        let width = |i: usize| rows.iter().map(|r| r[i].chars().count()).chain([header[i].chars().count()]).max();
        let widths: Vec<usize> = (0..columns).map(|i| width(i).unwrap_or(0)).collect();
        writeln!(self.out)?;
        for (i, row) in
            std::iter::once(header.iter().map(|h| (*h).to_owned()).collect()).chain(rows.to_vec()).enumerate()
        {
            let row: Vec<String> = row;
            // The title stands where the first column's heading would.
            let first = if i == 0 { title } else { &row[0] };
            let indent = if i == 0 { 0 } else { INDENT };
            let mut line = format!("{}{first}", " ".repeat(indent));
            let gap = (INDENT + widths[0].max(title.chars().count())).saturating_sub(line.chars().count());
            line.push_str(&" ".repeat(gap));
            for (cell, width) in row[1..].iter().zip(&widths[1..]) {
                line.push_str(&format!("  {}{cell}", " ".repeat(width - cell.chars().count())));
            }
            let line = line.trim_end();
            if i == 0 {
                writeln!(self.out, "{}", line.style(self.theme.header))?
            } else {
                writeln!(self.out, "{line}")?
            }
        }
        Ok(())
    }

    /// A heading, then remarks, the most important first, each with its reason below.
    pub fn remarks(&mut self, title: &str, remarks: &[Remark]) -> io::Result<()> {
        if remarks.is_empty() {
            return Ok(());
        }
        writeln!(self.out, "\n{}", title.style(self.theme.header))?;
        let mut sorted: Vec<&Remark> = remarks.iter().collect();
        sorted.sort_by_key(|r| std::cmp::Reverse(r.severity));
        for remark in sorted {
            let (word, style) = match remark.severity {
                Severity::Problem => ("problem: ", self.theme.error),
                Severity::Warning => ("warning: ", self.theme.warning),
                Severity::Note => ("", self.theme.dim),
            };
            let lines = wrap(&format!("{word}{}", remark.what), self.width - INDENT - 2);
            for (i, line) in lines.iter().enumerate() {
                let bullet = if i == 0 { "- " } else { "  " };
                match line.strip_prefix(word).filter(|_| i == 0 && !word.is_empty()) {
                    Some(rest) => writeln!(self.out, "{}{bullet}{}{rest}", " ".repeat(INDENT), word.style(style))?,
                    None => writeln!(self.out, "{}{bullet}{line}", " ".repeat(INDENT))?,
                }
            }
            self.wrapped(&" ".repeat(INDENT + 2), &remark.why, true)?;
        }
        Ok(())
    }

    fn wrapped(&mut self, prefix: &str, text: &str, dim: bool) -> io::Result<()> {
        let indent = prefix.chars().count();
        for (i, line) in wrap(text, self.width.saturating_sub(indent).max(20)).iter().enumerate() {
            let start = if i == 0 { prefix.to_owned() } else { " ".repeat(indent) };
            if dim {
                writeln!(self.out, "{start}{}", line.style(self.theme.dim))?;
            } else {
                writeln!(self.out, "{start}{line}")?;
            }
        }
        Ok(())
    }
}

/// The text with whatever would move the cursor escaped: names and texts come from strangers.
fn safe(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] }).collect()
}

/// Lines of at most `width` columns, broken at spaces; a longer word keeps its line.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let safe = safe(text);
    let mut lines = vec![String::new()];
    for word in safe.split(' ') {
        let line = lines.last_mut().expect("there is a line from the start");
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > width {
            lines.push(word.to_owned());
        } else {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_broken_at_spaces_and_long_words_keep_their_line() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("a/very/long/path is here", 7), ["a/very/long/path", "is here"]);
        assert_eq!(wrap("bell\u{7} and\nline", 40), ["bell\\u{7} and\\nline"]);
        assert_eq!(wrap("", 7), [""]);
    }

    #[test]
    fn rows_and_tables_are_aligned() {
        let mut out = vec![];
        let mut report = Report { out: &mut out, theme: Theme::plain(), width: 100, names: 0 };
        report.section("Sizes", &[("a".into(), "1".into()), ("odd\u{1b}name".into(), "2".into())]).unwrap();
        report.table("Parts", &["", "total"], &[vec!["x".into(), "12".into()], vec!["yy".into(), "3".into()]]).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(
            text,
            "\nSizes\n  a              1\n  odd\\u{1b}name  2\n\nParts    total\n  x         12\n  yy         3\n"
        );
    }
}
