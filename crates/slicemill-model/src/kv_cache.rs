//! Keys and values of sequences in flight.
//!
//! Every sequence has a slot. On the CPU a slot is a buffer in the packed form of [`crate::kernels`], as large as its
//! sequence can become and used again by the next one; on other devices the slots are rows of one tensor per layer,
//! allocated once. A forward pass runs a [`Batch`]: some new tokens of some sequences, each at its own position.

mod device;
mod host;

use std::ops::Range;

use candle_core::{Result, Tensor};
pub use device::{DeviceBatch, DeviceCache};
pub use host::{HostSlot, HostSpan};

use crate::decoder::Layer;
use crate::kernels::{AttentionShape, Isa};
use crate::rope::Rope;

/// Tokens of one slot that another one, which has room for them, is to hold too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotCopy {
    /// The slot that holds them.
    pub from: usize,
    /// The other one.
    pub to: usize,
    /// Which, by position.
    pub tokens: Range<usize>,
}

/// The sequences of one forward pass.
#[derive(Debug)]
pub enum Batch<'a> {
    /// On the CPU, for the kernels.
    Host(Isa, Vec<HostSpan<'a>>),
    /// On any device, for candle.
    Device(DeviceBatch<'a>),
}

impl Batch<'_> {
    /// Row of the last new token of every sequence.
    pub(crate) fn last_rows(&self) -> Vec<u32> {
        let mut end = 0;
        let mut row = |tokens: usize| {
            end += u32::try_from(tokens).unwrap_or(u32::MAX);
            end - 1
        };
        match self {
            Self::Host(_, spans) => spans.iter().map(|span| row(span.tokens)).collect(),
            Self::Device(batch) => batch.lengths().into_iter().map(row).collect(),
        }
    }

    /// Adds the new tokens' keys and values of a layer and attends: `qkv` `[rows, heads + 2 · kv heads]` → `[rows, heads]`
    /// (each times the head size).
    pub(crate) fn attend(
        &mut self,
        index: usize,
        qkv: &Tensor,
        shape: &AttentionShape,
        layer: &Layer,
        rope: &Rope,
    ) -> Result<Tensor> {
        match self {
            Self::Host(isa, spans) => host::attend(*isa, spans, index, qkv, *shape, layer, rope),
            Self::Device(batch) => batch.attend(index, qkv, *shape, layer, rope),
        }
    }
}
