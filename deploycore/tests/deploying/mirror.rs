//! The mirror.

use super::*;

fn mirror(settings: MirrorSettings, from: &Arc<Line>, to: &Arc<Line>) -> Arc<Mirror> {
    Arc::new(Mirror::new(settings, from.clone(), to.clone()).with_seed(3))
}

fn run(mirror: &Arc<Mirror>) -> AbortOnDropHandle<()> {
    let mirror = Arc::clone(mirror);
    AbortOnDropHandle::new(tokio::spawn(async move { mirror.run(CancellationToken::new()).await }))
}

async fn arrives(store: &Line, position: GoalPosition) -> Duration {
    let started = Instant::now();
    let look = async {
        while store.goals.get(&web()).await.unwrap().is_none_or(|stored| stored.goal.position != position) {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(secs(600), look).await.expect("the goal never arrives");
    started.elapsed()
}

#[tokio::test(start_paused = true)]
async fn goals_arrive_within_a_second_by_watch_and_within_a_period_without() {
    let yard = Yard::new();
    let (watched, polled) = (Arc::<Line>::default(), Arc::<Line>::default());
    let hourly = MirrorSettings::default().with_period(secs(3600));
    let _by_watch = run(&mirror(hourly, &yard.goals, &watched));
    let _by_poll = run(&mirror(MirrorSettings::default().with_watch(false), &yard.goals, &polled));
    sleep(secs(5)).await;
    for generation in 1..=3 {
        yard.deployed([generation]).await;
        let position = at(generation.into());
        assert!(arrives(&watched, position).await <= secs(1));
        assert!(arrives(&polled, position).await <= secs(10));
    }
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_fails_is_not_missed_until_the_next_look() {
    let yard = Yard::new();
    let near = Arc::<Line>::default();
    yard.goals.failing_watches.store(3, Ordering::SeqCst);
    let hourly = MirrorSettings::default().with_period(secs(3600));
    let _mirror = run(&mirror(hourly, &yard.goals, &near));
    sleep(secs(5)).await;
    yard.deployed(1..=1).await;
    assert!(arrives(&near, at(1)).await <= secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_mirror_catches_up_after_either_store_was_away_or_lost() {
    let yard = Yard::new();
    let near = Arc::<Line>::default();
    let mirror = mirror(MirrorSettings::default(), &yard.goals, &near);
    yard.deployed(1..=1).await;
    assert_eq!(mirror.tick().await.unwrap().copied, 1);
    assert_eq!(mirror.tick().await.unwrap().copied, 0);
    yard.deployed(2..=2).await;
    near.down.store(true, Ordering::SeqCst);
    mirror.tick().await.unwrap_err();
    near.down.store(false, Ordering::SeqCst);
    yard.goals.down.store(true, Ordering::SeqCst);
    mirror.tick().await.unwrap_err();
    yard.goals.down.store(false, Ordering::SeqCst);
    assert_eq!(mirror.tick().await.unwrap().copied, 1);
    yard.deployed(3..=3).await;
    yard.goals.compact(Revision(u64::MAX)).await.unwrap();
    assert_eq!(mirror.tick().await.unwrap().copied, 1, "compaction hides nothing");
    assert_eq!(near.goals.get(&web()).await.unwrap().unwrap().goal.position, at(3));
}

/// A region's store that can start anew behind everyone's back.
#[derive(Debug, Default)]
struct Replaced(Mutex<Goals>);

impl Replaced {
    fn now(&self) -> Goals {
        self.0.lock().unwrap().clone()
    }
}

#[async_trait]
impl GoalStateStore for Replaced {
    async fn get(&self, service: &ServiceName) -> Result<Option<Stored>, goals::Error> {
        self.now().get(service).await
    }
    async fn list(&self, prefix: &str) -> Result<Snapshot, goals::Error> {
        self.now().list(prefix).await
    }
    async fn put(&self, goal: &Goal, expect: Expect) -> Result<Revision, goals::Error> {
        self.now().put(goal, expect).await
    }
    async fn history(&self, service: &ServiceName, limit: usize) -> Result<Vec<Stored>, goals::Error> {
        self.now().history(service, limit).await
    }
    async fn changes(&self, since: Revision) -> Result<Changes, goals::Error> {
        self.now().changes(since).await
    }
    fn watch(&self, since: Revision) -> BoxStream<'static, Result<Changes, goals::Error>> {
        self.now().watch(since)
    }
    async fn compact(&self, through: Revision) -> Result<(), goals::Error> {
        self.now().compact(through).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_region_whose_store_starts_anew_is_filled_by_the_next_comparison_of_everything() {
    let yard = Yard::new();
    yard.deployed(1..=2).await;
    let near = Arc::<Replaced>::default();
    let mirror = Mirror::new(MirrorSettings::default(), yard.goals.clone(), near.clone());
    assert_eq!(mirror.tick().await.unwrap().copied, 1);
    *near.0.lock().unwrap() = Goals::new();
    sleep(secs(59)).await;
    // The source has nothing new to say.
    assert_eq!(mirror.tick().await.unwrap().copied, 0);
    sleep(secs(1)).await;
    assert_eq!(mirror.tick().await.unwrap().copied, 1);
    assert_eq!(near.get(&web()).await.unwrap().unwrap().goal.position, at(2));
}

#[tokio::test(start_paused = true)]
async fn a_region_stays_ahead_of_a_restored_source_until_a_greater_epoch_comes() {
    let yard = Yard::new();
    yard.deployed(1..=3).await;
    let near = Arc::<Line>::default();
    mirror(MirrorSettings::default(), &yard.goals, &near).tick().await.unwrap();

    let restored = Arc::<Line>::default();
    let history = yard.goals.goals.history(&web(), 10).await.unwrap();
    restored.write(&history[2].goal).await;
    let mirror = mirror(MirrorSettings::default().with_compare_all(Duration::ZERO), &restored, &near);
    let done = mirror.tick().await.unwrap();
    assert_eq!((done.copied, done.stale), (0, 1));
    // The same generation again, with other content: the region keeps its own, and other services go on.
    let service = ServiceName::new("api").unwrap();
    let other = Goal { service: service.clone(), ..history[0].goal.clone() };
    let selector = Selector([("a".to_owned(), "b".to_owned())].into());
    restored.write(&Goal { selector, ..history[0].goal.clone() }).await;
    restored.write(&other).await;
    let done = mirror.tick().await.unwrap();
    assert_eq!((done.copied, done.equivocations), (1, 1));
    assert_eq!(near.goals.get(&web()).await.unwrap().unwrap().goal, history[0].goal);
    assert_eq!(near.goals.get(&service).await.unwrap().unwrap().goal, other);

    let settings = DeployerSettings::default().with_epoch(GoalEpoch(1));
    let deployer = Deployer::new(settings, restored.clone(), yard.ledger.clone());
    let artifact = yard.artifact(4, &["r1", "r2"]).await;
    let goal = deployer.deploy(&DeployRequest::new(web(), artifact)).await.unwrap();
    assert_eq!(mirror.tick().await.unwrap().copied, 1);
    assert_eq!(near.goals.get(&web()).await.unwrap().unwrap().goal, goal);
}

#[tokio::test(start_paused = true)]
async fn two_mirrors_of_one_region_do_no_harm() {
    let yard = Yard::new();
    let near = Arc::<Line>::default();
    let (a, b) =
        (mirror(MirrorSettings::default(), &yard.goals, &near), mirror(MirrorSettings::default(), &yard.goals, &near));
    for generation in 1..=5 {
        yard.deployed([generation]).await;
        let (one, two) = tokio::join!(a.tick(), b.tick());
        assert_eq!((one.unwrap().equivocations, two.unwrap().equivocations), (0, 0));
        assert_eq!(near.goals.get(&web()).await.unwrap().unwrap().goal.position, at(generation.into()));
    }
}
