//! The leases that a worker holds, and the task that keeps them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::{Shared, WorkerSettings};
use crate::model::{Epoch, Job, JobId, Lease};
use crate::pace::{Backoff, Pace};
use crate::port::chain;
use crate::port::queue::{Beat, MAX_BATCH};

/// Why a build shall stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Someone asked to cancel.
    Cancelled,
    /// The attempt is out of time.
    TimedOut,
    /// The worker shuts down.
    Drained,
    /// The lease is lost, or must be taken for lost: nothing may be said of the job any more.
    Lost,
}

/// A lease with its build's times.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) job: Job,
    pub(super) lease: Lease,
    /// Tells the builder.
    pub(super) stop: CancellationToken,
    terms: watch::Sender<Terms>,
}

#[derive(Debug, Clone, Copy)]
struct Terms {
    deadline: Instant,
    held_until: Instant,
    verdict: Option<Verdict>,
}

impl Held {
    pub(super) fn new(job: Job, lease: Lease, deadline: Instant, held_until: Instant) -> Arc<Self> {
        let terms = watch::Sender::new(Terms { deadline, held_until, verdict: None });
        Arc::new(Self { job, lease, stop: CancellationToken::new(), terms })
    }

    /// The first verdict stands, but a lost lease outranks the others.
    pub(super) fn judge(&self, verdict: Verdict) {
        self.terms.send_modify(|terms| {
            if terms.verdict.is_none() || verdict == Verdict::Lost {
                terms.verdict = Some(verdict);
            }
        });
        self.stop.cancel();
    }

    pub(super) fn verdict(&self) -> Option<Verdict> {
        self.terms.borrow().verdict
    }

    fn renew(&self, deadline: Instant, held_until: Instant) {
        self.terms.send_modify(|terms| {
            terms.deadline = deadline;
            terms.held_until = held_until;
        });
    }
}

/// The leases of a worker. A job may be there twice: an older lease whose build has not ended yet, and a newer one.
#[derive(Debug, Default)]
pub(super) struct Leases(Mutex<BTreeMap<(JobId, Epoch), Arc<Held>>>);

impl Leases {
    pub(super) fn add(&self, held: &Arc<Held>) {
        self.lock().insert((held.lease.job, held.lease.epoch), Arc::clone(held));
    }

    pub(super) fn remove(&self, lease: &Lease) {
        self.lock().remove(&(lease.job, lease.epoch));
    }

    pub(super) fn all(&self) -> Vec<Arc<Held>> {
        self.lock().values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(JobId, Epoch), Arc<Held>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The rhythm of heartbeats. Several tries must fit before the leases are lost.
pub(super) fn beats(settings: &WorkerSettings) -> Pace {
    let every = settings.heartbeat;
    let backoff = Backoff { initial: every.min(Duration::from_secs(1)), max: every.min(settings.lost_after / 6) };
    Pace::new(every, backoff)
}

/// Beats for all leases, for ever.
pub(super) async fn keep_leases(shared: &Shared, mut pace: Pace) {
    let never = CancellationToken::new();
    loop {
        pace.wait(shared.beat_now.notified(), &never).await;
        let mut well = true;
        for batch in shared.leases.all().chunks(MAX_BATCH) {
            well &= beat(shared, batch).await;
        }
        pace.note(well);
    }
}

/// Resolves once a verdict says that the build shall stop: somebody's, or this one's when the build's time is over or nothing was
/// heard of its lease for too long. The silence may be this worker's own, when its host stood still, and then the reaper gives everybody
/// the time to show that they live; so one heartbeat more is tried, and only where it brings no answer the lease counts as lost.
/// Meanwhile somebody else may build the job, which the lease's epoch makes harmless.
pub(super) async fn stopped(shared: &Shared, held: &Arc<Held>) {
    let mut changes = held.terms.subscribe();
    loop {
        let terms = *changes.borrow_and_update();
        if terms.verdict.is_some() {
            return;
        }
        let silent = async {
            sleep_until(terms.held_until).await;
            beat(shared, std::slice::from_ref(held)).await
        };
        tokio::select! {
            biased;
            // The sender lives as long as the lease.
            _ = changes.changed() => {}
            answered = silent => if !answered {
                held.judge(Verdict::Lost);
            },
            () = sleep_until(terms.deadline) => held.judge(Verdict::TimedOut),
        }
    }
}

/// Beats for some leases; whether the queue answered.
async fn beat(shared: &Shared, batch: &[Arc<Held>]) -> bool {
    let leases: Vec<_> = batch.iter().map(|held| held.lease).collect();
    // The answer's times count from before the call, so that this worker errs to the early side.
    let asked_at = Instant::now();
    let problem = match timeout(shared.settings.call_limit, shared.queue.heartbeat(&leases)).await {
        Ok(Ok(beats)) if beats.len() == batch.len() => {
            for (held, beat) in batch.iter().zip(beats) {
                apply(held, beat, asked_at, shared.settings.lost_after);
            }
            return true;
        }
        Ok(Ok(beats)) => format!("{} answers for {} leases", beats.len(), batch.len()),
        Ok(Err(error)) => chain(&error),
        Err(_) => format!("no answer within {:?}", shared.settings.call_limit),
    };
    tracing::warn!(problem, leases = batch.len(), "heartbeats failed");
    metrics::counter!("deploycore_worker_heartbeat_failures_total").increment(1);
    false
}

fn apply(held: &Held, beat: Beat, asked_at: Instant, lost_after: Duration) {
    match beat {
        Beat::Held { cancel_requested, time_left } => {
            held.renew(asked_at + time_left, asked_at + lost_after);
            if cancel_requested {
                held.judge(Verdict::Cancelled);
            }
        }
        Beat::Lost => {
            tracing::warn!(job = %held.lease.job, epoch = %held.lease.epoch, "the lease is lost; the build is stopped");
            held.judge(Verdict::Lost);
        }
    }
}
