//! Captions as text files beside their images, the form in which trainers of image models read them.

use std::collections::HashSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};

use arrow::array::AsArray;
use futures::TryStreamExt;
use serde::{Deserialize, Serialize};
use slicemill_core::TaskKind;
use slicemill_io::Stores;

use crate::ExecError;
use crate::freeze::FrozenJob;
use crate::sql::session_of;

/// Names that a summary gives of what was left alone.
const EXAMPLES: usize = 5;

/// What became of the captions.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SidecarSummary {
    /// Files written.
    pub written: u64,
    /// Files that held their caption already.
    pub same: u64,
    /// Captions without a file: another text is there.
    pub kept: u64,
    /// The first few of them.
    pub kept_examples: Vec<String>,
    /// Captions without a file: their key is no path below a folder.
    pub refused: u64,
    /// The first few of them.
    pub refused_examples: Vec<String>,
}

impl SidecarSummary {
    /// Whether every caption has its file.
    pub const fn complete(&self) -> bool {
        self.kept == 0 && self.refused == 0
    }

    /// For people.
    pub fn to_text(&self) -> String {
        let mut text = format!("{} written, {} there already\n", self.written, self.same);
        let mut left = |count: u64, why: &str, examples: &[String]| {
            if count > 0 {
                let more = if count > examples.len() as u64 { ", …" } else { "" };
                text.push_str(&format!("{count} {why}: {}{more}\n", examples.join(", ")));
            }
        };
        left(self.kept, "not written, because another text is there (--replace writes over it)", &self.kept_examples);
        left(self.refused, "not written, because the key is no path below a folder", &self.refused_examples);
        text
    }
}

/// Writes every caption of the output in `location` to `folder`, as the key of its image with the ending `suffix` in
/// place of its own. Files with another text stay as they are unless `replace` is said.
///
/// # Errors
/// When there are no captions, and when a file cannot be written.
pub async fn write_sidecars(
    location: &str,
    folder: &Path,
    suffix: &str,
    replace: bool,
    stores: &Stores,
) -> Result<SidecarSummary, ExecError> {
    let (output, job) = FrozenJob::open(location, stores).await?;
    if job.job.task != TaskKind::Caption {
        return Err(ExecError::Query(format!(
            "{location} holds the output of {}; text files are made of captions, one for each image: use `slicemill sql` for \
             other texts",
            job.job.task.as_str()
        )));
    }
    let mut sidecars = Sidecars { folder, suffix, replace, taken: HashSet::new(), summary: SidecarSummary::default() };
    let wrong = |error: datafusion::common::DataFusionError| ExecError::Query(error.strip_backtrace());
    let session = session_of(&output, &job).await?;
    let query = "SELECT key, text FROM captions WHERE text IS NOT NULL";
    let mut batches = session.sql(query).await.map_err(wrong)?.execute_stream().await.map_err(wrong)?;
    while let Some(batch) = batches.try_next().await.map_err(wrong)? {
        let (keys, texts) = (batch.column(0), batch.column(1));
        let (Some(keys), Some(texts)) = (keys.as_string_opt::<i32>(), texts.as_string_opt::<i32>()) else {
            return Err(ExecError::Query("the captions of this output are no texts".to_owned()));
        };
        for (key, text) in keys.iter().zip(texts) {
            if let (Some(key), Some(text)) = (key, text) {
                sidecars.write(key, text)?;
            }
        }
    }
    Ok(sidecars.summary)
}

struct Sidecars<'a> {
    folder: &'a Path,
    suffix: &'a str,
    replace: bool,
    /// Files written over, so that two images of one name do not write over each other.
    taken: HashSet<PathBuf>,
    summary: SidecarSummary,
}

impl Sidecars<'_> {
    fn write(&mut self, key: &str, text: &str) -> Result<(), ExecError> {
        let Some(path) = below(self.folder, key, self.suffix) else {
            self.summary.refused += 1;
            note(&mut self.summary.refused_examples, key);
            return Ok(());
        };
        let failed = |error: std::io::Error| ExecError::File { path: path.clone(), error };
        match fs::read(&path) {
            Ok(there) if there == text.as_bytes() => {
                self.summary.same += 1;
                return Ok(());
            }
            Ok(_) if !self.replace || self.taken.contains(&path) => {
                self.summary.kept += 1;
                note(&mut self.summary.kept_examples, key);
                return Ok(());
            }
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {
                if let Some(parent) = path.parent() {
                    fs::create_dir_all(parent).map_err(failed)?;
                }
            }
            Err(error) => return Err(failed(error)),
        }
        fs::write(&path, text).map_err(failed)?;
        self.summary.written += 1;
        if self.replace {
            self.taken.insert(path);
        }
        Ok(())
    }
}

/// `folder/a/b.txt` for the key `a/b.jpg`; nothing for keys that would lead out of the folder.
fn below(folder: &Path, key: &str, suffix: &str) -> Option<PathBuf> {
    let key = Path::new(key);
    let inside = key.components().all(|part| matches!(part, Component::Normal(_)));
    let name = key.file_stem()?.to_str()?;
    inside.then(|| folder.join(key).with_file_name(format!("{name}{suffix}")))
}

fn note(examples: &mut Vec<String>, key: &str) {
    if examples.len() < EXAMPLES {
        examples.push(key.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_become_paths_below_the_folder() {
        let path = |key: &str| below(Path::new("in"), key, ".txt").map(|path| path.display().to_string());
        assert_eq!(path("a b/50%.jpg").as_deref(), Some("in/a b/50%.txt"));
        assert_eq!(path("a.tar/x.y.png").as_deref(), Some("in/a.tar/x.y.txt"));
        assert_eq!(path("plain").as_deref(), Some("in/plain.txt"));
        for key in ["/etc/passwd", "../a.jpg", "a/../../b.jpg", "", ".."] {
            assert_eq!(path(key), None, "{key}");
        }
    }
}
