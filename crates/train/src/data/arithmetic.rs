//! Additions and subtractions with their steps, made by templates: what the built-in model learns to reason with.
//!
//! The steps are written so that a transformer of a million parameters with one token per digit can do each by looking up two or
//! three digits: both numbers are restated with equally many digits, then column by column from the ones, each column
//! naming its digits, what to write and what to carry. A difference first compares, from the highest digit, and swaps if the
//! second number is larger, so that no column ever goes wrong.
//!
//! ```text
//! 47 + 38                                  32 - 57
//! ones: 7 + 8 = 15, write 5, carry 1       compare: 3 < 5, swap: 57 - 32, sign -
//! tens: 4 + 3 + 1 = 8, write 8, carry 0    ones: 7 - 2 = 5, write 5, borrow 0
//! result: 85                               tens: 5 - 3 - 0 = 2, write 2, borrow 0
//!                                          digits: 25
//!                                          result: -25
//! ```
//!
//! A tenth of all pairs of numbers is never in a training example ([`is_heldout`]); an evaluation asks those.

use std::{cmp::Ordering, fmt, fmt::Write};

use super::Exchange;
use crate::rng::{Permutation, Rng, Stream};

/// Raised with every change of what is generated, so that token files of older examples are made again.
pub const VERSION: u32 = 1;

/// The largest operand.
pub const MAX_OPERAND: u32 = 999;

/// What is done with two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Op {
    /// `a + b`
    Add,
    /// `a - b`
    Sub,
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Add => "+",
            Self::Sub => "-",
        })
    }
}

/// A sum or a difference to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Problem {
    /// First operand, at most [`MAX_OPERAND`].
    pub a: u32,
    /// What to do.
    pub op: Op,
    /// Second operand, at most [`MAX_OPERAND`].
    pub b: u32,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} {} {}", self.a, self.op, self.b)
    }
}

/// Whether a pair is kept out of all training examples: a tenth of them, by a hash. Order does not matter, since `38 + 47` would give away
/// `47 + 38`, and `57 - 32` the columns of `32 - 57`.
pub fn is_heldout(a: u32, op: Op, b: u32) -> bool {
    let (low, high) = (a.min(b), a.max(b));
    let index = u64::from(op == Op::Sub) << 40 | u64::from(low) << 20 | u64::from(high);
    Rng::new(0, Stream::HeldoutPair, index).below(10) == 0
}

/// Up to `n` held-out problems of two two-digit numbers, both operations, always the same ones in the same order.
pub fn heldout_pairs(n: usize) -> Vec<Problem> {
    let two_digits = || 10..=99u32;
    let all: Vec<Problem> = [Op::Add, Op::Sub]
        .into_iter()
        .flat_map(|op| two_digits().flat_map(move |a| two_digits().map(move |b| Problem { a, op, b })))
        .filter(|p| is_heldout(p.a, p.op, p.b))
        .collect();
    let order = Permutation::new(all.len() as u64, 0, Stream::HeldoutPair, 0);
    (0..n.min(all.len())).map(|i| all[order.at(i as u64) as usize]).collect()
}

/// The number that a reply ends with: the last whole number after the thinking, if any. A number with a fraction is none.
///
/// ```
/// # use jevons_train::data::arithmetic::evaluate_answer;
/// assert_eq!(evaluate_answer("<think>\n32 - 57 ...\n</think>\n\n32 - 57 = -25"), Some(-25));
/// assert_eq!(evaluate_answer("I cannot tell."), None);
/// ```
pub fn evaluate_answer(text: &str) -> Option<i64> {
    let text = text.rsplit_once("</think>").map_or(text, |(_, answer)| answer);
    let is_number = |c: char| c.is_ascii_digit() || c == ',' || c == '.';
    let end = text.rfind(|c: char| c.is_ascii_digit())? + 1;
    let start =
        text[..end].rfind(|c| !is_number(c)).map_or(0, |i| i + text[i..].chars().next().map_or(0, char::len_utf8));
    let number = text[start..end].trim_start_matches([',', '.']);
    let digits: String = match number.split_once(',') {
        // Only as separator of thousands.
        Some((first, rest)) if (1..=3).contains(&first.len()) && rest.split(',').all(|g| g.len() == 3) => {
            number.replace(',', "")
        }
        Some(_) => number.rsplit(',').next()?.into(),
        None => number.into(),
    };
    let value: i64 = digits.parse().ok()?;
    // A minus is a sign unless a number stands before it: `57-32`.
    let before = &text[..start];
    let unsigned = before.strip_suffix(['-', '−']);
    let signed = unsigned.is_some_and(|rest| !rest.trim_end().ends_with(|c: char| c.is_ascii_digit()));
    Some(if signed { -value } else { value })
}

const COLUMNS: [&str; 3] = ["ones", "tens", "hundreds"];

