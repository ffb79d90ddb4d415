//! The language model's part of a config: LLaMA, Qwen2, Qwen3 and MiniCPM4 are one decoder with options.

use serde::Deserialize;

use super::{OneOrMany, Problem, dimension, layers, multiple, need, positive};
use crate::kernels::AttentionShape;

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
    /// How frequencies are stretched for long sequences.
    pub rope_scaling: RopeScaling,
    /// Vocabulary.
    pub vocab: usize,
    /// The output matrix is the embedding matrix.
    pub tied: bool,
    /// Query, key and value projections have a bias (Qwen2).
    pub qkv_bias: bool,
    /// Queries and keys are normalised per head (Qwen3).
    pub qk_norm: bool,
    /// Embeddings of text are multiplied by this.
    pub embedding_scale: f32,
}

/// How rotary frequencies are stretched for long sequences.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// They are not.
    None,
    /// Divided by a factor.
    Linear(f64),
    /// Divided by a factor each: the short ones while a sequence has at most `original_tokens`, else the long ones.
    /// Cosines and sines are multiplied by `attention` (transformers' `longrope`).
    Longrope {
        /// Factors of short sequences.
        short: Vec<f32>,
        /// Factors of long sequences.
        long: Vec<f32>,
        /// The context the model was first trained with.
        original_tokens: usize,
        /// Of cosines and sines.
        attention: f64,
    },
}

/// Keys of the language model, at the top of config.json or under `text_config`.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct RawDecoder {
    model_type: Option<String>,
    pub hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    rms_norm_eps: Option<f32>,
    rope_theta: Option<f64>,
    rope_scaling: Option<RawScaling>,
    rope_parameters: Option<RawScaling>,
    pub vocab_size: Option<usize>,
    pub max_position_embeddings: Option<usize>,
    original_max_position_embeddings: Option<usize>,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    hidden_act: Option<String>,
    scale_emb: Option<f32>,
    use_sliding_window: Option<bool>,
    pub bos_token_id: Option<u32>,
    pub eos_token_id: Option<OneOrMany>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct RawScaling {
    #[serde(alias = "type")]
    rope_type: Option<String>,
    rope_theta: Option<f64>,
    factor: Option<f64>,
    short_factor: Option<Vec<f32>>,
    long_factor: Option<Vec<f32>>,
    attention_factor: Option<f64>,
    original_max_position_embeddings: Option<usize>,
}

/// What the published code of a family fixes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Options {
    pub qkv_bias: bool,
    pub qk_norm: bool,
}

impl RawDecoder {
    /// Fills in what transformers' `LlamaConfig` assumes, which published `text_config`s leave out.
    pub fn with_llama_defaults(mut self) -> Self {
        self.hidden_size.get_or_insert(4096);
        self.intermediate_size.get_or_insert(11_008);
        self.num_hidden_layers.get_or_insert(32);
        self.num_attention_heads.get_or_insert(32);
        self.rms_norm_eps.get_or_insert(1e-6);
        self.vocab_size.get_or_insert(32_000);
        self.max_position_embeddings.get_or_insert(2048);
        self.bos_token_id.get_or_insert(1);
        self.eos_token_id.get_or_insert(OneOrMany::One(2));
        self
    }

    /// `model_type`, for a `text_config`.
    pub fn model_type(&self) -> Option<&str> {
        self.model_type.as_deref()
    }

