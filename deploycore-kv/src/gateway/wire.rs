//! What goes over the wire besides the nouns: requests, and errors in both directions.

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use deploycore::model::{Goal, GoalPosition, Revision, ServiceName};
use deploycore::port::goals::{Error, Expect};
use deploycore::port::{BackendError, chain};
use serde::{Deserialize, Serialize};

/// The backend that a client's errors name.
pub(super) const BACKEND: &str = "gateway";
/// In how many seconds the gateway wants to be polled again: a wish, beside each list of goals.
pub(super) const NEXT_POLL: HeaderName = HeaderName::from_static("deploycore-next-poll");
/// On a poll: the machine's last report, which still holds.
pub(super) const LAST_REPORT: HeaderName = HeaderName::from_static("deploycore-last-report");
/// On the answer to that: the report is not known here, and wanted whole.
pub(super) const REPORT_WANTED: HeaderName = HeaderName::from_static("deploycore-report-wanted");
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

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Report {
    /// For people.
    pub(super) message: String,
    #[serde(flatten)]
    pub(super) problem: Problem,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    Overloaded,
    TooSlow,
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
            Self::TooManyWaiters | Self::Overloaded => StatusCode::TOO_MANY_REQUESTS,
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
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
            Problem::TooManyWaiters | Problem::Overloaded | Problem::TooSlow | Problem::Unavailable => {
                BackendError::retryable(BACKEND, message).into()
            }
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

#[cfg(test)]
mod tests {
    use deploycore::model::{Generation, GoalEpoch};

    use super::*;

    fn back(error: Error) -> Error {
        let report = Report::from(error);
        let status = report.problem.status().as_u16();
        let json = serde_json::to_string(&Envelope { error: report }).unwrap();
        serde_json::from_str::<Envelope>(&json).unwrap().error.into_error(status)
    }

    #[test]
    fn the_errors_of_the_domain_come_back_as_they_were() {
        let service: ServiceName = "web".parse().unwrap();
        let position = GoalPosition { epoch: GoalEpoch(u64::MAX), generation: Generation(3) };
        let offered = GoalPosition { epoch: GoalEpoch(1), generation: Generation(u64::MAX) };
        let conflict = |expected: Option<u64>, found: Option<u64>| Error::Conflict {
            service: service.clone(),
            expected: expected.map(Revision),
            found: found.map(Revision),
        };
        for make in [
            &(|| Error::Invalid("a \"reason\"".to_owned())) as &dyn Fn() -> Error,
            &|| Error::Compacted { since: Revision(1), oldest: Revision(u64::MAX) },
            &|| conflict(None, Some(4)),
            &|| conflict(Some(4), None),
            &|| conflict(Some(0), Some(u64::MAX)),
            &|| Error::Stale { service: service.clone(), stored: position, offered },
            &|| Error::Equivocation { service: service.clone(), position },
        ] {
            assert_eq!(format!("{:?}", back(make())), format!("{:?}", make()));
        }
    }

    #[test]
    fn a_failure_below_keeps_its_cause_and_whether_to_retry() {
        let what = "the disk is gone";
        for below in [BackendError::retryable("redb", what), BackendError::permanent("redb", what)] {
            let retryable = below.is_retryable();
            let error = back(below.into());
            assert_eq!(error.is_retryable(), retryable);
            assert!(chain(&error).contains(what), "{}", chain(&error));
        }
    }

    #[test]
    fn an_unknown_code_is_judged_by_its_status() {
        let newer = r#"{"error": {"code": "later", "message": "of tomorrow", "detail": {"x": 1}}}"#;
        for (status, retryable) in [(503, true), (429, true), (409, false)] {
            let error = serde_json::from_str::<Envelope>(newer).unwrap().error.into_error(status);
            assert_eq!(error.is_retryable(), retryable, "{status}");
            assert!(chain(&error).contains("of tomorrow"));
        }
    }
}
