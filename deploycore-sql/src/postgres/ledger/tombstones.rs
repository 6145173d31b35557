//! Tombstones: each call is one transaction.
//!
//! Rows are locked in one order: the turn of the digest, its tombstone where there is one, the artifacts by their names, their copies by their regions.

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use deploycore::model::{
    ArtifactName, Digest, DigestTombstone, NewArtifact, Timestamp, Tombstone, TombstoneStage, elapsed,
};
use deploycore::port::BackendError;
use deploycore::port::ledger::Error;
use deploycore::port::ledger::tombstones::{self, Idle, Tombstones};
use sqlx::postgres::PgConnection;

use super::{Ledger, read, storable};
use crate::columns::{Columns, artifact_columns, tombstone_columns};
use crate::postgres::database::{self, failed};
use crate::stored;

/// Until the end of the transaction no artifact of the digest is registered, and none of its tombstones set, by another: neither sees what the other
/// has not committed yet. ("deploy" and "t" in ASCII.)
pub(super) async fn take_turn(connection: &mut PgConnection, digest: &Digest) -> Result<(), BackendError> {
    const TURN: &str = "SELECT pg_advisory_xact_lock(hashtextextended($1, x'6465706c6f790074'::bigint))";
    sqlx::query(TURN).bind(digest.to_string()).execute(connection).await.map_err(failed)?;
    Ok(())
}

/// The tombstone of a digest as it stands, until the end of the transaction.
pub(super) async fn lock(connection: &mut PgConnection, digest: &Digest) -> Result<Option<Tombstone>, BackendError> {
    const LOCK: &str =
        concat!("SELECT ", tombstone_columns!(), " FROM deploycore.tombstones t WHERE t.digest = $1 FOR UPDATE");
    let row = sqlx::query(LOCK).bind(digest.to_string()).fetch_optional(connection).await.map_err(failed)?;
    row.map(|row| Ok(Columns(&row).tombstone()?.tombstone)).transpose()
}

/// Lifts the mark, locked before, of a digest that a new artifact has.
pub(super) async fn make_way(
    connection: &mut PgConnection,
    artifact: &NewArtifact,
    found: Option<&Tombstone>,
) -> Result<(), Error> {
    let (artifact, digest) = (artifact.artifact.name.clone(), artifact.artifact.digest);
    match found.map(|found| found.stage) {
        Some(TombstoneStage::Marked) => Ok(remove(connection, &digest).await?),
        Some(_) => Err(Error::BeingDeleted { artifact, digest }),
        None => Ok(()),
    }
}

/// Whether an artifact has a tombstone.
pub(super) async fn is_collected(connection: &mut PgConnection, artifact: &ArtifactName) -> Result<bool, BackendError> {
    let status = read::status(connection, artifact).await?;
    Ok(status.is_some_and(|status| status.tombstone.is_some()))
}

async fn remove(connection: &mut PgConnection, digest: &Digest) -> Result<(), BackendError> {
    const REMOVE: &str = "DELETE FROM deploycore.tombstones WHERE digest = $1";
    sqlx::query(REMOVE).bind(digest.to_string()).execute(connection).await.map_err(failed)?;
    Ok(())
}

/// Until the end of the transaction no artifact of the digest is pinned, and no copy of theirs is reopened. The instant after that.
async fn may_collect(connection: &mut PgConnection, digest: &Digest, idle: Idle) -> Result<Timestamp, Error> {
    const ARTIFACTS: &str = concat!(
        "SELECT ",
        artifact_columns!(),
        " FROM deploycore.artifacts a WHERE a.digest = $1 AND a.deleted_at IS NULL ORDER BY a.name FOR UPDATE"
    );
    const HOLD: &str = "SELECT 1 FROM deploycore.copies WHERE artifact = $1 ORDER BY region FOR SHARE";
    let rows = sqlx::query(ARTIFACTS).bind(digest.to_string()).fetch_all(&mut *connection).await.map_err(failed)?;
    for row in &rows {
        let name: ArtifactName = Columns(row).parse("name")?;
        sqlx::query(HOLD).bind(name.as_str()).execute(&mut *connection).await.map_err(failed)?;
    }
    let artifacts = read::with_copies(connection, &rows).await?;
    let now = database::now(connection).await?;
    tombstones::may_collect(digest, &artifacts, idle, now)?;
    Ok(now)
}

async fn set(connection: &mut PgConnection, digest: &Digest, idle: Idle, reason: &str) -> Result<(), Error> {
    const SET: &str = "
        INSERT INTO deploycore.tombstones (digest, stage, reason, since)
            VALUES ($1, 'marked', $2, $3) ON CONFLICT DO NOTHING";
    take_turn(connection, digest).await?;
    if lock(connection, digest).await?.is_some() {
        return Ok(());
    }
    let now = may_collect(connection, digest, idle).await?;
    let set = sqlx::query(SET).bind(digest.to_string()).bind(reason).bind(stored::micros(now));
    set.execute(connection).await.map_err(failed)?;
    Ok(())
}

