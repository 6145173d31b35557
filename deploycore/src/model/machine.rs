//! What a machine says of itself.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::friendly;
use super::{ArtifactRef, Digest, GoalPosition, MachineName, RegionName, ServiceName};

/// The labels of a machine, which selectors name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Labels(pub BTreeMap<String, String>);

/// What a machine last said. It is soft state: sent again when it changes in more than how far fetches are, and from time to time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineReport {
    /// The machine.
    pub machine: MachineName,
    /// Its region.
    pub region: RegionName,
    /// Its labels.
    pub labels: Labels,
    /// The agent's process.
    pub agent_pid: u32,
    /// Each service that it runs, stages or tries to.
    pub services: Vec<ServiceReport>,
}

impl MachineReport {
    /// Whose it is.
    pub fn key(&self) -> MachineKey {
        MachineKey { region: self.region.clone(), machine: self.machine.clone() }
    }
}

/// That a machine's last report still holds, without the report. As text: `region machine digest`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LastReport {
    /// The machine's region.
    pub region: RegionName,
    /// The machine.
    pub machine: MachineName,
    /// Of the report.
    pub digest: Digest,
}

impl LastReport {
    /// What stands for a report.
    ///
    /// # Panics
    ///
    /// Never: a report is plain data.
    pub fn of(report: &MachineReport) -> Self {
        let text = serde_json::to_vec(report).expect("a report is plain data");
        Self { region: report.region.clone(), machine: report.machine.clone(), digest: Digest::of(&text) }
    }
}

impl fmt::Display for LastReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.region, self.machine, self.digest)
    }
}

/// A text is no [`LastReport`].
#[derive(Debug, thiserror::Error)]
#[error("it is not \"region machine digest\"")]
pub struct ParseLastReportError;

impl FromStr for LastReport {
    type Err = ParseLastReportError;

    fn from_str(text: &str) -> Result<Self, ParseLastReportError> {
        fn parse<T: FromStr>(word: Option<&str>) -> Result<T, ParseLastReportError> {
            word.and_then(|word| word.parse().ok()).ok_or(ParseLastReportError)
        }
        let mut words = text.split(' ');
        let last = Self { region: parse(words.next())?, machine: parse(words.next())?, digest: parse(words.next())? };
        words.next().is_none().then_some(last).ok_or(ParseLastReportError)
    }
}

/// One service on one machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceReport {
    /// The service.
    pub service: ServiceName,
    /// The newest goal that the machine has taken up.
    pub goal: GoalPosition,
    /// Where the machine is with that goal.
    pub phase: ServicePhase,
    /// What `current` names, with the goal it was switched for.
    pub current: Option<(GoalPosition, ArtifactRef)>,
    /// The running process, if there is one.
    pub pid: Option<u32>,
    /// The port it listens on, if it has one.
    pub port: Option<u16>,
    /// Bytes that were fetched for this goal, from peers and store together.
    pub bytes_fetched: u64,
    /// Why it was reverted, or what it waits for.
    pub message: Option<String>,
}

/// Where a machine is with a goal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ServicePhase {
    /// Bytes are on their way.
    Fetching,
    /// The verified bytes are on disk; nothing changed yet.
    Staged,
    /// The old version stops, the new one starts.
    Switching,
    /// Started; not yet known to be ready.
    Running,
    /// Ready: the goal is met.
    Good,
    /// It did not become ready; the previous version runs. Not tried again for the same goal.
    Reverted,
    /// The goal does not select this machine any more and the service was stopped.
    Retired,
}

/// A machine, by its region and its name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct MachineKey {
    /// The region.
    pub region: RegionName,
    /// The name, unique in the region.
    pub machine: MachineName,
}

impl fmt::Display for MachineKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in {}", self.machine, self.region)
    }
}

/// A part of what a region knows of its machines, by region and name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachinePage<T> {
    /// Of one machine each.
    pub machines: Vec<T>,
    /// Whether the region has listened for less time than a live machine may be silent: then one that is missing may be live. So it is
    /// after each start of the region, as it keeps reports in memory.
    pub settling: bool,
    /// Where the next page begins; `None` after the last. A page may be empty and have a next one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<MachineKey>,
}

impl<T> MachinePage<T> {
    /// The same page of something else of its machines; it may leave some out.
    pub fn filter_map<U>(self, of: impl FnMut(T) -> Option<U>) -> MachinePage<U> {
        MachinePage {
            machines: self.machines.into_iter().filter_map(of).collect(),
            settling: self.settling,
            next: self.next,
        }
    }
}

impl<T: OfMachine> MachinePage<T> {
    /// Leaves the first `limit` machines, where it has more; the rest is for the next page.
    pub fn cut(&mut self, limit: usize) {
        if limit < self.machines.len() {
            self.machines.truncate(limit);
            self.next = self.machines.last().map(OfMachine::key);
        }
    }
}

/// What a [`MachinePage`] has of a machine.
pub trait OfMachine {
    /// The machine.
    fn key(&self) -> MachineKey;

    /// How long ago it reported last.
    fn silent_for(&self) -> Duration;
}

/// A machine as its region knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownMachine {
    /// What it last said.
    pub report: MachineReport,
    /// How long ago that was, by the region's clock.
    #[serde(with = "friendly")]
    pub silent_for: Duration,
    /// Whether that is short enough to count it as there. A machine that is not live blocks nobody.
    pub live: bool,
}

impl OfMachine for KnownMachine {
    fn key(&self) -> MachineKey {
        self.report.key()
    }

    fn silent_for(&self) -> Duration {
        self.silent_for
    }
}
