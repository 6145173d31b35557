//! The memory ledger behind a door with one fault.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use deploycore::conformance::ledger::cases;
use deploycore::memory::Ledger;
use deploycore::model::{
    ArtifactName, ArtifactStatus, ClaimId, CopyLease, CopyPriority, CopyTask, Digest, DigestTombstone, Epoch,
    FiguresRequest, NewArtifact, PinHolder, RegionName, ReplicationFigures,
};
use deploycore::port::ReplicationLedger;
use deploycore::port::ledger::{
    ClaimRequest, CopyJournal, CopyRetry, Error, JournaledUpload, LedgerCursor, LedgerFilter, LedgerPage, Registered,
    Tombstones,
};
use deploycore::port::store::{PartTag, UploadId};

use crate::{assert_all_pass, assert_caught, assert_pass_elsewhere};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    RegisterIgnoresTheBody,
    RegisterRefusesRepeats,
    ClaimIsNotIdempotent,
    ClaimLeasesTooLate,
    StaleLeaseCompletes,
    NoEpochGuard,
    NoClaimGuard,
    CompleteRefusesRepeats,
    GivingUpIsForgotten,
    ReopenIgnoresWhatWasSeen,
    PinWithoutCheck,
    PinChecksBeforeItPins,
    PinKnowsNoWaivers,
    PinLetsAllBeWaived,
    JournalTakesStaleLeases,
    JournalIsTheAttempts,
    AddedPartsReplaceOthers,
    TheFirstTagStays,
    ANewUploadKeepsParts,
    ClearingIsForgotten,
    CompletingKeepsTheUpload,
    ClaimTakesWhatIsLessUrgent,
    RaisesAreForgotten,
    FiguresIgnoreTheWindow,
    MarksAnything,
    MarksInTwoSteps,
    PinsUnderATombstone,
    DeletesAtOnce,
    LiftsWhatIsBeingDeleted,
    ReopensUnderATombstone,
    RegistersWhileDeleting,
    NeedsWhatWasCollected,
}

