//! Tests of `set` and of reading what it lists.

use std::io::Write as _;
use std::path::Path;

use futures::TryStreamExt as _;
use slicemill_core::ErrorClass;
use url::Url;

use super::*;
use crate::sources::{PlaceReader, SegmentIndex, SpoolWriter};
use crate::{InnerReader as _, Place};

const JPEG: &[u8] = b"\xff\xd8\xff\xe0 an image";

fn options() -> SourceOptions {
    SourceOptions::new(Stores::default(), RetryBudget::ONCE)
}

fn write(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, bytes).unwrap();
    path
}

fn tar(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = ::tar::Builder::new(Vec::new());
    for (name, contents) in members {
        let mut header = ::tar::Header::new_gnu();
        header.set_size(contents.len() as u64);
        builder.append_data(&mut header, name, *contents).unwrap();
    }
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ::zstd::encode_all(bytes, 1).unwrap()
}

async fn listed(set: &SourceSet) -> Result<Vec<InputEntry>, IoError> {
    set.list().try_collect().await
}

async fn rows(inputs: &[&str]) -> (Vec<InputEntry>, Vec<SourceCounts>) {
    let set = SourceSet::new(inputs, options()).unwrap();
    let rows = listed(&set).await.unwrap();
    assert!(rows.is_sorted_by(|a, b| a.rank() < b.rank()), "{rows:?}");
    (rows, set.counts().unwrap())
}

fn keys(rows: &[InputEntry]) -> Vec<&str> {
    rows.iter().map(|row| row.key.as_str()).collect()
}

/// The bytes of a row of local files.
async fn read(row: &InputEntry, reader: &PlaceReader) -> Result<Vec<u8>, IoError> {
    let (url, place) = Place::split(&row.url);
    let file = || std::fs::read(Url::parse(url).unwrap().to_file_path().unwrap()).unwrap();
    match place {
        Place::Whole => Ok(file()),
        Place::At { offset, bytes } => {
            Ok(file()[usize::try_from(offset).unwrap()..][..usize::try_from(bytes).unwrap()].to_vec())
        }
        place => reader.read(row, &place, u64::MAX).await.map(Vec::from),
    }
}

fn reader(folder: &Path) -> PlaceReader {
    PlaceReader::new(Stores::default(), RetryBudget::ONCE, Spool::new(folder, 64 << 20))
}

#[tokio::test]
async fn a_folder_with_objects_and_archives() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let archive = tar(&[("z.jpg", JPEG), ("a.jpg", b"second"), ("a.json", b"{}")]);
    for (name, bytes) in [
        ("b.jpg", JPEG),
        ("a.tar", &archive),
        ("a.tar.gz", &gzip(&archive)),
        ("c/d.TZST", &zstd(&archive)),
        ("false.tar", b"no archive at all"),
        ("false.tgz", &gzip(b"no archive either")),
        ("list.jsonl", b"{\"url\":1}\n"),
        ("cut.parquet", b"PAR1 and no more"),
        ("hidden.jpg", &archive),
    ] {
        write(at, name, bytes);
    }
    let (rows, counts) = rows(&[at.to_str().unwrap()]).await;
    let expected = [
        "a.tar/z.jpg",
        "a.tar/a.jpg",
        "a.tar.gz/z.jpg",
        "a.tar.gz/a.jpg",
        "b.jpg",
        "c/d.TZST/z.jpg",
        "c/d.TZST/a.jpg",
        "cut.parquet",
        "false.tar",
        "false.tgz",
        "hidden.jpg",
        "list.jsonl",
    ];
    assert_eq!(keys(&rows), expected);
    let reader = reader(&at.join(".spool"));
    for row in &rows {
        let bytes = read(row, &reader).await.unwrap();
        if row.key.ends_with("/z.jpg") {
            assert_eq!(bytes, JPEG, "{}", row.key);
        }
        if row.key.ends_with("/a.jpg") {
            assert_eq!(bytes, b"second", "{}", row.key);
        }
        assert_eq!(bytes.len() as u64, row.bytes, "{}", row.key);
    }
    let [counts] = &counts[..] else { panic!("{counts:?}") };
    assert_eq!((counts.objects, counts.rows), (9, 12));
    let containers: Vec<_> = counts.containers.iter().map(|(what, count)| (what.as_str(), *count)).collect();
    assert_eq!(containers, [("tar", 1), ("tar.gz", 1), ("tar.zst", 1)]);
    assert_eq!(counts.left_out.get(".json"), Some(&3));
    let notes = counts.notes.join("\n");
    for said in ["false.tar is not a tar archive", "false.tgz is not a tar archive", "does not end so"] {
        assert!(notes.contains(said), "{notes}");
    }
}

