//! JPEG streams made by hand: those that ask for more work than they are worth, and those inside TIFF files.

use slicemill_core::{ErrorClass, ImageOptions, Size, Truncated};

use crate::craft::{Tag, gray_tags, tiff};
use crate::matrix::{attempt, error, pixels};
use crate::memory::peak_of;
use crate::tiff::with_values;
use crate::{images, rare};

const START: [u8; 2] = [0xFF, 0xD8];
const END: [u8; 2] = [0xFF, 0xD9];

/// A segment behind its marker.
fn segment(marker: u8, body: &[u8]) -> Vec<u8> {
    [&[0xFF, marker], ((body.len() + 2) as u16).to_be_bytes().as_slice(), body].concat()
}

/// Quantisation table 0, which changes nothing.
fn quantisation() -> Vec<u8> {
    segment(0xDB, &[&[0], [1; 64].as_slice()].concat())
}

/// Huffman table 0 of a class, with one code: 16 zeros, for a value of 15 bits.
fn huffman(class: u8) -> Vec<u8> {
    segment(0xC4, &[&[class << 4], [0; 15].as_slice(), &[1, 15]].concat())
}

/// The header of a frame whose components all have the same factors.
fn frame(code: u8, size: (u16, u16), components: u8, factors: u8) -> Vec<u8> {
    let mut body = vec![8];
    body.extend([size.1.to_be_bytes(), size.0.to_be_bytes()].concat());
    body.push(components);
    (1..=components).for_each(|id| body.extend([id, factors, 0]));
    segment(code, &body)
}

/// The header of a scan of the components `ids`.
fn scan(ids: std::ops::RangeInclusive<u8>, band: [u8; 3]) -> Vec<u8> {
    let mut body = vec![ids.clone().count() as u8];
    ids.for_each(|id| body.extend([id, 0]));
    segment(0xDA, &[body.as_slice(), &band].concat())
}

/// An arithmetic-coded stream without a byte of data, which is all that some images need.
fn empty(code: u8, size: (u16, u16), components: u8) -> Vec<u8> {
    let last = if code == 0xCA { 0 } else { 63 };
    let header = [quantisation(), frame(code, size, components, 0x11), scan(1..=components.min(4), [0, last, 0])];
    [START.as_slice(), &header.concat(), &END].concat()
}

/// With bytes that fill up before the end marker.
fn filled_up(stream: &[u8], bytes: usize) -> Vec<u8> {
    [&stream[..stream.len() - 2], &vec![0xFF; bytes], &END].concat()
}

/// Every bit behind the data asks for the marker anew.
#[test]
fn bytes_before_a_marker_are_not_read_again_and_again() {
    let lossless = [frame(0xC3, (65_535, 2), 3, 0x11), huffman(0), scan(1..=3, [1, 0, 0])].concat();
    let stream = filled_up(&[START.as_slice(), &lossless, &END].concat(), 4 << 20);
    assert_eq!(error(&stream, "lossless.jpg").class, ErrorClass::Truncated);

    let tables = [quantisation(), huffman(0), huffman(1)].concat();
    let baseline = [tables, frame(0xC0, (32, 32), 3, 0x44), scan(1..=3, [0, 63, 0]), vec![0; 2000]].concat();
    let stream = filled_up(&[START.as_slice(), &baseline, &END].concat(), 16 << 20);
    assert_eq!(error(&stream, "baseline.jpg").class, ErrorClass::Truncated);

    // Zeros are what this coding leaves out: the image is whole.
    let stream = empty(0xCA, (3000, 3000), 3);
    let whole = pixels(&stream, "arithmetic.jpg");
    assert_eq!(pixels(&filled_up(&stream, 8 << 20), "filled.jpg"), whole);
}

