//! Table 2 of the LLaVA-UHD paper (arXiv 2403.11703v1): compute of an image at the largest supported resolution, from
//! configs alone.
//!
//! `cargo run --release --example compute_table`
//!
//! The paper does not state what it counts. The recipe here comes within about one percent of each of its figures:
//! causal attention, logits at every position, 23 layers of the tower, every view a full square of 576 patches, and one
//! token of text. `slicemill plan --model CONFIG --sizes FILE.csv --compute --recipe paper --text-tokens 1` counts so too.

#![allow(clippy::print_stdout, reason = "an example prints")]

use slicemill_core::{ComputeRecipe, Size, SlicingPolicy};
use slicemill_model::ModelConfig;

/// Name, config, policy, TFLOPs in the paper.
const ROWS: [(&str, &str, &str, f64); 4] = [
    ("LLaVA-1.5", include_str!("compute/llava-1.5-13b.json"), "pad-square", 15.50),
    ("LLaVA-UHD", include_str!("compute/llava-uhd-64-13b.json"), "llava-uhd-raw", 14.63),
    ("LLaVA-UHD with MLP", include_str!("compute/llava-1.5-13b.json"), "llava-uhd-raw", 113.65),
    ("LLaVA-UHD with MLP and fixed partition", include_str!("compute/llava-1.5-13b.json"), "fixed-2x2", 80.10),
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let largest = Size::new(672, 1008);
    println!("{:<40} {:>7} {:>8} {:>9} {:>7} {:>8}", "", "slices", "tokens", "TFLOPs", "paper", "ratio");
    let mut totals = Vec::new();
    for (name, config, policy, paper) in ROWS {
        let card = ModelConfig::parse(config.as_bytes(), name)?.card();
        let policy = SlicingPolicy::named(policy).ok_or("a policy of the table")?;
        let plan = policy.plan(largest)?;
        let flops = card.shape.prompt_flops_by(ComputeRecipe::PAPER, &plan, policy.side, card.token_rule, 1);
        let total = flops.total() as f64 / 1e12;
        let tokens = plan.visual_tokens(card.token_rule);
        println!("{name:<40} {:>7} {tokens:>8} {total:>9.2} {paper:>7.2} {:>8.4}", plan.slices(), total / paper);
        totals.push(total);
    }
    println!("\nLLaVA-UHD takes {:.1} % of LLaVA-1.5 (paper: 94 %)", 100.0 * totals[1] / totals[0]);
    println!("and {:.1} % of itself with an MLP (paper: 12.9 %)", 100.0 * totals[1] / totals[2]);
    Ok(())
}
