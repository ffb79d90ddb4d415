//! The horizontal pass with AVX2: the same sums as the portable loop, four taps of three channels at a time.
//!
//! A coefficient of 22 fractional bits does not fit the 16 bits of a multiply-add, so it is split into
//! `high · 2¹¹ + low`; both sums are exact and are put together at the end.

use std::arch::x86_64::{
    __m256i, _mm_add_epi32, _mm_cvtsi128_si32, _mm_loadu_si128, _mm_packs_epi32, _mm_packus_epi16, _mm_set1_epi32,
    _mm_slli_epi32, _mm_srai_epi32, _mm256_add_epi32, _mm256_broadcastsi128_si256, _mm256_castsi256_si128,
    _mm256_extracti128_si256, _mm256_loadu_si256, _mm256_madd_epi16, _mm256_setr_epi8, _mm256_setzero_si256,
    _mm256_shuffle_epi8,
};

use super::{Axis, PRECISION_BITS};
use crate::fault::{Fault, zeroed};

/// Bits of the lower part of a coefficient.
const LOW_BITS: u32 = 11;

/// Taps handled at once.
const GROUP: usize = 4;

/// Rows handled at once, so that every coefficient is loaded once for all of them.
const ROWS: usize = 4;

/// A load of 16 bytes begins inside a row and may reach this far beyond its end.
const BEYOND: usize = 16;

/// For every output sample and every four taps: 16 upper and 16 lower parts, in the order of the multiply-add
/// (taps 0 and 1 four times, taps 2 and 3 four times).
struct Packed {
    groups: usize,
    parts: Vec<[i16; 32]>,
}

impl Packed {
    /// `None` when a coefficient is too large to be split.
    fn new(axis: &Axis) -> Option<Self> {
        let groups = axis.spans.iter().map(|span| span.1.div_ceil(GROUP)).max().unwrap_or(0).max(1);
        let mut parts = vec![[0; 32]; groups * axis.spans.len()];
        for ((_, taps), parts) in axis.samples().zip(parts.chunks_exact_mut(groups)) {
            for (group, part) in taps.chunks(GROUP).zip(parts) {
                for (index, &coefficient) in group.iter().enumerate() {
                    let high = i16::try_from(coefficient >> LOW_BITS).ok()?;
                    let low = (coefficient & ((1 << LOW_BITS) - 1)) as i16;
                    for pair in 0..4 {
                        let at = index / 2 * 8 + pair * 2 + index % 2;
                        (part[at], part[16 + at]) = (high, low);
                    }
                }
            }
        }
        Some(Self { groups, parts })
    }
}

/// `[rows, width, 3]` → `[rows, axis, 3]`; `None` when this CPU or these coefficients need the portable loop.
pub(super) fn horizontal(pixels: &[u8], stride: usize, axis: &Axis) -> Result<Option<Vec<u8>>, Fault> {
    if !std::arch::is_x86_feature_detected!("avx2") {
        return Ok(None);
    }
    let Some(packed) = Packed::new(axis) else { return Ok(None) };
    let stride_to = axis.spans.len() * 3;
    let mut out = zeroed::<u8>(pixels.len() / stride * stride_to)?;
    let mut padded = zeroed::<u8>(ROWS * stride + BEYOND)?;
    let blocks = pixels.chunks(ROWS * stride).zip(out.chunks_mut(ROWS * stride_to));
    for (index, (block, out)) in blocks.enumerate() {
        let goes_on = pixels.get(index * ROWS * stride..).and_then(|rest| rest.get(..ROWS * stride + BEYOND));
        let source = goes_on.unwrap_or_else(|| {
            // The last rows: nothing may be read behind them.
            padded[..block.len()].copy_from_slice(block);
            &padded
        });
        // SAFETY: AVX2 was detected above.
        #[allow(unsafe_code, reason = "the CPU feature is checked above")]
        unsafe {
            if out.len() == ROWS * stride_to {
                resize_rows::<ROWS>(source, stride, axis, &packed, out);
            } else {
                for (row, out) in out.chunks_exact_mut(stride_to).enumerate() {
                    resize_rows::<1>(&source[row * stride..], stride, axis, &packed, out);
                }
            }
        }
    }
    Ok(Some(out))
}

