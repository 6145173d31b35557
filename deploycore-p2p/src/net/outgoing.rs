//! What goes out on a connection: messages, and blocks, which are read when their turn has come.
//!
//! A message overtakes the blocks that are not begun. Over a slow link a block takes longer than the way there and back, and what waits for
//! it - a request, word of a new piece - keeps other links idle meanwhile.

use std::fmt::Debug;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use deploycore::model::Digest;
use tokio::io::{AsyncWrite, AsyncWriteExt, BufWriter};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::connection::Event;
use crate::core::message::{ConnId, Message};
use crate::core::wire;

/// Where the bytes of a block come from when its turn to be written has come.
#[async_trait]
pub(super) trait BlockSource: Send + Sync + Debug {
    async fn read_block(&self, offset: u64, len: u32) -> Result<Bytes, Broken>;
}

/// A read that failed.
#[derive(Debug)]
pub(super) struct Broken {
    pub(super) error: io::Error,
    /// Whether it is certain that nothing was read.
    pub(super) unread: bool,
}

#[derive(Debug)]
pub(super) struct OutgoingBlock {
    pub(super) digest: Digest,
    pub(super) lease: u64,
    pub(super) piece: u32,
    pub(super) block: u32,
    pub(super) offset: u64,
    pub(super) len: u32,
    pub(super) source: Arc<dyn BlockSource>,
}

/// Messages that wait to be written on one connection, and blocks. Whoever lets more pile up is cut off.
const MAX_QUEUED: usize = 4_096;
/// Bytes of these messages: a hundred introductions of the most members with addresses of the usual length.
const MAX_QUEUED_BYTES: usize = 1 << 20;
/// How many messages overtake a block at most: those who cause many still get their blocks.
const MAX_OVERTAKING: usize = 64;

/// The way to a connection's writing side.
#[derive(Debug)]
pub(super) struct Sender {
    messages: mpsc::Sender<Bytes>,
    /// Of the messages.
    bytes: Arc<AtomicUsize>,
    blocks: mpsc::Sender<OutgoingBlock>,
}

/// What waits to be written on a connection.
#[derive(Debug)]
pub(super) struct Queue {
    messages: mpsc::Receiver<Bytes>,
    bytes: Arc<AtomicUsize>,
    blocks: mpsc::Receiver<OutgoingBlock>,
}

/// A queue, and the way into it.
pub(super) fn queue() -> (Sender, Queue) {
    let ((messages, waiting), (blocks, asked)) = (mpsc::channel(MAX_QUEUED), mpsc::channel(MAX_QUEUED));
    let bytes = Arc::new(AtomicUsize::new(0));
    (Sender { messages, bytes: Arc::clone(&bytes), blocks }, Queue { messages: waiting, bytes, blocks: asked })
}

/// Too much waits already.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full;

impl Sender {
    pub(super) fn message(&self, bytes: Bytes) -> Result<(), Full> {
        let len = bytes.len();
        let waiting = self.bytes.fetch_add(len, Ordering::Relaxed);
        // The largest message there is fits in any case.
        let sent = if waiting > MAX_QUEUED_BYTES { Err(Full) } else { full(&self.messages.try_send(bytes)) };
        if sent.is_err() {
            self.bytes.fetch_sub(len, Ordering::Relaxed);
        }
        sent
    }

    pub(super) fn block(&self, block: OutgoingBlock) -> Result<(), Full> {
        full(&self.blocks.try_send(block))
    }
}

/// A connection that has ended takes nothing; that it has is told as an event.
fn full<T>(sent: &Result<(), mpsc::error::TrySendError<T>>) -> Result<(), Full> {
    if let Err(mpsc::error::TrySendError::Full(_)) = sent { Err(Full) } else { Ok(()) }
}

impl Queue {
    /// A message does not wait any more.
    fn taken(&self, bytes: Bytes) -> Item {
        self.bytes.fetch_sub(bytes.len(), Ordering::Relaxed);
        Item::Message(bytes)
    }
}

