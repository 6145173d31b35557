//! A gateway's store, from elsewhere.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytesize::ByteSize;
use deploycore::model::{Digest, Goal, KnownMachines, MachineReport, Manifest, Revision, ServiceName, friendly};
use deploycore::port::goals::{Changes, Error, Expect, GoalStateStore, Snapshot, Stored};
use deploycore::port::{BackendError, MachineDirectory, ManifestSource, ReportSink};
use futures::stream::{BoxStream, StreamExt};
use reqwest::header::{ETAG, HeaderValue, IF_NONE_MATCH};
use reqwest::{Method, RequestBuilder, StatusCode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use url::Url;

use super::wire::{BACKEND, Compact, Envelope, Problem, Put, Report, Written, unexpected};

/// Between requests of a watch: where waits are bounded by nothing it would be a busy loop over the network.
const LEAST_WAIT: Duration = Duration::from_secs(1);

/// Settings of a [`GatewayClient`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GatewayClientSettings {
    /// To reach the gateway; 5 s by default.
    #[serde(with = "friendly")]
    pub connect_timeout: Duration,
    /// From request to the end of the answer, waits not counted; 15 s by default.
    #[serde(with = "friendly")]
    pub request_timeout: Duration,
    /// How long one request of a watch waits for a change; 30 s by default. Requests that nothing has changed for follow each other by at
    /// least a second, however short the wait, here or by the gateway's own bound.
    #[serde(with = "friendly")]
    pub watch_wait: Duration,
    /// The largest answer that is read; 64 MiB by default, a thousand goals of the largest size.
    pub max_answer: ByteSize,
}

impl Default for GatewayClientSettings {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(15),
            watch_wait: Duration::from_secs(30),
            max_answer: ByteSize::mib(64),
        }
    }
}

impl GatewayClientSettings {
    /// Sets how long the gateway may take to answer.
    #[must_use]
    pub fn with_request_timeout(mut self, request_timeout: Duration) -> Self {
        self.request_timeout = request_timeout;
        self
    }

    /// Sets how long one request of a watch waits.
    #[must_use]
    pub fn with_watch_wait(mut self, watch_wait: Duration) -> Self {
        self.watch_wait = watch_wait;
        self
    }
}

/// What a [`Gateway`](super::Gateway) offers, over HTTP. Clones share connections and the last list.
///
/// A list that did not change costs a request without a body: the client keeps the last one with its tag. Nothing is retried here;
/// errors say whether the caller may. It goes straight to its URL: `HTTP_PROXY` and its kin, which a host may set for its way out, are not
/// obeyed, because a gateway is in the same region or in the same network.
#[derive(Debug, Clone)]
pub struct GatewayClient {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    http: reqwest::Client,
    base: Url,
    settings: GatewayClientSettings,
    last: Mutex<Option<Arc<LastList>>>,
}

#[derive(Debug)]
struct LastList {
    prefix: String,
    tag: HeaderValue,
    snapshot: Snapshot,
}

impl GatewayClient {
    /// A client with default settings of the gateway at `base`, such as `http://10.0.0.1:7070` or `http://proxy/region-a/`.
    /// Nothing is sent yet.
    ///
    /// Errors: `Invalid` when `base` is not an `http` URL.
    pub fn new(base: Url) -> Result<Self, Error> {
        Self::with_settings(base, GatewayClientSettings::default())
    }

    /// A client with settings.
    ///
    /// Errors: `Invalid` when `base` is not an `http` URL.
    pub fn with_settings(mut base: Url, settings: GatewayClientSettings) -> Result<Self, Error> {
        if base.scheme() != "http" || !base.has_host() {
            return Err(Error::Invalid(format!("{base} is not the URL of a gateway: use http://host:port")));
        }
        base.set_query(None);
        base.set_fragment(None);
        let http = reqwest::Client::builder()
            .no_proxy()
            .connect_timeout(settings.connect_timeout)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(lost)?;
        Ok(Self { inner: Arc::new(Inner { http, base, settings, last: Mutex::default() }) })
    }

