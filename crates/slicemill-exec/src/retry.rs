//! Running failed rows again: files may have been mended, stores may answer now, a limit may have been a passing one.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt, stream};
use slicemill_core::ErrorClass;
use slicemill_io::{
    Counts, Dataset, DatasetReader, InputEntry, IoError, Ledger, ObjectFetch, OutputStore, failed_rows,
};
use slicemill_pipeline::BackendFactory;

use crate::freeze::{Frozen, FrozenJob};
use crate::inputs::fetch_of;
use crate::job::RunOptions;
use crate::questions::FrozenQuestions;
use crate::run::{Pass, RunObserver, given_back};
use crate::{ExecError, StopSignal};

/// Objects described at once.
const DESCRIBES: usize = 16;

/// How a retry ended.
#[derive(Debug, Clone, PartialEq)]
pub struct RetrySummary {
    /// URL of the output.
    pub output: String,
    /// Failed rows that were run again; 0 when there were none.
    pub rows: u64,
    /// What became of them.
    pub again: Counts,
    /// Counts and sums of the whole output now.
    pub total: Counts,
    /// Whether this went on with a retry that was interrupted (whose rows were chosen then).
    pub resumed: bool,
    /// The retry was asked to stop before it was complete.
    pub interrupted: bool,
    /// From open devices to the end.
    pub elapsed: Duration,
}

/// Runs the failed rows of the output `location` again, all or those of some classes.
///
/// # Errors
/// When the job is not complete or its model is not the loaded one, and whatever ends a run.
pub async fn retry_job(
    location: &str,
    classes: Option<&[ErrorClass]>,
    options: &RunOptions,
    factory: Arc<dyn BackendFactory>,
    stop: StopSignal,
    observer: Arc<dyn RunObserver>,
) -> Result<RetrySummary, ExecError> {
    let aborted = stop.clone();
    let retry = Box::pin(retry_in(location, classes, options, factory, stop, observer));
    tokio::select! {
        biased;
        () = aborted.aborted() => Err(ExecError::Stopped),
        summary = retry => summary,
    }
}

async fn retry_in(
    location: &str,
    classes: Option<&[ErrorClass]>,
    options: &RunOptions,
    factory: Arc<dyn BackendFactory>,
    stop: StopSignal,
    observer: Arc<dyn RunObserver>,
) -> Result<RetrySummary, ExecError> {
    let (output, job) = FrozenJob::open(location, &options.stores).await?;
    let output = output.leased();
    let lock = output.lock().await?;
    let summary = retry_locked(location, output, job, classes, options, factory, stop, observer).await;
    given_back(lock, summary).await
}

#[allow(clippy::too_many_arguments, reason = "the arguments of `retry_job` with what was opened")]
async fn retry_locked(
    location: &str,
    output: OutputStore,
    job: FrozenJob,
    classes: Option<&[ErrorClass]>,
    options: &RunOptions,
    factory: Arc<dyn BackendFactory>,
    stop: StopSignal,
    observer: Arc<dyn RunObserver>,
) -> Result<RetrySummary, ExecError> {
    crate::run::check_model(&job, factory.as_ref())?;
    let ledger = job.ledger(&output);
    ledger.recover().await?;
    let unfinished = ledger.retries().await?.into_iter().next_back().filter(|pass| !pass.done);
    let resumed = unfinished.is_some();
    let pass = match unfinished {
        Some(pass) => Some(pass),
        None => {
            if Ledger::success(&output).await?.is_none() {
                return Err(ExecError::Incomplete(format!(
                    "the job in {location} is not complete; run it to its end, then retry what failed"
                )));
            }
            let entries = failed_entries(&output, classes, fetch_of(options, &job.job));
            // Shards of as many rows as those that the failures come from.
            let shard_chunks = ledger.generations().await?.iter().map(|generation| generation.shard_chunks).max();
            ledger.begin_retry(entries, job.job.chunk_rows, shard_chunks.unwrap_or(1)).await?
        }
    };
    let mut summary = RetrySummary {
        output: output.url().to_owned(),
        rows: 0,
        again: Counts::default(),
        total: Counts::default(),
        resumed,
        interrupted: false,
        elapsed: Duration::ZERO,
    };
    let Some(pass) = pass else {
        summary.total = Ledger::success(&output).await?.map(|success| success.counts).unwrap_or_default();
        return Ok(summary);
    };
    let frozen = Frozen {
        questions: questions_of(&job, &ledger, &output).await?,
        generations: vec![pass.generation.clone()],
        ledger: ledger.clone(),
        unasked: 0,
        job,
    };
    let run =
        Pass { frozen: &frozen, ledger: ledger.of_retry(&pass), generations: &frozen.generations, retry: Some(&pass) };
    let run = run.run(options, factory, stop, observer).await?;
    Ok(RetrySummary {
        rows: pass.generation.rows,
        again: run.outcome.passage,
        total: run.outcome.total,
        interrupted: !run.outcome.complete,
        elapsed: run.elapsed,
        ..summary
    })
}

async fn questions_of(
    job: &FrozenJob,
    ledger: &Ledger,
    output: &OutputStore,
) -> Result<Vec<FrozenQuestions>, ExecError> {
    let mut questions = Vec::new();
    if job.job.questions.as_ref().is_some_and(|questions| questions.file.is_some()) {
        for generation in ledger.generations().await? {
            questions.push(FrozenQuestions::open(output, generation.number).await?);
        }
    }
    Ok(questions)
}

/// The failed rows of these classes as inputs, described anew: a mended file has another size. An object that is not
/// there any more stays an input and fails again.
fn failed_entries(
    output: &OutputStore,
    classes: Option<&[ErrorClass]>,
    fetch: ObjectFetch,
) -> BoxStream<'static, Result<InputEntry, IoError>> {
    let classes: Option<BTreeSet<ErrorClass>> = classes.map(|classes| classes.iter().copied().collect());
    let rows = DatasetReader::new(output.clone(), Dataset::Failed).stream();
    let rows = rows.map(|batch| failed_rows(&batch?)).map_ok(|rows| stream::iter(rows).map(Ok)).try_flatten();
    let wanted = rows.try_filter(move |row| {
        std::future::ready(classes.as_ref().is_none_or(|classes| classes.contains(&row.error.class)))
    });
    let described = wanted.map_ok(move |row| {
        let fetch = fetch.clone();
        async move {
            let gone = InputEntry::object(&row.key, &row.source, 0, "");
            let entry = fetch.describe(&row.key, &row.source).await.unwrap_or(gone);
            Ok(InputEntry { columns: row.columns.as_deref().map(ToOwned::to_owned), ..entry })
        }
    });
    described.try_buffered(DESCRIBES).boxed()
}
