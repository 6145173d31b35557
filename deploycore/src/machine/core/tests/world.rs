//! A machine in virtual time: a disk, processes, and a core that may be lost at any step.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::super::*;
use crate::machine::journal::{Journal, Links};
use crate::model::{
    ArtifactName, ArtifactRef, Digest, Generation, Goal, GoalEpoch, GoalPosition, Origin, Readiness, RunSpec, Selector,
    ServiceName, ServicePhase,
};

pub(super) const SECOND: Duration = Duration::from_secs(1);

/// What a program does once it is let go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Behaviour {
    /// It answers after a second and lives for ever.
    Serves,
    /// It lives and never answers.
    Hangs,
    /// It ends after a second with this code.
    Ends(i32),
    /// It cannot be started as it is specified.
    Unstartable,
}

/// How an agent is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Crash {
    /// The agent dies; what it started runs on.
    Agent,
    /// As above; of a switch under way the first link is moved.
    HalfSwitch,
    /// The host starts anew.
    Reboot,
}

#[derive(Debug, Clone)]
struct Proc {
    build: Build,
    instance: Instance,
    released: bool,
    killed: bool,
    ready_at: Option<Duration>,
    ends: Option<(Duration, i32)>,
    agent: u32,
}

impl Proc {
    fn runs(&self, now: Duration) -> bool {
        self.released && !self.killed && self.ends.is_none_or(|(at, _)| at > now)
    }
}

pub(super) struct World {
    pub(super) now: Duration,
    pub(super) core: Core,
    pub(super) journal: Journal,
    pub(super) links: Links,
    pub(super) blobs: BTreeSet<Digest>,
    behaviours: BTreeMap<Digest, Behaviour>,
    procs: BTreeMap<u32, Proc>,
    todo: VecDeque<Output>,
    events: BTreeMap<(Duration, u64), Input>,
    agent: u32,
    sequence: u64,
    pub(super) fetches: Vec<Digest>,
    highest: GoalPosition,
    pub(super) steps: u64,
    /// Each answer of an effect is a failure while this is not zero.
    pub(super) failures: u32,
    /// Whether the system refuses to start anything.
    pub(super) refuses: bool,
}

pub(super) fn artifact(name: &str) -> ArtifactRef {
    ArtifactRef { name: ArtifactName::new(name).unwrap(), digest: Digest::of(name.as_bytes()), size: 100 }
}

pub(super) fn goal(generation: u64, name: &str, readiness: Readiness) -> Goal {
    Goal {
        service: ServiceName::new("web").unwrap(),
        position: GoalPosition { epoch: GoalEpoch(1), generation: Generation(generation) },
        artifact: artifact(name),
        run: RunSpec { readiness, ready_timeout: 5 * SECOND, stop_grace: SECOND, ..RunSpec::default() },
        selector: Selector::all(),
        origin: Origin::Deploy,
        created_at: "2026-01-01T00:00:00Z".parse().unwrap(),
        waivers: Vec::new(),
    }
}

pub(super) fn http() -> Readiness {
    Readiness::Http("/".to_owned())
}

fn settings() -> CoreSettings {
    let backoff = Backoff { initial: SECOND / 2, max: 4 * SECOND };
    CoreSettings { keep_previous: 2, restart: backoff, retry: backoff, ..CoreSettings::default() }
}

impl World {
    pub(super) fn new(behaviours: &[(&str, Behaviour)]) -> Self {
        let journal = Journal::new(ServiceName::new("web").unwrap());
        let found = Found { journal: journal.clone(), links: Links::default(), alive: false };
        let core = Core::recover(settings(), Labels::default(), found, &BTreeSet::new(), Duration::ZERO);
        Self {
            now: Duration::ZERO,
            core,
            journal,
            links: Links::default(),
            blobs: BTreeSet::new(),
            behaviours: behaviours.iter().map(|(name, behaviour)| (artifact(name).digest, *behaviour)).collect(),
            procs: BTreeMap::new(),
            todo: VecDeque::new(),
            events: BTreeMap::new(),
            agent: 0,
            sequence: 0,
            fetches: Vec::new(),
            highest: GoalPosition::default(),
            steps: 0,
            failures: 0,
            refuses: false,
        }
    }

