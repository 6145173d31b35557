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
use crate::model::{Digest, Goal, Labels, Readiness};
use crate::pace::Backoff;

mod message;
mod plan;
mod report;
#[cfg(test)]
mod tests;

pub use self::message::{Input, Output};

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
    /// Between two attempts at an effect that failed: a fetch, which may come up to half of it sooner, or a write.
    pub retry: Backoff,
}

impl Default for CoreSettings {
    fn default() -> Self {
        Self { keep_previous: 3, start_attempts: 3, restart: Backoff::default(), retry: Backoff::default() }
    }
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
    /// As they were when last known.
    links: Links,
    /// Whether a failed switch may have moved them.
    unsure: bool,
    /// Blobs that a journal or a link may name, because a write failed and may yet have happened.
    doubtful: BTreeSet<Digest>,
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
            links,
            unsure: false,
            doubtful: BTreeSet::new(),
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
                    self.links = links;
                    self.unsure = false;
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
            Input::Unstartable(reason) => {
                if let Some(Busy::Prepare(_)) = self.finish() {
                    self.failed_start(reason, now);
                }
            }
            Input::Fetched(digest, bytes) => self.fetched(digest, bytes),
            Input::Progress(digest, so_far) => {
                if let Fetching::Running { digest: running, bytes } = &mut self.fetching
                    && *running == digest
                {
                    *bytes = so_far;
                }
            }
            Input::FetchFailed(digest, reason, sooner) => {
                if matches!(self.fetching, Fetching::Running { digest: running, .. } if running == digest) {
                    self.fetch_failures += 1;
                    let delay = self.settings.retry.delay(self.fetch_failures);
                    let sooner = (delay / 2).mul_f64(sooner.clamp(0.0, 1.0));
                    let until = now.saturating_add(delay.saturating_sub(sooner));
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
            (Process::Up { since, ready: false, .. }, Some(Readiness::Alive(span))) => {
                Some(since.saturating_add(*span))
            }
            _ => None,
        };
        let restart = self.restart_at.filter(|_| self.process == Process::None);
        [fetch, ready, restart, self.deadline].into_iter().flatten().min()
    }

    /// The blobs that must stay on disk for this service, those on their way included.
    pub fn wanted(&self) -> BTreeSet<Digest> {
        let mut wanted = self.journal.blobs();
        wanted.extend(self.durable.blobs());
        wanted.extend(self.links.current);
        wanted.extend(&self.doubtful);
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

    /// Whether the links name what they shall.
    fn switched(&self) -> bool {
        !self.unsure && self.links == self.journal.links()
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
        // What a fetch that was cancelled brought may be removed already.
        if matches!(self.fetching, Fetching::Running { digest: running, .. } if running == digest) {
            self.held.insert(digest);
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

    /// The effect under way failed: it is tried again. A start that the system refuses is no failure of the build; on trial it has as long
    /// as any start, from when its blob is there.
    fn fail(&mut self, reason: String, now: Duration) {
        let Some(busy) = self.busy.take() else { return };
        match busy {
            Busy::Prepare(_) | Busy::Release => {
                if let Process::Waiting(instance) = self.process.clone() {
                    self.process = Process::Down(instance);
                }
                let held = |target: &Target| self.held.contains(&target.build.artifact.digest);
                if !self.target().is_some_and(|target| target.trial && held(target)) {
                    self.deadline = None;
                }
                tracing::warn!(service = %self.journal.service, reason, "the system refuses to start the service");
                self.delay_effects(reason, now);
            }
            Busy::Switch(links) => {
                self.unsure = true;
                self.doubtful.extend(links.current);
                tracing::warn!(service = %self.journal.service, ?links, reason, "the links could not be switched");
                self.delay_effects(reason, now);
            }
            Busy::Journal(journal) => {
                self.doubtful.extend(journal.blobs());
                self.delay_effects(reason, now);
            }
            Busy::Stop => self.delay_effects(reason, now),
        }
    }

    fn delay_effects(&mut self, reason: String, now: Duration) {
        self.effect_failures += 1;
        self.retry_at = Some(now.saturating_add(self.settings.retry.delay(self.effect_failures)));
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
        self.restart_at = Some(now.saturating_add(self.settings.restart.delay(self.restarts)));
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
        Readiness::Alive(span) => span.saturating_add(target.build.run.ready_timeout),
        _ => target.build.run.ready_timeout,
    }
}
