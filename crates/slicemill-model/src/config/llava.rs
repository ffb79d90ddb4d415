//! LLaVA: as published by its authors (LLaVA-1.5, LLaVA-UHD v1), and as converted for transformers (LLaVA-1.5).
//!
//! Published LLaVA-UHD configs do not say all that their code does, so what the code does stands here: the policy, the
//! separators by their token numbers in LLaMA's vocabulary, the prompt of vicuna_v1, the longest prompt.

use serde::Deserialize;
use slicemill_core::{GenerationParams, Normalisation, SlicingPolicy, WindowRounding};

use super::decoder::{Options, RawDecoder};
use super::vision::{RawVision, layers_run};
use super::{
    DEFAULT_PROMPT, Family, ModelConfig, Names, Positions, Problem, ProjectorConfig, PromptConfig, Separator, Sources,
    Template, ViewTokens, VisionConfig, VisionKind, dimension, from_value, named_policy, need, positive,
    resampler_heads, stop_tokens,
};

/// The conversation template vicuna_v1 with one question (`llava/conversation.py`).
const VICUNA_V1: &str = "A chat between a curious user and an artificial intelligence assistant. The assistant gives \
                         helpful, detailed, and polite answers to the user's questions. USER: {image}\n{question} \
                         ASSISTANT:";

/// "," in LLaMA's vocabulary.
const COMMA: u32 = 29892;
/// The byte of "\n" in LLaMA's vocabulary.
const NEWLINE: u32 = 13;
/// Longest prompt of the 64-query code, which ignores the config's.
const LLAVA_UHD_64_PROMPT_MAX: usize = 4096;

#[derive(Debug, Deserialize)]
struct Raw {
    text_config: Option<RawDecoder>,
    vision_config: Option<serde_json::Value>,
    architectures: Option<Vec<String>>,
    tokenizer_model_max_length: Option<usize>,
    image_aspect_ratio: Option<String>,
    mm_projector_type: Option<String>,
    mm_num_queries: Option<usize>,
    mm_resampler_heads: Option<usize>,
    mm_vision_select_layer: Option<i64>,
    mm_vision_select_feature: Option<String>,
    mm_vision_tower: Option<String>,
    mm_patch_merge_type: Option<String>,
    mm_use_im_start_end: Option<bool>,
    vision_feature_layer: Option<i64>,
    vision_feature_select_strategy: Option<String>,
    projector_hidden_act: Option<String>,
    multimodal_projector_bias: Option<bool>,
    slicemill: Option<RawSlicemill>,
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

pub(super) fn read(value: &serde_json::Value, sources: Sources<'_>) -> Result<ModelConfig, Problem> {
    let raw: Raw = from_value(value, "")?;
    match (&raw.text_config, &raw.slicemill) {
        (Some(text), _) => raw.converted(text, sources),
        (None, Some(section)) => raw.own(&from_value(value, "")?, section, sources),
        (None, None) => raw.published(&from_value(value, "")?, sources),
    }
}

/// Prefixes of the published layout.
fn published_names(tower: Option<String>) -> Names {
    Names {
        vision: "model.vision_tower.vision_tower.vision_model".to_owned(),
        projector: "model.mm_projector".to_owned(),
        decoder: "model".to_owned(),
        head: "lm_head.weight".to_owned(),
        tower,
    }
}

fn vicuna(views: ViewTokens, text: &RawDecoder, sources: Sources<'_>) -> PromptConfig {
    PromptConfig {
        template: Template::Text(VICUNA_V1.to_owned()),
        default_prompt: DEFAULT_PROMPT.to_owned(),
        views,
        bos: Some(text.bos_token_id.unwrap_or(1)),
        eos: match stop_tokens(text.eos_token_id.as_ref(), sources.generation) {
            ids if ids.is_empty() => vec![2],
            ids => ids,
        },
        eos_names: Vec::new(),
        skip_zero: false,
    }
}

impl Raw {
    /// The layout of LLaVA's authors, without a section `slicemill`.
    fn published(&self, text: &RawDecoder, sources: Sources<'_>) -> Result<ModelConfig, Problem> {
        self.refuse_other_llavas()?;
        let decoder = text.check(Options::default())?;
        let vision = self.tower(sources)?;
        let family = self.published_family(sources)?;
        let separators =
            || ViewTokens::Separators { column: Separator::Id(COMMA, ","), row: Separator::Id(NEWLINE, "\n") };
        let (policy, projector, views) = match family {
            Family::LlavaUhd => (
                "llava-uhd",
                ProjectorConfig::Spatial {
                    heads: resampler_heads(None, decoder.width)?,
                    rounding: WindowRounding::F32,
                },
                separators(),
            ),
            Family::LlavaUhd64 => (
                "llava-uhd-raw",
                ProjectorConfig::Resampler {
                    queries: 64,
                    heads: resampler_heads(None, decoder.width)?,
                    positions: Positions::Stored,
                },
                separators(),
            ),
            _ => ("pad-square", ProjectorConfig::Mlp, ViewTokens::Nothing),
        };
        let prompt_tokens_max = match family {
            Family::LlavaUhd64 => Some(LLAVA_UHD_64_PROMPT_MAX),
            _ => match self.tokenizer_model_max_length {
                Some(limit) => Some(dimension(Some(limit), "tokenizer_model_max_length")?),
                None => None,
            },
        };
        Ok(ModelConfig {
            family,
            policy: tower_policy(named_policy(policy)?, &vision)?,
            projector,
            normalisation: normalisation(sources)?,
            context_tokens_max: dimension(text.max_position_embeddings, "max_position_embeddings")?,
            prompt_tokens_max,
            prompt: vicuna(views, text, sources),
            generation: GenerationParams::default(),
            names: published_names(self.mm_vision_tower.clone()),
            vision,
            decoder,
        })
    }

