//! Every fixture decodes to the pixels that Pillow gives.

use serde_json::Value;
use slicemill_core::{Alpha, ImageOptions, OrientationRule, Size};
use slicemill_image::{HeaderRead, decode, read_header, read_header_partial, sniff};

use crate::{images, rare, sha256};

/// A file with what it must decode to.
struct Entry {
    name: String,
    bytes: Vec<u8>,
    expected: Value,
}

fn entries() -> Vec<Entry> {
    let mut entries = Vec::new();
    for (directory, list) in [(images(), "images.json"), (images(), "tiff.json"), (rare(), "rare.json")] {
        let text = std::fs::read_to_string(directory.join(list)).unwrap();
        let document: Value = serde_json::from_str(&text).unwrap();
        for expected in document["images"].as_array().unwrap().clone() {
            let name = expected["file"].as_str().unwrap().to_owned();
            entries.push(Entry { bytes: std::fs::read(directory.join(&name)).unwrap(), name, expected });
        }
    }
    entries
}

fn size(value: &Value) -> Size {
    let side = |at: usize| u32::try_from(value[at].as_u64().unwrap()).unwrap();
    Size::new(side(0), side(1))
}

#[test]
fn headers_tell_format_size_orientation_and_alpha() {
    for Entry { name, bytes, expected: entry } in entries() {
        let name = name.as_str();
        let header =
            read_header(&bytes, name, &ImageOptions::default()).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(header.format.as_str(), entry["format"].as_str().unwrap(), "{name}");
        assert_eq!(sniff(&bytes), Some(header.format), "{name}");
        assert_eq!(header.stored, size(&entry["stored"]), "{name}");
        assert_eq!(u64::from(header.orientation.exif()), entry["orientation"].as_u64().unwrap(), "{name}");
        assert_eq!(header.oriented_size(OrientationRule::Apply), size(&entry["size"]), "{name}");
        assert_eq!(header.has_alpha, entry["has_alpha"].as_bool().unwrap(), "{name}");
    }
}

#[test]
fn headers_read_in_pieces_are_the_same() {
    for Entry { name, bytes, .. } in entries() {
        let name = name.as_str();
        let options = ImageOptions::default();
        let whole = read_header(&bytes, name, &options).unwrap();
        let (mut have, mut steps) = (0, 0);
        let header = loop {
            match read_header_partial(&bytes[..have], bytes.len() as u64, name, &options).unwrap() {
                HeaderRead::Done(header) => break header,
                HeaderRead::NeedMore { bytes: needed } => {
                    assert!(needed > have as u64 && needed <= bytes.len() as u64, "{name}: {have} → {needed}");
                    have = usize::try_from(needed).unwrap();
                    steps += 1;
                }
            }
            assert!(steps < 8, "{name}: too many steps");
        };
        assert_eq!(header, whole, "{name}");
    }
}

#[test]
fn pixels_equal_pillow() {
    let mut wrong = Vec::new();
    for Entry { name, bytes, expected: entry } in entries() {
        let name = name.as_str();
        for (rule, key) in [(Alpha::White, "white"), (Alpha::Black, "black"), (Alpha::Drop, "drop")] {
            let options = ImageOptions { alpha: rule, ..ImageOptions::default() };
            let expected = entry.get(key).or_else(|| entry.get("rgb")).and_then(Value::as_str).unwrap();
            let image = read_header(&bytes, name, &options).and_then(|header| decode(&bytes, &header, &options));
            match image {
                Err(error) => wrong.push(format!("{name}: {error}")),
                Ok(decoded) if sha256(decoded.image.as_bytes()) != expected => wrong.push(format!("{name}, {key}")),
                Ok(decoded) => {
                    assert_eq!((decoded.image.size(), decoded.truncated), (size(&entry["size"]), false), "{name}")
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn orientation_can_be_ignored() {
    let options = ImageOptions { orientation: OrientationRule::Ignore, ..ImageOptions::default() };
    for number in 1..=8 {
        let name = format!("exif{number}.jpg");
        let bytes = std::fs::read(images().join(&name)).unwrap();
        let header = read_header(&bytes, &name, &options).unwrap();
        assert_eq!(header.oriented_size(options.orientation), header.stored);
        assert_eq!(decode(&bytes, &header, &options).unwrap().image.size(), header.stored);
    }
}

/// Motion JPEG leaves out the tables of the standard, which are those that `baseline_420.jpg` has.
#[test]
fn missing_huffman_tables_are_those_of_the_standard() {
    let bytes = std::fs::read(images().join("baseline_420.jpg")).unwrap();
    let (mut bare, mut at) = (bytes[..2].to_vec(), 2);
    loop {
        let len = 2 + usize::from(u16::from_be_bytes([bytes[at + 2], bytes[at + 3]]));
        match bytes[at + 1] {
            0xC4 => {}
            0xDA => break bare.extend(&bytes[at..]),
            _ => bare.extend(&bytes[at..at + len]),
        }
        at += len;
    }
    assert!(bare.len() + 400 < bytes.len());
    let options = ImageOptions::default();
    let pixels = |bytes: &[u8]| decode(bytes, &read_header(bytes, "a.jpg", &options).unwrap(), &options).unwrap();
    assert_eq!(pixels(&bare), pixels(&bytes));
}
