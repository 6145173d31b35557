//! Ends of attempts by their workers' word, one or many in a call.

use std::collections::{HashMap, HashSet};

use deploycore::model::{ArtifactRef, AttemptOutcome, Completion, JobId, JobStatus, Lease, LogName};
use deploycore::port::BackendError;
use deploycore::port::queue::transition::{self, Standing};
use deploycore::port::queue::{AttemptEnd, Error, bounds};
use sqlx::postgres::PgConnection;
use sqlx::types::Uuid;

use super::lease::epoch;
use super::row::{self, Ended};
use crate::postgres::database::{self, Database, failed};

/// Of an end whose completion is cut as it is kept.
pub(super) async fn complete(database: &Database, lease: &Lease, completion: &Completion) -> Result<JobStatus, Error> {
    check_size(completion)?;
    if succeed(database, lease, completion).await? {
        return Ok(JobStatus::Succeeded);
    }
    let mut moment = database.begin().await?;
    let end = AttemptEnd { lease: *lease, completion: completion.clone() };
    let settled = settle(moment.connection(), &[&end]).await;
    let mut answers = moment.end(settled).await?;
    answers.pop().unwrap_or(Err(Error::NotFound { job: lease.job }))
}

/// One statement for all successes under current leases, which is nearly every batch; one short transaction for the others.
pub(super) async fn complete_batch(
    database: &Database,
    ends: &[AttemptEnd],
) -> Result<Vec<Result<JobStatus, Error>>, Error> {
    let ends: Vec<AttemptEnd> = ends
        .iter()
        .map(|end| AttemptEnd { lease: end.lease, completion: bounds::cut_completion(&end.completion) })
        .collect();
    let mut answers: Vec<Option<Result<JobStatus, Error>>> =
        ends.iter().map(|end| check_size(&end.completion).err().map(Err)).collect();
    for round in rounds(&ends, &answers) {
        let done = succeed_all(database, &ends, &round).await?;
        let mut others = Vec::new();
        for index in round {
            if done.contains(&ends[index].lease.job) {
                answers[index] = Some(Ok(JobStatus::Succeeded));
            } else {
                others.push(index);
            }
        }
        if others.is_empty() {
            continue;
        }
        let open: Vec<&AttemptEnd> = others.iter().map(|index| &ends[*index]).collect();
        let mut moment = database.begin().await?;
        let settled = settle(moment.connection(), &open).await;
        let settled = moment.end(settled).await?;
        for (index, answer) in others.into_iter().zip(settled) {
            answers[index] = Some(answer);
        }
    }
    let lost = |(answer, end): (Option<_>, &AttemptEnd)| answer.unwrap_or(Err(Error::NotFound { job: end.lease.job }));
    Ok(answers.into_iter().zip(&ends).map(lost).collect())
}

/// Ends of one job go one after the other, all others at once: the places of the ends that are not answered yet, by round.
fn rounds(ends: &[AttemptEnd], answers: &[Option<Result<JobStatus, Error>>]) -> Vec<Vec<usize>> {
    let mut seen: HashMap<JobId, usize> = HashMap::new();
    let mut rounds: Vec<Vec<usize>> = Vec::new();
    for index in (0..ends.len()).filter(|index| answers[*index].is_none()) {
        let round = seen.entry(ends[index].lease.job).or_default();
        if *round == rounds.len() {
            rounds.push(Vec::new());
        }
        rounds[*round].push(index);
        *round += 1;
    }
    rounds
}

fn check_size(completion: &Completion) -> Result<(), Error> {
    match completion {
        Completion::Succeeded { artifact, .. } if i64::try_from(artifact.size).is_err() => {
            Err(Error::Invalid(format!("an artifact of {} bytes", artifact.size)))
        }
        _ => Ok(()),
    }
}

/// A success as the columns of its job hold it.
struct Success<'c> {
    lease: &'c Lease,
    artifact: &'c ArtifactRef,
    size: i64,
    has_log: bool,
    build_ms: i64,
    store_ms: i64,
}

impl<'c> Success<'c> {
    /// `None` for other ends, and for what the columns do not hold, a log of another attempt for one: these have a way of their own.
    fn of(lease: &'c Lease, completion: &'c Completion) -> Option<Self> {
        let Completion::Succeeded { artifact, log, timings } = completion else {
            return None;
        };
        let own = LogName { job: lease.job, epoch: lease.epoch };
        let has_log = log.as_ref().map_or(Some(false), |log| (*log == own).then_some(true))?;
        let (size, build_ms) = (i64::try_from(artifact.size).ok()?, i64::try_from(timings.build_ms).ok()?);
        let store_ms = i64::try_from(timings.store_ms).ok()?;
        Some(Self { lease, artifact, size, has_log, build_ms, store_ms })
    }
}

/// The status is asked for in words that lead to no index: that of what runs would be walked over for all of one claim.
pub(super) const SUCCEED: &str = "UPDATE deploycore.jobs j SET
         status = 'SUCCEEDED', finished_at = deploycore.instant(), artifact = $4, digest = $5, size = $6, has_log = $7,
         build_ms = $8, store_ms = $9
     WHERE j.id = $1 AND coalesce(j.status = 'RUNNING', false) AND j.epoch = $2 AND j.claim_id = $3";

