//! What a store lists, through errors that pass.

use std::sync::Arc;

use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::path::Path as ObjectPath;
use object_store::{ObjectMeta, ObjectStore};
use slicemill_core::Fate;

use crate::retry::with_retries;
use crate::{IoError, IoErrorKind, RetryBudget};

/// Objects of a store.
pub(super) type Metas = BoxStream<'static, Result<ObjectMeta, IoError>>;

/// A prefix of a store.
#[derive(Debug, Clone)]
pub(super) struct Prefix {
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) path: ObjectPath,
    pub(super) shown: String,
    pub(super) budget: RetryBudget,
}

impl Prefix {
    fn whole(&self) -> Option<&ObjectPath> {
        (!self.path.as_ref().is_empty()).then_some(&self.path)
    }

    fn failed(&self, error: object_store::Error) -> IoError {
        IoError::from_store("list", &self.shown, error)
    }

    /// All objects of a store that lists in bytewise order. A listing that breaks off goes on behind the last object
    /// it gave; the tries are counted from one object to the next.
    pub(super) fn in_order(self) -> Metas {
        let start = State { prefix: self, last: None, open: None };
        futures::stream::try_unfold(start, |mut state| async move { Ok(state.next().await?.map(|meta| (meta, state))) })
            .boxed()
    }

    /// All objects of a store that lists in any order, sorted; they are held in memory.
    pub(super) async fn sorted(self) -> Result<Vec<ObjectMeta>, IoError> {
        let listing =
            || async { self.store.list(self.whole()).map_err(|error| self.failed(error)).try_collect().await };
        let mut all: Vec<ObjectMeta> = with_retries(&self.budget, &self.shown, listing).await?;
        all.sort_by(|a, b| a.location.as_ref().cmp(b.location.as_ref()));
        Ok(all)
    }
}

struct State {
    prefix: Prefix,
    last: Option<ObjectPath>,
    open: Option<BoxStream<'static, object_store::Result<ObjectMeta>>>,
}

impl State {
    async fn next(&mut self) -> Result<Option<ObjectMeta>, IoError> {
        let (mut attempt, budget) = (1, self.prefix.budget);
        let mut paused = std::time::Duration::ZERO;
        loop {
            let prefix = &self.prefix;
            let open = self.open.get_or_insert_with(|| match &self.last {
                None => prefix.store.list(prefix.whole()),
                Some(last) => prefix.store.list_with_offset(prefix.whole(), last),
            });
            let error = match tokio::time::timeout(budget.attempt_timeout, open.next()).await {
                Ok(Some(Ok(meta))) => {
                    self.last = Some(meta.location.clone());
                    return Ok(Some(meta));
                }
                Ok(None) => return Ok(None),
                Ok(Some(Err(error))) => prefix.failed(error),
                Err(_elapsed) => {
                    let seconds = budget.attempt_timeout.as_secs_f32();
                    let message = format!("cannot list {}: no answer in {seconds} s", prefix.shown);
                    IoError::new(Fate::Transient, IoErrorKind::Failed, message)
                }
            };
            self.open = None;
            let pause = budget.pause(&self.prefix.shown, attempt).max(error.retry_after().unwrap_or_default());
            if error.fate != Fate::Transient || attempt >= budget.attempts_max || paused + pause > budget.pauses_total {
                return Err(IoError { attempts: attempt, ..error });
            }
            tracing::debug!(attempt, pause_ms = pause.as_millis(), error = %error, "listing again");
            tokio::time::sleep(pause).await;
            paused += pause;
            attempt += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use async_trait::async_trait;
    use object_store::memory::InMemory;
    use object_store::{
        CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectStoreExt as _, PutMultipartOptions,
        PutOptions, PutPayload, PutResult, Result,
    };

    use super::*;

    /// Breaks every listing off after three objects, and every other one before the first.
    #[derive(Debug)]
    struct Breaking(InMemory, AtomicU32);

    impl std::fmt::Display for Breaking {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("breaking")
        }
    }

    impl Breaking {
        fn broken(&self, rest: BoxStream<'static, Result<ObjectMeta>>) -> BoxStream<'static, Result<ObjectMeta>> {
            let given = if self.1.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) { 0 } else { 3 };
            let error = || object_store::Error::Generic { store: "test", source: "reset".into() };
            let broken = futures::stream::iter(0..1000).zip(rest).map(
                move |(number, meta)| {
                    if number < given { meta } else { Err(error()) }
                },
            );
            broken.boxed()
        }
    }

    #[async_trait]
    impl ObjectStore for Breaking {
        async fn put_opts(&self, path: &ObjectPath, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
            self.0.put_opts(path, payload, options).await
        }
        async fn put_multipart_opts(
            &self,
            path: &ObjectPath,
            options: PutMultipartOptions,
        ) -> Result<Box<dyn MultipartUpload>> {
            self.0.put_multipart_opts(path, options).await
        }
        async fn get_opts(&self, path: &ObjectPath, options: GetOptions) -> Result<GetResult> {
            self.0.get_opts(path, options).await
        }
        fn delete_stream(
            &self,
            paths: BoxStream<'static, Result<ObjectPath>>,
        ) -> BoxStream<'static, Result<ObjectPath>> {
            self.0.delete_stream(paths)
        }
        fn list(&self, prefix: Option<&ObjectPath>) -> BoxStream<'static, Result<ObjectMeta>> {
            self.broken(self.0.list(prefix))
        }
        fn list_with_offset(
            &self,
            prefix: Option<&ObjectPath>,
            offset: &ObjectPath,
        ) -> BoxStream<'static, Result<ObjectMeta>> {
            self.broken(self.0.list_with_offset(prefix, offset))
        }
        async fn list_with_delimiter(&self, prefix: Option<&ObjectPath>) -> Result<ListResult> {
            self.0.list_with_delimiter(prefix).await
        }
        async fn copy_opts(&self, from: &ObjectPath, to: &ObjectPath, options: CopyOptions) -> Result<()> {
            self.0.copy_opts(from, to, options).await
        }
    }

    async fn prefix(objects: u32, attempts_max: u32) -> Prefix {
        let store = Arc::new(Breaking(InMemory::new(), AtomicU32::new(0)));
        for number in 0..objects {
            store.put(&ObjectPath::from(format!("in/{number:03}")), "x".into()).await.unwrap();
        }
        let pause = Duration::from_millis(1);
        let budget = RetryBudget { attempts_max, pause_first: pause, pause_max: pause, ..RetryBudget::default() };
        Prefix { store, path: "in".into(), shown: "s3://bucket/in".to_owned(), budget }
    }

    #[tokio::test]
    async fn a_listing_that_breaks_off_goes_on_where_it_broke() {
        let listed: Vec<ObjectMeta> = prefix(20, 3).await.in_order().try_collect().await.unwrap();
        let names: Vec<_> = listed.iter().map(|meta| meta.location.to_string()).collect();
        assert_eq!(names, (0..20).map(|number| format!("in/{number:03}")).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_listing_that_never_begins_is_given_up() {
        let error = prefix(20, 1).await.in_order().try_collect::<Vec<_>>().await.unwrap_err();
        assert_eq!((error.attempts, error.fate), (1, Fate::Transient));
        assert!(error.message.contains("cannot list s3://bucket/in"), "{}", error.message);
        assert!(prefix(20, 2).await.sorted().await.is_err(), "no whole listing comes without a break");
    }
}
