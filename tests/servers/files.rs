//! An http server of the files in a folder, with ranges, tags and conditions, and a few paths that misbehave as servers
//! on the internet do.

use std::fs;
use std::path::{Component, Path, PathBuf};
use std::time::UNIX_EPOCH;

use bytes::Bytes;
use futures::StreamExt;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, HeaderName, IF_MATCH, IF_NONE_MATCH, LOCATION, RANGE,
};
use hyper::http::response::Builder;
use hyper::{Method, Request, Response, StatusCode};

use super::serving::{Serving, serve_http};

/// Redirects to itself.
pub const LOOP: &str = "/-/loop";
/// An answer without a length that never ends.
pub const ENDLESS: &str = "/-/endless";
/// Followed by a path: redirects to it, once.
pub const MOVED: &str = "/-/moved";

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// An http server of one folder.
#[derive(Debug)]
pub struct HttpServer {
    serving: Serving,
}

impl HttpServer {
    /// Serves the files of `folder`, as they are when they are asked for.
    pub fn start(folder: &Path) -> Self {
        let folder = folder.to_path_buf();
        let serving = Serving::start(move |stream| {
            let folder = folder.clone();
            async move {
                let folder = &folder;
                serve_http(stream, |request| async move { answer(folder, &request) }).await;
            }
        });
        Self { serving }
    }

    /// Where the server listens, without a slash at the end.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.serving.address())
    }

    /// URL of a file by its path in the folder, its odd characters percent-encoded.
    pub fn url(&self, path: &str) -> String {
        format!("{}/{}", self.endpoint(), encode(path))
    }
}

/// A path with everything percent-encoded but slashes and the characters that need it nowhere.
pub fn encode(path: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
    path.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// The file that the path of a URL names under `folder`; `None` when it leads out of it or is no path.
pub fn file_of(folder: &Path, path: &str) -> Option<PathBuf> {
    let path = path.split('?').next().unwrap_or_default();
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digits = [rest.next()?, rest.next()?];
            bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    let decoded = String::from_utf8(bytes).ok()?;
    let relative = Path::new(decoded.trim_start_matches('/'));
    relative.components().all(|part| matches!(part, Component::Normal(_))).then(|| folder.join(relative))
}

fn answer(folder: &Path, request: &Request<Incoming>) -> Response<Body> {
    let path = request.uri().path();
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return plain(StatusCode::METHOD_NOT_ALLOWED);
    }
    if path == LOOP {
        return redirect(LOOP);
    }
    if let Some(target) = path.strip_prefix(MOVED).filter(|target| target.starts_with('/')) {
        return redirect(target);
    }
    if path == ENDLESS {
        let zeros = futures::stream::repeat_with(|| Ok(Frame::data(Bytes::from_static(&[0; 4096]))));
        return finish(Response::builder(), StreamBody::new(zeros.boxed()).boxed_unsync());
    }
    let file = file_of(folder, path).filter(|file| file.is_file());
    match file.and_then(|file| Some((tag(&file)?, fs::read(&file).ok()?))) {
        Some((tag, bytes)) => object(request, &tag, Bytes::from(bytes)),
        None => plain(StatusCode::NOT_FOUND),
    }
}

/// A tag that changes with the file: when it was written, and its size.
fn tag(file: &Path) -> Option<String> {
    let about = fs::metadata(file).ok()?;
    let written = about.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some(format!("\"{:x}-{:x}\"", written.as_nanos(), about.len()))
}

fn object(request: &Request<Incoming>, tag: &str, bytes: Bytes) -> Response<Body> {
    let header = |name: HeaderName| text(request.headers(), name);
    let among = |tags: &str| tags.split(',').any(|known| known.trim() == tag || known.trim() == "*");
    if header(IF_MATCH).is_some_and(|tags| !among(tags)) {
        return plain(StatusCode::PRECONDITION_FAILED);
    }
    let builder = Response::builder().header(ETAG, tag).header(ACCEPT_RANGES, "bytes");
    if header(IF_NONE_MATCH).is_some_and(among) {
        return finish(builder.status(StatusCode::NOT_MODIFIED), whole(Bytes::new()));
    }
    let size = bytes.len();
    let (builder, bytes) = match header(RANGE).map(|range| parse_range(range, size)) {
        None | Some(Range::Ignored) => (builder, bytes),
        Some(Range::Beyond) => {
            let builder = builder.status(StatusCode::RANGE_NOT_SATISFIABLE);
            return finish(builder.header(CONTENT_RANGE, format!("bytes */{size}")), whole(Bytes::new()));
        }
        Some(Range::Part(first, last)) => {
            let builder = builder.status(StatusCode::PARTIAL_CONTENT);
            (builder.header(CONTENT_RANGE, format!("bytes {first}-{last}/{size}")), bytes.slice(first..=last))
        }
    };
    let builder = builder.header(CONTENT_LENGTH, bytes.len());
    finish(builder, whole(if request.method() == Method::HEAD { Bytes::new() } else { bytes }))
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

#[derive(Debug, PartialEq, Eq)]
enum Range {
    /// First and last byte.
    Part(usize, usize),
    /// Nothing of the file lies in it.
    Beyond,
    /// Not one range of bytes; servers then answer with the whole file.
    Ignored,
}

fn parse_range(range: &str, size: usize) -> Range {
    let Some((first, last)) = range.strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
        return Range::Ignored;
    };
    let number = |digits: &str| digits.parse::<usize>().ok();
    let (first, last) = match (number(first), number(last)) {
        (Some(first), Some(last)) => (first, last.min(size.saturating_sub(1))),
        (Some(first), None) if last.is_empty() => (first, size.saturating_sub(1)),
        (None, Some(count)) if first.is_empty() && count > 0 => (size.saturating_sub(count), size.saturating_sub(1)),
        _ => return Range::Ignored,
    };
    if first >= size || last < first { Range::Beyond } else { Range::Part(first, last) }
}

