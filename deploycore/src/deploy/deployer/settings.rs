//! How a deployer works.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::{GoalEpoch, friendly};
use crate::pace::Backoff;

/// How a [`Deployer`](super::Deployer) works.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeployerSettings {
    /// The least epoch of new goals; 0 by default. Raise it after the global store was restored from a backup, so that new goals
    /// outrank those that the regions still have.
    pub epoch: GoalEpoch,
    /// How often a write is tried when others write too or a backend fails in passing; 8 by default.
    pub tries: u32,
    /// Between tries.
    pub backoff: Backoff,
    /// How long one call to a store, the ledger or a directory may take; 10 s by default.
    #[serde(with = "friendly")]
    pub call_limit: Duration,
    /// A pin that no goal needs is taken away when it has been seen so for this long: a deploy between its pin and its goal is not
    /// robbed. 10 min by default.
    #[serde(with = "friendly")]
    pub pin_grace: Duration,
    /// Between looks for pins that no goal needs; 5 min by default.
    #[serde(with = "friendly")]
    pub period: Duration,
    /// Between looks at the machines while waiting for them; 1 s by default.
    #[serde(with = "friendly")]
    pub look: Duration,
}

impl Default for DeployerSettings {
    fn default() -> Self {
        Self {
            epoch: GoalEpoch(0),
            tries: 8,
            backoff: Backoff { initial: Duration::from_millis(50), max: Duration::from_secs(2) },
            call_limit: Duration::from_secs(10),
            pin_grace: Duration::from_mins(10),
            period: Duration::from_mins(5),
            look: Duration::from_secs(1),
        }
    }
}

impl DeployerSettings {
    /// Sets the least epoch of new goals.
    #[must_use]
    pub fn with_epoch(mut self, epoch: GoalEpoch) -> Self {
        self.epoch = epoch;
        self
    }

    /// Sets how long a pin that no goal needs is left alone.
    #[must_use]
    pub fn with_pin_grace(mut self, grace: Duration) -> Self {
        self.pin_grace = grace;
        self
    }

    /// Sets the time between looks at the machines.
    #[must_use]
    pub fn with_look(mut self, look: Duration) -> Self {
        self.look = look;
        self
    }
}
