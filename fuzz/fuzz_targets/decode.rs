//! Header and pixels of any bytes, under a small limit on pixels so that a run is short.
#![no_main]

use libfuzzer_sys::fuzz_target;
use slicemill_core::ImageOptions;
use slicemill_image::{decode, read_header};

fuzz_target!(init: slicemill_fuzz::panic_of_ours_only(), |bytes: &[u8]| {
    let options = ImageOptions { pixels_max: 1 << 16, ..ImageOptions::default() };
    let Ok(header) = read_header(bytes, "a.jpg", &options) else { return };
    if let Ok(image) = decode(bytes, &header, &options) {
        assert_eq!(image.size(), header.oriented_size(options.orientation));
        assert_eq!(image.as_bytes().len() as u64, image.size().pixels() * 3);
    }
});
