//! `kill -9` at random moments, Ctrl-C, and what is left after them.

use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::fixtures::{Random, write_folder};
use crate::program::{assert_same_content, command, expect, long_or, start, text};

#[test]
fn killed_runs_resume_to_the_same_content() {
    let folder = tempfile::tempdir().expect("folder");
    let images = folder.path().join("images");
    let (kills, count) = (long_or(20, 8), long_or(2_000, 160));
    write_folder(&images, count, 20, 30);
    let (clean, killed) = (folder.path().join("clean"), folder.path().join("killed"));
    let args = |out| {
        vec!["caption", text(&images), "-o", out, "--max-new-tokens", "6", "--chunk-rows", "16", "--shard-rows", "64"]
    };
    let begun = Instant::now();
    expect(3, &args(text(&clean)));
    let whole = begun.elapsed();
    let mut random = Random::new(31);
    let mut fired = 0;
    for _ in 0..kills {
        let mut child = start(&args(text(&killed)));
        // Anywhere from the start on; all waits together take about as long as four fifths of an undisturbed run.
        let share = random.below(1000) as f64 / 1000.0 * 1.6 / kills as f64;
        sleep(whole.mul_f64(share) + Duration::from_millis(20));
        if child.try_wait().expect("the program's state").is_none() {
            fired += 1;
        }
        // SIGKILL; a run that has ended already cannot be killed.
        child.kill().ok();
        child.wait().expect("the program's end");
    }
    assert!(fired >= kills / 2, "{fired} of {kills} kills hit a running program");
    expect(3, &args(text(&killed)));
    assert_same_content(&clean, &killed);
    expect(0, &["verify", text(&killed)]);
}

#[cfg(unix)]
#[test]
fn ctrl_c_drains_and_says_how_to_resume() {
    let folder = tempfile::tempdir().expect("folder");
    let images = folder.path().join("images");
    write_folder(&images, 400, 0, 32);
    let out = folder.path().join("out");
    let args = ["caption", text(&images), "-o", text(&out), "--max-new-tokens", "8", "--chunk-rows", "8"];
    let child = command(&args).stderr(std::process::Stdio::piped()).spawn().expect("the program starts");
    let begun = Instant::now();
    while !out.join("_slicemill/ledger").exists() && begun.elapsed() < Duration::from_secs(60) {
        sleep(Duration::from_millis(20));
    }
    let signalled =
        std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill runs");
    assert!(signalled.success());
    let output = child.wait_with_output().expect("the program's end");
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{message}");
    assert!(message.contains("resume"), "{message}");
    assert!(!out.join("_SUCCESS").exists());
    expect(0, &args);
    expect(0, &["verify", text(&out)]);
}
