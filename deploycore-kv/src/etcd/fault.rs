//! What can go wrong on the way to etcd: each fault says what to do, on one line.

use std::error::Error as StdError;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use deploycore::port::{BackendError, chain};
use tokio_rustls::rustls::{self, pki_types::pem};
use tonic::{Code, Status};

use super::BACKEND;

#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error(
        "no server of {endpoints} answered within {limit:?}; see that most of them run and reach each other, and that addresses and \
         http or https are right"
    )]
    Silent { endpoints: String, limit: Duration, source: Option<Box<Self>> },
    #[error("{endpoint} gave no answer for {limit:?}")]
    Late { endpoint: String, limit: Duration },
    #[error("{endpoint} cannot be reached: {said}")]
    Unreachable { endpoint: String, said: String },
    #[error("{endpoint} could not do it now: {said}")]
    Busy { endpoint: String, said: String },
    #[error(
        "the certificate of {endpoint} is not one to trust: give the CA that signed it, and connect by a name or address that stands in it"
    )]
    Certificate { endpoint: String, source: rustls::Error },
    #[error(
        "{endpoint} wants another certificate from this side: give one, with its key, that the servers' CA has signed"
    )]
    ClientCertificate { endpoint: String, source: rustls::Error },
    #[error("{endpoint} does not speak TLS as this side does: see that it listens for https")]
    Tls { endpoint: String, source: rustls::Error },
    #[error("{endpoint} cannot be connected to with these settings")]
    Endpoint { endpoint: String, source: tonic::transport::Error },
    #[error("{} cannot be read", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{} holds no {what} in PEM: name another file", path.display())]
    Pem { path: PathBuf, what: &'static str, source: pem::Error },
    #[error("{} cannot be used: give a certificate with the key that belongs to it", path.display())]
    Unusable { path: PathBuf, source: rustls::Error },
    #[error("etcd refused the user {name:?} with this password: give the right ones")]
    Credentials { name: String },
    #[error("etcd wants to know who asks: give a user and its password")]
    NoUser,
    #[error(
        "etcd does not let this user read and write below {prefix}: grant it, with etcdctl role grant-permission ROLE --prefix=true readwrite {prefix}/"
    )]
    Denied { prefix: String },
    #[error("etcd's disk quota is used up: compact and defragment it, then etcdctl alarm disarm")]
    Full,
    #[error("etcd wants another token of the user")]
    Token,
    #[error("the revision that was read at is compacted in etcd")]
    Gone,
    #[error("{endpoint} refused the request: {said}")]
    Refused { endpoint: String, said: String },
    #[error("{endpoint} gave an answer that is none to the question: see that it is etcd 3.4 or newer")]
    Answer { endpoint: String },
    #[error("{key} holds no goal: something else wrote there")]
    Goal { key: String, source: Option<serde_json::Error> },
    #[error("{key} tells of layout {found:?}; this build knows layout 1")]
    Layout { key: String, found: String },
    #[error("others kept on writing {key}")]
    Contended { key: String },
}

/// What to do about a fault of one server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Remedy {
    /// Ask the next server, and this one again later.
    Elsewhere,
    /// As before, and when all servers fail alike a retry is of no use.
    ElsewhereOnly,
    /// Get a new token and ask again.
    Token,
    /// Nobody can do it.
    None,
}

impl Fault {
    pub(super) fn remedy(&self) -> Remedy {
        match self {
            Self::Silent { .. } | Self::Late { .. } | Self::Unreachable { .. } | Self::Busy { .. } => Remedy::Elsewhere,
            Self::Certificate { .. } | Self::ClientCertificate { .. } | Self::Tls { .. } | Self::Answer { .. } => {
                Remedy::ElsewhereOnly
            }
            Self::Token => Remedy::Token,
            _ => Remedy::None,
        }
    }

    /// What TLS has against a server, or a server against this side.
    pub(super) fn of_tls(error: &(dyn StdError + 'static), endpoint: &str) -> Option<Self> {
        let (source, endpoint) = (tls_error(error)?.clone(), endpoint.to_owned());
        Some(match &source {
            rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented => {
                Self::Certificate { endpoint, source }
            }
            rustls::Error::AlertReceived(_) => Self::ClientCertificate { endpoint, source },
            _ => Self::Tls { endpoint, source },
        })
    }

    /// What a call's failure means. etcd tells many of its errors apart by their text alone, which is part of its interface: its own
    /// client reads it too.
    pub(super) fn of(status: &Status, endpoint: &str, prefix: &str) -> Self {
        if let Some(source) = StdError::source(status) {
            let unreachable = || Self::Unreachable { endpoint: endpoint.to_owned(), said: chain(source) };
            return Self::of_tls(source, endpoint).unwrap_or_else(unreachable);
        }
        let endpoint = endpoint.to_owned();
        let said = status.message().to_owned();
        let text = said.trim_start_matches("etcdserver: ");
        match (status.code(), text) {
            (_, "invalid auth token" | "revision of auth store is old" | "user name is empty")
            | (Code::Unauthenticated, _) => Self::Token,
            (Code::PermissionDenied, _) => Self::Denied { prefix: prefix.to_owned() },
            (_, "mvcc: database space exceeded") => Self::Full,
            (_, "mvcc: required revision has been compacted") => Self::Gone,
            (
                Code::Unavailable
                | Code::DeadlineExceeded
                | Code::Cancelled
                | Code::Aborted
                | Code::ResourceExhausted
                | Code::Unknown
                | Code::Internal,
                _,
            ) => Self::Busy { endpoint, said },
            (Code::Unimplemented, _) => Self::Answer { endpoint },
            _ => Self::Refused { endpoint, said },
        }
    }
}

impl From<Fault> for BackendError {
    fn from(fault: Fault) -> Self {
        let retryable = match &fault {
            Fault::Gone | Fault::Contended { .. } => true,
            fault => matches!(fault.remedy(), Remedy::Elsewhere | Remedy::Token),
        };
        if retryable { Self::retryable(BACKEND, fault) } else { Self::permanent(BACKEND, fault) }
    }
}

impl From<Fault> for deploycore::port::goals::Error {
    fn from(fault: Fault) -> Self {
        BackendError::from(fault).into()
    }
}

/// The fault of TLS that made an error. An I/O error hides what it was made of from `source`.
fn tls_error<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner as &(dyn StdError + 'static)),
            None => error.source(),
        };
    }
    None
}
