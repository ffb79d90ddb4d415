//! What is together in a batch, in flight or on how many threads changes nothing, to the bit.

use slicemill_core::{ErrorClass, Fate, GenerationParams};
use slicemill_pipeline::{Backend, BackendFactory, DeviceId, FinishReason, Generated, PreparedImage};

use super::random::{self, SIZES, config, drain, images, open, request};
use crate::{BackendOptions, CandleFactory};

const PROMPTS: [&str; 3] = ["What is this?", "How many red circles are there?", "Describe this image."];

fn options(sequences: u32, threads: Option<usize>) -> BackendOptions {
    BackendOptions { sequences_max: sequences, cpu_threads: threads, ..Default::default() }
}

fn params(max_new_tokens: u32) -> GenerationParams {
    GenerationParams { max_new_tokens, ..Default::default() }
}

fn sampled(max_new_tokens: u32) -> GenerationParams {
    GenerationParams { temperature: 1.0, top_p: Some(0.95), repetition_penalty: 1.1, ..params(max_new_tokens) }
}

/// Visual tokens of all images, encoded `batch` at a time.
fn tokens(factory: &CandleFactory, images: &[PreparedImage], batch: usize) -> Vec<Vec<u32>> {
    let mut backend = open(factory, false);
    let mut all = Vec::new();
    for images in images.chunks(batch) {
        for handle in backend.encode(images).unwrap() {
            all.push(backend.read_tokens(handle).unwrap().iter().map(|x| x.to_bits()).collect());
            backend.release(handle);
        }
    }
    all
}

/// Output of every prompt about every image, in order, with as many in flight as there is room.
fn generate(backend: &mut dyn Backend, images: &[PreparedImage], params: &GenerationParams) -> Vec<Generated> {
    let handles = backend.encode(images).unwrap();
    let mut waiting: Vec<_> = (0..images.len() * PROMPTS.len()).rev().collect();
    let (mut order, mut done) = (Vec::new(), Vec::new());
    while done.len() < images.len() * PROMPTS.len() {
        while backend.free_sequences() > 0
            && let Some(i) = waiting.pop()
        {
            let prompt = PROMPTS[i % PROMPTS.len()];
            order.push(backend.admit(request(handles[i / PROMPTS.len()], prompt, params, i as u64)).unwrap());
        }
        done.extend(backend.step().unwrap());
    }
    handles.into_iter().for_each(|handle| backend.release(handle));
    done.sort_by_key(|generated| order.iter().position(|id| *id == generated.sequence));
    done
}

fn ids(generated: &[Generated]) -> Vec<(Vec<u32>, FinishReason, u32)> {
    generated.iter().map(|g| (g.token_ids.clone(), g.finish, g.prompt_tokens)).collect()
}

#[test]
fn visual_tokens_do_not_depend_on_the_batch_or_on_threads() {
    let reference = random::factory(&config(), options(4, Some(1)));
    let images = images(&reference.card().policy);
    let alone = tokens(&reference, &images, 1);
    for threads in [Some(1), Some(2), Some(3), None] {
        let factory = random::factory(&config(), options(4, threads));
        for batch in [1, 3, images.len()] {
            assert_eq!(tokens(&factory, &images, batch), alone, "{threads:?} threads, {batch} images");
        }
    }
    let mut reversed = images.clone();
    reversed.reverse();
    let mut backwards = tokens(&reference, &reversed, images.len());
    backwards.reverse();
    assert_eq!(backwards, alone);
}

#[test]
fn views_have_as_many_tokens_as_planned_in_the_order_of_the_plan() {
    let factory = random::factory(&config(), options(4, None));
    let images = images(&factory.card().policy);
    let all = tokens(&factory, &images, images.len());
    for (image, tokens) in images.iter().zip(&all) {
        let planned = image.plan.visual_tokens(factory.card().token_rule) as usize * 48;
        assert_eq!(tokens.len(), planned);
    }
    // The overview comes last and is encoded as it would be alone.
    let sliced = &images[1];
    let (overview, size) = (sliced.views.last().unwrap().clone(), sliced.plan.overview);
    let mut alone = random::image(&factory.card().policy, size.width, size.height, 99);
    assert_eq!(alone.plan.view_count(), 1);
    alone.views = vec![overview];
    let alone = tokens(&factory, &[alone], 1);
    assert_eq!(all[1][all[1].len() - 9 * 48..], alone[0]);
}

