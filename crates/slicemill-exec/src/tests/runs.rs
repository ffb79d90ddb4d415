//! Runs: the plan, the rows, and that topology, stops and resumes leave the content as it is.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use slicemill_core::{ErrorClass, Fate};
use slicemill_io::{Counts, LedgerState};
use slicemill_pipeline::fake::{FakeCall, FakeFailure, FakeFault, FakeOptions};
use slicemill_pipeline::{BackendFactory, NullFactory};

use super::{Place, cpus, fake, png, run, run_with, stores};
use crate::nodes::JobRef;
use crate::plan::{NodeSpec, PlanLayout, build_plan, units_left};
use crate::runner::plan_text;
use crate::{
    ExecError, FrozenJob, Job, JobDraft, RunObserver, RunOptions, RunSummary, StopSignal, retry_job, run_job,
    verify_output,
};

async fn assert_verified(place: &Place, output: &str) {
    let verification = verify_output(&place.at(output), &stores()).await.unwrap();
    assert!(verification.passed(), "{}", verification.to_text());
}

#[test]
fn the_plan_is_units_annotate_write_coalesce_commit() {
    let place = Place::new();
    let factory = fake(FakeOptions::default());
    let job = place.job("caption", "out", "");
    let generation = slicemill_io::Generation {
        number: 0,
        rows: 20,
        digest: String::new(),
        chunk_rows: 4,
        shard_chunks: 2,
        shard_first: 0,
        file: None,
    };
    let frozen = FrozenJob::new(&job, factory.card(), slicemill_io::ColumnTypes::default());
    let reference = JobRef { output: "file:///out".to_owned(), fingerprint: frozen.fingerprint.clone(), retry: 0 };
    let spec = NodeSpec { job: reference, frozen, rows: 20, shards: 3, part: None };
    let units = units_left(&[generation], &LedgerState::default(), None);
    let layout = PlanLayout { partitions_max: 2, chunks_in_flight: 3 };
    insta::assert_snapshot!(plan_text(&build_plan(spec.clone(), &units, layout).unwrap()));
    let decoded: NodeSpec = serde_json::from_str(&serde_json::to_string(&spec).unwrap()).unwrap();
    assert_eq!(decoded, spec, "specs are plain data");
}

#[tokio::test]
async fn captions() {
    let place = Place::new();
    let job = place.job("caption", "out", "output.columns = ['+token_ids']\n");
    let summary = run(&job).await.unwrap();
    let counts = &summary.total;
    assert_eq!((counts.inputs, counts.ok, counts.failed, counts.skipped), (13, 9, 3, 1));
    assert_eq!((summary.rows, summary.rows_before, summary.already_done, summary.interrupted), (13, 0, false, false));
    assert_eq!(summary.total, summary.this_run);
    assert_eq!(
        counts.failed_by_class.keys().map(String::as_str).collect::<Vec<_>>(),
        ["empty", "not_an_image", "truncated"]
    );
    assert_verified(&place, "out").await;
}

#[tokio::test]
async fn answers_encode_each_image_once() {
    let place = Place::new();
    let job = place.job("ask", "out", "questions.ask = ['How many?', 'Where?', 'What colour?']\n");
    let factory = fake(FakeOptions::default());
    let summary = run_with(&job, &cpus(1), Arc::clone(&factory)).await.unwrap();
    assert_eq!((summary.total.ok, summary.total.content_rows), (9, 27));
    assert!(factory.counts().encoded.values().all(|times| *times == 1));
    assert_eq!(factory.counts().encoded.len(), 9);
    let one = place.job("ask", "one", "questions.ask = ['How many?']\n");
    let one = run(&one).await.unwrap();
    assert_eq!(summary.total.flops.vision, one.total.flops.vision, "vision compute does not grow with the questions");
    assert_verified(&place, "out").await;
}

