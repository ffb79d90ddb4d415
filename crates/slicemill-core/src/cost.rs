//! Compute per stage, in floating point operations (one multiply-add is two).
//!
//! Only matrix products are counted: norms, activations, softmax and interpolation are below one percent and are left
//! out, as the paper does. All sums saturate.

use serde::{Deserialize, Serialize};

use crate::{Grid, Size, SlicePlan, TokenRule, View};

/// Compute of one row or one run by stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Flops {
    /// Vision tower.
    pub vision: u64,
    /// Projector.
    pub projector: u64,
    /// Language model over the prompt.
    pub prefill: u64,
    /// Language model over the output.
    pub decode: u64,
}

impl Flops {
    /// All stages together.
    pub const fn total(&self) -> u64 {
        self.vision.saturating_add(self.projector).saturating_add(self.prefill).saturating_add(self.decode)
    }
}

impl std::ops::Add for Flops {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            vision: self.vision.saturating_add(other.vision),
            projector: self.projector.saturating_add(other.projector),
            prefill: self.prefill.saturating_add(other.prefill),
            decode: self.decode.saturating_add(other.decode),
        }
    }
}

impl std::ops::AddAssign for Flops {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl std::iter::Sum for Flops {
    fn sum<I: Iterator<Item = Self>>(rows: I) -> Self {
        rows.fold(Self::default(), std::ops::Add::add)
    }
}

/// A vision transformer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VisionShape {
    /// Hidden size.
    pub width: u32,
    /// Layers that are run.
    pub layers: u32,
    /// Hidden size of the MLP.
    pub mlp: u32,
    /// Patch side, pixels.
    pub patch: u32,
    /// 1 when a class token is prepended.
    pub class_tokens: u32,
}

/// A projector from vision width to language width.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProjectorShape {
    /// Perceiver resampler: every query attends to all patches of its view.
    Resampler {
        /// Queries.
        queries: u32,
    },
    /// Spatially constrained resampler: every query attends to its own window of pooled keys.
    SpatialResampler {
        /// Queries.
        queries: u32,
    },
    /// Two linear layers.
    Mlp,
    /// Nothing (null model).
    None,
}

/// A decoder-only language model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecoderShape {
    /// Hidden size.
    pub width: u32,
    /// Layers.
    pub layers: u32,
    /// Hidden size of the gated MLP.
    pub mlp: u32,
    /// Query heads.
    pub heads: u32,
    /// Key and value heads.
    pub kv_heads: u32,
    /// Size of a head.
    pub head_dim: u32,
    /// Vocabulary.
    pub vocab: u32,
}

/// Shapes of all stages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelShape {
    /// Vision tower.
    pub vision: VisionShape,
    /// Projector.
    pub projector: ProjectorShape,
    /// Language model.
    pub decoder: DecoderShape,
}

/// Positions whose logits are computed in the prefill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LmHead {
    /// Every position.
    All,
    /// The last one, from which the first output token is taken.
    Last,
}

/// What is counted in a prefill. Published figures differ in this, so it is a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ComputeRecipe {
    /// Whether a token attends only to itself and those before it; otherwise all pairs are counted.
    pub causal: bool,
    /// Positions whose logits are computed.
    pub lm_head: LmHead,
    /// Whether every view is counted as a full square of the tower, whatever its own aspect.
    pub square_views: bool,
}

impl ComputeRecipe {
    /// What slicemill runs: causal attention, logits at the last position, views as they are planned.
    pub const RUN: Self = Self { causal: true, lm_head: LmHead::Last, square_views: false };
    /// The recipe that comes nearest to the figures of the LLaVA-UHD paper (table 2 of arXiv 2403.11703v1), which does
    /// not state its own: with 23 layers of the tower, an overview of 576 patches and one text token, each of the four
    /// figures comes out within one percent.
    pub const PAPER: Self = Self { causal: true, lm_head: LmHead::All, square_views: true };
}

/// FLOPs of `rows` × `inner` by `inner` × `cols`.
fn matmul(rows: u64, inner: u64, cols: u64) -> u64 {
    2_u64.saturating_mul(rows).saturating_mul(inner).saturating_mul(cols)
}

/// The sum of some products, saturating.
fn sum<const N: usize>(products: [u64; N]) -> u64 {
    products.into_iter().fold(0, u64::saturating_add)
}

