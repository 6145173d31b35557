//! Several real processes on one database, some of them killed with SIGKILL in the middle of their work.
//!
//! The test starts its own binary again: `child` below is what those processes run. Each prints a line once a call was acknowledged;
//! the lines are what the database is held against at the end.

#[path = "processes/child.rs"]
mod child_process;

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;
use std::time::Duration;

use deploycore::model::{Attempt, AttemptOutcome, Completion, ConcurrencyKey, Epoch, Job, JobId, JobStatus};
use deploycore::port::JobQueue;
use deploycore::port::queue::{JobFilter, RescueRequest};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

use child_process::{KEY, LIMIT, Line, ROLE, Role, URL};

/// Nothing here takes longer unless something hangs.
const PATIENCE: Duration = Duration::from_mins(1);

/// What the other processes run; it does nothing by itself.
#[tokio::test(flavor = "current_thread")]
#[ignore = "started by the other tests as a process of its own"]
async fn child() {
    child_process::run().await;
}

/// The processes of one test and what they said.
struct Swarm {
    url: String,
    children: BTreeMap<usize, (Role, Child)>,
    lines: mpsc::Receiver<(usize, Option<Line>)>,
    sender: mpsc::Sender<(usize, Option<Line>)>,
    started: usize,
    readers: tokio::task::JoinSet<()>,
}

impl Swarm {
    fn new(url: String) -> Self {
        let (sender, lines) = mpsc::channel(1_000);
        Self { url, children: BTreeMap::new(), lines, sender, started: 0, readers: tokio::task::JoinSet::new() }
    }

