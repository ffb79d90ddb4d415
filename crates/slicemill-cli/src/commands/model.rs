//! `slicemill model`: what a checkpoint is and needs, and whether it works.

use std::fmt::Write as _;

use slicemill_core::WindowRounding;
use slicemill_model::{BackendOptions, CandleFactory, Summary};

use crate::args::{Format, ModelCheckArgs, ModelInspectArgs};
use crate::exit::{Exit, Failure};
use crate::models;
use crate::printing::Printer;

/// Prints a summary; fails when config, weights and tokenizer do not fit together.
pub fn inspect(args: &ModelInspectArgs, printer: Printer) -> Result<Exit, Failure> {
    let summary = summary(&args.model)?;
    match args.format {
        Format::Json => printer.json(&summary)?,
        Format::Text => printer.line(text(&summary).trim_end())?,
        Format::Csv => return Err(Failure::usage("--format csv does not suit a summary; choose text or json")),
    }
    if summary.weights.is_some() && args.model != "embedded" {
        // What does not fit is said here, before anybody rents a machine.
        models::open(&args.model, WindowRounding::F32, models::Runtime::default())?;
    }
    Ok(Exit::Done)
}

fn summary(model: &str) -> Result<Summary, Failure> {
    if model == "embedded" {
        let factory = CandleFactory::embedded(BackendOptions::default()).map_err(Failure::failed)?;
        return Ok(factory.summary());
    }
    let files = models::files(model)?;
    if std::path::Path::new(model).is_file() {
        return Ok(Summary::new(&files.model_config(&|_| false).map_err(Failure::failed)?, None));
    }
    let (config, weights) = files.weights(&|_| Ok(None)).map_err(Failure::failed)?;
    Ok(Summary::new(&config, Some(&weights)))
}

fn text(summary: &Summary) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: &str| {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{name:<12} {value}");
    };
    line("family", &summary.family);
    line("policy", &summary.policy);
    line("vision", &summary.vision);
    line("projector", &summary.projector);
    line("language", &summary.decoder);
    let cut = summary.prompt_tokens_max.map_or_else(String::new, |tokens| format!(", prompts are cut at {tokens}"));
    line("context", &format!("{} tokens{cut}", summary.context_tokens));
    line("parameters", &count(summary.parameters));
    line("CPU memory", &format!("{} for the weights in f32, shared by all CPU devices", bytes(summary.cpu_bytes)));
    line("GPU memory", &format!("{} for the weights in bf16, on every GPU", bytes(summary.gpu_bytes)));
    line("per token", &format!("{} of keys and values in 16 bits", bytes(summary.kv_bytes_per_token)));
    match &summary.weights {
        None => line("weights", "not looked at: a config.json alone"),
        Some(weights) => {
            let types: Vec<String> =
                weights.tensors_by_dtype.iter().map(|(dtype, count)| format!("{count} {dtype}")).collect();
            let place =
                if weights.files == 0 { "in the program".to_owned() } else { format!("{} files", weights.files) };
            line("weights", &format!("{} in {place}, tensors: {}", bytes(weights.bytes), types.join(", ")));
            if !weights.unused.is_empty() {
                let unused: Vec<String> =
                    weights.unused.iter().map(|(prefix, count)| format!("{count} of {prefix}.*")).collect();
                line("unused", &unused.join(", "));
            }
        }
    }
    out
}

/// Bytes with a unit of powers of 1,024.
fn bytes(count: u64) -> String {
    let count = count as f64;
    match [("GiB", 30), ("MiB", 20), ("KiB", 10)].iter().find(|(_, shift)| count >= f64::from(1 << shift)) {
        Some((unit, shift)) => format!("{:.2} {unit}", count / f64::from(1 << shift)),
        None => format!("{count} B"),
    }
}

/// A number of parameters in words.
fn count(parameters: u64) -> String {
    let parameters = parameters as f64;
    if parameters >= 1e9 {
        format!("{:.2} billion", parameters / 1e9)
    } else {
        format!("{:.2} million", parameters / 1e6)
    }
}

/// Loads the model on every device and shows it a drawn picture.
pub fn check(args: &ModelCheckArgs, printer: Printer) -> Result<Exit, Failure> {
    if args.model == "null" {
        return Err(Failure::usage("the null model has nothing to check; give a checkpoint or embedded"));
    }
    let runtime =
        models::Runtime { batch_views: args.run.batch, sequences: args.run.sequences.or(Some(1)), beams: None };
    let factory = models::open(&args.model, WindowRounding::F32, runtime)?;
    let card = factory.card();
    printer.line(&format!("{}: {}, fingerprint {}", card.name, card.family, card.fingerprint))?;
    super::doctor::try_devices(&factory, &args.run, printer)
}