#[tokio::test]
async fn visual_tokens_do_not_depend_on_batches() {
    let place = Place::new();
    for dtype in ["f32", "f16"] {
        let more = format!("encode.dtype = '{dtype}'\n");
        let first = place.job("encode", &format!("{dtype}-a"), &more);
        let summary = run(&first).await.unwrap();
        assert_eq!((summary.total.ok, summary.total.content_rows), (9, 9));
        assert_eq!(summary.total.output_tokens, 0);
        let second = place.job("encode", &format!("{dtype}-b"), &more);
        let options = RunOptions { batch_views: Some(1), ..cpus(2) };
        run_with(&second, &options, fake(FakeOptions::default())).await.unwrap();
        assert_eq!(place.content(&format!("{dtype}-a")), place.content(&format!("{dtype}-b")));
        assert_verified(&place, &format!("{dtype}-a")).await;
    }
}

#[tokio::test]
async fn content_does_not_depend_on_topology() {
    let place = Place::new();
    run(&place.job("caption", "plain", "")).await.unwrap();
    let plain = place.content("plain");
    assert!(plain.len() >= 4, "{:?}", plain.keys());
    let variants = [
        ("two", cpus(2)),
        ("three", RunOptions { batch_views: Some(3), ..cpus(3) }),
        ("small", RunOptions { batch_views: Some(1), sequences: Some(1), fetches: Some(1), ..cpus(1) }),
        ("tight", RunOptions { memory_bytes: Some(1 << 20), threads: Some(1), ..cpus(2) }),
    ];
    for (name, options) in variants {
        run_with(&place.job("caption", name, ""), &options, fake(FakeOptions::default())).await.unwrap();
        assert!(place.content(name) == plain, "{name}");
    }
}

#[tokio::test]
async fn the_null_model_goes_the_same_way() {
    let place = Place::new();
    let card = fake(FakeOptions::default()).card().clone();
    let factory: Arc<dyn BackendFactory> = Arc::new(NullFactory::new(card.policy, card.token_rule, card.normalisation));
    let text = format!(
        "task = 'caption'\nmodel.name = 'null'\ninput.paths = ['{}']\noutput.path = '{}'\n",
        place.input().display(),
        place.at("out")
    );
    let job = JobDraft::from_text("job.toml", &text, &[]).unwrap().resolve(factory.card()).unwrap();
    let summary = run_job(&job, &cpus(2), factory, StopSignal::new(), Arc::new(())).await.unwrap();
    assert_eq!((summary.total.ok, summary.total.output_tokens), (9, 0));
    assert_verified(&place, "out").await;
}

#[tokio::test]
async fn a_finished_job_is_left_alone() {
    let place = Place::new();
    let job = place.job("caption", "out", "");
    let first = run(&job).await.unwrap();
    let factory = fake(FakeOptions::default());
    let again = run_with(&job, &cpus(1), Arc::clone(&factory)).await.unwrap();
    assert!(again.already_done && !first.already_done);
    assert_eq!(again.total, first.total);
    assert_eq!(factory.counts().calls, Default::default(), "no device is opened");
}

/// Asks to stop when a number of chunks is committed.
struct StopAfter {
    chunks: AtomicU32,
    requests: u32,
    stop: StopSignal,
}

impl RunObserver for StopAfter {
    fn committed(&self, _: &Counts) {
        if self.chunks.fetch_sub(1, Relaxed) == 1 {
            (0..self.requests).for_each(|_| self.stop.request());
        }
    }
}

async fn run_and_stop(job: &Job, chunks: u32, requests: u32) -> Result<RunSummary, ExecError> {
    let stop = StopSignal::new();
    let observer = Arc::new(StopAfter { chunks: AtomicU32::new(chunks), requests, stop: stop.clone() });
    run_job(job, &cpus(1), fake(FakeOptions::default()), stop, observer).await
}