/// Resizes `N` rows that stand one behind the other in `source`, which goes on for [`BEYOND`] bytes.
#[target_feature(enable = "avx2")]
#[allow(unsafe_code, reason = "loads from slices whose bounds are checked once for all rows")]
fn resize_rows<const N: usize>(source: &[u8], stride: usize, axis: &Axis, packed: &Packed, out: &mut [u8]) {
    let stride_to = axis.spans.len() * 3;
    assert!(source.len() >= N * stride + BEYOND && out.len() == N * stride_to, "rows and the bytes behind them");
    // Taps 0 and 1 of each channel as pairs of 16 bits in the lower half, taps 2 and 3 in the upper.
    #[rustfmt::skip]
    let order = _mm256_setr_epi8(
        0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1,
        6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1,
    );
    let half = _mm_set1_epi32(1 << (PRECISION_BITS - 1));
    for (x, &(first, count)) in axis.spans.iter().enumerate() {
        assert!((first + count) * 3 <= stride, "the taps are inside the row");
        let parts = &packed.parts[x * packed.groups..][..count.div_ceil(GROUP)];
        let mut high = [_mm256_setzero_si256(); N];
        let mut low = [_mm256_setzero_si256(); N];
        for (group, part) in parts.iter().enumerate() {
            let start = part.as_ptr().cast::<__m256i>();
            // SAFETY: `part` has 32 elements of 16 bits, which are two vectors.
            let (upper, lower) = unsafe { (_mm256_loadu_si256(start), _mm256_loadu_si256(start.add(1))) };
            let at = (first + group * GROUP) * 3;
            for row in 0..N {
                // SAFETY: group · 4 < count, so `at` is inside a row of `stride` bytes (asserted above); the load of
                // 16 bytes ends less than BEYOND bytes behind that row, and `source` is that long (asserted above).
                let pixels = unsafe { _mm_loadu_si128(source.as_ptr().add(row * stride + at).cast()) };
                let pixels = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(pixels), order);
                high[row] = _mm256_add_epi32(high[row], _mm256_madd_epi16(pixels, upper));
                low[row] = _mm256_add_epi32(low[row], _mm256_madd_epi16(pixels, lower));
            }
        }
        for row in 0..N {
            let high = _mm_add_epi32(_mm256_castsi256_si128(high[row]), _mm256_extracti128_si256::<1>(high[row]));
            let low = _mm_add_epi32(_mm256_castsi256_si128(low[row]), _mm256_extracti128_si256::<1>(low[row]));
            let sum = _mm_add_epi32(_mm_add_epi32(_mm_slli_epi32::<{ LOW_BITS as i32 }>(high), low), half);
            let words = _mm_srai_epi32::<{ PRECISION_BITS as i32 }>(sum);
            let words = _mm_packs_epi32(words, words);
            let bytes = _mm_cvtsi128_si32(_mm_packus_epi16(words, words)).to_le_bytes();
            out[row * stride_to + x * 3..][..3].copy_from_slice(&bytes[..3]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resize::horizontal_portable;

    #[test]
    fn the_kernel_equals_the_portable_loop() {
        let mut state = 1u32;
        for (width, to, rows) in [(97, 14, 9), (14, 97, 4), (1000, 3, 5), (3, 50, 1), (640, 639, 2), (1, 7, 8)] {
            let sample = |_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            };
            let pixels: Vec<u8> = (0..width * rows * 3).map(sample).collect();
            let axis = Axis::new(width, to).unwrap();
            let Some(fast) = horizontal(&pixels, width as usize * 3, &axis).unwrap() else { return };
            let mut plain = vec![0; fast.len()];
            horizontal_portable(&pixels, width as usize * 3, &axis, &mut plain);
            assert!(fast == plain, "{width} to {to}");
        }
    }
}
