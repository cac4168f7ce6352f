//! The data side end to end, through files: sources → documents → token files → packed batches in seeded order.

use std::{
    collections::HashMap,
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
};

use jevons_train::{
    data::{
        self, Batcher, ChatFormat, DataError, Document, Encoder, IGNORE, OpenSource, PackingSettings, Progress, Row,
        Segment, Split, TokenFile, TokenTensor, TrainData,
    },
    recipe::{AttentionSpan, Packing, Recipe, Source},
};

const BOS: u32 = 256;
const EOS: u32 = 257;
const CONTROL: u32 = 258;
const VOCAB: usize = 270;

/// One token per byte; control tokens by their place in a list.
fn encode(segment: &Segment) -> Result<Vec<u32>, Box<dyn std::error::Error + Send + Sync>> {
    let chat = ChatFormat::default();
    let names = [&chat.user, &chat.assistant, &chat.end, &chat.think[0], &chat.think[1]];
    if !segment.special {
        return Ok(segment.text.bytes().map(u32::from).collect());
    }
    let i = names.iter().position(|n| **n == segment.text).ok_or("no such token")?;
    Ok(vec![CONTROL + i as u32])
}

fn encoder() -> Encoder<'static> {
    Encoder {
        vocab_size: VOCAB,
        tokenizer_sha256: [7; 32],
        bos: Some(BOS),
        eos: Some(EOS),
        chat: ChatFormat::default(),
        encode: Box::new(encode),
    }
}

fn recipe(folder: &Path, data: &str) -> Recipe {
    let text = format!(
        "name = \"t\"\nseed = 5\n[model]\ninit = \"i\"\n[data]\n{data}\n[batch]\nsequences = 4\nmicro_batch_sequences = 2\n\
         [optimizer]\nlr = 1e-3\n[schedule]\nsteps = 10\n[run]\nfolder = \"run\"\n"
    );
    Recipe::parse(&text, folder.join("r.toml")).unwrap()
}

fn open(source: &Source, folder: &Path) -> Result<OpenSource, DataError> {
    OpenSource::open(source, &recipe(folder, "sequence_length = 8\nsources = [{ path = \"x\" }]"))
}

fn documents(source: &Source, folder: &Path) -> Result<Vec<Document>, DataError> {
    let mut all = Vec::new();
    open(source, folder)?.for_each(&ChatFormat::default(), &mut |_| {}, &mut |_, document| {
        all.push(document);
        Ok(())
    })?;
    Ok(all)
}

fn texts(source: &Source, folder: &Path) -> Result<Vec<String>, DataError> {
    let join = |d: Document| d.segments.into_iter().map(|s| s.text).collect();
    Ok(documents(source, folder)?.into_iter().map(join).collect())
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut out = lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::with_preset(1)).unwrap();
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

fn token_file(folder: &Path, name: &str, text: &[u8], source: impl FnOnce(Source) -> Source) -> Arc<TokenFile> {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    let source = open(&source(Source::files(&path)), folder).unwrap();
    Arc::new(TokenFile::build_or_open(&folder.join("cache"), &source, &encoder(), &mut |_| {}).unwrap())
}

/// `n` documents of 1 to 40 letters, no two alike.
fn many(n: usize) -> String {
    (0..n).map(|i| format!("{{\"text\": \"{i}{}\"}}\n", "x".repeat(i * 7 % 37))).collect()
}

// ---- sources ----------------------------------------------------------------------------------------------------

#[test]
fn plain_gzip_and_xz_files_give_the_same_documents() {
    let dir = tempfile::tempdir().unwrap();
    let text = "first\nstory\n---\nzweite Geschichte, größer\n---\n\n---\nthird".as_bytes();
    // Both formats allow files laid end to end.
    let (a, b) = text.split_at(20);
    for (name, bytes) in [
        ("a.txt", text.to_vec()),
        ("a.txt.gz", gz(text)),
        ("a.txt.xz", xz(text)),
        ("two.txt.gz", [gz(a), gz(b)].concat()),
        ("two.txt.xz", [xz(a), xz(b)].concat()),
        ("unnamed", gz(text)),
    ] {
        std::fs::write(dir.path().join(name), bytes).unwrap();
        let source = Source { separator: Some("---".into()), ..Source::files(name) };
        let want = ["first\nstory\n", "zweite Geschichte, größer\n", "third"];
        assert_eq!(texts(&source, dir.path()).unwrap(), want, "{name}");
    }
}

