//! What the ledger accepts and refuses.

use super::*;

async fn begun(job: Job) -> (Arc<dyn ObjectStore>, Ledger, Generation) {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let ledger = ledger_on(Arc::clone(&store));
    let inputs = futures::stream::iter(job.inputs(0).into_iter().map(Ok)).boxed();
    let generation = ledger.freeze(inputs, job.chunk_rows, job.shard_chunks).await.unwrap();
    (store, ledger, generation)
}

async fn staged(ledger: &Ledger, generation: &Generation, chunk: (u32, u32), run: u32) -> StagedChunk {
    let inputs = ledger.inputs(generation).await.unwrap();
    stage(ledger, &inputs, generation, chunk, 0, run).await.unwrap()
}

#[test]
fn generations_divide_their_rows() {
    for (rows, chunk_rows, shard_chunks) in [(0, 4, 2), (1, 4, 2), (8, 4, 2), (9, 4, 2), (23, 4, 2), (23, 100, 3)] {
        let generation =
            Generation { number: 1, rows, digest: String::new(), chunk_rows, shard_chunks, shard_first: 5, file: None };
        let mut next = 0;
        for shard in generation.shards() {
            assert_eq!(generation.shard_rows(shard).start, next);
            for chunk in 0..generation.chunks(shard) {
                let range = generation.chunk_range(shard, chunk);
                assert_eq!(range.start, next);
                assert!(range.end - range.start <= u64::from(chunk_rows) && range.end > range.start);
                next = range.end;
            }
            assert_eq!(generation.shard_rows(shard).end, next);
        }
        assert_eq!(next, rows);
        let end = generation.shards().end;
        assert_eq!((generation.chunks(end), generation.chunks(4), generation.shard_rows(end)), (0, 0, 0..0));
    }
}

#[tokio::test]
async fn names_of_the_output_are_as_documented() {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let ledger = ledger_on(Arc::clone(&store));
    let job = Job { rows: [9, 5], chunk_rows: 4, shard_chunks: 2, retries: 1 };
    job.run(&ledger, 0).await.unwrap();
    let names = contents(&store).await.into_keys().collect::<Vec<_>>().join("\n");
    insta::assert_snapshot!(names);
    insta::assert_snapshot!(String::from_utf8(ledger.output.get(SUCCESS).await.unwrap().to_vec()).unwrap());
}

#[tokio::test]
async fn rows_keep_their_order_and_counts_their_sums() {
    let (_, ledger, _) = begun(JOB).await;
    let success = JOB.run(&ledger, 0).await.unwrap();
    assert_eq!((success.generations, success.retries, success.shards), (1, 0, 3));
    let counts = &success.counts;
    assert_eq!((counts.inputs, counts.ok, counts.failed, counts.skipped), (23, 13, 8, 2));
    assert_eq!((counts.slices, counts.visual_tokens, counts.output_tokens), (26, 13 * 24, 65));
    assert_eq!(counts.flops.vision, 13 * u128::from(u64::MAX));
    let batches = DatasetReader::new(ledger.output.clone(), Dataset::Captions).stream();
    let batches = batches.try_collect::<Vec<_>>().await.unwrap();
    let keys: Vec<_> = batches.iter().flat_map(|batch| content_rows(batch).unwrap()).map(|row| row.key).collect();
    assert!(keys.is_sorted());
    assert_eq!(Ledger::success(&ledger.output).await.unwrap(), Some(success.clone()));
    assert_eq!(JOB.run(&ledger, 1).await.unwrap(), success);
}

#[tokio::test]
async fn a_chunk_committed_twice_stands_once() {
    let (_, ledger, generation) = begun(JOB).await;
    let first = ledger.commit_chunk(staged(&ledger, &generation, (0, 0), 1).await).await.unwrap();
    // The same content with other timings: the first entry stands.
    let second = ledger.commit_chunk(staged(&ledger, &generation, (0, 0), 2).await).await.unwrap();
    assert_eq!(first, second);
    assert_eq!(ledger.committed_chunks(0).await.unwrap(), BTreeMap::from([(0, first.clone())]));

    let mut other = ledger.stager(0, 0);
    for input in job_rows(4) {
        other.push(outcome(&InputEntry { bytes: 3, ..input }, 0, 1)).unwrap();
    }
    let error = ledger.commit_chunk(other.finish().unwrap()).await.unwrap_err();
    assert_eq!((error.kind, error.fate), (IoErrorKind::Conflict, slicemill_core::Fate::Fatal));
    assert!(error.message.contains("ledger/00000/00000.json"), "{}", error.message);
    assert_eq!(ledger.committed_chunks(0).await.unwrap()[&0], first);
}

fn job_rows(rows: u64) -> Vec<InputEntry> {
    (0..rows).map(entry).collect()
}

