//! The nodes of a job's physical plan, bottom to top.
//!
//! ```text
//!  DataSourceExec   work units, one partition per group of shards      (memory; a distributed runner can slice it)
//!   └▶ AnnotateExec one chunk of rows per unit, several in flight, in order
//!       └▶ WriteExec   stages chunks through the ledger, finishes shards; rows become records of what was written
//!           └▶ CoalescePartitionsExec
//!               └▶ CommitExec   checks that rows are conserved, writes _SUCCESS; one summary row
//! ```
//!
//! - Nodes carry specs (plain data); what is alive — devices, stores, the ledger — is [`LiveJob`], installed in the
//!   session by whoever runs the plan. Decoding a plan needs no weights.
//! - The leaf is a memory source of units: a custom leaf would be read whole by every task of a distributed runner.
//! - Names of files come from the units, never from the number of a partition, which is local to a task.
//! - The expensive nodes do not stand in the last stage: [`CommitExec`] above the exchange does next to nothing.
//! - All nodes are unary, take their partitions from their child, and do not benefit from repartitioning.

mod annotate;
mod chunk_batch;
mod commit;
mod live;
mod record;
mod row_condition;
mod unit;
mod write;

pub use annotate::AnnotateExec;
pub(crate) use commit::committed;
pub use commit::{CommitExec, JobOutcome};
pub use live::{JobRef, LiveJob, Prompts};
pub(crate) use live::{input_ref, items};
pub use record::{Record, record_schema};
pub use row_condition::RowCondition;
pub use unit::{Unit, Work, unit_batch, unit_schema, units_of_batch};
pub use write::WriteExec;

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::common::Result;
use datafusion::physical_expr::EquivalenceProperties;
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties, Partitioning, PlanProperties};

/// Properties of a unary node with the partitions of its child.
fn properties_over(input: &Arc<dyn ExecutionPlan>, schema: SchemaRef) -> Arc<PlanProperties> {
    Arc::new(PlanProperties::new(
        EquivalenceProperties::new(schema),
        Partitioning::UnknownPartitioning(input.output_partitioning().partition_count()),
        EmissionType::Incremental,
        Boundedness::Bounded,
    ))
}

/// The only child of a unary node.
fn only_child(node: &str, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
    let count = children.len();
    match <[_; 1]>::try_from(children) {
        Ok([child]) => Ok(child),
        Err(_) => datafusion::common::internal_err!("{node} has one child, not {count}"),
    }
}
