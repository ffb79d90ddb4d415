//! Locations as rows name them, turned into URLs: what may be read, and where.
//!
//! - A text with `scheme://` is a URL: `%20` is a space there. Anything else is a path, in which `%` is a percent sign.
//! - Relative paths belong to the folder (or prefix) of the manifest, those of standard input to the working directory.
//! - **Local files** must lie below the manifest's folder, or below the root that was given; `.` and `..` are taken
//!   out first, by name alone. Links are followed when the file is read: whoever can write links into the folder is
//!   trusted. A manifest from elsewhere names no local file unless a root was given. Standard input names any file:
//!   the user wrote it.

use std::path::{Component, Path, PathBuf};

use slicemill_core::ErrorClass;
use url::Url;

use crate::stores::Family;
use crate::{Location, shown_url};

/// Longer locations are not taken, in bytes.
const LOCATION_BYTES_MAX: usize = 16 << 10;

/// Why a location is not taken.
pub(crate) type Refusal = (ErrorClass, String);

/// What relative paths belong to.
#[derive(Debug, Clone)]
enum Base {
    /// The folder of a local manifest.
    Folder(PathBuf),
    /// A remote manifest.
    Remote(Url),
    /// The working directory; any local file may be named.
    Anywhere(PathBuf),
}

/// The rules for the locations of one manifest.
#[derive(Debug, Clone)]
pub(crate) struct Locations {
    base: Base,
    root: Option<PathBuf>,
}

impl Locations {
    /// For the manifest at `url`; local files below `root` may be named too.
    pub(crate) fn of(url: &Url, root: Option<&Path>) -> Self {
        let local = (url.scheme() == "file").then(|| url.to_file_path().ok()).flatten();
        let base = match local {
            Some(path) => Base::Folder(clean(path.parent().unwrap_or(&path))),
            None => Base::Remote(url.clone()),
        };
        Self { base, root: root.map(clean) }
    }

    /// For a list on standard input. `folder` is absolute.
    pub(crate) fn anywhere(folder: &Path) -> Self {
        Self { base: Base::Anywhere(clean(folder)), root: None }
    }

    /// The URL of the location `text`.
    pub(crate) fn resolve(&self, text: &[u8]) -> Result<Url, Refusal> {
        let bad = |why: &str| Err((ErrorClass::BadRecord, why.to_owned()));
        if text.iter().all(u8::is_ascii_whitespace) {
            return bad("its location is empty");
        }
        if text.len() > LOCATION_BYTES_MAX {
            return bad(&format!("its location has {} bytes, more than {LOCATION_BYTES_MAX}", text.len()));
        }
        if text.contains(&0) {
            return bad("its location contains a zero byte");
        }
        let Ok(text) = std::str::from_utf8(text) else {
            return self.path(&path_of(text)?, &String::from_utf8_lossy(text));
        };
        match text.split_once("://") {
            Some((scheme, _)) if is_scheme(scheme) => self.url(scheme, text),
            _ if text.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("data:")) => {
                let why = "it holds the image itself as a data: URL, which is not supported; write the image to a file";
                Err((ErrorClass::LocationRefused, why.to_owned()))
            }
            _ => self.path(Path::new(text), text),
        }
    }

    fn url(&self, scheme: &str, text: &str) -> Result<Url, Refusal> {
        if scheme.eq_ignore_ascii_case("file") {
            let path = Url::parse(text).ok().and_then(|url| url.to_file_path().ok());
            let why = || format!("'{}' is not a local file URL; write file:///folder/name", shorten(text));
            let path = path.ok_or_else(|| (ErrorClass::BadRecord, why()))?;
            return self.local(&path, &path.display().to_string());
        }
        let known = Family::of(&scheme.to_ascii_lowercase()).is_some();
        let class = if known { ErrorClass::BadRecord } else { ErrorClass::LocationRefused };
        let location = Location::parse(text).map_err(|error| (class, shorten(&error.message)))?;
        let mut url = location.url().clone();
        url.set_fragment(None);
        Ok(url)
    }

    fn path(&self, path: &Path, text: &str) -> Result<Url, Refusal> {
        match &self.base {
            Base::Folder(folder) | Base::Anywhere(folder) => self.local(&folder.join(path), text),
            Base::Remote(_) if path.is_absolute() => self.local(path, text),
            Base::Remote(manifest) => below(manifest, text),
        }
    }

    /// A local file, when it may be named.
    fn local(&self, path: &Path, text: &str) -> Result<Url, Refusal> {
        let path = clean(path);
        let in_root = self.root.as_ref().is_some_and(|root| path.starts_with(root));
        let refused = match &self.base {
            Base::Anywhere(_) => None,
            _ if in_root => None,
            Base::Folder(folder) if path.starts_with(folder) => None,
            Base::Folder(folder) => Some(format!(
                "'{}' is not below the manifest's folder '{}'; if it may be read, give a folder above it with --root",
                shorten(text),
                folder.display()
            )),
            Base::Remote(_) => Some(format!(
                "a manifest in a store may not name the local file '{}'; if it may be read, give a folder above it \
                 with --root",
                shorten(text)
            )),
        };
        if let Some(why) = refused {
            return Err((ErrorClass::LocationRefused, why));
        }
        let why = || (ErrorClass::BadRecord, format!("'{}' cannot be written as a URL", shorten(text)));
        Url::from_file_path(&path).map_err(|()| why())
    }
}

