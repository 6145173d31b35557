//! Connections: the handshake, a task that reads and one that writes, and the table of those that are open.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use deploycore::model::Digest;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::Timeouts;
use super::buffers::Buffer;
use super::outgoing::{self, Full, Outgoing, OutgoingBlock};
use super::transport::{Connection, Listener, Transport};
use crate::core::message::{Addr, ConnId, Hello, Message};
use crate::core::wire::{self, Frame, HEADER, Kind};

/// What happens on connections.
#[derive(Debug)]
pub(super) enum Event {
    Connected {
        conn: ConnId,
        hello: Hello,
        dialed: Option<Addr>,
        host: String,
        writer: Writer,
    },
    ConnectFailed {
        addr: Addr,
    },
    Frame(ConnId, Frame),
    Sent(ConnId, u32),
    /// A block could not be read; `lease` is what it was asked for with.
    ReadFailed {
        conn: ConnId,
        digest: Digest,
        lease: u64,
        piece: u32,
        block: u32,
        unread: bool,
    },
    Disconnected(ConnId),
}

/// The way to a connection's writing task.
#[derive(Debug)]
pub(super) struct Writer {
    queue: outgoing::Sender,
    end: CancellationToken,
}

/// Handshakes at once.
const MAX_HANDSHAKES: usize = 256;

/// What every connection of a service shares.
#[derive(Debug, Clone)]
struct Shared {
    hello: Hello,
    transport: Arc<dyn Transport>,
    timeouts: Timeouts,
    events: mpsc::Sender<Event>,
    next: Arc<AtomicU64>,
    end: CancellationToken,
    tasks: TaskTracker,
}

/// The connections of a service. Dropping it ends them.
#[derive(Debug)]
pub(super) struct Hub {
    shared: Shared,
    open: BTreeMap<ConnId, Writer>,
    _end: DropGuard,
}

impl Hub {
    pub(super) fn new(
        hello: Hello,
        transport: Arc<dyn Transport>,
        timeouts: Timeouts,
        events: mpsc::Sender<Event>,
    ) -> Self {
        let end = CancellationToken::new();
        let next = Arc::new(AtomicU64::new(1));
        let guard = end.clone().drop_guard();
        let shared = Shared { hello, transport, timeouts, events, next, end, tasks: TaskTracker::new() };
        Self { shared, open: BTreeMap::new(), _end: guard }
    }

    /// Accepts connections until the hub is dropped.
    pub(super) fn accept(&self, listener: Box<dyn Listener>) {
        let shared = self.shared.clone();
        self.shared.tasks.spawn(accept_loop(shared, listener));
    }

    /// Connects and says hello; [`Event::Connected`] or [`Event::ConnectFailed`] follows.
    pub(super) fn connect(&self, addr: Addr) {
        let shared = self.shared.clone();
        self.shared.tasks.spawn(async move {
            let end = shared.end.clone();
            tokio::select! {
                biased;
                () = end.cancelled() => {}
                () = dial(shared, addr) => {}
            }
        });
    }

    /// Ends all connections and gives the port back. The receiver of events is dropped before.
    pub(super) async fn end(self) {
        self.shared.end.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }

    /// Notes a connection that was reported.
    pub(super) fn opened(&mut self, conn: ConnId, writer: Writer) {
        self.open.insert(conn, writer);
    }

    /// Forgets a connection that ended.
    pub(super) fn closed(&mut self, conn: ConnId) {
        self.open.remove(&conn);
    }

    pub(super) fn close(&mut self, conn: ConnId, reason: &str) {
        if let Some(writer) = self.open.remove(&conn) {
            tracing::debug!(%conn, reason, "closing a connection");
            writer.end.cancel();
        }
    }

    pub(super) fn send(&mut self, conn: ConnId, message: &Message) {
        self.push(conn, |queue| queue.message(wire::encode_control(message)));
    }

    pub(super) fn send_block(&mut self, conn: ConnId, block: OutgoingBlock) {
        self.push(conn, |queue| queue.block(block));
    }

    fn push(&mut self, conn: ConnId, item: impl FnOnce(&outgoing::Sender) -> Result<(), Full>) {
        let Some(writer) = self.open.get(&conn) else {
            return;
        };
        if item(&writer.queue).is_err() {
            tracing::warn!(%conn, "closing a connection: it does not read what it is sent");
            self.close(conn, "it does not read");
        }
    }
}

async fn accept_loop(shared: Shared, mut listener: Box<dyn Listener>) {
    let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    loop {
        let permit = Arc::clone(&handshakes).acquire_owned().await;
        let accepted = tokio::select! {
            biased;
            () = shared.end.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(connection) => {
                let own = shared.clone();
                shared.tasks.spawn(async move {
                    let end = own.end.clone();
                    tokio::select! {
                        biased;
                        () = end.cancelled() => {}
                        () = greet(own, connection, None, permit) => {}
                    }
                });
            }
            Err(error) => {
                // Out of file descriptors, most likely: waiting is all that helps.
                tracing::warn!(%error, "a connection could not be accepted");
                let _ = timeout(Duration::from_millis(100), shared.end.cancelled()).await;
            }
        }
    }
}

