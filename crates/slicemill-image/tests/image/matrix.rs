//! The matrix of bad and odd images: one test a line. Each has the right class, ends in time and holds little memory.

use std::time::{Duration, Instant};

use slicemill_core::{Alpha, ErrorClass, ImageOptions, RowError, Size, Stage};
use slicemill_image::{DecodedImage, ImageFormat, Orientation, decode, read_header};

use crate::craft::{Tag, bmp, chunk, exif, gif, gray_png, gray_tags, png, tiff, with_chunk, zlib_bomb, zlib_stored};
use crate::images;
use crate::memory::peak_of;

/// Longer than any of these may take, on a busy machine and without optimisation.
const TIME_MAX: Duration = Duration::from_secs(20);

/// What decoding may hold beyond what it says it needs for the pixels.
const SPARE_BYTES: usize = 64 << 20;

/// Inflated bytes of the bombs.
const BOMB_BYTES: usize = 2 << 30;

pub fn attempt(bytes: &[u8], name: &str, options: &ImageOptions) -> Result<DecodedImage, RowError> {
    let started = Instant::now();
    let (header, peak) = peak_of(|| read_header(bytes, name, options));
    assert!(peak < 1 << 16, "{name}: {peak} bytes for the header");
    let header = header?;
    let (decoded, peak) = peak_of(|| decode(bytes, &header, options));
    let allowed = usize::try_from(header.decode_bytes_max()).unwrap() + SPARE_BYTES;
    assert!(peak <= allowed, "{name}: {peak} bytes, {allowed} at most");
    assert!(started.elapsed() < TIME_MAX, "{name}: {:?}", started.elapsed());
    decoded
}

pub fn error(bytes: &[u8], name: &str) -> RowError {
    match attempt(bytes, name, &ImageOptions::default()) {
        Ok(_) => panic!("{name} was decoded"),
        Err(error) => error,
    }
}

pub fn pixels(bytes: &[u8], name: &str) -> DecodedImage {
    attempt(bytes, name, &ImageOptions::default()).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(images().join(name)).unwrap()
}

const ONE_OF_EACH: [&str; 6] =
    ["baseline_420.jpg", "rgb8.png", "palette.gif", "lossy.webp", "rgb24.bmp", "rgb_none.tif"];

#[test]
fn truncated_files_are_truncated() {
    for name in ONE_OF_EACH {
        let bytes = fixture(name);
        let error = error(&bytes[..bytes.len() / 2], name);
        assert_eq!(error.class, ErrorClass::Truncated, "{name}: {error}");
        assert!(error.message.contains("copy or download it again"), "{name}: {error}");
    }
}

#[test]
fn zero_bytes_are_empty() {
    for name in ONE_OF_EACH {
        let error = error(b"", name);
        assert_eq!((error.class, error.stage), (ErrorClass::Empty, Stage::Header), "{name}");
    }
}

#[test]
fn a_wrong_magic_is_not_an_image() {
    for name in ONE_OF_EACH {
        let mut bytes = fixture(name);
        bytes[..4].copy_from_slice(b"\x01\x02\x03\x04");
        let error = error(&bytes, name);
        assert_eq!(error.class, ErrorClass::NotAnImage, "{name}");
        assert!(error.message.contains("01 02 03 04"), "{name}: {error}");
    }
}

#[test]
fn an_error_page_named_jpg_is_not_an_image() {
    for page in
        ["<!DOCTYPE html><html><title>404</title>", "\u{FEFF}<html>", "<?xml version=\"1.0\"?><Error>", "{\"error\""]
    {
        let error = error(page.as_bytes(), "photo.jpg");
        assert_eq!(error.class, ErrorClass::NotAnImage, "{page}");
        assert!(error.message.contains("the name says image, the bytes do not"), "{error}");
    }
}

