//! Worker and reaper over the memory backends, in virtual time.

mod bed;
mod reaper;

use std::num::NonZeroUsize;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use deploycore::build::{
    BuildContext, BuildError, BuildOutput, Builder, Reaper, ReaperSettings, Worker, WorkerSettings,
};
use deploycore::memory::Store;
use deploycore::model::{AttemptOutcome, Completion, Digest, FailureKind, Job, JobStatus, LogName};
use deploycore::pace::{Backoff, Horizon};
use deploycore::port::queue::{Beat, ClaimRequest};
use deploycore::port::{ArtifactStore, ArtifactStoreExt, JobQueue};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use bed::*;

const HOUR: Backoff = Backoff { initial: Duration::from_hours(1), max: Duration::from_hours(1) };

#[tokio::test(start_paused = true)]
async fn a_job_succeeds_with_its_bytes_and_its_log_in_the_store() {
    let yard = Yard::new([Plan::Yield("the binary")]);
    let id = yard.enqueue(job()).await;
    let _worker = yard.run(WorkerSettings::default());
    let done = yard.finished(id).await;
    assert_eq!(done.status, JobStatus::Succeeded);
    let artifact = done.artifact.unwrap();
    assert_eq!(artifact.name.as_str(), format!("web-{id}"));
    assert_eq!((artifact.digest, artifact.size), (Digest::of(b"the binary"), 10));
    assert_eq!(yard.store.read_all(&artifact.digest, 0..10).await.unwrap(), b"the binary");
    let log = yard.store.log(&LogName { job: id, epoch: done.epoch }).await.unwrap().unwrap();
    assert_eq!(log, "building abcdef0\n");
}

