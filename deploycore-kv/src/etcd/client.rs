//! Calls to a cluster: to the first server that answers, each within a time limit, as the user.
//!
//! Every request may be sent twice: a write compares the revision that it was decided on, so the second of the same has no effect.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::stream::{BoxStream, StreamExt};
use prost::Message;
use tokio::time::{Instant, timeout, timeout_at};
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::{AsciiMetadataValue, MetadataValue};
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

use super::fault::{Fault, Remedy};
use super::proto::{
    AuthenticateRequest, AuthenticateResponse, RangeRequest, RangeResponse, TxnRequest, TxnResponse,
    WatchCreateRequest, WatchRequest, WatchResponse,
};
use super::settings::{Settings, User};
use super::tls::{Files, Probe};

const RANGE: &str = "/etcdserverpb.KV/Range";
const TXN: &str = "/etcdserverpb.KV/Txn";
const WATCH: &str = "/etcdserverpb.Watch/Watch";
const AUTHENTICATE: &str = "/etcdserverpb.Auth/Authenticate";

/// The largest answer that is read: a page of the largest goals is half of it.
const MAX_ANSWER: usize = 32 << 20;
/// A quiet connection with a watch on it is asked whether it still is one. etcd hangs up on who asks more often than every 5 s.
const PING: Duration = Duration::from_secs(10);
const PING_LIMIT: Duration = Duration::from_secs(5);
/// Between rounds over all servers: it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Client {
    settings: Settings,
    servers: Vec<Server>,
    probe: Option<Probe>,
    /// The server that calls go to: the last one that answered.
    at: AtomicUsize,
    token: Mutex<Current>,
    /// Held by the one that gets a new token.
    renewing: tokio::sync::Mutex<()>,
}

/// What stands for the user.
#[derive(Debug, Clone, Default)]
enum Token {
    /// To be asked for.
    #[default]
    Unknown,
    /// etcd has no authentication on. It says so when that changes.
    Needless,
    Known(AsciiMetadataValue),
}

/// What stands for the user now, and how many others did before.
#[derive(Debug, Clone, Default)]
struct Current {
    number: u64,
    token: Token,
}

#[derive(Debug)]
struct Server {
    endpoint: String,
    channel: Channel,
}

/// Events of a watch, the server that they come from, and the number of the token that it was asked with.
pub(super) struct Events {
    pub(super) server: usize,
    pub(super) token: u64,
    stream: BoxStream<'static, Result<WatchResponse, Status>>,
}

