//! Types of input columns: found out while inputs are listed, frozen with the job, and then the same for all rows.

use std::borrow::Cow;
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanBuilder, Float64Builder, Int64Builder, StringBuilder};
use arrow::datatypes::{DataType, Field};
use serde::{Deserialize, Serialize};

use super::columns::{field, fields};
use crate::{IoError, IoErrorKind};

/// The type of a column whose values were all seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ColumnType {
    /// No value yet; read as text.
    Null,
    /// `true` and `false`, also spelled `True` or `TRUE`.
    Boolean,
    /// Whole numbers of 64 bits.
    Int64,
    /// Numbers.
    Float64,
    /// Anything: text as it is, all else as JSON spells it.
    Utf8,
}

impl ColumnType {
    /// The type of both.
    #[must_use]
    pub const fn unify(self, other: Self) -> Self {
        match (self, other) {
            (Self::Null, any) | (any, Self::Null) => any,
            (Self::Boolean, Self::Boolean) => Self::Boolean,
            (Self::Int64, Self::Int64) => Self::Int64,
            (Self::Int64 | Self::Float64, Self::Int64 | Self::Float64) => Self::Float64,
            _ => Self::Utf8,
        }
    }

    /// Of one value as JSON spells it. Whole numbers beyond 64 bits, numbers beyond `f64`, lists and objects are text.
    fn of(spelled: &str) -> Self {
        match spelled.as_bytes().first() {
            Some(b'n') => Self::Null,
            Some(b't' | b'f') => Self::Boolean,
            Some(b'"') if boolean(spelled).is_some() => Self::Boolean,
            Some(b'-' | b'0'..=b'9') => match spelled.bytes().any(|byte| matches!(byte, b'.' | b'e' | b'E')) {
                false if spelled.parse::<i64>().is_ok() => Self::Int64,
                true if spelled.parse::<f64>().is_ok_and(f64::is_finite) => Self::Float64,
                _ => Self::Utf8,
            },
            _ => Self::Utf8,
        }
    }

    /// The Arrow type.
    pub const fn data_type(self) -> DataType {
        match self {
            Self::Boolean => DataType::Boolean,
            Self::Int64 => DataType::Int64,
            Self::Float64 => DataType::Float64,
            Self::Null | Self::Utf8 => DataType::Utf8,
        }
    }
}

fn boolean(spelled: &str) -> Option<bool> {
    match spelled {
        "true" | "\"True\"" | "\"TRUE\"" => Some(true),
        "false" | "\"False\"" | "\"FALSE\"" => Some(false),
        _ => None,
    }
}

/// Names and types of the input columns of a job.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ColumnTypes {
    columns: Vec<(String, ColumnType)>,
}

impl ColumnTypes {
    /// Nothing seen yet of the columns `names`.
    pub fn new<Name: Into<String>>(names: impl IntoIterator<Item = Name>) -> Self {
        Self { columns: names.into_iter().map(|name| (name.into(), ColumnType::Null)).collect() }
    }

    /// Takes in the columns of one entry ([`InputEntry::columns`](crate::InputEntry::columns)).
    ///
    /// # Errors
    /// `Corrupt` when the text is not a JSON object.
    pub fn observe(&mut self, columns: Option<&str>) -> Result<(), IoError> {
        if self.columns.iter().all(|(_, seen)| *seen == ColumnType::Utf8) {
            return Ok(());
        }
        let Some(text) = columns else { return Ok(()) };
        let values = fields(text).map_err(|why| corrupt(&why))?;
        for (name, seen) in &mut self.columns {
            if let Some(value) = field(&values, name) {
                *seen = seen.unify(ColumnType::of(value));
            }
        }
        Ok(())
    }

    /// Names and types, in the order asked for.
    pub fn columns(&self) -> &[(String, ColumnType)] {
        &self.columns
    }

    /// The type of `name`.
    pub fn get(&self, name: &str) -> Option<ColumnType> {
        self.columns.iter().find(|(other, _)| other == name).map(|(_, seen)| *seen)
    }

    /// The Arrow fields; all may be null.
    pub fn fields(&self) -> Vec<Field> {
        self.columns.iter().map(|(name, seen)| Field::new(name, seen.data_type(), true)).collect()
    }
}

