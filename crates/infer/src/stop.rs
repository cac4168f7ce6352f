//! Stop strings over streamed text.

/// A stop string of length zero would stop before the first token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a stop string is empty; leave it out")]
pub struct EmptyStopString;

/// Passes streamed text on, up to the first stop string, and holds back only what may still become one.
///
/// The first stop string is the one that is complete first; of those complete at the same character, the longest. So the
/// text passed on does not depend on how the stream was cut into pieces.
///
/// ```
/// # use jevons_infer::StopStrings;
/// let mut stop = StopStrings::new(["\n\nUser:".into()]).unwrap();
/// assert_eq!(stop.push("Yes.\n\nUs"), "Yes.");
/// assert_eq!(stop.push("ually no.\n"), "\n\nUsually no.");
/// assert_eq!(stop.push("\nUser: more"), "");
/// assert!(stop.is_stopped());
/// ```
#[derive(Clone, Debug, Default)]
pub struct StopStrings {
    stops: Vec<String>,
    held: String,
    stopped: bool,
}

impl StopStrings {
    /// Looks for any of `stops`; none is allowed, and then passes everything on at once.
    ///
    /// # Errors
    /// [`EmptyStopString`]
    pub fn new(stops: impl IntoIterator<Item = String>) -> Result<Self, EmptyStopString> {
        let stops: Vec<String> = stops.into_iter().collect();
        if stops.iter().any(String::is_empty) {
            return Err(EmptyStopString);
        }
        Ok(Self { stops, held: String::new(), stopped: false })
    }

    /// Takes the next piece and returns what can be passed on. After a stop string nothing is passed on any more.
    pub fn push(&mut self, piece: &str) -> String {
        if self.stopped {
            return String::new();
        }
        let mut text = std::mem::take(&mut self.held);
        text.push_str(piece);
        let first = self.stops.iter().filter_map(|s| text.find(s.as_str()).map(|at| (at + s.len(), at))).min();
        if let Some((_, at)) = first {
            self.stopped = true;
            text.truncate(at);
        } else {
            self.held = text.split_off(self.held_from(&text));
        }
        text
    }

    /// Whether a stop string was met.
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// The stream has ended: what was held back is plain text after all.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Start of the longest suffix of `text` that begins a stop string.
    fn held_from(&self, text: &str) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let from = text.len().saturating_sub(longest.saturating_sub(1));
        (from..text.len())
            .find(|at| text.is_char_boundary(*at) && self.stops.iter().any(|s| s.starts_with(&text[*at..])))
            .unwrap_or(text.len())
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// The definition, word for word, on the whole text.
    fn naive(text: &str, stops: &[String]) -> (String, bool) {
        for end in text.char_indices().map(|(at, c)| at + c.len_utf8()) {
            let longest = stops.iter().filter(|s| text[..end].ends_with(s.as_str())).map(String::len).max();
            if let Some(len) = longest {
                return (text[..end - len].to_owned(), true);
            }
        }
        (text.to_owned(), false)
    }

    fn cut(text: &str, cuts: &[usize]) -> Vec<String> {
        let chars: Vec<char> = text.chars().collect();
        let mut pieces = vec![];
        let mut at = 0;
        for cut in cuts {
            let to = (at + cut).min(chars.len());
            pieces.push(chars[at..to].iter().collect());
            at = to;
        }
        pieces.push(chars[at..].iter().collect());
        pieces
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        // Two letters and a wide one make overlaps and repeats frequent.
        #[test]
        fn the_text_passed_on_does_not_depend_on_the_cuts(
            text in "[abé]{0,24}",
            stops in vec("[abé]{1,5}", 0..4),
            cuts in vec(0usize..4, 0..12),
        ) {
            let mut stop = StopStrings::new(stops.clone()).unwrap();
            let mut got = String::new();
            for piece in cut(&text, &cuts) {
                got += &stop.push(&piece);
                // Passed on as soon as possible: what is held back begins a stop string.
                prop_assert!(stop.held.is_empty() || stops.iter().any(|s| s.starts_with(&stop.held)));
            }
            got += &stop.finish();
            prop_assert_eq!((got, stop.is_stopped()), naive(&text, &stops));
        }
    }

    #[test]
    fn of_two_stop_strings_that_end_together_the_longer_one_counts() {
        let mut stop = StopStrings::new(["ab".into(), "xxab".into()]).unwrap();
        assert_eq!(stop.push("1xxa"), "1");
        assert_eq!(stop.push("b"), "");
        assert!(stop.is_stopped());
    }

    #[test]
    fn an_empty_stop_string_is_refused() {
        assert_eq!(StopStrings::new(["a".into(), String::new()]).unwrap_err(), EmptyStopString);
    }
}
