//! The handlers of the control plane's API.

mod copies;
mod machines;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, FromRequest, FromRequestParts, State as Shared};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use deploycore::deploy;
use deploycore::model::{
    ArtifactName, ArtifactStatus, Attempt, AttemptOutcome, Completion, Digest, Goal, Job, JobId, LogName, NewJob,
    RegionName, ServiceName, Timestamp, Waiver,
};
use deploycore::port::goals::Stored;
use deploycore::port::queue::{JobCursor, JobFilter, JobPage};
use deploycore::port::{GoalStateStore, JobQueueExt, ReplicationLedgerExt, chain, goals, ledger, queue, store};
use deploycore::store::CollectorError;
use futures::future::join_all;
use futures::stream::{self, StreamExt, TryStreamExt};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{Region, State};
use crate::cluster::api::{
    BuildAnswer, BuildRequest, DeployRequest, ErrorBody, ErrorDetail, RegionStatus, RollbackRequest, SWARM_PATH,
    ServiceStatus, StandingsByRegion, Status, StoreUsage, UsageByRegion, WaiverRequest, usage_path,
};

/// The largest request body.
const MAX_BODY: usize = 1 << 20;
/// Of how many services machines are counted at once.
const SERVICES_AT_ONCE: usize = 16;
/// Goals shown of a service's history.
const HISTORY_SHOWN: usize = 100;

type Answer<T> = Result<Json<T>, Error>;
type Context = Shared<Arc<State>>;

pub(super) fn router(state: Arc<State>) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/builds", post(build))
        .route("/v1/jobs", get(jobs))
        .route("/v1/jobs/{job}", get(job))
        .route("/v1/jobs/{job}/attempts", get(attempts))
        .route("/v1/jobs/{job}/log", get(log))
        .route("/v1/jobs/{job}/cancel", post(cancel))
        .route("/v1/artifacts/{artifact}", get(artifact))
        .route("/v1/artifacts/{artifact}/reopen", post(reopen))
        .route("/v1/artifacts/{artifact}/prioritize", post(copies::prioritize))
        .route("/v1/replication", get(copies::replication))
        .route("/v1/collections", post(copies::collect))
        .route("/v1/services/{service}", get(service))
        .route("/v1/services/{service}/machines", get(machines::standings))
        .route("/v1/services/{service}/history", get(history))
        .route("/v1/deploys", post(deploy_artifact))
        .route("/v1/rollbacks", post(rollback))
        .route("/v1/machines", get(machines::machines))
        .route("/v1/usage/{digest}", get(usage))
        .route("/v1/swarm", get(swarm))
        .fallback(async || Error::new(StatusCode::NOT_FOUND, "unknown_call", "the API has no such path"))
        .method_not_allowed_fallback(async || {
            Error::new(StatusCode::METHOD_NOT_ALLOWED, "unknown_call", "the path does not take this method")
        })
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(state)
}

/// What a request carries; what it cannot be read as is answered like every other error.
#[derive(Debug, FromRequest)]
#[from_request(via(Json), rejection(Error))]
struct Body<T>(T);

#[derive(Debug, FromRequestParts)]
#[from_request(via(axum::extract::Path), rejection(Error))]
struct Path<T>(T);

#[derive(Debug, FromRequestParts)]
#[from_request(via(axum::extract::Query), rejection(Error))]
struct Query<T>(T);

async fn status(Shared(state): Context) -> Answer<Status> {
    let goals = state.goals.list("").await?.goals;
    let services = stream::iter(goals).map(|Stored { goal, .. }| async {
        let convergence = state.deployer.convergence(&goal.service).await?;
        Ok::<_, Error>(ServiceStatus { goal, convergence })
    });
    let services = services.buffered(SERVICES_AT_ONCE).try_collect().await?;
    let regions =
        join_all(state.regions.iter().map(|(name, region)| async { (name.clone(), describe(&state, region).await) }));
    let queue = state.queue.stats().await?;
    Ok(Json(Status { services, queue, regions: regions.await.into_iter().collect() }))
}

