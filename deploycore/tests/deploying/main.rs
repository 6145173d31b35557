//! Deployer, mirror and board over the memory backends, in virtual time.

mod converging;
mod mirror;
mod waivers;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use deploycore::deploy::{
    DeployRequest, Deployer, DeployerSettings, Error, Mirror, MirrorSettings, Redeploy, ReportBoard,
};
use deploycore::memory::{Clock, Goals, Ledger};
use deploycore::model::{
    ArtifactName, ArtifactRef, ArtifactStatus, ClaimId, CopyLease, CopyPriority, CopyState, CopyTask, Digest, Epoch,
    FiguresRequest, Generation, Goal, GoalEpoch, GoalPosition, JobId, Labels, MachineName, MachineReport, NewArtifact,
    Origin, PinHolder, RegionName, ReplicationFigures, Revision, RunSpec, Selector, ServiceName, ServicePhase,
    ServiceReport, Tally, Timestamp,
};
use deploycore::port::goals::{self, Changes, Expect, Snapshot, Stored};
use deploycore::port::ledger::{self, ClaimRequest, CopyRetry, LedgerCursor, LedgerFilter, LedgerPage, Registered};
use deploycore::port::{BackendError, GoalStateStore, MachineDirectory, ReplicationLedger, ReportSink};
use futures::stream::{BoxStream, StreamExt};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn web() -> ServiceName {
    ServiceName::new("web").unwrap()
}

fn region(name: &str) -> RegionName {
    RegionName::new(name).unwrap()
}

fn at(generation: u64) -> GoalPosition {
    GoalPosition { epoch: GoalEpoch(0), generation: Generation(generation) }
}

/// Goals behind a bad line.
#[derive(Debug, Default)]
struct Line {
    goals: Goals,
    down: AtomicBool,
    /// The next puts arrive, their replies do not.
    lost_replies: Mutex<usize>,
    /// The next watches fail at once.
    failing_watches: AtomicUsize,
    /// Written by someone else just before the next put.
    rivals: Mutex<VecDeque<Goal>>,
    /// Written by someone else just after the next put.
    followers: Mutex<VecDeque<Goal>>,
}

impl Line {
    fn check(&self) -> Result<(), goals::Error> {
        if self.down.load(Ordering::SeqCst) {
            return Err(BackendError::retryable("line", "down").into());
        }
        Ok(())
    }

    async fn write(&self, goal: &Goal) {
        let current = self.goals.get(&goal.service).await.unwrap();
        let expect = current.map_or(Expect::Absent, |stored| Expect::At(stored.revision));
        self.goals.put(goal, expect).await.unwrap();
    }
}

#[async_trait]
impl GoalStateStore for Line {
    async fn get(&self, service: &ServiceName) -> Result<Option<Stored>, goals::Error> {
        self.check()?;
        self.goals.get(service).await
    }
    async fn list(&self, prefix: &str) -> Result<Snapshot, goals::Error> {
        self.check()?;
        self.goals.list(prefix).await
    }
    async fn put(&self, goal: &Goal, expect: Expect) -> Result<Revision, goals::Error> {
        self.check()?;
        let rival = self.rivals.lock().unwrap().pop_front();
        if let Some(rival) = rival {
            self.write(&rival).await;
        }
        let answer = self.goals.put(goal, expect).await;
        let follower = self.followers.lock().unwrap().pop_front();
        if let Some(follower) = follower {
            self.write(&follower).await;
        }
        let mut lost = self.lost_replies.lock().unwrap();
        if *lost > 0 {
            *lost -= 1;
            return Err(BackendError::retryable("line", "no reply").into());
        }
        answer
    }
    async fn history(&self, service: &ServiceName, limit: usize) -> Result<Vec<Stored>, goals::Error> {
        self.check()?;
        self.goals.history(service, limit).await
    }
    async fn changes(&self, since: Revision) -> Result<Changes, goals::Error> {
        self.check()?;
        self.goals.changes(since).await
    }
    fn watch(&self, since: Revision) -> BoxStream<'static, Result<Changes, goals::Error>> {
        if self.failing_watches.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
            let lost = BackendError::retryable("line", "the watch is lost");
            return futures::stream::iter([Err(lost.into())]).boxed();
        }
        self.goals.watch(since)
    }
    async fn compact(&self, through: Revision) -> Result<(), goals::Error> {
        self.goals.compact(through).await
    }
}

