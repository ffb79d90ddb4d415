//! Batches by hand, and what holds for any chunk.

use proptest::prelude::*;

use super::*;

/// An image of `slices` slices, a patch and ten bytes per view.
fn image(index: usize, slices: u32) -> BatchItem {
    let views = slices + 1;
    BatchItem { index, slices, views, patches: u64::from(views), bytes: 10 * u64::from(views) }
}

const WIDE: BatchLimits = BatchLimits { views_max: 1000, patches_max: 1000, held_bytes_max: 1_000_000 };

/// Keys and indices of the batches of images with these slice counts.
fn batches(slices: &[u32], limits: BatchLimits) -> Vec<(Option<u32>, Vec<usize>)> {
    let items = slices.iter().enumerate().map(|(index, &slices)| image(index, slices));
    plan_batches(items, limits).into_iter().map(|batch| (batch.key, batch.indices)).collect()
}

#[test]
fn images_meet_their_like() {
    let limits = BatchLimits { views_max: 6, ..WIDE };
    let expected = vec![(Some(2), vec![0, 2]), (Some(1), vec![1, 3, 4])];
    assert_eq!(batches(&[2, 1, 2, 1, 1], limits), expected);
}

#[test]
fn a_bucket_closes_before_the_image_that_does_not_fit() {
    let limits = BatchLimits { views_max: 7, ..WIDE };
    assert_eq!(batches(&[2, 2, 2], limits), vec![(Some(2), vec![0, 1]), (Some(2), vec![2])]);
    let limits = BatchLimits { patches_max: 7, ..WIDE };
    assert_eq!(batches(&[2, 2, 2], limits), vec![(Some(2), vec![0, 1]), (Some(2), vec![2])]);
}

#[test]
fn an_image_above_the_limits_is_alone() {
    let limits = BatchLimits { views_max: 4, ..WIDE };
    assert_eq!(batches(&[0, 9, 9, 0], limits), vec![(Some(9), vec![1]), (Some(9), vec![2]), (Some(0), vec![0, 3])]);
    let limits = BatchLimits { views_max: 0, patches_max: 0, held_bytes_max: 0 };
    assert_eq!(batches(&[1, 1], limits), vec![(Some(1), vec![0]), (Some(1), vec![1])]);
}

#[test]
fn the_bucket_that_holds_most_bytes_closes_first() {
    // After the fourth image 20 + 60 + 20 bytes are held; the six-view bucket goes, then nothing must.
    let limits = BatchLimits { held_bytes_max: 90, ..WIDE };
    assert_eq!(batches(&[1, 5, 0, 0], limits), vec![(Some(5), vec![1]), (None, vec![2, 3, 0])]);
    // Equal bytes: the fewest slices go first.
    let limits = BatchLimits { held_bytes_max: 39, ..WIDE };
    assert_eq!(batches(&[1, 0, 0], limits), vec![(Some(0), vec![1, 2]), (Some(1), vec![0])]);
}

#[test]
fn leftovers_share_batches_in_order_of_slice_count() {
    let limits = BatchLimits { views_max: 5, ..WIDE };
    assert_eq!(batches(&[3, 1, 0, 1], limits), vec![(None, vec![2, 1, 3]), (Some(3), vec![0])]);
    assert_eq!(batches(&[], limits), vec![]);
}

#[test]
fn an_item_is_read_off_a_plan() {
    let plan = crate::SlicingPolicy::llava_uhd().plan(crate::Size::new(1, 1)).unwrap();
    let item = BatchItem::new(3, &plan, 99);
    assert_eq!(item, BatchItem { index: 3, slices: 6, views: 7, patches: 6 * 19 * 29 + 576, bytes: 99 });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn every_image_is_in_exactly_one_batch_within_the_limits(
        images in proptest::collection::vec((0_u32..9, 1_u64..3000, 0_u64..5000), 0..200),
        views_max in 1_u32..60, patches_max in 1_u64..20_000, held_bytes_max in 0_u64..100_000,
    ) {
        let limits = BatchLimits { views_max, patches_max, held_bytes_max };
        let items: Vec<BatchItem> = images
            .iter()
            .enumerate()
            .map(|(index, &(slices, patches, bytes))| BatchItem { index, slices, views: slices + 1, patches, bytes })
            .collect();
        let batches = plan_batches(items.iter().copied(), limits);
        prop_assert_eq!(&batches, &plan_batches(items.iter().copied(), limits), "the same rows make the same batches");

        let mut indices: Vec<usize> = batches.iter().flat_map(|batch| batch.indices.iter().copied()).collect();
        indices.sort_unstable();
        prop_assert_eq!(indices, (0..items.len()).collect::<Vec<_>>());
        for batch in &batches {
            let members: Vec<&BatchItem> = batch.indices.iter().map(|&index| &items[index]).collect();
            prop_assert_eq!(batch.views, members.iter().map(|item| u64::from(item.views)).sum::<u64>());
            prop_assert_eq!(batch.patches, members.iter().map(|item| item.patches).sum::<u64>());
            prop_assert_eq!(batch.bytes, members.iter().map(|item| item.bytes).sum::<u64>());
            let within = batch.views <= u64::from(views_max) && batch.patches <= patches_max;
            prop_assert!(within || members.len() == 1);
            let first = members[0].slices;
            let alike = members.iter().all(|item| item.slices == first);
            prop_assert_eq!(batch.key, alike.then_some(first));
            prop_assert!(members.is_sorted_by_key(|item| item.slices), "leftovers stand in order of slice count");
        }
    }

    #[test]
    fn held_bytes_stay_within_the_limit(
        images in proptest::collection::vec((0_u32..9, 0_u64..5000), 0..200), held_bytes_max in 0_u64..50_000,
    ) {
        let mut bucketer = Bucketer::new(BatchLimits { held_bytes_max, ..WIDE });
        let mut held = 0;
        for (index, &(slices, bytes)) in images.iter().enumerate() {
            let closed = bucketer.push(BatchItem { bytes, ..image(index, slices) });
            prop_assert!(closed.iter().all(|batch| batch.key.is_some()), "only leftovers mix slice counts");
            held = held + bytes - closed.iter().map(|batch| batch.bytes).sum::<u64>();
            prop_assert_eq!(bucketer.held_bytes(), held);
            prop_assert!(held <= held_bytes_max);
        }
        prop_assert_eq!(bucketer.finish().iter().map(|batch| batch.bytes).sum::<u64>(), held);
    }
}
