//! The output of a job: a folder, or a prefix of a bucket.
//!
//! Local writes are atomic: `object_store` writes `name#<n>` beside the object and renames it, or links it when the
//! object must not be there yet. A process killed in between leaves `name#<n>`, which listings do not show and
//! [`Ledger::recover`](crate::Ledger::recover) removes. Nothing is flushed to the disk with `fsync`: a killed process
//! loses nothing by that, a power loss may leave objects cut short, which `recover` finds by size and has redone.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt as _;
use object_store::local::LocalFileSystem;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt as _, PutMode, path::Path as ObjectPath};

use crate::retry::{RetryBudget, with_retries};
pub use crate::stores::{Location, Stores};
use crate::stores::{SUPPORTED, invalid};
use crate::{IoError, IoErrorKind, OutputLock};

/// The root of a job's output. Names are relative to it, with `/`. Cheap to clone.
#[derive(Debug, Clone)]
pub struct OutputStore {
    store: Arc<dyn ObjectStore>,
    root: Option<PathBuf>,
    url: Arc<str>,
    budget: RetryBudget,
}

impl OutputStore {
    /// Opens `location`, making the folder when it is not there.
    pub fn create(location: &Location) -> Result<Self, IoError> {
        let folder = folder_of(location)?;
        std::fs::create_dir_all(&folder).map_err(|error| {
            let message = format!("cannot make the output folder '{}': {error}", folder.display());
            IoError::fatal(IoErrorKind::Refused, message).because(error)
        })?;
        Self::open(location)
    }

    /// Opens `location`; an error that says so when there is no such folder.
    pub fn open(location: &Location) -> Result<Self, IoError> {
        let folder = folder_of(location)?;
        let root = folder.canonicalize().map_err(|error| {
            let message = format!("there is no output '{}': {error}", folder.display());
            IoError::fatal(IoErrorKind::NotFound, message).because(error)
        })?;
        if !root.is_dir() {
            return Err(invalid(format!("the output '{}' is a file; give a folder", folder.display())));
        }
        if root.to_str().is_none() {
            let message = format!("the name of the output '{}' is not UTF-8; give another folder", root.display());
            return Err(invalid(message));
        }
        let store = LocalFileSystem::new_with_prefix(&root)
            .map_err(|error| IoError::from_store("open", &root.display().to_string(), error))?
            .with_automatic_cleanup(true);
        let url = location.url().as_str().into();
        Ok(Self { store: Arc::new(store), root: Some(root), url, budget: RetryBudget::default() })
    }

    /// An output in any store, for tests and for stores set up elsewhere. `url` is for messages.
    pub fn with_store(store: Arc<dyn ObjectStore>, url: impl Into<String>) -> Self {
        Self { store, root: None, url: url.into().into(), budget: RetryBudget::default() }
    }

