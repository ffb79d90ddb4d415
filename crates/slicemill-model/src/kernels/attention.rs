//! Softmax attention over packed keys and values.
//!
//! ```text
//!   keys    per head: panels of 16 tokens   [tokens / 16][head_dim][16]   right-hand side of Q · Kᵀ
//!   values  per head: panels of 16 columns  [head_dim / 16][capacity][16] right-hand side of P · V
//! ```
//!
//! The encoder packs the keys and values of a view for one call; the decoder keeps its cache in this form, so that a
//! step packs one token. A query's result depends on itself and on the keys it sees, in order, and on nothing else:
//! not on the block of queries it is computed in and not on keys behind its horizon (their weight is an exact 0).

use rayon::prelude::*;

use super::gemm::product;
use super::isa::{Isa, compiled_per_isa};
use super::math::exp;
use super::rows::fold_lanes;
use super::{LANES, round_up, threads};

/// Queries whose scores are computed together.
const BLOCK_ROWS: usize = 24;
/// Below this many multiply-adds an attention is not worth a second thread.
const PARALLEL_MIN: usize = 1 << 20;

/// Heads of an attention.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; every `heads / kv_heads` query heads share one.
    pub kv_heads: usize,
    /// Size of a head.
    pub head_dim: usize,
}

impl AttentionShape {
    /// Width of queries and output.
    pub const fn width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of keys, and of values.
    pub const fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// `1 / √head_dim`.
    pub fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    /// Floats of the keys of one head with room for `capacity` tokens (a multiple of 16).
    pub const fn key_head(&self, capacity: usize) -> usize {
        self.head_dim * capacity
    }

    /// Floats of the values of one head with room for `capacity` tokens.
    pub const fn value_head(&self, capacity: usize) -> usize {
        round_up(self.head_dim) * capacity
    }
}

/// Packed keys and values of all heads, with room for `capacity` tokens.
#[derive(Debug, Clone, Copy)]
pub struct KeyValues<'a> {
    /// `[kv_heads][capacity / 16][head_dim][16]`.
    pub keys: &'a [f32],
    /// `[kv_heads][head_dim / 16][capacity][16]`.
    pub values: &'a [f32],
    /// Tokens there is room for; a multiple of 16.
    pub capacity: usize,
}

/// Writes one token's key and value of all heads at `position`. `key` and `value` are `[kv_heads · head_dim]`.
pub fn write_token(
    shape: AttentionShape,
    capacity: usize,
    position: usize,
    (key, value): (&[f32], &[f32]),
    (keys, values): (&mut [f32], &mut [f32]),
) {
    let d = shape.head_dim;
    for (h, (key, value)) in key.chunks_exact(d).zip(value.chunks_exact(d)).enumerate() {
        let panel = &mut keys[h * shape.key_head(capacity) + (position / LANES) * d * LANES..][..d * LANES];
        for (lanes, &x) in panel.chunks_exact_mut(LANES).zip(key) {
            lanes[position % LANES] = x;
        }
        let head = &mut values[h * shape.value_head(capacity)..];
        for (p, part) in value.chunks(LANES).enumerate() {
            head[(p * capacity + position) * LANES..][..part.len()].copy_from_slice(part);
        }
    }
}

/// Packs `tokens` keys and values whose rows are `stride` apart. Returns keys, values and the capacity.
pub fn pack_keys_values(
    shape: AttentionShape,
    tokens: usize,
    (k, k_stride): (&[f32], usize),
    (v, v_stride): (&[f32], usize),
) -> (Vec<f32>, Vec<f32>, usize) {
    let (capacity, width) = (round_up(tokens), shape.kv_width());
    let mut keys = vec![0.0; shape.kv_heads * shape.key_head(capacity)];
    let mut values = vec![0.0; shape.kv_heads * shape.value_head(capacity)];
    for t in 0..tokens {
        let row = (&k[t * k_stride..][..width], &v[t * v_stride..][..width]);
        write_token(shape, capacity, t, row, (&mut keys, &mut values));
    }
    (keys, values, capacity)
}

