//! The cost model against sums done by hand and against the paper's figures.

use proptest::prelude::*;

use super::*;
use crate::{Size, SlicingPolicy};

/// One view of 2 × 2 patches.
fn four_patches() -> SlicePlan {
    let policy = SlicingPolicy::named("whole").unwrap().with_overrides(Some(28), None, None).unwrap();
    let plan = policy.plan(Size::new(50, 50)).unwrap();
    assert_eq!((plan.view_count(), plan.patches()), (1, 4));
    plan
}

fn small(projector: ProjectorShape, language: u32) -> ModelShape {
    ModelShape {
        vision: VisionShape { width: 2, layers: 3, mlp: 5, patch: 14, class_tokens: 1 },
        projector,
        decoder: DecoderShape { width: language, layers: 2, mlp: 4, heads: 2, kv_heads: 1, head_dim: 2, vocab: 7 },
    }
}

#[test]
fn vision_by_hand() {
    let embedding = 2 * 4 * (3 * 14 * 14) * 2;
    let projections = 4 * 2 * 5 * 2 * 2;
    let attention = 2 * 2 * 5 * 5 * 2;
    let mlp = 2 * 2 * 5 * 2 * 5;
    let expected = embedding + 3 * (projections + attention + mlp);
    assert_eq!(small(ProjectorShape::Mlp, 3).vision_flops(&four_patches()), expected);
    assert_eq!(expected, 11_088);
}

#[test]
fn projectors_by_hand() {
    let flops = |projector, language| small(projector, language).projector_flops(&four_patches());
    assert_eq!(flops(ProjectorShape::None, 3), 0);
    assert_eq!(flops(ProjectorShape::Mlp, 3), 2 * 4 * 2 * 3 + 2 * 4 * 3 * 3);
    // Input, keys and values, query and two outputs, scores and weighted sum.
    let resampler = 2 * 4 * 2 * 3 + 2 * (2 * 4 * 3 * 3) + 3 * (2 * 2 * 3 * 3) + 2 * (2 * 2 * 3 * 4);
    assert_eq!(flops(ProjectorShape::Resampler { queries: 2 }, 3), resampler);
    // No input projection between equal widths.
    let equal = 2 * (2 * 4 * 2 * 2) + 3 * (2 * 2 * 2 * 2) + 2 * (2 * 2 * 2 * 4);
    assert_eq!(flops(ProjectorShape::Resampler { queries: 2 }, 2), equal);
    // A square view has windows of 3 × 3 pooled keys.
    let spatial = 2 * 4 * 2 * 3 + 2 * (2 * 4 * 3 * 3) + 3 * (2 * 2 * 3 * 3) + 2 * (2 * 2 * 3 * 9);
    assert_eq!(flops(ProjectorShape::SpatialResampler { queries: 2 }, 3), spatial);
}

#[test]
fn windows_follow_the_aspect() {
    let keys = |patches_wide, patches_high| {
        let size = Size::new(patches_wide * 14, patches_high * 14);
        window_keys(&View { kind: crate::ViewKind::Overview, size, patches_wide, patches_high })
    };
    assert_eq!((keys(24, 24), keys(20, 28), keys(34, 17), keys(17, 34), keys(2, 241)), (9, 12, 8, 8, 8));
    assert_eq!((keys(30, 20), keys(20, 30)), (6, 6));
}

#[test]
fn decoder_by_hand() {
    let shape = small(ProjectorShape::None, 3);
    // Query and output, key and value, gated MLP; per token and both layers.
    let token = 2 * (2 * (2 * 3 * 4) + 2 * (2 * 3 * 2) + 3 * (2 * 3 * 4));
    let pair = 2 * 2 * (2 * 4);
    let logits = 2 * 3 * 7;
    assert_eq!(shape.prefill_flops(3), 3 * token + 6 * pair + logits);
    assert_eq!(shape.prefill_flops(0), 0);
    assert_eq!(shape.prefill_flops_by(ComputeRecipe::PAPER, 3), 3 * token + 6 * pair + 3 * logits);
    let all_pairs = ComputeRecipe { causal: false, lm_head: LmHead::Last, square_views: false };
    assert_eq!(shape.prefill_flops_by(all_pairs, 3), 3 * token + 9 * pair + logits);
    assert_eq!(shape.decode_flops(3, 2), 2 * token + (4 + 5) * pair + 2 * logits);
    assert_eq!(shape.decode_flops(3, 0), 0);
}

/// Vicuna-13B behind CLIP ViT-L/14, of which `layers` layers run.
fn vicuna_13b(layers: u32, projector: ProjectorShape) -> ModelShape {
    ModelShape {
        vision: VisionShape { width: 1024, layers, mlp: 4096, patch: 14, class_tokens: 1 },
        projector,
        decoder: DecoderShape {
            width: 5120,
            layers: 40,
            mlp: 13_824,
            heads: 40,
            kv_heads: 40,
            head_dim: 128,
            vocab: 32_000,
        },
    }
}