#[test]
fn sixty_thousand_by_sixty_thousand_is_too_many_pixels() {
    let side = 60_000u32;
    let mut files = ONE_OF_EACH.map(|name| (name, fixture(name)));
    let at = files[0].1.windows(2).position(|pair| pair == [0xFF, 0xC0]).unwrap() + 5;
    files[0].1[at..at + 4].copy_from_slice(&[0xEA, 0x60, 0xEA, 0x60]);
    files[1].1[16..24].copy_from_slice(&[side.to_be_bytes(), side.to_be_bytes()].concat());
    files[2].1[6..10].copy_from_slice(&[0x60, 0xEA, 0x60, 0xEA]);
    // A lossy frame has at most 16,383 pixels a side, a canvas more.
    let canvas = (side - 1).to_le_bytes();
    files[3].1 = [b"RIFF\0\x01\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0", &canvas[..3], &canvas[..3], &files[3].1[12..]].concat();
    files[4].1[18..26].copy_from_slice(&[side.to_le_bytes(), side.to_le_bytes()].concat());
    files[5].1 = tiff(&gray_tags(Size::new(side, side), 1, 100, 0), 0, &[0; 100]);
    for (name, bytes) in files {
        let error = error(&bytes, name);
        assert_eq!((error.class, error.stage), (ErrorClass::TooManyPixels, Stage::Header), "{name}: {error}");
        assert!(error.message.contains("60000x60000") && error.message.contains("3600000000"), "{name}: {error}");
    }
}

/// The bomb is one: taken for pixels, a thousandth of them fills an image.
#[test]
fn the_bomb_inflates() {
    let bomb = zlib_bomb(1 << 20);
    assert!(bomb.len() < 1100, "{}", bomb.len());
    // As pixels: each row is a filter byte of 0 and zeros.
    let size = Size::new(1023, 1024);
    let ihdr = [&size.width.to_be_bytes()[..], &size.height.to_be_bytes(), &[8, 0, 0, 0, 0]].concat();
    let whole = [&b"\x89PNG\r\n\x1a\n"[..], &chunk(b"IHDR", &ihdr), &chunk(b"IDAT", &bomb), &chunk(b"IEND", b"")];
    let decoder = png::Decoder::new(std::io::Cursor::new(whole.concat()));
    let mut reader = decoder.read_info().unwrap();
    let mut rows = 0;
    while let Ok(Some(row)) = reader.next_row() {
        assert!(row.data().iter().all(|&sample| sample == 0));
        rows += 1;
    }
    assert_eq!(rows, 1024);
}

#[test]
fn bombs_in_png_texts_and_profiles_are_stepped_over() {
    let plain = gray_png(Size::new(7, 5));
    let bomb = zlib_bomb(BOMB_BYTES);
    let bodies = [
        (b"zTXt", [b"Comment\0\0".as_slice(), &bomb].concat()),
        (b"iTXt", [b"Comment\0\x01\0en\0\0".as_slice(), &bomb].concat()),
        (b"iCCP", [b"profile\0\0".as_slice(), &bomb].concat()),
    ];
    for (kind, body) in bodies {
        let name = String::from_utf8_lossy(kind).into_owned();
        assert_eq!(pixels(&with_chunk(&plain, kind, &body), &name), pixels(&plain, "plain.png"), "{name}");
    }
}

#[test]
fn a_bomb_instead_of_pixels_ends_where_the_pixels_end() {
    let size = Size::new(4, 4);
    let ihdr = [&size.width.to_be_bytes()[..], &size.height.to_be_bytes(), &[8, 0, 0, 0, 0]].concat();
    let bomb = zlib_bomb(BOMB_BYTES);
    let parts = [&b"\x89PNG\r\n\x1a\n"[..], &chunk(b"IHDR", &ihdr), &chunk(b"IDAT", &bomb), &chunk(b"IEND", b"")];
    let _ = attempt(&parts.concat(), "pixels.png", &ImageOptions::default());
    let tags = gray_tags(size, 8, bomb.len() as u32, 0);
    let _ = attempt(&tiff(&tags, 0, &bomb), "pixels.tif", &ImageOptions::default());
}

