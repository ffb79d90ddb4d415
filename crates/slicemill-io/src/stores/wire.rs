//! What happens on the wire, typed: the layer below the stores' clients, where status, headers and timeouts are still
//! there to be seen.

use std::time::Duration;

use async_trait::async_trait;
use http::header::{CONTENT_RANGE, RANGE, RETRY_AFTER};
use http::{HeaderMap, Method, StatusCode};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody, HttpService,
    ReqwestConnector,
};

use super::counters::IoCounters;
use crate::RetryBudget;

/// The speed at which a body is sent at least.
const SEND_SPEED_MIN: u64 = 64 << 10;
/// Bytes of an error's body that are looked at.
const ERROR_BODY_MAX: usize = 16 << 10;
/// `Retry-After` as a date: the machine's clock may be wrong, so it counts as this.
const RETRY_AFTER_DATE: Duration = Duration::from_secs(5);

/// An error on the way to a server, or one that it answered with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WireError {
    #[error("HTTP {status}{}{said}", if said.is_empty() { "" } else { ": " })]
    Status { status: u16, said: String, retry_after: Option<Duration> },
    #[error("no answer in {} s", .0.as_secs_f32())]
    NoAnswer(Duration),
    #[error("no byte came for {} s", .0.as_secs_f32())]
    Stalled(Duration),
    #[error("cannot connect: {0}")]
    Connect(String),
    #[error("the connection broke: {0}")]
    Reset(String),
    #[error("the answer is cut short: {0}")]
    Short(String),
    #[error("bytes {asked} were asked for, the answer has {got}")]
    WrongRange { asked: String, got: String },
    #[error("the server ignores ranges")]
    RangeIgnored,
    #[error("{0}")]
    LocationRefused(String),
    #[error("{0}")]
    Redirects(String),
    #[error("{0}")]
    NoCredentials(String),
    #[error("{0}")]
    Other(String),
}

impl WireError {
    /// The name under which it is counted.
    pub(crate) fn code(&self) -> String {
        match self {
            Self::Status { status, .. } => return format!("http_{status}"),
            Self::NoAnswer(_) => "timeout",
            Self::Stalled(_) => "stalled",
            Self::Connect(_) => "connect",
            Self::Reset(_) => "connection_reset",
            Self::Short(_) => "short_body",
            Self::WrongRange { .. } => "wrong_range",
            Self::RangeIgnored => "range_ignored",
            Self::LocationRefused(_) => "location_refused",
            Self::Redirects(_) => "redirects",
            Self::NoCredentials(_) => "no_credentials",
            Self::Other(_) => "other",
        }
        .to_owned()
    }

    /// Whether the same request may succeed when it is sent again.
    const fn is_transient(&self) -> bool {
        match self {
            Self::Status { status, .. } => matches!(status, 408 | 429 | 500 | 502..=504),
            Self::NoAnswer(_) | Self::Stalled(_) | Self::Connect(_) | Self::Reset(_) | Self::Short(_) => true,
            _ => false,
        }
    }

    const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Whether the store asks to slow down.
    pub(crate) const fn is_throttle(&self) -> bool {
        matches!(self, Self::Status { status: 429 | 503, .. })
    }

    /// The first of these in the chain of an error.
    pub(crate) fn find<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(wire) = error.downcast_ref::<Self>() {
                return Some(wire);
            }
            next = error.source();
        }
        None
    }

    /// What a client of reqwest ended with, without its URL.
    pub(crate) fn from_reqwest(error: reqwest::Error) -> Self {
        let error = error.without_url();
        if let Some(wire) = Self::find(&error) {
            return wire.clone();
        }
        let text = chain(&error);
        if error.is_connect() {
            Self::Connect(text)
        } else if error.is_timeout() {
            Self::NoAnswer(Duration::ZERO)
        } else if text.contains("end of file before message length") || text.contains("unexpected EOF during chunk") {
            Self::Short(text)
        } else if error.is_builder() {
            Self::Other(text)
        } else {
            Self::Reset(text)
        }
    }

    fn from_client(error: &HttpError) -> Self {
        let text = chain(error);
        let text = text.strip_prefix("HTTP error: ").unwrap_or(&text).to_owned();
        if text.starts_with("builder error") {
            return Self::Other(format!("{text}; for http:// give --store-option allow_http=true"));
        }
        match error.kind() {
            HttpErrorKind::Connect => Self::Connect(text),
            HttpErrorKind::Timeout => Self::NoAnswer(Duration::ZERO),
            _ => Self::Reset(text),
        }
    }
}

