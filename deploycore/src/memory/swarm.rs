//! The swarm of one region in one process.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fs::OpenOptions;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::model::{Digest, Manifest};
use crate::port::swarm::{
    Error, Fetch, FetchProgress, FetchRequest, FetchSummary, Limits, PeerSwarm, Priority, SwarmStats,
};
use crate::port::{ArtifactStore, ArtifactStoreExt, chain};

/// Between two tries at a piece that neither the store nor a peer gave.
const RETRY: Duration = Duration::from_millis(100);

/// The files that a swarm writes and reads. Calls are short and do not wait, so that they may run on a reactor.
pub trait Files: Send + Sync + Debug + 'static {
    /// The bytes of `range`; an error when the file is not there or ends before.
    fn read(&self, path: &Path, range: Range<u64>) -> io::Result<Vec<u8>>;
    /// How long the file is; an error when it is not there.
    fn len(&self, path: &Path) -> io::Result<u64>;
    /// Puts bytes at a place of the file, which is made when it is not there.
    fn write(&self, path: &Path, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes the file `len` bytes long and durable.
    fn finish(&self, path: &Path, len: u64) -> io::Result<()>;
}

/// The file system of the host.
#[derive(Debug, Clone, Copy, Default)]
pub struct HostFiles;

impl Files for HostFiles {
    fn read(&self, path: &Path, range: Range<u64>) -> io::Result<Vec<u8>> {
        use io::{Read, Seek};
        let mut file = std::fs::File::open(path)?;
        file.seek(io::SeekFrom::Start(range.start))?;
        let mut bytes = vec![0; (range.end - range.start) as usize];
        file.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn len(&self, path: &Path) -> io::Result<u64> {
        Ok(std::fs::metadata(path)?.len())
    }

    fn write(&self, path: &Path, offset: u64, bytes: &[u8]) -> io::Result<()> {
        use io::{Seek, Write};
        let mut file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
        file.seek(io::SeekFrom::Start(offset))?;
        file.write_all(bytes)
    }

    fn finish(&self, path: &Path, len: u64) -> io::Result<()> {
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
        file.set_len(len)?;
        file.sync_all()
    }
}

/// A region whose machines exchange pieces within one process.
#[derive(Debug, Clone)]
pub struct SwarmRegion {
    store: Arc<dyn ArtifactStore>,
    files: Arc<dyn Files>,
    nodes: Arc<Mutex<Vec<Weak<Node>>>>,
}

impl SwarmRegion {
    /// A region fed by a store, on the host's files.
    pub fn new(store: Arc<dyn ArtifactStore>) -> Self {
        Self::with_files(store, Arc::new(HostFiles))
    }

    /// A region fed by a store, on files of the caller's.
    pub fn with_files(store: Arc<dyn ArtifactStore>, files: Arc<dyn Files>) -> Self {
        Self { store, files, nodes: Arc::default() }
    }

    /// A new machine in the region. It leaves when the value is dropped.
    pub fn join(&self) -> Swarm {
        let node = Arc::new(Node { state: Mutex::default() });
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        nodes.retain(|node| node.strong_count() > 0);
        nodes.push(Arc::downgrade(&node));
        Swarm { region: self.clone(), node }
    }

    fn others(&self, node: &Arc<Node>) -> Vec<Arc<Node>> {
        let nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        nodes.iter().filter_map(Weak::upgrade).filter(|other| !Arc::ptr_eq(other, node)).collect()
    }
}

/// A machine's part in a [`SwarmRegion`]: the reference for other swarms. It ignores priorities and limits.
///
/// A fetch moves while its completion is polled. It needs no runtime but tokio's clock.
#[derive(Debug)]
pub struct Swarm {
    region: SwarmRegion,
    node: Arc<Node>,
}

#[derive(Debug)]
struct Node {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    artifacts: BTreeMap<Digest, Part>,
    downloaded: u64,
    uploaded: u64,
}

/// What a node has of an artifact.
#[derive(Debug)]
struct Part {
    path: PathBuf,
    verified: Vec<bool>,
    stop: CancellationToken,
    /// `None` for a file that was offered whole.
    fetch: Option<(WeakShared<Work>, watch::Receiver<FetchProgress>)>,
}

type Work = BoxFuture<'static, Result<FetchSummary, Arc<Error>>>;

impl Part {
    fn is_whole(&self) -> bool {
        self.verified.iter().all(|verified| *verified)
    }

