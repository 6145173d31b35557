//! Copies: what the ledger calls complete is in the region.

use std::collections::{BTreeMap, BTreeSet};

use deploycore::model::{CopyLease, CopyState, Digest, JobStatus, NewArtifact, RegionName};
use deploycore::port::ArtifactStoreExt;
use deploycore::port::ledger::Error;
use futures::FutureExt;

use super::{Checker, Invariant, Met};

/// What the ledger acknowledged.
#[derive(Debug, Default)]
pub struct Model {
    registered: BTreeMap<String, NewArtifact>,
    /// Copies that a disaster took, until they are made again.
    taken: BTreeSet<(RegionName, Digest)>,
}

impl Checker {
    /// An artifact was registered.
    pub fn registered(&self, artifact: &NewArtifact) {
        self.effect();
        let job = self.backends.queue.snapshot().jobs.remove(&artifact.job);
        let made = job.is_some_and(|(job, _)| {
            job.status == JobStatus::Succeeded && job.artifact.as_ref() == Some(&artifact.artifact)
        });
        self.require(Invariant::StoredBeforeSucceeded, made, || {
            format!("{} is registered, and no job that succeeded made it", artifact.artifact.name)
        });
        let known = self.lock().ledger.registered.insert(artifact.artifact.name.to_string(), artifact.clone());
        let same = known.is_none_or(|known| known == *artifact);
        self.require(Invariant::NothingIsLost, same, || format!("{} changed its body", artifact.artifact.name));
        self.ledger_changed();
    }

    /// A copy was reported as made.
    pub fn copied(&self, lease: &CopyLease) {
        self.effect();
        self.trace.met(Met::Copies);
        self.trace.event("ledger", format_args!("a copy is complete in {}", lease.region));
        let ledger = self.backends.ledger.snapshot();
        let Some(status) = ledger.get(&lease.artifact) else {
            return self.violated(Invariant::NothingIsLost, format!("{} is gone from the ledger", lease.artifact));
        };
        let digest = status.registered.artifact.digest;
        let there = self.is_whole_in(&lease.region, &digest);
        let taken = self.lock().ledger.taken.contains(&(lease.region.clone(), digest));
        self.require(Invariant::NoEarlyDeploy, there || taken, || {
            format!("{} is complete in {} by the ledger, and is not there", lease.artifact, lease.region)
        });
        self.ledger_changed();
    }

    /// A lease on a copy was refused, or not.
    pub fn copy_refused<T>(&self, lease: &CopyLease, answer: &Result<T, Error>) {
        if matches!(answer, Err(Error::LeaseLost { .. })) {
            self.trace.met(Met::Zombies);
            self.trace.event("ledger", format_args!("a copier of {} is refused", lease.region));
        }
    }

    /// A disaster took a copy.
    pub fn taken(&self, region: &RegionName, digest: &Digest) {
        self.trace.met(Met::LostCopies);
        self.lock().ledger.taken.insert((region.clone(), *digest));
    }

    /// Whether a region's store has an artifact, whole.
    pub fn is_whole_in(&self, region: &RegionName, digest: &Digest) -> bool {
        let Some(backends) = self.backends.regions.get(region) else { return false };
        let verified = backends.store.verify(digest).now_or_never().expect("memory never suspends").is_ok();
        if verified {
            self.lock().ledger.taken.remove(&(region.clone(), *digest));
        }
        verified
    }

    /// Whether a region lacks an artifact through no fault of the road.
    pub fn is_taken(&self, region: &RegionName, digest: &Digest) -> bool {
        !self.is_whole_in(region, digest) && self.lock().ledger.taken.contains(&(region.clone(), *digest))
    }

    /// Each artifact of a job that succeeded is registered, and complete in each region; what is missing.
    pub fn uncopied(&self) -> Vec<String> {
        let ledger = self.backends.ledger.snapshot();
        let mut missing = Vec::new();
        for (job, _) in self.backends.queue.snapshot().jobs.into_values() {
            let Some(artifact) = job.artifact else { continue };
            match ledger.get(&artifact.name) {
                None => missing.push(format!("{} is not registered", artifact.name)),
                Some(status) => {
                    let copies = status.copies.iter();
                    let lacks = copies.filter(|(region, copy)| {
                        copy.state != CopyState::Complete || !self.is_whole_in(region, &artifact.digest)
                    });
                    missing.extend(lacks.map(|(region, copy)| format!("{} in {region}: {copy:?}", artifact.name)));
                }
            }
        }
        missing
    }

    fn ledger_changed(&self) {
        let ledger = self.backends.ledger.snapshot();
        let registered = self.lock().ledger.registered.clone();
        for artifact in registered.into_values() {
            let name = &artifact.artifact.name;
            let kept = ledger.get(name).is_some_and(|status| status.registered == artifact);
            self.require(Invariant::NothingIsLost, kept, || format!("{name} was registered and is gone"));
        }
    }
}
