//! Goals in [etcd](https://etcd.io), 3.4 or newer: for a platform that runs one already.
//!
//! Every process talks to the cluster itself; none owns the goals. What the store promises is kept by etcd's transactions: a write is
//! decided on what was read and takes place only if the service's goal has not been written since, by comparing the revision that
//! last changed it. Reads are linearizable, so a member that was cut off gives no old answer; it gives none, and the next is asked.
//!
//! # Keys
//!
//! Below a prefix of the user's choice, `/deploycore` by default:
//!
//! | key | value |
//! |---|---|
//! | `goals/SERVICE` | the current goal as JSON, as every backend has it |
//! | `history/SERVICE/EPOCH.GENERATION` | the goals that were current, and the current one; both numbers with 20 digits |
//! | `head` | the number of this layout; written with each goal |
//! | `compacted` | the revision that changes are forgotten up to |
//!
//! A goal's [`Revision`] is the etcd revision that wrote it. The store's is that of `head`: other writers to the same etcd move etcd's
//! revision, not the store's. Changes are read from the current goals, by the revision that wrote them, and not from etcd's log: etcd may
//! be compacted at any time, and should be (`--auto-compaction-retention`), with no loss here. [`compact`](GoalStateStore::compact)
//! moves `compacted` alone and never compacts etcd, which others use too.
//!
//! # Watches
//!
//! A watch reads what changed, then follows etcd's events from the next revision. A connection that breaks, a member that dies or loses
//! its leader, a compaction of etcd, a server that only falls silent (after [`Settings::watch_idle`]): each time it reads again from the last
//! revision that it told, and follows from there, on the next member where need be. It ends when no server has answered for
//! [`Settings::watch_limit`], when the credentials are refused, or when the changes it asks for were forgotten.
//!
//! # Certificates
//!
//! etcd's members may be reached by `https` alone, and ask for a client's certificate: see [`Tls`]. Where authentication is on, the user
//! needs to read and write below the prefix.

mod client;
mod fault;
mod keys;
mod proto;
mod settings;
mod tls;
mod watch;

use std::sync::Arc;

use async_trait::async_trait;
use deploycore::model::{Goal, Revision, ServiceName};
use deploycore::port::goals::{Admission, Changes, Error, Expect, GoalStateStore, HISTORY, Snapshot, Stored, admit};
use futures::stream::BoxStream;
use tokio::time::Instant;

use client::Client;
use fault::Fault;
use keys::Keys;
use proto::{
    Compare, DeleteRangeRequest, KeyValue, PutRequest, RangeRequest, RangeResponse, Request, RequestOp, ResponseHeader,
    SortOrder, SortTarget, TxnRequest, TxnResponse,
};

pub use settings::{ClientCertificate, Settings, Tls, User};

const BACKEND: &str = "etcd";
/// What `head` holds.
const LAYOUT: &str = "1";
/// Goals in one answer: 16 MiB of the largest.
const PAGE: usize = 256;
/// Earlier goals that may lie there beyond [`HISTORY`] before a write removes them: most writes need not look which.
const SLACK: i64 = 20;
/// How often a call begins anew because of what others did meanwhile. Each time, somebody else got on.
const TRIES: usize = 8;

/// A [`GoalStateStore`] in etcd. Clones share connections.
///
/// ```no_run
/// # async fn example() -> Result<(), deploycore::port::goals::Error> {
/// use deploycore_kv::etcd::{Goals, Settings};
///
/// let members = ["http://10.0.0.1:2379", "http://10.0.0.2:2379", "http://10.0.0.3:2379"];
/// let goals = Goals::open(Settings::new(members).with_user("deploy", "of the vault")).await?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Goals {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    client: Client,
    keys: Keys,
}

/// The goal of a service, and what a write of the next needs to know.
struct Standing {
    stored: Option<Stored>,
    past: i64,
}

