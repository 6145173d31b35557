//! The turns of jobs that become ready.

use deploycore::model::{NewJob, OlderJobs, ServiceName};
use deploycore::port::BackendError;
use deploycore::port::queue::Order;
use deploycore::port::queue::turn::{Line, Turns};
use sqlx::sqlite::SqliteConnection;

use crate::columns::Columns;
use crate::sqlite::database::{Moment, failed};
use crate::stored;

/// The order that holds.
pub(super) async fn setting(connection: &mut SqliteConnection) -> Result<Turns, BackendError> {
    const SETTING: &str = "SELECT fair_share, first_turn FROM queue_settings WHERE one = 1";
    let row = sqlx::query(SETTING).fetch_one(connection).await.map_err(failed)?;
    Ok(Turns { order: Columns(&row).order()?, first: Columns(&row).number("first_turn")? })
}

/// The turn of a new job. One with an earliest start stands in no line yet.
pub(super) async fn of_new(moment: &mut Moment, turns: Turns, spec: &NewJob) -> Result<u64, BackendError> {
    let is_delayed = spec.not_before.is_some_and(|start| start > moment.now);
    if turns.order == Order::Oldest || is_delayed {
        return Ok(turns.first);
    }
    let line = line(moment.connection(), &spec.service, spec.priority).await?;
    if spec.older_jobs == OlderJobs::Keep {
        return Ok(turns.last_in(line));
    }
    let first = sqlx::query(FIRST).bind(spec.service.as_str()).bind(i64::from(spec.priority));
    let first = first.fetch_optional(moment.connection()).await.map_err(failed)?;
    let first = first.map(|row| Columns(&row).number("turn")).transpose()?;
    Ok(turns.in_place_of(line, first))
}

pub(in crate::sqlite) const LINE: &str = "
    SELECT coalesce((SELECT turn FROM jobs INDEXED BY jobs_claimed_turn
                     WHERE priority = ?2 AND turn > 0 AND epoch > 0 ORDER BY turn DESC LIMIT 1), 0) AS claimed,
           coalesce((SELECT turn FROM jobs INDEXED BY jobs_queued_name
                     WHERE status = 'QUEUED' AND name = ?1 AND priority = ?2 ORDER BY turn DESC LIMIT 1), 0) AS last";
pub(in crate::sqlite) const FIRST: &str = "
    SELECT turn FROM jobs INDEXED BY jobs_queued_name
    WHERE status = 'QUEUED' AND name = ?1 AND priority = ?2 AND delayed = 0 ORDER BY turn LIMIT 1";

async fn line(connection: &mut SqliteConnection, service: &ServiceName, priority: i16) -> Result<Line, BackendError> {
    let line = sqlx::query(LINE).bind(service.as_str()).bind(i64::from(priority));
    let row = line.fetch_one(connection).await.map_err(failed)?;
    Ok(Line { claimed: Columns(&row).number("claimed")?, last: Columns(&row).number("last")? })
}

pub(in crate::sqlite) const DUE: &str = "
    SELECT id, name, priority, epoch, turn FROM jobs INDEXED BY jobs_eligible
    WHERE status = 'QUEUED' AND delayed = 1 AND eligible_at <= ?1 ORDER BY eligible_at, created_at, id LIMIT ?2";

/// Makes up to `most` jobs ready whose time has come, where services take turns; how many there were. One whose earliest start has passed gets its
/// turn, one that comes back has it.
pub(super) async fn join_lines(moment: &mut Moment, turns: Turns, most: u64) -> Result<u64, BackendError> {
    const JOIN: &str = "UPDATE jobs SET delayed = 0, turn = ?2 WHERE id = ?1";
    let due = sqlx::query(DUE).bind(stored::micros(moment.now)).bind(most as i64);
    let due = due.fetch_all(moment.connection()).await.map_err(failed)?;
    for row in &due {
        let job = Columns(row);
        let turn = if job.number::<u64>("epoch")? > 0 {
            job.number("turn")?
        } else {
            turns.last_in(line(moment.connection(), &job.parse("name")?, job.number("priority")?).await?)
        };
        let join = sqlx::query(JOIN).bind(job.job_id("id")?.to_string()).bind(turn as i64);
        join.execute(moment.connection()).await.map_err(failed)?;
    }
    Ok(due.len() as u64)
}
