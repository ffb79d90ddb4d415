//! The thread that owns a backend, and the thread that watches over it.
//!
//! ```text
//!   lease ── order ──▶ supervisor ── work ──▶ worker: work(&mut Backend)
//!                         │  ▲ done, panic, or no sign for too long
//!                         │  └──────────────────┘
//!                         ├─ done ──▶ lease back, then the answer
//!                         └─ lost ──▶ the caller is told; a new worker is opened; lease back, or the device given up
//! ```
//!
//! A worker that panicked ends, and with it its backend and the memory of its device. A worker that hangs cannot be
//! ended: it is left behind with all it holds, and if it ever wakes, [`Pulse`] tells it that it does not count any
//! more. The lease stays with the supervisor, so it comes back once, and only when the device has a worker.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use crate::{
    Backend, BackendFactory, BackendLimits, DeviceId, DeviceLease, Pulse, Supervision, WorkerLost,
    panic::panic_message, pool::LostHow,
};

/// Tells the caller what the work gave.
pub(crate) type Reply = Box<dyn FnOnce() + Send>;
pub(crate) type Work = Box<dyn FnOnce(&mut dyn Backend) -> Reply + Send>;

/// Pauses between attempts to open a device anew: the first, and the longest. A driver may need a moment.
const REOPEN_PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(2));

/// Work for a device, with what is needed to watch over it.
pub(crate) struct Order {
    pub(crate) lease: DeviceLease,
    pub(crate) pulse: Arc<Pulse>,
    pub(crate) supervision: Supervision,
    pub(crate) lost: oneshot::Sender<WorkerLost>,
    pub(crate) work: Work,
}

/// What a worker says.
enum Said {
    Ready(BackendLimits),
    NotReady(String),
    Done(Reply),
    Panicked(String),
}

/// A thread that owns a backend.
struct Worker {
    work: mpsc::Sender<Work>,
    /// Disconnected when the backend has been dropped.
    said: mpsc::Receiver<Said>,
    thread: JoinHandle<()>,
}

/// Why a device was not opened.
enum NotOpened {
    Failed(String),
    /// It gives no sign; the thread that opens it is left behind.
    Hung,
}

impl Worker {
    /// Loads the model on a thread of its own; waits at most `patience` for it.
    fn open(
        factory: &Arc<dyn BackendFactory>,
        device: DeviceId,
        patience: Option<Duration>,
    ) -> Result<(Self, BackendLimits), NotOpened> {
        let (work_in, work_out) = mpsc::channel();
        let (said_in, said_out) = mpsc::channel();
        let factory = Arc::clone(factory);
        let thread = std::thread::Builder::new()
            .name(format!("slicemill {device}"))
            .spawn(move || own_device(&*factory, device, &work_out, &said_in))
            .map_err(|error| NotOpened::Failed(format!("no thread can be started: {error}")))?;
        match receive(&said_out, patience) {
            Ok(Said::Ready(limits)) => Ok((Self { work: work_in, said: said_out, thread }, limits)),
            Ok(Said::NotReady(message)) => Err(NotOpened::Failed(message)),
            Err(mpsc::RecvTimeoutError::Timeout) => Err(NotOpened::Hung),
            Ok(_) | Err(mpsc::RecvTimeoutError::Disconnected) => {
                Err(NotOpened::Failed("its thread ended while it was opened".into()))
            }
        }
    }

    /// Waits until the backend has been dropped, so that its device has room for the next one. The thread, when it
    /// does not end.
    fn ended(self, patience: Option<Duration>) -> Option<JoinHandle<()>> {
        drop(self.work);
        let until = patience.map(|patience| Instant::now() + patience);
        loop {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            match receive(&self.said, left) {
                Ok(_) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return None,
                Err(mpsc::RecvTimeoutError::Timeout) => return Some(self.thread),
            }
        }
    }
}

