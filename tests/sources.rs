//! The same images from every kind of source and every store give the same captions, row for row.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, RecordBatch, StringArray, StructArray};
use arrow::datatypes::{DataType, Field, Fields};
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;

use crate::fixtures::write_folder;
use crate::program::{expect_in, long_or, text};
use crate::servers::external::{External, Nginx};
use crate::servers::files::HttpServer;
use crate::servers::s3::S3Server;

/// Images as each kind of source: `images/`, `scenes-0.tar`, `scenes-1.tar.gz`, `scenes-2.tar.zst`, `scenes.parquet`.
struct Scenes {
    folder: tempfile::TempDir,
    /// Paths of the images below `images/`, in order.
    names: Vec<String>,
}

const TARS: [&str; 3] = ["scenes-0.tar", "scenes-1.tar.gz", "scenes-2.tar.zst"];
const TABLE: &str = "scenes.parquet";
const LIST: &str = "scenes.jsonl";

/// Locations in a list that lead into private networks are refused unless this is said.
const ALLOW_PRIVATE: [&str; 2] = ["--store-option", "http.allow_private=true"];

impl Scenes {
    fn make(count: u64) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let images = folder.path().join("images");
        write_folder(&images, count, 0, 50);
        let mut names: Vec<String> = Vec::new();
        for parent in fs::read_dir(&images).expect("images") {
            let parent = parent.expect("entry").path();
            for file in fs::read_dir(&parent).expect("images") {
                let path = file.expect("entry").path();
                match path.extension().is_some_and(|extension| extension == "txt") {
                    // What is beside images in a tar belongs to them; here all sources are to have the same rows.
                    true => fs::remove_file(&path).expect("removed"),
                    false => names.push(text(path.strip_prefix(&images).expect("below")).to_owned()),
                }
            }
        }
        names.sort();
        let scenes = Self { folder, names };
        scenes.write_tars();
        scenes.write_table();
        scenes
    }

    fn root(&self) -> &Path {
        self.folder.path()
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        fs::read(self.root().join("images").join(name)).expect("an image")
    }

    fn write_tars(&self) {
        let file = |index: usize| File::create(self.root().join(TARS[index])).expect("a tar");
        let members = |index: usize| self.names.iter().skip(index).step_by(TARS.len());
        self.write_tar(file(0), members(0)).flush().expect("written");
        let gzip = flate2::write::GzEncoder::new(file(1), flate2::Compression::fast());
        self.write_tar(gzip, members(1)).finish().expect("written");
        let zstandard = zstd::stream::write::Encoder::new(file(2), 1).expect("an encoder");
        self.write_tar(zstandard, members(2)).finish().expect("written");
    }

    fn write_tar<'a, W: Write>(&self, to: W, names: impl Iterator<Item = &'a String>) -> W {
        let mut tar = tar::Builder::new(to);
        for name in names {
            let bytes = self.bytes(name);
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, name, bytes.as_slice()).expect("a member");
        }
        tar.into_inner().expect("the end of a tar")
    }

    /// A column `image` of the form that the Hugging Face libraries write, and one beside it.
    fn write_table(&self) {
        let bytes: Vec<Vec<u8>> = self.names.iter().map(|name| self.bytes(name)).collect();
        let fields =
            Fields::from(vec![Field::new("bytes", DataType::Binary, true), Field::new("path", DataType::Utf8, true)]);
        let values: ArrayRef = Arc::new(BinaryArray::from_iter_values(&bytes));
        let paths: ArrayRef = Arc::new(StringArray::from_iter_values(&self.names));
        let image: ArrayRef = Arc::new(StructArray::new(fields, vec![values, paths], None));
        let license: ArrayRef = Arc::new(StringArray::from_iter_values(self.names.iter().map(|_| "cc0")));
        let batch = RecordBatch::try_from_iter([("image", image), ("license", license)]).expect("a batch");
        let properties = WriterProperties::builder().set_max_row_group_row_count(Some(16)).build();
        let file = File::create(self.root().join(TABLE)).expect("a table");
        let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties)).expect("a writer");
        writer.write(&batch).expect("written");
        writer.close().expect("closed");
    }

    /// A list of the images at their URLs.
    fn list(&self, url: impl Fn(&str) -> String) -> Vec<u8> {
        let line = |name| format!("{}\n", serde_json::json!({"url": url(&format!("images/{name}")), "license": "cc0"}));
        self.names.iter().map(line).collect::<String>().into_bytes()
    }
}

