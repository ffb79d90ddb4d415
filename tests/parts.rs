//! One job over several processes: `--shard k/n`, at once, one after the other, killed in between.

use std::path::Path;
use std::process::Child;
use std::thread::sleep;
use std::time::Duration;

use crate::fixtures::{Random, write_folder};
use crate::program::{assert_same_content, complaint, count, expect, long_or, start, text};

const ROWS: [&str; 4] = ["--chunk-rows", "8", "--shard-rows", "16"];

fn args<'a>(images: &'a Path, out: &'a Path, part: Option<&'a str>) -> Vec<&'a str> {
    let mut args = vec!["caption", text(images), "-o", text(out), "--model", "null"];
    args.extend(ROWS);
    args.extend(part.into_iter().flat_map(|part| ["--shard", part]));
    args
}

fn ended(child: Child) -> Option<i32> {
    child.wait_with_output().expect("the program's end").status.code()
}

#[test]
fn parts_that_run_at_once_make_the_output_of_one_process() {
    let folder = tempfile::tempdir().expect("folder");
    let images = folder.path().join("images");
    write_folder(&images, 170, 20, 81);
    let (whole, shared) = (folder.path().join("whole"), folder.path().join("shared"));
    expect(3, &args(&images, &whole, None));
    let parts = ["1/3", "2/3", "3/3"];
    let running: Vec<Child> = parts.iter().map(|part| start(&args(&images, &shared, Some(part)))).collect();
    let codes: Vec<_> = running.into_iter().map(ended).collect();
    // A part that has no failed row of its own ends with 0 unless it is the one that completes the job.
    assert!(codes.iter().all(|code| matches!(code, Some(0 | 3))), "{codes:?}");
    assert!(shared.join("_SUCCESS").exists(), "the last part completes the job");
    assert_same_content(&whole, &shared);
    expect(0, &["verify", text(&shared)]);
    assert_eq!(count(&shared, "SELECT count(*) FROM captions"), count(&whole, "SELECT count(*) FROM captions"));
    // Every part again, and the whole without parts, find nothing to do.
    for part in [None, Some("2/3"), Some("1/5")] {
        expect(3, &args(&images, &shared, part));
    }
    assert_same_content(&whole, &shared);
}

#[test]
fn parts_one_after_the_other_with_kills_in_between() {
    let folder = tempfile::tempdir().expect("folder");
    let images = folder.path().join("images");
    write_folder(&images, long_or(2_000, 200), 0, 82);
    let (whole, shared) = (folder.path().join("whole"), folder.path().join("shared"));
    expect(0, &args(&images, &whole, None));
    let mut random = Random::new(83);
    for _ in 0..long_or(20, 4) {
        let running = ["1/2", "2/2"].map(|part| start(&args(&images, &shared, Some(part))));
        sleep(Duration::from_millis(50 + random.below(400)));
        for mut child in running {
            child.kill().ok();
            child.wait().expect("the program's end");
        }
    }
    expect(0, &args(&images, &shared, Some("1/2")));
    // What is left may be done by any number of processes, this time by one.
    expect(0, &args(&images, &shared, None));
    assert_same_content(&whole, &shared);
    expect(0, &["verify", text(&shared)]);
}

#[test]
fn a_part_that_ends_first_says_what_is_left() {
    let folder = tempfile::tempdir().expect("folder");
    let (images, out) = (folder.path().join("images"), folder.path().join("out"));
    write_folder(&images, 64, 0, 84);
    let said = complaint(0, &args(&images, &out, Some("2/2")));
    assert!(said.contains("part 2/2 is done; 2 shards of other parts are left"), "{said}");
    assert!(!out.join("_SUCCESS").exists());
    let not_yet = complaint(1, &["retry", text(&out)]);
    assert!(not_yet.contains("not complete"), "{not_yet}");
    for wrong in ["0/2", "3/2", "two", "1/0", "/", "1"] {
        let said = complaint(2, &args(&images, &out, Some(wrong)));
        assert!(said.contains("--shard") && said.contains("k/n"), "{said}");
    }
    expect(0, &args(&images, &out, Some("1/2")));
    expect(0, &["verify", text(&out)]);
}

#[test]
fn parts_extend_an_output_together() {
    let folder = tempfile::tempdir().expect("folder");
    let images = folder.path().join("images");
    write_folder(&images.join("a"), 40, 0, 85);
    let (whole, shared) = (folder.path().join("whole"), folder.path().join("shared"));
    expect(0, &args(&images, &whole, None));
    expect(0, &args(&images, &shared, None));
    let before = crate::program::content(&shared);
    write_folder(&images.join("b"), 60, 0, 86);
    let extended = |out, part| {
        let mut args = args(&images, out, part);
        args.push("--extend");
        args.into_iter().map(ToOwned::to_owned).collect::<Vec<String>>()
    };
    let refs = |args: &[String]| start(&args.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(ended(refs(&extended(&whole, None))), Some(0));
    let running = ["1/2", "2/2"].map(|part| refs(&extended(&shared, Some(part))));
    for child in running {
        assert_eq!(ended(child), Some(0));
    }
    assert!(shared.join("_SUCCESS").exists());
    assert_same_content(&whole, &shared);
    let after = crate::program::content(&shared);
    for (name, bytes) in before {
        assert!(after.contains(&(name.clone(), bytes)), "{name} was rewritten");
    }
    expect(0, &["verify", text(&shared)]);
}