impl Goals {
    /// Reads the certificates, connects, and looks whether the prefix can be read and has this layout.
    ///
    /// Errors: `Invalid` for settings that cannot work; otherwise one line that says what to do: no server answers (retryable), the
    /// certificate is not trusted, the user is refused or may not read there, or something else lies there.
    pub async fn open(mut settings: Settings) -> Result<Self, Error> {
        settings.check()?;
        settings.prefix.truncate(settings.prefix.trim_end_matches('/').len());
        let keys = Keys::new(settings.prefix.clone());
        let goals = Self { inner: Arc::new(Inner { client: Client::new(settings).await?, keys }) };
        goals.inner.bounds(goals.inner.client.deadline()).await?;
        Ok(goals)
    }

    /// Opens the store of a URL: see [`Settings::from_url`].
    pub async fn open_url(url: &str) -> Result<Self, Error> {
        Self::open(Settings::from_url(url)?).await
    }
}

#[async_trait]
impl GoalStateStore for Goals {
    async fn get(&self, service: &ServiceName) -> Result<Option<Stored>, Error> {
        let client = &self.inner.client;
        let request = one(self.inner.keys.goal(service));
        let found = client.range(request, client.deadline()).await?;
        Ok(found.kvs.first().map(stored).transpose()?)
    }

    async fn list(&self, prefix: &str) -> Result<Snapshot, Error> {
        let deadline = self.inner.client.deadline();
        for _ in 0..TRIES {
            match self.inner.list(prefix, deadline).await {
                // etcd was compacted between two pages.
                Err(Fault::Gone) => {}
                other => return Ok(other?),
            }
        }
        Err(Fault::Gone.into())
    }

    async fn put(&self, goal: &Goal, expect: Expect) -> Result<Revision, Error> {
        let outcome = self.inner.put(goal, expect).await;
        if let Err(error @ Error::Equivocation { .. }) = &outcome {
            metrics::counter!("deploycore_goal_equivocations_total").increment(1);
            tracing::error!(%error, "refused a goal");
        }
        outcome
    }

    async fn history(&self, service: &ServiceName, limit: usize) -> Result<Vec<Stored>, Error> {
        if limit == 0 {
            // etcd takes 0 for no limit.
            return Ok(Vec::new());
        }
        let client = &self.inner.client;
        let request = newest_first(self.inner.keys.history(service), limit.min(PAGE));
        let found = client.range(request, client.deadline()).await?;
        Ok(found.kvs.iter().map(stored).collect::<Result<_, _>>()?)
    }

    async fn changes(&self, since: Revision) -> Result<Changes, Error> {
        Ok(self.inner.changes(since).await?.changes)
    }

    fn watch(&self, since: Revision) -> BoxStream<'static, Result<Changes, Error>> {
        watch::watch(Arc::clone(&self.inner), since)
    }

    async fn compact(&self, through: Revision) -> Result<(), Error> {
        self.inner.compact(through).await
    }
}

/// A page of changes.
struct Page {
    changes: Changes,
    /// More changed than the page holds.
    more: bool,
    /// etcd's own revision when it was read: no change up to it is missing, unless there is more.
    seen: i64,
}

impl Inner {
    async fn list(&self, prefix: &str, deadline: Instant) -> Result<Snapshot, Fault> {
        let (from, to) = self.keys.goals(prefix);
        let goals = RangeRequest { key: from, range_end: to, limit: PAGE as i64, ..RangeRequest::default() };
        let reads = vec![one(self.keys.head()).into(), goals.clone().into()];
        let mut answer = self.client.txn(TxnRequest { success: reads, ..TxnRequest::default() }, deadline).await?;
        let revision = self.head(&answer, 0)?;
        let at = seen(answer.header.as_ref());
        let mut page = range_of(&mut answer, 1);
        let mut found = Vec::new();
        loop {
            found.extend(page.kvs.iter().map(stored).collect::<Result<Vec<_>, _>>()?);
            let Some(last) = page.kvs.pop().filter(|_| page.more) else {
                return Ok(Snapshot { revision, goals: found });
            };
            // The next page as it was at the first one's revision.
            let key = [last.key, vec![0]].concat();
            page = self.client.range(RangeRequest { key, revision: at, ..goals.clone() }, deadline).await?;
        }
    }