    /// Which published model it is. The 64-query code wrote `mlp2x_gelu` into its config and used its resampler all the
    /// same, so its tensors, or without weights its architecture, decide.
    fn published_family(&self, sources: Sources<'_>) -> Result<Family, Problem> {
        let adapted = self.architectures.iter().flatten().any(|name| name == "adapt_LlavaLlamaForCausalLM");
        match need(self.mm_projector_type.as_deref(), "mm_projector_type")? {
            "adapt_spatial_resampler" => Ok(Family::LlavaUhd),
            "mlp2x_gelu" if adapted || (sources.has)("model.mm_projector.query") => Ok(Family::LlavaUhd64),
            "mlp2x_gelu" => Ok(Family::Llava15),
            "resampler" => {
                Err("the section slicemill is missing, which mm_projector_type \"resampler\" needs".to_owned())
            }
            other => Err(format!(
                "mm_projector_type {other:?} is not supported; there are adapt_spatial_resampler (LLaVA-UHD v1), \
                 mlp2x_gelu (LLaVA-1.5) and resampler (with a section slicemill)"
            )),
        }
    }

    fn refuse_other_llavas(&self) -> Result<(), Problem> {
        if let Some(merge) = self.mm_patch_merge_type.as_deref().filter(|merge| *merge != "flat") {
            return Err(format!("mm_patch_merge_type {merge:?} is that of LLaVA-1.6, which is not supported"));
        }
        if self.image_aspect_ratio.as_deref() == Some("anyres") {
            return Err("image_aspect_ratio \"anyres\" is that of LLaVA-1.6, which is not supported".to_owned());
        }
        if self.mm_use_im_start_end == Some(true) {
            return Err("mm_use_im_start_end is true; images between start and end tokens are not supported".to_owned());
        }
        Ok(())
    }

