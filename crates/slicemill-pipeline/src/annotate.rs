//! The dataflow of a chunk: three stages that run at the same time, joined in one future.
//!
//! ```text
//!   read: windows of rows ─▶ fetch ─▶ header, plan        (compressed bytes, row by row)
//!     │ channel of one window
//!   prepare: batches ─▶ decode, slice, normalise          (prepared bytes, batch by batch)
//!     │ channel, bounded by the prepared bytes
//!   device: lease ─▶ session on the device thread         (one per chunk)
//! ```
//!
//! There are no tasks: dropping the future drops all stages, the device session sees that nobody waits, frees what it
//! holds on the device, and gives the device back.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use futures::{StreamExt, TryStreamExt, future, stream};
use sha2::{Digest, Sha256};
use slicemill_core::{BatchLimits, ErrorClass, RowError, RowOutcome, Stage, TaskKind};
use tokio::sync::{Semaphore, mpsc};

use crate::{
    AnnotateSpec, BackendFactory, BusyStage, DevicePool, Fault, Fetch, FetchError, HostPool, InputRef, Inspected,
    PipelineError, PreparedImage, Progress, RuntimeLimits,
    batch::{ImageFacts, PreparedBatch, ReadBatch, ReadRow, batches_of, prepare_row},
    budget::{ByteBudget, ByteGauge, ByteGrant},
    host::HostPanic,
    inspect,
    outcomes::Outcomes,
    session::Session,
    windows::windows,
};

/// Pixels in work: decoded RGB, what the decoder keeps beside it, and a turned copy. An estimate that keeps many large
/// images from being decoded at the same time; small ones hardly notice it.
const DECODE_BYTES_PER_PIXEL: u64 = 8;

/// What all stages of all chunks share.
pub(crate) struct Job {
    pub(crate) factory: Arc<dyn BackendFactory>,
    pub(crate) spec: AnnotateSpec,
    pub(crate) limits: RuntimeLimits,
    pub(crate) progress: Arc<Progress>,
}

/// Annotates chunks of rows on a pool of devices.
pub struct Annotator {
    job: Arc<Job>,
    batch_limits: BatchLimits,
    pool: Arc<DevicePool>,
    host: Arc<HostPool>,
    /// Chunks in flight: one per device and one that gets ready.
    slots: Semaphore,
    fetches: Semaphore,
    decode: ByteBudget,
    gauge: Arc<ByteGauge>,
    /// Chunks that were begun.
    begun: AtomicU64,
}

/// One chunk on its way through the stages.
struct Chunk {
    /// In the order in which chunks were begun.
    number: u64,
    rows: Arc<[InputRef]>,
    fetch: Arc<dyn Fetch>,
    compressed: ByteBudget,
    prepared: ByteBudget,
    outcomes: Arc<Outcomes>,
}

