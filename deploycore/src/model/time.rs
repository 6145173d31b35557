//! Instants come from the database's clock or are passed in; durations are written as people write them.

use std::time::Duration;

pub use jiff::Timestamp;
pub use jiff::fmt::serde::unsigned_duration::friendly::compact::optional as friendly_option;
/// Serde adapters for [`std::time::Duration`] as `90s` or `1m30s`; use with `#[serde(with = "...")]`.
pub use jiff::fmt::serde::unsigned_duration::friendly::compact::required as friendly;

/// The instant `by` after `instant`, or the last instant that can be written.
pub fn later(instant: Timestamp, by: Duration) -> Timestamp {
    instant.saturating_add(by).unwrap_or(Timestamp::MAX)
}

/// How long before `instant` the instant `earlier` was; zero if it was not.
pub fn elapsed(earlier: Timestamp, instant: Timestamp) -> Duration {
    instant.duration_since(earlier).try_into().unwrap_or(Duration::ZERO)
}
