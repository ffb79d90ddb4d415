//! Attention within the segments of a packed batch: every view attends to itself, there is no padding.

use candle_core::{Result, Tensor};

use crate::kernels::{self, AttentionShape, KeyValues};
use crate::ops::{Engine, HostRows, Place};

/// Scores that one batched product of the candle engine may hold, in values.
const SCORES_MAX: usize = 1 << 27;

/// The queries of a packed batch.
#[derive(Debug, Clone, Copy)]
pub enum Queries<'a> {
    /// Each segment's own, as many as it has keys: `[Σ lengths, heads · head_dim]`.
    Own(&'a Tensor),
    /// The same for every segment: `[queries, heads · head_dim]`.
    Shared(&'a Tensor),
}

/// Softmax attention; `k` and `v` are `[Σ lengths, heads · head_dim]`. Rows may be views into wider tensors.
///
/// The result has, for every segment in order, one row per query.
pub fn attend_segments(
    place: &Place,
    shape: AttentionShape,
    queries: Queries<'_>,
    k: &Tensor,
    v: &Tensor,
    lengths: &[usize],
) -> Result<Tensor> {
    match place.engine {
        Engine::Kernels(isa) => {
            let (k, v) = (HostRows::of(k)?, HostRows::of(v)?);
            let (Queries::Own(q) | Queries::Shared(q)) = queries;
            let (rows, q) = (q.dims2()?.0, HostRows::of(q)?);
            let width = shape.width();
            let shared = matches!(queries, Queries::Shared(_));
            let total: usize = lengths.iter().map(|&length| if shared { rows } else { length }).sum();
            let mut out = vec![0.0; total * width];
            let (mut segments, mut rest, mut start) = (Vec::new(), out.as_mut_slice(), 0);
            for &length in lengths {
                let count = if shared { rows } else { length };
                let (head, tail) = rest.split_at_mut(count * width);
                segments.push((head, start, length, count));
                rest = tail;
                start += length;
            }
            kernels::each(segments, |(out, start, length, count)| {
                let (key, value) = (&k.values()[start * k.stride..], &v.values()[start * v.stride..]);
                let (keys, values, capacity) =
                    kernels::pack_keys_values(shape, length, (key, k.stride), (value, v.stride));
                let q = (&q.values()[if shared { 0 } else { start * q.stride }..], q.stride);
                let kv = KeyValues { keys: &keys, values: &values, capacity };
                kernels::attend(isa, shape, q, count, length, false, kv, out);
            });
            Tensor::from_vec(out, (total, width), &candle_core::Device::Cpu)
        }
        Engine::Candle => {
            let mut parts = Vec::new();
            let mut start = 0;
            for (length, count) in runs(lengths, shape.heads) {
                parts.push(attend_run(place, shape, queries, k, v, (start, length, count))?);
                start += length * count;
            }
            Tensor::cat(&parts, 0)
        }
    }
}

/// Neighbouring segments of equal length as (length, count), so that each run is one batched product.
fn runs(lengths: &[usize], heads: usize) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for &length in lengths {
        let most = (SCORES_MAX / (heads * length * length).max(1)).max(1);
        match runs.last_mut() {
            Some((last, count)) if *last == length && *count < most => *count += 1,
            _ => runs.push((length, 1)),
        }
    }
    runs
}

fn attend_run(
    place: &Place,
    shape: AttentionShape,
    queries: Queries<'_>,
    k: &Tensor,
    v: &Tensor,
    (start, length, count): (usize, usize, usize),
) -> Result<Tensor> {
    let heads = |x: &Tensor, batch: usize| {
        let rows = x.dims2()?.0 / batch;
        x.contiguous()?.reshape((batch, rows, shape.heads, shape.head_dim))?.transpose(1, 2)?.contiguous()
    };
    let own = |x: &Tensor| heads(&x.narrow(0, start, length * count)?, count);
    let q = match queries {
        Queries::Own(q) => own(q)?,
        Queries::Shared(q) => {
            let q = heads(q, 1)?;
            let (_, h, rows, d) = q.dims4()?;
            q.broadcast_as((count, h, rows, d))?.contiguous()?
        }
    };
    let rows = q.dim(2)?;
    let scores = (q.matmul(&own(k)?.transpose(2, 3)?)?.to_dtype(candle_core::DType::F32)? * f64::from(shape.scale()))?;
    let weights = candle_nn::ops::softmax_last_dim(&scores)?.to_dtype(place.dtype)?;
    weights.matmul(&own(v)?)?.transpose(1, 2)?.contiguous()?.reshape((count * rows, shape.width()))
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn both_engines_agree_on_segments_of_any_length() {
        let shape = AttentionShape { heads: 3, kv_heads: 3, head_dim: 20 };
        let lengths = [5, 17, 17, 17, 1, 40];
        let rows = lengths.iter().sum::<usize>();
        let qkv = Tensor::randn(0.0_f32, 1.0, (rows, 180), &Device::Cpu).unwrap();
        let [q, k, v] = [0, 60, 120].map(|at| qkv.narrow(1, at, 60).unwrap());
        let shared = Tensor::randn(0.0_f32, 1.0, (4, 60), &Device::Cpu).unwrap();
        for queries in [Queries::Own(&q), Queries::Shared(&shared)] {
            let [a, b] = [Place::cpu(), Place::candle(Device::Cpu, DType::F32)]
                .map(|place| attend_segments(&place, shape, queries, &k, &v, &lengths).unwrap());
            assert_eq!(a.dims(), b.dims());
            let gap = (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(gap < 1e-5, "{gap}");
        }
    }

    #[test]
    fn equal_neighbours_make_a_run_until_their_scores_are_too_many() {
        assert_eq!(runs(&[3, 3, 5, 3], 2), [(3, 2), (5, 1), (3, 1)]);
        assert_eq!(runs(&[8192, 8192], 1), [(8192, 2)]);
        assert_eq!(runs(&[8192, 8192, 8192], 2), [(8192, 1), (8192, 1), (8192, 1)]);
    }
}
