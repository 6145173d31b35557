//! The swarm over TCP on loopback, with real files.

mod common;

use std::time::Duration;

use common::{OneArtifact, Region, in_time, trace};
use deploycore::port::PeerSwarm;
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
