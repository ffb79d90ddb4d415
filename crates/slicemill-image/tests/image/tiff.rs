//! TIFF files that lie, and valid ones at the edges of what is allowed.

use slicemill_core::{ErrorClass, ImageOptions, Size};

use crate::craft::{Tag, gray_tags, tiff, zlib_stored};
use crate::images;
use crate::matrix::{attempt, error, pixels};

/// The directory of `tags` with some values that stand behind it, then data.
pub fn with_values(mut tags: Vec<Tag>, data: &[u8], tables: &[(u16, u16, &[u32])]) -> Vec<u8> {
    tags.retain(|tag| !tables.iter().any(|table| table.0 == tag.0));
    let mut at = (8 + 2 + 12 * (tags.len() + tables.len()) + 4) as u32;
    let mut behind = Vec::new();
    for &(tag, kind, values) in tables {
        tags.push(Tag(tag, kind, values.len() as u32, at));
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        at += bytes.len() as u32;
        behind.extend(bytes);
    }
    tags.sort_by_key(|tag| tag.0);
    tiff(&tags, 0, &[behind.as_slice(), data].concat())
}

/// Rows like the row before are a bit each: sides beyond 65,535 are as good as others.
#[test]
fn facsimile_codes_have_no_longest_side() {
    for size in [Size::new(1, 65_537), Size::new(70_000, 3), Size::new(7465, 5536)] {
        let data = vec![0xFF; (size.height as usize).div_ceil(8)];
        let mut tags = gray_tags(size, 4, data.len() as u32, 0);
        (tags[2].3, tags[4].3) = (1, 0);
        let image = pixels(&tiff(&tags, 0, &data), "white.tif").image;
        assert_eq!(image.size(), size);
        assert!(image.as_bytes().iter().all(|&sample| sample == 255));
    }
}

#[test]
fn tiles_much_larger_than_the_image_are_refused() {
    for side in [100_000u32, 1 << 31, u32::MAX] {
        for compression in [1, 5, 7, 8] {
            let mut tags = gray_tags(Size::new(4, 3), compression, 12, 4);
            tags.extend([Tag(322, 4, 1, side), Tag(323, 4, 1, side), Tag(324, 4, 1, 8), Tag(325, 4, 1, 12)]);
            let error = error(&tiff(&tags, 0, &[7; 12]), "tile.tif");
            assert_eq!(error.class, ErrorClass::Corrupt, "{side}, {compression}: {error}");
        }
    }
}

/// One strip a row, and all of them are the whole file.
#[test]
fn strips_that_are_all_the_same_bytes_do_not_multiply_the_work() {
    let size = Size::new(1, 20_000);
    let data = vec![0x80; 1 << 20];
    let places = vec![8u32; size.height as usize];
    let lengths = vec![data.len() as u32; size.height as usize];
    for compression in [5, 8, 32773, 34925, 50000, 2, 3, 4, 7] {
        let mut tags = gray_tags(size, compression, 0, 0);
        tags[7].3 = 1;
        let file = with_values(tags, &data, &[(273, 4, &places), (279, 4, &lengths)]);
        let error = error(&file, "shared.tif");
        let classes = [ErrorClass::Corrupt, ErrorClass::UnsupportedVariant];
        assert!(classes.contains(&error.class), "{compression}: {error}");
    }
}

/// Reversing bits copies a strip, which must not be the rest of the file for every row.
#[test]
fn reversed_strips_are_copied_as_far_as_they_go() {
    let size = Size::new(1, 60_000);
    let data = vec![1; 4 << 20];
    let mut tags = gray_tags(size, 1, 0, 1);
    tags[7].3 = 1;
    tags.push(Tag(266, 3, 1, 2));
    let places = vec![600_000u32; size.height as usize];
    let lengths = vec![u32::MAX; size.height as usize];
    let image = pixels(&with_values(tags, &data, &[(273, 4, &places), (279, 4, &lengths)]), "reversed.tif").image;
    assert!(image.as_bytes().iter().all(|&sample| sample == 0x80));
}

