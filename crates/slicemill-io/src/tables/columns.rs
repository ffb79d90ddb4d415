//! Columns of the input that a job keeps or filters by, as they travel with an entry: the text of a JSON object.
//!
//! Values keep their spelling (`1.50` stays `1.50`), so that a column whose type turns out to be text holds what the
//! file held.

use std::borrow::Cow;

use serde::de::IgnoredAny;
use serde_json::Value;

/// Names and values of a JSON object, values as they are spelled. Of equal names all are there, in order.
pub(crate) fn fields(text: &str) -> Result<Vec<(String, &str)>, String> {
    serde_json::from_str::<IgnoredAny>(text).map_err(|error| format!("it is not JSON: {error}"))?;
    let not_object = || "it is not a JSON object".to_owned();
    let mut rest = text.trim_start().strip_prefix('{').ok_or_else(not_object)?.trim_start();
    let mut fields = Vec::new();
    while !rest.starts_with('}') {
        let (name, after) = value(rest)?;
        let name =
            serde_json::from_str::<String>(name).map_err(|error| format!("a name in it is not text: {error}"))?;
        rest = after.trim_start().strip_prefix(':').ok_or_else(not_object)?;
        let (spelled, after) = value(rest)?;
        fields.push((name, spelled.trim()));
        let after = after.trim_start();
        rest = after.strip_prefix(',').unwrap_or(after).trim_start();
        if rest.is_empty() {
            return Err(not_object());
        }
    }
    Ok(fields)
}

/// The JSON value at the beginning of `text`, and what follows it.
fn value(text: &str) -> Result<(&str, &str), String> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<IgnoredAny>();
    match values.next() {
        Some(Ok(IgnoredAny)) => Ok(text.split_at(values.byte_offset())),
        Some(Err(error)) => Err(format!("it is not JSON: {error}")),
        None => Err("it is not a JSON object".to_owned()),
    }
}

/// The value of `name`: the last one, as JSON readers have it.
pub(crate) fn field<'a>(fields: &[(String, &'a str)], name: &str) -> Option<&'a str> {
    fields.iter().rev().find(|(other, _)| other == name).map(|(_, value)| *value)
}

/// The text of a JSON string.
pub(crate) fn spell(text: &str) -> String {
    Value::from(text).to_string()
}

/// A value of a text format without types (CSV): numbers and booleans as what they are, anything else as text,
/// nothing as null. What another spelling could be meant by (`00123`, `+1`, `1_000`) stays text.
pub(crate) fn spell_untyped(text: &str) -> Cow<'_, str> {
    match text {
        "" => Cow::Borrowed("null"),
        "true" | "false" => Cow::Borrowed(text),
        _ if is_number(text) => Cow::Borrowed(text),
        _ => Cow::Owned(spell(text)),
    }
}

/// Whether `text` is a number as JSON spells it.
pub(crate) fn is_number(text: &str) -> bool {
    let text = text.strip_prefix('-').unwrap_or(text);
    let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    let whole = digits(text);
    if whole == 0 || (whole > 1 && text.starts_with('0')) {
        return false;
    }
    let mut rest = &text[whole..];
    if let Some(fraction) = rest.strip_prefix('.') {
        let count = digits(fraction);
        if count == 0 {
            return false;
        }
        rest = &fraction[count..];
    }
    if let Some(exponent) = rest.strip_prefix(['e', 'E']) {
        let exponent = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
        let count = digits(exponent);
        return count > 0 && count == exponent.len();
    }
    rest.is_empty()
}

/// Whether a value can be read again: nesting and escapes that no reader takes are found here.
pub(crate) fn check_value(spelled: &str) -> Result<(), String> {
    match spelled.as_bytes().first() {
        Some(b'{' | b'[' | b'"') => {
            serde_json::from_str::<Value>(spelled).map(|_| ()).map_err(|error| error.to_string())
        }
        _ => Ok(()),
    }
}

/// The object of `names` with their values, null where there is none. `None` when no column is asked for.
pub(crate) fn object<'a>(names: &[String], mut value: impl FnMut(&str) -> Option<Cow<'a, str>>) -> Option<String> {
    if names.is_empty() {
        return None;
    }
    let mut text = String::from("{");
    for (index, name) in names.iter().enumerate() {
        if index > 0 {
            text.push(',');
        }
        text.push_str(&spell(name));
        text.push(':');
        text.push_str(&value(name).unwrap_or(Cow::Borrowed("null")));
    }
    text.push('}');
    Some(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn fields_keep_their_spelling() {
        let text = r#" { "a" : 1.50 ,"b":"x\u00e9" , "c": [1, {"d":null}],"a":2e5 , "é\"":{} } "#;
        let found = fields(text).unwrap();
        let pairs: Vec<_> = found.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        let expected = [("a", "1.50"), ("b", r#""x\u00e9""#), ("c", r#"[1, {"d":null}]"#), ("a", "2e5"), ("é\"", "{}")];
        assert_eq!(pairs, expected);
        assert_eq!(field(&found, "a"), Some("2e5"));
        assert_eq!(fields("{}").unwrap(), []);
    }

    #[test]
    fn what_is_no_object_is_said() {
        for (text, why) in [
            ("[1]", "not a JSON object"),
            ("3", "not a JSON object"),
            ("{\"a\":1", "not JSON: EOF"),
            ("{\"a\":1}x", "trailing characters"),
            ("{a:1}", "not JSON"),
            ("{\"a\":1,}", "not JSON"),
        ] {
            let error = fields(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn deep_nesting_does_not_overflow() {
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(200_000), "]".repeat(200_000));
        let found = fields(&deep).unwrap();
        assert!(check_value(found[0].1).is_err());
    }

    #[test]
    fn untyped_values_are_what_they_look_like() {
        for text in ["0", "-1", "512", "1.50", "-0.25e-3", "9E9", "true", "false", "123456789012345678901234567890"] {
            assert_eq!(spell_untyped(text), text);
        }
        for text in ["00123", "+1", "1.", ".5", "1e", "1_000", "NaN", "True", "1 ", "0x10", "--1", "a\"b"] {
            assert_eq!(spell_untyped(text), spell(text), "{text}");
        }
        assert_eq!(spell_untyped(""), "null");
    }

    proptest! {
        #[test]
        fn any_text_is_fields_or_an_error(text in "[{}\\[\\]\",:a0 \\\\u\\-.e]{0,40}") {
            let ours = fields(&text).is_ok();
            let serde = serde_json::from_str::<serde_json::Map<String, Value>>(&text).is_ok();
            // Numbers no machine type holds and lone surrogates are refused by the one and not by the other.
            prop_assert!(ours || !serde, "{text}");
        }

        #[test]
        fn numbers_are_those_of_json(text in "-?[0-9]{0,3}(\\.[0-9]{0,2})?([eE][+-]?[0-9]{0,2})?") {
            prop_assert_eq!(is_number(&text), serde_json::from_str::<f64>(&text).is_ok());
        }

        #[test]
        fn objects_are_read_back(values in proptest::collection::vec("\\PC{0,8}", 1..5)) {
            let names: Vec<String> = (0..values.len()).map(|index| format!("n{index}")).collect();
            let text = object(&names, |name| {
                let index: usize = name[1..].parse().ok()?;
                Some(Cow::Owned(spell(&values[index])))
            }).unwrap();
            let read: Vec<String> = fields(&text).unwrap().iter()
                .map(|(_, value)| serde_json::from_str(value).unwrap()).collect();
            prop_assert_eq!(read, values);
        }
    }
}
