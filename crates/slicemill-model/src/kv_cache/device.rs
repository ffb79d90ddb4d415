//! Slots on a device, for candle's operations.
//!
//! ```text
//!   per layer: keys and values [slots, kv heads, context, head size]
//!
//!   prefill   one slot: its new tokens are copied in, they attend causally to the slot
//!   decode    one new token in each of some slots: scattered in; the slots up to the last used one attend together,
//!             a mask hides what lies behind each position (and idle slots, whose rows are not read)
//! ```

use candle_core::{DType, Device, Result, Tensor};

use super::SlotCopy;
use crate::decoder::Layer;
use crate::kernels::AttentionShape;
use crate::ops::{Place, RmsNorm};
use crate::rope::{Angles, Rope};

/// Added to scores that must not count: far below any score, and finite, so that a row of nothing else is not NaN.
const HIDDEN: f32 = -1e30;

/// Keys and values of all slots in all layers.
#[derive(Debug)]
pub struct DeviceCache {
    layers: Vec<(Tensor, Tensor)>,
    context: usize,
    place: Place,
}

impl DeviceCache {
    /// Allocates all slots.
    ///
    /// # Errors
    /// When the device has no room for them.
    pub fn new(place: &Place, shape: AttentionShape, layers: usize, slots: usize, context: usize) -> Result<Self> {
        let zeros = || Tensor::zeros((slots, shape.kv_heads, context, shape.head_dim), place.dtype, &place.device);
        let layers = (0..layers).map(|_| Ok((zeros()?, zeros()?))).collect::<Result<_>>()?;
        Ok(Self { layers, context, place: place.clone() })
    }

    /// Copies tokens between slots. No slot may be read in one copy and written in another.
    pub fn copy(&self, copies: &[SlotCopy]) -> Result<()> {
        match copies {
            [] => Ok(()),
            [copy] => self.copy_one(copy),
            _ => self.copy_all(copies),
        }
    }

    fn copy_one(&self, SlotCopy { from, to, tokens }: &SlotCopy) -> Result<()> {
        for (keys, values) in &self.layers {
            for cache in [keys, values] {
                // The source must have storage of its own: a tensor cannot be written while it is read.
                let part = cache.narrow(0, *from, 1)?.narrow(2, tokens.start, tokens.len())?.force_contiguous()?;
                cache.narrow(0, *to, 1)?.slice_set(&part, 2, tokens.start)?;
            }
        }
        Ok(())
    }

    /// All at once: a few operations for every layer, however many copies.
    fn copy_all(&self, copies: &[SlotCopy]) -> Result<()> {
        let Some((keys, _)) = self.layers.first() else { return Ok(()) };
        let (_, kv_heads, context, d) = keys.dims4()?;
        let cells = |slot: fn(&SlotCopy) -> usize| -> Vec<u32> {
            let cells = copies.iter().flat_map(|copy| {
                let head = move |h| (slot(copy) * kv_heads + h) * context;
                (0..kv_heads).flat_map(move |h| copy.tokens.clone().map(move |token| index(head(h) + token)))
            });
            cells.collect()
        };
        let (from, to) = (cells(|copy| copy.from), cells(|copy| copy.to));
        let rows = from.len();
        let from = Tensor::from_vec(from, rows, &self.place.device)?;
        let to = column(to, &self.place.device)?.broadcast_as((rows, d))?.contiguous()?;
        for (keys, values) in &self.layers {
            for cache in [keys, values] {
                let flat = cache.reshape(((), d))?;
                flat.scatter_set(&to, &flat.index_select(&from, 0)?, 0)?;
            }
        }
        Ok(())
    }

    /// Forgets a slot whose values are not finite: a weight of 0 does not hide them.
    pub fn clear(&self, slot: usize) -> Result<()> {
        for (keys, values) in &self.layers {
            for cache in [keys, values] {
                let slot = cache.narrow(0, slot, 1)?;
                slot.slice_set(&slot.zeros_like()?, 2, 0)?;
            }
        }
        Ok(())
    }
}

#[derive(Debug, Clone)]
enum Mode {
    Prefill { slot: usize, start: usize, tokens: usize },
    Decode { slots: Vec<usize>, positions: Vec<usize> },
}

/// New tokens of one or several sequences.
#[derive(Debug)]
pub struct DeviceBatch<'a> {
    cache: &'a DeviceCache,
    mode: Mode,
    /// What all layers share.
    prepared: Option<Prepared>,
}

#[derive(Debug)]
struct Prepared {
    /// `[tokens, head size / 2]`.
    cos: Tensor,
    sin: Tensor,
    /// Added to the scores: prefill `[tokens, keys]`, decode `[slots, 1, 1, keys]`.
    mask: Tensor,
    /// Keys that are looked at.
    keys: usize,
    decode: Option<Scatter>,
}

