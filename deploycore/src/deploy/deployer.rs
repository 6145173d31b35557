//! The deployer: from a request to the next generation of a goal.

mod request;
mod settings;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use tokio::sync::OwnedMutexGuard;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

pub use self::request::{DeployRequest, Redeploy};
pub use self::settings::DeployerSettings;
use super::Error;
use super::convergence::{Convergence, convergence};
use super::planner::{self, Content, Write};
use super::waiver;
use crate::model::{
    ArtifactName, CopyPriority, CopyState, Generation, Goal, GoalPosition, Origin, PinHolder, RegionName, ServiceName,
    Timestamp, Waiver,
};
use crate::pace::{Pace, Wake};
use crate::port::goals::{HISTORY, Stored};
use crate::port::ledger::LedgerFilter;
use crate::port::{GoalStateStore, MachineDirectory, ReplicationLedger, ReplicationLedgerExt, chain, goals, ledger};

/// Thirty years: instants end.
const LONGEST_WAIT: Duration = Duration::from_hours(30 * 365 * 24);

type ClockFn = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// Writes goals. Any number may work at once: each goal is a conditional write on the one before.
///
/// An artifact is pinned in the ledger before its goal is written, which succeeds only while it is complete in each required region, those
/// left out that a [`Waiver`] in the request names. Such a waiver is part of the goal, so that it is on the record wherever the goal is, and of
/// this goal alone. The region is not left behind: its copy stays wanted, one that was given up meanwhile is reopened by
/// [`Deployer::reconcile`], and its machines take the goal up when their mirror brings it, and fetch once the copy is there.
///
/// A crash between the two leaves a pin that no goal needs; [`Deployer::reconcile`] takes it away later. Two deployers may meet there: one
/// takes a pin away that the other has just relied on. So a deploy pins once more after its goal, and a reconciliation reads the goals
/// once more after it took a pin away: whichever comes last puts the pin back.
pub struct Deployer {
    settings: DeployerSettings,
    goals: Arc<dyn GoalStateStore>,
    ledger: Arc<dyn ReplicationLedger>,
    directories: BTreeMap<RegionName, Arc<dyn MachineDirectory>>,
    clock: ClockFn,
    seed: Option<u64>,
    pins: Mutex<BTreeMap<ServiceName, Arc<tokio::sync::Mutex<Spare>>>>,
}

/// Pins of a service that no goal needed, since when. Held from pin to goal and while pins are taken away, so that in one process no pin
/// is missing when its goal is written.
type Spare = BTreeMap<ArtifactName, Instant>;

impl fmt::Debug for Deployer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let regions: Vec<_> = self.directories.keys().collect();
        f.debug_struct("Deployer").field("settings", &self.settings).field("regions", &regions).finish_non_exhaustive()
    }
}

impl Deployer {
    /// A deployer that writes to `goals`, the global store, what `ledger` says is deployable.
    pub fn new(settings: DeployerSettings, goals: Arc<dyn GoalStateStore>, ledger: Arc<dyn ReplicationLedger>) -> Self {
        Self {
            settings,
            goals,
            ledger,
            directories: BTreeMap::new(),
            clock: Arc::new(Timestamp::now),
            seed: None,
            pins: Mutex::default(),
        }
    }

    /// Adds a region's directory of machines, for [`Deployer::convergence`].
    #[must_use]
    pub fn with_directory(mut self, region: RegionName, directory: Arc<dyn MachineDirectory>) -> Self {
        self.directories.insert(region, directory);
        self
    }

