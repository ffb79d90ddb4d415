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
mod shards;

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use slicemill_core::{GenerationParams, ImageOptions, SlicingPolicy, TaskKind, TokenDtype, WindowRounding};
use slicemill_io::{StoreOptions, Stores};
use slicemill_pipeline::FailureLimit;
use slicemill_pipeline::backend::DeviceId;

pub use draft::JobDraft;
pub use file::{
    EncodeSection, GenerationSection, ImageSection, InputSection, JobFile, ModelSection, OutputSection, PromptSection,
    QuestionsSection, SlicingSection,
};
pub use keys::{KEYS, Key, Kind};
pub use problem::{JobError, Place, Problem};
pub use shards::ShardSize;

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

/// Which inputs a job takes, and which of their columns it carries along.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Selection {
    /// Columns of the input that the output carries, as `input_<name>`.
    #[serde(default)]
    pub keep: Vec<String>,
    /// SQL condition over columns of the plan and of the input; rows for which it is not true are skipped.
    #[serde(default, rename = "where")]
    pub filter: Option<String>,
    /// Share of the inputs, above 0 and at most 1. Which ones depends on their keys alone.
    #[serde(default)]
    pub sample: Option<f64>,
    /// Most inputs, the first in order.
    #[serde(default)]
    pub limit: Option<u64>,
    /// Column of a table with the images or their locations; found by type and name otherwise.
    #[serde(default)]
    pub image_column: Option<String>,
    /// Column of a table that names its rows; their numbers do otherwise.
    #[serde(default)]
    pub key_column: Option<String>,
    /// Folder that local files named by a list may lie in; the list's own folder otherwise.
    #[serde(default)]
    pub root: Option<String>,
}

/// A complete job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// What it produces.
    pub task: TaskKind,
    /// Files and folders, as they were given.
    pub inputs: Vec<String>,
    /// Which of them are taken.
    #[serde(default)]
    pub select: Selection,
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
    /// How large a shard is, the unit of output files.
    pub shards: ShardSize,
}

/// Standard input, kept in a file because a list is read more than once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StandardInput {
    /// The file.
    pub file: PathBuf,
    /// Its lines end in zero bytes, as those of `find -print0`.
    pub zero_separated: bool,
}

/// Where compressed archives and tables are unpacked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SpoolOptions {
    /// The folder; the system's temporary folder when missing.
    pub folder: Option<PathBuf>,
    /// Most bytes at once.
    pub bytes_max: Option<u64>,
}

/// How one run behaves. Never part of the fingerprint.
#[derive(Debug, Clone)]
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
    /// The part of the shards that this process does; all of them when missing.
    pub part: Option<Part>,
    /// The stores that inputs and the output are in.
    pub stores: Stores,
    /// How long a device may be silent before it counts as hung.
    pub device_timeout: Option<Duration>,
    /// Failed rows at which the run stops.
    pub max_failed: Option<FailureLimit>,
    /// A list of inputs that came on standard input.
    pub standard_input: Option<StandardInput>,
    /// Where archives and tables are unpacked.
    pub spool: SpoolOptions,
}

/// One of several processes that do a job together: `3/8` is the third of eight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Number of the process, from 1.
    pub number: u32,
    /// Processes.
    pub of: u32,
}

impl Part {
    /// Whether this process does `shard`.
    pub const fn has(self, shard: u32) -> bool {
        shard % self.of == self.number - 1
    }
}

impl std::str::FromStr for Part {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts = text.split_once('/').and_then(|(number, of)| Some((number.parse().ok()?, of.parse().ok()?)));
        match parts {
            Some((number, of)) if number >= 1 && number <= of => Ok(Self { number, of }),
            _ => Err(format!("{text} is not a part; write k/n with k from 1 to n, as 3/8")),
        }
    }
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.number, self.of)
    }
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
            part: None,
            stores: Stores::new(StoreOptions::new()),
            device_timeout: None,
            max_failed: None,
            standard_input: None,
            spool: SpoolOptions::default(),
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
            if let Some(select) = fields.get_mut("select").and_then(serde_json::Value::as_object_mut) {
                // These decide which inputs there are and what they are called, and the frozen inputs say that.
                for name in ["sample", "limit", "image_column", "key_column", "root"] {
                    select.shift_remove(name);
                }
            }
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
