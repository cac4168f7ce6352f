//! A reply as it streams in: thinking apart and dimmed, then the answer.

use std::{
    borrow::Cow,
    io::{self, Write},
};

use owo_colors::OwoColorize;

use crate::style::Theme;

/// Which part of a reply was written last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Nothing,
    Thinking,
    Answer,
}

/// Writes one reply.
pub struct Show<'a, W: Write> {
    out: &'a mut W,
    theme: Theme,
    /// Whether thinking is written at all.
    think: bool,
    part: Part,
    /// Whether the part has begun; white space before that is left out.
    begun: bool,
}

impl<'a, W: Write> Show<'a, W> {
    pub fn new(out: &'a mut W, theme: Theme, think: bool) -> Self {
        Self { out, theme, think, part: Part::Nothing, begun: false }
    }

    pub fn thinking(&mut self, text: &str) -> io::Result<()> {
        if !self.think {
            return Ok(());
        }
        let Some(text) = self.enter(Part::Thinking, text)? else { return Ok(()) };
        write!(self.out, "{}", self.printable(text).style(self.theme.dim))?;
        self.out.flush()
    }

    pub fn answer(&mut self, text: &str) -> io::Result<()> {
        let Some(text) = self.enter(Part::Answer, text)? else { return Ok(()) };
        write!(self.out, "{}", self.printable(text))?;
        self.out.flush()
    }

    /// Ends the last line.
    pub fn end(self) -> io::Result<()> {
        if self.part != Part::Nothing {
            writeln!(self.out)?;
        }
        self.out.flush()
    }

    /// Writes the header when a part begins; returns what is left of `text` without white space before the beginning.
    fn enter<'t>(&mut self, part: Part, text: &'t str) -> io::Result<Option<&'t str>> {
        let text = if self.part == part && self.begun { text } else { text.trim_start() };
        if text.is_empty() {
            return Ok(None);
        }
        if self.part != part {
            let gap = if self.part == Part::Nothing { "" } else { "\n\n" };
            write!(self.out, "{gap}")?;
            // Without colours the two parts look alike, so the answer needs a header too.
            if part == Part::Thinking {
                writeln!(self.out, "{}", "[thinking]".style(self.theme.header))?;
            } else if self.part == Part::Thinking && !self.theme.colored {
                writeln!(self.out, "[answer]")?;
            }
            self.part = part;
        }
        self.begun = true;
        Ok(Some(text))
    }

    /// A model may write any character; on a terminal the invisible ones are commands, and are shown instead of obeyed.
    fn printable<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let obeyed = |c: char| c.is_control() && c != '\n' && c != '\t';
        if self.theme.terminal && text.contains(obeyed) { text.replace(obeyed, "\u{FFFD}").into() } else { text.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(theme: Theme, think: bool, pieces: &[(Part, &str)]) -> String {
        let mut out = vec![];
        let mut show = Show::new(&mut out, theme, think);
        for (part, text) in pieces {
            match part {
                Part::Thinking => show.thinking(text).unwrap(),
                _ => show.answer(text).unwrap(),
            }
        }
        show.end().unwrap();
        String::from_utf8(out).unwrap()
    }

    const REPLY: [(Part, &str); 5] = [
        (Part::Thinking, "\n"),
        (Part::Thinking, " one"),
        (Part::Thinking, "\ntwo"),
        (Part::Answer, "\n\n"),
        (Part::Answer, "Three."),
    ];

    #[test]
    fn plain_output_has_headers_and_no_escape_codes() {
        let plain = Theme::plain();
        assert_eq!(shown(plain, true, &REPLY), "[thinking]\none\ntwo\n\n[answer]\nThree.\n");
        assert_eq!(shown(plain, false, &REPLY), "Three.\n");
        assert_eq!(shown(plain, true, &[(Part::Answer, "A.\n\nB.")]), "A.\n\nB.\n");
        assert_eq!(shown(plain, true, &[(Part::Thinking, " "), (Part::Answer, "A.")]), "A.\n");
        assert_eq!(shown(plain, true, &[]), "");
    }

    #[test]
    fn on_a_terminal_thinking_is_dimmed_and_the_answer_is_not() {
        let text = shown(Theme::colored(), true, &REPLY);
        assert!(text.contains("\u{1b}[2mone\u{1b}[0m"), "{text:?}");
        assert!(text.ends_with("\n\nThree.\n"), "{text:?}");
    }

    #[test]
    fn a_model_cannot_send_commands_to_the_terminal() {
        let reply = [(Part::Answer, "a\u{1b}]0;title\u{7}b\u{9b}2Jc\td\r")];
        assert_eq!(shown(Theme::colored(), true, &reply), "a\u{FFFD}]0;title\u{FFFD}b\u{FFFD}2Jc\td\u{FFFD}\n");
        assert_eq!(shown(Theme::plain(), true, &reply), "a\u{1b}]0;title\u{7}b\u{9b}2Jc\td\r\n"); // a file gets every byte
    }
}
