//! What a checkpoint says about itself: config.json, and beside it preprocessor_config.json, generation_config.json and
//! the config.json of a vision tower that it names.
//!
//! Three layouts are read, and each selects its policy, normalisation, schema and prompt by itself:
//!
//! | layout | `model_type` | module |
//! |---|---|---|
//! | LLaVA as published by its authors: keys of the language model at the top, `mm_*` for the rest | `llava_llama`, `llava`, `llava_uhd` | [`llava`] |
//! | LLaVA-1.5 as converted for transformers: `text_config`, `vision_config` | `llava` | [`llava`] |
//! | MiniCPM-V and MiniCPM-o: keys of the language model at the top, `vision_config`, `query_num` | `minicpmv`, `minicpmo` | [`minicpm`] |
//!
//! A section `slicemill` in the first layout says what published configs leave to code (policy, prompt, separators,
//! normalisation); checkpoints made for slicemill have it, the embedded model among them.

mod decoder;
mod llava;
mod minicpm;
mod vision;

use serde::Deserialize;
use slicemill_core::{
    DecoderShape, GenerationParams, ModelCard, ModelShape, Normalisation, ProjectorShape, Schema, SlicingPolicy,
    TokenRule, VisionShape, WindowRounding,
};

pub use decoder::{DecoderConfig, RopeScaling};
pub(crate) use vision::tower_is_known;
pub use vision::{VisionConfig, VisionKind};

use crate::error::ModelError;

/// A checkpoint's model, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Which published model it is.
    pub family: Family,
    /// The vision tower.
    pub vision: VisionConfig,
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
    /// Longest prompt. What is beyond is cut off, as the reference does; such rows are flagged.
    pub prompt_tokens_max: Option<usize>,
    /// Generation defaults.
    pub generation: GenerationParams,
    /// Where its tensors are.
    pub names: Names,
}

/// A published model that is read as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// A checkpoint with a section `slicemill`.
    Slicemill,
    /// LLaVA-UHD as released in July 2024: 144 queries, each with its own window.
    LlavaUhd,
    /// LLaVA-UHD with 64 queries that see all of their view.
    LlavaUhd64,
    /// LLaVA-1.5: one square image, an MLP.
    Llava15,
    /// MiniCPM-V 2.6 and MiniCPM-o 2.6.
    MiniCpmV26,
    /// MiniCPM-V 4.0.
    MiniCpmV40,
    /// MiniCPM-V 4.5 and MiniCPM-o 4.5.
    MiniCpmV45,
}

impl Family {
    /// Its name, for people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Slicemill => "llava-uhd (own config)",
            Self::LlavaUhd => "LLaVA-UHD v1 (144 queries)",
            Self::LlavaUhd64 => "LLaVA-UHD v1 (64 queries)",
            Self::Llava15 => "LLaVA-1.5",
            Self::MiniCpmV26 => "MiniCPM-V 2.6",
            Self::MiniCpmV40 => "MiniCPM-V 4.0",
            Self::MiniCpmV45 => "MiniCPM-V 4.5",
        }
    }
}

/// Prefixes of tensor names, without a dot at the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// Of the vision tower.
    pub vision: String,
    /// Of the projector.
    pub projector: String,
    /// Of the language model.
    pub decoder: String,
    /// The whole name of the output matrix.
    pub head: String,
    /// A reference to the vision tower, which may be outside of the checkpoint (`mm_vision_tower`).
    pub tower: Option<String>,
}

/// From vision width to language width.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProjectorConfig {
    /// Every query attends to all patches of its view.
    Resampler {
        /// Queries.
        queries: usize,
        /// Heads.
        heads: usize,
        /// Where positions come from.
        positions: Positions,
    },
    /// Each of 12 × 12 queries attends to its own window of the view.
    Spatial {
        /// Heads.
        heads: usize,
        /// Rounding of the windows' corners.
        rounding: WindowRounding,
    },
    /// Two linear layers with a GELU between, patch by patch.
    Mlp,
}

/// Positions of a resampler's queries and keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Positions {
    /// A table of the queries' square in the checkpoint, added to the queries and interpolated for the keys (LLaVA-UHD).
    Stored,
    /// Sines and cosines of the patch grid for the keys, none for the queries (MiniCPM-V from 2.5).
    Computed,
}

/// Prompt, separators and stop tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptConfig {
    /// Text around the image and the question.
    pub template: Template,
    /// Question of `caption` when none is given.
    pub default_prompt: String,
    /// What stands between views.
    pub views: ViewTokens,
    /// First token of every sequence.
    pub bos: Option<u32>,
    /// Tokens that end the output.
    pub eos: Vec<u32>,
    /// Tokens by name that end the output too, where the tokenizer has them.
    pub eos_names: Vec<String>,
    /// The token 0 is not part of a text (MiniCPM-V).
    pub skip_zero: bool,
}

