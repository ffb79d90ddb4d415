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

#[cfg(test)]
mod tests {
    use super::{row_seed, split_mix};

    #[test]
    fn seeds_never_change() {
        // The first output of SplitMix64 from state 0, as published.
        assert_eq!(split_mix(0), 0xe220_a839_7b1d_cdaf);
        // Computed by an independent implementation.
        assert_eq!(row_seed(0, "", 0), 0xa6bb_c8dc_be30_928c);
        assert_eq!(row_seed(0, "a.jpg", 0), 0x45be_ac7b_84e3_559e);
        assert_eq!(row_seed(0, "a.jpg", 1), 0xa237_66ce_f0b6_1407);
        assert_eq!(row_seed(7, "a.jpg", 0), 0xf34a_ac5b_e1e5_8bdf);
        assert_eq!(row_seed(u64::MAX, "bilder/f\u{fc}r.png", u32::MAX), 0xe866_9230_2f32_c95d);
    }

    #[test]
    fn seeds_of_neighbouring_rows_differ() {
        let mut seeds = std::collections::HashSet::new();
        for job in 0..10 {
            for key in 0..100 {
                for question in 0..10 {
                    assert!(seeds.insert(row_seed(job, &format!("images/{key:05}.jpg"), question)));
                }
            }
        }
    }
}