/// The texts of an error and what is underneath, each once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut texts: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        match texts.last_mut() {
            Some(last) if last.contains(&text) => {}
            _ => texts.push(text),
        }
        next = error.source();
    }
    texts.join(": ")
}

/// `Retry-After` in seconds; a date is not compared with this machine's clock.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    Some(value.parse().map_or(RETRY_AFTER_DATE, Duration::from_secs))
}

/// What an error's body says: `<Code>` and `<Message>` of the XML that object stores send; of anything else, nothing.
pub(crate) fn said(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(ERROR_BODY_MAX)]);
    let part = |tag: &str| {
        let (_, rest) = text.split_once(&format!("<{tag}>"))?;
        let (value, _) = rest.split_once('<')?;
        let line = value.split(['\r', '\n']).next().unwrap_or_default();
        Some(line.chars().filter(|c| !c.is_control()).take(200).collect::<String>())
    };
    let parts: Vec<_> = ["Code", "Message"].into_iter().filter_map(part).collect();
    parts.join(": ")
}

/// Whether the answer has the bytes that were asked for. `None` for requests without a range.
pub(crate) fn check_range(asked: Option<&str>, status: StatusCode, answer: &HeaderMap) -> Result<(), WireError> {
    let Some(asked) = asked else { return Ok(()) };
    if status == StatusCode::OK {
        return Err(WireError::RangeIgnored);
    }
    if status != StatusCode::PARTIAL_CONTENT {
        return Ok(());
    }
    let got = answer.get(CONTENT_RANGE).and_then(|value| value.to_str().ok()).unwrap_or("no Content-Range");
    if fits(asked, got) {
        return Ok(());
    }
    let got: String = got.chars().filter(|c| !c.is_control()).take(60).collect();
    Err(WireError::WrongRange { asked: asked.trim_start_matches("bytes=").to_owned(), got })
}

/// Whether `Content-Range: bytes 5-9/20` answers `Range: bytes=5-9`; an answer may end with the object.
fn fits(asked: &str, got: &str) -> bool {
    let parsed = || {
        let (range, total) = got.strip_prefix("bytes ")?.split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let (first, last): (u64, u64) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        let total: Option<u64> = if total.trim() == "*" { None } else { Some(total.trim().parse().ok()?) };
        (first <= last && total.is_none_or(|total| last < total)).then_some((first, last, total))
    };
    let Some((first, last, total)) = parsed() else { return false };
    let Some((from, to)) = asked.strip_prefix("bytes=").and_then(|range| range.split_once('-')) else { return true };
    let ends_with_object = total.is_some_and(|total| last + 1 == total);
    match (from.parse::<u64>(), to.parse::<u64>()) {
        (Ok(from), Ok(to)) => first == from && (last == to || (last < to && ends_with_object)),
        (Ok(from), Err(_)) => first == from && ends_with_object,
        (Err(_), Ok(suffix)) => ends_with_object && last + 1 - first <= suffix,
        (Err(_), Err(_)) => true,
    }
}

/// Puts a [`WireService`] on top of the usual client.
#[derive(Debug)]
pub(crate) struct WireConnector {
    pub(crate) counters: IoCounters,
    pub(crate) answer_timeout: Duration,
    /// For the steps of an upload.
    pub(crate) budget: RetryBudget,
    /// What to say when the machine has no credentials to give.
    pub(crate) no_credentials: &'static str,
}

impl HttpConnector for WireConnector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(WireService {
            client,
            counters: self.counters.clone(),
            answer_timeout: self.answer_timeout,
            budget: self.budget,
            no_credentials: self.no_credentials,
        }))
    }
}

