//! Tests of `source`.

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;

use futures::TryStreamExt as _;
use proptest::prelude::*;
use url::Url;

use super::*;

fn touch(folder: &Path, names: &[&str]) {
    for name in names {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, name).unwrap();
    }
}

async fn listed(source: &FolderSource) -> Result<Vec<InputEntry>, IoError> {
    source.list().try_collect().await
}

async fn keys(source: &FolderSource) -> Vec<String> {
    listed(source).await.unwrap().into_iter().map(|entry| entry.key).collect()
}

#[tokio::test]
async fn keys_are_relative_paths_in_bytewise_order() {
    let folder = tempfile::tempdir().unwrap();
    touch(folder.path(), &["b.jpg", "a/z.jpg", "a/c/1.png", "a.jpg", "a-1.jpg", "Z", ".hidden", ".git/x", "a/.y"]);
    let source = FolderSource::new([folder.path()]).unwrap();
    assert_eq!(keys(&source).await, ["Z", "a-1.jpg", "a.jpg", "a/c/1.png", "a/z.jpg", "b.jpg"]);
    let entries = listed(&source).await.unwrap();
    let first = &entries[0];
    assert_eq!(first.bytes, 1);
    assert_eq!(Url::parse(&first.url).unwrap().to_file_path().unwrap(), folder.path().join("Z"));
    assert!(!first.tag.is_empty());
    assert_eq!(entries, listed(&source).await.unwrap());
    assert_eq!(source.describe(), folder.path().display().to_string());
}

#[tokio::test]
async fn files_and_hidden_inputs_that_are_named_are_taken() {
    let folder = tempfile::tempdir().unwrap();
    touch(folder.path(), &[".album/a.jpg", "x/b.jpg"]);
    assert_eq!(keys(&FolderSource::new([folder.path().join("x/b.jpg")]).unwrap()).await, ["b.jpg"]);
    assert_eq!(keys(&FolderSource::new([folder.path().join(".album")]).unwrap()).await, ["a.jpg"]);
    let url = Url::from_directory_path(folder.path().join("x")).unwrap();
    assert_eq!(keys(&FolderSource::new([url.as_str()]).unwrap()).await, ["b.jpg"]);
}

#[tokio::test]
async fn several_inputs_are_told_apart_by_their_names() {
    let folder = tempfile::tempdir().unwrap();
    touch(folder.path(), &["one/a.jpg", "two/a.jpg", "two/b/c.jpg", "single.jpg"]);
    let inputs = ["two", "single.jpg", "one"].map(|name| folder.path().join(name));
    let source = FolderSource::new(inputs).unwrap();
    assert_eq!(keys(&source).await, ["one/a.jpg", "single.jpg", "two/a.jpg", "two/b/c.jpg"]);
    let many = FolderSource::new([folder.path().join("single.jpg"); 1].iter().cycle().take(5)).unwrap();
    assert!(many.describe().ends_with("single.jpg and 2 more"), "{}", many.describe());
}

#[tokio::test]
async fn equal_keys_are_an_error_that_names_both() {
    let folder = tempfile::tempdir().unwrap();
    touch(folder.path(), &["2023/p/a.jpg", "2023/p/b.jpg", "2024/p/b.jpg", "2024/p/c.jpg", "one/x.jpg", "two/x.jpg"]);
    for (inputs, names) in [
        (["2023/p", "2024/p"], ["2023/p/b.jpg", "2024/p/b.jpg"]),
        (["one/x.jpg", "two/x.jpg"], ["one/x.jpg", "two/x.jpg"]),
    ] {
        let source = FolderSource::new(inputs.map(|name| folder.path().join(name))).unwrap();
        let error = listed(&source).await.unwrap_err();
        assert_eq!(error.kind, IoErrorKind::Invalid);
        assert!(names.iter().all(|name| error.message.contains(name)), "{}", error.message);
    }
    std::fs::remove_file(folder.path().join("2024/p/b.jpg")).unwrap();
    let source = FolderSource::new(["2023/p", "2024/p"].map(|name| folder.path().join(name))).unwrap();
    assert_eq!(keys(&source).await, ["p/a.jpg", "p/b.jpg", "p/c.jpg"]);
}

#[tokio::test]
async fn names_that_collide_when_spelled_as_keys_are_an_error() {
    use std::os::unix::ffi::OsStrExt as _;
    let folder = tempfile::tempdir().unwrap();
    touch(folder.path(), &["caf%E9.jpg"]);
    std::fs::write(folder.path().join(OsStr::from_bytes(b"caf\xe9.jpg")), "x").unwrap();
    let error = listed(&FolderSource::new([folder.path()]).unwrap()).await.unwrap_err();
    assert!(error.message.contains("'caf%E9.jpg'"), "{}", error.message);
}

