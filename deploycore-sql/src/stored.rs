//! How values stand in columns: instants and durations as integer microseconds, ids and names as text, compound values as JSON.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use deploycore::model::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A stored value that no version of this crate writes.
#[derive(Debug, thiserror::Error)]
#[error("column {column} holds {value:?}, which is not valid there")]
pub(crate) struct Corrupt {
    column: &'static str,
    value: String,
    #[source]
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl Corrupt {
    pub(crate) fn new(column: &'static str, value: impl fmt::Display) -> Self {
        Self { column, value: value.to_string().chars().take(200).collect(), source: None }
    }

    pub(crate) fn because(self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { source: Some(source.into()), ..self }
    }
}

/// An instant cut to the microsecond.
pub(crate) fn micros(instant: Timestamp) -> i64 {
    instant.as_microsecond()
}

/// A duration cut to the microsecond, or the longest there is.
pub(crate) fn micros_of(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// The instant `delay` before `instant`, or the first there is.
#[cfg(feature = "sqlite")]
pub(crate) fn before(instant: i64, delay: Duration) -> i64 {
    instant.saturating_sub(micros_of(delay)).max(micros(Timestamp::MIN))
}

/// The time from `earlier` to `later`; none if they are swapped.
pub(crate) fn between(earlier: i64, later: i64) -> Duration {
    Duration::from_micros(u64::try_from(later.saturating_sub(earlier)).unwrap_or(0))
}

pub(crate) fn timestamp(column: &'static str, micros: i64) -> Result<Timestamp, Corrupt> {
    Timestamp::from_microsecond(micros).map_err(|error| Corrupt::new(column, micros).because(error))
}

pub(crate) fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("values of the model have text keys and no failing field")
}

pub(crate) fn from_json<T: DeserializeOwned>(column: &'static str, text: &str) -> Result<T, Corrupt> {
    serde_json::from_str(text).map_err(|error| Corrupt::new(column, text).because(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "sqlite")]
    #[test]
    fn instants_saturate_where_time_begins() {
        let now = micros(Timestamp::UNIX_EPOCH);
        assert_eq!(timestamp("t", before(now, Duration::MAX)).unwrap().as_microsecond(), micros(Timestamp::MIN));
    }

    #[test]
    fn time_does_not_run_backwards() {
        assert_eq!(between(5, 3), Duration::ZERO);
        assert_eq!(between(3, 5), Duration::from_micros(2));
    }

    #[test]
    fn a_value_that_cannot_be_is_named() {
        let error = timestamp("deadline", i64::MAX).unwrap_err();
        assert!(error.to_string().contains("deadline"), "{error}");
        assert!(error.source().is_some());
    }
}
