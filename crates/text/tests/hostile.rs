//! Templates, vocabularies and tokenizers from strangers: never a panic, bounded time and memory.

use std::{
    sync::OnceLock,
    time::{Duration, Instant},
};

use jevons_text::{ChatTemplate, Message, RenderOptions, Style, TemplateError, Tokenizer, Vocabulary};
use proptest::prelude::*;

/// The most memory that this process may hold at any time, all tests of this file together. One rendering holds 64 MiB and what
/// is not counted, and tests run side by side. (Measured: 106 MB for the templates alone, 90 MB for the most of the others.)
const MOST: u64 = 400 << 20;

fn assert_little_memory(after: &str) {
    if let Some(peak) = jevons_sys::peak_rss_bytes() {
        assert!(peak < MOST, "{after}\n{peak} bytes at most");
    }
}

fn render(source: &str) -> Result<usize, TemplateError> {
    let template = ChatTemplate::new(source, "<B>".into(), "<E>".into())?;
    template.render(&[Message::new("user", "hi")], &RenderOptions::default()).map(|p| p.as_str().len())
}

#[test]
fn templates_that_swell_or_loop_are_stopped_soon_with_little_memory() {
    let many = |body: &str| {
        format!(
            "{{% set ns = namespace(s='0123456789', l=[]) %}}{{% for i in range(99999) %}}{{% for j in range(99999) %}}{body}{{% endfor %}}{{% endfor %}}"
        )
    };
    let cases = [
        many("{% set ns.s = ns.s ~ ns.s %}"),
        many("{% set ns.s = ns.s + 'x' * 1000 %}"),
        many("{% set ns.s = ns.s ~ 'x' %}"),
        many("{% set ns.l = ns.l + [i] %}"),
        many("{% set ns.l = ns.l + ns.l + [1] %}"),
        many("{% set _ = ns.l.append('some text') %}"),
        many("{% set _ = ns.l.append(ns.l) %}"),
        many("{% set _ = ns.l.append(range(1000)) %}"),
        many("{% set _ = ns.l.insert(0, i) %}"),
        many("{% set ns.l = [ns.l, ns.l] %}"),
        many("{% set ns.l = [ns.l] %}"),
        many("{% set ns.l = {'a': ns.l} %}"),
        many("{% set ns.l = (ns.l, ns) %}"),
        many("{% set ns.s = ns.s.replace('', 'xx') %}"),
        many("{% set ns.s = [ns.s, ns.s] | tojson(indent=60) %}"),
        many("{% set ns.s = ns.s | indent(1000, true) %}"),
        many("{% set ns.s = [ns.s] * 100 | join(ns.s) %}"),
        many("{% set ns.s = ([ns.s] * 100) | join(ns.s) %}"),
        many("{% set ns.s = ns.s.join(['a'] * 1000) %}"),
        many("{% set ns.s = '%s%s%s' % (ns.s, ns.s, ns.s) %}"),
        many("{% set ns.s = '{0}{0}{0}'.format(ns.s) %}"),
        many("{% set ns.s = ns.s | upper | escape %}"),
        many("{% set ns.l = ns.s.split('1') + ns.l %}"),
        many("{% set ns.s = ns.s | string | center(1000000) %}"),
        many("{% set _ = dict(a=ns.l).update({'b': ns.s * 100}) %}"),
        many("0123456789 {{ ns.s }}"),
        many("{% set x %}{{ ns.s }}{% endset %}{% set ns.s = x ~ x %}"),
        many("{% macro f(a) %}{{ a }}{{ a }}{% endmacro %}{% set ns.s = f(ns.s) %}"),
        many("{% set ns.m = namespace(a=ns) %}{% set ns.a = ns.m %}"),
        "{{ 'x' * 10 ** 9 }}".into(),
        "{{ [0] * 10 ** 9 }}".into(),
        "{{ 'x' * 10 ** 30 }}".into(),
        "{{ ('x' * 1000000) | list }}".into(),
        "{{ ('x' * 8000000)[::-1] | length }}".into(),
        "{{ ('[' * 100 ~ ']' * 100) | from_json }}".into(),
        "{{ ('[' ~ '0,' * 10000000 ~ '0]') | from_json }}".into(),
        "{{ ('[' * 100000) | from_json }}".into(),
        "{{ 'x'.center(10 ** 12) }}".into(),
        "{{ 'x'.zfill(10 ** 12) }}".into(),
        "{{ '%.300f' % 1e300 }}{{ 1e308 | round(300) }}".into(),
        "{{ 10 ** 10 ** 10 }}".into(),
        "{{ range(10 ** 30) }}".into(),
        "{{ range(99999) | map('string') | map('list') | map('length') | sum }}".into(),
        "{% set l = range(99999) | list %}{% for x in l %}{% if l == l[1:] + [5] %}{% endif %}{% endfor %}".into(),
        "{% set l = range(99999) | list %}{% for x in l %}{% if 'a' in l %}{% endif %}{% endfor %}".into(),
        "{% set s = 'a' * 5000000 %}{% for x in range(99999) %}{% if 'ab' in s %}{% endif %}{% endfor %}".into(),
        "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}".into(),
        "{% macro f(x) %}{% call f(x) %}{{ caller() }}{% endcall %}{% endmacro %}{{ f(1) }}".into(),
        "{{ 'a' | map('map', 'map', 'map', 'map', 'upper') | list }}".into(),
        format!("{{{{ 'a' | map({}'upper') }}}}", "'map', ".repeat(10_000)),
        "{% set a = [] %}{% set _ = a.append(a) %}{{ a }}".into(),
        "{% set a = [] %}{% set _ = a.append(a) %}{{ a | tojson }}".into(),
        "{% set a = [] %}{% set _ = a.append(a) %}{{ a == [a] }}{{ a < [a] }}".into(),
        format!("{{{{ {}1{} }}}}", "(".repeat(100_000), ")".repeat(100_000)),
        format!("{{{{ {}1 }}}}", "not ".repeat(100_000)),
        format!("{{{{ {}1 }}}}", "-".repeat(100_000)),
        format!("{{{{ 1{} }}}}", " if 1 else 1".repeat(50_000)),
        format!("{{{{ 1{} }}}}", " + 1".repeat(200_000)),
        format!("{{{{ 'a'{} }}}}", ".x".repeat(200_000)),
        format!("{{{{ 'a'{} }}}}", "|upper".repeat(150_000)),
        "{% if 1 %}".repeat(100_000),
        "{% for x in y %}".repeat(50_000),
    ];
    for source in cases {
        let short: String = source.chars().take(230).collect();
        let start = Instant::now();
        let result = render(&source);
        assert_little_memory(&short);
        assert!(start.elapsed() < Duration::from_secs(20), "{short}\n{:?}, {result:?}", start.elapsed());
    }
}