impl Annotator {
    /// An annotator of one job. `progress` is updated as rows pass.
    ///
    /// # Errors
    /// When a limit is zero.
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
        Ok(Self {
            batch_limits,
            pool,
            host,
            slots: Semaphore::new(devices + 1),
            fetches: Semaphore::new(limits.fetch_concurrency as usize),
            decode: ByteBudget::new(limits.decode_bytes_max),
            gauge: Arc::default(),
            begun: AtomicU64::new(0),
            job: Arc::new(Job { factory, spec, limits, progress }),
        })
    }

    /// Chunks that are worked on at the same time; more calls of [`annotate_chunk`](Self::annotate_chunk) wait.
    pub fn chunks_in_flight_max(&self) -> usize {
        self.pool.devices().len() + 1
    }

    /// Compressed and prepared bytes held by all chunks.
    pub fn gauge(&self) -> &ByteGauge {
        &self.gauge
    }

    /// What all chunks in flight may hold together: compressed and prepared bytes.
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
    /// # Errors
    /// Fatal when the store, the model or a device fails in a way that other rows would meet too. A row that fails
    /// alone is an outcome.
    pub async fn annotate_chunk(
        &self,
        rows: Vec<InputRef>,
        fetch: Arc<dyn Fetch>,
    ) -> Result<Vec<RowOutcome>, PipelineError> {
        // Never an error: the semaphore is not closed.
        let _slot = self.slots.acquire().await;
        let limits = &self.job.limits;
        let budget = |bytes| ByteBudget::with_gauge(bytes, Arc::clone(&self.gauge));
        let chunk = Chunk {
            number: self.begun.fetch_add(1, Relaxed),
            outcomes: Arc::new(Outcomes::new(rows.len())),
            rows: rows.into(),
            fetch,
            compressed: budget(limits.window_bytes_max.saturating_mul(2)),
            prepared: budget(limits.prepared_bytes_max),
        };
        let (windows_in, windows_out) = mpsc::channel(1);
        let (batches_in, batches_out) = mpsc::unbounded_channel();
        let read = self.read_windows(&chunk, windows_in);
        let prepare = self.prepare_windows(&chunk, windows_out, batches_in);
        let device = self.run_on_device(&chunk, batches_out);
        future::try_join3(Box::pin(read), Box::pin(prepare), Box::pin(device)).await?;
        chunk.outcomes.finish()
    }

    /// Stage one: windows of rows that are read and planned, in input order.
    async fn read_windows(&self, chunk: &Chunk, out: mpsc::Sender<Vec<ReadRow>>) -> Result<(), PipelineError> {
        let sizes = chunk.rows.iter().map(|row| row.bytes);
        for window in windows(sizes, self.job.limits.window_bytes_max) {
            let read = self.read_window(chunk, window).await?;
            if !read.is_empty() && out.send(read).await.is_err() {
                return Ok(()); // The next stage has ended with an error, which is what the caller gets.
            }
        }
        Ok(())
    }

    async fn read_window(&self, chunk: &Chunk, window: Range<usize>) -> Result<Vec<ReadRow>, PipelineError> {
        let concurrency = self.job.limits.fetch_concurrency as usize;
        // Bytes are granted in input order; the reads that have theirs run at the same time.
        let listed: Vec<_> = window.map(|index| (index, chunk.rows[index].bytes)).collect();
        let budget = chunk.compressed.clone();
        let granted = stream::iter(listed).then(move |(index, bytes)| {
            let budget = budget.clone();
            async move { (index, budget.acquire(bytes).await) }
        });
        let reads = granted.map(|(index, grant)| self.read_row(chunk, index, grant)).buffer_unordered(concurrency);
        let mut rows: Vec<ReadRow> = reads.try_filter_map(future::ok).try_collect().await?;
        rows.sort_by_key(|row| row.facts.index);
        Ok(rows)
    }

    /// Fetches, hashes and plans one row. `None` when its outcome is already known.
    async fn read_row(&self, chunk: &Chunk, index: usize, grant: ByteGrant) -> Result<Option<ReadRow>, PipelineError> {
        let (row, job) = (&chunk.rows[index], &self.job);
        // A row that fails is put down among the outcomes and read no further.
        let failed = |error, attempts| {
            chunk.outcomes.fail(index, row, error, attempts, &job.progress);
            Ok(None)
        };
        if row.prompts.is_empty() && job.spec.task != TaskKind::Encode {
            chunk.outcomes.skip(index, row, "nothing is asked about it".into(), &job.progress);
            return Ok(None);
        }
        let place = self.fetches.acquire().await;
        let started = Instant::now();
        let fetched = chunk.fetch.fetch(row).await;
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
        let looked = self.look_at(chunk, index, bytes.clone()).await;
        match looked {
            Ok(Some((mut facts, views))) => {
                facts.fetch_ms = millis(fetch_time);
                job.progress.images_planned.fetch_add(1, Relaxed);
                job.progress.views_planned.fetch_add(views, Relaxed);
                Ok(Some(ReadRow { facts, bytes, grant }))
            }
            Ok(None) => Ok(None),
            Err(Fault::Row(error)) => failed(error, fetched.attempts),
            Err(Fault::Fatal(message)) => Err(PipelineError::Fatal(message)),
        }
    }

    /// Header, plan and hash on the CPU pool. `None` when the object was skipped.
    async fn look_at(
        &self,
        chunk: &Chunk,
        index: usize,
        bytes: bytes::Bytes,
    ) -> Result<Option<(ImageFacts, u64)>, Fault> {
        let (job, rows) = (Arc::clone(&self.job), Arc::clone(&chunk.rows));
        let looked = self.host.run(chunk.number, move || {
            let started = Instant::now();
            let inspected = inspect(&bytes, bytes.len() as u64, &rows[index], &job.spec, &*job.factory);
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
                let views = u64::from(planned.plan.view_count());
                Some((ImageFacts { index, header, planned, sha256, fetch_ms: 0.0, prepare_ms: 0.0 }, views))
            }
            Err(reason) => {
                chunk.outcomes.skip(index, &chunk.rows[index], reason, &self.job.progress);
                None
            }
        })
    }

    /// Stage two: batches with their pixels, in order. Several are in preparation at the same time, as many as their
    /// bytes allow.
    async fn prepare_windows(
        &self,
        chunk: &Chunk,
        windows: mpsc::Receiver<Vec<ReadRow>>,
        out: mpsc::UnboundedSender<PreparedBatch>,
    ) -> Result<(), PipelineError> {
        let windows = stream::unfold(windows, |mut windows| async move { Some((windows.recv().await?, windows)) });
        let batches = windows.flat_map(|rows| stream::iter(batches_of(rows, self.batch_limits)));
        let budget = chunk.prepared.clone();
        let granted = batches.zip(stream::iter(0_u32..)).then(move |(batch, id)| {
            let budget = budget.clone();
            async move {
                let grant = budget.acquire(batch.shape.bytes).await;
                (id, batch, grant)
            }
        });
        // Batches of one image each still keep every thread of the pool busy.
        let ahead = self.host.threads().saturating_mul(2).max(2);
        let prepared = granted.map(|(id, batch, grant)| self.prepare_batch(chunk, id, batch, grant)).buffered(ahead);
        prepared
            .try_for_each(|batch| {
                // An error means that the device stage has ended with an error, which is what the caller gets.
                if !batch.images.is_empty() {
                    drop(out.send(batch));
                }
                future::ready(Ok(()))
            })
            .await
    }

    async fn prepare_batch(
        &self,
        chunk: &Chunk,
        id: u32,
        batch: ReadBatch,
        grant: ByteGrant,
    ) -> Result<PreparedBatch, PipelineError> {
        let rows = batch.rows.into_iter().map(|row| self.prepare_one(chunk, row));
        let prepared = future::try_join_all(rows).await?;
        let (facts, images) = prepared.into_iter().flatten().unzip();
        Ok(PreparedBatch { id, facts, images, grant: Arc::new(grant) })
    }

    /// The pixels of one image. `None` when it failed, which leaves its batch as it is.
    async fn prepare_one(
        &self,
        chunk: &Chunk,
        row: ReadRow,
    ) -> Result<Option<(ImageFacts, PreparedImage)>, PipelineError> {
        let index = row.facts.index;
        let pixels = row.facts.header.stored.pixels();
        let in_work = self.decode.acquire(pixels.saturating_mul(DECODE_BYTES_PER_PIXEL)).await;
        let job = Arc::clone(&self.job);
        let prepared = self.host.run(chunk.number, move || {
            let started = Instant::now();
            let (mut facts, image) = prepare_row(row, &job.spec, &job.factory.card().normalisation);
            let time = started.elapsed();
            drop(in_work);
            job.progress.busy(BusyStage::Prepare, time);
            facts.prepare_ms = millis(time);
            image.map(|image| (facts, image))
        });
        let prepared = match prepared.await {
            Ok(prepared) => prepared.map_err(Fault::Row),
            Err(panic) => Err(panicked(panic, Stage::Decode)),
        };
        match prepared {
            Ok((facts, image)) => {
                check_views(&chunk.rows[index], &image)?;
                Ok(Some((facts, image)))
            }
            Err(Fault::Row(error)) => {
                chunk.outcomes.fail(index, &chunk.rows[index], error, 1, &self.job.progress);
                Ok(None)
            }
            Err(Fault::Fatal(message)) => Err(PipelineError::Fatal(message)),
        }
    }

    /// Stage three: asks for a device when the first batch is ready and keeps it until the last.
    async fn run_on_device(
        &self,
        chunk: &Chunk,
        mut batches: mpsc::UnboundedReceiver<PreparedBatch>,
    ) -> Result<(), PipelineError> {
        let Some(first) = batches.recv().await else { return Ok(()) };
        let lease = self.pool.lease().await?;
        let device = lease.device();
        let (job, rows, outcomes) = (Arc::clone(&self.job), Arc::clone(&chunk.rows), Arc::clone(&chunk.outcomes));
        let patches_max = self.batch_limits.patches_max;
        let session = lease.run(move |backend, cancel| {
            Session::new(backend, cancel, device, &job, &rows, &outcomes, patches_max).run(first, batches)
        });
        session.await?
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
    match zero.iter().find(|(_, value)| *value == 0) {
        Some((name, _)) => Err(PipelineError::Limits(format!("{name} is 0; nothing could run, give at least 1"))),
        None => Ok(()),
    }
}

