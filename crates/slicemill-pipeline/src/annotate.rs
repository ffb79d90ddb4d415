//! The dataflow of a chunk: three stages that run at the same time, joined in one future.
//!
//! ```text
//!   read: windows of rows ─▶ fetch ─▶ header, plan, filter  (compressed bytes, row by row)
//!     │ channel, bounded by the compressed bytes
//!   prepare: batches ─▶ decode, slice, normalise            (prepared bytes, batch by batch)
//!     │ channel, bounded by the prepared bytes
//!   device: lease ─▶ session on the device thread           (one per attempt)
//! ```
//!
//! There are no tasks: dropping the future drops all stages, the device session sees that nobody waits, frees what it
//! holds on the device, and gives the device back.
//!
//! An attempt whose device worker died or hung leaves rows without an outcome. They go through all three stages again,
//! in smaller groups ([`recover`](crate::recover)), in the slot of their chunk. Rows that have an outcome keep it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use futures::{
    future::{self, Either},
    pin_mut,
};
use slicemill_core::{BatchLimits, ErrorClass, RowError, RowOutcome, Stage};
use tokio::sync::{Semaphore, mpsc};

use crate::{
    AnnotateSpec, BackendFactory, DevicePool, Fault, Fetch, HostPool, InputRef, PipelineError, Progress, RowFilter,
    RuntimeLimits, Supervision, WorkLost, WorkerLost,
    batch::{ImageFacts, PreparedBatch},
    budget::{ByteBudget, ByteGauge},
    host::HostPanic,
    outcomes::Outcomes,
    progress::Waiting,
    recover::{Groups, lost_error},
    session::Session,
};

/// What all stages of all chunks share.
pub(crate) struct Job {
    pub(crate) factory: Arc<dyn BackendFactory>,
    pub(crate) spec: AnnotateSpec,
    pub(crate) limits: RuntimeLimits,
    pub(crate) progress: Arc<Progress>,
}

/// Annotates chunks of rows on a pool of devices.
pub struct Annotator {
    pub(crate) job: Arc<Job>,
    pub(crate) batch_limits: BatchLimits,
    pool: Arc<DevicePool>,
    pub(crate) host: Arc<HostPool>,
    pub(crate) filter: Option<Arc<dyn RowFilter>>,
    /// Chunks in flight: one per device and one that gets ready.
    slots: Semaphore,
    pub(crate) fetches: Semaphore,
    pub(crate) decode: ByteBudget,
    /// Chunks that were begun.
    begun: AtomicU64,
}

/// One chunk.
struct Chunk {
    /// In the order in which chunks were begun.
    number: u64,
    rows: Arc<[InputRef]>,
    fetch: Arc<dyn Fetch>,
    outcomes: Arc<Outcomes>,
    /// Rows that were counted as planned.
    planned: Vec<AtomicBool>,
}

/// Some rows of a chunk on their way through the stages.
pub(crate) struct Attempt<'a> {
    /// Number of the chunk.
    pub(crate) number: u64,
    /// All rows of the chunk.
    pub(crate) rows: Arc<[InputRef]>,
    /// The rows of this attempt, in order.
    pub(crate) members: &'a [usize],
    pub(crate) fetch: &'a dyn Fetch,
    pub(crate) outcomes: Arc<Outcomes>,
    planned: &'a [AtomicBool],
    pub(crate) compressed: ByteBudget,
    pub(crate) prepared: ByteBudget,
}

/// Why an attempt has no end.
enum Stopped {
    /// Its device's worker was lost.
    Lost(WorkerLost),
    Failed(PipelineError),
}

impl From<PipelineError> for Stopped {
    fn from(error: PipelineError) -> Self {
        Self::Failed(error)
    }
}

impl Attempt<'_> {
    /// Counts a planned image, once however often it is run.
    pub(crate) fn count_planned(&self, facts: &ImageFacts, progress: &Progress) {
        if self.planned.get(facts.index).is_some_and(|planned| !planned.swap(true, Relaxed)) {
            progress.images_planned.fetch_add(1, Relaxed);
            progress.views_planned.fetch_add(u64::from(facts.planned.plan.view_count()), Relaxed);
        }
    }
}