    pub fn check(&self, options: Options) -> Result<DecoderConfig, Problem> {
        if !matches!(self.hidden_act.as_deref(), None | Some("silu")) {
            return Err(format!("hidden_act is {:?}; only \"silu\" is supported", self.hidden_act));
        }
        if self.use_sliding_window == Some(true) {
            return Err("use_sliding_window is true; only attention over the whole sequence is supported".to_owned());
        }
        let width = dimension(self.hidden_size, "hidden_size")?;
        let heads = dimension(self.num_attention_heads, "num_attention_heads")?;
        let kv_heads = dimension(self.num_key_value_heads.or(Some(heads)), "num_key_value_heads")?;
        let head_dim = dimension(self.head_dim.or(Some(width / heads)), "head_dim")?;
        if self.head_dim.is_none() {
            multiple(width, "hidden_size", heads, "num_attention_heads")?;
        }
        multiple(heads, "num_attention_heads", kv_heads, "num_key_value_heads")?;
        if !head_dim.is_multiple_of(2) {
            return Err(format!("head_dim {head_dim} is odd; rotary positions turn pairs"));
        }
        let theta = self.rope_theta.or(self.rope_parameters.as_ref().and_then(|rope| rope.rope_theta));
        let rope_theta = theta.unwrap_or(10_000.0);
        if !(rope_theta.is_finite() && rope_theta > 0.0) {
            return Err(format!("rope_theta is {rope_theta}; it must be above 0"));
        }
        if self.attention_bias == Some(true) && !options.qkv_bias {
            return Err("attention_bias is true; a bias of the output projection is not supported".to_owned());
        }
        Ok(DecoderConfig {
            width,
            mlp: dimension(self.intermediate_size, "intermediate_size")?,
            layers: layers(self.num_hidden_layers, "num_hidden_layers")?,
            attention: AttentionShape { heads, kv_heads, head_dim },
            eps: positive(need(self.rms_norm_eps, "rms_norm_eps")?, "rms_norm_eps")?,
            rope_theta,
            rope_scaling: self.scaling(head_dim)?,
            vocab: dimension(self.vocab_size, "vocab_size")?,
            tied: self.tie_word_embeddings.unwrap_or(false),
            qkv_bias: options.qkv_bias,
            qk_norm: options.qk_norm,
            embedding_scale: positive(self.scale_emb.unwrap_or(1.0), "scale_emb")?,
        })
    }

    fn scaling(&self, head_dim: usize) -> Result<RopeScaling, Problem> {
        let Some(raw) = self.rope_scaling.as_ref().or(self.rope_parameters.as_ref()) else {
            return Ok(RopeScaling::None);
        };
        match raw.rope_type.as_deref() {
            None if raw.factor.is_none() && raw.long_factor.is_none() => Ok(RopeScaling::None),
            Some("default") => Ok(RopeScaling::None),
            Some("linear") => {
                let factor = need(raw.factor, "rope_scaling.factor")?;
                match factor.is_finite() && factor > 0.0 {
                    true => Ok(RopeScaling::Linear(factor)),
                    false => Err(format!("rope_scaling.factor is {factor}; it must be above 0")),
                }
            }
            Some("longrope" | "su") => self.longrope(raw, head_dim),
            other => Err(format!(
                "rope_scaling is of type {:?}; default, linear and longrope are supported",
                other.unwrap_or("(none)")
            )),
        }
    }

    /// The rules of transformers' `_compute_longrope_parameters`: the ratio of contexts wins over `factor`, and the
    /// attention factor is √(1 + ln(factor) / ln(original context)) unless it is given.
    fn longrope(&self, raw: &RawScaling, head_dim: usize) -> Result<RopeScaling, Problem> {
        let factors = |values: &Option<Vec<f32>>, key: &str| {
            let values = need(values.clone(), key)?;
            if values.len() != head_dim / 2 {
                return Err(format!("{key} has {} values; half of head_dim {head_dim} are needed", values.len()));
            }
            match values.iter().find(|value| !(value.is_finite() && **value > 0.0)) {
                Some(value) => Err(format!("{key} holds {value}; factors must be above 0")),
                None => Ok(values),
            }
        };
        let context = need(self.max_position_embeddings, "max_position_embeddings")?;
        let original = self.original_max_position_embeddings.or(raw.original_max_position_embeddings);
        let factor = match original {
            Some(original) => Some(context as f64 / original.max(1) as f64),
            None => raw.factor,
        };
        let original_tokens = original.unwrap_or(context);
        if original_tokens < 2 {
            return Err(format!("original_max_position_embeddings is {original_tokens}; it must be at least 2"));
        }
        let attention = match (raw.attention_factor, factor) {
            (Some(given), _) => given,
            (None, Some(factor)) if factor > 1.0 => (1.0 + factor.ln() / (original_tokens as f64).ln()).sqrt(),
            (None, _) => 1.0,
        };
        if !(attention.is_finite() && attention > 0.0) {
            return Err(format!("rope_scaling gives an attention factor of {attention}; it must be above 0"));
        }
        Ok(RopeScaling::Longrope {
            short: factors(&raw.short_factor, "rope_scaling.short_factor")?,
            long: factors(&raw.long_factor, "rope_scaling.long_factor")?,
            original_tokens,
            attention,
        })
    }
}
