//! Rows of Parquet files: images in them, or locations. Footers and the columns that are wanted are read, never the
//! images.

use std::borrow::Cow;
use std::ops::ControlFlow;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray as _};
use arrow::datatypes::DataType;
use arrow::record_batch::RecordBatch;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::errors::ParquetError;
use parquet::file::metadata::RowGroupMetaData;
use slicemill_core::ErrorClass;

use super::columns::object;
use super::entries::{Entries, Row, Target, key_value, text_value};
use super::footer::{Footer, guarded, holds_binary, is_damage, parquet_error};
use super::json_values::spell_value;
use super::jsonl::{Emit, Wanted};
use super::object::{Blocks, Object};
use super::pages::{GROUP_ROWS_MAX, PageChunks};
use super::pick::{Picked, Use, no_column, pick};
use crate::{IoError, IoErrorKind};

/// Larger pages of the columns that are listed are refused, in bytes.
const LISTED_PAGE_BYTES_MAX: u64 = 256 << 20;
/// Row groups of more locations are not believed.
const LISTED_GROUP_ROWS_MAX: i64 = 256 << 20;

/// Where the images are.
enum Images {
    /// In this leaf.
    Cells { leaf: usize, path: Arc<str> },
    /// Where this column of text says, or the child `path` of a struct.
    Locations { column: String, child: Option<&'static str> },
}

/// What is listed of a file.
struct Plan<'a> {
    shown: String,
    wanted: &'a Wanted,
    images: Images,
    /// Leaves that are read while listing.
    leaves: Vec<usize>,
}

