//! Tables of images as other programs write them.

use std::path::PathBuf;

use ::parquet::arrow::ArrowWriter;
use ::parquet::basic::{BrotliLevel, Compression, GzipLevel, ZstdLevel};
use ::parquet::file::properties::{WriterProperties, WriterPropertiesBuilder, WriterVersion};
use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, FixedSizeBinaryArray, Int64Array, LargeBinaryArray, ListArray, StringArray,
    StructArray, TimestampMicrosecondArray,
};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, Field, Fields, Schema};
use arrow::record_batch::RecordBatch;
use proptest::prelude::*;

use super::*;
use crate::IoErrorKind;

fn properties() -> WriterPropertiesBuilder {
    WriterProperties::builder().set_max_row_group_row_count(Some(4)).set_data_page_size_limit(64)
}

fn write(folder: &Path, columns: Vec<(&str, ArrayRef)>, properties: WriterPropertiesBuilder) -> PathBuf {
    let fields: Vec<_> =
        columns.iter().map(|(name, array)| Field::new(*name, array.data_type().clone(), true)).collect();
    let schema = Arc::new(Schema::new(fields));
    let arrays = columns.into_iter().map(|(_, array)| array).collect();
    let batch = RecordBatch::try_new(Arc::clone(&schema), arrays).unwrap();
    let path = folder.join("t.parquet");
    let file = std::fs::File::create(&path).unwrap();
    let mut writer = ArrowWriter::try_new(file, schema, Some(properties.set_write_batch_size(1).build())).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    path
}

/// Ten images: of 0 bytes, of 700, of some. Two have none.
fn images() -> Vec<Option<Vec<u8>>> {
    let image = |row: usize| match row {
        2 | 9 => None,
        3 => Some(Vec::new()),
        5 => Some(vec![5; 700]),
        row => Some(vec![u8::try_from(row).unwrap(); 20 + row]),
    };
    (0..10).map(image).collect()
}

fn binary(values: &[Option<Vec<u8>>]) -> ArrayRef {
    Arc::new(BinaryArray::from_iter(values.iter().map(Option::as_deref)))
}

/// The struct of Hugging Face. Row 9 is no struct at all, row 2 a struct without bytes.
fn hugging_face(values: &[Option<Vec<u8>>]) -> ArrayRef {
    let fields =
        Fields::from(vec![Field::new("bytes", DataType::Binary, true), Field::new("path", DataType::Utf8, true)]);
    let paths = StringArray::from_iter((0..values.len()).map(|row| Some(format!("x/{row}.jpg"))));
    let valid = NullBuffer::from_iter((0..values.len()).map(|row| row != 9));
    Arc::new(StructArray::new(fields, vec![binary(values), Arc::new(paths)], Some(valid)))
}

/// The class of a value that is not there, or cannot be read.
#[tokio::test]
async fn values_that_are_not_there_have_a_class() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), vec![("image", binary(&images()))], properties());
    let entries = list(&path, TableFormat::Parquet, &[]).await.unwrap();
    let error = cells().read(&entries[2]).await.unwrap_err().row_error();
    assert_eq!(error.class, ErrorClass::BadRecord, "{error}");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[chunk(&path, 0, 0)].fill(0xff);
    std::fs::write(&path, &bytes).unwrap();
    let entries = list(&path, TableFormat::Parquet, &[]).await.unwrap();
    let error = cells().read(&entries[0]).await.unwrap_err().row_error();
    assert_eq!(error.class, ErrorClass::Corrupt, "{error}");
}

async fn read_all(entries: &[InputEntry]) -> Vec<Result<Vec<u8>, String>> {
    let reader = cells();
    let mut values = Vec::new();
    for entry in entries {
        values.push(reader.read(entry).await.map(|bytes| bytes.to_vec()).map_err(|error| {
            assert_eq!(error.fate, slicemill_core::Fate::Row, "{error}");
            error.message
        }));
    }
    values
}

async fn check_images(path: &Path, column: &str) {
    let entries = list(path, TableFormat::Parquet, &[]).await.unwrap();
    assert_eq!(entries.len(), 10);
    assert_eq!(entries[7].key, "t.parquet/000000007");
    let (_, place) = Place::split(&entries[7].url);
    assert_eq!(place, Place::Cell { row: 7, column: column.to_owned() });
    assert!(entries.iter().all(|entry| entry.estimated && (1024..4096).contains(&entry.bytes)), "{entries:?}");
    for (row, (value, expected)) in read_all(&entries).await.into_iter().zip(images()).enumerate() {
        match (value, expected) {
            (Ok(value), Some(expected)) => assert_eq!(value, expected, "row {row}"),
            (Err(why), None) => assert!(why.contains(&format!("row {row} of")) && why.contains("no image"), "{why}"),
            (value, expected) => panic!("row {row} is {value:?}, not {expected:?}"),
        }
    }
}

