//! The seed of one row, so that sampled text does not depend on what else is in the batch.

/// Seed of the question `question_id` (0 for a caption) about the image `key` in a job with seed `job_seed`.
///
/// FNV-1a (64 bits) over the key's bytes, then the job's seed and the question each stirred in through the finaliser
/// of SplitMix64. The function is part of the output format: it never changes.
pub const fn row_seed(job_seed: u64, key: &str, question_id: u32) -> u64 {
    let bytes = key.as_bytes();
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    let mut i = 0;
    while i < bytes.len() {
        hash = (hash ^ bytes[i] as u64).wrapping_mul(0x0000_0100_0000_01b3);
        i += 1;
    }
    split_mix(split_mix(hash ^ split_mix(job_seed)).wrapping_add(question_id as u64))
}

/// One step of SplitMix64 (Steele, Lea and Flood 2014) from the state `x`.
const fn split_mix(x: u64) -> u64 {
    let z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