impl Problem {
    /// The result.
    pub fn answer(&self) -> i64 {
        let (a, b) = (i64::from(self.a), i64::from(self.b));
        match self.op {
            Op::Add => a + b,
            Op::Sub => a - b,
        }
    }

    /// The steps, one a line, no line break at the end.
    pub fn steps(&self) -> String {
        assert!(self.a.max(self.b) <= MAX_OPERAND, "{self}");
        let width = self.a.max(self.b).to_string().len();
        let mut out = format!("{:0width$} {} {:0width$}\n", self.a, self.op, self.b);
        match self.op {
            Op::Add => self.add(&mut out, width),
            Op::Sub => self.subtract(&mut out, width),
        }
        .expect("a String takes all");
        out
    }

    fn add(&self, out: &mut String, width: usize) -> fmt::Result {
        let (a, b) = (digits(self.a, width), digits(self.b, width));
        let mut carry = 0;
        for (i, name) in COLUMNS.iter().enumerate().take(width) {
            let sum = a[i] + b[i] + carry;
            write!(out, "{name}: {} + {}", a[i], b[i])?;
            if i > 0 {
                write!(out, " + {carry}")?;
            }
            carry = sum / 10;
            writeln!(out, " = {sum}, write {}, carry {carry}", sum % 10)?;
        }
        write!(out, "result: {}", self.answer())
    }

    fn subtract(&self, out: &mut String, width: usize) -> fmt::Result {
        let (a, b) = (digits(self.a, width), digits(self.b, width));
        write!(out, "compare:")?;
        for i in (0..width).rev() {
            let order = a[i].cmp(&b[i]);
            let sign = match order {
                Ordering::Less => '<',
                Ordering::Equal => '=',
                Ordering::Greater => '>',
            };
            write!(out, " {} {sign} {},", a[i], b[i])?;
            if order != Ordering::Equal {
                break;
            }
        }
        let swap = self.a < self.b;
        let (what, sign) = if swap { ("swap", '-') } else { ("keep", '+') };
        let (high, low) = (self.a.max(self.b), self.a.min(self.b));
        writeln!(out, " {what}: {high:0width$} - {low:0width$}, sign {sign}")?;
        let (a, b) = if swap { (b, a) } else { (a, b) };
        let mut borrow = 0;
        for (i, name) in COLUMNS.iter().enumerate().take(width) {
            let rest = if i > 0 { format!("{} - {borrow}", b[i]) } else { b[i].to_string() };
            let less = a[i] < b[i] + borrow;
            let from = a[i] + if less { 10 } else { 0 };
            write!(out, "{name}: {} - {rest}", a[i])?;
            if less {
                write!(out, " < 0, {from} - {rest}")?;
            }
            let digit = from - b[i] - borrow;
            borrow = u32::from(less);
            writeln!(out, " = {digit}, write {digit}, borrow {borrow}")?;
        }
        writeln!(out, "digits: {:0width$}", high - low)?;
        write!(out, "result: {}", self.answer())
    }

    /// The whole reply to a question.
    fn exchange(&self, question: String) -> Exchange {
        Exchange { question, thinking: self.steps(), answer: format!("{self} = {}", self.answer()) }
    }
}

/// From the ones up.
fn digits(n: u32, width: usize) -> Vec<u32> {
    (0..width as u32).map(|i| n / 10u32.pow(i) % 10).collect()
}

/// `{a}` and `{b}` are the numbers.
const ADD: &[&str] = &[
    "{a} + {b}",
    "{a}+{b}",
    "{a} + {b} =",
    "{a}+{b}=",
    "{a} + {b} = ?",
    "{a} + {b}?",
    "What is {a} + {b}?",
    "What is {a}+{b}?",
    "What's {a} + {b}?",
    "How much is {a} + {b}?",
    "Compute {a} + {b}.",
    "Calculate {a} + {b}.",
    "Calculate {a}+{b}.",
    "Work out {a} + {b}.",
    "Solve {a} + {b}.",
    "Tell me {a} + {b}.",
    "Find {a} + {b}.",
    "What does {a} + {b} equal?",
    "{a} plus {b}",
    "What is {a} plus {b}?",
    "How much is {a} plus {b}?",
    "Add {a} and {b}.",
    "Add {a} to {b}.",
    "Can you add {a} and {b}?",
    "What is the sum of {a} and {b}?",
    "Give me the sum of {a} and {b}.",
    "What do I get if I add {a} and {b}?",
    "If I add {b} to {a}, what do I get?",
];