/// Each fault with the cases that must catch it.
const CONTROLS: &[(Fault, &[&str])] = &[
    (Fault::RegisterIgnoresTheBody, &["register::another_body_is_a_conflict"]),
    (
        Fault::RegisterRefusesRepeats,
        &["register::repeating_changes_nothing", "register::concurrent_repeats_register_once"],
    ),
    (Fault::ClaimIsNotIdempotent, &["copy::repeating_gives_only_copies_whose_lease_holds"]),
    (Fault::ClaimLeasesTooLate, &["copy::claims_at_once_share_no_copy"]),
    (
        Fault::StaleLeaseCompletes,
        &[
            "copy::a_lease_that_ran_out_gives_way",
            "copy::attempts_and_epochs_grow",
            "model::a_random_run_is_as_in_the_reference",
        ],
    ),
    (Fault::NoEpochGuard, &["copy::a_forged_lease_is_refused"]),
    (Fault::NoClaimGuard, &["copy::a_forged_lease_is_refused"]),
    (Fault::CompleteRefusesRepeats, &["copy::a_complete_copy_stays_complete"]),
    (Fault::GivingUpIsForgotten, &["copy::a_copy_may_be_given_up"]),
    (Fault::ReopenIgnoresWhatWasSeen, &["pin::a_reopening_of_what_moved_on_does_nothing"]),
    (Fault::PinWithoutCheck, &["pin::a_pin_wants_every_region"]),
    (Fault::PinChecksBeforeItPins, &["pin::a_pin_is_decided_in_one_step"]),
    (Fault::PinKnowsNoWaivers, &["pin::a_pin_may_do_without_waived_regions_but_not_without_all"]),
    (Fault::PinLetsAllBeWaived, &["pin::a_pin_may_do_without_waived_regions_but_not_without_all"]),
    (Fault::JournalTakesStaleLeases, &["journal::a_lost_lease_changes_nothing"]),
    (Fault::JournalIsTheAttempts, &["journal::the_next_claim_finds_the_upload"]),
    (Fault::AddedPartsReplaceOthers, &["journal::parts_add_up"]),
    (Fault::TheFirstTagStays, &["journal::parts_add_up"]),
    (Fault::ANewUploadKeepsParts, &["journal::a_new_upload_takes_the_place_of_the_old"]),
    (Fault::ClearingIsForgotten, &["journal::a_cleared_upload_is_gone"]),
    (Fault::CompletingKeepsTheUpload, &["journal::a_complete_copy_has_no_upload"]),
    (Fault::ClaimTakesWhatIsLessUrgent, &["priority::a_claim_may_leave_what_is_less_urgent"]),
    (
        Fault::RaisesAreForgotten,
        &["priority::a_copy_is_made_more_urgent_and_never_less", "priority::a_raise_keeps_all_else"],
    ),
    (Fault::FiguresIgnoreTheWindow, &["figures::an_idle_region_has_no_figures"]),
    (
        Fault::MarksAnything,
        &[
            "tombstones::what_is_in_use_is_not_collected",
            "tombstones::all_artifacts_of_a_digest_are_collected_together",
        ],
    ),
    (Fault::MarksInTwoSteps, &["tombstones::a_pin_and_a_mark_exclude_each_other"]),
    (Fault::PinsUnderATombstone, &["tombstones::a_collected_artifact_is_not_deployed_any_more"]),
    (Fault::DeletesAtOnce, &["tombstones::what_is_in_use_is_not_collected"]),
    (Fault::LiftsWhatIsBeingDeleted, &["tombstones::a_collected_artifact_is_not_deployed_any_more"]),
    (Fault::ReopensUnderATombstone, &["tombstones::nothing_is_copied_under_a_tombstone"]),
    (
        Fault::RegistersWhileDeleting,
        &[
            "tombstones::bytes_that_are_built_anew_are_kept",
            "tombstones::a_registration_and_a_deletion_do_not_both_begin",
        ],
    ),
    (Fault::NeedsWhatWasCollected, &["tombstones::bytes_that_no_artifact_has_are_told"]),
];

#[tokio::test(start_paused = true)]
async fn without_a_fault_every_case_passes() {
    assert_all_pass(&cases(), || Broken::make(Fault::None)).await;
}

#[tokio::test(start_paused = true)]
async fn each_fault_fails_the_cases_that_are_about_it() {
    assert_caught(&cases(), CONTROLS, Broken::make).await;
}

#[tokio::test(start_paused = true)]
async fn each_fault_passes_what_is_about_something_else() {
    let elsewhere = [
        "register::a_new_artifact_is_pending_everywhere",
        "copy::copies_come_oldest_first",
        "pin::pins_are_kept_by_holder",
    ];
    assert_pass_elsewhere(&cases(), CONTROLS, &elsewhere, Broken::make).await;
}

#[derive(Debug)]
struct Broken {
    fault: Fault,
    inner: Ledger,
    door: Mutex<Door>,
}

/// What the door knows of those behind it.
#[derive(Debug, Default)]
struct Door {
    /// The newest lease of each copy, as the ledger behind knows it and as it was handed out.
    leases: BTreeMap<(ArtifactName, RegionName), (CopyLease, CopyLease)>,
    completed: Vec<CopyLease>,
    /// Uploads that the ledger behind would have forgotten.
    kept: BTreeMap<(ArtifactName, RegionName), JournaledUpload>,
    /// Pins that the ledger behind would have refused.
    pins: BTreeMap<ArtifactName, BTreeSet<PinHolder>>,
}

impl Broken {
    fn make(fault: Fault) -> Arc<dyn ReplicationLedger> {
        Arc::new(Self { fault, inner: Ledger::default(), door: Mutex::default() })
    }

