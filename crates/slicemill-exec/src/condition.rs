//! `--where`: an SQL condition over columns of the plan and of the input.
//!
//! ```text
//!  width >= 512 AND license = 'cc0' AND slices + input_faces < 9
//!  ╰── after planning ╯  ╰─ before reading ╯  ╰──── after planning ────╯
//! ```
//!
//! The condition is split at its outermost ANDs. What needs columns of the input only is asked before anything of the
//! row is read, the rest when its header has been read and its slices are planned. A row for which the condition is not
//! true (false, or null) is skipped, so that rows stay conserved.
//!
//! Names are case-sensitive. A name means a column of the plan where there is one, else a column of the input;
//! `input_<name>` always means the input's.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray, UInt8Array, UInt32Array, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::{DFSchema, DataFusionError, SchemaError};
use datafusion::logical_expr::utils::{conjunction, split_conjunction};
use datafusion::logical_expr::{Expr, ExprSchemable};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::prelude::{SessionConfig, SessionContext};

use slicemill_io::INPUT_PREFIX;
use slicemill_pipeline::PlannedView;

use crate::ExecError;

/// Columns of the plan that a condition may name, with their types.
const PLAN_COLUMNS: [(&str, DataType); 11] = [
    ("key", DataType::Utf8),
    ("source", DataType::Utf8),
    ("bytes", DataType::UInt64),
    ("width", DataType::UInt32),
    ("height", DataType::UInt32),
    ("orientation_applied", DataType::UInt8),
    ("format", DataType::Utf8),
    ("grid_cols", DataType::UInt32),
    ("grid_rows", DataType::UInt32),
    ("slices", DataType::UInt32),
    ("visual_tokens", DataType::UInt32),
];

/// A checked condition.
#[derive(Debug, Clone)]
pub struct Condition {
    text: Arc<str>,
    /// Over the columns of the input.
    before: Option<Arc<dyn PhysicalExpr>>,
    /// Over the columns of the plan and of the input.
    after: Option<Arc<dyn PhysicalExpr>>,
    /// The input's columns as fields `input_<name>`.
    input: SchemaRef,
    both: SchemaRef,
}

/// The names of input columns that `text` refers to.
///
/// # Errors
/// When it is not a condition in SQL.
pub fn input_columns_of(text: &str) -> Result<Vec<String>, ExecError> {
    let context = context();
    let mut found: BTreeSet<String> = BTreeSet::new();
    // A condition names its columns one error at a time; more than this is not written by people.
    const NAMES_MAX: usize = 256;
    while found.len() < NAMES_MAX {
        let fields = found.iter().map(|name| Field::new(name.as_str(), DataType::Null, true)).collect::<Vec<_>>();
        let schema = DFSchema::try_from(Schema::new([plan_fields(), fields].concat()))?;
        match context.parse_sql_expr(text, &schema) {
            Ok(_) => {
                let strip = |name: &String| name.strip_prefix(INPUT_PREFIX).unwrap_or(name).to_owned();
                return Ok(found.iter().map(strip).collect::<BTreeSet<_>>().into_iter().collect());
            }
            Err(error) => match missing_field(&error) {
                Some(name) if found.insert(name.clone()) => {}
                _ => return Err(refused(text, &error)),
            },
        }
    }
    Err(ExecError::Condition(format!("--where names more than {NAMES_MAX} columns")))
}

fn missing_field(error: &DataFusionError) -> Option<String> {
    match error.find_root() {
        DataFusionError::SchemaError(schema, _) => match schema.as_ref() {
            SchemaError::FieldNotFound { field, .. } => Some(field.name.clone()),
            _ => None,
        },
        _ => None,
    }
}

fn refused(text: &str, error: &DataFusionError) -> ExecError {
    let message = error.find_root().strip_backtrace();
    ExecError::Condition(format!(
        "--where \"{text}\" is not a condition: {message}; write SQL as in \"width >= 512 AND license = 'cc0'\""
    ))
}

fn context() -> SessionContext {
    let mut config = SessionConfig::new();
    config.options_mut().sql_parser.enable_ident_normalization = false;
    SessionContext::new_with_config(config)
}

fn plan_fields() -> Vec<Field> {
    PLAN_COLUMNS.iter().map(|(name, ty)| Field::new(*name, ty.clone(), false)).collect()
}

