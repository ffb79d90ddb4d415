//! What compressed archives and tables unpack to, kept in temporary files for as long as there is room.
//!
//! ```text
//!  get_or_fill(key) ──▶ there already ────────────────────────────────────▶ Arc<Segment> ──▶ read(offset, bytes)
//!                   └─▶ being filled by another caller: wait for it ──────▶      │
//!                   └─▶ fill(&mut SpoolWriter), on a blocking thread ─────▶      └ room is given back when the last
//!                          room is taken piece by piece                            one drops it after its eviction
//! ```
//!
//! **Room.** All segments together never take more than `bytes_max`, one segment at most half of it. When room is
//! short, the segment that was not used for longest goes first. Of several fills the oldest may use all the room, the
//! others half of it; they wait. So some fill can always be completed, and none waits for a younger one.
//!
//! **Files** have no name (they are unlinked when they are made, where the system can do that), so a process that is
//! killed leaves nothing.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::OnceCell;

use crate::{IoError, IoErrorKind, shown_url};

/// What a segment holds: one part of one version of one object.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SegmentKey {
    /// URL of the object, without a place in it.
    pub url: String,
    /// Its tag when it was listed.
    pub tag: String,
    /// Which part: 0 for the whole of an archive, the row group and column of a table.
    pub part: u64,
}

/// Offsets and lengths of the values of a segment, in bytes. Empty where nothing needs it.
pub type SegmentIndex = Vec<(u64, u64)>;

/// Temporary files with a bounded sum of bytes. Cheap to clone; all clones share the room.
#[derive(Debug, Clone)]
pub struct Spool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    folder: PathBuf,
    bytes_max: u64,
    patience: Duration,
    state: Mutex<State>,
    room: Condvar,
}

#[derive(Debug, Default)]
struct State {
    cells: HashMap<SegmentKey, Cell>,
    /// Bytes of all segments that exist, evicted ones that are still read included.
    used: u64,
    /// Fills that are running, by age.
    fills: BTreeSet<u64>,
    next_fill: u64,
    /// Counts calls; says which segment was used last.
    clock: u64,
}

#[derive(Debug)]
struct Cell {
    segment: Arc<OnceCell<Arc<Segment>>>,
    used_at: u64,
}

impl Spool {
    /// 64 GiB.
    pub const BYTES_MAX_DEFAULT: u64 = 64 << 30;

    /// Temporary files in `folder`, of at most `bytes_max` bytes together and half of that each. The folder is made
    /// when the first file is.
    pub fn new(folder: impl Into<PathBuf>, bytes_max: u64) -> Self {
        /// How long a fill waits for room that readers hold.
        const PATIENCE: Duration = Duration::from_secs(300);
        Self::with_patience(folder.into(), bytes_max, PATIENCE)
    }

    fn with_patience(folder: PathBuf, bytes_max: u64, patience: Duration) -> Self {
        let (state, room) = (Mutex::default(), Condvar::new());
        Self { shared: Arc::new(Shared { folder, bytes_max, patience, state, room }) }
    }

    /// In the system's folder for temporary files, with the default limit.
    pub fn in_temp_dir() -> Self {
        Self::new(std::env::temp_dir(), Self::BYTES_MAX_DEFAULT)
    }

    /// The most bytes one segment may have.
    pub fn segment_bytes_max(&self) -> u64 {
        self.shared.bytes_max / 2
    }

    /// Bytes of all segments now.
    pub fn bytes(&self) -> u64 {
        self.shared.lock().used
    }

    /// The segment `key`, filled by `fill` on a blocking thread when it is not there. Callers that ask for the same
    /// key at the same time wait for one fill; when it fails, the next of them fills.
    ///
    /// # Errors
    /// What `fill` returns; `TooLarge` when the segment would be larger than half the room; `Refused` (fatal) when
    /// the temporary file cannot be written.
    pub async fn get_or_fill<Fill>(&self, key: SegmentKey, fill: Fill) -> Result<Arc<Segment>, IoError>
    where
        Fill: FnOnce(&mut SpoolWriter) -> Result<SegmentIndex, IoError> + Send + 'static,
    {
        let cell = self.shared.lock().touch(&key);
        let filled = cell.get_or_try_init(|| async {
            let (shared, shown) = (Arc::clone(&self.shared), shown_url(&key.url));
            let segment = tokio::task::spawn_blocking(move || {
                let mut writer = SpoolWriter::start(shared, shown)?;
                let index = fill(&mut writer)?;
                writer.finish(index).map(Arc::new)
            });
            segment.await.map_err(|error| {
                let message = format!("unpacking {} broke off: {error}", shown_url(&key.url));
                IoError::fatal(IoErrorKind::Failed, message).because(error)
            })?
        });
        filled.await.cloned()
    }
}

