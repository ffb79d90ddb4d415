//! Rows ⇄ record batches, both ways.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, ArrowPrimitiveType, AsArray as _, BooleanArray, Float32Array, ListArray, PrimitiveArray,
    StringArray, UInt8Array, UInt32Array, UInt64Array,
};
use arrow::buffer::{NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Float16Type, Float32Type, Float64Type, Int64Type, UInt8Type, UInt32Type, UInt64Type};
use arrow::record_batch::RecordBatch;
use slicemill_core::{ContentRow, ErrorClass, FailedRow, Flops, RowError, SkippedRow, Stage, TimingRow, TokenDtype};

use crate::schema::{Column, INPUT_PREFIX, columns, element};
use crate::tables::columns_batch;
use crate::{ContentSpec, Dataset, IoError, IoErrorKind, arrow_schema};

type F16 = <Float16Type as ArrowPrimitiveType>::Native;

/// Content rows as a batch of the spec's content schema. A row without what its dataset needs (a question, tokens) is
/// a fatal error: rows come from the pipeline, never from data.
pub fn content_batch(spec: &ContentSpec, rows: &[ContentRow]) -> Result<RecordBatch, IoError> {
    let dataset = Dataset::of_task(spec.task);
    let arrays = columns(dataset, spec).into_iter().map(|column| content_array(&column, spec, rows));
    let mut arrays: Vec<ArrayRef> = arrays.collect::<Result<_, _>>()?;
    arrays.extend(input_arrays(spec, rows.iter().map(|row| row.columns.as_deref()))?);
    batch(dataset, spec, arrays)
}

fn content_array(column: &Column, spec: &ContentSpec, rows: &[ContentRow]) -> Result<ArrayRef, IoError> {
    let each = || rows.iter();
    Ok(match column.name {
        "key" => texts(each().map(|row| &row.key)),
        "source" => texts(each().map(|row| &row.source)),
        "sha256" => texts(each().map(|row| &row.sha256)),
        "width" => u32s(each().map(|row| row.width)),
        "height" => u32s(each().map(|row| row.height)),
        "orientation_applied" => Arc::new(UInt8Array::from_iter_values(each().map(|row| row.orientation_applied))),
        "format" => texts(each().map(|row| &row.format)),
        "truncated" => Arc::new(BooleanArray::from_iter(each().map(|row| Some(row.truncated)))),
        "policy" => texts(each().map(|row| &row.policy)),
        "grid_cols" => u32s(each().map(|row| row.grid_cols)),
        "grid_rows" => u32s(each().map(|row| row.grid_rows)),
        "slices" => u32s(each().map(|row| row.slices)),
        "visual_tokens" => u32s(each().map(|row| row.visual_tokens)),
        "prompt_tokens" => u32s(each().map(|row| row.prompt_tokens)),
        "prompt_cut" => u32s(each().map(|row| row.prompt_cut)),
        "output_tokens" => u32s(each().map(|row| row.output_tokens)),
        "looped_tokens" => u32s(each().map(|row| row.looped_tokens)),
        "vision_flops" => u64s(each().map(|row| row.flops.vision)),
        "projector_flops" => u64s(each().map(|row| row.flops.projector)),
        "prefill_flops" => u64s(each().map(|row| row.flops.prefill)),
        "decode_flops" => u64s(each().map(|row| row.flops.decode)),
        "finish_reason" => texts(each().map(|row| &row.finish_reason)),
        "text" => Arc::new(each().map(|row| row.text.as_deref()).collect::<StringArray>()),
        "question_id" => {
            let ids = each().map(|row| needed(row.question_id, "question number", row));
            u32s(ids.collect::<Result<Vec<_>, _>>()?.into_iter())
        }
        "question" => {
            let questions = each().map(|row| needed(row.question.as_ref(), "question", row));
            texts(questions.collect::<Result<Vec<_>, _>>()?.into_iter())
        }
        "token_ids" => list::<UInt32Type, u32>(each().map(|row| row.token_ids.as_deref()), u32::clone),
        "token_width" => u32s(each().map(|_| spec.token_width)),
        "model_fingerprint" => texts(each().map(|_| &spec.model_fingerprint)),
        "tokens" => token_array(spec, rows)?,
        other => return Err(unknown_column(other)),
    })
}

