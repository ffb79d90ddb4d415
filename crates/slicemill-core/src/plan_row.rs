//! A plan as a line of CSV, as `slicemill plan --sizes` prints it.

use crate::{PlanRejection, Size, SlicePlan};

/// One line: a size and what is planned for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanRow {
    /// Width of the image, pixels.
    pub width: u32,
    /// Height of the image, pixels.
    pub height: u32,
    /// Slices without the overview; 0 when only the overview is encoded. This and the columns that follow are `None`,
    /// and empty in the line, when the size was rejected.
    pub num_slices: Option<u32>,
    /// Grid columns.
    pub grid_cols: Option<u32>,
    /// Grid rows.
    pub grid_rows: Option<u32>,
    /// Encoded width of a slice, pixels.
    pub slice_w: Option<u32>,
    /// Encoded height of a slice, pixels.
    pub slice_h: Option<u32>,
    /// Encoded width of the overview, pixels.
    pub overview_w: Option<u32>,
    /// Encoded height of the overview, pixels.
    pub overview_h: Option<u32>,
    /// Empty, or why the size was rejected.
    pub error: String,
}

impl PlanRow {
    /// The first line.
    pub const CSV_HEADER: &'static str =
        "width,height,num_slices,grid_cols,grid_rows,slice_w,slice_h,overview_w,overview_h,error";

    /// The line of an image of this size.
    pub fn new(size: Size, plan: &Result<SlicePlan, PlanRejection>) -> Self {
        let planned = plan.as_ref().ok();
        Self {
            width: size.width,
            height: size.height,
            num_slices: planned.map(SlicePlan::slices),
            grid_cols: planned.map(|plan| plan.grid.cols),
            grid_rows: planned.map(|plan| plan.grid.rows),
            slice_w: planned.map(|plan| plan.slice.width),
            slice_h: planned.map(|plan| plan.slice.height),
            overview_w: planned.map(|plan| plan.overview.width),
            overview_h: planned.map(|plan| plan.overview.height),
            error: plan.as_ref().err().map(ToString::to_string).unwrap_or_default(),
        }
    }

    /// The line, without its end. A reason that holds a comma, a quote or a line break is quoted (RFC 4180).
    pub fn to_csv_line(&self) -> String {
        use std::fmt::Write as _;

        let mut line = format!("{},{}", self.width, self.height);
        for number in [
            self.num_slices,
            self.grid_cols,
            self.grid_rows,
            self.slice_w,
            self.slice_h,
            self.overview_w,
            self.overview_h,
        ] {
            line.push(',');
            if let Some(number) = number {
                // Writing to a string cannot fail.
                let _ = write!(line, "{number}");
            }
        }
        line.push(',');
        if self.error.contains([',', '"', '\r', '\n']) {
            let _ = write!(line, "\"{}\"", self.error.replace('"', "\"\""));
        } else {
            line.push_str(&self.error);
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{PolicyError, SlicingPolicy};

    fn line(name: &str, width: u32, height: u32) -> String {
        let size = Size::new(width, height);
        PlanRow::new(size, &SlicingPolicy::named(name).unwrap().plan(size)).to_csv_line()
    }

    #[test]
    fn lines_are_those_of_the_golden_files() {
        assert_eq!(line("llava-uhd", 1, 1), "1,1,6,3,2,266,406,336,336,");
        assert_eq!(line("llava-uhd-raw", 2, 1), "2,1,0,0,0,0,0,462,224,");
        assert!(line("llava-uhd", 1025, 1).starts_with("1025,1,,,,,,,,resizing 1025x1 "));
        assert_eq!(PlanRow::CSV_HEADER.split(',').count(), line("whole", 3, 4).split(',').count());
    }

    #[test]
    fn every_reason_is_one_field() {
        let image = Size::new(1, 9);
        let rejections = [
            PlanRejection::EmptyImage(image),
            PlanRejection::AspectTooExtreme { image, long_side: 1024 },
            PlanRejection::TooManyPatches { view: image, patches: 9, patches_max: 8 },
            PlanRejection::TooSmall { image, grid: crate::Grid { cols: 2, rows: 2 } },
        ];
        for rejection in rejections {
            let line = PlanRow::new(image, &Err(rejection)).to_csv_line();
            assert_eq!(line.split(',').count(), 10, "{line}");
            assert!(!line.contains(['"', '\n', '\r']) && !line.ends_with(','), "{line}");
        }
        let odd = PlanRejection::InvalidPolicy(PolicyError("a, \"b\"\nc".to_owned()));
        let line = PlanRow::new(image, &Err(odd)).to_csv_line();
        let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(line.as_bytes());
        let fields = reader.records().next().unwrap().unwrap();
        assert_eq!((fields.len(), &fields[9]), (10, "a, \"b\"\nc"));
    }
}
