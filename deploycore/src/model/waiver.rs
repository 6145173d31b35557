//! A required region that a goal does without.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{RegionName, Timestamp};

/// That a goal was written although a required region may lack its artifact: an operator took the region out of what this one goal requires.
///
/// It stands in the goal, which is kept as long as the goal's history. Until it expires it also lets nobody wait for the region's machines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Waiver {
    /// The region.
    pub region: RegionName,
    /// Why, in the operator's words: 1 to [`Waiver::MAX_REASON`] bytes, not only spaces.
    pub reason: String,
    /// Who says so, by the host's word: nothing checks it here. At most [`Waiver::MAX_BY`] bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// No goal is written with it from this instant on, and the region counts again; by the deployer's clock, which dates goals too.
    pub expires_at: Timestamp,
}

impl Waiver {
    /// The longest reason, 1,000 bytes.
    pub const MAX_REASON: usize = 1_000;
    /// The longest name of who says so, 200 bytes.
    pub const MAX_BY: usize = 200;
    /// How far ahead a waiver may expire when a goal is written with it: a day. A region that is gone for longer is waived again, by someone
    /// who looked again.
    pub const MAX_TERM: Duration = Duration::from_hours(24);

    /// A waiver of `region` until `expires_at`.
    pub fn new(region: RegionName, reason: impl Into<String>, expires_at: Timestamp) -> Self {
        Self { region, reason: reason.into(), by: None, expires_at }
    }

    /// Sets who says so.
    #[must_use]
    pub fn with_by(mut self, by: impl Into<String>) -> Self {
        self.by = Some(by.into());
        self
    }
}
