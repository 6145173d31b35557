//! A gateway that has too much to do, or clients that mean no good: what is bounded, and what the client does about it.
#![cfg(feature = "gateway")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use deploycore::deploy::ReportBoard;
use deploycore::memory;
use deploycore::model::{Digest, Goal, LastReport, MachineReport, Revision};
use deploycore::port::goals::{Expect, GoalStateStore};
use deploycore::port::{BackendError, MachineDirectory, ManifestSource, ReportSink, chain};
use deploycore_kv::gateway::{Gateway, GatewayClient, GatewayClientSettings, GatewaySettings};
use futures::StreamExt;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(300);

/// A board, with the reports counted that came whole.
#[derive(Debug, Default)]
struct Counted {
    board: ReportBoard,
    whole: AtomicUsize,
}

#[async_trait]
impl ReportSink for Counted {
    async fn report(&self, report: &MachineReport) -> Result<(), BackendError> {
        self.whole.fetch_add(1, Ordering::SeqCst);
        self.board.report(report).await
    }
    async fn still_holds(&self, last: &LastReport) -> Result<bool, BackendError> {
        self.board.still_holds(last).await
    }
}

struct Served {
    goals: Arc<memory::Goals>,
    address: SocketAddr,
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

async fn serve_at(address: &str, settings: GatewaySettings, reports: Arc<Counted>) -> Served {
    let goals = Arc::new(memory::Goals::new());
    let gateway = Gateway::new(settings, goals.clone(), None, Some(reports), Some(Arc::new(ReportBoard::default())));
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    let task = tokio::spawn(async move { gateway.serve(listener, stop).await.unwrap() });
    Served { goals, address, shutdown, task }
}

async fn serve(settings: GatewaySettings) -> Served {
    serve_at("127.0.0.1:0", settings, Arc::default()).await
}

impl Served {
    fn client(&self) -> GatewayClient {
        GatewayClient::new(format!("http://{}", self.address).parse().unwrap()).unwrap()
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }
}

fn goal(service: &str, generation: u64, padding: usize) -> Goal {
    serde_json::from_value(json!({
        "service": service, "epoch": 0, "generation": generation,
        "artifact": {"name": "a", "digest": Digest::of(b""), "size": 1},
        "run": {"args": ["x".repeat(padding)]}, "selector": {}, "origin": {"kind": "deploy"},
        "created_at": "2026-01-01T00:00:00Z",
    }))
    .unwrap()
}

/// What comes until the gateway ends the connection, which it does.
async fn rest_of(mut line: TcpStream) -> Vec<u8> {
    let mut rest = Vec::new();
    // One that is cut off ends with an error or with the end.
    let _ = timeout(LONG, line.read_to_end(&mut rest)).await.expect("the connection stays");
    rest
}

#[tokio::test]
async fn a_connection_that_says_nothing_or_does_not_finish_is_closed() {
    let served = serve(GatewaySettings::default().with_idle_timeout(SHORT)).await;
    for said in ["", "GET /v1/goals HTTP/1.1\r\nhost: x\r\n"] {
        let mut line = served.connect().await;
        line.write_all(said.as_bytes()).await.unwrap();
        assert!(!rest_of(line).await.starts_with(b"HTTP/1.1 200"), "{said:?}");
    }
    // One that asked once is closed too, and not before its answer.
    let mut line = served.connect().await;
    line.write_all(b"GET /v1/goals HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    assert!(rest_of(line).await.starts_with(b"HTTP/1.1 200"));
    // One that waits for a change says nothing either, and stays for it.
    served.goals.put(&goal("web", 1, 0), Expect::Absent).await.unwrap();
    let mut line = served.connect().await;
    line.write_all(b"GET /v1/changes?since=1&wait=30s HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    tokio::time::sleep(SHORT * 3).await;
    served.goals.put(&goal("web", 2, 0), Expect::At(Revision(1))).await.unwrap();
    assert!(rest_of(line).await.starts_with(b"HTTP/1.1 200"));
}

#[tokio::test]
async fn one_that_does_not_take_its_answer_is_cut_off() {
    let served = serve(GatewaySettings::default().with_send_timeout(SHORT)).await;
    // More than the system buffers for one connection.
    for number in 0..400 {
        served.goals.put(&goal(&format!("s{number}"), 1, 60_000), Expect::Absent).await.unwrap();
    }
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4_096).unwrap();
    let mut line = socket.connect(served.address).await.unwrap();
    line.write_all(b"GET /v1/goals HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    // Others are served meanwhile.
    let whole = served.client().list("").await.unwrap();
    assert_eq!(whole.goals.len(), 400);
    tokio::time::sleep(SHORT * 4).await;
    assert!(rest_of(line).await.len() < 400 * 60_000);
}

#[tokio::test]
async fn a_connection_too_many_is_turned_away_until_one_goes() {
    let served = serve(GatewaySettings::default().with_max_connections(1)).await;
    let first = served.client();
    first.list("").await.unwrap();
    let refused = String::from_utf8(rest_of(served.connect().await).await).unwrap();
    assert!(refused.starts_with("HTTP/1.1 429 ") && refused.contains("retry-after: "), "{refused}");
    drop(first);
    let look = async {
        while let Err(error) = served.client().list("").await {
            assert!(error.is_retryable(), "{}", chain(&error));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LONG, look).await.expect("the place stays taken");
}

#[tokio::test]
async fn a_shutdown_waits_for_nobody_who_says_nothing() {
    let served = serve(GatewaySettings::default()).await;
    let line = served.connect().await;
    served.client().list("").await.unwrap();
    served.shutdown.cancel();
    timeout(Duration::from_secs(5), served.task).await.expect("it waits").unwrap();
    rest_of(line).await;
}

#[tokio::test]
async fn a_client_leaves_a_gateway_alone_that_asked_for_it_and_asks_what_it_may() {
    // It answers each request the same, and counts them.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    let asked = Arc::<AtomicUsize>::default();
    let counter = asked.clone();
    tokio::spawn(async move {
        loop {
            let (mut line, _) = listener.accept().await.unwrap();
            let _ = line.read(&mut [0; 4_096]).await;
            counter.fetch_add(1, Ordering::SeqCst);
            let answer =
                "HTTP/1.1 429 Too Many Requests\r\nretry-after: 1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            line.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    let client = GatewayClient::new(url).unwrap();
    let watched = || async { client.watch(Revision(0)).next().await.unwrap().unwrap_err() };
    assert!(watched().await.is_retryable());
    for _ in 0..5 {
        let error = watched().await;
        assert!(error.is_retryable() && chain(&error).contains("left alone"), "{}", chain(&error));
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    // It was the wait that was refused.
    client.list("").await.unwrap_err();
    assert_eq!(asked.load(Ordering::SeqCst), 2);
    client.list("").await.unwrap_err();
    assert_eq!(asked.load(Ordering::SeqCst), 2);
    // It names 1 s, and the client adds up to as much.
    let again = async {
        while asked.load(Ordering::SeqCst) == 2 {
            client.list("").await.unwrap_err();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LONG, again).await.expect("it is never asked again");
}

#[tokio::test]
async fn a_gateway_that_gives_no_manifest_is_asked_for_all_else_as_before() {
    // Both gateways give goals and no manifests.
    for status in ["429 Too Many Requests", "503 Service Unavailable"] {
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0"));
        let mut urls: Vec<url::Url> = Vec::new();
        for listener in listeners {
            let listener = listener.await.unwrap();
            urls.push(format!("http://{}", listener.local_addr().unwrap()).parse().unwrap());
            tokio::spawn(async move {
                loop {
                    let (mut line, _) = listener.accept().await.unwrap();
                    let mut asked = [0; 4_096];
                    let _ = line.read(&mut asked).await;
                    let answer = if asked.starts_with(b"GET /v1/manifests/") {
                        format!(
                            "HTTP/1.1 {status}\r\nretry-after: 60\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
                        )
                    } else {
                        let body = r#"{"revision": 0, "goals": []}"#;
                        let length = body.len();
                        format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}")
                    };
                    line.write_all(answer.as_bytes()).await.unwrap();
                }
            });
        }
        let client = GatewayClient::of_replicas(urls, GatewayClientSettings::default()).unwrap();
        let first = client.base().clone();
        for _ in 0..3 {
            assert!(client.region_manifest(&Digest::of(b"")).await.unwrap_err().is_retryable());
            assert_eq!(*client.base(), first, "{status}");
            client.list("").await.unwrap();
        }
    }
}

#[tokio::test]
async fn another_gateway_is_asked_by_who_found_one_full() {
    let full = GatewaySettings::default().with_max_waiters(0);
    let (full, free) = (serve(full).await, serve(GatewaySettings::default()).await);
    for served in [&full, &free] {
        served.goals.put(&goal("web", 1, 0), Expect::Absent).await.unwrap();
    }
    let urls = [&full, &free].map(|served| format!("http://{}", served.address).parse::<url::Url>().unwrap());
    for _ in 0..8 {
        // Half of these begin at the one that is full.
        let settings = GatewayClientSettings::default().with_watch_wait(Duration::from_millis(50));
        let client = GatewayClient::of_replicas(urls.clone(), settings).unwrap();
        let look = async {
            loop {
                let seen = client.list("").await.unwrap().revision;
                // It waits where it may, and hears of nothing.
                if timeout(SHORT, client.watch(seen).next()).await.is_err() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(LONG, look).await.expect("it does not find the gateway that has room");
        assert_eq!(*client.base(), urls[1]);
    }
}

#[tokio::test]
async fn a_gateway_says_when_it_wants_to_be_polled_again() {
    let served = serve(GatewaySettings::default().with_next_poll(Duration::from_secs(42))).await;
    let client = served.client();
    assert_eq!(client.next_poll(), None);
    for _ in 0..2 {
        client.list("").await.unwrap();
        assert_eq!(client.next_poll(), Some(Duration::from_secs(42)));
    }
    let served = serve(GatewaySettings { polls_per_second: 1, ..GatewaySettings::default() }).await;
    let lines: Vec<_> = futures::future::join_all((0..30).map(|_| served.connect())).await;
    let client = served.client();
    let look = async {
        while client.next_poll().is_none_or(|told| told < Duration::from_secs(30)) {
            client.list("").await.unwrap();
        }
    };
    timeout(LONG, look).await.expect("30 connections at 1 poll a second are 30 s");
    drop(lines);
}

#[tokio::test]
async fn a_report_comes_whole_once_and_again_when_it_changed_or_the_region_forgot() {
    let report = |pid: u32| -> MachineReport {
        let json = json!({"machine": "m1", "region": "r1", "labels": {}, "agent_pid": pid, "services": []});
        serde_json::from_value(json).unwrap()
    };
    let first = Arc::<Counted>::default();
    let served = serve_at("127.0.0.1:0", GatewaySettings::default(), first.clone()).await;
    let client = served.client();
    for _ in 0..5 {
        client.report(&report(1)).await.unwrap();
        client.list("").await.unwrap();
    }
    assert_eq!(first.whole.load(Ordering::SeqCst), 1);
    client.report(&report(2)).await.unwrap();
    assert_eq!(first.whole.load(Ordering::SeqCst), 2);
    let silent_for = || async { first.board.machines(None, 9).await.unwrap().machines[0].silent_for };
    tokio::time::sleep(SHORT).await;
    assert!(silent_for().await >= SHORT);
    client.list("").await.unwrap();
    assert!(silent_for().await < SHORT, "a poll is a sign of life");

    // The gateway comes back at its address and knows nothing. A poll that does not notice the cut says what is wanted.
    let address = served.address.to_string();
    served.shutdown.cancel();
    served.task.await.unwrap();
    let second = Arc::<Counted>::default();
    let _served = serve_at(&address, GatewaySettings::default(), second.clone()).await;
    let look = async {
        while second.whole.load(Ordering::SeqCst) == 0 {
            // The first of these may find its connection cut.
            let _ = client.list("").await;
            let _ = client.report(&report(2)).await;
        }
    };
    timeout(LONG, look).await.expect("the report is not sent again");
    assert_eq!(second.board.machines(None, 9).await.unwrap().machines[0].report, report(2));
}
