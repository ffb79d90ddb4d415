//! What goes wrong, and that nothing else does.

use slicemill_core::Fate;

use super::*;
use crate::fake::{FakeCall, FakeFailure, FakeFault};

fn fault(call: FakeCall, nth: u64, times: u64, fate: Fate, class: ErrorClass) -> FakeOptions {
    let fault = FakeFault { call, nth, times, failure: FakeFailure::Error(fate, class) };
    FakeOptions { faults: vec![fault], ..FakeOptions::default() }
}

fn expected(task: TaskKind) -> Vec<RowOutcome> {
    run(task, "cpu", limits(), FakeOptions::default(), Input::images(14, task))
}

/// Runs with this fake; the rows that fail are returned, all others must be as without it.
fn failed_rows(task: TaskKind, options: FakeOptions) -> Vec<FailedRow> {
    let got = run(task, "cpu", limits(), options, Input::images(14, task));
    for (got, expected) in got.iter().zip(expected(task)) {
        assert!(matches!(got, RowOutcome::Failed(_)) || *got == expected, "{got:?} is not {expected:?}");
    }
    failures(&got).into_iter().cloned().collect()
}

#[test]
fn transient_errors_and_failed_batches_leave_no_trace() {
    use {ErrorClass as C, Fate as F};
    for nth in [1, 2, 4] {
        for (call, fate, class) in [
            (FakeCall::Encode, F::Transient, C::ModelFailed),
            (FakeCall::Encode, F::Row, C::OutOfMemory),
            (FakeCall::Encode, F::Row, C::ModelFailed),
            (FakeCall::Admit, F::Transient, C::ModelFailed),
            (FakeCall::Step, F::Transient, C::ModelFailed),
            (FakeCall::Step, F::Row, C::OutOfMemory),
            (FakeCall::StepOldest, F::Transient, C::ModelFailed),
        ] {
            // The first admitted sequence is alone on the device, so running out of memory is its own failure.
            let failed = failed_rows(TaskKind::Ask, fault(call, nth, 1, fate, class));
            assert_eq!(failed, [], "{call:?} {nth} {fate:?} {class:?}");
        }
    }
    assert_eq!(failed_rows(TaskKind::Ask, fault(FakeCall::Admit, 3, 1, F::Row, C::OutOfMemory)), []);
    assert_eq!(failed_rows(TaskKind::Ask, fault(FakeCall::StepOldest, 2, 1, F::Row, C::OutOfMemory)), []);
    assert_eq!(failed_rows(TaskKind::Encode, fault(FakeCall::ReadTokens, 3, 2, F::Transient, C::ModelFailed)), []);
}

#[test]
fn a_row_error_of_one_call_fails_one_row() {
    let check = |task, call, stage| {
        let failed = failed_rows(task, fault(call, 3, 1, Fate::Row, ErrorClass::ModelFailed));
        let seen: Vec<_> = failed.iter().map(|row| (row.error.class, row.error.stage, row.attempts)).collect();
        assert_eq!(seen, [(ErrorClass::ModelFailed, stage, 1)], "{call:?}");
        failed.into_iter().next().unwrap()
    };
    check(TaskKind::Caption, FakeCall::Admit, Stage::Generate);
    check(TaskKind::Caption, FakeCall::StepOldest, Stage::Generate);
    check(TaskKind::Encode, FakeCall::ReadTokens, Stage::Encode);
    let named = check(TaskKind::Ask, FakeCall::Admit, Stage::Generate);
    assert!(named.error.message.contains("question 2 (\"What text?\"): Admit 3 failed"), "{}", named.error.message);
}

