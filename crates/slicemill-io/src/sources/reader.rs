//! Reading what stands inside packed archives and tables.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use slicemill_core::{ErrorClass, Fate};
use tokio::runtime::Handle;

use super::kinds::Packing;
use super::object::{LocalObject, ReadAt, RemoteObject};
use super::open::{head, local_path};
use super::spool::{Segment, SegmentKey, Spool};
use super::unpack::Unpacked;
use crate::tables::CellReader;
use crate::tables::object::Object;
use crate::{InnerReader, InputEntry, IoError, IoErrorKind, Place, RetryBudget, Stores, shown_url};

/// Reads members of packed archives, which are unpacked once into a [`Spool`], and values of tables.
#[derive(Debug, Clone)]
pub struct PlaceReader {
    stores: Stores,
    budget: RetryBudget,
    spool: Spool,
    cells: Option<CellReader>,
}

impl PlaceReader {
    /// Reads objects from `stores` and keeps what they unpack to in `spool`.
    pub const fn new(stores: Stores, budget: RetryBudget, spool: Spool) -> Self {
        Self { stores, budget, spool, cells: None }
    }

    /// Reads values of tables through `cells`, which best share the spool.
    #[must_use]
    pub fn with_cells(mut self, cells: CellReader) -> Self {
        self.cells = Some(cells);
        self
    }

    /// What the object of `entry` unpacks to, as far as it can be unpacked.
    async fn unpacked(&self, entry: &InputEntry) -> Result<Arc<Segment>, IoError> {
        let url = Place::split(&entry.url).0.to_owned();
        let key = SegmentKey { url: url.clone(), tag: entry.tag.clone(), part: 0 };
        let (stores, budget, tag, runtime) = (self.stores.clone(), self.budget, entry.tag.clone(), Handle::current());
        let bytes_max = self.spool.segment_bytes_max();
        let fill = move |writer: &mut super::SpoolWriter| {
            let row = |error: IoError| error.with_fate(Fate::Row);
            let object = open(&runtime, &stores, budget, &url, &tag).map_err(row)?;
            let head = head(&object).map_err(row)?;
            Unpacked::new(object, Packing::of(&head), bytes_max).map_err(row)?.copy_to(writer)?;
            Ok(Vec::new())
        };
        self.spool.get_or_fill(key, fill).await
    }
}

/// Errors have fate `Row`, save that a spool that cannot be written ends the job.
impl InnerReader for PlaceReader {
    fn read<'a>(
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
                Place::Unpacked { offset, bytes } => {
                    let segment = self.unpacked(entry).await?;
                    segment.read(*offset, *bytes).await.map_err(|error| match error.kind {
                        // The archive is damaged before this member's end.
                        IoErrorKind::Corrupt => {
                            IoError::new(Fate::Row, IoErrorKind::Row(ErrorClass::BadRecord), error.message)
                        }
                        _ => error.with_fate(Fate::Row),
                    })
                }
                place => {
                    let Some(cells) = self.cells.as_ref().filter(|_| matches!(place, Place::Cell { .. })) else {
                        let message = format!("{} is not inside a packed archive or a table", shown());
                        return Err(IoError::new(Fate::Row, IoErrorKind::Invalid, message));
                    };
                    let bytes = cells.read(entry).await?;
                    if bytes.len() as u64 > bytes_max {
                        let message =
                            format!("{} has {} bytes, more than the limit of {bytes_max}", shown(), bytes.len());
                        return Err(IoError::new(Fate::Row, IoErrorKind::TooLarge, message));
                    }
                    Ok(bytes)
                }
            }
        })
    }
}

/// The object at `url`, on a thread that may wait.
fn open(
    runtime: &Handle,
    stores: &Stores,
    budget: RetryBudget,
    url: &str,
    tag: &str,
) -> Result<Arc<dyn ReadAt>, IoError> {
    if let Some(path) = local_path(url) {
        return Ok(Arc::new(LocalObject::open(&path, tag)?));
    }
    // Read from its beginning to its end, so the size does not matter.
    let object = runtime.block_on(Object::open(stores, budget, url, Some(0), tag))?;
    Ok(Arc::new(RemoteObject { object, streamed: true }))
}