/// Lists the rows of `object`. One whose footer cannot be read is one refused entry.
pub(crate) fn list(object: Object, wanted: &Wanted, entries: &mut Entries, emit: &mut Emit<'_>) -> Result<(), IoError> {
    let blocks = Blocks::new(object, LISTED_PAGE_BYTES_MAX);
    let footer = match Footer::read(&blocks) {
        Ok(footer) => footer,
        Err(error) if is_damage(&error) => {
            let _either_way = emit(entries.whole(ErrorClass::Corrupt, error.message));
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let plan = Plan::new(&footer, wanted, entries)?;
    if let Some(why) = plan.implausible(&footer) {
        let _either_way = emit(entries.whole(ErrorClass::Corrupt, why));
        return Ok(());
    }
    let mut first_row = 0;
    for (number, group) in footer.groups().iter().enumerate() {
        let rows = u64::try_from(group.num_rows()).unwrap_or(0);
        if plan.group(&blocks, &footer, (number, group), first_row, entries, emit)?.is_break() {
            return Ok(());
        }
        first_row += rows;
    }
    Ok(())
}

impl<'a> Plan<'a> {
    fn new(footer: &Footer, wanted: &'a Wanted, entries: &Entries) -> Result<Self, IoError> {
        let (shown, columns) = (entries.shown().to_owned(), footer.columns());
        let invalid = |message: String| IoError::fatal(IoErrorKind::Invalid, message);
        let picked = pick(&shown, &columns, wanted.image.as_deref())?;
        let images = match picked {
            Picked::Location(index) => Images::Locations { column: columns[index].name.clone(), child: None },
            Picked::Bytes(index) => images_of(footer, &columns[index].name, columns[index].usable)
                .ok_or_else(|| invalid(format!("'{}' of {shown} has no single value a row", columns[index].name)))?,
        };
        let _all = entries.tally().found(columns.iter().map(|column| column.name.as_str()), &wanted.names);
        if let Some(key) = &wanted.key
            && footer.data_type(key).is_none()
        {
            return Err(no_column(&shown, &columns, key));
        }
        let binary = |name: &&String| footer.data_type(name).is_some_and(holds_binary);
        if let Some(name) = wanted.names.iter().chain(&wanted.key).find(binary) {
            let message = format!("the column '{name}' of {shown} holds binary values, which are no input columns");
            return Err(invalid(message));
        }
        let mut plan = Self { shown, wanted, images, leaves: Vec::new() };
        plan.leaves = plan.listed_leaves(footer);
        let cells = match plan.images {
            Images::Cells { leaf, .. } => Some(leaf),
            Images::Locations { .. } => None,
        };
        for leaf in plan.leaves.iter().chain(&cells) {
            footer.check_codec(&plan.shown, *leaf)?;
        }
        Ok(plan)
    }

    /// What is wrong with the numbers of rows, which nothing else bounds.
    fn implausible(&self, footer: &Footer) -> Option<String> {
        let most = match self.images {
            Images::Cells { .. } => GROUP_ROWS_MAX,
            Images::Locations { .. } => LISTED_GROUP_ROWS_MAX,
        };
        let rows = |group: &RowGroupMetaData| group.num_rows();
        let (number, rows) =
            footer.groups().iter().map(rows).enumerate().find(|(_, rows)| !(0..=most).contains(rows))?;
        Some(format!(
            "row group {number} of {} has {rows} rows, more than {most}; if that is right, write the file with smaller \
             row groups",
            self.shown
        ))
    }

    /// Leaves of the columns that are wanted, of the keys and of the locations.
    fn listed_leaves(&self, footer: &Footer) -> Vec<usize> {
        let schema = footer.file().file_metadata().schema_descr();
        let listed = |leaf: &usize| {
            let path = schema.column(*leaf);
            let path = path.path().parts();
            let Some(root) = path.first() else { return false };
            let wanted = self.wanted.names.iter().chain(&self.wanted.key).any(|name| name == root);
            wanted
                || match &self.images {
                    Images::Locations { column, child: None } => column == root,
                    Images::Locations { column, child: Some(child) } => {
                        column == root && path.get(1).is_some_and(|name| name == child)
                    }
                    Images::Cells { .. } => false,
                }
        };
        (0..schema.num_columns()).filter(listed).collect()
    }

    /// Lists one row group. What of it cannot be read is refused, row by row.
    fn group(
        &self,
        blocks: &Blocks,
        footer: &Footer,
        (number, group): (usize, &RowGroupMetaData),
        first_row: u64,
        entries: &mut Entries,
        emit: &mut Emit<'_>,
    ) -> Result<ControlFlow<()>, IoError> {
        let rows = u64::try_from(group.num_rows()).unwrap_or(0);
        let bytes = self.cell_bytes(group);
        if self.leaves.is_empty() {
            for row in first_row..first_row + rows {
                if emit(entries.entry(self.row(row, bytes, None))).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
            return Ok(ControlFlow::Continue(()));
        }
        let mut done = 0;
        let damage = self.batches(blocks, footer, (number, group), &mut |batch| {
            for index in 0..batch.num_rows() {
                if done == rows
                    || emit(entries.entry(self.row(first_row + done, bytes, Some((batch, index))))).is_break()
                {
                    return ControlFlow::Break(());
                }
                done += 1;
            }
            ControlFlow::Continue(())
        })?;
        let Some(why) = damage else {
            return Ok(if done == rows { ControlFlow::Continue(()) } else { ControlFlow::Break(()) });
        };
        for row in first_row + done..first_row + rows {
            let target = Target::Refused(ErrorClass::Corrupt, why.clone());
            let row = Row { position: row, number: row, key: None, target, columns: None };
            if emit(entries.entry(row)).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// The listed columns of a row group, a batch at a time. Returns why they could not be read to their end.
    fn batches(
        &self,
        blocks: &Blocks,
        footer: &Footer,
        (number, group): (usize, &RowGroupMetaData),
        take: &mut dyn FnMut(&RecordBatch) -> ControlFlow<()>,
    ) -> Result<Option<String>, IoError> {
        let mut seen = 0;
        let mut read = guarded(|| self.reader(blocks, footer, number, group)).map(Some);
        while let Ok(Some(reader)) = &mut read {
            match guarded(|| Ok(reader.next().transpose()?)) {
                Ok(Some(batch)) => {
                    seen += batch.num_rows() as u64;
                    if take(&batch).is_break() {
                        return Ok(None);
                    }
                }
                Ok(None) => read = Ok(None),
                Err(error) => read = Err(error),
            }
        }
        let rows = u64::try_from(group.num_rows()).unwrap_or(0);
        let doing = || format!("row group {number} of {} is damaged", self.shown);
        match read {
            Ok(_) if seen >= rows => Ok(None),
            Ok(_) => Ok(Some(format!("{}: it has {seen} rows, not {rows}", doing()))),
            Err(error) => match parquet_error(blocks, &doing(), &error) {
                error if is_damage(&error) => Ok(Some(error.message)),
                error => Err(error),
            },
        }
    }

    fn reader(
        &self,
        blocks: &Blocks,
        footer: &Footer,
        number: usize,
        group: &RowGroupMetaData,
    ) -> Result<ParquetRecordBatchReader, ParquetError> {
        /// Bytes of a batch, about.
        const BATCH_BYTES: i64 = 8 << 20;
        let schema = footer.file().file_metadata().schema_descr();
        let chunks = self.leaves.iter().filter_map(|leaf| group.columns().get(*leaf));
        let bytes = chunks.map(|chunk| chunk.uncompressed_size().max(0)).fold(0, i64::saturating_add);
        let mean = bytes / group.num_rows().max(1);
        let batch_rows = usize::try_from(BATCH_BYTES / mean.max(1)).unwrap_or(1).clamp(1, 1024);
        let chunks = PageChunks::new(blocks.clone(), LISTED_PAGE_BYTES_MAX);
        ParquetRecordBatchReaderBuilder::new_with_metadata(chunks, footer.metadata.clone())
            .with_projection(ProjectionMask::leaves(schema, self.leaves.iter().copied()))
            .with_row_groups(vec![number])
            .with_batch_size(batch_rows)
            .build()
    }

    /// Memory to reserve for a value of this row group: the mean, in bytes.
    fn cell_bytes(&self, group: &RowGroupMetaData) -> u64 {
        /// Means outside are not believed.
        const LEAST: u64 = 1 << 10;
        const MOST: u64 = 256 << 20;
        let Images::Cells { leaf, .. } = &self.images else { return 0 };
        let bytes = group.columns().get(*leaf).map_or(0, |chunk| chunk.uncompressed_size());
        let rows = u64::try_from(group.num_rows()).unwrap_or(1).max(1);
        (u64::try_from(bytes).unwrap_or(0) / rows).clamp(LEAST, MOST)
    }

    fn row(&self, row: u64, bytes: u64, values: Option<(&RecordBatch, usize)>) -> Row {
        let value = |name: &str| {
            let (batch, index) = values?;
            batch.column_by_name(name).map(|column| spell_value(column, index))
        };
        let key = self.wanted.key.as_ref().map(|name| key_value(name, value(name).as_deref()));
        let columns = object(&self.wanted.names, |name| value(name).map(Cow::Owned));
        let target = match &self.images {
            Images::Cells { path, .. } => Target::Cell { row, column: Arc::clone(path), bytes },
            Images::Locations { column, child } => {
                let text = values.and_then(|(batch, index)| location(batch, column, *child, index));
                let name = child.map_or_else(|| column.clone(), |child| format!("{column}.{child}"));
                match text_value(&name, text.as_deref()) {
                    Ok(text) => Target::Location(text.into_bytes()),
                    Err(why) => Target::Refused(ErrorClass::BadRecord, why),
                }
            }
        };
        Row { position: row, number: row, key, target, columns }
    }
}

/// Where the images of the column `name` are. The structs of Hugging Face hold bytes or a path; a file without any
/// bytes, as its statistics say, is a list of paths.
fn images_of(footer: &Footer, name: &str, usable: Use) -> Option<Images> {
    let path = if usable == Use::ImageStruct { vec![name, "bytes"] } else { vec![name] };
    let leaf = footer.leaf(&path)?;
    let child_is_text = match footer.data_type(name) {
        Some(DataType::Struct(fields)) => {
            fields.iter().any(|field| field.name() == "path" && *field.data_type() == DataType::Utf8)
        }
        _ => false,
    };
    if child_is_text && footer.all_null(leaf) {
        return Some(Images::Locations { column: name.to_owned(), child: Some("path") });
    }
    Some(Images::Cells { leaf, path: path.join(".").into() })
}

/// The location of a row, as JSON spells it.
fn location(batch: &RecordBatch, column: &str, child: Option<&str>, row: usize) -> Option<String> {
    let array: &ArrayRef = batch.column_by_name(column)?;
    match child {
        None => Some(spell_value(array, row)),
        Some(_) if array.is_null(row) => Some("null".to_owned()),
        Some(child) => array.as_struct_opt()?.column_by_name(child).map(|array| spell_value(array, row)),
    }
}
