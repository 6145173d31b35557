//! Artifacts and copies as rows.

use std::collections::BTreeSet;

use deploycore::model::{
    ArtifactName, ClaimId, CopyPriority, CopyState, CopyStatus, NewArtifact, PinHolder, RegionName,
};
use deploycore::port::BackendError;
use deploycore::port::ledger::transition::{self, CopyRow};
use deploycore::port::ledger::{Error, Registered};
use sqlx::postgres::PgConnection;

use super::{Found, read, tombstones};
use crate::columns::{Columns, copy_columns};
use crate::postgres::database::{NAME, failed};
use crate::stored;

/// The copies begin as `transition::register` says, which the conformance kit holds them against.
pub(super) async fn register(connection: &mut PgConnection, artifact: &NewArtifact) -> Result<Registered, Error> {
    const REGISTER: &str = "
        WITH added AS (
            INSERT INTO deploycore.artifacts (name, digest, size, service, job, registered_at, precedence)
            VALUES ($1, $2, $3, $4, $5, deploycore.instant(), $7)
            ON CONFLICT DO NOTHING RETURNING name, registered_at
        )
        INSERT INTO deploycore.copies
            (artifact, region, state, registered_at, eligible_at, updated_at, pending_since, precedence)
        SELECT added.name, r.region, 'pending', added.registered_at, added.registered_at, added.registered_at,
            added.registered_at, $7
        FROM added CROSS JOIN unnest($6::text[]) AS r (region)";
    tombstones::take_turn(connection, &artifact.artifact.digest).await?;
    let tombstone = tombstones::lock(connection, &artifact.artifact.digest).await?;
    let regions: Vec<String> = artifact.required.iter().map(ToString::to_string).collect();
    let added = sqlx::query(REGISTER)
        .bind(artifact.artifact.name.as_str())
        .bind(artifact.artifact.digest.to_string())
        .bind(artifact.artifact.size as i64)
        .bind(artifact.service.as_str())
        .bind(artifact.job.as_uuid())
        .bind(regions)
        .bind(i64::from(artifact.priority.precedence()))
        .execute(&mut *connection)
        .await
        .map_err(failed)?;
    if added.rows_affected() > 0 {
        tombstones::make_way(connection, artifact, tombstone.as_ref()).await?;
        return Ok(Registered::Created);
    }
    match read::status(connection, &artifact.artifact.name).await? {
        Some(known) if known.registered == *artifact => Ok(Registered::Repeated),
        _ => Err(Error::Conflict { artifact: artifact.artifact.name.clone() }),
    }
}

