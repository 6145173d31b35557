//! What goes over the wire besides the nouns: requests, and errors in both directions.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use deploycore::model::{Goal, GoalPosition, Revision, ServiceName};
use deploycore::port::goals::{Error, Expect};
use deploycore::port::{BackendError, chain};
use serde::{Deserialize, Serialize};

/// The backend that a client's errors name.
pub(super) const BACKEND: &str = "gateway";
/// When to come again, in seconds, after being turned away.
const RETRY_AFTER: &str = "5";

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Put<'a> {
    pub(super) goal: std::borrow::Cow<'a, Goal>,
    pub(super) expect: Expect,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Written {
    pub(super) revision: Revision,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Compact {
    pub(super) through: Revision,
}

/// The body of every answer that is an error.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Envelope {
    pub(super) error: Report,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Report {
    /// For people.
    pub(super) message: String,
    #[serde(flatten)]
    pub(super) problem: Problem,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "code", rename_all = "snake_case")]
pub(super) enum Problem {
    Conflict {
        service: ServiceName,
        expected: Option<Revision>,
        found: Option<Revision>,
    },
    Stale {
        service: ServiceName,
        stored: GoalPosition,
        offered: GoalPosition,
    },
    Equivocation {
        service: ServiceName,
        position: GoalPosition,
    },
    Compacted {
        since: Revision,
        oldest: Revision,
    },
    Invalid {
        reason: String,
    },
    NoGoal,
    NoManifest,
    NotOffered,
    ReadOnly,
    TooLarge,
    TooManyWaiters,
    Unavailable,
    Failed,
    /// Of a newer server.
    #[serde(other)]
    Unknown,
}

impl Problem {
    fn status(&self) -> StatusCode {
        match self {
            Self::Conflict { .. } | Self::Stale { .. } | Self::Equivocation { .. } => StatusCode::CONFLICT,
            Self::Compacted { .. } => StatusCode::GONE,
            Self::Invalid { .. } => StatusCode::BAD_REQUEST,
            Self::NoGoal | Self::NoManifest | Self::NotOffered => StatusCode::NOT_FOUND,
            Self::ReadOnly => StatusCode::FORBIDDEN,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooManyWaiters => StatusCode::TOO_MANY_REQUESTS,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Failed | Self::Unknown => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    pub(super) fn says(self, message: impl Into<String>) -> Report {
        Report { message: message.into(), problem: self }
    }
}

impl Report {
    /// The store's error again, on the client's side.
    pub(super) fn into_error(self, status: u16) -> Error {
        let Self { message, problem } = self;
        match problem {
            Problem::Conflict { service, expected, found } => Error::Conflict { service, expected, found },
            Problem::Stale { service, stored, offered } => Error::Stale { service, stored, offered },
            Problem::Equivocation { service, position } => Error::Equivocation { service, position },
            Problem::Compacted { since, oldest } => Error::Compacted { since, oldest },
            Problem::Invalid { reason } => Error::Invalid(reason),
            Problem::TooLarge => Error::Invalid(message),
            Problem::TooManyWaiters | Problem::Unavailable => BackendError::retryable(BACKEND, message).into(),
            Problem::NoGoal | Problem::NoManifest | Problem::NotOffered | Problem::ReadOnly | Problem::Failed => {
                BackendError::permanent(BACKEND, message).into()
            }
            Problem::Unknown => unexpected(status, &message).into(),
        }
    }
}

/// An answer that is none of this protocol's: whether it may pass is in its status alone.
pub(super) fn unexpected(status: u16, message: &str) -> BackendError {
    let make =
        if status >= 500 || matches!(status, 408 | 429) { BackendError::retryable } else { BackendError::permanent };
    make(BACKEND, format!("the gateway answered with status {status}: {message}"))
}

impl From<Error> for Report {
    fn from(error: Error) -> Self {
        let message = chain(&error);
        match error {
            Error::Conflict { service, expected, found } => Problem::Conflict { service, expected, found },
            Error::Stale { service, stored, offered } => Problem::Stale { service, stored, offered },
            Error::Equivocation { service, position } => Problem::Equivocation { service, position },
            Error::Compacted { since, oldest } => Problem::Compacted { since, oldest },
            Error::Invalid(reason) => Problem::Invalid { reason },
            other if other.is_retryable() => Problem::Unavailable,
            _ => Problem::Failed,
        }
        .says(message)
    }
}

impl From<BackendError> for Report {
    fn from(error: BackendError) -> Self {
        Error::from(error).into()
    }
}

impl IntoResponse for Report {
    fn into_response(self) -> Response {
        let status = self.problem.status();
        if status.is_server_error() {
            metrics::counter!("deploycore_gateway_errors_total").increment(1);
            tracing::warn!(message = self.message, "answered with an error");
        }
        let body = serde_json::to_vec(&Envelope { error: self }).expect("a report is plain data");
        let mut response = (status, [(header::CONTENT_TYPE, "application/json")], Body::from(body)).into_response();
        if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER));
        }
        response
    }
}
