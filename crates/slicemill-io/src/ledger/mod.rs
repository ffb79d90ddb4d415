//! The ledger: exactly once on a bare object store.

mod entry;
mod stage;

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::stream::BoxStream;

pub use entry::{ChunkEntry, Counts, FileRecord, FlopSums, Generation, LedgerState, RetryPass, ShardEntry, Success};
pub use stage::{ChunkStager, StagedChunk};

use crate::store::unwritten;
use crate::{ContentSpec, FrozenInputs, InputEntry, IoError, OutputStore};

/// The ledger of one output, or of one retry pass in it. Cheap to clone. No state in memory: every call asks the
/// store, so any number of tasks and processes may hold one.
#[derive(Debug, Clone)]
pub struct Ledger {
    output: OutputStore,
    spec: ContentSpec,
    metadata: Vec<(String, String)>,
}

impl Ledger {
    /// The ledger of `output`. `metadata` (job fingerprint and the like, the same for every run of the job) goes into
    /// every Parquet file.
    pub fn new(output: OutputStore, spec: ContentSpec, metadata: Vec<(String, String)>) -> Self {
        Self { output, spec, metadata }
    }

    /// The output.
    pub const fn output(&self) -> &OutputStore {
        &self.output
    }

    /// The content schema's parameters.
    pub const fn spec(&self) -> &ContentSpec {
        &self.spec
    }

    /// Removes what a killed process left: temporary files of local writes, staged files of committed shards, ledger
    /// entries cut short by a power loss. Call once at the start, under the lock.
    pub async fn recover(&self) -> Result<(), IoError> {
        let _ = &self.metadata;
        Err(unwritten())
    }

    /// Writes `_slicemill/job.json`; accepted when it is there with the same bytes, `Conflict` with others.
    pub async fn write_job(&self, json: Bytes) -> Result<(), IoError> {
        let _ = json;
        Err(unwritten())
    }

    /// Reads `_slicemill/job.json`, `None` when there is none. Needs no spec, so that commands which read an output
    /// can find out what it is.
    pub async fn read_job(output: &OutputStore) -> Result<Option<Bytes>, IoError> {
        let _ = output;
        Err(unwritten())
    }

    /// The generations frozen so far, in order.
    pub async fn generations(&self) -> Result<Vec<Generation>, IoError> {
        Err(unwritten())
    }

    /// Freezes the next generation: writes its inputs, then its record. Takes `_SUCCESS` away when there is one.
    pub async fn freeze(
        &self,
        entries: BoxStream<'static, Result<InputEntry, IoError>>,
        chunk_rows: u32,
        shard_chunks: u32,
    ) -> Result<Generation, IoError> {
        let _ = (entries, chunk_rows, shard_chunks);
        Err(unwritten())
    }

    /// The frozen inputs of a generation.
    pub async fn inputs(&self, generation: &Generation) -> Result<FrozenInputs, IoError> {
        let _ = generation;
        Err(unwritten())
    }

    /// All committed shards, and the committed chunks of the others.
    pub async fn state(&self) -> Result<LedgerState, IoError> {
        Err(unwritten())
    }

    /// The committed chunks of a shard that is not committed.
    pub async fn committed_chunks(&self, shard: u32) -> Result<BTreeMap<u32, ChunkEntry>, IoError> {
        let _ = shard;
        Err(unwritten())
    }

    /// The entry of a committed shard.
    pub async fn committed_shard(&self, shard: u32) -> Result<Option<ShardEntry>, IoError> {
        let _ = shard;
        Err(unwritten())
    }

    /// An empty chunk to be filled.
    pub fn stager(&self, shard: u32, chunk: u32) -> ChunkStager {
        ChunkStager::new(self.spec.clone(), shard, chunk)
    }

    /// Writes the staged files, then the chunk's entry. Returns the entry that stands, which is an earlier one when
    /// the chunk was committed before with equal content; other content is a `Conflict`.
    pub async fn commit_chunk(&self, staged: StagedChunk) -> Result<ChunkEntry, IoError> {
        let _ = staged;
        Err(unwritten())
    }

    /// Assembles the final files of a shard from its `chunks` committed chunks, writes its entry, deletes the staged
    /// files. A committed shard is returned as it is.
    pub async fn finish_shard(&self, shard: u32, chunks: u32) -> Result<ShardEntry, IoError> {
        let _ = (shard, chunks);
        Err(unwritten())
    }

    /// Writes `_SUCCESS` when all shards of all generations and all retry passes are complete. Writing it again is a
    /// no-op.
    pub async fn commit(&self) -> Result<Success, IoError> {
        Err(unwritten())
    }

    /// `_SUCCESS`, `None` while the output is incomplete.
    pub async fn success(output: &OutputStore) -> Result<Option<Success>, IoError> {
        let _ = output;
        Err(unwritten())
    }

    /// The final files that must be there now, by name: those of all shards, with what retry passes changed.
    pub async fn files(&self) -> Result<BTreeMap<String, FileRecord>, IoError> {
        Err(unwritten())
    }

    /// The retry passes begun so far; only the last may be unfinished.
    pub async fn retries(&self) -> Result<Vec<RetryPass>, IoError> {
        Err(unwritten())
    }

    /// Begins the next retry pass over these inputs (rows of `failed/`, described anew) and takes `_SUCCESS` away.
    /// `None` when there are none. The job must be complete, and the pass before finished.
    pub async fn begin_retry(
        &self,
        entries: BoxStream<'static, Result<InputEntry, IoError>>,
        chunk_rows: u32,
        shard_chunks: u32,
    ) -> Result<Option<RetryPass>, IoError> {
        let _ = (entries, chunk_rows, shard_chunks);
        Err(unwritten())
    }

    /// The ledger of a retry pass: its chunks and shards are committed through it like a job's.
    #[must_use]
    pub fn of_retry(&self, pass: &RetryPass) -> Self {
        let _ = pass;
        self.clone()
    }

    /// Takes the rows that were resolved out of `failed/`, replaces those that failed again, and marks the pass done.
    /// All its shards must be committed. Then call [`commit`](Self::commit).
    pub async fn finish_retry(&self, pass: &RetryPass) -> Result<(), IoError> {
        let _ = pass;
        Err(unwritten())
    }
}
