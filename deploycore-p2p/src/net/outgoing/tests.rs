//! What becomes of blocks that cannot be read, and of those who do not read theirs.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::task::JoinHandle;

use super::*;
use crate::core::wire::{BLOCK_HEADER, HEADER};
use crate::net::buffers::Buffer;
use crate::net::transport::{Tcp, Transport};

const LEN: u32 = 1 << 20;
const FRAME: usize = HEADER + BLOCK_HEADER + LEN as usize;
/// Blocks that are more than what systems buffer on a connection.
const MANY: usize = 48;

#[derive(Debug)]
struct FileSource(File);

#[async_trait]
impl BlockSource for FileSource {
    async fn read_block(&self, offset: u64, len: u32) -> Result<Bytes, Broken> {
        let read = Buffer::filled(len as usize, |bytes| self.0.read_exact_at(bytes, offset));
        read.map_err(|error| Broken { error, unread: false })
    }
}

fn content() -> Vec<u8> {
    (0..LEN).map(|at| (at % 251) as u8).collect()
}

fn source() -> Arc<FileSource> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&content()).unwrap();
    Arc::new(FileSource(file))
}

struct Writing {
    queue: Sender,
    events: mpsc::Receiver<Event>,
    run: JoinHandle<io::Result<()>>,
}

