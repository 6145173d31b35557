//! Looking at the ledger.

use std::collections::{BTreeMap, BTreeSet};

use deploycore::model::{
    ArtifactName, ArtifactStatus, CopyStatus, Digest, DigestTombstone, PinHolder, RegionName, Tombstone,
};
use deploycore::port::BackendError;
use deploycore::port::ledger::{LedgerCursor, LedgerFilter, LedgerPage};
use sqlx::postgres::{PgConnection, PgRow};

use super::texts;
use crate::columns::{Columns, artifact_columns, copy_columns, tombstone_columns};
use crate::postgres::database::failed;
use crate::stored;

pub(super) async fn unregistered(
    connection: &mut PgConnection,
    names: &[ArtifactName],
) -> Result<BTreeSet<ArtifactName>, BackendError> {
    const UNKNOWN: &str = "
        SELECT n.name FROM unnest($1::text[]) AS n (name)
        WHERE NOT EXISTS (SELECT FROM deploycore.artifacts a WHERE a.name = n.name)";
    let rows = sqlx::query(UNKNOWN).bind(texts(names.iter())).fetch_all(connection).await.map_err(failed)?;
    rows.iter().map(|row| Columns(row).parse("name")).collect()
}

/// In a transaction that sees one state of the ledger.
pub(super) async fn status(
    connection: &mut PgConnection,
    name: &ArtifactName,
) -> Result<Option<ArtifactStatus>, BackendError> {
    const ARTIFACT: &str = concat!("SELECT ", artifact_columns!(), " FROM deploycore.artifacts a WHERE a.name = $1");
    let rows = sqlx::query(ARTIFACT).bind(name.as_str()).fetch_all(&mut *connection).await.map_err(failed)?;
    Ok(with_copies(connection, &rows).await?.pop())
}

/// A page along one index. Each has all parameters: 1 a service, 2 and 3 a region and the state of the copy there (each may be NULL
/// for any), 4 and 5 where the page starts, 6 its length, 7 a holder of pins (NULL for any). A holder narrows what the index gives, by one
/// look into the key of `pins` for each artifact.
const ALL: &str = concat!(
    "SELECT ",
    artifact_columns!(),
    " FROM deploycore.artifacts a
    WHERE (a.registered_at, a.name) < ($4::bigint, $5::text)
      AND $1::text IS NULL AND $2::text IS NULL AND $3::text IS NULL
      AND ($7::text IS NULL OR EXISTS (SELECT FROM deploycore.pins p WHERE p.artifact = a.name AND p.holder = $7))
    ORDER BY a.registered_at DESC, a.name DESC LIMIT $6"
);
const BY_SERVICE: &str = concat!(
    "SELECT ",
    artifact_columns!(),
    " FROM deploycore.artifacts a
    WHERE a.service = $1 AND (a.registered_at, a.name) < ($4::bigint, $5::text) AND $2::text IS NULL AND $3::text IS NULL
      AND ($7::text IS NULL OR EXISTS (SELECT FROM deploycore.pins p WHERE p.artifact = a.name AND p.holder = $7))
    ORDER BY a.registered_at DESC, a.name DESC LIMIT $6"
);
const BY_COPY: &str = concat!(
    "SELECT ",
    artifact_columns!(),
    " FROM deploycore.copies c JOIN deploycore.artifacts a ON a.name = c.artifact
    WHERE c.region = $2 AND c.state = $3 AND (c.registered_at, c.artifact) < ($4::bigint, $5::text)
      AND ($1::text IS NULL OR a.service = $1)
      AND ($7::text IS NULL OR EXISTS (SELECT FROM deploycore.pins p WHERE p.artifact = a.name AND p.holder = $7))
    ORDER BY c.registered_at DESC, c.artifact DESC LIMIT $6"
);

