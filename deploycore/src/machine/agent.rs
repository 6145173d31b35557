//! The process on a machine that makes reality match the goals of its region.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::core::{Core, CoreSettings, Found, Input, Output};
use super::disk::{self, Disk, Loaded};
use super::journal::{Journal, Links};
use super::runner::Runner;
use crate::model::{ArtifactRef, Digest, Goal, Labels, MachineName, MachineReport, RegionName, ServiceName, friendly};
use crate::pace::{Backoff, Pace};
use crate::port::swarm::{Limits, Priority};
use crate::port::{GoalStateStore, ManifestSource, PeerSwarm, ReportSink};

mod effect;
mod region;

/// Events that may wait for the agent's loop.
const EVENTS: usize = 256;
/// How long the swarm may take to let go of an artifact; then it is asked again.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(30);

/// How an agent works.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentSettings {
    /// The machine's name, unique in its region.
    pub machine: MachineName,
    /// Its region.
    pub region: RegionName,
    /// Its labels, which selectors name.
    #[serde(default)]
    pub labels: Labels,
    /// The rhythm of the rest.
    #[serde(default)]
    pub rhythm: Rhythm,
    /// How a service is kept.
    #[serde(default)]
    pub core: CoreSettings,
    /// How fast the machine takes and gives bytes.
    #[serde(default)]
    pub limits: Limits,
    /// Whether [`Agent::run`] stops the services when it ends; by default they run on and the next agent takes them over.
    #[serde(default)]
    pub stop_services_on_shutdown: bool,
}

/// When an agent looks at its region and reports to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rhythm {
    /// Between two reads of all goals, unless the region wishes for longer pauses because it has much to do; 10 s by default. What changes between is
    /// brought by a watch.
    #[serde(with = "friendly")]
    pub poll: Duration,
    /// Between two reports of the same, apart from how far fetches are; 10 s by default.
    #[serde(with = "friendly")]
    pub report: Duration,
    /// At least this long between two reports, however much changes; 500 ms by default.
    #[serde(with = "friendly")]
    pub report_gap: Duration,
    /// Between two tries while the region is away.
    pub backoff: Backoff,
    /// Between two looks whether a started service answers; 200 ms by default.
    #[serde(with = "friendly")]
    pub probe: Duration,
    /// Whether to watch the goals besides polling them; by default it does.
    pub watch: bool,
}

impl Default for Rhythm {
    fn default() -> Self {
        Self {
            poll: Duration::from_secs(10),
            report: Duration::from_secs(10),
            report_gap: Duration::from_millis(500),
            backoff: Backoff::default(),
            probe: Duration::from_millis(200),
            watch: true,
        }
    }
}

impl AgentSettings {
    /// Defaults for a machine of a region.
    pub fn new(machine: MachineName, region: RegionName) -> Self {
        Self {
            machine,
            region,
            labels: Labels::default(),
            rhythm: Rhythm::default(),
            core: CoreSettings::default(),
            limits: Limits::default(),
            stop_services_on_shutdown: false,
        }
    }

    /// With these labels.
    #[must_use]
    pub fn with_labels(self, labels: Labels) -> Self {
        Self { labels, ..self }
    }

    /// With this rhythm.
    #[must_use]
    pub fn with_rhythm(self, rhythm: Rhythm) -> Self {
        Self { rhythm, ..self }
    }

    /// With this way to keep a service.
    #[must_use]
    pub fn with_core(self, core: CoreSettings) -> Self {
        Self { core, ..self }
    }

    /// With these limits on bytes.
    #[must_use]
    pub fn with_limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// Stopping the services when it ends, or not.
    #[must_use]
    pub fn with_stop_services_on_shutdown(self, stop_services_on_shutdown: bool) -> Self {
        Self { stop_services_on_shutdown, ..self }
    }
}

/// What an agent works with.
#[derive(Debug, Clone)]
pub struct AgentDeps {
    /// The region's goals.
    pub goals: Arc<dyn GoalStateStore>,
    /// The region's manifests.
    pub manifests: Arc<dyn ManifestSource>,
    /// The machine's part in the swarm.
    pub swarm: Arc<dyn PeerSwarm>,
    /// How services are started.
    pub runner: Arc<dyn Runner>,
    /// Where reports go.
    pub reports: Arc<dyn ReportSink>,
    /// The machine's disk.
    pub disk: Arc<dyn Disk>,
}