impl Condition {
    /// Checks `text` against the plan's columns and the input's, `columns`, by their own names.
    ///
    /// # Errors
    /// When it is not a condition, names a column that is not there, or compares what cannot be compared.
    pub fn new(text: &str, columns: &[Field]) -> Result<Self, ExecError> {
        let context = context();
        let spelled = |name: &str| format!("{INPUT_PREFIX}{name}");
        let input: Vec<Field> =
            columns.iter().map(|field| Field::new(spelled(field.name()), field.data_type().clone(), true)).collect();
        let both = [plan_fields(), input.clone()].concat();
        // A bare name of an input column is the same column once more, unless the plan has one of that name.
        let is_plan = |name: &str| PLAN_COLUMNS.iter().any(|(plan, _)| *plan == name);
        let bare: Vec<Field> = columns
            .iter()
            .filter(|field| !is_plan(field.name()))
            .map(|field| field.clone().with_nullable(true))
            .collect();
        let schema = DFSchema::try_from(Schema::new([both.clone(), bare].concat()))?;
        let expr = context.parse_sql_expr(text, &schema).map_err(|error| refused(text, &error))?;
        let kind = expr.get_type(&schema).map_err(|error| refused(text, &error))?;
        if !matches!(kind, DataType::Boolean | DataType::Null) {
            return Err(ExecError::Condition(format!(
                "--where \"{text}\" is {kind}, not true or false; write a condition as \"width >= 512\""
            )));
        }
        let (before, after): (Vec<Expr>, Vec<Expr>) = split_conjunction(&expr).into_iter().cloned().partition(|part| {
            part.column_refs().iter().all(|column| !is_plan(column.name())) && !part.column_refs().is_empty()
        });
        let rename = |parts: Vec<Expr>| conjunction(parts).map(|expr| rename_bare(expr, &is_plan)).transpose();
        let (before, after) = (rename(before)?, rename(after)?);
        let physical = |expr: Option<Expr>, fields: &[Field]| {
            let schema = DFSchema::try_from(Schema::new(fields.to_vec()))?;
            expr.map(|expr| context.create_physical_expr(expr, &schema)).transpose()
        };
        Ok(Self {
            text: text.into(),
            before: physical(before, &input).map_err(|error| refused(text, &error))?,
            after: physical(after, &both).map_err(|error| refused(text, &error))?,
            input: Arc::new(Schema::new(input)),
            both: Arc::new(Schema::new(both)),
        })
    }

    /// The condition as it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether something of it is asked when rows are planned.
    pub const fn needs_plan(&self) -> bool {
        self.after.is_some()
    }

    /// For every row, whether it may be taken as far as the columns of the input tell. `columns` are those given to
    /// [`new`](Self::new), in order.
    ///
    /// # Errors
    /// When the condition cannot be evaluated, as in a division by zero.
    pub fn of_inputs(&self, columns: Vec<ArrayRef>, rows: usize) -> Result<Vec<bool>, ExecError> {
        match &self.before {
            None => Ok(vec![true; rows]),
            Some(expr) => evaluate(expr, Arc::clone(&self.input), columns, rows),
        }
    }

    /// Whether a planned row is taken. `columns` hold its one row of input columns.
    ///
    /// # Errors
    /// As [`of_inputs`](Self::of_inputs).
    pub fn of_plan(&self, facts: &PlannedView<'_>, columns: Vec<ArrayRef>) -> Result<bool, ExecError> {
        let Some(expr) = &self.after else { return Ok(true) };
        let text = |value: &str| -> ArrayRef { Arc::new(StringArray::from(vec![value])) };
        let number = |value: u32| -> ArrayRef { Arc::new(UInt32Array::from(vec![value])) };
        let mut all: Vec<ArrayRef> = vec![
            text(facts.key),
            text(facts.source),
            Arc::new(UInt64Array::from(vec![facts.bytes])),
            number(facts.width),
            number(facts.height),
            Arc::new(UInt8Array::from(vec![facts.orientation_applied])),
            text(facts.format),
            number(facts.grid_cols),
            number(facts.grid_rows),
            number(facts.slices),
            number(facts.visual_tokens),
        ];
        all.extend(columns);
        Ok(evaluate(expr, Arc::clone(&self.both), all, 1)?.first().copied().unwrap_or(false))
    }
}