#[test]
fn a_damaged_or_misnamed_file_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let text: Vec<u8> =
        (0..40_000u32).flat_map(|i| (i.wrapping_mul(2_654_435_761) >> 7).to_string().into_bytes()).collect();
    for (name, whole) in [("a.txt.gz", gz(&text)), ("a.txt.xz", xz(&text))] {
        let path = dir.path().join(name);
        let message = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            documents(&Source::files(&path), dir.path()).unwrap_err().to_string()
        };
        for cut in [whole.len() - 1, whole.len() / 2, 20] {
            let message = message(&whole[..cut]);
            assert!(message.contains(name) && message.contains("damaged or cut short"), "{cut}: {message}");
        }
        // A flipped bit may show as wrong text before the checksum tells.
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 0x10;
        let message_flipped = message(&flipped);
        assert!(
            ["damaged or cut short", "is not UTF-8"].iter().any(|m| message_flipped.contains(m)),
            "{message_flipped}"
        );
        assert!(message(&text).contains("but not in"), "{name}");
    }
}

#[test]
fn a_file_that_unpacks_without_end_is_stopped() {
    let dir = tempfile::tempdir().unwrap();
    // 80 MiB of one letter in less than 16 KB: more than a thousand times its size and above the free 64 MiB.
    let bomb = xz(&vec![b'a'; 4 << 20]).repeat(20);
    assert!(bomb.len() * 1000 + (64 << 20) < 80 << 20, "{}", bomb.len());
    std::fs::write(dir.path().join("bomb.txt.xz"), bomb).unwrap();
    let message = documents(&Source::files("bomb.txt.xz"), dir.path()).unwrap_err().to_string();
    assert!(message.contains("more than a thousand times its size"), "{message}");
}

#[test]
fn invalid_utf8_is_named_by_its_byte() {
    let dir = tempfile::tempdir().unwrap();
    let mut text = "ä".repeat(5000).into_bytes();
    text[7000] = 0xff;
    for (name, bytes) in [("a.txt", text.clone()), ("a.txt.gz", gz(&text))] {
        std::fs::write(dir.path().join(name), bytes).unwrap();
        let source = Source { document_bytes: 256, ..Source::files(name) };
        match documents(&source, dir.path()).unwrap_err() {
            DataError::NotUtf8 { byte, .. } => assert_eq!(byte, 7000),
            other => panic!("{other}"),
        }
    }
    std::fs::write(dir.path().join("end.txt"), b"abc\nx\xc3").unwrap();
    let message = documents(&Source::files("end.txt"), dir.path()).unwrap_err().to_string();
    assert!(message.contains("end.txt: byte 5 is not UTF-8"), "{message}");
    std::fs::write(dir.path().join("l.jsonl"), b"{\"text\": \"a\"}\n{\"text\": \"\xff\"}\n").unwrap();
    let message = documents(&Source::files("l.jsonl"), dir.path()).unwrap_err().to_string();
    assert!(message.contains("l.jsonl: byte 24 is not UTF-8"), "{message}");
}

#[test]
fn the_pieces_of_a_long_text_are_the_text_and_only_the_last_ends() {
    let dir = tempfile::tempdir().unwrap();
    let paragraph = "Es war einmal ein König — und so weiter.\n".repeat(3) + "\n";
    let inputs = [
        ("paragraphs", paragraph.repeat(40)),
        ("lines", "eine Zeile\n".repeat(700)),
        ("one line", "日本語の文章".repeat(900)),
        ("short", "short".into()),
    ];
    for (name, text) in inputs {
        std::fs::write(dir.path().join(name), &text).unwrap();
        let source = Source { document_bytes: 1000, ..Source::files(name) };
        let pieces = documents(&source, dir.path()).unwrap();
        let ends: Vec<bool> = pieces.iter().map(|p| p.ends).collect();
        assert!(ends.iter().rev().skip(1).all(|e| !e) && ends.last() == Some(&true), "{name} {ends:?}");
        let longest = pieces.iter().map(Document::bytes).max().unwrap();
        assert!(longest < 8000, "{name}: {longest}");
        assert_eq!(pieces.len() > 3, name != "short", "{name}");
        if name == "paragraphs" {
            assert!(pieces[..pieces.len() - 1].iter().all(|p| p.segments[0].text.ends_with("\n\n")));
        }
        let joined: String = pieces.into_iter().flat_map(|p| p.segments).map(|s| s.text).collect();
        assert_eq!(joined, text, "{name}");
    }
}

#[test]
fn folders_and_patterns_find_their_files_in_order() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["d/b.txt", "d/a.txt.gz", "d/sub/c.jsonl", "d/README.md", "d/.hidden.txt", "d/sub/e.txt"] {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let text = format!("{{\"text\": \"{name}\"}}");
        std::fs::write(&path, if name.ends_with("gz") { gz(text.as_bytes()) } else { text.into_bytes() }).unwrap();
    }
    let found = |path: &str| {
        let all = texts(&Source { format: jevons_train::recipe::Format::Jsonl, ..Source::files(path) }, dir.path());
        all.map_err(|e| e.to_string())
    };
    assert_eq!(found("d").unwrap(), ["d/a.txt.gz", "d/b.txt", "d/sub/c.jsonl", "d/sub/e.txt"]);
    assert_eq!(found("d/*.txt").unwrap(), ["d/b.txt"]);
    assert_eq!(found("d/**.txt").unwrap(), ["d/b.txt", "d/sub/e.txt"]);
    assert_eq!(found("*/sub/?.*").unwrap(), ["d/sub/c.jsonl", "d/sub/e.txt"]);
    assert!(found("d/*.csv").unwrap_err().contains("d/*.csv: no such file; expected a file, a folder"));
    assert!(found("nothing.txt").unwrap_err().contains("nothing.txt: no such file"));
}

