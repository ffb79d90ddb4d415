//! Accuracy of a model on rendered scenes, per attribute, with slices and with the overview alone.
//!
//! ```sh
//! python tests/reference/scenes.py render --count 1000 --seed 20261 --out scenes
//! cargo run --release --example accuracy -- scenes
//! ```
//!
//! The folder holds images and `truth.jsonl`, one line per image: `file`, `caption`, `text`, `text_size` (`large`,
//! `small`, `none`), `straddles`, and `questions` of `kind`, `question`, `answer`. Every image is asked for its caption
//! and every question twice, through the whole program: as the model slices, and with `--policy whole`. An answer is
//! right when it equals the truth exactly.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use arrow::array::{Array, AsArray};
use arrow::datatypes::UInt32Type;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde::Deserialize;

/// One line of `truth.jsonl`.
#[derive(Deserialize)]
struct Truth {
    file: String,
    caption: String,
    text: Option<String>,
    text_size: String,
    straddles: bool,
    questions: Vec<Question>,
}

#[derive(Deserialize)]
struct Question {
    kind: String,
    question: String,
    answer: String,
}

/// Right and all answers by attribute.
type Table = BTreeMap<String, (u32, u32)>;

const CAPTION_PROMPT: &str = "Describe this image.";

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let folder = args.next().ok_or("usage: accuracy SCENES [TRUTH.jsonl]")?;
    let truth_file = args.next().unwrap_or_else(|| format!("{folder}/truth.jsonl"));
    let truths = fs::read_to_string(&truth_file).map_err(|error| format!("{truth_file}: {error}"))?;
    let truths: Vec<Truth> = truths.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let work = tempfile::tempdir()?;
    let questions = work.path().join("questions.jsonl");
    write_questions(&questions, &truths)?;
    let sliced = answers(&folder, &questions, &work.path().join("sliced"), &[])?;
    let whole = answers(&folder, &questions, &work.path().join("whole"), &["--policy", "whole"])?;
    let (sliced, whole) = (score(&truths, &sliced), score(&truths, &whole));
    let mut out = std::io::stdout().lock();
    writeln!(out, "{} scenes of {folder}; share of answers that equal the truth exactly\n", truths.len())?;
    writeln!(out, "| attribute | answers | with slices | overview only |\n|---|--:|--:|--:|")?;
    for (name, (right, all)) in &sliced {
        let (whole_right, whole_all) = whole.get(name).copied().unwrap_or_default();
        writeln!(out, "| {name} | {all} | {} | {} |", percent(*right, *all), percent(whole_right, whole_all))?;
    }
    Ok(())
}

fn percent(right: u32, all: u32) -> String {
    if all == 0 { "–".to_owned() } else { format!("{:.1} %", f64::from(right) * 100.0 / f64::from(all)) }
}

/// The caption prompt is question 0 of every image, its own questions follow.
fn write_questions(path: &Path, truths: &[Truth]) -> Result<(), Box<dyn Error>> {
    let mut file = File::create(path)?;
    for truth in truths {
        let prompts = std::iter::once(CAPTION_PROMPT).chain(truth.questions.iter().map(|q| q.question.as_str()));
        for (id, question) in prompts.enumerate() {
            let line = serde_json::json!({"key": truth.file, "question_id": id, "question": question});
            writeln!(file, "{line}")?;
        }
    }
    Ok(())
}

/// Runs `slicemill ask` and reads its answers by key and question number.
fn answers(
    folder: &str,
    questions: &Path,
    out: &Path,
    extra: &[&str],
) -> Result<BTreeMap<(String, u32), String>, Box<dyn Error>> {
    let (questions, out_text) = (questions.display().to_string(), out.display().to_string());
    let mut command = vec!["slicemill", "ask", folder, "-o", &out_text, "--questions", &questions];
    command.extend_from_slice(extra);
    let exit = slicemill_cli::run(command.iter().map(Into::into));
    if exit != slicemill_cli::Exit::Done {
        return Err(format!("{} ended with exit code {}", command.join(" "), exit.code()).into());
    }
    let mut answers = BTreeMap::new();
    for entry in fs::read_dir(out.join("answers"))? {
        for batch in ParquetRecordBatchReaderBuilder::try_new(File::open(entry?.path())?)?.build()? {
            let batch = batch?;
            let column = |name: &str| batch.column_by_name(name).ok_or_else(|| format!("no column {name}"));
            let (keys, texts) = (column("key")?.as_string::<i32>(), column("text")?.as_string::<i32>());
            let ids = column("question_id")?.as_primitive::<UInt32Type>();
            for row in 0..batch.num_rows() {
                let text = if texts.is_valid(row) { texts.value(row) } else { "" };
                answers.insert((keys.value(row).to_owned(), ids.value(row)), text.to_owned());
            }
        }
    }
    Ok(answers)
}

fn score(truths: &[Truth], answers: &BTreeMap<(String, u32), String>) -> Table {
    let mut table = Table::new();
    let mut count = |name: String, right: bool| {
        let entry = table.entry(name).or_default();
        entry.0 += u32::from(right);
        entry.1 += 1;
    };
    for truth in truths {
        let answer = |id: usize| {
            let id = u32::try_from(id).unwrap_or(u32::MAX);
            answers.get(&(truth.file.clone(), id)).map_or("", String::as_str)
        };
        let caption = answer(0);
        count("caption, exact".to_owned(), caption == truth.caption);
        count("caption, without its text".to_owned(), scene_part(caption) == scene_part(&truth.caption));
        if truth.text.is_some() {
            let right = text_part(caption) == text_part(&truth.caption);
            count(format!("caption, {} text", truth.text_size), right);
        }
        for (id, question) in truth.questions.iter().enumerate() {
            let right = answer(id + 1) == question.answer;
            count(format!("question: {}", question.kind), right);
            if question.kind == "text" {
                count(format!("question: text, {}", truth.text_size), right);
                if truth.text_size == "small" {
                    let place = if truth.straddles { "across a cut" } else { "inside a slice" };
                    count(format!("question: text, small, {place}"), right);
                }
            }
        }
    }
    table
}

/// What a caption says before the semicolon.
fn scene_part(caption: &str) -> &str {
    caption.split_once(';').map_or(caption, |(scene, _)| scene)
}

/// What a caption says after the semicolon.
fn text_part(caption: &str) -> &str {
    caption.split_once(';').map_or("", |(_, text)| text)
}
