//! Workers that die or hang: what the other rows become, and what is said of the culprit.

use slicemill_core::Fate;

use super::*;
use crate::{
    ProgressSnapshot, Supervision, WorkLost,
    fake::{FakeCall, FakeCounts, FakeFailure, FakeFault, FakePoison},
};

const ROWS: u32 = 14;
const ALWAYS: u64 = u64::MAX;
const CALLS: [(FakeCall, TaskKind, Stage); 5] = [
    (FakeCall::Encode, TaskKind::Caption, Stage::Encode),
    (FakeCall::Encode, TaskKind::Encode, Stage::Encode),
    (FakeCall::ReadTokens, TaskKind::Encode, Stage::Encode),
    (FakeCall::Admit, TaskKind::Ask, Stage::Generate),
    (FakeCall::Step, TaskKind::Ask, Stage::Generate),
];

/// Width of the image with this number.
const fn width(number: u32) -> u32 {
    8 + number * 37 % 120
}

fn poison(number: u32, call: FakeCall, times: u64, failure: FakeFailure) -> FakePoison {
    FakePoison { width: width(number), call, times, failure }
}

fn poisoned(poison: Vec<FakePoison>) -> FakeOptions {
    FakeOptions { poison, ..FakeOptions::default() }
}

fn faulty(call: FakeCall, nth: u64, times: u64, failure: FakeFailure) -> FakeOptions {
    FakeOptions { faults: vec![FakeFault { call, nth, times, failure }], ..FakeOptions::default() }
}

/// Calls of more than a tenth of a second are hangs.
fn watchful() -> RuntimeLimits {
    RuntimeLimits { device_timeout: Some(Duration::from_millis(150)), ..limits() }
}

struct Ran {
    failed: Vec<FailedRow>,
    counts: FakeCounts,
    progress: ProgressSnapshot,
}

/// Runs a chunk; rows that do not fail must be as in a clean run.
fn ran(task: TaskKind, devices: &str, limits: RuntimeLimits, options: FakeOptions) -> Ran {
    let clean = run(task, "cpu", limits, FakeOptions::default(), Input::images(ROWS, task));
    let rig = Rig::new(task, devices, limits, options);
    let outcomes = content(rig.run(Input::images(ROWS, task)).unwrap());
    assert_eq!(outcomes.len(), clean.len());
    for (got, clean) in outcomes.iter().zip(&clean) {
        assert!(matches!(got, RowOutcome::Failed(_)) || got == clean, "{got:?} is not {clean:?}");
        assert_eq!(key_of(got), key_of(clean));
    }
    let progress = rig.progress.snapshot();
    assert_eq!((progress.images_done(), progress.images_planned), (u64::from(ROWS), u64::from(ROWS)));
    let failed = failures(&outcomes).into_iter().cloned().collect();
    Ran { failed, counts: rig.close(), progress }
}

#[test]
fn one_panic_costs_no_row() {
    for (call, task, _) in CALLS {
        for nth in [1, 3, 5] {
            let Ran { failed, counts, progress } = ran(task, "cpu", limits(), faulty(call, nth, 1, FakeFailure::Panic));
            assert_eq!(failed, [], "{call:?} {nth}");
            assert_eq!((counts.fired[&call], counts.opened), (1, 2), "{call:?} {nth}");
            assert_eq!((progress.worker_deaths, progress.worker_restarts, progress.worker_hangs), (1, 1, 0));
            assert!(progress.rows_rerun > 0);
        }
    }
}

#[test]
fn a_row_that_kills_once_is_done_the_second_time() {
    for (call, task, _) in CALLS {
        let Ran { failed, counts, .. } =
            ran(task, "cpu", limits(), poisoned(vec![poison(6, call, 1, FakeFailure::Panic)]));
        assert_eq!((failed, counts.fired[&call]), (vec![], 1), "{call:?}");
    }
}

#[test]
fn a_row_that_always_kills_is_found_and_fails_alone() {
    for (call, task, stage) in CALLS {
        for devices in ["cpu", "cpu:0,cpu:1"] {
            let options = poisoned(vec![poison(6, call, ALWAYS, FakeFailure::Panic)]);
            let Ran { failed, counts, progress } = ran(task, devices, limits(), options);
            let [failed] = &*failed else { panic!("{call:?}: {failed:?}") };
            assert_eq!(
                (failed.key.as_str(), failed.error.class, failed.error.stage),
                ("image-006.png", ErrorClass::WorkerDied, stage)
            );
            let deaths = counts.fired[&call];
            let message = &failed.error.message;
            for part in [
                format!("died {deaths} times over this row"),
                "of device cpu:".into(),
                format!("{call:?} of an image {} pixels wide panicked on demand", width(6)),
                "retry --class worker_died".into(),
            ] {
                assert!(message.contains(&part), "{message}");
            }
            assert_eq!(u64::from(failed.attempts), deaths);
            assert!((2..=6).contains(&deaths), "{deaths} deaths");
            assert_eq!(progress.worker_deaths, deaths);
            assert_eq!(progress.failed_by_class.get(ErrorClass::WorkerDied), 1);
        }
    }
}