#[derive(Debug)]
struct Scatter {
    /// Row of the cache, seen as `[slots · kv heads · context, head size]`, for every row and head.
    cells: Tensor,
    /// Slots that are looked at.
    slots: usize,
    /// For each of these slots, the row of its new token (0 for idle ones).
    row_of_slot: Tensor,
    /// For each row, its slot.
    slot_of_row: Tensor,
}

impl<'a> DeviceBatch<'a> {
    /// `tokens` new tokens of the sequence in `slot`, from position `start`.
    pub const fn prefill(cache: &'a DeviceCache, slot: usize, start: usize, tokens: usize) -> Self {
        Self { cache, mode: Mode::Prefill { slot, start, tokens }, prepared: None }
    }

    /// One new token in each of `slots`, at `positions`.
    pub const fn decode(cache: &'a DeviceCache, slots: Vec<usize>, positions: Vec<usize>) -> Self {
        Self { cache, mode: Mode::Decode { slots, positions }, prepared: None }
    }

    pub(super) fn lengths(&self) -> Vec<usize> {
        match &self.mode {
            Mode::Prefill { tokens, .. } => vec![*tokens],
            Mode::Decode { slots, .. } => vec![1; slots.len()],
        }
    }

    pub(super) fn attend(
        &mut self,
        index: usize,
        qkv: &Tensor,
        shape: AttentionShape,
        layer: &Layer,
        rope: &Rope,
    ) -> Result<Tensor> {
        if self.prepared.is_none() {
            self.prepared = Some(self.prepare(shape, rope)?);
        }
        let Some(prepared) = &self.prepared else { candle_core::bail!("nothing prepared") };
        let (width, kv_width, d) = (shape.width(), shape.kv_width(), shape.head_dim);
        let rows = qkv.dims2()?.0;
        let place = &self.cache.place;
        let q = rotate(place, &qkv.narrow(1, 0, width)?, d, layer.q_norm.as_ref(), prepared)?;
        let k = rotate(place, &qkv.narrow(1, width, kv_width)?, d, layer.k_norm.as_ref(), prepared)?;
        let v = qkv.narrow(1, width + kv_width, kv_width)?.reshape((1, rows, shape.kv_heads, d))?;
        let (keys, values) = &self.cache.layers[index];
        match (&self.mode, &prepared.decode) {
            (Mode::Prefill { slot, start, tokens }, _) => {
                let (keys, values) = (keys.narrow(0, *slot, 1)?, values.narrow(0, *slot, 1)?);
                keys.slice_set(&k, 2, *start)?;
                values.slice_set(&v.transpose(1, 2)?.contiguous()?, 2, *start)?;
                let seen = |cache: &Tensor| cache.narrow(2, 0, prepared.keys);
                let group = shape.heads / shape.kv_heads;
                let q = q.reshape((1, shape.kv_heads, group * tokens, d))?;
                let scores = scores(&q, &seen(&keys)?, shape)?;
                let scores = scores.reshape((shape.kv_heads, group, *tokens, prepared.keys))?;
                let weights = softmax(place, &scores.broadcast_add(&prepared.mask)?)?;
                let weights = weights.reshape((1, shape.kv_heads, group * tokens, prepared.keys))?;
                let out = weights.matmul(&seen(&values)?)?.reshape((shape.heads, *tokens, d))?;
                out.transpose(0, 1)?.contiguous()?.reshape((rows, width))
            }
            (Mode::Decode { .. }, Some(scatter)) => {
                let cells = scatter.cells.broadcast_as((rows * shape.kv_heads, d))?.contiguous()?;
                let write = |cache: &Tensor, new: &Tensor| {
                    let new = new.contiguous()?.reshape((rows * shape.kv_heads, d))?;
                    cache.reshape(((), d))?.scatter_set(&cells, &new, 0)
                };
                write(keys, &k.squeeze(0)?.transpose(0, 1)?)?;
                write(values, &v)?;
                let seen = |cache: &Tensor| cache.narrow(0, 0, scatter.slots)?.narrow(2, 0, prepared.keys);
                let q = q.squeeze(0)?.transpose(0, 1)?.contiguous()?.reshape((rows, width))?;
                let group = shape.heads / shape.kv_heads;
                let q = q.index_select(&scatter.row_of_slot, 0)?;
                let q = q.reshape((scatter.slots, shape.kv_heads, group, d))?;
                let scores = scores(&q, &seen(keys)?, shape)?.broadcast_add(&prepared.mask)?;
                let out = softmax(place, &scores)?.matmul(&seen(values)?)?;
                out.reshape((scatter.slots, width))?.index_select(&scatter.slot_of_row, 0)
            }
            (Mode::Decode { .. }, None) => candle_core::bail!("nothing prepared for a decode step"),
        }
    }

