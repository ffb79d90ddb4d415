//! The CPU pool: work that is awaited, whose panics are answers.
//!
//! Work of the oldest chunk goes first. So a chunk's batches are completed one after the other instead of all chunks'
//! batches filling up side by side: the device gets its next batch sooner, and less prepared memory waits.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::oneshot;

use crate::{PipelineError, panic::panic_message};

/// A panic of work on the CPU pool, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostPanic(pub(crate) String);

/// Threads that read headers and prepare pixels ahead of the devices.
#[derive(Debug)]
pub struct HostPool {
    threads: rayon::ThreadPool,
    queue: Arc<Mutex<Queue>>,
}

/// Work that waits, the oldest chunk's first and in order of arrival within a chunk.
#[derive(Default)]
struct Queue {
    waiting: BinaryHeap<Waiting>,
    arrivals: u64,
}

struct Waiting {
    /// Number of the chunk, then number of arrival; smallest first.
    rank: Reverse<(u64, u64)>,
    work: Box<dyn FnOnce() + Send>,
}

impl Queue {
    fn push(&mut self, chunk: u64, work: Box<dyn FnOnce() + Send>) {
        self.arrivals += 1;
        self.waiting.push(Waiting { rank: Reverse((chunk, self.arrivals)), work });
    }
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        self.rank == other.rank
    }
}

impl Eq for Waiting {}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Waiting {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.rank.cmp(&other.rank)
    }
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").field("waiting", &self.waiting.len()).finish_non_exhaustive()
    }
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
        Ok(Self { threads, queue: Arc::default() })
    }

    /// Number of threads.
    pub fn threads(&self) -> usize {
        self.threads.current_num_threads()
    }

    /// Runs `work` for the chunk with this number on a thread of the pool. When the future is dropped, work that has
    /// not begun is left out.
    pub(crate) async fn run<T, F>(&self, chunk: u64, work: F) -> Result<T, HostPanic>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let (done_in, done_out) = oneshot::channel();
        let work = move || {
            if done_in.is_closed() {
                return;
            }
            let done = catch_unwind(AssertUnwindSafe(work));
            let done = done.map_err(|payload| HostPanic(panic_message(&*payload).to_owned()));
            let _ = done_in.send(done);
        };
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).push(chunk, Box::new(work));
        let queue = Arc::clone(&self.queue);
        // As many turns as pieces of work; each does what is most urgent by then.
        self.threads.spawn(move || {
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).waiting.pop();
            if let Some(next) = next {
                (next.work)();
            }
        });
        done_out.await.unwrap_or_else(|_| Err(HostPanic("the CPU pool has ended".into())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_chunk_goes_first_and_its_work_in_order() {
        let mut queue = Queue::default();
        let (done_in, done_out) = std::sync::mpsc::channel();
        for name in [(2, "c"), (1, "a"), (1, "b"), (0, "z")] {
            let done = done_in.clone();
            queue.push(name.0, Box::new(move || done.send(name.1).unwrap()));
        }
        while let Some(next) = queue.waiting.pop() {
            (next.work)();
        }
        assert_eq!(done_out.try_iter().collect::<String>(), "zabc");
    }

    #[tokio::test]
    async fn a_panic_is_an_answer() {
        let pool = HostPool::new(1).unwrap();
        assert_eq!(pool.run(0, || -> u8 { panic!("no") }).await, Err(HostPanic("no".into())));
        assert_eq!(pool.run(0, || 7).await, Ok(7));
    }
}