#[test]
fn many_in_flight_give_what_one_at_a_time_gives() {
    for params in [params(12), sampled(12)] {
        let factory = random::factory(&config(), options(1, Some(1)));
        let images = images(&factory.card().policy);
        let alone = ids(&generate(&mut *open(&factory, false), &images, &params));
        assert!(alone.iter().any(|(ids, ..)| ids != &alone[0].0), "the outputs differ from each other");
        for (sequences, threads) in [(2, None), (5, Some(2)), (24, Some(3)), (32, None)] {
            let factory = random::factory(&config(), options(sequences, threads));
            let together = ids(&generate(&mut *open(&factory, false), &images, &params));
            assert_eq!(together, alone, "{sequences} sequences, {threads:?} threads");
        }
    }
}

#[test]
fn candles_operations_give_what_the_kernels_give() {
    let factory = random::factory(&config(), options(5, None));
    let images = images(&factory.card().policy);
    let (mut kernels, mut portable) = (open(&factory, false), open(&factory, true));
    let read = |backend: &mut dyn Backend| {
        let handles = backend.encode(&images).unwrap();
        handles.into_iter().flat_map(|handle| backend.read_tokens(handle).unwrap()).collect::<Vec<f32>>()
    };
    let (a, b) = (read(&mut *kernels), read(&mut *portable));
    let error = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let scale = a.iter().map(|a| a.abs()).fold(0.0, f32::max);
    assert!(error < 1e-4 * scale, "{error} of {scale}");
    let greedy = params(12);
    assert_eq!(ids(&generate(&mut *kernels, &images, &greedy)), ids(&generate(&mut *portable, &images, &greedy)));
}

#[test]
fn planned_prompt_tokens_are_the_prompts() {
    let factory = random::factory(&config(), options(4, None));
    let images = images(&factory.card().policy);
    let generated = generate(&mut *open(&factory, false), &images, &params(1));
    for (i, generated) in generated.iter().enumerate() {
        let plan = &images[i / PROMPTS.len()].plan;
        assert_eq!(generated.prompt_tokens, factory.prompt_tokens(PROMPTS[i % PROMPTS.len()], plan).unwrap());
        let visual = plan.visual_tokens(factory.card().token_rule) as u32;
        assert!(generated.prompt_tokens > visual + plan.slices());
    }
}

#[test]
fn sampling_follows_the_seed_of_the_row() {
    let factory = random::factory(&config(), options(8, None));
    let image = random::image(&factory.card().policy, 300, 200, 5);
    let mut backend = open(&factory, false);
    let handle = backend.encode(&[image]).unwrap()[0];
    let mut draw = |seed| {
        backend.admit(request(handle, "What is this?", &sampled(20), seed)).unwrap();
        drain(&mut *backend, 1).remove(0).unwrap().token_ids
    };
    let first = draw(7);
    assert_eq!(draw(7), first);
    assert_ne!(draw(8), first);
}

#[test]
fn sequences_stop_at_a_stop_token_at_their_cap_and_at_the_end_of_the_context() {
    let probe = random::factory(&config(), options(1, None));
    let image = random::image(&probe.card().policy, 112, 112, 3);
    let run = |json: &serde_json::Value, tokens: u32| {
        let factory = random::factory(json, options(1, None));
        let mut backend = open(&factory, false);
        let handle = backend.encode(std::slice::from_ref(&image)).unwrap()[0];
        backend.admit(request(handle, "What is this?", &params(tokens), 0)).unwrap();
        assert_eq!(backend.free_sequences(), u32::from(tokens == 0));
        let generated = drain(&mut *backend, 1).remove(0).unwrap();
        assert_eq!(backend.free_sequences(), 1);
        generated
    };
    let full = run(&config(), 10);
    assert_eq!((full.token_ids.len(), full.finish), (10, FinishReason::Length));
    assert_eq!(run(&config(), 3).token_ids, full.token_ids[..3]);
    assert_eq!(run(&config(), 0).token_ids, [0_u32; 0]);

    let stop = full.token_ids.iter().position(|id| *id != full.token_ids[0]).unwrap_or(0);
    let mut json = config();
    json["eos_token_id"] = serde_json::json!([2, full.token_ids[stop]]);
    let stopped = run(&json, 10);
    assert_eq!((stopped.token_ids.as_slice(), stopped.finish), (&full.token_ids[..stop], FinishReason::Stop));

    json = config();
    json["max_position_embeddings"] = serde_json::json!(full.prompt_tokens + 4);
    let cut = run(&json, 10);
    assert_eq!((cut.token_ids.as_slice(), cut.finish), (&full.token_ids[..4], FinishReason::Length));
}

