//! Counters of a run, cheap enough to touch per row: relaxed atomics; a lock only for rows that fail.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use slicemill_core::{ErrorClass, FailedRow, RowOutcome};
use tokio::sync::Semaphore;

use crate::{FailureLimit, LostHow, PipelineError, budget::ByteGauge};

mod snapshot;

pub use snapshot::{FailedByClass, ProgressSnapshot};

/// A stage that can limit a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BusyStage {
    /// Reading objects.
    Fetch,
    /// Headers, plans, decoding, slicing and normalising on the CPU pool.
    Prepare,
    /// Vision tower and projector.
    Encode,
    /// Prefill and decode.
    Generate,
}

impl BusyStage {
    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fetch => "fetch",
            Self::Prepare => "prepare",
            Self::Encode => "encode",
            Self::Generate => "generate",
        }
    }
}

impl fmt::Display for BusyStage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a stage waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waiting {
    /// Reads wait for memory, that is for the stages behind them, or for a place among the reads.
    Fetch,
    /// The host stage waits for memory for prepared bytes or decoded pixels, that is for the devices or the CPU pool.
    Prepare,
    /// A chunk that has a batch ready waits for a device.
    Lease,
    /// A leased device waits for a batch.
    Device,
}

/// Examples of failed rows that are kept for each class.
const EXAMPLES_PER_CLASS: usize = 3;
/// Longest example in characters.
const EXAMPLE_CHARS_MAX: usize = 300;

/// Ends what waits for it.
#[derive(Debug)]
struct Alarm(Semaphore);

impl Default for Alarm {
    fn default() -> Self {
        Self(Semaphore::new(0))
    }
}

