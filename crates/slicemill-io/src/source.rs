//! Sources: what turns locations into a list of inputs.

use std::ffi::OsStr;
use std::path::Path;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};

use crate::IoError;

/// One object of the input list.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct InputEntry {
    /// Unique in the job.
    pub key: String,
    /// Where it is; `file://` URLs carry any bytes a name has, percent-encoded.
    pub url: String,
    /// Size when it was listed.
    pub bytes: u64,
    /// Etag or modification time when it was listed; empty when unknown, and then not checked when read.
    pub tag: String,
}

/// Something that lists inputs: sorted by key (bytewise), keys unique, the same list for the same objects.
pub trait Source: Send + Sync {
    /// The inputs. A stream, so that a hundred million need no memory. Ends at the first error.
    fn list(&self) -> BoxStream<'static, Result<InputEntry, IoError>>;

    /// The source in words, for logs and the job record.
    fn describe(&self) -> String;
}

/// Files and folders, recursively.
#[derive(Debug, Clone)]
pub struct FolderSource {}

impl FolderSource {
    /// One or more files or folders, as paths or `file://` URLs. Missing ones are an error that names them.
    pub fn new(inputs: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<Self, IoError> {
        let _ = inputs.into_iter().count();
        Err(crate::store::unwritten())
    }

    /// The same without what lies below `folder` (the job's own output).
    #[must_use]
    pub fn excluding(self, folder: &Path) -> Self {
        let _ = folder;
        self
    }
}

impl Source for FolderSource {
    fn list(&self) -> BoxStream<'static, Result<InputEntry, IoError>> {
        futures::stream::empty().boxed()
    }

    fn describe(&self) -> String {
        String::new()
    }
}
