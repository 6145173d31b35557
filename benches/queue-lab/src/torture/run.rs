//! One run: fire, then quiet, then the proof.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use deploycore::build::{Reaper, ReaperSettings};
use deploycore::model::{ClaimId, JobId, JobStatus};
use deploycore::pace::Backoff;
use deploycore::port::JobQueue;
use deploycore::port::queue::{AttemptEnd, ClaimRequest, MAX_BATCH, RescueRequest};
use fastrand::Rng;
use serde::Serialize;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::clients::Clients;
use super::database::Target;
use crate::check::{self, View};
use crate::figures::{Spread, load};
use crate::history::{self, Recorder};
use crate::job::{lease, success};
use crate::judge::{self, Counts};

/// How a run goes.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The program that becomes a client when it is called with `--client`.
    pub program: PathBuf,
    /// How long the fire lasts.
    pub fire: Duration,
    /// How many clients there are at once.
    pub clients: usize,
    /// A lease without a heartbeat for so long is lost.
    pub lost_after: Duration,
    /// Of what is done to whom.
    pub seed: u64,
}

/// What came of a run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// What was counted.
    #[serde(flatten)]
    pub counts: Counts,
    /// Clients killed by SIGKILL while they worked.
    pub kills: usize,
    /// Clients stopped for longer than their lease, and let go on.
    pub stops: usize,
    /// Kills of the database server.
    pub database_kills: usize,
    /// Jobs in the history.
    pub jobs: usize,
    /// Whether all histories are.
    pub linearizable: bool,
    /// Those that are not, or that could not be decided: the first few.
    pub violations: Vec<String>,
    /// A lease without a heartbeat for so long is lost.
    pub lease_ms: u128,
    /// From the kill of a client until its job ran again.
    pub recovery_ms: Option<Spread>,
    /// How many of them took longer than 1.5 leases; those whose time saw the database die are not counted.
    pub recovered_late: usize,
    /// Of what was done to whom.
    pub seed: u64,
    /// One-minute load of the machine, at the end.
    pub load: f64,
}

/// What a working queue needs at most to be worked off.
const QUIET_LIMIT: Duration = Duration::from_mins(1);
const VIOLATIONS_TOLD: usize = 3;

/// Puts a queue under fire. It must be empty: what it holds would be taken.
///
/// Errors: of the processes and the database; a queue that breaks its contract is no error, but told in the report.
pub async fn run(settings: &Settings, target: &mut Target) -> Result<Report> {
    let folder = tempfile::tempdir()?;
    let queue = deploycore_sql::open_url(target.url()).await.context("the queue could not be opened")?.queue;
    let counts = queue.stats().await?.counts;
    if counts[&JobStatus::Queued] + counts[&JobStatus::Running] > 0 {
        bail!("the queue holds jobs that have not ended, and this would take them: give an empty one");
    }
    let recorder = |name: &str| -> Result<Arc<dyn JobQueue>> {
        Ok(Arc::new(Recorder::new(Arc::clone(&queue), &folder.path().join(name))?))
    };
    let fire = fire(settings, target, folder.path(), recorder("reaper")?).await?;
    let own = recorder("quiet")?;
    timeout(QUIET_LIMIT, work_off(&*own)).await.context("the queue could not be worked off")??;
    prove(settings, fire, folder.path(), &*queue).await
}

/// What was done during the fire.
struct Fire {
    clients: Clients,
    /// From the kill of the database until it had started again.
    outages: Vec<(u64, u64)>,
}

async fn fire(settings: &Settings, target: &mut Target, folder: &Path, recorded: Arc<dyn JobQueue>) -> Result<Fire> {
    let lease = settings.lost_after;
    let reaping = ReaperSettings::default()
        .with_heartbeat(lease / 4, lease)
        .with_period(lease / 8)
        .with_rescue(Backoff { initial: Duration::from_millis(1), max: Duration::from_millis(1) });
    let reaping = ReaperSettings { backoff: Backoff { initial: lease / 10, max: lease / 4 }, ..reaping };
    let reaper = Reaper::new(reaping, recorded)?;
    let shutdown = CancellationToken::new();
    let stop_reaper = shutdown.clone().drop_guard();
    let reaper = tokio::spawn(async move { reaper.run(shutdown).await });
    let clients = Clients::start(&settings.program, target.url(), folder, settings.seed, settings.clients)?;
    let mut fire = Fire { clients, outages: Vec::new() };
    let start = Instant::now();
    // Each turn one client is stopped past its lease while others are killed; the last leases have time to be found.
    let mut random = Rng::with_seed(settings.seed);
    let mut turns = 0;
    sleep(lease / 2).await;
    while start.elapsed() + 2 * lease < settings.fire {
        turns += 1;
        turn(settings, &mut fire, target, &mut random, turns).await?;
    }
    sleep(2 * lease).await;
    fire.clients.end().await?;
    drop(stop_reaper);
    reaper.await?;
    Ok(fire)
}

