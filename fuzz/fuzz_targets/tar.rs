//! Archives: any bytes have a list, every row of it is inside of the archive or says what is wrong, and no key is there
//! twice.

#![no_main]

use libfuzzer_sys::fuzz_target;
use slicemill_io::{Place, sources::tar::index};

fuzz_target!(|bytes: &[u8]| {
    let (rows, counts) = index(bytes, &["txt", "license"]);
    assert_eq!(rows.len() as u64, counts.rows);
    let mut keys = std::collections::HashSet::new();
    for row in &rows {
        assert!(keys.insert(&row.key), "{} is there twice", row.key);
        match Place::split(&row.url).1 {
            Place::At { offset, bytes: length } => assert!(offset + length <= bytes.len() as u64),
            Place::Refused { why, .. } => assert!(!why.is_empty()),
            other => panic!("{other:?}"),
        }
    }
    assert!(rows.is_sorted_by_key(|row| row.position));
});
