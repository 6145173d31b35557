//! When a node lets go of an artifact's file.

mod common;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use common::{OneArtifact, Region, Running, in_time, trace};
use deploycore::model::Manifest;
use deploycore::port::PeerSwarm;
use deploycore::port::swarm::{Error, FetchRequest, Limits, Priority};
use deploycore_p2p::core::bitfield::Bitfield;
use deploycore_p2p::net::{DiskFiles, Files, Open, PieceFile, Stored, Tcp};
use deploycore_p2p::{Node, NodeSettings, Security};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// A disk on which some things take as long as the test wants.
#[derive(Debug)]
struct SlowFiles {
    inner: DiskFiles,
    verify: Arc<Semaphore>,
    checkpoint: Arc<Semaphore>,
    /// Whether a checkpoint waits, as one does that writes for long.
    writing: Arc<AtomicBool>,
}

impl SlowFiles {
    fn new(verify: usize) -> Arc<Self> {
        let (verify, checkpoint) = (Arc::new(Semaphore::new(verify)), Arc::new(Semaphore::new(0)));
        Arc::new(Self { inner: DiskFiles::default(), verify, checkpoint, writing: Arc::default() })
    }
}

#[async_trait]
impl Files for SlowFiles {
    async fn open(&self, manifest: Arc<Manifest>, path: &Path, open: Open) -> io::Result<Arc<dyn PieceFile>> {
        let inner = self.inner.open(manifest, path, open).await?;
        let (verify, checkpoint) = (Arc::clone(&self.verify), Arc::clone(&self.checkpoint));
        Ok(Arc::new(SlowFile { inner, verify, checkpoint, writing: Arc::clone(&self.writing) }))
    }
}

#[derive(Debug)]
struct SlowFile {
    inner: Arc<dyn PieceFile>,
    verify: Arc<Semaphore>,
    checkpoint: Arc<Semaphore>,
    writing: Arc<AtomicBool>,
}

#[async_trait]
impl PieceFile for SlowFile {
    async fn verify(&self) -> io::Result<Bitfield> {
        self.verify.acquire().await.unwrap().forget();
        self.inner.verify().await
    }

    async fn store(&self, piece: u32, blocks: Vec<Bytes>, hash_blocks: bool) -> io::Result<Stored> {
        self.inner.store(piece, blocks, hash_blocks).await
    }

    async fn read(&self, offset: u64, len: u32) -> io::Result<Bytes> {
        self.inner.read(offset, len).await
    }

    async fn checkpoint(&self, have: &Bitfield) -> io::Result<()> {
        self.writing.store(true, Ordering::SeqCst);
        self.checkpoint.acquire().await.unwrap().forget();
        self.writing.store(false, Ordering::SeqCst);
        self.inner.checkpoint(have).await
    }

    async fn finish(&self) -> io::Result<()> {
        self.inner.finish().await
    }
}

async fn node(region: &Region, files: Arc<SlowFiles>) -> Running<Node> {
    let mut settings = NodeSettings::new("m", region.name.clone(), Security::PlainTcp);
    settings = settings.with_tracker(region.tracker_addr.clone());
    settings.checkpoint = Duration::from_millis(10);
    let service = Arc::new(Node::bind_with(settings, Arc::new(Tcp), files).await.unwrap());
    let own = Arc::clone(&service);
    Running::spawn(service, async move { own.run(CancellationToken::new()).await })
}

const SLOW: Limits = Limits { ingress: Some(4 << 20), egress: None, disk: None };

