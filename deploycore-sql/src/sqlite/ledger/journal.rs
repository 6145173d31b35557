//! The journal of uploads: each call is one transaction, in which the lease is looked at first.

use std::collections::BTreeMap;

use async_trait::async_trait;
use deploycore::model::CopyLease;
use deploycore::port::BackendError;
use deploycore::port::ledger::{CopyJournal, Error, JournaledUpload, bounds, transition};
use deploycore::port::store::{PartTag, UploadId};

use super::{Ledger, count_refusal, require};
use crate::columns::Columns;
use crate::sqlite::database::{Moment, failed};
use crate::stored;

/// Forgets the upload of a copy, with its parts.
pub(super) async fn clear(moment: &mut Moment, lease: &CopyLease) -> Result<(), BackendError> {
    const CLEAR: &str = "DELETE FROM copy_uploads WHERE artifact = ?1 AND region = ?2";
    let clear = sqlx::query(CLEAR).bind(lease.artifact.as_str()).bind(lease.region.as_str());
    clear.execute(moment.connection()).await.map_err(failed)?;
    Ok(())
}

async fn check(moment: &mut Moment, lease: &CopyLease) -> Result<(), Error> {
    let found = require(moment, &lease.artifact, &lease.region).await?;
    transition::journal(&found.copy, lease).inspect_err(count_refusal)
}

#[async_trait]
impl CopyJournal for Ledger {
    async fn upload(&self, lease: &CopyLease) -> Result<Option<JournaledUpload>, Error> {
        const UPLOAD: &str = "SELECT upload, part_size FROM copy_uploads WHERE artifact = ?1 AND region = ?2";
        const PARTS: &str = "SELECT part, tag FROM copy_parts WHERE artifact = ?1 AND region = ?2";
        let mut moment = self.database.read().await?;
        check(&mut moment, lease).await?;
        let found = sqlx::query(UPLOAD).bind(lease.artifact.as_str()).bind(lease.region.as_str());
        let Some(row) = found.fetch_optional(moment.connection()).await.map_err(failed)? else {
            return Ok(None);
        };
        let (upload, part_size) = (Columns(&row).parse::<String>("upload")?, Columns(&row).number("part_size")?);
        let parts = sqlx::query(PARTS).bind(lease.artifact.as_str()).bind(lease.region.as_str());
        let parts: Result<BTreeMap<_, _>, Error> = parts
            .fetch_all(moment.connection())
            .await
            .map_err(failed)?
            .iter()
            .map(|row| Ok((Columns(row).number("part")?, PartTag::new(Columns(row).parse::<String>("tag")?))))
            .collect();
        Ok(Some(JournaledUpload { upload: UploadId::new(upload), part_size, parts: parts? }))
    }

    async fn begin(&self, lease: &CopyLease, upload: &UploadId, part_size: u64) -> Result<(), Error> {
        const BEGIN: &str = "INSERT INTO copy_uploads (artifact, region, upload, part_size) VALUES (?1, ?2, ?3, ?4)";
        bounds::check_upload(upload, part_size)?;
        let mut moment = self.database.write().await?;
        check(&mut moment, lease).await?;
        clear(&mut moment, lease).await?;
        let begin = sqlx::query(BEGIN)
            .bind(lease.artifact.as_str())
            .bind(lease.region.as_str())
            .bind(upload.as_str())
            .bind(part_size as i64);
        begin.execute(moment.connection()).await.map_err(failed)?;
        Ok(moment.commit().await?)
    }

    async fn add(&self, lease: &CopyLease, parts: &[(u32, PartTag)]) -> Result<(), Error> {
        const THERE: &str = "SELECT count(*) FROM copy_uploads WHERE artifact = ?1 AND region = ?2";
        const ADD: &str = "
            INSERT INTO copy_parts (artifact, region, part, tag)
            SELECT ?1, ?2, value ->> 0, value ->> 1 FROM json_each(?3) WHERE true
            ON CONFLICT DO UPDATE SET tag = excluded.tag";
        bounds::check_parts(parts)?;
        let mut moment = self.database.write().await?;
        check(&mut moment, lease).await?;
        let there = sqlx::query_scalar::<_, i64>(THERE).bind(lease.artifact.as_str()).bind(lease.region.as_str());
        if there.fetch_one(moment.connection()).await.map_err(failed)? == 0 {
            return Err(transition::no_upload(lease));
        }
        let add = sqlx::query(ADD).bind(lease.artifact.as_str()).bind(lease.region.as_str()).bind(stored::json(&parts));
        add.execute(moment.connection()).await.map_err(failed)?;
        Ok(moment.commit().await?)
    }

    async fn clear(&self, lease: &CopyLease) -> Result<(), Error> {
        let mut moment = self.database.write().await?;
        check(&mut moment, lease).await?;
        clear(&mut moment, lease).await?;
        Ok(moment.commit().await?)
    }
}
