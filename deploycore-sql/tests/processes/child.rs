//! One process of the test: a producer or a worker, told by its environment.

use std::fmt::Display;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use deploycore::model::{
    ArtifactName, ArtifactRef, ClaimId, Completion, ConcurrencyKey, Digest, Epoch, Failure, FailureKind, Job, JobId,
    Lease, NewJob, Retry, Timings,
};
use deploycore::port::queue::{Beat, ClaimRequest, Error};
use deploycore::port::{JobQueue, JobQueueExt, chain};
use deploycore_sql::Sqlite;

pub(crate) const URL: &str = "DEPLOYCORE_SQL_TEST_URL";
pub(crate) const ROLE: &str = "DEPLOYCORE_SQL_TEST_ROLE";
pub(crate) const KEY: &str = "few-at-once";
pub(crate) const LIMIT: NonZeroU32 = NonZeroU32::new(2).unwrap();

/// Jobs of one producer, enqueued three at a time.
const JOBS: usize = 60;
/// Calls whose reply was an error that may pass are made again so often.
const TRIES: usize = 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Producer,
    Worker,
    /// Claims, and goes on only when it is told to: a worker that was stopped for longer than its lease.
    Sleeper,
}

impl Role {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Producer => "producer",
            Self::Worker => "worker",
            Self::Sleeper => "sleeper",
        }
    }
}

pub(crate) fn worker_name(number: impl Display) -> String {
    format!("process-{number}")
}

/// What a process says once a call was acknowledged.
#[derive(Debug)]
pub(crate) enum Line {
    Enqueued(JobId),
    Claimed,
    GaveBack,
    Succeeded(JobId, Epoch),
    Refused,
    Idle,
    Failed(String),
}

impl Line {
    fn say(&self) {
        // A line of its own: the test runner may have begun one.
        match self {
            Self::Enqueued(job) => println!("\n#enqueued {job}"),
            Self::Claimed => println!("\n#claimed"),
            Self::GaveBack => println!("\n#gave-back"),
            Self::Succeeded(job, epoch) => println!("\n#succeeded {job} {epoch}"),
            Self::Refused => println!("\n#refused"),
            Self::Idle => println!("\n#idle"),
            Self::Failed(why) => println!("\n#failed {why}"),
        }
    }

    /// `None` for what the test runner says.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let text = text.strip_prefix('#')?;
        let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
        Some(match word {
            "enqueued" => Self::Enqueued(rest.parse().unwrap()),
            "claimed" => Self::Claimed,
            "gave-back" => Self::GaveBack,
            "succeeded" => {
                let (job, epoch) = rest.split_once(' ').unwrap();
                Self::Succeeded(job.parse().unwrap(), Epoch::new(epoch.parse().unwrap()))
            }
            "refused" => Self::Refused,
            "idle" => Self::Idle,
            _ => Self::Failed(rest.to_owned()),
        })
    }
}

/// The queue at a URL, whatever the database.
pub(crate) async fn open(url: &str) -> Result<Arc<dyn JobQueue>, String> {
    #[cfg(feature = "postgres")]
    if url.starts_with("postgres://") {
        let opened = deploycore_sql::Postgres::open(url).await;
        return opened.map(|postgres| postgres.queue() as Arc<dyn JobQueue>).map_err(|error| chain(&error));
    }
    let opened = Sqlite::open(url).await;
    opened.map(|sqlite| sqlite.queue() as Arc<dyn JobQueue>).map_err(|error| chain(&error))
}

pub(crate) async fn run() {
    let url = std::env::var(URL).unwrap();
    let role = std::env::var(ROLE).unwrap();
    let queue = match open(&url).await {
        Ok(queue) => queue,
        Err(why) => return Line::Failed(why).say(),
    };
    let outcome = match role.split_once(':').unwrap() {
        ("producer", _) => produce(&*queue).await,
        ("sleeper", number) => sleep_over_the_lease(&*queue, &worker_name(number)).await,
        (_, number) => work(&*queue, &worker_name(number)).await,
    };
    if let Err(error) = outcome {
        Line::Failed(chain(&error)).say();
    }
}

async fn produce(queue: &dyn JobQueue) -> Result<(), Error> {
    for turn in 0..JOBS / 3 {
        let jobs = [job(), job(), keyed(job(), turn)];
        let answers = persistently(async || queue.enqueue(&jobs).await).await?;
        // Repeated as if the reply had been lost.
        let again = persistently(async || queue.enqueue(&jobs).await).await?;
        assert_eq!(
            answers.iter().map(|a| a.job()).collect::<Vec<_>>(),
            again.iter().map(|a| a.job()).collect::<Vec<_>>()
        );
        for job in &jobs {
            Line::Enqueued(job.id).say();
        }
    }
    Ok(())
}

