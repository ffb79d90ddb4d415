//! Beam searches in flight: beside each other and beside other sequences, at the end of the context, abandoned, refused.

use candle_core::{DType, Device};
use serde_json::json;
use slicemill_core::{ErrorClass, Fate, GenerationParams};
use slicemill_pipeline::{Backend, BackendFactory, FinishReason, Generated, PreparedImage};

use super::random::{self, config, drain, images, open, request};
use crate::{BackendOptions, Place};

const PROMPTS: [&str; 3] = ["What is this?", "How many red circles are there?", "Describe this image."];

fn options(sequences_max: u32, beams_max: u32, cpu_threads: Option<usize>) -> BackendOptions {
    BackendOptions { sequences_max, beams_max, cpu_threads, ..Default::default() }
}

fn beams(num_beams: u32) -> GenerationParams {
    GenerationParams { max_new_tokens: 12, num_beams, ..Default::default() }
}

/// Searches of several widths, and sequences without one.
fn mixture() -> Vec<GenerationParams> {
    vec![
        beams(4),
        beams(1),
        GenerationParams { length_penalty: 0.0, early_stopping: true, ..beams(2) },
        GenerationParams { temperature: 1.0, top_k: Some(40), ..beams(1) },
        GenerationParams { repetition_penalty: 1.3, ..beams(3) },
        GenerationParams { max_new_tokens: 5, ..beams(4) },
    ]
}

/// Every prompt about every image, the parameters in turn, with as many in flight as there is room.
fn generate(backend: &mut dyn Backend, images: &[PreparedImage]) -> Vec<(Vec<u32>, FinishReason, u32)> {
    let handles = backend.encode(images).unwrap();
    let (count, params) = (images.len() * PROMPTS.len(), mixture());
    let (mut next, mut order, mut done) = (0, Vec::new(), Vec::<Generated>::new());
    while done.len() < count {
        while backend.free_sequences() > 0 && next < count {
            let (image, prompt) = (handles[next / PROMPTS.len()], PROMPTS[next % PROMPTS.len()]);
            order.push(backend.admit(request(image, prompt, &params[next % params.len()], next as u64)).unwrap());
            next += 1;
        }
        done.extend(backend.step().unwrap());
    }
    handles.into_iter().for_each(|handle| backend.release(handle));
    done.sort_by_key(|generated| order.iter().position(|id| *id == generated.sequence));
    done.into_iter().map(|g| (g.token_ids, g.finish, g.decode_steps)).collect()
}

#[test]
fn many_in_flight_give_what_one_at_a_time_gives() {
    let mut json = config();
    // So many that searches end early, at different lengths.
    json["eos_token_id"] = json!((0..700).step_by(9).collect::<Vec<u32>>());
    for json in [config(), json] {
        let factory = random::factory(&json, options(1, 4, Some(1)));
        let images = images(&factory.card().policy);
        let alone = generate(&mut *open(&factory, false), &images);
        assert!(alone.iter().any(|(ids, ..)| ids != &alone[0].0), "the outputs differ from each other");
        for (sequences, beams, threads) in [(2, 4, None), (5, 4, Some(2)), (24, 4, Some(3)), (7, 9, None)] {
            let factory = random::factory(&json, options(sequences, beams, threads));
            let together = generate(&mut *open(&factory, false), &images);
            assert_eq!(together, alone, "{sequences} sequences of {beams} beams, {threads:?} threads");
        }
        let portable = factory.open_in(&Place::candle(Device::Cpu, DType::F32));
        assert_eq!(generate(&mut *portable.unwrap(), &images), alone, "candle's operations");
    }
}

#[test]
fn a_search_stops_at_its_cap_and_at_the_end_of_the_context() {
    let probe = random::factory(&config(), options(1, 3, None));
    let image = random::image(&probe.card().policy, 112, 112, 3);
    let run = |json: &serde_json::Value, tokens: u32| {
        let factory = random::factory(json, options(1, 3, None));
        let mut backend = open(&factory, false);
        let handle = backend.encode(std::slice::from_ref(&image)).unwrap()[0];
        let params = GenerationParams { max_new_tokens: tokens, ..beams(3) };
        backend.admit(request(handle, PROMPTS[0], &params, 0)).unwrap();
        let generated = drain(&mut *backend, 1).remove(0).unwrap();
        assert_eq!(backend.free_sequences(), 1);
        (generated.token_ids, generated.finish, generated.decode_steps, generated.prompt_tokens)
    };
    for tokens in [0, 1, 4] {
        let (ids, finish, steps, prompt) = run(&config(), tokens);
        assert_eq!((ids.len(), finish, steps), (tokens as usize, FinishReason::Length, tokens));
        let mut json = config();
        json["max_position_embeddings"] = json!(prompt + tokens.max(1));
        assert_eq!(run(&json, tokens.max(1) + 6).0, run(&config(), tokens.max(1)).0);
    }
}

