//! Directories and the cache, without a network.

use std::path::Path;

use super::super::{HubOptions, Located, locate, locate_tower};
use super::{index, put, safetensors};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const OTHER: &str = "89abcdef0123456789abcdef0123456789abcdef";

fn offline(cache: &Path) -> HubOptions {
    HubOptions { offline: true, ..HubOptions::new(cache) }
}

fn found(model: &str, hub: &HubOptions) -> Result<Located, String> {
    locate(model, hub, &|_, _, _| panic!("nothing is fetched")).map_err(|e| e.to_string())
}

fn tower(reference: &str, checkpoint: &Path, hub: &HubOptions) -> Result<Located, String> {
    locate_tower(reference, checkpoint, hub, &|_, _, _| panic!("nothing is fetched")).map_err(|e| e.to_string())
}

fn cached(cache: &Path, repo: &str, commit: &str) -> std::path::PathBuf {
    let folder = cache.join(format!("models--{repo}"));
    put(&folder, "refs/main", commit);
    let snapshot = folder.join("snapshots").join(commit);
    put(&snapshot, "config.json", "{}");
    put(&snapshot, "tokenizer.json", "{}");
    put(&snapshot, "model.safetensors", safetensors(&[("a", &[1])]));
    snapshot
}

#[test]
fn directories_are_used_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let hub = offline(&dir.path().join("cache"));
    let path = dir.path().to_str().unwrap();
    assert_eq!(found(path, &hub).unwrap(), Located { dir: dir.path().to_owned(), source: None });
    put(dir.path(), "model.safetensors", "");
    let error = found(&format!("{path}/model.safetensors"), &hub).unwrap_err();
    assert!(error.contains("is a file; give its directory"), "{error}");
    for model in [&format!("{path}/nowhere"), "nowhere", "~/model"] {
        let error = found(model, &hub).unwrap_err();
        assert!(
            error.starts_with(model) && error.contains("no such directory") && error.contains("org/name"),
            "{error}"
        );
    }
}

#[test]
fn a_folder_of_the_cache_stands_for_its_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let snapshot = cached(dir.path(), "org--name", COMMIT);
    let folder = dir.path().join("models--org--name");
    let hub = offline(&dir.path().join("elsewhere"));
    let expected = Located { dir: snapshot, source: Some(("org/name".to_owned(), COMMIT.to_owned())) };
    assert_eq!(found(folder.to_str().unwrap(), &hub).unwrap(), expected);
    std::fs::remove_file(folder.join("refs/main")).unwrap();
    assert_eq!(found(folder.to_str().unwrap(), &hub).unwrap(), expected, "the only one");
    std::fs::create_dir(folder.join("snapshots").join(OTHER)).unwrap();
    let error = found(folder.to_str().unwrap(), &hub).unwrap_err();
    assert!(error.contains("give one of its snapshots"), "{error}");
}

#[test]
fn the_cache_is_used_by_revision() {
    let dir = tempfile::tempdir().unwrap();
    let hub = offline(dir.path());
    let snapshot = cached(dir.path(), "org--name", COMMIT);
    let old = cached(dir.path(), "org--name", OTHER);
    put(dir.path(), "models--org--name/refs/main", format!("{COMMIT}\n"));
    put(dir.path(), "models--org--name/refs/refs/pr/1", OTHER);
    assert_eq!(found("org/name", &hub).unwrap().dir, snapshot);
    assert_eq!(found("org/name@main", &hub).unwrap().dir, snapshot);
    assert_eq!(found("org/name@refs/pr/1", &hub).unwrap().dir, old);
    assert_eq!(found(&format!("org/name@{OTHER}"), &hub).unwrap().dir, old);
    let error = found("org/name@v2", &hub).unwrap_err();
    assert!(error.contains("has no revision v2") && error.contains("HF_HUB_OFFLINE"), "{error}");
    let error = found("org/other", &hub).unwrap_err();
    assert!(error.contains("models--org--other") && error.contains("unset it"), "{error}");
}

#[test]
fn what_a_partial_snapshot_lacks_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let hub = offline(dir.path());
    let snapshot = cached(dir.path(), "org--name", COMMIT);
    let lacks = |what: &str| {
        let error = found("org/name", &hub).unwrap_err();
        assert!(error.contains(&format!("lacks {what}")) && error.contains("HF_HUB_OFFLINE"), "{error}");
    };
    std::fs::remove_file(snapshot.join("model.safetensors")).unwrap();
    lacks("model.safetensors");
    put(&snapshot, "model-00002-of-00003.safetensors", safetensors(&[("b", &[1])]));
    lacks("model-00001-of-00003.safetensors, model-00003-of-00003.safetensors");
    let placed = [("a", "model-00001-of-00002.safetensors"), ("b", "model-00002-of-00003.safetensors")];
    put(&snapshot, "model.safetensors.index.json", index(&placed));
    lacks("model-00001-of-00002.safetensors");
    put(&snapshot, "model-00001-of-00002.safetensors", safetensors(&[("a", &[1])]));
    assert_eq!(found("org/name", &hub).unwrap().dir, snapshot);
    put(&snapshot, "config.json", r#"{"mm_projector_type": "adapt_spatial_resampler"}"#);
    lacks("mm_projector.bin");
    put(&snapshot, "mm_projector.bin", "");
    std::fs::remove_file(snapshot.join("tokenizer.json")).unwrap();
    lacks("tokenizer.json");
    put(&snapshot, "tokenizer.model", "");
    assert_eq!(found("org/name", &hub).unwrap().dir, snapshot);
}

