//! A proxy in front of an HTTP/1.1 server that makes faults by a plan and counts them.
//!
//! Requests pass as they are, with their `Host`, so signatures stay valid.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::sleep;

use super::files::file_of;
use super::plan::{Fault, Plan, Running};
use super::serving::Serving;
use super::wire::{Head, Wire};

/// A proxy in front of one server.
#[derive(Debug)]
pub struct Proxy {
    serving: Serving,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    upstream: SocketAddr,
    objects: PathBuf,
    plan: Mutex<Arc<Running>>,
    fired: Mutex<BTreeMap<&'static str, u64>>,
    requests: AtomicU64,
    at_once: AtomicU64,
    most_at_once: AtomicU64,
}

impl Proxy {
    /// Stands in front of the server at `endpoint` (`http://127.0.0.1:port`), whose files are in `objects`.
    pub fn start(endpoint: &str, objects: &Path) -> Self {
        let upstream = endpoint.trim_start_matches("http://").parse().expect("an endpoint on this machine");
        let shared = Arc::new(Shared {
            upstream,
            objects: objects.to_path_buf(),
            plan: Mutex::new(Arc::new(Running::new(Plan::none()))),
            fired: Mutex::default(),
            requests: AtomicU64::new(0),
            at_once: AtomicU64::new(0),
            most_at_once: AtomicU64::new(0),
        });
        let behind = Arc::clone(&shared);
        let serving = Serving::start(move |stream| {
            let shared = Arc::clone(&behind);
            async move {
                // A broken connection is what this is for.
                shared.serve(stream).await.ok();
            }
        });
        Self { serving, shared }
    }

    /// Where the proxy listens.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.serving.address())
    }

    /// The environment of a client of the server, led through the proxy.
    pub fn env(&self, server: &[(String, String)]) -> Vec<(String, String)> {
        let through = |(name, value): &(String, String)| {
            let direct = value.starts_with("http://");
            (name.clone(), if direct { self.endpoint() } else { value.clone() })
        };
        server.iter().map(through).collect()
    }

    /// Goes on with another plan, from its beginning; the counts go on. Requests under way end by the plan before.
    pub fn set(&self, plan: Plan) {
        *self.shared.plan.lock().expect("no panic before") = Arc::new(Running::new(plan));
    }

    /// Faults that were made since the start, by kind.
    pub fn fired(&self) -> BTreeMap<&'static str, u64> {
        self.shared.fired.lock().expect("no panic before").clone()
    }

    /// Requests since the start.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::SeqCst)
    }

    /// Most requests at one time since the start.
    pub fn most_at_once(&self) -> u64 {
        self.shared.most_at_once.load(Ordering::SeqCst)
    }
}

/// What became of a connection.
enum Next {
    /// It goes on with this answer.
    Answer(Head, Vec<u8>),
    /// So many bytes of this answer's body, silence, and an end.
    Part { head: Head, body: Vec<u8>, silence: Duration, reset: bool },
    /// Silence, and an end without an answer.
    Nothing { silence: Duration, reset: bool },
}

impl Shared {
    async fn serve(&self, stream: TcpStream) -> io::Result<()> {
        let mut client = Wire::new(stream);
        while let Some(head) = client.head().await? {
            let under_way = UnderWay::begin(self);
            let next = self.pass(&mut client, &head).await?;
            match next {
                Next::Answer(mut answer, body) => {
                    let last = head.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
                    answer.set("connection", if last { "close" } else { "keep-alive" });
                    let mut bytes = answer.bytes();
                    bytes.extend(body);
                    client.write(&bytes).await?;
                    if last {
                        return Ok(());
                    }
                }
                Next::Part { head, body, silence, reset } => {
                    client.write(&head.bytes()).await?;
                    client.write(&body).await?;
                    sleep(silence).await;
                    if reset {
                        // Time to read what came: a reset throws away what the client has not yet read.
                        sleep(Duration::from_millis(20)).await;
                        client.reset();
                    }
                    return Ok(());
                }
                Next::Nothing { silence, reset } => {
                    sleep(silence).await;
                    if reset {
                        client.reset();
                    }
                    return Ok(());
                }
            }
            drop(under_way);
        }
        Ok(())
    }

