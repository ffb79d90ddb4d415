//! The inverse DCT with AVX2: two neighbouring blocks at once, one in each half of the vectors.

use std::arch::x86_64::{
    __m128i, __m256i, _mm_loadu_si128, _mm_storeu_si128, _mm256_add_epi16, _mm256_add_epi32, _mm256_and_si256,
    _mm256_broadcastsi128_si256, _mm256_castsi256_si128, _mm256_extracti128_si256, _mm256_madd_epi16,
    _mm256_mullo_epi16, _mm256_or_si256, _mm256_packs_epi16, _mm256_packs_epi32, _mm256_permute4x64_epi64,
    _mm256_set_m128i, _mm256_set1_epi8, _mm256_set1_epi32, _mm256_setr_epi16, _mm256_setzero_si256, _mm256_srai_epi32,
    _mm256_sub_epi16, _mm256_sub_epi32, _mm256_testz_si256, _mm256_unpackhi_epi16, _mm256_unpackhi_epi32,
    _mm256_unpackhi_epi64, _mm256_unpacklo_epi16, _mm256_unpacklo_epi32, _mm256_unpacklo_epi64, _mm256_xor_si256,
};

use super::{FIRST_DESCALE, SECOND_DESCALE, flat};

/// Lower and upper four values of each half, widened to 32 bits.
#[derive(Clone, Copy)]
struct Wide {
    low: __m256i,
    high: __m256i,
}

/// `a · factors.0 + b · factors.1`.
#[inline]
#[target_feature(enable = "avx2")]
fn rotated(a: __m256i, b: __m256i, factors: (i16, i16)) -> Wide {
    let pair = _mm256_set1_epi32((i32::from(factors.1) << 16) | (i32::from(factors.0) & 0xFFFF));
    Wide {
        low: _mm256_madd_epi16(_mm256_unpacklo_epi16(a, b), pair),
        high: _mm256_madd_epi16(_mm256_unpackhi_epi16(a, b), pair),
    }
}