#[tokio::test]
async fn images_come_back_from_every_layout() {
    let folder = tempfile::tempdir().unwrap();
    let codecs = [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::ZSTD(ZstdLevel::try_new(1).unwrap()),
        Compression::GZIP(GzipLevel::default()),
        Compression::BROTLI(BrotliLevel::default()),
        Compression::LZ4,
        Compression::LZ4_RAW,
    ];
    for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
        for dictionary in [false, true] {
            for compression in codecs {
                let properties = properties()
                    .set_writer_version(version)
                    .set_dictionary_enabled(dictionary)
                    .set_compression(compression);
                let path = write(folder.path(), vec![("image", hugging_face(&images()))], properties.clone());
                check_images(&path, "image.bytes").await;
                let large: ArrayRef = Arc::new(LargeBinaryArray::from_iter(images().iter().map(Option::as_deref)));
                let path = write(folder.path(), vec![("jpg", large)], properties);
                check_images(&path, "jpg").await;
            }
        }
    }
}

#[tokio::test]
async fn values_of_fixed_size_are_images_too() {
    let folder = tempfile::tempdir().unwrap();
    let values = [Some([1_u8; 8]), None, Some([3; 8])];
    let array = FixedSizeBinaryArray::try_from_sparse_iter_with_size(values.iter().copied(), 8).unwrap();
    let path = write(folder.path(), vec![("png", Arc::new(array))], properties());
    let read = read_all(&list(&path, TableFormat::Parquet, &[]).await.unwrap()).await;
    assert_eq!((read[0].as_deref(), read[2].as_deref()), (Ok(&[1; 8][..]), Ok(&[3; 8][..])));
    assert!(read[1].as_ref().is_err_and(|why| why.contains("'png' is null")), "{:?}", read[1]);
}

#[tokio::test]
async fn structs_without_any_bytes_are_locations() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), vec![("image", hugging_face(&vec![None; 10]))], properties());
    let entries = list(&path, TableFormat::Parquet, &[]).await.unwrap();
    assert!(entries[4].url.ends_with("/x/4.jpg"), "{}", entries[4].url);
    let (class, why) = refused(&entries[9]);
    assert_eq!(class, ErrorClass::BadRecord);
    assert!(why.contains("row 9 of /") && why.contains("'image.path' is null"), "{why}");
}

#[tokio::test]
async fn locations_keys_and_columns_are_read_while_listing() {
    let folder = tempfile::tempdir().unwrap();
    let texts = |texts: &[Option<&str>]| -> ArrayRef { Arc::new(StringArray::from(texts.to_vec())) };
    let lists = ListArray::from_iter_primitive::<arrow::datatypes::Int64Type, _, _>([
        Some([Some(1)]),
        None,
        Some([None]),
        None,
        None,
    ]);
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("url", texts(&[Some("https://h/a b.jpg"), None, Some("../x"), Some("s3://b/c.jpg"), Some("https://h/e")])),
        ("id", Arc::new(Int64Array::from(vec![Some(7), Some(8), Some(9), Some(7), None]))),
        ("text", texts(&[Some("ä\""), None, None, Some(""), None])),
        ("ok", Arc::new(BooleanArray::from(vec![true, false, true, false, true]))),
        ("at", Arc::new(TimestampMicrosecondArray::from(vec![0, 1, 2, 3, 4]).with_timezone("Europe/Berlin"))),
        ("list", Arc::new(lists)),
        ("blob", binary(&vec![Some(vec![1]); 5])),
    ];
    let path = write(folder.path(), columns, properties());
    let options = TableOptions { key_column: Some("id".to_owned()), ..TableOptions::default() };
    let listing = tables(options);
    let file = table(&path, TableFormat::Parquet);
    let names = ["text", "list", "at", "ok", "gone"];
    let entries = list_with(&listing, file.clone(), &names).await.unwrap();
    assert_eq!((entries[0].key.as_str(), entries[0].url.as_str()), ("t.parquet/7", "https://h/a%20b.jpg"));
    let columns = r#"{"text":"ä\"","list":[1],"at":"1970-01-01T00:00:00Z","ok":true,"gone":null}"#;
    assert_eq!(entries[0].columns.as_deref(), Some(columns));
    let classes: Vec<_> = entries[1..].iter().map(|entry| (entry.key.clone(), refused(entry).0)).collect();
    let expected = [
        ("t.parquet/8", ErrorClass::BadRecord),
        ("t.parquet/9", ErrorClass::LocationRefused),
        ("t.parquet/000000003", ErrorClass::DuplicateKey),
        ("t.parquet/000000004", ErrorClass::BadRecord),
    ];
    assert_eq!(classes, expected.map(|(key, class)| (key.to_owned(), class)));
    let error = listing.check_columns(&InputColumns::new(names)).unwrap_err().message;
    assert!(error.contains("'gone'") && error.contains("'blob'"), "{error}");
    let error = list_with(&listing, file, &["blob"]).await.unwrap_err().message;
    assert!(error.contains("'blob'") && error.contains("binary"), "{error}");
}

