//! A small HTTP service: what the reference cluster builds, deploys and asks for its version.
//!
//! `web --port PORT` listens on 127.0.0.1 and answers `GET /healthz` and `GET /version`.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

const VERSION: &str = env!("CARGO_PKG_VERSION");
/// A request head longer than this is refused.
const MAX_HEAD: u64 = 16 * 1024;

fn main() {
    let mut args = std::env::args().skip(1);
    let port = match (args.next().as_deref(), args.next()) {
        (Some("--port"), Some(port)) => port,
        _ => fail("usage: web --port PORT"),
    };
    let listener = match TcpListener::bind(format!("127.0.0.1:{port}")) {
        Ok(listener) => listener,
        Err(error) => fail(&format!("port {port}: {error}")),
    };
    println!("web {VERSION} listens on 127.0.0.1:{port}");
    let started = Instant::now();
    for stream in listener.incoming().flatten() {
        std::thread::spawn(move || {
            let _ = answer(stream, started);
        });
    }
}

fn answer(mut stream: TcpStream, started: Instant) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut head = BufReader::new(stream.try_clone()?.take(MAX_HEAD));
    let mut request = String::new();
    head.read_line(&mut request)?;
    loop {
        let mut line = String::new();
        if head.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
    }
    let mut words = request.split_whitespace();
    let (status, body) = match (words.next(), words.next()) {
        (Some("GET"), Some("/healthz")) => ("200 OK", "{\"status\":\"ok\"}".to_owned()),
        (Some("GET"), Some("/version")) => ("200 OK", version(started)),
        (Some("GET"), _) => ("404 Not Found", "{\"error\":\"not found\"}".to_owned()),
        _ => ("405 Method Not Allowed", "{\"error\":\"only GET\"}".to_owned()),
    };
    write!(
        stream,
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}

fn version(started: Instant) -> String {
    let (pid, seconds) = (std::process::id(), started.elapsed().as_secs());
    format!("{{\"service\":\"web\",\"version\":\"{VERSION}\",\"pid\":{pid},\"uptime_seconds\":{seconds}}}")
}

fn fail(message: &str) -> ! {
    eprintln!("{message}");
    std::process::exit(2)
}
