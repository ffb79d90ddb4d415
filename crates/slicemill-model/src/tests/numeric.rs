//! Components against reference outputs of the published code, read from the directory in SLICEMILL_GOLDEN.

use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};
use slicemill_core::WindowRounding;

use crate::attention::Queries;
use crate::checkpoint::Weights;
use crate::config::{Positions, VisionConfig, VisionKind};
use crate::kernels::Activation;
use crate::ops::{Loader, Place};
use crate::position::{PatchGrid, interpolate_bicubic, sin_cos};
use crate::projector::{Resampler, SpatialResampler, windows};
use crate::vision::{PackedViews, VisionTower};

/// The golden directory; says so and returns nothing when there is none.
pub fn golden(path: &str) -> Option<PathBuf> {
    #[allow(clippy::disallowed_methods, reason = "tests find their golden data by the environment")]
    let root = std::env::var("SLICEMILL_GOLDEN");
    match root {
        Ok(root) => Some(PathBuf::from(root).join(path)),
        Err(_) => {
            println!("skipped: set SLICEMILL_GOLDEN to the directory that holds {path}");
            None
        }
    }
}

/// The tensors of a golden file.
fn weights(path: &str) -> Option<Weights> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(golden(path)?, dir.path().join("model.safetensors")).unwrap();
    Some(Weights::open(dir.path()).unwrap())
}

fn values(weights: &Weights, name: &str) -> Tensor {
    weights.tensor(name, DType::F32, &Device::Cpu).unwrap()
}

pub fn relative_error(got: &Tensor, want: &Tensor) -> f32 {
    assert_eq!(got.elem_count(), want.elem_count());
    let (got, want) = (got.flatten_all().unwrap(), want.flatten_all().unwrap());
    let norm = |x: &Tensor| x.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
    norm(&(got - &want).unwrap()) / norm(&want)
}

fn places() -> [Place; 2] {
    [Place::cpu(), Place::candle(Device::Cpu, DType::F32)]
}

/// `[1, 3, height, width]` → `[patches, 588]`.
fn patches(pixels: &Tensor) -> (Tensor, PatchGrid) {
    let (_, channels, height, width) = pixels.dims4().unwrap();
    let grid = PatchGrid { high: height / 14, wide: width / 14 };
    let patches = pixels
        .reshape(&[channels, grid.high, 14, grid.wide, 14])
        .unwrap()
        .permute([1, 3, 0, 2, 4])
        .unwrap()
        .reshape((grid.patches(), channels * 196))
        .unwrap();
    (patches, grid)
}

#[test]
fn position_tables_equal_torch_bicubic() {
    let Some(weights) = weights("numeric/numeric_golden.safetensors") else { return };
    let table = weights.values("posemb24.in_hwc").unwrap();
    for (high, wide) in [(19, 29), (29, 19), (24, 23), (18, 32), (1, 576), (2, 241), (6, 96), (24, 24)] {
        let got = interpolate_bicubic(&table, 24, 5, PatchGrid { high, wide });
        let want = weights.values(&format!("posemb24.out_hwc.{high}x{wide}")).unwrap();
        assert_eq!(got.len(), want.len());
        for (got, want) in got.iter().zip(&want) {
            assert!((got - want).abs() <= 4e-6 * want.abs().max(1.0), "{high}x{wide}: {got} {want}");
        }
    }
}

#[test]
fn clip_equals_the_reference_tower_on_five_grids_alone_and_packed() {
    let Some(weights) = weights("numeric/vit_tiny_golden.safetensors") else { return };
    let config = VisionConfig {
        kind: VisionKind::Clip,
        width: 32,
        mlp: 64,
        heads: 4,
        layers: 2,
        grid: 24,
        patch: 14,
        activation: Activation::QuickGelu,
        eps: 1e-5,
    };
    let grids = ["19x29", "24x23", "24x24", "29x19", "6x96"];
    for place in places() {
        let loader = Loader { weights: &weights, place: &place };
        let clip = VisionTower::load(&config, "param.vision_model", loader).unwrap();
        let mut all = Vec::new();
        for name in grids {
            let (patches, grid) = patches(&values(&weights, &format!("{name}.pixel_values")));
            let views = PackedViews { patches, grids: vec![grid] };
            let error = relative_error(&clip.embed(&views).unwrap(), &values(&weights, &format!("{name}.embeddings")));
            assert!(error < 1e-6, "{name} embeddings: {error:e}");
            let features = clip.forward(&views).unwrap();
            let error = relative_error(&features, &values(&weights, &format!("{name}.select_m2_patch")));
            assert!(error < 2e-6, "{name} features: {error:e}");
            all.push((views, features));
        }
        let packed = PackedViews {
            patches: Tensor::cat(&all.iter().map(|(views, _)| &views.patches).collect::<Vec<_>>(), 0).unwrap(),
            grids: all.iter().map(|(views, _)| views.grids[0]).collect(),
        };
        let one_by_one = Tensor::cat(&all.iter().map(|(_, features)| features).collect::<Vec<_>>(), 0).unwrap();
        assert!(relative_error(&clip.forward(&packed).unwrap(), &one_by_one) < 1e-6);
    }
}