#[test]
fn containers_that_hold_themselves_are_freed() {
    // Each holds 4 MB and itself; 300 of them left behind would show.
    let source = "{% set a = ['0123456789' * 200000] %}{% set ns = namespace(a=a) %}{% set ns.b = ns %}{% set _ = a.append(ns) %}\
        {% macro f() %}{{ ns }}{% endmacro %}{% set ns.c = f %}";
    for _ in 0..300 {
        render(source).unwrap();
    }
    assert_little_memory(source);
}

#[test]
fn a_long_conversation_is_no_attack() {
    let text = "A long message about nothing in particular. ".repeat(2000);
    let messages: Vec<Message> =
        (0..200).map(|i| Message::new(if i % 2 == 0 { "user" } else { "assistant" }, text.clone())).collect();
    let source = include_str!("../../../tests/golden/chat-templates/Qwen3.5-4B.jinja");
    let template = ChatTemplate::new(source, String::new(), String::new()).unwrap();
    let prompt = template.render(&messages, &RenderOptions::default()).unwrap();
    assert!(prompt.as_str().len() > 200 * (text.len() - 1));
}

/// All bytes, spelled as `.tiktoken`, then further tokens.
fn tiktoken(further: &[&str]) -> Vec<u8> {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let base64 = |bytes: &[u8]| -> String {
        let group = |g: &[u8]| {
            let bits = g.iter().chain([0; 3].iter()).take(3).fold(0u32, |b, x| b << 8 | u32::from(*x));
            (0..4)
                .map(move |i| if i > g.len() { '=' } else { char::from(LETTERS[(bits >> (18 - 6 * i) & 63) as usize]) })
                .collect::<String>()
        };
        bytes.chunks(3).map(group).collect()
    };
    let bytes = (0..=255u8).map(|b| vec![b]).chain(further.iter().map(|t| t.as_bytes().to_vec()));
    bytes.enumerate().map(|(rank, token)| format!("{} {rank}\n", base64(&token))).collect::<String>().into_bytes()
}

/// A GGUF with these bytes after its header.
fn gguf(keys: u64, body: &[u8]) -> Vec<u8> {
    [b"GGUF".as_slice(), &3u32.to_le_bytes(), &0u64.to_le_bytes(), &keys.to_le_bytes(), body].concat()
}

fn gguf_string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

