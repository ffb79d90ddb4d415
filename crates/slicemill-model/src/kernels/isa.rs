//! Which instruction set the kernels run on.

/// An instruction set that this CPU has. Only [`Isa::detect`] and [`Isa::available`] make one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Isa(Level);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    /// What every CPU of the target has (SSE2 on x86-64, NEON on AArch64).
    Baseline,
    /// AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F, VL, BW, DQ and FMA.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

/// Whether the baseline of the target has fused multiply-add. Without it `mul_add` would be a slow library call.
pub(super) const BASELINE_FMA: bool = cfg!(target_arch = "aarch64");

impl Isa {
    /// The best one.
    pub fn detect() -> Self {
        Self::available().pop().unwrap_or(Self(Level::Baseline))
    }

    /// All of them, the best last.
    pub fn available() -> Vec<Self> {
        #[cfg_attr(not(target_arch = "x86_64"), allow(unused_mut, reason = "only x86-64 has more than a baseline"))]
        let mut all = vec![Self(Level::Baseline)];
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            all.push(Self(Level::Avx2));
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
            {
                all.push(Self(Level::Avx512));
            }
        }
        all
    }

    /// Whether products are fused; results on instruction sets that agree in this are equal to the bit.
    pub fn fused(self) -> bool {
        self.0 != Level::Baseline || BASELINE_FMA
    }

    pub(super) const fn level(self) -> Level {
        self.0
    }
}

/// Defines `$name(isa, …)`, which runs `$body::<FMA, WIDE>(…)` compiled for `isa`. `FMA`: multiply-adds are fused;
/// `WIDE`: registers of sixteen lanes.
macro_rules! compiled_per_isa {
    ($(#[$meta:meta])* $vis:vis fn $name:ident = $body:ident($($arg:ident: $ty:ty),* $(,)?)) => {
        $(#[$meta])*
        #[allow(unsafe_code, reason = "calling a function compiled for an instruction set is unsafe by its type")]
        #[allow(clippy::too_many_arguments, reason = "a kernel takes its shapes and slices one by one")]
        $vis fn $name(isa: $crate::kernels::Isa, $($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            #[allow(clippy::too_many_arguments, reason = "a kernel takes its shapes and slices one by one")]
            fn avx2($($arg: $ty),*) {
                $body::<true, false>($($arg),*);
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,avx512f,avx512vl,avx512bw,avx512dq")]
            #[allow(clippy::too_many_arguments, reason = "a kernel takes its shapes and slices one by one")]
            fn avx512($($arg: $ty),*) {
                $body::<true, true>($($arg),*);
            }
            match isa.level() {
                $crate::kernels::isa::Level::Baseline => {
                    $body::<{ $crate::kernels::isa::BASELINE_FMA }, false>($($arg),*);
                }
                #[cfg(target_arch = "x86_64")]
                // SAFETY: an `Isa` of this level exists only where the CPU was found to have these features.
                $crate::kernels::isa::Level::Avx2 => unsafe { avx2($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                $crate::kernels::isa::Level::Avx512 => unsafe { avx512($($arg),*) },
            }
        }
    };
}
pub(super) use compiled_per_isa;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_is_available_and_the_baseline_always_is() {
        let all = Isa::available();
        assert_eq!(all.first(), Some(&Isa(Level::Baseline)));
        assert_eq!(all.last(), Some(&Isa::detect()));
    }
}
