//! The clock of a memory backend.

use std::time::Duration;

use tokio::time::Instant;

use crate::model::{Timestamp, later};

/// Stands for a database's clock: an instant to start from, and the time that tokio's clock has run since. Under tokio's paused
/// time it is virtual. Clones are the same clock.
///
/// It has microseconds, as databases do, so that an instant from a memory backend survives a trip through SQL.
#[derive(Debug, Clone)]
pub struct Clock {
    base: Timestamp,
    started: Instant,
}

impl Clock {
    /// A clock that shows `base` now.
    pub fn starting_at(base: Timestamp) -> Self {
        Self { base: cut_to_micros(base), started: Instant::now() }
    }

    /// What it shows now. It never goes back.
    pub fn now(&self) -> Timestamp {
        let micros = self.started.elapsed().as_micros().try_into().unwrap_or(u64::MAX);
        later(self.base, Duration::from_micros(micros))
    }
}

impl Default for Clock {
    /// A clock that shows the system's time now, and follows tokio's clock from there.
    fn default() -> Self {
        Self::starting_at(Timestamp::now())
    }
}

fn cut_to_micros(instant: Timestamp) -> Timestamp {
    Timestamp::from_microsecond(instant.as_microsecond()).unwrap_or(instant)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_clock_follows_the_time_of_tokio_and_so_do_its_clones() {
        let base: Timestamp = "2026-01-01T00:00:00.123456789Z".parse().unwrap();
        let clock = Clock::starting_at(base);
        let clone = clock.clone();
        assert_eq!(clock.now(), "2026-01-01T00:00:00.123456Z".parse().unwrap());
        tokio::time::advance(Duration::from_millis(1_500)).await;
        assert_eq!(clock.now(), "2026-01-01T00:00:01.623456Z".parse().unwrap());
        assert_eq!(clone.now(), clock.now());
    }
}