#[test]
fn conversations_become_segments_with_control_tokens_and_masks() {
    let dir = tempfile::tempdir().unwrap();
    let line = r#"{"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "1+1? <think>"},
        {"role": "assistant", "content": "<think>\n2\n</think>\n\n2"}, {"role": "user", "content": "why"}, {"role": "assistant", "content": "so"}]}"#
        .replace('\n', " ");
    std::fs::write(dir.path().join("m.jsonl"), line).unwrap();
    let replies = Source { train_on: jevons_train::recipe::TrainOn::Replies, ..Source::files("m.jsonl") };
    let got = documents(&replies, dir.path()).unwrap();
    let shown: Vec<_> = got[0].segments.iter().map(|s| (s.text.as_str(), s.special, s.train)).collect();
    let want = [
        ("S", false, false),
        ("<｜User｜>", true, false),
        ("1+1? <think>", false, false),
        ("<｜Assistant｜>", true, false),
        ("<think>", true, true),
        ("\n2\n", false, true),
        ("</think>", true, true),
        ("\n\n2", false, true),
        ("<｜end▁of▁sentence｜>", true, true),
        ("<｜User｜>", true, false),
        ("why", false, false),
        ("<｜Assistant｜>", true, false),
        ("so", false, true),
    ];
    // A control token is learnt in replies only: that the assistant begins to speak is the template's doing.
    assert_eq!(shown, want);
    let all = documents(&Source::files("m.jsonl"), dir.path()).unwrap();
    assert!(all[0].segments.iter().all(|s| s.train == (s.text != "<｜Assistant｜>") || s.train));
}

#[test]
fn gsm8k_becomes_question_thinking_answer() {
    let dir = tempfile::tempdir().unwrap();
    let line = r#"{"question": "How many?", "answer": "48/2 = <<48/2=24>>24 clips.\n#### 24"}"#;
    std::fs::write(dir.path().join("g.jsonl"), line).unwrap();
    let source = Source {
        prompt: Some("{question}".into()),
        completion: Some("<think>\n{answer|before:####}\n</think>\n\n{answer|after:####}".into()),
        remove: vec![["<<".into(), ">>".into()]],
        ..Source::files("g.jsonl")
    };
    let want = "<｜User｜>How many?<｜Assistant｜><think>\n48/2 = 24 clips.\n</think>\n\n24";
    assert_eq!(texts(&source, dir.path()).unwrap(), [want]);
}

#[test]
fn a_bad_line_is_named_by_file_and_line() {
    let dir = tempfile::tempdir().unwrap();
    let cases = [
        ("{\"text\": 1", "b.jsonl:3: not a JSON object"),
        ("[1]", "b.jsonl:3: not a JSON object"),
        ("{\"txt\": \"a\"}", "b.jsonl:3: there is no field `text`; did you mean `txt`?"),
        ("{\"text\": null}", "b.jsonl:3: the field `text` is null; expected text"),
        ("{\"messages\": []}", "b.jsonl:3: the conversation does not end with the assistant"),
        ("{\"messages\": 1}", "b.jsonl:3: the field `messages` is a number; expected a list"),
        (
            "{\"messages\": [{\"role\": \"tool\", \"content\": \"\"}]}",
            "has the role \"tool\"; expected system, user or assistant",
        ),
    ];
    for (line, want) in cases {
        std::fs::write(dir.path().join("b.jsonl"), format!("{{\"text\": \"fine\"}}\n\n{line}\n")).unwrap();
        let message = documents(&Source::files("b.jsonl"), dir.path()).unwrap_err().to_string();
        assert!(message.contains(want), "{message}");
    }
    let bad = Source { template: Some("{a".into()), ..Source::files("b.jsonl") };
    assert!(open(&bad, dir.path()).unwrap_err().to_string().contains("template \"{a\": a `{` without `}`"));
}

// ---- token files ------------------------------------------------------------------------------------------------

