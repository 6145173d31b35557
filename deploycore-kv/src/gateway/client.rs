//! A region's gateways, from elsewhere.

mod exchange;
mod replicas;
mod reported;
mod settings;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use deploycore::model::{
    Digest, Goal, KnownMachine, LastReport, MachineKey, MachinePage, MachineReport, MachineStanding, Manifest,
    OfMachine, Revision, ServiceName, Tally,
};
use deploycore::port::goals::{Changes, Error, Expect, GoalStateStore, Snapshot, Stored};
use deploycore::port::{BackendError, MachineDirectory, ManifestSource, ReportSink, region};
use futures::future::join_all;
use futures::stream::{BoxStream, StreamExt};
use reqwest::header::{HeaderValue, IF_NONE_MATCH};
use reqwest::{Method, StatusCode};
use serde::de::DeserializeOwned;
use tokio::time::Instant;
use url::Url;

pub use settings::GatewayClientSettings;

use super::wire::{BACKEND, Compact, NEXT_POLL, Problem, Put, Written, unexpected};
use exchange::{Ask, Whom, lost};
use replicas::Replicas;
use reported::Reported;

/// Between requests of a watch: where waits are bounded by nothing it would be a busy loop over the network.
const LEAST_WAIT: Duration = Duration::from_secs(1);
/// A connection that was not used for so long is closed: a machine that waits on one seldom needs another, and each costs its gateway memory. It
/// must be shorter than the gateway's own bound, as a request that meets the end of its connection is lost.
const IDLE: Duration = Duration::from_secs(5);

/// What a [`Gateway`](super::Gateway) offers, over HTTP. Clones share connections and the last list.
///
/// A list that did not change costs a request without a body: the client keeps the last one with its tag. Nothing is retried here;
/// errors say whether the caller may. It goes straight to its URL: `HTTP_PROXY` and its kin, which a host may set for its way out, are not
/// obeyed, because a gateway is in the same region or in the same network.
///
/// **Several gateways** of one region stand for each other: a client begins at one of them by chance, and goes to the next when it cannot be
/// reached, answers `502`, `503` or `504`, or wants to be left alone. A read is asked of each once at most before it fails; a write goes
/// to another only where the first cannot have acted on it. Each gateway counts its own revisions, so a revision of one
/// that failed is answered as [`Compacted`](Error::Compacted): list, and go on from there. The next may be behind the last, by what its
/// mirror has not yet copied: whoever acts on goals keeps the greatest position, as agents and mirrors do.
///
/// **A gateway under load** answers `429`; then nothing more of that kind is sent to it until the `Retry-After` that it named is
/// over, with as much again at random: such a call fails at once, or goes to another gateway. Waits are one kind, manifests another, the rest a third.
/// What a gateway cannot give of a manifest moves nothing else to another.
///
/// **Reports**: one that the gateway holds already is not sent again while polls carry a word that it still holds.
#[derive(Debug, Clone)]
pub struct GatewayClient {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    http: reqwest::Client,
    replicas: Replicas,
    settings: GatewayClientSettings,
    last: Mutex<Option<Arc<LastList>>>,
    reported: Reported,
    /// What the gateway last said of the next poll, in seconds; 0 when it has not.
    next_poll: AtomicU64,
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
    pub fn with_settings(base: Url, settings: GatewayClientSettings) -> Result<Self, Error> {
        Self::of_replicas([base], settings)
    }

    /// A client of several gateways that offer one region's goals.
    ///
    /// Errors: `Invalid` when one is not an `http` URL, and when there is none.
    pub fn of_replicas(bases: impl IntoIterator<Item = Url>, settings: GatewayClientSettings) -> Result<Self, Error> {
        let bases = bases.into_iter().map(checked).collect::<Result<Vec<_>, _>>()?;
        if bases.is_empty() {
            return Err(Error::Invalid("no gateway was named: use http://host:port".to_owned()));
        }
        deploycore::tls::ensure_provider();
        let http = reqwest::Client::builder()
            .no_proxy()
            .connect_timeout(settings.connect_timeout)
            .pool_idle_timeout(IDLE)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(lost)?;
        let (replicas, last, reported) = (Replicas::new(bases), Mutex::default(), Reported::default());
        Ok(Self { inner: Arc::new(Inner { http, replicas, settings, last, reported, next_poll: AtomicU64::new(0) }) })
    }

    /// The address of the gateway that is asked first.
    pub fn base(&self) -> &Url {
        let replicas = &self.inner.replicas;
        replicas.base(replicas.current())
    }

