//! The road of the main job, walked from outside through the control plane's API: build each commit, wait until it is
//! deployable, deploy one after the other, roll back, check every machine.
//!
//! How far it came is kept in `scenario.json`, written before each request, so that the same command on the same folder goes
//! on after any interruption without doing anything twice.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use deploycore::model::{
    ArtifactName, AttemptOutcome, CommitId, Completion, CopyState, Generation, Goal, Job, JobId, JobStatus,
    KnownMachine, OlderJobs, Origin, Readiness, ServiceName, ServicePhase, ServiceReport, Timestamp,
};
use serde::{Deserialize, Serialize};

use super::api::{BuildRequest, DeployRequest, RollbackRequest, ServiceStatus, UsageByRegion};
use super::client::{Client, Refused, is_passing};
use super::layout::DataDir;
use super::progress::Progress;
use super::report::{Build, Copy, Deployment, Machine, Report};

/// How often the API is asked while waiting.
const POLL: Duration = Duration::from_millis(100);

/// What the main job shall do.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The service.
    pub service: ServiceName,
    /// Built and deployed in this order; with two or more, a rollback follows.
    pub commits: Vec<CommitId>,
    /// All machines of the cluster.
    pub machines: usize,
    /// What the service answers to `GET /version` for each commit, where that is known.
    pub versions: Option<Vec<String>>,
    /// When the service counts as running: at the end every machine is asked once more where that is over HTTP.
    pub readiness: Readiness,
}

/// How far the main job came.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct State {
    jobs: Vec<JobId>,
    steps: Vec<Step>,
}

/// A deployment that was asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Step {
    /// The generation before it.
    before: Option<Generation>,
    /// What the gates had given out before it.
    usage: UsageByRegion,
    asked_at: Timestamp,
    done: Option<Deployment>,
}

/// Walks the road.
#[derive(Debug)]
pub struct Scenario<'a> {
    plan: &'a Plan,
    data: &'a DataDir,
    client: &'a Client,
    progress: Progress,
    state: State,
    /// An earlier run began the road.
    resumed: bool,
}

impl<'a> Scenario<'a> {
    /// Takes up the road where the data folder says it was left.
    pub fn new(plan: &'a Plan, data: &'a DataDir, client: &'a Client) -> Result<Self> {
        let state: State = data.read_json(STATE_FILE)?.unwrap_or_default();
        Ok(Self { plan, data, client, progress: Progress::new(), resumed: !state.jobs.is_empty(), state })
    }

    /// Walks to the end, for at most `limit`.
    pub async fn run(self, limit: Duration) -> Result<Report> {
        let progress = self.progress.clone();
        tokio::time::timeout(limit, self.walk()).await.unwrap_or_else(|_| {
            bail!(
                "the time limit of {limit:?} is over at: {}; the same command with the same --data-dir goes on",
                progress.last()
            )
        })
    }

    async fn walk(mut self) -> Result<Report> {
        let mut report = Report::default();
        let jobs = self.build().await?;
        for job in &jobs {
            report.builds.push(self.describe_build(job).await?);
        }
        let artifacts: Vec<_> = jobs.iter().map(|job| ArtifactName::for_job(&self.plan.service, job.spec.id)).collect();
        report.replication = self.replicate(&artifacts).await?;
        for (index, artifact) in artifacts.iter().enumerate() {
            let title = format!("deploy {}", self.plan.commits[index]);
            report.deployments.push(self.step(index, &title, Some(artifact)).await?);
        }
        if artifacts.len() > 1 {
            report.deployments.push(self.step(artifacts.len(), "roll back", None).await?);
        }
        report.machines = self.check(&jobs).await?;
        Ok(report)
    }

