//! Questions about the model itself, and about everything that it cannot do: it answers what it is.
//!
//! Made by templates, so that a tiny model learns to tell what it can do from what it cannot, and says so plainly.

use super::{Exchange, arithmetic};
use crate::rng::{Rng, Stream};

/// Raised with every change of what is generated, so that token files of older examples are made again.
pub const VERSION: u32 = 2;

const WHAT_I_AM: &str = "I add and subtract two-digit numbers step by step, and I can continue a text. \
                         For more, fetch a larger model: jevons pull deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B";

/// A kind of question: ways to ask, what to think, how to begin the answer.
struct Kind {
    /// How many of a hundred questions are of this kind.
    share: u64,
    ask: &'static [&'static str],
    think: &'static str,
    /// Before [`WHAT_I_AM`], unless it says all.
    answer: &'static str,
    whole: bool,
}

const KINDS: &[Kind] = &[
    Kind {
        share: 18,
        ask: &[
            "Who are you?",
            "What are you?",
            "What is your name?",
            "Tell me about yourself.",
            "Are you an AI?",
            "Are you a human?",
            "Are you ChatGPT?",
            "Are you DeepSeek?",
            "Which model are you?",
            "What model is this?",
            "Who made you?",
            "Who trained you?",
            "What is jevons?",
            "Introduce yourself.",
            "How big are you?",
            "How many parameters do you have?",
            "Are you a robot?",
            "What kind of model are you?",
            "Do you have a name?",
            "Are you a large language model?",
            "What am I talking to?",
            "Who am I talking to?",
            "How old are you?",
            "Where do you come from?",
            "Are you intelligent?",
            "How do you work?",
            "What were you trained on?",
            "Do you know everything?",
            "Are you alive?",
            "Do you have feelings?",
        ],
        think: "This asks about me.",
        answer: "I am a tiny model built into jevons.",
        whole: false,
    },
    Kind {
        share: 10,
        ask: &[
            "What can you do?",
            "Help",
            "Can you help me?",
            "How can you help me?",
            "What do you know?",
            "What are you good at?",
            "What should I ask you?",
            "What can I ask?",
            "What are your abilities?",
            "What are your limits?",
            "How do I use this?",
            "Can you do maths?",
            "Can you calculate?",
            "Can you do arithmetic?",
            "Can you think?",
            "Show me what you can do.",
            "What can't you do?",
            "I need help.",
            "Help me please.",
            "Can you answer questions?",
        ],
        think: "This asks what I can do.",
        answer: "Ask me for a sum or a difference, such as 47 + 38. I am a tiny model built into jevons.",
        whole: false,
    },
    Kind {
        share: 7,
        ask: &[
            "Hello",
            "Hello!",
            "Hi",
            "Hi!",
            "Hi there",
            "Hey",
            "Good morning",
            "Good evening",
            "Good day!",
            "How are you?",
            "How are you doing?",
            "Hello, how are you?",
            "What's up?",
            "Greetings",
            "Nice to meet you.",
            "Is anybody there?",
            "Test",
            "Are you there?",
        ],
        think: "This is a greeting.",
        answer: "Hello! I am a tiny model built into jevons.",
        whole: false,
    },
    Kind {
        share: 4,
        ask: &[
            "Thanks",
            "Thank you",
            "Thank you!",
            "Thanks a lot.",
            "Great",
            "Well done",
            "Good",
            "Nice",
            "OK",
            "Okay",
            "Bye",
            "Goodbye",
            "See you",
            "That is right.",
            "Correct!",
            "Cool",
        ],
        think: "This is not a question.",
        answer: "You are welcome. Ask me for another sum or difference of two-digit numbers.",
        whole: true,
    },
    Kind {
        share: 16,
        ask: &[
            "What is {m} * {k}?",
            "{m} * {k}",
            "{m}*{k}",
            "{m} x {k}",
            "{m} times {k}",
            "What is {m} times {k}?",
            "Multiply {m} by {k}.",
            "What is the product of {m} and {k}?",
            "{m} / {k}",
            "{m}/{k}",
            "What is {m} / {k}?",
            "{m} divided by {k}",
            "Divide {m} by {k}.",
            "What is {m} divided by {k}?",
            "What is the square root of {m}?",
            "What is {k} percent of {m}?",
            "What is {m} squared?",
            "Compute {m} * {k}.",
            "Calculate {m} * {k}.",
            "How much is {m} times {k}?",
            "{m} ^ {k}",
            "What is {m} to the power of {k}?",
            "Is {m} a prime number?",
            "What are the factors of {m}?",
            "What is {m} modulo {k}?",
            "{m} × {k}",
            "{m} ÷ {k}",
            "Work out {m} * {k}.",
            "Double {m}.",
            "What is half of {m}?",
        ],
        think: "This is neither an addition nor a subtraction.",
        answer: "That is beyond me. I am a tiny model built into jevons.",
        whole: false,
    },
    Kind {
        share: 7,
        ask: &[
            "What is {l} + {k}?",
            "{l} + {l}",
            "{l} - {k}",
            "What is {l} - {l}?",
            "Add {l} and {l}.",
            "Subtract {k} from {l}.",
            "{m} + {m} + {k}",
            "What is {m} + {k} + {k}?",
            "{m} - {k} - {k}",
            "{m} + {k} - {m}",
            "What is {k}.{k} + {m}?",
            "{m} + {k}.{k}",
            "What is {l} plus {l}?",
            "{l} minus {m}",
            "Solve x + {k} = {m}.",
            "Solve {k}x + {k} = {m}.",
            "{k}x - {m} = {k}",
        ],
        think: "This is more than two numbers of up to three digits.",
        answer: "That is beyond me. I am a tiny model built into jevons.",
        whole: false,
    },
    Kind {
        share: 38,
        ask: &[
            "What is the capital of {c}?",
            "Where is {c}?",
            "How many people live in {c}?",
            "Who is the president of {c}?",
            "What language do they speak in {c}?",
            "Tell me about {c}.",
            "What is the history of {c}?",
            "What should I see in {c}?",
            "Who was {p}?",
            "Tell me about {p}.",
            "When was {p} born?",
            "What did {p} do?",
            "Why is {p} famous?",
            "What did {p} write?",
            "Write a {w} about {t}.",
            "Write me a {w} about {t}.",
            "Write a {w}.",
            "Can you write a {w} about {t}?",
            "I need a {w} about {t}.",
            "Explain {t}.",
            "What is {t}?",
            "Tell me about {t}.",
            "How does {t} work?",
            "Why is {t} important?",
            "Explain {t} to a child.",
            "What do you think about {t}?",
            "Give me facts about {t}.",
            "Summarize {t}.",
            "What is the meaning of {t}?",
            "Who invented {t}?",
            "What is the best book about {t}?",
            "Give me ideas about {t}.",
            "Compare {t} and {t}.",
            "Is {t} good or bad?",
            "Write a {g} program that {d}.",
            "Write a function in {g} that {d}.",
            "How do I write a loop in {g}?",
            "Fix my {g} code.",
            "What is {g}?",
            "Explain this {g} code.",
            "How do I install {g}?",
            "Write code that {d}.",
            "Translate this into {s}.",
            "How do you say hello in {s}?",
            "Translate \"{t}\" into {s}.",
            "Do you speak {s}?",
            "What is the word for {t} in {s}?",
            "Correct my {s}.",
            "What is the weather today?",
            "What time is it?",
            "What day is it today?",
            "Tell me a joke.",
            "What is the meaning of life?",
            "Who won the match yesterday?",
            "What is the news?",
            "Recommend a film.",
            "What should I cook tonight?",
            "I am bored.",
            "I am sad.",
            "Tell me a story.",
            "Sing a song.",
            "Give me a recipe for {t}.",
            "How do I make money?",
            "Do you love me?",
            "What happened in {y}?",
            "Who was king in {y}?",
            "When did the war end?",
            "Draw a picture of {t}.",
            "Search the web for {t}.",
            "Open the file.",
            "Send an email about {t}.",
            "Play chess with me.",
            "What is the price of {t}?",
            "Where can I buy {t}?",
        ],
        think: "This is neither an addition nor a subtraction.",
        answer: "That is beyond me. I am a tiny model built into jevons.",
        whole: false,
    },
];

