//! Places named by a path or a URL.
//!
//! ```text
//!  s3://bucket/key    s3a://       S3 and compatibles
//!  gs://bucket/key                 Google Cloud Storage
//!  az://container/key              Azure; also azure://, abfs[s]://container@account.dfs.core.windows.net/key
//!  http[s]://host/path?query       inputs only
//!  file:///folder/name, paths      local
//! ```
//!
//! The path of a URL is percent-encoded: `%20` is a space, `%25` a percent sign. What has no business in a URL (a space,
//! a letter that is not ASCII, a `%` that spells nothing) stands for itself, and so do `?` and `#` where the scheme has
//! no query.

use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};

use object_store::path::Path as ObjectPath;
use url::Url;

use crate::{IoError, IoErrorKind};

pub(crate) const SUPPORTED: &str =
    "supported are paths, file:///…, s3://bucket/…, gs://bucket/…, az://container/… and, for inputs, http(s)://…";

/// What kind of store a scheme belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Family {
    Local,
    S3,
    Gcs,
    Azure,
    Http,
}

impl Family {
    /// Of a URL's scheme.
    pub(crate) fn of(scheme: &str) -> Option<Self> {
        match scheme {
            "file" => Some(Self::Local),
            "s3" | "s3a" => Some(Self::S3),
            "gs" => Some(Self::Gcs),
            "az" | "azure" | "abfs" | "abfss" => Some(Self::Azure),
            "http" | "https" => Some(Self::Http),
            _ => None,
        }
    }

    /// In messages, and the prefix of options.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Local => "file",
            Self::S3 => "s3",
            Self::Gcs => "gs",
            Self::Azure => "az",
            Self::Http => "http",
        }
    }
}

/// A place named by a path or a URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    url: Url,
}

impl Location {
    /// A URL when `text` begins with `scheme://`, else a path (relative ones to the current folder). Names of local
    /// files need not be UTF-8: the URL spells their bytes. A trailing slash is left out, save in http(s) URLs.
    /// `Invalid` for other schemes, for names and passwords in a URL, and without bucket, container or host.
    pub fn parse(text: impl AsRef<OsStr>) -> Result<Self, IoError> {
        let text = text.as_ref();
        let path = match text.to_str().and_then(|text| scheme(text).map(|scheme| (text, scheme))) {
            Some((text, scheme)) if scheme.eq_ignore_ascii_case("file") => {
                Url::parse(text).ok().and_then(|url| url.to_file_path().ok()).ok_or_else(|| {
                    invalid(format!("'{text}' is not a local file URL; write file:///folder/name, with three slashes"))
                })?
            }
            Some((text, scheme)) => return remote(text, scheme).map(|url| Self { url }),
            None if text.is_empty() => return Err(invalid("an empty name was given for a file or folder")),
            None => PathBuf::from(text),
        };
        let absolute = absolute(&path)
            .map_err(|error| invalid(format!("cannot make '{}' absolute: {error}", path.display())).because(error))?;
        let url = Url::from_file_path(&absolute)
            .map_err(|()| invalid(format!("'{}' cannot be written as a URL", absolute.display())))?;
        Ok(Self { url })
    }

    /// The URL; without a trailing slash unless it is http(s). It may hold a signed query: for messages use
    /// [`shown`](Self::shown).
    pub const fn url(&self) -> &Url {
        &self.url
    }

    /// The URL without what may be secret.
    pub fn shown(&self) -> String {
        shown_url(self.url.as_str())
    }

    /// The path when this is a local file or folder.
    pub fn local_path(&self) -> Option<PathBuf> {
        (self.url.scheme() == "file").then(|| self.url.to_file_path().ok()).flatten()
    }

    /// Whether this is in an object store or on a web server.
    pub fn is_remote(&self) -> bool {
        self.url.scheme() != "file"
    }

    /// The bucket's or container's URL (scheme and host), which [`object_url`] takes.
    pub fn store_url(&self) -> Url {
        let mut url = self.url.clone();
        url.set_path("/");
        url.set_query(None);
        url.set_fragment(None);
        url
    }

    /// The path of an object or a folder in its bucket, decoded. Empty for the bucket itself.
    pub fn object_path(&self) -> Result<ObjectPath, IoError> {
        object_path_of(&self.url)
    }
}

/// The URL of the object `path` in the store of `store` (a bucket's or container's URL); the inverse of
/// [`Stores::resolve`](crate::Stores::resolve) for object stores.
pub fn object_url(store: &Url, path: &ObjectPath) -> String {
    let mut url = store.clone();
    url.set_path("/");
    url.set_query(None);
    url.set_fragment(None);
    let mut text = url.to_string();
    if !text.ends_with('/') {
        text.push('/');
    }
    encode_path(path.as_ref(), &mut text);
    text
}