/// A ledger in which another deployer takes pins away at the worst moment.
#[derive(Debug)]
struct Robbed {
    ledger: Arc<Ledger>,
    /// So many pins are gone again as soon as they are there.
    robberies: AtomicUsize,
    /// What the other deployer pins and writes just before the next pin is taken away.
    rival: Mutex<Option<(Arc<Line>, Goal)>>,
}

impl Robbed {
    fn new(ledger: &Arc<Ledger>) -> Arc<Self> {
        Arc::new(Self { ledger: ledger.clone(), robberies: AtomicUsize::new(0), rival: Mutex::default() })
    }
}

#[async_trait]
impl ReplicationLedger for Robbed {
    async fn register(&self, artifact: &NewArtifact) -> Result<Registered, ledger::Error> {
        self.ledger.register(artifact).await
    }
    async fn unregistered(&self, names: &[ArtifactName]) -> Result<BTreeSet<ArtifactName>, ledger::Error> {
        self.ledger.unregistered(names).await
    }
    async fn claim(&self, request: &ClaimRequest) -> Result<Vec<CopyTask>, ledger::Error> {
        self.ledger.claim(request).await
    }
    async fn progress(&self, lease: &CopyLease, bytes: u64, extend: Duration) -> Result<CopyPriority, ledger::Error> {
        self.ledger.progress(lease, bytes, extend).await
    }
    async fn complete(&self, lease: &CopyLease) -> Result<(), ledger::Error> {
        self.ledger.complete(lease).await
    }
    async fn fail(&self, lease: &CopyLease, reason: &str, retry: CopyRetry) -> Result<(), ledger::Error> {
        self.ledger.fail(lease, reason, retry).await
    }
    async fn prioritize(&self, artifact: &ArtifactName, priority: CopyPriority) -> Result<usize, ledger::Error> {
        self.ledger.prioritize(artifact, priority).await
    }

    async fn reopen(
        &self,
        artifact: &ArtifactName,
        region: &RegionName,
        seen: Epoch,
        reason: &str,
    ) -> Result<bool, ledger::Error> {
        self.ledger.reopen(artifact, region, seen, reason).await
    }
    async fn status(&self, artifact: &ArtifactName) -> Result<Option<ArtifactStatus>, ledger::Error> {
        self.ledger.status(artifact).await
    }
    async fn list(
        &self,
        filter: &LedgerFilter,
        after: Option<&LedgerCursor>,
        limit: usize,
    ) -> Result<LedgerPage, ledger::Error> {
        self.ledger.list(filter, after, limit).await
    }
    async fn figures(
        &self,
        request: &FiguresRequest,
    ) -> Result<BTreeMap<RegionName, ReplicationFigures>, ledger::Error> {
        self.ledger.figures(request).await
    }

    async fn pin(
        &self,
        artifact: &ArtifactName,
        holder: &PinHolder,
        waived: &BTreeSet<RegionName>,
    ) -> Result<(), ledger::Error> {
        self.ledger.pin(artifact, holder, waived).await?;
        let one_less = |left: usize| left.checked_sub(1);
        if self.robberies.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less).is_ok() {
            self.ledger.unpin(artifact, holder).await?;
        }
        Ok(())
    }
    async fn unpin(&self, artifact: &ArtifactName, holder: &PinHolder) -> Result<(), ledger::Error> {
        let rival = self.rival.lock().unwrap().take();
        if let Some((goals, goal)) = rival {
            self.ledger.pin(artifact, holder, &BTreeSet::new()).await?;
            goals.write(&goal).await;
            self.ledger.pin(artifact, holder, &BTreeSet::new()).await?;
        }
        self.ledger.unpin(artifact, holder).await
    }
}

