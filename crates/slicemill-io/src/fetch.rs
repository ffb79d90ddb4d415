//! Reading input objects, with retries, limits and the check that they are what was listed.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use futures::future::BoxFuture;
use object_store::path::Path as ObjectPath;
use object_store::{GetOptions, GetRange, GetResult, GetResultPayload, ObjectMeta, ObjectStore, ObjectStoreExt as _};
use slicemill_core::Fate;
use url::Url;

use crate::retry::with_counted_retries;
use crate::stores::wire::WireError;
use crate::stores::{UNKNOWN_SIZE, shown_url};
use crate::{InputEntry, IoError, IoErrorKind, Place, RetryBudget, Stores};

/// Bytes that memory is taken for before they have come, where the size is only what a server says.
const TRUSTED_BYTES: u64 = 1 << 20;
/// The size that is reserved for an object of which only the place is known.
const GUESSED_BYTES: u64 = 4 << 20;

/// Reads what stands inside archives and tables.
pub trait InnerReader: Send + Sync + std::fmt::Debug {
    /// The bytes of `entry` at `place` (`Unpacked` or `Cell`), which is split from its URL already. `TooLarge` above
    /// `bytes_max`, which must hold while reading. The object's tag is checked as [`InputEntry::tag`] says.
    fn read<'a>(
        &'a self,
        entry: &'a InputEntry,
        place: &'a Place,
        bytes_max: u64,
    ) -> BoxFuture<'a, Result<Bytes, IoError>>;
}

/// Reads inputs. All errors have fate `Row` (retries are over when they are returned) and carry the attempts;
/// [`IoError::row_error`] makes the failed row's error of them. Cheap to clone.
///
/// A body that breaks is continued where it broke, from the same version of the object or not at all. A server that
/// ignores ranges is noticed, and read from the beginning.
#[derive(Debug, Clone)]
pub struct ObjectFetch {
    stores: Stores,
    budget: RetryBudget,
    bytes_max: u64,
    inner: Option<Arc<dyn InnerReader>>,
}

/// The bytes that are wanted of an object.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    /// First byte.
    start: u64,
    /// How many; `None` for all to the end.
    bytes: Option<u64>,
    /// That many must be there.
    exact: bool,
    /// More than this is an error.
    bytes_max: u64,
}

/// What was read of an object so far.
#[derive(Debug, Default)]
struct Progress {
    buffer: BytesMut,
    /// Tag and size of the version that is read.
    version: Option<(String, u64)>,
    ranges_ignored: bool,
}

/// The error of a row. What readers of packed things call fatal is: a full disk under the spool would fail every row.
fn of_row(entry: &InputEntry, error: IoError) -> IoError {
    match Place::split(&entry.url).1 {
        Place::Unpacked { .. } | Place::Cell { .. } if error.fate == Fate::Fatal => error,
        _ => error.with_fate(Fate::Row),
    }
}

impl ObjectFetch {
    /// Objects larger than this are refused by default: 2 GiB.
    pub const BYTES_MAX_DEFAULT: u64 = 2 << 30;

    /// Reads through `stores`. What the stores' options say about retries changes `budget`.
    pub const fn new(stores: Stores, budget: RetryBudget) -> Self {
        Self { stores, budget, bytes_max: Self::BYTES_MAX_DEFAULT, inner: None }
    }

    /// Another limit on the size of an object.
    #[must_use]
    pub const fn with_bytes_max(mut self, bytes_max: u64) -> Self {
        self.bytes_max = bytes_max;
        self
    }

    /// Reads what stands inside archives and tables through `inner`.
    #[must_use]
    pub fn with_inner(mut self, inner: Arc<dyn InnerReader>) -> Self {
        self.inner = Some(inner);
        self
    }

    /// The stores that are read.
    pub const fn stores(&self) -> &Stores {
        &self.stores
    }

