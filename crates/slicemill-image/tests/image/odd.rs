//! Files that bend the rules where their pixels are damaged after all: a row fails, with what is wrong.

use slicemill_core::{ErrorClass, ImageOptions, RowError, Size};
use slicemill_image::{DecodedImage, Orientation, decode, read_header};

use crate::craft::{chunk, gif, gray_png, with_chunk, zlib_bomb, zlib_stored};
use crate::{images, rare};

fn attempt(bytes: &[u8], name: &str) -> Result<DecodedImage, RowError> {
    let options = ImageOptions::default();
    read_header(bytes, name, &options).and_then(|header| decode(bytes, &header, &options))
}

fn class(bytes: &[u8], name: &str) -> ErrorClass {
    attempt(bytes, name).map_or_else(|error| error.class, |_| panic!("{name} was decoded"))
}

/// Where the body of the first chunk of a kind begins.
fn body(png: &[u8], kind: &[u8; 4]) -> usize {
    png.windows(4).position(|place| place == kind).unwrap() + 4
}

#[test]
fn a_png_whose_zlib_checksum_is_wrong_is_corrupt() {
    let good = gray_png(Size::new(20, 20));
    let (at, end) = (body(&good, b"IDAT"), body(&good, b"IEND") - 8);
    // With the chunk's checksum right the data counts as what was written; with both wrong it does not.
    let data = [&good[at..end - 8], &[1, 2, 3, 4]].concat();
    let renewed = [&good[..at - 8], &chunk(b"IDAT", &data), &chunk(b"IEND", b"")].concat();
    assert_eq!(attempt(&renewed, "adler.png").unwrap(), attempt(&good, "good.png").unwrap());
    let mut both = renewed;
    both[end - 1] ^= 1;
    assert_eq!(class(&both, "both.png"), ErrorClass::Corrupt);
}

#[test]
fn damage_under_a_wrong_checksum_is_corrupt() {
    let good = std::fs::read(images().join("rgb8.png")).unwrap();
    let at = body(&good, b"IDAT");
    for offset in [20, 200, 900] {
        let mut damaged = good.clone();
        damaged[at + offset] ^= 0x10;
        assert_eq!(class(&damaged, "damaged.png"), ErrorClass::Corrupt, "{offset}");
    }
}

#[test]
fn checksums_of_the_header_and_the_palette_are_looked_at() {
    let good = std::fs::read(images().join("palette8.png")).unwrap();
    for kind in [b"PLTE", b"IHDR"] {
        let mut damaged = good.clone();
        // A colour; the last byte of the height is left alone, so that it is still that of the data.
        let at = body(&good, kind) + if kind == b"IHDR" { 10 } else { 5 };
        damaged[at] ^= 1;
        assert_eq!(class(&damaged, "damaged.png"), ErrorClass::Corrupt, "{kind:?}");
    }
}

#[test]
fn bombs_in_texts_of_orientation_end_early() {
    let plain = gray_png(Size::new(7, 5));
    let bomb = zlib_bomb(1 << 30);
    let bodies = [
        (b"zTXt", [b"Raw profile type exif\0\0".as_slice(), &bomb].concat()),
        (b"iTXt", [b"XML:com.adobe.xmp\0\x01\0en\0\0".as_slice(), &bomb].concat()),
    ];
    for (kind, body) in bodies {
        let file = with_chunk(&plain, kind, &body);
        let (header, peak) = crate::memory::peak_of(|| read_header(&file, "bomb.png", &ImageOptions::default()));
        assert_eq!(header.unwrap().orientation, Orientation::Upright);
        assert!(peak < 3 << 20, "{peak}");
    }
}

/// Each of them may be inflated, but not all.
#[test]
fn many_bombs_in_texts_of_orientation_end_early() {
    const PACKET: &[u8] = b"XML:com.adobe.xmp\0\x01\0\0\0";
    let plain = gray_png(Size::new(7, 5));
    let bomb = chunk(b"iTXt", &[PACKET, &zlib_bomb(1 << 20)].concat());
    let compressed = [PACKET, &zlib_stored(br#"<x tiff:Orientation="6"/>"#)].concat();
    let stored = [b"XML:com.adobe.xmp\0\0\0\0\0".as_slice(), br#"<x tiff:Orientation="8"/>"#].concat();
    let few = bomb.repeat(3);
    let many = bomb.repeat(20_000);
    for (bombs, last, orientation) in [
        (&few, &compressed, Orientation::from_exif(6)),
        (&many, &compressed, Some(Orientation::Upright)),
        (&many, &stored, Orientation::from_exif(8)),
    ] {
        let file = [&plain[..33], bombs, &chunk(b"iTXt", last), &plain[33..]].concat();
        let header = read_header(&file, "bombs.png", &ImageOptions::default()).unwrap();
        assert_eq!(Some(header.orientation), orientation);
    }
    let file = [&plain[..33], &many, &plain[33..]].concat();
    assert_eq!(attempt(&file, "bombs.png").unwrap(), attempt(&plain, "plain.png").unwrap());
}

#[test]
fn a_gif_with_a_damaged_first_frame_fails() {
    let good = gif((40, 30), &[(40, 30, [1, 2, 3]), (40, 30, [4, 5, 6])]);
    assert!(attempt(&good, "good.gif").is_ok());
    let second = good.iter().rposition(|&byte| byte == b',').unwrap();
    // The second frame may go missing, the first may not.
    assert_eq!(attempt(&good[..second], "one.gif").unwrap(), attempt(&good, "good.gif").unwrap());
    let first = good.iter().position(|&byte| byte == b',').unwrap();
    assert_eq!(class(&good[..first + 30], "cut.gif"), ErrorClass::Truncated);
    let mut damaged = good;
    damaged[first + 16] = 99;
    assert_eq!(class(&damaged, "damaged.gif"), ErrorClass::Corrupt);
}

/// Codes that do not exist: libjpeg takes zeros for them.
#[test]
fn a_jpeg_with_codes_from_nowhere_is_corrupt() {
    let good = std::fs::read(images().join("gray.jpg")).unwrap();
    let at = good.windows(2).position(|pair| pair == [0xFF, 0xDA]).unwrap() + 10;
    let mut damaged = good;
    for place in (at + 40..at + 60).step_by(2) {
        (damaged[place], damaged[place + 1]) = (0xFF, 0);
    }
    assert_eq!(class(&damaged, "damaged.jpg"), ErrorClass::Corrupt);
}

/// Only the end marker may go missing.
#[test]
fn arithmetic_and_lossless_images_that_end_early_fail() {
    for name in ["arithmetic.jpg", "arithmetic_progressive.jpg", "arithmetic_noise.jpg", "lossless4.jpg"] {
        let bytes = std::fs::read(rare().join(name)).unwrap();
        for len in bytes.len() / 2..bytes.len() - 3 {
            let class = class(&bytes[..len], name);
            assert!(matches!(class, ErrorClass::Truncated | ErrorClass::Corrupt), "{name}, {len}: {class}");
        }
    }
}

#[test]
fn a_palette_of_absurd_size_is_corrupt() {
    let mut bytes = std::fs::read(images().join("palette8.bmp")).unwrap();
    bytes[46..50].copy_from_slice(&0x1234_5678u32.to_le_bytes());
    assert_eq!(class(&bytes, "palette.bmp"), ErrorClass::Corrupt);
}

#[test]
fn run_lengths_that_end_early_are_truncated() {
    let bytes = std::fs::read(rare().join("rle8_skips.bmp")).unwrap();
    assert_eq!(class(&bytes[..bytes.len() - 6], "cut.bmp"), ErrorClass::Truncated);
}
