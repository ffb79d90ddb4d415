//! What a checkpoint is and what it needs, from its config and the headers of its weights.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::checkpoint::Weights;
use crate::config::{ModelConfig, ProjectorConfig, RopeScaling, VisionKind};
use crate::manifest::manifest;

/// What a checkpoint is and what it needs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Family, for people.
    pub family: String,
    /// Slicing policy: name, side, patch, most slices.
    pub policy: String,
    /// The vision tower.
    pub vision: String,
    /// The projector.
    pub projector: String,
    /// The language model.
    pub decoder: String,
    /// Longest sequence, prompt and output together.
    pub context_tokens: u64,
    /// Longest prompt; what is beyond is cut off.
    pub prompt_tokens_max: Option<u64>,
    /// Values that the model uses.
    pub parameters: u64,
    /// Bytes of keys and values of one token in all layers, as 16-bit floats.
    pub kv_bytes_per_token: u64,
    /// Bytes of host memory that the weights take on CPU devices together (f32).
    pub cpu_bytes: u64,
    /// Bytes of device memory that the weights take on every GPU (bf16).
    pub gpu_bytes: u64,
    /// What the weights are, when there are any.
    pub weights: Option<WeightsSummary>,
}

/// What the weights of a checkpoint are.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WeightsSummary {
    /// Files.
    pub files: u64,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Tensors by their type.
    pub tensors_by_dtype: BTreeMap<String, u64>,
    /// Tensors that the model does not use, by the first part of their name.
    pub unused: BTreeMap<String, u64>,
}

impl Summary {
    /// From a config, and the weights when there are any.
    pub fn new(config: &ModelConfig, weights: Option<&Weights>) -> Self {
        let (policy, decoder, attention) = (&config.policy, &config.decoder, config.decoder.attention);
        let needed = manifest(config);
        let parameters: u64 = needed.values().map(|shape| shape.iter().product::<usize>() as u64).sum();
        let bf16 = 2;
        Self {
            family: config.family.as_str().to_owned(),
            policy: format!(
                "{}, side {}, patch {}, at most {} slices",
                policy.name, policy.side, policy.patch, policy.max_slices
            ),
            vision: vision(config),
            projector: projector(config),
            decoder: format!(
                "{} layers of {}, MLP {}, {} heads ({} for keys) of {}, vocabulary {}{}",
                decoder.layers,
                decoder.width,
                decoder.mlp,
                attention.heads,
                attention.kv_heads,
                attention.head_dim,
                decoder.vocab,
                options(config)
            ),
            context_tokens: config.context_tokens_max as u64,
            prompt_tokens_max: config.prompt_tokens_max.map(|tokens| tokens as u64),
            parameters,
            kv_bytes_per_token: (2 * decoder.layers * attention.kv_heads * attention.head_dim) as u64 * bf16,
            // The kernels keep an output matrix of their own, also where it is the embedding matrix.
            cpu_bytes: (parameters + if decoder.tied { (decoder.vocab * decoder.width) as u64 } else { 0 }) * 4,
            gpu_bytes: parameters * bf16,
            weights: weights.map(|weights| WeightsSummary::new(config, weights)),
        }
    }
}

impl WeightsSummary {
    fn new(config: &ModelConfig, weights: &Weights) -> Self {
        let needed = manifest(config);
        let mut summary = Self {
            files: weights.files().len() as u64,
            bytes: 0,
            tensors_by_dtype: BTreeMap::new(),
            unused: BTreeMap::new(),
        };
        for tensor in weights.tensors() {
            summary.bytes += tensor.bytes;
            *summary.tensors_by_dtype.entry(format!("{:?}", tensor.dtype)).or_default() += 1;
            if !needed.contains_key(tensor.name) {
                let first = tensor.name.split('.').next().unwrap_or(tensor.name);
                *summary.unused.entry(first.to_owned()).or_default() += 1;
            }
        }
        summary
    }
}

fn vision(config: &ModelConfig) -> String {
    let vision = &config.vision;
    let kind = match vision.kind {
        VisionKind::Clip => "CLIP",
        VisionKind::Siglip => "SigLIP for any resolution",
    };
    format!(
        "{kind}, {} layers run of {}, MLP {}, {} heads, positions {} x {}, patch {}",
        vision.layers, vision.width, vision.mlp, vision.heads, vision.grid, vision.grid, vision.patch
    )
}

fn projector(config: &ModelConfig) -> String {
    match config.projector {
        ProjectorConfig::Resampler { queries, heads, .. } => {
            format!("resampler, {queries} queries that see their whole view, {heads} heads")
        }
        ProjectorConfig::Spatial { heads, .. } => {
            format!("spatially constrained resampler, 144 queries with a window each, {heads} heads")
        }
        ProjectorConfig::Mlp => "two-layer MLP, one token per patch".to_owned(),
    }
}

/// What the language model has beyond LLaMA.
fn options(config: &ModelConfig) -> String {
    let decoder = &config.decoder;
    let scaling = match decoder.rope_scaling {
        RopeScaling::None => None,
        RopeScaling::Linear(_) => Some("linear rope scaling"),
        RopeScaling::Longrope { .. } => Some("longrope"),
    };
    let options = [
        decoder.qkv_bias.then_some("bias on queries, keys and values"),
        decoder.qk_norm.then_some("norms on queries and keys"),
        decoder.tied.then_some("tied embeddings"),
        scaling,
    ];
    options.into_iter().flatten().map(|option| format!(", {option}")).collect()
}
