//! A client of the control plane's API.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result};
use deploycore::model::{
    ArtifactName, ArtifactStatus, Attempt, CopyPriority, Digest, FiguresRequest, Goal, Job, JobId, KnownMachine,
    MachineStanding, RegionName, ReplicationFigures, ServiceName,
};
use deploycore::port::queue::JobPage;
use reqwest::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;
use url::Url;

use super::api::{
    BuildAnswer, BuildRequest, CollectAnswer, CollectRequest, DeployRequest, ErrorBody, MachinesCursor, MachinesPage,
    PrioritizeRequest, Raised, RollbackRequest, SWARM_PATH, ServiceStatus, StandingsByRegion, Status, UsageByRegion,
    usage_path,
};

/// A round of collection deletes in one store after the other.
const COLLECT_TIMEOUT: Duration = Duration::from_mins(10);

/// An answer of the API that is not a success.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Refused {
    /// For programs.
    pub code: String,
    /// The HTTP status.
    pub status: u16,
    /// For people.
    pub message: String,
}

/// The control plane did not answer at all.
#[derive(Debug, thiserror::Error)]
#[error("the control plane at {url} does not answer: is the cluster running?")]
pub struct Unreachable {
    url: Url,
    #[source]
    source: reqwest::Error,
}

/// A client of the control plane's API.
#[derive(Debug, Clone)]
pub struct Client {
    base: Url,
    http: reqwest::Client,
}