/// `name` of the input as `input_name`, which is what its column is called.
fn rename_bare(expr: Expr, is_plan: &impl Fn(&str) -> bool) -> Result<Expr, ExecError> {
    use datafusion::common::tree_node::{Transformed, TreeNode};
    let renamed = expr.transform(|expr| {
        Ok(match expr {
            Expr::Column(mut column) if !is_plan(&column.name) && !column.name.starts_with(INPUT_PREFIX) => {
                column.name = format!("{INPUT_PREFIX}{}", column.name);
                Transformed::yes(Expr::Column(column))
            }
            other => Transformed::no(other),
        })
    })?;
    Ok(renamed.data)
}

fn evaluate(
    expr: &Arc<dyn PhysicalExpr>,
    schema: SchemaRef,
    columns: Vec<ArrayRef>,
    rows: usize,
) -> Result<Vec<bool>, ExecError> {
    let options = arrow::record_batch::RecordBatchOptions::new().with_row_count(Some(rows));
    let batch = RecordBatch::try_new_with_options(schema, columns, &options)?;
    let values = expr.evaluate(&batch)?.into_array(rows)?;
    let Some(values) = values.as_boolean_opt() else { return Ok(vec![false; rows]) };
    Ok((0..rows).map(|row| values.is_valid(row) && values.value(row)).collect())
}

#[cfg(test)]
mod tests {
    use arrow::array::Int64Array;

    use super::*;

    const FACTS: PlannedView<'static> = PlannedView {
        policy: "llava-uhd",
        columns: None,
        key: "a.jpg",
        source: "file:///a.jpg",
        bytes: 1000,
        width: 640,
        height: 480,
        orientation_applied: 1,
        format: "jpeg",
        grid_cols: 2,
        grid_rows: 1,
        slices: 2,
        visual_tokens: 192,
    };

    fn fields() -> Vec<Field> {
        vec![Field::new("license", DataType::Utf8, true), Field::new("width", DataType::Int64, true)]
    }

    fn columns(licenses: &[Option<&str>], widths: &[Option<i64>]) -> Vec<ArrayRef> {
        vec![Arc::new(StringArray::from(licenses.to_vec())), Arc::new(Int64Array::from(widths.to_vec()))]
    }

    #[test]
    fn names_of_input_columns_are_found() {
        let names = |text| input_columns_of(text).unwrap();
        assert!(names("width >= 512 and slices < 3").is_empty());
        assert_eq!(names("width >= 512 AND license = 'cc0' OR Faces > 2"), ["Faces", "license"]);
        assert_eq!(names("input_width > width AND lower(\"odd name\") = 'x'"), ["odd name", "width"]);
    }

    #[test]
    fn parts_over_the_input_are_asked_first() {
        let condition = Condition::new("width >= 512 AND license = 'cc0'", &fields()).unwrap();
        let kept = condition.of_inputs(columns(&[Some("cc0"), Some("by"), None], &[None, Some(1), None]), 3).unwrap();
        assert_eq!(kept, [true, false, false]);
        assert!(condition.of_plan(&FACTS, columns(&[Some("by")], &[None])).unwrap());
        assert!(!condition.of_plan(&PlannedView { width: 511, ..FACTS }, columns(&[Some("cc0")], &[None])).unwrap());
    }

    #[test]
    fn the_plans_columns_come_before_the_inputs() {
        let condition = Condition::new("width = 640 AND input_width = 7", &fields()).unwrap();
        assert_eq!(condition.of_inputs(columns(&[None, None], &[Some(7), Some(640)]), 2).unwrap(), [true, false]);
        assert!(condition.of_plan(&FACTS, columns(&[None], &[Some(7)])).unwrap());
        let mixed = Condition::new("width > input_width OR license = 'x'", &fields()).unwrap();
        assert_eq!(mixed.of_inputs(columns(&[None], &[None]), 1).unwrap(), [true]);
        assert!(mixed.of_plan(&FACTS, columns(&[None], &[Some(639)])).unwrap());
        assert!(!mixed.of_plan(&FACTS, columns(&[None], &[Some(640)])).unwrap());
    }

    #[test]
    fn what_is_no_condition_is_refused_in_words() {
        for (text, part) in [
            ("width >=", "is not a condition"),
            ("width", "not true or false"),
            ("size > 3", "size"),
            ("width > (SELECT 1)", "--where"),
            ("nosuchfunction(width)", "nosuchfunction"),
        ] {
            let error = Condition::new(text, &fields()).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
