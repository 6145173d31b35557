//! The reaper.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_reaper_rescues_the_jobs_of_a_dead_worker() {
    let yard = Yard::new([Plan::Hang]);
    let id = yard.enqueue(job()).await;
    let worker = yard.run(WorkerSettings::default());
    yard.builder.began.notified().await;
    drop(worker);
    let died = Instant::now();
    let reaper = Reaper::new(ReaperSettings::default().with_prune_after(Some(secs(1000))), yard.line.clone()).unwrap();
    let shutdown = yard.shutdown.clone();
    let reaper = AbortOnDropHandle::new(tokio::spawn(async move { reaper.with_seed(1).run(shutdown).await }));
    yard.until(id, |job| job.status == JobStatus::Queued).await;
    assert!((secs(90)..secs(101)).contains(&died.elapsed()), "{:?}", died.elapsed());
    let _next = yard.run(WorkerSettings::default());
    assert_eq!(yard.finished(id).await.status, JobStatus::Succeeded);
    sleep(secs(1100)).await;
    assert!(yard.line.queue.get(id).await.unwrap().is_none(), "finished jobs are pruned by age");
    yard.shutdown.cancel();
    reaper.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_reaper_prunes_no_job_past_its_horizon() {
    let yard = Yard::new([]);
    let horizon = Horizon::default();
    let settings = ReaperSettings::default().with_prune_after(Some(secs(100)));
    let reaper = Reaper::new(settings, yard.line.clone()).unwrap().with_horizon(horizon.clone());
    let shutdown = yard.shutdown.clone();
    let _reaper = AbortOnDropHandle::new(tokio::spawn(async move { reaper.with_seed(1).run(shutdown).await }));
    let _worker = yard.run(WorkerSettings::default());
    let first = yard.enqueue(job()).await;
    yard.finished(first).await;
    sleep(secs(1000)).await;
    assert_eq!(yard.job(first).await.status, JobStatus::Succeeded, "nobody has seen it");
    horizon.reach(Instant::now());
    let second = yard.enqueue(job()).await;
    yard.finished(second).await;
    sleep(secs(1000)).await;
    assert!(yard.line.queue.get(first).await.unwrap().is_none());
    assert_eq!(yard.job(second).await.status, JobStatus::Succeeded, "nobody has seen it");
    horizon.reach(Instant::now());
    sleep(secs(90)).await;
    assert!(yard.line.queue.get(second).await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_reaper_that_was_away_waits_one_heartbeat() {
    let yard = Yard::new([]);
    yard.enqueue(job()).await;
    let worker = deploycore::model::WorkerName::new("w").unwrap();
    let claim = ClaimRequest { claim: deploycore::model::ClaimId::new(), worker, limit: 1 };
    let lease = yard.line.claim(&claim).await.unwrap()[0].running.clone().unwrap().lease;
    let reaper = Reaper::new(ReaperSettings::default(), yard.line.clone()).unwrap();
    // The reaper starts long after the last heartbeat.
    sleep(secs(200)).await;
    assert_eq!(reaper.tick().await.unwrap().waits, Some(secs(30)));
    sleep(secs(10)).await;
    assert_eq!(reaper.tick().await.unwrap().waits, Some(secs(20)));
    // The worker was held up by the same thing; it shows that it lives.
    assert!(matches!(yard.line.heartbeat(&[lease]).await.unwrap()[0], Beat::Held { .. }));
    sleep(secs(20)).await;
    let looked = reaper.tick().await.unwrap();
    assert_eq!((looked.waits, looked.rescued.len()), (None, 0));
    // The queue is away for long: each look fails, the next that succeeds waits again.
    for _ in 0..20 {
        yard.line.fault("rescue", Fault::Lost);
        yard.line.fault("prune", Fault::Lost);
        sleep(secs(10)).await;
        reaper.tick().await.unwrap_err();
    }
    yard.line.faults.lock().unwrap().clear();
    assert_eq!(reaper.tick().await.unwrap().waits, Some(secs(30)));
    sleep(secs(30)).await;
    assert_eq!(reaper.tick().await.unwrap().rescued.len(), 1);
}

/// Heartbeats each 3 s, lost after 10 s.
fn short() -> (WorkerSettings, ReaperSettings) {
    let reaper = ReaperSettings::default().with_heartbeat(secs(3), secs(10));
    (WorkerSettings::default().with_heartbeat(secs(3), secs(10)), reaper)
}

#[tokio::test(start_paused = true)]
async fn workers_and_reaper_that_stood_still_together_lose_no_build() {
    for (stall, (worker, reaper)) in
        [(secs(11), short()), (secs(200), short()), (secs(91), Default::default()), (secs(400), Default::default())]
    {
        let mut yard = Yard::new([Plan::Take(secs(600))]);
        Arc::get_mut(&mut yard.line).unwrap().way = Duration::from_millis(5);
        let reaper = Reaper::new(reaper, yard.line.clone()).unwrap().with_seed(3);
        let shutdown = yard.shutdown.clone();
        let _reaper = AbortOnDropHandle::new(tokio::spawn(async move { reaper.run(shutdown).await }));
        let id = yard.enqueue(job()).await;
        let _worker = yard.run(worker);
        yard.builder.began.notified().await;
        sleep(secs(100)).await;
        tokio::time::advance(stall).await;
        let done = yard.finished(id).await;
        assert_eq!((done.status, done.epoch.get()), (JobStatus::Succeeded, 1), "a stall of {stall:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_reaper_notices_that_it_stood_still_for_little_longer_than_a_lease_holds() {
    let yard = Yard::new([]);
    yard.enqueue(job()).await;
    let worker = deploycore::model::WorkerName::new("w").unwrap();
    let claim = ClaimRequest { claim: deploycore::model::ClaimId::new(), worker, limit: 1 };
    let lease = yard.line.claim(&claim).await.unwrap()[0].running.clone().unwrap().lease;
    let reaper = Reaper::new(short().1, yard.line.clone()).unwrap();
    for _ in 0..5 {
        reaper.tick().await.unwrap();
        yard.line.heartbeat(&[lease]).await.unwrap();
        sleep(secs(1)).await;
    }
    assert_eq!(reaper.tick().await.unwrap().waits, None);
    sleep(Duration::from_millis(10_001)).await;
    let looked = reaper.tick().await.unwrap();
    assert_eq!((looked.waits, looked.rescued.len()), (Some(secs(3)), 0));
}

#[tokio::test(start_paused = true)]
async fn a_reaper_waits_for_a_queue_that_takes_writes() {
    let yard = Yard::new([]);
    let reaper = Reaper::new(ReaperSettings::default(), yard.line.clone()).unwrap();
    let fails = async |times: u64| {
        for _ in 0..times {
            yard.line.fault("prune", Fault::Lost);
            reaper.tick().await.unwrap_err();
            sleep(secs(10)).await;
        }
    };
    // Reads are answered all the time.
    fails(3).await;
    assert_eq!(reaper.tick().await.unwrap().waits, Some(secs(30)), "counted from the first write");
    sleep(secs(10)).await;
    assert_eq!(reaper.tick().await.unwrap().waits, Some(secs(20)));
    sleep(secs(10)).await;
    fails(3).await;
    assert_eq!(reaper.tick().await.unwrap().waits, Some(secs(30)), "counted anew");
}