/// Rows of a flat image, which no pixel of it can need.
#[test]
fn rows_of_gigabytes_are_refused() {
    let size = Size::new(100_000_000, 1);
    for (samples, bits) in [(64, 64), (64, 8), (65_535, 8), (1, 64)] {
        let mut tags = gray_tags(size, 8, 100, 0);
        (tags[2].3, tags[6].3) = (bits, samples);
        let error = error(&tiff(&tags, 0, &[0x78; 100]), "wide.tif");
        assert!([ErrorClass::UnsupportedVariant, ErrorClass::Corrupt].contains(&error.class), "{error}");
    }
}

#[test]
fn what_is_not_decoded_says_so() {
    let size = Size::new(4, 3);
    // Index of the tag, its value, what the message names.
    for (index, value, named) in
        [(3, 34712, "compression 34712"), (4, 32844, "colours of kind 32844"), (2, 33, "33 bits")]
    {
        let mut tags = gray_tags(size, 1, 12, 0);
        tags[index].3 = value;
        let error = error(&tiff(&tags, 0, &[7; 400]), named);
        assert_eq!(error.class, ErrorClass::UnsupportedVariant, "{error}");
        assert!(error.message.contains(named), "{error}");
    }
}

#[test]
fn tables_of_the_old_jpeg_outside_the_file_are_an_error() {
    let name = "kind_old_jpeg_tables.tif";
    let bytes = std::fs::read(images().join(name)).unwrap();
    assert!(attempt(&bytes, name, &ImageOptions::default()).is_ok());
    for tag in [519u16, 520, 521] {
        let mut damaged = bytes.clone();
        let at = damaged.windows(4).position(|head| head == [tag as u8, (tag >> 8) as u8, 4, 0]).unwrap();
        let values = u32::from_le_bytes(damaged[at + 8..at + 12].try_into().unwrap()) as usize;
        damaged[values..values + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(error(&damaged, name).class, ErrorClass::Truncated, "{tag}");
    }
    // A stream that is the file itself is none.
    let mut tags = gray_tags(Size::new(4, 3), 6, 12, 2);
    tags.extend([Tag(513, 4, 1, 0), Tag(514, 4, 1, u32::MAX)]);
    assert_eq!(error(&tiff(&tags, 0, &[7; 12]), "self.tif").class, ErrorClass::Corrupt);
}

/// A file that ends inside its strips, whatever they are packed with, and one whose strips give too little.
#[test]
fn strips_that_end_too_early_are_truncated() {
    let size = Size::new(40, 30);
    for (compression, data) in [
        (1, vec![7; 1199]),
        (8, zlib_stored(&[7; 1199])),
        (5, vec![0x80, 0x01, 0xC0]),
        (32773, vec![0x81, 7]),
        (50000, vec![0x28, 0xB5, 0x2F, 0xFD, 0x20, 0x04, 0x21, 0, 0, 7, 7, 7, 7]),
    ] {
        let file = tiff(&gray_tags(size, compression, data.len() as u32, 0), 0, &data);
        assert_eq!(error(&file, "short.tif").class, ErrorClass::Truncated, "{compression}");
    }
    for name in ["kind_lzma.tif", "kind_zstd.tif", "kind_planes8.tif", "kind_ycbcr22.tif"] {
        let mut bytes = std::fs::read(images().join(name)).unwrap();
        let at = bytes.windows(4).position(|head| head == [0x17, 1, 4, 0] || head == [0x17, 1, 3, 0]).unwrap();
        let count = u32::from_le_bytes(bytes[at + 4..at + 8].try_into().unwrap());
        let field =
            if count == 1 { at + 8 } else { u32::from_le_bytes(bytes[at + 8..at + 12].try_into().unwrap()) as usize };
        let len = u16::from_le_bytes([bytes[field], bytes[field + 1]]) / 2;
        bytes[field..field + 2].copy_from_slice(&len.to_le_bytes());
        assert_eq!(error(&bytes, name).class, ErrorClass::Truncated, "{name}");
    }
}