/// Attention of `rows` queries, `stride` apart, each `[heads · head_dim]`; `out` is `[rows, heads · head_dim]`.
///
/// Row r sees the first `visible` keys, or `visible + r` of them when `causal`.
#[allow(clippy::too_many_arguments, reason = "a kernel takes its shapes and slices one by one")]
pub fn attend(
    isa: Isa,
    shape: AttentionShape,
    (q, stride): (&[f32], usize),
    rows: usize,
    visible: usize,
    causal: bool,
    kv: KeyValues<'_>,
    out: &mut [f32],
) {
    let width = shape.width();
    assert_eq!(out.len(), rows * width, "an output of {rows} rows of {width}");
    let last = if causal { visible + rows.saturating_sub(1) } else { visible };
    assert!(visible > 0 && round_up(last) <= kv.capacity, "{last} keys, room for {}", kv.capacity);
    if threads() == 1 || rows * last * width < PARALLEL_MIN {
        attend_block(isa, shape, 0..shape.heads, q, stride, rows, visible, causal, kv, out, width);
    } else if rows >= 2 * BLOCK_ROWS {
        out.par_chunks_mut(BLOCK_ROWS * width).enumerate().for_each(|(block, out)| {
            let (start, rows) = (block * BLOCK_ROWS, out.len() / width);
            let visible = if causal { visible + start } else { visible };
            let q = &q[start * stride..];
            attend_block(isa, shape, 0..shape.heads, q, stride, rows, visible, causal, kv, out, width);
        });
    } else {
        let parts: Vec<Vec<f32>> = (0..shape.heads)
            .into_par_iter()
            .map(|head| {
                let mut part = vec![0.0; rows * shape.head_dim];
                attend_block(
                    isa,
                    shape,
                    head..head + 1,
                    q,
                    stride,
                    rows,
                    visible,
                    causal,
                    kv,
                    &mut part,
                    shape.head_dim,
                );
                part
            })
            .collect();
        for (head, part) in parts.iter().enumerate() {
            for (out, part) in out.chunks_exact_mut(width).zip(part.chunks_exact(shape.head_dim)) {
                out[head * shape.head_dim..][..shape.head_dim].copy_from_slice(part);
            }
        }
    }
}

compiled_per_isa! {
    /// Serial attention of some heads; rows of `out` are `out_stride` apart and begin with the first of these heads.
    fn attend_block = attend_body(
        shape: AttentionShape, heads: std::ops::Range<usize>, q: &[f32], stride: usize, rows: usize, visible: usize,
        causal: bool, kv: KeyValues<'_>, out: &mut [f32], out_stride: usize,
    )
}

#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "a kernel takes its shapes and slices one by one")]
fn attend_body<const FMA: bool, const WIDE: bool>(
    shape: AttentionShape,
    heads: std::ops::Range<usize>,
    q: &[f32],
    stride: usize,
    rows: usize,
    visible: usize,
    causal: bool,
    kv: KeyValues<'_>,
    out: &mut [f32],
    out_stride: usize,
) {
    let (d, first, scale) = (shape.head_dim, heads.start, shape.scale());
    let seen = |row: usize| if causal { visible + row } else { visible };
    let mut scores = vec![0.0_f32; BLOCK_ROWS.min(rows) * round_up(seen(rows.saturating_sub(1)))];
    for head in heads {
        let kv_head = head / (shape.heads / shape.kv_heads);
        let keys = &kv.keys[kv_head * shape.key_head(kv.capacity)..][..shape.key_head(kv.capacity)];
        let values = &kv.values[kv_head * shape.value_head(kv.capacity)..][..shape.value_head(kv.capacity)];
        for start in (0..rows).step_by(BLOCK_ROWS) {
            let count = BLOCK_ROWS.min(rows - start);
            let most = seen(start + count - 1);
            let padded = round_up(most);
            let scores = &mut scores[..count * padded];
            let q = &q[start * stride + head * d..];
            product::<FMA, WIDE>(count, d, q, stride, keys, d * LANES, padded, scores, padded);
            let mut weights = [0.0_f32; BLOCK_ROWS];
            for (r, row) in scores.chunks_exact_mut(padded).enumerate() {
                weights[r] = softmax::<FMA>(row, seen(start + r), scale);
            }
            let out = &mut out[start * out_stride + (head - first) * d..];
            product::<FMA, WIDE>(count, most, scores, padded, values, kv.capacity * LANES, d, out, out_stride);
            for (r, weight) in weights[..count].iter().enumerate() {
                out[r * out_stride..][..d].iter_mut().for_each(|x| *x *= weight);
            }
        }
    }
}

/// Turns the first `visible` scores into `e^(scale · (score − max))` and the others into 0; returns 1 / their sum.
#[inline(always)]
fn softmax<const FMA: bool>(row: &mut [f32], visible: usize, scale: f32) -> f32 {
    let (chunks, _) = row.as_chunks_mut::<LANES>();
    let full = visible / LANES;
    let mut highest = [f32::NEG_INFINITY; LANES];
    for chunk in &chunks[..full] {
        for j in 0..LANES {
            highest[j] = if chunk[j] > highest[j] { chunk[j] } else { highest[j] };
        }
    }
    if let Some(chunk) = chunks.get(full) {
        for j in 0..visible % LANES {
            highest[j] = if chunk[j] > highest[j] { chunk[j] } else { highest[j] };
        }
    }
    let highest = fold_lanes(highest, |a, b| if b > a { b } else { a });
    let mut sums = [0.0_f32; LANES];
    for chunk in &mut chunks[..full] {
        for j in 0..LANES {
            chunk[j] = exp::<FMA>((chunk[j] - highest) * scale);
            sums[j] += chunk[j];
        }
    }
    if let Some(chunk) = chunks.get_mut(full) {
        for j in 0..LANES {
            chunk[j] = if j < visible % LANES { exp::<FMA>((chunk[j] - highest) * scale) } else { 0.0 };
            sums[j] += chunk[j];
        }
        for chunk in &mut chunks[full + 1..] {
            *chunk = [0.0; LANES];
        }
    }
    1.0 / fold_lanes(sums, |a, b| a + b)
}