#[tokio::test]
async fn columns_that_cannot_be_images_are_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("width", Arc::new(Int64Array::from(vec![1, 2]))),
        ("caption", Arc::new(StringArray::from(vec!["a", "b"]))),
    ];
    let path = write(folder.path(), columns, properties());
    let error = list(&path, TableFormat::Parquet, &[]).await.unwrap_err();
    assert_eq!(error.kind, IoErrorKind::Invalid);
    assert!(error.message.contains("width (Int64), caption (Utf8)"), "{error}");
    assert!(error.message.contains("--image-column"), "{error}");
    for (name, what) in [("width", "'width' of"), ("photo", "no column 'photo'")] {
        let options = TableOptions { image_column: Some(name.to_owned()), ..TableOptions::default() };
        let error = list_with(&tables(options), table(&path, TableFormat::Parquet), &[]).await.unwrap_err().message;
        assert!(error.contains(what), "{error}");
    }
}

#[tokio::test]
async fn a_file_without_a_footer_is_one_refused_row() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), vec![("image", binary(&images()))], properties());
    let whole = std::fs::read(&path).unwrap();
    for bytes in [&whole[..whole.len() - 9], &whole[..3], b""] {
        std::fs::write(&path, bytes).unwrap();
        let entries = list(&path, TableFormat::Parquet, &[]).await.unwrap();
        let (class, why) = refused(&entries[0]);
        assert_eq!((entries.len(), entries[0].key.as_str(), class), (1, "t.parquet", ErrorClass::Corrupt));
        assert!(why.contains("the footer of"), "{why}");
    }
}

/// Where the first page of a column begins in a row group, and its bytes.
fn chunk(path: &Path, group: usize, column: usize) -> std::ops::Range<usize> {
    let file = std::fs::File::open(path).unwrap();
    let metadata = ::parquet::file::metadata::ParquetMetaDataReader::new().parse_and_finish(&file).unwrap();
    let (start, bytes) = metadata.row_group(group).column(column).byte_range();
    usize::try_from(start).unwrap()..usize::try_from(start + bytes).unwrap()
}

#[tokio::test]
async fn a_damaged_row_group_loses_its_own_rows_only() {
    let folder = tempfile::tempdir().unwrap();
    let captions = || Arc::new(StringArray::from_iter_values((0..10).map(|row| format!("caption {row}"))));
    let columns = || -> Vec<(&str, ArrayRef)> { vec![("image", binary(&images())), ("caption", captions())] };
    let properties = || properties().set_dictionary_enabled(false).set_compression(Compression::SNAPPY);
    let path = write(folder.path(), columns(), properties());
    let mut bytes = std::fs::read(&path).unwrap();
    // The last page of the middle group, rows 6 and 7; the page before it holds rows 4 and 5.
    let range = chunk(&path, 1, 0);
    bytes[range.end - 12..range.end].fill(0xff);
    std::fs::write(&path, &bytes).unwrap();
    let entries = list(&path, TableFormat::Parquet, &["caption"]).await.unwrap();
    assert_eq!(entries.len(), 10);
    let read = read_all(&entries).await;
    for (row, value) in read.iter().enumerate() {
        match (row, value) {
            (6 | 7, Err(why)) => {
                assert!(why.contains(&format!("row {row}")) && why.contains("row group 1 of"), "{why}")
            }
            (2 | 9, Err(why)) => assert!(why.contains("no image"), "{why}"),
            (_, value) => assert_eq!(value.as_ref().ok(), images()[row].as_ref(), "row {row}"),
        }
    }
    // The captions of the last group: they are asked for, so its rows cannot be listed.
    let path = write(folder.path(), columns(), properties());
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[chunk(&path, 2, 1)].fill(0xff);
    std::fs::write(&path, &bytes).unwrap();
    let entries = list(&path, TableFormat::Parquet, &["caption"]).await.unwrap();
    assert_eq!(entries.len(), 10);
    assert!(matches!(Place::split(&entries[7].url).1, Place::Cell { .. }));
    for (row, entry) in entries.iter().enumerate().skip(8) {
        let (class, why) = refused(entry);
        assert_eq!((class, entry.position), (ErrorClass::Corrupt, row as u64));
        assert!(why.contains("row group 2 of"), "{why}");
    }
    assert_eq!(list(&path, TableFormat::Parquet, &[]).await.unwrap().len(), 10);
}

