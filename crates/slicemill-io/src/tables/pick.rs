//! Which column holds the images, or says where they are.

use crate::{IoError, IoErrorKind};

/// Names of columns that hold the bytes of an image.
const BYTES: [&str; 14] = [
    "image",
    "img",
    "bytes",
    "jpg",
    "jpeg",
    "png",
    "webp",
    "image_bytes",
    "img_bytes",
    "image_data",
    "img_data",
    "image_content",
    "content",
    "data",
];
/// Names that say where an image is, and that it is one.
const IMAGE_LOCATIONS: [&str; 13] = [
    "image",
    "image_url",
    "image_uri",
    "image_path",
    "image_file",
    "image_location",
    "image_filename",
    "img",
    "img_url",
    "img_uri",
    "img_path",
    "img_file",
    "file_name",
];
/// Names that say where something is.
const LOCATIONS: [&str; 8] = ["url", "uri", "path", "file", "filename", "file_path", "filepath", "location"];

/// What a column may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// A struct with a binary child `bytes`.
    ImageStruct,
    /// Binary values.
    Bytes,
    /// Text, or nothing but nulls.
    Text,
    /// Neither.
    Other,
}

/// A column as the choice sees it.
#[derive(Debug, Clone)]
pub(crate) struct Column {
    /// Name.
    pub name: String,
    /// What it may be used for.
    pub usable: Use,
    /// Its type, for messages.
    pub shown: String,
}

/// The choice: an index of the columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Picked {
    /// The column's values are images.
    Bytes(usize),
    /// They say where images are.
    Location(usize),
}

/// Chooses the image column of `file`, or takes the one that was `named`.
///
/// Without a name: a column of bytes with a telling name, a struct before plain bytes; then a column of text with a
/// telling name, those that say "image" first; then the only binary column of a table that has nothing else. Anything
/// that leaves two is an error.
pub(crate) fn pick(file: &str, columns: &[Column], named: Option<&str>) -> Result<Picked, IoError> {
    if let Some(name) = named {
        return pick_named(file, columns, name);
    }
    let among = |usable: Use, names: Option<&[&str]>| -> Vec<usize> {
        let telling = |name: &str| names.is_none_or(|names| names.iter().any(|known| known.eq_ignore_ascii_case(name)));
        let fits = |column: &&(usize, &Column)| column.1.usable == usable && telling(&column.1.name);
        columns.iter().enumerate().collect::<Vec<_>>().iter().filter(fits).map(|(index, _)| *index).collect()
    };
    let tiers = [
        (among(Use::ImageStruct, Some(&BYTES)), true),
        (among(Use::ImageStruct, None), true),
        (among(Use::Bytes, Some(&BYTES)), true),
        (among(Use::Text, Some(&IMAGE_LOCATIONS)), false),
        (among(Use::Text, Some(&LOCATIONS)), false),
        (among(Use::Bytes, None), true),
    ];
    for (found, bytes) in tiers {
        match found[..] {
            [] => {}
            [only] if bytes => return Ok(Picked::Bytes(only)),
            [only] => return Ok(Picked::Location(only)),
            _ => {
                let names: Vec<_> = found.iter().map(|index| format!("'{}'", columns[*index].name)).collect();
                let why = format!("{} could all be the images", names.join(", "));
                return Err(cannot_pick(file, columns, &why));
            }
        }
    }
    Err(cannot_pick(file, columns, "no column has a name and a type that say so"))
}

/// Whether the name of a column says that it may be locations.
pub(crate) fn says_location(name: &str) -> bool {
    IMAGE_LOCATIONS.iter().chain(&LOCATIONS).any(|known| known.eq_ignore_ascii_case(name))
}

fn pick_named(file: &str, columns: &[Column], name: &str) -> Result<Picked, IoError> {
    let index = columns.iter().position(|column| column.name == name);
    match index.map(|index| (index, columns[index].usable)) {
        Some((index, Use::ImageStruct | Use::Bytes)) => Ok(Picked::Bytes(index)),
        Some((index, Use::Text)) => Ok(Picked::Location(index)),
        Some((index, Use::Other)) => {
            let message = format!(
                "the column '{name}' of {file} is {}; an image column holds binary values, structs with binary \
                 `bytes`, or text that says where the image is",
                columns[index].shown
            );
            Err(IoError::fatal(IoErrorKind::Invalid, message))
        }
        None => Err(no_column(file, columns, name)),
    }
}