#[tokio::test(start_paused = true)]
async fn a_hint_starts_a_build_before_the_worker_would_look() {
    let yard = Yard::new([]);
    let _running = yard.run(WorkerSettings::default().with_poll(secs(3_600)));
    sleep(secs(1)).await;
    // The first look found nothing; the next is an hour away.
    let id = yard.enqueue(job()).await;
    sleep(secs(1_800)).await;
    assert_eq!(yard.job(id).await.status, JobStatus::Queued);
    yard.line.ready.give(1);
    sleep(secs(1)).await;
    assert_eq!(yard.job(id).await.status, JobStatus::Succeeded);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_fills_its_slots_passes_the_hint_on() {
    let yard = Yard::new(vec![Plan::Take(secs(60)); 3]);
    let _workers = [1, 2, 3].map(|seed| {
        let settings = WorkerSettings::default().with_poll(secs(3_600)).with_slots(NonZeroUsize::MIN);
        let worker = Worker::new(settings, yard.line.clone(), yard.store.clone(), yard.builder.clone());
        let (worker, shutdown) = (worker.unwrap().with_seed(seed), yard.shutdown.clone());
        AbortOnDropHandle::new(tokio::spawn(async move { worker.run(shutdown).await }))
    });
    sleep(secs(1)).await;
    for _ in 0..2 {
        yard.enqueue(job()).await;
    }
    // One is told of, the other is found by whom the first one wakes.
    yard.line.ready.give(1);
    sleep(secs(1)).await;
    assert_eq!(yard.line.queue.stats().await.unwrap().counts[&JobStatus::Running], 2);
}

#[tokio::test(start_paused = true)]
async fn all_slots_build_at_once_and_no_more() {
    let yard = Yard::new(vec![Plan::Take(secs(5)); 7]);
    let mut ids = Vec::new();
    for _ in 0..7 {
        ids.push(yard.enqueue(job()).await);
    }
    let started = Instant::now();
    let _worker = yard.run(WorkerSettings::default().with_slots(NonZeroUsize::new(3).unwrap()));
    for id in ids {
        assert_eq!(yard.finished(id).await.status, JobStatus::Succeeded);
    }
    assert_eq!(yard.builder.most_alive.load(Ordering::SeqCst), 3);
    // Three rounds of 5 s: a slot that becomes free is filled at once, without waiting for the poll.
    assert!(started.elapsed() < secs(17), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_failed_build_is_final_and_a_failure_around_it_is_tried_again() {
    let yard = Yard::new([Plan::Fail("no such type"), Plan::Around("full"), Plan::Panic, Plan::Yield("x")]);
    let _worker = yard.run(WorkerSettings::default());
    let failed = yard.finished(yard.enqueue(job()).await).await;
    let failure = failed.failure.unwrap();
    assert_eq!((failed.status, failure.kind, failed.attempts), (JobStatus::Failed, FailureKind::Build, 1));
    assert_eq!(failure.message, "no such type");
    assert!(yard.store.log(&failure.log.unwrap()).await.unwrap().unwrap().ends_with(b"no such type\n"));

    let id = yard.enqueue(job()).await;
    let done = yard.finished(id).await;
    assert_eq!((done.status, done.attempts), (JobStatus::Succeeded, 3));
    let attempts = yard.line.attempts(id).await.unwrap();
    let kinds = attempts.iter().map(|attempt| match &attempt.outcome {
        Some(AttemptOutcome::Completed { completion: Completion::Failed { failure } }) => failure.message.as_str(),
        _ => "",
    });
    assert_eq!(kinds.collect::<Vec<_>>(), ["no disk: full", "the builder panicked", ""]);
}

#[tokio::test(start_paused = true)]
async fn a_worker_whose_every_build_fails_around_it_does_not_use_up_the_queue() {
    let yard = Yard::new(vec![Plan::Around("full"); 1_000]);
    for _ in 0..100 {
        yard.enqueue(job()).await;
    }
    let _worker = yard.run(WorkerSettings::default().with_slots(NonZeroUsize::new(4).unwrap()));
    sleep(secs(600)).await;
    let started = yard.builder.started.load(Ordering::SeqCst);
    // All slots once, then a job after 1 s, 2 s, 4 s, ... 256 s.
    assert!((12..=14).contains(&started), "{started}");
    let failed = yard.line.queue.stats().await.unwrap().counts.get(&JobStatus::Failed).copied();
    assert!(failed < Some(5), "{failed:?}");
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_held_off_tries_one_job_and_fills_its_slots_again_when_it_succeeds() {
    let plans = [vec![Plan::Around("full"); 4], vec![Plan::Take(secs(20)); 8]].concat();
    let yard = Yard::new(plans);
    for _ in 0..8 {
        yard.enqueue(job()).await;
    }
    let _worker = yard.run(WorkerSettings::default().with_slots(NonZeroUsize::new(4).unwrap()));
    sleep(secs(19)).await;
    assert_eq!(yard.builder.alive.load(Ordering::SeqCst), 1);
    sleep(secs(5)).await;
    assert_eq!(yard.builder.alive.load(Ordering::SeqCst), 4);
}

#[tokio::test(start_paused = true)]
async fn failures_around_builds_that_are_not_in_a_row_hold_no_job_up() {
    let yard = Yard::new((0..10).flat_map(|_| [Plan::Around("full"), Plan::Fail("no such type")]));
    for _ in 0..20 {
        yard.enqueue(job()).await;
    }
    let _worker = yard.run(WorkerSettings::default());
    sleep(Duration::from_millis(100)).await;
    assert_eq!(yard.builder.started.load(Ordering::SeqCst), 20);
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_build_between_failures_around_builds_leaves_them_in_a_row() {
    let yard = Yard::new([Plan::Around("full"), Plan::Take(secs(600)), Plan::Around("full"), Plan::Yield("bytes")]);
    yard.enqueue(job()).await;
    let cancelled = yard.enqueue(job()).await;
    yard.enqueue(job()).await;
    let _worker = yard.run(WorkerSettings::default().with_hold_off(HOUR));
    sleep(secs(1)).await;
    yard.line.cancel(cancelled).await.unwrap();
    yard.finished(cancelled).await;
    sleep(secs(60)).await;
    assert_eq!(yard.builder.started.load(Ordering::SeqCst), 3);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_holds_off_ends_at_once_when_it_shall() {
    let yard = Yard::new(vec![Plan::Around("full"); 10]);
    for _ in 0..10 {
        yard.enqueue(job()).await;
    }
    let worker = yard.run(WorkerSettings::default().with_hold_off(HOUR));
    sleep(secs(600)).await;
    assert_eq!(yard.builder.started.load(Ordering::SeqCst), 2);
    yard.shutdown.cancel();
    timeout(secs(1), worker).await.expect("it waits for the end of its delay").unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_claim_whose_reply_was_lost_is_repeated_also_by_a_worker_that_holds_off() {
    let yard = Yard::new(vec![Plan::AroundAfter(secs(4)); 2]);
    for _ in 0..2 {
        yard.enqueue(job()).await;
    }
    let slots = NonZeroUsize::new(3).unwrap();
    let _worker = yard.run(WorkerSettings::default().with_slots(slots).with_hold_off(HOUR));
    yard.builder.began.notified().await;
    // It is claimed at 2 s and told of at 5 s; between, at 4 s, the builds fail.
    for fault in [Fault::NoReply, Fault::Lost, Fault::Lost] {
        yard.line.fault("claim", fault);
    }
    let id = yard.enqueue(job()).await;
    sleep(secs(60)).await;
    assert_eq!(yard.job(id).await.status, JobStatus::Succeeded);
}

#[tokio::test(start_paused = true)]
async fn a_cancel_stops_the_build() {
    let yard = Yard::new([Plan::Take(secs(600))]);
    let id = yard.enqueue(job()).await;
    let _worker = yard.run(WorkerSettings::default());
    yard.builder.began.notified().await;
    yard.line.cancel(id).await.unwrap();
    let asked = Instant::now();
    assert_eq!(yard.finished(id).await.status, JobStatus::Cancelled);
    assert!(asked.elapsed() <= secs(31), "{:?}", asked.elapsed());
    assert_eq!(yard.builder.stopped.load(Ordering::SeqCst), 1);
    let lease = yard.line.attempts(id).await.unwrap()[0].lease;
    let log = yard.store.log(&LogName { job: id, epoch: lease.epoch }).await.unwrap();
    assert!(log.unwrap().starts_with(b"building abcdef0\n"));
}

#[tokio::test(start_paused = true)]
async fn heartbeats_hold_the_lease_of_a_long_build_and_a_build_past_its_time_fails() {
    let yard = Yard::new([Plan::Take(secs(800)), Plan::Hang]);
    let long = yard.enqueue(job()).await;
    let _worker = yard.run(WorkerSettings::default());
    let done = async {
        while !yard.job(long).await.status.is_finished() {
            assert_eq!(yard.rescue(secs(40)).await, []);
            sleep(secs(1)).await;
        }
    };
    timeout(secs(900), done).await.unwrap();
    assert_eq!(yard.job(long).await.status, JobStatus::Succeeded);

    let hung = yard.enqueue(job().with_build_timeout(secs(100))).await;
    let started = Instant::now();
    let failed = yard.finished(hung).await;
    assert_eq!((failed.status, failed.failure.unwrap().kind), (JobStatus::Failed, FailureKind::Timeout));
    // The time, the grace for a builder that does not listen, and the poll.
    assert!(started.elapsed() < secs(100 + 15 + 4), "{:?}", started.elapsed());
    assert_eq!(yard.builder.alive.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn a_lost_lease_stops_the_build_and_drops_its_result() {
    let yard = Yard::new([Plan::Take(secs(500)), Plan::Yield("second")]);
    let id = yard.enqueue(job()).await;
    let _worker = yard.run(WorkerSettings::default());
    yard.builder.began.notified().await;
    sleep(secs(1)).await;
    let rescued = yard.rescue(Duration::ZERO).await;
    assert_eq!(rescued.len(), 1);
    let done = yard.finished(id).await;
    assert_eq!((done.status, done.epoch.get()), (JobStatus::Succeeded, 2));
    assert_eq!(done.artifact.unwrap().digest, Digest::of(b"second"));
    assert_eq!(yard.builder.stopped.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_worker_whose_heartbeats_do_not_arrive_gives_up_by_itself() {
    let yard = Yard::new([Plan::Take(secs(500))]);
    let id = yard.enqueue(job()).await;
    let _worker = yard.run(WorkerSettings::default());
    yard.builder.began.notified().await;
    let began = Instant::now();
    yard.line.mute.store(true, Ordering::SeqCst);
    while yard.builder.stopped.load(Ordering::SeqCst) == 0 {
        sleep(Duration::from_millis(100)).await;
    }
    assert!((secs(85)..secs(95)).contains(&began.elapsed()), "{:?}", began.elapsed());
    // It says nothing of the job: the reaper does.
    sleep(secs(5)).await;
    let left = yard.job(id).await;
    assert_eq!(left.status, JobStatus::Running);
    assert_eq!(yard.rescue(secs(90)).await.len(), 1);
    yard.line.mute.store(false, Ordering::SeqCst);
    assert_eq!(yard.finished(id).await.status, JobStatus::Succeeded);
}

#[tokio::test(start_paused = true)]
async fn lost_calls_and_lost_replies_cost_no_attempt() {
    let yard = Yard::new([]);
    for call in ["claim", "complete"] {
        for fault in [Fault::NoReply, Fault::Lost, Fault::Hang] {
            yard.line.fault(call, fault);
        }
    }
    let id = yard.enqueue(job()).await;
    let _worker = yard.run(WorkerSettings::default());
    let done = yard.finished(id).await;
    sleep(secs(60)).await;
    assert_eq!((done.status, done.epoch.get(), done.attempts), (JobStatus::Succeeded, 1, 1));
    assert_eq!(yard.builder.started.load(Ordering::SeqCst), 1);
    assert!(yard.line.faults.lock().unwrap().is_empty(), "every fault was met");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_in_passing_costs_no_attempt_and_a_lost_log_no_result() {
    let mut yard = Yard::new([Plan::Yield("bytes")]);
    yard.store = Arc::new(Flaky { store: Store::new(), failures: 2.into(), no_logs: true });
    let id = yard.enqueue(job()).await;
    assert_eq!(yard.worker(WorkerSettings::default()).tick().await, 1);
    let done = yard.job(id).await;
    assert_eq!((done.status, done.attempts), (JobStatus::Succeeded, 1));
    assert_eq!(yard.builder.started.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_lets_short_builds_end_and_gives_long_ones_back() {
    let yard = Yard::new([Plan::Take(secs(20)), Plan::Take(secs(600)), Plan::Hang]);
    let ids = [yard.enqueue(job()).await, yard.enqueue(job()).await, yard.enqueue(job()).await];
    let later = yard.enqueue(job()).await;
    let worker = yard.run(WorkerSettings::default().with_slots(NonZeroUsize::new(3).unwrap()));
    while yard.builder.started.load(Ordering::SeqCst) < 3 {
        sleep(Duration::from_millis(100)).await;
    }
    yard.shutdown.cancel();
    timeout(secs(60 + 15 + 10), worker).await.expect("the drain is bounded").unwrap();
    let mut ends = Vec::new();
    for id in ids {
        let job = yard.job(id).await;
        ends.push((job.status, job.attempts, job.releases));
    }
    ends.sort();
    assert_eq!(
        ends,
        [(JobStatus::Queued, 0, 1), (JobStatus::Queued, 0, 1), (JobStatus::Succeeded, 1, 0)],
        "a release burns no attempt"
    );
    assert_eq!(yard.job(later).await.epoch.get(), 0, "nothing was claimed while draining");
    assert_eq!(yard.builder.alive.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn a_job_claimed_by_a_reply_that_was_lost_before_the_shutdown_is_given_back() {
    let yard = Yard::new([]);
    yard.line.fault("claim", Fault::NoReply);
    let id = yard.enqueue(job()).await;
    let worker = yard.run(WorkerSettings::default());
    yard.until(id, |job| job.status == JobStatus::Running).await;
    yard.shutdown.cancel();
    worker.await.unwrap();
    let job = yard.job(id).await;
    assert_eq!((job.status, job.releases), (JobStatus::Queued, 1));
    assert_eq!(yard.builder.started.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_worker_ends_its_builds_and_says_nothing() {
    let yard = Yard::new([Plan::Hang]);
    let id = yard.enqueue(job()).await;
    let worker = yard.run(WorkerSettings::default());
    yard.builder.began.notified().await;
    drop(worker);
    while yard.builder.alive.load(Ordering::SeqCst) > 0 {
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(yard.job(id).await.status, JobStatus::Running);
}

/// Holds its thread until it is told to go on.
#[derive(Debug)]
struct Blocking(Mutex<std::sync::mpsc::Receiver<()>>);

#[async_trait]
impl Builder for Blocking {
    async fn build(&self, _: &Job, _: &BuildContext) -> Result<BuildOutput, BuildError> {
        self.0.lock().unwrap().recv().unwrap();
        Ok(BuildOutput::bytes("blocked"))
    }
}

#[tokio::test(start_paused = true)]
async fn a_builder_that_holds_its_thread_on_a_runtime_of_its_own_does_not_hold_the_heartbeats() {
    let yard = Yard::new([]);
    let builds = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (go_on, told) = std::sync::mpsc::channel();
    let builder = Arc::new(Blocking(Mutex::new(told)));
    let worker = Worker::new(WorkerSettings::default(), yard.line.clone(), yard.store.clone(), builder).unwrap();
    let worker = worker.with_seed(7).with_builds_on(builds.handle().clone());
    let (work, shutdown) = (Arc::new(worker), yard.shutdown.clone());
    let _worker = AbortOnDropHandle::new(tokio::spawn(async move { work.run(shutdown).await }));
    let id = yard.enqueue(job()).await;
    yard.until(id, |job| job.status == JobStatus::Running).await;
    for _ in 0..300 {
        assert_eq!(yard.rescue(secs(40)).await, []);
        sleep(secs(1)).await;
    }
    go_on.send(()).unwrap();
    // The other runtime takes real time, in which virtual time must not pass: a runtime that is never idle does not advance it.
    let end = std::time::Instant::now() + secs(60);
    while yard.job(id).await.status == JobStatus::Running && std::time::Instant::now() < end {
        tokio::task::yield_now().await;
    }
    let done = yard.job(id).await;
    assert_eq!((done.status, done.epoch.get()), (JobStatus::Succeeded, 1));
    builds.shutdown_background();
}

#[tokio::test(start_paused = true)]
async fn a_panic_on_the_runtime_of_the_builds_is_a_failure_around_the_build() {
    let yard = Yard::new([Plan::Panic]);
    let worker = Worker::new(WorkerSettings::default(), yard.line.clone(), yard.store.clone(), yard.builder.clone());
    let worker = worker.unwrap().with_seed(7).with_builds_on(tokio::runtime::Handle::current());
    let id = yard.enqueue(job()).await;
    assert_eq!(worker.tick().await, 1);
    let attempts = yard.line.attempts(id).await.unwrap();
    let Some(AttemptOutcome::Completed { completion: Completion::Failed { failure } }) = &attempts[0].outcome else {
        panic!("{attempts:?}");
    };
    assert_eq!((failure.kind, failure.message.as_str()), (FailureKind::Infrastructure, "the builder panicked"));
}

#[tokio::test]
async fn settings_with_which_no_lease_would_hold_are_refused_by_name() {
    let yard = Yard::new([]);
    let worker = |change: &dyn Fn(&mut WorkerSettings)| {
        let mut settings = WorkerSettings::default();
        change(&mut settings);
        let worker = Worker::new(settings, yard.line.clone(), yard.store.clone(), yard.builder.clone());
        worker.map(drop).map_err(|error| error.to_string())
    };
    let refused = worker(&|settings| settings.heartbeat = secs(46)).unwrap_err();
    assert_eq!(refused, "invalid settings of the worker: `lost_after` (90s) must be at least twice `heartbeat` (46s)");
    assert!(worker(&|settings| settings.heartbeat = Duration::ZERO).unwrap_err().contains("`heartbeat`"));
    assert!(worker(&|settings| settings.poll = Duration::ZERO).unwrap_err().contains("`poll`"));
    assert_eq!(worker(&|settings| settings.heartbeat = secs(45)), Ok(()));
    assert_eq!(worker(&|settings| *settings = WorkerSettings::relaxed()), Ok(()));

    let reaper = |settings| Reaper::new(settings, yard.line.clone()).map(drop).map_err(|error| error.to_string());
    let settings = ReaperSettings::default();
    assert!(reaper(settings.clone().with_period(Duration::ZERO)).unwrap_err().contains("reaper: `period`"));
    assert!(reaper(settings.clone().with_heartbeat(secs(6), secs(10))).unwrap_err().contains("`lost_after` (10s)"));
    assert_eq!(reaper(ReaperSettings::relaxed()), Ok(()));
    let (worker, reaper) = (WorkerSettings::relaxed(), ReaperSettings::relaxed());
    assert_eq!((worker.heartbeat, worker.lost_after), (reaper.heartbeat, reaper.lost_after));
}

#[test]
fn settings_are_read_as_people_write_them() {
    let text = r#"{"name": "w-1", "slots": 4, "heartbeat": "10s", "lost_after": "30s", "log_limit": "2 MiB"}"#;
    let settings: WorkerSettings = serde_json::from_str(text).unwrap();
    assert_eq!((settings.slots.get(), settings.heartbeat), (4, secs(10)));
    let settings: WorkerSettings = serde_json::from_str(r#"{"hold_off": {"initial": "1h", "max": "1h"}}"#).unwrap();
    assert_eq!(settings.hold_off, HOUR);
    assert!(serde_json::from_str::<WorkerSettings>(r#"{"slot": 4}"#).is_err());
    assert!(serde_json::from_str::<ReaperSettings>(r#"{"prune_after": "720h", "period": "5s"}"#).is_ok());
}
