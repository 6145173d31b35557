//! Network and disk in memory, for simulations: no thread, no socket, all waiting on tokio's clock.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use deploycore::model::Manifest;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::files::{Files, Open, PieceFile, Stored, check};
use super::transport::{Connection, Listener, Transport};
use crate::core::bitfield::Bitfield;
use crate::core::shape::Shape;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A network of named hosts in one process.
///
/// Each connection has a rate; connecting takes the latency. Hosts can be crashed and pairs of hosts cut from each other.
#[derive(Debug, Clone)]
pub struct MemoryNetwork {
    latency: Duration,
    rate: u64,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    ports: BTreeMap<String, mpsc::Sender<Connection>>,
    next_port: u16,
    open: Vec<Wire>,
    cut: BTreeSet<(String, String)>,
}

#[derive(Debug)]
struct Wire {
    ends: (String, String),
    alive: CancellationToken,
}

fn pair(a: &str, b: &str) -> (String, String) {
    if a < b { (a.to_owned(), b.to_owned()) } else { (b.to_owned(), a.to_owned()) }
}

impl MemoryNetwork {
    /// A network where connecting takes `latency` and a connection carries `rate` bytes a second each way.
    pub fn new(latency: Duration, rate: u64) -> Self {
        Self { latency, rate: rate.max(1), state: Arc::default() }
    }

    /// The network as one host sees it.
    pub fn host(&self, name: impl Into<String>) -> Arc<dyn Transport> {
        Arc::new(MemoryHost { name: name.into(), network: self.clone() })
    }

    /// Breaks every connection of a host and closes its ports: what the death of its processes does.
    pub fn crash(&self, host: &str) {
        let mut state = lock(&self.state);
        state.ports.retain(|addr, _| addr.rsplit_once(':').is_none_or(|(name, _)| name != host));
        state.sever(|(a, b)| a == host || b == host);
    }

    /// Breaks the connections between two hosts and refuses new ones until [`heal`](Self::heal).
    pub fn cut(&self, a: &str, b: &str) {
        let ends = pair(a, b);
        let mut state = lock(&self.state);
        state.sever(|wire| *wire == ends);
        state.cut.insert(ends);
    }

    /// Ends all cuts.
    pub fn heal(&self) {
        lock(&self.state).cut.clear();
    }
}

impl State {
    fn sever(&mut self, which: impl Fn(&(String, String)) -> bool) {
        self.open.retain(|wire| {
            let hit = which(&wire.ends);
            if hit {
                wire.alive.cancel();
            }
            !hit && !wire.alive.is_cancelled()
        });
    }
}

#[derive(Debug)]
struct MemoryHost {
    name: String,
    network: MemoryNetwork,
}

#[async_trait]
impl Transport for MemoryHost {
    async fn listen(&self, addr: &str) -> io::Result<Box<dyn Listener>> {
        let port = addr.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).unwrap_or(0_u16);
        let mut state = lock(&self.network.state);
        let port = if port == 0 {
            state.next_port += 1;
            20_000 + state.next_port
        } else {
            port
        };
        let addr = format!("{}:{port}", self.name);
        if state.ports.get(&addr).is_some_and(|sender| !sender.is_closed()) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let (sender, incoming) = mpsc::channel(64);
        state.ports.insert(addr.clone(), sender);
        Ok(Box::new(MemoryListener { addr, incoming }))
    }

    async fn connect(&self, addr: &str) -> io::Result<Connection> {
        tokio::time::sleep(self.network.latency).await;
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let (other, _) = addr.rsplit_once(':').ok_or_else(refused)?;
        let ends = pair(&self.name, other);
        let (sender, ours, theirs) = {
            let mut state = lock(&self.network.state);
            if state.cut.contains(&ends) {
                return Err(io::ErrorKind::HostUnreachable.into());
            }
            let sender = state.ports.get(addr).cloned().ok_or_else(refused)?;
            let alive = CancellationToken::new();
            let (a, b) = tokio::io::duplex(64 << 10);
            let ours = wire(a, other, self.network.rate, &alive);
            let theirs = wire(b, &self.name, self.network.rate, &alive);
            state.open.push(Wire { ends, alive });
            (sender, ours, theirs)
        };
        sender.send(theirs).await.map_err(|_| refused())?;
        Ok(ours)
    }
}

#[derive(Debug)]
struct MemoryListener {
    addr: String,
    incoming: mpsc::Receiver<Connection>,
}

#[async_trait]
impl Listener for MemoryListener {
    async fn accept(&mut self) -> io::Result<Connection> {
        match self.incoming.recv().await {
            Some(connection) => Ok(connection),
            // The host was crashed while someone still holds its port.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<String> {
        Ok(self.addr.clone())
    }
}

fn wire(stream: DuplexStream, host: &str, rate: u64, alive: &CancellationToken) -> Connection {
    let (read, write) = tokio::io::split(stream);
    let dead = || Box::pin(alive.clone().cancelled_owned());
    let pause = Box::pin(sleep_until(Instant::now()));
    Connection {
        read: Box::new(WireRead { half: read, dead: dead() }),
        write: Box::new(WireWrite { half: write, dead: dead(), rate, pause }),
        host: host.to_owned(),
        names: None,
    }
}

type Dead = Pin<Box<WaitForCancellationFutureOwned>>;

struct WireRead {
    half: ReadHalf<DuplexStream>,
    dead: Dead,
}

struct WireWrite {
    half: WriteHalf<DuplexStream>,
    dead: Dead,
    rate: u64,
    pause: Pin<Box<Sleep>>,
}

fn check_alive(dead: &mut Dead, cx: &mut Context<'_>) -> io::Result<()> {
    match dead.as_mut().poll(cx) {
        Poll::Ready(()) => Err(io::ErrorKind::ConnectionReset.into()),
        Poll::Pending => Ok(()),
    }
}

impl AsyncRead for WireRead {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        check_alive(&mut self.dead, cx)?;
        Pin::new(&mut self.half).poll_read(cx, buf)
    }
}

