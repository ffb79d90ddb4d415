//! The output of a job: a folder, or a prefix of a bucket.
//!
//! Local writes are atomic: `object_store` writes `name#<n>` beside the object and renames it, or links it when the
//! object must not be there yet. A process killed in between leaves `name#<n>`, which listings do not show and
//! [`Ledger::recover`](crate::Ledger::recover) removes. Nothing is flushed to the disk with `fsync`: a killed process
//! loses nothing by that, a power loss may leave objects cut short, which `recover` finds by size and has redone.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt as _;
use futures::future::join_all;
use object_store::local::LocalFileSystem;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt as _, PutMode, path::Path as ObjectPath};

use crate::retry::{RetryBudget, with_counted_retries};
use crate::stores::lease::{LeaseWatch, SharedWatch};
use crate::stores::{Below, IoCounters, invalid, no_output};
pub use crate::stores::{Location, Stores};
use crate::{IoError, IoErrorKind, OutputLock};

/// The speed at which a large object is written at least.
const WRITE_SPEED_MIN: u64 = 64 << 10;

/// Objects deleted at the same time.
const DELETIONS_IN_FLIGHT: usize = 16;

/// Between renewals of a lease.
const LEASE_PERIOD: Duration = Duration::from_secs(10);

/// The root of a job's output. Names are relative to it, with `/`. Cheap to clone.
#[derive(Debug, Clone)]
pub struct OutputStore {
    store: Arc<dyn ObjectStore>,
    root: Option<PathBuf>,
    url: Arc<str>,
    budget: RetryBudget,
    counters: IoCounters,
    watch: SharedWatch,
    /// The store cannot create without replacing.
    no_create: Arc<AtomicBool>,
    /// Nobody else can reach it.
    private: bool,
    /// Between renewals of a lease.
    lease_period: Duration,
}

impl OutputStore {
    /// Opens `location`, making the folder when it is local and not there. Buckets and containers must exist; that
    /// they do not is found by the first request.
    pub fn create(location: &Location, stores: &Stores) -> Result<Self, IoError> {
        if let Some(folder) = location.local_path() {
            std::fs::create_dir_all(&folder).map_err(|error| {
                let message = format!("cannot make the output folder '{}': {error}", folder.display());
                IoError::fatal(IoErrorKind::Refused, message).because(error)
            })?;
        }
        Self::open(location, stores)
    }

    /// Opens `location`; an error that says so when it is local and there is no such folder. Web servers cannot be
    /// outputs.
    pub fn open(location: &Location, stores: &Stores) -> Result<Self, IoError> {
        let Some(folder) = location.local_path() else { return Self::open_remote(location, stores) };
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
        let mut output = Self::with_store(Arc::new(store), location.url().as_str());
        output.root = Some(root);
        output.private = false;
        output.counters = stores.counters().clone();
        Ok(output)
    }

    fn open_remote(location: &Location, stores: &Stores) -> Result<Self, IoError> {
        let url = location.url();
        if matches!(url.scheme(), "http" | "https") && !stores.is_azure_blob(url) {
            return Err(no_output(url));
        }
        let (store, prefix) = stores.resolve(url).map_err(|error| error.with_fate(slicemill_core::Fate::Fatal))?;
        let store: Arc<dyn ObjectStore> = if prefix.is_root() { store } else { Arc::new(Below::new(store, prefix)) };
        let mut output = Self::with_store(store, location.shown()).leased();
        output.budget = stores.budget(url, output.budget);
        output.counters = stores.counters().clone();
        Ok(output)
    }

    /// An output in any store, for tests and for stores set up elsewhere. `url` is for messages. Nothing keeps a
    /// second process away unless it is [`leased`](Self::leased).
    pub fn with_store(store: Arc<dyn ObjectStore>, url: impl Into<String>) -> Self {
        Self {
            store,
            root: None,
            url: url.into().into(),
            budget: RetryBudget::default(),
            counters: IoCounters::new(),
            watch: Arc::new(LeaseWatch::default()),
            no_create: Arc::new(AtomicBool::new(false)),
            private: true,
            lease_period: LEASE_PERIOD,
        }
    }

    /// The same, kept for one process by a lease when it is [locked](Self::lock).
    #[must_use]
    pub fn leased(mut self) -> Self {
        self.private = false;
        self
    }

