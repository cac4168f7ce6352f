use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

fn problem(a: u32, op: Op, b: u32) -> Problem {
    Problem { a, op, b }
}

#[test]
fn the_steps_read_as_the_documentation_shows_them() {
    assert_eq!(
        problem(47, Op::Add, 38).steps(),
        "47 + 38\nones: 7 + 8 = 15, write 5, carry 1\ntens: 4 + 3 + 1 = 8, write 8, carry 0\nresult: 85"
    );
    assert_eq!(
        problem(32, Op::Sub, 57).steps(),
        "32 - 57\ncompare: 3 < 5, swap: 57 - 32, sign -\nones: 7 - 2 = 5, write 5, borrow 0\n\
         tens: 5 - 3 - 0 = 2, write 2, borrow 0\ndigits: 25\nresult: -25"
    );
    assert_eq!(
        problem(52, Op::Sub, 48).steps(),
        "52 - 48\ncompare: 5 > 4, keep: 52 - 48, sign +\nones: 2 - 8 < 0, 12 - 8 = 4, write 4, borrow 1\n\
         tens: 5 - 4 - 1 = 0, write 0, borrow 0\ndigits: 04\nresult: 4"
    );
    assert_eq!(
        problem(7, Op::Sub, 7).steps(),
        "7 - 7\ncompare: 7 = 7, keep: 7 - 7, sign +\nones: 7 - 7 = 0, write 0, borrow 0\ndigits: 0\nresult: 0"
    );
    assert!(problem(7, Op::Add, 38).steps().starts_with("07 + 38\n"));
}

/// Checks the steps as a reader would, knowing only what stands in them.
fn check_steps(p: Problem) {
    let text = p.steps();
    let lines: Vec<&str> = text.lines().collect();
    // Every `x ± y ± z = r` holds, and `x - y < 0` is true.
    for line in &lines[1..lines.len() - 1] {
        let line = line.split_once(": ").map_or(*line, |(_, rest)| rest);
        for clause in line.split(", ").filter(|c| c.contains([' ']) && !c.starts_with(|c: char| c.is_alphabetic())) {
            let value = |side: &str| {
                let mut words = side.split(' ');
                let mut total: i64 = words.next().unwrap().parse().unwrap();
                while let (Some(op), Some(n)) = (words.next(), words.next()) {
                    let n: i64 = n.parse().unwrap();
                    total += if op == "+" { n } else { -n };
                }
                total
            };
            let holds = if let Some((l, r)) = clause.split_once(" = ") {
                value(l) == value(r)
            } else if let Some((l, r)) = clause.split_once(" < ") {
                value(l) < value(r)
            } else if let Some((l, r)) = clause.split_once(" > ") {
                value(l) > value(r)
            } else {
                panic!("{clause} in {text}")
            };
            assert!(holds, "{clause} in {text}");
        }
    }
    // The written digits, read from the last line up, are the digits of the result.
    let written: String = lines.iter().rev().filter_map(|l| l.split_once("write ")).map(|(_, w)| &w[..1]).collect();
    let carry = lines.iter().rev().find_map(|l| l.split_once("carry ")).map_or("0", |(_, c)| c);
    let number: i64 = format!("{carry}{written}").parse().unwrap();
    let sign = if text.contains("sign -") { -1 } else { 1 };
    assert_eq!(number * sign, p.answer(), "{text}");
    assert_eq!(lines.last().unwrap().strip_prefix("result: ").unwrap().parse(), Ok(p.answer()));
}

#[test]
fn every_step_of_every_two_digit_problem_is_true() {
    for a in 0..=99 {
        for b in 0..=99 {
            check_steps(problem(a, Op::Add, b));
            check_steps(problem(a, Op::Sub, b));
        }
    }
}

proptest! {
    #[test]
    fn every_step_of_a_longer_problem_is_true(a in 0u32..=999, b in 0u32..=999) {
        check_steps(problem(a, Op::Add, b));
        check_steps(problem(a, Op::Sub, b));
    }

    #[test]
    fn reading_an_answer_takes_any_text(text in ".{0,60}") {
        evaluate_answer(&text);
    }

    #[test]
    fn the_answer_read_is_the_answer_written(a in 0u32..=999, b in 0u32..=999, add in any::<bool>()) {
        let p = problem(a, if add { Op::Add } else { Op::Sub }, b);
        let [_, (_, reply)] = p.exchange(String::new()).turns();
        prop_assert_eq!(evaluate_answer(&reply), Some(p.answer()));
        prop_assert_eq!(evaluate_answer(&format!("The result of {p} is {}.", p.answer())), Some(p.answer()));
    }
}

