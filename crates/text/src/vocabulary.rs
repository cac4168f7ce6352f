//! A byte-level BPE vocabulary as other formats store it, and how it becomes a tokenizer.json.
//!
//! A tokenizer.json is three things: which pieces a text is cut into before anything is merged ([`Style`]), the tokens with the
//! merges that lead to them, and tokens that are cut out of the text first because they mean something ([`AddedToken`]).

use serde_json::{Value, json};

use crate::tokenizer::{Tokenizer, TokenizerError};

/// Tokens of a vocabulary; the largest published ones have 260,000.
pub(crate) const MAX_TOKENS: usize = 1 << 20;

/// A token that is matched in the text before it is cut into words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddedToken {
    /// Its id.
    pub id: u32,
    /// Its text.
    pub content: String,
    /// Whether decoding may leave it out.
    pub special: bool,
}

impl AddedToken {
    fn new(id: u32, content: impl Into<String>, special: bool) -> Self {
        Self { id, content: content.into(), special }
    }
}

/// How a family of models cuts text into words, and its added tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// DeepSeek-V3.
    DeepSeekV3,
    /// DeepSeek-R1: V3 with `<think>` and `</think>` in place of two placeholders.
    DeepSeekR1,
    /// Qwen2 and Qwen2.5; the latter's further tokens come from its tokenizer_config.json.
    Qwen2,
    /// Kimi-K2 and Moonlight.
    KimiK2,
    /// DeepSeek LLM and DeepSeek-V2, of which only vocabularies in GGUF are converted.
    DeepSeekLlm,
    /// DeepSeek Coder, the same.
    DeepSeekCoder,
}

/// Cased letters of the DeepSeek LLM pattern. Escaped, because a tool that composes characters would change the ranges.
const CASED: &str = concat!(
    r"A-Za-z\x{B5}\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{1BA}\x{1BC}-\x{1BF}\x{1C4}-\x{293}\x{295}-\x{2AF}",
    r"\x{370}-\x{373}\x{376}\x{377}\x{37B}-\x{37D}\x{37F}\x{386}\x{388}-\x{38A}\x{38C}\x{38E}-\x{3A1}",
    r"\x{3A3}-\x{3F5}\x{3F7}-\x{481}\x{48A}-\x{52F}\x{531}-\x{556}\x{10A0}-\x{10C5}\x{13A0}-\x{13F5}",
    r"\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA}\x{1CBD}-\x{1CBF}\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77}\x{1D79}-",
    r"\x{1D9A}\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D}\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D}\x{1F50}-\x{1F57}",
    r"\x{1F59}\x{1F5B}\x{1F5D}\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}\x{1FB6}-\x{1FBC}\x{1FBE}\x{1FC2}-\x{1FC4}",
    r"\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC}\x{1FF2}-\x{1FF4}\x{1FF6}-",
    r"\x{1FFC}\x{2102}\x{2107}\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}\x{2124}\x{2126}\x{2128}\x{212A}-",
    r"\x{212D}\x{212F}-\x{2134}\x{2139}\x{213C}-\x{213F}\x{2145}-\x{2149}\x{214E}\x{2183}\x{2184}\x{2C00}-",
    r"\x{2C7B}\x{2C7E}-\x{2CE4}\x{2CEB}-\x{2CEE}\x{2CF2}\x{2CF3}\x{A640}-\x{A66D}\x{A680}-\x{A69B}\x{A722}",
    r"-\x{A76F}\x{A771}-\x{A787}\x{A78B}-\x{A78E}\x{AB70}-\x{ABBF}\x{FB00}-\x{FB06}\x{FB13}-\x{FB17}",
    r"\x{FF21}-\x{FF3A}\x{FF41}-\x{FF5A}\x{10400}-\x{1044F}\x{104B0}-\x{104D3}\x{104D8}-\x{104FB}\x{10C80}",
    r"-\x{10CB2}\x{10CC0}-\x{10CF2}\x{118A0}-\x{118DF}\x{1E900}-\x{1E943}",
);

