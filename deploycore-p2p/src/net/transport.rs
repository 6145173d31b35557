//! What connections are made of.

use std::fmt::Debug;
use std::io;
use std::net::IpAddr;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};

/// A connection: two halves, the host at the other end, and who it may be.
pub struct Connection {
    /// What comes.
    pub read: Box<dyn AsyncRead + Send + Unpin>,
    /// What goes.
    pub write: Box<dyn AsyncWrite + Send + Unpin>,
    /// The other end's host, as an address without port.
    pub host: String,
    /// The names that the other end may go by; `None` if any.
    pub names: Option<Vec<String>>,
}

impl Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("host", &self.host).finish_non_exhaustive()
    }
}

/// How members reach each other.
#[async_trait]
pub trait Transport: Send + Sync + Debug + 'static {
    /// Listens at `host:port`; port 0 means any free one.
    async fn listen(&self, addr: &str) -> io::Result<Box<dyn Listener>>;

    /// Connects to `host:port`. The name is resolved anew each time. Cancel safe.
    async fn connect(&self, addr: &str) -> io::Result<Connection>;
}

/// An open port.
#[async_trait]
pub trait Listener: Send + Debug {
    /// The next connection. Cancel safe.
    async fn accept(&mut self) -> io::Result<Connection>;

    /// Where it listens, as `host:port`.
    fn local_addr(&self) -> io::Result<String>;
}

/// Plain TCP.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tcp;

/// Bytes of a connection that the system takes before the network does, beyond those on their way. More would keep messages behind blocks
/// for nothing; less would wake the writer more often. Where the system has no such bound, its own holds.
#[cfg(any(target_os = "android", target_os = "linux"))]
const MAX_UNSENT: u32 = 32 << 10;

/// Sets a connection up for messages that are small and wanted at once, between blocks that are written whole.
pub(super) fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    #[cfg(any(target_os = "android", target_os = "linux"))]
    socket2::SockRef::from(stream).set_tcp_notsent_lowat(MAX_UNSENT)?;
    Ok(())
}

fn connection(stream: TcpStream, host: IpAddr) -> Connection {
    let (read, write) = stream.into_split();
    Connection { read: Box::new(read), write: Box::new(write), host: host.to_string(), names: None }
}

#[async_trait]
impl Transport for Tcp {
    async fn listen(&self, addr: &str) -> io::Result<Box<dyn Listener>> {
        Ok(Box::new(TcpListener::bind(addr).await?))
    }

    async fn connect(&self, addr: &str) -> io::Result<Connection> {
        let stream = TcpStream::connect(addr).await?;
        tune(&stream)?;
        let host = stream.peer_addr()?.ip();
        Ok(connection(stream, host))
    }
}

#[async_trait]
impl Listener for TcpListener {
    async fn accept(&mut self) -> io::Result<Connection> {
        let (stream, addr) = TcpListener::accept(self).await?;
        // One that is reset already is found so when it is read; it is no reason to accept no others.
        let _ = tune(&stream);
        Ok(connection(stream, addr.ip()))
    }

    fn local_addr(&self) -> io::Result<String> {
        TcpListener::local_addr(self).map(|addr| addr.to_string())
    }
}

#[cfg(all(test, any(target_os = "android", target_os = "linux")))]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_keeps_little_that_is_unsent() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        tune(&stream).unwrap();
        assert_eq!(socket2::SockRef::from(&stream).tcp_notsent_lowat().unwrap(), MAX_UNSENT);
        assert!(stream.nodelay().unwrap());
    }
}
