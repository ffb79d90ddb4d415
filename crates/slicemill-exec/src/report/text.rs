//! The report for people.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use slicemill_core::TaskKind;

use crate::figures::{bytes, count, flops, seconds};

use crate::run::RunRecord;

use super::Report;

/// Width of the longest bar of the histogram, characters.
const BAR: u64 = 40;

/// The report as text.
pub(super) fn render(report: &Report) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = head(&mut out, report)
        .and_then(|()| rows(&mut out, report))
        .and_then(|()| failed(&mut out, report))
        .and_then(|()| slices(&mut out, report))
        .and_then(|()| tokens(&mut out, report))
        .and_then(|()| sizes(&mut out, report))
        .and_then(|()| times(&mut out, report));
    out
}

fn head(out: &mut String, report: &Report) -> std::fmt::Result {
    let job = &report.job;
    let state = if report.complete { "complete" } else { "NOT COMPLETE: run the same command again to go on" };
    writeln!(out, "{} ({state})", report.output)?;
    writeln!(
        out,
        "  {} with model {}, policy {} (side {}, patch {}, at most {} slices)",
        job.task.as_str(),
        job.model,
        job.policy.name,
        job.policy.side,
        job.policy.patch,
        job.policy.max_slices
    )?;
    writeln!(out, "  inputs {}", job.inputs.join(", "))?;
    if let Some(prompt) = &job.prompt {
        writeln!(out, "  prompt {prompt:?}")?;
    }
    if let Some(questions) = &job.questions {
        let source = questions.file.clone().unwrap_or_else(|| format!("{:?}", questions.ask));
        writeln!(out, "  questions {source}, template {:?}", questions.template)?;
    }
    if let Some(generation) = &job.generation {
        writeln!(
            out,
            "  at most {} output tokens, temperature {}, seed {}",
            generation.max_new_tokens, generation.temperature, generation.seed
        )?;
    }
    Ok(())
}

fn rows(out: &mut String, report: &Report) -> std::fmt::Result {
    let counts = &report.counts;
    writeln!(out, "\nrows")?;
    let extended =
        if report.generations > 1 { format!(" in {} generations", report.generations) } else { String::new() };
    writeln!(out, "  in      {:>12}{extended}", count(report.inputs))?;
    writeln!(out, "  ok      {:>12}", count(counts.ok))?;
    writeln!(out, "  failed  {:>12}", count(counts.failed))?;
    writeln!(out, "  skipped {:>12}", count(counts.skipped))?;
    if report.job.task == TaskKind::Ask {
        writeln!(out, "  answers {:>12}", count(counts.content_rows))?;
    }
    if report.retries > 0 {
        writeln!(out, "  retries {:>12}", count(report.retries))?;
    }
    if !report.formats.is_empty() {
        writeln!(out, "  formats {}", listed(&report.formats))?;
    }
    if !report.finish_reasons.is_empty() {
        writeln!(out, "  finish  {}", listed(&report.finish_reasons))?;
    }
    Ok(())
}

fn listed(counts: &BTreeMap<String, u64>) -> String {
    let items: Vec<String> = counts.iter().map(|(name, rows)| format!("{name} {}", count(*rows))).collect();
    items.join(", ")
}

fn failed(out: &mut String, report: &Report) -> std::fmt::Result {
    if let Some(run) = report.runs.iter().rev().find(|run| !run.sources.is_empty()) {
        writeln!(out, "\ninputs as listed")?;
        for source in &run.sources {
            writeln!(out, "  {source}")?;
        }
    }
    if !report.counts.failed_by_class.is_empty() {
        writeln!(out, "\nfailed rows by class")?;
    }
    for (class, rows) in &report.counts.failed_by_class {
        writeln!(out, "  {class:<20} {:>10}", count(*rows))?;
        for example in report.failed.get(class).into_iter().flatten() {
            writeln!(out, "    {} ({}): {}", example.key, example.stage, example.message)?;
        }
    }
    if !report.skipped.is_empty() {
        writeln!(out, "\nskipped, as {}", report.skipped.join(", "))?;
    }
    Ok(())
}

fn slices(out: &mut String, report: &Report) -> std::fmt::Result {
    if report.slices.is_empty() {
        return Ok(());
    }
    writeln!(out, "\nimages by slices (without the overview)")?;
    let largest = report.slices.values().max().copied().unwrap_or(1).max(1);
    for (slices, images) in &report.slices {
        let bar = "#".repeat(usize::try_from((images * BAR).div_ceil(largest)).unwrap_or(0));
        writeln!(out, "  {slices:>3} {:>12} {bar}", count(*images))?;
    }
    Ok(())
}

fn tokens(out: &mut String, report: &Report) -> std::fmt::Result {
    let counts = &report.counts;
    let sums = &counts.flops;
    writeln!(out, "\ntokens")?;
    writeln!(out, "  visual  {:>16} encoded", count(report.visual_tokens_encoded))?;
    if report.job.task != TaskKind::Encode {
        writeln!(out, "  prompt  {:>16}", count(counts.prompt_tokens))?;
        if counts.prompts_cut > 0 {
            let note = "prompts were longer than the model takes and cut at their end (column prompt_cut)";
            writeln!(out, "  {:>24} {note}", count(counts.prompts_cut))?;
        }
        writeln!(out, "  output  {:>16}", count(counts.output_tokens))?;
        if counts.looped > 0 {
            let note = "outputs end in a loop (column looped_tokens)";
            writeln!(out, "  {:>24} {note}", count(counts.looped))?;
        }
    }
    writeln!(out, "\ncompute")?;
    let stages = [
        ("vision", sums.vision),
        ("projector", sums.projector),
        ("prefill", sums.prefill),
        ("decode", sums.decode),
        ("total", sums.vision + sums.projector + sums.prefill + sums.decode),
    ];
    for (stage, sum) in stages {
        writeln!(out, "  {stage:<10} {:>14}", flops(sum))?;
    }
    Ok(())
}

