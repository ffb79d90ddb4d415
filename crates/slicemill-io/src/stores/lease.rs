//! The right to write to an output in an object store: a small object that its owner renews.
//!
//! The object is created if absent and renewed by conditional updates (`If-Match`). Who finds another's lease watches
//! it by its own clock for three periods: renewed meanwhile, it is refused; not renewed, it is taken over. No two
//! machines' clocks are compared. A dead process of this very machine is known at once.
//!
//! An owner that stalls longer than that may go on writing for a moment after its lease is taken. That is harmless:
//! everything in an output is put only if absent, under names and with bytes that follow from the job alone, so that
//! both would write the same; it ends before its next commit, when it finds its lease taken.

use std::hash::{BuildHasher as _, Hasher as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use object_store::{GetOptions, PutMode, UpdateVersion};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use crate::{IoError, IoErrorKind, OutputStore};

/// The longest time between renewals that another process's lease is believed.
const PERIOD_MAX: Duration = Duration::from_secs(60);
/// Periods without renewal after which a lease counts as left behind.
const PATIENCE: u32 = 3;

/// What the object says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    /// In words.
    owner: String,
    host: String,
    pid: u32,
    /// Random; another one means another owner.
    id: String,
    /// How often the lease changed hands.
    generation: u64,
    /// How often it was renewed.
    heartbeat: u64,
    /// Milliseconds between renewals.
    period_ms: u64,
    /// Boot, process namespace and start of the process: what tells it from a later one with the same number.
    process: String,
}

/// Tells the output that its lease is gone. Shared by all clones of an output.
#[derive(Debug, Default)]
pub(crate) struct LeaseWatch {
    lost: Mutex<Option<String>>,
}