    /// The fetch under way, if somebody still wants it.
    fn fetch(&self) -> Option<(Shared<Work>, watch::Receiver<FetchProgress>)> {
        let (work, progress) = self.fetch.as_ref()?;
        Some((work.upgrade()?, progress.clone()))
    }
}

impl Node {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the node has a verified piece.
    fn holds(&self, digest: &Digest, index: u32) -> Option<PathBuf> {
        let state = self.lock();
        let part = state.artifacts.get(digest).filter(|part| part.verified.get(index as usize) == Some(&true))?;
        Some(part.path.clone())
    }
}

impl Drop for Swarm {
    fn drop(&mut self) {
        self.node.lock().artifacts.values().for_each(|part| part.stop.cancel());
    }
}

#[async_trait]
impl PeerSwarm for Swarm {
    async fn fetch(&self, request: FetchRequest) -> Result<Fetch, Error> {
        let FetchRequest { manifest, destination, .. } = request;
        let digest = manifest.digest();
        let mut state = self.node.lock();
        if let Some(part) = state.artifacts.get(&digest) {
            if let Some((work, progress)) = part.fetch() {
                if part.path != destination {
                    return Err(Error::Conflict { digest, path: part.path.clone() });
                }
                return Ok(handle(digest, work, progress));
            }
            part.stop.cancel();
        }
        let (sender, progress) = watch::channel(FetchProgress::default());
        let stop = CancellationToken::new();
        let job = Job {
            region: self.region.clone(),
            node: Arc::downgrade(&self.node),
            manifest,
            path: destination.clone(),
            stop: stop.clone(),
            progress: sender,
            summary: FetchSummary::default(),
            started: Instant::now(),
        };
        let verified = vec![false; job.manifest.piece_count() as usize];
        let work = job.run().map(|result| result.map_err(Arc::new)).boxed().shared();
        let weak = work.downgrade().expect("the work has not been polled");
        let part = Part { path: destination, verified, stop, fetch: Some((weak, progress.clone())) };
        state.artifacts.insert(digest, part);
        Ok(handle(digest, work, progress))
    }

    async fn seed(&self, manifest: Arc<Manifest>, file: PathBuf) -> Result<(), Error> {
        let digest = manifest.digest();
        let corrupt = |detail| Error::Corrupt { digest, path: file.clone(), detail };
        let disk = |source| Error::Disk { path: file.clone(), source };
        let len = self.region.files.len(&file).map_err(disk)?;
        if len != manifest.size() {
            return Err(corrupt(format!("{len} bytes instead of {}", manifest.size())));
        }
        for (index, range) in pieces(&manifest) {
            let bytes = self.region.files.read(&file, range).map_err(disk)?;
            if !manifest.verify_piece(index, &bytes) {
                return Err(corrupt(format!("piece {index} does not verify")));
            }
            tokio::task::yield_now().await;
        }
        let mut state = self.node.lock();
        // A fetch under way, or what it left, serves as well.
        if !state.artifacts.get(&digest).is_some_and(|part| part.fetch().is_some() || part.is_whole()) {
            let verified = vec![true; manifest.piece_count() as usize];
            let part = Part { path: file.clone(), verified, stop: CancellationToken::new(), fetch: None };
            state.artifacts.insert(digest, part);
        }
        Ok(())
    }

    async fn leave(&self, digest: &Digest) -> Result<(), Error> {
        if let Some(part) = self.node.lock().artifacts.remove(digest) {
            part.stop.cancel();
        }
        Ok(())
    }

    async fn adjust(&self, digest: &Digest, _: Priority, _: Limits) -> Result<(), Error> {
        let state = self.node.lock();
        let here = |part: &&Part| part.is_whole() || part.fetch().is_some();
        state.artifacts.get(digest).filter(here).map(|_| ()).ok_or(Error::NotFound { digest: *digest })
    }

    async fn limit(&self, _: Limits) -> Result<(), Error> {
        Ok(())
    }

    async fn stats(&self) -> Result<SwarmStats, Error> {
        let peers = self.region.others(&self.node).len() as u32;
        let state = self.node.lock();
        let seeding = state.artifacts.values().filter(|part| part.is_whole()).count() as u32;
        let fetching =
            state.artifacts.values().filter(|part| !part.is_whole() && part.fetch().is_some()).count() as u32;
        Ok(SwarmStats {
            fetching,
            seeding,
            peers,
            downloaded: state.downloaded,
            uploaded: state.uploaded,
            quarantined: 0,
        })
    }
}

fn pieces(manifest: &Manifest) -> impl Iterator<Item = (u32, Range<u64>)> + '_ {
    (0..manifest.piece_count()).filter_map(|index| Some((index, manifest.piece_range(index)?)))
}

/// One caller's hold on a fetch that several may share; the last that drops it stops it.
fn handle(digest: Digest, work: Shared<Work>, progress: watch::Receiver<FetchProgress>) -> Fetch {
    let done = work.map(move |result| {
        result.map_err(|error| match &*error {
            Error::Disk { path, source } => {
                Error::Disk { path: path.clone(), source: io::Error::new(source.kind(), source.to_string()) }
            }
            _ => Error::Stopped { digest },
        })
    });
    Fetch { progress, done: done.boxed() }
}

