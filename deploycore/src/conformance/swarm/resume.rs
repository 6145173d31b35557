//! Fetches that were interrupted.

use super::steps::*;
use super::*;

const LEN: u64 = 6 * PIECE + 9;

/// The handle is the fetch.
pub async fn a_dropped_fetch_stops_and_frees_the_digest(regions: Arc<dyn Regions>) {
    let site = Site::open(regions).await;
    let artifact = site.put(LEN, 1).await;
    let swarm = site.region.join().await;
    drop(site.fetch_half(&swarm, &artifact, "here").await);
    eventually("the fetch is gone", async || swarm.stats().await.expect("stats").fetching == 0).await;
    site.tap.open();
    site.fetch_whole(&swarm, &artifact, "there").await;
}

/// On the same machine.
pub async fn the_same_machine_goes_on_from_what_it_verified(regions: Arc<dyn Regions>) {
    let site = Site::open(regions).await;
    let artifact = site.put(LEN, 1).await;
    let swarm = site.region.join().await;
    drop(site.fetch_half(&swarm, &artifact, "file").await);
    eventually("the fetch is gone", async || swarm.stats().await.expect("stats").fetching == 0).await;
    goes_on(&site, &swarm, &artifact).await;
}

/// After a restart of the process.
pub async fn another_process_goes_on_from_what_is_on_disk(regions: Arc<dyn Regions>) {
    let site = Site::open(regions).await;
    let artifact = site.put(LEN, 1).await;
    let swarm = site.region.join().await;
    drop(site.fetch_half(&swarm, &artifact, "file").await);
    drop(swarm);
    let swarm = site.region.join().await;
    goes_on(&site, &swarm, &artifact).await;
}

async fn goes_on(site: &Site, swarm: &Arc<dyn PeerSwarm>, artifact: &Artifact) {
    site.tap.open();
    let summary = site.fetch_whole(swarm, artifact, "file").await;
    assert!(summary.resumed >= 2 * PIECE, "{summary:?}");
    assert_eq!(summary.resumed + summary.from_store + summary.from_peers, LEN, "{summary:?}");
}

/// A disk may lose what a process that was killed had written.
pub async fn a_piece_that_was_damaged_on_disk_is_fetched_again(regions: Arc<dyn Regions>) {
    let site = Site::open(regions).await;
    let artifact = site.put(LEN, 1).await;
    let swarm = site.region.join().await;
    drop(site.fetch_half(&swarm, &artifact, "file").await);
    drop(swarm);
    let mut found = std::fs::read(site.path("file")).expect("the file is there");
    found.iter_mut().step_by(PIECE as usize / 2).for_each(|byte| *byte = !*byte);
    site.file("file", &found);
    site.tap.open();
    let swarm = site.region.join().await;
    let summary = site.fetch_whole(&swarm, &artifact, "file").await;
    assert_eq!(summary.resumed, 0, "no piece was whole");
}

/// Whatever is there is no part of the artifact, and nothing of it stays, not even behind the end.
pub async fn a_file_of_something_else_is_replaced(regions: Arc<dyn Regions>) {
    let site = Site::open(regions).await;
    let (artifact, other) = (site.put(LEN, 1).await, site.put(9 * PIECE, 2).await);
    site.file("file", &other.bytes);
    let swarm = site.region.join().await;
    let summary = site.fetch_whole(&swarm, &artifact, "file").await;
    assert_eq!(summary.resumed, 0);
}