pub(super) async fn list(
    connection: &mut PgConnection,
    filter: &LedgerFilter,
    after: Option<&LedgerCursor>,
    limit: usize,
) -> Result<LedgerPage, BackendError> {
    let page = match filter {
        LedgerFilter { copy: Some(_), .. } => BY_COPY,
        LedgerFilter { service: Some(_), .. } => BY_SERVICE,
        LedgerFilter { service: None, copy: None, .. } => ALL,
    };
    let mut rows = sqlx::query(page)
        .bind(filter.service.as_ref().map(AsRef::<str>::as_ref))
        .bind(filter.copy.as_ref().map(|(region, _)| region.as_str()))
        .bind(filter.copy.as_ref().map(|(_, state)| state.as_str()))
        .bind(after.map_or(i64::MAX, |cursor| stored::micros(cursor.registered_at)))
        .bind(after.map_or("", |cursor| cursor.artifact.as_str()))
        .bind(limit as i64 + 1)
        .bind(filter.pinned_by.as_ref().map(PinHolder::as_str))
        .fetch_all(&mut *connection)
        .await
        .map_err(failed)?;
    let is_last = rows.len() <= limit;
    rows.truncate(limit);
    let artifacts = with_copies(connection, &rows).await?;
    let next = artifacts.last().filter(|_| !is_last).map(|last| LedgerCursor {
        registered_at: last.registered_at,
        artifact: last.registered.artifact.name.clone(),
    });
    Ok(LedgerPage { artifacts, next })
}

/// Adds copies, pins and tombstones to rows of `artifacts`, in their order.
pub(super) async fn with_copies(
    connection: &mut PgConnection,
    artifacts: &[PgRow],
) -> Result<Vec<ArtifactStatus>, BackendError> {
    const COPIES: &str = concat!("SELECT ", copy_columns!(), " FROM deploycore.copies c WHERE c.artifact = ANY ($1)");
    const PINS: &str = "SELECT artifact, holder FROM deploycore.pins WHERE artifact = ANY ($1)";
    const TOMBSTONES: &str = concat!(
        "SELECT ",
        tombstone_columns!(),
        " FROM deploycore.tombstones t
        WHERE t.digest IN (SELECT a.digest FROM deploycore.artifacts a WHERE a.name = ANY ($1))"
    );
    let names: Result<Vec<ArtifactName>, _> = artifacts.iter().map(|row| Columns(row).parse("name")).collect();
    let names = texts(names?.iter());

    let mut copies: BTreeMap<ArtifactName, BTreeMap<RegionName, CopyStatus>> = BTreeMap::new();
    for row in sqlx::query(COPIES).bind(&names).fetch_all(&mut *connection).await.map_err(failed)? {
        let (artifact, region) = (Columns(&row).parse("artifact")?, Columns(&row).parse("region")?);
        copies.entry(artifact).or_default().insert(region, Columns(&row).copy()?.status);
    }
    let mut pins: BTreeMap<ArtifactName, BTreeSet<PinHolder>> = BTreeMap::new();
    for row in sqlx::query(PINS).bind(&names).fetch_all(&mut *connection).await.map_err(failed)? {
        pins.entry(Columns(&row).parse("artifact")?).or_default().insert(Columns(&row).parse("holder")?);
    }
    let mut tombstones: BTreeMap<Digest, Tombstone> = BTreeMap::new();
    for row in sqlx::query(TOMBSTONES).bind(&names).fetch_all(connection).await.map_err(failed)? {
        let DigestTombstone { digest, tombstone } = Columns(&row).tombstone()?;
        tombstones.insert(digest, tombstone);
    }

    let mut statuses = Vec::with_capacity(artifacts.len());
    for row in artifacts {
        let name: ArtifactName = Columns(row).parse("name")?;
        let digest: Digest = Columns(row).parse("digest")?;
        let copies = copies.remove(&name).unwrap_or_default();
        statuses.push(ArtifactStatus {
            registered: Columns(row).artifact(copies.keys().cloned().collect())?,
            registered_at: Columns(row).time("registered_at")?,
            copies,
            pins: pins.remove(&name).unwrap_or_default(),
            last_pinned_at: Columns(row).optional_time("last_pinned_at")?,
            tombstone: Columns(row).deleted()?.or_else(|| tombstones.get(&digest).cloned()),
        });
    }
    Ok(statuses)
}
