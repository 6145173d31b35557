//! The agent's decisions for one service, as a state machine without clock, randomness or I/O.
//!
//! ```text
//! idle ─► fetching ─► staged ─► switching ─► running ─► good
//!                                   ▲            └────► reverted
//!                                   └──── retired (the goal selects other machines)
//! ```
//!
//! The machine is level-triggered: after each [`Input`] it compares the journal, the links and the process with what the newest goal asks
//! for, and emits the one effect that comes next. Whatever a crash left behind is just another starting point, so
//! [`Core::recover`] has no cases of its own. The order that keeps a machine on the old build or the new one:
//!
//! 1. the blob is verified and named whole ([`Output::Fetch`] is answered);
//! 2. the journal names the target, synced ([`Output::Journal`]);
//! 3. the links are switched, synced ([`Output::Switch`]);
//! 4. the old process is stopped, with all that it started ([`Output::Stop`]);
//! 5. a process is made that waits ([`Output::Prepare`]);
//! 6. the journal names the process, synced;
//! 7. the process is let go ([`Output::Release`]).
//!
//! At most one effect of 2 to 7 is under way at a time. A fetch runs beside them, so that the old build serves and may fail and
//! restart while a newer one travels. A newer goal is taken up in every state: an effect under way is finished, then the next one
//! leads to the newer goal.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::journal::{Build, Journal, Launched, Links, Target};
use super::runner::Instance;
use crate::model::{ArtifactRef, Digest, Goal, Labels, Origin, Readiness, ServicePhase, ServiceReport};
use crate::pace::Backoff;
use crate::port::swarm::Priority;

#[cfg(test)]
mod tests;

/// How the core decides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CoreSettings {
    /// How many builds besides the current one are kept to go back to; 3 by default.
    pub keep_previous: usize,
    /// How often a build on trial may end or fail to start before it is reverted; 3 by default.
    pub start_attempts: u32,
    /// Between two starts of a build that ends by itself.
    pub restart: Backoff,
    /// Between two attempts at an effect that failed: a fetch, a write.
    pub retry: Backoff,
}

impl Default for CoreSettings {
    fn default() -> Self {
        Self { keep_previous: 3, start_attempts: 3, restart: Backoff::default(), retry: Backoff::default() }
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A goal of this service was seen. Old ones may come again.
    Goal(Box<Goal>),
    /// The journal is durable.
    Journaled,
    /// The links are durable.
    Switched,
    /// The process waits.
    Prepared(Instance),
    /// The process was let go.
    Released,
    /// Nothing is left of the process.
    Stopped,
    /// The effect of 2 to 7 under way failed; what it did is not known.
    Failed(String),
    /// The blob is on disk, verified whole, with so many bytes fetched for it.
    Fetched(Digest, u64),
    /// So many bytes of a fetch are on disk.
    Progress(Digest, u64),
    /// The fetch cannot go on.
    FetchFailed(Digest, String),
    /// The blob turned out to be damaged and was removed.
    Lost(Digest),
    /// The process answers on its port.
    Ready(Instance),
    /// The process ended.
    Ended(Instance, Option<i32>),
    /// The time of [`Core::poll_timeout`] has come.
    Timeout,
}

/// What to do. Each is answered by an input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Replace the journal; answer when it is durable.
    Journal(Box<Journal>),
    /// Make the links name these blobs; answer when that is durable.
    Switch(Links),
    /// Make a process of the build that waits.
    Prepare(Build),
    /// Let the process go.
    Release(Instance),
    /// Stop the process and all that it started.
    Stop(Instance, Duration),
    /// Make sure that the blob is on disk, whole and verified. At most one is under way.
    Fetch(ArtifactRef, Priority),
    /// End the fetch; no answer.
    CancelFetch(Digest),
    /// Say when the process ends, and when it first answers on this path, if there is one.
    Watch(Instance, Option<String>),
}

