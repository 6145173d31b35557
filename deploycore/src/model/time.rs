//! Instants come from the database's clock or are passed in; durations are written as people write them.

pub use jiff::Timestamp;
pub use jiff::fmt::serde::unsigned_duration::friendly::compact::optional as friendly_option;
/// Serde adapters for [`std::time::Duration`] as `90s` or `1m30s`; use with `#[serde(with = "...")]`.
pub use jiff::fmt::serde::unsigned_duration::friendly::compact::required as friendly;