#[cfg(test)]
mod tests {
    use super::super::noise;
    use super::*;

    const SHAPE: AttentionShape = AttentionShape { heads: 4, kv_heads: 2, head_dim: 24 };

    /// Plain attention in f64 of row `r`.
    fn plain(q: &[f32], k: &[f32], v: &[f32], visible: usize) -> Vec<f64> {
        let d = SHAPE.head_dim;
        let mut out = Vec::new();
        for h in 0..SHAPE.heads {
            let kv = h / 2 * d;
            let scores: Vec<f64> = (0..visible)
                .map(|t| (0..d).map(|i| f64::from(q[h * d + i]) * f64::from(k[t * 48 + kv + i])).sum::<f64>())
                .map(|s| (s / (d as f64).sqrt()).exp())
                .collect();
            let sum: f64 = scores.iter().sum();
            out.extend(
                (0..d).map(|i| (0..visible).map(|t| scores[t] / sum * f64::from(v[t * 48 + kv + i])).sum::<f64>()),
            );
        }
        out
    }

    fn run(isa: Isa, q: &[f32], rows: usize, visible: usize, causal: bool, k: &[f32], v: &[f32]) -> Vec<f32> {
        let (keys, values, capacity) = pack_keys_values(SHAPE, k.len() / 48, (k, 48), (v, 48));
        let mut out = vec![0.0; rows * 96];
        let kv = KeyValues { keys: &keys, values: &values, capacity };
        attend(isa, SHAPE, (q, 96), rows, visible, causal, kv, &mut out);
        out
    }

    #[test]
    fn attention_is_the_textbook_one() {
        for tokens in [1, 15, 16, 17, 70] {
            let (q, k, v) = (noise(tokens * 96, 1), noise(tokens * 48, 2), noise(tokens * 48, 3));
            for isa in Isa::available() {
                for causal in [false, true] {
                    let out = run(isa, &q, tokens, if causal { 1 } else { tokens }, causal, &k, &v);
                    for r in 0..tokens {
                        let want = plain(&q[r * 96..], &k, &v, if causal { r + 1 } else { tokens });
                        for (got, want) in out[r * 96..][..96].iter().zip(want) {
                            assert!((f64::from(*got) - want).abs() < 1e-5, "{tokens} {causal} {isa:?}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_query_has_the_same_bits_alone_in_a_block_and_with_keys_behind_its_horizon() {
        let tokens = 130;
        let (q, k, v) = (noise(tokens * 96, 1), noise(tokens * 48, 2), noise(tokens * 48, 3));
        for isa in Isa::available() {
            let all = run(isa, &q, tokens, 1, true, &k, &v);
            for r in [0, 1, 23, 24, 25, 100, 129] {
                let one = run(isa, &q[r * 96..], 1, r + 1, false, &k, &v);
                assert_eq!(one, all[r * 96..][..96], "with the keys behind");
                let one = run(isa, &q[r * 96..], 1, r + 1, false, &k[..(r + 1) * 48], &v[..(r + 1) * 48]);
                assert_eq!(one, all[r * 96..][..96], "without the keys behind");
            }
        }
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let tokens = 300;
        let (q, k, v) = (noise(tokens * 96, 1), noise(tokens * 48, 2), noise(tokens * 48, 3));
        let pools = [1, 3].map(|n| rayon::ThreadPoolBuilder::new().num_threads(n).build().expect("pool"));
        let [one, three] = pools.map(|pool| {
            pool.install(|| {
                (run(Isa::detect(), &q, tokens, 1, true, &k, &v), run(Isa::detect(), &q, 40, 300, false, &k, &v))
            })
        });
        assert_eq!(one, three);
    }

    #[test]
    fn a_nan_among_the_keys_reaches_the_output() {
        let (q, mut k, v) = (noise(96, 1), noise(20 * 48, 2), noise(20 * 48, 3));
        k[19 * 48] = f32::NAN;
        assert!(run(Isa::detect(), &q, 1, 20, false, &k, &v)[0].is_nan());
    }
}
