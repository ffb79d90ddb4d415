//! Files made by hand, for tests that need one particular thing wrong with them.

use std::borrow::Cow;

use slicemill_core::Size;

/// CRC-32 as in PNG.
fn crc(bytes: &[u8]) -> u32 {
    let step = |crc: u32, &byte: &u8| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0xEDB8_8320 } else { crc >> 1 })
    };
    !bytes.iter().fold(u32::MAX, step)
}

/// A PNG chunk.
pub fn chunk(kind: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let named = [kind.as_slice(), body].concat();
    [(body.len() as u32).to_be_bytes().as_slice(), &named, &crc(&named).to_be_bytes()].concat()
}

/// A PNG of 8-bit samples, or of 16-bit ones with the upper byte first.
pub fn png(size: Size, colour: png::ColorType, depth: png::BitDepth, samples: &[u8]) -> Vec<u8> {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, size.width, size.height);
    encoder.set_color(colour);
    encoder.set_depth(depth);
    encoder.write_header().unwrap().write_image_data(samples).unwrap();
    file
}

/// A gray PNG whose samples count up.
pub fn gray_png(size: Size) -> Vec<u8> {
    let samples: Vec<u8> = (0..size.pixels()).map(|index| index as u8).collect();
    png(size, png::ColorType::Grayscale, png::BitDepth::Eight, &samples)
}

/// A PNG with a chunk put in behind its IHDR.
pub fn with_chunk(png: &[u8], kind: &[u8; 4], body: &[u8]) -> Vec<u8> {
    const IHDR_END: usize = 8 + 12 + 13;
    [&png[..IHDR_END], &chunk(kind, body), &png[IHDR_END..]].concat()
}

/// A zlib stream of about a thousandth of `bytes`, which inflates to at least so many zeros.
///
/// One block with codes of its own: 0 for a run of 258, and 0 for "of the byte before". Every byte of the stream then
/// stands for four runs.
pub fn zlib_bomb(bytes: usize) -> Vec<u8> {
    let mut bits = Bits::default();
    bits.push(1, 1); // the last block
    bits.push(2, 2); // codes of its own
    bits.push(286 - 257, 5); // literals and lengths
    bits.push(0, 5); // one distance
    bits.push(18 - 4, 4); // lengths of code-length codes, in the standard's odd order
    for len in [0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 2] {
        bits.push(len, 3);
    }
    // Code lengths: 18, "zeros", is 0; length 1 is 10; length 2 is 11.
    bits.code("11"); // literal 0 has 2 bits
    bits.code("0");
    bits.push(138 - 11, 7);
    bits.code("0");
    bits.push(117 - 11, 7);
    bits.code("11"); // end of block has 2 bits
    bits.code("0");
    bits.push(28 - 11, 7);
    bits.code("10"); // length 258 has 1 bit
    bits.code("10"); // the distance has 1 bit
    bits.code("10"); // a zero
    let mut stream = vec![0x78, 0x9C];
    // Pairs of zero bits from here on, then the end of the block: what precedes it must be whole pairs.
    let end = if bits.count.is_multiple_of(2) { 0b11 } else { 0b110 };
    stream.extend(bits.bytes);
    stream.resize(stream.len() + bytes.div_ceil(4 * 258), 0);
    stream.extend([end, 0, 0, 0, 0]);
    stream
}

/// A zlib stream that stores a few bytes as they are.
pub fn zlib_stored(bytes: &[u8]) -> Vec<u8> {
    let len = bytes.len() as u16;
    let (a, b) = bytes.iter().fold((1, 0), |(a, b), &byte| {
        let a = (a + u32::from(byte)) % 65521;
        (a, (b + a) % 65521)
    });
    let (len, inverse, sum) = (len.to_le_bytes(), (!len).to_le_bytes(), (b << 16 | a).to_be_bytes());
    [&[0x78, 0x01, 1], len.as_slice(), &inverse, bytes, &sum].concat()
}

/// Bits as deflate packs them: the first is the lowest.
#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    count: usize,
}

impl Bits {
    fn push(&mut self, value: u32, len: u32) {
        for bit in 0..len {
            if self.count.is_multiple_of(8) {
                self.bytes.push(0);
            }
            *self.bytes.last_mut().unwrap() |= ((value >> bit & 1) as u8) << (self.count % 8);
            self.count += 1;
        }
    }

    fn code(&mut self, code: &str) {
        code.bytes().for_each(|bit| self.push(u32::from(bit - b'0'), 1));
    }
}

/// One entry of a TIFF directory.
#[derive(Clone, Copy)]
pub struct Tag(pub u16, pub u16, pub u32, pub u32);

/// A little-endian TIFF: the directory at byte 8, its pointer to the next one, then `data`.
pub fn tiff(tags: &[Tag], next: u32, data: &[u8]) -> Vec<u8> {
    let mut file = b"II*\0\x08\0\0\0".to_vec();
    file.extend((tags.len() as u16).to_le_bytes());
    for Tag(tag, kind, count, value) in tags {
        file.extend(tag.to_le_bytes());
        file.extend(kind.to_le_bytes());
        file.extend(count.to_le_bytes());
        file.extend(value.to_le_bytes());
    }
    file.extend(next.to_le_bytes());
    file.extend(data);
    file
}

/// The tags of a gray TIFF in one strip, with room for `more` tags before its data.
pub fn gray_tags(size: Size, compression: u32, bytes: u32, more: u32) -> Vec<Tag> {
    let at = 8 + 2 + 12 * (9 + more) + 4;
    vec![
        Tag(256, 4, 1, size.width),
        Tag(257, 4, 1, size.height),
        Tag(258, 3, 1, 8),
        Tag(259, 3, 1, compression),
        Tag(262, 3, 1, 1),
        Tag(273, 4, 1, at),
        Tag(277, 3, 1, 1),
        Tag(278, 4, 1, size.height),
        Tag(279, 4, 1, bytes),
    ]
}

/// A GIF of frames of one colour each, on a canvas: `(width, height, colour)`.
pub fn gif(canvas: (u16, u16), frames: &[(u16, u16, [u8; 3])]) -> Vec<u8> {
    let mut file = Vec::new();
    let mut encoder = gif::Encoder::new(&mut file, canvas.0, canvas.1, &[]).unwrap();
    for &(width, height, colour) in frames {
        let buffer = Cow::Owned(vec![0; usize::from(width) * usize::from(height)]);
        let palette = Some([colour, [9, 9, 9]].concat());
        encoder.write_frame(&gif::Frame { width, height, buffer, palette, ..gif::Frame::default() }).unwrap();
    }
    drop(encoder);
    file
}

/// A BMP of 24 bits whose rows run upwards.
pub fn bmp(size: Size, rows: &[u8]) -> Vec<u8> {
    let mut file = b"BM".to_vec();
    file.extend((54 + rows.len() as u32).to_le_bytes());
    file.extend([0; 4]);
    file.extend(54u32.to_le_bytes());
    file.extend(40u32.to_le_bytes());
    file.extend(size.width.to_le_bytes());
    file.extend(size.height.to_le_bytes());
    file.extend([1, 0, 24, 0]);
    file.resize(54, 0);
    file.extend(rows);
    file
}

/// An EXIF block that tells an orientation.
pub fn exif(orientation: u32) -> Vec<u8> {
    tiff(&[Tag(274, 3, 1, orientation)], 0, &[])
}
