//! Kept samples to one of the layouts.

use super::shape::{Colours, Shape};
use super::stop;
use crate::decode::{Decoded, Layout};
use crate::exif::{Directory, tag};
use crate::fault::{Fault, zeroed};
use crate::header::tiff::Alpha;
use crate::jpeg;

pub(super) fn decoded(mut data: Vec<u8>, shape: &Shape, directory: &Directory<'_>) -> Result<Decoded, Fault> {
    let kept = shape.kept;
    match shape.colours {
        // Floating-point samples are not inverted, as in Pillow: they often do not say what is white.
        Colours::Gray { inverted: true } if !shape.floating() => {
            data.chunks_exact_mut(kept).for_each(|pixel| pixel[0] = 255 - pixel[0]);
        }
        Colours::Gray { .. } | Colours::Rgb => {}
        Colours::Palette => data = looked_up(&data, shape, directory)?,
        Colours::Inks => data = inks(&data, kept)?,
        Colours::YCbCr => {
            let table = YCbCr::read(directory)?;
            data.chunks_exact_mut(kept).for_each(|pixel| table.convert(pixel));
        }
        Colours::Lab { signed } => {
            // What is signed has its zero in the middle of the others.
            let flip = if signed { 0x80 } else { 0 };
            data.chunks_exact_mut(kept).for_each(|pixel| lab(pixel, flip));
        }
    }
    if shape.alpha == Alpha::Premultiplied {
        divide_by_alpha(&mut data, if matches!(shape.colours, Colours::Gray { .. }) { 2 } else { 4 });
    }
    let layout = match (shape.colours, shape.alpha) {
        (Colours::Gray { .. }, Alpha::None) => Layout::Gray,
        (Colours::Gray { .. }, _) => Layout::GrayAlpha,
        (_, Alpha::None) => Layout::Rgb,
        (_, _) => Layout::Rgba,
    };
    Ok(Decoded::whole(shape.size, layout, data))
}

/// Undoes the multiplication of colours by alpha, rounding down as Pillow does: what is transparent loses its colours,
/// but not its gray.
fn divide_by_alpha(data: &mut [u8], samples: usize) {
    for pixel in data.chunks_exact_mut(samples) {
        if let Some((alpha, colours)) = pixel.split_last_mut() {
            for colour in colours {
                let whole = u16::from(*colour) * 255;
                let transparent = if samples == 2 { u16::from(*colour) } else { 0 };
                *colour = whole.checked_div(u16::from(*alpha)).unwrap_or(transparent).min(255) as u8;
            }
        }
    }
}

/// Indices to the colours of the palette, of which the upper bytes count.
fn looked_up(data: &[u8], shape: &Shape, directory: &Directory<'_>) -> Result<Vec<u8>, Fault> {
    let entries = 1usize << shape.bits;
    let map = directory.list(tag::COLOR_MAP, 3 * entries as u64).map_err(stop)?;
    if map.count != 3 * entries as u64 {
        return Err(Fault::corrupt(format!("a palette of {} values for {} bits", map.count, shape.bits)));
    }
    let map: Vec<u64> = map.iter().collect();
    let colours: Vec<[u8; 3]> =
        (0..entries).map(|index| [0, 1, 2].map(|plane| (map[plane * entries + index] >> 8) as u8)).collect();
    let mut out = mapped(data, shape.kept, |pixel| colours[usize::from(pixel[0])])?;
    if shape.kept == 2 {
        // Indices were not stretched to 8 bits, nor was the alpha beside them.
        let factor = (255 / (entries - 1)) as u8;
        out.as_chunks_mut::<4>().0.iter_mut().for_each(|pixel| pixel[3] *= factor);
    }
    Ok(out)
}

/// Four inks (255 is full) to RGB, as in Pillow.
fn inks(data: &[u8], kept: usize) -> Result<Vec<u8>, Fault> {
    mapped(data, kept, |pixel| jpeg::ink_to_rgb([0, 1, 2, 3].map(|ink| 255 - pixel[ink])))
}

/// RGB for the colours of every pixel; a sample beyond them, which is alpha, stays behind it.
fn mapped(data: &[u8], kept: usize, colour: impl Fn(&[u8]) -> [u8; 3]) -> Result<Vec<u8>, Fault> {
    let alpha = matches!(kept, 2 | 5);
    let mut out = zeroed(data.len() / kept * (3 + usize::from(alpha)))?;
    for (to, from) in out.chunks_exact_mut(3 + usize::from(alpha)).zip(data.chunks_exact(kept)) {
        to[..3].copy_from_slice(&colour(from));
        if alpha {
            to[3] = from[kept - 1];
        }
    }
    Ok(out)
}

/// Brightness and colour differences to RGB (TIFF 6.0, section 21), in the steps and roundings of libtiff.
struct YCbCr {
    brightness: [i32; 256],
    /// What the differences add to red and blue.
    red: [i32; 256],
    blue: [i32; 256],
    /// What they add to green, in 65536ths.
    green: ([i32; 256], [i32; 256]),
}

impl YCbCr {
    fn read(directory: &Directory<'_>) -> Result<Self, Fault> {
        let shares = directory.fractions(tag::YCBCR_COEFFICIENTS).map_err(stop)?;
        let range = directory.fractions(tag::REFERENCE_BLACK_WHITE).map_err(stop)?;
        // What makes no sense is as good as not said.
        let shares = shares.filter(|shares| shares.iter().all(|share| share.is_finite()) && shares[1] > 0.0);
        let range = range.filter(|range| range.iter().all(|level| level.is_finite()));
        Ok(Self::new(
            shares.unwrap_or([0.299, 0.587, 0.114]),
            range.unwrap_or([0.0, 255.0, 128.0, 255.0, 128.0, 255.0]),
        ))
    }