impl Annotator {
    /// An annotator of one job. `progress` is updated as rows pass.
    ///
    /// # Errors
    /// When a limit is zero or makes no sense.
    pub fn new(
        factory: Arc<dyn BackendFactory>,
        pool: Arc<DevicePool>,
        host: Arc<HostPool>,
        spec: AnnotateSpec,
        limits: RuntimeLimits,
        progress: Arc<Progress>,
    ) -> Result<Self, PipelineError> {
        check_limits(&limits)?;
        let device = pool.limits();
        let batch_limits = BatchLimits {
            views_max: limits.batch.views_max.min(device.batch_views_max),
            patches_max: limits.batch.patches_max.min(device.batch_patches_max),
            held_bytes_max: limits.batch.held_bytes_max,
        };
        let devices = pool.devices().len();
        let threads = u32::try_from(host.threads()).unwrap_or(u32::MAX);
        progress.set_workers(limits.fetch_concurrency, threads, u32::try_from(devices).unwrap_or(u32::MAX));
        progress.set_failure_limit(limits.failures);
        Ok(Self {
            batch_limits,
            pool,
            host,
            filter: None,
            slots: Semaphore::new(devices + 1),
            fetches: Semaphore::new(limits.fetch_concurrency as usize),
            decode: ByteBudget::new(limits.decode_bytes_max),
            begun: AtomicU64::new(0),
            job: Arc::new(Job { factory, spec, limits, progress }),
        })
    }

    /// Annotates only rows that `filter` keeps; the others are skipped when their plan is known, before any pixel is
    /// decoded.
    #[must_use]
    pub fn with_filter(mut self, filter: Option<Arc<dyn RowFilter>>) -> Self {
        self.filter = filter;
        self
    }

    /// Chunks that are worked on at the same time; more calls of [`annotate_chunk`](Self::annotate_chunk) wait.
    pub fn chunks_in_flight_max(&self) -> usize {
        self.pool.devices().len() + 1
    }

    /// Compressed and prepared bytes held by all chunks.
    pub fn gauge(&self) -> &ByteGauge {
        self.job.progress.gauge()
    }

    /// What all chunks in flight may hold together: compressed and prepared bytes, when listed sizes are exact. See
    /// [`budget`](crate::budget) for what estimates may add.
    pub fn bytes_in_flight_max(&self) -> u64 {
        let limits = &self.job.limits;
        let chunk = limits.window_bytes_max.saturating_mul(2).saturating_add(limits.prepared_bytes_max);
        chunk.saturating_mul(self.chunks_in_flight_max() as u64)
    }

    /// Annotates the rows of one chunk: one outcome per row, in input order. Call it for
    /// [`chunks_in_flight_max`](Self::chunks_in_flight_max) chunks at the same time to keep every device busy.
    ///
    /// The answer holds all content of the chunk, for encode jobs all its visual tokens: choose the rows of a chunk so
    /// that this fits. Dropping the future cancels the chunk and frees everything, on the device too.
    ///
    /// Rows that were on a device whose worker died or hung are run again; a row over which that happens again and
    /// again fails as `worker_died` or `device_hung`.
    ///
    /// # Errors
    /// Fatal when the store, the model or the last device fails in a way that other rows would meet too;
    /// [`PipelineError::TooManyFailed`] when more rows of the run failed than it allows. A row that fails alone is an
    /// outcome.
    pub async fn annotate_chunk(
        &self,
        rows: Vec<InputRef>,
        fetch: Arc<dyn Fetch>,
    ) -> Result<Vec<RowOutcome>, PipelineError> {
        let progress = &self.job.progress;
        let too_many = progress.until_too_many_failed();
        let chunk = Box::pin(self.run_chunk(rows, fetch));
        pin_mut!(too_many);
        let outcomes = match future::select(chunk, too_many).await {
            Either::Left((outcomes, _)) => outcomes?,
            // The error is made below.
            Either::Right(_) => Vec::new(),
        };
        progress.too_many_failed()?;
        Ok(outcomes)
    }

    async fn run_chunk(&self, rows: Vec<InputRef>, fetch: Arc<dyn Fetch>) -> Result<Vec<RowOutcome>, PipelineError> {
        // Never an error: the semaphore is not closed.
        let _slot = self.slots.acquire().await;
        let chunk = Chunk {
            number: self.begun.fetch_add(1, Relaxed),
            outcomes: Arc::new(Outcomes::new(rows.len())),
            planned: rows.iter().map(|_| AtomicBool::new(false)).collect(),
            rows: rows.into(),
            fetch,
        };
        let progress = &self.job.progress;
        let mut groups = Groups::all(chunk.rows.len());
        let mut first = true;
        while let Some(group) = groups.next() {
            if !first {
                progress.rows_rerun.fetch_add(group.len() as u64, Relaxed);
            }
            first = false;
            match self.attempt(&chunk, &group).await {
                Ok(alone) => groups.alone(&alone),
                Err(Stopped::Failed(error)) => return Err(error),
                Err(Stopped::Lost(lost)) => {
                    let pending = chunk.outcomes.pending(&group);
                    if let Some(culprit) = groups.lost(&group, pending, &lost) {
                        let (row, error) = (&chunk.rows[culprit.row], lost_error(&lost, culprit.losses));
                        chunk.outcomes.fail(culprit.row, row, error, culprit.losses, progress);
                    }
                }
            }
        }
        chunk.outcomes.finish()
    }