#[test]
fn a_prompt_that_does_not_fit_fails_alone() {
    let factory = random::factory(&config(), options(2, None));
    let mut backend = open(&factory, false);
    let handle = backend.encode(&[random::image(&factory.card().policy, 112, 112, 3)]).unwrap()[0];
    backend.admit(request(handle, "What is this?", &params(3), 0)).unwrap();
    let error = backend.admit(request(handle, &"why ".repeat(300), &params(3), 0)).unwrap_err();
    assert_eq!((error.fate, error.class), (Fate::Row, ErrorClass::PromptTooLong));
    assert!(error.message.contains("the model takes 220"), "{error}");
    assert_eq!(backend.free_sequences(), 1);
    assert_eq!(drain(&mut *backend, 1)[0].as_ref().unwrap().token_ids.len(), 3);
}

#[test]
fn numbers_that_are_not_finite_fail_their_row_and_no_other() {
    for portable in [false, true] {
        let factory = random::factory(&config(), options(2, None));
        let policy = &factory.card().policy;
        let (good, mut bad) = (random::image(policy, 300, 200, 1), random::image(policy, 90, 130, 2));
        bad.views[0].patches[5] = f32::NAN;
        let mut backend = open(&factory, portable);
        let expected = {
            let handle = backend.encode(std::slice::from_ref(&good)).unwrap()[0];
            backend.admit(request(handle, PROMPTS[0], &params(6), 0)).unwrap();
            drain(&mut *backend, 1).remove(0).unwrap().token_ids
        };
        let handles = backend.encode(&[bad, good]).unwrap();
        assert_eq!(backend.read_tokens(handles[0]).unwrap_err().class, ErrorClass::ModelFailed);
        for _ in 0..2 {
            let error = backend.admit(request(handles[0], PROMPTS[0], &params(6), 0)).unwrap_err();
            assert_eq!((error.fate, error.class), (Fate::Row, ErrorClass::ModelFailed));
        }
        assert_eq!(backend.free_sequences(), 2);
        for _ in 0..2 {
            backend.admit(request(handles[1], PROMPTS[0], &params(6), 0)).unwrap();
        }
        for generated in drain(&mut *backend, 2) {
            assert_eq!(generated.unwrap().token_ids, expected, "portable {portable}");
        }
    }
}

#[test]
fn an_abandoned_sequence_is_gone_and_its_slot_free() {
    let factory = random::factory(&config(), options(2, None));
    let mut backend = open(&factory, false);
    let handle = backend.encode(&[random::image(&factory.card().policy, 112, 112, 3)]).unwrap()[0];
    let first = backend.admit(request(handle, PROMPTS[0], &params(5), 0)).unwrap();
    let second = backend.admit(request(handle, PROMPTS[1], &params(5), 0)).unwrap();
    backend.step().unwrap();
    backend.abandon(first);
    assert_eq!(backend.free_sequences(), 1);
    assert_eq!(drain(&mut *backend, 1)[0].as_ref().unwrap().sequence, second);
    backend.abandon(second);
    assert_eq!(backend.free_sequences(), 2);
}

#[test]
fn views_that_are_not_their_plan_are_refused() {
    let factory = random::factory(&config(), options(2, None));
    let mut backend = open(&factory, false);
    let good = random::image(&factory.card().policy, 300, 200, 1);
    let mut short = good.clone();
    short.views[2].patches.pop();
    let mut fewer = good.clone();
    fewer.views.pop();
    for bad in [short, fewer] {
        let error = backend.encode(&[good.clone(), bad]).unwrap_err();
        assert_eq!((error.fate, error.class), (Fate::Row, ErrorClass::ModelFailed));
    }
    assert_eq!(backend.encode(&[]).unwrap(), []);
}

#[test]
fn cpu_devices_share_one_copy_of_the_weights() {
    let factory = random::factory(&config(), options(2, None));
    let _backends = [0, 1].map(|i| factory.open(DeviceId::Cpu(i)).unwrap());
    assert_eq!(factory.cpu_copies(), 2, "two backends hold the one model");
}

#[test]
fn all_slice_counts_are_among_the_test_images() {
    let factory = random::factory(&config(), options(2, None));
    let mut slices: Vec<u32> = images(&factory.card().policy).iter().map(|image| image.plan.slices()).collect();
    slices.sort_unstable();
    slices.dedup();
    assert!(slices.len() >= 4 && slices[0] == 0, "{slices:?} from {SIZES:?}");
}
