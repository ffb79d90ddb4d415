//! Tests of `fetch`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt as _;
use futures::stream::BoxStream;
use object_store::ObjectStore;
use slicemill_core::ErrorClass;

use super::*;
use crate::{FolderSource, Source as _};

fn quick() -> RetryBudget {
    RetryBudget { attempts_max: 5, pause_first: Duration::from_millis(1), ..RetryBudget::default() }
}

fn fetch() -> ObjectFetch {
    ObjectFetch::new(Stores::default(), quick())
}

async fn list(path: &std::path::Path) -> Vec<InputEntry> {
    FolderSource::new([path]).unwrap().list().try_collect().await.unwrap()
}

#[tokio::test]
async fn every_name_a_file_can_have_is_listed_and_read() {
    let folder = tempfile::tempdir().unwrap();
    let names: [&[u8]; 9] = [
        "a b%20c#?é.jpg".as_bytes(),
        b"IMG#12",
        b"line\nbreak.jpg",
        b"caf\xe9.jpg",
        b"back\\slash.jpg",
        b"%2e%2e",
        "日本語.png".as_bytes(),
        b"-rf",
        b"plain.jpg",
    ];
    for name in names {
        std::fs::write(folder.path().join(OsStr::from_bytes(name)), name).unwrap();
    }
    let entries = list(folder.path()).await;
    assert_eq!(entries.len(), names.len());
    let mut contents = Vec::new();
    for entry in &entries {
        let bytes = fetch().read(entry).await.unwrap();
        if entry.key != "caf%E9.jpg" {
            assert_eq!(bytes, entry.key.as_bytes(), "{entry:?}");
        }
        assert_eq!(fetch().read_prefix(entry, 3).await.unwrap(), bytes.slice(..3));
        assert_eq!(fetch().describe(&entry.key, &entry.url).await.unwrap(), *entry);
        contents.push(bytes.to_vec());
    }
    contents.sort();
    let mut expected = names.map(<[u8]>::to_vec);
    expected.sort();
    assert_eq!(contents, expected);
}

#[tokio::test]
async fn prefixes_end_with_the_object() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("empty"), "").unwrap();
    std::fs::write(folder.path().join("short"), "abc").unwrap();
    let entries = list(folder.path()).await;
    for (entry, content) in entries.iter().zip(["", "abc"]) {
        assert_eq!(fetch().read(entry).await.unwrap(), content);
        for bytes in [0, 1, 2, 3, 4, 1 << 40] {
            let expected = &content[..content.len().min(usize::try_from(bytes).unwrap())];
            assert_eq!(fetch().read_prefix(entry, bytes).await.unwrap(), expected, "{entry:?} {bytes}");
            let unknown = InputEntry { bytes: 0, tag: String::new(), ..entry.clone() };
            assert_eq!(fetch().read_prefix(&unknown, bytes).await.unwrap(), expected, "{entry:?} {bytes}");
        }
    }
}

async fn check_failure(entry: &InputEntry, class: ErrorClass) {
    for error in [fetch().read(entry).await.unwrap_err(), fetch().read_prefix(entry, 1).await.unwrap_err()] {
        assert_eq!((error.fate, error.row_error().class), (Fate::Row, class), "{error:?}");
        assert!(error.message.contains(&entry.url), "{}", error.message);
        assert_eq!(error.attempts, 1);
    }
}

#[tokio::test]
async fn objects_that_changed_are_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.jpg");
    std::fs::write(&path, "abc").unwrap();
    let entry = list(&path).await.remove(0);

    std::fs::write(&path, "abcd").unwrap();
    check_failure(&entry, ErrorClass::SourceChanged).await;

    std::fs::write(&path, "xyz").unwrap();
    let later = std::time::UNIX_EPOCH + Duration::from_secs(2_000_000_000);
    std::fs::File::open(&path).unwrap().set_modified(later).unwrap();
    check_failure(&entry, ErrorClass::SourceChanged).await;

    std::fs::remove_file(&path).unwrap();
    check_failure(&entry, ErrorClass::NotFound).await;
}

#[tokio::test]
async fn what_is_no_file_fails_as_a_row() {
    let folder = tempfile::tempdir().unwrap();
    let url = |name: &str| Url::from_file_path(folder.path().join(name)).unwrap().to_string();
    std::fs::create_dir(folder.path().join("folder")).unwrap();
    let made = std::process::Command::new("mkfifo").arg(folder.path().join("pipe")).status().unwrap();
    assert!(made.success());
    for name in ["folder", "pipe", "nothing"] {
        let entry = InputEntry::object(name, url(name), 0, "");
        check_failure(&entry, ErrorClass::NotFound).await;
    }
    for url in ["not a url", "ftp://bucket/x.jpg"] {
        let entry = InputEntry::object("x", url, 0, "");
        check_failure(&entry, ErrorClass::ReadFailed).await;
    }
}

