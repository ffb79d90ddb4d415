//! A hub for tests: the routes, headers and redirects of the real one, and its failures on demand.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::super::HubOptions;
use super::super::fingerprint::hex;

pub(super) const REPO: &str = "org/name";
pub(super) const COMMIT: &str = "00112233445566778899aabbccddeeff00112233";

/// What the hub does next with the contents of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trick {
    /// Sends so many bytes and closes.
    Cut(usize),
    /// Answers with this status.
    Refuse(u16),
    /// Sends the whole file whatever was asked for.
    Whole,
    /// Sends another part than was asked for.
    Other,
    /// Sends wrong bytes.
    Spoil,
    /// Sends a few bytes and then nothing for a while.
    Stall(Duration),
}

#[derive(Default)]
pub(super) struct State {
    pub(super) files: BTreeMap<String, Vec<u8>>,
    /// Tokens that are let in; all when empty.
    pub(super) tokens: Vec<String>,
    /// Status and code for those that are not.
    pub(super) refusal: (u16, &'static str),
    pub(super) tricks: BTreeMap<String, VecDeque<Trick>>,
    /// Method, path, range.
    pub(super) log: Vec<String>,
    /// A token came where it must not.
    pub(super) leaked: bool,
}

pub(super) struct Hub {
    port: u16,
    pub(super) state: Arc<Mutex<State>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

struct Request {
    method: String,
    path: String,
    range: Option<usize>,
    token: Option<String>,
}

impl Hub {
    pub(super) fn new(files: &[(&str, Vec<u8>)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let files = files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.clone())).collect();
        let state = Arc::new(Mutex::new(State { files, ..State::default() }));
        let stop = Arc::new(AtomicBool::new(false));
        let (shared, stopped) = (Arc::clone(&state), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || serve(&stream.unwrap(), port, &shared));
            }
        });
        Self { port, state, stop, thread: Some(thread) }
    }

    pub(super) fn options(&self, cache: &Path) -> HubOptions {
        HubOptions {
            endpoint: format!("http://127.0.0.1:{}", self.port),
            timeout: Duration::from_secs(5),
            tries: 3,
            wait: Duration::from_millis(1),
            ..HubOptions::new(cache)
        }
    }

    pub(super) fn tricks(&self, file: &str, tricks: &[Trick]) {
        self.state.lock().unwrap().tricks.insert(file.to_owned(), tricks.iter().copied().collect());
    }

    /// What was asked of the hub since the last call, of lines that contain `part`.
    pub(super) fn asked(&self, part: &str) -> Vec<String> {
        let log = std::mem::take(&mut self.state.lock().unwrap().log);
        log.into_iter().filter(|line| line.contains(part)).collect()
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(TcpStream::connect(("127.0.0.1", self.port)));
        drop(self.thread.take().map(JoinHandle::join));
    }
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let first = lines.next()?;
    let mut words = first.split(' ').map(str::to_owned);
    let mut request = Request { method: words.next()?, path: words.next()?, range: None, token: None };
    for line in lines.take_while(|line| !line.is_empty()) {
        let (name, value) = line.split_once(": ").unwrap();
        match name.to_ascii_lowercase().as_str() {
            "range" => request.range = value.strip_prefix("bytes=").and_then(|v| v.strip_suffix('-')?.parse().ok()),
            "authorization" => request.token = value.strip_prefix("Bearer ").map(str::to_owned),
            _ => {}
        }
    }
    Some(request)
}

fn reply(mut stream: &TcpStream, status: u16, headers: &[(&str, String)], body: &[u8], sent: usize) {
    let mut head = format!("HTTP/1.1 {status} X\r\nConnection: close\r\n");
    for (name, value) in headers {
        write!(head, "{name}: {value}\r\n").unwrap();
    }
    if !headers.iter().any(|(name, _)| *name == "Content-Length") {
        write!(head, "Content-Length: {}\r\n", body.len()).unwrap();
    }
    drop(stream.write_all(format!("{head}\r\n").as_bytes()).and_then(|()| stream.write_all(&body[..sent])));
}

