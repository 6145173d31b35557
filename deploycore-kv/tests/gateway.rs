//! The gateway over real HTTP: what goes over the wire, and what it costs the store.
#![cfg(feature = "gateway")]

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use axum::extract::Request;
use axum::middleware::Next;
use deploycore::memory;
use deploycore::model::{
    Digest, Goal, KnownMachine, MachineKey, MachinePage, MachineReport, Manifest, Revision, ServiceName,
};
use deploycore::port::goals::{Changes, Error, Expect, GoalStateStore, Snapshot, Stored};
use deploycore::port::{BackendError, MachineDirectory, ManifestSource, ReportSink, chain};
use deploycore_kv::gateway::{Access, Gateway, GatewayClient, GatewayClientSettings, GatewaySettings, keeping_alive};
use futures::StreamExt;
use futures::future::join_all;
use futures::stream::BoxStream;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

const SOON: Duration = Duration::from_secs(1);

/// The memory store, with its reads counted.
#[derive(Debug, Default)]
struct Counted {
    goals: memory::Goals,
    /// While it is, reads of changes wait.
    shut: watch::Sender<bool>,
    lists: AtomicUsize,
    changes: AtomicUsize,
    watches: AtomicUsize,
}

#[async_trait]
impl GoalStateStore for Counted {
    async fn get(&self, service: &ServiceName) -> Result<Option<Stored>, Error> {
        self.goals.get(service).await
    }
    async fn list(&self, prefix: &str) -> Result<Snapshot, Error> {
        self.lists.fetch_add(1, Ordering::SeqCst);
        self.goals.list(prefix).await
    }
    async fn put(&self, goal: &Goal, expect: Expect) -> Result<Revision, Error> {
        self.goals.put(goal, expect).await
    }
    async fn history(&self, service: &ServiceName, limit: usize) -> Result<Vec<Stored>, Error> {
        self.goals.history(service, limit).await
    }
    async fn changes(&self, since: Revision) -> Result<Changes, Error> {
        self.changes.fetch_add(1, Ordering::SeqCst);
        self.shut.subscribe().wait_for(|shut| !shut).await.unwrap();
        self.goals.changes(since).await
    }
    fn watch(&self, since: Revision) -> BoxStream<'static, Result<Changes, Error>> {
        self.watches.fetch_add(1, Ordering::SeqCst);
        self.goals.watch(since)
    }
    async fn compact(&self, through: Revision) -> Result<(), Error> {
        self.goals.compact(through).await
    }
}

/// A region's other parts: one manifest, and the reports that came.
#[derive(Debug, Default)]
struct Region {
    manifest: Mutex<Option<Manifest>>,
    manifest_reads: AtomicUsize,
    /// While it is, reads of manifests wait.
    shut: watch::Sender<bool>,
    reports: Mutex<Vec<MachineReport>>,
}

#[async_trait]
impl ManifestSource for Region {
    async fn region_manifest(&self, digest: &Digest) -> Result<Option<Manifest>, BackendError> {
        self.manifest_reads.fetch_add(1, Ordering::SeqCst);
        tokio::task::yield_now().await;
        self.shut.subscribe().wait_for(|shut| !shut).await.unwrap();
        Ok(self.manifest.lock().unwrap().clone().filter(|manifest| manifest.digest() == *digest))
    }
}

#[async_trait]
impl ReportSink for Region {
    async fn report(&self, report: &MachineReport) -> Result<(), BackendError> {
        self.reports.lock().unwrap().push(report.clone());
        Ok(())
    }
}

#[async_trait]
impl MachineDirectory for Region {
    async fn machines(&self, _: Option<&MachineKey>, _: usize) -> Result<MachinePage<KnownMachine>, BackendError> {
        let known = |report: &MachineReport| KnownMachine {
            report: report.clone(),
            silent_for: Duration::from_millis(1_500),
            live: true,
        };
        let machines = self.reports.lock().unwrap().iter().map(known).collect();
        Ok(MachinePage { machines, settling: true, next: None })
    }
}

