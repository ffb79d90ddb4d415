//! Slots in host memory.

use std::ops::Range;

use candle_core::{Device, Result, Tensor};

use crate::decoder::Layer;
use crate::kernels::{self, AttentionShape, Isa, KeyValues, LANES, RmsNormOf, round_up};
use crate::ops::HostRows;
use crate::rope::Rope;

/// Keys and values of one sequence in all layers, packed.
#[derive(Debug, Default)]
pub struct HostSlot {
    keys: Vec<f32>,
    values: Vec<f32>,
    capacity: usize,
}

/// New tokens of one sequence.
#[derive(Debug)]
pub struct HostSpan<'a> {
    /// Where its keys and values are.
    pub slot: &'a mut HostSlot,
    /// Position of the first new token.
    pub start: usize,
    /// How many.
    pub tokens: usize,
}

impl HostSlot {
    /// Tokens there is room for.
    pub const fn capacity(&self) -> usize {
        self.capacity
    }

    /// Makes room for `tokens`. What the slot held is lost when it grows.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn reserve(
        &mut self,
        shape: AttentionShape,
        layers: usize,
        tokens: usize,
    ) -> std::result::Result<(), std::collections::TryReserveError> {
        let capacity = round_up(tokens);
        if capacity <= self.capacity {
            return Ok(());
        }
        let size = |head: usize| layers * shape.kv_heads * head;
        for (buffer, size) in
            [(&mut self.keys, size(shape.key_head(capacity))), (&mut self.values, size(shape.value_head(capacity)))]
        {
            buffer.clear();
            buffer.try_reserve_exact(size)?;
            buffer.resize(size, 0.0);
        }
        self.capacity = capacity;
        Ok(())
    }

    /// Copies some tokens of another slot, which must have room for them, as this one must. The two must agree in what
    /// lies before them, because keys are copied in panels of sixteen tokens.
    pub fn copy_tokens(&mut self, from: &Self, shape: AttentionShape, layers: usize, tokens: Range<usize>) {
        let heads = layers * shape.kv_heads;
        let (here, there) = (shape.key_head(self.capacity), shape.key_head(from.capacity));
        let keys = tokens.start / LANES * LANES * shape.head_dim..round_up(tokens.end) * shape.head_dim;
        for head in 0..heads {
            self.keys[head * here..][keys.clone()].copy_from_slice(&from.keys[head * there..][keys.clone()]);
        }
        let panels = heads * shape.head_dim.div_ceil(LANES);
        let values = tokens.start * LANES..tokens.end * LANES;
        for panel in 0..panels {
            self.values[panel * self.capacity * LANES..][values.clone()]
                .copy_from_slice(&from.values[panel * from.capacity * LANES..][values.clone()]);
        }
    }

    /// Keys and values of a layer.
    fn layer(&mut self, shape: AttentionShape, index: usize) -> (&mut [f32], &mut [f32]) {
        let (keys, values) =
            (shape.kv_heads * shape.key_head(self.capacity), shape.kv_heads * shape.value_head(self.capacity));
        (&mut self.keys[index * keys..][..keys], &mut self.values[index * values..][..values])
    }
}

