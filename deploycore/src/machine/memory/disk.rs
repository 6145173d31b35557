//! A machine's disk in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use tokio::task::yield_now;

use crate::machine::disk::{Disk, Error, Loaded, Room};
use crate::machine::journal::{Journal, Links};
use crate::memory::Files;
use crate::model::{ArtifactRef, Digest, Manifest, ServiceName};

/// A [`Disk`] in memory; clones are the same disk. As [`Files`] it is also what a swarm in memory writes to.
///
/// Each change lies between two awaits, so that an agent that is dropped leaves it made or not made.
#[derive(Debug, Clone)]
pub struct MemoryDisk {
    root: PathBuf,
    capacity: u64,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    services: BTreeMap<ServiceName, (Journal, Links)>,
    files: BTreeMap<PathBuf, File>,
    whole: BTreeMap<Digest, Manifest>,
    reserved: BTreeMap<Digest, (u64, u32)>,
}

#[derive(Debug, Clone, Default)]
struct File {
    bytes: Vec<u8>,
    synced: bool,
}

impl MemoryDisk {
    /// An empty disk of `capacity` bytes whose paths begin with `root`: two machines of one simulation have two roots.
    pub fn new(root: impl Into<PathBuf>, capacity: u64) -> Self {
        Self { root: root.into(), capacity, state: Arc::default() }
    }

    /// What a loss of power does: files that were not synced are gone.
    pub fn lose_power(&self) {
        self.lock().files.retain(|_, file| file.synced);
    }

    /// The journal and the links of a service, as they are on disk.
    pub fn service(&self, service: &ServiceName) -> Option<(Journal, Links)> {
        self.lock().services.get(service).cloned()
    }

    /// The blobs that are named whole.
    pub fn whole(&self) -> BTreeSet<Digest> {
        self.lock().whole.keys().copied().collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn part(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs").join(format!("{digest}.part"))
    }
}

#[async_trait]
impl Disk for MemoryDisk {
    async fn load(&self) -> Result<Loaded, Error> {
        yield_now().await;
        let mut state = self.lock();
        state.reserved.clear();
        let services = state.services.values().cloned().collect();
        Ok(Loaded { services, blobs: state.whole.keys().copied().collect() })
    }

    async fn write_journal(&self, journal: &Journal) -> Result<(), Error> {
        yield_now().await;
        self.lock()
            .services
            .entry(journal.service.clone())
            .and_modify(|(stored, _)| *stored = journal.clone())
            .or_insert_with(|| (journal.clone(), Links::default()));
        yield_now().await;
        Ok(())
    }

    async fn switch(&self, service: &ServiceName, links: Links) -> Result<(), Error> {
        yield_now().await;
        if let Some(digest) = links.current.filter(|digest| !self.lock().whole.contains_key(digest)) {
            return Err(Error::Missing { digest });
        }
        // The journal comes first, so the service is there.
        self.lock().services.entry(service.clone()).and_modify(|(_, stored)| stored.previous = links.previous);
        yield_now().await;
        self.lock().services.entry(service.clone()).and_modify(|(_, stored)| stored.current = links.current);
        yield_now().await;
        Ok(())
    }

    async fn reserve(&self, artifact: &ArtifactRef) -> Result<Room, Error> {
        yield_now().await;
        let (digest, part) = (artifact.digest, self.part(&artifact.digest));
        let mut state = self.lock();
        let missing = |state: &State, digest: &Digest, size: u64| {
            let written = state.files.get(&self.part(digest)).map_or(0, |file| file.bytes.len() as u64);
            size.saturating_sub(written)
        };
        let others = state.reserved.iter().filter(|(other, _)| **other != digest);
        let promised: u64 = others.map(|(other, (size, _))| missing(&state, other, *size)).sum();
        // A blob and its part are one file with two names.
        let used: u64 = state.files.values().map(|file| file.bytes.len() as u64).sum();
        let (needed, free) = (missing(&state, &digest, artifact.size), self.capacity.saturating_sub(used + promised));
        if needed > free {
            return Err(Error::NoSpace { digest, path: self.root.clone(), needed, free });
        }
        state.reserved.entry(digest).or_insert((artifact.size, 0)).1 += 1;
        Ok(Room::new(part, Reservation { disk: self.clone(), digest }))
    }

