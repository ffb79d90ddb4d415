//! Tidiness: what a reviewer would otherwise say each time.

use std::fs;
use std::path::{Path, PathBuf};

const LINES_MAX: usize = 600;

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// All files under `folder` whose name ends in `suffix`, without build outputs.
fn files(folder: &Path, suffix: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
            let path = entry.expect("entry").path();
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
            if path.is_dir() {
                if !name.starts_with('.') && name != "target" {
                    folders.push(path);
                }
            } else if name.ends_with(suffix) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn sources() -> Vec<PathBuf> {
    ["crates", "tests", "examples"].iter().flat_map(|folder| files(&root().join(folder), ".rs")).collect()
}

#[test]
fn every_module_says_what_it_is() {
    for path in sources() {
        let text = fs::read_to_string(&path).expect("utf-8");
        let documented = text.lines().any(|line| line.starts_with("//!"));
        assert!(documented, "{} has no module documentation (//!)", path.display());
    }
}

#[test]
fn files_are_short() {
    for path in sources().into_iter().chain(files(&root().join("tests/reference"), ".py")) {
        let lines = fs::read_to_string(&path).expect("utf-8").lines().count();
        assert!(
            lines <= LINES_MAX,
            "{} has {lines} lines, more than {LINES_MAX}: split it by what it is about",
            path.display()
        );
    }
}

#[test]
fn no_vague_module_names() {
    for path in sources() {
        let stem = path.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
        for vague in ["utils", "util", "helpers", "helper", "manager", "misc", "common"] {
            assert_ne!(stem, vague, "{}: name the module by the noun it is about", path.display());
        }
    }
}

#[test]
fn every_package_inherits_the_lints() {
    for path in files(&root().join("crates"), "Cargo.toml") {
        let manifest: toml::Table = fs::read_to_string(&path).expect("utf-8").parse().expect("TOML");
        let inherited = manifest.get("lints").and_then(|l| l.get("workspace")).and_then(toml::Value::as_bool);
        assert_eq!(inherited, Some(true), "{}: add [lints] workspace = true", path.display());
    }
}

#[test]
fn every_pipeline_is_toml_with_a_task() {
    let jobs = files(&root().join("pipelines"), ".toml");
    assert!(jobs.len() >= 3, "pipelines/ holds a job for each task");
    for path in jobs {
        let job: toml::Table = fs::read_to_string(&path).expect("utf-8").parse().expect("TOML");
        assert!(job.contains_key("task"), "{} has no task", path.display());
    }
}

#[test]
fn large_files_stay_out_of_the_repository() {
    for folder in ["crates", "tests", "examples", "pipelines"] {
        for path in files(&root().join(folder), "") {
            let bytes = fs::metadata(&path).expect("metadata").len();
            assert!(bytes <= 16 << 20, "{} has {bytes} bytes; data that a test can make is not kept", path.display());
        }
    }
}