    fn prepare(&self, shape: AttentionShape, rope: &Rope) -> Result<Prepared> {
        let (device, half) = (&self.cache.place.device, rope.half);
        // Every position with the length of its sequence.
        let angles = |places: &[(usize, usize)]| -> Result<(Tensor, Tensor)> {
            let pick = |table: &dyn Fn(&Angles) -> &[f32]| {
                let row = |&(p, length): &(usize, usize)| &table(rope.of(length))[p * half..][..half];
                let rows: Vec<f32> = places.iter().flat_map(row).copied().collect();
                Tensor::from_vec(rows, (places.len(), half), device)
            };
            Ok((pick(&|angles| &angles.cos)?, pick(&|angles| &angles.sin)?))
        };
        let hide = |hidden: bool| if hidden { HIDDEN } else { 0.0 };
        match &self.mode {
            Mode::Prefill { start, tokens, .. } => {
                let positions: Vec<usize> = (*start..start + tokens).collect();
                let keys = start + tokens;
                let (cos, sin) = angles(&positions.iter().map(|&p| (p, keys)).collect::<Vec<_>>())?;
                let mask = positions.iter().flat_map(|p| (0..keys).map(move |key| hide(key > *p))).collect();
                let mask = Tensor::from_vec(mask, (*tokens, keys), device)?;
                Ok(Prepared { cos, sin, mask, keys, decode: None })
            }
            Mode::Decode { slots, positions } => {
                let (cos, sin) = angles(&positions.iter().map(|&p| (p, p + 1)).collect::<Vec<_>>())?;
                // A few lengths instead of every one keeps the allocator's blocks in use.
                let keys = positions.iter().max().map_or(1, |p| p + 1).next_multiple_of(32).min(self.cache.context);
                let count = slots.iter().max().map_or(0, |slot| slot + 1);
                let mut row_of_slot = vec![0_u32; count];
                let mut mask = vec![HIDDEN; count * keys];
                for (row, (&slot, &position)) in slots.iter().zip(positions).enumerate() {
                    row_of_slot[slot] = index(row);
                    mask[slot * keys..][..=position].fill(0.0);
                }
                let cells: Vec<u32> = slots
                    .iter()
                    .zip(positions)
                    .flat_map(|(slot, p)| {
                        (0..shape.kv_heads).map(move |h| index((slot * shape.kv_heads + h) * self.cache.context + p))
                    })
                    .collect();
                let slot_of_row: Vec<u32> = slots.iter().map(|&slot| index(slot)).collect();
                let scatter = Scatter {
                    cells: column(cells, device)?,
                    slots: count,
                    row_of_slot: Tensor::from_vec(row_of_slot, count, device)?,
                    slot_of_row: Tensor::from_vec(slot_of_row, slots.len(), device)?,
                };
                let mask = Tensor::from_vec(mask, (count, 1, 1, keys), device)?;
                Ok(Prepared { cos, sin, mask, keys, decode: Some(scatter) })
            }
        }
    }
}

fn index(i: usize) -> u32 {
    u32::try_from(i).unwrap_or(u32::MAX)
}

fn column(ids: Vec<u32>, device: &Device) -> Result<Tensor> {
    let rows = ids.len();
    Tensor::from_vec(ids, (rows, 1), device)
}

/// `[rows, heads · d]` → rotated `[1, heads, rows, d]`, in f32 inside.
fn rotate(place: &Place, x: &Tensor, d: usize, norm: Option<&RmsNorm>, p: &Prepared) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    let heads = width / d;
    let x = match norm {
        Some(norm) => norm.forward(&x.contiguous()?.reshape((rows * heads, d))?)?,
        None => x.contiguous()?,
    };
    let x = x.reshape((1, rows, heads, d))?.transpose(1, 2)?.contiguous()?.to_dtype(DType::F32)?;
    candle_nn::rotary_emb::rope(&x, &p.cos, &p.sin)?.to_dtype(place.dtype)
}

fn scores(q: &Tensor, keys: &Tensor, shape: AttentionShape) -> Result<Tensor> {
    q.matmul(&keys.transpose(2, 3)?)?.to_dtype(DType::F32)? * f64::from(shape.scale())
}

fn softmax(place: &Place, scores: &Tensor) -> Result<Tensor> {
    candle_nn::ops::softmax_last_dim(scores)?.to_dtype(place.dtype)
}
