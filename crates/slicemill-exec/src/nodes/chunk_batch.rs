//! The rows of a chunk as one batch of one schema, so that content, failed and skipped rows keep their order and cross
//! the plan edge together.
//!
//! ```text
//!  shard chunk rows │ row kind    │ content {…} failed {…} skipped {…} timing {…}
//!    0     3    64  │  0  ok      │    {…}        ∅          ∅          {…}
//!                   │  0  ok      │    {…}        ∅          ∅           ∅      second question about row 0
//!                   │  1  failed  │     ∅        {…}         ∅           ∅
//!                   │  2  skipped │     ∅         ∅         {…}          ∅
//!    0     ∅    12  │  ∅  finish  │     ∅         ∅          ∅           ∅      shard 0 has 12 chunks: assemble it
//! ```

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray, StructArray, UInt32Array, new_null_array};
use arrow::compute::{filter, is_not_null, take};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, UInt32Type};
use datafusion::common::{Result, internal_err};
use slicemill_core::{ContentRow, FailedRow, RowOutcome, SkippedRow, TimingRow};
use slicemill_io::{
    ContentSpec, Dataset, arrow_schema, content_batch, content_rows, failed_batch, failed_rows, skipped_batch,
    skipped_rows, timing_batch, timing_rows,
};

use crate::ExecError;

use super::{Unit, Work};

const OK: &str = "ok";
const FAILED: &str = "failed";
const SKIPPED: &str = "skipped";
const FINISH: &str = "finish";

/// Columns of a chunk's batch.
pub(crate) fn chunk_schema(spec: &ContentSpec) -> SchemaRef {
    let rows =
        |name: &str, dataset| Field::new(name, DataType::Struct(arrow_schema(dataset, spec).fields().clone()), true);
    Arc::new(Schema::new(vec![
        Field::new("shard", DataType::UInt32, false),
        Field::new("chunk", DataType::UInt32, true),
        Field::new("rows", DataType::UInt32, false),
        Field::new("row", DataType::UInt32, true),
        Field::new("kind", DataType::Utf8, false),
        rows("content", Dataset::of_task(spec.task)),
        rows("failed", Dataset::Failed),
        rows("skipped", Dataset::Skipped),
        rows("timing", Dataset::Timings),
    ]))
}

/// A part of a chunk, or the end of a shard, as it comes out of a batch.
#[derive(Debug, PartialEq)]
pub(crate) enum Piece {
    /// An outcome.
    Outcome {
        /// Shard.
        shard: u32,
        /// Chunk.
        chunk: u32,
        /// Input rows of the whole chunk.
        rows: u32,
        /// What became of the next input row.
        outcome: Box<RowOutcome>,
    },
    /// All chunks of the shard came before.
    Finish {
        /// Shard.
        shard: u32,
        /// Its chunks.
        chunks: u32,
    },
}

/// Lines of a batch in the making: where each line takes its parts from.
#[derive(Default)]
struct Lines {
    rows: Vec<Option<u32>>,
    kinds: Vec<&'static str>,
    content: Vec<Option<u32>>,
    failed: Vec<Option<u32>>,
    skipped: Vec<Option<u32>>,
    timing: Vec<Option<u32>>,
}

/// The rows that lines refer to.
#[derive(Default)]
struct Parts {
    content: Vec<ContentRow>,
    failed: Vec<FailedRow>,
    skipped: Vec<SkippedRow>,
    timing: Vec<TimingRow>,
}

fn push<T>(parts: &mut Vec<T>, part: T) -> Option<u32> {
    parts.push(part);
    u32::try_from(parts.len() - 1).ok()
}

impl Lines {
    fn line(&mut self, row: Option<u32>, kind: &'static str, places: [Option<u32>; 4]) {
        let [content, failed, skipped, timing] = places;
        self.rows.push(row);
        self.kinds.push(kind);
        self.content.push(content);
        self.failed.push(failed);
        self.skipped.push(skipped);
        self.timing.push(timing);
    }

    fn outcome(&mut self, row: u32, outcome: RowOutcome, parts: &mut Parts) {
        match outcome {
            RowOutcome::Ok { rows, timing } => {
                let mut timing = push(&mut parts.timing, timing);
                for content in rows {
                    let content = push(&mut parts.content, content);
                    self.line(Some(row), OK, [content, None, None, timing.take()]);
                }
            }
            RowOutcome::Failed(failed) => {
                let failed = push(&mut parts.failed, failed);
                self.line(Some(row), FAILED, [None, failed, None, None]);
            }
            RowOutcome::Skipped(skipped) => {
                let skipped = push(&mut parts.skipped, skipped);
                self.line(Some(row), SKIPPED, [None, None, skipped, None]);
            }
        }
    }
}

