//! Ending many attempts in one call.

use std::time::Duration;

use super::steps::*;
use crate::model::{Completion, Epoch, Job, JobId, JobStatus, Lease, Retry};
use crate::port::queue::{AttemptEnd, Error, MAX_BATCH};

type Answers = Vec<Result<JobStatus, Error>>;

async fn start_many(queue: &Subject, n: usize) -> Vec<Job> {
    let jobs: Vec<_> = (0..n).map(|_| job()).collect();
    enqueue(queue, &jobs).await;
    claim(queue, n).await
}

fn end(job: &Job, completion: Completion) -> AttemptEnd {
    AttemptEnd { lease: lease(job), completion }
}

fn succeed(job: &Job) -> AttemptEnd {
    end(job, success(job.spec.id))
}

async fn complete_batch(queue: &Subject, ends: &[AttemptEnd]) -> Answers {
    let answers = queue.complete_batch(ends).await.expect("the batch is within all bounds");
    assert_eq!(answers.len(), ends.len(), "an answer for each end");
    answers
}

/// What became of the jobs of a batch of which nothing was refused.
fn all(answers: Answers) -> Vec<JobStatus> {
    answers.into_iter().map(|answer| answer.expect("the lease is the current one")).collect()
}

/// Each end has its own effect and its own answer, in the order of the ends.
pub async fn each_attempt_ends_by_its_own_word(queue: Subject) {
    let running = start_many(&queue, 4).await;
    queue.cancel(running[3].spec.id).await.expect("the job exists");
    let ends = [
        succeed(&running[2]),
        end(&running[0], failure(Retry::Never)),
        end(&running[1], failure(Retry::After(HOUR))),
        end(&running[3], Completion::Cancelled),
    ];
    let answers = all(complete_batch(&queue, &ends).await);
    let wanted = [JobStatus::Succeeded, JobStatus::Failed, JobStatus::Queued, JobStatus::Cancelled];
    for ((answer, end), status) in answers.iter().zip(&ends).zip(wanted) {
        assert_eq!(*answer, status);
        assert_status(&queue, end.lease.job, status).await;
        let (outcome, _) = last_end(&queue, end.lease.job).await;
        assert_eq!(outcome, crate::model::AttemptOutcome::Completed { completion: end.completion.clone() });
    }
    assert!(claim_ids(&queue).await.is_empty());
}

/// A zombie among the living, a job that does not exist, a word that nobody may say: each is refused alone.
pub async fn a_refused_end_leaves_the_others_alone(queue: Subject) {
    let zombies = start_many(&queue, 2).await;
    rescue(&queue, &rescue_all()).await;
    let running = claim(&queue, 2).await;
    let others = start_many(&queue, 3).await;
    let unknown = AttemptEnd { lease: Lease { job: JobId::new(), ..lease(&others[0]) }, ..succeed(&others[0]) };
    let forged = AttemptEnd { lease: Lease { epoch: Epoch::new(7), ..lease(&others[1]) }, ..succeed(&others[1]) };
    let ends = [
        succeed(&others[0]),
        succeed(&zombies[0]),
        unknown,
        forged,
        end(&zombies[1], failure(Retry::Never)),
        end(&others[2], Completion::Cancelled),
        end(&others[1], failure(Retry::Never)),
    ];
    let mut answers = complete_batch(&queue, &ends).await.into_iter();
    let mut next = || answers.next().expect("an answer for each end");
    assert_eq!(next().expect("the lease is the current one"), JobStatus::Succeeded);
    assert_lost(next(), &ends[1].lease);
    assert_not_found(next(), ends[2].lease.job);
    assert_lost(next(), &ends[3].lease);
    assert_lost(next(), &ends[4].lease);
    assert_invalid(next());
    assert_eq!(next().expect("the lease is the current one"), JobStatus::Failed);
    for job in running.iter().chain(&others[2..]) {
        assert_eq!(get(&queue, job.spec.id).await, *job, "who was not ended by the holder of its lease runs on");
    }
}

