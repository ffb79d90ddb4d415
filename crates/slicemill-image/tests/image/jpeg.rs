//! JPEG streams made by hand that ask for more work than they are worth.

use slicemill_core::{ErrorClass, ImageOptions, Truncated};

use crate::matrix::{attempt, error, pixels};
use crate::rare;

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