    /// The gateway's address.
    pub fn base(&self) -> &Url {
        &self.inner.base
    }

    fn url(&self, path: &[&str], query: &[(&str, &str)]) -> Url {
        let mut url = self.inner.base.clone();
        url.path_segments_mut().expect("an http URL has a path").pop_if_empty().push("v1").extend(path);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        url
    }

    fn request(&self, method: Method, url: Url) -> RequestBuilder {
        self.inner.http.request(method, url).timeout(self.inner.settings.request_timeout)
    }

    async fn read<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, Error> {
        let answer = self.send(request).await?;
        parse(&answer.body)
    }

    /// As [`read`](Self::read), with `None` where the gateway says that it has none.
    async fn find<T: DeserializeOwned>(&self, request: RequestBuilder, none: &Problem) -> Result<Option<T>, Error> {
        match self.exchange(request).await? {
            Ok(answer) => parse(&answer.body).map(Some),
            Err(Refusal::Said(report, _)) if report.problem == *none => Ok(None),
            Err(refusal) => Err(refusal.into()),
        }
    }

    async fn send(&self, request: RequestBuilder) -> Result<Answer, Error> {
        self.exchange(request).await?.map_err(Error::from)
    }

    /// Sends a request and reads the answer: the outer error is of the way there and back.
    async fn exchange(&self, request: RequestBuilder) -> Result<Result<Answer, Refusal>, Error> {
        let mut response = request.send().await.map_err(lost)?;
        let (status, tag) = (response.status(), response.headers().get(ETAG).cloned());
        let most = self.inner.settings.max_answer.as_u64();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(lost)? {
            if (body.len() + chunk.len()) as u64 > most {
                let what = format!("the gateway's answer is larger than {}", self.inner.settings.max_answer);
                return Err(BackendError::permanent(BACKEND, what).into());
            }
            body.extend_from_slice(&chunk);
        }
        if status.is_success() || status == StatusCode::NOT_MODIFIED {
            return Ok(Ok(Answer { status, tag, body }));
        }
        Ok(Err(match serde_json::from_slice::<Envelope>(&body) {
            Ok(envelope) => Refusal::Said(envelope.error, status.as_u16()),
            Err(_) => Refusal::Other(String::from_utf8_lossy(&body).chars().take(200).collect(), status.as_u16()),
        }))
    }

    fn last(&self) -> std::sync::MutexGuard<'_, Option<Arc<LastList>>> {
        self.inner.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Answer {
    status: StatusCode,
    tag: Option<HeaderValue>,
    body: Vec<u8>,
}

enum Refusal {
    /// By the gateway.
    Said(Report, u16),
    /// By something that does not speak as the gateway does.
    Other(String, u16),
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Said(report, status) => report.into_error(status),
            Refusal::Other(text, status) => unexpected(status, &text).into(),
        }
    }
}

#[async_trait]
impl GoalStateStore for GatewayClient {
    async fn get(&self, service: &ServiceName) -> Result<Option<Stored>, Error> {
        let url = self.url(&["goals", service.as_str()], &[]);
        self.find(self.request(Method::GET, url), &Problem::NoGoal).await
    }

    async fn list(&self, prefix: &str) -> Result<Snapshot, Error> {
        let query = [("prefix", prefix)];
        let url = self.url(&["goals"], if prefix.is_empty() { &[] } else { &query });
        let held = self.last().clone().filter(|last| last.prefix == prefix);
        let mut request = self.request(Method::GET, url);
        if let Some(held) = &held {
            request = request.header(IF_NONE_MATCH, held.tag.clone());
        }
        let answer = self.send(request).await?;
        if answer.status == StatusCode::NOT_MODIFIED {
            let unasked = || unexpected(304, "nothing was held");
            return Ok(held.ok_or_else(unasked)?.snapshot.clone());
        }
        let snapshot: Snapshot = parse(&answer.body)?;
        if let Some(tag) = answer.tag {
            let last = LastList { prefix: prefix.to_owned(), tag, snapshot: snapshot.clone() };
            *self.last() = Some(Arc::new(last));
        }
        Ok(snapshot)
    }

