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
//! | `GET /v1/manifests/{digest}` | the manifest, for ever cacheable; `404` with code `no_manifest`, up to a second after it came |
//! | `PUT /v1/machines/{name}` with a report | `204` |
//! | `GET /v1/machines` | `{"machines": [...], "settling": false}`: each machine that reported, and whether some that are live may be missing |
//! | `POST /v1/tally` with a goal | how many machines are where with it, counted here: a control plane reads counts, not reports |
//!
//! `PUT` and `POST` on goals are refused with `403` unless the gateway is [`Access::Writable`]. An error is
//! `{"error": {"code": ..., "message": ..., ...}}`, with what the domain's error holds, so that [`GatewayClient`] gives back the error
//! that the store gave.
//!
//! A read sees every write that was acknowledged before it came. It costs the store one question for [what
//! changed](GoalStateStore::changes), and reads that come together share the question. Any number of waiting machines share one
//! watch, and get one prepared body. Waits are bounded in time and number: `429` with `Retry-After` past that.
//!
//! # Many machines
//!
//! [`Gateway::serve`] holds 20,000 machines that wait in about 12 KB each (`docs/benchmarks.md` has the figures and the command). What
//! keeps a crowd from becoming a load:
//!
//! - Those who wait for one change are answered over [`release_within`](GatewaySettings::release_within), and a wait is cut by up to a tenth at
//!   random, so that they come back at different times.
//! - Each list says in `deploycore-next-poll` in how many seconds the gateway wants to be polled again; it grows with the number of
//!   connections. Agents and mirrors heed it ([`GoalStateStore::next_poll`]). Waits are the machine's steady business, polls its check.
//! - A poll or wait may say that the machine's last report still holds, in `deploycore-last-report: REGION MACHINE DIGEST`: that is a sign
//!   of life, at its start and at its end. The answer has `deploycore-report-wanted` when the report is not known here. So a report comes whole
//!   only when it changed.
//! - Those who come for one manifest share one read of the store, and for a second what it gave where that was none. They have a bound of their
//!   own, [`max_manifests`](GatewaySettings::max_manifests): a store that is slow or away keeps no poll and no report waiting.
//! - `429` with `Retry-After` past [`max_waiters`](GatewaySettings::max_waiters), [`max_requests`](GatewaySettings::max_requests),
//!   [`max_manifests`](GatewaySettings::max_manifests) and [`max_connections`](GatewaySettings::max_connections). The client sends no more of
//!   what was refused for that long, with as much again at random.
//! - A connection that says nothing, that does not finish to ask, or does not take its answer is closed in bounded time.
//!
//! A region has two gateways or more, each with a store and a mirror of its own. A [`GatewayClient`] of
//! several goes to the next when one fails.
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
mod connections;
mod listener;
mod manifests;
mod outgoing;
mod release;
mod routes;
mod settings;
mod source;
mod wire;

use std::fmt;
use std::sync::Arc;

use axum::Router;
use deploycore::port::{GoalStateStore, MachineDirectory, ManifestSource, ReportSink};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use client::{GatewayClient, GatewayClientSettings};
pub use listener::keeping_alive;
pub use settings::{Access, GatewaySettings};

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
    /// They bound the body of a request in size and time. What lies below is up to whoever serves them, so prefer
    /// [`serve_with`](Self::serve_with), which bounds that too: take connections from [`keeping_alive`], or those of machines that lost
    /// their power stay for ever, and [`close`](Self::close) the gateway when the server shuts down. A client that connects and says
    /// nothing costs a connection until it goes.
    pub fn router(&self) -> Router {
        routes::router(Arc::clone(&self.inner))
    }

    /// Ends every wait now with `503`, and each new one at once. For a host that serves [`router`](Self::router) itself
    /// and shuts down.
    pub fn close(&self) {
        self.inner.source.close();
    }

    /// Serves until `shutdown`, then ends the waits, finishes what is being answered, for at most the request timeout, and returns.
    ///
    /// Connections are bounded in number and time by the [settings](GatewaySettings): one that says nothing, one that does not take what it
    /// asked for and one too many do not stay.
    pub async fn serve(&self, listener: TcpListener, shutdown: CancellationToken) -> std::io::Result<()> {
        self.serve_with(Router::new(), listener, shutdown).await
    }

    /// As [`serve`](Self::serve), with further routes of the host's beside the gateway's own.
    pub async fn serve_with(
        &self,
        more: Router,
        listener: TcpListener,
        shutdown: CancellationToken,
    ) -> std::io::Result<()> {
        let (router, places) = (self.router().merge(more), Arc::clone(&self.inner.places));
        let closing = async {
            shutdown.cancelled().await;
            self.close();
        };
        let serving = connections::serve(&self.inner.settings, router, listener, places, shutdown.clone());
        tokio::join!(serving, closing);
        Ok(())
    }
}