/// The fetch that runs beside the effects.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fetching {
    Idle,
    Running { digest: Digest, bytes: u64 },
    Waiting { digest: Digest, until: Duration, reason: String },
}

/// The process of the service, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Process {
    None,
    /// It waits; the journal may not name it yet.
    Waiting(Instance),
    /// It runs the build.
    Up {
        instance: Instance,
        since: Duration,
        ready: bool,
    },
    /// It ended; what it started may be left.
    Down(Instance),
}

/// The effect under way.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Busy {
    Journal(Box<Journal>),
    Switch(Links),
    Prepare(Build),
    Release,
    Stop,
}

/// The agent's decisions for one service. See the [module](self).
#[derive(Debug)]
pub struct Core {
    settings: CoreSettings,
    labels: Labels,
    /// As it shall be.
    journal: Journal,
    /// As it is on disk.
    durable: Journal,
    /// `None` when a failed switch left them unknown.
    links: Option<Links>,
    held: BTreeSet<Digest>,
    fetching: Fetching,
    fetch_failures: u32,
    process: Process,
    busy: Option<Busy>,
    /// After a failed effect.
    retry_at: Option<Duration>,
    effect_failures: u32,
    /// Ends of the target's process in a row, and when it may start again.
    restarts: u32,
    restart_at: Option<Duration>,
    /// When a target on trial is given up.
    deadline: Option<Duration>,
    /// Why the process does not run.
    message: Option<String>,
    /// Why no effect goes on.
    trouble: Option<String>,
    /// Stays until the next goal.
    alarm: Option<String>,
    outputs: VecDeque<Output>,
}

/// What a crash left of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The journal.
    pub journal: Journal,
    /// The links.
    pub links: Links,
    /// Whether the journaled process is alive.
    pub alive: bool,
}

impl Core {
    /// Goes on from what is on disk; `held` are the blobs that are whole.
    pub fn recover(
        settings: CoreSettings,
        labels: Labels,
        found: Found,
        held: &BTreeSet<Digest>,
        now: Duration,
    ) -> Self {
        let Found { journal, links, alive } = found;
        let process = match &journal.process {
            None => Process::None,
            Some(Launched { instance, .. }) if !alive => Process::Down(instance.clone()),
            Some(Launched { instance, .. }) => {
                let ready = journal.target.as_ref().is_some_and(|target| !target.trial);
                Process::Up { instance: instance.clone(), since: now, ready }
            }
        };
        let mut core = Self {
            settings,
            labels,
            durable: journal.clone(),
            journal,
            links: Some(links),
            held: held.clone(),
            fetching: Fetching::Idle,
            fetch_failures: 0,
            process,
            busy: None,
            retry_at: None,
            effect_failures: 0,
            restarts: 0,
            restart_at: None,
            deadline: None,
            message: None,
            trouble: None,
            alarm: None,
            outputs: VecDeque::new(),
        };
        if matches!(core.process, Process::Up { .. }) {
            core.watch();
        }
        core.plan(now);
        core
    }

