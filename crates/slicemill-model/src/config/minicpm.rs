//! MiniCPM-V 2.6, 4.0 and 4.5, and the image path of MiniCPM-o 2.6 and 4.5.
//!
//! One vision path for all: SigLIP for any resolution, a resampler with computed positions, tags around views. The
//! language model is Qwen2 (2.6), LLaMA with longrope (4.0) or Qwen3 (4.5).

use serde::Deserialize;
use slicemill_core::{GenerationParams, Normalisation};

use super::decoder::{Options, RawDecoder};
use super::vision::RawVision;
use super::{
    DEFAULT_PROMPT, Family, ModelConfig, Names, Positions, Problem, ProjectorConfig, PromptConfig, RawPreprocessor,
    Sources, Template, ViewTags, ViewTokens, VisionKind, dimension, from_value, named_policy, need, positive,
    resampler_heads, small, stop_tokens,
};

#[derive(Debug, Deserialize)]
struct Raw {
    model_type: String,
    version: Option<serde_json::Value>,
    vision_config: Option<serde_json::Value>,
    query_num: Option<usize>,
    drop_vision_last_layer: Option<bool>,
    use_image_id: Option<bool>,
    slice_mode: Option<bool>,
    slice_config: Option<RawSlices>,
}

#[derive(Debug, Default, Deserialize)]
struct RawSlices {
    max_slice_nums: Option<u32>,
    scale_resolution: Option<u32>,
}

pub(super) fn read(value: &serde_json::Value, sources: Sources<'_>) -> Result<ModelConfig, Problem> {
    let raw: Raw = from_value(value, "")?;
    let text: RawDecoder = from_value(value, "")?;
    let family = raw.family()?;
    let options = match family {
        Family::MiniCpmV26 => Options { qkv_bias: true, qk_norm: false },
        Family::MiniCpmV45 => Options { qkv_bias: false, qk_norm: true },
        _ => Options::default(),
    };
    let decoder = text.check(options)?;
    let vision = RawVision::from_json(need(raw.vision_config.as_ref(), "vision_config")?)?;
    // The class default of the published code is to drop the last layer; published configs say false.
    let dropped = usize::from(raw.drop_vision_last_layer.unwrap_or(true));
    let vision = vision.check(VisionKind::Siglip, |all| {
        all.checked_sub(dropped).ok_or_else(|| "drop_vision_last_layer leaves no layer".to_owned())
    })?;
    let defaults = RawPreprocessor::default();
    let pixels = sources.preprocessor.unwrap_or(&defaults);
    let prefix = if raw.slice_mode.or(pixels.slice_mode) == Some(false) { "whole" } else { "minicpm-v" };
    let slices = raw.slice_config.unwrap_or_default();
    let policy = named_policy(prefix)?
        .with_overrides(
            pixels.scale_resolution.or(slices.scale_resolution).or(Some(448)),
            Some(pixels.patch_size.unwrap_or(small(vision.patch))),
            (prefix == "minicpm-v").then(|| pixels.max_slice_nums.or(slices.max_slice_nums).unwrap_or(9)),
        )
        .map_err(|e| format!("slice_config: {e}"))?;
    if policy.patch as usize != vision.patch {
        return Err(format!(
            "preprocessor_config.json cuts patches of {} and vision_config.patch_size is {}; they must be equal",
            policy.patch, vision.patch
        ));
    }
    let numbered = pixels.use_image_id.or(raw.use_image_id).unwrap_or(true);
    Ok(ModelConfig {
        family,
        projector: ProjectorConfig::Resampler {
            queries: dimension(raw.query_num.or(Some(64)), "query_num")?,
            heads: resampler_heads(None, decoder.width)?,
            positions: Positions::Computed,
        },
        policy,
        normalisation: normalisation(pixels)?,
        context_tokens_max: dimension(text.max_position_embeddings, "max_position_embeddings")?,
        prompt_tokens_max: None,
        prompt: PromptConfig {
            template: Template::Chat,
            default_prompt: DEFAULT_PROMPT.to_owned(),
            views: ViewTokens::Tags(Box::new(tags(pixels, numbered))),
            bos: None,
            eos: stop_tokens(text.eos_token_id.as_ref(), sources.generation),
            // The terminators of the published code.
            eos_names: ["<|im_end|>", "<|endoftext|>", "</s>"].map(str::to_owned).to_vec(),
            skip_zero: true,
        },
        generation: GenerationParams::default(),
        names: Names {
            vision: "vpm".to_owned(),
            projector: "resampler".to_owned(),
            decoder: "llm.model".to_owned(),
            head: "llm.lm_head.weight".to_owned(),
            tower: None,
        },
        vision,
        decoder,
    })
}

fn tags(pixels: &RawPreprocessor, numbered: bool) -> ViewTags {
    let tag = |given: &Option<String>, default: &str| given.clone().unwrap_or_else(|| default.to_owned());
    ViewTags {
        image: (tag(&pixels.im_start, "<image>"), tag(&pixels.im_end, "</image>")),
        slice: (tag(&pixels.slice_start, "<slice>"), tag(&pixels.slice_end, "</slice>")),
        image_id: numbered.then(|| (tag(&pixels.im_id_start, "<image_id>"), tag(&pixels.im_id_end, "</image_id>"))),
        row: "\n".to_owned(),
    }
}

fn normalisation(pixels: &RawPreprocessor) -> Result<Normalisation, Problem> {
    let mean = pixels.norm_mean.or(pixels.image_mean).unwrap_or(Normalisation::HALF.mean);
    let std = pixels.norm_std.or(pixels.image_std).unwrap_or(Normalisation::HALF.std);
    for value in std {
        positive(value, "norm_std of preprocessor_config.json")?;
    }
    Ok(Normalisation { mean, std })
}

impl Raw {
    /// By `version`, a number or text.
    fn family(&self) -> Result<Family, Problem> {
        let version = match &self.version {
            Some(serde_json::Value::String(text)) => text.clone(),
            Some(serde_json::Value::Number(number)) => number.to_string(),
            _ => String::new(),
        };
        match (self.model_type.as_str(), version.as_str()) {
            (_, "2.6") => Ok(Family::MiniCpmV26),
            ("minicpmv", "4.0" | "4") => Ok(Family::MiniCpmV40),
            (_, "4.5") => Ok(Family::MiniCpmV45),
            (model, "") => Err(format!("the key version is missing; {model} is supported as 2.6, 4.0 and 4.5")),
            (model, other) => Err(format!("{model} of version {other} is not supported; 2.6, 4.0 and 4.5 are")),
        }
    }
}