    fn is(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    fn door(&self) -> MutexGuard<'_, Door> {
        self.door.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lease that is checked in place of the given one.
    fn guarded(&self, lease: &CopyLease) -> CopyLease {
        let door = self.door();
        let Some((known, given)) = door.leases.get(&(lease.artifact.clone(), lease.region.clone())) else {
            return lease.clone();
        };
        let passes = match self.fault {
            Fault::StaleLeaseCompletes => true,
            Fault::NoEpochGuard => lease.claim == given.claim,
            Fault::NoClaimGuard => lease.epoch == given.epoch,
            _ => lease == given,
        };
        if passes { known.clone() } else { lease.clone() }
    }

    fn with_pins(&self, mut status: ArtifactStatus) -> ArtifactStatus {
        let name = &status.registered.artifact.name;
        status.pins.extend(self.door().pins.get(name).into_iter().flatten().cloned());
        status
    }
}

#[async_trait]
impl ReplicationLedger for Broken {
    async fn register(&self, artifact: &NewArtifact) -> Result<Registered, Error> {
        match self.inner.register(artifact).await {
            Err(Error::Conflict { .. }) if self.is(Fault::RegisterIgnoresTheBody) => Ok(Registered::Repeated),
            Err(Error::BeingDeleted { .. }) if self.is(Fault::RegistersWhileDeleting) => Ok(Registered::Created),
            Ok(Registered::Repeated) if self.is(Fault::RegisterRefusesRepeats) => {
                Err(Error::Conflict { artifact: artifact.artifact.name.clone() })
            }
            answer => answer,
        }
    }

    async fn unregistered(&self, names: &[ArtifactName]) -> Result<BTreeSet<ArtifactName>, Error> {
        self.inner.unregistered(names).await
    }

    async fn claim(&self, request: &ClaimRequest) -> Result<Vec<CopyTask>, Error> {
        let mut behind = request.clone();
        if self.is(Fault::ClaimIsNotIdempotent) {
            behind.claim = ClaimId::new();
        }
        if self.is(Fault::ClaimTakesWhatIsLessUrgent) {
            behind.least = CopyPriority::Normal;
        }
        if self.is(Fault::ClaimLeasesTooLate) {
            behind.lease = Duration::ZERO;
        }
        let mut tasks = self.inner.claim(&behind).await?;
        for task in &mut tasks {
            let known = task.lease.clone();
            task.lease.claim = request.claim;
            let copy = (known.artifact.clone(), known.region.clone());
            self.door().leases.insert(copy, (known, task.lease.clone()));
        }
        if self.is(Fault::ClaimLeasesTooLate) {
            tokio::task::yield_now().await;
            for task in &tasks {
                // Who lost the copy meanwhile does not notice.
                self.inner.progress(&task.lease, 0, request.lease).await.ok();
            }
        }
        Ok(tasks)
    }

    async fn progress(&self, lease: &CopyLease, bytes: u64, extend: Duration) -> Result<CopyPriority, Error> {
        self.inner.progress(&self.guarded(lease), bytes, extend).await
    }

    async fn complete(&self, lease: &CopyLease) -> Result<(), Error> {
        if self.is(Fault::CompleteRefusesRepeats) && self.door().completed.contains(lease) {
            return Err(Error::LeaseLost { artifact: lease.artifact.clone(), region: lease.region.clone() });
        }
        if self.is(Fault::CompletingKeepsTheUpload)
            && let Ok(Some(upload)) = self.inner.upload(&self.guarded(lease)).await
        {
            self.door().kept.insert((lease.artifact.clone(), lease.region.clone()), upload);
        }
        self.inner.complete(&self.guarded(lease)).await?;
        self.door().completed.push(lease.clone());
        Ok(())
    }

    async fn fail(&self, lease: &CopyLease, reason: &str, retry: CopyRetry) -> Result<(), Error> {
        let retry = if self.is(Fault::GivingUpIsForgotten) { CopyRetry::After(Duration::ZERO) } else { retry };
        self.inner.fail(&self.guarded(lease), reason, retry).await
    }

