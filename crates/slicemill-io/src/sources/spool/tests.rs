//! Tests of `spool`.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

const MIB: u64 = 1 << 20;

fn key(name: &str) -> SegmentKey {
    SegmentKey { url: format!("file:///{name}"), tag: "1".to_owned(), part: 0 }
}

fn filled(byte: u8, bytes: u64) -> impl FnOnce(&mut SpoolWriter) -> Result<SegmentIndex, IoError> + Send + 'static {
    move |writer| {
        for _ in 0..bytes / 1024 {
            writer.append(&[byte; 1024])?;
        }
        writer.append(&vec![byte; usize::try_from(bytes % 1024).unwrap()])?;
        Ok(vec![(0, writer.position())])
    }
}

#[tokio::test]
async fn what_is_written_is_read_back_and_leaves_no_name() {
    let folder = tempfile::tempdir().unwrap();
    let spool = Spool::new(folder.path().join("new"), 16 * MIB);
    let fill = |writer: &mut SpoolWriter| {
        writer.append(b"hello ")?;
        let at = writer.position();
        writer.append(b"world")?;
        Ok(vec![(at, 5)])
    };
    let segment = spool.get_or_fill(key("a"), fill).await.unwrap();
    assert_eq!((segment.bytes(), segment.index()), (11, &[(6, 5)][..]));
    assert_eq!(segment.read(6, 5).await.unwrap(), "world");
    assert_eq!(segment.read(11, 0).await.unwrap(), "");
    assert_eq!(segment.read(10, 2).await.unwrap_err().kind, IoErrorKind::Corrupt);
    assert_eq!(segment.read(u64::MAX, 2).await.unwrap_err().kind, IoErrorKind::Corrupt);
    assert_eq!(spool.bytes(), 11);
    if cfg!(unix) {
        assert_eq!(std::fs::read_dir(folder.path().join("new")).unwrap().count(), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_of_many_callers_fills() {
    let folder = tempfile::tempdir().unwrap();
    let spool = Spool::new(folder.path(), 16 * MIB);
    let fills = Arc::new(AtomicUsize::new(0));
    let calls = (0..32).map(|_| {
        let (spool, fills) = (spool.clone(), Arc::clone(&fills));
        async move {
            let fill = move |writer: &mut SpoolWriter| {
                fills.fetch_add(1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(20));
                writer.append(b"once")?;
                Ok(Vec::new())
            };
            spool.get_or_fill(key("a"), fill).await.unwrap().read(0, 4).await.unwrap()
        }
    });
    let answers = futures::future::join_all(calls).await;
    assert!(answers.iter().all(|answer| answer == "once"));
    assert_eq!(fills.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_fill_that_failed_is_tried_again_and_gives_its_room_back() {
    let folder = tempfile::tempdir().unwrap();
    let spool = Spool::new(folder.path(), 16 * MIB);
    let broken = |writer: &mut SpoolWriter| {
        writer.append(&[0; 4096])?;
        Err(IoError::fatal(IoErrorKind::Failed, "broken"))
    };
    assert_eq!(spool.get_or_fill(key("a"), broken).await.unwrap_err().message, "broken");
    assert_eq!(spool.bytes(), 0);
    let panicking = |_: &mut SpoolWriter| -> Result<SegmentIndex, IoError> { panic!("on purpose") };
    assert_eq!(spool.get_or_fill(key("a"), panicking).await.unwrap_err().kind, IoErrorKind::Failed);
    assert_eq!(spool.get_or_fill(key("a"), filled(1, 10)).await.unwrap().bytes(), 10);
}

#[tokio::test]
async fn what_was_not_used_for_longest_makes_room() {
    let folder = tempfile::tempdir().unwrap();
    let spool = Spool::new(folder.path(), 10 * MIB);
    for name in ["a", "b", "c"] {
        spool.get_or_fill(key(name), filled(1, 3 * MIB)).await.unwrap();
    }
    let again = |_: &mut SpoolWriter| -> Result<SegmentIndex, IoError> { panic!("it is there") };
    spool.get_or_fill(key("a"), again).await.unwrap();
    spool.get_or_fill(key("d"), filled(1, 3 * MIB)).await.unwrap();
    spool.get_or_fill(key("a"), again).await.unwrap();
    spool.get_or_fill(key("c"), again).await.unwrap();
    assert_eq!(spool.bytes(), 9 * MIB);
    assert_eq!(spool.get_or_fill(key("b"), filled(2, 1)).await.unwrap().read(0, 1).await.unwrap(), [2][..]);
}

#[tokio::test]
async fn segments_that_are_read_are_not_taken_away() {
    let folder = tempfile::tempdir().unwrap();
    let spool = Spool::with_patience(folder.path().to_owned(), 8 * MIB, Duration::from_millis(100));
    let held = spool.get_or_fill(key("a"), filled(7, 4 * MIB)).await.unwrap();
    let more = spool.get_or_fill(key("b"), filled(8, 4 * MIB)).await.unwrap();
    let error = spool.get_or_fill(key("c"), filled(9, MIB)).await.unwrap_err();
    assert_eq!(error.kind, IoErrorKind::Refused);
    assert!(error.message.contains("no room"), "{error}");
    drop(more);
    spool.get_or_fill(key("c"), filled(9, MIB)).await.unwrap();
    assert_eq!(held.read(4 * MIB - 1, 1).await.unwrap(), [7][..]);
    assert_eq!(spool.bytes(), 5 * MIB);
}

#[tokio::test]
async fn a_segment_larger_than_half_the_room_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let spool = Spool::new(folder.path(), 6 * MIB);
    assert_eq!(spool.get_or_fill(key("a"), filled(1, 3 * MIB)).await.unwrap().bytes(), 3 * MIB);
    let signed = SegmentKey { url: "https://host/b?signature=secret".to_owned(), ..key("b") };
    let error = spool.get_or_fill(signed, filled(1, 3 * MIB + 1)).await.unwrap_err();
    assert_eq!(error.kind, IoErrorKind::TooLarge);
    assert!(
        error.message.contains("https://host/b")
            && !error.message.contains("secret")
            && error.message.contains("more room"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_fills_at_once_all_end_within_the_room() {
    let folder = tempfile::tempdir().unwrap();
    let spool = Spool::with_patience(folder.path().to_owned(), 8 * MIB, Duration::from_secs(60));
    let most = Arc::new(Mutex::new(0));
    let fills = (0..12_u8).map(|n| {
        let (spool, most, inner) = (spool.clone(), Arc::clone(&most), spool.clone());
        async move {
            let fill = move |writer: &mut SpoolWriter| {
                for _ in 0..30 {
                    writer.append(&vec![n; 128 * 1024])?;
                    let used = inner.bytes();
                    let mut most = most.lock().unwrap();
                    *most = used.max(*most);
                }
                Ok(Vec::new())
            };
            let segment = spool.get_or_fill(key(&n.to_string()), fill).await.unwrap();
            assert_eq!(segment.read(segment.bytes() - 1, 1).await.unwrap(), [n][..]);
        }
    });
    futures::future::join_all(fills).await;
    assert!(*most.lock().unwrap() <= 8 * MIB);
}

#[tokio::test]
async fn a_folder_that_cannot_be_written_is_named() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), "").unwrap();
    let spool = Spool::new(folder.path().join("file"), MIB);
    let error = spool.get_or_fill(key("a"), filled(1, 1)).await.unwrap_err();
    assert_eq!(error.kind, IoErrorKind::Refused);
    assert!(error.message.contains("another folder"), "{error}");
}
