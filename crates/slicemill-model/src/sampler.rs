//! From logits to the next token, one sequence at a time.

use std::collections::BTreeSet;

use candle_core::{Device, Tensor};
use candle_transformers::generation::{LogitsProcessor, Sampling};
use slicemill_core::GenerationParams;

/// Chooses the tokens of one sequence. The choice depends on its logits, parameters, seed and earlier tokens alone.
pub struct Sampler {
    /// `None` is greedy.
    processor: Option<LogitsProcessor>,
    penalty: f32,
    produced: BTreeSet<u32>,
}

impl std::fmt::Debug for Sampler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sampler(greedy: {}, {} distinct tokens)", self.processor.is_none(), self.produced.len())
    }
}

impl Sampler {
    /// With the parameters of the job and the seed of the row.
    ///
    /// # Errors
    /// When a parameter is out of its range.
    pub fn new(params: &GenerationParams, seed: u64) -> Result<Self, String> {
        let GenerationParams { temperature, top_k, top_p, repetition_penalty: penalty, .. } = *params;
        if !(temperature.is_finite() && temperature >= 0.0) {
            return Err(format!("temperature is {temperature}; it must be 0 (greedy) or more"));
        }
        if top_k == Some(0) {
            return Err("top-k is 0; it must be at least 1".to_owned());
        }
        if let Some(p) = top_p.filter(|p| !(*p > 0.0 && *p <= 1.0)) {
            return Err(format!("top-p is {p}; it must be above 0 and at most 1"));
        }
        if !(penalty.is_finite() && penalty > 0.0) {
            return Err(format!("the repetition penalty is {penalty}; it must be above 0 (1 is off)"));
        }
        let sampling = match (temperature > 0.0, top_k.map(|k| k as usize), top_p.filter(|p| *p < 1.0)) {
            (false, _, _) => None,
            (true, None, None) => Some(Sampling::All { temperature }),
            (true, Some(k), None) => Some(Sampling::TopK { k, temperature }),
            (true, None, Some(p)) => Some(Sampling::TopP { p, temperature }),
            (true, Some(k), Some(p)) => Some(Sampling::TopKThenTopP { k, p, temperature }),
        };
        let processor = sampling.map(|sampling| LogitsProcessor::from_sampling(seed, sampling));
        Ok(Self { processor, penalty, produced: BTreeSet::new() })
    }

    /// The next token after `logits`, `[vocab]`.
    ///
    /// # Errors
    /// When a logit is not finite.
    pub fn next(&mut self, logits: &[f32]) -> Result<u32, String> {
        if let Some(id) = logits.iter().position(|x| !x.is_finite()) {
            return Err(format!("the model's score of token {id} is {}, not a finite number", logits[id]));
        }
        let penalised: Vec<f32>;
        let logits = if self.penalty == 1.0 || self.produced.is_empty() {
            logits
        } else {
            penalised = self.penalise(logits);
            &penalised
        };
        let token = match &mut self.processor {
            None => greedy(logits),
            Some(processor) => {
                let logits = Tensor::from_slice(logits, logits.len(), &Device::Cpu).map_err(|e| e.to_string())?;
                processor.sample(&logits).map_err(|e| format!("no token can be drawn: {e}"))?
            }
        };
        self.produced.insert(token);
        Ok(token)
    }

    /// Divides positive and multiplies negative logits of tokens already produced.
    fn penalise(&self, logits: &[f32]) -> Vec<f32> {
        let mut logits = logits.to_vec();
        for &id in &self.produced {
            let x = &mut logits[id as usize];
            *x = if *x > 0.0 { *x / self.penalty } else { *x * self.penalty };
        }
        logits
    }
}

/// The most likely token; the lowest id when several are.
fn greedy(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (id, &x) in logits.iter().enumerate() {
        if x > logits[best] {
            best = id;
        }
    }
    u32::try_from(best).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(params: &GenerationParams, seed: u64, logits: &[f32], n: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(params, seed).unwrap();
        (0..n).map(|_| sampler.next(logits).unwrap()).collect()
    }

    #[test]
    fn greedy_takes_the_lowest_id_of_the_best() {
        assert_eq!(draw(&GenerationParams::default(), 1, &[1.0, 3.0, 3.0, -1.0], 2), [1, 1]);
    }

    #[test]
    fn the_penalty_counts_a_token_once_and_only_after_it_was_produced() {
        let params = GenerationParams { repetition_penalty: 2.0, ..Default::default() };
        // 4 → 2 after the first; then 3 → 1.5; then 2 wins again although it was produced.
        assert_eq!(draw(&params, 1, &[4.0, 3.0, 1.0, -1.0], 4), [0, 1, 0, 0]);
        let params = GenerationParams { repetition_penalty: 3.0, ..Default::default() };
        assert_eq!(draw(&params, 1, &[-1.0, -2.0], 3), [0, 1, 0]);
    }

    #[test]
    fn a_seed_gives_the_same_tokens_again_and_another_gives_others() {
        let logits: Vec<f32> = (0..50_u8).map(|i| f32::from(i % 7)).collect();
        let params = GenerationParams { temperature: 1.5, top_k: Some(40), top_p: Some(0.95), ..Default::default() };
        let first = draw(&params, 7, &logits, 40);
        assert_eq!(first, draw(&params, 7, &logits, 40));
        assert_ne!(first, draw(&params, 8, &logits, 40));
    }

    #[test]
    fn top_k_and_top_p_exclude_the_unlikely() {
        let logits = [5.0, 4.0, 3.0, 2.0, 1.0];
        let hot = GenerationParams { temperature: 5.0, ..Default::default() };
        assert!(draw(&hot, 3, &logits, 300).contains(&4));
        let top_k = GenerationParams { top_k: Some(2), ..hot.clone() };
        assert!(draw(&top_k, 3, &logits, 300).iter().all(|&id| id < 2));
        let top_p = GenerationParams { top_p: Some(0.3), ..hot };
        assert!(draw(&top_p, 3, &logits, 300).iter().all(|&id| id < 2));
    }

    #[test]
    fn frequencies_follow_the_softmax() {
        let params = GenerationParams { temperature: 1.0, ..Default::default() };
        let drawn = draw(&params, 11, &[0.0, 3.0_f32.ln()], 4000);
        let share = drawn.iter().filter(|&&id| id == 1).count() as f64 / 4000.0;
        assert!((share - 0.75).abs() < 0.03, "{share}");
    }

    #[test]
    fn what_is_not_finite_or_out_of_range_is_an_error() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut sampler = Sampler::new(&GenerationParams::default(), 0).unwrap();
            assert!(sampler.next(&[0.0, bad]).unwrap_err().contains("token 1"));
        }
        let ok = GenerationParams::default();
        for params in [
            GenerationParams { temperature: -1.0, ..ok.clone() },
            GenerationParams { temperature: f64::NAN, ..ok.clone() },
            GenerationParams { top_k: Some(0), ..ok.clone() },
            GenerationParams { top_p: Some(0.0), ..ok.clone() },
            GenerationParams { top_p: Some(1.1), ..ok.clone() },
            GenerationParams { repetition_penalty: 0.0, ..ok },
        ] {
            assert!(Sampler::new(&params, 0).is_err(), "{params:?}");
        }
    }
}
