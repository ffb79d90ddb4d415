//! Dequantisation and the inverse DCT: integer arithmetic of the accurate transform of the Independent JPEG Group
//! (Loeffler, Ligtenberg and Moschytz, ICASSP 1989; 13 fractional bits, 2 kept between the passes), so that samples are
//! equal to those of libjpeg and libjpeg-turbo.
//!
//! Values between the steps have 16 bits, as in libjpeg-turbo's vector code: products and sums wrap, the result of a
//! pass saturates. Images of any encoder stay far inside; damaged ones give the same pixels on every CPU.

#[cfg(target_arch = "x86_64")]
mod avx2;

const CONST_BITS: i32 = 13;
const PASS1_BITS: i32 = 2;

/// Bits dropped after the columns.
const FIRST_DESCALE: i32 = CONST_BITS - PASS1_BITS;

/// Bits dropped after the rows: also the factor of 8 of the transform.
const SECOND_DESCALE: i32 = CONST_BITS + PASS1_BITS + 3;

/// Eight values that are computed with at once; the compiler makes vectors of them.
#[derive(Clone, Copy)]
struct Lanes([i32; 8]);

impl Lanes {
    #[inline(always)]
    fn map2(self, other: Self, f: impl Fn(i32, i32) -> i32) -> Self {
        let mut out = [0; 8];
        for ((out, a), b) in out.iter_mut().zip(self.0).zip(other.0) {
            *out = f(a, b);
        }
        Self(out)
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.map2(other, i32::wrapping_add)
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.map2(other, i32::wrapping_sub)
    }

    #[inline(always)]
    fn times(self, factor: i32) -> Self {
        Self(self.0.map(|value| value.wrapping_mul(factor)))
    }

    #[inline(always)]
    fn shifted_left(self) -> Self {
        Self(self.0.map(|value| value.wrapping_shl(CONST_BITS as u32)))
    }

    /// Kept to 16 bits, as the sum of two words is.
    #[inline(always)]
    fn wrapped(self) -> Self {
        Self(self.0.map(|value| i32::from(value as i16)))
    }

    #[inline(always)]
    fn descaled(self, bits: i32) -> Self {
        let saturated = |value: i32| value.clamp(i32::from(i16::MIN), i32::from(i16::MAX));
        Self(self.0.map(|value| saturated(value.wrapping_add(1 << (bits - 1)) >> bits)))
    }
}

/// One pass over eight columns at once. Constants are round(x · 2¹³).
#[inline(always)]
fn pass(input: [Lanes; 8], descale: i32) -> [Lanes; 8] {
    let z1 = input[2].add(input[6]).times(4433);
    let tmp2 = z1.add(input[6].times(-15137));
    let tmp3 = z1.add(input[2].times(6270));
    let tmp0 = input[0].add(input[4]).wrapped().shifted_left();
    let tmp1 = input[0].sub(input[4]).wrapped().shifted_left();
    let (even0, even3) = (tmp0.add(tmp3), tmp0.sub(tmp3));
    let (even1, even2) = (tmp1.add(tmp2), tmp1.sub(tmp2));

    let [t0, t1, t2, t3] = [input[7], input[5], input[3], input[1]];
    let (z3, z4) = (t0.add(t2).wrapped(), t1.add(t3).wrapped());
    let z5 = z3.add(z4).times(9633);
    let z1 = t0.add(t3).times(-7373);
    let z2 = t1.add(t2).times(-20995);
    let z3 = z3.times(-16069).add(z5);
    let z4 = z4.times(-3196).add(z5);
    let odd3 = t0.times(2446).add(z1).add(z3);
    let odd2 = t1.times(16819).add(z2).add(z4);
    let odd1 = t2.times(25172).add(z2).add(z3);
    let odd0 = t3.times(12299).add(z1).add(z4);

    [
        even0.add(odd0).descaled(descale),
        even1.add(odd1).descaled(descale),
        even2.add(odd2).descaled(descale),
        even3.add(odd3).descaled(descale),
        even3.sub(odd3).descaled(descale),
        even2.sub(odd2).descaled(descale),
        even1.sub(odd1).descaled(descale),
        even0.sub(odd0).descaled(descale),
    ]
}

#[inline(always)]
fn transposed(rows: [Lanes; 8]) -> [Lanes; 8] {
    let mut out = [Lanes([0; 8]); 8];
    for (y, row) in rows.iter().enumerate() {
        for (x, &value) in row.0.iter().enumerate() {
            out[x].0[y] = value;
        }
    }
    out
}

/// Transforms one row of blocks: `[blocks, 64]` coefficients in natural order → 8 rows of samples, `stride` apart.
pub(super) fn block_row(coefficients: &[i16], quant: &[u16; 64], samples: &mut [u8], stride: usize) {
    let (mut blocks, _) = coefficients.as_chunks::<64>();
    let mut samples = samples;
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: AVX2 was detected just now.
        #[allow(unsafe_code, reason = "the CPU feature is checked")]
        let done = unsafe { avx2::block_pairs(blocks, quant, samples, stride) };
        blocks = &blocks[done..];
        samples = &mut samples[done * 8..];
    }
    portable_blocks(blocks, quant, samples, stride);
}

fn portable_blocks(blocks: &[[i16; 64]], quant: &[u16; 64], samples: &mut [u8], stride: usize) {
    for (index, block) in blocks.iter().enumerate() {
        let samples = &mut samples[index * 8..];
        if block[1..].iter().all(|&coefficient| coefficient == 0) {
            flat(block[0], quant[0], samples, stride);
        } else {
            transform(block, quant, samples, stride);
        }
    }
}

/// The product of a coefficient and its step, kept to 16 bits.
#[inline(always)]
fn dequantised(coefficient: i16, step: u16) -> i32 {
    i32::from(coefficient.wrapping_mul(step as i16))
}

/// A block with no coefficient but the first is of one colour.
#[inline(always)]
fn flat(coefficient: i16, step: u16, samples: &mut [u8], stride: usize) {
    let first = (dequantised(coefficient, step) << PASS1_BITS).clamp(i32::from(i16::MIN), i32::from(i16::MAX));
    let value = to_u8((first + (1 << (PASS1_BITS + 2))) >> (PASS1_BITS + 3));
    for row in samples.chunks_mut(stride).take(8) {
        row[..8].fill(value);
    }
}

#[inline(always)]
fn transform(block: &[i16; 64], quant: &[u16; 64], samples: &mut [u8], stride: usize) {
    let mut input = [Lanes([0; 8]); 8];
    for (y, lanes) in input.iter_mut().enumerate() {
        for (x, lane) in lanes.0.iter_mut().enumerate() {
            *lane = dequantised(block[y * 8 + x], quant[y * 8 + x]);
        }
    }
    let columns = pass(input, FIRST_DESCALE);
    let rows = transposed(pass(transposed(columns), SECOND_DESCALE));
    for (lanes, row) in rows.iter().zip(samples.chunks_mut(stride)) {
        for (sample, &value) in row[..8].iter_mut().zip(&lanes.0) {
            *sample = to_u8(value);
        }
    }
}

#[inline(always)]
fn to_u8(value: i32) -> u8 {
    (value + 128).clamp(0, 255) as u8
}
