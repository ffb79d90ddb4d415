//! [`WriteExec`]: rows of chunks in, committed chunks and shards out.

use std::fmt;
use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::common::runtime::SpawnedTask;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, internal_datafusion_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::metrics::{Count, ExecutionPlanMetricsSet, MetricBuilder, MetricsSet, Time};
use datafusion::physical_plan::stream::RecordBatchReceiverStreamBuilder;
use datafusion::physical_plan::{
    ChildrenPropertiesMode, DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, ReplaceChildrenOptions,
};
use futures::StreamExt;
use slicemill_io::{ChunkStager, StagedChunk};
use tokio::sync::mpsc;

use crate::ExecError;
use crate::plan::NodeSpec;

use super::chunk_batch::{Piece, pieces};
use super::{LiveJob, Record, only_child, properties_over, record_schema};

/// Stages the rows of each chunk, commits the chunk when its last row has come, and assembles a shard when all its
/// chunks are committed. Emits one record per chunk and per shard.
#[derive(Debug)]
pub struct WriteExec {
    spec: Arc<NodeSpec>,
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl WriteExec {
    /// Writes what `input`, an [`super::AnnotateExec`], annotates.
    pub fn new(spec: Arc<NodeSpec>, input: Arc<dyn ExecutionPlan>) -> Self {
        let properties = properties_over(&input, record_schema());
        Self { spec, input, properties, metrics: ExecutionPlanMetricsSet::new() }
    }

    /// What the node knows of its job.
    pub fn spec(&self) -> &Arc<NodeSpec> {
        &self.spec
    }
}

impl DisplayAs for WriteExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let job = &self.spec.frozen.job;
        write!(f, "WriteExec: dataset={}, chunk_rows={}, shards of {}", job.task.dataset(), job.chunk_rows, job.shards)
    }
}

impl ExecutionPlan for WriteExec {
    fn name(&self) -> &'static str {
        "WriteExec"
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
        Ok(Arc::new(Self::new(Arc::clone(&self.spec), input)))
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let live = LiveJob::of(&context, &self.spec.job)?;
        let input = self.input.execute(partition, context)?;
        // The writer is a task of its own, so that chunks go on being annotated while one is written.
        let mut stream = RecordBatchReceiverStreamBuilder::new(self.schema(), 2);
        let writer =
            Writer { live, open: None, records: stream.tx(), metrics: WriteMetrics::new(&self.metrics, partition) };
        stream.spawn(async move { Ok(writer.write(input).await?) });
        Ok(stream.build())
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }
}

/// A chunk whose last row has not come yet.
struct OpenChunk {
    shard: u32,
    chunk: u32,
    rows: u32,
    stager: ChunkStager,
}

/// The writer of one partition.
struct Writer {
    live: Arc<LiveJob>,
    open: Option<OpenChunk>,
    records: mpsc::Sender<Result<RecordBatch>>,
    metrics: WriteMetrics,
}

impl Writer {
    async fn write(mut self, mut input: SendableRecordBatchStream) -> Result<(), ExecError> {
        while let Some(batch) = input.next().await {
            let batch = batch?;
            let pieces = on_blocking_thread(move || pieces(&batch)).await?;
            for piece in pieces {
                match piece {
                    Piece::Finish { shard, chunks } => self.finish_shard(shard, chunks).await?,
                    Piece::Outcome { shard, chunk, rows, outcome } => {
                        let mut open = self.chunk(shard, chunk, rows)?;
                        open.stager.push(*outcome)?;
                        if open.stager.counts().inputs < u64::from(rows) {
                            self.open = Some(open);
                        } else {
                            self.commit(open).await?;
                        }
                    }
                }
            }
        }
        match &self.open {
            Some(open) => Err(lost_rows(open, "the end of the input")),
            None => Ok(()),
        }
    }

    /// The chunk that is open, or a new one when the last was committed.
    fn chunk(&mut self, shard: u32, chunk: u32, rows: u32) -> Result<OpenChunk, ExecError> {
        match self.open.take() {
            Some(open) if (open.shard, open.chunk, open.rows) == (shard, chunk, rows) => Ok(open),
            Some(open) => Err(lost_rows(&open, &format!("rows of chunk {chunk} of shard {shard}"))),
            None => Ok(OpenChunk { shard, chunk, rows, stager: self.live.ledger.stager(shard, chunk) }),
        }
    }

    async fn commit(&mut self, open: OpenChunk) -> Result<(), ExecError> {
        let counts = open.stager.counts();
        if !counts.conserved() || counts.inputs != u64::from(open.rows) {
            return Err(ExecError::NotConserved(format!(
                "chunk {} of shard {} has {} input rows, {} ok, {} failed and {} skipped of {}",
                open.chunk, open.shard, counts.inputs, counts.ok, counts.failed, counts.skipped, open.rows
            )));
        }
        let timer = self.metrics.elapsed.timer();
        let staged: StagedChunk = on_blocking_thread(move || Ok(open.stager.finish()?)).await?;
        let entry = self.live.ledger.commit_chunk(staged).await?;
        timer.done();
        self.metrics.chunks.add(1);
        self.live.observer.committed(&entry.counts);
        self.emit(Record { shard: entry.shard, chunk: Some(entry.chunk), counts: entry.counts }).await
    }

    /// Assembles the shard. When the run drains, chunks may be missing on purpose; a later run finishes the shard.
    async fn finish_shard(&mut self, shard: u32, chunks: u32) -> Result<(), ExecError> {
        if let Some(open) = &self.open {
            return Err(lost_rows(open, &format!("the end of shard {shard}")));
        }
        if self.live.stop.is_draining()
            && self.live.ledger.committed_shard(shard).await?.is_none()
            && self.live.ledger.committed_chunks(shard).await?.len() < chunks as usize
        {
            return Ok(());
        }
        let timer = self.metrics.elapsed.timer();
        let entry = self.live.ledger.finish_shard(shard, chunks).await?;
        timer.done();
        self.metrics.shards.add(1);
        self.emit(Record { shard, chunk: None, counts: entry.counts }).await
    }

    async fn emit(&mut self, record: Record) -> Result<(), ExecError> {
        // Nobody listens any more when the stream was dropped; what is committed stays.
        let _ = self.records.send(record.batch()).await;
        Ok(())
    }
}

fn lost_rows(open: &OpenChunk, instead: &str) -> ExecError {
    ExecError::NotConserved(format!(
        "chunk {} of shard {} has {} of its {} input rows when {instead} comes",
        open.chunk,
        open.shard,
        open.stager.counts().inputs,
        open.rows
    ))
}

/// Encoding Parquet takes long enough to hold up other tasks of the runtime's thread.
async fn on_blocking_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ExecError> + Send + 'static,
) -> Result<T, ExecError> {
    match SpawnedTask::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(ExecError::DataFusion(internal_datafusion_err!("a chunk was not written: {error}"))),
    }
}

struct WriteMetrics {
    /// Chunks committed.
    chunks: Count,
    /// Shards finished.
    shards: Count,
    /// Wall clock of encoding and committing.
    elapsed: Time,
}

impl WriteMetrics {
    fn new(set: &ExecutionPlanMetricsSet, partition: usize) -> Self {
        Self {
            chunks: MetricBuilder::new(set).counter("chunks", partition),
            shards: MetricBuilder::new(set).counter("shards", partition),
            elapsed: MetricBuilder::new(set).subset_time("write_time", partition),
        }
    }
}
