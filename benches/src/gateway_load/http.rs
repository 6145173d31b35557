//! As much of HTTP as a machine under load speaks: a request that was prepared, an answer whose end is known by its length.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A request without a body.
pub(crate) fn get(host: &str, path: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    let lines: String = headers.iter().map(|(name, value)| [name, ": ", value, "\r\n"].concat()).collect();
    format!("GET {path} HTTP/1.1\r\nhost: {host}\r\naccept: */*\r\n{lines}\r\n").into_bytes()
}

/// A request with a body.
pub(crate) fn put(host: &str, path: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("PUT {path} HTTP/1.1\r\nhost: {host}\r\ncontent-length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) tag: Option<String>,
    pub(crate) body: Vec<u8>,
}

/// A connection, with what came after the last answer: nothing, as nobody sends two requests at once.
#[derive(Debug)]
pub(crate) struct Line {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Line {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self { stream, read: Vec::new() }
    }

    pub(crate) async fn ask(&mut self, request: &[u8]) -> io::Result<Answer> {
        self.send(request).await?;
        self.answer().await
    }

    pub(crate) async fn send(&mut self, request: &[u8]) -> io::Result<()> {
        self.stream.write_all(request).await
    }

    pub(crate) async fn answer(&mut self) -> io::Result<Answer> {
        self.read.clear();
        let head = loop {
            if let Some(end) = self.read.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            self.more().await?;
        };
        let text = std::str::from_utf8(&self.read[..head]).map_err(|_| bad("a head that is no text"))?;
        let status = text.get(9..12).and_then(|status| status.parse().ok()).ok_or_else(|| bad("no status"))?;
        let header = |name: &str| {
            let mut lines = text.lines().filter_map(|line| line.split_once(':'));
            lines.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim().to_owned())
        };
        let tag = header("etag");
        let length = match status {
            204 | 304 => 0,
            _ => header("content-length").and_then(|length| length.parse().ok()).ok_or_else(|| bad("no length"))?,
        };
        while self.read.len() < head + length {
            self.more().await?;
        }
        Ok(Answer { status, tag, body: self.read[head..head + length].to_vec() })
    }

    async fn more(&mut self) -> io::Result<()> {
        self.read.reserve(2_048);
        match self.stream.read_buf(&mut self.read).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the gateway answered with {what}"))
}
