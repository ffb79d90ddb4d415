//! The summary for people.

use std::fmt::Write as _;

use crate::figures::{bytes, count, flops, seconds};

use super::PlanSummary;

/// Width of the longest bar of the histogram, characters.
const BAR: u64 = 40;

/// The summary as text, one figure a line.
pub(super) fn render(summary: &PlanSummary) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write_all(&mut text, summary);
    text
}

fn write_all(out: &mut String, summary: &PlanSummary) -> std::fmt::Result {
    writeln!(out, "{} with model {}, policy {}", summary.task, summary.model, summary.policy)?;
    let mut line = |name: &str, value: String| writeln!(out, "  {name:<16} {value}");
    line("inputs", format!("{} ({})", count(summary.inputs), bytes(summary.input_bytes)))?;
    line("images", count(summary.images))?;
    line("skipped", format!("{} (not images, or left out by --where)", count(summary.skipped)))?;
    if summary.unasked > 0 {
        line("not asked about", count(summary.unasked))?;
    }
    let failed: u64 = summary.failed.values().sum();
    let classes: Vec<String> = summary.failed.iter().map(|(class, n)| format!("{class} {}", count(*n))).collect();
    let classes = if classes.is_empty() { String::new() } else { format!(" ({})", classes.join(", ")) };
    line("will fail", format!("{}{classes}", count(failed)))?;
    line("content rows", count(summary.content_rows))?;
    line("views", format!("{} (slices and overviews)", count(summary.views)))?;
    line("visual tokens", count(summary.visual_tokens))?;
    if summary.task != "encode" {
        line("prompt tokens", count(summary.prompt_tokens))?;
        line("output tokens", format!("{} at the cap", count(summary.output_tokens_max)))?;
    }
    let sums = &summary.flops_max;
    let total = sums.vision + sums.projector + sums.prefill + sums.decode;
    line(
        "compute",
        format!(
            "{} at the cap (vision {}, projector {}, prefill {}, decode {})",
            flops(total),
            flops(sums.vision),
            flops(sums.projector),
            flops(sums.prefill),
            flops(sums.decode)
        ),
    )?;
    line("output", format!("about {} ({})", bytes(summary.output_bytes_estimate), summary.output_bytes_formula))?;
    let file_bytes = summary.output_bytes_estimate / summary.shards.max(1);
    line("files", format!("{} of about {} (--shard-bytes, --shard-rows)", count(summary.shards), bytes(file_bytes)))?;
    match &summary.measured {
        Some(rate) => line(
            "time",
            format!(
                "about {} at {:.2} views/s, {:.2} images/s (measured: {} images in {})",
                seconds(rate.job_s),
                rate.views_per_s,
                rate.images_per_s,
                count(rate.images),
                seconds(rate.elapsed_s)
            ),
        )?,
        None => line("time", "not measured; --measure N runs N images to measure it".to_owned())?,
    }
    histogram(out, summary)?;
    for example in &summary.failed_examples {
        writeln!(out, "  will fail: {example}")?;
    }
    Ok(())
}

fn histogram(out: &mut String, summary: &PlanSummary) -> std::fmt::Result {
    let largest = summary.slices.values().max().copied().unwrap_or(1).max(1);
    for (slices, images) in &summary.slices {
        let bar = "#".repeat(usize::try_from((images * BAR).div_ceil(largest)).unwrap_or(0));
        writeln!(out, "  {slices:>3} slices {:>12} {bar}", count(*images))?;
    }
    Ok(())
}
