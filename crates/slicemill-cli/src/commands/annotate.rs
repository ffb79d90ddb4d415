//! `caption`, `ask`, `encode`, `run` and `retry`: from flags or a file to a finished output.

use std::sync::Arc;
use std::time::Duration;

use indicatif::MultiProgress;
use slicemill_core::ErrorClass;
use slicemill_exec::{
    ExecError, FrozenJob, Job, JobDraft, Part, RetrySummary, RunObserver, RunOptions, RunSummary, RunTotals,
    SpoolOptions, StandardInput, StopSignal, runtime_limits,
};
use slicemill_io::{Counts, StoreOptions, Stores};
use slicemill_pipeline::{BackendFactory, DeviceId, FailureLimit, Progress, parse_devices};

use crate::args::{LogFormat, OutputFlags, RetryArgs, RunArgs, RunFlags, ShareFlags};
use crate::exit::{Exit, Failure};
use crate::metrics::{Metrics, Task};
use crate::models::{self, Runtime};
use crate::progress::Display;

/// What every run needs besides its job.
pub struct Session<'a> {
    /// Output flags.
    pub flags: &'a OutputFlags,
    /// Where the progress bar lives.
    pub bars: &'a MultiProgress,
}

/// Reserved for objects that are read and images that are decoded, which are few at a time.
const IN_WORK_BYTES: u64 = 32 << 20;

/// The async runtime: it reads, writes and waits; pixels and tensors have threads of their own.
pub fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("slicemill io")
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("the runtime cannot be started: {error}")))
}

/// The draft of a job that flags describe.
pub fn draft_of_flags(document: toml::Table) -> Result<JobDraft, Failure> {
    JobDraft::from_flags(document).map_err(Failure::usage)
}

/// The draft of a job file with its `--set` changes.
pub fn draft_of_file(path: &std::path::Path, sets: &[String]) -> Result<JobDraft, Failure> {
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|error| Failure::usage(format!("{name}: {error}")))?;
    JobDraft::from_text(&name, &text, sets).map_err(Failure::usage)
}

/// The stores of this process: their options, and what the environment says about them.
pub fn stores(flags: &OutputFlags) -> Result<Stores, Failure> {
    let options = StoreOptions::parse(&flags.store_options).map_err(Failure::usage)?;
    // Names or values that are not text mean nothing to any store.
    let variables =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    Ok(Stores::new(options.with_environment(variables)))
}

/// Flags of this run as the runner takes them.
pub fn run_options(flags: &RunFlags, share: &ShareFlags, stores: Stores) -> Result<RunOptions, Failure> {
    let at_least_one = |name: &str, value: Option<u64>| match value {
        Some(0) => Err(Failure::usage(format!("{name} 0: give at least 1"))),
        _ => Ok(()),
    };
    at_least_one("--batch", flags.batch.map(u64::from))?;
    at_least_one("--sequences", flags.sequences.map(u64::from))?;
    at_least_one("--threads", flags.threads.map(|n| n as u64))?;
    at_least_one("--fetches", flags.fetches.map(|n| n as u64))?;
    let devices = parse_devices(flags.devices.as_deref().unwrap_or("cpu"))
        .map_err(|error| Failure::usage(format!("--devices: {error}")))?;
    if !cfg!(feature = "cuda") && devices.iter().any(|device| matches!(device, DeviceId::Cuda(_))) {
        return Err(Failure::usage(
            "--devices: this program was built without CUDA; build it with --features cuda, or use --devices cpu",
        ));
    }
    Ok(RunOptions {
        devices,
        batch_views: flags.batch,
        sequences: flags.sequences,
        threads: flags.threads,
        memory_bytes: flags.memory,
        fetches: flags.fetches,
        extend: share.extend,
        part: share
            .part
            .as_deref()
            .map(|text| text.parse::<Part>())
            .transpose()
            .map_err(|why| Failure::usage(format!("--shard: {why}")))?,
        stores,
        standard_input: None,
        max_failed: flags.max_failed.as_deref().map(parse_failure_limit).transpose()?,
        device_timeout: flags.device_timeout.as_deref().map(parse_time).transpose()?,
        spool: SpoolOptions { folder: flags.spool.clone(), bytes_max: flags.spool_bytes },
    })
}

