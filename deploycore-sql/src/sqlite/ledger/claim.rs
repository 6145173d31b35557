//! Handing out copies to be made.

use deploycore::model::{ArtifactName, ArtifactRef, CopyLease, CopyTask, RegionName};
use deploycore::port::BackendError;
use deploycore::port::ledger::ClaimRequest;
use deploycore::port::ledger::transition::{self, CopyRow};
use sqlx::sqlite::SqliteRow;

use super::{count_expired, count_taken, row};
use crate::columns::{Columns, copy_columns};
use crate::sqlite::database::{Moment, failed};
use crate::stored;

pub(super) async fn claim(moment: &mut Moment, request: &ClaimRequest) -> Result<Vec<CopyTask>, BackendError> {
    let known = taken(moment, request).await?;
    if !known.is_empty() {
        let now = moment.now;
        let held = known.into_iter().filter(|candidate| transition::is_leased(&candidate.copy, now));
        return Ok(held.filter_map(|candidate| candidate.task(&request.region)).collect());
    }
    let mut tasks = Vec::new();
    let mut expired = 0;
    for Candidate { artifact, copy: before } in claimable(moment, request).await? {
        expired += usize::from(before.status.leased_until.is_some());
        let mut copy = before.clone();
        transition::claim(&mut copy, request, moment.now);
        row::update(moment.connection(), &artifact.name, &request.region, &before, &copy).await?;
        tasks.extend(Candidate { artifact, copy }.task(&request.region));
    }
    count_taken(&tasks);
    count_expired(expired);
    Ok(tasks)
}

/// A copy to a region, with its artifact.
struct Candidate {
    artifact: ArtifactRef,
    copy: CopyRow,
}

impl Candidate {
    fn read(row: &SqliteRow) -> Result<Self, BackendError> {
        let columns = Columns(row);
        let artifact = ArtifactRef {
            name: columns.parse::<ArtifactName>("artifact")?,
            digest: columns.parse("digest")?,
            size: columns.number("size")?,
        };
        Ok(Self { artifact, copy: Columns(row).copy()? })
    }

    /// `None` for a copy that nobody claimed.
    fn task(self, region: &RegionName) -> Option<CopyTask> {
        let Self { artifact, copy } = self;
        let (claim, epoch) = (copy.claim?, copy.status.epoch);
        let lease = CopyLease { artifact: artifact.name.clone(), region: region.clone(), claim, epoch };
        Some(CopyTask { lease, artifact, attempt: copy.status.attempts, priority: copy.status.priority })
    }
}

/// The copies that this claim took last, whether their attempt still runs or not.
async fn taken(moment: &mut Moment, request: &ClaimRequest) -> Result<Vec<Candidate>, BackendError> {
    const TAKEN: &str = concat!(
        "SELECT ",
        copy_columns!(),
        ", a.digest, a.size FROM copies c CROSS JOIN artifacts a ON a.name = c.artifact
        WHERE c.claim_id = ?1 AND c.region = ?2
        ORDER BY c.precedence, c.registered_at, c.artifact"
    );
    let query = sqlx::query(TAKEN).bind(request.claim.to_string()).bind(request.region.as_str());
    let rows = query.fetch_all(moment.connection()).await.map_err(failed)?;
    rows.iter().map(Candidate::read).collect()
}

/// The index holds all that is asked of a pending copy, so that what waits or is being copied costs little to pass.
pub(in crate::sqlite) const CLAIMABLE: &str = concat!(
    "SELECT ",
    copy_columns!(),
    ", a.digest, a.size FROM copies c INDEXED BY copies_pending CROSS JOIN artifacts a ON a.name = c.artifact
    WHERE c.state = 'pending' AND c.region = ?1 AND c.precedence <= ?4 AND c.eligible_at <= ?2
      AND (c.leased_until IS NULL OR c.leased_until <= ?2)
    ORDER BY c.precedence, c.registered_at, c.artifact LIMIT ?3"
);

async fn claimable(moment: &mut Moment, request: &ClaimRequest) -> Result<Vec<Candidate>, BackendError> {
    let query = sqlx::query(CLAIMABLE)
        .bind(request.region.as_str())
        .bind(stored::micros(moment.now))
        .bind(request.limit as i64)
        .bind(request.least.precedence());
    let rows = query.fetch_all(moment.connection()).await.map_err(failed)?;
    rows.iter().map(Candidate::read).collect()
}
