//! TIFF files that lie, and valid ones at the edges of what is allowed.

use slicemill_core::{ErrorClass, ImageOptions, Size};
use slicemill_image::{HeaderRead, read_header_partial};

use crate::craft::{Tag, gray_tags, tiff, zlib_stored};
use crate::images;
use crate::matrix::{attempt, error, pixels};
use crate::memory::peak_of;

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

/// The tags of a gray image 1 pixel wide with a strip for every row, all of them the same few bytes, whose places and
/// lengths take a byte each.
fn rows_of_one_strip(rows: usize, compression: u32, strip: &[u8]) -> Vec<u8> {
    let mut tags = gray_tags(Size::new(1, rows as u32), compression, 0, 0);
    tags[7].3 = 1;
    let at = tags[5].3;
    let lists = at + strip.len().next_multiple_of(4) as u32;
    // The place of the data must be a byte.
    assert!(at < 256, "{at}");
    (tags[5], tags[8]) = (Tag(273, 1, rows as u32, lists), Tag(279, 1, rows as u32, lists + rows as u32));
    let mut data = strip.to_vec();
    data.resize(strip.len().next_multiple_of(4), 0);
    data.resize(data.len() + rows, at as u8);
    data.resize(data.len() + rows, strip.len() as u8);
    tiff(&tags, 0, &data)
}

/// A Zstandard frame of one byte, repeated, that asks for a window.
fn zstd_frame(window: u8, byte: u8) -> [u8; 10] {
    [0x28, 0xB5, 0x2F, 0xFD, 0, window, 0x0B, 0, 0, byte]
}

/// To set up a decoder for every strip of such files took up to half a minute for each megabyte.
#[test]
fn strips_without_number_are_refused_and_many_are_fast() {
    let strips = [
        (50000, zstd_frame(0x78, 7).to_vec()),
        (8, zlib_stored(&[7])),
        (5, vec![0x80, 0x01, 0xE0, 0x20]),
        (32773, vec![0, 7]),
    ];
    for (compression, strip) in strips {
        // The decoder of the strip before is as good as new.
        let few = pixels(&rows_of_one_strip(50_000, compression, &strip), "few.tif").image;
        assert!(few.as_bytes().iter().all(|&sample| sample == 7), "{compression}");
        let error = error(&rows_of_one_strip(2_000_000, compression, &strip), "many.tif");
        assert_eq!(error.class, ErrorClass::Corrupt, "{compression}: {error}");
    }
}

/// Real files with a strip for every row, as short as they get.
#[test]
fn short_strips_that_are_real_pass() {
    let rows = 200_000u32;
    let strip = zstd_frame(0, 7);
    let mut tags = gray_tags(Size::new(1, rows), 50000, 0, 0);
    tags[7].3 = 1;
    let behind = 8 + 2 + 12 * 9 + 4 + 8 * rows;
    let places: Vec<u32> = (0..rows).map(|row| behind + row * strip.len() as u32).collect();
    let lengths = vec![strip.len() as u32; rows as usize];
    let file = with_values(tags, &strip.repeat(rows as usize), &[(273, 4, &places), (279, 4, &lengths)]);
    assert!(pixels(&file, "rows.tif").image.as_bytes().iter().all(|&sample| sample == 7));
}

/// A stream is decoded whole, so that a tile of four times the pixels takes four times the memory.
#[test]
fn jpeg_tiles_are_not_much_larger_than_the_image() {
    for (side, refused) in [(6000, true), (3600, false)] {
        let mut tags = gray_tags(Size::new(3000, 3000), 7, 12, 4);
        tags.extend([Tag(322, 4, 1, side), Tag(323, 4, 1, side), Tag(324, 4, 1, 8), Tag(325, 4, 1, 12)]);
        let error = error(&tiff(&tags, 0, &[7; 12]), "tile.tif");
        assert_eq!(error.message.contains("tiles of"), refused, "{side}: {error}");
    }
}