fn token_array(spec: &ContentSpec, rows: &[ContentRow]) -> Result<ArrayRef, IoError> {
    for row in rows {
        let expected = u64::from(row.visual_tokens) * u64::from(spec.token_width);
        let count = needed(row.tokens.as_ref(), "visual tokens", row)?.len() as u64;
        if count != expected {
            let message = format!("{}: {count} values of visual tokens in place of {expected}", row.key);
            return Err(IoError::fatal(IoErrorKind::Invalid, message));
        }
    }
    let tokens = rows.iter().map(|row| Some(row.tokens.as_deref().unwrap_or_default()));
    Ok(match spec.token_dtype {
        TokenDtype::F32 => list::<Float32Type, f32>(tokens, f32::clone),
        TokenDtype::F16 => list::<Float16Type, f32>(tokens, |value| F16::from_f32(*value)),
    })
}

fn needed<T>(value: Option<T>, what: &str, row: &ContentRow) -> Result<T, IoError> {
    value.ok_or_else(|| IoError::fatal(IoErrorKind::Invalid, format!("{}: the row has no {what}", row.key)))
}

fn unknown_column(name: &str) -> IoError {
    IoError::fatal(IoErrorKind::Invalid, format!("no rows can be written to column '{name}'"))
}

/// Failed rows as a batch.
pub fn failed_batch(spec: &ContentSpec, rows: &[FailedRow]) -> Result<RecordBatch, IoError> {
    let mut arrays = vec![
        texts(rows.iter().map(|row| &row.key)),
        texts(rows.iter().map(|row| &row.source)),
        texts(rows.iter().map(|row| row.error.class.as_str())),
        texts(rows.iter().map(|row| row.error.stage.as_str())),
        texts(rows.iter().map(|row| &row.error.message)),
        u32s(rows.iter().map(|row| row.attempts)),
    ];
    arrays.extend(input_arrays(spec, rows.iter().map(|row| row.columns.as_deref()))?);
    batch(Dataset::Failed, spec, arrays)
}

/// Skipped rows as a batch.
pub fn skipped_batch(spec: &ContentSpec, rows: &[SkippedRow]) -> Result<RecordBatch, IoError> {
    let mut arrays = vec![
        texts(rows.iter().map(|row| &row.key)),
        texts(rows.iter().map(|row| &row.source)),
        texts(rows.iter().map(|row| &row.reason)),
    ];
    arrays.extend(input_arrays(spec, rows.iter().map(|row| row.columns.as_deref()))?);
    batch(Dataset::Skipped, spec, arrays)
}

/// Timing rows of one chunk as a batch.
pub fn timing_batch(shard: u32, chunk: u32, rows: &[TimingRow]) -> Result<RecordBatch, IoError> {
    let arrays = vec![
        texts(rows.iter().map(|row| &row.key)),
        u32s(rows.iter().map(|_| shard)),
        u32s(rows.iter().map(|_| chunk)),
        texts(rows.iter().map(|row| &row.device)),
        u32s(rows.iter().map(|row| row.batch_id)),
        u32s(rows.iter().map(|row| row.batch_views)),
        f32s(rows.iter().map(|row| row.batch_fill)),
        f32s(rows.iter().map(|row| row.fetch_ms)),
        f32s(rows.iter().map(|row| row.prepare_ms)),
        f32s(rows.iter().map(|row| row.encode_ms)),
        f32s(rows.iter().map(|row| row.prefill_ms)),
        f32s(rows.iter().map(|row| row.decode_ms)),
    ];
    batch(Dataset::Timings, &ContentSpec::captions(), arrays)
}

fn batch(dataset: Dataset, spec: &ContentSpec, arrays: Vec<ArrayRef>) -> Result<RecordBatch, IoError> {
    RecordBatch::try_new(arrow_schema(dataset, spec), arrays).map_err(|error| {
        let message = format!("cannot make a batch of {}: {error}", dataset.name());
        IoError::fatal(IoErrorKind::Invalid, message).because(error)
    })
}

