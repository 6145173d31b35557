//! What comes next: the order of effects, in one place.

use std::time::Duration;

use super::{Busy, Core, Fetching, Output, Process, Target, allowed, runs};
use crate::machine::runner::Instance;
use crate::model::{Origin, Readiness};
use crate::port::swarm::Priority;

impl Core {
    /// Emits what comes next. All else only notes facts.
    pub(super) fn plan(&mut self, now: Duration) {
        self.plan_fetch(now);
        if self.busy.is_some() || self.retry_at.is_some_and(|at| now < at) {
            return;
        }
        self.retry_at = None;
        self.retarget();
        self.judge(now);
        if self.journal != self.durable {
            let journal = Box::new(self.journal.clone());
            return self.emit(Busy::Journal(journal.clone()), Output::Journal(journal));
        }
        let links = self.journal.links();
        if !self.switched() {
            return self.emit(Busy::Switch(links), Output::Switch(links));
        }
        self.doubtful.clear();
        self.plan_process(now);
    }

    /// Fetches the goal's blob when it is missing, else the target's: nothing that is needed stays away.
    fn plan_fetch(&mut self, now: Duration) {
        let wish = self.wish();
        let builds = wish.iter().chain(self.target().map(|target| &target.build));
        let missing =
            builds.map(|build| &build.artifact).find(|artifact| !self.held.contains(&artifact.digest)).cloned();
        if let Fetching::Running { digest, .. } = self.fetching
            && missing.as_ref().is_none_or(|artifact| artifact.digest != digest)
        {
            self.outputs.push_back(Output::CancelFetch(digest));
            self.fetching = Fetching::Idle;
        }
        let Some(artifact) = missing else {
            self.fetching = Fetching::Idle;
            return;
        };
        let due = match &self.fetching {
            Fetching::Idle => true,
            Fetching::Running { .. } => false,
            Fetching::Waiting { digest, until, .. } => *digest != artifact.digest || now >= *until,
        };
        if due {
            let back = self.journal.goal.as_ref().is_some_and(|goal| matches!(goal.origin, Origin::Rollback { .. }));
            let priority = if back { Priority::Rollback } else { Priority::Normal };
            self.fetching = Fetching::Running { digest: artifact.digest, bytes: 0 };
            self.outputs.push_back(Output::Fetch(artifact, priority));
        }
    }

    /// Moves the target to what the goal asks for, once its blob is there.
    fn retarget(&mut self) {
        if self.journal.goal.is_none() {
            return;
        }
        let Some(wish) = self.wish() else {
            if self.journal.target.is_some() {
                self.set_target(None);
            }
            // A retired service keeps nothing; a rejected first build has nothing to keep.
            if !self.selected() {
                self.journal.proven.clear();
            }
            return;
        };
        if !self.held.contains(&wish.artifact.digest) || self.target().is_some_and(|target| target.build == wish) {
            return;
        }
        let rejected = self.journal.goal.as_ref().is_some_and(|goal| goal.position != wish.position);
        match self.journal.target.clone() {
            // The same build under a newer goal: nothing is stopped, and a trial goes on.
            Some(Target { build, trial }) if build.runs_like(&wish) && !rejected => {
                self.journal.target = Some(Target { build: wish, trial });
                if !trial {
                    self.journal.prove(self.settings.keep_previous);
                }
            }
            _ => self.set_target(Some(Target { build: wish, trial: !rejected })),
        }
    }

    /// Decides whether the target has become ready, or never will.
    fn judge(&mut self, now: Duration) {
        let Some(target) = self.journal.target.clone() else { return };
        let settled = self.durable.target.as_ref() == Some(&target) && self.switched();
        let fits = self.process_fits(&target);
        let Process::Up { since, ready, .. } = &mut self.process else {
            if target.trial && settled && target.build.run.readiness == Readiness::Installed {
                return self.prove();
            }
            if target.trial && self.deadline.is_some_and(|at| now >= at) {
                self.late(&target);
            }
            return;
        };
        if !fits || !settled || !runs(&target) {
            return;
        }
        if let Readiness::Alive(span) = target.build.run.readiness {
            *ready |= now >= since.saturating_add(span);
        }
        if *ready {
            self.prove();
            self.restart_at = None;
        } else {
            let deadline = *self.deadline.get_or_insert(now.saturating_add(allowed(&target)));
            if now >= deadline {
                self.late(&target);
            }
        }
    }

    /// The target did not become ready in time: on trial it is reverted, else it is started again.
    fn late(&mut self, target: &Target) {
        let trouble = self.trouble.take().map(|trouble| format!(": {trouble}")).unwrap_or_default();
        let reason = format!("it was not ready after {:?}{trouble}", allowed(target));
        if target.trial {
            return self.revert(&reason);
        }
        self.deadline = None;
        self.message = Some(reason);
        if let Process::Up { instance, .. } = self.process.clone() {
            self.process = Process::Down(instance);
        }
    }

    fn plan_process(&mut self, now: Duration) {
        let target = self.journal.target.clone();
        let fits = target.as_ref().is_some_and(|target| runs(target) && self.process_fits(target));
        match self.process.clone() {
            Process::Down(instance) => self.stop(instance),
            Process::Waiting(instance) | Process::Up { instance, .. } if !fits => self.stop(instance),
            Process::Waiting(instance) => self.emit(Busy::Release, Output::Release(instance)),
            Process::Up { .. } => {}
            Process::None => {
                let Some(target) = target.filter(runs) else { return };
                if self.restart_at.is_some_and(|at| now < at) {
                    return;
                }
                self.restart_at = None;
                if self.held.contains(&target.build.artifact.digest) {
                    self.deadline.get_or_insert(now.saturating_add(allowed(&target)));
                    self.emit(Busy::Prepare(target.build.clone()), Output::Prepare(target.build));
                }
            }
        }
    }

    fn stop(&mut self, instance: Instance) {
        let grace = self.journal.process.as_ref().map_or(Duration::ZERO, |launched| launched.build.run.stop_grace);
        self.emit(Busy::Stop, Output::Stop(instance, grace));
    }

    fn emit(&mut self, busy: Busy, output: Output) {
        self.busy = Some(busy);
        self.outputs.push_back(output);
    }
}
