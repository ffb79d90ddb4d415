//! Plans against what the published code printed, row by row (`tests/data/slices`), and known answers.

use std::path::Path;

use crate::{Grid, PlanRejection, PlanRow, Schema, Size, SlicePlan, SlicingPolicy};

/// The rows of a file of `tests/data/slices`, by column name.
struct Golden {
    columns: Vec<String>,
    rows: Vec<csv::StringRecord>,
}

impl Golden {
    fn read(file: &str) -> Self {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/slices"));
        let mut reader = csv::Reader::from_path(folder.join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
        let columns = reader.headers().unwrap().iter().map(str::to_owned).collect();
        let rows = reader.records().collect::<Result<Vec<_>, _>>().unwrap();
        assert!(rows.len() > 3000, "{file} is cut short: {} rows", rows.len());
        Self { columns, rows }
    }

    fn text<'a>(&self, row: &'a csv::StringRecord, column: &str) -> &'a str {
        let at = self.columns.iter().position(|name| name == column).unwrap_or_else(|| panic!("no column {column}"));
        &row[at]
    }

    fn size(&self, row: &csv::StringRecord) -> Size {
        Size::new(self.text(row, "width").parse().unwrap(), self.text(row, "height").parse().unwrap())
    }
}

fn policy(name: &str) -> SlicingPolicy {
    SlicingPolicy::named(name).unwrap_or_else(|| panic!("{name}"))
}

/// The columns that `slicemill plan --sizes` and the golden files share, the error apart.
const NUMBERS: [&str; 9] =
    ["width", "height", "num_slices", "grid_cols", "grid_rows", "slice_w", "slice_h", "overview_w", "overview_h"];

/// Compares every row; returns how many were rejected.
fn check_file(name: &str, file: &str) -> usize {
    let (golden, policy) = (Golden::read(file), policy(name));
    let mut rejected = 0;
    for row in &golden.rows {
        let size = golden.size(row);
        let plan = policy.plan(size);
        let line = PlanRow::new(size, &plan).to_csv_line();
        let fields: Vec<&str> = line.split(',').collect();
        assert_eq!(fields.len(), NUMBERS.len() + 1, "{name} {size}: {line}");
        for (column, field) in NUMBERS.iter().zip(&fields) {
            assert_eq!(*field, golden.text(row, column), "{name} {size}: {column}");
        }
        assert_eq!(fields[9].is_empty(), golden.text(row, "error").is_empty(), "{name} {size}: {line}");
        rejected += usize::from(plan.is_err());
        if let Ok(plan) = plan {
            check_extras(&golden, row, &plan);
        }
    }
    rejected
}

/// Columns that only some files have.
fn check_extras(golden: &Golden, row: &csv::StringRecord, plan: &SlicePlan) {
    if golden.columns.iter().any(|name| name == "pre_w") {
        assert_eq!(plan.working.width.to_string(), golden.text(row, "pre_w"), "{}", plan.image);
        assert_eq!(plan.working.height.to_string(), golden.text(row, "pre_h"), "{}", plan.image);
    }
    if golden.columns.iter().any(|name| name == "ind_tokens") {
        let separators = golden.text(row, "ind_tokens").split(';').filter(|id| !id.is_empty()).count();
        assert_eq!(plan.separators(Schema::CommaNewline) as usize, separators, "{}", plan.image);
    }
    if golden.columns.iter().any(|name| name == "num_encoded") {
        assert_eq!(plan.view_count().to_string(), golden.text(row, "num_encoded"), "{}", plan.image);
    }
}

#[test]
fn llava_uhd_equals_the_evaluation_code() {
    assert_eq!(check_file("llava-uhd", "golden_v1_jul24_official_eval1024.csv"), 18);
}

#[test]
fn llava_uhd_raw_equals_the_released_code() {
    assert_eq!(check_file("llava-uhd-raw", "golden_v1_jul24_official_raw.csv"), 0);
}

