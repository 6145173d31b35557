//! The kit for swarms over the swarm in memory, and over broken ones, which it must catch.

#![cfg(feature = "conformance")]

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use deploycore::conformance::swarm::{Region, Regions, cases};
use deploycore::memory::SwarmRegion;
use deploycore::model::{Digest, Manifest};
use deploycore::port::swarm::{Error, Fetch, FetchRequest, FetchSummary, Limits, Priority, SwarmStats};
use deploycore::port::{ArtifactStore, PeerSwarm};
use futures::FutureExt;

#[allow(clippy::unused_async, reason = "other regions have to be started")]
async fn regions() -> (Arc<dyn Regions>, impl Sized) {
    (Arc::new(InMemory(None)), ())
}

deploycore::swarm_conformance!(regions);

/// What a broken swarm does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// It says that it adjusted what it does not have.
    AdjustsAnything,
    /// It says that it is done when it has begun.
    EndsEarly,
    /// It begins each fetch anew.
    ForgetsPieces,
    /// It offers whatever it is given.
    SeedsUnverified,
    /// It goes on after it was told to leave.
    StaysWhenLeaving,
    /// It fetches the same artifact to two places.
    IgnoresConflicts,
    /// It keeps the finished file open.
    KeepsWriting,
}

#[derive(Debug)]
struct InMemory(Option<Fault>);

#[async_trait]
impl Regions for InMemory {
    async fn open(&self, store: Arc<dyn ArtifactStore>) -> Arc<dyn Region> {
        Arc::new(OneRegion(SwarmRegion::new(store), self.0))
    }
}

#[derive(Debug)]
struct OneRegion(SwarmRegion, Option<Fault>);

#[async_trait]
impl Region for OneRegion {
    async fn join(&self) -> Arc<dyn PeerSwarm> {
        let swarm = Arc::new(self.0.join());
        match self.1 {
            None => swarm,
            Some(fault) => Arc::new(Broken { swarm, fault }),
        }
    }
}

#[derive(Debug)]
struct Broken {
    swarm: Arc<dyn PeerSwarm>,
    fault: Fault,
}

#[async_trait]
impl PeerSwarm for Broken {
    async fn fetch(&self, request: FetchRequest) -> Result<Fetch, Error> {
        let (path, digest) = (request.destination.clone(), request.manifest.digest());
        match self.fault {
            Fault::ForgetsPieces => drop(std::fs::remove_file(&path)),
            Fault::IgnoresConflicts => self.swarm.leave(&digest).await?,
            _ => {}
        }
        let mut fetch = self.swarm.fetch(request).await?;
        match self.fault {
            Fault::EndsEarly => {
                std::fs::write(&path, []).unwrap();
                fetch.done = async { Ok(FetchSummary::default()) }.boxed();
            }
            Fault::KeepsWriting => {
                let done = fetch.done;
                let finished = async move {
                    let summary = done.await?;
                    std::mem::forget(std::fs::OpenOptions::new().append(true).open(path).unwrap());
                    Ok(summary)
                };
                fetch.done = finished.boxed();
            }
            _ => {}
        }
        Ok(fetch)
    }

    async fn seed(&self, manifest: Arc<Manifest>, file: PathBuf) -> Result<(), Error> {
        let seeded = self.swarm.seed(manifest, file).await;
        if self.fault == Fault::SeedsUnverified { Ok(()) } else { seeded }
    }

    async fn leave(&self, digest: &Digest) -> Result<(), Error> {
        if self.fault == Fault::StaysWhenLeaving { Ok(()) } else { self.swarm.leave(digest).await }
    }

    async fn adjust(&self, digest: &Digest, priority: Priority, limits: Limits) -> Result<(), Error> {
        let adjusted = self.swarm.adjust(digest, priority, limits).await;
        if self.fault == Fault::AdjustsAnything { Ok(()) } else { adjusted }
    }

    async fn limit(&self, limits: Limits) -> Result<(), Error> {
        self.swarm.limit(limits).await
    }

    async fn stats(&self) -> Result<SwarmStats, Error> {
        self.swarm.stats().await
    }
}

/// Time is paused, so that a case that waits for ever ends at once.
#[tokio::test(start_paused = true)]
async fn each_broken_swarm_fails_the_case_that_names_its_fault() {
    let expected = [
        (Fault::EndsEarly, "fetch::a_fetch_writes_exactly_the_bytes"),
        (Fault::ForgetsPieces, "resume::another_process_goes_on_from_what_is_on_disk"),
        (Fault::SeedsUnverified, "seed::a_damaged_file_is_refused"),
        (Fault::StaysWhenLeaving, "leave::leaving_stops_a_fetch"),
        (Fault::IgnoresConflicts, "fetch::a_second_fetch_to_another_place_is_a_conflict"),
        (Fault::AdjustsAnything, "adjust::what_is_not_here_cannot_be_adjusted"),
        (Fault::KeepsWriting, "fetch::nothing_holds_the_file_open_for_writing"),
    ];
    let cases = cases();
    for (fault, name) in expected {
        let case = cases.iter().find(|case| case.name == name).expect("the case exists");
        case.run(Arc::new(InMemory(None))).await.expect("a sound swarm passes");
        let outcome = case.run(Arc::new(InMemory(Some(fault)))).await;
        assert!(outcome.is_err(), "{name} does not see {fault:?}");
    }
}
