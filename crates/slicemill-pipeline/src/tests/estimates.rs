//! Sizes that are not known when inputs are listed.

use proptest::prelude::*;

use super::*;

/// The images of [`Input::images`], listed with these sizes.
fn estimated(count: u32, task: TaskKind, size: impl Fn(u32, u64) -> u64) -> Input {
    let mut input = Input::images(count, task);
    for (number, row) in (0..).zip(&mut input.rows) {
        row.bytes = size(number, row.bytes);
        row.estimated = true;
    }
    input
}

#[test]
fn content_does_not_depend_on_estimates() {
    for task in TASKS {
        let clean = run(task, "cpu", limits(), FakeOptions::default(), Input::images(20, task));
        let sizes: [fn(u32, u64) -> u64; 4] =
            [|_, _| 0, |_, bytes| bytes * 50, |number, bytes| if number % 3 == 0 { bytes * 9 } else { 1 }, |_, _| 700];
        for size in sizes {
            // A window holds one or two images, a budget twice that.
            for window_bytes_max in [1, 2 << 10, 16 << 10] {
                let limits = RuntimeLimits { window_bytes_max, ..limits() };
                let rig = Rig::new(task, "cpu", limits, FakeOptions::default());
                let got = content(rig.run(estimated(20, task, size)).unwrap());
                assert_eq!(got, clean);
                assert_eq!(rig.annotator.gauge().held_bytes(), 0);
                rig.close();
            }
        }
    }
}

#[test]
fn batches_are_those_of_the_sizes_and_not_of_the_order_of_arrival() {
    let views = |fetch_concurrency| {
        let limits = RuntimeLimits { window_bytes_max: 4 << 10, fetch_concurrency, ..limits() };
        let rig = Rig::new(TaskKind::Encode, "cpu", limits, FakeOptions::default());
        rig.run(estimated(40, TaskKind::Encode, |_, _| 1)).unwrap();
        rig.close().batches
    };
    let one_by_one = views(1);
    assert!(one_by_one.len() > 5);
    for fetch_concurrency in [2, 7, 40] {
        assert_eq!(views(fetch_concurrency), one_by_one);
    }
}

#[test]
fn many_tiny_rows_fit_their_window() {
    // Each counts as a KiB, so by their bytes alone a window would hold more of them than the budget.
    let limits = RuntimeLimits { window_bytes_max: 4 << 10, ..limits() };
    let mut input = Input::default();
    for number in 0..60 {
        input.add(&format!("{number}.png"), Some(png(2, 2, number)), TaskKind::Encode);
    }
    assert!(input.rows.iter().all(|row| row.bytes < 100), "they are not tiny");
    assert_eq!(rows_of(&run(TaskKind::Encode, "cpu", limits, FakeOptions::default(), input)).len(), 60);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    /// Any estimates, too small and too large: every chunk ends, and what is held beyond the budget is no more than
    /// the objects that are being read.
    #[test]
    fn estimates_never_deadlock_and_hold_little_more(
        rows in prop::collection::vec((1_u32..120, 1_u32..120, prop_oneof![Just(0_u64), 1_u64..60_000]), 1..40),
        window_kib in 1_u64..40,
        fetch_concurrency in 1_u32..9,
        devices in prop::sample::select(vec!["cpu", "cpu:0,cpu:1"]),
    ) {
        let limits = RuntimeLimits { window_bytes_max: window_kib << 10, fetch_concurrency, ..limits() };
        let rig = Rig::new(TaskKind::Encode, devices, limits, FakeOptions::default());
        let (mut object_max, mut listed_max, mut runs) = (0, 0, Vec::new());
        for chunk in 0..3 {
            let mut input = Input::default();
            for (position, &(width, height, listed)) in rows.iter().enumerate() {
                input.add(&format!("{chunk}-{position}.png"), Some(png(width, height, position as u32)), TaskKind::Encode);
                let row = input.rows.last_mut().unwrap();
                object_max = object_max.max(row.bytes);
                listed_max = listed_max.max(listed);
                (row.bytes, row.estimated) = (listed, true);
            }
            let (rows, store) = input.store();
            runs.push(rig.annotator.annotate_chunk(rows, store));
        }
        let outcomes = wait(futures::future::try_join_all(runs)).unwrap();
        for outcomes in &outcomes {
            prop_assert_eq!(rows_of(outcomes).len(), rows.len());
        }
        let compressed = (2 * limits.window_bytes_max).max(listed_max) + u64::from(fetch_concurrency) * object_max;
        // The largest image here has 9 x 9 patches in its overview and slices; a batch holds up to 200 patches.
        let prepared = limits.prepared_bytes_max.max(600 * 3 * 14 * 14 * 4);
        let held_max = (compressed + prepared) * rig.annotator.chunks_in_flight_max() as u64;
        let progress = rig.progress.snapshot();
        prop_assert_eq!(progress.bytes_held, 0);
        prop_assert!(progress.bytes_held_peak <= held_max, "{} of {held_max} bytes", progress.bytes_held_peak);
        rig.close();
    }
}
