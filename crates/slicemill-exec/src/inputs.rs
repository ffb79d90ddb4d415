//! The inputs of a job: what lists them and what reads them.

use std::sync::Arc;

use slicemill_io::{FolderSource, ObjectFetch, OutputStore, RetryBudget, Source};

use crate::ExecError;
use crate::job::{Job, RunOptions};

/// Lists the inputs of `job`, without what lies in its own output.
///
/// # Errors
/// When an input is not there.
pub fn source_of(job: &Job, options: &RunOptions, output: Option<&OutputStore>) -> Result<Arc<dyn Source>, ExecError> {
    let source = FolderSource::new(&job.inputs).map_err(ExecError::Inputs)?;
    Ok(match output.and_then(OutputStore::local_root) {
        Some(root) => Arc::new(source.excluding(root)),
        None => Arc::new(source),
    })
}

/// Reads the inputs of `job`.
pub fn fetch_of(options: &RunOptions, job: &Job) -> ObjectFetch {
    ObjectFetch::new(options.stores.clone(), RetryBudget::default())
}