/// What nearly every completion is, in one write: a success under the current lease. It decides as [`transition::standing`] and
/// [`transition::complete`], which a test compares it with. False for all others.
async fn succeed(database: &Database, lease: &Lease, completion: &Completion) -> Result<bool, Error> {
    let Some(success) = Success::of(lease, completion) else {
        return Ok(false);
    };
    let mut borrowed = database.borrow().await?;
    let ended = sqlx::query(SUCCEED)
        .bind(lease.job.as_uuid())
        .bind(epoch(lease))
        .bind(lease.claim.as_uuid())
        .bind(success.artifact.name.as_str())
        .bind(success.artifact.digest.to_string())
        .bind(success.size)
        .bind(success.has_log)
        .bind(success.build_ms)
        .bind(success.store_ms)
        .execute(borrowed.connection())
        .await
        .map_err(failed)?;
    borrowed.give_back();
    Ok(ended.rows_affected() == 1)
}

/// [`SUCCEED`] for many jobs.
pub(super) const SUCCEED_ALL: &str =
    "UPDATE deploycore.jobs j SET
         status = 'SUCCEEDED', finished_at = deploycore.instant(), artifact = n.artifact, digest = n.digest,
         size = n.size, has_log = n.has_log, build_ms = n.build_ms, store_ms = n.store_ms
     FROM unnest($1::uuid[], $2::bigint[], $3::uuid[], $4::text[], $5::text[], $6::bigint[], $7::boolean[], $8::bigint[], $9::bigint[])
         AS n (job, epoch, claim, artifact, digest, size, has_log, build_ms, store_ms)
     WHERE j.id = n.job AND coalesce(j.status = 'RUNNING', false) AND j.epoch = n.epoch AND j.claim_id = n.claim
     RETURNING j.id";

/// The same for many jobs, each of which stands there once; those that it ended.
async fn succeed_all(
    database: &Database,
    ends: &[AttemptEnd],
    places: &[usize],
) -> Result<HashSet<JobId>, BackendError> {
    let mut successes: Vec<_> =
        places.iter().filter_map(|place| Success::of(&ends[*place].lease, &ends[*place].completion)).collect();
    if successes.is_empty() {
        return Ok(HashSet::new());
    }
    // In one order, so that two batches do not wait for each other.
    successes.sort_unstable_by_key(|success| success.lease.job);
    let ids = |id: fn(&Lease) -> Uuid| successes.iter().map(|success| id(success.lease)).collect::<Vec<_>>();
    let integers = |value: fn(&Success<'_>) -> i64| successes.iter().map(value).collect::<Vec<_>>();
    let mut borrowed = database.borrow().await?;
    let ended: Vec<Uuid> = sqlx::query_scalar(SUCCEED_ALL)
        .bind(ids(|lease| lease.job.as_uuid()))
        .bind(integers(|success| epoch(success.lease)))
        .bind(ids(|lease| lease.claim.as_uuid()))
        .bind(successes.iter().map(|success| success.artifact.name.as_str()).collect::<Vec<_>>())
        .bind(successes.iter().map(|success| success.artifact.digest.to_string()).collect::<Vec<_>>())
        .bind(integers(|success| success.size))
        .bind(successes.iter().map(|success| success.has_log).collect::<Vec<_>>())
        .bind(integers(|success| success.build_ms))
        .bind(integers(|success| success.store_ms))
        .fetch_all(borrowed.connection())
        .await
        .map_err(failed)?;
    borrowed.give_back();
    Ok(ended.into_iter().map(JobId::from).collect())
}

/// Any ends, of different jobs, in the transaction of the connection; the answers stand in the order of the ends.
async fn settle(
    connection: &mut PgConnection,
    ends: &[&AttemptEnd],
) -> Result<Vec<Result<JobStatus, Error>>, BackendError> {
    let jobs = row::lock_all(connection, ends.iter().map(|end| end.lease.job)).await?;
    let is_current = |lease: &Lease| {
        let running = jobs.get(&lease.job).and_then(|job| job.running.as_ref());
        running.is_some_and(|running| running.lease == *lease)
    };
    // The history is asked only where the lease is not the current one.
    let old: Vec<Lease> = ends.iter().map(|end| end.lease).filter(|lease| !is_current(lease)).collect();
    let history = row::attempts_of(connection, &old).await?;
    let now = database::now(connection).await?;
    let (mut answers, mut ended) = (Vec::with_capacity(ends.len()), Vec::new());
    for AttemptEnd { lease, completion } in ends.iter().copied() {
        let Some(before) = jobs.get(&lease.job) else {
            answers.push(Err(Error::NotFound { job: lease.job }));
            continue;
        };
        let outcome = AttemptOutcome::Completed { completion: completion.clone() };
        let attempt = history.get(&(lease.job, lease.epoch));
        let mut job = before.clone();
        let answer = match transition::standing(before, attempt, lease, &outcome) {
            Ok(Standing::Repeated) => Ok(before.status),
            Ok(Standing::Current) => transition::complete(&mut job, completion, now).map(|()| {
                let status = job.status;
                ended.push(Ended { before: before.clone(), after: job, outcome });
                status
            }),
            Err(error) => Err(error),
        };
        answers.push(answer);
    }
    row::end(connection, &mut ended, now).await?;
    Ok(answers)
}