    /// Sets the clock that dates goals and by which waivers expire; the system's by default.
    #[must_use]
    pub fn with_clock(mut self, clock: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// Seeds the jitter.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Writes the next generation of the service's goal, and gives it; or gives the current goal when it says the same and the
    /// request does not ask for [`Redeploy::Always`].
    ///
    /// Errors: `Ledger` with `NotDeployable`, which names the missing regions, or `NotFound`; `OtherService`; `Waiver`.
    pub async fn deploy(&self, request: &DeployRequest) -> Result<Goal, Error> {
        let status = self.retry(|| async { Ok(self.ledger.require(&request.artifact).await?) }).await?;
        let DeployRequest { service, run, selector, .. } = request.clone();
        let registered = status.registered;
        if registered.service != service {
            return Err(Error::OtherService { artifact: request.artifact.clone(), service, owner: registered.service });
        }
        let content = Content { service, artifact: registered.artifact, run, selector };
        for tries in 1..=self.settings.tries {
            let waived = waiver::waived(&request.waivers, &request.artifact, &registered.required, (self.clock)())?;
            let spare = self.pin(&content, &waived).await?;
            let current = self.current(&request.service).await?;
            if let Some(Stored { goal, .. }) = &current
                && request.redeploy == Redeploy::IfChanged
                && Content::of(goal) == content
            {
                return Ok(goal.clone());
            }
            let write = self.next_goal(current.as_ref(), content.clone(), Origin::Deploy, &request.waivers);
            if self.put(&write).await? == Put::Written {
                return Ok(self.written(write.goal, spare).await);
            }
            drop(spare);
            tokio::time::sleep(self.settings.backoff.delay(tries)).await;
        }
        Err(Error::Contended { service: request.service.clone(), tries: self.settings.tries })
    }

    /// Writes the next generation with the content of an earlier deploy, and gives it: of the one that ran before the current content,
    /// so that a second rollback goes further back, or of the generation `to`.
    ///
    /// With a name it may be repeated: a goal that restores the named deploy already is the answer. Without one each call goes one
    /// deploy back; when another goal is written between its look and its write it stops, because it would undo something else.
    ///
    /// Errors: `NothingToRollBackTo`, `UnknownGeneration`, `NeverDeployed`, `Superseded`; `Ledger` with `NotDeployable` when the
    /// earlier artifact is no longer complete in each required region. Its copies go before all others from then on: the rollback may be
    /// repeated until they are there.
    pub async fn rollback(&self, service: &ServiceName, to: Option<Generation>) -> Result<Goal, Error> {
        self.rollback_without(service, to, &[]).await
    }

    /// As [`rollback`](Self::rollback), without the required regions that `waivers` name: while one of them is down it may lack the
    /// earlier artifact. The waivers of the earlier goal do not count for this one.
    ///
    /// Errors: as `rollback`, and `Waiver`.
    pub async fn rollback_without(
        &self,
        service: &ServiceName,
        to: Option<Generation>,
        waivers: &[Waiver],
    ) -> Result<Goal, Error> {
        for tries in 1..=self.settings.tries {
            let history = self.history(service).await?;
            let (target, restores) = planner::rollback_target(service, &history, to)?;
            let (content, current) = (Content::of(target), &history[0]);
            if planner::root(&current.goal) == restores && Content::of(&current.goal) == content {
                return Ok(current.goal.clone());
            }
            let waived = self.waived(waivers, &content.artifact.name).await?;
            let spare = match self.pin(&content, &waived).await {
                Ok(spare) => spare,
                Err(error) => {
                    self.hurry(&content.artifact.name, &error).await;
                    return Err(error);
                }
            };
            let write = self.next_goal(Some(current), content, Origin::Rollback { restores }, waivers);
            match self.put(&write).await? {
                Put::Written => return Ok(self.written(write.goal, spare).await),
                Put::Raced if to.is_none() => {
                    let found = self.current(service).await?.map_or(write.goal.position, |stored| stored.goal.position);
                    return Err(Error::Superseded { service: service.clone(), seen: current.goal.position, found });
                }
                Put::Raced => drop(spare),
            }
            tokio::time::sleep(self.settings.backoff.delay(tries)).await;
        }
        Err(Error::Contended { service: service.clone(), tries: self.settings.tries })
    }

    /// The goals of a service, the current one first, at least the last [`HISTORY`].
    pub async fn history(&self, service: &ServiceName) -> Result<Vec<Stored>, Error> {
        self.retry(|| async { Ok(self.goals.history(service, HISTORY).await?) }).await
    }

    /// The current goal of a service, or `None`.
    pub async fn current(&self, service: &ServiceName) -> Result<Option<Stored>, Error> {
        self.retry(|| async { Ok(self.goals.get(service).await?) }).await
    }

    /// How far the machines of all regions are with the current goal of a service. They are counted in the regions.
    ///
    /// Errors: `NeverDeployed`. A region that does not answer is in [`Convergence::unknown`].
    pub async fn convergence(&self, service: &ServiceName) -> Result<Convergence, Error> {
        let current = self.current(service).await?;
        let goal = current.ok_or_else(|| Error::NeverDeployed { service: service.clone() })?.goal;
        let asked = self.directories.iter().map(|(region, directory)| async {
            let answer = self.call(async { Ok(directory.tally(&goal).await?) }).await;
            (region.clone(), answer.map_err(|error| chain(&error)))
        });
        let answers = join_all(asked).await.into_iter().collect();
        Ok(convergence(&goal, (self.clock)(), answers))
    }

    /// Waits until every live machine that the selector names runs the goal at `position`, and at least `at_least` of them do: how many
    /// there are, where the caller knows it. With 0 it also waits until each region has listened for long enough to know its live
    /// machines, [`ReportBoardSettings::live_for`](super::ReportBoardSettings::live_for) after its start. `progress` sees each look.
    ///
    /// Errors: `Reverted` as soon as no machine is on its way and some have reverted; `Superseded` when a newer goal is there;
    /// `NotConverged` after `limit`, with the last look.
    pub async fn wait_converged(
        &self,
        service: &ServiceName,
        position: GoalPosition,
        at_least: u64,
        limit: Duration,
        mut progress: impl FnMut(&Convergence) + Send,
    ) -> Result<Convergence, Error> {
        let (end, mut pace) = (Instant::now() + limit.min(LONGEST_WAIT), self.pace(self.settings.look));
        loop {
            let last = self.convergence(service).await?;
            if last.position != position {
                return Err(Error::Superseded { service: service.clone(), seen: position, found: last.position });
            }
            progress(&last);
            if last.is_settled_on(at_least) {
                return if last.is_converged_on(at_least) { Ok(last) } else { Err(Error::Reverted(Box::new(last))) };
            }
            if Instant::now() >= end {
                return Err(Error::NotConverged { limit, last: Box::new(last) });
            }
            pace.wait(tokio::time::sleep_until(end), &CancellationToken::new()).await;
        }
    }

    /// Takes away pins of a service that no goal in its history has needed for [`DeployerSettings::pin_grace`]; how many. Puts back those
    /// that a goal in its history needs, where the artifact is still complete in each required region that such a goal did not waive. Each
    /// deploy and rollback does it once.
    ///
    /// Has the copies of the current goal's artifact to the regions that it waived tried again where they were given up.
    pub async fn reconcile(&self, service: &ServiceName) -> Result<usize, Error> {
        let spare = self.pins(service);
        let freed = self.reconcile_pins(service, &mut *spare.lock().await).await?;
        if let Some(Stored { goal, .. }) = self.current(service).await? {
            self.retry_waived(&goal).await?;
        }
        Ok(freed)
    }

    /// A lane gives a copy up after so many attempts. What a waiver let a region miss is wanted for as long as the goal stands.
    async fn retry_waived(&self, goal: &Goal) -> Result<(), Error> {
        let (artifact, waived) = (&goal.artifact.name, goal.waived());
        if waived.is_empty() {
            return Ok(());
        }
        let status = self.retry(|| async { Ok(self.ledger.require(artifact).await?) }).await?;
        let given_up = |region: &RegionName| {
            let copy = status.copies.get(region)?;
            (copy.state == CopyState::Failed).then_some(copy.epoch)
        };
        for (region, epoch) in waived.iter().filter_map(|region| Some((region, given_up(region)?))) {
            let reason = "given up in a region that its goal waived";
            self.retry(|| async { Ok(self.ledger.reopen(artifact, region, epoch, reason).await?) }).await?;
            tracing::info!(service = %goal.service, %artifact, %region, "a copy that a goal waived was given up: it is tried again");
        }
        Ok(())
    }

    async fn reconcile_pins(&self, service: &ServiceName, spare: &mut Spare) -> Result<usize, Error> {
        let holder = PinHolder::goal(service);
        let mut pinned = self.pinned(service, &holder).await?;
        let mut needed = planner::needed_pins(&self.history(service).await?);
        let unneeded = pinned.iter().filter(|artifact| !needed.contains_key(*artifact));
        let freed = self.long_spare(spare, unneeded);
        for artifact in &freed {
            self.retry(|| async { Ok(self.ledger.unpin(artifact, &holder).await?) }).await?;
            pinned.remove(artifact);
            tracing::info!(%service, %artifact, "a pin that no goal needs was taken away");
        }
        if !freed.is_empty() {
            // Another deployer may have written a goal since. Its pin after that is gone if it came before ours went.
            needed = planner::needed_pins(&self.history(service).await?);
        }
        for (artifact, waived) in needed.iter().filter(|(artifact, _)| !pinned.contains(*artifact)) {
            match self.retry(|| async { Ok(self.ledger.pin(artifact, &holder, waived).await?) }).await {
                Ok(()) => tracing::warn!(%service, %artifact, "a pin that a goal needs was missing and is back"),
                Err(Error::Ledger(error @ ledger::Error::Collected { .. })) => {
                    tracing::error!(%service, %artifact, error = chain(&error), "ALARM: a goal names what is collected: deploy something else");
                    metrics::counter!("deploycore_deployer_collected_goals_total").increment(1);
                }
                // A copy was lost: it is reopened, and pinned when it is back.
                Err(Error::Ledger(error @ (ledger::Error::NotDeployable { .. } | ledger::Error::NotFound { .. }))) => {
                    tracing::warn!(%service, %artifact, error = chain(&error), "a pin that a goal needs is missing");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(freed.len())
    }

    /// Reconciles each service once; how many pins it took away. A service that fails does not hold the others back; the first
    /// failure is the answer.
    pub async fn tick(&self) -> Result<usize, Error> {
        let snapshot = self.retry(|| async { Ok(self.goals.list("").await?) }).await?;
        let (mut freed, mut failure) = (0, None);
        for stored in snapshot.goals {
            match self.reconcile(&stored.goal.service).await {
                Ok(count) => freed += count,
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        failure.map_or(Ok(freed), Err)
    }

    /// Reconciles from time to time until `shutdown`.
    pub async fn run(&self, shutdown: CancellationToken) {
        let mut pace = self.pace(self.settings.period);
        loop {
            match shutdown.run_until_cancelled(self.tick()).await {
                None => return,
                Some(Ok(_)) => pace.note(true),
                Some(Err(error)) => {
                    tracing::warn!(error = chain(&error), "pins could not be reconciled");
                    pace.note(false);
                }
            }
            if pace.wait(std::future::pending(), &shutdown).await == Wake::Shutdown {
                return;
            }
        }
    }

    fn pace(&self, period: Duration) -> Pace {
        let pace = Pace::new(period, self.settings.backoff);
        match self.seed {
            Some(seed) => pace.with_seed(seed),
            None => pace,
        }
    }

    fn next_goal(&self, current: Option<&Stored>, content: Content, origin: Origin, waivers: &[Waiver]) -> Write {
        planner::next_goal(current, content, origin, self.settings.epoch, waivers, (self.clock)())
    }

    /// The regions that `waivers` take out of what an artifact requires.
    async fn waived(&self, waivers: &[Waiver], artifact: &ArtifactName) -> Result<BTreeSet<RegionName>, Error> {
        if waivers.is_empty() {
            return Ok(BTreeSet::new());
        }
        let status = self.retry(|| async { Ok(self.ledger.require(artifact).await?) }).await?;
        Ok(waiver::waived(waivers, artifact, &status.registered.required, (self.clock)())?)
    }

    /// Pins an artifact for its goal. While the answer is held, this deployer takes no pin of the service away.
    async fn pin(&self, content: &Content, waived: &BTreeSet<RegionName>) -> Result<OwnedMutexGuard<Spare>, Error> {
        let mut spare = self.pins(&content.service).lock_owned().await;
        let holder = PinHolder::goal(&content.service);
        // From now on it is needed.
        spare.remove(&content.artifact.name);
        self.retry(|| async { Ok(self.ledger.pin(&content.artifact.name, &holder, waived).await?) }).await?;
        Ok(spare)
    }

    /// Has the missing copies of a rollback made first.
    async fn hurry(&self, artifact: &ArtifactName, refusal: &Error) {
        if !matches!(refusal, Error::Ledger(ledger::Error::NotDeployable { .. })) {
            return;
        }
        match self.retry(|| async { Ok(self.ledger.prioritize(artifact, CopyPriority::Rollback).await?) }).await {
            Ok(0) => {}
            Ok(copies) => tracing::info!(%artifact, copies, "a rollback waits for copies: they go first"),
            Err(error) => tracing::warn!(%artifact, error = chain(&error), "copies of a rollback cannot be hurried"),
        }
    }

    /// Writes a goal, again after a passing failure.
    async fn put(&self, write: &Write) -> Result<Put, Error> {
        let mut doubtful = false;
        for tries in 1.. {
            let answer = self.call(async { Ok(self.goals.put(&write.goal, write.expect).await?) }).await;
            match answer {
                Ok(_) => return Ok(Put::Written),
                // Two writers took the same generation, and this one was slower.
                Err(Error::Goals(
                    goals::Error::Conflict { .. } | goals::Error::Stale { .. } | goals::Error::Equivocation { .. },
                )) => {
                    // A write whose reply was lost may have been there, and be history by now.
                    let history = if doubtful { self.history(&write.goal.service).await? } else { Vec::new() };
                    let was_written = history.iter().any(|stored| stored.goal == write.goal);
                    return Ok(if was_written { Put::Written } else { Put::Raced });
                }
                Err(error) if error.is_retryable() && tries < self.settings.tries => doubtful = true,
                Err(error) => return Err(error),
            }
            tokio::time::sleep(self.settings.backoff.delay(tries)).await;
        }
        unreachable!("the loop ends by a return")
    }

    async fn written(&self, goal: Goal, mut spare: OwnedMutexGuard<Spare>) -> Goal {
        let kind = if goal.origin == Origin::Deploy { "deploy" } else { "rollback" };
        tracing::info!(service = %goal.service, position = %goal.position, artifact = %goal.artifact.name, kind, "goal written");
        metrics::counter!("deploycore_deployer_goals_total", "kind" => kind).increment(1);
        for Waiver { region, reason, by, expires_at } in &goal.waivers {
            tracing::warn!(service = %goal.service, position = %goal.position, %region, reason, by, %expires_at, "a goal was written without a region");
            metrics::counter!("deploycore_deployer_waivers_total", "region" => region.to_string()).increment(1);
        }
        // The goal stands whatever becomes of its pin and of old ones; the next reconciliation tries again.
        let (holder, waived) = (PinHolder::goal(&goal.service), goal.waived());
        let pin = || async { Ok(self.ledger.pin(&goal.artifact.name, &holder, &waived).await?) };
        if let Err(error) = self.retry(pin).await {
            tracing::warn!(service = %goal.service, error = chain(&error), "a written goal could not be pinned once more");
        }
        if let Err(error) = self.reconcile_pins(&goal.service, &mut spare).await {
            tracing::warn!(service = %goal.service, error = chain(&error), "old pins could not be reconciled");
        }
        goal
    }

    /// The artifacts of a service that `holder` pins.
    async fn pinned(&self, service: &ServiceName, holder: &PinHolder) -> Result<BTreeSet<ArtifactName>, Error> {
        let pinned_by = Some(holder.clone());
        let filter = LedgerFilter { service: Some(service.clone()), pinned_by, ..LedgerFilter::default() };
        let (mut pinned, mut after) = (BTreeSet::new(), None);
        loop {
            let cursor = after.take();
            let list = || async { Ok(self.ledger.list(&filter, cursor.as_ref(), ledger::MAX_BATCH).await?) };
            let page = self.retry(list).await?;
            pinned.extend(page.artifacts.into_iter().map(|status| status.registered.artifact.name));
            after = page.next;
            if after.is_none() {
                return Ok(pinned);
            }
        }
    }

    /// Which of the `spare` pins have been so for the grace. Remembers the others, and forgets what is needed again.
    fn long_spare<'a>(&self, since: &mut Spare, spare: impl Iterator<Item = &'a ArtifactName>) -> Vec<ArtifactName> {
        let (now, known) = (Instant::now(), std::mem::take(since));
        let seen = |artifact: &ArtifactName| known.get(artifact).copied().unwrap_or(now);
        since.extend(spare.map(|artifact| (artifact.clone(), seen(artifact))));
        let is_long = |seen: &Instant| now.duration_since(*seen) >= self.settings.pin_grace;
        since.iter().filter(|(_, seen)| is_long(seen)).map(|(artifact, _)| artifact.clone()).collect()
    }

    /// What each region's directory answers, or why it does not.
    /// Repeats a call after passing failures. The call must be harmless to repeat.
    async fn retry<T, F>(&self, mut call: impl FnMut() -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let mut tries = 0;
        loop {
            tries += 1;
            let not_deployable = |error: &Error| matches!(error, Error::Ledger(ledger::Error::NotDeployable { .. }));
            match self.call(call()).await {
                Err(error) if error.is_retryable() && !not_deployable(&error) && tries < self.settings.tries => {
                    tracing::warn!(error = chain(&error), tries, "a call of the deployer failed");
                    tokio::time::sleep(self.settings.backoff.delay(tries)).await;
                }
                answer => return answer,
            }
        }
    }

    async fn call<T>(&self, call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let limit = self.settings.call_limit;
        timeout(limit, call).await.map_err(|_| Error::Late(limit))?
    }

    fn pins(&self, service: &ServiceName) -> Arc<tokio::sync::Mutex<Spare>> {
        let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(pins.entry(service.clone()).or_default())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Put {
    Written,
    /// Someone else wrote first.
    Raced,
}
