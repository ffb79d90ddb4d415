//! Tests of `store`.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, PutMultipartOptions, PutOptions, PutPayload,
    PutResult,
};

use url::Url;

use super::*;
use crate::fault::{Fault, FaultStore};

fn quick() -> RetryBudget {
    RetryBudget { pause_first: Duration::from_millis(1), ..RetryBudget::default() }
}

fn memory() -> OutputStore {
    OutputStore::with_store(Arc::new(InMemory::new()), "memory:").with_budget(quick())
}

fn local() -> (tempfile::TempDir, OutputStore) {
    let folder = tempfile::tempdir().unwrap();
    let output = OutputStore::create(&Location::parse(folder.path()).unwrap(), &Stores::default()).unwrap();
    (folder, output)
}

#[test]
fn locations_are_paths_or_urls() {
    let here = std::env::current_dir().unwrap();
    let beside = |name: &str| format!("file://{}/{name}", here.display());
    for (text, url) in [
        ("/photos", "file:///photos".to_owned()),
        ("/photos/", "file:///photos".to_owned()),
        ("/photos/./2024", "file:///photos/2024".to_owned()),
        ("photos", beside("photos")),
        ("./photos/../photos", beside("photos")),
        ("/a b%20c#?é", "file:///a%20b%2520c%23%3F%C3%A9".to_owned()),
        ("file:///photos/a%20b/", "file:///photos/a%20b".to_owned()),
        ("c:photos", beside("c:photos")),
    ] {
        if text.contains("..") {
            // What a `..` leaves must be there, since links decide where it leads.
            assert!(Location::parse(text).is_err(), "{text}");
            continue;
        }
        assert_eq!(Location::parse(text).unwrap().url().as_str(), url, "{text}");
    }
}

#[test]
fn parent_folders_are_resolved_through_links() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().canonicalize().unwrap();
    std::fs::create_dir_all(root.join("a/b")).unwrap();
    std::os::unix::fs::symlink(root.join("a/b"), root.join("link")).unwrap();
    let location = Location::parse(root.join("link/../out")).unwrap();
    assert_eq!(location.local_path().unwrap(), root.join("a/out"));
}

#[test]
fn other_schemes_are_refused_by_name() {
    for (text, part) in [("ftp://bucket/photos", "'ftp'"), ("file://photos", "three slashes"), ("", "empty")] {
        let error = Location::parse(text).unwrap_err();
        assert_eq!((error.fate, error.kind), (slicemill_core::Fate::Fatal, IoErrorKind::Invalid));
        assert!(error.message.contains(part), "{text}: {}", error.message);
    }
    let error = Stores::default().resolve(&Url::parse("ftp://bucket/x").unwrap()).unwrap_err();
    assert!(error.message.contains("supported are paths"), "{}", error.message);
}

#[test]
fn missing_outputs_and_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing");
    let error = OutputStore::open(&Location::parse(&missing).unwrap(), &Stores::default()).unwrap_err();
    assert_eq!(error.kind, IoErrorKind::NotFound);
    assert!(error.message.contains("missing"), "{}", error.message);

    let file = folder.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let error = OutputStore::open(&Location::parse(&file).unwrap(), &Stores::default()).unwrap_err();
    assert!(error.message.contains("is a file"), "{}", error.message);
    assert_eq!(
        OutputStore::create(&Location::parse(file.join("out")).unwrap(), &Stores::default()).unwrap_err().kind,
        IoErrorKind::Refused
    );
}

async fn check_puts(output: &OutputStore) {
    let (one, two) = (Bytes::from_static(b"one"), Bytes::from_static(b"two"));
    output.put_if_absent("a/x.json", one.clone()).await.unwrap();
    output.put_if_absent("a/x.json", one.clone()).await.unwrap();
    let error = output.put_if_absent("a/x.json", two.clone()).await.unwrap_err();
    assert_eq!(error.kind, IoErrorKind::Conflict);
    assert!(error.message.contains("a/x.json"), "{}", error.message);
    assert_eq!(output.get("a/x.json").await.unwrap(), one);

    output.put("a/x.json", two.clone()).await.unwrap();
    assert_eq!(output.find("a/x.json").await.unwrap(), Some(two));
    assert_eq!(output.head("a/x.json").await.unwrap().unwrap().size, 3);
    assert_eq!(output.get_ranges("a/x.json", &[1..3, 0..1]).await.unwrap(), [&b"wo"[..], &b"t"[..]]);

    output.put("a/b/y.json", one.clone()).await.unwrap();
    output.put("c.json", one).await.unwrap();
    let names = |objects: Vec<ObjectMeta>| objects.iter().map(|meta| meta.location.to_string()).collect::<Vec<_>>();
    assert_eq!(names(output.list("a").await.unwrap()), ["a/b/y.json", "a/x.json"]);
    assert!(output.list("nothing").await.unwrap().is_empty());

    output.delete("a/x.json").await.unwrap();
    output.delete("a/x.json").await.unwrap();
    assert_eq!(output.find("a/x.json").await.unwrap(), None);
    assert!(!output.exists("a/x.json").await.unwrap());
    assert_eq!(output.get("a/x.json").await.unwrap_err().kind, IoErrorKind::NotFound);
}

