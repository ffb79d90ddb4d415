//! Stage one of a chunk: windows of rows that are fetched, hashed and planned, in input order.

use std::{collections::BTreeMap, sync::atomic::Ordering::Relaxed, time::Instant};

use futures::{FutureExt, StreamExt, stream};
use sha2::{Digest, Sha256};
use slicemill_core::{ErrorClass, RowError, Stage, TaskKind};
use tokio::sync::mpsc;

use crate::{
    Annotator, BusyStage, Fault, FetchError, InputRef, Inspected, PipelineError,
    annotate::{Attempt, millis, panicked},
    batch::{ImageFacts, ReadRow},
    budget::{ByteBudget, ByteGrant},
    inspect_kept,
    progress::Waiting,
    windows::windows,
};

/// Puts rows that arrive in any order back in order, and cuts windows off when they are full. Which rows are in a
/// window depends on their sizes alone, not on the order in which they arrived.
struct Collected {
    bytes_max: u64,
    /// Rows that arrived before one that stands before them; `None` for a row whose outcome is known.
    early: BTreeMap<usize, Option<ReadRow>>,
    /// Position of the next row.
    next: usize,
    window: Vec<ReadRow>,
    held: u64,
}

impl Collected {
    const fn new(bytes_max: u64) -> Self {
        Self { bytes_max, early: BTreeMap::new(), next: 0, window: Vec::new(), held: 0 }
    }

    /// Takes what arrived at `position` in; windows that are full by that.
    fn take(&mut self, position: usize, row: Option<ReadRow>) -> Vec<Vec<ReadRow>> {
        self.early.insert(position, row);
        let mut full = Vec::new();
        while let Some(row) = self.early.remove(&self.next) {
            self.next += 1;
            let Some(row) = row else { continue };
            self.held = self.held.saturating_add(ByteBudget::counted(row.bytes.len() as u64));
            self.window.push(row);
            if self.held >= self.bytes_max {
                self.held = 0;
                full.push(std::mem::take(&mut self.window));
            }
        }
        full
    }
}

impl Annotator {
    /// Sends windows of rows that are read and planned, in input order.
    pub(crate) async fn read_windows(
        &self,
        attempt: &Attempt<'_>,
        out: mpsc::UnboundedSender<Vec<ReadRow>>,
    ) -> Result<(), PipelineError> {
        let window_bytes_max = self.job.limits.window_bytes_max;
        // Counted as the budget counts, or many tiny rows would be more than it holds.
        let sizes = attempt.members.iter().map(|&index| ByteBudget::counted(attempt.rows[index].bytes));
        for window in windows(sizes, window_bytes_max) {
            if !self.read_window(attempt, &attempt.members[window], &out).await? {
                return Ok(()); // The next stage has ended with an error, which is what the caller gets.
            }
        }
        Ok(())
    }

    /// Reads these rows; whether somebody still wants them.
    async fn read_window(
        &self,
        attempt: &Attempt<'_>,
        members: &[usize],
        out: &mpsc::UnboundedSender<Vec<ReadRow>>,
    ) -> Result<bool, PipelineError> {
        let limits = &self.job.limits;
        // Bytes are granted in input order; the reads that have theirs run at the same time.
        let (budget, progress) = (attempt.compressed.clone(), self.job.progress.clone());
        let listed = |(position, &index): (usize, &usize)| (position, index, attempt.rows[index].bytes);
        let listed: Vec<_> = members.iter().enumerate().map(listed).collect();
        let granted = stream::iter(listed).then(move |(position, index, bytes)| {
            let (budget, progress) = (budget.clone(), progress.clone());
            async move {
                let started = Instant::now();
                let grant = budget.acquire(bytes).await;
                progress.waited(Waiting::Fetch, started.elapsed());
                (position, index, grant)
            }
        });
        let reads = granted
            .map(|(position, index, grant)| self.read_row(attempt, index, grant).map(move |read| (position, read)))
            .buffer_unordered(limits.fetch_concurrency as usize);
        let mut reads = std::pin::pin!(reads);
        let mut collected = Collected::new(limits.window_bytes_max);
        while let Some((position, read)) = reads.next().await {
            // Sending never waits: reads that have begun must go on, and what is held is bounded by the budget.
            for full in collected.take(position, read?) {
                if out.send(full).is_err() {
                    return Ok(false);
                }
            }
        }
        Ok(collected.window.is_empty() || out.send(collected.window).is_ok())
    }

