//! The fault table: stores that are busy, slow, broken, full or refuse; processes that are killed; two processes on one
//! output. Each case ends with the content of a run without faults, and each fault is proven to have been made.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::fixtures::{Random, write_folder};
use crate::program::{
    assert_same_content, assert_same_files, command_in, content, expect, expect_in, long_or, run, start_in, text,
};
use crate::servers::plan::{Fault, Plan, Rule};
use crate::servers::proxy::Proxy;
use crate::servers::s3::S3Server;

/// How a run under a fault ends.
enum End {
    /// With all rows.
    Completes,
    /// With a message that holds one of these words, and the next run completes.
    StopsSaying(&'static [&'static str]),
}

struct Case {
    name: &'static str,
    rules: Vec<Rule>,
    end: End,
    options: &'static [&'static str],
}

impl Case {
    fn new(name: &'static str, rules: impl IntoIterator<Item = Rule>) -> Self {
        Self { name, rules: rules.into_iter().collect(), end: End::Completes, options: &[] }
    }

    fn stops_saying(self, words: &'static [&'static str]) -> Self {
        Self { end: End::StopsSaying(words), ..self }
    }

    fn with(self, options: &'static [&'static str]) -> Self {
        Self { options, ..self }
    }
}

const GET: &[&str] = &["GET"];
const PUT: &[&str] = &["PUT"];

/// Retries that end soon, for cases in which the store never gives in.
const FEW_TRIES: &[&str] = &["--store-option", "retry_attempts=2"];

fn answers(status: u16, retry_after: Option<u64>) -> Rule {
    Rule::of(Fault::Status { status, retry_after })
}

fn table() -> Vec<Case> {
    vec![
        Case::new("a storm of 503", [answers(503, None).skip(10).share(0.6).times(60)]),
        Case::new("503 that says how long to wait", [answers(503, Some(1)).skip(10).times(4)]),
        Case::new("429", [answers(429, None).skip(10).share(0.5).times(30)]),
        Case::new("500 for deletions", [answers(500, None).on(&["DELETE", "POST"]).times(3)]),
        Case::new("no answer", [Rule::of(Fault::StallHead(4_000)).on(GET).skip(10).times(4)])
            .with(&["--store-option", "answer_timeout=1"]),
        Case::new("stalled bodies", [Rule::of(Fault::StallBody(100, 4_000)).on(GET).skip(10).times(4)])
            .with(&["--store-option", "stall_timeout=1"]),
        Case::new("resets before the request is seen", [Rule::of(Fault::ResetBefore).share(0.1)]),
        Case::new("resets after it is done", [Rule::of(Fault::ResetAfter).share(0.1)]),
        Case::new("resets within bodies", [Rule::of(Fault::ResetBody(64)).on(GET).share(0.2)]),
        Case::new("partial bodies", [Rule::of(Fault::CutBody(64)).on(GET).share(0.2)]),
        Case::new("wrong ranges", [Rule::of(Fault::WrongRange).on(GET).times(6)]),
        Case::new("ranges that are ignored", [Rule::of(Fault::RangeIgnored).on(GET).times(6)]),
        Case::new("a write reported failed that was done", [Rule::of(Fault::DoneButFailed).on(PUT).share(0.4)]),
        Case::new("a write without an answer", [Rule::of(Fault::DoneButClosed).on(PUT).share(0.4)]),
        Case::new("a write that ends in a reset", [Rule::of(Fault::ResetAfter).on(PUT).share(0.4)]),
        Case::new("writes refused", [answers(403, None).on(PUT).path("/captions/")])
            .stops_saying(&["denied", "refused", "not allowed", "403"])
            .with(FEW_TRIES),
        Case::new("a store that is full", [answers(507, None).on(PUT).path("/captions/")])
            .stops_saying(&["full", "storage", "507"])
            .with(FEW_TRIES),
        Case::new("ledger entries refused", [answers(403, None).on(PUT).path("/ledger/").skip(1)])
            .stops_saying(&["denied", "refused", "not allowed", "403"])
            .with(FEW_TRIES),
    ]
}

/// An S3 server with images in a prefix and in a tar, behind a proxy.
struct Scene {
    server: S3Server,
    proxy: Proxy,
    /// Rows of a chunk; a shard has four.
    chunk_rows: u64,
}

