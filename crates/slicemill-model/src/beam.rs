//! Beam search: from the logits after every running beam to the next beams, one sequence at a time.
//!
//! ```text
//!   logits of every beam ─▶ log-probabilities ─▶ + total of the beam ─▶ the best of all beams and tokens, by rank
//!                                                                        │
//!       an end token, rank below the number of beams ─▶ finished ◀───────┤
//!       any other token, until there are as many beams as before ────────┴─▶ running
//! ```
//!
//! The rules are those of transformers 4.37, which the published evaluation scripts pin; later versions stop at other
//! moments. A finished beam's score is its total log-probability divided by its length (its end token counts) to the
//! power of the length penalty, and only the best are kept, as many as there are beams. The search ends when none that
//! runs could get among them at its present length, or, with early stopping, when there are enough. At the cap the
//! running beams count as finished.
//!
//! Totals are sums in f32 and scores are in f64, as there. Of equal totals the one of the earlier beam, then of the
//! lower token id goes first; of equal scores the last finished wins and the first is dropped. So the result depends on
//! the logits and the parameters alone.

use slicemill_core::GenerationParams;

use crate::kernels::{self, Isa};

/// A beam that runs.
#[derive(Debug, Clone, PartialEq)]
struct Beam {
    ids: Vec<u32>,
    /// Log-probability of all its tokens.
    total: f32,
}

/// A beam that has ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Hypothesis {
    /// Without the end token.
    pub ids: Vec<u32>,
    /// Log-probability over length to the power of the penalty.
    pub score: f64,
    /// Whether an end token ended it.
    pub stopped: bool,
}

/// What the search does next.
#[derive(Debug, Clone, PartialEq)]
pub enum Turn {
    /// Runs the last token of every beam. For each of them, the beam before this turn that it continues.
    Goes(Vec<usize>),
    /// Nothing: this is the answer.
    Ends(Hypothesis),
}

/// The search of one sequence.
#[derive(Debug, Clone)]
pub struct BeamSearch {
    isa: Isa,
    beams: usize,
    length_penalty: f64,
    early_stopping: bool,
    repetition_penalty: f32,
    /// Tokens it may produce.
    steps_max: usize,
    steps: usize,
    /// Whether it ended at its cap.
    capped: bool,
    running: Vec<Beam>,
    finished: Vec<Hypothesis>,
}

impl BeamSearch {
    /// With the parameters of the job, for at most `steps_max` tokens.
    ///
    /// # Errors
    /// When a parameter is out of its range.
    pub fn new(params: &GenerationParams, steps_max: usize) -> Result<Self, String> {
        let GenerationParams { temperature, repetition_penalty, num_beams, length_penalty, .. } = *params;
        if num_beams == 0 || num_beams > GenerationParams::BEAMS_MAX {
            return Err(format!("{num_beams} beams: there may be 1 to {}", GenerationParams::BEAMS_MAX));
        }
        if temperature != 0.0 {
            return Err(format!("{num_beams} beams at temperature {temperature}; set one beam, or temperature 0"));
        }
        if !(repetition_penalty.is_finite() && repetition_penalty > 0.0) {
            return Err(format!("the repetition penalty is {repetition_penalty}; it must be above 0 (1 is off)"));
        }
        if !length_penalty.is_finite() {
            return Err(format!("the length penalty is {length_penalty}; it must be a number"));
        }
        Ok(Self {
            isa: Isa::detect(),
            beams: num_beams as usize,
            length_penalty,
            early_stopping: params.early_stopping,
            repetition_penalty,
            steps_max,
            steps: 0,
            capped: false,
            // Before the first token all beams would be equal, so one stands for all.
            running: vec![Beam { ids: Vec::new(), total: 0.0 }],
            finished: Vec::new(),
        })
    }

    /// Tokens of the running beams, whose last ones are to be run.
    pub fn running(&self) -> impl Iterator<Item = &[u32]> {
        self.running.iter().map(|beam| beam.ids.as_slice())
    }

    /// Tokens that every running beam has.
    pub const fn steps(&self) -> usize {
        self.steps
    }

    /// Steps that its compute counts once it has ended: all passes after the prompt's, and, as for other sequences, one
    /// more when it ended at its cap.
    pub const fn steps_counted(&self) -> usize {
        if self.capped { self.steps } else { self.steps.saturating_sub(1) }
    }