async fn describe(state: &State, region: &Region) -> RegionStatus {
    // No service is called so: it asks for a sign of life.
    let signs = ask_gateways::<serde::de::IgnoredAny>(state, region, "v1/goals?prefix=-");
    let (goals, signs) = futures::join!(region.gateway.list(""), signs);
    let positions = |stored: Stored| (stored.goal.service, stored.goal.position);
    let silent = region.urls.iter().zip(signs).filter(|(_, sign)| sign.is_none());
    RegionStatus {
        gateways: region.urls.clone(),
        silent: silent.map(|(url, _)| url.clone()).collect(),
        goals: goals.ok().map(|snapshot| snapshot.goals.into_iter().map(positions).collect()),
    }
}

async fn build(Shared(state): Context, Body(request): Body<BuildRequest>) -> Answer<BuildAnswer> {
    let service = match request.name {
        Some(name) if state.services.contains_key(&name) => name,
        Some(name) => return Err(Error::bad(format!("service {name} is not configured: known are {}", state.known()))),
        None => match state.services.keys().collect::<Vec<_>>()[..] {
            [only] => only.clone(),
            _ => return Err(Error::bad(format!("which service? known are {}", state.known()))),
        },
    };
    let mut job =
        NewJob::new(service, request.commit).with_priority(request.priority).with_older_jobs(request.older_jobs);
    if let Some(id) = request.job {
        job = job.with_id(id);
    }
    let outcome = state.queue.enqueue_one(&job).await?;
    let artifact = ArtifactName::for_job(&job.service, outcome.job());
    Ok(Json(BuildAnswer { job: outcome.job(), outcome, artifact }))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct JobsQuery {
    limit: Option<u32>,
    service: Option<ServiceName>,
    after_created_at: Option<Timestamp>,
    after_job: Option<JobId>,
}

async fn jobs(Shared(state): Context, Query(query): Query<JobsQuery>) -> Answer<JobPage> {
    let after = match (query.after_created_at, query.after_job) {
        (Some(created_at), Some(job)) => Some(JobCursor { created_at, job }),
        (None, None) => None,
        _ => {
            return Err(Error::bad(
                "after_created_at and after_job go together: both stand in `next` of the page before",
            ));
        }
    };
    let filter = JobFilter { service: query.service, ..JobFilter::default() };
    Ok(Json(state.queue.list(&filter, after, query.limit.unwrap_or(100)).await?))
}

async fn job(Shared(state): Context, Path(job): Path<JobId>) -> Answer<Job> {
    Ok(Json(state.queue.require(job).await?))
}

async fn cancel(Shared(state): Context, Path(job): Path<JobId>) -> Answer<Job> {
    Ok(Json(state.queue.cancel(job).await?))
}

async fn attempts(Shared(state): Context, Path(job): Path<JobId>) -> Answer<Vec<Attempt>> {
    Ok(Json(state.queue.attempts(job).await?))
}

async fn log(Shared(state): Context, Path(job): Path<JobId>) -> Result<Response, Error> {
    let attempts = state.queue.attempts(job).await?;
    let name = attempts.iter().rev().find_map(log_name);
    let missing = || Error::new(StatusCode::NOT_FOUND, "not_found", format!("job {job} has no log"));
    let bytes = state.store.log(&name.ok_or_else(missing)?).await?.ok_or_else(missing)?;
    Ok(([("content-type", "text/plain; charset=utf-8")], bytes).into_response())
}

/// The log that the worker left of an attempt. A cancelled one does not name it, but keeps it under the usual name.
fn log_name(attempt: &Attempt) -> Option<LogName> {
    let Some(AttemptOutcome::Completed { completion }) = &attempt.outcome else { return None };
    match completion {
        Completion::Succeeded { log, .. } => *log,
        Completion::Failed { failure } => failure.log,
        Completion::Cancelled => Some(LogName { job: attempt.lease.job, epoch: attempt.lease.epoch }),
        _ => None,
    }
}

async fn artifact(Shared(state): Context, Path(artifact): Path<ArtifactName>) -> Answer<ArtifactStatus> {
    Ok(Json(state.ledger.require(&artifact).await?))
}

async fn reopen(Shared(state): Context, Path(artifact): Path<ArtifactName>) -> Answer<BTreeSet<RegionName>> {
    Ok(Json(state.ledger.reopen_failed(&artifact, "asked for through the API").await?))
}

async fn service(Shared(state): Context, Path(service): Path<ServiceName>) -> Answer<ServiceStatus> {
    let goal = state.current(&service).await?.ok_or_else(|| no_goal(&service))?;
    let convergence = state.deployer.convergence(&service).await?;
    Ok(Json(ServiceStatus { goal, convergence }))
}

async fn history(Shared(state): Context, Path(service): Path<ServiceName>) -> Answer<Vec<Stored>> {
    Ok(Json(state.goals.history(&service, HISTORY_SHOWN).await?))
}

async fn deploy_artifact(Shared(state): Context, Body(request): Body<DeployRequest>) -> Answer<Goal> {
    let Some(run) = request.run.or_else(|| state.services.get(&request.service).cloned()) else {
        let service = &request.service;
        return Err(Error::bad(format!("service {service} is not configured: say how to run it in `run`")));
    };
    let _one_at_a_time = state.writing.lock().await;
    let wanted = deploy::DeployRequest::new(request.service, request.artifact).with_run(run);
    let wanted = wanted.with_selector(request.selector).with_redeploy(request.redeploy);
    Ok(Json(state.deployer.deploy(&wanted.with_waivers(begin(request.waivers))).await?))
}

async fn rollback(Shared(state): Context, Body(request): Body<RollbackRequest>) -> Answer<Goal> {
    let _one_at_a_time = state.writing.lock().await;
    let current = state.current(&request.service).await?.map(|goal| goal.position.generation);
    if request.current.is_some() && request.current != current {
        let message = format!("{} is at generation {current:?}, not at {:?}", request.service, request.current);
        return Err(Error::new(StatusCode::CONFLICT, "moved_on", message));
    }
    let waivers = begin(request.waivers);
    Ok(Json(state.deployer.rollback_without(&request.service, request.to, &waivers).await?))
}

fn begin(waivers: Vec<WaiverRequest>) -> Vec<Waiver> {
    let now = Timestamp::now();
    waivers.into_iter().map(|waiver| waiver.begin(now)).collect()
}

/// Each gate counts what it gave out, so all of them are needed.
async fn usage(Shared(state): Context, Path(digest): Path<Digest>) -> Answer<UsageByRegion> {
    let path = usage_path(&digest);
    let mut usage = UsageByRegion::new();
    for (name, answers) in ask_regions::<StoreUsage>(&state, &path).await {
        let silent =
            || Error::new(StatusCode::SERVICE_UNAVAILABLE, "region_unavailable", format!("{name} does not answer"));
        let mut sum = StoreUsage::default();
        for answer in answers {
            let StoreUsage { leased_bytes, recovery_bytes } = answer.ok_or_else(silent)?;
            sum.leased_bytes += leased_bytes;
            sum.recovery_bytes += recovery_bytes;
        }
        usage.insert(name, sum);
    }
    Ok(Json(usage))
}

/// Every member tells each tracker: one that answers is enough.
async fn swarm(Shared(state): Context) -> Json<StandingsByRegion> {
    let answers = ask_regions(&state, SWARM_PATH).await;
    Json(answers.into_iter().map(|(name, answers)| (name, answers.into_iter().flatten().next())).collect())
}

/// What each gateway of each region answers; `None` where it does not.
async fn ask_regions<T: DeserializeOwned>(state: &State, path: &str) -> BTreeMap<RegionName, Vec<Option<T>>> {
    let asked =
        state.regions.iter().map(|(name, region)| async { (name.clone(), ask_gateways(state, region, path).await) });
    join_all(asked).await.into_iter().collect()
}

async fn ask_gateways<T: DeserializeOwned>(state: &State, region: &Region, path: &str) -> Vec<Option<T>> {
    let asked = region.urls.iter().map(|url| async {
        let answer = state.http.get(url.join(path).ok()?).send().await.ok()?.error_for_status().ok()?;
        answer.json::<T>().await.ok()
    });
    join_all(asked).await
}

impl State {
    fn known(&self) -> String {
        self.services.keys().map(ServiceName::as_str).collect::<Vec<_>>().join(", ")
    }

    async fn current(&self, service: &ServiceName) -> Result<Option<Goal>, goals::Error> {
        Ok(self.goals.get(service).await?.map(|stored| stored.goal))
    }
}

fn no_goal(service: &ServiceName) -> Error {
    Error::new(StatusCode::NOT_FOUND, "not_found", format!("service {service} was never deployed"))
}

/// An answer that is not a success.
#[derive(Debug)]
struct Error {
    status: StatusCode,
    body: ErrorDetail,
}

impl Error {
    fn new(status: StatusCode, code: &str, message: impl Into<String>) -> Self {
        Self { status, body: ErrorDetail { code: code.to_owned(), message: message.into() } }
    }

    fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", message)
    }

    fn of(status: StatusCode, code: &str, error: &(dyn std::error::Error + 'static)) -> Self {
        if status.is_server_error() {
            tracing::error!("{}", chain(error));
        }
        Self::new(status, code, chain(error))
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        (self.status, Json(ErrorBody { error: self.body })).into_response()
    }
}

impl From<JsonRejection> for Error {
    fn from(rejection: JsonRejection) -> Self {
        Self::new(rejection.status(), "invalid", rejection.body_text())
    }
}

impl From<PathRejection> for Error {
    fn from(rejection: PathRejection) -> Self {
        Self::new(rejection.status(), "invalid", rejection.body_text())
    }
}

impl From<QueryRejection> for Error {
    fn from(rejection: QueryRejection) -> Self {
        Self::new(rejection.status(), "invalid", rejection.body_text())
    }
}

impl From<queue::Error> for Error {
    fn from(error: queue::Error) -> Self {
        let (status, code) = match &error {
            queue::Error::NotFound { .. } => (StatusCode::NOT_FOUND, "not_found"),
            queue::Error::Conflict { .. } => (StatusCode::CONFLICT, "conflict"),
            queue::Error::Invalid(_) => (StatusCode::UNPROCESSABLE_ENTITY, "invalid"),
            error if error.is_retryable() => (StatusCode::SERVICE_UNAVAILABLE, "busy"),
            _ => (StatusCode::INTERNAL_SERVER_ERROR, "backend"),
        };
        Self::of(status, code, &error)
    }
}

impl From<ledger::Error> for Error {
    fn from(error: ledger::Error) -> Self {
        let (status, code) = match &error {
            ledger::Error::NotFound { .. } => (StatusCode::NOT_FOUND, "not_found"),
            ledger::Error::NotDeployable { .. } => (StatusCode::CONFLICT, "not_deployable"),
            ledger::Error::Collected { .. } => (StatusCode::CONFLICT, "collected"),
            ledger::Error::Conflict { .. } | ledger::Error::InUse { .. } => (StatusCode::CONFLICT, "conflict"),
            ledger::Error::Invalid(_) => (StatusCode::UNPROCESSABLE_ENTITY, "invalid"),
            error if error.is_retryable() => (StatusCode::SERVICE_UNAVAILABLE, "busy"),
            _ => (StatusCode::INTERNAL_SERVER_ERROR, "backend"),
        };
        Self::of(status, code, &error)
    }
}

impl From<CollectorError> for Error {
    fn from(error: CollectorError) -> Self {
        match error {
            CollectorError::Ledger(error) => error.into(),
            CollectorError::Goals(error) => error.into(),
            error => Self::of(StatusCode::INTERNAL_SERVER_ERROR, "backend", &error),
        }
    }
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        Self::of(StatusCode::SERVICE_UNAVAILABLE, "backend", &error)
    }
}

