//! Broken images are errors with a class, never panics, and never cost memory beyond the limit.

use std::path::Path;

use slicemill_core::{ErrorClass, ImageOptions, Stage};
use slicemill_image::{decode, read_header, sniff};

use crate::memory::peak_of;
use crate::{images, rare, split_mix};

/// Pixels that the broken images may claim.
const PIXELS_MAX: u64 = 1 << 20;

/// Reads and decodes under the limit; what is held at once stays within what so many pixels can need.
fn try_decode(bytes: &[u8], name: &str) -> Result<(), slicemill_core::RowError> {
    let options = ImageOptions { pixels_max: PIXELS_MAX, ..ImageOptions::default() };
    let attempt = || read_header(bytes, name, &options).and_then(|header| decode(bytes, &header, &options));
    let (outcome, peak) = peak_of(attempt);
    let allowed = PIXELS_MAX as usize * 16 + bytes.len() * 64 + (1 << 20);
    assert!(peak <= allowed, "{name}: {peak} bytes, {allowed} at most");
    outcome.map(|_| ())
}

fn fixtures() -> Vec<(String, Vec<u8>)> {
    files_of(&images())
}

/// Those that bend the rules, too.
fn all_fixtures() -> Vec<(String, Vec<u8>)> {
    [fixtures(), files_of(&rare())].concat()
}

fn files_of(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let read = |path: std::path::PathBuf| {
        let bytes = std::fs::read(&path).unwrap();
        sniff(&bytes).map(|_| (path.file_name().unwrap().to_string_lossy().into_owned(), bytes))
    };
    files.into_iter().filter_map(read).collect()
}

/// How many bytes at the end of a fixture are not needed for its pixels. An animation's first frame stands at the
/// beginning, so half of the file is certainly enough to be cut off.
fn spare_bytes(name: &str, bytes: &[u8]) -> usize {
    match name {
        "trailing_bytes.jpg" => bytes.len() - bytes.len() * 9 / 10,
        name if name.contains("animated") => bytes.len() * 9 / 10,
        name if name.starts_with("exif8.webp") => 100,
        // A checksum and what follows the image data.
        name if name.ends_with(".png") => bytes.len() - png_data_end(bytes),
        name if name.ends_with(".jpg") => 2,
        name if name.ends_with(".gif") => 6,
        // The end of the last row and of the image.
        name if name.starts_with("rle") => 4,
        name if name.ends_with(".bmp") => 3,
        // The last tile reaches over the lower right corner.
        "tiles.tif" => 66,
        "kind_planes_tiles.tif" => 32,
        // The last plane means nothing.
        "kind_planes_extra.tif" => 292,
        // Compressed strips may end with codes that say nothing.
        name if name.ends_with(".tif") => 8,
        name if name.ends_with(".webp") => 1,
        _ => 0,
    }
}

/// Where the last `IDAT` chunk ends, without its checksum.
fn png_data_end(bytes: &[u8]) -> usize {
    let at = bytes.windows(4).rposition(|kind| kind == b"IDAT").unwrap();
    at + 4 + u32::from_be_bytes(bytes[at - 4..at].try_into().unwrap()) as usize
}

#[test]
fn every_truncation_is_an_error() {
    let mut cuts = 0;
    for (name, bytes) in fixtures() {
        let end = bytes.len() - spare_bytes(&name, &bytes);
        let step = (bytes.len() / 150).max(1);
        for len in (1..end).rev().step_by(step).chain(end.saturating_sub(40)..end).filter(|&len| len >= 30) {
            let error = try_decode(&bytes[..len], &name).err();
            let error = error.unwrap_or_else(|| panic!("{name}: {len} of {} bytes decode", bytes.len()));
            let classes =
                [ErrorClass::Truncated, ErrorClass::Corrupt, ErrorClass::BadHeader, ErrorClass::UnsupportedVariant];
            assert!(classes.contains(&error.class), "{name}, {len}: {error}");
            cuts += 1;
        }
    }
    assert!(cuts > 10_000, "{cuts}");
}

#[test]
fn cut_photographs_are_called_truncated() {
    for name in [
        "baseline_420.jpg",
        "progressive_420.jpg",
        "restarts_progressive.jpg",
        "rgb8.png",
        "lossless.webp",
        "palette.gif",
        "rgb24.bmp",
        "rgb_none.tif",
    ] {
        let bytes = std::fs::read(images().join(name)).unwrap();
        for share in [3, 5, 7, 9] {
            let error = try_decode(&bytes[..bytes.len() * share / 10], name).unwrap_err();
            assert_eq!(error.class, ErrorClass::Truncated, "{name}, {share}0 %: {error}");
        }
    }
}

