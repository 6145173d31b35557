//! Tombstones: each call is one transaction.

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use deploycore::model::{ArtifactName, Digest, DigestTombstone, NewArtifact, Tombstone, TombstoneStage, elapsed};
use deploycore::port::BackendError;
use deploycore::port::ledger::Error;
use deploycore::port::ledger::tombstones::{self, Idle, Tombstones};

use super::{Ledger, read};
use crate::columns::{Columns, artifact_columns, tombstone_columns};
use crate::sqlite::database::{Moment, failed};
use crate::stored;

/// Lifts the mark of a digest that a new artifact has.
pub(super) async fn make_way(moment: &mut Moment, artifact: &NewArtifact) -> Result<(), Error> {
    let (artifact, digest) = (artifact.artifact.name.clone(), artifact.artifact.digest);
    match find(moment, &digest).await?.map(|found| found.stage) {
        Some(TombstoneStage::Marked) => Ok(remove(moment, &digest).await?),
        Some(_) => Err(Error::BeingDeleted { artifact, digest }),
        None => Ok(()),
    }
}

/// Whether an artifact has a tombstone.
pub(super) async fn is_collected(moment: &mut Moment, artifact: &ArtifactName) -> Result<bool, BackendError> {
    let status = read::status(moment.connection(), artifact).await?;
    Ok(status.is_some_and(|status| status.tombstone.is_some()))
}

async fn find(moment: &mut Moment, digest: &Digest) -> Result<Option<Tombstone>, BackendError> {
    const FIND: &str = concat!("SELECT ", tombstone_columns!(), " FROM tombstones t WHERE t.digest = ?1");
    let row = sqlx::query(FIND).bind(digest.to_string()).fetch_optional(moment.connection()).await.map_err(failed)?;
    row.map(|row| Ok(Columns(&row).tombstone()?.tombstone)).transpose()
}

async fn remove(moment: &mut Moment, digest: &Digest) -> Result<(), BackendError> {
    const REMOVE: &str = "DELETE FROM tombstones WHERE digest = ?1";
    sqlx::query(REMOVE).bind(digest.to_string()).execute(moment.connection()).await.map_err(failed)?;
    Ok(())
}

async fn may_collect(moment: &mut Moment, digest: &Digest, idle: Idle) -> Result<(), Error> {
    const ARTIFACTS: &str = concat!(
        "SELECT ",
        artifact_columns!(),
        " FROM artifacts a INDEXED BY artifacts_digest WHERE a.digest = ?1 AND a.deleted_at IS NULL ORDER BY a.name"
    );
    let rows = sqlx::query(ARTIFACTS).bind(digest.to_string()).fetch_all(moment.connection()).await.map_err(failed)?;
    let artifacts = read::with_copies(moment.connection(), &rows).await?;
    tombstones::may_collect(digest, &artifacts, idle, moment.now)
}

#[async_trait]
impl Tombstones for Ledger {
    async fn set(&self, digest: &Digest, idle: Idle, reason: &str) -> Result<(), Error> {
        const SET: &str = "INSERT INTO tombstones (digest, stage, reason, since) VALUES (?1, 'marked', ?2, ?3)";
        let mut moment = self.database.write().await?;
        if find(&mut moment, digest).await?.is_some() {
            return Ok(());
        }
        may_collect(&mut moment, digest, idle).await?;
        let now = stored::micros(moment.now);
        let set = sqlx::query(SET).bind(digest.to_string()).bind(tombstones::cut_reason(reason)).bind(now);
        set.execute(moment.connection()).await.map_err(failed)?;
        Ok(moment.commit().await?)
    }

    async fn lift(&self, digest: &Digest) -> Result<bool, Error> {
        const LIFT: &str = "DELETE FROM tombstones WHERE digest = ?1 AND stage = 'marked'";
        let mut moment = self.database.write().await?;
        let lift = sqlx::query(LIFT).bind(digest.to_string());
        let lifted = lift.execute(moment.connection()).await.map_err(failed)?.rows_affected();
        moment.commit().await?;
        Ok(lifted > 0)
    }

    async fn begin_deletion(&self, digest: &Digest, idle: Idle, grace: Duration) -> Result<bool, Error> {
        const BEGIN: &str = "UPDATE tombstones SET stage = 'deleting', since = ?2 WHERE digest = ?1";
        let mut moment = self.database.write().await?;
        match find(&mut moment, digest).await? {
            Some(Tombstone { stage: TombstoneStage::Marked, since, .. }) if elapsed(since, moment.now) >= grace => {}
            found => return Ok(found.is_some_and(|found| found.stage == TombstoneStage::Deleting)),
        }
        may_collect(&mut moment, digest, idle).await?;
        let begin = sqlx::query(BEGIN).bind(digest.to_string()).bind(stored::micros(moment.now));
        begin.execute(moment.connection()).await.map_err(failed)?;
        moment.commit().await?;
        Ok(true)
    }

    async fn end_deletion(&self, digest: &Digest) -> Result<(), Error> {
        const COPIES: &str = "
            DELETE FROM copies
            WHERE artifact IN (SELECT name FROM artifacts INDEXED BY artifacts_digest
                               WHERE digest = ?1 AND deleted_at IS NULL)";
        const END: &str = "
            UPDATE artifacts SET deleted_at = ?2, deleted_because = ?3 WHERE digest = ?1 AND deleted_at IS NULL";
        let mut moment = self.database.write().await?;
        let Some(Tombstone { stage: TombstoneStage::Deleting, reason, .. }) = find(&mut moment, digest).await? else {
            return Ok(());
        };
        sqlx::query(COPIES).bind(digest.to_string()).execute(moment.connection()).await.map_err(failed)?;
        let end = sqlx::query(END).bind(digest.to_string()).bind(stored::micros(moment.now)).bind(reason);
        end.execute(moment.connection()).await.map_err(failed)?;
        remove(&mut moment, digest).await?;
        Ok(moment.commit().await?)
    }

    async fn unfinished(&self, limit: usize) -> Result<Vec<DigestTombstone>, Error> {
        const UNFINISHED: &str =
            concat!("SELECT ", tombstone_columns!(), " FROM tombstones t ORDER BY t.since, t.digest LIMIT ?1");
        tombstones::check_unfinished(limit)?;
        let mut moment = self.database.read().await?;
        let unfinished = sqlx::query(UNFINISHED).bind(limit as i64);
        let rows = unfinished.fetch_all(moment.connection()).await.map_err(failed)?;
        Ok(rows.iter().map(|row| Columns(row).tombstone()).collect::<Result<_, _>>()?)
    }

    async fn unneeded(&self, digests: &[Digest]) -> Result<BTreeSet<Digest>, Error> {
        const UNNEEDED: &str = "
            SELECT value AS digest FROM json_each(?1)
            WHERE NOT EXISTS (SELECT 1 FROM artifacts a WHERE a.digest = json_each.value AND a.deleted_at IS NULL)";
        tombstones::check_digests(digests.len())?;
        let mut moment = self.database.read().await?;
        let unneeded = sqlx::query(UNNEEDED).bind(stored::json(&digests));
        let rows = unneeded.fetch_all(moment.connection()).await.map_err(failed)?;
        Ok(rows.iter().map(|row| Columns(row).parse("digest")).collect::<Result<_, _>>()?)
    }
}