impl From<goals::Error> for Error {
    fn from(error: goals::Error) -> Self {
        let (status, code) = match &error {
            goals::Error::Conflict { .. } | goals::Error::Stale { .. } => (StatusCode::CONFLICT, "moved_on"),
            goals::Error::Equivocation { .. } => (StatusCode::CONFLICT, "conflict"),
            goals::Error::Invalid(_) => (StatusCode::UNPROCESSABLE_ENTITY, "invalid"),
            error if error.is_retryable() => (StatusCode::SERVICE_UNAVAILABLE, "busy"),
            _ => (StatusCode::INTERNAL_SERVER_ERROR, "backend"),
        };
        Self::of(status, code, &error)
    }
}

impl From<deploy::Error> for Error {
    fn from(error: deploy::Error) -> Self {
        let (status, code) = match error {
            deploy::Error::Ledger(error) => return error.into(),
            deploy::Error::Goals(error) => return error.into(),
            deploy::Error::NeverDeployed { .. } => (StatusCode::NOT_FOUND, "not_found"),
            deploy::Error::OtherService { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "invalid"),
            deploy::Error::Waiver(_) => (StatusCode::UNPROCESSABLE_ENTITY, "invalid_waiver"),
            deploy::Error::UnknownGeneration { .. } => (StatusCode::NOT_FOUND, "unknown_generation"),
            deploy::Error::NothingToRollBackTo { .. } => (StatusCode::CONFLICT, "nothing_to_roll_back_to"),
            deploy::Error::Superseded { .. } | deploy::Error::Contended { .. } => (StatusCode::CONFLICT, "moved_on"),
            _ => (StatusCode::SERVICE_UNAVAILABLE, "backend"),
        };
        Self::of(status, code, &error)
    }
}