    /// All bytes. `SourceChanged` when size or tag are not the listed ones, `TooLarge` above the limit. The size of an
    /// `estimated` entry is not compared.
    pub async fn read(&self, entry: &InputEntry) -> Result<Bytes, IoError> {
        self.at_place(entry, None).await.map_err(|error| of_row(entry, error))
    }

    /// The first `bytes` bytes, or all when there are fewer. Checked like [`read`](Self::read), but objects of any
    /// size have a beginning.
    pub async fn read_prefix(&self, entry: &InputEntry, bytes: u64) -> Result<Bytes, IoError> {
        self.at_place(entry, Some(bytes)).await.map_err(|error| of_row(entry, error))
    }

    async fn at_place(&self, entry: &InputEntry, prefix: Option<u64>) -> Result<Bytes, IoError> {
        let (object, place) = Place::split(&entry.url);
        let bytes_max = if prefix.is_some() { u64::MAX } else { self.bytes_max };
        let too_large = |bytes: u64| {
            let message = format!("{} has {bytes} bytes, more than the limit of {bytes_max}", shown_url(&entry.url));
            IoError::new(Fate::Row, IoErrorKind::TooLarge, message)
        };
        match place {
            Place::Whole => {
                self.fetch(entry, object, Wanted { start: 0, bytes: prefix, exact: false, bytes_max }).await
            }
            Place::At { bytes, .. } if bytes > bytes_max => Err(too_large(bytes)),
            Place::At { offset, bytes } => {
                let bytes = prefix.map_or(bytes, |prefix| prefix.min(bytes));
                if bytes == 0 {
                    return Ok(Bytes::new());
                }
                let wanted = Wanted { start: offset, bytes: Some(bytes), exact: true, bytes_max };
                self.fetch(entry, object, wanted).await
            }
            Place::Refused { class, why } => Err(IoError::new(Fate::Row, IoErrorKind::Row(class), why)),
            place @ (Place::Unpacked { .. } | Place::Cell { .. }) => {
                let Some(inner) = &self.inner else {
                    let message = format!("{} is inside a file that is not read here", shown_url(&entry.url));
                    return Err(IoError::new(Fate::Row, IoErrorKind::Invalid, message));
                };
                let bytes = inner.read(entry, &place, self.bytes_max).await?;
                if bytes.len() as u64 > self.bytes_max {
                    return Err(too_large(bytes.len() as u64));
                }
                let cut = prefix.and_then(|prefix| usize::try_from(prefix).ok()).unwrap_or(usize::MAX);
                Ok(bytes.slice(..cut.min(bytes.len())))
            }
        }
    }

    /// The entry of an input as it is now, for retries of rows whose file was mended. What stands inside an archive or
    /// a table keeps its place; a row that was refused when it was listed stays refused.
    pub async fn describe(&self, key: &str, url: &str) -> Result<InputEntry, IoError> {
        let (object, place) = Place::split(url);
        if matches!(place, Place::Refused { .. }) {
            return Ok(InputEntry::object(key, url, 0, ""));
        }
        let shown = shown_url(url);
        let head = async {
            let target = parse(object)?;
            let budget = self.stores.budget(&target, self.budget);
            with_counted_retries(&budget, &shown, Some(self.stores.counters()), || async {
                let (store, path) = self.stores.resolve(&target)?;
                store.head(&path).await.map_err(|error| IoError::from_store("look at", &shown, error))
            })
            .await
        };
        let meta = head.await.map_err(|error| error.with_fate(Fate::Row))?;
        let (bytes, estimated) = match place {
            Place::Whole if meta.size == UNKNOWN_SIZE => (GUESSED_BYTES, true),
            Place::Whole | Place::Refused { .. } => (meta.size, false),
            Place::At { bytes, .. } | Place::Unpacked { bytes, .. } => (bytes, false),
            Place::Cell { .. } => (meta.size.min(GUESSED_BYTES), true),
        };
        Ok(InputEntry { estimated, ..InputEntry::object(key, url, bytes, tag(&meta)) })
    }

