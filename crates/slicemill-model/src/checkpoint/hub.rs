//! The hub's HTTP interface, and how to reach it.
//!
//! A small client of our own on `ureq`: the published one that has no runtime sets no timeouts, appends a whole answer
//! to a partial file when a server ignores the range that was asked for, and drops the headers that tell a gated
//! repository from one that does not exist.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{self, Read};
use std::path::PathBuf;
use std::time::Duration;

use ureq::config::RedirectAuthHeaders;
use ureq::http::{HeaderMap, Response};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body, Proxy};

const ENDPOINT: &str = "https://huggingface.co";
const REDIRECTS_MAX: usize = 5;
/// Most of an answer that describes a repository.
const INFO_MAX: u64 = 64 << 20;

/// Told of every file that is fetched, now and then: its name, the bytes that are there, the bytes it has.
pub type OnProgress<'a> = &'a dyn Fn(&str, u64, u64);

/// Where the hub and its cache are, and how to reach them.
#[derive(Clone, PartialEq, Eq)]
pub struct HubOptions {
    /// The folder of repositories that all clients of the hub on this machine share.
    pub cache: PathBuf,
    /// Where the hub is.
    pub endpoint: String,
    /// What private and gated repositories ask for.
    pub token: Option<String>,
    /// Never use the network.
    pub offline: bool,
    /// Reach the hub through this proxy.
    pub proxy: Option<String>,
    /// Hosts that are reached without it, separated by commas.
    pub no_proxy: Option<String>,
    /// Certificates (PEM) to trust instead of the built-in ones.
    pub certificates: Option<PathBuf>,
    /// Longest wait for a connection, an answer or the next bytes.
    pub timeout: Duration,
    /// Tries of one file without any progress.
    pub tries: u32,
    /// Wait after the first failed try; doubled after each further one.
    pub wait: Duration,
}

impl std::fmt::Debug for HubOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { cache, endpoint, token, offline, .. } = self;
        write!(f, "HubOptions({} in {}, token: {}, offline: {offline})", endpoint, cache.display(), token.is_some())
    }
}

impl HubOptions {
    /// A cache folder and the public hub, without a token.
    pub fn new(cache: impl Into<PathBuf>) -> Self {
        Self {
            cache: cache.into(),
            endpoint: ENDPOINT.to_owned(),
            token: None,
            offline: false,
            proxy: None,
            no_proxy: None,
            certificates: None,
            timeout: Duration::from_secs(30),
            tries: 5,
            wait: Duration::from_millis(500),
        }
    }

    /// From the environment, which `var` looks up: the variables that the hub's own clients know (`HF_HUB_CACHE`,
    /// `HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HUB_OFFLINE`, `HF_HUB_DOWNLOAD_TIMEOUT`), and those
    /// for proxies and certificates that all programs share. Reads the token file.
    pub fn from_env(var: impl Fn(&str) -> Option<OsString>) -> Self {
        let first = |names: &[&str]| names.iter().find_map(|name| var(name).filter(|value| !value.is_empty()));
        let text = |names: &[&str]| first(names).and_then(|value| value.into_string().ok());
        let path = |names: &[&str]| first(names).map(PathBuf::from);
        let user = || path(&["HOME", "USERPROFILE"]).unwrap_or_default();
        let caches = || path(&["XDG_CACHE_HOME"]).unwrap_or_else(|| user().join(".cache"));
        let home = path(&["HF_HOME"]).unwrap_or_else(|| caches().join("huggingface"));
        let token_file = path(&["HF_TOKEN_PATH"]).unwrap_or_else(|| home.join("token"));
        let token = text(&["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]).or_else(|| std::fs::read_to_string(token_file).ok());
        let is_on = |value: String| matches!(value.to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on");
        let seconds = text(&["HF_HUB_DOWNLOAD_TIMEOUT"]).and_then(|value| value.trim().parse().ok());
        let plain = Self::new(path(&["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"]).unwrap_or_else(|| home.join("hub")));
        Self {
            endpoint: text(&["HF_ENDPOINT"]).unwrap_or(plain.endpoint).trim_end_matches('/').to_owned(),
            token: token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty()),
            offline: text(&["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"]).is_some_and(is_on),
            proxy: text(&["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy"]),
            no_proxy: text(&["NO_PROXY", "no_proxy"]),
            certificates: path(&["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"]),
            timeout: seconds.map_or(plain.timeout, |n: u64| Duration::from_secs(n.max(1))),
            ..plain
        }
    }
}

/// Why something did not come from the hub.
#[derive(Debug)]
pub(super) enum Failure {
    /// The hub refused: status, its code for the reason, its message.
    Status(u16, Option<String>, Option<String>),
    /// The connection failed.
    Network(String),
    /// What came is not what the hub speaks, or not what it announced.
    Answer(String),
    /// The cache cannot be written.
    Disk(PathBuf, io::Error),
}

impl Failure {
    /// Whether trying again may help.
    pub(super) const fn is_transient(&self) -> bool {
        match self {
            Self::Status(code, ..) => matches!(code, 408 | 425 | 429 | 500..=599),
            Self::Network(_) | Self::Answer(_) => true,
            Self::Disk(..) => false,
        }
    }
}

/// What the hub says of a repository.
#[derive(Debug, serde::Deserialize)]
struct Info {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Debug, serde::Deserialize)]
struct Sibling {
    rfilename: String,
}

/// What the hub says of a file before it is fetched.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// Names the contents; the SHA-256 of large files.
    pub(super) etag: String,
    /// Bytes, when the hub says.
    pub(super) size: Option<u64>,
}