    async fn pass(&self, client: &mut Wire, head: &Head) -> io::Result<Next> {
        let (method, target) = (head.word(0), head.word(1));
        let plan = Arc::clone(&self.plan.lock().expect("no panic before"));
        let chosen = plan.choose(method, target, head.header("range").unwrap_or_default());
        if let Some((_, fault @ Fault::ResetBefore)) = chosen {
            self.count(fault);
            return Ok(Next::Nothing { silence: Duration::ZERO, reset: true });
        }
        let body = client.request_body(head).await?;
        if let Some((_, fault @ Fault::StallBefore(millis))) = chosen {
            self.count(fault);
            return Ok(Next::Nothing { silence: Duration::from_millis(millis), reset: false });
        }
        if let Some((_, fault @ Fault::Status { status, retry_after })) = chosen {
            self.count(fault);
            let (head, body) = refusal(method, status, retry_after);
            return Ok(Next::Answer(head, body));
        }
        let (answer, body) = self.forward(head, &body).await?;
        let Some((rule, fault)) = chosen else { return Ok(Next::Answer(answer, body)) };
        match self.spoil(fault, head, answer, body) {
            Ok(next) => {
                self.count(fault);
                Ok(next)
            }
            Err((answer, body)) => {
                plan.give_back(rule);
                Ok(Next::Answer(answer, body))
            }
        }
    }

    fn count(&self, fault: Fault) {
        *self.fired.lock().expect("no panic before").entry(fault.kind()).or_default() += 1;
    }

    /// Asks the server, on a connection of its own.
    async fn forward(&self, head: &Head, body: &[u8]) -> io::Result<(Head, Vec<u8>)> {
        let stream = TcpStream::connect(self.upstream).await?;
        stream.set_nodelay(true)?;
        let mut server = Wire::new(stream);
        let mut request = head.clone();
        request.set("connection", "close");
        if request.header("transfer-encoding").is_some() {
            request.remove("transfer-encoding");
            request.set("content-length", &body.len().to_string());
        }
        let mut bytes = request.bytes();
        bytes.extend_from_slice(body);
        server.write(&bytes).await?;
        let Some(mut answer) = server.head().await? else { return Err(io::ErrorKind::UnexpectedEof.into()) };
        let body = server.answer_body(&answer, head.word(0)).await?;
        if head.word(0) != "HEAD" && !matches!(answer.status(), 204 | 304) {
            answer.remove("transfer-encoding");
            answer.set("content-length", &body.len().to_string());
        }
        Ok((answer, body))
    }

    /// What a fault makes of an answer; the answer itself where it cannot make anything of it.
    fn spoil(&self, fault: Fault, request: &Head, answer: Head, mut body: Vec<u8>) -> Result<Next, (Head, Vec<u8>)> {
        let nothing = |silence, reset| Ok(Next::Nothing { silence, reset });
        let succeeded = (200..300).contains(&answer.status());
        match fault {
            Fault::ResetAfter => nothing(Duration::ZERO, true),
            Fault::StallHead(millis) => nothing(Duration::from_millis(millis), false),
            Fault::DoneButClosed if succeeded => nothing(Duration::ZERO, false),
            Fault::DoneButFailed if succeeded => {
                let (head, body) = refusal(request.word(0), 500, None);
                Ok(Next::Answer(head, body))
            }
            Fault::CutBody(keep) | Fault::ResetBody(keep) | Fault::StallBody(keep, _)
                if succeeded && !body.is_empty() =>
            {
                body.truncate(keep.min(body.len() - 1));
                let silence = if let Fault::StallBody(_, millis) = fault { millis } else { 0 };
                let (silence, reset) = (Duration::from_millis(silence), matches!(fault, Fault::ResetBody(_)));
                Ok(Next::Part { head: answer, body, silence, reset })
            }
            Fault::WrongRange => match answer.header("content-range").and_then(one_further) {
                Some(range) => {
                    let mut head = answer;
                    head.set("content-range", &range);
                    Ok(Next::Answer(head, body))
                }
                None => Err((answer, body)),
            },
            Fault::RangeIgnored if answer.status() == 206 => match self.object(request) {
                Some(whole) => {
                    let mut head = answer;
                    head.line = "HTTP/1.1 200 OK".to_owned();
                    head.remove("content-range");
                    head.set("content-length", &whole.len().to_string());
                    Ok(Next::Answer(head, whole))
                }
                None => Err((answer, body)),
            },
            _ => Err((answer, body)),
        }
    }

