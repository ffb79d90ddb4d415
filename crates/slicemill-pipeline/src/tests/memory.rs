//! Devices that run out of memory: less runs together, and only what has no room alone fails.

use slicemill_core::Fate;

use super::*;
use crate::fake::{FakeCall, FakeFailure, FakeFault, FakeMemory};

const ROWS: u32 = 14;

fn clean(task: TaskKind) -> Vec<RowOutcome> {
    run(task, "cpu", limits(), FakeOptions::default(), Input::images(ROWS, task))
}

/// Keys of rows with more views than this.
fn too_large(task: TaskKind, views_max: u32) -> Vec<String> {
    let outcomes = clean(task);
    let first = |outcome: &RowOutcome| match outcome {
        RowOutcome::Ok { rows, .. } if rows[0].slices + 1 > views_max => Some(rows[0].key.clone()),
        _ => None,
    };
    outcomes.iter().filter_map(first).collect()
}

#[test]
fn rows_fail_only_when_there_is_no_memory_for_them_alone() {
    let all = [
        (FakeCall::Encode, TaskKind::Caption, Stage::Encode),
        (FakeCall::Encode, TaskKind::Encode, Stage::Encode),
        (FakeCall::ReadTokens, TaskKind::Encode, Stage::Encode),
        (FakeCall::Admit, TaskKind::Caption, Stage::Generate),
        (FakeCall::Admit, TaskKind::Ask, Stage::Generate),
        (FakeCall::Step, TaskKind::Caption, Stage::Generate),
        (FakeCall::Step, TaskKind::Ask, Stage::Generate),
    ];
    for (call, task, stage) in all {
        let views_max = 5;
        let expected = too_large(task, views_max);
        assert!(!expected.is_empty() && expected.len() < 10, "the sizes test nothing");
        let memory = vec![FakeMemory { call, views_max: views_max as usize }];
        let rig = Rig::new(task, "cpu", limits(), FakeOptions { memory, ..FakeOptions::default() });
        let got = content(rig.run(Input::images(ROWS, task)).unwrap());
        for (got, clean) in got.iter().zip(clean(task)) {
            assert!(matches!(got, RowOutcome::Failed(_)) || *got == clean, "{got:?} is not {clean:?}");
        }
        let failed = failures(&got);
        assert_eq!(failed.iter().map(|row| row.key.clone()).collect::<Vec<_>>(), expected, "{call:?} {task:?}");
        for row in failed {
            assert_eq!((row.error.class, row.error.stage), (ErrorClass::OutOfMemory, stage));
            assert!(row.error.message.contains(&format!("no memory for {call:?} with ")), "{}", row.error.message);
        }
        assert!(rig.progress.snapshot().oom_halvings > 0);
        assert_eq!(rig.progress.snapshot().worker_deaths, 0);
        assert!(rig.close().out_of_memory > expected.len() as u64, "the fault fired before rows were alone");
    }
}

#[test]
fn what_fails_for_want_of_memory_does_not_depend_on_company() {
    let task = TaskKind::Ask;
    let options = FakeOptions {
        memory: vec![
            FakeMemory { call: FakeCall::Step, views_max: 7 },
            FakeMemory { call: FakeCall::Encode, views_max: 6 },
        ],
        ..FakeOptions::default()
    };
    let expected = run(task, "cpu", limits(), options.clone(), Input::images(ROWS, task));
    assert!(!failures(&expected).is_empty());
    for (views_max, sequences_max) in [(1, 1), (7, 32), (64, 2), (64, 64)] {
        let limits = RuntimeLimits { batch: BatchLimits { views_max, ..limits().batch }, sequences_max, ..limits() };
        let got = run(task, "cpu:0,cpu:1", limits, options.clone(), Input::images(ROWS, task));
        let rows = |outcomes: &[RowOutcome]| rows_of(outcomes).into_iter().cloned().collect::<Vec<_>>();
        assert_eq!(rows(&got), rows(&expected), "{views_max} {sequences_max}");
        let keys = |outcomes: &[RowOutcome]| failures(outcomes).iter().map(|row| row.key.clone()).collect::<Vec<_>>();
        assert_eq!(keys(&got), keys(&expected));
    }
}

#[test]
fn transient_errors_are_tried_as_often_as_the_limit_says() {
    // One image per batch, so that the image is not tried again in halves.
    let batch = BatchLimits { views_max: 1, ..limits().batch };
    for (call, task) in [
        (FakeCall::Encode, TaskKind::Caption),
        (FakeCall::ReadTokens, TaskKind::Encode),
        (FakeCall::Admit, TaskKind::Caption),
        (FakeCall::Step, TaskKind::Caption),
    ] {
        for (retries, expected) in [(0, 1), (2, 1), (3, 0), (9, 0)] {
            let limits = RuntimeLimits { transient_retries_max: retries, batch, sequences_max: 1, ..limits() };
            let failure = FakeFailure::Error(Fate::Transient, ErrorClass::ModelFailed);
            let faults = vec![FakeFault { call, nth: 2, times: 3.min(u64::from(retries) + 1), failure }];
            let rig = Rig::new(task, "cpu", limits, FakeOptions { faults, ..FakeOptions::default() });
            let outcomes = rig.run(Input::images(4, task)).unwrap();
            let attempts: Vec<u32> = failures(&outcomes).iter().map(|row| row.attempts).collect();
            assert_eq!(attempts, vec![retries + 1; expected], "{call:?} {retries}");
            assert_eq!(rig.progress.snapshot().device_retries, u64::from(retries).min(3));
            assert_eq!(rig.close().fired[&call], 3.min(u64::from(retries) + 1));
        }
    }
}
