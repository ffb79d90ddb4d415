//! A store that fails on purpose, to test that an interrupted run loses and doubles nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{FutureExt as _, StreamExt as _};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt as _, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};

/// How a [`FaultStore`] fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The change is not made and everything after it fails, as if the process were killed before it.
    KillBefore,
    /// The change is made, reported as failed, and everything after it fails, as if the process were killed after it.
    KillAfter,
    /// The change is not made; what follows works.
    Refuse,
    /// The change is made and reported as failed; what follows works.
    LoseAnswer,
}

/// Passes everything on to another store, save that the nth change (put, upload step or delete, from 0) fails.
#[derive(Debug, Clone)]
pub struct FaultStore {
    inner: Arc<dyn ObjectStore>,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    fault: Fault,
    nth: u64,
    changes: AtomicU64,
    fired: AtomicBool,
    dead: AtomicBool,
}

impl FaultStore {
    /// Fails at change number `nth`.
    pub fn new(inner: Arc<dyn ObjectStore>, nth: u64, fault: Fault) -> Self {
        let (changes, fired, dead) = (AtomicU64::new(0), AtomicBool::new(false), AtomicBool::new(false));
        Self { inner, state: Arc::new(State { fault, nth, changes, fired, dead }) }
    }

    /// Whether the fault happened.
    pub fn fired(&self) -> bool {
        self.state.fired.load(Ordering::SeqCst)
    }

    /// Changes asked for so far.
    pub fn changes(&self) -> u64 {
        self.state.changes.load(Ordering::SeqCst)
    }
}

impl State {
    fn alive(&self) -> Result<()> {
        if self.dead.load(Ordering::SeqCst) { Err(broken("the process is dead")) } else { Ok(()) }
    }

    /// Before a change. Whether the answer is to be lost.
    fn before(&self) -> Result<bool> {
        self.alive()?;
        if self.changes.fetch_add(1, Ordering::SeqCst) != self.nth {
            return Ok(false);
        }
        self.fired.store(true, Ordering::SeqCst);
        self.dead.store(self.fault == Fault::KillBefore, Ordering::SeqCst);
        match self.fault {
            Fault::KillBefore | Fault::Refuse => Err(broken("refused on purpose")),
            Fault::KillAfter | Fault::LoseAnswer => Ok(true),
        }
    }

    /// After a change whose answer is to be lost.
    fn after(&self) -> Error {
        self.dead.store(self.fault == Fault::KillAfter, Ordering::SeqCst);
        broken("the answer was lost on purpose")
    }

    async fn change<T>(&self, change: impl Future<Output = Result<T>>) -> Result<T> {
        let lose = self.before()?;
        let answer = change.await;
        if lose { Err(self.after()) } else { answer }
    }
}

fn broken(message: &str) -> Error {
    Error::Generic { store: "fault", source: message.into() }
}

impl std::fmt::Display for FaultStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} with a fault", self.inner)
    }
}

#[async_trait]
impl ObjectStore for FaultStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        self.state.change(self.inner.put_opts(location, payload, opts)).await
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        let inner = self.state.change(self.inner.put_multipart_opts(location, opts)).await?;
        Ok(Box::new(FaultUpload { inner, state: Arc::clone(&self.state) }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.state.alive()?;
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let (inner, state) = (Arc::clone(&self.inner), Arc::clone(&self.state));
        locations
            .then(move |location| {
                let (inner, state) = (Arc::clone(&inner), Arc::clone(&state));
                async move {
                    let location = location?;
                    state.change(inner.delete(&location)).await?;
                    Ok(location)
                }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.state.alive() {
            Ok(()) => self.inner.list(prefix),
            Err(error) => futures::stream::iter([Err(error)]).boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.state.alive()?;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.state.change(self.inner.copy_opts(from, to, options)).await
    }
}

#[derive(Debug)]
struct FaultUpload {
    inner: Box<dyn MultipartUpload>,
    state: Arc<State>,
}

#[async_trait]
impl MultipartUpload for FaultUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        match self.state.before() {
            Err(error) => futures::future::ready(Err(error)).boxed(),
            Ok(lose) => {
                let (part, state) = (self.inner.put_part(data), Arc::clone(&self.state));
                async move {
                    let answer = part.await;
                    if lose { Err(state.after()) } else { answer }
                }
                .boxed()
            }
        }
    }

    async fn complete(&mut self) -> Result<PutResult> {
        self.state.change(self.inner.complete()).await
    }

    async fn abort(&mut self) -> Result<()> {
        self.state.alive()?;
        self.inner.abort().await
    }
}