#[test]
fn missing_inputs_are_named() {
    let error = FolderSource::new(["/no/such/folder"]).unwrap_err();
    assert_eq!(error.kind, IoErrorKind::NotFound);
    assert!(error.message.contains("/no/such/folder"), "{}", error.message);
    assert_eq!(FolderSource::new([""; 0]).unwrap_err().kind, IoErrorKind::Invalid);
    assert!(FolderSource::new(["/dev/null"]).unwrap_err().message.contains("neither"));
    assert!(FolderSource::new(["s3://bucket"]).unwrap_err().message.contains("not a local"));
}

#[tokio::test]
async fn links_are_followed_but_not_in_circles() {
    let folder = tempfile::tempdir().unwrap();
    touch(folder.path(), &["in/a/x.jpg", "in/b/y.jpg", "elsewhere/z.jpg"]);
    let link = |target: &str, name: &str| symlink(folder.path().join(target), folder.path().join(name)).unwrap();
    link("in", "in/a/up");
    link("in/b", "in/a/to-b");
    link("in/a", "in/b/to-a");
    link("elsewhere", "in/out");
    link("elsewhere/z.jpg", "in/z.jpg");
    link("nowhere", "in/broken.jpg");
    let source = FolderSource::new([folder.path().join("in")]).unwrap();
    assert_eq!(
        keys(&source).await,
        ["a/to-b/y.jpg", "a/x.jpg", "b/to-a/x.jpg", "b/y.jpg", "broken.jpg", "out/z.jpg", "z.jpg"]
    );
    let broken = listed(&source).await.unwrap().remove(4);
    assert_eq!((broken.bytes, broken.tag.as_str()), (0, ""));
}

#[tokio::test]
async fn the_output_inside_the_input_is_left_out() {
    let folder = tempfile::tempdir().unwrap();
    touch(folder.path(), &["a.jpg", "out/captions/part-00000.parquet", "outer/b.jpg"]);
    let out = folder.path().join("out");
    let source = FolderSource::new([folder.path()]).unwrap().excluding(&out);
    assert_eq!(keys(&source).await, ["a.jpg", "outer/b.jpg"]);
    std::fs::remove_dir_all(&out).unwrap();
    assert_eq!(keys(&source).await, ["a.jpg", "outer/b.jpg"]);
}

#[tokio::test]
async fn pipes_are_left_out_and_empty_folders_list_nothing() {
    let folder = tempfile::tempdir().unwrap();
    assert!(keys(&FolderSource::new([folder.path()]).unwrap()).await.is_empty());
    let made = std::process::Command::new("mkfifo").arg(folder.path().join("pipe")).status().unwrap();
    assert!(made.success());
    touch(folder.path(), &["a.jpg"]);
    assert_eq!(keys(&FolderSource::new([folder.path()]).unwrap()).await, ["a.jpg"]);
}

#[tokio::test]
async fn many_files_come_in_batches_without_a_gap() {
    let folder = tempfile::tempdir().unwrap();
    let names: Vec<String> = (0..1300).map(|n| format!("{:02}/{n:04}", n % 17)).collect();
    touch(folder.path(), &names.iter().map(String::as_str).collect::<Vec<_>>());
    let mut expected = names;
    expected.sort();
    assert_eq!(keys(&FolderSource::new([folder.path()]).unwrap()).await, expected);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    /// Whatever the names, the walk gives the bytewise order of whole keys: what a sort of all keys would give.
    #[test]
    fn the_walk_sorts_like_whole_keys(paths in proptest::collection::vec("[ab.!0 ~é-]{1,3}(/[ab.!0 ~é-]{1,3}){0,3}", 0..20)) {
        let folder = tempfile::tempdir().unwrap();
        let mut expected = BTreeMap::new();
        for path in paths {
            let visible = path.split('/').all(|part| !part.starts_with('.'));
            let full = folder.path().join(&path);
            if !visible || full.exists() || std::fs::create_dir_all(full.parent().unwrap()).is_err() {
                continue;
            }
            if std::fs::write(&full, &path).is_ok() {
                expected.insert(path.clone(), path.len() as u64);
            }
        }
        let source = FolderSource::new([folder.path()]).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let listed: Vec<_> = runtime.block_on(listed(&source)).unwrap();
        let listed: Vec<_> = listed.into_iter().map(|entry| (entry.key, entry.bytes)).collect();
        prop_assert_eq!(listed, expected.into_iter().collect::<Vec<_>>());
    }
}