    fn object(&self, request: &Head) -> Option<Vec<u8>> {
        std::fs::read(file_of(&self.objects, request.word(1))?).ok()
    }
}

/// `bytes 4-7/10` as `bytes 5-8/10`.
fn one_further(range: &str) -> Option<String> {
    let (bounds, size) = range.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = bounds.split_once('-')?;
    let further = |bound: &str| bound.parse::<u64>().ok().map(|bound| bound + 1);
    Some(format!("bytes {}-{}/{size}", further(first)?, further(last)?))
}

/// An answer in the server's place, in the words of S3.
fn refusal(method: &str, status: u16, retry_after: Option<u64>) -> (Head, Vec<u8>) {
    let (reason, code) = match status {
        403 => ("Forbidden", "AccessDenied"),
        429 => ("Too Many Requests", "TooManyRequests"),
        500 => ("Internal Server Error", "InternalError"),
        503 => ("Service Unavailable", "SlowDown"),
        507 => ("Insufficient Storage", "InsufficientStorage"),
        _ => ("Refused", "Refused"),
    };
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>{reason}</Message></Error>"
    );
    let mut head = Head::answer(status, reason);
    head.set("content-type", "application/xml");
    head.set("content-length", &body.len().to_string());
    if let Some(seconds) = retry_after {
        head.set("retry-after", &seconds.to_string());
    }
    (head, if method == "HEAD" { Vec::new() } else { body.into_bytes() })
}

/// A request under way, counted until it is dropped.
struct UnderWay<'a>(&'a Shared);