#[tokio::test]
async fn nothing_is_finished_before_its_parts() {
    let (_, ledger, generation) = begun(JOB).await;
    ledger.commit_chunk(staged(&ledger, &generation, (0, 1), 1).await).await.unwrap();
    let error = ledger.finish_shard(0, generation.chunks(0)).await.unwrap_err();
    assert!(error.message.contains("chunk 0 of shard 0"), "{}", error.message);
    assert!(ledger.commit().await.unwrap_err().message.contains("shard 0"));
    assert!(!ledger.output.exists("_SUCCESS").await.unwrap());
    let entries = futures::stream::iter([Ok(entry(1))]).boxed();
    assert!(ledger.begin_retry(entries, 4, 2).await.unwrap_err().message.contains("shard 0"));
}

#[tokio::test]
async fn final_files_with_other_content_are_not_replaced() {
    for part_bytes in [PART_BYTES, 100] {
        let (_, ledger, generation) = begun(JOB).await;
        let ledger = Ledger { part_bytes, ..ledger };
        ledger.output.put("captions/part-00000.parquet", "mine".into()).await.unwrap();
        for chunk in 0..2 {
            ledger.commit_chunk(staged(&ledger, &generation, (0, chunk), 1).await).await.unwrap();
        }
        let error = ledger.finish_shard(0, 2).await.unwrap_err();
        assert_eq!(error.kind, IoErrorKind::Conflict);
        assert!(error.message.contains("captions/part-00000.parquet"), "{}", error.message);
        assert_eq!(ledger.output.get("captions/part-00000.parquet").await.unwrap(), "mine");
    }
}

#[tokio::test]
async fn another_job_is_refused() {
    let (_, ledger, _) = begun(JOB).await;
    ledger.write_job("{1}".into()).await.unwrap();
    ledger.write_job("{1}".into()).await.unwrap();
    assert_eq!(ledger.write_job("{2}".into()).await.unwrap_err().kind, IoErrorKind::Conflict);
    assert_eq!(Ledger::read_job(&ledger.output).await.unwrap().unwrap(), "{1}");
    assert_eq!(Ledger::read_job(&ledger_on(Arc::new(InMemory::new())).output).await.unwrap(), None);
}

#[tokio::test]
async fn a_damaged_staged_file_is_found() {
    let (_, ledger, generation) = begun(JOB).await;
    for chunk in 0..2 {
        ledger.commit_chunk(staged(&ledger, &generation, (0, chunk), 1).await).await.unwrap();
    }
    let file = ledger.committed_chunks(0).await.unwrap()[&1].files["captions"].clone();
    let mut bytes = ledger.output.get(&file.name).await.unwrap().to_vec();
    bytes[100] ^= 1;
    ledger.output.put(&file.name, bytes.into()).await.unwrap();
    let error = ledger.finish_shard(0, 2).await.unwrap_err();
    assert_eq!(error.kind, IoErrorKind::Corrupt);
    assert!(error.message.contains(&file.name), "{}", error.message);
}

#[tokio::test]
async fn what_a_power_loss_cut_short_is_done_again() {
    let expected = {
        let (store, ledger, _) = begun(JOB).await;
        JOB.run(&ledger, 0).await.unwrap();
        contents(&store).await
    };
    for victim in ["chunk entry", "staged file", "lost staged file", "shard entry"] {
        let (store, ledger, generation) = begun(JOB).await;
        for chunk in 0..2 {
            ledger.commit_chunk(staged(&ledger, &generation, (0, chunk), 1).await).await.unwrap();
        }
        let file = ledger.committed_chunks(0).await.unwrap()[&1].files["captions"].name.clone();
        match victim {
            "chunk entry" => ledger.output.put(&ledger.layout.chunk_entry(0, 1), "".into()).await.unwrap(),
            "staged file" => ledger.output.put(&file, "PA".into()).await.unwrap(),
            "lost staged file" => ledger.output.delete(&file).await.unwrap(),
            _ => {
                ledger.finish_shard(0, 2).await.unwrap();
                ledger.output.put(&ledger.layout.shard_entry(0), "{\"shard\"".into()).await.unwrap();
            }
        }
        JOB.run(&ledger, 2).await.unwrap_or_else(|error| panic!("{victim}: {error}"));
        check_sound(&ledger, JOB).await;
        assert!(contents(&store).await == expected, "{victim}");
    }
}

#[tokio::test]
async fn two_processes_by_mistake_do_no_harm() {
    let expected = {
        let (store, ledger, _) = begun(JOB).await;
        JOB.run(&ledger, 0).await.unwrap();
        contents(&store).await
    };
    let (store, ledger, _) = begun(JOB).await;
    let other = ledger_on(Arc::clone(&store));
    // One of them may stop because the other cleared what it was reading.
    let (first, second) = tokio::join!(JOB.run(&ledger, 1), JOB.run(&other, 2));
    assert!(first.is_ok() || second.is_ok());
    JOB.run(&ledger, 3).await.unwrap();
    check_sound(&ledger, JOB).await;
    assert!(contents(&store).await == expected);
}

