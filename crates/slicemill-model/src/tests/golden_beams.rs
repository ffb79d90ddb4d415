//! Beam search through the backend: every layout's recorded searches, with as many in flight together as fit.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device};
use serde::Deserialize;
use serde_json::Value;
use slicemill_core::GenerationParams;
use slicemill_pipeline::{Backend, BackendFactory, FinishReason, Generated, PreparedImage};

use super::golden::{Golden, policy_of};
use super::random::request;
use super::recipe;
use crate::{BackendOptions, Model, Place};

/// A recorded search.
#[derive(Deserialize)]
struct Recorded {
    num_beams: u32,
    length_penalty: f64,
    early_stopping: bool,
    eos_token_ids: Vec<u32>,
    beam_ids: Vec<u32>,
    same_in_f64: bool,
}

/// What is asked, and the ids that must come.
struct Ask {
    question: String,
    params: GenerationParams,
    want: Option<Vec<u32>>,
}

fn params(num_beams: u32) -> GenerationParams {
    GenerationParams { max_new_tokens: 24, num_beams, ..Default::default() }
}

/// Every search of a case by its end tokens, each beside a greedy answer to the same question.
fn asks(case: &Value) -> BTreeMap<Vec<u32>, Vec<Ask>> {
    let mut all: BTreeMap<Vec<u32>, Vec<Ask>> = BTreeMap::new();
    for run in case["runs"].as_array().unwrap() {
        let question = run["text"].as_str().unwrap().to_owned();
        let recorded: Vec<Recorded> = serde_json::from_value(run["beams"].clone()).unwrap();
        assert!(!recorded.is_empty());
        for search in recorded.into_iter().filter(|search| search.same_in_f64) {
            let params = GenerationParams {
                length_penalty: search.length_penalty,
                early_stopping: search.early_stopping,
                ..params(search.num_beams)
            };
            let asks = all.entry(search.eos_token_ids).or_default();
            asks.push(Ask { question: question.clone(), params, want: Some(search.beam_ids) });
        }
        for asks in all.values_mut() {
            asks.push(Ask { question: question.clone(), params: params(1), want: None });
        }
    }
    all
}

/// Answers in the order of the questions.
fn answers(backend: &mut dyn Backend, image: &PreparedImage, asks: &[Ask]) -> Vec<Generated> {
    let handle = backend.encode(std::slice::from_ref(image)).unwrap()[0];
    let (mut waiting, mut order, mut done) = (asks.iter(), Vec::new(), Vec::new());
    while done.len() < asks.len() {
        while backend.free_sequences() > 0
            && let Some(ask) = waiting.next()
        {
            order.push(backend.admit(request(handle, &ask.question, &ask.params, 0)).unwrap());
        }
        done.extend(backend.step().unwrap());
    }
    assert_eq!(backend.free_sequences(), backend.limits().sequences_max);
    done.sort_by_key(|generated| order.iter().position(|id| *id == generated.sequence));
    done
}

/// Runs all recorded searches of a layout on each of `models`, and the same ones alone on the first.
fn check(layout: &str, places: &[Place]) {
    let dir = tempfile::tempdir().unwrap();
    recipe::make(layout, dir.path());
    let golden = Golden::open(dir.path(), &recipe::recipes().join(layout).join("expected"));
    let models: Vec<Arc<Model>> = places.iter().map(|place| Arc::new(golden.factory.load(place).unwrap())).collect();
    let mut searches = 0;
    for case in golden.index["cases"].as_array().unwrap() {
        let Some(policy) = policy_of(case["variant"].as_str().unwrap(), &golden.factory.card().policy) else {
            continue;
        };
        let key = case["key"].as_str().unwrap();
        let path = recipe::recipes().join("images").join(case["image"].as_str().unwrap());
        let image = golden.prepared(&policy, &path, key);
        for (eos, asks) in asks(case) {
            for (model, place) in models.iter().zip(places) {
                let run = |sequences_max| {
                    let options = BackendOptions { sequences_max, beams_max: 5, ..Default::default() };
                    let mut backend = golden.factory.backend_ending_with(&eos, Arc::clone(model), &options);
                    answers(&mut backend, &image, &asks)
                };
                let together = run(4);
                for (ask, got) in asks.iter().zip(&together) {
                    let what = format!("{layout}, {key}, {:?}: {} {:?}", place.engine, ask.question, ask.params);
                    searches += usize::from(ask.want.is_some());
                    if let Some(want) = &ask.want {
                        assert_eq!(&got.token_ids, want, "{what}");
                    }
                    assert!(got.decode_steps as usize >= got.token_ids.len() && got.decode_steps <= 24, "{what}");
                    assert!(got.finish == FinishReason::Stop || got.token_ids.len() == 24, "{what}");
                }
                for (together, alone) in together.iter().zip(run(1)) {
                    let figures = |g: &Generated| (g.token_ids.clone(), g.finish, g.decode_steps, g.text.clone());
                    assert_eq!(figures(together), figures(&alone), "{layout}, {key}");
                }
            }
        }
    }
    assert!(searches >= 40 * places.len(), "{searches} searches");
}

#[test]
fn llava_uhd_v1_searches_as_the_reference() {
    check("uhd-v1", &[Place::cpu()]);
}

#[test]
fn llava_uhd_with_64_queries_searches_as_the_reference() {
    check("uhd-64", &[Place::cpu()]);
}

#[test]
fn llava_15_searches_as_the_reference_on_both_caches() {
    check("llava-1.5", &[Place::cpu(), Place::candle(Device::Cpu, DType::F32)]);
}

#[test]
fn llava_15_as_converted_searches_as_the_reference() {
    check("llava-1.5-hf", &[Place::cpu()]);
}

#[test]
fn minicpm_v_26_searches_as_the_reference() {
    check("minicpmv-2.6", &[Place::cpu()]);
}

#[test]
fn minicpm_v_45_searches_as_the_reference_on_both_caches() {
    check("minicpmv-4.5", &[Place::cpu(), Place::candle(Device::Cpu, DType::F32)]);
}

#[test]
fn minicpm_v_40_searches_as_the_reference() {
    check("minicpmv-4.0", &[Place::cpu()]);
}