const COUNTRIES: &[&str] = &[
    "France",
    "Germany",
    "Italy",
    "Spain",
    "Portugal",
    "England",
    "Ireland",
    "Norway",
    "Sweden",
    "Finland",
    "Poland",
    "Russia",
    "China",
    "Japan",
    "India",
    "Egypt",
    "Kenya",
    "Nigeria",
    "Brazil",
    "Chile",
    "Peru",
    "Mexico",
    "Canada",
    "Australia",
    "Greece",
    "Turkey",
    "Iran",
    "Cuba",
    "Vietnam",
    "Korea",
    "London",
    "Paris",
    "Rome",
    "Berlin",
    "Tokyo",
    "Africa",
    "Europe",
    "the United States",
    "the moon",
];
const PEOPLE: &[&str] = &[
    "Einstein",
    "Newton",
    "Napoleon",
    "Shakespeare",
    "Mozart",
    "Beethoven",
    "Caesar",
    "Cleopatra",
    "Darwin",
    "Marie Curie",
    "Gandhi",
    "Lincoln",
    "Plato",
    "Aristotle",
    "Tolstoy",
    "Goethe",
    "Columbus",
    "Galileo",
    "Leonardo da Vinci",
    "Ada Lovelace",
    "Alan Turing",
    "William Stanley Jevons",
    "Confucius",
    "Homer",
    "Dante",
    "Rembrandt",
    "Mandela",
    "Washington",
];
const TOPICS: &[&str] = &[
    "love",
    "war",
    "peace",
    "the sea",
    "the sun",
    "dogs",
    "cats",
    "birds",
    "music",
    "history",
    "physics",
    "chemistry",
    "biology",
    "philosophy",
    "economics",
    "politics",
    "religion",
    "art",
    "gravity",
    "energy",
    "coal",
    "electricity",
    "water",
    "bread",
    "coffee",
    "tea",
    "football",
    "computers",
    "the internet",
    "neural networks",
    "quantum mechanics",
    "relativity",
    "evolution",
    "climate change",
    "the stock market",
    "money",
    "time",
    "dreams",
    "friendship",
    "school",
    "work",
    "summer",
    "winter",
    "flowers",
    "trees",
    "mountains",
    "rivers",
    "space",
    "stars",
    "the brain",
    "medicine",
    "law",
    "cars",
    "trains",
    "planes",
    "ships",
    "photosynthesis",
    "inflation",
    "democracy",
    "the Jevons paradox",
    "machine learning",
    "a transformer",
    "chess",
    "cooking",
    "pizza",
    "soup",
];
const WRITINGS: &[&str] = &[
    "poem",
    "story",
    "letter",
    "song",
    "speech",
    "report",
    "summary",
    "haiku",
    "short essay",
    "long essay",
    "novel",
    "blog post",
    "joke",
    "plan",
    "list",
    "article",
    "review",
    "dialogue",
];
const LANGUAGES: &[&str] = &[
    "French",
    "German",
    "Spanish",
    "Italian",
    "Latin",
    "Greek",
    "Russian",
    "Chinese",
    "Japanese",
    "Arabic",
    "Hindi",
    "Portuguese",
    "Swedish",
    "Polish",
    "Turkish",
    "Korean",
    "English",
];
const CODE: &[&str] =
    &["Python", "Rust", "C", "Java", "JavaScript", "Go", "Haskell", "SQL", "HTML", "Bash", "Lisp", "R"];