#[test]
fn a_token_file_holds_the_tokens_and_targets_of_every_document() {
    let dir = tempfile::tempdir().unwrap();
    let lines = "{\"prompt\": \"ab\", \"completion\": \"c\"}\n{\"prompt\": \"d\", \"completion\": \"<think>e\"}\n";
    let replies = |s: Source| Source { train_on: jevons_train::recipe::TrainOn::Replies, ..s };
    let file = token_file(dir.path(), "a.jsonl", lines.as_bytes(), replies);
    let ids: Vec<u32> = file.ids(0, file.tokens()).collect();
    let (user, assistant, think) = (CONTROL, CONTROL + 1, CONTROL + 3);
    assert_eq!(ids, [BOS, user, 97, 98, assistant, 99, EOS, BOS, user, 100, assistant, think, 101, EOS]);
    let targets: Vec<usize> = (0..14).filter(|t| file.is_target(*t)).collect();
    assert_eq!(targets, [5, 6, 11, 12, 13]);
    assert_eq!((file.documents(), file.range(0), file.range(1)), (2, 0..7, 7..14));
    assert_eq!([file.learnt_bytes(0), file.learnt_bytes(1)], [1, 1]);
}

#[test]
fn a_token_file_is_made_once_and_again_only_for_other_content_or_tokenizer() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.txt");
    let cache = dir.path().join("cache");
    std::fs::write(&path, "hello").unwrap();
    let mut made = 0;
    let mut build = |source: &Source, encoder: &Encoder| {
        let source = open(source, dir.path()).unwrap();
        let file = TokenFile::build_or_open(&cache, &source, encoder, &mut |_: Progress| made += 1).unwrap();
        (file.path().to_path_buf(), std::mem::take(&mut made) > 0)
    };
    let source = Source::files("a.txt");
    let (first, new) = build(&source, &encoder());
    assert!(new);
    assert_eq!(build(&source, &encoder()), (first.clone(), false));
    // Neither its weight nor its place changes the tokens.
    std::fs::write(dir.path().join("b.txt"), "hello").unwrap();
    assert_eq!(build(&Source { repeat: 2.5, ..Source::files("b.txt") }, &encoder()), (first.clone(), false));
    let others = [
        Encoder { tokenizer_sha256: [8; 32], ..encoder() },
        Encoder { bos: None, ..encoder() },
        Encoder { vocab_size: VOCAB + 1, ..encoder() },
    ];
    for other in &others {
        let (path, new) = build(&source, other);
        assert!(new && path != first);
    }
    std::fs::write(&path, "hellp").unwrap();
    assert!(build(&source, &encoder()).1);
    // A damaged one is made again.
    std::fs::write(&path, "hello").unwrap();
    std::fs::write(&first, b"jevonsTK garbage").unwrap();
    assert_eq!(build(&source, &encoder()), (first.clone(), true));
    assert!(TokenFile::open(&first).is_ok());
}

#[test]
fn large_vocabularies_take_four_bytes_per_id() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.txt"), "ab").unwrap();
    let source = open(&Source::files("a.txt"), dir.path()).unwrap();
    let wide = Encoder {
        vocab_size: 1 << 17,
        encode: Box::new(|s: &Segment| Ok(s.text.bytes().map(|b| 100_000 + u32::from(b)).collect())),
        ..encoder()
    };
    let file = TokenFile::build_or_open(dir.path(), &source, &wide, &mut |_| {}).unwrap();
    assert_eq!(file.ids(0, 4).collect::<Vec<_>>(), [BOS, 100_097, 100_098, EOS]);
}

#[test]
fn every_damage_to_a_token_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = token_file(dir.path(), "a.jsonl", many(20).as_bytes(), |s| s);
    let whole = std::fs::read(file.path()).unwrap();
    let path = dir.path().join("damaged");
    let open = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        TokenFile::open(&path)
    };
    assert!(open(&whole).is_ok());
    for i in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[i] ^= 1 << (i % 8);
        assert!(open(&bytes).is_err(), "byte {i}");
        assert!(open(&whole[..i]).is_err(), "cut at {i}");
    }
    assert!(open(&[&whole[..], b"x"].concat()).is_err());
}