pub(super) fn attend(
    isa: Isa,
    spans: &mut [HostSpan<'_>],
    index: usize,
    qkv: &Tensor,
    shape: AttentionShape,
    layer: &Layer,
    rope: &Rope,
) -> Result<Tensor> {
    let rows = qkv.dims2()?.0;
    let qkv = HostRows::of(qkv)?;
    let width = shape.width();
    let mut out = vec![0.0; rows * width];
    let (mut jobs, mut rest, mut row) = (Vec::with_capacity(spans.len()), out.as_mut_slice(), 0);
    for span in spans {
        let (head, tail) = rest.split_at_mut(span.tokens * width);
        jobs.push((head, row, span));
        rest = tail;
        row += jobs.last().map_or(0, |job| job.2.tokens);
    }
    let norms = (layer.q_norm.as_ref().map(|n| n.of_heads()), layer.k_norm.as_ref().map(|n| n.of_heads()));
    kernels::each(jobs, |(out, row, span)| {
        attend_span(isa, span, index, (&qkv.values()[row * qkv.stride..], qkv.stride), shape, norms, rope, out);
    });
    Tensor::from_vec(out, (rows, width), &Device::Cpu)
}

#[allow(clippy::too_many_arguments, reason = "a kernel takes its shapes and slices one by one")]
fn attend_span(
    isa: Isa,
    span: &mut HostSpan<'_>,
    index: usize,
    (qkv, stride): (&[f32], usize),
    shape: AttentionShape,
    (q_norm, k_norm): (Option<RmsNormOf<'_>>, Option<RmsNormOf<'_>>),
    rope: &Rope,
    out: &mut [f32],
) {
    let HostSpan { start, tokens, .. } = *span;
    let angles = start * rope.half..(start + tokens) * rope.half;
    let table = rope.of(start + tokens);
    let (cos, sin) = (&table.cos[angles.clone()], &table.sin[angles]);
    let (width, kv_width) = (shape.width(), shape.kv_width());
    let q = kernels::rotate_rows(isa, qkv, stride, tokens, shape.heads, q_norm, cos, sin);
    let k = kernels::rotate_rows(isa, &qkv[width..], stride, tokens, shape.kv_heads, k_norm, cos, sin);
    let capacity = span.slot.capacity;
    let (keys, values) = span.slot.layer(shape, index);
    for t in 0..tokens {
        let key = &k[t * kv_width..][..kv_width];
        let value = &qkv[t * stride + width + kv_width..][..kv_width];
        kernels::write_token(shape, capacity, start + t, (key, value), (&mut *keys, &mut *values));
    }
    let kv = KeyValues { keys, values, capacity };
    kernels::attend(isa, shape, (&q, width), tokens, start + 1, true, kv, out);
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: AttentionShape = AttentionShape { heads: 2, kv_heads: 2, head_dim: 20 };

    fn token(position: usize, salt: f32) -> Vec<f32> {
        (0..40_u8).map(|i| f32::from(i) + salt + position as f32 * 100.0).collect()
    }

    #[test]
    fn tokens_are_copied_between_slots_of_different_sizes() {
        let (mut a, mut b) = (HostSlot::default(), HostSlot::default());
        a.reserve(SHAPE, 3, 50).unwrap();
        b.reserve(SHAPE, 3, 100).unwrap();
        assert_eq!((a.capacity, b.capacity), (64, 112));
        for layer in 0..3_u8 {
            for t in 0..37 {
                let (keys, values) = a.layer(SHAPE, layer.into());
                let (key, value) = (token(t, f32::from(layer)), token(t, f32::from(layer) + 0.5));
                kernels::write_token(SHAPE, 64, t, (&key, &value), (keys, values));
            }
        }
        // In parts that meet within a panel.
        b.copy_tokens(&a, SHAPE, 3, 0..21);
        b.copy_tokens(&a, SHAPE, 3, 21..37);
        for layer in 0..3 {
            let q = token(3, 0.25);
            let [mut x, mut y] = [vec![0.0; 40], vec![0.0; 40]];
            for (slot, out) in [(&mut a, &mut x), (&mut b, &mut y)] {
                let capacity = slot.capacity;
                let (keys, values) = slot.layer(SHAPE, layer);
                let kv = KeyValues { keys, values, capacity };
                kernels::attend(Isa::detect(), SHAPE, (&q, 40), 1, 37, false, kv, out);
            }
            assert_eq!(x, y);
        }
    }

    #[test]
    fn a_slot_never_shrinks() {
        let mut slot = HostSlot::default();
        slot.reserve(SHAPE, 1, 100).unwrap();
        let address = slot.keys.as_ptr();
        slot.reserve(SHAPE, 1, 10).unwrap();
        assert_eq!((slot.capacity, slot.keys.as_ptr()), (112, address));
    }
}
