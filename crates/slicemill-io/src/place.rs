//! Where inside an object an input stands: the fragment of its URL.
//!
//! ```text
//!  s3://bucket/a.jpg                           the whole object
//!  s3://bucket/train-000.tar#at=1536+20431     bytes of a plain archive
//!  file:///x/t.tar.gz#unpacked=1536+20431      bytes of what an archive unpacks to
//!  file:///x/t.parquet#row=17&column=image     a value of a table
//!  file:///x/list.jsonl#refused=bad_record&why=line%203:%20…      nothing that could be read, and why
//! ```
//!
//! A fragment is never part of what a store is asked for, so a URL with its place names an input completely: retries
//! need nothing else.

use std::fmt::Write as _;

use slicemill_core::ErrorClass;
use url::form_urlencoded;

/// Where inside its object an input stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// It is the object.
    Whole,
    /// Bytes of the object.
    At {
        /// First byte.
        offset: u64,
        /// Bytes.
        bytes: u64,
    },
    /// Bytes of what the object unpacks to.
    Unpacked {
        /// First byte.
        offset: u64,
        /// Bytes.
        bytes: u64,
    },
    /// A value of a table.
    Cell {
        /// Row of the file, from 0.
        row: u64,
        /// Dotted path of the column, as `image.bytes`.
        column: String,
    },
    /// Nothing that could be read: the row fails with this class and message.
    Refused {
        /// Class.
        class: ErrorClass,
        /// What is wrong, and the remedy.
        why: String,
    },
}

impl Place {
    /// Splits a URL into the object's URL and the place inside it. A fragment that is none of ours is left out.
    pub fn split(url: &str) -> (&str, Self) {
        let Some((object, fragment)) = url.split_once('#') else { return (url, Self::Whole) };
        (object, Self::parse(fragment).unwrap_or(Self::Whole))
    }

    /// The URL of this place in the object `object`, whose own fragment is replaced.
    pub fn join(&self, object: &str) -> String {
        let object = object.split_once('#').map_or(object, |(object, _)| object);
        let encode = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
        let mut url = object.to_owned();
        // Writing to a string cannot fail.
        let _ = match self {
            Self::Whole => Ok(()),
            Self::At { offset, bytes } => write!(url, "#at={offset}+{bytes}"),
            Self::Unpacked { offset, bytes } => write!(url, "#unpacked={offset}+{bytes}"),
            Self::Cell { row, column } => write!(url, "#row={row}&column={}", encode(column)),
            Self::Refused { class, why } => write!(url, "#refused={class}&why={}", encode(why)),
        };
        url
    }

    fn parse(fragment: &str) -> Option<Self> {
        let (name, value) = fragment.split_once('=')?;
        let range = |value: &str| {
            let (offset, bytes) = value.split_once('+')?;
            Some((offset.parse().ok()?, bytes.parse().ok()?))
        };
        let pairs: Vec<_> = form_urlencoded::parse(fragment.as_bytes()).collect();
        let second = |name: &str| pairs.get(1).filter(|(key, _)| key == name).map(|(_, value)| value.to_string());
        match name {
            "at" => range(value).map(|(offset, bytes)| Self::At { offset, bytes }),
            "unpacked" => range(value).map(|(offset, bytes)| Self::Unpacked { offset, bytes }),
            "row" => Some(Self::Cell { row: pairs.first()?.1.parse().ok()?, column: second("column")? }),
            "refused" => Some(Self::Refused {
                class: ErrorClass::parse(&pairs.first()?.1)?,
                why: second("why").unwrap_or_default(),
            }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_back_from_urls() {
        let why = "line 3: expected `,` & \"}\" # 100 %".to_owned();
        for place in [
            Place::Whole,
            Place::At { offset: 512, bytes: 0 },
            Place::Unpacked { offset: u64::MAX, bytes: 7 },
            Place::Cell { row: 17, column: "image.bytes & more".to_owned() },
            Place::Refused { class: ErrorClass::BadRecord, why },
        ] {
            let url = place.join("s3://bucket/a%20b%23c.tar#at=1+2");
            assert_eq!(Place::split(&url), ("s3://bucket/a%20b%23c.tar", place), "{url}");
        }
    }

    #[test]
    fn other_fragments_are_left_out() {
        for fragment in ["", "top", "at=1", "at=a+b", "row=1", "refused=x&why=y", "=", "&=&"] {
            assert_eq!(Place::split(&format!("https://x/y.jpg#{fragment}")), ("https://x/y.jpg", Place::Whole));
        }
    }
}