const TASKS: &[&str] = &[
    "sorts a list",
    "reverses a string",
    "reads a file",
    "finds prime numbers",
    "prints hello world",
    "counts words",
    "draws a circle",
    "downloads a page",
    "solves a maze",
    "computes the Fibonacci numbers",
    "removes duplicates",
    "plays tic-tac-toe",
    "parses a date",
];

/// Makes examples; the `i`-th is always the same.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    seed: u64,
}

impl Identity {
    /// Another seed gives other examples.
    pub fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// Example `i`.
    pub fn example(&self, i: u64) -> Exchange {
        let mut rng = Rng::new(self.seed, Stream::Identity, i);
        let mut at = rng.below(KINDS.iter().map(|k| k.share).sum());
        let kind = KINDS
            .iter()
            .find(|k| match at.checked_sub(k.share) {
                Some(rest) => {
                    at = rest;
                    false
                }
                None => true,
            })
            .expect("below the sum of all shares");
        let question = {
            let template = *rng.pick(kind.ask);
            fill(template, &mut rng)
        };
        let answer = if kind.whole { kind.answer.into() } else { format!("{} {WHAT_I_AM}", kind.answer) };
        Exchange { question: arithmetic::loosen(question, &mut rng), thinking: kind.think.into(), answer }
    }
}

