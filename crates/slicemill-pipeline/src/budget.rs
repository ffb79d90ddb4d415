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
//! # Sizes that were estimated
//!
//! A row whose listed size is an estimate is granted the estimate and, once it is read, what it really has
//! ([`ByteGrant::resize`]). Growing never waits, so a read that has begun always ends; what it takes beyond the budget
//! is a debt, and nobody gets anything until grants that are dropped have paid it. Of a chunk, at most
//! `fetch_concurrency` rows have a grant and are not read yet. So a chunk holds at most its compressed budget and
//! `fetch_concurrency` objects of the largest size. Objects have a limit of their own in the store.
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
//!    The budget is two windows. By listed sizes a window fits one, or is a single row that is let in alone; and rows
//!    that turned out larger are handed on as a window of their own as soon as they fill one. So a row that waits is
//!    held up by less than a window of its own kind, beside which it fits, and by windows that were handed on. Those
//!    never wait behind later rows: when their rows are read, their batches are planned, and decoding them needs 2.
//! 4. *A device* is given in order of asking to a chunk that has a batch ready. It keeps the device until its last
//!    batch. Its further batches need 1 to 3, of which nothing is held by a chunk that waits for a device except the
//!    leaves in 1. So it ends, and the next gets the device.
//! 5. *A chunk slot* is held by a chunk in flight, which ends by 4. Rows that are run again, after their device's
//!    worker was lost, run with new budgets in the same slot.
//!
//! On a device, a batch is encoded when a sequence could start and none waits, so a chunk never waits for itself:
//! sequences in flight end at their token cap whether or not more batches come.
//!
//! A worker that hangs and is left behind keeps the prepared bytes of its session; the gauge goes on counting them.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use tokio::sync::oneshot;

/// Budgets are counted in units of this many bytes, rounded up.
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

    fn take(&self, bytes: u64) {
        self.held.fetch_sub(bytes, Relaxed);
    }
}

/// Bytes that can be held, given out in order of arrival.
#[derive(Debug, Clone)]
pub struct ByteBudget {
    shared: Arc<Shared>,
    gauge: Arc<ByteGauge>,
}

#[derive(Debug)]
struct Shared {
    units_max: i64,
    state: Mutex<State>,
}

/// Free units and those of all grants are `units_max`, so when grants have grown too much, free units are a debt.
///
/// Not tokio's semaphore: it sets units aside for the next in turn, and when that one goes away they would go to others
/// before a debt is paid.
#[derive(Debug)]
struct State {
    free: i64,
    waiting: VecDeque<Request>,
}

#[derive(Debug)]
struct Request {
    units: i64,
    grant: oneshot::Sender<Units>,
}

/// Units that are held.
#[derive(Debug)]
struct Units {
    units: i64,
    shared: Arc<Shared>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Units that `bytes` are counted as. All of the budget is the most: who has it is alone.
    fn units(&self, bytes: u64) -> i64 {
        i64::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(i64::MAX).clamp(1, self.units_max)
    }

    /// Gives to those who wait, in order, for as long as there is enough for the first.
    fn serve(self: &Arc<Self>) {
        loop {
            let mut state = self.state();
            while state.waiting.front().is_some_and(|first| first.grant.is_closed()) {
                state.waiting.pop_front();
            }
            let free = state.free;
            let Some(first) = state.waiting.pop_front_if(|first| first.units <= free) else { return };
            state.free -= first.units;
            drop(state);
            // If it has gone meanwhile, the units come back by being dropped.
            drop(first.grant.send(Units { units: first.units, shared: Arc::clone(self) }));
        }
    }
}

impl Drop for Units {
    fn drop(&mut self) {
        self.shared.state().free += self.units;
        self.shared.serve();
    }
}

/// When one that waits goes away, the next may have its turn.
struct ServeOnDrop<'a>(&'a Arc<Shared>);

impl Drop for ServeOnDrop<'_> {
    fn drop(&mut self) {
        self.0.serve();
    }
}

impl ByteBudget {
    /// A budget of `bytes_max`, rounded down to KiB but at least one.
    pub fn new(bytes_max: u64) -> Self {
        Self::with_gauge(bytes_max, Arc::default())
    }

    /// A budget whose bytes are also counted by a gauge that budgets share.
    pub fn with_gauge(bytes_max: u64, gauge: Arc<ByteGauge>) -> Self {
        let units_max = i64::try_from((bytes_max / UNIT_BYTES).max(1)).unwrap_or(i64::MAX);
        let state = Mutex::new(State { free: units_max, waiting: VecDeque::new() });
        Self { shared: Arc::new(Shared { units_max, state }), gauge }
    }

    /// What a budget that is large enough counts for `bytes`: whole KiB, and one for nothing.
    pub const fn counted(bytes: u64) -> u64 {
        let units = bytes.div_ceil(UNIT_BYTES);
        if units == 0 { UNIT_BYTES } else { units.saturating_mul(UNIT_BYTES) }
    }

    /// Waits until `bytes` can be held. More than the whole budget waits until nothing is held.
    pub async fn acquire(&self, bytes: u64) -> ByteGrant {
        let (grant, granted) = oneshot::channel();
        let units = self.shared.units(bytes);
        self.shared.state().waiting.push_back(Request { units, grant });
        let next = ServeOnDrop(&self.shared);
        self.shared.serve();
        // Never an error: a request is dropped only when nobody waits for it.
        let held = granted.await.unwrap_or_else(|_| Units { units: 0, shared: Arc::clone(&self.shared) });
        drop(next);
        self.gauge.add(bytes);
        ByteGrant { bytes, held, gauge: Arc::clone(&self.gauge) }
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
    held: Units,
    gauge: Arc<ByteGauge>,
}

impl ByteGrant {
    /// Makes this a grant of `bytes`, at once: what it has too many of goes back, and what is not free is a debt that
    /// is paid before anybody else gets something.
    pub fn resize(&mut self, bytes: u64) {
        let shared = Arc::clone(&self.held.shared);
        let units = shared.units(bytes);
        shared.state().free += self.held.units - units;
        self.held.units = units;
        self.gauge.add(bytes);
        self.gauge.take(self.bytes);
        self.bytes = bytes;
        shared.serve();
    }
}

impl Drop for ByteGrant {
    fn drop(&mut self) {
        self.gauge.take(self.bytes);
    }
}

#[cfg(test)]
mod tests;
