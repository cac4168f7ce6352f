//! The same texts give the same tokenizer in every process and on any number of threads.

use std::{env, fs, path::Path, process::Command};

use jevons_text::{BpeOptions, DigitSplit, house, train_bpe};

/// Many pairs that are seen equally often, so that a tie broken by chance would show.
fn texts() -> Vec<String> {
    let words = (0..400u32).map(|i| format!("w{}x{} ", i * 7919 % 1000, i * 104_729 % 1000));
    let words: Vec<String> = words.collect();
    words.chunks(20).map(|chunk| chunk.concat()).collect()
}

fn train() -> Vec<u8> {
    let options = BpeOptions {
        vocab_size: 600,
        special_tokens: house::SPECIAL_TOKENS.map(str::to_owned).to_vec(),
        split_digits: DigitSplit::UpToThree,
        min_frequency: 1,
    };
    train_bpe(texts(), &options).unwrap().to_bytes()
}

/// Only does something in the processes that the next test starts.
#[test]
fn a_child_writes_its_tokenizer() {
    if let Some(path) = env::var_os("JEVONS_TEST_TOKENIZER") {
        fs::write(Path::new(&path), train()).unwrap();
    }
}

#[test]
fn every_process_and_number_of_threads_trains_the_same_file() {
    let dir = tempfile::tempdir().unwrap();
    let want = train();
    for threads in ["1", "2", "3", "8"] {
        let path = dir.path().join(threads);
        let status = Command::new(env::current_exe().unwrap())
            .args(["--exact", "a_child_writes_its_tokenizer", "--test-threads=1"])
            .env("JEVONS_TEST_TOKENIZER", &path)
            .env("RAYON_NUM_THREADS", threads)
            .output()
            .unwrap();
        assert!(status.status.success(), "{status:?}");
        assert!(fs::read(&path).unwrap() == want, "{threads} threads");
    }
}
