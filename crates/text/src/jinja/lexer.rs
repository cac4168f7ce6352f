//! Source to tokens, white space treated as `transformers` sets Jinja up: `trim_blocks`, `lstrip_blocks`, one newline at the end
//! of the template dropped.

use super::SyntaxError;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Kind {
    /// Text between tags.
    Data(String),
    BlockBegin,
    BlockEnd,
    VariableBegin,
    VariableEnd,
    Name(String),
    Str(String),
    Int(i128),
    Float(f64),
    Op(&'static str),
}

#[derive(Clone, Debug)]
pub(super) struct Token {
    pub line: usize,
    pub kind: Kind,
}

/// Longer ones first.
const OPERATORS: [&str; 27] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<", "=", ".",
    ":", "|", ",", ";", "!",
];

/// White space as Python sees it.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

pub(super) fn tokenize(source: &str) -> Result<Vec<Token>, SyntaxError> {
    let mut source = source.replace("\r\n", "\n").replace('\r', "\n");
    if source.ends_with('\n') {
        source.pop();
    }
    let mut lexer = Lexer { source: &source, at: 0, line: 1, tokens: vec![], after_newline: true };
    lexer.run()?;
    Ok(lexer.tokens)
}

struct Lexer<'a> {
    source: &'a str,
    at: usize,
    line: usize,
    tokens: Vec<Token>,
    /// The last tag took the newline after it.
    after_newline: bool,
}

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a str {
        &self.source[self.at..]
    }

    fn push(&mut self, kind: Kind) {
        self.tokens.push(Token { line: self.line, kind });
    }

    fn error<T>(&self, what: impl Into<String>) -> Result<T, SyntaxError> {
        Err(SyntaxError { line: self.line, what: what.into() })
    }

    /// Moves on, counting lines.
    fn skip(&mut self, bytes: usize) {
        let end = self.at + bytes;
        let passed = &self.source[self.at..end];
        self.line += passed.matches('\n').count();
        if let Some(last) = passed.chars().last() {
            self.after_newline = last == '\n';
        }
        self.at = end;
    }

    fn skip_space(&mut self) {
        let rest = self.rest();
        self.skip(rest.len() - rest.trim_start_matches(is_space).len());
    }

    fn run(&mut self) -> Result<(), SyntaxError> {
        loop {
            let rest = self.rest();
            let tag = rest
                .char_indices()
                .find(|(i, c)| *c == '{' && matches!(rest.as_bytes().get(i + 1), Some(b'{' | b'%' | b'#')))
                .map(|(i, _)| i);
            let Some(begin) = tag else {
                if !rest.is_empty() {
                    self.push(Kind::Data(rest.to_owned()));
                }
                return Ok(());
            };
            let sign = rest.as_bytes().get(begin + 2).copied().filter(|c| matches!(c, b'-' | b'+'));
            let which = rest.as_bytes()[begin + 1];
            let data = strip_before(&rest[..begin], sign, which == b'{', self.after_newline);
            if !data.is_empty() {
                self.push(Kind::Data(data.to_owned()));
            }
            self.skip(begin + 2 + usize::from(sign.is_some()));
            match which {
                b'#' => self.comment()?,
                b'{' => {
                    self.push(Kind::VariableBegin);
                    self.inside("}}")?;
                    self.push(Kind::VariableEnd);
                }
                _ if self.raw()? => {}
                _ => {
                    self.push(Kind::BlockBegin);
                    self.inside("%}")?;
                    self.push(Kind::BlockEnd);
                }
            }
        }
    }

    /// Takes the end of a tag if it is here, and the white space that goes with it.
    fn end(&mut self, close: &str) -> bool {
        let rest = self.rest();
        if rest.strip_prefix('-').is_some_and(|r| r.starts_with(close)) {
            self.skip(1 + close.len());
            self.skip_space();
        } else if close != "}}" && rest.strip_prefix('+').is_some_and(|r| r.starts_with(close)) {
            self.skip(1 + close.len());
        } else if rest.starts_with(close) {
            self.skip(close.len());
            if close != "}}" && self.rest().starts_with('\n') {
                self.skip(1);
            }
        } else {
            return false;
        }
        true
    }

    fn comment(&mut self) -> Result<(), SyntaxError> {
        let rest = self.rest();
        let Some(mut end) = rest.find("#}") else { return self.error("a comment `{#` does not end") };
        if rest[..end].ends_with(['-', '+']) {
            end -= 1;
        }
        self.skip(end);
        self.end("#}");
        Ok(())
    }

    /// Takes a `raw` block if its first tag is here.
    fn raw(&mut self) -> Result<bool, SyntaxError> {
        let rest = self.rest();
        let Some(after) = rest.trim_start_matches(is_space).strip_prefix("raw") else { return Ok(false) };
        let after = after.trim_start_matches(is_space);
        if !after.starts_with("%}") && !after.starts_with("-%}") {
            return Ok(false);
        }
        self.skip(rest.len() - after.len());
        if after.starts_with('-') {
            self.skip(3);
            self.skip_space();
        } else {
            self.skip(2); // a newline after it is part of the text
        }
        let rest = self.rest();
        for (begin, _) in rest.match_indices("{%") {
            let inner = &rest[begin + 2..];
            let sign = inner.bytes().next().filter(|c| matches!(c, b'-' | b'+'));
            let inner = inner[usize::from(sign.is_some())..].trim_start_matches(is_space);
            let Some(close) = inner.strip_prefix("endraw").map(|c| c.trim_start_matches(is_space)) else { continue };
            if !["%}", "-%}", "+%}"].iter().any(|c| close.starts_with(c)) {
                continue;
            }
            let data = strip_before(&rest[..begin], sign, false, self.after_newline);
            self.push(Kind::Data(data.to_owned()));
            self.skip(rest.len() - close.len());
            self.end("%}");
            return Ok(true);
        }
        self.error("a `raw` block does not end")
    }

    /// Tokens up to the end of a tag.
    fn inside(&mut self, close: &str) -> Result<(), SyntaxError> {
        let opened = self.line;
        let mut open: Vec<&str> = vec![];
        loop {
            self.skip_space();
            if open.is_empty() && self.end(close) {
                return Ok(());
            }
            let rest = self.rest();
            let Some(first) = rest.chars().next() else {
                return self.error(format!("a tag that begins in line {opened} does not end with `{close}`"));
            };
            if first.is_ascii_digit() {
                self.number()?;
            } else if first == '_' || first.is_alphabetic() {
                let len = rest.find(|c: char| c != '_' && !c.is_alphanumeric()).unwrap_or(rest.len());
                self.push(Kind::Name(rest[..len].to_owned()));
                self.skip(len);
            } else if first == '"' || first == '\'' {
                self.string(first)?;
            } else if let Some(op) = OPERATORS.iter().find(|op| rest.starts_with(**op)) {
                match *op {
                    "(" => open.push(")"),
                    "[" => open.push("]"),
                    "{" => open.push("}"),
                    ")" | "]" | "}" if open.pop() != Some(*op) => return self.error(format!("unexpected `{op}`")),
                    _ => {}
                }
                self.push(Kind::Op(op));
                self.skip(op.len());
            } else {
                return self.error(format!("unexpected {first:?}"));
            }
        }
    }

    fn number(&mut self) -> Result<(), SyntaxError> {
        let rest = self.rest();
        let digits = |s: &str| s.find(|c: char| !c.is_ascii_digit() && c != '_').unwrap_or(s.len());
        for (prefix, radix) in [("0x", 16), ("0o", 8), ("0b", 2)] {
            if let Some(after) = rest.strip_prefix(prefix) {
                let len = after.find(|c: char| !c.is_digit(radix) && c != '_').unwrap_or(after.len());
                let value = i128::from_str_radix(&after[..len].replace('_', ""), radix);
                let Ok(value) = value else { return self.error("a number that is too long") };
                self.push(Kind::Int(value));
                self.skip(2 + len);
                return Ok(());
            }
        }
        let mut len = digits(rest);
        let mut float = false;
        if let Some(after) = rest[len..].strip_prefix('.')
            && after.starts_with(|c: char| c.is_ascii_digit())
        {
            float = true;
            len += 1 + digits(after);
        }
        if let Some(after) = rest[len..].strip_prefix(['e', 'E']) {
            let unsigned = after.strip_prefix(['+', '-']).unwrap_or(after);
            if unsigned.starts_with(|c: char| c.is_ascii_digit()) {
                float = true;
                len += 1 + (after.len() - unsigned.len()) + digits(unsigned);
            }
        }
        let text = rest[..len].replace('_', "");
        let kind = if float { text.parse().ok().map(Kind::Float) } else { text.parse().ok().map(Kind::Int) };
        let Some(kind) = kind else { return self.error("a number that is too long") };
        self.push(kind);
        self.skip(len);
        Ok(())
    }

    /// A string with Python's escapes.
    fn string(&mut self, quote: char) -> Result<(), SyntaxError> {
        let mut out = String::new();
        let mut chars = self.rest().char_indices().skip(1).peekable();
        while let Some((at, c)) = chars.next() {
            if c == quote {
                self.push(Kind::Str(out));
                self.skip(at + 1);
                return Ok(());
            }
            if c != '\\' {
                out.push(c);
                continue;
            }
            let Some((_, c)) = chars.peek().copied() else { break };
            let fine = match c {
                '0'..='7' => number(&mut out, &mut chars, 8, 1..=3),
                'x' | 'u' | 'U' => {
                    chars.next();
                    let n = if c == 'x' {
                        2
                    } else if c == 'u' {
                        4
                    } else {
                        8
                    };
                    number(&mut out, &mut chars, 16, n..=n)
                }
                _ => {
                    chars.next();
                    match c {
                        'n' => out.push('\n'),
                        't' => out.push('\t'),
                        'r' => out.push('\r'),
                        'a' => out.push('\x07'),
                        'b' => out.push('\x08'),
                        'f' => out.push('\x0c'),
                        'v' => out.push('\x0b'),
                        '\n' => {}
                        '\\' | '\'' | '"' => out.push(c),
                        _ => out.extend(['\\', c]),
                    }
                    true
                }
            };
            if !fine {
                return self.error("an escape in a string names no character");
            }
        }
        self.error("a string does not end")
    }
}

/// Reads a character's number and appends it; false if there is none.
fn number(
    out: &mut String,
    chars: &mut std::iter::Peekable<impl Iterator<Item = (usize, char)>>,
    radix: u32,
    digits: std::ops::RangeInclusive<usize>,
) -> bool {
    let (mut value, mut n) = (0u32, 0);
    while n < *digits.end()
        && let Some(digit) = chars.peek().and_then(|(_, c)| c.to_digit(radix))
    {
        value = value.saturating_mul(radix).saturating_add(digit);
        chars.next();
        n += 1;
    }
    let read = char::from_u32(value).filter(|_| digits.contains(&n));
    out.extend(read);
    read.is_some()
}

/// What is left of the text before a tag.
fn strip_before(data: &str, sign: Option<u8>, variable: bool, after_newline: bool) -> &str {
    match sign {
        Some(b'-') => data.trim_end_matches(is_space),
        Some(_) => data,
        None if variable => data,
        None => {
            let line = data.rfind('\n').map_or(0, |i| i + 1);
            if (line > 0 || after_newline) && data[line..].chars().all(is_space) { &data[..line] } else { data }
        }
    }
}