#[test]
fn an_arithmetic_image_with_restarts_that_is_cut_and_closed_is_truncated() {
    let bytes = std::fs::read(rare().join("arithmetic_restarts.jpg")).unwrap();
    let whole = pixels(&bytes, "whole.jpg").image;
    let restarts: Vec<usize> =
        (0..bytes.len() - 1).filter(|&at| bytes[at] == 0xFF && (0xD0..=0xD7).contains(&bytes[at + 1])).collect();
    assert!(!restarts.is_empty());
    for at in restarts {
        let cut = [&bytes[..at], &END].concat();
        assert_eq!(error(&cut, "cut.jpg").class, ErrorClass::Truncated, "{at}");
        let allow = ImageOptions { truncated: Truncated::Allow, ..ImageOptions::default() };
        let decoded = attempt(&cut, "cut.jpg", &allow).unwrap();
        assert!(decoded.truncated);
        assert_eq!(decoded.image.size(), whole.size());
        assert_eq!(decoded.image.as_bytes()[..30], whole.as_bytes()[..30]);
    }
}

#[test]
fn lossless_components_that_are_all_sampled_alike_are_not_subsampled() {
    let interleaved = [frame(0xC3, (2, 2), 3, 0x22), huffman(0), scan(1..=3, [1, 0, 0]), vec![1; 99]].concat();
    let error = error(&[START.as_slice(), &interleaved, &END].concat(), "interleaved.jpg");
    assert_eq!(error.class, ErrorClass::UnsupportedVariant);
    assert!(error.message.contains("side by side"), "{error}");

    // One component after the other, the factors are without effect.
    let separate = |factors| {
        let mut stream = [START.as_slice(), &frame(0xC3, (2, 2), 3, factors), &huffman(0)].concat();
        for id in 1..=3 {
            // 16 zeros, then a difference of 15 bits, for each of four samples: 124 bits.
            stream.extend([scan(id..=id, [1, 0, 0]), vec![0, 0, id, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]].concat());
        }
        [stream.as_slice(), &END].concat()
    };
    assert_eq!(pixels(&separate(0x22), "factors.jpg"), pixels(&separate(0x11), "plain.jpg"));
}

/// A TIFF in one strip of colours, or gray.
fn strip(compression: u32, size: Size, samples: u32, stream: &[u8]) -> Vec<u8> {
    let mut tags = gray_tags(size, compression, stream.len() as u32, 0);
    (tags[4].3, tags[6].3) = (if samples == 1 { 1 } else { 6 }, samples);
    tiff(&tags, 0, stream)
}

#[test]
fn streams_of_many_components_are_refused_before_they_cost_memory() {
    let (components, side) = (200, 1000);
    let stream = empty(0xCA, (side, side), components);
    let file = strip(7, Size::new(side.into(), side.into()), 3, &stream);
    let (error, peak) = peak_of(|| error(&file, "components.tif"));
    assert_eq!(error.class, ErrorClass::UnsupportedVariant, "{error}");
    assert!(peak < 16 << 20, "{peak}");
}

/// The directory tells what the samples are; another number of them is not what was planned.
#[test]
fn streams_have_the_components_that_the_directory_tells() {
    let size = Size::new(16, 16);
    for (components, samples) in [(1, 3), (3, 1), (4, 1), (4, 3)] {
        let stream = empty(0xC9, (16, 16), components);
        let error = error(&strip(7, size, samples, &stream), "other.tif");
        assert_eq!(error.class, ErrorClass::Corrupt, "{error}");
        let text = format!("the JPEG data has {components} components, where the header says {samples}");
        assert!(error.message.contains(&text), "{error}");
    }
    for samples in [1, 3] {
        let stream = empty(0xC9, (16, 16), samples as u8);
        assert!(attempt(&strip(7, size, samples, &stream), "same.tif", &ImageOptions::default()).is_ok());
    }
    // One whole stream of the old kind.
    let stream = empty(0xC9, (16, 16), 1);
    let mut tags = gray_tags(size, 6, stream.len() as u32, 2);
    (tags[4].3, tags[6].3) = (6, 3);
    tags.extend([Tag(513, 4, 1, tags[5].3), Tag(514, 4, 1, stream.len() as u32)]);
    let error = error(&tiff(&tags, 0, &stream), "old.tif");
    assert_eq!(error.class, ErrorClass::Corrupt, "{error}");
    assert!(error.message.contains("has 1 components"), "{error}");
}