impl Shared {
    /// A poisoned lock is taken: the state is counters, which every holder leaves whole.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes `bytes` for the fill `fill`, which holds `held` already.
    fn reserve(&self, fill: u64, url: &str, held: u64, bytes: u64) -> Result<(), IoError> {
        if held.saturating_add(bytes) > self.bytes_max / 2 {
            let message = format!(
                "{url} unpacks to more than {} bytes, half of the room for temporary files; \
                 give them more room, or unpack it beforehand",
                self.bytes_max / 2
            );
            return Err(IoError::fatal(IoErrorKind::TooLarge, message));
        }
        let until = Instant::now() + self.patience;
        let mut state = self.lock();
        loop {
            let oldest = state.fills.first().is_none_or(|first| *first >= fill);
            let limit = if oldest { self.bytes_max } else { self.bytes_max / 2 };
            let evicted = state.evict(limit.saturating_sub(bytes));
            if state.used.saturating_add(bytes) <= limit {
                state.used += bytes;
                return Ok(());
            }
            // Dropping a segment takes the lock to give its room back.
            if !evicted.is_empty() {
                drop(state);
                drop(evicted);
                state = self.lock();
                continue;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let message = format!(
                    "no room for what {url} unpacks to: {} of {} bytes for temporary files are in use; give more",
                    state.used, self.bytes_max
                );
                return Err(IoError::fatal(IoErrorKind::Refused, message));
            }
            // A reader gives up its segment without a signal, hence the short wait.
            let wait = left.min(Duration::from_millis(20));
            state = self.room.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn give_back(&self, bytes: u64) {
        let mut state = self.lock();
        state.used = state.used.saturating_sub(bytes);
        drop(state);
        self.room.notify_all();
    }
}

impl State {
    /// The cell of `key`, now the one used last.
    fn touch(&mut self, key: &SegmentKey) -> Arc<OnceCell<Arc<Segment>>> {
        self.clock += 1;
        let now = self.clock;
        // Cells of fills that failed hold nothing; nobody else may still wait for them.
        self.cells
            .retain(|other, cell| other == key || cell.segment.initialized() || Arc::strong_count(&cell.segment) > 1);
        let cell = self.cells.entry(key.clone()).or_insert_with(|| Cell { segment: Arc::default(), used_at: now });
        cell.used_at = now;
        Arc::clone(&cell.segment)
    }

    /// Takes segments that nobody reads out of the table, those unused for longest first, until at most `target`
    /// bytes would be in use. They are returned because dropping them needs the lock.
    fn evict(&mut self, target: u64) -> Vec<Arc<Segment>> {
        let mut evicted = Vec::new();
        let mut left = self.used;
        while left > target {
            let idle = self.cells.iter().filter(|(_, cell)| cell.idle_bytes().is_some());
            let Some(key) = idle.min_by_key(|(_, cell)| cell.used_at).map(|(key, _)| key.clone()) else { break };
            let Some(segment) = self.cells.remove(&key).and_then(|cell| cell.segment.get().cloned()) else { break };
            left = left.saturating_sub(segment.bytes);
            evicted.push(segment);
        }
        evicted
    }
}

impl Cell {
    /// Bytes of a segment that nobody holds.
    fn idle_bytes(&self) -> Option<u64> {
        let segment = self.segment.get()?;
        let idle = Arc::strong_count(&self.segment) == 1 && Arc::strong_count(segment) == 1;
        idle.then_some(segment.bytes)
    }
}

/// Writes one segment.
#[derive(Debug)]
pub struct SpoolWriter {
    shared: Arc<Shared>,
    /// URL for messages.
    url: String,
    fill: u64,
    file: File,
    written: u64,
    reserved: u64,
}

impl SpoolWriter {
    /// Room is taken in pieces of this size.
    const PIECE: u64 = 1 << 20;

    fn start(shared: Arc<Shared>, url: String) -> Result<Self, IoError> {
        let file = std::fs::create_dir_all(&shared.folder)
            .and_then(|()| tempfile::tempfile_in(&shared.folder))
            .map_err(|error| unwritable(&shared.folder, error))?;
        let mut state = shared.lock();
        let fill = state.next_fill;
        state.next_fill += 1;
        state.fills.insert(fill);
        drop(state);
        Ok(Self { shared, url, fill, file, written: 0, reserved: 0 })
    }

    /// Appends `bytes`.
    ///
    /// # Errors
    /// `TooLarge` when the segment would be larger than half the room; `Refused` (fatal) when the temporary file
    /// cannot be written.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), IoError> {
        let end = self.written.saturating_add(bytes.len() as u64);
        if end > self.reserved {
            // The last piece of a segment may be smaller, so that a segment of exactly the limit fits.
            let most = (self.shared.bytes_max / 2).saturating_sub(self.reserved);
            let missing = end - self.reserved;
            let piece = missing.max(Self::PIECE.min(most));
            self.shared.reserve(self.fill, &self.url, self.reserved, piece)?;
            self.reserved += piece;
        }
        self.file.write_all(bytes).map_err(|error| unwritable(&self.shared.folder, error))?;
        self.written = end;
        Ok(())
    }

    /// Bytes written so far: where the next value begins.
    pub const fn position(&self) -> u64 {
        self.written
    }

    fn finish(mut self, index: SegmentIndex) -> Result<Segment, IoError> {
        let spare = self.reserved - self.written;
        self.reserved = 0;
        let file = self.file.try_clone().map_err(|error| unwritable(&self.shared.folder, error))?;
        self.shared.give_back(spare);
        Ok(Segment { shared: Arc::clone(&self.shared), url: self.url.clone(), file, bytes: self.written, index })
    }
}

impl Drop for SpoolWriter {
    fn drop(&mut self) {
        self.shared.lock().fills.remove(&self.fill);
        self.shared.give_back(self.reserved);
    }
}

fn unwritable(folder: &Path, error: std::io::Error) -> IoError {
    let message = format!(
        "cannot write a temporary file in '{}': {error}; make room there, or choose another folder",
        folder.display()
    );
    IoError::fatal(IoErrorKind::Refused, message).because(error)
}

/// What one part of an object unpacks to.
#[derive(Debug)]
pub struct Segment {
    shared: Arc<Shared>,
    url: String,
    file: File,
    bytes: u64,
    index: SegmentIndex,
}

impl Segment {
    /// Length in bytes.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What `fill` returned.
    pub fn index(&self) -> &[(u64, u64)] {
        &self.index
    }

