//! What the settings of worker and reaper have in common.

use std::time::Duration;

/// The relaxed preset: for a fleet whose database is asked as little as can be, and whose jobs may be lost for longer.
pub(super) const RELAXED_HEARTBEAT: Duration = Duration::from_mins(3);
pub(super) const RELAXED_LOST_AFTER: Duration = Duration::from_mins(10);

/// Settings with which a service cannot do its work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid settings of the {service}: {why}")]
pub struct InvalidSettings {
    service: &'static str,
    why: String,
}

/// The settings of one service, under their names.
pub(super) struct Check {
    service: &'static str,
}

impl Check {
    pub(super) fn of(service: &'static str) -> Self {
        Self { service }
    }

    /// Where a time is zero, the service turns without a rest, or gives every call up before it was made.
    pub(super) fn not_zero<const N: usize>(&self, times: [(&str, Duration); N]) -> Result<(), InvalidSettings> {
        let zero = times.into_iter().find(|(_, time)| time.is_zero());
        zero.map_or(Ok(()), |(name, _)| Err(self.refuse(format!("`{name}` must be longer than zero"))))
    }

    /// One heartbeat that is late must not cost a lease.
    pub(super) fn heartbeat(&self, heartbeat: Duration, lost_after: Duration) -> Result<(), InvalidSettings> {
        if heartbeat.saturating_mul(2) <= lost_after {
            return Ok(());
        }
        let why = format!("`lost_after` ({lost_after:?}) must be at least twice `heartbeat` ({heartbeat:?})");
        Err(self.refuse(why))
    }

    fn refuse(&self, why: String) -> InvalidSettings {
        InvalidSettings { service: self.service, why }
    }
}
