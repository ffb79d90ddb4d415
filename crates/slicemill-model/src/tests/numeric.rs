//! Components against reference outputs of the published code, read from the directory in SLICEMILL_GOLDEN.

use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};

use crate::attention::Queries;
use crate::checkpoint::Weights;
use crate::config::ClipConfig;
use crate::kernels::Activation;
use crate::ops::{Loader, Place};
use crate::position::{PatchGrid, interpolate_bicubic};
use crate::projector::Resampler;
use crate::vision::{Clip, PackedViews};

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
    let config = ClipConfig {
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
        let clip = Clip::load(&config, "param.vision_model", loader).unwrap();
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
            let resampler = Resampler::load(32, 8, heads, "resampler64.param", loader).unwrap();
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