    /// Takes what happened at `now`, which never falls.
    pub fn handle(&mut self, input: Input, now: Duration) {
        match input {
            Input::Goal(goal) => self.take_up(*goal),
            Input::Journaled => {
                if let Some(Busy::Journal(journal)) = self.finish() {
                    self.durable = *journal;
                }
            }
            Input::Switched => {
                if let Some(Busy::Switch(links)) = self.finish() {
                    self.links = Some(links);
                }
            }
            Input::Prepared(instance) => {
                if let Some(Busy::Prepare(build)) = self.finish() {
                    self.journal.process = Some(Launched { build, instance: instance.clone() });
                    self.process = Process::Waiting(instance);
                }
            }
            Input::Released => {
                self.finish();
                if let Process::Waiting(instance) = self.process.clone() {
                    self.process = Process::Up { instance, since: now, ready: false };
                    self.watch();
                }
            }
            Input::Stopped => {
                self.finish();
                self.process = Process::None;
            }
            Input::Failed(reason) => self.fail(reason, now),
            Input::Fetched(digest, bytes) => self.fetched(digest, bytes),
            Input::Progress(digest, so_far) => {
                if let Fetching::Running { digest: running, bytes } = &mut self.fetching
                    && *running == digest
                {
                    *bytes = so_far;
                }
            }
            Input::FetchFailed(digest, reason) => {
                if matches!(self.fetching, Fetching::Running { digest: running, .. } if running == digest) {
                    self.fetch_failures += 1;
                    let until = now + self.settings.retry.delay(self.fetch_failures);
                    self.fetching = Fetching::Waiting { digest, until, reason };
                }
            }
            Input::Lost(digest) => {
                self.held.remove(&digest);
            }
            Input::Ready(seen) => {
                if let Process::Up { instance, ready, .. } = &mut self.process
                    && *instance == seen
                {
                    *ready = true;
                }
            }
            Input::Ended(seen, code) => self.ended(&seen, code, now),
            Input::Timeout => {}
        }
        self.plan(now);
    }

    /// The next effect, or `None` until the next input.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to hand in [`Input::Timeout`], if nothing else happens before.
    pub fn poll_timeout(&self) -> Option<Duration> {
        let fetch = match self.fetching {
            Fetching::Waiting { until, .. } => Some(until),
            _ => None,
        };
        if self.busy.is_some() {
            return fetch;
        }
        if self.retry_at.is_some() {
            return [fetch, self.retry_at].into_iter().flatten().min();
        }
        let ready = match (&self.process, self.target().map(|target| &target.build.run.readiness)) {
            (Process::Up { since, ready: false, .. }, Some(Readiness::Alive(span))) => Some(*since + *span),
            _ => None,
        };
        let restart = self.restart_at.filter(|_| self.process == Process::None);
        [fetch, ready, restart, self.deadline].into_iter().flatten().min()
    }

    /// The blobs that must stay on disk for this service, those on their way included.
    pub fn wanted(&self) -> BTreeSet<Digest> {
        let mut wanted = self.journal.blobs();
        wanted.extend(self.durable.blobs());
        wanted.extend(self.links.and_then(|links| links.current));
        wanted.extend(self.wish().map(|build| build.artifact.digest));
        if let Some(Busy::Journal(journal)) = &self.busy {
            wanted.extend(journal.blobs());
        }
        if let Some(Busy::Prepare(build)) = &self.busy {
            wanted.insert(build.artifact.digest);
        }
        wanted
    }

    /// The journal as it is on disk.
    pub fn durable(&self) -> &Journal {
        &self.durable
    }

    /// The process, when one waits or runs, with its grace.
    pub fn instance(&self) -> Option<(&Instance, Duration)> {
        let grace = self.journal.process.as_ref().map(|launched| launched.build.run.stop_grace)?;
        match &self.process {
            Process::Waiting(instance) | Process::Up { instance, .. } => Some((instance, grace)),
            Process::None | Process::Down(_) => None,
        }
    }