impl Style {
    /// By the `tokenizer.ggml.pre` of a GGUF.
    pub(crate) fn from_gguf(pre: &str) -> Option<Self> {
        Some(match pre {
            "deepseek-v3" => Self::DeepSeekV3,
            "qwen2" | "deepseek-r1-qwen" => Self::Qwen2,
            "kimi-k2" => Self::KimiK2,
            "deepseek-llm" => Self::DeepSeekLlm,
            "deepseek-coder" => Self::DeepSeekCoder,
            _ => return None,
        })
    }

    /// Patterns applied one after the other; each cuts what the earlier ones left whole.
    fn patterns(self) -> Vec<String> {
        let all: &[&str] = match self {
            Self::DeepSeekV3 | Self::DeepSeekR1 => &[
                r"\p{N}{1,3}",
                r"[一-龥぀-ゟ゠-ヿ]+",
                concat!(
                    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"##,
                    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
                ),
            ],
            Self::Qwen2 => &[concat!(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
                r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            )],
            Self::KimiK2 => &[concat!(
                r"[\p{Han}]+",
                r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*",
                r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
                r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+",
                r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
                r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            )],
            Self::DeepSeekLlm => {
                return vec![
                    r"[\r\n]".into(),
                    format!(r"\s?[{CASED}]+"),
                    r"\s?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3000}-\x{3002}]+".into(),
                    r"\s+$".into(),
                    r"[\x{4E00}-\x{9FA5}\x{800}-\x{4E00}\x{AC00}-\x{D7FF}]+".into(),
                    r"\p{N}+".into(),
                ];
            }
            Self::DeepSeekCoder => &[
                r"[\r\n]",
                r"\s?\p{L}+",
                r"\s?\p{P}+",
                r"[\x{4E00}-\x{9FA5}\x{800}-\x{4E00}\x{AC00}-\x{D7FF}]+",
                r"\p{N}",
            ],
        };
        all.iter().map(|p| (*p).to_owned()).collect()
    }

    /// The tokens that the maker adds to a vocabulary of `n` tokens.
    pub(crate) fn added_tokens(self, n: u32) -> Vec<AddedToken> {
        match self {
            Self::DeepSeekV3 | Self::DeepSeekR1 => {
                let mut all: Vec<AddedToken> = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"]
                    .iter()
                    .zip(0..)
                    .map(|(token, id)| AddedToken::new(id, *token, true))
                    .collect();
                all.extend((0..800).map(|i| AddedToken::new(n + i, format!("<｜place▁holder▁no▁{i}｜>"), true)));
                if self == Self::DeepSeekR1 {
                    all.truncate(3 + 798);
                    all.extend([(798, "<think>"), (799, "</think>")].map(|(i, t)| AddedToken::new(n + i, t, false)));
                }
                let named = [
                    "<｜fim▁hole｜>",
                    "<｜fim▁begin｜>",
                    "<｜fim▁end｜>",
                    "<｜User｜>",
                    "<｜Assistant｜>",
                    "<|EOT|>",
                    "<｜tool▁calls▁begin｜>",
                    "<｜tool▁calls▁end｜>",
                    "<｜tool▁call▁begin｜>",
                    "<｜tool▁call▁end｜>",
                    "<｜tool▁outputs▁begin｜>",
                    "<｜tool▁outputs▁end｜>",
                    "<｜tool▁output▁begin｜>",
                    "<｜tool▁output▁end｜>",
                    "<｜tool▁sep｜>",
                ];
                all.extend(named.iter().zip(n + 800..).map(|(t, id)| AddedToken::new(id, *t, *t == "<|EOT|>")));
                all
            }
            Self::Qwen2 => ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
                .iter()
                .zip(n..)
                .map(|(t, id)| AddedToken::new(id, *t, true))
                .collect(),
            Self::KimiK2 => {
                let named = [
                    (0, "[BOS]"),
                    (1, "[EOS]"),
                    (2, "<|im_end|>"),
                    (3, "<|im_user|>"),
                    (4, "<|im_assistant|>"),
                    (6, "<|start_header_id|>"),
                    (7, "<|end_header_id|>"),
                    (9, "[EOT]"),
                    (10, "<|im_system|>"),
                    (11, "<|tool_calls_section_begin|>"),
                    (12, "<|tool_calls_section_end|>"),
                    (13, "<|tool_call_begin|>"),
                    (14, "<|tool_call_argument_begin|>"),
                    (15, "<|tool_call_end|>"),
                    (17, "<|im_middle|>"),
                    (254, "[UNK]"),
                    (255, "[PAD]"),
                ];
                let name = |i| named.iter().find(|(at, _)| *at == i).map(|(_, t)| (*t).to_owned());
                (0..256)
                    .map(|i| {
                        let content = name(i).unwrap_or_else(|| format!("<|reserved_token_{}|>", n + i));
                        // Tool calls are left in decoded text, because the caller has to read them.
                        AddedToken::new(n + i, content, !(11..=15).contains(&i))
                    })
                    .collect()
            }
            Self::DeepSeekLlm | Self::DeepSeekCoder => vec![],
        }
    }
}

