//! Images and tokens per second of the embedded model on this machine's CPU, by stage.
//!
//! ```text
//! cargo run --release -p slicemill-model --example throughput [IMAGES] [THREADS]
//! ```
//!
//! The images are noise of mixed sizes (no slices to six), already decoded: this measures the model alone. Rates are
//! wall clock; the compute is that of the cost model.

#![allow(clippy::print_stdout, reason = "an example reports on standard output")]

use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

use slicemill_core::{Flops, GenerationParams, Size, SlicingPolicy};
use slicemill_model::{BackendOptions, CandleFactory};
use slicemill_pipeline::{Backend, BackendFactory, DeviceId, GenerateRequest, PreparedImage, PreparedView};

const SIZES: [(u32, u32); 8] =
    [(112, 112), (640, 480), (480, 640), (1024, 256), (1600, 1200), (96, 96), (200, 900), (1200, 300)];

fn image(policy: &SlicingPolicy, i: usize) -> Result<PreparedImage, Box<dyn Error>> {
    let (width, height) = SIZES[i % SIZES.len()];
    let plan = policy.plan(Size::new(width, height))?;
    let mut state = i as u32 + 1;
    let mut noise = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    let values = 3 * (plan.patch * plan.patch) as usize;
    let views = plan
        .views()
        .iter()
        .map(|view| PreparedView {
            patches_wide: view.patches_wide,
            patches_high: view.patches_high,
            patches: (0..view.patches() as usize * values).map(|_| noise()).collect(),
        })
        .collect();
    Ok(PreparedImage { plan: Arc::new(plan), views })
}

#[derive(Default)]
struct Times {
    encode: f64,
    prefill: f64,
    decode: f64,
    prompt_tokens: u64,
    output_tokens: u64,
    flops: Flops,
}

/// Captions all images as the pipeline does: a batch of views, then sequences in flight until all are done.
fn caption(
    backend: &mut dyn Backend,
    factory: &CandleFactory,
    images: &[PreparedImage],
) -> Result<Times, Box<dyn Error>> {
    let (card, mut times) = (factory.card(), Times::default());
    let params = GenerationParams { max_new_tokens: 24, ..card.generation.clone() };
    for batch in images.chunks(16) {
        let start = Instant::now();
        let handles = backend.encode(batch)?;
        times.encode += start.elapsed().as_secs_f64();
        for &image in &handles {
            let start = Instant::now();
            let prompt = card.default_prompt.clone();
            backend.admit(GenerateRequest { image, prompt, params: params.clone(), seed: 0 })?;
            times.prefill += start.elapsed().as_secs_f64();
        }
        let start = Instant::now();
        let mut finished = Vec::new();
        while finished.len() < batch.len() {
            finished.extend(backend.step().map_err(|(_, error)| error)?);
        }
        times.decode += start.elapsed().as_secs_f64();
        finished.sort_by_key(|generated| generated.sequence);
        for (image, generated) in batch.iter().zip(finished) {
            let (prompt, output) = (u64::from(generated.prompt_tokens), generated.token_ids.len() as u64);
            times.prompt_tokens += prompt;
            times.output_tokens += output;
            times.flops += card.shape.flops(&image.plan, prompt, output);
        }
        handles.into_iter().for_each(|handle| backend.release(handle));
    }
    Ok(times)
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let count: usize = args.next().map_or(Ok(256), |n| n.parse())?;
    let threads: Option<usize> = args.next().map(|n| n.parse()).transpose()?;
    let factory = CandleFactory::embedded(BackendOptions { cpu_threads: threads, ..Default::default() })?;
    let images = (0..count).map(|i| image(&factory.card().policy, i)).collect::<Result<Vec<_>, _>>()?;
    let mut backend = factory.open(DeviceId::Cpu(0))?;
    caption(&mut *backend, &factory, &images[..images.len().min(16)])?;
    let times = caption(&mut *backend, &factory, &images)?;

    let views: usize = images.iter().map(|image| image.views.len()).sum();
    let total = times.encode + times.prefill + times.decode;
    let threads = threads.or_else(|| std::thread::available_parallelism().ok().map(Into::into)).unwrap_or(1);
    println!("{count} images, {views} views, {threads} threads: {total:.2} s");
    println!("{:9.1} images/s   {:9.1} views/s", count as f64 / total, views as f64 / total);
    let stage = |name: &str, seconds: f64, flops: u64, what: &str, n: u64| {
        let (share, rate, gflops) = (100.0 * seconds / total, n as f64 / seconds, flops as f64 / seconds / 1e9);
        println!("{name:8} {seconds:7.2} s {share:5.1} %  {rate:10.1} {what}/s  {gflops:7.1} GFLOP/s");
    };
    stage("encode", times.encode, times.flops.vision + times.flops.projector, "views", views as u64);
    stage("prefill", times.prefill, times.flops.prefill, "tokens", times.prompt_tokens);
    stage("decode", times.decode, times.flops.decode, "tokens", times.output_tokens);
    Ok(())
}
