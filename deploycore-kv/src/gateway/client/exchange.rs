//! One request and its answer, by whichever gateway gives one.

use std::time::Duration;

use bytes::Bytes;
use deploycore::port::BackendError;
use deploycore::port::goals::Error;
use reqwest::header::{CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::{Method, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use url::Url;

use super::super::wire::{BACKEND, Envelope, Problem, Report, unexpected};
use super::GatewayClient;
use super::replicas::Load;

/// The longest that a gateway can make a client wait by `Retry-After`, and what one that says nothing means.
const MOST_REST: Duration = Duration::from_mins(5);
const USUAL_REST: Duration = Duration::from_secs(5);

/// Whom a request may go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whom {
    /// Any gateway, one after the other: it changes nothing, or the same twice.
    Any,
    /// Any, until one may have acted on it: a write whose reply is lost is not sent to another.
    AnyOnce,
    /// This one alone.
    One(usize),
}

/// A request, for any gateway.
#[derive(Debug, Clone)]
pub(super) struct Ask<'a> {
    pub(super) method: Method,
    pub(super) path: &'a [&'a str],
    pub(super) query: &'a [(&'a str, &'a str)],
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) body: Option<Bytes>,
    pub(super) whom: Whom,
    /// How long it waits at the gateway.
    pub(super) wait: Duration,
    /// Whether it says too that the machine's last report holds.
    pub(super) carries_report: bool,
}

impl<'a> Ask<'a> {
    pub(super) fn get(path: &'a [&'a str]) -> Self {
        let (method, query, headers) = (Method::GET, [].as_slice(), Vec::new());
        Self { method, path, query, headers, body: None, whom: Whom::Any, wait: Duration::ZERO, carries_report: false }
    }

    pub(super) fn send(method: Method, path: &'a [&'a str], body: &impl Serialize) -> Self {
        let body = serde_json::to_vec(body).expect("requests are plain data");
        let headers = vec![(CONTENT_TYPE, HeaderValue::from_static("application/json"))];
        Self { method, headers, body: Some(body.into()), ..Self::get(path) }
    }

    pub(super) fn to(mut self, whom: Whom) -> Self {
        self.whom = whom;
        self
    }

    fn url(&self, base: &Url) -> Url {
        let mut url = base.clone();
        url.path_segments_mut().expect("an http URL has a path").pop_if_empty().push("v1").extend(self.path);
        if !self.query.is_empty() {
            url.query_pairs_mut().extend_pairs(self.query);
        }
        url
    }

    fn load(&self) -> Load {
        match self.path {
            ["manifests", ..] => Load::Manifest,
            _ if self.wait.is_zero() => Load::Other,
            _ => Load::Wait,
        }
    }
}

#[derive(Debug)]
pub(super) struct Answer {
    /// Who gave it.
    pub(super) replica: usize,
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    pub(super) fn tag(&self) -> Option<HeaderValue> {
        self.headers.get(ETAG).cloned()
    }

    pub(super) fn read<T: DeserializeOwned>(&self) -> Result<T, Error> {
        let unread = |error| BackendError::permanent(BACKEND, format!("the gateway's answer cannot be read: {error}"));
        serde_json::from_slice(&self.body).map_err(|error| unread(error).into())
    }
}

pub(super) enum Refusal {
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

/// How one gateway failed.
enum Failure {
    /// Nothing came back, or not all.
    Lost(reqwest::Error),
    /// More came back than is read.
    TooLarge(Error),
}

impl GatewayClient {
    pub(super) async fn read<T: DeserializeOwned>(&self, ask: Ask<'_>) -> Result<T, Error> {
        self.send(ask).await?.read()
    }

    /// As [`read`](Self::read), with `None` where the gateway says that it has none.
    pub(super) async fn find<T: DeserializeOwned>(&self, ask: Ask<'_>, none: &Problem) -> Result<Option<T>, Error> {
        match self.exchange(ask).await? {
            Ok(answer) => answer.read().map(Some),
            Err(Refusal::Said(report, _)) if report.problem == *none => Ok(None),
            Err(refusal) => Err(refusal.into()),
        }
    }

    pub(super) async fn send(&self, ask: Ask<'_>) -> Result<Answer, Error> {
        self.exchange(ask).await?.map_err(Error::from)
    }