#[tokio::test]
async fn stopped_runs_are_resumed_to_the_same_content() {
    let place = Place::new();
    for number in 20..40 {
        place.write(&format!("more/{number}.png"), &png(30, number, number));
    }
    run(&place.job("caption", "plain", "")).await.unwrap();
    let plain = place.content("plain");
    for chunks in 1..8 {
        let name = format!("drained-{chunks}");
        let job = place.job("caption", &name, "");
        let stopped = run_and_stop(&job, chunks, 1).await.unwrap();
        assert!(stopped.total.conserved());
        if stopped.interrupted {
            assert!(stopped.total.inputs < 33 && stopped.total.inputs >= 4, "{stopped:?}");
            assert!(
                !verify_output(&place.at(&name), &stores()).await.unwrap().passed(),
                "an incomplete output is not verified"
            );
            let resumed = run(&job).await.unwrap();
            assert_eq!(resumed.rows_before, stopped.total.inputs, "nothing committed is done again");
            assert_eq!(resumed.this_run.inputs + stopped.total.inputs, 33);
        }
        assert!(place.content(&name) == plain, "{name}");
        assert_verified(&place, &name).await;
    }
    for chunks in 1..4 {
        let name = format!("aborted-{chunks}");
        let job = place.job("caption", &name, "");
        let stopped = run_and_stop(&job, chunks, 2).await;
        assert!(matches!(stopped, Err(ExecError::Stopped)), "{stopped:?}");
        run(&job).await.unwrap();
        assert!(place.content(&name) == plain, "{name}");
        assert_verified(&place, &name).await;
    }
}

#[tokio::test]
async fn a_failing_device_ends_the_job_and_a_later_run_completes_it() {
    let place = Place::new();
    run(&place.job("caption", "plain", "")).await.unwrap();
    let failure = FakeFailure::Error(Fate::Fatal, ErrorClass::ModelFailed);
    let faults = vec![FakeFault { call: FakeCall::Encode, nth: 2, times: 1, failure }];
    let broken = fake(FakeOptions { faults, ..FakeOptions::default() });
    let job = place.job("caption", "out", "");
    let options = RunOptions { batch_views: Some(2), ..cpus(1) };
    let error = run_with(&job, &options, broken).await.unwrap_err();
    assert!(matches!(error, ExecError::Pipeline(_)), "{error:?}");
    run(&job).await.unwrap();
    assert!(place.content("out") == place.content("plain"));
    assert_verified(&place, "out").await;
}

#[tokio::test]
async fn another_job_in_the_same_output_is_refused() {
    let place = Place::new();
    run(&place.job("caption", "out", "")).await.unwrap();
    let other = place.job("caption", "out", "prompt.text = 'Count.'\nslicing.max_slices = 3\n");
    let error = run(&other).await.unwrap_err().to_string();
    assert!(
        error.ends_with(
            "out holds a different job:\n  policy.max_slices: was 7, now 3\n  prompt: was \"Describe.\", now \"Count.\"\n\
             choose another output"
        ),
        "{error}"
    );
    assert!(matches!(run(&place.job("encode", "out", "")).await, Err(ExecError::Different(_))));
}

#[tokio::test]
async fn new_inputs_are_refused_until_the_job_is_extended() {
    let place = Place::new();
    let job = place.job("caption", "out", "");
    run(&job).await.unwrap();
    let before = place.content("out");
    place.write("later/new.png", &png(70, 20, 99));
    let error = run(&job).await.unwrap_err().to_string();
    assert!(
        error.ends_with(
            "holds a different job:\n  inputs: 13 as before, 1 new (later/new.png)\n\
             choose another output, or add --extend to take the new inputs in"
        ),
        "{error}"
    );
    let extend = RunOptions { extend: true, ..cpus(1) };
    let summary = run_with(&job, &extend, fake(FakeOptions::default())).await.unwrap();
    assert_eq!((summary.total.inputs, summary.this_run.inputs, summary.rows_before), (14, 1, 13));
    let after = place.content("out");
    assert!(before.iter().all(|(name, bytes)| after.get(name) == Some(bytes)), "earlier files stay as they are");
    assert_verified(&place, "out").await;
    assert!(run(&job).await.unwrap().already_done);
    // A changed input is never taken in.
    place.write("even/image-0.png", &png(41, 30, 1));
    let error = run_with(&job, &extend, fake(FakeOptions::default())).await.unwrap_err().to_string();
    assert!(error.contains("1 changed (even/image-0.png)") && error.ends_with("choose another output"), "{error}");
}

