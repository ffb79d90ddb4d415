//! Running a job from its description to `_SUCCESS`, resuming whatever was done before.

use std::collections::BTreeMap;
use std::num::NonZero;
use std::sync::Arc;
use std::time::{Duration, Instant};

use datafusion::common::runtime::SpawnedTask;
use serde::{Deserialize, Serialize};
use slicemill_core::TaskKind;
use slicemill_io::sources::SourceCounts;
use slicemill_io::{
    Counts, Generation, IoSnapshot, Ledger, LedgerState, Location, OutputLock, OutputStore, RetryPass, Source,
};
use slicemill_pipeline::{
    AnnotateSpec, Annotator, BackendFactory, DevicePool, HostPool, Progress, ProgressSnapshot, PromptItem,
    RuntimeLimits,
};

use crate::freeze::{Frozen, FrozenJob, freeze};
use crate::inputs::{fetch_of, source_of};
use crate::job::{Job, Part, RunOptions};
use crate::nodes::{JobOutcome, JobRef, LiveJob, Prompts, RowCondition, items};
use crate::plan::{NodeSpec, PlanLayout, build_plan, units_left};
use crate::questions::{Template, same_for_all};
use crate::runner::{JobRunner, LocalRunner};
use crate::{ExecError, StopSignal};

/// What a run is about to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunTotals {
    /// Input rows of the job.
    pub rows: u64,
    /// Input rows that were committed before.
    pub rows_before: u64,
    /// Inputs that are left out because no question is about them.
    pub unasked: u64,
}

/// Is told how a run goes. All methods do nothing unless they are written.
pub trait RunObserver: Send + Sync {
    /// Inputs are known and devices are open. `counters` count from here on.
    fn started(&self, totals: &RunTotals, counters: &Arc<Progress>) {
        let _ = (totals, counters);
    }

    /// A chunk with these counts was committed.
    fn committed(&self, chunk: &Counts) {
        let _ = chunk;
    }
}

impl RunObserver for () {}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub struct RunSummary {
    /// URL of the output.
    pub output: String,
    /// Counts and sums of everything committed, by this run and those before it.
    pub total: Counts,
    /// Counts and sums of what this run committed.
    pub this_run: Counts,
    /// Input rows of the job.
    pub rows: u64,
    /// Input rows that were committed before this run.
    pub rows_before: u64,
    /// Inputs that are left out because no question is about them.
    pub unasked: u64,
    /// The job was complete before; nothing was done.
    pub already_done: bool,
    /// The run was asked to stop before the job, or its part of it, was complete.
    pub interrupted: bool,
    /// Shards that other processes have to do before the job is complete, after this one has done its part.
    pub shards_left: u64,
    /// From open devices to the end.
    pub elapsed: Duration,
}

/// Runs `job`, or what is left of it. Returns early when it is complete.
///
/// # Errors
/// See [`ExecError`]; whatever was committed stays, and the same call resumes.
pub async fn run_job(
    job: &Job,
    options: &RunOptions,
    factory: Arc<dyn BackendFactory>,
    stop: StopSignal,
    observer: Arc<dyn RunObserver>,
) -> Result<RunSummary, ExecError> {
    // Inputs that are not there are a mistake in the command: nothing is made of the output for it.
    source_of(job, options, None)?;
    let output = OutputStore::create(&Location::parse(&job.output)?, &options.stores)?.leased();
    let lock = match options.part {
        None => output.lock().await?,
        Some(part) => OutputLock::take_part(&output, &format!("{}-of-{}", part.number, part.of)).await?,
    };
    let source = source_of(job, options, Some(&output))?;
    // Listing inputs and loading weights take long too, so the whole run can be ended at once.
    let aborted = stop.clone();
    let run = Box::pin(run_in(job, &output, source.as_ref(), options, factory, stop, observer));
    let summary = tokio::select! {
        biased;
        () = aborted.aborted() => Err(ExecError::Stopped),
        summary = run => summary,
    };
    given_back(lock, summary).await
}

/// What work under `lock` came to, once the lock is given back. Where that fails it expires, which is no reason to
/// call work failed that was done.
pub(crate) async fn given_back<T>(lock: OutputLock, done: Result<T, ExecError>) -> Result<T, ExecError> {
    if let Err(error) = lock.release().await {
        tracing::warn!("the output was not given back and is free again after a while: {error}");
    }
    done
}