/// How a store is reached.
struct Reach<'a> {
    name: &'a str,
    env: Vec<(String, String)>,
    url: &'a dyn Fn(&str) -> String,
    /// Whether the store can be listed, so that a prefix is a source.
    listed: bool,
    options: &'a [&'a str],
}

/// SHA-256 of the image and its caption, of every row, in order.
type Captions = Vec<(String, String)>;

fn captions(env: &[(String, String)], out: &str) -> Captions {
    let (printed, _) =
        expect_in(env, 0, &["sql", out, "SELECT sha256, text FROM captions ORDER BY 1, 2", "--format", "json"]);
    let rows: Vec<serde_json::Value> = serde_json::from_str(&printed).expect("JSON");
    let word = |row: &serde_json::Value, name: &str| row[name].as_str().expect("a word").to_owned();
    rows.iter().map(|row| (word(row, "sha256"), word(row, "text"))).collect()
}

/// Captions `inputs` into `out`, which must pass verification.
fn caption(env: &[(String, String)], inputs: &[String], out: &str, options: &[&str]) -> Captions {
    let mut args = vec!["caption"];
    args.extend(inputs.iter().map(String::as_str));
    // What a caption says does not depend on where its image came from: one view and a few words are enough to tell.
    let chunk_rows = long_or(64, 16).to_string();
    args.extend(["-o", out, "--policy", "whole", "--max-new-tokens", "8", "--chunk-rows", &chunk_rows]);
    args.extend(options);
    expect_in(env, 0, &args);
    expect_in(env, 0, &["verify", out]);
    captions(env, out)
}

/// What every source of every store must say.
fn baseline(scenes: &Scenes, outputs: &Path) -> Captions {
    let images = text(&scenes.root().join("images")).to_owned();
    let wanted = caption(&[], &[images], text(&outputs.join("baseline")), &[]);
    assert_eq!(wanted.len(), scenes.names.len());
    wanted
}

/// Each kind of source of a store, into an output given by its name.
fn check(scenes: &Scenes, reach: &Reach<'_>, wanted: &Captions, out: &dyn Fn(&str) -> String) {
    let url = |path: &str| (reach.url)(path);
    let mut cases = vec![("tars", TARS.map(url).to_vec()), ("table", vec![url(TABLE)]), ("list", vec![url(LIST)])];
    if reach.listed {
        cases.push(("folder", vec![url("images/")]));
    }
    for (kind, inputs) in cases {
        let out = out(&format!("{}-{kind}", reach.name));
        let found = caption(&reach.env, &inputs, &out, reach.options);
        assert_eq!(found.len(), scenes.names.len(), "{kind} from {}", reach.name);
        for (found, wanted) in found.iter().zip(wanted) {
            assert_eq!(found, wanted, "{kind} from {}", reach.name);
        }
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let path = entry.expect("entry").path();
        let copied = to.join(path.file_name().expect("a name"));
        match path.is_dir() {
            true => copy(&path, &copied),
            false => drop(fs::copy(&path, &copied).expect("copied")),
        }
    }
}

fn write_list(scenes: &Scenes, to: PathBuf, url: impl Fn(&str) -> String) {
    fs::write(to, scenes.list(url)).expect("written");
}

