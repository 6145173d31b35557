//! A machine under load: one connection, one request that waits, again and again until it hears of the change.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use deploycore::model::LastReport;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Semaphore;

use crate::http::{self, Answer, Line};

/// Machines that connect at once.
const CONNECTING: usize = 256;
/// Connections from one address of the loopback network: fewer than there are ports.
const PER_ADDRESS: usize = 10_000;
/// Before a machine that was turned away or cut off comes again.
const AGAIN: Duration = Duration::from_millis(500);

/// The request that waits for what comes after what the machine holds.
#[derive(Debug)]
pub(crate) enum Wait {
    /// The same for all.
    Plain(Vec<u8>),
    /// With the word that the machine's last report holds, which is sent first: host and path.
    Reporting(String, String),
}

impl Wait {
    /// Of the `number`-th machine: its report, and the request.
    fn of(&self, number: usize) -> (Option<Vec<u8>>, Vec<u8>) {
        let (host, path) = match self {
            Self::Plain(request) => return (None, request.clone()),
            Self::Reporting(host, path) => (host, path),
        };
        let report = deploycore_benches::report(&format!("machine-{number}"));
        let body = serde_json::to_vec(&report).expect("a report is plain data");
        let last = LastReport::of(&report).to_string();
        let put = http::put(host, &format!("/v1/machines/{}", report.machine), &body);
        (Some(put), http::get(host, path, &[("deploycore-last-report", &last)]))
    }
}

/// What all machines share.
#[derive(Debug)]
pub(crate) struct Fleet {
    pub(crate) gateway: SocketAddr,
    pub(crate) wait: Wait,
    /// The request for all goals.
    pub(crate) list: Vec<u8>,
    pub(crate) connecting: Semaphore,
    pub(crate) waiting: AtomicUsize,
    pub(crate) failures: AtomicUsize,
}

impl Fleet {
    pub(crate) fn new(gateway: SocketAddr, wait: Wait, list: Vec<u8>) -> Self {
        let connecting = Semaphore::new(CONNECTING);
        Self { gateway, wait, list, connecting, waiting: AtomicUsize::default(), failures: AtomicUsize::default() }
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

/// When a machine heard of a change, and what it was sent.
#[derive(Debug)]
pub(crate) struct Heard {
    pub(crate) at: Instant,
    pub(crate) bytes: usize,
    /// When it had read the list of goals after that, as an agent does.
    pub(crate) listed: Instant,
}

/// Waits until a change came, and reads the list then. It does not give up.
pub(crate) async fn hear(fleet: Arc<Fleet>, number: usize) -> Heard {
    let mut line: Option<Line> = None;
    let (report, wait) = fleet.wait.of(number);
    loop {
        match wait_once(&fleet, number, &mut line, report.as_deref(), &wait).await {
            // The body of one that nothing changed for is `{"revision":7,"goals":[]}`.
            Ok(Answer { status: 200, body, .. }) if !body.ends_with(b"\"goals\":[]}") => {
                let (at, bytes) = (Instant::now(), body.len());
                list(&fleet, number, &mut line).await;
                return Heard { at, bytes, listed: Instant::now() };
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

/// Reads the list of goals, however often it takes.
async fn list(fleet: &Fleet, number: usize, line: &mut Option<Line>) {
    loop {
        let asked = async {
            let line = if let Some(line) = line.as_mut() { line } else { line.insert(fleet.connect(number).await?) };
            line.ask(&fleet.list).await
        };
        if matches!(asked.await, Ok(Answer { status: 200, .. })) {
            return;
        }
        *line = None;
        fleet.failures.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(AGAIN).await;
    }
}

async fn wait_once(
    fleet: &Fleet,
    number: usize,
    line: &mut Option<Line>,
    report: Option<&[u8]>,
    wait: &[u8],
) -> io::Result<Answer> {
    let line = if let Some(line) = line {
        line
    } else {
        let line = line.insert(fleet.connect(number).await?);
        if let Some(report) = report {
            line.ask(report).await?;
        }
        line
    };
    line.send(wait).await?;
    fleet.waiting.fetch_add(1, Ordering::Relaxed);
    let answer = line.answer().await;
    fleet.waiting.fetch_sub(1, Ordering::Relaxed);
    answer
}