/// Lists that claim the whole file, each as often as a tag can.
#[test]
fn lists_are_read_as_far_as_they_are_needed() {
    let many = 20_000_000u32;
    let data = vec![8; many as usize];
    for tag in [273u16, 279, 324, 325, 258, 339, 530, 320, 347] {
        let mut tags = gray_tags(Size::new(1, 1), 1, 1, 5);
        tags.extend([Tag(322, 4, 1, 1), Tag(323, 4, 1, 1), Tag(324, 4, 1, 8), Tag(325, 4, 1, 1)]);
        tags.retain(|other| other.0 != tag);
        tags.push(Tag(tag, 1, many, 8 + 2 + 12 * 14 + 4));
        tags.sort_by_key(|tag| tag.0);
        for (compression, photometric) in [(1, 1), (1, 3), (1, 6), (7, 1)] {
            let mut tags = tags.clone();
            tags.iter_mut().filter(|tag| tag.0 == 259).for_each(|tag| tag.3 = compression);
            tags.iter_mut().filter(|tag| tag.0 == 262).for_each(|tag| tag.3 = photometric);
            let (read, peak) = peak_of(|| attempt(&tiff(&tags, 0, &data), "lists.tif", &ImageOptions::default()));
            assert!(peak < 64 << 20, "{tag} {compression} {photometric}: {peak} bytes");
            assert!(read.err().is_none_or(|error| error.message.len() < 300), "{tag}");
        }
    }
}

#[test]
fn messages_show_the_beginning_of_a_list() {
    let values: Vec<u32> = (0..100_000).map(|index| 3 + 5 * (index % 2)).collect();
    for (tag, photometric, samples) in [(258, 2, 3), (339, 1, 1), (530, 6, 3)] {
        let mut tags = gray_tags(Size::new(1, 1), 1, 3, 1);
        (tags[4].3, tags[6].3) = (photometric, samples);
        let error = error(&with_values(tags, &[0; 8], &[(tag, 4, &values)]), "list.tif");
        assert!(error.message.contains("and ") && error.message.len() < 200, "{tag}: {error}");
    }
}

#[test]
fn zstandard_windows_have_a_limit() {
    let size = Size::new(10, 10);
    for (window, fits) in [(0x78, true), (0x79, false), (0x88, false), (0xFF, false)] {
        let mut frame = zstd_frame(window, 9);
        frame[6..9].copy_from_slice(&(100u32 << 3 | 3).to_le_bytes()[..3]);
        let file = tiff(&gray_tags(size, 50000, 10, 0), 0, &frame);
        match attempt(&file, "window.tif", &ImageOptions::default()) {
            Ok(read) => assert!(fits && read.image.as_bytes() == [9; 300], "{window}"),
            Err(error) => {
                assert_eq!((fits, error.class), (false, ErrorClass::UnsupportedVariant), "{error}");
                assert!(error.message.contains("limit of 33554432"), "{error}");
            }
        }
    }
    // A frame that is its own history, of 2^25 bytes and one more.
    for (last, class) in [(0, ErrorClass::Truncated), (1, ErrorClass::UnsupportedVariant)] {
        let frame = [0x28, 0xB5, 0x2F, 0xFD, 0xA0, last, 0, 0, 2, 0x0B];
        let file = tiff(&gray_tags(size, 50000, 10, 0), 0, &frame);
        assert_eq!(error(&file, "segment.tif").class, class, "{last}");
    }
}

/// XMP tells where the directory does not. It may stand behind what was read first.
#[test]
fn orientation_in_xmp_counts_where_the_directory_has_none() {
    let packet = b"<x tiff:Orientation=\"6\"/>";
    let file = |told: Option<u32>, gap: usize, len: usize| {
        let mut tags = gray_tags(Size::new(3, 2), 1, 6, 1 + u32::from(told.is_some()));
        let at = tags[5].3 + 6 + gap as u32;
        tags.push(Tag(700, 1, len as u32, at));
        tags.extend(told.map(|told| Tag(274, 3, 1, told)));
        tags.sort_by_key(|tag| tag.0);
        tiff(&tags, 0, &[&[1, 2, 3, 4, 5, 6], vec![0; gap].as_slice(), packet].concat())
    };
    let options = ImageOptions::default();
    for (told, gap, len, orientation) in [
        (None, 0, packet.len(), 6),
        (None, 100_000, packet.len(), 6),
        (Some(3), 0, packet.len(), 3),
        (Some(1), 0, packet.len(), 1),
        (Some(9), 0, packet.len(), 1),
        // Beyond the file: no fault of the image.
        (None, 0, 1000, 1),
    ] {
        let bytes = file(told, gap, len);
        let image = pixels(&bytes, "xmp.tif").image;
        let turned = Size::new(2, 3);
        assert_eq!(image.size() == turned, orientation == 6, "{told:?} {gap} {len}");
        let mut have = 4096.min(bytes.len());
        let header = loop {
            match read_header_partial(&bytes[..have], bytes.len() as u64, "xmp.tif", &options).unwrap() {
                HeaderRead::Done(header) => break header,
                HeaderRead::NeedMore { bytes } => have = bytes as usize,
            }
        };
        assert_eq!(header.orientation.exif(), orientation, "{told:?} {gap} {len}");
        assert!(gap == 0 || told.is_some() || have > gap);
    }
}

