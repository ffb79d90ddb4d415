//! Where objects are: locations, stores by URL, and the output of a job.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use object_store::{ObjectMeta, ObjectStore, path::Path as ObjectPath};
use url::Url;

use crate::{IoError, OutputLock};

/// A place named by a path or a URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    url: Url,
}

impl Location {
    /// A URL when `text` begins with `scheme://`, else a path (relative ones to the current folder).
    pub fn parse(text: impl AsRef<std::ffi::OsStr>) -> Result<Self, IoError> {
        let _ = text;
        Err(unwritten())
    }

    /// The URL, without a trailing slash.
    pub const fn url(&self) -> &Url {
        &self.url
    }

    /// The path when this is a local file or folder.
    pub fn local_path(&self) -> Option<PathBuf> {
        self.url.to_file_path().ok()
    }
}

/// The stores that objects are read from, by scheme and host.
#[derive(Debug, Clone, Default)]
pub struct Stores {}

impl Stores {
    /// Only what is built in.
    pub fn new() -> Self {
        Self::default()
    }

    /// Uses `store` for all URLs of `scheme`, in place of what is built in.
    #[must_use]
    pub fn with_store(self, scheme: &str, store: Arc<dyn ObjectStore>) -> Self {
        let _ = (scheme, store);
        self
    }

    /// The store of `url` and the object's path in it.
    pub fn resolve(&self, url: &Url) -> Result<(Arc<dyn ObjectStore>, ObjectPath), IoError> {
        let _ = url;
        Err(unwritten())
    }
}

/// The root of a job's output. Names are relative to it, with `/`. Cheap to clone.
#[derive(Debug, Clone)]
pub struct OutputStore {
    store: Arc<dyn ObjectStore>,
    root: Option<PathBuf>,
    url: String,
}

impl OutputStore {
    /// Opens `location`, making the folder when it is not there.
    pub fn create(location: &Location) -> Result<Self, IoError> {
        let _ = location;
        Err(unwritten())
    }

    /// Opens `location`; an error that says so when there is no such folder.
    pub fn open(location: &Location) -> Result<Self, IoError> {
        let _ = location;
        Err(unwritten())
    }

    /// An output in any store, for tests and for stores set up elsewhere. `url` is for messages.
    pub fn with_store(store: Arc<dyn ObjectStore>, url: impl Into<String>) -> Self {
        Self { store, root: None, url: url.into() }
    }

    /// Wraps the store, keeping root and lock; for fault injection.
    #[must_use]
    pub fn map_store(self, wrap: impl FnOnce(Arc<dyn ObjectStore>) -> Arc<dyn ObjectStore>) -> Self {
        Self { store: wrap(self.store), ..self }
    }

    /// The store underneath, for Parquet readers.
    pub fn object_store(&self) -> &Arc<dyn ObjectStore> {
        &self.store
    }

    /// The folder when the output is local.
    pub fn local_root(&self) -> Option<&Path> {
        self.root.as_deref()
    }

    /// The root, for messages.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Takes the output for this process; see [`OutputLock`].
    pub fn lock(&self) -> Result<OutputLock, IoError> {
        OutputLock::take(self)
    }

    /// Writes `name` unless it is there. Accepted when it is there with the same bytes; `Conflict` when with others.
    pub async fn put_if_absent(&self, name: &str, bytes: Bytes) -> Result<(), IoError> {
        let _ = (name, bytes);
        Err(unwritten())
    }

    /// Writes or replaces `name`, atomically.
    pub async fn put(&self, name: &str, bytes: Bytes) -> Result<(), IoError> {
        let _ = (name, bytes);
        Err(unwritten())
    }

    /// The bytes of `name`.
    pub async fn get(&self, name: &str) -> Result<Bytes, IoError> {
        let _ = name;
        Err(unwritten())
    }

    /// The bytes of `name`, `None` when it is not there.
    pub async fn find(&self, name: &str) -> Result<Option<Bytes>, IoError> {
        let _ = name;
        Err(unwritten())
    }

    /// Size and times of `name`, `None` when it is not there.
    pub async fn head(&self, name: &str) -> Result<Option<ObjectMeta>, IoError> {
        let _ = name;
        Err(unwritten())
    }

    /// Whether `name` is there.
    pub async fn exists(&self, name: &str) -> Result<bool, IoError> {
        Ok(self.head(name).await?.is_some())
    }

    /// All objects below `folder`, sorted by name; empty when there is no such folder.
    pub async fn list(&self, folder: &str) -> Result<Vec<ObjectMeta>, IoError> {
        let _ = folder;
        Err(unwritten())
    }

    /// Deletes `name`; no error when it is not there.
    pub async fn delete(&self, name: &str) -> Result<(), IoError> {
        let _ = name;
        Err(unwritten())
    }
}

pub(crate) fn unwritten() -> IoError {
    IoError::fatal(crate::IoErrorKind::Invalid, "not written yet")
}
