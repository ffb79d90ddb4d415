//! Lists of locations: JSON lines, CSV, Parquet and standard input.

use std::io::Write as _;

use proptest::prelude::*;

use super::*;

fn write(folder: &Path, name: &str, bytes: &[u8]) -> std::path::PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

fn bad_records(entries: &[InputEntry], unit: &str, expected: &[(usize, u64, &str)]) {
    let refusals = entries.iter().filter(|entry| matches!(Place::split(&entry.url).1, Place::Refused { .. })).count();
    assert_eq!(refusals, expected.len(), "{entries:#?}");
    for (index, number, what) in expected {
        let (class, why) = refused(&entries[*index]);
        assert_eq!(class, ErrorClass::BadRecord, "{why}");
        assert!(why.starts_with(&format!("{unit} {number} of /")) && why.contains(what), "{why}");
    }
}

#[tokio::test]
async fn bad_json_lines_are_refused_and_the_others_listed() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "a b%.jpg", b"123");
    let long = format!("{{\"image\":\"{}\"}}", "x".repeat(17 << 20));
    let lines: [&[u8]; 12] = [
        b"\xef\xbb\xbf{\"image\":\"a b%.jpg\",\"caption\":\"one\"}\r",
        b"",
        b"{\"image\":\"missing.jpg\"",
        b"[1,2]",
        b"{\"image\":null}",
        b"{\"caption\":\"no image\"}",
        b"{\"image\":17}",
        b"{\"image\":\"\xff.jpg\"}",
        b"{\"image\":\"../up.jpg\"}",
        long.as_bytes(),
        b"{\"image\":\"x.jpg\",\"caption\":\"\\ud800\"}",
        b"{\"image\":\"missing.jpg\",\"caption\":{\"en\":[1.50]}}",
    ];
    let path = write(folder.path(), "list.jsonl", &lines.join(&b'\n'));
    let listing = tables(TableOptions::default());
    let entries = list_with(&listing, table(&path, TableFormat::JsonLines), &["caption"]).await.unwrap();
    assert_eq!(entries.len(), 11);

    let first = &entries[0];
    assert_eq!(first.key, "list.jsonl/000000001");
    assert!(first.url.ends_with("/a%20b%25.jpg"), "{}", first.url);
    assert_eq!((first.bytes, first.estimated, first.rank()), (3, false, ("list.jsonl", 0)));
    assert_eq!(first.columns.as_deref(), Some(r#"{"caption":"one"}"#));
    assert!(!first.tag.is_empty());

    let last = &entries[10];
    assert_eq!((last.key.as_str(), last.estimated, last.tag.as_str()), ("list.jsonl/000000012", true, ""));
    assert_eq!(last.columns.as_deref(), Some(r#"{"caption":{"en":[1.50]}}"#));

    let (class, why) = refused(&entries[7]);
    assert_eq!(class, ErrorClass::LocationRefused);
    assert!(why.contains("line 9 of") && why.contains("--root"), "{why}");
    let rest: Vec<_> = entries.iter().filter(|entry| entry.key != entries[7].key).cloned().collect();
    bad_records(
        &rest,
        "line",
        &[
            (1, 3, "not JSON"),
            (2, 4, "not a JSON object"),
            (3, 5, "'image' is null"),
            (4, 6, "no 'image'"),
            (5, 7, "'image' is a number"),
            (6, 8, "not UTF-8 from byte 10"),
            (7, 10, "longer than"),
            (8, 11, "its 'caption'"),
        ],
    );
    // The columns of a refused row are there all the same: filters may drop it.
    assert_eq!(entries[4].columns.as_deref(), Some(r#"{"caption":"no image"}"#));
    let counts = listing.counts();
    assert_eq!((counts.rows, counts.refused[&ErrorClass::BadRecord]), (11, 8));
    assert_eq!(counts.refused[&ErrorClass::LocationRefused], 1);
}

#[tokio::test]
async fn columns_of_json_lines_must_be_somewhere() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "l.jsonl", b"{\"text\":\"a\"}\n{\"link\":\"b.jpg\",\"n\":1}\n");
    let error = list(&path, TableFormat::JsonLines, &[]).await.unwrap_err().message;
    assert!(error.contains("--image-column") && error.contains("text (text)"), "{error}");

    let named = |image: &str, key: Option<&str>| TableOptions {
        image_column: Some(image.to_owned()),
        key_column: key.map(ToOwned::to_owned),
        ..TableOptions::default()
    };
    let listing = tables(named("link", None));
    let entries = list_with(&listing, table(&path, TableFormat::JsonLines), &["n", "license"]).await.unwrap();
    bad_records(&entries, "line", &[(0, 1, "no 'link'")]);
    assert_eq!(entries[1].columns.as_deref(), Some(r#"{"n":1,"license":null}"#));
    listing.check_columns(&InputColumns::new(["n"])).unwrap();
    let error = listing.check_columns(&InputColumns::new(["n", "license"])).unwrap_err().message;
    assert!(error.contains("'license'") && error.contains("'text', 'link', 'n'"), "{error}");

    for (options, missing) in [(named("url", None), "'url'"), (named("link", Some("id")), "'id'")] {
        let error = list_with(&tables(options), table(&path, TableFormat::JsonLines), &[]).await.unwrap_err().message;
        assert!(error.contains("has no column") && error.contains(missing), "{error}");
    }
    let array = write(folder.path(), "a.jsonl", b"[\n{\"image\":\"x\"}]");
    let error = list(&array, TableFormat::JsonLines, &[]).await.unwrap_err().message;
    assert!(error.contains("one object a line"), "{error}");
}

#[tokio::test]
async fn packed_manifests_are_unpacked_and_damage_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let text: String = (0..5000).map(|row| format!("{{\"url\":\"https://host/{row}.jpg\"}}\n")).collect();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(text.as_bytes()).unwrap();
    let gzip = gzip.finish().unwrap();
    let zst = zstd::encode_all(text.as_bytes(), 3).unwrap();
    for (name, bytes) in [("l.jsonl.gz", &gzip), ("l.jsonl.zst", &zst)] {
        let path = write(folder.path(), name, bytes);
        let entries = list(&path, TableFormat::JsonLines, &[]).await.unwrap();
        assert_eq!((entries.len(), entries[4999].url.as_str()), (5000, "https://host/4999.jpg"));
        assert_eq!((entries[0].bytes, entries[0].estimated), (512 << 10, true));
        let cut = write(folder.path(), "cut.jsonl", &bytes[..bytes.len() / 2]);
        let error = list(&cut, TableFormat::JsonLines, &[]).await.unwrap_err();
        assert!(error.message.contains("cut.jsonl cannot be read behind line"), "{error}");
    }
}

#[tokio::test]
async fn csv_with_quoted_newlines_and_bad_records() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "caf\u{e9}, 1.jpg", b"1234");
    let text: &[u8] = b"\xef\xbb\xbfid,file_name,caption,width,ok\r\n\
        1,\"caf\xc3\xa9, 1.jpg\",\"two\r\nlines, \"\"quoted\"\"\",512,true\r\n\
        2,b.jpg\r\n\
        3,\xff.jpg,x,1,true\r\n\
        \r\n\
        4,,x,007,\r\n\
        5,s3://bucket/a%20b.jpg,\xff,1.50,True\r\n\
        6,c.jpg,\"open quote,1\nx";
    let path = write(folder.path(), "list.csv", text);
    let entries = list(&path, TableFormat::Csv, &["caption", "width", "ok"]).await.unwrap();
    assert_eq!(entries.len(), 6);
    assert_eq!((entries[0].key.as_str(), entries[0].bytes), ("list.csv/000000001", 4));
    let columns = r#"{"caption":"two\r\nlines, \"quoted\"","width":512,"ok":true}"#;
    assert_eq!(entries[0].columns.as_deref(), Some(columns));
    bad_records(
        &entries,
        "record",
        &[
            (1, 2, "2 fields, the header has 5"),
            (2, 3, "'file_name' is not UTF-8"),
            (3, 4, "'file_name' is empty"),
            (4, 5, "'caption' is not UTF-8"),
            (5, 6, "3 fields"),
        ],
    );
    assert_eq!(entries[3].columns.as_deref(), Some(r#"{"caption":"x","width":"007","ok":null}"#));
}

#[tokio::test]
async fn csv_headers_must_be_clear() {
    let folder = tempfile::tempdir().unwrap();
    for (text, what) in [
        ("a;b\n1;2\n", "a;b (text)"),
        ("image,image\nx,y\n", "could all be the images"),
        ("url,caption,caption\nx,y,z\n", "two columns 'caption'"),
        ("\u{1}image_\n", "--image-column"),
    ] {
        let path = write(folder.path(), "bad.csv", text.as_bytes());
        let error = list(&path, TableFormat::Csv, &["caption"]).await.unwrap_err().message;
        assert!(error.contains(what) && error.contains("bad.csv"), "{error}");
    }
    let path = write(folder.path(), "t.tsv", b"url\tkey\nhttps://h/a,b.jpg\tk 1%\nhttps://h/c.jpg\tk 1%\n");
    let options = TableOptions { key_column: Some("key".to_owned()), ..TableOptions::default() };
    let entries = list_with(&tables(options), table(&path, TableFormat::Tsv), &[]).await.unwrap();
    assert_eq!((entries[0].key.as_str(), entries[0].url.as_str()), ("t.tsv/k 1%", "https://h/a,b.jpg"));
    assert_eq!(refused(&entries[1]).0, ErrorClass::DuplicateKey);
    assert_eq!(entries[1].columns, None);
}

#[tokio::test]
async fn a_csv_record_that_never_ends_costs_no_memory() {
    let folder = tempfile::tempdir().unwrap();
    let mut text = b"url,n\nhttps://h/1.jpg,1\n\"".to_vec();
    text.extend(std::iter::repeat_n(b'x', 17 << 20));
    text.extend(b"\nhttps://h/2.jpg,2\n");
    let path = write(folder.path(), "open.csv", &text);
    let entries = list(&path, TableFormat::Csv, &["n"]).await.unwrap();
    assert_eq!(entries.len(), 3);
    bad_records(&entries, "record", &[(1, 2, "is a quote left open?")]);
    assert_eq!(entries[2].url, "https://h/2.jpg");
}

#[tokio::test]
async fn standard_input_is_a_list_or_json_lines() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "a b%20.jpg", b"12");
    let standard_input = |zero_separated| {
        tables(TableOptions {
            standard_input: Some(folder.path().join("stdin")),
            working_folder: Some(folder.path().to_owned()),
            zero_separated,
            ..TableOptions::default()
        })
    };
    let stdin = |bytes: &[u8]| {
        let path = write(folder.path(), "stdin", bytes);
        TableObject { key: "stdin".to_owned(), url: "-".to_owned(), ..table(&path, TableFormat::StandardInput) }
    };
    let text = b"a b%20.jpg\r\n\n/etc/hosts\nhttps://h/x%20y.jpg\nftp://h/x\ncaf\xe9.jpg\n../up.jpg";
    let entries = list_with(&standard_input(false), stdin(text), &["caption"]).await.unwrap();
    assert_eq!(entries.len(), 6);
    assert_eq!((entries[0].key.as_str(), entries[0].bytes), ("stdin/000000001", 2));
    assert_eq!(entries[0].columns.as_deref(), Some(r#"{"caption":null}"#));
    assert_eq!((entries[1].key.as_str(), entries[1].url.as_str()), ("stdin/000000003", "file:///etc/hosts"));
    assert_eq!(entries[2].url, "https://h/x%20y.jpg");
    let (class, why) = refused(&entries[3]);
    assert!(class == ErrorClass::LocationRefused && why.starts_with("line 5 of standard input: "), "{why}");
    assert!(entries[4].url.ends_with("/caf%E9.jpg"), "{}", entries[4].url);
    assert!(entries[5].url.ends_with("/up.jpg"), "{}", entries[5].url);

    let entries = list_with(&standard_input(true), stdin(b"a\nb.jpg\0c.jpg\0"), &[]).await.unwrap();
    assert!(entries.len() == 2 && entries[0].url.ends_with("/a%0Ab.jpg"), "{entries:?}");

    let json = b"  \n{\"image\":\"/etc/hosts\",\"caption\":\"x\"}\n";
    let entries = list_with(&standard_input(false), stdin(json), &["caption"]).await.unwrap();
    assert_eq!((entries[0].key.as_str(), entries[0].url.as_str()), ("stdin/000000002", "file:///etc/hosts"));
    assert_eq!(entries[0].columns.as_deref(), Some(r#"{"caption":"x"}"#));
}

#[tokio::test]
async fn a_listing_that_is_dropped_ends() {
    let folder = tempfile::tempdir().unwrap();
    let text: String = (0..100_000).map(|row| format!("{{\"url\":\"https://host/{row}.jpg\"}}\n")).collect();
    let path = write(folder.path(), "l.jsonl", text.as_bytes());
    let listing = tables(TableOptions::default());
    {
        let mut entries = listing.list(table(&path, TableFormat::JsonLines), &Arc::default());
        entries.try_next().await.unwrap().unwrap();
    }
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    let counts = listing.counts();
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    assert_eq!(listing.counts(), counts);
    assert!(counts.rows < 10_000, "{counts:?}");
}

#[tokio::test]
async fn a_manifest_that_changed_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "l.jsonl", b"{\"url\":\"https://h/x\"}");
    let before = TableObject { tag: "1.0".to_owned(), ..table(&path, TableFormat::JsonLines) };
    let error = list_with(&tables(TableOptions::default()), before, &[]).await.unwrap_err();
    assert_eq!(error.kind, crate::IoErrorKind::SourceChanged, "{error}");
}

const TEXT: [TableFormat; 4] = [TableFormat::Csv, TableFormat::Tsv, TableFormat::JsonLines, TableFormat::StandardInput];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_table_comes_back(rows in proptest::collection::vec(("[a-zé %,\"\n]{1,12}", "\\PC{0,12}"), 1..20)) {
        let mut csv = csv::Writer::from_writer(Vec::new());
        csv.write_record(["k", "image", "caption"]).unwrap();
        let mut json = String::new();
        for (row, (name, caption)) in rows.iter().enumerate() {
            csv.write_record([&row.to_string(), &format!("d/{name}.jpg"), caption]).unwrap();
            let object = serde_json::json!({"k": row, "image": format!("d/{name}.jpg"), "caption": caption});
            json.push_str(&format!("{object}\n"));
        }
        let columns = InputColumns::new(["k", "caption"]);
        let csv = list_bytes(TableFormat::Csv, &csv.into_inner().unwrap(), &columns).unwrap();
        let json = list_bytes(TableFormat::JsonLines, json.as_bytes(), &columns).unwrap();
        prop_assert_eq!(csv.len(), rows.len());
        for (row, (csv, json)) in csv.iter().zip(&json).enumerate() {
            let (name, caption) = &rows[row];
            prop_assert_eq!(&csv.key, &format!("manifest/{row}"));
            prop_assert_eq!((&csv.key, &csv.url), (&json.key, &json.url));
            let path = Url::parse(&json.url).unwrap().to_file_path().unwrap();
            prop_assert_eq!(path, Path::new("/fuzz").join(format!("d/{name}.jpg")));
            let value: serde_json::Value = serde_json::from_str(json.columns.as_ref().unwrap()).unwrap();
            prop_assert_eq!(value["caption"].as_str(), Some(caption.as_str()));
            let mut types = ColumnTypes::new(["caption"]);
            types.observe(csv.columns.as_deref()).unwrap();
            let batch = columns_batch(&types, &[csv.columns.as_deref()]).unwrap();
            prop_assert_eq!(batch.len(), 1);
        }
    }

    #[test]
    fn damaged_text_never_panics(
        bytes in proptest::collection::vec(prop_oneof![
            Just(b'\n'), Just(b'"'), Just(b','), Just(b'{'), Just(b'}'), Just(b':'), Just(b'\r'), any::<u8>()
        ], 0..120),
        at in 0usize..200,
    ) {
        let mut whole = b"{\"k\":1,\"image\":\"a.jpg\"}\n{\"k\":2,\"image\":\"b.jpg\"}\n".to_vec();
        whole.splice(at.min(whole.len()).., bytes.iter().copied());
        let mut csv = b"k,image\n1,a.jpg\n2,\"b.jpg\"\n".to_vec();
        csv.splice(at.min(csv.len()).., bytes.iter().copied());
        let columns = InputColumns::new(["k"]);
        for format in TEXT {
            for text in [&bytes, &whole, &csv] {
                if let Ok(entries) = list_bytes(format, text, &columns) {
                    let lines = text.iter().filter(|byte| matches!(byte, b'\n' | b'\r' | 0)).count() + 1;
                    prop_assert!(entries.len() <= lines, "{} entries of {lines} lines", entries.len());
                }
            }
        }
    }
}
