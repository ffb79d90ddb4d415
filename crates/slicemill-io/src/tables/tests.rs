//! Tests of tables.

mod images;
mod manifests;

use std::path::Path;
use std::sync::Arc;

use futures::TryStreamExt as _;
use slicemill_core::ErrorClass;
use url::Url;

use super::*;
use crate::local_files::modification_tag;
use crate::sources::{InputColumns, ListTable as _, Spool, TableFormat, TableObject};
use crate::{InputEntry, IoError, Place, RetryBudget, Stores};

/// The table in a local file.
fn table(path: &Path, format: TableFormat) -> TableObject {
    let metadata = std::fs::metadata(path).unwrap();
    TableObject {
        key: path.file_name().unwrap().to_str().unwrap().to_owned(),
        url: Url::from_file_path(path).unwrap().into(),
        bytes: metadata.len(),
        tag: modification_tag(&metadata),
        format,
        head: bytes::Bytes::new(),
    }
}

fn tables(options: TableOptions) -> Tables {
    Tables::new(Stores::default(), RetryBudget::ONCE, options)
}

async fn list_with(tables: &Tables, table: TableObject, names: &[&str]) -> Result<Vec<InputEntry>, IoError> {
    let columns = Arc::new(InputColumns::new(names.iter().copied()));
    let entries: Vec<InputEntry> = tables.list(table, &columns).try_collect().await?;
    let keys: std::collections::HashSet<_> = entries.iter().map(|entry| &entry.key).collect();
    assert_eq!(keys.len(), entries.len(), "keys are unique");
    assert!(entries.is_sorted_by(|a, b| a.rank() < b.rank()), "ranks are unique and sorted");
    Ok(entries)
}

async fn list(path: &Path, format: TableFormat, names: &[&str]) -> Result<Vec<InputEntry>, IoError> {
    list_with(&tables(TableOptions::default()), table(path, format), names).await
}

/// What a refused entry says.
fn refused(entry: &InputEntry) -> (ErrorClass, String) {
    match Place::split(&entry.url).1 {
        Place::Refused { class, why } => (class, why),
        other => panic!("{} is {other:?}", entry.key),
    }
}

fn cells() -> CellReader {
    CellReader::new(Stores::default(), RetryBudget::ONCE, Spool::in_temp_dir(), 1 << 30)
}