fn receive<T>(from: &mpsc::Receiver<T>, patience: Option<Duration>) -> Result<T, mpsc::RecvTimeoutError> {
    match patience {
        Some(patience) => from.recv_timeout(patience),
        None => from.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected),
    }
}

/// Opens the backend, then does one work after the other until the supervisor has no more, or one panics.
fn own_device(factory: &dyn BackendFactory, device: DeviceId, work: &mpsc::Receiver<Work>, said: &mpsc::Sender<Said>) {
    let opened = catch_unwind(AssertUnwindSafe(|| factory.open(device)));
    let mut backend = match opened {
        Ok(Ok(backend)) => backend,
        Ok(Err(error)) => return drop(said.send(Said::NotReady(error.to_string()))),
        Err(payload) => {
            let message = format!("it panicked: {}", panic_message(&*payload));
            return drop(said.send(Said::NotReady(message)));
        }
    };
    if said.send(Said::Ready(backend.limits())).is_err() {
        return;
    }
    while let Ok(work) = work.recv() {
        let (done, goes_on) = match catch_unwind(AssertUnwindSafe(|| work(&mut *backend))) {
            Ok(reply) => (Said::Done(reply), true),
            Err(payload) => (Said::Panicked(panic_message(&*payload).to_owned()), false),
        };
        if said.send(done).is_err() || !goes_on {
            break;
        }
    }
    // A backend that panicked may do so again when it is dropped; the thread ends anyway.
    drop(catch_unwind(AssertUnwindSafe(|| drop(backend))));
}

/// How a piece of work ended.
enum Ended {
    Done(Reply),
    Lost(LostHow),
}

/// Watches over the worker of one device.
pub(crate) struct Supervisor {
    factory: Arc<dyn BackendFactory>,
    device: DeviceId,
    /// Limits that every worker of this device must keep to, because batches are made by them.
    limits: BackendLimits,
    /// Restarts since a row was finished.
    restarts: u32,
    /// Threads that hung when they were left behind.
    abandoned: Vec<JoinHandle<()>>,
}

impl Supervisor {
    /// Opens the device, says whether that went well, and does what is ordered until no order can come any more or the
    /// device is given up.
    pub(crate) fn run(
        factory: Arc<dyn BackendFactory>,
        device: DeviceId,
        ready: &mpsc::SyncSender<Result<BackendLimits, String>>,
        orders: &mpsc::Receiver<Order>,
    ) {
        let (mut worker, limits) = match Worker::open(&factory, device, None) {
            Ok(opened) => opened,
            Err(NotOpened::Failed(message)) => return drop(ready.send(Err(message))),
            Err(NotOpened::Hung) => return,
        };
        if ready.send(Ok(limits)).is_err() {
            return;
        }
        let mut supervisor = Self { factory, device, limits, restarts: 0, abandoned: Vec::new() };
        while let Ok(order) = orders.recv() {
            match supervisor.fill(worker, order) {
                Some(goes_on) => worker = goes_on,
                None => return,
            }
        }
        // Without an order there is nothing to hang in but the end of the backend itself, for which the pool waits.
        drop(worker.ended(None));
    }

    /// Has the work done. The worker for the next order; `None` when the device is given up or the pool is closed.
    fn fill(&mut self, worker: Worker, order: Order) -> Option<Worker> {
        let Order { lease, pulse, supervision, lost, work } = order;
        let sent = worker.work.send(work).is_ok();
        let ended = if sent { watch(&worker, &pulse, supervision.timeout()) } else { Ended::Lost(thread_ended()) };
        if pulse.rows_done() > 0 {
            self.restarts = 0;
        }
        match ended {
            Ended::Done(reply) => {
                // Free before the result is seen, so that whoever sees it can lease at once.
                drop(lease);
                reply();
                Some(worker)
            }
            Ended::Lost(how) => {
                let (call, rows) = pulse.last_call().map_or((None, Vec::new()), |(call, rows)| (Some(call), rows));
                let news = WorkerLost { device: self.device, call, rows, how };
                tracing::warn!(device = %self.device, "{news}");
                let why = news.to_string();
                supervision.progress.worker_lost(&news.how);
                let _ = lost.send(news.clone());
                self.replace(worker, &news.how, lease, &supervision, &why)
            }
        }
    }

