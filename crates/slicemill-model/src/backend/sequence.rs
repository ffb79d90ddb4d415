//! A sequence in flight: its slots, and how its next tokens are chosen.

use std::time::Instant;

use slicemill_core::GenerationParams;
use slicemill_pipeline::{FinishReason, SequenceId};

use crate::beam::{BeamSearch, Turn};
use crate::kv_cache::SlotCopy;
use crate::sampler::Sampler;

/// A sequence in flight. Every step runs the last token of each of its beams, all at the same position.
pub(super) struct InFlight {
    pub id: SequenceId,
    /// Its slots, as many as it may have beams. The first ones hold the running beams, in their order.
    pub slots: Vec<usize>,
    /// What must be copied between its slots before the next step: where beams have a parent in common.
    pub copies: Vec<SlotCopy>,
    pub choice: Choice,
    pub prompt_tokens: usize,
    /// Tokens that were cut off the prompt.
    pub prompt_cut: usize,
    pub prefill_ms: f32,
    pub decode_start: Instant,
}

/// How tokens are chosen.
pub(super) enum Choice {
    /// One after the other, greedy or sampled.
    One { sampler: Box<Sampler>, produced: Vec<u32>, tokens_max: usize },
    /// By beam search.
    Beams(BeamSearch),
}

/// What became of a sequence after a step.
#[derive(Debug)]
pub(super) enum Progress {
    Goes,
    Ends(Output),
}

/// What a sequence has produced.
#[derive(Debug)]
pub(super) struct Output {
    pub ids: Vec<u32>,
    pub finish: FinishReason,
    /// Steps that its compute counts.
    pub steps: usize,
}

impl Choice {
    /// With the parameters of the job and the seed of the row, for at most `tokens_max` tokens.
    pub fn new(params: &GenerationParams, seed: u64, tokens_max: usize) -> Result<Self, String> {
        Ok(if params.num_beams == 1 {
            Self::One { sampler: Box::new(Sampler::new(params, seed)?), produced: Vec::new(), tokens_max }
        } else {
            Self::Beams(BeamSearch::new(params, tokens_max)?)
        })
    }

    /// Tokens that every beam has produced.
    fn produced(&self) -> usize {
        match self {
            Self::One { produced, .. } => produced.len(),
            Self::Beams(search) => search.steps(),
        }
    }

    /// The last token of every running beam.
    pub fn last_tokens(&self) -> Vec<u32> {
        match self {
            Self::One { produced, .. } => produced.last().copied().into_iter().collect(),
            Self::Beams(search) => search.running().filter_map(|ids| ids.last().copied()).collect(),
        }
    }
}

impl InFlight {
    /// Position of the last produced tokens, which have not been run.
    pub fn position(&self) -> usize {
        self.prompt_tokens + self.choice.produced() - 1
    }

    /// Chooses from the logits after every running beam.
    pub fn advance(&mut self, rows: &[&[f32]], eos: &[u32]) -> Result<Progress, String> {
        match &mut self.choice {
            Choice::One { sampler, produced, tokens_max } => {
                let [logits] = rows else { return Err(format!("{} rows of logits for one sequence", rows.len())) };
                let token = sampler.next(logits)?;
                let finish = if eos.contains(&token) {
                    FinishReason::Stop
                } else {
                    produced.push(token);
                    if produced.len() < *tokens_max {
                        return Ok(Progress::Goes);
                    }
                    FinishReason::Length
                };
                let ids = std::mem::take(produced);
                Ok(Progress::Ends(Output { steps: ids.len(), ids, finish }))
            }
            Choice::Beams(search) => {
                let before: Vec<Vec<u32>> = search.running().map(<[u32]>::to_vec).collect();
                match search.next(rows, eos)? {
                    Turn::Goes(parents) => {
                        self.follow(&before, &parents);
                        Ok(Progress::Goes)
                    }
                    Turn::Ends(best) => {
                        let finish = if best.stopped { FinishReason::Stop } else { FinishReason::Length };
                        Ok(Progress::Ends(Output { steps: search.steps_counted(), ids: best.ids, finish }))
                    }
                }
            }
        }
    }

    /// Gives every running beam a slot that holds what its parent's holds. The first child of a parent stays in its
    /// slot; each other one takes a slot that nobody continues, the most alike, and only what differs is copied.
    fn follow(&mut self, before: &[Vec<u32>], parents: &[usize]) {
        // The first step comes after the prompt, which is in all slots already.
        if before.len() < parents.len() {
            return;
        }
        let mut free: Vec<usize> = (0..before.len()).filter(|beam| !parents.contains(beam)).collect();
        let mut slots = Vec::with_capacity(self.slots.len());
        for &parent in parents {
            let slot = self.slots[parent];
            let shared = |twin: &usize| before[parent].iter().zip(&before[*twin]).take_while(|(a, b)| a == b).count();
            let twin = (0..free.len()).max_by_key(|&at| shared(&free[at])).filter(|_| slots.contains(&slot));
            slots.push(twin.map_or(slot, |at| {
                let twin = free.remove(at);
                let tokens = self.prompt_tokens + shared(&twin)..self.prompt_tokens + before[parent].len();
                self.copies.push(SlotCopy { from: slot, to: self.slots[twin], tokens });
                self.slots[twin]
            }));
        }
        slots.extend(self.slots.iter().filter(|slot| !slots.contains(slot)).copied().collect::<Vec<_>>());
        self.slots = slots;
    }
}