impl<'a> UnderWay<'a> {
    fn begin(shared: &'a Shared) -> Self {
        shared.requests.fetch_add(1, Ordering::SeqCst);
        let now = shared.at_once.fetch_add(1, Ordering::SeqCst) + 1;
        shared.most_at_once.fetch_max(now, Ordering::SeqCst);
        Self(shared)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.at_once.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::servers::client::{Answer, End, send};
    use crate::servers::files::HttpServer;
    use crate::servers::plan::Rule;

    struct Scene {
        _folder: tempfile::TempDir,
        _server: HttpServer,
        proxy: Proxy,
    }

    /// A proxy in front of a server of one file of a thousand bytes.
    fn scene() -> Scene {
        let folder = tempfile::tempdir().expect("folder");
        std::fs::write(folder.path().join("a b"), [7; 1000]).expect("written");
        let server = HttpServer::start(folder.path());
        let proxy = Proxy::start(&server.endpoint(), folder.path());
        Scene { _folder: folder, _server: server, proxy }
    }

    impl Scene {
        fn get(&self, range: &str) -> Answer {
            send(&self.proxy.endpoint(), "GET", "/a%20b", &[("range", range)], b"")
        }

        /// The answer under one fault, which must have been made once more.
        fn under(&self, fault: Fault) -> Answer {
            self.proxy.set(Plan::new(1, [Rule::of(fault)]));
            let before = self.proxy.fired().get(fault.kind()).copied().unwrap_or(0);
            let answer = self.get("bytes=100-299");
            assert_eq!(self.proxy.fired().get(fault.kind()), Some(&(before + 1)), "{fault:?} {answer:?}");
            answer
        }
    }

    #[test]
    fn without_a_plan_everything_passes() {
        let scene = scene();
        let whole = scene.get("");
        assert_eq!((whole.status, whole.body.len(), whole.end), (200, 1000, End::Whole));
        assert_eq!(scene.get("bytes=0-9").header("content-range"), Some("bytes 0-9/1000"));
        let head = send(&scene.proxy.endpoint(), "HEAD", "/a%20b", &[], b"");
        assert_eq!((head.status, head.header("content-length")), (200, Some("1000")));
        assert_eq!(send(&scene.proxy.endpoint(), "PUT", "/a%20b", &[], b"x").status, 405);
        assert!(scene.proxy.fired().is_empty());
        assert_eq!(scene.proxy.requests(), 4);
        assert_eq!(scene.proxy.most_at_once(), 1);
    }

    #[test]
    fn each_fault_is_what_it_says() {
        let scene = scene();
        let busy = scene.under(Fault::Status { status: 503, retry_after: Some(2) });
        assert_eq!((busy.status, busy.header("retry-after")), (503, Some("2")));
        assert!(busy.text().contains("SlowDown"), "{busy:?}");
        assert_eq!(scene.under(Fault::Status { status: 429, retry_after: None }).status, 429);
        let reset = scene.under(Fault::ResetBefore);
        assert_eq!((reset.status, reset.end), (0, End::Reset));
        let reset = scene.under(Fault::ResetAfter);
        assert_eq!((reset.status, reset.end), (0, End::Reset));
        let part = scene.under(Fault::ResetBody(50));
        assert_eq!((part.status, part.body.len(), part.end), (206, 50, End::Reset));
        let part = scene.under(Fault::CutBody(60));
        assert_eq!((part.header("content-length"), part.body.len(), part.end), (Some("200"), 60, End::Closed));
        let begun = Instant::now();
        let part = scene.under(Fault::StallBody(10, 300));
        assert_eq!((part.body.len(), part.end), (10, End::Closed));
        assert!(begun.elapsed() >= Duration::from_millis(300), "{:?}", begun.elapsed());
        let none = scene.under(Fault::StallHead(100));
        assert_eq!((none.status, none.end), (0, End::Closed));
        let wrong = scene.under(Fault::WrongRange);
        assert_eq!((wrong.status, wrong.header("content-range")), (206, Some("bytes 101-300/1000")));
        let whole = scene.under(Fault::RangeIgnored);
        assert_eq!((whole.status, whole.body.len(), whole.header("content-range")), (200, 1000, None));
        assert_eq!(scene.under(Fault::DoneButFailed).status, 500);
        assert_eq!(scene.under(Fault::DoneButClosed).status, 0);
        assert_eq!(scene.proxy.requests(), 12);
    }

    #[test]
    fn a_fault_that_cannot_be_made_is_not_counted() {
        let scene = scene();
        scene.proxy.set(Plan::new(1, [Rule::of(Fault::WrongRange).times(1)]));
        assert_eq!(scene.get("").status, 200);
        assert!(scene.proxy.fired().is_empty());
        assert_eq!(scene.get("bytes=0-9").header("content-range"), Some("bytes 1-10/1000"));
        assert_eq!(scene.get("bytes=0-9").header("content-range"), Some("bytes 0-9/1000"));
        scene.proxy.set(Plan::new(1, [Rule::of(Fault::DoneButFailed), Rule::of(Fault::CutBody(1))]));
        assert_eq!(send(&scene.proxy.endpoint(), "GET", "/no", &[], b"").status, 404);
        assert_eq!(scene.proxy.fired().get("done_but_failed"), None);
    }

    /// What tells a write that was refused from one that was done and reported failed.
    #[test]
    fn the_server_sees_what_the_fault_says_that_it_sees() {
        use crate::servers::s3::S3Server;
        let server = S3Server::start_open();
        let proxy = Proxy::start(&server.endpoint(), server.root());
        let put = |key: &str| send(&proxy.endpoint(), "PUT", &format!("/slicemill/{key}"), &[], b"bytes").status;
        for (fault, status, stored) in [
            (Fault::Status { status: 403, retry_after: None }, 403, false),
            (Fault::Status { status: 507, retry_after: None }, 507, false),
            (Fault::ResetBefore, 0, false),
            (Fault::ResetAfter, 0, true),
            (Fault::StallBefore(10), 0, false),
            (Fault::StallHead(10), 0, true),
            (Fault::DoneButFailed, 500, true),
            (Fault::DoneButClosed, 0, true),
        ] {
            proxy.set(Plan::new(1, [Rule::of(fault).on(&["PUT"])]));
            let key = format!("{}-{status}", fault.kind());
            assert_eq!(put(&key), status, "{fault:?}");
            assert_eq!(server.bucket().join(&key).exists(), stored, "{fault:?}");
        }
    }
}