    async fn put(&self, goal: &Goal, expect: Expect) -> Result<Revision, Error> {
        let url = self.url(&["goals", goal.service.as_str()], &[]);
        let request = self.request(Method::PUT, url).json(&Put { goal: Cow::Borrowed(goal), expect });
        self.read::<Written>(request).await.map(|written| written.revision)
    }

    async fn history(&self, service: &ServiceName, limit: usize) -> Result<Vec<Stored>, Error> {
        let url = self.url(&["goals", service.as_str(), "history"], &[("limit", &limit.to_string())]);
        self.read(self.request(Method::GET, url)).await
    }

    async fn changes(&self, since: Revision) -> Result<Changes, Error> {
        let url = self.url(&["changes"], &[("since", &since.to_string())]);
        self.read(self.request(Method::GET, url)).await
    }

    /// Requests that wait at the gateway, one after the other. The stream ends with an error when the gateway cannot be reached.
    fn watch(&self, since: Revision) -> BoxStream<'static, Result<Changes, Error>> {
        let client = self.clone();
        let steps = futures::stream::unfold(Some((client, since)), |state| async move {
            let (client, mut since) = state?;
            loop {
                let asked = Instant::now();
                match client.changed(since).await {
                    Err(error) => return Some((Err(error), None)),
                    Ok(changes) if !changes.goals.is_empty() => {
                        let next = (client, changes.revision);
                        return Some((Ok(changes), Some(next)));
                    }
                    Ok(changes) => {
                        since = changes.revision;
                        tokio::time::sleep_until(asked + LEAST_WAIT).await;
                    }
                }
            }
        });
        steps.boxed()
    }

    async fn compact(&self, through: Revision) -> Result<(), Error> {
        let request = self.request(Method::POST, self.url(&["compact"], &[])).json(&Compact { through });
        self.send(request).await.map(drop)
    }
}

impl GatewayClient {
    async fn changed(&self, since: Revision) -> Result<Changes, Error> {
        let GatewayClientSettings { watch_wait, request_timeout, .. } = self.inner.settings;
        let wait = format!("{}ms", watch_wait.as_millis());
        let url = self.url(&["changes"], &[("since", &since.to_string()), ("wait", &wait)]);
        self.read(self.request(Method::GET, url).timeout(watch_wait + request_timeout)).await
    }
}

#[async_trait]
impl ManifestSource for GatewayClient {
    async fn region_manifest(&self, digest: &Digest) -> Result<Option<Manifest>, BackendError> {
        let url = self.url(&["manifests", &digest.to_string()], &[]);
        let found: Option<Manifest> =
            self.find(self.request(Method::GET, url), &Problem::NoManifest).await.map_err(below)?;
        match found {
            Some(manifest) if manifest.digest() != *digest => {
                let what = format!("the gateway gave the manifest of {} for {digest}", manifest.digest());
                Err(BackendError::permanent(BACKEND, what))
            }
            found => Ok(found),
        }
    }
}

#[async_trait]
impl ReportSink for GatewayClient {
    async fn report(&self, report: &MachineReport) -> Result<(), BackendError> {
        let url = self.url(&["machines", report.machine.as_str()], &[]);
        self.send(self.request(Method::PUT, url).json(report)).await.map(drop).map_err(below)
    }
}

#[async_trait]
impl MachineDirectory for GatewayClient {
    async fn machines(&self) -> Result<KnownMachines, BackendError> {
        let url = self.url(&["machines"], &[]);
        self.read(self.request(Method::GET, url)).await.map_err(below)
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Error> {
    let unread = |error| BackendError::permanent(BACKEND, format!("the gateway's answer cannot be read: {error}"));
    serde_json::from_slice(body).map_err(|error| unread(error).into())
}

fn lost(error: reqwest::Error) -> Error {
    let make = if error.is_builder() { BackendError::permanent } else { BackendError::retryable };
    make(BACKEND, error).into()
}

fn below(error: Error) -> BackendError {
    match error {
        Error::Backend(error) => error,
        other => BackendError::permanent(BACKEND, other),
    }
}
