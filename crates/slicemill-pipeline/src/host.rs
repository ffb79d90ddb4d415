//! The CPU pool: work that is awaited, whose panics are answers.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tokio::sync::oneshot;

use crate::{PipelineError, panic::panic_message};

/// A panic of work on the CPU pool, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostPanic(pub(crate) String);

/// Threads that read headers and prepare pixels ahead of the devices.
#[derive(Debug)]
pub struct HostPool {
    threads: rayon::ThreadPool,
}

impl HostPool {
    /// A pool of `threads` threads.
    ///
    /// # Errors
    /// When there is to be none, or they cannot be started.
    pub fn new(threads: usize) -> Result<Self, PipelineError> {
        if threads == 0 {
            return Err(PipelineError::Limits("the CPU pool needs at least one thread".into()));
        }
        let name = |number| format!("slicemill host {number}");
        let threads = rayon::ThreadPoolBuilder::new().num_threads(threads).thread_name(name).build();
        let threads = threads
            .map_err(|error| PipelineError::Fatal(format!("the CPU pool's threads cannot be started: {error}")))?;
        Ok(Self { threads })
    }

    /// Number of threads.
    pub fn threads(&self) -> usize {
        self.threads.current_num_threads()
    }

    /// Runs `work` on a thread of the pool. When the future is dropped, work that has not begun is left out.
    pub(crate) async fn run<T, F>(&self, work: F) -> Result<T, HostPanic>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let (done_in, done_out) = oneshot::channel();
        self.threads.spawn(move || {
            if done_in.is_closed() {
                return;
            }
            let done = catch_unwind(AssertUnwindSafe(work));
            let done = done.map_err(|payload| HostPanic(panic_message(&*payload).to_owned()));
            let _ = done_in.send(done);
        });
        done_out.await.unwrap_or_else(|_| Err(HostPanic("the CPU pool has ended".into())))
    }
}