    pub(super) fn offer(&mut self, goal: &Goal) {
        self.input(Input::Goal(Box::new(goal.clone())));
    }

    pub(super) fn input(&mut self, input: Input) {
        self.core.handle(input, self.now);
        self.drain();
        self.check();
    }

    /// The build that executes now.
    pub(super) fn running(&self) -> Option<&Build> {
        self.procs.values().find(|proc| proc.runs(self.now)).map(|proc| &proc.build)
    }

    pub(super) fn phase(&self) -> ServicePhase {
        self.core.report().expect("the service is known").phase
    }

    /// Does one effect or hands one event in; `false` when nothing is to happen any more.
    pub(super) fn step(&mut self) -> bool {
        self.steps += 1;
        if let Some(output) = self.todo.pop_front() {
            self.perform(output);
        } else {
            let event = self.events.first_key_value().map(|((at, _), _)| *at);
            let Some(at) = event.into_iter().chain(self.core.poll_timeout()).min() else { return false };
            self.now = self.now.max(at);
            let input = match self.events.first_entry() {
                Some(entry) if entry.key().0 <= self.now => entry.remove(),
                _ => Input::Timeout,
            };
            if let Input::Fetched(digest, _) = input {
                self.blobs.insert(digest);
            }
            let timeout = input == Input::Timeout;
            self.core.handle(input, self.now);
            self.drain();
            let again = self.core.poll_timeout().is_some_and(|at| at <= self.now);
            assert!(!(timeout && again && self.todo.is_empty()), "a timeout that does nothing comes again at once");
        }
        self.sweep();
        self.check();
        true
    }

    pub(super) fn run_for(&mut self, span: Duration) {
        let end = self.now + span;
        for _ in 0..10_000 {
            let event = self.events.first_key_value().map(|((at, _), _)| *at);
            let next = event.into_iter().chain(self.core.poll_timeout()).min();
            if self.todo.is_empty() && next.is_none_or(|at| at > end) {
                self.now = end;
                return;
            }
            self.step();
        }
        panic!("it does not come to rest");
    }

    pub(super) fn crash(&mut self, crash: Crash) {
        if let (Crash::HalfSwitch, Some(Output::Switch(links))) = (crash, self.todo.front()) {
            self.links.previous = links.previous;
        }
        self.agent += 1;
        self.todo.clear();
        self.events.clear();
        // Whoever waits at its gate ends with the agent.
        self.procs.retain(|_, proc| proc.released && crash != Crash::Reboot);
        let alive = self
            .journal
            .process
            .as_ref()
            .is_some_and(|launched| self.procs.get(&launched.instance.pid).is_some_and(|proc| proc.runs(self.now)));
        let found = Found { journal: self.journal.clone(), links: self.links, alive };
        self.core = Core::recover(settings(), Labels::default(), found, &self.blobs, self.now);
        self.drain();
        self.sweep();
        self.check();
    }

    /// The service's process is ended by somebody else.
    pub(super) fn kill(&mut self) {
        let now = self.now;
        let proc = self.procs.values_mut().find(|proc| proc.runs(now)).expect("something runs");
        proc.ends = Some((now, 137));
        let instance = proc.instance.clone();
        self.input(Input::Ended(instance, Some(137)));
    }

    fn drain(&mut self) {
        while let Some(output) = self.core.poll_output() {
            self.todo.push_back(output);
        }
    }

    fn later(&mut self, after: Duration, input: Input) {
        self.sequence += 1;
        self.events.insert((self.now + after, self.sequence), input);
    }

    fn answer(&mut self, input: Input) {
        self.later(Duration::from_millis(1), input);
    }

    /// Removes what is not wanted, as the shell does.
    fn sweep(&mut self) {
        let wanted = self.core.wanted();
        for digest in std::mem::take(&mut self.blobs) {
            if wanted.contains(&digest) {
                self.blobs.insert(digest);
            } else {
                self.core.handle(Input::Lost(digest), self.now);
            }
        }
        self.drain();
    }

