//! The bytes of a table, for readers that block: from the beginning to the end, or by ranges.
//!
//! These run on blocking threads and wait for the store there. Reads are retried like all others, and a body that
//! breaks off goes on where it ended.

use std::io::Read;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use object_store::path::Path as ObjectPath;
use object_store::{GetOptions, GetRange, GetResult, ObjectMeta, ObjectStore};
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, Length};
use slicemill_core::Fate;
use tokio::runtime::Handle;
use url::Url;

use crate::fetch::same_version;
use crate::retry::with_retries;
use crate::{IoError, IoErrorKind, RetryBudget, Stores, shown_url};

/// An object that is read by blocking threads. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Object {
    store: Arc<dyn ObjectStore>,
    path: ObjectPath,
    shown: Arc<str>,
    bytes: u64,
    tag: Arc<str>,
    budget: RetryBudget,
    runtime: Handle,
}

impl Object {
    /// The object at `url`, which had `bytes` bytes and this tag when it was listed (empty: unknown). Must be called in
    /// the runtime that will do the reading.
    pub(crate) async fn open(
        stores: &Stores,
        budget: RetryBudget,
        url: &str,
        bytes: Option<u64>,
        tag: &str,
    ) -> Result<Self, IoError> {
        let shown = shown_url(url);
        let parsed = Url::parse(url).map_err(|error| {
            IoError::fatal(IoErrorKind::Invalid, format!("'{shown}' is not a URL: {error}")).because(error)
        })?;
        let (store, path) = stores.resolve(&parsed)?;
        let runtime = Handle::current();
        let mut object = Self { store, path, shown: shown.into(), bytes: 0, tag: tag.into(), budget, runtime };
        object.bytes = match bytes {
            Some(bytes) => bytes,
            None => with_retries(&object.budget, &object.shown, || object.head()).await?.size,
        };
        Ok(object)
    }

    async fn head(&self) -> Result<ObjectMeta, IoError> {
        let answer = self.store.get_opts(&self.path, GetOptions::new().with_head(true)).await;
        let answer = answer.map_err(|error| IoError::from_store("look at", &self.shown, error))?;
        self.check(&answer.meta)?;
        Ok(answer.meta)
    }

    /// Name for messages.
    pub(crate) fn shown(&self) -> &str {
        &self.shown
    }

    /// Its length.
    pub(crate) const fn bytes(&self) -> u64 {
        self.bytes
    }

    async fn get(&self, range: Option<GetRange>) -> Result<GetResult, IoError> {
        // Web servers need not know ranges. Object stores do: one that ignores a range has a bad moment.
        let passes = range.is_some() && !self.shown.starts_with("http");
        let answer = self.store.get_opts(&self.path, GetOptions::new().with_range(range)).await;
        let answer = answer.map_err(|error| match IoError::from_store("read", &self.shown, error) {
            error if passes && error.kind == IoErrorKind::Invalid => error.with_fate(Fate::Transient),
            error => error,
        })?;
        self.check(&answer.meta)?;
        Ok(answer)
    }

    fn check(&self, meta: &ObjectMeta) -> Result<(), IoError> {
        if self.tag.is_empty() || same_version(&self.tag, meta) {
            return Ok(());
        }
        let now = meta.e_tag.clone().unwrap_or_else(|| meta.last_modified.to_rfc3339());
        let message = format!("{} changed after it was listed: its tag was {}, it is {now}", self.shown, self.tag);
        Err(IoError::fatal(IoErrorKind::SourceChanged, message))
    }

    async fn range_once(&self, range: Range<u64>) -> Result<Bytes, IoError> {
        let wanted = range.end - range.start;
        let answer = self.get(Some(GetRange::Bounded(range))).await?;
        let bytes = answer.bytes().await.map_err(|error| IoError::from_store("read", &self.shown, error))?;
        if bytes.len() as u64 != wanted {
            let message = format!("{}: the store sent {} of {wanted} bytes", self.shown, bytes.len());
            return Err(IoError::new(Fate::Transient, IoErrorKind::Failed, message));
        }
        Ok(bytes)
    }

    /// The bytes of `range`. Not for threads that run futures.
    pub(crate) fn range(&self, range: Range<u64>) -> Result<Bytes, IoError> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let reading = with_retries(&self.budget, &self.shown, || self.range_once(range.clone()));
        self.runtime.block_on(reading)
    }

    /// All bytes, in order.
    pub(crate) fn reader(&self) -> impl Read + Send + 'static {
        ObjectReader { body: Body { object: self.clone(), state: tokio::sync::Mutex::default() }, piece: Bytes::new() }
    }
}

/// The body of an object as it comes in.
struct Body {
    object: Object,
    state: tokio::sync::Mutex<BodyState>,
}

#[derive(Default)]
struct BodyState {
    stream: Option<BoxStream<'static, object_store::Result<Bytes>>>,
    /// Bytes that came in.
    at: u64,
    /// Where the body ends, from the answer.
    end: Option<u64>,
}