impl LeaseWatch {
    /// An error once the lease is taken.
    pub(crate) fn check(&self) -> Result<(), IoError> {
        match self.lost.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            None => Ok(()),
            Some(why) => Err(IoError::fatal(IoErrorKind::Locked, why.clone())),
        }
    }

    fn lose(&self, why: String) {
        tracing::error!("{why}");
        *self.lost.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
    }

    fn found(&self) {
        *self.lost.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// A lease that is held and renewed. Without [`release`](Self::release) it is left behind, and the next owner waits.
#[derive(Debug)]
pub(crate) struct Lease {
    output: OutputStore,
    name: String,
    id: String,
    renewals: JoinSet<()>,
}

/// A lease as it stands in the store.
struct Found {
    record: Option<Record>,
    version: UpdateVersion,
}

impl Lease {
    pub(crate) async fn take(output: &OutputStore, name: &str) -> Result<Self, IoError> {
        let period = output.lease_period();
        let mut record = Record {
            owner: format!("process {} on {}", std::process::id(), super::host()),
            host: super::host(),
            pid: std::process::id(),
            id: random_id(),
            generation: 0,
            heartbeat: 0,
            period_ms: u64::try_from(period.as_millis()).unwrap_or(u64::MAX).max(1),
            process: process_mark(std::process::id()).unwrap_or_default(),
        };
        loop {
            match find(output, name).await? {
                None => {
                    if write(output, name, &record, PutMode::Create).await?.is_some() {
                        break;
                    }
                }
                Some(other) => {
                    left_behind(output, name, &other).await?;
                    record.generation = other.record.as_ref().map_or(0, |other| other.generation) + 1;
                    if write(output, name, &record, PutMode::Update(other.version)).await?.is_some() {
                        break;
                    }
                }
            }
        }
        // What stands there now decides, whatever the store made of the conditions.
        match find(output, name).await?.and_then(|found| found.record) {
            Some(now) if now.id == record.id => {}
            other => return Err(held(output, other.as_ref())),
        }
        output.probe_create(name, &json(&record)?).await?;
        output.lease_watch().found();
        let mut renewals = JoinSet::new();
        let id = record.id.clone();
        renewals.spawn(renew(output.clone(), name.to_owned(), record, period));
        Ok(Self { output: output.clone(), name: name.to_owned(), id, renewals })
    }

    /// Gives the lease back.
    pub(crate) async fn release(mut self) -> Result<(), IoError> {
        self.renewals.shutdown().await;
        match find(&self.output, &self.name).await?.and_then(|found| found.record) {
            Some(record) if record.id == self.id => self.output.delete_anyway(&self.name).await,
            _ => Ok(()),
        }
    }
}

/// Renews until the lease is lost.
async fn renew(output: OutputStore, name: String, mut record: Record, period: Duration) {
    loop {
        tokio::time::sleep(period).await;
        let there = match find(&output, &name).await {
            Ok(there) => there,
            Err(error) => {
                tracing::warn!(%error, "the lease of the output cannot be renewed now");
                continue;
            }
        };
        match there {
            Some(Found { record: Some(now), version }) if now.id == record.id => {
                record.heartbeat = now.heartbeat + 1;
                if let Err(error) = write(&output, &name, &record, PutMode::Update(version)).await {
                    tracing::warn!(%error, "the lease of the output cannot be renewed now");
                }
            }
            other => {
                let owner =
                    other.and_then(|other| other.record).map_or_else(|| "another process".to_owned(), |r| r.owner);
                output.lease_watch().lose(format!(
                    "{owner} has taken over {}, because this process gave no sign for some time. Nothing is lost: \
                     what was committed stands, and the other process goes on from there",
                    output.url()
                ));
                return;
            }
        }
    }
}

async fn find(output: &OutputStore, name: &str) -> Result<Option<Found>, IoError> {
    let path = output.object_path(name)?;
    let answer = output
        .retrying(name, || async {
            let read = async {
                let answer = output.object_store().get_opts(&path, GetOptions::default()).await?;
                let version = UpdateVersion { e_tag: answer.meta.e_tag.clone(), version: answer.meta.version.clone() };
                Ok((answer.bytes().await?, version))
            };
            read.await.map_err(|error| IoError::from_store("read", &output.show(name), error))
        })
        .await;
    match answer {
        Ok((bytes, version)) => Ok(Some(Found { record: serde_json::from_slice(&bytes).ok(), version })),
        Err(error) if error.kind == IoErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn json(record: &Record) -> Result<Bytes, IoError> {
    let bytes = serde_json::to_vec_pretty(record);
    Ok(bytes.map_err(|error| IoError::fatal(IoErrorKind::Invalid, format!("cannot write JSON: {error}")))?.into())
}

/// Writes the record. `None` when the condition did not hold. Stores that know no condition get a plain put: the lease
/// then only mostly keeps two processes apart, which is enough because two are harmless.
async fn write(output: &OutputStore, name: &str, record: &Record, mode: PutMode) -> Result<Option<()>, IoError> {
    let path = output.object_path(name)?;
    let bytes = json(record)?;
    let put = |mode: PutMode| {
        let (path, bytes) = (&path, &bytes);
        output.retrying(name, move || {
            let mode = mode.clone();
            async move {
                let answer = output.object_store().put_opts(path, bytes.clone().into(), mode.into()).await;
                answer.map(drop).map_err(|error| IoError::from_store("write", &output.show(name), error))
            }
        })
    };
    let answer = match put(mode).await {
        Err(error) if crate::store::cannot_create(&error) => put(PutMode::Overwrite).await,
        answer => answer,
    };
    match answer {
        Ok(()) => Ok(Some(())),
        // A lost answer: the record may be ours.
        Err(error) if matches!(error.kind, IoErrorKind::Conflict | IoErrorKind::SourceChanged) => {
            let now = find(output, name).await?.and_then(|found| found.record);
            Ok((now.as_ref() == Some(record)).then_some(()))
        }
        Err(error) => Err(error),
    }
}

/// Waits until it is clear that nobody renews this lease; `Locked` when somebody does.
async fn left_behind(output: &OutputStore, name: &str, found: &Found) -> Result<(), IoError> {
    let Some(record) = &found.record else { return Ok(()) };
    if is_dead_here(record) {
        return Ok(());
    }
    let period = Duration::from_millis(record.period_ms).min(PERIOD_MAX);
    tracing::info!(
        owner = record.owner,
        seconds = (period * PATIENCE).as_secs(),
        "the output has an owner; watching whether it is alive"
    );
    // A little longer than its periods, so that a renewal that is due is seen.
    for _ in 0..=PATIENCE {
        tokio::time::sleep(period).await;
        match find(output, name).await? {
            Some(now) if now.record.as_ref() == Some(record) => {}
            None => return Ok(()),
            Some(now) => return Err(held(output, now.record.as_ref())),
        }
    }
    tracing::warn!(owner = record.owner, "the owner of the output gave no sign; taking over");
    Ok(())
}

/// Whether somebody holds the lease `name` now. One that was left behind is removed.
pub(crate) async fn refuse_if_held(output: &OutputStore, name: &str) -> Result<(), IoError> {
    if let Some(found) = find(output, name).await? {
        left_behind(output, name, &found).await?;
        output.delete_anyway(name).await?;
    }
    Ok(())
}

fn held(output: &OutputStore, record: Option<&Record>) -> IoError {
    let owner = record.map_or("another process", |record| record.owner.as_str());
    let wait = record.map_or(output.lease_period(), |record| Duration::from_millis(record.period_ms)) * PATIENCE;
    let message = format!(
        "{owner} is writing to {}; wait for it, or give another output. Should it be dead, the output is free after \
         {} seconds",
        output.url(),
        wait.as_secs().max(1)
    );
    IoError::fatal(IoErrorKind::Locked, message)
}

/// Whether the owner is a process of this machine, and gone.
fn is_dead_here(record: &Record) -> bool {
    let ours = process_mark(std::process::id());
    let place = |mark: &str| mark.rsplit_once(' ').map(|(place, _)| place.to_owned());
    let Some(here) = ours.as_deref().and_then(place) else { return false };
    let same_machine = place(&record.process).is_some_and(|there| there == here);
    same_machine && process_mark(record.pid).as_deref() != Some(record.process.as_str())
}

/// Boot, process namespace and start time of a process of this machine; `None` where the system does not say, or for a
/// process of which only the place is known.
fn process_mark(pid: u32) -> Option<String> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let namespace = std::fs::read_link("/proc/self/ns/pid").ok()?;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything; the start time is field 22, the 20th after it.
    let started = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.to_owned();
    Some(format!("{} {} {started}", boot.trim(), namespace.display()))
}

/// Two numbers that no other process has: the keys of the standard library's hash maps are random.
fn random_id() -> String {
    let number = || {
        let mut hasher = std::collections::hash_map::RandomState::new().build_hasher();
        hasher.write_u32(std::process::id());
        hasher.finish()
    };
    format!("{:016x}{:016x}", number(), number())
}

/// Shared by an output's clones.
pub(crate) type SharedWatch = Arc<LeaseWatch>;

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;

    const NAME: &str = "_slicemill/lease.json";
    const QUICK: Duration = Duration::from_millis(20);

    fn output(store: &Arc<InMemory>) -> OutputStore {
        OutputStore::with_store(Arc::clone(store) as _, "memory:").with_lease_period(QUICK)
    }

    #[tokio::test]
    async fn a_living_owner_is_not_disturbed() {
        let store = Arc::new(InMemory::new());
        let first = Lease::take(&output(&store), NAME).await.unwrap();
        let error = Lease::take(&output(&store), NAME).await.unwrap_err();
        assert_eq!(error.kind, IoErrorKind::Locked);
        assert!(error.message.contains(&format!("process {}", std::process::id())), "{}", error.message);
        first.output.lease_watch().check().unwrap();
        first.release().await.unwrap();
        assert!(!output(&store).exists(NAME).await.unwrap());
        Lease::take(&output(&store), NAME).await.unwrap();
    }

    #[tokio::test]
    async fn a_lease_that_is_not_renewed_is_taken_over_and_its_owner_told() {
        let store = Arc::new(InMemory::new());
        // Renews too seldom.
        let stalled = output(&store).with_lease_period(Duration::from_millis(400));
        let first = Lease::take(&stalled, NAME).await.unwrap();
        let found = find(&stalled, NAME).await.unwrap().unwrap();
        let record = Record { period_ms: 20, process: "elsewhere x 1".to_owned(), ..found.record.unwrap() };
        stalled.put(NAME, json(&record).unwrap()).await.unwrap();

        let second = Lease::take(&output(&store), NAME).await.unwrap();
        let now = find(&stalled, NAME).await.unwrap().unwrap().record.unwrap();
        assert_eq!((now.generation, &now.id), (1, &second.id));
        tokio::time::sleep(Duration::from_millis(600)).await;
        let error = stalled.put_if_absent("x.json", Bytes::from_static(b"x")).await.unwrap_err();
        assert_eq!((error.kind, error.fate), (IoErrorKind::Locked, slicemill_core::Fate::Fatal));
        assert!(error.message.contains("taken over"), "{}", error.message);
        assert!(!output(&store).exists("x.json").await.unwrap());
        second.output.put_if_absent("x.json", Bytes::from_static(b"x")).await.unwrap();
        // The stale owner does not take away what is not its own any more.
        first.release().await.unwrap();
        assert!(second.output.exists(NAME).await.unwrap());
    }

    #[tokio::test]
    async fn a_dead_process_of_this_machine_is_known_at_once() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let mark = process_mark(std::process::id()).unwrap();
        let place = mark.rsplit_once(' ').unwrap().0;
        child.wait().unwrap();
        let store = Arc::new(InMemory::new());
        let slow = output(&store).with_lease_period(Duration::from_secs(1000));
        let first = Lease::take(&slow, NAME).await.unwrap();
        let found = find(&first.output, NAME).await.unwrap().unwrap();
        let record = Record { pid: child.id(), process: format!("{place} 1"), ..found.record.unwrap() };
        first.output.put(NAME, json(&record).unwrap()).await.unwrap();
        let output = output(&store);
        let taking = Lease::take(&output, NAME);
        tokio::time::timeout(Duration::from_secs(5), taking).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn one_of_many_that_begin_together_wins() {
        let store = Arc::new(InMemory::new());
        let takers = (0..8).map(|_| {
            let output = output(&store);
            async move { Lease::take(&output, NAME).await }
        });
        let results = futures::future::join_all(takers).await;
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    }

    #[tokio::test]
    async fn a_lease_that_cannot_be_read_does_not_lock_for_ever() {
        let store = Arc::new(InMemory::new());
        output(&store).put(NAME, Bytes::from_static(b"{")).await.unwrap();
        Lease::take(&output(&store), NAME).await.unwrap();
    }
}
