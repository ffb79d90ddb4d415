//! LZW as GIF uses it: codes of growing width, the least significant bit first, in blocks of up to 255 bytes (GIF89a,
//! appendix F).

use crate::fault::Fault;

/// Codes have at most 12 bits.
const WIDTH_MAX: u32 = 12;
const CODES_MAX: usize = 1 << WIDTH_MAX;

/// The largest number of bits of a pixel that leaves room for codes.
const PIXEL_BITS_MAX: u32 = WIDTH_MAX - 1;

/// Codes out of a chain of blocks.
struct Codes<'a> {
    blocks: &'a [u8],
    block: &'a [u8],
    bits: u32,
    count: u32,
}

impl Codes<'_> {
    /// The next code; `None` when the blocks end before it.
    fn next(&mut self, width: u32) -> Option<usize> {
        while self.count < width {
            while self.block.is_empty() {
                let (&len, rest) = self.blocks.split_first()?;
                if len == 0 {
                    return None;
                }
                // The last block of a file that is cut counts as far as it goes.
                (self.block, self.blocks) = rest.split_at(usize::from(len).min(rest.len()));
            }
            let (&byte, rest) = self.block.split_first()?;
            self.block = rest;
            self.bits |= u32::from(byte) << self.count;
            self.count += 8;
        }
        let code = self.bits & ((1 << width) - 1);
        self.bits >>= width;
        self.count -= width;
        Some(code as usize)
    }
}

/// The strings that codes stand for: each is another one with a pixel more.
struct Strings {
    before: Vec<u16>,
    last: Vec<u8>,
    first: Vec<u8>,
    len: Vec<u16>,
}

impl Strings {
    fn new(literals: usize) -> Self {
        let mut strings = Self {
            before: vec![0; CODES_MAX],
            last: vec![0; CODES_MAX],
            first: vec![0; CODES_MAX],
            len: vec![0; CODES_MAX],
        };
        for code in 0..literals {
            (strings.last[code], strings.first[code], strings.len[code]) = (code as u8, code as u8, 1);
        }
        strings
    }

    fn add(&mut self, code: usize, before: usize, last: u8) {
        self.before[code] = before as u16;
        self.last[code] = last;
        self.first[code] = self.first[before];
        self.len[code] = self.len[before] + 1;
    }

    /// Writes a string, as far as there is room, and returns how many pixels of it found some.
    fn write(&self, code: usize, pixels: &mut [u8]) -> usize {
        let len = usize::from(self.len[code]);
        let room = len.min(pixels.len());
        let mut code = code;
        for _ in room..len {
            code = usize::from(self.before[code]);
        }
        for pixel in pixels[..room].iter_mut().rev() {
            *pixel = self.last[code];
            code = usize::from(self.before[code]);
        }
        room
    }
}

/// Decodes pixels from image data: the number of bits of a pixel, then blocks. Returns how many came.
pub(super) fn decode(data: &[u8], pixels: &mut [u8]) -> Result<usize, Fault> {
    let Some((&pixel_bits, blocks)) = data.split_first() else { return Ok(0) };
    let pixel_bits = u32::from(pixel_bits);
    if pixel_bits > PIXEL_BITS_MAX {
        return Err(Fault::corrupt(format!("the first frame has pixels of {pixel_bits} bits")));
    }
    let mut codes = Codes { blocks, block: &[], bits: 0, count: 0 };
    let clear = 1 << pixel_bits;
    let (end, first_free) = (clear + 1, clear + 2);
    let mut strings = Strings::new(clear);
    let (mut width, mut free, mut before) = (pixel_bits + 1, first_free, None);
    let mut done = 0;
    while done < pixels.len() {
        let Some(code) = codes.next(width) else { break };
        if code == clear {
            (width, free, before) = (pixel_bits + 1, first_free, None);
            continue;
        }
        if code == end {
            break;
        }
        // A string may be used right before it is complete: its last pixel is then its first.
        let known = code < clear || (first_free..free).contains(&code);
        match before {
            Some(before) if free < CODES_MAX && (known || code == free) => {
                let last = strings.first[if known { code } else { before }];
                strings.add(free, before, last);
                free += 1;
            }
            _ if known => {}
            _ => return Err(Fault::corrupt("the image data of the first frame make no sense")),
        }
        done += strings.write(code, &mut pixels[done..]);
        before = Some(code);
        if free == 1 << width && width < WIDTH_MAX {
            width += 1;
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Image data of codes of three bits, for pixels of two.
    fn data(codes: &[u32]) -> Vec<u8> {
        let bits = codes.iter().rev().fold(0u64, |bits, code| bits << 3 | u64::from(*code));
        let bytes = (codes.len() * 3).div_ceil(8);
        [&[2, bytes as u8], &bits.to_le_bytes()[..bytes], &[0]].concat()
    }

    #[test]
    fn strings_grow() {
        let mut pixels = [9; 6];
        // 6 is "1 1" while it is being made.
        assert_eq!(decode(&data(&[4, 1, 6, 5]), &mut pixels).unwrap(), 3);
        assert_eq!(pixels, [1, 1, 1, 9, 9, 9]);
        // A clear code takes the strings away; no more pixels are taken than there is room for.
        assert_eq!(decode(&data(&[4, 2, 6, 4, 3, 6, 5]), &mut pixels).unwrap(), 6);
        assert_eq!(pixels, [2, 2, 2, 3, 3, 3]);
        assert_eq!(decode(&data(&[4, 2, 6, 4, 3, 6, 5]), &mut pixels[..2]).unwrap(), 2);
    }

    #[test]
    fn codes_from_nowhere_are_corrupt_and_missing_ones_end_it() {
        let mut pixels = [0; 9];
        assert!(decode(&data(&[4, 6]), &mut pixels).is_err());
        assert!(decode(&data(&[4, 1, 7]), &mut pixels).is_err());
        assert!(decode(&[12, 1, 0], &mut pixels).is_err());
        assert_eq!(decode(&[2, 1], &mut pixels).unwrap(), 0);
        assert_eq!(decode(&[], &mut pixels).unwrap(), 0);
    }
}
