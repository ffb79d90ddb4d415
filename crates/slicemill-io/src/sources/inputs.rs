//! What the inputs of a job name: one object, a folder, a pattern, standard input.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use globset::{GlobBuilder, GlobMatcher};

use crate::walk::key_part;
use crate::{IoError, IoErrorKind, Location, shown_url};

/// Names that one pattern may stand for.
const NAMES_MAX: usize = 1_000_000;

/// One input, understood.
#[derive(Debug, Clone)]
pub(crate) struct Input {
    /// As it was given, without secrets.
    pub(crate) shown: String,
    /// What its keys begin with when there are several inputs: the name of the folder and a slash.
    pub(crate) folder: String,
    pub(crate) origin: Origin,
}

/// Where an input's objects come from.
#[derive(Debug, Clone)]
pub(crate) enum Origin {
    /// One object; a folder when it is remote and there is no such object. The key is its name.
    One { location: Location, key: String },
    /// All that lies below.
    Folder(Location),
    /// What lies below and matches.
    Matching { location: Location, matcher: GlobMatcher, depth: usize },
    /// The objects of these names below a folder, sorted.
    Listed { location: Location, names: Vec<String> },
    /// A list on standard input.
    StandardInput,
}

impl Input {
    /// Understands one input. Local files and folders must be there.
    pub(crate) fn parse(text: &OsStr) -> Result<Self, IoError> {
        if text == "-" {
            let (shown, folder) = ("standard input".to_owned(), String::new());
            return Ok(Self { shown, folder, origin: Origin::StandardInput });
        }
        let shown = text.to_str().map_or_else(|| Path::new(text).display().to_string(), shown_url);
        let exists =
            Location::parse(text).ok().and_then(|location| location.local_path()).is_some_and(|path| path.exists());
        if let Some(pattern) = text.to_str().filter(|text| !exists && is_pattern(text)) {
            return Self::pattern(pattern, shown);
        }
        let location = Location::parse(text)?;
        let key = last_name(&location);
        let folder = if key.is_empty() { String::new() } else { format!("{key}/") };
        let slash = text.as_encoded_bytes().ends_with(b"/");
        let web = matches!(location.url().scheme(), "http" | "https");
        let origin = match location.local_path() {
            Some(path) => local(path, &shown, location, key)?,
            None if !web && (slash || location.object_path().is_ok_and(|path| path.as_ref().is_empty())) => {
                Origin::Folder(location)
            }
            None => Origin::One { location, key },
        };
        Ok(Self { shown, folder, origin })
    }

    fn pattern(text: &str, shown: String) -> Result<Self, IoError> {
        let invalid = |why: String| IoError::fatal(IoErrorKind::Invalid, format!("the pattern '{shown}': {why}"));
        let (base, pattern) = split_pattern(text);
        let location = Location::parse(if base.is_empty() { "." } else { base })?;
        let name = last_name(&location);
        let folder = if name.is_empty() { String::new() } else { format!("{name}/") };
        let web = matches!(location.url().scheme(), "http" | "https");
        if web || !pattern.contains(['*', '?', '[']) {
            let mut names = expand(pattern).map_err(invalid)?;
            names.sort();
            names.dedup();
            return Ok(Self { shown, folder, origin: Origin::Listed { location, names } });
        }
        let pattern = ranges_as_alternatives(pattern).map_err(invalid)?;
        let glob = GlobBuilder::new(&pattern).literal_separator(true).backslash_escape(true).build();
        let matcher = glob.map_err(|error| invalid(error.kind().to_string()))?.compile_matcher();
        let depth = if pattern.contains("**") { usize::MAX } else { pattern.matches('/').count() };
        Ok(Self { shown, folder, origin: Origin::Matching { location, matcher, depth } })
    }
}

fn local(path: PathBuf, shown: &str, location: Location, key: String) -> Result<Origin, IoError> {
    let metadata = std::fs::metadata(&path).map_err(|error| {
        let message = format!("cannot read the input '{shown}': {error}");
        IoError::fatal(IoErrorKind::NotFound, message).because(error)
    })?;
    if metadata.is_dir() {
        return Ok(Origin::Folder(location));
    }
    if metadata.is_file() {
        return Ok(Origin::One { location, key });
    }
    let message = format!("the input '{shown}' is neither a file nor a folder");
    Err(IoError::fatal(IoErrorKind::Invalid, message))
}

/// The last part of a path or URL; of a bucket, its name.
pub(crate) fn last_name(location: &Location) -> String {
    if let Some(path) = location.local_path() {
        return path.file_name().map(key_part).unwrap_or_default();
    }
    let last = match location.object_path() {
        Ok(path) if !matches!(location.url().scheme(), "http" | "https") => {
            path.as_ref().rsplit('/').next().unwrap_or_default().to_owned()
        }
        _ => {
            let last = location.url().path_segments().and_then(|mut parts| parts.rfind(|part| !part.is_empty()));
            let file = url::Url::parse(&format!("file:///{}", last.unwrap_or_default()));
            let path = file.ok().and_then(|file| file.to_file_path().ok());
            path.and_then(|path| path.file_name().map(key_part)).unwrap_or_default()
        }
    };
    if last.is_empty() { location.url().host_str().unwrap_or_default().to_owned() } else { last }
}

/// Whether a text that names nothing that exists is a pattern. In http(s) URLs `?`, `*` and `[` mean what they say.
fn is_pattern(text: &str) -> bool {
    let braces = text.find('{').is_some_and(|open| text[open..].contains('}'));
    let web = text.get(..7).is_some_and(|start| start.eq_ignore_ascii_case("http://"))
        || text.get(..8).is_some_and(|start| start.eq_ignore_ascii_case("https://"));
    braces || (!web && text.contains(['*', '?', '[']))
}

