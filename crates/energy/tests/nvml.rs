//! The management library of graphics boards is loaded at run time: here one of our own, compiled from `nvml.c`. Where there is no C
//! compiler the test says so and passes.
#![cfg(target_os = "linux")]

use std::{path::Path, process::Command};

use jevons_energy::{
    grade::Grade,
    meter::{Meter, Options, State, Window},
};

#[test]
fn boards_of_a_loaded_library_are_read_and_one_that_goes_silent_is_unknown() {
    let dir = tempfile::tempdir().unwrap();
    let library = dir.path().join("libnvidia-ml.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/nvml.c");
    match Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status() {
        Ok(status) => assert!(status.success(), "{} does not compile", source.display()),
        Err(error) => return eprintln!("skipped, there is no C compiler: {error}"),
    }
    let counter = dir.path().join("counter");
    std::fs::write(&counter, "1000").unwrap();
    // The library reads the variable; a process of its own keeps the test free of `set_var`.
    if std::env::var_os("JEVONS_TEST_NVML").is_none() {
        let status = Command::new(std::env::current_exe().unwrap()).env("JEVONS_TEST_NVML", &counter).status();
        assert!(status.unwrap().success());
        return;
    }
    let counter = std::env::var_os("JEVONS_TEST_NVML").unwrap();
    let options =
        || Options { root: dir.path().into(), nvml_library: Some(library.clone().into()), ..Options::default() };
    let mut meter = Meter::discover(options());
    let start = meter.snapshot();
    std::fs::write(&counter, "201000").unwrap();
    meter.poll_at(2.0);
    let window = meter.snapshot().since(&start);
    let of = |name: &str| window.shares.iter().find(|s| s.component == name).map(|s| (s.energy.joules, s.energy.grade));
    assert_eq!(of("gpu 0"), Some((200.0, Grade::B)));
    assert_eq!(of("gpu 1"), Some((100.0, Grade::C)));
    let unknown = |w: &Window| w.unknown.iter().map(|u| (u.component.clone(), u.seconds)).collect::<Vec<_>>();
    assert_eq!(unknown(&window), [("gpu 2".to_owned(), 2.0)], "a lost board is unknown, not zero");
    std::fs::remove_file(&counter).unwrap();
    let before = meter.snapshot();
    meter.poll_at(4.0);
    let window = meter.snapshot().since(&before);
    assert_eq!(unknown(&window), [("gpu 0".to_owned(), 2.0), ("gpu 2".to_owned(), 2.0)]);
    assert!(meter.sources().iter().any(|(s, state)| s.component == "gpu 0" && matches!(state, State::Silent(_))));
}

#[test]
fn a_library_that_is_not_there_is_no_board_and_no_error() {
    let dir = tempfile::tempdir().unwrap();
    let library = Some(dir.path().join("none.so").into());
    let meter = Meter::discover(Options { root: dir.path().into(), nvml_library: library, ..Options::default() });
    assert!(meter.notes().is_empty() && meter.sources().iter().all(|(s, _)| !s.component.starts_with("gpu")));
}
