//! The candle backend of slicemill: LLaVA-UHD from patches to text, on a CPU or a GPU.
//!
//! ```text
//!   checkpoint ── config.json ─▶ ModelConfig ─▶ manifest ─▶ all tensors checked before one is read
//!              ├─ safetensors ─▶ Weights (mapped, or in the program)
//!              └─ tokenizer.json ─▶ PromptAssembler (counts and assembles prompts)
//!
//!   views, packed ─▶ VisionTower ─▶ Projector ─▶ visual tokens ─┐
//!   prompt ─▶ pieces ───────────────────────────▶ embeddings ───┴─▶ Decoder + KV cache ─▶ Sampler ─▶ text
//!                                                                                    └─▶ BeamSearch ─┘
//!                                └─────────── all through `ops`: CPU kernels, or candle on any device ───────┘
//! ```
//!
//! [`CandleFactory`] opens a checkpoint, [`slicemill_pipeline::Backend`] is what it opens. On the CPU an image's visual
//! tokens and a sequence's logits are the same **to the bit** whatever else is in the batch, for any batch size, any
//! number of threads and any x86-64 with FMA: see `kernels`. A GPU runs the same model code on candle's operations in
//! bf16, with norms, rotary positions and softmax in f32.
//!
//! What is absent, on purpose: downloads, environment variables, clocks that decide anything, and other people's model
//! code (candle's LLaVA and CLIP take one size of image and count layers differently from the reference).

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking"))]

mod attention;
mod backend;
mod beam;
mod chat_template;
mod checkpoint;
mod checkpoint_files;
mod config;
mod decoder;
mod embedded;
mod error;
mod factory;
mod kernels;
mod kv_cache;
mod manifest;
mod model;
mod ops;
mod position;
mod projector;
mod prompt;
mod rope;
mod sampler;
mod summary;
mod tokenizer;
mod vision;

#[cfg(test)]
mod tests;

pub use chat_template::{ChatOptions, ChatTemplate, Message};
pub use checkpoint::{HubOptions, Located, OnProgress, TensorInfo, Weights, locate, locate_tower};
pub use checkpoint_files::{Checkpoint, CheckpointFiles, TowerFinder};
pub use config::{
    ConfigFile, ConfigFiles, DecoderConfig, Family, ModelConfig, Names, Positions, ProjectorConfig, PromptConfig,
    RopeScaling, Separator, Template, ViewTags, ViewTokens, VisionConfig, VisionKind,
};
pub use error::ModelError;
pub use factory::{BackendOptions, CandleFactory};
pub use manifest::{Manifest, manifest};
pub use model::Model;
pub use ops::{Engine, Place};
pub use prompt::{Piece, PromptAssembler, Sequence};
pub use summary::{Summary, WeightsSummary};
pub use tokenizer::{Prefer, TextTokenizer};