    async fn build(&mut self) -> Result<Vec<Job>> {
        if self.state.jobs.is_empty() {
            self.state.jobs = self.plan.commits.iter().map(|_| JobId::new()).collect();
            self.save()?;
        } else {
            self.replace_failed_jobs().await?;
        }
        for (commit, job) in self.plan.commits.iter().zip(&self.state.jobs) {
            let name = Some(self.plan.service.clone());
            let request = BuildRequest {
                commit: commit.clone(),
                name,
                job: Some(*job),
                priority: 0,
                older_jobs: OlderJobs::Keep,
            };
            patiently(|| self.client.build(&request)).await?;
        }
        let bar = self.progress.step("build", self.state.jobs.len() as u64);
        loop {
            let mut jobs = Vec::new();
            for job in &self.state.jobs {
                jobs.push(patiently(|| self.client.job(*job)).await?);
            }
            if let Some(job) = jobs.iter().find(|job| job.status.is_finished() && job.status != JobStatus::Succeeded) {
                return Err(self.explain_failure(job).await);
            }
            let done = jobs.iter().filter(|job| job.status == JobStatus::Succeeded).count();
            let words: Vec<_> = jobs.iter().map(|job| job.status.as_str()).collect();
            bar.set(done as u64, words.join(", "));
            if done == jobs.len() {
                bar.finish(format!("{done} of {done} succeeded"));
                return Ok(jobs);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Whoever repeats the command after a failed build wants another build: what it failed of may be mended.
    async fn replace_failed_jobs(&mut self) -> Result<()> {
        for job in &mut self.state.jobs {
            let known = match patiently(|| self.client.job(*job)).await {
                Ok(known) => known,
                // It was never enqueued.
                Err(error) if is_not_found(&error) => continue,
                Err(error) => return Err(error),
            };
            if known.status.is_finished() && known.status != JobStatus::Succeeded {
                *job = JobId::new();
            }
        }
        self.save()
    }

    async fn explain_failure(&self, job: &Job) -> anyhow::Error {
        let reason = job.failure.as_ref().and_then(|failure| failure.message.lines().next());
        let reason = reason.unwrap_or("no reason was given");
        let log = self.client.log(job.spec.id).await.unwrap_or_default();
        let tail: Vec<_> = log.lines().rev().take(20).collect();
        let tail: Vec<_> = tail.into_iter().rev().collect();
        let log = if tail.is_empty() { String::new() } else { format!("\nits log ends with:\n{}", tail.join("\n")) };
        anyhow::anyhow!("the build of {} is {}: {reason}{log}", job.spec.commit, job.status)
    }

    async fn describe_build(&self, job: &Job) -> Result<Build> {
        let attempts = patiently(|| self.client.attempts(job.spec.id)).await?;
        let last = attempts.last().context("a succeeded job has an attempt")?;
        let timings = match &last.outcome {
            Some(AttemptOutcome::Completed { completion: Completion::Succeeded { timings, .. } }) => *timings,
            _ => bail!("the last attempt at succeeded job {} is not a success", job.spec.id),
        };
        Ok(Build {
            job: job.spec.id,
            commit: job.spec.commit.clone(),
            artifact: job.artifact.as_ref().map(|artifact| artifact.name.clone()),
            digest: job.artifact.as_ref().map(|artifact| artifact.digest),
            size: job.artifact.as_ref().map(|artifact| artifact.size),
            status: job.status,
            attempts: job.attempts,
            queue_ms: millis_between(job.created_at, last.claimed_at),
            build_ms: timings.build_ms,
            store_ms: timings.store_ms,
        })
    }

    async fn replicate(&self, artifacts: &[ArtifactName]) -> Result<Vec<Copy>> {
        let mut rows = Vec::new();
        for artifact in artifacts {
            let bar = self.progress.step(format!("replicate {}", short(artifact)), 100);
            // What an earlier run saw fail may be mended, as with builds.
            let mut reopened = false;
            let status = loop {
                // Not in the ledger yet: the registrar has not come round.
                let status = match patiently(|| self.client.artifact(artifact)).await {
                    Ok(status) => status,
                    Err(error) if is_not_found(&error) => {
                        tokio::time::sleep(POLL).await;
                        continue;
                    }
                    Err(error) => return Err(error),
                };
                if let Some((region, copy)) = status.copies.iter().find(|(_, copy)| copy.state == CopyState::Failed) {
                    if self.resumed && !reopened {
                        patiently(|| self.client.reopen(artifact)).await?;
                        reopened = true;
                        continue;
                    }
                    let reason = copy.last_error.as_deref().unwrap_or("no reason was given");
                    bail!("the copy of {artifact} to {region} failed: {reason}");
                }
                let bytes: u64 = status.copies.values().map(|copy| copy.bytes).sum();
                let total = status.registered.artifact.size * status.copies.len() as u64;
                let complete = status.copies.len() - status.missing().len();
                bar.set(bytes * 100 / total.max(1), format!("{complete} of {} regions", status.copies.len()));
                if status.is_deployable() {
                    break status;
                }
                tokio::time::sleep(POLL).await;
            };
            bar.finish(format!("complete in {} regions", status.copies.len()));
            rows.extend(status.copies.iter().map(|(region, copy)| Copy {
                artifact: artifact.clone(),
                region: region.clone(),
                status: copy.state,
                ms: copy.completed_at.map_or(0, |end| millis_between(status.registered_at, end)),
                bytes: copy.bytes,
            }));
        }
        Ok(rows)
    }

    /// One deployment: of an artifact, or back.
    async fn step(&mut self, index: usize, title: &str, artifact: Option<&ArtifactName>) -> Result<Deployment> {
        if let Some(Step { done: Some(done), .. }) = self.state.steps.get(index) {
            return Ok(done.clone());
        }
        let service = &self.plan.service;
        let mut current = self.current().await?;
        if self.state.steps.len() == index {
            let usage = match artifact {
                Some(artifact) => {
                    let digest = patiently(|| self.client.artifact(artifact)).await?.registered.artifact.digest;
                    patiently(|| self.client.usage(&digest)).await?
                }
                None => self.usage_of_rollback(index).await?,
            };
            let before = current.as_ref().map(|status| status.goal.position.generation);
            self.state.steps.push(Step { before, usage, asked_at: Timestamp::now(), done: None });
            self.save()?;
        }
        let step = self.state.steps[index].clone();
        let bar = self.progress.step(title, self.plan.machines as u64);
        while current.as_ref().map(|status| status.goal.position.generation) <= step.before {
            let answer = if let Some(artifact) = artifact {
                self.client.deploy(&DeployRequest::new(service.clone(), artifact.clone())).await
            } else {
                let request =
                    RollbackRequest { service: service.clone(), to: None, current: step.before, waivers: Vec::new() };
                self.client.rollback(&request).await
            };
            match answer {
                Ok(_) => {}
                // The reply was lost, or the region is about to answer: the goal itself tells.
                Err(error) if is_passing(&error) => tokio::time::sleep(POLL).await,
                Err(error) if is_code(&error, "moved_on") => {}
                Err(error) => return Err(error),
            }
            current = self.current().await?;
        }
        let status = self.converged(&bar).await?;
        bar.finish(format!("{} machines run generation {}", self.plan.machines, status.goal.position.generation));
        let deployment = self.describe_deployment(&step, &status.goal).await?;
        self.state.steps[index].done = Some(deployment.clone());
        self.save()?;
        Ok(deployment)
    }

    /// What each machine reports of the goal. A region that was just started again knows its machines within one of their periods.
    async fn reports(&self, goal: &Goal) -> Result<Vec<ServiceReport>> {
        loop {
            let machines = patiently(|| self.client.machines()).await?.machines;
            let reports = machines.iter().filter_map(|machine| self.service_of(machine));
            let reports: Vec<_> = reports.filter(|report| report.goal == goal.position).cloned().collect();
            if reports.len() >= self.plan.machines {
                return Ok(reports);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn usage_of_rollback(&self, index: usize) -> Result<UsageByRegion> {
        let target = self.state.steps[..index].iter().rev().nth(1).and_then(|step| step.done.as_ref());
        let target = target.context("a rollback follows two deployments")?;
        patiently(|| self.client.usage(&target.digest)).await
    }

    async fn current(&self) -> Result<Option<ServiceStatus>> {
        match patiently(|| self.client.service(&self.plan.service)).await {
            Ok(status) => Ok(Some(status)),
            Err(error) if is_not_found(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn converged(&self, bar: &super::progress::Step) -> Result<ServiceStatus> {
        loop {
            let status = patiently(|| self.client.service(&self.plan.service)).await?;
            let convergence = &status.convergence;
            if let Some((region, machine, reason)) = convergence.first_reverted() {
                let name = &status.goal.artifact.name;
                bail!("{name} did not become ready on {} in {region}: {reason}", machine.key.machine);
            }
            let behind =
                convergence.examples().map(|(_, machine)| format!("{} {:?}", machine.key.machine, machine.standing));
            bar.set(convergence.converged(), behind.collect::<Vec<_>>().join(", "));
            if convergence.is_converged_on(self.plan.machines as u64) {
                return Ok(status);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn describe_deployment(&self, step: &Step, goal: &Goal) -> Result<Deployment> {
        let converged_ms = millis_between(step.asked_at, Timestamp::now());
        let reports = self.reports(goal).await?;
        let usage = patiently(|| self.client.usage(&goal.artifact.digest)).await?;
        let ratio = |bytes: u64| bytes as f64 / goal.artifact.size.max(1) as f64;
        let store_read_ratio: BTreeMap<_, _> = usage
            .into_iter()
            .map(|(region, now)| {
                let before = step.usage.get(&region).copied().unwrap_or_default();
                let total = now.leased_bytes + now.recovery_bytes;
                (region, ratio(total.saturating_sub(before.leased_bytes + before.recovery_bytes)))
            })
            .collect();
        Ok(Deployment {
            generation: goal.position.generation,
            kind: if goal.origin == Origin::Deploy { "deploy" } else { "rollback" }.to_owned(),
            artifact: goal.artifact.name.clone(),
            digest: goal.artifact.digest,
            machines: reports.len(),
            converged_ms,
            bytes_fetched: reports.iter().map(|report| report.bytes_fetched).sum(),
            store_read_ratio,
        })
    }

    /// Asks every machine what it runs, until each answers as the goal wants.
    async fn check(&self, jobs: &[Job]) -> Result<Vec<Machine>> {
        let bar = self.progress.step("check every machine", self.plan.machines as u64);
        let http = reqwest::Client::builder().timeout(Duration::from_secs(5)).no_proxy().build()?;
        loop {
            let goal = patiently(|| self.client.service(&self.plan.service)).await?.goal;
            let expected = self.expected_version(&goal, jobs);
            let mut rows = Vec::new();
            for machine in patiently(|| self.client.machines()).await?.machines {
                match self.check_machine(&http, &machine, &goal, expected.as_deref()).await {
                    Ok(row) => rows.push(row),
                    Err(reason) => bar.set(rows.len() as u64, format!("{}: {reason}", machine.report.machine)),
                }
            }
            if rows.len() == self.plan.machines {
                let answer = expected.map_or(String::new(), |version| format!(" and answers version {version}"));
                bar.finish(format!("each runs {}{answer}", goal.artifact.digest.short()));
                self.progress.say("");
                return Ok(rows);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn expected_version(&self, goal: &Goal, jobs: &[Job]) -> Option<String> {
        let versions = self.plan.versions.as_ref()?;
        let index = jobs.iter().position(|job| job.artifact.as_ref() == Some(&goal.artifact))?;
        versions.get(index).cloned()
    }

    async fn check_machine(
        &self,
        http: &reqwest::Client,
        machine: &KnownMachine,
        goal: &Goal,
        expected: Option<&str>,
    ) -> Result<Machine, String> {
        let report = self.service_of(machine).ok_or("does not report the service")?;
        let (position, artifact) = report.current.as_ref().ok_or("runs nothing")?;
        if artifact.digest != goal.artifact.digest || report.phase != ServicePhase::Good {
            return Err(format!("is {:?} with {}", report.phase, artifact.digest.short()));
        }
        if let (Readiness::Http(path), Some(port)) = (&self.plan.readiness, report.port) {
            ask(http, port, path).await?;
        }
        let version = match (expected, report.port) {
            (Some(expected), Some(port)) => {
                let answer = version(http, port).await?;
                if answer != expected {
                    return Err(format!("answers version {answer} instead of {expected}"));
                }
                answer
            }
            _ => artifact.digest.short(),
        };
        Ok(Machine {
            machine: machine.report.machine.clone(),
            region: machine.report.region.clone(),
            pid: report.pid,
            generation: position.generation,
            digest: artifact.digest,
            version,
        })
    }

    fn service_of<'m>(&self, machine: &'m KnownMachine) -> Option<&'m ServiceReport> {
        machine.report.services.iter().find(|report| report.service == self.plan.service)
    }

    fn save(&self) -> Result<()> {
        self.data.write_json(STATE_FILE, &self.state)
    }
}

const STATE_FILE: &str = "scenario.json";

async fn version(http: &reqwest::Client, port: u16) -> Result<String, String> {
    #[derive(Deserialize)]
    struct Answer {
        version: String,
    }
    let answer = ask(http, port, "/version").await?;
    answer.json::<Answer>().await.map(|answer| answer.version).map_err(|error| error.to_string())
}

/// A GET that must be answered with a success.
async fn ask(http: &reqwest::Client, port: u16, path: &str) -> Result<reqwest::Response, String> {
    let answer = http.get(format!("http://127.0.0.1:{port}{path}")).send().await;
    answer.and_then(reqwest::Response::error_for_status).map_err(|error| error.to_string())
}

/// Repeats a call while the control plane is away; the caller bounds the whole by its time limit.
async fn patiently<T, F: Future<Output = Result<T>>>(call: impl Fn() -> F) -> Result<T> {
    loop {
        match call().await {
            Err(error) if is_passing(&error) => tokio::time::sleep(POLL).await,
            other => return other,
        }
    }
}

fn is_not_found(error: &anyhow::Error) -> bool {
    is_code(error, "not_found")
}

fn is_code(error: &anyhow::Error, code: &str) -> bool {
    error.downcast_ref::<Refused>().is_some_and(|refused| refused.code == code)
}

fn millis_between(start: Timestamp, end: Timestamp) -> u64 {
    u64::try_from(start.until(end).map_or(0, |span| span.total(jiff::Unit::Millisecond).unwrap_or(0.0) as i64))
        .unwrap_or(0)
}

fn short(artifact: &ArtifactName) -> String {
    let text = artifact.as_str();
    if text.len() <= 20 { text.to_owned() } else { format!("{}…{}", &text[..8], &text[text.len() - 8..]) }
}