    fn start(&mut self, role: Role) {
        let number = self.started;
        self.started += 1;
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--ignored", "--nocapture", "--test-threads=1"])
            .env(URL, &self.url)
            .env(ROLE, format!("{}:{number}", role.as_str()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
        let sender = self.sender.clone();
        self.readers.spawn(async move {
            while let Ok(Some(text)) = said.next_line().await {
                if let Some(line) = Line::parse(&text) {
                    let _ = sender.send((number, Some(line))).await;
                }
            }
            let _ = sender.send((number, None)).await;
        });
        self.children.insert(number, (role, child));
    }

    fn count(&self, role: Role) -> usize {
        self.children.values().filter(|(other, _)| *other == role).count()
    }

    /// Lets a sleeper go on.
    async fn wake(&mut self, number: usize) {
        let (_, child) = self.children.get_mut(&number).expect("a sleeper ends only once it was woken");
        child.stdin.as_mut().unwrap().write_all(b"\n").await.unwrap();
    }

    /// SIGKILL. What the process said before is still read.
    fn kill(&mut self, number: usize) {
        let (_, child) = self.children.get_mut(&number).expect("a line before the end of a child");
        child.start_kill().unwrap();
    }
}

/// What the processes were told.
#[derive(Default)]
struct Said {
    enqueued: BTreeSet<JobId>,
    succeeded: BTreeMap<JobId, Vec<Epoch>>,
    /// By process.
    refused: BTreeMap<usize, usize>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_done_twice_when_processes_are_killed() {
    let folder = tempfile::tempdir().unwrap();
    kill_and_compare(format!("sqlite://{}/queue.db", folder.path().display())).await;
}

#[cfg(feature = "postgres")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_done_twice_on_postgres_when_processes_are_killed() {
    let server = servers::postgres::Postgres::start(&servers::postgres::Options::default()).unwrap();
    let database = server.create_database().unwrap();
    kill_and_compare(database.url()).await;
}

async fn kill_and_compare(url: String) {
    let mut swarm = Swarm::new(url);
    // All open the database at once, while it is not set up yet.
    for role in [Role::Sleeper, Role::Sleeper, Role::Producer, Role::Producer] {
        swarm.start(role);
    }
    let queue = child_process::open(&swarm.url).await.unwrap();
    queue.set_concurrency_limit(&key(), LIMIT).await.unwrap();
    let (said, kills) = tokio::time::timeout(PATIENCE, drive(&mut swarm, &*queue)).await.expect("it ends");

    let jobs = all_jobs(&*queue).await;
    println!("{} jobs, {kills} kills, refused zombies by process: {:?}", jobs.len(), said.refused);
    assert!(kills >= 12, "only {kills} kills: the test shows little");
    for id in &said.enqueued {
        assert!(jobs.contains_key(id), "the acknowledged job {id} is lost");
    }
    for (id, (job, attempts)) in &jobs {
        assert_eq!(job.status, JobStatus::Succeeded, "{id}");
        let epochs: Vec<_> = attempts.iter().map(|attempt| attempt.lease.epoch.get()).collect();
        assert_eq!(epochs, (1..=job.epoch.get()).collect::<Vec<_>>(), "the epochs of {id}");
        assert_eq!(successes(attempts), [job.epoch], "the effective runs of {id}");
    }
    for (id, epochs) in &said.succeeded {
        assert_eq!(*epochs, [jobs[id].0.epoch], "the acknowledged successes of {id}");
    }
    for sleeper in [0, 1] {
        assert!(said.refused.contains_key(&sleeper), "process {sleeper} slept over its lease and was not refused");
    }
    let rescued = jobs.values().filter(|(job, _)| job.rescues > 0).count();
    assert!(rescued > 0, "no killed worker held a job: the test shows little");
    assert_limit_was_kept(&jobs);
}

/// Kills processes in the middle of their work, in turn after each kind of call, until all jobs are done.
async fn drive(swarm: &mut Swarm, queue: &dyn JobQueue) -> (Said, usize) {
    // After so many lines of a kind since the last kill, the process that said it dies.
    let mut plan = [3, 2, 4, 1, 6, 2, 5, 3, 1, 4, 2, 3, 5, 1, 2, 4].into_iter().cycle();
    let (mut until_kill, mut kills, mut said) = (3, 0, Said::default());
    let (mut asleep, mut sleepers) = (BTreeSet::new(), 0);
    let mut maintenance = tokio::time::interval(Duration::from_millis(20));
    maintenance.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            line = swarm.lines.recv() => {
                let (number, line) = line.expect("the swarm holds a sender");
                let Some(line) = line else {
                    let (role, mut child) = swarm.children.remove(&number).unwrap();
                    let status = child.wait().await.unwrap();
                    if !status.success() && (role == Role::Worker || said.enqueued.len() < 120) {
                        swarm.start(role);
                    }
                    continue;
                };
                let is_sleeper = swarm.children[&number].0 == Role::Sleeper;
                let is_working = !matches!(line, Line::Idle) && !is_sleeper;
                match line {
                    Line::Enqueued(job) => { said.enqueued.insert(job); }
                    Line::Succeeded(job, epoch) => said.succeeded.entry(job).or_default().push(epoch),
                    Line::Refused => *said.refused.entry(number).or_default() += 1,
                    Line::Claimed if is_sleeper => {
                        asleep.insert(number);
                        sleepers += 1;
                        // Not before: they could finish every job while a sleeper still looks for one.
                        if sleepers == 2 {
                            (0..3).for_each(|_| swarm.start(Role::Worker));
                        }
                    }
                    Line::Failed(why) => panic!("process {number}: {why}"),
                    Line::Claimed | Line::GaveBack | Line::Idle => {}
                }
                until_kill -= i32::from(is_working && kills < 16);
                if until_kill == 0 {
                    swarm.kill(number);
                    kills += 1;
                    until_kill = plan.next().unwrap();
                }
            }
            _ = maintenance.tick() => {
                // Shorter than a busy machine may stop a worker: a zombie or two is welcome.
                let request = RescueRequest {
                    lost_after: Duration::from_millis(300),
                    backoff: Duration::from_millis(5),
                    backoff_max: Duration::from_millis(20),
                    ..RescueRequest::default()
                };
                queue.rescue(&request).await.unwrap();
                for number in asleep.clone() {
                    if !holds_a_job(queue, number).await {
                        swarm.wake(number).await;
                        asleep.remove(&number);
                    }
                }
                let counts = queue.stats().await.unwrap().counts;
                let is_done = swarm.count(Role::Producer) == 0 && swarm.count(Role::Sleeper) == 0 && counts[&JobStatus::Queued] + counts[&JobStatus::Running] == 0;
                if is_done && !said.enqueued.is_empty() {
                    return (said, kills);
                }
            }
        }
    }
}