struct Yard {
    goals: Arc<Line>,
    ledger: Arc<Ledger>,
    board: Arc<ReportBoard>,
    deployer: Deployer,
}

impl Yard {
    fn new() -> Self {
        let (goals, ledger, board) = (Arc::<Line>::default(), Arc::new(Ledger::new(Clock::default())), Arc::default());
        let deployer = deployer(&goals, &ledger, &board);
        Self { goals, ledger, board, deployer }
    }

    /// Registers an artifact of `web` and copies it to these of its regions `r1` and `r2`.
    async fn artifact(&self, number: u8, regions: &[&str]) -> ArtifactName {
        let name = ArtifactName::new(format!("web-{number}")).unwrap();
        let artifact = ArtifactRef { name: name.clone(), digest: Digest::of(&[number]), size: 1 };
        let required = [region("r1"), region("r2")].into();
        let new = NewArtifact { artifact, service: web(), job: JobId::new(), required, priority: CopyPriority::Normal };
        self.ledger.register(&new).await.unwrap();
        self.copy(&name, regions).await;
        name
    }

    async fn copy(&self, name: &ArtifactName, regions: &[&str]) {
        for place in regions {
            let claim = ClaimRequest {
                claim: ClaimId::new(),
                region: region(place),
                lease: secs(60),
                limit: 100,
                least: CopyPriority::Normal,
            };
            for task in self.ledger.claim(&claim).await.unwrap() {
                if task.artifact.name == *name {
                    self.ledger.complete(&task.lease).await.unwrap();
                }
            }
        }
    }

    async fn deployed(&self, numbers: impl IntoIterator<Item = u8>) {
        for number in numbers {
            let artifact = self.artifact(number, &["r1", "r2"]).await;
            self.deployer.deploy(&DeployRequest::new(web(), artifact)).await.unwrap();
        }
    }

    async fn pins(&self) -> Vec<String> {
        let page = self.ledger.list(&ledger::LedgerFilter::default(), None, 1000).await.unwrap();
        let pinned = page.artifacts.into_iter().filter(|status| status.pins.contains(&PinHolder::goal(&web())));
        let mut names: Vec<_> = pinned.map(|status| status.registered.artifact.name.to_string()).collect();
        names.sort();
        names
    }

    async fn report(&self, machine: &str, generation: u64, phase: ServicePhase) {
        let service = ServiceReport {
            service: web(),
            goal: at(generation),
            phase,
            current: None,
            pid: None,
            port: None,
            bytes_fetched: 0,
            message: Some("not ready within 60 s".to_owned()),
        };
        let report = MachineReport {
            machine: MachineName::new(machine).unwrap(),
            region: region("r1"),
            labels: Labels(BTreeMap::new()),
            agent_pid: 1,
            services: vec![service],
        };
        self.board.report(&report).await.unwrap();
    }
}

fn deployer(goals: &Arc<Line>, ledger: &Arc<Ledger>, board: &Arc<ReportBoard>) -> Deployer {
    Deployer::new(DeployerSettings::default(), goals.clone(), ledger.clone())
        .with_directory(region("r1"), board.clone())
        .with_clock(|| Timestamp::UNIX_EPOCH)
        .with_seed(1)
}

#[tokio::test(start_paused = true)]
async fn a_deploy_waits_for_every_region_and_names_the_missing() {
    let yard = Yard::new();
    let artifact = yard.artifact(1, &["r1"]).await;
    let request = DeployRequest::new(web(), artifact);
    let error = yard.deployer.deploy(&request).await.unwrap_err();
    let Error::Ledger(ledger::Error::NotDeployable { missing, .. }) = &error else { panic!("{error:?}") };
    assert_eq!(*missing, BTreeMap::from([(region("r2"), CopyState::Pending)]));
    assert!(error.is_retryable() && error.to_string().contains("r2 (pending)"), "{error}");
    assert!(yard.deployer.current(&web()).await.unwrap().is_none());
    assert!(yard.pins().await.is_empty());

    yard.copy(&request.artifact, &["r2"]).await;
    assert_eq!(yard.deployer.deploy(&request).await.unwrap().position, at(1));
    assert_eq!(yard.pins().await, ["web-1"]);
}

