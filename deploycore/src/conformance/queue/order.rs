//! Which job goes first among those of one priority: the oldest, or services take turns.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use fastrand::Rng;

use super::steps::*;
use crate::model::{JobId, NewJob, OlderJobs, Retry, ServiceName, later};
use crate::port::queue::{Enqueued, Order};

/// A burst, many times what others wait for.
const BURST: usize = 60;
const OTHERS: [&str; 3] = ["api", "auth", "billing"];

fn job_of(service: &str) -> NewJob {
    NewJob::new(name(service), "abcdef0123".parse().expect("a commit"))
}

fn name(service: &str) -> ServiceName {
    service.parse().expect("a name")
}

/// Jobs of one service in one call; their ids in the order of the call.
async fn burst(queue: &Subject, service: &str, jobs: usize) -> Vec<JobId> {
    // Ids that fall: turns are those of the call's order.
    let ids = rising_ids(jobs).into_iter().rev();
    let jobs: Vec<_> = ids.map(|id| job_of(service).with_id(id)).collect();
    enqueue(queue, &jobs).await;
    jobs.iter().map(|job| job.id).collect()
}

async fn set(queue: &Subject, order: Order) {
    queue.set_order(order).await.expect("an order is set");
    assert_eq!(queue.stats().await.expect("the counts").order, order);
}

/// Claims one by one, as workers do; the jobs as they were claimed.
async fn claim_services(queue: &Subject, claims: usize) -> Vec<(ServiceName, JobId)> {
    let mut claimed = Vec::new();
    for _ in 0..claims {
        claimed.extend(claim(queue, 1).await.into_iter().map(|job| (job.spec.service, job.spec.id)));
    }
    claimed
}

fn shares(claimed: &[(ServiceName, JobId)]) -> BTreeMap<&str, usize> {
    let mut shares = BTreeMap::new();
    for (service, _) in claimed {
        *shares.entry(service.as_str()).or_default() += 1;
    }
    shares
}

fn ids_of(claimed: &[(ServiceName, JobId)], service: &str) -> Vec<JobId> {
    claimed.iter().filter(|(of, _)| of.as_str() == service).map(|(_, id)| *id).collect()
}

/// Where nobody says otherwise, age alone counts: a burst goes first as a whole.
pub async fn the_oldest_job_goes_first_by_default(queue: Subject) {
    assert_eq!(queue.stats().await.expect("the counts").order, Order::Oldest);
    let mut first = burst(&queue, "web", 20).await;
    first.sort_unstable();
    pass(MOMENT).await;
    let last = add(&queue, &job_of("api")).await;
    let claimed: Vec<_> = claim_services(&queue, 21).await.into_iter().map(|(_, id)| id).collect();
    assert_eq!(claimed, [first, vec![last]].concat(), "by age, and of one age by id");
}

/// Jobs of other services that come after a burst, and in the middle of it, wait for two of its jobs at most, and for each other's.
pub async fn a_burst_of_one_service_holds_up_no_other(queue: Subject) {
    set(&queue, Order::FairShare).await;
    let jobs = burst(&queue, "web", BURST).await;
    pass(MOMENT).await;
    for done in [0, 7] {
        assert_eq!(claim_services(&queue, done).await.len(), done);
        for service in OTHERS {
            add(&queue, &job_of(service)).await;
        }
        let claimed = claim_services(&queue, OTHERS.len() + 2).await;
        for service in OTHERS {
            assert_eq!(ids_of(&claimed, service).len(), 1, "{service} waits behind a burst: {claimed:?}");
        }
    }
    // The burst loses nothing.
    let rest = claim(&queue, BURST).await;
    assert_eq!((rest.len(), rest.last().map(|job| job.spec.id)), (BURST - 7 - 4, jobs.last().copied()));
}