#[test]
fn a_gif_with_a_huge_canvas_and_a_tiny_frame() {
    let huge = error(&gif((u16::MAX, u16::MAX), &[(1, 1, [200, 0, 0])]), "huge.gif");
    assert_eq!((huge.class, huge.stage), (ErrorClass::TooManyPixels, Stage::Header), "{huge}");
    // Within the limit it is what it says, and holds what its header announces.
    let large = pixels(&gif((4000, 4000), &[(1, 1, [200, 0, 0]), (1, 1, [0, 0, 200])]), "large.gif").image;
    assert_eq!((large.size(), large.pixel(3999, 3999)), (Size::new(4000, 4000), Some([200, 0, 0])));
}

#[test]
fn tiff_directories_that_run_in_circles_end() {
    let (size, data) = (Size::new(4, 3), [7u8; 12]);
    let plain = pixels(&tiff(&gray_tags(size, 1, 12, 0), 0, &data), "plain.tif");
    assert_eq!(plain.image.pixel(3, 2), Some([7; 3]));
    // The next directory is this one, or a directory below it, or its EXIF, none of which is looked at.
    assert_eq!(pixels(&tiff(&gray_tags(size, 1, 12, 0), 8, &data), "next.tif"), plain);
    for (below, name) in [(330, "sub.tif"), (34665, "exif.tif")] {
        let tags = [gray_tags(size, 1, 12, 1), vec![Tag(below, 4, 1, 8)]].concat();
        assert_eq!(pixels(&tiff(&tags, 0, &data), name), plain, "{name}");
    }
    // The directory is its own strip.
    let mut tags = gray_tags(size, 1, 12, 0);
    tags[5].3 = 8;
    assert_eq!(pixels(&tiff(&tags, 0, &data), "strip.tif").image.size(), size);
}

#[test]
fn tiff_tags_that_claim_billions_of_values_are_refused() {
    let (size, data) = (Size::new(4, 3), [7u8; 12]);
    for index in 0..9 {
        let mut tags = gray_tags(size, 1, 12, 0);
        tags[index].2 = u32::MAX;
        let name = format!("tag {}", tags[index].0);
        let error = error(&tiff(&tags, 0, &data), &name);
        let classes = [ErrorClass::Corrupt, ErrorClass::Truncated, ErrorClass::BadHeader];
        assert!(classes.contains(&error.class), "{name}: {error}");
    }
    let mut big = b"II+\0\x08\0\0\0\x10\0\0\0\0\0\0\0".to_vec();
    big.extend(u64::MAX.to_le_bytes());
    assert_eq!(error(&big, "big.tif").class, ErrorClass::BadHeader);
}

#[test]
fn tiff_bits_in_reversed_order_are_turned_round() {
    let (size, data) = (Size::new(4, 3), [1u8, 2, 3, 4, 5, 6, 7, 8, 9, 200, 11, 12]);
    let plain = pixels(&tiff(&gray_tags(size, 1, 12, 0), 0, &data), "plain.tif");
    let mut tags = gray_tags(size, 1, 12, 1);
    tags.insert(5, Tag(266, 3, 1, 2));
    let reversed = pixels(&tiff(&tags, 0, &data.map(u8::reverse_bits)), "reversed.tif");
    assert_eq!(reversed, plain);
    // What is said of the length of stored samples does not matter.
    tags[9].3 = u32::MAX;
    assert_eq!(pixels(&tiff(&tags, 0, &data.map(u8::reverse_bits)), "long.tif"), plain);
}

