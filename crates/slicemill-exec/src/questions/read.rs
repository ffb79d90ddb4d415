//! Reading a questions file: JSON lines, CSV or Parquet, found by its extension.

use std::collections::BTreeMap;

use arrow::array::{Array, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use bytes::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::QuestionsError;

/// One row of a questions file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuestionRow {
    /// Where it stands, as `line 7` or `row 7`.
    pub place: String,
    /// Key of the image.
    pub key: String,
    /// Number of the question, when the file says one.
    pub question_id: Option<u32>,
    /// The question.
    pub question: String,
    /// All other columns as text.
    pub columns: BTreeMap<String, String>,
}

/// Forms of a questions file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    JsonLines,
    Csv,
    Parquet,
}

impl Form {
    fn of(name: &str) -> Result<Self, QuestionsError> {
        let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension).to_ascii_lowercase();
        match extension.as_str() {
            "jsonl" | "ndjson" => Ok(Self::JsonLines),
            "csv" => Ok(Self::Csv),
            "parquet" => Ok(Self::Parquet),
            _ => Err(QuestionsError::Form { name: name.to_owned() }),
        }
    }
}

/// Reads the questions in `bytes`, a file called `name`.
///
/// # Errors
/// When the extension is not known, a row cannot be read, or a row lacks `key` or `question`.
pub fn read_questions(name: &str, bytes: &Bytes) -> Result<Vec<QuestionRow>, QuestionsError> {
    match Form::of(name)? {
        Form::JsonLines => json_lines(name, bytes),
        Form::Csv => csv_rows(name, bytes),
        Form::Parquet => parquet_rows(name, bytes),
    }
}

fn row(name: &str, place: String, mut columns: BTreeMap<String, String>) -> Result<QuestionRow, QuestionsError> {
    let bad = |message: String| QuestionsError::Row { name: name.to_owned(), place: place.clone(), message };
    let mut take = |column: &str| {
        let value = columns.remove(column).filter(|value| !value.trim().is_empty());
        value.ok_or_else(|| bad(format!("no {column}; every row needs the columns key and question")))
    };
    let (key, question) = (take("key")?, take("question")?);
    let question_id = match columns.remove("question_id").filter(|text| !text.trim().is_empty()) {
        None => None,
        Some(text) => match text.trim().parse() {
            Ok(number) => Some(number),
            Err(_) => return Err(bad(format!("question_id {text} is not a whole number from 0 to {}", u32::MAX))),
        },
    };
    Ok(QuestionRow { place, key, question_id, question, columns })
}

fn json_lines(name: &str, bytes: &Bytes) -> Result<Vec<QuestionRow>, QuestionsError> {
    let mut rows = Vec::new();
    for (number, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let place = format!("line {}", number + 1);
        let fields: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(line).map_err(|error| QuestionsError::Row {
                name: name.to_owned(),
                place: place.clone(),
                message: format!("not a JSON object: {error}"),
            })?;
        let columns = fields
            .into_iter()
            .filter_map(|(column, value)| match value {
                serde_json::Value::Null => None,
                serde_json::Value::String(text) => Some((column, text)),
                other => Some((column, other.to_string())),
            })
            .collect();
        rows.push(row(name, place, columns)?);
    }
    Ok(rows)
}

fn csv_rows(name: &str, bytes: &Bytes) -> Result<Vec<QuestionRow>, QuestionsError> {
    let bad = |place: String, message: String| QuestionsError::Row { name: name.to_owned(), place, message };
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let mut reader = csv::Reader::from_reader(text);
    let header = reader.headers().map_err(|error| bad("line 1".to_owned(), error.to_string()))?.clone();
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|error| bad("a row".to_owned(), error.to_string()))?;
        let place = format!("line {}", record.position().map_or(0, csv::Position::line));
        let columns = header
            .iter()
            .zip(record.iter())
            .map(|(column, value)| (column.trim().to_owned(), value.to_owned()))
            .collect();
        rows.push(row(name, place, columns)?);
    }
    Ok(rows)
}

fn parquet_rows(name: &str, bytes: &Bytes) -> Result<Vec<QuestionRow>, QuestionsError> {
    let bad = |message: String| QuestionsError::Row { name: name.to_owned(), place: "the file".to_owned(), message };
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes.clone())
        .and_then(ParquetRecordBatchReaderBuilder::build)
        .map_err(|error| bad(format!("not Parquet: {error}")))?;
    let mut rows = Vec::new();
    for batch in reader {
        let batch = batch.map_err(|error| bad(error.to_string()))?;
        let texts = text_columns(&batch).map_err(|error| bad(error.to_string()))?;
        for at in 0..batch.num_rows() {
            let columns = texts
                .iter()
                .filter(|(_, values)| values.is_valid(at))
                .map(|(column, values)| (column.clone(), values.value(at).to_owned()))
                .collect();
            let place = format!("row {}", rows.len() + 1);
            rows.push(row(name, place, columns)?);
        }
    }
    Ok(rows)
}

/// Columns that have a text form.
fn text_columns(batch: &RecordBatch) -> Result<Vec<(String, StringArray)>, arrow::error::ArrowError> {
    let schema = batch.schema();
    let mut texts = Vec::new();
    for (field, column) in schema.fields().iter().zip(batch.columns()) {
        if !arrow::compute::can_cast_types(column.data_type(), &DataType::Utf8) {
            continue;
        }
        let text = cast(column, &DataType::Utf8)?;
        if let Some(values) = text.as_any().downcast_ref::<StringArray>() {
            texts.push((field.name().clone(), values.clone()));
        }
    }
    Ok(texts)
}