impl Body {
    /// The next piece; empty at the end. A body that broke off is asked for again from there.
    async fn next(&self) -> Result<Bytes, IoError> {
        let mut state = self.state.lock().await;
        let state = &mut *state;
        if state.end == Some(state.at) {
            return Ok(Bytes::new());
        }
        let mut stream = match state.stream.take() {
            Some(stream) => stream,
            None => {
                let answer = self.object.get((state.at > 0).then_some(GetRange::Offset(state.at))).await?;
                if state.end.is_none() && answer.range.end != u64::MAX {
                    state.end = Some(answer.range.end);
                }
                answer.into_stream()
            }
        };
        loop {
            let broken = match stream.next().await {
                Some(Ok(piece)) if piece.is_empty() => continue,
                Some(Ok(piece)) => {
                    state.at += piece.len() as u64;
                    state.stream = Some(stream);
                    return Ok(piece);
                }
                Some(Err(error)) => IoError::from_store("read", &self.object.shown, error),
                None if state.end.is_none_or(|end| end == state.at) => {
                    state.end = Some(state.at);
                    return Ok(Bytes::new());
                }
                None => {
                    let end = state.end.unwrap_or_default();
                    let message = format!("{}: the store sent {} of {end} bytes", self.object.shown, state.at);
                    IoError::new(Fate::Transient, IoErrorKind::Failed, message)
                }
            };
            return Err(broken);
        }
    }
}

struct ObjectReader {
    body: Body,
    piece: Bytes,
}

impl Read for ObjectReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.piece.is_empty() && !buffer.is_empty() {
            let object = &self.body.object;
            let next = with_retries(&object.budget, &object.shown, || self.body.next());
            self.piece = object.runtime.block_on(next).map_err(std::io::Error::other)?;
        }
        let bytes = self.piece.split_to(buffer.len().min(self.piece.len()));
        buffer[..bytes.len()].copy_from_slice(&bytes);
        Ok(bytes.len())
    }
}

/// Ranges of an object, read in blocks so that many small reads are few requests. Cheap to clone; clones share the
/// block that is in memory.
#[derive(Debug, Clone)]
pub(crate) struct Blocks {
    object: Object,
    /// Offset and bytes of the last block.
    block: Arc<Mutex<(u64, Bytes)>>,
    range_bytes_max: u64,
    /// What the store said last when a Parquet reader, which has errors of its own, read from here.
    failure: Arc<Mutex<Option<IoError>>>,
}

impl Blocks {
    /// What is asked of the store at least, in bytes.
    const BLOCK: u64 = 4 << 20;

    /// Ranges of more than `range_bytes_max` bytes are refused.
    pub(crate) fn new(object: Object, range_bytes_max: u64) -> Self {
        Self { object, block: Arc::default(), range_bytes_max, failure: Arc::default() }
    }

    /// The object.
    pub(crate) const fn object(&self) -> &Object {
        &self.object
    }

    /// Keeps the reason of an error whose type cannot say it.
    pub(crate) fn fail(&self, error: IoError) {
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }

    /// Why the last reader failed, when it was not its own finding.
    pub(crate) fn take_failure(&self) -> Option<IoError> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn read_or_fail(&self, start: u64, bytes: u64) -> Result<Bytes, &'static str> {
        self.read(start, bytes).map_err(|error| {
            self.fail(error);
            "the file could not be read"
        })
    }

    /// The bytes `start..start + bytes`.
    pub(crate) fn read(&self, start: u64, bytes: u64) -> Result<Bytes, IoError> {
        let size = self.object.bytes;
        let end = start.checked_add(bytes).filter(|end| *end <= size).ok_or_else(|| {
            let message = format!("{} has {size} bytes; {bytes} at {start} are not among them", self.object.shown);
            IoError::fatal(IoErrorKind::Corrupt, message)
        })?;
        if bytes > self.range_bytes_max {
            let message = format!(
                "{}: a part of {bytes} bytes would be read at once, more than the limit of {}; write the file with \
                 smaller pages",
                self.object.shown, self.range_bytes_max
            );
            return Err(IoError::fatal(IoErrorKind::TooLarge, message));
        }
        let within = |block: &(u64, Bytes)| {
            let from = usize::try_from(start.checked_sub(block.0)?).ok()?;
            let to = from.checked_add(usize::try_from(bytes).ok()?)?;
            (to <= block.1.len()).then(|| block.1.slice(from..to))
        };
        let mut block = self.block.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = within(&block) {
            return Ok(found);
        }
        // The old block goes before the new one comes.
        *block = (0, Bytes::new());
        if bytes > Self::BLOCK {
            // A large page is not kept: who asked for it holds it for as long as it is needed.
            return self.object.range(start..end);
        }
        let range = start..end.max(start.saturating_add(Self::BLOCK).min(size));
        *block = (start, self.object.range(range)?);
        within(&block).ok_or_else(|| IoError::fatal(IoErrorKind::Failed, "a block was not read whole"))
    }
}

impl Length for Blocks {
    fn len(&self) -> u64 {
        self.object.bytes
    }
}

impl ChunkReader for Blocks {
    type T = BlockReader;

    fn get_read(&self, start: u64) -> Result<BlockReader, ParquetError> {
        Ok(BlockReader { blocks: self.clone(), at: start })
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        self.read_or_fail(start, length as u64).map_err(|error| ParquetError::General(error.to_owned()))
    }
}

/// Reads on from a position.
#[derive(Debug)]
pub(crate) struct BlockReader {
    blocks: Blocks,
    at: u64,
}

impl Read for BlockReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let left = self.blocks.object.bytes.saturating_sub(self.at);
        let bytes = (buffer.len() as u64).min(left).min(1 << 16);
        let read = self.blocks.read_or_fail(self.at, bytes).map_err(std::io::Error::other)?;
        buffer[..read.len()].copy_from_slice(&read);
        self.at += read.len() as u64;
        Ok(read.len())
    }
}
