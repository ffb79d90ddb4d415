//! The promises that are made of every run: the same content for any devices and batches, exact plans, images encoded
//! once, flat memory.

use std::collections::BTreeMap;
use std::path::Path;

use crate::fixtures::write_folder;
use crate::program::{assert_same_content, complaint, count, expect, long_or, sql, text};

fn caption(images: &Path, out: &Path, extra: &[&str]) {
    let mut args = vec!["caption", text(images), "-o", text(out), "--max-new-tokens", "12", "--chunk-rows", "8"];
    args.extend_from_slice(extra);
    expect(0, &args);
}

#[test]
fn devices_and_batches_do_not_change_a_byte() {
    let folder = tempfile::tempdir().expect("folder");
    let images = folder.path().join("images");
    write_folder(&images, 40, 0, 5);
    let out = |name: &str| folder.path().join(name);
    caption(&images, &out("one"), &["--devices", "cpu", "--columns", "+token_ids"]);
    for (name, extra) in [
        ("two", ["--devices", "cpu:0,cpu:1"]),
        ("batch-1", ["--batch", "1"]),
        ("batch-7", ["--batch", "7"]),
        ("batch-64", ["--batch", "64"]),
        ("sequences-1", ["--sequences", "1"]),
    ] {
        let mut args = extra.to_vec();
        args.extend_from_slice(&["--columns", "+token_ids"]);
        caption(&images, &out(name), &args);
        assert_same_content(&out("one"), &out(name));
    }
}

#[test]
fn visual_tokens_do_not_depend_on_the_batch_by_a_bit() {
    let folder = tempfile::tempdir().expect("folder");
    let images = folder.path().join("images");
    write_folder(&images, 16, 0, 6);
    let out = |name: &str| folder.path().join(name);
    for (name, batch) in [("a", "1"), ("b", "5"), ("c", "64")] {
        expect(0, &["encode", text(&images), "-o", text(&out(name)), "--batch", batch]);
    }
    assert_same_content(&out("a"), &out("b"));
    assert_same_content(&out("a"), &out("c"));
    for row in sql(&out("a"), "SELECT key, visual_tokens, token_width, array_length(tokens) AS n FROM tokens") {
        let field = |name: &str| row[name].as_u64().unwrap_or_else(|| panic!("{name} in {row}"));
        assert_eq!(field("n"), field("visual_tokens") * field("token_width"), "{row}");
    }
}

#[test]
fn the_plan_counts_what_the_run_produces() {
    let folder = tempfile::tempdir().expect("folder");
    let images = folder.path().join("images");
    let made = write_folder(&images, 30, 0, 7);
    let out = folder.path().join("out");
    let planned = expect(0, &["plan", text(&images), "--format", "json"]);
    let planned: serde_json::Value = serde_json::from_str(&planned).expect("JSON");
    caption(&images, &out, &[]);
    assert_eq!(planned["images"].as_u64(), Some(made.whole));
    assert_eq!(planned["visual_tokens"].as_u64(), Some(count(&out, "SELECT sum(visual_tokens) FROM captions")));
    assert_eq!(planned["prompt_tokens"].as_u64(), Some(count(&out, "SELECT sum(prompt_tokens) FROM captions")));
    assert_eq!(planned["flops_max"]["vision"].as_u64(), Some(count(&out, "SELECT sum(vision_flops) FROM captions")));
    expect(0, &["verify", text(&out)]);
}

#[test]
fn questions_share_one_encoding_and_do_not_disturb_each_other() {
    let folder = tempfile::tempdir().expect("folder");
    let images = folder.path().join("images");
    let made = write_folder(&images, 12, 0, 8);
    let questions = ["How many red circles are there?", "What colour is the background?", "What does the text say?"];
    let out = folder.path().join("together");
    let mut args = vec!["ask", text(&images), "-o", text(&out)];
    args.extend(questions.iter().flat_map(|question| ["--ask", question]));
    expect(0, &args);
    assert_eq!(count(&out, "SELECT count(*) FROM answers"), 3 * made.whole);
    let once = "SELECT key, count(*) AS n, sum(CASE WHEN vision_flops > 0 THEN 1 ELSE 0 END) AS encoded FROM answers GROUP BY key";
    for row in sql(&out, once) {
        assert_eq!((row["n"].as_u64(), row["encoded"].as_u64()), (Some(3), Some(1)), "{row}");
    }
    let mut alone = BTreeMap::new();
    for (id, question) in questions.iter().enumerate() {
        let out = folder.path().join(format!("alone-{id}"));
        expect(0, &["ask", text(&images), "-o", text(&out), "--ask", question]);
        for row in sql(&out, "SELECT key, question, text FROM answers") {
            alone.insert((row["key"].to_string(), row["question"].to_string()), row["text"].clone());
        }
    }
    for row in sql(&out, "SELECT key, question, text FROM answers") {
        assert_eq!(alone.get(&(row["key"].to_string(), row["question"].to_string())), Some(&row["text"]), "{row}");
    }
    expect(0, &["verify", text(&out)]);
}