    async fn prioritize(&self, artifact: &ArtifactName, priority: CopyPriority) -> Result<usize, Error> {
        let priority = if self.is(Fault::RaisesAreForgotten) { CopyPriority::Normal } else { priority };
        self.inner.prioritize(artifact, priority).await
    }

    async fn reopen(
        &self,
        artifact: &ArtifactName,
        region: &RegionName,
        seen: Epoch,
        reason: &str,
    ) -> Result<bool, Error> {
        let status = self.inner.status(artifact).await?;
        if self.is(Fault::ReopensUnderATombstone) && status.as_ref().is_some_and(|status| status.tombstone.is_some()) {
            return Ok(true);
        }
        let now = status.and_then(|status| status.copies.get(region).map(|copy| copy.epoch));
        let seen = now.filter(|_| self.is(Fault::ReopenIgnoresWhatWasSeen)).unwrap_or(seen);
        self.inner.reopen(artifact, region, seen, reason).await
    }

    async fn status(&self, artifact: &ArtifactName) -> Result<Option<ArtifactStatus>, Error> {
        Ok(self.inner.status(artifact).await?.map(|status| self.with_pins(status)))
    }

    async fn list(
        &self,
        filter: &LedgerFilter,
        after: Option<&LedgerCursor>,
        limit: usize,
    ) -> Result<LedgerPage, Error> {
        let mut page = self.inner.list(filter, after, limit).await?;
        page.artifacts = page.artifacts.into_iter().map(|status| self.with_pins(status)).collect();
        Ok(page)
    }

    async fn figures(&self, request: &FiguresRequest) -> Result<BTreeMap<RegionName, ReplicationFigures>, Error> {
        let window = if self.is(Fault::FiguresIgnoreTheWindow) { Duration::from_hours(1) } else { request.window };
        self.inner.figures(&FiguresRequest { window, ..*request }).await
    }

    async fn pin(
        &self,
        artifact: &ArtifactName,
        holder: &PinHolder,
        waived: &BTreeSet<RegionName>,
    ) -> Result<(), Error> {
        let status = self.inner.status(artifact).await?;
        let status = status.ok_or_else(|| Error::NotFound { artifact: artifact.clone() })?;
        match self.fault {
            Fault::PinWithoutCheck => {}
            Fault::PinsUnderATombstone if status.tombstone.is_some() => {}
            Fault::PinChecksBeforeItPins if status.is_deployable() => tokio::task::yield_now().await,
            Fault::PinKnowsNoWaivers => return self.inner.pin(artifact, holder, &BTreeSet::new()).await,
            Fault::PinLetsAllBeWaived if status.copies.keys().all(|region| waived.contains(region)) => {}
            _ => return self.inner.pin(artifact, holder, waived).await,
        }
        self.door().pins.entry(artifact.clone()).or_default().insert(holder.clone());
        Ok(())
    }

    async fn unpin(&self, artifact: &ArtifactName, holder: &PinHolder) -> Result<(), Error> {
        if let Some(pins) = self.door().pins.get_mut(artifact) {
            pins.remove(holder);
        }
        self.inner.unpin(artifact, holder).await
    }

    fn journal(&self) -> Option<&dyn CopyJournal> {
        Some(self)
    }

    fn tombstones(&self) -> Option<&dyn Tombstones> {
        Some(self)
    }
}

#[async_trait]
impl Tombstones for Broken {
    async fn set(&self, digest: &Digest, idle: Duration, reason: &str) -> Result<(), Error> {
        match self.inner.set(digest, idle, reason).await {
            Err(Error::InUse { .. }) if self.is(Fault::MarksAnything) => Ok(()),
            Ok(()) if self.is(Fault::MarksInTwoSteps) => {
                self.inner.lift(digest).await?;
                tokio::task::yield_now().await;
                // What was pinned meanwhile is not looked at.
                self.inner.set(digest, idle, reason).await.ok();
                Ok(())
            }
            answer => answer,
        }
    }

