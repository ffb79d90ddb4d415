//! `slicemill doctor`: what this machine has, and whether the embedded model works on it.

use std::sync::Arc;
use std::time::Instant;

use slicemill_core::{Size, WindowRounding};
use slicemill_image::RgbImage;
use slicemill_pipeline::{BackendFactory, DeviceId, GenerateRequest, Generated, PreparedImage, parse_devices};

use crate::args::{DoctorArgs, RunFlags};
use crate::exit::{Exit, Failure};
use crate::printing::Printer;

/// Prints a line per check; ends with a failure when the model does not work on a device.
pub fn run(args: &DoctorArgs, printer: Printer) -> Result<Exit, Failure> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    printer.line(&format!(
        "slicemill {}, {} {}",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::OS,
        std::env::consts::ARCH
    ))?;
    printer.line(&format!("cores: {cores}"))?;
    let cuda = if cfg!(feature = "cuda") { "built in" } else { "not built in (cargo build --release --features cuda)" };
    printer.line(&format!("CUDA: {cuda}"))?;
    let factory = crate::models::open("embedded", WindowRounding::F32, crate::models::Runtime::default())?;
    let card = factory.card();
    printer.line(&format!(
        "embedded model: {}, policy {} with side {}, {} visual tokens a view at most, fingerprint {}",
        card.family,
        card.policy.name,
        card.policy.side,
        most_tokens(&*factory)?,
        &card.fingerprint[..card.fingerprint.len().min(12)]
    ))?;
    try_devices(&factory, &args.run, printer)
}

/// Prints a line per device: what the model says there about a drawn picture, or why it does not work.
pub(super) fn try_devices(
    factory: &Arc<dyn BackendFactory>,
    flags: &RunFlags,
    printer: Printer,
) -> Result<Exit, Failure> {
    let devices = parse_devices(flags.devices.as_deref().unwrap_or("cpu")).map_err(Failure::usage)?;
    let mut exit = Exit::Done;
    for device in devices {
        match try_device(factory, device) {
            Ok(line) => printer.line(&line)?,
            Err(failure) => {
                exit = Exit::Failed;
                printer.line(&format!("{device}: failed: {failure}"))?;
            }
        }
    }
    Ok(exit)
}

fn most_tokens(factory: &dyn BackendFactory) -> Result<u64, Failure> {
    let card = factory.card();
    let plan = card.policy.plan(Size::new(card.policy.side, card.policy.side)).map_err(Failure::failed)?;
    Ok(plan.visual_tokens(card.token_rule) / u64::from(plan.view_count()))
}

/// Opens the model on `device`, shows it a red square on white and reports what it says.
fn try_device(factory: &Arc<dyn BackendFactory>, device: DeviceId) -> Result<String, Failure> {
    let begun = Instant::now();
    let factory = Arc::clone(factory);
    // A backend lives on one thread from its opening on.
    let thread = std::thread::spawn(move || describe_square(&*factory, device));
    let generated = thread.join().map_err(|_| Failure::failed("the device thread panicked"))??;
    Ok(format!(
        "{device}: ok, {} prompt and {} output tokens in {:.2} s for a drawn red square: {}",
        generated.prompt_tokens,
        generated.token_ids.len(),
        begun.elapsed().as_secs_f64(),
        generated.text
    ))
}

fn describe_square(factory: &dyn BackendFactory, device: DeviceId) -> Result<Generated, Failure> {
    let card = factory.card();
    let side = card.policy.side;
    let mut pixels = vec![255; (side * side * 3) as usize];
    for y in side / 4..side * 3 / 4 {
        for x in side / 4..side * 3 / 4 {
            let at = ((y * side + x) * 3) as usize;
            pixels[at..at + 3].copy_from_slice(&[220, 20, 20]);
        }
    }
    let size = Size::new(side, side);
    let picture = RgbImage::from_raw(size, pixels).ok_or_else(|| Failure::failed("the picture has the wrong size"))?;
    let plan = Arc::new(card.policy.plan(size).map_err(Failure::failed)?);
    let views = slicemill_image::cut_views(&picture, &plan, slicemill_image::pad_colour(&card.normalisation))
        .map_err(Failure::failed)?;
    let views = views.iter().map(|view| slicemill_image::normalise(view, card.policy.patch, &card.normalisation));
    let image = PreparedImage { plan, views: views.collect() };
    let mut backend = factory.open(device).map_err(Failure::failed)?;
    let handles = backend.encode(&[image]).map_err(Failure::failed)?;
    let handle = *handles.first().ok_or_else(|| Failure::failed("the model encoded nothing"))?;
    let request = GenerateRequest {
        image: handle,
        prompt: card.default_prompt.clone(),
        params: card.generation.clone(),
        seed: 0,
    };
    backend.admit(request).map_err(Failure::failed)?;
    // The cap on output tokens ends the sequence; one step more would be a fault of the backend.
    for _ in 0..=card.generation.max_new_tokens {
        let finished = backend.step().map_err(|(_, error)| Failure::failed(error))?;
        if let Some(generated) = finished.into_iter().next() {
            backend.release(handle);
            return Ok(generated);
        }
    }
    Err(Failure::failed("the model does not stop"))
}
