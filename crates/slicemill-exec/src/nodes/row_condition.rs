//! A job's condition as rows are asked it: before they are read, and again when they are planned.

use std::sync::Arc;

use arrow::array::ArrayRef;
use slicemill_core::{RowOutcome, SkippedRow};
use slicemill_io::{ColumnTypes, InputEntry, columns_batch};
use slicemill_pipeline::{PlannedView, RowFilter};

use crate::ExecError;
use crate::condition::Condition;
use crate::freeze::FrozenJob;

/// The condition of a job over rows of its inputs.
#[derive(Debug, Clone)]
pub struct RowCondition {
    condition: Condition,
    types: ColumnTypes,
}

impl RowCondition {
    /// The condition of `job`, if it has one.
    ///
    /// # Errors
    /// When it does not fit the columns that the job was frozen with.
    pub fn of(job: &FrozenJob) -> Result<Option<Self>, ExecError> {
        Self::new(job.job.select.filter.as_deref(), &job.columns)
    }

    /// The condition `text` over input columns of these types.
    ///
    /// # Errors
    /// When it does not fit them.
    pub fn new(text: Option<&str>, types: &ColumnTypes) -> Result<Option<Self>, ExecError> {
        let Some(text) = text else { return Ok(None) };
        Ok(Some(Self { condition: Condition::new(text, &types.fields())?, types: types.clone() }))
    }

    fn columns(&self, texts: &[Option<&str>]) -> Result<Vec<ArrayRef>, ExecError> {
        Ok(columns_batch(&self.types, texts)?.into_iter().map(|(_, array)| array).collect())
    }

    /// For every entry, whether it may be taken as far as its columns tell.
    ///
    /// # Errors
    /// When the condition cannot be evaluated.
    pub fn of_entries(&self, entries: &[InputEntry]) -> Result<Vec<bool>, ExecError> {
        let texts: Vec<_> = entries.iter().map(|entry| entry.columns.as_deref()).collect();
        self.condition.of_inputs(self.columns(&texts)?, entries.len())
    }

    /// What becomes of an entry that is not taken.
    pub(crate) fn skipped(&self, entry: InputEntry) -> RowOutcome {
        RowOutcome::Skipped(SkippedRow {
            key: entry.key,
            source: entry.url,
            reason: format!("where: {}", self.condition.text()),
            columns: entry.columns.map(Arc::from),
        })
    }

    /// Itself as what the pipeline asks about planned rows; nothing when the columns of the input decide alone.
    pub fn filter(condition: Option<&Arc<Self>>) -> Option<Arc<dyn RowFilter>> {
        let condition = condition.filter(|condition| condition.condition.needs_plan())?;
        Some(Arc::clone(condition) as Arc<dyn RowFilter>)
    }
}

impl RowFilter for RowCondition {
    fn keep(&self, row: &PlannedView<'_>) -> Result<bool, String> {
        let columns = self.columns(&[row.columns]).map_err(|error| error.to_string())?;
        self.condition.of_plan(row, columns).map_err(|error| error.to_string())
    }

    fn describe(&self) -> String {
        self.condition.text().to_owned()
    }
}