fn job() -> NewJob {
    let many = NonZeroU32::new(100).unwrap();
    NewJob::new("web".parse().unwrap(), "abcdef0".parse().unwrap()).with_max_attempts(many).with_max_releases(1_000)
}

fn keyed(job: NewJob, turn: usize) -> NewJob {
    job.with_concurrency_key(ConcurrencyKey::new(KEY).unwrap()).with_priority((turn % 3) as i16)
}

/// Until it is killed, or its parent is gone.
async fn work(queue: &dyn JobQueue, name: &str) -> Result<(), Error> {
    for turn in 0_usize.. {
        let request = ClaimRequest { claim: ClaimId::new(), worker: name.parse().unwrap(), limit: 3 };
        let jobs = persistently(async || queue.claim(&request).await).await?;
        if jobs.is_empty() {
            Line::Idle.say();
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        }
        // Repeated as if the reply had been lost: the same jobs, less those rescued meanwhile.
        let again = persistently(async || queue.claim(&request).await).await?;
        assert!(again.iter().all(|job| jobs.iter().any(|first| first.spec == job.spec && first.epoch == job.epoch)));
        Line::Claimed.say();
        for (index, job) in jobs.iter().enumerate() {
            build(queue, job, turn + index).await?;
        }
    }
    Ok(())
}

async fn sleep_over_the_lease(queue: &dyn JobQueue, name: &str) -> Result<(), Error> {
    let jobs = loop {
        let request = ClaimRequest { claim: ClaimId::new(), worker: name.parse().unwrap(), limit: 3 };
        let jobs = persistently(async || queue.claim(&request).await).await?;
        if !jobs.is_empty() {
            break jobs;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    Line::Claimed.say();
    std::io::stdin().read_line(&mut String::new()).unwrap();
    for job in &jobs {
        let lease = job.running.as_ref().expect("a claimed job runs").lease;
        // What it builds is of its own epoch: nobody else completes the job with it.
        let succeeded = success(job, &lease);
        match persistently(async || queue.complete(&lease, &succeeded).await).await {
            Ok(_) => Line::Succeeded(lease.job, lease.epoch).say(),
            Err(Error::LeaseLost { .. }) => Line::Refused.say(),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

async fn build(queue: &dyn JobQueue, job: &Job, turn: usize) -> Result<(), Error> {
    let lease = job.running.as_ref().expect("a claimed job runs").lease;
    if persistently(async || queue.heartbeat_one(&lease).await).await? == Beat::Lost {
        Line::Refused.say();
        return Ok(());
    }
    let moment = Duration::from_millis(1);
    let outcome = match turn % 7 {
        1 => persistently(async || queue.release(&lease, "draining", moment).await).await.map(|_| Line::GaveBack),
        2 => {
            let failure =
                Failure::new(FailureKind::Infrastructure, "the store is away").with_retry(Retry::After(moment));
            let failed = Completion::Failed { failure };
            persistently(async || queue.complete(&lease, &failed).await).await.map(|_| Line::GaveBack)
        }
        _ => {
            let succeeded = success(job, &lease);
            persistently(async || queue.complete(&lease, &succeeded).await)
                .await
                .map(|_| Line::Succeeded(lease.job, lease.epoch))
        }
    };
    match outcome {
        Ok(line) => line.say(),
        Err(Error::LeaseLost { .. }) => Line::Refused.say(),
        Err(error) => return Err(error),
    }
    Ok(())
}

fn success(job: &Job, lease: &Lease) -> Completion {
    let bytes = format!("{}/{}", lease.job, lease.epoch);
    let name = ArtifactName::for_job(&job.spec.service, lease.job);
    let artifact = ArtifactRef { name, digest: Digest::of(bytes.as_bytes()), size: bytes.len() as u64 };
    Completion::Succeeded { artifact, log: None, timings: Timings::default() }
}

/// Makes a call again while its error may pass.
async fn persistently<T>(call: impl AsyncFn() -> Result<T, Error>) -> Result<T, Error> {
    for _ in 1..TRIES {
        match call().await {
            Err(error) if error.is_retryable() => {}
            other => return other,
        }
    }
    call().await
}
