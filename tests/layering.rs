//! A crate may use only the crates above it in the table of ARCHITECTURE.md, and the heavy libraries only where it says.

use std::collections::BTreeMap;
use std::process::Command;

/// Each crate with the workspace crates and the libraries of consequence that it may use.
const ALLOWED: &[(&str, &[&str])] = &[
    ("slicemill-core", &["serde", "thiserror"]),
    ("slicemill-image", &["slicemill-core", "image"]),
    ("slicemill-pipeline", &["slicemill-core", "slicemill-image", "futures", "tokio", "rayon"]),
    (
        "slicemill-model",
        &[
            "slicemill-core",
            "slicemill-image",
            "slicemill-pipeline",
            "candle-core",
            "candle-nn",
            "candle-transformers",
            "tokenizers",
            "safetensors",
            "rayon",
        ],
    ),
    ("slicemill-io", &["slicemill-core", "arrow", "parquet", "object_store", "tokio", "futures"]),
    (
        "slicemill-exec",
        &[
            "slicemill-core",
            "slicemill-image",
            "slicemill-pipeline",
            "slicemill-io",
            "arrow",
            "parquet",
            "object_store",
            "datafusion",
            "tokio",
            "futures",
            "rayon",
        ],
    ),
];

/// Libraries that shape the architecture; all others may be used anywhere.
const GUARDED: &[&str] = &[
    "arrow",
    "parquet",
    "object_store",
    "datafusion",
    "candle-core",
    "candle-nn",
    "candle-transformers",
    "tokenizers",
    "safetensors",
    "image",
    "rayon",
    "tokio",
    "futures",
    "clap",
    "indicatif",
    "anyhow",
];

fn dependencies() -> BTreeMap<String, Vec<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
        .output()
        .expect("cargo metadata runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON");
    let mut all = BTreeMap::new();
    for package in metadata["packages"].as_array().expect("packages") {
        let names = package["dependencies"].as_array().expect("dependencies").iter();
        // Development dependencies are not edges of the architecture.
        let names = names.filter(|d| d["kind"].is_null()).map(|d| d["name"].as_str().expect("name").to_owned());
        all.insert(package["name"].as_str().expect("name").to_owned(), names.collect());
    }
    all
}

#[test]
fn crates_use_only_what_is_above_them() {
    let all = dependencies();
    for (name, allowed) in ALLOWED {
        let used = all.get(*name).unwrap_or_else(|| panic!("{name} is not in the workspace"));
        for dependency in used {
            let guarded = dependency.starts_with("slicemill-") || GUARDED.contains(&dependency.as_str());
            assert!(
                !guarded || allowed.contains(&dependency.as_str()),
                "{name} must not depend on {dependency}: see the table of crates in ARCHITECTURE.md"
            );
        }
    }
}

#[test]
fn the_core_is_pure() {
    let core = &dependencies()["slicemill-core"];
    assert_eq!(core.len(), 2, "slicemill-core depends on serde and thiserror alone, not on {core:?}");
}

#[test]
fn only_the_program_knows_all_layers() {
    for (name, used) in dependencies() {
        if name != "slicemill-cli" {
            assert!(
                !(used.iter().any(|d| d == "slicemill-model") && used.iter().any(|d| d == "datafusion")),
                "{name} wires the model to the plan; only slicemill-cli does that"
            );
        }
    }
}
