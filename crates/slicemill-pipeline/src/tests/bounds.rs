//! That everything is bounded, that bounds do not deadlock, and that devices are kept busy.

use proptest::prelude::*;

use super::*;
use crate::batch::prepared_bytes;

#[test]
fn waiting_prompts_replace_finished_ones_at_once() {
    // All images fit one batch, so from the first step on everybody who is not in flight waits.
    let input = || Input::images(20, TaskKind::Ask);
    for sequences_max in [1, 4, 7, 64] {
        let limits = RuntimeLimits { sequences_max, ..RuntimeLimits::default() };
        let batch = BatchLimits { views_max: 1024, ..limits.batch };
        let rig = Rig::new(TaskKind::Ask, "cpu", RuntimeLimits { batch, ..limits }, FakeOptions::default());
        rig.run(input()).unwrap();
        let counts = rig.close();
        assert_eq!(counts.batches.len(), 1);
        assert!(counts.occupancy.len() > 5);
        for (in_flight, finished) in counts.occupancy {
            assert_eq!(in_flight, (sequences_max as usize).min(60 - finished), "after {finished} had finished");
        }
    }
}

#[test]
fn places_stay_full_across_batches() {
    // One image per batch: the next is encoded as soon as nobody waits.
    let limits = RuntimeLimits {
        batch: BatchLimits { views_max: 1, ..limits().batch },
        sequences_max: 4,
        prepared_bytes_max: 64 << 20,
        ..limits()
    };
    let slow = FakeOptions { call_time: Duration::from_millis(3), ..FakeOptions::default() };
    let rig = Rig::new(TaskKind::Caption, "cpu", limits, slow);
    rig.run(Input::images(30, TaskKind::Caption)).unwrap();
    let counts = rig.close();
    let full = counts.occupancy.iter().filter(|(in_flight, finished)| *in_flight == 4.min(30 - finished)).count();
    assert!(full * 10 >= counts.occupancy.len() * 8, "full in {full} of {} steps", counts.occupancy.len());
    assert!(counts.images_peak <= 5, "{} images on the device at once", counts.images_peak);
}

#[test]
fn images_on_the_device_are_bounded() {
    for (sequences_max, views_max) in [(1, 7), (3, 14), (8, 20)] {
        let batch = BatchLimits { views_max, ..limits().batch };
        let limits = RuntimeLimits { batch, sequences_max, ..limits() };
        let rig = Rig::new(TaskKind::Ask, "cpu", limits, FakeOptions::default());
        rig.run(Input::images(60, TaskKind::Ask)).unwrap();
        let counts = rig.close();
        let most = (sequences_max + views_max) as usize;
        assert!(counts.images_peak <= most, "{} images, at most {most} were expected", counts.images_peak);
    }
}

#[test]
fn the_backends_own_limits_hold_too() {
    let own = crate::BackendLimits { batch_views_max: 7, batch_patches_max: 60, sequences_max: 2 };
    let options = FakeOptions { limits: own, ..FakeOptions::default() };
    let rig = Rig::new(TaskKind::Ask, "cpu", RuntimeLimits::default(), options);
    rig.run(Input::images(20, TaskKind::Ask)).unwrap();
    // The fake notes a breach when a batch or an admission exceeds its limits.
    let counts = rig.close();
    assert!(counts.batches.len() > 1 && counts.occupancy.iter().all(|(in_flight, _)| *in_flight <= 2));
}

#[test]
fn reads_at_the_same_time_are_bounded_over_all_chunks() {
    let rig = Rig::new(TaskKind::Encode, "cpu:0,cpu:1", limits(), FakeOptions::default());
    let (rows, store) = Input::images(30, TaskKind::Encode).store();
    let runs = (0..4).map(|_| rig.annotator.annotate_chunk(rows.clone(), store.clone()));
    wait(futures::future::try_join_all(runs)).unwrap();
    let peak = store.reads_peak.load(SeqCst);
    assert!((1..=3).contains(&peak), "{peak} reads at the same time");
    rig.close();
}

