//! The routes: what each request asks of the store, and how the answer is told.

use std::future::Future;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, FromRequest, Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use bytes::Bytes;
use deploycore::model::{
    Digest, Goal, LastReport, MachineKey, MachineName, MachinePage, MachineReport, OfMachine, RegionName, Revision,
    ServiceName, friendly_option,
};
use deploycore::port::goals::{Changes, Error, GoalStateStore, MAX_BATCH};
use deploycore::port::{MachineDirectory, ManifestSource, ReportSink};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

use super::manifests::Manifests;
use super::release::Release;
use super::source::{Closed, Prepared, Source, View};
use super::wire::{Compact, LAST_REPORT, NEXT_POLL, Problem, Put, REPORT_WANTED, Report, Written};
use super::{Access, GatewaySettings};

/// Machines ask each time; what they hold is checked by its tag.
const REVALIDATE: HeaderValue = HeaderValue::from_static("no-cache");
/// A manifest never changes: its address is the digest that it proves.
const IMMUTABLE: HeaderValue = HeaderValue::from_static("public, max-age=31536000, immutable");

/// The most of a page of machines. It is well below what clients read, by default 64 MiB, and above the largest report.
const PAGE_BYTES: usize = 16 << 20;
/// The most machines of a page.
const PAGE_MACHINES: usize = 10_000;

type Outcome = Result<Response, Report>;
type Shared = State<Arc<Inner>>;

pub(super) struct Inner {
    pub(super) settings: GatewaySettings,
    pub(super) source: Source,
    manifests: Option<Manifests>,
    reports: Option<Arc<dyn ReportSink>>,
    machines: Option<Arc<dyn MachineDirectory>>,
    waiters: Semaphore,
    release: Release,
    requests: Semaphore,
    /// Of connections, where the gateway serves them itself.
    pub(super) places: Arc<Semaphore>,
}

impl Inner {
    pub(super) fn new(
        settings: GatewaySettings,
        goals: Arc<dyn GoalStateStore>,
        manifests: Option<Arc<dyn ManifestSource>>,
        reports: Option<Arc<dyn ReportSink>>,
        machines: Option<Arc<dyn MachineDirectory>>,
    ) -> Self {
        let permits = |most: usize| Semaphore::new(most.min(Semaphore::MAX_PERMITS));
        Self {
            source: Source::new(goals, settings.request_timeout),
            manifests: manifests.map(|source| Manifests::new(source, &settings)),
            reports,
            machines,
            waiters: permits(settings.max_waiters),
            release: Release::new(settings.release_within),
            requests: permits(settings.max_requests),
            places: Arc::new(permits(settings.max_connections)),
            settings,
        }
    }

    async fn within<T, E: Into<Report>>(&self, work: impl Future<Output = Result<T, E>>) -> Result<T, Report> {
        let _turn = self.requests.try_acquire().map_err(|_| {
            metrics::counter!("deploycore_gateway_requests_refused_total").increment(1);
            Problem::Overloaded.says(format!("{} requests are being answered already", self.settings.max_requests))
        })?;
        match tokio::time::timeout(self.settings.request_timeout, work).await {
            Ok(outcome) => outcome.map_err(Into::into),
            Err(_) => Err(Problem::Unavailable.says("the store took too long")),
        }
    }

    /// Waits until the store has left revision `seen`, and gives what it then is, and whether the time is over. The watch is a hint: before
    /// it is said that nothing changed, the store is read.
    async fn wait(&self, seen: Revision, deadline: Instant) -> Result<(Arc<View>, bool), Report> {
        let Some(view) = self.source.beyond(seen, deadline).await? else {
            return Ok((self.within(self.source.current()).await?, true));
        };
        let waiting = self.settings.max_waiters.saturating_sub(self.waiters.available_permits());
        self.release.turn(view.revision(), waiting).await;
        Ok((self.source.newest().unwrap_or(view), false))
    }

    fn writable(&self) -> Result<(), Report> {
        match self.settings.access {
            Access::Writable => Ok(()),
            Access::ReadOnly => Err(Problem::ReadOnly.says("goals are not written through this gateway")),
        }
    }

