//! The error of everything that reads or writes.

use std::time::Duration;

use slicemill_core::{ErrorClass, Fate, RowError, Stage};

use crate::stores::wire::WireError;

/// What went wrong, for callers that decide by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IoErrorKind {
    /// The object or folder is not there.
    NotFound,
    /// An object with this name and other bytes is already there.
    Conflict,
    /// The store refused: permissions, credentials, a read-only disk.
    Refused,
    /// No space is left, or the quota is used up.
    StorageFull,
    /// A location from the data that may not be read.
    LocationRefused,
    /// An input that cannot be read, of a class that is known already: what a list says of it, what a reader of
    /// archives or tables found.
    Row(ErrorClass),
    /// The store broke off.
    Failed,
    /// The object is not what was listed: other size, other time or etag.
    SourceChanged,
    /// The object is larger than the limit.
    TooLarge,
    /// A file of ours does not contain what it should.
    Corrupt,
    /// A scheme, a name or an argument that cannot be used.
    Invalid,
    /// Another process is writing to this output.
    Locked,
}

/// An error of a source, a store, a Parquet file or the ledger. The message names the object and the remedy.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct IoError {
    /// What becomes of the row or the run.
    pub fate: Fate,
    /// What went wrong.
    pub kind: IoErrorKind,
    /// In words.
    pub message: String,
    /// How often it was tried, at least 1.
    pub attempts: u32,
    /// The error underneath.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl IoError {
    /// An error of `kind` and `fate`, tried once.
    pub fn new(fate: Fate, kind: IoErrorKind, message: impl Into<String>) -> Self {
        Self { fate, kind, message: message.into(), attempts: 1, source: None }
    }

    /// An error that ends the job.
    pub fn fatal(kind: IoErrorKind, message: impl Into<String>) -> Self {
        Self::new(Fate::Fatal, kind, message)
    }

    /// The same with the error underneath.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The same with another fate.
    #[must_use]
    pub const fn with_fate(mut self, fate: Fate) -> Self {
        self.fate = fate;
        self
    }

    /// What `doing` on `object` ended with. Missing objects, refusals and misuse end the job; what may pass when
    /// tried again is transient.
    pub fn from_store(doing: &str, object: &str, error: object_store::Error) -> Self {
        let (fate, kind) = classify(&error);
        let remedy = match kind {
            IoErrorKind::StorageFull => ". Free space, then run the same command again: it resumes",
            IoErrorKind::Refused if denied(&error) => ". Check the credentials and what they may do",
            _ => "",
        };
        Self::new(fate, kind, format!("cannot {doing} {object}: {}{remedy}", innermost(&error))).because(error)
    }

    /// How long the store asks to be left alone.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match WireError::find(self.source.as_deref()?)? {
            WireError::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// The kind of the first [`std::io::Error`] underneath.
    pub(crate) fn io_kind(&self) -> Option<std::io::ErrorKind> {
        self.source.as_deref().and_then(|source| io_kind(source))
    }

    /// The failed row's error when this happened while an object was read.
    pub fn row_error(&self) -> RowError {
        let class = match self.kind {
            IoErrorKind::NotFound => ErrorClass::NotFound,
            IoErrorKind::SourceChanged => ErrorClass::SourceChanged,
            IoErrorKind::TooLarge => ErrorClass::ObjectTooLarge,
            IoErrorKind::Refused => ErrorClass::AccessDenied,
            IoErrorKind::LocationRefused => ErrorClass::LocationRefused,
            IoErrorKind::Row(class) => class,
            _ => ErrorClass::ReadFailed,
        };
        RowError::new(class, Stage::Fetch, self.message.clone())
    }
}

/// Whether a server said no, as opposed to a file system.
fn denied(error: &object_store::Error) -> bool {
    use object_store::Error;
    io_kind(error).is_none() && matches!(error, Error::PermissionDenied { .. } | Error::Unauthenticated { .. })
}

fn classify_wire(error: &WireError) -> (Fate, IoErrorKind) {
    match error {
        WireError::Status { status, said, .. } => match status {
            401 | 403 => (Fate::Fatal, IoErrorKind::Refused),
            404 | 410 => (Fate::Fatal, IoErrorKind::NotFound),
            // Beyond the end of an object that was longer.
            412 | 416 => (Fate::Fatal, IoErrorKind::SourceChanged),
            507 => (Fate::Fatal, IoErrorKind::StorageFull),
            400 if ["RequestTimeout", "IncompleteBody"].iter().any(|code| said.starts_with(code)) => {
                (Fate::Transient, IoErrorKind::Failed)
            }
            400 if ["ExpiredToken", "InvalidToken", "Authorization"].iter().any(|code| said.starts_with(code)) => {
                (Fate::Fatal, IoErrorKind::Refused)
            }
            408 | 429 | 500 | 502..=504 | 509 | 520..=599 => (Fate::Transient, IoErrorKind::Failed),
            _ => (Fate::Fatal, IoErrorKind::Invalid),
        },
        WireError::NoAnswer(_)
        | WireError::Stalled(_)
        | WireError::Connect(_)
        | WireError::Reset(_)
        | WireError::Short(_)
        | WireError::WrongRange { .. } => (Fate::Transient, IoErrorKind::Failed),
        WireError::LocationRefused(_) => (Fate::Fatal, IoErrorKind::LocationRefused),
        WireError::Redirects(_) => (Fate::Fatal, IoErrorKind::Failed),
        WireError::NoCredentials(_) => (Fate::Fatal, IoErrorKind::Refused),
        WireError::RangeIgnored | WireError::Other(_) => (Fate::Fatal, IoErrorKind::Invalid),
    }
}

