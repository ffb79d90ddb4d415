//! Reading images out of Parquet files.
//!
//! ```text
//!  Place::Cell{row, column} ─▶ footer (kept for the last files) ─▶ row group ─▶ Spool: unpacked once ─▶ bytes
//! ```

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use slicemill_core::{ErrorClass, Fate};
use tokio::runtime::Handle;
use tokio::sync::{OnceCell, Semaphore};

use super::entries::Table;
use super::footer::Footer;
use super::object::{Blocks, Object};
use super::pages::{Cell, cell, unpack};
use crate::sources::{Segment, SegmentKey, Spool};
use crate::{InputEntry, IoError, IoErrorKind, Place, RetryBudget, Stores};

/// Reads values of Parquet files ([`Place::Cell`]). A row group is unpacked once, page by page, into the spool; its
/// rows are then read from there. Cheap to clone; clones share what is unpacked.
#[derive(Debug, Clone)]
pub struct CellReader {
    stores: Stores,
    budget: RetryBudget,
    spool: Spool,
    page_bytes_max: u64,
    bytes_max: u64,
    files: Arc<Mutex<VecDeque<File>>>,
    /// MiB of row groups that may be unpacked at the same time.
    unpacking: Arc<Semaphore>,
}

/// A file whose footer was or is being read.
#[derive(Debug, Clone)]
struct File {
    url: String,
    tag: String,
    opened: Arc<OnceCell<Arc<Opened>>>,
}

#[derive(Debug)]
struct Opened {
    object: Object,
    footer: Footer,
    /// First row of every row group, and the number of all rows.
    starts: Vec<u64>,
    shown: String,
}

impl CellReader {
    /// Pages larger than this are refused by default: 1 GiB.
    pub const PAGE_BYTES_MAX_DEFAULT: u64 = 1 << 30;
    /// Row groups are unpacked at the same time while they have no more than so many MiB together: writers may put a
    /// row group into one page, so this bounds the pages in memory. Larger ones are unpacked alone.
    const UNPACKING_MIB: u32 = 512;
    /// Footers that are kept.
    const FILES_MAX: usize = 16;

    /// Reads through `stores`, unpacks into `spool`, and refuses values of more than `bytes_max` bytes.
    pub fn new(stores: Stores, budget: RetryBudget, spool: Spool, bytes_max: u64) -> Self {
        let page_bytes_max = Self::PAGE_BYTES_MAX_DEFAULT;
        let unpacking = Arc::new(Semaphore::new(Self::UNPACKING_MIB as usize));
        Self { stores, budget, spool, page_bytes_max, bytes_max, files: Arc::default(), unpacking }
    }

    /// Another limit on the bytes of a page, packed or unpacked. In memory at once are a packed page, the unpacked one,
    /// the one before it until it is replaced, and the dictionary.
    #[must_use]
    pub const fn with_page_bytes_max(mut self, page_bytes_max: u64) -> Self {
        self.page_bytes_max = page_bytes_max;
        self
    }

    /// The bytes of the value `entry` names.
    ///
    /// # Errors
    /// All of fate `Row`, save a spool that cannot be written: no value there, a row group that is damaged, a page or
    /// value above the limit, a file that changed, and what the store says.
    pub async fn read(&self, entry: &InputEntry) -> Result<Bytes, IoError> {
        self.read_prefix(entry, u64::MAX).await
    }

    /// The first `bytes` bytes of it, or all when there are fewer.
    ///
    /// # Errors
    /// As [`read`](Self::read); values of any size have a beginning.
    pub async fn read_prefix(&self, entry: &InputEntry, bytes: u64) -> Result<Bytes, IoError> {
        let (url, place) = Place::split(&entry.url);
        let Place::Cell { row, column } = place else {
            let message = format!("{} is no value of a table", crate::shown_url(&entry.url));
            return Err(IoError::new(Fate::Row, IoErrorKind::Invalid, message));
        };
        let file = self.open(url, &entry.tag).await.map_err(row_fate)?;
        let (group, row_in_group, leaf) = file.find(row, &column)?;
        // Errors of the store and the file have their fate already; a spool that cannot be written ends the job.
        let segment = self.segment(url, &entry.tag, &file, group, leaf).await.map_err(|error| match error.kind {
            IoErrorKind::TooLarge | IoErrorKind::Corrupt => row_fate(error),
            _ => error,
        })?;
        match cell(segment.index(), row_in_group) {
            Cell::Value(_, length) if bytes == u64::MAX && length > self.bytes_max => {
                let message = format!(
                    "row {row} of {} has {length} bytes, more than the limit of {}",
                    file.shown, self.bytes_max
                );
                Err(IoError::new(Fate::Row, IoErrorKind::TooLarge, message))
            }
            Cell::Value(offset, length) => segment.read(offset, length.min(bytes)).await.map_err(row_fate),
            Cell::Null => {
                let message = format!("row {row} of {} has no image: its '{column}' is null", file.shown);
                Err(row_error(ErrorClass::BadRecord, message))
            }
            Cell::Damaged(offset, length) => {
                let why = segment.read(offset, length).await.map_err(row_fate)?;
                let message = format!("row {row} cannot be read: {}", String::from_utf8_lossy(&why));
                Err(row_error(ErrorClass::Corrupt, message))
            }
        }
    }