/// Counts requests, bounds the wait for an answer, and types what went wrong.
#[derive(Debug)]
struct WireService {
    client: HttpClient,
    counters: IoCounters,
    answer_timeout: Duration,
    budget: RetryBudget,
    no_credentials: &'static str,
}

#[async_trait]
impl HttpService for WireService {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        if !is_upload_step(&request) {
            return self.once(request).await.map_err(typed);
        }
        // Steps of an upload are known by number only to the client above, which gives up at the first failure: they
        // are tried again here. Sending one twice is the same as once.
        let name = request.uri().path().to_owned();
        let mut attempt = 1;
        let mut paused = Duration::ZERO;
        loop {
            let error = match self.once(request.clone()).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let pause = self.budget.pause(&name, attempt).max(error.retry_after().unwrap_or_default());
            if !error.is_transient() || attempt >= self.budget.attempts_max || paused + pause > self.budget.pauses_total
            {
                return Err(typed(error));
            }
            self.counters.retry();
            tokio::time::sleep(pause).await;
            paused += pause;
            attempt += 1;
        }
    }
}

/// Whether this is a part of a large object, or the step that makes one of its parts.
fn is_upload_step(request: &HttpRequest) -> bool {
    let query = request.uri().query().unwrap_or_default();
    query.split('&').any(|pair| {
        pair.starts_with("uploadId=")
            || pair.starts_with("partNumber=")
            || pair == "comp=block"
            || pair == "comp=blocklist"
    }) && matches!(*request.method(), Method::PUT | Method::POST | Method::DELETE)
}

fn typed(error: WireError) -> HttpError {
    let kind = match error {
        WireError::NoAnswer(_) => HttpErrorKind::Timeout,
        WireError::Connect(_) => HttpErrorKind::Connect,
        _ => HttpErrorKind::Request,
    };
    HttpError::new(kind, error)
}

impl WireService {
    /// Sends a request once.
    async fn once(&self, request: HttpRequest) -> Result<HttpResponse, WireError> {
        self.counters.request();
        let asked = request.headers().get(RANGE).and_then(|range| range.to_str().ok()).map(str::to_owned);
        let host = request.uri().host().unwrap_or_default();
        let is_metadata = host.starts_with("169.254.") || host == "metadata.google.internal" || host == "metadata";
        let completes = request.method() == Method::POST && is_upload_step(&request);
        let written = request.body().content_length();
        let patience = self.answer_timeout.saturating_add(Duration::from_secs(written as u64 / SEND_SPEED_MIN));
        let answer = match tokio::time::timeout(patience, self.client.execute(request)).await {
            Ok(answer) => answer.map_err(|error| WireError::from_client(&error)),
            Err(_elapsed) => Err(WireError::NoAnswer(patience)),
        };
        let checked = match answer {
            Ok(answer) if completes && answer.status().is_success() => completed(answer).await,
            Ok(answer) => self.check(answer, asked.as_deref()).await,
            Err(error) => Err(error),
        };
        let checked = checked.map_err(|error| match error {
            WireError::Connect(_) | WireError::NoAnswer(_) | WireError::Reset(_) if is_metadata => {
                WireError::NoCredentials(self.no_credentials.to_owned())
            }
            error => error,
        });
        match &checked {
            Ok(answer) if answer.status().is_success() => self.counters.written(written),
            Ok(_) => {}
            Err(error) => self.counters.error(&error.code()),
        }
        checked
    }

