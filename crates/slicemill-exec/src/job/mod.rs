//! Jobs: what is read, what is produced, and everything the content depends on.
//!
//! ```text
//!  JOB.toml + --set ──▶ JobDraft ──resolve(model card)──▶ Job ──freeze──▶ job.json, inputs, fingerprint
//!  flags ─────────────▶    │ names and values              │ defaults, impossible combinations
//! ```
//!
//! Two things are kept apart: a [`Job`] is what the content depends on and is frozen with the output; [`RunOptions`]
//! say how one run behaves (devices, batch sizes, threads) and never change a byte of content.

mod draft;
mod file;
mod keys;
mod problem;
mod resolve;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use slicemill_core::{GenerationParams, ImageOptions, SlicingPolicy, TaskKind, TokenDtype, WindowRounding};
use slicemill_pipeline::backend::DeviceId;

pub use draft::JobDraft;
pub use file::{
    EncodeSection, GenerationSection, ImageSection, InputSection, JobFile, ModelSection, OutputSection, PromptSection,
    QuestionsSection, SlicingSection,
};
pub use keys::{KEYS, Key, Kind};
pub use problem::{JobError, Place, Problem};

/// Questions of an ask job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QuestionSpec {
    /// Asked about every image, in this order.
    pub ask: Vec<String>,
    /// A file of questions by image key.
    pub file: Option<String>,
    /// Prompt around a question, see [`crate::questions::Template`].
    pub template: String,
}

/// A complete job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// What it produces.
    pub task: TaskKind,
    /// Files and folders, as they were given.
    pub inputs: Vec<String>,
    /// Folder of the output, as it was given.
    pub output: String,
    /// Name of the model.
    pub model: String,
    /// Fingerprint of weights, config and tokenizer.
    pub model_fingerprint: String,
    /// Rounding of the windows of a spatial resampler.
    #[serde(default)]
    pub windows: WindowRounding,
    /// Slicing policy with its overrides.
    pub policy: SlicingPolicy,
    /// How bytes become pixels.
    pub image: ImageOptions,
    /// The instruction of a caption job.
    pub prompt: Option<String>,
    /// The questions of an ask job.
    pub questions: Option<QuestionSpec>,
    /// How text is generated; nothing in encode jobs.
    pub generation: Option<GenerationParams>,
    /// Element type of the visual tokens of an encode job.
    pub dtype: Option<TokenDtype>,
    /// Whether generated token ids are a column.
    pub token_ids: bool,
    /// Input rows of a chunk, the unit of resume.
    pub chunk_rows: u32,
    /// Input rows of a shard, the unit of output files; a multiple of `chunk_rows`.
    pub shard_rows: u32,
}

/// How one run behaves. Never part of the fingerprint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunOptions {
    /// Devices of the pool, one worker each.
    pub devices: Vec<DeviceId>,
    /// Views in one encode batch; the device's own limit when missing.
    pub batch_views: Option<u32>,
    /// Sequences decoded together; the device's own limit when missing.
    pub sequences: Option<u32>,
    /// Threads that decode and slice; one per core when missing.
    pub threads: Option<usize>,
    /// Bytes and pixels held in host memory at once.
    pub memory_bytes: Option<u64>,
    /// Objects read at once.
    pub fetches: Option<usize>,
    /// Add inputs that are new since the job was frozen.
    pub extend: bool,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self {
            devices: vec![DeviceId::Cpu(0)],
            batch_views: None,
            sequences: None,
            threads: None,
            memory_bytes: None,
            fetches: None,
            extend: false,
        }
    }
}

/// One thing in which two jobs differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// Dotted path, as `policy.max_slices`.
    pub field: String,
    /// In the frozen job, as JSON; `-` when it is not there.
    pub was: String,
    /// In the new job.
    pub now: String,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: was {}, now {}", self.field, self.was, self.now)
    }
}

impl Job {
    /// What the content depends on besides the inputs, as JSON with keys in a fixed order. Where inputs and output are
    /// is left out: the digest of the inputs holds their URLs, and an output may be moved.
    pub fn identity(&self) -> serde_json::Value {
        let mut value = serde_json::to_value(self).unwrap_or_default();
        if let Some(fields) = value.as_object_mut() {
            fields.shift_remove("inputs");
            fields.shift_remove("output");
            if let Some(questions) = fields.get_mut("questions").and_then(serde_json::Value::as_object_mut) {
                // The frozen questions have their own digest; the file they came from may be moved too.
                questions.shift_remove("file");
            }
        }
        value
    }

    /// SHA-256 of [`identity`](Self::identity), hex. Inputs and questions have digests of their own, because an
    /// output may be extended with more of them and remains the same job.
    pub fn fingerprint(&self) -> String {
        hex(&Sha256::digest(self.identity().to_string()))
    }
}

/// Bytes as lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Where two jobs differ, leaf by leaf; empty when content would be the same for the same inputs.
pub fn diff(frozen: &Job, new: &Job) -> Vec<Difference> {
    let (mut was, mut now) = (Vec::new(), Vec::new());
    flatten("", &frozen.identity(), &mut was);
    flatten("", &new.identity(), &mut now);
    let value = |leaves: &[(String, String)], field: &str| {
        leaves.iter().find(|(name, _)| name == field).map_or_else(|| "-".to_owned(), |(_, value)| value.clone())
    };
    let added = now.iter().filter(|(name, _)| !was.iter().any(|(known, _)| known == name));
    was.iter()
        .chain(added)
        .map(|(field, _)| Difference { field: field.clone(), was: value(&was, field), now: value(&now, field) })
        .filter(|difference| difference.was != difference.now)
        .collect()
}

/// Leaves of a JSON value with dotted paths; arrays are leaves.
fn flatten(prefix: &str, value: &serde_json::Value, leaves: &mut Vec<(String, String)>) {
    match value {
        serde_json::Value::Object(fields) => {
            for (name, value) in fields {
                let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                flatten(&path, value, leaves);
            }
        }
        serde_json::Value::Null => {}
        leaf => leaves.push((prefix.to_owned(), leaf.to_string())),
    }
}
