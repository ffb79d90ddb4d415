//! Headers of any bytes: read whole, and read in the steps in which a store would deliver them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use slicemill_core::ImageOptions;
use slicemill_image::{HEADER_PREFIX_BYTES, HeaderRead, read_header, read_header_partial, sniff, sniff_unsupported};

fuzz_target!(|bytes: &[u8]| {
    let options = ImageOptions::default();
    let _ = (sniff(bytes), sniff_unsupported(bytes));
    let whole = read_header(bytes, "a.jpg", &options);
    // The first read may be as short as a store likes.
    for first in [0, 1, 16, HEADER_PREFIX_BYTES as usize] {
        let (mut have, mut steps) = (first.min(bytes.len()), 0);
        let stepped = loop {
            match read_header_partial(&bytes[..have], bytes.len() as u64, "a.jpg", &options) {
                Ok(HeaderRead::NeedMore { bytes: needed }) if have < bytes.len() => {
                    assert!(needed > have as u64 && needed <= bytes.len() as u64, "{have} bytes, then {needed}");
                    have = needed as usize;
                    steps += 1;
                    assert!(steps < 64, "too many steps");
                }
                read => break read,
            }
        };
        match (&whole, stepped) {
            (Ok(whole), Ok(HeaderRead::Done(header))) => assert_eq!(*whole, header),
            (Err(whole), Err(error)) => assert_eq!(whole.class, error.class),
            (Err(_), Ok(HeaderRead::NeedMore { .. })) => {}
            (whole, stepped) => panic!("whole: {whole:?}, in steps: {stepped:?}"),
        }
    }
});
