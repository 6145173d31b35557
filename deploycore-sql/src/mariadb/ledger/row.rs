//! Artifacts and copies as rows.

use std::collections::BTreeSet;

use deploycore::model::{ArtifactName, CopyPriority, NewArtifact, PinHolder, RegionName};
use deploycore::port::BackendError;
use deploycore::port::ledger::transition::{self, CopyRow};
use deploycore::port::ledger::{Error, Registered};
use serde::Serialize;
use sqlx::mysql::MySqlConnection;

use super::{Found, read, tombstones};
use crate::columns::{Columns, copy_columns};
use crate::mariadb::database::{self, failed, is_duplicate};
use crate::mariadb::queue::row::all_were_as_locked;
use crate::mariadb::row::Hex;
use crate::stored;

/// The copies begin as `transition::register` says, which the conformance kit holds them against.
pub(super) async fn register(connection: &mut MySqlConnection, artifact: &NewArtifact) -> Result<Registered, Error> {
    const ARTIFACT: &str = "
        INSERT INTO deploycore_artifacts (name, digest, size, service, job, registered_at, precedence)
        VALUES (?, ?, ?, ?, ?, ?, ?)";
    const COPIES: &str = "
        INSERT INTO deploycore_copies
            (artifact, region, state, registered_at, eligible_at, updated_at, pending_since, precedence)
        SELECT a.name, n.region, 'pending', a.registered_at, a.registered_at, a.registered_at, a.registered_at, a.precedence
        FROM deploycore_artifacts a
        STRAIGHT_JOIN JSON_TABLE(?, '$[*]' COLUMNS (region VARCHAR(63) PATH '$')) n
        WHERE a.name = ?";
    let tombstone = tombstones::lock(connection, &artifact.artifact.digest).await?;
    let now = database::now(connection).await?;
    let name = artifact.artifact.name.as_str();
    let added = sqlx::query(ARTIFACT)
        .bind(name)
        .bind(artifact.artifact.digest.to_string())
        .bind(artifact.artifact.size as i64)
        .bind(artifact.service.as_str())
        .bind(artifact.job.as_uuid())
        .bind(stored::micros(now))
        .bind(i64::from(artifact.priority.precedence()))
        .execute(&mut *connection)
        .await;
    match added {
        Ok(_) => {
            let copies = sqlx::query(COPIES).bind(stored::json(&artifact.required)).bind(name);
            copies.execute(&mut *connection).await.map_err(failed)?;
            // Whoever sets one from now on waits for the row of the artifact. One may have been set since the look above.
            let tombstone = match tombstone {
                None => tombstones::lock(connection, &artifact.artifact.digest).await?,
                found => found,
            };
            tombstones::make_way(connection, artifact, tombstone.as_ref()).await?;
            Ok(Registered::Created)
        }
        Err(error) if is_duplicate(&error) => match read::status(connection, &artifact.artifact.name).await? {
            Some(known) if known.registered == *artifact => Ok(Registered::Repeated),
            _ => Err(Error::Conflict { artifact: artifact.artifact.name.clone() }),
        },
        Err(error) => Err(failed(error).into()),
    }
}

/// Until it commits, no copy is reopened: the rows that it looks at are locked against change.
pub(super) async fn pin(
    connection: &mut MySqlConnection,
    artifact: &ArtifactName,
    holder: &PinHolder,
    waived: &BTreeSet<RegionName>,
) -> Result<(), Error> {
    const HOLD: &str = "SELECT 1 FROM deploycore_copies WHERE artifact = ? ORDER BY region LOCK IN SHARE MODE";
    const PIN: &str = "
        INSERT INTO deploycore_pins (artifact, holder) VALUES (?, ?) ON DUPLICATE KEY UPDATE artifact = artifact";
    const NEEDED: &str =
        concat!("UPDATE deploycore_artifacts SET last_pinned_at = ", database::instant!(), " WHERE name = ?");
    // Whoever sets a tombstone waits for this row, or is waited for.
    sqlx::query(NEEDED).bind(artifact.as_str()).execute(&mut *connection).await.map_err(failed)?;
    sqlx::query(HOLD).bind(artifact.as_str()).execute(&mut *connection).await.map_err(failed)?;
    let status = read::status(connection, artifact).await?;
    let status = status.ok_or_else(|| Error::NotFound { artifact: artifact.clone() })?;
    transition::gate(&status, waived)?;
    let pin = sqlx::query(PIN).bind(artifact.as_str()).bind(holder.as_str());
    pin.execute(connection).await.map_err(failed)?;
    Ok(())
}

/// Makes the copies of an artifact at least so urgent; how many were less.
pub(super) async fn prioritize(
    connection: &mut MySqlConnection,
    artifact: &ArtifactName,
    priority: CopyPriority,
) -> Result<usize, Error> {
    const HOLD: &str = "SELECT 1 FROM deploycore_copies WHERE artifact = ? ORDER BY region FOR UPDATE";
    const PRIORITIZE: &str = "UPDATE deploycore_copies SET precedence = ? WHERE artifact = ? AND precedence > ?";
    const KNOWN: &str = "SELECT 1 FROM deploycore_artifacts WHERE name = ?";
    let held = sqlx::query(HOLD).bind(artifact.as_str()).fetch_all(&mut *connection).await.map_err(failed)?;
    if held.is_empty() {
        // A collected artifact has no copies.
        let known = sqlx::query(KNOWN).bind(artifact.as_str()).fetch_optional(connection).await.map_err(failed)?;
        return known.map(|_| 0).ok_or_else(|| Error::NotFound { artifact: artifact.clone() });
    }
    let precedence = i64::from(priority.precedence());
    let prioritize = sqlx::query(PRIORITIZE).bind(precedence).bind(artifact.as_str()).bind(precedence);
    Ok(prioritize.execute(connection).await.map_err(failed)?.rows_affected() as usize)
}