#[test]
fn sizes_that_files_claim_are_not_allocated() {
    let huge = u64::MAX.to_le_bytes();
    let array = |kind: u32| {
        [gguf_string("tokenizer.ggml.tokens"), 9u32.to_le_bytes().to_vec(), kind.to_le_bytes().to_vec(), huge.to_vec()]
            .concat()
    };
    let nested = [gguf_string("x"), 9u32.to_le_bytes().to_vec()].concat();
    let nested = [nested, [9u32.to_le_bytes().as_slice(), &1u64.to_le_bytes()].concat().repeat(100_000)].concat();
    let files = [
        gguf(u64::MAX, &[]),
        gguf(1, &huge),
        gguf(1, &[gguf_string("tokenizer.ggml.model"), 8u32.to_le_bytes().to_vec(), huge.to_vec()].concat()),
        gguf(1, &array(8)),
        gguf(1, &array(5)),
        gguf(1, &[gguf_string("x"), 9u32.to_le_bytes().to_vec(), 4u32.to_le_bytes().to_vec(), huge.to_vec()].concat()),
        gguf(1, &[gguf_string("x"), 8u32.to_le_bytes().to_vec(), huge.to_vec()].concat()),
        gguf(1, &nested),
    ];
    for file in files {
        let error = Vocabulary::from_gguf(&*file, "x.gguf").unwrap_err().to_string();
        assert!(error.starts_with("x.gguf: "), "{error}");
        assert_little_memory(&error);
    }
    let long = "a".repeat(900);
    let tokens: Vec<String> = (0..20_000).map(|i| format!("{i}{long}")).collect();
    let file = tiktoken(&tokens.iter().map(String::as_str).collect::<Vec<_>>());
    let start = Instant::now();
    let error = Vocabulary::from_tiktoken(&file, Style::Qwen2, "x.tiktoken").unwrap_err().to_string();
    assert!(error.contains("too many long tokens") && start.elapsed() < Duration::from_secs(10), "{error}");
}

#[test]
fn broken_vocabularies_are_refused_with_the_place() {
    let good = tiktoken(&["ab", "abc"]);
    let vocabulary = Vocabulary::from_tiktoken(&good, Style::Qwen2, "x").unwrap();
    assert_eq!((vocabulary.len(), vocabulary.n_merges()), (258, 2));
    let text = String::from_utf8(good).unwrap();
    for (broken, words) in [
        (text.replace("AA== 0\n", ""), "no token of rank 0"),
        (text.replace(" 257\n", " 256\n"), "line 258: the rank 256 is there twice"),
        (text.replace("YWI= 256", "YWI 256"), "line 257: the token is not base64"),
        (text.replace("YWI= 256", "YWI= x"), "line 257: the rank"),
        (text.replace("YWI= 256", "YWI="), "line 257: expected two words"),
        (text.replace("YWI= 256", "YQ== 256"), "the tokens 97 and 256 are the same"),
        (text.replace("YQ== 97", "YWFhYQ== 97"), "no token stands for the byte"),
        (format!("{text}YQ== 99999999999\n"), "line 259: the rank"),
        (String::new(), "no token stands for the byte 0"),
    ] {
        let error = Vocabulary::from_tiktoken(broken.as_bytes(), Style::Qwen2, "x").unwrap_err().to_string();
        assert!(error.starts_with("x: ") && error.contains(words), "{error}\nexpected {words}");
    }
}