/// As `license: text, faces: int64`.
impl std::fmt::Display for ColumnTypes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (at, (name, seen)) in self.columns.iter().enumerate() {
            write!(f, "{}{name}: {}", if at > 0 { ", " } else { "" }, seen.data_type())?;
        }
        Ok(())
    }
}

fn corrupt(why: &str) -> IoError {
    IoError::fatal(IoErrorKind::Corrupt, format!("the columns of an input cannot be read: {why}"))
}

enum Builder {
    Boolean(BooleanBuilder),
    Int64(Int64Builder),
    Float64(Float64Builder),
    Utf8(StringBuilder),
}

impl Builder {
    fn new(seen: ColumnType, rows: usize) -> Self {
        match seen {
            ColumnType::Boolean => Self::Boolean(BooleanBuilder::with_capacity(rows)),
            ColumnType::Int64 => Self::Int64(Int64Builder::with_capacity(rows)),
            ColumnType::Float64 => Self::Float64(Float64Builder::with_capacity(rows)),
            ColumnType::Null | ColumnType::Utf8 => Self::Utf8(StringBuilder::with_capacity(rows, rows * 16)),
        }
    }

    /// Appends a value as JSON spells it; false when it has another type.
    fn append(&mut self, value: Option<&str>) -> bool {
        let value = value.filter(|value| *value != "null");
        match (self, value) {
            (Self::Boolean(builder), None) => builder.append_null(),
            (Self::Int64(builder), None) => builder.append_null(),
            (Self::Float64(builder), None) => builder.append_null(),
            (Self::Utf8(builder), None) => builder.append_null(),
            (Self::Boolean(builder), Some(value)) => match boolean(value) {
                Some(value) => builder.append_value(value),
                None => return false,
            },
            (Self::Int64(builder), Some(value)) => match value.parse() {
                Ok(value) => builder.append_value(value),
                Err(_) => return false,
            },
            (Self::Float64(builder), Some(value)) => match value.parse() {
                Ok(value) => builder.append_value(value),
                Err(_) => return false,
            },
            (Self::Utf8(builder), Some(value)) => match text_of(value) {
                Some(text) => builder.append_value(text),
                None => return false,
            },
        }
        true
    }

    fn finish(self) -> ArrayRef {
        match self {
            Self::Boolean(mut builder) => Arc::new(builder.finish()),
            Self::Int64(mut builder) => Arc::new(builder.finish()),
            Self::Float64(mut builder) => Arc::new(builder.finish()),
            Self::Utf8(mut builder) => Arc::new(builder.finish()),
        }
    }
}

/// A value as text: strings without their quotes, all else as spelled.
pub(crate) fn text_of(spelled: &str) -> Option<Cow<'_, str>> {
    if spelled.starts_with('"') {
        return serde_json::from_str(spelled).ok().map(Cow::Owned);
    }
    Some(Cow::Borrowed(spelled))
}

/// The columns of entries as Arrow arrays, in the order of `types`: one row an entry, null where it has no value.
///
/// # Errors
/// `Corrupt` when a text is not a JSON object, or a value is not of the column's type.
pub fn columns_batch(types: &ColumnTypes, entries: &[Option<&str>]) -> Result<Vec<(Field, ArrayRef)>, IoError> {
    let columns = types.columns();
    let mut builders: Vec<_> = columns.iter().map(|(_, seen)| Builder::new(*seen, entries.len())).collect();
    for entry in entries {
        let values = fields(entry.unwrap_or("{}")).map_err(|why| corrupt(&why))?;
        for ((name, seen), builder) in columns.iter().zip(&mut builders) {
            if !builder.append(field(&values, name)) {
                return Err(corrupt(&format!("'{name}' has a value that is not of its type {}", seen.data_type())));
            }
        }
    }
    Ok(types.fields().into_iter().zip(builders.into_iter().map(Builder::finish)).collect())
}

#[cfg(test)]
mod tests {
    use arrow::array::{Array as _, AsArray as _};
    use arrow::datatypes::{Float64Type, Int64Type};
    use proptest::prelude::*;

    use super::*;

    fn types_of(values: &[&str]) -> ColumnTypes {
        let mut types = ColumnTypes::new(["v"]);
        for value in values {
            types.observe(Some(&format!("{{\"v\":{value}}}"))).unwrap();
        }
        types
    }