async fn begin(connection: &mut PgConnection, digest: &Digest, idle: Idle, grace: Duration) -> Result<bool, Error> {
    const BEGIN: &str = "
        UPDATE deploycore.tombstones SET stage = 'deleting', since = $2 WHERE digest = $1";
    let found = lock(connection, digest).await?;
    let now = database::now(connection).await?;
    match found {
        Some(Tombstone { stage: TombstoneStage::Marked, since, .. }) if elapsed(since, now) >= grace => {}
        found => return Ok(found.is_some_and(|found| found.stage == TombstoneStage::Deleting)),
    }
    let now = may_collect(connection, digest, idle).await?;
    let begin = sqlx::query(BEGIN).bind(digest.to_string()).bind(stored::micros(now));
    begin.execute(connection).await.map_err(failed)?;
    Ok(true)
}

async fn end(connection: &mut PgConnection, digest: &Digest) -> Result<(), Error> {
    const COPIES: &str = "
        DELETE FROM deploycore.copies
        WHERE artifact IN (SELECT name FROM deploycore.artifacts WHERE digest = $1 AND deleted_at IS NULL)";
    const END: &str = "
        UPDATE deploycore.artifacts SET deleted_at = $2, deleted_because = $3 WHERE digest = $1 AND deleted_at IS NULL";
    let Some(Tombstone { stage: TombstoneStage::Deleting, reason, .. }) = lock(connection, digest).await? else {
        return Ok(());
    };
    let now = database::now(connection).await?;
    sqlx::query(COPIES).bind(digest.to_string()).execute(&mut *connection).await.map_err(failed)?;
    let end = sqlx::query(END).bind(digest.to_string()).bind(stored::micros(now)).bind(reason);
    end.execute(&mut *connection).await.map_err(failed)?;
    Ok(remove(connection, digest).await?)
}

#[async_trait]
impl Tombstones for Ledger {
    async fn set(&self, digest: &Digest, idle: Idle, reason: &str) -> Result<(), Error> {
        let reason = storable(tombstones::cut_reason(reason));
        let set = async {
            let mut moment = self.database.begin().await?;
            let set = set(moment.connection(), digest, idle, &reason).await;
            moment.end(set).await
        };
        self.database.bounded(set).await
    }

    async fn lift(&self, digest: &Digest) -> Result<bool, Error> {
        const LIFT: &str = "DELETE FROM deploycore.tombstones WHERE digest = $1 AND stage = 'marked'";
        let lift = async {
            let mut borrowed = self.database.borrow().await?;
            let lift = sqlx::query(LIFT).bind(digest.to_string());
            let lifted = lift.execute(borrowed.connection()).await.map_err(failed)?.rows_affected();
            borrowed.give_back();
            Ok(lifted > 0)
        };
        self.database.bounded(lift).await
    }

    async fn begin_deletion(&self, digest: &Digest, idle: Idle, grace: Duration) -> Result<bool, Error> {
        let deletion = async {
            let mut moment = self.database.begin().await?;
            let begun = begin(moment.connection(), digest, idle, grace).await;
            moment.end(begun).await
        };
        self.database.bounded(deletion).await
    }

    async fn end_deletion(&self, digest: &Digest) -> Result<(), Error> {
        let deletion = async {
            let mut moment = self.database.begin().await?;
            let ended = end(moment.connection(), digest).await;
            moment.end(ended).await
        };
        self.database.bounded(deletion).await
    }

    async fn unfinished(&self, limit: usize) -> Result<Vec<DigestTombstone>, Error> {
        const UNFINISHED: &str = concat!(
            "SELECT ",
            tombstone_columns!(),
            " FROM deploycore.tombstones t ORDER BY t.since, t.digest LIMIT $1"
        );
        tombstones::check_unfinished(limit)?;
        let unfinished = async {
            let mut borrowed = self.database.borrow().await?;
            let unfinished = sqlx::query(UNFINISHED).bind(limit as i64);
            let rows = unfinished.fetch_all(borrowed.connection()).await.map_err(failed)?;
            borrowed.give_back();
            Ok(rows.iter().map(|row| Columns(row).tombstone()).collect::<Result<_, _>>()?)
        };
        self.database.bounded(unfinished).await
    }

    async fn unneeded(&self, digests: &[Digest]) -> Result<BTreeSet<Digest>, Error> {
        const UNNEEDED: &str = "
            SELECT n.digest FROM unnest($1::text[]) AS n (digest)
            WHERE NOT EXISTS (SELECT FROM deploycore.artifacts a WHERE a.digest = n.digest AND a.deleted_at IS NULL)";
        tombstones::check_digests(digests.len())?;
        let unneeded = async {
            let mut borrowed = self.database.borrow().await?;
            let unneeded = sqlx::query(UNNEEDED).bind(digests.iter().map(ToString::to_string).collect::<Vec<_>>());
            let rows = unneeded.fetch_all(borrowed.connection()).await.map_err(failed)?;
            borrowed.give_back();
            Ok(rows.iter().map(|row| Columns(row).parse("digest")).collect::<Result<_, _>>()?)
        };
        self.database.bounded(unneeded).await
    }
}