    async fn fetch(&self, entry: &InputEntry, object: &str, wanted: Wanted) -> Result<Bytes, IoError> {
        let url = parse(object)?;
        let budget = self.stores.budget(&url, self.budget);
        let whole = budget.time_for(wanted.bytes.unwrap_or(entry.bytes).min(wanted.bytes_max));
        // A try may take all the time there is, as long as bytes keep coming.
        let tries = RetryBudget { attempt_timeout: whole, ..budget };
        let shown = shown_url(&entry.url);
        let progress = tokio::sync::Mutex::new(Progress::default());
        let reading = with_counted_retries(&tries, &shown, Some(self.stores.counters()), || async {
            let (store, path) = self.stores.resolve(&url)?;
            let read = Read { fetch: self, entry, shown: &shown, budget: &budget, store, path, wanted };
            read.go_on(&mut *progress.lock().await).await
        });
        match tokio::time::timeout(whole, reading).await {
            Ok(read) => read?,
            Err(_elapsed) => {
                self.stores.counters().error("timeout");
                let message = format!("cannot read {shown}: it took more than {} s", whole.as_secs());
                return Err(IoError::new(Fate::Row, IoErrorKind::Failed, message));
            }
        }
        Ok(progress.into_inner().buffer.freeze())
    }
}

/// One try to read what is left of an object.
struct Read<'a> {
    fetch: &'a ObjectFetch,
    entry: &'a InputEntry,
    shown: &'a str,
    budget: &'a RetryBudget,
    store: Arc<dyn ObjectStore>,
    path: ObjectPath,
    wanted: Wanted,
}