/// A vocabulary ready to be written as a tokenizer.json.
#[derive(Clone, Debug)]
pub struct Vocabulary {
    pub(crate) style: Style,
    /// By id, in the letters of [`byte_to_char`]. Ids of added tokens beyond the end are not in it.
    pub(crate) tokens: Vec<String>,
    /// Pairs of ids into `tokens`, the first merged first.
    pub(crate) merges: Vec<(u32, u32)>,
    /// A word that is a token becomes that token even where no merges lead to it.
    pub(crate) ignore_merges: bool,
    pub(crate) added: Vec<AddedToken>,
}

impl Vocabulary {
    /// Tokens, added ones not counted.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Merges.
    pub fn n_merges(&self) -> usize {
        self.merges.len()
    }

    /// Added tokens, ascending by id.
    pub fn added_tokens(&self) -> &[AddedToken] {
        &self.added
    }

    /// Takes these added tokens instead of the usual ones.
    ///
    /// # Errors
    /// [`TokenizerError::Format`] if an id or a text is there twice, an id belongs to another token, or is far beyond the end.
    pub fn set_added_tokens(&mut self, mut added: Vec<AddedToken>, origin: &str) -> Result<(), TokenizerError> {
        let error = |what: String| Err(TokenizerError::Format { origin: origin.to_owned(), what });
        added.sort_by_key(|t| t.id);
        let mut seen = std::collections::HashSet::new();
        for (i, token) in added.iter().enumerate() {
            if token.content.is_empty() {
                return error(format!("added token {} is empty", token.id));
            }
            if !seen.insert(token.content.as_str()) || (i > 0 && added[i - 1].id == token.id) {
                return error(format!("added token {} ({:?}) is there twice", token.id, token.content));
            }
            if token.id as usize >= MAX_TOKENS {
                return error(format!("added token {} is beyond {MAX_TOKENS}", token.id));
            }
            if self.tokens.get(token.id as usize).is_some_and(|t| *t != token.content) {
                let there = &self.tokens[token.id as usize];
                let what = format!(
                    "added token {} is {:?}, but the vocabulary has {there:?} there; is it another model's?",
                    token.id, token.content
                );
                return error(what);
            }
        }
        self.added = added;
        Ok(())
    }

