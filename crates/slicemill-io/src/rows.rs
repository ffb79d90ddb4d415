//! Rows ⇄ record batches, both ways.

use arrow::record_batch::RecordBatch;
use slicemill_core::{ContentRow, FailedRow, SkippedRow, TimingRow};

use crate::store::unwritten;
use crate::{ContentSpec, IoError};

/// Content rows as a batch of the spec's content schema.
pub fn content_batch(spec: &ContentSpec, rows: &[ContentRow]) -> Result<RecordBatch, IoError> {
    let _ = (spec, rows);
    Err(unwritten())
}

/// The rows of a batch of captions, answers or tokens. Columns that were projected away are left at their defaults.
pub fn content_rows(batch: &RecordBatch) -> Result<Vec<ContentRow>, IoError> {
    let _ = batch;
    Err(unwritten())
}

/// Failed rows as a batch.
pub fn failed_batch(rows: &[FailedRow]) -> Result<RecordBatch, IoError> {
    let _ = rows;
    Err(unwritten())
}

/// The rows of a batch of `failed`.
pub fn failed_rows(batch: &RecordBatch) -> Result<Vec<FailedRow>, IoError> {
    let _ = batch;
    Err(unwritten())
}

/// Skipped rows as a batch.
pub fn skipped_batch(rows: &[SkippedRow]) -> Result<RecordBatch, IoError> {
    let _ = rows;
    Err(unwritten())
}

/// The rows of a batch of `skipped`.
pub fn skipped_rows(batch: &RecordBatch) -> Result<Vec<SkippedRow>, IoError> {
    let _ = batch;
    Err(unwritten())
}

/// Timing rows of one chunk as a batch.
pub fn timing_batch(shard: u32, chunk: u32, rows: &[TimingRow]) -> Result<RecordBatch, IoError> {
    let _ = (shard, chunk, rows);
    Err(unwritten())
}

/// The rows of a batch of `timings`.
pub fn timing_rows(batch: &RecordBatch) -> Result<Vec<TimingRow>, IoError> {
    let _ = batch;
    Err(unwritten())
}
