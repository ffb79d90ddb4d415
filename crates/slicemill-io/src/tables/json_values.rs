//! Arrow values as JSON spells them.

use arrow::array::{Array, AsArray as _, PrimitiveArray, StructArray};
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Float16Type, Float32Type, Float64Type, TimeUnit, TimestampMicrosecondType,
    TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType,
};
use arrow::util::display::{ArrayFormatter, FormatOptions};

use super::columns::spell;

/// The value of `array` at `row`. Numbers as numbers (not a number and infinities as null, JSON has none), dates and
/// times as ISO text, lists as lists, structs as objects, what cannot be spelled as null.
pub(crate) fn spell_value(array: &dyn Array, row: usize) -> String {
    let mut out = String::new();
    write(array, row, &mut out);
    out
}

fn write(array: &dyn Array, row: usize, out: &mut String) {
    if array.is_null(row) {
        out.push_str("null");
        return;
    }
    match array.data_type() {
        DataType::Boolean => out.push_str(if array.as_boolean().value(row) { "true" } else { "false" }),
        DataType::Utf8 => out.push_str(&spell(array.as_string::<i32>().value(row))),
        DataType::LargeUtf8 => out.push_str(&spell(array.as_string::<i64>().value(row))),
        DataType::Utf8View => out.push_str(&spell(array.as_string_view().value(row))),
        DataType::Float16 => float(f64::from(array.as_primitive::<Float16Type>().value(row)), out),
        // The shortest spelling that is this number in 32 bits, not the 64 bits it would be widened to.
        DataType::Float32 => match array.as_primitive::<Float32Type>().value(row) {
            value if value.is_finite() => out.push_str(&format!("{value:?}")),
            _ => out.push_str("null"),
        },
        DataType::Float64 => float(array.as_primitive::<Float64Type>().value(row), out),
        DataType::Timestamp(unit, zone) => timestamp(array, *unit, zone.is_some(), row, out),
        DataType::List(_) => list(&array.as_list::<i32>().value(row), out),
        DataType::LargeList(_) => list(&array.as_list::<i64>().value(row), out),
        DataType::FixedSizeList(..) => list(&array.as_fixed_size_list().value(row), out),
        DataType::Map(..) => list(&array.as_map().value(row), out),
        DataType::Struct(_) => object(array.as_struct(), row, out),
        other if other.is_integer() || other.is_decimal() => {
            out.push_str(&formatted(array, row).unwrap_or_else(|| "null".to_owned()));
        }
        _ => out.push_str(&formatted(array, row).map_or_else(|| "null".to_owned(), |text| spell(&text))),
    }
}

fn float(value: f64, out: &mut String) {
    if value.is_finite() {
        out.push_str(&format!("{value:?}"));
    } else {
        out.push_str("null");
    }
}

fn list(values: &dyn Array, out: &mut String) {
    out.push('[');
    for index in 0..values.len() {
        if index > 0 {
            out.push(',');
        }
        write(values, index, out);
    }
    out.push(']');
}

fn object(array: &StructArray, row: usize, out: &mut String) {
    out.push('{');
    for (index, (field, column)) in array.fields().iter().zip(array.columns()).enumerate() {
        if index > 0 {
            out.push(',');
        }
        out.push_str(&spell(field.name()));
        out.push(':');
        write(column, row, out);
    }
    out.push('}');
}

/// Times that are points in time end in `Z`, whatever zone they were written in.
fn timestamp(array: &dyn Array, unit: TimeUnit, in_utc: bool, row: usize, out: &mut String) {
    fn local<T>(array: &dyn Array, row: usize) -> PrimitiveArray<T>
    where
        T: ArrowPrimitiveType + arrow::datatypes::ArrowTimestampType,
    {
        array.as_primitive::<T>().slice(row, 1).with_timezone_opt(None::<String>)
    }
    let text = match unit {
        TimeUnit::Second => formatted(&local::<TimestampSecondType>(array, row), 0),
        TimeUnit::Millisecond => formatted(&local::<TimestampMillisecondType>(array, row), 0),
        TimeUnit::Microsecond => formatted(&local::<TimestampMicrosecondType>(array, row), 0),
        TimeUnit::Nanosecond => formatted(&local::<TimestampNanosecondType>(array, row), 0),
    };
    let zone = if in_utc { "Z" } else { "" };
    out.push_str(&text.map_or_else(|| "null".to_owned(), |text| spell(&format!("{text}{zone}"))));
}

fn formatted(array: &dyn Array, row: usize) -> Option<String> {
    let options = FormatOptions::new().with_display_error(false);
    let formatter = ArrayFormatter::try_new(array, &options).ok()?;
    formatter.value(row).try_to_string().ok()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{
        ArrayRef, Date32Array, Decimal128Array, Float32Array, Float64Array, Int64Array, ListArray, StringArray,
        TimestampMicrosecondArray, UInt64Array,
    };
    use arrow::datatypes::{Field, Int32Type};

    use super::*;

    fn all(array: impl Array + 'static) -> Vec<String> {
        (0..array.len()).map(|row| spell_value(&array, row)).collect()
    }

    #[test]
    fn values_have_their_json_spelling() {
        assert_eq!(all(Int64Array::from(vec![Some(-3), None])), ["-3", "null"]);
        assert_eq!(all(UInt64Array::from(vec![u64::MAX])), ["18446744073709551615"]);
        assert_eq!(all(Float64Array::from(vec![512.0, 0.1, f64::NAN, 1e300])), ["512.0", "0.1", "null", "1e300"]);
        assert_eq!(all(Float32Array::from(vec![0.1, f32::INFINITY])), ["0.1", "null"]);
        assert_eq!(all(StringArray::from(vec!["a\"\n"])), ["\"a\\\"\\n\""]);
        assert_eq!(all(Date32Array::from(vec![19_000])), ["\"2022-01-08\""]);
        let decimal = Decimal128Array::from(vec![1250]).with_precision_and_scale(6, 2).unwrap();
        assert_eq!(all(decimal), ["12.50"]);
        let times = TimestampMicrosecondArray::from(vec![1_700_000_000_500_000]);
        assert_eq!(all(times.clone()), ["\"2023-11-14T22:13:20.500\""]);
        assert_eq!(all(times.with_timezone("UTC")), ["\"2023-11-14T22:13:20.500Z\""]);
        let lists = ListArray::from_iter_primitive::<Int32Type, _, _>([Some([Some(1), None]), None]);
        assert_eq!(all(lists), ["[1,null]", "null"]);
        let inner: ArrayRef = Arc::new(StringArray::from(vec![Some("x"), None]));
        let object = StructArray::from(vec![(Arc::new(Field::new("a b", DataType::Utf8, true)), inner)]);
        assert_eq!(all(object), ["{\"a b\":\"x\"}", "{\"a b\":null}"]);
    }

    #[test]
    fn times_out_of_range_are_null() {
        assert_eq!(all(TimestampMicrosecondArray::from(vec![i64::MAX])), ["null"]);
    }
}
