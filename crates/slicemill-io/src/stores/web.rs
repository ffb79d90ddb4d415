//! Objects on web servers: GET, HEAD and ranges; nothing is written and nothing listed.
//!
//! Redirects are followed here, at most ten and each looked at by the [`HttpGuard`]. The environment's proxies are not
//! used, since behind one the addresses that are connected to cannot be checked; a proxy given with
//! `http.proxy_url` is, and then resolves names itself.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG, IF_MATCH, LAST_MODIFIED, LOCATION, RANGE};
use http::{HeaderMap, Method, StatusCode};
use object_store::path::Path as ObjectPath;
use object_store::{
    CopyOptions, Error, GetOptions, GetRange, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use reqwest::{Client, Response};
use url::Url;

use super::counters::IoCounters;
use super::guard::{HttpGuard, PublicOnly, host_port};
use super::location::{Family, invalid, shown_url};
use super::options::StoreOptions;
use super::wire::{WireError, check_range, retry_after};
use crate::IoError;

const STORE: &str = "http";
/// Redirects followed.
const REDIRECTS_MAX: u32 = 10;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The size of objects whose length the server does not say.
pub(crate) const UNKNOWN_SIZE: u64 = u64::MAX;

/// What all web servers share: two clients, one of which reaches public addresses only.
#[derive(Debug)]
pub(crate) struct Web {
    guarded: Client,
    open: Client,
    pub(crate) guard: HttpGuard,
    counters: IoCounters,
    answer_timeout: Duration,
    redirects_max: u32,
}

impl Web {
    pub(crate) fn new(
        options: &StoreOptions,
        guard: HttpGuard,
        counters: IoCounters,
        answer_timeout: Duration,
    ) -> std::result::Result<Self, IoError> {
        let builder = || {
            let mut builder = Client::builder()
                .redirect(reqwest::redirect::Policy::none())
                .no_proxy()
                .connect_timeout(CONNECT_TIMEOUT)
                .user_agent(concat!("slicemill/", env!("CARGO_PKG_VERSION")));
            for (name, value) in options.client_options(Family::Http) {
                let bad = || invalid(format!("the store option 'http.{name}' cannot be used with this value"));
                builder = match name {
                    "user_agent" => builder.user_agent(value),
                    "connect_timeout" => builder.connect_timeout(seconds(value).ok_or_else(bad)?),
                    "timeout" => builder.timeout(seconds(value).ok_or_else(bad)?),
                    "proxy_url" => builder.proxy(reqwest::Proxy::all(value).map_err(|_| bad())?),
                    "allow_invalid_certificates" => builder.danger_accept_invalid_certs(value == "true"),
                    "http1_only" if value == "true" => builder.http1_only(),
                    "allow_http" | "http1_only" => builder,
                    _ => return Err(invalid(format!("the store option 'http.{name}' does nothing for web servers"))),
                };
            }
            Ok(builder)
        };
        let made = |client: reqwest::Result<Client>| {
            client.map_err(|error| invalid(format!("the client for web servers cannot be made: {error}")))
        };
        // A proxy resolves names itself, and may stand in a private network.
        let proxied = options.client_options(Family::Http).any(|(name, _)| name == "proxy_url");
        let guarded = if proxied { builder()? } else { builder()?.dns_resolver(Arc::new(PublicOnly)) };
        Ok(Self {
            guarded: made(guarded.build())?,
            open: made(builder()?.build())?,
            guard,
            counters,
            answer_timeout,
            redirects_max: options.own_number(Family::Http, "redirects").unwrap_or(REDIRECTS_MAX).min(REDIRECTS_MAX),
        })
    }

    /// Sends a request and follows where it leads.
    async fn send(&self, method: Method, url: &Url, headers: &HeaderMap) -> std::result::Result<Response, WireError> {
        let mut url = url.clone();
        url.set_fragment(None);
        for _ in 0..=self.redirects_max {
            self.guard.check(&url)?;
            let client = if self.guard.exempts(&url) { &self.open } else { &self.guarded };
            self.counters.request();
            let sent = client.request(method.clone(), url.clone()).headers(headers.clone()).send();
            let answer = match tokio::time::timeout(self.answer_timeout, sent).await {
                Ok(answer) => answer.map_err(|error| match WireError::from_reqwest(error) {
                    WireError::NoAnswer(_) => WireError::NoAnswer(self.answer_timeout),
                    error => error,
                })?,
                Err(_elapsed) => return Err(WireError::NoAnswer(self.answer_timeout)),
            };
            let status = answer.status();
            if !status.is_redirection() || status == StatusCode::NOT_MODIFIED {
                return Ok(answer);
            }
            let leads_to = answer.headers().get(LOCATION).and_then(|location| location.to_str().ok());
            let next = leads_to.and_then(|location| url.join(location).ok());
            url = next.ok_or_else(|| WireError::Redirects("it redirects to nowhere".to_owned()))?;
            url.set_fragment(None);
        }
        let message = format!("it redirects more than {} times", self.redirects_max);
        Err(WireError::Redirects(message))
    }
}

/// `7`, `7s`, `500ms`, `2m`.
fn seconds(value: &str) -> Option<Duration> {
    let digits = value.trim_end_matches(|c: char| c.is_ascii_alphabetic() || c == ' ');
    let scale = match value[digits.len()..].trim() {
        "ms" => 0.001,
        "" | "s" | "sec" | "secs" | "second" | "seconds" => 1.0,
        "m" | "min" | "mins" | "minute" | "minutes" => 60.0,
        _ => return None,
    };
    Duration::try_from_secs_f64(digits.trim().parse::<f64>().ok()? * scale).ok()
}

/// One web server, as a store that can only be read. An object's path is its whole URL, percent-encoded in one part,
/// since paths of stores have no queries.
#[derive(Debug)]
pub(crate) struct WebServer {
    web: Arc<Web>,
    host: String,
}

/// The path by which [`WebServer`] knows a URL.
pub(crate) fn web_path(url: &Url) -> ObjectPath {
    ObjectPath::from_iter([url.as_str().split('#').next().unwrap_or_default()])
}

impl WebServer {
    pub(crate) fn new(web: Arc<Web>, url: &Url) -> Self {
        Self { web, host: host_port(url).unwrap_or_default() }
    }

    async fn send(&self, method: Method, location: &ObjectPath, options: &GetOptions) -> Result<Response> {
        let url = url_of(location)?;
        let mut headers = HeaderMap::new();
        let mut put = |name, value: String| {
            if let Ok(value) = value.parse() {
                headers.insert(name, value);
            }
        };
        let asked = options.range.as_ref().map(range_header);
        if let Some(asked) = &asked {
            put(RANGE, asked.clone());
        }
        if let Some(tag) = &options.if_match {
            put(IF_MATCH, tag.clone());
        }
        let sent = self.web.send(method, &url, &headers).await;
        let checked = sent.and_then(|answer| {
            check_range(asked.as_deref(), answer.status(), answer.headers())?;
            Ok(answer)
        });
        let answer = checked.map_err(|error| self.failed(error))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let said = status.canonical_reason().unwrap_or_default().to_owned();
        let retry_after = retry_after(answer.headers());
        let wire = WireError::Status { status: status.as_u16(), said, retry_after };
        let path = location.to_string();
        Err(match status {
            StatusCode::NOT_FOUND | StatusCode::GONE => Error::NotFound { path, source: Box::new(wire) },
            StatusCode::PRECONDITION_FAILED => Error::Precondition { path, source: Box::new(wire) },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                self.web.counters.error(&wire.code());
                Error::PermissionDenied { path, source: Box::new(wire) }
            }
            _ => self.failed(wire),
        })
    }

    fn failed(&self, error: WireError) -> Error {
        self.web.counters.error(&error.code());
        Error::Generic { store: STORE, source: Box::new(error) }
    }
}