    fn place_to_wait(&self) -> Result<SemaphorePermit<'_>, Report> {
        self.waiters.try_acquire().map_err(|_| {
            metrics::counter!("deploycore_gateway_waiters_refused_total").increment(1);
            Problem::TooManyWaiters.says(format!("{} requests wait here already", self.settings.max_waiters))
        })
    }

    fn deadline(&self, wait: Option<Duration>) -> Option<Instant> {
        let wait = wait.filter(|wait| !wait.is_zero())?.min(self.settings.max_wait);
        // Those who were let go together do not come back together.
        Some(Instant::now() + wait.mul_f64(1.0 - 0.1 * fastrand::f64()))
    }

    /// What a machine shall let pass until it polls again.
    fn next_poll(&self) -> Duration {
        let connections = self.settings.max_connections.saturating_sub(self.places.available_permits());
        let shared = Duration::from_secs(connections as u64) / self.settings.polls_per_second.max(1);
        self.settings.next_poll.max(shared)
    }
}

pub(super) fn router(inner: Arc<Inner>) -> Router {
    let limit = usize::try_from(inner.settings.max_body.as_u64()).unwrap_or(usize::MAX);
    Router::new()
        .route("/v1/goals", get(list))
        .route("/v1/goals/{service}", get(one).put(write))
        .route("/v1/goals/{service}/history", get(history))
        .route("/v1/changes", get(changes))
        .route("/v1/compact", post(compact))
        .route("/v1/manifests/{digest}", get(manifest))
        .route("/v1/machines", get(machines))
        .route("/v1/standings", post(standings))
        .route("/v1/tally", post(tally))
        .route("/v1/machines/{name}", put(report))
        .layer(DefaultBodyLimit::max(limit))
        .with_state(inner)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    #[serde(default)]
    prefix: String,
    #[serde(default, with = "friendly_option")]
    wait: Option<Duration>,
}

// The two requests that wait are taken apart before: of a request that is kept, the connection's buffer is kept too.

async fn list(State(inner): Shared, request: Request) -> Outcome {
    let (query, held) = (Query::try_from_uri(request.uri()), Held::of(request.headers()));
    let word = LastWord::of(request.headers());
    drop(request);
    word.tell(&inner).await;
    let Query(ListQuery { prefix, wait }) = query.map_err(refused)?;
    let mut view = inner.within(inner.source.current()).await?;
    let mut list = view.list(&prefix);
    if let Some(deadline) = inner.deadline(wait).filter(|_| held.is(&list.tag)) {
        let _place = inner.place_to_wait()?;
        let mut over = false;
        while held.is(&list.tag) && !over {
            (view, over) = inner.wait(view.revision(), deadline).await?;
            list = view.list(&prefix);
        }
    }
    let mut response = tagged(&held, list, REVALIDATE);
    response.headers_mut().insert(NEXT_POLL, HeaderValue::from(inner.next_poll().as_secs()));
    word.answer(&inner, &mut response).await;
    Ok(response)
}

async fn one(State(inner): Shared, service: Result<Path<String>, PathRejection>, headers: HeaderMap) -> Outcome {
    let service: ServiceName = named(service)?;
    let view = inner.within(inner.source.current()).await?;
    let stored = view.get(&service).ok_or_else(|| Problem::NoGoal.says(format!("{service} has no goal")))?;
    let tag = format!("\"{}.{}\"", stored.goal.position, stored.revision);
    let tag = HeaderValue::from_str(&tag).expect("numbers are plain text");
    if Held::of(&headers).is(&tag) {
        return Ok(not_modified(tag, REVALIDATE));
    }
    Ok(whole(Prepared { tag, body: encode(stored) }, REVALIDATE))
}