impl Scene {
    /// `count` images, half of them members of tars, so that there are reads of whole objects and of ranges.
    fn make(count: u64, broken_every: u64, seed: u64) -> Self {
        let server = S3Server::start();
        let proxy = Proxy::start(&server.endpoint(), server.root());
        write_folder(&server.bucket().join("in/images"), count / 2, broken_every, seed);
        // The server hashes all of an object whenever a range of it is read: small tars keep that from being the test.
        let members = (count - count / 2).min(64);
        for number in 0..(count - count / 2).div_ceil(members) {
            let folder = tempfile::tempdir().expect("folder");
            write_folder(folder.path(), members, broken_every, seed + 1 + number);
            let to = server.bucket().join(format!("in/more-{number:03}.tar"));
            let mut tar = tar::Builder::new(fs::File::create(to).expect("a tar"));
            tar.append_dir_all("more", folder.path()).expect("members");
            tar.finish().expect("the end of a tar");
        }
        Self { server, proxy, chunk_rows: 8 }
    }

    fn args(&self, out: &str, options: &[&str]) -> Vec<String> {
        let inputs = [self.server.url("in/images/"), self.server.url("in/more-*.tar")];
        let out = self.server.url(out);
        let rows = [self.chunk_rows, self.chunk_rows * 4].map(|rows| rows.to_string());
        let args = ["caption", &inputs[0], &inputs[1], "-o", &out, "--chunk-rows", &rows[0], "--shard-rows", &rows[1]];
        args.iter().chain(options).map(|arg| (*arg).to_owned()).collect()
    }

    fn files(&self, out: &str) -> Vec<(String, Vec<u8>)> {
        content(&self.server.bucket().join(out))
    }

    fn through_proxy(&self) -> Vec<(String, String)> {
        self.proxy.env(&self.server.env())
    }

    fn fired(&self, case: &Case) -> Vec<u64> {
        let fired = self.proxy.fired();
        case.rules.iter().map(|rule| fired.get(rule.fault().kind()).copied().unwrap_or(0)).collect()
    }

    /// Runs a case into its own output and compares it with the run without faults.
    fn check(&self, case: &Case, out: &str, clean: &[(String, Vec<u8>)]) {
        let name = case.name;
        let mut options = MODEL.to_vec();
        options.extend(case.options);
        let args = self.args(out, &options);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let before = self.fired(case);
        self.proxy.set(Plan::new(17, case.rules.clone()));
        let begun = Instant::now();
        match case.end {
            End::Completes => drop(expect_in(&self.through_proxy(), 0, &args)),
            End::StopsSaying(words) => {
                let (_, said) = expect_in(&self.through_proxy(), 1, &args);
                assert!(
                    words.iter().any(|word| said.to_lowercase().contains(word)),
                    "{name}: none of {words:?} in {said}"
                );
                assert!(!said.contains("wJalrXUtnFEMI"), "{name}: the secret is in {said}");
                assert!(!self.server.bucket().join(out).join("_SUCCESS").exists(), "{name}: it says that it is done");
                self.proxy.set(Plan::none());
                expect_in(&self.through_proxy(), 0, &args);
            }
        }
        let fired = self.fired(case);
        println!("{name}: {:.1} s, faults {fired:?} after {before:?}", begun.elapsed().as_secs_f64());
        assert!(fired.iter().zip(&before).all(|(now, before)| now > before), "{name}: the fault was not made");
        self.proxy.set(Plan::none());
        expect_in(&self.server.env(), 0, &["verify", &self.server.url(out)]);
        assert_same_files(clean, &self.files(out));
    }
}

const MODEL: &[&str] = &["--max-new-tokens", "6"];
const NULL: &[&str] = &["--model", "null"];

