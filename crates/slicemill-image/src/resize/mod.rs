//! Bicubic resizing, equal to Pillow's `Image.resize(size, Resampling.BICUBIC)` on every byte.
//!
//! Two passes, each only when its side changes, with rounding to 8 bits in between; a = −0.5;
//! the support grows with the downscale factor; coefficients are normalised in f64 and then rounded to 22 fractional
//! bits. (Algorithm: Pillow's `Resample.c`.)

use slicemill_core::{ErrorClass, RowError, Size, Stage};

#[cfg(target_arch = "x86_64")]
mod avx2;

use crate::RgbImage;
use crate::fault::{Fault, zeroed};
use crate::kernel::kernel;

/// Fractional bits of a coefficient: 32 bits less 8 for a sample and 2 for overshoot and sign.
const PRECISION_BITS: u32 = 32 - 8 - 2;

/// Half the width of the bicubic kernel, in source pixels at scale 1.
const SUPPORT: f64 = 2.0;

/// The bicubic kernel with a = −0.5.
fn bicubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

/// The coefficients of one axis.
struct Axis {
    /// First source sample and number of samples of every output sample.
    spans: Vec<(usize, usize)>,
    /// `[output samples, taps]`, fixed point.
    coefficients: Vec<i32>,
    /// Coefficients kept per output sample.
    taps: usize,
}

impl Axis {
    fn new(from: u32, to: u32) -> Result<Self, Fault> {
        let scale = f64::from(from) / f64::from(to);
        let filter_scale = scale.max(1.0);
        let support = SUPPORT * filter_scale;
        let taps = support.ceil() as usize * 2 + 1;
        let mut coefficients = zeroed::<i32>(taps * to as usize)?;
        let mut spans = Vec::with_capacity(to as usize);
        let mut weights = vec![0.0; taps];
        for (index, row) in (0..to).zip(coefficients.chunks_exact_mut(taps)) {
            let center = (f64::from(index) + 0.5) * scale;
            let first = ((center - support + 0.5) as i64).max(0) as usize;
            let last = ((center + support + 0.5) as i64).clamp(0, i64::from(from)) as usize;
            let count = last.saturating_sub(first).min(taps);
            let mut sum = 0.0;
            for (offset, weight) in weights[..count].iter_mut().enumerate() {
                *weight = bicubic(((offset + first) as f64 - center + 0.5) * (1.0 / filter_scale));
                sum += *weight;
            }
            for (coefficient, weight) in row.iter_mut().zip(&weights[..count]) {
                let weight = if sum == 0.0 { *weight } else { *weight / sum };
                *coefficient = fixed_point(weight);
            }
            spans.push((first, count));
        }
        Ok(Self { spans, coefficients, taps })
    }

    fn samples(&self) -> impl Iterator<Item = (usize, &[i32])> {
        let rows = self.coefficients.chunks_exact(self.taps);
        self.spans.iter().zip(rows).map(|(&(first, count), row)| (first, &row[..count]))
    }

    /// The source samples that are used at all.
    fn range(&self) -> std::ops::Range<usize> {
        let start = self.spans.first().map_or(0, |span| span.0);
        let end = self.spans.last().map_or(0, |span| span.0 + span.1);
        start..end
    }
}

/// Rounds half away from zero.
fn fixed_point(weight: f64) -> i32 {
    let scaled = weight * f64::from(1u32 << PRECISION_BITS);
    if weight < 0.0 { (scaled - 0.5) as i32 } else { (scaled + 0.5) as i32 }
}

