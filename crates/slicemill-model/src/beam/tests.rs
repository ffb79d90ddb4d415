//! Beam search over tables of logits, against transformers 4.37 where it was recorded and against its rules by hand.

use serde::Deserialize;

use super::*;
use crate::tests::recipe::{recipes, uniform};

#[derive(Deserialize)]
struct Table {
    vocab: usize,
    seed: u64,
    first_id: u32,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    scale: f32,
    steps: usize,
    eos_token_ids: Vec<u32>,
    num_beams: u32,
    length_penalty: f64,
    early_stopping: bool,
    beam_ids: Vec<u32>,
    sequences_score: f64,
}

/// Runs a search to its end; `logits` answers for the tokens of a beam. With the steps that it took.
fn run(
    params: &GenerationParams,
    steps_max: usize,
    eos: &[u32],
    logits: impl Fn(&[u32]) -> Vec<f32>,
) -> (Hypothesis, usize) {
    let mut search = BeamSearch::new(params, steps_max).unwrap();
    loop {
        let rows: Vec<Vec<f32>> = search.running().map(&logits).collect();
        let rows: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
        let before: Vec<Vec<u32>> = search.running().map(<[u32]>::to_vec).collect();
        match search.next(&rows, eos).unwrap() {
            Turn::Ends(found) => return (found, search.steps()),
            Turn::Goes(parents) => {
                let after: Vec<&[u32]> = search.running().collect();
                assert_eq!(after.len(), params.num_beams as usize);
                for (ids, parent) in after.into_iter().zip(parents) {
                    assert_eq!(ids[..ids.len() - 1], before[parent]);
                }
            }
        }
    }
}

fn beams(num_beams: u32) -> GenerationParams {
    GenerationParams { num_beams, ..Default::default() }
}

#[test]
fn every_table_gives_what_transformers_gives() {
    let text = std::fs::read(recipes().join("beam_cases.json")).unwrap();
    let table: Table = serde_json::from_slice(&text).unwrap();
    assert_eq!(table.cases.len(), 90);
    for case in &table.cases {
        let all = uniform(&case.name, table.seed, case.steps * table.vocab * table.vocab);
        let logits = |ids: &[u32]| -> Vec<f32> {
            let last = *ids.last().unwrap_or(&table.first_id) as usize;
            let row = &all[(ids.len() * table.vocab + last) * table.vocab..][..table.vocab];
            row.iter().map(|x| x * case.scale).collect()
        };
        let params = GenerationParams {
            num_beams: case.num_beams,
            length_penalty: case.length_penalty,
            early_stopping: case.early_stopping,
            ..Default::default()
        };
        let (found, steps) = run(&params, case.steps, &case.eos_token_ids, logits);
        assert_eq!(found.ids, case.beam_ids, "{}", case.name);
        assert!((found.score - case.sequences_score).abs() < 2e-5, "{}: {}", case.name, found.score);
        assert!(found.ids.len() <= steps - usize::from(found.stopped), "{}", case.name);
    }
}

/// Logits whose log-probabilities are these up to one constant.
fn probabilities(p: [f32; 4]) -> Vec<f32> {
    p.iter().map(|p| p.ln()).collect()
}

const END: u32 = 3;

/// Two beams over four tokens: the likeliest first token leads into poor ones.
fn garden_path(ids: &[u32]) -> Vec<f32> {
    probabilities(match ids {
        [] => [0.5, 0.4, 0.05, 0.05],
        [0] => [0.3, 0.3, 0.3, 0.1],
        [1] => [0.05, 0.05, 0.05, 0.85],
        _ => [0.25; 4],
    })
}

#[test]
fn a_search_finds_what_greedy_misses() {
    let greedy = run(&beams(1), 3, &[END], garden_path).0;
    assert_eq!((greedy.ids[0], greedy.stopped), (0, false));
    let (found, _) = run(&beams(2), 3, &[END], garden_path);
    assert_eq!((found.ids.as_slice(), found.stopped), ([1].as_slice(), true));
    assert!((found.score - (0.4_f64 * 0.85).ln() / 2.0).abs() < 1e-6, "{}", found.score);
}

#[test]
fn early_stopping_ends_when_there_are_enough() {
    // The end is likely everywhere but first, so two have finished after three steps; what is longer gains.
    let logits = |ids: &[u32]| {
        probabilities(if ids.len() == 1 || ids.len() == 2 { [0.4, 0.1, 0.1, 0.4] } else { [0.9, 0.05, 0.04, 0.01] })
    };
    let params = GenerationParams { length_penalty: 3.0, ..beams(2) };
    let (patient, most) = run(&params, 12, &[END], logits);
    let (early, least) = run(&GenerationParams { early_stopping: true, ..params }, 12, &[END], logits);
    assert!(least < most && early.ids.len() < patient.ids.len(), "{least} {most}");
    assert!(early.stopped && !patient.stopped);
    assert!(early.score < patient.score);
}

#[test]
fn an_end_below_the_rank_of_the_beams_is_left_out() {
    // With two beams the end has rank 2 at first: it is not a finished beam, however few tokens follow.
    let logits = |ids: &[u32]| probabilities(if ids.is_empty() { [0.4, 0.35, 0.01, 0.24] } else { [0.25; 4] });
    let (found, _) = run(&beams(2), 1, &[END], logits);
    assert_eq!((found.ids.as_slice(), found.stopped), ([0].as_slice(), false));
    let (found, _) = run(&beams(3), 1, &[END], logits);
    assert_eq!(found.ids, [0]);
    // Of equal totals the lower id goes first.
    let (found, _) = run(&beams(2), 2, &[], |_| vec![0.0; 4]);
    assert_eq!(found.ids, [0, 1], "of equal scores the last finished wins");
}

#[test]
fn the_penalty_multiplies_the_log_probability_of_produced_tokens_once() {
    let search = BeamSearch::new(&GenerationParams { repetition_penalty: 2.0, ..beams(2) }, 9).unwrap();
    let logits = probabilities([0.5, 0.25, 0.125, 0.125]);
    let scores = search.log_probabilities(&[1, 0, 1], &logits);
    for (got, want) in scores.iter().zip([0.25_f32.ln(), 0.0625_f32.ln(), 0.125_f32.ln(), 0.125_f32.ln()]) {
        assert!((got - want).abs() < 1e-6, "{got} {want}");
    }
    // A certain token has log-probability 0 and keeps it.
    assert_eq!(search.log_probabilities(&[0], &[200.0, 0.0])[0], 0.0);
}

#[test]
fn a_vocabulary_smaller_than_the_beams_is_searched_whole() {
    let mut search = BeamSearch::new(&beams(5), 4).unwrap();
    let row = [0.0_f32, 1.0, 2.0];
    assert_eq!(search.next(&[&row], &[2]).unwrap(), Turn::Goes(vec![0, 0]));
    assert_eq!(search.running().collect::<Vec<_>>(), [[1], [0]]);
}

#[test]
fn what_is_not_finite_or_out_of_range_is_an_error() {
    let ok = beams(2);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut search = BeamSearch::new(&ok, 3).unwrap();
        assert!(search.next(&[&[0.0, bad]], &[]).unwrap_err().contains("token 1"));
    }
    for params in [
        beams(0),
        beams(65),
        GenerationParams { temperature: 0.5, ..ok.clone() },
        GenerationParams { repetition_penalty: 0.0, ..ok.clone() },
        GenerationParams { length_penalty: f64::NAN, ..ok },
    ] {
        assert!(BeamSearch::new(&params, 3).is_err(), "{params:?}");
    }
}
