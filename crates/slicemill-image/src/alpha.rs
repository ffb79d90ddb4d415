//! The one place where transparency becomes colour.
//!
//! Decoders hand over straight (not premultiplied) alpha; palettes and transparent colours have become an alpha
//! channel before. The stored values are blended as they are, without gamma, as browsers and Pillow do:
//!
//! ```text
//!   white, black   (colour · alpha + background · (255 − alpha)) / 255, rounded to nearest
//!   drop           the colour as stored, whatever its alpha (the reference code's RGB conversion)
//! ```

use slicemill_core::Alpha;

/// Turns straight RGBA into RGB, in place: the first three quarters of the buffer hold the result.
pub(crate) fn flatten(rgba: &mut Vec<u8>, rule: Alpha) {
    let pixels = rgba.len() / 4;
    for pixel in 0..pixels {
        let (from, to) = (pixel * 4, pixel * 3);
        let alpha = rgba[from + 3];
        for channel in 0..3 {
            rgba[to + channel] = blend(rgba[from + channel], alpha, rule);
        }
    }
    rgba.truncate(pixels * 3);
}

/// Turns straight gray with alpha into RGB.
pub(crate) fn flatten_gray(gray_alpha: &[u8], rule: Alpha) -> Vec<u8> {
    gray_alpha.chunks_exact(2).flat_map(|pixel| [blend(pixel[0], pixel[1], rule); 3]).collect()
}

/// One channel of one pixel.
pub(crate) fn blend(colour: u8, alpha: u8, rule: Alpha) -> u8 {
    let background = match rule {
        Alpha::Drop => return colour,
        Alpha::White => 255,
        Alpha::Black => 0,
    };
    let alpha = u32::from(alpha);
    divide_by_255(u32::from(colour) * alpha + background * (255 - alpha))
}

/// `value / 255` rounded to nearest, exact for every value up to 255 · 255.
const fn divide_by_255(value: u32) -> u8 {
    let biased = value + 128;
    ((biased + (biased >> 8)) >> 8) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blending_is_the_rounded_quotient() {
        for colour in 0..=255u8 {
            for alpha in 0..=255u8 {
                let (c, a) = (f64::from(colour), f64::from(alpha));
                assert_eq!(f64::from(blend(colour, alpha, Alpha::Black)), (c * a / 255.0).round());
                assert_eq!(
                    f64::from(blend(colour, alpha, Alpha::White)),
                    ((c * a + 255.0 * (255.0 - a)) / 255.0).round()
                );
                assert_eq!(blend(colour, alpha, Alpha::Drop), colour);
            }
        }
    }

    #[test]
    fn flattening_in_place_keeps_the_order() {
        let mut rgba = vec![10, 20, 30, 255, 40, 50, 60, 0, 70, 80, 90, 128];
        flatten(&mut rgba, Alpha::White);
        assert_eq!(rgba, [10, 20, 30, 255, 255, 255, 162, 167, 172]);
        assert_eq!(flatten_gray(&[10, 255, 40, 0], Alpha::Black), [10, 10, 10, 0, 0, 0]);
    }
}
