//! The job is stopped before and after every single change to the store, and goes on.

use object_store::local::LocalFileSystem;
use proptest::prelude::*;

use super::*;
use crate::Location;
use crate::fault::{Fault, FaultStore};
use crate::stores::s3_server::S3Server;

/// Two shards of two chunks, a second generation, one retry pass.
const RETRIED: Job = Job { rows: [10, 4], chunk_rows: 3, shard_chunks: 2, retries: 1 };
const SMALL: Job = Job { rows: [8, 0], chunk_rows: 3, shard_chunks: 2, retries: 0 };

async fn undisturbed(job: Job, part_bytes: usize) -> BTreeMap<String, Bytes> {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let ledger = Ledger { part_bytes, ..ledger_on(Arc::clone(&store)) };
    job.run(&ledger, 0).await.unwrap();
    check_sound(&ledger, job).await;
    contents(&store).await
}

/// Runs with a fault at every change in turn, then again without. Returns the number of changes of a whole run.
async fn check_every_change(job: Job, fault: Fault, part_bytes: usize) -> u64 {
    let expected = undisturbed(job, part_bytes).await;
    let mut standing = 0;
    for nth in 0.. {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let faulty = FaultStore::new(Arc::clone(&store), nth, fault);
        let ledger = Ledger { part_bytes, ..ledger_on(Arc::new(faulty.clone())) };
        let run = job.run(&ledger, 1).await;
        if !faulty.fired() {
            run.unwrap();
            assert_eq!(faulty.changes(), nth);
            return nth;
        }
        // A write whose answer was lost is known again by its bytes, and the run goes on.
        assert!(run.is_err() || fault == Fault::LoseAnswer, "{fault:?} at change {nth} was not noticed");
        let ledger = Ledger { part_bytes, ..ledger_on(Arc::clone(&store)) };
        let now = standing_rows(&ledger).await;
        // Of runs that stopped: one that a retry mended has committed everything.
        if run.is_err() {
            assert!(now >= standing, "{fault:?} at change {nth} lost committed rows: {standing}, then {now}");
            standing = now;
        }
        job.run(&ledger, 2).await.unwrap_or_else(|error| panic!("{fault:?} at change {nth}: {error}"));
        check_sound(&ledger, job).await;
        assert_same(&contents(&store).await, &expected, &format!("{fault:?} at change {nth}"));
    }
    unreachable!("a run ends")
}

/// Rows whose chunk or shard stands, with a check that what the entries name is there, byte for byte.
async fn standing_rows(ledger: &Ledger) -> u64 {
    let passes = ledger.retries().await.unwrap();
    let ledgers = passes.iter().map(|pass| ledger.of_retry(pass)).chain([ledger.clone()]);
    let mut rows = 0;
    let mut files = Vec::new();
    for (number, ledger) in ledgers.enumerate() {
        let state = ledger.state().await.unwrap();
        // A finished pass has no need of the rows that failed in it, and an unfinished one may have changed `failed/`.
        let settled = number == passes.len() && passes.is_empty();
        for entry in state.shards.into_values() {
            rows += entry.counts.inputs;
            files.extend(entry.files.into_iter().filter(|(dataset, _)| settled || dataset != "failed"));
        }
        for entry in state.chunks.into_values() {
            rows += entry.counts.inputs;
            files.extend(entry.files);
        }
    }
    for (_, file) in files {
        assert_eq!(crate::sink::digest_of(&ledger.output, &file.name).await.unwrap(), file.sha256, "{}", file.name);
    }
    rows
}

fn assert_same(now: &BTreeMap<String, Bytes>, expected: &BTreeMap<String, Bytes>, what: &str) {
    let names = |contents: &BTreeMap<String, Bytes>| contents.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(now), names(expected), "{what}");
    for (name, bytes) in now {
        assert!(*bytes == expected[name], "{what}: {name} differs");
    }
}

#[tokio::test]
async fn a_kill_before_any_change_loses_nothing() {
    let changes = check_every_change(RETRIED, Fault::KillBefore, PART_BYTES).await;
    assert!(changes > 80, "only {changes} changes");
}

#[tokio::test]
async fn a_kill_after_any_change_loses_nothing() {
    check_every_change(RETRIED, Fault::KillAfter, PART_BYTES).await;
}

#[tokio::test]
async fn a_refused_change_stops_the_run_and_loses_nothing() {
    check_every_change(RETRIED, Fault::Refuse, PART_BYTES).await;
}

#[tokio::test]
async fn a_lost_answer_doubles_nothing() {
    check_every_change(RETRIED, Fault::LoseAnswer, PART_BYTES).await;
}

#[tokio::test]
async fn files_in_many_parts_are_as_safe() {
    let small = check_every_change(SMALL, Fault::KillBefore, PART_BYTES).await;
    let parts = check_every_change(SMALL, Fault::KillBefore, 300).await;
    assert!(parts > small, "no file was written in parts");
    check_every_change(SMALL, Fault::KillAfter, 300).await;
    assert_same(&undisturbed(SMALL, 300).await, &undisturbed(SMALL, PART_BYTES).await, "in parts");
}

