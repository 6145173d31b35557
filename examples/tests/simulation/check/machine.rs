//! Machines: no going back, verified bytes only, old or new, the newest goal wins.

use std::collections::BTreeMap;
use std::sync::Arc;

use deploycore::machine::Journal;
use deploycore::machine::journal::Build;
use deploycore::model::{
    Digest, Goal, GoalPosition, MachineName, MachineReport, Readiness, RegionName, ServiceName, ServicePhase,
};

use super::{Checker, Invariant, Met};
use crate::simulation::fault::Life;
use crate::simulation::machine::Machine;
use crate::simulation::machine::runner::Process;

type Key = (RegionName, MachineName, ServiceName);

/// What machines showed.
#[derive(Debug, Default)]
pub struct Model {
    taken_up: BTreeMap<Key, GoalPosition>,
    reverted: BTreeMap<Key, GoalPosition>,
}

impl Checker {
    /// A machine reported.
    pub fn reported(&self, report: &MachineReport) {
        for service in &report.services {
            let key = (report.region.clone(), report.machine.clone(), service.service.clone());
            let reverted = service.phase == ServicePhase::Reverted;
            if reverted && self.lock().machines.reverted.insert(key, service.goal) != Some(service.goal) {
                self.trace.met(Met::Reverts);
                self.trace.event(report.machine.as_str(), format_args!("reverted {}", service.goal));
            }
        }
    }

    /// A machine's journal is on disk.
    pub fn journaled(&self, machine: &Machine, journal: &Journal) {
        self.effect();
        let Some(goal) = &journal.goal else { return };
        let key = (machine.region.clone(), machine.name.clone(), journal.service.clone());
        let before = self.lock().machines.taken_up.insert(key, goal.position);
        self.require(Invariant::NoGoingBack, before.is_none_or(|before| before <= goal.position), || {
            format!(
                "{} in {} went from {before:?} to {} of {}",
                machine.name, machine.region, goal.position, goal.service
            )
        });
        self.looks_whole(machine, &journal.service);
    }

    /// `current` was switched.
    pub fn switched(&self, machine: &Machine, service: &ServiceName, before: Option<Digest>) {
        self.effect();
        let current = machine.links(service).current;
        let target =
            machine.journal(service).and_then(|journal| journal.target).map(|target| target.build.artifact.digest);
        self.trace
            .event(machine.name.as_str(), format_args!("{} {service} from {before:?} to {current:?}", machine.region));
        self.require(Invariant::OldOrNew, current == target, || {
            format!("{} switched {service} to {current:?}, and its journal says {target:?}", machine.name)
        });
        self.looks_whole(machine, service);
    }

    /// A blob was staged.
    pub fn staged(&self, machine: &Machine, digest: &Digest) {
        self.effect();
        self.trace.met(Met::Fetches);
        self.require(Invariant::VerifiedBytesOnly, machine.has_whole(digest) && self.truth(digest).is_some(), || {
            format!("{} staged {digest:?}, which nobody built", machine.name)
        });
    }

    /// The bytes of an artifact were removed.
    pub fn removed(&self, machine: &Machine, _digest: &Digest) {
        self.effect();
        for service in machine.services() {
            self.looks_whole(machine, &service);
        }
    }

    /// What `current` names is whole.
    fn looks_whole(&self, machine: &Machine, service: &ServiceName) {
        let Some(current) = machine.links(service).current else { return };
        self.require(Invariant::OldOrNew, machine.has_whole(&current), || {
            format!(
                "{} in {}: current of {service} names {current:?}, which is not whole",
                machine.name, machine.region
            )
        });
    }

    /// A process begins to execute.
    pub fn started(&self, machine: &Machine, process: &Arc<Process>) {
        self.effect();
        let Process { service, digest, instance, .. } = &**process;
        self.trace.event(machine.name.as_str(), format_args!("{} runs {service} {digest:?}", machine.region));
        let named = process.executable.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
        let verified = named == Some(*digest) && self.was_goal(service, digest);
        self.require(Invariant::VerifiedBytesOnly, verified, || {
            format!(
                "{} runs {digest:?} from {}, which no goal of {service} named",
                machine.name,
                process.executable.display()
            )
        });
        let known = machine.journal(service).and_then(|journal| journal.process);
        let known = known.is_some_and(|launched| launched.instance == *instance);
        let alone = machine.running(service).len() == 1;
        self.require(Invariant::OldOrNew, known && alone, || {
            format!("{}: a process of {service} runs; journaled: {known}, alone: {alone}", machine.name)
        });
    }

    /// A process that executes is being stopped.
    pub fn stopping(&self, machine: &Machine, process: &Arc<Process>, life: &Arc<Life>) {
        self.effect();
        let journal = machine.journal(&process.service);
        let target = journal.as_ref().and_then(|journal| journal.target.as_ref());
        // What an earlier agent proved, and what the journal still wants, has no reason to end.
        let wanted = target.is_some_and(|target| {
            let build = &target.build;
            !target.trial && build.artifact.digest == process.digest && build.run == process.run
        });
        self.require(Invariant::OldOrNew, !(wanted && process.is_adopted(life)), || {
            format!("{}: a new agent stops {}, which is wanted", machine.name, process.service)
        });
    }

    /// What keeps a machine from the end of its way to a goal, if anything.
    pub fn behind(machine: &Machine, goal: &Goal) -> Option<String> {
        let service = &goal.service;
        if !goal.selector.matches(&machine.labels) {
            let idle = machine.links(service).current.is_none() && machine.running(service).is_empty();
            return (!idle).then(|| format!("{} still has {service}", machine.name));
        }
        let Some(journal) = machine.journal(service) else {
            return Some(format!("{} has not heard of {service}", machine.name));
        };
        let rejected = journal.rejection(goal.position).is_some();
        let wanted = if rejected { journal.proven.first().cloned() } else { Some(Build::of(goal)) };
        let target = journal.target.as_ref();
        let arrived =
            target.map(|target| &target.build) == wanted.as_ref() && target.is_none_or(|target| !target.trial);
        let linked = machine.links(service).current == wanted.as_ref().map(|build| build.artifact.digest);
        let runs =
            wanted.as_ref().is_some_and(|build| !matches!(build.run.readiness, Readiness::Installed | Readiness::Exit));
        let digests: Vec<_> = machine.running(service).iter().map(|process| process.digest).collect();
        let expected: Vec<_> = wanted.iter().filter(|_| runs).map(|build| build.artifact.digest).collect();
        let done = arrived && linked && digests == expected && journal.goal.as_ref() == Some(goal);
        (!done).then(|| {
            format!(
                "{} in {} is behind {} of {service}: rejected {rejected}, arrived {arrived}, linked {linked}, runs {digests:?}, \
                 {journal:?}",
                machine.name, machine.region, goal.position
            )
        })
    }
}
