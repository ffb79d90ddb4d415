//! config.json: what a checkpoint says about itself.
//!
//! The keys are those of published LLaVA checkpoints (LLaMA's at the top level, the tower's under `vision_config`,
//! the projector's with the prefix `mm_`), and a section `slicemill` with what those leave to code: the slicing policy,
//! the prompt, the separators, the pixel normalisation.

use serde::Deserialize;
use slicemill_core::{
    DecoderShape, GenerationParams, ModelShape, Normalisation, ProjectorShape, SlicingPolicy, VisionShape,
};

use crate::error::ModelError;
use crate::kernels::{Activation, AttentionShape};

/// A checkpoint's model, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// The vision tower.
    pub vision: ClipConfig,
    /// From vision width to language width.
    pub projector: ProjectorConfig,
    /// The language model.
    pub decoder: DecoderConfig,
    /// Prompt, separators and stop tokens.
    pub prompt: PromptConfig,
    /// The policy it was trained with.
    pub policy: SlicingPolicy,
    /// Pixel normalisation.
    pub normalisation: Normalisation,
    /// Longest sequence, prompt and output together.
    pub context_tokens_max: usize,
    /// Generation defaults.
    pub generation: GenerationParams,
}

/// A CLIP vision transformer.
#[derive(Debug, Clone, PartialEq)]
pub struct ClipConfig {
    /// Hidden size.
    pub width: usize,
    /// Hidden size of the MLP.
    pub mlp: usize,
    /// Heads.
    pub heads: usize,
    /// Layers that are run: `hidden_states[mm_vision_select_layer]` of the reference, where index 0 is the embedding
    /// and index i the output of layer i, so −1 runs all layers and −2 all but one.
    pub layers: usize,
    /// Patches along a side of the position table.
    pub grid: usize,
    /// Side of a patch, pixels.
    pub patch: usize,
    /// Between the linear layers of the MLP.
    pub activation: Activation,
    /// Added to the variance in layer norms.
    pub eps: f32,
}

/// From vision width to language width.
#[derive(Debug, Clone, PartialEq)]
pub enum ProjectorConfig {
    /// Every one of grid × grid queries attends to all patches of its view.
    Resampler {
        /// Queries along a side.
        grid: usize,
        /// Heads.
        heads: usize,
    },
}

/// A decoder-only transformer: RMS norm, rotary positions, grouped attention, gated MLP.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// Hidden size.
    pub width: usize,
    /// Hidden size of the MLP.
    pub mlp: usize,
    /// Layers.
    pub layers: usize,
    /// Heads of the attention.
    pub attention: AttentionShape,
    /// Added to the mean square in RMS norms.
    pub eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Vocabulary.
    pub vocab: usize,
    /// The output matrix is the embedding matrix.
    pub tied: bool,
    /// Query, key and value projections have a bias (Qwen2).
    pub qkv_bias: bool,
    /// Queries and keys are normalised per head (Qwen3).
    pub qk_norm: bool,
}

/// Prompt, separators and stop tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptConfig {
    /// With `{image}` once and `{question}` once.
    pub template: String,
    /// Question of `caption` when none is given.
    pub default_prompt: String,
    /// After a slice that is not the last of its row.
    pub separator_column: String,
    /// After the last slice of a row.
    pub separator_row: String,
    /// First token of every sequence.
    pub bos: Option<u32>,
    /// Tokens that end the output.
    pub eos: Vec<u32>,
}

#[derive(Debug, Deserialize)]
struct Raw {
    model_type: Option<String>,
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    rms_norm_eps: Option<f32>,
    rope_theta: Option<f64>,
    rope_scaling: Option<serde_json::Value>,
    vocab_size: Option<usize>,
    max_position_embeddings: Option<usize>,
    tokenizer_model_max_length: Option<usize>,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    hidden_act: Option<String>,
    bos_token_id: Option<u32>,
    eos_token_id: Option<OneOrMany>,
    mm_projector_type: Option<String>,
    mm_num_queries: Option<usize>,
    mm_resampler_heads: Option<usize>,
    mm_vision_select_layer: Option<i64>,
    mm_vision_select_feature: Option<String>,
    vision_config: Option<RawVision>,
    slicemill: Option<RawSlicemill>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

#[derive(Debug, Deserialize)]
struct RawVision {
    model_type: Option<String>,
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    image_size: Option<usize>,
    patch_size: Option<usize>,
    hidden_act: Option<String>,
    layer_norm_eps: Option<f32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSlicemill {
    policy: Option<String>,
    side: Option<u32>,
    patch: Option<u32>,
    max_slices: Option<u32>,
    prompt_template: Option<String>,
    default_prompt: Option<String>,
    separator_column: Option<String>,
    separator_row: Option<String>,
    image_mean: Option<[f32; 3]>,
    image_std: Option<[f32; 3]>,
    max_new_tokens: Option<u32>,
}

/// What is wrong with config.json, without its name.
type Problem = String;

impl ModelConfig {
    /// Reads config.json; `origin` names it in errors.
    ///
    /// # Errors
    /// When it is not JSON, lacks a key, has numbers that do not fit together, or describes a model of another family.
    pub fn parse(json: &[u8], origin: &str) -> Result<Self, ModelError> {
        let problem = |message: String| ModelError::Config { origin: origin.to_owned(), message };
        let raw: Raw = serde_json::from_slice(json).map_err(|e| problem(e.to_string()))?;
        raw.check().map_err(problem)
    }

