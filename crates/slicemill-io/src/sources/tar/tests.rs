//! Tests of `tar`: formats, names, damage.

use ::tar::{Builder, EntryType, Header};
use proptest::prelude::*;
use slicemill_core::ErrorClass;

use super::*;
use crate::Place;

fn header(name: &str, bytes: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_path(name).unwrap();
    header.set_size(bytes);
    header.set_mode(0o644);
    header.set_cksum();
    header
}

/// A header whose name is written as it is, whatever it is.
fn raw_header(name: &[u8], bytes: u64) -> Header {
    let mut header = header("x", bytes);
    header.as_old_mut().name = [0; 100];
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.set_cksum();
    header
}

fn archive(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (name, contents) in members {
        builder.append(&header(name, contents.len() as u64), *contents).unwrap();
    }
    builder.into_inner().unwrap()
}

fn rows(bytes: &[u8]) -> Vec<InputEntry> {
    index(bytes, &[]).0
}

fn names(rows: &[InputEntry]) -> Vec<&str> {
    rows.iter().map(|row| row.key.strip_prefix("a.tar/").unwrap()).collect()
}

/// The contents of a row, or its class.
fn read(archive: &[u8], row: &InputEntry) -> Result<Vec<u8>, ErrorClass> {
    match Place::split(&row.url).1 {
        Place::At { offset, bytes } => {
            let (start, length) = (usize::try_from(offset).unwrap(), usize::try_from(bytes).unwrap());
            Ok(archive[start..start + length].to_vec())
        }
        Place::Refused { class, .. } => Err(class),
        other => panic!("{other:?}"),
    }
}

