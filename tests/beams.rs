//! Beam search through the program: the same content however it is run, resumed after a kill, and verified.

use std::time::{Duration, Instant};

use crate::fixtures::write_folder;
use crate::program::{assert_same_content, complaint, count, expect, sql, start, text};

/// A search over the folder `images`, in several chunks and shards.
fn args<'a>(images: &'a str, out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["caption", images, "-o", out, "--max-new-tokens", "12", "--chunk-rows", "6"];
    args.extend(["--shard-rows", "18", "--num-beams", "3", "--length-penalty", "0.5"]);
    args.extend(more);
    args
}

#[test]
fn a_beam_search_gives_the_same_content_however_it_is_run() {
    let folder = tempfile::tempdir().expect("folder");
    let images = folder.path().join("images");
    write_folder(&images, 36, 12, 41);
    let out = |name: &str| folder.path().join(name);
    let clean = out("clean");
    expect(3, &args(text(&images), text(&clean), &[]));
    expect(0, &["verify", text(&clean)]);
    let runs: [&[&str]; 3] =
        [&["--devices", "cpu:0,cpu:1"], &["--sequences", "1"], &["--sequences", "7", "--batch", "5"]];
    for (number, more) in runs.into_iter().enumerate() {
        let other = out(&format!("run-{number}"));
        expect(3, &args(text(&images), text(&other), more));
        assert_same_content(&clean, &other);
    }

    let killed = out("killed");
    let mut child = start(&args(text(&images), text(&killed), &[]));
    let begun = Instant::now();
    while !killed.join("_slicemill/ledger").exists() && begun.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().ok();
    child.wait().expect("the program's end");
    expect(3, &args(text(&images), text(&killed), &["--sequences", "2"]));
    assert_same_content(&clean, &killed);
    expect(0, &["verify", text(&killed)]);

    let other_job = complaint(5, &args(text(&images), text(&clean), &["--early-stopping"]));
    assert!(other_job.contains("generation.early_stopping: was -, now true"), "{other_job}");
}

#[test]
fn every_row_counts_the_compute_of_all_its_beams() {
    let folder = tempfile::tempdir().expect("folder");
    let images = folder.path().join("images");
    write_folder(&images, 8, 0, 42);
    let (greedy, beams) = (folder.path().join("greedy"), folder.path().join("beams"));
    expect(0, &["caption", text(&images), "-o", text(&greedy)]);
    expect(0, &["caption", text(&images), "-o", text(&beams), "--num-beams", "3"]);
    expect(0, &["verify", text(&beams)]);
    // Three tokens a step, and at least as many steps as the answer has tokens.
    let per_token = |out: &std::path::Path| -> Vec<f64> {
        let rows = sql(out, "SELECT decode_flops, output_tokens FROM captions ORDER BY key");
        let share = |row: &serde_json::Value| Some(row["decode_flops"].as_f64()? / row["output_tokens"].as_f64()?);
        rows.iter().map(|row| share(row).expect("numbers")).collect()
    };
    let (one, three) = (per_token(&greedy), per_token(&beams));
    assert_eq!((one.len(), three.len()), (8, 8));
    assert!(one.iter().zip(&three).all(|(one, three)| *three > 2.5 * one), "{one:?} {three:?}");
    assert!(count(&beams, "SELECT count(*) FROM captions WHERE finish_reason = 'stop'") > 0);
}

#[test]
fn beams_and_temperature_are_refused_together() {
    let message =
        complaint(2, &["caption", "examples/images", "-o", "out", "--num-beams", "3", "--temperature", "0.7"]);
    assert!(message.contains("--num-beams") && message.contains("set --temperature to 0"), "{message}");
    for bad in [["--num-beams", "0"], ["--num-beams", "65"], ["--length-penalty", "2"]] {
        complaint(2, &[["caption", "examples/images", "-o", "out"].as_slice(), &bad].concat());
    }
}
