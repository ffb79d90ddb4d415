//! How many requests a store is asked at the same time: additive increase, and a decrease in proportion to the share of
//! requests that the store throttles (as DCTCP does, RFC 8257).
//!
//! Each answer in good order adds `1 / limit`, one more request after a round of them; each request to slow down (503,
//! 429) takes half a request away. So a store that refuses everything has its limit halved in a round, while one that
//! refuses the share p of requests, however few there are, is asked about 2 (1 - p) / p at once and not one by one.
//! Which bytes are read does not depend on it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::counters::{ConnectionLimit, IoCounters};

/// Requests in flight by default, per bucket or host.
pub(crate) const CONCURRENCY_MAX: u32 = 64;
/// A request that has waited this long goes out all the same: whoever holds all permits may be waiting for it.
const WAIT_MAX: Duration = Duration::from_secs(20);
/// What a throttled request takes from the limit: all of a round together halve it.
const DECREASE: f64 = 0.5;
/// The longest that a store's `Retry-After` holds back requests for other objects.
const HOLD_MAX: Duration = Duration::from_secs(30);

/// The limit of one store.
#[derive(Debug)]
pub(crate) struct Gate {
    store: String,
    least: u32,
    most: u32,
    counters: IoCounters,
    wait_max: Duration,
    hold_max: Duration,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    limit: f64,
    lowest: f64,
    in_flight: u32,
    /// No request before this.
    hold: Option<Instant>,
}

/// The right to one request. Given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    gate: Arc<Gate>,
}

impl Gate {
    pub(crate) fn new(store: String, least: u32, most: u32, counters: IoCounters) -> Arc<Self> {
        Self::with_times(store, least, most, counters, [WAIT_MAX, HOLD_MAX])
    }

    fn with_times(store: String, least: u32, most: u32, counters: IoCounters, times: [Duration; 2]) -> Arc<Self> {
        let [wait_max, hold_max] = times;
        let (least, most) = (least.clamp(1, most.max(1)), most.max(1));
        let limit = f64::from(most);
        let state = Mutex::new(State { limit, lowest: limit, in_flight: 0, hold: None });
        let changed = Notify::new();
        Arc::new(Self { store, least, most, counters, wait_max, hold_max, state, changed })
    }

    /// Waits for the right to a request.
    pub(crate) async fn enter(self: &Arc<Self>) -> Permit {
        let patience = Instant::now() + self.wait_max;
        loop {
            let changed = self.changed.notified();
            let until = {
                let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                let now = Instant::now();
                let held = state.hold.is_some_and(|hold| hold > now);
                let free = !held && f64::from(state.in_flight) + 1.0 <= state.limit;
                if free || (now >= patience && !held) {
                    state.in_flight += 1;
                    self.publish(&state);
                    return Permit { gate: Arc::clone(self) };
                }
                state.hold.filter(|_| held).unwrap_or(patience)
            };
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep_until(until) => {}
            }
        }
    }

    fn publish(&self, state: &State) {
        let whole = |limit: f64| limit as u32;
        let now = ConnectionLimit {
            in_flight: state.in_flight,
            limit: whole(state.limit),
            lowest: whole(state.lowest),
            most: self.most,
        };
        self.counters.limit(&self.store, now);
    }
}

impl Permit {
    /// The answer came in good order.
    pub(crate) fn succeeded(&self) {
        let gate = &self.gate;
        let mut state = gate.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.limit = (state.limit + 1.0 / state.limit.max(1.0)).min(f64::from(gate.most));
        gate.publish(&state);
        drop(state);
        gate.changed.notify_one();
    }

    /// The store asked to slow down, and perhaps for how long to leave it alone.
    pub(crate) fn throttled(&self, retry_after: Option<Duration>) {
        let gate = &self.gate;
        let mut state = gate.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.limit = (state.limit - DECREASE).max(f64::from(gate.least));
        state.lowest = state.lowest.min(state.limit);
        if let Some(pause) = retry_after {
            let hold = Instant::now() + pause.min(gate.hold_max);
            state.hold = Some(state.hold.map_or(hold, |old| old.max(hold)));
        }
        gate.publish(&state);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.gate.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.in_flight = state.in_flight.saturating_sub(1);
        self.gate.publish(&state);
        drop(state);
        self.gate.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use futures::StreamExt as _;

    use super::*;

    fn limit(counters: &IoCounters) -> ConnectionLimit {
        counters.snapshot().connections["x"]
    }

    #[tokio::test]
    async fn no_more_requests_than_the_limit_are_in_flight() {
        let gate = Gate::new("x".to_owned(), 1, 3, IoCounters::new());
        let (now, most) = (AtomicU32::new(0), AtomicU32::new(0));
        futures::stream::iter(0..50)
            .for_each_concurrent(None, |_| async {
                let permit = gate.enter().await;
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(1)).await;
                now.fetch_sub(1, Ordering::SeqCst);
                permit.succeeded();
            })
            .await;
        assert_eq!(most.into_inner(), 3);
    }

    #[tokio::test]
    async fn the_limit_is_halved_by_a_round_of_refusals_and_grows_back() {
        let counters = IoCounters::new();
        let gate = Gate::new("x".to_owned(), 2, 16, counters.clone());
        for (round, expected) in [(16, 8), (8, 4), (4, 2), (2, 2)] {
            let permits = futures::future::join_all((0..round).map(|_| gate.enter())).await;
            permits.iter().for_each(|permit| permit.throttled(None));
            assert_eq!(limit(&counters).limit, expected);
        }
        for _ in 0..200 {
            gate.enter().await.succeeded();
        }
        let now = limit(&counters);
        assert_eq!((now.in_flight, now.limit, now.lowest, now.most), (0, 16, 2, 16));
    }

    /// 2 (1 - p) / p: 8 at a fifth, 38 at a twentieth.
    #[tokio::test]
    async fn a_store_that_refuses_a_share_is_not_asked_one_by_one() {
        for (every, wanted) in [(5, 8.0), (20, 38.0)] {
            let counters = IoCounters::new();
            let gate = Gate::new("x".to_owned(), 1, 64, counters.clone());
            let mut sum = 0;
            for request in 1..=20_000 {
                let permit = gate.enter().await;
                if request % every == 0 {
                    permit.throttled(None)
                } else {
                    permit.succeeded()
                }
                sum += if request > 10_000 { limit(&counters).limit } else { 0 };
            }
            let mean = f64::from(sum) / 10_000.0;
            assert!((mean - wanted).abs() < 0.1 * wanted, "{mean} for one in {every}");
        }
    }

    fn with_short_times(most: u32) -> Arc<Gate> {
        let times = [Duration::from_millis(50), Duration::from_millis(300)];
        Gate::with_times("x".to_owned(), 1, most, IoCounters::new(), times)
    }

    #[tokio::test]
    async fn a_store_that_says_when_to_come_back_is_left_alone_until_then() {
        let gate = with_short_times(4);
        for (asked, least) in [(Duration::from_millis(200), 200), (Duration::from_secs(100_000), 300)] {
            gate.enter().await.throttled(Some(asked));
            let before = Instant::now();
            drop(gate.enter().await);
            assert!(before.elapsed() >= Duration::from_millis(least - 20), "{:?}", before.elapsed());
            assert!(before.elapsed() < Duration::from_secs(10), "{:?}", before.elapsed());
        }
    }

    #[tokio::test]
    async fn a_holder_that_waits_for_itself_does_not_hang() {
        let gate = with_short_times(1);
        let _held = gate.enter().await;
        tokio::time::timeout(Duration::from_secs(10), gate.enter()).await.unwrap();
    }
}
