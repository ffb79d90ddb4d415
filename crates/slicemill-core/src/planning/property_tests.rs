//! What holds for every size and every policy.

use proptest::prelude::*;

use crate::{
    CandidateRule, Cut, Grid, OverviewPosition, Partition, PlanRejection, Rect, Rounding, Schema, Size, SlicePlan,
    SlicingPolicy, TokenRule, ViewKind,
};

/// Checks everything that is promised of a plan.
fn check(policy: &SlicingPolicy, plan: &SlicePlan) {
    let Grid { cols, rows } = plan.grid;
    let views = plan.views();
    assert_eq!(views.len() as u32, plan.view_count());
    assert_eq!(plan.view_count(), cols * rows + 1);

    let overview_at = views.iter().position(|view| view.kind == ViewKind::Overview).unwrap();
    let expected_at = if policy.overview == OverviewPosition::First { 0 } else { views.len() - 1 };
    assert_eq!(overview_at, expected_at);
    let kinds: Vec<_> = views.iter().filter(|view| view.kind != ViewKind::Overview).map(|view| view.kind).collect();
    let row_major: Vec<_> = (0..rows).flat_map(|row| (0..cols).map(move |col| ViewKind::Slice { col, row })).collect();
    assert_eq!(kinds, row_major);

    for view in &views {
        assert!(view.patches_wide > 0 && view.patches_high > 0);
        assert_eq!(Size::new(view.patches_wide * policy.patch, view.patches_high * policy.patch), view.size);
        assert!(u64::from(view.patches()) <= SlicingPolicy::VIEW_PATCHES_MAX);
    }
    let patches: u64 = views.iter().map(|view| u64::from(view.patches())).sum();
    assert_eq!(plan.patches(), patches);
    assert_eq!(plan.visual_tokens(TokenRule::Patches), patches);
    assert_eq!(plan.visual_tokens(TokenRule::Queries(64)), 64 * u64::from(cols * rows + 1));
    assert_eq!(plan.separators(Schema::CommaNewline), cols * rows);
    assert_eq!(plan.separators(Schema::Plain), 0);

    assert_eq!(plan.refined(), Size::new(cols * plan.slice.width, rows * plan.slice.height));
    let whole = if plan.cut == Cut::CutThenResize { plan.working } else { plan.refined() };
    check_tiling(&plan.crop_boxes(), plan.grid, whole);
    if plan.cut != Cut::CutThenResize {
        assert!(plan.crop_boxes().iter().all(|rect| rect.size == plan.slice));
    }
}

/// Row by row, each box begins where its neighbours end, and the last ones end where the image does.
fn check_tiling(boxes: &[Rect], grid: Grid, whole: Size) {
    assert_eq!(boxes.len() as u32, grid.slices());
    for (i, rect) in boxes.iter().enumerate() {
        let (col, row) = (i as u32 % grid.cols, i as u32 / grid.cols);
        assert!(rect.size.width > 0 && rect.size.height > 0);
        let left = if col == 0 { 0 } else { boxes[i - 1].x + boxes[i - 1].size.width };
        let above = i.checked_sub(grid.cols as usize);
        let top = above.map_or(0, |above| boxes[above].y + boxes[above].size.height);
        assert_eq!((rect.x, rect.y), (left, top));
        if col + 1 == grid.cols {
            assert_eq!(rect.x + rect.size.width, whole.width);
        }
        if row + 1 == grid.rows {
            assert_eq!(rect.y + rect.size.height, whole.height);
        }
    }
}

fn policies() -> impl Strategy<Value = SlicingPolicy> {
    let names = proptest::sample::select(SlicingPolicy::NAMES);
    let tower =
        proptest::sample::select(vec![(336, 14), (112, 14), (448, 14), (384, 16), (8, 1), (64, 64), (4096, 256)]);
    (names, tower, 1..=SlicingPolicy::SLICES_MAX, any::<bool>()).prop_map(|(name, (side, patch), max, overridden)| {
        let policy = SlicingPolicy::named(name).unwrap();
        let max = matches!(policy.partition, Partition::Adaptive(_)).then_some(max);
        match overridden {
            true => policy.with_overrides(Some(side), Some(patch), max).unwrap(),
            false => policy,
        }
    })
}

/// A length of 1 to 2^32 − 1, evenly by its logarithm.
fn length(max: u32) -> impl Strategy<Value = u32> {
    (0_f64..=f64::from(max).ln()).prop_map(move |x| (x.exp().round() as u32).clamp(1, max))
}

