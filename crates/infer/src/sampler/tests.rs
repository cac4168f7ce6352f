use proptest::{collection::vec, prelude::*};

use super::*;

fn sampler(sampling: Sampling) -> Sampler {
    Sampler::new(sampling).unwrap()
}

/// Logits with ties (multiples of a quarter), both zeros, and impossible tokens, but at least one possible one.
fn logits() -> impl Strategy<Value = Vec<f32>> {
    let logit = prop_oneof![
        8 => (-20i32..20).prop_map(|x| x as f32 * 0.25),
        1 => Just(-0.0f32),
        1 => Just(f32::NEG_INFINITY),
    ];
    (vec(logit, 0..300), -5.0f32..5.0).prop_map(|(mut x, last)| {
        x.push(last);
        x
    })
}

/// The tokens that may be drawn, by a full sort and plain sums in f64 with the platform's exponential function.
fn naive_support(logits: &[f32], s: &Sampling) -> Vec<u32> {
    let z = |t: usize| f64::from(logits[t]) / f64::from(s.temperature);
    let top = (0..logits.len()).map(z).fold(f64::NEG_INFINITY, f64::max);
    let p = |t: usize| libm::exp(z(t) - top);
    let mut ids: Vec<usize> = (0..logits.len()).filter(|t| logits[*t].is_finite()).collect();
    ids.sort_by(|a, b| logits[*b].partial_cmp(&logits[*a]).unwrap().then(a.cmp(b)));
    if s.top_k > 0 {
        ids.truncate(s.top_k);
    }
    let total: f64 = ids.iter().map(|t| p(*t)).sum();
    let mut before = 0.0;
    ids.into_iter()
        .enumerate()
        .take_while(|(rank, t)| {
            // The margins keep a rounding of the last bit from failing the test.
            let inside = before < f64::from(s.top_p) * total * (1.0 + 1e-6) || s.top_p == 1.0;
            before += p(*t);
            *rank == 0 || (inside && p(*t) >= f64::from(s.min_p) * (1.0 - 1e-6))
        })
        .map(|(_, t)| t as u32)
        .collect()
}

proptest! {
    #[test]
    fn top_k_of_one_takes_the_token_that_greedy_takes(x in logits(), temperature in 0.01f32..50.0, seed: u64) {
        let greedy = sampler(Sampling::default()).choose(&x, 0, 0).unwrap();
        for (top_k, top_p, min_p) in [(1, 1.0, 0.0), (0, 0.0, 0.0), (1, 0.5, 0.5)] {
            let one = sampler(Sampling { temperature, top_k, top_p, min_p, seed });
            prop_assert_eq!(one.choose(&x, 3, 9).unwrap().token, greedy.token);
        }
    }

    #[test]
    fn settings_that_filter_nothing_change_nothing(x in logits(), temperature in 0.01f32..50.0, seed: u64) {
        let plain = sampler(Sampling { temperature, seed, ..Sampling::default() });
        let all = sampler(Sampling { temperature, seed, top_k: x.len(), top_p: 1.0, min_p: 0.0 });
        for position in 0..20 {
            prop_assert_eq!(plain.choose(&x, 0, position).unwrap(), all.choose(&x, 0, position).unwrap());
        }
    }

    #[test]
    fn only_tokens_of_the_filtered_set_are_drawn(
        x in logits(),
        temperature in 0.05f32..20.0,
        top_k in 0usize..320,
        top_p in prop_oneof![Just(1.0f32), 0.01f32..1.0],
        min_p in prop_oneof![Just(0.0f32), 0.0f32..1.0],
        seed: u64,
    ) {
        let sampling = Sampling { temperature, top_k, top_p, min_p, seed };
        let support = naive_support(&x, &sampling);
        let sampler = sampler(sampling);
        for position in 0..50 {
            let choice = sampler.choose(&x, 0, position).unwrap();
            prop_assert!(support.contains(&choice.token), "{} is not in {support:?}", choice.token);
        }
    }

    #[test]
    fn the_logprob_is_that_of_the_distribution_after_temperature(x in logits(), temperature in 0.1f32..20.0, seed: u64) {
        let choice = sampler(Sampling { temperature, top_k: 5, seed, ..Sampling::default() }).choose(&x, 0, 0).unwrap();
        let z: Vec<f64> = x.iter().map(|x| f64::from(*x) / f64::from(temperature)).collect();
        let top = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let want = z[choice.token as usize] - top - libm::log(z.iter().map(|z| libm::exp(z - top)).sum::<f64>());
        // Logits reach 50 after division, where f32 has steps of 4e-6.
        prop_assert!((f64::from(choice.logprob) - want).abs() < 2e-5, "{} {want}", choice.logprob);
    }

    #[test]
    fn the_whole_sort_is_never_needed_for_the_right_order(x in vec(-3i32..3, 1..2000), n in 1usize..2000) {
        let x: Vec<f32> = x.into_iter().map(|x| x as f32).collect();
        let mut ranked = Ranked::new(&x);
        for n in [n / 7, n / 3, n] {
            ranked.sort_to(n.min(x.len()));
        }
        let mut want: Vec<u32> = (0..x.len() as u32).collect();
        want.sort_by(|a, b| x[*b as usize].total_cmp(&x[*a as usize])); // stable: ties stay in order of id
        let n = n.min(x.len());
        prop_assert_eq!(&ranked.ids[..n], &want[..n]);
    }
}