/// The agent of a machine.
///
/// It goes on without its region: what runs is kept running, from what the journals say. It can be killed at any instruction; the
/// next one on the same disk goes on, and takes over the services that run.
#[derive(Debug)]
pub struct Agent {
    settings: AgentSettings,
    deps: AgentDeps,
    status: watch::Sender<MachineReport>,
    seed: Option<u64>,
}

impl Agent {
    /// An agent that is not running yet.
    pub fn new(settings: AgentSettings, deps: AgentDeps) -> Self {
        let status = watch::Sender::new(MachineReport {
            machine: settings.machine.clone(),
            region: settings.region.clone(),
            labels: settings.labels.clone(),
            agent_pid: std::process::id(),
            services: Vec::new(),
        });
        Self { settings, deps, status, seed: None }
    }

    /// Seeds the jitter.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// What the agent would report now, as it changes.
    pub fn status(&self) -> watch::Receiver<MachineReport> {
        self.status.subscribe()
    }

    /// Works until the shutdown. Dropping the future ends it at once, as a crash would.
    ///
    /// Errors: when the disk does not say what is on the machine.
    pub async fn run(&self, shutdown: CancellationToken) -> Result<(), disk::Error> {
        let mut running = Running::start(self).await?;
        running.spawn_region();
        loop {
            let due = running.next_timeout();
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                Some(event) = running.events.recv() => running.take(event),
                () = sleep_until(due) => running.time_out(),
                Some(ended) = running.tasks.join_next() => {
                    // A task that panicked leaves its service without an answer for ever: the agent ends, its successor goes on.
                    if let Err(error) = ended && error.is_panic() {
                        std::panic::resume_unwind(error.into_panic());
                    }
                }
            }
            running.carry_out();
            running.sweep();
            running.publish();
        }
        running.end().await;
        Ok(())
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// What reaches the loop.
#[derive(Debug)]
enum Event {
    /// Goals as the region has them: all, or those that changed.
    Goals(Vec<Goal>),
    /// What happened to a service.
    Input(ServiceName, Input),
    /// What happened to a fetch of a service, by its number.
    Fetch(ServiceName, u64, Input),
    /// A blob is not what it was.
    Damaged(Digest),
    /// The artifacts of which there are bytes on disk.
    Listed(BTreeSet<Digest>),
    /// Nothing is left of an artifact.
    Removed(Digest),
}

/// A service with the tasks that belong to it.
#[derive(Debug)]
struct Slot {
    core: Core,
    /// The fetch under way, by its number: what an earlier one says is not heard.
    fetch: Option<(u64, AbortHandle)>,
    /// A fetch that waits until what is on disk of its artifact is removed.
    held_back: Option<(ArtifactRef, Priority)>,
    watch: Option<AbortHandle>,
}

impl Slot {
    fn new(core: Core) -> Self {
        Self { core, fetch: None, held_back: None, watch: None }
    }
}

/// The state of one run.
struct Running<'a> {
    agent: &'a Agent,
    origin: Instant,
    slots: BTreeMap<ServiceName, Slot>,
    sender: mpsc::Sender<Event>,
    events: mpsc::Receiver<Event>,
    /// They end when this is dropped.
    tasks: JoinSet<()>,
    fetches: u64,
    /// For the retries of fetches.
    random: fastrand::Rng,
    /// What the last sweep kept.
    kept: Option<BTreeSet<Digest>>,
    /// Whether the artifacts on disk are being listed, for a sweep.
    listing: bool,
    damaged: BTreeSet<Digest>,
    /// Artifacts that are being removed: nobody holds them, and they are fetched only afterwards.
    removing: BTreeSet<Digest>,
}

