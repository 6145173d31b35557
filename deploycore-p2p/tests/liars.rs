//! Members that lie, over TCP on loopback: whatever one of them does, the others get the artifact, and the store is read about once.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use common::{OneArtifact, Region, Running, in_time, trace};
use deploycore::model::RegionName;
use deploycore::port::PeerSwarm;
use deploycore::port::swarm::{Limits, Priority};
use deploycore_p2p::Node;
use deploycore_p2p::core::bitfield::{Bitfield, PackedBits};
use deploycore_p2p::core::message::{Announcement, Block, Hello, Message, Refusal, Role, Standing};
use deploycore_p2p::core::shape::Shape;
use deploycore_p2p::core::wire::{self, Frame, HEADER};
use futures::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

const SIZE: usize = 12 << 20;
/// Slow enough that the liar is known before all is fetched.
const SLOW: Limits = Limits { ingress: Some(4 << 20), egress: None, disk: None };

/// How a member lies. Each says that it has all pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lie {
    /// Every byte that it gives is wrong.
    Garbage,
    /// One bit of each block is.
    OneBit,
    /// It gives nothing and says nothing.
    Silence,
    /// It has not what it said.
    Refusal,
    /// It is always busy, and then ready.
    Busy,
    /// Blocks that are too short.
    Short,
    /// Blocks of other pieces, which nobody asked for.
    Unasked,
    /// Half of each block, and then it hangs up.
    Half,
}

struct Liar {
    store: Arc<OneArtifact>,
    shape: Shape,
    hello: Hello,
    addr: String,
    lie: Lie,
    /// Requests that came.
    asked: AtomicU32,
}

impl Liar {
    /// Announces itself, and answers whoever connects, until the set is dropped.
    async fn start(region: &Region, lie: Lie, tasks: &mut JoinSet<()>) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let name = RegionName::new("eu").unwrap();
        let liar = Arc::new(Self {
            store: Arc::clone(&region.store),
            shape: Shape::of(&region.store.manifest),
            hello: Hello { region: name, name: "liar".into(), incarnation: 1, role: Role::Node, zone: None },
            addr: listener.local_addr().unwrap().to_string(),
            lie,
            asked: AtomicU32::new(0),
        });
        let tracker = liar.connect(&region.tracker_addr).await;
        let own = Arc::clone(&liar);
        tasks.spawn(async move { own.stay_known(tracker).await });
        let own = Arc::clone(&liar);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let own = Arc::clone(&own);
                connections.spawn(async move {
                    let _ = own.answer(stream).await;
                });
            }
        });
        liar
    }

    async fn connect(&self, addr: &str) -> TcpStream {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(&wire::encode_hello(&self.hello)).await.unwrap();
        stream
    }

    fn all(&self) -> PackedBits {
        PackedBits::from(&Bitfield::full(self.shape.pieces()))
    }

    fn join(&self) -> Message {
        let (digest, size) = (self.shape.digest(), self.shape.size());
        Message::Join { digest, size, have: self.all(), priority: Priority::Normal }
    }

    async fn stay_known(&self, mut tracker: TcpStream) {
        let (digest, size) = (self.shape.digest(), self.shape.size());
        let (addr, have) = (self.addr.as_str().into(), self.all());
        let standing = Standing::default();
        let part = Announcement { digest, size, addr, have, need: vec![], wanted: 0, standing };
        let announce = wire::encode_control(&Message::Announce(Box::new(part)));
        while tracker.write_all(&announce).await.is_ok() {
            // What the tracker says is of no interest, but has to be taken.
            let _ = tokio::time::timeout(Duration::from_millis(500), async {
                while read_frame(&mut tracker).await.is_ok() {}
            })
            .await;
        }
    }

    async fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        stream.write_all(&wire::encode_hello(&self.hello)).await?;
        stream.write_all(&wire::encode_control(&self.join())).await?;
        loop {
            if let Frame::Control(Message::Request { piece, block, count, .. }) = read_frame(&mut stream).await? {
                self.asked.fetch_add(1, Ordering::SeqCst);
                self.serve(&mut stream, piece, block, count).await?;
            }
        }
    }

    async fn serve(&self, stream: &mut TcpStream, piece: u32, block: u32, count: u32) -> std::io::Result<()> {
        let (digest, refusal) = (self.shape.digest(), Refusal::MissingPiece);
        let say = |message| wire::encode_control(&message);
        match self.lie {
            Lie::Silence => Ok(()),
            Lie::Refusal => stream.write_all(&say(Message::Reject { digest, piece, block, count, refusal })).await,
            Lie::Busy => {
                stream.write_all(&say(Message::Busy { digest, piece, block, count })).await?;
                stream.write_all(&say(Message::Ready { digest })).await
            }
            Lie::Garbage | Lie::OneBit | Lie::Short | Lie::Unasked | Lie::Half => {
                let other = (piece + 1) % self.shape.pieces();
                let piece = if self.lie == Lie::Unasked { other } else { piece };
                for block in block..block + count {
                    let frame = frame(&self.lied(piece, block));
                    let end = if self.lie == Lie::Half { frame.len() / 2 } else { frame.len() };
                    stream.write_all(&frame[..end]).await?;
                }
                if self.lie == Lie::Half { stream.shutdown().await } else { Ok(()) }
            }
        }
    }

    fn lied(&self, piece: u32, block: u32) -> Block {
        let (offset, len) = (self.shape.offset(piece, block) as usize, self.shape.block_len(piece, block) as usize);
        let mut data = self.store.bytes[offset..offset + len].to_vec();
        match self.lie {
            Lie::Garbage => data.fill(7),
            Lie::OneBit => data[len / 3] ^= 1,
            Lie::Short => data.truncate(len - 1),
            _ => {}
        }
        Block { digest: self.shape.digest(), piece, block, data: data.into() }
    }
}

