//! Scalar functions that the kernels apply lane by lane.

use serde::{Deserialize, Serialize};

/// `a · b + c`, fused where the instruction set can.
#[inline(always)]
pub(super) fn madd<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// e to the power `x`, within 2 units in the last place; saturates at ±87.3 and keeps NaN.
///
/// Argument reduction by ln 2 in two parts and the polynomial of degree 5 of the Cephes library (`expf`). The power of
/// two comes from the low bits of a number that is large enough to have been rounded to an integer.
#[inline(always)]
pub(super) fn exp<const FMA: bool>(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2^23
    const LN2_HIGH: f32 = 355.0 / 512.0;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Comparisons, not `clamp` or `max`: these keep NaN, which must reach the logits and be reported.
    let x = if x < -87.3 { -87.3 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    let shifted = madd::<FMA>(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = madd::<FMA>(n, -LN2_LOW, madd::<FMA>(n, -LN2_HIGH, x));
    let mut p = 1.987_569_1e-4;
    p = madd::<FMA>(p, r, 1.398_199_9e-3);
    p = madd::<FMA>(p, r, 8.333_452e-3);
    p = madd::<FMA>(p, r, 4.166_579_6e-2);
    p = madd::<FMA>(p, r, 1.666_666_5e-1);
    p = madd::<FMA>(p, r, 0.5);
    let y = madd::<FMA>(p * r, r, r) + 1.0;
    y * f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000))
}

/// `x / (1 + e^(−x))`.
#[inline(always)]
pub(super) fn silu<const FMA: bool>(x: f32) -> f32 {
    x / (1.0 + exp::<FMA>(-x))
}

/// The activation between the two linear layers of a vision MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Activation {
    /// None.
    #[default]
    None,
    /// `x · sigmoid(1.702 x)` (CLIP).
    QuickGelu,
    /// The tanh form of GELU (SigLIP): `x · sigmoid(2 u)`, `u = √(2/π) (x + 0.044715 x³)`.
    GeluTanh,
    /// The exact form of GELU (LLaVA-1.5's projector): `x · Φ(x)`.
    Gelu,
}

#[inline(always)]
pub(super) fn quick_gelu<const FMA: bool>(x: f32) -> f32 {
    x / (1.0 + exp::<FMA>(-1.702 * x))
}

#[inline(always)]
pub(super) fn gelu_tanh<const FMA: bool>(x: f32) -> f32 {
    let u = 0.797_884_6 * madd::<FMA>(0.044_715 * x * x, x, x);
    x / (1.0 + exp::<FMA>(-2.0 * u))
}

/// `x · Φ(x)` with `Φ(x) = erfc(−x / √2) / 2`, by the Chebyshev form of erfc, whose fractional error is below 1.2e-7
/// everywhere.
#[inline(always)]
pub(super) fn gelu<const FMA: bool>(x: f32) -> f32 {
    const TERMS: [f32; 10] = [
        0.170_872_77,
        -0.822_152_23,
        1.488_515_9,
        -1.135_204,
        0.278_868_07,
        -0.186_288_06,
        0.096_784_18,
        0.374_091_96,
        1.000_023_7,
        -1.265_512_2,
    ];
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / madd::<FMA>(0.5, z, 1.0);
    let mut p = TERMS[0];
    for term in &TERMS[1..] {
        p = madd::<FMA>(p, t, *term);
    }
    let tail = 0.5 * t * exp::<FMA>(madd::<FMA>(-z, z, p));
    if x < 0.0 { x * tail } else { x * (1.0 - tail) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulp_of_the_library() {
        let mut worst = 0.0_f64;
        for i in -87_000..=88_000 {
            let x = f64::from(i) * 1e-3;
            let got = f64::from(exp::<true>(x as f32));
            let want = f64::from(x as f32).exp();
            worst = worst.max(((got - want) / want).abs());
        }
        assert!(worst < 2.0 * f64::from(f32::EPSILON), "{worst:e}");
    }

    #[test]
    fn exp_saturates_and_keeps_nan() {
        assert_eq!(exp::<true>(-1e9), exp::<true>(-87.3));
        assert!(exp::<true>(1e9).is_finite());
        assert!(exp::<true>(f32::NAN).is_nan());
    }

    #[test]
    fn gelu_is_the_integral_of_the_normal_density() {
        // Simpson's rule in f64 from 0.
        let phi = |x: f64| {
            let (n, h) = (2000, x / 2000.0);
            let density = |t: f64| (-0.5 * t * t).exp() / (2.0 * std::f64::consts::PI).sqrt();
            let inner: f64 = (1..n).map(|i| f64::from(2 + 2 * (i % 2)) * density(h * f64::from(i))).sum();
            0.5 + h / 3.0 * (density(0.0) + inner + density(x))
        };
        for i in -120..=120 {
            let x = f64::from(i) * 0.05;
            let want = x * phi(x);
            assert!((f64::from(gelu::<true>(x as f32)) - want).abs() < 1e-6, "{x}");
        }
        assert!(gelu::<true>(f32::NAN).is_nan());
        assert_eq!(gelu::<true>(40.0), 40.0);
    }

    #[test]
    fn activations_are_the_textbook_ones() {
        for i in -60..=60 {
            let x = f64::from(i) * 0.1;
            let quick = x / (1.0 + (-1.702 * x).exp());
            let tanh = 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh());
            let silu_ = x / (1.0 + (-x).exp());
            for (got, want) in [
                (quick_gelu::<true>(x as f32), quick),
                (gelu_tanh::<true>(x as f32), tanh),
                (silu::<true>(x as f32), silu_),
            ] {
                assert!((f64::from(got) - want).abs() < 2e-6, "{x}: {got} {want}");
            }
        }
    }
}