async fn holds_a_job(queue: &dyn JobQueue, process: usize) -> bool {
    let filter = JobFilter { statuses: vec![JobStatus::Running], ..JobFilter::default() };
    let running = queue.list(&filter, None, 1_000).await.unwrap().jobs;
    let name = child_process::worker_name(process);
    running.iter().any(|job| job.running.as_ref().is_some_and(|running| running.worker.as_str() == name))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_acknowledged_enqueue_is_there_when_the_process_is_killed_at_once() {
    let folder: TempDir = tempfile::tempdir().unwrap();
    let mut swarm = Swarm::new(format!("sqlite://{}/queue.db", folder.path().display()));
    for _ in 0..4 {
        swarm.start(Role::Producer);
        let mut acknowledged = BTreeSet::new();
        loop {
            let next = tokio::time::timeout(PATIENCE, swarm.lines.recv()).await.expect("the child goes on");
            match next.unwrap() {
                (number, Some(Line::Enqueued(job))) => {
                    if acknowledged.is_empty() {
                        swarm.kill(number);
                    }
                    acknowledged.insert(job);
                }
                (number, Some(line)) => panic!("process {number}: {line:?}"),
                (_, None) => break,
            }
        }
        assert!(!acknowledged.is_empty());
        let queue = child_process::open(&swarm.url).await.unwrap();
        for job in acknowledged {
            assert!(queue.get(job).await.unwrap().is_some(), "the acknowledged job {job} is lost");
        }
    }
}

fn key() -> ConcurrencyKey {
    ConcurrencyKey::new(KEY).unwrap()
}

async fn all_jobs(queue: &dyn JobQueue) -> BTreeMap<JobId, (Job, Vec<Attempt>)> {
    let (mut jobs, mut after) = (BTreeMap::new(), None);
    loop {
        let page = queue.list(&JobFilter::default(), after, 50).await.unwrap();
        for job in page.jobs {
            let attempts = queue.attempts(job.spec.id).await.unwrap();
            assert!(jobs.insert(job.spec.id, (job, attempts)).is_none(), "a job is listed twice");
        }
        match page.next {
            Some(_) => after = page.next,
            None => return jobs,
        }
    }
}

fn successes(attempts: &[Attempt]) -> Vec<Epoch> {
    let is_success = |attempt: &&Attempt| {
        matches!(attempt.outcome, Some(AttemptOutcome::Completed { completion: Completion::Succeeded { .. } }))
    };
    attempts.iter().filter(is_success).map(|attempt| attempt.lease.epoch).collect()
}

/// By the history: at no instant did more attempts of the key run than its limit.
fn assert_limit_was_kept(jobs: &BTreeMap<JobId, (Job, Vec<Attempt>)>) {
    let keyed = jobs.values().filter(|(job, _)| job.spec.concurrency_key == Some(key()));
    let attempts = keyed.flat_map(|(_, attempts)| attempts);
    // An end frees the slot for a claim at the same instant.
    let mut changes: Vec<_> =
        attempts.flat_map(|attempt| [(attempt.claimed_at, 1), (attempt.ended_at.unwrap(), -1)]).collect();
    changes.sort_unstable();
    let (mut running, mut most) = (0, 0);
    for (at, change) in changes {
        running += change;
        most = most.max(running);
        assert!(running <= LIMIT.get() as i32, "{running} of {KEY} run at {at}");
    }
    assert!(most > 1, "the key was never contended: the test shows little");
}
