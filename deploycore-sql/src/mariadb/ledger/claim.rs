//! Handing out copies to be made.

use deploycore::model::{ArtifactName, ArtifactRef, CopyLease, CopyTask, RegionName};
use deploycore::port::BackendError;
use deploycore::port::ledger::ClaimRequest;
use deploycore::port::ledger::transition::{self, CopyRow};
use sqlx::mysql::{MySqlConnection, MySqlRow};

use super::row;
use crate::columns::{Columns, copy_columns};
use crate::mariadb::database::{self, failed, instant};

/// What a claim gives.
pub(super) struct Taken {
    pub(super) tasks: Vec<CopyTask>,
    /// Copies whose lease of another claim had run out.
    pub(super) expired: usize,
    /// False for a repeated call.
    pub(super) is_new: bool,
}

/// A repeated call waits until the first has ended, though the first caller is gone.
pub(super) async fn claim(connection: &mut MySqlConnection, request: &ClaimRequest) -> Result<Taken, BackendError> {
    database::hold(connection, &format!("deploycore copies {}", request.claim)).await?;
    let known = taken(connection, request).await?;
    if !known.is_empty() {
        let now = database::now(connection).await?;
        let held = known.into_iter().filter(|candidate| transition::is_leased(&candidate.copy, now));
        let tasks = held.filter_map(|candidate| candidate.task(&request.region)).collect();
        return Ok(Taken { tasks, expired: 0, is_new: false });
    }
    take(connection, request).await
}

/// A copy to a region, with its artifact.
struct Candidate {
    artifact: ArtifactRef,
    copy: CopyRow,
}

impl Candidate {
    fn read(row: &MySqlRow) -> Result<Self, BackendError> {
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
async fn taken(connection: &mut MySqlConnection, request: &ClaimRequest) -> Result<Vec<Candidate>, BackendError> {
    const TAKEN: &str = concat!(
        "SELECT ",
        copy_columns!(),
        ", a.digest, a.size FROM deploycore_copies c FORCE INDEX (copies_claim)
        STRAIGHT_JOIN deploycore_artifacts a ON a.name = c.artifact
        WHERE c.claim_id = ? AND c.region = ?
        ORDER BY c.precedence, c.registered_at, c.artifact"
    );
    let query = sqlx::query(TAKEN).bind(request.claim.as_uuid()).bind(request.region.as_str());
    let rows = query.fetch_all(connection).await.map_err(failed)?;
    rows.iter().map(Candidate::read).collect()
}

/// The artifacts stand in subqueries, which lock nothing: two regions may claim copies of one artifact at once.
pub(in crate::mariadb) const CLAIMABLE: &str = concat!(
    "SELECT ",
    copy_columns!(),
    ", (SELECT a.digest FROM deploycore_artifacts a WHERE a.name = c.artifact) AS digest,
            (SELECT a.size FROM deploycore_artifacts a WHERE a.name = c.artifact) AS size
     FROM deploycore_copies c FORCE INDEX (copies_turns)
     WHERE c.region = ? AND c.state = 'pending' AND c.precedence <= ? AND c.eligible_at <= ",
    instant!(),
    " AND (c.leased_until IS NULL OR c.leased_until <= ",
    instant!(),
    ") ORDER BY c.precedence, c.registered_at, c.artifact LIMIT ? FOR UPDATE SKIP LOCKED"
);

/// A copy that another call holds is left to that: it reports on it, or claims it.
async fn take(connection: &mut MySqlConnection, request: &ClaimRequest) -> Result<Taken, BackendError> {
    let query = sqlx::query(CLAIMABLE).bind(request.region.as_str());
    let query = query.bind(i64::from(request.least.precedence())).bind(request.limit as i64);
    let rows = query.fetch_all(&mut *connection).await.map_err(failed)?;
    let mut taken = Taken { tasks: Vec::with_capacity(rows.len()), expired: 0, is_new: true };
    if rows.is_empty() {
        return Ok(taken);
    }
    let now = database::now(connection).await?;
    let mut copies = Vec::with_capacity(rows.len());
    for row in &rows {
        let Candidate { artifact, copy: before } = Candidate::read(row)?;
        taken.expired += usize::from(before.status.leased_until.is_some());
        let mut after = before.clone();
        transition::claim(&mut after, request, now);
        copies.push((artifact, before, after));
    }
    let changes: Vec<_> = copies.iter().map(|(artifact, before, after)| (&artifact.name, before, after)).collect();
    row::update(connection, &request.region, &changes).await?;
    for (artifact, _, copy) in copies {
        taken.tasks.extend(Candidate { artifact, copy }.task(&request.region));
    }
    Ok(taken)
}