#[test]
fn several_rows_that_kill_are_all_found() {
    let options = poisoned(
        [2, 3, 11].map(|number| poison(number, FakeCall::Encode, ALWAYS, FakeFailure::Panic)).into_iter().collect(),
    );
    let Ran { failed, counts, .. } = ran(TaskKind::Caption, "cpu", limits(), options);
    let keys: Vec<_> = failed.iter().map(|row| row.key.as_str()).collect();
    assert_eq!(keys, ["image-002.png", "image-003.png", "image-011.png"]);
    assert!(counts.poisoned.values().all(|times| *times > 1), "{:?}", counts.poisoned);
}

#[test]
fn a_chunk_of_one_row_that_kills_is_one_failed_row() {
    let rig = Rig::new(
        TaskKind::Caption,
        "cpu",
        limits(),
        poisoned(vec![poison(0, FakeCall::Step, ALWAYS, FakeFailure::Panic)]),
    );
    let outcomes = rig.run(Input::images(1, TaskKind::Caption)).unwrap();
    assert_eq!(failures(&outcomes)[0].attempts, 2, "it is tried a second time");
    assert_eq!(rig.close().fired[&FakeCall::Step], 2);
}

#[test]
fn other_chunks_are_not_touched_by_a_death() {
    let task = TaskKind::Ask;
    let chunks = || (0..5).map(move |number| Input::images(6 + number, task)).collect::<Vec<_>>();
    let clean = Rig::new(task, "cpu", limits(), FakeOptions::default());
    let expected: Vec<_> = chunks().into_iter().map(|input| content(clean.run(input).unwrap())).collect();
    clean.close();
    let poison = poison(8, FakeCall::Step, ALWAYS, FakeFailure::Panic);
    let rig = Rig::new(task, "cpu:0,cpu:1", limits(), poisoned(vec![poison]));
    let runs = chunks().into_iter().map(|input| {
        let (rows, store) = input.store();
        rig.annotator.annotate_chunk(rows, store)
    });
    let got = wait(futures::future::try_join_all(runs)).unwrap();
    for (got, expected) in got.into_iter().map(content).zip(expected) {
        let failed = failures(&got).iter().map(|row| row.key.clone()).collect::<Vec<_>>();
        assert_eq!(failed.len(), usize::from(expected.len() > 8), "{failed:?} of {}", expected.len());
        for (got, expected) in got.iter().zip(&expected) {
            assert!(matches!(got, RowOutcome::Failed(row) if row.key == "image-008.png") || got == expected);
        }
    }
    assert!(rig.close().fired[&FakeCall::Step] >= 4);
}

#[test]
fn a_device_that_always_dies_is_given_up_and_ends_the_run() {
    let limits = RuntimeLimits { worker_restarts_max: 3, ..limits() };
    let rig = Rig::new(TaskKind::Caption, "cpu", limits, faulty(FakeCall::Encode, 1, ALWAYS - 1, FakeFailure::Panic));
    let Err(PipelineError::Fatal(message)) = rig.run(Input::images(ROWS, TaskKind::Caption)) else { panic!("it ran") };
    for part in ["no device is left: cpu:0 was given up", "3 restarts since have finished no row", "panicked on demand"]
    {
        assert!(message.contains(part), "{message}");
    }
    assert!(wait(rig.pool.lease()).is_err(), "a pool without a device gives no lease");
    assert_eq!(rig.progress.snapshot().worker_restarts, 3);
    let counts = rig.close();
    assert_eq!((counts.opened, counts.fired[&FakeCall::Encode]), (4, 4));
}

#[test]
fn restarts_are_not_counted_across_rows_that_were_finished() {
    // Every other row kills once: more deaths than restarts in a row are allowed.
    let limits = RuntimeLimits {
        worker_restarts_max: 2,
        sequences_max: 1,
        batch: BatchLimits { views_max: 1, ..limits().batch },
        ..limits()
    };
    let poison = (0..7).map(|number| poison(number * 2 + 1, FakeCall::Encode, 1, FakeFailure::Panic)).collect();
    let Ran { failed, progress, .. } = ran(TaskKind::Caption, "cpu", limits, poisoned(poison));
    assert_eq!((failed, progress.worker_deaths), (vec![], 7));
}