fn serve(stream: &TcpStream, port: u16, state: &Mutex<State>) {
    let Some(request) = read(stream) else { return };
    let mut state = state.lock().unwrap();
    let range = request.range.map_or_else(String::new, |range| format!(" from {range}"));
    state.log.push(format!("{} {}{range}", request.method, request.path));
    if let Some(file) = request.path.strip_prefix("/store/") {
        state.leaked |= request.token.is_some();
        return contents(stream, &request, file, state);
    }
    if !state.tokens.is_empty() && !request.token.as_ref().is_some_and(|token| state.tokens.contains(token)) {
        let (status, code) = state.refusal;
        let headers = [("X-Error-Code", code.to_owned()), ("X-Error-Message", "not for you".to_owned())];
        return reply(stream, status, &headers, b"", 0);
    }
    let refuse = |code: &str| reply(stream, 404, &[("X-Error-Code", code.to_owned())], b"", 0);
    if let Some(rest) = request.path.strip_prefix("/api/models/") {
        let Some(revision) = rest.strip_prefix(&format!("{REPO}/revision/")) else { return refuse("RepoNotFound") };
        if !["main", "refs%2Fpr%2F1", COMMIT].contains(&revision) {
            return refuse("RevisionNotFound");
        }
        let siblings: Vec<_> = state.files.keys().map(|name| serde_json::json!({"rfilename": name})).collect();
        let body = serde_json::json!({"id": REPO, "sha": COMMIT, "siblings": siblings}).to_string();
        return reply(stream, 200, &[], body.as_bytes(), body.len());
    }
    let direct = format!("/{REPO}/resolve/{COMMIT}/");
    let moved = format!("/api/resolve-cache/{REPO}/{COMMIT}/");
    let Some((file, is_moved)) = (request.path.strip_prefix(&direct).map(|file| (file, false)))
        .or_else(|| request.path.strip_prefix(&moved).map(|file| (file, true)))
    else {
        return refuse("RepoNotFound");
    };
    let Some(bytes) = state.files.get(file) else { return refuse("EntryNotFound") };
    let commit = ("X-Repo-Commit", COMMIT.to_owned());
    if is_large(file) {
        // Another host, as far as a client can tell.
        let location = format!("http://localhost:{port}/store/{file}");
        let etag = format!("\"{}\"", hex(&Sha256::digest(bytes)));
        let size = bytes.len().to_string();
        let headers = [commit, ("Location", location), ("X-Linked-Etag", etag), ("X-Linked-Size", size)];
        reply(stream, 302, &headers, b"", 0);
    } else if !is_moved {
        reply(stream, 307, &[commit, ("Location", format!("{moved}{file}"))], b"", 0);
    } else {
        let file = file.to_owned();
        contents(stream, &request, &file, state);
    }
}

fn is_large(file: &str) -> bool {
    file.ends_with(".safetensors") || file.ends_with(".bin")
}

fn contents(stream: &TcpStream, request: &Request, file: &str, mut state: std::sync::MutexGuard<'_, State>) {
    let mut bytes = state.files[file].clone();
    let etag = ("ETag", format!("W/\"blob-{}\"", bytes.len()));
    if request.method == "HEAD" {
        let headers = [etag, ("Content-Length", bytes.len().to_string()), ("X-Repo-Commit", COMMIT.to_owned())];
        return reply(stream, 200, &headers, b"", 0);
    }
    let trick = state.tricks.get_mut(file).and_then(VecDeque::pop_front);
    drop(state);
    let start = request.range.filter(|_| trick != Some(Trick::Whole)).unwrap_or(0);
    let mut sent = bytes.len() - start;
    match trick {
        Some(Trick::Refuse(status)) => return reply(stream, status, &[], b"", 0),
        Some(Trick::Cut(n)) => sent = n.min(sent),
        Some(Trick::Spoil) => bytes.iter_mut().for_each(|b| *b ^= 1),
        Some(Trick::Stall(_)) => sent = 10,
        Some(Trick::Whole | Trick::Other) | None => {}
    }
    let shift = usize::from(trick == Some(Trick::Other));
    let range = ("Content-Range", format!("bytes {}-{}/{}", start + shift, bytes.len() - 1, bytes.len()));
    if start > 0 {
        reply(stream, 206, &[etag, range], &bytes[start..], sent);
    } else {
        reply(stream, 200, &[etag], &bytes, sent);
    }
    if let Some(Trick::Stall(time)) = trick {
        std::thread::sleep(time);
    }
}