async fn dial(shared: Shared, addr: Addr) {
    let connected = timeout(shared.timeouts.connect, shared.transport.connect(&addr.0)).await;
    match connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        Ok(connection) => greet(shared, connection, Some(addr), ()).await,
        Err(error) => {
            tracing::debug!(%addr, %error, "could not connect");
            let _ = shared.events.send(Event::ConnectFailed { addr }).await;
        }
    }
}

/// Exchanges hellos, then reads until the connection ends. `permit` is given back after the handshake.
async fn greet<P>(shared: Shared, connection: Connection, dialed: Option<Addr>, permit: P) {
    let Connection { read, mut write, host, names } = connection;
    let mut read = BufReader::with_capacity(16 << 10, read);
    let exchange = async {
        write.write_all(&wire::encode_hello(&shared.hello)).await?;
        write.flush().await?;
        read_frame(&mut read, shared.timeouts.handshake).await
    };
    let hello = match timeout(shared.timeouts.handshake, exchange).await {
        Ok(Ok(Frame::Hello(hello))) if hello.region != shared.hello.region => {
            Err(format!("it belongs to region {}", hello.region))
        }
        Ok(Ok(Frame::Hello(hello))) if names.as_ref().is_some_and(|names| !names.contains(&hello.name)) => {
            Err(format!("it calls itself {}, but its certificate is for {names:?}", hello.name))
        }
        Ok(Ok(Frame::Hello(hello))) => Ok(hello),
        Ok(Ok(_)) => Err("its first frame is not a hello".to_owned()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("no hello in time".to_owned()),
    };
    drop(permit);
    let hello = match hello {
        Ok(hello) => hello,
        Err(reason) => {
            tracing::warn!(%host, reason, "refused a connection");
            if let Some(addr) = dialed {
                let _ = shared.events.send(Event::ConnectFailed { addr }).await;
            }
            return;
        }
    };
    let conn = ConnId(shared.next.fetch_add(1, Ordering::Relaxed));
    let end = shared.end.child_token();
    let (sender, queue) = outgoing::queue();
    let writer = Writer { queue: sender, end: end.clone() };
    let name = hello.name.clone();
    if shared.events.send(Event::Connected { conn, hello, dialed, host, writer }).await.is_err() {
        return;
    }
    let outgoing = Outgoing::new(conn, write, shared.events.clone(), shared.timeouts.idle);
    let writing = outgoing.run(queue);
    let (writing_end, ended) = (end.clone(), end.clone());
    shared.tasks.spawn(async move {
        let _guard = ended.drop_guard();
        tokio::select! {
            biased;
            () = writing_end.cancelled() => {}
            result = writing => if let Err(error) = result {
                tracing::debug!(%conn, %error, "a connection could not be written");
            }
        }
    });
    let reading = async {
        loop {
            let frame = read_frame(&mut read, shared.timeouts.idle).await?;
            if shared.events.send(Event::Frame(conn, frame)).await.is_err() {
                return Ok::<_, ReadError>(());
            }
        }
    };
    tokio::select! {
        biased;
        () = end.cancelled() => {}
        result = reading => match result {
            Err(ReadError::Wire(error)) => tracing::warn!(%conn, name, %error, "closing a connection: malformed frame"),
            Err(error) => tracing::debug!(%conn, name, %error, "a connection ended"),
            Ok(()) => {}
        }
    }
    end.cancel();
    let _ = shared.events.send(Event::Disconnected(conn)).await;
}

#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Wire(#[from] wire::Error),
    #[error("silent for too long")]
    Idle,
}

/// Reads one frame. The body is read straight into the buffer that is then shared; there is none before the header is found to be
/// within bounds.
async fn read_frame<R: AsyncRead + Unpin>(read: &mut BufReader<R>, idle: Duration) -> Result<Frame, ReadError> {
    let mut header = [0; HEADER];
    timeout(idle, read.read_exact(&mut header)).await.map_err(|_| ReadError::Idle)??;
    let (kind, len) = wire::parse_header(header)?;
    // Only blocks are worth a buffer that is kept.
    if kind == Kind::Block {
        let mut body = Buffer::new(len);
        read_body(read, &mut body, idle).await?;
        Ok(wire::parse_body(kind, body.freeze())?)
    } else {
        let mut body = vec![0; len];
        read_body(read, &mut body, idle).await?;
        Ok(wire::parse_body(kind, body.into())?)
    }
}

async fn read_body<R: AsyncRead + Unpin>(
    read: &mut BufReader<R>,
    mut body: &mut [u8],
    idle: Duration,
) -> Result<(), ReadError> {
    while !body.is_empty() {
        let count = timeout(idle, read.read(body)).await.map_err(|_| ReadError::Idle)??;
        if count == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        body = &mut body[count..];
    }
    Ok(())
}