    /// A checkpoint with a section `slicemill`.
    fn own(&self, text: &RawDecoder, section: &RawSlicemill, sources: Sources<'_>) -> Result<ModelConfig, Problem> {
        let decoder = text.check(Options::default())?;
        let vision = self.tower(sources)?;
        let context = dimension(text.max_position_embeddings, "max_position_embeddings")?;
        let context = context.min(self.tokenizer_model_max_length.unwrap_or(context));
        let generation = GenerationParams::default();
        Ok(ModelConfig {
            family: Family::Slicemill,
            projector: self.own_projector(decoder.width)?,
            policy: section.policy(vision.patch)?,
            normalisation: section.normalisation()?,
            context_tokens_max: dimension(Some(context), "tokenizer_model_max_length")?,
            prompt_tokens_max: None,
            prompt: section.prompt(text, sources)?,
            generation: GenerationParams {
                max_new_tokens: section.max_new_tokens.unwrap_or(generation.max_new_tokens),
                ..generation
            },
            names: published_names(self.mm_vision_tower.clone()),
            vision,
            decoder,
        })
    }

    fn own_projector(&self, width: usize) -> Result<ProjectorConfig, Problem> {
        match need(self.mm_projector_type.as_deref(), "mm_projector_type")? {
            "resampler" => {
                let queries = dimension(self.mm_num_queries, "mm_num_queries")?;
                if queries.isqrt().pow(2) != queries {
                    return Err(format!("mm_num_queries {queries} is not a square number"));
                }
                let heads = resampler_heads(self.mm_resampler_heads, width)?;
                Ok(ProjectorConfig::Resampler { queries, heads, positions: Positions::Stored })
            }
            "adapt_spatial_resampler" => Ok(ProjectorConfig::Spatial {
                heads: resampler_heads(self.mm_resampler_heads, width)?,
                rounding: WindowRounding::F32,
            }),
            "mlp2x_gelu" => Ok(ProjectorConfig::Mlp),
            other => Err(format!(
                "mm_projector_type {other:?} is not supported; there are resampler, adapt_spatial_resampler and \
                 mlp2x_gelu"
            )),
        }
    }

    /// The layout of transformers.
    fn converted(&self, text: &RawDecoder, sources: Sources<'_>) -> Result<ModelConfig, Problem> {
        if let Some(other) = text.model_type().filter(|name| *name != "llama") {
            return Err(format!("text_config.model_type {other:?} is not supported; LLaVA-1.5 has llama"));
        }
        if !matches!(self.projector_hidden_act.as_deref(), None | Some("gelu")) {
            return Err(format!("projector_hidden_act is {:?}; only \"gelu\" is supported", self.projector_hidden_act));
        }
        if self.multimodal_projector_bias == Some(false) {
            return Err("multimodal_projector_bias is false; a projector without bias is not supported".to_owned());
        }
        if !matches!(self.vision_feature_select_strategy.as_deref(), None | Some("default")) {
            return Err(format!(
                "vision_feature_select_strategy is {:?}; only \"default\" is supported",
                self.vision_feature_select_strategy
            ));
        }
        let text = text.clone().with_llama_defaults();
        // Only the section of the language model says whether its matrices are tied.
        let decoder = text.check(Options::default())?;
        let vision = RawVision::from_json(need(self.vision_config.as_ref(), "vision_config")?)?;
        let vision = vision.check(VisionKind::Clip, |all| layers_run(self.vision_feature_layer.unwrap_or(-2), all))?;
        let older = !(sources.has)("model.language_model.norm.weight");
        let names = |vision: &str, projector: &str, decoder: &str, head: &str| Names {
            vision: vision.to_owned(),
            projector: projector.to_owned(),
            decoder: decoder.to_owned(),
            head: head.to_owned(),
            tower: None,
        };
        Ok(ModelConfig {
            family: Family::Llava15,
            policy: tower_policy(named_policy("pad-square")?, &vision)?,
            projector: ProjectorConfig::Mlp,
            normalisation: normalisation(sources)?,
            context_tokens_max: dimension(text.max_position_embeddings, "max_position_embeddings")?,
            prompt_tokens_max: None,
            prompt: vicuna(ViewTokens::Nothing, &text, sources),
            generation: GenerationParams::default(),
            names: if older {
                names(
                    "vision_tower.vision_model",
                    "multi_modal_projector",
                    "language_model.model",
                    "language_model.lm_head.weight",
                )
            } else {
                names(
                    "model.vision_tower.vision_model",
                    "model.multi_modal_projector",
                    "model.language_model",
                    "lm_head.weight",
                )
            },
            vision,
            decoder,
        })
    }