impl Client {
    /// A client for the API at `base`.
    pub fn new(base: Url) -> Result<Self> {
        let http = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(5))
            .timeout(Duration::from_secs(30))
            .no_proxy()
            .build()?;
        Ok(Self { base, http })
    }

    /// Enqueues a build.
    pub async fn build(&self, request: &BuildRequest) -> Result<BuildAnswer> {
        self.call(Method::POST, "v1/builds", Some(request)).await
    }

    /// Deploys an artifact.
    pub async fn deploy(&self, request: &DeployRequest) -> Result<Goal> {
        self.call(Method::POST, "v1/deploys", Some(request)).await
    }

    /// Rolls a service back.
    pub async fn rollback(&self, request: &RollbackRequest) -> Result<Goal> {
        self.call(Method::POST, "v1/rollbacks", Some(request)).await
    }

    /// The cluster at a glance.
    pub async fn status(&self) -> Result<Status> {
        self.get("v1/status").await
    }

    /// One service.
    pub async fn service(&self, service: &ServiceName) -> Result<ServiceStatus> {
        self.get(&format!("v1/services/{service}")).await
    }

    /// Jobs, newest first.
    pub async fn jobs(&self, limit: u32) -> Result<JobPage> {
        self.get(&format!("v1/jobs?limit={limit}")).await
    }

    /// One job.
    pub async fn job(&self, job: JobId) -> Result<Job> {
        self.get(&format!("v1/jobs/{job}")).await
    }

    /// The attempts at a job, oldest first.
    pub async fn attempts(&self, job: JobId) -> Result<Vec<Attempt>> {
        self.get(&format!("v1/jobs/{job}/attempts")).await
    }

    /// The log of a job's newest attempt that has one.
    pub async fn log(&self, job: JobId) -> Result<String> {
        let answer = self.send(Method::GET, &format!("v1/jobs/{job}/log"), None::<&()>).await?;
        Ok(answer.text().await?)
    }

    /// An artifact in all its regions.
    pub async fn artifact(&self, artifact: &ArtifactName) -> Result<ArtifactStatus> {
        self.get(&format!("v1/artifacts/{artifact}")).await
    }

    /// Has failed copies of an artifact tried again; in which regions.
    pub async fn reopen(&self, artifact: &ArtifactName) -> Result<BTreeSet<RegionName>> {
        self.call(Method::POST, &format!("v1/artifacts/{artifact}/reopen"), None::<&()>).await
    }

    /// How the copies to each region go.
    pub async fn replication(&self, request: &FiguresRequest) -> Result<BTreeMap<RegionName, ReplicationFigures>> {
        // In milliseconds, which need no escaping.
        let (window, threshold) = (request.window.as_millis(), request.threshold.as_millis());
        self.get(&format!("v1/replication?window={window}ms&threshold={threshold}ms")).await
    }

    /// Has the copies of an artifact made before others.
    pub async fn prioritize(&self, artifact: &ArtifactName, priority: CopyPriority) -> Result<Raised> {
        let path = format!("v1/artifacts/{artifact}/prioritize");
        self.call(Method::POST, &path, Some(&PrioritizeRequest { priority })).await
    }

    /// What nothing needs any more, and deletes some of it where that is asked for.
    pub async fn collect(&self, request: &CollectRequest) -> Result<CollectAnswer> {
        let path = "v1/collections";
        let answer = self.http.post(self.base.join(path)?).json(request).timeout(COLLECT_TIMEOUT);
        self.answer(path, answer).await?.json().await.context("the answer is not what this version expects")
    }

    /// Every machine that reported, as one page.
    pub async fn machines(&self) -> Result<MachinesPage<KnownMachine>> {
        self.pages("v1/machines").await
    }

    /// Every machine that a service's goal selects, and where it is with it, as one page.
    pub async fn standings(&self, service: &ServiceName) -> Result<MachinesPage<MachineStanding>> {
        self.pages(&format!("v1/services/{service}/machines")).await
    }

    async fn pages<T: DeserializeOwned>(&self, path: &str) -> Result<MachinesPage<T>> {
        let mut all: MachinesPage<T> = self.get(path).await?;
        while let Some(MachinesCursor { region, after_region, after_machine }) = all.next {
            let after = match (after_region, after_machine) {
                (Some(region), Some(machine)) => format!("&after_region={region}&after_machine={machine}"),
                _ => String::new(),
            };
            let page: MachinesPage<T> = self.get(&format!("{path}?region={region}{after}")).await?;
            all.machines.extend(page.machines);
            all.incomplete.extend(page.incomplete);
            all.next = page.next;
        }
        Ok(all)
    }

    /// What each region's gate gave out of an artifact.
    pub async fn usage(&self, digest: &Digest) -> Result<UsageByRegion> {
        self.get(&usage_path(digest)).await
    }

    /// How far each region's machines are with each artifact.
    pub async fn swarm(&self) -> Result<StandingsByRegion> {
        self.get(SWARM_PATH).await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.call(Method::GET, path, None::<&()>).await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + Sync)>,
    ) -> Result<T> {
        let answer = self.send(method, path, body).await?;
        answer.json().await.with_context(|| format!("the answer of {path} is not what this version expects"))
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + Sync)>,
    ) -> Result<reqwest::Response> {
        let mut request = self.http.request(method, self.base.join(path)?);
        if let Some(body) = body {
            request = request.json(body);
        }
        self.answer(path, request).await
    }

    async fn answer(&self, path: &str, request: reqwest::RequestBuilder) -> Result<reqwest::Response> {
        let answer = request.send().await.map_err(|source| Unreachable { url: self.base.clone(), source })?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let bytes = answer.bytes().await.unwrap_or_default();
        let refused = match serde_json::from_slice::<ErrorBody>(&bytes) {
            Ok(ErrorBody { error }) => Refused { code: error.code, status: status.as_u16(), message: error.message },
            Err(_) => Refused { code: "unknown".into(), status: status.as_u16(), message: format!("{path}: {status}") },
        };
        Err(refused.into())
    }
}

/// Whether the same call may succeed later: the control plane was away or busy.
pub fn is_passing(error: &anyhow::Error) -> bool {
    error.is::<Unreachable>()
        || error.downcast_ref::<Refused>().is_some_and(|refused| refused.status >= 500)
        || error.downcast_ref::<reqwest::Error>().is_some()
}
