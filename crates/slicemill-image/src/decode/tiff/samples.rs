//! Packed samples of any kind to 8 bits each.

use super::predictor::Predictor;
use super::shape::{Colours, Format, Shape};
use crate::fault::{Fault, zeroed};

/// How one sample becomes 8 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// It has them.
    Same,
    /// One byte of several tells, the sign turned where there is one.
    Byte { bytes: usize, at: usize, flip: u8 },
    /// 1, 2 or 4 bits, to be stretched by a factor.
    Few { factor: u8 },
    /// Bits across bytes, of which the upper 8 remain.
    Odd,
    /// A number, most significant byte first or last.
    Float { bytes: usize, little_endian: bool },
}

/// Turns rows into samples of 8 bits.
pub(super) struct Unpacker {
    kind: Kind,
    bits: usize,
    per_pixel: usize,
    white: f64,
    /// Floating-point samples of colours above 0 and up to 1, and those above 1.
    pub(super) seen: (u64, u64),
    row: Vec<u8>,
}

impl Unpacker {
    pub(super) fn new(shape: &Shape) -> Result<Self, Fault> {
        let little_endian = shape.little_endian && !Predictor::of(shape)?.sorts();
        let (bits, bytes) = (shape.bits, shape.bits / 8);
        let highest = if little_endian { bytes.saturating_sub(1) } else { 0 };
        let kind = match (shape.format, bits) {
            (Format::Floating, _) => Kind::Float { bytes, little_endian },
            (_, 8) => Kind::Same,
            (Format::Signed, _) => Kind::Byte { bytes, at: highest, flip: 0x80 },
            (_, 16 | 24 | 32 | 64) => Kind::Byte { bytes, at: highest, flip: 0 },
            (_, 1 | 2 | 4) if shape.colours == Colours::Palette => Kind::Few { factor: 1 },
            (_, 1 | 2 | 4) => Kind::Few { factor: (255 / ((1u16 << bits) - 1)) as u8 },
            (_, _) => Kind::Odd,
        };
        let per_pixel = shape.samples_in_row();
        let samples = shape.block.width as usize * per_pixel;
        // Rows of shared colours are unpacked elsewhere.
        let row = zeroed(if kind == Kind::Same || shape.shares_colours() { 0 } else { samples })?;
        Ok(Self { kind, bits, per_pixel, white: shape.white, seen: (0, 0), row })
    }

    /// The samples of a row, of which `pixels` are inside the image and each begins with `colours` samples that are
    /// colours.
    pub(super) fn unpack<'a>(&'a mut self, raw: &'a [u8], pixels: usize, colours: usize) -> &'a [u8] {
        match self.kind {
            Kind::Same => return raw,
            Kind::Byte { bytes, at, flip } => {
                for (sample, raw) in self.row.iter_mut().zip(raw.chunks_exact(bytes)) {
                    *sample = raw[at] ^ flip;
                }
            }
            Kind::Few { factor } => {
                let (bits, mask) = (self.bits, (1u8 << self.bits) - 1);
                for (samples, &packed) in self.row.chunks_mut(8 / bits).zip(raw) {
                    for (index, sample) in samples.iter_mut().enumerate() {
                        *sample = (packed >> (8 - bits * (index + 1)) & mask) * factor;
                    }
                }
            }
            Kind::Odd => {
                let bits = self.bits;
                for (index, sample) in self.row.iter_mut().enumerate() {
                    let upper = window(raw, index * bits);
                    // Less than 8 bits are stretched, rounded down.
                    *sample = if bits >= 8 {
                        (upper >> 8) as u8
                    } else {
                        (u32::from(upper >> (16 - bits)) * 255 / ((1 << bits) - 1)) as u8
                    };
                }
            }
            Kind::Float { bytes, little_endian } => {
                let rows = self.row.chunks_exact_mut(self.per_pixel).zip(raw.chunks_exact(bytes * self.per_pixel));
                for (samples, raw) in rows.take(pixels) {
                    for (index, (sample, raw)) in samples.iter_mut().zip(raw.chunks_exact(bytes)).enumerate() {
                        let value = float(raw, little_endian);
                        self.seen.0 += u64::from(index < colours && value > 0.0 && value <= 1.0);
                        self.seen.1 += u64::from(index < colours && value > 1.0);
                        // Casts saturate, and what is not a number is 0.
                        *sample = if self.white == 1.0 { (value * 255.0).round() as u8 } else { value as u8 };
                    }
                }
            }
        }
        &self.row
    }
}

/// 16 bits from bit `at` on, followed by zeros at the end.
fn window(raw: &[u8], at: usize) -> u16 {
    let byte = |index: usize| u32::from(raw.get(at / 8 + index).copied().unwrap_or(0));
    let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
    (bits >> (8 - at % 8)) as u16
}

/// A number of 2, 4 or 8 bytes.
fn float(raw: &[u8], little_endian: bool) -> f64 {
    let fold = |bits: u64, &byte: &u8| bits << 8 | u64::from(byte);
    let bits = if little_endian { raw.iter().rev().fold(0, fold) } else { raw.iter().fold(0, fold) };
    match raw.len() {
        2 => half(bits as u16),
        4 => f64::from(f32::from_bits(bits as u32)),
        _ => f64::from_bits(bits),
    }
}

/// A number of 5 bits of exponent and 10 of fraction (IEEE 754).
fn half(bits: u16) -> f64 {
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023));
    let size = match exponent {
        0 => fraction * 2f64.powi(-24),
        31 if fraction == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (1024.0 + fraction) * 2f64.powi(exponent - 25),
    };
    if bits & 0x8000 == 0 { size } else { -size }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_numbers() {
        for (bits, expected) in [
            (0, 0.0),
            (0x3C00, 1.0),
            (0xC000, -2.0),
            (0x7BFF, 65504.0),
            (0x0001, 2f64.powi(-24)),
            (0x3555, 0.333_251_953_125),
        ] {
            assert_eq!(half(bits), expected);
        }
        assert!(half(0x7E00).is_nan() && half(0x7C00).is_infinite());
    }

    #[test]
    fn windows_cross_bytes_and_end_in_zeros() {
        assert_eq!(window(&[0xAB, 0xCD, 0xEF], 4), 0xBCDE);
        assert_eq!(window(&[0xAB], 0), 0xAB00);
        assert_eq!(window(&[0xAB], 3), 0x5800);
    }
}
