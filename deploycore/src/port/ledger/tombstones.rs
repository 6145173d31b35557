//! Tombstones: how artifacts are taken out of use for good before their bytes are deleted.
//!
//! Stores know bytes by their digest, and artifacts of several jobs may have one digest: so a tombstone is of a digest, and covers each
//! artifact that has it and was not collected before. It goes from marked to deleting to deleted; only the first may be lifted.
//!
//! [`pin`](super::ReplicationLedger::pin) and [`set`](Tombstones::set) each look at what the other writes and write in one transaction: of
//! the two at once, one is refused.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::time::Duration;

use async_trait::async_trait;

use super::{Error, MAX_BATCH, bounds};
use crate::model::{ArtifactStatus, CopyState, Digest, DigestTombstone, Timestamp, elapsed};

/// For how long nobody may have needed an artifact that is collected: neither registered nor pinned it.
pub type Idle = Duration;

/// The tombstones of a ledger. See the [module](crate::port) for clocks, repeating and cancel safety.
#[async_trait]
pub trait Tombstones: Send + Sync + Debug {
    /// Marks a digest if in the same transaction [nothing speaks against it](may_collect). From then on its artifacts are not pinned, their copies
    /// are not reopened. Idempotent: a digest that has a tombstone keeps it, with the reason and the instant of the first call.
    ///
    /// A reason past the [`bounds`] is cut.
    ///
    /// Errors: `InUse` with what speaks against it.
    async fn set(&self, digest: &Digest, idle: Idle, reason: &str) -> Result<(), Error>;

    /// Lifts a mark; `false` when there is none, or when bytes are being deleted already.
    async fn lift(&self, digest: &Digest) -> Result<bool, Error>;

    /// From now on bytes may be deleted: if the mark is at least `grace` old by the ledger's clock and, in the same transaction,
    /// [nothing speaks against it](may_collect) still. `false` when it is younger or there is none. Idempotent: `true` while bytes are being deleted.
    ///
    /// Errors: `InUse`; the mark stays, for its caller to lift.
    async fn begin_deletion(&self, digest: &Digest, idle: Idle, grace: Duration) -> Result<bool, Error>;

    /// No store has the bytes for the sake of the artifacts that the tombstone covers: they are deleted for good, and their copies are
    /// forgotten. Idempotent; nothing happens to a digest whose bytes are not being deleted.
    async fn end_deletion(&self, digest: &Digest) -> Result<(), Error>;

    /// At most `limit` (1 to [`MAX_BATCH`]) digests that are marked or whose bytes are being deleted, the longest so first.
    ///
    /// Errors: `Invalid` past the [`bounds`].
    async fn unfinished(&self, limit: usize) -> Result<Vec<DigestTombstone>, Error>;

    /// Those of `digests` (at most [`MAX_BATCH`]) that no artifact has, but for such as were collected: bytes that the ledger does not need.
    ///
    /// Errors: `Invalid` past the [`bounds`].
    async fn unneeded(&self, digests: &[Digest]) -> Result<BTreeSet<Digest>, Error>;
}

/// Whether the artifacts of a digest, all that were not collected before, may be collected: there is one, and none of them is pinned, was
/// registered or pinned within `idle`, or has a copy that is pending.
///
/// Errors: `InUse` with the first thing that speaks against it.
pub fn may_collect(digest: &Digest, artifacts: &[ArtifactStatus], idle: Idle, now: Timestamp) -> Result<(), Error> {
    let in_use = |why| Err(Error::InUse { digest: *digest, why });
    if artifacts.is_empty() {
        return in_use("the ledger has no artifact with these bytes".to_owned());
    }
    for status in artifacts {
        let name = &status.registered.artifact.name;
        if let Some(holder) = status.pins.first() {
            return in_use(format!("{name} is pinned by {holder}"));
        }
        if elapsed(status.last_needed_at(), now) < idle {
            return in_use(format!("{name} was registered or pinned within {idle:?}"));
        }
        let mut copies = status.copies.iter();
        if let Some((region, _)) = copies.find(|(_, copy)| copy.state == CopyState::Pending) {
            return in_use(format!("{name} is on its way to {region}"));
        }
    }
    Ok(())
}

/// Refuses a page of no digests or of too many.
pub fn check_unfinished(limit: usize) -> Result<(), Error> {
    if limit == 0 || limit > MAX_BATCH {
        return Err(Error::Invalid(format!("1 to {MAX_BATCH} digests, not {limit}")));
    }
    Ok(())
}

/// Refuses too many digests.
pub fn check_digests(digests: usize) -> Result<(), Error> {
    if digests > MAX_BATCH {
        return Err(Error::Invalid(format!("at most {MAX_BATCH} digests, not {digests}")));
    }
    Ok(())
}

/// A reason as it is kept.
pub fn cut_reason(reason: &str) -> &str {
    bounds::cut_reason(reason)
}
