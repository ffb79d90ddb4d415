//! The ledger: exactly once on a bare object store.
//!
//! # Concept
//!
//! A job's inputs are frozen as a list and divided by row number: a *chunk* is the unit of resume, a *shard* (many
//! chunks) is the unit of output files. Neither depends on devices, batches or processes. Work becomes part of the
//! output by one atomic step, the writing of a small JSON object that was not there before:
//!
//! ```text
//!  OUT/_slicemill/job.json                              the job, once
//!  OUT/_slicemill/inputs-<generation>.parquet, .json    frozen inputs; the record (last) makes them stand
//!  OUT/_slicemill/chunks/<shard>/<chunk>.<dataset>.<digest>.parquet      staged rows
//!  OUT/_slicemill/ledger/<shard>/<chunk>.json           (last) makes a chunk stand
//!  OUT/<dataset>/part-<shard>.parquet                   final files, assembled from the staged ones in chunk order
//!  OUT/_slicemill/ledger/<shard>/shard.json             (last) makes a shard stand; staged files and chunk entries go
//!  OUT/_SUCCESS                                         (last) counts of everything
//! ```
//!
//! # Why nothing is lost or doubled
//!
//! - Every object is written whole or not at all, and every step can be repeated: staged files have their digest in
//!   the name; entries are put only if absent, and one that is there must say the same; final files are a function of
//!   the staged files that the chunk entries name by digest, so that writing them again gives the same bytes.
//! - A process killed between two steps leaves staged files without entry (written again, or removed with their
//!   shard), or final files without `shard.json` (compared and accepted), or staged files of a shard that stands
//!   (removed by [`Ledger::recover`]). Timings are the exception: they differ from run to run, and are not content.
//!   Until `shard.json` stands their file may be replaced.
//! - State is O(chunks of unfinished shards + shards). There is no database and no service. On a local output a lock
//!   keeps a second process out, on other stores a lease; where one does not know that it lost its lease, its
//!   entries are refused or the same.
//!
//! # Retry
//!
//! Output files do not change once their shard stands, with one exception: `failed/`. A retry pass is a small job of
//! its own inside the output. Its inputs are rows of `failed/`, frozen under `_slicemill/retry/<pass>/`; its chunks and
//! shards go through the same steps; what succeeds becomes `captions/part-r<pass>-<shard>.parquet`, what turns out not
//! to be an image `skipped/part-r…`. Then the files of `failed/` are replaced:
//!
//! ```text
//!  _slicemill/retry/<pass>/replacement/part-….parquet   the new files of failed/, complete
//!  _slicemill/retry/<pass>/replacement.json             (last) for every file: digest before, digest after or "gone"
//!  failed/part-….parquet                                replaced or deleted one by one; has one digest or the other
//!  _slicemill/retry/<pass>/done.json                    (last) makes the pass stand
//! ```
//!
//! From the beginning of a pass to its end a row may stand in both `failed/` and the content; therefore `_SUCCESS` is
//! taken away first and written again last. The same happens when a generation of inputs is added.
//!
//! # Limits
//!
//! Nothing is flushed with `fsync`. After a power loss, entries and staged files cut short are found and redone by
//! [`Ledger::recover`]; a final file cut short is found by `slicemill verify`. A retry pass holds the keys of its rows
//! in memory.

mod entry;
mod generation;
mod layout;
mod recover;
mod retry;
mod shard;
mod stage;

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use entry::{ChunkEntry, Counts, FileRecord, FlopSums, Generation, LedgerState, RetryPass, ShardEntry, Success};
pub use generation::NewInputs;
pub use stage::{ChunkStager, StagedChunk};

use crate::sink::PART_BYTES;
use crate::{ContentSpec, Dataset, IoError, IoErrorKind, OutputStore};
use layout::{JOB, Layout, LedgerName, SUCCESS};

/// Ledger entries read at the same time.
const READS_IN_FLIGHT: usize = 16;

/// The ledger of one output, or of one retry pass in it. Cheap to clone. No state in memory: every call asks the
/// store, so any number of tasks and processes may hold one.
#[derive(Debug, Clone)]
pub struct Ledger {
    output: OutputStore,
    layout: Layout,
    spec: ContentSpec,
    metadata: Vec<(String, String)>,
    part_bytes: usize,
}

impl Ledger {
    /// The ledger of `output`. `metadata` (job fingerprint and the like, the same for every run of the job) goes into
    /// every final Parquet file.
    pub fn new(output: OutputStore, spec: ContentSpec, metadata: Vec<(String, String)>) -> Self {
        Self { output, layout: Layout::job(), spec, metadata, part_bytes: PART_BYTES }
    }

    /// The output.
    pub const fn output(&self) -> &OutputStore {
        &self.output
    }

    /// The content schema's parameters.
    pub const fn spec(&self) -> &ContentSpec {
        &self.spec
    }

