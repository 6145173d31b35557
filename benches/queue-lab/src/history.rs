//! Records of calls: what was asked when, and what was answered when, written down by whoever calls, so that it outlives the caller.
//!
//! A line is written before a call is made and another once its reply is there. Of a caller that is killed between, the call stays without
//! an answer: it may or may not have had its effect.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::num::NonZeroU32;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use deploycore::model::{
    Attempt, ClaimId, Completion, ConcurrencyKey, Job, JobId, JobStatus, Lease, NewJob, WorkerName,
};
use deploycore::port::JobQueue;
use deploycore::port::queue::{
    AttemptEnd, Beat, ClaimRequest, Claiming, Enqueued, Error, Fate, JobCursor, JobFilter, JobPage, Order, QueueStats,
    ReadyHint, RescueRequest, Rescued,
};
use serde::{Deserialize, Serialize};

/// A call, as far as it changes jobs or tells of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Call {
    /// Adds jobs.
    Enqueue(Vec<NewJob>),
    /// Takes jobs.
    Claim(ClaimId, WorkerName),
    /// Beats for leases.
    Heartbeat(Vec<Lease>),
    /// Ends attempts, one or many.
    Complete(Vec<(Lease, Completion)>),
    /// Gives a job back.
    Release(Lease, String),
    /// Takes lost jobs back.
    Rescue,
}

/// The answer to one item of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Word {
    /// It was done, now or before.
    Done,
    /// The lease is lost.
    LeaseLost,
    /// No such job.
    NotFound,
    /// A request that nobody should have made.
    Invalid,
}

/// The answer to a call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// To an enqueue.
    Enqueued(Vec<Enqueued>),
    /// To a claim.
    Claimed(Vec<Lease>),
    /// To a heartbeat: which leases hold.
    Held(Vec<bool>),
    /// To a completion or a release, a word an item.
    Ended(Vec<Word>),
    /// To a rescue: the leases that are void now.
    Rescued(Vec<Lease>),
    /// The backend failed: the call may have had its effect all the same.
    Unknown(String),
}

/// A call with its times, in nanoseconds of the host's monotonic clock, which all its processes share.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Before the call was made.
    pub start: u64,
    /// After the reply was there; `None` if there was none, or none that tells anything.
    pub end: Option<u64>,
    /// What was asked.
    pub call: Call,
    /// What was answered.
    pub reply: Option<Reply>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Asked { id: u64, at: u64, call: Call },
    Answered { id: u64, at: u64, reply: Reply },
}

/// The host's monotonic clock in nanoseconds.
pub fn now() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// A queue that writes down each call to another.
#[derive(Debug)]
pub struct Recorder {
    queue: Arc<dyn JobQueue>,
    file: Mutex<File>,
    next: AtomicU64,
}

impl Recorder {
    /// Records in a new file.
    ///
    /// Errors: as of creating it.
    pub fn new(queue: Arc<dyn JobQueue>, file: &Path) -> io::Result<Self> {
        let file = File::options().create_new(true).append(true).open(file)?;
        Ok(Self { queue, file: Mutex::new(file), next: AtomicU64::new(0) })
    }

    /// One write a line: the kernel has it whole, though this process is killed right after.
    fn write(&self, line: &Line) {
        let mut text = serde_json::to_vec(line).expect("a line is JSON");
        text.push(b'\n');
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.write_all(&text).expect("a history that cannot be written proves nothing");
    }

    async fn record<T>(
        &self,
        call: Call,
        work: impl Future<Output = Result<T, Error>>,
        reply: impl FnOnce(&Result<T, Error>) -> Reply,
    ) -> Result<T, Error> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.write(&Line::Asked { id, at: now(), call });
        let answer = work.await;
        let reply = match &answer {
            Err(Error::Backend(error)) => Reply::Unknown(error.to_string()),
            answer => reply(answer),
        };
        self.write(&Line::Answered { id, at: now(), reply });
        answer
    }
}

fn word<T>(answer: &Result<T, Error>) -> Word {
    match answer {
        Ok(_) => Word::Done,
        Err(Error::LeaseLost { .. }) => Word::LeaseLost,
        Err(Error::NotFound { .. }) => Word::NotFound,
        Err(_) => Word::Invalid,
    }
}

fn told<T>(answer: &Result<T, Error>, reply: impl FnOnce(&T) -> Reply) -> Reply {
    match answer {
        Ok(value) => reply(value),
        Err(error) => Reply::Unknown(error.to_string()),
    }
}

#[async_trait::async_trait]
impl JobQueue for Recorder {
    async fn enqueue(&self, jobs: &[NewJob]) -> Result<Vec<Enqueued>, Error> {
        let call = Call::Enqueue(jobs.to_vec());
        let reply = |answer: &_| told(answer, |answers: &Vec<Enqueued>| Reply::Enqueued(answers.clone()));
        self.record(call, self.queue.enqueue(jobs), reply).await
    }

    async fn claim(&self, request: &ClaimRequest) -> Result<Vec<Job>, Error> {
        let call = Call::Claim(request.claim, request.worker.clone());
        let leases =
            |jobs: &Vec<Job>| jobs.iter().filter_map(|job| job.running.as_ref()).map(|run| run.lease).collect();
        let reply = |answer: &_| told(answer, |jobs| Reply::Claimed(leases(jobs)));
        self.record(call, self.queue.claim(request), reply).await
    }

    async fn heartbeat(&self, leases: &[Lease]) -> Result<Vec<Beat>, Error> {
        let held = |beats: &Vec<Beat>| beats.iter().map(|beat| *beat != Beat::Lost).collect();
        let reply = |answer: &_| told(answer, |beats| Reply::Held(held(beats)));
        self.record(Call::Heartbeat(leases.to_vec()), self.queue.heartbeat(leases), reply).await
    }

