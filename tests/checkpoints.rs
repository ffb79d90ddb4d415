//! Published checkpoints through the program: captions and visual tokens equal to the reference's, any batch, the hub's
//! cache, and errors that a tired person understands. The checkpoints are tiny and random, in the published layouts.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::program::{assert_same_content, complaint, expect, root, sql, text};
use crate::recipe;

/// What reproduces the reference on images with alpha and orientation.
const REFERENCE: [&str; 4] = ["--alpha", "drop", "--orientation", "ignore"];

struct Checkpoint {
    folder: tempfile::TempDir,
    index: Value,
}

impl Checkpoint {
    fn new(layout: &str) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        std::fs::create_dir(folder.path().join("checkpoint")).expect("folder");
        recipe::make(layout, &folder.path().join("checkpoint"));
        let index = recipe::recipes().join(layout).join("expected/index.json");
        let index = serde_json::from_slice(&std::fs::read(index).expect("index")).expect("JSON");
        Self { folder, index }
    }

    fn dir(&self) -> PathBuf {
        self.folder.path().join("checkpoint")
    }

    fn out(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Captions the images of the recipes and compares the ids of this variant and prompt with the reference's.
    fn caption(&self, variant: &str, prompt: usize, extra: &[&str]) {
        let question = self.index["prompts"][prompt].as_str().expect("prompt");
        let (images, dir, out) =
            (recipe::recipes().join("images"), self.dir(), self.out(&format!("{variant}-{prompt}")));
        let mut args = vec!["caption", text(&images), "-o", text(&out), "--model", text(&dir), "--prompt", question];
        args.extend(["--max-new-tokens", "24", "--columns", "+token_ids"].iter().chain(&REFERENCE).chain(extra));
        expect(0, &args);
        let rows = sql(&out, "SELECT key, token_ids, prompt_cut FROM captions");
        let mut compared = 0;
        for (image, run) in self.runs(variant, prompt) {
            let row = rows.iter().find(|row| row["key"].as_str().is_some_and(|key| key.ends_with(image)));
            let row = row.unwrap_or_else(|| panic!("no row of {image}"));
            let mut want: Vec<u64> = serde_json::from_value(run["output_ids"].clone()).expect("ids");
            let got: Vec<u64> = serde_json::from_value(row["token_ids"].clone()).expect("ids");
            if want.len() == got.len() + 1 {
                want.pop(); // The token that ended it.
            }
            assert_eq!(got, want, "{image}, {variant}, prompt {prompt}");
            let cut =
                run["embeds_len_untruncated"].as_u64().map_or(0, |all| all - run["embeds_len"].as_u64().unwrap_or(all));
            assert_eq!(row["prompt_cut"], cut, "{image}");
            compared += 1;
        }
        assert!(compared >= 6, "{compared} rows of {variant}");
        expect(0, &["verify", text(&out)]);
    }

    fn runs(&self, variant: &str, prompt: usize) -> Vec<(&str, &Value)> {
        let cases = self.index["cases"].as_array().expect("cases").iter().filter(|case| case["variant"] == variant);
        cases
            .flat_map(|case| {
                let runs = case["runs"].as_array().expect("runs").iter();
                runs.map(move |run| (case["image"].as_str().expect("image"), run))
            })
            .filter(|(_, run)| run["prompt"] == prompt)
            .collect()
    }
}

#[test]
fn captions_of_every_family_have_the_references_ids() {
    for (layout, variant) in [
        ("uhd-64", "raw"),
        ("llava-1.5", "pad"),
        ("llava-1.5-hf", "pad"),
        ("minicpmv-2.6", "raw"),
        ("minicpmv-4.0", "raw"),
        ("minicpmv-4.5", "raw"),
    ] {
        let checkpoint = Checkpoint::new(layout);
        checkpoint.caption(variant, 0, &[]);
        checkpoint.caption(variant, 1, &[]);
    }
    let uhd = Checkpoint::new("uhd-v1");
    uhd.caption("eval1024", 0, &[]);
    uhd.caption("eval1024", 1, &["--batch", "3"]);
    uhd.caption("raw", 0, &["--policy", "llava-uhd-raw"]);
}

