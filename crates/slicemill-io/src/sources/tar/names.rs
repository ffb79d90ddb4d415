//! Names of members as parts of keys. Nothing is ever unpacked to a path, so a name can do no harm; it is spelled so
//! that it looks like what it is.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

use super::super::kinds::extension;

/// A name as part of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SafeName {
    /// Without `./` at the beginning; of what would lead out of a folder the first letters are spelled `%XX`.
    pub(crate) text: String,
    /// Why no file may have this name.
    pub(crate) refused: Option<&'static str>,
}

/// `name` as part of a key.
pub(crate) fn safe_name(name: &[u8]) -> SafeName {
    let mut rest = name;
    while let Some(inner) = rest.strip_prefix(b"./") {
        rest = inner;
    }
    let slashes = rest.iter().take_while(|byte| **byte == b'/').count();
    let mut refused = match rest {
        [] | b"." => Some("it is empty"),
        [b'/', ..] => Some("it is absolute"),
        _ => None,
    };
    let mut text = "%2F".repeat(slashes);
    for (index, part) in rest[slashes..].split(|byte| *byte == b'/').enumerate() {
        if index > 0 {
            text.push('/');
        }
        if part == b".." {
            refused = refused.or(Some("it leads out of its folder"));
            text.push_str("%2E%2E");
            continue;
        }
        for chunk in part.utf8_chunks() {
            for letter in chunk.valid().chars() {
                match letter {
                    '\0' => {
                        refused = refused.or(Some("it contains a zero byte"));
                        text.push_str("%00");
                    }
                    // Control characters would confuse terminals and logs.
                    _ if letter.is_control() => spell(letter.encode_utf8(&mut [0; 4]).as_bytes(), &mut text),
                    _ => text.push(letter),
                }
            }
            spell(chunk.invalid(), &mut text);
        }
    }
    SafeName { text, refused }
}

fn spell(bytes: &[u8], text: &mut String) {
    for byte in bytes {
        // Writing to a string cannot fail.
        let _ = write!(text, "%{byte:02X}");
    }
}

/// What archivers of some systems add beside the files themselves.
pub(crate) fn is_noise(name: &[u8]) -> bool {
    let mut parts = name.split(|byte| *byte == b'/').rev();
    let file = parts.next().unwrap_or_default();
    file.starts_with(b"._")
        || file == b".DS_Store"
        || parts.any(|folder| folder == b"__MACOSX" || folder.starts_with(b"PaxHeader"))
}

/// Names seen in one archive, 20 bytes each and a little more, however long they are.
#[derive(Debug, Default)]
pub(crate) struct Names {
    /// By hash: the number of the next one of this name.
    seen: HashMap<u128, u32>,
}

impl Names {
    /// `name`, and whether it is new; when it is not, with a number that makes it unique: `a (2).jpg`.
    pub(crate) fn unique(&mut self, name: String) -> (String, bool) {
        let hash = hash(&name);
        let Some(mut number) = self.seen.get(&hash).copied() else {
            self.seen.insert(hash, 2);
            return (name, true);
        };
        loop {
            let numbered = format!("{name} ({number})");
            number = number.saturating_add(1);
            let other = self::hash(&numbered);
            if !self.seen.contains_key(&other) {
                self.seen.insert(other, 2);
                self.seen.insert(hash, number);
                return (numbered, false);
            }
        }
    }
}

fn hash(name: &str) -> u128 {
    let digest = Sha256::digest(name);
    digest.iter().take(16).fold(0, |hash, byte| hash << 8 | u128::from(*byte))
}

/// What members of one sample have in common: the folder and the name up to its first dot.
pub(crate) fn sample(name: &str) -> &str {
    let file = name.rfind('/').map_or(0, |slash| slash + 1);
    // A dot at the beginning is part of the name.
    let dot = name[file..].char_indices().skip(1).find(|(_, letter)| *letter == '.');
    &name[..dot.map_or(name.len(), |(dot, _)| file + dot)]
}

/// What follows the name of the sample: `jpg`, `seg.png`.
pub(crate) fn suffix(name: &str) -> &str {
    name[sample(name).len()..].trim_start_matches('.')
}

/// The last extension, in small letters, for counts.
pub(crate) fn counted_as(name: &str) -> String {
    const LONGEST: usize = 16;
    match extension(OsStr::new(name)) {
        Some(extension) if extension.len() <= LONGEST => format!(".{extension}"),
        _ => "other".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_spelled_as_they_are() {
        for (name, text, refused) in [
            (&b"a/b.jpg"[..], "a/b.jpg", false),
            (b"./a.jpg", "a.jpg", false),
            (b"././a b%20.jpg", "a b%20.jpg", false),
            (b"..a/b..jpg", "..a/b..jpg", false),
            (b"caf\xe9.jpg", "caf%E9.jpg", false),
            ("ä\u{7}\n.jpg".as_bytes(), "ä%07%0A.jpg", false),
            (b"/etc/passwd", "%2Fetc/passwd", true),
            (b"//x", "%2F%2Fx", true),
            (b".//x", "%2Fx", true),
            (b"../x", "%2E%2E/x", true),
            (b"a/../../x", "a/%2E%2E/%2E%2E/x", true),
            (b"a/..", "a/%2E%2E", true),
            (b"a\0b", "a%00b", true),
            (b"", "", true),
            (b"./", "", true),
        ] {
            let safe = safe_name(name);
            assert_eq!((safe.text.as_str(), safe.refused.is_some()), (text, refused), "{}", name.escape_ascii());
        }
    }

    #[test]
    fn noise_is_known_by_name() {
        for name in [&b"._a.jpg"[..], b"x/._a.jpg", b"__MACOSX/x/a", b".DS_Store", b"x/PaxHeaders.17/a", b"PaxHeader/a"]
        {
            assert!(is_noise(name), "{}", name.escape_ascii());
        }
        for name in [&b"a._jpg"[..], b"PaxHeaderless.jpg", b".a.jpg", b"_MACOSX/a"] {
            assert!(!is_noise(name), "{}", name.escape_ascii());
        }
    }

    #[test]
    fn names_that_come_again_get_a_number() {
        let mut names = Names::default();
        let mut unique = |name: &str| names.unique(name.to_owned());
        assert_eq!(unique("a"), ("a".to_owned(), true));
        assert_eq!(unique("a (2)"), ("a (2)".to_owned(), true));
        assert_eq!(unique("a"), ("a (3)".to_owned(), false));
        assert_eq!(unique("a"), ("a (4)".to_owned(), false));
        assert_eq!(unique("a (3)"), ("a (3) (2)".to_owned(), false));
    }

    #[test]
    fn the_same_name_a_hundred_thousand_times_takes_linear_time() {
        let mut names = Names::default();
        let last = (0..100_000).map(|_| names.unique("a".to_owned()).0).last().unwrap();
        assert_eq!(last, "a (100000)");
    }

    #[test]
    fn samples_end_at_the_first_dot_of_the_file() {
        for (name, of, rest) in [
            ("a/000.jpg", "a/000", "jpg"),
            ("a.b/000.seg.png", "a.b/000", "seg.png"),
            ("000", "000", ""),
            ("x/.hidden.jpg", "x/.hidden", "jpg"),
            ("é.ü.jpg", "é", "ü.jpg"),
        ] {
            assert_eq!((sample(name), suffix(name)), (of, rest));
        }
        assert_eq!(counted_as("a/b.JSON"), ".json");
        assert_eq!(counted_as("a.b/c"), "other");
    }
}
