//! The smallest http client: one request a connection, sent as it is written here and answered with what came, so that
//! tests see broken answers as they are.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// An answer, as far as it came.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status; 0 when none came.
    pub status: u16,
    /// Names in lower case, and values.
    pub headers: Vec<(String, String)>,
    /// The bytes that came, without chunk sizes.
    pub body: Vec<u8>,
    /// How the connection ended.
    pub end: End,
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// All that was announced came.
    Whole,
    /// It was closed before.
    Closed,
    /// It was reset.
    Reset,
    /// Nothing more came for ten seconds.
    Silent,
}

impl Answer {
    /// A header by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Sends one request to `endpoint` (`http://host:port`).
pub fn send(endpoint: &str, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let host = endpoint.trim_start_matches("http://").trim_end_matches('/');
    let mut stream = TcpStream::connect(host).expect("a connection");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a time limit");
    let mut request = format!("{method} {target} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n");
    request.push_str(&format!("content-length: {}\r\n", body.len()));
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");
    let sent = stream.write_all(request.as_bytes()).and_then(|()| stream.write_all(body));
    let (raw, end) = match sent {
        Ok(()) => receive(&mut stream),
        Err(_) => (Vec::new(), End::Reset),
    };
    parse(&raw, end, method == "HEAD")
}

fn receive(stream: &mut TcpStream) -> (Vec<u8>, End) {
    let (mut raw, mut piece) = (Vec::new(), [0; 16 << 10]);
    loop {
        match stream.read(&mut piece) {
            Ok(0) => return (raw, End::Closed),
            Ok(read) => raw.extend_from_slice(&piece[..read]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return (raw, End::Silent);
            }
            Err(_) => return (raw, End::Reset),
        }
    }
}

fn parse(raw: &[u8], end: End, bodiless: bool) -> Answer {
    let split = raw.windows(4).position(|window| window == b"\r\n\r\n");
    let Some(split) = split else { return Answer { status: 0, headers: Vec::new(), body: raw.to_vec(), end } };
    let head = String::from_utf8_lossy(&raw[..split]).into_owned();
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|code| code.parse().ok());
    let headers = lines.filter_map(|line| line.split_once(':'));
    let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())).collect();
    let mut answer = Answer { status: status.unwrap_or(0), headers, body: raw[split + 4..].to_vec(), end };
    if answer.header("transfer-encoding") == Some("chunked") {
        let whole;
        (answer.body, whole) = unchunk(&answer.body);
        answer.end = if whole { End::Whole } else { end };
        return answer;
    }
    let announced: usize = answer.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    if end == End::Closed && (bodiless || answer.body.len() == announced) {
        answer.end = End::Whole;
    }
    answer
}

/// The bytes of a chunked body, and whether its last chunk came.
fn unchunk(mut raw: &[u8]) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    while let Some(line) = raw.windows(2).position(|window| window == b"\r\n") {
        let size = std::str::from_utf8(&raw[..line]).ok().and_then(|size| usize::from_str_radix(size, 16).ok());
        let Some(size) = size else { return (body, false) };
        if size == 0 {
            return (body, true);
        }
        let rest = &raw[line + 2..];
        let came = size.min(rest.len());
        body.extend_from_slice(&rest[..came]);
        if rest.len() < size + 2 {
            return (body, false);
        }
        raw = &rest[size + 2..];
    }
    (body, false)
}
