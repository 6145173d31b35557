//! Settings of the worker.

use std::num::NonZeroUsize;
use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

use crate::build::InvalidSettings;
use crate::build::settings::{Check, RELAXED_HEARTBEAT, RELAXED_LOST_AFTER};
use crate::model::{WorkerName, friendly};
use crate::pace::Backoff;

/// How a [`Worker`](super::Worker) works.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WorkerSettings {
    /// Shown in the attempt history; it grants nothing and need not be unique. `worker` by default.
    pub name: WorkerName,
    /// Builds at once; 1 by default.
    pub slots: NonZeroUsize,
    /// Between heartbeats; 30 s by default.
    #[serde(with = "friendly")]
    pub heartbeat: Duration,
    /// A lease without an answered heartbeat for this long is given up: the reaper's own bound, 90 s by default.
    #[serde(with = "friendly")]
    pub lost_after: Duration,
    /// Between claims while slots are free; 2 s by default. A slot that becomes free is filled at once.
    #[serde(with = "friendly")]
    pub poll: Duration,
    /// Between calls to a queue that fails.
    pub backoff: Backoff,
    /// How long builds may go on after a shutdown; 1 min by default.
    #[serde(with = "friendly")]
    pub drain: Duration,
    /// How long a build that is told to stop may take before it is dropped; 15 s by default.
    #[serde(with = "friendly")]
    pub stop_grace: Duration,
    /// How long one call to the queue, or the storing of a log, may take; 10 s by default.
    #[serde(with = "friendly")]
    pub call_limit: Duration,
    /// How long the end of a build is repeated to a queue that fails, before the job is left to the reaper; 2 min by default.
    #[serde(with = "friendly")]
    pub settle_limit: Duration,
    /// How often the bytes of a build are offered to a store that fails in passing; 3 by default.
    pub store_tries: u32,
    /// The delay before another attempt after a failure around the build; it doubles with each attempt. From 10 s to 5 min by default.
    pub retry: Backoff,
    /// How long the worker claims nothing after builds in a row failed around it, as all do on a host whose disk is full: from the second on.
    /// Then it tries one job at a time; each that fails doubles the delay, and the first that is built, or fails by its commit, ends it. From
    /// 1 s to 5 min by default.
    pub hold_off: Backoff,
    /// The largest log that is kept of a build; its middle is dropped beyond. 1 MiB by default.
    pub log_limit: ByteSize,
}

impl Default for WorkerSettings {
    fn default() -> Self {
        Self {
            name: WorkerName::new("worker").expect("a valid name"),
            slots: NonZeroUsize::MIN,
            heartbeat: Duration::from_secs(30),
            lost_after: Duration::from_secs(90),
            poll: Duration::from_secs(2),
            backoff: Backoff { initial: Duration::from_millis(500), max: Duration::from_secs(10) },
            drain: Duration::from_mins(1),
            stop_grace: Duration::from_secs(15),
            call_limit: Duration::from_secs(10),
            settle_limit: Duration::from_mins(2),
            store_tries: 3,
            retry: Backoff { initial: Duration::from_secs(10), max: Duration::from_mins(5) },
            hold_off: Backoff { initial: Duration::from_secs(1), max: Duration::from_mins(5) },
            log_limit: ByteSize::mib(1),
        }
    }
}

impl WorkerSettings {
    /// A heartbeat each 3 min, lost after 10 min: less traffic for the database, and a longer wait for the jobs of a dead worker. Use
    /// it with [`ReaperSettings::relaxed`](crate::build::ReaperSettings::relaxed).
    pub fn relaxed() -> Self {
        Self::default().with_heartbeat(RELAXED_HEARTBEAT, RELAXED_LOST_AFTER)
    }

    /// Sets the name.
    #[must_use]
    pub fn with_name(mut self, name: WorkerName) -> Self {
        self.name = name;
        self
    }

    /// Sets how many builds run at once.
    #[must_use]
    pub fn with_slots(mut self, slots: NonZeroUsize) -> Self {
        self.slots = slots;
        self
    }

    /// Sets the time between heartbeats and the age at which a lease is lost.
    #[must_use]
    pub fn with_heartbeat(mut self, heartbeat: Duration, lost_after: Duration) -> Self {
        self.heartbeat = heartbeat;
        self.lost_after = lost_after;
        self
    }

    /// Sets the time between claims.
    #[must_use]
    pub fn with_poll(mut self, poll: Duration) -> Self {
        self.poll = poll;
        self
    }

    /// Sets how long builds may go on after a shutdown.
    #[must_use]
    pub fn with_drain(mut self, drain: Duration) -> Self {
        self.drain = drain;
        self
    }

    /// Sets how long a build that is told to stop may take.
    #[must_use]
    pub fn with_stop_grace(mut self, grace: Duration) -> Self {
        self.stop_grace = grace;
        self
    }

    /// Sets the delay before another attempt.
    #[must_use]
    pub fn with_retry(mut self, retry: Backoff) -> Self {
        self.retry = retry;
        self
    }

    /// Sets how long the worker claims nothing after builds in a row failed around it.
    #[must_use]
    pub fn with_hold_off(mut self, hold_off: Backoff) -> Self {
        self.hold_off = hold_off;
        self
    }

    /// Sets the largest log that is kept.
    #[must_use]
    pub fn with_log_limit(mut self, limit: ByteSize) -> Self {
        self.log_limit = limit;
        self
    }

    /// Whether a worker can work with them.
    pub(super) fn check(&self) -> Result<(), InvalidSettings> {
        let check = Check::of("worker");
        check.not_zero([
            ("heartbeat", self.heartbeat),
            ("poll", self.poll),
            ("call_limit", self.call_limit),
            ("backoff.initial", self.backoff.initial),
            ("backoff.max", self.backoff.max),
            ("hold_off.initial", self.hold_off.initial),
            ("hold_off.max", self.hold_off.max),
        ])?;
        check.heartbeat(self.heartbeat, self.lost_after)
    }

    /// The longest way of a stopped build to its end: the grace, its log, its last word to the queue.
    pub(super) fn end_limit(&self) -> Duration {
        self.stop_grace + self.settle_limit + 3 * self.call_limit
    }
}