/// The object `path` names relative to the prefix that `manifest` is in.
fn below(manifest: &Url, path: &str) -> Result<Url, Refusal> {
    let outside = || {
        let why = format!(
            "'{}' leads out of the prefix of its manifest {}; write its URL in full",
            shorten(path),
            shown_url(manifest.as_str())
        );
        (ErrorClass::LocationRefused, why)
    };
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop().ok_or_else(outside)?),
            name => parts.push(name),
        }
    }
    if parts.is_empty() {
        return Err((ErrorClass::BadRecord, format!("'{}' names no object", shorten(path))));
    }
    let mut url = manifest.clone();
    url.set_query(None);
    url.set_fragment(None);
    match url.path_segments_mut() {
        Ok(mut segments) => segments.pop().extend(parts),
        Err(()) => return Err(outside()),
    };
    Ok(url)
}

#[cfg(unix)]
fn path_of(bytes: &[u8]) -> Result<PathBuf, Refusal> {
    use std::os::unix::ffi::OsStrExt as _;
    Ok(PathBuf::from(std::ffi::OsStr::from_bytes(bytes)))
}

#[cfg(not(unix))]
fn path_of(_: &[u8]) -> Result<PathBuf, Refusal> {
    Err((ErrorClass::BadRecord, "its location is not UTF-8".to_owned()))
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
}

/// The path without `.` and `..`, by name alone; `..` at the root is the root.
pub(crate) fn clean(path: &Path) -> PathBuf {
    let mut cleaned = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => drop(cleaned.pop()),
            other => cleaned.push(other),
        }
    }
    cleaned
}

