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

struct Sender {
    items: mpsc::Sender<Item>,
    events: mpsc::Receiver<Event>,
    run: JoinHandle<io::Result<()>>,
}

/// The writing side of a connection, and the reading side at the other end.
async fn sender(idle: Duration) -> (Sender, Box<dyn AsyncRead + Send + Unpin>) {
    let mut listener = Tcp.listen("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (ours, theirs) = (Tcp.connect(&addr).await.unwrap(), listener.accept().await.unwrap());
    let ((items, queue), (sender, events)) = (mpsc::channel(MANY + 1), mpsc::channel(MANY + 1));
    let outgoing = Outgoing::new(ConnId(1), ours.write, sender, idle);
    (Sender { items, events, run: tokio::spawn(outgoing.run(queue)) }, theirs.read)
}

impl Sender {
    async fn send(&self, source: &Arc<FileSource>, count: usize) {
        for _ in 0..count {
            let (digest, source) = (Digest::of(b"a"), Arc::clone(source) as Arc<dyn BlockSource>);
            let block = OutgoingBlock { digest, lease: 3, piece: 4, block: 5, offset: 0, len: LEN, source };
            self.items.send(Item::Block(block)).await.unwrap();
        }
    }
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
    sender.send(&short, 1).await;
    let event = in_time(sender.events.recv()).await;
    assert!(matches!(event, Some(Event::ReadFailed { lease: 3, piece: 4, block: 5, unread: false, .. })), "{event:?}");
    // No byte of the short one went out before this one.
    sender.send(&whole, 1).await;
    assert!(receive(&mut read).await == content());
    assert!(matches!(in_time(sender.events.recv()).await, Some(Event::Sent(ConnId(1), LEN))));
    drop(sender.items);
    in_time(sender.run).await.unwrap().unwrap();
}

#[tokio::test]
async fn who_stops_reading_in_the_middle_of_a_block_is_cut_off() {
    let (sender, mut read) = sender(Duration::from_secs(2)).await;
    sender.send(&source(), MANY).await;
    assert!(receive(&mut read).await == content());
    let error = in_time(sender.run).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
}

#[tokio::test(start_paused = true)]
async fn who_reads_slowly_is_not_cut_off() {
    // The block takes longer than the limit, within which some bytes move all the same.
    let idle = Duration::from_secs(10);
    let (ours, mut theirs) = tokio::io::duplex(64 << 10);
    let ((items, queue), (sender, events)) = (mpsc::channel(1), mpsc::channel(1));
    let run = tokio::spawn(Outgoing::new(ConnId(1), Box::new(ours), sender, idle).run(queue));
    let sender = Sender { items, events, run };
    sender.send(&source(), 1).await;
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
    sender.send(&source(), MANY).await;
    assert!(receive(&mut read).await == content());
    sender.run.abort();
    let mut rest = Vec::new();
    in_time(read.read_to_end(&mut rest)).await.unwrap();
    assert!(rest.len() < (MANY - 1) * FRAME, "all came: it was not in the middle");
}
