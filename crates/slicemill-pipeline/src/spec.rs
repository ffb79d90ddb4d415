//! What goes in: rows, the job's choices ([`AnnotateSpec`], [`RowFilter`]) and how this run behaves
//! ([`RuntimeLimits`]).

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use slicemill_core::{BatchLimits, GenerationParams, ImageOptions, RowError, SlicingPolicy, TaskKind, TokenDtype};

/// One prompt of a row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromptItem {
    /// Number of the question, from 0; none for captions.
    pub question_id: Option<u32>,
    /// The question or the caption's instruction, before any template.
    pub question: String,
    /// What the model is asked, when that is not the question in [`AnnotateSpec::prompt_template`]: the question with
    /// other columns of its file.
    pub prompt: Option<String>,
}

/// One object to annotate, as the frozen listing names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputRef {
    /// Unique key in the job.
    pub key: String,
    /// URL.
    pub source: String,
    /// Size from the listing. Memory is reserved by it, so an object that turns out larger fails as `source_changed`,
    /// unless the size was `estimated`.
    pub bytes: u64,
    /// The size was not known when the inputs were listed.
    pub estimated: bool,
    /// Etag or modification time from the listing, by which [`Fetch`] sees that the object changed; empty when unknown.
    pub tag: String,
    /// Prompts; empty for encode jobs. Rows with the same prompts share them.
    pub prompts: Arc<[PromptItem]>,
    /// Columns of the input that the job keeps or filters by: a JSON object. Every outcome of the row carries them.
    pub columns: Option<Arc<str>>,
}

/// Bytes of an object.
#[derive(Debug, Clone)]
pub struct Fetched {
    /// The whole object.
    pub bytes: Bytes,
    /// How often it was tried, from 1.
    pub attempts: u32,
}

/// Why an object could not be read, after all retries.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// The row fails, the run goes on.
    #[error("{error}")]
    Row {
        /// Why.
        error: RowError,
        /// How often it was tried, from 1.
        attempts: u32,
    },
    /// The job ends and can be resumed.
    #[error("{0}")]
    Fatal(String),
}

/// Reads objects. Retries transient errors itself; the pipeline calls it once per row, for at most
/// [`RuntimeLimits::fetch_concurrency`] rows at a time.
pub trait Fetch: Send + Sync {
    /// Reads the whole object of `row`.
    fn fetch<'a>(&'a self, row: &'a InputRef) -> BoxFuture<'a, Result<Fetched, FetchError>>;
}

/// What is known of a row when its header is read and its plan is made, for a [`RowFilter`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PlannedView<'a> {
    /// Unique key in the job.
    pub key: &'a str,
    /// URL.
    pub source: &'a str,
    /// Size of the object, bytes.
    pub bytes: u64,
    /// Width after orientation, pixels.
    pub width: u32,
    /// Height after orientation, pixels.
    pub height: u32,
    /// Image format, lower case (`jpeg`, `png`, …), by the bytes.
    pub format: &'static str,
    /// EXIF orientation that is applied, 1 when none is.
    pub orientation_applied: u8,
    /// Slicing policy.
    pub policy: &'a str,
    /// Grid columns.
    pub grid_cols: u32,
    /// Grid rows.
    pub grid_rows: u32,
    /// Slices without the overview.
    pub slices: u32,
    /// Visual tokens.
    pub visual_tokens: u32,
    /// The input's columns: a JSON object.
    pub columns: Option<&'a str>,
}

/// Decides by plan and input columns which rows are annotated. A pure function of the row: it is part of the job.
pub trait RowFilter: Send + Sync {
    /// Whether the row is annotated. A row that is not is skipped.
    ///
    /// # Errors
    /// Why the condition has no answer for this row; the row fails as `bad_record`.
    fn keep(&self, row: &PlannedView<'_>) -> Result<bool, String>;

    /// The condition as the user wrote it, for the reason of skipped rows.
    fn describe(&self) -> String;
}

/// How many rows may fail before the run is stopped. Rows that failed in earlier runs of the same job do not count.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct FailureLimit {
    /// More failed rows than this stop the run.
    pub count: Option<u64>,
    /// A larger share of failed among failed and annotated rows than this (0 to 1) stops the run, once
    /// [`SHARE_ROWS_MIN`](Self::SHARE_ROWS_MIN) rows are done.
    pub share: Option<f64>,
}