/// Services that all wait get the same, whoever came first and with however many jobs.
pub async fn services_that_wait_take_turns(queue: Subject) {
    set(&queue, Order::FairShare).await;
    burst(&queue, "web", BURST).await;
    for (service, jobs) in OTHERS.into_iter().zip([12, 20, 40]) {
        burst(&queue, service, jobs).await;
    }
    let claimed = claim_services(&queue, 40).await;
    assert_eq!(shares(&claimed), BTreeMap::from([("api", 10), ("auth", 10), ("billing", 10), ("web", 10)]));
    // A large claim takes the same jobs as many small ones.
    let next = claim(&queue, 8).await;
    let next: Vec<_> = next.into_iter().map(|job| (job.spec.service, job.spec.id)).collect();
    assert_eq!(shares(&next), BTreeMap::from([("api", 2), ("auth", 2), ("billing", 2), ("web", 2)]));
    let next = claim_services(&queue, 6).await;
    assert_eq!(shares(&next), BTreeMap::from([("auth", 2), ("billing", 2), ("web", 2)]), "api has no more");
}

/// Whatever comes, from the moment at which a job is the first of its service that waits, two of each other service are claimed before it at most.
pub async fn the_first_of_a_service_waits_for_two_of_each_other(queue: Subject) {
    const SERVICES: [&str; 6] = ["web", "api", "auth", "billing", "mail", "search"];
    set(&queue, Order::FairShare).await;
    let mut random = Rng::with_seed(5);
    let (mut waiting, mut claimed) = ([const { VecDeque::new() }; SERVICES.len()], [0_usize; SERVICES.len()]);
    // How many of each service were claimed when the first job of a service that waits became the first.
    let mut since = [[0; SERVICES.len()]; SERVICES.len()];
    for step in 0..150 {
        let service = random.usize(..SERVICES.len());
        let jobs = if random.u8(..5) == 0 { random.usize(5..40) } else { random.usize(..3) };
        let burst = burst(&queue, SERVICES[service], jobs).await;
        if waiting[service].is_empty() {
            since[service] = claimed;
        }
        waiting[service].extend(burst);
        for job in claim(&queue, random.usize(1..6)).await {
            let service = SERVICES.iter().position(|name| *name == job.spec.service.as_str()).expect("one of them");
            assert_eq!(waiting[service].pop_front(), Some(job.spec.id), "step {step}: a service keeps its order");
            for other in (0..SERVICES.len()).filter(|other| *other != service) {
                let before = claimed[other] - since[service][other];
                assert!(
                    before <= 2,
                    "step {step}: {before} of {} before one of {}",
                    SERVICES[other],
                    SERVICES[service]
                );
            }
            claimed[service] += 1;
            since[service] = claimed;
        }
    }
    assert!(claimed.iter().all(|jobs| *jobs > 20), "the run shows little: {claimed:?}");
}

/// Who had nothing to do for long has no claim to all that went by.
pub async fn an_idle_service_saves_nothing_up(queue: Subject) {
    set(&queue, Order::FairShare).await;
    add(&queue, &job_of("api")).await;
    burst(&queue, "web", BURST).await;
    assert_eq!(claim_services(&queue, 31).await.len(), 31);
    burst(&queue, "api", BURST).await;
    let claimed = claim_services(&queue, 20).await;
    let web = ids_of(&claimed, "web").len();
    assert!((9..=11).contains(&web), "{web} of 20: {claimed:?}");
}

/// The jobs of a service are claimed in the order in which they were enqueued, in one call or many.
pub async fn a_service_keeps_the_order_of_its_jobs(queue: Subject) {
    set(&queue, Order::FairShare).await;
    let (mut web, mut api) = (burst(&queue, "web", 5).await, Vec::new());
    for _ in 0..5 {
        api.push(add(&queue, &job_of("api")).await);
        web.push(add(&queue, &job_of("web")).await);
    }
    web.extend(burst(&queue, "web", 5).await);
    let mut claimed = claim_services(&queue, 7).await;
    claimed.extend(claim(&queue, 20).await.into_iter().map(|job| (job.spec.service, job.spec.id)));
    assert_eq!((ids_of(&claimed, "web"), ids_of(&claimed, "api")), (web, api));
}

