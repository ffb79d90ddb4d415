//! [`AnnotateExec`]: work units in, the annotated rows of their chunks out.

use std::fmt;
use std::sync::Arc;

use datafusion::common::runtime::SpawnedTask;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, internal_datafusion_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::metrics::{Count, ExecutionPlanMetricsSet, MetricBuilder, MetricsSet, Time};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    ChildrenPropertiesMode, DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, ReplaceChildrenOptions,
};
use futures::{Stream, StreamExt, TryStreamExt, stream};

use crate::ExecError;
use crate::plan::NodeSpec;

use super::chunk_batch::{chunk_batch, chunk_schema};
use super::{LiveJob, Unit, only_child, properties_over, units_of_batch};

/// Annotates one chunk of rows per work unit. Several chunks are in flight; their batches leave in the order of the
/// units. A unit that finishes a shard passes through.
#[derive(Debug)]
pub struct AnnotateExec {
    spec: Arc<NodeSpec>,
    chunks_in_flight: usize,
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl AnnotateExec {
    /// Annotates the units of `input`, at most `chunks_in_flight` of a partition at the same time.
    pub fn new(spec: Arc<NodeSpec>, chunks_in_flight: usize, input: Arc<dyn ExecutionPlan>) -> Self {
        let properties = properties_over(&input, chunk_schema(&spec.frozen.content_spec()));
        Self { spec, chunks_in_flight, input, properties, metrics: ExecutionPlanMetricsSet::new() }
    }

    /// What the node knows of its job.
    pub fn spec(&self) -> &Arc<NodeSpec> {
        &self.spec
    }
}

impl DisplayAs for AnnotateExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let job = &self.spec.frozen.job;
        write!(
            f,
            "AnnotateExec: task={}, model={}, policy={}, chunks_in_flight={}",
            job.task.as_str(),
            job.model,
            job.policy.name,
            self.chunks_in_flight
        )
    }
}

impl ExecutionPlan for AnnotateExec {
    fn name(&self) -> &'static str {
        "AnnotateExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
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
        Ok(Arc::new(Self::new(Arc::clone(&self.spec), self.chunks_in_flight, input)))
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let live = LiveJob::of(&context, &self.spec.job)?;
        let units = units(self.input.execute(partition, context)?, Arc::clone(&live));
        let metrics = AnnotateMetrics::new(&self.metrics, partition);
        let spec = Arc::clone(&self.spec);
        let tasks = units.map_ok(move |unit| annotated(unit, Arc::clone(&live), Arc::clone(&spec), metrics.clone()));
        let batches = tasks.try_buffered(self.chunks_in_flight.max(1));
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), batches)))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }
}

/// The units of a partition, until the run is asked to stop.
fn units(input: SendableRecordBatchStream, live: Arc<LiveJob>) -> impl Stream<Item = Result<Unit>> {
    input
        .map(|batch| units_of_batch(&batch?))
        .map_ok(|units| stream::iter(units).map(Ok))
        .try_flatten()
        .take_while(move |_| std::future::ready(!live.stop.is_draining()))
}

/// Starts a unit at once, as a task that ends when its future is dropped.
fn annotated(
    unit: Unit,
    live: Arc<LiveJob>,
    spec: Arc<NodeSpec>,
    metrics: AnnotateMetrics,
) -> impl Future<Output = Result<arrow::array::RecordBatch>> {
    let task = SpawnedTask::spawn(async move {
        let timer = metrics.elapsed.timer();
        let outcomes = live.annotate(&unit).await?;
        metrics.input_rows.add(outcomes.len());
        metrics.chunks.add(usize::from(!outcomes.is_empty()));
        let batch = chunk_batch(&spec.frozen.content_spec(), &unit, outcomes)?;
        timer.done();
        Ok::<_, ExecError>(batch)
    });
    async move {
        match task.await {
            Ok(annotated) => Ok(annotated?),
            Err(error) => Err(internal_datafusion_err!("a chunk was not annotated: {error}")),
        }
    }
}

#[derive(Clone)]
struct AnnotateMetrics {
    /// Chunks annotated.
    chunks: Count,
    /// Input rows of these chunks.
    input_rows: Count,
    /// Wall clock of all chunks, added up; chunks overlap.
    elapsed: Time,
}

impl AnnotateMetrics {
    fn new(set: &ExecutionPlanMetricsSet, partition: usize) -> Self {
        Self {
            chunks: MetricBuilder::new(set).counter("chunks", partition),
            input_rows: MetricBuilder::new(set).counter("input_rows", partition),
            elapsed: MetricBuilder::new(set).subset_time("chunk_time", partition),
        }
    }
}
