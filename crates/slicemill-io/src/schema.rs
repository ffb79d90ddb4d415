//! The Arrow schemas of the output, fixed and versioned.
//!
//! The columns are a table of data; Arrow schema, text and digest are made from it. Only types that every reader knows
//! are used: UTF-8 strings, booleans, unsigned integers, 32-bit floats and lists of numbers. No views, no dictionaries, no
//! time stamps, no structs.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use sha2::{Digest as _, Sha256};
use slicemill_core::{TaskKind, TokenDtype};

use crate::tables::ColumnTypes;

/// Version of all schemas; goes up when a column is added, removed or changes its meaning.
pub const SCHEMA_VERSION: u32 = 3;

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
    /// Columns of the input that are carried along, by their own names; `input_<name>` in the output.
    pub input: ColumnTypes,
}

impl ContentSpec {
    /// Captions without optional columns; for datasets whose schema depends on nothing.
    pub(crate) fn captions() -> Self {
        Self {
            task: TaskKind::Caption,
            token_ids: false,
            token_dtype: TokenDtype::F32,
            token_width: 0,
            model_fingerprint: String::new(),
            input: ColumnTypes::default(),
        }
    }
}

/// Type of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ColumnType {
    Text,
    Bool,
    U8,
    U32,
    U64,
    F32,
    ListU32,
    ListF16,
    ListF32,
}

impl ColumnType {
    fn arrow(self) -> DataType {
        match self {
            Self::Text => DataType::Utf8,
            Self::Bool => DataType::Boolean,
            Self::U8 => DataType::UInt8,
            Self::U32 => DataType::UInt32,
            Self::U64 => DataType::UInt64,
            Self::F32 => DataType::Float32,
            Self::ListU32 => DataType::List(element(DataType::UInt32)),
            Self::ListF16 => DataType::List(element(DataType::Float16)),
            Self::ListF32 => DataType::List(element(DataType::Float32)),
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Text => "utf8",
            Self::Bool => "bool",
            Self::U8 => "uint8",
            Self::U32 => "uint32",
            Self::U64 => "uint64",
            Self::F32 => "float32",
            Self::ListU32 => "list<uint32>",
            Self::ListF16 => "list<float16>",
            Self::ListF32 => "list<float32>",
        }
    }
}

/// The field of a list's values; `element` is the name the Parquet format gives it.
pub(crate) fn element(values: DataType) -> Arc<Field> {
    Arc::new(Field::new("element", values, false))
}

/// One column: name, type, whether it may be null, meaning.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Column {
    pub(crate) name: &'static str,
    pub(crate) ty: ColumnType,
    pub(crate) nullable: bool,
    meaning: &'static str,
}

const fn column(name: &'static str, ty: ColumnType, meaning: &'static str) -> Column {
    Column { name, ty, nullable: false, meaning }
}

const fn nullable(name: &'static str, ty: ColumnType, meaning: &'static str) -> Column {
    Column { name, ty, nullable: true, meaning }
}

const KEY: Column = column("key", ColumnType::Text, "key of the input, unique in the job");
const SOURCE: Column = column("source", ColumnType::Text, "URL of the input");

/// What content datasets have in common.
const IMAGE: [Column; 23] = [
    KEY,
    SOURCE,
    column("sha256", ColumnType::Text, "SHA-256 of the input's bytes, hex"),
    column("width", ColumnType::U32, "width after orientation, pixels"),
    column("height", ColumnType::U32, "height after orientation, pixels"),
    column("orientation_applied", ColumnType::U8, "EXIF orientation that was applied, 1 when none was"),
    column("format", ColumnType::Text, "image format: jpeg, png, ..."),
    column("truncated", ColumnType::Bool, "the image ends early and was taken as far as it goes"),
    column("policy", ColumnType::Text, "slicing policy"),
    column("grid_cols", ColumnType::U32, "slices per row of the grid, 0 when only the overview is encoded"),
    column("grid_rows", ColumnType::U32, "rows of the grid, 0 when only the overview is encoded"),
    column("slices", ColumnType::U32, "slices, the overview not counted"),
    column("visual_tokens", ColumnType::U32, "visual tokens, separators not counted"),
    column("prompt_tokens", ColumnType::U32, "prompt tokens: text, separators and visual tokens"),
    column("prompt_cut", ColumnType::U32, "prompt tokens beyond the model's longest prompt, cut off at its end"),
    column("output_tokens", ColumnType::U32, "generated tokens, the stop token not counted"),
    column("looped_tokens", ColumnType::U32, "generated tokens at the end that only repeat those before them"),
    column("vision_flops", ColumnType::U64, "compute of the vision tower; on an image's first row only"),
    column("projector_flops", ColumnType::U64, "compute of the projector; on an image's first row only"),
    column("prefill_flops", ColumnType::U64, "compute of the language model over the prompt"),
    column("decode_flops", ColumnType::U64, "compute of the language model over the output, all beams counted"),
    column("finish_reason", ColumnType::Text, "stop, length, or none when nothing is generated"),
    nullable("text", ColumnType::Text, "caption or answer"),
];

