//! What became of every row of a chunk: one outcome each, in input order.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use slicemill_core::{FailedRow, RowError, RowOutcome, SkippedRow};

use crate::{InputRef, PipelineError, Progress};

/// The failure of `row`.
pub(crate) fn failed_row(row: &InputRef, error: RowError, attempts: u32) -> FailedRow {
    let (key, source, columns) = (row.key.clone(), row.source.clone(), row.columns.clone());
    FailedRow { key, source, error, attempts, columns }
}

/// Collects the outcomes of one chunk from all stages.
pub(crate) struct Outcomes {
    slots: Mutex<Vec<Option<RowOutcome>>>,
    /// Rows that were given more than one outcome, which is a defect of the pipeline.
    doubled: AtomicU64,
}

impl Outcomes {
    pub(crate) fn new(rows: usize) -> Self {
        Self { slots: Mutex::new(vec![None; rows]), doubled: AtomicU64::new(0) }
    }

    /// Puts down what became of row `index` and counts it.
    pub(crate) fn put(&self, index: usize, outcome: RowOutcome, progress: &Progress) {
        progress.outcome(&outcome);
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        match slots.get_mut(index) {
            Some(slot @ None) => *slot = Some(outcome),
            _ => {
                self.doubled.fetch_add(1, Relaxed);
            }
        }
    }

    pub(crate) fn fail(&self, index: usize, row: &InputRef, error: RowError, attempts: u32, progress: &Progress) {
        self.put(index, RowOutcome::Failed(failed_row(row, error, attempts)), progress);
    }

    pub(crate) fn skip(&self, index: usize, row: &InputRef, reason: String, progress: &Progress) {
        let (key, source, columns) = (row.key.clone(), row.source.clone(), row.columns.clone());
        self.put(index, RowOutcome::Skipped(SkippedRow { key, source, reason, columns }), progress);
    }

    /// The rows of these that have no outcome yet.
    pub(crate) fn pending(&self, rows: &[usize]) -> Vec<usize> {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        rows.iter().copied().filter(|&index| slots.get(index).is_some_and(Option::is_none)).collect()
    }

    /// All outcomes, if every row has exactly one.
    pub(crate) fn finish(&self) -> Result<Vec<RowOutcome>, PipelineError> {
        let slots = std::mem::take(&mut *self.slots.lock().unwrap_or_else(PoisonError::into_inner));
        let (rows, doubled) = (slots.len(), self.doubled.load(Relaxed));
        let outcomes: Vec<_> = slots.into_iter().flatten().collect();
        if doubled > 0 || outcomes.len() != rows {
            return Err(PipelineError::Fatal(format!(
                "rows are not conserved: {rows} rows came in, {} have an outcome and {doubled} have two; this is a \
                 defect of slicemill, nothing of this chunk is written",
                outcomes.len()
            )));
        }
        Ok(outcomes)
    }
}
