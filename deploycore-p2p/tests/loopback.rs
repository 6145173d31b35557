//! The swarm over TCP on loopback, with real files.

mod common;

use std::time::Duration;

use common::{OneArtifact, Region, in_time, trace};
use deploycore::port::PeerSwarm;
use deploycore::port::swarm::Limits;
use deploycore_p2p::core::message::{Hello, Role};
use deploycore_p2p::core::wire;
use futures::future::join_all;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_nodes_read_the_store_once() {
    trace();
    let region = Region::new(OneArtifact::new(24 << 20, 1)).await;
    let names: Vec<String> = (0..8).map(|n| format!("m{n}")).collect();
    let nodes = join_all(names.iter().map(|name| region.node(name))).await;
    let fetches = join_all(nodes.iter().zip(&names).map(|(node, name)| region.fetch(node, name))).await;
    let started = std::time::Instant::now();
    let summaries = in_time(join_all(fetches.into_iter().map(|fetch| fetch.done))).await;
    println!("{:?} {:?}", started.elapsed(), region.usage().await);
    let mut from_store = 0;
    for (name, summary) in names.iter().zip(summaries) {
        let summary = summary.unwrap();
        region.assert_whole(name);
        assert_eq!(summary.from_store + summary.from_peers, 24 << 20);
        assert!(!region.destination(name).with_extension("bin.pieces").exists());
        from_store += summary.from_store;
    }
    let usage = region.usage().await;
    assert!(usage.ratio() <= 1.2, "{usage:?}");
    assert!(region.store.read.load(std::sync::atomic::Ordering::SeqCst) <= usage.leased_bytes + usage.recovery_bytes);
    assert!(from_store >= 24 << 20);
    let stats = nodes[0].service.stats().await.unwrap();
    assert_eq!((stats.seeding, stats.fetching, stats.downloaded), (1, 0, 24 << 20));
}