impl FailureLimit {
    /// Rows that must be done before a share of them says something.
    pub const SHARE_ROWS_MIN: u64 = 100;

    /// Which limit is passed by so many failed rows of so many done, in words.
    pub(crate) fn passed(&self, failed: u64, done: u64) -> Option<String> {
        if let Some(count) = self.count.filter(|count| failed > *count) {
            return Some(format!("more than {count} rows failed"));
        }
        let share = self.share.filter(|_| done >= Self::SHARE_ROWS_MIN)?;
        (failed as f64 > share * done as f64).then(|| format!("more than {} % of the rows failed", share * 100.0))
    }
}

/// The choices of a job that decide its content.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AnnotateSpec {
    /// Captions, answers or visual tokens.
    pub task: TaskKind,
    /// How bytes become pixels.
    pub image: ImageOptions,
    /// How images are sliced.
    pub policy: SlicingPolicy,
    /// How text is generated; unused by encode jobs.
    pub generation: GenerationParams,
    /// Text around every question: `{question}` is replaced by it. None is the question alone.
    pub prompt_template: Option<String>,
    /// Whether rows carry the generated token ids.
    pub token_ids: bool,
    /// Element type of stored visual tokens; rows carry f32 and the writer converts.
    pub dtype: TokenDtype,
}

impl AnnotateSpec {
    /// The prompt of `item`, after the job's template and before the model's.
    pub fn prompt(&self, item: &PromptItem) -> String {
        match (&item.prompt, &self.prompt_template) {
            (Some(prompt), _) => prompt.clone(),
            (None, Some(template)) => template.replace("{question}", &item.question),
            (None, None) => item.question.clone(),
        }
    }
}

/// How a run behaves. None of these changes a byte of the content.
///
/// A chunk in flight holds at most `2 × window_bytes_max` compressed and `prepared_bytes_max` prepared bytes (or its
/// one largest row or batch, where that is more); there are devices + 1 chunks in flight. Where sizes are estimates,
/// `fetch_concurrency` objects of the largest size may come on top for each chunk.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RuntimeLimits {
    /// What one encode batch may hold; the devices' own limits apply too.
    pub batch: BatchLimits,
    /// Sequences decoded together on one device; the device's own limit applies too.
    pub sequences_max: u32,
    /// Objects read at the same time, all chunks together.
    pub fetch_concurrency: u32,
    /// Listed bytes of the rows that are read before their batches are planned.
    pub window_bytes_max: u64,
    /// Bytes of prepared views that wait for a device, per chunk.
    pub prepared_bytes_max: u64,
    /// Bytes of decoded pixels in work on the CPU pool, all chunks together.
    pub decode_bytes_max: u64,
    /// How often a transient device error is retried before the row fails.
    pub transient_retries_max: u32,
    /// How often a device's worker that died or hung is replaced without a row being finished in between, and how many
    /// threads of a device may hang at the same time, before the device is given up.
    pub worker_restarts_max: u32,
    /// Longest time of one call of a backend (encoding a batch, the prefill of a prompt, a step) before its worker
    /// counts as hung, and longest time to open a device anew. `None` or zero waits for ever.
    pub device_timeout: Option<Duration>,
    /// How many rows may fail before the run is stopped.
    pub failures: FailureLimit,
}

impl Default for RuntimeLimits {
    fn default() -> Self {
        Self {
            batch: BatchLimits { views_max: 16, patches_max: 16 * 1024, held_bytes_max: 256 << 20 },
            sequences_max: 32,
            fetch_concurrency: 16,
            window_bytes_max: 64 << 20,
            prepared_bytes_max: 48 << 20,
            decode_bytes_max: 256 << 20,
            transient_retries_max: 3,
            worker_restarts_max: 8,
            device_timeout: Some(Duration::from_secs(600)),
            failures: FailureLimit::default(),
        }
    }
}

/// Why a chunk was not annotated. Nothing of the chunk is written; the job can be resumed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PipelineError {
    /// The job ends: the store, the model or a device failed in a way that other rows would meet too.
    #[error("{0}")]
    Fatal(String),
    /// Limits that cannot work.
    #[error("{0}")]
    Limits(String),
    /// More rows failed than the run allows ([`FailureLimit`]).
    #[error("{message}")]
    TooManyFailed {
        /// The limit, counts by class, examples and the remedy.
        message: String,
    },
}