impl Read<'_> {
    async fn go_on(&self, progress: &mut Progress) -> Result<(), IoError> {
        let have = progress.buffer.len() as u64;
        let from = self.wanted.start + have;
        let size = progress.version.as_ref().map(|(_, size)| *size);
        let range = self.range(from, size).filter(|_| !progress.ranges_ignored);
        if have > 0 {
            self.fetch.stores.counters().resumed();
        }
        let tag = progress.version.as_ref().map(|(tag, _)| tag.clone());
        let strong = tag.filter(|tag| tag.starts_with('"') && have > 0 && range.is_some());
        let options = GetOptions::new().with_range(range.clone()).with_if_match(strong);
        let answer = tokio::time::timeout(self.budget.attempt_timeout, self.store.get_opts(&self.path, options));
        let answer = match answer.await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(self.refused(error, progress)),
            Err(_elapsed) => return Err(self.broken(WireError::NoAnswer(self.budget.attempt_timeout))),
        };
        self.check_version(&answer.meta, progress)?;
        let read = self.take(answer, progress).await;
        // Without a size and a tag nothing says that the rest would belong to the same bytes.
        if read.is_err() && progress.version.as_ref().is_none_or(|(tag, size)| tag.is_empty() || *size == UNKNOWN_SIZE)
        {
            progress.buffer.clear();
        }
        read
    }

    /// The range to ask for; `None` for everything.
    fn range(&self, from: u64, size: Option<u64>) -> Option<GetRange> {
        let end = self.wanted.bytes.map(|bytes| self.wanted.start.saturating_add(bytes));
        match (end, size.filter(|size| *size != UNKNOWN_SIZE)) {
            // An empty object has no range that could be asked for.
            (Some(end), None) if self.wanted.start == 0 && !self.wanted.exact => {
                let longer = self.entry.bytes > end && !self.entry.estimated;
                longer.then(|| GetRange::Bounded(from..end.max(from + 1)))
            }
            (Some(end), Some(size)) if from < end.min(size) => Some(GetRange::Bounded(from..end.min(size))),
            (Some(end), None) => Some(GetRange::Bounded(from..end)),
            (None, Some(size)) if from > 0 && from < size => Some(GetRange::Bounded(from..size)),
            _ => None,
        }
    }

    fn broken(&self, error: WireError) -> IoError {
        let error = object_store::Error::Generic { store: "store", source: Box::new(error) };
        IoError::from_store("read", self.shown, error)
    }

    /// The store did not give what was asked for.
    fn refused(&self, error: object_store::Error, progress: &mut Progress) -> IoError {
        if WireError::find(&error) == Some(&WireError::RangeIgnored) {
            progress.ranges_ignored = true;
            return IoError::from_store("read", self.shown, error).with_fate(Fate::Transient);
        }
        if matches!(error, object_store::Error::Precondition { .. }) {
            return self.changed("another tag", progress);
        }
        IoError::from_store("read", self.shown, error)
    }

    /// The object is not the one that was listed, or that the first bytes came from. When nothing was known about it
    /// before, it is read anew.
    fn changed(&self, now: &str, progress: &mut Progress) -> IoError {
        *progress = Progress { ranges_ignored: progress.ranges_ignored, ..Progress::default() };
        let (shown, entry) = (self.shown, self.entry);
        if entry.tag.is_empty() {
            let message = format!("{shown} changed while it was read");
            return IoError::new(Fate::Transient, IoErrorKind::SourceChanged, message);
        }
        let message =
            format!("{shown} changed after it was listed: {} bytes and tag {} then, {now} now", entry.bytes, entry.tag);
        IoError::new(Fate::Row, IoErrorKind::SourceChanged, message)
    }

    fn check_version(&self, meta: &ObjectMeta, progress: &mut Progress) -> Result<(), IoError> {
        let (entry, now) = (self.entry, tag(meta));
        let whole = Place::split(&entry.url).1 == Place::Whole;
        let sized = whole && !entry.estimated && meta.size != UNKNOWN_SIZE;
        let described = || format!("{} bytes and tag {now}", meta.size);
        if (sized && !entry.tag.is_empty() && meta.size != entry.bytes) || !same_version(&entry.tag, meta) {
            return Err(self.changed(&described(), progress));
        }
        match &progress.version {
            Some((tag, size)) if *size != meta.size || !same_tag(tag, &now) => {
                Err(self.changed(&described(), progress))
            }
            Some(_) => Ok(()),
            None => {
                progress.version = Some((now, meta.size));
                Ok(())
            }
        }
    }

    fn too_large(&self, bytes: &str) -> IoError {
        let message = format!("{} has {bytes} bytes, more than the limit of {}", self.shown, self.wanted.bytes_max);
        IoError::new(Fate::Row, IoErrorKind::TooLarge, message)
    }

    /// Takes the bytes of an answer until there are enough.
    async fn take(&self, answer: GetResult, progress: &mut Progress) -> Result<(), IoError> {
        let (size, begins) = (answer.meta.size, answer.range.start);
        let have = progress.buffer.len() as u64;
        let left = size.saturating_sub(self.wanted.start);
        let target = match self.wanted.bytes {
            Some(bytes) if size == UNKNOWN_SIZE => Some(bytes),
            Some(bytes) => Some(bytes.min(left)),
            None if size == UNKNOWN_SIZE => None,
            None => Some(left),
        };
        if self.wanted.exact && target < self.wanted.bytes {
            return Err(self.changed(&format!("{size} bytes"), progress));
        }
        if target.is_some_and(|target| target > self.wanted.bytes_max) {
            return Err(self.too_large(&target.unwrap_or_default().to_string()));
        }
        let file = matches!(answer.payload, GetResultPayload::File(..));
        let trusted = if self.entry.bytes == size { u64::MAX } else { TRUSTED_BYTES };
        let room = target.unwrap_or(0).saturating_sub(have).min(trusted.max(1));
        if !file {
            progress.buffer.reserve(usize::try_from(room).unwrap_or(0));
        }
        if file && answer.range.end.saturating_sub(begins) == target.unwrap_or(UNKNOWN_SIZE) {
            let bytes = answer.bytes().await.map_err(|error| IoError::from_store("read", self.shown, error))?;
            progress.buffer = bytes.try_into_mut().unwrap_or_else(|bytes| BytesMut::from(&bytes[..]));
        } else {
            let skip = (self.wanted.start + have).saturating_sub(begins);
            self.stream(answer, skip, target, progress).await?;
        }
        let (got, known) = (progress.buffer.len() as u64, target.or(self.listed_size()));
        match known {
            Some(known) if got < known => {
                self.fetch.stores.counters().error("short_body");
                let message = format!("{}: the store sent {got} of {known} bytes", self.shown);
                Err(IoError::new(Fate::Transient, IoErrorKind::Failed, message))
            }
            Some(known) if got > known => Err(self.changed(&format!("{got} bytes"), progress)),
            _ => Ok(()),
        }
    }

    /// The size that an object had when it was listed, if that says what it has to be.
    fn listed_size(&self) -> Option<u64> {
        let known = !self.entry.tag.is_empty() && !self.entry.estimated && self.wanted.bytes.is_none();
        known.then_some(self.entry.bytes)
    }

    async fn stream(
        &self,
        answer: GetResult,
        mut skip: u64,
        target: Option<u64>,
        progress: &mut Progress,
    ) -> Result<(), IoError> {
        let mut body = answer.into_stream();
        let target = target.unwrap_or(u64::MAX);
        let patience = self.budget.stall_timeout;
        while (progress.buffer.len() as u64) < target {
            let piece = match tokio::time::timeout(patience, body.next()).await {
                Ok(Some(piece)) => piece.map_err(|error| IoError::from_store("read", self.shown, error))?,
                Ok(None) => break,
                Err(_elapsed) => return Err(self.broken(WireError::Stalled(patience))),
            };
            let skipped = skip.min(piece.len() as u64);
            skip -= skipped;
            let piece = piece.slice(usize::try_from(skipped).unwrap_or(piece.len())..);
            let room = usize::try_from(target - progress.buffer.len() as u64).unwrap_or(usize::MAX);
            let piece = piece.slice(..piece.len().min(room));
            if (progress.buffer.len() + piece.len()) as u64 > self.wanted.bytes_max {
                progress.buffer = BytesMut::new();
                return Err(self.too_large("more"));
            }
            progress.buffer.extend_from_slice(&piece);
        }
        Ok(())
    }
}