/// `100` rows or `5%` of those that are done.
fn parse_failure_limit(text: &str) -> Result<FailureLimit, Failure> {
    let wrong = || Failure::usage(format!("--max-failed {text}: give a number of rows, as 100, or a share, as 5%"));
    let text = text.trim();
    if let Some(percent) = text.strip_suffix('%') {
        let share = percent.trim().parse::<f64>().map_err(|_| wrong())? / 100.0;
        return if (0.0..=1.0).contains(&share) {
            Ok(FailureLimit { count: None, share: Some(share) })
        } else {
            Err(wrong())
        };
    }
    Ok(FailureLimit { count: Some(text.parse().map_err(|_| wrong())?), share: None })
}

/// `90s`, `10m`, `2h`; a number alone is in seconds.
fn parse_time(text: &str) -> Result<Duration, Failure> {
    let wrong =
        || Failure::usage(format!("--device-timeout {text}: give a time with s, m or h, as 10m; 0 waits for ever"));
    let text = text.trim();
    let (number, seconds) = match text.char_indices().next_back() {
        Some((at, 's')) => (&text[..at], 1.0),
        Some((at, 'm')) => (&text[..at], 60.0),
        Some((at, 'h')) => (&text[..at], 3600.0),
        _ => (text, 1.0),
    };
    let number: f64 = number.trim().parse().map_err(|_| wrong())?;
    Duration::try_from_secs_f64(number * seconds).map_err(|_| wrong())
}

impl Session<'_> {
    /// Runs a job that flags describe.
    pub fn run_flags(&self, document: toml::Table, flags: &RunFlags, share: &ShareFlags) -> Result<Exit, Failure> {
        let options = run_options(flags, share, stores(self.flags)?)?;
        self.run_draft(&draft_of_flags(document)?, &options, flags)
    }

    /// `slicemill run JOB.toml`.
    pub fn run_file(&self, args: &RunArgs) -> Result<Exit, Failure> {
        let options = run_options(&args.run, &args.share, stores(self.flags)?)?;
        self.run_draft(&draft_of_file(&args.job, &args.set)?, &options, &args.run)
    }

    fn run_draft(&self, draft: &JobDraft, options: &RunOptions, flags: &RunFlags) -> Result<Exit, Failure> {
        let factory = models::open(draft.model_name(), draft.windows(), runtime_of(options, draft.num_beams()))?;
        let job = draft.resolve(factory.card()).map_err(Failure::usage)?;
        let kept = KeptInput::of(&job.inputs)?;
        let options = &RunOptions { standard_input: kept.as_ref().map(KeptInput::input), ..options.clone() };
        let summary = self.run_job(&job, options, flags, factory)?;
        Ok(self.conclude(conclude_run(&summary, options.part, &job.output), &summary.total, summary.elapsed))
    }

    /// Runs `job` with progress and Ctrl-C.
    pub fn run_job(
        &self,
        job: &Job,
        options: &RunOptions,
        flags: &RunFlags,
        factory: Arc<dyn BackendFactory>,
    ) -> Result<RunSummary, Failure> {
        // Every chunk in flight may hold as much prepared; objects that are read and images that are decoded come on top.
        let chunks = options.devices.len() as u64 + 1;
        let prepared = runtime_limits(options).prepared_bytes_max.saturating_mul(chunks);
        crate::memory::reserve(prepared.saturating_add(IN_WORK_BYTES));
        self.watched(flags, options, |stop, observer| slicemill_exec::run_job(job, options, factory, stop, observer))
    }

    /// `slicemill retry OUT`.
    pub fn retry(&self, args: &RetryArgs) -> Result<Exit, Failure> {
        let classes = args.class.iter().map(|name| {
            ErrorClass::parse(name.trim()).ok_or_else(|| {
                let names: Vec<_> = ErrorClass::ALL.iter().map(|class| class.as_str()).collect();
                Failure::usage(format!("no class {name}: there are {}", names.join(", ")))
            })
        });
        let classes: Vec<ErrorClass> = classes.collect::<Result<_, _>>()?;
        let options = run_options(&args.run, &ShareFlags::default(), stores(self.flags)?)?;
        let (_, frozen) = runtime()?.block_on(FrozenJob::open(&args.out, &options.stores)).map_err(failure_of)?;
        let beams = frozen.job.generation.as_ref().map_or(1, |params| params.num_beams);
        let factory = models::open(&frozen.job.model, frozen.job.windows, runtime_of(&options, beams))?;
        let chosen = (!classes.is_empty()).then_some(classes.as_slice());
        let summary = self.watched(&args.run, &options, |stop, observer| {
            slicemill_exec::retry_job(&args.out, chosen, &options, factory, stop, observer)
        })?;
        Ok(self.conclude(conclude_retry(&summary, &args.out), &summary.total, summary.elapsed))
    }

    /// The one last line of a run in JSON logs, which programs look for; people have read the same in words.
    fn conclude(&self, exit: Exit, counts: &Counts, elapsed: Duration) -> Exit {
        if self.flags.log_format == LogFormat::Json {
            tracing::info!(
                target: "slicemill",
                exit = exit.code(),
                rows = counts.inputs,
                ok = counts.ok,
                failed = counts.failed,
                skipped = counts.skipped,
                slices = counts.slices,
                visual_tokens = counts.visual_tokens,
                output_tokens = counts.output_tokens,
                elapsed_s = elapsed.as_secs_f64(),
                "end"
            );
        }
        exit
    }

    /// Runs `work` with the progress display and the two steps of Ctrl-C.
    fn watched<T, F>(
        &self,
        flags: &RunFlags,
        options: &RunOptions,
        work: impl FnOnce(StopSignal, Arc<dyn RunObserver>) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, ExecError>>,
    {
        let stop = StopSignal::new();
        let display = Arc::new(Display::new(self.flags.clone(), self.bars.clone()));
        let metrics = Metrics::new(options.stores.counters().clone());
        let observer: Arc<dyn RunObserver> =
            Arc::new(Observers { display: Arc::clone(&display), metrics: metrics.clone() });
        let runtime = runtime()?;
        let tasks = runtime.block_on(publish(&metrics, flags))?;
        let result = runtime.block_on(async {
            let work = work(stop.clone(), observer);
            tokio::pin!(work);
            loop {
                tokio::select! {
                    result = &mut work => break result,
                    signal = tokio::signal::ctrl_c() => {
                        // Without a signal handler the system's own way of stopping remains.
                        if signal.is_ok() {
                            tell_stop(&stop);
                            stop.request();
                        }
                    }
                }
            }
        });
        display.finish();
        metrics.finished();
        drop(tasks);
        if let Some(file) = &flags.metrics_file
            && let Err(error) = metrics.write(file)
        {
            tracing::warn!(target: "slicemill", "{}: cannot write the counters: {error}", file.display());
        }
        result.map_err(failure_of)
    }
}