    fn perform(&mut self, output: Output) {
        let effect = !matches!(output, Output::Fetch(..) | Output::CancelFetch(_) | Output::Watch(..));
        if effect && self.failures > 0 {
            self.failures -= 1;
            // What failed may have happened all the same.
            match output {
                Output::Journal(journal) if self.failures.is_multiple_of(2) => self.journal = *journal,
                Output::Switch(links) if self.failures.is_multiple_of(2) => self.links = links,
                _ => {}
            }
            return self.answer(Input::Failed("the disk says no".to_owned()));
        }
        match output {
            Output::Journal(journal) => {
                self.journal = *journal;
                self.answer(Input::Journaled);
            }
            Output::Switch(links) => {
                assert_eq!(links, self.journal.links(), "the journal names the target before the switch");
                self.links = links;
                self.answer(Input::Switched);
            }
            Output::Prepare(build) => {
                assert_eq!(self.running(), None, "the old process is gone before the new one starts");
                assert_eq!(self.journal.target.as_ref().map(|t| &t.build), Some(&build), "what starts is journaled");
                assert_eq!(self.links.current, Some(build.artifact.digest), "the switch comes before the start");
                assert!(self.journal.rejection(build.position).is_none(), "what was reverted is not tried again");
                if self.behaviours[&build.artifact.digest] == Behaviour::Unstartable {
                    return self.answer(Input::Unstartable("no such thing".to_owned()));
                }
                if self.refuses {
                    return self.answer(Input::Failed("no process can be made".to_owned()));
                }
                let pid = self.procs.len() as u32 + 100 + self.sequence as u32;
                let instance = Instance { pid, start_time: self.sequence, boot: "boot".to_owned(), port: Some(80) };
                let proc = Proc {
                    build,
                    instance: instance.clone(),
                    released: false,
                    killed: false,
                    ready_at: None,
                    ends: None,
                    agent: self.agent,
                };
                self.procs.insert(pid, proc);
                self.answer(Input::Prepared(instance));
            }
            Output::Release(instance) => {
                let known = self.journal.process.as_ref().map(|launched| &launched.instance);
                assert_eq!(known, Some(&instance), "a process is journaled before it is let go");
                let (now, proc) = (self.now, self.procs.get_mut(&instance.pid).expect("it waits"));
                proc.released = true;
                match self.behaviours[&proc.build.artifact.digest] {
                    Behaviour::Serves => proc.ready_at = Some(now + SECOND),
                    Behaviour::Hangs | Behaviour::Unstartable => {}
                    Behaviour::Ends(code) => proc.ends = Some((now + SECOND, code)),
                }
                self.answer(Input::Released);
            }
            Output::Watch(instance, path) => {
                let (now, agent) = (self.now, self.agent);
                let proc = self.procs[&instance.pid].clone();
                if let (Some(at), Some(_)) = (proc.ready_at, path) {
                    self.later(at.saturating_sub(now), Input::Ready(instance.clone()));
                }
                if let Some((at, code)) = proc.ends {
                    let code = (proc.agent == agent).then_some(code);
                    self.later(at.saturating_sub(now), Input::Ended(instance, code));
                }
            }
            Output::Stop(instance, _) => {
                if let Some(proc) = self.procs.get_mut(&instance.pid) {
                    proc.killed = true;
                }
                self.answer(Input::Stopped);
            }
            Output::Fetch(artifact, _) => {
                self.fetches.push(artifact.digest);
                // Named whole at the end; until then a crash leaves nothing of it.
                self.later(3 * SECOND, Input::Fetched(artifact.digest, artifact.size));
            }
            Output::CancelFetch(digest) => {
                self.events.retain(|_, input| !matches!(input, Input::Fetched(other, _) if *other == digest));
            }
        }
    }

    /// What holds after each step, whatever was lost.
    fn check(&mut self) {
        let running: Vec<_> = self.procs.values().filter(|proc| proc.runs(self.now)).collect();
        assert!(running.len() <= 1, "two builds run at once: {running:?}");
        let known = self.journal.process.as_ref().map(|launched| &launched.instance);
        for proc in running {
            assert_eq!(known, Some(&proc.instance), "nobody would find this process after a crash");
        }
        if let Some(digest) = self.links.current {
            assert!(self.blobs.contains(&digest), "current names bytes that are not there");
        }
        let position = self.journal.goal.as_ref().map(|goal| goal.position).unwrap_or_default();
        assert!(position >= self.highest, "a goal went back");
        self.highest = position;
    }
}
