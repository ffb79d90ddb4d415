//! EXIF blocks of any bytes, carried by a PNG, a JPEG and a WebP: what they say is read alike, and never breaks the
//! image.
#![no_main]

use libfuzzer_sys::fuzz_target;
use slicemill_core::ImageOptions;
use slicemill_image::{Orientation, read_header};

fuzz_target!(|block: &[u8]| {
    // A JPEG segment holds no more, and brings a prefix of its own.
    let mut block = &block[..block.len().min(60_000)];
    while let Some(rest) = block.strip_prefix(b"Exif\0\0") {
        block = rest;
    }
    let orientations = [png(block), jpeg(block), webp(block)].map(|file| orientation(&file));
    assert_eq!([orientations[0]; 3], orientations);
    // The same bytes as a TIFF file of their own.
    let _ = read_header(block, "a.tif", &ImageOptions::default());
});

fn orientation(file: &[u8]) -> Orientation {
    match read_header(file, "a.png", &ImageOptions::default()) {
        Ok(header) => header.orientation,
        Err(error) => panic!("EXIF broke the header: {error}"),
    }
}

fn png(block: &[u8]) -> Vec<u8> {
    let mut file = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR\0\0\0\x01\0\0\0\x01\x08\0\0\0\0....".to_vec();
    file.extend((block.len() as u32).to_be_bytes());
    file.extend(b"eXIf");
    file.extend(block);
    file.extend(b"....\0\0\0\0IDAT....");
    file
}

fn jpeg(block: &[u8]) -> Vec<u8> {
    let mut file = b"\xff\xd8\xff\xe1".to_vec();
    file.extend((block.len() as u16 + 8).to_be_bytes());
    file.extend(b"Exif\0\0");
    file.extend(block);
    file.extend(b"\xff\xc0\0\x0b\x08\0\x01\0\x01\x01\x01\x11\0\xff\xda\0\x08\x01\x01\0\0\x3f\0");
    file
}

fn webp(block: &[u8]) -> Vec<u8> {
    let mut file = b"RIFF\xff\xff\0\0WEBPVP8X\x0a\0\0\0\x08\0\0\0\0\0\0\0\0\0EXIF".to_vec();
    file.extend((block.len() as u32).to_le_bytes());
    file.extend(block);
    file
}