/// Standard input in a temporary file, which goes when this is dropped.
pub struct KeptInput {
    file: tempfile::NamedTempFile,
    zero_separated: bool,
}

impl KeptInput {
    /// Reads standard input to its end when `-` is among the inputs.
    pub fn of(inputs: &[String]) -> Result<Option<Self>, Failure> {
        if !inputs.iter().any(|input| input == "-") {
            return Ok(None);
        }
        let wrong = |error: std::io::Error| Failure::failed(format!("standard input cannot be kept: {error}"));
        let mut file = tempfile::NamedTempFile::new().map_err(wrong)?;
        std::io::copy(&mut std::io::stdin().lock(), &mut file).map_err(wrong)?;
        let mut beginning = Vec::new();
        let read = std::fs::File::open(file.path()).map_err(wrong)?;
        std::io::Read::read_to_end(&mut std::io::Read::take(read, 1 << 16), &mut beginning).map_err(wrong)?;
        Ok(Some(Self { file, zero_separated: beginning.contains(&0) }))
    }

    /// Where it is kept.
    pub fn input(&self) -> StandardInput {
        StandardInput { file: self.file.path().to_owned(), zero_separated: self.zero_separated }
    }
}

/// Starts to serve and to write the counters, as far as that was asked for.
async fn publish(metrics: &Metrics, flags: &RunFlags) -> Result<Vec<Task>, Failure> {
    let mut tasks = Vec::new();
    if let Some(address) = flags.metrics {
        let (listening, task) = metrics.serve(address).await?;
        tracing::info!(target: "slicemill", "counters at http://{listening}/metrics");
        tasks.push(task);
    }
    if let Some(file) = &flags.metrics_file {
        tasks.push(metrics.write_to(file.clone())?);
    }
    Ok(tasks)
}