fn classify(error: &object_store::Error) -> (Fate, IoErrorKind) {
    use object_store::Error;
    if let Some(wire) = WireError::find(error) {
        return classify_wire(wire);
    }
    match error {
        Error::NotFound { .. } => (Fate::Fatal, IoErrorKind::NotFound),
        Error::AlreadyExists { .. } => (Fate::Fatal, IoErrorKind::Conflict),
        Error::Precondition { .. } | Error::NotModified { .. } => (Fate::Fatal, IoErrorKind::SourceChanged),
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => (Fate::Fatal, IoErrorKind::Refused),
        Error::InvalidPath { .. }
        | Error::NotSupported { .. }
        | Error::NotImplemented { .. }
        | Error::UnknownConfigurationKey { .. } => (Fate::Fatal, IoErrorKind::Invalid),
        _ => match io_kind(error) {
            Some(std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem) => {
                (Fate::Fatal, IoErrorKind::Refused)
            }
            Some(std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded) => {
                (Fate::Fatal, IoErrorKind::StorageFull)
            }
            Some(std::io::ErrorKind::NotADirectory | std::io::ErrorKind::IsADirectory) => {
                (Fate::Fatal, IoErrorKind::Invalid)
            }
            _ => (Fate::Transient, IoErrorKind::Failed),
        },
    }
}

/// The kind of the first `std::io::Error` in the chain.
fn io_kind(error: &(dyn std::error::Error + 'static)) -> Option<std::io::ErrorKind> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return Some(io.kind());
        }
        next = error.source();
    }
    None
}

/// The text of the last error in the chain: what the system said, without the wrappers' prefixes.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut last = error;
    while let Some(next) = last.source() {
        last = next;
    }
    last.to_string()
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use object_store::Error;

    use super::*;

    fn check(error: Error, fate: Fate, kind: IoErrorKind, class: ErrorClass) {
        let error = IoError::from_store("read", "file:///x.jpg", error);
        assert_eq!((error.fate, error.kind), (fate, kind), "{error}");
        assert!(error.message.starts_with("cannot read file:///x.jpg: "), "{error}");
        assert_eq!(error.row_error(), RowError::new(class, Stage::Fetch, error.message.clone()));
    }

    /// As the stores wrap what the system says.
    fn system(kind: ErrorKind) -> Error {
        Error::Generic {
            store: "test",
            source: Box::new(IoError::fatal(IoErrorKind::Failed, "x").because(std::io::Error::from(kind))),
        }
    }

    #[test]
    fn errors_of_stores_have_a_fate_and_a_kind() {
        let path = || "x".to_owned();
        let source = || "y".into();
        let missing = Error::NotFound { path: path(), source: source() };
        check(missing, Fate::Fatal, IoErrorKind::NotFound, ErrorClass::NotFound);
        let there = Error::AlreadyExists { path: path(), source: source() };
        check(there, Fate::Fatal, IoErrorKind::Conflict, ErrorClass::ReadFailed);
        let changed = Error::Precondition { path: path(), source: source() };
        check(changed, Fate::Fatal, IoErrorKind::SourceChanged, ErrorClass::SourceChanged);
        let denied = Error::PermissionDenied { path: path(), source: source() };
        check(denied, Fate::Fatal, IoErrorKind::Refused, ErrorClass::AccessDenied);
        let unknown = Error::Generic { store: "test", source: "503".into() };
        check(unknown, Fate::Transient, IoErrorKind::Failed, ErrorClass::ReadFailed);
        for kind in [ErrorKind::PermissionDenied, ErrorKind::ReadOnlyFilesystem] {
            check(system(kind), Fate::Fatal, IoErrorKind::Refused, ErrorClass::AccessDenied);
        }
        check(system(ErrorKind::StorageFull), Fate::Fatal, IoErrorKind::StorageFull, ErrorClass::ReadFailed);
        let full = IoError::from_store("write", "x", system(ErrorKind::StorageFull));
        assert!(full.message.contains("Free space") && full.message.contains("resumes"), "{full}");
        check(system(ErrorKind::ConnectionReset), Fate::Transient, IoErrorKind::Failed, ErrorClass::ReadFailed);
        check(system(ErrorKind::NotADirectory), Fate::Fatal, IoErrorKind::Invalid, ErrorClass::ReadFailed);
    }

    #[test]
    fn statuses_decide_what_becomes_of_a_row() {
        for (status, said, fate, class) in [
            (401, "", Fate::Fatal, ErrorClass::AccessDenied),
            (403, "AccessDenied", Fate::Fatal, ErrorClass::AccessDenied),
            (404, "", Fate::Fatal, ErrorClass::NotFound),
            (416, "", Fate::Fatal, ErrorClass::SourceChanged),
            (400, "ExpiredToken", Fate::Fatal, ErrorClass::AccessDenied),
            (400, "RequestTimeout: idle", Fate::Transient, ErrorClass::ReadFailed),
            (400, "", Fate::Fatal, ErrorClass::ReadFailed),
            (418, "", Fate::Fatal, ErrorClass::ReadFailed),
            (429, "", Fate::Transient, ErrorClass::ReadFailed),
            (500, "", Fate::Transient, ErrorClass::ReadFailed),
            (501, "NotImplemented", Fate::Fatal, ErrorClass::ReadFailed),
            (503, "SlowDown", Fate::Transient, ErrorClass::ReadFailed),
        ] {
            let retry_after = Some(Duration::from_secs(3));
            let wire = WireError::Status { status, said: said.to_owned(), retry_after };
            let error = IoError::from_store("read", "x", Error::Generic { store: "test", source: Box::new(wire) });
            assert_eq!((error.fate, error.row_error().class), (fate, class), "{status} {said}");
            assert_eq!(error.retry_after(), retry_after);
        }
    }
}