fn anything() -> impl Strategy<Value = SlicingPolicy> {
    let number = || prop_oneof![Just(0), 1_u32..20, 1_u32..5000, any::<u32>()];
    let partition = prop_oneof![
        Just(Partition::None),
        Just(Partition::Adaptive(CandidateRule::Capped)),
        Just(Partition::Adaptive(CandidateRule::Widened)),
        (number(), number()).prop_map(|(cols, rows)| Partition::Fixed { cols, rows }),
    ];
    let rounding = prop_oneof![Just(Rounding::Floor), Just(Rounding::HalfEven)];
    let cut = prop_oneof![Just(Cut::ResizeThenCut), Just(Cut::CutThenResize), Just(Cut::PadSquare)];
    let numbers = (1_u32..300, number(), number(), proptest::option::of(number()));
    (numbers, partition, rounding, cut).prop_map(
        |((across, patch, max_slices, pre_resize), partition, rounding, cut)| SlicingPolicy {
            name: "any".to_owned(),
            side: across.saturating_mul(patch),
            patch,
            max_slices,
            pre_resize,
            partition,
            rounding,
            cut,
            overview: OverviewPosition::Last,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn plans_keep_their_promises(policy in policies(), width in length(100_000), height in length(100_000)) {
        if let Ok(plan) = policy.plan(Size::new(width, height)) {
            check(&policy, &plan);
        }
    }

    #[test]
    fn any_policy_and_any_size_have_an_answer(policy in anything(), width in any::<u32>(), height in length(u32::MAX)) {
        for size in [Size::new(width, height), Size::new(height, width)] {
            if let Ok(plan) = policy.plan(size) {
                prop_assert!(policy.validate().is_ok());
                check(&policy, &plan);
            }
        }
    }

    /// Up to 100,000 × 100,000 the named policies reject one thing only: what the pre-resize would make vanish.
    #[test]
    fn only_extreme_aspects_are_rejected(width in length(100_000), height in length(100_000)) {
        check_rejections(Size::new(width, height));
    }

    #[test]
    fn the_grid_is_the_nearest(width in length(20_000), height in length(20_000)) {
        let policy = SlicingPolicy::named("llava-uhd-raw").unwrap();
        let size = Size::new(width, height);
        let grid = policy.plan(size).unwrap().grid;
        let ideal = size.pixels().div_ceil(336 * 336).min(7) as u32;
        if ideal <= 1 {
            prop_assert_eq!(grid, Grid::NONE);
        } else {
            let slices = grid.slices();
            prop_assert!((2..=7).contains(&slices) && slices.abs_diff(ideal) <= 1);
            let error = |cols: u32, rows: u32| {
                ((f64::from(width) * f64::from(rows)) / (f64::from(height) * f64::from(cols))).ln().abs()
            };
            for count in (ideal - 1).max(2)..=(ideal + 1).min(7) {
                for cols in (1..=count).filter(|cols| count % cols == 0) {
                    prop_assert!(error(grid.cols, grid.rows) <= error(cols, count / cols) + 1e-12);
                }
            }
        }
    }
}

fn check_rejections(size: Size) {
    for name in SlicingPolicy::NAMES {
        let policy = SlicingPolicy::named(name).unwrap();
        match (policy.plan(size), policy.pre_resize) {
            (Ok(plan), _) => check(&policy, &plan),
            (Err(PlanRejection::AspectTooExtreme { .. }), Some(long_side)) => {
                let (long, short) = (size.width.max(size.height), size.width.min(size.height));
                assert!(long > short * long_side, "{name} {size}");
            }
            (Err(rejection), _) => panic!("{name} {size}: {rejection}"),
        }
    }
}

#[test]
fn corners_have_an_answer() {
    let lengths = [1, 2, 3, 13, 14, 15, 335, 336, 337, 448, 1023, 1024, 1025, 65_535, 65_536, 99_999, 100_000];
    for width in lengths {
        for height in lengths {
            check_rejections(Size::new(width, height));
        }
        for name in SlicingPolicy::NAMES {
            let policy = SlicingPolicy::named(name).unwrap();
            for size in [Size::new(width, u32::MAX), Size::new(u32::MAX - 1, width), Size::new(u32::MAX, u32::MAX)] {
                if let Ok(plan) = policy.plan(size) {
                    check(&policy, &plan);
                }
            }
        }
    }
}