/// Services that have one job at a time are claimed by age.
pub async fn one_job_at_a_time_is_in_order_of_age(queue: Subject) {
    set(&queue, Order::FairShare).await;
    burst(&queue, "web", 9).await;
    assert_eq!(claim_services(&queue, 9).await.len(), 9);
    let mut added = Vec::new();
    for service in ["web", "api", "auth"] {
        added.push(add(&queue, &job_of(service)).await);
        pass(MOMENT).await;
    }
    assert_eq!(claim_ids(&queue).await, added);
}

/// However an attempt ends, the job goes where it stood: before what came later, of its service and of others.
pub async fn a_job_that_comes_back_keeps_its_turn(queue: Subject) {
    set(&queue, Order::FairShare).await;
    burst(&queue, "web", BURST).await;
    burst(&queue, "api", BURST).await;
    let mut held = claim(&queue, 6).await;
    assert_eq!(claim_services(&queue, 30).await.len(), 30);
    queue.release(&lease(&held[0]), "drain", Duration::ZERO).await.expect("the lease is current");
    complete(&queue, &lease(&held[1]), &failure(Retry::After(Duration::ZERO))).await;
    let turns: Vec<_> = held.iter().map(|job| job.turn).collect();
    held.truncate(2);
    let back = claim(&queue, 2).await;
    let ids = |jobs: &[crate::model::Job]| jobs.iter().map(|job| job.spec.id).collect::<Vec<_>>();
    assert_eq!(ids(&back), ids(&held));
    assert_eq!(back.iter().map(|job| job.turn).collect::<Vec<_>>(), turns[..2]);
    // All that runs is lost: the oldest turns come first again, services in turn.
    assert_eq!(rescue(&queue, &rescue_all()).await.len(), 36);
    assert_eq!(claim(&queue, 36).await.iter().map(|job| job.turn).collect::<Vec<_>>()[..6], turns);
}

/// A service whose next job is enqueued when the one before has just ended does not go before those that wait.
pub async fn a_job_after_another_waits_its_turn(queue: Subject) {
    set(&queue, Order::FairShare).await;
    add(&queue, &job_of("api")).await;
    burst(&queue, "web", BURST).await;
    let mut claimed = Vec::new();
    for _ in 0..20 {
        let job = claim(&queue, 1).await.remove(0);
        complete(&queue, &lease(&job), &failure(Retry::Never)).await;
        if job.spec.service == name("api") {
            add(&queue, &job_of("api")).await;
        }
        claimed.push((job.spec.service, job.spec.id));
    }
    let web = ids_of(&claimed, "web").len();
    assert!((9..=11).contains(&web), "{web} of 20: {claimed:?}");
}

/// Jobs that become due together are a burst like any other.
pub async fn an_earliest_start_that_passes_takes_a_turn(queue: Subject) {
    set(&queue, Order::FairShare).await;
    let first = add(&queue, &job_of("web")).await;
    let start = later(get(&queue, first).await.created_at, Duration::from_millis(400));
    enqueue(&queue, &(0..BURST).map(|_| job_of("web").with_not_before(start)).collect::<Vec<_>>()).await;
    // What waits for its start is in nobody's way, not of its own service either.
    let second = add(&queue, &job_of("web")).await;
    burst(&queue, "api", 20).await;
    let claimed = claim_services(&queue, 4).await;
    assert_eq!(ids_of(&claimed, "web"), [first, second]);
    for _ in 0..100 {
        if now(&queue).await >= start {
            break;
        }
        pass(MOMENT).await;
    }
    let claimed = claim_services(&queue, 10).await;
    let web = ids_of(&claimed, "web").len();
    assert!((4..=6).contains(&web), "{web} of 10: {claimed:?}");
}

/// The backend's clock, as a job of a service of its own shows it.
async fn now(queue: &Subject) -> crate::model::Timestamp {
    let probe = job_of("probe").with_priority(i16::MIN);
    add(queue, &probe).await;
    let at = get(queue, probe.id).await.created_at;
    queue.cancel(probe.id).await.expect("it is queued");
    at
}

