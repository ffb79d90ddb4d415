//! Retry passes: failed rows run again, and `failed/` replaced.

use std::collections::{BTreeMap, HashMap, HashSet};

use arrow::array::AsArray as _;
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use slicemill_core::FailedRow;

use super::layout::Layout;
use super::shard::blocking;
use super::{Counts, FileRecord, Ledger, RetryPass, Success, json};
use crate::schema::hex;
use crate::sink::digest_of;
use crate::{
    Dataset, DatasetReader, InputEntry, IoError, IoErrorKind, ParquetEncoder, RowGroupLimits, arrow_schema,
    failed_batch, failed_rows, read_parquet,
};

/// What a retry pass makes of `failed/`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Replacement {
    /// Counts of the pass: its inputs, how many of them are content now, failed again, are skipped.
    pass: Counts,
    /// Rows of `failed/` afterwards.
    failed: u64,
    /// The same by class.
    failed_by_class: BTreeMap<String, u64>,
    /// The files that change, by name.
    files: BTreeMap<String, Change>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Change {
    /// SHA-256 before.
    before: String,
    /// The file afterwards; gone when it would have no rows.
    after: Option<FileRecord>,
}

impl Ledger {
    /// The retry passes begun so far; only the last may be unfinished.
    pub async fn retries(&self) -> Result<Vec<RetryPass>, IoError> {
        let mut passes = Vec::new();
        for number in 1.. {
            let layout = Layout::retry(number);
            let Some(generation) = self.find_json(&layout.generation(0)).await? else { break };
            let done = self.output.exists(&layout.done()).await?;
            passes.push(RetryPass { number, generation, done });
        }
        Ok(passes)
    }

    /// Begins the next retry pass over these inputs (rows of `failed/`, described anew) and takes `_SUCCESS` away.
    /// `None` when there are none. The job must be complete, and the pass before finished. An input that is not a row
    /// of `failed/`, or comes twice, is an error before anything is changed.
    pub async fn begin_retry(
        &self,
        entries: BoxStream<'static, Result<InputEntry, IoError>>,
        chunk_rows: u32,
        shard_chunks: u32,
    ) -> Result<Option<RetryPass>, IoError> {
        self.tally().await?;
        let mut entries = entries.peekable();
        if std::pin::Pin::new(&mut entries).peek().await.is_none() {
            return Ok(None);
        }
        let number = self.retries().await?.len();
        let number = u32::try_from(number).unwrap_or(u32::MAX).saturating_add(1);
        let mut failed = self.failed_keys().await?;
        let known = entries.map(move |entry| {
            let entry = entry?;
            if failed.remove(&entry.key) {
                return Ok(entry);
            }
            let message = format!("'{}' cannot be retried: it is not a row of failed/, or was given twice", entry.key);
            Err(IoError::fatal(IoErrorKind::Invalid, message))
        });
        let ledger = Self { layout: Layout::retry(number), ..self.clone() };
        let generation = ledger.freeze(known.boxed(), chunk_rows, shard_chunks).await?;
        Ok(Some(RetryPass { number, generation, done: false }))
    }

    /// The keys of all rows of `failed/`.
    async fn failed_keys(&self) -> Result<HashSet<String>, IoError> {
        let reader = DatasetReader::new(self.output.clone(), Dataset::Failed).with_columns(&["key"]);
        let mut batches = reader.stream();
        let mut keys = HashSet::new();
        while let Some(batch) = batches.try_next().await? {
            if let Some(column) = batch.column_by_name("key").and_then(|column| column.as_string_opt::<i32>()) {
                keys.extend(column.iter().flatten().map(str::to_owned));
            }
        }
        Ok(keys)
    }

    /// The ledger of a retry pass: its inputs, chunks and shards are used through it like a job's. What concerns the
    /// whole output (`commit`, `files`, `retries`, `begin_retry`, `finish_retry`) stays with the job's ledger.
    #[must_use]
    pub fn of_retry(&self, pass: &RetryPass) -> Self {
        Self { layout: Layout::retry(pass.number), ..self.clone() }
    }

    /// Takes the rows that were resolved out of `failed/`, replaces those that failed again (their attempts add up),
    /// and marks the pass done. All its shards must be committed. Then call [`commit`](Self::commit).
    pub async fn finish_retry(&self, pass: &RetryPass) -> Result<(), IoError> {
        let ledger = self.of_retry(pass);
        let layout = &ledger.layout;
        if !self.output.exists(&layout.done()).await? {
            let plan = match self.find_json(&layout.replacement_plan()).await? {
                Some(plan) => plan,
                None => self.plan_replacement(pass, &ledger).await?,
            };
            for (name, change) in &plan.files {
                self.replace(layout, name, change).await?;
            }
            self.output.put_if_absent(&layout.done(), json(&plan)?).await?;
        }
        ledger.clear_leftovers().await
    }

