//! The few requests by which a test sets up a server, without a client library.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::Error;

/// A server of a test answers at once or not at all.
const LIMIT: Duration = Duration::from_secs(20);

/// Sends a request without a body, and wants an answer of success.
pub(crate) fn request(address: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)]) -> Result<(), Error> {
    let answer = exchange(address, method, path, headers).map_err(Error::io(format!("http://{address}{path}")))?;
    let status = answer.split(' ').nth(1).and_then(|status| status.parse::<u16>().ok()).unwrap_or_default();
    if (200..300).contains(&status) {
        return Ok(());
    }
    Err(Error::io(format!("http://{address}{path}"))(io::Error::other(answer)))
}

fn exchange(address: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)]) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    let headers: Vec<_> = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let headers = headers.concat();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\ncontent-length: 0\r\nconnection: close\r\n{headers}\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Whether somebody listens there.
pub(crate) fn answers(address: SocketAddr) -> bool {
    TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()
}
