//! Kernels that work row by row: norms, gated activation, rotary position embedding, sums.

use rayon::prelude::*;

use super::isa::{Isa, compiled_per_isa};
use super::math::{exp, silu};
use super::{LANES, threads};

/// Below this many values a row kernel is not worth a second thread.
const PARALLEL_MIN: usize = 1 << 16;
/// Rows that one task takes.
const BLOCK_ROWS: usize = 32;

/// Sum over a row of `f(value)`, in sixteen partial sums whatever the vector width.
#[inline(always)]
fn lane_sum(row: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut sums = [0.0_f32; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for j in 0..LANES {
            sums[j] += f(chunk[j]);
        }
    }
    for (sum, &x) in sums.iter_mut().zip(rest) {
        *sum += f(x);
    }
    fold_lanes(sums, |a, b| a + b)
}

/// Folds sixteen partial results in a fixed order.
#[inline(always)]
pub(super) fn fold_lanes(mut lanes: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for j in 0..width {
            lanes[j] = f(lanes[j], lanes[j + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// Runs `f` on blocks of rows of `width`, on all threads when there is enough to do.
fn by_rows(x: &[f32], width: usize, out_width: usize, out: &mut [f32], f: impl Fn(&[f32], &mut [f32]) + Sync) {
    if x.len() < PARALLEL_MIN || threads() == 1 {
        f(x, out);
    } else {
        out.par_chunks_mut(BLOCK_ROWS * out_width).zip(x.par_chunks(BLOCK_ROWS * width)).for_each(|(out, x)| f(x, out));
    }
}

/// Layer norm of rows of `weight.len()` values: `(x − mean) / √(variance + eps) · weight + bias`.
pub fn layer_norm(isa: Isa, x: &[f32], weight: &[f32], bias: &[f32], eps: f32) -> Vec<f32> {
    let width = weight.len();
    assert!(bias.len() == width && x.len().is_multiple_of(width), "rows of {width}");
    let mut out = vec![0.0; x.len()];
    by_rows(x, width, width, &mut out, |x, out| layer_norm_rows(isa, x, weight, bias, eps, out));
    out
}

compiled_per_isa! {
    fn layer_norm_rows = layer_norm_body(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32])
}

#[inline(always)]
fn layer_norm_body<const FMA: bool, const WIDE: bool>(
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    eps: f32,
    out: &mut [f32],
) {
    let width = weight.len();
    for (row, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        let mean = lane_sum(row, |x| x) / width as f32;
        let variance = lane_sum(row, |x| (x - mean) * (x - mean)) / width as f32;
        let scale = 1.0 / (variance + eps).sqrt();
        for j in 0..width {
            out[j] = (row[j] - mean) * scale * weight[j] + bias[j];
        }
    }
}

/// RMS norm of rows of `weight.len()` values: `x / √(mean(x²) + eps) · weight`.
pub fn rms_norm(isa: Isa, x: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    let width = weight.len();
    assert!(x.len().is_multiple_of(width), "rows of {width}");
    let mut out = vec![0.0; x.len()];
    by_rows(x, width, width, &mut out, |x, out| rms_norm_rows(isa, x, weight, eps, out));
    out
}

compiled_per_isa! {
    fn rms_norm_rows = rms_norm_body(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32])
}

#[inline(always)]
fn rms_norm_body<const FMA: bool, const WIDE: bool>(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let width = weight.len();
    for (row, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        let scale = 1.0 / (lane_sum(row, |x| x * x) / width as f32 + eps).sqrt();
        for j in 0..width {
            out[j] = row[j] * scale * weight[j];
        }
    }
}

/// The gated activation `silu(gate) · up` of rows `[gate, up]` of `2 · width` values; rows of `width`.
pub fn silu_mul(isa: Isa, x: &[f32], width: usize) -> Vec<f32> {
    assert!(x.len().is_multiple_of(2 * width), "rows of 2 · {width}");
    let mut out = vec![0.0; x.len() / 2];
    by_rows(x, 2 * width, width, &mut out, |x, out| silu_mul_rows(isa, x, width, out));
    out
}

compiled_per_isa! {
    fn silu_mul_rows = silu_mul_body(x: &[f32], width: usize, out: &mut [f32])
}

#[inline(always)]
fn silu_mul_body<const FMA: bool, const WIDE: bool>(x: &[f32], width: usize, out: &mut [f32]) {
    for (row, out) in x.chunks_exact(2 * width).zip(out.chunks_exact_mut(width)) {
        let (gate, up) = row.split_at(width);
        for j in 0..width {
            out[j] = silu::<FMA>(gate[j]) * up[j];
        }
    }
}

compiled_per_isa! {
    /// Turns one row of finite logits into the logarithms of their probabilities.
    pub fn log_softmax = log_softmax_body(row: &mut [f32])
}

#[inline(always)]
fn log_softmax_body<const FMA: bool, const WIDE: bool>(row: &mut [f32]) {
    let mut highest = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for j in 0..LANES {
            highest[j] = if chunk[j] > highest[j] { chunk[j] } else { highest[j] };
        }
    }
    for (highest, &x) in highest.iter_mut().zip(rest) {
        *highest = if x > *highest { x } else { *highest };
    }
    let highest = fold_lanes(highest, |a, b| if b > a { b } else { a });
    // In f64: a vocabulary has so many terms that f32 would lose the last digits.
    let mut sums = [0.0_f64; LANES];
    for chunk in chunks {
        for j in 0..LANES {
            sums[j] += f64::from(exp::<FMA>(chunk[j] - highest));
        }
    }
    for (sum, &x) in sums.iter_mut().zip(rest) {
        *sum += f64::from(exp::<FMA>(x - highest));
    }
    let log = sums.iter().sum::<f64>().ln() as f32;
    row.iter_mut().for_each(|x| *x = (*x - highest) - log);
}

/// `a + b`, value by value.
pub fn add_rows(a: &[f32], b: &[f32]) -> Vec<f32> {
    assert_eq!(a.len(), b.len(), "as many values on both sides");
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

/// RMS norm of every head of queries or keys (Qwen3).
#[derive(Debug, Clone, Copy)]
pub struct RmsNormOf<'a> {
    /// `[head_dim]`.
    pub weight: &'a [f32],
    /// Added to the mean square.
    pub eps: f32,
}

/// Rotary position embedding in the rotate-half form, after an optional norm per head.
///
/// `x` are rows of at least `heads · head_dim` values, `stride` apart; row r has the angles `cos[r]` and `sin[r]`,
/// `[rows, head_dim / 2]`. The result is `[rows, heads · head_dim]`.
#[allow(clippy::too_many_arguments, reason = "a kernel takes its shapes and slices one by one")]
pub fn rotate_rows(
    isa: Isa,
    x: &[f32],
    stride: usize,
    rows: usize,
    heads: usize,
    norm: Option<RmsNormOf<'_>>,
    cos: &[f32],
    sin: &[f32],
) -> Vec<f32> {
    let half = cos.len() / rows.max(1);
    let mut out = vec![0.0; rows * heads * 2 * half];
    rotate(isa, x, stride, rows, heads, norm, half, cos, sin, &mut out);
    out
}

compiled_per_isa! {
    fn rotate = rotate_body(
        x: &[f32], stride: usize, rows: usize, heads: usize, norm: Option<RmsNormOf<'_>>, half: usize, cos: &[f32],
        sin: &[f32], out: &mut [f32],
    )
}

#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "a kernel takes its shapes and slices one by one")]
fn rotate_body<const FMA: bool, const WIDE: bool>(
    x: &[f32],
    stride: usize,
    rows: usize,
    heads: usize,
    norm: Option<RmsNormOf<'_>>,
    half: usize,
    cos: &[f32],
    sin: &[f32],
    out: &mut [f32],
) {
    let width = 2 * half;
    for r in 0..rows {
        let (cos, sin) = (&cos[r * half..][..half], &sin[r * half..][..half]);
        for h in 0..heads {
            let head = &x[r * stride + h * width..][..width];
            let out = &mut out[(r * heads + h) * width..][..width];
            match norm {
                Some(RmsNormOf { weight, eps }) => {
                    let scale = 1.0 / (lane_sum(head, |x| x * x) / width as f32 + eps).sqrt();
                    for j in 0..width {
                        out[j] = head[j] * scale * weight[j];
                    }
                }
                None => out.copy_from_slice(head),
            }
            let (low, high) = out.split_at_mut(half);
            for j in 0..half {
                let (a, b) = (low[j], high[j]);
                low[j] = a * cos[j] - b * sin[j];
                high[j] = b * cos[j] + a * sin[j];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::noise;
    use super::*;

    #[test]
    fn norms_are_the_textbook_ones() {
        for width in [1, 16, 37, 160] {
            let (x, weight, bias) = (noise(5 * width, 1), noise(width, 2), noise(width, 3));
            for isa in Isa::available() {
                let layer = layer_norm(isa, &x, &weight, &bias, 1e-5);
                let rms = rms_norm(isa, &x, &weight, 1e-5);
                for (r, row) in x.chunks(width).enumerate() {
                    let n = width as f64;
                    let mean = row.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
                    let variance = row.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n;
                    let square = row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / n;
                    for j in 0..width {
                        let (x, w) = (f64::from(row[j]), f64::from(weight[j]));
                        let want = (x - mean) / (variance + 1e-5).sqrt() * w + f64::from(bias[j]);
                        assert!((f64::from(layer[r * width + j]) - want).abs() < 1e-5);
                        let want = x / (square + 1e-5).sqrt() * w;
                        assert!((f64::from(rms[r * width + j]) - want).abs() < 1e-5);
                    }
                }
            }
        }
    }

    #[test]
    fn rows_do_not_depend_on_each_other_nor_on_threads() {
        let (width, rows) = (250, 600);
        let (x, weight) = (noise(rows * width, 1), noise(width, 2));
        let isa = Isa::detect();
        let all = layer_norm(isa, &x, &weight, &weight, 1e-6);
        let gated = silu_mul(isa, &x, width / 2);
        for r in [0, 31, 32, 599] {
            let row = &x[r * width..][..width];
            assert_eq!(layer_norm(isa, row, &weight, &weight, 1e-6), all[r * width..][..width]);
            assert_eq!(silu_mul(isa, row, width / 2), gated[r * width / 2..][..width / 2]);
        }
    }

    #[test]
    fn log_softmax_is_the_textbook_one() {
        for width in [1, 16, 37, 5000] {
            let logits: Vec<f32> = noise(width, 1).iter().map(|x| x * 30.0 + 100.0).collect();
            let sum: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
            let mut bits = Vec::new();
            for isa in Isa::available() {
                let mut row = logits.clone();
                log_softmax(isa, &mut row);
                for (got, x) in row.iter().zip(&logits) {
                    assert!((f64::from(*got) - (f64::from(*x) - sum.ln())).abs() < 1e-5, "{got} of {x}");
                }
                if isa.fused() {
                    bits.push(row);
                }
            }
            assert!(bits.windows(2).all(|pair| pair[0] == pair[1]), "width {width}");
        }
    }

    #[test]
    fn rotation_keeps_lengths_and_turns_by_the_angle() {
        let x = [1.0, 0.0, 0.0, 1.0];
        let (cos, sin) = ([0.6_f32, 0.8], [0.8_f32, 0.6]);
        let got = rotate_rows(Isa::detect(), &x, 4, 1, 1, None, &cos, &sin);
        assert_eq!(got, [0.6, -0.6, 0.8, 0.8]);
    }
}
