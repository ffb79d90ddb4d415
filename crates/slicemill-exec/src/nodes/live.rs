//! What is alive behind the nodes of a plan: devices, stores, the ledger. One per process and job.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use datafusion::execution::TaskContext;
use futures::FutureExt;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use slicemill_core::{Fate, RowOutcome};
use slicemill_io::{FrozenInputs, Generation, InputEntry, Ledger, ObjectFetch, RetryPass};
use slicemill_pipeline::{Annotator, Fetch, FetchError, Fetched, InputRef, PromptItem};

use crate::questions::{FrozenQuestions, Prompt};
use crate::run::RunObserver;
use crate::{ExecError, StopSignal};

use super::{RowCondition, Unit, Work};

/// Which job a node belongs to: plain data that travels with the plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRef {
    /// URL of the output.
    pub output: String,
    /// Fingerprint of the job.
    pub fingerprint: String,
    /// Number of the retry pass; 0 for the job itself.
    pub retry: u32,
}

/// Where the prompts of a row come from.
#[derive(Debug, Clone)]
pub enum Prompts {
    /// Every row has the same ones (none in encode jobs).
    Same(Arc<[PromptItem]>),
    /// Frozen questions by key, of all generations.
    Frozen(Vec<FrozenQuestions>),
}

impl Prompts {
    /// The prompts of every entry, in order.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn of(&self, entries: &[InputEntry]) -> Result<Vec<Arc<[PromptItem]>>, ExecError> {
        match self {
            Self::Same(prompts) => Ok(vec![Arc::clone(prompts); entries.len()]),
            Self::Frozen(files) => {
                let keys: BTreeSet<&str> = entries.iter().map(|entry| entry.key.as_str()).collect();
                let mut by_key: BTreeMap<String, Vec<Prompt>> = BTreeMap::new();
                for file in files {
                    by_key.extend(file.read(&keys).await?);
                }
                Ok(entries.iter().map(|entry| items(by_key.get(&entry.key).map_or(&[], Vec::as_slice))).collect())
            }
        }
    }
}

/// Questions as the pipeline takes them.
pub(crate) fn items(prompts: &[Prompt]) -> Arc<[PromptItem]> {
    let item = |prompt: &Prompt| PromptItem {
        question_id: Some(prompt.question_id),
        question: prompt.question.clone(),
        prompt: (prompt.prompt != prompt.question).then(|| prompt.prompt.clone()),
    };
    prompts.iter().map(item).collect()
}

/// What the nodes of a job's plan use. Installed as an extension of the session's configuration.
pub struct LiveJob {
    /// The job.
    pub job: JobRef,
    /// Devices and the CPU pool.
    pub annotator: Annotator,
    /// Reads inputs.
    pub fetch: ObjectFetch,
    /// Where chunks and shards are committed: the job's ledger, or that of the retry pass.
    pub ledger: Ledger,
    /// The job's ledger.
    pub job_ledger: Ledger,
    /// The retry pass, when this is one.
    pub retry: Option<RetryPass>,
    /// Frozen inputs by generation.
    pub inputs: BTreeMap<u32, FrozenInputs>,
    /// Generations of these inputs.
    pub generations: Vec<Generation>,
    /// Which rows are taken, by the plan and the columns of the input.
    pub condition: Option<Arc<RowCondition>>,
    /// Prompts of rows.
    pub prompts: Prompts,
    /// Asked before new work starts.
    pub stop: StopSignal,
    /// Told what was committed.
    pub observer: Arc<dyn RunObserver>,
}

impl std::fmt::Debug for LiveJob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LiveJob").field("job", &self.job).finish_non_exhaustive()
    }
}