/// [`run_job`] in an output that is open, over any source.
///
/// # Errors
/// As [`run_job`].
pub async fn run_in(
    job: &Job,
    output: &OutputStore,
    source: &dyn Source,
    options: &RunOptions,
    factory: Arc<dyn BackendFactory>,
    stop: StopSignal,
    observer: Arc<dyn RunObserver>,
) -> Result<RunSummary, ExecError> {
    let frozen = freeze(job, &factory, output, source, options).await?;
    let rows = frozen.generations.iter().map(|generation| generation.rows).sum();
    let mut summary = RunSummary {
        output: output.url().to_owned(),
        total: Counts::default(),
        this_run: Counts::default(),
        rows,
        rows_before: rows,
        unasked: frozen.unasked,
        already_done: false,
        interrupted: false,
        shards_left: 0,
        elapsed: Duration::ZERO,
    };
    if let Some(success) = Ledger::success(output).await? {
        return Ok(RunSummary { total: success.counts, already_done: true, ..summary });
    }
    let pass = Pass { frozen: &frozen, ledger: frozen.ledger.clone(), generations: &frozen.generations, retry: None };
    let run = pass.run(options, factory, stop, observer).await?;
    summary.rows_before = run.rows_before;
    summary.interrupted = !run.outcome.complete && !run.outcome.part_done;
    summary.shards_left = run.outcome.shards_left;
    summary.total = run.outcome.total;
    summary.this_run = run.outcome.this_run;
    summary.elapsed = run.elapsed;
    RunRecord::write(output, options, &summary, run.progress, source.counts()).await?;
    Ok(summary)
}

/// One passage over some generations of inputs: the job itself, or a retry of failed rows.
pub(crate) struct Pass<'a> {
    pub(crate) frozen: &'a Frozen,
    /// Where chunks and shards are committed.
    pub(crate) ledger: Ledger,
    pub(crate) generations: &'a [Generation],
    pub(crate) retry: Option<&'a RetryPass>,
}

/// How a passage went.
pub(crate) struct PassRun {
    pub(crate) outcome: JobOutcome,
    pub(crate) rows_before: u64,
    pub(crate) elapsed: Duration,
    /// What the counters of this run came to.
    pub(crate) progress: ProgressSnapshot,
}

impl Pass<'_> {
    /// Does what is left, on the devices of `options`.
    pub(crate) async fn run(
        &self,
        options: &RunOptions,
        factory: Arc<dyn BackendFactory>,
        stop: StopSignal,
        observer: Arc<dyn RunObserver>,
    ) -> Result<PassRun, ExecError> {
        check_model(&self.frozen.job, factory.as_ref())?;
        let state = self.ledger.state().await?;
        let part = options.part.filter(|_| self.retry.is_none());
        let units = units_left(self.generations, &state, part);
        let totals = RunTotals {
            rows: rows_of(self.generations, part),
            rows_before: committed_rows(&state, part),
            unasked: self.frozen.unasked,
        };
        let counters = Arc::<Progress>::default();
        let job = self.job_ref();
        let condition = RowCondition::of(&self.frozen.job)?.map(Arc::new);
        let live = LiveJob {
            annotator: open_annotator(&self.frozen.job.job, condition.as_ref(), options, factory, &counters).await?,
            fetch: fetch_of(options, &self.frozen.job.job),
            ledger: self.ledger.clone(),
            job_ledger: self.frozen.ledger.clone(),
            retry: self.retry.cloned(),
            inputs: self.inputs().await?,
            generations: self.generations.to_vec(),
            condition,
            prompts: prompts_of(self.frozen)?,
            stop,
            observer: Arc::clone(&observer),
            job: job.clone(),
        };
        let layout = PlanLayout {
            partitions_max: options.devices.len(),
            chunks_in_flight: live.annotator.chunks_in_flight_max(),
        };
        let shards = self.generations.iter().map(|generation| generation.shards().len() as u64).sum();
        let rows = self.generations.iter().map(|generation| generation.rows).sum();
        let spec = NodeSpec { job, frozen: self.frozen.job.clone(), rows, shards, part };
        let plan = build_plan(spec, &units, layout)?;
        let started = Instant::now();
        observer.started(&totals, &counters);
        let outcome = LocalRunner.run(plan, Arc::new(live)).await?;
        Ok(PassRun {
            outcome,
            rows_before: totals.rows_before,
            elapsed: started.elapsed(),
            progress: counters.snapshot(),
        })
    }

    fn job_ref(&self) -> JobRef {
        JobRef {
            output: self.frozen.ledger.output().url().to_owned(),
            fingerprint: self.frozen.job.fingerprint.clone(),
            retry: self.retry.map_or(0, |pass| pass.number),
        }
    }

    async fn inputs(&self) -> Result<BTreeMap<u32, slicemill_io::FrozenInputs>, ExecError> {
        let mut inputs = BTreeMap::new();
        for generation in self.generations {
            inputs.insert(generation.number, self.ledger.inputs(generation).await?);
        }
        Ok(inputs)
    }
}