/// What adds nothing takes no turn.
pub async fn what_is_not_added_takes_no_turn(queue: Subject) {
    set(&queue, Order::FairShare).await;
    let known = job_of("web").with_dedup_key(dedup("one"));
    add(&queue, &known).await;
    burst(&queue, "api", 20).await;
    for _ in 0..20 {
        let again = [known.clone(), job_of("web").with_dedup_key(dedup("one"))];
        let answers = enqueue(&queue, &again).await;
        assert_eq!(answers, [Enqueued::Repeated { job: known.id }, Enqueued::Deduplicated { existing: known.id }]);
    }
    let mut batch: Vec<_> = (0..10).map(|_| job_of("web").with_dedup_key(dedup("one"))).collect();
    batch.push(job_of("web"));
    let last = batch[10].id;
    enqueue(&queue, &batch).await;
    let claimed = claim_services(&queue, 5).await;
    assert_eq!(ids_of(&claimed, "web"), [known.id, last], "{claimed:?}");
}

/// Whoever replaces what waits has its turn, however often.
pub async fn a_job_in_the_place_of_others_has_their_turn(queue: Subject) {
    set(&queue, Order::FairShare).await;
    let newest = || job_of("web").with_older_jobs(OlderJobs::CancelQueued);
    add(&queue, &newest()).await;
    burst(&queue, "api", 20).await;
    assert_eq!(claim_services(&queue, 3).await.len(), 3);
    let mut last = add(&queue, &newest()).await;
    for _ in 0..20 {
        last = add(&queue, &newest()).await;
    }
    let claimed = claim_services(&queue, 3).await;
    assert_eq!(ids_of(&claimed, "web"), [last], "{claimed:?}");
}

/// Priority goes before turns, and each priority has turns of its own.
pub async fn each_priority_has_turns_of_its_own(queue: Subject) {
    set(&queue, Order::FairShare).await;
    let jobs: Vec<_> = (0..BURST).map(|_| job_of("web").with_priority(1)).collect();
    enqueue(&queue, &jobs).await;
    burst(&queue, "api", 20).await;
    assert_eq!(shares(&claim_services(&queue, BURST).await), BTreeMap::from([("web", BURST)]));
    add(&queue, &job_of("web")).await;
    let claimed = claim_services(&queue, 3).await;
    assert_eq!(shares(&claimed), BTreeMap::from([("api", 2), ("web", 1)]), "{claimed:?}");
}

/// Within a key too, and a full key hides nobody.
pub async fn jobs_with_a_key_take_turns(queue: Subject) {
    set(&queue, Order::FairShare).await;
    queue.set_concurrency_limit(&key("gpu"), attempts(4)).await.expect("a limit");
    let keyed = |service: &str| job_of(service).with_concurrency_key(key("gpu"));
    enqueue(&queue, &(0..20).map(|_| keyed("web")).collect::<Vec<_>>()).await;
    enqueue(&queue, &(0..2).map(|_| keyed("api")).collect::<Vec<_>>()).await;
    burst(&queue, "auth", 3).await;
    let claimed = claim_services(&queue, 8).await;
    assert_eq!(shares(&claimed), BTreeMap::from([("api", 2), ("auth", 3), ("web", 2)]), "{claimed:?}");
}

/// Both ways: what waits goes before what comes under the new order, and each part in the order that it was enqueued under.
pub async fn another_order_is_for_what_comes_after(queue: Subject) {
    let old = burst(&queue, "web", 5).await;
    set(&queue, Order::FairShare).await;
    set(&queue, Order::FairShare).await;
    let fair = burst(&queue, "web", 2).await;
    let other = burst(&queue, "api", 2).await;
    set(&queue, Order::Oldest).await;
    pass(MOMENT).await;
    let oldest = burst(&queue, "web", 3).await;
    pass(MOMENT).await;
    let last = add(&queue, &job_of("api")).await;
    let sorted = |mut ids: Vec<JobId>| {
        ids.sort_unstable();
        ids
    };
    let claimed = claim_ids(&queue).await;
    assert_eq!(claimed[..5], sorted(old));
    assert_eq!((&claimed[5..7], &claimed[7..9]), (&[fair[0], other[0]][..], &[fair[1], other[1]][..]));
    assert_eq!(claimed[9..12], sorted(oldest));
    assert_eq!(claimed[12..], [last]);
}