#[test]
fn llava_uhd_v2_equals_the_evaluation_code() {
    assert_eq!(check_file("llava-uhd-v2", "golden_v2_official_eval1024_max9.csv"), 18);
}

#[test]
fn minicpm_v_equals_the_released_code() {
    assert_eq!(check_file("minicpm-v", "golden_minicpmv_448_9_14.csv"), 0);
}

#[test]
fn llava_uhd_paper_has_the_sizes_of_the_corrected_code() {
    assert_eq!(check_file("llava-uhd-paper", "golden_better_raw.csv"), 0);
}

#[test]
fn llava_uhd_paper_has_the_grid_of_the_first_code() {
    let (golden, policy) = (Golden::read("golden_v1_mar24_official.csv"), policy("llava-uhd-paper"));
    for row in &golden.rows {
        let size = golden.size(row);
        let grid = policy.plan(size).unwrap().grid;
        assert_eq!(grid.slices().to_string(), golden.text(row, "num_slices"), "{size}");
        assert_eq!(grid.cols.to_string(), golden.text(row, "grid_cols"), "{size}");
        assert_eq!(grid.rows.to_string(), golden.text(row, "grid_rows"), "{size}");
    }
}

#[test]
fn adapt_size_keeps_its_rounding_errors() {
    let (golden, policy) = (Golden::read("golden_v1_mar24_adapt_size_fp_traps.csv"), policy("llava-uhd-paper"));
    let mut traps = 0;
    for row in &golden.rows {
        let size = golden.size(row);
        let overview = policy.adapt_size(size);
        assert_eq!((overview.width / 14).to_string(), golden.text(row, "patches_w"), "{size}");
        assert_eq!((overview.height / 14).to_string(), golden.text(row, "patches_h"), "{size}");
        assert_eq!(policy.plan(size).unwrap().overview, overview, "{size}");
        traps += usize::from(golden.text(row, "fp_differs_from_exact") == "1");
    }
    assert!(traps > 900, "{traps} of the rows are traps");
}

/// 2 × 3 and 3 × 2 are equally far from a square, but not in floats: the later one is nearer by one unit in the last
/// place. A platform whose logarithm rounds these two otherwise would plan every large square differently.
#[test]
fn the_logarithm_rounds_as_the_reference_platform() {
    let ln = |cols: f64, rows: f64| std::hint::black_box(cols / rows).ln();
    assert_eq!(ln(2.0, 3.0).to_bits(), (-0.405_465_108_108_164_44_f64).to_bits());
    assert_eq!(ln(3.0, 2.0).to_bits(), 0.405_465_108_108_164_4_f64.to_bits());
    assert!(ln(3.0, 2.0) < -ln(2.0, 3.0));
    assert_eq!(ln(1.0, 2.0), -ln(2.0, 1.0));
}

#[test]
fn squares_change_grid_where_documented() {
    let released = [(336, 0, 0), (337, 1, 2), (475, 1, 2), (476, 2, 2), (751, 2, 2), (752, 3, 2)];
    let paper = [(336, 1, 1), (337, 1, 2), (475, 1, 2), (476, 2, 2), (751, 2, 2), (752, 3, 2)];
    let minicpm = [(448, 0, 0), (449, 1, 2), (633, 1, 2), (634, 2, 2), (1001, 2, 2), (1002, 3, 2)];
    let minicpm_large = [(1185, 3, 2), (1186, 3, 3)];
    check_squares("llava-uhd-raw", &released);
    check_squares("llava-uhd-paper", &paper);
    check_squares("minicpm-v", &minicpm);
    check_squares("minicpm-v", &minicpm_large);
}

/// Checks (side, columns, rows) of squares.
fn check_squares(name: &str, squares: &[(u32, u32, u32)]) {
    for &(side, cols, rows) in squares {
        let grid = policy(name).plan(Size::new(side, side)).unwrap().grid;
        assert_eq!(grid, Grid { cols, rows }, "{name} {side}");
    }
}