    /// Another budget for transient errors.
    #[must_use]
    pub const fn with_budget(mut self, budget: RetryBudget) -> Self {
        self.budget = budget;
        self
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

    /// The path of `name` in the store.
    pub fn object_path(&self, name: &str) -> Result<ObjectPath, IoError> {
        ObjectPath::parse(name).map_err(|error| IoError::from_store("name", &self.show(name), error.into()))
    }

    /// `name` with the root, for messages.
    pub(crate) fn show(&self, name: &str) -> String {
        format!("{}/{name}", self.url.trim_end_matches('/'))
    }

    /// Writes `name` unless it is there. Accepted when it is there with the same bytes; `Conflict` when with others.
    ///
    /// Where the store cannot create without replacing (a file system without hard links, say) the object is looked
    /// for first and then written: under the output's lock that is the same.
    pub async fn put_if_absent(&self, name: &str, bytes: Bytes) -> Result<(), IoError> {
        let path = self.object_path(name)?;
        let created = with_retries(&self.budget, name, || async {
            let answer = self.store.put_opts(&path, bytes.clone().into(), PutMode::Create.into()).await;
            match answer.map_err(|error| IoError::from_store("write", &self.show(name), error)) {
                Ok(_) => Ok(true),
                Err(error) if error.kind == IoErrorKind::Conflict => Ok(false),
                Err(error) if cannot_create(&error) => {
                    let there = self.exists(name).await?;
                    if !there {
                        self.put(name, bytes.clone()).await?;
                    }
                    Ok(!there)
                }
                Err(error) => Err(error),
            }
        })
        .await?;
        if created || self.get(name).await? == bytes {
            return Ok(());
        }
        Err(self.conflict(name))
    }

    /// What stands under `name` is not what belongs there.
    pub(crate) fn conflict(&self, name: &str) -> IoError {
        let message = format!(
            "{} is there with other content; it comes from another job or another process. \
             Give another output, or remove this object and run again",
            self.show(name)
        );
        IoError::fatal(IoErrorKind::Conflict, message)
    }

    /// Writes or replaces `name`, atomically.
    pub async fn put(&self, name: &str, bytes: Bytes) -> Result<(), IoError> {
        let path = self.object_path(name)?;
        with_retries(&self.budget, name, || async {
            let answer = self.store.put(&path, bytes.clone().into()).await;
            answer.map(drop).map_err(|error| IoError::from_store("write", &self.show(name), error))
        })
        .await
    }

    /// The bytes of `name`.
    pub async fn get(&self, name: &str) -> Result<Bytes, IoError> {
        let path = self.object_path(name)?;
        with_retries(&self.budget, name, || async {
            let bytes = async { self.store.get(&path).await?.bytes().await };
            bytes.await.map_err(|error| IoError::from_store("read", &self.show(name), error))
        })
        .await
    }

    /// Some ranges of the bytes of `name`, in the order asked for.
    pub async fn get_ranges(&self, name: &str, ranges: &[Range<u64>]) -> Result<Vec<Bytes>, IoError> {
        let path = self.object_path(name)?;
        with_retries(&self.budget, name, || async {
            let answer = self.store.get_ranges(&path, ranges).await;
            answer.map_err(|error| IoError::from_store("read", &self.show(name), error))
        })
        .await
    }

    /// The bytes of `name`, `None` when it is not there.
    pub async fn find(&self, name: &str) -> Result<Option<Bytes>, IoError> {
        found(self.get(name).await)
    }

    /// Size and times of `name`, `None` when it is not there.
    pub async fn head(&self, name: &str) -> Result<Option<ObjectMeta>, IoError> {
        let path = self.object_path(name)?;
        let answer = with_retries(&self.budget, name, || async {
            self.store.head(&path).await.map_err(|error| IoError::from_store("look at", &self.show(name), error))
        });
        found(answer.await)
    }

    /// Whether `name` is there.
    pub async fn exists(&self, name: &str) -> Result<bool, IoError> {
        Ok(self.head(name).await?.is_some())
    }

    /// All objects below `folder`, sorted by name; empty when there is no such folder.
    pub async fn list(&self, folder: &str) -> Result<Vec<ObjectMeta>, IoError> {
        let path = self.object_path(folder)?;
        let mut objects: Vec<ObjectMeta> = with_retries(&self.budget, folder, || async {
            let listing = self.store.list(Some(&path)).try_collect();
            listing.await.map_err(|error| IoError::from_store("list", &self.show(folder), error))
        })
        .await?;
        objects.sort_by(|a, b| a.location.as_ref().cmp(b.location.as_ref()));
        Ok(objects)
    }

    /// Deletes `name`; no error when it is not there.
    pub async fn delete(&self, name: &str) -> Result<(), IoError> {
        let path = self.object_path(name)?;
        let answer = with_retries(&self.budget, name, || async {
            self.store.delete(&path).await.map_err(|error| IoError::from_store("delete", &self.show(name), error))
        });
        found(answer.await).map(drop)
    }
}

fn folder_of(location: &Location) -> Result<PathBuf, IoError> {
    let shown = || location.shown();
    location.local_path().ok_or_else(|| invalid(format!("'{}' is not supported as output; {SUPPORTED}", shown())))
}

fn found<T>(answer: Result<T, IoError>) -> Result<Option<T>, IoError> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind == IoErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether this may mean that the store knows no "create". Linking is refused with `EPERM` or `EOPNOTSUPP` by file
/// systems without hard links; a folder that cannot be written to at all gives the same error to the plain write.
fn cannot_create(error: &IoError) -> bool {
    matches!(error.kind, IoErrorKind::Invalid | IoErrorKind::Refused)
        || error.io_kind() == Some(std::io::ErrorKind::Unsupported)
}

#[cfg(test)]
mod tests;