/// A gray stream, its size and its pixels.
fn gray() -> (Vec<u8>, Size, Vec<u8>) {
    let stream = std::fs::read(images().join("gray.jpg")).unwrap();
    let image = pixels(&stream, "gray.jpg").image;
    (stream, image.size(), image.as_bytes().to_vec())
}

#[test]
fn rows_beyond_the_last_strip_are_left_out() {
    let (stream, size, data) = gray();
    for surplus in [0, 1, size.height / 2, size.height - 1] {
        let both = Size::new(size.width, 2 * size.height - surplus);
        let mut tags = gray_tags(both, 7, 0, 0);
        tags[7].3 = size.height;
        let (at, len) = (8 + 2 + 12 * 9 + 4 + 16, stream.len() as u32);
        let file = with_values(tags, &stream, &[(273, 4, &[at, at]), (279, 4, &[len, len])]);
        let image = pixels(&file, "strips.tif").image;
        assert_eq!(image.size(), both);
        assert!(image.as_bytes() == &[data.clone(), data.clone()].concat()[..image.as_bytes().len()]);
    }
    // A single strip is as high as the image.
    let cut = strip(7, Size::new(size.width, size.height - 1), 1, &stream);
    assert_eq!(error(&cut, "taller.tif").class, ErrorClass::Corrupt);
}

#[test]
fn bytes_behind_shared_tables_are_of_no_account() {
    let (stream, size, data) = gray();
    let (mut tables, mut rest, mut at) = (START.to_vec(), START.to_vec(), 2);
    loop {
        let len = 2 + usize::from(u16::from_be_bytes([stream[at + 2], stream[at + 3]]));
        let to = if matches!(stream[at + 1], 0xDB | 0xC4) { &mut tables } else { &mut rest };
        to.extend(&stream[at..at + len]);
        at += len;
        if stream[at - len + 1] == 0xDA {
            break;
        }
    }
    rest.extend(&stream[at..]);
    tables.extend(END);
    for padding in [&[][..], &[0], &[0, 0, 0], &[0xFF]] {
        let shared = [&tables, padding].concat();
        let place = 8 + 2 + 12 * 10 + 4;
        let mut tags = gray_tags(size, 7, rest.len() as u32, 1);
        tags[5].3 += shared.len() as u32;
        tags.push(Tag(347, 7, shared.len() as u32, place));
        let image = pixels(&tiff(&tags, 0, &[shared, rest.clone()].concat()), "tables.tif").image;
        assert!(image.as_bytes() == data, "{padding:?}");
    }
}

/// The header of one frame with bare data elsewhere: Huffman-coded frames of both kinds are frames.
#[test]
fn extended_frames_in_the_old_jpeg_are_frames() {
    let name = "kind_old_jpeg.tif";
    let good = std::fs::read(images().join(name)).unwrap();
    let expected = pixels(&good, name);
    let place = |pattern: &[u8]| good.windows(pattern.len()).position(|place| place == pattern).unwrap();
    let (start, frame, scan) = (place(&[0xFF, 0xD8]), place(&[0xFF, 0xC0]), place(&[0xFF, 0xDA]));
    let data = scan + 2 + usize::from(good[scan + 3]);
    let mut bare = good.clone();
    for (tag, value) in [(273u16, data), (279, good.len() - data), (514, data - start)] {
        let at = place(&[tag as u8, (tag >> 8) as u8, 4, 0]);
        bare[at + 8..at + 12].copy_from_slice(&(value as u32).to_le_bytes());
    }
    for code in [0xC0, 0xC1] {
        bare[frame + 1] = code;
        assert_eq!(pixels(&bare, "bare.tif"), expected, "{code:x}");
    }
}