    async fn put(&self, goal: &Goal, expect: Expect) -> Result<Revision, Error> {
        let deadline = self.client.deadline();
        let mut standing = self.standing(&goal.service, deadline).await?;
        for _ in 0..TRIES {
            if let Admission::Repeat(revision) = admit(standing.stored.as_ref(), goal, expect)? {
                return Ok(revision);
            }
            match self.write(goal, &standing, deadline).await? {
                Ok(revision) => return Ok(revision),
                // Another was faster, or this is the second try of a write whose reply was lost: it is decided anew.
                Err(now) => standing = now,
            }
        }
        Err(Fault::Contended { key: text(&self.keys.goal(&goal.service)) }.into())
    }

    async fn standing(&self, service: &ServiceName, deadline: Instant) -> Result<Standing, Fault> {
        let request = TxnRequest { success: self.reads_of(service), ..TxnRequest::default() };
        self.standing_in(self.client.txn(request, deadline).await?)
    }

    fn reads_of(&self, service: &ServiceName) -> Vec<RequestOp> {
        let (from, to) = self.keys.history(service);
        let past = RangeRequest { key: from, range_end: to, count_only: true, ..RangeRequest::default() };
        vec![one(self.keys.head()).into(), one(self.keys.goal(service)).into(), past.into()]
    }

    fn standing_in(&self, mut answer: TxnResponse) -> Result<Standing, Fault> {
        self.head(&answer, 0)?;
        let past = answer.responses.get(2).and_then(|part| part.range.as_ref()).map_or(0, |range| range.count);
        let stored = range_of(&mut answer, 1).kvs.first().map(stored).transpose()?;
        Ok(Standing { stored, past })
    }

    /// Writes the goal and what goes with it, if the service still stands as it was read; otherwise gives how it stands now.
    async fn write(
        &self,
        goal: &Goal,
        standing: &Standing,
        deadline: Instant,
    ) -> Result<Result<Revision, Standing>, Error> {
        let key = self.keys.goal(&goal.service);
        let value = serde_json::to_vec(goal).map_err(|error| Error::Invalid(error.to_string()))?;
        let read_at = standing.stored.as_ref().map_or(0, |stored| stored.revision.0 as i64);
        let put = |key, value| Request::Put(PutRequest { key, value }).into();
        let mut success: Vec<RequestOp> = vec![
            put(key.clone(), value.clone()),
            put(self.keys.past(&goal.service, goal.position), value),
            put(self.keys.head(), LAYOUT.into()),
        ];
        if standing.past >= HISTORY as i64 + SLACK {
            success.extend(self.spent(&goal.service, deadline).await?);
        }
        let compare = vec![Compare::changed_by(key, read_at)];
        let request = TxnRequest { compare, success, failure: self.reads_of(&goal.service) };
        let answer = self.client.txn(request, deadline).await?;
        if answer.succeeded {
            return Ok(Ok(Revision(seen(answer.header.as_ref()) as u64)));
        }
        Ok(Err(self.standing_in(answer)?))
    }

    /// Removes the goals that would be too many with one more. Nothing is written between this read and the write, or the write fails.
    async fn spent(&self, service: &ServiceName, deadline: Instant) -> Result<Option<RequestOp>, Fault> {
        let (from, to) = self.keys.history(service);
        let request = RangeRequest { keys_only: true, ..newest_first((from.clone(), to), HISTORY - 1) };
        let kept = self.client.range(request, deadline).await?;
        let oldest = kept.kvs.into_iter().nth(HISTORY - 2);
        Ok(oldest.map(|oldest| Request::DeleteRange(DeleteRangeRequest { key: from, range_end: oldest.key }).into()))
    }

    async fn changes(&self, since: Revision) -> Result<Page, Error> {
        let (from, to) = self.keys.goals("");
        let request = RangeRequest {
            key: from,
            range_end: to,
            limit: PAGE as i64,
            sort_order: SortOrder::Ascend.into(),
            sort_target: SortTarget::ModRevision.into(),
            min_mod_revision: i64::try_from(since.0.saturating_add(1)).unwrap_or(i64::MAX),
            ..RangeRequest::default()
        };
        let reads = vec![one(self.keys.head()).into(), one(self.keys.compacted()).into(), request.into()];
        let request = TxnRequest { success: reads, ..TxnRequest::default() };
        let mut answer = self.client.txn(request, self.client.deadline()).await?;
        let head = self.head(&answer, 0)?;
        let oldest = self.compacted(&range_of(&mut answer, 1))?;
        if since < oldest || since > head {
            return Err(Error::Compacted { since, oldest });
        }
        let found = range_of(&mut answer, 2);
        let goals = found.kvs.iter().map(stored).collect::<Result<Vec<_>, _>>()?;
        let last = goals.last().filter(|_| found.more).map(|last| last.revision);
        let changes = Changes { revision: last.unwrap_or(head), goals };
        Ok(Page { changes, more: last.is_some(), seen: seen(answer.header.as_ref()) })
    }