#[test]
fn a_forged_token_file_with_a_right_checksum_is_refused_too() {
    use sha2::{Digest, Sha256};
    let dir = tempfile::tempdir().unwrap();
    let file = token_file(dir.path(), "a.jsonl", many(3).as_bytes(), |s| s);
    let whole = std::fs::read(file.path()).unwrap();
    let n = whole.len();
    let foot = n - 96;
    let entries = foot - 3 * 24;
    let forge = |at: usize, value: u64, bytes: usize| {
        let mut forged = whole.clone();
        forged[at..at + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
        let sha = Sha256::digest(&forged[..n - 32]);
        forged[n - 32..].copy_from_slice(&sha);
        let path = dir.path().join("forged");
        std::fs::write(&path, forged).unwrap();
        TokenFile::open(&path).unwrap_err().to_string()
    };
    let cases = [
        (foot, 2, 4, "version 2"),
        (foot + 4, 3, 4, "3 bytes per id"),
        (foot + 8, 0, 8, "a vocabulary of 0"),
        (foot + 8, 257, 8, "token id 257; its vocabulary has 257"),
        (foot + 16, u64::MAX, 8, "more than there can be"),
        (foot + 16, u64::MAX / 24 + 1, 8, "more than there can be"),
        (foot + 24, u64::MAX / 2 + 1, 8, "more than there can be"),
        (foot + 24, 1, 8, "its last lines ask"),
        (entries, u64::MAX, 8, "do not add up"),
        (entries + 48, 1, 8, "do not add up"),
        (8, 999, 2, "token id 999"),
    ];
    for (at, value, bytes, want) in cases {
        let message = forge(at, value, bytes);
        assert!(message.contains(want), "{want}: {message}");
    }
}

#[test]
fn what_the_tokenizer_refuses_is_an_error_with_the_place_and_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.jsonl"), "{\"text\": \"a\"}\n{\"text\": \"b\"}\n").unwrap();
    let source = open(&Source::files("a.jsonl"), dir.path()).unwrap();
    let cache = dir.path().join("cache");
    let refusing: [(Box<data::Encode>, &str); 2] = [
        (
            Box::new(|s: &Segment| if s.text == "b" { Err("no b".into()) } else { Ok(vec![1]) }),
            "a.jsonl:2: cannot be turned into tokens: no b",
        ),
        (
            Box::new(|_: &Segment| Ok(vec![VOCAB as u32])),
            "a.jsonl:1: cannot be turned into tokens: token id 270; the vocabulary has 270",
        ),
    ];
    for (encode, want) in refusing {
        let bad = Encoder { encode, ..encoder() };
        let message = TokenFile::build_or_open(&cache, &source, &bad, &mut |_| {}).unwrap_err().to_string();
        assert!(message.contains(want), "{message}");
        assert_eq!(std::fs::read_dir(&cache).unwrap().count(), 0);
    }
}

// ---- batches ----------------------------------------------------------------------------------------------------

fn settings(packing: Packing, attention: AttentionSpan) -> PackingSettings {
    PackingSettings { sequence_length: 32, packing, attention, seed: 9 }
}

const KINDS: [(Packing, AttentionSpan); 4] = [
    (Packing::Continuous, AttentionSpan::Document),
    (Packing::Continuous, AttentionSpan::Sequence),
    (Packing::Whole, AttentionSpan::Document),
    (Packing::Whole, AttentionSpan::Sequence),
];

/// Each (token, target) that a document alone would give, counted.
fn expected_pairs(file: &TokenFile) -> HashMap<(u32, u32), usize> {
    let mut pairs = HashMap::new();
    for d in 0..file.documents() {
        let range = file.range(d);
        let ids: Vec<u32> = file.ids(range.start, range.end).collect();
        for (i, pair) in ids.windows(2).enumerate() {
            if file.is_target(range.start + i + 1) {
                *pairs.entry((pair[0], pair[1])).or_insert(0) += 1;
            }
        }
    }
    pairs
}

fn found_pairs(rows: impl Iterator<Item = Row>) -> HashMap<(u32, u32), usize> {
    let mut pairs = HashMap::new();
    for row in rows {
        assert_eq!(row.tokens.len(), row.targets.len());
        assert_eq!(row.lengths.iter().sum::<usize>(), row.tokens.len());
        assert!(row.tokens.len() <= 32 && !row.tokens.is_empty() && row.lengths.iter().all(|n| *n > 0));
        for (token, target) in row.tokens.iter().zip(&row.targets).filter(|(_, target)| **target != IGNORE) {
            *pairs.entry((*token, *target)).or_insert(0) += 1;
        }
    }
    pairs
}

#[test]
fn an_epoch_has_every_target_exactly_once_however_it_is_packed() {
    let dir = tempfile::tempdir().unwrap();
    let file = token_file(dir.path(), "a.jsonl", many(211).as_bytes(), |s| s);
    for (packing, attention) in KINDS {
        let batcher = Batcher::new(&[(file.clone(), 1.0)], Split::All, settings(packing, attention)).unwrap();
        let rows = (0..batcher.rows()).map(|i| batcher.row(i));
        assert_eq!(found_pairs(rows), expected_pairs(&file), "{packing:?} {attention:?}");
    }
}

#[test]
fn an_epoch_of_batches_has_every_row_once_and_the_next_epoch_in_another_order() {
    let dir = tempfile::tempdir().unwrap();
    let file = token_file(dir.path(), "a.jsonl", many(211).as_bytes(), |s| s);
    for (packing, attention) in KINDS {
        let batcher = Batcher::new(&[(file.clone(), 1.0)], Split::All, settings(packing, attention)).unwrap();
        let n = batcher.rows() as usize;
        let mut packed: Vec<Row> = (0..n as u64).map(|i| batcher.row(i)).collect();
        // 3 does not divide the rows: epochs end within a step.
        let stream: Vec<Row> = (0..n as u64).flat_map(|step| batcher.batch(step, 3)).collect();
        let by_tokens = |a: &Row, b: &Row| (&a.tokens, &a.targets).cmp(&(&b.tokens, &b.targets));
        packed.sort_by(by_tokens);
        for epoch in stream.chunks_exact(n) {
            let mut epoch = epoch.to_vec();
            epoch.sort_by(by_tokens);
            assert_eq!(epoch, packed);
        }
        assert_ne!(stream[..n], stream[n..2 * n]);
        assert_eq!((batcher.epoch(0, 3), batcher.epoch(n as u64, 3)), (0, 3));
    }
}