#[tokio::test]
async fn a_generation_is_added_behind_the_last() {
    let (store, ledger, first) = begun(JOB).await;
    JOB.run(&ledger, 0).await.unwrap();
    let before = contents(&store).await;
    let extended = Job { rows: [23, 9], ..JOB };
    let second = futures::stream::iter(extended.inputs(1).into_iter().map(Ok)).boxed();
    let second = ledger.freeze(second, 3, 1).await.unwrap();
    assert!(!ledger.output.exists("_SUCCESS").await.unwrap());
    assert_eq!((second.number, second.shards()), (1, first.shards().end..first.shards().end + 3));
    extended.run(&ledger, 1).await.unwrap();
    check_sound(&ledger, extended).await;
    let after = contents(&store).await;
    assert!(before.iter().all(|(name, bytes)| name == "_SUCCESS" || after[name] == *bytes));
    let keys = ledger.inputs(&second).await.unwrap().read(0..9).await.unwrap();
    assert_eq!(keys[0], entry(23));
}

#[tokio::test]
async fn a_retry_moves_the_rows_it_resolves() {
    let job = Job { retries: 1, ..JOB };
    let (_, ledger, _) = begun(JOB).await;
    let before = JOB.run(&ledger, 0).await.unwrap().counts;
    let after = job.run(&ledger, 1).await.unwrap();
    check_sound(&ledger, job).await;
    assert_eq!(after.retries, 1);
    // 1, 4, 7, … 22 failed; of these 4 and 16 succeed. None of them is skipped.
    assert_eq!((before.failed, after.counts.failed, after.counts.ok), (8, 6, before.ok + 2));
    let failed = read_failed(&ledger).await.unwrap();
    assert!(failed.iter().all(|row| row.attempts == 2 && row.error.message == "pass 1"));
    let keys: Vec<_> = failed.iter().map(|row| row.key.as_str()).collect();
    assert_eq!(keys, ["00001.jpg", "00007.jpg", "00010.jpg", "00013.jpg", "00019.jpg", "00022.jpg"]);

    let again = Job { retries: 2, ..JOB };
    again.run(&ledger, 2).await.unwrap();
    check_sound(&ledger, again).await;
    assert_eq!(read_failed(&ledger).await.unwrap().len(), 1);
}

#[tokio::test]
async fn rows_that_are_not_retried_stay() {
    let (_, ledger, _) = begun(JOB).await;
    JOB.run(&ledger, 0).await.unwrap();
    let entries = futures::stream::iter([Ok(entry(4)), Ok(entry(7))]).boxed();
    let pass = ledger.begin_retry(entries, 4, 2).await.unwrap().unwrap();
    assert!(Ledger::success(&ledger.output).await.unwrap().is_none());
    let more = futures::stream::iter([Ok(entry(40))]).boxed();
    assert!(ledger.freeze(more, 4, 2).await.unwrap_err().message.contains("retry pass 1"));
    assert!(ledger.finish_retry(&pass).await.unwrap_err().message.contains("shard 0 of retry pass 1"));
    assert!(ledger.commit().await.unwrap_err().message.contains("retry pass 1"));

    work(&ledger.of_retry(&pass), &pass.generation, 1, 1).await.unwrap();
    ledger.finish_retry(&pass).await.unwrap();
    ledger.finish_retry(&pass).await.unwrap();
    let counts = ledger.commit().await.unwrap().counts;
    check_sound(&ledger, JOB).await;
    assert_eq!((counts.ok, counts.failed), (14, 7));
    let failed = read_failed(&ledger).await.unwrap();
    let attempts: Vec<_> = failed.iter().map(|row| (row.key.as_str(), row.attempts)).collect();
    assert_eq!(attempts[..3], [("00001.jpg", 1), ("00007.jpg", 2), ("00010.jpg", 1)]);
}

#[tokio::test]
async fn only_failed_rows_can_be_retried() {
    let (_, ledger, _) = begun(JOB).await;
    JOB.run(&ledger, 0).await.unwrap();
    let none = futures::stream::iter([]).boxed();
    assert_eq!(ledger.begin_retry(none, 4, 2).await.unwrap(), None);
    assert!(Ledger::success(&ledger.output).await.unwrap().is_some());

    for wrong in [vec![entry(4), entry(0)], vec![entry(4), entry(7), entry(4)], vec![entry(4000)]] {
        let key = wrong[wrong.len() - 1].key.clone();
        let entries = futures::stream::iter(wrong.into_iter().map(Ok)).boxed();
        let error = ledger.begin_retry(entries, 4, 2).await.unwrap_err();
        assert!(error.message.contains(&key), "{}", error.message);
    }
    assert!(ledger.retries().await.unwrap().is_empty());
    assert!(Ledger::success(&ledger.output).await.unwrap().is_some());
}
