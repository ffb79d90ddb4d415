//! Slots of the KV cache: which are free, what they hold, and what is copied between them.

use std::collections::{BTreeMap, VecDeque};

use slicemill_core::ErrorClass;
use slicemill_pipeline::{BackendError, Generated, SequenceId};

use super::{Image, sequence::InFlight};
use crate::error::{fatal, row, runtime};
use crate::kernels::{AttentionShape, Isa};
use crate::kv_cache::{DeviceCache, HostSlot, SlotCopy};
use crate::model::Model;

/// Everything of a backend that changes.
pub(super) struct State {
    pub cache: Cache,
    pub slots: Vec<SlotState>,
    pub images: BTreeMap<u64, Image>,
    pub next_image: u64,
    pub next_sequence: u64,
    /// In order of admission.
    pub in_flight: Vec<InFlight>,
    pub finished: Vec<Generated>,
    pub failed: VecDeque<(SequenceId, BackendError)>,
}

pub(super) enum Cache {
    Host(Isa, Vec<HostSlot>),
    Device(DeviceCache),
}

#[derive(Clone, Default)]
pub(super) struct SlotState {
    pub busy: bool,
    /// Image and number of tokens of the prefix that the slot holds.
    pub prefix: Option<(u64, usize)>,
}

impl Cache {
    /// Copies tokens between slots. No slot is read in one copy and written in another.
    pub fn copy(&mut self, copies: &[SlotCopy], shape: AttentionShape, layers: usize) -> candle_core::Result<()> {
        match self {
            Self::Host(_, slots) => {
                for SlotCopy { from, to, tokens } in copies {
                    if let Ok([to, from]) = slots.get_disjoint_mut([*to, *from]) {
                        to.copy_tokens(from, shape, layers, tokens.clone());
                    }
                }
                Ok(())
            }
            Self::Device(cache) => cache.copy(copies),
        }
    }
}

impl State {
    /// Slots that are free.
    pub fn free(&self) -> usize {
        self.slots.iter().filter(|slot| !slot.busy).count()
    }

    /// A free slot with room for `room` tokens. When some slot holds the prefix of the same image, so does this one
    /// afterwards.
    pub fn take_slot(&mut self, image: u64, shared: usize, room: usize, model: &Model) -> Result<usize, BackendError> {
        let holds = |slot: &SlotState| shared > 0 && slot.prefix.is_some_and(|(of, n)| of == image && n >= shared);
        let free = |want: &dyn Fn(&SlotState) -> bool| self.slots.iter().position(|slot| !slot.busy && want(slot));
        let useful = |slot: &SlotState| slot.prefix.is_some_and(|(of, _)| self.images.contains_key(&of));
        let Some(slot) = free(&holds).or_else(|| free(&|slot| !useful(slot))).or_else(|| free(&|_| true)) else {
            return Err(fatal("all sequences are in flight; step before another is admitted"));
        };
        let source = if holds(&self.slots[slot]) { Some(slot) } else { self.slots.iter().position(holds) };
        let (attention, layers) = (model.decoder.config.attention, model.decoder.config.layers);
        let mut grows = false;
        if let Cache::Host(_, slots) = &mut self.cache {
            grows = slots[slot].capacity() < room;
            self.slots[slot].prefix = self.slots[slot].prefix.filter(|_| !grows);
            slots[slot]
                .reserve(attention, layers, room)
                .map_err(|e| row(ErrorClass::OutOfMemory, format!("no memory for {room} tokens: {e}")))?;
        }
        let prefix = match source {
            Some(from) if from != slot => {
                let copy = SlotCopy { from, to: slot, tokens: 0..shared };
                self.cache.copy(&[copy], attention, layers).map_err(|e| runtime(&e))?;
                Some((image, shared))
            }
            Some(_) if !grows => Some((image, shared)),
            _ => None,
        };
        self.slots[slot] = SlotState { busy: true, prefix };
        Ok(slot)
    }

    /// Takes `count` more slots that hold the same prompt of `tokens` tokens as slot `first`.
    pub fn take_twins(
        &mut self,
        first: usize,
        count: usize,
        (image, shared): (u64, usize),
        (tokens, room): (usize, usize),
        model: &Model,
    ) -> Result<Vec<usize>, BackendError> {
        let (attention, layers) = (model.decoder.config.attention, model.decoder.config.layers);
        let mut taken = Vec::with_capacity(count);
        let mut take = |state: &mut Self| -> Result<(), BackendError> {
            for _ in 0..count {
                let slot = state.take_slot(image, shared, room, model)?;
                taken.push(slot);
                let held = state.slots[slot].prefix.map_or(0, |(_, held)| held);
                let copy = SlotCopy { from: first, to: slot, tokens: held..tokens };
                state.cache.copy(&[copy], attention, layers).map_err(|e| runtime(&e))?;
                state.slots[slot].prefix = (shared > 0).then_some((image, shared));
            }
            Ok(())
        };
        match take(self) {
            Ok(()) => Ok(taken),
            Err(error) => {
                taken.iter().for_each(|&slot| self.slots[slot] = SlotState::default());
                Err(error)
            }
        }
    }

    /// Frees the slots of a sequence, which keep the prefix that they hold.
    pub fn release(&mut self, slots: &[usize]) {
        slots.iter().for_each(|&slot| self.slots[slot].busy = false);
    }

    /// Frees slots whose numbers are not finite.
    pub fn spoil(&mut self, slots: &[usize]) {
        for &slot in slots {
            self.slots[slot] = SlotState::default();
            if let Cache::Device(cache) = &self.cache
                && let Err(error) = cache.clear(slot)
            {
                tracing::warn!(%error, slot, "a slot of the KV cache could not be cleared");
            }
        }
    }
}