impl VisionShape {
    /// FLOPs of one view: patch embedding, and per layer the projections of query, key, value and output, attention
    /// over its patches and class token, and the MLP of two layers.
    fn view_flops(&self, view: &View) -> u64 {
        let patches = u64::from(view.patches());
        let tokens = patches.saturating_add(u64::from(self.class_tokens));
        let (width, mlp, patch) = (u64::from(self.width), u64::from(self.mlp), u64::from(self.patch));
        let embedding = matmul(patches, 3_u64.saturating_mul(patch.saturating_mul(patch)), width);
        let layer = sum([
            matmul(tokens, width, width).saturating_mul(4),
            matmul(tokens, width, tokens).saturating_mul(2),
            matmul(tokens, width, mlp).saturating_mul(2),
        ]);
        layer.saturating_mul(u64::from(self.layers)).saturating_add(embedding)
    }
}

impl ProjectorShape {
    /// FLOPs of one view. `vision` and `language` are the widths it stands between. A resampler has no key-value
    /// projection when they are equal.
    fn view_flops(self, view: &View, vision: u64, language: u64) -> u64 {
        let patches = u64::from(view.patches());
        let input = if vision == language { 0 } else { matmul(patches, vision, language) };
        match self {
            Self::None => 0,
            Self::Mlp => matmul(patches, vision, language).saturating_add(matmul(patches, language, language)),
            Self::Resampler { queries } => {
                input.saturating_add(attention_flops(u64::from(queries), patches, patches, language))
            }
            Self::SpatialResampler { queries } => {
                // Keys and values are projected before they are pooled, which is the same and less.
                input.saturating_add(attention_flops(u64::from(queries), patches, window_keys(view), language))
            }
        }
    }
}

/// Cross attention of a resampler: query, key and value projections, scores and weighted sum over `keys` per query,
/// output projection, and the projection after it. `key_rows` keys and values are projected.
fn attention_flops(queries: u64, key_rows: u64, keys: u64, width: u64) -> u64 {
    sum([
        matmul(queries, width, width).saturating_mul(3),
        matmul(key_rows, width, width).saturating_mul(2),
        matmul(queries, width, keys).saturating_mul(2),
    ])
}

/// Keys in the window of one query of the spatially constrained resampler: among the pooled windows of the July 2024
/// release, the one whose aspect is nearest to the view's.
fn window_keys(view: &View) -> u64 {
    const WINDOWS: [(u32, u32); 7] = [(4, 2), (3, 2), (4, 3), (3, 3), (2, 4), (2, 3), (3, 4)];
    let aspect = (f64::from(view.patches_wide) / f64::from(view.patches_high)).ln();
    let mut best = (f64::INFINITY, 0);
    for (width, height) in WINDOWS {
        let error = (aspect - (f64::from(width) / f64::from(height)).ln()).abs();
        if error < best.0 {
            best = (error, u64::from(width * height));
        }
    }
    best.1
}

impl DecoderShape {
    /// FLOPs of `tokens` tokens through all layers, attention and logits left out: projections of query, key, value
    /// and output, and the gated MLP of three matrices.
    fn linear_flops(&self, tokens: u64) -> u64 {
        let width = u64::from(self.width);
        let queries = u64::from(self.heads).saturating_mul(u64::from(self.head_dim));
        let keys = u64::from(self.kv_heads).saturating_mul(u64::from(self.head_dim));
        let layer = sum([
            matmul(tokens, width, queries).saturating_mul(2),
            matmul(tokens, width, keys).saturating_mul(2),
            matmul(tokens, width, u64::from(self.mlp)).saturating_mul(3),
        ]);
        layer.saturating_mul(u64::from(self.layers))
    }

    /// FLOPs of attention (scores and weighted sum) over `pairs` pairs of query and key in all layers.
    fn attention_flops(&self, pairs: u64) -> u64 {
        let width = u64::from(self.heads).saturating_mul(u64::from(self.head_dim));
        matmul(pairs, width, 2).saturating_mul(u64::from(self.layers))
    }

    /// FLOPs of the logits at `positions` positions.
    fn logits_flops(&self, positions: u64) -> u64 {
        matmul(positions, u64::from(self.width), u64::from(self.vocab))
    }
}

/// 1 + 2 + … + n.
const fn triangle(n: u64) -> u64 {
    if n.is_multiple_of(2) { (n / 2).saturating_mul(n.saturating_add(1)) } else { (n / 2 + 1).saturating_mul(n) }
}