    #[test]
    fn values_unify() {
        use ColumnType::{Boolean, Float64, Int64, Null, Utf8};
        for (values, expected) in [
            (&["null", "null"][..], Null),
            (&["1", "null", "-7"], Int64),
            (&["1", "2.5"], Float64),
            (&["1e3"], Float64),
            (&["true", "\"False\""], Boolean),
            (&["true", "1"], Utf8),
            (&["\"a\"", "1"], Utf8),
            (&["9223372036854775807"], Int64),
            (&["9223372036854775808"], Utf8),
            (&["1e999"], Utf8),
            (&["\"00123\""], Utf8),
            (&["[1]", "null"], Utf8),
        ] {
            assert_eq!(types_of(values).get("v"), Some(expected), "{values:?}");
        }
    }

    #[test]
    fn entries_without_columns_are_null() {
        let mut types = types_of(&["1"]);
        types.observe(None).unwrap();
        let batch = columns_batch(&types, &[None, Some("{\"v\":3}"), Some("{}"), Some("{\"v\":null}")]).unwrap();
        let array = batch[0].1.as_primitive::<Int64Type>();
        assert_eq!(array.iter().collect::<Vec<_>>(), [None, Some(3), None, None]);
    }

    #[test]
    fn mixed_values_are_text_as_spelled() {
        let values = ["1.50", "true", "\"a\\nb\"", "[1, {\"b\":2}]", "null", "12345678901234567890"];
        let types = types_of(&values);
        let texts: Vec<_> = values.iter().map(|value| format!("{{\"v\":{value}}}")).collect();
        let batch = columns_batch(&types, &texts.iter().map(|text| Some(text.as_str())).collect::<Vec<_>>()).unwrap();
        let array = batch[0].1.as_string::<i32>();
        let expected = ["1.50", "true", "a\nb", "[1, {\"b\":2}]", "", "12345678901234567890"];
        assert!(array.is_null(4));
        assert_eq!(array.iter().map(|text| text.unwrap_or_default()).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_value_of_another_type_is_an_error() {
        let types = types_of(&["1"]);
        let error = columns_batch(&types, &[Some("{\"v\":\"x\"}")]).unwrap_err();
        assert!(error.message.contains("'v'") && error.message.contains("Int64"), "{error}");
    }

    #[test]
    fn types_are_stored_with_the_job() {
        let types = types_of(&["1", "2.5"]);
        let text = serde_json::to_string(&types).unwrap();
        assert_eq!(text, r#"{"columns":[["v","float64"]]}"#);
        assert_eq!(serde_json::from_str::<ColumnTypes>(&text).unwrap(), types);
    }

    proptest! {
        #[test]
        fn observed_values_always_fit(values in proptest::collection::vec(prop_oneof![
            Just("null".to_owned()), Just("true".to_owned()), Just("\"TRUE\"".to_owned()),
            any::<i64>().prop_map(|value| value.to_string()),
            any::<u64>().prop_map(|value| value.to_string()),
            any::<f64>().prop_filter("finite", |value| value.is_finite()).prop_map(|value| format!("{value:?}")),
            "\\PC{0,6}".prop_map(|text| super::super::columns::spell(&text)),
            Just("[1,2]".to_owned()),
        ], 0..12)) {
            let texts: Vec<_> = values.iter().map(|value| format!("{{\"v\":{value}}}")).collect();
            let mut types = ColumnTypes::new(["v"]);
            for text in &texts {
                types.observe(Some(text)).unwrap();
            }
            let entries: Vec<_> = texts.iter().map(|text| Some(text.as_str())).collect();
            let batch = columns_batch(&types, &entries).unwrap();
            prop_assert_eq!(batch[0].1.len(), values.len());
            let nulls = values.iter().filter(|value| *value == "null").count();
            prop_assert_eq!(batch[0].1.null_count(), nulls);
            if types.get("v") == Some(ColumnType::Float64) {
                for (row, value) in values.iter().enumerate().filter(|(_, value)| *value != "null") {
                    prop_assert_eq!(batch[0].1.as_primitive::<Float64Type>().value(row), value.parse::<f64>().unwrap());
                }
            }
        }
    }
}
