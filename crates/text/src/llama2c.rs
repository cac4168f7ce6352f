//! The tokenizer files of llama2.c, as a tokenizer.json.
//!
//! Source: github.com/karpathy/llama2.c, `tokenizer.py` and `run.c`. A little-endian i32, the longest token's bytes; then for each
//! token its score as f32, its length as i32, its bytes. Spaces stand as themselves; ids 0 to 2 are unknown, begin and end; 3 to
//! 258 are the bytes, for characters that have no token. Encoding puts a space before the text, then joins, again and again, the
//! two neighbours whose joined token has the highest score.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use crate::tokenizer::TokenizerError;

/// A token's text, a single sentence at most.
const MAX_TOKEN_BYTES: usize = 1000;
/// Ids of tokens that are no piece of text: 3 special ones and 256 bytes.
const PIECES: usize = 259;

/// The texts of tokenizer.json and tokenizer_config.json that encode and decode as llama2.c does.
///
/// # Errors
/// [`TokenizerError::Format`] with `origin` for anything that is no such file.
pub fn llama2c_tokenizer(bytes: &[u8], origin: &str) -> Result<(String, String), TokenizerError> {
    let tokens = read(bytes).map_err(|what| TokenizerError::Format { origin: origin.into(), what })?;
    let mut vocab = Map::new();
    for (id, token) in tokens.iter().enumerate() {
        if vocab.insert(token.text.clone(), id.into()).is_some() {
            let what = format!("token {id}, {:?}, is there twice", token.text);
            return Err(TokenizerError::Format { origin: origin.into(), what });
        }
    }
    let special: Vec<Value> = tokens[..3]
        .iter()
        .enumerate()
        .map(|(id, token)| {
            json!({
                "id": id, "content": token.text, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
                "special": true,
            })
        })
        .collect();
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": special,
        "normalizer": { "type": "Sequence", "normalizers": [
            { "type": "Prepend", "prepend": "▁" },
            { "type": "Replace", "pattern": { "String": " " }, "content": "▁" },
        ]},
        "pre_tokenizer": null,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                { "SpecialToken": { "id": tokens[1].text, "type_id": 0 } },
                { "Sequence": { "id": "A", "type_id": 0 } },
            ],
            "pair": [
                { "SpecialToken": { "id": tokens[1].text, "type_id": 0 } },
                { "Sequence": { "id": "A", "type_id": 0 } },
                { "SpecialToken": { "id": tokens[1].text, "type_id": 1 } },
                { "Sequence": { "id": "B", "type_id": 1 } },
            ],
            "special_tokens": { &tokens[1].text: { "id": tokens[1].text, "ids": [1], "tokens": [tokens[1].text] } },
        },
        "decoder": { "type": "Sequence", "decoders": [
            { "type": "Replace", "pattern": { "String": "▁" }, "content": " " },
            { "type": "ByteFallback" },
            { "type": "Fuse" },
            { "type": "Strip", "content": " ", "start": 1, "stop": 0 },
        ]},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": tokens[0].text, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocab, "merges": merges(&tokens),
        },
    });
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": true, "add_eos_token": false,
        "unk_token": tokens[0].text, "bos_token": tokens[1].text, "eos_token": tokens[2].text,
        "clean_up_tokenization_spaces": false,
    });
    let print = |value| serde_json::to_string_pretty(value).expect("JSON prints") + "\n";
    Ok((print(&tokenizer), print(&config)))
}

struct Token {
    score: f32,
    /// With `▁` for a space.
    text: String,
}

fn read(bytes: &[u8]) -> Result<Vec<Token>, String> {
    let cut = || "it is cut off".to_owned();
    let (_, mut rest) = bytes.split_first_chunk::<4>().ok_or_else(cut)?;
    let mut tokens = Vec::new();
    while !rest.is_empty() {
        let id = tokens.len();
        let (score, after) = rest.split_first_chunk::<4>().ok_or_else(cut)?;
        let (length, after) = after.split_first_chunk::<4>().ok_or_else(cut)?;
        let length = i32::from_le_bytes(*length);
        let bytes = usize::try_from(length).ok().filter(|n| *n <= MAX_TOKEN_BYTES);
        let bytes =
            bytes.ok_or_else(|| format!("token {id} has a length of {length}, expected 0 to {MAX_TOKEN_BYTES}"))?;
        let (text, after) = after.split_at_checked(bytes).ok_or_else(cut)?;
        let text = std::str::from_utf8(text).map_err(|_| format!("token {id} is not UTF-8 text"))?;
        let score = f32::from_le_bytes(*score);
        if !score.is_finite() {
            return Err(format!("token {id} has a score of {score}"));
        }
        // The begin and end of text have line breaks around them there.
        let text = if id < 3 { text.trim().to_owned() } else { text.replace(' ', "▁") };
        tokens.push(Token { score, text });
        rest = after;
    }
    if tokens.len() < PIECES {
        return Err(format!("it has {} tokens, expected 3 special ones and 256 bytes first", tokens.len()));
    }
    for byte in 0..=255_u8 {
        let (id, expected) = (usize::from(byte) + 3, format!("<0x{byte:02X}>"));
        if tokens[id].text != expected {
            return Err(format!("token {id} is {:?}, expected {expected:?}", tokens[id].text));
        }
    }
    if let Some(id) = tokens.iter().position(|t| t.text.is_empty()) {
        return Err(format!("token {id} is empty"));
    }
    Ok(tokens)
}