const SLOW: Limits = Limits { ingress: Some(8 << 20), egress: None, disk: None };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_restarts_goes_on_from_what_it_verified() {
    trace();
    let mut region = Region::new(OneArtifact::new(24 << 20, 3)).await;
    region.tune = |settings| settings.checkpoint = Duration::from_millis(100);
    let node = region.node("m").await;
    let mut fetch = region.fetch_limited(&node, "m", SLOW).await;
    in_time(fetch.progress.wait_for(|progress| progress.bytes > 6 << 20)).await.unwrap();
    // The note that a later fetch goes by follows within a checkpoint.
    let beside = region.destination("m").with_extension("bin.pieces");
    // Between the note's kind and digest, and its hash, is the set of pieces.
    let noted = || {
        let bytes = std::fs::read(&beside).unwrap_or_default();
        let bits = bytes.get(48..bytes.len().saturating_sub(32)).unwrap_or_default();
        bits.iter().map(|byte| byte.count_ones()).sum::<u32>()
    };
    in_time(async {
        while noted() < 8 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    node.kill().await;
    assert!(fetch.done.await.is_err());
    let node = region.node("m").await;
    let summary = in_time(region.fetch(&node, "m").await.done).await.unwrap();
    println!("{summary:?} {:?}", region.usage().await);
    assert!(summary.resumed >= 2 << 20, "{summary:?}");
    assert_eq!(summary.resumed + summary.from_store, 24 << 20);
    region.assert_whole("m");
    region.gate.take().unwrap().kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_survives_the_death_of_tracker_and_gate() {
    trace();
    let mut region = Region::new(OneArtifact::new(24 << 20, 4)).await;
    let nodes = [region.node("a").await, region.node("b").await];
    let mut fetches = vec![];
    for (node, name) in nodes.iter().zip(["a", "b"]) {
        fetches.push(region.fetch_limited(node, name, SLOW).await);
    }
    in_time(fetches[0].progress.wait_for(|progress| progress.bytes > 4 << 20)).await.unwrap();
    region.tracker.take().unwrap().kill().await;
    let before = region.usage().await;
    region.gate.take().unwrap().kill().await;
    region.start_gate().await;
    region.start_tracker().await;
    assert!(region.usage().await.leased_bytes >= before.leased_bytes, "the counts outlive the gate");
    for fetch in fetches {
        in_time(fetch.done).await.unwrap();
    }
    region.assert_whole("a");
    region.assert_whole("b");
    let usage = region.usage().await;
    println!("{usage:?}");
    assert!(usage.leased_bytes <= (24 << 20) * 6 / 5, "{usage:?}");
    let read = region.store.read.load(std::sync::atomic::Ordering::SeqCst);
    assert!(read <= usage.leased_bytes + usage.recovery_bytes, "{read} {usage:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_sends_bad_bytes_is_refused_and_everyone_completes() {
    trace();
    let region = Region::new(OneArtifact::new(8 << 20, 5)).await;
    let bad = region.node("bad").await;
    in_time(region.fetch(&bad, "bad").await.done).await.unwrap();
    // Its disk rots after it verified.
    std::fs::write(region.destination("bad"), vec![7; 8 << 20]).unwrap();
    let nodes = [region.node("a").await, region.node("b").await, region.node("c").await];
    let mut fetches = vec![];
    for (node, name) in nodes.iter().zip(["a", "b", "c"]) {
        fetches.push(region.fetch(node, name).await);
    }
    let mut bad_pieces = 0;
    for fetch in fetches {
        bad_pieces += in_time(fetch.done).await.unwrap().bad_pieces;
    }
    assert!(bad_pieces > 0);
    let mut refused = 0;
    for (node, name) in nodes.iter().zip(["a", "b", "c"]) {
        region.assert_whole(name);
        refused += node.service.stats().await.unwrap().quarantined;
    }
    assert!(refused > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_frames_end_their_connection_only() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    trace();
    let region = Region::new(OneArtifact::new(1 << 20, 6)).await;
    let node = region.node("m").await;
    let hello = Hello { region: region.name.clone(), name: "x".into(), incarnation: 1, role: Role::Node, zone: None };
    let hello = wire::encode_hello(&hello);
    // In place of a hello, and after a good one: no frame, an unknown kind, a message that does not parse, a second hello, and a block
    // of nothing.
    let malformed: [&[u8]; 5] =
        [b"GET / HTTP/1.1\r\n\r\n", &[0xff; 64], &[5, 0, 0, 0, 1, 99, 9, 9, 9, 9], &hello, &[3, 0, 0, 0, 2, 0, 0, 0]];
    for garbage in malformed {
        for addr in [node.service.local_addr(), &region.gate_addr, &region.tracker_addr] {
            for greets in [false, true] {
                if !greets && garbage == &hello[..] {
                    continue;
                }
                let mut stream = tokio::net::TcpStream::connect(addr).await.unwrap();
                if greets {
                    stream.write_all(&hello).await.unwrap();
                    // It takes the connection, and keeps it.
                    let kept = tokio::time::timeout(Duration::from_millis(50), async {
                        while stream.read(&mut [0; 256]).await.unwrap() > 0 {}
                    });
                    assert!(kept.await.is_err(), "{addr} hangs up on a good hello");
                }
                // It may have hung up already.
                let _ = stream.write_all(garbage).await;
                let mut answer = Vec::new();
                // A reset is an end too.
                let _ = in_time(stream.read_to_end(&mut answer)).await;
                assert!(answer.len() < 200);
            }
        }
    }
    in_time(region.fetch(&node, "m").await.done).await.unwrap();
    region.assert_whole("m");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn equal_fetches_join_and_the_last_one_dropped_stops() {
    trace();
    let region = Region::new(OneArtifact::new(8 << 20, 7)).await;
    let node = region.node("m").await;
    let slow = Limits { ingress: Some(1 << 20), egress: None, disk: None };
    let (one, two) = (region.fetch_limited(&node, "m", slow).await, region.fetch_limited(&node, "m", slow).await);
    drop(one);
    assert_eq!(node.service.stats().await.unwrap().fetching, 1);
    drop(two);
    in_time(async {
        while node.service.stats().await.unwrap().fetching > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let (one, two) = (region.fetch(&node, "m").await, region.fetch(&node, "m").await);
    let (one, two) = in_time(futures::future::join(one.done, two.done)).await;
    assert_eq!(one.unwrap(), two.unwrap());
    node.service.leave(&region.store.manifest.digest()).await.unwrap();
    assert_eq!(node.service.stats().await.unwrap().seeding, 0);
    node.service.seed(std::sync::Arc::new(region.store.manifest.clone()), region.destination("m")).await.unwrap();
    assert_eq!(node.service.stats().await.unwrap().seeding, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_fetch_takes_no_time() {
    trace();
    let region = Region::new(OneArtifact::new(1 << 20, 2)).await;
    let node = region.node("m").await;
    let started = std::time::Instant::now();
    in_time(region.fetch(&node, "m").await.done).await.unwrap();
    let took = started.elapsed();
    println!("{took:?}");
    assert!(took < Duration::from_secs(2), "{took:?}");
    region.assert_whole("m");
}