    /// Writes `_slicemill/job.json`; accepted when it is there with the same bytes, `Conflict` with others.
    pub async fn write_job(&self, json: Bytes) -> Result<(), IoError> {
        self.output.put_if_absent(JOB, json).await
    }

    /// Reads `_slicemill/job.json`, `None` when there is none. Needs no spec, so that commands which read an output
    /// can find out what it is.
    pub async fn read_job(output: &OutputStore) -> Result<Option<Bytes>, IoError> {
        output.find(JOB).await
    }

    /// All committed shards, and the committed chunks of the others. Other processes may commit meanwhile: what stood
    /// when this was called is in it.
    pub async fn state(&self) -> Result<LedgerState, IoError> {
        /// Shards that other processes finish while their chunks' entries are read.
        const LOOKS: u32 = 20;
        let mut look = self.state_once().await?;
        for _ in 0..LOOKS {
            if let Some(state) = look {
                return Ok(state);
            }
            look = self.state_once().await?;
        }
        look.ok_or_else(|| self.incomplete("the ledger, which keeps changing,"))
    }

    /// `None` when an entry was removed between the listing and the reading, because its shard was finished.
    async fn state_once(&self) -> Result<Option<LedgerState>, IoError> {
        let names = self.entry_names(&self.layout.ledger_root()).await?;
        let shards = names.iter().filter_map(|name| match name {
            LedgerName::Shard(shard) => Some(*shard),
            LedgerName::Chunk(..) => None,
        });
        // Collected, because a borrowing iterator held over an await would keep the future from being sent.
        let shards: BTreeMap<u32, ShardEntry> = futures::stream::iter(shards.collect::<Vec<_>>())
            .map(|shard| async move { Ok((shard, self.read_json(&self.layout.shard_entry(shard)).await?)) })
            .buffered(READS_IN_FLIGHT)
            .try_collect()
            .await?;
        let chunks = names.into_iter().filter_map(|name| match name {
            LedgerName::Chunk(shard, chunk) if !shards.contains_key(&shard) => Some((shard, chunk)),
            _ => None,
        });
        let chunks: Vec<_> = chunks.collect();
        let listed = chunks.len();
        let chunks = self.read_chunks(chunks).await?;
        Ok((chunks.len() == listed).then_some(LedgerState { shards, chunks }))
    }

    /// The committed chunks of a shard that is not committed.
    pub async fn committed_chunks(&self, shard: u32) -> Result<BTreeMap<u32, ChunkEntry>, IoError> {
        let names = self.entry_names(&self.layout.ledger_folder(shard)).await?;
        let chunks = names.into_iter().filter_map(|name| match name {
            LedgerName::Chunk(shard, chunk) => Some((shard, chunk)),
            LedgerName::Shard(_) => None,
        });
        let chunks = self.read_chunks(chunks.collect()).await?;
        Ok(chunks.into_iter().map(|((_, chunk), entry)| (chunk, entry)).collect())
    }

    /// The entry of a committed shard.
    pub async fn committed_shard(&self, shard: u32) -> Result<Option<ShardEntry>, IoError> {
        self.find_json(&self.layout.shard_entry(shard)).await
    }

    async fn entry_names(&self, folder: &str) -> Result<Vec<LedgerName>, IoError> {
        let objects = self.output.list(folder).await?;
        Ok(objects.iter().filter_map(|object| LedgerName::parse(object.location.as_ref())).collect())
    }

    /// The entries that are there.
    async fn read_chunks(&self, chunks: Vec<(u32, u32)>) -> Result<BTreeMap<(u32, u32), ChunkEntry>, IoError> {
        let entries: Vec<Option<_>> = futures::stream::iter(chunks)
            .map(|(shard, chunk)| async move {
                let entry = self.find_json(&self.layout.chunk_entry(shard, chunk)).await?;
                Ok(entry.map(|entry| ((shard, chunk), entry)))
            })
            .buffered(READS_IN_FLIGHT)
            .try_collect()
            .await?;
        Ok(entries.into_iter().flatten().collect())
    }

    /// An empty chunk to be filled.
    pub fn stager(&self, shard: u32, chunk: u32) -> ChunkStager {
        ChunkStager::new(self.spec.clone(), shard, chunk)
    }