    async fn complete(&self, lease: &Lease, completion: &Completion) -> Result<JobStatus, Error> {
        let call = Call::Complete(vec![(*lease, completion.clone())]);
        self.record(call, self.queue.complete(lease, completion), |answer| Reply::Ended(vec![word(answer)])).await
    }

    async fn complete_batch(&self, ends: &[AttemptEnd]) -> Result<Vec<Result<JobStatus, Error>>, Error> {
        let call = Call::Complete(ends.iter().map(|end| (end.lease, end.completion.clone())).collect());
        let words = |answers: &Vec<Result<JobStatus, Error>>| answers.iter().map(word).collect();
        let reply = |answer: &_| told(answer, |answers| Reply::Ended(words(answers)));
        self.record(call, self.queue.complete_batch(ends), reply).await
    }

    async fn release(&self, lease: &Lease, reason: &str, delay: Duration) -> Result<Fate, Error> {
        let call = Call::Release(*lease, reason.to_owned());
        self.record(call, self.queue.release(lease, reason, delay), |answer| Reply::Ended(vec![word(answer)])).await
    }

    async fn rescue(&self, request: &RescueRequest) -> Result<Vec<Rescued>, Error> {
        let leases = |rescued: &Vec<Rescued>| rescued.iter().map(|rescued| rescued.lease).collect();
        let reply = |answer: &_| told(answer, |rescued| Reply::Rescued(leases(rescued)));
        self.record(Call::Rescue, self.queue.rescue(request), reply).await
    }

    // Not made by what is recorded here, or changes no job.

    async fn cancel(&self, job: JobId) -> Result<Job, Error> {
        self.queue.cancel(job).await
    }

    async fn get(&self, job: JobId) -> Result<Option<Job>, Error> {
        self.queue.get(job).await
    }

    async fn list(&self, filter: &JobFilter, after: Option<JobCursor>, limit: u32) -> Result<JobPage, Error> {
        self.queue.list(filter, after, limit).await
    }

    async fn stats(&self) -> Result<QueueStats, Error> {
        self.queue.stats().await
    }

    async fn attempts(&self, job: JobId) -> Result<Vec<Attempt>, Error> {
        self.queue.attempts(job).await
    }

    async fn prune(&self, age: Duration, limit: usize) -> Result<usize, Error> {
        self.queue.prune(age, limit).await
    }

    async fn set_claiming(&self, claiming: Claiming) -> Result<(), Error> {
        self.queue.set_claiming(claiming).await
    }

    async fn set_concurrency_limit(&self, key: &ConcurrencyKey, limit: NonZeroU32) -> Result<(), Error> {
        self.queue.set_concurrency_limit(key, limit).await
    }

    async fn set_order(&self, order: Order) -> Result<(), Error> {
        self.queue.set_order(order).await
    }

    fn ready(&self) -> ReadyHint {
        self.queue.ready()
    }
}

/// All events of the files in a folder, by their start. The last line of a killed caller may be cut; any other line that is none is an error.
///
/// Errors: as of reading.
pub fn read(folder: &Path) -> io::Result<Vec<Event>> {
    let mut events = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        events.extend(read_file(&std::fs::read_to_string(entry?.path())?)?);
    }
    events.sort_by_key(|event| event.start);
    Ok(events)
}

fn read_file(text: &str) -> io::Result<Vec<Event>> {
    let mut events: BTreeMap<u64, Event> = BTreeMap::new();
    for line in text.split_inclusive('\n') {
        let line = match serde_json::from_str(line) {
            Ok(line) => line,
            Err(_) if !line.ends_with('\n') => break,
            Err(error) => return Err(io::Error::other(error)),
        };
        match line {
            Line::Asked { id, at, call } => {
                events.insert(id, Event { start: at, end: None, call, reply: None });
            }
            Line::Answered { reply: Reply::Unknown(_), .. } => {}
            Line::Answered { id, at, reply } => {
                let event = events.get_mut(&id).ok_or_else(|| io::Error::other("an answer to no call"))?;
                (event.end, event.reply) = (Some(at), Some(reply));
            }
        }
    }
    Ok(events.into_values().collect())
}

#[cfg(test)]
mod tests {
    use deploycore::memory::Queue;
    use deploycore::port::JobQueueExt as _;

    use super::*;
    use crate::job::{job, lease, success};

    #[tokio::test]
    async fn a_history_is_read_as_it_was_and_a_cut_line_is_no_answer() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("one");
        let recorder = Recorder::new(Arc::new(Queue::default()), &file).unwrap();
        let spec = job();
        recorder.enqueue_one(&spec).await.unwrap();
        let request = ClaimRequest { claim: ClaimId::new(), worker: "w".parse().unwrap(), limit: 1 };
        let claimed = recorder.claim(&request).await.unwrap().remove(0);
        recorder.complete(&lease(&claimed), &success(&claimed)).await.unwrap();
        let events = read(folder.path()).unwrap();
        assert_eq!(events.len(), 3);
        assert!(events.iter().all(|event| event.end.is_some_and(|end| end >= event.start)));
        assert_eq!(events[1].reply, Some(Reply::Claimed(vec![lease(&claimed)])));
        assert_eq!(events[2].reply, Some(Reply::Ended(vec![Word::Done])));

        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, &text[..text.len() - 9]).unwrap();
        let events = read(folder.path()).unwrap();
        assert_eq!((events[2].end, &events[2].reply), (None, &None));
        std::fs::write(&file, text.replacen("asked", "sked", 1)).unwrap();
        assert!(read(folder.path()).is_err());
    }
}