fn sizes(out: &mut String, report: &Report) -> std::fmt::Result {
    writeln!(out, "\nfiles")?;
    for (dataset, size) in &report.sizes {
        writeln!(out, "  {dataset:<10} {:>6} files {:>12}", count(size.files), bytes(size.bytes))?;
    }
    Ok(())
}

fn times(out: &mut String, report: &Report) -> std::fmt::Result {
    let timings = &report.timings;
    if timings.images == 0 {
        return Ok(());
    }
    writeln!(out, "\ntime (summed over what ran at the same time)")?;
    writeln!(out, "  fetch      {:>12}", seconds(timings.fetch_s))?;
    writeln!(out, "  prepare    {:>12}", seconds(timings.prepare_s))?;
    for (device, times) in &timings.devices {
        writeln!(
            out,
            "  {device:<10} {} images: encode {}, prefill {}, decode {}",
            count(times.images),
            seconds(times.encode_s),
            seconds(times.prefill_s),
            seconds(times.decode_s)
        )?;
    }
    writeln!(
        out,
        "  {} encode batches of {:.1} views, {:.0} % full",
        count(timings.batches),
        timings.views as f64 / timings.batches.max(1) as f64,
        timings.batch_fill * 100.0
    )?;
    for (number, run) in report.runs.iter().enumerate() {
        writeln!(
            out,
            "  run {}{}: {} rows in {} on {}, {:.2} rows/s{}",
            number + 1,
            run.part.as_ref().map(|part| format!(", part {part}")).unwrap_or_default(),
            count(run.rows),
            seconds(run.elapsed_s),
            run.devices.join(","),
            run.rows as f64 / run.elapsed_s.max(f64::MIN_POSITIVE),
            if run.interrupted { " (interrupted)" } else { "" }
        )?;
        stages(out, run)?;
    }
    Ok(())
}

/// Where the time of a run went: shares of what its workers could have worked.
fn stages(out: &mut String, run: &RunRecord) -> std::fmt::Result {
    let Some(progress) = &run.progress else { return Ok(()) };
    let share = |time: Duration, workers: u32| {
        100.0 * time.as_secs_f64() / (run.elapsed_s * f64::from(workers.max(1))).max(f64::MIN_POSITIVE)
    };
    let (readers, threads, devices) = (progress.fetch_workers, progress.prepare_workers, progress.devices);
    writeln!(
        out,
        "    fetch    busy {:>3.0} % of {readers} readers, waited {} for room behind it",
        share(progress.fetch_busy, readers),
        seconds(progress.fetch_waiting.as_secs_f64())
    )?;
    writeln!(
        out,
        "    prepare  busy {:>3.0} % of {threads} threads, waited {} for memory",
        share(progress.prepare_busy, threads),
        seconds(progress.prepare_waiting.as_secs_f64())
    )?;
    writeln!(
        out,
        "    devices  busy {:>3.0} % of {devices} (encode {:.0} %, generate {:.0} %), waited {} for batches; batches waited {} for them",
        share(progress.encode_busy + progress.generate_busy, devices),
        share(progress.encode_busy, devices),
        share(progress.generate_busy, devices),
        seconds(progress.device_waiting.as_secs_f64()),
        seconds(progress.lease_waiting.as_secs_f64())
    )?;
    if let Some(stage) = progress.limiting_stage() {
        writeln!(out, "    limit    {stage}")?;
    }
    let resident = run.resident_bytes_peak.map(|peak| format!(", {} resident", bytes(peak))).unwrap_or_default();
    writeln!(out, "    memory   at most {} in flight{resident}", bytes(progress.bytes_held_peak))?;
    let troubles = [
        ("worker deaths", progress.worker_deaths),
        ("worker hangs", progress.worker_hangs),
        ("devices opened anew", progress.worker_restarts),
        ("rows run again", progress.rows_rerun),
        ("batches halved for memory", progress.oom_halvings),
        ("device calls tried again", progress.device_retries),
    ];
    let troubles: Vec<_> = troubles.iter().filter(|(_, number)| *number > 0).collect();
    if !troubles.is_empty() {
        let shown: Vec<_> = troubles.iter().map(|(name, number)| format!("{} {name}", count(*number))).collect();
        writeln!(out, "    devices  {}", shown.join(", "))?;
    }
    let io = &run.io;
    if io.requests > 0 {
        let errors = if io.by_code.is_empty() { String::new() } else { format!(": {}", listed(&io.by_code)) };
        writeln!(
            out,
            "    stores   {} requests, {} read, {} written, {} tried again{errors}",
            count(io.requests),
            bytes(io.bytes_read),
            bytes(io.bytes_written),
            count(io.retries)
        )?;
    }
    Ok(())
}
