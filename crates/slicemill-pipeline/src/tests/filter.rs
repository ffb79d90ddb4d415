//! Filters over plans and columns, columns that are carried along, and limits of failed rows.

use super::*;
use crate::{FailureLimit, Fault, Inspected, PlannedView, RowFilter, inspect_kept};

/// Keeps wide images; has no answer for one key.
struct Wide {
    width_min: u32,
    no_answer: &'static str,
}

impl RowFilter for Wide {
    fn keep(&self, row: &PlannedView<'_>) -> Result<bool, String> {
        assert_eq!((row.format, row.orientation_applied, row.policy), ("png", 1, "llava-uhd-raw"));
        assert_eq!((row.slices, row.visual_tokens), (row.grid_cols * row.grid_rows, 4 * (row.slices + 1)));
        assert_eq!(row.columns, Some(&*format!("{{\"key\":\"{}\"}}", row.key)));
        assert_eq!(row.source, format!("memory:///{}", row.key));
        assert!(row.bytes > 60 && row.height > 0);
        if row.key == self.no_answer {
            return Err("`license` is not a column".into());
        }
        Ok(row.width >= self.width_min)
    }

    fn describe(&self) -> String {
        format!("width >= {}", self.width_min)
    }
}

#[test]
fn rows_that_are_not_kept_are_skipped_before_their_pixels() {
    for task in TASKS {
        let clean = run(task, "cpu", limits(), FakeOptions::default(), Input::with_trouble(task));
        let rig = Rig::new(task, "cpu", limits(), FakeOptions::default());
        let Rig { factory, pool, annotator, progress } = rig;
        let annotator = annotator.with_filter(Some(Arc::new(Wide { width_min: 60, no_answer: "image-002.png" })));
        let rig = Rig { factory, pool, annotator, progress };
        let got = content(rig.run(Input::with_trouble(task)).unwrap());
        let (mut kept, mut skipped, mut failed) = (0, 0, 0);
        for (got, clean) in got.iter().zip(&clean) {
            let RowOutcome::Ok { rows, .. } = clean else {
                // An image that is cut short has a plan, so it is left out when it is not wide.
                let left_out = matches!(got, RowOutcome::Skipped(row) if row.key == "truncated.png");
                assert!(left_out || got == clean, "{got:?}");
                continue;
            };
            match got {
                RowOutcome::Failed(row) => {
                    failed += 1;
                    assert_eq!(
                        (row.key.as_str(), row.error.class, row.error.stage),
                        ("image-002.png", ErrorClass::BadRecord, Stage::Plan)
                    );
                    let message = "the condition `width >= 60` has no answer: `license` is not a column";
                    assert_eq!(row.error.message, message);
                }
                RowOutcome::Skipped(row) => {
                    skipped += 1;
                    assert!(rows[0].width < 60);
                    assert_eq!(row.reason, "where: width >= 60");
                }
                RowOutcome::Ok { .. } => {
                    kept += 1;
                    assert!(rows[0].width >= 60);
                    assert_eq!(got, clean);
                }
            }
        }
        assert!(kept > 0 && skipped > 0 && failed == 1);
        assert_eq!(rig.close().encoded.len(), kept);
    }
}

#[test]
fn planning_can_filter_by_the_same_hook() {
    let input = Input::images(1, TaskKind::Caption);
    let factory = FakeFactory::new(small_policy(), FakeOptions::default());
    let look = |filter: Option<&dyn RowFilter>| {
        let (row, bytes) = (&input.rows[0], &input.store.objects["image-000.png"]);
        inspect_kept(bytes, bytes.len() as u64, row, &spec(TaskKind::Caption), &factory, filter)
    };
    assert!(matches!(look(None), Ok(Inspected::Planned { .. })));
    assert!(matches!(look(Some(&Wide { width_min: 8, no_answer: "" })), Ok(Inspected::Planned { .. })));
    let skipped = look(Some(&Wide { width_min: 9, no_answer: "" }));
    assert_eq!(skipped, Ok(Inspected::Skipped("where: width >= 9".into())));
    let failed = look(Some(&Wide { width_min: 9, no_answer: "image-000.png" }));
    assert!(matches!(failed, Err(Fault::Row(error)) if error.class == ErrorClass::BadRecord));
}