/// The folder before the first part with a wildcard, and the rest.
fn split_pattern(text: &str) -> (&str, &str) {
    let first = text.find(['*', '?', '[', '{']).unwrap_or(text.len());
    match text[..first].rfind('/') {
        Some(0) => ("/", &text[1..]),
        Some(slash) => (&text[..slash], &text[slash + 1..]),
        None => ("", text),
    }
}

/// The texts that `{a..b}` and `{a,b}` stand for.
fn expand(pattern: &str) -> Result<Vec<String>, String> {
    let Some(open) = pattern.find('{') else { return Ok(vec![pattern.to_owned()]) };
    let close = closing(pattern, open).ok_or("a '{' is not closed")?;
    let (before, inside, after) = (&pattern[..open], &pattern[open + 1..close], &pattern[close + 1..]);
    let middles = match range(inside)? {
        Some(numbers) => numbers,
        None => {
            let mut middles = Vec::new();
            for part in parts(inside) {
                middles.extend(expand(part)?);
            }
            middles
        }
    };
    let afters = expand(after)?;
    if middles.len().saturating_mul(afters.len()) > NAMES_MAX {
        return Err(format!("it stands for more than {NAMES_MAX} names"));
    }
    Ok(middles.iter().flat_map(|middle| afters.iter().map(move |after| format!("{before}{middle}{after}"))).collect())
}

/// `{a..b}` written as `{a,…,b}`, which glob patterns know.
fn ranges_as_alternatives(pattern: &str) -> Result<String, String> {
    let mut text = String::new();
    let mut rest = pattern;
    while let Some(open) = rest.find('{') {
        let close = closing(rest, open).ok_or("a '{' is not closed")?;
        text.push_str(&rest[..open]);
        match range(&rest[open + 1..close])? {
            Some(numbers) => text.push_str(&format!("{{{}}}", numbers.join(","))),
            None => text.push_str(&format!("{{{}}}", ranges_as_alternatives(&rest[open + 1..close])?)),
        }
        rest = &rest[close + 1..];
    }
    Ok(text + rest)
}

fn closing(text: &str, open: usize) -> Option<usize> {
    let mut depth = 0_u32;
    for (at, letter) in text[open..].char_indices() {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(open + at);
        }
    }
    None
}

/// `a,b` outside of inner braces.
fn parts(inside: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut from) = (Vec::new(), 0_i32, 0);
    for (at, letter) in inside.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&inside[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&inside[from..]);
    parts
}

/// The numbers of `a..b`, with the zeros at the front that either has.
fn range(inside: &str) -> Result<Option<Vec<String>>, String> {
    let Some((from, to)) = inside.split_once("..").filter(|_| !inside.contains([',', '{'])) else { return Ok(None) };
    let number =
        |text: &str| -> Option<u64> { text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())? };
    let (Some(first), Some(last)) = (number(from), number(to)) else {
        return Err(format!("'{{{inside}}}' is not a range of numbers, as {{000..127}} is"));
    };
    if first > last {
        return Err(format!("'{{{inside}}}' runs backwards"));
    }
    if last - first >= NAMES_MAX as u64 {
        return Err(format!("it stands for more than {NAMES_MAX} names"));
    }
    let padded = from.len() > 1 && from.starts_with('0') || to.len() > 1 && to.starts_with('0');
    let width = if padded { from.len().max(to.len()) } else { 0 };
    Ok(Some((first..=last).map(|number| format!("{number:0width$}")).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn braces_stand_for_names() {
        assert_eq!(expand("t-{08..11}.tar").unwrap(), ["t-08.tar", "t-09.tar", "t-10.tar", "t-11.tar"]);
        assert_eq!(expand("{8..10}").unwrap(), ["8", "9", "10"]);
        assert_eq!(expand("{a,b{1..2}}-{x,y}").unwrap(), ["a-x", "a-y", "b1-x", "b1-y", "b2-x", "b2-y"]);
        assert_eq!(ranges_as_alternatives("*-{1..3}.{jpg,{08..09}}").unwrap(), "*-{1,2,3}.{jpg,{08,09}}");
        for (bad, why) in [
            ("{1..", "not closed"),
            ("{3..1}", "backwards"),
            ("{a..b}", "range of numbers"),
            ("{0..1000000}", "more than"),
            ("{0..99999}{0..99999}", "more than"),
            ("{0..99999999999999999999}", "range of numbers"),
        ] {
            assert!(expand(bad).unwrap_err().contains(why), "{bad}");
        }
    }

    #[test]
    fn patterns_are_split_before_the_first_wildcard() {
        assert_eq!(split_pattern("photos/**/*.jpg"), ("photos", "**/*.jpg"));
        assert_eq!(split_pattern("s3://b/x/t-{000..127}.tar"), ("s3://b/x", "t-{000..127}.tar"));
        assert_eq!(split_pattern("*.jpg"), ("", "*.jpg"));
        assert_eq!(split_pattern("/*.jpg"), ("/", "*.jpg"));
        assert!(!is_pattern("https://x/y.jpg?a=[1]*"));
        assert!(is_pattern("https://x/y-{1..3}.tar") && is_pattern("a?.jpg"));
    }

    #[test]
    fn names_of_inputs() {
        let name = |text: &str| last_name(&Location::parse(text).unwrap());
        assert_eq!(name("s3://bucket/a/b%20c.tar"), "b c.tar");
        assert_eq!(name("s3://bucket"), "bucket");
        assert_eq!(name("https://host/a/b%20c.tar?sig=1"), "b c.tar");
        assert_eq!(name("https://host/"), "host");
        assert_eq!(name("/x/y.tar"), "y.tar");
    }
}
