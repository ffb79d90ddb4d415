//! The Arrow schemas of the output, fixed and versioned.

use arrow::datatypes::SchemaRef;
use slicemill_core::{TaskKind, TokenDtype};

/// Version of all schemas; goes up when a column is added, removed or changes its meaning.
pub const SCHEMA_VERSION: u32 = 1;

/// A dataset of the output: a folder of Parquet files with one schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dataset {
    /// Content of `caption` jobs.
    Captions,
    /// Content of `ask` jobs.
    Answers,
    /// Content of `encode` jobs.
    Tokens,
    /// Rows that could not be annotated.
    Failed,
    /// Objects that are not images.
    Skipped,
    /// Wall clock per row.
    Timings,
}

impl Dataset {
    /// Every dataset, in the order they are documented.
    pub const ALL: &'static [Self] =
        &[Self::Captions, Self::Answers, Self::Tokens, Self::Failed, Self::Skipped, Self::Timings];

    /// Folder and table name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Captions => "captions",
            Self::Answers => "answers",
            Self::Tokens => "tokens",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
            Self::Timings => "timings",
        }
    }

    /// The dataset with this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|dataset| dataset.name() == name)
    }

    /// The content dataset of a task.
    pub const fn of_task(task: TaskKind) -> Self {
        match task {
            TaskKind::Caption => Self::Captions,
            TaskKind::Ask => Self::Answers,
            TaskKind::Encode => Self::Tokens,
        }
    }
}

/// What of the job the content schema depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContentSpec {
    /// Which content dataset.
    pub task: TaskKind,
    /// Column `token_ids` is written (captions and answers).
    pub token_ids: bool,
    /// Element type of column `tokens`.
    pub token_dtype: TokenDtype,
    /// Width of a visual token, for column `token_width`.
    pub token_width: u32,
    /// For column `model_fingerprint` of `tokens`.
    pub model_fingerprint: String,
}

/// The Arrow schema of `dataset`; `spec` chooses the optional columns.
pub fn arrow_schema(dataset: Dataset, spec: &ContentSpec) -> SchemaRef {
    let _ = (dataset, spec);
    std::sync::Arc::new(arrow::datatypes::Schema::empty())
}

/// The schema for people: one line per column with type, nullability and meaning.
pub fn schema_text(dataset: Dataset, spec: &ContentSpec) -> String {
    let _ = (dataset, spec);
    String::new()
}

/// SHA-256 of the column names, types and nullabilities, hex; stored in every file.
pub fn schema_sha256(dataset: Dataset, spec: &ContentSpec) -> String {
    let _ = (dataset, spec);
    String::new()
}
