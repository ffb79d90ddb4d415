//! Header and pixels of any bytes, under a small limit on pixels so that a run is short. What is whole is the same when
//! it need not be.
#![no_main]

use libfuzzer_sys::fuzz_target;
use slicemill_core::{ImageOptions, Truncated};
use slicemill_image::{decode, read_header};

fuzz_target!(init: slicemill_fuzz::panic_of_ours_only(), |bytes: &[u8]| {
    let strict = ImageOptions { pixels_max: 1 << 16, ..ImageOptions::default() };
    let Ok(header) = read_header(bytes, "a.jpg", &strict) else { return };
    let whole = decode(bytes, &header, &strict);
    let there = decode(bytes, &header, &ImageOptions { truncated: Truncated::Allow, ..strict });
    if let Ok(there) = &there {
        assert_eq!(there.image.size(), header.oriented_size(strict.orientation));
        assert_eq!(there.image.as_bytes().len() as u64, there.image.size().pixels() * 3);
        assert_eq!(there.truncated, whole.is_err());
    }
    if let Ok(whole) = whole {
        assert!(!whole.truncated);
        assert_eq!(there.as_ref(), Ok(&whole));
    }
});