#[test]
fn a_batch_depends_on_seed_and_step_and_on_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let file = token_file(dir.path(), "a.jsonl", many(211).as_bytes(), |s| s);
    let make = |seed| {
        let settings = PackingSettings { seed, ..settings(Packing::Continuous, AttentionSpan::Document) };
        Batcher::new(&[(file.clone(), 1.0)], Split::All, settings).unwrap()
    };
    let (a, b, other) = (make(9), make(9), make(10));
    let run: Vec<_> = (0..60).map(|step| a.batch(step, 4)).collect();
    assert_eq!(b.batch(57, 4), run[57]);
    assert_eq!(b.batch(3, 4), run[3]);
    assert_ne!(other.batch(3, 4), run[3]);
    // The size of a batch cuts the same stream elsewhere.
    assert_eq!(a.batch(0, 8), [run[0].clone(), run[1].clone()].concat());
}

#[test]
fn attention_within_documents_sees_each_document_from_its_first_token() {
    let dir = tempfile::tempdir().unwrap();
    let file = token_file(dir.path(), "a.jsonl", many(211).as_bytes(), |s| s);
    for packing in [Packing::Continuous, Packing::Whole] {
        let batcher =
            Batcher::new(&[(file.clone(), 1.0)], Split::All, settings(packing, AttentionSpan::Document)).unwrap();
        let mut cut = 0;
        for i in 0..batcher.rows() {
            let row = batcher.row(i);
            let mut start = 0;
            for (k, n) in row.lengths.iter().enumerate() {
                let whole = row.tokens[start] == BOS;
                assert!(
                    whole || k == 0 || packing == Packing::Whole,
                    "only a row's first sequence may go on from before"
                );
                assert!(row.tokens[start + 1..start + n].iter().all(|t| *t != BOS));
                cut += usize::from(!whole);
                start += n;
            }
        }
        // Of whole documents only those are cut that are longer than a row: each once, as the longest have 42 tokens.
        let long = (0..file.documents()).filter(|d| file.range(*d).len() - 1 > 32).count();
        match packing {
            Packing::Continuous => assert!(cut > long, "{cut}"),
            Packing::Whole => assert_eq!(cut, long),
        }
    }
}

#[test]
fn without_a_begin_token_the_next_document_is_predicted_only_where_it_may_be_seen() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.jsonl"), "{\"text\": \"ab\"}\n{\"text\": \"cd\"}\n").unwrap();
    let source = open(&Source::files("a.jsonl"), dir.path()).unwrap();
    let bare = Encoder { bos: None, eos: None, ..encoder() };
    let file = Arc::new(TokenFile::build_or_open(dir.path(), &source, &bare, &mut |_| {}).unwrap());
    let row = |attention| {
        Batcher::new(&[(file.clone(), 1.0)], Split::All, settings(Packing::Continuous, attention)).unwrap().row(0)
    };
    let (alone, together) = (row(AttentionSpan::Document), row(AttentionSpan::Sequence));
    assert_eq!(alone.tokens, together.tokens);
    assert_eq!((alone.lengths, together.lengths), (vec![2, 1], vec![3]));
    assert_eq!(together.targets[1], together.tokens[2]);
    assert_eq!(alone.targets[1], IGNORE);
    assert_eq!([alone.targets[0], alone.targets[2]], [together.targets[0], together.targets[2]]);
}

#[test]
fn whole_packing_fills_rows_well() {
    let dir = tempfile::tempdir().unwrap();
    let file = token_file(dir.path(), "a.jsonl", many(2000).as_bytes(), |s| s);
    let batcher =
        Batcher::new(&[(file.clone(), 1.0)], Split::All, settings(Packing::Whole, AttentionSpan::Document)).unwrap();
    let inputs = file.tokens() - file.documents();
    let filled = inputs as f64 / (batcher.rows() * 32) as f64;
    assert!(filled > 0.9, "{filled}"); // Measured 0.98.
}