    /// Shapes for the cost model.
    pub fn shape(&self) -> ModelShape {
        let (vision, decoder, attention) = (&self.vision, &self.decoder, &self.decoder.attention);
        ModelShape {
            vision: VisionShape {
                width: small(vision.width),
                layers: small(vision.layers),
                mlp: small(vision.mlp),
                patch: small(vision.patch),
                class_tokens: 1,
            },
            projector: match self.projector {
                ProjectorConfig::Resampler { grid, .. } => ProjectorShape::Resampler { queries: small(grid * grid) },
            },
            decoder: DecoderShape {
                width: small(decoder.width),
                layers: small(decoder.layers),
                mlp: small(decoder.mlp),
                heads: small(attention.heads),
                kv_heads: small(attention.kv_heads),
                head_dim: small(attention.head_dim),
                vocab: small(decoder.vocab),
            },
        }
    }

    /// Visual tokens of one view.
    pub fn tokens_per_view(&self) -> usize {
        match self.projector {
            ProjectorConfig::Resampler { grid, .. } => grid * grid,
        }
    }
}

/// A checked dimension as the cost model stores it.
pub(crate) fn small(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn need<T>(value: Option<T>, key: &str) -> Result<T, Problem> {
    value.ok_or_else(|| format!("the key {key} is missing"))
}

/// A dimension: at least 1, and small enough that products of two stay far from overflow.
fn dimension(value: Option<usize>, key: &str) -> Result<usize, Problem> {
    match need(value, key)? {
        n @ 1..=0x100_0000 => Ok(n),
        n => Err(format!("{key} is {n}; it must be from 1 to 16777216")),
    }
}

fn positive(value: f32, key: &str) -> Result<f32, Problem> {
    if value.is_finite() && value > 0.0 { Ok(value) } else { Err(format!("{key} is {value}; it must be above 0")) }
}

impl Raw {
    fn check(self) -> Result<ModelConfig, Problem> {
        match self.model_type.as_deref() {
            Some("llava_llama" | "llava_uhd") => {}
            Some(other) => {
                return Err(format!(
                    "model_type {other:?} is not supported; this version reads llava_llama with mm_projector_type \
                     \"resampler\" and a section \"slicemill\""
                ));
            }
            None => return Err("the key model_type is missing".to_owned()),
        }
        let decoder = self.decoder()?;
        let vision = self.vision()?;
        let projector = self.projector(decoder.width)?;
        let section = need(self.slicemill.as_ref(), "slicemill")?;
        let policy = section.policy(vision.patch)?;
        let context = need(self.max_position_embeddings, "max_position_embeddings")?;
        let context = context.min(self.tokenizer_model_max_length.unwrap_or(context));
        let defaults = GenerationParams::default();
        Ok(ModelConfig {
            prompt: self.prompt(section)?,
            policy,
            normalisation: section.normalisation()?,
            context_tokens_max: dimension(Some(context), "max_position_embeddings")?,
            generation: GenerationParams {
                max_new_tokens: section.max_new_tokens.unwrap_or(defaults.max_new_tokens),
                ..defaults
            },
            vision,
            projector,
            decoder,
        })
    }

    fn decoder(&self) -> Result<DecoderConfig, Problem> {
        if self.rope_scaling.as_ref().is_some_and(|scaling| !scaling.is_null()) {
            return Err("rope_scaling is set; only plain rotary positions are supported".to_owned());
        }
        if self.attention_bias == Some(true) {
            return Err("attention_bias is true; only attention without bias is supported".to_owned());
        }
        if !matches!(self.hidden_act.as_deref(), None | Some("silu")) {
            return Err(format!("hidden_act is {:?}; only \"silu\" is supported", self.hidden_act));
        }
        let width = dimension(self.hidden_size, "hidden_size")?;
        let heads = dimension(self.num_attention_heads, "num_attention_heads")?;
        let kv_heads = dimension(self.num_key_value_heads.or(Some(heads)), "num_key_value_heads")?;
        let head_dim = dimension(self.head_dim.or(Some(width / heads)), "head_dim")?;
        if self.head_dim.is_none() && !width.is_multiple_of(heads) {
            return Err(format!("hidden_size {width} is not a multiple of num_attention_heads {heads}"));
        }
        if !heads.is_multiple_of(kv_heads) {
            return Err(format!("num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}"));
        }
        if !head_dim.is_multiple_of(2) {
            return Err(format!("head_dim {head_dim} is odd; rotary positions turn pairs"));
        }
        let rope_theta = self.rope_theta.unwrap_or(10_000.0);
        if !(rope_theta.is_finite() && rope_theta > 0.0) {
            return Err(format!("rope_theta is {rope_theta}; it must be above 0"));
        }
        Ok(DecoderConfig {
            width,
            mlp: dimension(self.intermediate_size, "intermediate_size")?,
            layers: dimension(self.num_hidden_layers, "num_hidden_layers")?,
            attention: AttentionShape { heads, kv_heads, head_dim },
            eps: positive(need(self.rms_norm_eps, "rms_norm_eps")?, "rms_norm_eps")?,
            rope_theta,
            vocab: dimension(self.vocab_size, "vocab_size")?,
            tied: self.tie_word_embeddings.unwrap_or(false),
            // LLaMA has neither.
            qkv_bias: false,
            qk_norm: false,
        })
    }

    fn vision(&self) -> Result<ClipConfig, Problem> {
        let raw = need(self.vision_config.as_ref(), "vision_config")?;
        if !matches!(raw.model_type.as_deref(), None | Some("clip_vision_model")) {
            return Err(format!(
                "vision_config.model_type is {:?}; only \"clip_vision_model\" is supported",
                raw.model_type
            ));
        }
        if !matches!(self.mm_vision_select_feature.as_deref(), None | Some("patch")) {
            return Err(format!(
                "mm_vision_select_feature is {:?}; only \"patch\" is supported",
                self.mm_vision_select_feature
            ));
        }
        let width = dimension(raw.hidden_size, "vision_config.hidden_size")?;
        let heads = dimension(raw.num_attention_heads, "vision_config.num_attention_heads")?;
        if !width.is_multiple_of(heads) {
            return Err(format!(
                "vision_config.hidden_size {width} is not a multiple of vision_config.num_attention_heads {heads}"
            ));
        }
        let all = dimension(raw.num_hidden_layers, "vision_config.num_hidden_layers")?;
        let patch = dimension(raw.patch_size, "vision_config.patch_size")?;
        let side = dimension(raw.image_size, "vision_config.image_size")?;
        if !side.is_multiple_of(patch) {
            return Err(format!(
                "vision_config.image_size {side} is not a multiple of vision_config.patch_size {patch}"
            ));
        }
        Ok(ClipConfig {
            width,
            mlp: dimension(raw.intermediate_size, "vision_config.intermediate_size")?,
            heads,
            layers: layers_run(self.mm_vision_select_layer.unwrap_or(-2), all)?,
            grid: side / patch,
            patch,
            activation: match raw.hidden_act.as_deref() {
                None | Some("quick_gelu") => Activation::QuickGelu,
                Some("gelu_pytorch_tanh") => Activation::GeluTanh,
                Some(other) => {
                    return Err(format!(
                        "vision_config.hidden_act is {other:?}; quick_gelu and gelu_pytorch_tanh are supported"
                    ));
                }
            },
            eps: positive(raw.layer_norm_eps.unwrap_or(1e-5), "vision_config.layer_norm_eps")?,
        })
    }

    fn projector(&self, width: usize) -> Result<ProjectorConfig, Problem> {
        match need(self.mm_projector_type.as_deref(), "mm_projector_type")? {
            "resampler" => {
                let queries = dimension(self.mm_num_queries, "mm_num_queries")?;
                let grid = queries.isqrt();
                if grid * grid != queries {
                    return Err(format!("mm_num_queries {queries} is not a square number"));
                }
                let heads = dimension(self.mm_resampler_heads.or(Some((width / 128).max(1))), "mm_resampler_heads")?;
                if !width.is_multiple_of(heads) {
                    return Err(format!("hidden_size {width} is not a multiple of mm_resampler_heads {heads}"));
                }
                Ok(ProjectorConfig::Resampler { grid, heads })
            }
            other => Err(format!("mm_projector_type {other:?} is not supported; this version reads \"resampler\"")),
        }
    }

    fn prompt(&self, section: &RawSlicemill) -> Result<PromptConfig, Problem> {
        let template = need(section.prompt_template.clone(), "slicemill.prompt_template")?;
        for slot in ["{image}", "{question}"] {
            if template.matches(slot).count() != 1 {
                return Err(format!("slicemill.prompt_template must hold {slot} exactly once"));
            }
        }
        Ok(PromptConfig {
            template,
            default_prompt: need(section.default_prompt.clone(), "slicemill.default_prompt")?,
            separator_column: need(section.separator_column.clone(), "slicemill.separator_column")?,
            separator_row: need(section.separator_row.clone(), "slicemill.separator_row")?,
            bos: self.bos_token_id,
            eos: match need(self.eos_token_id.as_ref(), "eos_token_id")? {
                OneOrMany::One(id) => vec![*id],
                OneOrMany::Many(ids) => ids.clone(),
            },
        })
    }
}

/// Layers that `hidden_states[select]` needs, of `all`.
fn layers_run(select: i64, all: usize) -> Result<usize, Problem> {
    let count = i64::try_from(all).map_err(|e| e.to_string())?;
    let run = if select < 0 { count + 1 + select } else { select };
    match usize::try_from(run) {
        Ok(run) if run <= all => Ok(run),
        _ => Err(format!("mm_vision_select_layer {select} does not exist in a tower of {all} layers")),
    }
}

impl RawSlicemill {
    fn policy(&self, tower_patch: usize) -> Result<SlicingPolicy, Problem> {
        let name = need(self.policy.as_deref(), "slicemill.policy")?;
        let policy = SlicingPolicy::named(name).ok_or_else(|| {
            format!("slicemill.policy {name:?} does not exist; there are {}", SlicingPolicy::NAMES.join(", "))
        })?;
        let policy =
            policy.with_overrides(self.side, self.patch, self.max_slices).map_err(|e| format!("slicemill: {e}"))?;
        if policy.patch as usize != tower_patch {
            return Err(format!(
                "slicemill.patch is {} and vision_config.patch_size {tower_patch}; they must be equal",
                policy.patch
            ));
        }
        Ok(policy)
    }

    fn normalisation(&self) -> Result<Normalisation, Problem> {
        let mean = need(self.image_mean, "slicemill.image_mean")?;
        let std = need(self.image_std, "slicemill.image_std")?;
        for value in std {
            positive(value, "slicemill.image_std")?;
        }
        Ok(Normalisation { mean, std })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn embedded() -> serde_json::Value {
        serde_json::from_slice(include_bytes!("../embedded/config.json")).expect("JSON")
    }

    #[test]
    fn the_embedded_config_is_read() {
        let config = ModelConfig::parse(&serde_json::to_vec(&embedded()).unwrap(), "config.json").unwrap();
        assert_eq!(config.policy.name, "llava-uhd-raw");
        assert_eq!(config.vision.grid * config.vision.patch, 112);
        assert_eq!(config.tokens_per_view(), 16);
        assert_eq!(config.prompt.bos, Some(1));
    }

    #[test]
    fn select_layer_means_what_the_reference_means() {
        for (select, all, run) in [(-1, 24, Some(24)), (-2, 24, Some(23)), (0, 24, Some(0)), (-25, 24, Some(0))] {
            assert_eq!(layers_run(select, all).ok(), run);
        }
        for select in [-26, 25] {
            assert!(layers_run(select, 24).is_err());
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let check = |pointer: &str, value: serde_json::Value, expected: &str| {
            let mut json = embedded();
            *json.pointer_mut(pointer).expect("key") = value;
            let error = ModelConfig::parse(&serde_json::to_vec(&json).unwrap(), "dir/config.json").unwrap_err();
            let text = error.to_string();
            assert!(text.starts_with("dir/config.json: ") && text.contains(expected), "{pointer}: {text}");
        };
        check("/model_type", json!("mistral"), "model_type \"mistral\" is not supported");
        check("/hidden_size", json!(null), "hidden_size is missing");
        check("/hidden_size", json!(0), "hidden_size is 0");
        check("/num_key_value_heads", json!(4), "not a multiple of num_key_value_heads 4");
        check("/mm_projector_type", json!("mlp2x_gelu"), "mm_projector_type \"mlp2x_gelu\" is not supported");
        check("/mm_num_queries", json!(15), "not a square");
        check("/mm_vision_select_layer", json!(-9), "does not exist in a tower of 5 layers");
        check("/vision_config/patch_size", json!(16), "must be equal");
        check("/vision_config", json!(null), "vision_config is missing");
        check("/slicemill/policy", json!("best"), "there are llava-uhd,");
        check("/slicemill/prompt_template", json!("{image}"), "{question} exactly once");
        check("/slicemill/image_std", json!([0.0, 1.0, 1.0]), "image_std is 0");
        check("/eos_token_id", json!("x"), "did not match");
    }
}
