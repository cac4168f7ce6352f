//! The committed corpus through every target, and each of its files cut, spliced and with bytes changed: no panic.

use std::{fs, path::Path};

use jevons_fuzz_harness::{TARGETS, Target};
use proptest::{prelude::*, test_runner::TestRunner};

fn corpus((name, _): Target) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(name);
    let mut paths: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} is empty", dir.display());
    paths.into_iter().map(|path| fs::read(path).unwrap()).collect()
}

#[test]
fn the_corpus_passes_every_target() {
    for target in TARGETS {
        corpus(target).iter().for_each(|data| target.1(data));
    }
}

#[test]
fn mutations_of_the_corpus_pass_every_target() {
    for target in TARGETS {
        let files = corpus(target);
        let n = files.len();
        let strategy = (
            0..n,
            0..n,
            any::<(prop::sample::Index, prop::sample::Index)>(),
            prop::collection::vec(any::<(prop::sample::Index, u8)>(), 0..8),
        );
        let mut runner =
            TestRunner::new(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() });
        runner
            .run(&strategy, |(first, second, (cut, join), changes)| {
                let (a, b) = (&files[first], &files[second]);
                let (cut, join) = (cut.index(a.len() + 1), join.index(b.len() + 1));
                let mut data = [&a[..cut], &b[join..]].concat();
                if first == second {
                    data = a.clone(); // Small changes of a whole file get further than splices.
                }
                let len = data.len();
                for (at, byte) in changes.iter().filter(|_| len > 0) {
                    data[at.index(len)] = *byte;
                }
                target.1(&data);
                Ok(())
            })
            .unwrap();
    }
}