/// Rows whose prompt was cut are flagged and counted in the report.
#[test]
fn cut_prompts_are_reported() {
    let uhd = Checkpoint::new("uhd-v1");
    uhd.caption("eval1024", 1, &[]);
    let out = uhd.out("eval1024-1");
    let cut = crate::program::count(&out, "SELECT count(*) AS n FROM captions WHERE prompt_cut > 0");
    assert!(cut > 0, "some prompts of this layout are longer than its model takes");
    let report = expect(0, &["report", text(&out)]);
    let line = report.lines().find(|line| line.contains("prompts were longer than the model takes"));
    assert!(line.is_some_and(|line| line.trim_start().starts_with(&cut.to_string())), "{report}");
}

#[test]
fn images_together_are_images_one_at_a_time() {
    let checkpoint = Checkpoint::new("minicpmv-2.6");
    let (images, dir) = (recipe::recipes().join("images"), checkpoint.dir());
    let out = |name: &str| checkpoint.out(name);
    for (name, extra) in [("one", ["--batch", "1"]), ("all", ["--batch", "64"]), ("two", ["--devices", "cpu:0,cpu:1"])]
    {
        let (tokens, captions) = (out(&format!("{name}-tokens")), out(&format!("{name}-captions")));
        let mut args = vec!["encode", text(&images), "-o", text(&tokens), "--model", text(&dir)];
        args.extend(extra);
        expect(0, &args);
        let mut args = vec!["caption", text(&images), "-o", text(&captions), "--model", text(&dir)];
        args.extend(["--max-new-tokens", "8", "--columns", "+token_ids"].iter().chain(&extra));
        expect(0, &args);
    }
    for name in ["all", "two"] {
        assert_same_content(&out("one-tokens"), &out(&format!("{name}-tokens")));
        assert_same_content(&out("one-captions"), &out(&format!("{name}-captions")));
    }
}

#[test]
fn the_rounding_of_windows_is_part_of_the_job() {
    let checkpoint = Checkpoint::new("uhd-v1");
    let (images, dir) = (recipe::recipes().join("images"), checkpoint.dir());
    let out = |name: &str| checkpoint.out(name);
    let encode = |name: &str, windows: &str| {
        let out = out(name);
        expect(0, &["encode", text(&images), "-o", text(&out), "--model", text(&dir), "--windows", windows]);
    };
    encode("exact", "f32");
    encode("half", "f16");
    let compared = complaint(4, &["compare", text(&out("exact")), text(&out("half")), "--cosine-min", "1.0"]);
    assert!(!compared.contains("panicked"), "{compared}");
    let out = out("exact");
    let message = complaint(5, &["encode", text(&images), "-o", text(&out), "--model", text(&dir), "--windows", "f16"]);
    assert!(message.contains("windows"), "{message}");
    // A flag that would do nothing is refused.
    let other = Checkpoint::new("minicpmv-2.6");
    let (dir, out) = (other.dir(), other.out("none"));
    for (model, code) in [(text(&dir), 1), ("embedded", 1), ("null", 2)] {
        let args = ["caption", text(&images), "-o", text(&out), "--model", model, "--windows", "f16"];
        assert!(complaint(code, &args).contains("windows"), "{model}");
    }
}

/// A tower that the checkpoint holds is not looked for elsewhere; one that it needs and nobody has is named.
#[test]
fn a_vision_tower_is_looked_for_only_where_it_is_needed() {
    let inside = Checkpoint::new("uhd-v1");
    let config = inside.dir().join("config.json");
    let mut json: Value = serde_json::from_slice(&std::fs::read(&config).expect("config")).expect("JSON");
    // The config describes the tower and the shards hold it; nobody has one of this name.
    let tower = inside.dir().join("clip-vit-tiny-patch14-336");
    let described = std::fs::read(tower.join("config.json")).expect("config");
    json["vision_config"] = serde_json::from_slice(&described).expect("JSON");
    json["mm_vision_tower"] = "nobody/no-such-tower".into();
    std::fs::remove_dir_all(&tower).expect("removed");
    std::fs::write(&config, json.to_string()).expect("written");
    let offline = |checkpoint: &Checkpoint| {
        let (dir, home) = (checkpoint.dir(), checkpoint.folder.path().join("home"));
        let mut command = crate::program::command(&["model", "check", text(&dir)]);
        let output = command.env("HF_HOME", &home).env("HF_HUB_OFFLINE", "1").output().expect("it runs");
        let printed = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&printed).into_owned())
    };
    let (code, printed) = offline(&inside);
    assert!(code == Some(0) && printed.contains("cpu:0: ok"), "{printed}");

    let outside = Checkpoint::new("llava-1.5");
    std::fs::remove_dir_all(outside.dir().join("clip-vit-tiny-patch14-336")).expect("removed");
    let (code, printed) = offline(&outside);
    assert_eq!(code, Some(1), "{printed}");
    assert!(printed.contains("clip-vit-tiny-patch14-336") && printed.contains("HF_HUB_OFFLINE"), "{printed}");
}

