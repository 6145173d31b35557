//! Goals between two polls: what a watch tells.

use super::*;

/// Goals whose lists are counted. The first watches say what is told and end; later ones are as they should be.
#[derive(Debug)]
struct Told {
    goals: Goals,
    lists: AtomicU64,
    first: Mutex<VecDeque<Vec<Result<Changes, goals::Error>>>>,
}

impl Told {
    fn new(world: &World, first: impl IntoIterator<Item = Vec<Result<Changes, goals::Error>>>) -> Arc<Self> {
        let first = Mutex::new(first.into_iter().collect());
        Arc::new(Self { goals: world.goals.clone(), lists: AtomicU64::new(0), first })
    }

    fn lists(&self) -> u64 {
        self.lists.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl GoalStateStore for Told {
    async fn get(&self, service: &ServiceName) -> Result<Option<Stored>, goals::Error> {
        self.goals.get(service).await
    }
    async fn list(&self, prefix: &str) -> Result<Snapshot, goals::Error> {
        self.lists.fetch_add(1, Ordering::SeqCst);
        self.goals.list(prefix).await
    }
    async fn put(&self, goal: &Goal, expect: Expect) -> Result<Revision, goals::Error> {
        self.goals.put(goal, expect).await
    }
    async fn history(&self, service: &ServiceName, limit: usize) -> Result<Vec<Stored>, goals::Error> {
        self.goals.history(service, limit).await
    }
    async fn changes(&self, since: Revision) -> Result<Changes, goals::Error> {
        self.goals.changes(since).await
    }
    fn watch(&self, since: Revision) -> BoxStream<'static, Result<Changes, goals::Error>> {
        match self.first.lock().unwrap().pop_front() {
            Some(told) => futures::stream::iter(told).boxed(),
            None => self.goals.watch(since),
        }
    }
    async fn compact(&self, through: Revision) -> Result<(), goals::Error> {
        self.goals.compact(through).await
    }
}

fn agent_that_polls(world: &World, goals: &Arc<Told>, poll: Duration) -> Agent {
    let mut settings = AgentSettings::new(MachineName::new("m1").unwrap(), RegionName::new("r1").unwrap());
    settings.rhythm.poll = poll;
    Agent::new(settings, AgentDeps { goals: goals.clone(), ..world.deps() })
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_is_cut_is_opened_again_before_the_next_poll() {
    let world = World::new(1 << 30);
    let agent = agent_that_polls(&world, &Told::new(&world, [vec![]]), Duration::from_hours(1));
    let deploy = async {
        tokio::time::sleep(Duration::from_secs(10)).await;
        world.deploy(1, b"one").await
    };
    let ((), artifact) = tokio::join!(run_for(&agent, Duration::from_secs(20)), deploy);
    assert_eq!(world.running(), Some(artifact.digest.to_string()));
}

#[tokio::test(start_paused = true)]
async fn a_change_reaches_a_machine_without_a_list_of_all_goals() {
    let world = World::new(1 << 30);
    let goals = Told::new(&world, []);
    let agent = agent_that_polls(&world, &goals, Duration::from_hours(1));
    let deploy = async {
        for generation in 1..=5_u8 {
            tokio::time::sleep(Duration::from_secs(10)).await;
            let artifact = world.deploy(u64::from(generation), &[generation]).await;
            tokio::time::sleep(Duration::from_secs(10)).await;
            assert_eq!(world.running(), Some(artifact.digest.to_string()));
        }
    };
    tokio::join!(run_for(&agent, Duration::from_mins(2)), deploy);
    assert_eq!(goals.lists(), 1);
}

#[tokio::test(start_paused = true)]
async fn all_goals_are_listed_in_the_rhythm_however_many_changes_come() {
    let world = World::new(1 << 30);
    let goals = Told::new(&world, []);
    let agent = agent_that_polls(&world, &goals, Duration::from_secs(10));
    let deploy = async {
        for generation in 1..=15_u8 {
            tokio::time::sleep(Duration::from_secs(4)).await;
            world.deploy(u64::from(generation), &[generation]).await;
        }
    };
    tokio::join!(run_for(&agent, Duration::from_mins(1)), deploy);
    assert!((6..=8).contains(&goals.lists()), "{}", goals.lists());
}

#[tokio::test(start_paused = true)]
async fn a_gap_between_what_a_machine_knows_and_the_watch_leads_to_a_list() {
    let world = World::new(1 << 30);
    let gap = goals::Error::Compacted { since: Revision(0), oldest: Revision(1) };
    let goals = Told::new(&world, [vec![Err(gap)]]);
    let agent = agent_that_polls(&world, &goals, Duration::from_hours(1));
    run_for(&agent, Duration::from_secs(20)).await;
    assert_eq!(goals.lists(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_tells_of_older_or_other_goals_moves_no_machine() {
    let world = World::new(1 << 30);
    world.deploy(1, b"old").await;
    let old = world.goals.get(&service()).await.unwrap().unwrap();
    let new = world.deploy(2, b"new").await;
    let mut other = old.clone();
    other.goal.position.generation = Generation(2);
    let told = Changes { revision: Revision(9), goals: vec![old, other] };
    let goals = Told::new(&world, [vec![Ok(told)]]);
    let agent = agent_that_polls(&world, &goals, Duration::from_hours(1));
    run_for(&agent, Duration::from_mins(1)).await;
    assert_eq!((world.running(), phase(&agent)), (Some(new.digest.to_string()), ServicePhase::Good));
    let message = agent.status().borrow().services[0].message.clone().unwrap();
    assert!(message.contains("written twice"), "{message}");
    assert!(goals.first.lock().unwrap().is_empty(), "not all was told");
}