fn parse(url: &str) -> Result<Url, IoError> {
    Url::parse(url).map_err(|error| {
        let message = format!("'{}' is not a URL: {error}", shown_url(url));
        IoError::new(Fate::Row, IoErrorKind::Invalid, message).because(error)
    })
}

/// What says that an object is still the same: its etag, else its modification time.
pub(crate) fn tag(meta: &ObjectMeta) -> String {
    meta.e_tag.clone().unwrap_or_else(|| meta.last_modified.to_rfc3339())
}

/// Stores write a tag with quotes in one answer and without in another.
fn same_tag(a: &str, b: &str) -> bool {
    a.trim_matches('"') == b.trim_matches('"')
}

/// Whether an object is the version that was listed with the tag `listed` (empty: any). Some stores list objects by
/// their time only, in fractions of a second, and answer with a tag and whole seconds.
pub(crate) fn same_version(listed: &str, meta: &ObjectMeta) -> bool {
    const SECONDS: usize = "2015-10-21T07:28:00".len();
    let time = meta.last_modified.to_rfc3339();
    let is_time = listed.get(10..11) == Some("T") && listed.ends_with("+00:00");
    listed.is_empty()
        || same_tag(&tag(meta), listed)
        || (is_time && listed.get(..SECONDS).is_some() && listed.get(..SECONDS) == time.get(..SECONDS))
}

#[cfg(test)]
mod remote_tests;
#[cfg(test)]
mod tests;