    /// Sends a request and reads the answer: the outer error is of the way there and back. A gateway that wants to be left alone is, and
    /// each other is asked once at most.
    async fn exchange(&self, ask: Ask<'_>) -> Result<Result<Answer, Refusal>, Error> {
        let (replicas, load) = (&self.inner.replicas, ask.load());
        // Whether a gateway's store can give a manifest now says nothing of who is to be asked first for the rest.
        let steers = load != Load::Manifest;
        let mut last: Option<Result<Refusal, Error>> = None;
        let mut rest = MOST_REST;
        for replica in replicas.in_order() {
            if matches!(ask.whom, Whom::One(only) if only != replica) {
                continue;
            }
            if let Some(span) = replicas.rests_for(replica, load) {
                rest = rest.min(span);
                continue;
            }
            match self.once(replica, &ask).await {
                Ok(Ok(answer)) => {
                    if steers && !matches!(ask.whom, Whom::One(_)) {
                        replicas.answered(replica);
                    }
                    return Ok(Ok(answer));
                }
                Ok(Err((refusal, status, wanted))) => {
                    match status {
                        StatusCode::TOO_MANY_REQUESTS => {
                            replicas.let_rest(replica, load, wanted);
                            // One that is full for some is left to those whom it serves.
                            if steers {
                                replicas.failed(replica);
                            }
                        }
                        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
                            if steers {
                                self.forget(replica);
                            }
                        }
                        _ => return Ok(Err(refusal)),
                    }
                    // One that turned the request away has not acted on it.
                    if ask.whom == Whom::AnyOnce && status != StatusCode::TOO_MANY_REQUESTS {
                        return Ok(Err(refusal));
                    }
                    last = Some(Ok(refusal));
                }
                Err(Failure::TooLarge(error)) => return Err(error),
                Err(Failure::Lost(error)) => {
                    self.forget(replica);
                    if ask.whom == Whom::AnyOnce && !error.is_connect() {
                        return Err(lost(error));
                    }
                    last = Some(Err(lost(error)));
                }
            }
        }
        match last {
            Some(Ok(refusal)) => Ok(Err(refusal)),
            Some(Err(error)) => Err(error),
            None => {
                let text = format!("the gateway asked to be left alone for {:.1} s more", rest.as_secs_f64());
                Err(BackendError::retryable(BACKEND, text).into())
            }
        }
    }

    /// A gateway failed: another is asked first, and what it was told counts for nothing.
    fn forget(&self, replica: usize) {
        self.inner.replicas.failed(replica);
        self.inner.reported.forget(replica);
    }

    async fn once(
        &self,
        replica: usize,
        ask: &Ask<'_>,
    ) -> Result<Result<Answer, (Refusal, StatusCode, Duration)>, Failure> {
        let settings = &self.inner.settings;
        let url = ask.url(self.inner.replicas.base(replica));
        let mut request = self.inner.http.request(ask.method.clone(), url).timeout(ask.wait + settings.request_timeout);
        for (name, value) in &ask.headers {
            request = request.header(name, value);
        }
        if let Some(body) = &ask.body {
            request = request.body(body.clone());
        }
        let carried = self.inner.reported.header(replica).filter(|_| ask.carries_report);
        if let Some((name, value)) = &carried {
            request = request.header(name, value);
        }
        let mut response = request.send().await.map_err(Failure::Lost)?;
        let (status, headers) = (response.status(), std::mem::take(response.headers_mut()));
        let most = settings.max_answer.as_u64();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(Failure::Lost)? {
            if (body.len() + chunk.len()) as u64 > most {
                let what = format!("the gateway's answer is larger than {}", settings.max_answer);
                return Err(Failure::TooLarge(BackendError::permanent(BACKEND, what).into()));
            }
            body.extend_from_slice(&chunk);
        }
        if status.is_success() || status == StatusCode::NOT_MODIFIED {
            if carried.is_some() {
                self.inner.reported.carried(replica, &headers);
            }
            return Ok(Ok(Answer { replica, status, headers, body }));
        }
        let refusal = match serde_json::from_slice::<Envelope>(&body) {
            Ok(envelope) => Refusal::Said(envelope.error, status.as_u16()),
            Err(_) => Refusal::Other(String::from_utf8_lossy(&body).chars().take(200).collect(), status.as_u16()),
        };
        Ok(Err((refusal, status, rest(&headers))))
    }
}

/// What `Retry-After` says, and up to as much again at random, so that those who were turned away together do not come back together.
fn rest(headers: &HeaderMap) -> Duration {
    let said = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()).and_then(|text| text.parse().ok());
    said.map_or(USUAL_REST, Duration::from_secs).min(MOST_REST).mul_f64(1.0 + fastrand::f64())
}

pub(super) fn lost(error: reqwest::Error) -> Error {
    let make = if error.is_builder() { BackendError::permanent } else { BackendError::retryable };
    make(BACKEND, error).into()
}
