//! A store whose requests pass a gate: at most so many in flight, bodies that stall are cut, errors are counted.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{FutureExt as _, StreamExt as _};
use object_store::path::Path as ObjectPath;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};

use super::counters::IoCounters;
use super::gate::{Gate, Permit};
use super::wire::WireError;

/// Another store behind a gate.
#[derive(Debug)]
pub(crate) struct GatedStore {
    pub(crate) inner: Arc<dyn ObjectStore>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) counters: IoCounters,
    pub(crate) stall_timeout: Duration,
}

/// Tells the gate what became of a request.
fn tell<T>(permit: &Permit, answer: &Result<T>) {
    match answer {
        Ok(_) => permit.succeeded(),
        Err(error) => {
            if let Some(wire @ WireError::Status { retry_after, .. }) = WireError::find(error)
                && wire.is_throttle()
            {
                permit.throttled(*retry_after);
            }
        }
    }
}

impl GatedStore {
    async fn pass<T>(&self, operation: impl Future<Output = Result<T>>) -> Result<T> {
        let permit = self.gate.enter().await;
        let answer = operation.await;
        tell(&permit, &answer);
        answer
    }

    /// The body, whose pieces must keep coming; holds the permit to its end.
    fn watch(&self, body: BoxStream<'static, Result<Bytes>>, permit: Permit) -> BoxStream<'static, Result<Bytes>> {
        let (counters, patience) = (self.counters.clone(), self.stall_timeout);
        let state = Some((body, permit));
        futures::stream::unfold(state, move |state| {
            let counters = counters.clone();
            async move {
                let (mut body, permit) = state?;
                match tokio::time::timeout(patience, body.next()).await {
                    Ok(Some(Ok(piece))) => {
                        counters.read(piece.len());
                        Some((Ok(piece), Some((body, permit))))
                    }
                    Ok(None) => None,
                    Ok(Some(Err(error))) => {
                        let error = typed(error);
                        counters.error(&WireError::find(&error).map_or_else(|| "other".to_owned(), WireError::code));
                        Some((Err(error), None))
                    }
                    Err(_elapsed) => {
                        let stalled = WireError::Stalled(patience);
                        counters.error(&stalled.code());
                        Some((Err(Error::Generic { store: "store", source: Box::new(stalled) }), None))
                    }
                }
            }
        })
        .boxed()
    }
}

/// The error of a body, as one of ours.
fn typed(error: Error) -> Error {
    if WireError::find(&error).is_some() {
        return error;
    }
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    let mut texts = Vec::new();
    while let Some(error) = next {
        texts.push(error.to_string());
        next = error.source();
    }
    let text = texts.pop().unwrap_or_default();
    let short = texts
        .iter()
        .chain([&text])
        .any(|text| text.contains("end of file before message length") || text.contains("unexpected EOF during chunk"));
    let wire = if short { WireError::Short(text) } else { WireError::Reset(text) };
    Error::Generic { store: "store", source: Box::new(wire) }
}

impl std::fmt::Display for GatedStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait]
impl ObjectStore for GatedStore {
    async fn put_opts(&self, location: &ObjectPath, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        self.pass(self.inner.put_opts(location, payload, opts)).await
    }

    async fn put_multipart_opts(
        &self,
        location: &ObjectPath,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let inner = self.pass(self.inner.put_multipart_opts(location, opts)).await?;
        Ok(Box::new(GatedUpload { inner, gate: Arc::clone(&self.gate) }))
    }

    async fn get_opts(&self, location: &ObjectPath, options: GetOptions) -> Result<GetResult> {
        let permit = self.gate.enter().await;
        let answer = self.inner.get_opts(location, options).await;
        tell(&permit, &answer);
        let GetResult { payload, meta, range, attributes } = answer?;
        let payload = match payload {
            GetResultPayload::Stream(body) => GetResultPayload::Stream(self.watch(body, permit)),
            file @ GetResultPayload::File(..) => file,
        };
        Ok(GetResult { payload, meta, range, attributes })
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<ObjectPath>>,
    ) -> BoxStream<'static, Result<ObjectPath>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&ObjectPath>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    fn list_with_offset(
        &self,
        prefix: Option<&ObjectPath>,
        offset: &ObjectPath,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&ObjectPath>) -> Result<ListResult> {
        self.pass(self.inner.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &ObjectPath, to: &ObjectPath, options: CopyOptions) -> Result<()> {
        self.pass(self.inner.copy_opts(from, to, options)).await
    }
}

#[derive(Debug)]
struct GatedUpload {
    inner: Box<dyn MultipartUpload>,
    gate: Arc<Gate>,
}

#[async_trait]
impl MultipartUpload for GatedUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (part, gate) = (self.inner.put_part(data), Arc::clone(&self.gate));
        async move {
            let permit = gate.enter().await;
            let answer = part.await;
            tell(&permit, &answer);
            answer
        }
        .boxed()
    }

    async fn complete(&mut self) -> Result<PutResult> {
        self.inner.complete().await
    }

    async fn abort(&mut self) -> Result<()> {
        self.inner.abort().await
    }
}
