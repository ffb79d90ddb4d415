//! What people and programs see of a run: limits on failures, counters, the last line of logs, reports.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::Stdio;

use serde_json::Value;

use crate::fixtures::write_folder;
use crate::program::{command, complaint, expect, run, text};

#[test]
fn a_run_that_is_going_wrong_stops_and_can_go_on() {
    let folder = tempfile::tempdir().expect("folder");
    let (images, out) = (folder.path().join("images"), folder.path().join("out"));
    write_folder(&images, 60, 0, 101);
    for index in 0..30 {
        fs::write(images.join(format!("broken-{index:02}.jpg")), "no image").expect("written");
    }
    let args = ["caption", text(&images), "-o", text(&out), "--model", "null", "--chunk-rows", "8"];
    let limited = |limit| args.iter().copied().chain(["--max-failed", limit]).collect::<Vec<_>>();
    let said = complaint(1, &limited("10"));
    assert!(said.contains("more than 10 rows failed") && said.contains("not_an_image"), "{said}");
    assert!(!out.join("_SUCCESS").exists());
    for wrong in ["ten", "-1", "200%"] {
        assert!(complaint(2, &limited(wrong)).contains("--max-failed"));
    }
    expect(3, &limited("30"));
    expect(0, &["verify", text(&out)]);
}

#[test]
fn counters_are_served_while_a_run_goes_and_written_at_its_end() {
    let folder = tempfile::tempdir().expect("folder");
    let (images, out, page) =
        (folder.path().join("images"), folder.path().join("out"), folder.path().join("slicemill.prom"));
    write_folder(&images, 200, 10, 102);
    let args = ["caption", text(&images), "-o", text(&out), "--metrics", "127.0.0.1:0", "--metrics-file", text(&page)];
    let mut child = command(&args).stderr(Stdio::piped()).spawn().expect("the program starts");
    let mut lines = BufReader::new(child.stderr.take().expect("a pipe")).lines().map_while(Result::ok);
    let line = lines.find(|line| line.contains("/metrics")).expect("the address is said");
    let address = line.split("http://").nth(1).and_then(|rest| rest.split('/').next()).expect("an address").to_owned();
    let mut stream = TcpStream::connect(address).expect("connected");
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.0 200") && answer.contains("slicemill_info"), "{answer}");
    lines.for_each(drop);
    assert_eq!(child.wait().expect("the program's end").code(), Some(3));
    let page = fs::read_to_string(page).expect("a page");
    let value = |name: &str| {
        let line = page.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{name} in {page}"));
        line.trim().parse::<f64>().expect("a number")
    };
    assert_eq!(value("slicemill_rows "), value("slicemill_rows_committed "));
    assert!((value("slicemill_run_finished ") - 1.0).abs() < f64::EPSILON);
    let done: f64 = ["ok", "failed", "skipped"]
        .iter()
        .map(|outcome| value(&format!("slicemill_rows_done_total{{outcome=\"{outcome}\"}} ")))
        .sum();
    assert!((done - value("slicemill_rows ")).abs() < f64::EPSILON, "{page}");
    assert!(value("slicemill_busy_seconds_total{stage=\"encode\"} ") > 0.0);
}

#[test]
fn json_logs_end_in_one_line_with_the_result() {
    let folder = tempfile::tempdir().expect("folder");
    let (images, out) = (folder.path().join("images"), folder.path().join("out"));
    write_folder(&images, 20, 5, 103);
    let last = |args: &[&str]| -> Value {
        let output = run(args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let line = said.lines().last().unwrap_or_else(|| panic!("no line of {args:?}"));
        serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
    };
    let args = ["caption", text(&images), "-o", text(&out), "--model", "null", "--log-format", "json"];
    let end = last(&args);
    let field = |name: &str| end["fields"][name].as_u64().unwrap_or_else(|| panic!("{name} in {end}"));
    assert_eq!((end["fields"]["message"].as_str(), field("exit")), (Some("end"), 3));
    assert_eq!(field("rows"), field("ok") + field("failed") + field("skipped"));
    let missing = last(&["caption", "/no/such/folder", "-o", text(&out), "--log-format", "json"]);
    assert_eq!((missing["level"].as_str(), missing["fields"]["exit"].as_u64()), (Some("ERROR"), Some(2)));
}

#[test]
fn a_report_says_where_the_time_went_and_what_failed() {
    let folder = tempfile::tempdir().expect("folder");
    let (images, out) = (folder.path().join("images"), folder.path().join("out"));
    write_folder(&images, 40, 5, 104);
    expect(3, &["caption", text(&images), "-o", text(&out), "--model", "null"]);
    let report = expect(0, &["report", text(&out)]);
    for part in ["fetch    busy", "prepare  busy", "devices  busy", "limit ", "resident", "failed rows by class"] {
        assert!(report.contains(part), "{part} in {report}");
    }
    let report: Value = serde_json::from_str(&expect(0, &["report", text(&out), "--format", "json"])).expect("JSON");
    let run = &report["runs"][0];
    assert!(run["progress"]["prepare_busy"].as_f64().is_some_and(|busy| busy > 0.0), "{run}");
    assert!(run["resident_bytes_peak"].as_u64().is_some_and(|bytes| bytes > 1 << 20), "{run}");
}

/// Trainers of image models read a text file beside each image.
#[test]
fn captions_become_text_files_beside_their_images() {
    let folder = tempfile::tempdir().expect("folder");
    let (images, out) = (folder.path().join("images"), folder.path().join("out"));
    fs::create_dir_all(images.join("a b")).expect("folder");
    for (name, example) in [("a b/50%.jpg", "04.jpg"), ("two.png", "03.png"), ("two.jpg", "09.jpg")] {
        let example = crate::program::root().join(format!("examples/images/scene-{example}"));
        fs::copy(example, images.join(name)).expect("copied");
    }
    expect(0, &["caption", text(&images), "-o", text(&out), "--max-new-tokens", "8"]);
    fs::write(images.join("two.txt"), "written by a person").expect("written");
    let sidecars = |more: &[&str], code| {
        let args = [&["sidecars", text(&out), text(&images), "--format", "json"], more].concat();
        serde_json::from_str::<Value>(&expect(code, &args)).expect("JSON")
    };
    let first = sidecars(&[], 3);
    assert_eq!(
        (&first["written"], &first["kept"], &first["kept_examples"][0]),
        (&1.into(), &2.into(), &"two.jpg".into())
    );
    let caption = |key: &str| {
        let query = format!("SELECT text FROM captions WHERE key = '{key}'");
        crate::program::sql(&out, &query)[0]["text"].as_str().expect("a caption").to_owned()
    };
    let written = |name: &str| fs::read_to_string(images.join(name)).expect("a text");
    assert_eq!(written("a b/50%.txt"), caption("a b/50%.jpg"));
    assert_eq!(written("two.txt"), "written by a person");
    // One of two images of one name is written over the person's text, and says that the other has no file.
    let second = sidecars(&["--replace"], 3);
    assert_eq!((&second["written"], &second["same"], &second["kept"]), (&1.into(), &1.into(), &1.into()));
    assert_eq!(written("two.txt"), caption("two.jpg"));
    sidecars(&["--suffix", ".caption", "--replace"], 3);
    assert!(images.join("a b/50%.caption").is_file());
    let said = complaint(1, &["sidecars", text(&images), text(&images)]);
    assert!(said.contains("holds no job"), "{said}");
}