    /// Writes the new files of `failed/` beside the old ones, then the plan.
    async fn plan_replacement(&self, pass: &RetryPass, ledger: &Self) -> Result<Replacement, IoError> {
        let layout = &ledger.layout;
        let state = ledger.state().await?;
        let mut plan = Replacement {
            pass: Counts::default(),
            failed: 0,
            failed_by_class: BTreeMap::new(),
            files: BTreeMap::new(),
        };
        let mut again = HashMap::new();
        for shard in pass.generation.shards() {
            let what = format!("shard {shard} of retry pass {}", pass.number);
            let entry = state.shards.get(&shard).ok_or_else(|| self.incomplete(&what))?;
            plan.pass.add(&entry.counts);
            if let Some(file) = entry.files.get(Dataset::Failed.name()) {
                let rows = self.failed_of(file).await?;
                again.extend(rows.into_iter().map(|row| (row.key.clone(), row)));
            }
        }
        let retried: HashSet<String> =
            ledger.inputs(&pass.generation).await?.stream().map_ok(|entry| entry.key).try_collect().await?;
        let mut before = 0;
        for (name, file) in self.files().await? {
            if !name.starts_with(&format!("{}/", Dataset::Failed.name())) {
                continue;
            }
            before += file.rows;
            let rows = self.failed_of(&file).await?;
            let kept = merge(rows.clone(), &retried, &again);
            plan.failed += kept.len() as u64;
            for row in &kept {
                *plan.failed_by_class.entry(row.error.class.as_str().to_owned()).or_default() += 1;
            }
            if kept != rows {
                let after = self.write_replacement(layout, &name, kept).await?;
                plan.files.insert(name, Change { before: file.sha256, after });
            }
        }
        if plan.failed + plan.pass.inputs != before + plan.pass.failed {
            let message =
                format!("the inputs of retry pass {} are not rows of {}/failed", pass.number, self.output.url());
            return Err(IoError::fatal(IoErrorKind::Invalid, message));
        }
        self.output.put_if_absent(&layout.replacement_plan(), json(&plan)?).await?;
        Ok(plan)
    }

    /// The rows of a file of failed rows, after a check that it is the one that the ledger knows.
    async fn failed_of(&self, file: &FileRecord) -> Result<Vec<FailedRow>, IoError> {
        let (bytes, shown) = (self.output.get(&file.name).await?, self.output.show(&file.name));
        if hex(&Sha256::digest(&bytes)) != file.sha256 {
            let message = format!("{shown} is damaged: its SHA-256 is not the one in the ledger");
            return Err(IoError::fatal(IoErrorKind::Corrupt, message));
        }
        blocking(move || {
            let rows = read_parquet(&shown, bytes)?.iter().map(failed_rows).collect::<Result<Vec<_>, _>>()?;
            Ok(rows.into_iter().flatten().collect())
        })
        .await
    }

    async fn write_replacement(
        &self,
        layout: &Layout,
        name: &str,
        rows: Vec<FailedRow>,
    ) -> Result<Option<FileRecord>, IoError> {
        if rows.is_empty() {
            return Ok(None);
        }
        let count = rows.len() as u64;
        let metadata = self.file_metadata(Dataset::Failed);
        let schema = arrow_schema(Dataset::Failed, &self.spec);
        let spec = self.spec.clone();
        let bytes: Bytes = blocking(move || {
            let batch: RecordBatch = failed_batch(&spec, &rows)?;
            let mut encoder = ParquetEncoder::new(schema, &metadata, RowGroupLimits::default())?;
            encoder.push(&batch)?;
            encoder.finish()
        })
        .await?;
        let sha256 = hex(&Sha256::digest(&bytes));
        let record = FileRecord { name: name.to_owned(), rows: count, bytes: bytes.len() as u64, sha256 };
        self.output.put(&layout.replacement(name), bytes).await?;
        Ok(Some(record))
    }

    /// Puts one file of `failed/` into its new state, which it may have already.
    async fn replace(&self, layout: &Layout, name: &str, change: &Change) -> Result<(), IoError> {
        let now = match self.output.exists(name).await? {
            true => Some(digest_of(&self.output, name).await?),
            false => None,
        };
        if now.as_ref() == change.after.as_ref().map(|after| &after.sha256) {
            return Ok(());
        }
        if now.as_ref() != Some(&change.before) {
            return Err(self.output.conflict(name));
        }
        match change.after {
            Some(_) => self.output.put(name, self.output.get(&layout.replacement(name)).await?).await,
            None => self.output.delete(name).await,
        }
    }

    /// Adds finished retry passes to the counts; an error while one is not finished.
    pub(super) async fn add_retries(&self, success: &mut Success) -> Result<(), IoError> {
        for pass in self.retries().await? {
            if !pass.done {
                return Err(self.incomplete(&format!("retry pass {}", pass.number)));
            }
            let done: Replacement = self.read_json(&Layout::retry(pass.number).done()).await?;
            let inputs = success.counts.inputs;
            success.counts.add(&done.pass);
            success.counts.inputs = inputs;
            success.counts.failed = done.failed;
            success.counts.failed_by_class = done.failed_by_class;
            success.retries += 1;
        }
        Ok(())
    }

    /// Applies what finished retry passes changed to the list of final files.
    pub(super) async fn apply_retries(&self, files: &mut BTreeMap<String, FileRecord>) -> Result<(), IoError> {
        for pass in self.retries().await?.iter().filter(|pass| pass.done) {
            let ledger = self.of_retry(pass);
            for shard in ledger.state().await?.shards.into_values() {
                for (dataset, file) in shard.files {
                    if dataset != Dataset::Failed.name() {
                        files.insert(file.name.clone(), file);
                    }
                }
            }
            let done: Replacement = self.read_json(&ledger.layout.done()).await?;
            for (name, change) in done.files {
                match change.after {
                    Some(after) => files.insert(name, after),
                    None => files.remove(&name),
                };
            }
        }
        Ok(())
    }
}

/// The rows that stay in a file of `failed/`: those that were not tried again, and those that failed again.
fn merge(rows: Vec<FailedRow>, retried: &HashSet<String>, again: &HashMap<String, FailedRow>) -> Vec<FailedRow> {
    rows.into_iter()
        .filter_map(|row| {
            if !retried.contains(&row.key) {
                return Some(row);
            }
            let newer = again.get(&row.key)?.clone();
            Some(FailedRow { attempts: row.attempts.saturating_add(newer.attempts), ..newer })
        })
        .collect()
}