    /// The bytes `offset..offset + bytes`, read on a blocking thread.
    ///
    /// # Errors
    /// `Corrupt` when the segment ends before; `Failed` when the file cannot be read.
    pub async fn read(self: &Arc<Self>, offset: u64, bytes: u64) -> Result<Bytes, IoError> {
        let segment = Arc::clone(self);
        let read = tokio::task::spawn_blocking(move || segment.read_blocking(offset, bytes));
        read.await.map_err(|error| IoError::fatal(IoErrorKind::Failed, "reading a file broke off").because(error))?
    }

    /// [`read`](Self::read) on this thread.
    ///
    /// # Errors
    /// As there.
    pub fn read_blocking(&self, offset: u64, bytes: u64) -> Result<Bytes, IoError> {
        let end = offset.checked_add(bytes).filter(|end| *end <= self.bytes);
        let length = end.and_then(|_| usize::try_from(bytes).ok()).ok_or_else(|| {
            let message =
                format!("{} unpacks to {} bytes; {bytes} bytes at {offset} are not among them", self.url, self.bytes);
            IoError::fatal(IoErrorKind::Corrupt, message)
        })?;
        let mut buffer = vec![0; length];
        read_exact_at(&self.file, &mut buffer, offset).map_err(|error| {
            let message = format!("cannot read back what {} unpacks to: {error}", self.url);
            IoError::fatal(IoErrorKind::Failed, message).because(error)
        })?;
        Ok(buffer.into())
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        self.shared.give_back(self.bytes);
    }
}

#[cfg(unix)]
pub(crate) fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, offset)
}

#[cfg(not(unix))]
pub(crate) fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
    use std::io::{Read as _, Seek as _, SeekFrom};
    /// One cursor for all readers of a file.
    static CURSOR: Mutex<()> = Mutex::new(());
    let _cursor = CURSOR.lock().unwrap_or_else(PoisonError::into_inner);
    let mut file = file;
    file.seek(SeekFrom::Start(offset))?;
    file.read_exact(buffer)
}

#[cfg(test)]
mod tests;