#[test]
fn a_finished_job_is_a_no_op_and_a_different_one_is_refused() {
    let folder = tempfile::tempdir().expect("folder");
    let images = folder.path().join("images");
    write_folder(&images, 6, 0, 9);
    let out = folder.path().join("out");
    caption(&images, &out, &[]);
    let before = crate::program::content(&out);
    caption(&images, &out, &[]);
    assert_eq!(before, crate::program::content(&out));
    let changed = ["caption", text(&images), "-o", text(&out), "--max-new-tokens", "13", "--chunk-rows", "8"];
    let message = complaint(5, &changed);
    assert!(message.contains("max_new_tokens") && message.contains("12") && message.contains("13"), "{message}");
    write_folder(&images.join("new"), 3, 0, 10);
    let message =
        complaint(5, &["caption", text(&images), "-o", text(&out), "--max-new-tokens", "12", "--chunk-rows", "8"]);
    assert!(message.contains("--extend"), "{message}");
    caption(&images, &out, &["--extend"]);
    expect(0, &["verify", text(&out)]);
    assert_eq!(count(&out, "SELECT count(*) FROM captions"), 9);
}

#[test]
fn sampling_is_reproducible_and_depends_on_the_seed() {
    let folder = tempfile::tempdir().expect("folder");
    let images = folder.path().join("images");
    write_folder(&images, 8, 0, 10);
    let out = |name: &str| folder.path().join(name);
    let sampled = ["--temperature", "1.5", "--top-p", "0.95", "--top-k", "200"];
    for (name, seed, devices) in [("a", "1", "cpu"), ("b", "1", "cpu:0,cpu:1"), ("c", "2", "cpu")] {
        let mut extra = sampled.to_vec();
        extra.extend_from_slice(&["--seed", seed, "--devices", devices]);
        caption(&images, &out(name), &extra);
    }
    assert_same_content(&out("a"), &out("b"));
    let texts = |name: &str| sql(&out(name), "SELECT key, text FROM captions ORDER BY key");
    assert_ne!(texts("a"), texts("c"));
}

/// Peak resident memory of the program with `args`, in KiB, which must end with 0.
#[cfg(target_os = "linux")]
pub fn peak_kib(args: &[&str]) -> u64 {
    let script = "\"$@\" & pid=$!; peak=0; while kill -0 $pid 2>/dev/null; do \
         now=$(sed -n 's/^VmHWM:[^0-9]*\\([0-9]*\\).*/\\1/p' /proc/$pid/status 2>/dev/null); \
         [ -n \"$now\" ] && peak=$now; sleep 0.02; done; wait $pid && echo $peak";
    let program = [env!("CARGO_BIN_EXE_slicemill"), "--progress", "off", "-q"];
    let output = std::process::Command::new("sh").args(["-c", script, "sh"]).args(program).args(args).output();
    let output = output.expect("sh runs");
    let printed = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    printed.parse().unwrap_or_else(|_| panic!("{printed} {}", String::from_utf8_lossy(&output.stderr)))
}

/// In the short form the bound is loose, because few images have not yet touched every pool of the allocator.
#[cfg(target_os = "linux")]
#[test]
fn memory_does_not_grow_with_the_number_of_images() {
    let folder = tempfile::tempdir().expect("folder");
    let (few, many) = (long_or(1_000, 400), long_or(20_000, 2_400));
    let growth_max = long_or(105, 125);
    let peak = |count: u64| {
        let (images, out) = (folder.path().join(format!("images-{count}")), folder.path().join(format!("out-{count}")));
        write_folder(&images, count, 0, 11);
        peak_kib(&["caption", text(&images), "-o", text(&out), "--model", "null", "--threads", "2"])
    };
    let (small, large) = (peak(few), peak(many));
    println!("{small} KiB for {few} images, {large} KiB for {many}");
    assert!(large * 100 < small * growth_max, "{small} KiB for {few} images, {large} KiB for {many}");
}
