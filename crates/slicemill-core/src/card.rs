//! What planning needs to know about a model, without its weights.

use serde::{Deserialize, Serialize};

use crate::{GenerationParams, ModelShape, SlicingPolicy, View};

/// Visual tokens of one view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenRule {
    /// A resampler with this many queries.
    Queries(u32),
    /// One token per patch (MLP projector).
    Patches,
}

impl TokenRule {
    /// Visual tokens of `view`.
    pub const fn tokens(self, view: &View) -> u32 {
        match self {
            Self::Queries(queries) => queries,
            Self::Patches => view.patches(),
        }
    }
}

/// How views are arranged in the language model's sequence, and how many separator tokens that takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schema {
    /// One separator after every slice ("," or, at the end of a row, "\n"); none after the overview.
    CommaNewline,
    /// Each view between two tags, rows of slices joined by a newline (MiniCPM-V).
    Tagged,
    /// Views only.
    Plain,
}

/// Pixel normalisation: `(u8 / 255 − mean) / std` per channel.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Normalisation {
    /// Mean of R, G, B.
    pub mean: [f32; 3],
    /// Standard deviation of R, G, B.
    pub std: [f32; 3],
}

impl Normalisation {
    /// OpenAI CLIP.
    #[allow(clippy::excessive_precision, reason = "the digits as published")]
    pub const CLIP: Self =
        Self { mean: [0.481_454_66, 0.457_827_5, 0.408_210_73], std: [0.268_629_54, 0.261_302_58, 0.275_777_11] };
    /// 0.5 and 0.5 (SigLIP).
    pub const HALF: Self = Self { mean: [0.5; 3], std: [0.5; 3] };
}

/// A model as planning sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelCard {
    /// `embedded`, `null`, or the path or name it was loaded from.
    pub name: String,
    /// Changes when weights, config or tokenizer change (hex).
    pub fingerprint: String,
    /// Family, for people.
    pub family: String,
    /// The policy it was trained with.
    pub policy: SlicingPolicy,
    /// Visual tokens per view.
    pub token_rule: TokenRule,
    /// Width of a visual token (the language model's hidden size).
    pub width: u32,
    /// Arrangement of views.
    pub schema: Schema,
    /// Pixel normalisation.
    pub normalisation: Normalisation,
    /// Shapes for the cost model.
    pub shape: ModelShape,
    /// Longest sequence, prompt and output together.
    pub context_tokens_max: u32,
    /// Prompt of `caption` when none is given.
    pub default_prompt: String,
    /// Generation defaults.
    pub generation: GenerationParams,
}

impl ModelCard {
    /// The null model: it plans as LLaVA-UHD does and takes every image, encodes nothing and says nothing, so that the
    /// pipeline itself can be measured. 64 visual tokens of width 1 per view; its compute is 0.
    pub fn null() -> Self {
        Self {
            name: "null".to_owned(),
            fingerprint: "0".repeat(64),
            family: "null".to_owned(),
            policy: SlicingPolicy::llava_uhd(),
            token_rule: TokenRule::Queries(64),
            width: 1,
            schema: Schema::CommaNewline,
            normalisation: Normalisation::CLIP,
            shape: ModelShape::NOTHING,
            context_tokens_max: 1 << 24,
            default_prompt: String::new(),
            generation: GenerationParams::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Flops, Size};

    #[test]
    fn the_null_model_plans_and_costs_nothing() {
        let card = ModelCard::null();
        let plan = card.policy.plan(Size::new(672, 1008)).unwrap();
        assert_eq!(plan.visual_tokens(card.token_rule), 64 * 7);
        assert_eq!(card.shape.flops(&plan, 1000, 128), Flops::default());
        let json = serde_json::to_string(&card).unwrap();
        assert_eq!(serde_json::from_str::<ModelCard>(&json).unwrap(), card);
    }
}
