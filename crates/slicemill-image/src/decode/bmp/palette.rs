//! BMP with a palette: 1, 4 and 8 bits, plain or run-length coded.
//!
//! The rules for odd files are Pillow's: colours beyond the palette are black, the palette is read from behind the
//! header even where the pixels are said to begin there, pixels that a run-length code skips have colour 0, runs are cut
//! off at the end of a row, literal pixels go on in the next one, and an end mark before the last pixel is an error.

use slicemill_core::Size;

use super::Fields;
use crate::decode::{Decoded, Layout};
use crate::fault::{Fault, zeroed};

/// Most colours that a header may list; 256 of them count.
const COLOURS_MAX: usize = 1 << 16;

/// Decodes the pixels behind a palette.
pub(super) fn decode(fields: &Fields, bytes: &[u8], stored: Size) -> Result<Decoded, Fault> {
    if fields.colours > COLOURS_MAX {
        return Err(Fault::corrupt(format!("a palette of {} colours", fields.colours)));
    }
    let (width, height) = (stored.width as usize, stored.height as usize);
    let data = bytes.get(fields.data_at..).ok_or_else(|| Fault::truncated("the file ends before its pixels"))?;
    let indices = match fields.compression {
        0 => unpacked(fields, data, stored)?,
        coding => Runs::new(data, width, height)?.decode(coding == 2)?,
    };
    let colours = colours(fields, bytes);
    let mut pixels = zeroed::<u8>(width * height * 3)?;
    for (y, row) in pixels.chunks_exact_mut(width * 3).enumerate() {
        let line = if fields.top_down { y } else { height - 1 - y };
        for (pixel, &index) in row.as_chunks_mut::<3>().0.iter_mut().zip(&indices[line * width..][..width]) {
            *pixel = colours[usize::from(index)];
        }
    }
    Ok(Decoded::whole(stored, Layout::Rgb, pixels))
}

/// RGB of every index.
fn colours(fields: &Fields, bytes: &[u8]) -> [[u8; 3]; 256] {
    let mut table = [[0; 3]; 256];
    let palette = bytes.get(fields.palette_at..).unwrap_or_default();
    for (colour, entry) in table.iter_mut().zip(palette.chunks_exact(fields.palette_entry_bytes)).take(fields.colours) {
        *colour = [entry[2], entry[1], entry[0]];
    }
    table
}

/// Indices of rows that are not compressed, in the order of the file.
fn unpacked(fields: &Fields, data: &[u8], stored: Size) -> Result<Vec<u8>, Fault> {
    let (width, depth) = (stored.width as usize, fields.depth as usize);
    let row_bytes = usize::try_from(fields.row_bytes(stored)).map_err(|_| Fault::out_of_memory(usize::MAX))?;
    let mut indices = zeroed::<u8>(width * stored.height as usize)?;
    for (y, row) in indices.chunks_exact_mut(width).enumerate() {
        let source = data.get(y * row_bytes..).and_then(|rest| rest.get(..(width * depth).div_ceil(8)));
        let source = source.ok_or_else(|| Fault::truncated("the file ends inside the pixels"))?;
        for (x, index) in row.iter_mut().enumerate() {
            let bit = x * depth;
            *index = source[bit / 8] >> (8 - depth - bit % 8) & (0xFF >> (8 - depth)) as u8;
        }
    }
    Ok(indices)
}

/// A run-length code.
struct Runs<'a> {
    data: &'a [u8],
    at: usize,
    width: usize,
    /// Indices in the order of the file; what is not reached stays 0.
    indices: Vec<u8>,
    /// Indices that have been passed.
    passed: usize,
    /// Place in the row, by which runs are cut off.
    x: usize,
}

impl<'a> Runs<'a> {
    fn new(data: &'a [u8], width: usize, height: usize) -> Result<Self, Fault> {
        // Two bytes stand for 255 pixels at most, four for a leap of 256 rows.
        Ok(Self { data, at: 0, width, indices: zeroed(width * height)?, passed: 0, x: 0 })
    }

    fn byte(&mut self) -> Result<u8, Fault> {
        let byte = self.data.get(self.at).copied();
        self.at += 1;
        byte.ok_or_else(|| Fault::truncated("the file ends inside the run-length coded pixels"))
    }

