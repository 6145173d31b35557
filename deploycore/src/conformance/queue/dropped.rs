//! Calls whose caller goes away half-way, and the same calls again.
//!
//! Each call is polled once and dropped, then twice and dropped, and so on until it comes to its end.

use std::time::Duration;

use super::super::case::{MOST_POLLS, PATIENCE, cut};
use super::steps::*;
use crate::model::{AttemptOutcome, ClaimId, Job, JobStatus, Lease, NewJob, Retry};
use crate::port::queue::{AttemptEnd, Enqueued, JobFilter, MAX_PAGE};

const JOBS: usize = 7;

fn jobs() -> Vec<NewJob> {
    (0..JOBS).map(|_| job()).collect()
}

/// Claims so many jobs. A server may not know yet that a caller has gone: what that was about to take or change is locked until it does.
async fn claim_in_time(queue: &Subject, jobs: usize) -> Vec<Job> {
    let mut claimed = Vec::new();
    for _ in 0..PATIENCE {
        claimed.extend(claim(queue, jobs - claimed.len()).await);
        if claimed.len() == jobs {
            break;
        }
        pass(MOMENT).await;
    }
    assert_eq!(claimed.len(), jobs, "a lease that nobody knows: {claimed:?}");
    claimed
}

async fn claim_one_in_time(queue: &Subject) -> Lease {
    lease(&claim_in_time(queue, 1).await[0])
}

/// All of a batch are there, or none.
pub async fn an_enqueue_adds_all_or_none(queue: Subject) {
    for polls in 1..=MOST_POLLS {
        let specs = jobs();
        let ended = cut(polls, queue.enqueue(&specs)).await.is_some();
        let filter = JobFilter { statuses: vec![JobStatus::Queued], ..JobFilter::default() };
        let shown = queue.list(&filter, None, MAX_PAGE).await.expect("a page").jobs.len();
        assert!(shown == JOBS || shown == 0 && !ended, "after {polls} polls: {shown} jobs");
        let again = enqueue(&queue, &specs).await;
        let repeated = again.iter().filter(|answer| matches!(answer, Enqueued::Repeated { .. })).count();
        assert!(repeated == JOBS || repeated == 0 && !ended, "after {polls} polls: {again:?}");
        for spec in &specs {
            queue.cancel(spec.id).await.expect("it was added");
        }
        if ended {
            return;
        }
    }
    panic!("it has no end");
}

/// What a claim took nobody heard of: the same claim again gets it. If it took nothing, all is left to others.
pub async fn a_claim_leaves_no_lease_that_nobody_knows(queue: Subject) {
    for polls in 1..=MOST_POLLS {
        enqueue(&queue, &jobs()).await;
        let id = ClaimId::new();
        let ended = cut(polls, queue.claim(&request(id, JOBS - 2))).await.is_some();
        let mut claimed = claim_as(&queue, id, JOBS - 2).await;
        assert!(claimed.len() == JOBS - 2 || !ended, "after {polls} polls");
        claimed.extend(claim_in_time(&queue, JOBS - claimed.len()).await);
        for job in &claimed {
            assert_eq!(job.epoch.get(), 1, "after {polls} polls");
            complete(&queue, &lease(job), &success(job.spec.id)).await;
        }
        if ended {
            return;
        }
    }
    panic!("it has no end");
}

/// A success, a failure to retry and a release.
pub async fn an_end_counts_once(queue: Subject) {
    for polls in 1..=MOST_POLLS {
        add(&queue, &job()).await;
        let (lease, retry) = (claim_one_in_time(&queue).await, failure(Retry::After(Duration::ZERO)));
        let mut ended = cut(polls, queue.complete(&lease, &retry)).await.is_some();
        assert_eq!(complete(&queue, &lease, &retry).await.status, JobStatus::Queued, "after {polls} polls");

        let lease = claim_one_in_time(&queue).await;
        ended &= cut(polls, queue.release(&lease, "drain", Duration::ZERO)).await.is_some();
        queue.release(&lease, "drain", Duration::ZERO).await.expect("the same word again");

        let lease = claim_one_in_time(&queue).await;
        let success = success(lease.job);
        ended &= cut(polls, queue.complete(&lease, &success)).await.is_some();
        let job = complete(&queue, &lease, &success).await;
        let counted = (job.status, job.epoch.get(), job.attempts, job.releases);
        assert_eq!(counted, (JobStatus::Succeeded, 3, 2, 1), "after {polls} polls");
        assert_eq!(history(&queue, lease.job).await.len(), 3, "after {polls} polls");
        if ended {
            return;
        }
    }
    panic!("it has no end");
}

/// Each end of a batch is for itself, and counts once.
pub async fn the_ends_of_a_batch_count_once(queue: Subject) {
    for polls in 1..=MOST_POLLS {
        enqueue(&queue, &jobs()).await;
        let succeed = |job: &Job| AttemptEnd { lease: lease(job), completion: success(job.spec.id) };
        let ends: Vec<_> = claim_in_time(&queue, JOBS).await.iter().map(succeed).collect();
        let ended = cut(polls, queue.complete_batch(&ends)).await.is_some();
        let answers = queue.complete_batch(&ends).await.expect("the batch is within all bounds");
        let succeeded = |answer: &Result<_, _>| matches!(answer, Ok(JobStatus::Succeeded));
        assert!(answers.iter().all(succeeded), "after {polls} polls: {answers:?}");
        for end in &ends {
            assert_eq!(history(&queue, end.lease.job).await.len(), 1, "after {polls} polls");
        }
        if ended {
            return;
        }
    }
    panic!("it has no end");
}

/// Whom a reaper took back and told nobody of: the next goes on with the others.
pub async fn a_rescue_takes_each_job_back_once(queue: Subject) {
    for polls in 1..=MOST_POLLS {
        enqueue(&queue, &jobs()).await;
        let running = claim_in_time(&queue, JOBS).await;
        let ended = cut(polls, queue.rescue(&rescue_all())).await.is_some();
        for _ in 0..PATIENCE {
            rescue(&queue, &rescue_all()).await;
            if queue.stats().await.expect("the counts").counts[&JobStatus::Running] == 0 {
                break;
            }
            pass(MOMENT).await;
        }
        for job in &running {
            let after = assert_status(&queue, job.spec.id, JobStatus::Queued).await;
            assert_eq!((after.rescues, after.attempts), (1, 1), "after {polls} polls");
            let history = history(&queue, job.spec.id).await;
            let outcomes: Vec<_> = history.into_iter().map(|attempt| attempt.outcome).collect();
            assert_eq!(outcomes, [Some(AttemptOutcome::LeaseLost)], "after {polls} polls");
        }
        // Whatever of the dropped call comes late finds nothing that runs.
        for job in &running {
            queue.cancel(job.spec.id).await.expect("it exists");
        }
        if ended {
            return;
        }
    }
    panic!("it has no end");
}