fn whole(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

fn plain(status: StatusCode) -> Response<Body> {
    finish(Response::builder().status(status), whole(Bytes::new()))
}

fn redirect(to: &str) -> Response<Body> {
    finish(Response::builder().status(StatusCode::FOUND).header(LOCATION, to), whole(Bytes::new()))
}

fn finish(builder: Builder, body: Body) -> Response<Body> {
    builder.body(body).expect("headers without odd characters")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::servers::client::{End, send};

    fn serve() -> (tempfile::TempDir, HttpServer) {
        let folder = tempfile::tempdir().expect("folder");
        fs::create_dir(folder.path().join("in")).expect("folder");
        fs::write(folder.path().join("in/a b%20é.bin"), b"0123456789").expect("written");
        fs::write(folder.path().join("empty"), b"").expect("written");
        let server = HttpServer::start(folder.path());
        (folder, server)
    }

    #[test]
    fn files_ranges_and_heads() {
        let (_folder, server) = serve();
        let url = server.url("in/a b%20é.bin");
        assert!(url.ends_with("/in/a%20b%2520%C3%A9.bin"), "{url}");
        let target = url.strip_prefix(&server.endpoint()).expect("of the server").to_owned();
        let get = |method: &str, range: &str| send(&server.endpoint(), method, &target, &[("range", range)], b"");
        for (range, status, body, content_range) in [
            ("", 200, "0123456789", None),
            ("bytes=0-0", 206, "0", Some("bytes 0-0/10")),
            ("bytes=4-", 206, "456789", Some("bytes 4-9/10")),
            ("bytes=8-99", 206, "89", Some("bytes 8-9/10")),
            ("bytes=-3", 206, "789", Some("bytes 7-9/10")),
            ("bytes=10-12", 416, "", Some("bytes */10")),
            ("bytes=1-2,4-5", 200, "0123456789", None),
        ] {
            let answer = get("GET", range);
            assert_eq!((answer.status, answer.text().as_str()), (status, body), "{range}: {answer:?}");
            assert_eq!(answer.header("content-range"), content_range, "{range}");
        }
        let head = get("HEAD", "");
        assert_eq!((head.status, head.header("content-length"), head.body.len()), (200, Some("10"), 0));
        assert_eq!(send(&server.endpoint(), "GET", "/empty", &[("range", "bytes=0-")], b"").status, 416);
        assert_eq!(send(&server.endpoint(), "GET", "/empty", &[], b"").end, End::Whole);
        assert_eq!(send(&server.endpoint(), "PUT", "/empty", &[], b"x").status, 405);
    }

    #[test]
    fn nothing_outside_the_folder_is_served() {
        let (_folder, server) = serve();
        for target in
            ["/no", "/in", "/", "/../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/%zz", "/in/%2", "//etc/passwd"]
        {
            assert_eq!(send(&server.endpoint(), "GET", target, &[], b"").status, 404, "{target}");
        }
    }

    #[test]
    fn tags_change_with_the_file() {
        let (folder, server) = serve();
        let get = |headers: &[(&str, &str)]| send(&server.endpoint(), "GET", "/empty", headers, b"");
        let tag = get(&[]).header("etag").expect("a tag").to_owned();
        assert_eq!(get(&[("if-match", &tag)]).status, 200);
        assert_eq!(get(&[("if-none-match", &tag)]).status, 304);
        fs::write(folder.path().join("empty"), b"no more").expect("written");
        assert_eq!(get(&[("if-match", &tag)]).status, 412);
        assert_eq!(get(&[("if-none-match", &tag)]).text(), "no more");
    }

    #[test]
    fn odd_paths_redirect_and_never_end() {
        let (_folder, server) = serve();
        assert_eq!(send(&server.endpoint(), "GET", LOOP, &[], b"").header("location"), Some(LOOP));
        let moved = send(&server.endpoint(), "GET", "/-/moved/empty", &[], b"");
        assert_eq!((moved.status, moved.header("location")), (302, Some("/empty")));
        let mut stream =
            std::net::TcpStream::connect(server.endpoint().trim_start_matches("http://")).expect("connected");
        std::io::Write::write_all(&mut stream, format!("GET {ENDLESS} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes())
            .expect("sent");
        let mut much = vec![0; 8 << 20];
        std::io::Read::read_exact(&mut stream, &mut much).expect("eight megabytes and no end");
    }
}