/// Chi-square statistic of `draws` numbers drawn against probabilities `p`.
fn chi_square(sampler: &Sampler, x: &[f32], p: &[f64], draws: u64) -> f64 {
    let mut counts = vec![0u64; x.len()];
    for i in 0..draws {
        counts[sampler.choose(x, i % 10, i / 10).unwrap().token as usize] += 1;
    }
    let mut statistic = 0.0;
    for (n, p) in counts.iter().zip(p) {
        if *p == 0.0 {
            assert_eq!(*n, 0, "drew an impossible token");
        } else {
            statistic += (*n as f64 - p * draws as f64).powi(2) / (p * draws as f64);
        }
    }
    statistic
}

fn softmax(x: &[f32], temperature: f64) -> Vec<f64> {
    let weights: Vec<f64> = x.iter().map(|x| libm::exp(f64::from(*x) / temperature)).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|w| w / sum).collect()
}

#[test]
fn frequencies_are_the_probabilities() {
    let x: Vec<f32> = (0..21).map(|i| ((i * 8) % 21) as f32 * 0.15).collect();
    // 20 degrees of freedom: a statistic above 45.3 has probability 0.001. The seed is fixed.
    let plain = sampler(Sampling { temperature: 0.8, seed: 5, ..Sampling::default() });
    let statistic = chi_square(&plain, &x, &softmax(&x, 0.8), 50_000);
    assert!(statistic < 45.3, "{statistic}");
    // The same against another temperature must be seen to differ, or the test sees nothing.
    assert!(chi_square(&plain, &x, &softmax(&x, 0.9), 50_000) > 200.0);
}

#[test]
fn frequencies_after_top_k_are_the_renormalised_probabilities() {
    let x: Vec<f32> = (0..200).map(|i| ((i * 77) % 200) as f32 * 0.05).collect();
    let mut p = softmax(&x, 1.5);
    for (p, x) in p.iter_mut().zip(&x) {
        if *x < 9.47 {
            *p = 0.0; // 9.5 to 9.95 are the ten best
        }
    }
    let kept: f64 = p.iter().sum();
    p.iter_mut().for_each(|p| *p /= kept);
    let ten = sampler(Sampling { temperature: 1.5, top_k: 10, seed: 6, ..Sampling::default() });
    let statistic = chi_square(&ten, &x, &p, 50_000);
    assert!(statistic < 27.9, "{statistic}"); // 9 degrees of freedom, probability 0.001
}

#[test]
fn top_p_keeps_the_smallest_set_with_that_share() {
    // Weights 8, 4, 2, 1, 1 of 16: half is the first alone, anything more takes the second.
    let x: Vec<f32> = [1.0f64, 8.0, 1.0, 4.0, 2.0].iter().map(|w| libm::log(*w) as f32).collect();
    let drawn = |top_p, min_p| {
        let s = sampler(Sampling { temperature: 1.0, top_p, min_p, seed: 1, ..Sampling::default() });
        let mut seen: Vec<u32> = (0..500).map(|i| s.choose(&x, 0, i).unwrap().token).collect();
        seen.sort();
        seen.dedup();
        seen
    };
    assert_eq!(drawn(0.49, 0.0), [1]);
    assert_eq!(drawn(0.51, 0.0), [1, 3]);
    assert_eq!(drawn(0.76, 0.0), [1, 3, 4]);
    assert_eq!(drawn(0.88, 0.0), [0, 1, 3, 4]); // of the two equal ones the lower id
    assert_eq!(drawn(1.0, 0.0), [0, 1, 2, 3, 4]);
    assert_eq!(drawn(1.0, 0.2), [1, 3, 4]);
    assert_eq!(drawn(1.0, 0.3), [1, 3]);
    assert_eq!(drawn(0.51, 0.2), [1, 3]);
}

#[test]
fn draws_of_a_seed_are_pinned() {
    let x: Vec<f32> = (0..1500).map(|i| ((i * 811) % 1500) as f32 * 0.004).collect();
    let s = sampler(Sampling { temperature: 0.7, top_k: 100, top_p: 0.9, min_p: 0.01, seed: 42 });
    let tokens: Vec<u32> = (0..8).map(|i| s.choose(&x, 2, i).unwrap().token).collect();
    assert_eq!(tokens, PINNED, "a seed must give the same text in every version");
}

const PINNED: [u32; 8] = [270, 196, 540, 836, 1045, 1241, 1106, 725];

#[test]
fn broken_logits_are_an_error_that_names_the_token() {
    for temperature in [0.0, 1.0] {
        let s = sampler(Sampling { temperature, ..Sampling::default() });
        let error = s.choose(&[0.0, f32::NAN], 0, 0).unwrap_err();
        assert!(error.to_string().starts_with("the logit of token 1 is NaN"), "{error}");
        assert!(s.choose(&[f32::INFINITY, 0.0], 0, 0).is_err());
        assert_eq!(s.choose(&[f32::NEG_INFINITY; 3], 0, 0), Err(LogitsError::NoneFinite));
        assert_eq!(s.choose(&[], 0, 0), Err(LogitsError::NoneFinite));
        assert_eq!(s.choose(&[f32::NEG_INFINITY, -3.0], 0, 0), Ok(Choice { token: 1, logprob: 0.0 }));
    }
}

#[test]
fn settings_outside_their_range_are_refused_by_name() {
    let refused = |sampling| Sampler::new(sampling).unwrap_err().to_string();
    let base = Sampling::default();
    for temperature in [-1.0, f32::NAN, f32::INFINITY, 1e-9] {
        assert!(refused(Sampling { temperature, ..base.clone() }).starts_with("temperature is"));
    }
    for bad in [-0.1, 1.1, f32::NAN] {
        assert!(refused(Sampling { top_p: bad, ..base.clone() }).starts_with("top_p is"));
        assert!(refused(Sampling { min_p: bad, ..base.clone() }).starts_with("min_p is"));
    }
}