impl Client {
    /// Reads the certificates; connects with the first call.
    pub(super) async fn new(settings: Settings) -> Result<Self, Fault> {
        let tls = match &settings.tls {
            Some(tls) => Some(Files::read(tls).await?),
            None => None,
        };
        let config = tls.as_ref().map(|files| &files.config);
        let servers = settings.endpoints.iter().map(|endpoint| Server::new(endpoint, config, &settings));
        let servers = servers.collect::<Result<_, _>>()?;
        Ok(Self {
            settings,
            servers,
            probe: tls.map(|files| files.probe),
            at: AtomicUsize::new(0),
            token: Mutex::default(),
            renewing: tokio::sync::Mutex::default(),
        })
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(super) async fn range(&self, request: RangeRequest, deadline: Instant) -> Result<RangeResponse, Fault> {
        self.call(RANGE, request, deadline).await
    }

    pub(super) async fn txn(&self, request: TxnRequest, deadline: Instant) -> Result<TxnResponse, Fault> {
        self.call(TXN, request, deadline).await
    }

    /// When a call that begins now must be over.
    pub(super) fn deadline(&self) -> Instant {
        Instant::now() + self.settings.call_limit
    }

    /// Sends a request until a server answers it, or the time is over.
    async fn call<Q, A>(&self, path: &'static str, request: Q, deadline: Instant) -> Result<A, Fault>
    where
        Q: Message + Clone + 'static,
        A: Message + Default + 'static,
    {
        let (mut last, mut hopeless, mut renewed, mut pause) = (None, 0, false, FIRST_PAUSE);
        let mut token = None;
        let first = self.at.load(Ordering::Relaxed);
        for asked in 1.. {
            let server = (first + asked - 1) % self.servers.len();
            let limit = deadline.min(Instant::now() + self.settings.attempt_limit);
            let fault = match self.attempt(server, path, request.clone(), limit, &mut token).await {
                Ok(answer) => return Ok(answer),
                Err(fault) if asked <= self.servers.len() => self.explained(server, fault, limit).await,
                Err(fault) => fault,
            };
            match fault.remedy() {
                Remedy::None => return Err(fault),
                Remedy::Token if !renewed && self.settings.user.is_some() => {
                    renewed = true;
                    if let Some(token) = token {
                        self.forget_token(token);
                    }
                    hopeless = 0;
                }
                Remedy::Token if self.settings.user.is_none() => return Err(Fault::NoUser),
                Remedy::Token | Remedy::Elsewhere => hopeless = 0,
                Remedy::ElsewhereOnly => hopeless += 1,
            }
            if hopeless == self.servers.len() {
                return Err(fault);
            }
            self.turn_from(server);
            last = Some(fault);
            if asked % self.servers.len() == 0 {
                if Instant::now() + pause >= deadline {
                    break;
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LAST_PAUSE);
            }
            if Instant::now() >= deadline {
                break;
            }
        }
        let endpoints = self.settings.endpoints.join(", ");
        Err(Fault::Silent { endpoints, limit: self.settings.call_limit, source: last.map(Box::new) })
    }

    /// Notes the number of the token that it went by.
    async fn attempt<Q, A>(
        &self,
        server: usize,
        path: &'static str,
        message: Q,
        limit: Instant,
        token: &mut Option<u64>,
    ) -> Result<A, Fault>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let begun = Instant::now();
        let ask = async {
            let mut request = Request::new(message);
            *token = Some(self.sign(&mut request, server).await?);
            self.unary(server, path, request).await
        };
        timeout_at(limit, ask).await.unwrap_or_else(|_| {
            Err(Fault::Late { endpoint: self.servers[server].endpoint.clone(), limit: limit - begun })
        })
    }

    /// A connection that was closed may have been closed for a certificate's sake.
    async fn explained(&self, server: usize, fault: Fault, limit: Instant) -> Fault {
        let (Some(probe), Fault::Unreachable { .. }) = (&self.probe, &fault) else { return fault };
        let endpoint = &self.servers[server].endpoint;
        let seen = probe.look(endpoint, limit.saturating_duration_since(Instant::now())).await;
        seen.and_then(|error| Fault::of_tls(&error, endpoint)).unwrap_or(fault)
    }

    async fn unary<Q, A>(&self, server: usize, path: &'static str, request: Request<Q>) -> Result<A, Fault>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let mut grpc = self.grpc(server).await?;
        let codec = ProstCodec::<Q, A>::default();
        let answer = grpc.unary(request, PathAndQuery::from_static(path), codec).await;
        answer.map(tonic::Response::into_inner).map_err(|status| self.fault(server, &status))
    }

    async fn grpc(&self, server: usize) -> Result<Grpc<Channel>, Fault> {
        let channel = self.servers[server].channel.clone();
        let mut grpc = Grpc::new(channel).max_decoding_message_size(MAX_ANSWER);
        grpc.ready().await.map_err(|error| self.fault(server, &Status::from_error(Box::new(error))))?;
        Ok(grpc)
    }

    /// Opens a watch on the server that calls go to; calls go to the next one if that fails. etcd answers when the watch is made: a server
    /// that says nothing makes none.
    pub(super) async fn watch(&self, create: WatchCreateRequest) -> Result<Events, Fault> {
        let server = self.at.load(Ordering::Relaxed);
        let open = async {
            // The request must not end: that would end the watch.
            let requests = futures::stream::iter([WatchRequest { create: Some(create) }]);
            let mut request = Request::new(requests.chain(futures::stream::pending()));
            let token = self.sign(&mut request, server).await?;
            // A member that loses its leader ends the watch. Without it, it would go on in silence.
            request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
            let mut grpc = self.grpc(server).await?;
            let codec = ProstCodec::<WatchRequest, WatchResponse>::default();
            let answer = grpc.streaming(request, PathAndQuery::from_static(WATCH), codec).await;
            let stream = answer.map_err(|status| self.fault(server, &status))?.into_inner();
            Ok(Events { server, token, stream: stream.boxed() })
        };
        let (endpoint, limit) = (&self.servers[server].endpoint, self.settings.attempt_limit);
        let late = |_| Fault::Late { endpoint: endpoint.clone(), limit };
        timeout(limit, open).await.map_err(late).flatten().inspect_err(|_| self.turn_from(server))
    }

    /// The next message of a watch.
    pub(super) async fn next(&self, events: &mut Events) -> Result<WatchResponse, Fault> {
        match events.stream.next().await {
            Some(Ok(response)) => Ok(response),
            Some(Err(status)) => Err(self.fault(events.server, &status)),
            None => Err(self.ended(events.server, "no reason was given")),
        }
    }

    /// A watch ended; another may be opened.
    pub(super) fn ended(&self, server: usize, reason: &str) -> Fault {
        let endpoint = self.servers[server].endpoint.clone();
        Fault::Busy { endpoint, said: format!("the watch has ended: {reason}") }
    }

    /// Calls go to the next server, unless somebody has turned from this one already.
    pub(super) fn turn_from(&self, server: usize) {
        let next = (server + 1) % self.servers.len();
        let _ = self.at.compare_exchange(server, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The next call gets a new token, unless somebody has got one already: of many calls that one token fails, each would forget the one that
    /// the call before got, and etcd takes its time to check a password.
    pub(super) fn forget_token(&self, number: u64) {
        let mut current = self.current();
        if current.number == number {
            current.token = Token::Unknown;
        }
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.token.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fault(&self, server: usize, status: &Status) -> Fault {
        Fault::of(status, &self.servers[server].endpoint, &self.settings.prefix)
    }

    /// The number of the token that the request has now.
    async fn sign<Q>(&self, request: &mut Request<Q>, server: usize) -> Result<u64, Fault> {
        let Current { number, token } = self.token(server).await?;
        if let Token::Known(token) = token {
            request.metadata_mut().insert("token", token);
        }
        Ok(number)
    }

    /// The user's token: any member takes it, whichever gave it.
    async fn token(&self, server: usize) -> Result<Current, Fault> {
        let Some(user) = &self.settings.user else { return Ok(Current { number: 0, token: Token::Needless }) };
        let known = || Some(self.current().clone()).filter(|current| !matches!(current.token, Token::Unknown));
        if let Some(known) = known() {
            return Ok(known);
        }
        let _turn = self.renewing.lock().await;
        if let Some(known) = known() {
            return Ok(known);
        }
        let token = self.authenticate(server, user).await?;
        let mut current = self.current();
        *current = Current { number: current.number + 1, token };
        Ok(current.clone())
    }

    async fn authenticate(&self, server: usize, user: &User) -> Result<Token, Fault> {
        let request = AuthenticateRequest { name: user.name.clone(), password: user.password.clone() };
        let answer = self.unary(server, AUTHENTICATE, Request::new(request)).await;
        let AuthenticateResponse { token } = match answer {
            Ok(answer) => answer,
            Err(Fault::Refused { said, .. }) if said.ends_with("authentication is not enabled") => {
                tracing::warn!(
                    user = user.name,
                    "etcd has no authentication on: it knows nobody, and lets everybody in"
                );
                return Ok(Token::Needless);
            }
            Err(Fault::Refused { said, .. }) if said.contains("authentication failed") => {
                return Err(Fault::Credentials { name: user.name.clone() });
            }
            Err(fault) => return Err(fault),
        };
        let endpoint = &self.servers[server].endpoint;
        let token: Result<AsciiMetadataValue, _> = token.parse();
        let mut token = token.map_err(|_| Fault::Answer { endpoint: endpoint.clone() })?;
        // Whoever has it is the user: it is not printed.
        token.set_sensitive(true);
        Ok(Token::Known(token))
    }
}

impl Server {
    fn new(endpoint: &str, tls: Option<&ClientTlsConfig>, settings: &Settings) -> Result<Self, Fault> {
        let wrong = |source| Fault::Endpoint { endpoint: endpoint.to_owned(), source };
        let mut builder = Endpoint::from_shared(endpoint.to_owned()).map_err(wrong)?;
        if let Some(tls) = tls {
            builder = builder.tls_config(tls.clone()).map_err(wrong)?;
        }
        let builder = builder
            .connect_timeout(settings.attempt_limit)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(PING)
            .keep_alive_timeout(PING_LIMIT)
            // etcd hangs up on who asks with no call or watch under way.
            .keep_alive_while_idle(false);
        Ok(Self { endpoint: endpoint.to_owned(), channel: builder.connect_lazy() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Calls that one token has failed forget that one.
    #[tokio::test]
    async fn a_token_that_is_newer_than_the_one_that_failed_stays() {
        let settings = Settings::new(vec!["http://127.0.0.1:1".to_owned()]).with_user("web", "right");
        let client = Client::new(settings).await.unwrap();
        let known = || Token::Known(AsciiMetadataValue::from_static("a"));
        *client.current() = Current { number: 2, token: known() };
        client.forget_token(1);
        assert!(matches!(client.token(0).await, Ok(Current { number: 2, token: Token::Known(_) })));
        client.forget_token(2);
        assert!(matches!(client.current().token, Token::Unknown));
    }
}
