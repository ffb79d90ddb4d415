//! A small HTTP server whose every answer a test decides, broken ones included. Included by tests with `#[path]`.

#![allow(dead_code, reason = "each test that includes this uses a part of it")]

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Request {
    /// `GET`, `HEAD` and so on.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Headers by lower-case name.
    pub headers: HashMap<String, String>,
    /// The body, for requests with a length.
    pub body: Vec<u8>,
}

impl Request {
    /// First and last byte of a `Range` header.
    pub fn range(&self) -> Option<(usize, usize)> {
        let (first, last) = self.headers.get("range")?.strip_prefix("bytes=")?.split_once('-')?;
        Some((first.parse().ok()?, last.parse().ok()?))
    }
}

/// An answer.
#[derive(Debug, Clone, Default)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Sends so many bytes of the body only, then closes.
    pub cut: Option<usize>,
    /// Waits before closing after a cut.
    pub stall: Option<Duration>,
    /// No length: the body in chunks.
    pub chunked: bool,
    /// Repeats the body until the client goes away.
    pub endless: bool,
    /// Closes without any answer.
    pub hang_up: bool,
}

impl Reply {
    pub fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    pub fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self { status: 200, body: body.into(), ..Self::default() }
    }

    /// The body as a well-behaved server answers: whole, or the range that was asked for.
    pub fn serve(request: &Request, body: &[u8]) -> Self {
        let Some((first, last)) = request.range() else { return Self::ok(body) };
        let last = last.min(body.len() - 1);
        let range = format!("bytes {first}-{last}/{}", body.len());
        Self { status: 206, body: body[first..=last].to_vec(), ..Self::default() }.header("content-range", &range)
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sends so many bytes of the body, then closes.
    pub fn cut(mut self, bytes: usize) -> Self {
        self.cut = Some(bytes);
        self
    }
}

/// A running server; ends when dropped.
pub struct ScriptedServer {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    ended: Arc<AtomicBool>,
}

impl ScriptedServer {
    /// Answers request number `n` (from 0) with `script(n, request)`.
    pub fn start(script: impl Fn(usize, &Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let (requests, ended) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (script, log, end) = (Arc::new(script), Arc::clone(&requests), Arc::clone(&ended));
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                if end.load(Ordering::SeqCst) {
                    return;
                }
                let (Ok(socket), script, log, end) = (socket, Arc::clone(&script), Arc::clone(&log), Arc::clone(&end))
                else {
                    continue;
                };
                std::thread::spawn(move || {
                    let _ = answer(socket, &*script, &log, &end);
                });
            }
        });
        Self { address, requests, ended }
    }

    /// `http://127.0.0.1:port` and `path`.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

impl Drop for ScriptedServer {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
    }
}

fn answer(
    socket: TcpStream,
    script: &(dyn Fn(usize, &Request) -> Reply + Send + Sync),
    log: &Mutex<Vec<Request>>,
    ended: &AtomicBool,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(socket.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let (Some(method), Some(target)) = (words.next(), words.next()) else { return Ok(()) };
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let request = Request { method: method.to_owned(), target: target.to_owned(), headers, body };
    let number = {
        let mut log = log.lock().unwrap();
        log.push(request.clone());
        log.len() - 1
    };
    send(socket, &request, script(number, &request), ended)
}

fn send(mut socket: TcpStream, request: &Request, reply: Reply, ended: &AtomicBool) -> std::io::Result<()> {
    if reply.hang_up {
        return Ok(());
    }
    let mut head = format!("HTTP/1.1 {} X\r\nconnection: close\r\n", reply.status);
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if reply.chunked {
        head.push_str("transfer-encoding: chunked\r\n\r\n");
    } else {
        let length = if reply.endless { 1 << 40 } else { reply.body.len() };
        head.push_str(&format!("content-length: {length}\r\n\r\n"));
    }
    socket.write_all(head.as_bytes())?;
    if request.method == "HEAD" {
        return Ok(());
    }
    let sent = &reply.body[..reply.cut.unwrap_or(reply.body.len()).min(reply.body.len())];
    loop {
        if reply.chunked && !sent.is_empty() {
            socket.write_all(format!("{:x}\r\n", sent.len()).as_bytes())?;
            socket.write_all(sent)?;
            socket.write_all(b"\r\n")?;
        } else {
            socket.write_all(sent)?;
        }
        if !reply.endless || ended.load(Ordering::SeqCst) {
            break;
        }
    }
    if reply.chunked && reply.cut.is_none() {
        socket.write_all(b"0\r\n\r\n")?;
    }
    socket.flush()?;
    if let Some(stall) = reply.stall {
        std::thread::sleep(stall);
    }
    Ok(())
}