/// The prepared views must be those of the plan, or planned and produced tokens would differ.
fn check_views(row: &InputRef, image: &PreparedImage) -> Result<(), PipelineError> {
    let patch_len = 3 * image.plan.patch as usize * image.plan.patch as usize;
    let planned = image.plan.views();
    let equal = planned.len() == image.views.len()
        && planned.iter().zip(&image.views).all(|(view, prepared)| {
            (view.patches_wide, view.patches_high) == (prepared.patches_wide, prepared.patches_high)
                && prepared.patches.len() == view.patches() as usize * patch_len
        });
    if equal {
        return Ok(());
    }
    Err(PipelineError::Fatal(format!(
        "the prepared views of {} are not those of its plan; this is a defect of slicemill",
        row.source
    )))
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

/// A panic over one row's bytes is that row's failure.
fn panicked(panic: HostPanic, stage: Stage) -> Fault {
    Fault::Row(RowError::new(
        ErrorClass::Corrupt,
        stage,
        format!("reading it panicked ({}); please report this file as a defect", panic.0),
    ))
}

fn sha256_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digest = Sha256::digest(bytes);
    digest.iter().flat_map(|byte| [byte >> 4, byte & 15]).map(|digit| char::from(DIGITS[usize::from(digit)])).collect()
}

pub(crate) fn millis(time: Duration) -> f32 {
    time.as_secs_f32() * 1000.0
}