#[test]
fn special_tokens_come_from_a_configuration() {
    let mut vocabulary = Vocabulary::from_tiktoken(&tiktoken(&["ab"]), Style::Qwen2, "x").unwrap();
    let config = r#"{"added_tokens_decoder": {"300": {"content": "<far>", "special": false}, "257": {"content": "<near>", "special": true}},
        "bos_token": {"content": "<far>"}, "eos_token": null}"#;
    vocabulary.apply_config(config, "c").unwrap();
    let tokenizer = vocabulary.to_tokenizer().unwrap();
    assert_eq!(tokenizer.encode("ab<far>ab<near>").unwrap(), [256, 300, 256, 257]);
    assert!(tokenizer.is_special(300) && tokenizer.is_special(257));
    for (config, words) in [
        ("[", "not JSON"),
        (r#"{"added_tokens_decoder": {"x": {"content": "a"}}}"#, "not an id"),
        (r#"{"added_tokens_decoder": {"3": {"content": "a"}}}"#, "another model's"),
        (r#"{"added_tokens_decoder": {"999999999": {"content": "a"}}}"#, "beyond"),
        (r#"{"bos_token": "<none>"}"#, "does not have"),
    ] {
        let error = vocabulary.clone().apply_config(config, "c").unwrap_err().to_string();
        assert!(error.starts_with("c: ") && error.contains(words), "{error}");
    }
}

/// Pieces that templates are made of, so that random ones get far.
fn piece() -> impl Strategy<Value = String> {
    let fixed = [
        "{{ ",
        " }}",
        "{% ",
        " %}",
        "{# ",
        " #}",
        "-%}",
        "{%- ",
        "if ",
        "else ",
        "elif ",
        "endif ",
        "for x in ",
        "endfor ",
        "set ",
        "endset ",
        "macro f(a) ",
        "endmacro ",
        "call f() ",
        "endcall ",
        "x",
        "messages",
        "loop",
        ".index",
        "[0]",
        "[1:]",
        "[::-1]",
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        "'",
        "\"",
        "a",
        " ",
        "\n",
        "|",
        "tojson",
        "join",
        "trim",
        "is ",
        "defined ",
        "not ",
        "and ",
        "in ",
        "+",
        "-",
        "~",
        "*",
        "**",
        "//",
        "%",
        "==",
        "<",
        "=",
        ",",
        ":",
        "1",
        "0x",
        "1.5",
        "1e999",
        "99999999999999999999999999999999999999999",
        "'\\x'",
        "'\\ud800'",
        "raw ",
        "endraw ",
        "ns",
        "namespace(x=1) ",
        "ns.x",
        "é",
        "\u{0}",
        "range(9) ",
        "true",
        "none",
        ".items()",
        ".split('a')",
        ".append(x)",
        "generation ",
        "endgeneration ",
        "filter upper ",
        "endfilter ",
        "with ",
        "endwith ",
        "strftime_now('%-') ",
        "| map('map') ",
    ];
    prop_oneof![4 => prop::sample::select(fixed.to_vec()).prop_map(str::to_owned), 1 => "\\PC{0,6}"]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    #[test]
    fn any_template_ends_without_panic(pieces in prop::collection::vec(piece(), 0..40), words in "[<>a-zé|\\n]{0,30}") {
        let source = pieces.concat();
        for source in [source.clone(), format!("{{% for x in messages %}}{{{{ {source} }}}}{{% endfor %}}")] {
            if let Ok(template) = ChatTemplate::new(&source, "<B>".into(), "<E>".into()) {
                let _ = template.render(&[Message::new("user", &*words), Message::new("assistant", "")], &RenderOptions::default());
            }
        }
    }

    #[test]
    fn any_bytes_are_no_vocabulary_and_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), keys in 0u64..5, cut in any::<prop::sample::Index>(), flip: u8) {
        let _ = Vocabulary::from_gguf(&*bytes, "x");
        let _ = Vocabulary::from_gguf(&*gguf(keys, &bytes), "x");
        let _ = Vocabulary::from_tiktoken(&bytes, Style::KimiK2, "x");
        let _ = Tokenizer::from_bytes(&bytes);
        let _ = ChatTemplate::from_config(&String::from_utf8_lossy(&bytes));
        // A good file with one byte changed, and cut short.
        let mut file = tiktoken(&["ab", "abc", "  "]);
        let at = cut.index(file.len());
        file[at] ^= flip;
        let _ = Vocabulary::from_tiktoken(&file, Style::DeepSeekV3, "x");
        let _ = Vocabulary::from_tiktoken(&file[..at], Style::DeepSeekV3, "x");
    }

    #[test]
    fn a_damaged_tokenizer_json_is_no_panic(cut in any::<prop::sample::Index>(), flip in 1u8.., text in "\\PC{0,20}") {
        let vocabulary = Vocabulary::from_tiktoken(&tiktoken(&["ab", "abc"]), Style::Qwen2, "x").unwrap();
        let mut json = vocabulary.to_tokenizer_json();
        let at = cut.index(json.len());
        let _ = Tokenizer::from_bytes(&json[..at]);
        json[at] ^= flip;
        if let Ok(tokenizer) = Tokenizer::from_bytes(&json) {
            let _ = tokenizer.encode(&text).map(|ids| tokenizer.decode(&ids));
        }
    }

    #[test]
    fn byte_level_vocabularies_give_every_text_back(text in "\\PC{0,30}|[ \\n\\r\\t0-9a-cé日🙂<|>]{0,40}") {
        static ALL: OnceLock<Vec<Tokenizer>> = OnceLock::new();
        let all = ALL.get_or_init(|| {
            let file = tiktoken(&["ab", "abc", "  ", "日", "\n\n"]);
            let one = |style| Vocabulary::from_tiktoken(&file, style, "x").unwrap().to_tokenizer().unwrap();
            [Style::DeepSeekLlm, Style::DeepSeekCoder, Style::KimiK2].map(one).into()
        });
        for tokenizer in all {
            for ids in [tokenizer.encode(&text).unwrap(), tokenizer.encode_ordinary(&text).unwrap()] {
                prop_assert_eq!(tokenizer.decode(&ids), text.clone());
            }
        }
    }
}
