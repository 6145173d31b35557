//! What goes out on a connection: messages, and blocks, which are read when their turn has come.

use std::fmt::Debug;
use std::io;
use std::sync::Arc;
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

/// What waits to be written.
#[derive(Debug)]
pub(super) enum Item {
    Control(Bytes),
    Block(OutgoingBlock),
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

/// The writing side of a connection.
pub(super) struct Outgoing {
    conn: ConnId,
    write: BufWriter<Box<dyn AsyncWrite + Send + Unpin>>,
    events: mpsc::Sender<Event>,
    idle: Duration,
}

impl Outgoing {
    pub(super) fn new(
        conn: ConnId,
        write: Box<dyn AsyncWrite + Send + Unpin>,
        events: mpsc::Sender<Event>,
        idle: Duration,
    ) -> Self {
        Self { conn, write: BufWriter::with_capacity(16 << 10, write), events, idle }
    }

    /// Writes what comes through the queue until its sender is gone, or the connection breaks.
    pub(super) async fn run(mut self, mut queue: mpsc::Receiver<Item>) -> io::Result<()> {
        while let Some(item) = self.next(&mut queue).await? {
            match item {
                Item::Control(bytes) => self.write(&bytes).await?,
                Item::Block(block) => self.block(&block).await?,
            }
        }
        Ok(())
    }

    async fn next(&mut self, queue: &mut mpsc::Receiver<Item>) -> io::Result<Option<Item>> {
        if let Ok(item) = queue.try_recv() {
            return Ok(Some(item));
        }
        self.flush().await?;
        // The other side closes a connection on which nothing comes, also one to a gate or tracker that has nothing to say.
        let ping = || Some(Item::Control(wire::encode_control(&Message::Ping)));
        Ok(timeout(self.idle / 3, queue.recv()).await.unwrap_or_else(|_| ping()))
    }

    async fn block(&mut self, asked: &OutgoingBlock) -> io::Result<()> {
        let &OutgoingBlock { digest, piece, block, offset, len, .. } = asked;
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

async fn timed<T>(idle: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(idle, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

#[cfg(test)]
mod tests;