#[tokio::test]
async fn what_is_named_is_seen_by_its_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let archive = write(folder.path(), "archive.jpg", &tar(&[("a.jpg", JPEG)]));
    let image = write(folder.path(), "image.tar", JPEG);
    let page = write(folder.path(), "page.jpg", b"<html>not found</html>");
    let inputs = [&archive, &image, &page].map(|path| path.to_str().unwrap());
    let (rows, counts) = rows(&inputs).await;
    assert_eq!(keys(&rows), ["archive.jpg/a.jpg", "image.tar", "page.jpg"]);
    assert_eq!(counts.iter().map(|counts| counts.rows).collect::<Vec<_>>(), [1, 1, 1]);
    assert!(counts[1].notes[0].contains("not a tar archive"), "{:?}", counts[1]);
    let manifest = write(folder.path(), "list.jsonl", b"{\"url\":\"a.jpg\"}\n");
    let set = SourceSet::new([manifest], options()).unwrap();
    assert!(listed(&set).await.unwrap_err().message.contains("is a table"));
}

#[tokio::test]
async fn patterns_choose_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    for name in ["p/a.jpg", "p/b.png", "p/q/c.jpg", "p/q/r/d.jpg", "t-08.tar", "t-09.tar", "t-10.tar", "[x].jpg"] {
        let bytes = if name.ends_with(".tar") { tar(&[("m.jpg", JPEG)]) } else { JPEG.to_vec() };
        write(at, name, &bytes);
    }
    let shown = at.display();
    for (pattern, expected) in [
        ("p/*.jpg", &["a.jpg"][..]),
        ("p/**/*.jpg", &["a.jpg", "q/c.jpg", "q/r/d.jpg"]),
        ("p/*/?.jpg", &["q/c.jpg"]),
        ("p/*.{jpg,png}", &["a.jpg", "b.png"]),
        ("t-{08..10}.tar", &["t-08.tar/m.jpg", "t-09.tar/m.jpg", "t-10.tar/m.jpg"]),
        ("t-{09..10}.*", &["t-09.tar/m.jpg", "t-10.tar/m.jpg"]),
        ("[x].jpg", &["[x].jpg"]),
    ] {
        assert_eq!(keys(&rows(&[&format!("{shown}/{pattern}")]).await.0), expected, "{pattern}");
    }
    let both = [format!("{shown}/p/*.jpg"), format!("{shown}/t-{{08..08}}.tar")];
    let (rows, _) = rows(&[&both[0], &both[1]]).await;
    let name = at.file_name().unwrap().to_str().unwrap();
    let mut expected = vec!["p/a.jpg".to_owned(), format!("{name}/t-08.tar/m.jpg")];
    expected.sort();
    assert_eq!(keys(&rows), expected);
    let missing = SourceSet::new([format!("{shown}/t-{{09..11}}.tar")], options()).unwrap();
    assert!(listed(&missing).await.unwrap_err().message.contains("t-11.tar"));
    assert!(SourceSet::new([format!("{shown}/t-{{11..9}}.tar")], options()).unwrap_err().message.contains("backwards"));
}

#[tokio::test]
async fn nothing_to_work_on_says_what_was_seen() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "a.tar", &tar(&[("a.json", b"{}"), ("b.txt", b"x")]));
    let set = SourceSet::new([folder.path()], options()).unwrap();
    let error = listed(&set).await.unwrap_err();
    assert!(error.message.contains("nothing to work on") && error.message.contains("1 × tar"), "{error}");
    assert!(error.message.contains("1 .json, 1 .txt"), "{error}");
    assert_eq!(set.counts().unwrap()[0].rows, 0);
    let none: [&str; 0] = [];
    assert!(SourceSet::new(none, options()).unwrap_err().message.contains("no input"));
    assert!(SourceSet::new(["-", "-"], options()).unwrap_err().message.contains("twice"));
}

