//! Assembling the final files of a shard.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::ObjectMeta;
use sha2::{Digest as _, Sha256};

use super::{ChunkEntry, Counts, FileRecord, Ledger, READS_IN_FLIGHT, ShardEntry, datasets, json};
use crate::schema::{hex, schema_metadata};
use crate::sink::{Existing, ObjectSink};
use crate::{Dataset, IoError, IoErrorKind, ParquetEncoder, RowGroupLimits, arrow_schema, read_parquet};

/// Bytes of staged files that are read ahead while a shard is assembled.
const READ_AHEAD_BYTES: u64 = 32 << 20;

impl Ledger {
    /// Assembles the final files of a shard from its `chunks` committed chunks, writes its entry, deletes the staged
    /// files. A committed shard is returned as it is.
    pub async fn finish_shard(&self, shard: u32, chunks: u32) -> Result<ShardEntry, IoError> {
        if let Some(entry) = self.committed_shard(shard).await? {
            self.clear_staged(shard).await?;
            return Ok(entry);
        }
        let entries = self.committed_chunks(shard).await?;
        let missing = (0..chunks).find(|chunk| !entries.contains_key(chunk));
        if let Some(chunk) = missing {
            return Err(self.incomplete(&format!("chunk {chunk} of shard {shard}")));
        }
        if entries.len() as u64 != u64::from(chunks) {
            let message = format!("shard {shard} of {} has more than {chunks} chunks", self.output.url());
            return Err(IoError::fatal(IoErrorKind::Corrupt, message));
        }
        let mut counts = Counts::default();
        entries.values().for_each(|entry| counts.add(&entry.counts));
        let mut files = BTreeMap::new();
        for dataset in datasets(&self.spec) {
            if let Some(file) = self.assemble(shard, dataset, entries.values()).await? {
                files.insert(dataset.name().to_owned(), file);
            }
        }
        let chunks = entries.into_values().map(|entry| entry.counts).collect();
        let entry = ShardEntry { shard, counts, files, chunks };
        self.output.put_if_absent(&self.layout.shard_entry(shard), json(&entry)?).await?;
        self.clear_staged(shard).await?;
        Ok(entry)
    }

    /// Writes one final file. [`READ_AHEAD_BYTES`] of staged files, but at least one of them, and one row group are in
    /// memory at a time. `None` without rows.
    async fn assemble(
        &self,
        shard: u32,
        dataset: Dataset,
        chunks: impl Iterator<Item = &ChunkEntry>,
    ) -> Result<Option<FileRecord>, IoError> {
        let staged: Vec<FileRecord> = chunks.filter_map(|chunk| chunk.files.get(dataset.name()).cloned()).collect();
        let rows: u64 = staged.iter().map(|file| file.rows).sum();
        if rows == 0 {
            return Ok(None);
        }
        let name = self.layout.part(dataset, shard);
        let schema = arrow_schema(dataset, &self.spec);
        let mut encoder = ParquetEncoder::new(schema, &self.file_metadata(dataset), RowGroupLimits::default())?;
        let mut sink = ObjectSink::new(self.output.clone(), name.clone(), self.part_bytes);
        let largest = staged.iter().map(|file| file.bytes).max().unwrap_or(0).max(1);
        let ahead = usize::try_from(READ_AHEAD_BYTES / largest).unwrap_or(READS_IN_FLIGHT).clamp(1, READS_IN_FLIGHT);
        let reads = futures::stream::iter(staged).map(|file| {
            let output = self.output.clone();
            async move { Ok::<_, IoError>((output.get(&file.name).await?, file)) }
        });
        let mut reads = reads.buffered(ahead);
        while let Some((bytes, record)) = reads.try_next().await? {
            let shown = self.output.show(&record.name);
            encoder = blocking(move || append(encoder, &record, &shown, bytes)).await?;
            sink.write(encoder.take_bytes()).await?;
        }
        let written = encoder.rows();
        sink.write(blocking(move || encoder.finish()).await?).await?;
        if written != rows {
            let message = format!("{}: {written} rows in place of {rows}", self.output.show(&name));
            return Err(IoError::fatal(IoErrorKind::Corrupt, message));
        }
        let existing = if dataset == Dataset::Timings { Existing::Replace } else { Existing::MustBeEqual };
        let (bytes, sha256) = sink.finish(existing).await?;
        Ok(Some(FileRecord { name, rows, bytes, sha256 }))
    }

    /// Metadata of final files: what the schema says, then what the job says.
    pub(super) fn file_metadata(&self, dataset: Dataset) -> Vec<(String, String)> {
        let mut metadata = schema_metadata(dataset, &self.spec);
        metadata.extend(self.metadata.iter().cloned());
        metadata
    }

    /// Deletes what a committed shard no longer needs: staged files, then chunk entries.
    pub(super) async fn clear_staged(&self, shard: u32) -> Result<(), IoError> {
        self.output.delete_all(names(self.output.list(&self.layout.staged_folder(shard)).await?)).await?;
        let mut chunks = names(self.output.list(&self.layout.ledger_folder(shard)).await?);
        chunks.retain(|name| *name != self.layout.shard_entry(shard));
        self.output.delete_all(chunks).await
    }
}

/// Names of objects.
pub(super) fn names(objects: Vec<ObjectMeta>) -> Vec<String> {
    objects.into_iter().map(|object| object.location.into()).collect()
}

/// Adds a staged file's rows, after a check that its bytes are those that the ledger names.
fn append(
    mut encoder: ParquetEncoder,
    record: &FileRecord,
    shown: &str,
    bytes: Bytes,
) -> Result<ParquetEncoder, IoError> {
    if hex(&Sha256::digest(&bytes)) != record.sha256 {
        let message = format!("{shown} is damaged: its SHA-256 is not the one in the ledger");
        return Err(IoError::fatal(IoErrorKind::Corrupt, message));
    }
    for batch in read_parquet(shown, bytes)? {
        encoder.push(&batch)?;
    }
    Ok(encoder)
}

/// Runs CPU work beside the asynchronous tasks.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, IoError> + Send + 'static,
) -> Result<T, IoError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        IoError::fatal(IoErrorKind::Failed, format!("encoding an output file broke off: {error}")).because(error)
    })?
}