/// The writing side of a connection, and the reading side at the other end.
async fn sender(idle: Duration) -> (Writing, Box<dyn AsyncRead + Send + Unpin>) {
    let mut listener = Tcp.listen("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (ours, theirs) = (Tcp.connect(&addr).await.unwrap(), listener.accept().await.unwrap());
    (Writing::over(ours.write, idle, |_| {}), theirs.read)
}

fn block(source: Arc<dyn BlockSource>) -> OutgoingBlock {
    OutgoingBlock { digest: Digest::of(b"a"), lease: 3, piece: 4, block: 5, offset: 0, len: LEN, source }
}

impl Writing {
    /// Writes to a connection; first of all what is queued before it begins.
    fn over(write: Box<dyn AsyncWrite + Send + Unpin>, idle: Duration, before: impl FnOnce(&Sender)) -> Self {
        let ((queue, waiting), (sender, events)) = (queue(), mpsc::channel(MANY + 1));
        before(&queue);
        let run = tokio::spawn(Outgoing::new(ConnId(1), write, sender, idle).run(waiting));
        Self { queue, events, run }
    }

    fn send(&self, source: &Arc<FileSource>, count: usize) {
        for _ in 0..count {
            self.queue.block(block(Arc::clone(source) as Arc<dyn BlockSource>)).unwrap();
        }
    }
}

/// What kind of frame comes next; its body is passed over.
async fn next_kind(read: &mut (impl AsyncRead + Unpin)) -> wire::Kind {
    let mut header = [0; HEADER];
    in_time(read.read_exact(&mut header)).await.unwrap();
    let (kind, len) = wire::parse_header(header).unwrap();
    in_time(read.read_exact(&mut vec![0; len])).await.unwrap();
    kind
}

async fn in_time<T>(work: impl Future<Output = T>) -> T {
    timeout(Duration::from_mins(1), work).await.expect("it hangs")
}

/// The data of a block that came whole.
async fn receive(read: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut frame = vec![0; FRAME];
    in_time(read.read_exact(&mut frame)).await.unwrap();
    frame.split_off(HEADER + BLOCK_HEADER)
}

#[tokio::test]
async fn a_file_that_has_become_short_is_refused_and_the_connection_goes_on() {
    let (mut sender, mut read) = sender(Duration::from_secs(10)).await;
    let (whole, short) = (source(), source());
    short.0.set_len(u64::from(LEN / 2)).unwrap();
    sender.send(&short, 1);
    let event = in_time(sender.events.recv()).await;
    assert!(matches!(event, Some(Event::ReadFailed { lease: 3, piece: 4, block: 5, unread: false, .. })), "{event:?}");
    // No byte of the short one went out before this one.
    sender.send(&whole, 1);
    assert!(receive(&mut read).await == content());
    assert!(matches!(in_time(sender.events.recv()).await, Some(Event::Sent(ConnId(1), LEN))));
    drop(sender.queue);
    in_time(sender.run).await.unwrap().unwrap();
}

#[tokio::test]
async fn who_stops_reading_in_the_middle_of_a_block_is_cut_off() {
    let (sender, mut read) = sender(Duration::from_secs(2)).await;
    sender.send(&source(), MANY);
    assert!(receive(&mut read).await == content());
    let error = in_time(sender.run).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
}

#[tokio::test(start_paused = true)]
async fn who_reads_slowly_is_not_cut_off() {
    // The block takes longer than the limit, within which some bytes move all the same.
    let idle = Duration::from_secs(10);
    let (ours, mut theirs) = tokio::io::duplex(64 << 10);
    let sender = Writing::over(Box::new(ours), idle, |_| {});
    sender.send(&source(), 1);
    let mut frame = vec![0; FRAME];
    for part in frame.chunks_mut(FRAME / 10) {
        tokio::time::sleep(idle / 2).await;
        in_time(theirs.read_exact(part)).await.unwrap();
    }
    assert!(frame[HEADER + BLOCK_HEADER..] == content());
}

#[tokio::test]
async fn a_connection_can_be_ended_in_the_middle_of_a_block() {
    let (sender, mut read) = sender(Duration::from_secs(10)).await;
    sender.send(&source(), MANY);
    assert!(receive(&mut read).await == content());
    sender.run.abort();
    let mut rest = Vec::new();
    in_time(read.read_to_end(&mut rest)).await.unwrap();
    assert!(rest.len() < (MANY - 1) * FRAME, "all came: it was not in the middle");
}

#[tokio::test]
async fn messages_overtake_blocks_that_are_not_begun() {
    let (ours, mut theirs) = tokio::io::duplex(64 << 10);
    let source = source();
    let sender = Writing::over(Box::new(ours), Duration::from_secs(10), |queue| {
        for _ in 0..3 {
            queue.block(block(Arc::clone(&source) as Arc<dyn BlockSource>)).unwrap();
        }
    });
    // The first block is begun: the duplex stream holds a small part of it.
    let mut header = [0; HEADER];
    in_time(theirs.read_exact(&mut header)).await.unwrap();
    let (kind, len) = wire::parse_header(header).unwrap();
    assert_eq!(kind, wire::Kind::Block);
    sender.queue.message(ping()).unwrap();
    in_time(theirs.read_exact(&mut vec![0; len])).await.unwrap();
    let mut order = Vec::new();
    for _ in 0..3 {
        order.push(next_kind(&mut theirs).await);
    }
    assert_eq!(order, [wire::Kind::Control, wire::Kind::Block, wire::Kind::Block]);
}

#[tokio::test]
async fn a_flood_of_messages_does_not_keep_blocks_back() {
    let (ours, mut theirs) = tokio::io::duplex(64 << 10);
    let source = source();
    let _sender = Writing::over(Box::new(ours), Duration::from_secs(10), |queue| {
        queue.block(block(Arc::clone(&source) as Arc<dyn BlockSource>)).unwrap();
        for _ in 0..1_000 {
            queue.message(ping()).unwrap();
        }
    });
    for message in 0..MAX_OVERTAKING {
        assert_eq!(next_kind(&mut theirs).await, wire::Kind::Control, "message {message}");
    }
    assert_eq!(next_kind(&mut theirs).await, wire::Kind::Block);
}

#[tokio::test]
async fn what_waits_is_bounded() {
    let (sender, _waiting) = queue();
    let source = source();
    for _ in 0..MAX_QUEUED {
        sender.message(ping()).unwrap();
        sender.block(block(Arc::clone(&source) as Arc<dyn BlockSource>)).unwrap();
    }
    assert_eq!(sender.message(ping()), Err(Full));
    assert_eq!(sender.block(block(source)), Err(Full));
}

/// Gives nothing.
#[derive(Debug)]
struct Stalled;

#[async_trait]
impl BlockSource for Stalled {
    async fn read_block(&self, _: u64, _: u32) -> Result<Bytes, Broken> {
        std::future::pending().await
    }
}

#[tokio::test]
async fn a_message_does_not_wait_for_a_slow_store() {
    let (ours, mut theirs) = tokio::io::duplex(64 << 10);
    let _sender = Writing::over(Box::new(ours), Duration::from_secs(10), |queue| {
        queue.message(ping()).unwrap();
        queue.block(block(Arc::new(Stalled))).unwrap();
    });
    assert_eq!(next_kind(&mut theirs).await, wire::Kind::Control);
}

/// Four thousand introductions of many members would be as many megabytes for one that reads nothing.
#[test]
fn what_waits_is_bounded_in_bytes_too() {
    let (sender, mut queue) = queue();
    let message = Bytes::from(vec![0; 64 << 10]);
    let sent = (0..MAX_QUEUED).take_while(|_| sender.message(message.clone()).is_ok()).count();
    assert!(sent * message.len() <= MAX_QUEUED_BYTES + message.len(), "{sent}");
    while let Ok(bytes) = queue.messages.try_recv() {
        queue.taken(bytes);
    }
    assert_eq!(sender.message(message), Ok(()), "what was taken does not count");
}