#[tokio::test]
async fn keys_that_meet_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    for name in ["x/a.tar", "y/x/a.tar"] {
        write(at, name, &tar(&[("m.jpg", JPEG)]));
    }
    let set = SourceSet::new([at.join("x/a.tar"), at.join("y/x/a.tar")], options()).unwrap();
    let error = listed(&set).await.unwrap_err();
    assert!(error.message.contains("same key 'a.tar'") && error.message.contains("y/x/a.tar"), "{error}");
    write(at, "z/a.tar/m.jpg", JPEG);
    let set = SourceSet::new([at.join("x/a.tar"), at.join("z/a.tar")], options()).unwrap();
    let error = listed(&set).await.unwrap_err();
    assert!(error.message.contains("stands below the container 'a.tar'"), "{error}");
}

#[tokio::test]
async fn the_own_output_is_left_out() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "a.jpg", JPEG);
    write(folder.path(), "out/part.parquet", b"PAR1PAR1");
    let output = Location::parse(folder.path().join("out")).unwrap();
    let set = SourceSet::new([folder.path()], options()).unwrap().excluding(&output);
    assert_eq!(keys(&listed(&set).await.unwrap()), ["a.jpg"]);
}

/// What is incompressible, so that damage has a place.
fn noise(bytes: usize, mut seed: u32) -> Vec<u8> {
    let mut step = || {
        seed ^= seed << 13;
        seed ^= seed >> 17;
        seed ^= seed << 5;
        seed.to_le_bytes()[1]
    };
    (0..bytes).map(|_| step()).collect()
}