impl ModelShape {
    /// A model without weights: everything costs nothing.
    pub const NOTHING: Self = Self {
        vision: VisionShape { width: 0, layers: 0, mlp: 0, patch: 0, class_tokens: 0 },
        projector: ProjectorShape::None,
        decoder: DecoderShape { width: 0, layers: 0, mlp: 0, heads: 0, kv_heads: 0, head_dim: 0, vocab: 0 },
    };

    /// FLOPs of the vision tower over all views of an image.
    pub fn vision_flops(&self, plan: &SlicePlan) -> u64 {
        plan.views().iter().map(|view| self.vision.view_flops(view)).fold(0, u64::saturating_add)
    }

    /// FLOPs of the projector over all views of an image.
    pub fn projector_flops(&self, plan: &SlicePlan) -> u64 {
        let (vision, language) = (u64::from(self.vision.width), u64::from(self.decoder.width));
        let view_flops = |view: &View| self.projector.view_flops(view, vision, language);
        plan.views().iter().map(view_flops).fold(0, u64::saturating_add)
    }

    /// FLOPs of the language model over a prompt of this length, as slicemill runs it ([`ComputeRecipe::RUN`]).
    pub fn prefill_flops(&self, prompt_tokens: u64) -> u64 {
        self.prefill_flops_by(ComputeRecipe::RUN, prompt_tokens)
    }

    /// FLOPs of the language model over a prompt of this length, counted by `recipe`.
    pub fn prefill_flops_by(&self, recipe: ComputeRecipe, prompt_tokens: u64) -> u64 {
        let pairs = match recipe.causal {
            true => triangle(prompt_tokens),
            false => prompt_tokens.saturating_mul(prompt_tokens),
        };
        let positions = match recipe.lm_head {
            LmHead::All => prompt_tokens,
            LmHead::Last => prompt_tokens.min(1),
        };
        let decoder = &self.decoder;
        sum([decoder.linear_flops(prompt_tokens), decoder.attention_flops(pairs), decoder.logits_flops(positions)])
    }

    /// FLOPs up to the first output token of one image with `text_tokens` tokens of text, counted by `recipe`. `side`
    /// is that of the tower's square.
    pub fn prompt_flops_by(
        &self,
        recipe: ComputeRecipe,
        plan: &SlicePlan,
        side: u32,
        rule: TokenRule,
        text_tokens: u64,
    ) -> Flops {
        let mut plan = plan.clone();
        if recipe.square_views {
            let square = Size::new(side, side);
            plan.overview = square;
            if plan.grid != Grid::NONE {
                plan.slice = square;
            }
        }
        let prompt = plan.visual_tokens(rule).saturating_add(text_tokens);
        Flops {
            vision: self.vision_flops(&plan),
            projector: self.projector_flops(&plan),
            prefill: self.prefill_flops_by(recipe, prompt),
            decode: 0,
        }
    }

    /// FLOPs of the language model over its output: one step per output token, which attends to the prompt and all
    /// output up to itself. (The first output token comes out of the prefill and the step of the last one finds the
    /// stop token; a sequence that ends at its cap does not run that step, which is counted all the same.)
    pub fn decode_flops(&self, prompt_tokens: u64, output_tokens: u64) -> u64 {
        let pairs = output_tokens.saturating_mul(prompt_tokens).saturating_add(triangle(output_tokens));
        let decoder = &self.decoder;
        sum([decoder.linear_flops(output_tokens), decoder.attention_flops(pairs), decoder.logits_flops(output_tokens)])
    }

    /// FLOPs of a beam search: every step runs one token of each beam, and each beam attends to the prompt and to all
    /// output of its own. With one beam this is [`decode_flops`](Self::decode_flops).
    ///
    /// A search takes at least as many steps as its answer has tokens, because it goes on until the other beams cannot
    /// win any more. (As above, the step after the last token is counted when the search ends at its cap.)
    pub fn beam_flops(&self, beams: u32, prompt_tokens: u64, steps: u64) -> u64 {
        self.decode_flops(prompt_tokens, steps).saturating_mul(u64::from(beams))
    }

    /// FLOPs by stage of one image with one prompt.
    pub fn flops(&self, plan: &SlicePlan, prompt_tokens: u64, output_tokens: u64) -> Flops {
        Flops {
            vision: self.vision_flops(plan),
            projector: self.projector_flops(plan),
            prefill: self.prefill_flops(prompt_tokens),
            decode: self.decode_flops(prompt_tokens, output_tokens),
        }
    }
}

#[cfg(test)]
mod tests;
