//! Colour spaces of JPEG files.

use super::frame::{Frame, Tables};
use crate::fault::Fault;

/// What the components mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ColourSpace {
    /// One component.
    Gray,
    /// Brightness and two colour differences (ITU-R BT.601, full range).
    YCbCr,
    /// Three components that are stored as they are.
    Rgb,
    /// Four inks.
    Cmyk,
    /// Three inks stored as brightness and colour differences, and black.
    Ycck,
    /// Four inks that are not inverted (255 is full), as in TIFF.
    Inks,
    /// Three components that are handed on as they are, smaller ones by repeating their samples.
    Stored,
}

impl ColourSpace {
    /// As libjpeg decides: a JFIF or Adobe segment tells, otherwise the names of the components.
    pub(super) fn of(frame: &Frame, tables: &Tables) -> Result<Self, Fault> {
        let ids: Vec<u8> = frame.components.iter().map(|component| component.id).collect();
        Ok(match (ids.as_slice(), tables.adobe) {
            ([_], _) => Self::Gray,
            ([_, _, _], _) if tables.jfif => Self::YCbCr,
            ([_, _, _], Some(0)) => Self::Rgb,
            ([_, _, _], Some(_)) => Self::YCbCr,
            ([b'R', b'G', b'B'], None) => Self::Rgb,
            ([1, 2, 3], None) if frame.lossless => Self::Rgb,
            ([_, _, _], None) => Self::YCbCr,
            ([_, _, _, _], Some(0) | None) => Self::Cmyk,
            ([_, _, _, _], Some(_)) => Self::Ycck,
            _ => return Err(Fault::unsupported(format!("{} components", ids.len()))),
        })
    }

    /// Number of components.
    pub(super) const fn components(self) -> usize {
        match self {
            Self::Gray => 1,
            Self::YCbCr | Self::Rgb | Self::Stored => 3,
            Self::Cmyk | Self::Ycck | Self::Inks => 4,
        }
    }

    /// One row of samples to RGB pixels.
    #[inline(always)]
    pub(super) fn convert(self, rows: [&[u8]; 4], out: &mut [u8]) {
        let [a, b, c, d] = rows;
        let (pixels, _) = out.as_chunks_mut::<3>();
        match self {
            Self::Gray => pixels.iter_mut().zip(a).for_each(|(pixel, &gray)| *pixel = [gray; 3]),
            Self::YCbCr => ycbcr(a, b, c, pixels),
            Self::Rgb | Self::Stored => {
                for (((pixel, &r), &g), &b) in pixels.iter_mut().zip(a).zip(b).zip(c) {
                    *pixel = [r, g, b];
                }
            }
            Self::Cmyk => {
                for (((pixel, &c), &m), &y) in pixels.iter_mut().zip(a).zip(b).zip(c) {
                    *pixel = [c, m, y];
                }
                ink(pixels, d);
            }
            Self::Inks => {
                for ((((pixel, &c), &m), &y), &k) in pixels.iter_mut().zip(a).zip(b).zip(c).zip(d) {
                    *pixel = ink_to_rgb([c, m, y, k].map(|ink| 255 - ink));
                }
            }
            Self::Ycck => {
                ycbcr(a, b, c, pixels);
                pixels.iter_mut().flatten().for_each(|sample| *sample = 255 - *sample);
                ink(pixels, d);
            }
        }
    }
}

/// BT.601 with factors of 16 fractional bits, rounded as libjpeg rounds them.
#[inline(always)]
fn ycbcr(y: &[u8], cb: &[u8], cr: &[u8], pixels: &mut [[u8; 3]]) {
    const HALF: i32 = 1 << 15;
    for (((pixel, &y), &cb), &cr) in pixels.iter_mut().zip(y).zip(cb).zip(cr) {
        let (y, cb, cr) = (i32::from(y), i32::from(cb) - 128, i32::from(cr) - 128);
        let red = y + ((91_881 * cr + HALF) >> 16);
        let green = y + ((-22_554 * cb - 46_802 * cr + HALF) >> 16);
        let blue = y + ((116_130 * cb + HALF) >> 16);
        *pixel = [red.clamp(0, 255) as u8, green.clamp(0, 255) as u8, blue.clamp(0, 255) as u8];
    }
}

/// Four inks to RGB. Files store inks inverted (255 is none), as Adobe began and Pillow assumes.
#[inline(always)]
fn ink(pixels: &mut [[u8; 3]], black: &[u8]) {
    for (pixel, &light) in pixels.iter_mut().zip(black) {
        let [cyan, magenta, yellow] = *pixel;
        *pixel = ink_to_rgb([cyan, magenta, yellow, light]);
    }
}

/// Four inverted inks to RGB: Pillow's product (`Convert.c`, CMYK to RGB).
#[inline(always)]
pub(crate) fn ink_to_rgb([cyan, magenta, yellow, light]: [u8; 4]) -> [u8; 3] {
    let light = i32::from(light);
    [cyan, magenta, yellow].map(|inverted| {
        let product = (255 - i32::from(inverted)) * light + 128;
        (light - (((product >> 8) + product) >> 8)).clamp(0, 255) as u8
    })
}
