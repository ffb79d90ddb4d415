//! Images per second of the host stage on one thread: JPEG bytes → header → plan → pixels → slices → patches.
//!
//! `cargo bench -p slicemill-image --bench host_stage -- DIR [ROUNDS]`, with a directory of JPEG files. The script
//! `tests/reference/bench_host.sh` runs it beside Pillow and numpy doing the same.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the result of a bench is what it prints")]

use std::error::Error;
use std::path::PathBuf;
use std::time::Instant;

use slicemill_core::{ImageOptions, Normalisation, SlicingPolicy};
use slicemill_image::{NormalisationTable, NormalisedView, cut_views, decode, pad_colour, read_header};

/// Seconds spent in each step.
#[derive(Default)]
struct Times {
    decode_s: f64,
    cut_s: f64,
    normalise_s: f64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with("--"));
    let Some(directory) = arguments.next().map(PathBuf::from) else {
        println!("usage: host_stage DIR [ROUNDS]");
        return Ok(());
    };
    let rounds: u32 = arguments.next().map_or(Ok(3), |rounds| rounds.parse())?;
    let mut paths: Vec<PathBuf> = std::fs::read_dir(&directory)?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "jpg"));
    paths.sort();
    let images = paths.iter().map(std::fs::read).collect::<Result<Vec<_>, _>>()?;
    let policy = SlicingPolicy::llava_uhd();
    let table = NormalisationTable::new(&Normalisation::CLIP);
    let (mut best, mut steps, mut digest) = (f64::MAX, Times::default(), 0);
    for _ in 0..rounds {
        let (started, mut times) = (Instant::now(), Times::default());
        digest = 0;
        for bytes in &images {
            for view in host_stage(bytes, &policy, &table, &mut times)? {
                digest = fold(digest, &view.patches);
            }
        }
        let seconds = started.elapsed().as_secs_f64();
        if seconds < best {
            (best, steps) = (seconds, times);
        }
    }
    let per_image = 1e3 / images.len() as f64;
    let rate = images.len() as f64 / best;
    println!(
        "slicemill images_per_s={rate:.2} decode_ms={:.2} cut_ms={:.2} normalise_ms={:.2} digest={digest}",
        steps.decode_s * per_image,
        steps.cut_s * per_image,
        steps.normalise_s * per_image
    );
    Ok(())
}

fn host_stage(
    bytes: &[u8],
    policy: &SlicingPolicy,
    table: &NormalisationTable,
    times: &mut Times,
) -> Result<Vec<NormalisedView>, Box<dyn Error>> {
    let options = ImageOptions::default();
    let start = Instant::now();
    let header = read_header(bytes, "bench.jpg", &options)?;
    let plan = policy.plan(header.oriented_size(options.orientation))?;
    let image = decode(bytes, &header, &options)?.image;
    let decoded = Instant::now();
    let views = cut_views(&image, &plan, pad_colour(&Normalisation::CLIP))?;
    let cut = Instant::now();
    let patches = views.iter().map(|view| table.apply(view, plan.patch)).collect();
    times.decode_s += (decoded - start).as_secs_f64();
    times.cut_s += (cut - decoded).as_secs_f64();
    times.normalise_s += cut.elapsed().as_secs_f64();
    Ok(patches)
}

/// A sum over the bits of the first value of every patch-sized step, the same as in `host_stage.py`: it shows that both
/// sides made the same values, and costs next to nothing.
fn fold(digest: u64, values: &[f32]) -> u64 {
    let sampled = values.iter().step_by(97);
    sampled.fold(digest, |sum, value| sum.wrapping_add(u64::from(value.to_bits()))) & 0xFFFF_FFFF_FFFF
}