/// Every pair of tokens that joins to a token, best score first. Pairs that join to the same token are equally good.
fn merges(tokens: &[Token]) -> Vec<[&str; 2]> {
    let ids: HashMap<&str, usize> =
        tokens.iter().enumerate().skip(PIECES).map(|(id, token)| (token.text.as_str(), id)).collect();
    let mut pairs = Vec::new();
    for (id, token) in tokens.iter().enumerate().skip(PIECES) {
        for (at, _) in token.text.char_indices().skip(1) {
            let (left, right) = token.text.split_at(at);
            if let (Some(l), Some(r)) = (ids.get(left), ids.get(right)) {
                pairs.push((token.score, id, *l, *r, [left, right]));
            }
        }
    }
    pairs.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2, a.3).cmp(&(b.1, b.2, b.3))));
    pairs.into_iter().map(|(.., pair)| pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DecodeStream, Tokenizer};

    /// A file with these pieces after the special tokens and bytes, the first with the best score.
    fn file(pieces: &[&str]) -> Vec<u8> {
        let mut bytes = 9_i32.to_le_bytes().to_vec();
        let mut add = |score: f32, text: &str| {
            bytes.extend(score.to_le_bytes());
            bytes.extend((text.len() as i32).to_le_bytes());
            bytes.extend(text.as_bytes());
        };
        ["<unk>", "\n<s>\n", "\n</s>\n"].iter().for_each(|t| add(0.0, t));
        (0..=255).for_each(|b| add(0.0, &format!("<0x{b:02X}>")));
        pieces.iter().enumerate().for_each(|(i, t)| add(-(i as f32), t));
        bytes
    }

    const PIECES: [&str; 10] = [" a", "an", " an", "nana", "na", " ", "a", "n", "é", "x"];

    fn tokenizer() -> Tokenizer {
        let (json, config) = llama2c_tokenizer(&file(&PIECES), "file").unwrap();
        assert!(config.contains("\"add_bos_token\": true"));
        Tokenizer::from_bytes(json.as_bytes()).unwrap()
    }

    /// llama2.c's own procedure on strings: characters or bytes, then the best pair of neighbours, the first of equals.
    fn oracle(text: &str) -> Vec<u32> {
        let id = |s: &str| PIECES.iter().position(|p| *p == s).map(|i| i as u32 + 259);
        let mut ids: Vec<(u32, String)> = Vec::new();
        if !text.is_empty() {
            ids.push((id(" ").unwrap(), " ".into()));
        }
        for c in text.chars() {
            let c = c.to_string();
            match id(&c) {
                Some(i) => ids.push((i, c)),
                None => ids.extend(c.bytes().map(|b| (u32::from(b) + 3, "\0".into()))),
            }
        }
        loop {
            let joined = |i: usize| id(&format!("{}{}", ids[i].1, ids[i + 1].1));
            // The lowest id has the best score here.
            let best = (0..ids.len().saturating_sub(1)).filter_map(|i| Some((joined(i)?, i))).min();
            let Some((best, at)) = best else { return ids.into_iter().map(|(id, _)| id).collect() };
            let text = ids[at].1.clone() + &ids[at + 1].1;
            ids.splice(at..at + 2, [(best, text)]);
        }
    }

    #[test]
    fn it_encodes_as_llama2c_does_and_decodes_to_the_text() {
        let tokenizer = tokenizer();
        for text in ["", "a", "an", "banana", "nana nana", "  a n", "é😀ananas\nx", " ", "xanana anan"] {
            let ids = tokenizer.encode(text).unwrap();
            assert_eq!(ids, oracle(text), "{text:?}");
            assert_eq!(tokenizer.decode(&ids), text);
            assert_eq!(
                tokenizer.decode(&[&[1], &ids[..]].concat()),
                format!("<s>{}{text}", if text.is_empty() { "" } else { " " })
            );
            assert_eq!(tokenizer.decode_skip_special(&[&[1], &ids[..]].concat()), text);
        }
    }

    #[test]
    fn a_stream_gives_the_text_of_all_ids_and_what_follows_a_prompt_keeps_its_space() {
        let tokenizer = tokenizer();
        let joined = |mut stream: DecodeStream<'_>, ids: &[u32]| {
            let pushed: String = ids.iter().map(|id| stream.push(*id)).collect();
            pushed + &stream.finish()
        };
        for text in ["a", "an a", "nana nana", "  a n", "é😀ana  nas\nx", " "] {
            let ids = [&[1], &tokenizer.encode(text).unwrap()[..]].concat();
            assert_eq!(joined(DecodeStream::new(&tokenizer, true), &ids), text);
            assert_eq!(joined(DecodeStream::after(&tokenizer, true, &[1]), &ids[1..]), text);
        }
        let prompt = tokenizer.encode("an").unwrap();
        let next = tokenizer.encode("a n").unwrap();
        assert_eq!(joined(DecodeStream::after(&tokenizer, true, &prompt), &next), " a n");
    }

    #[test]
    fn a_token_has_the_bytes_of_its_text() {
        let tokenizer = tokenizer();
        let ids = tokenizer.encode("é😀 an").unwrap();
        assert_eq!(ids.iter().map(|id| tokenizer.byte_len(*id)).sum::<usize>(), " é😀 an".len());
        assert_eq!(tokenizer.byte_len(1), 0);
    }

    #[test]
    fn special_tokens_are_those_of_the_file() {
        let tokenizer = tokenizer();
        assert_eq!((tokenizer.id_to_token(1).as_deref(), tokenizer.token_to_id("</s>")), (Some("<s>"), Some(2)));
        assert!(tokenizer.is_special(0) && tokenizer.is_special(2) && !tokenizer.is_special(3));
        assert_eq!(tokenizer.vocab_size(), 269);
    }

    #[test]
    fn other_files_are_refused_with_the_reason() {
        let whole = file(&PIECES);
        let error = |bytes: &[u8]| llama2c_tokenizer(bytes, "file").expect_err("accepted").to_string();
        for (bytes, what) in [
            (vec![], "it is cut off"),
            (whole[..whole.len() - 1].to_vec(), "it is cut off"),
            (whole[..5].to_vec(), "it is cut off"),
            (whole[..400].to_vec(), "it is cut off"),
            (file(&["\u{0}"])[..4].to_vec(), "it has 0 tokens, expected 3 special ones and 256 bytes first"),
            (file(&["a", "a"]), "token 260, \"a\", is there twice"),
            (file(&["a", "<s>"]), "token 260, \"<s>\", is there twice"),
            (file(&["a", ""]), "token 260 is empty"),
            (file(&[&"a".repeat(1001)]), "token 259 has a length of 1001, expected 0 to 1000"),
        ] {
            assert!(error(&bytes).starts_with(&format!("file: not a tokenizer: {what}")), "{what}: {}", error(&bytes));
        }
        let mut bad = whole.clone();
        bad[8..12].copy_from_slice(&(-1_i32).to_le_bytes());
        assert!(error(&bad).contains("token 0 has a length of -1"));
        bad[8..12].copy_from_slice(&5_i32.to_le_bytes());
        bad[4..8].copy_from_slice(&f32::NAN.to_le_bytes());
        assert!(error(&bad).contains("token 0 has a score of NaN"));
        let byte = whole.windows(6).position(|w| w == b"<0x41>").unwrap();
        let mut bad = whole;
        bad[byte + 4] = b'2';
        assert!(error(&bad).contains("token 68 is \"<0x42>\", expected \"<0x41>\""));
        bad[byte + 4] = 0xFF;
        assert!(error(&bad).contains("token 68 is not UTF-8 text"));
    }

    #[test]
    fn a_file_with_any_byte_changed_or_cut_anywhere_is_an_error_or_a_tokenizer() {
        let whole = file(&PIECES);
        for at in (0..whole.len()).step_by(3) {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            for bytes in [&bytes[..], &whole[..at]] {
                if let Ok((json, _)) = llama2c_tokenizer(bytes, "file") {
                    assert!(!json.is_empty());
                }
            }
        }
    }
}
