//! What reading and writing cost: requests, bytes, retries, and errors by code.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

/// Counters shared by all stores of a run. Cheap to clone; clones count together.
#[derive(Debug, Clone, Default)]
pub struct IoCounters {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    requests: AtomicU64,
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
    retries: AtomicU64,
    resumed: AtomicU64,
    by_code: Mutex<BTreeMap<String, u64>>,
    limits: Mutex<BTreeMap<String, ConnectionLimit>>,
}

/// Requests that one store is asked at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ConnectionLimit {
    /// Requests in flight.
    pub in_flight: u32,
    /// How many there may be now.
    pub limit: u32,
    /// The least that the limit has been.
    pub lowest: u32,
    /// How many there may be at most.
    pub most: u32,
}

/// [`IoCounters`] at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct IoSnapshot {
    /// HTTP requests sent, credentials and redirects included.
    pub requests: u64,
    /// Bytes of bodies read.
    pub bytes_read: u64,
    /// Bytes of objects written.
    pub bytes_written: u64,
    /// Operations tried again.
    pub retries: u64,
    /// Broken bodies that were continued where they broke.
    pub resumed: u64,
    /// Errors by code, those that a retry mended included: `http_503`, `timeout`, `stalled`, `connection_reset`,
    /// `connect`, `short_body`, `wrong_range`, `range_ignored`, `location_refused`, `redirects`, `no_credentials`.
    pub by_code: BTreeMap<String, u64>,
    /// Connections by store (bucket or host).
    pub connections: BTreeMap<String, ConnectionLimit>,
}

impl IoCounters {
    /// All zero.
    pub fn new() -> Self {
        Self::default()
    }

    /// The counts now.
    pub fn snapshot(&self) -> IoSnapshot {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        IoSnapshot {
            requests: load(&self.inner.requests),
            bytes_read: load(&self.inner.bytes_read),
            bytes_written: load(&self.inner.bytes_written),
            retries: load(&self.inner.retries),
            resumed: load(&self.inner.resumed),
            by_code: self.inner.by_code.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            connections: self.inner.limits.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    pub(crate) fn request(&self) {
        self.inner.requests.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn read(&self, bytes: usize) {
        self.inner.bytes_read.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn written(&self, bytes: usize) {
        self.inner.bytes_written.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn retry(&self) {
        self.inner.retries.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn resumed(&self) {
        self.inner.resumed.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn error(&self, code: &str) {
        let mut by_code = self.inner.by_code.lock().unwrap_or_else(PoisonError::into_inner);
        match by_code.get_mut(code) {
            Some(count) => *count += 1,
            None => drop(by_code.insert(code.to_owned(), 1)),
        }
    }

    /// Called with the state of a store's limit whenever it changes. Names beyond the first thousand are left out, so
    /// that a manifest of a million hosts does not grow the report.
    pub(crate) fn limit(&self, store: &str, now: ConnectionLimit) {
        const STORES_MAX: usize = 1000;
        let mut limits = self.inner.limits.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(limit) = limits.get_mut(store) {
            *limit = now;
        } else if limits.len() < STORES_MAX {
            limits.insert(store.to_owned(), now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_count_together_and_snapshots_survive_json() {
        let counters = IoCounters::new();
        let clone = counters.clone();
        clone.request();
        clone.error("http_503");
        clone.error("http_503");
        clone.read(7);
        counters.limit("s3://b", ConnectionLimit { in_flight: 1, limit: 2, lowest: 2, most: 64 });
        let snapshot = counters.snapshot();
        assert_eq!((snapshot.requests, snapshot.bytes_read, snapshot.by_code["http_503"]), (1, 7, 2));
        let text = serde_json::to_string(&snapshot).unwrap();
        assert_eq!(serde_json::from_str::<IoSnapshot>(&text).unwrap(), snapshot);
    }
}
