//! Rows as values of the model: the same columns whatever the engine, which only reads them in its own way.

use std::collections::BTreeSet;
use std::error::Error;
use std::str::FromStr;

use deploycore::model::{
    ArtifactRef, Attempt, ClaimId, CopyPriority, CopyState, CopyStatus, DigestTombstone, Epoch, Job, JobId, JobStatus,
    Lease, NewArtifact, NewJob, OlderJobs, RegionName, RunningLease, Timestamp, Tombstone, TombstoneStage,
};
use deploycore::port::BackendError;
use deploycore::port::ledger::transition::CopyRow;
use deploycore::port::queue::Order;
use serde::de::DeserializeOwned;

use crate::stored::{self, Corrupt};

/// The columns that [`Columns::job`] reads, of the table of jobs as `j`. A word that the language keeps for itself is quoted in the
/// engine's way: `"` of the standard where none is given.
macro_rules! job_columns {
    () => {
        job_columns!("\"")
    };
    ($quote:literal) => {
        concat!(
            "j.id, j.created_at, j.",
            $quote,
            "commit",
            $quote,
            ", j.name, j.status, j.last_heartbeat, j.priority, j.not_before, j.max_attempts, \
             j.max_releases, j.build_timeout, j.dedup_key, j.concurrency_key, j.cancels_older, j.epoch, j.attempts, j.releases, j.rescues, \
             j.eligible_at, j.turn, j.cancel_requested, j.claim_id, j.worker, j.claimed_at, j.deadline, j.finished_at, j.artifact, \
             j.digest, j.size, j.failure"
        )
    };
}
pub(crate) use job_columns;

/// The columns that are read of the table of artifacts as `a`: the ledger's tables get columns while programs that know nothing of those run.
macro_rules! artifact_columns {
    () => {
        "a.name, a.digest, a.size, a.service, a.job, a.registered_at, a.precedence, a.last_pinned_at, a.deleted_at, a.deleted_because"
    };
}
pub(crate) use artifact_columns;

/// The columns that are read of the table of copies as `c`.
macro_rules! copy_columns {
    () => {
        "c.artifact, c.region, c.state, c.registered_at, c.precedence, c.pending_since, c.epoch, c.attempts, c.bytes, c.eligible_at, \
         c.claim_id, c.leased_until, c.updated_at, c.completed_at, c.last_error"
    };
}
pub(crate) use copy_columns;

/// The columns that are read of the table of tombstones as `t`.
macro_rules! tombstone_columns {
    () => {
        "t.digest, t.stage, t.reason, t.since"
    };
}
pub(crate) use tombstone_columns;

