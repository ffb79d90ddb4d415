//! Staging the rows of a chunk.

use std::collections::BTreeMap;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use slicemill_core::{ContentRow, FailedRow, RowOutcome, SkippedRow, TimingRow};

use crate::schema::{hex, schema_metadata};
use crate::{
    ContentSpec, Counts, Dataset, IoError, ParquetEncoder, RowGroupLimits, arrow_schema, content_batch, failed_batch,
    skipped_batch, timing_batch,
};

/// Bytes of visual tokens held before they are encoded.
const HELD_BYTES: usize = 16 << 20;
/// Rows held before they are encoded.
const HELD_ROWS: usize = 1024;

/// Turns the outcomes of one chunk, in input order, into staged Parquet files. Does CPU work only; what was pushed is
/// encoded as it comes, so that the visual tokens of a chunk are never held twice.
#[derive(Debug)]
pub struct ChunkStager {
    shard: u32,
    chunk: u32,
    spec: ContentSpec,
    counts: Counts,
    content: Vec<ContentRow>,
    content_bytes: usize,
    failed: Vec<FailedRow>,
    skipped: Vec<SkippedRow>,
    timings: Vec<TimingRow>,
    encoders: BTreeMap<Dataset, ParquetEncoder>,
}

/// A chunk ready to be committed: encoded files in memory.
#[derive(Debug)]
pub struct StagedChunk {
    pub(crate) shard: u32,
    pub(crate) chunk: u32,
    pub(crate) counts: Counts,
    pub(crate) files: BTreeMap<Dataset, StagedFile>,
}

/// One encoded file.
#[derive(Debug)]
pub(crate) struct StagedFile {
    pub(crate) rows: u64,
    pub(crate) bytes: Bytes,
    pub(crate) sha256: String,
}

impl ChunkStager {
    /// An empty chunk.
    pub fn new(spec: ContentSpec, shard: u32, chunk: u32) -> Self {
        Self {
            shard,
            chunk,
            spec,
            counts: Counts::default(),
            content: Vec::new(),
            content_bytes: 0,
            failed: Vec::new(),
            skipped: Vec::new(),
            timings: Vec::new(),
            encoders: BTreeMap::new(),
        }
    }

    /// Adds the next outcome.
    pub fn push(&mut self, outcome: RowOutcome) -> Result<(), IoError> {
        self.counts.add_outcome(&outcome);
        match outcome {
            RowOutcome::Ok { rows, timing } => {
                let tokens = rows.iter().filter_map(|row| row.tokens.as_ref());
                self.content_bytes += tokens.map(|tokens| size_of_val(tokens.as_slice())).sum::<usize>();
                self.content.extend(rows);
                self.timings.push(timing);
            }
            RowOutcome::Failed(row) => self.failed.push(row),
            RowOutcome::Skipped(row) => self.skipped.push(row),
        }
        if self.content.len() >= HELD_ROWS || self.content_bytes >= HELD_BYTES {
            self.encode_held()?;
        }
        Ok(())
    }

    fn encode_held(&mut self) -> Result<(), IoError> {
        let content = std::mem::take(&mut self.content);
        self.content_bytes = 0;
        if !content.is_empty() {
            let batch = content_batch(&self.spec, &content)?;
            self.encode(Dataset::of_task(self.spec.task), &batch)?;
        }
        let timings = std::mem::take(&mut self.timings);
        if !timings.is_empty() {
            self.encode(Dataset::Timings, &timing_batch(self.shard, self.chunk, &timings)?)?;
        }
        Ok(())
    }

    fn encode(&mut self, dataset: Dataset, batch: &arrow::record_batch::RecordBatch) -> Result<(), IoError> {
        let encoder = match self.encoders.entry(dataset) {
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::btree_map::Entry::Vacant(entry) => {
                let schema = arrow_schema(dataset, &self.spec);
                let metadata = schema_metadata(dataset, &self.spec);
                entry.insert(ParquetEncoder::new(schema, &metadata, RowGroupLimits::default())?)
            }
        };
        encoder.push(batch)
    }

    /// Counts so far.
    pub const fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Encodes what is left.
    pub fn finish(mut self) -> Result<StagedChunk, IoError> {
        self.encode_held()?;
        if !self.failed.is_empty() {
            let batch = failed_batch(&self.spec, &std::mem::take(&mut self.failed))?;
            self.encode(Dataset::Failed, &batch)?;
        }
        if !self.skipped.is_empty() {
            let batch = skipped_batch(&self.spec, &std::mem::take(&mut self.skipped))?;
            self.encode(Dataset::Skipped, &batch)?;
        }
        let mut files = BTreeMap::new();
        for (dataset, encoder) in std::mem::take(&mut self.encoders) {
            let rows = encoder.rows();
            let bytes = encoder.finish()?;
            let sha256 = hex(&Sha256::digest(&bytes));
            files.insert(dataset, StagedFile { rows, bytes, sha256 });
        }
        Ok(StagedChunk { shard: self.shard, chunk: self.chunk, counts: self.counts, files })
    }
}

impl StagedChunk {
    /// Its counts.
    pub const fn counts(&self) -> &Counts {
        &self.counts
    }
}
