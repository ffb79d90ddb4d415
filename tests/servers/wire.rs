//! Messages of HTTP/1.1 as they are on the wire: read whole, and written whole or in part.

use std::io::{Error, ErrorKind, Result};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const HEAD_MAX: usize = 64 << 10;

/// A request or an answer without its body.
#[derive(Debug, Clone)]
pub struct Head {
    /// The first line.
    pub line: String,
    headers: Vec<(String, String)>,
}

impl Head {
    /// An answer.
    pub fn answer(status: u16, reason: &str) -> Self {
        Self { line: format!("HTTP/1.1 {status} {reason}"), headers: Vec::new() }
    }

    /// A word of the first line: of requests method, target and version, of answers version, status and reason.
    pub fn word(&self, index: usize) -> &str {
        self.line.split(' ').nth(index).unwrap_or_default()
    }

    /// The status of an answer.
    pub fn status(&self) -> u16 {
        self.word(1).parse().unwrap_or(0)
    }

    /// A header, whatever the case of its name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// Takes a header out.
    pub fn remove(&mut self, name: &str) {
        self.headers.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
    }

    /// Puts a header in the place of those of its name.
    pub fn set(&mut self, name: &str, value: &str) {
        self.remove(name);
        self.headers.push((name.to_owned(), value.to_owned()));
    }

    fn parse(raw: &[u8]) -> Result<Self> {
        let text = std::str::from_utf8(raw).map_err(|error| Error::new(ErrorKind::InvalidData, error))?;
        let mut lines = text.split("\r\n");
        let line = lines.next().unwrap_or_default().to_owned();
        let headers = lines.filter_map(|line| line.split_once(':'));
        Ok(Self { line, headers: headers.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect() })
    }

    /// As it goes on the wire, with the empty line that ends it.
    pub fn bytes(&self) -> Vec<u8> {
        let headers: String = self.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        format!("{}\r\n{headers}\r\n", self.line).into_bytes()
    }
}

/// A connection and what was read of it and not yet used.
pub struct Wire {
    stream: TcpStream,
    ahead: Vec<u8>,
}

impl Wire {
    /// A connection of which nothing was read.
    pub fn new(stream: TcpStream) -> Self {
        Self { stream, ahead: Vec::new() }
    }

    async fn more(&mut self) -> Result<usize> {
        self.stream.read_buf(&mut self.ahead).await
    }

    /// The next head, `None` at the end of the connection.
    pub async fn head(&mut self) -> Result<Option<Head>> {
        loop {
            if let Some(end) = self.ahead.windows(4).position(|window| window == b"\r\n\r\n") {
                let raw: Vec<u8> = self.ahead.drain(..end + 4).collect();
                return Head::parse(&raw[..end]).map(Some);
            }
            if self.ahead.len() > HEAD_MAX {
                return Err(Error::new(ErrorKind::InvalidData, "a head without an end"));
            }
            if self.more().await? == 0 {
                return if self.ahead.is_empty() { Ok(None) } else { Err(ErrorKind::UnexpectedEof.into()) };
            }
        }
    }

    /// The body of a request with this head.
    pub async fn request_body(&mut self, head: &Head) -> Result<Vec<u8>> {
        if chunked(head) {
            return self.chunks().await;
        }
        self.exactly(length(head)?.unwrap_or(0)).await
    }

    /// The body of the answer with this head to a request of this method.
    pub async fn answer_body(&mut self, head: &Head, method: &str) -> Result<Vec<u8>> {
        if method == "HEAD" || matches!(head.status(), 100..=199 | 204 | 304) {
            return Ok(Vec::new());
        }
        if chunked(head) {
            return self.chunks().await;
        }
        if let Some(length) = length(head)? {
            return self.exactly(length).await;
        }
        while self.more().await? > 0 {}
        Ok(std::mem::take(&mut self.ahead))
    }

    async fn exactly(&mut self, bytes: usize) -> Result<Vec<u8>> {
        while self.ahead.len() < bytes {
            if self.more().await? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(self.ahead.drain(..bytes).collect())
    }

    async fn line(&mut self) -> Result<String> {
        loop {
            if let Some(end) = self.ahead.windows(2).position(|window| window == b"\r\n") {
                let raw: Vec<u8> = self.ahead.drain(..end + 2).collect();
                return Ok(String::from_utf8_lossy(&raw[..end]).into_owned());
            }
            if self.more().await? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
    }

    async fn chunks(&mut self) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = self.line().await?;
            let size = usize::from_str_radix(line.split(';').next().unwrap_or_default().trim(), 16);
            let size = size.map_err(|error| Error::new(ErrorKind::InvalidData, error))?;
            if size == 0 {
                while !self.line().await?.is_empty() {}
                return Ok(body);
            }
            body.extend(self.exactly(size).await?);
            self.line().await?;
        }
    }

    /// Writes `bytes`.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await
    }

    /// Ends the connection with a reset in the place of an orderly end.
    pub fn reset(self) {
        self.stream.set_zero_linger().ok();
    }
}

fn chunked(head: &Head) -> bool {
    head.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked"))
}

fn length(head: &Head) -> Result<Option<usize>> {
    let length = head.header("content-length").map(str::parse).transpose();
    length.map_err(|error| Error::new(ErrorKind::InvalidData, error))
}
