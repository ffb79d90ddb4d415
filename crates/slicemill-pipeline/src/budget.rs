//! Bytes in flight: what may be held at the same time, and why waiting for it always ends.
//!
//! # What is bounded
//!
//! | budget | holds | from | to | scope | waits for it |
//! |---|---|---|---|---|---|
//! | compressed | listed bytes of a row | before its fetch | end of its decoding | chunk | rows, in input order |
//! | prepared | patches of a batch | before its decoding | end of its encoding | chunk | batches, in order |
//! | decode | pixels of an image | its decoding | its decoding | process | images, in order of arrival |
//!
//! A request larger than its whole budget is let in alone: it waits until nothing else is held and then holds
//! everything. So at most max(budget, largest request) is held.
//!
//! # Why every chunk ends
//!
//! Devices + 1 chunks are in flight, each with its own compressed and prepared budget. They are not drawn from one
//! pool because then a chunk that waits for a device could hold the bytes that the chunk on the device needs, and
//! neither would end. With budgets of their own, the only things that chunks wait for in common are chunk slots,
//! places to fetch, the decode budget, and devices. In order of need:
//!
//! 1. *Decode budget and places to fetch* are held only while an image is being decoded or an object read. Neither
//!    waits for anything else, so they come free.
//! 2. *Prepared bytes* are asked for batch by batch in the order in which the device encodes. The first batch that
//!    has not been encoded therefore never waits behind a later one: it has its bytes, or it gets them when the
//!    batches before it have been encoded. Decoding it needs only 1.
//! 3. *Compressed bytes* are asked for row by row in input order, and all rows of a window before any of the next.
//!    A window fits the budget, or is a single row that is let in alone. The rows of the first window that is not
//!    completely decoded never wait behind a later one: they have their bytes or get them when the windows before
//!    have been decoded, which needs 2. When all are read, their batches are planned, and decoding them needs 2.
//! 4. *A device* is given in order of asking to a chunk that has a batch ready. It keeps the device until its last
//!    batch. Its further batches need 1 to 3, of which nothing is held by a chunk that waits for a device except the
//!    leaves in 1. So it ends, and the next gets the device.
//! 5. *A chunk slot* is held by a chunk in flight, which ends by 4.
//!
//! On a device, a batch is encoded when a sequence could start and none waits, so a chunk never waits for itself:
//! sequences in flight end at their token cap whether or not more batches come.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Budgets are counted in units of this many bytes, rounded up, because a semaphore hands out at most `u32` permits.
const UNIT_BYTES: u64 = 1024;

/// Bytes held now and at most, of one or more budgets.
#[derive(Debug, Default)]
pub struct ByteGauge {
    held: AtomicU64,
    peak: AtomicU64,
}

impl ByteGauge {
    /// Bytes held now.
    pub fn held_bytes(&self) -> u64 {
        self.held.load(Relaxed)
    }

    /// The most bytes that were held at the same time.
    pub fn peak_bytes(&self) -> u64 {
        self.peak.load(Relaxed)
    }

    fn add(&self, bytes: u64) {
        let held = self.held.fetch_add(bytes, Relaxed) + bytes;
        self.peak.fetch_max(held, Relaxed);
    }
}

/// A semaphore in bytes, served in order of arrival.
#[derive(Debug, Clone)]
pub struct ByteBudget {
    units: Arc<Semaphore>,
    units_max: u32,
    gauge: Arc<ByteGauge>,
}

impl ByteBudget {
    /// A budget of `bytes_max`, rounded down to KiB but at least one.
    pub fn new(bytes_max: u64) -> Self {
        Self::with_gauge(bytes_max, Arc::default())
    }

    /// A budget whose bytes are also counted by a gauge that budgets share.
    pub fn with_gauge(bytes_max: u64, gauge: Arc<ByteGauge>) -> Self {
        let most = u64::from(u32::MAX).min(Semaphore::MAX_PERMITS as u64);
        let units_max = u32::try_from((bytes_max / UNIT_BYTES).clamp(1, most)).unwrap_or(u32::MAX);
        Self { units: Arc::new(Semaphore::new(units_max as usize)), units_max, gauge }
    }

    /// Waits until `bytes` can be held. More than the whole budget waits until nothing is held.
    pub async fn acquire(&self, bytes: u64) -> ByteGrant {
        let units = u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX).clamp(1, self.units_max);
        // The semaphore is never closed.
        let permit = Arc::clone(&self.units).acquire_many_owned(units).await.ok();
        self.gauge.add(bytes);
        ByteGrant { bytes, gauge: Arc::clone(&self.gauge), _permit: permit }
    }

    /// What this budget's gauge counts.
    pub fn gauge(&self) -> &ByteGauge {
        &self.gauge
    }
}

/// Bytes that may be held until this is dropped.
#[derive(Debug)]
pub struct ByteGrant {
    bytes: u64,
    gauge: Arc<ByteGauge>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Drop for ByteGrant {
    fn drop(&mut self) {
        self.gauge.held.fetch_sub(self.bytes, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn a_large_request_is_let_in_alone() {
        let budget = ByteBudget::new(10 * 1024);
        let small = budget.acquire(1).now_or_never().unwrap();
        let mut large = Box::pin(budget.acquire(1 << 40));
        assert!(large.as_mut().now_or_never().is_none(), "something else is held");
        assert!(budget.acquire(1).now_or_never().is_none(), "requests are served in order of arrival");
        drop(small);
        let large = large.now_or_never().unwrap();
        assert!(budget.acquire(1).now_or_never().is_none(), "the large request is alone");
        drop(large);
        assert!(budget.acquire(10 * 1024).now_or_never().is_some());
        assert_eq!((budget.gauge().held_bytes(), budget.gauge().peak_bytes()), (0, 1 << 40));
    }

    #[test]
    fn an_abandoned_request_frees_its_place() {
        let budget = ByteBudget::new(2 * 1024);
        let held = budget.acquire(1024).now_or_never().unwrap();
        let mut waiting = Box::pin(budget.acquire(2048));
        assert!(waiting.as_mut().now_or_never().is_none());
        drop(waiting);
        assert!(budget.acquire(1024).now_or_never().is_some());
        drop(held);
    }
}
