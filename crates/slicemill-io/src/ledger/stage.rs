//! Staging the rows of a chunk.

use slicemill_core::RowOutcome;

use crate::{ContentSpec, Counts, IoError};

/// Turns the outcomes of one chunk, in input order, into staged Parquet files. Does CPU work only.
#[derive(Debug)]
pub struct ChunkStager {
    shard: u32,
    chunk: u32,
    spec: ContentSpec,
    counts: Counts,
}

/// A chunk ready to be committed: encoded files in memory.
#[derive(Debug)]
pub struct StagedChunk {
    pub(crate) shard: u32,
    pub(crate) chunk: u32,
    pub(crate) counts: Counts,
}

impl ChunkStager {
    /// An empty chunk.
    pub fn new(spec: ContentSpec, shard: u32, chunk: u32) -> Self {
        Self { shard, chunk, spec, counts: Counts::default() }
    }

    /// Adds the next outcome.
    pub fn push(&mut self, outcome: RowOutcome) -> Result<(), IoError> {
        let _ = (&self.spec, outcome);
        Err(crate::store::unwritten())
    }

    /// Counts so far.
    pub const fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Encodes what is left.
    pub fn finish(self) -> Result<StagedChunk, IoError> {
        Ok(StagedChunk { shard: self.shard, chunk: self.chunk, counts: self.counts })
    }
}

impl StagedChunk {
    /// Its counts.
    pub const fn counts(&self) -> &Counts {
        &self.counts
    }
}
