//! Rotary positions: cosines and sines of every position, in f32 as the reference computes them.

use crate::config::{DecoderConfig, RopeScaling};

/// Cosines and sines of every position, `[context, head_dim / 2]`.
#[derive(Debug)]
pub struct Angles {
    /// Cosines.
    pub cos: Vec<f32>,
    /// Sines.
    pub sin: Vec<f32>,
}

/// Rotary positions of a model.
#[derive(Debug)]
pub struct Rope {
    usual: Angles,
    /// Angles of sequences that are longer than this many tokens.
    long: Option<(usize, Angles)>,
    /// Pairs of a head.
    pub half: usize,
}

impl Rope {
    /// For positions 0 to `context − 1`.
    pub fn new(config: &DecoderConfig, context: usize) -> Self {
        let half = config.attention.head_dim / 2;
        let angles = |factor: &dyn Fn(usize) -> f32, scale: f32| {
            let powers = (0..half).map(|i| (config.rope_theta as f32).powf((2 * i) as f32 / (2 * half) as f32));
            let frequencies: Vec<f32> = powers.enumerate().map(|(i, power)| 1.0 / (factor(i) * power)).collect();
            let all = (0..context).flat_map(|p| frequencies.iter().map(move |f| p as f32 * f));
            let (cos, sin) = all.map(|angle| (angle.cos() * scale, angle.sin() * scale)).unzip();
            Angles { cos, sin }
        };
        match &config.rope_scaling {
            RopeScaling::None => Self { usual: angles(&|_| 1.0, 1.0), long: None, half },
            RopeScaling::Linear(factor) => Self { usual: angles(&|_| *factor as f32, 1.0), long: None, half },
            RopeScaling::Longrope { short, long, original_tokens, attention } => {
                let scale = *attention as f32;
                let differ = short != long && *original_tokens < context;
                Self {
                    usual: angles(&|i| short[i], scale),
                    long: differ.then(|| (*original_tokens, angles(&|i| long[i], scale))),
                    half,
                }
            }
        }
    }

    /// The angles of new tokens of a sequence that has `tokens` tokens with them. A sequence that grows past the limit
    /// keeps the keys it has, as in the reference.
    pub fn of(&self, tokens: usize) -> &Angles {
        match &self.long {
            Some((limit, long)) if tokens > *limit => long,
            _ => &self.usual,
        }
    }

    /// Whether the keys of a prefix depend on what follows it: those of a prompt beyond the limit differ.
    pub fn depends_on_length(&self, tokens: usize) -> bool {
        self.long.as_ref().is_some_and(|(limit, _)| tokens > *limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::AttentionShape;

    fn config(rope_scaling: RopeScaling) -> DecoderConfig {
        let json = include_bytes!("../embedded/config.json");
        let mut config = crate::ModelConfig::parse(json, "config.json").unwrap().decoder;
        config.attention = AttentionShape { heads: 1, kv_heads: 1, head_dim: 4 };
        config.rope_scaling = rope_scaling;
        config
    }

    #[test]
    fn plain_angles_are_position_over_powers() {
        let rope = Rope::new(&config(RopeScaling::None), 8);
        assert_eq!(rope.of(8).cos[2 * 3], 3.0_f32.cos());
        assert!((rope.of(8).sin[2 * 3 + 1] - 0.03_f32.sin()).abs() < 1e-7);
        let half = Rope::new(&config(RopeScaling::Linear(2.0)), 8);
        assert!((half.of(1).cos[2 * 4] - 2.0_f32.cos()).abs() < 1e-6);
    }

    #[test]
    fn long_sequences_have_the_long_factors() {
        let scaling =
            RopeScaling::Longrope { short: vec![1.0, 1.0], long: vec![2.0, 4.0], original_tokens: 5, attention: 1.5 };
        let rope = Rope::new(&config(scaling.clone()), 8);
        assert!((rope.of(5).cos[2 * 4] - 1.5 * 4.0_f32.cos()).abs() < 1e-6);
        assert!((rope.of(6).cos[2 * 4] - 1.5 * 2.0_f32.cos()).abs() < 1e-6);
        assert!(!rope.depends_on_length(5) && rope.depends_on_length(6));
        assert!(!Rope::new(&config(scaling), 5).depends_on_length(6), "no sequence is longer than the context");
    }
}