/// Four samples a pixel, of which the file says only three, and differences to the pixel before.
#[test]
fn a_tiff_with_a_sample_too_many_and_a_predictor_keeps_its_colours() {
    let size = Size::new(3, 1);
    let differences = [10u8, 20, 30, 99, 1, 2, 3, 4, 1, 1, 1, 200];
    let stream = zlib_stored(&differences);
    let offset = 8 + 2 + 12 * 12 + 4;
    let tags = |extra: u32| {
        let mut tags = gray_tags(size, 8, stream.len() as u32, 2);
        (tags[2].2, tags[2].3, tags[4].3, tags[5].3, tags[6].3) = (1, 8, 2, offset, 4);
        tags.extend([Tag(317, 3, 1, 2), Tag(338, 3, 1, extra), Tag(339, 3, 1, 1)]);
        // Bits of four samples do not fit into the entry.
        (tags[2].2, tags[2].3) = (4, offset + stream.len() as u32);
        tags
    };
    let data = [stream.as_slice(), &[8, 0, 8, 0, 8, 0, 8, 0]].concat();
    let expected = [10, 20, 30, 11, 22, 33, 12, 23, 34];
    for extra in [0, 2] {
        let options = ImageOptions { alpha: Alpha::Drop, ..ImageOptions::default() };
        let decoded = attempt(&tiff(&tags(extra), 0, &data), "four.tif", &options).unwrap();
        assert_eq!(decoded.image.as_bytes(), expected, "extra sample {extra}");
    }
}

#[test]
fn bmp_headers_of_os2_are_read() {
    let usual = fixture("gray8.bmp");
    assert_eq!(usual[14], 40);
    let data_at = u32::from_le_bytes(usual[10..14].try_into().unwrap());
    let plain = pixels(&usual, "usual.bmp");
    for (len, data_at) in [(16u8, data_at - 24), (64, data_at + 24)] {
        let mut header = usual[14..54].to_vec();
        header.resize(usize::from(len), 0xFF);
        header[0] = len;
        let file = [&usual[..10], &data_at.to_le_bytes(), &header, &usual[54..]].concat();
        let read = read_header(&file, "os2.bmp", &ImageOptions::default()).unwrap();
        assert!(!read.has_alpha);
        assert_eq!(pixels(&file, "os2.bmp"), plain, "{len}");
        assert_eq!(error(&file[..len as usize + 10], "cut.bmp").class, ErrorClass::Truncated, "{len}");
    }
}

#[test]
fn bytes_between_jpeg_segments_are_stepped_over() {
    let jpeg = fixture("baseline_420.jpg");
    let first_end = 4 + usize::from(u16::from_be_bytes([jpeg[4], jpeg[5]]));
    let stray = [&jpeg[..first_end], b"\x00camera\xff\x00 notes", &jpeg[first_end..]].concat();
    assert_eq!(pixels(&stray, "stray.jpg"), pixels(&jpeg, "plain.jpg"));
}

#[test]
fn one_by_a_hundred_thousand_is_decoded() {
    for size in [Size::new(1, 100_000), Size::new(100_000, 1)] {
        let (x, y) = (size.width - 1, size.height - 1);
        let last = (size.pixels() - 1) as u8;
        assert_eq!(pixels(&gray_png(size), "thin.png").image.pixel(x, y), Some([last; 3]));
        let bytes = vec![6; size.pixels() as usize];
        let file = tiff(&gray_tags(size, 1, bytes.len() as u32, 0), 0, &bytes);
        assert_eq!(pixels(&file, "thin.tif").image.pixel(x, y), Some([6; 3]));
    }
    // Of BMP, sides beyond 65,535 are not decoded.
    let thin = error(&bmp(Size::new(1, 100_000), &[5; 400_000]), "thin.bmp");
    assert_eq!(thin.class, ErrorClass::UnsupportedVariant, "{thin}");
    let thin = pixels(&bmp(Size::new(1, 65_535), &[5; 262_140]), "thin.bmp").image;
    assert_eq!(thin.pixel(0, 65_534), Some([5; 3]));
    let thin = pixels(&gif((1, u16::MAX), &[(1, u16::MAX, [1, 2, 3])]), "thin.gif").image;
    assert_eq!(thin.pixel(0, u32::from(u16::MAX) - 1), Some([1, 2, 3]));
}

