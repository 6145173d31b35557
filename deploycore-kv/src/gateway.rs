//! Goals, manifests and machine reports over HTTP: what a machine knows of its region, and a region of the global store.
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/goals?prefix=` | all goals at one instant, with an `ETag`; `304` to the `If-None-Match` of it |
//! | `GET /v1/goals?wait=30s` with `If-None-Match` | the same as soon as it differs, or `304` when the wait is over |
//! | `GET /v1/goals/{service}` | one goal with its revision; `404` with code `no_goal` |
//! | `PUT /v1/goals/{service}` `{"goal": ..., "expect": "absent" or {"at": 7}}` | `{"revision": 8}` |
//! | `GET /v1/goals/{service}/history?limit=` | its goals, greatest position first |
//! | `GET /v1/changes?since=7&wait=30s` | what changed since a revision, as soon as something has |
//! | `POST /v1/compact` `{"through": 7}` | `204` |
//! | `GET /v1/manifests/{digest}` | the manifest, for ever cacheable; `404` with code `no_manifest` |
//! | `PUT /v1/machines/{name}` with a report | `204` |
//! | `GET /v1/machines` | `{"machines": [...], "settling": false}`: each machine that reported, and whether some that are live may be missing |
//!
//! `PUT` and `POST` on goals are refused with `403` unless the gateway is [`Access::Writable`]. An error is
//! `{"error": {"code": ..., "message": ..., ...}}`, with what the domain's error holds, so that [`GatewayClient`] gives back the error
//! that the store gave.
//!
//! A read sees every write that was acknowledged before it came. It costs the store one question for [what
//! changed](GoalStateStore::changes), and reads that come together share the question. Any number of waiting machines share one
//! watch, and get one prepared body. Waits are bounded in time and number: `429` with `Retry-After` past that.
//!
//! ```
//! use std::sync::Arc;
//! use deploycore::port::GoalStateStore;
//! use deploycore_kv::gateway::{Gateway, GatewayClient, GatewaySettings};
//! use tokio_util::sync::CancellationToken;
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
//! let goals = Arc::new(deploycore::memory::Goals::new());
//! let gateway = Gateway::new(GatewaySettings::default(), goals, None, None, None);
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
//! let url = format!("http://{}", listener.local_addr()?).parse()?;
//! let shutdown = CancellationToken::new();
//! let stopped = shutdown.clone();
//! let served = gateway.serve(listener, shutdown);
//! let asked = async {
//!     let machine = GatewayClient::new(url)?;
//!     assert!(machine.list("").await?.goals.is_empty());
//!     stopped.cancel();
//!     Ok::<(), Box<dyn std::error::Error>>(())
//! };
//! let (served, asked) = tokio::join!(served, asked);
//! served?;
//! asked
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod client;
mod listener;
mod routes;
mod source;
mod wire;

use std::fmt;
use std::future::IntoFuture;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use bytesize::ByteSize;
use deploycore::model::friendly;
use deploycore::port::{GoalStateStore, MachineDirectory, ManifestSource, ReportSink};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use client::{GatewayClient, GatewayClientSettings};
pub use listener::keeping_alive;

/// Who may change goals through a gateway.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// Nobody: it serves machines.
    #[default]
    ReadOnly,
    /// Whoever reaches it: it serves the control plane.
    Writable,
}

/// Settings of a [`Gateway`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GatewaySettings {
    /// Whether goals may be written; read-only by default.
    pub access: Access,
    /// The longest that an answer is held back for a change; 60 s by default. A longer wish is cut to it, and with 0 none is held back.
    #[serde(with = "friendly")]
    pub max_wait: Duration,
    /// Answers held back at once; 50,000 by default. One costs some kilobytes and its connection.
    pub max_waiters: usize,
    /// How long the store may take, and before that the body of the request, until it is answered with an error; 10 s by default.
    #[serde(with = "friendly")]
    pub request_timeout: Duration,
    /// The largest request body; 1 MiB by default.
    pub max_body: ByteSize,
    /// Prepared manifests kept in memory; 64 MiB by default, about a thousand large artifacts.
    pub manifest_cache: ByteSize,
}

impl Default for GatewaySettings {
    fn default() -> Self {
        Self {
            access: Access::ReadOnly,
            max_wait: Duration::from_mins(1),
            max_waiters: 50_000,
            request_timeout: Duration::from_secs(10),
            max_body: ByteSize::mib(1),
            manifest_cache: ByteSize::mib(64),
        }
    }
}

impl GatewaySettings {
    /// Sets who may change goals.
    #[must_use]
    pub fn with_access(mut self, access: Access) -> Self {
        self.access = access;
        self
    }

    /// Sets the longest wait for a change.
    #[must_use]
    pub fn with_max_wait(mut self, max_wait: Duration) -> Self {
        self.max_wait = max_wait;
        self
    }

    /// Sets how many answers are held back at once.
    #[must_use]
    pub fn with_max_waiters(mut self, max_waiters: usize) -> Self {
        self.max_waiters = max_waiters;
        self
    }

    /// Sets how long the store may take.
    #[must_use]
    pub fn with_request_timeout(mut self, request_timeout: Duration) -> Self {
        self.request_timeout = request_timeout;
        self
    }
}

/// Offers a goal-state store, and what else a region tells its machines, over HTTP. Clones are one gateway.
///
/// It has no task of its own: the watch on the store is driven by whichever request waits.
#[derive(Clone)]
pub struct Gateway {
    inner: Arc<routes::Inner>,
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway").field("settings", &self.inner.settings).finish_non_exhaustive()
    }
}

impl Gateway {
    /// A gateway to `goals`. What is `None` is answered with `404` and code `not_offered`.
    pub fn new(
        settings: GatewaySettings,
        goals: Arc<dyn GoalStateStore>,
        manifests: Option<Arc<dyn ManifestSource>>,
        reports: Option<Arc<dyn ReportSink>>,
        machines: Option<Arc<dyn MachineDirectory>>,
    ) -> Self {
        Self { inner: Arc::new(routes::Inner::new(settings, goals, manifests, reports, machines)) }
    }

    /// The routes, to be merged into a router of the host's or served alone.
    ///
    /// They bound the body of a request in size and time. What lies below is up to whoever serves them: take connections from
    /// [`keeping_alive`], or those of machines that lost their power stay for ever, and [`close`](Self::close) the gateway when the
    /// server shuts down. A client that connects and says nothing costs a connection until it goes; a gateway that clients reach who are
    /// not the region's own machines belongs behind a proxy that bounds this too.
    pub fn router(&self) -> Router {
        routes::router(Arc::clone(&self.inner))
    }

    /// Ends every wait now with `503`, and each new one at once. For a host that serves [`router`](Self::router) itself
    /// and shuts down.
    pub fn close(&self) {
        self.inner.source.close();
    }

    /// Serves until `shutdown`, then ends the waits, finishes what is being answered, for at most the request timeout, and returns.
    pub async fn serve(&self, listener: TcpListener, shutdown: CancellationToken) -> std::io::Result<()> {
        let (gateway, stop) = (self.clone(), shutdown.clone());
        let stopping = async move {
            stop.cancelled().await;
            gateway.close();
        };
        let server = axum::serve(keeping_alive(listener), self.router()).with_graceful_shutdown(stopping).into_future();
        let too_long = async {
            shutdown.cancelled().await;
            tokio::time::sleep(self.inner.settings.request_timeout).await;
        };
        tokio::select! {
            ended = server => ended,
            () = too_long => Ok(()),
        }
    }
}