#[tokio::test(start_paused = true)]
async fn unknown_artifacts_and_those_of_another_service_are_refused() {
    let yard = Yard::new();
    let artifact = yard.artifact(1, &["r1", "r2"]).await;
    let other = ServiceName::new("other").unwrap();
    let error = yard.deployer.deploy(&DeployRequest::new(other, artifact)).await.unwrap_err();
    assert_eq!(error.to_string(), "artifact web-1 is of service web, not of other");
    let unknown = DeployRequest::new(web(), ArtifactName::new("web-9").unwrap());
    let error = yard.deployer.deploy(&unknown).await.unwrap_err();
    assert!(matches!(error, Error::Ledger(ledger::Error::NotFound { .. })), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_repeated_deploy_changes_nothing_and_any_other_content_is_a_new_generation() {
    let yard = Yard::new();
    let artifact = yard.artifact(1, &["r1", "r2"]).await;
    let request = DeployRequest::new(web(), artifact);
    let first = yard.deployer.deploy(&request).await.unwrap();
    assert_eq!((first.position, first.origin), (at(1), Origin::Deploy));
    assert_eq!(yard.deployer.deploy(&request).await.unwrap(), first);
    let run = RunSpec { args: vec!["-v".to_owned()], ..RunSpec::default() };
    let second = yard.deployer.deploy(&request.clone().with_run(run)).await.unwrap();
    assert_eq!(second.position, at(2));
    let third = yard.deployer.deploy(&request.clone().with_redeploy(Redeploy::Always)).await.unwrap();
    let fourth = yard.deployer.deploy(&request.with_redeploy(Redeploy::Always)).await.unwrap();
    assert_eq!((third.position, fourth.position), (at(3), at(4)));
    assert_eq!(yard.pins().await, ["web-1"]);
}

#[tokio::test(start_paused = true)]
async fn a_second_rollback_goes_further_back_and_history_stays() {
    let yard = Yard::new();
    yard.deployed(1..=3).await;
    let back = async |to| yard.deployer.rollback(&web(), to).await;
    let goal = back(None).await.unwrap();
    assert_eq!((goal.position, goal.artifact.name.as_str()), (at(4), "web-2"));
    assert_eq!(goal.origin, Origin::Rollback { restores: at(2) });
    let goal = back(None).await.unwrap();
    assert_eq!((goal.position, goal.origin), (at(5), Origin::Rollback { restores: at(1) }));
    assert!(matches!(back(None).await.unwrap_err(), Error::NothingToRollBackTo { .. }));
    // By name it may be repeated, and forwards too. A rollback's own generation stands for what it restored.
    let goal = back(Some(Generation(3))).await.unwrap();
    assert_eq!((goal.position, goal.origin), (at(6), Origin::Rollback { restores: at(3) }));
    assert_eq!(back(Some(Generation(3))).await.unwrap(), goal);
    let goal = back(Some(Generation(4))).await.unwrap();
    assert_eq!((goal.position, goal.origin), (at(7), Origin::Rollback { restores: at(2) }));
    let history = yard.deployer.history(&web()).await.unwrap();
    let positions: Vec<_> = history.iter().map(|stored| stored.goal.position.generation.0).collect();
    assert_eq!(positions, [7, 6, 5, 4, 3, 2, 1]);
    assert_eq!(yard.pins().await, ["web-1", "web-2", "web-3"]);
}

#[tokio::test(start_paused = true)]
async fn a_rollback_to_an_artifact_that_a_region_lost_is_refused() {
    let yard = Yard::new();
    yard.deployed(1..=2).await;
    let lost = ArtifactName::new("web-1").unwrap();
    let epoch = yard.ledger.status(&lost).await.unwrap().unwrap().copies[&region("r2")].epoch;
    yard.ledger.reopen(&lost, &region("r2"), epoch, "gone").await.unwrap();
    let error = yard.deployer.rollback(&web(), None).await.unwrap_err();
    assert!(matches!(error, Error::Ledger(ledger::Error::NotDeployable { .. })), "{error}");
    // Its copy goes before all others now.
    let hurried = yard.ledger.status(&lost).await.unwrap().unwrap().copies[&region("r2")].priority;
    assert_eq!(hurried, CopyPriority::Rollback);
    assert_eq!(yard.deployer.current(&web()).await.unwrap().unwrap().goal.position, at(2));
}

#[tokio::test(start_paused = true)]
async fn a_lost_reply_is_not_written_twice_even_when_others_wrote_since() {
    let yard = Yard::new();
    yard.deployed(1..=1).await;
    *yard.goals.lost_replies.lock().unwrap() = 2;
    yard.deployed(2..=2).await;
    assert_eq!(yard.deployer.current(&web()).await.unwrap().unwrap().goal.position, at(2));
    // The reply is lost, and before the repetition another goal is there.
    let current = yard.deployer.current(&web()).await.unwrap().unwrap().goal;
    yard.goals.followers.lock().unwrap().push_back(Goal { position: at(4), ..current });
    *yard.goals.lost_replies.lock().unwrap() = 1;
    let artifact = yard.artifact(3, &["r1", "r2"]).await;
    let goal = yard.deployer.deploy(&DeployRequest::new(web(), artifact)).await.unwrap();
    assert_eq!(goal.position, at(3));
    assert_eq!(yard.deployer.current(&web()).await.unwrap().unwrap().goal.position, at(4));
}

#[tokio::test(start_paused = true)]
async fn a_deploy_that_lost_a_race_comes_after_and_a_rollback_stops() {
    let yard = Yard::new();
    yard.deployed(1..=2).await;
    let current = yard.deployer.current(&web()).await.unwrap().unwrap().goal;
    yard.artifact(9, &["r1", "r2"]).await;
    let rival = |generation| {
        let artifact = ArtifactRef { name: ArtifactName::new("web-9").unwrap(), ..current.artifact.clone() };
        Goal { position: at(generation), artifact, ..current.clone() }
    };
    yard.goals.rivals.lock().unwrap().push_back(rival(3));
    let artifact = yard.artifact(3, &["r1", "r2"]).await;
    let goal = yard.deployer.deploy(&DeployRequest::new(web(), artifact)).await.unwrap();
    assert_eq!(goal.position, at(4));
    yard.goals.rivals.lock().unwrap().push_back(rival(5));
    let error = yard.deployer.rollback(&web(), None).await.unwrap_err();
    assert_eq!(error.to_string(), "web is at 0.5 now, not at 0.4 any more: look again, then roll back again");
    // A name says what is wanted, whatever came between.
    yard.goals.rivals.lock().unwrap().push_back(rival(6));
    let goal = yard.deployer.rollback(&web(), Some(Generation(1))).await.unwrap();
    assert_eq!((goal.position, goal.artifact.name.as_str()), (at(7), "web-1"));
}

#[tokio::test(start_paused = true)]
async fn a_pin_that_no_goal_needs_goes_after_its_grace() {
    let yard = Yard::new();
    yard.deployed(1..=2).await;
    // A deployer died between pin and goal.
    let orphan = yard.artifact(3, &["r1", "r2"]).await;
    yard.ledger.pin(&orphan, &PinHolder::goal(&web()), &BTreeSet::new()).await.unwrap();
    assert_eq!(yard.deployer.tick().await.unwrap(), 0);
    sleep(secs(599)).await;
    assert_eq!(yard.deployer.tick().await.unwrap(), 0);
    assert_eq!(yard.pins().await, ["web-1", "web-2", "web-3"]);
    sleep(secs(1)).await;
    assert_eq!(yard.deployer.tick().await.unwrap(), 1);
    assert_eq!(yard.pins().await, ["web-1", "web-2"]);
}

#[tokio::test(start_paused = true)]
async fn a_pin_that_was_taken_away_between_pin_and_goal_is_put_back() {
    let yard = Yard::new();
    let ledger = Robbed::new(&yard.ledger);
    let deployer = Deployer::new(DeployerSettings::default(), yard.goals.clone(), ledger.clone());
    let artifact = yard.artifact(1, &["r1", "r2"]).await;
    ledger.robberies.store(1, Ordering::SeqCst);
    deployer.deploy(&DeployRequest::new(web(), artifact)).await.unwrap();
    assert_eq!(yard.pins().await, ["web-1"]);
    let artifact = yard.artifact(2, &["r1", "r2"]).await;
    ledger.robberies.store(1, Ordering::SeqCst);
    deployer.deploy(&DeployRequest::new(web(), artifact)).await.unwrap();
    ledger.robberies.store(1, Ordering::SeqCst);
    deployer.rollback(&web(), None).await.unwrap();
    assert_eq!(yard.pins().await, ["web-1", "web-2"]);

    // A later look finds what was taken away after all that, and what a lost copy keeps from being pinned is no failure.
    for number in [1, 2] {
        let name = ArtifactName::new(format!("web-{number}")).unwrap();
        yard.ledger.unpin(&name, &PinHolder::goal(&web())).await.unwrap();
    }
    let lost = ArtifactName::new("web-2").unwrap();
    let epoch = yard.ledger.status(&lost).await.unwrap().unwrap().copies[&region("r2")].epoch;
    yard.ledger.reopen(&lost, &region("r2"), epoch, "gone").await.unwrap();
    assert_eq!(deployer.tick().await.unwrap(), 0);
    assert_eq!(yard.pins().await, ["web-1"]);
    yard.copy(&lost, &["r2"]).await;
    assert_eq!(deployer.tick().await.unwrap(), 0);
    assert_eq!(yard.pins().await, ["web-1", "web-2"]);
}

#[tokio::test(start_paused = true)]
async fn a_pin_that_another_deployer_came_to_need_meanwhile_is_put_back() {
    let yard = Yard::new();
    yard.deployed(1..=1).await;
    let ledger = Robbed::new(&yard.ledger);
    let deployer = Deployer::new(DeployerSettings::default(), yard.goals.clone(), ledger.clone());
    let orphan = yard.artifact(2, &["r1", "r2"]).await;
    yard.ledger.pin(&orphan, &PinHolder::goal(&web()), &BTreeSet::new()).await.unwrap();
    assert_eq!(deployer.tick().await.unwrap(), 0);
    sleep(secs(600)).await;
    let current = yard.deployer.current(&web()).await.unwrap().unwrap().goal;
    let artifact = ArtifactRef { name: orphan, digest: Digest::of(&[2]), size: 1 };
    let rival = Goal { position: at(2), artifact, ..current };
    *ledger.rival.lock().unwrap() = Some((yard.goals.clone(), rival));
    assert_eq!(deployer.tick().await.unwrap(), 1);
    assert_eq!(yard.pins().await, ["web-1", "web-2"]);
}

#[tokio::test(start_paused = true)]
async fn an_old_pin_is_found_behind_any_number_of_newer_artifacts() {
    let yard = Yard::new();
    yard.deployed(1..=1).await;
    let orphan = yard.artifact(2, &["r1", "r2"]).await;
    yard.ledger.pin(&orphan, &PinHolder::goal(&web()), &BTreeSet::new()).await.unwrap();
    sleep(secs(1)).await;
    for number in 0..=ledger::MAX_BATCH {
        let artifact = ArtifactRef { name: format!("new-{number}").parse().unwrap(), digest: Digest::of(b""), size: 1 };
        let required = [region("r1")].into();
        yard.ledger
            .register(&NewArtifact {
                artifact,
                service: web(),
                job: JobId::new(),
                required,
                priority: CopyPriority::Normal,
            })
            .await
            .unwrap();
    }
    assert_eq!(yard.deployer.tick().await.unwrap(), 0);
    sleep(secs(600)).await;
    assert_eq!(yard.deployer.tick().await.unwrap(), 1);
    let pins = |status: Option<ArtifactStatus>| status.unwrap().pins;
    assert!(pins(yard.ledger.status(&orphan).await.unwrap()).is_empty());
}
