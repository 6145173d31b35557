//! A host that runs services: its disk and its processes outlive its agent.

pub mod disk;
pub mod runner;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use deploycore::machine::Journal;
use deploycore::machine::journal::Links;
use deploycore::model::{Digest, Labels, MachineName, Manifest, RegionName, ServiceName};
use deploycore_p2p::net::MemoryFiles;
use tokio::task::JoinSet;

use self::runner::Process;
use super::check::Checker;

/// What of a host is not in its agent's memory.
#[derive(Debug)]
pub struct Machine {
    pub region: RegionName,
    pub name: MachineName,
    pub labels: Labels,
    pub files: MemoryFiles,
    pub checker: Arc<Checker>,
    state: Mutex<State>,
    /// Ends of processes to come.
    timers: Mutex<JoinSet<()>>,
}

#[derive(Debug, Default)]
struct State {
    boot: u32,
    pids: u32,
    journals: BTreeMap<ServiceName, Journal>,
    links: BTreeMap<ServiceName, Links>,
    /// The blobs that were staged.
    blobs: BTreeMap<Digest, Manifest>,
    /// The artifacts of which there may be bytes.
    parts: BTreeSet<Digest>,
    processes: Vec<Arc<Process>>,
}

impl Machine {
    /// A fresh host.
    pub fn new(
        region: RegionName,
        name: MachineName,
        labels: Labels,
        files: MemoryFiles,
        checker: Arc<Checker>,
    ) -> Arc<Self> {
        let (state, timers) = (Mutex::default(), Mutex::default());
        Arc::new(Self { region, name, labels, files, checker, state, timers })
    }

    /// Its data folder.
    pub fn root(&self) -> PathBuf {
        PathBuf::from(format!("/{}/{}", self.region, self.name))
    }

    /// Where a whole blob is.
    pub fn blob(&self, digest: &Digest) -> PathBuf {
        self.root().join("blobs").join(digest.to_string())
    }

    /// Where a blob is fetched to.
    pub fn part(&self, digest: &Digest) -> PathBuf {
        self.root().join("blobs").join(format!("{digest}.part"))
    }

    /// The durable journal of a service.
    pub fn journal(&self, service: &ServiceName) -> Option<Journal> {
        self.lock().journals.get(service).cloned()
    }

    /// The services that the machine has heard of.
    pub fn services(&self) -> Vec<ServiceName> {
        self.lock().journals.keys().cloned().collect()
    }

    /// The links of a service.
    pub fn links(&self, service: &ServiceName) -> Links {
        self.lock().links.get(service).copied().unwrap_or_default()
    }

    /// The processes that execute something.
    pub fn running(&self, service: &ServiceName) -> Vec<Arc<Process>> {
        let state = self.lock();
        state.processes.iter().filter(|process| process.service == *service && process.is_running()).cloned().collect()
    }

    /// Each process that executes something.
    pub fn all_running(&self) -> Vec<Arc<Process>> {
        self.lock().processes.iter().filter(|process| process.is_running()).cloned().collect()
    }

    /// The power fails: every process ends, and the disk stays.
    pub fn reboot(&self) {
        let mut state = self.lock();
        state.boot += 1;
        for process in state.processes.drain(..) {
            process.end(None);
        }
    }

    /// The bytes of a blob, if they are whole.
    pub fn has_whole(&self, digest: &Digest) -> bool {
        self.files.read(&self.blob(digest)).is_some_and(|bytes| Digest::of(&bytes) == *digest)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