/// Input rows of these generations, or of one process's part of them.
fn rows_of(generations: &[Generation], part: Option<Part>) -> u64 {
    let rows = generations.iter().flat_map(|generation| {
        let mine = generation.shards().filter(move |shard| part.is_none_or(|part| part.has(*shard)));
        mine.map(|shard| generation.shard_rows(shard)).map(|rows| rows.end - rows.start)
    });
    rows.sum()
}

/// Input rows that are committed, or those of one process's part.
fn committed_rows(state: &LedgerState, part: Option<Part>) -> u64 {
    let mine = |shard: u32| part.is_none_or(|part| part.has(shard));
    let shards = state.shards.iter().filter(|(shard, _)| mine(**shard)).map(|(_, entry)| entry.counts.inputs);
    let chunks = state.chunks.iter().filter(|((shard, _), _)| mine(*shard)).map(|(_, entry)| entry.counts.inputs);
    shards.chain(chunks).sum()
}

/// The model that is loaded must be the one that the job was frozen with.
pub(crate) fn check_model(frozen: &FrozenJob, factory: &dyn BackendFactory) -> Result<(), ExecError> {
    let loaded = &factory.card().fingerprint;
    if *loaded == frozen.job.model_fingerprint {
        return Ok(());
    }
    Err(ExecError::Incomplete(format!(
        "the job was frozen with model {} (fingerprint {}), the loaded one has fingerprint {loaded}; load the same \
         model, or choose another output",
        frozen.job.model, frozen.job.model_fingerprint
    )))
}

/// What of a job the pipeline needs.
pub(crate) fn annotate_spec(job: &Job) -> AnnotateSpec {
    AnnotateSpec {
        task: job.task,
        image: job.image,
        policy: job.policy.clone(),
        generation: job.generation.clone().unwrap_or_default(),
        // Prompts arrive rendered, because a template may name columns of the questions file.
        prompt_template: None,
        token_ids: job.token_ids,
        dtype: job.dtype.unwrap_or_default(),
    }
}

/// The prompts that every row of `job` has; none when they come from a file.
pub(crate) fn same_prompts(job: &Job) -> Result<Option<Arc<[PromptItem]>>, ExecError> {
    match (job.task, &job.questions) {
        (TaskKind::Encode, _) => Ok(Some(Arc::new([]))),
        (TaskKind::Ask, Some(questions)) if questions.file.is_some() => Ok(None),
        (TaskKind::Ask, Some(questions)) => {
            let template = Template::parse(&questions.template).map_err(|error| ExecError::Corrupt {
                name: "questions.template".to_owned(),
                message: error.to_string(),
            })?;
            Ok(Some(items(&same_for_all(&questions.ask, &template))))
        }
        (TaskKind::Caption | TaskKind::Ask, _) => {
            let question = job.prompt.clone().unwrap_or_default();
            Ok(Some(Arc::new([PromptItem { question_id: None, question, prompt: None }])))
        }
    }
}

fn prompts_of(frozen: &Frozen) -> Result<Prompts, ExecError> {
    Ok(match same_prompts(&frozen.job.job)? {
        Some(prompts) => Prompts::Same(prompts),
        None => Prompts::Frozen(frozen.questions.clone()),
    })
}

/// Opens devices and the CPU pool. Loading weights blocks, so it has a thread of its own.
async fn open_annotator(
    job: &Job,
    condition: Option<&Arc<RowCondition>>,
    options: &RunOptions,
    factory: Arc<dyn BackendFactory>,
    counters: &Arc<Progress>,
) -> Result<Annotator, ExecError> {
    let devices = options.devices.clone();
    let opening = Arc::clone(&factory);
    let pool = SpawnedTask::spawn_blocking(move || DevicePool::start(&opening, &devices)).await;
    let pool = pool.map_err(|error| ExecError::Incomplete(format!("devices were not opened: {error}")))??;
    let threads = options.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, NonZero::get));
    let host = Arc::new(HostPool::new(threads)?);
    let limits = runtime_limits(options);
    let annotator = Annotator::new(factory, Arc::new(pool), host, annotate_spec(job), limits, Arc::clone(counters))?;
    Ok(annotator.with_filter(RowCondition::filter(condition)))
}

/// Smallest share of memory that still lets one large image through at a time.
const SHARE_BYTES_MIN: u64 = 4 << 20;

