//! The job as it is written: every key may be missing.

use serde::{Deserialize, Serialize};
use slicemill_core::{Alpha, OrientationRule, TaskKind, TokenDtype, Truncated, WindowRounding};

/// A job file, or the same said with flags. [`super::JobDraft`] checks it, [`super::Job`] is the result.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JobFile {
    /// What the job produces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskKind>,
    /// What is read.
    pub input: InputSection,
    /// What is written.
    pub output: OutputSection,
    /// The model.
    pub model: ModelSection,
    /// Slicing policy and overrides.
    pub slicing: SlicingSection,
    /// How bytes become pixels.
    pub image: ImageSection,
    /// The instruction of a caption job.
    pub prompt: PromptSection,
    /// The questions of an ask job.
    pub questions: QuestionsSection,
    /// How text is generated.
    pub generation: GenerationSection,
    /// Visual tokens of an encode job.
    pub encode: EncodeSection,
}

/// `[input]`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InputSection {
    /// Folders, files, archives, tables, lists and globs, as paths or URLs; `-` is a list on standard input.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
    /// Columns of the input that the output carries.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub keep: Vec<String>,
    /// SQL condition over columns of the plan and of the input.
    #[serde(rename = "where", skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// Share of the inputs, as `1%`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample: Option<String>,
    /// Most inputs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// Column with the images or their locations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_column: Option<String>,
    /// Column with the keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_column: Option<String>,
    /// Folder that local files named by lists may lie in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
}

/// `[output]`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OutputSection {
    /// Folder of the output.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Further columns, as `+token_ids`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub columns: Vec<String>,
    /// Input rows of a chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chunk_rows: Option<u32>,
    /// Input rows of a shard.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shard_rows: Option<u32>,
    /// Bytes of content at which a shard is full.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shard_bytes: Option<u64>,
}

/// `[model]`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelSection {
    /// `embedded` (when missing), `null`, the path of a checkpoint, or its name on the hub.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Rounding of the windows of a spatial resampler.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub windows: Option<WindowRounding>,
}

/// `[slicing]`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SlicingSection {
    /// Name of a policy; the model's own when missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// Side in pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub side: Option<u32>,
    /// Patch in pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patch: Option<u32>,
    /// Largest number of slices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_slices: Option<u32>,
}

/// `[image]`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ImageSection {
    /// EXIF orientation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub orientation: Option<OrientationRule>,
    /// Alpha channel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alpha: Option<Alpha>,
    /// Largest accepted width × height.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pixels_max: Option<u64>,
    /// Images that end early.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub truncated: Option<Truncated>,
}

/// `[prompt]`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PromptSection {
    /// The instruction; the model's default when missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

/// `[questions]`: either `ask` or `file`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QuestionsSection {
    /// Questions asked about every image.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ask: Vec<String>,
    /// Questions by image key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Prompt around a question.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
}

/// `[generation]`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GenerationSection {
    /// Cap on output tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_new_tokens: Option<u32>,
    /// 0 is greedy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// Keep the k most likely tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<u32>,
    /// Keep the smallest set with probability p.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f64>,
    /// 1 is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repetition_penalty: Option<f32>,
    /// Beams of a beam search; 1 is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_beams: Option<u32>,
    /// Power of the length that a beam's log-probability is divided by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub length_penalty: Option<f64>,
    /// Whether a beam search ends when as many beams have finished as there are beams.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub early_stopping: Option<bool>,
    /// Seed of the job.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
}

/// `[encode]`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EncodeSection {
    /// Element type of stored visual tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dtype: Option<TokenDtype>,
}
