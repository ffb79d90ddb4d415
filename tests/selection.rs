//! Choosing inputs and carrying their columns: `--keep`, `--where`, `--sample`, `--limit`, standard input.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::fixtures::write_folder;
use crate::program::{assert_same_content, command, complaint, count, expect, sql, text};

/// A folder of images and a list of them, with a licence for each and the number of its line.
struct Listed {
    folder: tempfile::TempDir,
    names: Vec<String>,
}

impl Listed {
    fn make(images: u64, seed: u64) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        write_folder(&folder.path().join("images"), images, 0, seed);
        let mut names = Vec::new();
        for parent in fs::read_dir(folder.path().join("images")).expect("folder") {
            for file in fs::read_dir(parent.expect("entry").path()).expect("folder") {
                let path = file.expect("entry").path();
                if path.extension().is_some_and(|extension| extension != "txt") {
                    names.push(text(path.strip_prefix(folder.path()).expect("below")).to_owned());
                }
            }
        }
        names.sort();
        let listed = Self { folder, names };
        let line = |(number, name): (usize, &String)| {
            let license = [Value::from("cc0"), Value::from("by"), Value::Null][number % 3].clone();
            format!("{}\n", json!({"path": name, "license": license, "number": number, "score": number as f64 / 2.0}))
        };
        let lines: String = listed.names.iter().enumerate().map(line).collect();
        fs::write(listed.path("list.jsonl"), lines).expect("written");
        listed
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn caption(&self, out: &Path, options: &[&str]) -> String {
        let list = self.path("list.jsonl");
        let mut args = vec!["caption", text(&list), "-o", text(out), "--model", "null", "--chunk-rows", "8"];
        args.extend(options);
        expect(0, &args)
    }
}

#[test]
fn columns_of_the_input_are_carried_with_their_types() {
    let listed = Listed::make(30, 91);
    let out = listed.path("out");
    listed.caption(&out, &["--keep", "license,number,score"]);
    let rows = sql(&out, "SELECT input_license, input_number + 1 AS next, input_score FROM captions ORDER BY key");
    assert_eq!(rows.len(), listed.names.len());
    assert_eq!(rows[3]["input_license"], "cc0");
    assert_eq!((rows[4]["next"].as_i64(), rows[5]["input_score"].as_f64()), (Some(5), Some(2.5)));
    assert!(rows[2]["input_license"].is_null());
    expect(0, &["verify", text(&out)]);
    let missing = complaint(
        2,
        &[
            "caption",
            text(&listed.path("list.jsonl")),
            "-o",
            text(&listed.path("no")),
            "--model",
            "null",
            "--keep",
            "licence",
        ],
    );
    assert!(missing.contains("licence") && missing.contains("license"), "{missing}");
    assert!(!listed.path("no/_slicemill/job.json").exists());
}

#[test]
fn rows_that_a_condition_leaves_out_are_skipped_and_counted() {
    let listed = Listed::make(40, 92);
    let (all, some) = (listed.path("all"), listed.path("some"));
    listed.caption(&all, &["--keep", "license"]);
    let condition = "width >= 200 AND license = 'cc0'";
    listed.caption(&some, &["--keep", "license", "--where", condition]);
    let expected = count(&all, "SELECT count(*) FROM captions WHERE width >= 200 AND input_license = 'cc0'");
    assert!(expected > 0 && expected < listed.names.len() as u64, "{expected}");
    assert_eq!(count(&some, "SELECT count(*) FROM captions"), expected);
    let skipped = sql(&some, "SELECT reason, count(*) AS rows FROM skipped GROUP BY reason");
    assert_eq!(
        skipped,
        [json!({"reason": format!("where: {condition}"), "rows": listed.names.len() as u64 - expected})]
    );
    expect(0, &["verify", text(&some)]);
    // What the plan says is what the run does.
    let list = listed.path("list.jsonl");
    let plan = expect(0, &["plan", text(&list), "--model", "null", "--where", condition, "--format", "json"]);
    let plan: Value = serde_json::from_str(&plan).expect("JSON");
    assert_eq!(
        (plan["images"].as_u64(), plan["skipped"].as_u64()),
        (Some(expected), Some(listed.names.len() as u64 - expected))
    );
    let other = complaint(
        5,
        &["caption", text(&list), "-o", text(&some), "--model", "null", "--chunk-rows", "8", "--keep", "license"],
    );
    assert!(other.contains("select.where"), "{other}");
    for (wrong, said) in [("width >", "--where"), ("size > 3", "size"), ("width", "not true or false")] {
        let no = listed.path("no");
        let error = complaint(2, &["caption", text(&list), "-o", text(&no), "--model", "null", "--where", wrong]);
        assert!(error.contains(said), "{wrong}: {error}");
    }
}