/// Text around the image and the question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Template {
    /// With `{image}` once and `{question}` once.
    Text(String),
    /// The tokenizer's chat template with one message of the user: the image, a line break, the question.
    Chat,
}

/// What stands between views.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ViewTokens {
    /// One token after every slice, none after the overview (LLaVA-UHD).
    Separators {
        /// After a slice that is not the last of its row.
        column: Separator,
        /// After the last slice of a row.
        row: Separator,
    },
    /// Tags around every view (MiniCPM-V).
    Tags(Box<ViewTags>),
    /// Nothing.
    Nothing,
}

/// A token between views.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Separator {
    /// By number, with the text that the tokenizer must have for it.
    Id(u32, &'static str),
    /// By its text, which must be one token.
    Text(String),
}

/// Tags around views.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ViewTags {
    /// Around the overview.
    pub image: (String, String),
    /// Around a slice.
    pub slice: (String, String),
    /// Around the number of the image, before it; none when images are not numbered.
    pub image_id: Option<(String, String)>,
    /// Between rows of slices.
    pub row: String,
}

/// A file of a checkpoint: its bytes, and what names it in errors.
#[derive(Debug, Clone, Copy)]
pub struct ConfigFile<'a> {
    /// The bytes.
    pub bytes: &'a [u8],
    /// The name.
    pub origin: &'a str,
}

/// The files that describe a model.
#[derive(Debug, Clone, Copy)]
pub struct ConfigFiles<'a> {
    /// config.json.
    pub config: ConfigFile<'a>,
    /// preprocessor_config.json.
    pub preprocessor: Option<ConfigFile<'a>>,
    /// generation_config.json.
    pub generation: Option<ConfigFile<'a>>,
    /// config.json of the vision tower.
    pub tower: Option<ConfigFile<'a>>,
}

/// What is wrong with a file, without its name.
pub(crate) type Problem = String;

/// What is known when a family's config is read.
#[derive(Clone, Copy)]
struct Sources<'a> {
    preprocessor: Option<&'a RawPreprocessor>,
    generation: Option<&'a RawGeneration>,
    tower: Option<&'a serde_json::Value>,
    /// Whether the checkpoint has a tensor; nothing is known without weights.
    has: &'a dyn Fn(&str) -> bool,
}