impl<'a> Running<'a> {
    async fn start(agent: &'a Agent) -> Result<Self, disk::Error> {
        let Loaded { services, blobs } = agent.deps.disk.load().await?;
        let (sender, events) = mpsc::channel(EVENTS);
        let origin = Instant::now();
        let mut slots = BTreeMap::new();
        for (journal, links) in services {
            let service = journal.service.clone();
            let alive = match &journal.process {
                Some(launched) => agent.deps.runner.is_alive(&launched.instance).await,
                None => false,
            };
            tracing::info!(%service, alive, current = ?links.current, "the agent takes a service over");
            let found = Found { journal, links, alive };
            let (settings, labels) = (agent.settings.core.clone(), agent.settings.labels.clone());
            let core = Core::recover(settings, labels, found, &blobs, Duration::ZERO);
            slots.insert(service, Slot::new(core));
        }
        let mut running = Self {
            agent,
            origin,
            slots,
            sender,
            events,
            tasks: JoinSet::new(),
            fetches: 0,
            random: agent.seed.map_or_else(fastrand::Rng::new, |seed| fastrand::Rng::with_seed(seed.wrapping_add(2))),
            kept: None,
            listing: false,
            damaged: BTreeSet::new(),
            removing: BTreeSet::new(),
        };
        let wanted = running.wanted();
        let whole = blobs.into_iter().filter(|digest| wanted.contains(digest)).collect();
        running.tasks.spawn(effect::seed(
            agent.deps.clone(),
            whole,
            agent.settings.rhythm.backoff,
            running.sender.clone(),
        ));
        running.carry_out();
        running.sweep();
        running.publish();
        Ok(running)
    }

    fn spawn_region(&mut self) {
        let Agent { settings, deps, status, seed } = self.agent;
        let pace = |period, salt| {
            let pace = Pace::new(period, settings.rhythm.backoff);
            match seed {
                Some(seed) => pace.with_seed(seed.wrapping_add(salt)),
                None => pace,
            }
        };
        let (goals, reports) = (Arc::clone(&deps.goals), Arc::clone(&deps.reports));
        let look = pace(settings.rhythm.poll, 0);
        self.tasks.spawn(region::goals(goals, settings.rhythm.watch, look, self.sender.clone()));
        let say = pace(settings.rhythm.report, 1);
        self.tasks.spawn(region::report(reports, settings.rhythm.report_gap, say, status.subscribe()));
    }

    fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    fn next_timeout(&self) -> Option<Instant> {
        let due = self.slots.values().filter_map(|slot| slot.core.poll_timeout()).min()?;
        // What is due after the end of all instants is never due.
        self.origin.checked_add(due)
    }

    fn take(&mut self, event: Event) {
        let now = self.now();
        match event {
            Event::Goals(goals) => goals.into_iter().for_each(|goal| self.take_goal(goal, now)),
            Event::Input(service, input) => {
                if let Some(slot) = self.slots.get_mut(&service) {
                    slot.core.handle(input, now);
                }
            }
            Event::Fetch(service, number, input) => {
                let slot = self.slots.get_mut(&service);
                let current = |slot: &&mut Slot| slot.fetch.as_ref().is_some_and(|(own, _)| *own == number);
                if let Some(slot) = slot.filter(current) {
                    slot.core.handle(input, now);
                }
            }
            Event::Damaged(digest) => {
                self.damaged.insert(digest);
                self.kept = None;
            }
            Event::Listed(artifacts) => self.remove_unwanted(artifacts),
            Event::Removed(digest) => self.removed(digest),
        }
    }

    fn take_goal(&mut self, goal: Goal, now: Duration) {
        let Agent { settings, .. } = self.agent;
        let slot = self.slots.entry(goal.service.clone()).or_insert_with(|| {
            let journal = Journal::new(goal.service.clone());
            let found = Found { journal, links: Links::default(), alive: false };
            let core = Core::recover(settings.core.clone(), settings.labels.clone(), found, &BTreeSet::new(), now);
            Slot::new(core)
        });
        slot.core.handle(Input::Goal(Box::new(goal)), now);
    }

    fn time_out(&mut self) {
        let now = self.now();
        for slot in self.slots.values_mut() {
            if slot.core.poll_timeout().is_some_and(|due| due <= now) {
                slot.core.handle(Input::Timeout, now);
            }
        }
    }