#[tokio::test]
async fn large_objects_have_a_beginning_only() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("video.mp4");
    std::fs::File::create(&path).unwrap().set_len(100 << 30).unwrap();
    let entry = list(&path).await.remove(0);
    let error = fetch().read(&entry).await.unwrap_err();
    assert_eq!(error.row_error().class, ErrorClass::ObjectTooLarge);
    assert_eq!(fetch().read_prefix(&entry, 4).await.unwrap(), [0; 4].as_slice());
    let small = fetch().with_bytes_max(2);
    std::fs::write(&path, "abc").unwrap();
    assert_eq!(small.read(&list(&path).await[0]).await.unwrap_err().kind, IoErrorKind::TooLarge);
}

/// Fails, or sends half, on the first `failures` reads.
#[derive(Debug)]
struct Flaky {
    failures: std::sync::atomic::AtomicU32,
    cut: bool,
}

impl std::fmt::Display for Flaky {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("flaky")
    }
}

#[async_trait::async_trait]
impl ObjectStore for Flaky {
    async fn get_opts(
        &self,
        path: &object_store::path::Path,
        options: GetOptions,
    ) -> object_store::Result<object_store::GetResult> {
        use std::sync::atomic::Ordering;
        let mut answer = crate::local_files::LocalFiles.get_opts(path, options).await?;
        let failing =
            self.failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        if failing && self.cut {
            let from = usize::try_from(answer.range.start).unwrap();
            let half = futures::stream::iter([Ok(Bytes::from_static(&b"abcd"[from..from + (4 - from) / 2]))]);
            answer.payload = object_store::GetResultPayload::Stream(Box::pin(half));
        } else if failing {
            return Err(object_store::Error::Generic { store: "flaky", source: "503 slow down".into() });
        }
        Ok(answer)
    }
    async fn put_opts(
        &self,
        _: &object_store::path::Path,
        _: object_store::PutPayload,
        _: object_store::PutOptions,
    ) -> object_store::Result<object_store::PutResult> {
        unreachable!("inputs are only read")
    }
    async fn put_multipart_opts(
        &self,
        _: &object_store::path::Path,
        _: object_store::PutMultipartOptions,
    ) -> object_store::Result<Box<dyn object_store::MultipartUpload>> {
        unreachable!("inputs are only read")
    }
    fn delete_stream(
        &self,
        _: BoxStream<'static, object_store::Result<object_store::path::Path>>,
    ) -> BoxStream<'static, object_store::Result<object_store::path::Path>> {
        unreachable!("inputs are only read")
    }
    fn list(
        &self,
        _: Option<&object_store::path::Path>,
    ) -> BoxStream<'static, object_store::Result<object_store::ObjectMeta>> {
        unreachable!("inputs are only read")
    }
    async fn list_with_delimiter(
        &self,
        _: Option<&object_store::path::Path>,
    ) -> object_store::Result<object_store::ListResult> {
        unreachable!("inputs are only read")
    }
    async fn copy_opts(
        &self,
        _: &object_store::path::Path,
        _: &object_store::path::Path,
        _: object_store::CopyOptions,
    ) -> object_store::Result<()> {
        unreachable!("inputs are only read")
    }
}

#[tokio::test]
async fn broken_reads_are_tried_again_within_the_budget() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.jpg");
    std::fs::write(&path, "abcd").unwrap();
    let entry = list(&path).await.remove(0);
    for cut in [false, true] {
        let flaky = |failures: u32| {
            let store = Arc::new(Flaky { failures: failures.into(), cut });
            ObjectFetch::new(Stores::default().with_store("file", store), quick())
        };
        assert_eq!(flaky(4).read(&entry).await.unwrap(), "abcd");
        let error = flaky(5).read(&entry).await.unwrap_err();
        assert_eq!((error.fate, error.attempts), (Fate::Row, 5));
        assert_eq!(error.row_error().class, ErrorClass::ReadFailed);
    }
}

#[test]
fn tags_and_times_of_the_same_version_are_equal() {
    let meta = |tag: Option<&str>| ObjectMeta {
        location: object_store::path::Path::from("x"),
        last_modified: std::time::SystemTime::UNIX_EPOCH.into(),
        size: 1,
        e_tag: tag.map(str::to_owned),
        version: None,
    };
    let tagged = meta(Some("\"a\""));
    for (listed, same) in [
        ("", true),
        ("a", true),
        ("\"a\"", true),
        ("b", false),
        ("1970-01-01T00:00:00.123+00:00", true),
        ("1970-01-01T00:00:00+00:00", true),
        ("1970-01-01T00:00:01+00:00", false),
    ] {
        assert_eq!(same_version(listed, &tagged), same, "{listed}");
    }
    assert!(same_version("1970-01-01T00:00:00.5+00:00", &meta(None)));
    assert!(!same_version("a", &meta(None)));
}
