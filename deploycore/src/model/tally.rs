//! Where machines are with a goal: each, and in numbers.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Goal, GoalPosition, KnownMachine, MachineKey, MachineReport, OfMachine, ServicePhase, friendly};

/// The most machines behind that a [`Tally`] names, and the most that went back.
const EXAMPLES: u64 = 10;

/// Where a machine is with a goal that selects it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "standing", rename_all = "snake_case")]
pub enum Standing {
    /// It was silent for too long to be counted. It blocks nobody.
    Absent,
    /// It runs the goal.
    Converged,
    /// It tried the goal and went back.
    Reverted {
        /// Why, in its own words.
        message: Option<String>,
    },
    /// It is on its way.
    Behind {
        /// The newest goal of the service that it took up, and where it is with that; `None` when it has not heard of any.
        at: Option<(GoalPosition, ServicePhase)>,
        /// What it waits for, in its own words.
        message: Option<String>,
    },
}

/// A machine that a goal selects, and where it is with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineStanding {
    /// The machine.
    #[serde(flatten)]
    pub key: MachineKey,
    /// How long ago it reported last, by the region's clock.
    #[serde(with = "friendly")]
    pub silent_for: Duration,
    /// Where it is.
    #[serde(flatten)]
    pub standing: Standing,
}

impl MachineStanding {
    /// Of a known machine; `None` when the goal does not select it.
    pub fn of(goal: &Goal, machine: &KnownMachine) -> Option<Self> {
        Self::of_report(goal, &machine.report, machine.silent_for, machine.live)
    }

    /// Of a machine by its report; `None` when the goal does not select it.
    pub fn of_report(goal: &Goal, report: &MachineReport, silent_for: Duration, live: bool) -> Option<Self> {
        if !goal.selector.matches(&report.labels) {
            return None;
        }
        let service = report.services.iter().find(|service| service.service == goal.service);
        let message = || service.and_then(|service| service.message.clone());
        let at = service.map(|service| (service.goal, service.phase));
        let standing = match at {
            _ if !live => Standing::Absent,
            Some((position, ServicePhase::Good)) if position == goal.position => Standing::Converged,
            Some((position, ServicePhase::Reverted)) if position == goal.position => {
                Standing::Reverted { message: message() }
            }
            at => Standing::Behind { at, message: message() },
        };
        Some(Self { key: report.key(), silent_for, standing })
    }
}

impl OfMachine for MachineStanding {
    fn key(&self) -> MachineKey {
        self.key.clone()
    }

    fn silent_for(&self) -> Duration {
        self.silent_for
    }
}

/// How many machines of a region are where with a goal: of one size, whatever the number of machines.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Live and selected machines that run the goal.
    pub converged: u64,
    /// Live and selected machines on their way.
    pub behind: u64,
    /// Live and selected machines that tried the goal and went back.
    pub reverted: u64,
    /// Selected machines that are silent for too long.
    pub absent: u64,
    /// As of [`MachinePage::settling`](super::MachinePage::settling): live machines may be missing.
    pub settling: bool,
    /// Up to ten of those behind, and as many of those that went back.
    pub examples: Vec<MachineStanding>,
}

impl Tally {
    /// Counts one more machine.
    pub fn add(&mut self, machine: MachineStanding) {
        let count = match machine.standing {
            Standing::Absent => return self.absent += 1,
            Standing::Converged => return self.converged += 1,
            Standing::Reverted { .. } => &mut self.reverted,
            Standing::Behind { .. } => &mut self.behind,
        };
        *count += 1;
        if *count <= EXAMPLES {
            self.examples.push(machine);
        }
    }

    /// Live and selected machines.
    pub fn live(&self) -> u64 {
        self.converged + self.behind + self.reverted
    }
}
