//! Records of what was written: what flows from [`super::WriteExec`] to [`super::CommitExec`].

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray, UInt32Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, UInt32Type};
use datafusion::common::{Result, internal_err};
use slicemill_io::Counts;

/// A committed chunk, or a finished shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Shard.
    pub shard: u32,
    /// Chunk; none for a finished shard.
    pub chunk: Option<u32>,
    /// Its counts and sums.
    pub counts: Counts,
}

/// Columns of a record. Counts are JSON: they are few, and 128-bit sums have no Arrow integer.
pub fn record_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("shard", DataType::UInt32, false),
        Field::new("chunk", DataType::UInt32, true),
        Field::new("counts", DataType::Utf8, false),
    ]))
}

impl Record {
    /// The record as a batch of one row.
    ///
    /// # Errors
    /// None that Arrow does not report.
    pub fn batch(&self) -> Result<RecordBatch> {
        let counts = serde_json::to_string(&self.counts)
            .map_err(|error| datafusion::common::DataFusionError::External(Box::new(error)))?;
        let columns: Vec<ArrayRef> = vec![
            Arc::new(UInt32Array::from(vec![self.shard])),
            Arc::new(UInt32Array::from(vec![self.chunk])),
            Arc::new(StringArray::from(vec![counts])),
        ];
        Ok(RecordBatch::try_new(record_schema(), columns)?)
    }

    /// The records of a batch.
    ///
    /// # Errors
    /// When it is not a batch of records.
    pub fn of_batch(batch: &RecordBatch) -> Result<Vec<Self>> {
        let [shard, chunk, counts] = batch.columns() else {
            return internal_err!("a batch of records has 3 columns, not {}", batch.num_columns());
        };
        let (Some(shard), Some(chunk), Some(counts)) = (
            shard.as_primitive_opt::<UInt32Type>(),
            chunk.as_primitive_opt::<UInt32Type>(),
            counts.as_string_opt::<i32>(),
        ) else {
            return internal_err!("the columns of a batch of records are {}", batch.schema());
        };
        let record = |at: usize| {
            let counts = serde_json::from_str(counts.value(at))
                .map_err(|error| datafusion::common::DataFusionError::External(Box::new(error)))?;
            Ok(Self { shard: shard.value(at), chunk: chunk.is_valid(at).then(|| chunk.value(at)), counts })
        };
        (0..batch.num_rows()).map(record).collect()
    }
}