#[test]
fn a_device_that_does_not_open_again_at_once_is_tried_again() {
    for failure in [FakeFailure::Error(Fate::Fatal, ErrorClass::OutOfMemory), FakeFailure::Panic] {
        let mut options = faulty(FakeCall::Open, 2, 2, failure);
        options.faults.push(FakeFault { call: FakeCall::Encode, nth: 2, times: 1, failure: FakeFailure::Panic });
        let Ran { failed, counts, progress } = ran(TaskKind::Caption, "cpu", limits(), options);
        assert_eq!((failed, counts.fired[&FakeCall::Open], counts.fired[&FakeCall::Encode]), (vec![], 2, 1));
        assert_eq!((progress.worker_deaths, progress.worker_restarts), (1, 3));
    }
}

#[test]
fn the_other_devices_finish_when_one_does_not_open_again() {
    let mut options = faulty(FakeCall::Open, 3, ALWAYS - 3, FakeFailure::Panic);
    options.faults.push(FakeFault { call: FakeCall::Step, nth: 2, times: 1, failure: FakeFailure::Panic });
    let limits = RuntimeLimits { worker_restarts_max: 2, ..limits() };
    let clean = run(TaskKind::Ask, "cpu", limits, FakeOptions::default(), Input::images(ROWS, TaskKind::Ask));
    let rig = Rig::new(TaskKind::Ask, "cpu:0,cpu:1", limits, options);
    let runs = (0..4).map(|_| {
        let (rows, store) = Input::images(ROWS, TaskKind::Ask).store();
        rig.annotator.annotate_chunk(rows, store)
    });
    for outcomes in wait(futures::future::try_join_all(runs)).unwrap() {
        assert_eq!(content(outcomes), clean);
    }
    until(|| rig.pool.given_up().len() == 1, "the device was not given up");
    let (_, why) = &rig.pool.given_up()[0];
    assert!(why.contains("cannot be opened anew: it panicked: Open"), "{why}");
    let counts = rig.close();
    assert_eq!((counts.fired[&FakeCall::Open], counts.fired[&FakeCall::Step]), (2, 1));
}

#[test]
fn a_call_that_hangs_once_costs_no_row() {
    for (call, task, _) in CALLS {
        let Ran { failed, counts, progress } = ran(task, "cpu", watchful(), faulty(call, 3, 1, FakeFailure::Hang));
        assert_eq!(failed, [], "{call:?}");
        // Every row has one outcome though the worker that was left behind woke up in the end: the outcomes would be
        // doubled, which is an error, and its images would still be on its backend.
        assert_eq!((counts.fired[&call], counts.opened, counts.closed), (1, 2, 2), "{call:?}");
        assert_eq!((progress.worker_hangs, progress.worker_restarts, progress.worker_deaths), (1, 1, 0));
    }
}

#[test]
fn a_row_that_always_hangs_is_found_and_fails_alone() {
    for (call, task, stage) in CALLS {
        let options = poisoned(vec![poison(6, call, ALWAYS, FakeFailure::Hang)]);
        let Ran { failed, counts, progress } = ran(task, "cpu", watchful(), options);
        let [failed] = &*failed else { panic!("{call:?}: {failed:?}") };
        assert_eq!(
            (failed.key.as_str(), failed.error.class, failed.error.stage),
            ("image-006.png", ErrorClass::DeviceHung, stage)
        );
        let message = &failed.error.message;
        for part in ["device cpu:0 gave no sign for 0.", "--device-timeout"] {
            assert!(message.contains(part), "{message}");
        }
        // Hangs are released when the rig is closed, and poison that struck goes on.
        assert_eq!(progress.worker_hangs, counts.fired[&call]);
        assert!((2..=6).contains(&progress.worker_hangs), "{progress:?}");
    }
}

#[test]
fn what_a_worker_does_after_it_was_left_behind_is_seen_by_nobody() {
    let task = TaskKind::Ask;
    let clean = run(task, "cpu", limits(), FakeOptions::default(), Input::images(ROWS, task));
    let rig = Rig::new(task, "cpu", watchful(), faulty(FakeCall::Step, 4, 1, FakeFailure::Hang));
    let outcomes = content(rig.run(Input::images(ROWS, task)).unwrap());
    assert_eq!(outcomes, clean);
    let before = rig.progress.snapshot();
    assert_eq!(rig.factory.counts().hanging, 1, "it hangs still");
    assert!(before.bytes_held < limits().prepared_bytes_max, "it keeps no more than a chunk may prepare");
    rig.factory.release_hangs();
    until(|| rig.factory.counts().closed == 1, "the worker that was left behind does not end");
    assert_eq!(ProgressSnapshot { bytes_held: 0, ..before }, rig.progress.snapshot(), "its work was counted");
    // The lease came back once: with one device, two leases cannot be held.
    wait(async {
        let lease = rig.pool.lease().await.unwrap();
        assert!(futures::poll!(Box::pin(rig.pool.lease())).is_pending());
        drop(lease);
    });
    rig.close();
}