#[test]
fn the_resampler_equals_the_reference_of_64_queries() {
    let Some(weights) = weights("numeric/numeric_golden.safetensors") else { return };
    // The number of heads is not recorded: one of the divisors of 32 must give every output.
    for place in places() {
        let loader = Loader { weights: &weights, place: &place };
        let worst = |heads: usize| -> f32 {
            let resampler = Resampler::load(24, 32, heads, Positions::Stored, "resampler64.param", loader).unwrap();
            [(24, 24), (19, 29), (6, 96)]
                .map(|(high, wide)| {
                    let input = values(&weights, &format!("resampler64.{high}x{wide}.in")).flatten_to(1).unwrap();
                    let grid = PatchGrid { high, wide };
                    let got = resampler.forward(&input, &[grid, grid]).unwrap();
                    relative_error(&got, &values(&weights, &format!("resampler64.{high}x{wide}.out")))
                })
                .into_iter()
                .fold(0.0, f32::max)
        };
        let errors = [1, 2, 4, 8].map(worst);
        let best = errors.iter().copied().fold(f32::MAX, f32::min);
        assert!(best < 2e-6, "relative errors with 1, 2, 4 and 8 heads: {errors:?}");
    }
}

#[test]
fn shared_queries_are_every_segments_own() {
    let place = Place::cpu();
    let shape = crate::kernels::AttentionShape { heads: 2, kv_heads: 2, head_dim: 8 };
    let q = Tensor::randn(0.0_f32, 1.0, (3, 16), &Device::Cpu).unwrap();
    let k = Tensor::randn(0.0_f32, 1.0, (6, 16), &Device::Cpu).unwrap();
    let run = |queries| crate::attention::attend_segments(&place, shape, queries, &k, &k, &[3, 3]).unwrap();
    let twice = Tensor::cat(&[&q, &q], 0).unwrap();
    assert_eq!(run(Queries::Shared(&q)).to_vec2::<f32>().unwrap(), run(Queries::Own(&twice)).to_vec2::<f32>().unwrap());
}

#[test]
fn roi_align_equals_torchvision() {
    let Some(weights) = weights("numeric/numeric_golden.safetensors") else { return };
    for (high, wide, down, across) in [(19, 29, 2, 3), (24, 24, 3, 3), (29, 19, 3, 2), (6, 96, 2, 4)] {
        let name = format!("roi.{high}x{wide}.{down}x{across}");
        let input = weights.values(&format!("{name}.in")).unwrap();
        let want = weights.values(&format!("{name}.out")).unwrap();
        let windows = windows(PatchGrid { high, wide }, WindowRounding::F32);
        assert_eq!(windows.bins, down * across, "{name}");
        for (i, want) in want.iter().enumerate() {
            let (window, channel, bin) = (i / (2 * windows.bins), i / windows.bins % 2, i % windows.bins);
            let map = &input[channel * high * wide..][..high * wide];
            let got: f32 = windows.of(window, bin).iter().map(|&(patch, weight)| map[patch as usize] * weight).sum();
            assert!((got - want).abs() < 2e-5, "{name} window {window}, bin {bin}: {got} {want}");
        }
    }
}

#[test]
fn the_spatial_resampler_equals_the_reference_of_144_queries() {
    let Some(weights) = weights("numeric/numeric_golden.safetensors") else { return };
    for place in places() {
        let loader = Loader { weights: &weights, place: &place };
        let load = |heads: usize, rounding| {
            SpatialResampler::load(24, 32, heads, rounding, "resampler144.param", loader).unwrap()
        };
        let grids = [(24, 24), (19, 29), (29, 19), (18, 32), (20, 28), (24, 23), (6, 96), (2, 241)];
        let errors = |resampler: &SpatialResampler| {
            grids.map(|(high, wide)| {
                let name = format!("resampler144.{high}x{wide}");
                let input = values(&weights, &format!("{name}.in")).flatten_to(1).unwrap();
                let grid = PatchGrid { high, wide };
                let got = resampler.forward(&input, &[grid]).unwrap();
                let twice = resampler.forward(&Tensor::cat(&[&input, &input], 0).unwrap(), &[grid, grid]).unwrap();
                assert!(relative_error(&twice.narrow(0, 144, 144).unwrap(), &got) < 1e-6, "{name} packed");
                relative_error(&got, &values(&weights, &format!("{name}.out_f32")))
            })
        };
        // The number of heads is not recorded: one of the divisors of 32 must give every output.
        let worst = |heads| errors(&load(heads, WindowRounding::F32)).into_iter().fold(0.0, f32::max);
        let (heads, error) = [1, 2, 4, 8]
            .map(|heads| (heads, worst(heads)))
            .into_iter()
            .fold((0, f32::MAX), |best, next| if next.1 < best.1 { next } else { best });
        assert!(error < 5e-6, "relative error with {heads} heads: {error:e}");
        // Corners in half precision move the output, but not those of 24 × 24.
        let moved = errors(&load(heads, WindowRounding::F16));
        assert!(moved[0] < 5e-6 && moved[1] > 1e-4, "with rounded corners: {moved:?}");
    }
}

#[test]
fn sines_and_cosines_equal_the_reference_tables() {
    let Some(weights) = weights("numeric/numeric_golden.safetensors") else { return };
    for side in [8, 12] {
        let want = weights.values(&format!("sincos.d32.g{side}")).unwrap();
        let got = sin_cos(32, PatchGrid { high: side, wide: side });
        assert_eq!(got.len(), want.len());
        assert!(got.iter().zip(&want).all(|(got, want)| (got - want).abs() < 1e-6), "{side}");
    }
}