#[test]
fn a_mended_row_is_taken_by_the_condition_that_took_it_before() {
    let listed = Listed::make(9, 95);
    let out = listed.path("out");
    let (list, broken) = (listed.path("list.jsonl"), listed.path(&listed.names[0]));
    let whole = fs::read(&broken).expect("an image");
    fs::write(&broken, "no image").expect("written");
    let args =
        ["caption", text(&list), "-o", text(&out), "--model", "null", "--where", "license = 'cc0' AND width > 1"];
    expect(3, &args);
    assert_eq!(count(&out, "SELECT count(*) FROM failed"), 1);
    fs::write(&broken, whole).expect("written");
    expect(0, &["retry", text(&out)]);
    assert_eq!(count(&out, "SELECT count(*) FROM captions WHERE input_license = 'cc0'"), 3);
    expect(0, &["verify", text(&out)]);
}

#[test]
fn samples_and_limits_take_the_same_rows_every_time() {
    let listed = Listed::make(120, 93);
    let keys = |options: &[&str], name: &str| {
        let out = listed.path(name);
        listed.caption(&out, options);
        let rows = sql(&out, "SELECT key FROM captions ORDER BY key");
        rows.iter().map(|row| row["key"].as_str().expect("a key").to_owned()).collect::<Vec<_>>()
    };
    let (ten, again, thirty) =
        (keys(&["--sample", "10%"], "a"), keys(&["--sample", "0.1"], "b"), keys(&["--sample", "30%"], "c"));
    assert_eq!(ten, again);
    assert!(!ten.is_empty() && ten.len() < thirty.len() && thirty.len() < 80, "{} {}", ten.len(), thirty.len());
    assert!(ten.iter().all(|key| thirty.contains(key)));
    assert_eq!(keys(&["--limit", "7"], "d").len(), 7);
    // More of the same job, later.
    let out = listed.path("d");
    listed.caption(&out, &["--limit", "20", "--extend"]);
    assert_eq!(count(&out, "SELECT count(*) FROM captions"), 20);
    expect(0, &["verify", text(&out)]);
}

#[test]
fn a_list_on_standard_input_is_a_source() {
    let listed = Listed::make(20, 94);
    let captioned = |name: &str, separator: &str| {
        let out = listed.path(name);
        let names: Vec<String> = listed.names.iter().map(|name| text(&listed.path(name)).to_owned()).collect();
        let args = ["caption", "-", "-o", text(&out), "--model", "null"];
        let mut child = command(&args).stdin(Stdio::piped()).spawn().expect("the program starts");
        child.stdin.take().expect("a pipe").write_all(names.join(separator).as_bytes()).expect("written");
        assert_eq!(child.wait().expect("the program's end").code(), Some(0));
        out
    };
    let (lines, zeros) = (captioned("lines", "\n"), captioned("zeros", "\0"));
    assert_eq!(count(&lines, "SELECT count(*) FROM captions"), 20);
    assert_same_content(&lines, &zeros);
    // The same list again finds nothing to do.
    let again = captioned("lines", "\n");
    expect(0, &["verify", text(&again)]);
}