/// The carried columns of rows, in the order of the spec.
fn input_arrays<'a>(spec: &ContentSpec, rows: impl Iterator<Item = Option<&'a str>>) -> Result<Vec<ArrayRef>, IoError> {
    if spec.input.columns().is_empty() {
        return Ok(Vec::new());
    }
    let rows: Vec<_> = rows.collect();
    Ok(columns_batch(&spec.input, &rows)?.into_iter().map(|(_, array)| array).collect())
}

/// The carried columns of a batch, back as JSON objects.
struct InputCells {
    columns: Vec<(String, ArrayRef)>,
}

impl InputCells {
    fn of(batch: &RecordBatch) -> Result<Self, IoError> {
        let mut columns = Vec::new();
        for (field, array) in batch.schema().fields().iter().zip(batch.columns()) {
            if let Some(name) = field.name().strip_prefix(INPUT_PREFIX) {
                let name = serde_json::Value::from(name).to_string();
                columns.push((name, Arc::clone(array)));
            }
        }
        Ok(Self { columns })
    }

    fn of_row(&self, row: usize) -> Result<Option<Arc<str>>, IoError> {
        if self.columns.is_empty() {
            return Ok(None);
        }
        let mut text = String::from("{");
        for (at, (name, array)) in self.columns.iter().enumerate() {
            text.push_str(if at > 0 { "," } else { "" });
            text.push_str(name);
            text.push(':');
            text.push_str(&json_value(array, row)?);
        }
        text.push('}');
        Ok(Some(text.into()))
    }
}

fn json_value(array: &ArrayRef, row: usize) -> Result<String, IoError> {
    if array.is_null(row) {
        return Ok("null".to_owned());
    }
    let value = match array.data_type() {
        DataType::Utf8 => array.as_string_opt::<i32>().map(|array| serde_json::Value::from(array.value(row))),
        DataType::Boolean => array.as_boolean_opt().map(|array| array.value(row).into()),
        DataType::Int64 => array.as_primitive_opt::<Int64Type>().map(|array| array.value(row).into()),
        DataType::Float64 => array.as_primitive_opt::<Float64Type>().map(|array| array.value(row).into()),
        _ => None,
    };
    value.map(|value| value.to_string()).ok_or_else(|| {
        let message = format!("a carried column is {}, which slicemill does not write", array.data_type());
        IoError::fatal(IoErrorKind::Corrupt, message)
    })
}

fn texts<T: AsRef<str>>(values: impl Iterator<Item = T>) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(values))
}

fn u32s(values: impl Iterator<Item = u32>) -> ArrayRef {
    Arc::new(UInt32Array::from_iter_values(values))
}

fn u64s(values: impl Iterator<Item = u64>) -> ArrayRef {
    Arc::new(UInt64Array::from_iter_values(values))
}

fn f32s(values: impl Iterator<Item = f32>) -> ArrayRef {
    Arc::new(Float32Array::from_iter_values(values))
}

/// A list array of `lists`; no null buffer when none is null, so that equal rows make equal arrays.
fn list<'a, T: ArrowPrimitiveType, R: 'a>(
    lists: impl Iterator<Item = Option<&'a [R]>> + Clone,
    value: impl Fn(&R) -> T::Native,
) -> ArrayRef {
    let lengths = lists.clone().map(|list| list.map_or(0, <[_]>::len));
    let offsets = OffsetBuffer::<i32>::from_lengths(lengths);
    let valid: Vec<bool> = lists.clone().map(|list| list.is_some()).collect();
    let nulls = valid.contains(&false).then(|| NullBuffer::from(valid));
    let values: ScalarBuffer<T::Native> = lists.flatten().flatten().map(value).collect();
    let values = PrimitiveArray::<T>::new(values, None);
    Arc::new(ListArray::new(element(T::DATA_TYPE), offsets, Arc::new(values), nulls))
}

