//! Calls whose caller goes away half-way, and the same calls again.
//!
//! Each call is polled once and dropped, then twice and dropped, and so on until it comes to its end.

use std::time::Duration;

use super::super::case::cut;
use super::steps::*;
use crate::model::{AttemptOutcome, ClaimId, JobStatus, NewJob, Retry};
use crate::port::queue::{AttemptEnd, Enqueued, JobFilter, MAX_PAGE};

const JOBS: usize = 7;
/// For so many moments a server may hold what a caller that has gone left locked.
const ROUNDS: usize = 500;

fn jobs() -> Vec<NewJob> {
    (0..JOBS).map(|_| job()).collect()
}

/// All of a batch are there, or none.
pub async fn an_enqueue_adds_all_or_none(queue: Subject) {
    for polls in 1.. {
        let specs = jobs();
        let ended = cut(polls, queue.enqueue(&specs)).await.is_some();
        let shown = queue.list(&JobFilter::default(), None, MAX_PAGE).await.expect("a page").jobs.len();
        assert!(shown.is_multiple_of(JOBS), "after {polls} polls: {shown} jobs");
        let again = enqueue(&queue, &specs).await;
        let repeated = again.iter().filter(|answer| matches!(answer, Enqueued::Repeated { .. })).count();
        assert!(repeated == JOBS || repeated == 0 && !ended, "after {polls} polls: {again:?}");
        // Few stay: the list is one page.
        assert_eq!(claim(&queue, JOBS).await.len(), JOBS);
        if ended {
            return;
        }
    }
}

/// What a claim took nobody heard of: the same claim again gets it, whole. If it took none, all are left to others.
pub async fn a_claim_takes_all_or_none(queue: Subject) {
    for polls in 1.. {
        enqueue(&queue, &jobs()).await;
        let id = ClaimId::new();
        let ended = cut(polls, queue.claim(&request(id, JOBS - 2))).await.is_some();
        let mut claimed = claim_as(&queue, id, JOBS - 2).await;
        assert!(claimed.len() == JOBS - 2 || !ended, "after {polls} polls");
        // A server may not know yet that the caller has gone: what was about to be taken is locked until it does.
        for _ in 0..ROUNDS {
            claimed.extend(claim(&queue, JOBS).await);
            if claimed.len() >= JOBS {
                break;
            }
            pass(MOMENT).await;
        }
        assert_eq!(claimed.len(), JOBS, "after {polls} polls: a lease that nobody knows");
        for job in &claimed {
            assert_eq!(job.epoch.get(), 1, "after {polls} polls");
            complete(&queue, &lease(job), &success(job.spec.id)).await;
        }
        if ended {
            return;
        }
    }
}

/// A success, a failure to retry and a release.
pub async fn an_end_counts_once(queue: Subject) {
    for polls in 1.. {
        let running = start(&queue, &job()).await;
        let (lease, retry) = (lease(&running), failure(Retry::After(Duration::ZERO)));
        let mut ended = cut(polls, queue.complete(&lease, &retry)).await.is_some();
        assert_eq!(complete(&queue, &lease, &retry).await.status, JobStatus::Queued, "after {polls} polls");

        let lease = self::lease(&claim_one(&queue).await);
        ended &= cut(polls, queue.release(&lease, "drain", Duration::ZERO)).await.is_some();
        queue.release(&lease, "drain", Duration::ZERO).await.expect("the same word again");

        let lease = self::lease(&claim_one(&queue).await);
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
}

/// Each end of a batch is for itself, and counts once.
pub async fn the_ends_of_a_batch_count_once(queue: Subject) {
    for polls in 1.. {
        enqueue(&queue, &jobs()).await;
        let succeed = |job: &crate::model::Job| AttemptEnd { lease: lease(job), completion: success(job.spec.id) };
        let ends: Vec<_> = claim(&queue, JOBS).await.iter().map(succeed).collect();
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
}

/// Whom a reaper took back and told nobody of: the next goes on with the others.
pub async fn a_rescue_takes_each_job_back_once(queue: Subject) {
    for polls in 1.. {
        enqueue(&queue, &jobs()).await;
        let running = claim(&queue, JOBS).await;
        let ended = cut(polls, queue.rescue(&rescue_all())).await.is_some();
        for _ in 0..ROUNDS {
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
        for job in claim(&queue, JOBS).await {
            complete(&queue, &lease(&job), &success(job.spec.id)).await;
        }
        if ended {
            return;
        }
    }
}