    /// What to tell the region, or `None` while the service never had anything to do with this machine.
    pub fn report(&self) -> Option<ServiceReport> {
        let goal = self.journal.goal.as_ref()?;
        if !self.selected() && !self.journal.served {
            return None;
        }
        let current = self
            .target()
            .filter(|target| self.links.is_some_and(|links| links.current == Some(target.build.artifact.digest)));
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
        let settled = self.links == Some(self.journal.links());
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

    fn target(&self) -> Option<&Target> {
        self.journal.target.as_ref()
    }

    fn selected(&self) -> bool {
        self.journal.goal.as_ref().is_some_and(|goal| goal.selector.matches(&self.labels))
    }

    /// What the newest goal asks for; `None` when that is nothing.
    fn wish(&self) -> Option<Build> {
        let goal = self.journal.goal.as_ref().filter(|_| self.selected())?;
        match self.journal.rejection(goal.position) {
            None => Some(Build::of(goal)),
            Some(_) => self.journal.proven.first().cloned(),
        }
    }

    fn take_up(&mut self, goal: Goal) {
        match &self.journal.goal {
            Some(known) if goal.position < known.position => {
                tracing::debug!(service = %goal.service, offered = %goal.position, known = %known.position, "an old goal is ignored");
            }
            Some(known) if goal.position == known.position => {
                if *known != goal {
                    metrics::counter!("deploycore_agent_equivocations_total").increment(1);
                    tracing::error!(service = %goal.service, position = %goal.position, "one generation was written twice; the first is kept");
                    self.alarm = Some(format!(
                        "another goal was offered at {}: one generation was written twice",
                        goal.position
                    ));
                }
            }
            _ => {
                tracing::info!(service = %goal.service, position = %goal.position, artifact = %goal.artifact.name, "goal taken up");
                self.journal.goal = Some(goal);
                self.journal.bytes_fetched = 0;
                self.message = None;
                self.alarm = None;
                self.fetch_failures = 0;
            }
        }
    }

    fn fetched(&mut self, digest: Digest, bytes: u64) {
        self.held.insert(digest);
        if matches!(self.fetching, Fetching::Running { digest: running, .. } if running == digest) {
            self.fetching = Fetching::Idle;
            self.fetch_failures = 0;
            if self.journal.goal.as_ref().is_some_and(|goal| goal.artifact.digest == digest) {
                self.journal.bytes_fetched += bytes;
            }
        }
    }

    /// The effect under way was answered.
    fn finish(&mut self) -> Option<Busy> {
        self.effect_failures = 0;
        self.trouble = None;
        self.busy.take()
    }

    /// The effect under way failed. A start counts against the build, anything else is tried again.
    fn fail(&mut self, reason: String, now: Duration) {
        let Some(busy) = self.busy.take() else { return };
        match busy {
            Busy::Prepare(_) => self.failed_start(reason, now),
            Busy::Release => {
                if let Process::Waiting(instance) = self.process.clone() {
                    self.process = Process::Down(instance);
                }
                self.failed_start(reason, now);
            }
            Busy::Switch(links) => {
                self.links = None;
                // A link to a blob that is not there: it has to come again.
                tracing::warn!(service = %self.journal.service, ?links, reason, "the links could not be switched");
                self.delay_effects(reason, now);
            }
            Busy::Journal(_) | Busy::Stop => self.delay_effects(reason, now),
        }
    }

    fn delay_effects(&mut self, reason: String, now: Duration) {
        self.effect_failures += 1;
        self.retry_at = Some(now + self.settings.retry.delay(self.effect_failures));
        self.trouble = Some(reason);
    }

    fn ended(&mut self, seen: &Instance, code: Option<i32>, now: Duration) {
        let Process::Up { instance, since, .. } = &self.process else { return };
        if instance != seen {
            return;
        }
        let (instance, lived) = (instance.clone(), now.saturating_sub(*since));
        self.process = Process::Down(instance);
        // The end of a process that was about to be replaced is no failure of the target.
        let Some(target) = self.journal.target.clone().filter(|target| self.process_fits(target)) else { return };
        let text = code.map_or_else(|| "without an exit code".to_owned(), |code| format!("with exit code {code}"));
        match (&target.build.run.readiness, code) {
            (Readiness::Exit, Some(0)) if target.trial => self.prove(),
            // The process of an earlier agent: nobody knows how it ended, so it has to be run again.
            (Readiness::Exit, None) if target.trial => self.restart_at = None,
            _ => {
                if lived > self.settings.restart.max {
                    self.restarts = 0;
                }
                self.failed_start(format!("it ended {text} after {lived:.1?}"), now);
            }
        }
    }

    /// The target's process ended by itself or could not be started.
    fn failed_start(&mut self, reason: String, now: Duration) {
        self.restarts += 1;
        metrics::counter!("deploycore_agent_service_failures_total").increment(1);
        tracing::warn!(service = %self.journal.service, restarts = self.restarts, reason, "the service does not run");
        let trial = self.target().is_some_and(|target| target.trial);
        if trial && self.restarts >= self.settings.start_attempts {
            return self.revert(&format!("{reason}; {} starts failed", self.restarts));
        }
        if !trial {
            self.deadline = None;
        }
        self.restart_at = Some(now + self.settings.restart.delay(self.restarts));
        self.message = Some(reason);
    }

    /// Gives up the target on trial: it is rejected, so that the next plan goes back to what was proven last.
    fn revert(&mut self, reason: &str) {
        let Some(target) = self.journal.target.take() else { return };
        metrics::counter!("deploycore_agent_reverts_total").increment(1);
        tracing::warn!(service = %self.journal.service, position = %target.build.position, reason, "the build is reverted");
        self.journal.reject(target.build.position, reason.to_owned());
        let back = self.journal.proven.first().filter(|_| self.selected()).cloned();
        self.set_target(back.map(|build| Target { build, trial: false }));
    }

    fn prove(&mut self) {
        self.deadline = None;
        self.message = None;
        if self.target().is_some_and(|target| target.trial) {
            self.journal.prove(self.settings.keep_previous);
        }
    }

    fn set_target(&mut self, target: Option<Target>) {
        self.journal.served |= target.is_some();
        self.journal.target = target;
        self.restarts = 0;
        self.restart_at = None;
        self.deadline = None;
    }

    fn process_fits(&self, target: &Target) -> bool {
        self.journal.process.as_ref().is_some_and(|launched| launched.build.runs_like(&target.build))
    }

    fn watch(&mut self) {
        let (Process::Up { instance, .. }, Some(launched)) = (&self.process, &self.journal.process) else { return };
        let path = match &launched.build.run.readiness {
            Readiness::Http(path) => Some(path.clone()),
            _ => None,
        };
        self.outputs.push_back(Output::Watch(instance.clone(), path));
    }

    fn emit(&mut self, busy: Busy, output: Output) {
        self.busy = Some(busy);
        self.outputs.push_back(output);
    }

    /// Emits what comes next. Everything above only notes facts; the order of effects is here.
    fn plan(&mut self, now: Duration) {
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
        if self.links != Some(links) {
            return self.emit(Busy::Switch(links), Output::Switch(links));
        }
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
        let settled = self.durable.target.as_ref() == Some(&target) && self.links == Some(self.journal.links());
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
            *ready |= now >= *since + span;
        }
        if *ready {
            self.prove();
            self.restart_at = None;
        } else {
            let deadline = *self.deadline.get_or_insert(now + allowed(&target));
            if now >= deadline {
                self.late(&target);
            }
        }
    }

    /// The target did not become ready in time: on trial it is reverted, else it is started again.
    fn late(&mut self, target: &Target) {
        let reason = format!("it was not ready after {:?}", allowed(target));
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
                    self.deadline.get_or_insert(now + allowed(&target));
                    self.emit(Busy::Prepare(target.build.clone()), Output::Prepare(target.build));
                }
            }
        }
    }

    fn stop(&mut self, instance: Instance) {
        let grace = self.journal.process.as_ref().map_or(Duration::ZERO, |launched| launched.build.run.stop_grace);
        self.emit(Busy::Stop, Output::Stop(instance, grace));
    }
}

/// Whether the target wants a process now. One that is run once is not run again after it has proven itself.
fn runs(target: &Target) -> bool {
    match target.build.run.readiness {
        Readiness::Installed => false,
        Readiness::Exit => target.trial,
        _ => true,
    }
}

/// How long a start may take. Staying alive counts from the start, so it is always granted.
fn allowed(target: &Target) -> Duration {
    match target.build.run.readiness {
        Readiness::Alive(span) => span + target.build.run.ready_timeout,
        _ => target.build.run.ready_timeout,
    }
}