const QUESTION: [Column; 2] = [
    column("question_id", ColumnType::U32, "number of the question, from 0"),
    column("question", ColumnType::Text, "the question"),
];

const TOKEN_IDS: Column = nullable("token_ids", ColumnType::ListU32, "ids of the generated tokens");

const FAILED: [Column; 6] = [
    KEY,
    SOURCE,
    column("class", ColumnType::Text, "why: not_an_image, truncated, too_many_pixels, ..."),
    column("stage", ColumnType::Text, "where: fetch, header, plan, decode, slice, encode, generate"),
    column("message", ColumnType::Text, "in words"),
    column("attempts", ColumnType::U32, "how often it was tried"),
];

const SKIPPED: [Column; 3] = [KEY, SOURCE, column("reason", ColumnType::Text, "why it is not taken for an image")];

const TIMINGS: [Column; 12] = [
    KEY,
    column("shard", ColumnType::U32, "shard"),
    column("chunk", ColumnType::U32, "chunk in the shard"),
    column("device", ColumnType::Text, "device: cpu:0, cuda:1, ..."),
    column("batch_id", ColumnType::U32, "encode batch in the chunk"),
    column("batch_views", ColumnType::U32, "views (slices and overviews) in that batch"),
    column("batch_fill", ColumnType::F32, "patches in that batch over the limit, 0 to 1"),
    column("fetch_ms", ColumnType::F32, "reading the bytes"),
    column("prepare_ms", ColumnType::F32, "decoding to normalised slices"),
    column("encode_ms", ColumnType::F32, "encoding the whole batch"),
    column("prefill_ms", ColumnType::F32, "prefill of this row, all its questions"),
    column("decode_ms", ColumnType::F32, "from prefill to the last token, steps shared with other sequences"),
];

/// What the names of carried input columns begin with, so that none is mistaken for one of ours.
pub const INPUT_PREFIX: &str = "input_";

/// The carried input columns of `dataset`, after its own.
fn input_fields(dataset: Dataset, spec: &ContentSpec) -> Vec<Field> {
    if dataset == Dataset::Timings {
        return Vec::new();
    }
    let fields = spec.input.fields().into_iter();
    fields.map(|field| Field::new(format!("{INPUT_PREFIX}{}", field.name()), field.data_type().clone(), true)).collect()
}

/// The columns of `dataset`, in order.
pub(crate) fn columns(dataset: Dataset, spec: &ContentSpec) -> Vec<Column> {
    match dataset {
        Dataset::Captions => IMAGE.into_iter().chain(spec.token_ids.then_some(TOKEN_IDS)).collect(),
        Dataset::Answers => {
            let (image, text) = IMAGE.split_at(IMAGE.len() - 2);
            let columns = image.iter().chain(&QUESTION).chain(text).copied();
            columns.chain(spec.token_ids.then_some(TOKEN_IDS)).collect()
        }
        Dataset::Tokens => {
            let values = match spec.token_dtype {
                TokenDtype::F16 => ColumnType::ListF16,
                TokenDtype::F32 => ColumnType::ListF32,
            };
            let columns = IMAGE.into_iter().take(IMAGE.len() - 2);
            let own = [
                column("token_width", ColumnType::U32, "values per visual token"),
                column("model_fingerprint", ColumnType::Text, "changes when weights, config or tokenizer change"),
                column("tokens", values, "visual_tokens x token_width values in the order the model sees them"),
            ];
            columns.chain(own).collect()
        }
        Dataset::Failed => FAILED.to_vec(),
        Dataset::Skipped => SKIPPED.to_vec(),
        Dataset::Timings => TIMINGS.to_vec(),
    }
}

