//! Devices: one OS thread owns each backend; chunks lease a device for as long as they need it.
//!
//! ```text
//!   chunk ── lease().await ──▶ DeviceLease ── run(work) ──▶ channel of one ──▶ device thread: work(&mut Backend)
//!     ▲          FIFO                                                               │
//!     └───────────────────────────── result ◀──────────────────────────────────────┘  lease returns, next chunk
//! ```
//!
//! The lease travels with the work and comes back when the work has ended on the thread, not when its caller stopped
//! waiting: a dropped future can never give a device away that is still in use. The work learns from [`Cancel`] that
//! nobody waits any more and ends at its next step.
//!
//! A panic in a backend closes the pool: everybody who waits or comes later gets [`PipelineError::Fatal`] with the
//! panic's message.

use std::{
    collections::VecDeque,
    ops::ControlFlow,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread::JoinHandle,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::{Backend, BackendFactory, BackendLimits, DeviceId, PipelineError, panic::panic_message};

type Work = Box<dyn FnOnce(&mut dyn Backend) -> ControlFlow<()> + Send>;

struct Shared {
    /// One permit per idle device. tokio's semaphore serves in order of arrival.
    permits: Arc<Semaphore>,
    idle: Mutex<VecDeque<usize>>,
    /// Why the pool closed.
    failure: Mutex<Option<String>>,
    devices: Vec<DeviceId>,
    senders: Vec<mpsc::SyncSender<Work>>,
}

impl Shared {
    fn fail(&self, message: String) {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.get_or_insert(message);
        drop(failure);
        self.permits.close();
    }

    fn failure(&self) -> PipelineError {
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        PipelineError::Fatal(failure.clone().unwrap_or_else(|| "the device pool is closed".into()))
    }
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
        let mut senders = Vec::new();
        let mut threads = Vec::new();
        let mut opening = Vec::new();
        for &device in devices {
            let (work_in, work_out) = mpsc::sync_channel::<Work>(1);
            let (ready_in, ready_out) = mpsc::sync_channel(1);
            let factory = Arc::clone(factory);
            let thread = std::thread::Builder::new()
                .name(format!("slicemill {device}"))
                .spawn(move || own_device(&*factory, device, &ready_in, &work_out))
                .map_err(|error| PipelineError::Fatal(format!("device {device}: no thread can be started: {error}")))?;
            senders.push(work_in);
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
        let shared = Shared {
            permits: Arc::new(Semaphore::new(devices.len())),
            idle: Mutex::new((0..devices.len()).collect()),
            failure: Mutex::new(None),
            devices: devices.to_vec(),
            senders,
        };
        Ok(Self { shared: Arc::new(shared), threads, limits })
    }

    /// The devices, in the order they were given.
    pub fn devices(&self) -> &[DeviceId] {
        &self.shared.devices
    }

    /// What every device of the pool can take: the least of each limit, so that batches do not depend on which
    /// device gets a chunk.
    pub const fn limits(&self) -> BackendLimits {
        self.limits
    }

    /// Waits for a device. Leases are granted in the order in which they were asked for.
    ///
    /// # Errors
    /// When a backend of the pool has panicked.
    pub async fn lease(&self) -> Result<DeviceLease, PipelineError> {
        let permit = Arc::clone(&self.shared.permits).acquire_owned().await.map_err(|_| self.shared.failure())?;
        let slot = self.shared.idle.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let slot = slot.ok_or_else(|| PipelineError::Fatal("a device lease was granted without a device".into()))?;
        Ok(DeviceLease { slot, shared: Arc::clone(&self.shared), _permit: permit })
    }

    /// Refuses further leases, waits for the work in progress and closes the backends.
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

/// Opens the backend, reports its limits, then does one work after the other until the pool is dropped.
fn own_device(
    factory: &dyn BackendFactory,
    device: DeviceId,
    ready: &mpsc::SyncSender<Result<BackendLimits, String>>,
    work: &mpsc::Receiver<Work>,
) {
    let opened = catch_unwind(AssertUnwindSafe(|| factory.open(device)));
    let mut backend = match opened {
        Ok(Ok(backend)) => backend,
        Ok(Err(error)) => return drop(ready.send(Err(error.to_string()))),
        Err(payload) => return drop(ready.send(Err(format!("it panicked: {}", panic_message(&*payload))))),
    };
    if ready.send(Ok(backend.limits())).is_err() {
        return;
    }
    while let Ok(work) = work.recv() {
        if work(&mut *backend).is_break() {
            return;
        }
    }
}

/// The exclusive use of one device. Dropping it unused gives the device back.
pub struct DeviceLease {
    slot: usize,
    shared: Arc<Shared>,
    /// Released after `drop` has put the device back among the idle ones.
    _permit: OwnedSemaphorePermit,
}

impl Drop for DeviceLease {
    fn drop(&mut self) {
        self.shared.idle.lock().unwrap_or_else(PoisonError::into_inner).push_back(self.slot);
    }
}

/// Tells work on a device that its caller has gone.
pub struct Cancel<'a>(&'a dyn Fn() -> bool);

impl Cancel<'_> {
    /// Whether nobody waits for the result any more.
    pub fn is_cancelled(&self) -> bool {
        (self.0)()
    }
}

impl DeviceLease {
    /// The leased device.
    pub fn device(&self) -> DeviceId {
        self.shared.devices[self.slot]
    }

    /// Runs `work` on the device's thread. Dropping the future cancels: `work` sees it through [`Cancel`], and the
    /// device becomes free when `work` returns.
    ///
    /// # Errors
    /// When `work` panicked or the device's thread has ended.
    pub async fn run<T, F>(self, work: F) -> Result<T, PipelineError>
    where
        T: Send + 'static,
        F: FnOnce(&mut dyn Backend, &Cancel<'_>) -> T + Send + 'static,
    {
        let device = self.device();
        let shared = Arc::clone(&self.shared);
        let sender = shared.senders[self.slot].clone();
        let (result_in, result_out) = oneshot::channel();
        let lease = self;
        let on_thread: Work = Box::new(move |backend| {
            let gone = || result_in.is_closed();
            let done = catch_unwind(AssertUnwindSafe(|| work(backend, &Cancel(&gone))));
            match done {
                Ok(value) => {
                    // Free before the result is seen, so that whoever sees it can lease at once.
                    drop(lease);
                    let _ = result_in.send(Ok(value));
                    ControlFlow::Continue(())
                }
                Err(payload) => {
                    lease.shared.fail(format!("device {device} panicked: {}", panic_message(&*payload)));
                    let _ = result_in.send(Err(lease.shared.failure()));
                    ControlFlow::Break(())
                }
            }
        });
        // Never full: the channel holds one and the lease is exclusive.
        if sender.send(on_thread).is_err() {
            shared.fail(format!("device {device}: its thread has ended"));
            return Err(shared.failure());
        }
        drop(sender);
        result_out.await.unwrap_or_else(|_| Err(shared.failure()))
    }
}