#[derive(Debug, Default, Deserialize)]
struct RawPreprocessor {
    image_mean: Option<[f32; 3]>,
    image_std: Option<[f32; 3]>,
    norm_mean: Option<[f32; 3]>,
    norm_std: Option<[f32; 3]>,
    max_slice_nums: Option<u32>,
    scale_resolution: Option<u32>,
    patch_size: Option<u32>,
    use_image_id: Option<bool>,
    slice_mode: Option<bool>,
    im_start: Option<String>,
    im_end: Option<String>,
    slice_start: Option<String>,
    slice_end: Option<String>,
    im_id_start: Option<String>,
    im_id_end: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct RawGeneration {
    eos_token_id: Option<OneOrMany>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

impl OneOrMany {
    fn ids(&self) -> &[u32] {
        match self {
            Self::One(id) => std::slice::from_ref(id),
            Self::Many(ids) => ids,
        }
    }
}

/// Reads JSON; `origin` names it in errors.
fn json<T: serde::de::DeserializeOwned>(file: ConfigFile<'_>) -> Result<T, ModelError> {
    serde_json::from_slice(file.bytes)
        .map_err(|e| ModelError::Config { origin: file.origin.to_owned(), message: e.to_string() })
}

impl ModelConfig {
    /// Reads config.json alone; `origin` names it in errors.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn parse(json: &[u8], origin: &str) -> Result<Self, ModelError> {
        let config = ConfigFile { bytes: json, origin };
        Self::read(&ConfigFiles { config, preprocessor: None, generation: None, tower: None }, &|_| false)
    }

    /// Reads what a checkpoint says about itself. `has` answers whether it has a tensor of a name, which decides where
    /// published configs do not say what the code did.
    ///
    /// # Errors
    /// When a file is not JSON, lacks a key, has numbers that do not fit together, or describes a model of another
    /// family.
    pub fn read(files: &ConfigFiles<'_>, has: &dyn Fn(&str) -> bool) -> Result<Self, ModelError> {
        let problem = |message: String| ModelError::Config { origin: files.config.origin.to_owned(), message };
        let value: serde_json::Value = json(files.config)?;
        let (preprocessor, generation) =
            (files.preprocessor.map(json).transpose()?, files.generation.map(json).transpose()?);
        let tower: Option<serde_json::Value> = files.tower.map(json).transpose()?;
        let sources = Sources {
            preprocessor: preprocessor.as_ref(),
            generation: generation.as_ref(),
            tower: tower.as_ref(),
            has,
        };
        let model_type = value.get("model_type").and_then(serde_json::Value::as_str);
        match model_type {
            Some("llava" | "llava_llama" | "llava_uhd") => llava::read(&value, sources).map_err(problem),
            Some("minicpmv" | "minicpmo") => minicpm::read(&value, sources).map_err(problem),
            Some(other) => Err(problem(format!("model_type {other:?} is not supported; {SUPPORTED}"))),
            None => Err(problem(format!("the key model_type is missing; {SUPPORTED}"))),
        }
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
                class_tokens: u32::from(vision.kind == VisionKind::Clip),
            },
            projector: match self.projector {
                ProjectorConfig::Resampler { queries, .. } => ProjectorShape::Resampler { queries: small(queries) },
                ProjectorConfig::Spatial { .. } => ProjectorShape::SpatialResampler { queries: SPATIAL_QUERIES },
                ProjectorConfig::Mlp => ProjectorShape::Mlp,
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

    /// The model as planning sees it, without a name and a fingerprint.
    pub fn card(&self) -> ModelCard {
        ModelCard {
            name: String::new(),
            fingerprint: String::new(),
            family: self.family.as_str().to_owned(),
            policy: self.policy.clone(),
            token_rule: self.token_rule(),
            width: small(self.decoder.width),
            schema: self.schema(),
            normalisation: self.normalisation,
            shape: self.shape(),
            context_tokens_max: small(self.context_tokens_max),
            default_prompt: self.prompt.default_prompt.clone(),
            generation: self.generation.clone(),
        }
    }

    /// Visual tokens of a view.
    pub const fn token_rule(&self) -> TokenRule {
        match self.projector {
            ProjectorConfig::Resampler { queries, .. } => TokenRule::Queries(queries as u32),
            ProjectorConfig::Spatial { .. } => TokenRule::Queries(SPATIAL_QUERIES),
            ProjectorConfig::Mlp => TokenRule::Patches,
        }
    }

    /// Arrangement of views.
    pub const fn schema(&self) -> Schema {
        match self.prompt.views {
            ViewTokens::Separators { .. } => Schema::CommaNewline,
            ViewTokens::Tags(_) => Schema::Tagged,
            ViewTokens::Nothing => Schema::Plain,
        }
    }
}

/// Queries of the spatial resampler: 12 × 12.
pub(crate) const SPATIAL_QUERIES: u32 = 144;

const SUPPORTED: &str = "this version reads LLaVA-UHD v1 and LLaVA-1.5 (llava_llama, llava, llava_uhd) and MiniCPM-V 2.6, \
                         4.0 and 4.5 (minicpmv, minicpmo)";

/// What `caption` asks of a published model.
const DEFAULT_PROMPT: &str = "Describe this image in detail.";

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

/// A number of layers: far more than any model has would take all memory before anything is found missing.
fn layers(value: Option<usize>, key: &str) -> Result<usize, Problem> {
    match dimension(value, key)? {
        n @ 1..=4096 => Ok(n),
        n => Err(format!("{key} is {n}; it must be from 1 to 4096")),
    }
}

fn positive(value: f32, key: &str) -> Result<f32, Problem> {
    if value.is_finite() && value > 0.0 { Ok(value) } else { Err(format!("{key} is {value}; it must be above 0")) }
}

fn multiple(of: usize, of_key: &str, by: usize, by_key: &str) -> Result<(), Problem> {
    if of.is_multiple_of(by) { Ok(()) } else { Err(format!("{of_key} {of} is not a multiple of {by_key} {by}")) }
}

fn from_value<T: serde::de::DeserializeOwned>(value: &serde_json::Value, name: &str) -> Result<T, Problem> {
    T::deserialize(value).map_err(|e| if name.is_empty() { e.to_string() } else { format!("{name}: {e}") })
}

/// Heads of a resampler, as published code chooses them: one per 128 values of the width.
fn resampler_heads(given: Option<usize>, width: usize) -> Result<usize, Problem> {
    let heads = dimension(given.or(Some((width / 128).max(1))), "mm_resampler_heads")?;
    multiple(width, "hidden_size", heads, "the resampler's heads")?;
    if !width.is_multiple_of(4) {
        return Err(format!("hidden_size {width} is not a multiple of 4, which the resampler's positions need"));
    }
    Ok(heads)
}

fn named_policy(name: &str) -> Result<SlicingPolicy, Problem> {
    SlicingPolicy::named(name)
        .ok_or_else(|| format!("the policy {name:?} does not exist; there are {}", SlicingPolicy::NAMES.join(", ")))
}

/// Stop tokens of the files, without repetition.
fn stop_tokens(config: Option<&OneOrMany>, generation: Option<&RawGeneration>) -> Vec<u32> {
    let generation = generation.and_then(|generation| generation.eos_token_id.as_ref());
    let mut ids: Vec<u32> = config.into_iter().chain(generation).flat_map(|ids| ids.ids().iter().copied()).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

#[cfg(test)]
mod tests;
