//! What becomes of a copy: the decisions that every backend must make alike, as pure functions on one copy.
//!
//! A backend finds the copy, calls one of these under its lock or in its transaction, and writes what came out. `now` is the backend's
//! clock.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{ClaimRequest, CopyRetry, Error, bounds};
use crate::model::{
    ArtifactStatus, ClaimId, CopyLease, CopyPriority, CopyState, CopyStatus, Epoch, RegionName, Timestamp, later,
};

/// A copy as a backend keeps it: what everyone sees, and the newest claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyRow {
    /// What everyone sees.
    pub status: CopyStatus,
    /// The claim that took the copy last. It stays when the attempt ends, so that a repeated call is known as one.
    pub claim: Option<ClaimId>,
}

/// The copy of an artifact that was registered just now.
pub fn register(priority: CopyPriority, now: Timestamp) -> CopyRow {
    let status = CopyStatus {
        state: CopyState::Pending,
        priority,
        pending_since: now,
        epoch: Epoch::ZERO,
        attempts: 0,
        bytes: 0,
        eligible_at: now,
        leased_until: None,
        updated_at: now,
        completed_at: None,
        last_error: None,
    };
    CopyRow { status, claim: None }
}

/// Whether a claim may take the copy: pending, its delay passed, no live lease on it, and as urgent as the claim wants.
pub fn is_claimable(copy: &CopyRow, request: &ClaimRequest, now: Timestamp) -> bool {
    let CopyStatus { state, priority, eligible_at, .. } = copy.status;
    state == CopyState::Pending && priority >= request.least && eligible_at <= now && !is_leased(copy, now)
}

/// Makes a copy at least so urgent; whether that changed it.
pub fn prioritize(copy: &mut CopyRow, priority: CopyPriority) -> bool {
    let is_raised = copy.status.priority < priority;
    copy.status.priority = copy.status.priority.max(priority);
    is_raised
}

/// Whether the lease of the newest claim is live.
pub fn is_leased(copy: &CopyRow, now: Timestamp) -> bool {
    copy.status.leased_until.is_some_and(|until| until > now)
}

/// Starts the next attempt at a claimable copy.
pub fn claim(copy: &mut CopyRow, request: &ClaimRequest, now: Timestamp) {
    debug_assert!(is_claimable(copy, request, now), "the backend picks among the claimable");
    copy.claim = Some(request.claim);
    copy.status.epoch = copy.status.epoch.next();
    copy.status.attempts = copy.status.attempts.saturating_add(1);
    copy.status.leased_until = Some(later(now, request.lease));
    copy.status.updated_at = now;
}

/// Takes a report of `bytes` out of `size`; how urgent the copy is by now.
///
/// Errors: `LeaseLost`.
pub fn progress(
    copy: &mut CopyRow,
    lease: &CopyLease,
    bytes: u64,
    size: u64,
    extend: Duration,
    now: Timestamp,
) -> Result<CopyPriority, Error> {
    if !is_running_under(copy, lease) {
        return Err(lost(lease));
    }
    copy.status.bytes = bytes.min(size);
    copy.status.leased_until = Some(later(now, extend));
    copy.status.updated_at = now;
    Ok(copy.status.priority)
}

/// Ends the attempt well. A repeated call leaves the copy unchanged.
///
/// Errors: `LeaseLost`.
pub fn complete(copy: &mut CopyRow, lease: &CopyLease, size: u64, now: Timestamp) -> Result<(), Error> {
    if is_newest(copy, lease) && copy.status.state == CopyState::Complete {
        return Ok(());
    }
    if !is_running_under(copy, lease) {
        return Err(lost(lease));
    }
    copy.status.state = CopyState::Complete;
    copy.status.bytes = size;
    copy.status.leased_until = None;
    copy.status.updated_at = now;
    copy.status.completed_at = Some(now);
    Ok(())
}

/// Ends the attempt badly. A repeated call leaves the copy unchanged.
///
/// Errors: `LeaseLost`.
pub fn fail(
    copy: &mut CopyRow,
    lease: &CopyLease,
    reason: &str,
    retry: CopyRetry,
    now: Timestamp,
) -> Result<(), Error> {
    if is_newest(copy, lease) && copy.status.state != CopyState::Complete && copy.status.leased_until.is_none() {
        return Ok(());
    }
    if !is_running_under(copy, lease) {
        return Err(lost(lease));
    }
    match retry {
        CopyRetry::After(delay) => copy.status.eligible_at = later(now, delay.min(bounds::MAX_LEASE)),
        CopyRetry::GiveUp => copy.status.state = CopyState::Failed,
    }
    copy.status.leased_until = None;
    copy.status.updated_at = now;
    copy.status.last_error = Some(bounds::cut_reason(reason).to_owned());
    Ok(())
}

/// Makes a complete or failed copy pending again if it is still as it was `seen`; whether it did.
pub fn reopen(copy: &mut CopyRow, seen: Epoch, reason: &str, now: Timestamp) -> bool {
    if copy.status.state == CopyState::Pending || copy.status.epoch != seen {
        return false;
    }
    copy.status = CopyStatus {
        epoch: seen.next(),
        last_error: Some(bounds::cut_reason(reason).to_owned()),
        ..register(copy.status.priority, now).status
    };
    true
}

/// The gate of deployments: an artifact passes when it is complete in each required region that is not `waived`. Whoever waives all of them
/// waives none.
///
/// Errors: `Collected` when it has a tombstone; `NotDeployable` with the regions that are missing.
pub fn gate(status: &ArtifactStatus, waived: &BTreeSet<RegionName>) -> Result<(), Error> {
    if let Some(tombstone) = &status.tombstone {
        let artifact = status.registered.artifact.name.clone();
        return Err(Error::Collected { artifact, tombstone: tombstone.clone() });
    }
    let waives_all = status.copies.keys().all(|region| waived.contains(region));
    let mut missing = status.missing();
    if !waives_all {
        missing.retain(|region, _| !waived.contains(region));
    }
    if missing.is_empty() && !status.copies.is_empty() {
        return Ok(());
    }
    Err(Error::NotDeployable { artifact: status.registered.artifact.name.clone(), missing })
}

/// Whether the holder of a lease may use the copy's journal.
///
/// Errors: `LeaseLost`.
pub fn journal(copy: &CopyRow, lease: &CopyLease) -> Result<(), Error> {
    if is_running_under(copy, lease) { Ok(()) } else { Err(lost(lease)) }
}

/// What a part without an upload is told.
pub fn no_upload(lease: &CopyLease) -> Error {
    Error::Invalid(format!("the copy of {} to {} has no upload in the journal", lease.artifact, lease.region))
}

fn is_newest(copy: &CopyRow, lease: &CopyLease) -> bool {
    copy.claim == Some(lease.claim) && copy.status.epoch == lease.epoch
}

fn is_running_under(copy: &CopyRow, lease: &CopyLease) -> bool {
    is_newest(copy, lease) && copy.status.state == CopyState::Pending && copy.status.leased_until.is_some()
}

fn lost(lease: &CopyLease) -> Error {
    Error::LeaseLost { artifact: lease.artifact.clone(), region: lease.region.clone() }
}