#[test]
fn every_fault_of_a_store_leaves_the_content_of_a_run_without_faults() {
    let scene = Scene::make(long_or(400, 48), 0, 60);
    let args = scene.args("clean", MODEL);
    expect_in(&scene.through_proxy(), 0, &args.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(scene.proxy.fired().is_empty() && scene.proxy.requests() > 0, "the run without faults is without faults");
    let clean = scene.files("clean");
    for (index, case) in table().iter().enumerate() {
        scene.check(case, &format!("case-{index:02}"), &clean);
    }
}

/// A store that answers a fifth of all requests with 503 and cuts a twentieth of all bodies.
#[test]
fn a_store_that_is_busy_and_cuts_bodies_is_read_and_written_whole() {
    let scene = Scene { chunk_rows: long_or(64, 8), ..Scene::make(long_or(5_000, 160), 0, 62) };
    let time = |out: &str| {
        let args = scene.args(out, NULL);
        let begun = Instant::now();
        expect_in(&scene.through_proxy(), 0, &args.iter().map(String::as_str).collect::<Vec<_>>());
        begun.elapsed().as_secs_f64()
    };
    let clean = time("clean");
    let requests = scene.proxy.requests();
    scene.proxy.set(Plan::new(18, [answers(503, None).share(0.2), Rule::of(Fault::CutBody(200)).on(GET).share(0.05)]));
    let busy = time("busy");
    let fired = scene.proxy.fired();
    let rows = long_or(5_000, 160) as f64;
    println!(
        "without faults {:.0} rows/s, {requests} requests; busy {:.0} rows/s, {} requests, faults {fired:?}, {} at once",
        rows / clean,
        rows / busy,
        scene.proxy.requests() - requests,
        scene.proxy.most_at_once()
    );
    assert!(fired.get("503").is_some_and(|count| *count > 20), "{fired:?}");
    assert!(fired.get("cut_body").is_some_and(|count| *count > 2), "{fired:?}");
    scene.proxy.set(Plan::none());
    expect_in(&scene.server.env(), 0, &["verify", &scene.server.url("busy")]);
    assert_same_files(&scene.files("clean"), &scene.files("busy"));
}

#[test]
fn runs_into_a_store_that_are_killed_resume_to_the_same_content() {
    let kills = long_or(200, 5);
    let scene = Scene::make(long_or(4_000, 240), 20, 64);
    let env = scene.server.env();
    let args = |out: &str| scene.args(out, NULL);
    let run = |args: &[String]| expect_in(&env, 3, &args.iter().map(String::as_str).collect::<Vec<_>>());
    let committed = |out: &str| scene.server.bucket().join(out).join("_slicemill/ledger").exists();
    let begun = Instant::now();
    let mut clean = start_in(&env, &args("clean").iter().map(String::as_str).collect::<Vec<_>>());
    while !committed("clean") && begun.elapsed() < Duration::from_secs(120) {
        sleep(Duration::from_millis(5));
    }
    let before_work = begun.elapsed();
    assert_eq!(clean.wait().expect("the program's end").code(), Some(3));
    let work = begun.elapsed() - before_work;
    let mut random = Random::new(65);
    let (mut fired, mut amid) = (0, 0);
    let killed = args("killed");
    for _ in 0..kills {
        let mut child = start_in(&env, &killed.iter().map(String::as_str).collect::<Vec<_>>());
        // Every run gets as far as its work; all the work together takes about four fifths of an undisturbed run's.
        let share = random.below(1000) as f64 / 1000.0 * 1.6 / kills as f64;
        sleep(before_work + work.mul_f64(share));
        let running = child.try_wait().expect("the program's state").is_none();
        // SIGKILL; a run that has ended already cannot be killed.
        child.kill().ok();
        child.wait().expect("the program's end");
        fired += u64::from(running);
        amid += u64::from(running && committed("killed"));
    }
    println!("{fired} of {kills} kills hit a running program, {amid} came after the first commit");
    // The last of them may come when all is done.
    assert!(fired >= kills / 5, "{fired} of {kills} kills hit a running program");
    assert!(amid > 0, "no kill came after the first commit");
    run(&killed);
    assert_same_files(&scene.files("clean"), &scene.files("killed"));
    expect_in(&env, 0, &["verify", &scene.server.url("killed")]);
}

/// Every change that a run makes to the store is a step of the commit protocol. At each the program is killed twice:
/// before the store has seen the change, and when it is made and not yet answered.
#[test]
fn runs_that_are_killed_at_a_step_of_the_commit_resume_to_the_same_content() {
    const CHANGES: &[&str] = &["PUT", "POST", "DELETE"];
    const LONG: u64 = 120_000;
    let scene = Scene { chunk_rows: 4, ..Scene::make(24, 5, 70) };
    let (env, stride) = (scene.through_proxy(), long_or(1, 5));
    let run = |args: &[String]| expect_in(&env, 3, &args.iter().map(String::as_str).collect::<Vec<_>>());
    run(&scene.args("clean", NULL));
    let clean = scene.files("clean");
    for fault in [Fault::StallBefore(LONG), Fault::StallHead(LONG)] {
        let mut steps = 0;
        for step in (0..).step_by(usize::try_from(stride).expect("small")) {
            let out = format!("{}-{step}", fault.kind());
            let args = scene.args(&out, NULL);
            let count = || scene.proxy.fired().get(fault.kind()).copied().unwrap_or(0);
            let before = count();
            scene.proxy.set(Plan::new(19, [Rule::of(fault).on(CHANGES).path("/slicemill/").skip(step).times(1)]));
            let mut child = start_in(&env, &args.iter().map(String::as_str).collect::<Vec<_>>());
            let ended = loop {
                match child.try_wait().expect("the program's state") {
                    Some(status) => break Some(status),
                    None if count() > before => break None,
                    None => sleep(Duration::from_millis(2)),
                }
            };
            if let Some(status) = ended {
                assert_eq!((status.code(), count()), (Some(3), before), "a run with fewer steps than {step}");
                break;
            }
            child.kill().expect("SIGKILL");
            child.wait().expect("the program's end");
            scene.proxy.set(Plan::none());
            run(&args);
            assert_same_files(&clean, &scene.files(&out));
            expect_in(&env, 0, &["verify", &scene.server.url(&out)]);
            steps += 1;
        }
        println!("{}: killed at {steps} steps, one in {stride}", fault.kind());
        assert!(steps * stride > 30, "{steps} steps");
    }
}

/// Where a store has no locks, one of two processes may find that the other has done its work, and stop.
#[test]
fn two_processes_on_one_output_do_no_harm() {
    let scene = Scene::make(long_or(2_000, 200), 0, 66);
    let env = scene.server.env();
    let args = |out: &str| scene.args(out, NULL);
    expect_in(&env, 0, &args("clean").iter().map(String::as_str).collect::<Vec<_>>());
    let twice = args("twice");
    let twice: Vec<&str> = twice.iter().map(String::as_str).collect();
    let mut first = start_in(&env, &twice);
    let begun = Instant::now();
    let frozen = scene.server.bucket().join("twice/_slicemill/job.json");
    while !frozen.exists() && begun.elapsed() < Duration::from_secs(60) {
        sleep(Duration::from_millis(5));
    }
    assert!(frozen.exists(), "the first process has begun");
    let second = command_in(&env, &twice).output().expect("the program starts");
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    let second = second.status.code();
    let first = first.wait().expect("the program's end").code();
    println!("first {first:?}, second {second:?}: {said}");
    assert!(first == Some(0) || second == Some(0), "first {first:?}, second {second:?}: {said}");
    for code in [first, second] {
        assert!(matches!(code, Some(0 | 1 | 5)), "first {first:?}, second {second:?}: {said}");
    }
    expect_in(&env, 0, &twice);
    expect_in(&env, 0, &["verify", &scene.server.url("twice")]);
    assert_same_files(&scene.files("clean"), &scene.files("twice"));
}

/// A file system of a given size in memory, unmounted when dropped.
struct SmallDisk {
    folder: tempfile::TempDir,
}

impl SmallDisk {
    /// `None` with a message where this user may not mount.
    fn mount(kib: u64) -> Option<Self> {
        let folder = tempfile::tempdir().expect("folder");
        let size = format!("size={kib}k");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "none"]).arg(folder.path()).output();
        match mounted {
            Ok(output) if output.status.success() => Some(Self { folder }),
            Ok(output) => {
                println!("left out: no small disk can be mounted: {}", String::from_utf8_lossy(&output.stderr).trim());
                None
            }
            Err(error) => {
                println!("left out: no small disk can be mounted: {error}");
                None
            }
        }
    }

    fn grow(&self, kib: u64) {
        let size = format!("remount,size={kib}k");
        let grown = Command::new("mount").args(["-o", &size]).arg(self.folder.path()).status().expect("mount runs");
        assert!(grown.success(), "the disk grows");
    }

    fn out(&self) -> PathBuf {
        self.folder.path().join("out")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(self.folder.path()).status().ok();
    }
}

