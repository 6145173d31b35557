//! A service's log is looked after for as long as the service is there.

use super::*;

/// A host that counts what it starts and how often it is asked to look after it. Nothing on it answers while it is told so.
#[derive(Debug)]
struct Tended {
    inner: MemoryRunner,
    silent: AtomicBool,
    started: AtomicU64,
    looks: AtomicU64,
}

impl Tended {
    fn new(world: &World) -> Arc<Self> {
        let (silent, started, looks) = Default::default();
        Arc::new(Self { inner: world.runner.clone(), silent, started, looks })
    }

    /// An agent works for so long on this host; how often it had it look after its services.
    async fn run(self: &Arc<Self>, world: &World, span: Duration) -> u64 {
        let settings = AgentSettings::new(MachineName::new("m1").unwrap(), RegionName::new("r1").unwrap());
        let before = self.looks.load(Ordering::SeqCst);
        run_for(&Agent::new(settings, AgentDeps { runner: self.clone(), ..world.deps() }), span).await;
        self.looks.load(Ordering::SeqCst) - before
    }
}

#[async_trait]
impl Runner for Tended {
    async fn prepare(&self, launch: &Launch) -> Result<Instance, runner::Error> {
        self.started.fetch_add(1, Ordering::SeqCst);
        self.inner.prepare(launch).await
    }
    async fn release(&self, instance: &Instance) -> Result<(), runner::Error> {
        self.inner.release(instance).await
    }
    async fn is_alive(&self, instance: &Instance) -> bool {
        self.inner.is_alive(instance).await
    }
    async fn ended(&self, instance: &Instance) -> Option<i32> {
        self.inner.ended(instance).await
    }
    async fn tend(&self, _folder: &Path) {
        self.looks.fetch_add(1, Ordering::SeqCst);
    }
    async fn answers(&self, instance: &Instance, path: &str) -> bool {
        !self.silent.load(Ordering::SeqCst) && self.inner.answers(instance, path).await
    }
    async fn stop(&self, instance: &Instance, grace: Duration) -> Result<(), runner::Error> {
        self.inner.stop(instance, grace).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_that_ends_again_and_again_is_tended_at_each_start_and_each_end() {
    let second = Duration::from_secs(1);
    let program = Program { answers_after: Some(second), ends_after: Some((second * 3, 1)) };
    let world = World { runner: MemoryRunner::new(move |_| program), ..World::new(1 << 30) };
    world.deploy(1, b"1").await;
    let host = Tended::new(&world);
    let tended = host.run(&world, Duration::from_mins(10)).await;
    let started = host.started.load(Ordering::SeqCst);
    assert!(started > 10 && tended >= 2 * started - 1, "{started} starts, tended {tended} times");
}

#[tokio::test(start_paused = true)]
async fn a_service_that_does_not_answer_is_tended_like_any_other() {
    let world = World::new(1 << 30);
    world.deploy(1, b"1").await;
    let host = Tended::new(&world);
    let answering = host.run(&world, Duration::from_mins(1)).await;
    assert!((5..8).contains(&answering), "{answering}");
    host.silent.store(true, Ordering::SeqCst);
    let taken_over = host.run(&world, Duration::from_mins(1)).await;
    assert!((5..8).contains(&taken_over), "{taken_over}");
    // One that is never ready.
    host.inner.reboot();
    let started = host.run(&world, Duration::from_mins(1)).await;
    assert!(started >= 5, "{started}");
}