struct Job {
    region: SwarmRegion,
    /// The swarm may be dropped while somebody still holds the fetch.
    node: Weak<Node>,
    manifest: Arc<Manifest>,
    path: PathBuf,
    stop: CancellationToken,
    progress: watch::Sender<FetchProgress>,
    summary: FetchSummary,
    started: Instant,
}

impl Job {
    async fn run(mut self) -> Result<FetchSummary, Error> {
        let manifest = Arc::clone(&self.manifest);
        for (index, range) in pieces(&manifest) {
            self.pause().await?;
            let len = range.end - range.start;
            let found = self.region.files.read(&self.path, range);
            if found.is_ok_and(|bytes| manifest.verify_piece(index, &bytes)) {
                self.summary.resumed += len;
                self.note(index, len)?;
            }
        }
        for (index, range) in pieces(&manifest) {
            if self.node()?.holds(&manifest.digest(), index).is_some() {
                continue;
            }
            let bytes = self.obtain(index, range.clone()).await?;
            self.write(range.start, &bytes)?;
            self.note(index, bytes.len() as u64)?;
        }
        self.pause().await?;
        self.region.files.finish(&self.path, manifest.size()).map_err(|source| self.disk(source))?;
        self.summary.elapsed = self.started.elapsed();
        Ok(self.summary)
    }

    /// A verified piece, from a peer that has it or else from the store, for as long as it takes.
    async fn obtain(&mut self, index: u32, range: Range<u64>) -> Result<Vec<u8>, Error> {
        let digest = self.manifest.digest();
        let stop = self.stop.clone();
        loop {
            self.pause().await?;
            let len = range.end - range.start;
            if let Some(bytes) = self.ask_peers(index, range.clone())? {
                self.summary.from_peers += len;
                return Ok(bytes);
            }
            let read = tokio::select! {
                biased;
                () = stop.cancelled() => return Err(Error::Stopped { digest }),
                read = self.region.store.read_all(&digest, range.clone()) => read,
            };
            let reason = match read {
                Ok(bytes) if self.manifest.verify_piece(index, &bytes) => {
                    self.summary.from_store += len;
                    return Ok(bytes);
                }
                Ok(_) => {
                    self.summary.bad_pieces += 1;
                    format!("the store's piece {index} does not verify")
                }
                Err(error) => chain(&error),
            };
            self.progress.send_modify(|progress| progress.waiting_for = Some(reason));
            tokio::select! {
                biased;
                () = stop.cancelled() => return Err(Error::Stopped { digest }),
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }

    fn ask_peers(&mut self, index: u32, range: Range<u64>) -> Result<Option<Vec<u8>>, Error> {
        let digest = self.manifest.digest();
        for peer in self.region.others(&self.node()?) {
            let Some(path) = peer.holds(&digest, index) else { continue };
            let Ok(bytes) = self.region.files.read(&path, range.clone()) else { continue };
            if self.manifest.verify_piece(index, &bytes) {
                peer.lock().uploaded += bytes.len() as u64;
                return Ok(Some(bytes));
            }
            self.summary.bad_pieces += 1;
        }
        Ok(None)
    }

    /// Under the node's lock, which `leave` takes too, so that nothing is written once that returned.
    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let node = self.node()?;
        let mut state = node.lock();
        if self.stop.is_cancelled() {
            return Err(Error::Stopped { digest: self.manifest.digest() });
        }
        self.region.files.write(&self.path, offset, bytes).map_err(|source| self.disk(source))?;
        state.downloaded += bytes.len() as u64;
        Ok(())
    }

    /// Lets others run, then sees whether the fetch shall go on.
    async fn pause(&self) -> Result<(), Error> {
        tokio::task::yield_now().await;
        if self.stop.is_cancelled() {
            return Err(Error::Stopped { digest: self.manifest.digest() });
        }
        Ok(())
    }

    fn note(&self, index: u32, len: u64) -> Result<(), Error> {
        let node = self.node()?;
        let peers = self.region.others(&node).len() as u32;
        if let Some(part) = node.lock().artifacts.get_mut(&self.manifest.digest()) {
            part.verified[index as usize] = true;
        }
        self.progress.send_modify(|progress| {
            progress.pieces += 1;
            progress.bytes += len;
            progress.peers = peers;
            progress.waiting_for = None;
        });
        Ok(())
    }

    fn node(&self) -> Result<Arc<Node>, Error> {
        self.node.upgrade().ok_or(Error::Stopped { digest: self.manifest.digest() })
    }

    fn disk(&self, source: io::Error) -> Error {
        Error::Disk { path: self.path.clone(), source }
    }
}
