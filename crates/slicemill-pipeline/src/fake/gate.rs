//! Something that calls hang on until a test lets them go.

use std::{
    sync::{Condvar, Mutex, PoisonError},
    time::Duration,
};

/// Longest time a call hangs, so that a test that forgets to release it ends.
const HANG_MAX: Duration = Duration::from_secs(30);

/// What calls hang on.
#[derive(Debug, Default)]
pub(super) struct Gate {
    open: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    pub(super) fn wait(&self) {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.opened.wait_timeout_while(open, HANG_MAX, |open| !*open));
    }

    pub(super) fn open(&self) {
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.opened.notify_all();
    }
}