/// That there is no column `name`, and which there are.
pub(crate) fn no_column(file: &str, columns: &[Column], name: &str) -> IoError {
    let message = format!("{file} has no column '{name}'; its columns are {}", listed(columns));
    IoError::fatal(IoErrorKind::Invalid, message)
}

fn cannot_pick(file: &str, columns: &[Column], why: &str) -> IoError {
    let message = format!(
        "cannot tell which column of {file} holds the images: {why}; name it with --image-column. Its columns are {}",
        listed(columns)
    );
    IoError::fatal(IoErrorKind::Invalid, message)
}

/// Columns with their types, for messages.
fn listed(columns: &[Column]) -> String {
    const SHOWN: usize = 40;
    let short = |text: &str| text.chars().take(80).collect::<String>();
    let names: Vec<_> = columns
        .iter()
        .take(SHOWN)
        .map(|column| format!("{} ({})", short(&column.name), short(&column.shown)))
        .collect();
    let more = columns.len().saturating_sub(SHOWN);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    names.join(", ") + &more
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns(spec: &[(&str, Use)]) -> Vec<Column> {
        spec.iter()
            .map(|(name, usable)| Column { name: name.to_string(), usable: *usable, shown: format!("{usable:?}") })
            .collect()
    }

    #[test]
    fn the_telling_column_is_chosen() {
        use Use::{Bytes, ImageStruct, Other, Text};
        for (spec, expected) in [
            (&[("caption", Text), ("image", ImageStruct)][..], Picked::Bytes(1)),
            (&[("mask", ImageStruct), ("image", ImageStruct)], Picked::Bytes(1)),
            (&[("photo", ImageStruct), ("data", Bytes)], Picked::Bytes(0)),
            (&[("url", Text), ("jpg", Bytes)], Picked::Bytes(1)),
            (&[("id", Other), ("blob", Bytes)], Picked::Bytes(1)),
            (&[("URL", Text), ("TEXT", Text)], Picked::Location(0)),
            (&[("url", Text), ("file_name", Text)], Picked::Location(1)),
            (&[("embedding", Bytes), ("url", Text)], Picked::Location(1)),
        ] {
            assert_eq!(pick("t.parquet", &columns(spec), None).unwrap(), expected, "{spec:?}");
        }
    }

    #[test]
    fn what_is_not_clear_is_an_error_that_lists_the_columns() {
        use Use::{Bytes, ImageStruct, Other, Text};
        for spec in [
            &[("image", Text), ("image_url", Text)][..],
            &[("left", ImageStruct), ("right", ImageStruct)],
            &[("a", Bytes), ("b", Bytes)],
            &[("caption", Text), ("width", Other)],
            &[],
        ] {
            let error = pick("t.parquet", &columns(spec), None).unwrap_err().message;
            assert!(error.contains("t.parquet") && error.contains("--image-column"), "{error}");
            for (name, usable) in spec {
                assert!(error.contains(&format!("{name} ({usable:?})")), "{error}");
            }
        }
    }

    #[test]
    fn a_named_column_must_be_there_and_fit() {
        let columns = columns(&[("image", Use::ImageStruct), ("link", Use::Text), ("width", Use::Other)]);
        assert_eq!(pick("t", &columns, Some("link")).unwrap(), Picked::Location(1));
        assert_eq!(pick("t", &columns, Some("image")).unwrap(), Picked::Bytes(0));
        let wrong = pick("t", &columns, Some("width")).unwrap_err().message;
        assert!(wrong.contains("'width'") && wrong.contains("Other"), "{wrong}");
        let missing = pick("t", &columns, Some("photo")).unwrap_err().message;
        assert!(missing.contains("no column 'photo'") && missing.contains("link (Text)"), "{missing}");
    }
}
