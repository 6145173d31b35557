//! Asking for the end of a job.

use super::steps::*;
use crate::model::{JobId, JobStatus, Retry};

/// A queued job is cancelled at once and never handed out.
pub async fn a_queued_job_is_cancelled_at_once(queue: Subject) {
    let id = add(&queue, &job()).await;
    let answer = queue.cancel(id).await.expect("the job exists");
    let job = assert_status(&queue, id, JobStatus::Cancelled).await;
    assert_eq!(answer, job);
    assert!(job.cancel_requested);
    assert!(claim_ids(&queue).await.is_empty());
    assert!(history(&queue, id).await.is_empty());
}

/// A job that waits for a retry is queued too.
pub async fn a_waiting_retry_is_cancelled_at_once(queue: Subject) {
    let running = start(&queue, &job()).await;
    complete(&queue, &lease(&running), &failure(Retry::After(HOUR))).await;
    queue.cancel(running.spec.id).await.expect("the job exists");
    assert_status(&queue, running.spec.id, JobStatus::Cancelled).await;
}

/// A running job goes on until its worker stops; its lease holds.
pub async fn a_running_job_is_only_marked(queue: Subject) {
    let running = start(&queue, &job()).await;
    let answer = queue.cancel(running.spec.id).await.expect("the job exists");
    let marked = assert_status(&queue, running.spec.id, JobStatus::Running).await;
    assert_eq!(answer, marked);
    assert!(marked.cancel_requested);
    assert_eq!(marked.running, running.running);
}

/// Repeating it changes nothing, at any stage.
pub async fn repeating_changes_nothing(queue: Subject) {
    let running = start(&queue, &job()).await;
    let queued = add(&queue, &job()).await;
    for id in [queued, running.spec.id] {
        let first = queue.cancel(id).await.expect("the job exists");
        pass(MOMENT).await;
        assert_eq!(queue.cancel(id).await.expect("the job exists"), first);
        assert_eq!(get(&queue, id).await, first);
    }
}

/// A finished job stays as it is.
pub async fn a_finished_job_stays_as_it_is(queue: Subject) {
    for completion in [success as fn(JobId) -> _, |_| failure(Retry::Never)] {
        let running = start(&queue, &job()).await;
        let finished = complete(&queue, &lease(&running), &completion(running.spec.id)).await;
        assert_eq!(queue.cancel(running.spec.id).await.expect("the job exists"), finished);
        assert_eq!(get(&queue, running.spec.id).await, finished);
    }
}

/// A job that does not exist.
pub async fn an_unknown_job_is_not_found(queue: Subject) {
    let id = JobId::new();
    assert_not_found(queue.cancel(id).await, id);
}
