//! What can go wrong between a checkpoint and a token, and which fate it has.

use slicemill_core::{ErrorClass, Fate};
use slicemill_pipeline::BackendError;

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// config.json is missing something, or describes a model that is not supported.
    #[error("{origin}: {message}")]
    Config {
        /// The file.
        origin: String,
        /// What is wrong, and the remedy.
        message: String,
    },
    /// A file of the checkpoint cannot be read.
    #[error("{origin}: {message}")]
    File {
        /// The file.
        origin: String,
        /// What is wrong.
        message: String,
    },
    /// Tensors are missing or have another shape than config.json says. All of them are listed.
    #[error("{origin}: {}", list(.problems))]
    Tensors {
        /// The checkpoint.
        origin: String,
        /// One line per tensor.
        problems: Vec<String>,
    },
    /// The tokenizer cannot be read or does not fit the model.
    #[error("{origin}: {message}")]
    Tokenizer {
        /// The file.
        origin: String,
        /// What is wrong.
        message: String,
    },
    /// The device cannot be opened or the weights not be placed on it.
    #[error("{0}")]
    Device(String),
}

/// What loading gives.
pub(crate) type Loaded<T> = Result<T, ModelError>;

/// Lines that an error shows.
const LINES_MAX: usize = 40;

fn list(problems: &[String]) -> String {
    let noun = if problems.len() == 1 { "tensor does" } else { "tensors do" };
    let shown = problems[..problems.len().min(LINES_MAX)].join("\n  ");
    let more = match problems.len().saturating_sub(LINES_MAX) {
        0 => String::new(),
        n => format!("\n  … and {n} more"),
    };
    format!("{} {noun} not fit config.json:\n  {shown}{more}", problems.len())
}

impl From<candle_core::Error> for ModelError {
    fn from(error: candle_core::Error) -> Self {
        Self::Device(error.to_string())
    }
}

impl From<ModelError> for BackendError {
    fn from(error: ModelError) -> Self {
        fatal(error.to_string())
    }
}

/// The job cannot go on.
pub(crate) fn fatal(message: impl Into<String>) -> BackendError {
    BackendError { fate: Fate::Fatal, class: ErrorClass::ModelFailed, message: message.into() }
}

/// This row cannot be annotated.
pub(crate) fn row(class: ErrorClass, message: impl Into<String>) -> BackendError {
    BackendError { fate: Fate::Row, class, message: message.into() }
}

/// An error of a tensor operation while a row was being computed.
///
/// Memory that ran out is the row's fault (a smaller batch may fit); any other error of a CUDA driver leaves the
/// device unusable; the rest concerns the shapes of this row.
pub(crate) fn runtime(error: &candle_core::Error) -> BackendError {
    let message = error.to_string();
    let lower = message.to_lowercase();
    if lower.contains("out of memory") || lower.contains("out_of_memory") {
        return row(ErrorClass::OutOfMemory, format!("the device has no memory left: {message}"));
    }
    if is_cuda(error) { fatal(format!("the GPU failed: {message}")) } else { row(ErrorClass::ModelFailed, message) }
}

fn is_cuda(error: &candle_core::Error) -> bool {
    match error {
        candle_core::Error::Cuda(_) => true,
        candle_core::Error::WithBacktrace { inner, .. } | candle_core::Error::WithPath { inner, .. } => is_cuda(inner),
        candle_core::Error::Context { inner, .. } => is_cuda(inner),
        _ => false,
    }
}