#[test]
fn a_vision_tower_is_looked_for_near_the_checkpoint_first() {
    let dir = tempfile::tempdir().unwrap();
    let hub = offline(&dir.path().join("cache"));
    let checkpoint = dir.path().join("checkpoint");
    std::fs::create_dir_all(checkpoint.join("inner/tower")).unwrap();
    std::fs::create_dir_all(dir.path().join("clip-vit-x")).unwrap();
    std::fs::create_dir_all(dir.path().join("apart")).unwrap();
    let dir_of = |reference: &str| tower(reference, &checkpoint, &hub).map(|found| found.dir.canonicalize().unwrap());
    let beside = dir.path().join("clip-vit-x").canonicalize().unwrap();
    assert_eq!(dir_of("./inner/tower").unwrap(), checkpoint.join("inner/tower").canonicalize().unwrap());
    assert_eq!(
        dir_of(dir.path().join("apart").to_str().unwrap()).unwrap(),
        dir.path().join("apart").canonicalize().unwrap()
    );
    assert_eq!(dir_of("./pretrained_models/clip-vit-x").unwrap(), beside);
    assert_eq!(dir_of("openai/clip-vit-x/").unwrap(), beside);
    std::fs::create_dir_all(checkpoint.join("clip-vit-x")).unwrap();
    assert_eq!(dir_of("/gone/clip-vit-x").unwrap(), checkpoint.join("clip-vit-x").canonicalize().unwrap());

    let error = dir_of("/gone/some-tower").unwrap_err();
    assert!(error.contains("looked for the vision tower in") && error.contains("mm_vision_tower"), "{error}");
    assert!(dir_of("").is_err() && dir_of("..").is_err());
    let error = dir_of("./pretrained/clip-vit-large-patch14-336").unwrap_err();
    assert!(error.contains("openai/clip-vit-large-patch14-336") && error.contains("HF_HUB_OFFLINE"), "{error}");
    let snapshot = cached(&hub.cache, "openai--clip-vit-large-patch14-336", COMMIT);
    std::fs::remove_file(snapshot.join("tokenizer.json")).unwrap();
    let found = tower("./pretrained/clip-vit-large-patch14-336", &checkpoint, &hub).unwrap();
    assert_eq!(found.dir, snapshot, "a tower needs no tokenizer");
}

#[test]
fn options_come_from_the_environment() {
    let dir = tempfile::tempdir().unwrap();
    let from = |pairs: &[(&str, &str)]| {
        HubOptions::from_env(|name| pairs.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).into()))
    };
    let plain = from(&[("HOME", "/u")]);
    assert_eq!((plain.cache.to_str(), plain.offline), (Some("/u/.cache/huggingface/hub"), false));
    assert_eq!(plain, HubOptions::new("/u/.cache/huggingface/hub"));
    assert_eq!(from(&[("HOME", "/u"), ("XDG_CACHE_HOME", "/c")]).cache, Path::new("/c/huggingface/hub"));
    put(dir.path(), "token", " secret\n");
    let home = dir.path().to_str().unwrap();
    let options = from(&[("HF_HOME", home), ("HF_HUB_OFFLINE", "1"), ("HF_ENDPOINT", "http://hub.test/")]);
    assert_eq!(options.cache, dir.path().join("hub"));
    assert_eq!((options.token.as_deref(), options.offline), (Some("secret"), true));
    assert_eq!(options.endpoint, "http://hub.test");
    assert!(!format!("{options:?}").contains("secret"));
    let options = from(&[("HF_HOME", home), ("HF_HUB_CACHE", "/hub"), ("HF_TOKEN", "t"), ("HF_HUB_OFFLINE", "0")]);
    assert_eq!((options.cache.to_str(), options.token.as_deref(), options.offline), (Some("/hub"), Some("t"), false));
    let options = from(&[("https_proxy", "http://p:1"), ("NO_PROXY", "a,b"), ("HF_HUB_DOWNLOAD_TIMEOUT", "7")]);
    assert_eq!((options.proxy.as_deref(), options.no_proxy.as_deref()), (Some("http://p:1"), Some("a,b")));
    assert_eq!(options.timeout.as_secs(), 7);
}