#[tokio::test]
async fn damaged_compression_costs_what_follows() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let members: Vec<_> = (1..9).map(|n| (format!("{n}.jpg"), noise(200_000, n))).collect();
    let list: Vec<_> = members.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    let archive = tar(&list);
    for (name, packed) in [("g.tar.gz", gzip(&archive)), ("z.tar.zst", zstd(&archive))] {
        let path = write(at, name, &packed[..packed.len() * 2 / 5]);
        let (rows, counts) = rows(&[path.to_str().unwrap()]).await;
        let reader = reader(&at.join("spool"));
        let mut good = 0;
        for row in &rows {
            match Place::split(&row.url).1 {
                Place::Unpacked { .. } => {
                    let (_, contents) = members.iter().find(|(name, _)| row.key.ends_with(name)).unwrap();
                    assert_eq!(&read(row, &reader).await.unwrap(), contents);
                    good += 1;
                }
                Place::Refused { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        assert!((2..=4).contains(&good), "{name}: {good}");
        let (last, why) = match Place::split(&rows.last().unwrap().url).1 {
            Place::Refused { class, why } => (class, why),
            other => panic!("{other:?}"),
        };
        assert_eq!(last, ErrorClass::BadRecord);
        assert!(why.contains(name) && why.contains("members after that are lost"), "{why}");
        let refused: Vec<_> = rows.iter().map(|row| Place::split(&row.url).1).collect();
        assert_eq!(counts[0].refused.get(&ErrorClass::Truncated), Some(&1), "{refused:?}");
    }
}

#[tokio::test]
async fn members_of_several_gzip_members_and_zstd_frames() {
    let folder = tempfile::tempdir().unwrap();
    let archive = tar(&[("a.jpg", &noise(5000, 1)), ("b.jpg", JPEG)]);
    let (one, two) = archive.split_at(3000);
    for (name, packed) in [
        ("g.tgz", [gzip(one), gzip(two)].concat()),
        ("z.tzst", [zstd(one), b"\x50\x2a\x4d\x18\x03\0\0\0abc".to_vec(), zstd(two)].concat()),
    ] {
        let path = write(folder.path(), name, &packed);
        let (rows, _) = rows(&[path.to_str().unwrap()]).await;
        let reader = reader(&folder.path().join("spool"));
        assert_eq!(read(&rows[0], &reader).await.unwrap(), noise(5000, 1));
        assert_eq!(read(&rows[1], &reader).await.unwrap(), JPEG);
    }
}

#[tokio::test]
async fn lying_sizes_in_packed_archives_cost_their_member() {
    let folder = tempfile::tempdir().unwrap();
    let mut archive = tar(&[("a.jpg", JPEG), ("liar.jpg", &noise(300_000, 3)), ("b.jpg", JPEG)]);
    let mut header = ::tar::Header::new_gnu();
    header.set_path("liar.jpg").unwrap();
    header.set_size(1 << 33);
    header.set_cksum();
    archive[1024..1536].copy_from_slice(header.as_bytes());
    let path = write(folder.path(), "a.tar.zst", &zstd(&archive));
    let (rows, counts) = rows(&[path.to_str().unwrap()]).await;
    assert_eq!(keys(&rows), ["a.tar.zst/a.jpg", "a.tar.zst/liar.jpg", "a.tar.zst/b.jpg"]);
    assert_eq!(counts[0].refused.get(&ErrorClass::BadRecord), Some(&1));
    assert_eq!(read(&rows[2], &reader(&folder.path().join("spool"))).await.unwrap(), JPEG);
}

#[tokio::test]
async fn bombs_are_cut_off() {
    let folder = tempfile::tempdir().unwrap();
    let archive = tar(&[("a.jpg", JPEG), ("bomb.jpg", &vec![0; 8 << 20])]);
    let path = write(folder.path(), "a.tar.zst", &zstd(&archive));
    let small = SourceOptions { unpacked_max: 1 << 20, ..options() };
    let rows = listed(&SourceSet::new([&path], small).unwrap()).await.unwrap();
    assert_eq!(keys(&rows)[0], "a.tar.zst/a.jpg");
    let last = Place::split(&rows.last().unwrap().url).1;
    assert!(matches!(&last, Place::Refused { why, .. } if why.contains("more than 1048576 bytes")), "{last:?}");
    let reader =
        PlaceReader::new(Stores::default(), RetryBudget::ONCE, Spool::new(folder.path().join("spool"), 2 << 20));
    assert_eq!(read(&rows[0], &reader).await.unwrap(), JPEG);
    let too_large = reader.read(&rows[0], &Place::split(&rows[0].url).1, 3).await.unwrap_err();
    assert_eq!(too_large.kind, IoErrorKind::TooLarge);
}

#[tokio::test]
async fn an_archive_that_changed_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "a.tar.gz", &gzip(&tar(&[("a.jpg", JPEG)])));
    let (rows, _) = rows(&[path.to_str().unwrap()]).await;
    write(folder.path(), "a.tar.gz", &gzip(&tar(&[("a.jpg", b"another")])));
    let later = std::time::UNIX_EPOCH + std::time::Duration::from_secs(5);
    std::fs::File::options().write(true).open(&path).unwrap().set_modified(later).unwrap();
    let error = read(&rows[0], &reader(&folder.path().join("spool"))).await.unwrap_err();
    assert_eq!(error.kind, IoErrorKind::SourceChanged, "{error}");
}

#[tokio::test]
async fn one_archive_is_unpacked_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "a.tar.gz", &gzip(&tar(&[("a.jpg", JPEG), ("b.jpg", b"b")])));
    let (rows, _) = rows(&[path.to_str().unwrap()]).await;
    let spool = Spool::new(folder.path().join("spool"), 1 << 20);
    let reader = PlaceReader::new(Stores::default(), RetryBudget::ONCE, spool.clone());
    read(&rows[0], &reader).await.unwrap();
    let key =
        crate::sources::SegmentKey { url: Place::split(&rows[0].url).0.to_owned(), tag: rows[0].tag.clone(), part: 0 };
    let again = |_: &mut SpoolWriter| -> Result<SegmentIndex, IoError> { panic!("it is there") };
    spool.get_or_fill(key, again).await.unwrap();
    assert_eq!(read(&rows[1], &reader).await.unwrap(), b"b");
}

#[tokio::test]
async fn listing_ends_when_nobody_listens() {
    let folder = tempfile::tempdir().unwrap();
    let members: Vec<_> = (0..5000).map(|n| format!("{n:05}.jpg")).collect();
    let list: Vec<_> = members.iter().map(|name| (name.as_str(), JPEG)).collect();
    write(folder.path(), "a.tar", &tar(&list));
    let set = SourceSet::new([folder.path()], options()).unwrap();
    let first: Vec<_> = set.list().take(3).try_collect().await.unwrap();
    assert_eq!(keys(&first), ["a.tar/00000.jpg", "a.tar/00001.jpg", "a.tar/00002.jpg"]);
    assert_eq!(set.counts(), None);
    assert_eq!(listed(&set).await.unwrap().len(), 5000);
    assert_eq!(set.describe(), folder.path().display().to_string());
}

