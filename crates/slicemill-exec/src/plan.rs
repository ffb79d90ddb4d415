//! From a frozen job and its ledger to the physical plan of what is left to do.

use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use serde::{Deserialize, Serialize};
use slicemill_io::{Generation, LedgerState};

use crate::ExecError;
use crate::freeze::FrozenJob;
use crate::job::Part;
use crate::nodes::{AnnotateExec, CommitExec, JobRef, Unit, Work, WriteExec, unit_batch, unit_schema};

/// Units of one batch of the leaf.
const UNITS_PER_BATCH: usize = 1024;

/// What the nodes of a plan know: plain data, so that a plan can be decoded where there are no weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeSpec {
    /// Which job.
    pub job: JobRef,
    /// The job as it was frozen.
    pub frozen: FrozenJob,
    /// Input rows of all generations of this plan.
    pub rows: u64,
    /// Shards of all generations of this plan.
    pub shards: u64,
    /// The part of them that this process does; all when missing.
    #[serde(default)]
    pub part: Option<Part>,
}

/// How a plan is laid out on one machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlanLayout {
    /// Most partitions. A partition handles whole shards.
    pub partitions_max: usize,
    /// Chunks in flight over all partitions.
    pub chunks_in_flight: usize,
}

/// What is left of these generations, or of this process's part of them: the chunks that are not committed, and the end of every shard that is not.
pub fn units_left(generations: &[Generation], state: &LedgerState, part: Option<Part>) -> Vec<Unit> {
    let mut units = Vec::new();
    for generation in generations {
        let mine = |shard: &u32| part.is_none_or(|part| part.has(*shard));
        for shard in generation.shards().filter(mine).filter(|shard| !state.shards.contains_key(shard)) {
            let unit = |work| Unit { generation: generation.number, shard, work };
            let chunks = generation.chunks(shard);
            for chunk in (0..chunks).filter(|chunk| !state.chunks.contains_key(&(shard, *chunk))) {
                let range = generation.chunk_range(shard, chunk);
                let rows = u32::try_from(range.end - range.start).unwrap_or(u32::MAX);
                units.push(unit(Work::Chunk { chunk, row_first: range.start, rows }));
            }
            units.push(unit(Work::Finish { chunks }));
        }
    }
    units
}

/// Units by partition: whole shards, dealt out in turn, so that shards are finished about in order.
fn partitions_of(units: &[Unit], partitions_max: usize) -> Vec<Vec<Unit>> {
    let shards: Vec<&[Unit]> = units.chunk_by(|a, b| a.shard == b.shard).collect();
    let count = shards.len().min(partitions_max).max(1);
    let mut partitions = vec![Vec::new(); count];
    for (number, shard) in shards.into_iter().enumerate() {
        partitions[number % count].extend_from_slice(shard);
    }
    partitions
}

/// The plan that does these units and commits the job.
///
/// # Errors
/// None that DataFusion does not report.
pub fn build_plan(spec: NodeSpec, units: &[Unit], layout: PlanLayout) -> Result<Arc<dyn ExecutionPlan>, ExecError> {
    let spec = Arc::new(spec);
    let partitions: Vec<Vec<RecordBatch>> = partitions_of(units, layout.partitions_max)
        .iter()
        .map(|units| units.chunks(UNITS_PER_BATCH).map(unit_batch).collect())
        .collect::<Result<_, _>>()?;
    let per_partition = layout.chunks_in_flight.div_ceil(partitions.len()).max(1);
    let leaf = MemorySourceConfig::try_new_exec(&partitions, unit_schema(), None)?;
    let annotated = Arc::new(AnnotateExec::new(Arc::clone(&spec), per_partition, leaf));
    let written = Arc::new(WriteExec::new(Arc::clone(&spec), annotated));
    let records = Arc::new(CoalescePartitionsExec::new(written));
    Ok(Arc::new(CommitExec::new(spec, records)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generation(number: u32, rows: u64, shard_first: u32) -> Generation {
        Generation { number, rows, digest: String::new(), chunk_rows: 4, shard_chunks: 2, shard_first, file: None }
    }

    #[test]
    fn all_rows_are_in_units_once() {
        let generations = [generation(0, 19, 0), generation(1, 3, 3)];
        let units = units_left(&generations, &LedgerState::default(), None);
        for generation in &generations {
            let mut next = 0;
            for unit in units.iter().filter(|unit| unit.generation == generation.number) {
                if let Work::Chunk { row_first, rows, .. } = unit.work {
                    assert_eq!(row_first, next);
                    next += u64::from(rows);
                }
            }
            assert_eq!(next, generation.rows);
        }
        let finished: Vec<u32> =
            units.iter().filter(|unit| matches!(unit.work, Work::Finish { .. })).map(|unit| unit.shard).collect();
        assert_eq!(finished, [0, 1, 2, 3]);
    }

    #[test]
    fn parts_share_out_all_units() {
        let generations = [generation(0, 190, 0), generation(1, 30, 24)];
        let all = units_left(&generations, &LedgerState::default(), None);
        for of in [1, 2, 3, 7, 50] {
            let parts = (1..=of).map(|number| Part { number, of });
            let units = parts.map(|part| units_left(&generations, &LedgerState::default(), Some(part)));
            let mut together: Vec<Unit> = units.flatten().collect();
            together.sort_by_key(|unit| all.iter().position(|other| other == unit));
            assert_eq!(together, all, "{of} parts");
        }
    }

    #[test]
    fn partitions_hold_whole_shards() {
        let units = units_left(&[generation(0, 40, 0)], &LedgerState::default(), None);
        for partitions_max in [1, 2, 3, 100] {
            let partitions = partitions_of(&units, partitions_max);
            assert_eq!(partitions.len(), partitions_max.min(5));
            assert_eq!(partitions.iter().map(Vec::len).sum::<usize>(), units.len());
            for partition in &partitions {
                for shard in partition.chunk_by(|a, b| a.shard == b.shard) {
                    assert_eq!(shard.len(), 3, "two chunks and the end");
                    assert!(matches!(shard[2].work, Work::Finish { chunks: 2 }));
                }
            }
        }
        assert_eq!(partitions_of(&[], 4), [Vec::new()], "a plan has a partition even when only the commit is left");
    }
}
