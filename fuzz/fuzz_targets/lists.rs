//! Lists: JSON lines, CSV, TSV and standard input. Any bytes have rows or an error, in order, and every row says where
//! it is or what is wrong with it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use slicemill_io::sources::TableFormat;
use slicemill_io::tables::list_bytes;
use slicemill_io::{ColumnTypes, InputColumns, Place, columns_batch};

fuzz_target!(|bytes: &[u8]| {
    let columns = InputColumns::new(["license", "n"]);
    for format in [TableFormat::JsonLines, TableFormat::Csv, TableFormat::Tsv, TableFormat::StandardInput] {
        let Ok(rows) = list_bytes(format, bytes, &columns) else { continue };
        assert!(rows.is_sorted_by_key(|row| row.position));
        let mut types = ColumnTypes::new(["license", "n"]);
        let mut texts = Vec::new();
        for row in &rows {
            if let Place::Refused { why, .. } = Place::split(&row.url).1 {
                assert!(!why.is_empty());
            }
            types.observe(row.columns.as_deref()).expect("columns are an object");
            texts.push(row.columns.as_deref());
        }
        columns_batch(&types, &texts).expect("what was seen fits its types");
    }
});
