//! Coefficients to pixels, one row of MCUs after the other.

use super::Ending;
use super::colour::ColourSpace;
use super::frame::Frame;
use super::idct;
use super::upsample::Upsampling;
use crate::RgbImage;
use crate::fault::{Fault, zeroed};
use crate::kernel::kernel;

/// Rows of MCUs whose samples are kept: upsampling looks one row of samples back and one ahead.
const KEPT: usize = 3;

/// The samples of one component.
struct Plane {
    quant: [u16; 64],
    /// Rows of samples in a row of MCUs.
    band: usize,
    stride: usize,
    width: usize,
    height: usize,
    upsampling: Upsampling,
    /// `[KEPT · band, stride]`; row `y` stands at `y` modulo `KEPT · band`.
    samples: Vec<u8>,
    /// An upsampled row.
    row: Vec<u8>,
    sums: Vec<u16>,
}

impl Plane {
    fn line(&self, y: usize) -> &[u8] {
        &self.samples[y % (KEPT * self.band) * self.stride..][..self.width]
    }
}

/// Turns rows of MCUs into rows of pixels.
pub(super) struct Painter {
    planes: Vec<Plane>,
    colour: ColourSpace,
    width: usize,
    height: usize,
    /// Rows of pixels in a row of MCUs.
    band: usize,
    next: usize,
    row: Vec<u8>,
    out: Vec<u8>,
}

impl Painter {
    /// For a frame all of whose quantisation tables are known, unless its data may end before them: a component of which
    /// nothing came has no coefficients either.
    pub(super) fn new(frame: &Frame, colour: ColourSpace, ending: Ending) -> Result<Self, Fault> {
        let (width, height) = (frame.size.width as usize, frame.size.height as usize);
        let mut planes = Vec::new();
        for component in &frame.components {
            let missing = || Fault::corrupt(format!("component {} has no data", component.id));
            let (band, stride) = (component.v * 8, component.block_stride * 8);
            let (h, v) = (frame.h_max / component.h, frame.v_max / component.v);
            let nothing = (ending == Ending::Anywhere).then_some([0; 64]);
            planes.push(Plane {
                quant: component.quant.or(nothing).ok_or_else(missing)?,
                band,
                stride,
                width: component.width,
                height: component.height,
                upsampling: match colour {
                    ColourSpace::Stored => Upsampling::repeating(h, v),
                    _ => Upsampling::new(h, v, component.width),
                },
                samples: zeroed(KEPT * band * stride)?,
                row: zeroed(component.width * h)?,
                sums: zeroed(component.width)?,
            });
        }
        let mut out = Vec::new();
        out.try_reserve_exact(width * height * 3).map_err(|_| Fault::out_of_memory(width * height * 3))?;
        Ok(Self { planes, colour, width, height, band: frame.v_max * 8, next: 0, row: zeroed(width * 3)?, out })
    }

    /// Takes the next row of MCUs: for every component, `[rows of blocks, blocks, 64]` coefficients.
    pub(super) fn push<'c>(&mut self, coefficients: impl Iterator<Item = &'c [i16]>) {
        for (plane, coefficients) in self.planes.iter_mut().zip(coefficients) {
            let rows = plane.band / 8;
            let per_row = plane.stride * 8;
            for (index, coefficients) in coefficients.chunks_exact(per_row).take(rows).enumerate() {
                let y = (self.next % KEPT) * plane.band + index * 8;
                let samples = &mut plane.samples[y * plane.stride..][..8 * plane.stride];
                idct::block_row(coefficients, &plane.quant, samples, plane.stride);
            }
        }
        self.next += 1;
        // The row before is complete now that the one below it is known.
        if self.next > 1 {
            self.paint(self.next - 2);
        }
    }

    /// The image, when every row of MCUs has been pushed.
    pub(super) fn finish(mut self, size: slicemill_core::Size) -> Result<RgbImage, Fault> {
        if self.next > 0 {
            self.paint(self.next - 1);
        }
        RgbImage::from_raw(size, self.out).ok_or_else(|| Fault::truncated("the image data ends too early"))
    }

    fn paint(&mut self, mcu_row: usize) {
        let end = ((mcu_row + 1) * self.band).min(self.height);
        for y in mcu_row * self.band..end {
            paint_row(&mut self.planes, self.colour, y, self.width, &mut self.row);
            self.out.extend_from_slice(&self.row);
        }
    }
}

kernel! {
    /// Upsamples and converts row `y` of the image.
    fn paint_row(planes: &mut [Plane], colour: ColourSpace, y: usize, width: usize, out: &mut [u8]) {
        let mut rows: [&[u8]; 4] = [&[]; 4];
        for (plane, row) in planes.iter_mut().zip(&mut rows) {
            let (near, far) = plane.upsampling.rows(y, plane.height);
            let mut buffer = std::mem::take(&mut plane.row);
            let mut sums = std::mem::take(&mut plane.sums);
            plane.upsampling.apply(plane.line(near), plane.line(far), y % 2 == 1, &mut sums, &mut buffer);
            (plane.row, plane.sums) = (buffer, sums);
            let source = if plane.upsampling == Upsampling::None { plane.line(near) } else { &plane.row };
            *row = &source[..width];
        }
        colour.convert(rows, out);
    }
}
