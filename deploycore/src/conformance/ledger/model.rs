//! A random run against the backend and, step by step, against the reference in memory.
//!
//! The two have clocks of their own, so every lease and delay is either over at once or long, and instants are blanked before answers
//! are compared.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::Duration;

use fastrand::Rng;
use uuid::Uuid;

use super::steps::*;
use crate::memory;
use crate::model::{
    ArtifactName, ArtifactStatus, ClaimId, CopyLease, CopyPriority, CopyState, Digest, Epoch, NewArtifact, Timestamp,
    TombstoneStage,
};
use crate::port::ReplicationLedger;
use crate::port::ledger::{ClaimRequest, CopyRetry, Error, LedgerFilter, MAX_BATCH};

const SEEDS: [u64; 3] = [21, 22, 23];
const STEPS: usize = 200;
const REGIONS: [&str; 3] = ["eu", "us", "ap"];
const STAGES: [TombstoneStage; 3] = [TombstoneStage::Marked, TombstoneStage::Deleting, TombstoneStage::Deleted];

#[derive(Debug)]
enum Step {
    Register(NewArtifact),
    Unregistered(Vec<ArtifactName>),
    Claim(ClaimRequest),
    Progress(CopyLease, u64, Duration),
    Complete(CopyLease),
    Fail(CopyLease, &'static str, CopyRetry),
    Prioritize(ArtifactName, CopyPriority),
    Reopen(ArtifactName, &'static str, Epoch),
    Pin(ArtifactName, &'static str),
    Unpin(ArtifactName, &'static str),
    List(LedgerFilter),
    Collect(Digest, TombstoneStage),
    Lift(Digest),
}

/// What a run has at hand for its next step.
struct Run {
    random: Rng,
    seed: u64,
    registered: Vec<NewArtifact>,
    leases: Vec<CopyLease>,
    claims: Vec<ClaimId>,
}

/// Each answer, and each artifact, is as in the reference.
pub async fn a_random_run_is_as_in_the_reference(ledger: Subject) {
    let reference = memory::Ledger::default();
    for seed in SEEDS {
        let mut run = Run { random: Rng::with_seed(seed), seed, registered: vec![], leases: vec![], claims: vec![] };
        for index in 0..STEPS {
            let step = run.next_step();
            if ledger.tombstones().is_none() && matches!(step, Step::Collect(..) | Step::Lift(_)) {
                continue;
            }
            let context = || format!("seed {seed}, step {index}: {step:?}");
            let (wanted, leases) = take(&reference, &step).await;
            assert_eq!(take(ledger.as_ref(), &step).await.0, wanted, "{}", context());
            run.leases.extend(leases);
            match &step {
                Step::Register(artifact) => run.registered.push(artifact.clone()),
                Step::Claim(request) => run.claims.push(request.claim),
                _ => {}
            }
            if index % 10 == 0 || index == STEPS - 1 {
                for artifact in &run.registered {
                    let name = &artifact.artifact.name;
                    assert_eq!(look(ledger.as_ref(), name).await, look(&reference, name).await, "{}", context());
                }
            }
        }
    }
}

impl Run {
    fn next_step(&mut self) -> Step {
        match self.random.u8(..100) {
            0..15 => Step::Register(self.artifact()),
            15..18 => Step::Unregistered((0..self.random.usize(..4)).map(|_| self.name()).collect()),
            18..45 => Step::Claim(self.claim()),
            45..53 => Step::Progress(self.lease(), self.random.u64(..1000), self.lease_time()),
            53..70 => Step::Complete(self.lease()),
            70..77 => Step::Fail(self.lease(), self.pick(&["disk", "net"]), self.retry()),
            77..80 => Step::Prioritize(self.name(), self.pick(&CopyPriority::ALL)),
            80..87 => Step::Reopen(self.name(), self.pick(&REGIONS), Epoch::new(self.random.u64(1..4))),
            87..93 => Step::Pin(self.name(), self.pick(&["goal:web", "goal:api"])),
            93..95 => Step::Unpin(self.name(), self.pick(&["goal:web", "goal:api"])),
            95..97 => Step::Collect(Digest::of(self.name().as_str().as_bytes()), self.pick(&STAGES)),
            97..98 => Step::Lift(Digest::of(self.name().as_str().as_bytes())),
            _ => Step::List(self.filter()),
        }
    }

    fn pick<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.random.usize(..choices.len())].clone()
    }

    /// Names rise, so that the order of artifacts does not hang on the grain of a clock.
    fn artifact(&mut self) -> NewArtifact {
        if self.random.u8(..4) == 0 && !self.registered.is_empty() {
            let mut old = self.pick(&self.registered.clone());
            old.artifact.size += u64::from(self.random.u8(..4) == 0);
            return old;
        }
        let regions: Vec<_> = REGIONS.into_iter().filter(|_| self.random.u8(..3) > 0).collect();
        let mut new = artifact(&format!("web-{}-{:04}", self.seed, self.registered.len()), &regions);
        new.job = Uuid::from_u128(self.random.u128(..)).into();
        new.priority = self.pick(&[CopyPriority::Normal, CopyPriority::Normal, CopyPriority::Emergency]);
        new.service = self.pick(&["web", "api"]).parse().expect("a name");
        new
    }

    fn name(&mut self) -> ArtifactName {
        let known: Vec<_> = self.registered.iter().map(|artifact| artifact.artifact.name.clone()).collect();
        if known.is_empty() || self.random.u8(..20) == 0 { name("nobody") } else { self.pick(&known) }
    }

    fn claim(&mut self) -> ClaimRequest {
        let fresh = ClaimId::from(Uuid::from_u128(self.random.u128(..)));
        let repeat = self.random.u8(..4) == 0 && !self.claims.is_empty();
        let claim = if repeat { self.pick(&self.claims.clone()) } else { fresh };
        ClaimRequest {
            claim,
            region: region(self.pick(&REGIONS)),
            lease: self.lease_time(),
            limit: self.random.usize(1..4),
            least: self.pick(&[CopyPriority::Normal, CopyPriority::Normal, CopyPriority::Emergency]),
        }
    }

    /// One of the leases there ever were, mostly a recent one, now and then a forged one.
    fn lease(&mut self) -> CopyLease {
        let recent = self.leases.len().saturating_sub(self.random.usize(1..12));
        let forged = CopyLease {
            artifact: self.name(),
            region: region(self.pick(&REGIONS)),
            claim: ClaimId::from(Uuid::from_u128(self.random.u128(..))),
            epoch: Epoch::new(self.random.u64(..3)),
        };
        match self.leases.get(recent).cloned() {
            Some(lease) if self.random.u8(..10) == 0 => CopyLease { epoch: lease.epoch.next(), ..lease },
            Some(lease) => lease,
            None => forged,
        }
    }

    fn lease_time(&mut self) -> Duration {
        self.pick(&[Duration::ZERO, HOUR, HOUR])
    }

    fn retry(&mut self) -> CopyRetry {
        self.pick(&[CopyRetry::After(Duration::ZERO), CopyRetry::After(HOUR), CopyRetry::GiveUp])
    }

    fn filter(&mut self) -> LedgerFilter {
        let state = self.pick(&[CopyState::Pending, CopyState::Complete, CopyState::Failed]);
        let copy = self.pick(&[None, Some((region("eu"), state))]);
        let service = self.pick(&[None, Some("api")]).map(|name| name.parse().expect("a name"));
        LedgerFilter { service, copy, pinned_by: self.pick(&[None, Some("goal:web")]).map(holder) }
    }
}

/// Takes a step; the answer as text, without instants, and the leases that it gave.
async fn take(ledger: &dyn ReplicationLedger, step: &Step) -> (String, Vec<CopyLease>) {
    let mut leases = Vec::new();
    let answer = match step {
        Step::Register(artifact) => text(ledger.register(artifact).await),
        Step::Unregistered(names) => text(ledger.unregistered(names).await),
        Step::Claim(request) => text(ledger.claim(request).await.inspect(|tasks| {
            leases.extend(tasks.iter().map(|task| task.lease.clone()));
        })),
        Step::Progress(lease, bytes, extend) => text(ledger.progress(lease, *bytes, *extend).await),
        Step::Complete(lease) => text(ledger.complete(lease).await),
        Step::Fail(lease, reason, retry) => text(ledger.fail(lease, reason, *retry).await),
        Step::Prioritize(artifact, priority) => text(ledger.prioritize(artifact, *priority).await),
        Step::Reopen(artifact, to, seen) => text(ledger.reopen(artifact, &region(to), *seen, "gone").await),
        Step::Pin(artifact, pin) => text(ledger.pin(artifact, &holder(pin), &[].into()).await),
        Step::Unpin(artifact, pin) => text(ledger.unpin(artifact, &holder(pin)).await),
        Step::Collect(digest, stage) => collect(ledger, digest, *stage).await,
        Step::Lift(digest) => match ledger.tombstones() {
            Some(tombstones) => text(tombstones.lift(digest).await),
            None => String::new(),
        },
        Step::List(filter) => text(
            ledger
                .list(filter, None, MAX_BATCH)
                .await
                .map(|page| (page.artifacts.into_iter().map(blank).collect::<Vec<_>>(), page.next.is_some())),
        ),
    };
    (answer, leases)
}

/// The next step of a collection.
async fn collect(ledger: &dyn ReplicationLedger, digest: &Digest, stage: TombstoneStage) -> String {
    let Some(tombstones) = ledger.tombstones() else { return String::new() };
    match stage {
        TombstoneStage::Marked => text(tombstones.set(digest, Duration::ZERO, "old").await),
        TombstoneStage::Deleting => text(tombstones.begin_deletion(digest, Duration::ZERO, Duration::ZERO).await),
        TombstoneStage::Deleted => text(tombstones.end_deletion(digest).await),
    }
}

async fn look(ledger: &dyn ReplicationLedger, artifact: &ArtifactName) -> String {
    format!("{:#?}", ledger.status(artifact).await.expect("a read").map(blank))
}

fn text<T: Debug>(answer: Result<T, Error>) -> String {
    match answer {
        Ok(value) => format!("{value:#?}"),
        Err(Error::Invalid(_)) => "Invalid".to_owned(),
        Err(Error::Collected { artifact, tombstone }) => format!("Collected {artifact} {:?}", tombstone.stage),
        Err(Error::Backend(error)) => panic!("the backend failed: {}", crate::port::chain(&error)),
        Err(error) => format!("{error:?}"),
    }
}

fn blank(mut status: ArtifactStatus) -> ArtifactStatus {
    status.registered_at = Timestamp::UNIX_EPOCH;
    status.last_pinned_at = status.last_pinned_at.map(|_| Timestamp::UNIX_EPOCH);
    if let Some(tombstone) = &mut status.tombstone {
        tombstone.since = Timestamp::UNIX_EPOCH;
    }
    let copies = status.copies.into_iter().map(|(to, mut copy)| {
        copy.eligible_at = Timestamp::UNIX_EPOCH;
        copy.updated_at = Timestamp::UNIX_EPOCH;
        copy.pending_since = Timestamp::UNIX_EPOCH;
        copy.leased_until = copy.leased_until.map(|_| Timestamp::UNIX_EPOCH);
        copy.completed_at = copy.completed_at.map(|_| Timestamp::UNIX_EPOCH);
        (to, copy)
    });
    status.copies = copies.collect::<BTreeMap<_, _>>();
    status
}
