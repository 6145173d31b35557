//! Machines: no going back, verified bytes only, old or new, the newest goal wins.

use std::collections::BTreeMap;

use deploycore::model::{GoalPosition, MachineName, MachineReport, RegionName, ServiceName, ServicePhase};

use super::{Checker, Invariant, Met};

/// What machines showed.
#[derive(Debug, Default)]
pub struct Model {
    taken_up: BTreeMap<(RegionName, MachineName, ServiceName), GoalPosition>,
    reverted: BTreeMap<(RegionName, MachineName, ServiceName), GoalPosition>,
}

impl Checker {
    /// A machine reported.
    pub fn reported(&self, report: &MachineReport) {
        for service in &report.services {
            let key = (report.region.clone(), report.machine.clone(), service.service.clone());
            if service.phase == ServicePhase::Reverted
                && self.lock().machines.reverted.insert(key, service.goal) != Some(service.goal)
            {
                self.trace.met(Met::Reverts);
                self.trace.event(report.machine.as_str(), format_args!("reverted {}", service.goal));
            }
        }
    }

    /// A machine took a goal up, durably.
    pub fn taken_up(&self, region: &RegionName, machine: &MachineName, service: &ServiceName, goal: GoalPosition) {
        let key = (region.clone(), machine.clone(), service.clone());
        let before = self.lock().machines.taken_up.insert(key, goal);
        self.require(Invariant::NoGoingBack, before.is_none_or(|before| before <= goal), || {
            format!("{machine} in {region} went from {before:?} to {goal} of {service}")
        });
    }
}