/// Everybody who is told how a run goes.
struct Observers {
    display: Arc<Display>,
    metrics: Metrics,
}

impl RunObserver for Observers {
    fn started(&self, totals: &RunTotals, counters: &Arc<Progress>) {
        self.metrics.started(totals, counters);
        self.display.started(totals, counters);
    }

    fn committed(&self, chunk: &Counts) {
        self.metrics.committed(chunk);
        self.display.committed(chunk);
    }
}

/// The last lines of a run, and its exit code.
fn conclude_run(summary: &RunSummary, part: Option<Part>, out: &str) -> Exit {
    let counts = &summary.total;
    if summary.interrupted {
        tracing::warn!(
            target: "slicemill",
            "interrupted: {} of {} rows are done and kept; run the same command again to resume",
            counts.inputs, summary.rows
        );
        return Exit::Interrupted;
    }
    if summary.unasked > 0 {
        tracing::info!(target: "slicemill", "{} inputs without a question were left out", summary.unasked);
    }
    if summary.already_done {
        tracing::info!(target: "slicemill", "{out} is finished already: nothing to do ({} rows)", counts.inputs);
    } else {
        let before = match summary.rows_before {
            0 => String::new(),
            rows => format!(", {rows} of them before this run"),
        };
        tracing::info!(
            target: "slicemill",
            "{} rows{before}: {} ok, {} failed, {} skipped; {} slices, {} visual and {} output tokens; this run took {:.1} s",
            counts.inputs, counts.ok, counts.failed, counts.skipped, counts.slices, counts.visual_tokens,
            counts.output_tokens, summary.elapsed.as_secs_f64()
        );
    }
    if let Some(part) = part.filter(|_| summary.shards_left > 0) {
        tracing::info!(
            target: "slicemill",
            "part {part} is done; {} shards of other parts are left: the job is complete when all {} parts have run",
            summary.shards_left, part.of
        );
        return if counts.failed > 0 { Exit::RowsFailed } else { Exit::Done };
    }
    tracing::info!(target: "slicemill", "output: {out}; look at it with: slicemill report {out}");
    tell_failed(counts, out)
}

/// The last lines of a retry, and its exit code.
fn conclude_retry(summary: &RetrySummary, out: &str) -> Exit {
    if summary.interrupted {
        tracing::warn!(target: "slicemill", "interrupted: run slicemill retry {out} again to resume");
        return Exit::Interrupted;
    }
    if summary.rows == 0 {
        tracing::info!(target: "slicemill", "{out} has no such failed rows: nothing to do");
    } else {
        let again = &summary.again;
        tracing::info!(
            target: "slicemill",
            "{} failed rows run again in {:.1} s: {} ok now, {} still failed, {} skipped",
            summary.rows, summary.elapsed.as_secs_f64(), again.ok, again.failed, again.skipped
        );
    }
    tell_failed(&summary.total, out)
}

fn tell_failed(counts: &Counts, out: &str) -> Exit {
    if counts.failed == 0 {
        return Exit::Done;
    }
    tracing::warn!(
        target: "slicemill",
        "{} rows failed: slicemill sql {out} \"SELECT key, class, message FROM failed\"; after mending them: slicemill retry {out}",
        counts.failed
    );
    Exit::RowsFailed
}

fn tell_stop(stop: &StopSignal) {
    if stop.is_draining() {
        tracing::warn!(target: "slicemill", "stopping at once");
    } else {
        tracing::warn!(
            target: "slicemill",
            "finishing what is in flight; press Ctrl-C again to stop at once. The same command resumes"
        );
    }
}

/// How backends behave in this run of a job with so many beams.
pub fn runtime_of(options: &RunOptions, beams: u32) -> Runtime {
    Runtime { batch_views: options.batch_views, sequences: options.sequences, beams: Some(beams) }
}

/// Errors of a job with their exit codes.
pub fn failure_of(error: ExecError) -> Failure {
    let exit = match &error {
        ExecError::Job(_)
        | ExecError::Questions(_)
        | ExecError::NoInputs(_)
        | ExecError::Inputs(_)
        | ExecError::Condition(_) => Exit::Usage,
        ExecError::Different(_) => Exit::DifferentJob,
        ExecError::Stopped => Exit::Interrupted,
        _ => Exit::Failed,
    };
    Failure { exit, message: error.to_string() }
}
