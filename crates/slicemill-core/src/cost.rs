//! Compute per stage, in floating point operations (one multiply-add is two).

use serde::{Deserialize, Serialize};

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