fn why(row: &InputEntry) -> String {
    match Place::split(&row.url).1 {
        Place::Refused { why, .. } => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn members_are_rows_in_the_order_of_the_archive() {
    let bytes = archive(&[("z.jpg", b"one"), ("a/b.png", &[7; 1000]), ("m.jpg", b"")]);
    let rows = rows(&bytes);
    assert_eq!(names(&rows), ["z.jpg", "a/b.png", "m.jpg"]);
    assert_eq!(rows.iter().map(|row| row.position).collect::<Vec<_>>(), [0, 1, 2]);
    assert!(rows.iter().all(|row| row.container == 5 && row.rank().0 == "a.tar" && row.columns.is_none()));
    assert_eq!(read(&bytes, &rows[0]).unwrap(), b"one");
    assert_eq!(read(&bytes, &rows[1]).unwrap(), [7; 1000]);
    assert_eq!((rows[2].bytes, read(&bytes, &rows[2]).unwrap()), (0, Vec::new()));
}

#[test]
fn long_names_of_gnu_and_pax_and_old_archives() {
    let long = format!("{}/{}.jpg", "d".repeat(150), "f".repeat(150));
    let mut builder = Builder::new(Vec::new());
    let mut gnu = header("x", 3);
    builder.append_data(&mut gnu, &long, &b"gnu"[..]).unwrap();
    let pax = format!("pax-{long}");
    builder.append_pax_extensions([("path", pax.as_bytes()), ("comment", b"x")]).unwrap();
    builder.append(&header("short.jpg", 3), &b"pax"[..]).unwrap();
    // The size stands in the records, the header says zero.
    builder.append_pax_extensions([("size", &b"4"[..])]).unwrap();
    let mut bytes = builder.into_inner().unwrap();
    bytes.truncate(bytes.len() - 1024);
    bytes.extend(header("size.jpg", 0).as_bytes());
    bytes.extend(b"size");
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    let mut old = Header::new_old();
    old.set_path("old.jpg").unwrap();
    old.set_size(3);
    old.set_cksum();
    bytes.extend(old.as_bytes());
    bytes.extend(b"old");
    bytes.resize(bytes.len().next_multiple_of(512) + 1024, 0);
    let rows = rows(&bytes);
    assert_eq!(names(&rows), [&long, &pax, "size.jpg", "old.jpg"]);
    let contents: Vec<_> = rows.iter().map(|row| read(&bytes, row).unwrap()).collect();
    assert_eq!(contents, [&b"gnu"[..], b"pax", b"size", b"old"]);
}

#[test]
fn global_records_hold_for_all_that_follow() {
    let mut records = header("g", 0);
    records.set_entry_type(EntryType::XGlobalHeader);
    let text = b"17 path=same.jpg\n";
    records.set_size(text.len() as u64);
    records.set_cksum();
    let mut builder = Builder::new(Vec::new());
    builder.append(&records, &text[..]).unwrap();
    builder.append(&header("a.jpg", 1), &b"a"[..]).unwrap();
    assert_eq!(names(&rows(&builder.into_inner().unwrap())), ["same.jpg"]);
}

#[test]
fn what_is_no_file_is_counted() {
    let mut builder = Builder::new(Vec::new());
    for (kind, name) in [
        (EntryType::Directory, "d/"),
        (EntryType::Symlink, "s.jpg"),
        (EntryType::Link, "l.jpg"),
        (EntryType::Char, "c"),
        (EntryType::Fifo, "f"),
    ] {
        let mut header = header(name, 0);
        header.set_entry_type(kind);
        // Such members have no contents, whatever they say.
        header.set_size(4096);
        header.set_cksum();
        builder.append(&header, &b""[..]).unwrap();
    }
    for name in ["a.jpg", "._a.jpg", "a.json", "a.npy", "notes"] {
        builder.append(&header(name, 5), &b"hello"[..]).unwrap();
    }
    builder.append(&header("unnamed", 4), &b"\xff\xd8\xff\xe0"[..]).unwrap();
    let (rows, counts) = index(&builder.into_inner().unwrap(), &[]);
    assert_eq!(names(&rows), ["a.jpg", "unnamed"]);
    let left_out: Vec<_> = counts.left_out.iter().map(|(what, count)| (what.as_str(), *count)).collect();
    let expected = [
        (".json", 1),
        (".npy", 1),
        ("devices", 2),
        ("folders", 1),
        ("links", 2),
        ("noise of archivers", 1),
        ("other", 1),
    ];
    assert_eq!(left_out, expected);
    assert_eq!((counts.rows, counts.notes.len()), (2, 0), "{:?}", counts.notes);
}

#[test]
fn names_that_lead_out_are_refused() {
    let mut bytes = Vec::new();
    for name in [&b"/etc/a.jpg"[..], b"../b.jpg", b"c/../../d.jpg", b"./e.jpg", b"caf\xe9.jpg"] {
        bytes.extend(raw_header(name, 0).as_bytes());
    }
    bytes.extend([0; 1024]);
    let rows = rows(&bytes);
    assert_eq!(names(&rows), ["%2Fetc/a.jpg", "%2E%2E/b.jpg", "c/%2E%2E/%2E%2E/d.jpg", "e.jpg", "caf%E9.jpg"]);
    let classes: Vec<_> = rows.iter().map(|row| read(&bytes, row).err()).collect();
    let refused = Some(ErrorClass::LocationRefused);
    assert_eq!(classes, [refused, refused, refused, None, None]);
    assert!(why(&rows[0]).contains("/etc/a.jpg") && why(&rows[0]).contains("absolute"), "{}", why(&rows[0]));
}

#[test]
fn of_members_with_one_name_the_first_counts() {
    let bytes = archive(&[("a.jpg", b"1"), ("./a.jpg", b"2"), ("a.jpg", b"3")]);
    let (rows, counts) = index(&bytes, &[]);
    assert_eq!(names(&rows), ["a.jpg", "a.jpg (2)", "a.jpg (3)"]);
    assert_eq!(read(&bytes, &rows[0]).unwrap(), b"1");
    assert_eq!(read(&bytes, &rows[2]), Err(ErrorClass::DuplicateKey));
    assert_eq!(counts.refused.get(&ErrorClass::DuplicateKey), Some(&2));
}

#[test]
fn sparse_members_are_refused() {
    let mut sparse = header("a.jpg", 512);
    sparse.set_entry_type(EntryType::GNUSparse);
    // One block of the header more.
    sparse.as_gnu_mut().unwrap().isextended = [1];
    sparse.set_cksum();
    let mut bytes = sparse.as_bytes().to_vec();
    bytes.extend([0; 1024]);
    bytes.extend(archive(&[("b.jpg", b"b")]));
    let rows = rows(&bytes);
    assert_eq!(names(&rows), ["a.jpg", "b.jpg"]);
    assert_eq!(read(&bytes, &rows[0]), Err(ErrorClass::BadRecord));
    assert!(why(&rows[0]).contains("sparse"));
}

#[test]
fn sizes_that_lie_cost_the_member_only() {
    let small = [7_u8; 100];
    for (size, class) in
        [(1 << 40, ErrorClass::BadRecord), (2000, ErrorClass::BadRecord), (u64::MAX >> 1, ErrorClass::BadRecord)]
    {
        let mut bytes = header("liar.jpg", size).as_bytes().to_vec();
        bytes.extend([1; 512]);
        bytes.extend(archive(&[("b.jpg", &small), ("c.jpg", &small)]));
        let rows = rows(&bytes);
        assert_eq!(names(&rows), ["liar.jpg", "b.jpg", "c.jpg"], "{size}");
        assert_eq!(read(&bytes, &rows[0]), Err(class));
        assert!(why(&rows[0]).contains("another member begins after 512"), "{}", why(&rows[0]));
        assert_eq!(read(&bytes, &rows[2]).unwrap(), small);
    }
}

#[test]
fn sizes_that_are_no_sizes() {
    let mut negative = header("negative.jpg", 0);
    negative.as_old_mut().size = [0xff; 12];
    let mut huge = header("huge.jpg", 0);
    huge.as_old_mut().size = [0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut words = header("words.jpg", 0);
    words.as_old_mut().size = *b"many bytes\0\0";
    let mut bytes = Vec::new();
    for header in [&mut negative, &mut huge, &mut words] {
        header.set_cksum();
        bytes.extend(header.as_bytes());
        bytes.extend([1; 512]);
    }
    bytes.extend(archive(&[("b.jpg", b"b")]));
    let rows = rows(&bytes);
    assert_eq!(names(&rows), ["negative.jpg", "huge.jpg", "words.jpg", "b.jpg"]);
    for (row, said) in rows.iter().zip(["negative", "64 bits", "not a number"]) {
        assert_eq!(read(&bytes, row), Err(ErrorClass::BadRecord));
        assert!(why(row).contains(said), "{}", why(row));
    }
}

#[test]
fn a_damaged_header_costs_its_member() {
    let mut bytes = archive(&[("a.jpg", b"a"), ("b.jpg", &[1; 2000]), ("c.jpg", b"c")]);
    bytes[1024 + 130] ^= 0x55;
    let (rows, counts) = index(&bytes, &[]);
    assert_eq!(names(&rows), ["a.jpg", "(damaged at byte 1024)", "c.jpg"]);
    assert_eq!(read(&bytes, &rows[1]), Err(ErrorClass::BadRecord));
    let said = why(&rows[1]);
    assert!(said.contains("file:///a.tar") && said.contains("'b.jpg'") && said.contains("2560 bytes"), "{said}");
    assert_eq!(read(&bytes, &rows[2]).unwrap(), b"c");
    assert_eq!(counts.refused.get(&ErrorClass::BadRecord), Some(&1));
}

#[test]
fn an_archive_that_ends_early() {
    let whole = archive(&[("a.jpg", b"a"), ("b.jpg", &[1; 2000])]);
    for (length, last, class) in [
        (1536 + 100, "b.jpg", Some(ErrorClass::Truncated)),
        (1536, "b.jpg", Some(ErrorClass::Truncated)),
        (1024 + 77, "(damaged at byte 1024)", Some(ErrorClass::Truncated)),
        // The contents are all there.
        (1536 + 2000, "b.jpg", None),
    ] {
        let bytes = &whole[..length];
        let (rows, counts) = index(bytes, &[]);
        assert_eq!(names(&rows), ["a.jpg", last], "{length}");
        assert_eq!(read(bytes, &rows[1]).err(), class, "{length}");
        assert_eq!(counts.notes.len(), 1, "{length}: {:?}", counts.notes);
    }
    let (rows, counts) = index(&whole[..1024], &[]);
    assert_eq!(names(&rows), ["a.jpg"]);
    assert!(counts.notes[0].contains("end mark"), "{:?}", counts.notes);
}

#[test]
fn archives_one_after_the_other_and_holes() {
    let (one, two) = (archive(&[("a.jpg", b"a")]), archive(&[("b.jpg", b"b")]));
    let joined = [&one[..], &two].concat();
    assert_eq!(names(&rows(&joined)), ["a.jpg", "b.jpg"]);
    let hole = [&one[..], &[0; 64 << 10], &two].concat();
    let found = rows(&hole);
    assert_eq!(names(&found), ["a.jpg", "(damaged at byte 1024)", "b.jpg"]);
    assert!(why(&found[1]).contains("zeros"));
    let trailing = [&one[..], &[9; 3000]].concat();
    let (rows, counts) = index(&trailing, &[]);
    assert_eq!(names(&rows), ["a.jpg"]);
    assert!(counts.notes[0].contains("3000 bytes after its end"), "{:?}", counts.notes);
}

#[test]
fn records_of_absurd_size_are_not_read() {
    let mut long = header("././@LongLink", 900 << 20);
    long.set_entry_type(EntryType::GNULongName);
    long.set_cksum();
    let bytes = [long.as_bytes(), &[b'x'; 512], &archive(&[("a.jpg", b"a")])[..]].concat();
    let rows = rows(&bytes);
    assert_eq!(names(&rows), ["(damaged at byte 0)", "a.jpg"]);
    assert_eq!(read(&bytes, &rows[1]).unwrap(), b"a");
}

#[test]
fn texts_of_a_sample_become_columns() {
    let bytes = archive(&[
        ("x/0.jpg", b"0"),
        ("x/0.json", br#"{"license":"cc0","width":512,"n":{"a":[1]}}"#),
        ("x/0.txt", "ein B\u{e4}r".as_bytes()),
        ("x/0.cls", b"7\n"),
        ("x/1.json", b"{broken"),
        ("x/1.txt", b"\xff"),
        ("x/1.jpg", b"1"),
        ("x/2.seg.png", b"2"),
        ("x/2.jpg", b"2"),
        ("x/2.json", br#"{"license":null}"#),
        ("y/2.jpg", b"3"),
    ]);
    let (rows, counts) = index(&bytes, &["txt", "license", "cls", "n"]);
    let columns: Vec<_> = rows.iter().map(|row| row.columns.as_deref().unwrap()).collect();
    let none = r#"{"txt":null,"license":null,"cls":null,"n":null}"#;
    assert_eq!(names(&rows), ["x/0.jpg", "x/1.jpg", "x/2.seg.png", "x/2.jpg", "y/2.jpg"]);
    assert_eq!(columns[0], r#"{"txt":"ein Bär","license":"cc0","cls":7,"n":{"a":[1]}}"#);
    assert_eq!(columns[1..], [none; 4]);
    assert_eq!(counts.notes.len(), 2, "{:?}", counts.notes);
    let whole = index(&bytes, &["json"]).0;
    let text: serde_json::Value = serde_json::from_str(whole[0].columns.as_deref().unwrap()).unwrap();
    assert_eq!(text["json"], r#"{"license":"cc0","width":512,"n":{"a":[1]}}"#);
}

#[test]
fn texts_of_a_sample_are_bounded() {
    let long = vec![b'x'; 700 << 10];
    let bytes =
        archive(&[("0.jpg", b"0"), ("0.a", &long), ("0.b", &long), ("1.jpg", b"1"), ("1.a", &vec![b'x'; 2 << 20])]);
    let (rows, counts) = index(&bytes, &["a", "b"]);
    assert!(rows[0].columns.as_deref().unwrap().ends_with(r#"x","b":null}"#));
    assert_eq!(rows[1].columns.as_deref(), Some(r#"{"a":null,"b":null}"#));
    assert_eq!(counts.notes.len(), 2, "{:?}", counts.notes);
}

fn members() -> impl Strategy<Value = Vec<Vec<u8>>> {
    prop::collection::vec((0_usize..4000, any::<u8>()).prop_map(|(length, byte)| vec![byte; length]), 1..12)
}

proptest! {
    #[test]
    fn any_bytes_have_a_list(bytes in prop::collection::vec(prop::sample::select(vec![0_u8, b'0', b'7', b'x', 255]), 0..4096)) {
        let (rows, counts) = index(&bytes, &["txt"]);
        prop_assert_eq!(rows.len() as u64, counts.rows);
    }

    /// Every member that the damage does not touch is listed and has its bytes; nothing is listed twice.
    #[test]
    fn damage_costs_what_it_touches(
        contents in members(),
        from in any::<prop::sample::Index>(),
        length in 1_usize..1500,
        byte in any::<u8>(),
        cut in any::<bool>(),
    ) {
        let named: Vec<_> = contents.iter().enumerate().map(|(n, bytes)| (format!("{n}.jpg"), bytes)).collect();
        let list: Vec<_> = named.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
        let mut bytes = archive(&list);
        let from = from.index(bytes.len());
        let until = if cut { bytes.len() } else { (from + length).min(bytes.len()) };
        if cut {
            bytes.truncate(from);
        } else {
            bytes[from..until].fill(byte);
        }
        let (rows, counts) = index(&bytes, &[]);
        prop_assert_eq!(rows.len() as u64, counts.rows);
        let mut keys: Vec<_> = rows.iter().map(|row| &row.key).collect();
        keys.sort();
        keys.dedup();
        prop_assert_eq!(keys.len(), rows.len());
        prop_assert!(rows.is_sorted_by_key(|row| row.position));
        let mut at = 0;
        for (name, contents) in &list {
            let end = at + 512 + contents.len();
            if until <= at || from >= end {
                let row = rows.iter().find(|row| row.key == format!("a.tar/{name}"));
                prop_assert!(row.is_some(), "{} is lost", name);
                prop_assert_eq!(&read(&bytes, row.unwrap()).unwrap(), contents);
            }
            at = end.next_multiple_of(512);
        }
    }
}
