//! `slicemill plan --sizes` prints what the reference code plans, on every golden size.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::program;

const COLUMNS: &[&str] =
    &["width", "height", "num_slices", "grid_cols", "grid_rows", "slice_w", "slice_h", "overview_w", "overview_h"];

/// Rows of the columns above, and whether there is an error.
fn rows(text: &str) -> Vec<(Vec<String>, bool)> {
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let headers = reader.headers().expect("header").clone();
    let column = |name: &str| headers.iter().position(|h| h == name).unwrap_or_else(|| panic!("no column {name}"));
    let (wanted, error) = (COLUMNS.iter().map(|name| column(name)).collect::<Vec<_>>(), column("error"));
    let record = |r: csv::StringRecord| (wanted.iter().map(|i| r[*i].to_owned()).collect(), !r[error].is_empty());
    reader.records().map(|r| record(r.expect("record"))).collect()
}

fn planned(policy: &str, sizes: &Path) -> String {
    program::expect(0, &["plan", "--sizes", program::text(sizes), "--policy", policy, "--format", "csv"])
}

fn golden(name: &str) -> PathBuf {
    program::root().join("tests/data/slices").join(name)
}

fn check(policy: &str, name: &str) {
    let path = golden(name);
    let expected = rows(&fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())));
    let found = rows(&planned(policy, &path));
    assert_eq!(found.len(), expected.len());
    assert!(expected.len() > 3000, "{name} holds the golden sizes");
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!(found.1, expected.1, "{policy}: error of {:?}", expected.0);
        if expected.1 {
            assert_eq!(found.0[..2], expected.0[..2]);
        } else {
            assert_eq!(found.0, expected.0, "{policy}");
        }
    }
}

#[test]
fn released_llava_uhd() {
    check("llava-uhd", "golden_v1_jul24_official_eval1024.csv");
}

#[test]
fn released_llava_uhd_without_pre_resize() {
    check("llava-uhd-raw", "golden_v1_jul24_official_raw.csv");
}

#[test]
fn llava_uhd_v2() {
    check("llava-uhd-v2", "golden_v2_official_eval1024_max9.csv");
}

#[test]
fn minicpm_v() {
    check("minicpm-v", "golden_minicpmv_448_9_14.csv");
}

/// The grid of the first code, the sizes of the rewrite that keeps each slice in its own aspect.
#[test]
fn paper() {
    let sizes = golden("golden_better_raw.csv");
    let found = rows(&planned("llava-uhd-paper", &sizes));
    let grids = rows(&fs::read_to_string(golden("golden_v1_mar24_official.csv")).expect("golden"));
    let expected = rows(&fs::read_to_string(&sizes).expect("golden"));
    assert_eq!((found.len(), grids.len()), (expected.len(), expected.len()));
    for ((found, grid), expected) in found.iter().zip(&grids).zip(&expected) {
        assert_eq!(found.0[..5], grid.0[..5]);
        assert_eq!(found.0[5..], expected.0[5..], "sizes of {:?}", &expected.0[..2]);
    }
}

#[test]
fn the_header_is_exact_and_bad_rows_are_named() {
    let folder = tempfile::tempdir().expect("folder");
    let sizes = folder.path().join("sizes.csv");
    fs::File::create(&sizes).and_then(|mut f| f.write_all(b"width,height\n100,100\n4000,10\n")).expect("written");
    let printed = planned("llava-uhd", &sizes);
    let header = "width,height,num_slices,grid_cols,grid_rows,slice_w,slice_h,overview_w,overview_h,error";
    assert_eq!(printed.lines().next(), Some(header));
    assert_eq!(printed.lines().nth(1), Some("100,100,6,3,2,266,406,336,336,"));
    fs::write(&sizes, "width,height\n100,abc\n").expect("written");
    let args = ["plan", "--sizes", program::text(&sizes), "--policy", "llava-uhd", "--format", "csv"];
    let complaint = program::complaint(2, &args);
    assert!(
        complaint.contains("sizes.csv") && complaint.contains("abc") && complaint.contains("line 2"),
        "{complaint}"
    );
}