    /// The tower of the published layout: described in the config, in the folder it names, or known by its name.
    fn tower(&self, sources: Sources<'_>) -> Result<VisionConfig, Problem> {
        if !matches!(self.mm_vision_select_feature.as_deref(), None | Some("patch")) {
            return Err(format!(
                "mm_vision_select_feature is {:?}; only \"patch\" is supported",
                self.mm_vision_select_feature
            ));
        }
        let raw = match (&self.vision_config, sources.tower, &self.mm_vision_tower) {
            (Some(inline), _, _) if inline.is_object() => RawVision::from_json(inline)?,
            (_, Some(tower), _) => RawVision::from_json(tower)?,
            (_, None, Some(name)) => RawVision::by_name(name).ok_or_else(|| {
                format!(
                    "the vision tower {name:?} (mm_vision_tower) was not found; put its folder beside the checkpoint, or \
                     a vision_config into config.json"
                )
            })?,
            (_, None, None) => return Err("neither vision_config nor mm_vision_tower is there".to_owned()),
        };
        raw.check(VisionKind::Clip, |all| layers_run(self.mm_vision_select_layer.unwrap_or(-2), all))
    }
}

/// The policy with the side and patch that the tower was trained with.
fn tower_policy(policy: SlicingPolicy, vision: &VisionConfig) -> Result<SlicingPolicy, Problem> {
    let (side, patch) = (super::small(vision.grid * vision.patch), super::small(vision.patch));
    policy.with_overrides(Some(side), Some(patch), None).map_err(|e| format!("the vision tower: {e}"))
}

/// That of preprocessor_config.json, or CLIP's.
fn normalisation(sources: Sources<'_>) -> Result<Normalisation, Problem> {
    let given = sources.preprocessor.and_then(|raw| Some((raw.image_mean?, raw.image_std?)));
    let Some((mean, std)) = given else { return Ok(Normalisation::CLIP) };
    for value in std {
        positive(value, "image_std of preprocessor_config.json")?;
    }
    Ok(Normalisation { mean, std })
}

impl RawSlicemill {
    fn policy(&self, tower_patch: usize) -> Result<SlicingPolicy, Problem> {
        let policy = named_policy(need(self.policy.as_deref(), "slicemill.policy")?)
            .map_err(|e| format!("slicemill.policy: {e}"))?;
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

    fn prompt(&self, text: &RawDecoder, sources: Sources<'_>) -> Result<PromptConfig, Problem> {
        let template = need(self.prompt_template.clone(), "slicemill.prompt_template")?;
        for slot in ["{image}", "{question}"] {
            if template.matches(slot).count() != 1 {
                return Err(format!("slicemill.prompt_template must hold {slot} exactly once"));
            }
        }
        need(text.eos_token_id.as_ref(), "eos_token_id")?;
        Ok(PromptConfig {
            template: Template::Text(template),
            default_prompt: need(self.default_prompt.clone(), "slicemill.default_prompt")?,
            views: ViewTokens::Separators {
                column: Separator::Text(need(self.separator_column.clone(), "slicemill.separator_column")?),
                row: Separator::Text(need(self.separator_row.clone(), "slicemill.separator_row")?),
            },
            bos: text.bos_token_id,
            eos: stop_tokens(text.eos_token_id.as_ref(), sources.generation),
            eos_names: Vec::new(),
            skip_zero: false,
        })
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