#[test]
fn corrupt_exif_is_no_fault_of_the_image() {
    let plain = gray_png(Size::new(7, 5));
    let blocks: [(&str, Vec<u8>); 8] = [
        ("empty", Vec::new()),
        ("no byte order", b"??*\0\x08\0\0\0".to_vec()),
        ("no entries", tiff(&[], 0, &[])),
        ("directory beyond the end", b"II*\0\xff\xff\xff\xff".to_vec()),
        ("directory at its own pointer", b"II*\0\x04\0\0\0".to_vec()),
        ("65,535 entries", b"II*\0\x08\0\0\0\xff\xff\x12\x01".to_vec()),
        ("billions of values", tiff(&[Tag(274, 3, u32::MAX, u32::MAX)], 8, &[])),
        ("orientation 9", exif(9)),
    ];
    for (name, block) in blocks {
        assert_eq!(pixels(&with_chunk(&plain, b"eXIf", &block), name), pixels(&plain, "plain.png"), "{name}");
        let jpeg = fixture("baseline_420.jpg");
        let len = (block.len() as u16 + 8).to_be_bytes();
        let carrying = [&jpeg[..2], b"\xff\xe1", &len, b"Exif\0\0", &block, &jpeg[2..]].concat();
        assert_eq!(pixels(&carrying, name), pixels(&jpeg, "plain.jpg"), "{name}");
    }
}

#[test]
fn all_eight_orientations_are_applied() {
    let size = Size::new(3, 2);
    let plain = gray_png(size);
    // Where the stored pixel 1, right of the upper left corner, stands when the image is upright.
    let expected = [(1, 0), (1, 0), (1, 1), (1, 1), (0, 1), (1, 1), (1, 1), (0, 1)];
    for (number, (x, y)) in (1..=8).zip(expected) {
        let file = with_chunk(&plain, b"eXIf", &exif(number));
        let header = read_header(&file, "a.png", &ImageOptions::default()).unwrap();
        assert_eq!(u32::from(header.orientation.exif()), number);
        let image = pixels(&file, "a.png").image;
        let upright = if number < 5 { size } else { Size::new(2, 3) };
        assert_eq!((image.size(), image.pixel(x, y)), (upright, Some([1; 3])), "orientation {number}");
    }
}

#[test]
fn cmyk_jpegs_with_and_without_adobe_marker() {
    let adobe = fixture("cmyk_adobe.jpg");
    let at = adobe.windows(7).position(|window| window == b"\x0eAdobe\0" || &window[2..] == b"Adobe").unwrap() - 2;
    let marker = if adobe[at] == 0xFF { at } else { at + 1 };
    assert_eq!(adobe[marker..marker + 2], [0xFF, 0xEE]);
    let len = 2 + usize::from(u16::from_be_bytes([adobe[marker + 2], adobe[marker + 3]]));
    let bare = [&adobe[..marker], &adobe[marker + len..]].concat();
    let (with, without) = (pixels(&adobe, "adobe.jpg").image, pixels(&bare, "bare.jpg").image);
    // Inks are stored upside down, as Adobe does, whether or not the marker says so. (Pillow reads them so, too.)
    assert_eq!(with, without);
}

#[test]
fn samples_of_16_bits_keep_their_upper_byte() {
    let samples = [0x12, 0xFF, 0x80, 0x00, 0xFF, 0xFF];
    let size = Size::new(3, 1);
    let gray = pixels(&png(size, png::ColorType::Grayscale, png::BitDepth::Sixteen, &samples), "gray16.png");
    assert_eq!(gray.image.as_bytes(), [0x12, 0x12, 0x12, 0x80, 0x80, 0x80, 0xFF, 0xFF, 0xFF]);
    let rgb = pixels(&png(Size::new(1, 1), png::ColorType::Rgb, png::BitDepth::Sixteen, &samples), "rgb16.png");
    assert_eq!(rgb.image.as_bytes(), [0x12, 0x80, 0xFF]);
    let mut tags = gray_tags(size, 1, 6, 0);
    tags[2].3 = 16;
    let little: Vec<u8> = samples.as_chunks::<2>().0.iter().flat_map(|&[high, low]| [low, high]).collect();
    assert_eq!(pixels(&tiff(&tags, 0, &little), "gray16.tif"), gray);
}

