//! Where machines are with a goal, in numbers.

use serde::{Deserialize, Serialize};

use super::{Goal, KnownMachines, MachineName, MachineReport, ServicePhase, ServiceReport};

/// The most machines that a [`Tally`] names.
const EXAMPLES: usize = 10;

/// Where one machine is with a goal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing<'a> {
    /// The goal is not for it.
    NotSelected,
    /// It was silent for too long to be counted.
    Absent,
    /// It runs the goal.
    Converged,
    /// It tried the goal and went back.
    Reverted(&'a ServiceReport),
    /// It is on its way; with what it says of the service, if it does.
    Behind(Option<&'a ServiceReport>),
}

impl<'a> Standing<'a> {
    /// Of a machine by its report, and whether it is live.
    pub fn of(goal: &Goal, report: &'a MachineReport, live: bool) -> Self {
        if !goal.selector.matches(&report.labels) {
            return Self::NotSelected;
        }
        if !live {
            return Self::Absent;
        }
        let service = report.services.iter().find(|service| service.service == goal.service);
        match service {
            Some(found) if found.goal == goal.position && found.phase == ServicePhase::Good => Self::Converged,
            Some(found) if found.goal == goal.position && found.phase == ServicePhase::Reverted => {
                Self::Reverted(found)
            }
            service => Self::Behind(service),
        }
    }
}

/// How many machines of a region are where with a goal: what a control plane asks for instead of 20,000 reports.
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
    /// As of [`KnownMachines::settling`]: live machines may be missing.
    pub settling: bool,
    /// Up to ten of those behind, and as many of those that went back.
    pub examples: Vec<Straggler>,
}

/// A machine that does not run a goal, by way of example.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Straggler {
    /// Its name.
    pub machine: MachineName,
    /// Where it is with the service; `None` when it has not heard of any goal.
    pub phase: Option<ServicePhase>,
    /// What it waits for, or why it went back.
    pub message: Option<String>,
}

impl Tally {
    /// Of all machines.
    pub fn of(goal: &Goal, known: &KnownMachines) -> Self {
        let mut tally = Self { settling: known.settling, ..Self::default() };
        known.machines.iter().for_each(|machine| tally.add(goal, &machine.report, machine.live));
        tally
    }

    /// Counts one more machine.
    pub fn add(&mut self, goal: &Goal, report: &MachineReport, live: bool) {
        let (count, service) = match Standing::of(goal, report, live) {
            Standing::NotSelected => return,
            Standing::Absent => return self.absent += 1,
            Standing::Converged => return self.converged += 1,
            Standing::Reverted(service) => (&mut self.reverted, Some(service)),
            Standing::Behind(service) => (&mut self.behind, service),
        };
        *count += 1;
        if *count <= EXAMPLES as u64 {
            self.examples.push(Straggler {
                machine: report.machine.clone(),
                phase: service.map(|service| service.phase),
                message: service.and_then(|service| service.message.clone()),
            });
        }
    }

    /// Live and selected machines.
    pub fn live(&self) -> u64 {
        self.converged + self.behind + self.reverted
    }
}
