//! pgmq: its own client, and its schema as that brings it along. What is done is archived, so that the row is kept.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Instant;

use pgmq::PGMQueueExt;
use serde_json::{Value, json};
use tokio::task::JoinSet;

const QUEUE: &str = "noop";
/// Seconds after which a message is given to another reader.
const VISIBILITY: i32 = 600;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

struct Peer {
    queue: PGMQueueExt,
    jobs: i64,
    workers: i64,
    /// Messages of a call.
    batch: i64,
}

impl Peer {
    /// Runs one task a worker; gives how many jobs a second that made.
    async fn per_second<F>(self: &Arc<Self>, work: impl Fn(Arc<Self>, Arc<AtomicI64>) -> F) -> Result<f64>
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        let left = Arc::new(AtomicI64::new(self.jobs));
        let start = Instant::now();
        let mut workers = JoinSet::new();
        for _ in 0..self.workers {
            workers.spawn(work(Arc::clone(self), Arc::clone(&left)));
        }
        while let Some(ended) = workers.join_next().await {
            ended??;
        }
        Ok(self.jobs as f64 / start.elapsed().as_secs_f64())
    }

    async fn enqueue(self: Arc<Self>, left: Arc<AtomicI64>) -> Result<()> {
        loop {
            let many = left.fetch_sub(self.batch, Ordering::Relaxed).min(self.batch);
            if many <= 0 {
                return Ok(());
            }
            if self.batch == 1 {
                self.queue.send(QUEUE, &json!({})).await?;
            } else {
                self.queue.send_batch(QUEUE, &vec![json!({}); many as usize]).await?;
            }
        }
    }

    async fn drain(self: Arc<Self>, left: Arc<AtomicI64>) -> Result<()> {
        while left.load(Ordering::Relaxed) > 0 {
            if self.batch == 1 {
                if let Some(message) = self.queue.read::<Value>(QUEUE, VISIBILITY).await? {
                    self.queue.archive(QUEUE, message.msg_id).await?;
                    left.fetch_sub(1, Ordering::Relaxed);
                }
            } else {
                let messages = self.queue.read_batch::<Value>(QUEUE, VISIBILITY, self.batch as i32).await?;
                let ids: Vec<i64> = messages.iter().map(|message| message.msg_id).collect();
                left.fetch_sub(self.queue.archive_batch(QUEUE, &ids).await? as i64, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let number = |name: &str| -> Result<i64> { Ok(std::env::var(name)?.parse()?) };
    let workers = number("WORKERS")?;
    let queue = PGMQueueExt::new(std::env::var("DATABASE_URL")?, workers as u32).await?;
    queue.install_sql_from_embedded().await?;
    queue.create(QUEUE).await?;
    let batch = if std::env::var("MODE")? == "batch" { number("BATCH")? } else { 1 };
    let peer = Arc::new(Peer { queue, jobs: number("JOBS")?, workers, batch });
    let enqueue_per_s = peer.per_second(Peer::enqueue).await?;
    let drain_per_s = peer.per_second(Peer::drain).await?;
    let version = peer.queue.installed_version().await?.map(|version| version.to_string());
    println!("{}", json!({"version": version, "enqueue_per_s": enqueue_per_s, "drain_per_s": drain_per_s}));
    Ok(())
}