    /// Fetches, hashes and plans one row. `None` when its outcome is already known.
    async fn read_row(
        &self,
        attempt: &Attempt<'_>,
        index: usize,
        mut grant: ByteGrant,
    ) -> Result<Option<ReadRow>, PipelineError> {
        let (row, job) = (&attempt.rows[index], &self.job);
        // A row that fails is put down among the outcomes and read no further.
        let failed = |error, attempts| {
            attempt.outcomes.fail(index, row, error, attempts, &job.progress);
            Ok(None)
        };
        if row.prompts.is_empty() && job.spec.task != TaskKind::Encode {
            attempt.outcomes.skip(index, row, "nothing is asked about it".into(), &job.progress);
            return Ok(None);
        }
        let waiting = Instant::now();
        let place = self.fetches.acquire().await;
        job.progress.waited(Waiting::Fetch, waiting.elapsed());
        let started = Instant::now();
        let fetched = attempt.fetch.fetch(row).await;
        let fetch_time = started.elapsed();
        drop(place);
        job.progress.busy(BusyStage::Fetch, fetch_time);
        let fetched = match fetched {
            Ok(fetched) => fetched,
            Err(FetchError::Row { error, attempts }) => return failed(error, attempts),
            Err(FetchError::Fatal(message)) => return Err(PipelineError::Fatal(message)),
        };
        let bytes = fetched.bytes;
        job.progress.bytes_fetched.fetch_add(bytes.len() as u64, Relaxed);
        if bytes.len() as u64 > row.bytes && !row.estimated {
            return failed(grown(row, bytes.len()), fetched.attempts);
        }
        // What is held is counted from now on, not what was expected.
        grant.resize(bytes.len() as u64);
        match self.look_at(attempt, index, bytes.clone()).await {
            Ok(Some(mut facts)) => {
                facts.fetch_ms = millis(fetch_time);
                attempt.count_planned(&facts, &job.progress);
                Ok(Some(ReadRow { facts, bytes, grant }))
            }
            Ok(None) => Ok(None),
            Err(Fault::Row(error)) => failed(error, fetched.attempts),
            Err(Fault::Fatal(message)) => Err(PipelineError::Fatal(message)),
        }
    }

    /// Header, plan, filter and hash on the CPU pool. `None` when the object was skipped.
    async fn look_at(
        &self,
        attempt: &Attempt<'_>,
        index: usize,
        bytes: bytes::Bytes,
    ) -> Result<Option<ImageFacts>, Fault> {
        let (job, rows) = (self.job.clone(), attempt.rows.clone());
        let filter = self.filter.clone();
        let looked = self.host.run(attempt.number, move || {
            let started = Instant::now();
            let (total, row) = (bytes.len() as u64, &rows[index]);
            let inspected = inspect_kept(&bytes, total, row, &job.spec, &*job.factory, filter.as_deref());
            let looked = inspected.and_then(|inspected| match inspected {
                Inspected::Planned { header, row } => Ok(Ok((header, row, sha256_hex(&bytes)))),
                Inspected::Skipped(reason) => Ok(Err(reason)),
                Inspected::NeedMore { bytes: needed } => Err(Fault::Row(header_beyond(needed, bytes.len()))),
            });
            job.progress.busy(BusyStage::Prepare, started.elapsed());
            looked
        });
        let looked = looked.await.map_err(|panic| panicked(panic, Stage::Header))?;
        Ok(match looked? {
            Ok((header, planned, sha256)) => {
                let (fetch_ms, prepare_ms, truncated) = (0.0, 0.0, false);
                Some(ImageFacts { index, header, planned, sha256, fetch_ms, prepare_ms, truncated })
            }
            Err(reason) => {
                attempt.outcomes.skip(index, &attempt.rows[index], reason, &self.job.progress);
                None
            }
        })
    }
}

fn header_beyond(needed: u64, bytes: usize) -> RowError {
    let message = format!("the header asks for {needed} bytes of {bytes}; export the image anew");
    RowError::new(ErrorClass::BadHeader, Stage::Header, message)
}

/// An object that outgrew the memory reserved for it.
fn grown(row: &InputRef, bytes: usize) -> RowError {
    let message = format!(
        "the object has {bytes} bytes, the listing says {}; it changed after the job was frozen: start a new output \
         to take it in",
        row.bytes
    );
    RowError::new(ErrorClass::SourceChanged, Stage::Fetch, message)
}

fn sha256_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digest = Sha256::digest(bytes);
    digest.iter().flat_map(|byte| [byte >> 4, byte & 15]).map(|digit| char::from(DIGITS[usize::from(digit)])).collect()
}