#[test]
fn a_reply_is_read_for_its_last_whole_number() {
    let cases = [
        ("85", Some(85)),
        ("47 + 38 = 85.", Some(85)),
        ("= -25", Some(-25)),
        ("= −25", Some(-25)),
        ("57-32", Some(32)),
        ("57 - 32", Some(32)),
        ("1,234", Some(1234)),
        ("-1,234,567!", Some(-1_234_567)),
        ("7, 8, 9", Some(9)),
        ("7,8", Some(8)),
        ("3.5", None),
        ("<think>\n1 + 1 = 2\n</think>\n\nI do not know.", None),
        ("", None),
        ("99999999999999999999", None),
        ("é5", Some(5)),
    ];
    for (text, want) in cases {
        assert_eq!(evaluate_answer(text), want, "{text:?}");
    }
}

#[test]
fn no_training_example_has_a_held_out_pair() {
    let arithmetic = Arithmetic::new(5);
    let (mut two_digit, mut negative, mut subtractions) = (0, 0, 0);
    let n = 20_000;
    for i in 0..n {
        let e = arithmetic.example(i);
        let (left, result) = e.answer.split_once(" = ").unwrap();
        let [a, op, b] = left.split(' ').collect::<Vec<_>>().try_into().unwrap();
        let (a, b): (u32, u32) = (a.parse().unwrap(), b.parse().unwrap());
        let op = if op == "+" { Op::Add } else { Op::Sub };
        assert!(!is_heldout(a, op, b) && !is_heldout(b, op, a), "{}", e.answer);
        assert_eq!(result.parse(), Ok(problem(a, op, b).answer()));
        for n in [a, b] {
            assert!(e.question.contains(&n.to_string()), "{} {}", e.question, e.answer);
        }
        assert!(!e.question.contains('{'), "{}", e.question);
        two_digit += u32::from((10..100).contains(&a) && (10..100).contains(&b));
        negative += u32::from(result.starts_with('-'));
        subtractions += u32::from(op == Op::Sub);
    }
    // 80 %, a quarter and a half, within five standard deviations (√(20000 · p · (1 − p)) ≤ 71).
    assert!(two_digit.abs_diff(16_000) < 350, "{two_digit}");
    assert!(subtractions.abs_diff(10_000) < 355, "{subtractions}");
    assert!(negative > 4000, "{negative}");
}

#[test]
fn a_tenth_of_the_pairs_is_held_out() {
    for op in [Op::Add, Op::Sub] {
        let pairs = (10..100).flat_map(|a| (a..100).map(move |b| (a, b)));
        let (all, out) = pairs.fold((0, 0), |(n, out), (a, b)| (n + 1, out + u32::from(is_heldout(a, op, b))));
        // Standard deviation √(4095 · 0.09) ≈ 19; four of them.
        assert!(u32::abs_diff(out * 10, all) < 770, "{out} of {all}");
    }
}

#[test]
fn the_evaluation_asks_distinct_held_out_two_digit_problems() {
    let all = heldout_pairs(usize::MAX);
    assert!((1300..1900).contains(&all.len()), "{}", all.len());
    assert_eq!(all.iter().collect::<HashSet<_>>().len(), all.len());
    assert!(all.iter().all(|p| is_heldout(p.a, p.op, p.b) && (10..100).contains(&p.a) && (10..100).contains(&p.b)));
    let some = heldout_pairs(200);
    assert_eq!(some, all[..200]);
    let subtractions = some.iter().filter(|p| p.op == Op::Sub).count();
    assert!((65..135).contains(&subtractions), "{subtractions}");
}

#[test]
fn the_examples_of_a_seed_never_change_without_a_new_version() {
    assert_eq!(VERSION, 1);
    let e = Arithmetic::new(7).example(0);
    assert_eq!((e.question.as_str(), e.answer.as_str()), GOLDEN);
}

const GOLDEN: (&str, &str) = ("Please: Tell me 74 + 12.", "74 + 12 = 86");

#[test]
fn every_way_of_asking_is_used() {
    let arithmetic = Arithmetic::new(9);
    let asked: HashSet<String> = (0..30_000)
        .map(|i| {
            let q = arithmetic.example(i).question;
            q.chars().filter(|c| !c.is_ascii_digit()).collect()
        })
        .collect();
    for template in ADD.iter().chain(SUB) {
        let bare = template.replace("{a}", "").replace("{b}", "");
        assert!(asked.contains(&bare), "{template}");
    }
}