fn frame(block: &Block) -> Bytes {
    let header = wire::encode_block_header(&block.digest, block.piece, block.block, block.data.len());
    let mut frame = BytesMut::from(&header[..]);
    frame.put_slice(&block.data);
    frame.freeze()
}

async fn read_frame(stream: &mut TcpStream) -> std::io::Result<Frame> {
    let mut header = [0; HEADER];
    stream.read_exact(&mut header).await?;
    let (kind, len) = wire::parse_header(header).unwrap();
    let mut body = vec![0; len];
    stream.read_exact(&mut body).await?;
    Ok(wire::parse_body(kind, body.into()).unwrap())
}

/// What three nodes saw that fetched beside a liar.
struct Outcome {
    /// Requests that the liar had, of all nodes.
    asked: u32,
    bad_pieces: u32,
    /// Nodes that refuse it.
    refused: u32,
}

async fn beside(lie: Lie) -> Outcome {
    trace();
    let mut region = Region::new(OneArtifact::new(SIZE, 11)).await;
    region.tune = |settings| {
        settings.swarm.request_timeout = Duration::from_secs(1);
        settings.swarm.busy_retry = Duration::from_millis(100);
    };
    let mut tasks = JoinSet::new();
    let liar = Liar::start(&region, lie, &mut tasks).await;
    let names = ["a", "b", "c"];
    let nodes: Vec<Running<Node>> = join_all(names.iter().map(|name| region.node(name))).await;
    let fetches = join_all(nodes.iter().zip(&names).map(|(node, name)| region.fetch_limited(node, name, SLOW))).await;
    let summaries = in_time(join_all(fetches.into_iter().map(|fetch| fetch.done))).await;
    let mut outcome = Outcome { asked: 0, bad_pieces: 0, refused: 0 };
    for ((name, node), summary) in names.iter().zip(&nodes).zip(summaries) {
        let summary = summary.unwrap();
        region.assert_whole(name);
        assert_eq!(summary.from_store + summary.from_peers, SIZE as u64, "{name}: {summary:?}");
        let account = node.service.account(&region.store.manifest.digest()).await.unwrap().unwrap();
        // What nobody asked for may be good.
        assert!(lie == Lie::Unasked || !account.from_peers.contains_key("liar"), "{name}: {account:?}");
        outcome.bad_pieces += summary.bad_pieces;
        outcome.refused += node.service.stats().await.unwrap().quarantined;
    }
    let usage = region.usage().await;
    let budget = (SIZE as u64 * 6 / 5).max(SIZE as u64 + 8 * liar.shape.piece_size());
    assert!(usage.leased_bytes <= budget && usage.recovery_bytes == 0, "{usage:?}");
    let read = region.store.read.load(Ordering::SeqCst);
    assert!(read <= usage.leased_bytes, "{read} {usage:?}");
    outcome.asked = liar.asked.load(Ordering::SeqCst);
    println!(
        "{lie:?}: {} requests, {} bad pieces, {} refusals, {usage:?}",
        outcome.asked, outcome.bad_pieces, outcome.refused
    );
    assert!(outcome.asked > 0, "nobody believed it");
    outcome
}

/// Requests of three nodes that may be under way when the first lie is found: as many pieces as a neighbour is asked for at once.
const UNDER_WAY: u32 = 3 * 16;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_are_all_wrong() {
    let outcome = beside(Lie::Garbage).await;
    assert!(outcome.refused > 0 && outcome.bad_pieces >= outcome.refused);
    assert!(outcome.asked <= UNDER_WAY, "{} requests", outcome.asked);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_bit_that_is_wrong() {
    let outcome = beside(Lie::OneBit).await;
    assert!(outcome.refused > 0 && outcome.bad_pieces >= outcome.refused);
    assert!(outcome.asked <= UNDER_WAY, "{} requests", outcome.asked);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_answer() {
    let outcome = beside(Lie::Silence).await;
    assert_eq!((outcome.refused, outcome.bad_pieces), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pieces_that_are_not_there() {
    let outcome = beside(Lie::Refusal).await;
    assert_eq!((outcome.refused, outcome.bad_pieces), (0, 0));
    // Each piece once of each node at most: it does not have it, as it says itself.
    assert!(outcome.asked <= 3 * 48, "{} requests", outcome.asked);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn always_busy_and_always_ready() {
    let outcome = beside(Lie::Busy).await;
    assert_eq!((outcome.refused, outcome.bad_pieces), (0, 0));
    assert!(outcome.asked <= 10_000, "{} requests", outcome.asked);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocks_that_are_too_short() {
    let outcome = beside(Lie::Short).await;
    assert!(outcome.refused > 0 && outcome.bad_pieces == 0);
    assert!(outcome.asked <= UNDER_WAY, "{} requests", outcome.asked);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocks_that_nobody_asked_for() {
    let outcome = beside(Lie::Unasked).await;
    assert_eq!((outcome.refused, outcome.bad_pieces), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_of_a_block() {
    let outcome = beside(Lie::Half).await;
    assert_eq!((outcome.refused, outcome.bad_pieces), (0, 0));
}
