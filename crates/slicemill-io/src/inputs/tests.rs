//! Tests of `inputs`.

use object_store::memory::InMemory;
use proptest::prelude::*;

use super::*;

fn output() -> OutputStore {
    OutputStore::with_store(Arc::new(InMemory::new()), "memory:")
}

fn entry(number: u64) -> InputEntry {
    let key = format!("{number:08}.jpg");
    InputEntry::object(key.clone(), format!("file:///photos/{key}"), number * 3, format!("{number}.000000001"))
}

fn entries(numbers: impl IntoIterator<Item = u64>) -> Vec<InputEntry> {
    numbers.into_iter().map(entry).collect()
}

fn listing(entries: &[InputEntry]) -> Listing {
    futures::stream::iter(entries.iter().cloned().map(Ok).collect::<Vec<_>>()).boxed()
}

async fn frozen(output: &OutputStore, name: &str, entries: &[InputEntry], chunk_rows: u32) -> FrozenInputs {
    FrozenInputs::write(output, name, listing(entries), chunk_rows).await.unwrap()
}

#[tokio::test]
async fn row_ranges_come_back_from_any_place() {
    let all = entries(0..20_000);
    for chunk_rows in [1, 100, 4096, 5000, 30_000] {
        let output = output();
        let written = frozen(&output, "inputs.parquet", &all, chunk_rows).await;
        let inputs = FrozenInputs::open(&output, "inputs.parquet").await.unwrap();
        assert_eq!((inputs.rows(), inputs.digest()), (20_000, written.digest()));
        for range in [0..1, 0..0, 8190..8194, 8192..8193, 4999..15_001, 19_999..20_000, 19_990..30_000, 0..20_000] {
            let read = inputs.read(range.clone()).await.unwrap();
            let end = usize::try_from(range.end).unwrap().min(all.len());
            assert_eq!(read, all[usize::try_from(range.start).unwrap()..end], "{chunk_rows} {range:?}");
        }
        assert_eq!(inputs.stream().try_collect::<Vec<_>>().await.unwrap(), all);
    }
}

#[tokio::test]
async fn row_groups_are_whole_chunks() {
    let all = entries(0..20_000);
    for (chunk_rows, group_rows) in [(1, 8192), (100, 8100), (5000, 5000), (30_000, 20_000)] {
        let inputs = frozen(&output(), "inputs.parquet", &all, chunk_rows).await;
        assert_eq!(inputs.group_rows, group_rows, "{chunk_rows}");
    }
}

#[tokio::test]
async fn the_digest_is_that_of_the_listing() {
    let all = entries(0..100);
    let output = output();
    let inputs = frozen(&output, "inputs.parquet", &all, 10).await;
    assert_eq!(digest_inputs(listing(&all)).await.unwrap(), (100, inputs.digest().to_owned()));
    let mut other = all.clone();
    other[50].tag.push('0');
    assert_ne!(digest_inputs(listing(&other)).await.unwrap().1, inputs.digest());
    // Moving a letter from one text to the next is another list.
    let (mut one, mut two) = (entry(1), entry(1));
    (one.key, one.url) = ("ab".to_owned(), "c".to_owned());
    (two.key, two.url) = ("a".to_owned(), "bc".to_owned());
    assert_ne!(digest_inputs(listing(&[one])).await.unwrap(), digest_inputs(listing(&[two])).await.unwrap());
}

#[tokio::test]
async fn an_empty_list_is_a_list() {
    let output = output();
    let inputs = frozen(&output, "inputs.parquet", &[], 10).await;
    assert_eq!(inputs.rows(), 0);
    assert!(inputs.read(0..10).await.unwrap().is_empty());
    assert!(inputs.stream().try_collect::<Vec<_>>().await.unwrap().is_empty());
    assert_eq!(inputs.digest(), InputsDigest::new().finish());
}

#[tokio::test]
async fn the_same_list_gives_the_same_bytes() {
    let all = entries(0..9000);
    let output = output();
    frozen(&output, "one.parquet", &all, 64).await;
    frozen(&output, "two.parquet", &all, 64).await;
    assert_eq!(output.get("one.parquet").await.unwrap(), output.get("two.parquet").await.unwrap());
}

#[tokio::test]
async fn a_broken_listing_is_not_frozen() {
    let output = output();
    let broken = IoError::fatal(IoErrorKind::Refused, "cannot list");
    let entries = futures::stream::iter([Ok(entry(1)), Err(broken)]).boxed();
    assert_eq!(FrozenInputs::write(&output, "inputs.parquet", entries, 10).await.unwrap_err().message, "cannot list");
    assert!(!output.exists("inputs.parquet").await.unwrap());
}

#[tokio::test]
async fn other_files_are_not_taken_for_inputs() {
    let output = output();
    output.put("inputs.parquet", bytes::Bytes::from_static(b"PAR1 no PAR1")).await.unwrap();
    assert_eq!(FrozenInputs::open(&output, "inputs.parquet").await.unwrap_err().kind, IoErrorKind::Corrupt);
    assert_eq!(FrozenInputs::open(&output, "nothing.parquet").await.unwrap_err().kind, IoErrorKind::NotFound);
}

#[tokio::test]
async fn differences_are_counted_and_shown() {
    let output = output();
    let first = frozen(&output, "0.parquet", &entries((0..10).map(|n| n * 2)), 4).await;
    let second = frozen(&output, "1.parquet", &entries([1, 5]), 4).await;
    let generations = [first, second];
    let mut now = entries([0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 14, 16, 18]);
    now[4].bytes += 1;
    let change = compare_inputs(&generations, listing(&now)).await.unwrap();
    assert_eq!((change.unchanged, change.added, change.removed, change.changed), (10, 2, 1, 1));
    assert_eq!(
        change.to_string(),
        "10 unchanged; 2 added: 00000003.jpg, 00000007.jpg; 1 removed: 00000010.jpg; 1 changed: 00000004.jpg"
    );
    let added = added_inputs(&generations, listing(&now));
    assert_eq!(added.try_collect::<Vec<_>>().await.unwrap(), entries([3, 7]));
    let same = compare_inputs(&generations[..1], listing(&entries((0..10).map(|n| n * 2)))).await.unwrap();
    assert!(same.is_none() && same.unchanged == 10);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn comparing_agrees_with_sets(
        first in proptest::collection::btree_set(0_u64..30, 0..20),
        second in proptest::collection::btree_set(30_u64..60, 0..20),
        now in proptest::collection::btree_set(0_u64..60, 0..40),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let output = output();
            let frozen = [
                frozen(&output, "0.parquet", &entries(first.clone()), 3).await,
                frozen(&output, "1.parquet", &entries(second.clone()), 3).await,
            ];
            let known: std::collections::BTreeSet<u64> = first.union(&second).copied().collect();
            let change = compare_inputs(&frozen, listing(&entries(now.clone()))).await.unwrap();
            prop_assert_eq!(change.unchanged, now.intersection(&known).count() as u64);
            prop_assert_eq!(change.added, now.difference(&known).count() as u64);
            prop_assert_eq!(change.removed, known.difference(&now).count() as u64);
            let added = added_inputs(&frozen, listing(&entries(now.clone())));
            let added = added.try_collect::<Vec<_>>().await.unwrap();
            prop_assert_eq!(added, entries(now.difference(&known).copied()));
            Ok(())
        })?;
    }
}
