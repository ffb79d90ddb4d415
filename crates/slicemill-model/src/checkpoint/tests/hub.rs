//! Fetching, against a hub on this machine.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::super::{HubOptions, Located, Weights, locate, locate_tower};
use super::server::{COMMIT, Hub, REPO, Trick};
use super::{index, put, ramp, safetensors};

const FIRST: &str = "model-00001-of-00002.safetensors";
const SECOND: &str = "model-00002-of-00002.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Bytes of the tensor `b`, more than a step of the progress.
const LONG: usize = 700_000;

fn sharded() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("config.json", b"{}".to_vec()),
        ("generation_config.json", b"{ }".to_vec()),
        ("tokenizer.json", b"{   }".to_vec()),
        ("tokenizer_config.json", b"{    }".to_vec()),
        ("chat_template.jinja", b"{{ x }}".to_vec()),
        (INDEX, index(&[("a", FIRST), ("b", SECOND)]).into_bytes()),
        (FIRST, safetensors(&[("a", &[2, 3])])),
        (SECOND, safetensors(&[("b", &[LONG])])),
        ("README.md", b"not needed".to_vec()),
        ("modeling.py", b"not needed".to_vec()),
        ("pytorch_model.bin", b"not needed".to_vec()),
        ("tf_model.h5", b"not needed".to_vec()),
        ("onnx/model.onnx", b"not needed".to_vec()),
    ]
}