/// A part of a file.
pub(super) struct Piece {
    /// Where it starts.
    pub(super) start: u64,
    /// Bytes of the whole file, when the answer says.
    pub(super) size: Option<u64>,
    /// What follows.
    pub(super) body: Box<dyn Read>,
}

/// Talks to a hub.
pub(super) struct Client {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
}

impl Client {
    pub(super) fn new(options: &HubOptions) -> Result<Self, Failure> {
        let timeout = Some(options.timeout);
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .max_redirects_will_error(false)
            .accept_encoding("identity")
            .user_agent(concat!("slicemill/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(timeout)
            .timeout_connect(timeout)
            .timeout_recv_response(timeout)
            .timeout_per_read(timeout)
            .tls_config(TlsConfig::builder().root_certs(roots(options)?).build())
            .proxy(proxy(options)?)
            .build();
        Ok(Self { agent: config.into(), endpoint: options.endpoint.clone(), token: options.token.clone() })
    }

    /// The commit of a revision and the names of its files.
    pub(super) fn info(&self, repo: &str, revision: &str) -> Result<(String, BTreeSet<String>), Failure> {
        let url = format!("{}/api/models/{repo}/revision/{}", self.endpoint, revision.replace('/', "%2F"));
        let mut response = accepted(self.call(&url, false, 0)?)?;
        let body = response.body_mut().with_config().limit(INFO_MAX).read_to_vec().map_err(|e| network(&e))?;
        let info: Info =
            serde_json::from_slice(&body).map_err(|e| Failure::Answer(format!("{url} is not what a hub says: {e}")))?;
        if !is_commit(&info.sha) {
            return Err(Failure::Answer(format!("{url} names the commit {:?}", info.sha)));
        }
        Ok((info.sha, info.siblings.into_iter().map(|sibling| sibling.rfilename).collect()))
    }

    /// What is known of a file. Redirects within the hub are followed; one to a store tells all that is needed.
    pub(super) fn head(&self, repo: &str, commit: &str, file: &str) -> Result<Head, Failure> {
        let mut url = self.url(repo, commit, file);
        for _ in 0..REDIRECTS_MAX {
            let response = self.call(&url, true, 0)?;
            let location = header(response.headers(), "location");
            match location.filter(|_| response.status().is_redirection()) {
                Some(path) if path.starts_with('/') && !path.starts_with("//") => url = origin(&url).to_owned() + path,
                Some(_) => return described(response.headers(), false, &url),
                None => return described(accepted(response)?.headers(), true, &url),
            }
        }
        Err(Failure::Answer(format!("{url} redirects without end")))
    }

    /// A file from `start` on, or the whole of it where the server does not give parts.
    pub(super) fn get(&self, repo: &str, commit: &str, file: &str, start: u64) -> Result<Piece, Failure> {
        let response = accepted(self.call(&self.url(repo, commit, file), false, start)?)?;
        let is_part = response.status().as_u16() == 206;
        let headers = response.headers();
        let (start, size) = if is_part {
            let range = header(headers, "content-range").and_then(content_range);
            let (at, size) = range.filter(|(at, _)| *at == start).ok_or_else(|| {
                Failure::Answer(format!("{file}: asked for bytes from {start}, but the answer is another part"))
            })?;
            (at, size)
        } else {
            (0, header(headers, "content-length").and_then(|length| length.parse().ok()))
        };
        Ok(Piece { start, size, body: Box::new(response.into_body().into_with_config().limit(u64::MAX).reader()) })
    }

    fn url(&self, repo: &str, commit: &str, file: &str) -> String {
        format!("{}/{repo}/resolve/{commit}/{file}", self.endpoint)
    }

    fn call(&self, url: &str, head: bool, start: u64) -> Result<Response<Body>, Failure> {
        let mut request = if head { self.agent.head(url) } else { self.agent.get(url) };
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if start > 0 {
            request = request.header("range", format!("bytes={start}-"));
        }
        let request = if head { request.config().max_redirects(0).build() } else { request };
        request.call().map_err(|e| network(&e))
    }
}

fn roots(options: &HubOptions) -> Result<RootCerts, Failure> {
    let Some(path) = &options.certificates else { return Ok(RootCerts::WebPki) };
    let pem = std::fs::read(path).map_err(|e| Failure::Network(format!("{}: cannot be read: {e}", path.display())))?;
    let certificates: Vec<_> = parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if certificates.is_empty() {
        return Err(Failure::Network(format!("{}: holds no certificates in PEM", path.display())));
    }
    Ok(RootCerts::new_with_certs(&certificates))
}

fn proxy(options: &HubOptions) -> Result<Option<Proxy>, Failure> {
    let Some(url) = &options.proxy else { return Ok(None) };
    let refuse = |e: ureq::Error| Failure::Network(format!("the proxy {url:?} cannot be used: {e}"));
    let plain = Proxy::new(url).map_err(refuse)?;
    let Some(hosts) = &options.no_proxy else { return Ok(Some(plain)) };
    let mut proxy = Proxy::builder(plain.protocol()).host(plain.host()).port(plain.port());
    if let Some(name) = plain.username() {
        proxy = proxy.username(name);
    }
    if let Some(password) = plain.password() {
        proxy = proxy.password(password);
    }
    for host in hosts.split(',').map(str::trim).filter(|host| !host.is_empty()) {
        proxy = proxy.no_proxy(host);
    }
    proxy.build().map(Some).map_err(refuse)
}

fn network(error: &ureq::Error) -> Failure {
    Failure::Network(error.to_string())
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// An answer that is not a refusal.
fn accepted(response: Response<Body>) -> Result<Response<Body>, Failure> {
    if response.status().is_success() {
        return Ok(response);
    }
    let text = |name| header(response.headers(), name).map(str::to_owned);
    Err(Failure::Status(response.status().as_u16(), text("x-error-code"), text("x-error-message")))
}

/// `is_file` when the answer is the file's own and not a redirect to it.
fn described(headers: &HeaderMap, is_file: bool, url: &str) -> Result<Head, Failure> {
    let etag = header(headers, "x-linked-etag").or_else(|| header(headers, "etag"));
    let etag = etag.map(|etag| etag.trim_start_matches("W/").trim_matches('"').to_owned());
    let is_name = |etag: &String| {
        !etag.is_empty()
            && etag.len() <= 128
            && etag.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    let etag = etag.filter(is_name).ok_or_else(|| Failure::Answer(format!("{url} has no usable ETag")))?;
    let own = header(headers, "content-length").filter(|_| is_file);
    let size = header(headers, "x-linked-size").or(own).and_then(|size| size.parse().ok());
    Ok(Head { etag, size })
}

/// Start and whole size of `bytes 100-199/1000`.
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, size) = text.strip_prefix("bytes ")?.split_once('/')?;
    Some((range.split_once('-')?.0.parse().ok()?, size.parse().ok()))
}

/// Scheme and host of a URL.
fn origin(url: &str) -> &str {
    let host = url.find("://").map_or(0, |at| at + 3);
    url[host..].find('/').map_or(url, |at| &url[..host + at])
}

/// Whether a text is a full commit.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_keeps_its_user_and_leaves_out_hosts() {
        let mut options = HubOptions::new("/cache");
        assert!(proxy(&options).unwrap().is_none());
        options.proxy = Some("http://me:pass@proxy.test:3128".to_owned());
        options.no_proxy = Some("hub.test, .inner.test".to_owned());
        let found = proxy(&options).unwrap().unwrap();
        assert_eq!((found.host(), found.port()), ("proxy.test", 3128));
        assert_eq!((found.username(), found.password()), (Some("me"), Some("pass")));
        for (url, is_direct) in
            [("http://hub.test/x", true), ("http://a.inner.test", true), ("http://other.test", false)]
        {
            assert_eq!(found.is_no_proxy(&url.parse().unwrap()), is_direct, "{url}");
        }
        options.proxy = Some("nonsense://".to_owned());
        assert!(proxy(&options).is_err());
    }

