//! The disk of a machine: slow, failing, and crashed between any two writes.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use deploycore::machine::disk::{Error, Loaded, Room};
use deploycore::machine::journal::Links;
use deploycore::machine::{Disk, Journal};
use deploycore::model::{ArtifactRef, Digest, Manifest, ServiceName};
use deploycore::port::BackendError;

use super::Machine;
use crate::simulation::fault::Link;
use crate::simulation::mutant::Mutant;

/// A machine's disk, as one life of its agent sees it.
#[derive(Debug)]
pub struct VirtualDisk {
    machine: Arc<Machine>,
    link: Link,
    mutant: Option<Mutant>,
}

impl VirtualDisk {
    /// The disk of `machine`.
    pub fn new(machine: Arc<Machine>, link: Link, mutant: Option<Mutant>) -> Self {
        Self { machine, link, mutant }
    }

    /// Something on the disk: it may fail, before or after its effect.
    async fn io<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce(&Machine) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (machine, path) = (self.machine.clone(), self.machine.root());
        let failed = |error: BackendError| Error::Io { path: path.clone(), source: io::Error::other(error) };
        self.link.call_with(what, failed, async move { work(&machine) }).await
    }
}

#[async_trait]
impl Disk for VirtualDisk {
    async fn load(&self) -> Result<Loaded, Error> {
        // An agent that cannot read its disk ends, and is started again: that is no mishap worth simulating.
        let machine = self.machine.clone();
        let load = async move {
            let state = machine.lock();
            let services = state
                .journals
                .iter()
                .map(|(service, journal)| (journal.clone(), state.links.get(service).copied().unwrap_or_default()));
            let services = services.collect();
            Loaded { services, blobs: state.blobs.keys().copied().collect() }
        };
        Ok(self.link.act("disk.load", load).await)
    }

    async fn write_journal(&self, journal: &Journal) -> Result<(), Error> {
        let journal = journal.clone();
        self.io("disk.journal", move |machine| {
            machine.lock().journals.insert(journal.service.clone(), journal.clone());
            machine.checker.journaled(machine, &journal);
            Ok(())
        })
        .await
    }

    async fn switch(&self, service: &ServiceName, links: Links) -> Result<(), Error> {
        let (first, second, careless) = (service.clone(), service.clone(), self.mutant == Some(Mutant::SwitchesEarly));
        self.io("disk.previous", move |machine| {
            machine.lock().links.entry(first).or_default().previous = links.previous;
            Ok(())
        })
        .await?;
        self.io("disk.current", move |machine| {
            if let Some(digest) = links.current.filter(|digest| !careless && !machine.lock().blobs.contains_key(digest))
            {
                return Err(Error::Missing { digest });
            }
            let before = machine.links(&second).current;
            machine.lock().links.entry(second.clone()).or_default().current = links.current;
            machine.checker.switched(machine, &second, before);
            Ok(())
        })
        .await
    }

    async fn reserve(&self, artifact: &ArtifactRef) -> Result<Room, Error> {
        let digest = artifact.digest;
        self.io("disk.reserve", move |machine| {
            machine.lock().parts.insert(digest);
            Ok(Room::new(machine.part(&digest), ()))
        })
        .await
    }

    async fn stage(&self, manifest: &Manifest) -> Result<(), Error> {
        let (manifest, careless) = (manifest.clone(), self.mutant == Some(Mutant::StagesUnverified));
        self.io("disk.stage", move |machine| {
            let (digest, part) = (manifest.digest(), machine.part(&manifest.digest()));
            if careless {
                machine.files.write(&part, b"damaged".to_vec());
            }
            let bytes = machine.files.read(&part).ok_or(Error::Missing { digest })?;
            if !careless && Digest::of(&bytes) != digest {
                return Err(Error::Corrupt { digest, detail: "other bytes".into() });
            }
            machine.files.write(machine.blob(&digest), bytes);
            machine.lock().blobs.insert(digest, manifest);
            machine.checker.staged(machine, &digest);
            Ok(())
        })
        .await
    }

    async fn holds(&self, digest: &Digest) -> Result<bool, Error> {
        let (digest, careless) = (*digest, self.mutant == Some(Mutant::SwitchesEarly));
        self.io("disk.holds", move |machine| Ok(careless || machine.lock().blobs.contains_key(&digest))).await
    }

    async fn manifest(&self, digest: &Digest) -> Result<Option<Manifest>, Error> {
        let digest = *digest;
        self.io("disk.manifest", move |machine| Ok(machine.lock().blobs.get(&digest).cloned())).await
    }

    async fn artifacts(&self) -> Result<BTreeSet<Digest>, Error> {
        self.io("disk.artifacts", move |machine| Ok(machine.lock().parts.clone())).await
    }

    async fn remove(&self, digest: &Digest) -> Result<(), Error> {
        let digest = *digest;
        self.io("disk.remove", move |machine| {
            machine.files.remove(&machine.blob(&digest));
            machine.files.remove(&machine.part(&digest));
            let mut state = machine.lock();
            state.blobs.remove(&digest);
            state.parts.remove(&digest);
            drop(state);
            machine.checker.removed(machine, &digest);
            Ok(())
        })
        .await
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.machine.blob(digest)
    }

    fn folder(&self, service: &ServiceName) -> PathBuf {
        self.machine.root().join("services").join(service.as_str())
    }
}