/// Until it commits, no copy is reopened: the rows that it looks at are locked against change.
pub(super) async fn pin(
    connection: &mut PgConnection,
    artifact: &ArtifactName,
    holder: &PinHolder,
    waived: &BTreeSet<RegionName>,
) -> Result<(), Error> {
    const HOLD: &str = "SELECT 1 FROM deploycore.copies WHERE artifact = $1 ORDER BY region FOR SHARE";
    const PIN: &str = "INSERT INTO deploycore.pins (artifact, holder) VALUES ($1, $2) ON CONFLICT DO NOTHING";
    const NEEDED: &str = "
        UPDATE deploycore.artifacts SET last_pinned_at = deploycore.instant() WHERE name = $1";
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

/// Makes the copies of an artifact at least so urgent; how many were less. They are locked in the order of their regions, as a pin does it.
pub(super) async fn prioritize(
    connection: &mut PgConnection,
    artifact: &ArtifactName,
    priority: CopyPriority,
) -> Result<usize, Error> {
    const HOLD: &str = "
        SELECT precedence FROM deploycore.copies WHERE artifact = $1 ORDER BY region FOR NO KEY UPDATE";
    const PRIORITIZE: &str = "UPDATE deploycore.copies SET precedence = $2 WHERE artifact = $1 AND precedence > $2";
    const KNOWN: &str = "SELECT 1 FROM deploycore.artifacts WHERE name = $1";
    let held = sqlx::query(HOLD).bind(artifact.as_str()).fetch_all(&mut *connection).await.map_err(failed)?;
    if held.is_empty() {
        // A collected artifact has no copies.
        let known = sqlx::query(KNOWN).bind(artifact.as_str()).fetch_optional(connection).await.map_err(failed)?;
        return known.map(|_| 0).ok_or_else(|| Error::NotFound { artifact: artifact.clone() });
    }
    let prioritize = sqlx::query(PRIORITIZE).bind(artifact.as_str()).bind(i64::from(priority.precedence()));
    Ok(prioritize.execute(connection).await.map_err(failed)?.rows_affected() as usize)
}

/// A copy as it stands, until the end of the transaction.
pub(super) async fn lock(
    connection: &mut PgConnection,
    artifact: &ArtifactName,
    region: &RegionName,
) -> Result<Option<Found>, BackendError> {
    const LOCK: &str = concat!(
        "SELECT ",
        copy_columns!(),
        ", a.size FROM deploycore.copies c JOIN deploycore.artifacts a ON a.name = c.artifact
        WHERE c.artifact = $1 AND c.region = $2 FOR UPDATE OF c"
    );
    let query = sqlx::query(LOCK).bind(artifact.as_str()).bind(region.as_str());
    let Some(row) = query.fetch_optional(connection).await.map_err(failed)? else {
        return Ok(None);
    };
    Ok(Some(Found { copy: Columns(&row).copy()?, size: Columns(&row).number("size")? }))
}

/// Writes what transitions made of copies in a region, guarded by the state, epoch and claim that each had when it was locked in this
/// transaction.
pub(super) async fn update(
    connection: &mut PgConnection,
    region: &RegionName,
    changes: &[(&ArtifactName, &CopyRow, &CopyRow)],
) -> Result<(), BackendError> {
    const UPDATE: &str = "
        UPDATE deploycore.copies c SET
            state = n.state, epoch = n.epoch, attempts = n.attempts, bytes = n.bytes, eligible_at = n.eligible_at,
            claim_id = n.claim_id, leased_until = n.leased_until, updated_at = n.updated_at,
            completed_at = n.completed_at, last_error = n.last_error, pending_since = n.pending_since
        FROM unnest($2::text[], $3::text[], $4::bigint[], $5::uuid[], $6::text[], $7::bigint[], $8::bigint[], $9::bigint[],
                    $10::bigint[], $11::uuid[], $12::bigint[], $13::bigint[], $14::bigint[], $15::text[], $16::bigint[])
            AS n (artifact, was, was_epoch, was_claim, state, epoch, attempts, bytes, eligible_at, claim_id, leased_until,
                  updated_at, completed_at, last_error, pending_since)
        WHERE c.artifact = n.artifact AND c.region = $1 AND c.state = n.was AND c.epoch = n.was_epoch
          AND c.claim_id IS NOT DISTINCT FROM n.was_claim";
    let words = |value: fn(&CopyRow) -> CopyState, rows: &[&CopyRow]| -> Vec<String> {
        rows.iter().map(|row| value(row).as_str().to_owned()).collect()
    };
    let state = |row: &CopyRow| row.status.state;
    let before: Vec<_> = changes.iter().map(|(_, before, _)| *before).collect();
    let after: Vec<_> = changes.iter().map(|(_, _, after)| *after).collect();
    let integers = |value: fn(&CopyStatus) -> i64| -> Vec<i64> { after.iter().map(|row| value(&row.status)).collect() };
    let optional = |value: fn(&CopyStatus) -> Option<i64>| -> Vec<Option<i64>> {
        after.iter().map(|row| value(&row.status)).collect()
    };
    let claims = |rows: &[&CopyRow]| rows.iter().map(|row| row.claim.map(ClaimId::as_uuid)).collect::<Vec<_>>();
    let updated = sqlx::query(UPDATE)
        .bind(region.as_str())
        .bind(changes.iter().map(|(artifact, _, _)| artifact.to_string()).collect::<Vec<_>>())
        .bind(words(state, &before))
        .bind(before.iter().map(|row| row.status.epoch.get() as i64).collect::<Vec<_>>())
        .bind(claims(&before))
        .bind(words(state, &after))
        .bind(integers(|status| status.epoch.get() as i64))
        .bind(integers(|status| i64::from(status.attempts)))
        .bind(integers(|status| status.bytes as i64))
        .bind(integers(|status| stored::micros(status.eligible_at)))
        .bind(claims(&after))
        .bind(optional(|status| status.leased_until.map(stored::micros)))
        .bind(integers(|status| stored::micros(status.updated_at)))
        .bind(optional(|status| status.completed_at.map(stored::micros)))
        .bind(after.iter().map(|row| row.status.last_error.clone()).collect::<Vec<_>>())
        .bind(integers(|status| stored::micros(status.pending_since)))
        .execute(connection)
        .await
        .map_err(failed)?;
    if updated.rows_affected() == changes.len() as u64 {
        return Ok(());
    }
    let (updated, locked) = (updated.rows_affected(), changes.len());
    let what = format!("{updated} of {locked} copies in {region} were as they were when they were locked");
    Err(BackendError::permanent(NAME, what))
}
