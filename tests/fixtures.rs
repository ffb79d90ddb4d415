//! Images that a test can make: small pictures of many sizes and formats, whole and broken.

use std::fs;
use std::io::Cursor;
use std::path::Path;

use image::{DynamicImage, ImageFormat, Rgb, RgbImage};

/// A small generator of numbers, the same on every machine.
pub struct Random(u64);

impl Random {
    /// Starts from a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// A number below `limit` (xorshift).
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }
}

/// A picture of a few rectangles on a plain ground.
pub fn picture(random: &mut Random, width: u32, height: u32) -> RgbImage {
    let mut colour = || Rgb([random.below(256) as u8, random.below(256) as u8, random.below(256) as u8]);
    let (ground, colours) = (colour(), [colour(), colour(), colour()]);
    let mut image = RgbImage::from_pixel(width, height, ground);
    for colour in colours {
        let (left, top) = (random.below(u64::from(width)) as u32, random.below(u64::from(height)) as u32);
        let (right, bottom) = ((left + width / 3 + 1).min(width), (top + height / 3 + 1).min(height));
        for y in top..bottom {
            for x in left..right {
                image.put_pixel(x, y, colour);
            }
        }
    }
    image
}

/// The bytes of `image` in `format`.
pub fn encoded(image: &RgbImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    DynamicImage::ImageRgb8(image.clone()).write_to(&mut bytes, format).expect("an image that can be written");
    bytes.into_inner()
}

/// What [`write_folder`] made.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Made {
    /// Whole images.
    pub whole: u64,
    /// Files with an image's name that are broken.
    pub broken: u64,
    /// Files that are not images and do not claim to be.
    pub other: u64,
}

/// Fills `folder` with `count` files, of which every `broken_every`-th is broken and every 50th is no image.
pub fn write_folder(folder: &Path, count: u64, broken_every: u64, seed: u64) -> Made {
    let mut random = Random::new(seed);
    let mut made = Made::default();
    for index in 0..count {
        let (width, height) = (20 + random.below(300) as u32, 20 + random.below(300) as u32);
        let image = picture(&mut random, width, height);
        let (format, extension) = match random.below(4) {
            0 => (ImageFormat::Jpeg, "jpg"),
            1 => (ImageFormat::Bmp, "bmp"),
            2 => (ImageFormat::Gif, "gif"),
            _ => (ImageFormat::Png, "png"),
        };
        let parent = folder.join(format!("{:02}", index % 7));
        fs::create_dir_all(&parent).expect("folder");
        let name = format!("image {index:05}.{extension}");
        if index % 50 == 49 {
            fs::write(parent.join(format!("note {index:05}.txt")), "not an image").expect("written");
            made.other += 1;
        } else if broken_every > 0 && index % broken_every == broken_every - 1 {
            let bytes = broken(&mut random, encoded(&image, format), made.broken);
            fs::write(parent.join(name), bytes).expect("written");
            made.broken += 1;
        } else {
            fs::write(parent.join(name), encoded(&image, format)).expect("written");
            made.whole += 1;
        }
    }
    made
}

/// One of the ways in which files are broken, by `kind`.
fn broken(random: &mut Random, bytes: Vec<u8>, kind: u64) -> Vec<u8> {
    match kind % 5 {
        0 => Vec::new(),
        1 => bytes[..bytes.len() / 3].to_vec(),
        2 => b"<!DOCTYPE html><title>404 Not Found</title>".to_vec(),
        3 => absurd_png(),
        _ => (0..400).map(|_| random.below(256) as u8 | 0x80).collect(),
    }
}

/// A PNG that claims 60,000 × 60,000 pixels and holds next to nothing.
pub fn absurd_png() -> Vec<u8> {
    let mut bytes = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec();
    bytes.extend_from_slice(&60_000u32.to_be_bytes());
    bytes.extend_from_slice(&60_000u32.to_be_bytes());
    bytes.extend_from_slice(&[8, 2, 0, 0, 0]);
    let checksum = crc32(&bytes[12..]);
    bytes.extend_from_slice(&checksum.to_be_bytes());
    bytes.extend_from_slice(b"\0\0\0\x01IDAT\0");
    bytes
}

/// The checksum of PNG chunks.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 })
    })
}

/// `jpeg` with an EXIF block that says `orientation`, or, when `broken`, one whose offsets point nowhere.
pub fn with_exif(jpeg: &[u8], orientation: u8, broken: bool) -> Vec<u8> {
    let offset: u32 = if broken { 0xFFFF_FFF0 } else { 8 };
    let mut tiff = b"MM\0*".to_vec();
    tiff.extend_from_slice(&offset.to_be_bytes());
    tiff.extend_from_slice(&[0, 1, 0x01, 0x12, 0, 3, 0, 0, 0, 1, 0, orientation, 0, 0, 0, 0, 0, 0]);
    let length = (2 + 6 + tiff.len()) as u16;
    let mut bytes = jpeg[..2].to_vec();
    bytes.extend_from_slice(&[0xFF, 0xE1]);
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(b"Exif\0\0");
    bytes.extend_from_slice(&tiff);
    bytes.extend_from_slice(&jpeg[2..]);
    bytes
}