fn url_of(location: &ObjectPath) -> Result<Url> {
    let parts = location.parts().next().map(|part| decode(part.as_ref())).unwrap_or_default();
    Url::parse(&parts).map_err(|error| Error::Generic { store: STORE, source: Box::new(error) })
}

/// Undoes what `ObjectPath::from_iter` encodes in a part.
fn decode(part: &str) -> String {
    String::from_utf8_lossy(&super::location::decoded(part)).into_owned()
}

fn range_header(range: &GetRange) -> String {
    match range {
        GetRange::Bounded(range) => format!("bytes={}-{}", range.start, range.end.saturating_sub(1)),
        GetRange::Offset(first) => format!("bytes={first}-"),
        GetRange::Suffix(bytes) => format!("bytes=-{bytes}"),
    }
}

/// The bytes of an answer: first, one after the last, size of the object. The size is [`UNKNOWN_SIZE`] when not said.
fn extent(status: StatusCode, headers: &HeaderMap) -> (std::ops::Range<u64>, u64) {
    let text = |name| headers.get(name).and_then(|value: &http::HeaderValue| value.to_str().ok());
    let length = text(CONTENT_LENGTH).and_then(|length| length.parse::<u64>().ok());
    if status == StatusCode::PARTIAL_CONTENT {
        let parsed = text(CONTENT_RANGE).and_then(|range| {
            let (range, total) = range.strip_prefix("bytes ")?.split_once('/')?;
            let (first, last) = range.split_once('-')?;
            Some((first.parse::<u64>().ok()?, last.parse::<u64>().ok()?, total.parse::<u64>().ok()))
        });
        if let Some((first, last, total)) = parsed {
            return (first..last.saturating_add(1), total.unwrap_or(UNKNOWN_SIZE));
        }
    }
    let size = length.unwrap_or(UNKNOWN_SIZE);
    (0..size, size)
}

