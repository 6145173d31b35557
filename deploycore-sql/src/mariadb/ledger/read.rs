//! Looking at the ledger.

use std::collections::{BTreeMap, BTreeSet};

use deploycore::model::{
    ArtifactName, ArtifactStatus, CopyStatus, Digest, DigestTombstone, PinHolder, RegionName, Tombstone,
};
use deploycore::port::BackendError;
use deploycore::port::ledger::{LedgerCursor, LedgerFilter, LedgerPage};
use sqlx::mysql::{MySqlConnection, MySqlRow};

use crate::columns::{Columns, artifact_columns, copy_columns, tombstone_columns};
use crate::mariadb::database::failed;
use crate::stored;

pub(super) async fn unregistered(
    connection: &mut MySqlConnection,
    names: &[ArtifactName],
) -> Result<BTreeSet<ArtifactName>, BackendError> {
    const UNKNOWN: &str = "
        SELECT n.name FROM JSON_TABLE(?, '$[*]' COLUMNS (name VARCHAR(128) PATH '$')) n
        WHERE NOT EXISTS (SELECT 1 FROM deploycore_artifacts a WHERE a.name = n.name)";
    let rows = sqlx::query(UNKNOWN).bind(stored::json(&names)).fetch_all(connection).await.map_err(failed)?;
    rows.iter().map(|row| Columns(row).parse("name")).collect()
}

/// In a transaction that sees one state of the ledger.
pub(super) async fn status(
    connection: &mut MySqlConnection,
    name: &ArtifactName,
) -> Result<Option<ArtifactStatus>, BackendError> {
    const ARTIFACT: &str = concat!("SELECT ", artifact_columns!(), " FROM deploycore_artifacts a WHERE a.name = ?");
    let rows = sqlx::query(ARTIFACT).bind(name.as_str()).fetch_all(&mut *connection).await.map_err(failed)?;
    Ok(with_copies(connection, &rows).await?.pop())
}

/// A page along one index. First come the values by which it goes along, if there are any. Then each has all parameters: a service twice (NULL
/// for any), where the page starts, which is an instant twice and a name, a holder of pins twice (NULL for any), and its length. The server
/// seeks by the instant alone. A holder narrows what the index gives, by one look into the key of `deploycore_pins` for each artifact.
macro_rules! page {
    ($from:literal, $along:literal, $table:literal, $name:literal) => {
        concat!(
            "SELECT ",
            artifact_columns!(),
            " FROM ",
            $from,
            " WHERE ",
            $along,
            " AND (? IS NULL OR a.service = ?) AND ",
            $table,
            ".registered_at <= ? AND (",
            $table,
            ".registered_at < ? OR ",
            $name,
            " < ?)
             AND (? IS NULL OR EXISTS (SELECT 1 FROM deploycore_pins p WHERE p.artifact = a.name AND p.holder = ?))
             ORDER BY ",
            $table,
            ".registered_at DESC, ",
            $name,
            " DESC LIMIT ?"
        )
    };
}

pub(in crate::mariadb) const ALL: &str =
    page!("deploycore_artifacts a FORCE INDEX (artifacts_registered)", "TRUE", "a", "a.name");
pub(in crate::mariadb) const BY_SERVICE: &str =
    page!("deploycore_artifacts a FORCE INDEX (artifacts_service)", "a.service = ?", "a", "a.name");
pub(in crate::mariadb) const BY_COPY: &str = page!(
    "deploycore_copies c FORCE INDEX (copies_state) STRAIGHT_JOIN deploycore_artifacts a ON a.name = c.artifact",
    "c.region = ? AND c.state = ?",
    "c",
    "c.artifact"
);

pub(super) async fn list(
    connection: &mut MySqlConnection,
    filter: &LedgerFilter,
    after: Option<&LedgerCursor>,
    limit: usize,
) -> Result<LedgerPage, BackendError> {
    let service = filter.service.as_ref().map(AsRef::<str>::as_ref);
    let page = match (&filter.copy, service) {
        (Some((region, state)), _) => sqlx::query(BY_COPY).bind(region.as_str()).bind(state.as_str()),
        (None, Some(_)) => sqlx::query(BY_SERVICE).bind(service),
        (None, None) => sqlx::query(ALL),
    };
    let since = after.map_or(i64::MAX, |cursor| stored::micros(cursor.registered_at));
    let holder = filter.pinned_by.as_ref().map(PinHolder::as_str);
    let page = page.bind(service).bind(service).bind(since).bind(since);
    let page = page.bind(after.map_or("", |cursor| cursor.artifact.as_str())).bind(holder).bind(holder);
    let mut rows = page.bind(limit as i64 + 1).fetch_all(&mut *connection).await.map_err(failed)?;
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
    connection: &mut MySqlConnection,
    artifacts: &[MySqlRow],
) -> Result<Vec<ArtifactStatus>, BackendError> {
    const COPIES: &str = concat!(
        "SELECT ",
        copy_columns!(),
        " FROM JSON_TABLE(?, '$[*]' COLUMNS (name VARCHAR(128) PATH '$')) n
        STRAIGHT_JOIN deploycore_copies c ON c.artifact = n.name"
    );
    const PINS: &str = "
        SELECT p.artifact, p.holder FROM JSON_TABLE(?, '$[*]' COLUMNS (name VARCHAR(128) PATH '$')) n
        STRAIGHT_JOIN deploycore_pins p ON p.artifact = n.name";
    const TOMBSTONES: &str = concat!(
        "SELECT DISTINCT ",
        tombstone_columns!(),
        " FROM JSON_TABLE(?, '$[*]' COLUMNS (name VARCHAR(128) PATH '$')) n
        STRAIGHT_JOIN deploycore_artifacts a ON a.name = n.name
        STRAIGHT_JOIN deploycore_tombstones t ON t.digest = a.digest"
    );
    let names: Result<Vec<ArtifactName>, _> = artifacts.iter().map(|row| Columns(row).parse("name")).collect();
    let names = stored::json(&names?);

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