/// The rows of a batch of captions, answers or tokens. Columns that were projected away are left at their defaults.
pub fn content_rows(batch: &RecordBatch) -> Result<Vec<ContentRow>, IoError> {
    let cells = Cells { batch };
    let inputs = InputCells::of(batch)?;
    let no_finish_reason = batch.column_by_name("tokens").is_some();
    (0..batch.num_rows())
        .map(|row| {
            let finish_reason = if no_finish_reason { "none".to_owned() } else { cells.text("finish_reason", row)? };
            Ok(ContentRow {
                key: cells.text("key", row)?,
                source: cells.text("source", row)?,
                sha256: cells.text("sha256", row)?,
                width: cells.number::<UInt32Type>("width", row)?,
                height: cells.number::<UInt32Type>("height", row)?,
                orientation_applied: cells.number::<UInt8Type>("orientation_applied", row)?,
                format: cells.text("format", row)?,
                truncated: cells.flag("truncated", row)?,
                policy: cells.text("policy", row)?,
                grid_cols: cells.number::<UInt32Type>("grid_cols", row)?,
                grid_rows: cells.number::<UInt32Type>("grid_rows", row)?,
                slices: cells.number::<UInt32Type>("slices", row)?,
                visual_tokens: cells.number::<UInt32Type>("visual_tokens", row)?,
                prompt_tokens: cells.number::<UInt32Type>("prompt_tokens", row)?,
                prompt_cut: cells.number::<UInt32Type>("prompt_cut", row)?,
                output_tokens: cells.number::<UInt32Type>("output_tokens", row)?,
                looped_tokens: cells.number::<UInt32Type>("looped_tokens", row)?,
                flops: Flops {
                    vision: cells.number::<UInt64Type>("vision_flops", row)?,
                    projector: cells.number::<UInt64Type>("projector_flops", row)?,
                    prefill: cells.number::<UInt64Type>("prefill_flops", row)?,
                    decode: cells.number::<UInt64Type>("decode_flops", row)?,
                },
                question_id: cells.find_number::<UInt32Type>("question_id", row)?,
                question: cells.find_text("question", row)?,
                text: cells.find_text("text", row)?,
                finish_reason,
                token_ids: cells.list::<UInt32Type>("token_ids", row)?,
                tokens: cells.tokens(row)?,
                columns: inputs.of_row(row)?,
            })
        })
        .collect()
}

/// The rows of a batch of `failed`.
pub fn failed_rows(batch: &RecordBatch) -> Result<Vec<FailedRow>, IoError> {
    let cells = Cells { batch };
    let inputs = InputCells::of(batch)?;
    (0..batch.num_rows())
        .map(|row| {
            let class = cells.text("class", row)?;
            let stage = cells.text("stage", row)?;
            let class = ErrorClass::parse(&class).ok_or_else(|| unknown_name("class", &class))?;
            let stage = Stage::parse(&stage).ok_or_else(|| unknown_name("stage", &stage))?;
            Ok(FailedRow {
                key: cells.text("key", row)?,
                source: cells.text("source", row)?,
                error: RowError::new(class, stage, cells.text("message", row)?),
                attempts: cells.number::<UInt32Type>("attempts", row)?,
                columns: inputs.of_row(row)?,
            })
        })
        .collect()
}

fn unknown_name(what: &str, name: &str) -> IoError {
    let message = format!("a failed row has the unknown {what} '{name}'; it was written by another version");
    IoError::fatal(IoErrorKind::Corrupt, message)
}

/// The rows of a batch of `skipped`.
pub fn skipped_rows(batch: &RecordBatch) -> Result<Vec<SkippedRow>, IoError> {
    let cells = Cells { batch };
    let inputs = InputCells::of(batch)?;
    (0..batch.num_rows())
        .map(|row| {
            Ok(SkippedRow {
                key: cells.text("key", row)?,
                source: cells.text("source", row)?,
                reason: cells.text("reason", row)?,
                columns: inputs.of_row(row)?,
            })
        })
        .collect()
}