/// A store in memory in place of S3.
async fn bucket(objects: &[(&str, Vec<u8>)]) -> Stores {
    use object_store::ObjectStoreExt as _;
    let store = object_store::memory::InMemory::new();
    for (name, bytes) in objects {
        store.put(&(*name).into(), bytes.clone().into()).await.unwrap();
    }
    Stores::default().with_store("s3", Arc::new(store))
}

async fn remote(stores: &Stores, inputs: &[&str]) -> Result<Vec<InputEntry>, IoError> {
    listed(&SourceSet::new(inputs, SourceOptions::new(stores.clone(), RetryBudget::ONCE)).unwrap()).await
}

#[tokio::test]
async fn prefixes_objects_and_patterns_in_a_store() {
    let large = vec![5; 3 << 20];
    let archive = tar(&[("large.jpg", &large), ("a.jpg", JPEG), ("a.json", b"{}")]);
    let stores = bucket(&[
        ("p/a.jpg", JPEG.to_vec()),
        ("p/a/b.jpg", JPEG.to_vec()),
        ("p/a-b.jpg", JPEG.to_vec()),
        ("p/folder", Vec::new()),
        ("p/t-1.tar", archive.clone()),
        ("p/t-2.tar.gz", gzip(&archive)),
        ("q/x.jpg", JPEG.to_vec()),
        ("p-not/y.jpg", JPEG.to_vec()),
    ])
    .await;
    let one = ["t-1.tar/large.jpg", "t-1.tar/a.jpg"];
    let two = ["t-2.tar.gz/large.jpg", "t-2.tar.gz/a.jpg"];
    let all = [&["a-b.jpg", "a.jpg", "a/b.jpg"][..], &one, &two].concat();
    for (input, expected) in [
        ("s3://b/p", &all[..]),
        ("s3://b/p/", &all),
        ("s3://b/p/*.jpg", &["a-b.jpg", "a.jpg"]),
        ("s3://b/p/t-{1..1}.tar", &one),
        ("s3://b/p/t-2.tar.gz", &two),
    ] {
        let rows = remote(&stores, &[input]).await.unwrap();
        assert_eq!(keys(&rows), expected, "{input}");
        assert!(rows.iter().all(|row| row.url.starts_with("s3://b/p/") && !row.tag.is_empty()), "{rows:?}");
    }
    let both = remote(&stores, &["s3://b/q/", "s3://b/p/a.jpg"]).await.unwrap();
    assert_eq!(keys(&both), ["a.jpg", "q/x.jpg"]);
    let folder = tempfile::tempdir().unwrap();
    let reader = PlaceReader::new(stores.clone(), RetryBudget::ONCE, Spool::new(folder.path(), 64 << 20));
    let rows = remote(&stores, &["s3://b/p/t-2.tar.gz"]).await.unwrap();
    let read = async |row: &InputEntry| reader.read(row, &Place::split(&row.url).1, u64::MAX).await;
    assert_eq!(read(&rows[0]).await.unwrap(), large);
    assert_eq!(read(&rows[1]).await.unwrap(), JPEG);
    let changed = InputEntry { tag: "another".to_owned(), ..rows[1].clone() };
    assert_eq!(read(&changed).await.unwrap_err().kind, IoErrorKind::SourceChanged);
    let error = remote(&stores, &["s3://b/nothing"]).await.unwrap_err();
    assert!(error.message.contains("s3://b/nothing") && error.kind == IoErrorKind::NotFound, "{error}");
    let missing = remote(&stores, &["s3://b/p/t-{1..3}.tar"]).await.unwrap_err();
    assert_eq!(missing.kind, IoErrorKind::NotFound);
    let set = SourceSet::new(["s3://b/"], SourceOptions::new(stores.clone(), RetryBudget::ONCE)).unwrap();
    let set = set.excluding(&Location::parse("s3://b/p").unwrap());
    assert_eq!(keys(&listed(&set).await.unwrap()), ["p-not/y.jpg", "q/x.jpg"]);
    assert_eq!(set.counts().unwrap()[0].objects, 2);
}