/// Counters of a run, shared by all chunks in flight. Rows that are run again, after their device's worker was lost,
/// are planned once; what was encoded and generated for them counts each time.
#[derive(Debug, Default)]
pub struct Progress {
    images_ok: AtomicU64,
    images_failed: AtomicU64,
    images_skipped: AtomicU64,
    pub(crate) images_planned: AtomicU64,
    pub(crate) views_planned: AtomicU64,
    pub(crate) views_encoded: AtomicU64,
    pub(crate) visual_tokens: AtomicU64,
    pub(crate) output_tokens: AtomicU64,
    pub(crate) bytes_fetched: AtomicU64,
    pub(crate) oom_halvings: AtomicU64,
    pub(crate) device_retries: AtomicU64,
    pub(crate) rows_rerun: AtomicU64,
    worker_deaths: AtomicU64,
    worker_hangs: AtomicU64,
    worker_restarts: AtomicU64,
    busy_us: [AtomicU64; 4],
    waiting_us: [AtomicU64; 4],
    workers: [AtomicU32; 3],
    gauge: Arc<ByteGauge>,
    failed_by_class: [AtomicU64; ErrorClass::ALL.len()],
    examples: Mutex<BTreeMap<ErrorClass, Vec<String>>>,
    failure_limit: OnceLock<FailureLimit>,
    /// Why the run has to stop.
    too_many: OnceLock<String>,
    alarm: Alarm,
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl Progress {
    /// Adds the time one worker of `stage` was busy.
    pub(crate) fn busy(&self, stage: BusyStage, time: Duration) {
        self.busy_us[stage as usize].fetch_add(micros(time), Relaxed);
    }

    /// Adds the time something waited.
    pub(crate) fn waited(&self, what: Waiting, time: Duration) {
        self.waiting_us[what as usize].fetch_add(micros(time), Relaxed);
    }

    /// Workers of fetch, CPU pool and devices, for the limiting stage.
    pub(crate) fn set_workers(&self, fetches: u32, threads: u32, devices: u32) {
        for (counter, value) in self.workers.iter().zip([fetches, threads, devices]) {
            counter.store(value, Relaxed);
        }
    }

    /// How many rows may fail. The first limit counts.
    pub(crate) fn set_failure_limit(&self, limit: FailureLimit) {
        let _ = self.failure_limit.set(limit);
    }

    /// The gauge of all chunks' bytes.
    pub(crate) const fn gauge(&self) -> &Arc<ByteGauge> {
        &self.gauge
    }

    pub(crate) fn worker_lost(&self, how: &LostHow) {
        match how {
            LostHow::Died { .. } => self.worker_deaths.fetch_add(1, Relaxed),
            LostHow::Hung { .. } => self.worker_hangs.fetch_add(1, Relaxed),
        };
    }

    pub(crate) fn worker_restarted(&self) {
        self.worker_restarts.fetch_add(1, Relaxed);
    }

    /// Counts what became of a row, and raises the alarm when too many failed.
    pub(crate) fn outcome(&self, outcome: &RowOutcome) {
        match outcome {
            RowOutcome::Ok { .. } => {
                self.images_ok.fetch_add(1, Relaxed);
            }
            RowOutcome::Skipped(_) => {
                self.images_skipped.fetch_add(1, Relaxed);
            }
            RowOutcome::Failed(failed) => {
                self.images_failed.fetch_add(1, Relaxed);
                self.note_failure(failed);
            }
        }
        self.check_failures();
    }

    fn note_failure(&self, failed: &FailedRow) {
        let class = failed.error.class;
        if let Some(count) = snapshot::class_number(class).and_then(|number| self.failed_by_class.get(number)) {
            count.fetch_add(1, Relaxed);
        }
        let mut examples = self.examples.lock().unwrap_or_else(PoisonError::into_inner);
        let of_class = examples.entry(class).or_default();
        if of_class.len() < EXAMPLES_PER_CLASS {
            let example = format!("{}: {}", failed.key, failed.error);
            of_class.push(example.chars().take(EXAMPLE_CHARS_MAX).collect());
        }
    }

    fn check_failures(&self) {
        let Some(limit) = self.failure_limit.get().filter(|limit| **limit != FailureLimit::default()) else { return };
        let failed = self.images_failed.load(Relaxed);
        let done = failed + self.images_ok.load(Relaxed);
        let Some(passed) = limit.passed(failed, done) else { return };
        self.too_many.get_or_init(|| self.too_many_message(&passed, failed, done));
        self.alarm.0.close();
    }

    /// What is going wrong: counts by class, and one example for each of the classes that failed most.
    fn too_many_message(&self, passed: &str, failed: u64, done: u64) -> String {
        let mut counts: Vec<(ErrorClass, u64)> = self.snapshot().failed_by_class.iter().collect();
        counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let classes: Vec<String> = counts.iter().map(|(class, count)| format!("{class} {count}")).collect();
        let examples = self.failure_examples();
        // The first of each class, then the second of each, three in all.
        let by_turn = (0..EXAMPLES_PER_CLASS).flat_map(|turn| {
            let examples = &examples;
            counts.iter().filter_map(move |(class, _)| examples.get(class)?.get(turn))
        });
        let shown: Vec<&str> = by_turn.take(3).map(String::as_str).collect();
        format!(
            "{passed}: {failed} of {done} ({}). For example: {}. What was finished is kept: fix the cause or raise \
             --max-failed, and start the run again to resume",
            classes.join(", "),
            shown.join("; ")
        )
    }

    /// Up to three failed rows of every class: key, stage, class and message.
    pub fn failure_examples(&self) -> BTreeMap<ErrorClass, Vec<String>> {
        self.examples.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The error of a run in which too many rows failed.
    pub(crate) fn too_many_failed(&self) -> Result<(), PipelineError> {
        match self.too_many.get() {
            Some(message) => Err(PipelineError::TooManyFailed { message: message.clone() }),
            None => Ok(()),
        }
    }

    /// Waits until too many rows have failed; for ever if that does not happen.
    pub(crate) async fn until_too_many_failed(&self) {
        // No permit is ever added, so this ends when the semaphore is closed.
        let _ = self.alarm.0.acquire().await;
    }
}
