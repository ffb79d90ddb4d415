//! CPU kernels on plain slices: packed matrix products, attention, norms and activations in f32.
//!
//! **Every output value depends only on its own row, to the bit.** A product is one chain of fused multiply-adds over
//! `k` from 0 upwards whatever tile it is computed in; sums across a row use sixteen partial sums whatever the vector
//! width. So a result does not depend on what else is in the batch, on the number of threads, or on which of the
//! instruction sets with fused multiply-add runs it. Tiles, blocks and threads are chosen for speed alone.
//!
//! The kernels are safe Rust written so that LLVM vectorises them; each is compiled once per instruction set
//! ([`Isa`]) and chosen when the program starts, because the program itself is built for any x86-64.

mod attention;
mod gemm;
mod isa;
mod math;
mod rows;

pub use attention::{AttentionShape, KeyValues, attend, pack_keys_values, write_token};
pub use gemm::{Epilogue, PackedMatrix, gemm};
pub use isa::Isa;
pub use math::Activation;
pub use rows::{RmsNormOf, add_rows, layer_norm, log_softmax, rms_norm, rotate_rows, silu_mul};

use std::cell::Cell;

use rayon::prelude::*;

thread_local! {
    /// Whether kernels called on this thread keep to it.
    static ALONE: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f`, whose kernels use no other thread: for callers that have split the work already. Results are the same.
pub fn alone<R>(f: impl FnOnce() -> R) -> R {
    let before = ALONE.replace(true);
    let result = f();
    ALONE.set(before);
    result
}

/// Threads that a kernel may use.
pub fn threads() -> usize {
    if ALONE.get() { 1 } else { rayon::current_num_threads() }
}

/// Runs `f` on every job, on all threads that may be used.
pub fn each<T: Send>(jobs: Vec<T>, f: impl Fn(T) + Sync + Send) {
    if threads() == 1 || jobs.len() == 1 {
        jobs.into_iter().for_each(f);
    } else {
        jobs.into_par_iter().for_each(f);
    }
}

/// Lanes of a panel and of a partial sum: one AVX-512 register, two AVX2 registers, four NEON registers.
pub(crate) const LANES: usize = 16;

/// Rounds up to a multiple of [`LANES`].
pub(crate) const fn round_up(n: usize) -> usize {
    n.div_ceil(LANES) * LANES
}

/// Numbers in [−1, 1) that look random and are always the same.
#[cfg(test)]
pub(crate) fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    };
    (0..16).for_each(|_| {
        next();
    });
    (0..n).map(|_| next()).collect()
}