/// The outcomes of a unit as a batch.
///
/// # Errors
/// None that Arrow does not report.
pub(crate) fn chunk_batch(
    spec: &ContentSpec,
    unit: &Unit,
    outcomes: Vec<RowOutcome>,
) -> Result<RecordBatch, ExecError> {
    let (mut lines, mut parts) = (Lines::default(), Parts::default());
    let (chunk, rows) = match unit.work {
        Work::Chunk { chunk, rows, .. } => (Some(chunk), rows),
        Work::Finish { chunks } => {
            lines.line(None, FINISH, [None; 4]);
            (None, chunks)
        }
    };
    for (row, outcome) in (0..).zip(outcomes) {
        lines.outcome(row, outcome, &mut parts);
    }
    let count = lines.kinds.len();
    let content = content_batch(spec, &parts.content)?;
    drop(parts.content);
    let timing = timing_batch(unit.shard, chunk.unwrap_or_default(), &parts.timing)?;
    let schema = chunk_schema(spec);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(UInt32Array::from(vec![unit.shard; count])),
        Arc::new(UInt32Array::from(vec![chunk; count])),
        Arc::new(UInt32Array::from(vec![rows; count])),
        Arc::new(UInt32Array::from(lines.rows)),
        Arc::new(StringArray::from(lines.kinds)),
        spread(content, lines.content)?,
        spread(failed_batch(spec, &parts.failed)?, lines.failed)?,
        spread(skipped_batch(spec, &parts.skipped)?, lines.skipped)?,
        spread(timing, lines.timing)?,
    ];
    Ok(RecordBatch::try_new(schema, columns)?)
}

/// The rows of `batch` at the given places, nothing elsewhere.
fn spread(batch: RecordBatch, places: Vec<Option<u32>>) -> Result<ArrayRef, ExecError> {
    let fields = DataType::Struct(batch.schema().fields().clone());
    let in_place = batch.num_rows() == places.len()
        && places.iter().enumerate().all(|(at, place)| place.is_some_and(|place| place as usize == at));
    if batch.num_rows() == 0 {
        return Ok(new_null_array(&fields, places.len()));
    }
    let rows = StructArray::from(batch);
    if in_place { Ok(Arc::new(rows)) } else { Ok(take(&rows, &UInt32Array::from(places), None)?) }
}

/// The rows that are there, in order.
fn gathered(column: &ArrayRef) -> Result<RecordBatch> {
    let present = if column.null_count() == 0 { Arc::clone(column) } else { filter(column, &is_not_null(column)?)? };
    match present.as_struct_opt() {
        Some(rows) => Ok(RecordBatch::from(rows)),
        None => internal_err!("a column of rows is {}, not a struct", column.data_type()),
    }
}

/// The pieces of a batch, in order.
///
/// # Errors
/// When it is not a batch of a chunk.
pub(crate) fn pieces(batch: &RecordBatch) -> Result<Vec<Piece>, ExecError> {
    let [shard, chunk, rows, row, kind, content, failed, skipped, timing] = batch.columns() else {
        return Err(not_a_chunk(batch));
    };
    let (Some(shard), Some(chunk), Some(rows), Some(row), Some(kind)) = (
        shard.as_primitive_opt::<UInt32Type>(),
        chunk.as_primitive_opt::<UInt32Type>(),
        rows.as_primitive_opt::<UInt32Type>(),
        row.as_primitive_opt::<UInt32Type>(),
        kind.as_string_opt::<i32>(),
    ) else {
        return Err(not_a_chunk(batch));
    };
    let mut content = content_rows(&gathered(content)?)?.into_iter();
    let mut failed = failed_rows(&gathered(failed)?)?.into_iter();
    let mut skipped = skipped_rows(&gathered(skipped)?)?.into_iter();
    let mut timings = timing_rows(&gathered(timing)?)?.into_iter();
    let mut pieces: Vec<Piece> = Vec::with_capacity(batch.num_rows());
    for at in 0..batch.num_rows() {
        let outcome = match kind.value(at) {
            FINISH => {
                pieces.push(Piece::Finish { shard: shard.value(at), chunks: rows.value(at) });
                continue;
            }
            OK => {
                let next = content.next().ok_or_else(|| not_a_chunk(batch))?;
                let follows = at > 0 && kind.value(at - 1) == OK && row.value(at - 1) == row.value(at);
                if let Some(Piece::Outcome { outcome, .. }) = pieces.last_mut().filter(|_| follows)
                    && let RowOutcome::Ok { rows, .. } = &mut **outcome
                {
                    rows.push(next);
                    continue;
                }
                RowOutcome::Ok { rows: vec![next], timing: timings.next().ok_or_else(|| not_a_chunk(batch))? }
            }
            FAILED => RowOutcome::Failed(failed.next().ok_or_else(|| not_a_chunk(batch))?),
            _ => RowOutcome::Skipped(skipped.next().ok_or_else(|| not_a_chunk(batch))?),
        };
        pieces.push(Piece::Outcome {
            shard: shard.value(at),
            chunk: chunk.value(at),
            rows: rows.value(at),
            outcome: Box::new(outcome),
        });
    }
    Ok(pieces)
}

