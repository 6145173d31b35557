//! How two artifacts shared what the machines received.

use std::time::Duration;

use serde::Serialize;

use super::Report;

/// For so many seconds after the second artifact's start it is told what was received of each.
pub const SHARED_SECONDS: usize = 10;

/// Bytes that a machine received of each artifact in one second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Shared {
    /// Of the first.
    pub first: u64,
    /// Of the second.
    pub second: u64,
}

impl Shared {
    /// The second artifact's part of all; `None` when nothing was received.
    pub fn second_share(&self) -> Option<f64> {
        let all = self.first + self.second;
        (all > 0).then(|| self.second as f64 / all as f64)
    }
}

/// One second of all machines that were fetching the second artifact until its end.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Second {
    /// How many machines these are.
    pub machines: usize,
    /// The second artifact's part of all that they received.
    pub share: f64,
    /// The same of the machine where it was least.
    pub least: f64,
}

impl Report {
    /// How the artifacts shared each of the first seconds after the second one's start, as long as some machine was fetching that
    /// until the end of the second. A machine that received nothing counts as one where the second artifact had no part.
    pub fn seconds(&self) -> Vec<Second> {
        let second = |at: usize| {
            let end = Duration::from_secs(at as u64 + 1);
            let fetching = |machine: &usize| self.second[*machine].is_none_or(|time| time >= end);
            let machines: Vec<&Shared> =
                (0..self.shared.len()).filter(fetching).map(|machine| &self.shared[machine][at]).collect();
            let sum = |of: fn(&Shared) -> u64| machines.iter().map(|shared| of(shared)).sum::<u64>();
            let all = Shared { first: sum(|shared| shared.first), second: sum(|shared| shared.second) };
            let shares = machines.iter().map(|shared| shared.second_share().unwrap_or_default());
            let least = shares.min_by(f64::total_cmp)?;
            Some(Second { machines: machines.len(), share: all.second_share().unwrap_or_default(), least })
        };
        (0..SHARED_SECONDS).map_while(second).collect()
    }
}
