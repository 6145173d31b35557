//! Looking at jobs.

use super::steps::*;
use crate::model::{Job, JobId, JobStatus, Retry};
use crate::port::queue::{JobCursor, JobFilter, MAX_PAGE};

/// Walks all pages of `size`; the ids in the order shown.
async fn walk(queue: &Subject, filter: &JobFilter, size: u32) -> Vec<JobId> {
    let (mut shown, mut after) = (Vec::new(), None);
    loop {
        let page = queue.list(filter, after, size).await.expect("a page");
        assert!(page.jobs.len() <= size as usize);
        shown.extend(page.jobs.iter().map(|job| job.spec.id));
        let Some(next) = page.next else { return shown };
        let last = page.jobs.last().expect("a page with a next one is not empty");
        assert_eq!(next, JobCursor { created_at: last.created_at, job: last.spec.id });
        after = Some(next);
    }
}

/// Batches that share a `created_at`, one after the other; the ids as a list shows them.
async fn fill(queue: &Subject, batches: usize, size: usize) -> Vec<JobId> {
    let mut wanted = Vec::new();
    for _ in 0..batches {
        let ids = rising_ids(size);
        enqueue(queue, &ids.iter().map(|id| job().with_id(*id)).collect::<Vec<_>>()).await;
        wanted.extend(ids);
        pass(MOMENT).await;
    }
    wanted.reverse();
    wanted
}

/// An empty queue has one empty page.
pub async fn an_empty_queue_has_one_empty_page(queue: Subject) {
    let page = queue.list(&JobFilter::default(), None, 10).await.expect("a page");
    assert_eq!((page.jobs, page.next), (vec![], None));
}

/// Newest first, then the greatest id; each job once, whatever the size of the page; the last page says that it is the last.
pub async fn pages_show_each_job_once_newest_first(queue: Subject) {
    let wanted = fill(&queue, 3, 4).await;
    for size in [1, 3, 4, 5, 6, 12, 13, MAX_PAGE] {
        assert_eq!(walk(&queue, &JobFilter::default(), size).await, wanted, "pages of {size}");
    }
    let jobs = queue.list(&JobFilter::default(), None, 2).await.expect("a page").jobs;
    assert_eq!(jobs[0], get(&queue, wanted[0]).await, "the jobs are shown whole");
}

/// Jobs that come, change and go during a walk disturb it for no other job.
pub async fn a_walk_is_stable_while_the_queue_changes(queue: Subject) {
    let wanted = fill(&queue, 3, 3).await;
    let (mut shown, mut after) = (Vec::new(), None);
    for round in 0.. {
        let page = queue.list(&JobFilter::default(), after, 2).await.expect("a page");
        shown.extend(page.jobs.iter().map(|job| job.spec.id));
        match round {
            0 => drop(fill(&queue, 1, 2).await),
            1 => drop(claim(&queue, 3).await),
            2 => {
                // The job that the cursor names goes away.
                let last = *shown.last().expect("jobs were shown");
                queue.cancel(last).await.expect("the job exists");
                assert_eq!(queue.prune(std::time::Duration::ZERO, 1).await.expect("a prune"), 1);
            }
            _ => {}
        }
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(shown, wanted);
}

/// Each filter alone and all together.
pub async fn filters_narrow_the_list(queue: Subject) {
    let all = |jobs: &[&Job]| {
        let mut jobs = jobs.to_vec();
        jobs.sort_by_key(|job| std::cmp::Reverse((job.created_at, job.spec.id)));
        jobs.iter().map(|job| job.spec.id).collect::<Vec<_>>()
    };
    let succeeded = start(&queue, &job()).await;
    let succeeded = complete(&queue, &lease(&succeeded), &success(succeeded.spec.id)).await;
    pass(MOMENT).await;
    let mut spec = job();
    spec.service = "api".parse().expect("a name");
    let failed = start(&queue, &spec).await;
    let failed = complete(&queue, &lease(&failed), &failure(Retry::Never)).await;
    let running = start(&queue, &job()).await;
    let mut spec = job();
    spec.commit = "fedcba9".parse().expect("a commit");
    let queued = get(&queue, add(&queue, &spec).await).await;

    let filter = JobFilter::default;
    let cases = [
        (filter(), all(&[&succeeded, &failed, &running, &queued])),
        (JobFilter { statuses: vec![JobStatus::Running], ..filter() }, all(&[&running])),
        (JobFilter { statuses: vec![JobStatus::Queued, JobStatus::Failed], ..filter() }, all(&[&queued, &failed])),
        (JobFilter { statuses: vec![JobStatus::Cancelled], ..filter() }, vec![]),
        (JobFilter { service: Some(failed.spec.service.clone()), ..filter() }, all(&[&failed])),
        (JobFilter { commit: Some(queued.spec.commit.clone()), ..filter() }, all(&[&queued])),
        (JobFilter { finished_since: failed.finished_at, ..filter() }, all(&[&failed])),
        (JobFilter { finished_since: succeeded.finished_at, ..filter() }, all(&[&succeeded, &failed])),
        (
            JobFilter {
                statuses: vec![JobStatus::Succeeded, JobStatus::Failed],
                service: Some(succeeded.spec.service.clone()),
                commit: Some(succeeded.spec.commit.clone()),
                finished_since: succeeded.finished_at,
            },
            all(&[&succeeded]),
        ),
    ];
    for (filter, wanted) in cases {
        for size in [1, 10] {
            assert_eq!(walk(&queue, &filter, size).await, wanted, "{filter:?}");
        }
    }
    // Each status of each service: a backend may have a way of its own for each.
    let jobs = [&succeeded, &failed, &running, &queued];
    for service in [&succeeded.spec.service, &failed.spec.service] {
        for status in JobStatus::ALL {
            let filter = JobFilter { statuses: vec![status], service: Some(service.clone()), ..filter() };
            let wanted = jobs.into_iter().filter(|job| job.spec.service == *service && job.status == status);
            assert_eq!(walk(&queue, &filter, 1).await, all(&wanted.collect::<Vec<_>>()), "{filter:?}");
        }
    }
}

/// The bounds of a page.
pub async fn a_page_out_of_bounds_is_refused(queue: Subject) {
    for limit in [0, MAX_PAGE + 1] {
        assert_invalid(queue.list(&JobFilter::default(), None, limit).await);
    }
}

/// What does not exist is `None` and has no history.
pub async fn an_unknown_job_is_none(queue: Subject) {
    let id = JobId::new();
    assert_eq!(queue.get(id).await.expect("a read"), None);
    assert!(history(&queue, id).await.is_empty());
}
