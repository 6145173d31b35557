//! The people: they enqueue jobs, cancel some, deploy and roll back.

use std::future::Future;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use deploycore::deploy::{self, DeployRequest, Deployer, Redeploy};
use deploycore::model::{ArtifactName, JobId, NewJob, Port, Readiness, RunSpec, Selector, ServiceName};
use deploycore::port::ledger::{self, LedgerFilter};
use deploycore::port::{JobQueue, ReplicationLedger};
use tokio::time::sleep;

use super::settings::{Settings, stream};
use super::trace::{Met, Trace};

/// The jobs of a run, with what people do to them.
#[derive(Debug, Clone)]
pub struct Order {
    /// When, after the start.
    pub at: Duration,
    /// What is enqueued.
    pub job: NewJob,
    /// Whether it is cancelled some time later.
    pub cancel_after: Option<Duration>,
}

/// What is ordered in a run.
pub fn orders(settings: &Settings) -> Vec<Order> {
    let mut random = stream(settings.seed, "orders");
    let order = |number: usize| {
        let service = format!("s{}", random.usize(1..=settings.services)).parse().expect("a valid name");
        let commit = format!("{:016x}{number:02x}", random.u64(..)).parse().expect("a valid commit");
        let id = uuid::Builder::from_random_bytes(random.u128(..).to_be_bytes()).into_uuid();
        let mut job = NewJob::new(service, commit)
            .with_id(JobId::from(id))
            .with_priority(random.i16(-1..=1))
            .with_build_timeout(Duration::from_secs(random.u64(60..600)));
        job.max_attempts = NonZeroU32::new(random.u32(1..=4)).expect("at least one");
        if random.u32(0..3) == 0 {
            job = job.with_concurrency_key("shared".parse().expect("a valid key"));
        }
        let cancel = random.u32(0..8) == 0;
        let at = settings.storm.mul_f64(0.6 * random.f64());
        Order { at, job, cancel_after: cancel.then(|| Duration::from_secs(random.u64(1..200))) }
    };
    let mut orders: Vec<_> = (0..settings.jobs).map(order).collect();
    orders.sort_by_key(|order| order.at);
    orders
}

/// Enqueues what is due, and cancels what is to be cancelled. A new life begins at the beginning: an enqueue may be repeated.
pub async fn enqueue(orders: Vec<Order>, elapsed: impl Fn() -> Duration, queue: Arc<dyn JobQueue>) {
    for order in orders {
        sleep(order.at.saturating_sub(elapsed())).await;
        insist(|| queue.enqueue(std::slice::from_ref(&order.job))).await;
        if let Some(pause) = order.cancel_after {
            sleep(pause).await;
            insist(|| queue.cancel(order.job.id)).await;
        }
    }
}

/// A change of a goal that people want.
#[derive(Debug, Clone)]
pub struct Change {
    /// When, after the start.
    pub at: Duration,
    /// Of what.
    pub service: ServiceName,
    /// What.
    pub kind: ChangeKind,
}

/// What people want of a goal.
#[derive(Debug, Clone)]
pub enum ChangeKind {
    /// One of the artifacts that the ledger shows.
    Deploy { pick: usize, run: RunSpec, selector: Selector, redeploy: Redeploy },
    /// What a job may have made, whether or not it has arrived anywhere.
    Hasty { artifact: ArtifactName },
    /// What ran before.
    Rollback,
}

/// What is changed in a run.
pub fn changes(settings: &Settings) -> Vec<Change> {
    let mut random = stream(settings.seed, "changes");
    let orders = orders(settings);
    let change = |_| {
        let order = &orders[random.usize(0..orders.len())];
        let service = order.job.service.clone();
        let kind = match random.u32(0..10) {
            0..6 => ChangeKind::Deploy {
                pick: random.usize(0..100),
                run: run_spec(&mut random),
                selector: selector(&mut random),
                redeploy: if random.u32(0..4) == 0 { Redeploy::Always } else { Redeploy::IfChanged },
            },
            6 => ChangeKind::Hasty { artifact: ArtifactName::for_job(&service, order.job.id) },
            _ => ChangeKind::Rollback,
        };
        Change { at: settings.storm.mul_f64(0.2 + 0.8 * random.f64()), service, kind }
    };
    let mut changes: Vec<_> = (0..settings.changes).map(change).collect();
    changes.sort_by_key(|change| change.at);
    changes
}

fn run_spec(random: &mut fastrand::Rng) -> RunSpec {
    let readiness = match random.u32(0..4) {
        0 => Readiness::Installed,
        1 => Readiness::Exit,
        2 => Readiness::Alive(Duration::from_secs(5)),
        _ => Readiness::Http("/".into()),
    };
    let port = if matches!(readiness, Readiness::Http(_)) { Port::Free } else { Port::None };
    RunSpec { readiness, port, ..RunSpec::default() }
}

fn selector(random: &mut fastrand::Rng) -> Selector {
    match random.u32(0..5) {
        0 => Selector([("half".to_owned(), random.u32(0..2).to_string())].into()),
        _ => Selector::all(),
    }
}

/// Changes goals when it is time. A new life leaves out what is long past.
pub async fn change(changes: Vec<Change>, trace: &Trace, deployer: &Deployer, ledger: Arc<dyn ReplicationLedger>) {
    for change in changes {
        let late = trace.elapsed().saturating_sub(change.at);
        if late > Duration::from_mins(1) {
            continue;
        }
        sleep(change.at.saturating_sub(trace.elapsed())).await;
        for _ in 0..4 {
            match make(&change, deployer, &*ledger).await {
                Err(error) if is_passing(&error) => sleep(Duration::from_secs(2)).await,
                Err(deploy::Error::Ledger(ledger::Error::NotDeployable { .. } | ledger::Error::NotFound { .. })) => {
                    trace.met(Met::Refusals);
                    break;
                }
                _ => break,
            }
        }
    }
}

fn is_passing(error: &deploy::Error) -> bool {
    error.is_retryable() && !matches!(error, deploy::Error::Ledger(ledger::Error::NotDeployable { .. }))
}

async fn make(change: &Change, deployer: &Deployer, ledger: &dyn ReplicationLedger) -> Result<(), deploy::Error> {
    let service = change.service.clone();
    match &change.kind {
        ChangeKind::Rollback => deployer.rollback(&service, None).await?,
        ChangeKind::Hasty { artifact } => deployer.deploy(&DeployRequest::new(service, artifact.clone())).await?,
        ChangeKind::Deploy { pick, run, selector, redeploy } => {
            let filter = LedgerFilter { service: Some(service.clone()), ..LedgerFilter::default() };
            let found = ledger.list(&filter, None, 100).await?.artifacts;
            let Some(picked) = found.get(pick % found.len().max(1)) else { return Ok(()) };
            let request = DeployRequest::new(service, picked.registered.artifact.name.clone())
                .with_run(run.clone())
                .with_selector(selector.clone())
                .with_redeploy(*redeploy);
            deployer.deploy(&request).await?
        }
    };
    Ok(())
}

/// Calls until it is answered.
pub async fn insist<T, E, F: Future<Output = Result<T, E>>>(call: impl Fn() -> F) -> T {
    loop {
        match call().await {
            Ok(answer) => return answer,
            Err(_) => sleep(Duration::from_secs(3)).await,
        }
    }
}
