//! Devices: one OS thread owns each backend; chunks lease a device for as long as they need it.
//!
//! ```text
//!   chunk ── lease().await ──▶ DeviceLease ── run(work) ──▶ supervisor of the device ──▶ its worker
//!     ▲          FIFO                                            │
//!     └──────────────────── result, or that it was lost ◀───────┘  lease returns, next chunk
//! ```
//!
//! The lease travels with the work and comes back when the work has ended on the thread, not when its caller stopped
//! waiting: a dropped future can never give a device away that is still in use. The work learns from [`Pulse`] that
//! nobody waits any more and ends at its next step.
//!
//! A worker that panics or hangs is replaced by a new one, opened by the factory on a fresh thread, and its caller
//! gets [`WorkLost::Worker`]. A device that needs too many workers is given up. When the last device is gone the pool
//! closes: everybody who waits or comes later gets [`PipelineError::Fatal`] with the reason.
//!
//! What cannot be survived here: an abort, a stack overflow, a kill. They end the process, and the job resumes.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread::JoinHandle,
    time::Duration,
};

use futures::future::{Either, select};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::{
    Backend, BackendFactory, BackendLimits, DeviceCall, DeviceId, PipelineError, Progress, Pulse, RuntimeLimits,
    worker::{Order, Reply, Supervisor, Work},
};

struct Shared {
    /// One permit per idle device. tokio's semaphore serves in order of arrival.
    permits: Arc<Semaphore>,
    state: Mutex<State>,
    devices: Vec<DeviceId>,
    orders: Vec<mpsc::Sender<Order>>,
}

struct State {
    idle: VecDeque<usize>,
    /// Devices that were given up, and why.
    given_up: Vec<(DeviceId, String)>,
    /// Why the pool closed.
    failure: Option<String>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes the pool; the first reason counts.
    fn fail(&self, message: String) {
        self.state().failure.get_or_insert(message);
        self.permits.close();
    }

    fn failure(&self) -> PipelineError {
        let failure = self.state().failure.clone();
        PipelineError::Fatal(failure.unwrap_or_else(|| "the device pool is closed".into()))
    }

    /// Notes that a device does not come back.
    fn give_up(&self, device: DeviceId, why: &str) {
        tracing::error!(%device, "the device is given up: {why}");
        let mut state = self.state();
        state.given_up.push((device, why.to_owned()));
        if state.given_up.len() < self.devices.len() {
            return;
        }
        let each: Vec<String> =
            state.given_up.iter().map(|(device, why)| format!("{device} was given up: {why}")).collect();
        drop(state);
        self.fail(format!(
            "no device is left: {}. What was finished is kept: look at the devices and start the run again to resume",
            each.join("; ")
        ));
    }
}

/// How the workers of a run are watched over.
#[derive(Debug, Clone)]
pub struct Supervision {
    /// Longest time of one call of a backend; `None` or zero waits for ever.
    pub device_timeout: Option<Duration>,
    /// Restarts of a device in a row in which no row was finished, and threads of it that may hang at the same time,
    /// before it is given up.
    pub worker_restarts_max: u32,
    /// Counts restarts and hangs.
    pub progress: Arc<Progress>,
}

impl Supervision {
    /// As these limits say.
    pub const fn new(limits: &RuntimeLimits, progress: Arc<Progress>) -> Self {
        let RuntimeLimits { device_timeout, worker_restarts_max, .. } = *limits;
        Self { device_timeout, worker_restarts_max, progress }
    }

    /// The longest time of one call, if there is one.
    pub(crate) fn timeout(&self) -> Option<Duration> {
        self.device_timeout.filter(|timeout| !timeout.is_zero())
    }
}

/// How a worker was lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LostHow {
    /// Its thread panicked or ended.
    Died {
        /// What the panic said.
        panic: String,
    },
    /// One call took too long; the thread was left behind.
    Hung {
        /// How long it was waited for.
        waited: Duration,
    },
}

/// A worker that was lost, and what it was at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerLost {
    /// Its device.
    pub device: DeviceId,
    /// The call it was in, if it was in one.
    pub call: Option<DeviceCall>,
    /// The rows of that call, as the work numbered them.
    pub rows: Vec<usize>,
    /// How.
    pub how: LostHow,
}

impl fmt::Display for WorkerLost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let call = self.call.map_or("between calls", DeviceCall::as_str);
        let Self { device, rows, how, .. } = self;
        let rows = rows.len();
        match how {
            LostHow::Died { panic } => {
                write!(f, "the worker of device {device} died (call: {call}, {rows} rows): {panic}")
            }
            LostHow::Hung { waited } => {
                let seconds = waited.as_secs_f64();
                write!(f, "device {device} gave no sign for {seconds:.1} seconds (call: {call}, {rows} rows)")
            }
        }
    }
}

/// Why work on a device has no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WorkLost {
    /// Its worker died or hung. Others can be leased.
    #[error("{0}")]
    Worker(WorkerLost),
    /// The pool is closed.
    #[error("{0}")]
    Pool(PipelineError),
}

/// All devices of a run.
pub struct DevicePool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    limits: BackendLimits,
}

