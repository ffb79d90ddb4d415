//! Reading input objects, with retries, limits and the check that they are what was listed.

use std::time::Duration;

use bytes::Bytes;

use crate::{InputEntry, IoError, Stores};

/// How long one object is tried.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryBudget {
    /// Tries, the first one included.
    pub attempts_max: u32,
    /// Pause after the first failure; doubles each time, with jitter that depends on the URL only.
    pub pause_first: Duration,
    /// Longest pause.
    pub pause_max: Duration,
    /// All pauses together.
    pub pauses_total: Duration,
    /// Time of one try.
    pub attempt_timeout: Duration,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self {
            attempts_max: 5,
            pause_first: Duration::from_millis(100),
            pause_max: Duration::from_secs(10),
            pauses_total: Duration::from_secs(30),
            attempt_timeout: Duration::from_secs(120),
        }
    }
}

/// Reads inputs. All errors have fate `Row` (retries are over when they are returned) and carry the attempts;
/// [`IoError::row_error`] makes the failed row's error of them. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ObjectFetch {
    stores: Stores,
    budget: RetryBudget,
    bytes_max: u64,
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
        let _ = (entry, &self.stores, &self.budget);
        Err(crate::store::unwritten())
    }

    /// The first `bytes_max` bytes, or all when there are fewer; the same checks save the limit.
    pub async fn read_prefix(&self, entry: &InputEntry, bytes_max: u64) -> Result<Bytes, IoError> {
        let _ = (entry, bytes_max);
        Err(crate::store::unwritten())
    }

    /// The entry of an object as it is now, for retries of rows whose file was mended.
    pub async fn describe(&self, key: &str, url: &str) -> Result<InputEntry, IoError> {
        let _ = (key, url);
        Err(crate::store::unwritten())
    }
}
