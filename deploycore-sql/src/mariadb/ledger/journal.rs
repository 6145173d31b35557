//! The journal of uploads: each call is one transaction that locks the copy and looks at the lease first.

use std::collections::BTreeMap;

use async_trait::async_trait;
use deploycore::model::{ArtifactName, CopyLease, RegionName};
use deploycore::port::BackendError;
use deploycore::port::ledger::{CopyJournal, Error, JournaledUpload, bounds, transition};
use deploycore::port::store::{PartTag, UploadId};
use sqlx::mysql::MySqlConnection;

use super::{Ledger, count_refusal, row};
use crate::columns::Columns;
use crate::mariadb::database::failed;
use crate::stored;

async fn check(connection: &mut MySqlConnection, lease: &CopyLease) -> Result<(), Error> {
    let found = row::lock(connection, &lease.artifact, &lease.region).await?;
    let found = found.ok_or_else(|| Error::NotFound { artifact: lease.artifact.clone() })?;
    transition::journal(&found.copy, lease)
}

/// Forgets the upload of a copy that is locked, with its parts.
pub(super) async fn clear(
    connection: &mut MySqlConnection,
    artifact: &ArtifactName,
    region: &RegionName,
) -> Result<(), BackendError> {
    const CLEAR: &str = "DELETE FROM deploycore_copy_uploads WHERE artifact = ? AND region = ?";
    let clear = sqlx::query(CLEAR).bind(artifact.as_str()).bind(region.as_str());
    clear.execute(connection).await.map_err(failed)?;
    Ok(())
}

async fn clear_under(connection: &mut MySqlConnection, lease: &CopyLease) -> Result<(), Error> {
    check(connection, lease).await?;
    Ok(clear(connection, &lease.artifact, &lease.region).await?)
}

async fn read(connection: &mut MySqlConnection, lease: &CopyLease) -> Result<Option<JournaledUpload>, Error> {
    const UPLOAD: &str = "SELECT upload, part_size FROM deploycore_copy_uploads WHERE artifact = ? AND region = ?";
    const PARTS: &str = "SELECT part, tag FROM deploycore_copy_parts WHERE artifact = ? AND region = ?";
    check(connection, lease).await?;
    let found = sqlx::query(UPLOAD).bind(lease.artifact.as_str()).bind(lease.region.as_str());
    let Some(row) = found.fetch_optional(&mut *connection).await.map_err(failed)? else {
        return Ok(None);
    };
    let (upload, part_size) = (Columns(&row).parse::<String>("upload")?, Columns(&row).number("part_size")?);
    let parts = sqlx::query(PARTS).bind(lease.artifact.as_str()).bind(lease.region.as_str());
    let rows = parts.fetch_all(connection).await.map_err(failed)?;
    let part = |row| Ok((Columns(row).number("part")?, PartTag::new(Columns(row).parse::<String>("tag")?)));
    let parts = rows.iter().map(part).collect::<Result<BTreeMap<_, _>, Error>>()?;
    Ok(Some(JournaledUpload { upload: UploadId::new(upload), part_size, parts }))
}

async fn begin(
    connection: &mut MySqlConnection,
    lease: &CopyLease,
    upload: &UploadId,
    part_size: u64,
) -> Result<(), Error> {
    const BEGIN: &str = "INSERT INTO deploycore_copy_uploads (artifact, region, upload, part_size) VALUES (?, ?, ?, ?)";
    clear_under(connection, lease).await?;
    let begin = sqlx::query(BEGIN)
        .bind(lease.artifact.as_str())
        .bind(lease.region.as_str())
        .bind(upload.as_str())
        .bind(part_size as i64);
    begin.execute(connection).await.map_err(failed)?;
    Ok(())
}

async fn add(connection: &mut MySqlConnection, lease: &CopyLease, parts: &[(u32, PartTag)]) -> Result<(), Error> {
    const THERE: &str = "SELECT COUNT(*) FROM deploycore_copy_uploads WHERE artifact = ? AND region = ?";
    const ADD: &str = "
        INSERT INTO deploycore_copy_parts (artifact, region, part, tag)
        SELECT ?, ?, n.part, n.tag
        FROM JSON_TABLE(?, '$[*]' COLUMNS (part BIGINT PATH '$[0]', tag TEXT CHARACTER SET utf8mb4 PATH '$[1]')) n
        ON DUPLICATE KEY UPDATE tag = VALUES(tag)";
    check(connection, lease).await?;
    let there = sqlx::query_scalar::<_, i64>(THERE).bind(lease.artifact.as_str()).bind(lease.region.as_str());
    if there.fetch_one(&mut *connection).await.map_err(failed)? == 0 {
        return Err(transition::no_upload(lease));
    }
    let add = sqlx::query(ADD).bind(lease.artifact.as_str()).bind(lease.region.as_str()).bind(stored::json(&parts));
    add.execute(connection).await.map_err(failed)?;
    Ok(())
}

/// A call as a transaction within the database's limits.
macro_rules! journaled {
    ($ledger:ident, $connection:ident => $work:expr) => {{
        let call = || async {
            let mut moment = $ledger.database.begin().await?;
            let $connection = moment.connection();
            let done = $work.await;
            moment.end(done).await
        };
        $ledger.database.call(call).await.inspect_err(count_refusal)
    }};
}

#[async_trait]
impl CopyJournal for Ledger {
    async fn upload(&self, lease: &CopyLease) -> Result<Option<JournaledUpload>, Error> {
        journaled!(self, connection => read(connection, lease))
    }

    async fn begin(&self, lease: &CopyLease, upload: &UploadId, part_size: u64) -> Result<(), Error> {
        bounds::check_upload(upload, part_size)?;
        journaled!(self, connection => begin(connection, lease, upload, part_size))
    }

    async fn add(&self, lease: &CopyLease, parts: &[(u32, PartTag)]) -> Result<(), Error> {
        bounds::check_parts(parts)?;
        journaled!(self, connection => add(connection, lease, parts))
    }

    async fn clear(&self, lease: &CopyLease) -> Result<(), Error> {
        journaled!(self, connection => clear_under(connection, lease))
    }
}