/// The key of an object in an object store: the decoded path of its URL. Keys that the stores' client cannot name
/// (parts that are empty, `.` or `..`, control characters, not UTF-8) are an error of the row.
pub(crate) fn object_path_of(url: &Url) -> Result<ObjectPath, IoError> {
    // URLs decoded by `from_url_path` lose nothing but the leading slash.
    let path = url.path();
    let cannot = |why: String| {
        let message = format!(
            "the key of {} cannot be read through this store's client: {why}. Copy the object to another key",
            shown_url(url.as_str())
        );
        IoError::new(slicemill_core::Fate::Row, IoErrorKind::Invalid, message)
    };
    if path.starts_with("//") || path.trim_end_matches('/').contains("//") {
        return Err(cannot("it has an empty part, '//'".to_owned()));
    }
    ObjectPath::from_url_path(path).map_err(|error| cannot(error.to_string()))
}

/// A URL for messages and logs: without query, fragment, user and password.
pub fn shown_url(url: &str) -> String {
    let (rest, fragment) = url.split_once('#').map_or((url, None), |(rest, fragment)| (rest, Some(fragment)));
    let (rest, query) = rest.split_once('?').map_or((rest, false), |(rest, _)| (rest, true));
    let mut shown = match rest.split_once("://") {
        // The user part of abfs://container@account… is the container.
        Some((scheme, rest)) if !scheme.starts_with("abfs") => {
            let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
            format!("{scheme}://{host}{path}")
        }
        _ => rest.to_owned(),
    };
    if query {
        shown.push_str("?…");
    }
    // The place inside an object holds no secrets; other fragments were never ours.
    if let Some(fragment) = fragment
        && crate::Place::split(url).1 != crate::Place::Whole
        && !fragment.starts_with("refused=")
    {
        shown.push('#');
        shown.push_str(fragment);
    }
    shown
}

pub(crate) fn invalid(message: impl Into<String>) -> IoError {
    IoError::fatal(IoErrorKind::Invalid, message)
}

/// The scheme of a URL with `://`; a path like `a:b` has none.
fn scheme(text: &str) -> Option<&str> {
    let (scheme, _) = text.split_once("://")?;
    let valid = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'));
    valid.then_some(scheme)
}

fn remote(text: &str, scheme: &str) -> Result<Url, IoError> {
    let shown = shown_url(text);
    let lower = scheme.to_ascii_lowercase();
    let Some(family) = Family::of(&lower) else {
        return Err(invalid(format!("the scheme '{scheme}' of '{shown}' is not supported; {SUPPORTED}")));
    };
    let bad = |why: &str| invalid(format!("'{shown}' is not a location: {why}"));
    let rest = text.get(scheme.len() + 3..).unwrap_or_default();
    let url = match family {
        Family::Http => Url::parse(text).map_err(|error| bad(&error.to_string()))?,
        _ => {
            let (host, key) = rest.split_once('/').unwrap_or((rest, ""));
            let mut url = format!("{lower}://{host}/");
            if let Some(part) = key.split('/').find(|part| matches!(decoded(part).as_slice(), b"." | b"..")) {
                return Err(bad(&format!("'{part}' stands for nothing in an object's key")));
            }
            encode_typed(key.strip_suffix('/').unwrap_or(key), &mut url);
            if key.is_empty() {
                url.pop();
            }
            Url::parse(&url).map_err(|error| bad(&error.to_string()))?
        }
    };
    let named = matches!(lower.as_str(), "abfs" | "abfss");
    if url.password().is_some() || (!url.username().is_empty() && !named) {
        return Err(bad("it has a user name or password; give credentials by the environment or --store-option"));
    }
    match url.host_str() {
        None | Some("") if family == Family::Http => Err(bad("it has no host")),
        None | Some("") => Err(bad("it has no bucket or container")),
        Some(_) if url.port().is_some() && family != Family::Http => {
            Err(bad("a bucket has no port; give the server with --store-option, as in s3.endpoint=http://host:port"))
        }
        Some(_) => Ok(url),
    }
}

/// The bytes of a part of a URL's path.
pub(crate) fn decoded(part: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(part.len());
    let mut rest = part.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = match (first, hex_pair(tail)) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                tail.get(2..).unwrap_or_default()
            }
            _ => {
                bytes.push(*first);
                tail
            }
        };
    }
    bytes
}

fn hex_pair(bytes: &[u8]) -> Option<u8> {
    let digits = bytes.get(..2).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))?;
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

/// Percent-encodes the path of a key: everything but letters, digits and the marks that mean nothing in a URL.
fn encode_path(key: &str, out: &mut String) {
    for byte in key.bytes() {
        push_encoded(byte, out);
    }
}

/// The same for text that somebody typed: what is encoded already stays.
fn encode_typed(key: &str, out: &mut String) {
    let bytes = key.as_bytes();
    for (index, byte) in bytes.iter().enumerate() {
        if *byte == b'%' && bytes.get(index + 1..).and_then(hex_pair).is_some() {
            out.push('%');
        } else {
            push_encoded(*byte, out);
        }
    }
}

