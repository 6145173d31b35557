//! What a collector collects, and when.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::friendly;
use crate::pace::Backoff;

/// What a [`Collector`](super::Collector) collects, and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CollectorSettings {
    /// What was registered and pinned longer ago may be collected, and bytes that nobody has put since; 30 days by default, a day at least.
    /// It must be longer than it takes from a build's last byte to the registration of its artifact, and from a pin to its goal, in the
    /// worst case: see the decision record.
    #[serde(with = "friendly")]
    pub older_than: Duration,
    /// So many of each service's newest artifacts are kept whatever their age; 10 by default, [`MAX_BATCH`](crate::port::ledger::MAX_BATCH) at
    /// most.
    pub keep: usize,
    /// From a tombstone to the first deletion; 1 h by default, a minute at least.
    #[serde(with = "friendly")]
    pub grace: Duration,
    /// Between rounds; 1 h by default.
    #[serde(with = "friendly")]
    pub period: Duration,
    /// The most tombstones that a round sets; 1,000 by default.
    pub max_marks: usize,
    /// Artifacts deleted at once; 4 by default.
    pub parallel: usize,
    /// How long the ledger, a goal store or a directory may take to answer; 30 s by default.
    #[serde(with = "friendly")]
    pub call_timeout: Duration,
    /// How long a store may take to delete an artifact; 5 min by default.
    #[serde(with = "friendly")]
    pub delete_timeout: Duration,
    /// After rounds that failed.
    pub backoff: Backoff,
}

impl Default for CollectorSettings {
    fn default() -> Self {
        Self {
            older_than: Duration::from_hours(30 * 24),
            keep: 10,
            grace: Duration::from_hours(1),
            period: Duration::from_hours(1),
            max_marks: 1_000,
            parallel: 4,
            call_timeout: Duration::from_secs(30),
            delete_timeout: Duration::from_mins(5),
            backoff: Backoff::default(),
        }
    }
}

/// Settings that are not safe.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} is {given:?}: {least:?} is the least")]
pub struct InvalidCollectorSettings {
    what: &'static str,
    given: Duration,
    least: Duration,
}

impl CollectorSettings {
    /// The least [`older_than`](Self::older_than), a day.
    pub const MIN_AGE: Duration = Duration::from_hours(24);
    /// The least [`grace`](Self::grace), a minute.
    pub const MIN_GRACE: Duration = Duration::from_mins(1);

    /// Sets how old what is collected must be.
    #[must_use]
    pub fn with_older_than(mut self, age: Duration) -> Self {
        self.older_than = age;
        self
    }

    /// Sets how many of each service's newest artifacts are kept.
    #[must_use]
    pub fn with_keep(mut self, artifacts: usize) -> Self {
        self.keep = artifacts;
        self
    }

    /// Sets the time from a tombstone to the first deletion.
    #[must_use]
    pub fn with_grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    pub(super) fn check(&self) -> Result<(), InvalidCollectorSettings> {
        let bounds = [
            ("older_than", self.older_than, Self::MIN_AGE),
            ("grace", self.grace, Self::MIN_GRACE),
            ("period", self.period, Duration::from_secs(1)),
        ];
        match bounds.into_iter().find(|(_, given, least)| given < least) {
            Some((what, given, least)) => Err(InvalidCollectorSettings { what, given, least }),
            None => Ok(()),
        }
    }

    /// What stands in a tombstone.
    pub(super) fn reason(&self) -> String {
        let age = jiff::fmt::friendly::SpanPrinter::new().unsigned_duration_to_string(&self.older_than);
        format!("nothing has needed it for {age}, and it is not one of the {} newest of its service", self.keep)
    }
}