fn fetched(options: &HubOptions) -> Result<Located, String> {
    locate(REPO, options, &|_, _, _| {}).map_err(|e| e.to_string())
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn read_back(dir: &Path) {
    let weights = Weights::open(dir).unwrap();
    assert_eq!(weights.values("a").unwrap(), ramp(&[2, 3]));
    assert_eq!(weights.values("b").unwrap(), ramp(&[LONG]));
}

#[test]
fn what_is_needed_arrives_in_the_shared_layout_and_nothing_else() {
    let (hub, cache) = (Hub::new(&sharded()), tempfile::tempdir().unwrap());
    hub.state.lock().unwrap().tokens = vec!["secret".to_owned()];
    let options = HubOptions { token: Some("secret".to_owned()), ..hub.options(cache.path()) };
    let progress: Mutex<BTreeMap<String, Vec<(u64, u64)>>> = Mutex::default();
    let tell = |name: &str, done, all| progress.lock().unwrap().entry(name.to_owned()).or_default().push((done, all));
    let found = locate(REPO, &options, &tell).unwrap();

    let folder = cache.path().join("models--org--name");
    assert_eq!(found.dir, folder.join("snapshots").join(COMMIT));
    assert_eq!(found.source, Some((REPO.to_owned(), COMMIT.to_owned())));
    assert_eq!(std::fs::read_to_string(folder.join("refs/main")).unwrap(), COMMIT);
    let mut expected: Vec<_> = sharded().into_iter().map(|(name, _)| name).take(8).collect();
    expected.sort_unstable();
    assert_eq!(names(&found.dir), expected);
    assert_eq!(names(&folder.join("blobs")).len(), expected.len());
    assert!(std::fs::read_link(found.dir.join(FIRST)).unwrap().starts_with("../../blobs"));
    read_back(&found.dir);
    assert!(!hub.state.lock().unwrap().leaked, "the token stays with the hub");

    let progress = progress.into_inner().unwrap();
    let second = &progress[SECOND];
    let size = std::fs::metadata(found.dir.join(SECOND)).unwrap().len();
    assert_eq!((second[0], *second.last().unwrap()), ((0, size), (size, size)));
    assert!(second.len() >= 3 && second.is_sorted(), "{second:?}");
    assert_eq!(progress.len(), expected.len());

    hub.asked("");
    assert_eq!(fetched(&options).unwrap(), found);
    assert_eq!(hub.asked(""), Vec::<String>::new(), "a complete snapshot needs no hub");
    assert_eq!(fetched(&HubOptions { offline: true, ..options }).unwrap(), found);
}

#[test]
fn a_connection_that_is_cut_goes_on_where_it_ended() {
    let (hub, cache) = (Hub::new(&sharded()), tempfile::tempdir().unwrap());
    let cuts = [1_000_000, 0, 100, 200_000, 0].map(Trick::Cut);
    hub.tricks(SECOND, &cuts);
    let found = fetched(&hub.options(cache.path())).unwrap();
    read_back(&found.dir);
    let asked = hub.asked(&format!("GET /store/{SECOND}"));
    let starts: Vec<_> = asked.iter().map(|line| line.rsplit(' ').next().unwrap()).collect();
    assert_eq!(starts[1..], ["1000000", "1000000", "1000100", "1200100", "1200100"], "{asked:?}");
}

#[test]
fn a_fetch_that_gave_up_is_resumed_by_the_next_run() {
    let (hub, cache) = (Hub::new(&sharded()), tempfile::tempdir().unwrap());
    hub.tricks(SECOND, &[Trick::Cut(500_000), Trick::Cut(0), Trick::Refuse(503), Trick::Cut(0)]);
    let options = hub.options(cache.path());
    let error = fetched(&options).unwrap_err();
    assert!(error.contains(SECOND) && error.contains("503") && error.contains("try again later"), "{error}");
    let offline = fetched(&HubOptions { offline: true, ..options.clone() }).unwrap_err();
    assert!(offline.contains(&format!("lacks {SECOND}")) && offline.contains("HF_HUB_OFFLINE"), "{offline}");
    hub.asked("");
    hub.tricks(SECOND, &[]);
    read_back(&fetched(&options).unwrap().dir);
    let asked = hub.asked("");
    assert!(asked.iter().any(|line| line.ends_with(&format!("{SECOND} from 500000"))), "{asked:?}");
    assert!(!asked.iter().any(|line| line.contains(FIRST)), "what is there is not asked for again: {asked:?}");
}

#[test]
fn a_server_that_ignores_ranges_and_bytes_that_are_wrong_are_noticed() {
    let (hub, cache) = (Hub::new(&sharded()), tempfile::tempdir().unwrap());
    hub.tricks(SECOND, &[Trick::Cut(400_000), Trick::Other, Trick::Whole]);
    hub.tricks(FIRST, &[Trick::Spoil]);
    read_back(&fetched(&hub.options(cache.path())).unwrap().dir);
    let store = |file: &str| format!("GET /store/{file}");
    let asked = hub.asked("GET /store");
    assert_eq!(asked.iter().filter(|line| **line == store(FIRST)).count(), 2);
    let again = format!("{} from 400000", store(SECOND));
    let second: Vec<_> = asked.iter().filter(|line| line.starts_with(&store(SECOND))).collect();
    assert_eq!(second, [&store(SECOND), &again, &again], "no bytes are asked for twice");

    let cache = tempfile::tempdir().unwrap();
    hub.tricks(FIRST, &[Trick::Spoil; 9]);
    let error = fetched(&hub.options(cache.path())).unwrap_err();
    assert!(error.contains(FIRST) && error.contains("SHA-256"), "{error}");
    let blobs = names(&cache.path().join("models--org--name/blobs"));
    assert!(blobs.iter().all(|name| !name.ends_with(".incomplete")), "{blobs:?}");
}

#[test]
fn a_partial_file_of_an_earlier_version_or_of_too_many_bytes_is_redone() {
    let (hub, cache) = (Hub::new(&sharded()), tempfile::tempdir().unwrap());
    let options = hub.options(cache.path());
    let blobs = cache.path().join("models--org--name/blobs");
    let etag = super::super::fingerprint::hex(&<sha2::Sha256 as sha2::Digest>::digest(&sharded()[7].1));
    put(&blobs, &format!("{etag}.incomplete"), vec![1; 3_000_000]);
    read_back(&fetched(&options).unwrap().dir);
    std::fs::remove_dir_all(cache.path()).unwrap();
    put(&blobs, &format!("{etag}.incomplete"), vec![1; 1000]);
    read_back(&fetched(&options).unwrap().dir);
}

#[test]
fn a_stalled_connection_is_given_up() {
    let (hub, cache) = (Hub::new(&sharded()), tempfile::tempdir().unwrap());
    hub.tricks(FIRST, &[Trick::Stall(Duration::from_secs(20))]);
    let start = Instant::now();
    let options = HubOptions { timeout: Duration::from_millis(300), ..hub.options(cache.path()) };
    read_back(&fetched(&options).unwrap().dir);
    assert_eq!(hub.asked(&format!("GET /store/{FIRST}")).len(), 2);
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
}

#[test]
fn a_snapshot_that_another_client_began_is_completed() {
    let (hub, cache) = (Hub::new(&sharded()), tempfile::tempdir().unwrap());
    let folder = cache.path().join("models--org--name");
    let snapshot = folder.join("snapshots").join(COMMIT);
    put(&folder, "refs/main", COMMIT);
    put(&snapshot, "config.json", "{}");
    put(&snapshot, INDEX, index(&[("a", FIRST), ("b", SECOND)]));
    put(&snapshot, FIRST, safetensors(&[("a", &[2, 3])]));
    #[cfg(unix)]
    std::os::unix::fs::symlink("../../blobs/gone", snapshot.join(SECOND)).unwrap();
    read_back(&fetched(&hub.options(cache.path())).unwrap().dir);
    assert!(hub.asked(FIRST).is_empty());
    assert!(snapshot.join("tokenizer.json").is_file());
}

#[test]
fn a_commit_that_is_gone_gives_way_to_the_branch() {
    let (hub, cache) = (Hub::new(&sharded()), tempfile::tempdir().unwrap());
    let folder = cache.path().join("models--org--name");
    let gone = COMMIT.replace('0', "f");
    put(&folder, "refs/main", &gone);
    put(&folder.join("snapshots").join(gone), "config.json", "{}");
    assert!(fetched(&hub.options(cache.path())).unwrap().dir.ends_with(COMMIT));
}

#[test]
fn revisions_and_other_arrangements_of_weights() {
    let single = safetensors(&[("a", &[1])]);
    let files = [
        ("config.json", b"{}".to_vec()),
        ("tokenizer.model", b"x".to_vec()),
        ("model.safetensors", single.clone()),
        ("mm_projector.bin", b"y".to_vec()),
        ("model-q4.gguf", b"z".to_vec()),
    ];
    let (hub, cache) = (Hub::new(&files), tempfile::tempdir().unwrap());
    let options = hub.options(cache.path());
    let get = |model: &str| locate(model, &options, &|_, _, _| {}).map_err(|e| e.to_string());
    let found = get(&format!("{REPO}@refs/pr/1")).unwrap();
    assert_eq!(names(&found.dir), ["config.json", "mm_projector.bin", "model.safetensors", "tokenizer.model"]);
    assert_eq!(get(&format!("{REPO}@{COMMIT}")).unwrap(), found);
    assert_eq!(std::fs::read_to_string(cache.path().join("models--org--name/refs/refs/pr/1")).unwrap(), COMMIT);
    let error = get(&format!("{REPO}@v9")).unwrap_err();
    assert!(error.contains("no revision v9"), "{error}");

    hub.state.lock().unwrap().files.remove("model.safetensors");
    let other = tempfile::tempdir().unwrap();
    let error = fetched(&hub.options(other.path())).unwrap_err();
    assert!(error.contains("model-q4.gguf") && error.contains("mm_projector.bin"), "{error}");

    hub.state.lock().unwrap().files.insert("pytorch_model.bin".to_owned(), b"torch".to_vec());
    let found = locate_tower(REPO, other.path(), &hub.options(other.path()), &|_, _, _| {}).unwrap();
    assert_eq!(names(&found.dir), ["config.json", "pytorch_model.bin"], "a tower needs no more");
}

#[test]
fn refusals_say_what_helps() {
    let (hub, cache) = (Hub::new(&sharded()), tempfile::tempdir().unwrap());
    let options = hub.options(cache.path());
    let refused = |model: &str, options: &HubOptions, parts: &[&str]| {
        let error = locate(model, options, &|_, _, _| {}).unwrap_err().to_string();
        for part in parts.iter().chain(&[model]) {
            assert!(error.contains(part), "{part:?} is not in: {error}");
        }
    };
    refused("org/unknown", &options, &["404", "check the name", "models--org--unknown"]);
    hub.state.lock().unwrap().tokens = vec!["secret".to_owned()];
    hub.state.lock().unwrap().refusal = (401, "RepoNotFound");
    refused(REPO, &options, &["401", "not for you", "does not exist, or it is private or gated", "HF_TOKEN"]);
    hub.state.lock().unwrap().refusal = (401, "GatedRepo");
    refused(REPO, &options, &["is gated and without a token", "HF_TOKEN"]);
    hub.state.lock().unwrap().refusal = (403, "GatedRepo");
    let with = HubOptions { token: Some("other".to_owned()), ..options.clone() };
    refused(REPO, &with, &["403", "the token that was given is not let in", "ask for access"]);
    drop(hub);
    refused(REPO, &options, &["could not be fetched", "HF_ENDPOINT", "give its directory"]);
}

#[cfg(unix)]
#[test]
fn a_cache_that_cannot_be_written_is_named() {
    let (hub, cache) = (Hub::new(&sharded()), tempfile::tempdir().unwrap());
    put(cache.path(), "file", "");
    let error = fetched(&hub.options(&cache.path().join("file"))).unwrap_err();
    assert!(error.contains("cannot be written") && error.contains("HF_HUB_CACHE"), "{error}");
}

#[test]
fn processes_that_fetch_the_same_wait_for_each_other() {
    let (hub, cache) = (Hub::new(&sharded()), tempfile::tempdir().unwrap());
    let options = hub.options(cache.path());
    let found: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| fetched(&options).unwrap())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    read_back(&found[0].dir);
    assert_eq!(hub.asked(&format!("GET /store/{SECOND}")).len(), 1);
}
