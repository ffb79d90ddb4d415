//! Pixels to normalised patches.

use slicemill_core::Normalisation;

use crate::RgbImage;

/// One normalised view of an image, as patches.
#[derive(Debug, Clone, PartialEq)]
pub struct NormalisedView {
    /// Patches across.
    pub patches_wide: u32,
    /// Patches down.
    pub patches_high: u32,
    /// `[patches, 3 · patch · patch]`, row-major patches, each in the order channel, row, column (a convolution's weight
    /// order).
    pub patches: Vec<f32>,
}

/// `1 / 255` as CLIP's image processor writes it.
const RESCALE: f64 = 0.003_921_568_627_450_98;

/// The normalised value of every sample: `[3, 256]`.
///
/// The arithmetic is that of Hugging Face transformers 4.37 (CLIPImageProcessor): the sample is scaled in f64 and
/// rounded to f32, then `(x − mean) / std` in f32.
#[derive(Debug, Clone, PartialEq)]
pub struct NormalisationTable([[f32; 256]; 3]);

impl NormalisationTable {
    /// The table of one model.
    pub fn new(normalisation: &Normalisation) -> Self {
        let mut table = [[0.0; 256]; 3];
        for (channel, column) in table.iter_mut().enumerate() {
            let (mean, std) = (normalisation.mean[channel], normalisation.std[channel]);
            for (sample, value) in (0u8..=255).zip(column.iter_mut()) {
                *value = ((f64::from(sample) * RESCALE) as f32 - mean) / std;
            }
        }
        Self(table)
    }

    /// `[256]` values of channel 0 (red), 1 or 2; `None` for any other channel.
    pub fn channel(&self, channel: usize) -> Option<&[f32; 256]> {
        self.0.get(channel)
    }

    /// Normalises one view. Pixels right of and below the last whole patch are left out; plans have none.
    pub fn apply(&self, view: &RgbImage, patch: u32) -> NormalisedView {
        let patch = patch.max(1);
        let (patches_wide, patches_high) = (view.size().width / patch, view.size().height / patch);
        let side = patch as usize;
        let patch_len = 3 * side * side;
        let mut patches = vec![0.0; patches_wide as usize * patches_high as usize * patch_len];
        let band_len = patches_wide as usize * patch_len;
        if band_len > 0 {
            let bands = view.as_bytes().chunks_exact(view.stride() * side);
            for (band, out) in bands.zip(patches.chunks_exact_mut(band_len)) {
                self.apply_band(band, view.stride(), side, out);
            }
        }
        NormalisedView { patches_wide, patches_high, patches }
    }

    /// One row of patches: `[side, width, 3]` → `[patches_wide, 3, side, side]`.
    fn apply_band(&self, band: &[u8], stride: usize, side: usize, out: &mut [f32]) {
        let [red, green, blue] = &self.0;
        for (y, row) in band.chunks_exact(stride).enumerate() {
            for (segment, out) in row.chunks_exact(side * 3).zip(out.chunks_exact_mut(3 * side * side)) {
                let (out_red, rest) = out.split_at_mut(side * side);
                let (out_green, out_blue) = rest.split_at_mut(side * side);
                let line = y * side..(y + 1) * side;
                let targets =
                    out_red[line.clone()].iter_mut().zip(&mut out_green[line.clone()]).zip(&mut out_blue[line]);
                for (pixel, ((r, g), b)) in segment.chunks_exact(3).zip(targets) {
                    *r = red[usize::from(pixel[0])];
                    *g = green[usize::from(pixel[1])];
                    *b = blue[usize::from(pixel[2])];
                }
            }
        }
    }
}

/// Normalises one view whose sides are multiples of `patch`. For many views, keep a [`NormalisationTable`].
pub fn normalise(view: &RgbImage, patch: u32, normalisation: &Normalisation) -> NormalisedView {
    NormalisationTable::new(normalisation).apply(view, patch)
}
