//! Exit codes, documented in `--help`.

/// How the program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done; every row is ok or skipped.
    Done,
    /// Something failed; the message says what.
    Failed,
    /// The command line or the job is wrong; nothing was done.
    Usage,
    /// Done, but some rows failed.
    RowsFailed,
    /// `verify` found something wrong.
    NotVerified,
    /// The output holds a different job; nothing was done.
    DifferentJob,
    /// Interrupted; the same command resumes.
    Interrupted,
}

impl Exit {
    /// The number the shell sees.
    pub const fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::RowsFailed => 3,
            Self::NotVerified => 4,
            Self::DifferentJob => 5,
            Self::Interrupted => 130,
        }
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// An error that knows its exit code.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// How the program ends.
    pub exit: Exit,
    /// What went wrong and what to do about it.
    pub message: String,
}

impl Failure {
    /// A wrong command line or job.
    pub fn usage(message: impl std::fmt::Display) -> Self {
        Self { exit: Exit::Usage, message: message.to_string() }
    }

    /// Anything else that went wrong.
    pub fn failed(message: impl std::fmt::Display) -> Self {
        Self { exit: Exit::Failed, message: message.to_string() }
    }
}