/// A lost reply: the same batch again, and parts of it, give the same answers and change nothing.
pub async fn repeating_changes_nothing(queue: Subject) {
    let running = start_many(&queue, 3).await;
    let ends =
        [succeed(&running[0]), end(&running[1], failure(Retry::After(HOUR))), end(&running[2], failure(Retry::Never))];
    // The reply to one of them alone had been lost before.
    let alone = complete(&queue, &ends[0].lease, &ends[0].completion).await;
    let first = all(complete_batch(&queue, &ends).await);
    assert_eq!(first, [alone.status, JobStatus::Queued, JobStatus::Failed]);
    let mut jobs = Vec::new();
    for end in &ends {
        jobs.push(get(&queue, end.lease.job).await);
    }
    assert_eq!(jobs[0], alone);
    pass(Duration::from_millis(2)).await;
    assert_eq!(all(complete_batch(&queue, &ends).await), first);
    assert_eq!(all(complete_batch(&queue, &ends[1..2]).await), first[1..2]);
    for (end, job) in ends.iter().zip(&jobs) {
        assert_eq!(get(&queue, end.lease.job).await, *job);
        assert_eq!(history(&queue, end.lease.job).await.len(), 1);
        let other = AttemptEnd { completion: failure(Retry::After(Duration::ZERO)), ..end.clone() };
        assert_lost(complete_batch(&queue, &[other]).await.remove(0), &end.lease);
    }
}

/// Two ends of one lease: the second is a repeat, or comes too late.
pub async fn a_lease_twice_in_a_batch_ends_once(queue: Subject) {
    let running = start_many(&queue, 3).await;
    let (same, other) = (succeed(&running[0]), succeed(&running[1]));
    let retry = end(&running[2], failure(Retry::After(Duration::ZERO)));
    let ends = [
        same.clone(),
        other.clone(),
        same,
        end(&running[1], failure(Retry::Never)),
        retry.clone(),
        succeed(&running[2]),
        retry,
    ];
    let mut answers = complete_batch(&queue, &ends).await;
    assert_lost(answers.remove(5), &ends[5].lease);
    assert_lost(answers.remove(3), &ends[3].lease);
    let (succeeded, queued) = (JobStatus::Succeeded, JobStatus::Queued);
    assert_eq!(all(answers), [succeeded, succeeded, succeeded, queued, queued]);
    for job in &running {
        assert_eq!(history(&queue, job.spec.id).await.len(), 1);
    }
}

/// Nothing is nothing, and too much is refused as a whole.
pub async fn a_batch_has_a_bound(queue: Subject) {
    assert!(complete_batch(&queue, &[]).await.is_empty());
    let running = start(&queue, &job()).await;
    assert_invalid(queue.complete_batch(&vec![succeed(&running); MAX_BATCH + 1]).await);
    assert_eq!(get(&queue, running.spec.id).await, running);
    let answers = all(complete_batch(&queue, &vec![succeed(&running); MAX_BATCH]).await);
    assert!(answers.iter().all(|status| *status == JobStatus::Succeeded));
}

/// Batches that name the same attempts in different orders, while a reaper takes some: each attempt ends once, and all are told the same.
pub async fn batches_at_once_end_each_attempt_once(queue: Subject) {
    for round in 0..5_u64 {
        let running = start_many(&queue, 12).await;
        let mut callers = tokio::task::JoinSet::new();
        for caller in 0..4 {
            let (queue, mut ends) = (queue.clone(), running.iter().map(succeed).collect::<Vec<_>>());
            fastrand::Rng::with_seed(round * 10 + caller).shuffle(&mut ends);
            callers.spawn(async move {
                let answers = complete_batch(&queue, &ends).await;
                ends.into_iter().map(|end| end.lease.job).zip(answers).collect::<Vec<_>>()
            });
        }
        let reaper = queue.clone();
        let rescued = tokio::spawn(async move { rescue(&reaper, &rescue_all()).await }).await.expect("it ends");
        for (id, answer) in callers.join_all().await.into_iter().flatten() {
            let was_rescued = rescued.iter().any(|rescued| rescued.lease.job == id);
            assert_eq!(answer.is_err(), was_rescued, "round {round}: {answer:?}");
        }
        for job in &running {
            assert_eq!(history(&queue, job.spec.id).await.len(), 1, "round {round}");
        }
        // What was rescued is ready again.
        let again: Vec<_> = claim(&queue, MAX_BATCH).await.iter().map(succeed).collect();
        assert_eq!(all(complete_batch(&queue, &again).await).len(), rescued.len());
    }
}