#[tokio::test]
async fn an_output_inside_the_input_is_not_an_input() {
    let place = Place::new();
    let job = place.job("caption", "in/out", "");
    assert_eq!(run(&job).await.unwrap().total.inputs, 13);
    assert!(run(&job).await.unwrap().already_done);
    let planned = crate::plan_job(&job, fake(FakeOptions::default()), &RunOptions::default()).await.unwrap();
    assert_eq!(planned.inputs, 13, "nor is it one of a plan");
}

#[tokio::test]
async fn an_empty_folder_is_refused_before_anything_is_written() {
    let place = Place::new();
    std::fs::remove_dir_all(place.input()).unwrap();
    std::fs::create_dir(place.input()).unwrap();
    let error = run(&place.job("caption", "out", "")).await.unwrap_err();
    assert!(matches!(&error, ExecError::Inputs(error) if error.message.contains("nothing to work on")), "{error:?}");
    assert!(!place.path("out/_slicemill/job.json").exists());
}

#[tokio::test]
async fn mended_rows_move_from_failed_to_content() {
    let place = Place::new();
    let job = place.job("caption", "out", "");
    run(&job).await.unwrap();
    place.write("broken/cut.png", &png(50, 50, 77));
    place.write("broken/text.jpg", &png(20, 20, 78));
    let retry = async |classes: Option<&[ErrorClass]>| {
        retry_job(&place.at("out"), classes, &cpus(1), fake(FakeOptions::default()), StopSignal::new(), Arc::new(()))
            .await
            .unwrap()
    };
    let first = retry(Some(&[ErrorClass::Truncated])).await;
    assert_eq!((first.rows, first.again.ok, first.again.failed), (1, 1, 0));
    assert_eq!((first.total.ok, first.total.failed), (10, 2));
    assert_verified(&place, "out").await;
    let second = retry(None).await;
    assert_eq!((second.rows, second.again.ok, second.again.failed), (2, 1, 1));
    assert_eq!((second.total.inputs, second.total.ok, second.total.failed, second.total.skipped), (13, 11, 1, 1));
    assert_verified(&place, "out").await;
    let none = retry(Some(&[ErrorClass::Truncated])).await;
    assert_eq!((none.rows, none.total), (0, second.total));
}

#[tokio::test]
async fn a_stopped_retry_goes_on() {
    let place = Place::new();
    for number in 20..32 {
        place.write(&format!("broken/{number}.png"), b"not yet");
    }
    let job = place.job("caption", "out", "");
    run(&job).await.unwrap();
    for number in 20..32 {
        place.write(&format!("broken/{number}.png"), &png(30, number, number));
    }
    let stop = StopSignal::new();
    let observer = Arc::new(StopAfter { chunks: AtomicU32::new(1), requests: 2, stop: stop.clone() });
    let out = place.at("out");
    let stopped = retry_job(&out, None, &cpus(1), fake(FakeOptions::default()), stop, observer).await;
    assert!(matches!(stopped, Err(ExecError::Stopped)), "{stopped:?}");
    let error = run(&job).await.unwrap_err().to_string();
    assert!(error.contains("run `slicemill retry` on it first"), "{error}");
    let again = retry_job(&out, None, &cpus(1), fake(FakeOptions::default()), StopSignal::new(), Arc::new(())).await;
    let again = again.unwrap();
    assert!(again.resumed);
    assert_eq!((again.rows, again.again.ok, again.total.failed), (15, 12, 3));
    assert_verified(&place, "out").await;
}