impl AsyncWrite for WireWrite {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        check_alive(&mut self.dead, cx)?;
        ready!(self.pause.as_mut().poll(cx));
        let n = ready!(Pin::new(&mut self.half).poll_write(cx, buf))?;
        let until = Instant::now() + Duration::from_secs_f64(n as f64 / self.rate as f64);
        self.pause.as_mut().reset(until);
        Poll::Ready(Ok(n))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        check_alive(&mut self.dead, cx)?;
        Pin::new(&mut self.half).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.half).poll_shutdown(cx)
    }
}

/// Files in memory. Clones share them, so that what a crashed machine wrote is there when it starts again.
#[derive(Debug, Clone, Default)]
pub struct MemoryFiles(Arc<Mutex<BTreeMap<PathBuf, MemoryContent>>>);

#[derive(Debug, Clone)]
struct MemoryContent {
    bytes: Vec<u8>,
    /// Where a fetch is not finished: the pieces of the last checkpoint.
    note: Option<Bitfield>,
}

impl MemoryFiles {
    /// The bytes of a file, whole or not.
    pub fn read(&self, path: &Path) -> Option<Vec<u8>> {
        lock(&self.0).get(path).map(|content| content.bytes.clone())
    }

    /// Puts a file there.
    pub fn write(&self, path: impl Into<PathBuf>, bytes: Vec<u8>) {
        lock(&self.0).insert(path.into(), MemoryContent { bytes, note: None });
    }

    /// Removes a file.
    pub fn remove(&self, path: &Path) {
        lock(&self.0).remove(path);
    }
}

#[derive(Debug)]
struct MemoryFile {
    files: MemoryFiles,
    path: PathBuf,
    manifest: Arc<Manifest>,
    shape: Shape,
}

impl MemoryFile {
    fn with<T>(&self, work: impl FnOnce(&mut MemoryContent) -> T) -> io::Result<T> {
        lock(&self.files.0).get_mut(&self.path).map(work).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

#[async_trait]
impl Files for MemoryFiles {
    async fn open(&self, manifest: Arc<Manifest>, path: &Path, open: Open) -> io::Result<Arc<dyn PieceFile>> {
        let shape = Shape::of(&manifest);
        let mut files = lock(&self.0);
        match (open, files.get_mut(path)) {
            (Open::Seed, None) => return Err(io::ErrorKind::NotFound.into()),
            (Open::Seed, Some(content)) if content.bytes.len() as u64 != shape.size() => {
                return Err(io::ErrorKind::InvalidData.into());
            }
            (Open::Seed, Some(_)) => {}
            (Open::Fetch, Some(content)) if content.bytes.len() as u64 == shape.size() => {}
            (Open::Fetch, _) => {
                let content =
                    MemoryContent { bytes: vec![0; shape.size() as usize], note: Some(Bitfield::new(shape.pieces())) };
                files.insert(path.to_owned(), content);
            }
        }
        Ok(Arc::new(MemoryFile { files: self.clone(), path: path.to_owned(), manifest, shape }))
    }
}

#[async_trait]
impl PieceFile for MemoryFile {
    async fn verify(&self) -> io::Result<Bitfield> {
        let (shape, manifest) = (self.shape, Arc::clone(&self.manifest));
        self.with(|content| {
            let mut have = Bitfield::new(shape.pieces());
            let noted = content.note.clone().filter(|note| note.len() == shape.pieces());
            for piece in noted.unwrap_or_else(|| Bitfield::full(shape.pieces())).iter() {
                let start = shape.offset(piece, 0) as usize;
                let bytes = content.bytes.get(start..start + shape.piece_len(piece) as usize);
                if bytes.is_some_and(|bytes| manifest.verify_piece(piece, bytes)) {
                    have.insert(piece);
                }
            }
            have
        })
    }

    async fn store(&self, piece: u32, blocks: Vec<Bytes>, hash_blocks: bool) -> io::Result<Stored> {
        let stored = check(&self.manifest, piece, &blocks, hash_blocks);
        if stored.verified {
            let start = self.shape.offset(piece, 0) as usize;
            self.with(|content| {
                let mut at = start;
                for block in &blocks {
                    content.bytes[at..at + block.len()].copy_from_slice(block);
                    at += block.len();
                }
            })?;
        }
        Ok(stored)
    }

    async fn read(&self, offset: u64, len: u32) -> io::Result<Bytes> {
        let range = offset as usize..offset as usize + len as usize;
        let bytes = self.with(|content| content.bytes.get(range).map(Bytes::copy_from_slice))?;
        bytes.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    async fn checkpoint(&self, have: &Bitfield) -> io::Result<()> {
        self.with(|content| content.note = Some(have.clone()))
    }

    async fn finish(&self) -> io::Result<()> {
        self.with(|content| content.note = None)
    }
}
