//! The people: they enqueue jobs, cancel some, deploy and roll back, each call until it is answered.

use std::future::Future;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use deploycore::model::{JobId, NewJob};
use deploycore::port::JobQueue;
use tokio::time::sleep;

use super::settings::{Settings, stream};

/// The jobs of a run, with what people do to them.
#[derive(Debug, Clone)]
pub struct Order {
    /// When, after the start.
    pub at: Duration,
    /// What is enqueued.
    pub job: NewJob,
    /// Whether it is cancelled some time later.
    pub cancel_after: Option<Duration>,
}

/// What is ordered in a run.
pub fn orders(settings: &Settings) -> Vec<Order> {
    let mut random = stream(settings.seed, "orders");
    let order = |number: usize| {
        let service = format!("s{}", random.usize(1..=settings.services)).parse().expect("a valid name");
        let commit = format!("{:016x}{number:02x}", random.u64(..)).parse().expect("a valid commit");
        let id = uuid::Builder::from_random_bytes(random.u128(..).to_be_bytes()).into_uuid();
        let mut job = NewJob::new(service, commit)
            .with_id(JobId::from(id))
            .with_priority(random.i16(-1..=1))
            .with_build_timeout(Duration::from_secs(random.u64(60..600)));
        job.max_attempts = NonZeroU32::new(random.u32(1..=4)).expect("at least one");
        if random.u32(0..3) == 0 {
            job = job.with_concurrency_key("shared".parse().expect("a valid key"));
        }
        let cancel = random.u32(0..8) == 0;
        let at = settings.storm.mul_f64(0.6 * random.f64());
        Order { at, job, cancel_after: cancel.then(|| Duration::from_secs(random.u64(1..200))) }
    };
    let mut orders: Vec<_> = (0..settings.jobs).map(order).collect();
    orders.sort_by_key(|order| order.at);
    orders
}

/// Enqueues what is due, and cancels what is to be cancelled. A new life begins at the beginning: an enqueue may be repeated.
pub async fn enqueue(orders: Vec<Order>, elapsed: impl Fn() -> Duration, queue: Arc<dyn JobQueue>) {
    for order in orders {
        sleep(order.at.saturating_sub(elapsed())).await;
        insist(|| queue.enqueue(std::slice::from_ref(&order.job))).await;
        if let Some(pause) = order.cancel_after {
            sleep(pause).await;
            insist(|| queue.cancel(order.job.id)).await;
        }
    }
}

/// Calls until it is answered.
pub async fn insist<T, E, F: Future<Output = Result<T, E>>>(call: impl Fn() -> F) -> T {
    loop {
        match call().await {
            Ok(answer) => return answer,
            Err(_) => sleep(Duration::from_secs(3)).await,
        }
    }
}
