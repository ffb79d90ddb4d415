//! Runs the program as a person would.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// The repository.
pub fn root() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// The program with `args`, quiet about progress.
pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_slicemill"));
    command.args(args).args(["--progress", "off"]).current_dir(root()).stdin(Stdio::null());
    command
}

/// Runs the program to its end.
pub fn run(args: &[&str]) -> Output {
    command(args).output().expect("the program starts")
}

/// Runs the program, which must end with `code`; its standard output.
pub fn expect(code: i32, args: &[&str]) -> String {
    let output = run(args);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "slicemill {}\n{out}\n{err}", args.join(" "));
    out.into_owned()
}

/// Runs the program, which must end with `code`; its standard error.
pub fn complaint(code: i32, args: &[&str]) -> String {
    let output = run(args);
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "slicemill {}\n{err}", args.join(" "));
    err
}

/// Starts the program and leaves it running, its output thrown away.
pub fn start(args: &[&str]) -> Child {
    command(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the program starts")
}

/// The program with `args` and these variables in its environment, and none that could lead it to another store.
pub fn command_in(env: &[(String, String)], args: &[&str]) -> Command {
    let mut command = command(args);
    for other in ["AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION", "HTTP_PROXY", "http_proxy", "ALL_PROXY"] {
        command.env_remove(other);
    }
    command.envs(env.iter().map(|(name, value)| (name, value)));
    command
}

/// Runs the program with variables in its environment; it must end with `code`. Standard output and standard error.
pub fn expect_in(env: &[(String, String)], code: i32, args: &[&str]) -> (String, String) {
    let output = command_in(env, args).output().expect("the program starts");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "slicemill {}\n{out}\n{err}", args.join(" "));
    (out.into_owned(), err.into_owned())
}

/// Starts the program with variables in its environment and leaves it running, its output thrown away.
pub fn start_in(env: &[(String, String)], args: &[&str]) -> Child {
    command_in(env, args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the program starts")
}

/// A path as text.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}

/// Rows of a query over an output, as JSON.
pub fn sql(out: &Path, query: &str) -> Vec<serde_json::Value> {
    let printed = expect(0, &["sql", text(out), query, "--format", "json"]);
    serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}"))
}

/// The one number of a query over an output.
pub fn count(out: &Path, query: &str) -> u64 {
    let rows = sql(out, query);
    let value = rows.first().and_then(|row| row.as_object()).and_then(|row| row.values().next());
    value.and_then(serde_json::Value::as_u64).unwrap_or_else(|| panic!("no count in {rows:?}"))
}

/// Names and bytes of the content files of an output, in order of their names.
pub fn content(out: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    for dataset in ["captions", "answers", "tokens", "failed", "skipped"] {
        let Ok(entries) = std::fs::read_dir(out.join(dataset)) else { continue };
        for entry in entries {
            let path = entry.expect("entry").path();
            let name = path.file_name().and_then(|n| n.to_str()).expect("name").to_owned();
            files.push((format!("{dataset}/{name}"), std::fs::read(&path).expect("readable")));
        }
    }
    files.sort();
    files
}

/// Two outputs hold the same content, byte for byte.
pub fn assert_same_content(one: &Path, other: &Path) {
    assert_same_files(&content(one), &content(other));
}

/// The content files of two outputs are the same, byte for byte.
pub fn assert_same_files(one: &[(String, Vec<u8>)], other: &[(String, Vec<u8>)]) {
    let names = |files: &[(String, Vec<u8>)]| files.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(one), names(other));
    assert!(!one.is_empty(), "there is content to compare");
    for ((name, a), (_, b)) in one.iter().zip(other) {
        assert!(a == b, "{name} differs: {} and {} bytes", a.len(), b.len());
    }
}

/// A size of a test, larger in its long form: `SLICEMILL_LONG=1 cargo test --release --workspace`.
pub fn long_or(long: u64, short: u64) -> u64 {
    #[allow(clippy::disallowed_methods, reason = "the long form of a test is asked for by the environment")]
    let asked = std::env::var_os("SLICEMILL_LONG").is_some();
    if asked { long } else { short }
}