    async fn compact(&self, through: Revision) -> Result<(), Error> {
        let (key, deadline) = (self.keys.compacted(), self.client.deadline());
        for _ in 0..TRIES {
            let (head, compacted, read_at) = self.bounds(deadline).await?;
            let next = through.min(head);
            if next <= compacted {
                return Ok(());
            }
            let put = Request::Put(PutRequest { key: key.clone(), value: next.to_string().into() });
            let compare = vec![Compare::changed_by(key.clone(), read_at)];
            let request = TxnRequest { compare, success: vec![put.into()], failure: Vec::new() };
            if self.client.txn(request, deadline).await?.succeeded {
                return Ok(());
            }
        }
        Err(Fault::Contended { key: text(&key) }.into())
    }

    /// The store's revision, up to where changes are forgotten, and the revision that wrote that.
    async fn bounds(&self, deadline: Instant) -> Result<(Revision, Revision, i64), Fault> {
        let reads = vec![one(self.keys.head()).into(), one(self.keys.compacted()).into()];
        let mut answer = self.client.txn(TxnRequest { success: reads, ..TxnRequest::default() }, deadline).await?;
        let head = self.head(&answer, 0)?;
        let found = range_of(&mut answer, 1);
        let read_at = found.kvs.first().map_or(0, |kv| kv.mod_revision);
        Ok((head, self.compacted(&found)?, read_at))
    }

    /// The store's revision, from the part of an answer that read `head`.
    fn head(&self, answer: &TxnResponse, part: usize) -> Result<Revision, Fault> {
        let found = answer.responses.get(part).and_then(|part| part.range.as_ref()).and_then(|range| range.kvs.first());
        let Some(head) = found else { return Ok(Revision(0)) };
        if head.value != LAYOUT.as_bytes() {
            return Err(Fault::Layout { key: text(&self.keys.head()), found: text(&head.value) });
        }
        Ok(Revision(head.mod_revision as u64))
    }

    fn compacted(&self, found: &RangeResponse) -> Result<Revision, Fault> {
        let Some(kv) = found.kvs.first() else { return Ok(Revision(0)) };
        let number = std::str::from_utf8(&kv.value).ok().and_then(|number| number.parse().ok());
        let wrong = || Fault::Layout { key: text(&self.keys.compacted()), found: text(&kv.value) };
        number.map(Revision).ok_or_else(wrong)
    }
}

/// A request for one key.
fn one(key: Vec<u8>) -> RangeRequest {
    RangeRequest { key, ..RangeRequest::default() }
}

fn newest_first((key, range_end): (Vec<u8>, Vec<u8>), limit: usize) -> RangeRequest {
    RangeRequest {
        key,
        range_end,
        limit: limit as i64,
        sort_order: SortOrder::Descend.into(),
        sort_target: SortTarget::Key.into(),
        ..RangeRequest::default()
    }
}

/// What a part of a transaction read.
fn range_of(answer: &mut TxnResponse, part: usize) -> RangeResponse {
    answer.responses.get_mut(part).and_then(|part| part.range.take()).unwrap_or_default()
}

fn seen(header: Option<&ResponseHeader>) -> i64 {
    header.map_or(0, |header| header.revision)
}

/// A goal with the revision that wrote it.
fn stored(kv: &KeyValue) -> Result<Stored, Fault> {
    let wrong = |source| Fault::Goal { key: text(&kv.key), source };
    let goal: Goal = serde_json::from_slice(&kv.value).map_err(|error| wrong(Some(error)))?;
    Ok(Stored { revision: Revision(kv.mod_revision as u64), goal })
}

/// A key for people.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().take(200).flat_map(char::escape_debug).collect()
}