/// TFLOPs of an image with this grid, by `recipe` and with `text` tokens of text.
fn tflops(shape: &ModelShape, recipe: ComputeRecipe, cols: u32, rows: u32, tokens_per_view: u32, text: u64) -> f64 {
    let square = Size::new(336, 336);
    let mut plan = SlicingPolicy::named("pad-square").unwrap().plan(square).unwrap();
    if cols > 0 {
        plan.grid = crate::Grid { cols, rows };
        plan.slice = square;
    }
    let flops = shape.prompt_flops_by(recipe, &plan, 336, TokenRule::Queries(tokens_per_view), text);
    flops.total() as f64 / 1e12
}

/// Table 2 of arXiv 2403.11703v1: LLaVA-1.5, LLaVA-UHD, with an MLP projector, and that with a fixed 2 × 2 partition.
#[test]
fn the_papers_figures_within_a_percent() {
    let resampler = vicuna_13b(23, ProjectorShape::Resampler { queries: 64 });
    let mlp = vicuna_13b(23, ProjectorShape::Mlp);
    let cases =
        [(&mlp, 0, 0, 576, 15.50), (&resampler, 2, 3, 64, 14.63), (&mlp, 2, 3, 576, 113.65), (&mlp, 2, 2, 576, 80.10)];
    for (shape, cols, rows, tokens, expected) in cases {
        let found = tflops(shape, ComputeRecipe::PAPER, cols, rows, tokens, 1);
        assert!((found / expected - 1.0).abs() < 0.01, "{found} for {expected}");
    }
    // The ratio that the paper's summary gives: 94 percent of LLaVA-1.5's compute.
    let ratio =
        tflops(&resampler, ComputeRecipe::PAPER, 2, 3, 64, 1) / tflops(&mlp, ComputeRecipe::PAPER, 0, 0, 576, 1);
    assert!((0.93..0.97).contains(&ratio), "{ratio}");
}

/// LLaVA-1.5's own figure comes from all 24 layers and all pairs.
#[test]
fn llava_15_to_the_last_digit() {
    let recipe = ComputeRecipe { causal: false, lm_head: LmHead::All, square_views: true };
    let found = tflops(&vicuna_13b(24, ProjectorShape::Mlp), recipe, 0, 0, 576, 0);
    assert!((found - 15.50).abs() < 0.005, "{found}");
}

#[test]
fn sums_saturate() {
    let most = u32::MAX;
    let shape = ModelShape {
        vision: VisionShape { width: most, layers: most, mlp: most, patch: most, class_tokens: 1 },
        projector: ProjectorShape::Resampler { queries: most },
        decoder: DecoderShape {
            width: most,
            layers: most,
            mlp: most,
            heads: most,
            kv_heads: most,
            head_dim: most,
            vocab: most,
        },
    };
    let flops = shape.flops(&four_patches(), u64::MAX, u64::MAX);
    assert_eq!((flops.vision, flops.prefill, flops.decode), (u64::MAX, u64::MAX, u64::MAX));
    assert_eq!([flops, flops].into_iter().sum::<Flops>(), flops + flops);
    assert_eq!((flops + flops).total(), u64::MAX);
}

#[test]
fn stages_add_up() {
    let row = Flops { vision: 1, projector: 20, prefill: 300, decode: 4000 };
    let mut sum: Flops = [row, row].into_iter().sum();
    sum += row;
    assert_eq!(sum, Flops { vision: 3, projector: 60, prefill: 900, decode: 12_000 });
    assert_eq!((row.total(), Flops::default().total()), (4321, 0));
}

proptest! {
    /// A step of several beams is as many steps of one.
    #[test]
    fn beams_cost_as_many_sequences(beams in 1_u32..64, prompt in 0_u64..5000, steps in 0_u64..500) {
        let shape = vicuna_13b(23, ProjectorShape::Mlp);
        prop_assert_eq!(shape.beam_flops(1, prompt, steps), shape.decode_flops(prompt, steps));
        let all: u64 = (0..beams).map(|_| shape.decode_flops(prompt, steps)).sum();
        prop_assert_eq!(shape.beam_flops(beams, prompt, steps), all);
    }

    /// Decoding is prefill one token at a time.
    #[test]
    fn decode_continues_prefill(prompt in 0_u64..5000, output in 0_u64..5000) {
        let shape = vicuna_13b(23, ProjectorShape::Mlp);
        let all = |tokens| shape.prefill_flops_by(ComputeRecipe::PAPER, tokens);
        prop_assert_eq!(all(prompt + output), all(prompt) + shape.decode_flops(prompt, output));
    }
}
