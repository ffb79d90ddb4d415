//! Work units: what one task is told to do, about thirty bytes each.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, UInt32Array, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, UInt32Type, UInt64Type};
use datafusion::common::{Result, internal_err};

/// One step of the work on a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Annotate one chunk.
    Chunk {
        /// Number of the chunk in its shard, from 0.
        chunk: u32,
        /// First row in the generation's inputs.
        row_first: u64,
        /// Rows.
        rows: u32,
    },
    /// Assemble the shard's files. Stands after all chunks of the shard.
    Finish {
        /// Chunks of the shard.
        chunks: u32,
    },
}

/// A work unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unit {
    /// Generation of the inputs.
    pub generation: u32,
    /// Shard.
    pub shard: u32,
    /// What to do.
    pub work: Work,
}

/// Columns of a batch of units. A unit without a chunk finishes its shard, and `rows` is then the number of chunks.
pub fn unit_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("generation", DataType::UInt32, false),
        Field::new("shard", DataType::UInt32, false),
        Field::new("chunk", DataType::UInt32, true),
        Field::new("row_first", DataType::UInt64, false),
        Field::new("rows", DataType::UInt32, false),
    ]))
}

/// Units as a batch.
///
/// # Errors
/// None that Arrow does not report.
pub fn unit_batch(units: &[Unit]) -> Result<RecordBatch> {
    let of_work = |work: &Work| match *work {
        Work::Chunk { chunk, row_first, rows } => (Some(chunk), row_first, rows),
        Work::Finish { chunks } => (None, 0, chunks),
    };
    let works: Vec<_> = units.iter().map(|unit| of_work(&unit.work)).collect();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(UInt32Array::from_iter_values(units.iter().map(|unit| unit.generation))),
        Arc::new(UInt32Array::from_iter_values(units.iter().map(|unit| unit.shard))),
        Arc::new(works.iter().map(|(chunk, _, _)| *chunk).collect::<UInt32Array>()),
        Arc::new(UInt64Array::from_iter_values(works.iter().map(|(_, row_first, _)| *row_first))),
        Arc::new(UInt32Array::from_iter_values(works.iter().map(|(_, _, rows)| *rows))),
    ];
    Ok(RecordBatch::try_new(unit_schema(), columns)?)
}

/// The units of a batch.
///
/// # Errors
/// When it is not a batch of units.
pub fn units_of_batch(batch: &RecordBatch) -> Result<Vec<Unit>> {
    let [generation, shard, chunk, row_first, rows] = batch.columns() else {
        return internal_err!("a batch of work units has 5 columns, not {}", batch.num_columns());
    };
    let (Some(generation), Some(shard), Some(chunk), Some(row_first), Some(rows)) = (
        generation.as_primitive_opt::<UInt32Type>(),
        shard.as_primitive_opt::<UInt32Type>(),
        chunk.as_primitive_opt::<UInt32Type>(),
        row_first.as_primitive_opt::<UInt64Type>(),
        rows.as_primitive_opt::<UInt32Type>(),
    ) else {
        return internal_err!("the columns of a batch of work units are {}", batch.schema());
    };
    let work = |at: usize| match chunk.is_valid(at) {
        true => Work::Chunk { chunk: chunk.value(at), row_first: row_first.value(at), rows: rows.value(at) },
        false => Work::Finish { chunks: rows.value(at) },
    };
    Ok((0..batch.num_rows())
        .map(|at| Unit { generation: generation.value(at), shard: shard.value(at), work: work(at) })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_survive_their_batch() {
        let units = [
            Unit { generation: 0, shard: 3, work: Work::Chunk { chunk: 0, row_first: 1 << 40, rows: 64 } },
            Unit { generation: 0, shard: 3, work: Work::Finish { chunks: 2 } },
            Unit { generation: 7, shard: 4, work: Work::Chunk { chunk: 9, row_first: 0, rows: 1 } },
        ];
        assert_eq!(units_of_batch(&unit_batch(&units).unwrap()).unwrap(), units);
        assert_eq!(units_of_batch(&unit_batch(&[]).unwrap()).unwrap(), []);
    }
}