/// Where white is, is told by the colours: not by depths beside them, nor by what fills a tile.
#[test]
fn white_of_floating_point_samples_is_told_by_colours() {
    let bytes = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let mut tags = gray_tags(Size::new(2, 1), 1, 24, 2);
    (tags[2].3, tags[6].3) = (32, 3);
    tags.extend([Tag(338, 3, 1, 0), Tag(339, 3, 1, 3)]);
    let beside = tiff(&tags, 0, &bytes(&[0.5, 900.0, 900.0, 1.0, 900.0, 900.0]));
    let mut tags = gray_tags(Size::new(2, 1), 1, 4 * 256, 5);
    tags[2].3 = 32;
    let at = tags[5].3;
    tags.extend([
        Tag(322, 4, 1, 16),
        Tag(323, 4, 1, 16),
        Tag(324, 4, 1, at),
        Tag(325, 4, 1, 4 * 256),
        Tag(339, 3, 1, 3),
    ]);
    let mut values = vec![900.0; 256];
    values[..2].copy_from_slice(&[0.5, 1.0]);
    for file in [beside, tiff(&tags, 0, &bytes(&values))] {
        assert_eq!(pixels(&file, "float.tif").image.as_bytes(), [128, 128, 128, 255, 255, 255]);
    }
}

/// Indices are not stretched, the alpha beside them is.
#[test]
fn alpha_beside_indices_of_few_bits_is_whole() {
    let map: Vec<u32> = (0..48).map(|index| (index % 16) * 17 * 257).collect();
    let mut tags = gray_tags(Size::new(2, 1), 1, 2, 1);
    (tags[2].3, tags[4].3, tags[6].3) = (4, 3, 2);
    tags.push(Tag(338, 3, 1, 2));
    let at = tags[5].3 + 12;
    tags[5].3 = at + 4 * 48;
    let file = with_values(tags, &[0x5F, 0x50], &[(320, 4, &map)]);
    let image = pixels(&file, "alpha.tif").image;
    assert_eq!(image.as_bytes(), [85, 85, 85, 255, 255, 255]);
}

/// Of two filters of differences only one would be undone.
#[test]
fn differences_of_differences_in_xz_are_unsupported() {
    let start = [0xFD, b'7', b'z', b'X', b'Z', 0, 0, 0, 0, 0, 0, 0];
    // Size and flags of the block, three filters, their end and a checksum.
    let block = [4, 2, 3, 1, 0, 3, 1, 1, 0x21, 1, 0x16, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    // One chunk that is stored, then the end.
    let chunk = [1, 0, 3, 7, 0, 0, 0, 0];
    let stream = [start.as_slice(), &block, &chunk].concat();
    let file = |stream: &[u8]| tiff(&gray_tags(Size::new(4, 1), 34925, stream.len() as u32, 0), 0, stream);
    assert_eq!(error(&file(&stream), "deltas.tif").class, ErrorClass::UnsupportedVariant);
    // With one of them it is decoded.
    let block = [3, 1, 3, 1, 0, 0x21, 1, 0x16, 0, 0, 0, 0, 0, 0, 0, 0];
    let image = pixels(&file(&[start.as_slice(), &block, &chunk].concat()), "delta.tif").image;
    assert_eq!(image.as_bytes(), [7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7]);
}