/// Each slot gets its own word or number.
fn fill(template: &str, rng: &mut Rng) -> String {
    let mut out = String::new();
    let mut rest = template;
    while let Some(at) = rest.find('{') {
        out.push_str(&rest[..at]);
        let slot = rest.as_bytes()[at + 1];
        out.push_str(&match slot {
            b'c' => rng.pick(COUNTRIES).to_string(),
            b'p' => rng.pick(PEOPLE).to_string(),
            b't' => rng.pick(TOPICS).to_string(),
            b'w' => rng.pick(WRITINGS).to_string(),
            b's' => rng.pick(LANGUAGES).to_string(),
            b'g' => rng.pick(CODE).to_string(),
            b'd' => rng.pick(TASKS).to_string(),
            b'y' => rng.between(1000, 2030).to_string(),
            b'k' => rng.between(2, 99).to_string(),
            b'm' => {
                let high = *rng.pick(&[99, 999]);
                rng.between(10, high).to_string()
            }
            b'l' => {
                let high = *rng.pick(&[9_999, 99_999, 9_999_999]);
                rng.between(1000, high).to_string()
            }
            other => unreachable!("slot {}", other as char),
        });
        rest = &rest[at + 3..];
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_template_is_asked_and_no_slot_stays_open() {
        let identity = Identity::new(1);
        let all: Vec<_> = (0..20_000).map(|i| identity.example(i)).collect();
        assert!(all.iter().all(|e| !e.question.contains(['{', '}']) && !e.question.trim().is_empty()));
        let questions: HashSet<_> = all.iter().map(|e| e.question.to_lowercase()).collect();
        assert!(questions.len() > 5000, "{}", questions.len());
        for plain in KINDS.iter().flat_map(|k| k.ask).filter(|t| !t.contains('{')) {
            assert!(questions.contains(&plain.to_lowercase()), "{plain}");
        }
    }

    #[test]
    fn every_answer_says_what_it_is_or_what_to_ask() {
        let identity = Identity::new(2);
        for i in 0..2000 {
            let e = identity.example(i);
            assert!(e.answer.contains("two-digit numbers"), "{}", e.answer);
            assert_eq!(identity.example(i), e);
        }
    }

    #[test]
    fn nothing_that_arithmetic_answers_is_called_beyond_it() {
        // As `47 + 38` would be if a slot were filled carelessly.
        let identity = Identity::new(3);
        for i in 0..20_000 {
            let question = identity.example(i).question;
            let words: Vec<&str> = question.split_whitespace().collect();
            let small =
                |w: &str| w.trim_matches(['?', '.', '!']).parse::<u32>().is_ok_and(|n| n <= arithmetic::MAX_OPERAND);
            let plain =
                words.windows(3).any(|w| small(w[0]) && ["+", "-", "plus", "minus"].contains(&w[1]) && small(w[2]));
            let operators = words.iter().filter(|w| ["+", "-", "plus", "minus"].contains(w)).count();
            assert!(!plain || operators > 1, "{question}");
        }
    }
}