    fn last(&self) -> std::sync::MutexGuard<'_, Option<Arc<LastList>>> {
        self.inner.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn changed(&self, since: Revision, wait: Duration) -> Result<Changes, Error> {
        let replicas = &self.inner.replicas;
        let replica = replicas.current();
        if !replicas.knows(replica, since) {
            // It is another gateway's: what is the oldest here, a list will tell.
            return Err(Error::Compacted { since, oldest: Revision(since.0.saturating_add(1)) });
        }
        let (since, waits) = (since.to_string(), format!("{}ms", wait.as_millis()));
        let query = [("since", since.as_str()), ("wait", waits.as_str())];
        let query = if wait.is_zero() { &query[..1] } else { &query };
        let ask = Ask { query, wait, carries_report: true, ..Ask::get(&["changes"]) };
        let changes: Changes = self.read(ask.to(Whom::One(replica))).await?;
        replicas.gave(replica, changes.revision);
        Ok(changes)
    }
}

fn checked(mut base: Url) -> Result<Url, Error> {
    if base.scheme() != "http" || !base.has_host() {
        return Err(Error::Invalid(format!("{base} is not the URL of a gateway: use http://host:port")));
    }
    base.set_query(None);
    base.set_fragment(None);
    Ok(base)
}

#[async_trait]
impl GoalStateStore for GatewayClient {
    async fn get(&self, service: &ServiceName) -> Result<Option<Stored>, Error> {
        self.find(Ask::get(&["goals", service.as_str()]), &Problem::NoGoal).await
    }

    async fn list(&self, prefix: &str) -> Result<Snapshot, Error> {
        let query = [("prefix", prefix)];
        let query = if prefix.is_empty() { &query[..0] } else { &query };
        let held = self.last().clone().filter(|last| last.prefix == prefix);
        let headers = held.iter().map(|held| (IF_NONE_MATCH, held.tag.clone())).collect();
        let answer = self.send(Ask { query, headers, carries_report: true, ..Ask::get(&["goals"]) }).await?;
        let told = answer.headers.get(NEXT_POLL).and_then(|value| value.to_str().ok()?.parse().ok());
        self.inner.next_poll.store(told.unwrap_or(0), Ordering::Relaxed);
        // Equal tags are of equal bodies, whichever gateway gave them.
        let snapshot = if answer.status == StatusCode::NOT_MODIFIED {
            held.ok_or_else(|| unexpected(304, "nothing was held"))?.snapshot.clone()
        } else {
            answer.read()?
        };
        self.inner.replicas.gave(answer.replica, snapshot.revision);
        if let Some(tag) = answer.tag().filter(|_| answer.status != StatusCode::NOT_MODIFIED) {
            let last = LastList { prefix: prefix.to_owned(), tag, snapshot: snapshot.clone() };
            *self.last() = Some(Arc::new(last));
        }
        Ok(snapshot)
    }

    async fn put(&self, goal: &Goal, expect: Expect) -> Result<Revision, Error> {
        let path = ["goals", goal.service.as_str()];
        let ask = Ask::send(Method::PUT, &path, &Put { goal: Cow::Borrowed(goal), expect }).to(Whom::AnyOnce);
        let answer = self.send(ask).await?;
        let Written { revision } = answer.read()?;
        self.inner.replicas.gave(answer.replica, revision);
        Ok(revision)
    }

    async fn history(&self, service: &ServiceName, limit: usize) -> Result<Vec<Stored>, Error> {
        let limit = limit.to_string();
        let query = [("limit", limit.as_str())];
        self.read(Ask { query: &query, ..Ask::get(&["goals", service.as_str(), "history"]) }).await
    }

    async fn changes(&self, since: Revision) -> Result<Changes, Error> {
        self.changed(since, Duration::ZERO).await
    }