/// What is written next.
enum Item {
    Message(Bytes),
    Block(OutgoingBlock),
}

/// The writing side of a connection.
pub(super) struct Outgoing {
    conn: ConnId,
    write: BufWriter<Box<dyn AsyncWrite + Send + Unpin>>,
    events: mpsc::Sender<Event>,
    idle: Duration,
    /// Messages that overtook the block that is next.
    overtaken: usize,
}

impl Outgoing {
    pub(super) fn new(
        conn: ConnId,
        write: Box<dyn AsyncWrite + Send + Unpin>,
        events: mpsc::Sender<Event>,
        idle: Duration,
    ) -> Self {
        Self { conn, write: BufWriter::with_capacity(16 << 10, write), events, idle, overtaken: 0 }
    }

    /// Writes what comes through the queue until its sender is gone, or the connection breaks.
    pub(super) async fn run(mut self, mut queue: Queue) -> io::Result<()> {
        while let Some(item) = self.next(&mut queue).await? {
            match item {
                Item::Message(bytes) => self.write(&bytes).await?,
                Item::Block(block) => self.block(&block).await?,
            }
        }
        Ok(())
    }

    async fn next(&mut self, queue: &mut Queue) -> io::Result<Option<Item>> {
        if self.overtaken < MAX_OVERTAKING
            && let Ok(bytes) = queue.messages.try_recv()
        {
            self.overtaken = if queue.blocks.is_empty() { 0 } else { self.overtaken + 1 };
            return Ok(Some(queue.taken(bytes)));
        }
        self.overtaken = 0;
        if let Ok(block) = queue.blocks.try_recv() {
            return Ok(Some(Item::Block(block)));
        }
        self.flush().await?;
        let next = async {
            tokio::select! {
                biased;
                Some(bytes) = queue.messages.recv() => Some(queue.taken(bytes)),
                Some(block) = queue.blocks.recv() => Some(Item::Block(block)),
                else => None,
            }
        };
        // The other side closes a connection on which nothing comes, also one to a gate or tracker that has nothing to say.
        Ok(timeout(self.idle / 3, next).await.unwrap_or_else(|_| Some(Item::Message(ping()))))
    }

    async fn block(&mut self, asked: &OutgoingBlock) -> io::Result<()> {
        let &OutgoingBlock { digest, piece, block, offset, len, .. } = asked;
        // A store may take long to give it: no message waits for that.
        if !self.write.buffer().is_empty() {
            self.flush().await?;
        }
        match asked.source.read_block(offset, len).await {
            Ok(data) if data.len() == len as usize => {
                self.write(&wire::encode_block_header(&digest, piece, block, data.len())).await?;
                self.write(&data).await?;
                let _ = self.events.send(Event::Sent(self.conn, len)).await;
                Ok(())
            }
            Ok(_) => self.unreadable(asked, Broken { error: io::Error::other("short read"), unread: false }).await,
            Err(broken) => self.unreadable(asked, broken).await,
        }
    }

    async fn unreadable(&mut self, asked: &OutgoingBlock, broken: Broken) -> io::Result<()> {
        let (&OutgoingBlock { digest, lease, piece, block, .. }, Broken { error, unread }) = (asked, broken);
        tracing::error!(digest = %digest.short(), piece, block, %error, "a block could not be read");
        let _ = self.events.send(Event::ReadFailed { conn: self.conn, digest, lease, piece, block, unread }).await;
        Ok(())
    }

    /// Writes all, as long as some of it goes out from time to time: a slow receiver is told from a dead one.
    async fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let count = timed(self.idle, self.write.write(bytes)).await?;
            if count == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            bytes = &bytes[count..];
        }
        Ok(())
    }

    async fn flush(&mut self) -> io::Result<()> {
        timed(self.idle, self.write.flush()).await
    }
}

fn ping() -> Bytes {
    wire::encode_control(&Message::Ping)
}

async fn timed<T>(idle: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(idle, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

#[cfg(test)]
mod tests;
