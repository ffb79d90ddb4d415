//! Tests of the host stage against Pillow's results, which are kept as hashes in `tests/data/images` and
//! `tests/data/rare`.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "tests fail by panicking, and golden data is found through the environment"
)]

mod broken;
mod craft;
mod fixtures;
mod golden;
mod jpeg;
mod matrix;
mod memory;
mod odd;
mod resize;
mod tiff;
mod truncated;
mod views;

use std::path::PathBuf;

use sha2::{Digest, Sha256};
use slicemill_core::Size;
use slicemill_image::RgbImage;

/// The directory of the fixtures.
pub fn images() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/images")
}

/// The directory of the files that few programs write, or that bend the rules.
pub fn rare() -> PathBuf {
    images().with_file_name("rare")
}

/// SHA-256 in hex.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The next number of SplitMix64.
pub fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The picture that `noise` in `tests/reference/image_fixtures.py` makes of the same seed.
pub fn noise(seed: u64, size: Size) -> RgbImage {
    let mut state = seed;
    let len = size.pixels() as usize * 3;
    let mut data: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| split_mix(&mut state).to_le_bytes()).collect();
    data.truncate(len);
    let upper = (size.height / 2) as usize * size.width as usize * 3;
    for sample in &mut data[..upper] {
        *sample = 64 + *sample / 2;
    }
    RgbImage::from_raw(size, data).unwrap()
}
