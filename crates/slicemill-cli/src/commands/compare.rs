//! `slicemill compare`: two outputs row by row. Texts must be equal, visual tokens nearly so.

use std::collections::BTreeMap;

use futures::TryStreamExt;
use slicemill_core::{ContentRow, TaskKind};
use slicemill_exec::FrozenJob;
use slicemill_io::{Dataset, DatasetReader, OutputStore, Stores, content_rows};

use crate::args::{CompareArgs, OutputFlags};
use crate::exit::{Exit, Failure};
use crate::printing::Printer;

/// Rows that differ are named up to this many.
const NAMED_MAX: usize = 10;

/// Key of the image and number of the question.
type RowKey = (String, Option<u32>);

/// What was found.
#[derive(Debug, Default)]
struct Found {
    rows: u64,
    equal: u64,
    cosine_min: Option<f64>,
    differences: Vec<String>,
}

/// Compares two outputs.
pub fn run(args: &CompareArgs, flags: &OutputFlags, printer: Printer) -> Result<Exit, Failure> {
    let found = super::annotate::runtime()?.block_on(compare(args, &super::annotate::stores(flags)?))?;
    for difference in found.differences.iter().take(NAMED_MAX) {
        printer.line(difference)?;
    }
    if found.differences.len() > NAMED_MAX {
        printer.line(&format!("… and {} more", found.differences.len() - NAMED_MAX))?;
    }
    let cosine = found.cosine_min.map(|cosine| format!(", smallest cosine {cosine:.6}")).unwrap_or_default();
    printer.line(&format!("{} of {} rows equal{cosine}", found.equal, found.rows))?;
    Ok(if found.differences.is_empty() { Exit::Done } else { Exit::NotVerified })
}

async fn compare(args: &CompareArgs, stores: &Stores) -> Result<Found, Failure> {
    let (one, job) = FrozenJob::open(&args.one, stores).await.map_err(Failure::failed)?;
    let (other, other_job) = FrozenJob::open(&args.other, stores).await.map_err(Failure::failed)?;
    let task = job.job.task;
    if other_job.job.task != task {
        return Err(Failure::usage(format!(
            "{} holds {} and {} holds {}: compare two outputs of the same kind",
            args.one,
            task.dataset(),
            args.other,
            other_job.job.task.dataset()
        )));
    }
    let (ours, theirs) = (rows(&one, task).await?, rows(&other, task).await?);
    let mut found = Found { rows: ours.len().max(theirs.len()) as u64, ..Found::default() };
    for (key, row) in &ours {
        let name = row_name(key);
        match theirs.get(key) {
            None => found.differences.push(format!("{name}: only in {}", args.one)),
            Some(theirs) => match difference(row, theirs, args.cosine_min, &mut found.cosine_min) {
                None => found.equal += 1,
                Some(difference) => found.differences.push(format!("{name}: {difference}")),
            },
        }
    }
    let missing = theirs.keys().filter(|key| !ours.contains_key(*key));
    found.differences.extend(missing.map(|key| format!("{}: only in {}", row_name(key), args.other)));
    Ok(found)
}

fn row_name((key, question): &RowKey) -> String {
    question.map_or_else(|| key.clone(), |question| format!("{key} question {question}"))
}

async fn rows(output: &OutputStore, task: TaskKind) -> Result<BTreeMap<RowKey, ContentRow>, Failure> {
    let mut rows = BTreeMap::new();
    let mut batches = DatasetReader::new(output.clone(), Dataset::of_task(task)).stream();
    while let Some(batch) = batches.try_next().await.map_err(Failure::failed)? {
        for row in content_rows(&batch).map_err(Failure::failed)? {
            rows.insert((row.key.clone(), row.question_id), row);
        }
    }
    Ok(rows)
}

/// How two rows of the same key differ, if they do.
fn difference(one: &ContentRow, other: &ContentRow, cosine_min: f64, smallest: &mut Option<f64>) -> Option<String> {
    if (one.slices, one.visual_tokens) != (other.slices, other.visual_tokens) {
        return Some(format!("{} and {} visual tokens", one.visual_tokens, other.visual_tokens));
    }
    if let (Some(a), Some(b)) = (&one.tokens, &other.tokens) {
        let cosine = cosine(a, b);
        *smallest = Some(smallest.map_or(cosine, |before| before.min(cosine)));
        // Not a number is never near.
        return (cosine.is_nan() || cosine < cosine_min).then(|| format!("cosine {cosine:.6}"));
    }
    (one.text != other.text).then(|| {
        let shown = |row: &ContentRow| row.text.clone().unwrap_or_default();
        format!("{:?} and {:?}", shown(one), shown(other))
    })
}

/// Cosine of the angle between two vectors; 0 when their lengths differ.
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    if a.len() != b.len() {
        return 0.0;
    }
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a).sqrt() * dot(b, b).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosines() {
        assert!((cosine(&[1.0, 2.0], &[2.0, 4.0]) - 1.0).abs() < 1e-12);
        assert!(cosine(&[1.0, 0.0], &[0.0, 1.0]).abs() < 1e-12);
        assert_eq!(cosine(&[1.0], &[1.0, 2.0]), 0.0);
    }

    #[test]
    fn a_vector_that_is_not_a_number_differs() {
        let row = |tokens| ContentRow { tokens: Some(tokens), ..ContentRow::default() };
        assert!(difference(&row(vec![f32::NAN]), &row(vec![1.0]), 0.9, &mut None).is_some());
        assert!(difference(&row(vec![1.0]), &row(vec![1.0]), 0.9, &mut None).is_none());
    }
}