    /// `shares` of red, green and blue in the brightness; `range` of the brightness and the two differences.
    fn new([red, green, blue]: [f32; 3], range: [f32; 6]) -> Self {
        const HALF: i32 = 1 << 15;
        let fixed = |factor: f32| (f64::from(factor.clamp(0.0, 2.0)) * 65536.0 + 0.5) as i32;
        let (from_cr, from_cb) = (2.0 - 2.0 * red, 2.0 - 2.0 * blue);
        let (cr_red, cb_blue) = (fixed(from_cr), fixed(from_cb));
        let (cr_green, cb_green) = (-fixed(red * from_cr / green), -fixed(blue * from_cb / green));
        let mut table = Self { brightness: [0; 256], red: [0; 256], blue: [0; 256], green: ([0; 256], [0; 256]) };
        for (code, index) in (0i32..).zip(0..256) {
            let cb = level(code - 128, range[2] - 128.0, range[3] - 128.0, 127.0);
            let cr = level(code - 128, range[4] - 128.0, range[5] - 128.0, 127.0);
            table.brightness[index] = level(code, range[0], range[1], 255.0);
            table.red[index] = (cr_red * cr + HALF) >> 16;
            table.blue[index] = (cb_blue * cb + HALF) >> 16;
            table.green.0[index] = cb_green * cb + HALF;
            table.green.1[index] = cr_green * cr;
        }
        table
    }

    fn convert(&self, pixel: &mut [u8]) {
        let [y, cb, cr] = [0, 1, 2].map(|sample| usize::from(pixel[sample]));
        let brightness = self.brightness[y];
        let green = (self.green.0[cb] + self.green.1[cr]) >> 16;
        for (sample, more) in pixel.iter_mut().zip([self.red[cr], green, self.blue[cb]]) {
            *sample = (brightness + more).clamp(0, 255) as u8;
        }
    }
}

/// The level of a code, where `black` is 0 and `white` is `whole`; what is far outside is cut.
fn level(code: i32, black: f32, white: f32, whole: f32) -> i32 {
    let span = if (white - black).abs() < f32::EPSILON { 1.0 } else { white - black };
    ((code.saturating_sub(black as i32)) as f32 * whole / span).clamp(-4096.0, 4096.0) as i32
}

/// CIE L*a*b* of illuminant D50 to sRGB (IEC 61966-2-1, the white adapted by Bradford's matrix).
fn lab(pixel: &mut [u8], flip: u8) {
    let [a, b] = [pixel[1], pixel[2]].map(|sample| f32::from(sample ^ flip) - 128.0);
    let y = (f32::from(pixel[0]) * (100.0 / 255.0) + 16.0) / 116.0;
    let linear = |t: f32| if t > 6.0 / 29.0 { t * t * t } else { (t - 4.0 / 29.0) * (108.0 / 841.0) };
    let (x, y, z) = (linear(y + a / 500.0) * 0.9642, linear(y), linear(y - b / 200.0) * 0.8249);
    let rgb = [
        3.133_856 * x - 1.616_866_7 * y - 0.490_614_6 * z,
        -0.978_768_4 * x + 1.916_141_5 * y + 0.033_454 * z,
        0.071_945_3 * x - 0.228_991_4 * y + 1.405_242_7 * z,
    ];
    for (sample, light) in pixel.iter_mut().zip(rgb) {
        let encoded = if light <= 0.003_130_8 { light * 12.92 } else { 1.055 * light.powf(1.0 / 2.4) - 0.055 };
        *sample = (encoded * 255.0).round() as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_without_differences_are_gray() {
        let table = YCbCr::new([0.299, 0.587, 0.114], [0.0, 255.0, 128.0, 255.0, 128.0, 255.0]);
        for gray in 0..=255 {
            let mut pixel = [gray, 128, 128];
            table.convert(&mut pixel);
            assert_eq!(pixel, [gray; 3]);
        }
        // The range of video: 16 is black, 235 white.
        let table = YCbCr::new([0.299, 0.587, 0.114], [16.0, 235.0, 128.0, 240.0, 128.0, 240.0]);
        for (code, gray) in [(0, 0), (16, 0), (235, 255), (255, 255)] {
            let mut pixel = [code, 128, 128];
            table.convert(&mut pixel);
            assert_eq!(pixel, [gray; 3]);
        }
        // Numbers that make no sense give pixels all the same.
        for nonsense in [0.0, f32::NAN, f32::INFINITY, -1e30] {
            YCbCr::new([nonsense; 3], [nonsense; 6]).convert(&mut [1, 2, 3]);
        }
    }

    #[test]
    fn lab_is_white_black_and_red() {
        for (from, to) in [([255, 0, 0], [255, 255, 255]), ([0, 0, 0], [0, 0, 0]), ([138, 81, 70], [254, 2, 1])] {
            let mut pixel = from;
            lab(&mut pixel, 0x80);
            assert!(pixel.iter().zip(to).all(|(&is, expected)| is.abs_diff(expected) < 3), "{pixel:?}");
        }
    }

    #[test]
    fn transparent_gray_stays() {
        let mut data = [10, 0, 10, 128, 200, 100, 7, 255];
        divide_by_alpha(&mut data, 2);
        assert_eq!(data, [10, 0, 19, 128, 255, 100, 7, 255]);
        let mut data = [10, 20, 30, 0, 10, 20, 30, 51];
        divide_by_alpha(&mut data, 4);
        assert_eq!(data, [0, 0, 0, 0, 50, 100, 150, 51]);
    }
}