fn not_a_chunk(batch: &RecordBatch) -> ExecError {
    let error = datafusion::common::internal_datafusion_err!("not the batch of a chunk: {}", batch.schema());
    ExecError::DataFusion(error)
}

#[cfg(test)]
mod tests {
    use slicemill_core::{ErrorClass, Flops, RowError, Stage, TaskKind, TokenDtype};

    use super::*;

    fn spec(task: TaskKind) -> ContentSpec {
        ContentSpec {
            task,
            token_ids: true,
            token_dtype: TokenDtype::F32,
            token_width: 2,
            model_fingerprint: "fa4e".to_owned(),
            input: slicemill_io::ColumnTypes::default(),
        }
    }

    fn content(key: &str, task: TaskKind, question: u32) -> ContentRow {
        let asks = task == TaskKind::Ask;
        let encodes = task == TaskKind::Encode;
        ContentRow {
            key: key.to_owned(),
            source: format!("file:///{key}"),
            sha256: "ab".repeat(32),
            width: 640,
            height: 480,
            orientation_applied: 1,
            format: "png".to_owned(),
            policy: "llava-uhd".to_owned(),
            grid_cols: 1,
            grid_rows: 2,
            slices: 2,
            visual_tokens: 3,
            prompt_tokens: if encodes { 0 } else { 9 },
            prompt_cut: 0,
            output_tokens: if encodes { 0 } else { 2 },
            looped_tokens: 0,
            flops: Flops { vision: 1, projector: 2, prefill: 3, decode: 4 },
            question_id: asks.then_some(question),
            question: asks.then(|| "How many?".to_owned()),
            text: (!encodes).then(|| "two".to_owned()),
            finish_reason: if encodes { "none" } else { "stop" }.to_owned(),
            token_ids: (!encodes).then(|| vec![question, 7]),
            tokens: encodes.then(|| vec![0.5; 6]),
            truncated: false,
            columns: None,
        }
    }

    fn outcomes(task: TaskKind) -> Vec<RowOutcome> {
        let timing = |key: &str| TimingRow { key: key.to_owned(), device: "cpu:0".to_owned(), ..TimingRow::default() };
        let error = RowError::new(ErrorClass::Truncated, Stage::Decode, "ends early");
        let questions = if task == TaskKind::Ask { 2 } else { 1 };
        let rows = |key: &str| (0..questions).map(|question| content(key, task, question)).collect();
        vec![
            RowOutcome::Ok { rows: rows("a"), timing: timing("a") },
            RowOutcome::Failed(FailedRow {
                key: "b".into(),
                source: "file:///b".into(),
                error,
                attempts: 2,
                columns: None,
            }),
            RowOutcome::Ok { rows: rows("c"), timing: timing("c") },
            RowOutcome::Ok { rows: rows("d"), timing: timing("d") },
            RowOutcome::Skipped(SkippedRow {
                key: "e".into(),
                source: "file:///e".into(),
                reason: "text".into(),
                columns: None,
            }),
        ]
    }

    #[test]
    fn outcomes_survive_their_batch() {
        for task in [TaskKind::Caption, TaskKind::Ask, TaskKind::Encode] {
            for keep in [5, 1, 0] {
                let outcomes: Vec<RowOutcome> = outcomes(task).into_iter().take(keep).collect();
                let unit = Unit { generation: 0, shard: 4, work: Work::Chunk { chunk: 2, row_first: 9, rows: 5 } };
                let batch = chunk_batch(&spec(task), &unit, outcomes.clone()).unwrap();
                let back: Vec<RowOutcome> = pieces(&batch)
                    .unwrap()
                    .into_iter()
                    .map(|piece| match piece {
                        Piece::Outcome { shard: 4, chunk: 2, rows: 5, outcome } => *outcome,
                        other => panic!("{other:?}"),
                    })
                    .collect();
                assert_eq!(back, outcomes, "{task:?}");
            }
        }
    }

    #[test]
    fn the_end_of_a_shard_survives_its_batch() {
        let unit = Unit { generation: 0, shard: 4, work: Work::Finish { chunks: 12 } };
        let batch = chunk_batch(&spec(TaskKind::Ask), &unit, Vec::new()).unwrap();
        assert_eq!(pieces(&batch).unwrap(), [Piece::Finish { shard: 4, chunks: 12 }]);
    }
}
