//! Hot loops, compiled twice: for every CPU of the architecture, and for those with wide vectors.
//!
//! The loops are ordinary Rust that the compiler turns into vector instructions. On x86-64 the baseline has 128-bit
//! vectors only, so each loop also exists with AVX2 and is chosen at run time. (On AArch64 the baseline is NEON, which
//! is all there is.) Integer arithmetic gives the same result in both.

/// Whether this CPU has the instructions of x86-64-v3 that [`kernel!`] compiles for.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(crate) fn has_wide_vectors() -> bool {
    use std::arch::is_x86_feature_detected as has;
    has!("avx2") && has!("bmi1") && has!("bmi2") && has!("lzcnt")
}

/// Defines a function whose body is compiled for the baseline and, on x86-64, for AVX2, and which picks at run time.
macro_rules! kernel {
    ($(#[$meta:meta])* $vis:vis fn $name:ident $(<$life:lifetime>)? ($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name $(<$life>)? ($($arg: $ty),*) $(-> $ret)? {
            #[allow(clippy::too_many_arguments, reason = "arguments of the kernel")]
            #[inline(always)]
            fn portable $(<$life>)? ($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            #[allow(clippy::too_many_arguments, reason = "arguments of the kernel")]
            #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt")]
            fn wide $(<$life>)? ($($arg: $ty),*) $(-> $ret)? {
                portable($($arg),*)
            }

            #[cfg(target_arch = "x86_64")]
            if $crate::kernel::has_wide_vectors() {
                // SAFETY: `wide` needs exactly the CPU features that were detected just now.
                #[allow(unsafe_code, reason = "the CPU features of the kernel are checked at run time")]
                return unsafe { wide($($arg),*) };
            }
            portable($($arg),*)
        }
    };
}

pub(crate) use kernel;
