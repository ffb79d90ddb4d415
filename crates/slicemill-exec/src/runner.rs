//! Runners: what turns a plan into work. One plan tree for all of them.

use std::sync::Arc;

use datafusion::physical_plan::{ExecutionPlan, displayable, execute_stream};
use datafusion::prelude::{SessionConfig, SessionContext};
use futures::TryStreamExt;

use crate::ExecError;
use crate::nodes::{JobOutcome, LiveJob};

/// Runs the plan of a job to its end.
#[async_trait::async_trait]
pub trait JobRunner: Send + Sync {
    /// Runs `plan`, whose nodes belong to the job of `live`.
    ///
    /// # Errors
    /// [`ExecError::Stopped`] when the run was asked twice to stop; otherwise whatever ended the job.
    async fn run(&self, plan: Arc<dyn ExecutionPlan>, live: Arc<LiveJob>) -> Result<JobOutcome, ExecError>;
}

/// Runs everything in this process, on the tokio runtime of the caller.
#[derive(Debug, Clone, Copy, Default)]
pub struct LocalRunner;

#[async_trait::async_trait]
impl JobRunner for LocalRunner {
    async fn run(&self, plan: Arc<dyn ExecutionPlan>, live: Arc<LiveJob>) -> Result<JobOutcome, ExecError> {
        let stop = live.stop.clone();
        let session = SessionContext::new_with_config(SessionConfig::new().with_extension(live));
        let mut stream = execute_stream(Arc::clone(&plan), session.task_ctx())?;
        let collect = async {
            let mut batches = Vec::new();
            while let Some(batch) = stream.try_next().await? {
                batches.push(batch);
            }
            Ok::<_, ExecError>(JobOutcome::of_batches(&batches)?)
        };
        let outcome = tokio::select! {
            biased;
            () = stop.aborted() => Err(ExecError::Stopped),
            outcome = collect => outcome,
        };
        tracing::debug!(plan = %metrics_of(&plan), "plan ended");
        // Dropping the stream cancels every task below it.
        drop(stream);
        outcome
    }
}

/// The plan with its metrics, for logs.
pub fn metrics_of(plan: &Arc<dyn ExecutionPlan>) -> String {
    datafusion::physical_plan::display::DisplayableExecutionPlan::with_metrics(plan.as_ref()).indent(false).to_string()
}

/// The plan tree, one node a line.
pub fn plan_text(plan: &Arc<dyn ExecutionPlan>) -> String {
    displayable(plan.as_ref()).indent(false).to_string()
}