fn meta(location: &ObjectPath, size: u64, headers: &HeaderMap) -> ObjectMeta {
    let text = |name| headers.get(name).and_then(|value: &http::HeaderValue| value.to_str().ok());
    // Weak tags say that two versions mean the same, not that their bytes are the same; but they change with them.
    let tag = text(ETAG).or_else(|| text(LAST_MODIFIED)).map(str::to_owned);
    ObjectMeta {
        location: location.clone(),
        last_modified: std::time::UNIX_EPOCH.into(),
        size,
        e_tag: Some(tag.unwrap_or_default()),
        version: None,
    }
}

/// Whether the server may know GET and no HEAD.
fn only_get(error: &Error) -> bool {
    let status = WireError::find(error).map(|error| match error {
        WireError::Status { status, .. } => *status,
        _ => 0,
    });
    matches!(status, Some(400 | 401 | 403 | 404 | 405 | 500 | 501))
}

impl std::fmt::Display for WebServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.host)
    }
}

fn read_only(operation: &str) -> Error {
    let operation = format!("{operation} on a web server; it can only be read");
    Error::NotImplemented { operation, implementer: STORE.to_owned() }
}

#[async_trait]
impl ObjectStore for WebServer {
    async fn get_opts(&self, location: &ObjectPath, options: GetOptions) -> Result<GetResult> {
        let answer = if options.head {
            // Signed URLs are good for one method, and servers need not know HEAD or say a length.
            let head = GetOptions { range: None, ..options.clone() };
            match self.send(Method::HEAD, location, &head).await {
                Ok(answer) if answer.headers().contains_key(CONTENT_LENGTH) => answer,
                Err(error) if !only_get(&error) => return Err(error),
                _ => self.send(Method::GET, location, &head).await?,
            }
        } else {
            self.send(Method::GET, location, &options).await?
        };
        let (range, size) = extent(answer.status(), answer.headers());
        let meta = meta(location, size, answer.headers());
        let body: BoxStream<'static, Result<Bytes>> = if options.head {
            futures::stream::empty().boxed()
        } else {
            let failed = |error| Error::Generic { store: STORE, source: Box::new(WireError::from_reqwest(error)) };
            answer.bytes_stream().map_err(failed).boxed()
        };
        Ok(GetResult { payload: GetResultPayload::Stream(body), meta, range, attributes: Default::default() })
    }

    async fn put_opts(&self, _: &ObjectPath, _: PutPayload, _: PutOptions) -> Result<PutResult> {
        Err(read_only("put"))
    }

    async fn put_multipart_opts(&self, _: &ObjectPath, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Err(read_only("put"))
    }

    fn delete_stream(&self, _: BoxStream<'static, Result<ObjectPath>>) -> BoxStream<'static, Result<ObjectPath>> {
        futures::stream::iter([Err(read_only("delete"))]).boxed()
    }

    fn list(&self, _: Option<&ObjectPath>) -> BoxStream<'static, Result<ObjectMeta>> {
        futures::stream::iter([Err(read_only("list"))]).boxed()
    }

    async fn list_with_delimiter(&self, _: Option<&ObjectPath>) -> Result<ListResult> {
        Err(read_only("list"))
    }

    async fn copy_opts(&self, _: &ObjectPath, _: &ObjectPath, _: CopyOptions) -> Result<()> {
        Err(read_only("copy"))
    }
}

/// The error for an output on a web server.
pub(crate) fn no_output(url: &Url) -> IoError {
    invalid(format!(
        "{} cannot be an output: a web server has no listing and no way to create an object at most once. Give a \
         folder, s3://…, gs://… or az://…",
        shown_url(url.as_str())
    ))
}

#[cfg(test)]
mod tests;