#[test]
fn a_palette_with_transparency_is_composited() {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, 3, 1);
    encoder.set_color(png::ColorType::Indexed);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_palette([10, 20, 30, 0, 0, 0, 90, 80, 70].as_slice());
    encoder.set_trns([0, 51].as_slice());
    encoder.write_header().unwrap().write_image_data(&[0, 1, 2]).unwrap();
    for (alpha, expected) in [
        (Alpha::White, [255, 255, 255, 204, 204, 204, 90, 80, 70]),
        (Alpha::Black, [0, 0, 0, 0, 0, 0, 90, 80, 70]),
        (Alpha::Drop, [10, 20, 30, 0, 0, 0, 90, 80, 70]),
    ] {
        let options = ImageOptions { alpha, ..ImageOptions::default() };
        assert_eq!(attempt(&file, "a.png", &options).unwrap().image.as_bytes(), expected, "{alpha:?}");
    }
}

#[test]
fn of_an_animation_the_first_frame_is_decoded() {
    let frames = gif((2, 2), &[(2, 2, [250, 0, 0]), (2, 2, [0, 0, 250])]);
    assert_eq!(pixels(&frames, "a.gif").image.as_bytes(), [250, 0, 0].repeat(4));
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, 1, 1);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_animated(2, 0).unwrap();
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(&[1, 2, 3]).unwrap();
    writer.write_image_data(&[4, 5, 6]).unwrap();
    writer.finish().unwrap();
    assert_eq!(pixels(&file, "a.png").image.as_bytes(), [1, 2, 3]);
    // The frames of the WebP differ; that the first is taken, a hash among the fixtures tells.
    assert!(!pixels(&fixture("animated.webp"), "a.webp").truncated);
}

#[test]
fn the_bytes_decide_what_a_file_is_not_its_name() {
    let formats =
        [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::Gif, ImageFormat::WebP, ImageFormat::Bmp, ImageFormat::Tiff];
    for (name, format) in ONE_OF_EACH.into_iter().zip(formats) {
        let bytes = fixture(name);
        for other in ["a.jpg", "a.png", "a.gif", "a.webp", "a.bmp", "a.tif", "a.txt", "a"] {
            let header = read_header(&bytes, other, &ImageOptions::default()).unwrap();
            assert_eq!((header.format, header.orientation), (format, Orientation::Upright), "{name} as {other}");
            assert_eq!(pixels(&bytes, other), pixels(&bytes, name), "{name} as {other}");
        }
    }
}

/// Colours of a picture decide where its codes fall in the stream, so many of them are read.
#[test]
fn whole_gifs_of_any_size_and_colours_are_read_to_their_end() {
    let mut state = 7_u32;
    let mut random = |limit: u32| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) % limit
    };
    for _ in 0..150 {
        let (width, height) = (20 + random(300) as u16, 20 + random(300) as u16);
        let colours = 2 + random(254);
        let indices: Vec<u8> = (0..u32::from(width) * u32::from(height)).map(|_| random(colours) as u8 / 4).collect();
        let mut file = Vec::new();
        let palette: Vec<u8> = (0..=255_u8).flat_map(|grey| [grey, grey, grey]).collect();
        let mut encoder = gif::Encoder::new(&mut file, width, height, &palette).unwrap();
        encoder.write_frame(&gif::Frame::from_indexed_pixels(width, height, indices.clone(), None)).unwrap();
        drop(encoder);
        let decoded = pixels(&file, "a.gif");
        let first: Vec<u8> = decoded.image.as_bytes().iter().step_by(3).copied().collect();
        assert_eq!(first, indices, "{width}x{height}, {colours} colours");
    }
}