    /// Another time between renewals of a lease; after four of them without one it counts as left behind. Ten seconds
    /// by default.
    #[must_use]
    pub const fn with_lease_period(mut self, period: Duration) -> Self {
        self.lease_period = period;
        self
    }

    pub(crate) const fn lease_period(&self) -> Duration {
        self.lease_period
    }

    /// Whether no lease is needed.
    pub(crate) const fn is_private(&self) -> bool {
        self.private
    }

    pub(crate) fn lease_watch(&self) -> &LeaseWatch {
        &self.watch
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
    pub async fn lock(&self) -> Result<OutputLock, IoError> {
        OutputLock::take(self).await
    }

    /// The path of `name` in the store.
    pub fn object_path(&self, name: &str) -> Result<ObjectPath, IoError> {
        ObjectPath::parse(name).map_err(|error| IoError::from_store("name", &self.show(name), error.into()))
    }

    /// `name` with the root, for messages.
    pub(crate) fn show(&self, name: &str) -> String {
        format!("{}/{name}", self.url.trim_end_matches('/'))
    }

    /// Tries `operation` again as the budget says.
    pub(crate) async fn retrying<T, Op, Answer>(&self, name: &str, operation: Op) -> Result<T, IoError>
    where
        Op: FnMut() -> Answer,
        Answer: Future<Output = Result<T, IoError>>,
    {
        with_counted_retries(&self.budget, name, Some(&self.counters), operation).await
    }

    /// The same with time for so many bytes.
    async fn retrying_bytes<T, Op, Answer>(&self, name: &str, bytes: u64, operation: Op) -> Result<T, IoError>
    where
        Op: FnMut() -> Answer,
        Answer: Future<Output = Result<T, IoError>>,
    {
        let time = Duration::from_secs(bytes / WRITE_SPEED_MIN);
        let budget = RetryBudget { attempt_timeout: self.budget.attempt_timeout.saturating_add(time), ..self.budget };
        with_counted_retries(&budget, name, Some(&self.counters), operation).await
    }

    /// The same for reading: bodies that stall are cut below, and a large one may take its time.
    pub(crate) async fn retrying_long<T, Op, Answer>(&self, name: &str, operation: Op) -> Result<T, IoError>
    where
        Op: FnMut() -> Answer,
        Answer: Future<Output = Result<T, IoError>>,
    {
        let budget = RetryBudget { attempt_timeout: self.budget.time_total, ..self.budget };
        with_counted_retries(&budget, name, Some(&self.counters), operation).await
    }

    /// Writes `name` unless it is there. Accepted when it is there with the same bytes; `Conflict` when with others.
    /// A write whose answer was lost is recognised by its bytes.
    ///
    /// Where the store cannot create without replacing (a file system without hard links, an S3 server without
    /// `If-None-Match`) the object is looked for first and then written: under the output's lock or lease that is the
    /// same.
    pub async fn put_if_absent(&self, name: &str, bytes: Bytes) -> Result<(), IoError> {
        self.watch.check()?;
        let path = self.object_path(name)?;
        let created = self.retrying_bytes(name, bytes.len() as u64, || async {
            if self.no_create.load(Ordering::Relaxed) {
                return self.look_then_put(name, &bytes).await;
            }
            let answer = self.store.put_opts(&path, bytes.clone().into(), PutMode::Create.into()).await;
            match answer.map_err(|error| IoError::from_store("write", &self.show(name), error)) {
                Ok(_) => Ok(true),
                Err(error) if error.kind == IoErrorKind::Conflict => Ok(false),
                Err(error) if cannot_create(&error) => {
                    let created = self.look_then_put(name, &bytes).await?;
                    self.note_no_create();
                    Ok(created)
                }
                Err(error) => Err(error),
            }
        });
        let created = match created.await {
            Ok(created) => created,
            // The last answer may have been lost as well.
            Err(error) if error.fate == slicemill_core::Fate::Transient => match self.find(name).await {
                Ok(Some(there)) if there == bytes => return Ok(()),
                _ => return Err(error),
            },
            Err(error) => return Err(error),
        };
        if created || self.get(name).await? == bytes {
            return Ok(());
        }
        Err(self.conflict(name))
    }

    async fn look_then_put(&self, name: &str, bytes: &Bytes) -> Result<bool, IoError> {
        let there = self.exists(name).await?;
        if !there {
            self.put(name, bytes.clone()).await?;
        }
        Ok(!there)
    }

    fn note_no_create(&self) {
        if !self.no_create.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                output = &*self.url,
                "this store cannot create objects without replacing them; objects are looked for first. Do not start \
                 a second process on this output"
            );
        }
    }

    /// Looks whether the store keeps an object that is there (`name`, with `bytes`) when asked to create it: some
    /// servers take the condition and do not look at it.
    pub(crate) async fn probe_create(&self, name: &str, bytes: &Bytes) -> Result<(), IoError> {
        let path = self.object_path(name)?;
        let answer = self.store.put_opts(&path, bytes.clone().into(), PutMode::Create.into()).await;
        if answer.is_ok() {
            self.note_no_create();
        }
        Ok(())
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
        self.watch.check()?;
        let path = self.object_path(name)?;
        self.retrying_bytes(name, bytes.len() as u64, || async {
            let answer = self.store.put(&path, bytes.clone().into()).await;
            answer.map(drop).map_err(|error| IoError::from_store("write", &self.show(name), error))
        })
        .await
    }

    /// The bytes of `name`.
    pub async fn get(&self, name: &str) -> Result<Bytes, IoError> {
        let path = self.object_path(name)?;
        self.retrying_long(name, || async {
            let bytes = async { self.store.get(&path).await?.bytes().await };
            bytes.await.map_err(|error| IoError::from_store("read", &self.show(name), error))
        })
        .await
    }

    /// Some ranges of the bytes of `name`, in the order asked for.
    pub async fn get_ranges(&self, name: &str, ranges: &[Range<u64>]) -> Result<Vec<Bytes>, IoError> {
        let path = self.object_path(name)?;
        self.retrying(name, || async {
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
        let answer = self.retrying(name, || async {
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
        let mut objects: Vec<ObjectMeta> = self
            .retrying(folder, || async {
                let listing = self.store.list(Some(&path)).try_collect();
                listing.await.map_err(|error| IoError::from_store("list", &self.show(folder), error))
            })
            .await?;
        objects.sort_by(|a, b| a.location.as_ref().cmp(b.location.as_ref()));
        Ok(objects)
    }

    /// The objects in `folder` itself, in no order.
    pub(crate) async fn list_direct(&self, folder: &str) -> Result<Vec<ObjectMeta>, IoError> {
        let path = self.object_path(folder)?;
        let listing = self.retrying(folder, || async {
            let listing = self.store.list_with_delimiter(Some(&path)).await;
            listing.map_err(|error| IoError::from_store("list", &self.show(folder), error))
        });
        Ok(found(listing.await)?.map(|listing| listing.objects).unwrap_or_default())
    }

    /// Deletes `name`; no error when it is not there.
    pub async fn delete(&self, name: &str) -> Result<(), IoError> {
        self.watch.check()?;
        self.delete_anyway(name).await
    }

    /// The same without a look at the lease.
    pub(crate) async fn delete_anyway(&self, name: &str) -> Result<(), IoError> {
        let path = self.object_path(name)?;
        let answer = self.retrying(name, || async {
            self.store.delete(&path).await.map_err(|error| IoError::from_store("delete", &self.show(name), error))
        });
        found(answer.await).map(drop)
    }

    /// Deletes all of `names`, several at a time. None is under way any more when it returns.
    pub(crate) async fn delete_all(&self, names: Vec<String>) -> Result<(), IoError> {
        for names in names.chunks(DELETIONS_IN_FLIGHT) {
            let deletions = names.iter().cloned().map(|name| {
                let output = self.clone();
                async move { output.delete(&name).await }
            });
            join_all(deletions).await.into_iter().collect::<Result<(), IoError>>()?;
        }
        Ok(())
    }
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
pub(crate) fn cannot_create(error: &IoError) -> bool {
    matches!(error.kind, IoErrorKind::Invalid | IoErrorKind::Refused)
        || error.io_kind() == Some(std::io::ErrorKind::Unsupported)
}

#[cfg(test)]
mod tests;