/// The beginning of a long text, for messages; of a URL without what may be secret.
pub(crate) fn shorten(text: &str) -> String {
    const SHOWN: usize = 240;
    let shown = if text.contains("://") && !text.contains(' ') { shown_url(text) } else { text.to_owned() };
    if shown.chars().count() <= SHOWN {
        return shown;
    }
    shown.chars().take(SHOWN).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn local(root: Option<&str>) -> Locations {
        Locations::of(&Url::parse("file:///data/my%20set/list.jsonl").unwrap(), root.map(Path::new))
    }

    fn url(locations: &Locations, text: &str) -> String {
        locations.resolve(text.as_bytes()).unwrap().to_string()
    }

    fn class(locations: &Locations, text: &str) -> ErrorClass {
        let (class, why) = locations.resolve(text.as_bytes()).unwrap_err();
        assert!(!why.is_empty());
        class
    }

    #[test]
    fn paths_are_literal_and_urls_are_decoded() {
        let locations = local(None);
        for (text, expected) in [
            ("a b.jpg", "file:///data/my%20set/a%20b.jpg"),
            ("a%20b.jpg", "file:///data/my%20set/a%2520b.jpg"),
            ("100%.jpg", "file:///data/my%20set/100%25.jpg"),
            ("./x/../é#?.jpg", "file:///data/my%20set/%C3%A9%23%3F.jpg"),
            ("/data/my set/a:b.jpg", "file:///data/my%20set/a:b.jpg"),
            ("file:///data/my%20set/a%25.jpg", "file:///data/my%20set/a%25.jpg"),
            ("https://host/a%20b.jpg?sig=1#top", "https://host/a%20b.jpg?sig=1"),
            ("https://host/a b.jpg", "https://host/a%20b.jpg"),
            ("s3://bucket/a%20b.jpg", "s3://bucket/a%20b.jpg"),
            ("s3://bucket/a b.jpg", "s3://bucket/a%20b.jpg"),
            ("gs://bucket/x.jpg", "gs://bucket/x.jpg"),
            ("az://container/x.jpg", "az://container/x.jpg"),
        ] {
            assert_eq!(url(&locations, text), expected, "{text}");
        }
    }

    #[test]
    fn local_files_outside_are_refused() {
        let locations = local(None);
        for text in ["../x.jpg", "/etc/passwd", "a/../../x", "file:///etc/passwd", "file:///data/my%20set/%2e%2e/x"] {
            assert_eq!(class(&locations, text), ErrorClass::LocationRefused, "{text}");
        }
        let (_, why) = locations.resolve(b"../x.jpg").unwrap_err();
        assert!(why.contains("--root") && why.contains("/data/my set"), "{why}");
        let rooted = local(Some("/srv/./images"));
        assert_eq!(url(&rooted, "/srv/images/x.jpg"), "file:///srv/images/x.jpg");
        assert_eq!(url(&rooted, "a.jpg"), "file:///data/my%20set/a.jpg");
        assert_eq!(class(&rooted, "/srv/images/../secret"), ErrorClass::LocationRefused);
        assert_eq!(class(&rooted, "/srv/images2/x"), ErrorClass::LocationRefused);
    }

    #[test]
    fn a_remote_manifest_names_no_local_file() {
        let manifest = Url::parse("https://host/set%20a/list.csv?signature=secret").unwrap();
        let locations = Locations::of(&manifest, None);
        assert_eq!(url(&locations, "img/a b%20.jpg"), "https://host/set%20a/img/a%20b%2520.jpg");
        assert_eq!(url(&locations, "x/../y.jpg"), "https://host/set%20a/y.jpg");
        for text in ["/etc/passwd", "file:///etc/passwd", "../x.jpg", "a/../../../x"] {
            assert_eq!(class(&locations, text), ErrorClass::LocationRefused, "{text}");
            let (_, why) = locations.resolve(text.as_bytes()).unwrap_err();
            assert!(!why.contains("secret"), "{why}");
        }
        let rooted = Locations::of(&manifest, Some(Path::new("/data")));
        assert_eq!(url(&rooted, "/data/x.jpg"), "file:///data/x.jpg");
        let bucket = Locations::of(&Url::parse("s3://bucket/list.jsonl").unwrap(), None);
        assert_eq!(url(&bucket, "a?b#c.jpg"), "s3://bucket/a%3Fb%23c.jpg");
    }

    #[test]
    fn standard_input_names_any_file() {
        let locations = Locations::anywhere(Path::new("/data/dir"));
        assert_eq!(url(&locations, "../x.jpg"), "file:///data/x.jpg");
        assert_eq!(url(&locations, "/etc/hosts"), "file:///etc/hosts");
        let bytes = locations.resolve(b"caf\xe9.jpg");
        #[cfg(unix)]
        assert_eq!(bytes.unwrap().as_str(), "file:///data/dir/caf%E9.jpg");
    }

    #[test]
    fn what_is_no_location_is_refused() {
        let locations = local(None);
        for text in ["", "  ", "a\0b", "http://", "s3:///x", &"x".repeat(20_000), "file://host/x"] {
            assert_eq!(class(&locations, text), ErrorClass::BadRecord, "{text}");
        }
        for text in ["ftp://host/x", "data:image/png;base64,AAAA", "javascript://x"] {
            assert_eq!(class(&locations, text), ErrorClass::LocationRefused, "{text}");
        }
        let (_, why) = locations.resolve(b"https://me:secret@host/x.jpg").unwrap_err();
        assert!(!why.contains("secret"), "{why}");
    }

    proptest! {
        #[test]
        fn no_local_location_leads_out(text in "[a./%\\\\ é:]{0,24}") {
            for locations in [local(None), local(Some("/srv"))] {
                if let Ok(url) = locations.resolve(text.as_bytes()) {
                    let path = url.to_file_path().unwrap();
                    prop_assert!(path.starts_with("/data/my set") || path.starts_with("/srv"), "{text}: {url}");
                    prop_assert!(!path.components().any(|part| part == Component::ParentDir));
                }
            }
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let remote = Locations::of(&Url::parse("s3://b/x/list.jsonl").unwrap(), None);
            for locations in [local(None), remote, Locations::anywhere(Path::new("/w"))] {
                let _ = locations.resolve(&bytes);
            }
        }
    }
}
