//! [`CommitExec`]: the end of a job.

use std::fmt;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{DataFusionError, Result, internal_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    ChildrenPropertiesMode, DisplayAs, DisplayFormatType, Distribution, ExecutionPlan, InputDistributionRequirements,
    Partitioning, PlanProperties, ReplaceChildrenOptions,
};
use futures::{TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use slicemill_io::{Counts, Ledger, LedgerState, Success};

use crate::ExecError;
use crate::plan::{NodeSpec, units_left};

use super::{LiveJob, Record, only_child};

/// What a run came to: the one row that [`CommitExec`] emits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobOutcome {
    /// Whether everything is done and `_SUCCESS` is written.
    pub complete: bool,
    /// Shards that are not done; those of other processes, when this one does a part of the job and has done it.
    pub shards_left: u64,
    /// Whether everything of this process's part is done; of the whole job, when it has no part.
    pub part_done: bool,
    /// Counts and sums of the whole output: all that is committed, by this run and those before it.
    pub total: Counts,
    /// Counts and sums of the inputs of this plan: of the job, or of the rows that a retry runs again.
    pub passage: Counts,
    /// Counts and sums of the chunks that this run committed.
    pub this_run: Counts,
    /// Chunks that this run committed.
    pub chunks: u64,
    /// Shards that this run finished.
    pub shards: u64,
}

impl JobOutcome {
    fn schema() -> SchemaRef {
        Arc::new(Schema::new(vec![Field::new("outcome", DataType::Utf8, false)]))
    }

    fn batch(&self) -> Result<RecordBatch> {
        let text = serde_json::to_string(self).map_err(|error| DataFusionError::External(Box::new(error)))?;
        let column: ArrayRef = Arc::new(StringArray::from(vec![text]));
        Ok(RecordBatch::try_new(Self::schema(), vec![column])?)
    }

    /// The outcome in the batches of a finished plan.
    ///
    /// # Errors
    /// When they are not those of a [`CommitExec`].
    pub fn of_batches(batches: &[RecordBatch]) -> Result<Self> {
        let [batch] = batches else { return internal_err!("a job ends in one batch, not {}", batches.len()) };
        match batch.columns().first().and_then(|column| column.as_string_opt::<i32>()) {
            Some(texts) if texts.len() == 1 => {
                serde_json::from_str(texts.value(0)).map_err(|error| DataFusionError::External(Box::new(error)))
            }
            _ => internal_err!("a job ends in one row of text, not {}", batch.schema()),
        }
    }
}

/// Adds the records up, checks that rows are conserved over the whole job, and writes `_SUCCESS`; after a run that was
/// asked to stop it only says how far the job has come. One partition, one row.
#[derive(Debug)]
pub struct CommitExec {
    spec: Arc<NodeSpec>,
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
}

impl CommitExec {
    /// Commits what `input` wrote: the records of a [`super::WriteExec`] in one partition.
    pub fn new(spec: Arc<NodeSpec>, input: Arc<dyn ExecutionPlan>) -> Self {
        let properties = Arc::new(PlanProperties::new(
            EquivalenceProperties::new(JobOutcome::schema()),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Final,
            Boundedness::Bounded,
        ));
        Self { spec, input, properties }
    }

    /// What the node knows of its job.
    pub fn spec(&self) -> &Arc<NodeSpec> {
        &self.spec
    }
}

impl DisplayAs for CommitExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.spec.job.retry {
            0 => write!(f, "CommitExec: rows={}", self.spec.rows),
            pass => write!(f, "CommitExec: rows={}, retry={pass}", self.spec.rows),
        }
    }
}

impl ExecutionPlan for CommitExec {
    fn name(&self) -> &'static str {
        "CommitExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn input_distribution_requirements(&self) -> InputDistributionRequirements {
        InputDistributionRequirements::new(vec![Distribution::SinglePartition])
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let input = only_child(self.name(), children)?;
        Ok(Arc::new(Self::new(Arc::clone(&self.spec), input)))
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        if partition != 0 {
            return internal_err!("CommitExec has one partition, not {partition}");
        }
        let live = LiveJob::of(&context, &self.spec.job)?;
        let input = self.input.execute(0, context)?;
        let spec = Arc::clone(&self.spec);
        let outcome = async move { commit(&spec, &live, input).await?.batch() };
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), stream::once(outcome))))
    }
}

async fn commit(
    spec: &NodeSpec,
    live: &LiveJob,
    mut records: SendableRecordBatchStream,
) -> Result<JobOutcome, ExecError> {
    let mut outcome = JobOutcome {
        complete: false,
        shards_left: 0,
        part_done: false,
        total: Counts::default(),
        passage: Counts::default(),
        this_run: Counts::default(),
        chunks: 0,
        shards: 0,
    };
    while let Some(batch) = records.try_next().await? {
        for record in Record::of_batch(&batch)? {
            match record.chunk {
                Some(_) => {
                    outcome.chunks += 1;
                    outcome.this_run.add(&record.counts);
                }
                None => outcome.shards += 1,
            }
        }
    }
    let state = live.ledger.state().await?;
    outcome.passage = committed(&state);
    outcome.total = outcome.passage.clone();
    outcome.shards_left = spec.shards.saturating_sub(state.shards.len() as u64);
    let left = units_left(&live.generations, &state, spec.part);
    outcome.part_done = left.is_empty();
    if outcome.shards_left > 0 && (live.stop.is_draining() || (spec.part.is_some() && outcome.part_done)) {
        return Ok(outcome);
    }
    check_conserved(&outcome.passage, spec.rows)?;
    if let Some(pass) = &live.retry {
        live.job_ledger.finish_retry(pass).await?;
    }
    let success = live.job_ledger.commit().await?;
    outcome.total = check_success(&live.job_ledger, success).await?;
    outcome.complete = true;
    Ok(outcome)
}

/// Counts and sums of all committed chunks and shards.
pub(crate) fn committed(state: &LedgerState) -> Counts {
    let mut counts = Counts::default();
    state.shards.values().for_each(|shard| counts.add(&shard.counts));
    state.chunks.values().for_each(|chunk| counts.add(&chunk.counts));
    counts
}

fn check_conserved(counts: &Counts, rows: u64) -> Result<(), ExecError> {
    if counts.conserved() && counts.inputs == rows {
        return Ok(());
    }
    Err(ExecError::NotConserved(format!(
        "{rows} rows went in; {} are accounted for: {} ok, {} failed, {} skipped",
        counts.inputs, counts.ok, counts.failed, counts.skipped
    )))
}

async fn check_success(ledger: &Ledger, success: Success) -> Result<Counts, ExecError> {
    let rows = ledger.generations().await?.iter().map(|generation| generation.rows).sum();
    check_conserved(&success.counts, rows)?;
    Ok(success.counts)
}