    /// Answers that the stores' clients understand by their status are passed on, with a short body; the others
    /// become errors here.
    async fn check(&self, answer: HttpResponse, asked: Option<&str>) -> Result<HttpResponse, WireError> {
        let status = answer.status();
        if status.is_success() {
            return check_range(asked, status, answer.headers()).map(|()| answer);
        }
        if status == StatusCode::NOT_MODIFIED {
            return Ok(answer);
        }
        let (parts, body) = answer.into_parts();
        let said = match tokio::time::timeout(self.answer_timeout, beginning(body)).await {
            Ok(body) => said(&body),
            Err(_elapsed) => String::new(),
        };
        let said = if said.is_empty() { words(status).to_owned() } else { said };
        match status {
            StatusCode::NOT_FOUND
            | StatusCode::CONFLICT
            | StatusCode::PRECONDITION_FAILED
            | StatusCode::FORBIDDEN
            | StatusCode::UNAUTHORIZED => {
                // A precondition that fails is how objects are created at most once: no error.
                if !matches!(status, StatusCode::NOT_FOUND | StatusCode::PRECONDITION_FAILED | StatusCode::CONFLICT) {
                    self.counters.error(&format!("http_{}", status.as_u16()));
                }
                Ok(HttpResponse::from_parts(parts, HttpResponseBody::from(said)))
            }
            _ => Err(WireError::Status { status: status.as_u16(), said, retry_after: retry_after(&parts.headers) }),
        }
    }
}

/// S3 says that an upload is complete before it knows, and may take it back in the body.
async fn completed(answer: HttpResponse) -> Result<HttpResponse, WireError> {
    let (parts, body) = answer.into_parts();
    let body = body.bytes().await.map_err(|error| WireError::from_client(&error))?;
    let text = String::from_utf8_lossy(&body);
    if text.contains("<Error>") {
        let said = said(&body);
        let status = if said.starts_with("SlowDown") { 503 } else { 500 };
        return Err(WireError::Status { status, said, retry_after: None });
    }
    Ok(HttpResponse::from_parts(parts, HttpResponseBody::from(body)))
}

fn words(status: StatusCode) -> &'static str {
    if status.is_redirection() {
        "the server redirects; is the region or the endpoint right?"
    } else {
        status.canonical_reason().unwrap_or_default()
    }
}

/// The beginning of an error's body.
async fn beginning(body: HttpResponseBody) -> Vec<u8> {
    use futures::StreamExt as _;
    let mut stream = body.bytes_stream();
    let mut bytes = Vec::new();
    while bytes.len() < ERROR_BODY_MAX
        && let Some(Ok(piece)) = stream.next().await
    {
        bytes.extend_from_slice(&piece[..piece.len().min(ERROR_BODY_MAX - bytes.len())]);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_compared_with_what_was_asked() {
        for (asked, got, expected) in [
            ("bytes=5-9", "bytes 5-9/20", true),
            ("bytes=5-9", "bytes 5-9/*", true),
            ("bytes=5-9", "bytes 5-7/8", true),
            ("bytes=5-9", "bytes 5-7/20", false),
            ("bytes=5-9", "bytes 0-9/20", false),
            ("bytes=5-9", "bytes 6-10/20", false),
            ("bytes=5-9", "bytes 5-9/9", false),
            ("bytes=5-9", "5-9/20", false),
            ("bytes=5-9", "bytes 9-5/20", false),
            ("bytes=5-", "bytes 5-19/20", true),
            ("bytes=5-", "bytes 5-18/20", false),
            ("bytes=-5", "bytes 15-19/20", true),
            ("bytes=-5", "bytes 0-4/20", false),
        ] {
            assert_eq!(fits(asked, got), expected, "{asked} {got}");
        }
    }

    #[test]
    fn bodies_of_errors_are_read_for_code_and_message_only() {
        let xml = b"<?xml?><Error><Code>SignatureDoesNotMatch</Code><Message>No match\nsecond</Message>\
            <AWSAccessKeyId>AKIA</AWSAccessKeyId><StringToSign>x</StringToSign></Error>";
        assert_eq!(said(xml), "SignatureDoesNotMatch: No match");
        assert_eq!(said(b"<html>token=secret</html>"), "");
        assert_eq!(said(&[0xff; 100]), "");
    }

    #[test]
    fn retry_after_is_seconds_or_a_short_pause() {
        let mut headers = HeaderMap::new();
        assert_eq!(retry_after(&headers), None);
        headers.insert(RETRY_AFTER, "7".parse().unwrap());
        assert_eq!(retry_after(&headers), Some(Duration::from_secs(7)));
        headers.insert(RETRY_AFTER, "Wed, 21 Oct 2035 07:28:00 GMT".parse().unwrap());
        assert_eq!(retry_after(&headers), Some(RETRY_AFTER_DATE));
    }
}