    async fn stage(&self, manifest: &Manifest) -> Result<(), Error> {
        yield_now().await;
        let digest = manifest.digest();
        {
            let mut state = self.lock();
            let Some(file) = state.files.get_mut(&self.part(&digest)) else { return Err(Error::Missing { digest }) };
            let found = Digest::of(&file.bytes);
            if found != digest {
                return Err(Error::Corrupt { digest, detail: format!("they hash to {found}") });
            }
            file.synced = true;
            state.whole.insert(digest, manifest.clone());
        }
        yield_now().await;
        Ok(())
    }

    async fn holds(&self, digest: &Digest) -> Result<bool, Error> {
        yield_now().await;
        Ok(self.lock().whole.contains_key(digest))
    }

    async fn manifest(&self, digest: &Digest) -> Result<Option<Manifest>, Error> {
        yield_now().await;
        Ok(self.lock().whole.get(digest).cloned())
    }

    async fn artifacts(&self) -> Result<BTreeSet<Digest>, Error> {
        yield_now().await;
        let state = self.lock();
        let names = state.files.keys().filter_map(|path| path.file_name()?.to_str()?.get(..64)?.parse().ok());
        Ok(names.chain(state.whole.keys().copied()).collect())
    }

    async fn remove(&self, digest: &Digest) -> Result<(), Error> {
        yield_now().await;
        let mut state = self.lock();
        state.whole.remove(digest);
        let part = self.part(digest);
        state.files.remove(&part);
        Ok(())
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs").join(digest.to_string())
    }

    fn folder(&self, service: &ServiceName) -> PathBuf {
        self.root.join("services").join(service.as_str())
    }
}

struct Reservation {
    disk: MemoryDisk,
    digest: Digest,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut state = self.disk.lock();
        if let Some((_, fetches)) = state.reserved.get_mut(&self.digest) {
            *fetches -= 1;
            if *fetches == 0 {
                state.reserved.remove(&self.digest);
            }
        }
    }
}

/// The name of a blob stands for the file that was fetched.
fn fetched(path: &Path) -> PathBuf {
    if path.extension().is_none() { path.with_extension("part") } else { path.to_owned() }
}

impl Files for MemoryDisk {
    fn read(&self, path: &Path, range: Range<u64>) -> io::Result<Vec<u8>> {
        let state = self.lock();
        let file = state.files.get(&fetched(path)).ok_or(io::ErrorKind::NotFound)?;
        let bytes = file.bytes.get(range.start as usize..range.end as usize);
        Ok(bytes.ok_or(io::ErrorKind::UnexpectedEof)?.to_vec())
    }

    fn len(&self, path: &Path) -> io::Result<u64> {
        let state = self.lock();
        Ok(state.files.get(&fetched(path)).ok_or(io::ErrorKind::NotFound)?.bytes.len() as u64)
    }

    fn write(&self, path: &Path, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.lock();
        let file = state.files.entry(path.to_owned()).or_default();
        let end = offset as usize + bytes.len();
        if file.bytes.len() < end {
            file.bytes.resize(end, 0);
        }
        file.bytes[offset as usize..end].copy_from_slice(bytes);
        file.synced = false;
        Ok(())
    }

    fn finish(&self, path: &Path, len: u64) -> io::Result<()> {
        let mut state = self.lock();
        let file = state.files.entry(path.to_owned()).or_default();
        file.bytes.resize(len as usize, 0);
        file.synced = true;
        Ok(())
    }
}