#[tokio::test]
async fn puts_in_memory() {
    check_puts(&memory()).await;
}

#[tokio::test]
async fn puts_in_a_folder_leave_no_temporary_files() {
    let (folder, output) = local();
    check_puts(&output).await;
    let left: Vec<_> =
        std::fs::read_dir(folder.path().join("a")).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert_eq!(left, ["b"]);
}

#[tokio::test]
async fn a_reader_never_sees_half_an_object() {
    let (folder, output) = local();
    let path = folder.path().join("x.json");
    let pieces = [Bytes::from(vec![1; 1 << 20]), Bytes::from(vec![2; 1 << 19])];
    output.put("x.json", pieces[0].clone()).await.unwrap();
    let reader = std::thread::spawn(move || {
        for _ in 0..200 {
            let bytes = std::fs::read(&path).unwrap();
            assert!(matches!((bytes.len(), bytes[0], bytes[bytes.len() - 1]), (0x10_0000, 1, 1) | (0x8_0000, 2, 2)));
        }
    });
    for round in 0..100 {
        output.put("x.json", pieces[round % 2].clone()).await.unwrap();
    }
    reader.join().unwrap();
}

#[tokio::test]
async fn lost_answers_and_refusals_are_tried_again() {
    for fault in [Fault::Refuse, Fault::LoseAnswer] {
        let faulty = FaultStore::new(Arc::new(InMemory::new()), 0, fault);
        let output = memory().map_store(|_| Arc::new(faulty.clone()));
        output.put_if_absent("x.json", Bytes::from_static(b"x")).await.unwrap();
        assert!(faulty.fired());
        assert_eq!(output.get("x.json").await.unwrap(), "x");
    }
}

/// A store without put-if-absent, as file systems without hard links are.
#[derive(Debug)]
struct NoCreate(InMemory);

impl std::fmt::Display for NoCreate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a store that cannot create")
    }
}

#[async_trait]
impl ObjectStore for NoCreate {
    async fn put_opts(
        &self,
        path: &ObjectPath,
        payload: PutPayload,
        options: PutOptions,
    ) -> object_store::Result<PutResult> {
        if options.mode == PutMode::Create {
            let source = std::io::Error::new(std::io::ErrorKind::PermissionDenied, "no hard links");
            return Err(object_store::Error::Generic { store: "no links", source: source.into() });
        }
        self.0.put_opts(path, payload, options).await
    }
    async fn put_multipart_opts(
        &self,
        path: &ObjectPath,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.0.put_multipart_opts(path, options).await
    }
    async fn get_opts(&self, path: &ObjectPath, options: GetOptions) -> object_store::Result<GetResult> {
        self.0.get_opts(path, options).await
    }
    fn delete_stream(
        &self,
        paths: BoxStream<'static, object_store::Result<ObjectPath>>,
    ) -> BoxStream<'static, object_store::Result<ObjectPath>> {
        self.0.delete_stream(paths)
    }
    fn list(&self, prefix: Option<&ObjectPath>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.0.list(prefix)
    }
    async fn list_with_delimiter(&self, prefix: Option<&ObjectPath>) -> object_store::Result<ListResult> {
        self.0.list_with_delimiter(prefix).await
    }
    async fn copy_opts(&self, from: &ObjectPath, to: &ObjectPath, options: CopyOptions) -> object_store::Result<()> {
        self.0.copy_opts(from, to, options).await
    }
}

#[tokio::test]
async fn a_store_that_cannot_create_looks_first() {
    check_puts(&memory().map_store(|_| Arc::new(NoCreate(InMemory::new())))).await;
}

/// What is said of an object below a prefix must name it as the output does.
#[tokio::test]
async fn an_output_below_a_prefix_knows_nothing_above_it() {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let below = crate::stores::Below::new(store, "some/where".into());
    let output = OutputStore::with_store(Arc::new(below), "s3://bucket/some/where");
    output.put("captions/part.parquet", Bytes::from_static(b"x")).await.unwrap();
    let head = output.head("captions/part.parquet").await.unwrap().unwrap();
    assert_eq!((head.location.as_ref(), head.size), ("captions/part.parquet", 1));
    let listed = output.list("captions").await.unwrap();
    assert_eq!(listed.first().map(|meta| meta.location.as_ref()), Some("captions/part.parquet"));
}
