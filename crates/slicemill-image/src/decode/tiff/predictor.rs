//! Undoes the differences between neighbours that make samples compress better (TIFF 6.0, section 14; Adobe's technical
//! note 3 for floating-point numbers).

use super::shape::{Compression, Format, Shape};
use super::stream::Codec;
use crate::fault::Fault;

/// What has been done to the rows before they were compressed.
pub(super) enum Predictor {
    None,
    /// Every sample is the difference from the sample of the pixel before.
    Differences {
        /// Samples of a pixel.
        stride: usize,
        bytes: usize,
        little_endian: bool,
    },
    /// The bytes of all samples sorted by their place, highest first, then differences of bytes.
    SortedBytes {
        /// Samples of a pixel.
        stride: usize,
        bytes: usize,
    },
}

impl Predictor {
    pub(super) fn of(shape: &Shape) -> Result<Self, Fault> {
        // As in libtiff: with these compressions there is no predictor, whatever the tag says.
        let predicts = !matches!(shape.compression, Compression::Stream(codec) if codec.predicts());
        if predicts || shape.predictor == 1 {
            return Ok(Self::None);
        }
        let (stride, bytes) = (shape.samples_in_row(), shape.bits / 8);
        match shape.predictor {
            2 if matches!(shape.bits, 8 | 16 | 32 | 64) => {
                Ok(Self::Differences { stride, bytes, little_endian: shape.little_endian })
            }
            3 if shape.format == Format::Floating => Ok(Self::SortedBytes { stride, bytes }),
            other => Err(Fault::unsupported(format!("predictor {other} of samples of {} bits", shape.bits))),
        }
    }

    /// Whether samples have their highest byte first afterwards, whatever the file's order is.
    pub(super) const fn sorts(&self) -> bool {
        matches!(self, Self::SortedBytes { .. })
    }

    /// Turns a row into what it was.
    pub(super) fn undo(&self, row: &mut [u8]) {
        match *self {
            Self::None => {}
            Self::Differences { stride, bytes: 1, .. } => add_bytes(row, stride),
            Self::Differences { stride, bytes: 2, little_endian } => {
                add(row.as_chunks_mut::<2>().0, stride, |a, b| match little_endian {
                    true => u16::from_le_bytes(a).wrapping_add(u16::from_le_bytes(b)).to_le_bytes(),
                    false => u16::from_be_bytes(a).wrapping_add(u16::from_be_bytes(b)).to_be_bytes(),
                });
            }
            Self::Differences { stride, bytes: 4, little_endian } => {
                add(row.as_chunks_mut::<4>().0, stride, |a, b| match little_endian {
                    true => u32::from_le_bytes(a).wrapping_add(u32::from_le_bytes(b)).to_le_bytes(),
                    false => u32::from_be_bytes(a).wrapping_add(u32::from_be_bytes(b)).to_be_bytes(),
                });
            }
            Self::Differences { stride, little_endian, .. } => {
                add(row.as_chunks_mut::<8>().0, stride, |a, b| match little_endian {
                    true => u64::from_le_bytes(a).wrapping_add(u64::from_le_bytes(b)).to_le_bytes(),
                    false => u64::from_be_bytes(a).wrapping_add(u64::from_be_bytes(b)).to_be_bytes(),
                });
            }
            Self::SortedBytes { stride, bytes } => {
                add_bytes(row, stride);
                let (sorted, count) = (row.to_vec(), row.len() / bytes);
                for (index, sample) in row.chunks_exact_mut(bytes).enumerate() {
                    for (place, byte) in sample.iter_mut().enumerate() {
                        *byte = sorted[place * count + index];
                    }
                }
            }
        }
    }
}

fn add_bytes(row: &mut [u8], stride: usize) {
    for index in stride..row.len() {
        row[index] = row[index].wrapping_add(row[index - stride]);
    }
}

fn add<const N: usize>(row: &mut [[u8; N]], stride: usize, sum: impl Fn([u8; N], [u8; N]) -> [u8; N]) {
    for index in stride..row.len() {
        row[index] = sum(row[index], row[index - stride]);
    }
}

impl Codec {
    /// Whether rows may have been turned into differences before.
    const fn predicts(self) -> bool {
        matches!(self, Self::Lzw | Self::Deflate | Self::Zstd | Self::Xz)
    }
}