    /// Writes the staged files, then the chunk's entry. Returns the entry that stands, which is an earlier one when
    /// the chunk was committed before with equal content; other content is a `Conflict`.
    pub async fn commit_chunk(&self, staged: StagedChunk) -> Result<ChunkEntry, IoError> {
        let StagedChunk { shard, chunk, counts, files } = staged;
        let name = self.layout.chunk_entry(shard, chunk);
        if !counts.conserved() {
            let message = format!("{}: rows are not conserved: {counts:?}", self.output.show(&name));
            return Err(IoError::fatal(IoErrorKind::Invalid, message));
        }
        // All at once: on a store that is far away, each would be a wait of its own before the next chunk. All are waited
        // for when one fails, so that nothing is written any more once the error is told.
        let writes = files.into_iter().map(|(dataset, file)| {
            let (name, output) = (self.layout.staged(shard, chunk, dataset, &file.sha256), self.output.clone());
            let record = FileRecord { name, rows: file.rows, bytes: file.bytes.len() as u64, sha256: file.sha256 };
            async move {
                output.put(&record.name, file.bytes).await?;
                Ok::<_, IoError>((dataset.name().to_owned(), record))
            }
        });
        let files = futures::future::join_all(writes).await.into_iter().collect::<Result<_, IoError>>()?;
        let entry = ChunkEntry { shard, chunk, counts, files };
        match self.output.put_if_absent(&name, json(&entry)?).await {
            Ok(()) => Ok(entry),
            Err(error) if error.kind == IoErrorKind::Conflict => {
                let standing: ChunkEntry = self.read_json(&name).await?;
                if standing.same_content(&entry) { Ok(standing) } else { Err(error) }
            }
            Err(error) => Err(error),
        }
    }

    /// Writes `_SUCCESS` when all shards of all generations and all retry passes are complete. Writing it again is a
    /// no-op.
    pub async fn commit(&self) -> Result<Success, IoError> {
        let success = self.tally().await?;
        if !success.counts.conserved() {
            let message = format!("{}: rows are not conserved: {:?}", self.output.url(), success.counts);
            return Err(IoError::fatal(IoErrorKind::Corrupt, message));
        }
        self.output.put_if_absent(SUCCESS, json(&success)?).await?;
        Ok(success)
    }

    /// Counts over everything; an error while something is not committed.
    async fn tally(&self) -> Result<Success, IoError> {
        let generations = self.generations().await?;
        let state = self.state().await?;
        let mut success = Success { generations: 0, retries: 0, shards: 0, counts: Counts::default() };
        for generation in &generations {
            success.generations += 1;
            for shard in generation.shards() {
                let entry = state.shards.get(&shard).ok_or_else(|| self.incomplete(&format!("shard {shard}")))?;
                success.shards += 1;
                success.counts.add(&entry.counts);
            }
        }
        let rows: u64 = generations.iter().map(|generation| generation.rows).sum();
        if rows != success.counts.inputs {
            let message = format!("{rows} inputs were frozen, {} were worked on", success.counts.inputs);
            return Err(IoError::fatal(IoErrorKind::Corrupt, message));
        }
        self.add_retries(&mut success).await?;
        Ok(success)
    }

    fn incomplete(&self, what: &str) -> IoError {
        let message = format!("{what} of {} is not complete; run the job again to go on", self.output.url());
        IoError::fatal(IoErrorKind::Invalid, message)
    }

    /// `_SUCCESS`, `None` while the output is incomplete.
    pub async fn success(output: &OutputStore) -> Result<Option<Success>, IoError> {
        match output.find(SUCCESS).await? {
            Some(bytes) => parse(&output.show(SUCCESS), &bytes).map(Some),
            None => Ok(None),
        }
    }

    /// The final files that must be there now, by name: those of all shards, with what retry passes changed.
    pub async fn files(&self) -> Result<BTreeMap<String, FileRecord>, IoError> {
        let state = self.state().await?;
        let files = state.shards.into_values().flat_map(|shard| shard.files.into_values());
        let mut files = files.map(|file| (file.name.clone(), file)).collect();
        self.apply_retries(&mut files).await?;
        Ok(files)
    }

    async fn read_json<T: DeserializeOwned>(&self, name: &str) -> Result<T, IoError> {
        parse(&self.output.show(name), &self.output.get(name).await?)
    }

    async fn find_json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, IoError> {
        match self.output.find(name).await? {
            Some(bytes) => parse(&self.output.show(name), &bytes).map(Some),
            None => Ok(None),
        }
    }
}

/// Canonical JSON: the same value, the same bytes.
fn json<T: Serialize>(value: &T) -> Result<Bytes, IoError> {
    let mut bytes = serde_json::to_vec_pretty(value)
        .map_err(|error| IoError::fatal(IoErrorKind::Invalid, format!("cannot write JSON: {error}")).because(error))?;
    bytes.push(b'\n');
    Ok(bytes.into())
}

fn parse<T: DeserializeOwned>(shown: &str, bytes: &[u8]) -> Result<T, IoError> {
    serde_json::from_slice(bytes).map_err(|error| {
        let message = format!("{shown} is not the record it should be: {error}");
        IoError::fatal(IoErrorKind::Corrupt, message).because(error)
    })
}

/// The datasets a shard may have, content first.
fn datasets(spec: &ContentSpec) -> [Dataset; 4] {
    [Dataset::of_task(spec.task), Dataset::Failed, Dataset::Skipped, Dataset::Timings]
}

#[cfg(test)]
mod tests;