#[test]
fn the_two_sides_of_a_split_are_disjoint_and_complete_and_follow_the_text() {
    let dir = tempfile::tempdir().unwrap();
    let file = token_file(dir.path(), "a.jsonl", many(2000).as_bytes(), |s| s);
    let doubled = token_file(dir.path(), "b.jsonl", many(2000).repeat(2).as_bytes(), |s| s);
    let side = |file: &Arc<TokenFile>, split| {
        let batcher =
            Batcher::new(&[(file.clone(), 1.0)], split, settings(Packing::Whole, AttentionSpan::Document)).unwrap();
        found_pairs((0..batcher.rows()).map(|i| batcher.row(i)))
    };
    let (train, heldout, all) =
        (side(&file, Split::Train(0.1)), side(&file, Split::Heldout(0.1)), side(&file, Split::All));
    let mut sum = train.clone();
    heldout.iter().for_each(|(pair, n)| *sum.entry(*pair).or_insert(0) += n);
    assert_eq!(sum, all);
    let out = heldout[&(BOS, u32::from(b'1'))] as f64 / all[&(BOS, u32::from(b'1'))] as f64;
    assert!((0.07..0.13).contains(&out), "{out}"); // About 1,100 documents: standard deviation 0.9 %.
    // The same text twice is on the same side both times.
    let twice: HashMap<_, _> = heldout.iter().map(|(pair, n)| (*pair, 2 * n)).collect();
    assert_eq!(side(&doubled, Split::Heldout(0.1)), twice);
}

#[test]
fn repeat_takes_documents_that_often_and_a_fraction_of_them_for_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let file = token_file(dir.path(), "a.jsonl", many(2000).as_bytes(), |s| s);
    let other = token_file(dir.path(), "b.jsonl", b"{\"text\": \"~~\"}\n", |s| s);
    let count = |repeat| {
        let files = [(file.clone(), repeat), (other.clone(), 3.0)];
        let batcher = Batcher::new(&files, Split::All, settings(Packing::Whole, AttentionSpan::Document)).unwrap();
        let pairs = found_pairs((0..batcher.rows()).map(|i| batcher.row(i)));
        assert_eq!(pairs[&(u32::from(b'~'), u32::from(b'~'))], 3);
        pairs.iter().filter(|((token, _), _)| *token == BOS).map(|(_, n)| *n).sum::<usize>() - 3
    };
    assert_eq!([count(1.0), count(2.0)], [2000, 4000]);
    let half = count(0.5);
    assert!((888..1112).contains(&half), "{half}"); // Standard deviation 22; five of them.
    let more = count(1.5);
    assert_eq!(more, 2000 + half);
}

#[test]
fn bytes_per_target_are_text_bytes_over_learnt_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let lines = "{\"prompt\": \"abcdefgh\", \"completion\": \"xyz\"}\n";
    let replies = |s: Source| Source { train_on: jevons_train::recipe::TrainOn::Replies, ..s };
    let file = token_file(dir.path(), "a.jsonl", lines.as_bytes(), replies);
    let batcher = Batcher::new(&[(file, 2.0)], Split::All, settings(Packing::Whole, AttentionSpan::Document)).unwrap();
    // "xyz" and the end token.
    assert_eq!(batcher.bytes_per_target(), 3.0 / 4.0);
}

#[test]
fn data_without_a_target_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let file = token_file(dir.path(), "a.jsonl", many(3).as_bytes(), |s| s);
    let make = |split| Batcher::new(&[(file.clone(), 1.0)], split, settings(Packing::Whole, AttentionSpan::Document));
    let message = make(Split::Heldout(1e-12)).unwrap_err().to_string();
    assert!(message.starts_with("the held-out data is without a single token"), "{message}");
    assert!(make(Split::Train(1.0)).is_err());
}

// ---- ready batches and a whole recipe ---------------------------------------------------------------------------

fn tensor_file(folder: &Path, dtype: safetensors::Dtype, shape: Vec<usize>, ids: &[i64]) -> PathBuf {
    let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    let view = safetensors::tensor::TensorView::new(dtype, shape, &bytes).unwrap();
    let path = folder.join("batches.safetensors");
    // A second tensor before it, so that the data does not begin where the file's does.
    let other = safetensors::tensor::TensorView::new(safetensors::Dtype::F64, vec![1], &[0; 8]).unwrap();
    let file = safetensors::serialize([("a", other), ("tokens", view)], None).unwrap();
    std::fs::write(&path, file).unwrap();
    path
}