    /// Runs these rows through all stages. Every row then has an outcome, but for those that are returned: a device had
    /// no memory for them beside others.
    async fn attempt(&self, chunk: &Chunk, members: &[usize]) -> Result<Vec<usize>, Stopped> {
        let limits = &self.job.limits;
        let budget = |bytes| ByteBudget::with_gauge(bytes, Arc::clone(self.job.progress.gauge()));
        let attempt = Attempt {
            number: chunk.number,
            rows: Arc::clone(&chunk.rows),
            members,
            fetch: &*chunk.fetch,
            outcomes: Arc::clone(&chunk.outcomes),
            planned: &chunk.planned,
            // New ones for every attempt: a worker that hangs keeps its part of the old ones.
            compressed: budget(limits.window_bytes_max.saturating_mul(2)),
            prepared: budget(limits.prepared_bytes_max),
        };
        let (windows_in, windows_out) = mpsc::unbounded_channel();
        let (batches_in, batches_out) = mpsc::unbounded_channel();
        let read = async { Ok(self.read_windows(&attempt, windows_in).await?) };
        let prepare = async { Ok(self.prepare_windows(&attempt, windows_out, batches_in).await?) };
        let device = self.run_on_device(&attempt, batches_out);
        let ((), (), alone) = future::try_join3(Box::pin(read), Box::pin(prepare), Box::pin(device)).await?;
        Ok(alone)
    }

    /// Stage three: asks for a device when the first batch is ready and keeps it until the last.
    async fn run_on_device(
        &self,
        attempt: &Attempt<'_>,
        mut batches: mpsc::UnboundedReceiver<PreparedBatch>,
    ) -> Result<Vec<usize>, Stopped> {
        let Some(first) = batches.recv().await else { return Ok(Vec::new()) };
        let waiting = Instant::now();
        let lease = self.pool.lease().await?;
        self.job.progress.waited(Waiting::Lease, waiting.elapsed());
        let device = lease.device();
        let (job, rows, outcomes) = (Arc::clone(&self.job), Arc::clone(&attempt.rows), Arc::clone(&attempt.outcomes));
        let patches_max = self.batch_limits.patches_max;
        let supervision = Supervision::new(&self.job.limits, Arc::clone(&self.job.progress));
        let session = lease.run(supervision, move |backend, pulse| {
            Session::new(backend, pulse, device, &job, &rows, &outcomes, patches_max).run(first, batches)
        });
        match session.await {
            Ok(ended) => Ok(ended?),
            Err(WorkLost::Worker(lost)) => Err(Stopped::Lost(lost)),
            Err(WorkLost::Pool(error)) => Err(Stopped::Failed(error)),
        }
    }
}

fn check_limits(limits: &RuntimeLimits) -> Result<(), PipelineError> {
    let zero = [
        ("batch.views_max", u64::from(limits.batch.views_max)),
        ("batch.patches_max", limits.batch.patches_max),
        ("sequences_max", u64::from(limits.sequences_max)),
        ("fetch_concurrency", u64::from(limits.fetch_concurrency)),
        ("window_bytes_max", limits.window_bytes_max),
        ("prepared_bytes_max", limits.prepared_bytes_max),
        ("decode_bytes_max", limits.decode_bytes_max),
    ];
    if let Some((name, _)) = zero.iter().find(|(_, value)| *value == 0) {
        return Err(PipelineError::Limits(format!("{name} is 0; nothing could run, give at least 1")));
    }
    match limits.failures.share {
        Some(share) if !(0.0..=1.0).contains(&share) => {
            Err(PipelineError::Limits(format!("failures.share is {share}; give a share from 0 to 1")))
        }
        _ => Ok(()),
    }
}

/// A panic over one row's bytes is that row's failure.
pub(crate) fn panicked(panic: HostPanic, stage: Stage) -> Fault {
    Fault::Row(RowError::new(
        ErrorClass::Corrupt,
        stage,
        format!("reading it panicked ({}); please report this file as a defect", panic.0),
    ))
}

pub(crate) fn millis(time: Duration) -> f32 {
    time.as_secs_f32() * 1000.0
}