struct Served {
    goals: Arc<Counted>,
    region: Arc<Region>,
    base: String,
    http: reqwest::Client,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

async fn serve(settings: GatewaySettings) -> Served {
    let (goals, region) = (Arc::new(Counted::default()), Arc::new(Region::default()));
    let parts = (region.clone(), region.clone(), region.clone());
    let gateway = Gateway::new(settings, goals.clone(), Some(parts.0), Some(parts.1), Some(parts.2));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    let task = tokio::spawn(async move { gateway.serve(listener, stop).await.unwrap() });
    Served { goals, region, base, http: http(), shutdown, task }
}

/// As [`serve`], with the requests counted that have come to their handlers.
async fn serve_counted() -> (Served, Arc<AtomicUsize>) {
    let (goals, region) = (Arc::new(Counted::default()), Arc::new(Region::default()));
    let gateway = Gateway::new(GatewaySettings::default(), goals.clone(), None, None, None);
    let arrived = Arc::<AtomicUsize>::default();
    let counter = arrived.clone();
    let count = move |request: Request, next: Next| {
        counter.fetch_add(1, Ordering::SeqCst);
        next.run(request)
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let router = gateway.router().layer(axum::middleware::from_fn(count));
    let task = tokio::spawn(async move { axum::serve(keeping_alive(listener), router).await.unwrap() });
    let shutdown = CancellationToken::new();
    (Served { goals, region, base, http: http(), shutdown, task }, arrived)
}

async fn until(is_so: impl Fn() -> bool) {
    let look = async {
        while !is_so() {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(30), look).await.expect("it does not come to that");
}

fn http() -> reqwest::Client {
    deploycore::tls::ensure_provider();
    reqwest::Client::new()
}

impl Served {
    fn client(&self) -> GatewayClient {
        GatewayClient::new(self.base.parse().unwrap()).unwrap()
    }

    async fn get(&self, path: &str, held: Option<&str>) -> reqwest::Response {
        let request = self.http.get(format!("{}{path}", self.base));
        let request = held.into_iter().fold(request, |request, tag| request.header("if-none-match", tag));
        request.send().await.unwrap()
    }

    async fn put(&self, path: &str, body: String) -> reqwest::Response {
        self.http.put(format!("{}{path}", self.base)).body(body).send().await.unwrap()
    }

    async fn write(&self, service: &str, generation: u64) -> Revision {
        let goal = goal(service, generation);
        let stored = self.goals.get(&goal.service).await.unwrap();
        self.goals.put(&goal, stored.map_or(Expect::Absent, |stored| Expect::At(stored.revision))).await.unwrap()
    }

    /// Until so many requests have been answered or wait, as far as the store can tell.
    async fn until_watched(&self, questions: usize) {
        let goals = &self.goals;
        until(|| goals.changes.load(Ordering::SeqCst) >= questions && goals.watches.load(Ordering::SeqCst) > 0).await;
    }
}

fn goal(service: &str, generation: u64) -> Goal {
    let json = json!({
        "service": service, "epoch": 0, "generation": generation,
        "artifact": {"name": "a", "digest": Digest::of(b""), "size": generation},
        "run": {}, "selector": {}, "origin": {"kind": "deploy"}, "created_at": "2026-01-01T00:00:00Z",
    });
    serde_json::from_value(json).unwrap()
}

fn tag(response: &reqwest::Response) -> String {
    response.headers()["etag"].to_str().unwrap().to_owned()
}

async fn code(response: reqwest::Response) -> (u16, String) {
    let status = response.status().as_u16();
    let body: Value = response.json().await.unwrap();
    assert!(body["error"]["message"].is_string(), "{body}");
    (status, body["error"]["code"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn a_list_that_is_held_is_answered_without_a_body_until_it_changes() {
    let served = serve(GatewaySettings::default()).await;
    served.write("web", 1).await;
    let first = served.get("/v1/goals", None).await;
    let held = tag(&first);
    let list: Snapshot = first.json().await.unwrap();
    assert_eq!(list, served.goals.goals.list("").await.unwrap());
    for form in [held.clone(), format!("W/{held}"), format!("\"x\", {held}"), "*".to_owned()] {
        let again = served.get("/v1/goals", Some(&form)).await;
        assert_eq!((again.status().as_u16(), tag(&again)), (304, held.clone()), "{form}");
        assert!(again.bytes().await.unwrap().is_empty());
    }
    served.write("web", 2).await;
    let changed = served.get("/v1/goals", Some(&held)).await;
    assert_eq!(changed.status(), 200);
    assert_ne!(tag(&changed), held);

    let one = served.get("/v1/goals/web", None).await;
    let held = tag(&one);
    assert_eq!(one.json::<Stored>().await.unwrap().goal, goal("web", 2));
    assert_eq!(served.get("/v1/goals/web", Some(&held)).await.status(), 304);
    served.write("web", 3).await;
    assert_eq!(served.get("/v1/goals/web", Some(&held)).await.status(), 200);
    assert_eq!(code(served.get("/v1/goals/none", None).await).await, (404, "no_goal".to_owned()));
}

#[tokio::test]
async fn polls_that_come_together_share_a_read_of_the_store() {
    const POLLS: usize = 50;
    let (served, arrived) = serve_counted().await;
    served.write("web", 1).await;
    let wanted = served.goals.goals.list("").await.unwrap();
    assert_eq!(served.client().list("").await.unwrap(), wanted);
    for round in 1..=3 {
        served.goals.shut.send_replace(true);
        arrived.store(0, Ordering::SeqCst);
        served.goals.changes.store(0, Ordering::SeqCst);
        let polls: Vec<_> = (0..POLLS)
            .map(|_| {
                let client = served.client();
                tokio::spawn(async move { client.list("").await.unwrap() })
            })
            .collect();
        until(|| arrived.load(Ordering::SeqCst) == POLLS).await;
        served.goals.shut.send_replace(false);
        for poll in polls {
            assert_eq!(poll.await.unwrap(), wanted);
        }
        // One was reading when the others came; one more read, which began after all of them, serves the rest.
        assert_eq!(served.goals.changes.load(Ordering::SeqCst), 2, "round {round}");
    }
    assert_eq!(served.goals.lists.load(Ordering::SeqCst), 1);
    assert!(served.client().list("api").await.unwrap().goals.is_empty());
}

#[tokio::test]
async fn all_who_wait_wake_within_a_second_by_one_watch() {
    const WAITERS: usize = 200;
    let (served, arrived) = serve_counted().await;
    let served = Arc::new(served);
    served.write("web", 1).await;
    let held = tag(&served.get("/v1/goals", None).await);
    arrived.store(0, Ordering::SeqCst);
    let waiters: Vec<_> = (0..WAITERS)
        .map(|number| {
            let (served, held) = (served.clone(), held.clone());
            tokio::spawn(async move {
                let (path, held) = match number % 2 {
                    0 => ("/v1/goals?wait=30s", Some(held.as_str())),
                    _ => ("/v1/changes?since=1&wait=30s", None),
                };
                let answer = served.get(path, held).await;
                assert_eq!(answer.status(), 200);
                (Instant::now(), answer.json::<Value>().await.unwrap())
            })
        })
        .collect();
    until(|| arrived.load(Ordering::SeqCst) == WAITERS).await;
    // Reads are answered in the order in which they came: when this one is, all before it have read and wait.
    assert_eq!(served.get("/v1/goals", Some(&held)).await.status(), 304);
    assert!(waiters.iter().all(|waiter| !waiter.is_finished()));
    let written = Instant::now();
    served.write("web", 2).await;
    for waiter in waiters {
        let (woken, body) = waiter.await.unwrap();
        assert!(woken - written < SOON * 5, "{:?}", woken - written);
        assert_eq!(body["revision"], 2);
        assert_eq!(body["goals"][0]["goal"]["generation"], 2);
    }
    assert_eq!(served.goals.watches.load(Ordering::SeqCst), 1);
    assert_eq!(served.goals.lists.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_change_wakes_a_wait_and_the_next_wait_too() {
    let served = serve(GatewaySettings::default()).await;
    served.write("web", 1).await;
    let mut held = tag(&served.get("/v1/goals", None).await);
    for generation in 2..6 {
        let waiting = served.get("/v1/goals?wait=30s", Some(&held));
        let (answer, written) = tokio::join!(waiting, async {
            served.until_watched(generation).await;
            served.write("web", generation as u64).await;
            Instant::now()
        });
        assert!(written.elapsed() < SOON, "{:?}", written.elapsed());
        held = tag(&answer);
        let list: Snapshot = answer.json().await.unwrap();
        assert_eq!(list.goals[0].goal.position.generation.0, generation as u64);
    }
}

#[tokio::test]
async fn a_wait_ends_when_its_time_is_over() {
    let settings = GatewaySettings::default().with_max_wait(Duration::from_millis(50));
    let served = serve(settings).await;
    served.write("web", 1).await;
    let held = tag(&served.get("/v1/goals", None).await);
    let answer = timeout(Duration::from_secs(10), served.get("/v1/goals?wait=1h", Some(&held))).await.unwrap();
    assert_eq!(answer.status(), 304);
    let answer = timeout(Duration::from_secs(10), served.get("/v1/changes?since=1&wait=1h", None)).await.unwrap();
    assert_eq!(answer.json::<Value>().await.unwrap(), json!({"revision": 1, "goals": []}));
}

#[tokio::test]
async fn one_who_waits_too_many_is_told_to_come_again() {
    let served = serve(GatewaySettings::default().with_max_waiters(1)).await;
    served.write("web", 1).await;
    let held = tag(&served.get("/v1/goals", None).await);
    let waiting = served.get("/v1/goals?wait=30s", Some(&held));
    let refused = async {
        served.until_watched(2).await;
        let refused = served.get("/v1/changes?since=1&wait=30s", None).await;
        assert!(refused.headers()["retry-after"].to_str().unwrap().parse::<u32>().unwrap() > 0);
        assert_eq!(code(refused).await, (429, "too_many_waiters".to_owned()));
        let mut watch = served.client().watch(Revision(1));
        let error = watch.next().await.unwrap().unwrap_err();
        assert!(error.is_retryable(), "{}", chain(&error));
        // Who does not wait is served.
        assert_eq!(served.get("/v1/goals", Some(&held)).await.status(), 304);
        served.write("web", 2).await;
    };
    let (answer, ()) = tokio::join!(waiting, refused);
    assert_eq!(answer.status(), 200);
    // The place is free again.
    assert_eq!(served.get("/v1/changes?since=2&wait=1ms", None).await.status(), 200);
}

#[tokio::test]
async fn goals_are_written_only_where_the_gateway_is_writable() {
    let served = serve(GatewaySettings::default()).await;
    let body = json!({"goal": goal("web", 1), "expect": "absent"}).to_string();
    assert_eq!(code(served.put("/v1/goals/web", body.clone()).await).await, (403, "read_only".to_owned()));
    let client = served.client();
    for refused in [client.put(&goal("web", 1), Expect::Absent).await.map(drop), client.compact(Revision(1)).await] {
        let error = refused.unwrap_err();
        assert!(matches!(&error, Error::Backend(error) if !error.is_retryable()), "{error:?}");
    }
    assert!(served.goals.list("").await.unwrap().goals.is_empty());

    let served = serve(GatewaySettings::default().with_access(Access::Writable)).await;
    let answer = served.put("/v1/goals/web", body).await;
    assert_eq!(answer.json::<Value>().await.unwrap(), json!({"revision": 1}));
    let body = json!({"goal": goal("web", 2), "expect": {"at": 1}}).to_string();
    assert_eq!(served.put("/v1/goals/web", body).await.json::<Value>().await.unwrap(), json!({"revision": 2}));
    let compacted = served.http.post(format!("{}/v1/compact", served.base)).body(r#"{"through": 2}"#).send().await;
    assert_eq!(compacted.unwrap().status(), 204);
    assert_eq!(code(served.get("/v1/changes?since=1", None).await).await, (410, "compacted".to_owned()));
}

#[tokio::test]
async fn bad_requests_are_named_and_change_nothing() {
    let served = serve(GatewaySettings::default().with_access(Access::Writable)).await;
    let whole = json!({"goal": goal("web", 1), "expect": "absent"}).to_string();
    for (path, body) in [
        ("/v1/goals/api", whole.as_str()),
        ("/v1/goals/WEB", whole.as_str()),
        ("/v1/goals/web", "{"),
        ("/v1/goals/web", "{}"),
        ("/v1/machines/m1", "[]"),
    ] {
        assert_eq!(code(served.put(path, body.to_owned()).await).await, (400, "invalid".to_owned()), "{path} {body}");
    }
    for path in
        ["/v1/goals?wait=soon", "/v1/goals?wiat=1s", "/v1/changes?since=-1", "/v1/goals/..%2Fx", "/v1/manifests/abc"]
    {
        assert_eq!(code(served.get(path, None).await).await, (400, "invalid".to_owned()), "{path}");
    }
    let large = "x".repeat(2 << 20);
    assert_eq!(code(served.put("/v1/goals/web", large).await).await, (413, "too_large".to_owned()));
    assert!(served.goals.list("").await.unwrap().goals.is_empty());
}

#[tokio::test]
async fn a_manifest_is_read_once_for_all_who_come() {
    let served = serve(GatewaySettings::default()).await;
    let manifest = Manifest::of(b"an artifact");
    *served.region.manifest.lock().unwrap() = Some(manifest.clone());
    let (client, digest) = (served.client(), manifest.digest());
    let found = join_all((0..50).map(|_| client.region_manifest(&digest))).await;
    assert!(found.into_iter().all(|found| found.unwrap().as_ref() == Some(&manifest)));
    assert_eq!(served.region.manifest_reads.load(Ordering::SeqCst), 1);
    let answer = served.get(&format!("/v1/manifests/{digest}"), None).await;
    assert!(answer.headers()["cache-control"].to_str().unwrap().contains("immutable"));
    let held = tag(&answer);
    assert_eq!(served.get(&format!("/v1/manifests/{digest}"), Some(&held)).await.status(), 304);
}

#[tokio::test]
async fn who_comes_for_a_manifest_that_is_not_there_shares_a_read_and_it_is_found_soon_after_it_came() {
    let served = serve(GatewaySettings::default()).await;
    let manifest = Manifest::of(b"an artifact");
    let (client, digest) = (served.client(), manifest.digest());
    let start = Instant::now();
    let found = join_all((0..50).map(|_| client.region_manifest(&digest))).await;
    assert!(found.into_iter().all(|found| found.unwrap().is_none()));
    for _ in 0..50 {
        assert_eq!(client.region_manifest(&digest).await.unwrap(), None);
    }
    // On a machine that does nothing else it is one.
    let seconds = start.elapsed().as_secs() as usize;
    assert!(served.region.manifest_reads.load(Ordering::SeqCst) <= 1 + seconds);
    *served.region.manifest.lock().unwrap() = Some(manifest.clone());
    let look = async {
        while client.region_manifest(&digest).await.unwrap().as_ref() != Some(&manifest) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(10), look).await.expect("its absence is kept");
}

#[tokio::test]
async fn a_store_that_is_slow_with_a_manifest_is_asked_once_and_keeps_no_poll_waiting() {
    let settings = GatewaySettings { max_requests: 2, max_manifests: 8, ..GatewaySettings::default() };
    let served = serve(settings.with_request_timeout(SOON * 2)).await;
    served.region.shut.send_replace(true);
    let path = format!("/v1/manifests/{}", Digest::of(b"an artifact"));
    let waiting = join_all((0..9).map(|_| async { code(served.get(&path, None).await).await }));
    let polls = async {
        until(|| served.region.manifest_reads.load(Ordering::SeqCst) > 0).await;
        for _ in 0..20 {
            assert_eq!(served.get("/v1/goals", None).await.status(), 200);
        }
    };
    let (mut answers, ()) = tokio::join!(waiting, polls);
    answers.sort();
    assert_eq!(answers[0], (429, "overloaded".to_owned()));
    assert!(answers[1..].iter().all(|answer| *answer == (503, "unavailable".to_owned())), "{answers:?}");
    assert_eq!(served.region.manifest_reads.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn reports_come_through() {
    let served = serve(GatewaySettings::default()).await;
    let report: MachineReport = serde_json::from_value(json!({
        "machine": "m1", "region": "eu", "labels": {"zone": "a"}, "agent_pid": 7,
        "services": [{"service": "web", "goal": {"epoch": 0, "generation": 2}, "phase": "good", "current": null,
            "pid": 8, "port": 80, "bytes_fetched": 9, "message": null}],
    }))
    .unwrap();
    let client = served.client();
    client.report(&report).await.unwrap();
    assert_eq!(*served.region.reports.lock().unwrap(), std::slice::from_ref(&report));
    assert_eq!(client.machines(None, 9).await.unwrap(), served.region.machines(None, 9).await.unwrap());
    let body = serde_json::to_string(&report).unwrap();
    assert_eq!(code(served.put("/v1/machines/m2", body).await).await, (400, "invalid".to_owned()));
}

#[tokio::test]
async fn what_is_not_offered_is_named() {
    let gateway = Gateway::new(GatewaySettings::default(), Arc::new(memory::Goals::new()), None, None, None);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    let shutdown = CancellationToken::new();
    let client = GatewayClient::new(base).unwrap();
    let asked = async {
        let error = client.machines(None, 9).await.unwrap_err();
        assert!(!error.is_retryable() && chain(&error).contains("machines are not offered"), "{}", chain(&error));
        assert!(client.region_manifest(&Digest::of(b"")).await.is_err());
        shutdown.cancel();
    };
    let (served, ()) = tokio::join!(gateway.serve(listener, shutdown.clone()), asked);
    served.unwrap();
}

#[tokio::test]
async fn a_watch_ends_with_an_error_when_the_gateway_goes_and_shutdown_does_not_wait_for_it() {
    let served = serve(GatewaySettings::default()).await;
    served.write("web", 1).await;
    let client = served.client();
    let mut watch = client.watch(Revision(0));
    assert_eq!(watch.next().await.unwrap().unwrap().revision, Revision(1));
    let shutdown = async {
        served.until_watched(1).await;
        served.shutdown.cancel();
        timeout(Duration::from_secs(5), served.task).await.unwrap().unwrap();
    };
    let (event, ()) = tokio::join!(watch.next(), shutdown);
    let error = event.unwrap().unwrap_err();
    assert!(error.is_retryable(), "{}", chain(&error));
    assert!(watch.next().await.is_none());
    let error = client.list("").await.unwrap_err();
    assert!(error.is_retryable(), "{}", chain(&error));
}

#[tokio::test]
async fn a_gateway_that_never_answers_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    let settings = GatewayClientSettings::default().with_request_timeout(Duration::from_millis(100));
    let client = GatewayClient::with_settings(base, settings.with_watch_wait(Duration::from_millis(100))).unwrap();
    let error = timeout(Duration::from_secs(10), client.list("")).await.unwrap().unwrap_err();
    assert!(error.is_retryable(), "{}", chain(&error));
    let event = timeout(Duration::from_secs(10), client.watch(Revision(0)).next()).await.unwrap().unwrap();
    assert!(event.unwrap_err().is_retryable());
}

#[tokio::test]
async fn a_body_that_stops_half_way_is_not_waited_for() {
    let served = serve(GatewaySettings::default().with_request_timeout(Duration::from_millis(200))).await;
    let mut line = TcpStream::connect(served.base.strip_prefix("http://").unwrap()).await.unwrap();
    let half = "PUT /v1/machines/m1 HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{\"machine\":";
    line.write_all(half.as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(Duration::from_secs(10), line.read_to_string(&mut answer)).await.expect("the gateway waits").unwrap();
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("too_slow"), "{answer}");
}

#[tokio::test]
async fn a_watch_without_a_wait_is_no_busy_loop() {
    let none = Duration::ZERO;
    for (max_wait, watch_wait) in [(none, Duration::from_secs(30)), (Duration::from_mins(1), none)] {
        let served = serve(GatewaySettings::default().with_max_wait(max_wait)).await;
        served.write("web", 1).await;
        let settings = GatewayClientSettings::default().with_watch_wait(watch_wait);
        let client = GatewayClient::with_settings(served.base.parse().unwrap(), settings).unwrap();
        let mut watch = client.watch(Revision(1));
        assert!(timeout(Duration::from_millis(1_500), watch.next()).await.is_err());
        // Two requests at most, and a wait that ends reads twice.
        assert!(served.goals.changes.load(Ordering::SeqCst) <= 4, "{}", served.goals.changes.load(Ordering::SeqCst));
        served.write("web", 2).await;
        let changes = timeout(Duration::from_secs(10), watch.next()).await.unwrap().unwrap().unwrap();
        assert_eq!(changes.revision, Revision(2));
    }
}

#[test]
fn a_base_that_is_no_gateway_is_refused() {
    for base in ["https://host/", "redb:///x", "data:x"] {
        let refused = GatewayClient::new(base.parse().unwrap());
        assert!(matches!(refused, Err(Error::Invalid(_))), "{base}: {refused:?}");
    }
}

/// A process whose environment names a proxy that is not there. Started by the test below.
#[tokio::test]
#[ignore = "runs as a child of another test"]
async fn child_behind_a_proxy() {
    let served = serve(GatewaySettings::default()).await;
    served.write("web", 1).await;
    let goals = served.client().list("").await.unwrap().goals;
    assert_eq!(goals[0].goal, goal("web", 1));
}

#[test]
fn a_proxy_for_the_way_out_is_not_on_the_way_to_the_region() {
    // Port 9 is the discard service's: whoever obeys the proxy gets no answer.
    let proxy = "http://127.0.0.1:9";
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["child_behind_a_proxy", "--exact", "--ignored", "--nocapture"])
        .envs(["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"].map(|name| (name, proxy)))
        .env_remove("NO_PROXY")
        .env_remove("no_proxy")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success() && text.contains("1 passed"), "{text}{}", String::from_utf8_lossy(&child.stderr));
}