/// The Arrow schema of `dataset`; `spec` chooses the optional columns.
pub fn arrow_schema(dataset: Dataset, spec: &ContentSpec) -> SchemaRef {
    let fields = columns(dataset, spec).into_iter();
    let fields = fields.map(|column| Field::new(column.name, column.ty.arrow(), column.nullable));
    Arc::new(Schema::new(fields.chain(input_fields(dataset, spec)).collect::<Vec<_>>()))
}

/// The schema for people: one line per column with type, nullability and meaning.
pub fn schema_text(dataset: Dataset, spec: &ContentSpec) -> String {
    let mut text = format!("{} (schema version {SCHEMA_VERSION})\n", dataset.name());
    for column in columns(dataset, spec) {
        let null = if column.nullable { "nullable" } else { "" };
        text.push_str(&format!("  {:<20} {:<14} {null:<9} {}\n", column.name, column.ty.name(), column.meaning));
    }
    text
}

/// SHA-256 of the dataset's name, the version, and name, type and nullability of every column, hex; stored in every
/// file.
pub fn schema_sha256(dataset: Dataset, spec: &ContentSpec) -> String {
    let mut canonical = format!("{} {SCHEMA_VERSION}\n", dataset.name());
    for column in columns(dataset, spec) {
        let null = if column.nullable { "null" } else { "not null" };
        canonical.push_str(&format!("{} {} {null}\n", column.name, column.ty.name()));
    }
    for field in input_fields(dataset, spec) {
        canonical.push_str(&format!("{:?} {} null\n", field.name(), field.data_type()));
    }
    hex(&Sha256::digest(canonical))
}

/// Key-value metadata that every Parquet file of `dataset` begins with.
pub(crate) fn schema_metadata(dataset: Dataset, spec: &ContentSpec) -> Vec<(String, String)> {
    vec![
        ("slicemill.dataset".to_owned(), dataset.name().to_owned()),
        ("slicemill.schema_version".to_owned(), SCHEMA_VERSION.to_string()),
        ("slicemill.schema_sha256".to_owned(), schema_sha256(dataset, spec)),
    ]
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(task: TaskKind, token_ids: bool, token_dtype: TokenDtype) -> ContentSpec {
        ContentSpec {
            task,
            token_ids,
            token_dtype,
            token_width: 4,
            model_fingerprint: "f".to_owned(),
            input: ColumnTypes::default(),
        }
    }

    /// A change here is a change of the output format: raise `SCHEMA_VERSION` and say so in the change log.
    #[test]
    fn the_schemas_are_fixed() {
        let plain = spec(TaskKind::Caption, false, TokenDtype::F32);
        let mut text = String::new();
        for dataset in Dataset::ALL {
            text.push_str(&schema_text(*dataset, &plain));
            text.push_str(&format!("  {}\n\n", schema_sha256(*dataset, &plain)));
        }
        insta::assert_snapshot!(text);
    }

    #[test]
    fn optional_columns_change_the_digest() {
        let plain = spec(TaskKind::Caption, false, TokenDtype::F32);
        let with_ids = spec(TaskKind::Caption, true, TokenDtype::F32);
        let half = spec(TaskKind::Encode, false, TokenDtype::F16);
        for dataset in [Dataset::Captions, Dataset::Answers] {
            assert_ne!(schema_sha256(dataset, &plain), schema_sha256(dataset, &with_ids));
            assert_eq!(arrow_schema(dataset, &with_ids).fields().last().unwrap().name(), "token_ids");
        }
        assert_ne!(schema_sha256(Dataset::Tokens, &plain), schema_sha256(Dataset::Tokens, &half));
        assert_eq!(schema_sha256(Dataset::Failed, &plain), schema_sha256(Dataset::Failed, &half));
    }

    #[test]
    fn names_parse_back_and_are_unique() {
        for dataset in Dataset::ALL {
            assert_eq!(Dataset::parse(dataset.name()), Some(*dataset));
            let spec = spec(TaskKind::Ask, true, TokenDtype::F32);
            let mut names: Vec<_> = columns(*dataset, &spec).iter().map(|column| column.name).collect();
            names.sort_unstable();
            let count = names.len();
            names.dedup();
            assert_eq!(names.len(), count, "{}", dataset.name());
        }
        assert_eq!(Dataset::parse("images"), None);
        for task in [TaskKind::Caption, TaskKind::Ask, TaskKind::Encode] {
            assert_eq!(Dataset::of_task(task).name(), task.dataset());
        }
    }
}