/// What an engine reads of a row, by column name.
pub(crate) trait StoredRow {
    fn integer(&self, column: &'static str) -> Result<i64, BackendError>;
    fn optional_integer(&self, column: &'static str) -> Result<Option<i64>, BackendError>;
    fn text(&self, column: &'static str) -> Result<String, BackendError>;
    fn optional_text(&self, column: &'static str) -> Result<Option<String>, BackendError>;
    fn is_set(&self, column: &'static str) -> Result<bool, BackendError>;
    fn job_id(&self, column: &'static str) -> Result<JobId, BackendError>;
    fn claim_id(&self, column: &'static str) -> Result<ClaimId, BackendError>;
    fn optional_claim_id(&self, column: &'static str) -> Result<Option<ClaimId>, BackendError>;
    /// The engine's error for a value that cannot be.
    fn corrupt(error: Corrupt) -> BackendError;
}

/// A row, by column name.
pub(crate) struct Columns<'r, R>(pub(crate) &'r R);

impl<R: StoredRow> Columns<'_, R> {
    pub(crate) fn integer(&self, column: &'static str) -> Result<i64, BackendError> {
        self.0.integer(column)
    }

    pub(crate) fn is_set(&self, column: &'static str) -> Result<bool, BackendError> {
        self.0.is_set(column)
    }

    /// Reads `fair_share` of the queue's settings.
    pub(crate) fn order(&self) -> Result<Order, BackendError> {
        Ok(if self.is_set("fair_share")? { Order::FairShare } else { Order::Oldest })
    }

    pub(crate) fn job_id(&self, column: &'static str) -> Result<JobId, BackendError> {
        self.0.job_id(column)
    }

    pub(crate) fn claim_id(&self, column: &'static str) -> Result<ClaimId, BackendError> {
        self.0.claim_id(column)
    }

    pub(crate) fn optional_text(&self, column: &'static str) -> Result<Option<String>, BackendError> {
        self.0.optional_text(column)
    }

    pub(crate) fn number<T: TryFrom<i64>>(&self, column: &'static str) -> Result<T, BackendError> {
        let value = self.integer(column)?;
        T::try_from(value).map_err(|_| R::corrupt(Corrupt::new(column, value)))
    }

    pub(crate) fn time(&self, column: &'static str) -> Result<Timestamp, BackendError> {
        stored::timestamp(column, self.integer(column)?).map_err(R::corrupt)
    }

    pub(crate) fn optional_time(&self, column: &'static str) -> Result<Option<Timestamp>, BackendError> {
        let value = self.0.optional_integer(column)?;
        value.map(|micros| stored::timestamp(column, micros).map_err(R::corrupt)).transpose()
    }

    pub(crate) fn parse<T>(&self, column: &'static str) -> Result<T, BackendError>
    where
        T: FromStr<Err: Error + Send + Sync + 'static>,
    {
        parse(column, &self.0.text(column)?).map_err(R::corrupt)
    }

    fn optional_parse<T>(&self, column: &'static str) -> Result<Option<T>, BackendError>
    where
        T: FromStr<Err: Error + Send + Sync + 'static>,
    {
        self.optional_text(column)?.map(|text| parse(column, &text).map_err(R::corrupt)).transpose()
    }

    pub(crate) fn word<T>(&self, column: &'static str, parse: impl Fn(&str) -> Option<T>) -> Result<T, BackendError> {
        let word = self.0.text(column)?;
        parse(&word).ok_or_else(|| R::corrupt(Corrupt::new(column, word)))
    }

    fn optional_json<T: DeserializeOwned>(&self, column: &'static str) -> Result<Option<T>, BackendError> {
        let text = self.optional_text(column)?;
        text.map(|text| stored::from_json(column, &text).map_err(R::corrupt)).transpose()
    }

    /// Reads [`job_columns`].
    pub(crate) fn job(&self) -> Result<Job, BackendError> {
        let attempts: u32 = self.number("max_attempts")?;
        let spec = NewJob {
            id: self.job_id("id")?,
            service: self.parse("name")?,
            commit: self.parse("commit")?,
            priority: self.number("priority")?,
            not_before: self.optional_time("not_before")?,
            max_attempts: attempts.try_into().map_err(|_| R::corrupt(Corrupt::new("max_attempts", 0)))?,
            max_releases: self.number("max_releases")?,
            build_timeout: stored::between(0, self.integer("build_timeout")?),
            dedup_key: self.optional_parse("dedup_key")?,
            concurrency_key: self.optional_parse("concurrency_key")?,
            older_jobs: if self.is_set("cancels_older")? { OlderJobs::CancelQueued } else { OlderJobs::Keep },
        };
        let status = self.word("status", JobStatus::parse)?;
        let epoch = Epoch::new(self.number("epoch")?);
        let running = match status {
            JobStatus::Running => Some(RunningLease {
                lease: Lease { job: spec.id, claim: self.claim_id("claim_id")?, epoch },
                worker: self.parse("worker")?,
                claimed_at: self.time("claimed_at")?,
                last_heartbeat: self.time("last_heartbeat")?,
                deadline: self.time("deadline")?,
            }),
            _ => None,
        };
        let artifact = match status {
            JobStatus::Succeeded => Some(self.artifact_ref("artifact")?),
            _ => None,
        };
        Ok(Job {
            spec,
            created_at: self.time("created_at")?,
            status,
            epoch,
            attempts: self.number("attempts")?,
            releases: self.number("releases")?,
            rescues: self.number("rescues")?,
            eligible_at: self.time("eligible_at")?,
            turn: self.number("turn")?,
            running,
            cancel_requested: self.is_set("cancel_requested")?,
            finished_at: self.optional_time("finished_at")?,
            artifact,
            failure: self.optional_json("failure")?,
        })
    }

    /// Reads a row of `attempts`.
    pub(crate) fn attempt(&self) -> Result<Attempt, BackendError> {
        Ok(Attempt {
            lease: Lease {
                job: self.job_id("job")?,
                claim: self.claim_id("claim_id")?,
                epoch: Epoch::new(self.number("epoch")?),
            },
            worker: self.parse("worker")?,
            claimed_at: self.time("claimed_at")?,
            ended_at: self.optional_time("ended_at")?,
            outcome: self.optional_json("outcome")?,
        })
    }

    /// Reads [`artifact_columns`].
    pub(crate) fn artifact(&self, required: BTreeSet<RegionName>) -> Result<NewArtifact, BackendError> {
        let (artifact, service) = (self.artifact_ref("name")?, self.parse("service")?);
        Ok(NewArtifact { artifact, service, job: self.job_id("job")?, required, priority: self.copy_priority()? })
    }

    fn copy_priority(&self) -> Result<CopyPriority, BackendError> {
        let precedence: i16 = self.number("precedence")?;
        CopyPriority::of_precedence(precedence)
            .ok_or_else(|| R::corrupt(Corrupt::new("precedence", i64::from(precedence))))
    }

    fn artifact_ref(&self, name: &'static str) -> Result<ArtifactRef, BackendError> {
        Ok(ArtifactRef { name: self.parse(name)?, digest: self.parse("digest")?, size: self.number("size")? })
    }

    /// The tombstone that [`artifact_columns`] say: of one that is deleted.
    pub(crate) fn deleted(&self) -> Result<Option<Tombstone>, BackendError> {
        let Some(since) = self.optional_time("deleted_at")? else { return Ok(None) };
        let reason = self.optional_text("deleted_because")?.unwrap_or_default();
        Ok(Some(Tombstone { stage: TombstoneStage::Deleted, reason, since }))
    }

    /// Reads [`tombstone_columns`].
    pub(crate) fn tombstone(&self) -> Result<DigestTombstone, BackendError> {
        let stages = [TombstoneStage::Marked, TombstoneStage::Deleting];
        let stage = self.word("stage", |word| stages.into_iter().find(|stage| stage.as_str() == word))?;
        let tombstone = Tombstone { stage, reason: self.0.text("reason")?, since: self.time("since")? };
        Ok(DigestTombstone { digest: self.parse("digest")?, tombstone })
    }

    /// Reads [`copy_columns`].
    pub(crate) fn copy(&self) -> Result<CopyRow, BackendError> {
        let status = CopyStatus {
            state: self.word("state", CopyState::parse)?,
            priority: self.copy_priority()?,
            pending_since: match self.optional_time("pending_since")? {
                Some(since) => since,
                None => self.time("registered_at")?,
            },
            epoch: Epoch::new(self.number("epoch")?),
            attempts: self.number("attempts")?,
            bytes: self.number("bytes")?,
            eligible_at: self.time("eligible_at")?,
            leased_until: self.optional_time("leased_until")?,
            updated_at: self.time("updated_at")?,
            completed_at: self.optional_time("completed_at")?,
            last_error: self.optional_text("last_error")?,
        };
        Ok(CopyRow { status, claim: self.0.optional_claim_id("claim_id")? })
    }
}

pub(crate) fn parse<T>(column: &'static str, text: &str) -> Result<T, Corrupt>
where
    T: FromStr<Err: Error + Send + Sync + 'static>,
{
    text.parse().map_err(|error| Corrupt::new(column, text).because(error))
}