/// The rows of a batch of `timings`.
pub fn timing_rows(batch: &RecordBatch) -> Result<Vec<TimingRow>, IoError> {
    let cells = Cells { batch };
    (0..batch.num_rows())
        .map(|row| {
            Ok(TimingRow {
                key: cells.text("key", row)?,
                device: cells.text("device", row)?,
                batch_id: cells.number::<UInt32Type>("batch_id", row)?,
                batch_views: cells.number::<UInt32Type>("batch_views", row)?,
                batch_fill: cells.number::<Float32Type>("batch_fill", row)?,
                fetch_ms: cells.number::<Float32Type>("fetch_ms", row)?,
                prepare_ms: cells.number::<Float32Type>("prepare_ms", row)?,
                encode_ms: cells.number::<Float32Type>("encode_ms", row)?,
                prefill_ms: cells.number::<Float32Type>("prefill_ms", row)?,
                decode_ms: cells.number::<Float32Type>("decode_ms", row)?,
            })
        })
        .collect()
}

/// Cells of a batch by column name and row. A missing column reads as null, null as the default where a row has no
/// place for it.
struct Cells<'a> {
    batch: &'a RecordBatch,
}

impl Cells<'_> {
    fn column<'a, A: 'static>(&'a self, name: &str, row: usize, expected: &DataType) -> Result<Option<&'a A>, IoError> {
        let Some(column) = self.batch.column_by_name(name) else { return Ok(None) };
        if column.is_null(row) {
            return Ok(None);
        }
        let array = column.as_any().downcast_ref::<A>().ok_or_else(|| {
            let message = format!("column '{name}' is {} in place of {expected}", column.data_type());
            IoError::fatal(IoErrorKind::Corrupt, message)
        })?;
        Ok(Some(array))
    }

    fn find_text(&self, name: &str, row: usize) -> Result<Option<String>, IoError> {
        let array = self.column::<StringArray>(name, row, &DataType::Utf8)?;
        Ok(array.map(|array| array.value(row).to_owned()))
    }

    fn flag(&self, name: &str, row: usize) -> Result<bool, IoError> {
        let array = self.column::<BooleanArray>(name, row, &DataType::Boolean)?;
        Ok(array.is_some_and(|array| array.value(row)))
    }

    fn text(&self, name: &str, row: usize) -> Result<String, IoError> {
        Ok(self.find_text(name, row)?.unwrap_or_default())
    }

    fn find_number<T: ArrowPrimitiveType>(&self, name: &str, row: usize) -> Result<Option<T::Native>, IoError> {
        let array = self.column::<PrimitiveArray<T>>(name, row, &T::DATA_TYPE)?;
        Ok(array.map(|array| array.value(row)))
    }

    fn number<T: ArrowPrimitiveType>(&self, name: &str, row: usize) -> Result<T::Native, IoError> {
        Ok(self.find_number::<T>(name, row)?.unwrap_or_default())
    }

    fn list<T: ArrowPrimitiveType>(&self, name: &str, row: usize) -> Result<Option<Vec<T::Native>>, IoError> {
        let expected = DataType::List(element(T::DATA_TYPE));
        let Some(lists) = self.column::<ListArray>(name, row, &expected)? else { return Ok(None) };
        let values = lists.value(row);
        let values = values.as_primitive_opt::<T>().ok_or_else(|| {
            let message = format!("column '{name}' is {} in place of {expected}", lists.data_type());
            IoError::fatal(IoErrorKind::Corrupt, message)
        })?;
        Ok(Some(values.values().to_vec()))
    }

    fn tokens(&self, row: usize) -> Result<Option<Vec<f32>>, IoError> {
        let half = self.batch.column_by_name("tokens").is_some_and(
            |column| matches!(column.data_type(), DataType::List(field) if *field.data_type() == DataType::Float16),
        );
        if half {
            let values = self.list::<Float16Type>("tokens", row)?;
            return Ok(values.map(|values| values.into_iter().map(F16::to_f32).collect()));
        }
        self.list::<Float32Type>("tokens", row)
    }
}

#[cfg(test)]
mod tests;
