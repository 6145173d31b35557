//! Tombstones: each call is one transaction.
//!
//! Rows are locked in one order: the tombstone of the digest where there is one, the artifacts by their names, their copies by their regions.

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use deploycore::model::{
    ArtifactName, Digest, DigestTombstone, NewArtifact, Timestamp, Tombstone, TombstoneStage, elapsed,
};
use deploycore::port::BackendError;
use deploycore::port::ledger::Error;
use deploycore::port::ledger::tombstones::{self, Idle, Tombstones};
use sqlx::mysql::MySqlConnection;

use super::{Ledger, read};
use crate::columns::{Columns, artifact_columns, tombstone_columns};
use crate::mariadb::database::{self, failed};
use crate::stored;

/// The tombstone of a digest as it stands, until the end of the transaction.
pub(super) async fn lock(connection: &mut MySqlConnection, digest: &Digest) -> Result<Option<Tombstone>, BackendError> {
    const LOCK: &str =
        concat!("SELECT ", tombstone_columns!(), " FROM deploycore_tombstones t WHERE t.digest = ? FOR UPDATE");
    let row = sqlx::query(LOCK).bind(digest.to_string()).fetch_optional(connection).await.map_err(failed)?;
    row.map(|row| Ok(Columns(&row).tombstone()?.tombstone)).transpose()
}