    /// Decodes until every pixel has come or been skipped.
    fn decode(mut self, nibbles: bool) -> Result<Vec<u8>, Fault> {
        while self.passed < self.indices.len() {
            match (self.byte()?, self.byte()?) {
                (0, 0) => self.end_row(),
                (0, 1) => return Err(Fault::truncated("the run-length code ends before the last pixel")),
                (0, 2) => self.leap()?,
                (0, count) => self.literals(usize::from(count), nibbles)?,
                (count, value) => self.run(usize::from(count), value, nibbles),
            }
        }
        Ok(self.indices)
    }

    fn end_row(&mut self) {
        self.passed = self.passed.next_multiple_of(self.width).min(self.indices.len());
        self.x = 0;
    }

    fn leap(&mut self) -> Result<(), Fault> {
        let (right, rows) = (usize::from(self.byte()?), usize::from(self.byte()?));
        self.passed = (self.passed + right + rows * self.width).min(self.indices.len());
        self.x = self.passed % self.width;
        Ok(())
    }

    fn run(&mut self, count: usize, value: u8, nibbles: bool) {
        let count = count.min(self.width.saturating_sub(self.x)).min(self.indices.len() - self.passed);
        let pair = if nibbles { [value >> 4, value & 15] } else { [value, value] };
        for (offset, index) in self.indices[self.passed..][..count].iter_mut().enumerate() {
            *index = pair[offset % 2];
        }
        self.passed += count;
        self.x += count;
    }

    fn literals(&mut self, count: usize, nibbles: bool) -> Result<(), Fault> {
        let there = count.min(self.indices.len() - self.passed);
        let start = self.at;
        for offset in 0..there {
            let at = if nibbles { start + offset / 2 } else { start + offset };
            let byte = self.data.get(at).copied();
            let byte = byte.ok_or_else(|| Fault::truncated("the file ends inside the run-length coded pixels"))?;
            let value = match (nibbles, offset % 2) {
                (false, _) => byte,
                (true, 0) => byte >> 4,
                (true, _) => byte & 15,
            };
            self.indices[self.passed + offset] = value;
        }
        self.passed += there;
        self.x += count;
        // Literals are filled up to an even number of bytes.
        self.at = start + if nibbles { count.div_ceil(2) } else { count }.next_multiple_of(2);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(code: &[u8], width: usize, height: usize, nibbles: bool) -> Result<Vec<u8>, Fault> {
        Runs::new(code, width, height).unwrap().decode(nibbles)
    }

    #[test]
    fn runs_literals_and_leaps() {
        assert_eq!(decoded(&[3, 7, 0, 0, 0, 3, 1, 2, 3, 0, 0, 1], 3, 2, false).unwrap(), [7, 7, 7, 1, 2, 3]);
        assert_eq!(decoded(&[3, 0x12, 0, 0, 0, 3, 0x34, 0x50], 3, 2, true).unwrap(), [1, 2, 1, 3, 4, 5]);
        // One to the right and one row on; what is skipped up to the end has colour 0.
        assert_eq!(decoded(&[1, 9, 0, 2, 1, 1, 1, 8, 0, 2, 0, 9], 3, 3, false).unwrap(), [9, 0, 0, 0, 0, 8, 0, 0, 0]);
    }

    #[test]
    fn runs_end_with_their_row_and_literals_do_not() {
        assert_eq!(decoded(&[9, 5, 0, 0, 9, 6], 2, 2, false).unwrap(), [5, 5, 6, 6]);
        assert_eq!(decoded(&[0, 3, 1, 2, 3, 0, 0, 0], 2, 2, false).unwrap(), [1, 2, 3, 0]);
    }

    #[test]
    fn a_code_that_ends_early_is_truncated() {
        for code in [&[][..], &[3], &[3, 7], &[0, 2, 1], &[0, 4, 1, 2], &[0, 1], &[3, 7, 0, 0, 2, 8, 0, 1]] {
            let fault = decoded(code, 3, 2, false).unwrap_err();
            assert_eq!(fault.class, slicemill_core::ErrorClass::Truncated, "{code:?}");
        }
    }
}