    /// Takes the logits after every running beam, `[vocab]` each. The first time there is one row, after the prompt.
    ///
    /// # Errors
    /// When a logit is not finite.
    pub fn next(&mut self, rows: &[&[f32]], eos: &[u32]) -> Result<Turn, String> {
        let candidates = self.candidates(rows, self.beams * (1 + eos.len()).max(2))?;
        self.steps += 1;
        let (mut next, mut parents) = (Vec::with_capacity(self.beams), Vec::with_capacity(self.beams));
        for (rank, candidate) in candidates.iter().enumerate() {
            let ids = &self.running[candidate.beam].ids;
            if !eos.contains(&candidate.token) {
                let ids = ids.iter().copied().chain([candidate.token]).collect();
                next.push(Beam { ids, total: candidate.total });
                parents.push(candidate.beam);
            } else if rank < self.beams {
                self.finish(ids.clone(), candidate.total, true);
            }
            if next.len() == self.beams {
                break;
            }
        }
        self.running = next;
        let done = candidates.first().is_none_or(|best| self.is_done(best.total));
        if !done && self.steps < self.steps_max {
            return Ok(Turn::Goes(parents));
        }
        self.capped = !done;
        if !done {
            for beam in std::mem::take(&mut self.running) {
                self.finish(beam.ids, beam.total, false);
            }
        }
        let best = self.finished.drain(..).reduce(|best, next| if next.score >= best.score { next } else { best });
        best.map(Turn::Ends).ok_or_else(|| "the model has no token to begin with".to_owned())
    }

    /// The `most` best continuations of all running beams, best first.
    fn candidates(&self, rows: &[&[f32]], most: usize) -> Result<Vec<Candidate>, String> {
        let mut best = Best { most, kept: Vec::with_capacity(most + 1) };
        for (index, (beam, logits)) in self.running.iter().zip(rows).enumerate() {
            if let Some(id) = logits.iter().position(|x| !x.is_finite()) {
                return Err(format!("the model's score of token {id} is {}, not a finite number", logits[id]));
            }
            best.offer(index, beam.total, &self.log_probabilities(&beam.ids, logits));
        }
        Ok(best.kept)
    }

    /// Log-probabilities, those of produced tokens made less likely by the penalty.
    fn log_probabilities(&self, produced: &[u32], logits: &[f32]) -> Vec<f32> {
        let mut scores = logits.to_vec();
        kernels::log_softmax(self.isa, &mut scores);
        if self.repetition_penalty != 1.0 {
            for (i, &id) in produced.iter().enumerate() {
                if !produced[..i].contains(&id) {
                    let x = &mut scores[id as usize];
                    *x = if *x < 0.0 { *x * self.repetition_penalty } else { *x / self.repetition_penalty };
                }
            }
        }
        scores
    }

    /// Divisor of the totals of beams that have run as far as these.
    fn norm(&self) -> f64 {
        (self.steps as f64).powf(self.length_penalty)
    }

    fn worst(&self) -> f64 {
        self.finished.iter().map(|hypothesis| hypothesis.score).fold(f64::INFINITY, f64::min)
    }

    /// Notes a beam that has ended; a full list drops its worst.
    fn finish(&mut self, ids: Vec<u32>, total: f32, stopped: bool) {
        let score = f64::from(total) / self.norm();
        if self.finished.len() == self.beams {
            let worst = self.worst();
            if score <= worst {
                return;
            }
            if let Some(at) = self.finished.iter().position(|hypothesis| hypothesis.score == worst) {
                self.finished.remove(at);
            }
        }
        self.finished.push(Hypothesis { ids, score, stopped });
    }

    /// Whether nothing that runs can get among the finished ones. `best` is the highest total of this step.
    fn is_done(&self, best: f32) -> bool {
        self.finished.len() == self.beams && (self.early_stopping || self.worst() >= f64::from(best) / self.norm())
    }
}

/// A beam with one more token.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Candidate {
    beam: usize,
    token: u32,
    total: f32,
}

/// The best candidates so far, best first.
struct Best {
    most: usize,
    kept: Vec<Candidate>,
}

impl Best {
    fn offer(&mut self, beam: usize, before: f32, scores: &[f32]) {
        let mut least = self.least();
        for (token, score) in (0_u32..).zip(scores) {
            let total = before + score;
            if total > least {
                let at = self.kept.partition_point(|kept| kept.total >= total);
                self.kept.insert(at, Candidate { beam, token, total });
                self.kept.truncate(self.most);
                least = self.least();
            }
        }
    }

    /// A total that is not above this one is not kept.
    fn least(&self) -> f32 {
        if self.kept.len() < self.most { f32::NEG_INFINITY } else { self.kept.last().map_or(0.0, |last| last.total) }
    }
}

#[cfg(test)]
mod tests;
