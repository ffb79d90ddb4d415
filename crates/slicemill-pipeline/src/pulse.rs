//! The sign of life of a device's worker: which call it is in, and whether anybody still waits for it.
//!
//! A pulse belongs to one piece of work. The worker says when a call of its backend begins and ends; the supervisor
//! looks from time to time and may abandon the work while a call is in progress. Both go through one lock, so either
//! the call has ended and the work goes on, or the work is abandoned and learns it from the end of its call: abandoned
//! work can do nothing that anybody sees.

use std::{
    fmt,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use slicemill_core::Stage;

/// A call of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeviceCall {
    /// Visual tokens of a batch.
    Encode,
    /// Visual tokens of an image are copied to the host.
    ReadTokens,
    /// Prefill of one prompt.
    Admit,
    /// One token for every sequence in flight.
    Step,
    /// An image or a sequence is taken off the device.
    Release,
}

impl DeviceCall {
    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Encode => "encode",
            Self::ReadTokens => "read_tokens",
            Self::Admit => "admit",
            Self::Step => "step",
            Self::Release => "release",
        }
    }

    /// The stage a row that fails in it has come to.
    pub const fn stage(self) -> Stage {
        match self {
            Self::Encode | Self::ReadTokens => Stage::Encode,
            Self::Admit | Self::Step | Self::Release => Stage::Generate,
        }
    }
}

impl fmt::Display for DeviceCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The heartbeat of one piece of work on a device.
#[derive(Debug, Default)]
pub struct Pulse {
    cancelled: AtomicBool,
    rows_done: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Calls begun.
    calls: u64,
    in_call: Option<(DeviceCall, Vec<usize>)>,
    abandoned: bool,
}

impl Pulse {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nobody waits for the result any more. The work should end at its next step.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Relaxed)
    }

    pub(crate) fn cancel(&self) {
        self.cancelled.store(true, Relaxed);
    }

    /// Does one call of the backend for these rows of the chunk. `None` when the work was abandoned meanwhile: it must
    /// end without touching anything, and further calls are not done. Its backend is in a state that nobody knows and
    /// will be dropped.
    pub fn during<T>(&self, call: DeviceCall, rows: Vec<usize>, work: impl FnOnce() -> T) -> Option<T> {
        let mut state = self.state();
        if state.abandoned {
            return None;
        }
        state.calls += 1;
        state.in_call = Some((call, rows));
        drop(state);
        // A panic leaves the call in place, which says what it was over.
        let done = work();
        let mut state = self.state();
        state.in_call = None;
        (!state.abandoned).then_some(done)
    }

    /// Notes that a row has its outcome: the device makes progress.
    pub fn row_done(&self) {
        self.rows_done.fetch_add(1, Relaxed);
    }

    pub(crate) fn rows_done(&self) -> u64 {
        self.rows_done.load(Relaxed)
    }

    /// The number of the call that is in progress.
    pub(crate) fn call_number(&self) -> Option<u64> {
        let state = self.state();
        state.in_call.as_ref().map(|_| state.calls)
    }

    /// Gives the work up if this call is still in progress; whether it was.
    pub(crate) fn abandon(&self, call: u64) -> bool {
        let mut state = self.state();
        state.abandoned |= state.in_call.is_some() && state.calls == call;
        state.abandoned
    }

    /// The call in progress, or the one that was when the work panicked.
    pub(crate) fn last_call(&self) -> Option<(DeviceCall, Vec<usize>)> {
        self.state().in_call.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_ended_in_time_cannot_be_abandoned() {
        let pulse = Pulse::default();
        assert_eq!(pulse.during(DeviceCall::Encode, vec![1], || pulse.call_number()), Some(Some(1)));
        assert_eq!(pulse.call_number(), None);
        assert!(!pulse.abandon(1));
        // The next call is another one.
        assert_eq!(pulse.during(DeviceCall::Step, vec![1], || pulse.abandon(1)), Some(false));
        assert_eq!(pulse.during(DeviceCall::Step, vec![4, 5], || pulse.abandon(3)), None);
        let mut called = false;
        assert_eq!(pulse.during(DeviceCall::Step, vec![4], || called = true), None);
        assert!(!called, "a call of abandoned work was done");
    }

    #[test]
    fn a_panic_leaves_its_call() {
        let pulse = Pulse::default();
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            pulse.during(DeviceCall::Admit, vec![7], || panic!("no"))
        }));
        assert!(panicked.is_err());
        assert_eq!(pulse.last_call(), Some((DeviceCall::Admit, vec![7])));
    }
}
