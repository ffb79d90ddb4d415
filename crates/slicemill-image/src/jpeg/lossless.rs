//! The lossless process (T.81, annex H): every sample is the difference from what its neighbours let expect.
//!
//! ```text
//!      c b          the sample x is expected to be a, b, c, a + b − c, …; at the left edge b, in the first row
//!      a x          a, at the very beginning the middle of the range
//! ```
//!
//! Images of 8 bits whose components are of one size, as Pillow reads them.

use super::bits::BitReader;
use super::colour::ColourSpace;
use super::frame::{Frame, Scan, Tables};
use super::huffman::Huffman;
use crate::RgbImage;
use crate::fault::{Fault, zeroed};

/// The samples of an image, as scans bring them.
pub(super) struct Samples {
    width: usize,
    height: usize,
    /// Samples of every component in an MCU of an interleaved scan.
    samples_in_mcu: usize,
    /// One for each component, empty until its scan came.
    planes: Vec<Vec<u8>>,
}

/// A component of a scan.
struct Part<'t> {
    index: usize,
    table: &'t Huffman,
    /// The row above and this one.
    rows: [Vec<i32>; 2],
}

impl Samples {
    /// None yet.
    pub(super) fn new(frame: &Frame) -> Result<Self, Fault> {
        if frame.components.iter().any(|component| (component.h, component.v) != (frame.h_max, frame.v_max)) {
            return Err(Fault::unsupported("lossless JPEG with subsampled colours"));
        }
        let planes = frame.components.iter().map(|_| Vec::new()).collect();
        let (width, height) = (frame.size.width as usize, frame.size.height as usize);
        Ok(Self { width, height, samples_in_mcu: frame.h_max * frame.v_max, planes })
    }

    /// Every component has come.
    pub(super) fn complete(&self) -> bool {
        self.planes.iter().all(|plane| !plane.is_empty())
    }

    /// Decodes a scan whose data begins at byte `at`. Returns where the next segment is looked for.
    pub(super) fn decode(&mut self, bytes: &[u8], at: usize, scan: &Scan, tables: &Tables) -> Result<usize, Fault> {
        let mut parts = Vec::new();
        for part in &scan.components {
            let table = tables.dc[part.dc_table].as_deref();
            let table = table.ok_or_else(|| Fault::corrupt("a Huffman table of a lossless scan is missing"))?;
            let rows = [zeroed(self.width)?, zeroed(self.width)?];
            parts.push(Part { index: part.index, table, rows });
            self.planes[part.index] = zeroed(self.width * self.height)?;
        }
        if parts.len() > 1 && self.samples_in_mcu > 1 {
            return Err(Fault::unsupported("lossless JPEG with several samples of a component side by side"));
        }
        if !tables.restart_interval.is_multiple_of(self.width) {
            return Err(Fault::unsupported("lossless JPEG with restarts inside a row"));
        }
        let rows_per_interval = tables.restart_interval / self.width;
        let mut reader = BitReader::new(bytes, at);
        let mut first_row = 0;
        for y in 0..self.height {
            if rows_per_interval > 0 && y > 0 && y % rows_per_interval == 0 {
                if !reader.restart(((y / rows_per_interval - 1) & 7) as u8) {
                    return Err(interrupted(&reader, y));
                }
                first_row = y;
            }
            self.row(&mut reader, &mut parts, scan, y, y == first_row);
            if reader.overread() {
                return Err(interrupted(&reader, y));
            }
            if reader.bad_code() {
                return Err(Fault::corrupt(format!("the image data makes no sense in row {}", y + 1)));
            }
        }
        Ok(reader.position())
    }

    fn row(&mut self, reader: &mut BitReader<'_>, parts: &mut [Part<'_>], scan: &Scan, y: usize, first: bool) {
        for x in 0..self.width {
            for part in &mut *parts {
                let [above, row] = &mut part.rows;
                let expected = match (first, x) {
                    (true, 0) => 1 << (7 - scan.low),
                    (true, _) => row[x - 1],
                    (false, 0) => above[0],
                    (false, _) => expected(scan.first, row[x - 1], above[x], above[x - 1]),
                };
                reader.ensure_32();
                row[x] = (expected + part.table.dc_difference(reader)) & 0xFFFF;
            }
        }
        for part in parts {
            let line = &mut self.planes[part.index][y * self.width..][..self.width];
            for (sample, &value) in line.iter_mut().zip(&part.rows[1]) {
                *sample = (value << scan.low) as u8;
            }
            part.rows.swap(0, 1);
        }
    }

    /// The image, when every component has come.
    pub(super) fn image(&self, frame: &Frame, colour: ColourSpace) -> Result<RgbImage, Fault> {
        let mut data = zeroed::<u8>(self.width * self.height * 3)?;
        for (y, row) in data.chunks_exact_mut(self.width * 3).enumerate() {
            let mut rows: [&[u8]; 4] = [&[]; 4];
            for (row, plane) in rows.iter_mut().zip(&self.planes) {
                *row = &plane[y * self.width..][..self.width];
            }
            colour.convert(rows, row);
        }
        RgbImage::from_raw(frame.size, data).ok_or_else(|| Fault::truncated("the image data ends too early"))
    }
}

/// What predictor `number` lets expect of a sample (table H.1).
const fn expected(number: usize, a: i32, b: i32, c: i32) -> i32 {
    match number {
        1 => a,
        2 => b,
        3 => c,
        4 => a + b - c,
        5 => a + ((b - c) >> 1),
        6 => b + ((a - c) >> 1),
        _ => (a + b) >> 1,
    }
}

fn interrupted(reader: &BitReader<'_>, y: usize) -> Fault {
    if reader.at_end() {
        return Fault::truncated(format!("the image data ends in row {}", y + 1));
    }
    Fault::corrupt(format!("the image data is interrupted in row {}", y + 1))
}
