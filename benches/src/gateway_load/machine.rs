//! A machine under load: one connection, one request that waits, again and again until it hears of the change.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Semaphore;

use crate::http::{Answer, Line};

/// Machines that connect at once.
const CONNECTING: usize = 256;
/// Connections from one address of the loopback network: fewer than there are ports.
const PER_ADDRESS: usize = 10_000;
/// Before a machine that was turned away or cut off comes again.
const AGAIN: Duration = Duration::from_millis(500);

/// What all machines share.
#[derive(Debug)]
pub(crate) struct Fleet {
    pub(crate) gateway: SocketAddr,
    /// The request that waits for what comes after what the machine holds.
    pub(crate) wait: Vec<u8>,
    pub(crate) connecting: Semaphore,
    pub(crate) waiting: AtomicUsize,
    pub(crate) failures: AtomicUsize,
}

impl Fleet {
    pub(crate) fn new(gateway: SocketAddr, wait: Vec<u8>) -> Self {
        let connecting = Semaphore::new(CONNECTING);
        Self { gateway, wait, connecting, waiting: AtomicUsize::default(), failures: AtomicUsize::default() }
    }

    /// A connection of the `number`-th machine. Toward the loopback network it has an address that leaves it ports.
    pub(crate) async fn connect(&self, number: usize) -> io::Result<Line> {
        let _turn = self.connecting.acquire().await.expect("it is never closed");
        let stream = match self.gateway.ip() {
            IpAddr::V4(ip) if ip.is_loopback() => {
                let socket = TcpSocket::new_v4()?;
                let [high, low] = ((number / PER_ADDRESS + 2) as u16).to_be_bytes();
                socket.bind(SocketAddr::from((Ipv4Addr::new(127, 1, high, low), 0)))?;
                socket.connect(self.gateway).await?
            }
            _ => TcpStream::connect(self.gateway).await?,
        };
        stream.set_nodelay(true)?;
        Ok(Line::new(stream))
    }
}

/// Waits until a change came; gives when, and how long the answer was. It does not give up.
pub(crate) async fn hear(fleet: Arc<Fleet>, number: usize) -> (Instant, usize) {
    let mut line: Option<Line> = None;
    loop {
        match wait_once(&fleet, number, &mut line).await {
            // The body of one that nothing changed for is `{"revision":7,"goals":[]}`.
            Ok(Answer { status: 200, body, .. }) if !body.ends_with(b"\"goals\":[]}") => {
                return (Instant::now(), body.len());
            }
            Ok(Answer { status: 200 | 304, .. }) => {}
            _ => {
                line = None;
                fleet.failures.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}

async fn wait_once(fleet: &Fleet, number: usize, line: &mut Option<Line>) -> io::Result<Answer> {
    let line = match line {
        Some(line) => line,
        None => line.insert(fleet.connect(number).await?),
    };
    line.send(&fleet.wait).await?;
    fleet.waiting.fetch_add(1, Ordering::Relaxed);
    let answer = line.answer().await;
    fleet.waiting.fetch_sub(1, Ordering::Relaxed);
    answer
}