/// Lifts the mark, locked before, of a digest that a new artifact has.
pub(super) async fn make_way(
    connection: &mut MySqlConnection,
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
pub(super) async fn is_collected(
    connection: &mut MySqlConnection,
    artifact: &ArtifactName,
) -> Result<bool, BackendError> {
    let status = read::status(connection, artifact).await?;
    Ok(status.is_some_and(|status| status.tombstone.is_some()))
}

async fn remove(connection: &mut MySqlConnection, digest: &Digest) -> Result<(), BackendError> {
    const REMOVE: &str = "DELETE FROM deploycore_tombstones WHERE digest = ?";
    sqlx::query(REMOVE).bind(digest.to_string()).execute(connection).await.map_err(failed)?;
    Ok(())
}

/// Until the end of the transaction no artifact of the digest is pinned, and no copy of theirs is reopened. The instant after that.
async fn may_collect(connection: &mut MySqlConnection, digest: &Digest, idle: Idle) -> Result<Timestamp, Error> {
    const ARTIFACTS: &str = concat!(
        "SELECT ",
        artifact_columns!(),
        " FROM deploycore_artifacts a FORCE INDEX (artifacts_digest)
        WHERE a.digest = ? AND a.deleted_at IS NULL ORDER BY a.name FOR UPDATE"
    );
    const HOLD: &str = "SELECT 1 FROM deploycore_copies WHERE artifact = ? ORDER BY region LOCK IN SHARE MODE";
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

async fn set(connection: &mut MySqlConnection, digest: &Digest, idle: Idle, reason: &str) -> Result<(), Error> {
    const SET: &str = "
        INSERT INTO deploycore_tombstones (digest, stage, reason, since)
            VALUES (?, 'marked', ?, ?) ON DUPLICATE KEY UPDATE digest = digest";
    if lock(connection, digest).await?.is_some() {
        return Ok(());
    }
    // Before the look at the artifacts: of two at once, whoever registers one sees the tombstone, or is seen here.
    let now = database::now(connection).await?;
    let set = sqlx::query(SET).bind(digest.to_string()).bind(reason).bind(stored::micros(now));
    set.execute(&mut *connection).await.map_err(failed)?;
    may_collect(connection, digest, idle).await?;
    Ok(())
}

async fn begin(connection: &mut MySqlConnection, digest: &Digest, idle: Idle, grace: Duration) -> Result<bool, Error> {
    const BEGIN: &str = "
        UPDATE deploycore_tombstones SET stage = 'deleting', since = ? WHERE digest = ?";
    let found = lock(connection, digest).await?;
    let now = database::now(connection).await?;
    match found {
        Some(Tombstone { stage: TombstoneStage::Marked, since, .. }) if elapsed(since, now) >= grace => {}
        found => return Ok(found.is_some_and(|found| found.stage == TombstoneStage::Deleting)),
    }
    let now = may_collect(connection, digest, idle).await?;
    let begin = sqlx::query(BEGIN).bind(stored::micros(now)).bind(digest.to_string());
    begin.execute(connection).await.map_err(failed)?;
    Ok(true)
}

async fn end(connection: &mut MySqlConnection, digest: &Digest) -> Result<(), Error> {
    const COPIES: &str = "
        DELETE c FROM deploycore_artifacts a FORCE INDEX (artifacts_digest) STRAIGHT_JOIN deploycore_copies c ON c.artifact = a.name
        WHERE a.digest = ? AND a.deleted_at IS NULL";
    const END: &str = "
        UPDATE deploycore_artifacts SET deleted_at = ?, deleted_because = ? WHERE digest = ? AND deleted_at IS NULL";
    let Some(Tombstone { stage: TombstoneStage::Deleting, reason, .. }) = lock(connection, digest).await? else {
        return Ok(());
    };
    let now = database::now(connection).await?;
    sqlx::query(COPIES).bind(digest.to_string()).execute(&mut *connection).await.map_err(failed)?;
    let end = sqlx::query(END).bind(stored::micros(now)).bind(reason).bind(digest.to_string());
    end.execute(&mut *connection).await.map_err(failed)?;
    Ok(remove(connection, digest).await?)
}

#[async_trait]
impl Tombstones for Ledger {
    async fn set(&self, digest: &Digest, idle: Idle, reason: &str) -> Result<(), Error> {
        let reason = tombstones::cut_reason(reason);
        let set = || async {
            let mut moment = self.database.begin().await?;
            let set = set(moment.connection(), digest, idle, reason).await;
            moment.end(set).await
        };
        self.database.call(set).await
    }

    async fn lift(&self, digest: &Digest) -> Result<bool, Error> {
        const LIFT: &str = "DELETE FROM deploycore_tombstones WHERE digest = ? AND stage = 'marked'";
        let lift = || async {
            let mut borrowed = self.database.borrow().await?;
            let lift = sqlx::query(LIFT).bind(digest.to_string());
            let lifted = lift.execute(borrowed.connection()).await.map_err(failed)?.rows_affected();
            borrowed.give_back();
            Ok(lifted > 0)
        };
        self.database.call(lift).await
    }

    async fn begin_deletion(&self, digest: &Digest, idle: Idle, grace: Duration) -> Result<bool, Error> {
        let deletion = || async {
            let mut moment = self.database.begin().await?;
            let begun = begin(moment.connection(), digest, idle, grace).await;
            moment.end(begun).await
        };
        self.database.call(deletion).await
    }

    async fn end_deletion(&self, digest: &Digest) -> Result<(), Error> {
        let deletion = || async {
            let mut moment = self.database.begin().await?;
            let ended = end(moment.connection(), digest).await;
            moment.end(ended).await
        };
        self.database.call(deletion).await
    }

    async fn unfinished(&self, limit: usize) -> Result<Vec<DigestTombstone>, Error> {
        const UNFINISHED: &str = concat!(
            "SELECT ",
            tombstone_columns!(),
            " FROM deploycore_tombstones t ORDER BY t.since, t.digest LIMIT ?"
        );
        tombstones::check_unfinished(limit)?;
        let unfinished = || async {
            let mut borrowed = self.database.borrow().await?;
            let unfinished = sqlx::query(UNFINISHED).bind(limit as i64);
            let rows = unfinished.fetch_all(borrowed.connection()).await.map_err(failed)?;
            borrowed.give_back();
            Ok(rows.iter().map(|row| Columns(row).tombstone()).collect::<Result<_, _>>()?)
        };
        self.database.call(unfinished).await
    }

    async fn unneeded(&self, digests: &[Digest]) -> Result<BTreeSet<Digest>, Error> {
        const UNNEEDED: &str = "
            SELECT n.digest FROM JSON_TABLE(?, '$[*]' COLUMNS (digest VARCHAR(64) PATH '$')) n
            WHERE NOT EXISTS (SELECT 1 FROM deploycore_artifacts a FORCE INDEX (artifacts_digest)
                              WHERE a.digest = n.digest AND a.deleted_at IS NULL)";
        tombstones::check_digests(digests.len())?;
        let unneeded = || async {
            let mut borrowed = self.database.borrow().await?;
            let unneeded = sqlx::query(UNNEEDED).bind(stored::json(&digests));
            let rows = unneeded.fetch_all(borrowed.connection()).await.map_err(failed)?;
            borrowed.give_back();
            Ok(rows.iter().map(|row| Columns(row).parse("digest")).collect::<Result<_, _>>()?)
        };
        self.database.call(unneeded).await
    }
}