fn push_encoded(byte: u8, out: &mut String) {
    if byte.is_ascii_alphanumeric() || b"-._~/!$&'()*,=:@+".contains(&byte) {
        out.push(char::from(byte));
    } else {
        const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
        out.push('%');
        out.push(char::from(DIGITS[usize::from(byte >> 4)]));
        out.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
}

/// Absolute, without `.` and `..`. Links are resolved only where a `..` follows, because there they matter.
fn absolute(path: &Path) -> std::io::Result<PathBuf> {
    let mut clean = PathBuf::new();
    for component in std::path::absolute(path)?.components() {
        match component {
            Component::ParentDir => {
                clean = clean.canonicalize()?;
                clean.pop();
            }
            other => clean.push(other),
        }
    }
    Ok(clean)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key_of(text: &str) -> String {
        Location::parse(text).unwrap().object_path().unwrap().to_string()
    }

    #[test]
    fn keys_are_the_decoded_paths_of_urls() {
        for (text, key) in [
            ("s3://bucket", ""),
            ("s3://bucket/", ""),
            ("s3://Bucket_1/a/b/", "a/b"),
            ("s3a://bucket/a b.jpg", "a b.jpg"),
            ("s3://bucket/a%20b%25.jpg", "a b%.jpg"),
            ("gs://bucket/100%/x+y", "100%/x+y"),
            ("gs://bucket/what?.jpg", "what?.jpg"),
            ("az://container/a#1+2=3&4.tar", "a#1+2=3&4.tar"),
            ("abfss://c@account.dfs.core.windows.net/x/日本.png", "x/日本.png"),
            ("s3://bucket/back\\slash", "back\\slash"),
            ("S3://bucket/~[x]*{y}^|`\"<>'", "~[x]*{y}^|`\"<>'"),
        ] {
            assert_eq!(key_of(text), key, "{text}");
        }
    }

    #[test]
    fn urls_of_objects_resolve_back_to_their_keys() {
        for store in ["s3://bucket", "gs://bucket/x", "az://c", "abfss://c@a.dfs.core.windows.net"] {
            let store = Location::parse(store).unwrap().store_url();
            for key in
                ["a", "a b", "100%", "%20", "%2520", "é/日本", "a#b", "a?b=c", "a+b", "a&b=c;d", "x:y@z", "..a", "a\\b"]
            {
                let path = ObjectPath::parse(key).unwrap();
                let url = object_url(&store, &path);
                assert_eq!(object_path_of(&Url::parse(&url).unwrap()).unwrap(), path, "{url}");
                assert_eq!(key_of(&url), key, "{url}");
                let placed = crate::Place::At { offset: 1, bytes: 2 }.join(&url);
                assert_eq!(object_path_of(&Url::parse(&placed).unwrap()).unwrap(), path, "{placed}");
            }
        }
    }

    #[test]
    fn keys_that_cannot_be_named_are_row_errors() {
        for url in ["s3://b/a//b", "s3://b//a", "s3://b/%00", "s3://b/%FF", "s3://b/a%2F%2Fb"] {
            let error = object_path_of(&Url::parse(url).unwrap()).unwrap_err();
            assert_eq!((error.fate, error.kind), (slicemill_core::Fate::Row, IoErrorKind::Invalid), "{url}");
            assert!(error.message.contains("s3://b"), "{}", error.message);
        }
    }

    #[test]
    fn locations_that_cannot_be_used_say_why() {
        for (text, part) in [
            ("ftp://host/photos", "'ftp'"),
            ("s3:///photos", "no bucket"),
            ("s3://", "no bucket"),
            ("https://", "not a location"),
            ("s3://key:secret@bucket/x", "user name or password"),
            ("https://me:secret@host/x", "user name or password"),
            ("s3://localhost:9000/bucket", "s3.endpoint"),
            ("s3://bucket/a/../b", "'..'"),
            ("s3://bucket/%2e%2E/b", "'%2e%2E'"),
        ] {
            let error = Location::parse(text).unwrap_err();
            assert_eq!((error.fate, error.kind), (slicemill_core::Fate::Fatal, IoErrorKind::Invalid));
            assert!(error.message.contains(part), "{text}: {}", error.message);
            assert!(!error.message.contains("secret"), "{}", error.message);
        }
    }

    #[test]
    fn shown_urls_hold_no_secrets() {
        for (url, shown) in [
            ("https://me:pw@host:81/a/b.jpg?X-Amz-Signature=abc#x", "https://host:81/a/b.jpg?…"),
            ("https://host/a@b.tar?sig=1#at=1+2", "https://host/a@b.tar?…#at=1+2"),
            ("abfs://c@account.dfs.core.windows.net/x", "abfs://c@account.dfs.core.windows.net/x"),
            ("file:///a%20b", "file:///a%20b"),
            ("https://me:pw@host", "https://host"),
            ("no url", "no url"),
        ] {
            assert_eq!(shown_url(url), shown);
        }
    }
}