const SUB: &[&str] = &[
    "{a} - {b}",
    "{a}-{b}",
    "{a} - {b} =",
    "{a}-{b}=",
    "{a} - {b} = ?",
    "{a} - {b}?",
    "What is {a} - {b}?",
    "What is {a}-{b}?",
    "What's {a} - {b}?",
    "How much is {a} - {b}?",
    "Compute {a} - {b}.",
    "Calculate {a} - {b}.",
    "Calculate {a}-{b}.",
    "Work out {a} - {b}.",
    "Solve {a} - {b}.",
    "Tell me {a} - {b}.",
    "Find {a} - {b}.",
    "What does {a} - {b} equal?",
    "{a} minus {b}",
    "What is {a} minus {b}?",
    "How much is {a} minus {b}?",
    "Subtract {b} from {a}.",
    "Take {b} away from {a}.",
    "{a} take away {b}",
    "Can you subtract {b} from {a}?",
    "What do I get if I subtract {b} from {a}?",
    "If I take {b} from {a}, what is left?",
    "What is {a} less {b}?",
];

/// `{n}` is a name, `{t}` a thing in the plural.
const ADD_STORIES: &[&str] = &[
    "{n} has {a} {t} and gets {b} more. How many {t} does {n} have now?",
    "There are {a} {t} in one box and {b} in another. How many {t} are there together?",
    "{n} found {a} {t} on Monday and {b} on Tuesday. How many is that in all?",
    "A shop sold {a} {t} yesterday and {b} today. How many {t} did it sell?",
];

/// Only where the first number is not the smaller one.
const SUB_STORIES: &[&str] = &[
    "{n} has {a} {t} and gives away {b}. How many {t} are left?",
    "There were {a} {t} in a box and {n} took {b}. How many {t} are still there?",
    "A shop had {a} {t} and sold {b}. How many {t} remain?",
    "What is the difference between {a} and {b}?",
];

const NAMES: &[&str] =
    &["Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Hugo", "Ida", "Jack", "Lena", "Max", "Nora", "Tom"];
const THINGS: &[&str] = &[
    "apples", "books", "cards", "coins", "eggs", "flowers", "marbles", "oranges", "pencils", "shells", "stamps",
    "stones",
];

/// Makes examples; the `i`-th is always the same.
#[derive(Clone, Copy, Debug)]
pub struct Arithmetic {
    seed: u64,
}

impl Arithmetic {
    /// Another seed gives other examples.
    pub fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// Example `i`: a problem that is not held out, asked in one of many ways, with its steps.
    pub fn example(&self, i: u64) -> Exchange {
        let mut rng = Rng::new(self.seed, Stream::Document, i);
        let problem = loop {
            let problem = draw(&mut rng);
            if !is_heldout(problem.a, problem.op, problem.b) {
                break problem;
            }
        };
        problem.exchange(ask(&problem, &mut rng))
    }
}

/// Mostly two two-digit numbers; sometimes shorter or longer ones.
fn draw(rng: &mut Rng) -> Problem {
    let op = *rng.pick(&[Op::Add, Op::Sub]);
    let mut number = |digits| match digits {
        1 => rng.between(0, 9) as u32,
        2 => rng.between(10, 99) as u32,
        _ => rng.between(100, 999) as u32,
    };
    let kind = number(2);
    let (a, b) = match kind {
        10..=81 => (number(2), number(2)),
        82..=84 => (number(1), number(1)),
        85..=87 => (number(1), number(2)),
        88..=90 => (number(2), number(1)),
        91..=95 => (number(3), number(3)),
        96..=97 => (number(3), number(2)),
        _ => (number(2), number(3)),
    };
    Problem { a, op, b }
}

/// A question for a problem.
fn ask(problem: &Problem, rng: &mut Rng) -> String {
    let story = rng.below(8) == 0;
    let template = match problem.op {
        Op::Add if story => rng.pick(ADD_STORIES),
        Op::Sub if story && problem.a >= problem.b => rng.pick(SUB_STORIES),
        Op::Add => rng.pick(ADD),
        Op::Sub => rng.pick(SUB),
    };
    let (name, thing) = (*rng.pick(NAMES), *rng.pick(THINGS));
    let question = template
        .replace("{a}", &problem.a.to_string())
        .replace("{b}", &problem.b.to_string())
        .replace("{n}", name)
        .replace("{t}", thing);
    loosen(question, rng)
}

/// As people type: now and then without capitals, without the last mark, or politer.
pub(super) fn loosen(mut question: String, rng: &mut Rng) -> String {
    match rng.below(16) {
        0 | 1 => question = question.to_lowercase(),
        2 | 3 => question.truncate(question.trim_end_matches(['.', '?', ' ']).len()),
        4 => question = question.trim_end_matches(['.', '?', ' ']).to_lowercase(),
        5 => question.insert_str(0, "Please: "),
        6 => question.insert_str(0, "Hello! "),
        7 => question.push_str(" Thanks!"),
        _ => {}
    }
    question
}

#[cfg(test)]
mod tests;