#[test]
fn every_source_on_disk_s3_and_http_says_the_same() {
    let scenes = Scenes::make(long_or(5_000, 40));
    let outputs = tempfile::tempdir().expect("folder");
    let wanted = baseline(&scenes, outputs.path());
    let local = |name: &str| text(&outputs.path().join(name)).to_owned();

    let on_disk = |path: &str| text(&scenes.root().join(path)).to_owned();
    write_list(&scenes, scenes.root().join(LIST), on_disk);
    let reach = Reach { name: "disk", env: Vec::new(), url: &on_disk, listed: true, options: &[] };
    check(&scenes, &reach, &wanted, &local);

    let s3 = S3Server::start();
    let on_s3 = |path: &str| s3.url(&format!("in/{path}"));
    copy(scenes.root(), &s3.bucket().join("in"));
    write_list(&scenes, s3.bucket().join("in").join(LIST), on_s3);
    let reach = Reach { name: "s3", env: s3.env(), url: &on_s3, listed: true, options: &[] };
    check(&scenes, &reach, &wanted, &|name| s3.url(&format!("out/{name}")));
    assert!(s3.bucket().join("out/s3-tars/_SUCCESS").is_file(), "the output is in the bucket");

    let http = HttpServer::start(scenes.root());
    let on_http = |path: &str| http.url(path);
    write_list(&scenes, scenes.root().join(LIST), on_http);
    let env = vec![("NO_PROXY".to_owned(), "127.0.0.1".to_owned())];
    let reach = Reach { name: "http", env, url: &on_http, listed: false, options: &ALLOW_PRIVATE };
    check(&scenes, &reach, &wanted, &local);
}

/// A list may lead from one store to another.
#[test]
fn a_list_on_disk_leads_to_images_on_s3_and_http() {
    let scenes = Scenes::make(24);
    let outputs = tempfile::tempdir().expect("folder");
    let wanted = baseline(&scenes, outputs.path());
    let (s3, http) = (S3Server::start(), HttpServer::start(scenes.root()));
    copy(scenes.root(), &s3.bucket());
    let list = scenes.root().join(LIST);
    let mut turn = 0;
    let lines = scenes.list(|path| s3.url(path));
    let lines = String::from_utf8(lines).expect("UTF-8");
    let alternating = lines.lines().zip(&scenes.names).map(|(line, name)| {
        turn += 1;
        let to_http = serde_json::json!({"url": http.url(&format!("images/{name}")), "license": "cc0"}).to_string();
        if turn % 2 == 0 { to_http + "\n" } else { line.to_owned() + "\n" }
    });
    fs::write(&list, alternating.collect::<String>()).expect("written");
    let out = text(&outputs.path().join("out")).to_owned();
    assert_eq!(caption(&s3.env(), &[text(&list).to_owned()], &out, &ALLOW_PRIVATE), wanted);
}

#[test]
fn every_source_on_servers_of_other_makers_says_the_same() {
    let scenes = Scenes::make(long_or(5_000, 20));
    let outputs = tempfile::tempdir().expect("folder");
    let wanted = baseline(&scenes, outputs.path());
    let stores = [("moto", External::moto()), ("azurite", External::azurite())];
    for (name, store) in stores.iter().filter_map(|(name, store)| Some((name, store.as_ref()?))) {
        let url = |path: &str| store.url(&format!("in/{path}"));
        write_list(&scenes, scenes.root().join(LIST), url);
        store.put_folder(scenes.root(), "in/");
        let reach = Reach { name, env: store.env(), url: &url, listed: true, options: &[] };
        check(&scenes, &reach, &wanted, &|name| store.url(&format!("out/{name}")));
    }
    let Some(nginx) = Nginx::start(scenes.root()) else { return };
    let url = |path: &str| nginx.url(path);
    write_list(&scenes, scenes.root().join(LIST), url);
    let env = vec![("NO_PROXY".to_owned(), "127.0.0.1".to_owned())];
    let reach = Reach { name: "nginx", env, url: &url, listed: false, options: &ALLOW_PRIVATE };
    check(&scenes, &reach, &wanted, &|name| text(&outputs.path().join(name)).to_owned());
}