    /// Takes the special tokens of a tokenizer_config.json: all of `added_tokens_decoder` if it is there; the tokens that
    /// `bos_token` and the like name become special in any case.
    ///
    /// # Errors
    /// [`TokenizerError::Format`] as [`Vocabulary::set_added_tokens`], or if a named token is not in the vocabulary.
    pub fn apply_config(&mut self, config: &str, origin: &str) -> Result<(), TokenizerError> {
        let error = |what: String| TokenizerError::Format { origin: origin.to_owned(), what };
        let config: Value = serde_json::from_str(config).map_err(|e| error(format!("not JSON: {e}")))?;
        let mut added = self.added.clone();
        if let Some(all) = config["added_tokens_decoder"].as_object() {
            added.clear();
            for (id, token) in all {
                let (Ok(id), Some(content)) = (id.parse::<u32>(), token["content"].as_str()) else {
                    return Err(error(format!("`added_tokens_decoder`: {id:?} is not an id with a `content`")));
                };
                added.push(AddedToken { id, content: content.to_owned(), special: token["special"] == true });
            }
        }
        for key in ["bos_token", "eos_token", "pad_token", "unk_token"] {
            let Some(name) = config[key].as_str().or_else(|| config[key]["content"].as_str()) else { continue };
            if let Some(token) = added.iter_mut().find(|t| t.content == name) {
                token.special = true;
            } else if let Some(id) = self.tokens.iter().position(|t| t == name) {
                added.push(AddedToken { id: id as u32, content: name.to_owned(), special: true });
            } else {
                let what = format!("`{key}` is {name:?}, which the vocabulary does not have; is it another model's?");
                return Err(error(what));
            }
        }
        self.set_added_tokens(added, origin)
    }

    /// The tokenizer.json.
    pub fn to_tokenizer_json(&self) -> Vec<u8> {
        let split = |pattern: String| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
        let mut steps: Vec<Value> = self.style.patterns().into_iter().map(split).collect();
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
        steps.push(bytes.clone());
        let normalizer = if self.style == Style::Qwen2 { json!({"type": "NFC"}) } else { Value::Null };
        let mut vocab: serde_json::Map<String, Value> =
            self.tokens.iter().zip(0u32..).map(|(t, id)| (t.clone(), id.into())).collect();
        // Added tokens get the next free ids, whatever the file says, unless they are in the vocabulary.
        let beyond = || self.added.iter().filter(|t| t.id as usize >= self.tokens.len());
        if !beyond().zip(self.tokens.len()..).all(|(t, id)| t.id as usize == id) {
            vocab.extend(beyond().map(|t| (t.content.clone(), t.id.into())));
        }
        let added: Vec<Value> = self.added.iter().map(|t| {
            json!({"id": t.id, "content": t.content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": t.special})
        }).collect();
        let merges: Vec<[&str; 2]> =
            self.merges.iter().map(|(a, b)| [&*self.tokens[*a as usize], &*self.tokens[*b as usize]]).collect();
        let json = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added,
            "normalizer": normalizer,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
            "post_processor": null,
            "decoder": bytes,
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
                "fuse_unk": false, "byte_fallback": false, "ignore_merges": self.ignore_merges, "vocab": vocab, "merges": merges,
            },
        });
        json.to_string().into_bytes()
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// [`TokenizerError::Format`] if the parser of tokenizer.json refuses it.
    pub fn to_tokenizer(&self) -> Result<Tokenizer, TokenizerError> {
        Tokenizer::from_bytes(&self.to_tokenizer_json())
    }
}

/// The printable character that stands for a byte in byte-level vocabularies (as GPT-2 defined it): printable Latin-1 stands for
/// itself, the 68 other bytes get the characters from U+0100 on, ascending.
pub(crate) fn byte_to_char(byte: u8) -> char {
    let plain = |b: u8| matches!(b, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    if plain(byte) {
        return char::from(byte);
    }
    let earlier = (0..byte).filter(|b| !plain(*b)).count() as u32;
    char::from_u32(0x100 + earlier).expect("at most U+0143")
}

/// Bytes that no UTF-8 text has, so that a vocabulary may lack them.
pub(crate) fn never_in_text(byte: u8) -> bool {
    matches!(byte, 0xC0 | 0xC1 | 0xF5..=0xFF)
}