async fn write(
    State(inner): Shared,
    service: Result<Path<String>, PathRejection>,
    body: Result<Whole, Report>,
) -> Outcome {
    inner.writable()?;
    let service: ServiceName = named(service)?;
    let Put { goal, expect } = decode(body)?;
    if goal.service != service {
        return Err(invalid(format!("the goal is of {}, the address of {service}", goal.service)));
    }
    let revision = inner.within(inner.source.goals.put(&goal, expect)).await?;
    Ok(json(&Written { revision }))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct HistoryQuery {
    #[serde(default = "most")]
    limit: usize,
}

fn most() -> usize {
    MAX_BATCH
}

async fn history(
    State(inner): Shared,
    service: Result<Path<String>, PathRejection>,
    query: Result<Query<HistoryQuery>, QueryRejection>,
) -> Outcome {
    let service: ServiceName = named(service)?;
    let Query(HistoryQuery { limit }) = query.map_err(refused)?;
    Ok(json(&inner.within(inner.source.goals.history(&service, limit.min(MAX_BATCH))).await?))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ChangesQuery {
    #[serde(default)]
    since: Revision,
    #[serde(default, with = "friendly_option")]
    wait: Option<Duration>,
}

async fn changes(State(inner): Shared, request: Request) -> Outcome {
    let (query, word) = (Query::try_from_uri(request.uri()), LastWord::of(request.headers()));
    drop(request);
    word.tell(&inner).await;
    let Query(ChangesQuery { since, wait }) = query.map_err(refused)?;
    let mut view = inner.within(inner.source.current()).await?;
    if let Some(deadline) = inner.deadline(wait).filter(|_| since == view.revision()) {
        let _place = inner.place_to_wait()?;
        (view, _) = inner.wait(since, deadline).await?;
    }
    let mut response = if since == view.revision() {
        json(&Changes { revision: since, goals: Vec::new() })
    } else {
        answer(inner.within(inner.source.changes(&view, since)).await?)
    };
    word.answer(&inner, &mut response).await;
    Ok(response)
}

async fn compact(State(inner): Shared, body: Result<Whole, Report>) -> Outcome {
    inner.writable()?;
    let Compact { through } = decode(body)?;
    inner.within(inner.source.goals.compact(through)).await?;
    inner.source.forget_pages();
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn manifest(State(inner): Shared, digest: Result<Path<String>, PathRejection>, headers: HeaderMap) -> Outcome {
    let manifests = inner.manifests.as_ref().ok_or_else(|| not_offered("manifests"))?;
    let digest: Digest = named(digest)?;
    let tag = HeaderValue::from_str(&format!("\"{digest}\"")).expect("a digest is plain text");
    let body = manifests.get(&digest).await?;
    Ok(tagged(&Held::of(&headers), Prepared { tag, body }, IMMUTABLE))
}

async fn report(
    State(inner): Shared,
    name: Result<Path<String>, PathRejection>,
    body: Result<Whole, Report>,
) -> Outcome {
    let reports = inner.reports.as_ref().ok_or_else(|| not_offered("reports"))?;
    let Path(name) = name.map_err(refused)?;
    let report: MachineReport = decode(body)?;
    if report.machine.as_str() != name {
        return Err(invalid(format!("the report is of {}, the address of {name}", report.machine)));
    }
    inner.within(reports.report(&report)).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Which page of machines is asked for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PageQuery {
    limit: Option<usize>,
    after_region: Option<RegionName>,
    after_machine: Option<MachineName>,
}

impl PageQuery {
    fn after(self) -> Result<Option<MachineKey>, Report> {
        match (self.after_region, self.after_machine) {
            (Some(region), Some(machine)) => Ok(Some(MachineKey { region, machine })),
            (None, None) => Ok(None),
            _ => Err(invalid("after_region and after_machine go together".to_owned())),
        }
    }
}

/// Whoever names no limit gets all at once, as clients did that knew no pages.
async fn machines(State(inner): Shared, query: Result<Query<PageQuery>, QueryRejection>) -> Outcome {
    let machines = inner.machines.as_ref().ok_or_else(|| not_offered("machines"))?;
    let Query(query) = query.map_err(refused)?;
    let Some(limit) = query.limit else {
        return Ok(json(&inner.within(machines.machines(query.after()?.as_ref(), usize::MAX)).await?));
    };
    let after = query.after()?;
    Ok(json(&shortened(inner.within(machines.machines(after.as_ref(), limit.min(PAGE_MACHINES))).await?)))
}

async fn standings(
    State(inner): Shared,
    query: Result<Query<PageQuery>, QueryRejection>,
    body: Result<Whole, Report>,
) -> Outcome {
    let machines = inner.machines.as_ref().ok_or_else(|| not_offered("machines"))?;
    let Query(query) = query.map_err(refused)?;
    let limit = query.limit.unwrap_or(PAGE_MACHINES).min(PAGE_MACHINES);
    let (after, goal) = (query.after()?, decode(body)?);
    Ok(json(&shortened(inner.within(machines.standings(&goal, after.as_ref(), limit)).await?)))
}

/// A page of no more than [`PAGE_BYTES`], and one machine at least.
fn shortened<T: OfMachine + Serialize>(mut page: MachinePage<T>) -> MachinePage<T> {
    let mut bytes = 0;
    let fits = page.machines.iter().take_while(|machine| {
        bytes += serde_json::to_vec(machine).expect("it is plain data").len();
        bytes <= PAGE_BYTES
    });
    let fits = fits.count().max(1);
    page.cut(fits);
    page
}

async fn tally(State(inner): Shared, body: Result<Whole, Report>) -> Outcome {
    let machines = inner.machines.as_ref().ok_or_else(|| not_offered("machines"))?;
    let goal: Goal = decode(body)?;
    Ok(json(&inner.within(machines.tally(&goal)).await?))
}

/// The body of a request, bounded in size and time: a client that stalls does not hold what came for ever.
struct Whole(Bytes);

impl FromRequest<Arc<Inner>> for Whole {
    type Rejection = Report;

    async fn from_request(request: Request, inner: &Arc<Inner>) -> Result<Self, Report> {
        let body = tokio::time::timeout(inner.settings.request_timeout, Bytes::from_request(request, inner)).await;
        let body = body.map_err(|_| Problem::TooSlow.says("the request's body took too long"))?;
        body.map(Self).map_err(|error: BytesRejection| match error.status() {
            StatusCode::PAYLOAD_TOO_LARGE => Problem::TooLarge.says("the request is larger than this gateway takes"),
            _ => invalid(error.body_text()),
        })
    }
}

impl From<Closed> for Report {
    fn from(Closed: Closed) -> Self {
        Problem::Unavailable.says("the gateway is shutting down")
    }
}

fn named<T: FromStr<Err: std::fmt::Display>>(path: Result<Path<String>, PathRejection>) -> Result<T, Report> {
    let Path(text) = path.map_err(refused)?;
    text.parse().map_err(|error: T::Err| invalid(error.to_string()))
}

fn decode<T: DeserializeOwned>(body: Result<Whole, Report>) -> Result<T, Report> {
    let Whole(body) = body?;
    serde_json::from_slice(&body).map_err(|error| invalid(format!("the body cannot be read: {error}")))
}

fn invalid(reason: String) -> Report {
    Error::Invalid(reason).into()
}

fn refused(rejection: impl std::fmt::Display) -> Report {
    invalid(rejection.to_string())
}

fn not_offered(what: &str) -> Report {
    Problem::NotOffered.says(format!("{what} are not offered by this gateway"))
}

/// What a poll says of the machine's report, if it does.
struct LastWord(Option<LastReport>);

impl LastWord {
    fn of(headers: &HeaderMap) -> Self {
        Self(headers.get(LAST_REPORT).and_then(|value| value.to_str().ok()?.parse().ok()))
    }

    /// Passes it on, when the request comes and again when it is answered: the machine waited meanwhile. Whether the report is known.
    async fn tell(&self, inner: &Inner) -> bool {
        let (Some(last), Some(reports)) = (&self.0, &inner.reports) else { return true };
        // Where that cannot be told now, no whole report is asked for: it would be one more request in a bad moment.
        inner.within(reports.still_holds(last)).await.unwrap_or(true)
    }

    async fn answer(&self, inner: &Inner, response: &mut Response) {
        if !self.tell(inner).await {
            response.headers_mut().insert(REPORT_WANTED, HeaderValue::from_static("1"));
        }
    }
}

/// The tags of what the caller holds, as it sent them.
struct Held(String);

impl Held {
    fn of(headers: &HeaderMap) -> Self {
        let tags = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
        Self(tags.collect::<Vec<_>>().join(","))
    }

    /// Whether the caller holds what `tag` stands for.
    fn is(&self, tag: &HeaderValue) -> bool {
        let mut tags = self.0.split(',').map(|held| held.trim().trim_start_matches("W/"));
        tags.any(|held| held == "*" || held.as_bytes() == tag.as_bytes())
    }
}

fn tagged(held: &Held, prepared: Prepared, caching: HeaderValue) -> Response {
    if held.is(&prepared.tag) { not_modified(prepared.tag, caching) } else { whole(prepared, caching) }
}

fn not_modified(tag: HeaderValue, caching: HeaderValue) -> Response {
    (StatusCode::NOT_MODIFIED, [(header::ETAG, tag), (header::CACHE_CONTROL, caching)]).into_response()
}

fn whole(prepared: Prepared, caching: HeaderValue) -> Response {
    let mut response = answer(prepared.body);
    response.headers_mut().insert(header::ETAG, prepared.tag);
    response.headers_mut().insert(header::CACHE_CONTROL, caching);
    response
}

fn answer(body: Bytes) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], Body::from(body)).into_response()
}

fn json(value: &impl Serialize) -> Response {
    answer(encode(value))
}

pub(super) fn encode(value: &impl Serialize) -> Bytes {
    serde_json::to_vec(value).expect("what is answered is plain data").into()
}