#[tokio::test]
async fn passing_errors_are_survived_within_one_run() {
    let expected = undisturbed(SMALL, PART_BYTES).await;
    for fault in [Fault::Refuse, Fault::LoseAnswer] {
        for nth in 0.. {
            let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
            let faulty = FaultStore::new(Arc::clone(&store), nth, fault);
            let mut ledger = ledger_on(Arc::new(faulty.clone()));
            let budget = RetryBudget { pause_first: std::time::Duration::from_micros(1), ..RetryBudget::default() };
            ledger.output = ledger.output.with_budget(budget);
            SMALL.run(&ledger, 1).await.unwrap_or_else(|error| panic!("{fault:?} at change {nth}: {error}"));
            if !faulty.fired() {
                break;
            }
            assert_same(&contents(&store).await, &expected, &format!("{fault:?} at change {nth}"));
        }
    }
}

#[tokio::test]
async fn a_folder_is_as_safe_as_a_store() {
    let expected = undisturbed(SMALL, PART_BYTES).await;
    for fault in [Fault::KillBefore, Fault::KillAfter] {
        for nth in 0.. {
            let folder = tempfile::tempdir().unwrap();
            let store: Arc<dyn ObjectStore> = Arc::new(LocalFileSystem::new_with_prefix(folder.path()).unwrap());
            let output =
                OutputStore::create(&Location::parse(folder.path()).unwrap(), &crate::Stores::default()).unwrap();
            let faulty = FaultStore::new(Arc::clone(&store), nth, fault);
            let output = output.with_budget(RetryBudget::ONCE).map_store(|_| Arc::new(faulty.clone()));
            let run = SMALL.run(&Ledger { output, ..ledger_on(Arc::clone(&store)) }, 1).await;
            if !faulty.fired() {
                run.unwrap();
                break;
            }
            run.unwrap_err();
            // What a kill in the middle of a local write leaves behind.
            std::fs::create_dir_all(folder.path().join("captions")).unwrap();
            std::fs::write(folder.path().join("captions/part-00000.parquet#1"), "half").unwrap();
            let output =
                OutputStore::create(&Location::parse(folder.path()).unwrap(), &crate::Stores::default()).unwrap();
            SMALL.run(&Ledger { output, ..ledger_on(Arc::clone(&store)) }, 2).await.unwrap();
            assert!(!folder.path().join("captions/part-00000.parquet#1").exists());
            assert_same(&contents(&store).await, &expected, &format!("{fault:?} at change {nth}"));
        }
    }
}

#[tokio::test]
async fn a_bucket_is_as_safe_as_a_store() {
    let expected = undisturbed(RETRIED, PART_BYTES).await;
    let faults = [(2, Fault::KillBefore), (9, Fault::KillAfter), (16, Fault::LoseAnswer), (23, Fault::Refuse)];
    for (nth, fault) in faults {
        let server = S3Server::start().await;
        let stores = crate::Stores::new(crate::StoreOptions::parse(server.options()).unwrap());
        let (store, _) = stores.resolve(crate::Location::parse("s3://bucket").unwrap().url()).unwrap();
        let faulty = FaultStore::new(Arc::clone(&store), nth, fault);
        let run = RETRIED.run(&ledger_on(Arc::new(faulty.clone())), 1).await;
        assert!(faulty.fired() && (run.is_err() || fault == Fault::LoseAnswer), "{fault:?} at change {nth}");
        let ledger = ledger_on(Arc::clone(&store));
        RETRIED.run(&ledger, 2).await.unwrap_or_else(|error| panic!("{fault:?} at change {nth}: {error}"));
        check_sound(&ledger, RETRIED).await;
        assert_same(&contents(&store).await, &expected, &format!("{fault:?} at change {nth}"));
    }
}

fn any_fault() -> impl Strategy<Value = Fault> {
    prop_oneof![Just(Fault::KillBefore), Just(Fault::KillAfter), Just(Fault::Refuse), Just(Fault::LoseAnswer)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    /// Any job, killed any number of times at any changes, ends in the content of an undisturbed run; and the final
    /// files do not depend on chunks, only on shards.
    #[test]
    fn any_sequence_of_faults_ends_well(
        rows in (0_u64..40, 0_u64..20),
        chunk_rows in 1_u32..8,
        shard_chunks in 1_u32..5,
        retries in 0_u32..3,
        faults in proptest::collection::vec((0_u64..80, any_fault()), 0..6),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let job = Job { rows: [rows.0, rows.1], chunk_rows, shard_chunks, retries };
            let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
            let mut run = 0;
            for (nth, fault) in faults {
                run += 1;
                let faulty = FaultStore::new(Arc::clone(&store), nth, fault);
                let answer = job.run(&ledger_on(Arc::new(faulty.clone())), run).await;
                prop_assert!(answer.is_ok() || faulty.fired());
                // An object that is there already with the same bytes need not be written: a refusal does no harm then.
                let harmless = matches!(fault, Fault::LoseAnswer | Fault::Refuse);
                prop_assert!(answer.is_err() || !faulty.fired() || harmless);
            }
            let ledger = ledger_on(Arc::clone(&store));
            job.run(&ledger, 0).await.unwrap();
            check_sound(&ledger, job).await;
            assert_same(&contents(&store).await, &undisturbed(job, PART_BYTES).await, "after faults");

            let whole = Job { chunk_rows: chunk_rows * shard_chunks, shard_chunks: 1, ..job };
            let final_files = |contents: BTreeMap<String, Bytes>| {
                contents.into_iter().filter(|(name, _)| !name.starts_with("_slicemill")).collect::<BTreeMap<_, _>>()
            };
            let (now, other) = (contents(&store).await, undisturbed(whole, PART_BYTES).await);
            assert_same(&final_files(now), &final_files(other), "other chunks");
            Ok(())
        })?;
    }
}