/// Times 2¹³.
#[inline]
#[target_feature(enable = "avx2")]
fn scaled(a: __m256i) -> Wide {
    let zero = _mm256_setzero_si256();
    Wide {
        low: _mm256_srai_epi32::<3>(_mm256_unpacklo_epi16(zero, a)),
        high: _mm256_srai_epi32::<3>(_mm256_unpackhi_epi16(zero, a)),
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn sum(a: Wide, b: Wide) -> Wide {
    Wide { low: _mm256_add_epi32(a.low, b.low), high: _mm256_add_epi32(a.high, b.high) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn difference(a: Wide, b: Wide) -> Wide {
    Wide { low: _mm256_sub_epi32(a.low, b.low), high: _mm256_sub_epi32(a.high, b.high) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn descaled<const BITS: i32>(a: Wide) -> __m256i {
    let half = _mm256_set1_epi32(1 << (BITS - 1));
    let low = _mm256_srai_epi32::<BITS>(_mm256_add_epi32(a.low, half));
    let high = _mm256_srai_epi32::<BITS>(_mm256_add_epi32(a.high, half));
    _mm256_packs_epi32(low, high)
}

/// One pass over the columns of both blocks; the same sums as [`super::pass`].
#[inline]
#[target_feature(enable = "avx2")]
fn pass<const BITS: i32>(v: [__m256i; 8]) -> [__m256i; 8] {
    let tmp3 = rotated(v[2], v[6], (4433 + 6270, 4433));
    let tmp2 = rotated(v[2], v[6], (4433, 4433 - 15137));
    let tmp0 = scaled(_mm256_add_epi16(v[0], v[4]));
    let tmp1 = scaled(_mm256_sub_epi16(v[0], v[4]));
    let (even0, even3) = (sum(tmp0, tmp3), difference(tmp0, tmp3));
    let (even1, even2) = (sum(tmp1, tmp2), difference(tmp1, tmp2));

    let z3 = _mm256_add_epi16(v[7], v[3]);
    let z4 = _mm256_add_epi16(v[5], v[1]);
    let (z3, z4) = (rotated(z3, z4, (9633 - 16069, 9633)), rotated(z3, z4, (9633, 9633 - 3196)));
    let odd3 = sum(rotated(v[7], v[1], (2446 - 7373, -7373)), z3);
    let odd0 = sum(rotated(v[7], v[1], (-7373, 12299 - 7373)), z4);
    let odd2 = sum(rotated(v[5], v[3], (16819 - 20995, -20995)), z4);
    let odd1 = sum(rotated(v[5], v[3], (-20995, 25172 - 20995)), z3);

    [
        descaled::<BITS>(sum(even0, odd0)),
        descaled::<BITS>(sum(even1, odd1)),
        descaled::<BITS>(sum(even2, odd2)),
        descaled::<BITS>(sum(even3, odd3)),
        descaled::<BITS>(difference(even3, odd3)),
        descaled::<BITS>(difference(even2, odd2)),
        descaled::<BITS>(difference(even1, odd1)),
        descaled::<BITS>(difference(even0, odd0)),
    ]
}

/// Rows and columns of both blocks exchanged.
#[inline]
#[target_feature(enable = "avx2")]
fn transposed(v: [__m256i; 8]) -> [__m256i; 8] {
    let low = |a, b| _mm256_unpacklo_epi16(a, b);
    let high = |a, b| _mm256_unpackhi_epi16(a, b);
    let (a0, a1, a2, a3) = (low(v[0], v[1]), high(v[0], v[1]), low(v[2], v[3]), high(v[2], v[3]));
    let (a4, a5, a6, a7) = (low(v[4], v[5]), high(v[4], v[5]), low(v[6], v[7]), high(v[6], v[7]));
    let low = |a, b| _mm256_unpacklo_epi32(a, b);
    let high = |a, b| _mm256_unpackhi_epi32(a, b);
    let (b0, b1, b2, b3) = (low(a0, a2), high(a0, a2), low(a1, a3), high(a1, a3));
    let (b4, b5, b6, b7) = (low(a4, a6), high(a4, a6), low(a5, a7), high(a5, a7));
    let low = |a, b| _mm256_unpacklo_epi64(a, b);
    let high = |a, b| _mm256_unpackhi_epi64(a, b);
    [low(b0, b4), high(b0, b4), low(b1, b5), high(b1, b5), low(b2, b6), high(b2, b6), low(b3, b7), high(b3, b7)]
}

/// Transforms pairs of blocks of one row of blocks. Returns how many blocks that were: all, or all but the last.
#[target_feature(enable = "avx2")]
#[allow(unsafe_code, reason = "loads and stores of whole vectors in slices whose bounds are checked")]
pub(super) fn block_pairs(blocks: &[[i16; 64]], quant: &[u16; 64], samples: &mut [u8], stride: usize) -> usize {
    let (pairs, _) = blocks.as_chunks::<2>();
    assert!(pairs.len() * 16 <= stride && samples.len() >= 8 * stride, "eight rows that hold all blocks");
    let zero = _mm256_setzero_si256();
    let no_dc = _mm256_setr_epi16(0, -1, -1, -1, -1, -1, -1, -1, 0, -1, -1, -1, -1, -1, -1, -1);
    for (index, [left, right]) in pairs.iter().enumerate() {
        let mut rows = [zero; 8];
        let mut others = zero;
        for (y, row) in rows.iter_mut().enumerate() {
            // SAFETY: y < 8, so the eight values from 8 · y on are inside the blocks' 64.
            *row = unsafe { _mm256_set_m128i(load(right, y), load(left, y)) };
            others = _mm256_or_si256(others, if y == 0 { _mm256_and_si256(*row, no_dc) } else { *row });
        }
        if _mm256_testz_si256(others, others) == 1 {
            flat(left[0], quant[0], &mut samples[index * 16..], stride);
            flat(right[0], quant[0], &mut samples[index * 16 + 8..], stride);
            continue;
        }
        for (y, row) in rows.iter_mut().enumerate() {
            // SAFETY: as above, of the table's 64 values.
            let factors = unsafe { _mm_loadu_si128(quant.as_ptr().add(8 * y).cast()) };
            *row = _mm256_mullo_epi16(*row, _mm256_broadcastsi128_si256(factors));
        }
        let rows = transposed(pass::<FIRST_DESCALE>(rows));
        let rows = transposed(pass::<SECOND_DESCALE>(rows));
        for y in [0, 2, 4, 6] {
            let bytes = _mm256_packs_epi16(rows[y], rows[y + 1]);
            let bytes = _mm256_xor_si256(bytes, _mm256_set1_epi8(-128));
            // Left and right of row y, then of row y + 1.
            let bytes = _mm256_permute4x64_epi64::<0b11_01_10_00>(bytes);
            // SAFETY: y + 1 < 8 and (index + 1) · 16 <= stride, so both stores of 16 bytes are inside the 8 · stride
            // bytes (asserted above).
            unsafe {
                let start = samples.as_mut_ptr().add(y * stride + index * 16);
                _mm_storeu_si128(start.cast(), _mm256_castsi256_si128(bytes));
                _mm_storeu_si128(start.add(stride).cast(), _mm256_extracti128_si256::<1>(bytes));
            }
        }
    }
    pairs.len() * 2
}

/// Row `y`, below 8, of a block.
#[inline]
#[allow(unsafe_code, reason = "a load whose bounds the caller keeps")]
unsafe fn load(block: &[i16; 64], y: usize) -> __m128i {
    // SAFETY: the caller keeps y below 8.
    unsafe { _mm_loadu_si128(block.as_ptr().add(8 * y).cast()) }
}

#[cfg(test)]
mod tests {
    use super::super::portable_blocks;

    #[test]
    #[allow(unsafe_code, reason = "calls the kernel after its CPU feature was checked")]
    fn the_kernel_equals_the_portable_transform() {
        if !std::arch::is_x86_feature_detected!("avx2") {
            return;
        }
        let mut state = 3u64;
        let mut next = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as u16
        };
        // From ordinary coefficients to ones that overflow everywhere.
        for bits in [4, 8, 11, 13, 16] {
            for density in [1, 2, 5, 64] {
                let mut block = || {
                    let mut block = [0i16; 64];
                    for _ in 0..density {
                        block[usize::from(next()) % 64] = (next() as i16) >> (16 - bits);
                    }
                    block
                };
                let blocks: Vec<[i16; 64]> = (0..10).map(|_| block()).collect();
                let quant: [u16; 64] = std::array::from_fn(|_| if bits == 16 { next() } else { 1 + next() % 255 });
                let (mut fast, mut plain) = (vec![0; 8 * 80], vec![0; 8 * 80]);
                // SAFETY: AVX2 was detected above.
                let done = unsafe { super::block_pairs(&blocks, &quant, &mut fast, 80) };
                assert_eq!(done, 10);
                portable_blocks(&blocks, &quant, &mut plain, 80);
                assert!(fast == plain, "{bits} bits, {density} coefficients");
            }
        }
    }
}