    async fn lift(&self, digest: &Digest) -> Result<bool, Error> {
        let is_known = self.inner.unfinished(1).await?.iter().any(|one| one.digest == *digest);
        let is_lifted = self.inner.lift(digest).await?;
        Ok(is_lifted || (is_known && self.is(Fault::LiftsWhatIsBeingDeleted)))
    }

    async fn begin_deletion(&self, digest: &Digest, idle: Duration, grace: Duration) -> Result<bool, Error> {
        let (idle, grace) =
            if self.is(Fault::DeletesAtOnce) { (Duration::ZERO, Duration::ZERO) } else { (idle, grace) };
        self.inner.begin_deletion(digest, idle, grace).await
    }

    async fn end_deletion(&self, digest: &Digest) -> Result<(), Error> {
        self.inner.end_deletion(digest).await
    }

    async fn unfinished(&self, limit: usize) -> Result<Vec<DigestTombstone>, Error> {
        self.inner.unfinished(limit).await
    }

    async fn unneeded(&self, digests: &[Digest]) -> Result<BTreeSet<Digest>, Error> {
        let mut unneeded = self.inner.unneeded(digests).await?;
        if self.is(Fault::NeedsWhatWasCollected) {
            let page = self.inner.list(&LedgerFilter::default(), None, 100).await?;
            let known: BTreeSet<_> = page.artifacts.iter().map(|status| status.registered.artifact.digest).collect();
            unneeded.retain(|digest| !known.contains(digest));
        }
        Ok(unneeded)
    }
}

impl Broken {
    /// The newest lease of the copy, whoever asks.
    fn current(&self, lease: &CopyLease) -> CopyLease {
        let door = self.door();
        match door.leases.get(&(lease.artifact.clone(), lease.region.clone())) {
            Some((known, _)) if self.is(Fault::JournalTakesStaleLeases) => known.clone(),
            _ => {
                drop(door);
                self.guarded(lease)
            }
        }
    }

    async fn parts(&self, lease: &CopyLease) -> Result<BTreeMap<u32, PartTag>, Error> {
        Ok(self.inner.upload(lease).await?.map(|upload| upload.parts).unwrap_or_default())
    }
}

#[async_trait]
impl CopyJournal for Broken {
    async fn upload(&self, lease: &CopyLease) -> Result<Option<JournaledUpload>, Error> {
        let upload = self.inner.upload(&self.current(lease)).await?;
        let kept = self.door().kept.get(&(lease.artifact.clone(), lease.region.clone())).cloned();
        let upload = upload.or(kept);
        Ok(upload.filter(|_| !self.is(Fault::JournalIsTheAttempts) || lease.epoch == Epoch::new(1)))
    }

    async fn begin(&self, lease: &CopyLease, upload: &UploadId, part_size: u64) -> Result<(), Error> {
        let lease = self.current(lease);
        let before: Vec<_> = self.parts(&lease).await?.into_iter().collect();
        self.inner.begin(&lease, upload, part_size).await?;
        if self.is(Fault::ANewUploadKeepsParts) && !before.is_empty() {
            self.inner.add(&lease, &before).await?;
        }
        Ok(())
    }

    async fn add(&self, lease: &CopyLease, parts: &[(u32, PartTag)]) -> Result<(), Error> {
        let (lease, mut parts) = (self.current(lease), parts.to_vec());
        if self.is(Fault::TheFirstTagStays) {
            parts.extend(self.parts(&lease).await?);
        }
        if self.is(Fault::AddedPartsReplaceOthers)
            && let Some(upload) = self.inner.upload(&lease).await?
        {
            self.inner.begin(&lease, &upload.upload, upload.part_size).await?;
        }
        self.inner.add(&lease, &parts).await
    }

    async fn clear(&self, lease: &CopyLease) -> Result<(), Error> {
        let lease = self.current(lease);
        if self.is(Fault::ClearingIsForgotten) { Ok(()) } else { self.inner.clear(&lease).await }
    }
}