#[test]
fn a_sequence_holds_a_slot_for_every_beam_until_it_has_gone() {
    let factory = random::factory(&config(), options(2, 4, None));
    let mut backend = open(&factory, false);
    let handle = backend.encode(&[random::image(&factory.card().policy, 112, 112, 3)]).unwrap()[0];
    assert_eq!((backend.free_sequences(), backend.limits().sequences_max), (2, 2));
    let first = backend.admit(request(handle, PROMPTS[0], &beams(4), 0)).unwrap();
    assert_eq!(backend.free_sequences(), 1);
    let small = backend.admit(request(handle, PROMPTS[1], &beams(2), 0)).unwrap();
    assert_eq!(backend.free_sequences(), 0, "two slots are not room for four beams");
    let error = backend.admit(request(handle, PROMPTS[2], &beams(4), 0)).unwrap_err();
    assert_eq!(error.fate, Fate::Fatal);
    backend.step().unwrap();
    backend.abandon(first);
    assert_eq!(backend.free_sequences(), 1);
    backend.abandon(small);
    assert_eq!(backend.free_sequences(), 2);
    // What is left in the slots disturbs nobody.
    let again = backend.admit(request(handle, PROMPTS[0], &beams(4), 0)).unwrap();
    let got = drain(&mut *backend, 1).remove(0).unwrap();
    assert_eq!(got.sequence, again);
    let mut fresh = open(&factory, false);
    let handle = fresh.encode(&[random::image(&factory.card().policy, 112, 112, 3)]).unwrap()[0];
    fresh.admit(request(handle, PROMPTS[0], &beams(4), 0)).unwrap();
    assert_eq!(drain(&mut *fresh, 1).remove(0).unwrap().token_ids, got.token_ids);
}

#[test]
fn more_beams_than_the_model_was_opened_for_are_refused() {
    let factory = random::factory(&config(), options(8, 3, None));
    let mut backend = open(&factory, false);
    let handle = backend.encode(&[random::image(&factory.card().policy, 112, 112, 3)]).unwrap()[0];
    let error = backend.admit(request(handle, PROMPTS[0], &beams(4), 0)).unwrap_err();
    assert_eq!(error.fate, Fate::Fatal);
    assert!(error.message.contains("asks for 4 beams") && error.message.contains("at most 3"), "{error}");
    for params in [beams(0), GenerationParams { temperature: 0.5, ..beams(3) }] {
        let error = backend.admit(request(handle, PROMPTS[0], &params, 0)).unwrap_err();
        assert_eq!((error.fate, error.class), (Fate::Row, ErrorClass::ModelFailed));
    }
    assert_eq!(backend.free_sequences(), 8);
}

#[test]
fn numbers_that_are_not_finite_fail_their_row_and_free_its_slots() {
    for portable in [false, true] {
        let factory = random::factory(&config(), options(2, 3, None));
        let policy = &factory.card().policy;
        let (good, mut bad) = (random::image(policy, 300, 200, 1), random::image(policy, 90, 130, 2));
        bad.views[0].patches[5] = f32::NAN;
        let mut backend = open(&factory, portable);
        let expected = {
            let handle = backend.encode(std::slice::from_ref(&good)).unwrap()[0];
            backend.admit(request(handle, PROMPTS[0], &beams(3), 0)).unwrap();
            drain(&mut *backend, 1).remove(0).unwrap().token_ids
        };
        let handles = backend.encode(&[bad, good]).unwrap();
        for _ in 0..2 {
            let error = backend.admit(request(handles[0], PROMPTS[0], &beams(3), 0)).unwrap_err();
            assert_eq!((error.fate, error.class), (Fate::Row, ErrorClass::ModelFailed));
        }
        assert_eq!(backend.free_sequences(), 2);
        for _ in 0..2 {
            backend.admit(request(handles[1], PROMPTS[0], &beams(3), 0)).unwrap();
        }
        for generated in drain(&mut *backend, 2) {
            assert_eq!(generated.unwrap().token_ids, expected, "portable {portable}");
        }
    }
}