impl DevicePool {
    /// Opens a backend on every device, each on the thread that will own it, and waits until all are ready. Blocks
    /// while weights are loaded.
    ///
    /// # Errors
    /// When a backend cannot be opened or there is no device.
    pub fn start(factory: &Arc<dyn BackendFactory>, devices: &[DeviceId]) -> Result<Self, PipelineError> {
        if devices.is_empty() {
            return Err(PipelineError::Limits("a device pool needs at least one device, for example `cpu`".into()));
        }
        let mut orders = Vec::new();
        let mut threads = Vec::new();
        let mut opening = Vec::new();
        for &device in devices {
            let (orders_in, orders_out) = mpsc::channel();
            let (ready_in, ready_out) = mpsc::sync_channel(1);
            let factory = Arc::clone(factory);
            let thread = std::thread::Builder::new()
                .name(format!("slicemill watch {device}"))
                .spawn(move || Supervisor::run(factory, device, &ready_in, &orders_out))
                .map_err(|error| PipelineError::Fatal(format!("device {device}: no thread can be started: {error}")))?;
            orders.push(orders_in);
            threads.push(thread);
            opening.push((device, ready_out));
        }
        let mut limits: Option<BackendLimits> = None;
        for (device, ready) in opening {
            let opened = ready.recv().unwrap_or_else(|_| Err("its thread ended while it was opened".into()));
            let opened = opened
                .map_err(|message| PipelineError::Fatal(format!("device {device} cannot be opened: {message}")))?;
            limits = Some(limits.map_or(opened, |least| least.min(opened)));
        }
        let limits = limits.ok_or_else(|| PipelineError::Fatal("no device was opened".into()))?;
        let state = State { idle: (0..devices.len()).collect(), given_up: Vec::new(), failure: None };
        let shared = Shared {
            permits: Arc::new(Semaphore::new(devices.len())),
            state: Mutex::new(state),
            devices: devices.to_vec(),
            orders,
        };
        Ok(Self { shared: Arc::new(shared), threads, limits })
    }

    /// The devices, in the order they were given.
    pub fn devices(&self) -> &[DeviceId] {
        &self.shared.devices
    }

    /// Devices that were given up, and why.
    pub fn given_up(&self) -> Vec<(DeviceId, String)> {
        self.shared.state().given_up.clone()
    }

    /// What every device of the pool can take: the least of each limit, so that batches do not depend on which
    /// device gets a chunk.
    pub const fn limits(&self) -> BackendLimits {
        self.limits
    }

    /// Waits for a device. Leases are granted in the order in which they were asked for.
    ///
    /// # Errors
    /// When no device is left.
    pub async fn lease(&self) -> Result<DeviceLease, PipelineError> {
        let permit = Arc::clone(&self.shared.permits).acquire_owned().await.map_err(|_| self.shared.failure())?;
        let slot = self.shared.state().idle.pop_front();
        let slot = slot.ok_or_else(|| PipelineError::Fatal("a device lease was granted without a device".into()))?;
        Ok(DeviceLease { slot, shared: Arc::clone(&self.shared), permit: Some(permit) })
    }

    /// Refuses further leases, waits for the work in progress and closes the backends. Threads that hang and were left
    /// behind are not waited for.
    pub fn join(self) {
        let Self { shared, threads, .. } = self;
        shared.fail("the device pool is closed".into());
        drop(shared);
        for thread in threads {
            // A panic was reported to the work's caller.
            let _ = thread.join();
        }
    }
}

/// The exclusive use of one device. Dropping it unused gives the device back.
pub struct DeviceLease {
    slot: usize,
    shared: Arc<Shared>,
    /// Released after `drop` has put the device back among the idle ones; absent when the device does not come back.
    permit: Option<OwnedSemaphorePermit>,
}

impl Drop for DeviceLease {
    fn drop(&mut self) {
        if self.permit.is_some() {
            self.shared.state().idle.push_back(self.slot);
        }
    }
}

/// Notes that nobody waits any more.
struct CancelOnDrop(Arc<Pulse>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

impl DeviceLease {
    /// The leased device.
    pub fn device(&self) -> DeviceId {
        self.shared.devices[self.slot]
    }

    /// Whether the pool is closed.
    pub(crate) fn is_closed(&self) -> bool {
        self.shared.permits.is_closed()
    }

    /// The device does not come back.
    pub(crate) fn give_up(mut self, why: &str) {
        if let Some(permit) = self.permit.take() {
            permit.forget();
        }
        self.shared.give_up(self.device(), why);
    }

    /// Runs `work` on the device's thread. Dropping the future cancels: `work` sees it through [`Pulse`], and the
    /// device becomes free when `work` returns. Calls of the backend are watched when they go through
    /// [`Pulse::during`].
    ///
    /// # Errors
    /// When the worker died or hung, or the pool is closed.
    pub async fn run<T, F>(self, supervision: Supervision, work: F) -> Result<T, WorkLost>
    where
        T: Send + 'static,
        F: FnOnce(&mut dyn Backend, &Pulse) -> T + Send + 'static,
    {
        let shared = Arc::clone(&self.shared);
        let (result_in, result_out) = oneshot::channel();
        let (lost_in, lost_out) = oneshot::channel();
        let pulse = Arc::new(Pulse::default());
        let _cancel = CancelOnDrop(Arc::clone(&pulse));
        let on_thread = Arc::clone(&pulse);
        let work: Work = Box::new(move |backend| {
            let done = work(backend, &on_thread);
            let reply: Reply = Box::new(move || drop(result_in.send(done)));
            reply
        });
        let slot = self.slot;
        let order = Order { lease: self, pulse, supervision, lost: lost_in, work };
        // The supervisor ends when its device is given up, and then nobody has a lease.
        drop(shared.orders[slot].send(order));
        let closed = |_| WorkLost::Pool(shared.failure());
        match select(lost_out, result_out).await {
            Either::Left((Ok(lost), _)) => Err(WorkLost::Worker(lost)),
            Either::Left((Err(_), result)) => result.await.map_err(closed),
            Either::Right((Ok(result), _)) => Ok(result),
            Either::Right((Err(_), lost)) => Err(lost.await.map_or_else(closed, WorkLost::Worker)),
        }
    }
}