#[test]
fn flipped_bits_never_panic() {
    // Panics inside decoders are caught and reported; here they would only make noise.
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map(|location| location.file()).unwrap_or_default();
        if place.contains("tests/image") {
            eprintln!("{info}");
        }
    }));
    let mut state = 11;
    let (mut decoded, mut refused) = (0, 0);
    for (name, bytes) in all_fixtures() {
        for _ in 0..150 {
            let mut damaged = bytes.clone();
            for _ in 0..1 + split_mix(&mut state) % 6 {
                let at = (split_mix(&mut state) % damaged.len() as u64) as usize;
                damaged[at] = split_mix(&mut state) as u8;
            }
            match try_decode(&damaged, &name) {
                Ok(()) => decoded += 1,
                Err(_) => refused += 1,
            }
        }
    }
    assert!(decoded > 1000 && refused > 1000, "{decoded} decoded, {refused} refused");
}

#[test]
fn random_bytes_behind_a_magic_never_panic() {
    let mut state = 7;
    for (name, bytes) in all_fixtures() {
        for _ in 0..20 {
            let keep = (12 + split_mix(&mut state) % 60).min(bytes.len() as u64) as usize;
            let mut damaged = bytes[..keep].to_vec();
            damaged.extend((0..split_mix(&mut state) % 3000).map(|_| split_mix(&mut state) as u8));
            let _ = try_decode(&damaged, &name);
        }
    }
}

#[test]
fn absurd_sizes_are_refused_before_memory_is_taken() {
    let limit = ImageOptions::default();
    let mut png = std::fs::read(images().join("rgb8.png")).unwrap();
    png[16..24].copy_from_slice(&[0x7F, 0xFF, 0xFF, 0xFF, 0x7F, 0xFF, 0xFF, 0xFF]);
    let mut bmp = std::fs::read(images().join("rgb24.bmp")).unwrap();
    bmp[18..26].copy_from_slice(&[0xFF, 0xFF, 0xFF, 0x7F, 0xFF, 0xFF, 0xFF, 0x7F]);
    let mut jpeg = std::fs::read(images().join("baseline_420.jpg")).unwrap();
    let frame = jpeg.windows(2).position(|pair| pair == [0xFF, 0xC0]).unwrap();
    jpeg[frame + 5..frame + 9].fill(0xFF);
    let mut gif = std::fs::read(images().join("palette.gif")).unwrap();
    gif[6..10].fill(0xFF);
    for (name, bytes) in [("a.png", &png), ("a.bmp", &bmp), ("a.jpg", &jpeg), ("a.gif", &gif)] {
        let (read, peak) = peak_of(|| read_header(bytes, name, &limit));
        let error = read.unwrap_err();
        assert_eq!((error.class, error.stage), (ErrorClass::TooManyPixels, Stage::Header), "{name}: {error}");
        assert!(peak < 1 << 16, "{name}: {peak}");
    }
    // Sizes within the limit that the bytes cannot fill.
    jpeg[frame + 5..frame + 9].copy_from_slice(&[0x27, 0x10, 0x27, 0x10]);
    bmp[18..26].copy_from_slice(&[0x10, 0x27, 0, 0, 0x10, 0x27, 0, 0]);
    for (name, bytes) in [("a.jpg", &jpeg), ("a.bmp", &bmp)] {
        let attempt = || read_header(bytes, name, &limit).and_then(|header| decode(bytes, &header, &limit));
        let (decoded, peak) = peak_of(attempt);
        let error = decoded.unwrap_err();
        assert_eq!(error.class, ErrorClass::Truncated, "{name}: {error}");
        assert!(peak < 1 << 20, "{name}: {peak}");
    }
}

#[test]
fn errors_name_the_format_the_fault_and_the_remedy() {
    let options = ImageOptions::default();
    let error = |bytes: &[u8], name: &str| read_header(bytes, name, &options).unwrap_err();
    let empty = error(b"", "a.jpg");
    assert_eq!(
        (empty.class, empty.message.as_str()),
        (ErrorClass::Empty, "the file has 0 bytes; copy or download it again")
    );
    let text = error(b"this is not an image at all, is it?", "a.jpg");
    assert_eq!(text.class, ErrorClass::NotAnImage);
    assert!(text.message.contains("the name says image"), "{text}");
    let heif = error(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic........", "a.jpg");
    assert_eq!(heif.class, ErrorClass::UnsupportedFormat);
    let png = std::fs::read(images().join("rgb8.png")).unwrap();
    let cut = error(&png[..30], "a.png");
    assert_eq!(cut.class, ErrorClass::Truncated);
    assert!(cut.message.starts_with("PNG: ") && cut.message.contains("; "), "{cut}");
    let limit = ImageOptions { pixels_max: 1000, ..options };
    let large = read_header(&png, "a.png", &limit).unwrap_err();
    assert_eq!(
        large.message,
        "PNG: 40x30 is 1200 pixels, more than the limit of 1000; raise the pixel limit or shrink the image"
    );
}