#[cfg(test)]
mod tests {
    use deploycore::model::{
        ClaimId, Epoch, Failure, FailureKind, Generation, GoalEpoch, GoalPosition, Lease, Revision,
    };
    use deploycore::port::BackendError;

    use super::*;

    fn status(error: impl Into<Error>) -> (u16, String) {
        let Error { status, body } = error.into();
        (status.as_u16(), body.code)
    }

    /// Clients repeat a call for as long as the answer is a failure of the server's.
    #[test]
    fn what_a_repetition_cannot_mend_is_no_failure_of_the_server() {
        let service = || ServiceName::new("web").unwrap();
        let artifact = || ArtifactName::new("web-1").unwrap();
        let position = GoalPosition { epoch: GoalEpoch(0), generation: Generation(1) };
        let invalid = || "too large".to_owned();
        let conflict = goals::Error::Conflict { service: service(), expected: None, found: Some(Revision(1)) };
        let stale = goals::Error::Stale { service: service(), stored: position, offered: position };
        for (answer, expected) in [
            (status(goals::Error::Invalid(invalid())), (422, "invalid")),
            (status(deploy::Error::Goals(goals::Error::Invalid(invalid()))), (422, "invalid")),
            (status(conflict), (409, "moved_on")),
            (status(stale), (409, "moved_on")),
            (status(goals::Error::Equivocation { service: service(), position }), (409, "conflict")),
            (status(goals::Error::Backend(BackendError::retryable("redb", "busy"))), (503, "busy")),
            (status(ledger::Error::Invalid(invalid())), (422, "invalid")),
            (status(ledger::Error::Conflict { artifact: artifact() }), (409, "conflict")),
            (status(ledger::Error::NotFound { artifact: artifact() }), (404, "not_found")),
        ] {
            assert_eq!((answer.0, answer.1.as_str()), expected);
        }
    }

    #[test]
    fn the_log_of_a_cancelled_attempt_goes_by_its_lease() {
        let lease = Lease { job: JobId::new(), claim: ClaimId::new(), epoch: Epoch::new(3) };
        let name = |outcome| {
            let worker = "w".parse().unwrap();
            log_name(&Attempt { lease, worker, claimed_at: Timestamp::UNIX_EPOCH, ended_at: None, outcome })
        };
        let completed = |completion| Some(AttemptOutcome::Completed { completion });
        let failure = Failure::new(FailureKind::Build, "no log was stored");
        assert_eq!(name(completed(Completion::Cancelled)), Some(LogName { job: lease.job, epoch: lease.epoch }));
        assert_eq!(name(completed(Completion::Failed { failure })), None);
        assert_eq!(name(Some(AttemptOutcome::LeaseLost)), None);
        assert_eq!(name(None), None);
    }
}