    #[test]
    fn certificates_that_are_none_are_refused() {
        let mut options = HubOptions::new("/cache");
        assert!(roots(&options).is_ok());
        options.certificates = Some("/nowhere.pem".into());
        assert!(matches!(roots(&options), Err(Failure::Network(why)) if why.contains("/nowhere.pem")));
        let file = tempfile::NamedTempFile::new().unwrap();
        options.certificates = Some(file.path().to_owned());
        assert!(matches!(roots(&options), Err(Failure::Network(why)) if why.contains("no certificates")));
    }

    #[test]
    fn headers_and_addresses() {
        assert_eq!(content_range("bytes 100-199/1000"), Some((100, Some(1000))));
        assert_eq!(content_range("bytes 5-9/*"), Some((5, None)));
        assert_eq!(content_range("items 5-9/10"), None);
        assert_eq!(origin("http://a:1/b/c"), "http://a:1");
        assert_eq!(origin("https://a"), "https://a");
        let mut headers = HeaderMap::new();
        let mut tag = |etag: &'static str| {
            headers.insert("etag", etag.parse().unwrap());
            described(&headers, true, "u").map(|head| head.etag).ok()
        };
        assert_eq!(tag("W/\"abc\"").as_deref(), Some("abc"));
        assert_eq!(tag("\"../../x\""), None, "it becomes a file name");
        assert_eq!(tag("\"\""), None);
    }
}
