//! How the copies to a region go.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::{CopyState, CopyStatus, Timestamp, friendly, friendly_option};

/// What is asked about the copies of the last time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FiguresRequest {
    /// Completed copies count when they became complete so lately; 1 h by default.
    #[serde(with = "friendly")]
    pub window: Duration,
    /// A copy is late when it takes longer than this; 15 min by default, as in S3's Replication Time Control.
    #[serde(with = "friendly")]
    pub threshold: Duration,
}

impl Default for FiguresRequest {
    fn default() -> Self {
        Self { window: Duration::from_hours(1), threshold: Duration::from_mins(15) }
    }
}

/// The copies to one region, counted as S3's Replication Time Control counts them. The latency of a copy is the time from its registration,
/// or its last reopening, until it was complete.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicationFigures {
    /// Copies to be made, or being made.
    pub pending: u64,
    /// Bytes of those that are not over, as last reported.
    pub pending_bytes: u64,
    /// Since when the oldest of them is wanted.
    pub oldest_pending: Option<Timestamp>,
    /// Pending copies that are late already.
    pub overdue: u64,
    /// Copies given up, whenever that was.
    pub failed: u64,
    /// Copies that became complete within the window.
    pub completed: u64,
    /// Of those, the ones that came late.
    pub late: u64,
    /// Latency of the completed ones: that which half of them kept (nearest rank).
    #[serde(with = "friendly_option")]
    pub p50: Option<Duration>,
    /// That which 99 of 100 kept.
    #[serde(with = "friendly_option")]
    pub p99: Option<Duration>,
    /// The longest.
    #[serde(with = "friendly_option")]
    pub max: Option<Duration>,
}

/// Counts copies one by one: what a ledger with SQL must come to as well.
#[derive(Debug, Clone)]
pub struct FiguresCounter {
    request: FiguresRequest,
    now: Timestamp,
    figures: ReplicationFigures,
    latencies: Vec<Duration>,
}

impl FiguresCounter {
    /// Nothing counted yet.
    pub fn new(request: FiguresRequest, now: Timestamp) -> Self {
        Self { request, now, figures: ReplicationFigures::default(), latencies: Vec::new() }
    }

    /// Counts a copy of an artifact of `size` bytes.
    pub fn add(&mut self, copy: &CopyStatus, size: u64) {
        let figures = &mut self.figures;
        match copy.state {
            CopyState::Pending => {
                figures.pending += 1;
                figures.pending_bytes += size.saturating_sub(copy.bytes);
                let since = copy.pending_since;
                figures.oldest_pending = Some(figures.oldest_pending.map_or(since, |oldest| oldest.min(since)));
                figures.overdue += u64::from(between(since, self.now) > self.request.threshold);
            }
            CopyState::Failed => figures.failed += 1,
            CopyState::Complete => {
                let completed_at = copy.completed_at.unwrap_or(copy.updated_at);
                if between(completed_at, self.now) < self.request.window {
                    let latency = between(copy.pending_since, completed_at);
                    figures.completed += 1;
                    figures.late += u64::from(latency > self.request.threshold);
                    self.latencies.push(latency);
                }
            }
        }
    }

    /// What it came to; `None` when no copy counted.
    pub fn figures(mut self) -> Option<ReplicationFigures> {
        self.latencies.sort_unstable();
        let rank =
            |percent: usize| self.latencies.get((self.latencies.len() * percent).div_ceil(100).max(1) - 1).copied();
        let (p50, p99, max) = (rank(50), rank(99), self.latencies.last().copied());
        let figures = ReplicationFigures { p50, p99, max, ..self.figures };
        (figures != ReplicationFigures::default()).then_some(figures)
    }
}

fn between(from: Timestamp, to: Timestamp) -> Duration {
    to.duration_since(from).try_into().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{CopyPriority, later};
    use crate::port::ledger::transition;

    #[test]
    fn percentiles_are_the_nearest_rank() {
        let start = Timestamp::UNIX_EPOCH;
        let now = later(start, Duration::from_hours(1));
        for (count, p50, p99) in [(1, 1, 1), (2, 1, 2), (100, 50, 99), (101, 51, 100)] {
            let mut counter = FiguresCounter::new(FiguresRequest::default(), now);
            for seconds in 1..=count {
                let mut copy = transition::register(CopyPriority::Normal, start).status;
                let completed_at = later(start, Duration::from_secs(seconds));
                (copy.state, copy.completed_at) = (CopyState::Complete, Some(completed_at));
                counter.add(&copy, 1);
            }
            let figures = counter.figures().unwrap();
            let seconds = |time: Option<Duration>| time.unwrap().as_secs();
            assert_eq!((seconds(figures.p50), seconds(figures.p99), seconds(figures.max)), (p50, p99, count));
        }
        assert_eq!(FiguresCounter::new(FiguresRequest::default(), now).figures(), None);
    }
}