/// Begins a fetch, and drops it while a checkpoint is under way.
async fn abandon_a_fetch(region: &Region, node: &Running<Node>, files: &SlowFiles) {
    let fetch = region.fetch_limited(node, "m", SLOW).await;
    in_time(async {
        while !files.writing.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    drop(fetch);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaving_does_not_wait_for_a_verification() {
    trace();
    let region = Region::new(OneArtifact::new(2 << 20, 1)).await;
    let (digest, manifest) = (region.store.manifest.digest(), Arc::new(region.store.manifest.clone()));
    let node = node(&region, SlowFiles::new(0)).await;
    let fetch = region.fetch(&node, "m").await;
    in_time(node.service.leave(&digest)).await.unwrap();
    assert!(matches!(in_time(fetch.done).await, Err(Error::Stopped { .. })));

    std::fs::write(region.destination("whole"), &region.store.bytes).unwrap();
    let seed = node.service.seed(manifest, region.destination("whole"));
    let left = async {
        // The command of the seed is ahead of it.
        tokio::task::yield_now().await;
        node.service.leave(&digest).await
    };
    let (seeded, left) = in_time(futures::future::join(seed, left)).await;
    assert!(matches!(seeded, Err(Error::Stopped { .. })) && left.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaving_waits_for_what_an_abandoned_fetch_still_writes() {
    trace();
    let region = Region::new(OneArtifact::new(8 << 20, 1)).await;
    let digest = region.store.manifest.digest();
    let files = SlowFiles::new(9);
    let node = node(&region, Arc::clone(&files)).await;
    abandon_a_fetch(&region, &node, &files).await;
    let leave = node.service.leave(&digest);
    tokio::pin!(leave);
    let soon = tokio::time::timeout(Duration::from_millis(200), &mut leave).await;
    assert!(soon.is_err(), "it would write beside a file that is removed");
    files.checkpoint.add_permits(9);
    in_time(leave).await.unwrap();
    assert!(!files.writing.load(Ordering::SeqCst));

    let again = in_time(region.fetch(&node, "m").await.done).await.unwrap();
    assert!(again.resumed > 0, "{again:?}");
    region.assert_whole("m");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_that_comes_while_an_abandoned_one_ends_goes_on_from_it() {
    trace();
    let region = Region::new(OneArtifact::new(8 << 20, 1)).await;
    let files = SlowFiles::new(9);
    let node = node(&region, Arc::clone(&files)).await;
    abandon_a_fetch(&region, &node, &files).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let next = region.fetch(&node, "m");
    let release = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        files.checkpoint.add_permits(1_000);
    };
    let (next, ()) = in_time(futures::future::join(next, release)).await;
    in_time(next.done).await.unwrap();
    region.assert_whole("m");
}

/// Once `leave` has returned the file may be deleted: no fetch that was asked for before it makes the file anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_that_waited_for_the_end_of_another_does_not_begin_after_a_leave() {
    trace();
    let region = Region::new(OneArtifact::new(8 << 20, 1)).await;
    let digest = region.store.manifest.digest();
    let files = SlowFiles::new(9);
    let node = node(&region, Arc::clone(&files)).await;
    abandon_a_fetch(&region, &node, &files).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let (manifest, destination) = (Arc::new(region.store.manifest.clone()), region.destination("m"));
    let request = FetchRequest { manifest, destination, priority: Priority::Normal, limits: SLOW };
    let waiting = node.service.fetch(request);
    let leave = async {
        // The command of the fetch is ahead of it.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let leave = node.service.leave(&digest);
        files.checkpoint.add_permits(1_000);
        leave.await
    };
    let (waiting, left) = in_time(futures::future::join(waiting, leave)).await;
    assert!(matches!(waiting, Err(Error::Stopped { .. })) && left.is_ok());
    std::fs::remove_file(region.destination("m")).unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!region.destination("m").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_port_is_free_when_a_run_has_ended() {
    trace();
    let region = Region::new(OneArtifact::new(1 << 20, 1)).await;
    let mut settings = NodeSettings::new("m", region.name.clone(), Security::PlainTcp);
    settings = settings.with_tracker(region.tracker_addr.clone());
    for _ in 0..20 {
        let node = Arc::new(Node::bind(settings.clone()).await.unwrap());
        settings.listen = node.local_addr().to_owned();
        let (shutdown, own) = (CancellationToken::new(), Arc::clone(&node));
        let told = shutdown.clone();
        let run = tokio::spawn(async move { own.run(told).await });
        in_time(node.stats()).await.unwrap();
        shutdown.cancel();
        in_time(run).await.unwrap();
    }
}