/// A checkpoint that cannot be loaded: one clear error that names the file, no output.
fn refused(checkpoint: &Checkpoint, expected: &[&str]) {
    let (images, dir, out) = (recipe::recipes().join("images"), checkpoint.dir(), checkpoint.out("refused"));
    let message = complaint(1, &["caption", text(&images), "-o", text(&out), "--model", text(&dir)]);
    for part in expected {
        assert!(message.contains(part), "{part} is not in:\n{message}");
    }
    assert!(!message.contains("panicked"), "{message}");
    assert!(!out.exists(), "no part of an output is left");
    let inspected = complaint(1, &["model", "inspect", text(&dir)]);
    let checked = complaint(1, &["model", "check", text(&dir)]);
    assert!(!inspected.contains("panicked") && checked.contains(expected[0]), "{inspected}\n{checked}");
}

/// Rewrites the tensors of the first shard.
fn rewrite(dir: &Path, change: impl Fn(&mut Vec<(String, Vec<usize>, Vec<u8>)>)) {
    let path = dir.join("model-00001-of-00002.safetensors");
    let bytes = std::fs::read(&path).expect("shard");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let mut tensors: Vec<_> =
        file.iter().map(|(name, view)| (name.to_owned(), view.shape().to_vec(), view.data().to_vec())).collect();
    let dtype = file.iter().next().expect("a tensor").1.dtype();
    change(&mut tensors);
    let views = tensors.iter().map(|(name, shape, data)| {
        (name, safetensors::tensor::TensorView::new(dtype, shape.clone(), data).expect("view"))
    });
    safetensors::serialize_to_file(views, None, &path).expect("written");
}

