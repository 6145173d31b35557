//! Artifacts and copies as rows.

use deploycore::model::{ArtifactName, CopyState, NewArtifact, RegionName};
use deploycore::port::BackendError;
use deploycore::port::ledger::transition::CopyRow;
use deploycore::port::ledger::{Error, Registered};
use sqlx::sqlite::SqliteConnection;

use super::{Found, read, tombstones};
use crate::columns::{Columns, copy_columns};
use crate::sqlite::database::{Moment, NAME, failed};
use crate::stored;

/// The copies begin as `transition::register` says, which the conformance kit holds them against.
pub(super) async fn register(moment: &mut Moment, artifact: &NewArtifact) -> Result<Registered, Error> {
    const ARTIFACT: &str = "
        INSERT INTO artifacts (name, digest, size, service, job, registered_at, precedence)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
        ON CONFLICT DO NOTHING";
    const COPY: &str = "
        INSERT INTO copies (artifact, region, state, registered_at, eligible_at, updated_at, pending_since, precedence)
        VALUES (?1, ?2, ?3, ?4, ?4, ?4, ?4, ?5)";
    let now = stored::micros(moment.now);
    let inserted = sqlx::query(ARTIFACT)
        .bind(artifact.artifact.name.as_str())
        .bind(artifact.artifact.digest.to_string())
        .bind(artifact.artifact.size as i64)
        .bind(artifact.service.as_str())
        .bind(artifact.job.to_string())
        .bind(now)
        .bind(artifact.priority.precedence())
        .execute(moment.connection())
        .await
        .map_err(failed)?;
    if inserted.rows_affected() == 0 {
        let known = read::status(moment.connection(), &artifact.artifact.name).await?;
        return match known {
            Some(known) if known.registered == *artifact => Ok(Registered::Repeated),
            _ => Err(Error::Conflict { artifact: artifact.artifact.name.clone() }),
        };
    }
    tombstones::make_way(moment, artifact).await?;
    for region in &artifact.required {
        sqlx::query(COPY)
            .bind(artifact.artifact.name.as_str())
            .bind(region.as_str())
            .bind(CopyState::Pending.as_str())
            .bind(now)
            .bind(artifact.priority.precedence())
            .execute(moment.connection())
            .await
            .map_err(failed)?;
    }
    Ok(Registered::Created)
}

pub(super) async fn find(
    connection: &mut SqliteConnection,
    artifact: &ArtifactName,
    region: &RegionName,
) -> Result<Option<Found>, BackendError> {
    const FIND: &str = concat!(
        "SELECT ",
        copy_columns!(),
        ", a.size FROM copies c JOIN artifacts a ON a.name = c.artifact
        WHERE c.artifact = ?1 AND c.region = ?2"
    );
    let query = sqlx::query(FIND).bind(artifact.as_str()).bind(region.as_str());
    let Some(row) = query.fetch_optional(connection).await.map_err(failed)? else {
        return Ok(None);
    };
    Ok(Some(Found { copy: Columns(&row).copy()?, size: Columns(&row).number("size")? }))
}

/// Writes what a transition made of a copy, guarded by the state, epoch and claim that it had when it was read in this transaction.
pub(super) async fn update(
    connection: &mut SqliteConnection,
    artifact: &ArtifactName,
    region: &RegionName,
    before: &CopyRow,
    after: &CopyRow,
) -> Result<(), BackendError> {
    const UPDATE: &str = "
        UPDATE copies SET
            state = ?1, epoch = ?2, attempts = ?3, bytes = ?4, eligible_at = ?5, claim_id = ?6, leased_until = ?7,
            updated_at = ?8, completed_at = ?9, last_error = ?10, pending_since = ?11
        WHERE artifact = ?12 AND region = ?13 AND state = ?14 AND epoch = ?15 AND claim_id IS ?16";
    let status = &after.status;
    if after == before {
        return Ok(());
    }
    let updated = sqlx::query(UPDATE)
        .bind(status.state.as_str())
        .bind(status.epoch.get() as i64)
        .bind(i64::from(status.attempts))
        .bind(status.bytes as i64)
        .bind(stored::micros(status.eligible_at))
        .bind(after.claim.map(|claim| claim.to_string()))
        .bind(status.leased_until.map(stored::micros))
        .bind(stored::micros(status.updated_at))
        .bind(status.completed_at.map(stored::micros))
        .bind(status.last_error.as_deref())
        .bind(stored::micros(status.pending_since))
        .bind(artifact.as_str())
        .bind(region.as_str())
        .bind(before.status.state.as_str())
        .bind(before.status.epoch.get() as i64)
        .bind(before.claim.map(|claim| claim.to_string()))
        .execute(connection)
        .await
        .map_err(failed)?;
    if updated.rows_affected() != 1 {
        let what = format!("the copy of {artifact} in {region} changed under the write lock");
        return Err(BackendError::permanent(NAME, what));
    }
    Ok(())
}