#[inline(always)]
fn to_u8(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

/// Resizes an image, equal to Pillow's bicubic on every byte. Neither size may be empty.
///
/// # Errors
/// `out_of_memory`; `plan_rejected` when a size is empty.
pub fn resize_bicubic(image: &RgbImage, to: Size) -> Result<RgbImage, RowError> {
    if image.size().pixels() == 0 || to.pixels() == 0 {
        let message = format!("{} cannot be resized to {to}; plan the image again", image.size());
        return Err(RowError::new(ErrorClass::PlanRejected, Stage::Slice, message));
    }
    resize(image, to)
        .map_err(|fault| RowError::new(fault.class, Stage::Slice, format!("{}; use a smaller side", fault.what)))
}

/// Resizes to `to`; neither size is empty.
pub(crate) fn resize(image: &RgbImage, to: Size) -> Result<RgbImage, Fault> {
    let from = image.size();
    let pixels = image.as_bytes();
    let result = match (from.width != to.width, from.height != to.height) {
        (false, false) => pixels.to_vec(),
        (true, false) => horizontal(pixels, from.width, &Axis::new(from.width, to.width)?, 0..from.height as usize)?,
        (false, true) => vertical(pixels, to.width, &Axis::new(from.height, to.height)?, 0)?,
        (true, true) => {
            let (across, down) = (Axis::new(from.width, to.width)?, Axis::new(from.height, to.height)?);
            if vertical_first(from, to) {
                let low = vertical(pixels, from.width, &down, 0)?;
                horizontal(&low, from.width, &across, 0..to.height as usize)?
            } else {
                let rows = down.range();
                let narrow = horizontal(pixels, from.width, &across, rows.clone())?;
                vertical(&narrow, to.width, &down, rows.start)?
            }
        }
    };
    RgbImage::from_raw(to, result).ok_or_else(|| Fault::corrupt("the pixels do not fill the image"))
}

/// Whether rows are summed before columns: when the image loses more than twice as many rows as columns. (Pillow does
/// so since version 13; before, columns always came first. The results differ by rounding only.)
fn vertical_first(from: Size, to: Size) -> bool {
    let lost_rows = i64::from(from.height) - i64::from(to.height);
    let lost_columns = i64::from(from.width) - i64::from(to.width);
    lost_rows > 0 && lost_rows > 2 * lost_columns
}

/// `[rows, width, 3]` → `[rows, axis, 3]`, for the given rows only.
fn horizontal(pixels: &[u8], width: u32, axis: &Axis, rows: std::ops::Range<usize>) -> Result<Vec<u8>, Fault> {
    let stride = width as usize * 3;
    let pixels = &pixels[rows.start * stride..rows.end * stride];
    #[cfg(target_arch = "x86_64")]
    if let Some(out) = avx2::horizontal(pixels, stride, axis)? {
        return Ok(out);
    }
    let mut out = zeroed::<u8>(rows.len() * axis.spans.len() * 3)?;
    horizontal_portable(pixels, stride, axis, &mut out);
    Ok(out)
}

fn horizontal_portable(pixels: &[u8], stride: usize, axis: &Axis, out: &mut [u8]) {
    for (row, out) in pixels.chunks_exact(stride).zip(out.chunks_exact_mut(axis.spans.len() * 3)) {
        for ((first, coefficients), out) in axis.samples().zip(out.chunks_exact_mut(3)) {
            let mut sums = [1i32 << (PRECISION_BITS - 1); 3];
            for (pixel, &coefficient) in row[first * 3..].chunks_exact(3).zip(coefficients) {
                for (sum, &sample) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(sample) * coefficient;
                }
            }
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = to_u8(sum);
            }
        }
    }
}

/// `[rows, width, 3]` → `[axis, width, 3]`; `first_row` is the source row at the start of `pixels`.
fn vertical(pixels: &[u8], width: u32, axis: &Axis, first_row: usize) -> Result<Vec<u8>, Fault> {
    let stride = width as usize * 3;
    let mut out = zeroed::<u8>(axis.spans.len() * stride)?;
    for ((first, coefficients), out) in axis.samples().zip(out.chunks_exact_mut(stride)) {
        sum_rows(&pixels[(first - first_row) * stride..], stride, coefficients, out);
    }
    Ok(out)
}

/// Samples summed at once in the vertical pass; their sums stay in registers.
const LANES: usize = 64;

kernel! {
    /// One output row: the first rows of `rows` times their coefficients.
    fn sum_rows(rows: &[u8], stride: usize, coefficients: &[i32], out: &mut [u8]) {
        let (whole, rest) = out.as_chunks_mut::<LANES>();
        for (index, out) in whole.iter_mut().enumerate() {
            let mut sums = [1i32 << (PRECISION_BITS - 1); LANES];
            for (row, &coefficient) in rows.chunks_exact(stride).zip(coefficients) {
                let samples = &row[index * LANES..][..LANES];
                for (sum, &sample) in sums.iter_mut().zip(samples) {
                    *sum += i32::from(sample) * coefficient;
                }
            }
            for (out, &sum) in out.iter_mut().zip(&sums) {
                *out = to_u8(sum);
            }
        }
        let done = whole.len() * LANES;
        for (index, out) in rest.iter_mut().enumerate() {
            let column = rows[done + index..].iter().step_by(stride);
            let sum: i32 = column.zip(coefficients).map(|(&sample, &k)| i32::from(sample) * k).sum();
            *out = to_u8(sum + (1 << (PRECISION_BITS - 1)));
        }
    }
}