/// The pipeline's limits for `options`. Memory is shared out as a quarter for decoding and three quarters for the
/// chunks in flight, of which half is for compressed and half for prepared bytes.
pub fn runtime_limits(options: &RunOptions) -> RuntimeLimits {
    let mut limits = RuntimeLimits::default();
    if let Some(views) = options.batch_views {
        limits.batch.views_max = views;
    }
    if let Some(sequences) = options.sequences {
        limits.sequences_max = sequences;
    }
    if let Some(fetches) = options.fetches {
        limits.fetch_concurrency = u32::try_from(fetches).unwrap_or(u32::MAX);
    }
    limits.failures = options.max_failed.unwrap_or_default();
    if let Some(timeout) = options.device_timeout {
        limits.device_timeout = Some(timeout).filter(|timeout| !timeout.is_zero());
    }
    if let Some(memory) = options.memory_bytes {
        let chunks = options.devices.len() as u64 + 1;
        let chunk = memory / 4 * 3 / chunks;
        limits.decode_bytes_max = (memory / 4).max(SHARE_BYTES_MIN);
        // A chunk holds two windows of compressed bytes.
        limits.window_bytes_max = (chunk / 4).max(SHARE_BYTES_MIN);
        limits.prepared_bytes_max = (chunk / 2).max(SHARE_BYTES_MIN);
        limits.batch.held_bytes_max = limits.batch.held_bytes_max.min(limits.prepared_bytes_max);
    }
    limits
}

/// How one run was set up and how long it took: `_slicemill/runs/<n>.json`. Not part of the content; a killed run
/// leaves none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    /// Version of slicemill.
    pub slicemill: String,
    /// Devices.
    pub devices: Vec<String>,
    /// Views in one encode batch, when set.
    pub batch_views: Option<u32>,
    /// Sequences decoded together, when set.
    pub sequences: Option<u32>,
    /// Threads of the CPU pool, when set.
    pub threads: Option<usize>,
    /// Memory for bytes in flight, when set.
    pub memory_bytes: Option<u64>,
    /// The part of the job that it did, as 3/8, when it was not all of it.
    #[serde(default)]
    pub part: Option<String>,
    /// Input rows that it committed.
    pub rows: u64,
    /// Whether it was asked to stop.
    pub interrupted: bool,
    /// From open devices to the end, seconds.
    pub elapsed_s: f64,
    /// Stages, devices and failures.
    #[serde(default)]
    pub progress: Option<ProgressSnapshot>,
    /// What was found in each input when they were listed.
    #[serde(default)]
    pub sources: Vec<SourceCounts>,
    /// Requests, retries and errors of stores.
    #[serde(default)]
    pub io: IoSnapshot,
    /// The most resident memory of the process, bytes, where the system says it.
    #[serde(default)]
    pub resident_bytes_peak: Option<u64>,
}

/// Folder of the records of runs.
const RUNS: &str = "_slicemill/runs";

impl RunRecord {
    async fn write(
        output: &OutputStore,
        options: &RunOptions,
        summary: &RunSummary,
        progress: ProgressSnapshot,
        sources: Vec<SourceCounts>,
    ) -> Result<(), ExecError> {
        let record = Self {
            slicemill: env!("CARGO_PKG_VERSION").to_owned(),
            devices: options.devices.iter().map(ToString::to_string).collect(),
            batch_views: options.batch_views,
            sequences: options.sequences,
            threads: options.threads,
            memory_bytes: options.memory_bytes,
            part: options.part.map(|part| part.to_string()),
            rows: summary.this_run.inputs,
            interrupted: summary.interrupted,
            elapsed_s: summary.elapsed.as_secs_f64(),
            progress: Some(progress),
            sources,
            io: options.stores.counters().snapshot(),
            resident_bytes_peak: crate::resident_bytes_peak(),
        };
        let number = output.list(RUNS).await?.len() + 1;
        let text = serde_json::to_vec_pretty(&record)
            .map_err(|error| ExecError::Corrupt { name: RUNS.to_owned(), message: error.to_string() })?;
        // Parts end at the same time and must not take each other's numbers.
        let part = options.part.map(|part| format!("-{}-of-{}", part.number, part.of)).unwrap_or_default();
        Ok(output.put(&format!("{RUNS}/{number:04}{part}.json"), text.into()).await?)
    }

    /// The records of an output, oldest first. Records that cannot be understood are left out: they are for people.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn read_all(output: &OutputStore) -> Result<Vec<Self>, ExecError> {
        let mut records = Vec::new();
        for object in output.list(RUNS).await? {
            let name = object.location.filename().unwrap_or_default();
            let bytes = output.get(&format!("{RUNS}/{name}")).await?;
            records.extend(serde_json::from_slice::<Self>(&bytes).ok());
        }
        Ok(records)
    }
}