impl LiveJob {
    /// The live side of `job` in this process.
    ///
    /// # Errors
    /// When none is installed, or that of another job.
    pub fn of(context: &TaskContext, job: &JobRef) -> Result<Arc<Self>, ExecError> {
        match context.session_config().get_extension::<Self>() {
            Some(live) if live.job == *job => Ok(live),
            Some(live) => Err(ExecError::Incomplete(format!(
                "this process runs the job in {}, the plan is for the one in {}",
                live.job.output, job.output
            ))),
            None => {
                Err(ExecError::Incomplete(format!("no job is open in this process for the plan of {}", job.output)))
            }
        }
    }

    /// Annotates the rows of a chunk: one outcome per row, in order. Empty for a unit that finishes a shard.
    ///
    /// # Errors
    /// Those that end the job.
    pub async fn annotate(&self, unit: &Unit) -> Result<Vec<RowOutcome>, ExecError> {
        let Work::Chunk { row_first, rows, .. } = unit.work else { return Ok(Vec::new()) };
        let inputs = self.inputs.get(&unit.generation).ok_or_else(|| {
            ExecError::Incomplete(format!("generation {} of {} is not open", unit.generation, self.job.output))
        })?;
        let entries = inputs.read(row_first..row_first + u64::from(rows)).await?;
        let (entries, left_out) = self.chosen(entries)?;
        let prompts = self.prompts.of(&entries).await?;
        let refs = entries.into_iter().zip(prompts).map(|(entry, prompts)| input_ref(entry, prompts)).collect();
        let annotated = self.annotator.annotate_chunk(refs, Arc::new(StoreFetch(self.fetch.clone()))).await?;
        Ok(merged(annotated, left_out))
    }

    /// The entries that the job takes as far as their columns tell, and what becomes of the others, by their places.
    fn chosen(&self, entries: Vec<InputEntry>) -> Result<(Vec<InputEntry>, LeftOut), ExecError> {
        let Some(condition) = &self.condition else { return Ok((entries, Vec::new())) };
        let kept = condition.of_entries(&entries)?;
        let (mut chosen, mut left_out) = (Vec::new(), Vec::new());
        for (place, (entry, kept)) in entries.into_iter().zip(kept).enumerate() {
            if kept {
                chosen.push(entry);
            } else {
                left_out.push((place, condition.skipped(entry)));
            }
        }
        Ok((chosen, left_out))
    }
}

/// What became of entries that were not taken, by their places among all.
type LeftOut = Vec<(usize, RowOutcome)>;

/// An entry as the pipeline takes it.
pub(crate) fn input_ref(entry: InputEntry, prompts: Arc<[PromptItem]>) -> InputRef {
    InputRef {
        key: entry.key,
        source: entry.url,
        bytes: entry.bytes,
        tag: entry.tag,
        estimated: entry.estimated,
        columns: entry.columns.map(Into::into),
        prompts,
    }
}

/// Outcomes of annotated rows with those that were left out, each at its place.
fn merged(annotated: Vec<RowOutcome>, left_out: LeftOut) -> Vec<RowOutcome> {
    let mut outcomes = Vec::with_capacity(annotated.len() + left_out.len());
    let mut annotated = annotated.into_iter();
    for (place, outcome) in left_out {
        outcomes.extend(annotated.by_ref().take(place - outcomes.len()));
        outcomes.push(outcome);
    }
    outcomes.extend(annotated);
    outcomes
}

/// [`ObjectFetch`] as the pipeline asks for it.
struct StoreFetch(ObjectFetch);

impl Fetch for StoreFetch {
    fn fetch<'a>(&'a self, row: &'a InputRef) -> BoxFuture<'a, Result<Fetched, FetchError>> {
        async move {
            let entry = InputEntry {
                estimated: row.estimated,
                ..InputEntry::object(&row.key, &row.source, row.bytes, &row.tag)
            };
            match self.0.read(&entry).await {
                Ok(bytes) => Ok(Fetched { bytes, attempts: 1 }),
                Err(error) if error.fate == Fate::Fatal => Err(FetchError::Fatal(error.to_string())),
                Err(error) => Err(FetchError::Row { error: error.row_error(), attempts: error.attempts }),
            }
        }
        .boxed()
    }
}