/// Answers of an independent transcription of the reference in Python, for numbers other than the published ones.
#[test]
fn overrides_scale_the_policy() {
    let cases = [
        ("llava-uhd-raw", (640, 480), (112, 14, Some(6)), "6,3,2,98,112,126,84"),
        ("llava-uhd-raw", (160, 120), (112, 14, Some(6)), "2,2,1,84,126,126,84"),
        ("llava-uhd-raw", (3000, 500), (112, 14, Some(6)), "6,6,1,112,112,266,42"),
        ("llava-uhd-raw", (37, 2000), (112, 14, Some(6)), "6,1,6,28,336,14,812"),
        ("llava-uhd-raw", (99, 99), (112, 14, Some(6)), "0,0,0,0,0,112,112"),
        ("llava-uhd-raw", (5000, 4000), (384, 16, Some(1)), "0,0,0,0,0,416,336"),
        ("llava-uhd", (640, 480), (112, 14, Some(6)), "6,3,2,98,112,126,84"),
        ("llava-uhd-paper", (640, 480), (112, 14, Some(6)), "6,3,2,98,112,126,84"),
        ("llava-uhd-paper", (80, 80), (112, 14, Some(1)), "1,1,1,112,112,112,112"),
        ("llava-uhd-paper", (900, 901), (384, 16, Some(9)), "6,2,3,464,304,368,384"),
        ("minicpm-v", (1000, 700), (224, 16, Some(36)), "15,5,3,208,240,272,192"),
        ("whole", (640, 480), (112, 14, None), "0,0,0,0,0,126,84"),
        ("pad-square", (640, 480), (112, 14, None), "0,0,0,0,0,112,112"),
        ("fixed-2x2", (640, 480), (112, 14, None), "4,2,2,112,112,112,112"),
    ];
    for (name, (width, height), (side, patch, max_slices), expected) in cases {
        let policy = policy(name).with_overrides(Some(side), Some(patch), max_slices).unwrap();
        let size = Size::new(width, height);
        let line = PlanRow::new(size, &policy.plan(size)).to_csv_line();
        assert_eq!(line, format!("{width},{height},{expected},"), "{name} {side} {patch} {max_slices:?}");
    }
}

#[test]
fn rejections_name_the_size_and_the_remedy() {
    let plan = |name: &str, width, height| policy(name).plan(Size::new(width, height));
    let aspect = plan("llava-uhd", 1, 1025).unwrap_err();
    assert_eq!(aspect, PlanRejection::AspectTooExtreme { image: Size::new(1, 1025), long_side: 1024 });
    assert!(aspect.to_string().contains("1x1025") && aspect.to_string().contains("without pre-resize"), "{aspect}");
    assert!(plan("llava-uhd", 1, 1024).is_ok());

    assert_eq!(plan("whole", 0, 5).unwrap_err(), PlanRejection::EmptyImage(Size::new(0, 5)));
    assert!(matches!(plan("whole", 1, u32::MAX), Err(PlanRejection::TooManyPatches { patches: 1_572_863, .. })));

    let cut_first = SlicingPolicy { cut: crate::Cut::CutThenResize, ..policy("fixed-2x2") };
    let too_small = cut_first.plan(Size::new(1, 9)).unwrap_err();
    assert_eq!(too_small, PlanRejection::TooSmall { image: Size::new(1, 9), grid: Grid { cols: 2, rows: 2 } });
}

#[test]
fn long_narrow_images_have_a_plan() {
    let patches = |name: &str, height| {
        let plan = policy(name).plan(Size::new(1, height)).unwrap();
        plan.views().iter().map(crate::View::patches).max().unwrap()
    };
    assert_eq!(patches("llava-uhd-raw", 65_500), 6142);
    assert_eq!(patches("llava-uhd-raw", 100_000), 7589);
    assert_eq!(patches("minicpm-v", 100_000), 10_119);
}