/// Lasts a little longer than a lease.
async fn turn(
    settings: &Settings,
    fire: &mut Fire,
    target: &mut Target,
    random: &mut Rng,
    number: usize,
) -> Result<()> {
    let mut order: Vec<usize> = (0..fire.clients.count()).collect();
    random.shuffle(&mut order);
    let (stopped, killed) = order.split_at(order.len() / 2);
    for client in stopped {
        fire.clients.stop(*client)?;
    }
    let began = Instant::now();
    if number.is_multiple_of(4) {
        let from = history::now();
        let down = Duration::from_millis(random.u64(..200));
        if tokio::task::block_in_place(|| target.kill(down))? {
            fire.outages.push((from, history::now()));
        }
    }
    for _ in 0..2 {
        fire.clients.kill(killed[random.usize(..killed.len())]).await?;
        sleep(settings.lost_after.mul_f64(0.3 + 0.4 * random.f64())).await;
    }
    // A database that was away made the reaper wait, too.
    let past = settings.lost_after.mul_f64(if number.is_multiple_of(4) { 2.0 } else { 1.4 });
    sleep(past.saturating_sub(began.elapsed())).await;
    for client in stopped {
        fire.clients.go_on(*client)?;
    }
    // What they held is refused now, and they take something new.
    sleep(settings.lost_after / 4).await;
    Ok(())
}

/// Takes every lease for lost and does all that is left.
async fn work_off(queue: &dyn JobQueue) -> Result<()> {
    let lost = RescueRequest { lost_after: Duration::ZERO, backoff: Duration::ZERO, ..RescueRequest::default() };
    loop {
        queue.rescue(&lost).await?;
        let request = ClaimRequest { claim: ClaimId::new(), worker: "quiet".parse()?, limit: MAX_BATCH };
        let jobs = queue.claim(&request).await?;
        let ends: Vec<_> = jobs.iter().map(|job| AttemptEnd { lease: lease(job), completion: success(job) }).collect();
        queue.complete_batch(&ends).await?;
        let counts = queue.stats().await?.counts;
        if counts[&JobStatus::Queued] + counts[&JobStatus::Running] == 0 {
            return Ok(());
        }
        // A delay of a rescue may not be over yet.
        sleep(Duration::from_millis(5)).await;
    }
}

async fn prove(settings: &Settings, fire: Fire, folder: &Path, queue: &dyn JobQueue) -> Result<Report> {
    let events = history::read(folder).context("the histories")?;
    let looked_at = history::now();
    let mut looks: BTreeMap<JobId, Option<View>> = BTreeMap::new();
    for id in judge::asked_for(&events) {
        let view = match queue.get(id).await? {
            Some(job) => Some(View::of(&job, &queue.attempts(id).await?)),
            None => None,
        };
        looks.insert(id, view);
    }
    let refused = check::check(&events, &looks, looked_at);
    let violations =
        refused.iter().take(VIOLATIONS_TOLD).map(|(job, verdict, ops)| format!("{job}: {verdict:?}: {ops:?}"));
    let limit = settings.lost_after.mul_f64(1.5);
    let recoveries = judge::recoveries(&events, &looks, &calm(&fire, limit + settings.lost_after));
    let recoveries: Vec<_> = recoveries.into_iter().map(Duration::from_nanos).collect();
    Ok(Report {
        counts: judge::count(&events, &looks),
        kills: fire.clients.kills.len(),
        stops: fire.clients.stops,
        database_kills: fire.outages.len(),
        jobs: looks.len(),
        linearizable: refused.is_empty(),
        violations: violations.collect(),
        lease_ms: settings.lost_after.as_millis(),
        recovered_late: recoveries.iter().filter(|time| **time > limit).count(),
        recovery_ms: Spread::of(recoveries),
        seed: settings.seed,
        load: load(),
    })
}

/// The kills whose jobs could be found with the database there all the while.
fn calm(fire: &Fire, span: Duration) -> Vec<judge::Kill> {
    let span = span.as_nanos() as u64;
    let is_calm = |at: u64| fire.outages.iter().all(|(from, to)| at + span < *from || at > *to + span);
    fire.clients.kills.iter().filter(|kill| is_calm(kill.at)).cloned().collect()
}

impl Report {
    /// Whether the queue kept its contract, as far as this saw it.
    pub fn is_good(&self) -> bool {
        self.linearizable && self.counts.lost == 0 && self.counts.doubled == 0 && self.counts.zombies_accepted == 0
    }
}