    /// Starts a task for each effect that the cores ask for.
    fn carry_out(&mut self) {
        let Agent { settings, deps, .. } = self.agent;
        for (service, slot) in &mut self.slots {
            while let Some(output) = slot.core.poll_output() {
                let door = effect::Door { service: service.clone(), fetch: None, sender: self.sender.clone() };
                let deps = deps.clone();
                match output {
                    Output::Fetch(artifact, priority) if self.removing.contains(&artifact.digest) => {
                        slot.held_back = Some((artifact, priority));
                    }
                    Output::Fetch(artifact, priority) => {
                        self.fetches += 1;
                        let door = effect::Door { fetch: Some(self.fetches), ..door };
                        let fetch = effect::fetch(deps, artifact, priority, settings.limits, self.random.f64(), door);
                        slot.fetch = Some((self.fetches, self.tasks.spawn(fetch)));
                    }
                    Output::CancelFetch(_) => {
                        slot.held_back = None;
                        if let Some((_, task)) = slot.fetch.take() {
                            task.abort();
                        }
                    }
                    Output::Watch(instance, path) => {
                        if let Some(task) = slot.watch.take() {
                            task.abort();
                        }
                        let watch = effect::watch(deps, instance, path, settings.rhythm.probe, door);
                        slot.watch = Some(self.tasks.spawn(watch));
                    }
                    other => {
                        self.tasks.spawn(effect::perform(deps, other, door));
                    }
                }
            }
        }
    }

    fn wanted(&self) -> BTreeSet<Digest> {
        self.slots.values().flat_map(|slot| slot.core.wanted()).collect()
    }

    /// Looks for what no service wants any more, when what is wanted has changed.
    fn sweep(&mut self) {
        if self.listing || self.kept.as_ref() == Some(&self.wanted()) {
            return;
        }
        self.listing = true;
        let Agent { settings, deps, .. } = self.agent;
        self.tasks.spawn(effect::list(deps.clone(), settings.rhythm.backoff, self.sender.clone()));
    }

    /// Begins to remove what no service wants now. From here on nobody holds it, so that no service can begin to use it meanwhile; one
    /// that wants it anew fetches it when it is gone.
    fn remove_unwanted(&mut self, artifacts: BTreeSet<Digest>) {
        self.listing = false;
        let (wanted, damaged) = (self.wanted(), std::mem::take(&mut self.damaged));
        let unwanted = |digest: &Digest| damaged.contains(digest) || !wanted.contains(digest);
        let Agent { settings, deps, .. } = self.agent;
        let now = self.now();
        for digest in artifacts.into_iter().filter(unwanted) {
            if self.removing.insert(digest) {
                self.slots.values_mut().for_each(|slot| slot.core.handle(Input::Lost(digest), now));
                self.tasks.spawn(effect::remove(deps.clone(), digest, settings.rhythm.backoff, self.sender.clone()));
            }
        }
        self.kept = Some(wanted);
    }

    fn removed(&mut self, digest: Digest) {
        self.removing.remove(&digest);
        let Agent { settings, deps, .. } = self.agent;
        for (service, slot) in &mut self.slots {
            if let Some((artifact, priority)) = slot.held_back.take_if(|(artifact, _)| artifact.digest == digest) {
                self.fetches += 1;
                let (service, sender) = (service.clone(), self.sender.clone());
                let door = effect::Door { service, fetch: Some(self.fetches), sender };
                let (deps, sooner) = (deps.clone(), self.random.f64());
                let fetch = effect::fetch(deps, artifact, priority, settings.limits, sooner, door);
                slot.fetch = Some((self.fetches, self.tasks.spawn(fetch)));
            }
        }
    }

    fn publish(&self) {
        let services = self.slots.values().filter_map(|slot| slot.core.report()).collect();
        self.agent.status.send_if_modified(|status| {
            let changed = status.services != services;
            status.services = services;
            changed
        });
    }

    /// The end by shutdown: effects under way are dropped, as by a crash.
    async fn end(mut self) {
        self.tasks.shutdown().await;
        let Agent { settings, deps, .. } = self.agent;
        if !settings.stop_services_on_shutdown {
            return;
        }
        let instances = self.slots.values().filter_map(|slot| slot.core.instance());
        join_all(instances.map(|(instance, grace)| async move {
            if let Err(error) = deps.runner.stop(instance, grace).await {
                tracing::error!(
                    pid = instance.pid,
                    error = crate::port::chain(&error),
                    "a service could not be stopped"
                );
            }
        }))
        .await;
    }
}