#[test]
fn every_outcome_carries_the_columns_of_its_input() {
    for task in TASKS {
        let outcomes = run(task, "cpu", limits(), FakeOptions::default(), Input::with_trouble(task));
        for outcome in &outcomes {
            let expected = format!("{{\"key\":\"{}\"}}", key_of(outcome));
            let columns: Vec<_> = match outcome {
                RowOutcome::Ok { rows, .. } => rows.iter().map(|row| row.columns.as_deref()).collect(),
                RowOutcome::Failed(row) => vec![row.columns.as_deref()],
                RowOutcome::Skipped(row) => vec![row.columns.as_deref()],
            };
            assert!(columns.iter().all(|columns| *columns == Some(&*expected)), "{columns:?}");
        }
        assert!(rows_of(&outcomes).iter().all(|row| !row.truncated));
    }
}

#[test]
fn a_run_in_which_too_many_rows_fail_stops_in_all_its_chunks() {
    let failing = || {
        let mut input = Input::images(20, TaskKind::Caption);
        for number in [1, 3, 5, 7] {
            input.store.objects.remove(&input.rows[number].key);
        }
        input
    };
    let limit = |count| RuntimeLimits { failures: FailureLimit { count: Some(count), share: None }, ..limits() };
    let rig = Rig::new(TaskKind::Caption, "cpu", limit(4), FakeOptions::default());
    assert_eq!(failures(&rig.run(failing()).unwrap()).len(), 4, "as many as allowed");
    rig.close();

    let slow = FakeOptions { call_time: Duration::from_millis(5), ..FakeOptions::default() };
    let rig = Rig::new(TaskKind::Caption, "cpu", limit(3), slow);
    let runs = (0..3).map(|number| {
        let input = if number == 1 { failing() } else { Input::images(40, TaskKind::Caption) };
        let (rows, store) = input.store();
        rig.annotator.annotate_chunk(rows, store)
    });
    for ended in wait(futures::future::join_all(runs)) {
        let Err(PipelineError::TooManyFailed { message }) = ended else { panic!("{ended:?}") };
        assert!(message.contains("more than 3 rows failed: 4 of ") && message.contains("(not_found 4)"), "{message}");
        assert!(message.contains("image-001.png: fetch: not_found: not there"), "{message}");
    }
    until(|| rig.annotator.gauge().held_bytes() == 0, "something is held by a chunk that was stopped");
    rig.close();

    let senseless = RuntimeLimits { failures: FailureLimit { count: None, share: Some(1.5) }, ..limits() };
    let factory: Arc<dyn BackendFactory> = Arc::new(FakeFactory::new(small_policy(), FakeOptions::default()));
    let pool = Arc::new(DevicePool::start(&factory, &parse_devices("cpu").unwrap()).unwrap());
    let host = Arc::new(HostPool::new(1).unwrap());
    let refused = Annotator::new(factory, pool, host, spec(TaskKind::Encode), senseless, Arc::default());
    assert!(refused.err().unwrap().to_string().contains("share from 0 to 1"));
}

#[test]
fn waiting_and_memory_are_seen_in_the_progress() {
    let slow = FakeOptions { call_time: Duration::from_millis(20), ..FakeOptions::default() };
    let limits = RuntimeLimits { prepared_bytes_max: 1, window_bytes_max: 1, ..limits() };
    let rig = Rig::new(TaskKind::Encode, "cpu", limits, slow);
    let runs = (0..2).map(|_| {
        let (rows, store) = Input::images(8, TaskKind::Encode).store();
        rig.annotator.annotate_chunk(rows, store)
    });
    wait(futures::future::try_join_all(runs)).unwrap();
    let progress = rig.progress.snapshot();
    // One batch at a time is prepared: the host waits for the device, reads wait for the host, a chunk for the other.
    for waiting in [progress.prepare_waiting, progress.fetch_waiting, progress.lease_waiting] {
        assert!(waiting > Duration::from_millis(20), "{progress:?}");
    }
    assert!(progress.device_waiting > Duration::ZERO && progress.bytes_held_peak > 0, "{progress:?}");
    assert_eq!(progress.bytes_held, 0);
    rig.close();
}
