//! Several artifacts at once over TCP on loopback, with limits in place of links.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{OneArtifact, Region, Running, in_time, trace};
use deploycore::port::PeerSwarm;
use deploycore::port::swarm::{Error, Fetch, FetchRequest, Limits, Priority};
use deploycore_p2p::Node;
use futures::future::join_all;
use tokio::time::{Instant, sleep_until};

const MIB: u64 = 1 << 20;
const NONE: Limits = Limits { ingress: None, egress: None, disk: None };

/// Nodes on links of this many bytes a second, and one that has both artifacts and gives as much to each of them together.
struct Site {
    region: Region,
    artifacts: [Arc<OneArtifact>; 2],
    seed: Running<Node>,
    nodes: Vec<Running<Node>>,
    link: u64,
}

impl Site {
    async fn new(nodes: usize, link: u64, sizes: [u64; 2]) -> Self {
        trace();
        let artifacts = [0, 1].map(|which| OneArtifact::new(sizes[which] as usize, which as u64));
        let mut region = Region::new(Arc::clone(&artifacts[0])).await;
        // The gate would bring what nobody limits.
        region.tune = |settings| settings.swarm.reads_store = false;
        let seed = region.node("seed").await;
        for (which, artifact) in artifacts.iter().enumerate() {
            let file = region.destination(&format!("seed-{which}"));
            std::fs::write(&file, &artifact.bytes).unwrap();
            seed.service.seed(Arc::new(artifact.manifest.clone()), file).await.unwrap();
        }
        seed.service.limit(Limits { egress: Some(link * nodes as u64), ..NONE }).await.unwrap();
        let names: Vec<String> = (0..nodes).map(|at| format!("m{at}")).collect();
        let nodes = join_all(names.iter().map(|name| region.node(name))).await;
        for node in &nodes {
            node.service.limit(Limits { ingress: Some(link), egress: Some(link), disk: None }).await.unwrap();
        }
        Self { region, artifacts, seed, nodes, link }
    }

    async fn fetch(&self, which: usize, priority: Priority) -> Vec<Fetch> {
        join_all(self.nodes.iter().enumerate().map(async |(at, node)| {
            let manifest = Arc::new(self.artifacts[which].manifest.clone());
            let destination = self.region.destination(&format!("m{at}-{which}"));
            let request = FetchRequest { manifest, destination, priority, limits: NONE };
            node.service.fetch(request).await.unwrap()
        }))
        .await
    }

    async fn whole(&self, which: usize, fetches: Vec<Fetch>) {
        for (at, fetch) in fetches.into_iter().enumerate() {
            in_time(fetch.done).await.unwrap();
            let bytes = std::fs::read(self.region.destination(&format!("m{at}-{which}"))).unwrap();
            assert!(bytes == self.artifacts[which].bytes, "m{at} has other bytes");
        }
    }
}

fn bytes(fetches: &[Fetch]) -> Vec<u64> {
    fetches.iter().map(|fetch| fetch.progress.borrow().bytes).collect()
}

/// What each node received of both in a span of time.
async fn shares(fetches: [&[Fetch]; 2], from: Instant, span: Duration) -> Vec<[u64; 2]> {
    sleep_until(from).await;
    let before = fetches.map(bytes);
    sleep_until(from + span).await;
    let after = fetches.map(bytes);
    (0..before[0].len()).map(|at| [0, 1].map(|which| after[which][at] - before[which][at])).collect()
}

