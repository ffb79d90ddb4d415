//! Chroma upsampling: triangle filters for factors of two, repetition for others; the rounding is that of libjpeg's
//! "fancy" upsampling (`jdsample.c`), so that samples are equal.

/// How a component reaches the size of the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Upsampling {
    /// It has it.
    None,
    /// Twice as wide, filtered.
    Wide,
    /// Twice as high, filtered.
    High,
    /// Twice as wide and high, filtered.
    WideHigh,
    /// Every sample repeated this often across and down.
    Repeat {
        /// Across.
        h: usize,
        /// Down.
        v: usize,
    },
}

impl Upsampling {
    /// For a component of `width` samples that is `h` times narrower and `v` times lower than the image.
    pub(super) const fn new(h: usize, v: usize, width: usize) -> Self {
        match (h, v) {
            (1, 1) => Self::None,
            (2, 1) if width > 2 => Self::Wide,
            (1, 2) => Self::High,
            (2, 2) if width > 2 => Self::WideHigh,
            _ => Self::Repeat { h, v },
        }
    }

    /// Without filters.
    pub(super) const fn repeating(h: usize, v: usize) -> Self {
        if h == 1 && v == 1 { Self::None } else { Self::Repeat { h, v } }
    }

    /// For row `y` of the image, the rows of a component of `height` rows that it comes from: the nearest, and the next
    /// on the other side of `y` (which is the nearest itself at the edges).
    pub(super) fn rows(self, y: usize, height: usize) -> (usize, usize) {
        let v = match self {
            Self::None | Self::Wide => 1,
            Self::High | Self::WideHigh => 2,
            Self::Repeat { v, .. } => v,
        };
        let near = y / v;
        let far = if y.is_multiple_of(2) { near.saturating_sub(1) } else { (near + 1).min(height - 1) };
        (near, far)
    }

    /// One row at the width of the image or a little more. `lower` tells an odd row of the image from an even one.
    #[inline(always)]
    pub(super) fn apply<'a>(
        self,
        near: &'a [u8],
        far: &[u8],
        lower: bool,
        sums: &mut [u16],
        out: &'a mut [u8],
    ) -> &'a [u8] {
        match self {
            Self::None => return near,
            Self::Wide => wide(near, out),
            Self::High => high(near, far, lower, out),
            Self::WideHigh => wide_high(near, far, sums, out),
            Self::Repeat { h, .. } => {
                for (out, &sample) in out.chunks_exact_mut(h).zip(near) {
                    out.fill(sample);
                }
            }
        }
        out
    }
}

/// 3/4 of the nearer, 1/4 of the farther; halves are rounded down and up in turn.
#[inline(always)]
fn wide(input: &[u8], out: &mut [u8]) {
    let last = input.len() - 1;
    let (pairs, _) = out.as_chunks_mut::<2>();
    for (pair, around) in pairs[1..].iter_mut().zip(input.windows(3)) {
        let sample = u16::from(around[1]) * 3;
        pair[0] = ((sample + u16::from(around[0]) + 1) >> 2) as u8;
        pair[1] = ((sample + u16::from(around[2]) + 2) >> 2) as u8;
    }
    let (first, second) = (u16::from(input[0]), u16::from(input[1]));
    pairs[0] = [input[0], ((first * 3 + second + 2) >> 2) as u8];
    let (before, end) = (u16::from(input[last - 1]), u16::from(input[last]));
    pairs[last] = [((end * 3 + before + 1) >> 2) as u8, input[last]];
}

#[inline(always)]
fn high(near: &[u8], far: &[u8], lower: bool, out: &mut [u8]) {
    let bias = if lower { 2 } else { 1 };
    for ((out, &near), &far) in out.iter_mut().zip(near).zip(far) {
        *out = ((u16::from(near) * 3 + u16::from(far) + bias) >> 2) as u8;
    }
}

#[inline(always)]
fn wide_high(near: &[u8], far: &[u8], sums: &mut [u16], out: &mut [u8]) {
    let sums = &mut sums[..near.len()];
    for ((sum, &near), &far) in sums.iter_mut().zip(near).zip(far) {
        *sum = u16::from(near) * 3 + u16::from(far);
    }
    let last = sums.len() - 1;
    let (pairs, _) = out.as_chunks_mut::<2>();
    for (pair, around) in pairs[1..].iter_mut().zip(sums.windows(3)) {
        let sum = around[1] * 3;
        pair[0] = ((sum + around[0] + 8) >> 4) as u8;
        pair[1] = ((sum + around[2] + 7) >> 4) as u8;
    }
    pairs[0] = [((sums[0] * 4 + 8) >> 4) as u8, ((sums[0] * 3 + sums[1] + 7) >> 4) as u8];
    pairs[last] = [((sums[last] * 3 + sums[last - 1] + 8) >> 4) as u8, ((sums[last] * 4 + 7) >> 4) as u8];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn triangle_filters_weigh_three_to_one() {
        let mut out = [0; 8];
        wide(&[0, 4, 8, 100], &mut out);
        assert_eq!(out, [0, 1, 3, 5, 7, 31, 77, 100]);
        let mut out = [0; 3];
        high(&[10, 20, 30], &[20, 20, 0], false, &mut out);
        assert_eq!(out, [12, 20, 22]);
        high(&[10, 20, 30], &[20, 20, 0], true, &mut out);
        assert_eq!(out, [13, 20, 23]);
        let mut out = [0; 6];
        wide_high(&[80, 80, 80], &[80, 80, 80], &mut [0; 3], &mut out);
        assert_eq!(out, [80; 6]);
    }

    #[test]
    fn rows_stay_inside_the_component() {
        assert_eq!(Upsampling::WideHigh.rows(0, 5), (0, 0));
        assert_eq!(Upsampling::WideHigh.rows(1, 5), (0, 1));
        assert_eq!(Upsampling::WideHigh.rows(2, 5), (1, 0));
        assert_eq!(Upsampling::High.rows(9, 5), (4, 4));
        assert_eq!(Upsampling::Repeat { h: 4, v: 4 }.rows(11, 3).0, 2);
    }
}
