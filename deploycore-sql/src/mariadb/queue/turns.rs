//! The turns of jobs that become ready.

use std::collections::{BTreeSet, HashMap};

use deploycore::model::{NewJob, OlderJobs, Timestamp};
use deploycore::port::BackendError;
use deploycore::port::queue::Order;
use deploycore::port::queue::turn::{Line, Turns};
use serde::Serialize;
use sqlx::mysql::MySqlConnection;

use crate::columns::Columns;
use crate::mariadb::database::{self, failed};
use crate::stored;

/// The order that holds.
pub(super) async fn setting(connection: &mut MySqlConnection) -> Result<Turns, BackendError> {
    const SETTING: &str = "SELECT fair_share, first_turn FROM deploycore_queue_settings WHERE one = 1";
    let row = sqlx::query(SETTING).fetch_one(connection).await.map_err(failed)?;
    Ok(Turns { order: Columns(&row).order()?, first: Columns(&row).number("first_turn")? })
}

/// The turns of new jobs, in their order. One with an earliest start stands in no line yet; one that cancels others is alone.
pub(super) async fn of_new(
    connection: &mut MySqlConnection,
    turns: Turns,
    jobs: &[&NewJob],
) -> Result<Vec<u64>, BackendError> {
    if turns.order == Order::Oldest {
        return Ok(vec![turns.first; jobs.len()]);
    }
    let now = database::now(connection).await?;
    let is_delayed = |job: &NewJob| job.not_before.is_some_and(|start: Timestamp| start > now);
    let mut lines = Lines::of(connection, jobs.iter().map(|job| key(job.service.as_str(), job.priority))).await?;
    let turn = |job: &&NewJob| match job.older_jobs {
        _ if is_delayed(job) => turns.first,
        OlderJobs::Keep => lines.join(turns, &key(job.service.as_str(), job.priority)),
        OlderJobs::CancelQueued => lines.take_place(turns, &key(job.service.as_str(), job.priority)),
    };
    Ok(jobs.iter().map(turn).collect())
}

/// Which line.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub(super) struct Key {
    name: String,
    urgency: i64,
}

pub(super) fn key(service: &str, priority: i16) -> Key {
    Key { name: service.to_owned(), urgency: -i64::from(priority) }
}

/// Lines, as they become while jobs join them.
pub(super) struct Lines(HashMap<Key, (Line, Option<u64>)>);

/// What each line hangs on, and the first turn in it.
pub(in crate::mariadb) const LINES: &str = "
    SELECT n.name, n.urgency,
           COALESCE((SELECT c.claimed_turn FROM deploycore_jobs c FORCE INDEX (jobs_claimed_turn)
                     WHERE c.urgency = n.urgency AND c.claimed_turn > 0 ORDER BY c.claimed_turn DESC LIMIT 1), 0) AS claimed,
           COALESCE((SELECT q.turn FROM deploycore_jobs q FORCE INDEX (jobs_queued_name)
                     WHERE q.queued_name = n.name AND q.urgency = n.urgency ORDER BY q.turn DESC LIMIT 1), 0) AS last,
           COALESCE((SELECT f.turn FROM deploycore_jobs f FORCE INDEX (jobs_queued_name)
                     WHERE f.queued_name = n.name AND f.urgency = n.urgency AND NOT f.is_delayed
                     ORDER BY f.turn LIMIT 1), -1) AS first
    FROM JSON_TABLE(?, '$[*]' COLUMNS (
        name VARCHAR(63) CHARACTER SET utf8mb4 PATH '$.name', urgency BIGINT PATH '$.urgency')) n";

impl Lines {
    pub(super) async fn of(
        connection: &mut MySqlConnection,
        keys: impl Iterator<Item = Key>,
    ) -> Result<Self, BackendError> {
        let keys: BTreeSet<Key> = keys.collect();
        let rows = sqlx::query(LINES).bind(stored::json(&keys)).fetch_all(connection).await.map_err(failed)?;
        let line = |row| {
            let columns = Columns(row);
            let key = Key { name: columns.parse("name")?, urgency: columns.integer("urgency")? };
            let line = Line { claimed: columns.number("claimed")?, last: columns.number("last")? };
            Ok((key, (line, u64::try_from(columns.integer("first")?).ok())))
        };
        Ok(Self(rows.iter().map(line).collect::<Result<_, BackendError>>()?))
    }

    /// The turn of the next job in a line.
    pub(super) fn join(&mut self, turns: Turns, key: &Key) -> u64 {
        let (line, _) = self.0.entry(key.clone()).or_default();
        line.last = turns.last_in(*line);
        line.last
    }

    fn take_place(&mut self, turns: Turns, key: &Key) -> u64 {
        let (line, first) = self.0.get(key).copied().unwrap_or_default();
        turns.in_place_of(line, first)
    }
}