    /// A new worker for one that was lost.
    fn replace(
        &mut self,
        old: Worker,
        how: &LostHow,
        lease: DeviceLease,
        supervision: &Supervision,
        why: &str,
    ) -> Option<Worker> {
        let patience = supervision.timeout();
        let left_behind = match how {
            LostHow::Died { .. } => old.ended(patience),
            LostHow::Hung { .. } => Some(old.thread),
        };
        self.abandoned.extend(left_behind);
        let mut why = why.to_owned();
        let mut pause = REOPEN_PAUSE.0;
        loop {
            if lease.is_closed() {
                return None;
            }
            self.abandoned.retain(|thread| !thread.is_finished());
            if let Some(too_many) = self.too_many(supervision.worker_restarts_max) {
                lease.give_up(&format!("{too_many}; last: {why}"));
                return None;
            }
            self.restarts += 1;
            supervision.progress.worker_restarted();
            match Worker::open(&self.factory, self.device, patience) {
                Ok((worker, limits)) if self.limits.min(limits) == self.limits => {
                    drop(lease);
                    return Some(worker);
                }
                Ok((worker, _)) => {
                    why = format!("device {} was opened anew with less room than before", self.device);
                    self.abandoned.extend(worker.ended(patience));
                }
                Err(NotOpened::Failed(message)) => {
                    why = format!("device {} cannot be opened anew: {message}", self.device);
                }
                Err(NotOpened::Hung) => {
                    lease.give_up(&format!("it gives no sign while it is opened anew; before: {why}"));
                    return None;
                }
            }
            tracing::warn!(device = %self.device, "{why}");
            std::thread::sleep(pause);
            pause = (pause * 2).min(REOPEN_PAUSE.1);
        }
    }

    /// Why there may not be another worker.
    fn too_many(&self, restarts_max: u32) -> Option<String> {
        if self.restarts >= restarts_max {
            return Some(format!("its worker was lost and {} restarts since have finished no row", self.restarts));
        }
        let hanging = self.abandoned.len();
        // Each holds a model in memory.
        (hanging > restarts_max as usize).then(|| format!("{hanging} of its threads hang at the same time"))
    }
}

fn thread_ended() -> LostHow {
    LostHow::Died { panic: "its thread has ended".into() }
}

/// Waits for the work to end, or for a call of it to take longer than `timeout`.
///
/// Time is counted in looks at the pulse, not read off a clock: a process that was stopped for an hour has not waited.
fn watch(worker: &Worker, pulse: &Pulse, timeout: Option<Duration>) -> Ended {
    let tick = timeout.map(|timeout| (timeout / 8).clamp(Duration::from_millis(1), Duration::from_secs(1)));
    let (mut call, mut waited) = (0, Duration::ZERO);
    loop {
        match receive(&worker.said, tick) {
            Ok(Said::Done(reply)) => return Ended::Done(reply),
            Ok(Said::Panicked(panic)) => return Ended::Lost(LostHow::Died { panic }),
            Ok(Said::Ready(_) | Said::NotReady(_)) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => return Ended::Lost(thread_ended()),
            Err(mpsc::RecvTimeoutError::Timeout) => match pulse.call_number() {
                Some(number) if number == call => waited += tick.unwrap_or_default(),
                number => (call, waited) = (number.unwrap_or_default(), Duration::ZERO),
            },
        }
        if timeout.is_some_and(|timeout| waited >= timeout) && pulse.abandon(call) {
            return Ended::Lost(LostHow::Hung { waited });
        }
    }
}