#[test]
fn broken_checkpoints_are_refused_before_anything_is_written() {
    let missing = Checkpoint::new("uhd-64");
    rewrite(&missing.dir(), |tensors| tensors.retain(|(name, ..)| name != "model.layers.0.mlp.up_proj.weight"));
    refused(&missing, &["model.layers.0.mlp.up_proj.weight: missing, expected ["]);

    let misshapen = Checkpoint::new("uhd-64");
    rewrite(&misshapen.dir(), |tensors| {
        let tensor =
            tensors.iter_mut().find(|(name, ..)| name == "model.layers.0.self_attn.q_proj.weight").expect("it");
        tensor.1 = vec![tensor.1[0] / 2, tensor.1[1] * 2];
    });
    refused(&misshapen, &["model.layers.0.self_attn.q_proj.weight: expected [128, 128], found [64, 256]"]);

    let extra = Checkpoint::new("uhd-64");
    rewrite(&extra.dir(), |tensors| {
        let width = tensors.iter().find(|(name, ..)| name == "model.norm.weight").map_or(128, |(_, shape, _)| shape[0]);
        tensors.push(("model.layers.0.self_attn.q_proj.bias".to_owned(), vec![width], vec![0; width * 2]));
    });
    refused(&extra, &["model.layers.0.self_attn.q_proj.bias: not expected"]);

    let truncated = Checkpoint::new("uhd-64");
    let shard = truncated.dir().join("model-00002-of-00002.safetensors");
    let bytes = std::fs::read(&shard).expect("shard");
    std::fs::write(&shard, &bytes[..bytes.len() - 1000]).expect("written");
    refused(&truncated, &["model-00002-of-00002.safetensors", "bytes"]);

    let foreign = Checkpoint::new("uhd-64");
    let other = Checkpoint::new("llava-1.5");
    std::fs::copy(other.dir().join("tokenizer.model"), foreign.dir().join("tokenizer.model")).expect("copied");
    refused(&foreign, &["tokenizer.model", "it belongs to another model"]);

    let unknown = Checkpoint::new("uhd-64");
    std::fs::write(unknown.dir().join("config.json"), r#"{"model_type": "idefics2"}"#).expect("written");
    refused(&unknown, &["config.json", "model_type \"idefics2\" is not supported", "minicpmv"]);
}

/// A name on the hub is found in the hub's cache, also without a network.
#[test]
fn a_cached_model_is_found_by_its_name() {
    let checkpoint = Checkpoint::new("minicpmv-2.6");
    let home = checkpoint.folder.path().join("home");
    let repository = home.join("hub/models--tiny--minicpm");
    let commit = "0123456789abcdef0123456789abcdef01234567";
    std::fs::create_dir_all(repository.join("refs")).expect("folder");
    std::fs::create_dir_all(repository.join("snapshots")).expect("folder");
    std::fs::write(repository.join("refs/main"), commit).expect("written");
    std::fs::rename(checkpoint.dir(), repository.join("snapshots").join(commit)).expect("moved");
    let out = checkpoint.out("hub");
    let images = recipe::recipes().join("images");
    let run = |model: &str| {
        let args = ["caption", text(&images), "-o", text(&out), "--model", model, "--max-new-tokens", "2"];
        crate::program::command(&args).env("HF_HOME", &home).env("HF_HUB_OFFLINE", "1").output().expect("it runs")
    };
    let output = run("tiny/minicpm");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report = expect(0, &["report", text(&out)]);
    assert!(report.contains(&format!("tiny/minicpm@{commit}")), "{report}");
    let output = run("tiny/absent");
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(message.contains("tiny/absent") && message.contains("HF_HUB_OFFLINE"), "{message}");
}

#[test]
fn inspect_says_what_a_checkpoint_is() {
    let checkpoint = Checkpoint::new("minicpmv-4.5");
    let dir = checkpoint.dir();
    let printed = expect(0, &["model", "inspect", text(&dir)]);
    for part in ["MiniCPM-V 4.5", "64 queries", "norms on queries and keys", "3 files", "of apm.*", "GPU memory"] {
        assert!(printed.contains(part), "{part} is not in:\n{printed}");
    }
    let config = dir.join("config.json");
    assert!(expect(0, &["model", "inspect", text(&config)]).contains("a config.json alone"));
    let json: Value =
        serde_json::from_str(&expect(0, &["model", "inspect", text(&dir), "--format", "json"])).expect("JSON");
    assert!(json["parameters"].as_u64().expect("a number") > 10_000);
    assert!(expect(0, &["model", "check", text(&dir)]).contains("cpu:0: ok"));
    assert!(expect(0, &["model", "check", "embedded"]).contains("red"));
}

/// Table 2 of arXiv 2403.11703v1 from configs alone, with the recipe that the example states.
#[test]
fn the_papers_compute_table_is_reproduced_from_configs() {
    let folder = root().join("examples/compute");
    let sizes = folder.join("largest.csv");
    let total = |config: &str, policy: &str| -> f64 {
        let config = folder.join(config);
        let args = ["plan", "--model", text(&config), "--policy", policy, "--sizes", text(&sizes), "--compute"];
        let recipe = ["--recipe", "paper", "--text-tokens", "1", "--format", "json"];
        let printed = expect(0, &[&args[..], &recipe[..]].concat());
        let rows: Vec<Value> = serde_json::from_str(&printed).expect("JSON");
        rows[0]["flops_total"].as_f64().expect("a number") / 1e12
    };
    let llava = total("llava-1.5-13b.json", "pad-square");
    let uhd = total("llava-uhd-64-13b.json", "llava-uhd-raw");
    let mlp = total("llava-1.5-13b.json", "llava-uhd-raw");
    let fixed = total("llava-1.5-13b.json", "fixed-2x2");
    for (found, paper) in [(llava, 15.50), (uhd, 14.63), (mlp, 113.65), (fixed, 80.10)] {
        assert!((found / paper - 1.0).abs() < 0.01, "{found:.2} TFLOPs, the paper has {paper}");
    }
    assert!((uhd / mlp - 0.129).abs() < 0.002, "{:.4} of the compute with an MLP", uhd / mlp);
    assert!((uhd / llava - 0.944).abs() < 0.02, "{:.4} of LLaVA-1.5's compute", uhd / llava);
    let table =
        expect(0, &["plan", "--model", text(&folder.join("llava-1.5-13b.json")), "--sizes", text(&sizes), "--compute"]);
    assert!(table.contains("672 x 1008"), "{table}");
}