/// Arguments of a run that writes often.
fn into_small_chunks<'a>(images: &'a Path, out: &'a Path) -> [&'a str; 10] {
    ["caption", text(images), "-o", text(out), "--model", "null", "--chunk-rows", "8", "--shard-rows", "64"]
}

/// KiB of all files below a folder, each in whole pages.
fn kib_below(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("entry").path());
    entries.map(|path| if path.is_dir() { kib_below(&path) } else { pages(&path) }).sum()
}

fn pages(path: &Path) -> u64 {
    fs::metadata(path).expect("metadata").len().div_ceil(4096) * 4
}

#[test]
fn a_full_disk_stops_the_run_and_a_larger_one_resumes_it() {
    let folder = tempfile::tempdir().expect("folder");
    let (images, clean) = (folder.path().join("images"), folder.path().join("clean"));
    write_folder(&images, long_or(2_000, 300), 0, 68);
    expect(0, &into_small_chunks(&images, &clean));
    let whole = kib_below(&clean);
    // Full at the beginning, in the middle, and shortly before the end.
    for percent in [15, 50, 90] {
        let Some(disk) = SmallDisk::mount(whole * percent / 100) else { return };
        let out = disk.out();
        let stopped = run(&into_small_chunks(&images, &out));
        let said = String::from_utf8_lossy(&stopped.stderr).into_owned();
        assert_eq!(stopped.status.code(), Some(1), "{percent} % of {whole} KiB: {said}");
        assert!(said.contains("space") || said.contains("full"), "{percent} %: {said}");
        assert!(!out.join("_SUCCESS").exists(), "{percent} %: it says that it is done");
        disk.grow(whole * 10 + 4096);
        expect(0, &into_small_chunks(&images, &out));
        expect(0, &["verify", text(&out)]);
        assert_same_content(&clean, &out);
    }
}
