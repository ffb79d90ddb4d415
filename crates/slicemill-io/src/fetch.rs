//! Reading input objects, with retries, limits and the check that they are what was listed.

use bytes::{Bytes, BytesMut};
use futures::TryStreamExt as _;
use futures::stream::BoxStream;
use object_store::{GetOptions, GetRange, ObjectMeta, ObjectStoreExt as _};
use slicemill_core::Fate;
use url::Url;

use crate::retry::with_retries;
use crate::{InputEntry, IoError, IoErrorKind, RetryBudget, Stores};

/// Reads inputs. All errors have fate `Row` (retries are over when they are returned) and carry the attempts;
/// [`IoError::row_error`] makes the failed row's error of them. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ObjectFetch {
    stores: Stores,
    budget: RetryBudget,
    bytes_max: u64,
}

/// How much of an object is wanted.
#[derive(Clone, Copy)]
enum Part {
    All { bytes_max: u64 },
    Prefix { bytes: u64 },
}

impl ObjectFetch {
    /// Objects larger than this are refused by default: 2 GiB.
    pub const BYTES_MAX_DEFAULT: u64 = 2 << 30;

    /// Reads through `stores`.
    pub const fn new(stores: Stores, budget: RetryBudget) -> Self {
        Self { stores, budget, bytes_max: Self::BYTES_MAX_DEFAULT }
    }

    /// Another limit on the size of an object.
    #[must_use]
    pub const fn with_bytes_max(mut self, bytes_max: u64) -> Self {
        self.bytes_max = bytes_max;
        self
    }

    /// All bytes. `SourceChanged` when size or tag are not the listed ones, `TooLarge` above the limit.
    pub async fn read(&self, entry: &InputEntry) -> Result<Bytes, IoError> {
        self.fetch(entry, Part::All { bytes_max: self.bytes_max }).await
    }

    /// The first `bytes` bytes, or all when there are fewer. Checked like [`read`](Self::read), but objects of any
    /// size have a beginning.
    pub async fn read_prefix(&self, entry: &InputEntry, bytes: u64) -> Result<Bytes, IoError> {
        self.fetch(entry, Part::Prefix { bytes }).await
    }

    /// The entry of an object as it is now, for retries of rows whose file was mended.
    pub async fn describe(&self, key: &str, url: &str) -> Result<InputEntry, IoError> {
        let head = with_retries(&self.budget, url, || async {
            let (store, path) = self.stores.resolve(&parse(url)?)?;
            store.head(&path).await.map_err(|error| IoError::from_store("look at", url, error))
        });
        let meta = head.await.map_err(|error| error.with_fate(Fate::Row))?;
        Ok(InputEntry::object(key, url, meta.size, tag(&meta)))
    }

    async fn fetch(&self, entry: &InputEntry, part: Part) -> Result<Bytes, IoError> {
        let bytes = with_retries(&self.budget, &entry.url, || self.try_once(entry, part)).await;
        bytes.map_err(|error| error.with_fate(Fate::Row))
    }

    async fn try_once(&self, entry: &InputEntry, part: Part) -> Result<Bytes, IoError> {
        let (store, path) = self.stores.resolve(&parse(&entry.url)?)?;
        // An empty object has no range that could be asked for.
        let range = match part {
            Part::Prefix { bytes } if entry.bytes > bytes => Some(GetRange::Bounded(0..bytes.max(1))),
            _ => None,
        };
        let failed = |error| IoError::from_store("read", &entry.url, error);
        let answer = store.get_opts(&path, GetOptions::new().with_range(range)).await.map_err(failed)?;
        check_unchanged(entry, &answer.meta)?;
        let expected = answer.range.end - answer.range.start;
        if let Part::All { bytes_max } = part
            && expected > bytes_max
        {
            let message = format!("{} has {expected} bytes, more than the limit of {bytes_max}", entry.url);
            return Err(IoError::new(Fate::Row, IoErrorKind::TooLarge, message));
        }
        let wanted = match part {
            Part::All { .. } => expected,
            Part::Prefix { bytes } => expected.min(bytes),
        };
        let bytes = if wanted == expected {
            answer.bytes().await.map_err(failed)?
        } else {
            beginning(answer.into_stream(), wanted).await.map_err(failed)?
        };
        if bytes.len() as u64 != wanted {
            let message = format!("{}: the store sent {} of {wanted} bytes", entry.url, bytes.len());
            return Err(IoError::new(Fate::Transient, IoErrorKind::Failed, message));
        }
        Ok(bytes)
    }
}

/// The first `wanted` bytes of a body whose rest is not read.
async fn beginning(
    mut body: BoxStream<'static, object_store::Result<Bytes>>,
    wanted: u64,
) -> object_store::Result<Bytes> {
    let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
    let mut bytes = BytesMut::new();
    while bytes.len() < wanted
        && let Some(piece) = body.try_next().await?
    {
        bytes.extend_from_slice(&piece[..piece.len().min(wanted - bytes.len())]);
    }
    Ok(bytes.freeze())
}

fn parse(url: &str) -> Result<Url, IoError> {
    Url::parse(url).map_err(|error| {
        IoError::new(Fate::Row, IoErrorKind::Invalid, format!("'{url}' is not a URL: {error}")).because(error)
    })
}

/// What says that an object is still the same: its etag, else its modification time.
pub(crate) fn tag(meta: &ObjectMeta) -> String {
    meta.e_tag.clone().unwrap_or_else(|| meta.last_modified.to_rfc3339())
}

fn check_unchanged(entry: &InputEntry, meta: &ObjectMeta) -> Result<(), IoError> {
    let now = tag(meta);
    if entry.tag.is_empty() || (meta.size == entry.bytes && now == entry.tag) {
        return Ok(());
    }
    let message = format!(
        "{} changed after it was listed: {} bytes and tag {} then, {} bytes and tag {now} now",
        entry.url, entry.bytes, entry.tag, meta.size
    );
    Err(IoError::new(Fate::Row, IoErrorKind::SourceChanged, message))
}

#[cfg(test)]
mod tests;