#[test]
fn ready_batches_come_in_exactly_their_order() {
    let dir = tempfile::tempdir().unwrap();
    let ids: Vec<i64> = (0..2 * 3 * 5).collect();
    let path = tensor_file(dir.path(), safetensors::Dtype::I64, vec![2, 3, 5], &ids);
    let tensor = TokenTensor::open(&path, "tokens", 2, [3, 4], 30).unwrap();
    let rows = tensor.batch(1);
    assert_eq!(rows[2], Row { tokens: vec![25, 26, 27, 28], targets: vec![26, 27, 28, 29], lengths: vec![4] });
    assert_eq!((rows.len(), tensor.batch(0)[0].tokens[0]), (3, 0));
    let cases = [
        (("tokens", 3, [3, 4], 30), "2 steps of tokens; schedule.steps asks 3"),
        (
            ("tokens", 2, [3, 5], 30),
            "has the shape [2, 3, 5]; batch.sequences and data.sequence_length ask [steps, 3, 6]",
        ),
        (("tokens", 2, [4, 4], 30), "ask [steps, 4, 5]"),
        (("tokens", 2, [3, 4], 29), "token id 29 at [1, 2, 4]; the model's vocabulary has 29"),
        (("token", 2, [3, 4], 30), "no tensor \"token\"; it has a, tokens"),
        (("a", 2, [3, 4], 30), "the tensor \"a\" is F64; expected I64"),
    ];
    for ((name, steps, shape, vocab), want) in cases {
        let message = TokenTensor::open(&path, name, steps, shape, vocab).unwrap_err().to_string();
        assert!(message.contains(want), "{message}");
    }
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    let message = TokenTensor::open(&path, "tokens", 2, [3, 4], 30).unwrap_err().to_string();
    assert!(message.contains("batches.safetensors: not a usable safetensors file"), "{message}");
    let path = tensor_file(dir.path(), safetensors::Dtype::I64, vec![1, 1, 2], &[3, -1]);
    assert!(
        TokenTensor::open(&path, "tokens", 1, [1, 1], 30).unwrap_err().to_string().contains("token id -1 at [0, 0, 1]")
    );
    let path = tensor_file(dir.path(), safetensors::Dtype::I64, vec![2, 3], &[0; 6]);
    let message = TokenTensor::open(&path, "tokens", 1, [1, 1], 30).unwrap_err().to_string();
    assert!(message.contains("the shape [2, 3]; expected [steps, batch, sequence_length + 1]"), "{message}");
}

#[test]
fn a_recipe_with_files_and_generators_gives_training_and_held_out_data() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("t.jsonl"), many(300)).unwrap();
    let text = "sequence_length = 64\npacking = \"whole\"\nheldout_fraction = 0.1\n\
                sources = [{ path = \"t.jsonl\" }, { generator = \"arithmetic\", count = 200 }, { generator = \"identity\", count = 50 }]";
    let recipe = recipe(dir.path(), text);
    let mut progress = Vec::new();
    let data = data::prepare(&recipe, &encoder(), &mut |p| progress.push(p)).unwrap();
    assert!(progress.iter().all(|p| p.done <= p.total) && progress.iter().any(|p| p.done == 200));
    assert_eq!(std::fs::read_dir(dir.path().join("run/data")).unwrap().count(), 3);
    let step = data.train.batch(7);
    assert_eq!(step.len(), 4);
    let again = data::prepare(&recipe, &encoder(), &mut |_| panic!("made again")).unwrap();
    assert_eq!(again.train.batch(7), step);
    let heldout = data.heldout.unwrap();
    assert_eq!(heldout.sample(3), again.heldout.unwrap().sample(3));
    assert!(heldout.sample(usize::MAX).len() as u64 == heldout.rows());
    let TrainData::Packed(train, 4) = &data.train else { panic!("packed rows, 4 per step") };
    // Documents shorter than a row are never on both sides.
    let sequences = |b: &Batcher| {
        let rows = (0..b.rows()).map(|i| b.row(i));
        rows.flat_map(|r| {
            let mut rest = &r.tokens[..];
            r.lengths
                .iter()
                .map(|n| {
                    let (a, b) = rest.split_at(*n);
                    rest = b;
                    a.to_vec()
                })
                .collect::<Vec<_>>()
        })
        .filter(|s| s[0] == BOS && s.len() < 64)
        .collect::<std::collections::HashSet<_>>()
    };
    let (a, b) = (sequences(train), sequences(&heldout));
    assert!(!a.is_empty() && !b.is_empty() && a.is_disjoint(&b));
}

#[test]
fn the_sample_for_a_tokenizer_is_about_as_large_as_asked_and_leaves_held_out_text_alone() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("t.jsonl"), many(3000)).unwrap();
    std::fs::write(dir.path().join("u.jsonl"), many(3000).replace("x\"}", "y\"}")).unwrap();
    let text = "sequence_length = 64\nheldout_fraction = 0.2\nsources = [{ path = \"t.jsonl\", repeat = 3 }, { path = \"u.jsonl\" }]";
    let recipe = recipe(dir.path(), text);
    let sample = |bytes| data::sample_texts(&recipe, &ChatFormat::default(), bytes).unwrap();
    let some = sample(20_000);
    assert_eq!(some, sample(20_000));
    let size = |letter: char| some.iter().filter(|t| t.ends_with(letter)).map(String::len).sum::<usize>();
    // Three quarters from the source that is repeated three times, to a document; those without such a letter are short.
    assert!(
        (14_000..15_050).contains(&size('x')) && (4_600..5_050).contains(&size('y')),
        "{} {}",
        size('x'),
        size('y')
    );
    let all = sample(1 << 30);
    assert!(all.iter().all(|t| !Split::Heldout(0.2).has(Document::text(t.as_str()).content_hash())));
    assert!(all.len() > 4600 && all.len() < 5000, "{}", all.len()); // 80 % of 6,000, standard deviation 31.
}