#[tokio::test]
async fn pages_and_values_above_the_limit_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let values = vec![Some(vec![1; 50_000]), Some(vec![2; 10])];
    for compression in [Compression::UNCOMPRESSED, Compression::SNAPPY] {
        let properties = properties().set_dictionary_enabled(false).set_compression(compression);
        let path = write(folder.path(), vec![("image", binary(&values))], properties);
        let entries = list(&path, TableFormat::Parquet, &[]).await.unwrap();
        let error = cells().with_page_bytes_max(40_000).read(&entries[0]).await.unwrap_err();
        assert!(error.message.contains("more than the limit of 40000"), "{error}");
        let small = CellReader::new(Stores::default(), RetryBudget::ONCE, Spool::in_temp_dir(), 40_000);
        let error = small.read(&entries[0]).await.unwrap_err();
        assert_eq!((error.kind, error.message.contains("50000 bytes")), (IoErrorKind::TooLarge, true), "{error}");
        assert_eq!(small.read_prefix(&entries[0], 5).await.unwrap().as_ref(), [1; 5]);
        assert_eq!(small.read(&entries[1]).await.unwrap().as_ref(), [2; 10]);
    }
}

#[tokio::test]
async fn rows_that_are_not_there_are_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), vec![("image", binary(&images()))], properties());
    let entry = &list(&path, TableFormat::Parquet, &[]).await.unwrap()[0];
    let (object, _) = Place::split(&entry.url);
    for (row, column) in [(10, "image"), (u64::MAX, "image"), (0, "photo")] {
        let url = Place::Cell { row, column: column.to_owned() }.join(object);
        let error = cells().read(&InputEntry { url, ..entry.clone() }).await.unwrap_err();
        assert!(error.message.contains("was it replaced"), "{error}");
    }
    let changed = InputEntry { tag: "1.0".to_owned(), ..entry.clone() };
    assert_eq!(cells().read(&changed).await.unwrap_err().kind, IoErrorKind::SourceChanged);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(cells().read(entry).await.unwrap_err().kind, IoErrorKind::NotFound);
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_images_come_back(
        values in proptest::collection::vec(proptest::option::of(proptest::collection::vec(any::<u8>(), 0..200)), 1..40),
        dictionary: bool,
        nested: bool,
        second: bool,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let column = if nested { hugging_face(&values) } else { binary(&values) };
        let version = if second { WriterVersion::PARQUET_2_0 } else { WriterVersion::PARQUET_1_0 };
        let properties = properties().set_dictionary_enabled(dictionary).set_writer_version(version);
        let path = write(folder.path(), vec![("image", column)], properties);
        let all_null = nested && values.iter().all(Option::is_none);
        let read = runtime().block_on(async {
            let entries = list(&path, TableFormat::Parquet, &[]).await.unwrap();
            if all_null { Vec::new() } else { read_all(&entries).await }
        });
        for (row, value) in read.iter().enumerate() {
            let expected = values[row].as_ref().filter(|_| !nested || row != 9);
            prop_assert_eq!(value.as_ref().ok(), expected);
        }
    }

    #[test]
    fn damaged_files_never_panic(
        damage in proptest::collection::vec((0.0..1.0_f64, any::<u8>()), 1..6),
        footer: bool,
        dictionary: bool,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let captions: ArrayRef = Arc::new(StringArray::from_iter_values((0..10).map(|row| format!("c{row}"))));
        let columns = vec![("image", hugging_face(&images())), ("caption", captions)];
        let properties = properties().set_dictionary_enabled(dictionary).set_compression(Compression::SNAPPY);
        let path = write(folder.path(), columns, properties);
        let mut bytes = std::fs::read(&path).unwrap();
        let from = if footer { bytes.len() * 2 / 3 } else { 0 };
        for (at, byte) in damage {
            let span = (bytes.len() - from) as f64;
            bytes[from + (at * span) as usize] = byte;
        }
        std::fs::write(&path, &bytes).unwrap();
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let listed = runtime().block_on(async {
            let entries = list(&path, TableFormat::Parquet, &["caption"]).await;
            if let Ok(entries) = &entries && entries.len() <= 20 {
                read_all_any(entries).await;
            }
            entries
        });
        std::panic::set_hook(hook);
        if let Err(error) = listed {
            prop_assert!(!error.message.contains("broke off"), "{}", error);
        }
    }
}

async fn read_all_any(entries: &[InputEntry]) {
    let reader = cells();
    for entry in entries {
        if let Err(error) = reader.read(entry).await {
            assert!(!error.message.contains("broke off"), "{error}");
        }
    }
}
