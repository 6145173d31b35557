//! What a service looks like from outside.

use super::{Core, Fetching, Process, runs};
use crate::model::{Goal, ServicePhase, ServiceReport};

impl Core {
    /// What to tell the region, or `None` while the service never had anything to do with this machine.
    pub fn report(&self) -> Option<ServiceReport> {
        let goal = self.journal.goal.as_ref()?;
        if !self.selected() && !self.journal.served {
            return None;
        }
        let current = self.target().filter(|target| self.links.current == Some(target.build.artifact.digest));
        let running = self.instance().map(|(instance, _)| instance);
        let bytes_fetched = match self.fetching {
            Fetching::Running { bytes, .. } => bytes,
            _ => self.journal.bytes_fetched,
        };
        Some(ServiceReport {
            service: self.journal.service.clone(),
            goal: goal.position,
            phase: self.phase(goal),
            current: current.map(|target| (target.build.position, target.build.artifact.clone())),
            pid: running.map(|instance| instance.pid),
            port: running.and_then(|instance| instance.port),
            bytes_fetched,
            message: self.message(goal),
        })
    }

    fn phase(&self, goal: &Goal) -> ServicePhase {
        let settled = self.switched();
        if !self.selected() {
            let gone = settled && self.journal.target.is_none() && self.process == Process::None;
            return if gone { ServicePhase::Retired } else { ServicePhase::Switching };
        }
        if self.journal.rejection(goal.position).is_some() {
            return ServicePhase::Reverted;
        }
        if !self.held.contains(&goal.artifact.digest) {
            return ServicePhase::Fetching;
        }
        let Some(target) = self.durable.target.as_ref().filter(|target| target.build.position == goal.position) else {
            return ServicePhase::Staged;
        };
        let fits = self.journal.process.as_ref().is_some_and(|launched| launched.build.runs_like(&target.build));
        match &self.process {
            _ if !settled => ServicePhase::Switching,
            _ if !runs(target) => {
                if target.trial {
                    ServicePhase::Running
                } else {
                    ServicePhase::Good
                }
            }
            Process::Up { ready, .. } if fits => {
                if *ready && !target.trial {
                    ServicePhase::Good
                } else {
                    ServicePhase::Running
                }
            }
            // A proven build that ended is on its way back.
            _ if !target.trial => ServicePhase::Running,
            _ => ServicePhase::Switching,
        }
    }

    fn message(&self, goal: &Goal) -> Option<String> {
        let rejection = self.journal.rejection(goal.position).map(|rejection| &rejection.reason);
        let fetch = match &self.fetching {
            Fetching::Waiting { reason, .. } => Some(reason),
            _ => None,
        };
        let reasons = [self.alarm.as_ref(), self.trouble.as_ref(), rejection, fetch, self.message.as_ref()];
        reasons.into_iter().flatten().next().cloned()
    }
}