#[test]
fn the_host_stage_of_the_next_chunk_runs_while_the_device_is_leased() {
    let rig = Rig::new(TaskKind::Encode, "cpu", limits(), FakeOptions::default());
    let (rows, store) = Input::images(6, TaskKind::Encode).store();
    let ready = wait(async {
        let lease = rig.pool.lease().await.unwrap();
        let mut chunk = Box::pin(rig.annotator.annotate_chunk(rows, store));
        // Nobody gives the device: the chunk reads and prepares, then waits.
        let waited = tokio::time::timeout(Duration::from_millis(500), &mut chunk).await;
        assert!(waited.is_err(), "the chunk ended without a device");
        let ready = rig.annotator.gauge().held_bytes();
        drop(lease);
        assert_eq!(chunk.await.unwrap().len(), 6);
        ready
    });
    assert!(ready > 0, "nothing was prepared ahead");
    assert_eq!(rig.annotator.gauge().held_bytes(), 0);
    rig.close();
}

#[test]
fn limits_of_zero_are_refused() {
    let zero = RuntimeLimits { window_bytes_max: 0, ..limits() };
    let factory: Arc<dyn BackendFactory> = Arc::new(FakeFactory::new(small_policy(), FakeOptions::default()));
    let pool = Arc::new(DevicePool::start(&factory, &parse_devices("cpu").unwrap()).unwrap());
    let host = Arc::new(HostPool::new(1).unwrap());
    let refused = Annotator::new(factory, pool, host, spec(TaskKind::Encode), zero, Arc::default());
    assert!(refused.err().unwrap().to_string().starts_with("window_bytes_max is 0"));
    assert!(HostPool::new(0).is_err());
}

#[test]
fn a_chunk_can_be_awaited_on_any_thread() {
    fn is_send<T: Send>(_: &T) {}
    let rig = Rig::new(TaskKind::Encode, "cpu", limits(), FakeOptions::default());
    let (rows, store) = Input::default().store();
    is_send(&rig.annotator.annotate_chunk(rows, store));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    /// Any sizes, any budgets, more chunks than slots: every chunk ends, and no more is held than was allowed.
    #[test]
    fn budgets_hold_and_never_deadlock(
        chunks in prop::collection::vec(
            prop::collection::vec((1_u32..150, 1_u32..150, 0_u64..60_000), 0..12), 1..5),
        window_kib in 1_u64..80,
        prepared_kib in 1_u64..200,
        decode_kib in 1_u64..200,
        views_max in 1_u32..20,
        sequences_max in 1_u32..6,
        devices in prop::sample::select(vec!["cpu", "cpu:0,cpu:1"]),
    ) {
        let limits = RuntimeLimits {
            batch: BatchLimits { views_max, patches_max: 120, held_bytes_max: 1 << 18 },
            sequences_max,
            window_bytes_max: window_kib << 10,
            prepared_bytes_max: prepared_kib << 10,
            decode_bytes_max: decode_kib << 10,
            ..limits()
        };
        let rig = Rig::new(TaskKind::Caption, devices, limits, FakeOptions::default());
        let (mut row_max, mut batch_max) = (0, 0);
        let mut runs = Vec::new();
        for (number, chunk) in chunks.iter().enumerate() {
            let mut input = Input::default();
            for (position, &(width, height, extra)) in chunk.iter().enumerate() {
                let object = png(width, height, position as u32);
                input.add(&format!("{number}-{position}.png"), Some(object), TaskKind::Caption);
                let row = input.rows.last_mut().unwrap();
                // Listed sizes may be anything that is not less than what is read.
                row.bytes += extra;
                row_max = row_max.max(row.bytes);
                let plan = small_policy().plan(slicemill_core::Size::new(width, height)).unwrap();
                // A batch holds up to 120 patches, or one image.
                batch_max = batch_max.max(prepared_bytes(&plan).max(120 * 3 * 14 * 14 * 4));
            }
            let (rows, store) = input.store();
            runs.push(rig.annotator.annotate_chunk(rows, store));
        }
        let outcomes = wait(futures::future::try_join_all(runs)).unwrap();
        for (outcomes, chunk) in outcomes.iter().zip(&chunks) {
            prop_assert_eq!(rows_of(outcomes).len(), chunk.len());
        }
        let held_max = (2 * limits.window_bytes_max).max(row_max) + limits.prepared_bytes_max.max(batch_max);
        let held_max = held_max * rig.annotator.chunks_in_flight_max() as u64;
        let gauge = rig.annotator.gauge();
        prop_assert_eq!(gauge.held_bytes(), 0);
        prop_assert!(gauge.peak_bytes() <= held_max, "{} of {held_max} bytes", gauge.peak_bytes());
        rig.close();
    }
}
