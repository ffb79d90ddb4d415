//! Two steps of stopping: the first request drains, the second ends at once.

use std::sync::Arc;

use tokio::sync::watch;

/// How far stopping has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Running,
    /// Chunks in flight finish and are committed, no new one starts.
    Draining,
    /// Everything is dropped; what is committed stays.
    Aborting,
}

/// A request to stop, shared by whoever asks (Ctrl-C) and the run. Cheap to clone.
#[derive(Debug, Clone)]
pub struct StopSignal {
    phase: Arc<watch::Sender<Phase>>,
}

impl Default for StopSignal {
    fn default() -> Self {
        Self { phase: Arc::new(watch::Sender::new(Phase::Running)) }
    }
}

impl StopSignal {
    /// Nobody has asked yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks once: the first time the run drains, the second time it ends at once.
    pub fn request(&self) {
        self.phase.send_modify(|phase| {
            *phase = if *phase == Phase::Running { Phase::Draining } else { Phase::Aborting };
        });
    }

    /// Whether no new work may start.
    pub fn is_draining(&self) -> bool {
        *self.phase.borrow() >= Phase::Draining
    }

    /// Whether everything is to be dropped.
    pub fn is_aborting(&self) -> bool {
        *self.phase.borrow() == Phase::Aborting
    }

    /// Waits until everything is to be dropped.
    pub async fn aborted(&self) {
        let mut phase = self.phase.subscribe();
        // The sender lives as long as `self`, so this ends only with the phase.
        let _ = phase.wait_for(|phase| *phase == Phase::Aborting).await;
    }
}