/// A copy as it stands, until the end of the transaction.
pub(super) async fn lock(
    connection: &mut MySqlConnection,
    artifact: &ArtifactName,
    region: &RegionName,
) -> Result<Option<Found>, BackendError> {
    const LOCK: &str = concat!(
        "SELECT ",
        copy_columns!(),
        ", (SELECT a.size FROM deploycore_artifacts a WHERE a.name = c.artifact) AS size
        FROM deploycore_copies c WHERE c.artifact = ? AND c.region = ? FOR UPDATE"
    );
    let query = sqlx::query(LOCK).bind(artifact.as_str()).bind(region.as_str());
    let Some(row) = query.fetch_optional(connection).await.map_err(failed)? else {
        return Ok(None);
    };
    Ok(Some(Found { copy: Columns(&row).copy()?, size: Columns(&row).number("size")? }))
}

/// A copy, what it was and what a transition made of it.
pub(super) type Change<'c> = (&'c ArtifactName, &'c CopyRow, &'c CopyRow);

/// The same, for the statement.
#[derive(Serialize)]
struct Row<'c> {
    artifact: &'c str,
    was: &'static str,
    was_epoch: u64,
    was_claim: Option<Hex>,
    state: &'static str,
    epoch: u64,
    attempts: u32,
    bytes: u64,
    eligible_at: i64,
    claim_id: Option<Hex>,
    leased_until: Option<i64>,
    updated_at: i64,
    completed_at: Option<i64>,
    last_error: Option<&'c str>,
    pending_since: i64,
}

impl<'c> Row<'c> {
    fn of((artifact, before, changed): &Change<'c>) -> Self {
        let after = &changed.status;
        Self {
            artifact: artifact.as_str(),
            was: before.status.state.as_str(),
            was_epoch: before.status.epoch.get(),
            was_claim: before.claim.map(Hex::from),
            state: after.state.as_str(),
            epoch: after.epoch.get(),
            attempts: after.attempts,
            bytes: after.bytes,
            eligible_at: stored::micros(after.eligible_at),
            claim_id: changed.claim.map(Hex::from),
            leased_until: after.leased_until.map(stored::micros),
            updated_at: stored::micros(after.updated_at),
            completed_at: after.completed_at.map(stored::micros),
            last_error: after.last_error.as_deref(),
            pending_since: stored::micros(after.pending_since),
        }
    }
}

/// Writes what transitions made of copies in a region, guarded by the state, epoch and claim that each had when it was locked in this
/// transaction.
pub(super) async fn update(
    connection: &mut MySqlConnection,
    region: &RegionName,
    changes: &[Change<'_>],
) -> Result<(), BackendError> {
    const UPDATE: &str = "
        UPDATE JSON_TABLE(?, '$[*]' COLUMNS (
            artifact VARCHAR(128) PATH '$.artifact', was VARCHAR(8) PATH '$.was', was_epoch BIGINT PATH '$.was_epoch',
            was_claim CHAR(32) PATH '$.was_claim', state VARCHAR(8) PATH '$.state', epoch BIGINT PATH '$.epoch',
            attempts BIGINT PATH '$.attempts', bytes BIGINT PATH '$.bytes', eligible_at BIGINT PATH '$.eligible_at',
            claim_id CHAR(32) PATH '$.claim_id',
            leased_until BIGINT PATH '$.leased_until', updated_at BIGINT PATH '$.updated_at',
            completed_at BIGINT PATH '$.completed_at', last_error MEDIUMTEXT CHARACTER SET utf8mb4 PATH '$.last_error',
            pending_since BIGINT PATH '$.pending_since')) n
        STRAIGHT_JOIN deploycore_copies c ON c.artifact = n.artifact AND c.region = ?
        SET c.state = n.state, c.epoch = n.epoch, c.attempts = n.attempts, c.bytes = n.bytes,
            c.eligible_at = n.eligible_at, c.claim_id = UNHEX(n.claim_id), c.leased_until = n.leased_until, c.updated_at = n.updated_at, c.completed_at = n.completed_at,
            c.last_error = n.last_error, c.pending_since = n.pending_since
        WHERE c.state = n.was AND c.epoch = n.was_epoch AND c.claim_id <=> UNHEX(n.was_claim)";
    let rows: Vec<Row<'_>> = changes.iter().map(Row::of).collect();
    let update = sqlx::query(UPDATE).bind(stored::json(&rows)).bind(region.as_str());
    let updated = update.execute(connection).await.map_err(failed)?;
    all_were_as_locked("copies", updated.rows_affected(), changes.len())
}