    /// Requests that wait at the gateway, one after the other. The stream ends with an error when the gateway cannot be reached.
    fn watch(&self, since: Revision) -> BoxStream<'static, Result<Changes, Error>> {
        let client = self.clone();
        let steps = futures::stream::unfold(Some((client, since)), |state| async move {
            let (client, mut since) = state?;
            loop {
                let asked = Instant::now();
                match client.changed(since, client.inner.settings.watch_wait).await {
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
        let ask = Ask::send(Method::POST, &["compact"], &Compact { through }).to(Whom::AnyOnce);
        self.send(ask).await.map(drop)
    }

    /// What the gateway said beside its last list.
    fn next_poll(&self) -> Option<Duration> {
        let told = self.inner.next_poll.load(Ordering::Relaxed);
        (told > 0).then(|| Duration::from_secs(told))
    }
}

#[async_trait]
impl ManifestSource for GatewayClient {
    async fn region_manifest(&self, digest: &Digest) -> Result<Option<Manifest>, BackendError> {
        let digest_text = digest.to_string();
        let found: Option<Manifest> =
            self.find(Ask::get(&["manifests", &digest_text]), &Problem::NoManifest).await.map_err(below)?;
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
        let (last, reported) = (LastReport::of(report), &self.inner.reported);
        if reported.is_known(self.inner.replicas.current(), &last) {
            return Ok(());
        }
        let path = ["machines", report.machine.as_str()];
        let answer = self.send(Ask::send(Method::PUT, &path, report)).await.map_err(below)?;
        reported.taken(answer.replica, last);
        Ok(())
    }
}

/// Of several gateways each knows the machines that report to it. One that does not answer may know some that the others do not: the region is
/// settling then.
#[async_trait]
impl MachineDirectory for GatewayClient {
    async fn machines(
        &self,
        after: Option<&MachineKey>,
        limit: usize,
    ) -> Result<MachinePage<KnownMachine>, BackendError> {
        self.page(after, limit, Ask::get(&["machines"])).await
    }

    async fn standings(
        &self,
        goal: &Goal,
        after: Option<&MachineKey>,
        limit: usize,
    ) -> Result<MachinePage<MachineStanding>, BackendError> {
        self.page(after, limit, Ask::send(Method::POST, &["standings"], goal)).await
    }

    /// One gateway counts for itself. Of several the machines are read, as one that moved from one to the other would count twice.
    async fn tally(&self, goal: &Goal) -> Result<Tally, BackendError> {
        if self.inner.replicas.len() > 1 {
            return region::tally(self, goal).await;
        }
        self.read(Ask::send(Method::POST, &["tally"], goal)).await.map_err(below)
    }
}

impl GatewayClient {
    /// Asks each gateway for the page, as each knows what came to it alone. What they say of one machine is as the one has it that heard of it last.
    async fn page<T: OfMachine + DeserializeOwned>(
        &self,
        after: Option<&MachineKey>,
        limit: usize,
        ask: Ask<'_>,
    ) -> Result<MachinePage<T>, BackendError> {
        let text = limit.max(1).to_string();
        let mut query = vec![("limit", text.as_str())];
        if let Some(MachineKey { region, machine }) = after {
            query.extend([("after_region", region.as_str()), ("after_machine", machine.as_str())]);
        }
        let asked = |replica| self.read(Ask { query: &query, ..ask.clone() }.to(Whom::One(replica)));
        let mut answers = join_all(self.inner.replicas.in_order().map(asked)).await;
        all_failed(&mut answers)?;
        merged(after, limit.max(1), answers)
    }
}

/// One page of what each gateway has, or did not answer.
fn merged<T: OfMachine>(
    after: Option<&MachineKey>,
    limit: usize,
    answers: Vec<Result<MachinePage<T>, Error>>,
) -> Result<MachinePage<T>, BackendError> {
    let settling = answers.iter().any(|answer| answer.as_ref().map_or(true, |page| page.settling));
    let pages: Vec<_> = answers.into_iter().flatten().collect();
    // Beyond the end of the shortest page it is not known what the others have.
    let next = pages.iter().filter_map(|page| page.next.clone()).min();
    if let (Some(next), Some(after)) = (&next, after)
        && next <= after
    {
        return Err(BackendError::permanent(BACKEND, format!("the page of machines after {after} ends at {next}")));
    }
    let mut machines: BTreeMap<MachineKey, T> = BTreeMap::new();
    for machine in pages.into_iter().flat_map(|page| page.machines) {
        let key = machine.key();
        let is_newer = machines.get(&key).is_none_or(|other| machine.silent_for() < other.silent_for());
        if is_newer && next.as_ref().is_none_or(|next| key <= *next) {
            machines.insert(key, machine);
        }
    }
    let mut page = MachinePage { machines: machines.into_values().collect(), settling, next };
    page.cut(limit);
    Ok(page)
}

/// The first error, when there is nothing else.
fn all_failed<T>(answers: &mut Vec<Result<T, Error>>) -> Result<(), BackendError> {
    if answers.iter().any(Result::is_ok) { Ok(()) } else { answers.swap_remove(0).map(drop).map_err(below) }
}

fn below(error: Error) -> BackendError {
    match error {
        Error::Backend(error) => error,
        other => BackendError::permanent(BACKEND, other),
    }
}