async fn a_rollback_goes_first(link: u64, sizes: [u64; 2]) {
    let site = Site::new(4, link, sizes).await;
    let mut deploy = site.fetch(0, Priority::Normal).await;
    for fetch in &mut deploy {
        in_time(fetch.progress.wait_for(|progress| progress.bytes >= sizes[0] / 4)).await.unwrap();
    }
    let start = Instant::now();
    let rollback = site.fetch(1, Priority::Rollback).await;
    let second = Duration::from_secs(1);
    let shares = shares([&deploy, &rollback], start + second, second).await;
    println!("{shares:?}");
    for [normal, rollback] in shares {
        assert!(rollback * 10 >= (normal + rollback) * 9, "{normal} {rollback}");
        assert!(rollback >= site.link * 3 / 4, "{rollback}");
    }
    site.whole(1, rollback).await;
    site.whole(0, deploy).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollback_goes_first_within_a_second() {
    a_rollback_goes_first(8 * MIB, [48 * MIB, 24 * MIB]).await;
}

/// Pieces of several blocks, links of 64 MiB a second. Takes a minute and 4 GB of memory and disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute and several GB"]
async fn a_rollback_goes_first_within_a_second_of_a_large_deploy() {
    a_rollback_goes_first(64 * MIB, [768 * MIB, 256 * MIB]).await;
}

/// All slots of the seed are taken by machines that deploy, and stay so; one machine rolls back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_machine_that_rolls_back_is_served_before_all_that_deploy() {
    let site = Site::new(9, 2 * MIB, [64 * MIB, 64 * MIB]).await;
    let deploy = site.fetch(0, Priority::Normal).await;
    let second = Duration::from_secs(1);
    sleep_until(Instant::now() + second).await;
    let node = &site.nodes[0].service;
    node.leave(&site.artifacts[0].manifest.digest()).await.unwrap();
    node.limit(NONE).await.unwrap();
    let start = Instant::now();
    let manifest = Arc::new(site.artifacts[1].manifest.clone());
    let destination = site.region.destination("rollback");
    let request = FetchRequest { manifest, destination, priority: Priority::Rollback, limits: NONE };
    let rollback = [node.fetch(request).await.unwrap()];
    let [[_, rollback]] = shares([&deploy[..1], &rollback], start + second, second).await[..] else { panic!("one") };
    let all = 18 * MIB;
    assert!(rollback * 10 >= all * 9, "{rollback} of {all}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_high_priority_gets_four_times_as_much() {
    let site = Site::new(2, 8 * MIB, [48 * MIB, 96 * MIB]).await;
    let (normal, high) = (site.fetch(0, Priority::Normal).await, site.fetch(1, Priority::High).await);
    let second = Duration::from_secs(1);
    let shares = shares([&normal, &high], Instant::now() + second, second * 4).await;
    println!("{shares:?}");
    for [normal, high] in shares {
        let share = high as f64 / (normal + high) as f64;
        assert!((0.7..=0.9).contains(&share), "{normal} {high}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_change_while_a_fetch_runs() {
    let site = Site::new(1, 4 * MIB, [64 * MIB, MIB]).await;
    let (digest, node) = (site.artifacts[0].manifest.digest(), &site.nodes[0].service);
    let outcome = node.adjust(&digest, Priority::High, NONE).await;
    assert!(matches!(outcome, Err(Error::NotFound { .. })), "{outcome:?}");
    let mut fetch = site.fetch(0, Priority::Normal).await.remove(0);
    let received = async |fetch: &Fetch| {
        let (before, second) = (fetch.progress.borrow().bytes, Duration::from_secs(1));
        sleep_until(Instant::now() + second).await;
        fetch.progress.borrow().bytes - before
    };
    in_time(fetch.progress.wait_for(|progress| progress.bytes > 0)).await.unwrap();
    let slow = received(&fetch).await;
    assert!((2 * MIB..=6 * MIB).contains(&slow), "{slow}");
    // The node may take more, but this artifact nothing.
    node.limit(NONE).await.unwrap();
    for limits in [Limits { ingress: Some(0), ..NONE }, Limits { disk: Some(0), ..NONE }] {
        node.adjust(&digest, Priority::Normal, limits).await.unwrap();
        received(&fetch).await;
        assert_eq!(received(&fetch).await, 0);
    }
    node.adjust(&digest, Priority::Normal, NONE).await.unwrap();
    // What the seed gives limits it now: that changes too.
    site.seed.service.limit(Limits { egress: Some(0), ..NONE }).await.unwrap();
    received(&fetch).await;
    assert_eq!(received(&fetch).await, 0);
    site.seed.service.limit(NONE).await.unwrap();
    let start = Instant::now();
    site.whole(0, vec![fetch]).await;
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}