    async fn segment(
        &self,
        url: &str,
        tag: &str,
        file: &Arc<Opened>,
        group: usize,
        leaf: usize,
    ) -> Result<Arc<Segment>, IoError> {
        let part = ((group as u64) << 32) | leaf as u64;
        let key = SegmentKey { url: url.to_owned(), tag: tag.to_owned(), part };
        let (file, page_bytes_max) = (Arc::clone(file), self.page_bytes_max);
        let unpacking = Arc::clone(&self.unpacking);
        let runtime = Handle::current();
        let filled = self.spool.get_or_fill(key, move |writer| {
            // Taken by who unpacks, never by who waits for it.
            let bytes = file.footer.groups().get(group).and_then(|group| group.columns().get(leaf));
            let mib = bytes.map_or(0, |chunk| chunk.uncompressed_size().max(chunk.compressed_size())) >> 20;
            let mib = u32::try_from(mib.max(0)).unwrap_or(u32::MAX).clamp(1, Self::UNPACKING_MIB);
            let _room = runtime.block_on(unpacking.acquire_many(mib));
            let blocks = Blocks::new(file.object.clone(), page_bytes_max);
            let groups = file.footer.groups();
            let metadata = groups.get(group).ok_or_else(|| file.corrupt("lacks a row group"))?;
            unpack(&blocks, metadata, group, leaf, page_bytes_max, &mut |bytes| writer.append(bytes))
        });
        filled.await
    }

    /// The footer of a file, read once.
    async fn open(&self, url: &str, tag: &str) -> Result<Arc<Opened>, IoError> {
        let opened = {
            let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
            let at = files.iter().position(|file| file.url == url && file.tag == tag);
            let file = at.and_then(|at| files.remove(at)).unwrap_or_else(|| File {
                url: url.to_owned(),
                tag: tag.to_owned(),
                opened: Arc::default(),
            });
            let opened = Arc::clone(&file.opened);
            files.push_front(file);
            files.truncate(Self::FILES_MAX);
            opened
        };
        opened.get_or_try_init(|| self.open_once(url, tag)).await.cloned()
    }

    async fn open_once(&self, url: &str, tag: &str) -> Result<Arc<Opened>, IoError> {
        let object = Object::open(&self.stores, self.budget, url, None, tag).await?;
        let shown = Table::new("", url, tag).shown;
        let page_bytes_max = self.page_bytes_max;
        let opening = tokio::task::spawn_blocking(move || {
            let footer = Footer::read(&Blocks::new(object.clone(), page_bytes_max))?;
            let mut starts = vec![0_u64];
            for group in footer.groups() {
                let rows = u64::try_from(group.num_rows()).unwrap_or(0);
                starts.push(starts.last().unwrap_or(&0).saturating_add(rows));
            }
            Ok(Arc::new(Opened { object, footer, starts, shown }))
        });
        opening
            .await
            .map_err(|error| IoError::fatal(IoErrorKind::Failed, "reading a footer broke off").because(error))?
    }
}

impl Opened {
    /// Row group, row in it, and leaf of a cell.
    fn find(&self, row: u64, column: &str) -> Result<(usize, u64, usize), IoError> {
        let leaf = self.footer.leaf_named(column).ok_or_else(|| self.corrupt(&format!("has no column '{column}'")))?;
        let group = self.starts.partition_point(|start| *start <= row).saturating_sub(1);
        match self.starts.get(group..group + 2) {
            Some([start, end]) if (*start..*end).contains(&row) => Ok((group, row - start, leaf)),
            _ => Err(self.corrupt(&format!("has no row {row}"))),
        }
    }

    fn corrupt(&self, what: &str) -> IoError {
        row_error(ErrorClass::BadRecord, format!("{} {what}; was it replaced after it was listed?", self.shown))
    }
}

/// Errors of one file fail its rows.
fn row_fate(error: IoError) -> IoError {
    match error.kind {
        IoErrorKind::Corrupt => row_error(ErrorClass::Corrupt, error.message),
        _ => error.with_fate(Fate::Row),
    }
}

fn row_error(class: ErrorClass, message: String) -> IoError {
    IoError::new(Fate::Row, IoErrorKind::Row(class), message)
}