#[test]
fn slow_calls_are_no_hangs() {
    // Many calls, each shorter than the timeout, together much longer; and waiting for batches is no call.
    let slow = FakeOptions { call_time: Duration::from_millis(10), ..FakeOptions::default() };
    let Ran { failed, progress, .. } = ran(TaskKind::Caption, "cpu", watchful(), slow);
    assert_eq!((failed, progress.worker_hangs), (vec![], 0));
    assert!(progress.encode_busy + progress.generate_busy > Duration::from_millis(150), "{progress:?}");
}

#[test]
fn without_a_timeout_nothing_is_a_hang() {
    for device_timeout in [None, Some(Duration::ZERO)] {
        let limits = RuntimeLimits { device_timeout, ..limits() };
        let rig = Rig::new(TaskKind::Caption, "cpu", limits, faulty(FakeCall::Encode, 2, 1, FakeFailure::Hang));
        let factory = rig.factory.clone();
        let waker = std::thread::spawn(move || {
            until(|| factory.counts().hanging == 1, "nothing hangs");
            std::thread::sleep(Duration::from_millis(200));
            factory.release_hangs();
        });
        assert!(failures(&rig.run(Input::images(ROWS, TaskKind::Caption)).unwrap()).is_empty());
        waker.join().unwrap();
        assert_eq!((rig.progress.snapshot().worker_hangs, rig.close().opened), (0, 1));
    }
}

#[test]
fn threads_that_hang_are_not_without_number() {
    // Rows are finished in between, but every hang leaves a model in memory.
    let limits = RuntimeLimits { worker_restarts_max: 3, ..watchful() };
    let poison = [1, 5, 9, 13].map(|number| poison(number, FakeCall::Encode, ALWAYS, FakeFailure::Hang));
    let rig = Rig::new(TaskKind::Caption, "cpu", limits, poisoned(poison.into_iter().collect()));
    let Err(PipelineError::Fatal(message)) = rig.run(Input::images(ROWS, TaskKind::Caption)) else { panic!("it ran") };
    assert!(message.contains("4 of its threads hang") || message.contains("3 restarts"), "{message}");
    assert_eq!(rig.factory.counts().hanging, 4);
    rig.close();
}

#[test]
fn a_device_that_hangs_while_it_is_opened_again_is_given_up() {
    let mut options = faulty(FakeCall::Open, 2, 1, FakeFailure::Hang);
    options.faults.push(FakeFault { call: FakeCall::Encode, nth: 2, times: 1, failure: FakeFailure::Panic });
    let rig = Rig::new(TaskKind::Caption, "cpu", watchful(), options);
    let Err(PipelineError::Fatal(message)) = rig.run(Input::images(ROWS, TaskKind::Caption)) else { panic!("it ran") };
    assert!(message.contains("no sign while it is opened anew; before: the worker of device cpu:0 died"), "{message}");
    assert_eq!(rig.close().fired[&FakeCall::Open], 1);
}

#[test]
fn a_chunk_that_is_dropped_while_its_device_hangs_leaves_the_device_to_others() {
    let task = TaskKind::Caption;
    let rig = Rig::new(task, "cpu", watchful(), faulty(FakeCall::Encode, 2, 1, FakeFailure::Hang));
    let (rows, store) = Input::images(ROWS, task).store();
    let dropped = wait(async {
        let chunk = rig.annotator.annotate_chunk(rows, store);
        tokio::time::timeout(Duration::from_millis(30), chunk).await
    });
    assert!(dropped.is_err(), "the chunk ended");
    let next = content(rig.run(Input::images(5, task)).unwrap());
    assert_eq!(next, run(task, "cpu", limits(), FakeOptions::default(), Input::images(5, task)));
    let counts = rig.close();
    assert_eq!((counts.fired[&FakeCall::Encode], counts.opened), (1, 2));
}

#[test]
fn work_that_panics_says_so_and_the_device_is_opened_again() {
    let factory = Arc::new(FakeFactory::new(small_policy(), FakeOptions::default()));
    let shared: Arc<dyn BackendFactory> = factory.clone();
    let pool = DevicePool::start(&shared, &parse_devices("cpu").unwrap()).unwrap();
    let progress = Arc::new(Progress::default());
    let supervision = || Supervision::new(&limits(), progress.clone());
    wait(async {
        let work = pool.lease().await.unwrap().run(supervision(), |_, _| std::panic::panic_any(7));
        let Err(WorkLost::Worker(lost)) = work.await else { panic!("it worked") };
        assert_eq!(lost.to_string(), "the worker of device cpu:0 died (call: between calls, 0 rows): no message");
        let again = pool.lease().await.unwrap().run(supervision(), |backend, _| backend.free_sequences());
        assert_eq!(again.await, Ok(64));
    });
    assert_eq!(factory.counts().opened, 2);
    pool.join();
    assert_eq!(factory.counts().closed, 2);
}
