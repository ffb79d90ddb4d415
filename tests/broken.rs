//! Broken and odd files: each is a row that says what is wrong, and none ends a run.

use std::fs;

use image::ImageFormat;

use crate::fixtures::{Random, absurd_png, encoded, picture, with_exif, write_folder};
use crate::program::{complaint, count, expect, long_or, sql, text};

#[test]
fn rows_are_conserved_when_files_are_broken() {
    let folder = tempfile::tempdir().expect("folder");
    let images = folder.path().join("images");
    let made = write_folder(&images, long_or(2_000, 300), 20, 20);
    let out = folder.path().join("out");
    expect(3, &["caption", text(&images), "-o", text(&out), "--max-new-tokens", "4"]);
    let rows = |table: &str| count(&out, &format!("SELECT count(*) FROM {table}"));
    assert_eq!((rows("captions"), rows("failed"), rows("skipped")), (made.whole, made.broken, made.other));
    for row in sql(&out, "SELECT key, source, class, stage, message FROM failed") {
        for column in ["key", "source", "class", "stage", "message"] {
            assert!(row[column].as_str().is_some_and(|text| !text.is_empty()), "{column} of {row}");
        }
        let key = row["key"].as_str().unwrap_or_default();
        assert!(images.join(key).is_file(), "{key} names its file");
    }
    expect(0, &["verify", text(&out)]);
}

#[test]
fn failed_rows_can_be_mended_and_retried() {
    let folder = tempfile::tempdir().expect("folder");
    let images = folder.path().join("images");
    write_folder(&images, 6, 0, 21);
    let broken = images.join("broken.png");
    let whole = encoded(&picture(&mut Random::new(1), 90, 60), ImageFormat::Png);
    fs::write(&broken, &whole[..whole.len() / 2]).expect("written");
    let out = folder.path().join("out");
    expect(3, &["caption", text(&images), "-o", text(&out), "--max-new-tokens", "4"]);
    assert_eq!(count(&out, "SELECT count(*) FROM failed"), 1);
    expect(3, &["retry", text(&out)]);
    assert_eq!(count(&out, "SELECT count(*) FROM failed"), 1, "a file that is still broken stays failed");
    fs::write(&broken, &whole).expect("written");
    expect(0, &["retry", text(&out)]);
    assert_eq!(count(&out, "SELECT count(*) FROM failed"), 0);
    assert_eq!(count(&out, "SELECT count(*) FROM captions WHERE key = 'broken.png'"), 1);
    expect(0, &["verify", text(&out)]);
}

#[test]
fn each_kind_of_damage_has_its_class() {
    let folder = tempfile::tempdir().expect("folder");
    let images = folder.path().join("images");
    fs::create_dir(&images).expect("folder");
    let picture = picture(&mut Random::new(2), 64, 48);
    let jpeg = encoded(&picture, ImageFormat::Jpeg);
    let mut webp = encoded(&picture, ImageFormat::WebP);
    webp.truncate(webp.len() / 2);
    let files: &[(&str, Vec<u8>, &str)] = &[
        ("empty.jpg", Vec::new(), "empty"),
        ("page.jpg", b"<!DOCTYPE html><title>404</title>".to_vec(), "not_an_image"),
        ("bomb.png", absurd_png(), "too_many_pixels"),
        ("half.jpg", jpeg[..jpeg.len() / 2].to_vec(), "truncated"),
        ("half.webp", webp, "truncated"),
    ];
    for (name, bytes, _) in files {
        fs::write(images.join(name), bytes).expect("written");
    }
    fs::write(images.join("png with a wrong name.jpg"), encoded(&picture, ImageFormat::Png)).expect("written");
    fs::write(images.join("broken exif.jpg"), with_exif(&jpeg, 6, true)).expect("written");
    fs::write(images.join("turned.jpg"), with_exif(&jpeg, 6, false)).expect("written");
    fs::write(images.join("a b%20c#é.jpg"), &jpeg).expect("written");
    let out = folder.path().join("out");
    expect(3, &["caption", text(&images), "-o", text(&out), "--max-new-tokens", "4"]);
    let failed = sql(&out, "SELECT key, class FROM failed");
    for (name, _, class) in files {
        let row = failed.iter().find(|row| row["key"] == *name).unwrap_or_else(|| panic!("{name} in {failed:?}"));
        assert_eq!(row["class"], *class, "{name}");
    }
    assert_eq!(failed.len(), files.len(), "{failed:?}");
    let sizes = sql(&out, "SELECT key, format, width, height, orientation_applied FROM captions ORDER BY key");
    let found = |key: &str| sizes.iter().find(|row| row["key"] == key).unwrap_or_else(|| panic!("{key} in {sizes:?}"));
    assert_eq!(found("png with a wrong name.jpg")["format"], "png");
    assert_eq!(found("broken exif.jpg")["orientation_applied"], 1);
    assert_eq!(found("a b%20c#é.jpg")["width"], 64);
    let turned = found("turned.jpg");
    assert_eq!(
        (&turned["width"], &turned["height"], &turned["orientation_applied"]),
        (&48.into(), &64.into(), &6.into())
    );
}

#[test]
fn mistakes_are_refused_with_a_remedy_before_any_work() {
    let folder = tempfile::tempdir().expect("folder");
    let out = folder.path().join("out");
    let job = folder.path().join("job.toml");
    fs::write(&job, "task = \"caption\"\n[input]\npaths = [\"examples/images\"]\n[output]\npath = \"x\"\n[slicing]\npolcy = \"whole\"\n")
        .expect("written");
    let cases: &[(&[&str], i32, &[&str])] = &[
        (&["caption", "no/such/folder", "-o", text(&out)], 2, &["no/such/folder"]),
        (&["caption", "examples/images", "-o", text(&out), "--policy", "llava-uhdd"], 2, &["llava-uhdd", "llava-uhd"]),
        (&["caption", "examples/images", "-o", text(&out), "--top-p", "0.9"], 2, &["--top-p", "--temperature"]),
        (&["caption", "examples/images", "-o", text(&out), "--devices", "gpu"], 2, &["gpu", "cpu"]),
        (
            &["caption", "examples/images", "-o", text(&out), "--model", "no-such-model"],
            2,
            &["no-such-model", "config.json"],
        ),
        (&["ask", "examples/images", "-o", text(&out)], 2, &["--ask", "--questions"]),
        (&["run", text(&job)], 2, &["job.toml:7", "polcy", "slicing.policy"]),
        (&["run", "pipelines/caption.toml", "--set", "generation.seeed=1"], 2, &["seeed", "generation.seed"]),
        (&["verify", text(folder.path())], 1, &["_slicemill"]),
        (&["sql", text(folder.path()), "SELECT 1"], 1, &["_slicemill"]),
    ];
    for (args, code, words) in cases {
        let message = complaint(*code, args);
        for word in *words {
            assert!(message.contains(word), "slicemill {}: no {word} in {message}", args.join(" "));
        }
        assert!(!out.exists(), "slicemill {} did nothing", args.join(" "));
    }
}
