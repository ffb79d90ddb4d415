//! The error of jobs, and its one passage through DataFusion.

use datafusion::common::DataFusionError;
use slicemill_core::Fate;
use slicemill_io::IoError;
use slicemill_pipeline::PipelineError;

use crate::freeze::Different;
use crate::job::JobError;
use crate::questions::QuestionsError;

/// Why a job, or a command about its output, did not end well.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The job is wrong; nothing was done.
    #[error(transparent)]
    Job(#[from] JobError),
    /// The questions are wrong; nothing was done.
    #[error(transparent)]
    Questions(#[from] QuestionsError),
    /// The output holds a different job; nothing was done.
    #[error(transparent)]
    Different(#[from] Box<Different>),
    /// An input is not there or cannot be read as a whole.
    #[error(transparent)]
    Inputs(IoError),
    /// There is nothing to read.
    #[error("no files in {0}; give a folder with images, or image files")]
    NoInputs(String),
    /// The folder is not an output.
    #[error("{0} holds no job (there is no _slicemill/job.json); give the folder that a job wrote to")]
    NotAnOutput(String),
    /// A file of the output cannot be understood.
    #[error("{name} cannot be understood: {message}")]
    Corrupt {
        /// The file.
        name: String,
        /// What is wrong.
        message: String,
    },
    /// The output is not complete and the command needs one that is.
    #[error("{0}")]
    Incomplete(String),
    /// Rows were lost or doubled.
    #[error("rows are not conserved: {0}; the output is not marked complete, run `slicemill verify` on it")]
    NotConserved(String),
    /// A source, a store or the ledger failed.
    #[error(transparent)]
    Io(#[from] IoError),
    /// The pipeline failed.
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    /// The second request to stop came.
    #[error("stopped at once; what was committed stays, run the same command again to resume")]
    Stopped,
    /// The condition that chooses rows is wrong; nothing was done.
    #[error("{0}")]
    Condition(String),
    /// A query is wrong.
    #[error("{0}")]
    Query(String),
    /// A file outside the output cannot be written.
    #[error("{}: {error}", path.display())]
    File {
        /// The file.
        path: std::path::PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// DataFusion failed in a way that is not ours.
    #[error("{0}")]
    DataFusion(DataFusionError),
}

impl From<ExecError> for DataFusionError {
    /// The one place where our errors become DataFusion's. What may pass when tried again becomes `IoError`, the one
    /// kind that a distributed scheduler tries again.
    fn from(error: ExecError) -> Self {
        match error {
            ExecError::DataFusion(error) => error,
            ExecError::Io(error) if error.fate == Fate::Transient => {
                Self::IoError(std::io::Error::other(ExecError::Io(error)))
            }
            error => Self::External(Box::new(error)),
        }
    }
}

impl From<DataFusionError> for ExecError {
    /// Takes our error out again, however deep DataFusion wrapped it.
    fn from(error: DataFusionError) -> Self {
        match error {
            DataFusionError::External(inner) => match inner.downcast::<Self>() {
                Ok(ours) => *ours,
                Err(other) => Self::DataFusion(DataFusionError::External(other)),
            },
            DataFusionError::IoError(inner) => match inner.downcast::<Self>() {
                Ok(ours) => ours,
                Err(other) => Self::DataFusion(DataFusionError::IoError(other)),
            },
            DataFusionError::Context(_, inner) => Self::from(*inner),
            DataFusionError::Shared(shared) => match std::sync::Arc::try_unwrap(shared) {
                Ok(inner) => Self::from(inner),
                Err(shared) => Self::DataFusion(DataFusionError::Shared(shared)),
            },
            other => Self::DataFusion(other),
        }
    }
}

impl From<arrow::error::ArrowError> for ExecError {
    fn from(error: arrow::error::ArrowError) -> Self {
        Self::DataFusion(error.into())
    }
}

#[cfg(test)]
mod tests {
    use slicemill_io::IoErrorKind;

    use super::*;

    #[test]
    fn errors_pass_through_datafusion() {
        let message = "disk full";
        for (fate, retryable) in [(Fate::Fatal, false), (Fate::Transient, true)] {
            let error = DataFusionError::from(ExecError::Io(IoError::new(fate, IoErrorKind::Failed, message)));
            assert_eq!(matches!(error, DataFusionError::IoError(_)), retryable);
            let wrapped = error.context("inside a node");
            assert!(matches!(ExecError::from(wrapped), ExecError::Io(inner) if inner.message == message));
        }
    }
}
