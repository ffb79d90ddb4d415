//! Orientation, by the numbers of EXIF.

use slicemill_core::Size;

use crate::RgbImage;
use crate::fault::{Fault, zeroed};

/// How the stored pixels must be turned to stand upright (EXIF tag 274).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Orientation {
    /// 1: as stored.
    #[default]
    Upright,
    /// 2: left and right exchanged.
    MirroredHorizontally,
    /// 3: upside down.
    Rotated180,
    /// 4: top and bottom exchanged.
    MirroredVertically,
    /// 5: rows and columns exchanged.
    Transposed,
    /// 6: must be turned a quarter clockwise.
    Rotated90,
    /// 7: rows and columns exchanged, both backwards.
    Transversed,
    /// 8: must be turned a quarter counter-clockwise.
    Rotated270,
}

impl Orientation {
    /// The orientation with the EXIF number 1 to 8; any other number is no orientation.
    pub const fn from_exif(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::Upright,
            2 => Self::MirroredHorizontally,
            3 => Self::Rotated180,
            4 => Self::MirroredVertically,
            5 => Self::Transposed,
            6 => Self::Rotated90,
            7 => Self::Transversed,
            8 => Self::Rotated270,
            _ => return None,
        })
    }

    /// The EXIF number, 1 to 8.
    pub const fn exif(self) -> u8 {
        match self {
            Self::Upright => 1,
            Self::MirroredHorizontally => 2,
            Self::Rotated180 => 3,
            Self::MirroredVertically => 4,
            Self::Transposed => 5,
            Self::Rotated90 => 6,
            Self::Transversed => 7,
            Self::Rotated270 => 8,
        }
    }

    /// Whether width and height change places.
    pub const fn swaps_axes(self) -> bool {
        self.exif() >= 5
    }

    /// The size of an image of `stored` size once it stands upright.
    pub const fn upright_size(self, stored: Size) -> Size {
        if self.swaps_axes() { stored.transposed() } else { stored }
    }

    /// Whether the upright image runs along the stored rows from right to left, or from bottom to top.
    const fn reversed(self) -> (bool, bool) {
        match self {
            Self::Upright | Self::Transposed => (false, false),
            Self::MirroredHorizontally | Self::Rotated270 => (true, false),
            Self::MirroredVertically | Self::Rotated90 => (false, true),
            Self::Rotated180 | Self::Transversed => (true, true),
        }
    }
}

/// Side of the squares in which an image is transposed, so that both sides stay in the cache.
const TILE: usize = 32;

/// The upright image.
pub(crate) fn upright(image: RgbImage, orientation: Orientation) -> Result<RgbImage, Fault> {
    if orientation == Orientation::Upright {
        return Ok(image);
    }
    let stored = image.size();
    let size = orientation.upright_size(stored);
    let mut data = zeroed::<u8>(image.as_bytes().len())?;
    let (reverse_x, reverse_y) = orientation.reversed();
    if orientation.swaps_axes() {
        transpose(image.as_bytes(), stored, &mut data, reverse_x, reverse_y);
    } else {
        mirror(image.as_bytes(), stored, &mut data, reverse_x, reverse_y);
    }
    RgbImage::from_raw(size, data).ok_or_else(|| Fault::corrupt("the pixels do not fill the image"))
}

fn mirror(from: &[u8], stored: Size, to: &mut [u8], reverse_x: bool, reverse_y: bool) {
    let (stride, height) = (stored.width as usize * 3, stored.height as usize);
    for (y, row) in to.chunks_exact_mut(stride).enumerate() {
        let source = if reverse_y { height - 1 - y } else { y };
        let source = &from[source * stride..][..stride];
        if reverse_x {
            for (pixel, source) in row.chunks_exact_mut(3).zip(source.rchunks_exact(3)) {
                pixel.copy_from_slice(source);
            }
        } else {
            row.copy_from_slice(source);
        }
    }
}

fn transpose(from: &[u8], stored: Size, to: &mut [u8], reverse_x: bool, reverse_y: bool) {
    let (width, height) = (stored.width as usize, stored.height as usize);
    // Column `u` of the upright image is a stored row, row `v` a stored column.
    for v0 in (0..width).step_by(TILE) {
        for u0 in (0..height).step_by(TILE) {
            for v in v0..(v0 + TILE).min(width) {
                let x = if reverse_x { width - 1 - v } else { v };
                for u in u0..(u0 + TILE).min(height) {
                    let y = if reverse_y { height - 1 - u } else { u };
                    let (source, target) = ((y * width + x) * 3, (v * height + u) * 3);
                    to[target..target + 3].copy_from_slice(&from[source..source + 3]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pixels `ab cd ef`, two wide, three high, turned in all eight ways.
    #[test]
    fn every_orientation_moves_every_pixel() {
        let stored = Size::new(2, 3);
        let expected = ["abcdef", "badcfe", "fedcba", "efcdab", "acebdf", "ecafdb", "fdbeca", "bdface"];
        for (number, expected) in (1..=8).zip(expected) {
            let data: Vec<u8> = "abcdef".bytes().flat_map(|c| [c, c + 100, c + 50]).collect();
            let orientation = Orientation::from_exif(number).unwrap();
            assert_eq!(u32::from(orientation.exif()), number);
            let image = upright(RgbImage::from_raw(stored, data).unwrap(), orientation).unwrap();
            let expected_size = if number >= 5 { Size::new(3, 2) } else { stored };
            assert_eq!(image.size(), expected_size, "{number}");
            let letters: String = image.as_bytes().chunks_exact(3).map(|pixel| char::from(pixel[0])).collect();
            assert_eq!(letters, expected, "{number}");
            assert!(image.as_bytes().chunks_exact(3).all(|p| p[1] == p[0] + 100 && p[2] == p[0] + 50));
        }
    }

    #[test]
    fn numbers_outside_the_standard_are_no_orientation() {
        for number in [0, 9, 65_535, u32::MAX] {
            assert_eq!(Orientation::from_exif(number), None);
        }
    }
}