#[test]
fn transient_errors_end_as_a_row_after_the_last_retry() {
    // One image per batch, so that the image is not tried again in halves.
    let alone = RuntimeLimits { batch: BatchLimits { views_max: 1, ..limits().batch }, ..limits() };
    for call in [FakeCall::Encode, FakeCall::Admit] {
        let options = fault(call, 2, 4, Fate::Transient, ErrorClass::ModelFailed);
        let got = run(TaskKind::Caption, "cpu", alone, options, Input::images(6, TaskKind::Caption));
        let attempts: Vec<u32> = failures(&got).iter().map(|row| row.attempts).collect();
        assert_eq!(attempts, [4], "{call:?}");
    }
}

#[test]
fn batches_are_halved_until_they_fit() {
    let options = FakeOptions { views_memory_max: Some(5), ..FakeOptions::default() };
    let failed = failed_rows(TaskKind::Caption, options);
    let too_large: Vec<String> = rows_of(&expected(TaskKind::Caption))
        .iter()
        .filter(|row| row.slices + 1 > 5)
        .map(|row| row.key.clone())
        .collect();
    assert!(!too_large.is_empty() && too_large.len() < 14, "the sizes test nothing");
    assert_eq!(failed.iter().map(|row| row.key.clone()).collect::<Vec<_>>(), too_large);
    assert!(failed.iter().all(|row| row.error.class == ErrorClass::OutOfMemory && row.error.stage == Stage::Encode));
}

#[test]
fn the_one_image_that_cannot_be_encoded_is_found() {
    let width = rows_of(&expected(TaskKind::Ask))[15].width;
    let failed = failed_rows(TaskKind::Ask, FakeOptions { bad_width: Some(width), ..FakeOptions::default() });
    let keys: Vec<_> = failed.iter().map(|row| row.key.as_str()).collect();
    assert_eq!(keys, ["image-005.png"]);
}

#[test]
fn fewer_sequences_run_together_when_memory_is_short() {
    let options = FakeOptions { sequences_memory_max: Some(2), ..FakeOptions::default() };
    assert_eq!(failed_rows(TaskKind::Ask, options), []);
}

#[test]
fn a_question_that_fails_fails_its_image_and_is_named() {
    let mut input = Input::images(8, TaskKind::Ask);
    let odd = PromptItem { question_id: Some(7), question: "What is bad here?".into(), prompt: None };
    for number in [2, 5] {
        let first = input.rows[number].prompts[0].clone();
        input.rows[number].prompts = Arc::new([first, odd.clone(), PromptItem { question_id: Some(8), ..odd.clone() }]);
    }
    let options = FakeOptions { bad_prompt: Some("bad".into()), ..FakeOptions::default() };
    let outcomes = run(TaskKind::Ask, "cpu", limits(), options, input);
    for failed in failures(&outcomes) {
        assert!(["image-002.png", "image-005.png"].contains(&failed.key.as_str()));
        // A fake answer can be shorter than the token that fails: then the next question is the first that fails.
        assert!(failed.error.message.starts_with("question 7 (") || failed.error.message.starts_with("question 8 ("));
    }
    assert!(!failures(&outcomes).is_empty());
}

#[test]
fn a_prompt_that_does_not_fit_fails_before_anything_is_encoded() {
    let mut factory = FakeFactory::new(small_policy(), FakeOptions::default());
    factory.card_mut().context_tokens_max = 15;
    let rig = Rig::with_factory(Arc::new(factory), spec(TaskKind::Ask), "cpu", limits());
    let outcomes = rig.run(Input::images(14, TaskKind::Ask)).unwrap();
    let failed = failures(&outcomes);
    for failed in &failed {
        assert_eq!((failed.error.class, failed.error.stage), (ErrorClass::PromptTooLong, Stage::Plan));
        assert!(failed.error.message.starts_with("question "), "{}", failed.error.message);
    }
    let fitting = 14 - failed.len();
    assert!(fitting > 0 && !failed.is_empty(), "the sizes test nothing");
    let counts = rig.close();
    assert_eq!((counts.encoded.len(), counts.finished), (fitting, 3 * fitting));
}

