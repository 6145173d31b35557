//! What a gateway holds of this machine's report, so that only what changed is sent whole.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use deploycore::model::LastReport;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use tokio::time::Instant;

use super::super::wire::{LAST_REPORT, REPORT_WANTED};

/// A report that a poll has carried counts as sent for so long. With the agent's 10 s between two reports it comes to less than the
/// 30 s after which a silent machine is not live.
const CARRIED_FOR: Duration = Duration::from_secs(18);

/// The last report that a gateway took.
#[derive(Debug, Default)]
pub(super) struct Reported {
    taken: Mutex<Option<Taken>>,
}

#[derive(Debug)]
struct Taken {
    by: usize,
    report: LastReport,
    /// When a gateway was last told that it still holds.
    at: Instant,
}

impl Reported {
    /// Notes that a gateway took a report.
    pub(super) fn taken(&self, by: usize, report: LastReport) {
        *self.lock() = Some(Taken { by, report, at: Instant::now() });
    }

    /// Whether the gateway knows the report already, and has just heard that it still holds.
    pub(super) fn is_known(&self, to: usize, report: &LastReport) -> bool {
        let taken = self.lock();
        taken.as_ref().is_some_and(|one| one.by == to && one.report == *report && one.at.elapsed() < CARRIED_FOR)
    }

    /// What a poll of the gateway carries.
    pub(super) fn header(&self, to: usize) -> Option<(HeaderName, HeaderValue)> {
        let taken = self.lock();
        let text = taken.as_ref().filter(|taken| taken.by == to)?.report.to_string();
        Some((LAST_REPORT, HeaderValue::from_str(&text).ok()?))
    }

    /// Notes the answer to a poll that carried the header.
    pub(super) fn carried(&self, by: usize, headers: &HeaderMap) {
        let mut taken = self.lock();
        match &mut *taken {
            Some(one) if one.by == by && !headers.contains_key(REPORT_WANTED) => one.at = Instant::now(),
            Some(one) if one.by == by => *taken = None,
            _ => {}
        }
    }

    /// Notes that a gateway may know nothing any more.
    pub(super) fn forget(&self, by: usize) {
        self.lock().take_if(|taken| taken.by == by);
    }

    fn lock(&self) -> MutexGuard<'_, Option<Taken>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
