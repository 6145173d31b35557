//! Connections to a gateway: bounded in number and in time, and cheap while a machine waits.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::GatewaySettings;
use super::listener::keep_alive;
use super::outgoing::Outgoing;

/// What is kept of a request until it is understood, and the step in which bodies are read. More would be lent to each connection
/// that asks for it.
const BUFFER: usize = 16 << 10;
/// After an accept that failed for want of something that all connections share, such as open files.
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);
/// The answer to a connection too many. Nothing of it was read.
const TURNED_AWAY: &[u8] =
    b"HTTP/1.1 429 Too Many Requests\r\nretry-after: 5\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

/// Serves `router` until `shutdown`, then finishes what is being answered, for at most the request timeout.
pub(super) async fn serve(
    settings: &GatewaySettings,
    router: Router,
    listener: TcpListener,
    places: Arc<Semaphore>,
    shutdown: CancellationToken,
) {
    let connections = Connections {
        http: http(settings),
        router,
        send_timeout: settings.send_timeout,
        grace: settings.request_timeout,
        shutdown,
    };
    let (connections, tasks) = (Arc::new(connections), TaskTracker::new());
    while let Some(accepted) = connections.shutdown.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((stream, _)) => match Arc::clone(&places).try_acquire_owned() {
                Ok(place) => drop(tasks.spawn(Arc::clone(&connections).converse(stream, place))),
                Err(_) => turn_away(&stream),
            },
            Err(error) if is_its_own(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "no connection can be accepted");
                metrics::counter!("deploycore_gateway_accept_failures_total").increment(1);
                connections.shutdown.run_until_cancelled(tokio::time::sleep(ACCEPT_AGAIN)).await;
            }
        }
    }
    drop(listener);
    tasks.close();
    tasks.wait().await;
}

struct Connections {
    http: http1::Builder,
    router: Router,
    send_timeout: Duration,
    grace: Duration,
    shutdown: CancellationToken,
}

fn http(settings: &GatewaySettings) -> http1::Builder {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(settings.idle_timeout).max_buf_size(BUFFER);
    http
}

impl Connections {
    async fn converse(self: Arc<Self>, stream: TcpStream, _place: OwnedSemaphorePermit) {
        keep_alive(&stream);
        let io = TokioIo::new(Outgoing::new(stream, self.send_timeout));
        let conversation = self.http.serve_connection(io, TowerToHyperService::new(self.router.clone()));
        tokio::pin!(conversation);
        let ended = tokio::select! {
            ended = conversation.as_mut() => ended,
            () = self.shutdown.cancelled() => {
                conversation.as_mut().graceful_shutdown();
                tokio::time::timeout(self.grace, conversation).await.unwrap_or(Ok(()))
            }
        };
        if let Err(error) = ended {
            tracing::debug!(error = deploycore::port::chain(&error), "a connection ended");
        }
    }
}

/// Tells a connection too many to come again, if that can be done without waiting for it.
fn turn_away(stream: &TcpStream) {
    metrics::counter!("deploycore_gateway_connections_refused_total").increment(1);
    if let Err(error) = stream.try_write(TURNED_AWAY) {
        tracing::debug!(%error, "a connection too many was closed without a word");
    }
}

/// Whether the failure is of the connection that was to be accepted, not of those to come.
fn is_its_own(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