#[test]
fn an_object_that_outgrew_the_listing_fails() {
    let mut input = Input::images(3, TaskKind::Caption);
    input.rows[1].bytes -= 1;
    let outcomes = run(TaskKind::Caption, "cpu", limits(), FakeOptions::default(), input);
    let failed = failures(&outcomes);
    assert_eq!((failed.len(), failed[0].error.class), (1, ErrorClass::SourceChanged));
}

#[test]
fn fatal_errors_end_the_chunk_and_leave_the_device_clean() {
    for (call, nth) in [(FakeCall::Encode, 2), (FakeCall::Admit, 4), (FakeCall::Step, 3), (FakeCall::StepOldest, 2)] {
        let rig = Rig::new(TaskKind::Ask, "cpu", limits(), fault(call, nth, 1, Fate::Fatal, ErrorClass::ModelFailed));
        let error = rig.run(Input::images(14, TaskKind::Ask)).unwrap_err();
        let PipelineError::Fatal(message) = error else { panic!("{error:?}") };
        assert!(message.starts_with("device cpu:0: ") && message.contains("on demand"), "{message}");
        // The device can be leased again, and the fault has passed.
        assert_eq!(rig.run(Input::images(3, TaskKind::Ask)).unwrap().len(), 3);
        rig.close();
    }
}

#[test]
fn a_store_that_is_gone_ends_the_chunk() {
    let slow = FakeOptions { call_time: Duration::from_millis(1), ..FakeOptions::default() };
    let rig = Rig::new(TaskKind::Ask, "cpu", RuntimeLimits { window_bytes_max: 2000, ..limits() }, slow);
    let mut input = Input::images(20, TaskKind::Ask);
    input.add("fatal.png", None, TaskKind::Ask);
    assert_eq!(rig.run(input), Err(PipelineError::Fatal("the store is gone".into())));
    assert_eq!(rig.run(Input::images(3, TaskKind::Ask)).unwrap().len(), 3);
    rig.close();
}

#[test]
fn a_device_that_cannot_be_opened_is_named() {
    for failure in [FakeFailure::Error(Fate::Fatal, ErrorClass::OutOfMemory), FakeFailure::Panic] {
        let fault = FakeFault { call: FakeCall::Open, nth: 2, times: 1, failure };
        let options = FakeOptions { faults: vec![fault], ..FakeOptions::default() };
        let factory: Arc<dyn BackendFactory> = Arc::new(FakeFactory::new(small_policy(), options));
        let error = DevicePool::start(&factory, &parse_devices("cpu:0,cpu:1").unwrap()).err().unwrap();
        let message = error.to_string();
        assert!(message.contains("cannot be opened") && message.contains("Open 2"), "{message}");
    }
}

#[test]
fn a_dropped_chunk_gives_its_device_back() {
    let slow = FakeOptions { call_time: Duration::from_millis(2), ..FakeOptions::default() };
    for millis in [0, 3, 10, 25, 60] {
        for task in [TaskKind::Ask, TaskKind::Encode] {
            let rig = Rig::new(task, "cpu", limits(), slow.clone());
            let (rows, store) = Input::images(40, task).store();
            let chunk = rig.annotator.annotate_chunk(rows, store);
            let dropped = wait(async { tokio::time::timeout(Duration::from_millis(millis), chunk).await });
            let finished = dropped.is_ok();
            // The next chunk gets the device and its content is untouched by what was dropped.
            let next = content(rig.run(Input::images(5, task)).unwrap());
            assert_eq!(next, run(task, "cpu", limits(), FakeOptions::default(), Input::images(5, task)));
            assert!(!finished || millis == 60, "the chunk ended in {millis} ms, which tests nothing");
            // A decoder may still be at work on an image that nobody waits for.
            let freed = (0..500).any(|_| {
                std::thread::sleep(Duration::from_millis(10));
                rig.annotator.gauge().held_bytes() == 0
            });
            assert!(freed, "{} bytes are still held", rig.annotator.gauge().held_bytes());
            rig.close();
        }
    }
}
