//! Reading what stands inside packed archives and tables.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use slicemill_core::Fate;
use tokio::runtime::Handle;
use url::Url;

use super::kinds::{HEAD_BYTES, Packing};
use super::object::{LocalObject, ReadAt, RemoteObject};
use super::spool::{Segment, SegmentKey, Spool};
use super::unpack::Unpacked;
use crate::{InputEntry, IoError, IoErrorKind, ObjectFetch, Place, shown_url};

/// Reads members of packed archives, which are unpacked once into a [`Spool`], and values of tables.
#[derive(Debug, Clone)]
pub struct PlaceReader {
    fetch: ObjectFetch,
    spool: Spool,
}

impl PlaceReader {
    /// Reads objects through `fetch` and keeps what they unpack to in `spool`.
    pub const fn new(fetch: ObjectFetch, spool: Spool) -> Self {
        Self { fetch, spool }
    }

    /// The bytes of `entry` at `place`, which is split from its URL already.
    ///
    /// # Errors
    /// `TooLarge` above `bytes_max`, `SourceChanged` when the object is not the one that was listed.
    pub fn read<'a>(
        &'a self,
        entry: &'a InputEntry,
        place: &'a Place,
        bytes_max: u64,
    ) -> BoxFuture<'a, Result<Bytes, IoError>> {
        Box::pin(async move {
            let shown = || shown_url(&entry.url);
            match place {
                Place::Unpacked { bytes, .. } if *bytes > bytes_max => {
                    let message = format!("{} has {bytes} bytes, more than the limit of {bytes_max}", shown());
                    Err(IoError::new(Fate::Row, IoErrorKind::TooLarge, message))
                }
                Place::Unpacked { offset, bytes } => self.unpacked(entry).await?.read(*offset, *bytes).await,
                _ => {
                    let message = format!("{} is not inside a packed archive", shown());
                    Err(IoError::new(Fate::Row, IoErrorKind::Invalid, message))
                }
            }
        })
    }

    /// What the object of `entry` unpacks to, as far as it can be unpacked.
    async fn unpacked(&self, entry: &InputEntry) -> Result<Arc<Segment>, IoError> {
        let url = Place::split(&entry.url).0.to_owned();
        let key = SegmentKey { url: url.clone(), tag: entry.tag.clone(), part: 0 };
        let (fetch, tag, runtime) = (self.fetch.clone(), entry.tag.clone(), Handle::current());
        let bytes_max = self.spool.segment_bytes_max();
        let fill = move |writer: &mut super::SpoolWriter| {
            let object = open(&runtime, &fetch, &url, &tag)?;
            let head = object.read_at(0, HEAD_BYTES.min(usize::try_from(object.length()).unwrap_or(usize::MAX)))?;
            Unpacked::new(object, Packing::of(&head), bytes_max)?.copy_to(writer)?;
            Ok(Vec::new())
        };
        self.spool.get_or_fill(key, fill).await
    }
}

/// The object at `url`, on a thread that may wait.
fn open(runtime: &Handle, fetch: &ObjectFetch, url: &str, tag: &str) -> Result<Arc<dyn ReadAt>, IoError> {
    let local: Option<PathBuf> =
        Url::parse(url).ok().filter(|url| url.scheme() == "file").and_then(|url| url.to_file_path().ok());
    if let Some(path) = local {
        return Ok(Arc::new(LocalObject::open(&path, tag)?));
    }
    let now = runtime.block_on(fetch.describe("", url))?;
    // The tag is compared at every read.
    let (runtime, fetch, url, tag) = (runtime.clone(), fetch.clone(), url.to_owned(), tag.to_owned());
    Ok(Arc::new(RemoteObject { runtime, fetch, url, tag, length: now.bytes }))
}
